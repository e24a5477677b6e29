"""Threads: chosen by a probe, kept, overridden; and a line when the cores are used by others. What
a machine may lack or do: affinity, dashes, room on its disk; Ctrl-C; a second process."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

import eval
import mmzero
from render import Renderer
from support import machine
from support.run_folder import Phase, Run, hold
from support.settings import TINY

ROOT = Path(machine.__file__).parent.parent


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


@pytest.mark.parametrize(
    "own, files, expected",
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/job\n", {"cpu.max": "400000 100000", "job/cpu.max": "150000 100000"}, 2),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),
        ("0::/job\n", {"job/cpu.max": "max 100000"}, 8),
        ("0::/job\n", {"job/cpu.max": "6400000 100000"}, 8),
        ("0::/../..\n", {}, 8),
        (
            "4:cpu,cpuacct:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "300000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        (
            "4:cpu,cpuacct:/job\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            8,
        ),
        (None, {}, 8),
    ],
)
def test_cores_are_those_of_affinity_and_of_the_cgroups_share(
    own, files, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    if own:
        (tmp_path / "own").write_text(own)
    where = tmp_path / "cgroup", tmp_path / "own"
    assert machine.cores(*where) == expected
    # macOS knows neither.
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores(own=tmp_path / "nothing") == 64


def test_helpers_and_threads_are_as_many_as_those_cores(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 3)
    with Renderer() as renderer:
        assert renderer.workers == 3
    roles = mmzero.Roles(replace(TINY, workers=0), dict.fromkeys(mmzero.ROLES))
    roles.renderer.close()
    assert roles.renderer.workers == 3
    asked = []
    monkeypatch.setattr(
        machine, "choose_threads", lambda work, cores, _: asked.append(cores) or (1, "one")
    )
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine.set_threads(a_run(None)[0], work=None)
    assert asked == [3]


def start(*command, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_what_is_called_by_itself_has_no_more_threads_than_cores():
    code = "from support import machine; machine.cores = lambda: 1; import torch, vlm; "
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", code + "print(torch.get_num_threads())"]
    assert subprocess.run(command, capture_output=True, env=environment).stdout == b"1\n"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("program", ["mmzero.py", "eval.py"])
def test_ctrl_c_while_it_imports_is_no_traceback(program):
    """Sent as soon as it has begun to load what takes seconds."""
    process = start(program, "--help")
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch_cpu" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, words = process.communicate(timeout=60)
    assert process.returncode and words == "stopped\n" and not said


def test_a_terminal_that_knows_no_dash_stops_nothing(tmp_path):
    flags = "--iterations 0 --questions 0 --probe 0 --threads 1 --workers 1 --out".split()
    process = start("mmzero.py", *flags, tmp_path / "run", PYTHONIOENCODING="ascii")
    said, words = process.communicate(timeout=120)
    assert process.returncode == 0, words
    assert "| base |         ? (???) |" in said and "report: " in said


def test_a_disk_that_is_full_is_one_line_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("before")
    for name in ("file", "folder"):
        with pytest.raises(
            OSError, match=f"{name} could not be written .No space left.*: make room"
        ):
            with machine.replacing(tmp_path / name) as new:
                if name == "folder":
                    new.mkdir()
                    new = new / "inside"
                new.write_text("half of i")
                raise SafetensorError("No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"
    # What a kill has left is replaced.
    (tmp_path / ".file.new").mkdir()
    with machine.replacing(tmp_path / "file") as new:
        new.write_text("after")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "after"


HOLDS = """
import sys, time
from pathlib import Path
from support.run_folder import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path, monkeypatch):
    holder = start("-c", HOLDS, tmp_path / "run")
    assert holder.stdout.readline() == "held\n"
    second = ["--iterations", "0", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="mmzero.py: another process writes into .*run: wait"):
        mmzero.main(second)
    with pytest.raises(SystemExit, match="eval.py: another process writes into .*run: wait"):
        eval.main(["--rescore", "--out", str(tmp_path / "run")])
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    # A kill leaves no lock behind; and a process may take its own folder again.
    holder.kill()
    holder.communicate()
    hold(tmp_path / "run")
    hold(tmp_path / "run")
    assert start("-c", HOLDS, tmp_path / "run").communicate(timeout=60)[1].count("another process")


def test_a_disk_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    hold(tmp_path)
    assert "cannot be locked (No locks available)" in capsys.readouterr().out
