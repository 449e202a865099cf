"""Evaluation of a run's models: so far on its own held-out problems. The 13 benchmarks are still to come."""
