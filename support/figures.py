"""Means, how sure one can be of them, and tables: what eval.py and the programs in tools/ print.

Intervals are of 95 % and over questions, whose replies are alike: replies are no trials of their
own. A set's value is a list [Q]: of each question the share of right replies.
"""

import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

Z = 1.959964  # standard deviations of a normal distribution: 95 % lie within
FEW = 30  # questions: a bootstrap of fewer is too sure of itself


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
    """95 % score interval of the mean of `values` [Q] (Wilson 1927).

    Values between 0 and 1 vary less than right and wrong do, and so count as more questions. Their
    spread is taken with that of one more question: a few may be alike by chance.

    >>> [round(end, 3) for end in wilson([1] * 60)], [round(end, 3) for end in wilson([0.5] * 3)]
    ([0.94, 1.0], [0.227, 0.773])
    """
    n, p = len(values), float(np.mean(values))
    if 0 < p < 1:
        spread = float(np.var(values)) * n / (p * (1 - p))  # n of 0 and 1
        n = max(n, n * n / (spread + 1))
    weight = Z * Z / n
    middle = (p + weight / 2) / (1 + weight)
    half = Z * math.sqrt(p * (1 - p) / n + weight / (4 * n)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval(values, seed=0):
    """95 % interval of the mean of `values` [Q], the share of right replies to each question."""
    if len(values) < FEW or len(set(values)) < 3:
        return wilson(values)
    return bootstrap(values, seed)


def paired(differences):
    """95 % interval of the mean difference on the same questions.

    A question is drawn with the accuracy of both, so that what makes it hard for both cancels.
    Where both are right on most, a bootstrap is too sure of itself: two more questions, each right
    for one alone, mend that (Bonett and Price 2012).
    """
    more = np.append(differences, [1, -1])
    middle, half = more.mean(), Z * more.std() / math.sqrt(len(more))
    return float(max(-1, middle - half)), float(min(1, middle + half))


def gains(ours, theirs):
    """Two results on the same questions -> how much better ours is: sampled_gain, its ends, ..."""
    found = {}
    for key, values in ours["per_question"].items():
        others = theirs["per_question"][key]
        if len(values) != len(others):
            raise ValueError(f"not the same questions: {len(values)} and {len(others)}")
        differences = np.subtract(values, others)
        found[f"{key}_gain"] = ours[key] - theirs[key]
        found[f"{key}_gain_low"], found[f"{key}_gain_high"] = paired(differences)
        found[f"{key}_gain_square"] = float(np.mean(differences**2))
    return found


def shares(sets):
    """What each set counts in the mean. Those of MMMU-Pro are folded into one, as the authors do.

    >>> shares(["MMMU", "mmmu_pro_4_options", "mmmu-pro-vision"])
    {'MMMU': 0.5, 'mmmu_pro_4_options': 0.25, 'mmmu-pro-vision': 0.25}
    """
    pro = [name for name in sets if re.match("(?i)mmmu[_-]pro", Path(name).name)]
    count = len(sets) - max(0, len(pro) - 1)
    return {name: 1 / count / (len(pro) if name in pro else 1) for name in sets}


def mean(results):
    """{set: figures} -> their mean, with the weights of `shares`.

    Sets are independent: the distances to the ends of an interval add as squares (Newcombe 1998).
    Those of a gain are made from the differences themselves: two more questions in each small set
    would be many. Where hardly one differs, it is as wide as where four do.
    """
    average = {"questions": sum(found["questions"] for found in results.values())}
    for key in ("sampled", "majority", "greedy", "unread", "sampled_gain", "majority_gain"):
        if not all(key in found for found in results.values()):
            continue
        middle, below, above, unseen = 0.0, 0.0, 0.0, 0.0
        for name, share in shares(results).items():
            found, value = results[name], results[name][key]
            low, high = found.get(f"{key}_low", value), found.get(f"{key}_high", value)
            if key.endswith("gain"):
                half = Z * math.sqrt(found[f"{key}_square"] / found["questions"])
                low, high = value - half, value + half
                unseen += (Z * share) ** 2 / found["questions"]
            middle += share * value
            below = math.hypot(below, share * (value - low))
            above = math.hypot(above, share * (high - value))
        average[key] = middle
        if f"{key}_low" in found:
            average[f"{key}_low"] = max(-1.0, middle - max(below, unseen))
            average[f"{key}_high"] = min(1.0, middle + max(above, unseen))
    return average


# ------------------------------------------------------------------------------------ the tables

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


def tables(names, columns, width=100):
    """Columns as Markdown tables, one below the other, none wider than `width` if it can be.

    A column: [its header, cell, ...]. Those of `names` are the first ones of every table.
    """
    shown = [names]
    for column in columns:
        wider = [*shown[-1], column]
        room = sum(max(map(len, each)) + 3 for each in wider) + 1
        if room > width and len(shown[-1]) > len(names):
            shown.append([*names, column])
        else:
            shown[-1] = wider
    return "\n\n".join(markdown(header, rows) for header, *rows in (zip(*own) for own in shown))


COMPARED = {
    "sampled (95 %)": "{sampled:.1%} ({sampled_low:.1%}–{sampled_high:.1%})",
    "majority": "{majority:.1%}",
    "greedy (95 %)": "{greedy:.1%} ({greedy_low:.1%}–{greedy_high:.1%})",
    "no answer": "{unread:.1%}",
    "overruled": "{overruled:.0f} of {by_rule:.0f}",
    "questions": "{questions}",
    "minus {} (95 %)": "{sampled_gain:+.1%} ({sampled_gain_low:+.1%} to {sampled_gain_high:+.1%})",
    "majority minus {}": "{majority_gain:+.1%} "
    "({majority_gain_low:+.1%} to {majority_gain_high:+.1%})",
}
ROOM = 20  # characters of a name in a table


def overview(results, first):
    """{(set, model): figures} -> Markdown of 100 columns, in %. What is not known has no column."""
    names = [["set", *(short(Path(bench).name) for bench, _ in results)]]
    names.append(["model", *(short(model) for _, model in results)])
    columns = []
    for title, form in COMPARED.items():
        cells = []
        for found in results.values():
            text = form.format_map(defaultdict(lambda: math.nan, found)).replace("%", "")
            cells.append("–" if "nan" in text else text)
        if set(cells) != {"–"}:
            columns.append([title.format(short(first)), *cells])
    return tables(names, columns)


def short(name):
    return name if len(name) <= ROOM else "…" + name[1 - ROOM :]
