"""Faster attention with the results of the plain one. Tests hold the two equal."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None


# ---- packed sequences (plain twin: the mask of grpo.visible_tokens) ------------------------------

# Up to this many tokens of a packed sequence, a mask over all of them is as fast on a CPU: at 100
# tokens 0.7 against 2.1 ms, at 280 3.9 against 3.6, at 1,400 127 against 15 (a layer with 4 heads
# of 32, forward and backward, one core, 2026-11).
SHORT = 256


@dataclass(frozen=True, eq=False)
class Segments:
    """For flash-attn. A segment is a prompt or a reply; its queries are its own tokens."""

    keys: Tensor  # where the keys of one segment after the other stand in the packed sequence
    query_ends: Tensor  # [segments + 1] int32, from 0
    key_ends: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True, eq=False)
class Blocks:
    """For scaled_dot_product_attention: prompts padded to one block, replies to another."""

    blocks: list  # of (queries [B, q], keys [B, k], visible [B, 1, q, k]): places of B segments
    places: Tensor  # [L] where each token's result stands in the flattened blocks


def pays(lengths, device) -> bool:
    """Is this faster than a mask? lengths: of each bundle its prompt's and those of its replies."""
    return device.type == "cuda" or sum(map(sum, lengths)) > SHORT


def lay_out(lengths, device):
    """Where the segments of a packed sequence are, as the kernels want it -> Segments or Blocks.

    The queries of a segment are its tokens. Its keys are the same tokens, and for a reply those of
    its prompt before them.
    """
    segments, start = [], 0
    for prompt_length, *reply_lengths in lengths:
        prompt = torch.arange(start, start + prompt_length)
        segments.append((prompt, prompt))
        start += prompt_length
        for length in reply_lengths:
            reply = torch.arange(start, start + length)
            segments.append((reply, torch.cat([prompt, reply])))
            start += length

    if flash_attn_varlen_func is not None and device.type == "cuda":
        return for_flash_attn(segments, device)
    return padded_blocks(segments, start, device)


def for_flash_attn(segments, device) -> Segments:
    lengths, ends = [], []
    for kind in (0, 1):
        lengths.append([len(segment[kind]) for segment in segments])
        total = torch.tensor(lengths[kind]).cumsum(0, dtype=torch.int32)
        ends.append(F.pad(total, (1, 0)).to(device))
    keys = torch.cat([keys for _, keys in segments]).to(device)
    return Segments(keys, *ends, *map(max, lengths))


def padded_blocks(segments, total, device) -> Blocks:
    """Two blocks and not one, because prompts are much longer than replies, or much shorter."""
    prompts = [(queries, keys) for queries, keys in segments if queries is keys]
    replies = [(queries, keys) for queries, keys in segments if queries is not keys]
    blocks, places, done = [], torch.empty(total, dtype=torch.long), 0
    for block in (prompts, replies):
        queries = pad_sequence([queries for queries, _ in block], batch_first=True)  # [B, q]
        keys = pad_sequence([keys for _, keys in block], batch_first=True)  # [B, k]
        own = torch.tensor([[len(queries)] for queries, _ in block])  # [B, 1]
        before = torch.tensor([[len(keys)] for _, keys in block]) - own  # [B, 1]

        # A query sees the prompt before its segment, and of the segment what is not behind it.
        i, j = torch.arange(queries.shape[1]), torch.arange(keys.shape[1])
        visible = j <= (before + i)[..., None]  # [B, q, k]

        # Where the results of real queries will stand, once the blocks are flattened.
        results = done + torch.arange(queries.numel()).view_as(queries)
        places[torch.cat([queries for queries, _ in block])] = results[i < own]
        done += queries.numel()
        blocks.append((queries.to(device), keys.to(device), visible[:, None].to(device)))
    return Blocks(blocks, places.to(device))


def packed_attention(module, query, key, value, attention_mask, scaling=None, layout=None, **_):
    """Called by transformers in each layer: query [1, heads, L, H], key and value [1, key/value
    heads, L, H] -> [1, L, heads, H]. layout: of `lay_out`. None: the mask says who sees whom."""
    # Under autocast the rotary embedding leaves float32 queries and keys behind.
    q, k = query.to(value.dtype), key.to(value.dtype)
    if layout is None:
        found = F.scaled_dot_product_attention(
            q, k, value, attention_mask, scale=scaling, enable_gqa=True
        )
        return found.transpose(1, 2), None

    q, k, v = (x[0].transpose(0, 1) for x in (q, k, value))  # [L, heads, H]
    if isinstance(layout, Segments):
        # Causal from the end of the keys, so that a reply's first query sees its whole prompt.
        found = flash_attn_varlen_func(
            q,
            k.index_select(0, layout.keys),
            v.index_select(0, layout.keys),
            layout.query_ends,
            layout.key_ends,
            layout.longest_query,
            layout.longest_key,
            softmax_scale=scaling,
            causal=True,
        )
        return found[None], None

    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    found = []
    for queries, keys, visible in layout.blocks:
        block = F.scaled_dot_product_attention(
            pick(q, queries), pick(k, keys), pick(v, keys), visible, scale=scaling
        )
        found.append(block.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, layout.places)[None], None


AttentionInterface.register("packed", packed_attention)


def pick(x, places):
    """[L, heads, H] at places [B, q] -> [B, heads, q, H]"""
    # index_select, because its backward is much faster than that of x[places].
    return x.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
