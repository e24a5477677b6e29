"""What a run says on the terminal: the line of a step, a sample, a cold start, bars."""

import sys
import time
from collections import Counter
from functools import wraps

from tqdm import tqdm

from support import parallel

# What the line of a step shows of each role's rewards: means over all replies, and means over those
# of which this is true.
FIGURES = {
    "proposer": "reward valid | valid | rendered solvability difficulty easy_hard type diversity",
    "coder": "reward rendered | rendered | solvability difficulty",
    "solver": "reward accuracy format | reward |",
}
# What it calls them.
SHORT_NAMES = {"unread": "unread", "cut": "truncated", "render": "rendered", "s": "solvability"}
SHORT_NAMES |= {"d": "difficulty", "accuracy": "accuracy", "format": "format"}
# With a smaller share of valid proposals or drawn codes, or a larger one of groups without signal,
# a step teaches next to nothing. And what may help.
FEW, SILENT = 0.25, 0.5
WARMER = "a larger base, longer replies, --language python, or a prompts.json of your own"
LINES = 4  # of a sample, at most

# ---- the time of a step, by what it is spent on --------------------------------------------------

KINDS = ("sampling", "drawing", "training")
SPENT = Counter()  # seconds of each kind, and "tokens" that were sampled, since the step began


def timed(kind: str):
    """Counts the time of a function, and the tokens of the replies [P][G] that sampling gives."""

    def wrap(function):
        @wraps(function)
        def counted(*arguments, **more):
            begun = time.perf_counter()
            result = function(*arguments, **more)
            SPENT[kind] += time.perf_counter() - begun
            if kind == "sampling":
                SPENT["tokens"] += sum(len(reply.tokens) for group in result for reply in group)
            return result

        return counted

    return wrap


def spent() -> dict:
    """The step's record of it."""
    figures = {f"{kind}_seconds": SPENT[kind] for kind in KINDS}
    rate = SPENT["tokens"] / SPENT["sampling"] if SPENT["sampling"] else 0.0
    return figures | {"tokens_per_second": rate}


# ---- lines ---------------------------------------------------------------------------------------


def short(x: float, digits=2) -> str:
    """Rounded, without the zero before the point: as wide for all shares.

    >>> short(0.5), short(-0.054), short(1), short(1.234), short(0.0123, 3)
    ('.50', '-.05', '1.0', '1.23', '.012')
    """
    if abs(x) < 0.995:
        return f"{x:.{digits}f}".replace("0.", ".", 1)
    return f"{x:.{digits - 1 if x <= 1 else digits}f}"


def step_line(title: str, r: dict) -> str:
    """The figures of one step that one wants to see at once, in 100 columns; metrics.jsonl has all.

    >>> r = dict(reward=0.5, accuracy=0.45, unread=0, truncated=0.1, kl=0.01, seconds=2, updates=1)
    >>> r |= dict(sampling_seconds=1, drawing_seconds=0, training_seconds=1, tokens_per_second=1540)
    >>> print(step_line("it 1 solver 3/20", r))
    it 1 solver 3/20 R=.50 unread=.00 cut=.10 accuracy=.45 kl=.010 2.0s 50+0+50 1.5k/s
    """
    words = [title, f"R={short(r['reward'])}"]
    words += [f"{name}={short(r[key])}" for name, key in SHORT_NAMES.items() if key in r]
    if r["updates"]:
        words += [f"kl={short(r['kl'], 3)}"]
    else:
        words += ["skipped" if r.get("skipped") else "A=0"]
    digits = 1 if r["seconds"] < 100 else 0
    shares = [100 * r[f"{kind}_seconds"] / max(r["seconds"], 1e-9) for kind in KINDS]
    split, rate = "+".join(f"{share:.0f}" for share in shares), r["tokens_per_second"]
    words += [f"{r['seconds']:.{digits}f}s", split]
    return " ".join([*words, f"{rate / 1000:.1f}k/s" if rate >= 1000 else f"{rate:.0f}/s"])


def sample(text: str) -> str:
    """The first lines of a reply, each within the terminal.

    >>> print(sample("<svg>\\n<a/>\\n<b/>\\n<c/>\\n<d/>\\n</svg>"))
        | <svg>
        | <a/>
        | <b/>
        | <c/>
        | ... 2 more lines
    """
    lines = text.splitlines() or [""]
    shown = [line if len(line) < 94 else f"{line[:89]} ..." for line in lines[:LINES]]
    if len(lines) > LINES:
        shown.append(f"... {len(lines) - LINES} more lines")
    return "\n".join(f"    | {line}" for line in shown)


def cold(record: dict) -> str:
    """Why a step has taught next to nothing; nothing, if it has.

    >>> cold({"valid": 0.2, "zero_variance": 0.1}), cold({"zero_variance": 0.4, "rendered": 0.25})
    ('20% of the proposals are valid', '')
    """
    if record.get("valid", 1) < FEW:
        return f"{record['valid']:.0%} of the proposals are valid"
    if record.get("rendered", 1) < FEW:
        return f"{record['rendered']:.0%} of the codes draw a picture"
    if record.get("zero_variance", 0) > SILENT:
        return f"in {record['zero_variance']:.0%} of the groups all rewards are equal"
    return ""


# ---- bars ----------------------------------------------------------------------------------------


class Lines:
    """Where no terminal is: each state of a bar is a line of its own."""

    def write(self, text):
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self):
        sys.stderr.flush()


def bar(items=None, title=None, unit="it", shown=True, **more):
    """tqdm's, of rank 0; without a terminal, a line every minute."""
    if not sys.stderr.isatty():
        more |= dict(file=Lines(), mininterval=60, maxinterval=60, delay=60)
    off = not shown or parallel.rank() > 0
    return tqdm(items, title, ncols=100, unit=unit, leave=False, disable=off, **more)
