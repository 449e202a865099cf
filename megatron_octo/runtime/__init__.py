"""Where a run executes: devices, ranks, signals, the run folder, checkpoints."""
