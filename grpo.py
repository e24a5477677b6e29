"""Group-relative policy optimisation (GRPO): advantages, the loss, log-probs, one training step.

Implements the optimisation of MM-Zero (arXiv 2603.09206) as its authors configure it: group-normalised
advantages, a clipped and dual-clipped surrogate, a k3 KL term to the weights the phase began with, token mean
over the whole mini-batch. Read it top to bottom: advantages -> loss -> log-probs -> micro-batches -> step.

Shapes: P prompts, G rollouts per prompt, N rollouts of up to T tokens, L tokens of a micro-batch (packed: nothing
is padded), n reply tokens of it, t of them in a chunk, D hidden size, V vocabulary.

Deliberate choices, where an implementer could do otherwise:
- Old log-probs are the trainer's own, not the sampler's. At a step's first update they equal `logp` and are
  not computed again. Their distance to the sampler's is logged (`logp_gap`): it should be rounding noise.
- A group whose rewards are all equal has advantage 0, but its tokens stay in the token mean and the KL term.
  A mini-batch in which *every* advantage is 0 is skipped and counted (`no_signal`): its gradient would be
  that of the KL term alone, which AdamW would blow up to a step of full size.
- Groups that do not fill the last mini-batch are spread evenly (100 at 64 per update: 50 + 50, not 64 + 36),
  because AdamW gives the update of a small leftover the same size as any other.
- Replies of one prompt follow it in one packed sequence: prompt and picture go through the network once, not G times.
- With torchrun the micro-batches of an update are dealt out to the ranks (parallel.py); their gradients are added
  up, and the denominator is that of all of them, so several ranks make the step that one would make.
"""

import math
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from support.parallel import deal, gather, rank, sum_gradients, whole, within, world
from vlm import Prompt

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None


# ---- advantages -------------------------------------------------------------------------------------------


