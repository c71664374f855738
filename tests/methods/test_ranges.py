import pytest

from momacli.errors import UsageError
from momacli.merging.catalog import find_method, method_names
from momacli.methods._ranges import RANGES, Range


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("ties", {"density": 20}, ["--density: expected 0 to 1, found 20"]),
        ("ties", {"density": -0.1}, ["--density: expected 0 to 1, found -0.1"]),
        ("wudi", {"lr": 0}, ["--set lr: expected more than 0, found 0"]),
        (
            "consensus",
            {"k": 0, "mask_lam": -1},
            ["--set k: expected at least 1, found 0", "--set mask-lam: expected at least 0"],
        ),
        ("iso-cts", {"common_fraction": 2}, ["--set common-fraction"]),
        ("adamerging", {"rate": -1, "batch_size": 0}, ["--set rate", "--set batch-size"]),
    ],
)
def test_numbers_outside_their_range_are_all_refused_at_once(method, options, words):
    with pytest.raises(UsageError) as error:
        find_method(method).check(options)

    assert [word in line for word, line in zip(words, error.value.details, strict=True)] == [
        True for _ in words
    ]


def test_a_percentage_is_answered_with_the_share_that_it_is():
    with pytest.raises(UsageError) as error:
        find_method("ties").check({"density": 20})

    assert error.value.hint == "20 % is 0.2"


@pytest.mark.parametrize("method", method_names())
def test_every_default_is_in_its_range(method):
    found = find_method(method)
    defaults = {key: item.default for key, item in found.options.items()}
    given = {key: value for key, value in defaults.items() if value is not None}

    assert found.check(given) == given


def test_every_range_is_of_an_option_that_a_method_has():
    known = {key for method in method_names() for key in find_method(method).options}

    assert set(RANGES) <= known


def test_a_range_has_its_ends_unless_it_says_otherwise():
    open_end = Range(0.0, with_least=False)

    assert 0 in Range(0.0, 1.0)
    assert 1 in Range(0.0, 1.0)
    assert 0 not in open_end
    assert 1e-9 in open_end
    assert 1.1 not in Range(0.0, 1.0)
