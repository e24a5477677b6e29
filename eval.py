"""Held-out accuracy, comparison of two checkpoints, and the door to a run's report.

    python eval.py --model M [--bench charts|FILE.jsonl] [-n 8]  # how often is M right?
    python eval.py --model M --compare OTHER                     # is it better, on the same questions?
    python eval.py --report RUN                                  # draw RUN/report.html (report.py does it)

The Solver is asked exactly as in training: its own prompt with the picture, temperature 1, no nucleus and no
top-k. Three figures come out of the same questions, and they do not move together in self-play:

    sampled    mean over questions and n samples     what the reward of phase S pushes up
    majority   the vote of the n samples             the label maker's quality (the teacher in test-time RL)
    greedy     one reply at temperature 0            what a user would get

Sharpening alone pulls `sampled` up towards `majority`; only new ability raises `majority` itself.

Deviations from the authors' evaluation: they sample once at T 0.6 / top-p 0.95 and have a text model re-grade
every answer. Here the rule decides alone, and a reply without a readable answer counts as wrong: leaving it
out of the denominator, as their rule score does, flatters a model that often fails to answer. The share of
such replies is always printed.
"""
import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

# Threads that wait must not spin: on a machine that does anything else, spinning costs ten times the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")         # read once, when torch is first imported

import numpy as np
from PIL import Image

from answers import answers_match, extract_answer, vote
from generate import generate
from prompts import fill
from render import Renderer
from report import cells, report
from tiny import world
from vlm import VLM

__all__ = ["evaluate", "charts", "load_jsonl", "compare", "report", "table"]


# ------------------------------------------------------------------------------------------------------------
# Questions: (picture, question, answer) triples, and beside them the content type each is reported under


def charts(count, seed=0, kind="hard"):
    """`count` held-out questions on procedural charts the tiny base never saw -> (questions, content types).

    A picture that fails to draw is an error, never a question left out: everybody must answer the same set.
    """
    drawn = world.heldout(count, seed, kind=kind)
    with Renderer() as renderer:
        pictures = renderer.render([(question.svg, "svg") for question in drawn])
    for picture in pictures:
        if picture.error is not None:
            raise RuntimeError(f"a held-out chart could not be drawn: {picture.error}")
    questions = [(picture.image, q.question, q.answer) for picture, q in zip(pictures, drawn)]
    return questions, [q.content_type for q in drawn]


