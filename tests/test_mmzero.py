"""The loop on the embedded base: two steps per phase, going on, refusals, nothing to learn from."""

import dataclasses
import json
import random
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from helpers_models import make_checkpoint
from PIL import Image

import mmzero
import rewards
from render import Rendering
from support import run_folder
from support.checkpoint import TINY as TINY_MODEL
from support.run_folder import Run
from support.settings import TINY
from vlm import VLM

ROOT = Path(mmzero.__file__).parent
SMALL = replace(
    TINY,
    iterations=1,
    proposer_steps=2,
    proposer_prompts=8,
    coder_steps=2,
    coder_proposals=24,
    coder_prompts=8,
    solver_steps=2,
    solver_proposals=48,
    solver_prompts=8,
    questions=14,
    probe=16,
    workers=1,
)


# One step and few prompts: for tests that start the program many times.
LITTLE = replace(
    SMALL,
    proposer_prompts=4,
    coder_proposals=8,
    coder_prompts=4,
    solver_proposals=24,
    solver_prompts=4,
    questions=0,
    probe=8,
    render_seconds=60.0,
)


def flags(settings):
    """The command line of these settings."""
    words = []
    for name, value in dataclasses.asdict(settings).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}={one}" for one in value]
        else:
            words.append(f"--{flag}={value}")
    return words


def evolve(settings):
    return mmzero.main(flags(settings))


def metrics(folder):
    """metrics.jsonl without the clock."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    clock = re.compile("(.*_)?seconds|tokens_per_second")
    return [{k: v for k, v in line.items() if not clock.fullmatch(k)} for line in lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return evolve(replace(SMALL, out=str(tmp_path_factory.mktemp("runs") / "run")))


def test_two_steps_of_every_phase(run):
    lines = metrics(run.folder)
    steps = [(line["phase"], line["step"]) for line in lines if line["kind"] == "step"]
    assert steps == [(role, step) for role in ("proposer", "coder", "solver") for step in (1, 2)]


def test_what_is_scored_is_what_was_sampled(run):
    updated = [line for line in metrics(run.folder) if line.get("updates")]
    assert len(updated) > 3
    for line in updated:
        assert line["logp_gap"] < 1e-3 and 0 < line["grad_norm"] < float("inf")


def test_the_funnel_of_a_phases_data_narrows(run):
    funnel = {line["phase"]: line for line in metrics(run.folder) if line["kind"] == "data"}
    assert funnel["coder"]["asked"] == 24 and funnel["solver"]["asked"] == 48
    for line in funnel.values():
        assert line["asked"] >= line["valid"] >= line["rendered"] >= line["kept"]


def test_the_base_and_the_iteration_are_measured(run):
    base, trained = (line for line in metrics(run.folder) if line["kind"] == "eval")
    assert (base["iteration"], trained["iteration"]) == (0, 1)
    assert 0 < trained["sampled_low"] < trained["sampled"] < trained["sampled_high"] < 1
    assert all(0 < trained[name] <= 1 for name in ("greedy", "valid", "render"))


def test_every_role_was_trained_and_loads_in_plain_transformers(run):
    base = transformers.Qwen2VLForConditionalGeneration.from_pretrained(TINY_MODEL).state_dict()
    for role in mmzero.ROLES:
        folder = run.folder / "iter1" / role
        weights = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder).state_dict()
        assert weights.keys() == base.keys()
        assert any(not torch.equal(weights[name], base[name]) for name in base), role
        assert all(torch.isfinite(w).all() for w in weights.values())
        transformers.AutoTokenizer.from_pretrained(folder)


def rows_of(run, name):
    return run_folder.read_jsonl(run.folder / f"iter1/{name}.jsonl")


def test_the_proposers_replies_and_the_probe_are_on_disk(run):
    rows = rows_of(run, "proposer")
    assert len(rows) == 2 * 8 * 4 and {"topic", "reply", "reward", "step"} <= set(rows[0])
    assert len(rows_of(run, "probe")) == 16
    assert (run.folder / "report.html").stat().st_size > 5000


def test_the_coders_data_says_what_the_filter_kept(run):
    for row in rows_of(run, "coder"):
        assert row["kept"] == (0.25 <= row["render_rate"] <= 0.75)


def test_the_solvers_labels_are_the_majority_of_what_was_answered_before_it_learnt(run):
    rows = rows_of(run, "solver")
    data = [line for line in metrics(run.folder) if line["kind"] == "data"]
    assert len(rows) == data[-1]["kept"] > 0 and data[-1]["phase"] == "solver"
    for row in rows:
        assert (run.folder / row["picture"]).is_file()
        assert rewards.vote(row["hard_answers"])[0] == row["label"]
        assert len(row["easy_answers"]) == len(row["hard_answers"]) == SMALL.labels
        assert 0.25 <= row["consistency"] <= 0.75


save_rows = Run.save_rows


def test_a_run_that_was_stopped_ends_like_one_that_was_not(run, tmp_path, monkeypatch):
    settings = replace(SMALL, out=str(tmp_path / "run"))

    def stop_at_solver(self, iteration, name, rows):
        if name == "solver":
            raise KeyboardInterrupt
        save_rows(self, iteration, name, rows)

    with monkeypatch.context() as patch:  # stopped in phase S, after two steps were logged
        patch.setattr(Run, "save_rows", stop_at_solver)
        with pytest.raises(SystemExit, match="the same command goes on"):
            evolve(settings)
    again = evolve(settings)
    assert metrics(again.folder) == metrics(run.folder)
    for role in mmzero.ROLES:
        a, b = (r.folder / "iter1" / role / "model.safetensors" for r in (run, again))
        assert a.read_bytes() == b.read_bytes(), role


# A process that kills itself with SIGKILL at the n-th place where a run can be hurt, or at the
# first that a pattern names: a line of metrics, a file that is written but not yet there
# (torch.save and os.replace: inside a save), a picture, a checkpoint, what a role has said.
KILLER = """
import itertools, os, re, signal, sys
from pathlib import Path
import torch, mmzero, vlm
from support import run_folder
from PIL import Image
at, count = sys.argv[1], itertools.count(1)
is_pattern = not at.lstrip("-").isdigit()
def pass_by(*place):
    place = " ".join(str(word) for word in place if isinstance(word, (str, range, Path)))
    print(place, flush=True)
    if str(next(count)) == at or is_pattern and re.search(at, place):
        os.kill(os.getpid(), signal.SIGKILL)
