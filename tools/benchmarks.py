r"""Questions from outside: where they come from, how they are put, when an answer is right.

    JSONL      one object a line; pictures as paths (relative to the file), base64, or data: URLs
    parquet    one file; pictures as bytes, {bytes, path}, or what `datasets` wrote
    a dataset  a local folder, a hub id, or one of SETS by its name, with :CONFIG and @SPLIT if need
               be: MMMU   zli12321/ChartQA@test   "MMMU/MMMU_Pro:standard (4 options)"

The last two need `datasets` (pip install datasets), imported here only. A picture is decoded when
its turn comes. The authors' twelve sets (split test) have `problem` with the choices written into
it, `images` and `answer`; the originals on the hub have the choices in a column of their own.
"""

import ast
import base64
import io
import json
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from PIL import Image

from prompts import fill
from support.answers import answers_match, canonical

SETS = {
    name.lower(): f"zli12321/{name}"
    for name in (
        "MMSI",
        "mathverse",
        "mathvision",
        "mathvista",
        "mm-vet",
        "mmmu_pro_4_options",
        "mmmu_pro_10options",
        "mmmu-pro-vision",
        "visnumbench",
        "hallusionbench",
        "MMMU",
        "ChartQA",
    )
}
# ChartQA's "relaxed accuracy": a number may be off by 5 % (so may a year: its rule).
TOLERANCE = {"chartqa": 0.05}
# What a column may be called; of several in a set the first that is filled counts.
COLUMNS = {
    "image": (
        "images",
        "decoded_image",
        "image",
        *(f"image_{i}" for i in range(1, 8)),
    ),  # MMMU: all of these
    "question": ("problem", "question", "query"),  # problem: with its choices written out
    "answer": ("answer", "gt_answer", "label"),  # gt_answer: 0 or 1, HallusionBench's no and yes
    "choices": ("choices", "options"),
    "type": ("content_type", "category", "question_type"),
}
TAG = re.compile(r"<image ?(\d*)>")  # where a picture goes in the text


@dataclass(frozen=True)
class Question:
    text: str  # with <image> or <image 2> where a picture goes, if it says where
    pictures: tuple  # of PIL.Image; may be empty
    answers: tuple  # any of these is right
    choices: tuple = ()  # the texts of (A), (B), ...
    tolerance: float = 0.0  # relative: a number may be off by this share of the true one, or
    decimals: int | None = None  # absolute: by half a unit of this decimal place
    type: str = "all"  # the row of the table by type in which it counts

    def parts(self, template):
        """The Solver's prompt for `VLM.encode`: texts and pictures in order.

        Without any tag all pictures come first. A tag without its picture is dropped, and so is a
        picture that no tag asks for.

        >>> asked = Question("Is <image> like <image>, not <image>?", ("A", "B"), ("yes",))
        >>> asked.parts("{question} Box it.")
        ['Is ', 'A', ' like ', 'B', ', not ', '? Box it.']
        """
        first, *rest = TAG.split(fill(template, question=self.text))
        if not rest:
            return [*self.pictures, first]
        found, unnumbered = [first], iter(range(len(rest)))
        for number, text in zip(rest[::2], rest[1::2]):
            index = int(number) - 1 if number else next(unnumbered)
            found += [*self.pictures[index : index + 1], text] if index >= 0 else [text]
        return [part for part in found if part != ""]


# ------------------------------------------------------------------------------------------ reading


def load(bench, limit):
    """-> (name, the first `limit` rows, folder of the pictures); rows[i] is a dict.

    ValueError, OSError.
    """
    path, name = Path(bench), Path(bench).stem
    if path.suffix in (".jsonl", ".parquet") and not path.is_file():
        raise FileNotFoundError(f"no benchmark {bench}: there is no such file")
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except ValueError:
                raise ValueError(f"{path} line {number} is not JSON") from None
        for number, row in enumerate(rows, 1):
            check(row if isinstance(row, dict) else ["no object"], f"{path}, question {number}")
        check(rows[0] if rows else ["no rows"], path)
        return name, rows[:limit], path.parent
    source, config, split = re.fullmatch("(.*?)(?::(.*?))?(?:@(.*))?", bench).groups(default="")
    source = source if Path(source).is_dir() else SETS.get(source.lower(), source)
    if (
        path.suffix != ".parquet"
        and not Path(source).is_dir()
        and not re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    ):
        raise FileNotFoundError(
            f"no benchmark {bench}: give charts, FILE.jsonl, FILE.parquet, a folder, a hub id, "
            f"or one of {', '.join(SETS)}"
        )
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"--bench {bench} needs the package datasets: pip install datasets"
        ) from None
    if path.suffix == ".parquet":
        rows = datasets.Dataset.from_parquet(str(path))
    else:
        rows = datasets.load_dataset(source, config or None, split=split or "test")
        name = "-".join(filter(None, (Path(source).name, config)))
    check(rows.column_names if len(rows) else ["no rows"], bench)
    return name, rows.select(range(min(limit or len(rows), len(rows)))), path.parent


def check(columns, where):
    """ValueError, with what was found and what is wanted, if a needed column is not there."""
    wanted = {field: COLUMNS[field] for field in ("image", "question", "answer")}
    if missing := [field for field, names in wanted.items() if not set(names) & set(columns)]:
        wanted = "; ".join(f"{field}: {' or '.join(names)}" for field, names in wanted.items())
        missing, found = " and the ".join(missing), ", ".join(columns)
        raise ValueError(f"{where}: no column for the {missing}; found {found}; wanted {wanted}")


