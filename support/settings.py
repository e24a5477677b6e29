"""Every number of a run, presets for machines, and the command line, which is derived from both.

The defaults are the paper's (implementation details: hyper-parameters). Rewards, filters, the
numbers of codes, answers and rollouts, and the loss are the same in every preset: presets change
how much is made, and how much memory that takes.
"""

import argparse
import dataclasses
import inspect
import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """One sentence per field: it is also the help text of the field's flag."""

    model: str = "tiny"  # tiny, a short name such as Qwen2-VL-2B, a folder, or a hub id
    out: str = ""  # folder of the run; empty: runs/<model>-<language>-seed<seed>
    language: str = "svg"  # what the Coder writes: svg, python, or mixed (taking turns)
    iterations: int = 3  # how often all three roles are trained; 0: only measure the base
    seed: int = 0  # of everything that is sampled
    # Experiments
    without: tuple = ()  # reward terms or filters to do without, repeatable
    start_proposer: str = ""  # the model or folder that the Proposer starts from; empty: --model
    start_coder: str = ""  # the same for the Coder
    start_solver: str = ""  # the same for the Solver
    explain: bool = False  # write explain.html: one step of each phase in slow motion
    # Proposer: how much is sampled per step, and how often it is trained in an iteration.
    proposer_steps: int = 20  # GRPO steps (rollout batches) per iteration; 0: it is never trained
    proposer_prompts: int = 18  # prompts (topics, in turn) per step
    proposer_rollouts: int = 4  # G: proposals per prompt
    proposer_update: int = 18  # prompts per optimiser update
    codes: int = 4  # N: codes the frozen Coder writes per proposal
    answers: int = 5  # K: answers of the frozen Solver per question, while training P and C
    # Coder
    coder_steps: int = 20  # GRPO steps per iteration; 0: it is never trained
    coder_proposals: int = 3304  # fresh proposals, of which those of middling render rate are kept
    coder_prompts: int = 256  # proposals per step
    coder_rollouts: int = 4  # G: codes per proposal
    coder_update: int = 64  # proposals per optimiser update
    # Solver
    solver_steps: int = 20  # GRPO steps per iteration; 0: it is never trained
    solver_proposals: int = 5000  # fresh proposals, one code each; the open questions are kept
    labels: int = 10  # answers per question from which the majority label is taken
    solver_prompts: int = 512  # pictures per step
    solver_rollouts: int = 8  # G: answers per picture
    solver_update: int = 128  # pictures per optimiser update
    # GRPO
    lr: float = 1e-6  # AdamW, constant
    weight_decay: float = 0.01  # of AdamW
    kl: float = 0.01  # weight of the k3 KL to the model that the phase began with
    clip_low: float = 0.2  # the ratio may fall to 1 - this
    clip_high: float = 0.3  # and rise to 1 + this
    clip_dual: float = 3.0  # for a negative advantage the surrogate is bounded by this times it
    grad_norm: float = 1.0  # gradients are scaled down to this norm
    token_budget: int = 16384  # tokens per pass; a prompt counts once for its replies
    lora: int = 0  # rank of the adapters that are trained instead of all weights; 0: all weights
    lora_alpha: float = 32.0  # adapters are scaled by this / rank
    save_steps: int = 2  # the state inside a phase is saved every so many steps
    part_proposals: int = 1024  # fresh proposals become data in parts of so many, each saved whole
    checkpointing: bool = True  # recompute activations in the backward pass: less memory, slower
    # Lengths, in tokens
    proposal_tokens: int = 4096  # a proposal is cut here
    code_tokens: int = 4096  # a code is cut here
    answer_tokens: int = 4096  # an answer is cut here
    # Pictures and machine
    min_pixels: int = 262144  # smaller pictures are scaled up to this area; 0: the checkpoint's
    max_pixels: int = 1638400  # larger ones down to this (1280 x 1280); 0: as the checkpoint has it
    slots: int = 0  # completions decoded side by side; 0: up to 512
    threads: int = 0  # of the CPU, for the networks; 0: as fast as a probe finds
    workers: int = 0  # processes that render; 0: one per core
    render_seconds: float = 5.0  # a program that draws for longer is stopped
    unsafe_python: bool = False  # run Python though this machine cannot confine it
    # Measuring, before the first and after every iteration
    questions: int = 420  # held-out questions of either kind; 0: none
    split: str = "test"  # their pictures: test, or validation while choosing settings
    probe: int = 128  # proposals that the three roles make and answer together; 0: none


