"""Questions from outside: reading, pictures, and what is right (tools/benchmarks.py)."""

import base64
import json
import re

import pytest
from helpers_eval import png, write_bench

from tools import benchmarks

# ---- reading -------------------------------------------------------------------------------------


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
            "question 1: no column for the question; found image, prompt, answer; wanted image:",
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
            "bench.jsonl: no column for the image and the question and the answer; found no rows;",
        ),
    ],
)
def test_bad_lines_say_what_and_where(tmp_path, row, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        questions_of(write_bench(tmp_path, row))


def parquet(folder, columns, pictures=()):
    """A parquet file as `datasets` writes those on the hub; columns in `pictures` are Images."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Dataset.from_dict(columns).features
    for name in pictures:
        several = isinstance(next(v for v in columns[name] if v is not None), list)
        features[name] = datasets.List(datasets.Image()) if several else datasets.Image()
    path = folder / "test-00000-of-00001.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


A, B = {"bytes": png(size=(4, 6)), "path": None}, {"bytes": png(size=(9, 3)), "path": "b.png"}

# The columns of the sets (from their cards on the hub), two rows each, and what is wanted:
# (text, pictures, answers, choices).
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
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"image": [png(size=(5, 5))], "question": ["q"], "answer": ["1"]})
    parquet.write_table(table, tmp_path / "raw.parquet")
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


# ---- what is right -------------------------------------------------------------------------------


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
