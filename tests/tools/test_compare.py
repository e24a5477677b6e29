"""Asking once, keeping, going on, judging, comparing (tools/compare.py), as eval.py calls it."""

import json
import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_eval import Echo, png, write_bench

import eval as evaluation
from tools import compare
from vlm import VLM

# ---- figures -------------------------------------------------------------------------------------


def row_of(replies, greedy):
    """A row as it is kept, of a question whose answer is 1."""
    question = dict(text="q", answers=["1"], choices=[], tolerance=0, decimals=None)
    return question | {"replies": replies, "greedy": [greedy]}


def kept(hits):
    """Rows as they are kept, one reply a question, right or wrong as `hits` says."""
    reply = {True: r"\boxed{1}", False: r"\boxed{2}"}
    return [row_of([reply[hit]], reply[hit]) for hit in hits]


def test_the_mean_counts_every_set_the_same():
    small = compare.grade(kept([True] * 24 + [False] * 8))
    large = compare.grade(kept([False] * 300 + [True] * 100))
    average = compare.mean({"small": small, "large": large})
    assert average["sampled"] == average["greedy"] == pytest.approx(0.5)
    assert average["questions"] == 432
    # The variance of the mean of two independent means is a quarter of the sum of theirs.
    spread = math.sqrt(0.75 * 0.25 / 32 + 0.25 * 0.75 / 400) / 2
    half = (average["sampled_high"] - average["sampled_low"]) / 2
    assert half == pytest.approx(1.96 * spread, rel=0.1)
    alone = compare.mean({"small": small})
    assert alone == pytest.approx({key: small[key] for key in alone})
    perfect = compare.mean({i: compare.grade(kept([True] * 20)) for i in "abcd"})
    assert perfect["greedy_low"] < 0.95 and perfect["greedy_high"] == 1 == perfect["greedy"]


def test_mmmu_pro_counts_once():
    """By hand: two sets beside the three of MMMU-Pro are three figures."""
    hits = {"MMSI": 1, "MMMU": 0, "mmmu_pro_4_options": 1, "mmmu-pro-vision": 0}
    hits |= {"mmmu_pro_10options": 1}
    found = {name: compare.grade(kept([bool(hit)] * 10)) for name, hit in hits.items()}
    assert compare.mean(found)["sampled"] == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_compare_is_paired():
    # b is a, shifted down by 0.1 on every question: hard questions differ wildly, the difference
    # not at all.
    accuracy = np.linspace(0.1, 1.0, 40)

    def result(values):
        hits = [float(value > 0.5) for value in values]
        figures = {"sampled": values.mean(), "majority": np.mean(hits), "greedy": np.mean(hits)}
        each = {"sampled": list(values), "majority": hits, "greedy": hits}
        return figures | {"per_question": each}

    a, b = result(accuracy), result(accuracy - 0.1)
    found = compare.gains(a, b)
    assert found["sampled_gain"] == pytest.approx(0.1)
    # Two questions of 42 are of no model: their variance is 2 / 42, and the others have none.
    half = (found["sampled_gain_high"] - found["sampled_gain_low"]) / 2
    assert half == pytest.approx(1.96 * math.sqrt(2 / 42) / math.sqrt(42), rel=0.1)
    assert found["sampled_gain_low"] > 0
    back = compare.gains(b, a)
    assert back["greedy_gain_low"] == pytest.approx(-found["greedy_gain_high"])
    with pytest.raises(ValueError, match="same questions: 40 and 7"):
        compare.gains(a, result(accuracy[:7]))


def test_the_majority_counts_choices():
    """B, "B. blue" and blue are three votes of five, and the letters of two choices are one."""
    question = dict(text="q", choices=["red", "blue", "green"], tolerance=0, decimals=None)
    votes = ["red", "A", "B", "B. blue", "blue"]
    rows = [question | {"answers": ["B"], "replies": [rf"\boxed{{{vote}}}" for vote in votes]}]
    assert compare.grade(rows)["majority"] == 1
    both = ["A, C", "green and red", "CA", "B", "blue"]
    rows[0] |= {"answers": ["A, C"], "replies": [rf"\boxed{{{vote}}}" for vote in both]}
    assert compare.grade(rows)["majority"] == 1


