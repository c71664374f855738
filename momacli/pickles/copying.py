"""Tensors of a pickle into an open safetensors file, storage by storage in the file's order."""

import zlib
from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from momacli.checkpoint.arrays import Array, array_dtype
from momacli.checkpoint.header import DTYPE_BITS
from momacli.checkpoint.writer import CheckpointWriter
from momacli.pickles.values import Storage, TensorView
from momacli.pickles.window import InMemory, MalformedError, Window

_BLOCK = 1 << 24  # a multiple of every element's size


def copy_tensors(tensors: Mapping[str, TensorView], writer: CheckpointWriter) -> Iterator[int]:
    """Write all tensors, each storage read once; yields the bytes of each block that was read.

    A contiguous tensor is copied block by block, of any other the storage is held in memory.
    Raises MalformedError where a checksum differs.
    """
    groups: dict[int, list[tuple[str, TensorView]]] = {}
    storages: dict[int, Storage] = {}
    for name, view in tensors.items():
        groups.setdefault(id(view.storage), []).append((name, view))
        storages[id(view.storage)] = view.storage
    for key in sorted(groups, key=lambda key: _order(storages[key])):
        yield from _copy(storages[key], groups[key], writer)


def _order(storage: Storage) -> tuple[bool, int]:
    window = _placed(storage)
    return isinstance(window.file, InMemory), window.start


def _placed(storage: Storage) -> Window:
    if storage.window is None:
        raise MalformedError("a storage of it is nowhere")
    return storage.window


def _copy(
    storage: Storage, views: list[tuple[str, TensorView]], writer: CheckpointWriter
) -> Iterator[int]:
    window = _placed(storage)
    views = [(name, view) for name, view in views if prod(view.shape)]
    held = any(not is_contiguous(view) for _, view in views)
    whole = np.empty(storage.nbytes if held else 0, dtype=np.uint8)
    crc = 0
    for start in range(0, storage.nbytes, _BLOCK):
        block = np.empty(min(_BLOCK, storage.nbytes - start), dtype=np.uint8)
        window.read_into(block.data, start)
        crc = zlib.crc32(block.data, crc) if storage.crc is not None else 0
        if held:
            whole[start : start + len(block)] = block
        for name, view in views:
            if is_contiguous(view):
                _append(writer, name, view, block, start)
        yield len(block)
    if storage.crc is not None and crc != storage.crc:
        names = ", ".join(name for name, _ in views)
        raise MalformedError(f"the data of {names} do not have the checksum they were stored with")
    for name, view in views:
        if not is_contiguous(view):
            writer.append(name, _strided(whole, view))


def is_contiguous(view: TensorView) -> bool:
    """Whether the elements lie one after another in row-major order."""
    expected = 1
    for size, step in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def _append(
    writer: CheckpointWriter, name: str, view: TensorView, block: Array, start: int
) -> None:
    """Append what a block, which begins at byte `start` of the storage, has of a tensor."""
    width = DTYPE_BITS[view.dtype] // 8
    first = max(0, view.offset * width - start)
    last = min(len(block), (view.offset + prod(view.shape)) * width - start)
    if first < last:
        writer.append(name, block[first:last].view(array_dtype(view.dtype, name)))


def _strided(whole: Array, view: TensorView) -> Array:
    """The elements of a view in row-major order, of a storage that is held."""
    dtype = array_dtype(view.dtype, "a tensor")
    elements = whole[: len(whole) // dtype.itemsize * dtype.itemsize].view(dtype)[view.offset :]
    steps = [step * dtype.itemsize for step in view.stride]
    strided: Array = np.lib.stride_tricks.as_strided(elements, view.shape, steps)
    return np.ascontiguousarray(strided)
