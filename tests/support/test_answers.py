"""Reading, comparing and counting answers: pairs that are the same or differ, hostile text."""

import json
import logging
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from helpers_time import seconds

import prompts  # noqa: F401  (its placeholders are refused)
from support.answers import (
    MAX_ANSWER,
    answers_match,
    canonical,
    extract_answer,
    is_placeholder,
    tally,
    vote,
)
from support.units import unit_of

approx = pytest.approx
CASES = Path(__file__).resolve().parent.parent / "cases"

# ------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{1} then \boxed{ 2 }.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed{\text{a{b}c}}", r"\text{a{b}c}"),
        (r"\boxed{1} so \boxed{2", None),
        (r"\boxed{}", None),
        (r"\boxed{  }", None),
        ("7", None),
        ("", None),
        ("\\boxed{" + "a" * MAX_ANSWER + "}", "a" * MAX_ANSWER),
        ("\\boxed{" + "a" * 10000 + "}", None),
        # as models write it
        (r"\boxed {42}", "42"),
        ("\\boxed\n{42}", "42"),
        (r"\boxed{{42}}", "42"),
        (r"\boxed{{{42}}}", "42"),
        (r"\boxed{{a}{b}}", "{a}{b}"),
        (r"\boxed{\boxed{42}}", "42"),
        (r"\fbox{42}", "42"),
        (r"\boxed{1} and \fbox{2}", "2"),
        (r"$\boxed{42}$", "42"),
        (r"$$\boxed{42}$$.", "42"),
        (r"\[ \boxed{42} \]", "42"),
        (r"**\boxed{42}**", "42"),
        (r"**Final answer:** \boxed{\text{Room 4}}", r"\text{Room 4}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"<think>\boxed{1}</think> It is 1.", "1"),
        # without braces
        (r"\boxed 42", "42"),
        (r"\boxed 42.", "42"),
        (r"$\boxed 42$", "42"),
        (r"**\boxed 42**", "42"),
        (r"\boxed42", "42"),
        (r"\boxed -3.5 cm", "-3.5"),
        (r"\boxed B is right", "B"),
        (r"so \boxed blue.", None),
        (r"\boxed \frac{1}{2}", r"\frac{1}{2}"),
        # a mention is no box
        (r"I give \boxed{42} in \boxed form.", "42"),
        (r"the \boxed command, \boxedanswer{3}", None),
        # what the prompts write in its place
        (r"\boxed{your answer}", None),
        (r"\boxed{[your answer]}", None),
        (r"\boxed{Your answer here.}", None),
        (r"\boxed{answer}", None),
        (r"\boxed{\text{your answer}}", None),
    ],
)
def test_extract_answer(text, expected):
    assert extract_answer(text) == expected


# ---------------------------------------------------------------------------------------- comparing

NEVER = [
    None,
    "",
    "  ",
    "...",
    "none",
    "None.",
    "NONE",
    "n/a",
    "N / A",
    "unknown",
    "Unknown.",
    r"\text{None}",
    "$none$",
    '"none"',
    "null",
    "NaN",
    "$$",
    r"\text{}",
    r"\ldots",
    "…",
    "?",
    "**none**",
    "[your answer]",
    "your answer",
    "Answer",
    "9" * (MAX_ANSWER + 1),
    "½" * MAX_ANSWER,  # three characters each
    5,
    5.0,
    b"5",
]


def pairs(name):
    """The rows (verdict, a, b) of a file in tests/cases."""
    return [line.split("\t") for line in (CASES / name).read_text("utf-8").splitlines()[1:]]


@pytest.mark.parametrize(
    "name, same, different", [("answers.tsv", 27, 14), ("pairs.tsv", 540, 230)]
)
def test_pairs_are_judged_as_a_person_would(name, same, different):
    rows = pairs(name)
    for verdict, a, b in rows:
        expected = {"same": True, "different": False}[verdict]
        assert answers_match(a, b) is expected, (verdict, a, b, canonical(a), canonical(b))
        assert answers_match(b, a) is expected, (verdict, b, a)
    counts = Counter(verdict for verdict, _, _ in rows)
    assert counts["same"] >= same and counts["different"] >= different


