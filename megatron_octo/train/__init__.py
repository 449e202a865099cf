"""The mid-training loop around Megatron-Core."""
