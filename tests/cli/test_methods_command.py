import json

import pytest

from momacli.alignment import catalog
from momacli.cli.main import run
from momacli.merging.catalog import all_cards, find_card, find_method, method_names


def test_all_methods_are_listed_with_their_defaults_and_sources(capsys):
    assert run(["methods"]) == 0

    merging, aligning = capsys.readouterr().out.split("\n\n")
    header, *lines = merging.splitlines()
    assert header.split("  ")[0] == "method"
    assert [line.split()[0] for line in lines] == method_names()
    (ties,) = (line for line in lines if line.startswith("ties "))
    assert "density=0.2 lambda=1.0 aggregate=mean" in ties
    assert "TIES-Merging (Yadav et al. 2023, arXiv:2306.01708)" in ties
    header, *lines = aligning.splitlines()
    assert header.split("  ")[0] == "align --method"
    assert [line.split()[0] for line in lines] == catalog.method_names()
    (surgery,) = (line for line in lines if line.startswith("surgery "))
    assert "rank=16 steps=1000 batch-size=16 rate=0.001" in surgery


def test_one_method_is_explained_with_every_option(capsys):
    assert run(["methods", "ties"]) == 0

    shown = capsys.readouterr().out
    assert shown.startswith("ties: TIES-Merging")
    assert "--density FLOAT   (default 0.2)" in shown
    assert "--aggregate mean|sum" in shown
    assert "--weights" in shown
    assert "--scope" in shown
    assert "--seed" not in shown


def test_a_method_of_align_is_explained_with_its_flags(capsys):
    assert run(["methods", "surgery"]) == 0

    shown = capsys.readouterr().out
    assert shown.startswith("surgery: Representation Surgery")
    assert "--set rank=INT   (default 16)" in shown
    assert "--steps INT   (default 1000)" in shown
    assert "generator" not in shown


@pytest.mark.parametrize("name", [name for name in catalog.method_names() if name != "moma"])
def test_a_card_of_align_says_what_the_function_takes(name):
    card, method = catalog.method_card(name), catalog.feature_method(name, {})

    assert [option.name for option in card.options] == list(method.own_options)
    assert all(option.text for option in card.options)


def test_an_unknown_method_is_answered_with_the_nearest(capsys):
    assert run(["methods", "tiess"]) == 2

    assert capsys.readouterr().err == (
        "error: there is no merge method tiess\nhint: did you mean ties?\n"
    )
    assert run(["methods", "sugery"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no alignment method sugery\nhint: did you mean surgery?\n"
    )


def test_the_list_as_json_holds_what_the_explanations_say(capsys):
    run(["methods", "--json"])
    listed = json.loads(capsys.readouterr().out)
    run(["methods", "ties", "--json"])
    one = json.loads(capsys.readouterr().out)

    assert one in listed
    assert one["options"][0]["name"] == "density"


@pytest.mark.parametrize("name", method_names())
def test_a_card_says_what_the_imported_method_does(name):
    card, method = find_card(name), find_method(name)

    assert [option.name for option in card.options] == list(method.options)
    assert card.title == method.source
    assert card.takes_weights == method.takes("weights")
    assert card.has_scope == (method.first_pass is not None)
    assert card.is_random == (method.takes("draws") or card.sees_samples)
    assert card.is_ordered == method.ordered


@pytest.mark.parametrize("card", all_cards(), ids=lambda card: card.name)
def test_every_option_is_explained(card):
    assert [option.name for option in card.options if not option.text] == []
