import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
from llvmlite import ir

from momacli.compiled import machine_code as made
from momacli.compiled.machine_code import machine_code

WORD = ir.IntType(64)


def module(value: int) -> ir.Module:
    """A function that puts a value at the address given first, plus the number given second."""
    found = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [WORD, WORD])
    function = ir.Function(found, kind, "put")
    builder = ir.IRBuilder(function.append_basic_block())
    place, number = function.args
    builder.store(builder.add(number, WORD(value)), builder.inttoptr(place, WORD.as_pointer()))
    builder.ret_void()
    return found


def result(function: Callable[..., None]) -> int:
    word = ctypes.c_int64()
    function(ctypes.addressof(word), 1)
    return word.value


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.py"
    path.write_text("1")
    return path


def put(source: Path, value: int) -> int:
    return result(machine_code("put", lambda: module(value), str(source)))


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "moma" / "compiled").iterdir())


def test_a_function_is_compiled_once_until_its_source_changes(source: Path):
    found = [put(source, 41), put(source, 99)]
    source.write_text("2")
    found.append(put(source, 99))

    assert found == [42, 42, 100]


def test_a_function_is_compiled_again_when_a_module_beside_its_source_changes(source: Path):
    found = [put(source, 41)]
    source.with_name("called.py").write_text("1")

    assert [*found, put(source, 99), put(source, 0)] == [42, 100, 100]


def test_code_kept_for_another_processor_is_not_taken(source, monkeypatch):
    put(source, 41)
    monkeypatch.setattr(made.binding, "get_host_cpu_name", lambda: "generic")

    assert put(source, 99) == 100


@pytest.mark.parametrize(
    "damage", [lambda kept: kept[:-1], lambda kept: b"", lambda kept: kept[::-1]]
)
def test_damaged_code_is_never_run(damage, source, tmp_path):
    put(source, 41)
    (place,) = kept(tmp_path)
    place.write_bytes(damage(place.read_bytes()))

    assert put(source, 99) == 100
    assert put(source, 0) == 100  # and it is kept again


def test_code_that_calls_what_is_not_there_is_refused_before_it_ends_the_process(source, tmp_path):
    calling = module(41)
    nowhere = ir.Function(calling, ir.FunctionType(ir.VoidType(), []), "nowhere")
    (block,) = calling.globals["put"].blocks
    builder = ir.IRBuilder(block)
    builder.position_before(block.terminator)
    builder.call(nowhere, [])

    with pytest.raises(RuntimeError, match="nowhere"):
        machine_code("put", lambda: calling, str(source))

    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_kept_is_compiled_each_time(source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    assert [put(source, 41), put(source, 99)] == [42, 100]


def test_a_user_without_a_home_has_it_compiled_each_time(source, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(made, "cache_folder", homeless)

    assert [put(source, 41), put(source, 99)] == [42, 100]
