"""Batched sampling with a KV cache of our own.

The life of a slot (a row of the cache, which holds one completion at a time):

    prompts --prefill once each--> prefix --copy to n slots--> [sample, decode, sample, ...] --> Completion
                                                                ^                         |
                                                                +- next one of the queue <+

Slots 0 .. m-1 are at work, the others free. When a completion ends, the last working row moves into its slot
(one row of the cache is copied), so a decode step never computes a row that has ended. When half of the slots
are free they are filled from the queue.

A row starts at column 0 of the cache and has its own length: rows of any lengths, with and without pictures,
share a step. There is no padding inside a row, and the mask is simply "column <= length".

Prefill goes through transformers' forward (vision tower, window attention, deepstack: all theirs). The decode
step is written out below on the layers' own weights: with one new token per row it is half a page.

Shapes: S slots, m working ones, C columns, K key/value heads, G query heads per key/value head, H head
dimension, D hidden size, V vocabulary.
"""
import argparse
import os
import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vlm import VLM, Prompt, next_position

GROWTH = 32             # columns by which the cache grows


@dataclass
class Completion:
    tokens: list[int]           # including the end token, if one was reached
    text: str                   # without it
    logps: list[float]          # of each token, as it was sampled: temperature, top-k and top-p applied
    full_logps: list[float]     # before any was left out: log_softmax(logits / temperature), a trainer's view
    finished: bool              # an end token was reached (otherwise max_new_tokens cut it off)


