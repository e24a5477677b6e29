"""bench/proposer.py: its tables from made-up runs, and the flags of the runs that it makes."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import eval
from support.settings import check, parse

ROOT = Path(eval.__file__).parent
spec = importlib.util.spec_from_file_location("proposer_bench", ROOT / "bench/proposer.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


def write(folder, *difficulties):
    """The evaluations of a run."""
    folder.mkdir(parents=True)
    lines = []
    for k, d in enumerate(difficulties):
        row = {"kind": "eval", "iteration": k, "difficulty": d}
        lines.append(json.dumps(row | {"solvability": 0.5, "type_entropy": 0.25}) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_tables(tmp_path, monkeypatch, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    write(run, 0.3, 0.2, 0.1)
    (run / "iter2").mkdir()
    rows = []
    for question, d, valid in (
        *[("How tall is red?", 0.1, 1)] * 3,
        *[("How tall is blue?", 0.3, 1)] * 2,
        ("Which?", 0.5, 1),
        ("How tall is red?", 0.5, 0),
    ):
        reply = f"<hard_question>{question}</hard_question>"
        rows.append({"reply": reply, "valid": valid, "rendered": valid, "difficulty": d})
    (run / "iter2/proposer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, (name, flags) in enumerate(bench.plan(run, 2).items()):
        write(out / name, *[number / 100] * (int(flags[flags.index("--iterations") + 1]) + 1))
    monkeypatch.setattr(sys, "argv", ["proposer.py", str(run), "--out", str(out)])
    # All of them are there: nothing is run.
    monkeypatch.setattr(bench.subprocess, "run", None)
    bench.main()
    printed = [line.strip("| ").split("|") for line in capsys.readouterr().out.splitlines()]
    cells = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in printed}
    assert cells["Proposer 1"] == ["0.03", "0.04", "0.05"]
    assert cells["solver-frozen, iteration 2"] == ["0.11", "0.50", "0.25"]
    # Colours do not count, nor what is asked once, nor what is no proposal.
    assert cells["How tall is COLOUR?"] == ["5", "0.18"] and "Which?" not in cells
    assert cells["all"] == ["6", "0.23"]


def test_its_runs_are_what_their_names_say(tmp_path):
    runs = bench.plan(tmp_path, 3)
    settings = {name: parse(flags)[0] for name, flags in runs.items()}
    for one in settings.values():
        check(one)
    both = settings["p0-s3"]
    assert both.start_proposer == "" and both.start_solver == str(tmp_path / "iter3/solver")
    assert both.iterations == 0 and len(settings) == 12
    more, less = settings["more-steps"], settings["more-steps-no-diversity"]
    assert (more.proposer_steps, more.coder_steps, more.solver_steps) == (24, 0, 0)
    assert less.without == ("diversity",) and more.without == ()


def test_a_folder_without_iterations_is_one_line(tmp_path, monkeypatch):
    write(tmp_path / "run", 0.3)
    monkeypatch.setattr(sys, "argv", ["proposer.py", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="give the --out of one"):
        bench.main()
