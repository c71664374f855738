import importlib
import signal
import sys
import time

import pytest

from momacli.signals import Stopped, stopped_by_signals, uninterrupted

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of the given text and return what imports it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "module_under_way", raising=False)

    def imported(text):
        (tmp_path / "module_under_way.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module("module_under_way")

    yield imported
    sys.modules.pop("module_under_way", None)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_becomes_an_exception_and_its_handler_comes_back(number):
    before = signal.getsignal(number)

    with pytest.raises(Stopped) as stopped, stopped_by_signals():
        signal.raise_signal(number)

    assert stopped.value.number == number
    assert signal.getsignal(number) is before


def test_further_signals_wait_for_the_clean_up():
    cleaned = []

    def work():
        with stopped_by_signals():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGINT)
                cleaned.append("up")

    with pytest.raises(Stopped) as stopped:
        work()

    assert stopped.value.number == signal.SIGTERM
    assert cleaned == ["up"]


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals(), uninterrupted():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_during_an_import_waits_for_its_end(module):
    text = "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(0.2)\nvalue = 1\n"

    def work():
        with stopped_by_signals():
            module(text)
            time.sleep(60)

    with pytest.raises(Stopped):
        work()

    assert sys.modules["module_under_way"].value == 1


def test_an_error_made_of_the_stop_is_the_stop():
    def work():
        with stopped_by_signals():
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt as stop:
                raise RuntimeError from stop

    with pytest.raises(Stopped):
        work()


def test_an_error_without_a_signal_stays_what_it_is():
    with pytest.raises(RuntimeError), stopped_by_signals():
        raise RuntimeError


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_waits_for_the_end_of_an_uninterrupted_block(number):
    reached = []

    def work():
        with stopped_by_signals(), uninterrupted():
            signal.raise_signal(number)
            reached.append("end")

    with pytest.raises(Stopped):
        work()

    assert reached == ["end"]
