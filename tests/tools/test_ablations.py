"""bench/ablations.py: its statistics by hand, its table from made-up runs, and one real run."""

import importlib.util
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import eval
from support.run_folder import read_jsonl

ROOT = Path(eval.__file__).parent
spec = importlib.util.spec_from_file_location("ablations", ROOT / "bench/ablations.py")
ablations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ablations)

LITTLE = """--steps 1 --proposer-prompts 2 --coder-proposals 4 --coder-prompts 2 --probe 4
--solver-proposals 48 --solver-prompts 4 --solver-update 4 --questions 6 --render-seconds 60"""


FLAGS = [*LITTLE.split(), "--iterations", 1, "--threads", 1, "--workers", 1]


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The folder of a small run of the default."""
    folder = tmp_path_factory.mktemp("default") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, "--run", "default", *FLAGS, "--out", folder)
    return folder


def made_up(folder, name, seed, base, after):
    """A run folder of which nothing is there but the accuracies of each question."""
    lines = []
    for iteration, each in enumerate((base, after)):
        line = {"kind": "eval", "iteration": iteration, "per_question": {"sampled": each}}
        lines.append(line | {"sampled": sum(each) / len(each), "greedy": 0.8})
        lines[-1] |= {"majority": 0.8, "difficulty": 0.2, "solvability": 0.5, "type_entropy": 0.8}
    lines.append({"kind": "audit", "iteration": 1, "questions": 100, "label_true": 0.7})
    run = folder / f"{name}-seed{seed}"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["ablations.py", *map(str, words)])
    ablations.main()


def test_the_table_pairs_questions_and_seeds(tmp_path, monkeypatch, capsys):
    half, rng = [0.5] * 400, np.random.default_rng(0)
    for seed, gain in enumerate((0.2, 0.24, 0.22)):
        # Questions differ much from each other, and hardly from run to run.
        each = rng.choice([0.2, 0.8], 400)
        made_up(tmp_path, "default", seed, half, list(each + gain))
        made_up(tmp_path, "no-cap", seed, half, list(each + gain - 0.1))
        made_up(tmp_path, "no-filters", seed, half, list(each + gain + (0.05, -0.04, 0)[seed]))
    run(monkeypatch, "--table", "--out", tmp_path, "--png", tmp_path / "figure.png")
    header, _, *rows = capsys.readouterr().out.strip().split("\n")
    cells = {row[0]: row[1:] for row in ([c.strip() for c in r.split("|")[1:-1]] for r in rows)}
    assert list(cells) == ["default", "no-cap", "no-filters"]
    # Ten points less in every run, whatever the questions are: seen with three runs.
    assert cells["no-cap"][2].startswith("−10.0 (−") and cells["no-cap"][3] == "(−10.0 to −10.0)"
    assert cells["no-cap"][4] == "seen"
    # +5, -4 and 0: sd 4.5 around 0.33, which takes (2.8 * 4.5 / 0.33)^2 seeds.
    runs = np.array([5, -4, 0])
    needed = math.ceil((2.8 * runs.std(ddof=1) / runs.mean()) ** 2)
    assert cells["no-filters"][4].endswith(f"{needed:,} seeds")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_the_course_of_every_run_and_of_the_mean_of_a_kind(tmp_path, monkeypatch, capsys):
    from matplotlib.axes import Axes

    drawn = []

    def plot(axes, x, y, *style, **more):
        drawn.append((list(x), list(y), more.get("label")))

    monkeypatch.setattr(Axes, "plot", plot)
    monkeypatch.setattr(Axes, "legend", lambda axes, **more: None)
    for seed, gain in enumerate((0.1, 0.3)):
        for kind in ("default", "no-cap"):
            made_up(tmp_path, kind, seed, [0.5] * 10, [0.5 + gain] * 10)
    words = ["--table", "--out", tmp_path, "--only", "no-cap", "--seeds", 0, 1]
    run(monkeypatch, *words, "--curves", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    # Eight figures, two kinds, two seeds and their mean.
    assert len(drawn) == 8 * 2 * 3
    runs, mean = drawn[:2], drawn[2]
    assert [y for _, y, _ in runs] == [pytest.approx([50, 60]), pytest.approx([50, 80])]
    assert mean == ([0, 1], pytest.approx([50, 70]), "default")
    # There are no labels before the first iteration.
    assert drawn[-1] == ([0, 1], pytest.approx([math.nan, 70], nan_ok=True), "no-cap")
    last = [cell.strip() for cell in capsys.readouterr().out.strip().split("\n")[-1].split("|")]
    assert last[1:3] == ["1", "70.0 (60.0, 80.0)"] and last[8:10] == [
        "100 (100, 100)",
        "70.0 (70.0, 70.0)",
    ]


def test_the_three_accuracies_share_one_scale(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **more: drawn.append(figure))
    courses = {(name, "default"): [[None, 1.0, 2.0]] for _, name, _ in ablations.COURSE}
    courses["sampled", "default"] = [[30.0, 50.0, 55.0]]
    courses["greedy", "default"] = [[80.0, 81.0, 82.0]]
    ablations.curves(courses, tmp_path / "curves.png")
    limits = [axes.get_ylim() for axes in drawn[0].axes]
    assert limits[0] == limits[1] == limits[2] and limits[0][0] <= 1 and limits[0][1] >= 82
    assert limits[3] != limits[0]


def test_seeds_are_paired_by_their_numbers(tmp_path, monkeypatch, capsys):
    half = [0.5] * 40
    for seed, gain in ((0, 0.1), (1, 0.3), (2, 0.2)):
        made_up(tmp_path, "default", seed, half, [0.5 + gain] * 40)
        # The run of seed 1 is still missing, as happens while runs are made.
        if seed != 1:
            made_up(tmp_path, "no-cap", seed, half, [0.55 + gain] * 40)
    run(monkeypatch, "--table", "--out", tmp_path)
    row = capsys.readouterr().out.strip().split("\n")[-1].split("|")
    assert row[3].strip() == "+15.0, +25.0" and row[5].strip() == "(+5.0 to +5.0)"


def test_a_run_that_fails_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="default, seed 0 failed: see .*log.txt") as stop:
        run(monkeypatch, "--seeds", 0, 1, "--jobs", 1, "--out", tmp_path, "--flags", "--nonsense 1")
    assert "\n" not in str(stop.value)
    assert "--nonsense" in (tmp_path / "default-seed0/log.txt").read_text()


def test_an_interval_over_seeds_is_students():
    # Three values: t = 4.303 for two degrees of freedom.
    low, high = ablations.over_seeds([1, 2, 3])
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=(4000, 3))
    hit = [low <= 0 <= high for low, high in map(ablations.over_seeds, drawn)]
    assert 0.94 < np.mean(hit) < 0.96


def test_the_power_that_is_named_is_the_power_that_is_there():
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000)
    values = 0.5 + 2 * (values - values.mean()) / values.std()
    count = int(ablations.would_take(values))
    drawn = rng.normal(0.5, 2.0, (4000, count))
    error = drawn.std(axis=1, ddof=1) / math.sqrt(count)
    seen = np.abs(drawn.mean(axis=1)) > 1.96 * error
    assert 0.74 < seen.mean() < 0.86


def test_nothing_there_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no finished run of the default"):
        run(monkeypatch, "--table", "--out", tmp_path)


def without_clock(folder):
    rows = read_jsonl(folder / "metrics.jsonl")
    clock = re.compile("(.*_)?seconds|tokens_per_second")
    return [{k: value for k, value in row.items() if not clock.fullmatch(k)} for row in rows]


@pytest.mark.parametrize(
    "kind",
    [
        "labels-truth",
        pytest.param("coder-untrained", marks=pytest.mark.slow),
        pytest.param("no-difficulty", marks=pytest.mark.slow),
    ],
)
def test_what_is_copied_from_the_default_is_what_a_whole_run_makes(
    kind, tmp_path, monkeypatch, default
):
    """And what is trained on in a run with other labels are these labels."""
    # A kind with other labels replaces it for good: here for this test.
    monkeypatch.setattr(ablations.mmzero, "solver_data", ablations.mmzero.solver_data)
    shutil.copytree(default, tmp_path / "copied/default-seed0")
    for out in ("copied", "whole"):
        words = ["--only", kind, "--seeds", 0, "--out", tmp_path / out, "--flags", LITTLE]
        if out == "whole":
            # No default to copy from, until the kind's own run is made.
            words = ["--run", kind, *FLAGS, *ablations.KINDS[kind].split()]
            words += ["--out", tmp_path / f"whole/{kind}-seed0"]
        run(monkeypatch, *words)
    runs = [tmp_path / out / f"{kind}-seed0" for out in ("copied", "whole")]
    assert without_clock(runs[0]) == without_clock(runs[1])
    assert "solver 1/1" in (runs[0] / "log.txt").read_text()
    weights = [(run / "iter1/solver/model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    ours = (default / "iter1/solver/model.safetensors").read_bytes()
    assert weights[0] != ours


def test_a_run_that_is_there_is_not_made_again(tmp_path, monkeypatch, capsys, default):
    shutil.copytree(default, tmp_path / "default-seed0")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run(monkeypatch, "--only", "default", "--seeds", 0, "--out", tmp_path, "--flags", LITTLE)
    assert "default" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_labels_are_the_truth_or_the_proposers_own(monkeypatch):
    known = {"caption": "bars: red 4, blue 7, green 2", "label": "9", "hard_answer": "8"}
    known["hard_question"] = "What do red and blue add up to?"
    unknown = known | {"hard_question": "What is the weather?"}
    rows, seen = [(known, None), (unknown, None)], []
    for kind in ablations.LABELS:
        monkeypatch.setattr(ablations.mmzero, "solver_data", lambda *_: rows)

        def look(flags):
            seen.append(ablations.mmzero.solver_data(None, None))

        monkeypatch.setattr(ablations.mmzero, "main", look)
        ablations.one_run(kind, [])
    labels = [[row["label"] for row, _ in data] for data in seen]
    assert labels == [["8", "8"], ["11"]]
