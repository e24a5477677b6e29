"""The decoder's fast paths against plain twins: the cache, flash-attn on it, captured steps.

flash-attn and CUDA graphs are stand-ins here: what is tested is how they are called.
"""

import contextlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers_models import make_checkpoint

import generate as engine
from generate import Engine, generate
from support import flash
from support.checkpoint import FAMILIES
from support.flash import Cache, CapturedSteps
from support.lora import add_lora
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


def flash_attn(q, k_cache, v_cache, cache_seqlens, softmax_scale, causal):
    """As flash_attn_with_kvcache is documented without new keys: q [B, 1, heads, H] attends to
    cache_seqlens [B] columns of caches [B, C, K, H]."""
    assert cache_seqlens.dtype == torch.int32 and causal
    assert q.shape[1] == 1 and k_cache.stride(-1) == 1
    out = torch.empty_like(q)
    for slot, length in enumerate(cache_seqlens.tolist()):
        for head in range(q.shape[2]):
            of = head // (q.shape[2] // k_cache.shape[2])
            scores = k_cache[slot, :length, of] @ q[slot, 0, head] * softmax_scale
            out[slot, 0, head] = scores.softmax(0) @ v_cache[slot, :length, of]
    return out


@pytest.fixture(params=["plain", "fused", "flash-attn"])
def attention(request, monkeypatch):
    """The ways to attend to a cache, each on the CPU."""
    if request.param == "plain":
        return flash.plain_attention
    if request.param == "flash-attn":
        monkeypatch.setattr(flash, "flash_attn_with_kvcache", flash_attn)
    return flash.fused_attention


def test_fixed_shapes_and_seldom_looks(models, monkeypatch):
    """The step as CUDA takes it: slots of a whole bucket, all columns, ends looked for every few
    steps. The same replies."""
    advance, grow = Engine.advance, Cache.grow

    def fixed(self, m, width):
        return advance(self, min(self.slots, 1 << (m - 1).bit_length()), self.columns)

    for model in models.values():
        plain = replies_of(model)
        assert len({len(reply.tokens) for reply in plain}) > 3
        with monkeypatch.context() as patch:
            patch.setitem(engine.EVERY, "cpu", 4)
            patch.setattr(Engine, "advance", fixed)
            patch.setattr(
                Cache, "grow", lambda self, *_: grow(self, len(self.columns), len(self.index))
            )
            assert_same(replies_of(model), plain)


