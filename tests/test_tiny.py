"""The procedural world and the base that is made of it.

Pictures and answers are right, the two languages draw the same, the test was never seen.
"""

import hashlib
import random

import numpy as np
import pytest
import torch

import rewards
from prompts import TOPICS
from render import Renderer
from support.checkpoint import TINY
from tiny import build, drawing, world
from vlm import VLM


@pytest.fixture(scope="module")
def renderer():
    with Renderer(workers=1) as renderer:
        yield renderer


def scenes(count, seed=0, **options):
    rng, kinds = random.Random(seed), list(world.KINDS)
    return [world.random_scene(rng, kinds[i % len(kinds)], **options) for i in range(count)]


def test_both_languages_draw_the_same_picture(renderer):
    some = scenes(28)
    svg = renderer.render([(drawing.svg(s.shapes), "svg") for s in some])
    python = renderer.render([(drawing.python(s.shapes), "python") for s in some])
    for scene, a, b in zip(some, svg, python):
        assert a.image.size == b.image.size == (drawing.SIZE, drawing.SIZE), (a.error, b.error)
        assert (np.asarray(b.image) == np.asarray(drawing.paint(scene.shapes))).all()
        # SVG is drawn with soft edges, Pillow without: what differs is a thin line along an edge
        far = (np.abs(np.asarray(a.image, int) - np.asarray(b.image, int)).max(-1) > 200).mean()
        assert far < 0.06, (scene.caption, far)


def test_five_content_types_and_more():
    types = {scene.content_type for scene in scenes(70)}
    assert types == set("data_chart geometry timeline map table diagram".split())
    assert types < set(rewards.CONTENT_TYPES)


def test_hand_worked_answers():
    """One picture of each kind, its questions answered by reading the caption oneself."""
    for scene in scenes(700, seed=3):
        _, _, spec = scene.caption.partition(": ")
        answers = {q.text: q.answer for q in scene.easy + scene.hard}
        for text, answer in answers.items():
            words = text.rstrip("?").split()
            if scene.kind == "bars":
                value = {c: int(v) for c, v in (item.split() for item in spec.split(", "))}
                if text.startswith("How tall is"):
                    assert answer == str(value[words[-1]])
                elif "add up" in text:
                    assert answer == str(value[words[2]] + value[words[4]])
                elif "above" in text:
                    assert answer == str(sum(v > int(words[-1]) for v in value.values()))
                elif words[-1] == "tallest":
                    assert value[answer] == max(value.values())
                    assert list(value.values()).count(value[answer]) == 1
            elif scene.kind == "map":
                place = {
                    c: tuple(map(int, xy.split(",")))
                    for c, xy in (item.split() for item in spec.split(", "))
                }
                if "from" in words and "to" in words:
                    (x, y), (u, v) = place[words[6]], place[words[8]]
                    assert answer == str(abs(x - u) + abs(y - v))
            elif scene.kind == "shapes" and "area of" in text:
                size = {c: wh.split("x") for c, wh in (item.split() for item in spec.split(", "))}
                assert answer == str(int(size[words[-1]][0]) * int(size[words[-1]][1]))
            elif scene.kind == "plan" and text.startswith("How long is"):
                span = {c: se.split("-") for c, se in (item.split() for item in spec.split(", "))}
                assert answer == str(int(span[words[-1]][1]) - int(span[words[-1]][0]))
            elif scene.kind == "table" and text.startswith("How many cells are"):
                assert answer == str(spec.replace("/", "").split().count(words[-1]))
            elif scene.kind == "table" and text.startswith("Has column"):
                upper, lower = (row.split()[int(words[2]) - 1] for row in spec.split(" / "))
                assert answer == ("one" if upper == lower else "two")
            elif scene.kind == "chain":
                order = spec.split(" > ")
                if text.startswith("What follows"):
                    assert answer == order[order.index(words[-1]) + 1]
                elif text.startswith("How many steps"):
                    assert answer == str(order.index(words[-1]) - order.index(words[5]))
                elif text.startswith("How many nodes"):
                    assert answer == str(len(order) - 1 - order.index(words[-1]))


