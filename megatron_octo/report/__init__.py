"""What came out: curves, the summary, and where a run stands."""

from megatron_octo.report.curves import draw_curves
from megatron_octo.report.status import StageState, print_status, stage_states
from megatron_octo.report.summary import print_summary, write_summary

__all__ = ["StageState", "draw_curves", "print_status", "print_summary", "stage_states", "write_summary"]
