"""The gradient of the loss by hidden states and lm_head, chunk by chunk, against autograd."""

import pytest
import torch

import grpo
from grpo import LossSettings, loss_gradients, policy_loss
from support.parallel import KnownGradients


def plain(hidden, lm_head, targets, temperature, advantages, old, ref, settings):
    """The obvious twin: all logits at once."""
    all_logps = ((hidden @ lm_head.T).float() / temperature).log_softmax(1)
    logp = all_logps.gather(1, targets[:, None])[:, 0]
    entropy = -(all_logps.exp() * all_logps).sum(1)
    old = logp.detach() if old is None else old
    loss, sums = policy_loss(logp, old, logp.detach() if ref is None else ref, advantages, settings)
    return loss, logp.detach(), sums | {"entropy": entropy.sum()}


def case(frozen=False, dtype=torch.float32, n=16):
    torch.manual_seed(0)
    hidden = torch.randn(n, 8).to(dtype).requires_grad_()
    lm_head = torch.randn(50, 8).to(dtype).requires_grad_(not frozen)
    return hidden, lm_head, torch.randint(50, (n,))


def in_slices(size):
    return lambda count, lm_head: [slice(i, i + size) for i in range(0, count, size)]


@pytest.mark.parametrize("size", [1, 7, 16, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_chunks_are_the_whole(size, temperature, frozen, first, monkeypatch):
    """Values, statistics and gradients; in a first update, and with old and reference log-probs on
    both sides of the clip."""
    monkeypatch.setattr(grpo, "chunks", in_slices(size))
    hidden, lm_head, targets = case(frozen)
    advantages, settings = torch.randn(16), LossSettings(kl=0.1)
    old = ref = None
    if not first:
        old, ref = torch.randn(2, 16) - 6
    facts = targets, temperature, advantages, old, ref, settings
    logp, sums, *gradients = loss_gradients(hidden, lm_head, *facts)
    (3 * KnownGradients.apply(hidden, lm_head, sums["loss"], *gradients)).backward()

    hidden2 = hidden.detach().clone().requires_grad_()
    lm_head2 = lm_head.detach().clone().requires_grad_()
    loss, logp2, sums2 = plain(hidden2, lm_head2, *facts)
    (3 * loss).backward()
    near = dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logp, logp2, **near)
    assert sums.keys() == sums2.keys() and not logp.requires_grad
    for name in sums:
        torch.testing.assert_close(sums[name], sums2[name], atol=1e-4, rtol=1e-5)
    scale = hidden2.grad.abs().max()
    assert scale > 0.1
    torch.testing.assert_close(hidden.grad / scale, hidden2.grad / scale, **near)
    if frozen:
        assert lm_head.grad is None and gradients[1] is None
    else:
        torch.testing.assert_close(lm_head.grad / scale, lm_head2.grad / scale, **near)


def test_two_words_by_hand():
    """Of two words the first has logit 2 / 0.5 = 4 and the other, which was drawn, 0."""
    logp, entropy, p = grpo.predict(
        torch.tensor([[1.0]]), torch.tensor([[2.0], [0.0]]), torch.tensor([1]), 0.5
    )
    expected = torch.tensor([4.0, 0.0]).softmax(0)
    torch.testing.assert_close(p[0], expected)
    torch.testing.assert_close(logp, expected[1:].log())
    torch.testing.assert_close(entropy, -(expected * expected.log()).sum()[None])


def test_the_gradient_of_a_bf16_lm_head_is_summed_in_float32(monkeypatch):
    """FSDP hands over a bf16 copy of lm_head: many chunks must round no more than one does."""
    found = {}
    for size in (4, 512):
        monkeypatch.setattr(grpo, "chunks", in_slices(size))
        hidden, lm_head, targets = case(dtype=torch.bfloat16, n=512)
        facts = targets, 1.0, -torch.ones(512), None, None, LossSettings()
        _, sums, *gradients = loss_gradients(hidden, lm_head, *facts)
        assert gradients[1].dtype == torch.float32
        KnownGradients.apply(hidden, lm_head, sums["loss"], *gradients).backward()
        found[size] = lm_head.grad.float()
    assert (found[4] - found[512]).abs().max() <= 2**-7 * found[512].abs().max()


def test_logits_of_all_tokens_never_exist(monkeypatch):
    """A slice holds what it may: 25 million numbers on a CPU."""
    largest, original = [], torch.Tensor.float

    def watch(tensor):  # all logits pass here
        largest.append(tensor.numel())
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "float", watch)
    lm_head, targets = torch.randn(500_000, 1), torch.zeros(120, dtype=torch.long)
    facts = 1.0, torch.ones(120), None, None, LossSettings()
    loss_gradients(torch.randn(120, 1), lm_head, targets, *facts)
    assert largest == [25_000_000, 25_000_000, 10_000_000]