@pytest.mark.parametrize("answer", NEVER, ids=range(len(NEVER)))
def test_never_answers(answer):
    assert canonical(answer) is None and answers_match(answer, answer) is False


def test_a_word_of_a_placeholder_is_an_answer():
    for answer in ("Easy", "here", "A", "the", "short", "picture", "Hard"):
        assert not is_placeholder(answer) and answers_match(answer, answer)


def test_values_are_exact():
    assert canonical("0.1") == (Fraction(1, 10), "")
    assert canonical("-1 1/3 cm") == (Fraction(-4, 3), "cm")
    long = "123456789012345678901234567890"
    assert canonical(long) != canonical(long[:-1] + "1")


@pytest.mark.parametrize(
    "text, unit",
    [
        ("", ""),
        (" cm", "cm"),
        ("cm", "cm"),
        (" apples", "apple"),
        (" square units", ""),
        (" km/h", "h^-1 km"),
        (" m/s^2", "m s^-2"),
        (" kg·m^2", "kg m^2"),
        (" people per square mile", "mi^-2 person"),
        # no units: a variable, a label, a word that changes the number
        ("x", None),
        ("C", None),
        (" ab", None),
        (" dozen", None),
        (" Main Street", None),
        (" of them all together now", None),
        (" 3", None),
        (" m" * 40, None),
    ],
)
def test_units(text, unit):
    assert unit_of(text) == unit


def test_a_currency_joins_the_unit():
    assert unit_of(" per kg", "$") == unit_of(" dollars per kilogram") == "$ kg^-1"
    assert unit_of(" USD", "$") == unit_of("", "US$") == "$"


def test_case_counts_where_it_means_something():
    assert canonical("5M")[0] == 5_000_000 and canonical("5m") == (5, "m")
    assert canonical("5 MW") != canonical("5 mW") and canonical("5 KM") == canonical("5 km")
    assert canonical("Q1") == canonical("q1") and canonical("RED") == canonical("red")


# ------------------------------------------------------------------------------------------ hostile

# Whole answers, then pieces that are repeated until the answer is as long as it may be.
HOSTILE = [
    "9**9**9",
    "10^1000000000",
    "10^1000000",
    "1e999999999",
    "2^" * 200 + "2",
    "9" * 10_000,
    "9" * 100_000,
    "{" * 100_000,
    "{" * 250 + "}" * 250,
    "\\frac{" * 20_000,
    "\\text{" * 70 + "a" + "}" * 70,
    "\\sqrt{" * 60 + "2" + "}" * 60,
    "a" * 100_000,
]
PIECES = (
    "9|1,|1,111|9/|1 |1/1 |.|1.1|{|}|(|[|^{|_{a}|$|\\$|\\|\\text{|\\text{a}|\\frac{1}{|\\frac1|"
    "\\frac{1}{2}|\\boxed{|\0|\ud800|\udfff|x=|=|-|−|--|1×10^|1e999|°|%|\"|'*|square |a |a,| , |ﬃ|"
    "İ|٣|½|²|1½|km/|k|~|\t|\\sqrt{|√|√(|sqrt(|^|and |a and |&|;|one |twenty-|π|\\pi |5 km |per |"
    "²⁻|1 000|1:|10:30 |jan |the |\ufdfa|5 a |5a,|5 cm, |1e|→|<=|x 1|×|()|((1)|[1]|answer is |"
    "minus |m^2|s·|·|/|5/|\\color{|$1|\\,|1\\,|{,}|_1|st|half |1 to |5pm |a.m.|(A) |A. |is (A) |"
    "not |the answer is |option A |a=|\\vec a=|a(|(a,|=(1,|1+1=|厘米|1米|*|aa*|†|\u200b|**|`|a b "
).split("|")
HOSTILE += [(piece * MAX_ANSWER)[:MAX_ANSWER] for piece in PIECES]


