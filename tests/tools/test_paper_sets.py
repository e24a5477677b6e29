"""The whole of `eval.py --bench paper` on small sets of all twelve shapes, on one rank and on two,
stopped and gone on, with a judge; and `eval.py --run`. Scores are computed again from what is
kept, by lines that share no code with ours.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_eval import png
from helpers_judge import make_judge

import eval as evaluation
import mmzero
from tools import benchmarks, compare
from tools.report import report

ROOT = Path(compare.__file__).parent.parent
SETS = benchmarks.NAMES


def charts_as(folder):
    """36 held-out charts -> [(PNG, question, answer)]: the embedded base is right on many."""
    asked, _ = evaluation.charts(36, seed=7)
    found = []
    for i, (image, text, answer) in enumerate(asked):
        image.save(folder / f"{i}.png")
        found.append(((folder / f"{i}.png").read_bytes(), text, answer))
    return found


def make_sets(folder):
    """Twelve sets of three questions, with the columns that the authors' have."""
    datasets = pytest.importorskip("datasets")
    charts = iter(charts_as(folder))
    blank = {"bytes": png(), "path": None}
    for number, name in enumerate(SETS):
        rows = []
        for i in range(3):
            data, text, answer = next(charts)
            picture = {"bytes": data, "path": f"{i}.png"}
            row = {"problem": "<image>" + text, "images": [picture], "answer": answer}
            if name == "MMSI":  # options in the problem, the letter as the answer
                row["problem"] = f"{text}\nA. {answer}\nB. nothing of the kind"
                row |= {"answer": "A", "question_type": "multi-choice", "id": i}
            elif name == "mathverse":
                row |= {"problem": text, "task_types": ["algebra"], "difficulty": "easy"}
            elif name == "mathvision":  # more tags than pictures
                row["problem"] = f"<image>{text}<image><image>"
            elif name == "mathvista":  # one picture, not a list
                row |= {"images": picture, "task_id": str(i)}
            elif name == "mm-vet":
                row["answer"] = f"{answer}<OR>the same in words"
            elif name.startswith("mmmu_pro"):  # more pictures than tags
                row["images"] = [picture, blank]
            elif name == "hallusionbench" and i == 0:  # text alone
                row |= {"problem": "Is it?", "images": [], "answer": "Yes"}
            elif name == "ChartQA":
                row["label"] = [answer]
            rows.append(row)
        if number % 3 == 0:  # a folder, as it lies on the hub
            (folder / name / "data").mkdir(parents=True)
            path = folder / name / "data/test-00000-of-00001.parquet"
            datasets.Dataset.from_list(rows).to_parquet(path)
        elif number % 3 == 1:  # one file, whose pictures are Images
            kind = datasets.Image() if name == "mathvista" else datasets.List(datasets.Image())
            data = datasets.Dataset.from_list(rows).cast_column("images", kind)
            data.to_parquet(folder / f"{name}.parquet")
        else:  # JSONL with pictures in files
            (folder / f"pictures of {name}").mkdir()
            for i, row in enumerate(rows):
                row["images"] = [
                    write(folder, f"pictures of {name}/{i}-{j}.png", picture["bytes"])
                    for j, picture in enumerate(row["images"])
                ]
            lines = [json.dumps(row) + "\n" for row in rows]
            (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def write(folder, name, data):
    (folder / name).write_bytes(data)
    return name


def command(data, out, *more):
    """The embedded base knows its own prompt alone."""
    told = ["--bench", "paper", "--data", data, "--prompt", "training", "--max-new-tokens", 48]
    return [str(word) for word in (*told, "--out", out, *more)]


def torchrun(ranks, *arguments, script="eval.py", check=True):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run += ["--nproc-per-node", str(ranks), "--", script, *arguments]  # -- for --run
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        run, capture_output=True, text=True, env=environment, timeout=450, cwd=ROOT
    )
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout if check else done


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """-> (folder of the sets, the judge, folder of the results, what was printed)"""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "sets").mkdir()
    data, judge = make_sets(folder / "sets"), make_judge(folder / "judge")
    out = folder / "out"
    options = compare.parse(command(data, out, "--judge", judge))
    return data, judge, out, compare.scores(options)


def files_of(out):
    return {
        path.name: path.read_text().splitlines() for path in out.rglob("*.jsonl") if path.is_file()
    }


# ---- the same figures from what is kept, without our code


