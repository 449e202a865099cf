"""Hugging Face weights to and from Megatron distributed checkpoints, and the proof that they match."""
