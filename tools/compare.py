r"""Any set of questions: ask once, keep every reply, judge, compare. This is what eval.py does.

    rows  -- collect -->  OUT/MODEL/SET.jsonl  -- judge, grade -->  figures  -->  tables

The file has a line of settings and a line per question. A stopped evaluation goes on after them,
with any number of ranks: each asks a slice of a chunk, and rank 0 writes.
Deviations from the authors: their judge reads every reply, ours what the rule calls wrong. Of a
reply without a box it reads the end, theirs the beginning (--judge-start).
"""

import argparse
import itertools
import json
import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from eval import charts, figures, interval, markdown
from generate import generate
from prompts import fill
from support.answers import extract_answer, vote
from support.parallel import gather, rank, rank_slice, world
from support.run_folder import hold, read_jsonl
from tools import benchmarks, judge, report
from tools.judge import append, fingerprint
from vlm import VLM

CHUNK = 128  # questions of each rank between two writes
# As in training.
ON_CHARTS = {"samples": 8, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 512}
ON_CHARTS |= {"prompt": "training", "greedy": True}
# As the authors ask (docs/paper.md), with a prompt of our own.
ELSEWHERE = {"samples": 1, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 4096}
ELSEWHERE |= {"prompt": "neutral", "greedy": False}
LARGEST = 1280 * 1280  # pixels of a picture


# ------------------------------------------------------------------------------------ the replies


def collect(path, settings, source, name, rows, folder, vlm=None):
    """Ask the questions that `path` lacks and append the replies, chunk by chunk.

    source: of the model. -> the model, if it was needed. ValueError if other settings made `path`.
    """
    if not read_jsonl(path):
        append(path, [settings])
    before, *answered = read_jsonl(path) or [settings]
    for key, value in settings.items():
        if before.get(key) != value:
            changed = f"{key} {before.get(key)!r} there, {value!r} now"
            raise ValueError(f"{path} is of another evaluation ({changed}): give another --out")

    size = CHUNK * world()
    starts = range(len(answered), len(rows), size)
    title = f"{settings['model']}, {settings['bench']}"
    for start in tqdm(starts, title, unit="chunk", disable=not starts or rank() > 0):
        if vlm is None:
            vlm = VLM.load(source)
            vlm.max_pixels = min(vlm.max_pixels, LARGEST)
        numbers = rank_slice(range(start, min(start + size, len(rows))))
        append(path, gather(ask(vlm, settings, numbers, name, rows, folder)))
    return vlm


def ask(vlm, settings, numbers, name, rows, folder):
    """The replies to the questions of these numbers -> a dict of each.

    A row that cannot be used costs its own question: it is kept with the reason.
    """
    new, prompts = {}, {}
    system, template = benchmarks.NEUTRAL, "{question}"
    if settings["prompt"] == "training":
        system, template = "", vlm.prompts["solver"]
    for i in numbers:
        try:
            question = benchmarks.question(rows[i], name, folder)
            prompts[i] = vlm.encode(question.parts(template), system=system)
        except Exception as error:  # a stranger's file may break any decoder in any way
            new[i] = {"index": i, "unusable": " ".join(str(error).split()) or repr(error)}
        else:
            new[i] = {"index": i} | vars(question) | {"pictures": len(question.pictures)}

    # By their numbers the replies are those of one long call: one may stop and go on anywhere.
    ways = {"replies": {key: settings[key] for key in ("temperature", "top_p")}}
    ways["replies"]["n"] = settings["samples"]
    if settings["greedy"]:
        ways["greedy"] = {"temperature": 0.0}
    same = {key: settings[key] for key in ("max_new_tokens", "seed")}
    for field, way in ways.items():
        found = generate(vlm, [*prompts.values()], numbers=[*prompts], **way, **same)
        for i, replies in zip(prompts, found):
            new[i][field] = [reply.text for reply in replies]
    return list(new.values())


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


# ------------------------------------------------------------------------------------ the figures

JUDGE = """Here are a question, its right answer, and a student's answer or a piece of the reply.
Question: {text}
Right answer: {gold}
The student: {given}
Does the student's answer say the same as the right one? Differences of wording, of form, and of \
units that go without saying do not count. Reply with one word, yes or no."""
SHOWN = 600  # characters


