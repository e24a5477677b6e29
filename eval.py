"""Accuracy on held-out charts, how sure one can be of it, and the table of a run.

    python eval.py --model M [--compare A B]                  # on the built-in held-out charts
    python eval.py --model M --bench paper [--judge TEXT]     # on questions from outside
    python eval.py --run RUN [--bench ...]                    # the base and every Solver of a run
    python eval.py --report RUN [--png FILE]                  # draw RUN/report.html

On charts the Solver is asked with its own prompt, as in training. Three figures part ways:

    sampled    mean over questions and n samples     what the reward of phase S pushes up
    majority   the vote of the n samples             what labels are made of
    greedy     one reply at temperature 0            what a user would get

Sharpening alone pulls `sampled` up towards `majority`; only new ability raises `majority` itself.
"""

# Before anything imports torch.
from support import machine  # noqa: F401  # isort: skip

import math
import time
from collections import defaultdict

import numpy as np

from generate import generate
from prompts import fill
from render import Renderer
from support import parallel
from support.answers import answers_match, extract_answer, vote
from support.parallel import gather, rank_slice
from tiny import world


def charts(count, seed=0, kind="hard", of="test"):
    """`count` questions on charts the tiny base never saw -> (questions, their content types).

    A question is (picture, text, answer). All must answer the same: a failed picture is an error.
    """
    drawn, questions = world.heldout(count, seed, kind, of), []
    with Renderer() as renderer:
        pictures = renderer.render([(question.svg, "svg") for question in drawn])
    for picture, asked in zip(pictures, drawn):
        if picture.error is not None:
            raise RuntimeError(f"a held-out chart could not be drawn: {picture.error}")
        questions.append((picture.image, asked.question, asked.answer))
    return questions, [question.content_type for question in drawn]


def evaluate(vlm, questions, n=8, seed=0, max_new_tokens=512, progress=False):
    """Held-out accuracy of `vlm` as a Solver on `questions`, built like those of `charts`.

    Returns shares: sampled and its 95 % interval (sampled_low, sampled_high), majority, greedy,
    unread; questions, n, seconds; and per_question = {"sampled" | "majority" | "greedy": [Q]}, to
    compare. Each rank asks its slice of the questions, and all get the whole result.
    """
    if not questions or n < 1:
        raise ValueError(f"{len(questions)} questions, n = {n}: both must be 1 or more")
    begun, template = time.perf_counter(), vlm.prompts["solver"]
    prompts = []
    for picture, text, _ in rank_slice(questions):
        prompts.append(vlm.encode(fill(template, question=text), [picture]))
    same = {"max_new_tokens": max_new_tokens, "seed": seed, "progress": progress}
    same["numbers"] = rank_slice(range(len(questions)))
    sampled = gather(generate(vlm, prompts, n=n, temperature=1.0, **same))  # [Q][n]
    greedy = gather(generate(vlm, prompts, n=1, temperature=0.0, **same))  # [Q][1]

    # A share in [0, 1] for each question.
    unread, hits = 0, {"sampled": [], "majority": [], "greedy": []}
    for replies, (best,), (_, _, truth) in zip(sampled, greedy, questions):
        # None, an answer that cannot be read, is wrong.
        answers = [extract_answer(reply.text) for reply in replies]
        winner, _ = vote(answers)
        right = [answers_match(answer, truth) for answer in answers]
        hits["sampled"].append(sum(right) / n)
        hits["majority"].append(float(answers_match(winner, truth)))
        hits["greedy"].append(float(answers_match(extract_answer(best.text), truth)))
        unread += answers.count(None)
    result = figures(hits, seed)
    result["n"], result["unread"] = n, unread / (n * len(questions))
    return result | {"seconds": time.perf_counter() - begun}


def figures(hits, seed=0):
    """{"sampled" | ...: [Q]}, shares of right replies -> their means, and an interval."""
    found = {name: float(np.mean(values)) for name, values in hits.items()}
    found["sampled_low"], found["sampled_high"] = interval(hits["sampled"], seed)
    found["questions"] = len(hits["sampled"])
    found["per_question"] = hits
    return found


# --------------------------------------------------------------------------- how sure one can be


def bootstrap(values, seed=0, draws=2000):
    """95 % percentile interval of the mean of `values` [Q].

    Questions are drawn again, not samples: the n replies to one question are alike, and as Q * n
    independent trials they would give an interval far too narrow.
    """
    values, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    drawn = rng.choice(values, (draws, len(values)))  # [draws, Q]
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def wilson(values):
    """95 % score interval of a share, of `values` [Q] that are 0 or 1 (Wilson 1927).

    >>> [round(end, 3) for end in wilson([1] * 60)]
    [0.94, 1.0]
    """
    n, z = len(values), 1.959964
    p, weight = float(np.mean(values)), z * z / n
    middle = (p + weight / 2) / (1 + weight)
    spread = p * (1 - p) / n + weight / (4 * n)
    half = z * math.sqrt(spread) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval(values, seed=0):
    """95 % interval of the mean of `values` [Q], the share of right replies to each question."""
    if set(values) <= {0, 1}:
        return wilson(values)
    return bootstrap(values, seed)


CELLS = (
    "{name}|{sampled:.1%} ({sampled_low:.1%}–{sampled_high:.1%})|{majority:.1%}|{greedy:.1%}|"
    "{easy:.1%}|{valid:.1%}|{render:.1%}|{solvability:.2f}|{difficulty:.2f}|{type_entropy:.2f}"
)


def cells(evals):
    """The eval rows of a run (base, iteration 1, ...) -> header and cells of its table, in % and,
    from "solvable" on, in [0, 1]."""
    samples = evals[0].get("n", 8) if evals else 8
    header = f"|held-out (95 %)|maj@{samples}|greedy|easy|valid|render|solvable|difficulty|types"
    rows = []
    for row in evals:
        known = defaultdict(lambda: math.nan)
        known["name"] = f"it {row['iteration']}" if row["iteration"] else "base"
        known.update((key, value) for key, value in row.items() if value is not None)
        text = CELLS.format_map(known).replace("%", "")
        text = text.replace("nan", "–").replace("100.0", "100")  # a terminal has 100 columns
        rows.append(text.split("|"))
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
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    first, *others = widths
    form = f"| {{:{first}}} |" + "".join(f" {{:>{width}}} |" for width in others)
    rule = f"|:{'-' * first}-|" + "".join("-" * width + "-:|" for width in others)
    return "\n".join([form.format(*header), rule, *(form.format(*row) for row in rows)])


def main(arguments=None):
    from tools import compare
    from tools.report import report

    options = compare.parse(arguments)
    parallel.start()
    try:
        if options.report:
            print(report(options.report, options.png))
        else:
            print(compare.scores(options))
    except (ValueError, OSError, RuntimeError) as error:
        parallel.fail(f"eval.py: {error}")
    except KeyboardInterrupt:
        parallel.fail("eval.py: stopped; the same command goes on after the last answers")
    parallel.stop()


if __name__ == "__main__":
    main()
