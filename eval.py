"""Accuracy of checkpoints and their comparison on the same questions; the door to a run's report.

    python eval.py --model M                                  # the built-in held-out charts
    python eval.py --model M --bench MMMU ChartQA my.jsonl    # questions from outside (benchmarks.py)
    python eval.py --model M --compare A B                    # is M better than A, than B?
    python eval.py --model M ... --rescore [--judge J]        # the same tables from the replies that were kept
    python eval.py --report RUN [--png FILE]                  # draw RUN/report.html (report.py)

Every reply is kept in OUT/MODEL/SET.jsonl, one line per question after a line of settings; a stopped evaluation goes on from there,
and all figures come from there. The Solver is asked with its own prompt: on charts as in training (8 samples, temperature 1),
elsewhere as the authors do (one, temperature 0.6, top-p 0.95). What parts ways in self-play:

    sampled    mean over questions and n samples     what the reward of phase S pushes up
    majority   the vote of the n samples             the label maker's quality (the teacher in test-time RL)
    greedy     one reply at temperature 0            what a user would get

(Sharpening alone pulls `sampled` up towards `majority`; only new ability raises `majority` itself.) Deviations from the authors:
their text model re-grades every answer, ours (--judge) only what the rule calls wrong. A reply without a readable answer counts as
wrong: their rule score leaves it out, which flatters a model that often fails to answer; `of readable` is that figure.
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

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch is imported: see mmzero.py

import numpy as np
from tqdm import tqdm

from generate import generate
from prompts import fill
from render import Renderer
from support import parallel
from support.answers import answers_match, extract_answer, vote
from tiny import world
from tools import benchmarks
from tools.report import markdown, read_jsonl, report, table  # noqa: F401 (table: for mmzero.py)
from vlm import VLM, find_checkpoint

# ---------------------------- the held-out charts, as a run measures them: (picture, question, answer) triples


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
    hits = {  # each [Q], in [0, 1]; None (unreadable) is never right
        "sampled": [
            float(np.mean([right(answer, truth) for answer in group]))
            for group, truth in zip(sampled, truths)
        ],
        "majority": [float(right(vote(group)[0], truth)) for group, truth in zip(sampled, truths)],
        "greedy": [float(right(answer, truth)) for answer, truth in zip(greedy, truths)],
    }
    low, high = interval(hits["sampled"], seed)
    return {
        "questions": len(truths),
        "n": len(sampled[0]),
        "sampled_low": low,
        "sampled_high": high,
        "per_question": hits,
        "unread": float(np.mean([answer is None for group in sampled for answer in group])),
        **{name: float(np.mean(values)) for name, values in hits.items()},
    }


def evaluate(vlm, questions, n=8, seed=0, max_new_tokens=512, progress=False):
    """Held-out accuracy of `vlm` as a Solver; `questions` is a list of (picture, question, answer).

    Returns shares in [0, 1]: sampled with its 95 % interval (sampled_low, sampled_high), majority, greedy, unread;
    questions, n, seconds; and per_question = {"sampled" | "majority" | "greedy": [one per question]}, to compare.
    Of several ranks each asks its share of the questions, and all get the whole result.
    """
    if not questions or n < 1:
        raise ValueError(
            f"an evaluation needs questions and samples: got {len(questions)} and n = {n}"
        )
    begun = time.perf_counter()
    prompts = [
        vlm.encode(fill(vlm.prompts["solver"], question=text), [picture])
        for picture, text, _ in parallel.rank_slice(questions)
    ]
    sampled, greedy = (
        parallel.gather(
            [
                [extract_answer(reply.text) for reply in group]
                for group in generate(
                    vlm,
                    prompts,
                    n=m,
                    temperature=t,
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                    progress=progress,
                    numbers=parallel.rank_slice(range(len(questions))),
                )
            ]
        )
        for m, t in ((n, 1.0), (1, 0.0))
    )
    result = score(
        sampled, [answer for (answer,) in greedy], [truth for _, _, truth in questions], seed
    )
    return result | {"seconds": time.perf_counter() - begun}


# ----------------------------------------------- any set: ask once, keep every reply, score from what was kept

CHUNK = 128  # questions between two writes


def fingerprint(name):
    """A hash of 256 places of a checkpoint's weights: replies of another checkpoint under an old name are noticed."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(find_checkpoint(name).glob("*.safetensors")):
        with open(file, "rb") as stream:
            for place in np.linspace(
                0, file.stat().st_size, 256, endpoint=False, dtype=int
            ).tolist():
                stream.seek(place)
                digest.update(stream.read(256))
    return digest.hexdigest()


