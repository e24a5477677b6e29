"""Code in replies as models write them, boxes in form, and hostile text. Cases in tests/cases."""

import json
import random
import re
from pathlib import Path

import pytest
from helpers_time import seconds

import rewards
from render import Renderer
from rewards import coder_reward, extract_code, parse_proposal, solver_reward
from support.answers import extract_answer, in_form
from support.replies import after_reasoning, fenced_blocks, label_language, whole_svgs

approx = pytest.approx
CASES = json.loads(
    (Path(__file__).resolve().parent.parent / "cases" / "replies.json").read_text("utf-8")
)


@pytest.mark.parametrize(
    "text, language, expected",
    [
        # the last, if closed
        ("```svg\n<svg>1</svg>\n```\n```svg\n<svg>2</svg>\n```", "svg", "<svg>2</svg>"),
        ("```svg\n<svg>1</svg>\n```\n```svg\n<svg>2", "svg", "<svg>1</svg>"),
        # output is no code
        ("```python\na = 1\n```\nprints\n```text\n1\n```", "python", "a = 1"),
        ("```python\na = 1\n```\nprints\n```\n1\n```", "python", "a = 1"),
        ("```py\na = 1\n```", "python", "a = 1"),
        ("```\na = 1\n```", "python", "a = 1"),
        ("```\na = 1\n```\nprints\n```text\n1\n```", "python", "a = 1"),
        ("```SVG\n<svg/>\n```\n```\n<svg>2</svg>\n```", "svg", "<svg/>"),
        ("```xml\n<svg/>\n```", "svg", "<svg/>"),
        ("```\n<svg/>\n```", "svg", "<svg/>"),
        ("```svg <svg/>```", "svg", "<svg/>"),
        ("```<svg/>```", "svg", "<svg/>"),
        # the wrong language, and bare markup, are seen as well
        ("```python\na = 1\n```", "svg", "a = 1"),
        ("```svg\n<svg/>\n```", "python", "<svg/>"),
        ("```\n<svg/>\n```\n```\na = 1\n```", "svg", "<svg/>"),
        ("here: <svg><svg></svg></svg> done", "svg", "<svg><svg></svg></svg>"),
        ("<svg> <rect/>", "svg", None),
        ("</svg><svg>", "svg", None),
        ("```python\na = 1", "python", None),
        ("a = 1", "python", None),
        ("", "svg", None),
        ("``````", "svg", None),
        ("```svg\n\n```", "svg", None),
        # a picture in a Python program is Python
        ("```python\ns = '<svg><g/></svg>'\n```", "svg", "s = '<svg><g/></svg>'"),
        ("```svg\n<svg><g/></svg>\n```", "python", "<svg><g/></svg>"),
        ("</think>", "svg", None),
        ("<think><svg><g/></svg></think> Done.", "svg", None),
    ],
)
def test_extract_code(text, language, expected):
    assert extract_code(text, language) == expected


S = '<svg xmlns="http://www.w3.org/2000/svg" width="4" height="3">\n  <rect width="4"/>\n</svg>'
DRAFT = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="1"/></svg>'

