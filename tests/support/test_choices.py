"""Which choice an answer means, and choices as data sets write them (support/choices.py)."""

import json
import time
from pathlib import Path

import pytest

from rewards import solver_reward
from support.answers import vote
from support.choices import bare, chosen, listed, meant, read_choices, right_choices, truth
from tools import benchmarks

CASES = Path(__file__).resolve().parent.parent / "cases" / "kinds.jsonl"
KINDS = [json.loads(line) for line in CASES.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in KINDS}))
def test_answers_of_real_models_are_judged_as_a_person_would(kind):
    for case in KINDS:
        if case["kind"] == kind:
            row = {"question": "How many?"} | case["row"]
            question = benchmarks.question(row, case.get("set", "mine"), ".")
            judged = {
                side: [given for given in case[side] if benchmarks.right(given, question)]
                for side in ("right", "wrong")
            }
            assert judged == {"right": case["right"], "wrong": []}, case


ANIMALS = ["a dog", "a cat", "a horse"]
COLOURS = ["red", "blue", "green", "yellow"]


@pytest.mark.parametrize(
    "text",
    [
        *("C", "c", "(C)", "(c)", "C.", "C)", "[C]", "C:", "(C.)", " C\n", "Ｃ", "（Ｃ）"),
        *(r"\text{C}", r"\textbf{C}", r"\mathbf{C}", r"\mathrm{(C)}", r"\boxed{C}", r"{\bf C}"),
        *("$C$", r"$\text{C}$", r"\( C \)", r"$\boxed{\text{C}}$", r"\text{Option C}"),
        *("**C**", "**(C)**", "__C__", "*C*", "`C`", "'C'", '"C"', "“C”", "<b>C</b>", "**C.**"),
        *("Option C", "option (C)", "Choice C", "Answer: C", "The correct answer is (C)."),
        *("The answer is option C", "C is correct", "C is the correct answer"),
        *("C - a horse", "C – a horse", "C: a horse", "C. a horse", "C) a horse", "(C) a horse"),
        *("C, a horse", "C a horse", "C (a horse)", "a horse (C)", "C.a horse", "**C**: a horse"),
        *(r"\text{C. a horse}", r"\textbf{(C)} a horse", "option C: a horse"),
        *("a horse", "A horse", "a horse.", "**a horse**", r"\text{a horse}", "“a horse”"),
        *("(C) because it is the largest", "C. It is the largest one"),
    ],
)
def test_one_letter_or_its_words(text):
    assert meant(text, ANIMALS) == {2}


@pytest.mark.parametrize(
    "text",
    ["D", "", "none", "not C", "A or C", "C or B", "a fish", "horse dog", "both", "all", "E", "3"],
)
def test_what_means_no_choice(text):
    assert meant(text, ANIMALS) == set()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "A, C",
            "C, A",
            "A,C",
            "A and C",
            "C & A",
            "A/C",
            "A; C",
            "A C",
            "AC",
            "CA",
            "ac",
            "a, c",
        ),
        *("(A), (C)", "(A)(C)", "(A) and (C)", "[A, C]", "{A, C}", "A, C.", "A\nC", "**A, C**"),
        *(r"\text{A, C}", r"\text{A} and \text{C}", "$A, C$", r"\text{AC}", "Options A and C"),
        *("both A and C", "A and C only", "A and C are correct", "red, green", "green and red"),
        *("A. red, C. green", "(A) red and (C) green"),
    ],
)
def test_several_letters_are_a_set(text):
    assert meant(text, COLOURS) == {0, 2}


def test_three_of_four():
    for text in ("ABD", "D, B, A", "A, B, and D", "red, blue, and yellow"):
        assert meant(text, COLOURS) == {0, 1, 3}


