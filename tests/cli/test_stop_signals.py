"""Signals to a process of its own that waits for them; no torch in it, so that it is up at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT = """
import ctypes, os, signal, sys, time
from amopo.cli.stop_signals import StopSignals, terminate_like_interrupt
def says(text): print(text, flush=True)
def waits():
    # not one long sleep: Python looks for signals before it, and one that comes between the look and the wait is seen
    # only afterwards
    for _ in range(6000): time.sleep(0.1)
"""


@pytest.fixture
def process():
    """Starts a program and gives it once it says that it is ready."""
    started = []

    def start(code: str, **env: str) -> subprocess.Popen:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}
        child = subprocess.Popen(
            [sys.executable, "-c", WAIT + code],
            env={**kept, "PYTHONPATH": paths, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


LOOP = """
with StopSignals() as stop:
    says("ready")
    while not stop.asked:
        time.sleep(0.01)
    says("in order")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_work_end_in_order(process, number):
    child = process(LOOP)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, "in order\n")
    assert "stopping after this step" in err and "Traceback" not in err


def test_the_second_signal_ends_a_process_that_waits_inside_a_library(process):
    # a lock of the C library that is taken twice: no signal ends this wait, and no handler of Python's runs in it
    code = """
lock, library = ctypes.create_string_buffer(128), ctypes.CDLL(None)
with StopSignals():
    says("ready")
    while True:
        library.pthread_mutex_lock(lock)
"""
    child = process(code)
    child.send_signal(signal.SIGINT)
    assert "stopping after this step" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=60) == 130
    assert "at once" in child.stderr.read()


def test_of_what_a_terminal_and_a_launcher_send_together_only_one_counts(process):
    code = """
from amopo.cli import stop_signals
stop_signals.SAME_SIGNAL_SECONDS = 600
""" + LOOP.replace('says("in order")', 'sys.stdin.readline(); says("in order")')
    child = process(code, RANK="0", WORLD_SIZE="2")
    child.send_signal(signal.SIGINT)
    assert "stopping" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    assert child.communicate("\n", timeout=60)[0] == "in order\n" and child.returncode == 0


def test_a_signal_to_a_forked_worker_is_none_to_the_run(process):
    code = """
with StopSignals() as stop:
    child = os.fork()
    if child == 0:
        says("ready")
        time.sleep(600)
    time.sleep(1.0)
    os.kill(child, signal.SIGINT); time.sleep(0.3); os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    says(f"asked {stop.asked}")
"""
    child = process(code)
    assert child.stdout.read() == "asked False\n"  # not `communicate`: the line may have come with the one before


def test_afterwards_signals_mean_what_they_meant(process):
    # A shell script's background jobs ignore interrupts from the start, and so do their tests.
    code = """
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopSignals():
    pass
try:
    says("ready")
    waits()
except KeyboardInterrupt:
    says("interrupted")
"""
    child = process(code)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60)[0] == "interrupted\n"


def test_afterwards_no_thread_is_left(process):
    code = """
import threading
for _ in range(20):
    with StopSignals():
        pass
    assert threading.active_count() == 1, threading.enumerate()
says("ready")
"""
    assert process(code).wait(timeout=60) == 0


def test_termination_can_mean_what_an_interrupt_means(process):
    code = """
try:
    with terminate_like_interrupt():
        says("ready")
        waits()
except KeyboardInterrupt:
    says("interrupted")
"""
    child = process(code)
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=60)[0] == "interrupted\n"


DEAF = """
with StopSignals() as stop:
    stop.deaf()
    says("ready")
    sys.stdin.readline()
    says("saved")
"""


@pytest.mark.parametrize(
    "code", [DEAF, DEAF.replace("    says", "says").replace("    sys", "sys")], ids=["in", "after"]
)
def test_when_everything_is_saved_a_launcher_can_no_longer_end_the_process(process, code):
    """Nor on the way to its end, where it says how to go on: the other rank may be through already."""
    child = process(code, RANK="0", WORLD_SIZE="2")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        child.send_signal(number)
        time.sleep(0.05)
    assert child.communicate("\n", timeout=60)[0] == "saved\n" and child.returncode == 0


def test_without_a_launcher_signals_mean_what_they_meant_after_that_too(process):
    code = """
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopSignals() as stop:
    stop.deaf()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
says("ready")
"""
    assert process(code).wait(timeout=60) == 0
