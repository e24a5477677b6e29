"""Prompts and parsers stay in step: what a prompt asks for is what rewards.py reads and pays."""

import re
from pathlib import Path

import pytest

import render
import rewards
from prompts import PROMPTS, TOPICS, fill, placeholders, topics_of
from support import answers, programs, sandbox
from support.replies import fenced_blocks
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


def words_of(text):
    """The text on one line, however the prompt breaks it."""
    return " ".join(text.split())


def test_eight_distinct_topics():
    assert isinstance(TOPICS, tuple) and len(set(TOPICS)) == 8
    assert all(isinstance(topic, str) and topic == topic.strip() and topic for topic in TOPICS)


def test_a_checkpoint_may_bring_its_own_topics():
    assert topics_of(PROMPTS) == TOPICS == topics_of({})
    assert topics_of({"topics": ["knots", "maps"], "solver": ""}) == ("knots", "maps")
    for bad in ("knots", [], [""], ["a", 3], {"a": 1}, None, 5):
        with pytest.raises(ValueError, match="list of one or more texts") as error:
            topics_of({"topics": bad})
        assert "\n" not in str(error.value)


def test_what_is_filled_in_is_exactly_what_is_documented():
    def names(text):
        return sorted(re.findall(r"\{([a-z_]+)\}", text.replace("\\boxed{blue}", "")))

    assert names(PROMPTS["proposer"]) == ["topic"]
    assert names(PROMPTS["coder"]["svg"]) == sorted(CODER_FIELDS)
    assert names(PROMPTS["coder"]["python"]) == sorted(CODER_FIELDS)
    assert names(PROMPTS["solver"]) == ["question"]


@pytest.mark.parametrize("role", FILLED)
def test_filled_prompt_has_no_stray_braces(role):
    text = re.sub(r"\\boxed\{[^{}]*\}", "", FILLED[role])
    assert "{" not in text and "}" not in text
    assert all(ord(c) < 128 for c in text)  # nothing a tokenizer would spell in bytes


def test_fill_is_single_pass_and_leaves_other_braces():
    text = fill(PROMPTS["coder"]["svg"], **{name: getattr(PROPOSAL, name) for name in CODER_FIELDS})
    assert "a {easy_answer} caption" in text and "What is at {topic}?" in text
    assert "Total of } and {x}?" in text
    assert fill(r"\boxed{} {q} {other} {", q=r"\1 {q}") == r"\boxed{} \1 {q} {other} {"


# ------------------------------------------------------------------------------------- the Proposer


def layout():
    """The form at the end of the Proposer's prompt."""
    return FILLED["proposer"].rpartition("<think>")[2].rpartition("</think>")[2].strip()


def test_layout_in_the_proposer_prompt_is_what_the_parser_reads():
    """The prompt's own layout, its descriptions swapped for a proposal, parses to that proposal."""
    prompt = FILLED["proposer"]
    assert re.findall(r"<(\w+)>", layout()) == list(rewards.BLOCKS)  # the six blocks, in order

    # The example and the layout; tags appear nowhere else, but for the thinking.
    assert re.sub(r"</?think>", "", prompt).count("<") == 4 * len(rewards.BLOCKS)
    reply = re.sub(
        r"<(\w+)>.*</\1>", lambda m: f"<{m[1]}>{getattr(PROPOSAL, m[1])}</{m[1]}>", layout()
    )
    assert rewards.parse_proposal(reply) == PROPOSAL
    assert rewards.parse_proposal("<think>12 - 5 = 7</think>\n" + reply) == PROPOSAL
    for name in CODER_FIELDS:  # every one of them is required
        assert rewards.parse_proposal(reply.replace(f"</{name}>", "")) is None


