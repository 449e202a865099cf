"""What a run's models can do: so far, its own held-out problems. (The 13 benchmarks are still to come.)"""
