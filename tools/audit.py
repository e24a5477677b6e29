"""The label audit: how good is what the Solver is trained on? Nobody ever tells it a right answer.

    python tools/audit.py RUN                     the figures of docs/metrics.md by iteration
    python tools/audit.py RUN --judge MODEL       and how often a judge agrees with the labels

Self-play papers report what goes wrong while the reward still rises: majority labels drift from the
truth (R-Zero's fell from 79 to 63 % right), all answers become one, questions can be answered
without looking, the Coder writes the answer into the picture. The audit reads what phase S has
written down, iterK/solver.jsonl, afterwards. mmzero.py keeps the figures in metrics.jsonl, and the
report draws them.

Whether a label is true is known on the embedded world alone. Elsewhere a judge takes its place: a
vision-language model answers the question about the picture itself; a text model reads the caption
and the code and says yes or no to the label. RUN/audit.html shows where they disagree.
"""

import argparse
import ast
import math
import random
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# Run as a program, it finds the modules above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generate import generate
from prompts import fill, placeholders
from support.answers import answers_match, extract_answer, tally, vote
from support.checkpoint import check_family, find_checkpoint
from support.figures import markdown, wilson
from support.parallel import gather, rank_slice
from support.run_folder import read_jsonl
from tiny.truth import truth
from tools import judge, report
from tools.benchmarks import NEUTRAL
from vlm import VLM

PAGE = Path(__file__).with_name("audit_page.html")
SHOWN = 24  # disagreements of an iteration on the page

# Names of functions that draw text: ImageDraw.text, plt.title, ax.set_xlabel, plt.bar(names, ...).
DRAWS_TEXT = "text|title|label|legend|annotate|bar|pie|table"


