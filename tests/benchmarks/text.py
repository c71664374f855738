"""Suites of text tasks: experts fine-tuned from a small pre-trained encoder, such as MiniLM.

The data root has `text/NAME.train.jsonl.gz`, `text/NAME.test.jsonl.gz` (an object with "text"
and "label" a line) and `text/NAME.classes.json`. Experts are folders of sentence-transformers:
the encoder, the mean of its tokens, and a linear head in a file beside.

Merges adapt to texts of the training side; where there are enough, to such as no expert was
fine-tuned on. Of the test side the first are evaluated, the next are the validation split.
"""

import argparse
import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from momacli.data.order import in_rounds
from momacli.demonstration.training import Schedule
from tests.benchmarks.cells import Cells, Lazily, code_of, digest_of_files
from tests.benchmarks.comparison import Suite, evaluated
from tests.benchmarks.training import ARITHMETIC, DEVICE, computing, fine_tune, moved

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
_ENDS = ("train.jsonl.gz", "test.jsonl.gz", "classes.json")


@dataclass(frozen=True)
class TextTraining:
    """How experts are fine-tuned."""

    schedule: Schedule
    texts: int  # labeled ones of each task
    max_length: int  # tokens of a text, in training and ever after
    seed: int


@dataclass(frozen=True)
class TextPack:
    """One data set, in an order drawn by the seed."""

    train: Sequence[tuple[str, int]]
    test: Sequence[tuple[str, int]]
    classes: Sequence[str]

    def unlabeled(self, fine_tuned_on: int, count: int) -> list[str]:
        """Texts of the training side to align on: such as were not trained on, where there are."""
        fresh = [text for text, _ in self.train[fine_tuned_on:]]
        known = [text for text, _ in self.train[:fine_tuned_on]]
        return (fresh + known)[:count]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line says of these suites."""
    parser.add_argument("--data-root", type=Path, required=True, help="folder with text/*.jsonl.gz")
    parser.add_argument("--model", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--train-texts", type=int, default=1000, help="labeled texts of each task")
    parser.add_argument("--unlabeled", type=int, default=1000, help="texts of each task, to align")
    parser.add_argument("--test", type=int, default=300, help="texts of each task, to evaluate")
    parser.add_argument("--validation", type=int, default=60, help="texts of each task, to choose")
    parser.add_argument("--steps", type=int, default=120, help="of fine-tuning")
    parser.add_argument("--batch-size", type=int, default=16, help="of fine-tuning")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate of the encoder")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--align-steps", type=int, default=50)
    parser.add_argument("--align-batch-size", type=int, default=8, help="of each task")


def prepare(
    name: str, tasks: Mapping[str, str], arguments: argparse.Namespace, seed: int, cells: Cells
) -> Suite:
    """Write the texts, where that is not done yet; experts are fine-tuned when they are asked for.

    tasks: the pack of each.
    """
    schedule = Schedule(arguments.steps, arguments.batch_size, arguments.rate)
    training = TextTraining(schedule, arguments.train_texts, arguments.max_length, seed)
    model: Path = arguments.model
    weights = digest_of_files(*(file for file in _files(model) if file.is_file()))
    packs = {task: read_pack(arguments.data_root, pack, seed) for task, pack in tasks.items()}

    def write_base(folder: Path) -> None:
        encoder_of(model).save_pretrained(folder / "base")
        _describe(folder / "base", model, training.max_length)

    def digest_of_packs(*wanted: str) -> str:
        root = arguments.data_root / "text"
        return digest_of_files(*(root / f"{tasks[t]}.{end}" for t in wanted for end in _ENDS))

    def trained(kind: str, *wanted: str) -> Path:
        """The cell with the models of these tasks, that were trained together."""
        code = code_of(read_pack, train_together, fine_tune)
        return cells.get(
            kind,
            [wanted, digest_of_packs(*wanted), weights, asdict(training), ARITHMETIC, code],
            lambda folder: train_together(
                model, {task: packs[task] for task in wanted}, training, folder
            ),
        )

    base = cells.get("base", [weights, training.max_length], write_base)
    counts = {
        "unlabeled": arguments.unlabeled,
        "test": arguments.test,
        "validation": arguments.validation,
    }
    reading = code_of(read_pack, TextPack, _write_texts, evaluated)
    texts = cells.get(
        "texts",
        [list(tasks), digest_of_packs(*tasks), seed, training.texts, counts, reading],
        lambda folder: _write_texts(folder, packs, training.texts, counts),
    )
    return Suite(
        name,
        base / "base",
        Lazily(tuple(tasks), lambda task: trained("expert", task) / task),
        texts,
        {
            "training": asdict(training),
            "arithmetic": ARITHMETIC,
            "packs": dict(tasks),
            "encoder": weights,
            **counts,
        },
        lambda: trained("together", *tasks),
    )


def read_pack(root: Path, name: str, seed: int) -> TextPack:
    """A pack in the order that the seed draws."""

    def rows(side: str) -> list[tuple[str, int]]:
        path = root / "text" / f"{name}.{side}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        order = np.random.default_rng(seed).permutation(len(records))
        return [(records[n]["text"], int(records[n]["label"])) for n in order]

    classes = json.loads((root / "text" / f"{name}.classes.json").read_text(encoding="utf-8"))
    return TextPack(rows("train"), rows("test"), [str(name) for name in classes])


def train_together(
    model: Path, packs: Mapping[str, TextPack], training: TextTraining, output: Path
) -> None:
    """Fine-tune one encoder with a new head for each task; writes a model of each, by name.

    The features are the mean of the encoder's output over all tokens but padding. Every step
    takes a batch of each task, and all tasks count alike. The same seed, the same bits.
    """
    import transformers

    torch.manual_seed(training.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
    encoder = encoder_of(model).train()
    heads = nn.ModuleDict(
        {
            task: nn.Linear(encoder.config.hidden_size, len(pack.classes))
            for task, pack in packs.items()
        }
    )
    generator = torch.Generator().manual_seed(training.seed)
    rows = {task: pack.train[: training.texts] for task, pack in packs.items()}
    size = training.schedule.batch_size
    batches = {task: in_rounds(len(part), size, generator) for task, part in rows.items()}

    def loss() -> Tensor:
        losses = []
        for task, head in heads.items():
            picked = [rows[task][number] for number in next(batches[task]).tolist()]
            inputs = tokenizer(
                [text for text, _ in picked],
                padding=True,
                truncation=True,
                max_length=training.max_length,
                return_tensors="pt",
            ).to(DEVICE)
            [labels] = moved(torch.tensor([label for _, label in picked]))
            with computing():
                hidden = encoder(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].to(hidden.dtype)
            logits = head((hidden * mask).sum(dim=1) / mask.sum(dim=1))
            losses.append(cross_entropy(logits, labels))
        return torch.stack(losses).sum()

    fine_tune(encoder, heads, training.schedule, loss)
    for task, head in heads.items():
        _save(output / task, encoder, head, packs[task].classes)
        _describe(output / task, model, training.max_length)


def _save(folder: Path, encoder: Any, head: nn.Module, classes: Sequence[str]) -> None:
    from safetensors.torch import save_file

    encoder.save_pretrained(folder)
    metadata = {"classes": json.dumps(list(classes))}
    values = {key: value.detach().contiguous() for key, value in head.state_dict().items()}
    save_file(values, folder / f"head_{folder.name}.safetensors", metadata=metadata)


def _write_texts(
    folder: Path, packs: Mapping[str, TextPack], trained_on: int, counts: Mapping[str, int]
) -> None:
    """Write `unlabeled/`, `labeled/` and `validation/`, and `held-out/`: labeled without labels."""
    for part in ("unlabeled", "labeled", "validation", "held-out"):
        (folder / part).mkdir()
    for task, pack in packs.items():
        texts = pack.unlabeled(trained_on, counts["unlabeled"])
        if shared := {text for text, _ in pack.test}.intersection(texts):
            raise ValueError(f"{task}: {len(shared)} texts are on both sides of the pack")
        cut = evaluated(len(pack.test), counts)
        test = pack.test[:cut]
        chosen_by = pack.test[cut:][: counts["validation"]]
        for part, records in (
            ("unlabeled", [{"text": text} for text in texts]),
            ("labeled", [{"text": text, "label": label} for text, label in test]),
            ("validation", [{"text": text, "label": label} for text, label in chosen_by]),
            ("held-out", [{"text": text} for text, _ in test]),
        ):
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (folder / part / f"{task}.jsonl").write_text(lines, encoding="utf-8")


def encoder_of(model: Path) -> Any:
    """The encoder in a folder, in float32 whatever it is stored in."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModel.from_pretrained(model, local_files_only=True, dtype=torch.float32)


def _describe(folder: Path, model: Path, max_length: int) -> None:
    """What makes a folder one of sentence-transformers, and the tokenizer."""
    for name in _TOKENIZER:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    steps = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(steps)
    ]
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", {"max_seq_length": max_length}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _files(model: Path) -> list[Path]:
    return [model / name for name in ("model.safetensors", "config.json", *_TOKENIZER)]
