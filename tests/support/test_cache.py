"""The cache of keys and values, and attention to it, against attention slot by slot."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers_models import make_checkpoint

from generate import generate
from support import cache as cache_module
from support.cache import Cache, attend
from vlm import VLM

HEADS, SIZE = 2, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return VLM.load(make_checkpoint(tmp_path_factory.mktemp("models") / "qwen2_vl"))


def slot_by_slot(q, keys, values, lengths, scale):
    """The obvious twin -> [m, K * G * H]"""
    found = []
    for slot, length in enumerate(lengths):
        parts = q[slot, :, None], keys[slot, :, :length], values[slot, :, :length]
        found.append(F.scaled_dot_product_attention(*parts, scale=scale, enable_gqa=True))
    return torch.stack(found).flatten(1)


def test_each_slot_sees_its_own_columns(model, monkeypatch):
    """Through growth, with slots of several lengths: these columns and no others."""
    monkeypatch.setattr(cache_module, "GROWTH", 3)
    torch.manual_seed(0)
    cache = Cache(model, 4, columns=20)
    # Those of every slot and column. A prompt's last token is computed by the first step.
    keys, values = torch.randn(2, 4, HEADS, 20, SIZE)
    prompts = [2, 5, 3, 8]
    for slot, length in enumerate(prompts):
        new = torch.stack([keys[slot, :, :length], values[slot, :, :length]])
        cache.place(torch.tensor([slot]), [new, new], position=30 + slot)
    column = torch.tensor(prompts) - 1
    for step in range(12):
        assert torch.equal(cache.column, column) and cache.position[1] == 31 + step
        width = cache.grow(int(column.max()) + 1, 4)
        assert width <= cache.layers[0].shape[3] <= min(width + 3, 20)
        q, slots = torch.randn(4, 2 * HEADS, SIZE), torch.arange(4)
        found = cache.write(1, keys[slots, :, column], values[slots, :, column])
        seen = attend(q, *found, cache.mask(4, width), 0.3)
        wanted = slot_by_slot(q, keys, values, column + 1, 0.3)
        torch.testing.assert_close(seen, wanted, rtol=1e-5, atol=1e-5)
        column = column + 1
        cache.column += 1
        cache.position += 1


def test_it_grows_no_further_than_planned_and_only_for_slots_of_use(model):
    cache = Cache(model, 4, columns=20)
    assert cache.grow(99, 4) == 20
    cache = Cache(model, 4, columns=20)
    cache.grow(5, 2)
    assert cache.layers[0].shape == (2, 2, HEADS, 20, SIZE)


def test_slots_move_whole(model):
    cache = Cache(model, 4, columns=5)
    prompt = torch.randn(2, HEADS, 5, SIZE)
    cache.place(torch.tensor([3]), [prompt, 2 * prompt], position=9)
    cache.move(torch.tensor([0]), torch.tensor([3]))
    assert torch.equal(cache.layers[0][:, 0], prompt)
    assert torch.equal(cache.layers[1][:, 0], 2 * prompt)
    assert (cache.column[0], cache.position[0]) == (4, 9)
    assert not cache.layers[0][:, 1].any()


def test_no_kernel_is_asked_for_grouped_heads(model, monkeypatch):
    """With a mask no fast kernel of CUDA takes fewer heads of keys than of queries: what is left
    makes float32 copies of the cache, one for each query head."""
    asked = []

    def watch(q, k, v, mask, **options):
        asked.append(q.shape)
        assert q.shape[1] == k.shape[1] == v.shape[1] == HEADS and "enable_gqa" not in options
        assert mask.shape == (len(q), 1, 1, k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, mask, **options)

    ours = dict(pad=F.pad, rms_norm=F.rms_norm, scaled_dot_product_attention=watch)
    monkeypatch.setattr(cache_module, "F", SimpleNamespace(**ours))
    generate(model, [model.encode("hello")], n=3, max_new_tokens=4)
    # Two query heads to a key/value head, in each layer of each step.
    assert asked and set(shape[1:] for shape in asked) == {(HEADS, 2, SIZE)}