def drawn_text(code, language):
    """The words that a code writes into its picture.

    Of an SVG these are its text nodes, of Python the strings given to calls that draw text.

    >>> drawn_text('<svg><text x="1">sum: 12</text></svg>', "svg")
    'sum: 12'
    >>> drawn_text('d.text((3, 4), "12", fill="red")', "python")
    '12'
    """
    if language == "svg":
        return " ".join(re.findall(r">\s*([^<>\s][^<>]*?)\s*<", code))
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError):
        return ""  # what is no program draws nothing, either
    words = []
    for call in nodes:
        if isinstance(call, ast.Call) and re.search(DRAWS_TEXT, ast.unparse(call.func)):
            for node in (node for argument in call.args for node in ast.walk(argument)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    words.append(node.value)
    return " ".join(words)


def is_written(row):
    """Does the label stand, as a word of its own, in what the code writes into the picture?"""
    word = rf"(?<![\w.]){re.escape(row['label'])}(?![\w.])"
    drawn = drawn_text(row["code"], row["language"])
    return re.search(word, drawn, re.IGNORECASE) is not None


def entropy(counts):
    """In nats, of shares proportional to `counts`.

    >>> round(entropy([5, 5]) / math.log(2), 3), entropy([7])
    (1.0, 0.0)
    """
    total = sum(counts)
    return sum(c / total * math.log(total / c) for c in counts)


def blind_answers(vlm, rows, n=10, seed=0, max_new_tokens=512):
    """[rows][n]: the Solver's answers to the hard questions without the picture.

    They are sampled as the labels were. Each rank asks some of the questions, and gets all answers.
    """
    template = vlm.prompts["solver"]
    prompts = [vlm.encode(fill(template, question=row["hard_question"])) for row in rows]
    options = dict(n=n, max_new_tokens=max_new_tokens, top_k=40, seed=seed)
    numbers = rank_slice(range(len(prompts)))
    replies = gather(generate(vlm, rank_slice(prompts), **options, numbers=numbers))
    shown = placeholders(vlm.prompts)
    return [[extract_answer(reply.text, shown) for reply in group] for group in replies]


def audit(rows, blind=None):
    """Figures on a training set of the Solver (docs/metrics.md); None for what is unknown."""

    def share(hits):
        return float(np.mean(hits)) if len(hits) else None

    truths = [truth(row["caption"], row["hard_question"]) for row in rows]
    known = [(row, right) for row, right in zip(rows, truths) if right is not None]
    labels = tally([row["label"] for row in rows]).values()
    votes = [vote(answers)[0] for answers in blind or ()]
    return {
        "questions": len(rows),
        "agree_proposer": share([answers_match(r["label"], r["hard_answer"]) for r in rows]),
        "checkable": share([right is not None for right in truths]),
        "label_true": share([answers_match(row["label"], right) for row, right in known]),
        "proposer_true": share([answers_match(row["hard_answer"], right) for row, right in known]),
        "vote_entropy": share([entropy(tally(r["hard_answers"]).values()) for r in rows]),
        "label_entropy": entropy(labels),
        "top_label": max(labels, default=0) / max(len(rows), 1),
        "written": share([is_written(row) for row in rows]),
        "blind": share([answers_match(given, r["label"]) for given, r in zip(votes, rows)]),
    }


def audit_labels(roles, run, iteration):
    """This iteration's labels, while the run goes on. The Solver that learnt from them is asked
    without pictures, too."""
    rows, settings = read_jsonl(run.folder / f"iter{iteration}/solver.jsonl"), run.settings
    if rows:
        roles.actor.load_state(roles.weights["solver"])
        limit = settings.answer_tokens
        blind = blind_answers(roles.actor, rows, seed=settings.seed, max_new_tokens=limit)
        run.log(kind="audit", iteration=iteration, phase="solver", **audit(rows, blind))


def table(audits):
    """{iteration: figures} -> a column each; a dash stands where there is no figure.

    >>> print(table({1: {"questions": 40, "label_true": 0.7551}, 2: {"label_true": None}}))
    |            |  it 1 | it 2 |
    |:-----------|------:|-----:|
    | questions  |    40 |    – |
    | label_true | 0.755 |    – |
    """
    rows = []
    for name in next(iter(audits.values())):
        values = [figures.get(name) for figures in audits.values()]
        cells = ["–" if value is None else f"{round(value, 3):g}" for value in values]
        rows.append([name, *cells])
    return markdown(["", *(f"it {iteration}" for iteration in audits)], rows)


# -------------------------------------------------------------------------- what a judge says

GRADE = """A program drew a picture from this description:
{caption}

The program:
{code}

A question about the picture: {hard_question}
A student's answer: {label}
Is this answer right? Work it out for yourself, then reply with one word, yes or no."""


def opinions(rows, run, name, vlm):
    """-> [(row, does the judge agree with its label?, what it says)], where it says anything."""
    if vlm:
        prompts = []
        for row in rows:
            with Image.open(run / row["picture"]) as image:
                prompts.append(vlm.encode(row["hard_question"], [image], system=NEUTRAL))
        replies = generate(vlm, prompts, max_new_tokens=2048, temperature=0.0)
        said = [extract_answer(reply.text) for (reply,) in replies]
    elif name:
        texts = [fill(GRADE, **row) for row in rows]
        replies = judge.ask(name, texts, run / "audit.jsonl")
        verdicts = [judge.verdict(replies[text]) for text in texts]
        words = {True: "right", False: "wrong"}
        return [(row, yes, words[yes]) for row, yes in zip(rows, verdicts) if yes is not None]
    else:
        said = [truth(row["caption"], row["hard_question"]) for row in rows]
    known = [(row, word) for row, word in zip(rows, said) if word is not None]
    return [(row, answers_match(row["label"], word), word) for row, word in known]


def sees(name):
    """Is it a vision-language model? Else it is one for text, or none at all."""
    try:
        return bool(check_family(find_checkpoint(name, weights=False)))
    except ValueError:  # of another family
        return False


def compare(labels, run, name, count):
    """A sample of each iteration's labels before the judge -> a table; RUN/audit.html."""
    vlm = VLM.load(name) if name and sees(name) else None
    lines, eras = [], []
    for iteration, rows in labels.items():
        chosen = random.Random(iteration).sample(rows, min(count, len(rows)))
        found = opinions(chosen, run, name, vlm)
        if not found:
            continue
        agree = [float(yes) for _, yes, _ in found]
        low, high = (f"{100 * end:.1f}" for end in wilson(agree))
        share = f"{100 * np.mean(agree):.1f} ({low}–{high})"
        lines.append([str(iteration), str(len(found)), share, str(len(chosen) - len(found))])
        cards = []
        for row, _, word in [one for one in found if not one[1]][:SHOWN]:
            shown = report.picture(run / row["picture"], row["caption"])
            cards.append((row, word, shown, tally(row["hard_answers"])))
        eras.append((iteration, agree.count(0.0), cards))
    if not lines:
        return "no label whose truth is known; give --judge MODEL"
    header = ["it", "judged", "labels it agrees with, % (95 %)", "no word on"]
    template = report.JINJA.from_string(PAGE.read_text(encoding="utf-8"))
    page = template.render(run=run, judge=name, header=header, lines=lines, eras=eras)
    return f"{markdown(header, lines)}\n\ndisagreements: {report.write(run / 'audit.html', page)}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description="How good is what the Solver is trained on?")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run")
    add("--judge", metavar="MODEL", help="a text or a vision-language model that looks at labels")
    add("--sample", type=int, default=200, help="labels of each iteration that it looks at")
    options = parser.parse_args(arguments)
    files = report.of_iterations(options.run, "solver.jsonl")
    if not files:
        sys.exit(f"audit.py: {options.run} has no iterK/solver.jsonl: give the --out of a run")
    try:
        labels = {iteration: read_jsonl(path) for iteration, path in files.items()}
        print(table({iteration: audit(rows) for iteration, rows in labels.items()}) + "\n")
        print(compare(labels, options.run, options.judge, options.sample))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"audit.py: {error}")


if __name__ == "__main__":
    main()
