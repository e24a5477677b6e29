"""The report of a run: one HTML page with its table, its curves and a gallery, readable without JavaScript.

    report("runs/first")  ->  runs/first/report.html          (also: python eval.py --report runs/first)

Read from the run folder: config.json, metrics.jsonl (lines of kind step, data, eval), iterK/probe.jsonl. What
a run in progress has not written yet is left out of the page. Curves are inline SVG drawn by `curve` below,
in the palette of Okabe and Ito (lightened on dark ground), which colour-blind readers can tell apart.

Everything a model wrote (captions, answers, code, errors) is untrusted: it passes through `esc` on its way
into the page, pictures are decoded and encoded again, and the page's own policy forbids scripts and network.
"""
import base64
import html
import io
import json
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

from rewards import answers_match

PHASES = ("proposer", "coder", "solver")
SHOWN = 24  # gallery entries per iteration: keeps the page of a default run far below 5 MB
LONGEST = 4000  # characters of one code or reply in the gallery


def esc(value):
    return html.escape(str(value), quote=True)


def finite(x):
    return isinstance(x, (int, float)) and math.isfinite(x)


# ------------------------------------------------------------------------------------------------------------
# The run folder


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
    """-> (config, {"step" | "data" | "eval": records}) in order; what a resumed run repeats counts once."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a run folder (no config.json): give the --out of a run")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    latest = {}
    for record in read_jsonl(folder / "metrics.jsonl"):
        latest[record["kind"], record["iteration"], record.get("phase"), record.get("step")] = record
    kinds = {kind: [r for key, r in latest.items() if key[0] == kind] for kind in ("step", "data", "eval")}
    for records in kinds.values():
        records.sort(key=lambda r: (r["iteration"], r.get("step", 0)))
    return config, kinds


# ------------------------------------------------------------------------------------------------------------
# The table of a run: the same figures on the terminal, in the README and on the page


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


def cells(rows):
    """Eval records -> rows of text. A figure a record lacks is a dash; 100 goes without decimals (width)."""
    def number(row, key, scale=100, digits=1):
        return f"{scale * row[key]:.{digits}f}".replace("100.0", "100") if finite(row.get(key)) else "–"

    body = []
    for row in rows:
        interval = f"{number(row, 'sampled')} ({number(row, 'sampled_low')}–{number(row, 'sampled_high')})"
        shares = [number(row, key) for key in ("majority", "greedy", "easy", "valid", "render")]
        means = [number(row, key, 1, 2) for key in ("solvability", "difficulty", "type_entropy")]
        body.append([f"it {row['iteration']}" if row["iteration"] else "base", interval, *shares, *means])
    return body


def table(rows):
    """Eval records (base, iteration 1, ...) -> Markdown that fits a terminal of 100 columns.

    In %: accuracy on held-out hard questions (mean of n samples with its 95 % interval, majority of n,
    greedy) and on easy ones; proposals that parse; codes that draw. In [0, 1]: mean solvability s and
    difficulty d of the roles' own pictures, entropy of their content types.
    """
    samples = rows[0].get("n", 8) if rows else 8
    return markdown(["", "held-out (95 %)", f"maj@{samples}", "greedy", "easy", "valid", "render", "solvable",
                     "difficulty", "types"], cells(rows))


# ------------------------------------------------------------------------------------------------------------
# Figures. One coordinate system for all, a viewBox of W x H; X and Y map data into it.

W, H, LEFT, RIGHT, TOP, BOTTOM = 350, 214, 40, 8, 24, 34


def ticks(low, high, most=5):
    """Round numbers that cover low..high in at most `most` steps.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(0, 0.7), ticks(-3, 12)
    ([0.0, 0.2, 0.4, 0.6, 0.8], [-5.0, 0.0, 5.0, 10.0, 15.0])
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def axes(xs, ys, x_label, y_label, x_names=None):
    """-> (X, Y, svg of the frame). xs: both ends of the x axis; ys: the y ticks; x_names: {x: text}."""
    def X(x):
        return LEFT + (x - xs[0]) / (xs[1] - xs[0]) * (W - LEFT - RIGHT)

    def Y(y):
        return H - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (H - TOP - BOTTOM)

    if x_names is None:
        every = math.ceil((xs[1] - xs[0]) / 10)
        x_names = {x: str(x) for x in range(math.ceil(xs[0]), math.floor(xs[1]) + 1, every)}
    svg = ""
    for y in ys:
        text = f"{y:g}".replace("e-0", "e-")
        svg += (f'<path class="{"grid" if y else "zero"}" d="M{LEFT} {Y(y):.1f}H{W - RIGHT}"/>'
                f'<text class="end" x="{LEFT - 6}" y="{Y(y) + 3.5:.1f}">{text}</text>')
    for x, text in x_names.items():
        svg += f'<text class="middle" x="{X(x):.1f}" y="{H - BOTTOM + 14}">{esc(text)}</text>'
    svg += (f'<text class="end" x="{W - RIGHT}" y="{H - 4}">{esc(x_label)} →</text>'
            f'<text x="{LEFT - 34}" y="{TOP - 13}">↑ {esc(y_label)}</text>')
    return X, Y, svg


