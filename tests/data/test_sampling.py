import pytest

from momacli.data.sampling import Sampling, parse_share
from momacli.errors import UsageError

ITEMS = [f"item{number}" for number in range(100)]


def test_without_a_limit_all_are_used():
    assert Sampling().of(ITEMS, "task") == ITEMS


@pytest.mark.parametrize(
    ("sampling", "count"),
    [
        (Sampling(count=7), 7),
        (Sampling(count=1000), 100),
        (Sampling(share=0.1), 10),
        (Sampling(share=0.001), 1),
        (Sampling(count=30, share=0.2), 20),
    ],
)
def test_as_many_are_chosen_as_asked_for_in_their_order(sampling, count):
    chosen = sampling.of(ITEMS, "task")

    assert len(chosen) == count
    assert chosen == sorted(set(chosen), key=ITEMS.index)


def test_the_choice_depends_on_seed_and_task_only_and_grows():
    few = Sampling(count=10).of(ITEMS, "task")

    assert few == Sampling(count=10).of(ITEMS, "task")
    assert few != Sampling(count=10, seed=1).of(ITEMS, "task")
    assert few != Sampling(count=10).of(ITEMS, "other")
    assert set(few) < set(Sampling(count=20).of(ITEMS, "task"))


def test_a_share_is_read_as_percent_or_fraction():
    assert parse_share("10%") == parse_share("0.1") == 0.1


@pytest.mark.parametrize("text", ["", "ten", "-1", "10%%"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(UsageError):
        parse_share(text)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"share": 0.0}, {"share": 1.5}])
def test_a_sample_of_nothing_or_more_than_all_is_refused(wrong):
    with pytest.raises(UsageError):
        Sampling(**wrong)