def test_tables_have_100_columns_whatever_their_names_are():
    result = compare.grade([row_of([r"\boxed{1}"] * 8, r"\boxed{1}")] * 100, accepted=set())
    result |= compare.gains(result, result) | {"by_rule": 12_345, "questions": 10_000}
    names = ["tiny", "runs/mine/iter1/solver", "/a/very/long/path/to/runs/of/mine/iter3"]
    benches = ["charts", "mmmu_pro_4_options", "MMMU/MMMU_Pro:standard (4 options)"]
    found = {(bench, model): result for bench in benches for model in names}
    lines = compare.overview(found, names[2]).splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) > 20
    for text in ("overruled", "majority minus", "iter1/solver", "of/mine/iter3", "(4 options)"):
        assert any(text in line for line in lines)
    # Every table says of what it is.
    assert all(line.startswith("| ") for line in lines if line and not line.startswith("|:"))
    assert sum(line.startswith("| set ") and " model " in line for line in lines) == 4


# ---- asking, keeping, going on, scoring again ----------------------------------------------------


class Models(Echo):
    """`VLM` with models that know the first so-many questions."""

    knows = {"good": 100, "bad": 0, "half": 3}

    def __init__(self, name):
        self.name = name

    load = classmethod(lambda cls, name: cls.loads.append(name) or cls(name))


@pytest.fixture
def models(monkeypatch):
    """-> the list of what is asked, call by call."""
    Models.loads, asked = [], []

    def fake(vlm, prompts, n=1, temperature=1.0, top_p=1.0, **options):
        given = dict(n=n, temperature=temperature, top_p=top_p, prompts=prompts)
        asked.append(options | given | {"model": vlm.name})
        groups = []
        for number, prompt in zip(options["numbers"], prompts, strict=True):
            known = int(re.search(r"q(\d+)", prompt)[1]) < Models.knows[vlm.name]
            answer = "1" if known else "wrong"
            luck = random.Random(f"{options['seed']} {temperature} {number}")
            texts = [f"{luck.random()} \\boxed{{{answer}}}" for _ in range(n)]
            groups.append([SimpleNamespace(text=text) for text in texts])
        return groups

    monkeypatch.setattr(compare, "VLM", Models)
    monkeypatch.setattr(compare, "generate", fake)
    monkeypatch.setattr(compare, "fingerprint", lambda name: f"weights of {name}")
    return asked


def six(folder, name="bench.jsonl", **more):
    """A set of six questions."""
    rows = [{"image": "a.png", "question": f"q{i}", "answer": "1"} | more for i in range(6)]
    return str(write_bench(folder, *rows).rename(folder / name))


def run(*arguments):
    evaluation.main([str(argument) for argument in arguments])


def test_main_compares_models_on_one_set(models, capsys, tmp_path):
    bench, place = six(tmp_path), tmp_path / "out"
    command = ["--model", "good", "--compare", "bad", "half", "--bench", bench]
    command += ["--questions", "5", "--out", place]
    run(*command)
    out = capsys.readouterr().out

    # As the authors ask: one sample at 0.6 / 0.95, with a system message. One model at a time.
    figures = ("model", "n", "temperature", "top_p")
    asked = [(*[call[key] for key in figures], len(call["prompts"])) for call in models]
    assert asked == [(name, 1, 0.6, 0.95, 5) for name in ("good", "bad", "half")]
    assert Models.loads == ["good", "bad", "half"] and models[0]["max_new_tokens"] == 4096
    assert models[0]["prompts"][0] == compare.benchmarks.NEUTRAL + "[8x8]q0"

    assert re.search(r"\| bench.jsonl \| +good \| +100.0 \(56.6–100.0\) \|", out)
    assert re.search(r"\| +half \| +60.0 \(23.1–88.2\) \|", out) and "greedy" not in out
    assert re.search(r"\| +bad \| +0.0 \(0.0–43.4\) .* \| +-100.0 \(-100.0 to -\d+.\d\) \|", out)
    assert "minus good (95 %)" in out and (place / "results.md").read_text() == out
    table = [json.loads(line) for line in (place / "results.jsonl").read_text().splitlines()]
    results = [(row["model"], row["sampled"], row.get("sampled_gain")) for row in table]
    assert results == [("good", 1, None), ("bad", 0, -1), ("half", 0.6, -0.4)]

    # The replies are there: nobody is asked again, with or without --rescore.
    for extra in ([], ["--rescore"]):
        models.clear()
        run(*command, *extra)
        assert not models and capsys.readouterr().out == out