def figure(title, note, svg, legend=()):
    """legend: (name, colour class) pairs. Title, legend and note are HTML, so that they wrap on a phone."""
    keys = "".join(f'<span class="{style}"><i></i>{esc(name)}</span>' for name, style in legend)
    return (f'<figure><h3>{esc(title)}</h3><p class="key">{keys}</p>'
            f'<svg viewBox="0 0 {W} {H}" role="img" aria-label="{esc(title)}">{svg}</svg>'
            f'<figcaption>{esc(note)}</figcaption></figure>')


def curve(title, note, series, x_label, y_label, scale=1, top=0):
    """One panel of lines; "" while there is nothing to draw.

    series: (name, colour class, points). A point is (x, y), or (x, y, low, high): low and high make a band.
    `scale` multiplies y (100 for %). The y axis always includes 0 and reaches `top` at least.
    """
    drawn = []
    for name, style, points in series:
        points = [(p[0], *(scale * v for v in p[1:])) for p in points if all(map(finite, p))]
        if points:
            drawn.append((name, style, points))
    if not drawn:
        return ""
    xs = [p[0] for _, _, points in drawn for p in points]
    values = [v for _, _, points in drawn for p in points for v in p[1:]]
    low, high = min(0, *values), max(top, *values)
    X, Y, svg = axes((0, max(1, *xs)), ticks(low, high if high > low else low + 1), x_label, y_label)

    def path(pairs):
        return "M" + "L".join(f"{X(x):.1f} {Y(y):.1f}" for x, y in pairs)

    for name, style, points in drawn:
        if len(points[0]) == 4:
            outline = [(p[0], p[3]) for p in points] + [(p[0], p[2]) for p in reversed(points)]
            svg += f'<path class="band {style}" d="{path(outline)}Z"/>'
        svg += f'<path class="line {style}" d="{path(p[:2] for p in points)}"/>'
        if len(points) <= 12:  # a few measurements: each gets a dot, with its value as a tooltip
            svg += "".join(f'<circle class="{style}" cx="{X(p[0]):.1f}" cy="{Y(p[1]):.1f}" r="3">'
                           f'<title>{esc(name)}: {p[1]:.3g}</title></circle>' for p in points)
    return figure(title, note, svg, [line[:2] for line in drawn] if len(series) > 1 else ())