def group_advantages(rewards, eps=1e-6):
    """A = (r - mean) / (std + eps) over the G rollouts of a prompt, Bessel-corrected std: [P, G] -> [P, G]

    >>> (group_advantages([[1, 0, 1, 0], [0.9, 0.9, 0.9, 0.9]]) * 1000).int().tolist()   # std sqrt(1/3)
    [[866, -866, 866, -866], [0, 0, 0, 0]]
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards of shape {tuple(rewards.shape)}; right is [prompts, two or more rollouts]"
        )
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + eps)
    if not (finite := rewards.isfinite().all(1, keepdim=True)).all() and rank() == 0:
        print(
            f"grpo: {int((~finite).sum())} groups have a reward that is no finite number: they teach nothing",
            file=sys.stderr,
        )
    # Equal rewards must give exactly 0, and rounding gets in the way: 0.1 + 0.2 is not 0.3, and the mean of
    # seven times 0.9 is not 0.9.
    equal = rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True) < 1e-9
    return advantages.masked_fill(equal | ~finite, 0.0).float()


# ---- the loss ---------------------------------------------------------------------------------------------


def policy_loss(
    logp,
    old_logp,
    ref_logp,
    advantages,
    mask,
    clip_low=0.2,
    clip_high=0.3,
    clip_dual=3.0,
    kl_coef=0.01,
    denominator=None,
):
    """The objective on one micro-batch -> (loss, stats). A pure function.

    logp, old_logp, ref_logp: [N, T] under the policy / the policy before the step / the reference (None: no
    KL term); mask: [N, T], true at reply tokens; advantages: [N] or [N, T]. Or all of them [n]. `denominator`: the token count of
    the whole mini-batch, by default that of these tensors. Loss and stats are sums divided by it, so that
    adding them up over micro-batches gives the token means of the mini-batch.

    >>> half = torch.tensor([[math.log(0.5)]])
    >>> loss, stats = policy_loss(half + 0.5, half, half + 0.5, torch.tensor([2.0]), torch.tensor([[True]]))
    >>> round(loss.item(), 4), stats["clip_high"]        # ratio exp(0.5) = 1.65 is held at 1.3; -2 * 1.3
    (-2.6, 1.0)
    """
    mask = mask.bool()
    denominator = denominator or max(int(mask.sum()), 1)
    if advantages.dim() < logp.dim():
        advantages = advantages[:, None].expand_as(logp)
    # From here on [n]: only real tokens, so nothing that stands in the padding can leak into a sum.
    logp, old_logp, advantages = logp[mask], old_logp[mask], advantages[mask]

    log_ratio = (logp - old_logp).clamp(-20, 20)  # before exp: no overflow
    ratio = log_ratio.exp()  # rho = pi / pi_old
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)  # min(rho A, clip(rho) A)
    # For A < 0 this falls without bound as rho grows: one token could own the gradient. Dual clip: max(., cA)
    surrogate = torch.where(
        advantages < 0, torch.maximum(surrogate, clip_dual * advantages), surrogate
    )

    if ref_logp is None:
        kl = torch.zeros_like(logp)
    else:
        difference = (ref_logp[mask] - logp).clamp(-20, 20)
        kl = (difference.exp() - difference - 1).clamp(max=10)  # k3 >= 0, estimates KL(pi || ref)
    loss = (kl_coef * kl - surrogate).sum() / denominator

    with torch.no_grad():
        names = ("kl", "approx_kl", "clip_high", "clip_low", "clip_dual")
        values = (
            torch.stack(
                [
                    kl.sum(),
                    (ratio - 1 - log_ratio).sum(),  # k3 of KL(pi_old || pi)
                    ((advantages > 0) & (ratio > 1 + clip_high)).sum(),
                    ((advantages < 0) & (ratio < 1 - clip_low)).sum(),
                    ((advantages < 0) & (ratio > clip_dual)).sum(),
                ]
            )
            / denominator
        )
    return loss, {"loss": loss.item(), **dict(zip(names, values.tolist()))}


# ---- log-probs --------------------------------------------------------------------------------------------


class ChunkedLoss(torch.autograd.Function):
    """objective(logp), logp = log softmax(h W^T / tau)[target], tau the temperature; and logits [n, V] never exist.

    A chunk of tokens at a time. The gradient by a token's logits asks nothing of other tokens, so it is taken in the
    forward pass, while they are at hand; computed again in the backward pass, they would cost a fourth product:
        z = h W^T / tau,    lse = log sum exp z,    logp = z[target] - lse,    g = d objective / d logp,
        dz = g (onehot(target) - exp(z - lse)),     dh = dz W / tau,           dW += dz^T h / tau.
    Words go by in blocks b with a maximum top_b of their own: lse = log sum_b exp lse_b, and
    entropy = lse - sum_b exp(lse_b - lse) E_b[z]. Of logp and entropy, which come along, there is no gradient.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, objective, chunk):  # [n, D], [V, D], [n]
        device, trains, vocabulary = hidden.device.type, objective is not None, len(weight)
        # Under autocast the products run in bf16; sums of them are kept in float32.
        w = weight.to(
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        )
        logp, entropy = torch.empty(2, len(hidden), device=hidden.device)
        loss = torch.zeros((), device=hidden.device)
        if trains:
            kept = torch.empty(
                min(chunk, len(hidden)), vocabulary, device=hidden.device
            )  # exp(z - top), all of a chunk
            d_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        trains_head = trains and ctx.needs_input_grad[1]  # a frozen one (LoRA) has no gradient
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if trains_head else None
        for at in (slice(i, i + chunk) for i in range(0, len(hidden), chunk)):
            h, target = hidden[at].to(w.dtype), targets[at]  # [t, D], [t]
            size = words_at_once(len(h))
            blocks, logit, tops, lses, means = range(0, vocabulary, size), 0.0, [], [], []
            for v in blocks:
                z = (h @ w[v : v + size].T).float().div_(temperature)  # [t, block]
                here, word = chosen(target, v, z.shape[1])
                logit = logit + z.gather(1, word)[:, 0] * here
                tops.append(z.amax(1))
                z.sub_(tops[-1][:, None])
                e = torch.exp(z, out=kept[: len(h), v : v + size] if trains else None)
                total = e.sum(1)
                lses.append(total.log() + tops[-1])
                means.append(z.mul_(e).sum(1) / total + tops[-1])  # E_b[z]
            lses = torch.stack(lses)  # [blocks, t]
            lse = lses.logsumexp(0)
            logp[at], entropy[at] = (
                logit - lse,
                lse - ((lses - lse).exp() * torch.stack(means)).sum(0),
            )
            if not trains:
                continue
            with torch.enable_grad():
                leaf = logp[at].clone().requires_grad_()
                value = objective(leaf, at)
                g = torch.autograd.grad(value, leaf)[0] / temperature
            loss += value.detach()
            for v, top in zip(blocks, tops):
                dz = kept[: len(h), v : v + size].mul_((-g * (top - lse).exp())[:, None])  # -g p
                here, word = chosen(target, v, dz.shape[1])
                dz = dz.scatter_add_(1, word, (g * here)[:, None]).to(w.dtype)  # + g onehot(target)
                d_hidden[at] += dz @ w[v : v + size]
                if trains_head:
                    part = d_weight[v : v + size]  # in place where the types agree
                    part.addmm_(dz.T, h) if dz.dtype == part.dtype else part.add_(dz.T @ h)
        if trains:
            ctx.gradients = (
                d_hidden.to(hidden.dtype),
                d_weight.to(weight.dtype) if trains_head else None,
            )
        ctx.mark_non_differentiable(logp, entropy, *() if trains else (loss,))
        return logp, entropy, loss

    @staticmethod
    def backward(ctx, _, __, grad):
        (d_hidden, d_weight), ctx.gradients = (
            ctx.gradients,
            None,
        )  # if nobody else holds them, they are not copied
        return (
            d_hidden.mul_(grad),
            d_weight if d_weight is None else d_weight.mul_(grad),
            None,
            None,
            None,
            None,
        )