def load_jsonl(path):
    """A file of {"image": path, "question": ..., "answer": ...} lines -> (questions, content types).

    Paths of pictures are relative to the file. An optional "content_type" names the row a question counts in.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no benchmark {path}: give `charts` or a JSONL file")
    questions, types = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError(f"{path} line {number} is not JSON") from None
        found = sorted(row) if isinstance(row, dict) else [type(row).__name__]
        if not {"image", "question", "answer"} <= set(found):
            raise ValueError(f"{path} line {number}: wanted image, question, answer; has {', '.join(found)}")
        try:
            with Image.open(path.parent / row["image"]) as file:
                picture = file.convert("RGB")
        except (OSError, TypeError):
            raise ValueError(f"{path} line {number}: cannot read the picture {row['image']}") from None
        questions.append((picture, str(row["question"]), str(row["answer"])))
        types.append(str(row.get("content_type", "all")))
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions, types


# ------------------------------------------------------------------------------------------------------------
# Asking (needs the model) and scoring (does not)


def ask(vlm, questions, n=8, temperature=1.0, seed=0, max_new_tokens=512, progress=False):
    """The answers the Solver gave: one list of n (str | None) per question; None = nothing readable."""
    template = vlm.prompts["solver"]
    prompts = [vlm.encode(fill(template, question=question), [picture]) for picture, question, _ in questions]
    replies = generate(vlm, prompts, n=n, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
                       progress=progress)
    return [[extract_answer(reply.text) for reply in group] for group in replies]


def score(sampled, greedy, truths, seed=0):
    """Figures from answers alone. sampled [Q][n], greedy [Q], truths [Q] -> the dict `evaluate` returns."""
    correct = {  # each [Q], in [0, 1]; None (unreadable) matches nothing, so it is wrong
        "sampled": np.array([np.mean([answers_match(a, t) for a in g]) for g, t in zip(sampled, truths)]),
        "majority": np.array([float(answers_match(vote(g)[0], t)) for g, t in zip(sampled, truths)]),
        "greedy": np.array([float(answers_match(a, t)) for a, t in zip(greedy, truths)]),
    }
    low, high = bootstrap(correct["sampled"], seed)
    return {
        "questions": len(truths), "n": len(sampled[0]),
        "sampled": float(correct["sampled"].mean()), "sampled_low": low, "sampled_high": high,
        "majority": float(correct["majority"].mean()), "greedy": float(correct["greedy"].mean()),
        "unread": float(np.mean([a is None for group in sampled for a in group])),
        "per_question": {name: values.tolist() for name, values in correct.items()},
    }


def evaluate(vlm, questions, n=8, seed=0, max_new_tokens=512, progress=False):
    """Held-out accuracy of `vlm` as a Solver; `questions` is a list of (picture, question, answer).

    Returns shares in [0, 1]: sampled with its 95 % interval (sampled_low, sampled_high), majority, greedy,
    unread; questions, n, seconds; and per_question = {"sampled" | "majority" | "greedy": [one per question]},
    which a paired comparison needs and a line of metrics does not.
    """
    if not questions or n < 1:
        raise ValueError(f"an evaluation needs questions and samples: got {len(questions)} and n = {n}")
    begun = time.perf_counter()
    options = dict(seed=seed, max_new_tokens=max_new_tokens, progress=progress)
    sampled = ask(vlm, questions, n=n, temperature=1.0, **options)
    greedy = [group[0] for group in ask(vlm, questions, n=1, temperature=0.0, **options)]
    result = score(sampled, greedy, [truth for _, _, truth in questions], seed)
    return result | {"seconds": time.perf_counter() - begun}


# ------------------------------------------------------------------------------------------------------------
# How sure one can be


def bootstrap(values, seed=0, draws=2000):
    """95 % percentile interval of the mean of `values` [Q].

    Questions are drawn again, not samples: the n replies to one question are alike, and to treat them as
    Q * n independent trials would give an interval far too narrow.

    >>> bootstrap([1.0, 1.0, 1.0])
    (1.0, 1.0)
    >>> low, high = bootstrap([0.0, 1.0] * 50); 0.35 < low < 0.45 and 0.55 < high < 0.65
    True
    """
    values, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(a, b):
    """Exact two-sided McNemar test on paired right / wrong [Q] -> (only a right, only b right, p).

    Questions on which both agree say nothing about which is better. Of the m others, if the two are equally
    good, the number a wins is Binomial(m, 1/2):   p = min(1, 2 * sum_{k <= min(wins, losses)} C(m, k) / 2^m)

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])      # 5 of 5: 2 / 2^5
    (5, 0, 0.0625)
    >>> mcnemar([1, 0], [0, 1])
    (1, 1, 1.0)
    """
    wins = sum(x > y for x, y in zip(a, b, strict=True))
    losses = sum(x < y for x, y in zip(a, b, strict=True))
    m = wins + losses
    tail = sum(math.comb(m, k) for k in range(min(wins, losses) + 1))
    return wins, losses, min(1.0, 2 * tail / 2**m)  # integers up to the division: exact for any m


def compare(a, b, seed=0):
    """Two results of `evaluate` on the same questions -> how much better a is than b.

    {"sampled": (difference, low, high), "majority": (difference, wins, losses, p), "greedy": the same}. The
    bootstrap draws a question with both models' accuracy on it: what makes it hard for both cancels out.
    """
    ours, theirs = a["per_question"], b["per_question"]
    if len(ours["sampled"]) != len(theirs["sampled"]):
        raise ValueError(f"not the same questions: {len(ours['sampled'])} and {len(theirs['sampled'])}")
    difference = np.subtract(ours["sampled"], theirs["sampled"])  # [Q]
    result = {"sampled": (float(difference.mean()), *bootstrap(difference, seed))}
    for name in ("majority", "greedy"):
        result[name] = (a[name] - b[name], *mcnemar(ours[name], theirs[name]))
    return result


# ------------------------------------------------------------------------------------------------------------
# Tables


def markdown(header, rows):
    """Aligned Markdown; the first column is text, the others are numbers.

    >>> print(markdown(["model", "greedy"], [["tiny", "93.5"]]))
    | model | greedy |
    |:------|-------:|
    | tiny  |   93.5 |
    """
    widths = [max(map(len, column)) for column in zip(header, *rows)]

    def line(row):
        padded = [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        return "| " + " | ".join(padded) + " |"

    rule = "|:" + "-" * (widths[0] + 1) + "|" + "".join("-" * (w + 1) + ":|" for w in widths[1:])
    return "\n".join([line(header), rule, *map(line, rows)])


def table(evals):
    """A run's eval records (base, iteration 1, ...) -> Markdown that fits a terminal of 100 columns.

    In %: accuracy on held-out hard questions (mean of n samples with its 95 % interval, majority of n,
    greedy) and on easy ones; proposals that parse; codes that draw. In [0, 1]: mean solvability s and
    difficulty d of the roles' own pictures, entropy of their content types. A dash: not measured.
    """
    return markdown(*cells(evals))


def overview(results):
    """{model name: result} -> Markdown, one row per model."""
    n = next(iter(results.values()))["n"]
    rows = []
    for name, r in results.items():
        low, mean, high = (f"{100 * r[key]:.1f}" for key in ("sampled_low", "sampled", "sampled_high"))
        others = [f"{100 * r[key]:.1f}" for key in ("majority", "greedy", "unread")]
        rows.append([name, f"{mean} ({low}–{high})", *others, str(r["questions"])])
    return markdown(["model", "sampled (95 %)", f"majority of {n}", "greedy", "no answer", "questions"], rows)


def by_type(results, types):
    """The same per content type: sampled / majority / greedy of each model in one cell."""
    rows = []
    for name in sorted(set(types)):
        own = [i for i, kind in enumerate(types) if kind == name]
        figures = [" / ".join(f"{100 * np.mean([r['per_question'][key][i] for i in own]):.1f}"
                              for key in ("sampled", "majority", "greedy")) for r in results.values()]
        rows.append([name, str(len(own)), *figures])
    return markdown(["sampled / majority / greedy", "questions", *results], rows)


def difference(comparison, names):
    """The paired comparison in words, one line per figure."""
    gain, low, high = comparison["sampled"]
    lines = [f"{names[0]} minus {names[1]}, paired on the same questions:",
             f"  sampled   {100 * gain:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"]
    for key in ("majority", "greedy"):
        gain, wins, losses, p = comparison[key]
        lines.append(f"  {key:9} {100 * gain:+.1f} points: right alone on {wins}, wrong alone on {losses}, "
                     f"McNemar exact p = {p:.2g}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------
# Command line


def parse(arguments):
    parser = argparse.ArgumentParser(prog="eval.py", allow_abbrev=False,
                                     description="Accuracy of a checkpoint, or the report of a run.")
    parser.add_argument("--model", default="tiny", help="tiny, a folder, Qwen2-VL-2B, or any hub id")
    parser.add_argument("--bench", default="charts", help="charts, or a JSONL file (image, question, answer)")
    parser.add_argument("-n", type=int, default=8, help="samples per question")
    parser.add_argument("--questions", type=int, default=400, help="how many (of a file: the first ones)")
    parser.add_argument("--seed", type=int, default=0, help="of the charts, the samples and the bootstrap")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="limit of one reply")
    parser.add_argument("--compare", metavar="OTHER", help="a second model, paired on the same questions")
    parser.add_argument("--report", metavar="RUN", help="write RUN/report.html and do nothing else")
    settings = parser.parse_args(arguments)
    for flag in ("n", "questions", "max_new_tokens"):
        if getattr(settings, flag) < 1:
            parser.error(f"{'-n' if flag == 'n' else '--' + flag.replace('_', '-')} must be 1 or more")
    if settings.compare == settings.model:
        parser.error("--compare needs another model than --model")
    if settings.seed < 0:
        parser.error("--seed must be 0 or more")
    return settings


def or_exit(function, *arguments):
    """What a user can get wrong becomes one line and exit code 1; a bug further on keeps its traceback."""
    try:
        return function(*arguments)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def main(arguments=None):
    settings = parse(arguments)
    if settings.report is not None:
        return print(or_exit(report, settings.report))
    if settings.bench == "charts":
        questions, types = or_exit(charts, settings.questions, settings.seed)
    else:
        questions, types = or_exit(load_jsonl, settings.bench)
        questions, types = questions[:settings.questions], types[:settings.questions]
    options = dict(n=settings.n, seed=settings.seed, max_new_tokens=settings.max_new_tokens,
                   progress=sys.stderr.isatty())
    results = {settings.model: evaluate(or_exit(VLM.load, settings.model), questions, **options)}
    if settings.compare is not None:  # loaded only now: one GPU need not hold both
        results[settings.compare] = evaluate(or_exit(VLM.load, settings.compare), questions, **options)
    print(overview(results))
    if len(set(types)) > 1:
        print("\n" + by_type(results, types))
    if settings.compare is not None:
        names = settings.model, settings.compare
        print("\n" + difference(compare(*(results[name] for name in names), seed=settings.seed), names))


if __name__ == "__main__":
    main()