def box(reply):
    found = re.findall(r"\\boxed\{([^{}]*)\}", reply)
    return found[-1].strip().lower().rstrip(".") if found else None


def recomputed(out):
    """{set: share of right replies}, by exact comparison and by what the judge said."""
    judged = [json.loads(line) for line in (out / "judge.jsonl").read_text().splitlines()]
    found = {}
    for name in SETS:
        _, *rows = map(json.loads, (out / "tiny" / f"{name}.jsonl").read_text().splitlines())
        hits = []
        for row in rows:
            (reply,) = row["replies"]
            given = box(reply)
            golds = [text.lower() for text in row["answers"]]
            golds += [text.lower() for text in row["choices"][:1]]  # of MMSI (A) is right
            hit = given in golds
            if not hit:
                seen = reply[-600:] if given is None else given
                asked = [j for j in judged if row["text"] in j["asked"] and seen in j["asked"]]
                assert asked
                hit = asked[0]["reply"].startswith("yes")
            hits.append(hit)
        found[name] = sum(hits) / len(hits)
    return found


def test_scores_are_those_of_a_script_that_shares_no_code(made):
    _, judge, out, text = made
    table = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    shown = {row["set"]: row for row in table}
    assert [*shown][:12] == SETS and len(table) == 14
    found = recomputed(out)
    assert {name: shown[name]["sampled"] for name in SETS} == pytest.approx(found)
    pro = [name for name in SETS if "pro" in name]
    assert len(pro) == 3
    ten = [found[name] for name in SETS if name not in pro] + [sum(map(found.get, pro)) / 3]
    assert len(ten) == 10 and shown["mean of 10"]["sampled"] == pytest.approx(sum(ten) / 10)
    micro = sum(found.values()) / 12
    assert shown["micro average"]["sampled"] == pytest.approx(micro)
    assert 0.3 < micro < 1 and len(set(found.values())) > 1
    overruled = sum(shown[name]["overruled"] for name in SETS)
    assert 0 < overruled < sum(shown[name]["by_rule"] for name in SETS)
    assert overruled == shown["micro average"]["overruled"]
    for row in table:
        assert row["sampled_low"] <= row["sampled"] <= row["sampled_high"]
    assert "mean of 10 " in text and f"{judge} judged" in text


def test_two_ranks_give_what_one_gives_also_when_the_number_changes_on_the_way(made, tmp_path):
    data, judge, out, text = made
    whole = files_of(out)
    assert torchrun(2, *command(data, tmp_path / "two", "--judge", judge)).strip() == text
    assert files_of(tmp_path / "two") == whole
    # One rank began, was killed in a line, and two go on; and two began, and one goes on.
    for ranks, kept in ((2, 2), (1, 1)):
        broken = tmp_path / f"broken{ranks}"
        for path in (out / "tiny").glob("*.jsonl"):
            lines = path.read_text().splitlines(keepends=True)
            (broken / "tiny").mkdir(parents=True, exist_ok=True)
            (broken / "tiny" / path.name).write_text("".join(lines[:kept]) + lines[kept][:30])
        (broken / "tiny/MMMU.jsonl").unlink()
        (broken / "judge.jsonl").write_text("\n".join(whole["judge.jsonl"][:3]) + '\n{"judge')
        words = command(data, broken, "--judge", judge)
        text_now = torchrun(2, *words) if ranks == 2 else compare.scores(compare.parse(words))
        assert text_now.strip() == text
        assert files_of(broken) == whole


STOPPING = """import os, sys
import eval
from tools import compare
compare.CHUNK = 2
append, calls = compare.append, []
def append_and_stop(path, rows):
    append(path, rows)
    calls.append(path)
    if len(calls) == 2:
        os.kill(os.getpid(), 9)
if sys.argv.pop(1) == "stop" and os.environ.get("RANK") == "0":
    compare.append = append_and_stop
eval.main()
"""