PAPER = Settings()
# The embedded base has 1.4 M parameters where the paper's have 2 to 8 billion: a larger step size,
# smaller batches and short texts, so that three iterations take a few minutes on two cores.
TINY = replace(
    PAPER,
    **dict(proposer_steps=6, coder_steps=6, solver_steps=12),
    **dict(coder_proposals=192, coder_prompts=48, coder_update=48),
    **dict(solver_proposals=2048, solver_prompts=96, solver_update=96, part_proposals=2048),
    **dict(lr=1.5e-4, token_budget=4096, checkpointing=False, save_steps=4),
    **dict(proposal_tokens=96, code_tokens=160, answer_tokens=64, min_pixels=0, max_pixels=0),
)

# One GPU samples an eighth of what eight do: a quarter of the data, in smaller parts, ten steps
# (the paper's text has ten), shorter replies, and pictures of at most 1024 x 768. What fits, and
# with how much room: python tools/plan.py
ONE_GPU = replace(
    PAPER,
    **dict(proposer_steps=10, coder_steps=10, solver_steps=10, part_proposals=256),
    **dict(coder_proposals=824, coder_prompts=64, token_budget=8192),
    **dict(solver_proposals=1248, solver_prompts=128, solver_update=64),
    **dict(proposal_tokens=2048, code_tokens=2048, answer_tokens=2048, max_pixels=786432),
)
# Adapters take a step size ten times that of all weights, as is usual; not tuned here.
LORA = replace(ONE_GPU, lora=32, lr=1e-5, token_budget=4096)
# 18 bytes a parameter leave 7 GB of a card of 48 GB for a pass through 2B: short replies, so that
# 4,096 tokens hold any of them.
SHORT = dict(proposal_tokens=1536, code_tokens=1536, answer_tokens=1536, max_pixels=589824)
TIGHT = replace(ONE_GPU, **SHORT, token_budget=4096)
CUT = replace(PAPER, token_budget=8192)
# What the authors' scripts for 8B set: docs/paper.md.
AUTHORS = replace(
    CUT,
    **dict(iterations=5, coder_prompts=320, solver_update=64),
    **dict(max_pixels=4194304, render_seconds=30.0),
)
PRESETS = {  # name: (settings, what it is for)
    "tiny": (TINY, "the embedded base, on two CPU cores"),
    "paper": (PAPER, "batches, lengths and pictures of the paper, all weights"),
    "1x24gb": (LORA, "up to 4B, adapters of rank 32, a quarter of the data"),
    "1x48gb": (TIGHT, "2B, all weights, a quarter of the data, replies of 1,536 tokens"),
    "1x80gb": (ONE_GPU, "2B, all weights, a quarter of the data, 8,192 tokens a pass"),
    "8x80gb": (CUT, "up to 8B, all weights cut over 8 GPUs, the paper's data, 8,192 tokens a pass"),
    "authors-8b": (AUTHORS, "the numbers of the authors' scripts for 8B, where they differ"),
}