@pytest.mark.parametrize(
    "text, choices, given, right",
    [
        # A letter that is also the text of a choice.
        ("A", ["C", "A", "D", "B"], {0}, {1}),
        ("(B) A", ["C", "A", "D", "B"], {1}, {1}),
        ("B", ["A", "B", "C", "D"], {1}, {1}),
        ("B", ["x", "y", "b", "a"], {1}, {1}),
        # Words come before a run of letters, and before several choices.
        ("AC", ["AB", "BC", "AC", "CD"], {2}, {2}),
        ("I and II", ["I", "II", "III", "I and II"], {3}, {3}),
        # Numbers, with their units and in other forms.
        ("5", ["3 cm", "5 cm"], {1}, {1}),
        ("5", ["5 cm", "5 m"], set(), set()),
        ("5 m", ["3 cm", "5 cm"], set(), set()),
        (r"$\frac{1}{3}$", ["1/2", "1/3"], {1}, {1}),
        ("4", ["3", "4", "5", "6"], {1}, {1}),
        # A yes is a true.
        ("True", ["Yes", "No"], {0}, {0}),
        ("No, it is not", ["True", "False"], {1}, {1}),
        ("No", ["Yes", "No", "No idea"], {1}, {1}),
        # Of two equal choices it is the first, by letter and by words.
        ("red", ["blue", "red", "red"], {1}, {1}),
        ("C", ["blue", "red", "red"], {1}, {1}),
    ],
)
def test_choices_that_could_be_mistaken(text, choices, given, right):
    assert meant(text, choices) == given
    if right:
        assert meant(right_choices(text, choices, []), choices) == right


def test_bare_keeps_what_is_no_dress():
    for text in ("5!", "f''", "$5", "2×3", "a1", "x^2", "-3", ".5", "1/2"):
        assert bare(text) == text
    assert bare("A picture") == "A picture" and meant("A picture", ["3 cm", "5 cm"]) == set()


@pytest.mark.parametrize(
    "text, says",
    [
        *(("Yes", True), (r"\text{No}", False), ("**true**.", True), ("(False)", False)),
        *(("correct", True), ("The answer is no", False), ("Correct option: No", False)),
        *(
            ("Yes, it is", True),
            ("No it is not", False),
            ("Yes, true", True),
            ("No - it is 5", False),
        ),
        *(("No parking", None), ("not sure", None), ("yesterday", None), ("maybe yes", None)),
        *(("", None), ("Yes/No", None), ("No, yes", None), ("No. 5", None), ("True north", None)),
    ],
)
def test_words_for_yes_and_no(text, says):
    assert truth(text) is says


TEXTS, LABELS = ["red", "blue", "green"], ["A", "B", "C"]


@pytest.mark.parametrize(
    "value, labels",
    [
        (TEXTS, []),
        (tuple(TEXTS), []),
        ([*TEXTS, None], []),
        ('["red", "blue", "green"]', []),
        ("['red', 'blue', 'green']", []),
        ("['red' 'blue'\n 'green']", []),
        ("A. red\nB. blue\nC. green", []),
        ("(A) red (B) blue (C) green", []),
        ("(A) red\n(B) blue\n(C) green", []),
        ("A) red\nB) blue\nC) green", []),
        ("A: red\nB: blue\nC: green\n", []),
        ("red\nblue\ngreen", []),
        ("A. red; B. blue; C. green", []),
        ("red | blue | green", []),
        (["A. red", "B. blue", "C. green"], []),
        (["(A) red", "(B) blue", "(C) green"], []),
        ({"A": "red", "B": "blue", "C": "green"}, LABELS),
        ({"c": "green", "a": "red", "b": "blue"}, LABELS),
        ({"A": "red", "B": "blue", "C": "green", "D": None}, LABELS),
        ('{"A": "red", "B": "blue", "C": "green"}', LABELS),
        ("{'A': 'red', 'B': 'blue', 'C': 'green'}", LABELS),
        ({"text": TEXTS, "label": LABELS}, LABELS),
        ([{"label": label, "text": text} for label, text in zip(LABELS, TEXTS)], LABELS),
        ({"1": "red", "2": "blue", "3": "green"}, ["1", "2", "3"]),
    ],
)
def test_choices_as_data_sets_write_them(value, labels):
    assert read_choices(value) == (TEXTS, labels)


