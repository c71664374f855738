"""Signals that ask a run to end: raised as an exception, at a moment that can bear one."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_ASKING_TO_END = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]

_RETRY = 0.05
"""Seconds until a signal that came at a bad moment is tried again."""


class Stopped(KeyboardInterrupt):
    """A signal asks the run to end; whatever it has begun is cleaned up on the way out."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise Stopped on the first signal that asks to end; further ones wait for the clean-up.

    A signal that is ignored already, as under nohup, stays so. One that comes while a module is
    imported waits until it is: compiled libraries call Python as they are set up and abort the
    process when that raises. An error that Stopped became on its way is Stopped again.
    """
    arrived: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if _is_inside_import(frame) and hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda _number, _frame: signal.raise_signal(number))
            signal.setitimer(signal.ITIMER_REAL, _RETRY)
            return
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        arrived.append(number)
        raise Stopped(number)

    previous = _handled_by(stop)
    try:
        yield
    except Exception as error:
        if arrived:
            raise Stopped(arrived[0]) from error
        raise
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        _put_back(previous)


@contextlib.contextmanager
def uninterrupted() -> Iterator[Callable[[], bool]]:
    """Hold back the signals that ask to end for the length of the block, then let them act.

    The block is given what tells whether one has come. If it ends by an error, they are gone.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = _handled_by(lambda number, _frame: arrived.append(number))
    try:
        yield lambda: bool(arrived)
    finally:
        _put_back(previous)
    for number in arrived:
        signal.raise_signal(number)


def _handled_by(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Handle those neither ignored nor handled by other than Python; returns what did before."""
    kept = (signal.SIG_IGN, None)
    numbers = [number for number in _ASKING_TO_END if signal.getsignal(number) not in kept]
    return {number: signal.signal(number, handler) for number in numbers}


def _put_back(previous: dict[int, Any]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)


def _is_inside_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