# One step of each phase in slow motion: small numbers, but two updates a step, for in the first of
# them every ratio is 1.
EXPLAIN = dict(
    **dict(iterations=1, proposer_steps=1, coder_steps=1, solver_steps=1, questions=0, probe=0),
    **dict(proposer_prompts=6, proposer_update=3, coder_proposals=32, coder_prompts=8),
    **dict(coder_update=4, solver_proposals=96, solver_prompts=8, solver_update=4),
)
# What the Coder writes, taking turns.
LANGUAGES = {"svg": ("svg",), "python": ("python",), "mixed": ("svg", "python")}
# How a role is sampled while it is frozen, and while it is trained.
FROZEN = {
    "proposer": dict(temperature=1.0, top_p=0.95),
    "coder": dict(temperature=0.7, top_p=0.95),
    "solver": dict(temperature=1.0, top_k=40),
}
TRAINED = FROZEN | dict.fromkeys(("proposer", "solver"), dict(temperature=1.0, top_p=0.99))
# Which setting limits its replies.
LENGTHS = {"proposer": "proposal_tokens", "coder": "code_tokens", "solver": "answer_tokens"}
# Numbers that may be 0.
MAY_BE_ZERO = ("iterations", "min_pixels", "max_pixels", "slots", "threads", "workers")
MAY_BE_ZERO += ("questions", "probe", "lora", *(f"{role}_steps" for role in LENGTHS))


@dataclass(frozen=True)
class Rules:
    """The numbers of rewards and filters, as the paper has them. Letters as in rewards.py."""

    cap: float = 0.5  # of the s that the Proposer is paid for
    d: float = 1.0  # by which d is multiplied, for Proposer and Coder
    E: float = 0.3  # for a hard question that is too easy or hopeless
    T: float = 0.15  # at most, for a crowded content type
    V: float = 0.5  # at most, for texts like others of the batch
    render_rate: tuple = (0.25, 0.75)  # of what the Coder learns from
    easy_consistency: tuple = (0.5, 1.0)  # of what the Solver learns from
    hard_consistency: tuple = (0.25, 0.75)


RULES = Rules()
ALL = dict.fromkeys(("render_rate", "easy_consistency", "hard_consistency"), (0.0, 1.0))
# What --without may name: the rules that it puts in their place, and what becomes of it.
SWITCHES = {
    "cap": (dict(cap=1.0), "the Proposer is paid for s above 0.5 too"),
    "diversity": (dict(V=0.0), "V = 0: similar texts cost nothing"),
    "type": (dict(T=0.0), "T = 0: a crowded content type costs nothing"),
    "difficulty": (dict(d=0.0), "d earns nothing, for Proposer and Coder"),
    "easy-hard": (dict(E=0.0), "E = 0: questions that are too easy or hopeless cost nothing"),
    "filters": (ALL, "Coder and Solver are trained on all data that can be used"),
}


def rules_of(settings: Settings) -> Rules:
    """The paper's, but for what this run does without."""
    others = {}
    for name in settings.without:
        others |= SWITCHES[name][0]
    return replace(RULES, **others)


def check(settings: Settings) -> None:
    """ValueError with one line that says what would be right."""

    def need(name, good, rule):
        if not good:
            flag, value = "--" + name.replace("_", "-"), getattr(settings, name)
            raise ValueError(f"{flag} is {value!r}: it should be {rule}")

    need("language", settings.language in LANGUAGES, "svg, python or mixed")
    need("without", set(settings.without) <= set(SWITCHES), "among " + ", ".join(SWITCHES))
    need("split", settings.split in ("test", "validation"), "test or validation")
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if f.type is int and f.name != "seed" and f.name not in MAY_BE_ZERO:
            need(f.name, value >= 1, "a whole number, 1 or more")
        elif f.type in (int, float) and f.name != "seed":  # which may be anything
            need(f.name, value >= 0, "0 or more")
        if f.name.endswith("rollouts"):
            need(f.name, value >= 2, "2 or more: a group's advantage compares its rollouts")
    for name in ("lora_alpha", "grad_norm", "render_seconds"):
        need(name, getattr(settings, name) > 0, "above 0")
    need("lr", 0 < settings.lr < 1, "between 0 and 1")
    need("clip_low", settings.clip_low < 1, "below 1")
    need("clip_dual", settings.clip_dual > 1, "above 1")
    enough = settings.max_pixels == 0 or settings.max_pixels >= settings.min_pixels
    need("max_pixels", enough, "0, or at least --min-pixels")


