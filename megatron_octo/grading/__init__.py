"""Grading: is the answer in a response the gold answer? By rules and math-verify, for RL and evaluation.

with Graders(processes=2, seconds=5.0) as graders:
    verdict = graders.grade(response, gold)  # verdict.is_right, verdict.has_answer, verdict.timed_out
"""

from megatron_octo.grading.pool import Graders
from megatron_octo.grading.verdict import Form, Verdict

__all__ = ["Form", "Graders", "Verdict"]
