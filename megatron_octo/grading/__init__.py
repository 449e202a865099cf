"""Grading: the answer of a response, compared with a gold answer by rules and math-verify. Shared by RL and evaluation.

with Graders() as graders:
    verdict = graders.grade(response, gold)
"""