def wrong(reply, row, start=False):
    """None if the rule calls the reply right, else what a judge is asked about it."""
    answer = extract_answer(reply)
    if benchmarks.right(answer, row):
        return None
    if answer is None:
        answer = reply[:SHOWN] if start else reply[-SHOWN:]
    gold = " or ".join(row["answers"])
    return fill(JUDGE, text=row["text"], gold=gold, given=answer[:SHOWN])


def grade(rows, accepted=None, seed=0, start=False):
    """Kept rows -> `figures`, and more. accepted: what the judge says yes to; None: there is none.

    wrong: what a judge is asked, a text for each reply that the rule calls wrong.
    """
    yes, texts, unread = {None} | (accepted or set()), [], []
    hits = {"sampled": [], "majority": [], "greedy": []}
    for row in rows:
        asked = [wrong(reply, row, start) for reply in row["replies"]]
        hits["sampled"].append(float(np.mean([text in yes for text in asked])))
        # The winner is one of the answers, and right if that one is.
        answers = [extract_answer(reply) for reply in row["replies"]]
        winner = vote(answers)[0]
        won = winner is not None and asked[answers.index(winner)] in yes
        hits["majority"].append(float(won))
        greedy = [wrong(reply, row, start) for reply in row.get("greedy", [])]
        hits["greedy"] += [float(text in yes) for text in greedy]
        texts += filter(None, asked + greedy)
        unread.append(answers.count(None) / len(answers))
    if len(answers) == 1:
        del hits["majority"]  # it says the same
    if len(hits["greedy"]) < len(rows):
        del hits["greedy"]  # not asked in all sets

    found = figures(hits, seed) | {"n": len(answers), "unread": float(np.mean(unread))}
    if "greedy" in hits:
        found["greedy_low"], found["greedy_high"] = interval(hits["greedy"])
    if accepted is not None:
        found["overruled"] = sum(text in yes for text in texts)
    return found | {"wrong": texts, "by_rule": len(texts)}


def gains(ours, theirs):
    """Two results on the same questions -> how much better ours is: sampled_gain, its ends, ..."""
    found = {}
    for key, values in ours["per_question"].items():
        others = theirs["per_question"][key]
        if len(values) != len(others):
            raise ValueError(f"not the same questions: {len(values)} and {len(others)}")
        ends = paired(np.subtract(values, others))
        found[f"{key}_gain"] = ours[key] - theirs[key]
        found[f"{key}_gain_low"], found[f"{key}_gain_high"] = ends
    return found