def test_attention_of_cuda_gives_the_same_replies(models, monkeypatch):
    for model in models.values():
        plain, asked = replies_of(model), []

        def fused(*arguments, asked=asked):
            asked.append(arguments)
            return flash.fused_attention(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(flash, "plain_attention", fused)
            assert_same(replies_of(model), plain)
        # It is what attended, in every step of every layer.
        longest = max(len(reply.tokens) for reply in plain)
        assert len(asked) >= (longest - 1) * len(model.model.model.language_model.layers)


def test_attention_on_the_cache(models, monkeypatch, attention):
    """Through growth, with slots of several lengths: each sees its own columns and no other."""
    monkeypatch.setattr(flash, "GROWTH", 3)
    model = models["qwen2_vl"]
    torch.manual_seed(0)
    cache = Cache(model, 4, columns=20)
    # flash-attn is not asked in float32.
    cache.attention, cache.layers = attention, [layer.double() for layer in cache.layers]
    heads, size, options = 2, 8, dict(dtype=torch.float64)
    # Those of every slot and column.
    keys, values = new = torch.randn(2, 4, heads, 20, size, **options)
    lengths = torch.tensor([0, 3, 1, 6])
    cache.grow(7, 4)
    for slot, length in enumerate(lengths):
        for layer in cache.layers:
            layer[:, slot, :, :length] = new[:, slot, :, :length]
    slots = torch.arange(4)
    for step in range(12):
        column = lengths + step
        width = cache.grow(int(column.max()) + 1, 4)
        assert width <= cache.layers[0].shape[3] <= min(width + 3, 20)
        visible = cache.visible(column, width)
        q = torch.randn(4, 2 * heads, size, **options)
        together = torch.cat([q, keys[slots, :, column], values[slots, :, column]], dim=1)
        seen = cache.attend(1, together, column, visible, 0.3).view(4, 2 * heads, size)
        for slot, length in enumerate(column + 1):
            wanted = F.scaled_dot_product_attention(
                q[slot, :, None],
                keys[slot, :, :length],
                values[slot, :, :length],
                scale=0.3,
                enable_gqa=True,
            )
            torch.testing.assert_close(seen[slot], wanted[:, 0], rtol=1e-6, atol=1e-6)
    # No further than planned; and only the slots that are still of use.
    assert cache.grow(99, 4) == 20
    cache = Cache(model, 4, columns=20)
    cache.grow(5, 2)
    assert cache.layers[0].shape[:4] == (2, 2, heads, 8)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_products_put_together(tmp_path, family):
    """One product equals its layers, before and after weights are loaded; with adapters as well."""
    vlm = VLM.load(make_checkpoint(tmp_path, family))
    layer, x, onto = (
        vlm.model.model.language_model.layers[0],
        torch.randn(5, 32),
        torch.randn(5, 32),
    )
    attention, mlp = layer.self_attn, layer.mlp
    parameters = list(vlm.model.parameters())
    for lora in (False, True):
        if lora:
            add_lora(vlm, 3, alpha=6.0)
        products = flash.products_of(layer)
        for _ in range(2):
            with torch.no_grad():
                vlm.load_state({k: torch.randn_like(w) for k, w in vlm.weights().items()})
                for product in products:
                    product.refresh()
                q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
                wanted = torch.cat([part(x) for part in (q, k, v)], dim=1)
                close(products[0](x), wanted)
                close(products[1](x, onto), onto + attention.o_proj(x))
                wanted = torch.cat([mlp.gate_proj(x), mlp.up_proj(x)], dim=1)
                close(products[2](x), wanted)
                close(products[3](wanted[:, :64], onto), onto + mlp.down_proj(wanted[:, :64]))
        if not lora:
            # An optimiser that holds the parameters holds them still.
            assert all(a is b for a, b in zip(parameters, vlm.model.parameters(), strict=True))
            # They can be saved as before.
            vlm.save(tmp_path / "saved")
            again = VLM.load(tmp_path / "saved").state()
            assert all(torch.equal(again[name], w) for name, w in vlm.state().items())


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


class Machine:
    """In the place of an engine: its slots and columns."""

    def __init__(self, vlm, slots, columns):
        self.slots, self.columns = slots, columns


def test_the_last_engine_is_kept(models, monkeypatch):
    """On CUDA: for the next call, if it is enough; not if the network has changed since."""
    model, other = models["qwen2_vl"], models["qwen3_vl"]
    cuda = property(lambda self: torch.device("cuda"))
    monkeypatch.setattr(VLM, "device", cuda)
    monkeypatch.setattr(flash, "free_bytes", lambda device: 10**9)
    make = partial(flash.engine_for, Machine)
    first = make(model, None, 40, 300)
    assert (first.slots, first.columns) == (40, 512)
    assert make(model, None, 30, 512) is first and make(model, 7, 90, 100) is first
    # More slots, then more columns: what there was before is still enough afterwards.
    more = make(model, None, 70, 100)
    assert (more.slots, more.columns) == (70, 512)
    longer = make(model, None, 9, 600)
    assert (longer.slots, longer.columns) == (70, 768)
    # After an error another one is made, with half; and kept.
    half = make(model, None, 9, 600, share=2)
    assert half is not longer and half.slots == 35
    assert make(model, None, 70, 600) is half
    # Weights that have moved, other ends, another network, memory that is wanted.
    flash.joined([model.lm_head, model.lm_head])
    moved = make(model, None, 9, 600)
    assert moved is not half
    monkeypatch.setattr(model, "eos_ids", (5,))
    ends = make(model, None, 9, 600)
    assert ends is not moved and make(model, None, 9, 600) is ends
    make(other, None, 9, 600)
    assert list(flash.KEPT) == [other]
    flash.release()
    assert not flash.KEPT
