"""From an architecture to a Megatron-Core GPTModel: configuration, layer specs, precision, random initialization."""
