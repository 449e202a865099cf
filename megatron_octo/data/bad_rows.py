"""Rows that could not be used: added up over tasks, named by file and line, and weighed against the limit."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_octo.data.tally import PLACES_KEPT
from megatron_octo.errors import DataError


@dataclass(frozen=True)
class BadRows:
    """Bad rows of a source."""

    rows: int
    """Rows read, good and bad."""
    counts: dict[str, int]
    places: dict[str, list[str]]
    """For each reason, the first few as `file:line`, lines counted from 1."""

    @classmethod
    def of(cls, reports: Iterable[dict[str, Any]]) -> "BadRows":
        """Add up the reports of a source's tasks, given in order: a task counts lines from where it began."""
        rows, counts, lines = 0, Counter[str](), Counter[str]()
        places: dict[str, list[str]] = {}
        for report in reports:
            rows += report["rows"]
            counts.update(report["bad"])
            for reason, found in report["places"].items():
                here = places.setdefault(reason, [])
                here += [f"{file}:{lines[file] + line + 1}" for file, line in found[: PLACES_KEPT - len(here)]]
            lines.update(report["lines"])
        return cls(rows, dict(sorted(counts.items())), places)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """One line a reason: how many, why, and where the first are."""
        return [f"{count:,} x {reason}: {_listed(self.places[reason], count)}" for reason, count in self.counts.items()]

    def check(self, source: str, limit: float) -> None:
        """Weigh against the source's `max_bad_rows`.

        Raises:
            DataError: there are more, or no row could be read.
        """
        if not self.rows:
            raise DataError(f"data.sources.{source}: there is no row in its input; check its paths")
        if self.total <= limit * self.rows:
            return
        raise DataError(
            f"data.sources.{source}: {self.total:,} of {self.rows:,} rows ({self.total / self.rows:.2%}) cannot be "
            f"used, the limit is {limit:.2%} (max_bad_rows = {limit})\n"
            + "\n".join(f"  {line}" for line in self.lines())
            + f"\n  correct the rows or the source's `format`, or raise data.sources.{source}.max_bad_rows"
        )


def _listed(places: Sequence[str], count: int) -> str:
    return ", ".join(places) + (", ..." if count > len(places) else "")
