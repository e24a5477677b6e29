"""The training step against slow, obvious twins: a loop over tokens, full logits, one sequence at
a time."""

import copy
import itertools
import math
import random

import pytest
import torch
from helpers_models import for_the_library, make_checkpoint, padded
from oracle import policy_loss, score, slow_logps, token_logps, train_step
from PIL import Image

import grpo
from grpo import (
    Rollout,
    group_advantages,
    make_optimizer,
    micro_batches,
    mini_batches,
)
from support import packed
from support.parallel import bundle_length
from vlm import VLM

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Random checkpoints, one of each family."""
    folder = tmp_path_factory.mktemp("models")
    return {f: VLM.load(make_checkpoint(folder / f, f, std=0.15), device="cpu") for f in FAMILIES}


@pytest.fixture
def vlm(models):
    return copy.deepcopy(models["qwen2_vl"])


def make_rollouts(vlm, groups=3, size=3, seed=0, longest=9):
    """Groups with and without a picture, ragged replies that may hold the pad token. The sampler's
    log-probs are exact."""
    rng, rollouts = random.Random(seed), []
    words = [t for t in range(7, 290)] + [vlm.pad_id] * 40
    for g in range(groups):
        noise = bytes(rng.randrange(256) for _ in range(3 * 32 * 32))
        picture = [Image.frombytes("RGB", (32, 32), noise)] if g % 2 == 0 else []
        prompt = vlm.encode("how many bars are red? " * (g + 1), picture)
        for _ in range(size):
            tokens = rng.choices(words, k=rng.randint(1, longest)) + [vlm.eos_ids[-1]]
            advantage = rng.choice([-1.5, -0.5, 0.7, 1.2])
            rollouts.append(Rollout(prompt, tokens, [0.0] * len(tokens), advantage, group=g))
    for rollout, logp in zip(rollouts, score(vlm, rollouts)):
        rollout.sampler_logps = logp.tolist()
    return rollouts


def gradients(vlm):
    flat = []
    for p in vlm.model.parameters():
        flat.append(torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten())
    return torch.cat(flat)


# ---- advantages ----------------------------------------------------------------------------------


def test_advantages_by_hand():
    # 1, 2, 3, 6: mean 3, squared distances 4 + 1 + 0 + 9 = 14, Bessel 14 / 3
    std = math.sqrt(14 / 3)
    expected = [(x - 3) / (std + 1e-6) for x in (1, 2, 3, 6)]
    assert group_advantages([[1.0, 2.0, 3.0, 6.0]])[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert group_advantages([[0.0, 1e-6]])[0, 1].item() == pytest.approx(
        0.5e-6 / (1e-6 / math.sqrt(2) + 1e-6)
    )
    assert group_advantages([[1.0, 1 + 1e-7]])[0, 1].item() == pytest.approx(
        0.5e-7 / (1e-7 / math.sqrt(2) + 1e-6), rel=1e-4
    )


@pytest.mark.parametrize("value", [0.1, 0.9, -1.0, 1 / 3])
def test_equal_rewards_have_exactly_no_advantage(value):
    assert group_advantages(torch.full((2, 7), value)).eq(0).all()
    assert group_advantages([[value] * 7]).eq(0).all()
    assert group_advantages([[0.1 + 0.2, 0.3, 0.3]]).eq(0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_silences_its_group_alone_and_says_so(vlm, bad, capsys):
    rewards = [[1.0, 2.0, 3.0], [0.0, bad, 1.0]]
    advantages = group_advantages(rewards)
    assert torch.equal(advantages[0], group_advantages(rewards[:1])[0])
    assert advantages[0].ne(0).any() and advantages[1].eq(0).all()
    assert "1 groups have a reward that is no finite number" in capsys.readouterr().err
    rollouts = make_rollouts(vlm, groups=2, size=3)
    for r, advantage in zip(rollouts, advantages.flatten().tolist()):
        r.advantage = advantage
    stats = train_step(vlm, vlm, rollouts, make_optimizer(vlm, lr=1e-4))
    assert stats["updates"] == 1 and stats["zero_variance"] == 0.5 and math.isfinite(stats["loss"])
    assert all(w.isfinite().all() for w in vlm.state().values())


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="two or more"):
        group_advantages([[1.0]])


# ---- the loss ------------------------------------------------------------------------------------


def slow_loss(logp, old, ref, advantage, clip_low, clip_high, clip_dual, kl_coef):
    """One token, plain Python."""
    ratio = math.exp(max(-20.0, min(20.0, logp - old)))
    losses = [-advantage * ratio, -advantage * max(1 - clip_low, min(1 + clip_high, ratio))]
    loss = max(losses)
    if advantage < 0:
        loss = min(loss, -advantage * clip_dual)
    difference = max(-20.0, min(20.0, ref - logp))
    kl = min(math.exp(difference) - difference - 1, 10.0)
    return loss + kl_coef * kl, kl


# log 3 = 1.0986, where the dual clip begins; k3 passes its bound of 10 at 2.61.
LOG_RATIOS = (-25, -19.9, -0.5, -0.3, -0.1, 0.0, 0.1, 0.24, 0.5, 1.0, 1.2, 19.9, 25)
DIFFERENCES = (-30.0, -3.0, 0.0, 0.4, 2.7, 30.0)
CASES = list(itertools.product(LOG_RATIOS, DIFFERENCES, (-1.5, 0.0, 0.8)))


def test_loss_is_that_of_the_loop_over_tokens():
    log_ratio, difference, advantages = torch.tensor(CASES, dtype=torch.float64).unbind(1)
    old = torch.full((len(CASES), 1), -30.0, dtype=torch.float64)
    logp = old + log_ratio[:, None]
    ref = logp + difference[:, None]
    # One by one: a sum would hide small terms behind exp(20).
    for i, case in enumerate(CASES):
        at = slice(i, i + 1)
        loss, stats = policy_loss(logp[at], old[at], ref[at], advantages[at], torch.ones(1, 1))
        tensors = logp[i].item(), old[i].item(), ref[i].item()
        expected, kl = slow_loss(*tensors, case[2], 0.2, 0.3, 3.0, 0.01)
        assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12), case
        assert stats["kl"] == pytest.approx(kl, abs=1e-9), case
        held = max(-20, min(20, case[0]))
        ratio = math.exp(held)
        assert stats["clip_high"] == (case[2] > 0 and ratio > 1.3)
        assert stats["clip_low"] == (case[2] < 0 and ratio < 0.8)
        assert stats["clip_dual"] == (case[2] < 0 and ratio > 3)
        assert stats["approx_kl"] == pytest.approx(ratio - 1 - held, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "log_ratio, advantage, moves",
    [
        (0.5, 1.0, False),
        (0.5, -1.0, True),
        (-0.5, 1.0, True),
        (-0.5, -1.0, False),
        (1.2, -1.0, False),
        (1.0, -1.0, True),
        (25.0, 1.0, False),
        (0.1, 1.0, True),
        (0.1, -1.0, True),
    ],
)
def test_where_the_clips_stop_the_gradient(log_ratio, advantage, moves):
    logp = torch.tensor([[log_ratio]], requires_grad=True)
    one = torch.ones(1, 1)
    policy_loss(logp, 0 * one, None, torch.tensor([advantage]), one)[0].backward()
    # d(-A rho) / d logp = -A rho
    expected = -advantage * math.exp(log_ratio) if moves else 0.0
    assert logp.grad.item() == pytest.approx(expected, rel=1e-5)


def test_padding_is_left_out_and_sums_are_over_tokens():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    torch.manual_seed(0)
    logp, old, ref = torch.randn(3, 2, 3).unbind(0)
    logp[1, 1:] = math.nan
    logp.requires_grad_()
    advantages = torch.tensor([1.0, -2.0])
    loss, stats = policy_loss(logp, old, ref, advantages, mask)
    expected = 0.0
    for i, t in mask.nonzero().tolist():
        tensors = logp[i, t].item(), old[i, t].item(), ref[i, t].item()
        expected += slow_loss(*tensors, advantages[i].item(), 0.2, 0.3, 3, 0.01)[0]
    assert loss.item() == pytest.approx(expected / 4, rel=1e-5)
    loss.backward()
    assert logp.grad[1, 1:].eq(0).all() and logp.grad.isfinite().all()
    per_token = advantages[:, None].expand(2, 3)
    flat = [x[mask] for x in (logp, old, ref, per_token)]
    loss, sums = grpo.policy_loss(*flat)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert sums["loss"] == pytest.approx(expected, rel=1e-5)
    loss = policy_loss(logp, old, ref, per_token, mask)[0]
    assert loss.item() == pytest.approx(expected / 4, rel=1e-5)


# ---- log-probs -----------------------------------------------------------------------------------


def gap_to_separate_sequences(vlm, monkeypatch) -> float:
    """Nothing padded, prompt and picture computed once: the same log-probs as one sequence at a
    time. -> the largest difference of the gradients, in shares of the largest entry"""
    monkeypatch.setitem(packed.LOGITS, "cpu", 7 * len(vlm.lm_head))
    rollouts = make_rollouts(vlm)
    bundles = [rollouts[0:3], rollouts[3:5], rollouts[5:6], rollouts[6:9]]
    lengths = [len(r.tokens) for r in rollouts]
    weights = torch.randn(sum(lengths))
    vlm.model.zero_grad()
    logps, entropies, loss = token_logps(vlm, bundles, 0.8, weights)
    loss.backward()
    ours = gradients(vlm)

    vlm.model.zero_grad()
    each = zip(rollouts, weights.split(lengths), logps.split(lengths), entropies.split(lengths))
    for r, weight, logp, entropy in each:
        slow, slow_entropy = slow_logps(vlm, r, temperature=0.8)
        torch.testing.assert_close(logp, slow, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy, slow_entropy, atol=1e-5, rtol=1e-5)
        (slow * weight).sum().backward()
    scale = gradients(vlm).abs().max()
    assert scale > 0.1
    assert any(p.grad.abs().max() > 0 for n, p in vlm.model.named_parameters() if "visual" in n)
    return ((ours - gradients(vlm)).abs().max() / scale).item()


def test_a_picture_goes_through_the_vision_tower_once_for_a_group(vlm, monkeypatch):
    rollouts, seen = make_rollouts(vlm, groups=3, size=3), []  # groups 0 and 2 have a picture
    forward = vlm.model.model.visual.forward

    def watched(pixels, **options):
        seen.append(len(pixels))
        return forward(pixels, **options)

    monkeypatch.setattr(vlm.model.model.visual, "forward", watched)
    train_step(vlm, None, rollouts, Recorder(vlm), kl_coef=0)
    assert seen == [sum(len(rollouts[i].prompt.pictures[0].pixels) for i in (0, 6))]


def test_untied_head(tmp_path):
    vlm = VLM.load(make_checkpoint(tmp_path / "m", tie=False, std=0.15), device="cpu")
    assert vlm.lm_head is not vlm.model.get_input_embeddings().weight
    r = make_rollouts(vlm, groups=1, size=1)[0]
    token_logps(vlm, [[r]], weights=torch.ones(len(r.tokens)))[2].backward()
    fast = gradients(vlm)
    vlm.model.zero_grad()
    slow_logps(vlm, r)[0].sum().backward()
    torch.testing.assert_close(fast, gradients(vlm), atol=1e-4, rtol=1e-4)


def test_replies_end_where_they_ended_and_the_end_token_is_trained(vlm):
    prompt = vlm.encode("how many bars are red?")
    tokens = [20, vlm.pad_id, 21, vlm.eos_ids[-1]]  # the pad token *inside* the reply
    bundles = [[Rollout(prompt, tokens, []), Rollout(prompt, [30], [])]]
    logp = token_logps(vlm, bundles)[0]
    assert len(logp) == 5
    torch.testing.assert_close(logp[:4], slow_logps(vlm, bundles[0][0])[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logp[4:], slow_logps(vlm, bundles[0][1])[0], atol=1e-5, rtol=1e-5)
    # A step on the first reply makes each of its tokens likelier: also the pad and the end token.
    token_logps(vlm, bundles, weights=torch.tensor([-1.0, -1, -1, -1, 0]))[2].backward()
    with torch.no_grad():
        for p in vlm.model.parameters():
            if p.grad is not None:
                p -= 1e-4 * p.grad
    assert (token_logps(vlm, bundles)[0][:4] > logp[:4]).all()


def test_log_probs_do_not_depend_on_how_rollouts_are_cut(vlm):
    rollouts = make_rollouts(vlm, groups=4, size=3)
    random.Random(1).shuffle(rollouts)
    for budget in (1, 100, 200, 10_000):
        for r, logp in zip(rollouts, score(vlm, rollouts, 1.3, budget)):
            torch.testing.assert_close(logp, slow_logps(vlm, r, 1.3)[0], atol=1e-5, rtol=1e-5)
            assert not logp.requires_grad


# ---- attention is switched for the length of a pass ----------------------------------------------


def attention_of(vlm):
    return vlm.model.model.language_model.config._attn_implementation


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_batches_are_what_they_were_after_a_step(models, family):
    """Packed attention does not stay in: generation has what the network was loaded with."""
    actor, policy = copy.deepcopy(models[family]), copy.deepcopy(models[family])
    actor.model.model.language_model.config._attn_implementation = "eager"
    rollouts = make_rollouts(policy)
    batch = for_the_library(padded(actor, [r.prompt for r in rollouts[::3]]))
    before = actor.model(**batch).logits[batch["attention_mask"].bool()]
    stats = train_step(policy, actor, rollouts, Recorder(policy), groups_per_update=1)
    assert stats["updates"] == 3
    assert attention_of(actor) == "eager" and attention_of(policy) == "sdpa"
    assert torch.equal(actor.model(**batch).logits[batch["attention_mask"].bool()], before)


def test_attention_is_what_it_was_when_a_pass_raises(vlm, monkeypatch):
    reference, rollouts = copy.deepcopy(vlm), make_rollouts(vlm)
    reference.model.set_attn_implementation("eager")

    def fail(*_, **__):
        assert attention_of(vlm) == "packed"
        raise RuntimeError("the seventh seal")

    monkeypatch.setattr(grpo, "policy_loss", fail)
    with pytest.raises(RuntimeError, match="the seventh seal"):
        train_step(vlm, reference, rollouts, Recorder(vlm))
    assert attention_of(vlm) == "sdpa" and attention_of(reference) == "eager"

    monkeypatch.undo()
    monkeypatch.setattr(torch.Tensor, "backward", fail)
    with pytest.raises(RuntimeError, match="the seventh seal"):
        train_step(vlm, reference, rollouts, Recorder(vlm))
    assert attention_of(vlm) == "sdpa" and attention_of(reference) == "eager"


@pytest.mark.parametrize("family", FAMILIES)
def test_with_checkpointing_the_gradient_is_the_same(models, family):
    """The layers are computed again in the backward pass, and must find the same attention."""
    vlm = copy.deepcopy(models[family])
    rollouts, found, passes = make_rollouts(vlm), [], []
    layer = vlm.model.model.language_model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    for checkpointing in (False, True):
        if checkpointing:
            vlm.model.gradient_checkpointing_enable()
            vlm.model.train()
        optimizer = Recorder(vlm)
        train_step(vlm, models[family], rollouts, optimizer, kl_coef=0.3, groups_per_update=2)
        found.append(optimizer.seen)
    # Three passes with log-probs from before the step, then five, of which two compute again.
    assert len(passes) == 3 + 5
    assert len(found[0]) == len(found[1]) == 2
    for without, recomputed in zip(*found):
        scale = without.abs().max()
        assert scale > 1e-3
        torch.testing.assert_close(recomputed / scale, without / scale, atol=1e-6, rtol=1e-5)


# ---- batches -------------------------------------------------------------------------------------


def test_micro_batches_hold_everything_once_within_the_budget(vlm):
    rollouts = make_rollouts(vlm, groups=6, size=4)
    random.Random(2).shuffle(rollouts)
    for budget in (1, 70, 150, 400):
        batches = micro_batches(rollouts, budget)
        bundles = [bundle for batch in batches for bundle in batch]
        found = [id(r) for bundle in bundles for r in bundle]
        assert sorted(found) == sorted(map(id, rollouts))
        assert all(len({id(r.prompt) for r in bundle}) == 1 for bundle in bundles)
        for batch in batches:
            # Each prompt once.
            assert len({id(bundle[0].prompt) for bundle in batch}) == len(batch)
            length = sum(map(bundle_length, batch))
            assert length <= budget or len(batch) == len(batch[0]) == 1
        # And the budget is used.
        for one, two in zip(batches, batches[1:]):
            next_one = two[0][0]
            again = 0 if one[-1][0].prompt is next_one.prompt else len(next_one.prompt.tokens)
            assert sum(map(bundle_length, one)) + again + len(next_one.tokens) > budget
    whole = micro_batches(rollouts, 10**9)
    assert len(whole) == 1 and len(whole[0]) == 6


def test_mini_batches_are_whole_groups_of_even_size():
    rollouts = [Rollout(None, [1], [0.0], group=g) for g in range(10) for _ in range(2)]

    def sizes(n):
        return [len(mini) // 2 for mini in mini_batches(rollouts, n)]

    assert sizes(10) == [10] and sizes(99) == [10] and sizes(5) == [5, 5]
    assert sizes(4) == [4, 3, 3] and sizes(1) == [1] * 10
    assert [r for mini in mini_batches(rollouts, 4) for r in mini] == rollouts


# ---- the step ------------------------------------------------------------------------------------


class Recorder(torch.optim.SGD):
    """Keeps the gradient of each update; with lr 0 the weights stay."""

    def __init__(self, vlm, lr=0.0):
        super().__init__(vlm.model.parameters(), lr=lr)
        self.vlm, self.seen = vlm, []

    def step(self):
        self.seen.append(gradients(self.vlm))
        super().step()


def other_reference(vlm):
    reference = copy.deepcopy(vlm)
    with torch.no_grad():
        for p in reference.model.parameters():
            p += 0.02 * torch.randn_like(p)
    return reference


def test_gradient_does_not_depend_on_how_rollouts_are_cut(vlm):
    torch.manual_seed(0)
    reference, rollouts = other_reference(vlm), make_rollouts(vlm, groups=5, size=3)
    results, sums = [], []
    for budget in (1, 90, 300, 100_000):
        optimizer = Recorder(vlm)
        settings = dict(kl_coef=0.5, max_grad_norm=1e9, token_budget=budget)
        stats = train_step(vlm, reference, rollouts, optimizer, **settings)
        results.append(optimizer.seen[0])
        sums.append([stats[k] for k in ("loss", "kl", "entropy", "grad_norm", "tokens")])
    # And the slow twin: all sequences by themselves, one sum.
    vlm.model.zero_grad()
    total, count = 0.0, sum(len(r.tokens) for r in rollouts)
    for r in rollouts:
        logp, ref = slow_logps(vlm, r)[0], slow_logps(reference, r)[0].detach()
        k3 = (ref - logp).exp() - (ref - logp) - 1
        total = total + (0.5 * k3 - (logp - logp.detach()).exp() * r.advantage).sum() / count
    total.backward()
    scale = gradients(vlm).abs().max()
    for result, numbers in zip(results, sums):
        torch.testing.assert_close(result / scale, gradients(vlm) / scale, atol=1e-5, rtol=1e-4)
        assert numbers == pytest.approx(sums[0], rel=1e-4)
    assert sums[0][0] == pytest.approx(total.item(), rel=1e-4) and sums[0][1] > 1e-3


def test_later_updates_use_the_log_probs_from_before_the_step(vlm):
    rollouts = make_rollouts(vlm, groups=4, size=3)
    before = {id(r): logp for r, logp in zip(rollouts, score(vlm, rollouts))}
    optimizer = Recorder(vlm, lr=0.05)
    stats = train_step(vlm, None, rollouts, optimizer, kl_coef=0, groups_per_update=2)
    assert stats["updates"] == 2 and stats["approx_kl"] > 1e-5 and stats["kl"] == 0
    assert stats["logp_gap"] < 1e-5  # the gap is to the old log-probs, not to the moving policy's
    # The same by hand: gradient of the second update, from the weights after the first.
    fresh = [r for r in rollouts if r.group >= 2]
    count = sum(len(r.tokens) for r in fresh)
    state = copy.deepcopy(vlm.state())
    last = split_like(state, clip(optimizer.seen[1]))
    moved = {name: weight + 0.05 * step for (name, weight), step in zip(state.items(), last)}
    vlm.load_state(moved)
    vlm.model.zero_grad()
    for r in fresh:
        logp, old = slow_logps(vlm, r)[0], before[id(r)]
        advantages = torch.full_like(logp, r.advantage)
        loss = policy_loss(logp, old, None, advantages, torch.ones_like(logp))[0]
        (loss * len(logp) / count).backward()
    torch.testing.assert_close(clip(gradients(vlm)), clip(optimizer.seen[1]), atol=1e-4, rtol=1e-3)


def clip(gradient):
    return gradient * min(1.0, 1.0 / gradient.norm().item())


def split_like(state, flat):
    parts = flat.split([weight.numel() for weight in state.values()])
    return [part.view_as(weight) for part, weight in zip(parts, state.values())]


def test_gradient_norm_is_clipped_and_reported_before(vlm):
    rollouts = make_rollouts(vlm)
    optimizer = Recorder(vlm)
    stats = train_step(vlm, vlm, rollouts, optimizer, max_grad_norm=0.01)
    assert (
        optimizer.seen[0].norm().item() == pytest.approx(0.01, rel=1e-3)
        and stats["grad_norm"] > 0.05
    )


def test_a_step_raises_the_good_reply_and_lowers_the_bad_one(vlm):
    reference, rollouts = copy.deepcopy(vlm), make_rollouts(vlm, groups=1, size=4)
    for r, advantage in zip(rollouts, (1.0, -1.0, 1.0, -1.0)):
        r.advantage = advantage
    before = torch.stack([x.sum() for x in score(vlm, rollouts)])
    stats = train_step(vlm, reference, rollouts, make_optimizer(vlm, lr=1e-4))
    change = torch.stack([x.sum() for x in score(vlm, rollouts)]) - before
    assert (change * torch.tensor([1.0, -1.0, 1.0, -1.0]) > 0).all(), change
    assert (
        stats["updates"] == 1
        and stats["kl"] == pytest.approx(0, abs=1e-6)
        and stats["approx_kl"] == 0
    )


def test_the_reference_pulls_back(vlm):
    torch.manual_seed(0)
    reference, rollouts = other_reference(vlm), make_rollouts(vlm)
    for r in rollouts:
        r.advantage = 1e-9  # a signal too small to matter beside the KL term
    optimizer, kls = make_optimizer(vlm, lr=1e-3), []
    for _ in range(10):
        kls.append(train_step(vlm, reference, rollouts, optimizer, kl_coef=1.0)["kl"])
    assert kls[-1] < 0.6 * kls[0]


def test_non_finite_gradient_skips_the_update(vlm, capsys):
    rollouts = make_rollouts(vlm, groups=4, size=2)
    rollouts[0].advantage = math.inf
    before = vlm.state()
    stats = train_step(vlm, vlm, rollouts, make_optimizer(vlm, lr=1e-2))
    assert (
        stats["skipped"] == 1
        and stats["updates"] == 0
        and math.isnan(stats["loss"])
        and stats["tokens"] == 0
    )
    assert all(torch.equal(before[n], w) for n, w in vlm.state().items())
    assert "skipped" in capsys.readouterr().err
    stats = train_step(
        vlm, vlm, rollouts, make_optimizer(vlm, lr=1e-4), groups_per_update=2
    )  # the other half learns
    assert stats["skipped"] == 1 and stats["updates"] == 1 and math.isfinite(stats["loss"])
    assert stats["tokens"] == sum(len(r.tokens) for r in rollouts[4:])
    assert all(w.isfinite().all() for w in vlm.state().values())


def test_no_signal_is_no_update_but_a_silent_group_still_counts(vlm):
    rollouts = make_rollouts(vlm, groups=2, size=2)
    for r in rollouts:
        r.advantage = 0.0
    before = vlm.state()
    stats = train_step(vlm, other_reference(vlm), rollouts, make_optimizer(vlm, lr=1e-2))
    assert stats["no_signal"] == 1 and stats["updates"] == 0 and stats["zero_variance"] == 1
    assert math.isnan(stats["loss"]) and math.isnan(stats["grad_norm"])
    assert all(torch.equal(before[n], w) for n, w in vlm.state().items())
    rollouts[0].advantage, rollouts[1].advantage, rollouts[3].finished = 1.0, -1.0, False
    stats = train_step(vlm, vlm, rollouts, Recorder(vlm))
    assert stats["tokens"] == sum(
        len(r.tokens) for r in rollouts
    )  # the denominator keeps the silent group
    assert stats["zero_variance"] == 0.5 and stats["truncated"] == 0.25 and stats["no_signal"] == 0
    assert stats["loss"] == pytest.approx(
        (len(rollouts[1].tokens) - len(rollouts[0].tokens)) / stats["tokens"], abs=1e-5
    )


def test_gap_between_sampler_and_trainer(vlm):
    rollouts = make_rollouts(vlm, groups=2, size=2)
    rollouts[1].sampler_logps[0] += 0.25
    stats = train_step(vlm, vlm, rollouts, Recorder(vlm))
    assert stats["logp_gap"] == pytest.approx(0.25, abs=1e-4)
    assert stats["logp_gap_mean"] == pytest.approx(0.25 / stats["tokens"], abs=1e-4)


def test_everything_is_scored_at_the_sampling_temperature(vlm):
    rollouts = make_rollouts(vlm, groups=2, size=2)
    for r, logp in zip(rollouts, score(vlm, rollouts, temperature=0.6)):
        r.sampler_logps = logp.tolist()
    stats = train_step(vlm, vlm, rollouts, Recorder(vlm), temperature=0.6, groups_per_update=1)
    assert stats["updates"] == 2 and stats["logp_gap"] < 1e-4
    assert stats["kl"] == pytest.approx(0, abs=1e-6) and stats["approx_kl"] == pytest.approx(
        0, abs=1e-6
    )


def test_bad_input_is_named(vlm):
    prompt = vlm.encode("how many?")
    optimizer = Recorder(vlm)
    with pytest.raises(ValueError, match="no rollouts"):
        train_step(vlm, vlm, [], optimizer)
    with pytest.raises(ValueError, match="one sampler log-prob per token"):
        train_step(vlm, vlm, [Rollout(prompt, [9], [])], optimizer)
    with pytest.raises(ValueError, match="reference"):
        train_step(vlm, None, [Rollout(prompt, [9], [-1.0], 1.0)], optimizer)
    vlm.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="float32"):
        make_optimizer(vlm)


# ---- memory --------------------------------------------------------------------------------------


def test_memory_lost_three_times_ends_with_the_weights_of_the_smaller_budget(
    vlm, monkeypatch, capsys
):
    """Bit for bit. It runs out in second passes too, when one gradient is there already."""
    rollouts, original, passes = make_rollouts(vlm, groups=4), grpo.policy_pass, []
    length = max(bundle_length(rollouts[i : i + 3]) for i in range(0, 12, 3))
    fresh, begin = copy.deepcopy(vlm), copy.deepcopy(vlm.state())

    def pass_or_fail(*facts, **settings):
        passes.append(sum(len(bundle) for bundle in facts[2]))
        if len(passes) in (1, 2, 4):
            raise torch.cuda.OutOfMemoryError("no room")
        return original(*facts, **settings)

    monkeypatch.setattr(grpo, "policy_pass", pass_or_fail)
    limits = dict(kl_coef=0, token_budget=8 * length)
    train_step(vlm, None, rollouts, grpo.make_optimizer(vlm, lr=1e-3), **limits)
    assert vlm.token_limit == length and len(passes) > 4
    assert capsys.readouterr().err.count("tokens a pass") == 3

    monkeypatch.undo()
    limits["token_budget"] = length
    train_step(fresh, None, rollouts, grpo.make_optimizer(fresh, lr=1e-3), **limits)
    state, moved = fresh.state(), 0
    for name, weight in vlm.state().items():
        assert torch.equal(weight, state[name]), name
        moved += not torch.equal(weight, begin[name])
    assert moved > 5


def test_memory_that_holds_no_single_rollout_ends_the_step(vlm, monkeypatch):
    def fail(*_, **__):
        raise torch.cuda.OutOfMemoryError("no room")

    rollouts = make_rollouts(vlm, groups=2)
    monkeypatch.setattr(grpo, "policy_pass", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="no room"):
        train_step(vlm, None, rollouts, Recorder(vlm), kl_coef=0, token_budget=4096)
    assert vlm.token_limit < max(bundle_length([rollout]) for rollout in rollouts)