@pytest.mark.slow
def test_two_ranks_that_are_killed_three_times_while_the_questions_change(made, tmp_path):
    data, *_ = made
    (tmp_path / "eval_and_stop.py").write_text(STOPPING)
    rows = [json.loads(line) for line in (data / "mathvision.jsonl").read_text().splitlines()]
    rows = [row | {"id": i} for i in range(8) for row in rows]
    for row in rows:
        row["images"] = [str(data / name) for name in row["images"]]

    def changed(**changes):
        rows[1] |= changes
        lines = [json.dumps(row) + "\n" for row in rows]
        (tmp_path / "my.jsonl").write_text("".join(lines))

    words = ["--bench", tmp_path / "my.jsonl", "--prompt", "training", "--max-new-tokens", 48]
    words = [str(word) for word in (*words, "-n", 2, "--out")]
    script = str(tmp_path / "eval_and_stop.py")
    changed()
    for changes in (
        {"answer": "7"},
        {"problem": "<image>How many bars are there?"},
        {"answer": "4"},
    ):
        done = torchrun(2, "stop", *words, str(tmp_path / "out"), script=script, check=False)
        assert done.returncode != 0
        changed(**changes)
    done = torchrun(2, "go on", *words, str(tmp_path / "out"), script=script, check=False)
    assert done.returncode == 0, done.stderr
    compare.scores(compare.parse([*words, str(tmp_path / "fresh")]))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")
    table = (tmp_path / "fresh/results.md").read_text()
    assert (tmp_path / "out/results.md").read_text() == table


def test_the_judge_may_see_the_start(made, tmp_path):
    data, judge, out, _ = made
    kept = tmp_path / "out"
    kept.mkdir()
    for path in out.rglob("*.jsonl"):
        (kept / path.relative_to(out)).parent.mkdir(exist_ok=True)
        (kept / path.relative_to(out)).write_text(path.read_text())
    options = compare.parse(command(data, kept, "--rescore", "--judge", judge, "--judge-start"))
    assert "mean of 10" in compare.scores(options)


def test_a_set_that_cannot_be_had_is_named_and_skipped(made, tmp_path, monkeypatch):
    data, _, out, _ = made
    monkeypatch.setattr(compare, "VLM", None)  # nobody is asked
    for path in out.glob("tiny/*.jsonl"):
        (tmp_path / "tiny").mkdir(exist_ok=True)
        (tmp_path / "tiny" / path.name).write_text(path.read_text())
    (tmp_path / "tiny/visnumbench.jsonl").unlink()
    (tmp_path / "tiny/mmmu-pro-vision.jsonl").unlink()
    text = compare.scores(compare.parse(command(data, tmp_path, "--rescore")))
    assert "\nvisnumbench is skipped: " in text and "\nmmmu-pro-vision is skipped: " in text
    assert "| mean of 9 of 10 " in text  # MMMU-Pro is one of them, with two sets of three
    nowhere = command(tmp_path / "nowhere", tmp_path / "other")
    with pytest.raises(SystemExit, match="no set can be had; MMSI is skipped: no benchmark"):
        evaluation.main(nowhere)


def test_without_a_network_all_are_named(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(SystemExit) as stop:
        evaluation.main(["--bench", "paper", "--out", str(tmp_path)])
    assert "\n" not in stop.value.code and "Couldn't reach the hub" in stop.value.code
    with pytest.raises(SystemExit, match="eval.py: MMMU cannot be loaded"):
        evaluation.main(["--bench", "MMMU", "--out", str(tmp_path)])


def test_without_a_network_it_ends_within_seconds_and_says_so_once(tmp_path, monkeypatch, capfd):
    """`datasets` itself tries each of the twelve for half a minute, with a line at each try."""
    datasets, hub = (pytest.importorskip(name) for name in ("datasets", "huggingface_hub"))
    for place in (hub.constants, datasets.config):  # so that they are as before when it is over
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    benchmarks.do_without_network.cache_clear()
    start = time.perf_counter()
    with pytest.raises(SystemExit, match="no set can be had; MMSI is skipped: .* cannot be loaded"):
        evaluation.main(["--bench", "paper", "--out", str(tmp_path)])
    assert time.perf_counter() - start < 20
    assert "etry" not in "".join(capfd.readouterr())
    benchmarks.do_without_network.cache_clear()


def test_a_file_with_every_flaw_ends_and_names_what_it_could_not_use(tmp_path, capsys):
    cases = json.loads((ROOT / "tests/cases/bench.json").read_text())
    (tmp_path / "a.png").write_bytes(png())
    rows = [case["row"] | {"image": "a.png"} for case in cases]
    refused = [i for i, case in enumerate(cases) if "error" in case]
    lines = [json.dumps(row) for row in rows] + ["{", "[1]", '{"question": "q"}', "", '"text"']
    lines += [
        json.dumps(rows[0] | {"image": value}) for value in ("gone.png", 7, {}, ["a.png", "x"])
    ]
    (tmp_path / "flaws.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe{\n")
    evaluation.main(
        ["--bench", str(tmp_path / "flaws.jsonl"), "--max-new-tokens", "4", "--out", str(tmp_path)]
    )
    out = capsys.readouterr().out
    named = [int(n) for n in re.findall(r"^  question (\d+): ", out, re.MULTILINE)]
    # The empty line is none.
    assert named == [i + 1 for i in refused] + [len(rows) + i for i in range(1, 10)]
    assert f"{len(refused) + 9} of {len(rows) + 9} questions cannot be used" in out


# ---- eval.py --run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    little = (
        "--iterations 2 --steps 1 --proposer-prompts 2 --coder-proposals 12 --coder-prompts 2 "
        "--solver-proposals 24 --solver-prompts 4 --questions 4 --probe 4 --workers 1 --lr 2e-3 "
        "--render-seconds 60"
    )
    mmzero.main([*little.split(), "--out", str(folder)])
    return folder


