"""The label audit: how good is what the Solver is trained on? Nobody ever tells it a right answer.

Self-play papers report what goes wrong while the reward still rises: majority labels drift from the truth (R-Zero's
fell from 79 to 63 % right), all answers become one, questions can be answered without looking, the Coder writes the
answer into the picture. mmzero.py audits each training set when it is labelled; the figures are in metrics.jsonl and the report.
"""

import ast
import math
import re

import numpy as np

from generate import generate
from prompts import fill
from support.answers import answers_match, extract_answer, tally, vote
from support.parallel import gather, share
from tiny.truth import truth


def drawn_text(code, language):
    """The words that a code writes into its picture: text nodes of an SVG, strings given to text-drawing calls.

    >>> drawn_text('<svg><text x="1">sum: 12</text></svg>', "svg")
    'sum: 12'
    >>> drawn_text('d.text((3, 4), "12", fill="red")', "python")
    '12'
    """
    if language == "svg":
        return " ".join(part.strip() for part in re.findall(r">([^<>]+)<", code) if part.strip())
    try:
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError):  # it draws nothing, either
        return ""
    calls = [
        c
        for c in calls
        if re.search("text|title|label|legend|annotate|bar|pie|table", ast.unparse(c.func))
    ]
    return " ".join(
        node.value
        for call in calls
        for part in call.args
        for node in ast.walk(part)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def entropy(counts):
    """In nats, of shares proportional to `counts`.

    >>> round(entropy([5, 5]) / math.log(2), 3), entropy([7])
    (1.0, 0.0)
    """
    return sum(c / sum(counts) * math.log(sum(counts) / c) for c in counts)


def blind_answers(vlm, rows, n=10, seed=0, max_new_tokens=512):
    """[rows][n]: the Solver's answers to the hard questions without the picture, sampled as the labels were. Each rank asks its share."""
    prompts = [
        vlm.encode(fill(vlm.prompts["solver"], question=row["hard_question"])) for row in rows
    ]
    replies = gather(
        generate(
            vlm,
            share(prompts),
            n=n,
            max_new_tokens=max_new_tokens,
            top_k=40,
            seed=seed,
            numbers=share(range(len(prompts))),
        )
    )
    return [[extract_answer(reply.text) for reply in group] for group in replies]


def audit(rows, blind=None):
    """Figures on a training set of the Solver (rows of iterK/solver.jsonl). Shares in [0, 1], entropies in nats.

    agree_proposer  labels equal to the Proposer's own hard answer
    checkable       questions whose truth is known: the tiny world's, settled by the caption (tiny/truth.py)
    label_true, proposer_true   of these, the labels and the Proposer's answers that are true (None: there are none)
    vote_entropy    of the votes behind a label, mean; what could not be read is a vote as well
    label_entropy, top_label    of all labels together, and the share of the commonest: do all answers become one?
    written         labels that stand, as words, in what the code writes into the picture
    blind           labels that the vote without the picture gives as well; needs `blind_answers`
    """

    def share(hits):
        return float(np.mean(hits)) if len(hits) else None

    truths = [truth(row["caption"], row["hard_question"]) for row in rows]
    known = [(row, t) for row, t in zip(rows, truths) if t is not None]
    labels = tally([row["label"] for row in rows]).values()
    words = [drawn_text(row["code"], row["language"]) for row in rows]
    return {
        "questions": len(rows),
        "agree_proposer": share([answers_match(r["label"], r["hard_answer"]) for r in rows]),
        "checkable": share([t is not None for t in truths]),
        "label_true": share([answers_match(r["label"], t) for r, t in known]),
        "proposer_true": share([answers_match(r["hard_answer"], t) for r, t in known]),
        "vote_entropy": share([entropy(tally(r["hard_answers"]).values()) for r in rows]),
        "label_entropy": entropy(labels),
        "top_label": max(labels, default=0) / max(len(rows), 1),
        "written": share(
            [
                bool(
                    re.search(rf"(?<![\w.]){re.escape(r['label'])}(?![\w.])", drawn, re.IGNORECASE)
                )
                for r, drawn in zip(rows, words)
            ]
        ),
        "blind": share([answers_match(vote(b)[0], r["label"]) for b, r in zip(blind, rows)])
        if blind
        else None,
    }


def audit_iteration(run, actor, weights, iteration):
    rows = [row for row, _ in run.load_rows(iteration, "solver") or []]
    if rows:
        actor.load_state(weights)
        blind = blind_answers(actor, rows, seed=run.settings.seed, max_new_tokens=run.settings.answer_tokens)
        run.log(kind="audit", iteration=iteration, phase="solver", **audit(rows, blind))
