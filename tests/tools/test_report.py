"""The report of a run and its table (report.py), on folders shaped like a real run."""

import html.parser
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from support import figures
from tools import report as reporting

# --------------------------------------------------------------------------------------------------
# The terminal table


def eval_row(iteration, rng, **changes):
    k, sampled = iteration, [0.64, 0.71, 0.76, 0.796][iteration]
    return (
        dict(
            kind="eval",
            iteration=k,
            sampled=sampled,
            sampled_low=sampled - 0.027,
            sampled_high=sampled + 0.026,
            majority=0.865 + 0.01 * k,
            greedy=0.93,
            easy=0.84,
            unread=0.01,
            questions=400,
            n=8,
            seconds=9.0,
            valid=0.72 + 0.08 * k,
            render=0.68 + 0.1 * k,
            solvability=0.7 + 0.06 * k,
            difficulty=0.24 - 0.02 * k,
            type_entropy=0.9 + 0.01 * k,
            code_tokens=52 + 3 * k,
            easy_hard_gap=0.25 - 0.03 * k,
            types_proposed={"data_chart": 0.7 - 0.1 * k, "map": 0.3 + 0.1 * k, "table": 0.0},
            types_drawn={"data_chart": 0.9, "map": 0.4 + 0.2 * k},
            types_sampled={"data_chart": sampled, "map": sampled - 0.1},
            hard_consistency=[rng.choice([0.2, 0.4, 0.6, 0.8, 0.8, 1.0]) for _ in range(60)],
        )
        | changes
    )


def test_table_fits_100_columns_and_shows_every_figure():
    rng = random.Random(0)
    rows = [eval_row(k, rng) for k in range(4)]
    rows[3] |= {
        key: 1.0
        for key in ("sampled", "sampled_low", "sampled_high", "majority", "greedy", "valid")
    }
    lines = figures.table(rows).splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    assert [c.strip() for c in lines[2].split("|")[1:-1]] == [
        "base",
        "64.0 (61.3–66.6)",
        "86.5",
        "93.0",
        "84.0",
        "72.0",
        "68.0",
        "0.70",
        "0.24",
        "0.90",
    ]
    assert lines[5].startswith("| it 3 |    100 (100–100) |")


def test_table_of_a_run_in_progress():
    text = figures.table([{"iteration": 0, "sampled": 0.5, "majority": float("nan")}])
    assert re.search(r"\| base \| +50.0 \(–––\) \| +– \|", text)
    assert len(figures.table([]).splitlines()) == 2


# --------------------------------------------------------------------------------------------------
# The report, on a folder shaped like a real run


def draw_bars(values, path):
    picture = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(picture)
    for i, (value, colour) in enumerate(zip(values, ["#0072b2", "#d55e00", "#009e73", "#cc79a7"])):
        pen.rectangle([6 + 14 * i, 58 - 5 * value, 15 + 14 * i, 58], fill=colour)
    picture.save(path)


TEXTS = ("content_type", "caption", "easy_question", "easy_answer", "hard_question", "hard_answer")


def probe_row(folder, iteration, index, rng):
    """One proposal: unparsable, or without a picture, or drawn and answered."""
    row = dict.fromkeys(
        TEXTS + ("code", "language", "error", "picture", "solvability", "consistency")
    )
    row["topic"] = rng.choice(["chart and graph understanding", "spatial and geometric reasoning"])
    if rng.random() < 0.25 - 0.07 * iteration:
        return row | {"reply": "<content_type>data_chart</content_type><caption>bars A 4"}
    a, b, c, d = values = [rng.randint(1, 9) for _ in range(4)]
    shapes = "".join(
        f'<rect x="{6 + 14 * i}" y="{58 - 5 * v}" width="9" height="{5 * v}"/>'
        for i, v in enumerate(values)
    )
    row |= dict(
        content_type=rng.choice(["data_chart", "geometry", "table"]),
        caption=f"bars A {a} B {b} C {c} D {d}",
        easy_question="What is the value of B?",
        easy_answer=str(b),
        language="svg",
        hard_question="How much larger is A than C?",
        hard_answer=str(a - c),
        code=f'<svg viewBox="0 0 64 64">{shapes}</svg>',
    )
    if rng.random() < 0.3 - 0.09 * iteration:
        return row | {"error": "not well-formed (invalid token): line 1, column 41"}
    row["picture"] = f"iter{iteration}/pictures/probe_{index:04d}.png"
    draw_bars(values, folder / row["picture"])
    row["easy_answers"] = [str(b + rng.choice([0, 0, 0, 1])) for _ in range(5)]
    row["hard_answers"] = [rng.choice([str(a - c), str(a - c), str(a), None]) for _ in range(5)]
    return row | {"solvability": 0.8, "consistency": 0.6}