def test_content_types_are_listed_where_they_are_explained_and_where_they_are_chosen():
    prompt = words_of(FILLED["proposer"])
    chosen = re.search(r"<content_type>\[one of: (.*)\]</content_type>", prompt)[1]
    assert tuple(chosen.split(", ")) == rewards.CONTENT_TYPES
    explained = r"(\w+) \((?=bars|flow|figures|events|regions|grids|anything)"
    assert tuple(re.findall(explained, prompt)) == rewards.CONTENT_TYPES


def test_the_worked_example_is_a_proposal_that_nobody_may_hand_in():
    prompt = FILLED["proposer"]
    example = prompt[prompt.index("<think>") : prompt.index("Now yours.")]
    assert rewards.parse_proposal(example) is None

    # Under other names it parses, and its answers are right.
    other = rewards.parse_proposal(re.sub("kiln", "oven", example, flags=re.IGNORECASE))
    assert other.content_type in rewards.CONTENT_TYPES
    rows = re.findall(r"(\w+), (\d+), (\d+), (\d+)[;.]", words_of(other.caption))
    table = {name: tuple(map(int, numbers)) for name, *numbers in rows}
    assert len(table) == 4 and table["Clay"][0] == int(other.easy_answer)
    longer = [
        (pots, cracked) for pots, cracked, hours in table.values() if hours > table["Dune"][2]
    ]
    whole = 1 - sum(cracked for _, cracked in longer) / sum(pots for pots, _ in longer)
    assert other.hard_answer == f"{100 * whole:.0f}%"
    assert other.hard_answer.strip("%") not in other.caption

    # Any one of its texts is enough; its answers are anybody's.
    for name in ("caption", "easy_question", "hard_question"):
        text = re.search(rf"<{name}>(.*?)</{name}>", example, re.DOTALL)[1]
        blocks = dict(zip(rewards.BLOCKS, ("map", "a", "b?", "54", "c?", "87%"))) | {name: text}
        reply = "".join(f"<{key}>{value}</{key}>" for key, value in blocks.items())
        assert rewards.parse_proposal(reply) is None
        assert rewards.parse_proposal(reply.replace(text, text + " More.")) is not None


def test_sample_answers_are_answers_and_the_bad_ones_are_not_among_them():
    prompt = FILLED["proposer"]
    good = re.split(r"\s{3,}", re.search("Answers like these: (.*)", prompt)[1])
    keys = [answers.canonical(answer) for answer in good]
    assert len(good) >= 6 and len(set(keys)) == len(good) and None not in keys
    bad = re.split(r"\s{3,}", re.search("None like these: (.*)", prompt)[1])
    assert len(bad) >= 3 and not set(bad) & set(good)
    assert prompt.count("\n  * ") >= 5  # what makes a question hard


# ----------------------------------------------------------------------------------- placeholders


def shown_in(prompts):
    """What stands in [square brackets] and is no list of letters or numbers."""
    texts = [prompts["proposer"], *prompts["coder"].values(), prompts["solver"]]
    found = re.findall(r"\[([^\[\]]+)\]", "\n".join(texts))
    assert {"your answer", "its answer", "your hard question here"} <= set(found)
    return found


def proposal_with(caption):
    blocks = dict.fromkeys(rewards.BLOCKS, "b") | {"caption": caption}
    return "".join(f"<{name}>{text}</{name}>" for name, text in blocks.items())


def test_placeholders_look_like_placeholders_and_are_refused_everywhere():
    for text in shown_in(PROMPTS):
        assert answers.canonical(text) is None and not answers.answers_match(text, text)
        assert rewards.vote([text] * 5) == (None, 0.0)
        assert rewards.extract_answer(rf"\boxed{{{text.upper()}}}") is None
        assert rewards.parse_proposal(proposal_with(text)) is None
    for name in rewards.BLOCKS[1:]:
        shown = re.search(rf"<{name}>(.*)</{name}>", layout())[1]
        assert shown.startswith("[") and shown.endswith("]")


