"""The report of a run: one HTML page with its loop, table, curves, label audit and gallery.

    python tools/report.py RUN     ->  RUN/report.html      (also: python eval.py --report RUN)

It reads config.json, metrics.jsonl, iterK/probe.jsonl and eval/results.jsonl of the run folder;
what a run in progress has not written yet is left out. report_page.html holds the page as Jinja
macros (PyTorch brings Jinja along), the table of its panels and the look of its curves. matplotlib
draws these, as SVG for the page and as one figure for `--png`.

What a model wrote (captions, answers, code, errors) is untrusted: Jinja escapes all that is not
`Markup`, and pictures are decoded and encoded again.
"""

import argparse
import base64
import io
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

# Run as a program, it finds the modules above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.answers import answers_match, tally
from support.figures import cells
from support.machine import replacing
from support.run_folder import read_jsonl

ROLES = {"proposer": "c0", "coder": "c1", "solver": "c2"}  # and their colours
SHOWN = 24  # gallery entries per iteration: the page stays far below 5 MB
FEW = 8  # so many measurements are shown one by one


# ------------------------------------------------------------------------------- the run folder


def read_run(folder):
    """-> (config, {"step" | "data" | "eval" | "audit": records}).

    record["x"] is where it stands on the axis of iterations: step t of T in iteration k stands at
    k - 1 + t / T, all else at k.
    """
    if not (folder / "config.json").is_file():
        why = f"{folder} is not a run folder (no config.json): give the --out of a run"
        raise FileNotFoundError(why)
    kinds = {"step": [], "data": [], "eval": [], "audit": []}
    for r in read_jsonl(folder / "metrics.jsonl"):
        kinds[r["kind"]].append(r | {"x": r["iteration"]})
    last = Counter()  # of a phase, the number of its last step
    for r in kinds["step"]:
        last[r["phase"]] = max(last[r["phase"]], r["step"])
    for r in kinds["step"]:
        r["x"] += r["step"] / last[r["phase"]] - 1
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), kinds


def of_iterations(folder, name):
    """{K: iterK/name} of those that are there, in order."""
    files = {int(path.parent.name[4:]): path for path in folder.glob(f"iter*/{name}")}
    return dict(sorted(files.items()))


def finite(x):
    return isinstance(x, (int, float)) and math.isfinite(x)


def change(records, key, form):
    """A figure of the first record and of the newest: "57 → 79"."""
    values = [format(r[key], form).strip("%") for r in records if finite(r.get(key))]
    return " → ".join(dict.fromkeys(values[:1] + values[-1:])) or "–"


# ------------------------------------------------------------------------------------- the page


def number(x, digits=4):
    return f"{x:.{digits}f}".replace("-", "−")


TEXT = Path(__file__).with_name("report_page.html").read_text(encoding="utf-8")
# {"c0": "#0072b2", ...}, on light ground
COLOURS = dict(re.findall(r"--(\w+): (#\w+)", TEXT.split("@media")[0]))
STYLE = Markup(TEXT.split("<style>")[1].split("</style>")[0])  # of all pages
JINJA = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
JINJA.filters["n"] = number
JINJA.tests["matches"] = answers_match
JINJA.globals.update(cells=cells, change=change, tally=tally, answers_match=answers_match)
JINJA.globals.update(roles=ROLES, colours=COLOURS, style=STYLE)
PAGE = JINJA.from_string(TEXT).module  # with the macros as functions
LOOK = dict(re.findall("(.+): (.+)", PAGE.look))  # of matplotlib


def write(path, page):
    """The page, whole, or what was there before."""
    with replacing(path) as new:
        # Models write half surrogate pairs, which UTF-8 cannot.
        new.write_bytes(page.encode("utf-8", "replace"))
    return path


# --------------------------------------------------------------------------------------- curves


class Panel(NamedTuple):
    title: str
    note: str
    label: str  # of the y axis; the x axis is the iteration, and 0 the base
    series: list  # of (name, colour, points): (x, y) or, with a band, (x, y, low, high)
    top: float = 0  # the y axis goes from 0 or below to here or above
    kind: str = "lines"  # or boxes, whose y are lists


def lines(records, key, colour, scale=1):
    """[one line], or [] if nothing has a value. A key that comes with _low and _high has a band.

    With the colour "role" there is a line for each role that has values.
    """
    if colour.startswith("role"):
        found = []
        for role, own_colour in ROLES.items():
            own = [r for r in records if r["phase"] == role]
            line = lines(own, key, colour.replace("role", own_colour), scale)
            found += [(role, style, points) for _, style, points in line]
        return found
    points = []
    for r in records:
        ys = [r[name] for name in (key, f"{key}_low", f"{key}_high") if name in r]
        if key in r and all(map(finite, ys)):
            points.append((r["x"], *(scale * y for y in ys)))
    return [(key.replace("_", " "), colour, points)] if points else []


def by_type(evals):
    """A panel for each content type: is it asked for, is it drawn, are questions on it answered?"""
    colours = {"proposed": "c0", "drawn": "c1", "sampled": "c2"}
    names = set()
    for r in evals:
        for key in colours:
            names.update(name for name, share in r.get(f"types_{key}", {}).items() if share)
    panels = []
    for name in sorted(names):
        series = []
        for key, colour in colours.items():
            own = [{"x": r["x"], key: r.get(f"types_{key}", {}).get(name)} for r in evals]
            series += lines(own, key, colour, 100)
        panels.append(Panel(name.replace("_", " "), "", "%", series, 100))
    return panels