def collect(path, settings, name, rows, folder, vlm=None):
    """Ask the questions that `path` lacks and append their replies, CHUNK by CHUNK. -> the model, if it was needed

    ValueError if other settings made `path`, or if a question cannot be read."""
    old, *known = read_jsonl(path) or [settings]
    if changed := [
        f"{k} {old.get(k)!r} there, {v!r} now" for k, v in settings.items() if old.get(k) != v
    ]:
        raise ValueError(
            f"{path} holds replies of another evaluation ({', '.join(changed)}): give another --out"
        )
    path.parent.mkdir(parents=True, exist_ok=True)  # written anew: the last line may be half a line
    path.with_suffix(".new").write_text(
        "".join(json.dumps(row) + "\n" for row in [settings, *known])
    )
    os.replace(path.with_suffix(".new"), path)
    starts = range(len(known), len(rows), CHUNK)
    for start in tqdm(
        starts,
        desc=f"{settings['model']}, {name}",
        unit=f" x {CHUNK} questions",
        disable=not starts,
    ):
        vlm, questions, numbers = (
            vlm or VLM.load(settings["model"]),
            [],
            range(start, min(start + CHUNK, len(rows))),
        )
        vlm.max_pixels = min(vlm.max_pixels, 1280 * 1280)  # as the authors have it
        for i in numbers:
            try:
                questions.append(benchmarks.question(rows[i], name, folder))
            except (ValueError, OSError) as error:
                raise ValueError(f"{settings['bench']}, question {i + 1}: {error}") from None
        prompts = [vlm.encode(question.parts(vlm.prompts["solver"])) for question in questions]
        # By their numbers the replies are those of one long call: an evaluation may stop and go on anywhere.
        sampled, greedy = (
            generate(
                vlm,
                prompts,
                n,
                temperature=t,
                top_p=p,
                seed=settings["seed"],
                numbers=numbers,
                max_new_tokens=settings["max_new_tokens"],
            )
            for n, t, p in (
                (settings["n"], settings["temperature"], settings["top_p"]),
                (1, 0.0, 1.0),
            )
        )
        with open(path, "a", encoding="utf-8") as file:
            for i, question, replies, (best,) in zip(numbers, questions, sampled, greedy):
                kept = {key: value for key, value in vars(question).items() if key != "pictures"}
                file.write(
                    json.dumps(
                        {
                            "index": i,
                            **kept,
                            "replies": [reply.text for reply in replies],
                            "greedy": best.text,
                        }
                    )
                    + "\n"
                )
    return vlm


def grade(rows, accepted=frozenset(), seed=0):
    """Kept rows -> the dict of `evaluate`, and more; `accepted`: what the judge was asked and said yes to."""
    sampled = [[extract_answer(reply) for reply in row["replies"]] for row in rows]
    greedy = [extract_answer(row["greedy"]) for row in rows]
    result = score(
        sampled,
        greedy,
        rows,
        seed,
        lambda a, row: benchmarks.right(a, row) or to_judge(a, row) in accepted,
    )
    low, high = interval(result["per_question"]["greedy"])
    return result | {
        "greedy_low": low,
        "greedy_high": high,
        "of_readable": result["sampled"] / max(1e-9, 1 - result["unread"]),
    }


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
    wrong = {
        to_judge(a, row)
        for row in rows
        for a in map(extract_answer, [*row["replies"], row["greedy"]])
        if a is not None and not benchmarks.right(a, row)
    }
    known = {
        verdict["asked"]: verdict["reply"]
        for verdict in read_jsonl(path)
        if verdict["weights"] == mark
    }
    asked = sorted(wrong - set(known))
    for start in tqdm(range(0, len(asked), 256), desc=f"judge {name}", disable=not asked):
        batch, vlm = asked[start : start + 256], vlm or VLM.load(name)
        replies = generate(
            vlm, [vlm.encode(text) for text in batch], max_new_tokens=8, temperature=0.0
        )
        with open(path, "a", encoding="utf-8") as file:
            for text, (reply,) in zip(batch, replies):
                known[text] = reply.text
                file.write(
                    json.dumps({"judge": name, "weights": mark, "asked": text, "reply": reply.text})
                    + "\n"
                )
    return {text for text in wrong if re.match(r"\W*yes\b", known[text], re.IGNORECASE)}, len(wrong)


# ----------------------------------------------------------------------------------------- how sure one can be


def bootstrap(values, seed=0, draws=2000):
    """95 % percentile interval of the mean of `values` [Q].

    Questions are drawn again, not samples: the n replies to one question are alike, and to treat them as
    Q * n independent trials would give an interval far too narrow.
    """
    values, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    return tuple(map(float, np.percentile(means, [2.5, 97.5])))