def boxes(title, note, groups, x_label, y_label):
    """One box per iteration: quartiles, median, whiskers from the 5th to the 95th percentile. {x: values}."""
    groups = {x: values for x, values in groups.items() if values}
    if not groups:
        return ""
    X, Y, svg = axes((min(groups) - 0.6, max(groups) + 0.6), ticks(0, 1), x_label, y_label,
                     {x: x or "base" for x in groups})
    for x, values in groups.items():
        low, first, median, third, high = (round(Y(v), 1) for v in np.percentile(values, [5, 25, 50, 75, 95]))
        left, middle, right = (round(X(x + shift), 1) for shift in (-0.22, 0, 0.22))
        svg += (f'<path class="line thin c2" d="M{middle} {low}V{first}M{middle} {third}V{high}"/>'
                f'<path class="box c2" d="M{left} {third}H{right}V{first}H{left}Z"/>'
                f'<path class="line thick c2" d="M{left} {median}H{right}"/>')
    return figure(title, note, svg)


def stacks(title, note, groups, x_label, y_label):
    """One bar of shares per iteration. {x: {name: count}}."""
    groups = {x: counts for x, counts in groups.items() if counts and sum(counts.values())}
    if not groups:
        return ""
    names = sorted(set().union(*groups.values()), key=lambda name: (name == "other", name))
    style = {name: "grey" if name == "other" else f"c{i % 7}" for i, name in enumerate(names)}
    X, Y, svg = axes((min(groups) - 0.6, max(groups) + 0.6), ticks(0, 100), x_label, y_label,
                     {x: x or "base" for x in groups})
    for x, counts in groups.items():
        below, left, right = 0, round(X(x - 0.32), 1), round(X(x + 0.32), 1)
        for name in (name for name in names if counts.get(name)):
            share = 100 * counts[name] / sum(counts.values())
            low, high = round(Y(below), 1), round(Y(below + share), 1)
            svg += (f'<path class="bar {style[name]}" d="M{left} {low}H{right}V{high}H{left}Z">'
                    f'<title>{esc(name)}: {share:.0f} %</title></path>')
            below += share
    return figure(title, note, svg, style.items())


def funnel(records):
    """What each phase asked the Proposer for and what was left of it: a table, a bar under each number."""
    stages = ("asked", "valid", "rendered", "evaluated", "kept")
    rows = ""
    for r in sorted(records, key=lambda r: (PHASES.index(r["phase"]), r["iteration"])):
        rows += f'<tr class="c{PHASES.index(r["phase"])}"><th>{r["phase"]} {r["iteration"]}</th>'
        for stage in stages:
            share = 100 * r[stage] / max(r["asked"], 1) if finite(r.get(stage)) else None
            rows += "<td>–</td>" if share is None else f'<td>{r[stage]:g}{meter(share)}</td>'
        rows += "</tr>"
    if not rows:
        return ""
    head = "".join(f"<th>{stage}</th>" for stage in ("", *stages))
    return (f'<figure class="wide"><h3>From proposals to training data</h3><p class="key"></p>'
            f'<div class="scroll"><table class="funnel"><thead><tr>{head}</tr></thead>{rows}</table></div>'
            f'<figcaption>What each phase asked of the Proposer, and how much of it could be parsed, drawn, '
            f'answered, and passed the filter.</figcaption></figure>')


def meter(percent):
    return f'<span class="meter"><i style="width:{percent:.1f}%"></i></span>'


# ------------------------------------------------------------------------------------------------------------
# The panels


