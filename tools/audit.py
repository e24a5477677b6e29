"""The label audit: how good is what the Solver is trained on? Nobody ever tells it a right answer.

    python tools/audit.py runs/first          one line for each iteration

Self-play papers report what goes wrong while the reward still rises: majority labels drift from the
truth (R-Zero's fell from 79 to 63 % right), all answers become one, questions can be answered
without looking, the Coder writes the answer into the picture. The audit reads what phase S has
written down, iterK/solver.jsonl, afterwards. mmzero.py keeps the figures in metrics.jsonl, and the
report draws them.
"""

import argparse
import ast
import itertools
import json
import math
import re
import sys
from pathlib import Path

import numpy as np

# Run as a program, it finds the modules above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generate import generate
from prompts import fill
from support.answers import answers_match, extract_answer, tally, vote
from support.parallel import gather, rank_slice
from tiny.truth import truth

# What each column of the table is. Shares are in [0, 1], entropies in nats, a dash is unknown.
COLUMNS = """
questions      | labels     | questions in the training set
checkable      | checkable  | share whose truth is known: the tiny world's (tiny/truth.py)
label_true     | label true | of these, the labels that are true
proposer_true  | proposer   | of these, the Proposer's answers that are true
agree_proposer | agree      | labels equal to the Proposer's own hard answer
blind          | blind      | labels that the vote without the picture gives as well
written        | written    | labels that stand, as words, in what the code writes into the picture
top_label      | top label  | the share of the commonest label
vote_entropy   | H(votes)   | of the votes behind a label, mean; unreadable ones are votes as well
label_entropy  | H(labels)  | of all labels together: do all answers become one?
"""

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
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError):
        return ""  # what is no program draws nothing, either
    words = []
    for call in calls:
        if re.search(DRAWS_TEXT, ast.unparse(call.func)):
            nodes = itertools.chain.from_iterable(map(ast.walk, call.args))
            values = [node.value for node in nodes if isinstance(node, ast.Constant)]
            words += [value for value in values if isinstance(value, str)]
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
    return [[extract_answer(reply.text) for reply in group] for group in replies]


def audit(rows, blind=None):
    """Figures on a training set of the Solver, as COLUMNS says; None stands for what is unknown."""

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


def audit_file(path, vlm=None, seed=0, max_new_tokens=512):
    """The figures of iterK/solver.jsonl, whose rows may carry "blind", the answers given blindly.

    With `vlm`, the Solver is asked now for those. FileNotFoundError: phase S has not written yet.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    blind = [row.get("blind") for row in rows]
    if vlm is not None:
        blind = blind_answers(vlm, rows, seed=seed, max_new_tokens=max_new_tokens)
    return audit(rows, None if None in blind else blind)


def table(audits):
    """{iteration: figures} -> a line each; a dash stands where there is no figure.

    >>> text = table({2: {"questions": 40, "checkable": 0.755, "label_true": None}})
    >>> print("\\n".join(line[:34] for line in text.splitlines()))
     it  labels  checkable  label true
      2      40      0.755           –
    """
    columns = [[cell.strip() for cell in line.split("|")] for line in COLUMNS.strip().split("\n")]
    lines = ["  ".join([" it", *(heading for _, heading, _ in columns)])]
    for iteration, figures in audits.items():
        line = f"{iteration:>3}"
        for name, heading, _ in columns:
            value = figures.get(name)
            text = "–" if value is None else f"{round(value, 3):g}"
            line += "  " + text.rjust(len(heading))
        lines.append(line)
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="How good is what the Solver is trained on?")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    run = parser.parse_args(arguments).run
    files = {int(path.parent.name[4:]): path for path in run.glob("iter*/solver.jsonl")}
    if not files:
        sys.exit(f"audit.py: {run} has no iterK/solver.jsonl: give the --out of a run")
    print(table({iteration: audit_file(files[iteration]) for iteration in sorted(files)}))


if __name__ == "__main__":
    main()
