"""A Hugging Face configuration to a Megatron-Core GPTModel: shapes, layer specs, precision, first weights."""
