"""Accuracy, comparison, benchmarks, the judge and the command line (eval.py, benchmarks.py)."""

import base64
import io
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import eval as evaluation
import mmzero
from prompts import fill
from tools import benchmarks
from vlm import VLM

ROOT = Path(__file__).resolve().parent.parent
PICTURE = Image.new("RGB", (8, 8), "white")


# ------------------------------------------------------------------------------------------------------------
# Scoring


class Echo:
    """Stands for a VLM: a prompt is the text asked, so that a fake `generate` can decide the replies."""

    prompts = {"solver": "Look. {question} Put it in \\boxed{}."}

    max_pixels = 10**9

    def encode(self, parts, images=()):
        """As VLM.encode: a text and pictures, or both in a list. A picture becomes its size."""
        parts = [*images, parts] if isinstance(parts, str) else parts
        assert all(isinstance(part, (str, Image.Image)) for part in parts)
        return "".join(
            part if isinstance(part, str) else f"[{part.width}x{part.height}]" for part in parts
        )


def replies(monkeypatch, sampled, greedy):
    """Make generate answer with these boxed answers (None: nothing readable); returns the calls it got."""
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
        [None, None, None, None],
    ]  # 0 of 4, no answer at all is wrong, not left out
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


def kept(hits):
    """Rows as they are kept, one reply a question, right or wrong as `hits` says."""
    reply = {True: r"\boxed{1}", False: r"\boxed{2}"}
    return [
        dict(
            text="",
            answers=["1"],
            choices=[],
            tolerance=0,
            decimals=None,
            replies=[reply[h]],
            greedy=reply[h],
        )
        for h in hits
    ]


def test_macro_counts_every_set_the_same():
    small, large = [
        evaluation.grade(kept(hits))
        for hits in ([True] * 24 + [False] * 8, [False] * 300 + [True] * 100)
    ]
    average = evaluation.macro([small, large])
    assert (
        average["sampled"] == average["greedy"] == average["majority"] == pytest.approx(0.5)
        and average["questions"] == 432
    )
    # The variance of the mean of two independent means is a quarter of the sum of theirs.
    spread = math.sqrt(0.75 * 0.25 / 32 + 0.25 * 0.75 / 400) / 2
    assert (average["sampled_high"] - average["sampled_low"]) / 2 == pytest.approx(
        1.96 * spread, rel=0.1
    )
    assert evaluation.macro([small]) == pytest.approx(
        {k: v for k, v in small.items() if k != "per_question"}
    )
    perfect = evaluation.macro([evaluation.grade(kept([True] * 20))] * 4)
    assert perfect["greedy_low"] < 0.95 and perfect["greedy_high"] == 1 == perfect["greedy"]


def test_evaluate_refuses_nothing():
    with pytest.raises(ValueError, match="questions"):
        evaluation.evaluate(Echo(), [])


def test_bootstrap_covers_the_mean_about_95_times_in_100():
    rng, hits = np.random.default_rng(1), 0
    for trial in range(200):
        low, high = evaluation.bootstrap(rng.binomial(8, 0.6, size=60) / 8, seed=trial, draws=300)
        hits += low <= 0.6 <= high
    assert 180 <= hits <= 199
    assert evaluation.bootstrap([0, 1, 1, 0.5], 3) == evaluation.bootstrap([0, 1, 1, 0.5], 3)


def test_wilson_covers_a_share_that_is_all_but_one_where_the_bootstrap_does_not():
    rng, hits = np.random.default_rng(2), {evaluation.wilson: 0, evaluation.bootstrap: 0}
    for _ in range(300):
        values = rng.binomial(1, 0.97, size=40)
        for method in hits:
            low, high = method(values) if method is evaluation.wilson else method(values, draws=200)
            hits[method] += low <= 0.97 <= high
    assert 275 <= hits[evaluation.wilson] <= 299 and hits[evaluation.bootstrap] < 240
    # It is where |p - share| = z sqrt(p (1 - p) / n), and a bootstrap would say (0, 0), (1, 1).
    for share, n in ((0.0, 9), (0.25, 8), (1.0, 60)):
        for p, end in zip(
            evaluation.interval([1] * int(share * n) + [0] * int((1 - share) * n)), (0, 1)
        ):
            assert (
                abs(p - share) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / n), rel=1e-3)
                or p == share == end
            )
    assert evaluation.interval([0.5, 0.25, 1]) == evaluation.bootstrap([0.5, 0.25, 1])


