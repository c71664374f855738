"""Commands of moma in processes that have torch and transformers already.

A suite runs hundreds of commands, each of which would spend 10 seconds of a processor on imports.
How long a command took is told as always; how much memory it had is not.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from momacli.cli.main import run
from momacli.comparing.process import Done
from momacli.errors import MomaError
from momacli.progress import Listener, Notice

_context = multiprocessing.get_context("forkserver")
_PRELOADED = ("transformers.modeling_utils", "transformers.modeling_layers", "open_clip")
_context.set_forkserver_preload(["torch", *_PRELOADED, "momacli.align", __name__])


_NOTE = "note: "


def run_warm(arguments: Sequence[str], listener: Listener) -> Done:
    """Run a command; as `momacli.comparing.process.run_process`, but of progress only remarks."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        process = _context.Process(target=_command, args=([*arguments, "--json"], place))
        process.start()
        try:
            process.join()
        except BaseException:
            process.terminate()
            process.join()
            raise
        said = (place / "stderr").read_text(encoding="utf-8", errors="replace").splitlines()
        for line in said:
            if line.startswith(_NOTE):
                listener(Notice(line.removeprefix(_NOTE)))
        if process.exitcode:
            raise MomaError(f"moma {arguments[0]} failed", details=said)
        return Done(json.loads((place / "stdout").read_text(encoding="utf-8")))


def _command(arguments: Sequence[str], place: Path) -> None:
    """In the process itself: the streams become files, then what the command line does."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        target = os.open(place / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(target, number)
        os.close(target)
    sys.exit(run(arguments))