def test_a_run_from_base_to_last(trained, made, capsys):
    data, *_ = made
    arguments = ["--run", str(trained), "--bench", "charts", str(data / "mathvision.jsonl")]
    arguments += ["--prompt", "training", "--max-new-tokens", "48", "--questions", "12", "-n", "2"]
    evaluation.main(arguments)
    out = capsys.readouterr().out
    rows = map(json.loads, (trained / "eval/results.jsonl").read_text().splitlines())
    found = {(row["set"], row["model"]): row for row in rows}
    labels = ["base", "it 1", "it 2"]
    sets = ["charts", str(data / "mathvision.jsonl"), "micro average", "mean of 2"]
    assert [*found] == [(name, label) for name in sets[:2] for label in labels] + [
        (name, label) for name in sets[2:] for label in labels
    ]

    # The base has the figures of the base, and what a Solver gained is the paired difference.
    direct = evaluation.evaluate(
        compare.VLM.load("tiny", device="cpu"), evaluation.charts(12)[0], 2, 0, 48
    )
    assert found["charts", "base"]["sampled"] == direct["sampled"]
    for name in sets:
        last, base = found[name, "it 2"], found[name, "base"]
        assert last["sampled_gain"] == pytest.approx(last["sampled"] - base["sampled"])
        assert last["sampled_gain_low"] <= last["sampled_gain"] <= last["sampled_gain_high"]
        assert "sampled_gain" not in base
    assert "minus base (95 %)" in out and f"report: {trained}/report.html" in out

    page = (trained / "report.html").read_text()
    section = page.split("Solvers and base on the same questions")[1].split("<section>")[0]
    assert section.count("<figure>") == 4 and "mathvision.jsonl" in section
    base = found["charts", "base"]
    cell = f"{100 * base['sampled']:.1f} ({100 * base['sampled_low']:.1f}–"
    assert cell in section and "it 2" in section
    # Without these files the page has no such section.
    (trained / "eval/results.jsonl").rename(trained / "eval/kept")
    assert "Solvers and base" not in report(trained).read_text()
    (trained / "eval/kept").rename(trained / "eval/results.jsonl")

    # Another call, of one of the sets: its page keeps the others, whose means are no more.
    evaluation.main([*arguments[:3], "charts", *arguments[5:]])
    rows = [json.loads(line) for line in (trained / "eval/results.jsonl").read_text().splitlines()]
    assert [(row["set"], row["model"]) for row in rows] == [
        (name, label) for name in (sets[1], "charts") for label in labels
    ]
    assert all(row["left_out"] == 0 and row["judge"] is None for row in rows)
    assert "mathvision.jsonl" in (trained / "report.html").read_text()
    capsys.readouterr()

    # The run is copied elsewhere, and two ranks ask what is missing there.
    copy = trained.with_name("copy")
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "eval/it-2")
    arguments[1] = str(copy)
    assert torchrun(2, *arguments) == out.replace(str(trained), str(copy))


def test_a_run_brings_its_models(tmp_path):
    with pytest.raises(SystemExit, match="is not a run folder"):
        evaluation.main(["--run", str(tmp_path)])
    for more in (["--model", "other"], ["--compare", "other"]):
        with pytest.raises(SystemExit) as stop:
            evaluation.main(["--run", str(tmp_path), *more])
        assert stop.value.code == 2
    assert math.isclose(sum(compare.shares(SETS).values()), 1)
