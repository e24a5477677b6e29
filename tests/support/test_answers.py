"""Reading, comparing and counting answers: pairs that are the same, pairs that are not, and hostile text."""

import random
from collections import Counter
from fractions import Fraction

import pytest
from helpers_time import seconds

from support.answers import MAX_ANSWER, answers_match, canonical, extract_answer, tally, vote

approx = pytest.approx


# ------------------------------------------------------------------------------- reading, comparing


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
    ],
)
def test_extract_answer(text, expected):
    assert extract_answer(text) == expected


SAME = [
    ("42", "42.0"),
    ("42", "42."),
    ("42", " 42 "),
    ("42", "$42$"),
    ("42", r"\(42\)"),
    ("42", "$$42$$"),
    ("42", "+42"),
    ("1,000", "1000"),
    ("1{,}000", "1000"),
    (r"1\,000", "1000"),
    ("1,234,567.50", "1234567.5"),
    (".5", "0.5"),
    ("0", "-0"),
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac{1}{2}", "1/2"),
    (r"\frac12", "2/4"),
    (r"-\frac{1}{2}", "-0.5"),
    ("3/4", "0.75"),
    (r"1\frac{1}{2}", "1.5"),
    ("1 1/2", "3/2"),
    ("1½", "1.5"),
    (r"\frac{x+1}{2}", "(x+1)/2"),
    (r"25\%", "25%"),
    ("25 %", "25 percent"),
    ("25%", "25"),
    ("−7", "-7"),
    ("–7", "- 7"),
    ("5 cm", "5"),
    ("5cm", "5 cm"),
    (r"5\text{ cm}", "5 cm"),
    (r"5\,\mathrm{cm}", "5 centimeters"),
    ("5 hours", "5 h"),
    ("5 cm²", r"5\text{ cm}^2"),
    ("5 square cm", "5 cm^{2}"),
    ("5 cm2", "5 cm^2"),
    ("12 square units", "12"),
    ("30 km/h", "30"),
    ("7 apples", "7 apple"),
    ("7 apples", "7"),
    ("45°", "45"),
    (r"45^\circ", "45 degrees"),
    (r"45^{\circ}", "45°"),
    ("$5", "5"),
    (r"\$5", "5 dollars"),
    (r"$\$5$", "$5"),
    (r"\$5 or \$6", r"$\$5$ or $\$6$"),
    ("€5", "5 €"),
    ("-$5", "-5"),
    ("$1,234.50", "1234.5"),
    ("5 am", "5"),
    ("5 million", "5,000,000"),
    ("5k", "5000"),
    ("2 million people", "2000000"),
    ("2e3", "2000"),
    (r"2 \times 10^{3}", "2000"),
    ("10^3", "1000"),
    ("10^{-1}", "0.1"),
    ("x = 5", "5"),
    ("x=-5", "x = −5"),
    ("Q1", "q1"),
    ("(B)", "b"),
    ("B.", "B"),
    ("Yes", "yes."),
    (r"\text{Red}", "red"),
    (r"\textbf{\text{Red}}", "red"),
    ('"Paris"', "paris"),
    ("**Paris**", "“Paris”"),
    ("New  York", "new york"),
    ("(3, 4)", "(3,4)"),
    ("A, B", "a ,b"),
    (r"\left(3, 4\right)", "( 3,4 )"),
    ("10 : 30", "10:30"),
    (r"2\pi", "2π"),
    (r"y = 2x + 1", "y=2x+1"),
    ("STRASSE", "straße"),
]
DIFFERENT = [
    ("10", "1"),
    ("-7", "7"),
    ("1.5", "15"),
    ("0.1", "1"),
    ("12,34", "1234"),
    ("100, 200", "100200"),
    ("1/3", "0.33"),
    ("5 cm", "5 m"),
    ("5 m", "5 ms"),
    ("5 cm", "5 cm^2"),
    ("5 apples", "5 pears"),
    ("10 am", "10 pm"),
    ("$5", "€5"),
    ("25%", "0.25"),
    ("25%", "25 cm"),
    ("x = 5", "y = 5"),
    ("5 million", "5"),
    ("5k", "5"),
    ("2 dozen", "2"),
    ("3 halves", "3"),
    ("3x", "3"),
    ("2ab", "2"),
    ("2 ab", "2"),
    ("2abc", "2"),
    ("2 m2", "2 m^3"),
    (r"2\pi", "2"),
    ("2 sin", "2"),
    ("5²", "52"),
    ("10³", "103"),
    ("5!", "5"),
    ("1st", "1"),
    ("1 of 3", "1"),
    ("5 or 6", "5"),
    ("3:4", "3/4"),
    ("1/0", "1"),
    ("1/0", "2/0"),
    ("(7", "7"),
    ("5 ft 3 in", "5 ft"),
    (r"\frac{ab}{c}", r"\frac{a}{bc}"),
    ("9**9**9", "9"),
    ("10^1000000000", "10"),
    ("1e1000000000", "1"),
    ("Q1", "Q2"),
    ("no", "yes"),
    ("no bars", "no circles"),
    ("no bars", "no"),
    ("(3,4)", "(4,3)"),
    ("None of these", "none"),
]
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
    "9" * (MAX_ANSWER + 1),
    5,
    5.0,
    b"5",
    ["5"],
]


@pytest.mark.parametrize("a, b", SAME)
def test_same_answers(a, b):
    assert answers_match(a, b) is True and answers_match(b, a) is True