def outcome_panels(evals, data):
    """What is measured once per iteration; iteration 0 is the base."""
    def line(name, style, key, *band):
        return name, style, [(r["iteration"], *(r.get(k) for k in (key, *band))) for r in evals]

    def kept(phase, style):
        return phase, style, [(r["iteration"], r.get("kept")) for r in data if r["phase"] == phase]

    at = "iteration (0 = base)"
    consistency = {r["iteration"]: [v for v in r.get("hard_consistency") or () if finite(v)] for r in evals}
    return [
        curve("Held-out accuracy", "On charts no role was trained on; the band is the 95 % interval.",
              [line("sampled", "c2", "sampled", "sampled_low", "sampled_high"),
               line("majority", "c0", "majority"), line("greedy", "c1", "greedy"),
               line("easy questions", "c3 dash", "easy")], at, "%", 100, 100),
        curve("Proposals and pictures", "Replies of the Proposer that parse, codes of the Coder that draw.",
              [line("valid proposals", "c0", "valid"), line("rendered", "c1", "render")], at, "%", 100, 100),
        curve("Solvability", "How often the Solver reads the Proposer's easy answer off the picture (s).",
              [line("s", "c2", "solvability")], at, "mean s", top=1),
        curve("Difficulty", "min(c, 1 − c) of the hard question: highest when half of the answers agree.",
              [line("d", "c3", "difficulty")], at, "mean d", top=0.5),
        curve("Easy–hard gap", "Agreement on easy questions minus agreement on hard ones.",
              [line("gap", "c4", "easy_hard_gap")], at, "gap"),
        boxes("Consistency on hard questions", "Share of answers equal to their majority: quartiles, 5–95 %.",
              consistency, "iteration", "consistency c"),
        stacks("Content types", "What the Proposer writes about.",
               {r["iteration"]: r.get("types") for r in evals}, "iteration", "% of valid proposals"),
        curve("Variety of types", "Entropy of the content types: 0 is one type only, 1 is all types equally.",
              [line("entropy", "c0", "type_entropy")], at, "entropy", top=1),
        curve("Length of code", "Mean tokens of one program by the Coder.",
              [line("tokens", "c1", "code_tokens")], at, "tokens"),
        curve("Training sets", "Prompts left after the filters. The Coder's shrink as everything renders.",
              [kept("coder", "c1"), kept("solver", "c2")], "iteration", "prompts kept"),
        funnel(data),
    ]


def training_panels(steps):
    """What is measured every step; step t of T in iteration k stands at x = k - 1 + t / T, for every role."""
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
    return [curve(title, note, series, "iteration", *y) for title, note, series, *y in (
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
        ("Groups without signal", "All rewards of a group are equal: no gradient.",
         roles("zero_variance"), "%", 100, 100),
        ("Cut replies", "Rollouts stopped by the length limit.", roles("truncated"), "%", 100),
        ("Rollout against trainer", "Largest gap of a token's log-prob when sampled and when trained on.",
         roles("logp_gap"), "|Δ log p|"),
    )]


# ------------------------------------------------------------------------------------------------------------
# The gallery


def picture(path, caption):
    """An <img> of pixels decoded and encoded again, never the file's own bytes; small ones shown at 2-3 x."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((320, 320))
    size = max(image.size)
    kind = "png" if size <= 128 else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    zoom = max(1, min(3, 200 // size))
    return (f'<img src="data:image/{kind};base64,{data}" alt="{esc(caption)}" '
            f'width="{zoom * image.width}" height="{zoom * image.height}">')


def tally(answers):
    """[(answer, votes)], most votes first, ties as they appear; an answer joins the first one it matches.

    >>> tally(["5", "7", "5.0", None])
    [('5', 2), ('7', 1), (None, 1)]
    """
    groups = []
    for answer in answers:
        for group in groups:
            if answer == group[0] or answers_match(answer, group[0]):
                group[1] += 1
                break
        else:
            groups.append([answer, 1])
    return sorted(map(tuple, groups), key=lambda group: -group[1])


def ballot(name, question, answer, answers):
    """One question: the Proposer's answer, and a bar per distinct answer of the Solver."""
    rows = ""
    for given, count in tally(answers or ()):
        same = answers_match(given, answer)
        text = "no answer" if given is None else str(given)[:60] + " ✓" * same
        rows += (f'<li class="{"c2" if same else "grey"}"><span>{esc(text)}</span>'
                 f'{meter(100 * count / len(answers))}{count}</li>')
    return (f'<p class="q"><b>{name}</b> {esc(question)} <span class="a">{esc(answer)}</span></p>' +
            (f'<ul class="votes">{rows}</ul>' if rows else ""))


