"""Held-out accuracy, how sure one can be, and the command line (eval.py)."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from helpers_eval import Echo
from PIL import Image

import eval as evaluation
import mmzero
from prompts import fill
from vlm import VLM

ROOT = Path(__file__).resolve().parent.parent
PICTURE = Image.new("RGB", (8, 8), "white")


def replies(monkeypatch, sampled, greedy):
    """Make `generate` answer with these boxes (None: nothing readable). -> the calls it gets"""
    calls = []

    def fake(vlm, prompts, n=1, temperature=1.0, **options):
        calls.append(dict(options, prompts=prompts, n=n, temperature=temperature))
        groups = [[a] for a in greedy] if temperature == 0 else sampled
        return [
            [SimpleNamespace(text="hm" if a is None else f"so \\boxed{{{a}}}") for a in group]
            for group in groups
        ]

    monkeypatch.setattr(evaluation, "generate", fake)
    return calls


def test_evaluate_counts_by_hand(monkeypatch):
    questions = [(PICTURE, "How many?", "3"), (PICTURE, "Which?", "B"), (PICTURE, "Sum?", "12")]
    sampled = [
        ["4", "3", "3", None],  # 2 of 4, majority right
        ["B", "C", "C", "C"],  # 1 of 4, majority wrong
        [None, None, None, None],  # 0 of 4: no answer at all is wrong, not left out
    ]
    calls = replies(monkeypatch, sampled, ["3", "B", None])
    result = evaluation.evaluate(Echo(), questions, n=4, seed=5)
    assert result["per_question"] == {
        "sampled": [0.5, 0.25, 0.0],
        "majority": [1.0, 0.0, 0.0],
        "greedy": [1.0, 1.0, 0.0],
    }
    assert result["sampled"] == pytest.approx(0.25)
    assert result["majority"] == pytest.approx(1 / 3) and result["greedy"] == pytest.approx(2 / 3)
    assert result["unread"] == pytest.approx(5 / 12)
    assert (result["questions"], result["n"]) == (3, 4)
    assert result["sampled_low"] <= 0.25 <= result["sampled_high"]
    # asked as in training: the solver's own prompt, T = 1 without top-p / top-k, and once greedily
    assert calls[0]["prompts"][0] == "[8x8]Look. How many? Put it in \\boxed{}."
    assert [(c["n"], c["temperature"], c["seed"]) for c in calls] == [(4, 1.0, 5), (1, 0.0, 5)]
    assert all(c.get("top_p", 1.0) == 1.0 and c.get("top_k", 0) == 0 for c in calls)


def test_what_a_checkpoints_own_prompt_shows_is_no_answer(monkeypatch):
    vlm, shown = Echo(), "the colour you see"
    vlm.prompts = {"solver": f"{{question}} [{shown}]"}
    replies(monkeypatch, [[shown, "red"]], [shown])
    result = evaluation.evaluate(vlm, [(PICTURE, "Which?", shown)], n=2)
    assert (result["unread"], result["sampled"], result["greedy"]) == (0.5, 0.0, 0.0)


def test_evaluate_refuses_nothing():
    with pytest.raises(ValueError, match="questions"):
        evaluation.evaluate(Echo(), [])


def answers_of(vlm, questions):
    prompts = [
        vlm.encode(fill(vlm.prompts["solver"], question=text), [picture])
        for picture, text, _ in questions
    ]
    replies = evaluation.generate(vlm, prompts, max_new_tokens=64, temperature=0.0)
    return [reply.text for (reply,) in replies]


def plain_answer(folder, question, solver_prompt):
    """What the library alone makes of it: loaded, fed and decoded without any code of ours."""
    picture, text, _ = question
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # The slow image processor needs no torchvision.
    slow = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl
    pictures = slow.Qwen2VLImageProcessorPil.from_pretrained(folder)
    seen = pictures(images=[picture], return_tensors="pt")

    content = [{"type": "image"}, {"type": "text", "text": fill(solver_prompt, question=text)}]
    turns = [{"role": "user", "content": content}]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    pad, count = "<|image_pad|>", int(seen["image_grid_thw"].prod() // 4)
    ids = tokenizer(chat.replace(pad, pad * count), add_special_tokens=False, return_tensors="pt")
    image = (ids["input_ids"] == model.config.image_token_id).int()
    limits = {"do_sample": False, "max_new_tokens": 64}
    with torch.no_grad():
        made = model.generate(**ids, **seen, mm_token_type_ids=image, **limits)
    return tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_trained_checkpoint_answers_the_same_in_plain_transformers(tmp_path):
    """A step of every role by the loop, at a step size that shows."""
    settings = "--iterations 1 --steps 1 --questions 0 --probe 0 --workers 1 --lr 3e-3 --codes 1"
    settings += " --proposer-prompts 2 --proposer-rollouts 2 --coder-proposals 4"
    settings += " --solver-proposals 32 --solver-prompts 8 --labels 8"
    mmzero.main([*settings.split(), "--out", str(tmp_path)])
    folder = tmp_path / "iter1/solver"
    ours, base = VLM.load(folder, device="cpu"), VLM.load("tiny", device="cpu")
    moved = max(
        float((a - b).detach().abs().max())
        for a, b in zip(ours.model.parameters(), base.model.parameters())
    )
    assert moved > 1e-3
    questions, _ = evaluation.charts(6, seed=4)
    answers = answers_of(ours, questions)
    assert answers != answers_of(base, questions)
    for question, answer in zip(questions, answers):
        assert plain_answer(folder, question, ours.prompts["solver"]) == answer


# ---- command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["-n", "0"],
        ["--questions", "0"],
        ["--seed", "-1"],
        ["--quest", "3"],
        ["--compare", "tiny"],
        ["--max-new-tokens", "0"],
        ["--png", "x.png"],
    ],
)
def test_nonsense_flags_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation.main(arguments)
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--bench", "missing.jsonl"], "no benchmark missing.jsonl"),
        (["--report", "missing"], "missing is not a run folder"),
        (["--rescore"], "tiny/charts.jsonl is missing or not complete"),
        (["--model", "nowhere"], "'nowhere' is neither a folder"),
    ],
)
def test_bad_paths_give_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        evaluation.main(arguments)
    assert (
        str(stop.value.code).startswith("eval.py: ")
        and message in stop.value.code
        and "\n" not in stop.value.code
    )


def test_command_line_on_the_shipped_base(tmp_path):
    """The real thing, small: 6 charts, 1 sample."""
    command = [sys.executable, "eval.py", "--questions", "6", "-n", "1", "--out", tmp_path]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    figure = r"\d+\.\d \(\d+\.\d–\d+\.\d\)"
    assert re.search(rf"\| charts +\| +tiny \| +{figure} \| .* \| +6 \|", done.stdout)


def test_charts_are_the_same_for_everybody_and_drawn():
    questions, types = evaluation.charts(6, seed=3)
    again, _ = evaluation.charts(6, seed=3)
    assert [q[1:] for q in questions] == [q[1:] for q in again]
    assert len(questions) == len(types) == 6
    assert all(a[0].tobytes() == b[0].tobytes() for a, b in zip(questions, again))
    assert all(len(picture.getcolors(1 << 16)) > 1 for picture, _, _ in questions)


def imports_of(path):
    """-> (modules of ours that a file imports when it is loaded, those it imports in functions)"""
    tree, found = ast.parse(path.read_text()), []
    # What only the program does, if the file is called as one, is no import of the module.
    tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if (ROOT / f"{name.replace('.', '/')}.py").is_file():
                found.append((name, id(node) in at_once))
    return {name for name, now in found if now}, {name for name, now in found if not now}


def test_arrows_of_import_run_one_way():
    """Support imports nothing above it, the top floor no tools but in its two programs' `main`."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("support/*.py"), *ROOT.glob("tools/*.py")]
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    arrows = {}
    for name, path in files.items():
        now, later = imports_of(path)
        arrows[name] = now | later
        if name.startswith("support"):
            assert all(other.startswith("support.") for other in arrows[name]), name
        elif not name.startswith("tools"):
            tools = later if name in ("mmzero", "eval") else set()
            assert {other for other in arrows[name] if other.startswith("tools.")} <= tools, name
    # The charts of eval.py, whose `main` goes on in compare.py.
    arrows["tools.compare"].remove("eval")
    list(graphlib.TopologicalSorter(arrows).static_order())  # or a CycleError that names them
