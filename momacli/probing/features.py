"""Each task's labeled samples as its fine-tuned and the merged encoder see them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from momacli.alignment.encoding import TaskData, merged_features
from momacli.alignment.inputs import Sources
from momacli.alignment.samples import (
    batches,
    finetuned_task,
    open_network,
    reader,
)
from momacli.checkpoint.multitask import TaskModel
from momacli.data.features import FeatureCache
from momacli.data.loading import load_labeled
from momacli.data.reading import Reading
from momacli.errors import DataError, DivergenceError
from momacli.models.classification import Classifier
from momacli.models.interface import Head
from momacli.models.layout import sized_config
from momacli.models.separate_head import SeparateHead
from momacli.shapes import Float, Int


@dataclass(frozen=True)
class TaskFeatures:
    """Raw features of N labeled samples, and the heads they are made for."""

    task: str
    merged: Float[Tensor, "N d"]
    finetuned: Float[Tensor, "N d"]
    labels: Int[Tensor, " N"]
    classes: int
    head: Head  # the fine-tuned model's
    merged_head: Head  # the merged model's own: the same, unless it was aligned


def load_features(sources: Sources, reading: Reading, cache: FeatureCache) -> list[TaskFeatures]:
    """Compute all features, each once, or take them from the cache.

    Raises MomaErrors where samples do not fit the heads or features are not finite.
    """
    classifier = open_network(sources)
    found: list[tuple[TaskData, Tensor]] = []
    told: set[str] = set()
    for task, model in sources.model.tasks.items():
        sized = _sized(model, classifier)
        assert sized.description is not None
        samples, labels = load_labeled(
            sources.data[task],
            sized.description,
            task,
            reading,
            told=told,
            listener=sources.listener,
        )
        if not found:
            few = batches(samples, sources.device)(torch.arange(min(4, len(samples))))
            classifier.find_head(few)
        data = finetuned_task(sources, classifier, task, samples, cache)
        found.append((data, torch.tensor(labels)))
    classifier.load_encoder(reader(sources.first))
    merged = merged_features(classifier, [data for data, _ in found], sources.listener)
    return [
        _together(sources, classifier, data, labels, z_m)
        for (data, labels), z_m in zip(found, merged, strict=True)
    ]


def _together(
    sources: Sources,
    classifier: Classifier | SeparateHead,
    data: TaskData,
    labels: Tensor,
    merged: Tensor,
) -> TaskFeatures:
    found = TaskFeatures(
        data.task,
        merged,
        data.finetuned,
        labels.to(sources.device),
        data.head(data.finetuned[:1]).shape[1],
        _finetuned_head(sources, classifier, data),
        data.head,
    )
    _check(found)
    return found


def _sized(model: TaskModel, classifier: Classifier | SeparateHead) -> TaskModel:
    """The model with as many classes as its head has."""
    assert model.description is not None
    config = sized_config(model.description.config, model.entries, classifier.head_tensors)
    return replace(model, description=replace(model.description, config=config))


def _finetuned_head(
    sources: Sources, classifier: Classifier | SeparateHead, data: TaskData
) -> Head:
    """The head that a task was fine-tuned with; merging keeps it, an alignment turns it."""
    if sources.recipe.merged is None:
        return data.head
    expert = sources.experts[data.task]
    return classifier.head(lambda key: expert.checkpoint.read(expert.heads[key]), expert.heads)


def _check(features: TaskFeatures) -> None:
    for whose, values in (("merged", features.merged), ("fine-tuned", features.finetuned)):
        if not bool(torch.isfinite(values).all()):
            raise DivergenceError(
                f"the {whose} model's features of task {features.task} are not finite",
                hint="look for broken samples in its folder, or NaN in the checkpoints",
            )
    largest = int(features.labels.max())
    if largest >= features.classes:
        raise DataError(
            f"the labels of task {features.task} go up to {largest}, its head has "
            f"{features.classes} classes"
        )
    if not bool((torch.bincount(features.labels) > 1).any()):
        raise DataError(
            f"task {features.task} has no class of two samples or more",
            hint="some are needed to fit on, others to evaluate on",
        )
