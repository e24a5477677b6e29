"""The report of a run: one HTML page with its loop, table, curves, label audit and gallery, readable without scripts.

    report("runs/first")  ->  runs/first/report.html          (also: python eval.py --report runs/first)

Read from the run folder: config.json, metrics.jsonl, iterK/probe.jsonl, and audit.jsonl where `eval.py --audit` wrote
one. What a run in progress has not written yet is left out. Curves are inline SVG in the palette of Okabe and Ito
(lightened on dark ground), which colour-blind readers can tell apart; report.css becomes a part of the page.

Everything a model wrote (captions, answers, code, errors) is untrusted: it passes through `esc` on its way
into the page, pictures are decoded and encoded again, and the page's own policy forbids scripts and network.
"""
import base64
import html
import io
import json
import math
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from answers import answers_match

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
PHASES = ("proposer", "coder", "solver")        # role i is drawn in colour class c{i}
COLOURS = dict(re.findall(r"--(c\d|gr)\w*: (#\w+)", STYLE[:STYLE.index("@media")]))       # of light ground, for paper
SHOWN = 24                                      # gallery entries per iteration: the page stays far below 5 MB


def esc(value):
    return html.escape(str(value), quote=True)


def finite(x):
    return isinstance(x, (int, float)) and math.isfinite(x)


# -------------------------------------------------------------------------------------------- the run folder

def read_jsonl(path):
    """Lines of JSON; a last line without its newline is still being written and is left for the next time."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        raise ValueError(f"{path} has a line that is not JSON") from None


def read_run(folder):
    """-> (config, {"step" | "data" | "eval" | "audit": records}) in order; what a resumed run repeats counts once."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a run folder (no config.json): give the --out of a run")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    latest = {}
    for record in read_jsonl(folder / "audit.jsonl") + read_jsonl(folder / "metrics.jsonl"):
        latest[record["kind"], record["iteration"], record.get("phase"), record.get("step")] = record
    records = sorted(latest.values(), key=lambda r: (r["iteration"], r.get("step", 0)))
    return config, {kind: [r for r in records if r["kind"] == kind] for kind in ("step", "data", "eval", "audit")}


def cells(evals):
    """Eval records -> header and rows of the results, on the page and the terminal (`table` in eval.py)."""
    def number(r, key, scale=100, digits=1):    # 100 goes without decimals: a terminal is 100 columns wide
        return f"{scale * r[key]:.{digits}f}".replace("100.0", "100") if finite(r.get(key)) else "–"

    header = ["", "held-out (95 %)", f"maj@{evals[0].get('n', 8) if evals else 8}", *"greedy easy valid render".split(),
              "solvable", "difficulty", "types"]
    return header, [
        [f"it {r['iteration']}" if r["iteration"] else "base",
         f"{number(r, 'sampled')} ({number(r, 'sampled_low')}–{number(r, 'sampled_high')})",
         *(number(r, key) for key in ("majority", "greedy", "easy", "valid", "render")),
         *(number(r, key, 1, 2) for key in ("solvability", "difficulty", "type_entropy"))] for r in evals]


# ---------------------------------------------------------------------------------------------------- figures
# One coordinate system for all, a viewBox of W x H; X and Y map data into it. The x axis is the iteration.
W, H, LEFT, RIGHT, TOP, BOTTOM = 350, 214, 40, 8, 24, 34


