"""Log-probs of reply tokens and the gradient of a loss made of them, from hidden states.

    z = h W^T / temperature         h: hidden states [n, D], W: lm_head [V, D], z: logits [n, V]
    logp = z[target] - lse          lse = log sum exp z
    entropy = lse - E[z]

The plain way holds z several times over: 2,048 tokens of 151,936 words are 1.2 GB each time. The
fused way takes some tokens at a time (a chunk), and the gradient while their logits are at hand:

    g = d loss / d logp             the caller's loss, asked for a chunk at a time
    dz = g (onehot(target) - exp(z - lse)) / temperature
    dh = dz W                       dW = sum of dz^T h over the chunks

Computed again in the backward pass the logits would cost a fourth product of this size.
"""

import torch


def plain_logps_and_loss(hidden, lm_head, targets, temperature, objective):
    """The obvious twin of `logps_and_loss`: all logits at once, and autograd."""
    logits = (hidden @ lm_head.T).float() / temperature  # [n, V]
    all_logps = logits.log_softmax(1)
    logp = all_logps.gather(1, targets[:, None])[:, 0]
    entropy = -(all_logps.exp() * all_logps).sum(1)
    return logp.detach(), entropy.detach(), objective(logp, slice(None))


def logps_and_loss(hidden, lm_head, targets, temperature, objective=None, chunk=None):
    """-> logp [n] and entropy [n], which carry no gradient, and the loss, which does.

    hidden [n, D], lm_head [V, D], targets [n]. objective(logp [t], at) -> a loss: it is asked for
    one chunk after the other, logp being those of the tokens `at` (a slice of the n), and the
    losses are added up. None: no loss.
    """
    fused = FusedLoss(hidden, lm_head, targets, temperature, objective is not None, chunk)
    for at, logp in fused.chunks():
        if objective is not None:
            fused.add(objective(logp, at))
    return fused.logp, fused.entropy, fused.loss()


