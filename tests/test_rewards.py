"""Parsing, filters and the three rewards: numbers worked out by hand, and slow obvious twins."""

import math
import random
import re
from collections import Counter

import pytest
from helpers_time import seconds

import rewards
from rewards import (
    Judged,
    Proposal,
    bleu_matrix,
    cluster_shares,
    coder_reward,
    difficulty,
    extract_code,
    keep_for_coder,
    keep_for_solver,
    parse_proposal,
    proposer_rewards,
    solvability,
    solver_reward,
    type_entropy,
    type_of,
)
from support.settings import SWITCHES, Settings, rules_of

approx = pytest.approx


# ---------------------------------------------------------------------------------------- proposals

BLOCKS = {
    "content_type": "map",
    "caption": "A plan\nof rooms",
    "easy_question": "Which room is red?",
    "easy_answer": "Hall",
    "hard_question": "How many doors?",
    "hard_answer": "7",
}


def reply(**changed):
    blocks = (BLOCKS | changed).items()
    return "\n".join(f"<{name}> {text} </{name}>" for name, text in blocks if text is not None)


def test_proposal_is_read_and_stripped():
    assert parse_proposal("Sure!\n" + reply() + "\nDone.") == Proposal(*BLOCKS.values())
    assert parse_proposal(reply(content_type=None)).content_type == ""


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "content_type"])
def test_proposal_needs_every_block_but_the_type(name):
    assert parse_proposal(reply(**{name: None})) is None
    assert parse_proposal(reply(**{name: "  "})) is None  # an empty block is a missing one
    assert parse_proposal(reply().replace(f"</{name}>", "")) is None


def test_a_block_cut_short_does_not_swallow_the_next():
    text = reply().replace("Hall </easy_answer>", "Hall") + "</easy_answer>"
    assert parse_proposal(text) is None
    assert parse_proposal(reply().replace("</caption>", "</easy_answer>")) is None


def test_reasoning_is_skipped_unless_there_is_nothing_else():
    draft = "<think>" + reply(easy_answer="draft") + "</think>"
    assert parse_proposal(draft + draft + reply()).easy_answer == "Hall"
    assert parse_proposal("<think>" + reply() + "</think> done") is None
    assert parse_proposal("a plan</think>" + reply()).easy_answer == "Hall"
    assert parse_proposal("plan ...\n" + reply() + "\n</think>\n").easy_answer == "Hall"
    # A draft that was left open does not hide the end of the reasoning.
    assert parse_proposal("<think><caption>a</think>" + reply()).caption == BLOCKS["caption"]


def test_the_first_of_two_blocks_counts():
    assert parse_proposal(reply() + reply(easy_answer="second")).easy_answer == "Hall"


def test_a_quoted_end_of_reasoning_is_text():
    quoted = parse_proposal(reply(caption="The label reads </think>."))
    assert quoted.caption == "The label reads </think>." and quoted.easy_answer == "Hall"


@pytest.mark.parametrize(
    "pattern, written",
    [
        (r"<(/?)(\w+)>", r"< \1\2 >"),
        (r"</(\w+)>", r"< / \1 >"),
        (r"<(/?)(\w+)>", r"<\1\n\2\t>"),
        (r"(<\w+>) (.*?) (</\w+>)", r"**\1** \2 **\3**"),
    ],
)
def test_tags_as_models_write_them(pattern, written):
    text = re.sub(pattern, written, reply(), flags=re.DOTALL)
    assert parse_proposal(text) == Proposal(*BLOCKS.values())


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "content_type"])
@pytest.mark.parametrize("copied", ["[your easy question here]", "its answer"])
def test_what_the_prompt_shows_is_no_content(name, copied):
    assert parse_proposal(reply(**{name: copied})) is None


def test_square_brackets_may_hold_an_answer():
    assert parse_proposal(reply(caption="[3, 4] is marked", easy_answer="[7]")) is not None


