"""Find blocks and code in a reply. A model wrote it: each pattern takes linear time on any text."""

import re

# ------------------------------------------------------------------------------------ XML blocks


def tagged_blocks(text, names):
    """{name: content} of the blocks <name>...</name>; of a block given twice the first.

    Reasoning up to the last </think> is skipped.

    >>> tagged_blocks("<a>1</a> <b>2 <a>3</a>", ["a", "b"])
    {'a': '1'}
    """
    text = text.rpartition("</think>")[2]
    pattern = rf"<(/?)({'|'.join(names)})>"
    tags = list(re.finditer(pattern, text, re.IGNORECASE | re.ASCII))
    blocks = {}

    # A block is an opening tag that the *next* tag closes: one cut short swallows no other.
    for start, end in zip(tags, tags[1:]):
        name = start[2].lower()
        opens = not start[1]
        closes = end[1] and end[2].lower() == name
        if opens and closes:
            blocks.setdefault(name, text[start.end() : end.start()].strip())
    return blocks


# ----------------------------------------------------------------------------------------- code

# How models label their code, by the language that was asked for.
FENCE_TAGS = {"svg": ("svg", "xml", "html"), "python": ("python", "py", "python3")}


def language_of(code):
    """ "svg" or "python"; None for markup without an <svg> in it."""
    if not code.lstrip().startswith("<"):
        return "python"
    return "svg" if "<svg" in code else None


def fenced_blocks(text):
    """(label, code) of every fenced block that was closed."""
    # The last piece is outside any block, or in one that was never closed.
    pieces = text.split("```")[1:-1:2]
    blocks = [re.match(r"([^\s<]*)(.*)", piece, re.DOTALL).groups() for piece in pieces]
    return [(label.lower(), code.strip()) for label, code in blocks if code.strip()]


def check_language(language):
    if language not in FENCE_TAGS:
        raise ValueError(f"language is {language!r}, it should be one of {', '.join(FENCE_TAGS)}")


def extract_code(text, language="svg"):
    r"""The code in a Coder's reply, or None if there is none.

    The last closed block labelled with the asked language counts (models correct themselves).
    Otherwise the last unlabelled one in it, otherwise the last of any kind: it will not render, and
    the reward sees what was written instead. Without a closed block: a bare <svg>...</svg>.

    >>> extract_code("First\n```svg\n<svg>1</svg>\n```\nbetter:\n```svg\n<svg>2</svg>\n```")
    '<svg>2</svg>'
    >>> extract_code("cut short: ```python\nprint(1", "python") is None
    True
    """
    check_language(language)
    blocks = fenced_blocks(text)
    labelled = [code for label, code in blocks if label in FENCE_TAGS[language]]
    plain = [code for label, code in blocks if not label and language_of(code) == language]
    anything = [code for _, code in blocks]
    for codes in (labelled, plain, anything):
        if codes:
            return codes[-1]

    start, end = text.find("<svg"), text.rfind("</svg>")
    return text[start : end + len("</svg>")] if 0 <= start < end else None
