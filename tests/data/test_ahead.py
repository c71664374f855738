import threading

import pytest

from momacli.data.ahead import ahead


def test_items_come_in_their_order_and_all_of_them():
    assert list(ahead(iter(range(7)))) == list(range(7))
    assert list(ahead(iter([]))) == []


def test_the_next_item_is_made_while_one_is_in_use():
    begun = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(begun):
            event.set()
            yield number

    found = ahead(items())

    assert next(found) == 0
    assert begun[1].wait(5)
    assert not begun[2].is_set()
    found.close()


def test_an_error_comes_at_its_item_and_not_before():
    def items():
        yield 1
        yield 2
        raise ValueError("broken")

    found = ahead(items())

    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(found)


def test_the_thread_ends_where_not_all_items_are_taken():
    before = threading.active_count()
    found = ahead(iter(range(100)))
    next(found)

    found.close()

    assert threading.active_count() == before