def test_mcnemar_against_enumeration():
    # p by listing all 2^m outcomes of m fair coins at least as lopsided as the one seen
    for wins, losses in ((0, 0), (3, 0), (7, 2), (4, 4), (1, 9)):
        a, b = [1] * wins + [0] * losses + [1, 0], [0] * wins + [1] * losses + [1, 0]
        m, far = wins + losses, abs(wins - losses)
        lopsided = sum(abs(2 * bin(coins).count("1") - m) >= far for coins in range(2**m))
        assert evaluation.mcnemar(a, b) == (wins, losses, pytest.approx(lopsided / 2**m))
    assert evaluation.mcnemar([1.0] * 3000, [0.0] * 3000)[2] == 0.0  # below the smallest float


def test_compare_is_paired():
    # b is a shifted down by 0.1 on every question: hard questions differ wildly, the difference not at all
    accuracy = np.linspace(0.1, 1.0, 40)

    def result(values):
        hits = [float(v > 0.5) for v in values]
        return {
            "sampled": values.mean(),
            "majority": np.mean(hits),
            "greedy": np.mean(hits),
            "per_question": {"sampled": list(values), "majority": hits, "greedy": hits},
        }

    a, b = result(accuracy), result(accuracy - 0.1)
    gain, low, high = evaluation.compare(a, b)["sampled"]
    assert gain == pytest.approx(0.1) and low == pytest.approx(0.1) and high == pytest.approx(0.1)
    assert evaluation.compare(b, a)["greedy"][1:3] == evaluation.compare(a, b)["greedy"][2:0:-1]
    with pytest.raises(ValueError, match="same questions"):
        evaluation.compare(a, result(accuracy[:7]))


# ------------------------------------------------------------------------------------------------------------
# Sets from outside: reading


def png(colour="white", size=(8, 8)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "png")
    return stream.getvalue()


def write_bench(folder, *rows):
    (folder / "a.png").write_bytes(png())
    path = folder / "bench.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def questions_of(bench, limit=None):
    name, rows, folder = benchmarks.load(str(bench), limit)
    return [benchmarks.question(rows[i], name, folder) for i in range(len(rows))]


