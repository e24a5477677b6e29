"""Prompts and parser stay in step: what a prompt asks for is what rewards.py reads and pays."""

import re

import pytest

import rewards
from prompts import PROMPTS, TOPICS, fill

PROPOSAL = rewards.Proposal("map", "a {easy_answer} caption", "What is at {topic}?", "7 {",
                            "Total of } and {x}?", "12 cm")
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
    assert names(PROMPTS["coder"]["svg"]) == names(PROMPTS["coder"]["python"]) == sorted(CODER_FIELDS)
    assert names(PROMPTS["solver"]) == ["question"]


@pytest.mark.parametrize("role", FILLED)
def test_filled_prompt_has_no_stray_braces(role):
    text = FILLED[role].replace(r"\boxed{}", "").replace(r"\boxed{your answer}", "")
    assert "{" not in text and "}" not in text
    assert all(ord(c) < 128 for c in text)              # nothing a tokenizer would spell in bytes


def test_fill_is_single_pass_and_leaves_other_braces():
    text = fill(PROMPTS["coder"]["svg"], **{name: getattr(PROPOSAL, name) for name in CODER_FIELDS})
    assert "a {easy_answer} caption" in text and "What is at {topic}?" in text
    assert "Total of } and {x}?" in text
    assert fill(r"\boxed{} {q} {other} {", q=r"\1 {q}") == r"\boxed{} \1 {q} {other} {"


def test_layout_in_the_proposer_prompt_is_what_the_parser_reads():
    """The prompt's own layout, its descriptions swapped for a proposal, parses to that proposal."""
    prompt = FILLED["proposer"]
    layout = prompt[prompt.index("<content_type>"):]
    assert re.findall(r"<(\w+)>", layout) == list(rewards.BLOCKS)        # the six blocks, in order
    assert prompt.count("<") == 2 * len(rewards.BLOCKS)                         # and tags appear nowhere else
    reply = re.sub(r"<(\w+)>.*</\1>", lambda m: f"<{m[1]}>{getattr(PROPOSAL, m[1])}</{m[1]}>", layout)
    assert rewards.parse_proposal(reply) == PROPOSAL
    for name in CODER_FIELDS:                                           # every one of them is required
        assert rewards.parse_proposal(reply.replace(f"</{name}>", "")) is None


def test_content_types_are_listed_where_they_are_explained_and_where_they_are_chosen():
    prompt = FILLED["proposer"]
    chosen = re.search(r"<content_type>one of: (.*)</content_type>", prompt)[1]
    assert tuple(chosen.split(", ")) == rewards.CONTENT_TYPES
    assert tuple(re.findall(r"(\w+) \((?=bars|flow|figures|events|regions|grids|anything)",
                            prompt)) == rewards.CONTENT_TYPES


@pytest.mark.parametrize("language, limit", [("svg", "1024"), ("python", "2048")])
def test_coder_prompt_shows_the_fence_and_the_limits(language, limit):
    text = FILLED[language]
    assert limit in text and not {"1024", "2048"} - {limit} & set(re.findall(r"\d+", text))
    assert [label for label, _ in rewards.fenced_blocks(text)] == [language]
    assert all(name.upper() in text for name in CODER_FIELDS)
    assert "answer must not be written in the" in " ".join(text.split())


def test_coder_prompt_names_what_the_sandbox_takes():
    svg, python = FILLED["svg"], FILLED["python"]
    assert rewards.extract_code(svg, "svg").startswith("<svg")              # the example itself is code
    for word in ("viewBox", "No scripts", "xmlns", "files from elsewhere"):
        assert word in svg
    for word in ("Pillow, numpy, matplotlib", "No network", "no reading of files", "Image.save",
                 "img or image", "figure"):
        assert word in python
    assert python.index("Image.save") < python.index("img or image") < python.index("open matplotlib figure")


def test_solver_form_is_the_one_that_is_paid():
    form = FILLED["solver"][FILLED["solver"].rindex("<think>"):]
    reply = form.replace("your answer", "7")
    assert rewards.solver_reward(reply, "7") == {"reward": 1.0, "accuracy": 1.0, "format": 1.0}
    assert FILLED["solver"].startswith("How many bars?")
