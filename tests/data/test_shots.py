from collections import Counter

import pytest

from momacli.data.shots import Shots, few_of_each, parse_shots, two_parts
from momacli.errors import UsageError

LABELS = [0] * 10 + [1] * 6 + [2]


def test_numbers_and_shares_are_read_and_said_alike():
    found = parse_shots("1, 5,10%,5")

    assert found == (Shots(1), Shots(5), Shots(share=0.1))
    assert [str(one) for one in found] == ["1", "5", "10%"]


@pytest.mark.parametrize("text", ["", "0", "-1", "0%", "120%", "5,,6", "few"])
def test_what_is_no_number_of_samples_is_refused(text):
    with pytest.raises(UsageError):
        parse_shots(text)


@pytest.mark.parametrize(
    ("shots", "counts"), [(Shots(3), (3, 3, 1)), (Shots(share=0.5), (5, 3, 1))]
)
def test_as_many_of_each_class_are_chosen_or_all_it_has(shots, counts):
    found = few_of_each(LABELS, shots, seed=0, task="t")

    assert Counter(LABELS[place] for place in found) == dict(enumerate(counts))


def test_a_larger_choice_holds_the_smaller_one_and_another_seed_chooses_others():
    small, large, other = (
        few_of_each(LABELS, Shots(count), seed=seed, task="t")
        for count, seed in ((2, 0), (4, 0), (4, 1))
    )

    assert set(small) < set(large)
    assert large != other


def test_only_given_places_are_chosen_from():
    assert few_of_each(LABELS, Shots(2), seed=0, task="t", among=[3, 11, 12]) == [3, 11, 12]


def test_two_parts_share_no_sample_and_hold_every_class_where_there_are_two_of_it():
    first, second = two_parts(LABELS, 0.5, seed=0, task="t")

    assert sorted([*first, *second]) == list(range(len(LABELS)))
    assert Counter(LABELS[place] for place in first) == {0: 5, 1: 3}
    assert Counter(LABELS[place] for place in second) == {0: 5, 1: 3, 2: 1}


def test_neither_part_of_a_class_of_two_is_empty_however_large_the_share():
    for share in (0.01, 0.99):
        first, second = two_parts([0, 0, 0, 0], share, seed=0, task="t")
        assert first
        assert second
