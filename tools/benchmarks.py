r"""Questions from outside: where they come from, how they are put, when an answer is right.

    JSONL      one object a line; pictures as paths (relative to the file), base64, or data: URLs
    parquet    one file; pictures as bytes, {bytes, path}, or what `datasets` wrote
    a dataset  a local folder (also of save_to_disk), a hub id, or one of SETS by its name, with
               :CONFIG and @SPLIT if need be: MMMU   "MMMU/MMMU_Pro:standard (4 options)@test"

The last two need `datasets` (pip install datasets), imported here only. The authors' twelve sets
have `problem` with the choices written into it; others have them in a column, or each in its own.
A row is read when its turn comes. Whatever is wrong with it is one ValueError that says what.
"""

import base64
import contextlib
import functools
import glob
import hashlib
import io
import json
import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps

from prompts import fill
from support.answers import answers_match, canonical
from support.choices import (
    LONGEST,
    bare,
    listed,
    meant,
    read_choices,
    right_choices,
    same_letters,
    truth,
    unpacked,
)
from support.machine import reason

NAMES = ["MMSI", "mathverse", "mathvision", "mathvista", "mm-vet", "mmmu_pro_4_options"]
NAMES += ["mmmu_pro_10options", "mmmu-pro-vision", "visnumbench", "hallusionbench"]
NAMES += ["MMMU", "ChartQA"]
SETS = {name.lower(): f"zli12321/{name}" for name in NAMES}
MOST = 10  # pictures of a question, as the authors have it
# Their answers are letters, also where the choices are letters: C, A, B, D. MathVista's are texts.
LETTERED = re.compile("mmmu|mmsi|mathverse|mathvision", re.IGNORECASE)
# What a column may be called; of several in a set the first that is filled counts.
PICTURES = [f"image_{i}" for i in range(1, 8)]  # MMMU: all of these
COLUMNS = {
    "image": ("images", "decoded_image", "image", *PICTURES),
    "question": ("problem", "question", "query"),
    "answer": ("answer", "gt_answer", "label"),  # gt_answer: 0 or 1, HallusionBench's no and yes
    "choices": ("choices", "options"),
}
# A column for each choice: A, B, ... as MMBench has them, or choice_a, choice_b, ...
LETTER = re.compile(r"[A-J]|(?i:(?:choice|option)[ _]?[a-j])")
TAG = re.compile(r"<image ?(\d*)>")  # where a picture goes in the text
# The system message with which questions from outside are asked; the authors have one like it.
NEUTRAL = r"""You answer questions about pictures. Look at every picture carefully and think step by
step. End with the final answer in \boxed{}: a number, a few words, or the letter of a choice."""


@dataclass(frozen=True)
class Question:
    text: str  # with <image> or <image 2> where a picture goes, if it says where
    pictures: tuple  # of PIL.Image; may be empty
    answers: tuple  # any of these is right
    choices: tuple = ()  # the texts of (A), (B), ...
    tolerance: float = 0.0  # relative: a number may be off by this share of the true one, or
    decimals: int | None = None  # absolute: by half a unit of this decimal place
    digest: str = ""  # of what is asked: the text, and the pictures as they are in their files

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


# ---------------------------------------------------------------------------------------- the rows


def paper(folder=None):
    """{name: where it is} of the authors' twelve sets: on the hub, or in a folder."""
    sources = {name: f"zli12321/{name}@test" for name in NAMES}
    for name in sources if folder else []:
        place = Path(folder, name).absolute()
        files = [place, Path(f"{place}.jsonl"), Path(f"{place}.parquet")]
        sources[name] = str(next(filter(Path.exists, files), place))
    return sources


def located(bench):
    """-> (a path, hub id or name; its config; its split). A path may have ":" and "@" in it."""
    for form in ("(.+)()()", "(.+)()@(.+)", "(.+):(.+)@(.+)", "(.+):(.+)()"):
        found = re.fullmatch(form, bench)
        if found and os.path.exists(found[1]):
            return found.groups()
    return re.fullmatch("(.*?)(?::(.*?))?(?:@(.*))?", bench).groups(default="")


