"""The label audit (tools/audit.py)."""

import json
import math
import random
import re
from types import SimpleNamespace

import pytest
from helpers_eval import Echo
from helpers_judge import make_judge

import eval as evaluation
from support import figures
from tools import audit


def row(caption, question, hard_answer, label, answers, code="<svg></svg>", language="svg"):
    return dict(
        caption=caption,
        hard_question=question,
        hard_answer=hard_answer,
        label=label,
        hard_answers=answers,
        code=code,
        language=language,
    )


BARS = "bars: red 4, blue 7, green 2"
TOTAL = "<svg><text>total: 3.0</text></svg>"
APPLES = 'd.text((1, 2), "5 apples")'
ROWS = [
    # The label and the Proposer are right; the label alone is; the truth of the others is unknown.
    row(BARS, "What do red and blue add up to?", "11", "11", ["11"] * 5 + ["10"] * 5),
    row(BARS, "How much taller is blue than green?", "4", "5", ["5"] * 4 + ["4"] * 3 + [None] * 3),
    row(BARS, "How much taller is blue than black?", "3", "3.0", ["3.0"] * 4 + ["1"] * 6, TOTAL),
    row("a pie", "How much is 2 + 3?", "6", "5", ["5"] * 4 + list("012345"), APPLES, "python"),
]
BLIND = [["9"] * 3, [None] * 3, ["2", "3", "3"], ["5", "5.0", "7"]]


def test_audit_by_hand():
    found = audit.audit(ROWS, BLIND)
    assert found["questions"] == 4 and found["agree_proposer"] == 0.5 and found["checkable"] == 0.5
    assert found["label_true"] == 1.0 and found["proposer_true"] == 0.5
    assert found["written"] == 0.5 and found["blind"] == 0.5  # the last two; the last two
    assert found["top_label"] == 0.5  # 5, 5 of 11, 5, 3, 5
    assert found["label_entropy"] == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    votes = [[5, 5], [4, 3, 3], [4, 6], [5, 1, 1, 1, 1, 1]]  # "5" is among 0 .. 5: five votes
    expected = sum(sum(-v / 10 * math.log(v / 10) for v in vote) for vote in votes) / 4
    assert found["vote_entropy"] == pytest.approx(expected)
    assert audit.audit(ROWS)["blind"] is None and audit.audit([])["label_true"] is None
    assert audit.audit(ROWS[2:])["label_true"] is None  # nothing that can be checked


@pytest.mark.parametrize(
    "code, language, words",
    [
        (
            '<svg><rect fill="blue" r="12"/><text x="5">a &amp; 12</text>'
            "<g><text><tspan>b</tspan></text></g></svg>",
            "svg",
            "a &amp; 12 b",
        ),
        (
            'plt.title("Sum 12")\nplt.bar(["x", "y"], [12, 3])\nd.rectangle((1, 2), "blue")',
            "python",
            "Sum 12 x y",
        ),
        ("this is no program (", "python", ""),
        ('open("12")', "python", ""),
    ],
)
def test_words_in_a_picture(code, language, words):
    assert audit.drawn_text(code, language) == words


def test_a_colour_or_a_part_of_a_number_is_not_written_down():
    drawn = '<svg><rect fill="blue"/><text>112 and 12.5</text></svg>'
    labels = ("blue", "12", "112", "12.5")
    rows = [row("c", "q", "1", label, [label], drawn) for label in labels]
    assert audit.audit(rows)["written"] == 0.5


def test_the_labels_of_an_iteration_are_audited_while_the_run_goes_on(tmp_path, monkeypatch):
    loaded, logged, asked = [], [], []
    monkeypatch.setattr(audit, "blind_answers", lambda *a, **k: asked.append((a, k)) or BLIND)
    actor = SimpleNamespace(load_state=loaded.append)
    roles = SimpleNamespace(actor=actor, weights={"solver": "weights"})
    run = SimpleNamespace(
        folder=make_run(tmp_path, {1: ROWS, 2: []}),
        settings=SimpleNamespace(seed=3, answer_tokens=64),
        log=lambda **record: logged.append(record),
    )
    for iteration in (1, 2, 3):  # there, empty, and not yet written
        audit.audit_labels(roles, run, iteration)
    about = {"kind": "audit", "iteration": 1, "phase": "solver"}
    assert logged == [about | audit.audit(ROWS, BLIND)] and loaded == ["weights"]
    (((model, rows), options),) = asked
    assert model is actor and [row["label"] for row in rows] == [row["label"] for row in ROWS]
    assert options == {"seed": 3, "max_new_tokens": 64}


def test_the_program_prints_a_column_for_each_iteration(tmp_path, capsys):
    with pytest.raises(SystemExit, match="has no iterK/solver.jsonl"):
        audit.main([str(tmp_path)])
    make_run(tmp_path, {10: ROWS[:2], 9: ROWS})
    audit.main([str(tmp_path)])
    heading, _, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert heading.split() == ["|", "|", "it", "9", "|", "it", "10", "|"]
    found = {}
    for line in lines:
        name, nine, ten = (cell.strip() for cell in line.split("|")[1:-1])
        found[name] = nine, ten
    assert found["questions"] == ("4", "2") and found["checkable"] == ("0.5", "1")
    assert found["label_true"] == ("1", "1") and found["proposer_true"] == ("0.5", "0.5")
    assert found["agree_proposer"] == ("0.5", "0.5")
    assert found["blind"] == ("–", "–")  # it was not asked without the picture


