"""The training step against slow, obvious twins: a loop over tokens, full logits, one sequence at a time."""

import copy
import math
import random

import pytest
import torch
from helpers_models import for_the_library, make_checkpoint, padded
from PIL import Image

import grpo
from grpo import (
    ChunkedLoss,
    Rollout,
    group_advantages,
    make_optimizer,
    micro_batches,
    mini_batches,
    policy_loss,
    row_length,
    score,
    token_logps,
    train_step,
)
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
    """Groups with and without a picture, ragged replies that may hold the pad token; sampler log-probs are exact."""
    rng, rollouts = random.Random(seed), []
    words = [t for t in range(7, 290)] + [vlm.pad_id] * 40
    for g in range(groups):
        noise = bytes(rng.randrange(256) for _ in range(3 * 32 * 32))
        picture = [Image.frombytes("RGB", (32, 32), noise)] if g % 2 == 0 else []
        prompt = vlm.encode("how many bars are red? " * (g + 1), picture)
        for _ in range(size):
            tokens = rng.choices(words, k=rng.randint(1, longest)) + [vlm.eos_ids[-1]]
            rollouts.append(
                Rollout(
                    prompt, tokens, [0.0] * len(tokens), rng.choice([-1.5, -0.5, 0.7, 1.2]), group=g
                )
            )
    for r, logp in zip(rollouts, score(vlm, rollouts)):
        r.full_logps = logp.tolist()
    return rollouts


