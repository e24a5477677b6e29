"""What each part of the method is worth on the embedded base: runs without it, beside whole ones.

    python bench/ablations.py                               ten kinds of runs, three seeds each
    python bench/ablations.py --iterations 3                as many iterations; goes on with those
    python bench/ablations.py --only default no-cap --seeds 0
    python bench/ablations.py --table                       only show what there is
    python bench/ablations.py --table --curves FILE.png     and each iteration, drawn and as a table

Each is a run of mmzero.py in a folder of its own with one thread, `--jobs` of them side by side.
What is finished is not made again, and what was stopped goes on. What a kind has in common with the
default, up to the first phase that differs, is copied from the default's folder once that is there:
the same seeds make the same. It prints a table and draws `--png`. The last two kinds replace a
function of mmzero.py, `solver_data`: labels have no flag.

The gain of a kind, and how much it is below that of the default, are means over seeds, in points.
Two 95 % intervals answer two questions. Over questions (support/figures.py: `paired`): would these
very Solvers differ on other questions? Over seeds (Student's t): would other runs differ?
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from tqdm import tqdm

import mmzero
from support.figures import markdown, paired
from support.run_folder import ROLES, read_jsonl
from tiny.truth import truth

KINDS = {
    "default": "",
    "solver-alone": "--proposer-steps 0 --coder-steps 0",
    "proposer-untrained": "--proposer-steps 0",
    "coder-untrained": "--coder-steps 0",
    "no-diversity": "--without diversity --without type",
    "no-cap": "--without cap",
    # E looks at d too: without d alone it would still push.
    "no-difficulty": "--without difficulty --without easy-hard",
    "no-filters": "--without filters",
    "labels-proposer": "",
    "labels-truth": "",
}
# Of the last two: what a row's label is, None for a row that has none and is left out.
LABELS = {
    "labels-proposer": lambda row: row["hard_answer"],
    "labels-truth": lambda row: truth(row["caption"], row["hard_question"]),
}
# What is the same as in the default: up to which stage of which iteration. Those with other labels
# also have the same data of phase S.
COMMON = dict.fromkeys(KINDS, (0, "eval"))
COMMON |= dict.fromkeys(("no-filters", "coder-untrained"), (1, "proposer"))
COMMON |= dict.fromkeys(LABELS, (1, "coder"))
# Student's t, 97.5 %, for two seeds, three, ... ten; that for ten is also taken for more.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
BOTH_ERRORS = 1.96 + 0.84  # to see a difference in four of five experiments, 5 % false alarms


def one_run(kind: str, flags: list[str]):
    """In a process of its own: mmzero.py with these flags, and with other labels if the kind says
    so."""
    if kind in LABELS:
        usual, label_of = mmzero.solver_data, LABELS[kind]

        def solver_data(roles, phase):
            rows = [(row | {"label": label_of(row)}, image) for row, image in usual(roles, phase)]
            return [(row, image) for row, image in rows if row["label"] is not None]

        mmzero.solver_data = solver_data
    mmzero.main(flags)


def evaluations(folder: Path) -> dict[int, dict]:
    """Iteration -> its line in metrics.jsonl."""
    lines = read_jsonl(folder / "metrics.jsonl")
    return {line["iteration"]: line for line in lines if line["kind"] == "eval"}


def copy_common(default: Path, folder: Path, kind: str):
    """Begin a run with what it has in common with the default's: it then goes on from there."""
    iteration, stage = COMMON[kind]
    later = ROLES[ROLES.index(stage) + 1 :] if iteration else ()
    gone = ["log.txt", "resume", "*.html", f"iter[{iteration + 1}-9]*", *later]
    gone += [f"{role}.jsonl" for role in later if kind not in LABELS]
    # The folder has its name only when it is whole.
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(default, new, ignore=shutil.ignore_patterns(*gone))
    # The run's own, not those of checkpoints: it writes its settings itself.
    (new / "config.json").unlink()
    (new / "resume").mkdir()
    progress = {"done": [iteration, stage], "place": None}
    (new / "resume/progress.json").write_text(json.dumps(progress))
    new.rename(folder)


def make(args, kind: str, seed: int):
    """One run, unless it is there."""
    folder, default = args.out / f"{kind}-seed{seed}", args.out / f"default-seed{seed}"
    if args.iterations in evaluations(folder):
        return
    if kind != "default" and not folder.exists() and 1 in evaluations(default):
        copy_common(default, folder, kind)
    flags = ["--out", folder, "--seed", seed, "--iterations", args.iterations]
    flags += ["--threads", 1, "--workers", 1, *KINDS[kind].split(), *args.flags.split()]
    command = [sys.executable, __file__, "--run", kind, *map(str, flags)]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log)
    if done.returncode:
        raise RuntimeError(f"{kind}, seed {seed} failed: see {folder}/log.txt")


