"""A default run on a laptop: alone, beside a busy process, and as two ranks of one thread each.

    python bench/laptop.py                              everything: about an hour on two slow cores
    python bench/laptop.py --only quiet nice0           some of it
    python bench/laptop.py --iterations 1 --only quiet torchrun --rounds 2
    python bench/laptop.py --iterations 1 --flags "--steps 2 --solver-proposals 512"

    quiet      nothing else runs
    nice0      beside a process that keeps a core busy
    nice10     beside one that gives way (nice 10)
    torchrun   quiet, `torchrun --nproc-per-node 2` instead of threads
    torchrun0  the same beside a busy process

Each is `python mmzero.py` with a folder of its own, one after the other, in turns over the rounds.
It prints seconds, the threads that the run chose, and how many times as long as `quiet`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
# How nice the process beside it is (None: there is none), and the number of ranks.
CASES = {
    "quiet": (None, 1),
    "nice0": (0, 1),
    "nice10": (10, 1),
    "torchrun": (None, 2),
    "torchrun0": (0, 2),
}
LIMITS = {"quiet": 6, "nice0": 10, "nice10": 10}  # minutes, what we aim at


def run(niceness, ranks, flags) -> tuple[float, int]:
    """-> seconds of a whole run, and its threads."""
    command = [sys.executable, "mmzero.py"]
    if ranks > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command[1:1] = launch
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    spinner = None
    if niceness is not None:
        spin = [sys.executable, "-c", f"import os; os.nice({niceness})\nwhile True: pass"]
        spinner = subprocess.Popen(spin)
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            begun = time.perf_counter()
            whole = [*command, "--out", str(out), *flags]
            pipes = dict(capture_output=True, text=True, cwd=ROOT, env=environment)
            done = subprocess.run(whole, **pipes)
            seconds = time.perf_counter() - begun
            if done.returncode:
                sys.exit(f"laptop.py: {' '.join(whole)} failed: {done.stderr[-500:]}")
            return seconds, json.loads((out / "config.json").read_text())["threads"]
    finally:
        if spinner:
            spinner.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--iterations", type=int, default=3, help="of each run [3]")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each case [1]")
    parser.add_argument("--flags", default="", help="more flags of mmzero.py, in quotes")
    args = parser.parse_args()
    found, flags = {name: [] for name in args.only}, args.flags.split()
    flags += ["--iterations", str(args.iterations)]
    for _ in range(args.rounds):
        for name in args.only:
            found[name].append(run(*CASES[name], flags))
            print(f"{name}: {found[name][-1][0]:.0f} s", file=sys.stderr, flush=True)
    first = median(seconds for seconds, _ in found[args.only[0]])
    print(f"{os.cpu_count()} cores, {' '.join(flags)}, median of {args.rounds}\n")
    print(f"| case | seconds | threads | x {args.only[0]} | aim, minutes |")
    print("|:--|--:|--:|--:|--:|")
    for name, runs in found.items():
        seconds = median(seconds for seconds, _ in runs)
        threads = "/".join(sorted({str(threads) for _, threads in runs}))
        aim = LIMITS.get(name, "") if flags == ["--iterations", "3"] else ""
        print(f"| {name} | {seconds:.0f} | {threads} | {seconds / first:.2f} | {aim} |")


if __name__ == "__main__":
    main()