def test_jsonl_pictures_are_paths_bytes_in_base64_and_several(tmp_path):
    text = base64.b64encode(png(size=(5, 7))).decode()
    path = write_bench(
        tmp_path,
        {"image": "a.png", "question": "q\u2028r", "answer": 7},
        "",
        {"image": text, "question": "r", "answer": "x", "content_type": "map"},
        {
            "images": ["a.png", f"data:image/png;base64,{text}"],
            "question": "s",
            "answer": "B",
            "choices": ["red", "blue"],
        },
        {"image": None, "question": "no picture", "answer": "1"},
    )
    found = questions_of(path)
    assert [[p.size for p in q.pictures] for q in found] == [
        [(8, 8)],
        [(5, 7)],
        [(8, 8), (5, 7)],
        [],
    ]
    assert [q.answers for q in found] == [("7",), ("x",), ("B",), ("1",)] and found[
        0
    ].text == "q\u2028r"
    assert [q.type for q in found] == ["all", "map", "all", "all"]
    assert found[2].text == "s\n(A) red\n(B) blue" and found[2].choices == ("red", "blue")
    assert len(questions_of(path, 2)) == 2


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"image": "a.png", "prompt": "q", "answer": "7"},
            "question 1: no column for the question; found image, prompt, answer; wanted image: images or",
        ),
        (
            {"picture": "a.png", "q": "q"},
            "no column for the image and the question and the answer; found picture, q; wanted",
        ),
        ({"image": "b.png", "question": "q", "answer": "7"}, "cannot read the picture b.png"),
        ({"image": "a.png", "question": "q", "answer": ""}, "the question or the answer is empty"),
        ("{", "line 1 is not JSON"),
        ("[1]", "found no object"),
        (
            "",
            "bench.jsonl: no column for the image and the question and the answer; found no rows; wanted",
        ),
    ],
)
def test_bad_lines_say_what_and_where(tmp_path, row, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        questions_of(write_bench(tmp_path, row))


def parquet(folder, columns, pictures=()):
    """A parquet file as `datasets` writes those on the hub; columns named in `pictures` are Image features."""
    datasets = pytest.importorskip("datasets")

    features = datasets.Dataset.from_dict(columns).features
    for name in pictures:
        several = isinstance(next(v for v in columns[name] if v is not None), list)
        features[name] = datasets.List(datasets.Image()) if several else datasets.Image()
    path = folder / "test-00000-of-00001.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


A, B = {"bytes": png(size=(4, 6)), "path": None}, {"bytes": png(size=(9, 3)), "path": "b.png"}

# The columns of the sets (from their cards on the hub), two rows each. Wanted: (text, pictures, answers, choices).
LAYOUTS = {
    "mathvision": (
        dict(
            problem=["<image>How many?\nA. 1\nB. 2", "No tag"],
            answer=["B", "x=3"],
            images=[[A], [B, A]],
        ),
        ["images"],
        [("<image>How many?\nA. 1\nB. 2", 1, ("B",), ("1", "2")), ("No tag", 2, ("x=3",), ())],
    ),
    "ChartQA": (
        dict(
            images=[A, B],
            problem=["Value?", "Which?"],
            label=[["40"], ["Yes"]],
            human_or_machine=[0, 1],
            answer=["40", "Yes"],
        ),
        ["images"],
        [("Value?", 1, ("40",), ()), ("Which?", 1, ("Yes",), ())],
    ),
    "HuggingFaceM4 ChartQA": (
        dict(image=[A, B], query=["Value?", "Which?"], label=[["40"], ["a", "b"]]),
        ["image"],
        [("Value?", 1, ("40",), ()), ("Which?", 1, ("a", "b"), ())],
    ),
    "MMMU": (
        dict(
            id=["1", "2"],
            question=["q <image 1>", "q"],
            options=["['x', 'y']", "[]"],
            answer=["A", "7"],
            question_type=["multiple-choice", "open"],
            images=[[A], [B]],
            problem=["<image>q\n(A) x\n(B) y", "<image>q"],
        ),
        ["images"],
        [("<image>q\n(A) x\n(B) y", 1, ("A",), ("x", "y")), ("<image>q", 1, ("7",), ())],
    ),
    "MMMU/MMMU": (
        dict(
            question=["a <image 2> b <image 1>", "q"],
            options=["['x', 'y']", "[]"],
            answer=["A", "7"],
            image_1=[A, B],
            image_2=[B, None],
            image_3=[None, None],
        ),
        ["image_1", "image_2"],
        [("a <image 2> b <image 1>\n(A) x\n(B) y", 2, ("A",), ("x", "y")), ("q", 1, ("7",), ())],
    ),
    "MathVista": (
        dict(
            question=["q", "r"],
            image=["images/1.jpg", "images/2.jpg"],
            decoded_image=[A, B],
            choices=[["1", "3"], []],
            precision=[None, 1.0],
            answer=["3", "1.4"],
        ),
        ["decoded_image"],
        [("q\n(A) 1\n(B) 3", 1, ("3",), ("1", "3")), ("r", 1, ("1.4",), ())],
    ),
    "HallusionBench": (
        dict(
            category=["VD", "VS"],
            question=["Is it?", "Was it?"],
            gt_answer=["1", "0"],
            image=[A, None],
        ),
        ["image"],
        [("Is it?", 1, ("Yes",), ()), ("Was it?", 0, ("No",), ())],
    ),
    "mm-vet": (
        dict(
            problem=["<image>x?", "<image>y?"], images=[[A], [B]], answer=["4<OR>four", "1<AND>2"]
        ),
        ["images"],
        [("<image>x?", 1, ("4", "four"), ()), ("<image>y?", 1, ("1<AND>2",), ())],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_columns_of_the_sets_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    columns, pictures, expected = LAYOUTS[name]
    found = questions_of(parquet(tmp_path, columns, pictures))
    assert [(q.text, len(q.pictures), q.answers, q.choices) for q in found] == expected
    assert all(p.size in ((4, 6), (9, 3)) for q in found for p in q.pictures)
    if name == "MathVista":
        assert (
            found[1].decimals == 1
            and benchmarks.right("1.43", found[1])
            and not benchmarks.right("1.46", found[1])
        )
    if name.startswith("MMMU/"):
        assert [getattr(p, "size", p) for p in found[0].parts("{question}")][:4] == [
            "a ",
            (9, 3),
            " b ",
            (4, 6),
        ]


def test_a_folder_of_parquet_is_a_dataset_and_what_fits_nothing_is_refused(tmp_path):
    columns = dict(problem=["<image>How many?", "b"], answer=["2", "3"], images=[[A], [B]])
    path = parquet(tmp_path, columns, ["images"])
    assert [q.answers for q in questions_of(tmp_path, 1)] == [("2",)]
    with pytest.raises(ValueError, match="split"):
        benchmarks.load(f"{tmp_path}@validation", None)
    with pytest.raises(FileNotFoundError, match="no benchmark nothing: give charts, FILE.jsonl"):
        benchmarks.load("nothing", None)
    parquet(tmp_path, dict(prompt=["a"], solution=["b"]))
    with pytest.raises(
        ValueError,
        match="no column for the image and the question and the answer; found prompt, solution",
    ):
        benchmarks.load(str(path), None)
    assert len(benchmarks.SETS) == 12 and benchmarks.SETS["mmmu"] == "zli12321/MMMU"


def test_raw_bytes_in_parquet_without_any_metadata(tmp_path):
    pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pyarrow.table({"image": [png(size=(5, 5))], "question": ["q"], "answer": ["1"]})
    pyarrow.parquet.write_table(table, tmp_path / "raw.parquet")
    (question,) = questions_of(tmp_path / "raw.parquet")
    assert question.pictures[0].size == (5, 5)


@pytest.mark.parametrize(
    "text, count, expected",
    [
        ("x <image> y <image>", 2, ["Q: x ", 0, " y ", 1, "!"]),
        ("no tag", 2, [0, 1, "Q: no tag!"]),
        ("<image><image><image>z", 1, ["Q: ", 0, "z!"]),
        ("<image>z", 3, ["Q: ", 0, "z!"]),
        ("<image 2> <image 1>", 2, ["Q: ", 1, " ", 0, "!"]),
        ("<image 0> <image 9>", 1, ["Q: ", " ", "!"]),
        ("text only", 0, ["Q: text only!"]),
    ],
)
def test_pictures_stand_where_the_tags_are(text, count, expected):
    assert (
        benchmarks.Question(text, tuple(range(count)), ("1",)).parts("Q: {question}!") == expected
    )


# ------------------------------------------------------------------------------------------------------------
# Sets from outside: what is right


@pytest.mark.parametrize(
    "question, good, bad",
    [
        (
            dict(answers=["B"], choices=["3 cm", "5 cm"]),
            ["B", "(b)", "B.", "B: 5 cm", "5 cm", "5"],
            ["A", "3 cm", "C", "5 m", "both", ""],
        ),
        (dict(answers=["5 cm"], choices=["3 cm", "5 cm"]), ["B", "5 cm"], ["A", "7"]),
        (
            dict(answers=["Yes"]),
            ["yes", "Yes, it is.", "YES"],
            ["No", "no, yes", "maybe yes", "yesterday"],
        ),
        (dict(answers=["No"]), ["no.", "No"], ["not yes", "none", "Yes"]),
        (
            dict(answers=["40"], tolerance=0.05),
            ["42", "38", "40.0", "41 %", "42.0"],
            ["42.1", "37.9", "-40", "forty"],
        ),
        (dict(answers=["-2"], tolerance=0.05), ["-2.1", "-1.9"], ["2", "-2.2"]),
        (dict(answers=["0"], tolerance=0.05), ["0", "0.0"], ["0.01"]),
        (dict(answers=["Paris"], tolerance=0.05), ["paris"], ["Pari"]),
        (dict(answers=["1.4"], decimals=1), ["1.4", "1.44", "1.36"], ["1.5", "1.34"]),
        (dict(answers=["4", "four"]), ["4", "Four"], ["5"]),
        (dict(answers=["x=1<AND>x=2"]), ["x=2, x=1", "x=1 and x=2"], ["x=1"]),
        (dict(answers=["12"]), ["12", "12.0", "12 cm"], ["1", "13"]),
    ],
)
def test_right_and_wrong(question, good, bad):
    question = benchmarks.Question(
        "?", (), **{k: tuple(v) if isinstance(v, list) else v for k, v in question.items()}
    )
    kept = json.loads(
        json.dumps({k: v for k, v in vars(question).items() if k != "pictures"})
    )  # the same rule on what the JSONL keeps
    for q in (question, kept):
        assert (
            [a for a in good if not benchmarks.right(a, q)]
            == []
            == [a for a in bad if benchmarks.right(a, q)]
        )
        assert not benchmarks.right(None, q)


def test_chartqa_alone_is_tolerant(tmp_path):
    rows = [
        {"image": "a.png", "question": "q", "answer": "100"},
        {"image": "a.png", "question": "q", "answer": "100", "tolerance": 0.2},
    ]
    path = write_bench(tmp_path, *rows)
    loose = path.rename(tmp_path / "ChartQA.jsonl")
    assert [benchmarks.right("104", q) for q in questions_of(loose)] == [True, True]
    path = loose.rename(tmp_path / "other.jsonl")
    assert [benchmarks.right("104", q) for q in questions_of(path)] == [False, True]


# ------------------------------------------------------------------------------------------------------------
# Asking, keeping, going on, scoring again


class Models(Echo):
    """`VLM` with models that know the first so-many questions; counts what is asked."""

    knows = {"good": 100, "bad": 0, "half": 3}

    def __init__(self, name):
        self.name = name

    load = classmethod(lambda cls, name: cls.loads.append(name) or cls(name))


@pytest.fixture
def models(monkeypatch):
    Models.loads, asked = [], []

    def fake(vlm, prompts, n=1, temperature=1.0, top_p=1.0, **options):
        asked.append(
            dict(
                options, model=vlm.name, prompts=prompts, n=n, temperature=temperature, top_p=top_p
            )
        )
        if vlm.name == "judge":
            return [
                [
                    SimpleNamespace(
                        text="Yes." if "wrong" in text and "sure" in text else "No, differs"
                    )
                ]
                for text in prompts
            ]
        known = Models.knows[vlm.name]
        answers = [
            "1" if int(re.search(r"q(\d+)", prompt)[1]) < known else "wrong" for prompt in prompts
        ]
        luck = [
            random.Random(f"{options['seed']} {temperature} {number}")
            for number in options["numbers"]
        ]
        return [
            [SimpleNamespace(text=f"{rng.random()} \\boxed{{{answer}}}") for _ in range(n)]
            for rng, answer in zip(luck, answers, strict=True)
        ]

    monkeypatch.setattr(evaluation, "VLM", Models)
    monkeypatch.setattr(evaluation, "generate", fake)
    monkeypatch.setattr(evaluation, "fingerprint", lambda name: f"weights of {name}")
    return asked


def six(folder, name="bench.jsonl", **more):
    return str(
        write_bench(
            folder,
            *[{"image": "a.png", "question": f"q{i}", "answer": "1"} | more for i in range(6)],
        ).rename(folder / name)
    )


def test_main_compares_models_on_one_set(models, capsys, tmp_path):
    bench = six(tmp_path)
    command = [
        "--model",
        "good",
        "--compare",
        "bad",
        "half",
        "--bench",
        bench,
        "--questions",
        "5",
        "--out",
        str(tmp_path / "out"),
    ]
    evaluation.main(command)
    out = capsys.readouterr().out
    # as the authors ask: one sample at 0.6 / 0.95, and greedily; one model at a time
    assert [
        (c["model"], len(c["prompts"]), c["n"], c["temperature"], c["top_p"]) for c in models
    ] == [(m, 5, 1, t, p) for m in ("good", "bad", "half") for t, p in ((0.6, 0.95), (0.0, 1.0))]
    assert Models.loads == ["good", "bad", "half"] and models[0]["max_new_tokens"] == 4096
    assert models[0]["prompts"][0] == "[8x8]Look. q0 Put it in \\boxed{}."
    assert re.search(
        r"\| bench.jsonl \| +good \| +100.0 \(56.6–100.0\) \| +100.0 \(56.6–100.0\) \|", out
    )
    assert re.search(r"\| +half \| +60.0 \(23.1–88.2\) \|", out)
    assert (
        "good minus bad, paired" in out and "+100.0 points, 95 % interval +100.0 to +100.0" in out
    )
    assert "right alone on 5, wrong alone on 0, McNemar exact p = 0.062" in out  # 2 / 2^5
    assert "right alone on 2, wrong alone on 0, McNemar exact p = 0.5" in out
    assert (tmp_path / "out/results.md").read_text() == out
    table = json.loads((tmp_path / "out/results.json").read_text())
    assert [(r["model"], r["sampled"], r["greedy"]) for r in table["results"]] == [
        ("good", 1, 1),
        ("bad", 0, 0),
        ("half", 0.6, 0.6),
    ]
    assert table["comparisons"][1]["other"] == "half" and table["comparisons"][1]["greedy"][
        1:3
    ] == [2, 0]
    # The replies are there: nobody is asked again, with or without --rescore, and the figures are the same.
    for extra in ([], ["--rescore"]):
        models.clear()
        evaluation.main(command + extra)
        assert not models and capsys.readouterr().out == out


def test_several_sets_and_the_macro_average(models, capsys, tmp_path):
    one, two = six(tmp_path, "one.jsonl"), six(tmp_path, "two.jsonl", answer="wrong")
    evaluation.main(["--model", "half", "--bench", one, two, "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    evaluation.main(
        ["--model", "half", "--bench", one, "--out", str(tmp_path / "three"), "--questions", "4"]
    )
    assert re.search(r"\| macro average \| +half \| +50.0 \(\d+.\d–\d+.\d\)", out)
    assert "75.0" in capsys.readouterr().out and "macro" not in out.split("macro average")[1]


def test_the_types_of_the_questions_have_rows_of_their_own(models, capsys, tmp_path):
    rows = [
        {
            "image": "a.png",
            "question": f"q{i}",
            "answer": "1",
            "category": "art/map"[: 3 + 4 * (i > 1)],
        }
        for i in range(6)
    ]
    evaluation.main(
        [
            "--model",
            "half",
            "--bench",
            str(write_bench(tmp_path, *rows)),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    out = capsys.readouterr().out
    assert re.search(r"\| bench.jsonl +\| +half \| +50.0 .* 6 \|", out)
    assert re.search(r"\| bench.jsonl, art +\| +half \| +100.0 .* 2 \|", out)
    assert re.search(r"\| bench.jsonl, art map +\| +half \| +25.0 .* 4 \|", out)


def independent_scores(path):
    """The ten lines that any reader could write: scores from the kept replies alone (plain answers only)."""
    greedy, sampled = [], []
    for line in open(path):
        row = json.loads(line)
        if "replies" in row:
            boxed = lambda reply: ([None] + re.findall(r"\\boxed\{([^{}]*)\}", reply))[-1]
            same = lambda reply: (
                boxed(reply) is not None
                and boxed(reply).lower() in [a.lower() for a in row["answers"]]
            )
            greedy.append(same(row["greedy"]))
            sampled.append(sum(map(same, row["replies"])) / len(row["replies"]))
    return sum(sampled) / len(sampled), sum(greedy) / len(greedy)


def test_an_independent_script_gets_the_table_from_the_replies(tmp_path, capsys):
    """The real tiny base on its charts; the same figures as `evaluate`, with which a run measures itself."""
    evaluation.main(
        ["--questions", "14", "-n", "3", "--max-new-tokens", "64", "--out", str(tmp_path)]
    )
    result, *types = json.loads((tmp_path / "results.json").read_text())["results"]
    assert independent_scores(tmp_path / "tiny/charts.jsonl") == (
        pytest.approx(result["sampled"]),
        pytest.approx(result["greedy"]),
    )
    assert (
        0 < result["greedy"] < 1 and "charts, data_chart" in capsys.readouterr().out
    )  # a row per content type
    assert sum(r["greedy"] * r["questions"] for r in types) == pytest.approx(14 * result["greedy"])
    direct = evaluation.evaluate(VLM.load("tiny"), evaluation.charts(14)[0], n=3, max_new_tokens=64)
    assert {k: direct[k] for k in direct if k not in ("seconds", "per_question")} == {
        k: result[k] for k in direct if k not in ("seconds", "per_question")
    }


def test_a_stopped_evaluation_goes_on_and_ends_the_same(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "CHUNK", 2)
    bench, whole, path = (
        six(tmp_path),
        tmp_path / "whole",
        re.sub(r"[^\w.-]+", "-", six(tmp_path)) + ".jsonl",
    )
    evaluation.main(["--model", "half", "--bench", bench, "--out", str(whole)])
    lines = (whole / "half" / path).read_text().splitlines(keepends=True)
    for kept in (
        0,
        1,
        2,
        3,
        4,
        6,
    ):  # stopped before the settings, in a chunk, between chunks, at the very end
        broken = tmp_path / f"broken{kept}"
        (broken / "half").mkdir(parents=True)
        (broken / "half" / path).write_text("".join(lines[:kept]) + lines[kept][:25])
        models.clear()
        evaluation.main(["--model", "half", "--bench", bench, "--out", str(broken)])
        assert (broken / "half" / path).read_text().splitlines(keepends=True) == lines
        assert sum(len(call["prompts"]) for call in models) == 2 * (6 - max(0, kept - 1))
    (broken / "half" / path).write_text("".join(lines[:4]))
    for change, message in (
        (["--seed", "1"], "seed 0 there, 1 now"),
        (["-n", "5"], "n 1 there, 5 now"),
        (["--rescore"], "not complete"),
    ):
        with pytest.raises(SystemExit, match=message):
            evaluation.main(["--model", "half", "--bench", bench, "--out", str(broken), *change])
    monkeypatch.setattr(evaluation, "fingerprint", lambda name: "other weights")
    with pytest.raises(SystemExit, match="'other weights' now"):
        evaluation.main(["--model", "half", "--bench", bench, "--out", str(broken)])


def test_an_interrupt_is_one_line(models, monkeypatch, tmp_path):
    monkeypatch.setattr(
        evaluation, "generate", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(SystemExit, match="the same command goes on"):
        evaluation.main(["--model", "half", "--bench", six(tmp_path), "--out", str(tmp_path)])


def test_fingerprint_sees_other_weights(tmp_path):
    vlm = VLM.load("tiny")
    vlm.save(tmp_path)
    before = evaluation.fingerprint(str(tmp_path))
    assert before == evaluation.fingerprint(str(tmp_path)) != ""
    with torch.no_grad():
        for weight in vlm.model.parameters():
            weight += 1e-3
    vlm.save(tmp_path)
    assert evaluation.fingerprint(str(tmp_path)) != before


def test_the_judge_is_asked_only_what_the_rule_calls_wrong(models, capsys, tmp_path):
    bench = write_bench(
        tmp_path,
        *[
            {"image": "a.png", "question": f"q{i} {'sure' * (i > 3)}", "answer": "1"}
            for i in range(6)
        ],
    )
    command = ["--model", "half", "--bench", str(bench), "--out", str(tmp_path), "--judge", "judge"]
    evaluation.main(command)
    out = capsys.readouterr().out
    asked = [text for call in models if call["model"] == "judge" for text in call["prompts"]]
    assert len(asked) == 3 and all(
        "Given answer: wrong" in text and "Right answer: 1" in text for text in asked
    )  # q3, q4, q5
    assert "The judge judge overruled 2 of 3 answers that the rule calls wrong." in out
    assert re.search(r"\| +half \| +83.3 ", out)  # 3 by the rule, 2 by the judge, of 6
    models.clear()
    evaluation.main(command + ["--rescore"])
    assert not models and capsys.readouterr().out == out  # verdicts are kept
    evaluation.main(command[:-2] + ["--rescore"])
    assert re.search(r"\| +half \| +50.0 ", capsys.readouterr().out)


def test_the_judge_is_any_model_of_ours(tmp_path):
    rows = [
        dict(
            text="q",
            answers=["1"],
            choices=[],
            tolerance=0,
            decimals=None,
            replies=[r"\boxed{2}", "?"],
            greedy=r"\boxed{1}",
        )
    ]
    accepted, read = evaluation.judge("tiny", rows, tmp_path / "judge.jsonl")
    assert (
        read == 1
        and accepted == set()
        and len((tmp_path / "judge.jsonl").read_text().splitlines()) == 1
    )


# ------------------------------------------------------------------------------------------------------------
# Plain transformers


def test_a_trained_checkpoint_answers_the_same_in_plain_transformers(tmp_path):
    """A step of every role by the loop, at a step size that shows; then loaded, fed and decoded by the library alone
    (its slow image processor needs no torchvision)."""
    settings = "--iterations 1 --steps 1 --questions 0 --probe 0 --lr 3e-3 --proposer-prompts 4 --proposer-rollouts 2 --codes 1"
    settings += (
        " --coder-proposals 8 --solver-proposals 48 --labels 8 --solver-prompts 8 --workers 1"
    )
    mmzero.self_evolve(mmzero.parse([*settings.split(), "--out", str(tmp_path)])[0])
    folder = tmp_path / "iter1/solver"
    ours, base = VLM.load(folder), VLM.load("tiny")
    moved = max(
        float((a - b).detach().abs().max())
        for a, b in zip(ours.model.parameters(), base.model.parameters())
    )
    assert moved > 1e-3
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pictures = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil.from_pretrained(
        folder
    )
    questions, _ = evaluation.charts(12, seed=4)
    texts = [fill(ours.prompts["solver"], question=text) for _, text, _ in questions]

    def answers(vlm):
        prompts = [vlm.encode(text, [picture]) for text, (picture, _, _) in zip(texts, questions)]
        return [
            group[0].text
            for group in evaluation.generate(vlm, prompts, max_new_tokens=64, temperature=0.0)
        ]

    assert answers(ours) != answers(base)
    for (picture, _, _), text, reply in zip(questions, texts, answers(ours)):
        seen = pictures(images=[picture], return_tensors="pt")
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        chat = chat.replace(
            "<|image_pad|>", "<|image_pad|>" * int(seen["image_grid_thw"].prod() // 4)
        )
        ids = tokenizer(chat, add_special_tokens=False, return_tensors="pt")
        image = ids["input_ids"] == model.config.image_token_id
        with torch.no_grad():
            made = model.generate(
                **ids, **seen, mm_token_type_ids=image.int(), do_sample=False, max_new_tokens=64
            )
        assert (
            tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            == reply
        )


# ------------------------------------------------------------------------------------------------------------
# Command line


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
    """The real thing, small: 6 charts, 2 samples."""
    done = subprocess.run(
        [sys.executable, "eval.py", "--questions", "6", "-n", "2", "--out", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"\| charts +\| +tiny \| +\d+\.\d \(\d+\.\d–\d+\.\d\) \| .* \| +6 \|", done.stdout
    )


def test_charts_are_the_same_for_everybody_and_drawn():
    questions, types = evaluation.charts(12, seed=3)
    again, _ = evaluation.charts(12, seed=3)
    assert [q[1:] for q in questions] == [q[1:] for q in again] and len(questions) == len(
        types
    ) == 12
    assert all(a[0].tobytes() == b[0].tobytes() for a, b in zip(questions, again))
    assert all(len(picture.getcolors(1 << 16)) > 1 for picture, _, _ in questions)