def step_row(iteration, phase, step, steps, t, rng):
    def noise(scale):
        return scale * (rng.random() - 0.5)

    row = dict(
        kind="step",
        iteration=iteration,
        phase=phase,
        step=step,
        seconds=2.5,
        loss=0.01,
        tokens=9000,
        kl=0.004 * step / steps + noise(0.001),
        approx_kl=0.001,
        entropy=0.5 - 0.2 * t + noise(0.03),
        grad_norm=0.4 + noise(0.2),
        clip_high=0.004 + noise(0.004),
        clip_low=0.002 + noise(0.002),
        clip_dual=0.0,
        zero_variance=0.2 + 0.3 * t + noise(0.1),
        truncated=0.05 + noise(0.02),
        logp_gap=2e-6 + noise(1e-6),
        logp_gap_mean=1e-7,
    )
    return (
        row
        | {
            "proposer": dict(
                reward=0.1 + 0.3 * t + noise(0.1),
                valid=0.7 + 0.28 * t,
                rendered=0.6 + 0.3 * t,
                solvability=0.4 + 0.3 * t,
                difficulty=0.2 + noise(0.03),
                easy_hard=0.1 - 0.08 * t,
                type=0.02,
                diversity=noise(0.1),
                type_entropy=0.9,
            ),
            "coder": dict(
                reward=0.7 + 0.7 * t + noise(0.2),
                rendered=0.6 + 0.35 * t,
                solvability=0.5 + 0.3 * t,
                difficulty=0.2 + noise(0.03),
            ),
            "solver": dict(
                reward=0.6 + 0.2 * t, accuracy=0.55 + 0.2 * t + noise(0.05), format=0.97
            ),
        }[phase]
    )


def audit_row(iteration):
    return dict(
        kind="audit",
        iteration=iteration,
        phase="solver",
        questions=100,
        agree_proposer=0.3,
        checkable=0.5,
        label_true=0.7 - 0.05 * iteration,
        proposer_true=0.2,
        vote_entropy=1.2,
        label_entropy=2.9,
        top_label=0.15,
        written=0.0,
        blind=0.1,
    )


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder, iterations=3, steps=10, proposals=40):
    """A run folder as mmzero.py writes it, with invented figures."""
    rng, records = random.Random(7), []
    settings = {"iterations": iterations, "learning_rate": 1e-4}
    (folder / "config.json").write_text(
        json.dumps({"model": "tiny", "version": 1, "settings": settings})
    )
    for k in range(iterations + 1):
        (folder / f"iter{k}" / "pictures").mkdir(parents=True)
        for phase in reporting.ROLES if k else ():
            if phase != "proposer":
                valid, drawn = 280 + 32 * k, 200 + 50 * k
                records.append(
                    dict(
                        kind="data",
                        iteration=k,
                        phase=phase,
                        asked=400,
                        valid=valid,
                        rendered=drawn,
                        evaluated=drawn,
                        seconds=4.0,
                        kept=150 // k - 30 * (phase == "coder"),
                        hard_consistency=[0.4, 0.6],
                        easy_consistency=[0.8],
                        agreement_with_easy_answer=0.9,
                    )
                )
            for step in range(1, steps + 1):
                t = (k - 1 + step / steps) / iterations
                records.append(step_row(k, phase, step, steps, t, rng))
            if phase == "solver":
                records.append(audit_row(k))
        records.append(eval_row(k, rng))
        rows = [probe_row(folder, k, i, rng) for i in range(proposals)]
        write_jsonl(folder / f"iter{k}" / "probe.jsonl", rows)
    write_jsonl(folder / "metrics.jsonl", records)
    return folder


VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Parses a page and remembers tags, attributes and text; unbalanced tags are an error."""

    def __init__(self, path):
        super().__init__()
        self.source = Path(path).read_text(encoding="utf-8")
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


def assert_harmless(page):
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("srcset", "action"), (tag, name)
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), (tag, value)  # within the page
        assert name != "src" or value.startswith("data:image/"), value
    assert not re.search(r"url\((?!#)|@import", page.source)
    assert "default-src 'none'" in page.source


TITLES = (
    "Held-out accuracy, Difficulty, Solvability, Proposals and pictures, Easy–hard gap, "
    "Consistency on hard questions, Variety of types, Length of code, "
    "By content type, data chart, map, Training sets, From proposals to training data, Reward, "
    "KL to the start of the phase, Entropy, Clipped tokens, Gradient norm, "
    "Rollout against trainer, Gallery, The label audit, Are the labels true?, Ways to cheat, "
    "Entropy of labels"
)
ON_THE_ARROWS = (
    "72 → 96 % valid",
    "68 → 98 % drawn",
    "held-out 64.0 → 79.6 %",
    "s\xa00.70 → 0.88",
    "d\xa00.24 → 0.18",
    "150 → 50 open questions",
    "65 → 55 % of them true",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a whole run, with its page and its figure."""
    folder = make_run(tmp_path_factory.mktemp("whole"))
    assert reporting.report(folder, folder / "figure.png") == folder / "report.html"
    return folder


def test_report_of_a_whole_run(whole):
    page = Page(whole / "report.html")
    assert_harmless(page)
    assert len(page.source) < 5_000_000
    assert "Held-out accuracy rose from 64.0\xa0% to 79.6\xa0% in 3 iterations" in page.text
    for title in TITLES.split(", "):
        assert title in page.text, title
    blanks = page.text.count("no picture") + page.text.count("no proposal")
    assert page.tags.count("img") + blanks == 4 * reporting.SHOWN
    # Failures are shown.
    assert "not well-formed" in page.text and "could not be parsed" in page.text
    shapes = [value for _, name, value in page.attributes if name in ("d", "x", "y", "style")]
    assert len(shapes) > 500 and not re.search("nan|inf|None", " ".join(shapes))
    # Every colour of a curve is the page's, so that it can go dark; every id that is used exists.
    assert page.tags.count("svg") == 26
    assert not re.search("(stroke|fill): #", page.source.split("</style>")[1])
    used = set(re.findall(r'(?:url\(|href=")#(\w+)', page.source))
    assert used <= set(re.findall(r' id="(\w+)"', page.source))
    assert "</i>sampled 64 → 71 → 76 → 79.6</span>" in page.source and "</i>kl" not in page.source
    assert "None" not in page.text
    assert not list(whole.glob("*.tmp"))
    # The loop has the base's figure and the newest on its arrows.
    for figure in ON_THE_ARROWS:
        assert figure in page.text, figure


def test_a_run_without_audit_or_figures_says_so_and_no_more(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "tiny", "settings": {}}')
    page = Page(reporting.report(tmp_path))
    assert "of them true" not in page.text and "– % valid" in page.text and "svg" not in page.tags
    assert "<table" not in page.source.split("Settings")[0]  # no head without rows
    # Empty sections are not shown.
    empty = re.findall(r"<section>.*?<div[^>]*></div></section>", page.source, re.DOTALL)
    assert len(empty) == 5


