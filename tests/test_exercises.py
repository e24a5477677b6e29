"""docs/exercises.py: nothing is done in our code, all in a solved copy, nothing in a wrong one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import eval

ROOT = Path(eval.__file__).parent

# Exercise -> [(file, old text, new text), ...]
SOLVED = {
    1: [("rewards.py", "min(s_j, rules.cap)", "s_j")],
    2: [("grpo.py", "(rewards - mean) / (std + eps)", "rewards - mean")],
    3: [
        ("rewards.py", '"map", "table", "other")', '"map", "table", "clock", "other")'),
        ("rewards.py", '"table": "table, grid",', '"table": "table, grid", "clock": "clock",'),
        ("prompts.py", "  words or symbols), other (", "  words or symbols), clock, other ("),
    ],
    4: [
        (
            "rewards.py",
            '    return {"reward": reward, "rendered": 1.0,',
            "    long = min(0.1 * max(0, len(code) - 250) / 100, 0.3)\n"
            '    return {"reward": reward - long, "length": long, "rendered": 1.0,',
        )
    ],
}
WRONG = {
    # No picture's s counts at all; the mean is gone as well; words that hide older types; no bound.
    1: [("rewards.py", "min(s_j, rules.cap)", "rules.cap")],
    2: [("grpo.py", "(rewards - mean) / (std + eps)", "rewards")],
    3: [
        *SOLVED[3][:1],
        ("rewards.py", '"diagram": "flow', '"clock": "clock, a ", "diagram": "flow'),
    ],
    4: [(*SOLVED[4][0][:2], SOLVED[4][0][2].replace("min(", "(").replace(", 0.3)", ")"))],
}


@pytest.fixture
def copy(tmp_path):
    for name in ("docs", "support"):
        leave = shutil.ignore_patterns("*.png", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=leave)
    for name in ("grpo.py", "prompts.py", "rewards.py", "vlm.py", "tiny/model"):
        target = tmp_path / name
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target)
        else:
            shutil.copy(ROOT / name, target)
    return tmp_path


def change(copy, changes):
    for name, old, new in changes:
        text = (copy / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, (name, old)
        (copy / name).write_text(text.replace(old, new), encoding="utf-8")


def topics(copy, names):
    folder = copy / "runs/my-topics"
    shutil.copytree(copy / "tiny/model", folder)
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    (folder / "prompts.json").write_text(json.dumps(prompts | {"topics": names}))


def check(copy, *numbers):
    """-> exit code, lines"""
    command = [sys.executable, "docs/exercises.py", *map(str, numbers)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines()


def test_on_the_code_as_it_is_none_is_done(copy):
    code, lines = check(copy)
    assert code == 1 and len(lines) == 5 and all(": not yet: " in line for line in lines)


def test_on_a_solved_copy_all_are_done(copy):
    for changes in SOLVED.values():
        change(copy, changes)
    topics(copy, ["knots", "bridges", "clocks"])
    code, lines = check(copy)
    assert code == 0 and all(line.endswith(": done") for line in lines), lines
    # And one of them alone.
    assert check(copy, 2) == (0, ["2 Break the advantage: done"])


def test_plausible_but_wrong_is_not_done(copy):
    for changes in WRONG.values():
        change(copy, changes)
    topics(copy, ["knots", "knots", "knots"])
    code, lines = check(copy)
    assert code == 1 and all(": not yet: " in line for line in lines), lines


def test_an_exercise_that_is_not_there_is_one_line(copy):
    command = [sys.executable, "docs/exercises.py", "6"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("exercises 1 to 5")
