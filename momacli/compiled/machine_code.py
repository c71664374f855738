"""Machine code for this very processor, of LLVM's language; kept from one run to the next."""

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding

from momacli.checkpoint.digests import cache_folder

_DIGEST = 32
"""Bytes of the SHA-256 of machine code, before it."""

_LIBRARY = ("llvm.", "memset", "memcpy", "memmove")
"""How the names begin of functions that are there for any code."""


def machine_code(name: str, write: Callable[[], object], source: str) -> Callable[..., None]:
    """The function of a name that takes addresses and numbers of 64 bits and returns nothing.

    write, source: as for `linked`, which also says what is raised.
    """
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)  # calls release the GIL
    typed: Callable[..., None] = kind(linked(name, write, source))
    return typed


def linked(name: str, write: Callable[[], object], source: str) -> int:
    """The address of the function of a name, which is there until the process ends.

    write: makes what holds it, a module or its text. source: the file that it is written by:
        what was compiled before that or a file beside it was changed is compiled again.

    Raises RuntimeError where LLVM cannot compile it for this processor, or it calls what is
    not in it.
    """
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    processor, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=processor, features=features, opt=3, jit=True)
    sources = [file.read_bytes() for file in sorted(Path(source).parent.glob("*.py"))]
    known = (llvmlite.__version__, target.triple, processor, features, sources)
    key = hashlib.sha256(repr(known).encode()).hexdigest()
    place = _place(f"{name}-{key[:16]}")
    code = None if place is None else _found(place)
    if code is None:
        module = binding.parse_assembly(str(write()))
        module.verify()
        _refuse_strangers(module)
        code = machine.emit_object(module)
        if place is not None:
            _keep(place, code)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    found: int = engine.get_function_address(name)
    return found


_ENGINES: list[Any] = []
"""Whose memory the code is in."""


def _refuse_strangers(module: Any) -> None:
    """Refuse calls of functions that are not there: the linker would end the process."""
    strangers = [
        item.name
        for item in module.functions
        if item.is_declaration and not item.name.startswith(_LIBRARY)
    ]
    if strangers:
        raise RuntimeError(f"the code calls {', '.join(strangers)}")


def _place(name: str) -> Path | None:
    try:
        return cache_folder() / "compiled" / name
    except RuntimeError:  # a user without a home
        return None


def _found(place: Path) -> bytes | None:
    """The machine code kept, if it is whole: the linker does not expect that it might not be."""
    try:
        kept = place.read_bytes()
    except OSError:
        return None
    digest, code = kept[:_DIGEST], kept[_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(place: Path, code: bytes) -> None:
    """Keep machine code; to fail to is no harm, it is only compiled again."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        staged = place.with_name(f"{place.name}.{os.getpid()}")
        staged.write_bytes(hashlib.sha256(code).digest() + code)
        staged.replace(place)
