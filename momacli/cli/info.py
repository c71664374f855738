"""`moma info`: what a checkpoint holds and where it comes from; what differs between two."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from momacli.checkpoint.differences import Difference
    from momacli.cli.console import Table
    from momacli.info import Comparison, Info, Module, ModuleDifference, Origin


EPILOG = "Example: moma info merged.safetensors"


def info(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A safetensors file or a model folder.")
    ],
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", help="Another one, to say what differs between them."),
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor, not only every module.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON instead of tables.")
    ] = False,
) -> None:
    """Show modules, types and sizes, and what an output was made of.

    With two checkpoints: the modules that differ, in how many tensors and values, and the tensor
    of each that moved most, by |second - first| / |first|. --tensors and --json list every tensor.
    """
    from momacli.cli.console import amount, plain, print_json, print_table
    from momacli.info import compare
    from momacli.info import info as describe

    if other is not None:
        from momacli.cli.listening import listening

        with listening() as listener:
            comparison = compare(checkpoint, other, listener=listener)
        if as_json:
            print_json(comparison)
        else:
            _show_comparison(comparison, tensors=tensors)
        return
    found = describe(checkpoint)
    if as_json:
        print_json(found)
        return
    print_table(_contents(found, tensors=tensors))
    print()
    if found.adapter:
        print(plain(found.adapter))
    if found.added:
        more = amount(found.added.parameters, "parameters")
        print(plain(f"and {more} of {found.added.method} in {found.added.path}"))
    for line in _tree(found.origin):
        print(plain(line))


def _contents(found: "Info", *, tensors: bool) -> "Table":
    from momacli.cli.console import Table, amount

    rows = []
    for module in found.modules:
        parameters, size = amount(module.parameters), amount(module.nbytes, "bytes")
        rows.append([module.name, _types(module), str(len(module.tensors)), parameters, size])
        if tensors:
            for one in module.tensors:
                kind = f"{one.dtype}{list(one.shape)}"
                rows.append([f"  {one.name}", kind, "", "", amount(one.nbytes, "bytes")])
    count = sum(len(module.tensors) for module in found.modules)
    whole = [str(count), amount(found.parameters), amount(found.nbytes, "bytes")]
    rows.append(["all", "", *whole])
    return Table(["module", "type", "tensors", "parameters", "size"], rows, left=2)


def _types(module: "Module") -> str:
    return " ".join(sorted({one.dtype for one in module.tensors}))


def _tree(origin: "Origin", indent: str = "", mark: str = "") -> Iterator[str]:
    """A line for each origin, its inputs indented below it."""
    from momacli.cli.console import settings

    words = [origin.name]
    if origin.command is not None:
        known = ("method", "lam", "density", "weights", "seed", "transform", "mask")
        given = {key: origin.parameters[key] for key in known if key in origin.parameters}
        words.append(f"made by moma {origin.command}" + (f" ({settings(given)})" if given else ""))
    digests = sorted(origin.files.values())
    if digests:
        more = f" and {len(digests) - 1} more" if len(digests) > 1 else ""
        words.append(f"SHA-256 {digests[0][:12]}…{more}")
    if not origin.found:
        words.append(f"no longer at {origin.path}")
    yield f"{indent}{mark}{', '.join(words)}"
    inner = indent + {"├─ ": "│  ", "└─ ": "   "}.get(mark, "")
    for number, item in enumerate(origin.inputs, start=1):
        yield from _tree(item, inner, "└─ " if number == len(origin.inputs) else "├─ ")


def _show_comparison(comparison: "Comparison", *, tensors: bool) -> None:
    from momacli.cli.console import Table, print_table

    if comparison.modules:
        rows = []
        for module in comparison.modules:
            rows.append(_row_of_module(module))
            if tensors:
                rows += [_row_of_tensor(one) for one in module.differences]
        header = ["module", "differs in", "most in", "tensors", "values", "relative norm"]
        print_table(Table(header, rows, left=3))
        print()
    print(f"{comparison.equal} tensors are the same, {len(comparison.differences)} differ")


def _row_of_module(module: "ModuleDifference") -> list[str]:
    from momacli.cli.console import amount

    largest = module.largest
    return [
        module.name,
        ", ".join(dict.fromkeys(one.kind for one in module.differences)),
        "" if largest is None else largest.name.removeprefix(f"{module.name}."),
        f"{len(module.differences)} of {module.tensors}",
        "" if module.changed is None else amount(module.changed),
        _relative(largest),
    ]


def _row_of_tensor(one: "Difference") -> list[str]:
    from momacli.cli.console import amount

    return [
        f"  {one.name}",
        one.kind,
        " / ".join(dict.fromkeys(filter(None, (one.first, one.second)))),
        "",
        "" if one.changed is None else amount(one.changed),
        _relative(one),
    ]


def _relative(one: "Difference | None") -> str:
    return "" if one is None or one.relative is None else f"{one.relative:.3g}"