def test_no_head_of_a_table_is_empty(whole):
    heads = re.findall(r"(?s)<thead>(.*?)</thead>", (whole / "report.html").read_text())
    assert len(heads) == 2
    for head in heads:
        assert all(cell.strip() for cell in re.findall("<th>(.*?)</th>", head))


# ---- the look that all three pages have in common

STYLES = reporting.STYLE
for name in ("explain_page.html", "audit_page.html"):
    source = Path(reporting.__file__).with_name(name).read_text(encoding="utf-8")
    STYLES += source.split("<style>{{ style }}")[1].split("</style>")[0]


def palette(dark):
    light, *_ = STYLES.split("@media screen and (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--(\w+): (#\w{6})", light))
    if dark:
        found |= dict(re.findall(r"--(\w+): (#\w{6})", STYLES))
    return {name: np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for name, c in found.items()}


def values(text, colours):
    """The colours that a CSS value stands for: of --c all that a class may give it."""
    mixed = re.fullmatch(r"color-mix\(in srgb, (.*) (\d+)%, (.*)\)", text)
    if mixed:
        own, share = values(mixed[1], colours), int(mixed[2]) / 100
        (other,) = values(mixed[3], colours)
        return [share * one + (1 - share) * other for one in own]
    name = re.fullmatch(r"var\(--(\w+)\)", text)[1]
    names = [f"c{i}" for i in range(7)] + ["grey"] if name == "c" else [name]
    return [colours[name] for name in names]


