"""Accuracy, comparison, command line, and the report of a run (eval.py, report.py)."""
import html.parser
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

import eval as evaluation
import report as reporting

ROOT = Path(__file__).resolve().parent.parent
PICTURE = Image.new("RGB", (8, 8), "white")


# ------------------------------------------------------------------------------------------------------------
# Scoring


class Echo:
    """Stands for a VLM: a prompt is the text asked, so that a fake `generate` can decide the replies."""
    prompts = {"solver": "Look. {question} Put it in \\boxed{}."}

    def encode(self, text, images=()):
        assert [type(image) for image in images] == [Image.Image]
        return text


def replies(monkeypatch, sampled, greedy):
    """Make generate answer with these boxed answers (None: nothing readable); returns the calls it got."""
    calls = []

    def fake(vlm, prompts, n=1, temperature=1.0, **options):
        calls.append(dict(options, prompts=prompts, n=n, temperature=temperature))
        groups = [[a] for a in greedy] if temperature == 0 else sampled
        return [[SimpleNamespace(text="hm" if a is None else f"so \\boxed{{{a}}}") for a in group]
                for group in groups]

    monkeypatch.setattr(evaluation, "generate", fake)
    return calls


def test_evaluate_counts_by_hand(monkeypatch):
    questions = [(PICTURE, "How many?", "3"), (PICTURE, "Which?", "B"), (PICTURE, "Sum?", "12")]
    sampled = [["4", "3", "3", None],  # 2 of 4, majority right
               ["B", "C", "C", "C"],  # 1 of 4, majority wrong
               [None, None, None, None]]  # 0 of 4, no answer at all is wrong, not left out
    calls = replies(monkeypatch, sampled, ["3", "B", None])
    result = evaluation.evaluate(Echo(), questions, n=4, seed=5)
    assert result["per_question"] == {"sampled": [0.5, 0.25, 0.0], "majority": [1.0, 0.0, 0.0],
                                      "greedy": [1.0, 1.0, 0.0]}
    assert result["sampled"] == pytest.approx(0.25)
    assert result["majority"] == pytest.approx(1 / 3) and result["greedy"] == pytest.approx(2 / 3)
    assert result["unread"] == pytest.approx(5 / 12)
    assert (result["questions"], result["n"]) == (3, 4)
    assert result["sampled_low"] <= 0.25 <= result["sampled_high"]
    # asked as in training: the solver's own prompt, T = 1 without top-p / top-k, and once greedily
    assert calls[0]["prompts"][0] == "Look. How many? Put it in \\boxed{}."
    assert [(c["n"], c["temperature"], c["seed"]) for c in calls] == [(4, 1.0, 5), (1, 0.0, 5)]
    assert all(c.get("top_p", 1.0) == 1.0 and c.get("top_k", 0) == 0 for c in calls)


def test_evaluate_refuses_nothing():
    with pytest.raises(ValueError, match="questions"):
        evaluation.evaluate(Echo(), [])


def test_bootstrap_covers_the_mean_about_95_times_in_100():
    rng, hits = np.random.default_rng(1), 0
    for trial in range(200):
        low, high = evaluation.bootstrap(rng.binomial(8, 0.6, size=60) / 8, seed=trial, draws=300)
        hits += low <= 0.6 <= high
    assert 180 <= hits <= 199
    assert evaluation.bootstrap([0, 1, 1, 0.5], 3) == evaluation.bootstrap([0, 1, 1, 0.5], 3)


def test_mcnemar_against_enumeration():
    # p by listing all 2^m outcomes of m fair coins at least as lopsided as the one seen
    for wins, losses in ((0, 0), (3, 0), (7, 2), (4, 4), (1, 9)):
        a, b = [1] * wins + [0] * losses + [1, 0], [0] * wins + [1] * losses + [1, 0]
        m, far = wins + losses, abs(wins - losses)
        lopsided = sum(abs(2 * bin(coins).count("1") - m) >= far for coins in range(2**m))
        assert evaluation.mcnemar(a, b) == (wins, losses, pytest.approx(lopsided / 2**m))
    assert evaluation.mcnemar([1.0] * 3000, [0.0] * 3000)[2] == 0.0  # below the smallest float


