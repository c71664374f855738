"""What a process keeps of memory that is free again."""

import subprocess
import sys

import pytest

_KEEPS = """
import contextlib, sys
import numpy as np
from momacli.methods._surroundings import freed_at_once

def own():
    text = open("/proc/self/status").read()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024

np.empty(1 << 24, dtype=np.uint8)  # from then on glibc keeps what is freed below that
with freed_at_once() if sys.argv[1] == "freed" else contextlib.nullcontext():
    before = own()
    some = [np.ones(12 << 17) for _ in range(12)]  # 12 MB each
    last = some[-1:]
    del some
    print(round(own() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own numbers, and Linux's")
def test_memory_that_is_free_goes_back_while_another_array_is_held():
    def kept(how):
        command = [sys.executable, "-c", _KEEPS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert kept("freed") < 12 + 8 < 100 < kept("as glibc does")