def chosen(targets, first, words):
    """Is each target among the `words` from `first` on [t], and where there [t, 1] (anywhere, if not)? Without asking the GPU."""
    place = targets - first
    return (place >= 0) & (place < words), place.clamp(0, words - 1)[:, None]


def tokens_at_once(vocabulary):
    """The chunk of ChunkedLoss: 200 MB of float32 logits."""
    return max(1, 50_000_000 // vocabulary)


def words_at_once(tokens):
    """Its block: 16 MB of a chunk's logits, but at least 256 words."""
    return max(256, 2**22 // tokens)


@dataclass(eq=False)
class Rollout:
    """One sampled reply, as the trainer needs it."""

    prompt: Prompt  # one object for the whole group: that is how it is seen that they share it
    tokens: list[int]  # the reply, the sampled end token included
    full_logps: list[
        float
    ]  # the sampler's log softmax(logits / temperature) of them, for `logp_gap`
    advantage: float = 0.0
    finished: bool = True  # an end token was reached, not the length limit
    group: int = 0  # which prompt of the rollout batch it answers


def token_logps(vlm, rows, temperature=1.0, objective=None, chunk=None):
    """Log-probs of replies -> (logp, entropy, loss): [n] each over the tokens of all replies, in the order of `rows`; a number.

    rows: list of lists of rollouts, those of one list with the same prompt object. The network sees one sequence of L tokens,
        prompt | reply | reply | ... | prompt | reply | ...
    where a reply sees its prompt and itself, and its positions follow on from the prompt's. So the values are those of separate
    sequences, but nothing is padded, a prompt is computed once, and autograd adds up its gradients. There is no mask either:
    where a reply ends its recorded length says, and a pad token *inside* one was sampled and is trained like any other.

    objective(logp [t], at) -> a loss: asked for chunks of the tokens, those of logp[at]; the loss is its sum. The loss alone
    has a gradient. None: no loss.
    """
    device, replies = vlm.device, [r for row in rows for r in row]
    layout, sources = pack(
        rows, device, flash_attn_varlen_func is not None and device.type == "cuda"
    )
    batch = vlm.picture_inputs([row[0].prompt for row in rows])
    batch["input_ids"] = torch.tensor(
        [[t for row in rows for part in (row[0].prompt, *row) for t in part.tokens]], device=device
    )
    batch["position_ids"] = torch.cat(
        [
            positions
            for row in rows
            for positions in (
                row[0].prompt.positions,
                *(
                    (row[0].prompt.next_position + torch.arange(len(r.tokens))).expand(3, -1)
                    for r in row
                ),
            )
        ],
        1,
    )[:, None].to(device)
    batch |= {"attention_mask": None, "attention": {"layout": layout}}
    vlm.model.model.language_model.config._attn_implementation = (
        "packed"  # for good: a layer may be computed again in backward
    )
    targets = torch.tensor([token for r in replies for token in r.tokens], device=device)

    def work():
        # No cache: it would hold a bf16 copy of every weight until the end of the pass, and none is used twice.
        with torch.autocast(
            device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False
        ):
            hidden = vlm.hidden(batch)[0].index_select(0, sources)  # [n, D]
            return ChunkedLoss.apply(
                hidden,
                vlm.lm_head,
                targets,
                temperature,
                objective,
                chunk or tokens_at_once(len(vlm.lm_head)),
            )

    return within(vlm.model, work)


# ---- micro-batches, and the attention inside one ------------------------------------------------------------


def row_length(row):
    return len(row[0].prompt.tokens) + sum(len(r.tokens) for r in row)


def micro_batches(rollouts, token_budget):
    """Rollouts -> micro-batches: lists of rows, which are lists of rollouts of one prompt.

    Its tokens, a row's prompt counted once, stay within `token_budget`; a rollout longer than that stands alone. Rows are sorted by
    length. One whose replies do not fit goes on, prompt and all, in the next micro-batch.
    """
    groups, batches, used = {}, [], math.inf
    for r in rollouts:
        groups.setdefault(id(r.prompt), []).append(r)
    for group in sorted(groups.values(), key=row_length):
        row = []
        for r in group:
            used += len(r.tokens) + (0 if row else len(r.prompt.tokens))
            if used > token_budget:
                batches.append([])
                row, used = [], len(r.prompt.tokens) + len(r.tokens)
            if not row:
                batches[-1].append(row)
            row.append(r)
    return batches


def pack(rows, device, flash=False):
    """Where things are in the packed sequence -> (layout for `packed_attention`, sources [n]).

    A segment is a prompt or a reply: its tokens are the queries; its keys are the same tokens, of a reply those of its prompt before
    them. sources: the token at t is predicted by the state at t - 1: for a reply's first one that is its prompt's last.
    """
    segments, sources, start = [], [], 0
    for row in rows:
        prompt = torch.arange(start, start := start + len(row[0].prompt.tokens))
        segments.append((prompt, prompt))
        for r in row:
            own = torch.arange(start, start := start + len(r.tokens))
            segments.append((own, torch.cat([prompt, own])))
            sources += [prompt[-1:], own[:-1]]
    sources = torch.cat(sources).to(device)
    if flash:
        lengths = [[len(segment[i]) for segment in segments] for i in (0, 1)]
        ends = [
            F.pad(torch.tensor(each).cumsum(0, dtype=torch.int32), (1, 0)).to(device)
            for each in lengths
        ]
        return (
            torch.cat([keys for _, keys in segments]).to(device),
            *ends,
            *map(max, lengths),
        ), sources
    blocks, places, done = [], torch.empty(start, dtype=torch.long), 0
    for replies in (
        False,
        True,
    ):  # two padded blocks [B segments, T queries, S keys]: prompts are much longer
        block = [(q, k) for q, k in segments if (q is not k) == replies]
        queries, keys = (pad_sequence(each, batch_first=True) for each in zip(*block))
        before, own = torch.tensor([(len(k) - len(q), len(q)) for q, k in block]).T[
            ..., None
        ]  # [B, 1] each
        i, j = torch.arange(queries.shape[1]), torch.arange(keys.shape[1])
        mask = j <= (before + i)[..., None]  # [B, T, S]: the prompt, and up to itself
        places[torch.cat([q for q, _ in block])] = (
            done + torch.arange(queries.numel()).view_as(queries)[i < own]
        )
        blocks.append((queries.to(device), keys.to(device), mask[:, None].to(device)))
        done += queries.numel()
    return (blocks, places.to(device)), sources


def packed_attention(
    module, query, key, value, attention_mask, scaling=None, layout=None, **kwargs
):
    """Attention of transformers' layers: query [B, heads, L, H], key and value [B, key/value heads, L, H] -> [B, L, heads, H].

    With a layout (B = 1): each prompt sees itself, each reply its prompt and itself, causally. Otherwise PyTorch's own.
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # [L, heads, H]
    if (
        len(layout) == 5
    ):  # flash-attn: causal from the end, so a reply's first query sees its prompt
        keys, *ends_and_longest = layout
        k, v = (x.index_select(0, keys) for x in (k, v))
        return flash_attn_varlen_func(
            q, k, v, *ends_and_longest, softmax_scale=scaling, causal=True
        )[None], None
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))

    def block(x, index):  # index_select: its backward is much faster than that of x[index]
        return (
            x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
        )  # [B, heads, T or S, H]

    blocks, places = layout
    found = [
        F.scaled_dot_product_attention(
            block(q, queries), block(k, keys), block(v, keys), mask, scale=scaling
        )
        for queries, keys, mask in blocks
    ]
    return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in found]).index_select(0, places)[
        None
    ], None


AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", sdpa_mask)


@torch.no_grad()
def score(vlm, rollouts, temperature=1.0, token_budget=8192):
    """Log-probs of each rollout's tokens under `vlm`: a list of [T_i], in the order given. The ranks share the work."""
    number, found = {r: i for i, r in enumerate(rollouts)}, {}
    batches = micro_batches(rollouts, token_budget)
    for rows, _ in deal(batches) if batches else ():
        replies = [r for row in rows for r in row]
        logps = token_logps(vlm, rows, temperature)[0].cpu().split([len(r.tokens) for r in replies])
        found.update((number[r], logp) for r, logp in zip(replies, logps))
    found = {i: logp.to(vlm.device) for i, logp in gather(found.items())}
    return [found[i] for i in range(len(rollouts))]


# ---- the step ---------------------------------------------------------------------------------------------


def make_optimizer(policy, lr=1e-6, betas=(0.9, 0.999), weight_decay=0.01):
    """AdamW on float32 master weights: 1e-6 is below the spacing of most bf16 weights: it would be lost."""
    parameters = list(policy.weights().values())
    kinds = {str(p.dtype) for p in parameters}
    if kinds != {"torch.float32"}:
        raise ValueError(
            f"policy is {', '.join(sorted(kinds))}; to train it, load it with dtype='float32'"
        )
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def mini_batches(rollouts, groups_per_update):
    """Whole groups, in order, spread evenly over the least number of updates. None: one update.

    >>> pairs = [Rollout(None, [2], [0.0], group=g) for g in range(5) for _ in range(2)]
    >>> [[r.group for r in mini] for mini in mini_batches(pairs, 4)]
    [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4]]
    """
    groups = {}
    for r in rollouts:
        groups.setdefault(r.group, []).append(r)
    groups = list(groups.values())
    updates = math.ceil(len(groups) / (groups_per_update or len(groups)))
    return [
        [r for g in part for r in groups[g]]
        for part in torch.arange(len(groups)).tensor_split(updates)
    ]


def train_step(
    policy,
    reference,
    rollouts,
    optimizer,
    *,
    groups_per_update=None,
    temperature=1.0,
    clip_low=0.2,
    clip_high=0.3,
    clip_dual=3.0,
    kl_coef=0.01,
    max_grad_norm=1.0,
    token_budget=8192,
    loss_settings=None,
):
    """One GRPO step: a batch of rollouts, cut into mini-batches of whole groups, one optimiser update each.

    policy, reference: VLMs; reference may be None if kl_coef is 0. temperature: that of the sampling.
    Returns statistics of the whole step, as numbers:
    - means over the tokens of the updates made (nan if none was): loss, kl (to the reference), approx_kl (to
      the policy before the step), entropy, logp_gap_mean, and clip_high, clip_low, clip_dual, the shares of
      tokens whose ratio is cut; logp_gap: the largest |sampler - trainer|; grad_norm: before clipping;
    - zero_variance: share of groups; truncated: share of rollouts;
    - tokens (trained on), updates, skipped (gradient not finite), no_signal (mini-batches without advantage).
    """
    if not rollouts:
        raise ValueError("no rollouts to train on")
    if any(len(r.tokens) != len(r.full_logps) or not r.tokens for r in rollouts):
        raise ValueError("a rollout has no tokens, or not one sampler log-prob per token")
    if kl_coef and reference is None:
        raise ValueError("kl_coef is not 0, so a reference model is needed")
    if world() > 1 and len({bool(r.prompt.pictures) for r in rollouts}) > 1:
        raise ValueError(
            "on several ranks all prompts of a step have pictures or none has: the ranks share the vision tower"
        )
    everything = mini_batches(rollouts, groups_per_update)
    minis = [m for m in everything if any(r.advantage for r in m)]
    # Old log-probs are those before the first update, for which they are `logp` itself: not computed twice.
    later = [r for m in minis[1:] for r in m]
    old = dict(zip(later, score(policy, later, temperature, token_budget)))

    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    sums, tokens, updates, skipped, grad_norms, gap = {}, 0, 0, 0, [], 0.0
    for number, mini in enumerate(minis):
        denominator, mine = (
            sum(len(r.tokens) for r in mini),
            {},
        )  # tokens of the update, computed once
        optimizer.zero_grad(set_to_none=True)
        for rows, weight in deal(micro_batches(mini, token_budget)):
            replies = [r for row in rows for r in row]
            with torch.no_grad():
                ref_logp = token_logps(reference, rows, temperature)[0] if kl_coef else None  # [n]
            old_logp = torch.cat([old[r] for r in replies]) if number else None
            advantages = torch.tensor(
                [r.advantage for r in replies for _ in r.tokens], device=policy.device
            )

            def objective(logp, at):  # [t], a part of the [n]
                before = logp.detach() if old_logp is None else old_logp[at]
                loss, stats = policy_loss(
                    logp,
                    before,
                    ref_logp if ref_logp is None else ref_logp[at],
                    advantages[at],
                    torch.ones_like(logp),
                    clip_low,
                    clip_high,
                    clip_dual,
                    kl_coef,
                    denominator,
                )
                mine.update(
                    (name, mine.get(name, 0.0) + value * weight) for name, value in stats.items()
                )
                return loss * weight

            logp, entropy, loss = token_logps(policy, rows, temperature, objective)
            loss.backward()
            sampled = torch.tensor(
                [x for r in replies for x in r.full_logps], device=logp.device
            )  # [n]
            gaps = (sampled - (logp if old_logp is None else old_logp)).abs()
            gap = max(gap, gaps.max().item())
            for name, values in (("entropy", entropy), ("logp_gap_mean", gaps)):
                mine[name] = mine.get(name, 0.0) + values.sum().item() / denominator * weight
        sum_gradients(parameters)
        shares = gather([mine])  # of all ranks
        mine, gap = {name: sum(one[name] for one in shares) for name in mine}, max(gather([gap]))
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)).item()
        if not math.isfinite(norm):  # one such update would turn every weight into nan
            if rank() == 0:
                print(f"grpo: update skipped, its gradient norm is {norm}", file=sys.stderr)
            skipped += 1
            continue
        optimizer.step()
        updates += 1
        tokens += denominator
        grad_norms.append(norm)
        sums = {name: sums.get(name, 0.0) + value * denominator for name, value in mine.items()}
    optimizer.zero_grad(set_to_none=True)  # no gradients in memory while sampling

    names = (
        "loss",
        "kl",
        "approx_kl",
        "entropy",
        "clip_high",
        "clip_low",
        "clip_dual",
        "logp_gap_mean",
    )
    groups = {r.group: False for r in rollouts} | {r.group: True for r in rollouts if r.advantage}
    return {
        **{name: sums[name] / tokens if updates else math.nan for name in names},
        "logp_gap": gap if minis else math.nan,
        "grad_norm": sum(grad_norms) / updates if updates else math.nan,
        "zero_variance": 1 - sum(groups.values()) / len(groups),
        "truncated": sum(not r.finished for r in rollouts) / len(rollouts),
        "tokens": tokens,
        "updates": updates,
        "skipped": skipped,
        "no_signal": len(everything) - len(minis),
    }
