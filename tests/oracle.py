"""The training step's parts as outside checks call them, and slow, obvious twins of them."""

import torch

import grpo


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
):
    """grpo.policy_loss on padded tensors, or on flat ones -> (loss, statistics), token means.

    Log-probs and mask (true at reply tokens) [B, T] or [n]; advantages the same, or [B].
    ref_logp None: no KL term.
    """
    mask = mask.bool()
    if advantages.dim() < logp.dim():
        advantages = advantages[:, None].expand_as(logp)
    if ref_logp is None:
        ref_logp = logp.detach()
    # Only real tokens: what stands in the padding, nan even, must not reach a sum.
    logp, old_logp, ref_logp = logp[mask], old_logp[mask], ref_logp[mask]
    settings = clip_low, clip_high, clip_dual, kl_coef
    loss, sums = grpo.policy_loss(logp, old_logp, ref_logp, advantages[mask], *settings)
    tokens = max(len(logp), 1)
    return loss / tokens, {name: value.item() / tokens for name, value in sums.items()}


def token_logps(vlm, bundles, temperature=1.0, weights=None):
    """Of all replies in order -> logp [n], entropy [n], and made as in a training step, a number
    whose backward pass is that of sum(weights * logp)."""
    logp, entropy = grpo.reply_logps(vlm, bundles, temperature)
    return logp.detach(), entropy, None if weights is None else (logp * weights).sum()


def slow_logps(vlm, rollout, temperature=1.0):
    """Log-probs and entropies of one reply: a sequence by itself, full logits, transformers' own
    attention and lm_head."""
    tokens = rollout.prompt.tokens + rollout.tokens
    follow = rollout.prompt.next_position + torch.arange(len(rollout.tokens))
    positions = torch.cat([rollout.prompt.positions, follow.expand(3, -1)], dim=1)
    batch = vlm.picture_inputs([rollout.prompt])
    batch |= {"input_ids": torch.tensor([tokens]), "position_ids": positions[:, None]}
    batch["attention_mask"] = torch.ones(1, len(tokens), dtype=torch.long)
    logits = vlm.model(**batch, use_cache=False).logits[0, len(rollout.prompt.tokens) - 1 : -1]
    logp = (logits / temperature).log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, torch.tensor(rollout.tokens)[:, None])[:, 0], entropy


@torch.no_grad()
def score(vlm, rollouts, temperature=1.0, token_budget=8192):
    """Log-probs of each rollout's tokens, in the order given, computed as in the training step."""
    found = {}
    for bundles in grpo.micro_batches(rollouts, token_budget):
        replies = [rollout for bundle in bundles for rollout in bundle]
        logps = grpo.reply_logps(vlm, bundles, temperature)[0]
        found |= zip(replies, logps.split([len(rollout.tokens) for rollout in replies]))
    return [found[rollout] for rollout in rollouts]


def train_step(policy, reference, rollouts, optimizer, **changes):
    """grpo.train_step with usual settings: one update, everything in one pass."""
    settings = dict(groups_per_update=10**9, temperature=1.0, token_budget=8192, max_grad_norm=1.0)
    return grpo.train_step(policy, reference, rollouts, optimizer, **settings | changes)
