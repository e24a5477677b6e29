"""What a run asks of the computer it is on. To be imported before torch, whose threads it sets."""

import contextlib
import ctypes
import math
import os
import shutil
import sys
import time
from pathlib import Path

from safetensors import SafetensorError

# How long a waiting thread spins before it sleeps. OpenMP's own choice, for ever, makes a machine
# that does anything else ten times slower; not to spin at all costs a quarter on one that does not.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def say_stopped(kind, error, trace):
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# In a program of this project, not in somebody's own that imports from it.
program = Path(getattr(sys.modules["__main__"], "__file__", "/"))
if program.resolve().is_relative_to(Path(__file__).resolve().parent.parent):
    # Ctrl-C in the seconds of imports is no failure to look into.
    sys.excepthook = say_stopped
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # that of a notebook has not
            stream.reconfigure(errors="replace")  # a terminal may know no dash


def reason(error) -> str:
    """What is wrong, in one line: libraries write pages."""
    return (str(error).strip() or repr(error)).splitlines()[0]


@contextlib.contextmanager
def replacing(path: Path):
    """Yields a name to write to, a file's or a folder's, which gets the name `path` when all is
    written: nobody reads half of it. A folder that was there is gone for a moment in between.
    OSError, one line, if it cannot be written; then nothing of it is left."""
    new = path.with_name(f".{path.name}.new")
    remove(new)  # left by a process that was killed
    try:
        yield new
        shutil.rmtree(path, ignore_errors=True)
        os.replace(new, path)
    # The writers of torch and of safetensors have no better classes for a full disk.
    except (OSError, RuntimeError, SafetensorError) as error:
        advice = "make room there, and the same command goes on from the state before"
        raise OSError(f"{path} could not be written ({reason(error)}): {advice}") from error
    finally:
        remove(new)


def remove(path: Path):
    shutil.rmtree(path, ignore_errors=True)  # a folder
    path.unlink(missing_ok=True)  # a file


def cores(root=Path("/sys/fs/cgroup"), own=Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: those of its affinity, or the share of a cgroup that it is
    in, if that is less. "200000 100000" is the time of two cores (one file of v2, two of v1)."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    lines = own.read_text().splitlines() if own.exists() else []
    for path in (Path(line.split(":", 2)[2].strip("/")) for line in lines):
        for group in (path, *path.parents):
            older = root / "cpu" / group
            older = [older / "cpu.cfs_quota_us", older / "cpu.cfs_period_us"]
            for files in ([root / group / "cpu.max"], older):
                with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
                    quota, period = map(int, " ".join(f.read_text() for f in files).split())
                    if quota > 0:
                        count = min(count, math.ceil(quota / period))
    return count


def keep_freed_memory():
    """Let glibc keep blocks below 16 MB that were freed, instead of handing them to the kernel.

    A training step on a CPU would fault them in again for every activation: a fifth of its time.
    16 MB are all that the embedded base needs, and little of what a larger network does.
    """
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
    if hasattr(libc, "mallopt"):
        libc.mallopt(m_mmap_threshold, 2**24)
        libc.mallopt(m_trim_threshold, -1)


# A probe takes this long in all, and fewer threads win if they are nearly as fast: what is left of
# the cores may be wanted by somebody else.
PROBE_SECONDS, NEARLY = 2.0, 0.9


def used_by_others() -> float:
    """Seconds that all other processes of this machine have computed so far; 0 where Linux does not
    count them."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system = map(int, file.readline().split()[1:4])
    except OSError:
        return 0.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()


def choose_threads(work, cores, set_threads, clock=time.perf_counter, used=used_by_others):
    """How many threads do `work` fastest, under the load of this moment -> the number, and why.

    Threads wait for each other after every product. Where something else uses a core, two of them
    were ten times slower than one (two cores, 2026-11). A process that gives way (nice 10) may not
    show in so short a probe, and still halve the speed of a run: a core that is used is not ours.
    """
    counts = sorted({2**i for i in range(cores.bit_length())} | {cores})
    seconds, rounds = dict.fromkeys(counts, 0.0), 0
    work()  # what is done once
    begun, before = clock(), used()
    while not rounds or clock() - begun < PROBE_SECONDS:
        # In turns, so that a load that comes and goes meets all of them.
        for count in counts:
            set_threads(count)
            started = clock()
            work()
            seconds[count] += clock() - started
        rounds += 1
    others = max(0.0, (used() - before) / (clock() - begun))
    free = max(1, round(os.cpu_count() - others))
    ours = [count for count in counts if count <= free]
    fastest = min(seconds[count] for count in ours)
    chosen = next(count for count in ours if seconds[count] * NEARLY <= fastest)
    each = ", ".join(f"{count}: {1e3 * seconds[count] / rounds:.0f} ms" for count in counts)
    why = f"a probe took {each}; others use {others:.1f} cores"
    return chosen, f"{chosen} of {cores} threads ({why})"


def set_threads(run, work):
    """As many threads as were asked for, or as the run began with, or as `choose_threads` finds.
    With OMP_NUM_THREADS, as under torchrun, it is that many."""
    import torch  # only now: see above

    threads = run.settings.threads
    if not threads and "OMP_NUM_THREADS" not in os.environ:
        threads = run.facts["threads"]
        if not threads:
            threads, why = choose_threads(work, cores(), torch.set_num_threads)
            print(why)
    if threads:
        torch.set_num_threads(threads)
    run.note(threads=torch.get_num_threads())