def test_several_sets_and_the_macro_average(models, capsys, tmp_path):
    one, two = six(tmp_path, "one.jsonl"), six(tmp_path, "two.jsonl", answer="3")
    run("--model", "half", "--bench", one, two, "--out", tmp_path / "out")
    out = capsys.readouterr().out
    run("--model", "half", "--bench", one, "--out", tmp_path / "three", "--questions", "4")
    for name in ("micro average", "mean of 2"):
        assert re.search(rf"\| {name} +\| +half \| +25.0 \(\d+.\d–\d+.\d\)", out)
    out = capsys.readouterr().out
    assert "75.0" in out and "mean" not in out and "micro" not in out


def test_other_ways_to_ask(models, capsys, tmp_path):
    command = ["--model", "half", "--bench", six(tmp_path), "--out", tmp_path / "out"]
    run(*command, "--greedy", "--samples", "3", "--prompt", "training", "--max-new-tokens", "9")
    sampled, greedy = models
    assert (sampled["n"], sampled["temperature"], greedy["n"], greedy["temperature"]) == (
        3,
        0.6,
        1,
        0,
    )
    assert sampled["prompts"][0] == "[8x8]Look. q0 Put it in \\boxed{}."
    assert sampled["max_new_tokens"] == greedy["max_new_tokens"] == 9
    assert "majority" in (out := capsys.readouterr().out) and "greedy (95 %)" in out


def independent_scores(path):
    """The ten lines any reader could write: scores from the kept replies alone (plain answers)."""

    def same(reply, answers):
        boxes = re.findall(r"\\boxed\{([^{}]*)\}", reply)
        return bool(boxes) and boxes[-1].lower() in [answer.lower() for answer in answers]

    greedy, sampled = [], []
    for row in map(json.loads, path.read_text().splitlines()):
        if "replies" in row:
            greedy.append(same(row["greedy"][0], row["answers"]))
            sampled.append(np.mean([same(reply, row["answers"]) for reply in row["replies"]]))
    return np.mean(sampled), np.mean(greedy)