class FusedLoss:
    """The same as a loop in the caller's hands:

    for at, logp in fused.chunks():
        fused.add(a loss made of logp)
    fused.loss().backward()
    """

    def __init__(self, hidden, lm_head, targets, temperature, trains=True, chunk=None):
        """trains: a loss will be added for every chunk. chunk: tokens taken at a time."""
        self.hidden, self.lm_head, self.targets = hidden, lm_head, targets
        self.temperature, self.trains = temperature, trains
        self.chunk = chunk or tokens_at_once(len(lm_head))
        # Under autocast the products run in bf16. Sums of them are kept in float32.
        device = hidden.device
        self.dtype = lm_head.dtype
        if torch.is_autocast_enabled(device.type):
            self.dtype = torch.get_autocast_dtype(device.type)
        self.weight = lm_head.detach().to(self.dtype)
        self.logp, self.entropy = torch.empty(2, len(hidden), device=device)
        self.total = torch.zeros((), device=device)
        if trains:
            # exp(z - top) of the chunk at hand, all of its words.
            size = min(self.chunk, len(hidden)), len(lm_head)
            self.kept = torch.empty(size, device=device)
            self.d_hidden = torch.zeros_like(hidden, dtype=torch.float32)
            self.d_lm_head = None
            if lm_head.requires_grad:  # with LoRA it is frozen
                self.d_lm_head = torch.zeros_like(lm_head, dtype=torch.float32)

    def chunks(self):
        """One chunk after the other -> (at, logp): a slice of the n tokens, their log-probs [t]."""
        for start in range(0, len(self.hidden), self.chunk):
            at = slice(start, start + self.chunk)
            self.look(at)
            self.leaf = self.logp[at].clone().requires_grad_(self.trains)
            yield at, self.leaf

    @torch.no_grad()
    def look(self, at):
        """Log-probs and entropy of a chunk. Its words go by in windows, each with a maximum `top`
        of its own, and lse = log sum exp of the windows' lse."""
        h, targets = self.hidden[at].to(self.dtype), self.targets[at]
        vocabulary, size = len(self.weight), words_at_once(len(h))
        self.windows = [slice(i, i + size) for i in range(0, vocabulary, size)]
        logit, self.tops, lses, means = 0.0, [], [], []
        for words in self.windows:
            z = (h @ self.weight[words].T).float().div_(self.temperature)  # [t, window]
            inside, place = find(targets, words.start, z.shape[1])
            logit = logit + z.gather(1, place)[:, 0] * inside
            top = z.amax(1)
            z.sub_(top[:, None])
            e = torch.exp(z, out=self.kept[: len(h), words] if self.trains else None)
            total = e.sum(1)
            self.tops.append(top)
            lses.append(total.log() + top)
            means.append(z.mul_(e).sum(1) / total + top)  # E[z] of the window
        lses = torch.stack(lses)  # [windows, t]
        self.lse = lses.logsumexp(0)
        self.logp[at] = logit - self.lse
        self.entropy[at] = self.lse - ((lses - self.lse).exp() * torch.stack(means)).sum(0)
        self.at = at

    def add(self, loss):
        """Add the loss of the chunk at hand: one made of the `logp` that came with it."""
        g = torch.autograd.grad(loss, self.leaf)[0] / self.temperature
        self.total += loss.detach()
        self.learn(g)

    @torch.no_grad()
    def learn(self, g):
        """The gradient by this chunk's logits, and from it those by hidden states and lm_head."""
        h, targets = self.hidden[self.at].to(self.dtype), self.targets[self.at]
        for words, top in zip(self.windows, self.tops):
            # -g exp(z - lse), made of the exp(z - top) that was kept.
            dz = self.kept[: len(h), words].mul_((-g * (top - self.lse).exp())[:, None])
            inside, place = find(targets, words.start, dz.shape[1])
            dz = dz.scatter_add_(1, place, (g * inside)[:, None]).to(self.dtype)
            self.d_hidden[self.at] += dz @ self.weight[words]
            if self.d_lm_head is not None:
                sums = self.d_lm_head[words]
                if dz.dtype == sums.dtype:
                    sums.addmm_(dz.T, h)  # no second [window, D]
                else:
                    sums.add_(dz.T @ h)

    def loss(self):
        """The sum of the losses, whose backward pass hands over the gradients that are known."""
        if not self.trains:
            return self.total
        d_hidden, d_lm_head = self.d_hidden.to(self.hidden.dtype), self.d_lm_head
        if d_lm_head is not None:
            d_lm_head = d_lm_head.to(self.lm_head.dtype)
        return KnownGradients.apply(self.hidden, self.lm_head, self.total, d_hidden, d_lm_head)


class KnownGradients(torch.autograd.Function):
    """A number, and its gradients by hidden states and lm_head, computed beforehand."""

    @staticmethod
    def forward(ctx, hidden, lm_head, value, d_hidden, d_lm_head):
        ctx.gradients = d_hidden, d_lm_head
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        # What nobody else holds, autograd takes over without a copy.
        (d_hidden, d_lm_head), ctx.gradients = ctx.gradients, None
        if d_lm_head is not None:
            d_lm_head.mul_(grad)
        return d_hidden.mul_(grad), d_lm_head, None, None, None


def find(targets, first, words):
    """Is each target among the `words` from `first` on [t], and where there [t, 1] (anywhere, if
    not)? Without waiting for the GPU."""
    place = targets - first
    return (place >= 0) & (place < words), place.clamp(0, words - 1)[:, None]


def tokens_at_once(vocabulary):
    """The size of a chunk: 200 MB of float32 logits."""
    return max(1, 50_000_000 // vocabulary)


def words_at_once(tokens):
    """The size of a window: 16 MB of a chunk's logits, but at least 256 words."""
    return max(256, 2**22 // tokens)
