"""Records of steps on disk, a JSON object a line: read, and cut back to where a resume starts."""

import json
from pathlib import Path
from typing import Any

from megatron_octo.runtime.files import write_text_atomically


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file; a last line torn by a kill is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def keep_lines_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the records after a step, which a resume takes again; returns what stays."""
    if not path.is_file():
        return []
    kept = [record for record in read_lines(path) if record["step"] <= step]
    write_text_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept
