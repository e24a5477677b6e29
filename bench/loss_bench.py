"""Log-probs of the reply tokens, forward and backward: ChunkedLoss against full logits, in turns in one process.

    python bench/loss_bench.py                                     2048 tokens x 151936 words, the shape of Qwen2-VL-2B
    python bench/loss_bench.py --tokens 512 --rounds 3             quicker

Three ways that give the same numbers (checked before anything is timed):

    full       log_softmax of all logits, then gather                        [tokens, vocabulary] several times over
    selective  gather - logsumexp row by row, as TRL's `selective_log_softmax` does: the logits are there, the
               log-softmax is not. (TRL itself where it is installed, otherwise its three lines written out.)
    chunked    ours (grpo.py): logits a chunk of tokens at a time, their gradient taken at once; with the entropy

Memory: the highest peak while one way runs, less what is there before it, less the two gradients that each of them has
to hand over. On CPU it is the process's resident memory, on CUDA the allocator's figure.
"""

import argparse
import ctypes
import gc
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from grpo import ChunkedLoss, tokens_at_once  # noqa: E402

try:
    from trl.trainer.utils import selective_log_softmax

    SELECTIVE = "selective (TRL)"
except ImportError:
    SELECTIVE = "selective"

    def selective_log_softmax(logits, index):  # of float32 logits
        picked = logits.gather(-1, index[:, None])[:, 0]
        return picked - torch.stack(
            [row.logsumexp(-1) for row in logits]
        )  # row by row: no second [tokens, vocabulary]


def full(hidden, weight, targets, temperature, objective):
    logits = (hidden @ weight.T).float() / temperature
    logp = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return logp.detach(), objective(logp, slice(None))


def selective(hidden, weight, targets, temperature, objective):
    logp = selective_log_softmax((hidden @ weight.T).float() / temperature, targets)
    return logp.detach(), objective(logp, slice(None))


def chunked(hidden, weight, targets, temperature, objective):
    logp, _, loss = ChunkedLoss.apply(
        hidden, weight, targets, temperature, objective, tokens_at_once(len(weight))
    )
    return logp, loss


class Peak:
    """with Peak(device) as peak: ...; peak.bytes: the highest point above where it began."""

    def __init__(self, device):
        self.cuda = device == "cuda"

    def _status(self, field):
        line = next(
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(field)
        )
        return int(line.split()[1]) * 1024

    def __enter__(self):
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what the way before freed goes back
            Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the old peak
            self.before = self._status("VmRSS")
        return self

    def __exit__(self, *_):
        if self.cuda:
            torch.cuda.synchronize()
        self.bytes = (
            torch.cuda.max_memory_allocated() if self.cuda else self._status("VmHWM")
        ) - self.before


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default, says in (
        ("tokens", 2048, "reply tokens"),
        ("vocabulary", 151936, "words"),
        ("hidden", 1536, "hidden size"),
        ("rounds", 5, "how often each way is run; medians are shown"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{says} [{default}]")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    hidden = torch.randn(args.tokens, args.hidden, device=device, dtype=dtype, requires_grad=True)
    weight = (
        (torch.randn(args.vocabulary, args.hidden, device=device) / args.hidden**0.5)
        .to(dtype)
        .requires_grad_()
    )
    targets, upstream = (
        torch.randint(args.vocabulary, (args.tokens,), device=device),
        torch.randn(args.tokens, device=device),
    )
    gradients = sum(t.numel() * t.element_size() for t in (hidden, weight))
    ways, seconds, peaks, found = (
        {"full": full, SELECTIVE: selective, "chunked": chunked},
        {},
        {},
        {},
    )
    for number in range(args.rounds + 1):  # the first round warms up, and is compared
        for name, way in ways.items():
            hidden.grad = weight.grad = None
            with Peak(device) as peak:
                begun = time.perf_counter()
                logp, loss = way(
                    hidden, weight, targets, 0.9, lambda logp, at: (logp * upstream[at]).sum()
                )
                loss.backward()
                if device == "cuda":
                    torch.cuda.synchronize()
                taken = time.perf_counter() - begun
            if number:
                seconds.setdefault(name, []).append(taken)
                peaks.setdefault(name, []).append(peak.bytes - gradients)
            else:  # of the large gradient some rows: keeping it thrice is no bench
                found[name] = [
                    t.detach().float().clone() for t in (logp, hidden.grad, weight.grad[:2000])
                ]
            del logp, loss
    largest = {
        name: max(
            ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found[name], found["full"])
        )
        for name in ways
    }
    print(
        f"{args.tokens} tokens x {args.vocabulary} words, hidden size {args.hidden}, {dtype} on {device}, "
        f"{torch.get_num_threads()} threads, {args.rounds} rounds\n"
    )
    print("| way             | seconds | x full | extra MB | of full | largest difference |")
    print("|:----------------|--------:|-------:|---------:|--------:|-------------------:|")
    time_, memory = (
        {name: statistics.median(values) for name, values in kind.items()}
        for kind in (seconds, peaks)
    )
    for name in ways:
        print(
            f"| {name:15} | {time_[name]:7.3f} | {time_[name] / time_['full']:6.2f} | {memory[name] / 1e6:8.0f} | "
            f"{memory[name] / memory['full']:7.1%} | {largest[name]:18.1e} |"
        )


if __name__ == "__main__":
    main()
