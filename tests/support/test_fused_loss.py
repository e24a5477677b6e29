"""The fused loss against its plain twin, and what it never holds."""

import pytest
import torch

from support import fused_loss
from support.fused_loss import logps_and_loss, plain_logps_and_loss


@pytest.mark.parametrize("chunk, words", [(1, 50), (7, 25), (5, 7), (16, 1), (100, 100)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("frozen", [False, True])
def test_fused_is_plain(chunk, words, temperature, frozen, monkeypatch):
    """Chunks of tokens, windows of words: values, and gradients of hidden states and lm_head."""
    torch.manual_seed(0)
    monkeypatch.setattr(fused_loss, "words_at_once", lambda tokens: words)
    targets, upstream = torch.randint(50, (16,)), torch.randn(16)
    hidden = torch.randn(16, 8, requires_grad=True)
    lm_head = torch.randn(50, 8, requires_grad=not frozen)
    objective = lambda logp, at: (logp.square() * upstream[at]).sum()
    logp, entropy, loss = logps_and_loss(hidden, lm_head, targets, temperature, objective, chunk)
    (3 * loss).backward()
    assert not entropy.requires_grad and not logp.requires_grad

    hidden2 = hidden.detach().clone().requires_grad_()
    lm_head2 = lm_head.detach().clone().requires_grad_()
    logp2, entropy2, loss2 = plain_logps_and_loss(
        hidden2, lm_head2, targets, temperature, objective
    )
    (3 * loss2).backward()
    near = dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logp, logp2, **near)
    torch.testing.assert_close(entropy, entropy2, **near)
    torch.testing.assert_close(loss, loss2, **near)
    scale = hidden2.grad.abs().max()
    torch.testing.assert_close(hidden.grad / scale, hidden2.grad / scale, **near)
    if frozen:
        assert lm_head.grad is None
    else:
        torch.testing.assert_close(lm_head.grad / scale, lm_head2.grad / scale, **near)

    # Scored, not trained.
    scored, entropy3, loss = logps_and_loss(hidden, lm_head, targets, temperature, None, chunk)
    torch.testing.assert_close(scored, logp2, **near)
    assert torch.equal(entropy, entropy3) and not loss.requires_grad


def test_the_plain_twin_by_hand():
    """Two words, of which the first has logit 2 / 0.5 = 4 and the other 0."""
    hidden, lm_head = torch.tensor([[1.0]]), torch.tensor([[2.0], [0.0]])
    logp, entropy, loss = plain_logps_and_loss(
        hidden, lm_head, torch.tensor([1]), 0.5, lambda logp, at: 3 * logp.sum()
    )
    p = torch.tensor([4.0, 0.0]).softmax(0)
    torch.testing.assert_close(logp, p[1:].log())
    torch.testing.assert_close(entropy, -(p * p.log()).sum()[None])
    torch.testing.assert_close(loss, 3 * p[1].log())


def test_the_gradient_of_a_bf16_lm_head_is_summed_in_float32():
    """FSDP hands over a bf16 copy of lm_head: many chunks must round no more than one does."""
    torch.manual_seed(0)
    hidden = torch.randn(512, 16).bfloat16().requires_grad_()
    lm_head = torch.randn(40, 16).bfloat16().requires_grad_()
    targets, found = torch.arange(512) % 40, {}
    for chunk in (4, 512):
        lm_head.grad = None
        objective = lambda logp, at: logp.sum()
        logps_and_loss(hidden, lm_head, targets, 1.0, objective, chunk)[2].backward()
        found[chunk] = lm_head.grad.float()
    assert (found[4] - found[512]).abs().max() <= 2**-7 * found[512].abs().max()


def test_logits_of_all_tokens_never_exist(monkeypatch):
    largest = 0
    original = torch.Tensor.float

    def watch(tensor):  # every window of logits passes here
        nonlocal largest
        largest = max(largest, tensor.numel())
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "float", watch)
    hidden = torch.randn(64, 4, requires_grad=True)
    lm_head = torch.randn(100, 4, requires_grad=True)
    seen = []

    def objective(logp, at):
        seen.append(len(logp))
        return logp.sum()

    targets = torch.zeros(64, dtype=torch.long)
    logps_and_loss(hidden, lm_head, targets, 1.0, objective, 24)[2].backward()
    assert largest == 24 * 100 and seen == [24, 24, 16]