def slow_logps(vlm, r, temperature=1.0):
    """One sequence, no padding, full logits, transformers' own head."""
    batch = padded(vlm, [r.prompt], [r.tokens])
    logits = (
        vlm.model(**batch, use_cache=False).logits[0, len(r.prompt.tokens) - 1 : -1] / temperature
    )
    logp = logits.log_softmax(-1)
    return logp.gather(1, torch.tensor(r.tokens)[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def gradients(vlm):
    return torch.cat(
        [
            torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
            for p in vlm.model.parameters()
        ]
    )


# ---- advantages ----------------------------------------------------------------------------------------------


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
    assert (
        torch.equal(advantages[0], group_advantages(rewards[:1])[0])
        and advantages[0].ne(0).any()
        and advantages[1].eq(0).all()
    )
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


# ---- the loss ------------------------------------------------------------------------------------------------


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


CASES = [
    (log_ratio, difference, advantage)
    for log_ratio in (
        -25,
        -19.9,
        -0.5,
        -0.3,
        -0.1,
        0.0,
        0.1,
        0.24,
        0.5,
        1.0,
        1.2,
        19.9,
        25,
    )  # log 3 = 1.0986
    for difference in (-30.0, -3.0, 0.0, 0.4, 2.7, 30.0)  # k3 passes 10 at 2.61
    for advantage in (-1.5, 0.0, 0.8)
]


def test_loss_is_that_of_the_loop_over_tokens():
    old = torch.full((len(CASES), 1), -30.0, dtype=torch.float64)
    logp = old + torch.tensor([[c[0]] for c in CASES], dtype=torch.float64)
    ref = logp + torch.tensor([[c[1]] for c in CASES], dtype=torch.float64)
    advantages = torch.tensor([c[2] for c in CASES], dtype=torch.float64)
    for i, case in enumerate(CASES):  # one by one: a sum would hide small terms behind exp(20)
        loss, stats = policy_loss(
            logp[i : i + 1], old[i : i + 1], ref[i : i + 1], advantages[i : i + 1], torch.ones(1, 1)
        )
        expected, kl = slow_loss(
            logp[i].item(), old[i].item(), ref[i].item(), case[2], 0.2, 0.3, 3.0, 0.01
        )
        assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12), case
        assert stats["kl"] == pytest.approx(kl, abs=1e-9), case
        ratio = math.exp(max(-20, min(20, case[0])))
        assert stats["clip_high"] == (case[2] > 0 and ratio > 1.3)
        assert stats["clip_low"] == (case[2] < 0 and ratio < 0.8)
        assert stats["clip_dual"] == (case[2] < 0 and ratio > 3)
        assert stats["approx_kl"] == pytest.approx(
            ratio - 1 - max(-20, min(20, case[0])), rel=1e-6, abs=1e-9
        )


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
    policy_loss(logp, torch.zeros(1, 1), None, torch.tensor([advantage]), torch.ones(1, 1))[
        0
    ].backward()
    expected = -advantage * math.exp(log_ratio) if moves else 0.0  # d(-A rho)/d logp = -A rho
    assert logp.grad.item() == pytest.approx(expected, rel=1e-5)


def test_padding_is_left_out_and_the_denominator_is_ours():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    torch.manual_seed(0)
    logp, old, ref = torch.randn(3, 2, 3).unbind(0)
    logp[1, 1:] = math.nan
    logp.requires_grad_()
    advantages = torch.tensor([1.0, -2.0])
    loss, stats = policy_loss(logp, old, ref, advantages, mask)
    expected = (
        sum(
            slow_loss(
                logp[i, t].item(),
                old[i, t].item(),
                ref[i, t].item(),
                advantages[i].item(),
                0.2,
                0.3,
                3,
                0.01,
            )[0]
            for i in range(2)
            for t in range(3)
            if mask[i, t]
        )
        / 4
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert logp.grad[1, 1:].eq(0).all() and logp.grad.isfinite().all()
    assert policy_loss(logp, old, ref, advantages, mask, denominator=40)[0].item() == pytest.approx(
        expected / 10, rel=1e-5
    )
    per_token = advantages[:, None].expand(2, 3)
    assert policy_loss(logp, old, ref, per_token, mask)[0].item() == pytest.approx(
        expected, rel=1e-5
    )


# ---- log-probs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk, words", [(1, 50), (7, 25), (5, 7), (16, 1), (100, 100)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("frozen", [False, True])
def test_chunked_loss_is_that_of_full_logits(chunk, words, temperature, frozen, monkeypatch):
    """Chunks of tokens, blocks of words, in value and in the gradients of hidden states and head."""
    torch.manual_seed(0)
    monkeypatch.setattr(grpo, "words_at_once", lambda tokens: words)
    targets, upstream = torch.randint(50, (16,)), torch.randn(16)
    a, b = torch.randn(16, 8, requires_grad=True), torch.randn(50, 8, requires_grad=not frozen)
    logp, entropy, loss = ChunkedLoss.apply(
        a, b, targets, temperature, lambda logp, at: (logp.square() * upstream[at]).sum(), chunk
    )
    (3 * loss).backward()
    assert not entropy.requires_grad and not logp.requires_grad
    a2, b2 = a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
    full = (a2 @ b2.T / temperature).log_softmax(-1)
    logp2 = full[torch.arange(16), targets]
    loss2 = (logp2.square() * upstream).sum()
    (3 * loss2).backward()
    near = dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logp, logp2, **near)
    torch.testing.assert_close(entropy, -(full.exp() * full).sum(-1), **near)
    torch.testing.assert_close(loss, loss2, **near)
    scale = a2.grad.abs().max()
    torch.testing.assert_close(a.grad / scale, a2.grad / scale, **near)
    assert b.grad is None if frozen else torch.allclose(b.grad / scale, b2.grad / scale, **near)
    logp, entropy2, loss = ChunkedLoss.apply(
        a, b, targets, temperature, None, chunk
    )  # scored, not trained
    torch.testing.assert_close(logp, logp2, **near)
    assert torch.equal(entropy, entropy2) and not loss.requires_grad


def test_the_gradient_of_a_bf16_head_is_summed_in_float32():
    """FSDP hands over a bf16 copy of the head: many chunks must round no more than one does."""
    torch.manual_seed(0)
    hidden, head = (
        torch.randn(512, 16).bfloat16().requires_grad_(),
        torch.randn(40, 16).bfloat16().requires_grad_(),
    )
    found = {}
    for chunk in (4, 512):
        head.grad = None
        ChunkedLoss.apply(
            hidden, head, torch.arange(512) % 40, 1.0, lambda logp, at: logp.sum(), chunk
        )[2].backward()
        found[chunk] = head.grad.float()
    assert (found[4] - found[512]).abs().max() <= 2**-7 * found[512].abs().max()


def test_logits_of_all_tokens_never_exist(monkeypatch):
    largest = 0
    original = torch.Tensor.float

    def watch(tensor):  # every block of logits passes here
        nonlocal largest
        largest = max(largest, tensor.numel())
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "float", watch)
    hidden, head = torch.randn(64, 4, requires_grad=True), torch.randn(100, 4, requires_grad=True)
    seen = []
    ChunkedLoss.apply(
        hidden,
        head,
        torch.zeros(64, dtype=torch.long),
        1.0,
        lambda logp, at: (seen.append(len(logp)), logp.sum())[1],
        24,
    )[2].backward()
    assert largest == 24 * 100 and seen == [24, 24, 16]


