"""The report of a run: one HTML page with its loop, table, curves, label audit and gallery, readable without scripts.

    report("runs/first")  ->  runs/first/report.html          (also: python eval.py --report runs/first)

Read from the run folder: config.json, metrics.jsonl, iterK/probe.jsonl; what a run in progress has not written yet is left out.
report_page.html is the page around it. matplotlib draws the curves, for the page (as SVG) and for `--png`, in the palette of
Okabe and Ito, which colour-blind readers can tell apart; on the page the colours are its CSS variables, and so it can go dark.

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
import string
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from support.answers import answers_match, tally

PAGE = Path(__file__).with_name("report_page.html").read_text(encoding="utf-8")
COLOURS = dict(
    re.findall(r"--(\w+): (#\w+)", PAGE[: PAGE.index("@media")])
)  # on light ground: {"c0": "#0072b2", ...}
PHASES = ("proposer", "coder", "solver")  # role i has the colour c{i}
SHOWN = 24  # gallery entries per iteration: the page stays far below 5 MB
FEW = 8  # measurements that are shown one by one


def esc(value):
    return html.escape(str(value), quote=True)


def finite(x):
    return isinstance(x, (int, float)) and math.isfinite(x)


def short(x):
    return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}".replace("e-0", "e-")


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
    """-> (config, {"step" | "data" | "eval" | "audit": records}); record["x"] is where it stands on the axis of iterations.

    Step t of T in iteration k stands at k - 1 + t / T, all else at k.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} is not a run folder (no config.json): give the --out of a run"
        )
    kinds, last = {"step": [], "data": [], "eval": [], "audit": []}, Counter()
    for r in read_jsonl(folder / "metrics.jsonl"):
        kinds[r["kind"]].append(r | {"x": r["iteration"]})
        last[r.get("phase")] = max(last[r.get("phase")], r.get("step", 1))
    for r in kinds["step"]:
        r["x"] += r["step"] / last[r["phase"]] - 1
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), kinds


# ---------------------------------------------------------------------------------------------------- tables


