"""Attention of a packed sequence against a mask over all of it, and against separate sequences."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_grpo import FAMILIES, gap_to_separate_sequences, models

from support import packed

__all__ = ["models"]
LENGTHS = [[5, 3, 1, 7], [2, 4], [9, 1, 1]]


def varlen_by_hand(
    q, k, v, ends_q, ends_k, longest_q, longest_k, *, scale, window_size, enable_gqa
):
    """What torch documents of varlen_attn: segment by segment, and causal means from the end."""
    assert ends_q.dtype == torch.int32 and enable_gqa
    assert longest_q == ends_q.diff().max() and longest_k == ends_k.diff().max()
    found, group = [], q.shape[1] // k.shape[1]
    for i, j, a, b in zip(ends_q, ends_q[1:], ends_k, ends_k[1:]):
        allowed = torch.ones(j - i, b - a, dtype=torch.bool)
        allowed = allowed.tril(b - a - (j - i)) if window_size == (-1, 0) else allowed
        heads = []
        for h in range(q.shape[1]):
            scores = q[i:j, h] @ k[a:b, h // group].T * scale
            weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
            heads.append(weights @ v[a:b, h // group])
        found.append(torch.stack(heads, 1))
    return torch.cat(found)


def visible_tokens(lengths):
    """The obvious twin [L, L]: a token sees its prompt and its own reply, up to itself."""
    segments = [
        (b, i) for b, each in enumerate(lengths) for i, n in enumerate(each) for _ in range(n)
    ]

    def sees(i, j):
        return j <= i and segments[j] in (segments[i], (segments[i][0], 0))

    return torch.tensor([[sees(i, j) for j in range(len(segments))] for i in range(len(segments))])


@pytest.fixture(params=["padded blocks", "kernels"])
def kind(request, monkeypatch):
    """Both on a CPU; the kernels by hand."""
    if request.param == "kernels":
        monkeypatch.setattr(packed, "has_kernels", lambda device, dtype: True)
        monkeypatch.setattr(packed, "varlen_attn", varlen_by_hand)
    kind = packed.Segments if request.param == "kernels" else tuple
    assert isinstance(packed.lay_out(LENGTHS, torch.device("cpu")), kind)
    return kind


def test_it_is_attention_with_a_mask(kind):
    """Values, and gradients by queries, keys and values; two query heads to a key/value head."""
    torch.manual_seed(0)
    total, found = sum(map(sum, LENGTHS)), []
    upstream = torch.randn(1, total, 4, 8)
    inputs = [torch.randn(1, heads, total, 8) for heads in (4, 2, 2)]
    layout, mask = packed.lay_out(LENGTHS, torch.device("cpu")), visible_tokens(LENGTHS)
    for fast in (True, False):
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        if fast:
            result = packed.packed_attention(None, q, k, v, None, scaling=0.3, layout=layout)[0]
        else:
            options = dict(scale=0.3, enable_gqa=True)
            result = F.scaled_dot_product_attention(q, k, v, mask, **options).transpose(1, 2)
        assert result.shape == upstream.shape
        (result * upstream).sum().backward()
        found.append((result.detach(), q.grad, k.grad, v.grad))
    for ours, plain in zip(*found):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_separate_sequences(models, family, kind, monkeypatch):
    """Through the network, pictures and all."""
    assert gap_to_separate_sequences(copy.deepcopy(models[family]), monkeypatch) < 2e-5


def test_no_kernel_is_asked_for_grouped_heads(monkeypatch):
    """With a mask those of CUDA take as many heads of keys as of queries, or are slow."""
    original, asked = F.scaled_dot_product_attention, []

    def watch(q, k, v, mask, **options):
        assert q.shape[1] == k.shape[1] == v.shape[1] == 4 and "enable_gqa" not in options
        asked.append(mask.shape)
        return original(q, k, v, mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    q, k, v = (torch.randn(1, heads, sum(map(sum, LENGTHS)), 8) for heads in (4, 2, 2))
    layout = packed.lay_out(LENGTHS, torch.device("cpu"))
    packed.packed_attention(None, q, k, v, None, scaling=0.3, layout=layout)
    assert len(asked) == 2