# S stands for the picture, DRAFT for another one; what is read is S.
SVG_REPLIES = {
    "tildes": "~~~svg\nS\n~~~",
    "four marks": "````svg\nS\n````",
    "a block in a block": "````markdown\n```svg\nS\n```\n````",
    "a block in a block of the same": "```markdown\n```svg\nS\n```\n```",
    "prolog and doctype": '```xml\n<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "x" "y">\nS\n```',
    "two drafts": "```svg\nDRAFT\n```\nBetter:\n```svg\nS\n```",
    "text behind it in the block": "```svg\nS\nThis draws it.\n```",
    "a comment before it": "```svg\n// the picture\nS\n```",
    "no label": "```\nS\n```",
    "no label, a comment": "```\n# picture\nS\n```",
    "a label of no language": "```plaintext\nS\n```",
    "jsx": "```jsx\nS\n```",
    "mime type": "```image/svg+xml\nS\n```",
    "label with a title": '```svg title="a.svg"\nS\n```',
    "label after a space": "``` svg\nS\n```",
    "closed on its last line": "```svg\nS```",
    "closed, and talked on": "```svg\nS\n``` That is it.",
    "a shell command after it": "```svg\nS\n```\nRun\n```bash\nopen a.svg\n```",
    "bare, a shell command after it": "S\n```bash\nopen a.svg\n```",
    "a snippet after it": "```svg\nS\n```\nFor red:\n```xml\n<rect fill='red'/>\n```",
    "its form after it": "```svg\nS\n```\nIn short:\n```svg\n<svg ...> ... </svg>\n```",
    "a draft cut off after it": "```svg\nS\n```\nOr:\n```svg\n<svg width='9'>",
    "a draft cut off before it": "```svg\n<svg width='9'>\nNo, again:\n```svg\nS\n```",
    "draft in the reasoning": "<think>```svg\nDRAFT\n```</think>\n\n```svg\nS\n```",
    "bare after a fence in the reasoning": "<think>\n```svg\nDRAFT\n```\n</think>\nS",
    "two thoughts": "<think>DRAFT</think>So far\n<think>```svg\nDRAFT```</think>S",
    "reasoning opened by the template": "A plan.\n```svg\nDRAFT\n```\n</think>\n```svg\nS\n```",
    "spaces in the tags": "< think >```svg\nDRAFT\n```< / think >```svg\nS\n```",
    "all of it in the reasoning": "<think>```svg\nS\n```\n</think>\n",
    "a mark in the reasoning": "<think>First ``` then</think>\n```svg\nS\n```",
    "marks in prose": "Between ``` and ``` marks:\n```svg\nS\n```",
    "marks at the start of a line": "``` marks are used.\n```svg\nS\n```",
    "the element in prose": "I use `<svg>` and <rect>.\n```svg\nS\n```\nThe `<svg>` is small.",
    "bare, the element in prose": "Use <svg>...</svg>: S and the <svg>...</svg> is closed.",
    "a page": "```html\n<!DOCTYPE html>\n<html><body>\nS\n<p>x</p></body></html>\n```",
    "a page with two": "```html\n<body>DRAFT<p>x</p>S</body>\n```",
    "never closed": "```svg\nS",
    "never closed, talked on": "```svg\nS\n\nThis draws it.",
    "in answer tags": "<answer>\n```svg\nS\n```\n</answer>",
    "bare in answer tags": "<answer>S</answer>",
    "a mark within a line": "Here: ```svg\nS\n```",
    "bold around": "**SVG:**\n\n```svg\nS\n```\n**done**",
    "windows lines": "```svg\r\nS\r\n```\r\n",
    "upper case": "```SVG\nS\n```",
    "the label on a line of its own": "```\nsvg\nS\n```",
}


@pytest.mark.parametrize("name", SVG_REPLIES)
def test_svg_as_models_write_it(name):
    reply = SVG_REPLIES[name].replace("S", "\0").replace("DRAFT", DRAFT).replace("\0VG", "SVG")
    reply = reply.replace("\0o far", "So far").replace("\0", S)
    assert extract_code(reply, "svg") == S
    judged = rewards.Judged(0.6, 0.6)
    assert coder_reward(extract_code(reply), judged, "svg", reply)["reward"] == approx(2.0)


PROGRAM = "import matplotlib.pyplot as plt\n\nplt.bar([1], [2])\nplt.savefig('a.png')"
INDENTED = "\n".join("   " + line if line else "" for line in PROGRAM.split("\n"))
PYTHON_REPLIES = {
    "plain": "```python\nP\n```",
    "tildes": "~~~python\nP\n~~~",
    "capital": "```Python\nP\n```",
    "version": "```python3\nP\n```",
    "braces": "```{python}\nP\n```",
    "no label": "```\nP\n```",
    "indented in a list": "1. So:\n   ```python\nINDENTED\n   ```",
    "a shell command before it": "```bash\npip install matplotlib\n```\n```python\nP\n```",
    "a snippet after it": "```python\nP\n```\nFor red:\n```python\ncolor = 'red'\n```",
    "output after it": "```python\nP\n```\nprints\n```\nsaved\n```",
    "draft in the reasoning": "<think>```python\nprint(1)\n```</think>\n```python\nP\n```",
    "a first part, then all": "```python\nimport os\n```\nAll of it:\n```python\nP\n```",
    "closed on its last line": "```python\nP```",
    "closed, and talked on": "```python\nP\n``` Done.",
    "marks in prose": "use ``` marks\n```python\nP\n```",
    "marks at the start of a line": "``` marks are used\n```python\nP\n```",
    "a picture before it": "```svg\n<svg><g/></svg>\n```\n```python\nP\n```",
}


@pytest.mark.parametrize("name", PYTHON_REPLIES)
def test_python_as_models_write_it(name):
    reply = PYTHON_REPLIES[name].replace("INDENTED", INDENTED).replace("\nP", "\n" + PROGRAM)
    assert extract_code(reply, "python") == PROGRAM


def test_marks_inside_a_program_do_not_end_it():
    code = "import math\ntext = '```'\nprint('``` a')\nmore = '''\n~~~\n'''"
    assert extract_code(f"```python\n{code}\n```", "python") == code
    assert fenced_blocks("````python\n```\na\n```\n````") == [("python", "```\na\n```", True)]


def test_labels_and_pictures():
    for label in ("svg", "SVG", "xml", "html", "image/svg+xml", "svg:a.svg"):
        assert label_language(label) == "svg"
    for label in ("py", "Python", "python3", "{.python}"):
        assert label_language(label) == "python"
    for label in ("", "text", "bash", "pysvg"):
        assert label_language(label) is None
    assert whole_svgs("<svg><svg/></svg > </svg> <svgs></svgs> <svg a='b'") == [
        "<svg><svg/></svg >"
    ]
    assert whole_svgs("<SVG></SVG>") == ["<SVG></SVG>"]