def card(folder, row):
    """One proposal's fate: its picture, or why there is none; texts, votes, code."""
    def tag(*keys):
        return f'<p class="tag">{" · ".join(esc(row[key]) for key in keys if row.get(key))}</p>'

    if row.get("caption") is None:
        reply = esc(str(row.get("reply") or "")[:LONGEST])
        return (f'<article><div class="none">no proposal</div>{tag("topic")}'
                f'<p class="error">The reply could not be parsed.</p><pre>{reply}</pre></article>')
    shown = '<div class="none">no picture</div>'
    if row.get("picture") and (folder / row["picture"]).is_file():
        shown = picture(folder / row["picture"], row["caption"])
    shown += f'{tag("content_type", "topic")}<p>{esc(row["caption"])}</p>'
    if row.get("error"):
        shown += f'<p class="error">{esc(str(row["error"])[:300])}</p>'
    for kind in ("easy", "hard"):
        shown += ballot(kind.title(), *(row.get(f"{kind}_{x}") for x in ("question", "answer", "answers")))
    if row.get("code"):
        shown += (f'<details><summary>code ({esc(row.get("language"))})</summary>'
                  f'<pre>{esc(str(row["code"])[:LONGEST])}</pre></details>')
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


# ------------------------------------------------------------------------------------------------------------
# The page


def headline(evals):
    """The run in one sentence, and how sure that is.

    >>> headline([{"iteration": 0, "sampled": 0.64}, {"iteration": 3, "sampled": 0.79}])[0]
    'Held-out accuracy rose from 64.0 % to 79.0 % in 3 iterations'
    >>> headline([{"iteration": 0, "sampled": 0.64}])[0]
    'The base answers 64.0 % of held-out questions; no iteration is finished yet'
    """
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
    title = f"Held-out accuracy {change} in {count} iteration{'s' * (count > 1)}"
    ends = [r.get(key) for r in (first, last) for key in ("sampled_low", "sampled_high")]
    if not all(map(finite, ends)):
        return title, ""
    low, high, new_low, new_high = (f"{100 * x:.1f}" for x in ends)
    return title, f"95 % intervals: {low}–{high} % before, {new_low}–{new_high} % after."


def report(folder):
    """Write `folder`/report.html and return its path. FileNotFoundError if `folder` is no run."""
    folder = Path(folder)
    config, kinds = read_run(folder)
    evals, steps = kinds["eval"], kinds["step"]
    title, certainty = headline(evals)
    if steps and steps[-1]["iteration"] > max((r["iteration"] for r in evals), default=0):
        certainty = f"{certainty} Iteration {steps[-1]['iteration']} is not finished.".strip()
    seconds = sum(r["seconds"] for records in kinds.values() for r in records if finite(r.get("seconds")))
    about = (ABOUT + (TINY if config.get("model") == "tiny" else "") +
             f" Base model: {esc(config.get('model'))}; {len(steps)} steps; {seconds / 60:.1f} minutes.")
    sections = {
        "What the three roles make together": outcome_panels(evals, kinds["data"]),
        "How training went": training_panels(steps),
    }
    body = "".join(f'<h2>{name}</h2><div class="figures">{"".join(panels)}</div>'
                   for name, panels in sections.items() if any(panels))
    if pictures := gallery(folder):
        body += f'<h2>Gallery</h2><p class="prose">{GALLERY}</p>{pictures}'
    results = ""
    for name, *figures in cells(evals):
        tds = "".join(f"<td>{text}</td>" for text in figures)
        results += f"<tr><th>{name.replace('it ', 'iteration ')}</th>{tds}</tr>"
    page = PAGE.format(
        style=STYLE, title=esc(title).replace(" %", "&nbsp;%"), lede=esc(certainty).replace(" %", "&nbsp;%"),
        about=about, results=results, samples=esc(evals[0].get("n", 8)) if evals else "n", body=body,
        settings="".join(f"<tr><th>{esc(key)}</th><td>{esc(value)}</td></tr>"
                         for key, value in (config.get("settings") or {}).items()))
    partial = folder / "report.html.tmp"
    partial.write_bytes(page.encode("utf-8", "replace"))  # models write half surrogate pairs, UTF-8 cannot
    os.replace(partial, folder / "report.html")
    return folder / "report.html"