def test_compare_is_paired():
    # b is a shifted down by 0.1 on every question: hard questions differ wildly, the difference not at all
    accuracy = np.linspace(0.1, 1.0, 40)
    def result(values):
        hits = [float(v > 0.5) for v in values]
        return {"sampled": values.mean(), "majority": np.mean(hits), "greedy": np.mean(hits),
                "per_question": {"sampled": list(values), "majority": hits, "greedy": hits}}
    a, b = result(accuracy), result(accuracy - 0.1)
    gain, low, high = evaluation.compare(a, b)["sampled"]
    assert gain == pytest.approx(0.1) and low == pytest.approx(0.1) and high == pytest.approx(0.1)
    assert evaluation.compare(b, a)["greedy"][1:3] == evaluation.compare(a, b)["greedy"][2:0:-1]
    with pytest.raises(ValueError, match="same questions"):
        evaluation.compare(a, result(accuracy[:7]))


def test_by_type_splits_the_questions(monkeypatch):
    replies(monkeypatch, [["1", "1"], ["2", "1"], ["1", "1"]], ["1", "2", "1"])
    result = evaluation.evaluate(Echo(), [(PICTURE, "?", "1")] * 3, n=2)
    text = evaluation.by_type({"m": result}, ["map", "table", "map"])
    assert re.search(r"\| map +\| +2 \| 100.0 / 100.0 / 100.0 \|", text)
    assert re.search(r"\| table +\| +1 \| +50.0 / 0.0 / 0.0 \|", text)  # a tie goes to the answer seen first


# ------------------------------------------------------------------------------------------------------------
# Benchmarks and command line


def write_bench(folder, *rows):
    PICTURE.save(folder / "a.png")
    path = folder / "bench.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_jsonl_pictures_lie_beside_the_file(tmp_path):
    path = write_bench(tmp_path, {"image": "a.png", "question": "q", "answer": 7}, "",
                       {"image": "a.png", "question": "r", "answer": "x", "content_type": "map"})
    questions, types = evaluation.load_jsonl(path)
    assert [(p.size, q, a) for p, q, a in questions] == [((8, 8), "q", "7"), ((8, 8), "r", "x")]
    assert types == ["all", "map"]


@pytest.mark.parametrize("row, message", [
    ({"image": "a.png", "problem": "q", "answer": "7"},
     "line 1: wanted image, question, answer; has answer, image, problem"),
    ({"image": "b.png", "question": "q", "answer": "7"}, "line 1: cannot read the picture b.png"),
    ({"image": None, "question": "q", "answer": "7"}, "line 1: cannot read the picture None"),
    ("{", "line 1 is not JSON"), ("[1]", "has list"), ("", "holds no questions"),
])
def test_jsonl_errors_say_what_and_where(tmp_path, row, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluation.load_jsonl(write_bench(tmp_path, row))


@pytest.mark.parametrize("arguments", [
    ["-n", "0"], ["--questions", "0"], ["--seed", "-1"], ["--quest", "3"], ["--compare", "tiny"],
])
def test_nonsense_flags_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation.main(arguments)
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["--bench", "missing.jsonl"], "no benchmark missing.jsonl"),
    (["--report", "missing"], "missing is not a run folder"),
])
def test_bad_paths_give_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        evaluation.main(arguments)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1 and len(lines) == 1 and message in lines[0]