def test_the_list_of_placeholders_is_that_of_the_prompts():
    """support/ does not import prompts.py: what it lists stands there, and the other way round."""
    assert {answers.bare(text) for text in shown_in(PROMPTS)} == answers.PLACEHOLDERS
    # Besides these: caption and questions of the worked example, which only a proposal can have.
    assert answers.PLACEHOLDERS < placeholders(PROMPTS) == rewards.SHOWN
    assert len(rewards.SHOWN - answers.PLACEHOLDERS) == 3


def test_own_prompts_bring_their_own_placeholders():
    own = {
        "proposer": "Write <caption>an idea of yours</caption><easy_answer>4</easy_answer> {topic}",
        "coder": {"svg": "{caption} [put the drawing here]"},
        "solver": "{question} Say [the colour you see], not [3] or [B].",
        "topics": ["[no placeholder]"],
    }
    shown = placeholders(own)
    assert shown == {"idea of yours", "put drawing", "colour you see"}

    # They are refused where they are handed over, and nowhere else: nothing remembers them.
    reply = r"<think>a</think> \boxed{the colour you see}"
    assert rewards.extract_answer(reply, shown) is None
    assert rewards.extract_answer(reply) == "the colour you see"
    label = "The colour you see"
    assert rewards.solver_reward(reply, label, shown)["reward"] == 0
    assert rewards.solver_reward(reply, label)["reward"] == 1
    assert rewards.parse_proposal(proposal_with("An idea of yours"), shown) is None
    assert rewards.parse_proposal(proposal_with("An idea of yours")) is not None
    # And what our own prompts show stays refused.
    assert rewards.extract_answer(r"\boxed{your answer}", shown) is None


# ------------------------------------------------------------------------------ Coder and Solver


@pytest.mark.parametrize("language", render.MAX_SIDE)
def test_coder_prompt_shows_the_fence_and_the_limits(language):
    text = words_of(FILLED[language])
    side = {name: str(number) for name, number in render.MAX_SIDE.items()}
    others = {*side.values()} - {side[language]}
    assert side[language] in text and not others & set(re.findall(r"\d+", text))
    assert f"{render.MAX_ASPECT} times as long as wide" in text
    assert "one colour only counts as none" in text
    labels = [label for label, _, _ in fenced_blocks(FILLED[language]) if label is not None]
    assert labels == [language]
    assert all(name.upper() in text for name in CODER_FIELDS)
    assert "answer must not be written in the" in text


@pytest.mark.parametrize("language", render.MAX_SIDE)
def test_the_form_of_a_code_is_read_as_code_but_draws_nothing(language):
    """Answered literally the form is paid as code; copied, it is code that draws nothing."""
    form = FILLED[language][FILLED[language].index("```") :]
    copied = rewards.extract_code(form, language)
    assert rewards.language_of(copied) == language
    with render.Renderer(1, 60.0) as renderer:
        (drawn,) = renderer.render([(copied, language)])
        assert drawn.image is None
    shown = re.search(r"\[.*\]", form)[0]
    drawing = {"svg": "<rect width='9' height='9'/>", "python": "import math"}[language]
    code = rewards.extract_code(form.replace(shown, drawing), language)
    assert drawing in code and rewards.coder_reward(code, None, language)["reward"] == -0.1


def test_coder_prompt_names_what_the_sandbox_takes():
    svg, python = words_of(FILLED["svg"]), words_of(FILLED["python"])
    assert rewards.extract_code(FILLED["svg"], "svg").startswith("<svg")  # the form itself is code
    for word in ("viewBox", "No scripts", "xmlns", "files from elsewhere"):
        assert word in svg
    for word in ("foreignObject", "filters", "vertical writing", "calc()", "textLength", "emoji"):
        assert word in svg[svg.index("Do not use what would be drawn wrongly") :]
    for word in (
        "Pillow, numpy, matplotlib",
        "No network",
        "no reading of files",
        "Image.save",
        "img or image",
        "figure",
    ):
        assert word in python
    seconds, memory = Settings().render_seconds, sandbox.MEMORY >> 30
    assert f"after {seconds:.0f} seconds, and at {memory} GB" in python
    for package in re.search(r"may use (.*?) and", python)[1].replace("Pillow", "PIL").split(", "):
        assert package in programs.PACKAGES  # what a program may read, it may use
    places = [
        python.index(word)
        for word in ("Image.save", "last one shown", "open matplotlib figure", "img or image")
    ]
    assert places == sorted(places)
    pinned = (Path(render.__file__).parent / "requirements.txt").read_text()
    pins = dict(re.findall(r"^(\w+)==(\d+\.\d+)", pinned, re.MULTILINE))
    assert f"numpy is version {pins['numpy']}, matplotlib {pins['matplotlib']}." in python


