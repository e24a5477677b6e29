"""The README's commands, flags, files and names exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def test_the_first_two_commands_are_single_lines_with_their_own_set_up():
    for command in COMMANDS[:2]:
        assert "libcairo2" in command and "venv" in command and "requirements.txt" in command
    assert COMMANDS[0].endswith("python mmzero.py") and COMMANDS[1].endswith("python -m pytest")


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(r"python (\w|/)+\.py", c)])
def test_every_flag_of_a_command_is_known(command):
    script, rest = re.search(r"python ([\w/]+\.py)(.*?)(?:#.*)?$", command).groups()
    flags = re.findall(r"(?<!\S)--?[a-z][\w-]*", rest)
    known = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(re.search(rf"(?<![\w-]){flag}(?![\w-])", known) for flag in flags), (flags, script)


def test_every_file_it_names_is_there():
    made_by_a_run = {
        "config.json",
        "metrics.jsonl",
        "report.html",
        "picture.svg",
        "picture.png",
        "runs/eval/MODEL/SET.jsonl",
    }
    names = (
        set(re.findall(r"`([\w./-]+\.(?:py|md|txt|json|jsonl|html|png))`", README)) - made_by_a_run
    )
    names |= set(re.findall(r"!\[.*?\]\((.*?)\)", README))
    assert names and not [name for name in names if not (ROOT / name).exists()]


def test_every_name_in_the_paper_table_exists():
    for file, names in re.findall(r"`([\w/]+)\.py`: ((?:`\w+`(?:, )?)+)", README):
        source = (ROOT / f"{file}.py").read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), (file, name)


def test_every_logged_figure_is_explained(tmp_path):
    """What a step logs (grpo's statistics, the rewards' parts) stands in the README."""
    import inspect

    import grpo

    logged = set(re.findall(r'"(\w+)"', inspect.getsource(grpo.summary).split("names = (")[1]))
    logged |= {
        "reward",
        "valid",
        "rendered",
        "solvability",
        "difficulty",
        "easy_hard",
        "type",
        "diversity",
        "accuracy",
        "format",
    }
    aliases = {"grad_norm": "norm", "solvability": "solvable", "loss": "reward"}
    missing = [name for name in logged if not re.search(rf"\b{aliases.get(name, name)}\b", README)]
    assert not missing


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z]+@", README)