def varlen_by_hand(q, k, v, ends_q, ends_k, longest_q, longest_k, softmax_scale, causal):
    """What the flash-attn package documents of flash_attn_varlen_func: segment by segment, causal from the end."""
    assert (
        causal
        and longest_q == ends_q.diff().max()
        and longest_k == ends_k.diff().max()
        and ends_q.dtype == torch.int32
    )
    found = []
    for i, j, a, b in zip(ends_q, ends_q[1:], ends_k, ends_k[1:]):
        allowed = torch.ones(j - i, b - a, dtype=torch.bool).tril(b - a - (j - i))
        heads = [
            q[i:j, h] @ k[a:b, h * k.shape[1] // q.shape[1]].T * softmax_scale
            for h in range(q.shape[1])
        ]
        found.append(
            torch.stack(
                [
                    scores.masked_fill(~allowed, -math.inf).softmax(-1)
                    @ v[a:b, h * k.shape[1] // q.shape[1]]
                    for h, scores in enumerate(heads)
                ],
                1,
            )
        )
    return torch.cat(found)


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_separate_sequences(models, family, flash, monkeypatch):
    """Nothing padded, prompt and picture computed once: the same values and gradients as one sequence at a time."""
    vlm = copy.deepcopy(models[family])
    if flash:  # the layout of the GPU, on the CPU
        pack = grpo.pack
        monkeypatch.setattr(grpo, "pack", lambda rows, device, _: pack(rows, device, True))
        monkeypatch.setattr(grpo, "flash_attn_varlen_func", varlen_by_hand)
    rollouts = make_rollouts(vlm)
    weights = [torch.randn(len(r.tokens)) for r in rollouts]
    rows = [rollouts[0:3], rollouts[3:5], rollouts[5:6], rollouts[6:9]]
    vlm.model.zero_grad()
    upstream, lengths = torch.cat(weights), [len(r.tokens) for r in rollouts]
    logps, entropies, loss = token_logps(
        vlm, rows, 0.8, lambda logp, at: (logp * upstream[at]).sum(), chunk=7
    )
    loss.backward()
    shared = gradients(vlm)
    vlm.model.zero_grad()
    for r, w, logp, entropy in zip(
        rollouts, weights, logps.split(lengths), entropies.split(lengths)
    ):
        slow, slow_entropy = slow_logps(vlm, r, temperature=0.8)
        torch.testing.assert_close(logp, slow, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy, slow_entropy, atol=1e-5, rtol=1e-5)
        (slow * w).sum().backward()
    scale = gradients(vlm).abs().max()
    assert scale > 0.1
    torch.testing.assert_close(shared / scale, gradients(vlm) / scale, atol=1e-5, rtol=1e-4)
    assert any(p.grad.abs().max() > 0 for n, p in vlm.model.named_parameters() if "visual" in n)


def test_a_picture_goes_through_the_vision_tower_once_for_a_group(vlm, monkeypatch):
    rollouts, seen = make_rollouts(vlm, groups=3, size=3), []  # groups 0 and 2 have a picture
    forward = vlm.model.model.visual.forward
    monkeypatch.setattr(
        vlm.model.model.visual,
        "forward",
        lambda pixels, **k: (seen.append(len(pixels)), forward(pixels, **k))[1],
    )
    train_step(vlm, None, rollouts, Recorder(vlm), kl_coef=0)
    assert seen == [sum(len(rollouts[i].prompt.pictures[0].pixels) for i in (0, 6))]


def test_untied_head(tmp_path):
    vlm = VLM.load(make_checkpoint(tmp_path / "m", tie=False, std=0.15), device="cpu")
    assert vlm.lm_head is not vlm.model.get_input_embeddings().weight
    r = make_rollouts(vlm, groups=1, size=1)[0]
    token_logps(vlm, [[r]], objective=lambda logp, at: logp.sum())[2].backward()
    fast = gradients(vlm)
    vlm.model.zero_grad()
    slow_logps(vlm, r)[0].sum().backward()
    torch.testing.assert_close(fast, gradients(vlm), atol=1e-4, rtol=1e-4)


def test_replies_end_where_they_ended_and_the_end_token_is_trained(vlm):
    prompt = vlm.encode("how many bars are red?")
    tokens = [20, vlm.pad_id, 21, vlm.eos_ids[-1]]  # the pad token *inside* the reply
    rows = [[Rollout(prompt, tokens, []), Rollout(prompt, [30], [])]]
    logp = token_logps(vlm, rows)[0]
    assert len(logp) == 5
    torch.testing.assert_close(logp[:4], slow_logps(vlm, rows[0][0])[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logp[4:], slow_logps(vlm, rows[0][1])[0], atol=1e-5, rtol=1e-5)
    # A step on the first reply makes each of its tokens likelier: also the pad and the end token.
    token_logps(vlm, rows, objective=lambda logp, at: -logp[:4].sum())[2].backward()
    with torch.no_grad():
        for p in vlm.model.parameters():
            if p.grad is not None:
                p -= 1e-4 * p.grad
    assert (token_logps(vlm, rows)[0][:4] > logp[:4]).all()


def test_score_keeps_the_order(vlm):
    rollouts = make_rollouts(vlm, groups=4, size=3)
    random.Random(1).shuffle(rollouts)
    for budget in (1, 100, 200, 10_000):
        for r, logp in zip(rollouts, score(vlm, rollouts, 1.3, budget)):
            torch.testing.assert_close(logp, slow_logps(vlm, r, 1.3)[0], atol=1e-5, rtol=1e-5)
            assert not logp.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_batches_are_what_they_were_after_a_packed_one(models, family):
    """The attention that packing puts in stays in, so it must serve padded batches (generation, the library's own) too."""
    vlm = copy.deepcopy(models[family])
    vlm.model.set_attn_implementation("eager")
    prompts = [r.prompt for r in make_rollouts(copy.deepcopy(vlm), groups=3, size=1)]
    batches = [for_the_library(padded(vlm, prompts, side=side)) for side in ("left", "right")]
    before = [vlm.model(**batch).logits[batch["attention_mask"].bool()] for batch in batches]
    score(vlm, make_rollouts(vlm))
    assert vlm.model.model.language_model.config._attn_implementation == "packed"
    for batch, logits in zip(batches, before):
        torch.testing.assert_close(
            vlm.model(**batch).logits[batch["attention_mask"].bool()], logits, atol=1e-4, rtol=1e-4
        )


# ---- batches -------------------------------------------------------------------------------------------------


def test_micro_batches_hold_everything_once_within_the_budget(vlm):
    rollouts = make_rollouts(vlm, groups=6, size=4)
    random.Random(2).shuffle(rollouts)
    for budget in (1, 70, 150, 400):
        batches = micro_batches(rollouts, budget)
        assert sorted(map(id, (r for rows in batches for row in rows for r in row))) == sorted(
            map(id, rollouts)
        )
        assert all(len({id(r.prompt) for r in row}) == 1 for rows in batches for row in rows)
        assert all(
            len({id(row[0].prompt) for row in rows}) == len(rows) for rows in batches
        )  # each prompt once
        assert all(
            sum(map(row_length, rows)) <= budget or len(rows) == len(rows[0]) == 1
            for rows in batches
        )
        for one, two in zip(batches, batches[1:]):  # and it is used
            next_one = two[0][0]
            again = 0 if one[-1][0].prompt is next_one.prompt else len(next_one.prompt.tokens)
            assert sum(map(row_length, one)) + again + len(next_one.tokens) > budget
    assert len(micro_batches(rollouts, 10**9)) == 1 and len(micro_batches(rollouts, 10**9)[0]) == 6


def test_mini_batches_are_whole_groups_of_even_size():
    rollouts = [Rollout(None, [1], [0.0], group=g) for g in range(10) for _ in range(2)]
    sizes = lambda n: [len(m) // 2 for m in mini_batches(rollouts, n)]  # noqa: E731
    assert sizes(None) == [10] and sizes(10) == [10] and sizes(99) == [10] and sizes(5) == [5, 5]
    assert sizes(4) == [4, 3, 3] and sizes(1) == [1] * 10
    assert [r for m in mini_batches(rollouts, 4) for r in m] == rollouts


# ---- the step ------------------------------------------------------------------------------------------------


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
        stats = train_step(
            vlm, reference, rollouts, optimizer, kl_coef=0.5, max_grad_norm=1e9, token_budget=budget
        )
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
    vlm.load_state(
        {name: weight + 0.05 * step for (name, weight), step in zip(state.items(), last)}
    )
    vlm.model.zero_grad()
    for r in fresh:
        logp = slow_logps(vlm, r)[0][None]
        policy_loss(
            logp,
            before[id(r)][None],
            None,
            torch.tensor([r.advantage]),
            torch.ones_like(logp),
            denominator=count,
        )[0].backward()
    torch.testing.assert_close(clip(gradients(vlm)), clip(optimizer.seen[1]), atol=1e-4, rtol=1e-3)


def clip(gradient):
    return gradient * min(1.0, 1.0 / gradient.norm().item())


def split_like(state, flat):
    return [
        part.view_as(w)
        for part, w in zip(flat.split([w.numel() for w in state.values()]), state.values())
    ]


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
    rollouts[1].full_logps[0] += 0.25
    stats = train_step(vlm, vlm, rollouts, Recorder(vlm))
    assert stats["logp_gap"] == pytest.approx(0.25, abs=1e-4)
    assert stats["logp_gap_mean"] == pytest.approx(0.25 / stats["tokens"], abs=1e-4)


def test_everything_is_scored_at_the_sampling_temperature(vlm):
    rollouts = make_rollouts(vlm, groups=2, size=2)
    for r, logp in zip(rollouts, score(vlm, rollouts, temperature=0.6)):
        r.full_logps = logp.tolist()
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
