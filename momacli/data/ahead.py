"""Work that is done in a thread while what it made before is in use."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")


def ahead(items: Iterator[_Item]) -> Generator[_Item, None, None]:
    """Yield the items, each made while the one before is in use; errors come where they would.

    Close it to end the thread, if not all items are taken.
    """
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items)
        while True:
            try:
                item = coming.result()
            except StopIteration:
                return
            coming = pool.submit(next, items)
            yield item