# ---------------------------------------------------------------------------------- statistics


def over_seeds(values) -> tuple[float, float]:
    """95 % interval of the mean of two runs or more."""
    n = len(values)
    half = T[min(n, len(T) + 1) - 2] * np.std(values, ddof=1) / math.sqrt(n)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def would_take(values) -> str:
    """How many such values it takes to tell their mean from 0: ((1.96 + 0.84) sd / mean)^2

    >>> would_take([1.0, 3.0])
    '4'
    """
    if abs(np.mean(values)) < 1e-9:
        return "any number of"
    count = math.ceil((BOTH_ERRORS * np.std(values, ddof=1) / np.mean(values)) ** 2)
    return f"{max(count, 2):,}" if count < 1e6 else "over a million"


def gains(args) -> dict[str, dict[int, np.ndarray]]:
    """Kind -> seed -> gain of each question over the base [Q], in points, of finished runs."""
    found = {}
    for kind in args.only:
        for seed in args.seeds:
            own = evaluations(args.out / f"{kind}-seed{seed}")
            if args.iterations in own:
                ends = (own[k]["per_question"]["sampled"] for k in (args.iterations, 0))
                found.setdefault(kind, {})[seed] = np.subtract(*ends) * 100
    return found


def paired_with(default: dict, runs: dict) -> tuple[np.ndarray, np.ndarray]:
    """A kind's gains, and the default's of the same seeds, [seeds, Q] each."""
    seeds = [seed for seed in runs if seed in default]
    return np.array([runs[s] for s in seeds]), np.array([default[s] for s in seeds])


def figures(kind: str, own: np.ndarray, default: np.ndarray) -> list[str]:
    """A row of the table. own and default: gains [seeds, Q] of the same seeds."""

    def interval(ends):
        return "({:+.1f} to {:+.1f})".format(*ends).replace("-", "−")

    def number(x):
        return f"{x:+.1f}".replace("-", "−")

    def several(runs):
        return interval(over_seeds(runs)) if len(runs) > 1 else ""

    seeds = own.mean(axis=1)
    cells = [kind, f"{number(seeds.mean())} {several(seeds)}", ", ".join(map(number, seeds))]
    if kind == "default":
        return [*cells, "", "", ""]
    difference = own - default  # [seeds, Q]
    questions, runs = difference.mean(axis=0), difference.mean(axis=1)
    ends = [100 * end for end in paired(questions / 100)]
    cells += [f"{number(questions.mean())} {interval(ends)}", several(runs)]
    needed = []
    if ends[0] <= 0 <= ends[1]:
        needed.append(f"{would_take(questions)} questions")
    if len(runs) > 1 and np.prod(over_seeds(runs)) <= 0:
        needed.append(f"{would_take(runs)} seeds")
    return [*cells, ", ".join(needed) or "seen"]


def table(found: dict) -> str:
    """found: what `gains` gave."""
    header = ["kind", "gain (95 %, seeds)", "each seed", "minus the default (95 %, questions)"]
    header += ["(95 %, seeds)", "to be seen it would take"]
    rows = []
    for kind, runs in found.items():
        rows.append(figures(kind, *paired_with(found["default"], runs)))
    return markdown(header, rows)


