"""Means, how sure one can be of them, and tables: what eval.py and the programs in tools/ print.

Intervals are of 95 % and over questions, whose replies are alike: replies are no trials of their
own. A set's value is a list [Q]: of each question the share of right replies.
"""

import math
from collections import defaultdict

import numpy as np


def figures(hits, seed=0):
    """{"sampled" | ...: [Q]}, shares of right replies -> their means, and an interval."""
    found = {name: float(np.mean(values)) for name, values in hits.items()}
    found["sampled_low"], found["sampled_high"] = interval(hits["sampled"], seed)
    found["questions"] = len(hits["sampled"])
    found["per_question"] = hits
    return found


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


def paired(differences):
    """95 % interval of the mean difference on the same questions.

    A question is drawn with the accuracy of both, so that what makes it hard for both cancels.
    Where both are right on most, a bootstrap is too sure of itself: two more questions, each right
    for one alone, mend that (Bonett and Price 2012).
    """
    more = np.append(differences, [1, -1])
    middle, half = more.mean(), 1.959964 * more.std() / math.sqrt(len(more))
    return float(max(-1, middle - half)), float(min(1, middle + half))


# ------------------------------------------------------------------------------------ tables

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
