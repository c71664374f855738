"""Each task's samples, and what its fine-tuned encoder makes of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momacli.adapters.checkpoint import AdaptedCheckpoint
from momacli.alignment.fit import TaskData, encode_all
from momacli.alignment.inputs import Inputs
from momacli.checkpoint.multitask import TaskModel
from momacli.checkpoint.plan import Expert
from momacli.checkpoint.reader import Checkpoint
from momacli.data.features import FeatureCache, feature_key
from momacli.data.loading import Samples, load_samples
from momacli.data.reading import Reading
from momacli.models.classification import Classifier
from momacli.models.separate_head import SeparateHead


def prepare_tasks(
    inputs: Inputs, classifier: Classifier | SeparateHead, reading: Reading, cache: FeatureCache
) -> list[TaskData]:
    """Prepare each task's samples and its fine-tuned features, one encoder at a time.

    The classifier is used to encode, and left with the last expert's encoder if any had to be.
    """
    tasks: list[TaskData] = []
    told: set[str] = set()
    for task, model in inputs.model.tasks.items():
        assert model.description is not None
        source = inputs.data[task]
        samples = load_samples(
            source, model.description, task, reading, told=told, listener=inputs.listener
        )

        def batch(indices: Tensor, samples: Samples = samples) -> dict[str, Tensor]:
            values = samples.batch(indices)
            return {key: value.to(inputs.device) for key, value in values.items()}

        expert = inputs.experts[task]
        prepared: dict[str, Any] = {**samples.preparation, **_processor(model)}
        prepared["config"] = dict(model.description.config)
        weights = expert.checkpoint.sha256()
        if expert.is_task_vector or isinstance(expert.checkpoint, AdaptedCheckpoint):
            weights = weights | {f"base/{k}": v for k, v in inputs.base.sha256().items()}
        key = feature_key(weights, prepared, samples.files, source)
        features = cache.get(key, len(samples))
        if not tasks:
            classifier.find_head(batch(torch.arange(min(4, len(samples)))))
        head = classifier.head(reader(model), model.keys)
        data = TaskData(task, len(samples), batch, torch.empty(0, 0), head, samples.padding)
        if features is None:
            classifier.load_encoder(_expert_reader(expert, inputs.base))
            features = encode_all(
                classifier, [data], f"fine-tuned features of {task}", inputs.listener
            )[0]
            cache.put(key, features)
        tasks.append(replace(data, finetuned=features.to(inputs.device)))
    return tasks


def _processor(model: TaskModel) -> dict[str, str]:
    """The content of the files that prepare inputs, for the key of the cache."""
    assert model.description is not None
    folder = model.description.folder or Path()
    return {
        file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8", errors="replace")
        for file in model.description.companions
    }


def _expert_reader(expert: Expert, base: Checkpoint) -> Callable[[str], Tensor]:
    """Read theta_t: the expert's own tensors, or base plus task vector."""
    entries = expert.checkpoint.entries

    def read(key: str) -> Tensor:
        if key not in entries:
            return base.read(key)
        if expert.is_task_vector:
            return base.read(key).float() + expert.checkpoint.read(key).float()
        return expert.checkpoint.read(key)

    return read


def reader(model: TaskModel) -> Callable[[str], Tensor]:
    """Return what reads a model's tensors by their own names."""
    return lambda key: model.checkpoint.read(model.keys[key])