def fresh(text):
    """`canonical` without what it remembers."""
    canonical.cache_clear()
    return canonical(text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_fast_and_do_no_harm(text):
    for variant in (text, "5" + text[1:], text[:-1] + "!"):
        assert seconds(fresh, variant) < 8e-3  # under 2e-3 on a quiet machine
        assert not answers_match(variant, "5") or canonical(variant)[0] == 5
        key = canonical(variant)
        assert answers_match(variant, variant) is (key is not None)


def test_hostile_answers_that_are_named_stay_under_a_millisecond():
    texts = ("9" * 10_000, "{" * 250 + "}" * 250, "10^1000000", "1e1000000", "9**9**9")
    for text in texts:
        assert min(seconds(fresh, text) for _ in range(3)) < 1e-3


RANDOM_PIECES = list("0123456789" * 3 + ".,-−+/\\{}()[]$%°^_=× xXkmMKBeEπ√½²\"'*~:;!&\n\t\0|")
RANDOM_PIECES += (
    "\ud800|\\frac{|\\text{|\\sqrt{|}{|}|10^| cm| m|%|million|none|n/a|e5|١|é|𝟙|１|\\%|\\,|"
    "\\boxed{| and |three| per |pi|may |am| the "
).split("|")


def test_random_answers_never_raise_and_matching_is_symmetric_and_reflexive():
    rng = random.Random(0)
    texts = ["".join(rng.choices(RANDOM_PIECES, k=rng.randrange(1, 9))) for _ in range(3000)]
    for _ in range(500):
        texts.append("".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(1, 9))))
    numbers = 0
    for a, b in zip(texts, texts[1:] + texts[:1]):
        key = canonical(a)
        numbers += key is not None and isinstance(key[0], Fraction)
        assert answers_match(a, a) is (key is not None)
        assert answers_match(a, b) is answers_match(b, a)
        assert canonical(f" {a} ") == key  # outer spaces never matter
    assert numbers > 100  # the sample does reach the number branch


def test_random_numbers_match_exactly_when_equal():
    rng = random.Random(1)

    def latex(x):
        sign = "-" if x < 0 else ""
        return sign + rf"\frac{{{abs(x.numerator)}}}{{{x.denominator}}}"

    styles = [
        str,
        lambda x: str(float(x)),
        lambda x: f"{float(x):,.3f}",
        lambda x: f"${x}$ cm",
        lambda x: f"x = {x}",
        latex,
        lambda x: f"{float(x * 1000)} × 10⁻³",
        lambda x: f"{float(x / 1000):.5f}K",
    ]
    for _ in range(2000):
        a, b = (Fraction(rng.randrange(-30, 31), rng.choice((1, 2, 4, 5, 10))) for _ in "ab")
        assert answers_match(rng.choice(styles[:3])(a), rng.choice(styles)(b)) is (a == b)


# ----------------------------------------------------------------------------------- second opinion

# Where math-verify differs: (a, b, what it says, what we say, who is right and why).
OTHERWISE = [
    ("12 km/h", "12 kph", False, True, "we: it knows no units"),
    ("5M", "5 million", False, True, "we: it knows no scales"),
    ("three", "3", False, True, "we: it knows no number words"),
    ("A and B", "A & B", False, True, "we: it knows no lists of words"),
    ("Jan 5, 2020", "2020-01-05", False, True, "we: it knows no dates"),
    ("\\sqrt{12}", "2\\sqrt{3}", True, False, "it, by algebra, which is not for us"),
    ("2^3", "8", True, False, "it, by algebra"),
    ("1/\\sqrt{2}", "\\sqrt{2}/2", True, False, "it, by algebra"),
    ("0.3333333", "1/3", True, False, "we: it rounds"),
    ("5 cm", "5 km", True, False, "we: it drops the units"),
    ("3:2", "3/2", True, False, "we: a ratio was asked for, or it was not"),
    ("25\\%", "0.25", True, False, "we: a percentage is compared as one"),
    ("A, B", "B, A", True, False, "we: the order counts"),
    ("\\{1,2\\}", "\\{2,1\\}", True, False, "it, for sets; we cannot tell a set from a list"),
]


@pytest.fixture
def verify():
    math_verify = pytest.importorskip("math_verify")
    logging.disable(logging.CRITICAL)

    def same(a, b):
        trees = [math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (a, b)]
        return math_verify.verify(*trees, timeout_seconds=None)

    yield same
    logging.disable(logging.NOTSET)


