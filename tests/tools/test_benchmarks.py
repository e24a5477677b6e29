"""Questions from outside: reading, pictures, and what is right (tools/benchmarks.py)."""

import base64
import io
import json
import re
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from helpers_eval import png, write_bench
from PIL import Image, ImageDraw

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
    assert [q.answers for q in found] == [("7",), ("x",), ("(B) blue",), ("1",)]
    assert found[0].text == "q\u2028r"
    assert found[2].text == "s\n(A) red\n(B) blue" and found[2].choices == ("red", "blue")
    assert len(questions_of(path, 2)) == 2


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"image": "a.png", "prompt": "q", "answer": "7"},
            "question 1: no column for the question; found image, prompt, answer; wanted problem",
        ),
        (
            {"picture": "a.png", "q": "q"},
            "no column for the image; found picture, q; wanted images or",
        ),
        ({"image": "b.png", "question": "q", "answer": "7"}, "cannot read the picture b.png"),
        ({"image": "a.png", "question": "q", "answer": ""}, "the question or the answer is empty"),
        ("{", "line 1 is not JSON"),
        ("[1]", "found no object"),
        (
            "",
            "bench.jsonl, question 1: there is none",
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
        [
            ("<image>How many?\nA. 1\nB. 2", 1, ("(B) 2",), ("1", "2")),
            ("No tag", 2, ("x=3",), ()),
        ],
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
        [("<image>q\n(A) x\n(B) y", 1, ("(A) x",), ("x", "y")), ("<image>q", 1, ("7",), ())],
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
        [
            ("a <image 2> b <image 1>\n(A) x\n(B) y", 2, ("(A) x",), ("x", "y")),
            ("q", 1, ("7",), ()),
        ],
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
        [("q\n(A) 1\n(B) 3", 1, ("(B) 3",), ("1", "3")), ("r", 1, ("1.4",), ())],
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


PAIR = dict(problem=["<image>How many?", "b"], answer=["2", "3"], images=[[A], [B]])


def test_a_folder_of_parquet_is_a_dataset_and_what_fits_nothing_is_refused(tmp_path):
    path = parquet(tmp_path, PAIR, ["images"])
    assert [q.answers for q in questions_of(tmp_path, 1)] == [("2",)]
    with pytest.raises(ValueError, match="split"):
        benchmarks.load(f"{tmp_path}@validation", None)
    parquet(tmp_path, dict(prompt=["a"], solution=["b"]))
    with pytest.raises(ValueError, match="no column for the image; found prompt, solution"):
        benchmarks.load(str(path), None)
    assert len(benchmarks.SETS) == 12 and benchmarks.SETS["mmmu"] == "zli12321/MMMU"


@pytest.mark.parametrize("name", ["me@work", "12:30", "a@b:c", "x:y@z", "with space", "50%"])
@pytest.mark.parametrize("kind", ["folder", "file", "saved", "jsonl"])
def test_any_path_is_a_path(name, kind, tmp_path):
    folder = tmp_path / name / "set"
    folder.mkdir(parents=True)
    path, place = parquet(folder, PAIR, ["images"]), folder
    if kind == "file":
        place = path
    elif kind == "saved":
        import datasets

        path.unlink()
        datasets.Dataset.from_dict(PAIR).save_to_disk(str(folder))
    elif kind == "jsonl":
        row = {"image": "a.png", "question": "q"}
        place = write_bench(folder, row | {"answer": "2"}, row | {"answer": "3"})
    found = questions_of(place)
    assert [q.answers for q in found] == [("2",), ("3",)] and len(found[0].pictures) == 1
    if kind == "folder":
        assert (
            len(questions_of(f"{folder}@test")) == len(questions_of(f"{folder}:default@test")) == 2
        )


def test_what_save_to_disk_wrote(tmp_path):
    """One set, or a dict of splits. A picture in it is decoded by us."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(PAIR).cast_column("images", datasets.List(datasets.Image()))
    rows.save_to_disk(str(tmp_path / "one"))
    splits = {"train": rows.select([0]), "test": rows}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "splits"))
    assert [q.pictures[0].size for q in questions_of(tmp_path / "one")] == [(4, 6), (9, 3)]
    assert len(questions_of(tmp_path / "splits")) == 2
    assert len(questions_of(f"{tmp_path}/splits@train")) == 1
    with pytest.raises(ValueError, match="cannot be loaded: it has no split dev, only train, test"):
        benchmarks.load(f"{tmp_path}/splits@dev", None)


@pytest.mark.parametrize(
    "bench, message",
    [
        ("nothing", "no benchmark nothing: give charts, FILE.jsonl"),
        ("nowhere/MMSI.jsonl", "there is no folder nowhere"),
        ("/nowhere/sets/MMSI", "there is no folder /nowhere/sets"),
        ("{here}/gone", "there is no {here}/gone"),
        ("gone.parquet", "there is no gone.parquet"),
        ("{here}/table.tsv", "no benchmark {here}/table.tsv: "),
        ("{here}/a[1]", "reads * ? [ and :: as patterns"),
    ],
)
def test_a_mistyped_path_is_one_line(bench, message, tmp_path):
    (tmp_path / "table.tsv").write_text("a\tb\n")
    (tmp_path / "a[1]").mkdir()
    with pytest.raises(
        (ValueError, OSError), match=re.escape(message.format(here=tmp_path))
    ) as error:
        benchmarks.load(bench.format(here=tmp_path), None)
    assert "\n" not in str(error.value)


def test_a_broken_picture_in_parquet_names_its_question(tmp_path):
    broken = {"bytes": png()[:50], "path": None}
    for pictures in ([], ["images"]):
        columns = dict(problem=["a", "Which?"], answer=["1", "2"], images=[A, broken])
        name, rows, folder = benchmarks.load(str(parquet(tmp_path, columns, pictures)), None)
        assert benchmarks.question(rows[0], name, folder).answers == ("1",)
        with pytest.raises(ValueError, match=r'cannot read the picture .* \(it asks "Which\?"\)'):
            benchmarks.question(rows[1], name, folder)


def test_a_byte_order_mark_is_no_part_of_a_line(tmp_path):
    path = write_bench(tmp_path, {"image": "a.png", "question": "q", "answer": "1"})
    line = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + line.strip() + b"\r\n\xef\xbb\xbf" + line)
    assert [q.text for q in questions_of(path)] == ["q", "q"]


def test_a_digest_is_of_what_is_asked_alone(tmp_path):
    data = encoded(Image.new("RGB", (4, 6), "red"))
    row = {"question": "Which?", "answer": "1"}
    same = {
        benchmarks.question(row | {"image": value} | more, "mine", tmp_path, decode).digest
        for value in [*by_all_routes(data, tmp_path)][:-1]  # of a decoded one the pixels count
        for more in ({}, {"answer": "2"}, {"tolerance": 0.1}, {"id": 7})
        for decode in (True, False)
    }
    assert len(same) == 1
    other = [{"question": "Why?"}, {"choices": ["1", "2"]}, {"hint": "x"}, {"image": png()}]
    other += [{"image": [data, data]}, {"image": None}]
    for more in other:
        changed = benchmarks.question(row | {"image": data} | more, "mine", tmp_path)
        same.add(changed.digest)
    assert len(same) == 1 + len(other)


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


BAD_ROWS = [
    {"choices": ["red", "blue"], "answer": "green"},
    {"choices": ["red", "blue"], "answer": 2},
    {"choices": ["red", "blue"], "answer": ["A", "C"]},
    {"options": "A. red B. blue", "answer": "B"},
    {"options": "red", "answer": "A"},
    {"options": 42, "answer": "B"},
    {"options": [{"a": 1}], "answer": "B"},
    {"answer": None},
    {"answer": float("nan")},
    {"answer": []},
    {"answer": "[]"},
    {"answer": "1", "tolerance": "some"},
    {"answer": "1", "precision": "x"},
    {"answer": "1", "image": "gone\n.png"},
    {"answer": "1", "image": ["a.png", {"bytes": None, "path": None}]},
    {"answer": "1", "image": 10**12},
    {"answer": "1", "image": base64.b64encode(png()[:50]).decode()},
]


@pytest.mark.parametrize("flaw", BAD_ROWS)
def test_a_bad_row_is_one_line_that_names_its_question(flaw, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    row = {"image": "a.png", "question": "Which colour\nis it?"} | flaw
    with pytest.raises(ValueError, match='it asks "Which colour is it') as error:
        benchmarks.question(row, "mine", tmp_path)
    assert "\n" not in str(error.value)


# ---- pictures ------------------------------------------------------------------------------------


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_all_routes(data, folder):
    """A picture file in every form in which a row may hold it."""
    (folder / "file").write_bytes(data)
    text = base64.b64encode(data).decode()
    broken = "\n".join(text[i : i + 60] for i in range(0, len(text), 60))
    yield from ("file", str(folder / "file"), folder / "file", data, bytearray(data))
    yield from (text, broken, text.rstrip("="), base64.urlsafe_b64encode(data).decode())
    yield f"data:image/png;base64,{text}"
    yield f"data:image/png,{urllib.parse.quote(data)}"
    yield from ({"bytes": data, "path": "gone"}, {"bytes": None, "path": "file"}, {"bytes": text})
    yield Image.open(io.BytesIO(data))


GREY = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
CLEAR = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
PALETTE = Image.new("P", (10, 10), 0)
PALETTE.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
for spotted, spot in ((CLEAR, (255, 0, 0, 255)), (PALETTE, 1)):
    spotted.putpixel((9, 0), spot)
LA = Image.new("LA", (10, 10), (0, 0))
LA.putpixel((9, 0), (128, 255))
BLACK = Image.new("1", (10, 10), 1)
BLACK.putpixel((9, 0), 0)
DARK = Image.new("L", (10, 10), 0)
DARK.putpixel((9, 0), 200)
DEEP = Image.fromarray(np.where(np.arange(100).reshape(10, 10) == 9, 40000, 77).astype(np.uint16))
CYAN_FREE = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
WHITE, RED = (255, 255, 255), (255, 0, 0)

# A file, and what two of its pixels are (about: JPEG).
FILES = {
    "16 bits": (encoded(Image.fromarray(GREY)), {(0, 0): (0, 0, 0), (32, 0): (130,) * 3}),
    "32 bits": (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), {(32, 0): (130,) * 3}),
    "fractions": (
        encoded(Image.fromarray((GREY / 65535).astype(np.float32)), "TIFF"),
        {(32, 0): (130,) * 3, (63, 0): WHITE},
    ),
    "16 bits, clear": (encoded(DEEP, transparency=77), {(0, 0): WHITE, (9, 0): (156,) * 3}),
    "RGBA": (encoded(CLEAR), {(0, 0): WHITE, (9, 0): RED}),
    "palette, clear": (encoded(PALETTE, transparency=0), {(0, 0): WHITE, (9, 0): RED}),
    "LA": (encoded(LA), {(0, 0): WHITE, (9, 0): (128,) * 3}),
    "1 bit": (encoded(BLACK), {(0, 0): WHITE, (9, 0): (0, 0, 0)}),
    "grey, clear": (encoded(DARK, transparency=0), {(0, 0): WHITE, (9, 0): (200,) * 3}),
    "CMYK": (encoded(CYAN_FREE, "JPEG"), {(0, 0): RED}),
}


@pytest.mark.parametrize("name", FILES)
def test_pictures_lie_on_white_paper_by_all_routes(name, tmp_path):
    data, pixels = FILES[name]
    for value in by_all_routes(data, tmp_path):
        image = benchmarks.picture(value, tmp_path)
        assert image.mode == "RGB"
        for place, colour in pixels.items():
            assert np.abs(np.subtract(image.getpixel(place), colour)).max() <= 2, type(value)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_are_upright_by_all_routes(orientation, kind, tmp_path):
    upright = Image.new("RGB", (20, 10), "white")
    ImageDraw.Draw(upright).rectangle([0, 0, 7, 7], fill="red")
    # What a camera that is held so would store.
    turns = (None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE")
    turn = (*turns, "ROTATE_90", "TRANSVERSE", "ROTATE_270")[orientation - 1]
    stored = upright.transpose(Image.Transpose[turn]) if turn else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif, quality=100, subsampling=0)
    for value in by_all_routes(data, tmp_path):
        image = benchmarks.picture(value, tmp_path)
        assert image.size == (20, 10), type(value)
        assert image.getpixel((1, 1))[1] < 60 and image.getpixel((18, 8))[1] > 200


# ---- what is right -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question, good, bad",
    [
        (dict(answers=["B"], choices=["3 cm", "5 cm"]), ["(b)", "B: 5 cm", "5"], ["A", "5 m", ""]),
        (dict(answers=["Yes"]), ["yes", "Yes, it is."], ["No", "maybe yes"]),
        (dict(answers=["40"], tolerance=0.05), ["42", "38", "41 %"], ["42.1", "37.9", "-40", "x"]),
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
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in question.items()}
    question = benchmarks.Question("?", (), **fields)
    # The same rule holds on what the JSONL keeps.
    kept = {key: value for key, value in vars(question).items() if key != "pictures"}
    for q in (question, json.loads(json.dumps(kept))):
        assert [answer for answer in good if not benchmarks.right(answer, q)] == []
        assert [answer for answer in bad if benchmarks.right(answer, q)] == []
        assert not benchmarks.right(None, q)


def question_of(row):
    text = base64.b64encode(png()).decode()
    return benchmarks.question({"image": text, "question": "Which?"} | row, "mine", Path())


CASES = json.loads((Path(__file__).parent.parent / "cases/bench.json").read_text())
YES, NO = ["Yes", r"\text{Yes}", "Yes, it is", "True"], ["No", "**no**.", "False"]
OTHER = ["not sure", "maybe yes", "none", "yesterday", ""]
BOTH = {"A": "red", "B": "blue", "C": float("nan"), "D": "nan", "E": "", "F": None}
CASES += [
    *[{"row": {"answer": a}, "right": YES, "wrong": NO + OTHER} for a in ("true", True)],
    *[{"row": {"answer": a}, "right": NO, "wrong": YES + OTHER} for a in ("no.", False, "False")],
    {"row": {"gt_answer": 0, "answer": None}, "right": NO, "wrong": YES},
    # MMBench, and its like.
    {
        "row": BOTH | {"answer": "B", "hint": "Look twice."},
        "right": ["B", "blue", "B. blue"],
        "wrong": ["A", "red", "nan"],
        "text": "Look twice.\nWhich?\n(A) red\n(B) blue",
    },
    {
        "row": {"choice_a": "red", "choice_b": "blue", "answer": "B", "hint": "nan"},
        "right": ["B", "blue"],
        "wrong": ["A", "red"],
        "text": "Which?\n(A) red\n(B) blue",
    },
    {
        "row": {"choices": ["x", "y", "z"], "A": "red", "B": "blue", "answer": "z"},
        "right": ["C"],
        "wrong": ["blue"],
        "text": "Which?\n(A) x\n(B) y\n(C) z",
    },
    {"row": {"A": "red", "answer": "7"}, "right": ["7"], "wrong": ["A"], "text": "Which?"},
    {
        "row": {"options": float("nan"), "answer": "7"},
        "right": ["7"],
        "wrong": [],
        "text": "Which?",
    },
    {
        "row": {"choices": ["red", "blue", float("nan")], "answer": 1},
        "right": ["B"],
        "wrong": ["A", "nan"],
        "text": "Which?\n(A) red\n(B) blue",
    },
    {"row": {"choices": ["red", None, "blue"], "answer": "C"}, "error": "which is C?"},
    # A key that is a dict, also as text, and with lists inside.
    {"row": {"answer": {"value": "7", "alias": None}}, "right": ["7"], "wrong": ["None", "value"]},
    {"row": {"answer": '{"a": "7", "b": ["seven"]}'}, "right": ["7", "Seven"], "wrong": ["a"]},
    {"row": {"answer": [None, "7", ""]}, "right": ["7"], "wrong": ["None"]},
    {
        "row": {"answer": {"label": "B", "text": "blue"}, "choices": ["red", "blue"]},
        "right": ["B", "blue"],
        "wrong": ["A", "(A) red"],
    },
    {"row": {"answer": {"text": None}}, "error": "empty"},
    {
        "row": {"answer": "['Oslo', 'Norway']"},
        "right": ["Oslo", r"\text{Norway}"],
        "wrong": ["Rome"],
    },
    {"row": {"answer": ["7", "seven"]}, "right": ["7", "7.0", "Seven"], "wrong": ["8", "7, seven"]},
    {"row": {"answer": "[7]"}, "right": ["7"], "wrong": ["8"]},
    {"row": {"answer": "[1, 2]"}, "right": ["[1, 2]"], "wrong": ["1", "2", "[2, 1]"]},
    {"row": {"answer": 0}, "right": ["0", r"\text{0}"], "wrong": ["1"]},
    {"row": {"answer": "None"}, "right": ["none", r"\text{None}"], "wrong": ["0"]},
    # A letter where the choices are in the picture.
    {
        "row": {"answer": "C"},
        "right": ["C", "(c)", "Option C", "C. a fish"],
        "wrong": ["A", "fish"],
    },
    {"row": {"answer": "A, C"}, "right": ["C and A", "AC", "(A), (C)"], "wrong": ["A", "A, B"]},
    {
        "row": {"problem": "Which?\nA. red\nB. blue\nC. green", "answer": "A, C"},
        "right": ["C and A", "AC", "red, green"],
        "wrong": ["A", "C", "ABC", "red"],
    },
    {
        "row": {"problem": "Which? (A) red (B) blue", "answer": r"\text{B}"},
        "right": ["B", "blue", "(B) blue", "B - blue"],
        "wrong": ["A", "red"],
    },
    {
        "row": {"problem": "Add (A) one to (B) two.", "answer": "3"},
        "right": ["3", "3.0"],
        "wrong": ["A", "2"],
    },
    {
        "row": {"options": {"A": "C", "B": "A", "C": "B"}, "answer": "B"},
        "right": ["B", "(B) A"],
        "wrong": ["C", "(A) C"],
        "asked": "(B) A",
    },
    {
        "row": {"options": '["one", "two"]', "answer": 1},
        "right": ["B", "two", "B: two"],
        "wrong": ["A", "one"],
        "asked": "\n(A) one\n(B) two",
    },
]


@pytest.mark.parametrize("case", [case for case in CASES if "error" not in case])
def test_rows_as_data_sets_write_them(case):
    question = question_of({k: v for k, v in case["row"].items() if v != "PICTURE"})
    assert [a for a in case["right"] if not benchmarks.right(a, question)] == []
    assert [a for a in case["wrong"] if benchmarks.right(a, question)] == []
    assert case.get("asked", "") in question.text
    assert case.get("text", question.text) == question.text


NAN = float("nan")


@pytest.mark.parametrize(
    "choices",
    [
        ["red", "blue", NAN, None, " "],
        ["A. red", "B. blue", NAN],
        {"A": "red", "B": "blue", "C": NAN, "D": ""},
        '{"A": "red", "B": "blue", "C": NaN}',
        {"text": ["red", "blue", NAN], "label": ["A", "B", "C"]},
        [{"label": label, "text": text} for label, text in zip("ABC", ("red", "blue", NAN))],
    ],
)
def test_what_is_nan_is_no_choice(choices):
    assert question_of({"choices": choices, "answer": "B"}).text == "Which?\n(A) red\n(B) blue"


@pytest.mark.parametrize("case", [case for case in CASES if "error" in case])
def test_rows_that_are_refused(case):
    with pytest.raises(ValueError, match='it asks "Which') as error:
        question_of({k: v for k, v in case["row"].items() if v != "PICTURE"})
    assert "\n" not in str(error.value)


def test_choices_that_stand_in_the_problem_are_not_written_twice():
    for text in ("Which?\nA. red\nB. blue", "Which? (A) red (B) blue"):
        question = question_of({"question": text, "choices": ["red", "blue"], "answer": "B"})
        assert question.text == text and question.choices == ("red", "blue")


def test_hostile_answers_take_no_time():
    questions = [question_of({"answer": answer}) for answer in ("C", "yes", "word", "7")]
    start = time.perf_counter()
    for text in ("A, ", "(", "$", "{", "**", r"\text{", "1", "the "):
        assert not any(benchmarks.right(text * 100_000, question) for question in questions)
    assert time.perf_counter() - start < 2


def test_at_most_ten_pictures(tmp_path):
    many = {"images": ["a.png"] * 12, "problem": "<image>" * 12 + "q", "answer": "1"}
    (question,) = questions_of(write_bench(tmp_path, many))
    assert len(question.pictures) == 10 and len(question.parts("{question}")) == 11


def test_the_sets_of_the_paper_on_the_hub_and_in_a_folder(tmp_path):
    on_hub = benchmarks.paper()
    assert len(on_hub) == 12 and on_hub["MMMU"] == "zli12321/MMMU@test"
    (tmp_path / "MMSI").mkdir()
    (tmp_path / "ChartQA.jsonl").write_text("")
    here = benchmarks.paper(str(tmp_path))
    assert here["MMSI"] == str(tmp_path / "MMSI")
    assert here["ChartQA"] == str(tmp_path / "ChartQA.jsonl")
    with pytest.raises(FileNotFoundError, match="no benchmark .*mathverse"):
        benchmarks.load(here["mathverse"], None)


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
