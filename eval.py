"""Accuracy of checkpoints and their comparison on the same questions; the door to a run's audit and report.

    python eval.py --model M                                  # the built-in held-out charts
    python eval.py --model M --bench MMMU ChartQA my.jsonl    # questions from outside (benchmarks.py)
    python eval.py --model M --compare A B                    # is M better than A, than B?
    python eval.py --model M ... --rescore [--judge J]        # the same tables from the replies that were kept
    python eval.py --audit RUN                                # how good are the Solver's labels? (audit.py)
    python eval.py --report RUN [--png FILE]                  # draw RUN/report.html (report.py)

Every reply is kept in OUT/MODEL/SET.jsonl, one line per question after a line of settings; a stopped evaluation goes on
from there, and all figures come from there. The Solver is asked with its own prompt: on charts as in training (8
samples, temperature 1), elsewhere as the authors do (one, temperature 0.6, top-p 0.95). What parts ways in self-play:

    sampled    mean over questions and n samples     what the reward of phase S pushes up
    majority   the vote of the n samples             the label maker's quality (the teacher in test-time RL)
    greedy     one reply at temperature 0            what a user would get

(Sharpening alone pulls `sampled` up towards `majority`; only new ability raises `majority` itself.) Deviations from the
authors: their text model re-grades every answer, ours (--judge) only what the rule calls wrong. A reply without a
readable answer counts as wrong: their rule score leaves it out of the denominator, which flatters a model that often
fails to answer; `of readable` is that figure.
"""
import argparse
import hashlib
import itertools
import json
import math
import os
import re
import sys
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "20000")            # before torch is imported: see mmzero.py

import numpy as np
from tqdm import tqdm

import benchmarks
import parallel
from answers import answers_match, extract_answer, vote
from audit import audit_run
from generate import generate
from prompts import fill
from render import Renderer
from report import cells, read_jsonl, report
from tiny import world
from vlm import VLM, find_checkpoint


# ------------------------------------------------------------------------------------------------------------
# The held-out charts, as a run measures them: (picture, question, answer) triples


def charts(count, seed=0, kind="hard", of="test"):
    """`count` held-out questions on procedural charts the tiny base never saw -> (questions, content types).

    A picture that fails to draw is an error, never a question left out: everybody must answer the same set.
    """
    drawn = world.heldout(count, seed, kind, of)
    with Renderer() as renderer:
        pictures = renderer.render([(question.svg, "svg") for question in drawn])
    for picture in pictures:
        if picture.error is not None:
            raise RuntimeError(f"a held-out chart could not be drawn: {picture.error}")
    questions = [(picture.image, q.question, q.answer) for picture, q in zip(pictures, drawn)]
    return questions, [q.content_type for q in drawn]