def test_the_held_out_test_is_disjoint_from_what_the_base_saw_and_the_same_every_time():
    seen = {scene.caption for scene in scenes(3000)}
    validation = {scene.caption for scene in scenes(300, of="validation")}
    test = {scene.caption for scene in scenes(300, of="test")}
    assert validation and test
    assert not seen & test and not seen & validation and not validation & test
    assert world.heldout(20) != world.heldout(20, of="validation")
    assert world.heldout(20, 1) == world.heldout(20, 1) != world.heldout(20, 2)
    assert {q.content_type for q in world.heldout(14)} == {s.content_type for s in scenes(14)}


def test_scenes_are_those_the_shipped_base_was_trained_on():
    """A change here means: build the base again, and measure everything again."""
    made = [
        (s.caption, s.shapes, [(q.text, q.answer) for q in s.easy + s.hard]) for s in scenes(90)
    ]
    said = [build.lesson(task, random.Random(4), 1.0)[2] for task in build.EVERYTHING]
    digest = hashlib.md5(repr((made, world.heldout(60), said)).encode()).hexdigest()
    assert digest == "1749c162236a96d55fc1efb6dd65121d"


def test_what_the_careful_teacher_says_is_read_right_and_the_crowd_errs():
    rng = random.Random(0)
    right = {0.0: [], 1.0: []}
    for scene in scenes(350, seed=5):
        for noise, score in right.items():
            question = rng.choice(scene.hard)
            given = rewards.extract_answer(build.answer(question, rng, noise))
            score.append(rewards.answers_match(given, question.answer))
    assert all(right[0.0])
    assert 0.4 < np.mean(right[1.0]) < 0.85


def test_every_reply_of_the_teacher_does_its_job(renderer):
    rng = random.Random(1)
    jobs = []
    for scene in scenes(21, seed=7):
        text, fields = build.proposal(scene, rng, noise=0)
        assert rewards.parse_proposal(text).caption == fields["caption"] == scene.caption
        for language in ("svg", "python"):
            code = rewards.extract_code(build.code(scene, language, rng, noise=0), language)
            jobs.append((code, language))
    assert [drawn.error for drawn in renderer.render(jobs)] == [None] * 42
    jobs = []
    for scene in scenes(70, seed=8):
        code = rewards.extract_code(build.code(scene, "svg", rng, noise=1), "svg")
        jobs.append((code, "svg"))
    rate = np.mean([drawn.error is None for drawn in renderer.render(jobs)])
    assert 0.35 < rate < 0.8


def test_the_shipped_base_is_small_and_speaks_its_own_prompts():
    assert sum(f.stat().st_size for f in TINY.iterdir()) <= 8e6
    vlm = VLM.load("tiny", device="cpu")
    assert vlm.prompts == build.PROMPTS
    assert set(build.FAVOURITES) == set(TOPICS)
    texts = [
        build.lesson(task, random.Random(2), 0.0)[2]
        for task in ("propose", "svg", "python", "read", "hard")
    ]
    assert [vlm.tokenizer.decode(vlm.tokenizer(t).input_ids) for t in texts] == texts


def test_pretraining_is_deterministic_for_a_seed(tmp_path):
    made = []
    for attempt in ("a", "b"):
        vlm = build.blank(tmp_path / attempt, seed=4)
        build.pretrain(vlm, 2, {"describe": 2}, noise=0.0, seed=5)
        build.pretrain(vlm, 2, {task: 1 for task in build.EVERYTHING}, noise=1.0, seed=6)
        made.append(vlm.state())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert vlm.tokenizer.get_vocab() == VLM.load("tiny", device="cpu").tokenizer.get_vocab()
