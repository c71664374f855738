"""The commands that make a row's model, as anybody could type them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from momacli.comparing.alignments import alignment_arguments
from momacli.comparing.specs import Spec, Step
from momacli.data.reading import Reading

MODELS = "models"
"""Folder, in that of a comparison, where models are while they are needed."""


@dataclass(frozen=True)
class Common:
    """What all rows of a comparison have in common."""

    experts: Sequence[str]  # as given: "PATH" or "NAME=PATH"
    base: str  # path
    data: Sequence[str]  # unlabeled samples, as given
    folder: Path  # of the comparison
    as_folders: bool  # whether models are folders, or files
    reading: Reading
    seed: int
    device: str
    config: str | None = None
    heads: Sequence[str] = ()
    pooling: str | None = None
    features: str | None = None
    cache: str | None = None

    def place(self, name: str) -> Path:
        """The folder of a row's model, and of what comes with it."""
        return self.folder / MODELS / name.replace(":", "_").replace("/", "_").replace(os.sep, "_")

    def model(self, name: str) -> Path:
        """A row's model itself."""
        return self.place(name) / ("model" if self.as_folders else "model.safetensors")

    def merge(self, step: Step, output: Path, experts: Sequence[str] | None = None) -> list[str]:
        """`moma merge` of all experts, or of these."""
        arguments = ["merge", *(experts or self.experts), "--base", self.base]
        arguments += ["--method", step.name, *step.merge_arguments(), "--seed", str(self.seed)]
        for glob in self.heads:
            arguments += ["--heads", glob]
        if step.sees_samples:
            arguments += [*self._data(set()), "--device", self.device, *self._features()]
        return [*arguments, *_option("--config", self.config), "--output", str(output)]

    def align(self, merged: Path, spec: Spec, output: Path) -> list[str]:
        """`moma align` of a merged model."""
        assert spec.alignment is not None
        options = spec.alignment.options
        arguments = ["align", str(merged), *self._data({key for key, _ in options})]
        arguments += alignment_arguments(spec.alignment.name, options)
        arguments += ["--seed", str(self.seed), "--device", self.device]
        arguments += [*self._features(), *_option("--cache", self.cache)]
        return [*arguments, "--output", str(output)]

    def absorb(self, merged: Path, alignment: Path, output: Path) -> list[str]:
        """`moma absorb` of an alignment."""
        return ["absorb", str(merged), str(alignment), "--output", str(output)]

    def _features(self) -> list[str]:
        return _option("--pooling", self.pooling) + _option("--features", self.features)

    def _data(self, given: set[str]) -> list[str]:
        """Where the unlabeled samples are and how they are read, but for what a row says itself."""
        sampling, columns = self.reading.sampling, self.reading.columns
        arguments = [word for item in self.data for word in ("--data", item)]
        if not given & {"sample", "max-samples"}:
            share = None if sampling.share is None else f"{100 * sampling.share!r}%"
            arguments += _option("--max-samples", sampling.count) + _option("--sample", share)
        arguments += _option("--text-column", columns.text)
        arguments += _option("--max-length", self.reading.max_length)
        return [*arguments, *(["--strict"] if self.reading.strict else [])]


def _option(flag: str, value: object) -> list[str]:
    return [] if value is None else [flag, str(value)]
