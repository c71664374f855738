"""Accuracy of a model on labeled folders, task by task."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from momacli.checkpoint.feature_rule import rule_of
from momacli.checkpoint.multitask import MultiTask, TaskModel
from momacli.checkpoint.plan import check_patterns
from momacli.checkpoint.reader import matches
from momacli.data.reading import Reading
from momacli.errors import DataError, ModelError
from momacli.models.device import check_precision, choose_device
from momacli.progress import Listener, Notice, Progress, ignore
from momacli.statistics.score import Score

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from momacli.alignment.adapted import Answers
    from momacli.data.folders import Data
    from momacli.data.loading import Samples
    from momacli.features.adapter import Adapter
    from momacli.models.classification import Classifier
    from momacli.models.separate_head import SeparateHead

_BATCH = 64
_FEW = 4  # samples with which a head is found


@dataclass
class Labeled:
    """Samples of a task, prepared, and what the last encoder made of them."""

    samples: "Samples"
    labels: "Tensor"
    encoder: str = ""  # hash of its weights, config and precision
    features: "Tensor | None" = None  # [N, d]


Prepared = dict[tuple[str, str], Labeled]
"""Samples by their place and how they are prepared."""


@dataclass(frozen=True)
class EvalReport:
    """Scores by model and task."""

    scores: Mapping[str, Mapping[str, Score]]
    added: Mapping[str, int] = field(default_factory=dict)  # parameters of adapters, by model

    def average(self, model: str) -> float:
        """Return the macro average: the mean of a model's accuracies, all tasks alike."""
        scores = self.scores[model].values()
        return sum(score.accuracy for score in scores) / len(scores)


def evaluate(
    models: Sequence[str | Path],
    *,
    data: "Data",
    reading: Reading | None = None,
    config: str | Path | None = None,
    pooling: str | None = None,
    features: str | None = None,
    heads: Sequence[str] = (),
    adapter: bool = True,
    device: str = "auto",
    precision: str = "float32",
    prepared: Prepared | None = None,
    listener: Listener = ignore,
) -> EvalReport:
    """Count correct answers of each model's tasks on labeled samples.

    data: a folder with images as <task>/<class>/* or texts as <task>.jsonl, .csv, ...;
        "TASK=PATH"; or several.

    models: files or folders of one task or several (a folder of experts, merged/, aligned/).
    The classes of a head are those of its own id2label; a class folder, and a label in a file,
    is a class's name or number.

    pooling, features: as `align` has them; what a model was aligned with need not be said.
    heads: tensors or module of the heads, where neither the architecture nor a merge tells.
    adapter: whether models that `align` put an adapter behind are run with it.
    precision: of the encoder's arithmetic: float32, in which others find the same answers,
        bfloat16, or auto, which is what `align` takes (see `models.precision`): in half the time
        on a processor with AMX (64 texts of 64 tokens through MiniLM: 0.65 against 1.29 s).
    prepared: what calls before this one made of the same samples, read in the same way; what is
        new is added. Without it, samples are prepared once a call. Of models in a row that differ
        in what is behind the encoder alone, as adapters and rotations of heads do, the encoder is
        run once.

    Raises MomaErrors where a model cannot be read or a folder does not match its labels.
    """
    from momacli.alignment.adapted import adapters_beside

    check_precision(precision)
    run = _Run(
        data=data,
        device=choose_device(device),
        precision=precision,
        reading=reading or Reading(),
        heads=heads,
        listener=listener,
        prepared={} if prepared is None else prepared,
        shares=prepared is not None or len(models) > 1,
    )
    scores: dict[str, dict[str, Score]] = {}
    added: dict[str, int] = {}
    for path in models:
        with MultiTask.open(Path(path), config=Path(config) if config else None) as model:
            _check_described(model)
            found = adapters_beside(model) if adapter else None
            if found is not None:
                added[str(path)] = found.parameters
                listener(Notice(f"{path}: with the adapters in {found.path}"))
            tasks = {} if found is None else found.tasks
            scores[str(path)] = _evaluate(model.with_features(pooling, features), tasks, run)
    return EvalReport(scores, added)


@dataclass(frozen=True)
class _Run:
    """What all models have in common, and what was prepared for those before."""

    data: "Data"
    device: "torch.device"
    precision: str  # as asked
    reading: Reading
    heads: Sequence[str]
    listener: Listener
    prepared: Prepared
    shares: bool  # whether encoders may be those of models before or after
    told: set[str] = field(default_factory=set)