def test_reasoning():
    assert after_reasoning("a") == "a" and after_reasoning("</think>") == "</think>"
    assert after_reasoning("a</think>b</THINK > c") == " c"
    assert after_reasoning("a</think>\n") == "a</think>\n"


def test_in_form_by_hand():
    assert in_form("<think>a</think>\n\\boxed\n{\\frac{1}{2}}\n")
    assert in_form(r"<think>a</think>\boxed{\boxed{7}}")
    assert not in_form(r"<think>a</think>\boxed{{ }}") and not in_form(r"<think>\boxed{7}")


# ----------------------------------------------------------------------------------- shared cases


@pytest.mark.parametrize("case", CASES["proposer"], ids=lambda case: case["name"])
def test_proposals_of_the_cases(case):
    proposal = parse_proposal(case["reply"])
    assert (proposal is not None) is case["valid"]
    if case["easy_answer"]:
        assert proposal.easy_answer == case["easy_answer"]


@pytest.mark.parametrize("case", CASES["solver"], ids=lambda case: case["name"])
def test_answers_of_the_cases(case):
    terms = solver_reward(case["reply"], "42")
    assert (terms["accuracy"], terms["format"]) == (case["accuracy"], case["format"])
    if case["answer"] is not None:
        assert extract_answer(case["reply"]) == case["answer"]


def test_svg_codes_of_the_cases_are_drawn_and_paid():
    """`figure` is what is taken off 1 + s + d, or the whole reward if nothing was drawn."""
    cases = [case for case in CASES["coder"] if case["language"] == "svg"]
    codes = [extract_code(case["reply"]) for case in cases]
    with Renderer(1, 60.0) as renderer:
        drawn = renderer.render([(code, "svg") for code in codes])
    assert len(cases) > 10
    for case, code, picture in zip(cases, codes, drawn):
        assert (picture.image is not None) is case["draws"], (case["name"], picture.error)
        judged = rewards.Judged(0.6, 0.6) if case["draws"] else None
        reward = coder_reward(code, judged, "svg", case["reply"])["reward"]
        assert reward == approx((2.0 if case["draws"] else 0.0) + case["figure"]), case["name"]


def test_python_codes_of_the_cases_are_whole():
    for case in CASES["coder"]:
        if case["language"] == "python":
            code = extract_code(case["reply"], "python")
            compile(code, "program", "exec")
            assert "import" in code and "```" not in code


# ----------------------------------------------------------------------------------------- hostile

LONG = 100_000
PIECES = (
    "```|```a|```svg\n|``` |`|<svg|<svg>|</svg>|<svg></svg>|```<svg></svg>```|<caption>|</caption>|"
    "<caption></caption>|<|<think>|</think>|\\boxed{|\\boxed{5}|\\boxed{{|{|}|\\|a|\0|"
    "\ud800|~~~|~~~\n|\\boxed |\\fbox|\\boxed x |< think|</ think >|<svg |"
    "<svg/>|```\n|```py\nimport a\n|**|\r\n|/"
).split("|") + [" ", "\n", "\t", "< ", "<\n"]


@pytest.mark.parametrize("piece", PIECES)
def test_long_hostile_replies_take_linear_time(piece):
    for text in (
        (piece * LONG)[:LONG],
        "```" + (piece * LONG)[:LONG],
        "<think>\\boxed{" + (piece * LONG)[:LONG],
        "```svg\n<svg " + (piece * LONG)[:LONG],
    ):
        for function in (
            parse_proposal,
            extract_code,
            lambda t: extract_code(t, "python"),
            extract_answer,
            lambda t: solver_reward(t, "5"),
            lambda t: coder_reward(None, None, "svg", t),
        ):
            assert seconds(function, text) < 0.3  # quadratic: seconds to minutes
        assert seconds(extract_answer, text) < 5e-3


RANDOM_PIECES = (
    "```|~~~|svg|python|<svg|</svg>|<svg>|<rect/>|\\boxed{|\\boxed |}|{|<think>|</think>|\n|\n|5|"
    "\0|\ud800|é|import a|```svg\n|```\n"
).split("|")


def test_random_replies_never_raise():
    rng = random.Random(7)
    pieces = RANDOM_PIECES + [f"<{name}>" for name in rewards.BLOCKS]
    pieces += [f"</{name}>" for name in rewards.BLOCKS]
    found = 0
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randrange(25)))
        for language in ("svg", "python"):
            code = extract_code(text, language)
            assert code is None or (code and code in text)
            assert -0.5 <= coder_reward(code, None, language, text)["reward"] <= -0.1
            found += code is not None
        assert parse_proposal(text) is None or re.search("<caption>.+</caption>", text, re.DOTALL)
        assert solver_reward(text, "5")["reward"] in (0, approx(0.1), approx(0.9), 1)
    assert found > 100
