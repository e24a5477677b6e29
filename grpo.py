"""Group-relative policy optimisation (GRPO): from rewards to one step of the optimiser.

What MM-Zero (arXiv 2603.09206) trains its roles with. P prompts have G replies each; a micro-batch
has n reply tokens in a packed sequence of L. All other letters and words: mmzero.py.

Choices that could have been made otherwise:
- Old log-probs are the trainer's own, not the sampler's. Their distance to the sampler's is logged
  (`logp_gap` the largest, `logp_gap_mean`): it should be rounding noise.
- A group of equal rewards has advantage exactly 0, but stays in the token mean and the KL term.
- A mini-batch without any advantage is skipped and counted (`no_signal`).
- A reward that is no finite number silences its group, a gradient norm that is none its update.
- Under torchrun, ranks share an update's micro-batches and make the step that one would make.
"""

import math
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch

from support import packed, parallel
from support.packed import Logps, pack
from support.parallel import micro_batches, mini_batches
from vlm import Prompt


def flat(lists):
    """[[a, b], [c]] -> [a, b, c]"""
    return [item for each in lists for item in each]


# ---- advantages and loss -------------------------------------------------------------------------


def group_advantages(rewards, eps=1e-6):
    """A = (r - mean) / (std + eps) within each group, Bessel-corrected std: [P, G] -> [P, G]

    >>> (group_advantages([[1, 0, 1, 0], [0.9, 0.9, 0.9, 0.9]]) * 1000).int().tolist()
    [[866, -866, 866, -866], [0, 0, 0, 0]]
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards {[*rewards.shape]}; right is [prompts, two or more rollouts]")
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    advantages = (rewards - mean) / (std + eps)

    finite = rewards.isfinite().all(1, keepdim=True)
    if not finite.all() and parallel.rank() == 0:
        text = "groups have a reward that is no finite number: they teach nothing"
        print(f"grpo: {int((~finite).sum())} {text}", file=sys.stderr)

    # Equal rewards must give exactly 0, and rounding gets in the way: the mean of seven times 0.9
    # is not 0.9. Without this line noise would be trained on.
    equal = rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True) < 1e-9
    return advantages.masked_fill(equal | ~finite, 0.0).float()


def policy_loss(
    logp, old_logp, ref_logp, advantages, clip_low=0.2, clip_high=0.3, clip_dual=3.0, kl_coef=0.01
):
    """The objective on some reply tokens, all tensors [n] -> (loss, statistics): sums over them.

    clip_low, clip_high: the ratio pi / pi_old may fall to 1 - the one and rise to 1 + the other.
    clip_dual: for A < 0 the surrogate is bounded by this times A. kl_coef: weight of the KL.

    >>> half, A = torch.tensor([math.log(0.5)]), torch.tensor([2.0])
    >>> loss, statistics = policy_loss(half + 0.5, half, half + 0.5, A)
    >>> round(loss.item(), 4), statistics["clip_high"].item()  # exp(0.5) = 1.65 is held at 1.3
    (-2.6, 1)
    """
    # The ratio rho = pi / pi_old. Clamped before exp, so that nothing overflows.
    log_ratio = (logp - old_logp).clamp(-20, 20)
    ratio = log_ratio.exp()

    # The surrogate min(rho A, clip(rho) A): no more is to be gained once rho has left the range.
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)

    # For A < 0 it falls without bound as rho grows, and one token could own the gradient.
    # The dual clip: max(min(rho A, clip(rho) A), c A).
    bounded = torch.maximum(surrogate, clip_dual * advantages)
    surrogate = torch.where(advantages < 0, bounded, surrogate)

    # k3 = pi_ref / pi - log(pi_ref / pi) - 1 is never negative, and estimates KL(pi || pi_ref).
    difference = (ref_logp - logp).clamp(-20, 20)
    kl = (difference.exp() - difference - 1).clamp(max=10)

    loss = (kl_coef * kl - surrogate).sum()
    rises, falls = advantages > 0, advantages < 0
    # They stay where they are: to look at each of them would make a GPU wait.
    return loss, {
        "loss": loss.detach(),
        "kl": kl.detach().sum(),
        # k3 again, of KL(pi_old || pi).
        "approx_kl": (ratio - 1 - log_ratio).detach().sum(),
        "clip_high": (rises & (ratio > 1 + clip_high)).sum(),
        "clip_low": (falls & (ratio < 1 - clip_low)).sum(),
        "clip_dual": (falls & (ratio > clip_dual)).sum(),
    }


# ---- log-probs of rollouts in one sequence -------------------------------------------------------


@dataclass(eq=False)
class Rollout:
    """One sampled reply, as the trainer needs it."""

    prompt: Prompt  # the very same object for the whole group: so it is seen that they share it
    tokens: list[int]  # the reply, the sampled end token included
    sampler_logps: list[float]  # the sampler's log softmax(logits / temperature), for `logp_gap`
    advantage: float = 0.0
    finished: bool = True  # an end token was reached, not the length limit
    group: int = 0  # which prompt of the rollout batch it answers


def reply_states(vlm, bundles):
    """-> states [n, D] that predict the tokens of all replies in order, and these tokens [n]"""
    tokens, positions, sources, lengths = pack(bundles)
    batch = vlm.picture_inputs([bundle[0].prompt for bundle in bundles])
    batch["input_ids"] = vlm.send(tokens[None])
    batch["position_ids"] = vlm.send(positions[:, None])
    # A token sees its prompt and its own reply, up to itself. Inside `packed.attention`.
    dtype = parallel.working_dtype(vlm.lm_head)
    batch["attention"] = {"layout": packed.lay_out(lengths, vlm.device, dtype)}
    hidden = vlm.hidden(batch)[0].index_select(0, vlm.send(sources))
    targets = [token for bundle in bundles for rollout in bundle for token in rollout.tokens]
    return hidden, vlm.send(torch.tensor(targets))


def reply_logps(vlm, bundles, temperature=1.0):
    """Log-probs and entropies of all replies in order, [n] each; the latter without a gradient."""

    def forward():
        hidden, targets = reply_states(vlm, bundles)
        return Logps.apply(hidden, targets, vlm.lm_head, temperature)

    with packed.attention(vlm):
        return parallel.within(vlm.model, forward)


# ---- the step ------------------------------------------------------------------------------------


def make_optimizer(policy, lr=1e-6, weight_decay=0.01):
    """AdamW on float32 weights: a step of 1e-6 is below the spacing of most bf16 numbers."""
    parameters = list(policy.weights().values())
    if any(weight.dtype != torch.float32 for weight in parameters):
        raise ValueError("to train the policy, load it with dtype='float32'")
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def policy_pass(policy, reference, bundles, old_logps, temperature, kl_coef=0.01, **clips):
    """Forward passes over a micro-batch -> (loss, statistics: sums, largest gap to the sampler)"""
    replies = flat(bundles)
    advantages = policy.send(torch.tensor([r.advantage for r in replies for _ in r.tokens]))
    sampled = policy.send(torch.tensor([x for r in replies for x in r.sampler_logps]))  # [n]

    logp, entropy = reply_logps(policy, bundles, temperature)  # [n]
    # In the first update pi_old is the policy itself. Without a KL term so may be pi_ref.
    old_logp = ref_logp = logp.detach()
    if replies[0] in old_logps:
        old_logp = torch.cat([old_logps[rollout] for rollout in replies])
    if kl_coef and reference is None:
        raise ValueError("the weight of the KL is not 0, so a reference model is needed")
    if kl_coef:
        with torch.no_grad():
            ref_logp, _ = reply_logps(reference, bundles, temperature)

    loss, sums = policy_loss(logp, old_logp, ref_logp, advantages, kl_coef=kl_coef, **clips)
    gaps = (sampled - old_logp).abs()
    return loss, sums | {"entropy": entropy.sum(), "logp_gap_mean": gaps.sum()}, gaps.max()


@torch.no_grad()
def logps_before(policy, minis, temperature, token_budget):
    """-> log-probs of each rollout's tokens, {rollout: [T]}"""
    found = {}
    for mini in minis:
        for bundles, _ in parallel.deal(micro_batches(mini, token_budget)):
            replies = flat(bundles)
            logps = reply_logps(policy, bundles, temperature)[0]
            found.update(zip(replies, logps.split([len(r.tokens) for r in replies])))
    return found


