"""The report of a run: one HTML page with its loop, table, curves, label audit and gallery.

    report("runs/first")  ->  runs/first/report.html    (also: python eval.py --report runs/first)

It reads config.json, metrics.jsonl and iterK/probe.jsonl of the run folder; what a run in progress
has not written yet is left out. report_page.html holds the page, its pieces and the table of its
panels. matplotlib draws the curves, as SVG for the page and as one figure for `--png`.

What a model wrote (captions, answers, code, errors) is untrusted: all that goes into a piece is
escaped unless it is `Html`, and pictures are decoded and encoded again.
"""

import base64
import html
import io
import json
import math
import os
import re
import string
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from eval import cells
from support.answers import answers_match, tally

PHASES = ("proposer", "coder", "solver")  # role i has the colour c{i}
STAGES = ("asked", "valid", "rendered", "evaluated", "kept")  # of a phase's data
SHOWN = 24  # gallery entries per iteration: the page stays far below 5 MB
FEW = 8  # so many measurements are shown one by one


# ------------------------------------------------------------------------------- the run folder


def read_jsonl(path):
    """Lines of JSON. A last line without its newline is still being written: it is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        raise ValueError(f"{path} has a line that is not JSON") from None


def read_run(folder):
    """-> (config, {"step" | "data" | "eval" | "audit": records}).

    record["x"] is where it stands on the axis of iterations: step t of T in iteration k stands at
    k - 1 + t / T, all else at k.
    """
    if not (folder / "config.json").is_file():
        why = f"{folder} is not a run folder (no config.json): give the --out of a run"
        raise FileNotFoundError(why)
    kinds = {"step": [], "data": [], "eval": [], "audit": []}
    last = Counter()  # of a phase, the number of its last step
    for r in read_jsonl(folder / "metrics.jsonl"):
        kinds[r["kind"]].append(r | {"x": r["iteration"]})
        last[r.get("phase")] = max(last[r.get("phase")], r.get("step", 1))
    for r in kinds["step"]:
        r["x"] += r["step"] / last[r["phase"]] - 1
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), kinds


def finite(x):
    return isinstance(x, (int, float)) and math.isfinite(x)


# ------------------------------------------------------------------------- pieces of the page

TEXT = Path(__file__).with_name("report_page.html").read_text(encoding="utf-8")
_, *PARTS = re.split(r"\n?<!-- (\w+) -->\n", TEXT)  # a comment names the piece that follows it
PIECES = dict(zip(PARTS[::2], PARTS[1::2]))
# {"c0": "#0072b2", ...}, on light ground
COLOURS = dict(re.findall(r"--(\w+): (#\w+)", TEXT.split("@media")[0]))


class Html(str):
    """Text that is markup already."""


def esc(value):
    return value if isinstance(value, Html) else html.escape(str(value))


def joined(parts):
    return Html("".join(map(esc, parts)))


def piece(name, /, **values):
    escaped = {key: esc(value) for key, value in values.items()}
    return Html(string.Template(PIECES[name]).substitute(escaped))


def tr(first, *others):
    cells = "".join(f"<td>{esc(other)}</td>" for other in others)
    return Html(f"<tr><th>{esc(first)}</th>{cells}</tr>")


def meter(share, colour):
    return piece("meter", percent=f"{100 * share:.1f}", colour=colour)


def funnel(records):
    """What each phase asked the Proposer for and what was left of it, a bar under each number."""
    rows = []
    for r in sorted(records, key=lambda r: PHASES.index(r["phase"])):
        colour, asked, counts = f"c{PHASES.index(r['phase'])}", max(r["asked"], 1), []
        for n in map(r.get, STAGES):
            counts.append(joined([f"{n:g}", meter(n / asked, colour)]) if finite(n) else "–")
        rows.append(tr(f"{r['phase']} {r['iteration']}", *counts))
    return piece("funnel", header=tr("", *STAGES), rows=joined(rows)) if rows else ""


# --------------------------------------------------------------------------------------- curves


class Panel(NamedTuple):
    title: str
    note: str
    label: str  # of the y axis; the x axis is the iteration, and 0 the base
    series: list  # of (name, colour, points): (x, y) or, with a band, (x, y, low, high)
    top: float = 0  # the y axis goes from 0 or below to here or above
    kind: str = "lines"  # or boxes, whose y are lists; or bars, which stand on each other


def lines(records, key, colour, scale=1):
    """[one line], or [] if nothing has a value. A key that comes with _low and _high has a band."""
    points = []
    for r in records:
        ys = [r.get(key), *(r[k] for k in (f"{key}_low", f"{key}_high") if k in r)]
        if all(map(finite, ys)):
            points.append((r["x"], *(scale * y for y in ys)))
    return [(key.replace("_", " "), colour, points)] if points else []


def by_role(records, key, colour, scale):
    """One line for each role that has values."""
    found = []
    for i, role in enumerate(PHASES):
        own = [r for r in records if r["phase"] == role]
        for _, *line in lines(own, key, colour.replace("role", f"c{i}"), scale):
            found.append((role, *line))
    return found


def shares(records):
    """Of each content type, in %; "other" comes last."""
    counts = {r["x"]: Counter(r["types"]) for r in records if r.get("types")}
    names = sorted(set().union(*counts.values()), key=lambda name: (name == "other", name))
    series = []
    for i, name in enumerate(names):
        colour = "grey" if name == "other" else f"c{i % 7}"
        series.append((name, colour, [(x, 100 * n[name] / n.total()) for x, n in counts.items()]))
    return series


def panel(heading, note, kinds):
    """Two lines of the page's table of panels -> Panel."""
    title, label, top, source, entries = heading.split(" | ")
    records, series, kind = kinds[source], [], "lines"
    if entries == "types":
        series, kind = shares(records), "bars"
    elif entries == "hard_consistency":
        points = [(r["x"], r[entries]) for r in records if r.get(entries)]
        series, kind = [("consistency", "c2", points)] if points else [], "boxes"
    else:
        for entry in entries.split(", "):
            key, colour = entry.split(maxsplit=1)
            find = by_role if colour.startswith("role") else lines
            series += find(records, key, colour, 100 if label == "%" else 1)
    return Panel(title, note, label, series, float(top), kind)