def test_main_compares_two_models_on_one_set(monkeypatch, capsys, tmp_path):
    path = write_bench(tmp_path, *[{"image": "a.png", "question": f"q{i}", "answer": "1"} for i in range(6)])
    class Loaded(Echo):
        load = staticmethod(lambda name: setattr(Loaded, "name", name) or Loaded())
    monkeypatch.setattr(evaluation, "VLM", Loaded)
    asked = []
    def fake(vlm, prompts, n=1, **options):
        asked.append((Loaded.name, len(prompts)))
        reply = SimpleNamespace(text="\\boxed{1}" if Loaded.name == "good" else "\\boxed{2}")
        return [[reply] * n for _ in prompts]
    monkeypatch.setattr(evaluation, "generate", fake)
    evaluation.main(["--model", "good", "--compare", "bad", "--bench", str(path), "-n", "2",
                     "--questions", "5"])
    out = capsys.readouterr().out
    assert asked == [("good", 5), ("good", 5), ("bad", 5), ("bad", 5)]
    assert re.search(r"\| good +\| 100.0 \(100.0–100.0\) \|", out)
    assert re.search(r"\| bad +\| +0.0 \(0.0–0.0\) \|", out)
    assert "+100.0 points, 95 % interval +100.0 to +100.0" in out
    assert "right alone on 5, wrong alone on 0" in out
    assert "p = 0.062" in out  # 2 / 2^5


