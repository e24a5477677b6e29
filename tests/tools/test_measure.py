"""What a run is measured by (tools/measure.py). Its figures are tested in test_mmzero.py."""

from dataclasses import replace

from test_mmzero import LITTLE, evolve, metrics

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
    assert {kind: len(questions) for kind, questions in asked.items()} == {"hard": 5, "easy": 5}
    assert held_out(replace(LITTLE, questions=0)) == {}