def test_where_math_verify_differs_somebody_is_right(verify):
    for a, b, theirs, ours, reason in OTHERWISE:
        assert (verify(a, b), answers_match(a, b)) == (theirs, ours), (a, b, reason)


def test_math_verify_agrees_on_numbers_fractions_and_roots(verify):
    rng = random.Random(5)

    def write():
        n, m = rng.randrange(1, 6), rng.choice((2, 4, 5))
        value = rng.choice((f"{n}/{m}", f"{n / m}", f"{n}", rf"\sqrt{{{n + 10}}}", rf"{n}\pi"))
        return rng.choice(
            (value, f"-{value}", f"${value}$", rf"{value}\text{{ cm}}", rf"\left({value}\right)")
        )

    agreed = 0
    for _ in range(300):
        a, b = write(), write()
        if "cm" in a + b and "cm" not in a:
            a, b = b, a
        assert answers_match(a, b) is verify(a, b), (a, b)
        agreed += answers_match(a, b)
    assert agreed > 10


# --------------------------------------------------------------------------------------------- vote


@pytest.mark.parametrize(
    "answers, winner, consistency",
    [
        (["7", "7.0", "5"], "7", 2 / 3),
        ([None, "7", None, None, None], "7", 1 / 5),  # unread answers stay in the denominator
        (["none"] * 5, None, 0.0),
        (["your answer"] * 5, None, 0.0),
        ([None, None], None, 0.0),
        ([], None, 0.0),
        (["b", "a", "a", "b"], "b", 1 / 2),
        (["a", "b"], "a", 1 / 2),  # ties: the first seen
        (["c", "b", "a", "a"], "a", 1 / 2),
        (["5", "5 cm", "5 m"], "5 cm", 2 / 3),  # a bare number joins one unit
        (["5 m", "5", "5 cm"], "5 m", 2 / 3),
        (["5", "5 m", "5 cm", "5 cm"], "5 cm", 3 / 4),
        (["5 cm", "5 m"], "5 cm", 1 / 2),
        (["5 m", "7", "7", "5 cm", "5 cm"], "7", 2 / 5),  # and tied camps keep their order
        (["no bars", "no", "no circles"], "no bars", 1 / 3),
        (["1,000", "1000", "10"], "1,000", 2 / 3),
        (["12 km/h", "12 kph", "12"], "12 km/h", 1.0),
        (["A and B", "B and A", "A, B"], "A and B", 2 / 3),
    ],
)
def test_vote(answers, winner, consistency):
    assert vote(answers) == (winner, approx(consistency))


def test_votes_of_real_models():
    for line in (CASES / "votes.jsonl").read_text("utf-8").splitlines():
        case = json.loads(line)
        assert vote(case["answers"])[1] == approx(case["share"], abs=5e-4), case


def test_tally_merges_what_says_the_same_and_counts_what_could_not_be_read():
    votes = tally(["3", None, "4", "4.0", "none", "4", "?"])
    assert list(votes.items()) == [("3", 1), (None, 3), ("4", 3)]
    assert tally([]) == {}


def test_consistency_is_the_share_that_matches_the_winner_and_no_answer_beats_it_within_its_unit():
    rng = random.Random(2)
    pool = [
        None,
        *"5|5.0|5 cm|5cm|5 m|7|7 m|-7|none|b|(B)|25%|25|0.25|5, 7|5 and 7|5, 7 cm".split("|"),
        *"(B) red|B. red|red|(B) blue".split("|"),
    ]
    for _ in range(600):
        answers = rng.choices(pool, k=rng.randrange(1, 11))
        winner, c = vote(answers)
        assert c == sum(answers_match(answer, winner) for answer in answers) / len(answers)
        assert winner is None or winner in answers
        exact = Counter(canonical(answer) for answer in answers if canonical(answer))
        assert c >= max(exact.values(), default=0) / len(answers)
        votes = tally(answers)
        assert sum(votes.values()) == len(answers)
        if winner:
            assert votes[winner] == sum(answers_match(winner, answer) for answer in answers)
        unread = [None] * 3
        assert vote(answers + unread) == (winner, approx(c * len(answers) / (len(answers) + 3)))