@pytest.mark.parametrize("value", [None, "", [], "[]", {}, "{}"])
def test_no_choices(value):
    assert read_choices(value) == ([], [])


@pytest.mark.parametrize("value", ["A. red B. blue", "red", "red or blue", "[red, blue]"])
def test_a_line_that_is_not_clear_is_refused(value):
    with pytest.raises(ValueError, match="cannot read the choices"):
        read_choices(value)


def test_choices_inside_a_text():
    assert listed("Which?\nChoices:\n(A) 30°\n(B) 45°\nAnswer with a letter.") == ["30°", "45°"]
    assert listed("Options: A. one\nB. two\n") == ["one", "two"]
    assert listed("Which one, (A) this; (B) that?") == ["this", "that?"]
    assert listed("What is (A)?") == listed("B. Franklin\nC. Darwin") == []


@pytest.mark.parametrize(
    "value, labels, number",
    [
        *[(value, [], 1) for value in ("B", "(b)", "B.", "Option B", "B. blue", "**B**", "Blue")],
        *[(value, [], 1) for value in (1, 1.0, "1", ["B"], "['B']", '["blue"]', "['blue']")],
        *[(value, ["1", "2", "3"], 1) for value in (2, "2", "(2)", "B", "blue")],
        (1, ["0", "1", "2"], 1),
    ],
)
def test_the_right_answer_is_one_of_the_choices(value, labels, number):
    assert meant(right_choices(value, TEXTS, labels), TEXTS) == {number}


def test_a_number_is_a_text_before_it_counts():
    found = [right_choices(4, ["3", "4", "5"], []), right_choices(1, ["10", "20"], [])]
    assert found == ["(B) 4", "(B) 20"]
    assert right_choices(1, ["D", "C", "B"], []) == "(B) C"
    assert meant("(B) C", ["D", "C", "B"]) == {1}


@pytest.mark.parametrize(
    "value", ["A, C", "AC", ["A", "C"], "['A', 'C']", [0, 2], ["red", "green"]]
)
def test_several_right_answers(value):
    assert meant(right_choices(value, TEXTS, []), TEXTS) == {0, 2}


@pytest.mark.parametrize("value", ["D", "pink", 3, "7", -1, "A, F", ["A", "Z"], "none", 2.5])
def test_what_is_no_choice_is_refused(value):
    with pytest.raises(ValueError, match="is none of the choices red, blue, green"):
        right_choices(value, TEXTS, [])


def test_in_a_vote_the_choices_of_the_question_decide():
    question = "Which flies highest?\n(A) seven kites\n(B) eight kites"
    answers = ["B", "(B) eight kites", "8 kites", "Eight kites.", "(A) eight kites", "A", None]
    label, share = vote(chosen(answers, question))
    assert (label, share) == ("(B) eight kites", 4 / 7)
    paid = [solver_reward(rf"\boxed{{{answer}}}", label)["accuracy"] for answer in answers]
    assert paid == [1, 1, 1, 1, 0, 0, 0]
    # Without choices in it, or with none that is meant, an answer stays as it is.
    assert chosen(answers, "Which of (A) and (B)?") == answers
    assert chosen(["C", "nine", "A and B"], question) == ["C", "nine", "A and B"]


def test_hostile_answers_take_no_time():
    pieces = (
        "A, ",
        "(",
        "$",
        "{",
        "**",
        r"\text{",
        "1",
        "the ",
        "“",
        "a.",
        "(A) ",
        "A: ",
        "\n",
        " ",
    )
    hostile = [piece * 100_000 for piece in (*pieces, "(A)(B)", "yes, ", "is (A) ", "not ")]
    start = time.perf_counter()
    for text in hostile:
        assert meant(text, COLOURS) in (set(), {0})
    for text in hostile:
        for question in (text[:100_000], "Options:" + text[:100_000]):
            assert chosen([text[:200]], question) == [text[:200]]
    assert time.perf_counter() - start < 3