def panels(kinds):
    """All panels in three lists: what the roles make together, their labels, their training."""
    kinds = kinds | {role: [r for r in kinds["step"] if r["phase"] == role] for role in PHASES}
    sections = []
    for section in PIECES["panels"].strip().split("\n\n")[1:]:
        rows = section.split("\n")
        sections.append([panel(*pair, kinds) for pair in zip(rows[::2], rows[1::2])])
    return sections


def draw(axes, panel):
    """Draw `panel` on matplotlib's `axes`."""
    few = all(len(points) <= FEW for _, _, points in panel.series)
    below = Counter()  # of stacked bars
    for name, style, points in panel.series:
        x, y, *band = zip(*points)
        colour, *dashed = style.split()
        look = {"color": COLOURS[colour], "clip_on": False}
        if panel.kind == "bars":
            axes.bar(x, y, 0.64, [below[i] for i in x], **look)
            below.update(dict(zip(x, y)))  # a Counter adds
        elif panel.kind == "boxes":
            parts = dict.fromkeys(("boxprops", "whiskerprops", "medianprops"), look)
            off = dict.fromkeys(("showfliers", "showcaps", "manage_ticks"), False)
            axes.boxplot(y, positions=x, widths=0.4, whis=(5, 95), **parts, **off)
        else:
            line = "--" if dashed else "-"
            axes.plot(x, y, line, marker="o" if few else "", label=name, **look)
            if band:
                axes.fill_between(x, *band, color=look["color"], alpha=0.16, lw=0)

    # What has no value for the base starts half an iteration early: a single one is in the middle.
    xs = [x for _, _, points in panel.series for x, *_ in points]
    start, end = min(xs) // 1 - 0.5, max(xs) + 0.5
    if panel.kind == "lines" and min(xs) < 1:
        start, end = 0, max(1, *xs)
    ticks = range(math.ceil(start), math.floor(end) + 1, math.ceil((end - start) / 10))
    axes.set(xlim=(start, end), xticks=ticks, xticklabels=[x or "base" for x in ticks])
    axes.set_xlabel("iteration →", loc="right")

    # The other axis has 0 on it, and the panel's top; where all is 0 it goes up to 1.
    axes.axhline(0, color=COLOURS["soft"], lw=0.8)
    axes.update_datalim([(start, panel.top or not axes.dataLim.height)])
    axes.autoscale(axis="y")
    axes.yaxis.set_major_formatter(lambda y, _: short(y))
    axes.set_title(f"↑ {panel.label}", loc="left")