def wilson(values):
    """95 % score interval of a share, of `values` [Q] that are 0 or 1 (Wilson 1927). At 0 or 100 % it does not shrink to nothing.

    >>> [round(end, 3) for end in wilson([1] * 60)]
    [0.94, 1.0]
    """
    n, p, z = len(values), float(np.mean(values)), 1.959964
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def interval(values, seed=0):
    """95 % interval of the mean of `values` [Q], each the share of right replies to one question."""
    return wilson(values) if set(values) <= {0, 1} else bootstrap(values, seed)


def macro(results):
    """What `grade` says of several sets -> the mean of each figure: a set counts the same however many questions it has.

    The sets are independent, so the distances of the mean to the ends of its interval add as squares (Newcombe 1998).
    """
    average = {
        key: float(np.mean([r[key] for r in results]))
        for key in results[0]
        if key != "per_question"
    }
    for key in ("sampled", "greedy"):
        below, above = (
            math.hypot(*(r[key] - r[key + end] for r in results)) / len(results)
            for end in ("_low", "_high")
        )
        average |= {key + "_low": average[key] - below, key + "_high": average[key] + above}
    return average | {"questions": sum(r["questions"] for r in results)}


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
        raise ValueError(
            f"not the same questions: {len(ours['sampled'])} and {len(theirs['sampled'])}"
        )
    tests = {
        name: (a[name] - b[name], *mcnemar(ours[name], theirs[name]))
        for name in ("majority", "greedy")
    }
    return {
        "sampled": (
            a["sampled"] - b["sampled"],
            *bootstrap(np.subtract(ours["sampled"], theirs["sampled"]), seed),
        ),
        **tests,
    }


# ------------------------------------------------------------------------------------------------------ tables


def overview(results):
    """{(set, model): result} -> Markdown."""
    percent = lambda r, key: (
        f"{100 * r[key]:.1f} ({100 * r[key + '_low']:.1f}–{100 * r[key + '_high']:.1f})"
    )
    header = [
        "set",
        "model",
        "sampled (95 %)",
        "greedy (95 %)",
        "majority",
        "no answer",
        "of readable",
        "questions",
    ]
    return markdown(
        header,
        [
            [
                Path(bench).name,
                model,
                percent(r, "sampled"),
                percent(r, "greedy"),
                *(f"{100 * r[key]:.1f}" for key in ("majority", "unread", "of_readable")),
                str(r["questions"]),
            ]
            for (bench, model), r in results.items()
        ],
    )


def difference(comparison):
    """The paired comparison in words, one line per figure."""
    line = "  {:9} {:+.1f} points".format
    (gain, low, high), text = (
        comparison["sampled"],
        "On {set}, {model} minus {other}, paired on the same questions:",
    )
    lines = [
        text.format(**comparison),
        line("sampled", 100 * gain) + f", 95 % interval {100 * low:+.1f} to {100 * high:+.1f}",
    ]
    for key in ("majority", "greedy"):
        gain, wins, losses, p = comparison[key]
        lines.append(
            line(key, 100 * gain)
            + f": right alone on {wins}, wrong alone on {losses}, McNemar exact p = {p:.2g}"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ command line

DEFAULTS = (
    (1, 0.6, 0.95, 4096),
    (8, 1.0, 1.0, 512),
)  # n, temperature, top-p, tokens: for sets from outside, for our charts


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="eval.py",
        allow_abbrev=False,
        description="Accuracy of checkpoints; the report of a run.",
    )
    add = parser.add_argument
    add("--model", default="tiny", help="tiny, a folder, Qwen2-VL-2B, or any hub id")
    add(
        "--compare",
        nargs="+",
        default=[],
        metavar="OTHER",
        help="models to compare it with, paired",
    )
    add(
        "--bench",
        nargs="+",
        default=["charts"],
        metavar="SET",
        help="charts, FILE.jsonl, FILE.parquet, a dataset's "
        "folder or hub id, a name such as MMMU, or paper: the twelve sets of the authors",
    )
    add("-n", type=int, help="samples per question [8 on charts, else 1]")
    add("--questions", type=int, help="how many: the first ones [400 charts, else all]")
    add("--seed", type=int, default=0, help="of the charts and the samples")
    add("--max-new-tokens", type=int, help="limit of one reply [512 on charts, else 4096]")
    add("--out", default="runs/eval", help="folder of the replies and the tables")
    add("--rescore", action="store_true", help="ask nobody: score the replies that are there")
    add("--judge", metavar="MODEL", help="a model that decides where the rule says no")
    add("--report", metavar="RUN", help="write RUN/report.html, and do nothing else")
    add("--png", metavar="FILE", help="with --report: the main curves as a figure, too")
    s = parser.parse_args(arguments)
    if s.seed < 0 or any(
        number is not None and number < 1 for number in (s.n, s.questions, s.max_new_tokens)
    ):
        parser.error("-n, --questions and --max-new-tokens must be 1 or more, --seed 0 or more")
    if len({s.model, *s.compare}) < 1 + len(s.compare) or s.png and not s.report:
        parser.error(
            "--compare needs other models than --model, each once; --png goes with --report"
        )
    s.bench = [
        b
        for name in dict.fromkeys(s.bench)
        for b in (benchmarks.SETS if name == "paper" else [name])
    ]
    return s