def panel(heading, note, kinds):
    """Two lines of the page's table of panels -> Panel."""
    title, label, top, source, entries = heading.split(" | ")
    records, series, kind = kinds[source], [], "lines"
    if entries == "hard_consistency":
        points = [(r["x"], r[entries]) for r in records if r.get(entries)]
        series, kind = [("consistency", "c2", points)] if points else [], "boxes"
    else:
        for entry in entries.split(", "):
            key, colour = entry.split(maxsplit=1)
            series += lines(records, key, colour, 100 if label == "%" else 1)
    return Panel(title, note, label, series, float(top), kind)


def panels(kinds):
    """All panels in three lists: what the roles make together, their labels, their training."""
    own = {role: [r for r in kinds["step"] if r["phase"] == role] for role in ROLES}
    sections = []
    for section in str(PAGE.panels).split("\n\n"):
        pairs = re.findall("(.+)\n(.+)", section)
        sections.append([panel(heading, note, kinds | own) for heading, note in pairs])
    return sections


def draw(axes, panel):
    """Draw `panel` on matplotlib's `axes`."""
    few = all(len(points) <= FEW for _, _, points in panel.series)
    for name, style, points in panel.series:
        x, y, *band = zip(*points)
        colour, *dashed = style.split()
        look = {"color": COLOURS[colour], "clip_on": False}
        if panel.kind == "boxes":
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


# What matplotlib writes into an SVG and the page does without.
NEEDLESS = r"(?s)^.*?(?=<svg)|<(metadata|style).*?</\1>|font-family: [^;]*;| id=.[\w.]+_\d+."


@matplotlib.rc_context(LOOK)
def figure(panel):
    """The panel as HTML: text that wraps on a phone, and SVG in the page's font and colours."""
    drawing, file = Figure(figsize=(350 / 72, 206 / 72)), io.StringIO()  # a unit is a pixel
    draw(drawing.add_axes((0.13, 0.19, 0.84, 0.7)), panel)
    drawing.savefig(file, format="svg", transparent=True)
    svg = re.sub(NEEDLESS, "", file.getvalue())
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(panel.title)}"', 1)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    keys = []
    for name, colour, points in panel.series:
        values = [short(y) for _, y, *_ in points if finite(y) and len(points) <= FEW]
        keys.append((name, colour, values))
    return PAGE.figure(panel, Markup(svg), keys)


@matplotlib.rc_context(LOOK)
def figure_png(panels, path):
    """The main curves as one figure for a paper; the ending of `path` is the format."""
    drawing = Figure(figsize=(9, 5.4), layout="constrained")
    shown = [panel for panel in panels if panel.series]
    for place, panel in enumerate(shown, 1):
        axes = drawing.add_subplot(2, 3, place)
        draw(axes, panel)
        title = f"{panel.title} ({panel.label})"
        axes.set_title(title, loc="left", color=COLOURS["ink"])
        axes.legend(fontsize="small", labelspacing=0.2)
    drawing.savefig(path, dpi=200)


# ------------------------------------------------------------------------------ eval.py --run


def outside(folder):
    """The page's section on RUN/eval/results.jsonl, which `eval.py --run` writes, or nothing."""
    sets, figures = {}, []
    for r in read_jsonl(folder / "eval/results.jsonl"):
        iteration = 0 if r["model"] == "base" else int(r["model"].removeprefix("it "))
        sets.setdefault(r["set"], {})[iteration] = r | {"x": iteration}
    for name, rows in sets.items():
        points = lines([rows[k] for k in sorted(rows)], "sampled", "c2", 100)
        note = "The band is the 95 % interval."
        figures.append(figure(Panel(Path(name).name, note, "%", points, 100)))
    return PAGE.outside(sets, sorted({k for rows in sets.values() for k in rows}), figures)


# ---------------------------------------------------------------------------------- the gallery


def picture(path, caption):
    """An <img> of pixels decoded and encoded again, never the file's own bytes."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((320, 320))
    size, file = max(image.size), io.BytesIO()
    kind = "png" if size <= 128 else "jpeg"
    image.save(file, kind)
    data = base64.b64encode(file.getvalue()).decode()
    zoom = max(1, min(3, 200 // size))  # small ones are shown larger
    return PAGE.picture(kind, data, caption, zoom * image.width, zoom * image.height)


def gallery(folder):
    """[(iteration, rows, cards)] of every probe.jsonl, base first.

    The cards are of rows that are spread evenly, so that failures keep their share.
    """
    eras = []
    for k, file in of_iterations(folder, "probe.jsonl").items():
        rows, cards = read_jsonl(file), []
        count = min(SHOWN, len(rows))
        for i in range(count):
            row, shown = rows[i * len(rows) // count], None
            if row.get("picture") and (folder / row["picture"]).is_file():
                shown = picture(folder / row["picture"], row["caption"])
            cards.append(PAGE.card(row, shown))
        eras.append((k, rows, cards))
    return eras


# ------------------------------------------------------------------------------------- the page


def report(folder, png=None):
    """Write `folder`/report.html, and `png` -> the page's path. FileNotFoundError: not a run."""
    folder = Path(folder)
    config, kinds = read_run(folder)
    sections = [*panels(kinds), by_type(kinds["eval"])]
    evals = [r for r in kinds["eval"] if finite(r.get("sampled"))]
    seconds = sum(r.get("seconds", 0) for records in kinds.values() for r in records)
    figures = [[figure(panel) for panel in section if panel.series] for section in sections]
    eras = gallery(folder)
    page = PAGE.page(config, kinds, evals, seconds, figures, eras, outside(folder))
    if png:
        figure_png([*sections[0][:5], sections[1][0]], png)
    return write(folder / "report.html", page)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="The page of a run: RUN/report.html.")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--png", metavar="FILE", help="the main curves as a figure, too")
    options = parser.parse_args(arguments)
    try:
        print(report(options.run, options.png))
    except (ValueError, OSError) as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