def score(sampled, greedy, truths, seed=0, right=answers_match):
    """Figures from answers alone. sampled [Q][n], greedy [Q], truths [Q] -> the dict `evaluate` returns."""
    correct = {  # each [Q], in [0, 1]; None (unreadable) is never right
        "sampled": np.array([np.mean([right(a, t) for a in g]) for g, t in zip(sampled, truths)]),
        "majority": np.array([float(right(vote(g)[0], t)) for g, t in zip(sampled, truths)]),
        "greedy": np.array([float(right(a, t)) for a, t in zip(greedy, truths)]),
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

    Returns shares in [0, 1]: sampled with its 95 % interval (sampled_low, sampled_high), majority, greedy, unread;
    questions, n, seconds; and per_question = {"sampled" | "majority" | "greedy": [one per question]}, to compare.
    Of several ranks each asks its share of the questions, and all get the whole result.
    """
    if not questions or n < 1:
        raise ValueError(f"an evaluation needs questions and samples: got {len(questions)} and n = {n}")
    begun = time.perf_counter()
    prompts = [vlm.encode(fill(vlm.prompts["solver"], question=text), [picture]) for picture, text, _ in parallel.share(questions)]
    sampled, greedy = (
        parallel.gather([[extract_answer(reply.text) for reply in group] for group in generate(
            vlm, prompts, n=m, temperature=t, max_new_tokens=max_new_tokens, seed=seed, progress=progress,
            numbers=parallel.share(range(len(questions))))])
        for m, t in ((n, 1.0), (1, 0.0)))
    result = score(sampled, [answer for answer, in greedy], [truth for _, _, truth in questions], seed)
    return result | {"seconds": time.perf_counter() - begun}


# ------------------------------------------------------------------------------------------------------------
# Any set: ask once, keep every reply, score from what was kept


def fingerprint(name):
    """A hash of 256 places of a checkpoint's weights: replies of another checkpoint under an old name are noticed."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(find_checkpoint(name).glob("*.safetensors")):
        with open(file, "rb") as stream:
            for place in np.linspace(0, file.stat().st_size, 256, endpoint=False, dtype=int).tolist():
                stream.seek(place)
                digest.update(stream.read(256))
    return digest.hexdigest()


def resume(path, settings):
    """How many questions `path` has the replies of, in whole chunks. ValueError if other settings made it."""
    old, *rows = read_jsonl(path) or [settings]
    changed = [f"{k} {old.get(k)!r} there, {v!r} now" for k, v in settings.items() if old.get(k) != v]
    if changed:
        raise ValueError(f"{path} holds replies of another evaluation ({', '.join(changed)}): give another --out")
    done = len(rows) if len(rows) == settings["questions"] else len(rows) // settings["chunk"] * settings["chunk"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text("".join(json.dumps(row) + "\n" for row in [settings, *rows[:done]]))
    os.replace(path.with_suffix(".new"), path)
    return done


def collect(path, settings, name, rows, folder, vlm=None):
    """Ask the questions that `path` lacks and append their replies, chunk by chunk. -> the model, if it was needed"""
    done, total, chunk = resume(path, settings), settings["questions"], settings["chunk"]
    bar = tqdm(total=total, initial=done, desc=f"{settings['model']}, {name}", unit=" questions", disable=done == total)
    for start in range(done, total, chunk):
        vlm, questions = vlm or VLM.load(settings["model"]), []
        vlm.max_pixels = min(vlm.max_pixels, 1280 * 1280)                   # as the authors have it
        for i in range(start, min(start + chunk, total)):
            try:
                questions.append(benchmarks.question(rows[i], name, folder))
            except (ValueError, OSError) as error:
                raise ValueError(f"{settings['bench']}, question {i + 1}: {error}") from None
        prompts = [vlm.encode(question.parts(vlm.prompts["solver"])) for question in questions]
        # A seed per chunk: an evaluation that was stopped and resumed gives the replies of one that was not.
        options = dict(seed=settings["seed"] + 1_000_003 * (start // chunk), max_new_tokens=settings["max_new_tokens"])
        sampled = generate(vlm, prompts, settings["n"], temperature=settings["temperature"], top_p=settings["top_p"],
                           **options)
        greedy = generate(vlm, prompts, 1, temperature=0.0, **options)
        with open(path, "a", encoding="utf-8") as file:
            for i, question in enumerate(questions):
                kept = {key: value for key, value in vars(question).items() if key != "pictures"}
                kept |= {"replies": [reply.text for reply in sampled[i]], "greedy": greedy[i][0].text}
                file.write(json.dumps({"index": start + i} | kept) + "\n")
        bar.update(len(questions))
    bar.close()
    return vlm


def grade(rows, accepted=frozenset(), seed=0):
    """Kept rows -> the dict of `evaluate`; `accepted`: what the judge was asked and said yes to."""
    sampled = [[extract_answer(reply) for reply in row["replies"]] for row in rows]
    greedy = [extract_answer(row["greedy"]) for row in rows]
    result = score(sampled, greedy, rows, seed, lambda a, row: benchmarks.right(a, row) or to_judge(a, row) in accepted)
    return result | {"of_readable": result["sampled"] / max(1e-9, 1 - result["unread"])}


JUDGE = """Compare two answers to one question. Do they say the same?
Question: {text}
Right answer: {gold}
Given answer: {given}
Differences of wording, of form, and of units that go without saying do not count. Reply with one word, yes or no."""


def to_judge(given, row):
    return fill(JUDGE, text=row["text"], gold=" or ".join(row["answers"]), given=str(given))

def judge(name, rows, path):
    """A text model reads all answers that the rule calls wrong -> (what it says yes to, how many); kept in `path`."""
    mark, vlm = fingerprint(name), None
    wrong = {to_judge(a, row) for row in rows for a in map(extract_answer, [*row["replies"], row["greedy"]])
             if a is not None and not benchmarks.right(a, row)}
    known = {verdict["asked"]: verdict["reply"] for verdict in read_jsonl(path) if verdict["weights"] == mark}
    asked = sorted(wrong - set(known))
    for start in tqdm(range(0, len(asked), 256), desc=f"judge {name}", disable=not asked):
        batch, vlm = asked[start:start + 256], vlm or VLM.load(name)
        replies = generate(vlm, [vlm.encode(text) for text in batch], max_new_tokens=8, temperature=0.0)
        with open(path, "a", encoding="utf-8") as file:
            for text, (reply,) in zip(batch, replies):
                known[text] = reply.text
                file.write(json.dumps({"judge": name, "weights": mark, "asked": text, "reply": reply.text}) + "\n")
    return {text for text in wrong if re.match(r"\W*yes\b", known[text], re.IGNORECASE)}, len(wrong)


# ------------------------------------------------------------------------------------------------------------
# How sure one can be


def resample(values, seed=0, draws=2000):
    """Means of `draws` samples of the questions `values` [Q], drawn again with replacement."""
    values, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    return np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)])


