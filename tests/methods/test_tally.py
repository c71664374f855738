from dataclasses import dataclass

import pytest

from momacli.checkpoint.spans import Span
from momacli.checkpoint.writer import TensorSpec
from momacli.methods._tally import Guesses, Tally

SPEC = TensorSpec("a", "F32", (100,))


@dataclass
class Measured:
    """A statistic with a tally."""

    tally: Tally


class Count:
    """A pass of its own, which is counted."""

    def __init__(self, result: int):
        self.result, self.times = result, 0

    def __call__(self) -> int:
        self.times += 1
        return self.result


@pytest.mark.parametrize(("total", "sign"), [(-5, -1), (0, 1), (5, 1)])
def test_the_sum_is_counted_when_it_is_first_asked_for_and_only_then(total: int, sign: int):
    count = Count(total)
    tally = Tally(count)
    tally.add(-100 * total)  # of a pass that need not see all
    before = count.times

    signs = [tally.sign, tally.sign]

    assert (before, count.times) == (0, 1)
    assert signs == [sign, sign]


def test_on_the_way_the_answer_is_a_guess_by_what_has_passed():
    count = Count(1)
    tally = Tally(count)
    tally.begin()

    tally.add(-2)
    first, guess, none = tally.sign, tally.take_guess(), tally.take_guess()
    tally.add(3)
    tally.settle()

    assert (first, guess, none) == (-1, -1, None)
    assert (tally.sign, tally.take_guess(), count.times) == (1, None, 0)


def test_what_was_guessed_wrong_is_told_in_joined_spans_with_what_it_changed():
    tally = Tally()
    blocks = [(0, -1, 3), (10, -1, 4), (20, 8, 5), (30, -1, 6), (40, -9, 7)]

    with Guesses({"a": Measured(tally)}) as guesses:
        for start, balance, changed in blocks:
            tally.add(balance)
            _ = tally.sign
            guesses.note(Span(SPEC, start, start + 10), changed)
        wrong = guesses.settle()

    assert wrong == ([Span(SPEC, 20, 40)], 5 + 6)


def test_blocks_that_asked_for_nothing_are_not_among_the_wrong():
    tally = Tally()

    with Guesses({"a": Measured(tally)}) as guesses:
        tally.add(1)
        guesses.note(Span(SPEC, 0, 10), 3)
        tally.add(-2)
        wrong = guesses.settle()

    assert (wrong, tally.sign) == (([], 0), -1)


def test_a_pass_that_is_given_up_leaves_the_sum_to_be_counted():
    count = Count(1)
    tally = Tally(count)

    with Guesses({"a": Measured(tally)}):
        tally.add(-7)

    assert (tally.sign, count.times) == (1, 1)


def test_a_sum_that_is_known_is_not_found_again():
    count = Count(-1)
    tally = Tally(count)
    _ = tally.sign

    with Guesses({"a": Measured(tally)}) as guesses:
        tally.add(5)
        guesses.note(Span(SPEC, 0, 10), 1)
        wrong = guesses.settle()

    assert (wrong, tally.sign, count.times) == (([], 0), -1, 1)
