"""Accuracy on held-out charts, how sure one can be of it, and the table of a run.

    python eval.py --model M [--compare A B]                  # on the built-in held-out charts
    python eval.py --model M --bench MMMU ChartQA my.jsonl    # on questions from outside
    python eval.py --report RUN [--png FILE]                  # draw RUN/report.html

The Solver is asked with its own prompt, as in training. Three figures part ways in self-play:

    sampled    mean over questions and n samples     what the reward of phase S pushes up
    majority   the vote of the n samples             what labels are made of
    greedy     one reply at temperature 0            what a user would get

Sharpening alone pulls `sampled` up towards `majority`; only new ability raises `majority` itself.
"""

# Before anything imports torch.
from support import machine  # noqa: F401  # isort: skip

import math
import sys
import time
from collections import defaultdict

import numpy as np

from generate import generate
from prompts import fill
from render import Renderer
from support.answers import answers_match, extract_answer, vote
from support.parallel import gather, rank_slice
from tiny import world


def charts(count, seed=0, kind="hard", of="test"):
    """`count` questions on charts the tiny base never saw -> (questions, their content types).

    A question is (picture, text, answer). All must answer the same: a failed picture is an error.
    """
    drawn = world.heldout(count, seed, kind, of)
    with Renderer() as renderer:
        pictures = renderer.render([(question.svg, "svg") for question in drawn])
    for picture in pictures:
        if picture.error is not None:
            raise RuntimeError(f"a held-out chart could not be drawn: {picture.error}")
    questions = [(picture.image, q.question, q.answer) for picture, q in zip(pictures, drawn)]
    return questions, [question.content_type for question in drawn]


def score(sampled, greedy, truths, seed=0, right=answers_match):
    """Answers [Q][n], greedy [Q], truths [Q] -> figures. None, an unreadable answer, is wrong."""
    hits = {"sampled": [], "majority": [], "greedy": []}  # a share in [0, 1] for each question
    for answers, best, truth in zip(sampled, greedy, truths):
        hits["sampled"].append(float(np.mean([right(answer, truth) for answer in answers])))
        hits["majority"].append(float(right(vote(answers)[0], truth)))
        hits["greedy"].append(float(right(best, truth)))

    figures = {name: float(np.mean(values)) for name, values in hits.items()}
    figures["sampled_low"], figures["sampled_high"] = interval(hits["sampled"], seed)
    figures["unread"] = float(np.mean([a is None for answers in sampled for a in answers]))
    return figures | {"questions": len(truths), "n": len(sampled[0]), "per_question": hits}


def evaluate(vlm, questions, n=8, seed=0, max_new_tokens=512, progress=False):
    """Held-out accuracy of `vlm` as a Solver on `questions`, built like those of `charts`.

    Returns shares: sampled and its 95 % interval (sampled_low, sampled_high), majority, greedy,
    unread; questions, n, seconds; and per_question = {"sampled" | "majority" | "greedy": [Q]}, to
    compare. Each rank asks its slice of the questions, and all get the whole result.
    """
    if not questions or n < 1:
        raise ValueError(f"no questions or no samples: {len(questions)} questions, n = {n}")
    begun, template = time.perf_counter(), vlm.prompts["solver"]
    own = rank_slice(questions)
    prompts = [vlm.encode(fill(template, question=text), [picture]) for picture, text, _ in own]
    numbers = rank_slice(range(len(questions)))
    same = dict(numbers=numbers, max_new_tokens=max_new_tokens, seed=seed, progress=progress)
    sampled = generate(vlm, prompts, n=n, temperature=1.0, **same)
    greedy = generate(vlm, prompts, n=1, temperature=0.0, **same)

    # What is read of each reply, from all ranks: [Q][n] and [Q].
    sampled = gather([[extract_answer(reply.text) for reply in replies] for replies in sampled])
    greedy = gather([extract_answer(reply.text) for (reply,) in greedy])
    result = score(sampled, greedy, [truth for _, _, truth in questions], seed)
    return result | {"seconds": time.perf_counter() - begun}


# --------------------------------------------------------------------------- how sure one can be


