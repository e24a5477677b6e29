"""Any set of questions: ask once, keep every reply, judge, compare. This is what eval.py does.

    rows  -- collect -->  OUT/MODEL/SET.jsonl  -- judge, grade -->  figures  -->  tables

The file has a line of settings and a line per question. A stopped evaluation goes on after them.
Deviations from the authors: their judge reads every reply, ours only answers that the rule calls
wrong. A reply without a readable answer is wrong; `of readable` leaves such replies out.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from eval import bootstrap, charts, interval, markdown, mcnemar, score
from generate import generate
from prompts import fill
from support.answers import extract_answer
from support.checkpoint import find_checkpoint
from tools import benchmarks
from tools.report import read_jsonl
from vlm import VLM

CHUNK = 128  # questions between two writes
ON_CHARTS = {"n": 8, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 512}  # as in training
ELSEWHERE = {"n": 1, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 4096}  # PAPER 7


def fingerprint(name):
    """A hash of 256 places of a checkpoint's weights. It tells other weights of the same name."""
    digest = hashlib.blake2b(digest_size=8)
    own = Path(name).glob("adapter_model.safetensors")
    for file in [*own, *sorted(find_checkpoint(name).glob("*.safetensors"))]:
        data = np.memmap(file, mode="r")
        for place in np.linspace(0, len(data), 256, endpoint=False, dtype=int):
            digest.update(data[place : place + 256])
    return digest.hexdigest()


def append(path, rows):
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def kept_before(path, settings):
    """The rows that `path` has already. ValueError if they were made with other settings."""
    before, *rows = read_jsonl(path) or [settings]
    changed = ", ".join(
        f"{key} {before.get(key)!r} there, {value!r} now"
        for key, value in settings.items()
        if before.get(key) != value
    )
    if changed:
        raise ValueError(f"{path} is of another evaluation ({changed}): give another --out")
    # Written anew: whoever was stopped may have left half a line.
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(row) + "\n" for row in [settings, *rows]))
    os.replace(new, path)
    return rows


def collect(path, settings, name, rows, folder, vlm=None):
    """Ask the questions that `path` lacks and append the replies, CHUNK by CHUNK.

    -> the model, if it was needed. ValueError if other settings made `path`. A row that cannot be
    used costs its own question: it is kept with the reason, and `kept` leaves it out.
    """
    starts = range(len(kept_before(path, settings)), len(rows), CHUNK)
    for start in tqdm(starts, f"{settings['model']}, {name}", unit="chunk", disable=not starts):
        if vlm is None:
            vlm = VLM.load(settings["model"])
            vlm.max_pixels = min(vlm.max_pixels, 1280 * 1280)  # as the authors have it
        new, prompts = {}, {}  # by the number of the question
        for i in range(start, min(start + CHUNK, len(rows))):
            try:
                question = benchmarks.question(rows[i], name, folder)
                prompts[i] = vlm.encode(question.parts(vlm.prompts["solver"]))
            except Exception as error:  # a stranger's file may break any decoder in any way
                new[i] = {"index": i, "unusable": " ".join(str(error).split()) or repr(error)}
            else:
                fields = {key: value for key, value in vars(question).items() if key != "pictures"}
                new[i] = {"index": i} | fields

        # By their numbers the replies are those of one long call: one may stop and go on anywhere.
        same = {key: settings[key] for key in ("max_new_tokens", "seed")} | {"numbers": [*prompts]}
        chance = {key: settings[key] for key in ("n", "temperature", "top_p")}
        sampled = generate(vlm, [*prompts.values()], **chance, **same)
        greedy = generate(vlm, [*prompts.values()], temperature=0.0, **same)
        for i, replies, (best,) in zip(prompts, sampled, greedy):
            new[i] |= {"replies": [reply.text for reply in replies], "greedy": best.text}
        append(path, new.values())
    return vlm


JUDGE = """Compare two answers to one question. Do they say the same?
Question: {text}
Right answer: {gold}
Given answer: {given}
Differences of wording, of form, and of units that go without saying do not count. Reply with one \
word, yes or no."""


def to_judge(given, row):
    return fill(JUDGE, text=row["text"], gold=" or ".join(row["answers"]), given=str(given))


def judge(name, rows, path):
    """A model reads all answers that the rule calls wrong -> ({what it says yes to}, how many)."""
    wrong = set()
    for row in rows:
        for answer in map(extract_answer, [*row["replies"], row["greedy"]]):
            if answer is not None and not benchmarks.right(answer, row):
                wrong.add(to_judge(answer, row))
    vlm, same = None, {"judge": name, "weights": fingerprint(name)}
    before = (row for row in read_jsonl(path) if row["weights"] == same["weights"])  # kept there
    verdicts = {row["asked"]: row["reply"] for row in before}
    asked = sorted(wrong - set(verdicts))
    for start in tqdm(range(0, len(asked), 256), f"judge {name}", disable=not asked):
        vlm, texts = vlm or VLM.load(name), asked[start : start + 256]
        prompts = [vlm.encode(text) for text in texts]
        replies = generate(vlm, prompts, max_new_tokens=8, temperature=0.0)
        new = {text: reply.text for text, (reply,) in zip(texts, replies)}
        append(path, [same | {"asked": text, "reply": reply} for text, reply in new.items()])
        verdicts |= new
    yes = {text for text in wrong if re.match(r"\W*yes\b", verdicts[text], re.IGNORECASE)}
    return yes, len(wrong)