def test_command_line_on_the_shipped_base():
    """The real thing, small: 6 charts, 2 samples."""
    done = subprocess.run([sys.executable, "eval.py", "--questions", "6", "-n", "2"], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| tiny +\| +\d+\.\d \(\d+\.\d–\d+\.\d\) \| .* \| +6 \|", done.stdout)


def test_charts_are_the_same_for_everybody_and_drawn():
    questions, types = evaluation.charts(12, seed=3)
    again, _ = evaluation.charts(12, seed=3)
    assert [q[1:] for q in questions] == [q[1:] for q in again] and len(questions) == len(types) == 12
    assert all(a[0].tobytes() == b[0].tobytes() for a, b in zip(questions, again))
    assert all(len(picture.getcolors(1 << 16)) > 1 for picture, _, _ in questions)


# ------------------------------------------------------------------------------------------------------------
# The terminal table


def eval_row(iteration, rng, **changes):
    k, sampled = iteration, [0.64, 0.71, 0.76, 0.796][iteration]
    return dict(kind="eval", iteration=k, sampled=sampled, sampled_low=sampled - 0.027,
                sampled_high=sampled + 0.026, majority=0.865 + 0.01 * k, greedy=0.93, easy=0.84, unread=0.01,
                questions=400, n=8, seconds=9.0, valid=0.72 + 0.08 * k, render=0.68 + 0.1 * k,
                solvability=0.7 + 0.06 * k, difficulty=0.24 - 0.02 * k, type_entropy=0.9 + 0.01 * k,
                code_tokens=52 + 3 * k, easy_hard_gap=0.25 - 0.03 * k,
                types={"data_chart": 20 + k, "geometry": 12, "table": 11, "map": 6, "other": 2},
                hard_consistency=[rng.choice([0.2, 0.4, 0.6, 0.8, 0.8, 1.0]) for _ in range(60)]) | changes


def test_table_fits_100_columns_and_shows_every_figure():
    rng = random.Random(0)
    rows = [eval_row(k, rng) for k in range(4)]
    rows[3] |= {key: 1.0 for key in ("sampled", "sampled_low", "sampled_high", "majority", "greedy", "valid")}
    lines = evaluation.table(rows).splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    assert [c.strip() for c in lines[2].split("|")[1:-1]] == [
        "base", "64.0 (61.3–66.6)", "86.5", "93.0", "84.0", "72.0", "68.0", "0.70", "0.24", "0.90"]
    assert lines[5].startswith("| it 3 |    100 (100–100) |")


def test_table_of_a_run_in_progress():
    text = evaluation.table([{"iteration": 0, "sampled": 0.5, "majority": float("nan")}])
    assert re.search(r"\| base \| +50.0 \(–––\) \| +– \|", text)
    assert len(evaluation.table([]).splitlines()) == 2


# ------------------------------------------------------------------------------------------------------------
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
    row = dict.fromkeys(TEXTS + ("code", "language", "error", "picture", "solvability", "consistency"))
    row["topic"] = rng.choice(["chart and graph understanding", "spatial and geometric reasoning"])
    if rng.random() < 0.25 - 0.07 * iteration:
        return row | {"reply": "<content_type>data_chart</content_type><caption>bars A 4"}
    a, b, c, d = values = [rng.randint(1, 9) for _ in range(4)]
    shapes = "".join(f'<rect x="{6 + 14 * i}" y="{58 - 5 * v}" width="9" height="{5 * v}"/>'
                     for i, v in enumerate(values))
    row |= dict(content_type=rng.choice(["data_chart", "geometry", "table"]),
                caption=f"bars A {a} B {b} C {c} D {d}",
                easy_question="What is the value of B?", easy_answer=str(b), language="svg",
                hard_question="How much larger is A than C?", hard_answer=str(a - c),
                code=f'<svg viewBox="0 0 64 64">{shapes}</svg>')
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

    row = dict(kind="step", iteration=iteration, phase=phase, step=step, seconds=2.5, loss=0.01, tokens=9000,
               kl=0.004 * step / steps + noise(0.001), approx_kl=0.001, entropy=0.5 - 0.2 * t + noise(0.03),
               grad_norm=0.4 + noise(0.2), clip_high=0.004 + noise(0.004), clip_low=0.002 + noise(0.002),
               clip_dual=0.0, zero_variance=0.2 + 0.3 * t + noise(0.1), truncated=0.05 + noise(0.02),
               logp_gap=2e-6 + noise(1e-6), logp_gap_mean=1e-7)
    return row | {
        "proposer": dict(reward=0.1 + 0.3 * t + noise(0.1), valid=0.7 + 0.28 * t, rendered=0.6 + 0.3 * t,
                         solvability=0.4 + 0.3 * t, difficulty=0.2 + noise(0.03), easy_hard=0.1 - 0.08 * t,
                         type=0.02, diversity=noise(0.1), type_entropy=0.9),
        "coder": dict(reward=0.7 + 0.7 * t + noise(0.2), rendered=0.6 + 0.35 * t, solvability=0.5 + 0.3 * t,
                      difficulty=0.2 + noise(0.03)),
        "solver": dict(reward=0.6 + 0.2 * t, accuracy=0.55 + 0.2 * t + noise(0.05), format=0.97),
    }[phase]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder, iterations=3, steps=10, proposals=40):
    """A run folder as mmzero.py writes it, with invented figures."""
    rng, records = random.Random(7), []
    settings = {"iterations": iterations, "learning_rate": 1e-4}
    (folder / "config.json").write_text(json.dumps({"model": "tiny", "version": 1, "settings": settings}))
    for k in range(iterations + 1):
        (folder / f"iter{k}" / "pictures").mkdir(parents=True)
        for phase in reporting.PHASES if k else ():
            if phase != "proposer":
                valid, drawn = 280 + 32 * k, 200 + 50 * k
                records.append(dict(kind="data", iteration=k, phase=phase, asked=400, valid=valid,
                                    rendered=drawn, evaluated=drawn, seconds=4.0,
                                    kept=150 // k - 30 * (phase == "coder"),
                                    hard_consistency=[0.4, 0.6], easy_consistency=[0.8],
                                    agreement_with_easy_answer=0.9))
            for step in range(1, steps + 1):
                t = (k - 1 + step / steps) / iterations
                records.append(step_row(k, phase, step, steps, t, rng))
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
        assert name not in ("href", "srcset", "action", "xlink:href"), (tag, name)
        assert name != "src" or value.startswith("data:image/"), value
    assert not re.search(r"url\(|@import", page.source) and "default-src 'none'" in page.source


