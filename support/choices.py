r"""Multiple choice: the choices as data sets write them, and which of them an answer means.

    a column of choices -- read_choices --> texts, labels     an answer -- meant --> {0, 2}, A and C

A letter is written as (B), B., Option B, \text{B}, **B**, $B$ or "B - blue"; several as "A, C",
"C and A" or "AC". An answer may also be the text of a choice. Where it is both, as with the choices
D, C, B, A, the right answer is read as a text, a given one as a letter.
"""

import ast
import contextlib
import json
import re

from support.answers import answers_match

LONGEST = 500  # characters of an answer that are looked at
TRUTH = {"yes": True, "true": True, "correct": True}
TRUTH |= {"no": False, "false": False, "incorrect": False}

FULLWIDTH = {code + 0xFEE0: code for code in range(0x21, 0x7F)}  # Ｂ is B
WRAPPER = re.compile(
    r"\\(?:text\w*|math\w+|[mf]?box|boxed|bm|boldsymbol|underline|emph|operatorname) ?\{([^{}]*)\}"
)
STYLE = re.compile(
    r"\$([^$]*)\$ | \\\((.*?)\\\) | \\[ ,;!] | \\(?:bf|it|rm|displaystyle|left|right)(?![a-z])"
    r"| \*\* | __ | ` | </?(?:b|i|em|strong|answer)>",
    re.VERBOSE,
)
QUOTED = re.compile(r"([\"'“‘*_{])(.*)[\"'”’*_}]", re.DOTALL)
LEAD = re.compile(
    r"(?:(?:so|thus|therefore|both|the|my|final|correct|right|best|answer|option|choice|letter)s?\b"
    r"[ :=]*(?:(?:is|are)\b[ :]*)?)+",
    re.IGNORECASE,
)
TAIL = re.compile(r" (?:is|are) (?:the )?(?:correct|right|best)(?: (?:answer|option|choice)s?)?$")
LETTER = re.compile(r"[(\[]?([A-Za-z])[.:]?[)\]]?")
# A letter before a text; group 2 is there if the letter is set off, as in "B. blue", "(B) blue".
FIRST = re.compile(r"[(\[]?([A-Za-z])(?:([)\]][.:]?|[.:](?= )| ?[–—=|:]| -(?= ))|[ ,.(-]) ?(.+)")
LAST = re.compile(r"(.+?) ?[(\[]([A-Za-z])[)\]]")
LETTERS = re.compile(r"[(\[]?[A-Z][)\]]?(?:\W+(?:and )?[A-Z]\b\)?)*")
# Stand for choices that are not known: no text means one of them.
UNKNOWN = [chr(0xE000 + i) for i in range(26)]


def bare(text):
    r"""A text without what only dresses it: LaTeX, bold, quotes, spaces, the full stop.

    >>> bare(r"\textbf{(B)}"), bare("**Yes.**"), bare("$5$ cm"), bare('"blue".')
    ('(B)', 'Yes', '5 cm', 'blue')
    """
    text, before = text.translate(FULLWIDTH), None
    while text != before:
        before = text
        text = STYLE.sub(r" \1\2", WRAPPER.sub(r"\1", text))
        text = " ".join(text.split()).rstrip(" .,;:")
        quoted = QUOTED.fullmatch(text)
        text = quoted[2] if quoted else text
    return text


def without_lead(text):
    """What an answer says: "The answer is option B." -> "B"."""
    text = bare(text)
    lead = LEAD.match(text)
    return bare(TAIL.sub("", text[lead.end() :] if lead else text))


def truth(text, goes_on=False):
    """True or False if the text is a word for yes or no, else None. It may go on: "Yes, it is"."""
    for words in (bare(text), without_lead(text)):
        word = re.match(r"\W*(\w+)" if goes_on else r"\W*(\w+)\W*$", words)
        if word and word[1].casefold() in TRUTH:
            return TRUTH[word[1].casefold()]
    return None


# ---------------------------------------------------------------------------- what an answer means


def agree(text, choice):
    """Does this text say the same as the choice?"""
    text, choice = bare(text), bare(choice)
    if text.casefold() == choice.casefold() or answers_match(text, choice):
        return True
    return truth(choice) is not None and truth(text, goes_on=True) == truth(choice)


def number_of(letter):
    return ord(letter.upper()) - 65


def one(text, choices, as_text):
    """The number of the choice that a bare text means for sure, or None."""
    texts = [bare(choice) for choice in choices]
    letter, first, last = (form.fullmatch(text) for form in (LETTER, FIRST, LAST))
    if text in texts and (as_text or not letter):
        return texts.index(text)
    pairs = [(letter[1], None)] if letter else []
    pairs += [(first[1], first[3])] if first else []
    pairs += [(last[2], last[1])] if last else []
    for letter, words in pairs:
        for choice in texts[number_of(letter) :][:1]:
            if words is None or agree(words, choice) or agree(words.strip("()[] "), choice):
                return texts.index(choice)  # the first of those that are equal
    fits = {texts.index(choice) for choice in texts if agree(text, choice)}
    return fits.pop() if len(fits) == 1 else None