def short(x):
    text = f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}"
    return text.replace("e-0", "e-").replace("-", "−")


GREY = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
LOOK = {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 11),
    **dict.fromkeys(GREY, COLOURS["soft"]),
    **{f"axes.spines.{side}": False for side in ("top", "right", "left", "bottom")},
    **dict.fromkeys(("axes.xmargin", "axes.ymargin", "xtick.major.size", "ytick.major.size"), 0),
    **{f"boxplot.{part}.linewidth": 1.7 for part in ("boxprops", "whiskerprops")},
    "boxplot.medianprops.linewidth": 3,
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
    "axes.autolimit_mode": "round_numbers",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["rule"],
    "xtick.major.pad": 6,
    "axes.titlepad": 8,
    "axes.titley": 1,  # where it would be anyway: not searched for
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "same every time",
}
# What matplotlib writes into an SVG and the page does without.
NEEDLESS = r"(?s)^.*?(?=<svg)|<(metadata|style).*?</\1>|font-family: [^;]*;| id=.[\w.]+_\d+."


@matplotlib.rc_context(LOOK)
def figure(panel):
    """The panel as HTML: text that wraps on a phone, and SVG in the page's font and colours."""
    drawing = Figure(figsize=(350 / 72, 206 / 72))  # a unit of the SVG is a pixel
    draw(drawing.add_axes((0.13, 0.17, 0.84, 0.72)), panel)
    drawing.savefig(file := io.StringIO(), format="svg", transparent=True)
    svg = re.sub(NEEDLESS, "", file.getvalue())
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{esc(panel.title)}"', 1)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    keys = []
    for name, colour, points in panel.series:
        values = [short(y) for _, y, *_ in points if finite(y) and len(points) <= FEW]
        keys.append(piece("key", colour=colour, name=name, values=" → ".join(values)))
    texts = {"title": panel.title, "note": panel.note}
    return piece("figure", **texts, keys=joined(keys), curve=Html(svg))


@matplotlib.rc_context(LOOK)
def figure_png(panels, path):
    """The main curves as one figure for a paper; the ending of `path` is the format."""
    drawing = Figure(figsize=(9, 5.4), layout="constrained")
    for place, panel in enumerate((panel for panel in panels if panel.series), 1):
        axes = drawing.add_subplot(2, 3, place)
        draw(axes, panel)
        axes.set_title(f"{panel.title} ({panel.label})", loc="left", color=COLOURS["ink"])
        axes.legend(fontsize="small", labelspacing=0.2)
    drawing.savefig(path, dpi=200)


# ---------------------------------------------------------------------------------- the gallery


def picture(path, caption):
    """An <img> of pixels decoded and encoded again, never the file's own bytes."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((320, 320))
    kind = "png" if max(image.size) <= 128 else "jpeg"
    image.save(buffer := io.BytesIO(), kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    zoom = max(1, min(3, 200 // max(image.size)))  # small ones are shown larger
    size = {"width": zoom * image.width, "height": zoom * image.height}
    return piece("picture", kind=kind, data=data, caption=caption, **size)


def ballot(row, kind):
    """A question with the Proposer's answer, and a bar for each distinct answer of the Solver."""
    question, answer, answers = (row.get(f"{kind}_{x}") for x in ("question", "answer", "answers"))
    votes = []
    for given, count in sorted(tally(answers or ()).items(), key=lambda pair: -pair[1]):
        colour, text = "grey", "no answer" if given is None else str(given)[:60]
        if answers_match(given, answer):
            colour, text = "c2", f"{text} ✓"
        votes.append(piece("vote", text=text, bar=meter(count / len(answers), colour), count=count))
    texts = {"kind": kind.title(), "question": question, "answer": answer}
    return piece("ballot", **texts, votes=joined(votes))


def card(folder, row):
    """What became of one proposal: picture, texts, votes, code. Or the reply that was none."""
    valid = row.get("caption") is not None
    shown = [piece("blank", text="no picture" if valid else "no proposal")]
    if valid and row.get("picture") and (folder / row["picture"]).is_file():
        shown = [picture(folder / row["picture"], row["caption"])]
    about = " · ".join(row[key] for key in ("content_type", "topic") if row.get(key))
    shown.append(piece("tag", text=about))
    error, source = "The reply could not be parsed.", row.get("reply")
    if valid:
        error, source = row.get("error"), row.get("code")
        shown.append(piece("caption", text=row["caption"]))
    if error:
        shown.append(piece("error", text=str(error)[:300]))
    if valid:
        shown += [ballot(row, "easy"), ballot(row, "hard")]
    if source:
        name, state = (f"code ({row.get('language')})", "") if valid else ("reply", "open")
        shown.append(piece("source", name=name, state=state, text=str(source)[:4000]))
    return piece("card", shown=joined(shown))