def test_report_of_a_whole_run(tmp_path):
    page = Page(evaluation.report(make_run(tmp_path)))
    assert_harmless(page)
    assert len(page.source) < 5_000_000
    assert "Held-out accuracy rose from 64.0\xa0% to 79.6\xa0% in 3 iterations" in page.text
    for title in ("Held-out accuracy", "Difficulty", "Solvability", "Proposals and pictures", "Easy–hard gap",
                  "Consistency on hard questions", "Content types", "Variety of types", "Length of code",
                  "Training sets", "From proposals to training data", "Reward",
                  "KL to the start of the phase", "Entropy", "Clipped tokens", "Gradient norm",
                  "Rollout against trainer", "Gallery"):
        assert title in page.text, title
    blanks = page.text.count("no picture") + page.text.count("no proposal")
    assert page.tags.count("img") + blanks == 4 * reporting.SHOWN
    assert "not well-formed" in page.text and "could not be parsed" in page.text  # failures are shown
    shapes = [value for _, name, value in page.attributes if name in ("d", "y", "cx", "cy", "style")]
    assert len(shapes) > 500 and not re.search("nan|inf|None", " ".join(shapes))
    assert "None" not in page.text
    assert not list(tmp_path.glob("*.tmp"))


def test_the_curves_are_where_the_figures_are(tmp_path):
    # sampled accuracy of the last iteration: 79.6 on an axis from 0 to 100 at the right edge of the panel
    source = reporting.curve("t", "", [("s", "c2", [(0, 0.64), (3, 0.796)])], "y", 100, 100)
    height = reporting.H - reporting.TOP - reporting.BOTTOM
    x, y = map(float, re.search(r'class="line c2" d="M[\d. ]+L([\d.]+) ([\d.]+)"', source).groups())
    assert x == reporting.W - reporting.RIGHT
    assert y == pytest.approx(reporting.H - reporting.BOTTOM - 0.796 * height, abs=0.06)


def y_axis(share):
    """Where a share stands on an axis from 0 to 1."""
    return reporting.H - reporting.BOTTOM - share * (reporting.H - reporting.TOP - reporting.BOTTOM)


def test_boxes_show_the_percentiles():
    source = reporting.boxes("t", "", {0: list(np.linspace(0, 1, 101))}, "y")
    found = re.findall(r'class="(line|box)[^"]*" d="([^"]+)"', source)
    whisker, box, median = ([float(v) for v in re.findall(r"[\d.]+", path)] for _, path in found)
    ends = [y_axis(share) for share in (0.05, 0.25, 0.75, 0.95)]
    assert [whisker[i] for i in (1, 2, 4, 5)] == pytest.approx(ends, abs=0.06)
    assert [box[1], box[3], median[1]] == pytest.approx([y_axis(0.75), y_axis(0.25), y_axis(0.5)], abs=0.06)


def test_stacks_are_shares_on_top_of_each_other():
    source = reporting.stacks("t", "", {0: {"other": 1, "map": 3, "table": 0}}, "y")
    bars = re.findall(r'class="bar (\w+)" d="M[\d.]+ ([\d.]+)H[\d.]+V([\d.]+)', source)
    assert [(style, float(low), float(high)) for style, low, high in bars] == [
        ("c0", y_axis(0), pytest.approx(y_axis(0.75), abs=0.06)),
        ("grey", pytest.approx(y_axis(0.75), abs=0.06), y_axis(1))]


def test_funnel_is_in_shares_of_what_was_asked():
    record = dict(phase="coder", iteration=1, asked=200, valid=150, rendered=None, kept=20)
    source = reporting.funnel([record])
    assert re.findall(r"<td>(\d+|–)", source) == ["200", "150", "–", "–", "20"]
    assert re.findall(r"width:([\d.]+)%", source) == ["100.0", "75.0", "10.0"]


def test_steps_stand_within_their_iteration():
    steps = [step_row(k, "coder", t, 4, 0.5, random.Random(0)) for k in (1, 2) for t in (1, 2, 3, 4)]
    source = reporting.training_panels(steps)[0]  # reward
    xs = [float(x) for x in re.findall(r'cx="([\d.]+)"', source)]
    width = reporting.W - reporting.LEFT - reporting.RIGHT
    expected = [reporting.LEFT + width * (k + t / 4) / 2 for k in (0, 1) for t in (1, 2, 3, 4)]
    assert xs == pytest.approx(expected, abs=0.06)


