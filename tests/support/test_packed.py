"""The faster attentions of a packed sequence against the mask, and against separate sequences."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from oracle import token_logps
from test_grpo import FAMILIES, gap_to_separate_sequences, gradients, make_rollouts, models

from support import packed
from support.packed import visible_tokens

__all__ = ["models"]
LENGTHS = [[5, 3, 1, 7], [2, 4], [9, 1, 1]]


def varlen_by_hand(q, k, v, ends_q, ends_k, longest_q, longest_k, softmax_scale, causal):
    """What the flash-attn package documents of flash_attn_varlen_func: segment by segment, and
    causal means from the end."""
    assert ends_q.dtype == torch.int32
    assert longest_q == ends_q.diff().max() and longest_k == ends_k.diff().max()
    found, group = [], q.shape[1] // k.shape[1]
    for i, j, a, b in zip(ends_q, ends_q[1:], ends_k, ends_k[1:]):
        allowed = torch.ones(j - i, b - a, dtype=torch.bool)
        allowed = allowed.tril(b - a - (j - i)) if causal else allowed
        heads = []
        for h in range(q.shape[1]):
            scores = q[i:j, h] @ k[a:b, h // group].T * softmax_scale
            weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
            heads.append(weights @ v[a:b, h // group])
        found.append(torch.stack(heads, 1))
    return torch.cat(found)


@pytest.fixture(params=["padded blocks", "flash-attn"])
def fast(request, monkeypatch):
    """Short sequences, on a CPU: by themselves they would not ask for it."""
    monkeypatch.setattr(packed, "pays", lambda lengths: True)
    if request.param == "flash-attn":
        monkeypatch.setattr(packed, "has_kernels", lambda device, dtype: True)
        monkeypatch.setattr(packed, "flash_attn_varlen_func", varlen_by_hand)
    kind = packed.Segments if request.param == "flash-attn" else packed.Blocks
    assert isinstance(packed.lay_out(LENGTHS, torch.device("cpu")), kind)


def test_fast_attention_is_plain_attention(fast):
    """Values, and gradients by queries, keys and values; two query heads to a key/value head."""
    torch.manual_seed(0)
    total, found = sum(map(sum, LENGTHS)), []
    upstream = torch.randn(1, total, 4, 8)
    inputs = [torch.randn(1, heads, total, 8) for heads in (4, 2, 2)]
    layout = packed.lay_out(LENGTHS, torch.device("cpu"))
    for how in (layout, None):
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        mask = visible_tokens(LENGTHS)[None, None] if how is None else None
        result = packed.packed_attention(None, q, k, v, mask, scaling=0.3, layout=how)[0]
        assert result.shape == upstream.shape
        (result * upstream).sum().backward()
        found.append((result.detach(), q.grad, k.grad, v.grad))
    for ours, plain in zip(*found):
        assert plain.abs().max() > 0.1
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fast", [False, True])
def test_no_kernel_is_asked_for_grouped_heads(fast, monkeypatch):
    """With a mask those of CUDA take as many heads of keys as of queries, or are slow."""
    original, asked = F.scaled_dot_product_attention, []

    def watch(q, k, v, mask, **options):
        assert q.shape[1] == k.shape[1] == v.shape[1] == 4 and "enable_gqa" not in options
        asked.append(mask.shape)
        return original(q, k, v, mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    q, k, v = (torch.randn(1, heads, sum(map(sum, LENGTHS)), 8) for heads in (4, 2, 2))
    layout = packed.lay_out(LENGTHS, torch.device("cpu")) if fast else None
    mask = None if fast else visible_tokens(LENGTHS)[None, None]
    packed.packed_attention(None, q, k, v, mask, scaling=0.3, layout=layout)
    assert len(asked) == 1 + fast


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_is_plain_through_the_network(models, family, fast, monkeypatch):
    vlm, found = copy.deepcopy(models[family]), []
    rollouts = make_rollouts(vlm)
    bundles = [rollouts[0:3], rollouts[3:5], rollouts[5:6], rollouts[6:9]]
    for _ in range(2):
        vlm.model.zero_grad()
        weights = torch.linspace(-1, 2, sum(len(r.tokens) for r in rollouts[:9]))
        logp, entropy, loss = token_logps(vlm, bundles, 0.8, weights)
        loss.backward()
        found.append((logp, entropy, gradients(vlm) / gradients(vlm).abs().max()))
        monkeypatch.setattr(packed, "pays", lambda lengths: False)
        monkeypatch.setattr(packed, "has_kernels", lambda device, dtype: False)
        vlm.model.model.visual.config._attn_implementation = "sdpa"
    for ours, plain in zip(*found):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_is_separate_sequences(models, family, fast, monkeypatch):
    assert gap_to_separate_sequences(copy.deepcopy(models[family]), monkeypatch) < 2e-5


def test_where_it_pays():
    assert not packed.pays([[100, 10, 10]]) and packed.pays([[100, 10, 10], [100, 10, 10, 20]])