@pytest.mark.parametrize("a, b", DIFFERENT)
def test_different_answers(a, b):
    assert answers_match(a, b) is False and answers_match(b, a) is False


@pytest.mark.parametrize("answer", NEVER, ids=range(len(NEVER)))
def test_never_answers(answer):
    assert canonical(answer) is None and answers_match(answer, answer) is False


def test_values_are_exact():
    assert canonical("0.1") == (Fraction(1, 10), "") and canonical("-1 1/3 cm") == (
        Fraction(-4, 3),
        "cm",
    )
    assert canonical("123456789012345678901234567890") != canonical(
        "123456789012345678901234567891"
    )


HOSTILE = [
    "9**9**9",
    "10^1000000000",
    "1e999999999",
    "9" * 100_000,
    "{" * 100_000,
    "\\frac{" * 20_000,
    "a" * 100_000,
] + [
    (piece * MAX_ANSWER)[:MAX_ANSWER]
    for piece in (
        "9",
        "1,",
        "1,111",
        "9/",
        "1 ",
        "1/1 ",
        ".",
        "1.1",
        "{",
        "}",
        "(",
        "[",
        "^{",
        "_{a}",
        "$",
        "\\$",
        "\\",
        "\\text{",
        "\\text{a}",
        "\\frac{1}{",
        "\\frac{1}{2}",
        "\\frac1",
        "\\boxed{",
        "\0",
        "\ud800",
        "\udfff",
        "x=",
        "=",
        "-",
        "−",
        "--",
        "1×10^",
        "1e999",
        "°",
        "%",
        '"',
        "'*",
        "square ",
        "a ",
        "a,",
        " , ",
        "ﬃ",
        "İ",
        "٣",
        "½",
        "²",
        "1½",
        "km/",
        "k",
        "~",
        "\t",
    )
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_fast_and_do_no_harm(text):
    for variant in (text, "5" + text[1:], text[:-1] + "!"):
        assert seconds(answers_match, variant, text) < 5e-3  # two answers, 1e-3 on a quiet machine
        assert not answers_match(variant, "5") or canonical(variant)[0] == 5
        key = canonical(variant)
        assert answers_match(variant, variant) is (key is not None)


def test_random_answers_never_raise_and_matching_is_symmetric_and_reflexive():
    rng = random.Random(0)
    pieces = list("0123456789" * 3 + ".,-−+/\\{}()[]$%°^_=× xXkmeEπ½²\"'*~:;!\n\t\0") + [
        "\ud800",
        "\\frac{",
        "\\text{",
        "}{",
        "}",
        "10^",
        " cm",
        " m",
        "%",
        "million",
        "none",
        "n/a",
        "\\boxed{",
        "e5",
        "١",
        "é",
        "𝟙",
        "１",
        "\\%",
        "\\,",
    ]
    texts = ["".join(rng.choices(pieces, k=rng.randrange(1, 9))) for _ in range(2000)]
    texts += [
        "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(1, 9)))
        for _ in range(500)
    ]
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
    for _ in range(2000):
        a, b = (Fraction(rng.randrange(-30, 31), rng.choice((1, 2, 4, 5, 10))) for _ in "ab")
        styles = [
            str,
            lambda x: str(float(x)),
            lambda x: f"{float(x):,.3f}",
            lambda x: f"${x}$ cm",
            lambda x: f"x = {x}",
            lambda x: ("-" if x < 0 else "") + rf"\frac{{{abs(x.numerator)}}}{{{x.denominator}}}",
        ]
        assert answers_match(rng.choice(styles[:3])(a), rng.choice(styles)(b)) is (a == b)


# --------------------------------------------------------------------------------------------- vote


@pytest.mark.parametrize(
    "answers, winner, consistency",
    [
        (["7", "7.0", "5"], "7", 2 / 3),
        ([None, "7", None, None, None], "7", 1 / 5),  # unread answers stay in the denominator
        (["none"] * 5, None, 0.0),
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
    ],
)
def test_vote(answers, winner, consistency):
    assert vote(answers) == (winner, approx(consistency))


def test_tally_merges_what_says_the_same_and_counts_what_could_not_be_read():
    assert list(tally(["3", None, "4", "4.0", "none", "4", ["5"]]).items()) == [
        ("3", 1),
        (None, 3),
        ("4", 3),
    ]
    assert tally([]) == {}


def test_consistency_is_the_share_that_matches_the_winner_and_no_answer_beats_it_within_its_unit():
    rng = random.Random(2)
    pool = [
        "5",
        "5.0",
        "5 cm",
        "5cm",
        "5 m",
        "7",
        "7 m",
        "-7",
        None,
        "none",
        "b",
        "(B)",
        "25%",
        "25",
        "0.25",
    ]
    for _ in range(600):
        answers = rng.choices(pool, k=rng.randrange(1, 11))
        winner, c = vote(answers)
        assert c == sum(answers_match(answer, winner) for answer in answers) / len(answers)
        assert winner is None or winner in answers
        exact = Counter(canonical(answer) for answer in answers if canonical(answer))
        assert c >= max(exact.values(), default=0) / len(answers)
        assert sum(tally(answers).values()) == len(answers)
        assert all(
            n == sum(answers_match(a, b) for b in answers)
            for a, n in tally(answers).items()
            if a == winner and a
        )
        unread = [None] * 3
        assert vote(answers + unread) == (winner, approx(c * len(answers) / (len(answers) + 3)))
