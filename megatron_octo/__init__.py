"""OctoThinker's road, from a base model to an RL-tuned one, on one recipe file."""

__version__ = "0.1.0"