def question(row, name, folder):
    """One row -> Question. ValueError if a picture cannot be read or there is no answer."""
    column = {
        f: next((c for c in names if row.get(c) is not None), None) for f, names in COLUMNS.items()
    }
    text, answer = (str(row[column[f]]) if column[f] else "" for f in ("question", "answer"))
    found = [row[c] for c in COLUMNS["image"][3:] if c in row] or row.get(column["image"])
    pictures = [
        picture(p, folder) for p in (found if isinstance(found, list) else [found]) if p is not None
    ]
    choices = row.get(column["choices"]) or ()
    choices = tuple(
        map(str, ast.literal_eval(choices) if isinstance(choices, str) else choices)
    )  # "['a', 'b']": MMMU
    if choices and column["question"] != "problem":
        text += "".join(f"\n({chr(65 + i)}) {choice}" for i, choice in enumerate(choices))
    elif not choices and re.fullmatch("[A-J]", answer):  # written in the problem: A. ..., (B) ...
        listed = re.findall(r"^\s*\(?([A-J])[.):]\s*(.+?)\s*$", text, re.MULTILINE)
        choices = tuple(
            choice for i, (letter, choice) in enumerate(listed) if letter == chr(65 + i)
        )
    answer = (
        {"0": "No", "1": "Yes"}.get(answer, answer) if column["answer"] == "gt_answer" else answer
    )
    several = row[column["answer"]] if column["answer"] else []
    answers = tuple(
        map(str, several if isinstance(several, list) else answer.split("<OR>"))
    )  # <OR>: MM-Vet
    if not "".join(answers).strip() or not text.strip():
        raise ValueError("the question or the answer is empty")
    decimals = row.get("precision") if re.fullmatch(r"[-\d.]+", answer) else None  # MathVista
    tolerance = float(row.get("tolerance") or TOLERANCE.get(name.lower(), 0))
    return Question(
        text,
        tuple(pictures),
        answers,
        choices,
        tolerance,
        None if decimals is None else int(decimals),
        str(row.get(column["type"]) or "all"),
    )


def picture(value, folder):
    """A PIL.Image from what a row may hold: one already, {bytes, path}, bytes, a path, base64."""
    if isinstance(value, Image.Image):
        return value.convert("RGB") if value.mode not in ("RGB", "RGBA") else value
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    try:
        if isinstance(value, str) and len(value) < 1000 and (folder / value).is_file():
            value = (folder / value).read_bytes()
        elif isinstance(value, str):
            value = base64.b64decode(re.sub(r"^data:[^,]*,", "", value), validate=True)
        with Image.open(io.BytesIO(value)) as file:
            return file.convert("RGB")
    except (OSError, TypeError, ValueError):
        raise ValueError(f"cannot read the picture {str(value)[:80]}") from None


# ------------------------------------------------------------------------------------------ judging


def right(given, q):
    """Is the answer `given` right for q, a Question or the dict that is kept of one? None is not.

    >>> q = Question("Which?", (), ("B",), ("red", "blue"))
    >>> [right(a, q) for a in ("b", "(B) blue", "Blue", "red", "A", None)]
    [True, True, True, False, False, False]
    >>> q = Question("?", (), ("40",), tolerance=0.05)
    >>> [right(a, q) for a in ("42", "38.0", "43", "42 km")]
    [True, True, False, True]
    """
    q = q if isinstance(q, dict) else vars(q)
    return given is not None and any(same(given, gold.strip(), q) for gold in q["answers"])


def same(given, gold, q):
    if q["choices"]:
        chosen, meant = (index_of(text, q["choices"]) for text in (given, gold))
        return chosen == meant if meant is not None else answers_match(given, gold)
    if gold.lower() in ("yes", "no"):
        word = re.match(r"\W*(yes|no)\b", given, re.IGNORECASE)
        return bool(word) and word[1].lower() == gold.lower()
    if "<AND>" in gold:  # MM-Vet: all of them, in any order
        pieces = re.split(r",|;|\band\b", given)
        return all(
            any(answers_match(piece, part) for piece in pieces) for part in gold.split("<AND>")
        )
    a, b = canonical(given), canonical(gold)
    if a and b and not isinstance(a[0], str) and not isinstance(b[0], str):  # two numbers
        places = q["decimals"]
        near = (
            Fraction(str(q["tolerance"])) * abs(b[0])
            if places is None
            else Fraction(1, 2 * 10**places)
        )
        return abs(a[0] - b[0]) <= near and (a[1] == b[1] or "" in (a[1], b[1]))
    return answers_match(given, gold)


def index_of(text, choices):
    """Which choice a text means, by letter or in words. None if it means no choice, or several.

    >>> texts = ("B", "(b)", "A. 3 cm", "5 cm", "7 cm", "A picture")
    >>> [index_of(text, ("3 cm", "5 cm")) for text in texts]
    [1, 1, 0, 1, None, None]
    """
    letter = re.fullmatch(r"\(?([A-J])(?:[.:)].*)?", text.strip(), re.IGNORECASE | re.DOTALL)
    if letter and ord(letter[1].upper()) - 65 < len(choices):
        return ord(letter[1].upper()) - 65
    fits = [i for i, choice in enumerate(choices) if answers_match(text, choice)]
    return fits[0] if len(fits) == 1 else None
