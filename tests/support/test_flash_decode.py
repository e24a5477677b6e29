"""The decoder's fast paths against plain twins: the cache, flash-attn on it, captured steps.

flash-attn and CUDA graphs are stand-ins here: what is tested is how they are called.
"""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from helpers_models import make_checkpoint

import generate as engine
from generate import Engine, generate
from support import flash
from support.checkpoint import FAMILIES
from support.flash import Cache, CapturedSteps, bucket
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


def flash_attn(q, k_cache, v_cache, k, v, cache_seqlens, softmax_scale, causal):
    """As flash_attn_with_kvcache is documented: k and v [B, 1, K, H] are written at cache_seqlens
    into caches [B, C, K, H], and q [B, 1, heads, H] attends up to there."""
    assert cache_seqlens.dtype == torch.int32 and causal
    assert q.shape[1] == 1 and k_cache.stride(-1) == 1
    out = torch.empty_like(q)
    for slot, length in enumerate(cache_seqlens.tolist()):
        k_cache[slot, length], v_cache[slot, length] = k[slot, 0], v[slot, 0]
        for head in range(q.shape[2]):
            of = head // (q.shape[2] // k.shape[2])
            scores = k_cache[slot, : length + 1, of] @ q[slot, 0, head] * softmax_scale
            out[slot, 0, head] = scores.softmax(0) @ v_cache[slot, : length + 1, of]
    return out


def test_flash_attention_is_called_as_documented(models, monkeypatch):
    for model in models.values():
        plain = replies_of(model, n=2, max_new_tokens=6)
        with monkeypatch.context() as patch:
            patch.setattr(flash, "flash_attn_with_kvcache", flash_attn)
            patch.setattr(flash, "can_decode", lambda device, dtype: True)
            assert_same(replies_of(model, n=2, max_new_tokens=6), plain)


def test_flash_attention_is_used_where_it_can_be(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(flash, "flash_attn_with_kvcache", flash_attn)
    assert flash.can_decode(cuda, torch.bfloat16)
    assert not flash.can_decode(cuda, torch.float32)
    assert not flash.can_decode(cpu, torch.bfloat16)
    monkeypatch.setattr(flash, "flash_attn_with_kvcache", None)
    assert not flash.can_decode(cuda, torch.bfloat16)


def test_fixed_shapes_and_seldom_looks(models, monkeypatch):
    """The step as CUDA takes it: slots of a whole bucket, all columns, ends looked for every few
    steps. The same replies."""
    advance, grow = Engine.advance, Cache.grow

    def fixed(self, m, width):
        return advance(self, min(self.slots, bucket(m)), self.cache.keys[0].shape[2])

    for model in models.values():
        plain = replies_of(model)
        assert len({len(reply.tokens) for reply in plain}) > 3
        with monkeypatch.context() as patch:
            patch.setitem(engine.EVERY, "cpu", 4)
            patch.setattr(Engine, "advance", fixed)
            patch.setattr(Cache, "grow", lambda self, columns, _: grow(self, columns, self.slots))
            assert_same(replies_of(model), plain)


def test_attention_on_the_cache(models, monkeypatch):
    """Through growth, with slots of several lengths: each sees its own columns and no other."""
    model = models["qwen2_vl"]
    torch.manual_seed(0)
    monkeypatch.setattr(flash, "GROWTH", 3)
    cache = Cache(model, 4, columns=20)
    heads, size = 2, 8
    keys, values = torch.randn(2, 4, heads, 20, size)  # those of every slot and column
    lengths = torch.tensor([0, 3, 1, 6])
    cache.grow(7, 4)
    for layer in (0, 1):
        for slot, length in enumerate(lengths):
            cache.keys[layer][slot, :, :length] = keys[slot, :, :length]
            cache.values[layer][slot, :, :length] = values[slot, :, :length]
    slots = torch.arange(4)
    for step in range(12):
        column = lengths + step
        width = cache.grow(int(column.max()) + 1, 4)
        assert width <= cache.keys[0].shape[2] <= min(width + 3, 20)
        visible = cache.visible(column, width)
        q = torch.randn(4, 2 * heads, size)
        k, v = keys[slots, :, column], values[slots, :, column]
        seen = cache.attend(1, q, k, v, column, visible, 0.3).view(4, 2 * heads, size)
        for slot, length in enumerate(column + 1):
            wanted = F.scaled_dot_product_attention(
                q[slot, :, None],
                keys[slot, :, :length],
                values[slot, :, :length],
                scale=0.3,
                enable_gqa=True,
            )
            torch.testing.assert_close(seen[slot], wanted[:, 0])
    # No further than planned; and only the slots that are still of use.
    assert cache.grow(99, 4) == 20
    cache = Cache(model, 4, columns=20)
    cache.grow(5, 2)
    assert cache.keys[0].shape[:3] == (2, heads, 8)


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
    cache = Cache(models["qwen2_vl"], 5, columns=600)
    steps = CapturedSteps(cache)
    for m, width in ((3, 40), (4, 250), (5, 257), (5, 599)):
        steps(step, m, width)
    assert log == [
        ("run", 4, 256),
        ("capture", 4, 256),
        ("replay", 4, 256),
        ("run", 5, 512),
        ("capture", 5, 512),
        ("run", 5, 600),
        ("capture", 5, 600),
    ]
    # flash-attn reads no column beyond a slot's length: one shape serves all widths.
    log.clear()
    cache.flash = True
    steps = CapturedSteps(cache)
    for width in (40, 599):
        steps(step, 1, width)
    assert log == [("run", 1, 600), ("capture", 1, 600), ("replay", 1, 600)]
