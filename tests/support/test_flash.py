"""What CUDA needs, on a CPU: steps of fixed shapes, captures, rooms that are kept.

CUDA graphs are stand-ins: what is tested is how they are called.
"""

import contextlib
import math
import sys

import pytest
import torch
import transformers
from helpers_models import make_checkpoint

import generate as engine
from generate import Engine, generate
from support import flash
from support.cache import Cache
from support.checkpoint import FAMILIES
from support.flash import CapturedSteps
from vlm import VLM


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: VLM.load(make_checkpoint(root / family, family)) for family in FAMILIES}


def prompts_of(model):
    texts = ("hello", "draw a circle " * 6, "what?", "see or tell", "7")
    return [model.encode(text) for text in texts]


def replies_of(model, **settings):
    settings = dict(n=3, max_new_tokens=16, temperature=1.1, top_p=0.9, seed=7, slots=7) | settings
    before, model.eos_ids = model.eos_ids, tuple(range(100, 125))
    try:
        return [
            reply for group in generate(model, prompts_of(model), **settings) for reply in group
        ]
    finally:
        model.eos_ids = before


def assert_same(one, other):
    assert [reply.tokens for reply in one] == [reply.tokens for reply in other]
    assert [reply.finished for reply in one] == [reply.finished for reply in other]
    for a, b in zip(one, other):
        assert a.logps == pytest.approx(b.logps, rel=1e-3, abs=1e-3)
        assert a.full_logps == pytest.approx(b.full_logps, rel=1e-3, abs=1e-3)


def test_a_step_as_cuda_takes_it(models, monkeypatch):
    """Slots of a whole bucket, all columns, ends looked for every few steps: the same replies."""
    advance, grow = Engine.advance, Cache.grow

    def fixed(self, m, width):
        return advance(self, min(self.slots, 1 << (m - 1).bit_length()), self.columns)

    for model in models.values():
        plain = replies_of(model)
        assert len({len(reply.tokens) for reply in plain}) > 3
        with monkeypatch.context() as patch:
            patch.setitem(engine.EVERY, "cpu", 4)
            patch.setattr(Engine, "advance", fixed)

            def whole(self, *_):
                return grow(self, len(self.columns), len(self.slots))

            patch.setattr(Cache, "grow", whole)
            assert_same(replies_of(model), plain)


def test_a_step_is_captured_once_for_each_shape(monkeypatch, models):
    log, mode = [], ["run"]

    class Graph:
        def replay(self):
            log.append(("replay", *self.shape))

    @contextlib.contextmanager
    def graph(one, pool):
        assert pool == "pool"
        mode[0], Graph.latest = "capture", one
        yield
        mode[0] = "run"

    def step(m, width):
        log.append((mode[0], m, width))
        if mode[0] == "capture":
            Graph.latest.shape = m, width

    for name, stand_in in (
        ("CUDAGraph", Graph),
        ("graph", graph),
        ("graph_pool_handle", lambda: "pool"),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    steps, settings = CapturedSteps(20, 600), (1.0, 1.0, 0)
    for m, width in ((3, 40), (16, 250), (17, 257), (20, 500), (20, 599)):
        steps(step, settings, m, width)
    steps(step, (0.7, 1.0, 0), 1, 1)  # other settings are another graph
    assert log == [
        ("run", 16, 256),
        ("capture", 16, 256),
        ("replay", 16, 256),
        ("run", 20, 512),
        ("capture", 20, 512),
        ("replay", 20, 512),
        ("run", 20, 600),
        ("capture", 20, 600),
        ("run", 16, 256),
        ("capture", 16, 256),
    ]


def test_the_last_room_is_kept(models, monkeypatch):
    """On CUDA: for the next call, if it is enough; not if the network has changed since."""
    model, other = models["qwen2_vl"], models["qwen3_vl"]
    monkeypatch.setattr(VLM, "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(flash, "free_bytes", lambda device: 10**9)
    first = flash.room_for(model, None, 40, 300)
    first.engine = "an engine"
    assert (first.slots, first.columns) == (40, 512)
    assert flash.room_for(model, None, 30, 512) is first
    assert flash.room_for(model, 7, 90, 100) is first and first.engine
    # More slots, then more columns: what there was before is still enough afterwards.
    more = flash.room_for(model, None, 70, 100)
    assert (more.slots, more.columns) == (70, 512) and not first.engine
    longer = flash.room_for(model, None, 9, 600)
    assert (longer.slots, longer.columns) == (70, 768)
    # After an error another one is made, with half; and kept, and remembered when it is gone.
    flash.halve(model, longer)
    half = flash.room_for(model, None, 70, 600)
    assert half is not longer and half.slots == 35
    assert flash.room_for(model, None, 70, 600) is half
    flash.release()
    assert flash.room_for(model, None, 70, 600).slots == 35
    half = flash.room_for(model, None, 70, 600)
    monkeypatch.setattr(model, "slot_limit", math.inf)
    # Weights that have moved, other ends, another network, memory that is wanted.
    model.lm_head.data = model.lm_head.data.clone()
    moved = flash.room_for(model, None, 9, 600)
    assert moved is not half
    monkeypatch.setattr(model, "eos_ids", (5,))
    ends = flash.room_for(model, None, 9, 600)
    assert ends is not moved and flash.room_for(model, None, 9, 600) is ends
    flash.room_for(other, None, 9, 600)
    assert list(flash.KEPT) == [other]
    flash.release()
    assert not flash.KEPT


@pytest.mark.parametrize(
    "text, works", [("", True), ("raise ImportError('undefined symbol')", False)]
)
def test_a_broken_flash_attn_is_said_and_done_without(text, works, tmp_path, monkeypatch, capsys):
    (tmp_path / "flash_attn.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    assert flash.flash_attn_works() == works
    said = (
        ""
        if works
        else "flash-attn does not load (undefined symbol): torch's own attention it is\n"
    )
    assert capsys.readouterr().err == said
    sys.modules.pop("flash_attn", None)