def starts(settings: Settings) -> dict[str, str]:
    """Role -> the model or folder that it starts from."""
    return {role: getattr(settings, f"start_{role}") or settings.model for role in LENGTHS}


def unusual(settings: Settings) -> str:
    """What a run does not as usual, for its first line; empty for a usual one.

    >>> unusual(parse("--without cap --coder-steps 0".split())[0])
    'without cap: the Proposer is paid for s above 0.5 too; the coder is never trained'
    """
    said = [f"without {name}: {SWITCHES[name][1]}" for name in settings.without]
    for role, start in starts(settings).items():
        if start != settings.model:
            said.append(f"the {role} starts from {start}")
        if not getattr(settings, f"{role}_steps"):
            said.append(f"the {role} is never trained")
    return "; ".join(said)


def command_line() -> argparse.ArgumentParser:
    """A flag for each setting, and those that are none."""
    about = "MM-Zero: three roles of one vision-language model evolve without data."
    unset = argparse.SUPPRESS
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False, argument_default=unset)
    # The comment behind each field is also its help text.
    comments = re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(Settings), re.MULTILINE)
    for name, comment in comments:
        paper, tiny = getattr(PAPER, name), getattr(TINY, name)
        default = f"[{paper}]" if paper == tiny else f"[{paper}; tiny: {tiny}]"
        options = {"help": f"{comment} {default}".replace("%", "%%")}
        if name == "without":
            options |= {"action": "append", "choices": SWITCHES}
        elif isinstance(paper, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": type(paper), "metavar": type(paper).__name__.upper()}
        parser.add_argument("--" + name.replace("_", "-"), **options)
    about = "GRPO steps per iteration of all three roles at once"
    parser.add_argument("--steps", type=int, metavar="INT", help=about)
    about = (
        "where the other settings come from [--model tiny: tiny, else auto: the largest that fits]"
    )
    for name, (_, purpose) in PRESETS.items():
        about += f"; {name}: {purpose}"
    parser.add_argument("--preset", choices=["auto", *PRESETS], help=about)
    about = (
        "say what the run would need, and whether it fits [GPUs: the preset's, or this machine's]"
    )
    parser.add_argument("--dry-run", type=int, metavar="GPUS", nargs="?", const=0, help=about)
    return parser


def parse(arguments=None, auto=None) -> tuple[Settings, int | None]:
    """The command line has a flag for each setting; the preset says what is not given. For a real
    model that is auto(given, gpus), or the paper's where there is no `auto`.

    -> (settings, None). With --dry-run: (settings, GPUs), 0 where neither the flag nor the preset
    names a number. ValueError: see `check`.

    >>> flags = "--model Qwen2-VL-7B --preset 8x80gb --dry-run --lora 16"
    >>> settings, gpus = parse(flags.split())
    >>> gpus, settings.lora, settings.token_budget           # what is given wins over the preset
    (8, 16, 8192)
    """
    given = vars(command_line().parse_args(arguments))
    if "without" in given:
        # In one order and once each, as the folder of a run is named after them.
        given["without"] = tuple(name for name in SWITCHES if name in given["without"])
    steps, gpus = given.pop("steps", None), given.pop("dry_run", None)
    if steps is not None:
        given = {f"{role}_steps": steps for role in LENGTHS} | given
    if given.get("explain"):
        given = EXPLAIN | given
    preset = given.pop("preset", "auto")
    if preset == "auto" and given.get("model", "tiny") == "tiny":
        preset = "tiny"
    if preset == "auto":
        settings = auto(given, gpus) if auto else replace(PAPER, **given)
    else:
        settings = replace(PRESETS[preset][0], **given)
    if gpus == 0:
        gpus = int(re.match(r"\d*", preset)[0] or 0)  # a name may begin with a number
    check(settings)
    return settings, gpus
