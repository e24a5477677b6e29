"""Prompts and parser stay in step: what a prompt asks for is what rewards.py reads and pays."""

import re

import pytest

import render
import rewards
from prompts import PROMPTS, TOPICS, fill
from support import programs, sandbox
from support.settings import Settings

PROPOSAL = rewards.Proposal(
    "map", "a {easy_answer} caption", "What is at {topic}?", "7 {", "Total of } and {x}?", "12 cm"
)
CODER_FIELDS = ("caption", "easy_question", "easy_answer", "hard_question", "hard_answer")
FILLED = {
    "proposer": fill(PROMPTS["proposer"], topic=TOPICS[0]),
    "svg": fill(PROMPTS["coder"]["svg"], **{name: name.upper() for name in CODER_FIELDS}),
    "python": fill(PROMPTS["coder"]["python"], **{name: name.upper() for name in CODER_FIELDS}),
    "solver": fill(PROMPTS["solver"], question="How many bars?"),
}


def test_eight_distinct_topics():
    assert isinstance(TOPICS, tuple) and len(set(TOPICS)) == 8
    assert all(isinstance(topic, str) and topic == topic.strip() and topic for topic in TOPICS)


def test_placeholders_are_exactly_the_documented_ones():
    def names(text):
        return sorted(re.findall(r"\{(\w+)\}", text))

    assert names(PROMPTS["proposer"]) == ["topic"]
    assert (
        names(PROMPTS["coder"]["svg"]) == names(PROMPTS["coder"]["python"]) == sorted(CODER_FIELDS)
    )
    assert names(PROMPTS["solver"]) == ["question"]


@pytest.mark.parametrize("role", FILLED)
def test_filled_prompt_has_no_stray_braces(role):
    text = FILLED[role].replace(r"\boxed{}", "").replace(r"\boxed{your answer}", "")
    assert "{" not in text and "}" not in text
    assert all(ord(c) < 128 for c in text)  # nothing a tokenizer would spell in bytes


def test_fill_is_single_pass_and_leaves_other_braces():
    text = fill(PROMPTS["coder"]["svg"], **{name: getattr(PROPOSAL, name) for name in CODER_FIELDS})
    assert "a {easy_answer} caption" in text and "What is at {topic}?" in text
    assert "Total of } and {x}?" in text
    assert fill(r"\boxed{} {q} {other} {", q=r"\1 {q}") == r"\boxed{} \1 {q} {other} {"


def test_layout_in_the_proposer_prompt_is_what_the_parser_reads():
    """The prompt's own layout, its descriptions swapped for a proposal, parses to that proposal."""
    prompt = FILLED["proposer"]
    layout = prompt[prompt.index("<content_type>") :]
    assert re.findall(r"<(\w+)>", layout) == list(rewards.BLOCKS)  # the six blocks, in order
    assert prompt.count("<") == 2 * len(rewards.BLOCKS)  # and tags appear nowhere else
    reply = re.sub(
        r"<(\w+)>.*</\1>", lambda m: f"<{m[1]}>{getattr(PROPOSAL, m[1])}</{m[1]}>", layout
    )
    assert rewards.parse_proposal(reply) == PROPOSAL
    for name in CODER_FIELDS:  # every one of them is required
        assert rewards.parse_proposal(reply.replace(f"</{name}>", "")) is None


def test_content_types_are_listed_where_they_are_explained_and_where_they_are_chosen():
    prompt = FILLED["proposer"]
    chosen = re.search(r"<content_type>one of: (.*)</content_type>", prompt)[1]
    assert tuple(chosen.split(", ")) == rewards.CONTENT_TYPES
    assert (
        tuple(re.findall(r"(\w+) \((?=bars|flow|figures|events|regions|grids|anything)", prompt))
        == rewards.CONTENT_TYPES
    )


