"""What results depend on besides, for the record."""

import argparse
import datetime
import os
import platform
from collections.abc import Container
from importlib.metadata import version
from pathlib import Path
from typing import Any


def circumstances(command: str) -> dict[str, Any]:
    """The command, the day, and the machine."""
    versions = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **versions,
        },
    }


def called(what: str, arguments: argparse.Namespace, leave_out: Container[str] = ()) -> str:
    """The command line, with files by what they are: where they lie is of one machine."""
    words = ["python -m tests.benchmarks", what]
    for name, value in vars(arguments).items():
        if name in leave_out or callable(value) or value in (None, False, []):
            continue
        shown = name.rpartition("_")[2].upper() if isinstance(value, Path) else value
        shown = " ".join(map(str, shown)) if isinstance(shown, list) else shown
        flag = f"--{name.replace('_', '-')}"
        words.append(flag if value is True else f"{flag} {shown}")
    return " ".join(words)
