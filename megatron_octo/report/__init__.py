"""Curves, the summary and the status of a run, from the files in its folder."""

from megatron_octo.report.curves import draw_curves
from megatron_octo.report.state import StageState, stage_states
from megatron_octo.report.status import print_status
from megatron_octo.report.summary import print_summary, write_summary

__all__ = ["StageState", "draw_curves", "print_status", "print_summary", "stage_states", "write_summary"]