ABOUT = """A Proposer writes captions and questions, a Coder draws them, a Solver answers; each is trained
on rewards computed from the other two, and no data comes from outside. What the base could do before, it
has from its own pretraining."""
TINY = """ The tiny base was pretrained on procedural scenes of the same kind as the held-out charts."""
GALLERY = """Each card is one proposal: the picture its code draws, both questions with the Proposer's own
answer, and the Solver's votes. ✓ marks votes equal to the Proposer's answer. For a hard question the
longest bar with an answer is what a Solver would be trained on, marked or not."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head><body><main>
<p class="kicker">MM-Zero, report of a run</p><h1>{title}</h1><p class="lede">{lede}</p>
<p class="prose">{about}</p>
<div class="scroll"><table class="results"><thead><tr><th></th><th>held-out, sampled (95&nbsp;%)</th>
<th>majority</th><th>greedy</th><th>easy</th><th>valid</th><th>rendered</th><th>solvability</th>
<th>difficulty</th><th>type entropy</th></tr></thead><tbody>{results}</tbody></table></div>
<p class="note">In %: accuracy on hard questions about held-out charts as the mean of {samples} samples, by
their majority, and by one greedy reply; on easy questions; proposals that parse; codes that draw a picture.
From 0 to 1: mean solvability and difficulty of the roles' own pictures (difficulty is at most 0.5), entropy
of their content types.</p>
{body}
<details class="era"><summary>Settings</summary><table class="settings">{settings}</table></details>
</main></body></html>
"""