def bootstrap(values, seed=0, draws=2000):
    """95 % percentile interval of the mean of `values` [Q].

    Questions are drawn again, not samples: the n replies to one question are alike, and to treat them as
    Q * n independent trials would give an interval far too narrow.

    >>> bootstrap([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    return tuple(map(float, np.percentile(resample(values, seed, draws), [2.5, 97.5])))


def macro(sets, seed=0):
    """(mean of the sets' means, low, high): a set counts the same however many questions it has."""
    means = np.mean([resample(values, [seed, i]) for i, values in enumerate(sets)], axis=0)
    return (float(np.mean([np.mean(values) for values in sets])), *map(float, np.percentile(means, [2.5, 97.5])))


def mcnemar(a, b):
    """Exact two-sided McNemar test on paired right / wrong [Q] -> (only a right, only b right, p).

    Questions on which both agree say nothing about which is better. Of the m others, if the two are equally
    good, the number a wins is Binomial(m, 1/2):   p = min(1, 2 * sum_{k <= min(wins, losses)} C(m, k) / 2^m)

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]), mcnemar([1, 0], [0, 1])       # 5 of 5: 2 / 2^5
    ((5, 0, 0.0625), (1, 1, 1.0))
    """
    wins = sum(x > y for x, y in zip(a, b, strict=True))
    losses = sum(x < y for x, y in zip(a, b, strict=True))
    m = wins + losses
    tail = sum(math.comb(m, k) for k in range(min(wins, losses) + 1))
    return wins, losses, min(1.0, 2 * tail / 2**m)  # integers up to the division: exact for any m


def compare(a, b, seed=0):
    """Two results of `evaluate` on the same questions -> how much better a is than b.

    {"sampled": (difference, low, high), "majority": (difference, wins, losses, p), "greedy": the same}. The
    bootstrap draws a question with both models' accuracy on it: what makes it hard for both cancels out."""
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

    In %: accuracy on held-out hard questions (mean of n samples with its 95 % interval, majority of n, greedy) and on
    easy ones; proposals that parse; codes that draw. In [0, 1]: mean solvability and difficulty, entropy of types.
    """
    return markdown(*cells(evals))


def overview(results):
    """{(set, model): result} -> Markdown; with several sets also the macro average of every model."""
    def percent(mean, low, high):
        return f"{100 * mean:.1f} ({100 * low:.1f}–{100 * high:.1f})"

    sets, models = (list(dict.fromkeys(key[i] for key in results)) for i in (0, 1))
    rows = [[Path(bench).name, model, percent(r["sampled"], r["sampled_low"], r["sampled_high"]),
             percent(r["greedy"], *bootstrap(r["per_question"]["greedy"])),
             *(f"{100 * r[key]:.1f}" for key in ("majority", "unread", "of_readable")), str(r["questions"])]
            for (bench, model), r in results.items()]
    for model in models if len(sets) > 1 else ():
        own = [results[bench, model]["per_question"] for bench in sets]
        rows.append(["macro average", model, *(percent(*macro([r[key] for r in own])) for key in ("sampled", "greedy")),
                     f"{100 * macro([r['majority'] for r in own])[0]:.1f}", "", "", str(len(sets)) + " sets"])
    return markdown(["set", "model", "sampled (95 %)", "greedy (95 %)", "majority", "no answer", "of readable",
                     "questions"], rows)


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

# n, temperature, top-p, limit of a reply, questions between two writes: for sets from outside, for our charts
DEFAULTS = (1, 0.6, 0.95, 4096, 128), (8, 1.0, 1.0, 512, 512)

def parse(arguments):
    parser = argparse.ArgumentParser(prog="eval.py", allow_abbrev=False, description="Accuracy, label audit, report.")
    add = parser.add_argument
    add("--model", default="tiny", help="tiny, a folder, Qwen2-VL-2B, or any hub id")
    add("--compare", nargs="+", default=[], metavar="OTHER", help="models to compare it with, paired")
    add("--bench", nargs="+", default=["charts"], metavar="SET", help="charts, FILE.jsonl, FILE.parquet, a dataset's "
        "folder or hub id, a name such as MMMU, or paper: the twelve sets of the authors")
    add("-n", type=int, help="samples per question [8 on charts, else 1]")
    add("--temperature", type=float, help="of the samples [1 on charts, else 0.6]")
    add("--top-p", type=float, help="of the samples [1 on charts, else 0.95]")
    add("--questions", type=int, help="how many: the first ones [400 charts, else all]")
    add("--seed", type=int, default=0, help="of the charts and the samples")
    add("--max-new-tokens", type=int, help="limit of one reply [512 on charts, else 4096]")
    add("--out", default="runs/eval", help="folder of the replies and the tables")
    add("--rescore", action="store_true", help="ask nobody: score the replies that are there")
    add("--judge", metavar="MODEL", help="a model that decides where the rule says no")
    add("--audit", metavar="RUN", help="audit the labels of a run, and do nothing else")
    add("--report", metavar="RUN", help="write RUN/report.html, and do nothing else")
    add("--png", metavar="FILE", help="with --report: the main curves as a figure, too")
    s = parser.parse_args(arguments)
    for flag, low, high in (("n", 1, math.inf), ("questions", 1, math.inf), ("max_new_tokens", 1, math.inf),
                            ("seed", 0, math.inf), ("temperature", 1e-3, math.inf), ("top_p", 1e-3, 1)):
        if not low <= (low if getattr(s, flag) is None else getattr(s, flag)) <= high:
            parser.error(f"{'-n' if flag == 'n' else '--' + flag.replace('_', '-')} must be {low} to {high}")
    if len({s.model, *s.compare}) < 1 + len(s.compare) or s.png and not s.report:
        parser.error("--compare needs other models than --model, each once; --png goes with --report")
    s.bench = [b for name in dict.fromkeys(s.bench) for b in (benchmarks.SETS if name == "paper" else [name])]
    return s


def gather(s):
    """{(set, model): rows of replies}, after asking for what is not there yet."""
    found, sets, plain = {}, {}, lambda text: re.sub(r"[^\w.-]+", "-", text)
    names = "image", "question", "answer", "content_type"
    for bench in () if s.rescore else s.bench:
        sets[bench] = benchmarks.load(bench, s.questions) if bench != "charts" else (
            bench, [dict(zip(names, (*q, kind))) for q, kind in zip(*charts(s.questions or 400, s.seed))], Path())
    for model in (s.model, *s.compare):
        vlm = None                                  # one model at a time: a GPU need not hold two
        for bench in s.bench:
            path = Path(s.out) / plain(model) / f"{plain(bench)}.jsonl"
            n, temperature, top_p, tokens, chunk = DEFAULTS[bench == "charts"]
            if not s.rescore:
                settings = dict(model=model, weights=fingerprint(model), bench=bench, questions=len(sets[bench][1]),
                                n=s.n or n, temperature=s.temperature or temperature, top_p=s.top_p or top_p,
                                max_new_tokens=s.max_new_tokens or tokens, seed=s.seed, chunk=chunk)
                vlm = collect(path, settings, *sets[bench], vlm)
            settings, *found[bench, model] = read_jsonl(path) or [{}]
            if len(found[bench, model]) != settings.get("questions"):
                raise ValueError(f"{path} is missing or not complete: run the same command without --rescore")
    return dict(sorted(found.items(), key=lambda item: s.bench.index(item[0][0])))          # set by set


def or_exit(function, *arguments):
    """What a user can get wrong becomes one line and exit code 1; a bug further on keeps its traceback."""
    try:
        return function(*arguments)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"eval.py: {error}")
    except KeyboardInterrupt:
        sys.exit("eval.py: stopped; the same command goes on after the last questions that were answered")


def main(arguments=None):
    s = parse(arguments)
    if s.audit or s.report:
        return print(or_exit(audit_run, s.audit) if s.audit else or_exit(report, s.report, s.png))
    found, accepted, comparisons, text = or_exit(gather, s), frozenset(), [], ""
    if s.judge:
        accepted, read = or_exit(judge, s.judge, itertools.chain(*found.values()), Path(s.out) / "judge.jsonl")
        text = f"\n\nThe judge {s.judge} overruled {len(accepted)} of {read} answers that the rule calls wrong."
    results = {key: grade(rows, accepted, s.seed) for key, rows in found.items()}
    text = overview(results) + text
    for bench in s.bench:
        types = [row["type"] for row in found[bench, s.model]]
        if 1 < len(set(types)) <= 20:
            text += f"\n\n{by_type({model: r for (b, model), r in results.items() if b == bench}, types)}"
        for other in s.compare:
            comparison = compare(results[bench, s.model], results[bench, other], s.seed)
            comparisons.append({"set": bench, "model": s.model, "other": other} | comparison)
            text += f"\n\nOn {bench}, {difference(comparison, (s.model, other))}"
    print(text)
    rows = [{"set": b, "model": m} | {k: r[k] for k in r if k != "per_question"} for (b, m), r in results.items()]
    (Path(s.out) / "results.md").write_text(text + "\n", encoding="utf-8")
    (Path(s.out) / "results.json").write_text(json.dumps({"results": rows, "comparisons": comparisons}, indent=2))


if __name__ == "__main__":
    main()
