"""Why does the Proposer not keep up? Roles of a finished run, put together and trained otherwise.

    python bench/proposer.py runs/tiny-svg-seed0 [--out runs/proposer]      about 15 minutes

It prints difficulty d, solvability s and entropy of types of a probe of 256 proposals: of Proposers
and Solvers from different iterations; after 24 more steps of the Proposer against roles that stay,
with and without the diversity term; with a Solver that is never trained. And the mean d of each
kind of hard question in the Proposer's last phase. What is there already is not made again.
"""

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm

from support.figures import markdown
from support.run_folder import ROLES, read_jsonl
from tiny.world import COLOURS

FEWEST = 5  # times that a kind of question was asked, to be shown


def start(run: Path, **iterations: int) -> list[str]:
    """Flags by which roles start from iterations of the run; from 0: as the base."""
    flags = []
    for role, k in iterations.items():
        if k:
            flags += [f"--start-{role}", str(run / f"iter{k}" / role)]
    return flags


def plan(run: Path, last: int) -> dict[str, list[str]]:
    """Name -> flags of mmzero.py"""
    runs = {}
    for p in (0, 1, last):
        for s in (0, 1, last):
            flags = start(run, proposer=p, coder=last, solver=s)
            runs[f"p{p}-s{s}"] = ["--iterations", "0", *flags]
    more = start(run, **dict.fromkeys(ROLES, last))
    more += "--coder-steps 0 --solver-steps 0 --proposer-steps 24 --iterations 1".split()
    runs["more-steps"] = more
    runs["more-steps-no-diversity"] = [*more, "--without", "diversity"]
    runs["solver-frozen"] = f"--solver-steps 0 --iterations {last}".split()
    return runs


def evaluations(folder: Path) -> list[dict]:
    return [row for row in read_jsonl(folder / "metrics.jsonl") if row["kind"] == "eval"]


def make(folder: Path, flags: list[str]):
    """A run, unless it is there."""
    count = int(flags[flags.index("--iterations") + 1])
    if len(evaluations(folder)) > count:
        return
    common = "--threads 1 --workers 1 --questions 0 --probe 256 --out".split()
    command = [sys.executable, "mmzero.py", *common, str(folder), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"proposer.py: {' '.join(command)} failed: {done.stderr[-500:]}")


def kinds(run: Path, last: int) -> dict[str, list[float]]:
    """Hard questions, with any colour and number, in the Proposer's last phase -> their d."""
    found = defaultdict(list)
    for row in read_jsonl(run / f"iter{last}/proposer.jsonl"):
        asked = re.search(r"(?s)<hard_question>(.*?)</hard_question>", row["reply"])
        if row["valid"] and row["rendered"]:
            text = re.sub("|".join(COLOURS), "COLOUR", asked[1])
            found[re.sub(r"\d+", "N", text).strip()].append(row["difficulty"])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run of the default")
    parser.add_argument("--out", type=Path, default=Path("runs/proposer"))
    args = parser.parse_args()
    run, last = args.run.resolve(), len(evaluations(args.run)) - 1
    if last < 1:
        sys.exit(f"proposer.py: {args.run} is no run with an iteration: give the --out of one")
    runs = plan(run, last)
    for name, flags in tqdm(runs.items(), "runs", ncols=100):
        make(args.out / name, flags)

    number = "{:.2f}".format
    rows = []
    for p in (0, 1, last):
        cells = [evaluations(args.out / f"p{p}-s{s}")[0]["difficulty"] for s in (0, 1, last)]
        rows.append([f"Proposer {p}", *map(number, cells)])
    print(markdown(["d", "Solver 0", "Solver 1", f"Solver {last}"], rows) + "\n")
    rows = []
    for name in list(runs)[9:]:
        for row in evaluations(args.out / name):
            figures = (row[key] for key in ("difficulty", "solvability", "type_entropy"))
            rows.append([f"{name}, iteration {row['iteration']}", *map(number, figures)])
    print(markdown(["run", "d", "s", "types"], rows) + "\n")
    asked = kinds(run, last)
    rows = [["all", str(sum(map(len, asked.values()))), number(mean(sum(asked.values(), [])))]]
    for text, ds in sorted(asked.items(), key=lambda item: -mean(item[1])):
        if len(ds) >= FEWEST:
            rows.append([text, str(len(ds)), number(mean(ds))])
    print(markdown([f"hard questions, iteration {last}", "asked", "mean d"], rows))


if __name__ == "__main__":
    main()
