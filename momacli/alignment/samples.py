"""Each task's samples, and what its fine-tuned encoder makes of them."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momacli.adapters.checkpoint import AdaptedCheckpoint
from momacli.alignment.encoding import TaskData, encode_all
from momacli.alignment.inputs import Sources
from momacli.alignment.sharing import ALONE
from momacli.checkpoint.multitask import TaskModel
from momacli.checkpoint.plan import Expert
from momacli.checkpoint.reader import Checkpoint
from momacli.data.features import Entry, FeatureCache, Key, MergedCache, feature_key
from momacli.data.loading import Samples, load_samples
from momacli.data.reading import Reading
from momacli.merging.ranks import Ranks
from momacli.models.classification import Classifier
from momacli.models.device import moved
from momacli.models.families import open_classifier
from momacli.models.separate_head import SeparateHead


def open_network(sources: Sources) -> Classifier | SeparateHead:
    """Build the network of the first task, which all tasks' encoders fit."""
    first = sources.first
    assert first.description is not None
    classifier = open_classifier(
        first.description.config, first.entries, heads=sources.recipe.heads, device=sources.device
    )
    classifier.load(reader(first), first.keys, source=str(sources.model.path))
    return classifier


def prepare_tasks(
    inputs: Sources,
    classifier: Classifier | SeparateHead,
    reading: Reading,
    cache: FeatureCache,
    ranks: Ranks = ALONE,
) -> list[TaskData]:
    """Prepare each task's samples and its fine-tuned features, one encoder at a time.

    The classifier is used to encode, and left with the last expert's encoder if any had to be.
    """
    tasks: list[TaskData] = []
    told: set[str] = set()
    for task, model in inputs.model.tasks.items():
        assert model.description is not None
        samples = load_samples(
            inputs.data[task], model.description, task, reading, told=told, listener=inputs.listener
        )
        if not tasks:
            few = batches(samples, inputs.device)(torch.arange(min(4, len(samples))))
            classifier.find_head(few)
        tasks.append(finetuned_task(inputs, classifier, task, samples, cache, ranks))
    return tasks


def finetuned_task(
    inputs: Sources,
    classifier: Classifier | SeparateHead,
    task: str,
    samples: Samples,
    cache: FeatureCache,
    ranks: Ranks = ALONE,
) -> TaskData:
    """A task's samples with its fine-tuned features, from the cache or through its encoder.

    The classifier knows its head already; it is left with the expert's encoder if it had to be.
    """
    model, expert = inputs.model.tasks[task], inputs.experts[task]
    weights = expert.checkpoint.sha256()
    if expert.is_task_vector or isinstance(expert.checkpoint, AdaptedCheckpoint):
        weights = weights | {f"base/{k}": v for k, v in inputs.base.sha256().items()}
    source = inputs.data[task]
    key = samples_key(weights, model, samples, source, place=_place(expert, source))
    merged_key = samples_key(model.checkpoint.sha256(), model, samples, source)
    features = cache.get(key, len(samples))
    if not all(ranks.all_of(features is not None)):
        features = None
    data = TaskData(
        task,
        len(samples),
        batches(samples, inputs.device),
        torch.empty(0, 0),
        classifier.head(reader(model), model.keys),
        samples.padding,
        Entry(MergedCache(cache, _merged_weights(inputs), listener=inputs.listener), merged_key),
        samples.views,
    )
    if features is None:
        classifier.load_encoder(expert_reader(expert, inputs.base))
        stage = f"fine-tuned features of {task}"
        features = encode_all(classifier, [data], stage, inputs.listener, ranks)[0]
        features = cache.put(key, features)
    return replace(data, finetuned=features.to(inputs.device))


def _merged_weights(inputs: Sources) -> dict[str, str]:
    """SHA-256 of the files of all tasks of the merged model."""
    models = inputs.model.tasks.items()
    return {
        f"{task}/{file}": digest
        for task, model in models
        for file, digest in model.checkpoint.sha256().items()
    }


def batches(samples: Samples, device: torch.device) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what gives the samples of some indices [n] as a model on the device takes them."""

    def batch(indices: Tensor) -> dict[str, Tensor]:
        return {key: moved(value, device) for key, value in samples.batch(indices).items()}

    return batch


def samples_key(
    weights: Mapping[str, str],
    model: TaskModel,
    samples: Samples,
    source: Path,
    *,
    place: str = "",
) -> Key:
    """The key of the features that an encoder of these weights' SHA-256 makes of samples."""
    assert model.description is not None
    prepared: dict[str, Any] = {**samples.preparation, **_processor(model)}
    prepared["config"] = dict(model.description.config)
    return Key(model.task, feature_key(weights, prepared, samples.files, source), place)


def _place(expert: Expert, source: Path) -> str:
    """Where weights and samples lie, for telling what is out of date from what is another's."""
    places = f"{expert.checkpoint.path.resolve()}\0{source.resolve()}"
    return hashlib.sha256(os.fsencode(places)).hexdigest()


def _processor(model: TaskModel) -> dict[str, str]:
    """The content of the files that prepare inputs, for the key of the cache."""
    assert model.description is not None
    folder = model.description.folder or Path()
    return {
        file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8", errors="replace")
        for file in model.description.companions
    }


def expert_reader(expert: Expert, base: Checkpoint) -> Callable[[str], Tensor]:
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