def deadly(function):
    def wrapped(*a, **k):
        pass_by("before", function.__name__, *a)
        result = function(*a, **k)
        pass_by("after", function.__name__, *a)
        return result
    return wrapped
saves, save = itertools.count(1), torch.save
def halfway(state, path):
    # at -2: in the middle of the second state that is saved
    if next(saves) == -int(at if at == "-2" else 0):
        path.write_bytes(b"half of a state")
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, path)
torch.save, os.replace, Image.Image.save = map(deadly, (halfway, os.replace, Image.Image.save))
for kind, names in (
    (run_folder.Run, ("log", "save_rows")),
    (vlm.VLM, ("save",)),
    (mmzero.Roles, ("imagine", "draw", "judge")),
):
    for name in names:
        setattr(kind, name, deadly(getattr(kind, name)))
mmzero.main(eval(sys.argv[2]))
"""


def start(settings, at):
    return subprocess.run(
        [sys.executable, "-c", KILLER, str(at), repr(flags(settings))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


HALF_A_STATE, SECOND_PART = -2, r"after imagine range\(8, 16\)"
A_PICTURE, A_FILE = r"after save .*solver.part8_", r"before replace .*solver.part16.jsonl"


@pytest.mark.parametrize(
    "kills",
    [
        [A_PICTURE],
        pytest.param(
            [HALF_A_STATE, SECOND_PART, A_PICTURE, A_FILE, random.Random(5).randrange(2, 12)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_at_any_moment_the_same_command_ends_the_same(tmp_path, kills):
    """kill -9, again and again in one run: in a step, in a state, while data is made and inside a
    part of it, at random places."""
    sizes = dict(coder_steps=3, solver_steps=3, coder_proposals=16)
    settings = replace(LITTLE, **sizes, save_steps=1, part_proposals=8)
    whole = start(replace(settings, out=str(tmp_path / "whole")), at=0)
    assert whole.returncode == 0, whole.stderr[-3000:]
    settings, made = replace(settings, out=str(tmp_path / "killed")), []
    for at in [*kills, 10**9]:
        finished = start(settings, at)
        made += re.findall(r"after save_rows (\w+.part\d+)", finished.stdout)
        ended = (at, finished.stdout[-500:], finished.stderr[-3000:])
        assert finished.returncode == (0 if at == 10**9 else -9), ended
    # The part inside which it was killed is made again, no other.
    parts = ["coder.part0", "coder.part8", "solver.part0", "solver.part8", "solver.part16"]
    assert made == parts
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    # Checkpoints, data, pictures; and no part.
    contents = []
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        files = [path for path in folder.glob("iter*/**/*") if path.is_file()]
        contents.append({path.relative_to(folder): path.read_bytes() for path in files})
    a, b = contents
    assert a.keys() == b.keys() and not [name for name in a if a[name] != b[name]]
    assert not list((tmp_path / "killed/resume").glob("*.pt"))
    assert not list((tmp_path / "killed/resume").glob("*.new"))


def stop_after(monkeypatch, settings, step):
    """Run until the state after this step of phase P is saved."""
    save_state = Run.save_state

    def once(self, iteration, role, number, state):
        save_state(self, iteration, role, number, state)
        if number == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "save_state", once)
        evolve(settings)


def test_a_damaged_state_is_named_and_the_phase_begins_again(tmp_path, monkeypatch, capsys):
    settings = replace(
        LITTLE, coder_steps=1, solver_steps=1, save_steps=1, probe=0, out=str(tmp_path / "run")
    )
    stop_after(monkeypatch, settings, 1)
    state = tmp_path / "run/resume/1-proposer-1.0of1.pt"
    first = [line for line in metrics(tmp_path / "run") if line["kind"] == "step"]
    assert len(first) == 1
    state.write_bytes(state.read_bytes()[:5000])
    assert Run(settings).place is None
    assert "step" not in [line["kind"] for line in metrics(tmp_path / "run")]
    assert "1-proposer-1.0of1.pt cannot be used" in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_the_state_before_is_kept(tmp_path, monkeypatch):

    settings = replace(LITTLE, save_steps=1, probe=0, out=str(tmp_path / "run"))
    stop_after(monkeypatch, settings, 1)
    before = {p: p.read_bytes() for p in (tmp_path / "run/resume").iterdir()}

    def full(state, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.torch, "save", full)
    with pytest.raises(SystemExit) as stop:
        evolve(settings)
    assert "No space left" in str(stop.value) and "\n" not in str(stop.value)
    assert {p: p.read_bytes() for p in (tmp_path / "run/resume").iterdir()} == before


def test_a_finished_run_is_only_shown_again(run, capsys):
    before = (run.folder / "metrics.jsonl").read_text()
    evolve(replace(SMALL, out=str(run.folder)))
    assert (run.folder / "metrics.jsonl").read_text() == before
    assert "it 1" in capsys.readouterr().out


def test_another_configuration_is_refused_and_nothing_is_touched(run):
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit, match="another configuration.*lr"):
        evolve(replace(SMALL, out=str(run.folder), lr=2e-4))
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before


def random_model(folder, seed=0):
    """The tiny base with random weights: it plays no role at all."""
    vlm = VLM.load("tiny", device="cpu")
    torch.manual_seed(seed)
    for weight in vlm.model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    vlm.save(folder)
    return str(folder)


def test_a_model_that_can_do_nothing_trains_nothing_and_says_so(tmp_path, capsys):
    settings = replace(
        SMALL,
        model=random_model(tmp_path / "noise"),
        out=str(tmp_path / "run"),
        questions=7,
        coder_proposals=8,
        solver_proposals=8,
        probe=8,
        proposal_tokens=16,
    )
    run = evolve(settings)
    out = capsys.readouterr().out
    # Both steps of P: no valid proposal at all.
    assert out.count(" A=0 ") == 2
    assert out.count("nothing passed the filter") == 2  # C and S
    load = transformers.Qwen2VLForConditionalGeneration.from_pretrained
    base = load(settings.model).state_dict()
    for role in mmzero.ROLES:  # and the roles are what they were
        weights = load(run.folder / "iter1" / role).state_dict()
        assert all(torch.equal(weights[name], base[name]) for name in base)


def test_when_nothing_renders_the_proposer_still_learns_to_be_valid_and_the_others_wait(
    tmp_path, monkeypatch, capsys
):
    class Blind(mmzero.Renderer):
        def render(self, items, progress=False):
            return [Rendering(None, "not today", 0.0) for _ in items]

    monkeypatch.setattr(mmzero, "Renderer", Blind)
    few = dict(coder_proposals=8, solver_proposals=8, probe=8)
    run = evolve(replace(SMALL, out=str(tmp_path / "run"), questions=0, **few))
    lines = metrics(run.folder)
    steps = [line for line in lines if line["kind"] == "step"]
    assert {line["phase"] for line in steps} == {"proposer"} and all(
        line["rendered"] == 0 for line in steps
    )
    assert any(line["updates"] for line in steps)  # valid against invalid is a signal of its own
    assert capsys.readouterr().out.count("nothing passed the filter") == 2
    assert lines[-1]["render"] == 0 and lines[-1]["difficulty"] == 0


def test_phases_use_the_roles_of_section_2(monkeypatch, tmp_path):
    """P: Coder and Solver i-1. C: proposals of Proposer i, judged by Solver i-1. S: Proposer i and
    Coder i make its data."""
    seen = []
    speak = mmzero.Roles.speak

    def spy(self, role, *rest, trained=False, **sampling):
        speaker = "policy" if trained else role
        changed = set()
        for name, state in self.weights.items():
            if any(not torch.equal(a, b) for a, b in zip(state.values(), base.values())):
                changed.add(name)
        seen.append((speaker, role, frozenset(changed)))
        replies = speak(self, role, *rest, trained=trained, **sampling)
        # The actor really spoke with these weights.
        weights = self.policy.weights() if trained else self.weights[role]
        assert all(torch.equal(w, weights[name]) for name, w in self.actor.weights().items())
        return replies

    base = VLM.load("tiny", device="cpu", dtype="float32").state()
    monkeypatch.setattr(mmzero.Roles, "speak", spy)
    load = mmzero.Roles.__init__

    def separate(self, *arguments):
        # Three copies, so that roles can be told apart from the start.
        load(self, *arguments)
        self.weights = {role: dict(state) for role, state in self.weights.items()}

    monkeypatch.setattr(mmzero.Roles, "__init__", separate)
    one = dict(proposer_steps=1, coder_steps=1, solver_steps=1)
    evolve(replace(SMALL, out=str(tmp_path / "run"), questions=0, probe=0, **one))
    none, p, c = frozenset(), frozenset({"proposer"}), frozenset({"proposer", "coder"})
    phase_p = [("policy", "proposer", none), ("coder", "coder", none), ("solver", "solver", none)]
    phase_c = [("proposer", "proposer", p), ("coder", "coder", p)]
    phase_c += [("policy", "coder", p), ("solver", "solver", p)]
    phase_s = [("proposer", "proposer", c), ("coder", "coder", c), ("solver", "solver", c)]
    phase_s += [("policy", "solver", c)]
    assert seen == phase_p + phase_c + phase_s


def test_choices_that_stand_in_a_question_decide_what_an_answer_means():
    """One vote for a letter, the letter with its text, and the text alone."""
    said = [["4", "(B) 4", "B"], ["A", "seven", "9"]]
    roles = object.__new__(mmzero.Roles)
    roles.actor, roles.shown = SimpleNamespace(cut=lambda image: None), frozenset()
    roles.solver_prompt = lambda picture, question: question
    roles.speak = lambda *_: [
        [SimpleNamespace(text=rf"\boxed{{{answer}}}") for answer in group] for group in said
    ]
    questions = ("How many? (A) 3 (B) 4", "B", "How many?\n(A) seven\n(B) eight", "A")
    draft = mmzero.Draft(rewards.Proposal("", "", *questions), "svg", image=object())
    roles.judge([draft], 3, 0)
    assert draft.judged == rewards.Judged(1.0, consistency=2 / 3)
    assert (draft.row()["label"], draft.hard_answers[2]) == ("(A) seven", "9")


def test_what_is_asked_of_the_role_in_training_is_not_dropped(tmp_path):
    roles = mmzero.Roles(SMALL, dict.fromkeys(mmzero.ROLES))
    prompts = [roles.proposer_prompt(roles.topics[0])]
    for trained in (True, False):
        (replies,) = roles.speak("proposer", prompts, 6, 1, trained=trained, temperature=0.0)
        assert len({reply.text for reply in replies}) == 1
        (replies,) = roles.speak("proposer", prompts, 6, 1, trained=trained)
        assert len({reply.text for reply in replies}) > 1


def test_a_checkpoints_own_placeholders_are_no_answers_and_texts_stay_on_the_draft(
    tmp_path, monkeypatch
):
    folder = tmp_path / "mine"
    VLM.load("tiny", device="cpu").save(folder)
    prompts = json.loads((folder / "prompts.json").read_text())
    prompts["solver"] += " [the colour you see]"
    (folder / "prompts.json").write_text(json.dumps(prompts))
    roles = mmzero.Roles(replace(SMALL, model=str(folder)), dict.fromkeys(mmzero.ROLES))
    texts = [r"\boxed{The colour you see}", r"\boxed{7}"]
    said = [SimpleNamespace(text=text) for text in texts]
    monkeypatch.setattr(roles, "speak", lambda role, prompts, n, seed: [said for _ in prompts])
    proposal = rewards.Proposal("map", "a", "b?", "7", "c?", "8")
    draft = mmzero.Draft(proposal, "svg", image=Image.new("RGB", (40, 40)))
    roles.judge([draft], 2, 0)
    assert draft.judgements == texts + texts
    assert draft.easy_answers == draft.hard_answers == [None, "7"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model", "Qwen9-VL"], "neither a folder nor a known model"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--language", "latex"], "svg, python or mixed"),
        (["--solver-rollouts", "1"], "2 or more"),
        (["--start-coder", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--solver-steps", "-1"], "0 or more"),
        (["--lr", "-1"], "0 or more"),
        (["--lr", "nan"], "0 or more"),
        (["--codes", "0"], "1 or more"),
        (["--clip-dual", "0.5"], "above 1"),
        (["--out", "/proc/nothing"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        mmzero.main(flags)
    assert message in str(stop.value) and "\n" not in str(stop.value)


def test_python_that_cannot_be_confined_is_refused_at_the_start(tmp_path, monkeypatch):
    class Weak(mmzero.Renderer):
        def __init__(self, *args):
            super().__init__(*args)
            self.refusal = "Python programs could read files on this machine"

    monkeypatch.setattr(mmzero, "Renderer", Weak)
    with pytest.raises(SystemExit, match="could read files"):
        evolve(replace(SMALL, language="mixed", out=str(tmp_path / "run")))
    # SVG needs no such lock.
    monkeypatch.setattr(mmzero.Roles, "imagine", lambda *_, **__: [("topic", "", [])])
    evolve(replace(SMALL, iterations=0, questions=0, out=str(tmp_path / "svg")))


def test_a_checkpoint_that_is_no_vision_language_model_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    finished = subprocess.run(
        [sys.executable, ROOT / "mmzero.py", "--model", tmp_path, "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1
    assert (
        finished.stderr.count("\n") == 1
        and "'llama'" in finished.stderr
        and "Qwen2-VL" in finished.stderr
    )


def test_replies_that_cannot_be_read_are_counted_and_kept(tmp_path, capsys):
    """By role in the base's record and in each step's; above 30 % with a warning and an example."""
    noise = random_model(tmp_path / "noise")
    few = dict(questions=0, coder_proposals=8, solver_proposals=8, probe=8, proposal_tokens=16)
    run = evolve(replace(SMALL, model=noise, out=str(tmp_path / "run"), **few))
    lines, out = metrics(run.folder), capsys.readouterr().out
    base = next(line for line in lines if line["kind"] == "eval")
    assert base["unread_by_role"] == {"proposer": 1.0, "coder": 0.0, "solver": 0.0}
    assert {line["unread"] for line in lines if line["kind"] == "step"} == {1.0}
    assert out.count("100% of the proposer's replies cannot be read") == 1
    assert "phase S will starve" in out and "unread=1.0 " in out
    example = (run.folder / "iter0/unread-proposer.txt").read_text()
    assert example == run_folder.read_jsonl(run.folder / "iter0/probe.jsonl")[0]["reply"]


def test_a_solver_without_the_form_is_told_once(tmp_path, monkeypatch, capsys):
    reward = rewards.solver_reward
    monkeypatch.setattr(
        rewards,
        "solver_reward",
        lambda *args, **more: reward(*args, **more) | {"format": 0.0, "reward": 0.5},
    )
    evolve(replace(SMALL, out=str(tmp_path / "run"), questions=0, probe=0))
    assert capsys.readouterr().out.count("no reply of the Solver has the form") == 1


def test_a_checkpoint_brings_its_own_topics(tmp_path):
    folder = tmp_path / "mine"
    VLM.load("tiny", device="cpu").save(folder)
    prompts = json.loads((folder / "prompts.json").read_text())
    (folder / "prompts.json").write_text(json.dumps(prompts | {"topics": ["knots", "maps"]}))
    settings = replace(SMALL, model=str(folder), iterations=0, questions=0, probe=3)
    run = evolve(replace(settings, out=str(tmp_path / "run")))
    rows = run_folder.read_jsonl(run.folder / "iter0/probe.jsonl")
    assert [row["topic"] for row in rows] == ["knots", "maps", "knots"]
    (folder / "prompts.json").write_text(json.dumps(prompts | {"topics": "knots"}))
    with pytest.raises(SystemExit, match="a list of one or more texts"):
        evolve(replace(settings, out=str(tmp_path / "other")))


# ---- experiments: switches, roles that are never trained, other beginnings


def test_switches_are_said_first_stand_in_the_config_and_reach_the_rewards(tmp_path, capsys):
    off = ("cap", "diversity", "type", "difficulty", "easy-hard", "filters")
    done = evolve(replace(LITTLE, out=str(tmp_path / "run"), without=off, probe=0))
    first = capsys.readouterr().out.splitlines()[0]
    assert all(f"without {name}: " in first for name in off)
    assert json.loads((done.folder / "config.json").read_text())["settings"]["without"] == [*off]

    # No penalty was taken, and nothing is paid but uncapped solvability.
    for row in run_folder.read_jsonl(done.folder / "iter1/proposer.jsonl"):
        if row["valid"]:
            assert row["easy_hard"] == row["type"] == row["diversity"] == 0
            expected = row["rendered"] * row["solvability"]
            assert row["reward"] == pytest.approx(expected, abs=1e-9)
    steps = [line for line in metrics(done.folder) if line["kind"] == "step"]
    for line in steps:
        if line["phase"] == "coder" and line["rendered"] == 1:
            assert line["reward"] == pytest.approx(1 + line["solvability"], abs=1e-9)
    funnel = {line["phase"]: line for line in metrics(done.folder) if line["kind"] == "data"}
    assert funnel["coder"]["kept"] == funnel["coder"]["valid"]
    labelled = sum(c > 0 for c in funnel["solver"]["hard_consistency"])
    assert funnel["solver"]["kept"] == labelled > 0

    # The same folder does not go on with other switches.
    with pytest.raises(SystemExit, match="another configuration.*without"):
        evolve(replace(LITTLE, out=str(tmp_path / "run"), probe=0))


@pytest.mark.parametrize(
    "role",
    [
        "coder",
        pytest.param("proposer", marks=pytest.mark.slow),
        pytest.param("solver", marks=pytest.mark.slow),
    ],
)
def test_a_role_that_is_never_trained_stays_the_base(role, tmp_path, capsys):
    settings = replace(LITTLE, out=str(tmp_path / "run"), probe=0, **{f"{role}_steps": 0})
    done = evolve(settings)
    assert f"the {role} is never trained" in capsys.readouterr().out.splitlines()[0]
    phases = {line["phase"] for line in metrics(done.folder) if line["kind"] in ("step", "data")}
    assert phases == set(mmzero.ROLES) - {role}
    saved = {path.name for path in done.folder.glob("iter*/*") if path.is_dir()} - {"pictures"}
    assert saved == phases
    assert Run(settings).newest(role) is None


def test_a_role_starts_from_a_folder_and_gives_its_figures_again(run, tmp_path, capsys):
    start = str(run.folder / "iter1/solver")
    only = dict(iterations=0, start_solver=start, out=str(tmp_path / "run"))
    again = evolve(replace(SMALL, **only))
    assert f"the solver starts from {start}" in capsys.readouterr().out.splitlines()[0]
    before, after = run.evaluations()[-1], again.evaluations()[-1]
    for name in ("sampled", "greedy", "easy"):
        assert after[name] == before[name]

    # The others are the base: the probe's proposals are those of the base, drawn by its Coder.
    base = [row["reply"] for row in run_folder.read_jsonl(run.folder / "iter0/probe.jsonl")]
    seed = [row["reply"] for row in run_folder.read_jsonl(again.folder / "iter0/probe.jsonl")]
    assert seed == base


@pytest.mark.parametrize("family, reason", [("qwen2_vl", "shape"), ("qwen3_vl", "family")])
def test_a_start_of_another_kind_is_refused_in_one_line(family, reason, tmp_path):
    other = str(make_checkpoint(tmp_path / "other", family, layers=4))
    with pytest.raises(SystemExit, match=f"another .*{reason}") as stop:
        evolve(replace(LITTLE, out=str(tmp_path / "run"), start_coder=other))
    assert "\n" not in str(stop.value)


def test_networks_are_made_without_a_warning_of_what_will_go():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        _, policy = mmzero.load_networks(VLM.load, replace(LITTLE, checkpointing=True))
    assert policy.model.model.language_model.gradient_checkpointing
