"""The paper's five text tasks, with experts fine-tuned from a small pre-trained encoder.

The data root has `text/NAME.train.jsonl.gz`, `text/NAME.test.jsonl.gz` (an object with "text"
and "label" a line) and `text/NAME.classes.json`. Experts are folders of sentence-transformers:
the encoder, the mean of its tokens, and a linear head in a file beside.
"""

import argparse
import gzip
import inspect
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.cells import Cells, digest_of_files
from tests.benchmarks.comparison import Plan, Suite

PACKS = {
    "ag_news": "ag_news",
    "yelp": "yelp5",
    "amazon": "amazon5",
    "yahoo": "yahoo10_small",
    "dbpedia": "dbpedia14",
}
"""The pack of each task. Of Yahoo's ten topics there are 755 training texts."""

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
_WARMUP = 0.1  # share of the steps
_HEAD_RATE = 10  # times the encoder's


@dataclass(frozen=True)
class Training:
    """How an expert is fine-tuned: AdamW, linear warm-up, cosine to zero."""

    texts: int
    steps: int
    batch_size: int
    rate: float
    max_length: int  # tokens of a text, in training and ever after
    seed: int

    def factor(self, step: int) -> float:
        """Share of `rate` at a step, counted from 0."""
        cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
        return min(1.0, (step + 1) / (_WARMUP * self.steps)) * cosine


@dataclass(frozen=True)
class Pack:
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
    """What the command line says of this suite."""
    parser.add_argument("--data-root", type=Path, required=True, help="folder with text/*.jsonl.gz")
    parser.add_argument("--model", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--train-texts", type=int, default=1000, help="labeled texts of each task")
    parser.add_argument("--unlabeled-texts", type=int, default=200, help="of each task, to align")
    parser.add_argument("--test-texts", type=int, default=300, help="of each task, to evaluate")
    parser.add_argument("--steps", type=int, default=120, help="of fine-tuning")
    parser.add_argument("--batch-size", type=int, default=16, help="of fine-tuning")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate of the encoder")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--align-steps", type=int, default=50)
    parser.add_argument("--align-batch-size", type=int, default=8, help="of each task")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """How the suite is run."""
    return Plan(arguments.align_steps, arguments.align_batch_size, arguments.seed)


def prepare(arguments: argparse.Namespace, cells: Cells) -> Suite:
    """Write the texts and fine-tune the experts, where that is not done yet."""
    training = Training(
        arguments.train_texts,
        arguments.steps,
        arguments.batch_size,
        arguments.rate,
        arguments.max_length,
        arguments.seed,
    )
    model: Path = arguments.model
    weights = digest_of_files(*(file for file in _files(model) if file.is_file()))

    def write_base(folder: Path) -> None:
        encoder_of(model).save_pretrained(folder / "base")
        _describe(folder / "base", model, training.max_length)

    base = cells.get("base", [weights, training.max_length], write_base)
    root, seed = arguments.data_root, training.seed
    experts = [_expert(cells, root, model, weights, task, training) for task in PACKS]
    packs = {task: read_pack(root, name, seed) for task, name in PACKS.items()}
    counts = {"unlabeled": arguments.unlabeled_texts, "test": arguments.test_texts}
    names = [cell.name for cell in experts]

    def write(folder: Path) -> None:
        for part in ("unlabeled", "labeled"):
            (folder / part).mkdir()
        for task, pack in packs.items():
            held_out = {text for text, _ in pack.test}
            texts = pack.unlabeled(training.texts, counts["unlabeled"])
            if shared := held_out.intersection(texts):
                raise ValueError(f"{task}: {len(shared)} texts are on both sides of the pack")
            _write_lines(folder / "unlabeled" / f"{task}.jsonl", [{"text": text} for text in texts])
            test = [{"text": text, "label": label} for text, label in pack.test[: counts["test"]]]
            _write_lines(folder / "labeled" / f"{task}.jsonl", test)

    texts = cells.get("texts", [names, counts], write)
    return Suite(
        "text5",
        base / "base",
        {task: cell / task for task, cell in zip(PACKS, experts, strict=True)},
        texts / "unlabeled",
        texts / "labeled",
        {"training": asdict(training), "packs": PACKS, "encoder": weights, **counts},
    )


def read_pack(root: Path, name: str, seed: int) -> Pack:
    """A pack in the order that the seed draws."""
    import numpy as np

    def rows(side: str) -> list[tuple[str, int]]:
        path = root / "text" / f"{name}.{side}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        order = np.random.default_rng(seed).permutation(len(records))
        return [(records[n]["text"], int(records[n]["label"])) for n in order]

    classes = json.loads((root / "text" / f"{name}.classes.json").read_text(encoding="utf-8"))
    return Pack(rows("train"), rows("test"), [str(name) for name in classes])


def _expert(
    cells: Cells, data_root: Path, model: Path, weights: str, task: str, training: Training
) -> Path:
    """The cell of an expert; the model is its folder of the task's name.

    weights: hash of the encoder.
    """
    name = PACKS[task]
    sources = [data_root / "text" / f"{name}.{end}" for end in _ENDS]

    def make(folder: Path) -> None:
        pack = read_pack(data_root, name, training.seed)
        fine_tune(model, pack, training, folder / task)

    depends_on = [task, weights, digest_of_files(*sources), asdict(training)]
    return cells.get("expert", [*depends_on, inspect.getsource(fine_tune)], make)


_ENDS = ("train.jsonl.gz", "test.jsonl.gz", "classes.json")


def fine_tune(model: Path, pack: Pack, training: Training, output: Path) -> None:
    """Fine-tune an encoder with a new head on a pack, and write both. The same seed, the same bits.

    The features are the mean of the encoder's output over all tokens but padding.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(training.seed)
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
    encoder = encoder_of(model).train()
    head = torch.nn.Linear(encoder.config.hidden_size, len(pack.classes))
    groups = [
        {"params": encoder.parameters(), "scale": 1.0},
        {"params": head.parameters(), "scale": float(_HEAD_RATE)},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.01)
    rows = pack.train[: training.texts]
    generator = torch.Generator().manual_seed(training.seed)
    order: list[int] = []
    for step in range(training.steps):
        if len(order) < training.batch_size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        picked = [rows[order.pop(0)] for _ in range(min(training.batch_size, len(order)))]
        inputs = tokenizer(
            [text for text, _ in picked],
            padding=True,
            truncation=True,
            max_length=training.max_length,
            return_tensors="pt",
        )
        hidden = encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        logits = head((hidden * mask).sum(dim=1) / mask.sum(dim=1))
        labels = torch.tensor([label for _, label in picked])
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = training.rate * group["scale"] * training.factor(step)
        optimizer.step()
    encoder.save_pretrained(output)
    metadata = {"classes": json.dumps(list(pack.classes))}
    values = {key: value.detach().contiguous() for key, value in head.state_dict().items()}
    save_file(values, output / f"head_{output.name}.safetensors", metadata=metadata)
    _describe(output, model, training.max_length)


def encoder_of(model: Path) -> Any:
    """The encoder in a folder, in float32 whatever it is stored in."""
    import torch
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


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(lines, encoding="utf-8")