def markdown(header, rows):
    """Aligned Markdown; the first column is text, the others are numbers.

    >>> print(markdown(["model", "greedy"], [["tiny", "93.5"]]))
    | model | greedy |
    |:------|-------:|
    | tiny  |   93.5 |
    """
    first, *widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [
        "| "
        + " | ".join([f"{row[0]:{first}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths))])
        + " |"
        for row in (header, *rows)
    ]
    return "\n".join(
        [
            lines[0],
            f"|:{'-' * (first + 1)}|" + "".join("-" * (w + 1) + ":|" for w in widths),
            *lines[1:],
        ]
    )


def cells(evals):
    """Eval records (base, iteration 1, ...) -> header and rows of the results, on the page and on the terminal.

    In %: accuracy on held-out hard questions (mean of n samples with its 95 % interval, majority of n, greedy) and on
    easy ones; proposals that parse; codes that draw. In [0, 1]: mean solvability and difficulty, entropy of types.
    """

    def number(
        r, key, scale=100, digits=1
    ):  # 100 goes without decimals: a terminal is 100 columns wide
        return f"{scale * r[key]:.{digits}f}".replace("100.0", "100") if finite(r.get(key)) else "–"

    header = [
        "",
        "held-out (95 %)",
        f"maj@{evals[0].get('n', 8) if evals else 8}",
        *"greedy easy valid render".split(),
        "solvable",
        "difficulty",
        "types",
    ]
    return header, [
        [
            f"it {r['iteration']}" if r["iteration"] else "base",
            f"{number(r, 'sampled')} ({number(r, 'sampled_low')}–{number(r, 'sampled_high')})",
            *(number(r, key) for key in ("majority", "greedy", "easy", "valid", "render")),
            *(number(r, key, 1, 2) for key in ("solvability", "difficulty", "type_entropy")),
        ]
        for r in evals
    ]


def table(evals):
    """The results of a run as Markdown that fits a terminal of 100 columns."""
    return markdown(*cells(evals))


def tr(first, *others):
    return f"<tr><th>{first}</th>{''.join(f'<td>{other}</td>' for other in others)}</tr>"


def meter(percent, colour):
    return f'<span class="meter {colour}"><i style="width:{percent:.1f}%"></i></span>'


def funnel(records):
    """What each phase asked the Proposer for and what was left of it, a bar under each number."""
    stages, rows = ("asked", "valid", "rendered", "evaluated", "kept"), ""
    for r in sorted(records, key=lambda r: PHASES.index(r["phase"])):
        bar = lambda n: meter(100 * n / max(r["asked"], 1), f"c{PHASES.index(r['phase'])}")
        rows += tr(
            f"{r['phase']} {r['iteration']}",
            *(f"{n:g}{bar(n)}" if finite(n) else "–" for n in map(r.get, stages)),
        )
    return rows and (
        f'<figure class="wide"><h3>From proposals to training data</h3><p class="key"></p><div class="scroll">'
        f'<table class="funnel"><thead>{tr("", *stages)}</thead>{rows}</table></div><figcaption>What each phase '
        "asked of the Proposer, and how much was parsed, drawn, answered, and kept.</figcaption></figure>"
    )


# ---------------------------------------------------------------------------------------------------- curves


class Panel(NamedTuple):
    title: str
    note: str
    label: str  # of the y axis; the x axis is the iteration, and 0 the base
    series: list  # of (name, colour, points): (x, y) or, with a band, (x, y, low, high)
    top: float = 0  # the y axis goes from 0 or below to here or above
    kind: str = "lines"  # or boxes, whose y are lists; or bars, which stand on each other


def lines(records, scale=1, dash="", **colours):
    """One line for each key = colour; what has no value is left out. A key that comes with _low and _high has a band."""
    series = []
    for key, colour in colours.items():
        points = [
            (r["x"], *(r.get(k) for k in (key, f"{key}_low", f"{key}_high") if k == key or k in r))
            for r in records
        ]
        points = [(x, *(scale * y for y in ys)) for x, *ys in points if all(map(finite, ys))]
        series += [(key.replace("_", " "), colour + dash, points)] if points else []
    return series


def roles(records, key, scale=1, dash=""):
    """One line for each role."""
    return [
        (role, colour, points)
        for i, role in enumerate(PHASES)
        for _, colour, points in lines(
            [r for r in records if r["phase"] == role], scale, dash, **{key: f"c{i}"}
        )
    ]


def draw(axes, panel):
    """Draw `panel` on matplotlib's `axes`."""
    below, few = Counter(), all(len(points) <= FEW for _, _, points in panel.series)
    for name, style, points in panel.series:
        x, y, *band = zip(*points)
        colour, *dashed = style.split()
        look = {"color": COLOURS[colour], "clip_on": False}
        if panel.kind == "bars":
            axes.bar(x, y, 0.64, [below[i] for i in x], **look)
            below.update(dict(zip(x, y)))  # a Counter adds
        elif panel.kind == "boxes":
            parts = ("boxprops", "whiskerprops", "medianprops")
            axes.boxplot(
                y,
                positions=x,
                widths=0.4,
                whis=(5, 95),
                showfliers=False,
                showcaps=False,
                manage_ticks=False,
                **{part: look | {"lw": 3 if part == "medianprops" else 1.7} for part in parts},
            )
        else:
            axes.plot(x, y, "--" if dashed else "-", marker="o" * few, label=name, **look)
            axes.fill_between(x, *(band or (y, y)), color=COLOURS[colour], alpha=0.16, lw=0)
    xs = [x for _, _, points in panel.series for x, *_ in points]
    # What has no value for the base starts half an iteration early: a single iteration stands in the middle.
    start, end = (
        (0, max(1, *xs))
        if min(xs) < 1 and panel.kind == "lines"
        else (min(xs) // 1 - 0.5, max(xs) + 0.5)
    )
    ticks = range(math.ceil(start), math.floor(end) + 1, math.ceil((end - start) / 10))
    axes.set(xlim=(start, end), xticks=ticks, xticklabels=[x or "base" for x in ticks])
    axes.axhline(0, color=COLOURS["soft"], lw=0.8)
    axes.update_datalim([(start, panel.top or not axes.dataLim.height)])  # all zero: up to 1
    axes.autoscale(axis="y")
    axes.yaxis.set_major_formatter(lambda y, _: short(y))
    axes.set_xlabel("iteration →", loc="right")
    axes.set_title("↑ " + panel.label, loc="left")


GREY = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
LOOK = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
    "axes.axisbelow": True,
    **{f"axes.spines.{side}": False for side in ("top", "right", "left", "bottom")},
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["rule"],
    **dict.fromkeys(GREY, COLOURS["soft"]),
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "axes.autolimit_mode": "round_numbers",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "same every time",
}


@matplotlib.rc_context(LOOK)
def figure(panel):
    """The panel as HTML. Title, legend and note wrap on a phone; the curve is SVG in the page's own font and colours."""
    drawing = Figure(figsize=(350 / 72, 206 / 72))  # a unit of the SVG is a pixel
    draw(drawing.add_axes((0.13, 0.17, 0.84, 0.72)), panel)
    drawing.savefig(file := io.StringIO(), format="svg", transparent=True)
    svg = re.sub(
        r'(?s)^.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;]*;| id="[\w.]+_\d+"',
        "",
        file.getvalue(),
    ).replace("<svg", f'<svg role="img" aria-label="{esc(panel.title)}"', 1)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    keys = ""
    for name, colour, points in panel.series:
        values = [short(y) for _, y, *_ in points if finite(y) and len(points) <= FEW]
        keys += f'<span class="{colour}"><i></i>{esc(name)} {" → ".join(values)}</span>'
    return (
        f'<figure><h3>{esc(panel.title)}</h3><p class="key">{keys}</p>{svg}'
        f"<figcaption>{esc(panel.note)}</figcaption></figure>"
    )


@matplotlib.rc_context(LOOK)
def figure_png(panels, path):
    """The main curves as one figure for a paper; the ending of `path` is the format."""
    drawing, panels = (
        Figure(figsize=(9, 5.4), layout="constrained"),
        [panel for panel in panels if panel.series],
    )
    for place, panel in enumerate(panels, 1):
        draw(axes := drawing.add_subplot(2, 3, place), panel)
        axes.set_title(f"{panel.title} ({panel.label})", loc="left", color=COLOURS["ink"])
        axes.legend(fontsize="small", labelspacing=0.2)
    drawing.savefig(path, dpi=200)


def panels(kinds):
    """All of them, in three parts: what the roles make and their labels once per iteration, training every step."""
    evals, data, audits, steps = (kinds[kind] for kind in ("eval", "data", "audit", "step"))
    proposer, coder, solver = ([r for r in steps if r["phase"] == role] for role in PHASES)
    consistency = [(r["x"], r["hard_consistency"]) for r in evals if r.get("hard_consistency")]
    types = {r["x"]: Counter(r["types"]) for r in evals if r.get("types")}
    names = sorted(set().union(*types.values()), key=lambda name: (name == "other", name))
    kinds = [
        (
            name,
            "grey" if name == "other" else f"c{i % 7}",
            [(x, 100 * n[name] / n.total()) for x, n in types.items()],
        )
        for i, name in enumerate(names)
    ]
    return (
        [
            Panel(
                "Held-out accuracy",
                "On charts no role was trained on, hard questions and easy; the band is the 95 % interval.",
                "%",
                lines(evals, 100, sampled="c2", majority="c0", greedy="c1", easy="c3 dash"),
                100,
            ),
            Panel(
                "Proposals and pictures",
                "Replies of the Proposer that parse, codes of the Coder that draw.",
                "%",
                lines(evals, 100, valid="c0", render="c1"),
                100,
            ),
            Panel(
                "Solvability",
                "How often the Solver reads the Proposer's easy answer off the picture (s).",
                "mean s",
                lines(evals, solvability="c2"),
                1,
            ),
            Panel(
                "Difficulty",
                "min(c, 1 − c) of the hard question: highest when half of the answers agree.",
                "mean d",
                lines(evals, difficulty="c3"),
                0.5,
            ),
            Panel(
                "Easy–hard gap",
                "Agreement on easy questions minus agreement on hard ones.",
                "share",
                lines(evals, easy_hard_gap="c4"),
            ),
            Panel(
                "Consistency on hard questions",
                "Share of answers equal to their majority: quartiles, 5–95 %.",
                "consistency c",
                [("consistency", "c2", consistency)] if consistency else [],
                1,
                "boxes",
            ),
            Panel(
                "Content types",
                "What the Proposer writes about.",
                "% of valid proposals",
                kinds,
                100,
                "bars",
            ),
            Panel(
                "Variety of types",
                "Entropy of the content types: 0 is one type only, 1 is all types equally.",
                "entropy",
                lines(evals, type_entropy="c0"),
                1,
            ),
            Panel(
                "Length of code",
                "Mean tokens of one program by the Coder.",
                "tokens",
                lines(evals, code_tokens="c1"),
            ),
            Panel(
                "Training sets",
                "Prompts left after the filters. The Coder's shrink as everything renders.",
                "prompts",
                roles(data, "kept"),
            ),
        ],
        [
            Panel(
                "Are the labels true?",
                "Labels and Proposer's answers that are true, where known; labels that equal the Proposer's "
                "answer.",
                "%",
                lines(audits, 100, label_true="c2", proposer_true="c0", agree_proposer="c3 dash"),
                100,
            ),
            Panel(
                "Ways to cheat",
                "Labels also given without the picture; written into it; the commonest. Grey: questions with known "
                "truth.",
                "%",
                lines(audits, 100, blind="c1", written="c4", top_label="c5", checkable="grey"),
                100,
            ),
            Panel(
                "Entropy of labels",
                "Of the votes behind one label (mean), and of all labels together.",
                "nats",
                lines(audits, vote_entropy="c3", label_entropy="c0"),
            ),
        ],
        [
            Panel(
                "Reward",
                "Mean over a step; each role has its own scale.",
                "reward",
                roles(steps, "reward"),
            ),
            Panel(
                "Proposer: what its proposals led to",
                "Means over a step.",
                "share",
                lines(proposer, valid="c0", rendered="c1", solvability="c2", difficulty="c3"),
                1,
            ),
            Panel(
                "Proposer: penalties",
                "Too easy or hopeless (E), one type too often (T), texts alike (V).",
                "taken off",
                lines(proposer, easy_hard="c4", type="c5", diversity="c3"),
            ),
            Panel(
                "Coder: parts of its reward",
                "Means over a step.",
                "share",
                lines(coder, rendered="c1", solvability="c2", difficulty="c3"),
                1,
            ),
            Panel(
                "Solver: parts of its reward",
                "Answers equal to the majority label; replies in the form asked for.",
                "share",
                lines(solver, accuracy="c2", format="grey"),
                1,
            ),
            Panel(
                "KL to the start of the phase", "k3 estimate per token.", "nats", roles(steps, "kl")
            ),
            Panel(
                "Entropy",
                "Of the next token, over the rollouts' own tokens.",
                "nats",
                roles(steps, "entropy"),
            ),
            Panel(
                "Clipped tokens",
                "Share of tokens whose ratio left the clip range, above or (dashed) below.",
                "%",
                roles(steps, "clip_high", 100) + roles(steps, "clip_low", 100, " dash"),
            ),
            Panel("Gradient norm", "Before clipping.", "norm", roles(steps, "grad_norm")),
            Panel(
                "Groups without signal",
                "All rewards of a group are equal.",
                "%",
                roles(steps, "zero_variance", 100),
                100,
            ),
            Panel(
                "Cut replies",
                "Rollouts stopped by the length limit.",
                "%",
                roles(steps, "truncated", 100),
            ),
            Panel(
                "Rollout against trainer",
                "Largest gap of a token's log-prob when sampled and when trained on.",
                "|Δ log p|",
                roles(steps, "logp_gap"),
            ),
        ],
    )


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
    return (
        f'<img src="data:image/{kind};base64,{data}" alt="{esc(caption)}" '
        f'width="{zoom * image.width}" height="{zoom * image.height}">'
    )


def ballot(name, question, answer, answers):
    """One question: the Proposer's answer, and a bar per distinct answer of the Solver."""
    rows = ""
    for given, votes in sorted(tally(answers or ()).items(), key=lambda pair: -pair[1]):
        same = answers_match(given, answer)
        text = "no answer" if given is None else str(given)[:60] + " ✓" * same
        rows += f"<li><span>{esc(text)}</span>{meter(100 * votes / len(answers), 'c2' if same else 'grey')}{votes}</li>"
    return f'<p><b>{name}</b> {esc(question)} <span class="a">Proposer: {esc(answer)}</span></p><ul class="votes">{rows}</ul>'


def card(folder, row):
    """One proposal's fate: its picture, or why there is none; texts, votes, code. Or the reply that was no proposal."""
    valid = row.get("caption") is not None
    shown = f'<div class="none">no {"picture" if valid else "proposal"}</div>'
    if valid and row.get("picture") and (folder / row["picture"]).is_file():
        shown = picture(folder / row["picture"], row["caption"])
    shown += f'<p class="tag">{" · ".join(esc(row[key]) for key in ("content_type", "topic") if row.get(key))}</p>'
    shown += f"<p>{esc(row['caption'])}</p>" if valid else ""
    if error := row.get("error") if valid else "The reply could not be parsed.":
        shown += f'<p class="error">{esc(str(error)[:300])}</p>'
    for kind in ("easy", "hard") if valid else ():
        shown += ballot(
            kind.title(), *(row.get(f"{kind}_{x}") for x in ("question", "answer", "answers"))
        )
    if source := row.get("code" if valid else "reply"):
        name, state = (f"code ({esc(row.get('language'))})", "") if valid else ("reply", "open")
        shown += f"<details {state}><summary>{name}</summary><pre>{esc(str(source)[:4000])}</pre></details>"
    return f"<article>{shown}</article>"


def gallery(folder):
    """Every probe.jsonl, base first; of each an even spread of SHOWN rows: failures keep their share."""
    probes = {
        int(path.parent.name[4:]): read_jsonl(path) for path in folder.glob("iter*/probe.jsonl")
    }
    sections = ""
    for k, rows in sorted(probes.items()):
        count = min(SHOWN, len(rows))
        cards = "".join(card(folder, rows[i * len(rows) // count]) for i in range(count))
        valid, drawn = (
            sum(row.get(key) is not None for row in rows) for key in ("caption", "picture")
        )
        name, state = (
            f"Iteration {k}" if k else "Base",
            "open" if k in (min(probes), max(probes)) else "",
        )
        about = f"{len(rows)} proposals asked for, {valid} valid, {drawn} drawn; {count} shown"
        sections += (
            f'<details class="era" {state}><summary>{name}<small>{about}</small></summary>'
            f'<div class="cards">{cards}</div></details>'
        )
    return sections


# --------------------------------------------------------------------------------------------------- the page


def headline(evals):
    """The run in one sentence, and how sure that is."""
    evals = [r for r in evals if finite(r.get("sampled"))]
    if not evals:
        return "Nothing is measured yet", ""
    percent = lambda r, *keys: "–".join(f"{100 * r[key]:.1f}" for key in keys) + " %"
    first, last, count = evals[0], evals[-1], evals[-1]["iteration"] - evals[0]["iteration"]
    before, after = percent(first, "sampled"), percent(last, "sampled")
    if first is last:
        return f"The base answers {before} of held-out questions; no iteration is finished yet", ""
    verb = "rose" if last["sampled"] > first["sampled"] else "fell"
    change = f"stayed at {before}" if before == after else f"{verb} from {before} to {after}"
    before, after = (percent(r, "sampled_low", "sampled_high") for r in (first, last))
    return (
        f"Held-out accuracy {change} in {count} iteration{'s' * (count > 1)}",
        f"95 % intervals: {before} before, {after} after.",
    )


def change(records, key, scale=1, digits=0):
    """A figure of the first record and of the newest: "57 → 79"."""
    values = [f"{scale * r[key]:.{digits}f}" for r in records if finite(r.get(key))]
    return " → ".join(dict.fromkeys(values[:1] + values[-1:])) or "–"


def report(folder, png=None):
    """Write `folder`/report.html, and `png` (see figure_png) -> the path. FileNotFoundError if it is no run."""
    folder = Path(folder)
    config, kinds = read_run(folder)
    evals, steps, data, audits = (kinds[kind] for kind in ("eval", "step", "data", "audit"))
    title, lede = headline(evals)
    if steps and steps[-1]["iteration"] > max((r["iteration"] for r in evals), default=0):
        lede = f"{lede} Iteration {steps[-1]['iteration']} is not finished.".strip()
    outcomes, labels, training = parts = panels(kinds)
    figures = ["".join(figure(panel) for panel in part if panel.series) for part in parts]
    header, results = cells(evals)
    page = string.Template(PAGE).substitute(  # an empty section is not shown
        title=esc(title).replace(" %", "&nbsp;%"),
        lede=esc(lede).replace(" %", "&nbsp;%"),
        steps=len(steps),
        outcomes=figures[0] + funnel(data),
        labels=figures[1],
        training=figures[2],
        gallery=gallery(folder),
        model=esc(config.get("model")),
        tiny="It was pretrained on procedural scenes of the same kind as the held-out charts."
        if config.get("model") == "tiny"
        else "",
        minutes=f"{sum(r['seconds'] for records in kinds.values() for r in records if finite(r.get('seconds'))) / 60:.1f}",
        valid=change(evals, "valid", 100),
        drawn=change(evals, "render", 100),
        right=change(evals, "sampled", 100, 1),
        s=change(evals, "solvability", 1, 2),
        d=change(evals, "difficulty", 1, 2),
        kept=change([r for r in data if r["phase"] == "solver"], "kept"),
        true=f", <b>{change(audits, 'label_true', 100)} %</b> of them true where that is known"
        if audits
        else "",
        header=tr(*header),
        results="".join(tr(name.replace("it ", "iteration "), *row) for name, *row in results),
        samples=header[2].removeprefix("maj@"),
        settings="".join(
            tr(esc(key), esc(value)) for key, value in (config.get("settings") or {}).items()
        ),
    )
    partial = folder / "report.html.tmp"
    partial.write_bytes(
        page.encode("utf-8", "replace")
    )  # models write half surrogate pairs, UTF-8 cannot
    os.replace(partial, folder / "report.html")
    if png:
        figure_png([*outcomes[:5], labels[0]], png)
    return folder / "report.html"
