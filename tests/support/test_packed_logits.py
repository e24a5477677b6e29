"""Log-probs and gradients a chunk of tokens at a time, against autograd with all logits at once."""

import weakref

import pytest
import torch

from support import packed
from support.packed import Logits


def plain(hidden, lm_head, targets, temperature):
    """The obvious twin -> log-probs and entropies [n]"""
    all_logps = ((hidden @ lm_head.T).float() / temperature).log_softmax(1)
    logp = all_logps.gather(1, targets[:, None])[:, 0]
    return logp, -(all_logps.exp() * all_logps).sum(1)


def chunked(hidden, lm_head, targets, temperature, loss_of):
    """-> log-probs, entropies, and the loss: the sum of loss_of(log-probs, at) over the chunks"""
    logits = Logits(hidden, targets, lm_head, temperature)
    for at, logp in logits.chunks():
        logits.add(loss_of(logp, at))
    return logits.logp, logits.entropy, logits.loss()


@pytest.mark.parametrize("size", [1, 7, 16, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_are_the_whole(size, temperature, frozen, monkeypatch):
    """Values, and gradients by hidden states and lm_head."""
    torch.manual_seed(0)
    monkeypatch.setitem(packed.LOGITS, "cpu", 50 * size)
    targets, upstream = torch.randint(50, (16,)), torch.randn(16)
    hidden = torch.randn(16, 8, requires_grad=True)
    lm_head = torch.randn(50, 8, requires_grad=not frozen)

    def loss_of(logp, at):
        return (logp.square() * upstream[at]).sum()

    logp, entropy, loss = chunked(hidden, lm_head, targets, temperature, loss_of)
    (3 * loss).backward()
    assert not entropy.requires_grad and not logp.requires_grad

    hidden2 = hidden.detach().clone().requires_grad_()
    lm_head2 = lm_head.detach().clone().requires_grad_()
    logp2, entropy2 = plain(hidden2, lm_head2, targets, temperature)
    loss2 = loss_of(logp2, slice(None))
    (3 * loss2).backward()
    near = dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logp, logp2.detach(), **near)
    torch.testing.assert_close(entropy, entropy2.detach(), **near)
    torch.testing.assert_close(loss, loss2, **near)
    scale = hidden2.grad.abs().max()
    torch.testing.assert_close(hidden.grad / scale, hidden2.grad / scale, **near)
    if frozen:
        assert lm_head.grad is None
    else:
        torch.testing.assert_close(lm_head.grad / scale, lm_head2.grad / scale, **near)

    # Scored, not trained.
    scored, entropy3 = Logits(hidden, targets, lm_head, temperature).logps()
    assert torch.equal(scored, logp) and torch.equal(entropy, entropy3)


def test_two_words_by_hand():
    """Of two words the first has logit 2 / 0.5 = 4 and the other, which was drawn, 0."""
    hidden, lm_head = torch.tensor([[1.0]]), torch.tensor([[2.0], [0.0]])
    logp, entropy = Logits(hidden, torch.tensor([1]), lm_head, 0.5).logps()
    p = torch.tensor([4.0, 0.0]).softmax(0)
    torch.testing.assert_close(logp, p[1:].log())
    torch.testing.assert_close(entropy, -(p * p.log()).sum()[None])


def test_the_gradient_of_a_bf16_lm_head_is_summed_in_float32(monkeypatch):
    """FSDP hands over a bf16 copy of lm_head: many chunks must round no more than one does."""
    torch.manual_seed(0)
    hidden = torch.randn(512, 16).bfloat16().requires_grad_()
    lm_head = torch.randn(40, 16).bfloat16().requires_grad_()
    targets, found = torch.arange(512) % 40, {}
    for size in (4, 512):
        monkeypatch.setitem(packed.LOGITS, "cpu", 40 * size)
        lm_head.grad = None
        chunked(hidden, lm_head, targets, 1.0, lambda logp, at: logp.sum())[2].backward()
        found[size] = lm_head.grad.float()
    assert (found[4] - found[512]).abs().max() <= 2**-7 * found[512].abs().max()


def test_logits_of_all_tokens_never_exist(monkeypatch):
    """A chunk holds what it may: 25 million numbers on a CPU."""
    largest, seen, original = [], [], torch.Tensor.float

    def watch(tensor):  # all logits pass here
        largest.append(tensor.numel())
        return original(tensor)

    def loss_of(logp, at):
        seen.append(len(logp))
        return logp.sum()

    monkeypatch.setattr(torch.Tensor, "float", watch)
    lm_head, targets = torch.randn(500_000, 1), torch.zeros(120, dtype=torch.long)
    chunked(torch.randn(120, 1), lm_head, targets, 1.0, loss_of)
    assert largest == [25_000_000, 25_000_000, 10_000_000] and seen == [50, 50, 20]


def test_probabilities_of_a_chunk_do_not_outlive_it(monkeypatch):
    """They are as large as the logits of the next one, which are made in their place."""
    held, alive, original = [], [], torch.Tensor.logsumexp

    def watch(z, dim):  # logits are there, their probabilities not yet
        alive.append(sum(p() is not None for p in held))
        return original(z, dim)

    monkeypatch.setattr(torch.Tensor, "logsumexp", watch)
    monkeypatch.setitem(packed.LOGITS, "cpu", 100)
    lm_head, targets = torch.randn(10, 4, requires_grad=True), torch.zeros(40, dtype=torch.long)
    logits = Logits(torch.randn(40, 4), targets, lm_head, 1.0)
    for _, logp in logits.chunks():
        held.append(weakref.ref(logits.p))
        logits.add(logp.sum())
    assert alive == [0, 0, 0, 0] and len(held) == 4