def test_an_independent_script_gets_the_table_from_the_replies(tmp_path, capsys):
    """The real tiny base on its charts; the same figures as `evaluate`, with which a run
    measures itself."""
    run("--questions", "14", "-n", "2", "--max-new-tokens", "64", "--out", tmp_path)
    (result,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    sampled, greedy = independent_scores(tmp_path / "tiny/charts.jsonl")
    assert (sampled, greedy) == (
        pytest.approx(result["sampled"]),
        pytest.approx(result["greedy"]),
    )
    assert 0 < result["greedy"] < 1
    vlm = VLM.load("tiny", device="cpu")
    direct = evaluation.evaluate(vlm, evaluation.charts(14)[0], n=2, max_new_tokens=64)
    figures = direct.keys() - {"seconds", "per_question"}
    assert {key: direct[key] for key in figures} == {key: result[key] for key in figures}


def test_a_stopped_evaluation_goes_on_and_ends_the_same(models, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "CHUNK", 2)
    bench, whole = six(tmp_path), tmp_path / "whole"
    path = "half/" + re.sub(r"[^\w.-]+", "-", bench) + ".jsonl"
    command = ["--model", "half", "--bench", bench, "--out"]
    run(*command, whole)
    lines = (whole / path).read_text().splitlines(keepends=True)
    # Stopped before the settings, in a chunk, between chunks, at the very end.
    for count in (0, 1, 2, 3, 4, 6):
        broken = tmp_path / f"broken{count}"
        (broken / "half").mkdir(parents=True)
        (broken / path).write_text("".join(lines[:count]) + lines[count][:25])
        models.clear()
        run(*command, broken)
        assert (broken / path).read_text().splitlines(keepends=True) == lines
        assert sum(len(call["prompts"]) for call in models) == (6 - max(0, count - 1))
    (broken / path).write_text("".join(lines[:4]))
    with pytest.raises(SystemExit, match="bench.jsonl.jsonl is missing or not complete"):
        run(*command, broken, "--rescore")
    assert (broken / path).read_text() == "".join(lines[:4])


def table_of(out):
    """What an evaluation comes to: all rows and figures, without the name of its folder."""
    return {path.name: path.read_text() for path in out.rglob("*.jsonl")}


CHANGES = {
    "a question": lambda rows: rows[1].update(question="q1 or what?"),
    "a hint": lambda rows: rows[1].update(hint="Look twice."),
    "a picture": lambda rows: rows[1].update(image="b.png"),
    "what a picture's file holds": lambda rows: rows[1].update(image="changes.png"),
    "choices": lambda rows: rows[1].update(choices=["1", "2"]),
    "two in turns": lambda rows: rows.insert(1, rows.pop(2)),
    "one is new": lambda rows: rows.insert(1, {"image": "b.png", "question": "q9", "answer": "1"}),
    "one is gone": lambda rows: rows.pop(1),
}


@pytest.fixture
def changing(models, tmp_path, monkeypatch):
    """-> (write the questions after a change, evaluate into a folder with more flags)"""
    monkeypatch.setattr(compare, "CHUNK", 2)
    (tmp_path / "b.png").write_bytes(png("red"))
    (tmp_path / "changes.png").write_bytes(png())
    flags = ["--model", "half", "--compare", "good", "--bench", tmp_path / "bench.jsonl"]

    def write(change=None):
        rows = [{"image": "a.png", "question": f"q{i}", "answer": "1"} for i in range(6)]
        rows[1]["image"] = "changes.png"
        if change is not None:
            change(rows)
        write_bench(tmp_path, *rows)
        return rows

    def evaluate(out, *more):
        models.clear()
        run(*flags, "--out", tmp_path / out, *more)
        return sum(len(call["prompts"]) for call in models)

    return write, evaluate


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_is_asked_again(name, changing, tmp_path, capsys):
    write, evaluate = changing
    write()
    evaluate("out")
    rows = write(CHANGES[name])
    if "file" in name:
        (tmp_path / "changes.png").write_bytes(png("blue"))
    capsys.readouterr()
    asked = evaluate("out")
    assert 0 < asked < 2 * len(rows) or name == "one is gone"
    out = capsys.readouterr().out
    said = re.search(
        r"half, \S+: (\d) questions changed and are asked again; 0 have a new key", out
    )
    assert 0 < int(said[1]) <= asked
    evaluate("fresh")
    assert table_of(tmp_path / "out") == table_of(tmp_path / "fresh")
    assert (tmp_path / "out/results.md").read_text() == (tmp_path / "fresh/results.md").read_text()


@pytest.mark.parametrize("change", [{"answer": "wrong"}, {"answer": {"a": 2, "b": "1"}}])
def test_a_new_key_is_graded_again_and_nobody_is_asked(change, changing, tmp_path, capsys):
    write, evaluate = changing
    for more in ([], ["--rescore"]):
        write()
        evaluate("out")
        write(lambda rows: rows[1].update(change))
        capsys.readouterr()
        assert evaluate("out", *more) == 0
        assert (
            "0 questions changed and are asked again; 1 have a new key" in capsys.readouterr().out
        )
        evaluate("fresh")
        assert table_of(tmp_path / "out") == table_of(tmp_path / "fresh")


@pytest.mark.parametrize(
    "more", [["-n", "2"], ["--greedy"], ["--seed", "1"], ["--prompt", "training"]]
)
def test_other_settings_are_another_evaluation(more, changing, tmp_path, capsys):
    write, evaluate = changing
    write()
    evaluate("out")
    before = table_of(tmp_path / "out")
    with pytest.raises(SystemExit, match="not complete: run without --rescore"):
        evaluate("out", *more, "--rescore")
    assert table_of(tmp_path / "out") == before
    assert evaluate("out", *more) == (24 if "--greedy" in more else 12)
    evaluate("fresh", *more)
    assert table_of(tmp_path / "out") == table_of(tmp_path / "fresh")
    # What was asked before is not lost.
    assert evaluate("out") == 0 and table_of(tmp_path / "out") == before


def test_other_weights_and_another_prompt_are_asked_again(changing, tmp_path, monkeypatch):
    write, evaluate = changing
    write()
    evaluate("out")
    monkeypatch.setattr(compare, "fingerprint", lambda name: "other weights")
    assert evaluate("out") == 12 and evaluate("out") == 0
    monkeypatch.setattr(compare.benchmarks, "NEUTRAL", "Answer in Latin.")
    assert evaluate("out") == 12
    evaluate("fresh")
    assert table_of(tmp_path / "out") == table_of(tmp_path / "fresh")


def test_a_wrong_folder_by_mistake_costs_nothing(changing, tmp_path):
    """Other pictures, none at all, fewer questions: the replies are there when all is as it was."""
    write, evaluate = changing
    write()
    evaluate("out")
    before = table_of(tmp_path / "out")
    (tmp_path / "changes.png").rename(tmp_path / "kept.png")
    assert evaluate("out") == 0 and evaluate("out", "--questions", "3") == 0
    (tmp_path / "changes.png").write_bytes(png("green"))
    assert evaluate("out") == 2
    (tmp_path / "kept.png").rename(tmp_path / "changes.png")
    assert evaluate("out") == 0
    assert table_of(tmp_path / "out") == before


def test_what_could_not_be_used_is_tried_again(changing, tmp_path, capsys):
    write, evaluate = changing
    write(lambda rows: rows[1].update(image="later.png"))
    evaluate("out")
    assert "1 of 6 questions cannot be used" in capsys.readouterr().out
    (tmp_path / "later.png").write_bytes(png()[:50])
    evaluate("out")
    assert "1 of 6 questions cannot be used" in capsys.readouterr().out
    (tmp_path / "later.png").write_bytes(png())
    assert evaluate("out") == 2
    assert "cannot be used" not in capsys.readouterr().out
    evaluate("fresh")
    assert table_of(tmp_path / "out") == table_of(tmp_path / "fresh")


def test_stopped_three_times_with_a_key_and_a_question_changed_in_between(
    changing, tmp_path, monkeypatch
):
    """On two ranks, with the embedded base: tests/tools/test_paper_sets.py, -m slow."""
    write, evaluate = changing
    write()
    ask, calls = compare.generate, []

    def stop_at_the_second(*arguments, **options):
        calls.append(options)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return ask(*arguments, **options)

    monkeypatch.setattr(compare, "generate", stop_at_the_second)
    for change in (
        lambda rows: rows[0].update(answer="one"),
        lambda rows: rows[0].update(answer="one") or rows[1].update(question="q1, again"),
        lambda rows: rows[0].update(answer="2") or rows[1].update(question="q1, again"),
    ):
        with pytest.raises(SystemExit, match="stopped; the same command goes on"):
            evaluate("out")
        write(change)
    monkeypatch.setattr(compare, "generate", ask)
    assert 0 < evaluate("out") < 12
    evaluate("fresh")
    assert table_of(tmp_path / "out") == table_of(tmp_path / "fresh")


def test_more_questions_go_on(changing, tmp_path):
    write, evaluate = changing
    write()
    assert evaluate("out", "--questions", "2") == 4
    assert evaluate("out") == 8
    evaluate("fresh")
    assert table_of(tmp_path / "out") == table_of(tmp_path / "fresh")


def test_what_cannot_be_used_is_named_and_left_out(models, capsys, tmp_path, monkeypatch):
    """Rows with all kinds of flaws, one that only the model refuses, and three good ones."""
    monkeypatch.setattr(compare, "CHUNK", 4)
    asked = Models.encode

    def encode(self, parts, **more):
        if self.name == "half" and "q6" in parts[1]:
            raise ValueError("its picture is\n200 times as wide as high")
        return asked(self, parts, **more)

    monkeypatch.setattr(Models, "encode", encode)
    flaws = [
        {"answer": "green", "choices": ["red", "blue"]},
        {"image": "gone.png"},
        {"answer": None},
        {},
        {"options": "A. red B. blue"},
        {"tolerance": []},
        {},
        {"image": {"bytes": None, "path": None}},
        {},
    ]
    rows = [{"image": "a.png", "question": f"q{i}", "answer": "1"} for i in range(9)]
    rows = [row | flaw for row, flaw in zip(rows, flaws)]
    rows[5] = "{"
    bench = write_bench(tmp_path, *rows)
    command = ["--model", "good", "--compare", "half", "--bench", bench, "--out", tmp_path / "out"]
    run(*command)
    out = capsys.readouterr().out
    assert re.search(r"\| bench.jsonl \| +good \| +100.0 .* 2 \|", out)
    assert re.search(r"\| bench.jsonl \| +half \| +0.0 .* 2 \|", out)
    assert f"{bench}: 7 of 9 questions cannot be used and are left out" in out
    for line in (
        'question 1: the answer green is none of the choices red, blue (it asks "q0")',
        'question 2: cannot read the picture gone.png (it asks "q1")',
        'question 3: the question or the answer is empty (it asks "q2")',
        "question 5: cannot read the choices 'A. red B. blue' (it asks \"q4\")",
        "question 6: line 6 is not JSON",
        "question 7: its picture is 200 times as wide as high",
        "question 8: cannot read the picture {'bytes': None, 'path': None} (it asks \"q7\")",
    ):
        assert f"\n  {line}\n" in out
    assert "minus good" in out and (tmp_path / "out/results.md").read_text() == out
    run(*command, "--rescore")
    assert capsys.readouterr().out == out


def test_a_set_of_which_nothing_can_be_used_is_one_line(models, tmp_path):
    bench = six(tmp_path, image="gone.png")
    with pytest.raises(SystemExit, match="no question can be used; question 1: cannot") as stop:
        run("--model", "half", "--bench", bench, "--out", tmp_path)
    assert "\n" not in stop.value.code


def test_an_interrupt_is_one_line(models, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "generate", interrupt)
    with pytest.raises(SystemExit, match="the same command goes on"):
        run("--model", "half", "--bench", six(tmp_path), "--out", tmp_path)


def test_fingerprint_sees_one_other_weight_and_another_prompt(tmp_path):
    vlm = VLM.load("tiny", device="cpu")
    vlm.save(tmp_path)
    found = [compare.fingerprint(str(tmp_path)), compare.fingerprint(str(tmp_path))]
    with torch.no_grad():
        next(iter(vlm.model.parameters())).view(-1)[12345] += 1e-3
    vlm.save(tmp_path)
    found.append(compare.fingerprint(str(tmp_path)))
    (tmp_path / "prompts.json").write_text('{"solver": "{question}"}')
    found.append(compare.fingerprint(str(tmp_path)))
    assert found[0] == found[1] and len(set(found)) == 3