def ticks(low, high, most=5):
    """Round numbers that cover low..high in at most `most` steps.

    >>> ticks(0, 0.7), ticks(-3, 12)
    ([0.0, 0.2, 0.4, 0.6, 0.8], [-5.0, 0.0, 5.0, 10.0, 15.0])
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def axes(start, end, ys, label):
    """-> (X, Y, svg of the frame): x from `start` to `end`, y over the ticks `ys` with `label` above."""
    X = lambda x: LEFT + (x - start) / (end - start) * (W - LEFT - RIGHT)
    Y = lambda y: H - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (H - TOP - BOTTOM)
    svg = ""
    for y in ys:
        text = f"{y:g}".replace("e-0", "e-")
        svg += (f'<path class="{"grid" if y else "zero"}" d="M{LEFT} {Y(y):.1f}H{W - RIGHT}"/>'
                f'<text class="end" x="{LEFT - 6}" y="{Y(y) + 3.5:.1f}">{text}</text>')
    for x in range(math.ceil(start), math.floor(end) + 1, math.ceil((end - start) / 10)):
        svg += f'<text class="middle" x="{X(x):.1f}" y="{H - BOTTOM + 16}">{x or "base"}</text>'
    return X, Y, (f'{svg}<text class="end" x="{W - RIGHT}" y="{H - 4}">iteration →</text>'
                  f'<text x="{LEFT - 34}" y="{TOP - 13}">↑ {esc(label)}</text>')


def figure(title, note, svg, legend=(), table=""):
    """legend: (name, colour class) pairs. Title, legend and note are HTML, so that they wrap on a phone."""
    keys = "".join(f'<span class="{style}"><i></i>{esc(name)}</span>' for name, style in legend)
    drawing = f'<svg viewBox="0 0 {W} {H}" role="img" aria-label="{esc(title)}">{svg}</svg>'
    return (f'<figure{" class=wide" * bool(table)}><h3>{esc(title)}</h3><p class="key">{keys}</p>'
            f'{table or drawing}<figcaption>{esc(note)}</figcaption></figure>')


def curve(title, note, series, label, scale=1, top=0):
    """One panel of lines; "" while there is nothing to draw.

    series: (name, colour class, points). A point is (x, y), or (x, y, low, high): low and high make a band.
    `scale` multiplies y (100 for %). The y axis always includes 0 and reaches `top` at least.
    Few measurements get a dot each, and the last of them stands in the legend.
    """
    lines = [(name, style, [(p[0], *(scale * v for v in p[1:])) for p in points if all(map(finite, p))])
             for name, style, points in series]
    if not (drawn := [line for line in lines if line[2]]):
        return ""
    xs = [p[0] for _, _, points in drawn for p in points]
    values = [v for _, _, points in drawn for p in points for v in p[1:]]
    low, high = min(0, *values), max(top, *values)
    # What has no value for the base starts half an iteration early: a single iteration stands in the middle.
    start, end = (0, max(1, *xs)) if min(xs) < 1 else (0.5, max(xs) + 0.5)
    X, Y, svg = axes(start, end, ticks(low, high if high > low else low + 1), label)
    path = lambda pairs: "M" + "L".join(f"{X(x):.1f} {Y(y):.1f}" for x, y in pairs)
    legend, few = [], max(len(points) for _, _, points in drawn) <= 12
    for name, style, points in drawn:
        if len(points[0]) == 4:
            outline = [(p[0], p[3]) for p in points] + [(p[0], p[2]) for p in reversed(points)]
            svg += f'<path class="band {style}" d="{path(outline)}Z"/>'
        svg += f'<path class="line {style}" d="{path(p[:2] for p in points)}"/>'
        if few:
            texts = [f"{name} {p[1]:{'.3g' if abs(p[1]) < 1000 else '.0f'}}" for p in points]
            svg += "".join(f'<circle class="{style}" cx="{X(p[0]):.1f}" cy="{Y(p[1]):.1f}" r="3">'
                           f'<title>{esc(text)}</title></circle>' for p, text in zip(points, texts))
            name = texts[-1]
        legend.append((name, style))
    return figure(title, note, svg, legend)


def boxes(title, note, groups, label):
    """One box per iteration: quartiles, median, whiskers from the 5th to the 95th percentile. {x: values}."""
    X, Y, svg = axes(min(groups, default=0) - 0.6, max(groups, default=0) + 0.6, ticks(0, 1), label)
    for x, values in groups.items():
        low, first, median, third, high = (round(Y(v), 1) for v in np.percentile(values, [5, 25, 50, 75, 95]))
        left, middle, right = (round(X(x + shift), 1) for shift in (-0.22, 0, 0.22))
        svg += (f'<path class="line c2" d="M{middle} {low}V{first}M{middle} {third}V{high}"/>'
                f'<path class="box c2" d="M{left} {third}H{right}V{first}H{left}Z"/>'
                f'<path class="line thick c2" d="M{left} {median}H{right}"/>')
    return groups and figure(title, note, svg)


def stacks(title, note, groups, label):
    """One bar of shares per iteration. {x: {name: count}}."""
    names = sorted(set().union(*groups.values()), key=lambda name: (name == "other", name))
    style = {name: "grey" if name == "other" else f"c{i % 7}" for i, name in enumerate(names)}
    X, Y, svg = axes(min(groups, default=0) - 0.6, max(groups, default=0) + 0.6, ticks(0, 100), label)
    for x, counts in groups.items():
        below, left, right = 0, round(X(x - 0.32), 1), round(X(x + 0.32), 1)
        for name in filter(counts.get, names):
            share = 100 * counts[name] / sum(counts.values())
            low, high = round(Y(below), 1), round(Y(below + share), 1)
            svg += (f'<path class="bar {style[name]}" d="M{left} {low}H{right}V{high}H{left}Z">'
                    f'<title>{esc(name)}: {share:.0f} %</title></path>')
            below += share
    return groups and figure(title, note, svg, style.items())


def meter(percent, style):
    return f'<span class="meter {style}"><i style="width:{percent:.1f}%"></i></span>'


def tr(first, *others):
    return f"<tr><th>{first}</th>{''.join(f'<td>{other}</td>' for other in others)}</tr>"


def funnel(records):
    """What each phase asked the Proposer for and what was left of it: a table, a bar under each number."""
    stages, rows = ("asked", "valid", "rendered", "evaluated", "kept"), ""
    for r in sorted(records, key=lambda r: (PHASES.index(r["phase"]), r["iteration"])):
        style = f"c{PHASES.index(r['phase'])}"
        rows += tr(f"{r['phase']} {r['iteration']}", *(
            f"{n:g}{meter(100 * n / max(r['asked'], 1), style)}" if finite(n) else "–" for n in map(r.get, stages)))
    body = f'<div class="scroll"><table class="funnel"><thead>{tr("", *stages)}</thead>{rows}</table></div>'
    return rows and figure("From proposals to training data", "What each phase asked of the Proposer, and how much was "
                           "parsed, drawn, answered, and kept.", "", table=body)


# ------------------------------------------------------------------------------------------------- the panels

def outcome_curves(evals, data, audits):
    """What is measured once per iteration (0 is the base), as arguments of `curve`: of the roles, of the labels."""
    def line(name, style, *keys, records=evals):
        return name, style, [(r["iteration"], *map(r.get, keys)) for r in records]

    def audit(**styles):
        return [line(key.replace("_", " "), style, key, records=audits) for key, style in styles.items()]

    kept = [line(p, f"c{i}", "kept", records=[r for r in data if r["phase"] == p]) for i, p in enumerate(PHASES)]
    return [
        ("Held-out accuracy", "On charts no role was trained on; the band is the 95 % interval.",
         [line("sampled", "c2", "sampled", "sampled_low", "sampled_high"), line("majority", "c0", "majority"),
          line("greedy", "c1", "greedy"), line("easy questions", "c3 dash", "easy")], "%", 100, 100),
        ("Proposals and pictures", "Replies of the Proposer that parse, codes of the Coder that draw.",
         [line("valid proposals", "c0", "valid"), line("rendered", "c1", "render")], "%", 100, 100),
        ("Solvability", "How often the Solver reads the Proposer's easy answer off the picture (s).",
         [line("s", "c2", "solvability")], "mean s", 1, 1),
        ("Difficulty", "min(c, 1 − c) of the hard question: highest when half of the answers agree.",
         [line("d", "c3", "difficulty")], "mean d", 1, 0.5),
        ("Easy–hard gap", "Agreement on easy questions minus agreement on hard ones.",
         [line("gap", "c4", "easy_hard_gap")], "gap", 1, 0),
        ("Variety of types", "Entropy of the content types: 0 is one type only, 1 is all types equally.",
         [line("entropy", "c0", "type_entropy")], "entropy", 1, 1),
        ("Length of code", "Mean tokens of one program by the Coder.", [line("tokens", "c1", "code_tokens")], "tokens"),
        ("Training sets", "Prompts left after the filters. The Coder's shrink as everything renders.", kept, "prompts"),
    ], [("Are the labels true?", "Labels and Proposer's answers that are true, where known; labels that equal the "
         "Proposer's answer.", audit(label_true="c2", proposer_true="c0", agree_proposer="c3 dash"), "%", 100, 100),
        ("Ways to cheat", "Labels also given without the picture; written into it; the commonest. Grey: questions with "
         "known truth.", audit(blind="c1", written="c4", top_label="c5", checkable="grey"), "%", 100, 100),
        ("Entropy of labels", "Of the votes behind one label (mean), and of all labels together.",
         audit(vote_entropy="c3", label_entropy="c0"), "nats")]


def training_curves(steps):
    """What is measured every step, as arguments of `curve`. Step t of T in iteration k stands at x = k - 1 + t / T."""
    def line(name, style, role, key):
        own = [r for r in steps if r["phase"] == role]
        last = max((r["step"] for r in own), default=1)
        return name, style, [(r["iteration"] - 1 + r["step"] / last, r.get(key)) for r in own]

    def roles(key):
        return [line(role, f"c{i}", role, key) for i, role in enumerate(PHASES)]

    def parts(role, **styles):
        return [line(key.replace("_", " "), style, role, key) for key, style in styles.items()]

    clips = [line(f"{role} {end}", f"c{i}{dash}", role, f"clip_{end}")
             for end, dash in (("high", ""), ("low", " dash")) for i, role in enumerate(PHASES)]
    return [
        ("Reward", "Mean over a step; each role has its own scale.", roles("reward"), "reward"),
        ("Proposer: what its proposals led to", "Means over a step.",
         parts("proposer", valid="c0", rendered="c1", solvability="c2", difficulty="c3"), "share", 1, 1),
        ("Proposer: penalties", "Too easy or hopeless (E), one type too often (T), texts alike (V).",
         parts("proposer", easy_hard="c4", type="c5", diversity="c3"), "taken off"),
        ("Coder: parts of its reward", "Means over a step.",
         parts("coder", rendered="c1", solvability="c2", difficulty="c3"), "share", 1, 1),
        ("Solver: parts of its reward", "Answers equal to the majority label; replies in the form asked for.",
         parts("solver", accuracy="c2", format="grey"), "share", 1, 1),
        ("KL to the start of the phase", "k3 estimate per token.", roles("kl"), "nats"),
        ("Entropy", "Of the next token, over the rollouts' own tokens.", roles("entropy"), "nats"),
        ("Clipped tokens", "Share of tokens whose ratio left the clip range.", clips, "%", 100),
        ("Gradient norm", "Before clipping.", roles("grad_norm"), "norm"),
        ("Groups without signal", "All rewards of a group are equal.", roles("zero_variance"), "%", 100, 100),
        ("Cut replies", "Rollouts stopped by the length limit.", roles("truncated"), "%", 100),
        ("Rollout against trainer", "Largest gap of a token's log-prob when sampled and when trained on.",
         roles("logp_gap"), "|Δ log p|")]


def figure_png(folder, path):
    """The main curves of a run as one figure for a paper, drawn with matplotlib; the ending of `path` is the format."""
    from matplotlib.figure import Figure

    _, kinds = read_run(Path(folder))
    together, labels = outcome_curves(kinds["eval"], kinds["data"], kinds["audit"])
    panels = [panel for panel in (*together[:5], labels[0]) if any(points for _, _, points in panel[2])]
    drawing = Figure(figsize=(9, 2.7 * math.ceil(len(panels) / 3)), layout="constrained")
    for place, (title, _, series, label, scale, top) in enumerate(panels, 1):
        plot = drawing.add_subplot(math.ceil(len(panels) / 3), 3, place, title=title, xlabel="iteration", ylabel=label)
        for name, style, points in series:
            points = [(x, *(scale * v for v in ys)) for x, *ys in points if all(map(finite, ys))]
            for xs, ys, *band in [tuple(zip(*points))] if points else []:
                look = dict(color=COLOURS[style[:2]], ls="--" if "dash" in style else "-", marker="o", ms=3)
                plot.plot(xs, ys, label=name, **look)
                plot.fill_between(xs, *(band or (ys, ys)), color=look["color"], alpha=0.16, lw=0)
        plot.set_ylim(min(0, plot.get_ylim()[0]), max(top, plot.get_ylim()[1]))
        plot.xaxis.get_major_locator().set_params(integer=True)
        plot.legend(frameon=False, fontsize="small")
    drawing.savefig(path, dpi=200)


# ------------------------------------------------------------------------------------------------ the gallery

def picture(path, caption):
    """An <img> of pixels decoded and encoded again, never the file's own bytes; small ones shown at 2-3 x."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((320, 320))
    kind = "png" if max(image.size) <= 128 else "jpeg"
    image.save(buffer := io.BytesIO(), kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    zoom = max(1, min(3, 200 // max(image.size)))
    return (f'<img src="data:image/{kind};base64,{data}" alt="{esc(caption)}" '
            f'width="{zoom * image.width}" height="{zoom * image.height}">')


def tally(answers):
    """[(answer, votes)], most votes first, ties as they appear; an answer joins the first one it matches."""
    votes = {}
    for answer in answers:
        first = next((a for a in votes if a == answer or answers_match(a, answer)), answer)
        votes[first] = votes.get(first, 0) + 1
    return sorted(votes.items(), key=lambda pair: -pair[1])


def ballot(name, question, answer, answers):
    """One question: the Proposer's answer, and a bar per distinct answer of the Solver."""
    rows = ""
    for given, count in tally(answers or ()):
        same = answers_match(given, answer)
        text = esc("no answer" if given is None else str(given)[:60] + " ✓" * same)
        rows += f"<li><span>{text}</span>{meter(100 * count / len(answers), 'c2' if same else 'grey')}{count}</li>"
    return (f'<p><b>{name}</b> {esc(question)} <span class="a">{esc(answer)}</span></p>'
            f'<ul class="votes">{rows}</ul>')


def card(folder, row):
    """One proposal's fate: its picture, or why there is none; texts, votes, code. Or the reply."""
    valid = row.get("caption") is not None
    shown = f'<div class="none">no {"picture" if valid else "proposal"}</div>'
    if valid and row.get("picture") and (folder / row["picture"]).is_file():
        shown = picture(folder / row["picture"], row["caption"])
    tags = " · ".join(esc(row[key]) for key in ("content_type", "topic") if row.get(key))
    shown += f'<p class="tag">{tags}</p>' + (f'<p>{esc(row["caption"])}</p>' if valid else "")
    if error := row.get("error") if valid else "The reply could not be parsed.":
        shown += f'<p class="error">{esc(str(error)[:300])}</p>'
    for kind in ("easy", "hard") if valid else ():
        shown += ballot(kind.title(), *(row.get(f"{kind}_{x}") for x in ("question", "answer", "answers")))
    if source := row.get("code" if valid else "reply"):
        name = f"code ({esc(row.get('language'))})" if valid else "reply"
        shown += (f'<details{" open" * (not valid)}><summary>{name}</summary>'
                  f'<pre>{esc(str(source)[:4000])}</pre></details>')
    return f"<article>{shown}</article>"


def gallery(folder):
    """Every probe.jsonl, base first; of each an even spread of SHOWN rows: failures keep their share."""
    probes = {int(path.parent.name[4:]): read_jsonl(path) for path in folder.glob("iter*/probe.jsonl")}
    probes = {k: rows for k, rows in sorted(probes.items()) if rows}
    sections = ""
    for k, rows in probes.items():
        count = min(SHOWN, len(rows))
        cards = "".join(card(folder, rows[i * len(rows) // count]) for i in range(count))
        valid, drawn = (sum(row.get(key) is not None for row in rows) for key in ("caption", "picture"))
        name, state = f"Iteration {k}" if k else "Base", "open" if k in (min(probes), max(probes)) else ""
        about = f"{len(rows)} proposals asked for, {valid} valid, {drawn} drawn; {count} shown"
        sections += (f'<details class="era" {state}><summary>{name}<small>{about}</small></summary>'
                     f'<div class="cards">{cards}</div></details>')
    return sections


# --------------------------------------------------------------------------------------------------- the page

def loop(evals, data, audits):
    """The loop with this run's figures on its arrows, base → newest; HTML, to stand upright on a phone."""
    def change(key, scale=100, digits=0, unit=" %", records=evals):
        values = [f"{scale * r[key]:.{digits}f}" for r in records if finite(r.get(key))]
        return f"<b>{' → '.join(dict.fromkeys(values[:1] + values[-1:])) or '–'}{unit}</b>".replace(" ", "&nbsp;")

    kept = change("kept", 1, 0, "", [r for r in data if r["phase"] == "solver"])
    true = f", {change('label_true', records=audits)} of them true where that is known" * bool(audits)
    s, d, right = change("solvability", 1, 2, ""), change("difficulty", 1, 2, ""), change("sampled", 100, 1)
    return LOOP.format(valid=change("valid"), drawn=change("render"), right=right, s=s, d=d, kept=kept, true=true)


def headline(evals):
    """The run in one sentence, and how sure that is."""
    evals = [r for r in evals if finite(r.get("sampled"))]
    if not evals:
        return "Nothing is measured yet", ""
    first, last = evals[0], evals[-1]
    before, after = (f"{100 * r['sampled']:.1f} %" for r in (first, last))
    if first is last:
        return f"The base answers {before} of held-out questions; no iteration is finished yet", ""
    verb = "rose" if last["sampled"] > first["sampled"] else "fell"
    change = f"stayed at {before}" if before == after else f"{verb} from {before} to {after}"
    count = last["iteration"] - first["iteration"]
    before, after = (f"{100 * r['sampled_low']:.1f}–{100 * r['sampled_high']:.1f}" for r in (first, last))
    return (f"Held-out accuracy {change} in {count} iteration{'s' * (count > 1)}",
            f"95 % intervals: {before} % before, {after} % after.")


def report(folder, figure=None):
    """Write `folder`/report.html, and `figure` (see figure_png) -> the path. FileNotFoundError if it is no run."""
    folder = Path(folder)
    config, kinds = read_run(folder)
    evals, steps, data, audits = (kinds[kind] for kind in ("eval", "step", "data", "audit"))
    title, certainty = headline(evals)
    if steps and steps[-1]["iteration"] > max((r["iteration"] for r in evals), default=0):
        certainty = f"{certainty} Iteration {steps[-1]['iteration']} is not finished.".strip()
    seconds = sum(r["seconds"] for records in kinds.values() for r in records if finite(r.get("seconds")))
    together, labels, training = ([curve(*panel) for panel in panels] for panels in (
        *outcome_curves(evals, data, audits), training_curves(steps)))
    consistency, types = ({r["iteration"]: r[k] for r in evals if r.get(k)} for k in ("hard_consistency", "types"))
    together[5:5] = (boxes("Consistency on hard questions", "Share of answers equal to their majority: quartiles, "
                           "5–95 %.", consistency, "consistency c"),
                     stacks("Content types", "What the Proposer writes about.", types, "% of valid proposals"))
    body = ""
    for name, note, panels in (("What the three roles make together", "", together + [funnel(data)]),
                               ("The label audit", AUDIT, labels), ("How training went", "", training)):
        if any(panels):
            body += f'<h2>{name}</h2>{note}<div class="figures">{"".join(filter(None, panels))}</div>'
    pictures, (header, results) = gallery(folder), cells(evals)
    body += f'<h2>Gallery</h2><p class="prose">{GALLERY}</p>{pictures}' * bool(pictures)
    page = PAGE.format(
        style=STYLE, title=esc(title).replace(" %", "&nbsp;%"), lede=esc(certainty).replace(" %", "&nbsp;%"),
        tiny=TINY if config.get("model") == "tiny" else "", model=esc(config.get("model")), steps=len(steps),
        minutes=f"{seconds / 60:.1f}", header=tr(*header),
        results="".join(tr(name.replace("it ", "iteration "), *row) for name, *row in results),
        samples=header[2].removeprefix("maj@"), body=body, loop=loop(evals, data, audits),
        settings="".join(tr(esc(key), esc(value)) for key, value in (config.get("settings") or {}).items()))
    partial = folder / "report.html.tmp"
    partial.write_bytes(page.encode("utf-8", "replace"))  # models write half surrogate pairs, UTF-8 cannot
    os.replace(partial, folder / "report.html")
    if figure is not None:
        figure_png(folder, figure)
    return folder / "report.html"


LOOP = """<ol class="loop"><li class="c0"><b>Proposer</b><span>invents a caption and two questions</span></li>
<li class="flow">{valid} valid</li><li class="c1"><b>Coder</b><span>writes the program that draws it</span></li>
<li class="flow">{drawn} drawn</li><li class="c2"><b>Solver</b><span>looks, answers; held-out {right}</span></li></ol>
<p class="back"><span><i>Reward of Proposer and Coder:</i> easy answer read, s {s}; hard question open, d {d}.</span>
<span><i>The Solver's lessons:</i> {kept} open questions, labelled by its own majority{true}.</span></p>"""
AUDIT = """<p class="prose">Nobody tells the Solver a right answer: its label is the majority of its own answers.
Here is how good these labels were when it was trained on them.</p>"""
TINY = "The tiny base was pretrained on procedural scenes of the same kind as the held-out charts."
GALLERY = """Each card is one proposal: the picture its code draws, both questions with the Proposer's own answer, and
the Solver's votes. ✓ marks votes equal to the Proposer's answer. For a hard question the longest bar with an answer is
what a Solver would be trained on, marked or not."""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head><body><main>
<p class="kicker">MM-Zero, report of a run</p><h1>{title}</h1><p class="lede">{lede}</p>
<p class="prose">A Proposer writes captions and questions, a Coder draws them, a Solver answers; each is trained on
rewards computed from the other two, and no data comes from outside. What the base could do before, it has from its own
pretraining. {tiny} Base model: {model}; {steps} steps; {minutes} minutes.</p>
{loop}
<div class="scroll"><table class="results"><thead>{header}</thead>{results}</table></div>
<p class="note">In %: accuracy on hard questions about held-out charts as the mean of {samples} samples, by their
majority, and by one greedy reply; on easy questions; proposals that parse; codes that draw a picture. From 0 to 1: mean
solvability and difficulty of the roles' own pictures (difficulty is at most 0.5), entropy of their content types.</p>
{body}
<details class="era"><summary>Settings</summary><table class="settings">{settings}</table></details>
</main></body></html>
"""