STYLE = """
:root { color-scheme: light dark; --bg: #fffefc; --ink: #1f2326; --soft: #666c72; --rule: #e3e2de;
  --wash: #f3f2ee;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9; --c6: #b8a800;
  --grey: #9a9fa4; --bad: #b3400a;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
@media (prefers-color-scheme: dark) { :root {
  --bg: #15171a; --ink: #e4e3df; --soft: #9aa0a6; --rule: #2e3236; --wash: #212529;
  --c0: #56b4e9; --c1: #e8772e; --c2: #1fbf91; --c3: #d98fb8; --c4: #e69f00; --c5: #2f8fd0; --c6: #f0e442;
  --grey: #70767c; --bad: #f0915a } }
* { box-sizing: border-box }
body { margin: 0; background: var(--bg); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 17px/1.55 Charter, "Bitstream Charter", "Iowan Old Style", Georgia, serif }
main { max-width: 1120px; margin: 0 auto; padding: 56px 24px 96px; overflow-wrap: anywhere }
.kicker, h3, .key, figcaption, table, svg, .note, .tag, .votes, .error, summary, .none,
  .a { font-family: var(--sans) }
.kicker { margin: 0; font-size: 13px; color: var(--soft) }
h1 { margin: 6px 0 10px; max-width: 22em; font-size: clamp(26px, 4.4vw, 40px); line-height: 1.15;
  font-weight: 600;
  letter-spacing: -.01em; text-wrap: balance; overflow-wrap: normal }
h2 { margin: 56px 0 20px; padding-top: 18px; border-top: 1px solid var(--rule); font-size: 25px;
  line-height: 1.2;
  font-weight: 600 }
h3 { margin: 0; font-size: 14px; font-weight: 600 }
.lede { margin: 0 0 14px; font-size: 19px; color: var(--soft) }
.lede:empty { display: none }
.prose { max-width: 42em; margin: 0 0 28px }
.note { max-width: 60em; font-size: 13px; line-height: 1.5; color: var(--soft) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums;
  overflow-wrap: normal }
th, td { padding: 6px 14px 6px 0; text-align: right; font-weight: 400; white-space: nowrap }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--bg) }
thead th { color: var(--soft); font-size: 13px; border-bottom: 1px solid var(--rule) }
.results, .funnel { width: 100% }
.results tbody tr + tr > * { border-top: 1px solid var(--rule) }
.results td:nth-child(2), .results tbody th { font-weight: 600 }
.settings th, .settings td { text-align: left; white-space: normal; vertical-align: top;
  padding: 2px 18px 2px 0 }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr));
  gap: 0 32px }
figure { margin: 0 0 40px; min-width: 0; display: grid; grid-template-rows: subgrid; grid-row: span 4;
  row-gap: 0 }
figure.wide { grid-column: 1 / -1 }
@media (min-width: 1070px) { figure.wide { grid-column: span 2 } }
figcaption { margin-top: 4px; font-size: 13px; line-height: 1.45; color: var(--soft) }
figure svg { display: block; width: 100%; height: auto; margin-top: 8px; font-size: 11px }
.key { margin: 2px 0 0; font-size: 12.5px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 0 12px }
.key i { display: inline-block; width: 14px; border-top: 2.5px solid var(--c); vertical-align: .28em;
  margin-right: 5px }
.key .dash i { border-top-style: dashed }
.c0 { --c: var(--c0) } .c1 { --c: var(--c1) } .c2 { --c: var(--c2) } .c3 { --c: var(--c3) }
  .c4 { --c: var(--c4) }
.c5 { --c: var(--c5) } .c6 { --c: var(--c6) } .grey { --c: var(--grey) }
svg text { fill: var(--soft) } .end { text-anchor: end } .middle { text-anchor: middle }
.grid { stroke: var(--rule) } .zero { stroke: var(--soft) }
.line { fill: none; stroke: var(--c); stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round }
.line.dash { stroke-dasharray: 5 4 } .thin { stroke-width: 1.2 } .thick { stroke-width: 3;
  stroke-linecap: butt }
circle { fill: var(--c); stroke: var(--bg) }
.band { fill: var(--c); opacity: .16 }
.box { fill: var(--c); fill-opacity: .22; stroke: var(--c); stroke-width: 1.2 }
.bar { fill: var(--c); stroke: var(--bg) }
.meter { display: block; height: 5px; background: var(--wash) }
.meter i { display: block; height: 100%; background: var(--c) }
.funnel td { width: 17% } .funnel .meter { margin-top: 2px } .funnel .meter i { margin-left: auto }
summary { cursor: pointer }
.era { margin: 0 0 12px; border-top: 1px solid var(--rule); padding-top: 10px }
.era > summary { font-size: 17px; font-weight: 600 }
small { margin-left: 12px; font-size: 13px; font-weight: 400; color: var(--soft) }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 236px), 1fr));
  gap: 36px 28px;
  margin: 20px 0 40px }
article { font-size: 15px; line-height: 1.4; min-width: 0 }
article p { margin: 6px 0 0 }
article img { display: block; box-sizing: content-box; max-width: 100%; height: auto;
  image-rendering: pixelated;
  border: 1px solid var(--rule) }
.none { width: 194px; height: 194px; display: grid; place-items: center; font-size: 13px; color: var(--soft);
  border: 1px solid var(--rule); background: repeating-linear-gradient(45deg, var(--wash) 0 6px,
  transparent 6px 12px) }
.tag { font-size: 12px; color: var(--soft) } .error { font-size: 13px; color: var(--bad) }
.a { font-size: 13.5px; border-bottom: 2px solid var(--c2) }
.votes { list-style: none; margin: 4px 0 0; padding: 0; font-size: 12.5px;
  font-variant-numeric: tabular-nums }
.votes li { display: grid; grid-template-columns: minmax(0, 7em) 1fr 1.4em; gap: 8px; align-items: center;
  text-align: right }
.votes span:first-child { white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
article details { margin-top: 8px; font-size: 13px; color: var(--soft) }
pre { margin: 6px 0 0; padding: 8px 10px; max-height: 300px; overflow: auto; background: var(--wash);
  color: var(--ink);
  font: 12px/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap }
@media (max-width: 560px) { main { padding: 28px 16px 64px } body { font-size: 16px }
  th, td { padding-right: 10px }
  small { display: block; margin: 0 } }
"""