def _evaluate(model: MultiTask, adapters: "Mapping[str, Adapter]", run: _Run) -> dict[str, Score]:
    from momacli.alignment.adapted import Answers
    from momacli.data.folders import task_sources
    from momacli.models.precision import choose_precision

    recorded = model.recipe.heads if model.recipe else ()
    if not recorded:
        check_patterns("--heads", run.heads, model.checkpoints)
    sources = task_sources(run.data, list(model.tasks))
    scores = {}
    for done, (task, one) in enumerate(model.tasks.items()):
        own = recorded or [name for name in one.entries if matches(name, run.heads)]
        network, one = _opened(one, own, run.device)
        key = (str(sources[task]), _preparation(one))
        if key not in run.prepared:
            run.prepared[key] = _labeled(one, sources[task], run)
        run.listener(Progress(f"evaluating {model.path}", done, len(model.tasks), "tasks"))
        precision = choose_precision(run.precision, run.device, _parameters(network))
        encoder = _encoder(network, one, precision) if run.shares else ""
        answer = Answers(network, one, adapters.get(task), precision)
        scores[task] = _score(answer, run.device, task, run.prepared[key], encoder)
    run.listener(Progress(f"evaluating {model.path}", len(model.tasks), len(model.tasks), "tasks"))
    return scores


def _encoder(network: "Classifier | SeparateHead", model: TaskModel, precision: str) -> str:
    """A hash of what determines the features of given samples."""
    import torch

    assert model.description is not None
    content = [precision, model.description.config, sorted(network.head_tensors)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    for name, tensor in sorted([*network.parameters.items(), *network.buffers.items()]):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parameters(network: "Classifier | SeparateHead") -> int:
    """How many an encoder has."""
    return sum(parameter.numel() for parameter in network.parameters.values())


def _check_described(model: MultiTask) -> None:
    if any(one.description is None for one in model.tasks.values()):
        raise ModelError(
            f"{model.path} does not say what kind of model it is",
            hint="give its config.json with --config",
        )


def _preparation(model: TaskModel) -> str:
    """What determines a task's prepared inputs and labels: its kind, files and classes."""
    from momacli.models.layout import architecture, class_names

    assert model.description is not None
    config = model.description.config
    files = (file.read_bytes().hex() for file in model.description.companions)
    own = [str(config.get(key)) for key in ("model_cfg", "preprocess_cfg")]  # of open_clip
    kind = (architecture(config), str(config.get("max_position_embeddings")), str(rule_of(config)))
    return "|".join([*kind, *own, *files, *class_names(config)])


def _labeled(model: TaskModel, source: Path, run: _Run) -> Labeled:
    import torch

    from momacli.data.loading import load_labeled

    assert model.description is not None
    samples, labels = load_labeled(
        source, model.description, model.task, run.reading, told=run.told, listener=run.listener
    )
    return Labeled(samples, torch.tensor(labels))


def _opened(
    model: TaskModel, heads: Sequence[str], device: "torch.device"
) -> "tuple[Classifier | SeparateHead, TaskModel]":
    """The network with a task's weights, and the model with as many classes as its head has."""
    from momacli.models.families import open_classifier
    from momacli.models.layout import sized_config

    assert model.description is not None
    config = model.description.config
    classifier = open_classifier(config, model.entries, heads=heads or None, device=device)
    classifier.load(
        lambda key: model.checkpoint.read(model.keys[key]),
        model.keys,
        source=str(model.checkpoint.path),
    )
    sized = sized_config(config, model.entries, classifier.head_tensors)
    return classifier, replace(model, description=replace(model.description, config=sized))


def _score(
    answer: "Answers", device: "torch.device", task: str, labeled: Labeled, encoder: str
) -> Score:
    """Count correct answers.

    encoder: as `_encoder` has it, "" for one whose features are not kept.
    """
    import torch

    correct, made = 0, []
    known = _known(answer, device, labeled, encoder)
    with torch.no_grad():
        for indices in torch.arange(len(labeled.samples)).split(_BATCH):
            wanted = labeled.labels[indices]
            if known is None:
                inputs = labeled.samples.batch(indices)
                logits, features = answer({key: value.to(device) for key, value in inputs.items()})
                made.append(features)
            else:
                logits = answer.of_features(known[indices].to(device))
            if int(wanted.max()) >= logits.shape[1]:
                raise DataError(
                    f"the labels of task {task} go up to {int(wanted.max())}, "
                    f"its head has {logits.shape[1]} classes"
                )
            correct += int((logits.argmax(dim=1).cpu() == wanted).sum())
    found = [one.cpu() for one in made if one is not None]
    if encoder and not answer.in_depth and found and len(found) == len(made):
        labeled.encoder, labeled.features = encoder, torch.cat(found)
    return Score(correct, len(labeled.labels))


def _known(
    answer: "Answers", device: "torch.device", labeled: Labeled, encoder: str
) -> "Tensor | None":
    """The features of all samples [N, d] if this encoder made the last that are kept."""
    import torch

    if not encoder or answer.in_depth or encoder != labeled.encoder:
        return None
    few = labeled.samples.batch(torch.arange(min(_FEW, len(labeled.samples))))
    try:
        answer.find_head({key: value.to(device) for key, value in few.items()})
    except ModelError:  # a head that takes more than the features
        return None
    return labeled.features