def generate(vlm: VLM, prompts: list[Prompt], n=1, max_new_tokens=512, temperature=1.0, top_p=1.0, top_k=0,
             seed=0, progress=False, slots=None, prefill_tokens=8192, numbers=None) -> list[list[Completion]]:
    """n completions of each prompt: a list per prompt, in order.

    temperature 0 takes the most probable token (logps are then 0, full_logps those of temperature 1). top_k 0
    and top_p 1 mean off; top-k comes first, then the nucleus of what it left. Image and video tokens are
    never drawn: in a reply they would stand for pictures that do not exist, which the network refuses.
    slots: rows decoded at once, by default 512 on CPU and 128 on CUDA, fewer where memory is short.
    prefill_tokens: prompt tokens (padding included) prefilled at once. Neither changes what is sampled: token t
    of completion c of prompt p is drawn with a random number that depends on (seed, p, c, t) alone. (Up to
    rounding, that is: the last bits of a logit depend on the shape of the batch it was computed in.) numbers: p
    of each prompt, by default 0, 1, 2, ...; whoever samples a part of a longer list gives the places there, and
    draws what the whole list would.
    """
    slots = (128 if vlm.device.type == "cuda" else 512) if slots is None else slots
    for wrong, rule in ((n < 1, "n must be 1 or more"),
                        (max_new_tokens < 1, "max_new_tokens must be 1 or more"),
                        (not temperature >= 0, "temperature must be 0 (greedy) or more"),
                        (not 0 < top_p <= 1, "top_p must be above 0 and at most 1 (off)"),
                        (top_k < 0, "top_k must be 0 (off) or more"), (slots < 1, "slots must be 1 or more")):
        if wrong:
            raise ValueError(rule)
    if not prompts:
        return []
    longest = max(len(prompt.tokens) for prompt in prompts) + max_new_tokens
    slots = slots_that_fit(vlm, min(slots, n * len(prompts)), longest)
    with torch.inference_mode():
        settings = temperature, top_p, top_k
        try:
            return Engine(vlm, prompts, n, max_new_tokens, settings, seed, slots, prefill_tokens, numbers).run(progress)
        except torch.cuda.OutOfMemoryError:             # something else took the memory that was planned with
            slots = max(1, slots // 2)
            print(f"generate: out of GPU memory; once more from the start with {slots} slots", file=sys.stderr)
        torch.cuda.empty_cache()                        # out of the except clause, which holds on to the old engine
        return Engine(vlm, prompts, n, max_new_tokens, settings, seed, slots, prefill_tokens, numbers).run(progress)


def free_bytes(device) -> int:
    """What a cache may take: the free memory of a GPU and what torch holds there unused; half of a computer's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def slots_that_fit(vlm: VLM, wanted: int, longest: int) -> int:
    """`wanted`, or as many rows of `longest` tokens as fit into nine tenths of the free memory.

    ValueError if not even one does: better before an hour of sampling than in the middle of it.
    """
    text = vlm.config.get_text_config()
    attention = vlm.model.model.language_model.layers[0].self_attn
    cache = 2 * text.num_hidden_layers * attention.k_proj.weight.shape[0] * longest * vlm.dtype.itemsize
    sampling = 24 * text.vocab_size             # logits, probabilities, their sum: 3 float32 and 1.5 float64 per word
    free = free_bytes(vlm.device) * 9 // 10
    if cache + sampling > free:
        raise ValueError(f"a reply of up to {longest} tokens, prompt included, needs {(cache + sampling) / 1e9:.1f} GB of cache, and "
                         f"{free / 1e9:.1f} GB are free: shorten max_new_tokens or the prompt, or make the pictures smaller")
    return max(1, min(wanted, free // (cache + sampling)))


# ------------------------------------------------------------------------------------ sampling

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
    """keys, steps [m] -> one number in [0, 1) each, float64."""
    bits = mix(keys + (steps + 1) * -0x61C8864680B583EB)
    return (bits >> 11 & (1 << 53) - 1).double() * 2.0 ** -53


def sample(logits: Tensor, u: Tensor, temperature, top_p, top_k, never=()) -> tuple[Tensor, Tensor, Tensor]:
    """Invert the cumulative distribution at u. logits [m, V], u [m] -> token, logp, full_logp [m].

    never: tokens that are not drawn. Like those beyond top-k they count in full_logp and not in logp.

    >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> [sample(logits, torch.tensor([u]), 1.0, 1.0, 0)[0].item() for u in (0.1, 0.49, 0.51, 0.79, 0.81)]
    [0, 0, 1, 1, 2]
    >>> token, logp, full = sample(logits, torch.tensor([0.9]), 1.0, 0.6, 0)    # the nucleus is {0.5, 0.3}
    >>> token.item(), round(logp.exp().item(), 3), round(full.exp().item(), 3)
    (1, 0.375, 0.3)
    """
    logits = logits.float()
    full = (logits / (temperature or 1)).log_softmax(-1)                    # [m, V]
    probs = full.exp()
    probs[:, never] = 0
    if temperature == 0:
        token = probs.argmax(-1)
        return token, torch.zeros_like(u, dtype=full.dtype), full.gather(-1, token[:, None])[:, 0]
    if 0 < top_k < probs.shape[-1] or top_p < 1:
        probs = probs.masked_fill(probs < least_kept(probs, top_p, top_k), 0)
    cdf = probs.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:].contiguous()
    if not bool((total > 0).all()):                                         # false for nan, too
        raise RuntimeError("the network's logits are not finite numbers: its weights have diverged")
    # The first index whose cumulative probability exceeds u, but never past the last that has any at all.
    token = torch.searchsorted(cdf, u[:, None] * total, right=True).minimum(torch.searchsorted(cdf, total))
    full = full.gather(-1, token)[:, 0]
    return token[:, 0], full - total[:, 0].log().float(), full


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
    enough = top_p * probs.sum(-1, keepdim=True, dtype=torch.float64)       # [m, 1]
    width = min(top_k or 64, vocabulary)
    while True:
        # Sorting would be the slowest part of sampling. A small vocabulary goes to numpy, whose sort is 30
        # times as fast as torch's on CPU; of a large one we take the 64 largest, and more if those hold too
        # little.
        if probs.device.type == "cpu" and vocabulary <= 4096:
            best = torch.from_numpy(np.sort(probs.numpy(), axis=-1)).flip(-1)[:, :top_k or vocabulary]
        else:
            best = probs.topk(width).values                                 # [m, width], largest first
        mass = best.cumsum(-1, dtype=torch.float64)
        if top_k or best.shape[-1] == vocabulary or bool((mass[:, -1:] >= enough).all()):
            break
        width = min(8 * width, vocabulary)
    if top_p == 1:
        return best[:, -1:]
    if top_k:
        enough = top_p * mass[:, -1:]
    kept = (mass - best < enough).sum(-1, keepdim=True)                 # those with too little before them
    return best.gather(-1, kept - 1)


# ------------------------------------------------------------------------------------ the engine

class Engine:
    """The cache, the slots and the queue of one call of `generate`."""

    def __init__(self, vlm, prompts, n, max_new_tokens, settings, seed, slots, prefill_tokens, numbers=None):
        self.vlm, self.text = vlm, vlm.model.model.language_model
        self.max_new_tokens, self.settings, self.prefill_tokens = max_new_tokens, settings, prefill_tokens
        self.results = [[None] * n for _ in prompts]

        # The queue: each distinct prompt with the completions asked of it. Long prompts first, so that
        # neighbours are alike in length and the longest do not come last, when few slots are at work. Questions
        # about the same pictures go together: the vision tower runs once for all that are prefilled at once.
        distinct, families = {}, {}
        for index, prompt in enumerate(prompts):
            key = (prompt.pictures, *prompt.tokens)
            distinct.setdefault(key, (prompt, []))[1].extend((index, completion) for completion in range(n))
            longest, number = families.get(prompt.pictures or key, (0, len(families)))
            families[prompt.pictures or key] = max(longest, len(prompt.tokens)), number

        def place(item):
            (key, (prompt, _)), (longest, number) = item, families[item[0][0] or item[0]]
            return -longest, number, -len(prompt.tokens)
        self.queue = [entry for _, entry in sorted(distinct.items(), key=place)]
        self.ready = []             # prefilled: (keys and values, last hidden state, prompt, its completions)

        self.slots, self.m = min(slots, n * len(prompts)), 0
        slots, device, dtype = self.slots, vlm.device, vlm.dtype
        attention = self.text.layers[0].self_attn
        self.head_dim = attention.head_dim
        self.kv_heads = attention.k_proj.weight.shape[0] // self.head_dim

        def zeros(*size, dtype=torch.long):
            return torch.zeros(slots, *size, dtype=dtype, device=device)
        self.columns = 0                                                # C, see `resize`
        shape, layers = (self.kv_heads, 0, self.head_dim), len(self.text.layers)
        self.keys = [zeros(*shape, dtype=dtype) for _ in range(layers)]     # [S, K, C, H] each
        self.values = [zeros(*shape, dtype=dtype) for _ in range(layers)]
        # Rotations by position. In a reply the three axes of M-RoPE agree: one position a token is enough.
        positions = torch.arange(max(map(next_position, prompts)) + max_new_tokens, device=device)
        cos, sin = self.text.rotary_emb(self.keys[0], positions.expand(3, 1, -1))
        self.cos, self.sin = cos[0], sin[0]                             # [positions, H]

        # The state of each slot.
        self.owner = [None] * slots                                     # (prompt index, completion index)
        self.length, self.position, self.step, self.stream = zeros(), zeros(), zeros(), zeros()
        self.hidden = zeros(self.text.config.hidden_size, dtype=dtype)  # of the newest token
        self.tokens = zeros(max_new_tokens)
        self.logps, self.full_logps = (zeros(max_new_tokens, dtype=torch.float32) for _ in range(2))
        numbers = torch.tensor(range(len(prompts)) if numbers is None else numbers)
        self.streams = streams(seed, int(numbers.max()) + 1, n)[numbers].to(device)
        self.eos = torch.tensor(vlm.eos_ids, device=device)
        self.never = [vlm.config.image_token_id, vlm.config.video_token_id]

    def run(self, progress) -> list[list[Completion]]:
        bar = tqdm(total=sum(map(len, self.results)), disable=not progress, unit=" completions", leave=False)
        while self.queue or self.ready or self.m:
            if self.m <= self.slots // 2:
                self.admit()
            step = self.step[:self.m]
            logits = self.hidden[:self.m] @ self.vlm.head.T                     # [m, V]
            drawn = sample(logits, uniforms(self.stream[:self.m], step), *self.settings, self.never)
            rows = torch.arange(self.m, device=self.eos.device)
            for record, new in zip((self.tokens, self.logps, self.full_logps), drawn):
                record[rows, step] = new
            step += 1
            newest, ended = drawn[0], torch.isin(drawn[0], self.eos)
            gone = (ended | (step == self.max_new_tokens)).nonzero()[:, 0].tolist()
            if gone:
                newest = self.retire(gone, ended, newest)
                bar.update(len(gone))
            if self.m:
                self.hidden[:self.m] = self.decode(newest)
        bar.close()
        return self.results

    # -------------------------------------------------------------------- prompts into slots
    def admit(self):
        """Fill the free slots from the queue, prefilling what is not ready yet."""
        while self.m < self.slots and (self.queue or self.ready):
            if not self.ready:
                self.prefill()
            prefix, hidden, prompt, waiting = self.ready[0]
            length, now = len(prompt.tokens), waiting[:self.slots - self.m]
            rows = slice(self.m, self.m + len(now))
            self.resize(length + GROWTH)
            for cache, one in zip(self.keys + self.values, prefix):     # one prompt's cache into many rows
                cache[rows, :, :length] = one[:, :length]
            self.hidden[rows] = hidden
            self.length[rows], self.position[rows], self.step[rows] = length, next_position(prompt), 0
            self.owner[rows], self.stream[rows] = now, self.streams[tuple(zip(*now))]
            self.m += len(now)
            del waiting[:len(now)]
            if not waiting:
                self.ready.pop(0)

    def prefill(self):
        """Run the next prompts through the network, as many as the free slots and the token budget allow."""
        batch, free = [], self.slots - self.m
        while self.queue and free > 0:
            if batch and (len(batch) + 1) * len(batch[0][0].tokens) > self.prefill_tokens:
                break
            batch.append(self.queue.pop(0))
            free -= len(batch[-1][1])
        # Padded on the right: under a causal mask no token sees the padding behind it; no mask is needed.
        inputs = self.vlm.collate([prompt for prompt, _ in batch], side="right")
        del inputs["attention_mask"]
        past = transformers.DynamicCache()
        hidden = self.vlm.hidden(inputs, past)                          # [B, L, D]
        caches = [layer.keys for layer in past.layers] + [layer.values for layer in past.layers]
        for row, (prompt, waiting) in enumerate(batch):
            prefix = [cache[row] for cache in caches]                   # [K, L, H] each
            self.ready.append((prefix, hidden[row, len(prompt.tokens) - 1], prompt, waiting))

    # -------------------------------------------------------------------- slots into Completions
    def retire(self, gone: list[int], ended: Tensor, newest: Tensor) -> Tensor:
        """Hand over the rows that are done, close the gaps. Returns the newest tokens of those that go on."""
        for row in gone:
            prompt, completion = self.owner[row]
            tokens, logps, full_logps = (record[row, :int(self.step[row])].tolist()
                                         for record in (self.tokens, self.logps, self.full_logps))
            finished = bool(ended[row])
            text = self.vlm.tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=True)
            self.results[prompt][completion] = Completion(tokens, text, logps, full_logps, finished)
        self.m -= len(gone)
        holes = [row for row in gone if row < self.m]
        movers = sorted(set(range(self.m, self.m + len(gone))) - set(gone))     # as many as there are holes
        for hole, mover in zip(holes, movers):
            self.owner[hole] = self.owner[mover]
        if holes:
            holes, movers = torch.tensor([holes, movers], device=newest.device)
            for state in (*self.keys, *self.values, self.length, self.position, self.step, self.stream,
                          self.tokens, self.logps, self.full_logps, newest):
                state[holes] = state[movers]
        return newest[:self.m]

    # -------------------------------------------------------------------- one token further
    def decode(self, tokens: Tensor) -> Tensor:
        """tokens [m] -> their hidden states [m, D], after writing their keys and values into the cache."""
        m, length = self.m, self.length[:self.m]
        if int(length.max()) == self.columns:
            self.resize(self.columns + GROWTH)
        rows = torch.arange(m, device=tokens.device)
        cos, sin = self.cos[self.position[:m], None], self.sin[self.position[:m], None]     # [m, 1, H]
        # We attend to every column and mask what a row has not reached. Slicing the cache to the longest row
        # would leave it in pieces in memory, and that costs more than the few columns of slack.
        beyond = torch.arange(self.columns, device=tokens.device) > length[:, None]         # [m, C]
        mask = torch.zeros(beyond.shape, device=tokens.device).masked_fill_(beyond, -torch.inf)[:, None, None]
        x = self.text.embed_tokens(tokens)                                                  # [m, D]
        for keys, values, layer in zip(self.keys, self.values, self.text.layers):
            attention = layer.self_attn
            h = layer.input_layernorm(x)
            q, k, v = (projection(h).view(m, -1, self.head_dim)
                       for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
            if self.vlm.family == "qwen3_vl":
                q, k = attention.q_norm(q), attention.k_norm(k)
            keys[rows, :, length], values[rows, :, length] = rotate(k, cos, sin), v         # [m, K, H]
            # The G query heads of one key/value head take the place of G queries: no key is copied G times.
            q = (rotate(q, cos, sin) * attention.scaling).view(m, self.kv_heads, -1, self.head_dim)
            weights = (q @ keys[:m].transpose(-1, -2) + mask).softmax(-1)               # [m, K, G, C] float32
            x = x + attention.o_proj((weights.to(x.dtype) @ values[:m]).reshape(m, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        length += 1
        self.position[:m] += 1
        return self.text.norm(x)

    def resize(self, columns: int):
        """Give the cache at least this many columns. It grows in blocks, so to stay close to its rows."""
        if columns > self.columns:
            for caches in (self.keys, self.values):
                for layer, cache in enumerate(caches):      # one at a time, to need little memory
                    caches[layer] = F.pad(cache, (0, 0, 0, columns - self.columns))
            self.columns = columns


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: dimensions i and i + H/2 turn as a pair. x [m, heads, H]; cos, sin [m, 1, H]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


# ------------------------------------------------------------------------------------ by hand

def main(arguments=None):
    parser = argparse.ArgumentParser(description="Sample replies of a vision-language model.")
    parser.add_argument("--model", default="tiny", help="tiny, a name like Qwen2-VL-2B, a folder, a hub id")
    parser.add_argument("--prompt", required=True, help="the user's turn")
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE", help="pictures, before the text")
    parser.add_argument("-n", type=int, default=1, help="number of replies (default 1)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest reply (default 512)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 is off (default)")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off (default)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        images = [Image.open(name) for name in args.image]
        vlm = VLM.load(args.model)
        replies = generate(vlm, [vlm.encode(args.prompt, images)], args.n, args.max_new_tokens,
                           args.temperature, args.top_p, args.top_k, args.seed)[0]
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"generate.py: {error}")
    for number, reply in enumerate(replies, 1):
        if len(replies) > 1:
            print(f"--- {number} ---")
        print(reply.text if reply.finished else reply.text + " [cut off]")


if __name__ == "__main__":
    main()
