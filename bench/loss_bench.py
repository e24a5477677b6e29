"""Log-probs of reply tokens, forward and backward: in chunks against full logits, in turns.

    python bench/loss_bench.py                            2048 tokens x 151936 words: Qwen2-VL-2B
    python bench/loss_bench.py --tokens 512 --rounds 3    quicker

Three ways that give the same numbers (checked before anything is timed):

    full       log_softmax of all logits, then gather: [tokens, vocabulary] several times over
    selective  gather - logsumexp, token by token, as TRL's `selective_log_softmax` does: the
               logits are there, the log-softmax is not. (TRL itself where it is installed,
               otherwise its three lines written out.)
    chunks     ours (`Logps` of support/packed.py): some tokens at a time, and in the backward pass
               once more, some words at a time; with the entropy

Memory: the highest peak while one way runs, less what is there before it, less the two gradients
that each of them has to hand over. On a CPU it is the process's resident memory, on CUDA the
allocator's figure.
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
from support.packed import Logps

try:
    from trl.trainer.utils import selective_log_softmax

    SELECTIVE = "selective (TRL)"
except ImportError:
    SELECTIVE = "selective"

    def selective_log_softmax(logits, index):  # of float32 logits
        picked = logits.gather(-1, index[:, None])[:, 0]
        # Token by token, so that there is no second [tokens, vocabulary].
        return picked - torch.stack([each.logsumexp(-1) for each in logits])


def full(hidden, lm_head, targets, temperature, weights):
    logits = (hidden @ lm_head.T).float() / temperature
    logp = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return logp.detach(), (logp * weights).sum()


def selective(hidden, lm_head, targets, temperature, weights):
    logp = selective_log_softmax((hidden @ lm_head.T).float() / temperature, targets)
    return logp.detach(), (logp * weights).sum()


def chunks(hidden, lm_head, targets, temperature, weights):
    logp, _ = Logps.apply(hidden, targets, lm_head, temperature)
    return logp.detach(), (logp * weights).sum()


class Peak:
    """with Peak(device) as peak: ...; peak.bytes: the highest point above where it began."""

    def __init__(self, device):
        self.cuda = device == "cuda"

    def _status(self, field):
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith(field))
        return int(line.split()[1]) * 1024

    def __enter__(self):
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            # What the way before freed goes back, and the kernel forgets the old peak.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._status("VmRSS")
        return self

    def __exit__(self, *_):
        if self.cuda:
            torch.cuda.synchronize()
            highest = torch.cuda.max_memory_allocated()
        else:
            highest = self._status("VmHWM")
        self.bytes = highest - self.before


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default, says in (
        ("tokens", 2048, "reply tokens"),
        ("vocabulary", 151936, "words"),
        ("hidden", 1536, "hidden size"),
        ("rounds", 5, "how often each way is run; medians are shown"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{says} [{default}]")
    return parser.parse_args()


def compare(args, device, dtype):
    """-> seconds, extra bytes, and largest relative difference to `full`, of each way"""
    torch.manual_seed(0)
    hidden = torch.randn(args.tokens, args.hidden, device=device, dtype=dtype, requires_grad=True)
    lm_head = torch.randn(args.vocabulary, args.hidden, device=device) / args.hidden**0.5
    lm_head = lm_head.to(dtype).requires_grad_()
    targets = torch.randint(args.vocabulary, (args.tokens,), device=device)
    upstream = torch.randn(args.tokens, device=device)
    gradients = sum(t.numel() * t.element_size() for t in (hidden, lm_head))

    ways = {"full": full, SELECTIVE: selective, "chunks": chunks}
    seconds, peaks, found = {name: [] for name in ways}, {name: [] for name in ways}, {}
    # The first round warms up, and is compared.
    for number in range(args.rounds + 1):
        for name, way in ways.items():
            hidden.grad = lm_head.grad = None
            with Peak(device) as peak:
                begun = time.perf_counter()
                logp, loss = way(hidden, lm_head, targets, 0.9, upstream)
                loss.backward()
                if device == "cuda":
                    torch.cuda.synchronize()
                taken = time.perf_counter() - begun
            if number:
                seconds[name].append(taken)
                peaks[name].append(peak.bytes - gradients)
            else:
                # Of the large gradient 2,000 words: keeping it thrice is no bench.
                results = logp, hidden.grad, lm_head.grad[:2000]
                found[name] = [t.detach().float().clone() for t in results]
            del logp, loss
    apart = {}
    for name in ways:
        pairs = zip(found[name], found["full"])
        apart[name] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    return seconds, peaks, apart


def main():
    args = read_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    seconds, peaks, apart = compare(args, device, dtype)
    print(
        f"{args.tokens} tokens x {args.vocabulary} words, hidden size {args.hidden}, {dtype} "
        f"on {device}, {torch.get_num_threads()} threads, {args.rounds} rounds\n"
    )
    print("| way             | seconds | x full | extra MB | of full | largest difference |")
    print("|:----------------|--------:|-------:|---------:|--------:|-------------------:|")
    time_ = {name: statistics.median(values) for name, values in seconds.items()}
    memory = {name: statistics.median(values) for name, values in peaks.items()}
    for name in seconds:
        print(
            f"| {name:15} | {time_[name]:7.3f} | {time_[name] / time_['full']:6.2f} "
            f"| {memory[name] / 1e6:8.0f} | {memory[name] / memory['full']:7.1%} "
            f"| {apart[name]:18.1e} |"
        )


if __name__ == "__main__":
    main()