def gradient(policy, reference, mini, old_logps, temperature, settings, token_budget):
    """The gradient of one update, left in the weights -> (sums of statistics, largest gap to the
    sampler in each pass)"""
    sums, gaps, count = Counter(), [], sum(len(rollout.tokens) for rollout in mini)
    for parameter in policy.weights().values():
        parameter.grad = None
    for bundles, weight in parallel.deal(micro_batches(mini, token_budget)):
        # Around the backward pass too: checkpointed layers are computed again in it.
        with packed.attention(policy):
            loss, parts, gap = policy_pass(
                policy, reference, bundles, old_logps, temperature, **settings
            )
            # The mean over all tokens of the update, whichever pass and rank they are in.
            (loss * weight / count).backward()
        gaps.append(gap)
        if weight:
            sums.update(parts)
    return sums, gaps


def train_step(
    policy,
    reference,
    rollouts,
    optimizer,
    groups_per_update,
    temperature,
    token_budget,
    max_grad_norm,
    **settings,
):
    """One GRPO step: mini-batches of whole groups, one update each -> statistics, see `summary`.
    settings: those of `policy_loss`."""
    # Without any advantage only the KL term has a gradient, which AdamW would blow up to full size.
    updates = mini_batches(rollouts, groups_per_update)
    minis = [mini for mini in updates if any(rollout.advantage for rollout in mini)]
    limits = dict(policy=policy, token_budget=token_budget, rollouts=rollouts)

    # Log-probs before the step. Those of the first update come along with its forward pass.
    before = partial(logps_before, policy, minis[1:], temperature)
    old_logps = parallel.within_memory(before, **limits)
    totals, tokens, norms, gaps = Counter(), 0, [], []
    for mini in minis:
        passes = partial(gradient, policy, reference, mini, old_logps, temperature, settings)
        sums, own = parallel.within_memory(passes, **limits)
        gaps += own
        norms.append(parallel.clip_gradients(policy.weights().values(), max_grad_norm))
        # A step along a gradient that is not finite would turn every weight into nan.
        if math.isfinite(norms[-1]):
            optimizer.step()
            totals.update(sums)
            tokens += sum(len(rollout.tokens) for rollout in mini)
    # No gradients in memory while sampling.
    optimizer.zero_grad(set_to_none=True)
    return summary(rollouts, totals, norms, gaps, tokens) | {"no_signal": len(updates) - len(minis)}


