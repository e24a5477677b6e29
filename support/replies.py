"""Read replies as models write them: reasoning, XML blocks, code. docs/ has a table of styles.

A model wrote the reply: every pattern takes linear time on any text.
"""

import re
import textwrap

from support.answers import group_end, is_placeholder

# How models label their code, by the language that was asked for.
FENCE_TAGS = {"svg": ("svg", "xml", "html"), "python": ("python", "py", "python3")}

# -------------------------------------------------------------------------- reasoning, XML blocks

THINK_START = re.compile(r"\s*+<\s*+think\s*+>", re.IGNORECASE)
THINK_END = re.compile(r"<\s*+/\s*+think\s*+>", re.IGNORECASE)


def after_reasoning(text):
    """What follows the last </think>, or the whole text if that is nothing.

    >>> after_reasoning("<think>a</think> <think>b< /think >c"), after_reasoning("a</think> ")
    ('c', 'a</think> ')
    """
    rest = THINK_END.split(text)[-1]
    return rest if rest.strip() else text


def in_form(reply):
    r"""Is the whole reply <think>...</think> and then one \boxed{...} that is not empty?

    Several thoughts, one after the other, are reasoning as well. A reply that begins in the middle
    of the reasoning is not in form, in the released reward neither.

    >>> in_form(r"<think>a</think> <think>b</think> \boxed {7}"), in_form(r"a</think> \boxed{7}")
    (True, False)
    """
    rest = THINK_END.split(reply)[-1].strip()
    box = re.match(r"\\boxed\s*+(?=\{)", rest)
    if not THINK_START.match(reply) or len(rest) == len(reply.strip()) or box is None:
        return False
    content = rest[box.end() : -1].strip("{} ")
    alone = group_end(rest, box.end()) == len(rest)
    return alone and content != "" and not is_placeholder(content)


def tagged_blocks(text, names):
    """{name: content} of the blocks <name>...</name>; of a block given twice the first counts.

    Reasoning is skipped as in `after_reasoning`. Spaces inside a tag do not matter.

    >>> tagged_blocks("<a>1</a> < b >2< /b > <a>3</a> <b>4 <a>5</a>", ["a", "b"])
    {'a': '1', 'b': '2'}
    """
    pattern = rf"<\s*+(/?)\s*+({'|'.join(names)}|think)\s*+>"
    found, opened = [], None
    # Where the reasoning ended, and where it may have ended: the next tag will tell.
    reasoned, pending = 0, 0
    for tag in re.finditer(pattern, text, re.IGNORECASE | re.ASCII):
        name, closes = tag[2].lower(), bool(tag[1])
        if name == "think":
            pending = tag.end() if closes else pending
            continue

        # A block is an opening tag that the *next* tag closes: one cut short swallows no other.
        whole = closes and opened and opened[2].lower() == name
        if whole:
            found.append((opened, tag))
        # A </think> inside a block was quoted. Any other ended the reasoning.
        elif pending:
            reasoned = pending
        pending = 0
        opened = None if closes else tag

    reasoned = pending or reasoned
    if not text[reasoned:].strip():
        reasoned = 0
    blocks = {}
    for start, end in found:
        if start.start() >= reasoned:
            content = text[start.end() : end.start()].strip()
            # **<caption>** ... **</caption>**: the bold is that of the tags.
            if len(content) > 4 and content.startswith("**") and content.endswith("**"):
                content = content[2:-2].strip()
            blocks.setdefault(start[2].lower(), content)
    return blocks


# ------------------------------------------------------------------------------------------- code

FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})([ \t]*)([^\s`~<]*)(.*)")
SVG_TAG = re.compile(r"<svg(?=[\s/>])[^<>]*+>|</svg\s*+>", re.IGNORECASE)
IMPORT = re.compile(r"^[ \t]*(?:import|from)[ \t]", re.MULTILINE)


def check_language(language):
    if language not in FENCE_TAGS:
        raise ValueError(f"language is {language!r}, it should be one of {', '.join(FENCE_TAGS)}")


def language_of(code):
    """ "svg" or "python"; None for markup without an <svg> in it."""
    if not code.lstrip().startswith("<"):
        return "python"
    return "svg" if "<svg" in code.lower() else None


def label_language(label):
    """What a fence's label asks for: "svg", "python", or None for a label of neither.

    >>> label_language("SVG"), label_language("{.py}"), label_language("text"), label_language("")
    ('svg', 'python', None, None)
    """
    words = set(re.findall(r"[a-z0-9]+", label.lower()))
    for language, tags in FENCE_TAGS.items():
        if words & set(tags):
            return language
    return None


def fenced_blocks(text):
    r"""A text as [(label, code, closed), ...]; what stands outside the blocks has the label None.

    A fence opens at the start of a line, with ``` or ~~~ or more, and the same closes it, at the
    start or the end of a line. A label in an open block begins another: models rarely nest blocks,
    they forget to close them.

    >>> fenced_blocks("Use ``` so:\n~~~svg\n<svg/>\n~~~\n```py\na")
    [(None, 'Use ``` so:', True), ('svg', '<svg/>', True), ('py', 'a', False)]
    """
    blocks, lines, mark, label = [], [], "", None

    def end(closed):
        code = textwrap.dedent("\n".join(lines)).strip()
        if code:
            blocks.append((label, code, closed))
        lines.clear()

    for line in text.replace("\r\n", "\n").split("\n"):
        fence = FENCE.match(line)
        # In a block: its end, or the label of another block.
        if fence and mark and fence[1].startswith(mark):
            alone = fence[3] and not fence[4].strip()
            labelled = alone and (not fence[2] or label_language(fence[3]))
            end(closed=not labelled)
            mark, label = (fence[1], fence[3]) if labelled else ("", None)
        elif mark and line.rstrip().endswith(mark):
            lines.append(line.rstrip().rstrip(mark[0]))
            end(closed=True)
            mark, label = "", None
        elif fence and not mark and fence[1] not in fence[4]:
            end(closed=True)
            mark, label = fence[1], fence[3]
        else:
            lines.append(line)
    end(closed=label is None)
    return blocks


def whole_svgs(text):
    """Every <svg ...>...</svg> in the text that is not inside another.

    >>> whole_svgs("an <svg> is <svg a='1'> <svg/> </svg> or <svg> </svg>")
    ["<svg a='1'> <svg/> </svg>", '<svg> </svg>']
    """
    spans, opened = [], []
    for tag in SVG_TAG.finditer(text):
        if tag[0].endswith("/>"):
            spans.append(tag.span())
        elif not tag[0].startswith("</"):
            opened.append(tag.start())
        elif opened:
            start = opened.pop()
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, tag.end()))
    return [text[start:end] for start, end in spans]


def svgs_in(blocks):
    return [svg for _, code, _ in blocks for svg in whole_svgs(code)]


def closed_codes(blocks):
    return [code for _, code, closed in blocks if closed]


def draws(code):
    """An SVG draws if there are elements in it, a program only if it imports something."""
    return code.count("<") > 2 if language_of(code) == "svg" else IMPORT.search(code)


def extract_code(text, language="svg"):
    r"""The code in a Coder's reply, or None if there is none. Reasoning is skipped.

    SVG: the last whole <svg ...>...</svg> in a block with its label, else in a block with the label
    of no language, else outside. Python: the last closed block with its label, else without any. If
    there is none, the last closed block: it will not render, and the reward sees what was written.

    >>> extract_code("First\n```svg\n<svg>1</svg>\n```\nbetter:\n```svg\n<svg>2</svg>\n```")
    '<svg>2</svg>'
    >>> extract_code("cut short:\n```python\nprint(1", "python") is None
    True
    """
    check_language(language)
    blocks = fenced_blocks(after_reasoning(text))
    outside = [block for block in blocks if block[0] is None]
    fenced = [block for block in blocks if block[0] is not None]
    own = [block for block in fenced if label_language(block[0]) == language]
    free = [block for block in fenced if label_language(block[0]) is None]

    if language == "svg":
        groups = [svgs_in(own), svgs_in(free), svgs_in(outside)]
    else:
        bare = [block for block in free if not block[0] and language_of(block[1]) == "python"]
        groups = [closed_codes(own), closed_codes(bare)]

    # What draws goes before what is a part to be changed, a form, or output.
    drawing = [[code for code in codes if draws(code)] for codes in groups]
    for codes in drawing + groups + [closed_codes(own), closed_codes(fenced)]:
        if codes:
            return codes[-1]
    return None
