"""Commands of moma in processes of their own, so that the memory of each can be told."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from momacli.comparing.events import VARIABLE, Peak, decode
from momacli.errors import MomaError, UsageError
from momacli.progress import Listener

_PATIENCE = 30.0  # seconds a stopped process gets for cleaning up


@dataclass(frozen=True)
class Done:
    """What a command reported, and the most memory its process had, in bytes."""

    report: Mapping[str, Any]
    memory: int | None = None
    gpu_memory: int | None = None


Run = Callable[[Sequence[str], Listener], Done]
"""Runs `moma ARGUMENTS --json`; raises MomaError with the command's own error."""


def run_process(arguments: Sequence[str], listener: Listener) -> Done:
    """Run a command of this very moma; its progress goes to the listener.

    A stop of this process stops the other, which keeps what it can go on from.
    """
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            [sys.executable, "-m", "momacli", *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            env=os.environ | {VARIABLE: "json"},
            text=True,
            errors="replace",
        ) as process,
    ):
        try:
            words, peak = _listened(process, listener)
            status = process.wait()
        except BaseException:
            _end(process)
            raise
        if status:
            raise _error_in(words, status)
        output.seek(0)
        report = json.loads(output.read())
        return Done(report) if peak is None else Done(report, peak.bytes, peak.gpu)


def _listened(
    process: "subprocess.Popen[str]", listener: Listener
) -> tuple[list[str], Peak | None]:
    """Hand the events of a process on; returns its other lines, and its peak memory."""
    assert process.stderr is not None
    words: list[str] = []
    peak = None
    for line in process.stderr:
        event = decode(line)
        if event is None:
            words.append(line.rstrip("\n"))
        elif isinstance(event, Peak):
            peak = event
        else:
            listener(event)
    return words, peak


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _error_in(lines: Sequence[str], status: int) -> MomaError:
    """The error that a command printed, as `momacli.cli.console` prints it."""
    start = next((n for n, line in enumerate(lines) if line.startswith("error: ")), None)
    if start is None:
        last = [line for line in lines if line.strip()][-1:]
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        hint = "memory may have run out" if status == -9 else None
        return MomaError(f"its process {how}", details=last, hint=hint)
    details = [line[2:] for line in lines[start + 1 :] if line.startswith("  ")]
    hints = [line.removeprefix("hint: ") for line in lines[start + 1 :] if line.startswith("hint")]
    kind = UsageError if status == UsageError.exit_code else MomaError
    message = lines[start].removeprefix("error: ")
    return kind(message, details=details, hint=hints[0] if hints else None)