def load(bench, limit):
    """-> (name, the first `limit` rows, folder of the pictures). ValueError, OSError."""
    source, config, split = located(bench)
    path = Path(source)
    if path.is_file() and path.suffix == ".jsonl":
        return path.stem, read_jsonl(path)[:limit], path.parent
    if path.exists() and (glob.has_magic(source) or "::" in source):
        raise ValueError(f"{bench}: `datasets` reads * ? [ and :: as patterns: rename it")
    is_file, hub_id = path.suffix in (".jsonl", ".parquet"), SETS.get(source.lower(), source)
    if not path.exists() and not is_file and re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        source = hub_id
    elif not path.is_dir() and not (path.is_file() and is_file):
        advice = "FILE.jsonl, FILE.parquet, a folder, a hub id, or one of " + ", ".join(SETS)
        advice = f"give charts, {advice}"
        if not path.parent.is_dir() or path.is_absolute() or is_file:
            missing = path if path.parent.is_dir() else f"folder {path.parent}"
            advice = f"there is no {missing}"
        raise FileNotFoundError(f"no benchmark {bench}: {advice}")
    try:
        rows = open_rows(path, source, config, split)
    except ImportError:
        raise ValueError(f"--bench {bench} needs: pip install datasets") from None
    except Exception as error:  # no network, no such set, no such split: many classes
        where = "" if path.exists() else "; nor is it a folder here"
        raise ValueError(f"{bench} cannot be loaded: {reason(error)}{where}") from error
    flaw = lacks(rows.column_names if len(rows) else ["no rows"])
    if flaw:
        raise ValueError(f"{bench}: {flaw}")
    name = path.stem if is_file else "-".join(filter(None, (path.name, config)))
    rows = rows.select(range(min(limit or len(rows), len(rows))))
    # As it is stored: `datasets` would decode the pictures of a row, and fail without its question.
    return name, rows.with_format("arrow"), path.parent if is_file else path


def open_rows(path, source, config, split):
    """A set of `datasets`, from a file, a folder, or the hub. Errors are of all kinds."""
    import datasets

    if path.is_file():
        return datasets.Dataset.from_parquet(source)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        rows = datasets.load_from_disk(source)
        splits = rows if isinstance(rows, dict) else {str(rows.split): rows}
        split = split or ("test" if len(splits) > 1 else next(iter(splits)))
        if split not in splits:
            raise ValueError(f"it has no split {split}, only {', '.join(splits)}")
        return splits[split]
    if not path.is_dir():
        do_without_network()
    return datasets.load_dataset(source, config or None, split=split or "test")


