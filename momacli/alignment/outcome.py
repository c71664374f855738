"""What a method found, ready to be written and compared with what was written."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from momacli.alignment.report import TaskReport
from momacli.features.adapter import Adapter

CHECKED = 16
"""Samples of each task on which the written model is compared with what was fitted."""


@dataclass(frozen=True)
class Outcome:
    """The parts that a method has a say in; the others are as in the merged model."""

    reports: Mapping[str, TaskReport]
    logits: Mapping[str, Tensor]  # [n, C] of the first samples of each task, n <= CHECKED
    steps: int
    batch_size: int | None = None  # of each task, where it was found
    transforms: Mapping[str, Tensor] = field(default_factory=dict)  # A_t by task
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    headroom: float = 1.0
    samples_per_second: float = 0.0
    masked_share: float = 0.0