# ---- a judge


def make_run(folder, iterations):
    """A run folder with these labels; every picture is a chart of the embedded world."""
    (image, _, _), *_ = evaluation.charts(1)[0]
    for iteration, rows in iterations.items():
        (folder / f"iter{iteration}").mkdir()
        image.save(folder / f"iter{iteration}/p.png")
        rows = [row | {"picture": f"iter{iteration}/p.png"} for row in rows]
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"iter{iteration}/solver.jsonl").write_text("".join(lines))
    return folder


def agreement(out):
    """{iteration: (labels judged, % agreed, no word on)} of what was printed."""
    found = {}
    for line in out.split("\n\n")[1].splitlines()[2:]:
        if line.startswith("|"):
            it, judged, share, silent = (cell.strip() for cell in line.split("|")[1:-1])
            found[int(it)] = int(judged), float(share.split()[0]), int(silent)
    return found


FALSE = ROWS[0] | {"label": "<b>12</b>", "hard_answers": ["<b>12</b>"] * 6 + [None] * 4}


def test_the_known_truth_takes_the_judges_place(tmp_path, capsys):
    make_run(tmp_path, {1: ROWS, 2: [*ROWS[:2], FALSE, FALSE]})
    audit.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert agreement(out) == {1: (2, 100.0, 2), 2: (4, 50.0, 0)}
    low, high = figures.wilson([1, 1, 0, 0])
    assert f"50.0 ({100 * low:.1f}–{100 * high:.1f})" in out
    page = (tmp_path / "audit.html").read_text()
    assert page.count("<article>") == page.count("<img") == 2
    first, second = page.split("Iteration 2<small>")
    assert "Iteration 1<small>0 disagreements" in first and "2 disagreements, 2 shown" in second
    # What a model wrote is escaped, and the truth stands beside it.
    assert "&lt;b&gt;12&lt;/b&gt;" in second and "<b>" not in page
    assert '<dd class="said">11</dd>' in second and "4 × no answer" in second


def test_where_nothing_is_known_a_judge_is_asked_for(tmp_path, capsys):
    audit.main([str(make_run(tmp_path, {1: ROWS[2:]}))])
    assert "give --judge MODEL" in capsys.readouterr().out
    assert not (tmp_path / "audit.html").exists()


def test_a_vision_language_model_answers_for_itself(tmp_path, capsys, monkeypatch):
    asked = []

    def fake(vlm, prompts, **options):
        asked.append((prompts, options["temperature"]))
        return [[SimpleNamespace(text=text)] for text in (r"\boxed{11}", r"\boxed{4}", "?", "")]

    class Model(Echo):
        load = classmethod(lambda cls, name: cls())

    monkeypatch.setattr(audit, "generate", fake)
    monkeypatch.setattr(audit, "VLM", Model)
    monkeypatch.setattr(random.Random, "sample", lambda own, rows, count: rows[:count])
    audit.main([str(make_run(tmp_path, {1: ROWS})), "--judge", "tiny"])
    assert agreement(capsys.readouterr().out) == {1: (2, 50.0, 2)}
    ((prompts, temperature),) = asked
    assert re.fullmatch(r"(?s)You answer.*\[\d+x\d+\]What do red and blue add up to\?", prompts[0])
    assert temperature == 0 and "What do red" not in (tmp_path / "audit.html").read_text()
    assert "How much taller is blue than green?" in (tmp_path / "audit.html").read_text()


def test_a_text_model_reads_caption_and_code(tmp_path, capsys):
    judge = make_judge(tmp_path / "judge")
    run = make_run(tmp_path, {1: ROWS, 2: ROWS[:3]})
    audit.main([str(run), "--judge", judge, "--sample", "4"])
    out = capsys.readouterr().out
    kept = [json.loads(line) for line in (run / "audit.jsonl").read_text().splitlines()]
    said = {row["asked"]: row["reply"].startswith("yes") for row in kept}
    assert any("d.text((1, 2)" in text and "a pie" in text for text in said)
    of_two = [next(v for text, v in said.items() if r["hard_question"] in text) for r in ROWS[:3]]
    assert agreement(out)[2] == (3, pytest.approx(100 * sum(of_two) / 3, abs=0.05), 0)
    assert agreement(out)[1][0] == 4
    with pytest.raises(SystemExit, match="audit.py: 'nowhere' is neither a folder"):
        audit.main([str(run), "--judge", "nowhere"])


def test_blind_answers_are_asked_without_a_picture_as_labels_are(monkeypatch):
    calls = []

    def generate(vlm, prompts, **options):
        calls.append((prompts, options))
        return [[SimpleNamespace(text="\\boxed{7}"), SimpleNamespace(text="hm")] for _ in prompts]

    monkeypatch.setattr(audit, "generate", generate)
    model = SimpleNamespace(prompts={"solver": "Q: {question}"}, encode=lambda text: text)
    assert audit.blind_answers(model, ROWS[:2], n=2, seed=3) == [["7", None]] * 2
    ((prompts, options),) = calls
    assert prompts[0] == "Q: What do red and blue add up to?"
    assert (options["top_k"], options["n"], options["seed"]) == (40, 2, 3)