def grade(rows, accepted=frozenset(), seed=0):
    """Kept rows -> the figures of `score`, and more. `accepted`: what the judge says yes to."""
    sampled = [[extract_answer(reply) for reply in row["replies"]] for row in rows]
    greedy = [extract_answer(row["greedy"]) for row in rows]
    right = lambda a, row: benchmarks.right(a, row) or to_judge(a, row) in accepted
    figures = score(sampled, greedy, rows, seed, right)
    figures["greedy_low"], figures["greedy_high"] = interval(figures["per_question"]["greedy"])
    figures["of_readable"] = figures["sampled"] / max(1e-9, 1 - figures["unread"])
    return figures


def macro(results):
    """The figures of several sets -> their means: a set counts the same however large it is.

    Sets are independent: the distances to the ends of the interval add as squares (Newcombe 1998).
    """
    keys = [key for key in results[0] if key != "per_question"]
    average = {key: float(np.mean([figures[key] for figures in results])) for key in keys}
    for key in ("sampled", "greedy"):
        below = math.hypot(*(figures[key] - figures[key + "_low"] for figures in results))
        above = math.hypot(*(figures[key + "_high"] - figures[key] for figures in results))
        average[key + "_low"] = average[key] - below / len(results)
        average[key + "_high"] = average[key] + above / len(results)
    return average | {"questions": sum(figures["questions"] for figures in results)}


def compare(a, b, seed=0):
    """Two results on the same questions -> how much better a is than b.

    sampled: (difference, low, high), where a question is drawn with the accuracy of both, so that
    what makes it hard for both cancels. majority, greedy: (difference, wins, losses, p).
    """
    ours, theirs = a["per_question"], b["per_question"]
    one, other = len(ours["sampled"]), len(theirs["sampled"])
    if one != other:
        raise ValueError(f"not the same questions: {one} and {other}")
    gains = np.subtract(ours["sampled"], theirs["sampled"])
    found = {"sampled": (a["sampled"] - b["sampled"], *bootstrap(gains, seed))}
    for key in ("majority", "greedy"):
        found[key] = (a[key] - b[key], *mcnemar(ours[key], theirs[key]))
    return found


HEADER = "set|model|sampled (95 %)|greedy (95 %)|majority|no answer|of readable|questions"
CELLS = (
    "{sampled:.1%} ({sampled_low:.1%}–{sampled_high:.1%})|{greedy:.1%} ({greedy_low:.1%}–"
    "{greedy_high:.1%})|{majority:.1%}|{unread:.1%}|{of_readable:.1%}|{questions}"
)


def overview(results):
    """{(set, model): figures} -> Markdown, in %."""
    table = []
    for (bench, model), figures in results.items():
        cells = CELLS.format(**figures).replace("%", "").split("|")
        table.append([Path(bench).name, model, *cells])
    return markdown(HEADER.split("|"), table)


