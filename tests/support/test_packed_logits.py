"""Log-probs and their gradients in chunks, against autograd with all logits at once."""

import pytest
import torch

from support import packed
from support.packed import Logps


def plain(hidden, targets, lm_head, temperature):
    """The obvious twin -> log-probs and entropies [n]"""
    all_logps = ((hidden @ lm_head.T).float() / temperature).log_softmax(1)
    logp = all_logps.gather(1, targets[:, None])[:, 0]
    return logp, -(all_logps.exp() * all_logps).sum(1)


def near(found, wanted, scale=1):
    torch.testing.assert_close(found / scale, wanted / scale, atol=1e-5, rtol=1e-5)


# Chunks of a token and of three words; with a rest; all at once.
@pytest.mark.parametrize("logits", [50, 7 * 50, 16 * 50, 100 * 50])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_are_the_whole(logits, temperature, frozen, monkeypatch):
    """Values, and gradients by hidden states and lm_head."""
    torch.manual_seed(0)
    monkeypatch.setitem(packed.LOGITS, "cpu", logits)
    targets, upstream = torch.randint(50, (16,)), torch.randn(16)
    hidden, lm_head = torch.randn(16, 8), torch.randn(50, 8)
    found = []
    for way in (Logps.apply, plain):
        h, w = hidden.clone().requires_grad_(), lm_head.clone().requires_grad_(not frozen)
        logp, entropy = way(h, targets, w, temperature)
        (logp.square() * upstream).sum().backward()
        found.append((logp, entropy, h.grad, w.grad))
    (logp, entropy, dh, dw), (logp2, entropy2, dh2, dw2) = found
    near(logp, logp2), near(entropy, entropy2)
    assert not entropy.requires_grad
    near(dh, dh2, scale=dh2.abs().max())
    if frozen:
        assert dw is None
    else:
        near(dw, dw2, scale=dw2.abs().max())
    # Scored, not trained.
    with torch.no_grad():
        assert torch.equal(Logps.apply(hidden, targets, lm_head, temperature)[0], logp)


def test_two_words_by_hand():
    """Of two words the first has logit 2 / 0.5 = 4 and the other, which was drawn, 0."""
    hidden, lm_head = torch.tensor([[1.0]]), torch.tensor([[2.0], [0.0]])
    logp, entropy = Logps.apply(hidden, torch.tensor([1]), lm_head, 0.5)
    p = torch.tensor([4.0, 0.0]).softmax(0)
    torch.testing.assert_close(logp, p[1:].log())
    torch.testing.assert_close(entropy, -(p * p.log()).sum()[None])


def test_in_bf16_many_chunks_round_no_more_than_one(monkeypatch):
    """FSDP hands over a bf16 copy of lm_head, and with adapters hidden states are bf16 as well."""
    torch.manual_seed(0)
    hidden, lm_head = torch.randn(512, 16).bfloat16(), torch.randn(400, 16).bfloat16()
    targets, found = torch.arange(512) % 400, {}
    for size in (4, 512):
        monkeypatch.setitem(packed.LOGITS, "cpu", 400 * size)
        h, w = hidden.clone().requires_grad_(), lm_head.clone().requires_grad_()
        Logps.apply(h, targets, w, 1.0)[0].sum().backward()
        found[size] = h.grad, w.grad
    for many, one in zip(found[4], found[512]):
        assert many.dtype == torch.bfloat16
        assert (many.float() - one.float()).abs().max() <= 2**-7 * one.float().abs().max()


def test_logits_of_all_tokens_never_exist(monkeypatch):
    """A chunk holds what it may, 25 million numbers on a CPU: forward, and once more backward."""
    sizes, original = [], torch.Tensor.float

    def watch(tensor):  # all logits pass here
        sizes.append(tuple(tensor.shape))
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "float", watch)
    lm_head = torch.randn(500_000, 1, requires_grad=True)
    Logps.apply(torch.randn(120, 1), torch.zeros(120).long(), lm_head, 1.0)[0].sum().backward()
    forward = [(50, 500_000), (50, 500_000), (20, 500_000)]
    assert sizes == forward + [(120, 208_333), (120, 208_333), (120, 83_334)]
