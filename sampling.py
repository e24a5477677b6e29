"""From logits to tokens: a random number of its own for every token of every completion, and the distribution inverted at it.

The random numbers are made by counting (seed, prompt, completion, token), not by a generator with a state: so what is drawn for a
completion does not depend on which others are in the batch, in which slot it lies, or how many processes share the prompts.

temperature, then top-k, then the nucleus (top-p) of what it left; all on probabilities, without sorting a vocabulary of 150,000 words.

Shapes: m rows, V vocabulary.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mix(x: Tensor) -> Tensor:
    """Scramble int64 numbers until neighbours look unrelated (splitmix64's finaliser; overflow wraps)."""
    # The masks make the shifts logical: a shift of int64 drags the sign along.
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)


def streams(seed: int, prompts: int, n: int) -> Tensor:
    """[prompts, n]: for each completion the key of a sequence of random numbers of its own."""
    key = mix(torch.tensor(seed & (1 << 63) - 1) + 1)
    return mix(mix(key + torch.arange(1, prompts + 1))[:, None] + torch.arange(1, n + 1))


def uniforms(keys: Tensor, steps: Tensor) -> Tensor:
    """Keys and steps (which broadcast) -> one number in [0, 1) each, float64."""
    bits = mix(keys + (steps + 1) * -0x61C8864680B583EB)
    return (bits >> 11 & (1 << 53) - 1).double() * 2.0**-53


def sample(
    logits: Tensor, u: Tensor, temperature, top_p, top_k, never=None
) -> tuple[Tensor, Tensor, Tensor]:
    """Invert the cumulative distribution at u. logits [m, V], u [m] -> token, logp, full_logp [m].

    never: tokens (a tensor) that are not drawn. Like those beyond top-k they count in full_logp and not in logp.
    Where logits are not finite, full_logp is nan, and the token any: nothing here waits for the device to find out.

    >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> [sample(logits, torch.tensor([u]), 1.0, 1.0, 0)[0].item() for u in (0.1, 0.49, 0.51, 0.79, 0.81)]
    [0, 0, 1, 1, 2]
    >>> token, logp, full = sample(logits, torch.tensor([0.9]), 1.0, 0.6, 0)    # the nucleus is {0.5, 0.3}
    >>> token.item(), round(logp.exp().item(), 3), round(full.exp().item(), 3)
    (1, 0.375, 0.3)
    """
    logits = logits.float() if temperature in (0, 1) else logits.float() / temperature
    probs = logits.softmax(-1)  # [m, V]; the exponentials are taken only once
    if temperature == 0:
        token = (logits if never is None else logits.index_fill(1, never, -torch.inf)).argmax(-1)
        return token, torch.zeros_like(probs[:, 0]), probs.gather(-1, token[:, None])[:, 0].log()
    kept = probs if never is None else probs.index_fill(1, never, 0)
    if 0 < top_k < kept.shape[-1] or top_p < 1:
        kept = kept.masked_fill(kept < least_kept(kept, top_p, top_k), 0)
    token, total = invert(kept, u)
    full = probs.gather(-1, token[:, None])[:, 0].log()
    return token, full - total.log().float(), full


def invert(weights: Tensor, u: Tensor, block=128) -> tuple[Tensor, Tensor]:
    """weights [m, V], u [m] -> the first index at which the cumulative sum exceeds u times the total, and the total [m].

    In two stages, blocks of tokens and then tokens in the block: a float64 sum over every prefix of a vocabulary of
    150,000 words would be the slowest part of sampling. Never an index of weight 0, whatever the rounding.

    >>> invert(torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]), torch.tensor([0.25]), block=2)
    (tensor([3]), tensor([4.], dtype=torch.float64))
    """

    def first_above(cumulative, target):  # no further than to the last index that has any weight
        last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
        return (
            torch.searchsorted(cumulative, target, right=True)
            .minimum(last)
            .clamp(max=cumulative.shape[-1] - 1)
        )

    size = weights.shape[-1]
    if size % block:
        weights = F.pad(weights, (0, -size % block))
    blocks = weights.view(len(weights), -1, block)  # [m, blocks, block]
    mass = blocks.sum(-1).double()
    cumulative = mass.cumsum(-1)
    target = u.double()[:, None] * cumulative[:, -1:]
    chosen = first_above(cumulative, target)  # [m, 1]
    before = cumulative.gather(-1, chosen) - mass.gather(-1, chosen)
    inside = blocks.gather(1, chosen[..., None].expand(-1, -1, block))[:, 0].double().cumsum(-1)
    token = (chosen * block + first_above(inside, target - before))[:, 0]
    return token.clamp(max=size - 1), cumulative[:, -1]  # (the clamp is for sums that are nan)


def least_kept(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """[m, 1]: the smallest probability in the top-k, and in the fewest of these that hold top_p of it.

    The token that crosses top_p is kept, and so are tokens tied exactly with it: nothing tells them apart.

    >>> probs = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    >>> least_kept(probs, top_p=0.7, top_k=0).item(), least_kept(probs, top_p=1.0, top_k=2).item()
    (0.25, 0.25)
    >>> least_kept(probs, top_p=0.6, top_k=2).item()        # 0.5 of 0.75 is enough
    0.5
    """
    vocabulary = probs.shape[-1]
    if probs.device.type == "cuda":
        return least_kept_fixed(probs, top_p, top_k)
    width = min(top_k or 64, vocabulary)
    while True:
        # Sorting would be the slowest part of sampling. A small vocabulary goes to numpy, whose sort is 30 times as
        # fast as torch's; of a large one we take the 64 largest, and more if those hold too little.
        if vocabulary <= 4096:
            best = torch.from_numpy(np.sort(probs.numpy(), axis=-1))[:, -top_k:]  # all if it is 0
        else:
            best = probs.topk(width).values.flip(-1)  # [m, width], largest last
        mass = best.cumsum(-1, dtype=torch.float64)  # of each with all that are smaller
        enough = top_p * (
            mass[:, -1:] if top_k else probs.sum(-1, keepdim=True, dtype=torch.float64)
        )
        if top_k or best.shape[-1] == vocabulary or bool((mass[:, -1:] >= enough).all()):
            break
        width = min(8 * width, vocabulary)
    if top_p == 1:
        return best[:, :1]
    # The first one without which, and without all that are smaller, too little is left. (The clamp is for sums that are nan.)
    first = torch.searchsorted(mass, mass[:, -1:] - enough, right=True).clamp(
        max=best.shape[-1] - 1
    )
    return best.gather(-1, first)


def least_kept_fixed(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """The same for CUDA, in fixed shapes and without a look at the data: bisection on the bits of the number sought.

    Floats from 0 to 1 are in the order of their bits read as integers, 0 to 0x3f800000; so 30 halvings find the largest
    one at or above which there is enough.
    """
    bits = probs.contiguous().view(torch.int32)

    def largest(enough, weights):
        low = torch.zeros_like(bits[:, :1])
        high = torch.full_like(low, 0x3F800001)
        for _ in range(30):
            middle = low + high >> 1
            holds = (
                weights.masked_fill(bits < middle, 0).sum(-1, keepdim=True, dtype=torch.float64)
                >= enough
            )
            low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
        return low.view(torch.float32)

    least = (
        largest(top_k, torch.ones_like(probs))
        if 0 < top_k < probs.shape[-1]
        else torch.zeros_like(probs[:, :1])
    )
    if top_p < 1:
        left = probs.masked_fill(probs < least, 0)
        least = largest(top_p * left.sum(-1, keepdim=True, dtype=torch.float64), left)
    return least