def gather(s):
    """{(set, model): rows of replies}, after asking for what is not there yet."""
    found, sets, plain = {}, {}, lambda text: re.sub(r"[^\w.-]+", "-", text)
    for bench in () if s.rescore else s.bench:
        rows = (
            [
                dict(zip(("image", "question", "answer", "content_type"), (*q, kind)))
                for q, kind in zip(*charts(s.questions or 400, s.seed))
            ]
            if bench == "charts"
            else ()
        )
        sets[bench] = (bench, rows, Path()) if rows else benchmarks.load(bench, s.questions)
    for model in (s.model, *s.compare):
        vlm = None  # one model at a time: a GPU need not hold two
        for bench in s.bench:
            path = Path(s.out) / plain(model) / f"{plain(bench)}.jsonl"
            n, temperature, top_p, tokens = DEFAULTS[bench == "charts"]
            if not s.rescore:
                settings = dict(
                    model=model,
                    weights=fingerprint(model),
                    bench=bench,
                    questions=len(sets[bench][1]),
                    n=s.n or n,
                    temperature=temperature,
                    top_p=top_p,
                    max_new_tokens=s.max_new_tokens or tokens,
                    seed=s.seed,
                )
                vlm = collect(path, settings, *sets[bench], vlm)
            settings, *found[bench, model] = read_jsonl(path) or [{}]
            if len(found[bench, model]) != settings.get("questions"):
                raise ValueError(
                    f"{path} is missing or not complete: run the same command without --rescore"
                )
    return dict(sorted(found.items(), key=lambda item: s.bench.index(item[0][0])))  # set by set


def scores(s):
    """Ask what is not there yet, and score all of it -> the tables, which are kept in `s.out` as Markdown and JSON."""
    found, accepted, comparisons, text = gather(s), frozenset(), [], ""
    if s.judge:
        accepted, read = judge(
            s.judge, itertools.chain(*found.values()), Path(s.out) / "judge.jsonl"
        )
        text = f"\n\nThe judge {s.judge} overruled {len(accepted)} of {read} answers that the rule calls wrong."
    results = {key: grade(rows, accepted, s.seed) for key, rows in found.items()}
    for bench in s.bench:
        for other in s.compare:
            comparisons.append(
                {"set": bench, "model": s.model, "other": other}
                | compare(results[bench, s.model], results[bench, other], s.seed)
            )
            text += "\n\n" + difference(comparisons[-1])
    shown = dict(results)
    for (bench, model), rows in found.items():  # and by the types of their questions
        types = sorted({row["type"] for row in rows})
        for kind in types if 1 < len(types) <= 20 else ():
            own = [row for row in rows if row["type"] == kind]
            shown[f"{bench}, {kind.replace('/', ' ')}", model] = grade(own, accepted, s.seed)
    for model in (s.model, *s.compare) if len(s.bench) > 1 else ():
        shown["macro average", model] = macro([results[bench, model] for bench in s.bench])
    text = overview(shown) + text
    rows = [
        {"set": b, "model": m} | {k: r[k] for k in r if k != "per_question"}
        for (b, m), r in shown.items()
    ]
    (Path(s.out) / "results.md").write_text(text + "\n", encoding="utf-8")
    (Path(s.out) / "results.json").write_text(
        json.dumps({"results": rows, "comparisons": comparisons}, indent=2)
    )
    return text


def main(arguments=None):
    s = parse(arguments)
    try:
        print(report(s.report, s.png) if s.report else scores(s))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"eval.py: {error}")
    except KeyboardInterrupt:
        sys.exit(
            "eval.py: stopped; the same command goes on after the last questions that were answered"
        )


if __name__ == "__main__":
    main()