def difference(comparison):
    """The paired comparison in words, one line per figure."""
    gain, low, high = (100 * value for value in comparison["sampled"])
    lines = [
        "On {set}, {model} minus {other}, paired on the same questions:".format(**comparison),
        f"  sampled   {gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}",
    ]
    for key in ("majority", "greedy"):
        gain, wins, losses, p = comparison[key]
        alone = f"right alone on {wins}, wrong alone on {losses}"
        lines.append(f"  {key:9} {100 * gain:+.1f} points: {alone}, McNemar exact p = {p:.2g}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ command line


def parse(arguments):
    parser = argparse.ArgumentParser("eval.py", allow_abbrev=False, description="Accuracy")
    add = parser.add_argument
    add("--model", default="tiny", help="tiny, a folder, Qwen2-VL-2B, or any hub id")
    add("--compare", nargs="+", default=[], metavar="OTHER", help="models to compare with, paired")
    sets = "charts, FILE.jsonl, FILE.parquet, a dataset's folder, hub id or name, or paper: all 12"
    add("--bench", nargs="+", default=["charts"], metavar="SET", help=sets)
    add("-n", type=int, help="samples per question [8 on charts, else 1]")
    add("--questions", type=int, help="how many: the first ones [400 charts, else all]")
    add("--seed", type=int, default=0, help="of the charts and the samples")
    add("--max-new-tokens", type=int, help="limit of one reply [512 on charts, else 4096]")
    add("--out", default="runs/eval", help="folder of the replies and the tables")
    add("--rescore", action="store_true", help="ask nobody: score the replies that are there")
    add("--judge", metavar="MODEL", help="a model that decides where the rule says no")
    add("--report", metavar="RUN", help="write RUN/report.html, and do nothing else")
    add("--png", metavar="FILE", help="with --report: the main curves as a figure, too")
    options = parser.parse_args(arguments)
    counts = (options.n, options.questions, options.max_new_tokens)
    if options.seed < 0 or any(count is not None and count < 1 for count in counts):
        parser.error("-n, --questions and --max-new-tokens must be 1 or more, --seed 0 or more")
    options.models = [options.model, *options.compare]
    if len(set(options.models)) < len(options.models):
        parser.error("--compare needs other models than --model, each once")
    if options.png and not options.report:
        parser.error("--png goes with --report")
    sets = [benchmarks.SETS if bench == "paper" else [bench] for bench in options.bench]
    options.bench = list(dict.fromkeys(itertools.chain(*sets)))
    return options


def path_of(options, model, bench):
    folder, name = (re.sub(r"[^\w.-]+", "-", text) for text in (model, bench))
    return Path(options.out, folder, f"{name}.jsonl")


def ask_all(options):
    """Ask every model what it was not asked yet."""
    weights, sets = {model: fingerprint(model) for model in options.models}, {}
    for bench in options.bench:
        if bench == "charts":
            rows = zip(*charts(options.questions or 400, options.seed))
            columns = ("image", "question", "answer", "content_type")
            rows = [dict(zip(columns, (*question, kind))) for question, kind in rows]
            sets[bench] = bench, rows, Path()
        else:
            sets[bench] = benchmarks.load(bench, options.questions)

    given = {key: vars(options)[key] for key in ("n", "max_new_tokens") if vars(options)[key]}
    for model in options.models:
        vlm = None  # one model at a time: a GPU need not hold two
        for bench, (name, rows, folder) in sets.items():
            settings = {"model": model, "weights": weights[model], "bench": bench}
            settings |= {"questions": len(rows), "seed": options.seed}
            settings |= (ON_CHARTS if bench == "charts" else ELSEWHERE) | given
            vlm = collect(path_of(options, model, bench), settings, name, rows, folder, vlm)


def kept(bench, options):
    """-> ({model: rows}, [what is left out, in words]). ValueError if replies are missing.

    What one model could not be asked is left out for all: comparisons are on the same questions.
    """
    found, unusable = {}, {}
    for model in options.models:
        path = path_of(options, model, bench)
        settings, *found[model] = read_jsonl(path) or [{}]
        if len(found[model]) != settings.get("questions"):
            raise ValueError(f"{path} is missing or not complete: run without --rescore")
        unusable |= {row["index"]: row["unusable"] for row in found[model] if "unusable" in row}
    for model, rows in found.items():
        found[model] = [row for row in rows if row["index"] not in unusable]
    named = [f"  question {i + 1}: {reason}" for i, reason in sorted(unusable.items())]
    if not found[model]:
        raise ValueError(f"{bench}: no question can be used; {named[0].strip()}")
    about = f"{bench}: {len(named)} of {len(rows)} questions cannot be used and are left out"
    return found, ["\n".join([about, *named])] if named else []


def with_parts(results, found, options, accepted):
    """And the figures of each type of question, and the mean over several sets."""
    shown = dict(results)
    for (bench, model), rows in found.items():
        types = sorted({row["type"] for row in rows})
        for kind in types if 1 < len(types) <= 20 else []:
            own = [row for row in rows if row["type"] == kind]
            shown[f"{bench}, {kind.replace('/', ' ')}", model] = grade(own, accepted, options.seed)
    for model in options.models if len(options.bench) > 1 else []:
        shown["macro average", model] = macro([results[bench, model] for bench in options.bench])
    return shown


def scores(options):
    """Ask what was not asked yet, score all -> the tables. `options.out` keeps them."""
    if not options.rescore:
        ask_all(options)
    out, found, notes, accepted = Path(options.out), {}, [], frozenset()
    for bench in options.bench:
        rows, left_out = kept(bench, options)
        found |= {(bench, model): rows[model] for model in options.models}
        notes += left_out
    if options.judge:
        rows = itertools.chain(*found.values())
        accepted, asked = judge(options.judge, rows, out / "judge.jsonl")
        overruled = f"overruled {len(accepted)} of {asked} answers that the rule calls wrong."
        notes.append(f"The judge {options.judge} {overruled}")

    results = {key: grade(rows, accepted, options.seed) for key, rows in found.items()}
    comparisons = []
    for bench, other in itertools.product(options.bench, options.compare):
        gains = compare(results[bench, options.model], results[bench, other], options.seed)
        comparisons.append({"set": bench, "model": options.model, "other": other} | gains)
    shown = with_parts(results, found, options, accepted)
    text = "\n\n".join([overview(shown), *notes, *map(difference, comparisons)])
    (out / "results.md").write_text(text + "\n", encoding="utf-8")
    rows = [{"set": bench, "model": model} | figures for (bench, model), figures in shown.items()]
    rows = [{key: row[key] for key in row if key != "per_question"} for row in rows]
    figures = {"results": rows, "comparisons": comparisons, "notes": notes}
    (out / "results.json").write_text(json.dumps(figures, indent=2))
    return text
