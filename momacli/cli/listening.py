"""Progress on stderr: a moving bar on a terminal, a line now and then elsewhere.

For another process that listens, events as JSON.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from momacli.cli.console import amount, duration, is_follower, is_terminal, plain, say
from momacli.comparing.events import VARIABLE, Pace, Peak, encode
from momacli.merging.report import peak_memory
from momacli.models.device import peak_gpu_memory
from momacli.progress import Listener, Notice, Progress, ignore

FIRST, INTERVAL = 1.0, 10.0
"""Seconds until the first line of a stage where there is no terminal, and between lines."""


@contextmanager
def listening() -> Iterator[Listener]:
    """Give a listener to pass to a verb; what it shows is finished when the block ends."""
    if is_follower():
        yield ignore  # the first process speaks for all
    elif os.environ.get(VARIABLE) == "json":
        with _events() as listener:
            yield listener
    elif is_terminal(sys.stderr):
        with _bar() as listener:
            yield listener
    else:
        yield _Lines()


@contextmanager
def _events() -> Iterator[Listener]:
    """Each event as a line of JSON, and at the end what memory the process had at most."""
    pace = Pace()

    def tell(event: Progress | Notice) -> None:
        if pace.lets(event):
            say(encode(event))

    try:
        yield tell
    finally:
        say(encode(Peak(peak_memory(), peak_gpu_memory())))


class _Meter:
    """Rate and remaining time of the present stage."""

    def __init__(self) -> None:
        self.stage = ""
        self.started = 0.0
        self.first = 0  # done when the stage was entered: a run that goes on begins further on
        self.seen = 0  # samples, likewise

    def enter(self, event: Progress) -> bool:
        """Whether the event begins another stage."""
        if event.stage == self.stage:
            return False
        self.stage, self.started = event.stage, time.monotonic()
        self.first, self.seen = event.done, event.samples
        return True

    def text(self, event: Progress) -> str:
        """How far, how fast, how much longer, and the values that came along."""
        if event.unit == "bytes":
            words = [f"{amount(event.done, 'bytes')} of {amount(event.total, 'bytes')}"]
        else:
            words = [f"{event.done} of {event.total} {event.unit}"]
        elapsed = time.monotonic() - self.started
        if event.done > self.first and elapsed > 0.5:
            rate = (event.done - self.first) / elapsed
            words.append(
                f"{amount(rate, event.unit)}/s" if rate >= 1 else f"{duration(1 / rate)} each"
            )
            if event.samples:
                words.append(f"{amount((event.samples - self.seen) / elapsed, 'samples')}/s")
            if event.done < event.total:
                words.append(f"{duration((event.total - event.done) / rate)} left")
        words += [f"{plain(name)} {value:.4g}" for name, value in event.values.items()]
        return ", ".join(words)


class _Lines:
    """A line now and then, and at the end of a stage; none for a stage that is over at once."""

    def __init__(self) -> None:
        self._meter = _Meter()
        self._due = 0.0
        self._began = False

    def __call__(self, event: Progress | Notice) -> None:
        if isinstance(event, Notice):
            say(f"note: {event.text}")
            return
        now = time.monotonic()
        if self._meter.enter(event):
            self._due, self._began = now + FIRST, False
        if now >= self._due or (self._began and event.done >= event.total):
            self._due, self._began = now + INTERVAL, True
            say(f"{event.stage}: {self._meter.text(event)}")


@contextmanager
def _bar() -> Iterator[Listener]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    meter = _Meter()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("", total=None, text="", visible=False)

        def listen(event: Progress | Notice) -> None:
            if isinstance(event, Notice):
                bar.console.print(Text(plain(f"note: {event.text}")))
                return
            if meter.enter(event):
                bar.reset(line, total=event.total, description=event.stage, visible=True)
            bar.update(line, completed=event.done, text=meter.text(event))

        yield listen