def bootstrap(values, seed=0, draws=2000):
    """95 % percentile interval of the mean of `values` [Q].

    Questions are drawn again, not samples: the n replies to one question are alike, and as Q * n
    independent trials they would give an interval far too narrow.
    """
    values, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    means = rng.choice(values, (draws, len(values))).mean(axis=1)
    return tuple(np.percentile(means, [2.5, 97.5]).tolist())


def wilson(values):
    """95 % score interval of a share, of `values` [Q] that are 0 or 1 (Wilson 1927).

    >>> [round(end, 3) for end in wilson([1] * 60)]
    [0.94, 1.0]
    """
    n, p, z = len(values), float(np.mean(values)), 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval(values, seed=0):
    """95 % interval of the mean of `values` [Q], the share of right replies to each question."""
    return wilson(values) if set(values) <= {0, 1} else bootstrap(values, seed)


def mcnemar(a, b):
    """Exact two-sided McNemar test on paired right / wrong [Q] -> (only a right, only b right, p).

    Where both agree, nothing is learnt. Of the m other questions, if the two are equally good, a
    wins Binomial(m, 1/2):  p = min(1, 2 * sum_{k <= min(wins, losses)} C(m, k) / 2^m)

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]), mcnemar([1, 0], [0, 1])    # 2 / 2^5
    ((5, 0, 0.0625), (1, 1, 1.0))
    """
    wins = sum(x > y for x, y in zip(a, b, strict=True))
    losses = sum(x < y for x, y in zip(a, b, strict=True))
    tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1))
    return wins, losses, min(1.0, 2 * tail / 2 ** (wins + losses))  # integers until here: exact


CELLS = (
    "{name}|{sampled:.1%} ({sampled_low:.1%}–{sampled_high:.1%})|{majority:.1%}|{greedy:.1%}|"
    "{easy:.1%}|{valid:.1%}|{render:.1%}|{solvability:.2f}|{difficulty:.2f}|{type_entropy:.2f}"
)


def cells(evals):
    """The eval rows of a run (base, iteration 1, ...) -> header and cells of its table.

    In %: accuracy on held-out hard questions (mean of n samples with its 95 % interval, majority
    of n, greedy) and on easy ones; proposals that parse; codes that draw. In [0, 1]: mean
    solvability and difficulty, entropy of the content types.
    """
    samples = evals[0].get("n", 8) if evals else 8
    header = f"|held-out (95 %)|maj@{samples}|greedy|easy|valid|render|solvable|difficulty|types"
    rows = []
    for row in evals:
        known = defaultdict(lambda: math.nan, {k: v for k, v in row.items() if v is not None})
        known["name"] = f"it {row['iteration']}" if row["iteration"] else "base"
        text = CELLS.format_map(known).replace("%", "").replace("nan", "–")
        rows.append(text.replace("100.0", "100").split("|"))  # a terminal has 100 columns
    return header.split("|"), rows


def table(evals):
    """The results of a run as Markdown that fits a terminal of 100 columns."""
    return markdown(*cells(evals))


def markdown(header, rows):
    """Aligned Markdown; the first column is text, the others are numbers.

    >>> print(markdown(["model", "greedy"], [["tiny", "93.5"]]))
    | model | greedy |
    |:------|-------:|
    | tiny  |   93.5 |
    """
    first, *others = [max(map(len, column)) for column in zip(header, *rows)]
    form = " | ".join([f"| {{:{first}}}", *(f"{{:>{width}}}" for width in others)]) + " |"
    rule = f"|:{'-' * first}-|" + "".join("-" * width + "-:|" for width in others)
    return "\n".join([form.format(*header), rule, *(form.format(*row) for row in rows)])


def main(arguments=None):
    from tools import compare
    from tools.report import report

    options = compare.parse(arguments)
    try:
        print(report(options.report, options.png) if options.report else compare.scores(options))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"eval.py: {error}")
    except KeyboardInterrupt:
        sys.exit("eval.py: stopped; the same command goes on after the last answered questions")


if __name__ == "__main__":
    main()