@pytest.mark.parametrize(
    "content_type, caption, expected",
    [
        ("geometry", "a bar chart", "geometry"),  # the block decides if it names a type,
        (" Data-Chart ", "", "data_chart"),
        ("other", "A Bar Chart of rain", "data_chart"),  # else the caption,
        ("", "a heatmap of noise", "data_chart"),  # in which "heatmap" must not count as a map,
        # nor a later hint win over an earlier one
        ("graph", "a bar chart in a flowchart", "diagram"),
        ("", "a triangle", "geometry"),
        ("", "Gantt", "timeline"),
        ("", "a grid", "table"),
        ("", "a country", "map"),
        ("pie", "two cats", "other"),
    ],
)
def test_type_of(content_type, caption, expected):
    assert type_of(Proposal(content_type, caption, "q", "a", "q", "a")) == expected


def test_unknown_language_is_refused():
    for call in (lambda: extract_code("x", "tikz"), lambda: coder_reward(None, None, "tikz")):
        with pytest.raises(ValueError, match="tikz.*svg, python"):
            call()


# ------------------------------------------------------------------------------ s, c, d and filters


def test_solvability_and_difficulty():
    assert solvability(["4", "4 cm", None, "none", "5"], "4") == approx(2 / 5)
    assert solvability(["none"] * 5, "none") == 0 and solvability([], "4") == 0
    assert [difficulty(c) for c in (0, 0.2, 0.5, 0.6, 1)] == approx([0, 0.2, 0.5, 0.4, 0])


def test_filters_include_their_ends():
    render_rates = [k / 8 for k in range(9)]
    assert [r for r in render_rates if keep_for_coder(r)] == [0.25, 0.375, 0.5, 0.625, 0.75]
    assert not keep_for_coder(0.2499) and not keep_for_coder(0.7501)
    assert [c for c in render_rates if keep_for_solver(1.0, c)] == [0.25, 0.375, 0.5, 0.625, 0.75]
    assert [c for c in render_rates if keep_for_solver(c, 0.5)] == [0.5, 0.625, 0.75, 0.875, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.1, 1.1])
def test_what_is_no_share_is_refused(bad):
    for call in (
        lambda: difficulty(bad),
        lambda: keep_for_coder(bad),
        lambda: keep_for_solver(bad, 0.5),
        lambda: keep_for_solver(0.5, bad),
        lambda: Judged(bad, 0.5),
        lambda: Judged(0.5, bad),
    ):
        with pytest.raises(ValueError, match="from 0 to 1"):
            call()


# ------------------------------------------------------------------------------ BLEU and clustering


def slow_bleu(hypothesis, reference):
    """Sentence BLEU-4 as the definition reads, one pair at a time."""
    h, r = hypothesis.split(), reference.split()
    logs = 0.0
    for order in (1, 2, 3, 4):
        counts = [
            Counter(tuple(w[i : i + order]) for i in range(len(w) - order + 1)) for w in (h, r)
        ]
        match = sum((counts[0] & counts[1]).values())
        if order == 1 and match == 0:
            return 0.0
        logs += math.log((match or 0.1) / max(sum(counts[0].values()), 1)) / 4
    return math.exp(logs) * (1 if len(h) > len(r) else math.exp(1 - len(r) / len(h)))


def slow_shares(texts):
    """Average linkage as defined: merge the two clusters of least mean distance below 0.25."""
    clusters = [[i] for i in range(len(texts))]

    def distance(a, b):
        pairs = [(min(i, j), max(i, j)) for i in a for j in b]
        return sum(1 - slow_bleu(texts[i], texts[j]) for i, j in pairs) / len(pairs)

    while len(clusters) > 1:
        pairs = [(x, y) for y in range(len(clusters)) for x in range(y)]
        least, x, y = min((distance(clusters[x], clusters[y]), x, y) for x, y in pairs)
        if least >= 0.25:
            break
        clusters[x] += clusters.pop(y)
    return [next(len(c) for c in clusters if i in c) / len(texts) for i in range(len(texts))]