def meant(text, choices, as_text=False):
    """The numbers of the choices that a text means, by letter or in words. Empty if it means none.

    >>> colours = ("red", "blue", "green")
    >>> [sorted(meant(text, colours)) for text in ("(B) blue", "Blue", "C and A", "AC", "a car")]
    [[1], [1], [0, 2], [0, 2], []]
    >>> [sorted(meant("B", ("D", "C", "B", "A"), as_text)) for as_text in (False, True)]
    [[1], [2]]
    """
    text = text[:LONGEST]
    for whole in (bare(text), without_lead(text)):
        number = one(whole, choices, as_text)
        if number is not None:
            return frozenset([number])
    lines = text.split("\n")
    pieces = lines if len(lines) > 1 else re.split(r"[,;/&]|\band\b", whole)
    numbers = [one(bare(piece), choices, as_text) for piece in pieces if piece.strip()]
    if len(numbers) > 1 and None not in numbers:
        return frozenset(numbers)
    # Letters alone: "A C", "(A)(C)", "AC".
    words = re.findall(r"\w+", re.sub(r"(?i)\b(?:and|both|only)\b", " ", whole))
    letters = [word.upper() for word in (words[0] if len(words) == 1 else words)]
    known = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    if len(set(letters)) == len(letters) and set(letters) <= set(known):
        return frozenset(map(number_of, letters))
    # "B. It is the blue one": a letter that is set off, and words that are no choice.
    first = FIRST.fullmatch(whole)
    if first and first[2] and number_of(first[1]) < len(choices):
        return frozenset([number_of(first[1])])
    return frozenset()


def same_letters(given, gold):
    """Is the right answer a letter, or several, and does another answer mean the same?

    >>> same_letters("(B) blue", "B"), same_letters("CA", "A, C"), same_letters("blue", "Blue")
    (True, True, False)
    """
    is_letters = LETTERS.fullmatch(bare(gold)) is not None
    return is_letters and meant(given, UNKNOWN) == meant(gold, UNKNOWN)


# ------------------------------------------------------------------------- as data sets write them


def unpacked(value):
    """A list or a dict that was written as text: JSON, Python, or numpy ("['a' 'b']")."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    commas = re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", value.strip())
    for read, text in ((json.loads, value), (ast.literal_eval, commas)):
        # Else it is of the other kind, or a text that begins with a bracket.
        with contextlib.suppress(ValueError, SyntaxError):
            return read(text)
    return value


def listed(text):
    r"""The choices that are written in a text, labelled A, B, ...; empty if there are not two.

    >>> listed("Which?\nA. red\nB. blue"), listed("(A) red (B) blue"), listed("A. red B. blue")
    (['red', 'blue'], ['red', 'blue'], [])
    """
    in_lines = r"^\s*(?:(?:Options|Choices): *)?[(\[]?([A-Z])[.):\]]\s*(\S.*?)[ ;,]*$"
    in_a_line = r"\(([A-Z])\) *(\S.*?)[ ;,]*(?=\([A-Z]\)|$)"
    for pattern in (in_lines, in_a_line):
        found = re.findall(pattern, text, re.MULTILINE)
        texts = [words for i, (letter, words) in enumerate(found) if number_of(letter) == i]
        if len(texts) > 1:
            return texts
    return []


def read_choices(value):
    """A column of choices -> (texts, labels or []). ValueError if it cannot be read.

    >>> read_choices({"B": "blue", "A": "red"}), read_choices("['red', 'blue']")
    ((['red', 'blue'], ['A', 'B']), (['red', 'blue'], []))
    """
    value = unpacked(value)
    if isinstance(value, str) and value.strip():
        lines = value.splitlines() if "\n" in value.strip() else re.split("[;|]", value)
        lines = [line.strip() for line in lines if line.strip()]
        value = listed("\n".join(lines)) or lines
        if len(value) < 2:
            raise ValueError(f"cannot read the choices {value[0]!r}")
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = dict(zip(value["label"], value["text"]))
    elif isinstance(value, list) and any(isinstance(choice, dict) for choice in value):
        value = {choice["label"]: choice["text"] for choice in value}
    if not isinstance(value, dict):
        texts = [str(choice) for choice in value or [] if choice is not None]
        own = listed("\n".join(texts))  # ["A. red", "B. blue"]
        return own if len(own) == len(texts) else texts, []
    labelled = {label_of(label): str(text) for label, text in value.items() if text is not None}
    if set(labelled) == {chr(65 + i) for i in range(len(labelled))}:
        labelled = dict(sorted(labelled.items()))
    return [*labelled.values()], [*labelled]


def label_of(value):
    return str(value).strip(" ().[]:").upper()


def right_choices(value, choices, labels):
    """The right answer of a row as a text that `meant` reads. ValueError if it is no choice.

    It may be a label, a letter, a text, a number from 0 on, or several of these.

    >>> right_choices(1, ["red", "blue"], []), right_choices("B", ["red", "blue"], [])
    ('(B) blue', '(B) blue')
    """
    items, found = unpacked(value), set()
    for item in items if isinstance(items, list | tuple) else [value]:
        text = str(item).strip()
        by_text = meant(text, choices, as_text=True)
        is_number = re.fullmatch(r"\d+(\.0)?", text) and int(float(text)) < len(choices)
        counts = isinstance(item, int | float) and bare(text) not in map(bare, choices)
        if label_of(text) in labels:
            found.add(labels.index(label_of(text)))
        elif is_number and (counts or not by_text):
            found.add(int(float(text)))
        elif by_text:
            found |= by_text
        else:
            raise ValueError(f"the answer {text} is none of the choices {', '.join(choices)}")
    return "\n".join(f"({chr(65 + i)}) {choices[i]}" for i in sorted(found))
