"""`moma methods`: ways to merge and to align, their options and where they come from."""

import difflib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from momacli.methods._cards import Card


def methods(
    method: Annotated[
        str | None, typer.Argument(metavar="[METHOD]", help="Explain this one.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the methods of merge and of align, or explain one."""
    from momacli.alignment import catalog as aligning
    from momacli.cli.console import print_json
    from momacli.merging.catalog import all_cards

    if method is not None:
        card = _found(method)
        if as_json:
            print_json(card)
        else:
            print("\n".join(explanation(card)))
        return
    merging, to_align = all_cards(), aligning.method_cards()
    if as_json:
        print_json([*merging, *to_align])
        return
    _show("method", merging)
    print()
    _show("align --method", to_align)


def _found(method: str) -> "Card":
    """The card of a method of either command; of an unknown one, the nearest is named."""
    from momacli.alignment import catalog as aligning
    from momacli.merging import catalog as merging

    spoken = method.replace("_", "-")
    near = difflib.get_close_matches(spoken, aligning.method_names(), n=1)
    if near and spoken not in merging.method_names():
        return aligning.method_card(method)
    return merging.find_card(method)


def _show(title: str, cards: "Sequence[Card]") -> None:
    from momacli.cli.console import Table, print_table

    rows = [[card.name, _defaults(card), card.title] for card in cards]
    print_table(Table([title, "options and their defaults", "source"], rows, left=3))


def explanation(card: "Card") -> list[str]:
    """One method in full."""
    from momacli.alignment import catalog as aligning
    from momacli.methods import _catalog as merging

    option_flag = aligning.option_flag if card.command == "align" else merging.option_flag
    lines = [f"{card.name}: {card.title}", "", card.text, "", card.returns]
    for option in card.options:
        default = f"default {_word(option.default)}" if option.default else "must be given"
        lines += ["", f"{_usage(option_flag(option.name), option.type)}   ({default})"]
        lines += textwrap.wrap(option.text, 96, initial_indent="    ", subsequent_indent="    ")
    engine = []
    if card.sees_samples:
        engine.append("--data FOLDER   unlabeled samples of every task; must be given")
    if card.takes_weights:
        engine.append("--weights W,W,...   a factor per expert")
    if card.has_scope:
        engine.append("--scope global|tensor   thresholds of the whole model (default) or of each")
    if card.is_random:
        engine.append("--seed N   of its random numbers (default 0)")
    if card.is_ordered:
        engine.append("the order of the experts matters")
    return [*lines, "", *engine] if engine else lines


def _usage(flag: str, kind: str) -> str:
    if flag == "--task":
        return "--task NAME"
    words = kind.removeprefix("Literal[").removesuffix("]").replace("'", "")
    shape = words.replace(", ", "|") if kind.startswith("Literal") else kind.upper()
    return f"{flag}={shape}" if flag.startswith("--set") else f"{flag} {shape}"


def _defaults(card: "Card") -> str:
    """Such as "lambda=0.3 density=0.2"."""
    return " ".join(
        f"{'lambda' if option.name == 'lam' else option.name.replace('_', '-')}"
        f"={_word(option.default) or '?'}"
        for option in card.options
    )


def _word(default: str) -> str:
    """A default as it is typed on the command line."""
    return default.strip("'\"").replace("True", "true").replace("False", "false")