def random_texts(rng, n, words, length=24):
    """Few originals, each copied with up to two words changed: clusters of all sizes."""
    lengths = (0, 1, 3, 4, length, length, length)
    originals = []
    for _ in range(max(n // 4, 1)):
        originals.append([f"w{rng.randrange(words)}" for _ in range(rng.choice(lengths))])
    texts = []
    for _ in range(n):
        text = list(rng.choice(originals))
        for _ in range(rng.choice((0, 0, 1, 2)) if text else 0):
            text[rng.randrange(len(text))] = f"w{rng.randrange(words)}"
        texts.append(" ".join(text[: rng.choice((len(text), len(text), len(text) - 1))]))
    return texts


@pytest.mark.parametrize(
    "hypothesis, reference, expected",
    [
        # no common 4-gram: 0.1 of 1
        ("a b c d", "a b c e", (3 / 4 * 2 / 3 * 1 / 2 * 0.1 / 1) ** 0.25),
        # all right but too short; and longer, which costs nothing by itself
        ("a b c d", "a b c d e", math.exp(1 - 5 / 4)),
        ("a b c d e", "a b c d", (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),
        ("a b c d", "x", 0),
        # "a" counts once; one word is below 1 even to itself
        ("a a", "a b c d", (1 / 2 * 0.1 / 1 * 0.1 * 0.1) ** 0.25 * math.exp(1 - 4 / 2)),
        ("x", "x", (1 * 0.1 * 0.1 * 0.1) ** 0.25),
    ],
)
def test_bleu_by_hand(hypothesis, reference, expected):
    assert bleu_matrix([hypothesis, reference])[0, 1] == approx(expected)


def test_bleu_and_clusters_equal_their_slow_twins():
    rng = random.Random(3)
    merged = 0
    for _ in range(40):
        texts = random_texts(rng, rng.randrange(1, 16), rng.choice((3, 10, 40)))
        expected = [[slow_bleu(h, r) for r in texts] for h in texts]
        assert bleu_matrix(texts).tolist() == [approx(row) for row in expected]
        shares = slow_shares(texts)
        assert cluster_shares(texts) == approx(shares)
        merged += sum(share > 1 / len(texts) + 1e-9 for share in shares)
    assert merged > 50


def test_cluster_edges():
    assert cluster_shares([]) == [] and cluster_shares(["a b c d"]) == [1.0]
    assert cluster_shares(["", ""]) == [0.5, 0.5]
    assert cluster_shares(["a b", "a b"]) == [0.5, 0.5]  # two words: equal, but BLEU is 0.32
    assert cluster_shares(["a b c d"] * 3) == [1.0] * 3
    # BLEU is one-sided: the short text as hypothesis gets e^(1 - 5/4) = 0.78, the long one 0.67.
    assert cluster_shares(["a b c d", "a b c d e"]) == [1.0, 1.0]
    assert cluster_shares(["a b c d e", "a b c d"]) == [0.5, 0.5]


def test_a_batch_of_128_is_fast():
    rng = random.Random(5)
    texts = [" ".join(f"w{int(rng.expovariate(0.02))}" for _ in range(50)) for _ in range(100)]
    texts += rng.choices(texts, k=28)
    assert seconds(cluster_shares, texts) < 0.3
    assert seconds(cluster_shares, ["the same text of eight words every time"] * 500) < 1.0


def test_type_entropy():
    assert type_entropy([]) == 0 and type_entropy(["map"] * 9) == 0
    assert type_entropy(["map", "table"]) == approx(math.log(2) / math.log(7))
    nats = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert type_entropy(["map"] * 3 + ["table"]) == approx(nats / math.log(7))
    assert type_entropy(rewards.CONTENT_TYPES * 2) == approx(1)


# ----------------------------------------------------------------------------------------- Proposer


def make(k, content_type="map", caption=None, easy=None, hard=None):
    """A proposal that shares no word with make(other k), unless told to."""
    return Proposal(
        content_type,
        caption or f"c{k} d{k} e{k} f{k}",
        easy or f"g{k} h{k} i{k} j{k}",
        "1",
        hard or f"k{k} l{k} m{k} n{k}",
        "2",
    )


def test_proposer_gain_is_capped_and_divided_by_the_codes_asked_for():
    pictures = [Judged(1.0, 0.6), Judged(0.2, 0.4), None, None]
    (row,) = proposer_rewards([make(0)], [pictures])
    #  1/4 [ min(1, .5) + .4  +  .2 + .4 ] = 0.375; one type: T = 0.15; n = 1: V = 0
    assert row == dict(
        reward=approx(0.375 - 0.15),
        valid=1.0,
        rendered=0.5,
        solvability=approx(0.6),
        difficulty=approx(0.4),
        easy_hard=0.0,
        type=approx(0.15),
        diversity=0.0,
        content_type="map",
    )


@pytest.mark.parametrize(
    "consistencies, penalty",
    [
        ([1.0, 1.0], 0.3),
        ([0.0], 0.3),
        ([0.8, 0.8], 0.0),
        ([1.0, 0.6], 0.0),
        ([1.0, 1.0, 0.8], 0.3),
        ([], 0.0),
        # exactly 0.15, which 1 - 0.8 < 0.2 in floating point must not spoil
        ([0.8, 0.8, 0.8, 1.0], 0.0),
        ([0.2, 0.2, 0.2, 0.0], 0.0),
        ([0.86], 0.3),
        ([0.84], 0.0),
    ],
)
def test_easy_hard_penalty_is_for_a_mean_below_015_over_rendered_pictures(consistencies, penalty):
    pictures = [Judged(0.5, c) for c in consistencies] + [None] * (4 - len(consistencies))
    (row,) = proposer_rewards([make(0)], [pictures])
    assert row["easy_hard"] == penalty
    gain = sum(0.5 + min(c, 1 - c) for c in consistencies) / 4
    assert row["reward"] == approx(gain - penalty - 0.15)


@pytest.mark.parametrize(
    "types, penalties",
    [
        (["map"] * 4, [0.15] * 4),  # collapse is punished
        (["map", "map", "map", "table"], [0.075] * 3 + [0]),  # f = 0.75
        (["map", "map", "table", "table"], [0] * 4),
        (["map", "table", "other", "geometry"], [0] * 4),
    ],
)
def test_type_penalty(types, penalties):
    rows = proposer_rewards([make(k, name) for k, name in enumerate(types)], [[None]] * 4)
    assert [row["type"] for row in rows] == approx(penalties)
    assert [row["content_type"] for row in rows] == types
    assert [row["reward"] for row in rows] == approx([-penalty for penalty in penalties])


@pytest.mark.parametrize(
    "shared, expected",
    [
        (dict(caption="one two three four"), 0.5 * 4 * 0.45 / 4),  # share 2/4 against 1/4
        (dict(easy="one two three four"), 0.5 * 4 * 0.20 / 4),
        (dict(hard="one two three four"), 0.5 * 4 * 0.35 / 4),
        (dict(caption="one two three four", hard="five six seven eight"), 0.5 * 4 * 0.80 / 4),
    ],
)
def test_diversity_penalty_by_field(shared, expected):
    types = ["map", "table", "geometry", "diagram"]
    batch = [make(0, types[0], **shared), make(1, types[1], **shared)]
    batch += [make(2, types[2]), make(3, types[3])]
    rows = proposer_rewards(batch, [[None]] * 4)
    assert [row["diversity"] for row in rows] == approx([expected, expected, 0, 0])
    assert [row["reward"] for row in rows] == approx([-expected, -expected, 0, 0])


def test_total_collapse_costs_the_most_and_no_more():
    rows = proposer_rewards([make(0)] * 6, [[Judged(0.5, 0.5)]] * 6)
    #  gain 1; T = .15; V = clip(.5 * 6 * (1 - 1/6), -.5, .5) = clip(2.5) = .5
    assert [row["reward"] for row in rows] == approx([1 - 0.15 - 0.5] * 6)


def test_invalid_proposals_get_minus_one_and_count_nowhere():
    batch, judged = [make(0), make(1, "table")], [[Judged(0.4, 0.4)]] * 2
    alone = proposer_rewards(batch, judged)
    mixed = proposer_rewards(
        [None, batch[0], None, None, batch[1]], [[None], judged[0], [], [None], judged[1]]
    )
    assert [mixed[1], mixed[4]] == alone
    for row in (mixed[0], mixed[2], mixed[3]):
        assert row["reward"] == -1 and row["valid"] == 0 and row["content_type"] is None
        assert row.keys() == alone[0].keys()
    assert [row["reward"] for row in proposer_rewards([None, None], [[None], [None]])] == [-1, -1]
    assert proposer_rewards([], []) == []


def plain_proposer_reward(k, batch, pictures):
    """The formula as it reads, for the k-th of the valid proposals in a batch."""
    n = len(batch)
    drawn = [p for p in pictures if p]
    d = [min(p.consistency, 1 - p.consistency) for p in drawn]
    E = 0.3 if drawn and round(sum(d) / len(d), 9) < 0.15 else 0
    f = sum(type_of(p) == type_of(batch[k]) for p in batch) / n
    T = 0.15 * max(0, f - 0.5) / 0.5
    V = 0
    for weight, name in ((0.45, "caption"), (0.20, "easy_question"), (0.35, "hard_question")):
        V += weight * (slow_shares([getattr(p, name) for p in batch])[k] - 1 / n)
    V = min(max(0.5 * n * V, -0.5), 0.5)
    gain = sum(min(p.solvability, 0.5) for p in drawn) / len(pictures) + sum(d) / len(pictures)
    return gain - E - T - V


def test_whole_batch_against_a_plain_transcription():
    rng = random.Random(6)
    picture = [None] + [Judged(s / 5, c / 5) for s in range(6) for c in range(6)] + [None] * 11
    compared = 0
    for _ in range(90):
        n, total = rng.randrange(1, 9), rng.randrange(1, 5)
        batch = []
        for caption in random_texts(rng, n, 10):
            name = rng.choice(rewards.CONTENT_TYPES)
            proposal = Proposal(name, caption, caption + " y", "1", caption + " z", "2")
            batch.append(rng.choice((None, proposal)))
        judged = [rng.choices(picture, k=total) for _ in batch]
        valid = [p for p in batch if p]
        for proposal, pictures, terms in zip(batch, judged, proposer_rewards(batch, judged)):
            if proposal is None:
                assert terms["reward"] == -1
                continue
            k = next(i for i, p in enumerate(valid) if p is proposal)
            assert terms["reward"] == approx(plain_proposer_reward(k, valid, pictures))
            assert terms["rendered"] == len([p for p in pictures if p]) / total
            compared += 1
    assert compared > 150


def rules_without(*names):
    return rules_of(Settings(without=names))


# Two texts in three are equal, all of one type; d is 0, or 0.4 with s = 1.
EASY, HARD = Judged(1.0, 1.0), Judged(1.0, 0.6)
ALIKE = [make(0), make(0), make(1)]
PICTURES = [[EASY, None], [HARD, HARD], [HARD, None]]
GAINS = {  # what a proposal earns more if a term is left out
    "cap": [0.25, 0.5, 0.25],
    "difficulty": [0.0, -0.4, -0.2],
    "easy-hard": [0.3, 0.0, 0.0],
    "type": [0.15, 0.15, 0.15],
    #   1/2 * 3 * (2/3 - 1/3), and of the third 1/2 * 3 * (1/3 - 1/3)
    "diversity": [0.5, 0.5, 0.0],
    "filters": [0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_takes_its_own_term_out_and_no_other(name):
    usual = proposer_rewards(ALIKE, PICTURES)
    other = proposer_rewards(ALIKE, PICTURES, rules_without(name))
    change = [o["reward"] - u["reward"] for o, u in zip(other, usual)]
    assert change == approx(GAINS[name], abs=1e-12)


def test_without_all_terms_solvability_alone_is_paid():
    rows = proposer_rewards(ALIKE, PICTURES, rules_without(*SWITCHES))
    assert [row["reward"] for row in rows] == [0.5, 1.0, 0.5]


def test_without_difficulty_the_coder_is_paid_for_solvability():
    assert coder_reward("<svg/>", HARD)["reward"] == 1 + 1 + 0.4
    assert coder_reward("<svg/>", HARD, rules=rules_without("difficulty"))["reward"] == 2


def test_without_filters_all_is_kept_that_has_a_label():
    every, other = rules_without("filters"), rules_without("cap")
    assert keep_for_coder(0, every) and not keep_for_coder(0, other)
    assert keep_for_solver(0.1, 0.9, every) and not keep_for_solver(0.1, 0.9, other)
    # Nothing could be read: there is no label to learn.
    assert not keep_for_solver(1.0, 0.0, every)


def test_proposer_rewards_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="not one each"):
        proposer_rewards([make(0)], [])
    with pytest.raises(ValueError, match="one entry per code"):
        proposer_rewards([make(0)], [[]])


# --------------------------------------------------------------------------------- Coder and Solver


@pytest.mark.parametrize(
    "text, language, picture, reward",
    [
        ("```svg\n<svg/>\n```", "svg", Judged(1.0, 0.6), 1 + 1.0 + 0.4),  # s is not capped here
        ("```svg\n<svg/>\n```", "svg", Judged(0.0, 1.0), 1.0),
        ("```python\na = 1\n```", "python", Judged(0.2, 0.5), 1.7),
        ("<svg></svg>", "svg", Judged(0.2, 0.5), 1.7),  # a fence is not asked for
        ("```python\na = 1\n```", "svg", Judged(0.2, 0.5), 1.7 - 0.5),
        ("```svg\n<svg/>\n```", "svg", None, -0.1),
        ("```python\na = 1\n```", "python", None, -0.1),
        # no code is not of the asked language either, and the floor is not -0.6
        ("no code", "svg", None, -0.5),
        ("```svg\n<svg", "svg", None, -0.5),
        ("```python\na = 1\n```", "svg", None, -0.5),
    ],
)
def test_coder_reward(text, language, picture, reward):
    code = extract_code(text, language)
    row = coder_reward(code, picture, language, text)
    assert row["reward"] == approx(reward) and row["rendered"] == float(picture is not None)
    assert row["solvability"] == (picture.solvability if picture else 0)
    assert row["difficulty"] == approx(difficulty(picture.consistency) if picture else 0)


def test_coder_reward_without_a_reply_judges_the_code_alone():
    assert coder_reward(None, None)["reward"] == -0.5
    assert coder_reward("<svg/>", None)["reward"] == approx(-0.1)
    assert coder_reward("a = 1", None)["reward"] == -0.5
    with pytest.raises(ValueError, match="no code"):
        coder_reward(None, Judged(0.5, 0.5))


@pytest.mark.parametrize(
    "text, accuracy, form",
    [
        (r"<think>3 + 4</think>\boxed{7}", 1, 1),
        (r"<think>3 + 4</think> \boxed{8}", 0, 1),
        (r"<think>\boxed{8}</think> \boxed{7}", 1, 1),
        (r"<think>a</think> \boxed{\frac{14}{2}}", 1, 1),
        (r"\boxed{7}", 1, 0),
        (r"<think>3 + 4 \boxed{7}", 1, 0),
        (r"<think>a</think> \boxed{7}.", 1, 0),
        (r"So <think>a</think> \boxed{7}", 1, 0),
        # several thoughts; the chat template wrote the first <think>
        (r"<think>a</think><think>b</think>\boxed{7}", 1, 1),
        (r"a</think> \boxed{7}", 1, 0),
        # a box, but not in form
        (r"<think>a</think> \boxed 7", 1, 0),
        (r"<think>a</think> \fbox{7}", 1, 0),
        (r"<think>a</think> **\boxed{7}**", 1, 0),
        # what the prompt shows
        (r"<think>[your reasoning, step by step]</think> \boxed{[your answer]}", 0, 0),
        (r"<think>a</think> \boxed{your answer}", 0, 0),
        (r"<think>a</think> \boxed{}", 0, 0),
        (r"<think>a</think> \boxed{7", 0, 0),
        ("", 0, 0),
    ],
)
def test_solver_reward(text, accuracy, form):
    row = solver_reward(text, "7")
    assert row == dict(reward=approx(0.9 * accuracy + 0.1 * form), accuracy=accuracy, format=form)


def test_a_none_label_pays_nothing():
    assert solver_reward(r"<think>a</think> \boxed{none}", "none")["reward"] == approx(0.1)


def plain_coder_reward(found, asked, drawn, s, c):
    """The rule as it reads: was code found, is it of the asked language, did it draw?"""
    if drawn:
        return 1 + s + min(c, 1 - c) - (0 if asked else 0.5)
    if not found:
        return -0.5
    return max(-(0.1 + (0 if asked else 0.5)), -0.5)


def test_the_coder_against_a_plain_transcription():
    rng = random.Random(8)
    codes = {"svg": ["<svg><g/></svg>", "<svg ...>...</svg>"], "python": ["import math", "a = 1"]}
    wrappings = ("```{0}\n{1}\n```", "~~~{0}\n{1}\n~~~", "<think>no</think>Here:\n```{0}\n{1}\n```")
    for _ in range(300):
        language, written = rng.choice(list(codes)), rng.choice(list(codes))
        found = rng.random() < 0.8
        text = rng.choice(wrappings).format(written, rng.choice(codes[written])) if found else "No."
        drawn = found and rng.random() < 0.6
        s, c = rng.randrange(6) / 5, rng.randrange(6) / 5
        terms = coder_reward(
            extract_code(text, language), Judged(s, c) if drawn else None, language, text
        )
        expected = plain_coder_reward(found, written == language, drawn, s, c)
        assert terms["reward"] == approx(expected), text


def plain_form(text):
    """<think>..</think>, a box, no more; the released code drops spaces around <, > and /."""
    text = re.sub(r"\s*(<|>|/)\s*", r"\1", text)
    return re.fullmatch(r"<think>.*</think>\s*\\boxed\{.*\}\s*", text, re.DOTALL) is not None


def test_the_solver_against_a_plain_transcription():
    """The pattern cannot see that a box is empty, or that there are two: there only we say no."""
    rng = random.Random(9)
    pieces = ["<think>", "</think>", "< think >", "</ think >", " a ", "\n"]
    pieces += ["\\boxed{7}", "\\boxed{8}"]
    both = 0
    for _ in range(4000):
        text = "".join(rng.choices(pieces, k=rng.randrange(2, 7)))
        rest = re.split(r"<\s*/\s*think\s*>", text)[-1]
        terms = solver_reward(text, "7")
        boxes = re.findall(r"\\boxed\{(\d)\}", text)
        assert terms["accuracy"] == float(boxes[-1:] == ["7"])
        assert terms["format"] == float(plain_form(text) and rest.count("\\boxed") == 1), text
        assert terms["reward"] == approx(0.9 * terms["accuracy"] + 0.1 * terms["format"])
        both += terms["format"] > 0
    assert both > 50