def contrast(a, b):
    """By WCAG 2: (L + 0.05) / (l + 0.05), L and l the relative luminances."""
    luminances = []
    for colour in (a, b):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour / 255]
        luminances.append(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_a_contrast_of_4_5_in_light_and_dark(dark):
    colours = palette(dark)
    texts = set(re.findall(r"(?<![-\w])color: ([^;}]+?) ?[;}]", STYLES))
    assert {"var(--ink)", "var(--soft)", "var(--bad)"} < texts and len(texts) == 4
    grounds = set(re.findall(r"background: (var[^;}]+?|color-mix.+?\)\)) ?[;}]", STYLES))
    # On bars, which have --c, nothing is written.
    (chips,) = grounds - {"var(--bg)", "var(--wash)", "var(--c)"}
    for text in texts:
        for ground in ("var(--bg)", "var(--wash)"):
            for a in values(text, colours):
                assert contrast(a, *values(ground, colours)) >= 4.5, (text, ground)
    for ground in values(chips, colours):  # answers, in the colours of their camps
        assert contrast(colours["ink"], ground) >= 4.5
    # Words in a curve are of these as well.
    in_curves = {value for name, value in reporting.LOOK.items() if "color" in name}
    assert in_curves <= {reporting.COLOURS["soft"], reporting.COLOURS["rule"]}


def test_on_paper_the_pages_keep_colours_and_tear_nothing():
    paper = STYLES.split("@media print {", 1)[1]
    for rule in (
        "size: A4",
        "print-color-adjust: exact",
        "break-inside: avoid",
        "max-height: none",
    ):
        assert rule in paper, rule
    assert re.search(r"\.scroll \{ overflow: visible", paper)
    # A torn grid prints its rows on each other, and paper is never dark.
    assert re.search(r"figure, article \{ display: inline-block", paper)
    assert STYLES.count("prefers-color-scheme") == STYLES.count("screen and (prefers-color-scheme")


def test_figure_for_a_paper(whole):
    with Image.open(whole / "figure.png") as picture:
        assert picture.width == 1800 and picture.height == 1080
        colours = {tuple(c) for _, c in picture.convert("RGB").getcolors(1 << 22)}
    assert (0x00, 0x72, 0xB2) in colours and (0xD5, 0x5E, 0x00) in colours  # the page's colours
    assert set(reporting.COLOURS) >= {*(f"c{i}" for i in range(7)), "grey", "soft", "rule", "ink"}
    assert len(set(reporting.COLOURS.values())) == len(reporting.COLOURS)


def test_headline_names_the_direction():
    def headline(*evals):
        return reporting.PAGE.headline(evals).replace("\xa0", " ")

    base = {"iteration": 0, "sampled": 0.64}
    title = headline(base, base | {"iteration": 3, "sampled": 0.55})
    assert title == "Held-out accuracy fell from 64.0 % to 55.0 % in 3 iterations"
    title = headline(base, base | {"iteration": 1})
    assert title == "Held-out accuracy stayed at 64.0 % in 1 iteration"


def drawn(series, **options):
    axes = Figure().add_subplot()
    reporting.draw(axes, reporting.Panel("t", "", "y", series, **options))
    return axes


def test_the_curves_are_where_the_figures_are():
    records = [
        dict(x=0, sampled=0.64, sampled_low=0.6, sampled_high=0.7),
        dict(x=1, sampled=None),
        dict(x=3, sampled=0.796),
    ]
    last = ("sampled", "c2", [(3, pytest.approx(79.6))])
    assert reporting.lines(records[1:], "sampled", "c2", 100) == [last]
    ((name, colour, points),) = reporting.lines(records[:1], "sampled", "c2", 100)
    assert points == [(0, pytest.approx(64), pytest.approx(60), pytest.approx(70))]
    axes = drawn([("easy", "c3 dash", [(0, 64), (3, 79.6)])], top=100)
    line = axes.lines[0]
    assert line.get_xydata().tolist() == [[0, 64], [3, 79.6]]
    assert line.get_linestyle() == "--" and line.get_marker() == "o"
    assert axes.get_xlim() == (0, 3) and axes.get_ylim()[0] <= 0 and axes.get_ylim()[1] >= 100
    assert [label.get_text() for label in axes.get_xticklabels()] == ["base", "1", "2", "3"]
    band = drawn([("s", "c2", [(0, 5, 4, 7), (1, 6, 5, 8)])]).collections[0].get_paths()[0].vertices
    assert {tuple(v) for v in band.tolist()} == {(0, 4), (0, 7), (1, 5), (1, 8)}


def test_axes_have_room_for_zero_for_what_is_below_and_for_nothing_at_all():
    with matplotlib.rc_context(reporting.LOOK):
        assert drawn([("s", "c0", [(0, 3), (1, 7.3)])]).get_ylim() == (0, 8)
        assert drawn([("s", "c0", [(0, -0.35), (1, 0.7)])]).get_ylim() == (-0.4, pytest.approx(0.8))
        assert drawn([("s", "c0", [(0, 0), (1, 0)])]).get_ylim() == (0, 1)
        assert drawn([("s", "c0", [(0, 0), (1, 1e-5)])]).get_ylim() == (0, pytest.approx(1e-5))


def test_boxes_show_the_percentiles():
    points = [(0, list(np.linspace(0, 1, 101))), (1, [0.5])]
    axes = drawn([("c", "c2", points)], kind="boxes", top=1)
    ys = [sorted({round(y, 6) for y in line.get_ydata()}) for line in axes.lines[:4]]
    assert sorted(ys) == [[0.05, 0.25], [0.25, 0.75], [0.5], [0.75, 0.95]]
    assert axes.get_xlim() == (-0.5, 1.5)


def test_each_content_type_has_a_panel_of_what_became_of_it():
    base = {"x": 0, "types_proposed": {"map": 0.25, "table": 0.0}, "types_drawn": {"map": 0.5}}
    later = {"x": 1, "types_proposed": {"map": 0.75}, "types_sampled": {"data_chart": 0.5}}
    chart, map_ = reporting.by_type([base, later])
    # Tables nobody asked for; of charts there are only held-out questions.
    assert (chart.title, chart.series) == ("data chart", [("sampled", "c2", [(1, 50)])])
    assert map_.series == [("proposed", "c0", [(0, 25), (1, 75)]), ("drawn", "c1", [(0, 50)])]
    # A run that was made before, or measured nothing.
    assert reporting.by_type([{"x": 0}]) == []


def test_funnel_is_in_shares_of_what_was_asked():
    record = dict(phase="coder", iteration=1, asked=200, valid=150, rendered=None, kept=20)
    source = reporting.PAGE.funnel([record])
    assert re.findall(r"<td>(\d+|–)", source) == ["200", "150", "–", "–", "20"]
    assert re.findall(r"width:([\d.]+)%", source) == ["100.0", "75.0", "10.0"]


def test_sets_from_outside_say_whose_verdict_they_are(tmp_path):
    """Those of earlier calls, too, in whatever order and with whatever iterations."""

    def asked(bench, model, sampled, **more):
        ends = {"sampled_low": sampled - 0.05, "sampled_high": sampled + 0.04}
        return {"set": bench, "model": model, "sampled": sampled, "questions": 58} | ends | more

    judged = {"judge": "Qwen/Qwen2.5", "left_out": 2, "by_rule": 30}
    gain = {"sampled_gain": -0.1, "sampled_gain_low": -0.2, "sampled_gain_high": 0.03}
    (tmp_path / "eval").mkdir()
    rows = [
        asked("a/x.jsonl", "base", 0.4, judge=None, left_out=0),
        asked("b/x.jsonl", "base", 0.5, overruled=3, **judged),
        asked("b/x.jsonl", "it 2", 0.4, overruled=4, **judged, **gain),
        asked("mean of 2", "base", 0.45, judge="Qwen/Qwen2.5", left_out=None),
        asked("a/x.jsonl", "it 10", 0.6, judge=None, left_out=0),
    ]
    write_jsonl(tmp_path / "eval/results.jsonl", rows)
    source = reporting.outside(tmp_path).replace("\u2060", "").replace("\xa0", " ")
    cells = [re.findall(r"(?s)<t[hd]>(.*?)</t[hd]>", row) for row in source.split("<tr>")[1:]]
    assert cells == [
        ["in %", "base", "it 2", "it 10", "gain", "questions", "left out", "right by"],
        ["x.jsonl", "40.0 (35.0–44.0)", "–", "60.0 (55.0–64.0)", "–", "58", "0", "rule"],
        ["x.jsonl", "50.0 (45.0–54.0)", "40.0 (35.0–44.0)", "–", "−10.0 (−20.0 to +3.0)", "58", "2"]
        + ["rule, then Qwen/Qwen2.5: yes to 7 of 60"],
        ["mean of 2", "45.0 (40.0–49.0)", "–", "–", "–", "58", "–", "rule, then Qwen/Qwen2.5"],
    ]
    assert source.count("<figure>") == 3 and "overruled it where it said yes" in source
    (tmp_path / "eval/results.jsonl").unlink()
    assert reporting.outside(tmp_path).strip() == ""


@pytest.mark.parametrize("name", ["report", "explain", "audit"])
def test_the_programs_answer_help_from_anywhere(name, tmp_path):
    program = Path(reporting.__file__).with_name(f"{name}.py")
    command = [sys.executable, str(program), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {name}.py"), done.stderr


def test_the_program_draws_a_run_or_says_why_not(whole, tmp_path, capsys):
    reporting.main([str(whole), "--png", str(tmp_path / "f.png")])
    assert capsys.readouterr().out == f"{whole}/report.html\n" and (tmp_path / "f.png").exists()
    with pytest.raises(SystemExit, match="report.py: .* is not a run folder"):
        reporting.main([str(tmp_path)])


def test_steps_stand_within_their_iteration(tmp_path):
    make_run(tmp_path, iterations=2, steps=4)
    _, kinds = reporting.read_run(tmp_path)
    (reward,) = [p for p in reporting.panels(kinds)[2] if p.title == "Reward"]
    looks = [(name, colour) for name, colour, _ in reward.series]
    assert looks == [("proposer", "c0"), ("coder", "c1"), ("solver", "c2")]
    expected = [k + t / 4 for k in (0, 1) for t in (1, 2, 3, 4)]
    for _, _, points in reward.series:
        assert [x for x, _ in points] == pytest.approx(expected)
    assert {r["x"] for r in kinds["eval"]} == {0, 1, 2}


def test_curve_leaves_out_what_is_missing():
    records = [dict(x=0, a=None), dict(x=1, a=float("nan")), dict(x=2)]
    assert reporting.lines(records, "a", "c0") == []
    assert reporting.lines(records + [dict(x=3, a=0.0)], "a", "c0")[0][2] == [(3, 0)]


def test_a_lone_iteration_stands_in_the_middle_with_its_value():
    axes = drawn(series := [("kept", "c1", [(1, 1217)])])
    assert axes.get_xlim() == (0.5, 1.5)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1"]
    assert "</i>kept 1217</span>" in reporting.figure(reporting.Panel("t", "", "y", series))
    many = [("few", "c0", [(0, 1)]), ("kl", "c1", [(x, 1) for x in range(13)])]
    assert drawn(many).lines[1].get_marker() in ("", "None")


def test_report_of_a_run_in_progress(tmp_path):
    make_run(tmp_path, iterations=2)
    records = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    place = '"iteration": 2, "phase": "coder", "step": 4'
    cut = next(i for i, line in enumerate(records) if place in line)
    # The last line is half written.
    (tmp_path / "metrics.jsonl").write_text("".join(records[:cut]) + records[cut][:40])
    (tmp_path / "iter2" / "probe.jsonl").unlink()
    page = Page(reporting.report(tmp_path))
    assert "from 64.0\xa0% to 71.0\xa0% in 1 iteration" in page.text
    assert "Iteration 2 is not finished." in page.text
    (tmp_path / "metrics.jsonl").write_text(records[0])
    assert "no iteration is finished yet" in Page(reporting.report(tmp_path)).text
    (tmp_path / "metrics.jsonl").write_text("")
    assert "Nothing is measured yet" in Page(reporting.report(tmp_path)).text
    (tmp_path / "metrics.jsonl").unlink()
    assert "Nothing is measured yet" in Page(reporting.report(tmp_path)).text


def test_report_refuses_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        reporting.report(tmp_path)
    make_run(tmp_path, iterations=1)
    (tmp_path / "metrics.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match="metrics.jsonl has a line that is not JSON"):
        reporting.report(tmp_path)


def test_what_models_write_stays_text(tmp_path):
    make_run(tmp_path, iterations=1, proposals=3)
    evil = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'"
    evil += " </pre></details>{0} $title ${title} \ud800 \x00"
    row = dict.fromkeys(TEXTS + ("topic", "code", "language", "reply", "error"), evil)
    row |= {"easy_answers": [evil, None], "hard_answers": [evil] * 2}
    draw_bars([1, 2], tmp_path / "iter1" / "pictures" / "x.png")
    pictures = [{"picture": "iter1/pictures/x.png"}, {"picture": None}, {"caption": None}]
    write_jsonl(tmp_path / "iter1" / "probe.jsonl", [row | other for other in pictures])
    record = eval_row(2, random.Random(0), types_proposed={evil: 3})
    write_jsonl(tmp_path / "metrics.jsonl", [record])  # and no steps, which have no text
    (tmp_path / "config.json").write_text(json.dumps({"model": evil, "settings": {evil: evil}}))
    page = Page(reporting.report(tmp_path))
    assert_harmless(page)
    assert page.text.count("<script>alert(1)</script>") >= 20  # there, as text


def test_pictures_are_decoded_shrunk_and_zoomed(tmp_path):
    Image.effect_noise((640, 480), 90).convert("RGB").save(tmp_path / "big.png")
    tag = reporting.picture(tmp_path / "big.png", "")
    assert 'width="320" height="240"' in tag and len(tag) < 100_000
    draw_bars([3, 4], tmp_path / "small.png")
    # 64 pixels, 3 times
    assert 'width="192" height="192"' in reporting.picture(tmp_path / "small.png", "")
