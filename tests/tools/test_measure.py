"""What a run is measured by (tools/measure.py). Its figures are tested in test_mmzero.py."""

import json
from dataclasses import replace

import pytest
from test_mmzero import LITTLE, evolve, metrics

from eval import charts
from tools.measure import held_out


def test_what_is_measured_changes_nothing_that_is_learnt(tmp_path):
    learnt = {}
    for name, count in (("measured", 4), ("not", 0)):
        settings = replace(LITTLE, questions=count, probe=count, out=str(tmp_path / name))
        folder = evolve(settings).folder
        steps = [line for line in metrics(folder) if line["kind"] in ("step", "data")]
        weights = (folder / "iter1/solver/model.safetensors").read_bytes()
        learnt[name] = steps, weights
        lines = [line for line in metrics(folder) if line["kind"] == "eval"]
        assert len(lines) == 2 and all(
            ("sampled" in x) == ("valid" in x) == bool(count) for x in lines
        )
    assert len(learnt["not"][0]) >= 4 and learnt["measured"] == learnt["not"]


def test_as_many_questions_as_are_asked():
    asked = held_out(replace(LITTLE, questions=5))
    assert {kind: len(questions) for kind, (questions, _) in asked.items()} == {
        "hard": 5,
        "easy": 5,
    }
    assert held_out(replace(LITTLE, questions=0)) == {}


def test_what_becomes_of_each_content_type(tmp_path):
    folder = evolve(replace(LITTLE, iterations=0, questions=12, probe=24, out=str(tmp_path))).folder
    (line,) = metrics(folder)
    rows = [json.loads(text) for text in (folder / "iter0/probe.jsonl").read_text().splitlines()]
    valid = [row for row in rows if "caption" in row]
    for name, share in line["types_proposed"].items():
        own = [row for row in valid if row["content_type"] == name]
        assert share == len(own) / len(valid)
        if own:
            drawn = [row["picture"] is not None for row in own]
            assert line["types_drawn"][name] == sum(drawn) / len(own)
    assert set(line["types_drawn"]) == {row["content_type"] for row in valid}
    types, sampled = charts(12)[1], line["per_question"]["sampled"]
    for name, share in line["types_sampled"].items():
        own = [value for one, value in zip(types, sampled) if one == name]
        assert share == pytest.approx(sum(own) / len(own))
    assert set(line["types_sampled"]) == set(types)
