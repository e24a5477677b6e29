r"""Any set of questions: ask once, keep every reply, judge, compare. This is what eval.py does.

    rows  -- collect -->  OUT/MODEL/SET.jsonl  -- judge, grade -->  figures  -->  tables

The file has a line of settings and a line per question, with a digest of all that decides its
replies: what is asked, and how. A stopped evaluation goes on with any number of ranks: each asks a
slice of a chunk, and rank 0 writes. What has changed is asked again, what has a new key is graded
again. It ends as a fresh one. Replies that count no more go to SET.jsonl.old, should they again.
Deviations from the authors: their judge reads every reply, ours what the rule calls wrong. Of a
reply without a box it reads the end, theirs the beginning (--judge-start).
"""

import argparse
import hashlib
import itertools
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval import charts
from generate import generate
from prompts import PROMPTS, fill
from support import screen
from support.answers import extract_answer, vote
from support.choices import meant
from support.figures import figures, gains, interval, mean, overview, shares
from support.parallel import gather, rank, rank_slice, world
from support.run_folder import hold, read_jsonl
from tools import benchmarks, judge, report
from tools.judge import append, fingerprint, replace
from vlm import VLM

CHUNK = 128  # questions of each rank between two writes
# As in training.
ON_CHARTS = {"samples": 8, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 512}
ON_CHARTS |= {"prompt": "training", "greedy": True}
# As the authors ask (docs/paper.md), with a prompt of our own.
ELSEWHERE = {"samples": 1, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 4096}
ELSEWHERE |= {"prompt": "neutral", "greedy": False}
LARGEST = 1280 * 1280  # pixels of a picture
NAMES = ("model", "bench", "questions")  # settings on which no reply depends


# ------------------------------------------------------------------------------------ the replies


def collect(path, settings, bench, source, vlms):
    """Ask the questions that `path` has no replies to, chunk by chunk -> a row for each question.

    bench: from `benchmarks.load`. source: of the model; None: ask nobody (ValueError if it must be
    asked). vlms: {source: the model that is loaded}, changed here.
    """
    before, *kept = read_jsonl(path) or [{}]
    archive = path.with_name(f"{path.name}.old")
    if source is None:
        settings["checkpoint"] = before.get("checkpoint")
    known = {}
    for row in read_jsonl(archive) + kept:
        if "replies" in row or source is None:  # what could not be used is tried again
            known[row.get("digest", "")] = row
    numbers = range(settings["questions"])
    rows, mended = gather([look(i, settings, bench) for i in rank_slice(numbers)]), 0
    for i, row in enumerate(rows):
        own = known.get(row.get("digest"), row)
        rows[i] = own | row
        mended += rows[i] != own

    lacking = [i for i, row in enumerate(rows) if not row.keys() & {"replies", "unusable"}]
    if lacking and source is None:
        raise ValueError(f"{path} is missing or not complete: run without --rescore")
    digests = {row.get("digest", "") for row in rows}
    old = [row for row in kept if "replies" in row and row.get("digest") not in digests]
    changed = sum(row["index"] in numbers for row in old)
    title = f"{settings['model']}, {settings['bench']}"
    if changed or mended:
        print(f"{title}: {changed} questions changed and are asked again; {mended} have a new key")
    if not before:
        append(path, [settings])
    size = CHUNK * world()
    starts = range(0, len(lacking), size)
    for start in screen.bar(starts, title, " chunks", shown=bool(starts)):
        chunk = lacking[start : start + size]
        new = gather(ask(vlms, source, settings, rank_slice(chunk), bench))
        append(path, new)
        for i, row in zip(chunk, new):
            rows[i] = row
    if old:
        append(archive, old)
    replace(path, [settings, *rows])
    return rows


def look(number, settings, bench):
    """A question as it is kept, without replies. Its digest is of all that these depend on."""
    name, rows, folder = bench
    try:
        question = benchmarks.question(rows[number], name, folder, pictures=False)
    except ValueError as error:
        return {"index": number, "unusable": str(error)}
    how = [item for item in sorted(settings.items()) if item[0] not in NAMES]
    wording = {"neutral": benchmarks.NEUTRAL, "training": PROMPTS["solver"]}[settings["prompt"]]
    asked = repr((number, question.digest, wording, how)).encode()
    row = {"index": number} | vars(question) | {"pictures": len(question.pictures)}
    row |= {"answers": [*question.answers], "choices": [*question.choices]}
    return row | {"digest": hashlib.blake2b(asked, digest_size=16).hexdigest()}