# What the guides say: drawn, or not, and which picture counts (by its width).
PICTURES = {
    "svg": [
        (
            '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40" viewBox="0 0 60 40">'
            '<rect width="60" height="40" fill="white"/><defs><linearGradient id="g">'
            '<stop stop-color="red"/></linearGradient></defs>'
            '<g><circle cx="9" cy="9" r="5" fill="url(#g)"/>'
            '<polyline points="1,1 9,30" stroke="#123456" fill="none"/>'
            '<text x="5" y="30" font-size="14" font-family="sans-serif">a '
            "<tspan>&lt; b</tspan></text></g></svg>",
            60,
        ),
        (
            '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40">'
            '<rect width="60" height="40" fill="white"/></svg>',
            None,
        ),
        (
            '<svg xmlns="http://www.w3.org/2000/svg" width="606" height="6">'
            '<path d="M0 0h9v3z"/></svg>',
            None,
        ),
    ],
    "python": [
        (
            'from PIL import Image\nImage.new("RGB", (9, 9)).save("a.png")\nfor w in (50, 70):\n'
            '    i = Image.new("RGB", (w, 40), "white")\n    i.putpixel((3, 3), (0, 0, 0))\n'
            '    i.save("chart.png")\nimg = i.crop((0, 0, 20, 20))',
            70,
        ),
        (
            'from PIL import Image\nimg = Image.new("RGB", (33, 40))\n'
            "img.putpixel((3, 3), (9, 9, 9))",
            33,
        ),
        (
            "import matplotlib.pyplot as plt\nplt.figure(figsize=(8, 6), dpi=100)\n"
            "plt.plot([1, 2])\nplt.tight_layout()",
            800,
        ),
        ('from PIL import Image\nopen("/etc/passwd")\nimg = Image.effect_noise((9, 9), 50)', None),
        (
            "import threading\nthreading.Thread(target=print).start()\nfrom PIL import Image\n"
            "img = Image.effect_noise((9, 9), 50)",
            None,
        ),
        ("import pandas", None),
    ],
}


@pytest.mark.parametrize("language", PICTURES)
def test_the_guides_say_what_the_renderer_does(language):
    codes = [code for code, _ in PICTURES[language]]
    with render.Renderer(1, 60.0) as renderer:
        if language == "python" and renderer.refusal:
            pytest.skip(renderer.refusal)
        pictures = renderer.render([(code, language) for code in codes])
    for (code, width), drawn in zip(PICTURES[language], pictures):
        assert (drawn.image and drawn.image.width) == width, (code, drawn.error)


def test_solver_form_is_the_one_that_is_paid():
    prompt = FILLED["solver"]
    form = prompt[prompt.rindex("<think>") :]
    paid = {"reward": 1.0, "accuracy": 1.0, "format": 1.0}
    for answer in ("7", "[7]"):  # the brackets may stay
        assert rewards.solver_reward(form.replace("[your answer]", answer), "7") == paid
    assert rewards.solver_reward(form, "your answer")["reward"] == 0
    assert prompt.startswith("How many bars?")

    samples = re.findall(r"\\boxed\{([^{}\[]+)\}", prompt)
    assert len(samples) >= 4
    for sample in samples:
        assert rewards.solver_reward(form.replace("[your answer]", sample), sample) == paid
