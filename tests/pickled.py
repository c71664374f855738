"""Pickles to be converted: of classes that are gone, in every form that was ever written."""

import io
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn


@contextmanager
def module_for_now(name: str, **content: object) -> Iterator[types.ModuleType]:
    """A module that can be imported until the block ends; classes in it get its name."""
    module = types.ModuleType(name)
    for key, value in content.items():
        setattr(module, key, value)
        if isinstance(value, type):
            value.__module__ = name
            value.__qualname__ = key
    before = dict(sys.modules)
    for count in range(1, name.count(".") + 1):
        parent = name.rsplit(".", count)[0]
        sys.modules.setdefault(parent, types.ModuleType(parent))
    sys.modules[name] = module
    try:
        yield module
    finally:
        for key in [key for key in sys.modules if key.split(".")[0] == name.split(".")[0]]:
            del sys.modules[key]
            if key in before:
                sys.modules[key] = before[key]


def as_zip(value: object) -> bytes:
    """As torch.save writes it since 1.6."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def as_row(value: object) -> bytes:
    """As torch.save wrote it before 1.6."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def as_plain(value: object, protocol: int = 4) -> bytes:
    """As pickle.dump writes it."""
    return pickle.dumps(value, protocol=protocol)


FORMS: dict[str, Callable[[object], bytes]] = {
    "zip": as_zip,
    "row": as_row,
    "plain": as_plain,
    "plain, protocol 2": lambda value: as_plain(value, 2),
    "plain, protocol 5": lambda value: as_plain(value, 5),
}


class Canary:
    """Leaves a file behind when its pickle is loaded the usual way."""

    def __init__(self, file: Path):
        self._file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return (os.system, (f"touch {self._file}",))


class ClassificationHead(nn.Linear):
    """Like the heads of task_vectors."""

    def __init__(self, normalize: bool, weights: torch.Tensor):
        super().__init__(weights.shape[1], weights.shape[0])
        self.normalize = normalize
        with torch.no_grad():
            self.weight.copy_(weights)
            self.bias.zero_()


def pickled_head(weights: torch.Tensor, *, normalize: bool = True, form: str = "plain") -> bytes:
    """A head whose class cannot be imported."""
    with module_for_now("src.modeling", ClassificationHead=ClassificationHead):
        return FORMS[form](ClassificationHead(normalize, weights))
