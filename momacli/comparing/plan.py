"""Which rows are to be made, and the keys under which finished ones are found again."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from momacli import __version__
from momacli.alignment.catalog import FILES
from momacli.alignment.settings import Settings
from momacli.checkpoint.head_files import with_head_file
from momacli.checkpoint.reader import Checkpoint
from momacli.comparing.alignments import ALIGNMENTS
from momacli.comparing.commands import Common
from momacli.comparing.overlap import sample_files
from momacli.comparing.rows import Row
from momacli.comparing.specs import Spec, Step
from momacli.errors import UsageError

PRE_TRAINED = Spec(Step("task-arithmetic", (("lambda", "0"),)))
"""The base's encoder with the experts' heads: nothing of the multi-task vector."""


_IN_CLOSED_FORM = ("transform", "prior", "objective", "views")
"""Settings that count where no mask is learned."""

FINE_TUNED = "fine-tuned"
"""Name of the row of the experts, each on its own task."""


@dataclass(frozen=True)
class Wanted:
    """A row to be made."""

    spec: Spec
    masking_rate: float | None = None
    data_ratio: float | None = None

    @property
    def name(self) -> str:
        """What it is, as text; no two rows have the same."""
        if self.masking_rate is not None:
            return f"{self.spec}@{self.masking_rate:g}"
        return "pre-trained" if self.spec == PRE_TRAINED else str(self.spec)

    @property
    def base(self) -> "Wanted":
        """The row of the merge alone."""
        return Wanted(self.spec.base)

    @property
    def takes_ratio(self) -> bool:
        """Whether it is an alignment that does not say itself which samples it takes."""
        given = {key for key, _ in self.spec.alignment.options} if self.spec.alignment else None
        return given is not None and not given & {"sample", "max-samples"}

    @property
    def has_mask(self) -> bool:
        """Whether it is an alignment that learns a mask."""
        step = self.spec.alignment
        return step is not None and ALIGNMENTS[step.name].has_mask

    def blank(self) -> Row:
        """The row with nothing in it, under the name that it has without a sweep."""
        if self.spec == PRE_TRAINED:
            return Row(self.name, "Pre-trained", indented=False)
        spec = self.spec if self.data_ratio is None else self.spec.without_option("sample")
        return Row(
            str(spec),
            spec.label,
            spec.alignment is not None,
            masking_rate=self.masking_rate,
            data_ratio=self.data_ratio,
        )


@dataclass(frozen=True)
class Sweeps:
    """Settings at which alignments are repeated.

    masking_rates: shares of the mask set to 0 (MOMA section 5.5, Figure 8).
    data_ratios: shares of the unlabeled samples (Table 5).
    """

    masking_rates: Sequence[float] = ()
    data_ratios: Sequence[float] = ()

    def check(self, specs: Sequence[Spec]) -> None:
        """Refuse what cannot be done, all at once. Raises UsageError."""
        problems = [
            f"masking rate {rate:g}: expected 0 to 1, or 0% to 100%"
            for rate in self.masking_rates
            if not 0 <= rate <= 1
        ]
        problems += [
            f"data ratio {ratio:g}: expected above 0 and up to 1, or 100%"
            for ratio in self.data_ratios
            if not 0 < ratio <= 1
        ]
        if self.masking_rates and not any(Wanted(spec).has_mask for spec in specs):
            problems.append("no method has a mask: add one such as task-arithmetic+moma")
        if self.data_ratios and not any(Wanted(spec).takes_ratio for spec in specs):
            problems.append("no method is aligned: add one such as task-arithmetic+moma")
        if problems:
            raise UsageError("the sweeps cannot be run", details=problems)

    def of(self, spec: Spec) -> Iterator[Wanted]:
        """What is to be made besides the row itself; the ratio 1 is the row itself."""
        if Wanted(spec).has_mask:
            yield from (Wanted(spec, masking_rate=rate) for rate in self.masking_rates)
        if Wanted(spec).takes_ratio:
            for ratio in self.data_ratios:
                if ratio < 1:
                    varied = spec.with_option("sample", f"{100 * ratio:g}%")
                    yield Wanted(varied, data_ratio=ratio)


def all_wanted(specs: Sequence[Spec], sweeps: Sweeps) -> list[Wanted]:
    """All rows but that of the experts: the pre-trained model, then those of each merge."""
    return [one for spec in (PRE_TRAINED, *specs) for one in (Wanted(spec), *sweeps.of(spec))]


class Keys:
    """Hashes of what determines a row: content of inputs, method, settings."""

    def __init__(
        self,
        common: Common,
        checkpoints: Mapping[str, Path],
        data: Mapping[str, Path],
        evaluation: Mapping[str, Path],
        evaluated: tuple[int | None, str],
    ):
        """Hash all inputs: checkpoints by their content, samples by names, sizes and times.

        checkpoints: the experts by name, and "base".
        evaluated: samples of each task that are evaluated at most, and in which precision.
        """
        config = Path(common.config).read_text(encoding="utf-8") if common.config else None
        self._shared = {
            "version": __version__,
            "checkpoints": {name: _digests(path) for name, path in checkpoints.items()},
            "evaluation": _listed(evaluation),
            "evaluated": evaluated,
            "reading": asdict(common.reading),
            "seed": common.seed,
            "device": common.device,
            "config": config,
            "heads": list(common.heads),
            "features": [common.pooling, common.features],
        }
        self._data = _listed(data)

    def of(self, name: str, spec: Spec | None = None) -> str:
        """The key of a row; of one without a spec, which nothing is merged for."""
        content = {
            **self._shared,
            "row": name,
            "data": self._data if spec is not None and spec.sees_samples else None,
            "defaults": _left_out(None if spec is None else spec.alignment),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _left_out(alignment: Step | None) -> dict[str, Any]:
    """The defaults that moma's own alignment has for what a row does not say."""
    if alignment is None or alignment.name in FILES:
        return {}
    defaults = asdict(Settings())
    if ALIGNMENTS[alignment.name].has_mask:
        return defaults
    return {name: defaults[name] for name in _IN_CLOSED_FORM}


def _digests(path: Path) -> dict[str, str]:
    with Checkpoint.open(path) as model, with_head_file(model) as checkpoint:
        return dict(checkpoint.sha256())


def _listed(sources: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for task, source in sorted(sources.items()):
        for file in sample_files(source):
            status = file.stat()
            line = (task, str(file.relative_to(source)), status.st_size, status.st_mtime_ns)
            digest.update(json.dumps(line).encode())
    return digest.hexdigest()
