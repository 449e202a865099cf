"""Where it runs: devices, ranks, the run folder, progress."""