def summary(rollouts, totals, norms, gaps, tokens):
    """Statistics of a step. First, means over the tokens of its updates: kl is to the reference,
    approx_kl to the policy before the step, clip_* are shares of tokens whose ratio is cut.
    logp_gap: largest |sampler - trainer|. zero_variance: share of groups. nan: no update made."""
    made = [norm for norm in norms if math.isfinite(norm)]
    if len(made) < len(norms) and parallel.rank() == 0:
        print(f"grpo: update skipped, gradient norms were {norms}", file=sys.stderr)
    # All figures that are still on the device, in one look.
    figures = [figure.double() for figure in (*totals.values(), *gaps)]
    figures = torch.stack(figures).tolist() if figures else []
    sums = Counter()
    for of_rank in parallel.gather([dict(zip(totals, figures))]):
        sums.update(of_rank)
    names = "loss kl approx_kl entropy clip_high clip_low clip_dual logp_gap_mean".split()
    groups, heard = {r.group for r in rollouts}, {r.group for r in rollouts if r.advantage}
    return {
        **{name: sums[name] / tokens if made else math.nan for name in names},
        "logp_gap": max(parallel.gather(figures[len(totals) :]), default=math.nan),
        "grad_norm": sum(made) / len(made) if made else math.nan,
        "zero_variance": 1 - len(heard) / len(groups),
        "truncated": sum(not r.finished for r in rollouts) / len(rollouts),
        "tokens": tokens,
        "updates": len(made),
        "skipped": len(norms) - len(made),
    }
