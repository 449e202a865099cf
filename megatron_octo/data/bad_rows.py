"""Rows that cannot be used: summed over tasks, listed by file and line, and compared with the limit."""

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
    """Number of rows that were read, good and bad."""
    counts: dict[str, int]
    """Number of bad rows by reason."""
    places: dict[str, list[str]]
    """The first few bad rows of each reason as `file:line`, counting lines from 1."""

    @classmethod
    def from_reports(cls, reports: Iterable[dict[str, Any]]) -> "BadRows":
        """Sum the reports of a source's tasks, given in order, since each task counts lines from where it started."""
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
        """One line for each reason: the count, the reason, and the first places."""
        return [f"{count:,} x {reason}: {_listed(self.places[reason], count)}" for reason, count in self.counts.items()]

    def check(self, source: str, limit: float) -> None:
        """Compare with the source's `max_bad_rows`.

        Raises:
            DataError: there are more, or there are no rows at all.
        """
        if not self.rows:
            raise DataError(f"data.sources.{source}: its input has no rows; check its paths")
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