def test_curve_leaves_out_what_is_missing():
    assert reporting.curve("t", "", [("s", "c0", [(0, None), (1, float("nan"))])], "y") == ""
    flat = reporting.curve("t", "", [("s", "c0", [(0, 0.0), (1, 0.0), (2, None)])], "y")
    assert flat.count("<circle") == 2 and "nan" not in flat


def test_a_lone_iteration_stands_in_the_middle_with_its_value():
    source = reporting.curve("t", "", [("kept", "c1", [(1, 1217.0)])], "y")
    middle = reporting.LEFT + (reporting.W - reporting.LEFT - reporting.RIGHT) / 2
    assert float(re.search(r'cx="([\d.]+)"', source)[1]) == pytest.approx(middle, abs=0.06)
    assert "</i>kept 1217</span>" in source and ">base<" not in source
    many = reporting.curve("t", "", [("few", "c0", [(0, 1)]), ("kl", "c1", [(x, 1) for x in range(13)])], "y")
    assert "<circle" not in many and "</i>few</span>" in many and ">base<" in many


def test_report_of_a_run_in_progress(tmp_path):
    make_run(tmp_path, iterations=2)
    whole = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(whole) if '"iteration": 2, "phase": "coder", "step": 4' in line)
    (tmp_path / "metrics.jsonl").write_text("".join(whole[:cut]) + whole[cut][:40])  # a line half written
    (tmp_path / "iter2" / "probe.jsonl").unlink()
    page = Page(evaluation.report(tmp_path))
    assert "from 64.0\xa0% to 71.0\xa0% in 1 iteration" in page.text
    assert "Iteration 2 is not finished." in page.text
    for text, expected in ((whole[0], "no iteration is finished yet"), ("", "Nothing is measured yet")):
        (tmp_path / "metrics.jsonl").write_text(text)
        assert expected in Page(evaluation.report(tmp_path)).text
    (tmp_path / "metrics.jsonl").unlink()
    assert "Nothing is measured yet" in Page(evaluation.report(tmp_path)).text


def test_a_repeated_record_counts_once(tmp_path):
    make_run(tmp_path, iterations=1)
    _, kinds = reporting.read_run(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(lines + lines)
    assert reporting.read_run(tmp_path)[1] == kinds


def test_report_refuses_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        evaluation.report(tmp_path)
    make_run(tmp_path, iterations=1)
    (tmp_path / "metrics.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match="metrics.jsonl has a line that is not JSON"):
        evaluation.report(tmp_path)


def test_what_models_write_stays_text(tmp_path):
    make_run(tmp_path, iterations=1, proposals=3)
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>\' </pre></details>{0} \ud800 \x00'
    row = dict.fromkeys(TEXTS + ("topic", "code", "language", "reply", "error"), evil)
    row |= {"easy_answers": [evil, None], "hard_answers": [evil] * 2}
    draw_bars([1, 2], tmp_path / "iter1" / "pictures" / "x.png")
    write_jsonl(tmp_path / "iter1" / "probe.jsonl", [row | {"picture": "iter1/pictures/x.png"},
                                                     row | {"picture": None}, row | {"caption": None}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        record = eval_row(2, random.Random(0), types={evil: 3})
        file.write(json.dumps(record) + "\n")
    (tmp_path / "config.json").write_text(json.dumps({"model": evil, "settings": {evil: evil}}))
    page = Page(evaluation.report(tmp_path))
    assert_harmless(page)
    assert page.text.count("<script>alert(1)</script>") >= 20  # there, as text


def test_pictures_are_decoded_shrunk_and_zoomed(tmp_path):
    Image.effect_noise((1280, 960), 90).convert("RGB").save(tmp_path / "big.png")
    tag = reporting.picture(tmp_path / "big.png", "")
    assert 'width="320" height="240"' in tag and len(tag) < 100_000
    draw_bars([3, 4], tmp_path / "small.png")
    assert 'width="192" height="192"' in reporting.picture(tmp_path / "small.png", "")  # 64 pixels, 3 times


def test_votes_are_merged_like_answers():
    assert reporting.tally(["3", None, "4", "4.0", None, "4"]) == [("4", 3), (None, 2), ("3", 1)]
