"""All rows of a comparison, those of sweeps too, as comma-separated values."""

import csv
import io
from collections.abc import Sequence

from momacli.comparing.rows import Row

_BEFORE = ("method", "masking_rate", "data_ratio")
_AFTER = (
    "average",
    "added_parameters",
    "seconds",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
    "error",
)


def as_csv(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    """A header and a line a row; shares and accuracies from 0 to 1, unknown values empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_BEFORE, *tasks, *_AFTER])
    for row in rows:
        accuracies = [row.scores[task].accuracy if row.scores else None for task in tasks]
        costs = [row.average, row.added, row.seconds, row.memory, row.gpu_memory, row.error]
        writer.writerow([row.name, row.masking_rate, row.data_ratio, *accuracies, *costs])
    return text.getvalue()
