"""Prompts into keys and values, each of which is computed once.

What prompts have in common goes through the network first (their "head"), and then what each has for itself (its "tail"), which
attends to the head: the questions about one picture share its vision tower and all that stands before them, and prompts
without a picture a long beginning. The forward passes are transformers' own (vision tower, window attention, deepstack).

Shapes: B prompts, L tokens of the longest, K key/value heads, H head dimension.
"""

import torch
import transformers
from torch import Tensor

from vlm import VLM, Prompt

SHARED = 64  # tokens that prompts without a picture must have in common to be shared; not tuned


def prefill(vlm: VLM, prompts: list[Prompt]) -> list[list[tuple[int, list[Tensor]]]]:
    """The cache of each prompt up to its last token, in pieces: (first column, of each layer its keys, then its values [K, L, H])."""
    families = {}
    for prompt in prompts:
        families.setdefault(prompt.pictures, []).append(prompt)
    heads, head_of = [], {}  # head_of: prompt -> index in heads
    for family in families.values():
        shared = common_prefix(family, vlm.config.image_token_id)
        for prompt in family:
            if not shared or prompt is family[0]:
                heads.append(part(prompt, 0, shared or len(prompt.tokens) - 1))
            head_of[prompt] = len(heads) - 1
    first = forward(vlm, heads)  # [heads, K, L, H] each
    pieces = {
        prompt: [(0, [cache[head, :, : len(heads[head].tokens)] for cache in first])]
        for prompt, head in head_of.items()
    }
    tails = {
        prompt: part(prompt, len(heads[head].tokens), len(prompt.tokens) - 1)
        for prompt, head in head_of.items()
    }
    if rest := [prompt for prompt, tail in tails.items() if tail.tokens]:
        mine = [head_of[prompt] for prompt in rest]
        starts = [len(heads[head].tokens) for head in mine]
        second = forward(
            vlm, [tails[prompt] for prompt in rest], [cache[mine] for cache in first], starts
        )
        for row, (prompt, start) in enumerate(zip(rest, starts)):
            pieces[prompt].append(
                (start, [cache[row, :, : len(tails[prompt].tokens)] for cache in second])
            )
    return [pieces[prompt] for prompt in prompts]


def forward(vlm: VLM, prompts: list[Prompt], past=None, lengths=None) -> list[Tensor]:
    """The layers' keys, then their values, of these tokens: [B, K, L, H] each. past: those of the `lengths` [B] tokens before."""
    inputs, cache = vlm.collate(prompts), transformers.DynamicCache()
    width = inputs["input_ids"].shape[1]
    if past is None:  # padded on the right: under a causal mask no token sees the padding behind it
        del inputs["attention_mask"]
    else:  # between what came before and these tokens there are gaps
        seen = torch.arange(past[0].shape[2]) < torch.tensor(lengths)[:, None]
        inputs["attention_mask"] = torch.cat(
            [seen.to(inputs["attention_mask"]), inputs["attention_mask"]], dim=1
        )
        for layer in range(len(past) // 2):
            cache.update(past[layer], past[layer + len(past) // 2], layer)
    vlm.hidden(inputs, cache)
    return [layer.keys[:, :, -width:] for layer in cache.layers] + [
        layer.values[:, :, -width:] for layer in cache.layers
    ]


def part(prompt: Prompt, start: int, end: int) -> Prompt:
    """A piece of a prompt. Pictures lie in its first piece: see `common_prefix`."""
    return Prompt(
        prompt.tokens[start:end], prompt.positions[:, start:end], () if start else prompt.pictures
    )


def common_prefix(prompts: list[Prompt], image_token: int) -> int:
    """How many tokens these prompts about the same pictures begin with alike, where computing those once pays; else 0.

    All pictures must lie in what they share. Each keeps its last token for itself: a slot begins with it.
    """
    first, last = (
        choose(prompt.tokens for prompt in prompts) for choose in (min, max)
    )  # in the order of a dictionary
    shared = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))
    shared = min(shared, min(len(prompt.tokens) for prompt in prompts) - 1)
    pays = (
        image_token not in prompts[0].tokens[shared:] if prompts[0].pictures else shared >= SHARED
    )
    return shared if len(prompts) > 1 and pays else 0
