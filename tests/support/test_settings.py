"""Settings, presets and the command line that is derived from them."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_models import REAL_CHAT_TEMPLATE

import mmzero
from prompts import PROMPTS
from support.checkpoint import TINY as TINY_MODEL
from support.run_folder import ROLES
from support.settings import LANGUAGES, PAPER, PRESETS, TINY, Settings, check, parse
from vlm import VLM

ROOT = Path(mmzero.__file__).parent


def test_every_field_says_in_a_line_what_it_is(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    for f in dataclasses.fields(Settings):
        assert re.search(rf"--{f.name.replace('_', '-')}\b", text), f.name
    words = " ".join(text.split())
    for name, (_, line) in PRESETS.items():
        assert f"{name}: " in words and line.split(",")[0] in words


def test_presets_change_scale_only():
    """Nothing of rewards, groups or loss differs: a preset is the method on another machine."""
    scale = set("token_budget lora lr save_steps part_proposals checkpointing slots".split())
    scale |= set("min_pixels max_pixels proposal_tokens code_tokens answer_tokens".split())
    # As the authors' scripts have it.
    scale |= {"iterations", "render_seconds"}
    for role in ROLES:
        scale |= {f"{role}_{what}" for what in ("steps", "proposals", "prompts", "update")}
    assert PRESETS["paper"][0] == PAPER == Settings() and PRESETS["tiny"][0] == TINY
    for name, (settings, _) in PRESETS.items():
        check(settings)
        changed = {
            f.name
            for f in dataclasses.fields(Settings)
            if getattr(settings, f.name) != getattr(PAPER, f.name)
        }
        assert changed <= scale, name
        if name[0].isdigit():
            assert (settings.lr == 1e-6) == (settings.lora == 0)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], TINY),
        (["--model", "Qwen2-VL-2B"], dataclasses.replace(PAPER, model="Qwen2-VL-2B")),
        (["--preset", "paper"], PAPER),
        (
            ["--preset", "1x24gb", "--model", "some/folder"],
            dataclasses.replace(PRESETS["1x24gb"][0], model="some/folder"),
        ),
        (
            ["--slots", "7", "--preset", "1x24gb", "--lora", "0"],
            dataclasses.replace(PRESETS["1x24gb"][0], slots=7, lora=0),
        ),
        (
            ["--steps", "3", "--solver-steps", "5"],
            dataclasses.replace(TINY, proposer_steps=3, coder_steps=3, solver_steps=5),
        ),
    ],
)
def test_what_is_given_wins_over_the_preset(arguments, expected):
    assert parse(arguments) == (expected, None)


@pytest.mark.parametrize(
    "arguments, gpus",
    [
        (["--dry-run"], 0),
        (["--dry-run", "4"], 4),
        (["--dry-run", "--preset", "8x80gb"], 8),
        (["--preset", "8x80gb", "--dry-run", "2"], 2),
        (["--preset", "8x80gb"], None),
    ],
)
def test_a_dry_run_is_for_the_machine_in_the_name(arguments, gpus):
    assert parse(arguments)[1] == gpus


@pytest.mark.parametrize(
    "flags",
    [
        ["--learning-rate", "1"],
        ["--steps", "three"],
        ["--prob", "3"],
        ["--seed", "x"],
        ["--preset", "9x9gb"],
    ],
)
def test_unknown_flags_and_words_for_numbers_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


def test_languages_are_those_of_the_roles():
    for language in LANGUAGES:
        check(dataclasses.replace(PAPER, language=language))
    with pytest.raises(ValueError, match=", ".join([*LANGUAGES][:-1]) + f" or {[*LANGUAGES][-1]}"):
        check(dataclasses.replace(PAPER, language="latex"))


def test_help_needs_no_network_and_no_weights():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom support import settings\n"
            "try: settings.parse(['--help'])\nfinally: assert 'torch' not in sys.modules",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "1x24gb" in done.stdout, done.stderr


def test_the_command_runs_from_a_folder(tmp_path, capsys):
    """A checkpoint as the hub has them: the chat template of a real one, in a file of its own, and
    no prompts."""
    shutil.copytree(
        TINY_MODEL,
        tmp_path / "model",
        ignore=shutil.ignore_patterns("prompts.json", "chat_template.jinja"),
    )
    (tmp_path / "model/chat_template.json").write_text(
        json.dumps({"chat_template": REAL_CHAT_TEMPLATE})
    )
    flags = [
        "--model",
        str(tmp_path / "model"),
        "--preset",
        "tiny",
        "--out",
        str(tmp_path / "run"),
        "--iterations",
        "1",
        "--steps",
        "1",
        "--proposer-prompts",
        "2",
        "--coder-proposals",
        "4",
        "--solver-proposals",
        "4",
        "--questions",
        "0",
        "--probe",
        "2",
        "--workers",
        "1",
        "--proposal-tokens",
        "24",
        "--code-tokens",
        "24",
    ]
    mmzero.main([*flags, "--dry-run"])
    assert not (tmp_path / "run").exists()
    mmzero.main(flags)
    saved = VLM.load(tmp_path / "run/iter1/solver", device="cpu")
    assert saved.prompts == PROMPTS and "You help" in saved.tokenizer.decode(
        saved.encode("hi").tokens
    )
    assert "it 1" in capsys.readouterr().out
