"""The command `moma`: reads the arguments, runs one command, turns what goes wrong into text."""

import atexit
import contextlib
import errno
import gc
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn, cast

from momacli.errors import MomaError, UsageError
from momacli.signals import Stopped, stopped_by_signals

_NO_MEMORY = ("can't allocate memory", "out of memory")
"""How torch's errors, which are plain RuntimeErrors, say it."""


_WAIT = 10.0
"""Seconds that a process which another speaks for waits; torchrun ends it where that one fails."""


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    gc.set_threshold(100_000, 20, 20)  # a run lives shortly and leaves few cycles behind
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy multiplies nothing large here
    _open_standard_streams()
    _leave(run(sys.argv[1:]))


def _leave(status: int) -> NoReturn:
    """Exit; where nobody else is concerned, without freeing one by one what the process holds.

    That takes a tenth of a second. Torch, other threads and who measures the run see its end.
    """
    observed = sys.gettrace() is not None or sys.getprofile() is not None
    if observed or threading.active_count() > 1 or "torch" in sys.modules:
        sys.exit(status)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(status)
    os._exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit status.

    0 done, 1 failed, 2 wrong usage, 128 + n stopped by signal n (141: nobody reads the output).
    """
    try:
        with stopped_by_signals():
            status = _invoke(arguments)
            sys.stdout.flush()
            return status
    except Stopped as stop:
        return 128 + stop.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _drop_stdout()
        return 128 + 13  # SIGPIPE
    except Exception as error:
        from momacli.cli.console import is_follower, say_error

        known = _explained(error)
        if is_follower():
            time.sleep(_WAIT)
        if known is None:
            raise  # a bug in moma: its traceback is what a report needs
        if isinstance(error, OSError):
            _drop_stdout()
        if not is_follower() or _has_begun():
            say_error(known)
        return known.exit_code


def _has_begun() -> bool:
    """Whether this process has met the others, and so may fail by itself."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_initialized())


def _invoke(arguments: Sequence[str]) -> int:
    import typer

    from momacli.cli.commands import app

    command = typer.main.get_command(app)
    try:
        with command.make_context("moma", list(arguments) or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as stop:  # after --help or --version
        return stop.exit_code
    except cast("type[Exception]", typer.BadParameter.__base__) as error:  # click's UsageError
        raise _usage(error) from error
    return 0


def _usage(error: Any) -> UsageError:
    """A wrong command line, in our own words."""
    message = str(error.format_message()).rstrip(".")
    path = error.ctx.command_path if error.ctx else "moma"
    return UsageError(message[:1].lower() + message[1:], hint=f"see {path} --help")


def _explained(error: Exception) -> MomaError | None:
    """An error for people, or None for one that only a developer understands."""
    if isinstance(error, MomaError):
        return error
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "make room and run the same command again" if full else None
        return MomaError(f"{place}{error.strerror or error}", hint=hint)
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return MomaError("not enough memory", hint="close other programs, or use a larger machine")
    return None


def _open_standard_streams() -> None:
    """Give closed standard streams somewhere to go, lest an output file takes their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale, no text is an error
            stream.reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """Let what is still buffered for a reader that is gone go nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
