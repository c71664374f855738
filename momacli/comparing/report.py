"""All rows of a comparison in the order of its tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from momacli.comparing.plan import FINE_TUNED, Wanted
from momacli.comparing.rows import Row


@dataclass(frozen=True)
class CompareReport:
    """The rows of a comparison; where it is a dry run, without scores."""

    output: Path
    tasks: tuple[str, ...]
    rows: Sequence[Row]  # pre-trained, fine-tuned, then the methods
    masking: Sequence[Row]  # the sweep of masking rates, behind the merge that it is of
    ratios: Sequence[Row]  # the sweep of data ratios, likewise
    overlaps: Sequence[str] = ()  # samples that are both adapted to and evaluated, by task
    figures: Sequence[Path] = ()
    seconds: float = 0.0
    dry_run: bool = False

    @property
    def every(self) -> list[Row]:
        """All rows, those of sweeps too, each once."""
        swept = [row for row in self.ratios if row.data_ratio is not None and row.data_ratio < 1]
        masked = [row for row in self.masking if row.masking_rate is not None]
        return [*self.rows, *masked, *swept]

    @property
    def failed(self) -> list[Row]:
        """The rows that could not be made."""
        return [row for row in self.every if row.error is not None]


def reported(
    output: Path,
    tasks: tuple[str, ...],
    wanted: Sequence[Wanted],
    rows: Mapping[str, Row],
    ratios: Sequence[float],
) -> CompareReport:
    """Order rows by what was wanted.

    rows: by name; what is missing is shown as a row with nothing in it.
    ratios: of the data; the ratio 1 is the row itself.
    """
    pre_trained, *methods = [one for one in wanted if one == Wanted(one.spec)]
    found = {one.name: rows.get(one.name, one.blank()) for one in wanted}
    fine_tuned = rows.get(FINE_TUNED, Row(FINE_TUNED, "Fine-tuned", indented=False))
    swept: list[Row] = []
    masked: list[Row] = []
    for one in wanted:
        if one.masking_rate is not None:
            base = found[one.base.name]
            masked += [found[one.name]] if base in masked else [base, found[one.name]]
    for one in methods:
        own = [other for other in wanted if other.data_ratio and other.blank().name == one.name]
        if own or (1 in ratios and one.takes_ratio):
            base = found[one.base.name]
            swept += [] if base in swept else [base]
            swept += [found[other.name] for other in own]
            swept += [replace(found[one.name], data_ratio=1.0)] if 1 in ratios else []
    return CompareReport(
        output,
        tasks,
        [found[pre_trained.name], fine_tuned, *(found[one.name] for one in methods)],
        masked,
        swept,
    )