@pytest.mark.parametrize("language", render.MAX_SIDE)
def test_coder_prompt_shows_the_fence_and_the_limits(language):
    text = FILLED[language]
    side = {name: str(number) for name, number in render.MAX_SIDE.items()}
    assert side[language] in text and not {*side.values()} - {side[language]} & set(
        re.findall(r"\d+", text)
    )
    assert (
        f"{render.MAX_ASPECT} times as long as wide" in text
        and "one colour only counts as none" in text
    )
    assert [label for label, _ in rewards.fenced_blocks(text)] == [language]
    assert all(name.upper() in text for name in CODER_FIELDS)
    assert "answer must not be written in the" in " ".join(text.split())


def test_coder_prompt_names_what_the_sandbox_takes():
    svg, python = FILLED["svg"], FILLED["python"]
    assert rewards.extract_code(svg, "svg").startswith("<svg")  # the example itself is code
    for word in ("viewBox", "No scripts", "xmlns", "files from elsewhere"):
        assert word in svg
    for word in (
        "Pillow, numpy, matplotlib",
        "No network",
        "no reading of files",
        "Image.save",
        "img or image",
        "figure",
    ):
        assert word in python
    assert (
        f"after {Settings().render_seconds:.0f} seconds, and at {sandbox.MEMORY >> 30} GB" in python
    )
    for package in re.search(r"may use (.*) and", python)[1].replace("Pillow", "PIL").split(", "):
        assert package in programs.PACKAGES  # what a program may read, it may use
    assert (
        python.index("Image.save")
        < python.index("img or image")
        < python.index("open matplotlib figure")
    )


PICTURES = {  # what the guides say: drawn, or not, and which picture counts (by its width)
    "svg": [
        (
            '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40" viewBox="0 0 60 40"><rect width="60" height="40" fill="white"/>'
            '<defs><linearGradient id="g"><stop stop-color="red"/></linearGradient></defs><g><circle cx="9" cy="9" r="5" fill="url(#g)"/>'
            '<polyline points="1,1 9,30" stroke="#123456" fill="none"/><text x="5" y="30" font-size="14" font-family="sans-serif">a '
            "<tspan>&lt; b</tspan></text></g></svg>",
            60,
        ),
        (
            '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40"><rect width="60" height="40" fill="white"/></svg>',
            None,
        ),
        (
            '<svg xmlns="http://www.w3.org/2000/svg" width="606" height="6"><path d="M0 0h9v3z"/></svg>',
            None,
        ),
    ],
    "python": [
        (
            'from PIL import Image\nImage.new("RGB", (9, 9)).save("a.png")\nfor w in (50, 70):\n    i = Image.new("RGB", (w, 40), "white")\n'
            '    i.putpixel((3, 3), (0, 0, 0))\n    i.save("chart.png")\nimg = i.crop((0, 0, 20, 20))',
            70,
        ),
        (
            'from PIL import Image\nimg = Image.new("RGB", (33, 40))\nimg.putpixel((3, 3), (9, 9, 9))',
            33,
        ),
        (
            "import matplotlib.pyplot as plt\nplt.figure(figsize=(8, 6), dpi=100)\nplt.plot([1, 2])\nplt.tight_layout()",
            800,
        ),
        ('from PIL import Image\nopen("/etc/passwd")\nimg = Image.effect_noise((9, 9), 50)', None),
        (
            "import threading\nthreading.Thread(target=print).start()\nfrom PIL import Image\nimg = Image.effect_noise((9, 9), 50)",
            None,
        ),
        ("import pandas", None),
    ],
}


@pytest.mark.parametrize("language", PICTURES)
def test_the_guides_say_what_the_renderer_does(language):
    with render.Renderer(1, 60.0) as renderer:
        if language == "python" and renderer.refusal:
            pytest.skip(renderer.refusal)
        for (code, width), drawn in zip(
            PICTURES[language],
            renderer.render([(code, language) for code, _ in PICTURES[language]]),
        ):
            assert (drawn.image and drawn.image.width) == width, (code, drawn.error)


def test_solver_form_is_the_one_that_is_paid():
    form = FILLED["solver"][FILLED["solver"].rindex("<think>") :]
    reply = form.replace("your answer", "7")
    assert rewards.solver_reward(reply, "7") == {"reward": 1.0, "accuracy": 1.0, "format": 1.0}
    assert FILLED["solver"].startswith("How many bars?")