def ask(vlms, source, settings, numbers, bench):
    """The replies to the questions of these numbers -> a row of each.

    A question that cannot be used costs itself: it is kept with the reason.
    """
    (name, rows, folder), new, prompts = bench, {}, {}
    for i in numbers:
        new[i] = look(i, settings, bench)
        if source not in vlms:
            vlms.clear()  # one at a time: a GPU need not hold two
            vlms[source] = VLM.load(source)
            vlms[source].max_pixels = min(vlms[source].max_pixels, LARGEST)
        system, template = benchmarks.NEUTRAL, "{question}"
        if settings["prompt"] == "training":
            system, template = "", vlms[source].prompts["solver"]
        try:
            question = benchmarks.question(rows[i], name, folder)
            prompts[i] = vlms[source].encode(question.parts(template), system=system)
        except Exception as error:  # a stranger's file may break any decoder in any way
            new[i]["unusable"] = benchmarks.one_line(error)

    # By their numbers the replies are those of one long call: one may stop and go on anywhere.
    ways = {"replies": {key: settings[key] for key in ("temperature", "top_p")}}
    ways["replies"]["n"] = settings["samples"]
    if settings["greedy"]:
        ways["greedy"] = {"temperature": 0.0}
    limits = {key: settings[key] for key in ("max_new_tokens", "seed")}
    for field, way in ways.items() if prompts else ():
        found = generate(vlms[source], [*prompts.values()], numbers=[*prompts], **way, **limits)
        for i, replies in zip(prompts, found):
            new[i][field] = [reply.text for reply in replies]
    return list(new.values())


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


def as_choice(answer, choices):
    """An answer as the letters of the choices that it means: a vote counts choices, not texts.

    >>> as_choice("B. blue", ["red", "blue"]), as_choice("Blue", ["red", "blue"])
    ('B', 'B')
    """
    numbers = meant(answer, choices) if answer and choices else ()
    return ", ".join(chr(65 + number) for number in sorted(numbers)) or answer


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
        answers = [as_choice(answer, row["choices"]) for answer in answers]
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


# ----------------------------------------------------------------------------------- all of it


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
            missing[bench] = benchmarks.one_line(error)
    for lost in gather([missing]):  # what one rank lacks, none asks
        missing |= lost
    return sets, missing


def ask_all(options):
    """Ask every model what it was not asked yet -> {(set, model): rows}, {set: why it has none}"""
    models = {model: (None, None) for model in options.models}
    if not options.rescore:
        models = {model: (name, fingerprint(name)) for model, name in options.models.items()}
    (sets, missing), found, vlms = load_sets(options), {}, {}
    given = {key: vars(options)[key] for key in ON_CHARTS if vars(options).get(key)}
    for model, (source, checkpoint) in models.items():
        for bench in [bench for bench in options.sets if bench not in missing]:
            settings = {"model": model, "checkpoint": checkpoint, "bench": bench}
            settings |= {"questions": len(sets[bench][1]), "seed": options.seed}
            settings |= (ON_CHARTS if bench == "charts" else ELSEWHERE) | given
            path = path_of(options, model, bench)
            try:
                found[bench, model] = collect(path, settings, sets[bench], source, vlms)
            except ValueError as error:
                if not options.rescore:
                    raise
                missing[bench] = str(error)
    return found, missing


def comparable(found, missing, options):
    """-> {(set, model): rows that can be compared}, {set: how many others}, notes.

    A question that one model could not be asked is left out for all. ValueError: a set has none.
    """
    used, left_out, notes = {}, {}, []
    for bench, source in options.sets.items():
        own = {model: found.get((bench, model), []) for model in options.models}
        flaws, flaw = {}, missing.get(bench)
        for row in itertools.chain(*own.values()):
            if "unusable" in row:
                flaws[row["index"]] = f"question {row['index'] + 1}: {row['unusable']}"
        for model, rows in own.items():
            used[bench, model] = [row for row in rows if row["index"] not in flaws]
        named = [flaws[number] for number in sorted(flaws)]
        if flaw is None and not used[bench, model]:
            flaw = f"no question can be used; {named[0]}"
        if flaw is not None and source != options.paper.get(bench):
            raise ValueError(f"{bench}: {flaw}")
        if flaw is not None:
            notes.append(f"{bench} is skipped: {flaw}")
        elif flaws:
            count = f"{len(flaws)} of {len(rows)} questions"
            notes.append("\n  ".join([f"{bench}: {count} cannot be used and are left out", *named]))
        left_out[bench] = len(flaws)
    used = {key: rows for key, rows in used.items() if rows}
    if not used:
        raise ValueError(f"no set can be had; {notes[0]}")
    return used, left_out, notes


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
    found, left_out, notes = comparable(*ask_all(options), options)
    accepted = None
    if options.judge:
        accepted, note = judged(found, options)
        notes.append(note)
    results = results_of(found, options, accepted)
    text = "\n\n".join([overview(results, next(iter(options.models))), *notes])
    if rank() == 0:
        Path(options.out, "results.md").write_text(text + "\n", encoding="utf-8")
        path, rows = Path(options.out, "results.jsonl"), []
        if options.run:  # its page shows the sets of all calls
            means = re.compile("micro average|mean of .*")
            for row in read_jsonl(path):
                if row["set"] not in options.sets and not means.fullmatch(row["set"]):
                    rows.append(row)
        for (bench, model), own in results.items():
            row = {key: own[key] for key in own if key not in ("per_question", "wrong")}
            row |= {"judge": options.judge, "left_out": left_out.get(bench)}
            rows.append({"set": bench, "model": model} | row)
        replace(path, rows)
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


if __name__ == "__main__":
    import eval

    eval.main()
