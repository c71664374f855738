"""Adapters behind every block of the encoder, fitted task by task through all of it.

A run that is stopped goes on after the last task that was finished.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from momacli.alignment.catalog import FeatureMethod
from momacli.alignment.encoding import TaskData, check_finite, merged_features
from momacli.alignment.inputs import Inputs
from momacli.alignment.on_features import Told, adapted, keywords_of, task_by_task
from momacli.alignment.outcome import Outcome
from momacli.alignment.resume import Keeper
from momacli.alignment.samples import expert_reader, reader
from momacli.errors import ConflictError
from momacli.features.adapter import Adapter
from momacli.models.blocks import changing, find_blocks, token_mean
from momacli.models.classification import Classifier
from momacli.models.interface import Batch
from momacli.models.separate_head import SeparateHead

_BATCH = 64


class DeepEncoder:
    """An encoder that tells the mean tokens behind its blocks, and has adapters there."""

    def __init__(self, network: Classifier | SeparateHead, batch: Batch):
        """Find the blocks with a few real samples. Raises ModelError where there are none."""
        self._network = network
        self._blocks = find_blocks(network.module, network.features, batch)
        with torch.no_grad():
            self._widths = [mean.shape[1] for mean in self(batch, ())[0]]

    def __call__(self, batch: Batch, adapters: Sequence[Adapter]) -> tuple[list[Tensor], Tensor]:
        """Return the mean token [n, d_l] behind each block, and the features [n, d].

        adapters: one behind each block, or none at all. That behind the encoder is not applied.
        """
        means: list[Tensor] = []

        def change(number: int, tokens: Tensor) -> Tensor:
            mended = adapters[number](tokens) if adapters else tokens
            means.append(token_mean(mended, batch))
            return mended

        with changing(self._blocks, change):
            features = self._network.features(batch).float()
        return means, features

    def check(self, adapters: Sequence[Adapter], task: str) -> None:
        """Raise ConflictError where adapters are not one a block, and as wide as it."""
        widths = [one.down.shape[1] for one in adapters]
        if widths != self._widths:
            raise ConflictError(
                f"the adapters of task {task} are for other blocks than the encoder has",
                details=[f"expected widths {self._widths}, found {widths}"],
            )


def fit_in_depth(
    inputs: Inputs,
    network: Classifier | SeparateHead,
    tasks: Sequence[TaskData],
    method: FeatureMethod,
    keeper: Keeper,
) -> Outcome:
    """Fit adapters behind every block, each task's by itself.

    What the fine-tuned encoder makes behind its blocks is computed once, and in memory for one
    task at a time. The network is left with the merged weights.

    Raises DivergenceError if features or a loss are not finite, ModelError for an encoder
    without blocks.
    """
    network.load_encoder(reader(inputs.first))
    encoder = DeepEncoder(network, tasks[0].batch(torch.arange(min(4, tasks[0].count))))
    merged = merged_features(network, tasks, inputs.listener)
    check_finite(merged, tasks)

    def fit(task: TaskData, told: Told) -> dict[str, Tensor]:
        network.load_encoder(expert_reader(inputs.experts[task.task], inputs.base))
        means, _ = _encoded(encoder, task, ())
        network.load_encoder(reader(inputs.first))

        def encode(indices: Tensor, adapters: Sequence[Adapter]) -> tuple[list[Tensor], Tensor]:
            return encoder(task.batch(indices), adapters)

        wanted = [*means, task.finetuned]
        adapter: Adapter = method.function(encode, wanted, **keywords_of(method, task, told))
        return adapter.parts

    def mend(task: TaskData, adapter: Adapter, _merged: Tensor) -> Tensor:
        return adapter(_encoded(encoder, task, adapter.blocks)[1])

    found = task_by_task(tasks, method, fit, keeper, inputs.listener)
    return adapted(tasks, merged, method, found, mend)


@torch.no_grad()
def _encoded(
    encoder: DeepEncoder, task: TaskData, adapters: Sequence[Adapter]
) -> tuple[list[Tensor], Tensor]:
    """What the encoder makes of all samples of a task."""
    each = [
        encoder(task.batch(indices), adapters) for indices in torch.arange(task.count).split(_BATCH)
    ]
    means = [torch.cat(parts) for parts in zip(*(means for means, _ in each), strict=True)]
    return means, torch.cat([features for _, features in each])