@functools.cache
def do_without_network():
    """Where the hub does not answer `datasets` is to read its cache, and not to try for minutes."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        down = get_session().head(constants.ENDPOINT, timeout=5).status_code >= 500
    except Exception:  # of any library below
        down = True
    if down:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def read_jsonl(path):
    """A row per line, or a ValueError in its place. ValueError if no row can be used."""
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        line = line.strip("\ufeff \t\r")  # a byte order mark
        try:
            row = json.loads(line) if line else None
            flaw = lacks(row if isinstance(row, dict) else ["no object"])
        except (ValueError, RecursionError):
            row, flaw = line, f"line {number} is not JSON"
        if row is not None:
            rows.append(ValueError(flaw) if flaw else row)
    if all(isinstance(row, ValueError) for row in rows):
        raise ValueError(f"{path}, question 1: {(rows or ['there is none'])[0]}")
    return rows


def lacks(columns):
    """Which of a picture, a question and an answer has no column, in words; "" if all have."""
    for field in ("image", "question", "answer"):
        if not set(COLUMNS[field]) & set(columns):
            wanted, found = " or ".join(COLUMNS[field]), ", ".join(columns)
            return f"no column for the {field}; found {found}; wanted {wanted}"
    return ""


def question(row, name, folder, pictures=True):
    """One row -> Question. ValueError, one line that names the question, if it cannot be used.

    pictures=False: they stay as the row has them; all else, the digest too, is the same.
    """
    if isinstance(row, ValueError):
        raise row
    row = row if isinstance(row, dict) else row.to_pylist()[0]
    try:
        return read(row, name, folder, pictures)
    except Exception as error:  # a stranger's row may break any decoder in any way
        asked = " ".join(str(cell(row, "question") or "").split())[:80]
        raise ValueError(f'{one_line(error)} (it asks "{asked}")') from error


def one_line(error):
    return " ".join(str(error).split()) or repr(error)


def cell(row, field):
    """The first of a field's columns that is filled."""
    for column in COLUMNS[field]:
        if not is_empty(row.get(column)):
            number = {"0": "No", "1": "Yes"} if column == "gt_answer" else {}
            return number.get(str(row[column]), row[column])
    return None


def read(row, name, folder, decode):
    found = [row[column] for column in PICTURES if column in row] or unpacked(cell(row, "image"))
    found = found if isinstance(found, list | tuple) else [found]
    found = [value for value in found if not is_empty(value)][:MOST]
    pictures = tuple(picture(value, folder) for value in found) if decode else tuple(found)

    text, answer = str(cell(row, "question") or ""), cell(row, "answer")
    if not text.strip() or not leaves(unpacked(answer)):
        raise ValueError("the question or the answer is empty")
    choices, labels = read_choices(without_nan(unpacked(cell(row, "choices"))) or lettered(row))
    written = listed(text)
    if len(choices) != len(written):
        text += "".join(f"\n({chr(65 + i)}) {choice}" for i, choice in enumerate(choices))
    letters = bool(LETTERED.search(name))
    if not is_empty(row.get("hint")) and row["hint"] != "nan":
        text = f"{row['hint']}\n{text}"
    if choices:
        if isinstance(unpacked(answer), dict):
            answer = leaves(unpacked(answer))
        answers = (right_choices(answer, choices, labels, letters),)
    else:
        answers = right_answers(answer)
        # Choices that stand in the problem count if the answer is one of them.
        if all(meant(right, written) for right in answers):
            choices = written
            answers = tuple(right_choices(right, written, [], letters) for right in answers)

    # ChartQA's "relaxed accuracy": a number may be off by 5 % (so may a year: its rule).
    tolerance = float(row.get("tolerance") or (0.05 if "chartqa" in name.lower() else 0))
    is_number = re.fullmatch(r"[-\d.]+", str(answer))
    decimals = row.get("precision") if is_number else None  # MathVista
    decimals = None if is_empty(decimals) else int(decimals)
    asked = digest(text, found, folder)
    return Question(text, pictures, answers, tuple(choices), tolerance, decimals, asked)


def is_empty(value):
    """None, the nan of pandas, or a blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)


def without_nan(value):
    """A column of choices, None for those that are empty. ValueError: one in the middle is."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        while value and is_empty(value[-1]):
            value = value[:-1]
        if any(map(is_empty, value)):  # is what follows a B or a C?
            raise ValueError("an empty choice stands before another")
        return [without_nan(item) for item in value]
    return None if is_empty(value) else value


def lettered(row):
    """Choices with a column each, or None. pandas wrote "nan" for those that there are not."""
    found = {}
    for column, value in row.items():
        if LETTER.fullmatch(column) and not is_empty(value) and value != "nan":
            found[column[-1].upper()] = value
    return found if len(found) > 1 else None


