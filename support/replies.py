"""Read replies as models write them: reasoning, XML blocks, code. docs/ has a table of styles.

A model wrote the reply: every pattern takes linear time on any text.
"""

import re
import textwrap

from support.answers import THINK_END

# How models label their code, by the language that was asked for.
FENCE_TAGS = {"svg": ("svg", "xml", "html"), "python": ("python", "py", "python3")}


def after_reasoning(text):
    """What follows the last </think>, or the whole text if that is nothing.

    >>> after_reasoning("<think>a</think> <think>b< /think >c"), after_reasoning("a</think> ")
    ('c', 'a</think> ')
    """
    rest = THINK_END.split(text)[-1]
    return rest if rest.strip() else text


def tagged_blocks(text, names):
    """{name: content} of the blocks <name>...</name>; of a block given twice the first counts.

    Reasoning is skipped as in `after_reasoning`, but a </think> inside a block was quoted. A block
    has no tag of another in it: one cut short swallows no other. Spaces in a tag do not matter.

    >>> tagged_blocks("<a>1</a> < b >2< /b > <a>3</a> <b>4 <a>5</a>", ["a", "b"])
    {'a': '1', 'b': '2'}
    """
    name, flags = "|".join(names), re.IGNORECASE | re.ASCII | re.DOTALL
    content = rf"(?:[^<]|<(?!\s*+/?\s*+(?:{name})\s*+>))*+"
    block = re.compile(rf"<\s*+({name})\s*+>({content})<\s*+/\s*+\1\s*+>", flags)
    outside = block.sub(lambda found: "-" * len(found[0]), text)
    blocks = {}
    for found in block.finditer(text, len(text) - len(after_reasoning(outside))):
        # **<caption>** ... **</caption>**: the bold is that of the tags.
        content = re.sub(r"\A\*\*(.+)\*\*\Z", r"\1", found[2].strip(), flags=re.DOTALL)
        blocks.setdefault(found[1].lower(), content.strip())
    return blocks


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
    return next((name for name, tags in FENCE_TAGS.items() if words & set(tags)), None)


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


def candidates(blocks, language):
    """(does it draw, how well it is labelled, code) for all that may be meant, as it comes.

    An SVG draws if there are elements in it, a program only if it imports something.
    """
    for label, code, closed in blocks:
        asked = label_language(label or "")
        labelled = 0 if label is None else 2 if asked else 1
        if language == "svg" and asked in (None, "svg"):
            for svg in whole_svgs(code):
                yield svg.count("<") > 2, labelled, svg
        program = asked == "python" or (label == "" and language_of(code) == "python")
        if language == "python" and closed and program:
            yield bool(IMPORT.search(code)), labelled, code
        # It will not render, but the reward sees what was written.
        if closed and labelled:
            yield False, -1 if asked == language else -2, code


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
    found = list(candidates(fenced_blocks(after_reasoning(text)), language))
    # What draws goes before what is a part to be changed, a form, or output. Of equals the last.
    found.sort(key=lambda candidate: candidate[:2])
    return found[-1][2] if found else None
