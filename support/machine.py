"""What a run asks of the computer it is on. To be imported before torch, whose threads it sets."""

import ctypes
import os
import time

# How long a waiting thread spins before it sleeps. OpenMP's own choice, for ever, makes a machine
# that does anything else ten times slower; not to spin at all costs a quarter on one that does not.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h of glibc


def keep_freed_memory():
    """Let glibc keep blocks below 16 MB that were freed, instead of handing them to the kernel.

    A training step on a CPU would fault them in again for every activation: a fifth of its time.
    16 MB are all that the embedded base needs, and little of what a larger network does.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**24)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


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
            cores = len(os.sched_getaffinity(0))
            threads, reason = choose_threads(work, cores, torch.set_num_threads)
            print(reason)
    if threads:
        torch.set_num_threads(threads)
    run.note(threads=torch.get_num_threads())