def leaves(value):
    """What stands in lists and dicts, and is not empty: {"value": "7", "short": None} -> ["7"]

    A pair is one value: "[(4, 5)]" holds a point.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [] if is_empty(value) else [value]


def right_answers(value):
    """Any of these is right: a list or a dict, also as text, or A<OR>B (MM-Vet)."""
    items = unpacked(value)
    if not isinstance(items, list | dict):
        return tuple(str(value).split("<OR>"))
    # "[1, 2]" is an answer; "[1]" and "['one', 'two']" are lists of answers.
    is_list = isinstance(value, str) and isinstance(items, list)
    if is_list and len(items) > 1 and not isinstance(items[0], str):
        return (value,)
    return tuple(map(str, leaves(items)))


# ------------------------------------------------------------------------------------ the pictures


def picture(value, folder):
    """A PIL image in RGB, upright and on white paper, from whatever a row holds. ValueError."""
    with readable(value):
        image = value
        if not isinstance(value, Image.Image):
            image = Image.open(io.BytesIO(content(value, folder)))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def digest(text, pictures, folder):
    """A hash of a text and of pictures as they are in their files, wherever these lie."""
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
    for value in pictures:
        with readable(value):
            if isinstance(value, Image.Image):
                data = f"{value.mode} {value.size} ".encode() + value.tobytes()
            else:
                data = content(value, folder)
        found.update(hashlib.blake2b(data).digest())
    return found.hexdigest()


@contextlib.contextmanager
def readable(value):
    try:
        yield
    except Exception as error:  # a broken file may break a decoder in any way
        raise ValueError(f"cannot read the picture {str(value)[:80]}") from error


def content(value, folder):
    """The bytes of a picture file: themselves, {bytes, path}, a path, a data URL, or base64."""
    if isinstance(value, dict):
        keys = ("bytes", "path", "url", "data", "base64")
        value = next(value[key] for key in keys if value.get(key))
    if isinstance(value, bytes | bytearray | memoryview):
        return value
    if os.path.isfile(os.path.join(folder, value)):
        return Path(folder, value).read_bytes()
    head, comma, data = value.partition(",")
    if comma and not head.endswith(";base64"):
        return unquote_to_bytes(data)
    data = re.sub(r"\s", "", data if comma else value).translate(str.maketrans("-_", "+/"))
    return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)


def eight_bits(image):
    """Grey in 16 or 32 bits, or as fractions, with 0 for black -> in 8 bits."""
    values = np.asarray(image, dtype=float)
    white = 65535
    if image.mode in ("I", "F"):  # how many bits were used is not written
        white = next((top for top in (1, 255, 65535) if values.max() <= top), values.max())
    values = np.where(values == image.info.get("transparency"), white, values)
    return Image.fromarray((values * 255 / white).round().clip(0, 255).astype("uint8"))


# ----------------------------------------------------------------------------------------- judging


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
    if given is None:
        return False
    return any(same(given[:LONGEST], gold.strip(), q) for gold in q["answers"])


def same(given, gold, q):
    if q["choices"]:
        wanted = meant(gold, q["choices"])
        return bool(wanted) and meant(given, q["choices"]) == wanted
    if truth(gold) is not None:
        return truth(given) == truth(gold)
    if same_letters(given, gold):  # the choices are not known: in the picture, say
        return True
    if "<AND>" in gold:  # MM-Vet: all of them, in any order
        pieces = re.split(r",|;|\band\b", given)
        wanted = gold.split("<AND>")
        return all(any(answers_match(piece, text) for piece in pieces) for text in wanted)
    a, b = canonical(given), canonical(gold)
    if a and b and not isinstance(a[0], str) and not isinstance(b[0], str):  # two numbers
        near = Fraction(str(q["tolerance"])) * abs(b[0])
        if q["decimals"] is not None:
            near = Fraction(1, 2 * 10 ** q["decimals"])
        return abs(a[0] - b[0]) <= near and (a[1] == b[1] or "" in (a[1], b[1]))
    return answers_match(given, gold) or bare(given).casefold() == bare(gold).casefold()