def draw(found: dict, iterations: int, path: Path):
    """The gains as one figure: a dot for each seed, a bar for their mean."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7.5, 0.42 * len(found) + 1.1), layout="constrained")
    axes = drawing.add_subplot()
    names = list(found)[::-1]
    means = {kind: [run.mean() for run in runs.values()] for kind, runs in found.items()}
    for place, kind in enumerate(names):
        seeds = means[kind]
        colour = "#0072b2" if kind == "default" else "#8a8a8a"
        axes.barh(place, np.mean(seeds), 0.55, color=colour, alpha=0.45)
        axes.plot(seeds, [place] * len(seeds), "o", color=colour, ms=5)
    axes.axvline(np.mean(means["default"]), color="#0072b2", lw=0.8, ls="--")
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(
        f"gain in held-out accuracy, points, after iteration {iterations}; a dot a seed"
    )
    drawing.savefig(path, dpi=150)


# What `course` and `curves` show: kind of line in metrics.jsonl, its figure, what it is.
COURSE = (
    ("eval", "sampled", "held-out accuracy, %"),
    ("eval", "majority", "the same, majority of 8, %"),
    ("eval", "greedy", "the same, greedy, %"),
    ("eval", "difficulty", "difficulty d"),
    ("eval", "solvability", "solvability s"),
    ("eval", "type_entropy", "variety of content types"),
    ("audit", "questions", "questions the Solver learns from"),
    ("audit", "label_true", "labels that are right, %"),
)
COLOURS = dict(zip(KINDS, ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")))


def course(found: dict, args) -> dict[tuple, list[list]]:
    """(figure of COURSE, kind) -> for each seed its values by iteration; None before the first."""
    courses = {}
    for kind, runs in found.items():
        for seed in runs:
            lines = {}
            for one in read_jsonl(args.out / f"{kind}-seed{seed}/metrics.jsonl"):
                lines[one["kind"], one["iteration"]] = one
            for line, name, what in COURSE:
                values = [lines.get((line, k), {}).get(name) for k in range(args.iterations + 1)]
                unit = 100 if "%" in what else 1
                values = [None if value is None else unit * value for value in values]
                courses.setdefault((name, kind), []).append(values)
    return courses


def mean_of(values) -> float | None:
    """Of the seeds that have one."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def course_table(courses: dict, kind: str) -> str:
    """A row an iteration: means over seeds, and in brackets each seed."""
    rows = []
    for k in range(len(courses["sampled", kind][0])):
        row = [str(k)]
        for _, name, what in COURSE:
            values = [run[k] for run in courses[name, kind] if run[k] is not None]
            digits = 0 if name == "questions" else 1 if "%" in what else 2
            each = ", ".join(f"{value:.{digits}f}" for value in values)
            row.append(f"{mean_of(values):.{digits}f} ({each})" if values else "")
        rows.append(row)
    return markdown([f"{kind}, iteration", *(what for *_, what in COURSE)], rows)


def curves(courses: dict, path: Path):
    """A panel for each figure: a thin line a run, a thick one for the mean of a kind."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(13, 5.6), layout="constrained")
    panels = [*drawing.subplots(2, len(COURSE) // 2, sharex=True).flat]
    kinds = dict.fromkeys(kind for _, kind in courses)
    for axes, (_, name, what) in zip(panels, COURSE):
        if name in ("majority", "greedy"):
            # The three accuracies share one scale.
            axes.sharey(panels[0])
        for kind in kinds:
            colour, runs = COLOURS.get(kind, "#8a8a8a"), courses[name, kind]
            means = [mean_of(values) for values in zip(*runs)]
            # Where there is no value, nothing is drawn: matplotlib takes nan so.
            lines = [np.array(values, dtype=float) for values in (*runs, means)]
            for run in lines[:-1]:
                axes.plot(range(len(run)), run, color=colour, lw=0.8, alpha=0.4)
            axes.plot(range(len(means)), lines[-1], "o-", color=colour, lw=1.8, ms=3, label=kind)
        axes.set_title(what, fontsize=10)
        axes.set_xticks(range(len(means)))
        axes.spines[["top", "right"]].set_visible(False)
    drawing.supxlabel("iteration; a thin line is a run", fontsize=10)
    if len(kinds) > 1:
        axes.legend(frameon=False, fontsize=8)
    drawing.savefig(path, dpi=120)


def main():
    if sys.argv[1:2] == ["--run"]:
        return one_run(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=1, help="of each run [1]")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side [2]")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--flags", default="", help="more flags of mmzero.py, in quotes")
    parser.add_argument("--png", type=Path, help="draw the figure here")
    parser.add_argument("--curves", type=Path, help="each iteration: a table, drawn here")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    if "default" not in args.only:
        args.only.insert(0, "default")

    if not args.table:
        # All kinds of one seed first: then there is a whole table early.
        work = [(kind, seed) for seed in args.seeds for kind in args.only]
        with ThreadPoolExecutor(args.jobs) as pool:
            runs = [pool.submit(make, args, *one) for one in work]
            try:
                for run in tqdm(runs, "ablations", ncols=100, unit=" runs"):
                    run.result()
            except RuntimeError as error:
                pool.shutdown(cancel_futures=True)
                sys.exit(f"ablations.py: {error}")
    found = gains(args)
    if "default" not in found:
        sys.exit(f"ablations.py: no finished run of the default in {args.out}: leave --table out")
    print(table(found))
    if args.png:
        draw(found, args.iterations, args.png)
    if args.curves:
        courses = course(found, args)
        for kind in found:
            print(f"\n{course_table(courses, kind)}")
        curves(courses, args.curves)


if __name__ == "__main__":
    main()