def paired(differences):
    """95 % interval of the mean difference on the same questions.

    A question is drawn with the accuracy of both, so that what makes it hard for both cancels.
    Where both are right on most, a bootstrap is too sure of itself: two more questions, each right
    for one alone, mend that (Bonett and Price 2012).
    """
    more = np.append(differences, [1, -1])
    middle, half = more.mean(), 1.959964 * more.std() / math.sqrt(len(more))
    return float(max(-1, middle - half)), float(min(1, middle + half))


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
    """
    average = {"questions": sum(found["questions"] for found in results.values())}
    for key in "sampled majority greedy unread sampled_gain majority_gain".split():
        if not all(key in found for found in results.values()):
            continue
        middle, below, above = 0.0, 0.0, 0.0
        for name, share in shares(results).items():
            found, value = results[name], results[name][key]
            middle += share * value
            below = math.hypot(below, share * (value - found.get(f"{key}_low", value)))
            above = math.hypot(above, share * (found.get(f"{key}_high", value) - value))
        average[key] = middle
        if f"{key}_low" in found:
            average |= {f"{key}_low": middle - below, f"{key}_high": middle + above}
    return average


# ------------------------------------------------------------------------------------ the tables

HEADER = "set|model|sampled (95 %)|majority|greedy (95 %)|no answer|overruled|questions"
CELLS = (
    "{sampled:.1%} ({sampled_low:.1%}–{sampled_high:.1%})|{majority:.1%}|"
    "{greedy:.1%} ({greedy_low:.1%}–{greedy_high:.1%})|{unread:.1%}|"
    "{overruled:.0f} of {by_rule:.0f}|{questions}|"
    "{sampled_gain:+.1%} ({sampled_gain_low:+.1%} to {sampled_gain_high:+.1%})|"
    "{majority_gain:+.1%} ({majority_gain_low:+.1%} to {majority_gain_high:+.1%})"
)


def overview(results, first):
    """{(set, model): figures} -> Markdown, in %. A column of which nothing is known is left out."""
    rows = [f"{HEADER}|minus {first} (95 %)|majority minus {first}".split("|")]
    for (bench, model), found in results.items():
        text = CELLS.format_map(defaultdict(lambda: math.nan, found)).replace("%", "")
        text = re.sub(r"[^|]*nan[^|]*", "–", text)
        rows.append([Path(bench).name, model, *text.split("|")])
    columns = [column for column in zip(*rows) if set(column[1:]) != {"–"}]
    header, *rows = zip(*columns)
    return markdown(header, rows)


def path_of(options, model, bench):
    folder, name = (re.sub(r"[^\w.-]+", "-", text) for text in (model, bench))
    return Path(options.out, folder, f"{name}.jsonl")


def load_sets(options):
    """-> {set: (name, rows, folder of their pictures)}, {set of the paper: why it cannot be had}"""
    sets, missing = {}, {}
    for bench, source in options.sets.items():
        try:
            if bench == "charts":
                asked, _ = charts(options.questions or 400, options.seed)
                rows = [dict(zip(("image", "question", "answer"), question)) for question in asked]
                sets[bench] = bench, rows, Path()
            else:
                sets[bench] = benchmarks.load(source, options.questions)
        except (OSError, ValueError) as error:
            if source != options.paper.get(bench):
                raise
            missing[bench] = " ".join(str(error).split())
    for lost in gather([missing]):  # what one rank lacks, none asks
        missing |= lost
    return {bench: rows for bench, rows in sets.items() if bench not in missing}, missing


def ask_all(options):
    """Ask every model what it was not asked yet -> {set of the paper: why it cannot be had}"""
    weights = {m: fingerprint(source) for m, source in options.models.items()}
    sets, missing = load_sets(options)
    given = {key: vars(options)[key] for key in ON_CHARTS if vars(options).get(key)}
    for model, source in options.models.items():
        vlm = None  # one model at a time: a GPU need not hold two
        for bench, (name, rows, folder) in sets.items():
            settings = {"model": model, "weights": weights[model], "bench": bench}
            settings |= {"questions": len(rows), "seed": options.seed}
            settings |= (ON_CHARTS if bench == "charts" else ELSEWHERE) | given
            path = path_of(options, model, bench)
            vlm = collect(path, settings, source, name, rows, folder, vlm)
    gather([None])  # rank 0 has written all
    return missing


def judged(found, options):
    """-> (what the judge says yes to, a note). It is asked all that the rule calls wrong."""
    asked = [grade(rows, start=options.judge_start)["wrong"] for rows in found.values()]
    replies = judge.ask(options.judge, set().union(*asked), Path(options.out, "judge.jsonl"))
    verdicts = {text: judge.verdict(reply) for text, reply in replies.items()}
    unclear = list(verdicts.values()).count(None)
    note = f"{options.judge} judged {len(verdicts)} answers that the rule calls wrong"
    note += f"; {unclear} of its replies are neither yes nor no, and count as no."
    return {text for text, verdict in verdicts.items() if verdict}, note


def results_of(found, options, accepted):
    """{(set, model): rows} -> {(set, model): figures}; of several sets also their means."""
    sets, parts = list(dict.fromkeys(bench for bench, _ in found)), dict(found)
    several = options.models if len(sets) > 1 else []
    for model in several:
        rows = [found[bench, model] for bench in sets]
        parts["micro average", model] = list(itertools.chain(*rows))
    results, first = {}, next(iter(options.models))
    for (bench, model), rows in parts.items():
        own = grade(rows, accepted, options.seed, options.judge_start)
        if model != first:
            own |= gains(own, results[bench, first])
        results[bench, model] = own
    count, asked = (round(1 / max(shares(names).values())) for names in (sets, options.sets))
    name = f"mean of {count}" if count == asked else f"mean of {count} of {asked}"
    for model in several:
        results[name, model] = mean({bench: results[bench, model] for bench in sets})
    return results


def scores(options):
    """Ask what was not asked yet, score all -> the tables. `options.out` keeps them."""
    hold(Path(options.out))
    if options.judge:
        judge.find(options.judge)  # before anything is asked
    if options.run:
        options.models = solvers(options.run)
    missing = {} if options.rescore else ask_all(options)
    found, notes = {}, []
    for bench, source in options.sets.items():
        try:
            rows, left_out = kept(bench, options)
        except ValueError as error:
            if source != options.paper.get(bench):
                raise
            notes.append(f"{bench} is skipped: {missing.get(bench, error)}")
            continue
        found |= {(bench, model): rows[model] for model in options.models}
        notes += left_out
    if not found:
        raise ValueError(f"no set can be had; {notes[0]}")
    accepted = None
    if options.judge:
        accepted, note = judged(found, options)
        notes.append(note)

    results = results_of(found, options, accepted)
    text = "\n\n".join([overview(results, next(iter(options.models))), *notes])
    if rank() == 0:
        Path(options.out, "results.md").write_text(text + "\n", encoding="utf-8")
        with open(Path(options.out, "results.jsonl"), "w") as file:
            for (bench, model), found in results.items():
                row = {key: found[key] for key in found if key not in ("per_question", "wrong")}
                file.write(json.dumps({"set": bench, "model": model} | row) + "\n")
        if options.run:
            text += f"\n\nreport: {report.report(options.run)}"
    return text


# ------------------------------------------------------------------------------------ command line


def parse(arguments):
    parser = argparse.ArgumentParser("eval.py", allow_abbrev=False, description="Accuracy")
    add = parser.add_argument
    add("--model", default="tiny", help="tiny, a folder, Qwen2-VL-2B, or any hub id")
    add("--compare", nargs="+", default=[], metavar="OTHER", help="models to lay beside it")
    add("--run", metavar="RUN", help="the base of a run and its Solvers; tables go into RUN/eval")
    sets = "charts, FILE.jsonl, FILE.parquet, a dataset's folder, hub id or name, or paper: all 12"
    add("--bench", nargs="+", default=["charts"], metavar="SET", help=sets)
    add("--data", metavar="FOLDER", help="has the sets of paper: NAME, NAME.jsonl or .parquet")
    add("-n", "--samples", type=int, help="replies per question [8 on charts, else 1]")
    add("--greedy", action="store_true", help="and one greedy reply [on charts always]")
    add("--prompt", choices=("neutral", "training"), help="[training on charts, else neutral]")
    add("--questions", type=int, help="how many: the first ones [400 charts, else all]")
    add("--seed", type=int, default=0, help="of the charts and the samples")
    add("--max-new-tokens", type=int, help="limit of one reply [512 on charts, else 4096]")
    add("--out", help="folder of the replies and the tables [runs/eval]")
    add("--rescore", action="store_true", help="ask nobody: score the replies that are there")
    add("--judge", metavar="MODEL", help="a text model that decides where the rule says no")
    add("--judge-start", action="store_true", help="without a box it sees the start of the reply")
    add("--report", metavar="RUN", help="write RUN/report.html, and do nothing else")
    add("--png", metavar="FILE", help="with --report: the main curves as a figure, too")
    options = parser.parse_args(arguments)
    counts = (options.samples, options.questions, options.max_new_tokens)
    if options.seed < 0 or any(count is not None and count < 1 for count in counts):
        parser.error("--samples, --questions, --max-new-tokens must be 1 or more, --seed 0 or more")
    models = [options.model, *options.compare]
    if len(set(models)) < len(models):
        parser.error("--compare needs other models than --model, each once")
    if options.png and not options.report:
        parser.error("--png goes with --report")
    if options.run and models != ["tiny"]:
        parser.error("--run brings its models: no --model, no --compare")
    if options.data and "paper" not in options.bench:
        parser.error("--data goes with --bench paper")

    options.models = {model: model for model in models}  # {what it is called: where it is}
    options.out = options.out or str(Path(options.run or "runs", "eval"))
    options.sets, options.paper = {}, benchmarks.paper(options.data)
    for bench in options.bench:
        options.sets |= options.paper if bench == "paper" else {bench: bench}
    return options


def solvers(run):
    """{"base": what a run's Solver started from, "it 1": its Solver, ...}"""
    config, _ = report.read_run(Path(run))
    folders = {int(path.parent.name[4:]): path for path in Path(run).glob("iter*/solver")}
    base = config["settings"].get("start_solver") or config["model"]
    return {"base": base} | {f"it {k}": str(folders[k]) for k in sorted(folders)}
