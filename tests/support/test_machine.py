"""Threads: chosen by a probe, kept, overridden; and a line when the cores are used by others."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from support import machine
from support.run_folder import Phase, Run
from support.settings import TINY


class Machine:
    """A clock that moves by what work takes with the threads that are set."""

    def __init__(self, seconds: dict[int, float]):
        self.seconds, self.now, self.threads, self.tried = seconds, 0.0, 1, []

    def set_threads(self, count):
        self.threads = count

    def work(self):
        self.tried.append(self.threads)
        self.now += self.seconds[self.threads]


@pytest.mark.parametrize(
    "seconds, others, chosen",
    [
        ({1: 0.30, 2: 0.20}, 0.1, 2),  # a quiet machine
        ({1: 0.30, 2: 2.50}, 1.0, 1),  # beside a busy process
        ({1: 0.30, 2: 0.20}, 0.8, 1),  # beside one that gives way, for as long as the probe lasts
        ({1: 0.21, 2: 0.20}, 0.0, 1),  # hardly faster: the other core is left alone
        ({1: 0.40, 2: 0.21, 4: 0.12, 6: 0.20}, 0.3, 4),
        ({1: 0.40, 2: 0.21, 4: 0.12, 6: 0.20}, 3.2, 2),
        ({1: 0.30, 2: 0.20}, 7.0, 1),
    ],
)
def test_the_probe_takes_the_fastest_or_fewer(seconds, others, chosen, monkeypatch):
    computer = Machine(seconds)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: max(seconds))
    clock, used = (lambda: computer.now), (lambda: 100 + others * computer.now)
    work, count = computer.work, computer.set_threads
    found, reason = machine.choose_threads(work, max(seconds), count, clock, used)
    assert found == chosen and reason.startswith(f"{chosen} of {max(seconds)} threads")
    assert reason.endswith(f"others use {others:.1f} cores)")
    # In turns, for about two seconds, whatever was first.
    rounds = (len(computer.tried) - 1) // len(seconds)
    assert computer.tried[1:] == sorted(seconds) * rounds and computer.now < 2 + 2 * sum(
        seconds.values()
    ) + max(seconds.values())


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux counts them")
def test_what_others_compute_is_counted():
    before = machine.used_by_others()
    # As long as it takes, however busy the machine is: what counts is its own time.
    command = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.8: pass"]
    subprocess.run(command, check=True)
    assert machine.used_by_others() - before > 0.6


def test_our_own_work_and_idle_time_are_not_counted(monkeypatch):
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, idle = 30 * ticks, 2 * ticks, 8 * ticks, 500 * ticks
    counted = f"cpu  {user} {nice} {system} {idle} 7 0 0 0 0 0\ncpu0 1 1 1 1\n"
    monkeypatch.setattr(machine, "open", lambda *_, **__: io.StringIO(counted), raising=False)
    monkeypatch.setattr(machine.time, "process_time", lambda: 15.0)
    assert machine.used_by_others() == 40 - 15


def a_run(folder, kept=None, **settings):
    notes = {}
    wanted = SimpleNamespace(threads=settings.get("threads", 0))
    return SimpleNamespace(settings=wanted, facts={"threads": kept}, note=notes.update), notes


@pytest.mark.parametrize(
    "asked, kept, variable, expected",
    [(0, None, None, 3), (0, 2, None, 2), (4, 2, None, 4), (0, 2, "5", 5), (4, None, "5", 4)],
)
def test_which_number_counts(asked, kept, variable, expected, monkeypatch):
    """That of --threads, of OMP_NUM_THREADS, of the run's beginning, of the probe."""
    state = {"threads": int(variable or 9)}
    monkeypatch.setattr(torch, "set_num_threads", lambda n: state.update(threads=n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: state["threads"])
    monkeypatch.setattr(machine, "choose_threads", lambda *_: (3, "3 of 8 threads"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    run, notes = a_run(None, kept, threads=asked)
    machine.set_threads(run, work=None)
    assert state["threads"] == notes["threads"] == expected


def test_a_run_keeps_its_number_and_may_go_on_with_another(tmp_path):
    settings = replace(TINY, out=str(tmp_path / "run"))
    run = Run(settings)
    assert run.facts["threads"] is None
    run.note(threads=7)
    assert json.loads((tmp_path / "run/config.json").read_text())["threads"] == 7
    again = Run(replace(settings, threads=2))
    assert again.facts["threads"] == 7


def test_slow_steps_are_named_once(tmp_path, capsys):
    run = Run(replace(TINY, out=str(tmp_path / "run")))
    said = []
    for iteration in (1, 2):
        phase = Phase(run, iteration, "solver", None, None)
        phase.bar = SimpleNamespace(write=said.append)
        for seconds in (2.0, 2.2, 6.0, 6.7, 30.0):
            phase.look_at_the_clock(seconds)
    assert len(said) == 1 and said[0].startswith("a step took 7 s, 3 times as long")
    assert "--threads 1" in said[0]