def gallery(folder):
    """Every probe.jsonl, base first. Rows are spread evenly, so that failures keep their share."""
    files = {int(path.parent.name[4:]): path for path in folder.glob("iter*/probe.jsonl")}
    eras = []
    for k, file in sorted(files.items()):
        rows = read_jsonl(file)
        count = min(SHOWN, len(rows))
        cards = joined(card(folder, rows[i * len(rows) // count]) for i in range(count))
        valid, drawn = (sum(row.get(x) is not None for row in rows) for x in ("caption", "picture"))
        about = f"{len(rows)} proposals asked for, {valid} valid, {drawn} drawn; {count} shown"
        name = f"Iteration {k}" if k else "Base"
        state = "open" if k in (min(files), max(files)) else ""
        eras.append(piece("era", name=name, about=about, state=state, cards=cards))
    return joined(eras)


# ------------------------------------------------------------------------------------- the page


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
    title = f"Held-out accuracy {change} in {count} iteration{'s' if count > 1 else ''}"
    ends = [f"{100 * r[end]:.1f}" for r in (first, last) for end in ("sampled_low", "sampled_high")]
    return title, "95 % intervals: {}–{} % before, {}–{} % after.".format(*ends)


def change(records, key, scale=1, digits=0):
    """A figure of the first record and of the newest: "57 → 79"."""
    values = [f"{scale * r[key]:.{digits}f}" for r in records if finite(r.get(key))]
    return " → ".join(dict.fromkeys(values[:1] + values[-1:])) or "–"


def figures(config, kinds):
    """What stands above the first section: headline, loop, table."""
    evals, steps, audits = (kinds[kind] for kind in ("eval", "step", "audit"))
    title, lede = headline(evals)
    if steps and steps[-1]["iteration"] > max((r["iteration"] for r in evals), default=0):
        lede = f"{lede} Iteration {steps[-1]['iteration']} is not finished.".strip()
    seconds = [r.get("seconds") for records in kinds.values() for r in records]
    header, rows = cells(evals)
    return {
        "title": title.replace(" %", "\xa0%"),
        "lede": lede.replace(" %", "\xa0%").replace("–", "–\u2060"),  # no line breaks here
        "model": config.get("model"),
        "tiny": PIECES["tiny"] if config.get("model") == "tiny" else "",
        "steps": len(steps),
        "minutes": f"{sum(filter(finite, seconds)) / 60:.1f}",
        "valid": change(evals, "valid", 100),
        "drawn": change(evals, "render", 100),
        "right": change(evals, "sampled", 100, 1),
        "s": change(evals, "solvability", 1, 2),
        "d": change(evals, "difficulty", 1, 2),
        "kept": change([r for r in kinds["data"] if r["phase"] == "solver"], "kept"),
        "true": piece("true", percent=change(audits, "label_true", 100)) if audits else "",
        "header": tr(*header),
        "results": joined(tr(name.replace("it ", "iteration "), *row) for name, *row in rows),
        "samples": header[2].removeprefix("maj@"),
    }


def report(folder, png=None):
    """Write `folder`/report.html, and `png` -> the page's path. FileNotFoundError: not a run."""
    folder = Path(folder)
    config, kinds = read_run(folder)
    sections = panels(kinds)
    outcomes, labels, training = (
        joined(figure(panel) for panel in section if panel.series) for section in sections
    )
    settings = config.get("settings") or {}
    page = piece(  # an empty section is not shown
        "page",
        **figures(config, kinds),
        outcomes=joined([outcomes, funnel(kinds["data"])]),
        labels=labels,
        training=training,
        gallery=gallery(folder),
        settings=joined(tr(*setting) for setting in settings.items()),
    )
    partial = folder / "report.html.tmp"
    # Models write half surrogate pairs, which UTF-8 cannot.
    partial.write_bytes(page.encode("utf-8", "replace"))
    os.replace(partial, folder / "report.html")
    if png:
        figure_png([*sections[0][:5], sections[1][0]], png)
    return folder / "report.html"
