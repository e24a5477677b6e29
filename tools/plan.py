"""What a run would need, before it begins: no weights are loaded, no GPU and no network is needed.

    python mmzero.py --model Qwen2-VL-2B --preset 1x48gb --dry-run    does a run fit this machine?
    python tools/plan.py                                              which preset fits which card?

Parameters are counted on the network itself, built from its config on the meta device. Memory is a
formula: read `memory`. tests/tools/test_plan.py holds it against what real steps allocate.
"""

import argparse
import json
import math
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

# Run as a program, it finds the modules above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers

from prompts import PROMPTS
from support import hours, parallel
from support.checkpoint import FAMILIES, TINY, check_family, find_checkpoint, picture_settings
from support.figures import markdown
from support.flash import DRAW, FEWEST
from support.packed import LOGITS
from support.settings import LENGTHS, PAPER, PRESETS, Settings

# Sizes as the checkpoints' config.json has them (of MiMo-VL's vision tower from memory: 0.1 %).
SHAPES = json.loads(Path(__file__).with_name("shapes.json").read_text(encoding="utf-8"))
# How many GPUs, the bytes that the driver shows of each, and one that has as many.
CARDS = {
    "12 GB": (1, 12.6e9, "3060"),
    "16 GB": (1, 16.7e9, "4080"),
    "24 GB": (1, 24.1e9, "4090"),
    "40 GB": (1, 42.4e9, "A100 40GB"),
    "48 GB": (1, 48.3e9, "L40S"),
    "80 GB": (1, 85.0e9, "H100"),
    "141 GB": (1, 150.0e9, "H200"),
    "8 x 80 GB": (8, 85.0e9, "H100"),
}
# What --preset auto tries, and the most tokens of a pass that it asks for.
LARGEST_FIRST = ("8x80gb", "1x80gb", "1x48gb", "1x24gb")
LONGEST_PASS = 65536
RESERVE = 1.5e9  # bytes per GPU that the formula does not see: CUDA's context, fragmentation
NVIDIA = Path("/proc/driver/nvidia/version")  # there where a driver is
PICTURE = 12e3  # bytes of a PNG: the matplotlib chart of bench/render_bench.py

# ----------------------------------------------------------------------------------- the network


def read_config(name: str):
    """transformers' config of a folder, of `tiny`, of a short name in SHAPES, or of a hub id."""
    if name not in SHAPES or Path(name).is_dir():
        folder = find_checkpoint(name, weights=False)
        check_family(folder)
        return transformers.AutoConfig.from_pretrained(folder)
    return transformers.AutoConfig.for_model(**SHAPES[name])


def measure(config):
    """The network, without memory for its weights: what it is asked for are sizes.

    >>> measure(read_config("Qwen2-VL-2B")).num_parameters()
    2208985600
    """
    with torch.device("meta"):
        return getattr(transformers, FAMILIES[config.model_type])(config)


def linear(module) -> list:
    return [layer for layer in module.modules() if type(layer) is torch.nn.Linear]


def learnt(network, lora: int) -> int:
    """Parameters that are trained: all, or those of adapters of this rank."""
    adapted = linear(network.model.language_model.layers)
    each = sum(layer.in_features + layer.out_features for layer in adapted)
    return lora * each if lora else network.num_parameters()


# ---------------------------------------------------------------------------------------- memory


def memory(network, gpus=1, lora=0, tokens=16384, seen=0, length=8192, checkpointing=True):
    """Bytes on each GPU: held all the time; of a slot while sampling; in all while training.
    tokens: of a pass; seen: those of them of pictures; length: of a prompt and its reply.

    >>> round(memory(measure(read_config("Qwen2-VL-2B")))["held"] / 1e9, 1)     # 2.209 * (2 + 12)
    30.9
    """
    language, visual, config = network.model.language_model, network.model.visual, network.config
    layer, total = language.layers[0], network.num_parameters()
    words, width = language.embed_tokens.weight.shape
    queries, keys = layer.self_attn.q_proj.out_features, layer.self_attn.k_proj.out_features
    trained = learnt(network, lora) / (1 if lora else gpus)
    sharded = gpus > 1 and not lora

    # The actor in bf16; float32 masters and AdamW's two moments; adapters of the actor, too.
    held = 2 * total + (4 + 8 + 4 * (lora > 0)) * trained
    # Keys and values of all layers, and what drawing a word takes.
    slot = length * 2 * len(language.layers) * keys * 2 + DRAW["cuda"] * words

    # Gradients. FSDP has in one piece: two layers; embedding and lm_head, and their gradients.
    training = held + 4 * trained
    if sharded:
        ends = words * width * (1 if config.tie_word_embeddings else 2)
        training += 2 * (ends + 2 * sum(p.numel() for p in layer.parameters())) + 6 * ends
    # What layers save for the backward pass. The residual stream has the type of the embedding.
    stream = 2 if sharded or lora else 4
    inner, depth = layer.mlp.down_proj.in_features, len(language.layers)
    training += tokens * saved(depth, width, queries, keys, inner, stream, checkpointing)
    if not checkpointing:  # autograd then keeps every weight in bf16
        training += 2 * total
    # The loss has the logits of a chunk of tokens, and their log-softmax.
    training += 8 * min(tokens * words, LOGITS["cuda"])
    # LoRA leaves alone: lm_head, in bf16 and a block of it, and its float32 gradient; the vision
    # tower. That has the type of its convolution, to which Qwen3-VL adds an embedding.
    if not lora:
        training += 6 * words * width
        stream = stream if config.model_type == "qwen3_vl" else 2
        inner = max(product.out_features for product in linear(visual.blocks[0].mlp))
        side, depth = visual.patch_embed.embed_dim, len(visual.blocks)
        patches = seen * config.vision_config.spatial_merge_size**2
        training += patches * saved(depth, side, side, side, inner, stream, checkpointing)
    return {"held": held, "slot": slot, "training": training}


def saved(layers, width, queries, keys, inner, stream, checkpointing) -> int:
    """Bytes of a token that layers save for the backward pass: of one layer norms in float32, the
    residual stream, attention and MLP. With checkpointing all borders, and the inside of one."""
    inside = (16 + stream) * width + 2 * (2 * queries + 2 * keys + 5 * inner)
    return layers * width * stream + inside if checkpointing else layers * inside


def rounding(network) -> int:
    """Bytes that pinned memory of these weights in float32 is larger: CUDA takes powers of two."""
    sizes = [4 * weight.numel() for weight in network.parameters()]
    return sum(2 ** (size - 1).bit_length() - size for size in sizes)


def needs(settings: Settings, network, gpus: int, pinned=True) -> dict:
    """`memory` of a run, and: least, for training and a single slot; slots; tokens of a pass; bytes
    of the host's memory and of disk. pinned: is the roles' memory, as it is for a GPU?"""
    # No prompt is longer: what it quotes was cut when it was written, and a picture when it was
    # encoded. A template has a token for three characters or more.
    vision = network.config.vision_config
    pixels = (vision.patch_size * vision.spatial_merge_size) ** 2  # of a token
    folder = TINY if settings.model == "tiny" else Path(settings.model)
    limit = settings.max_pixels or 16384 * pixels  # the hub's
    if not settings.max_pixels and (folder / "config.json").exists():
        limit = picture_settings(folder, vision)["max_pixels"]
    picture = limit // pixels
    length = settings.proposal_tokens + max(
        len(PROMPTS["proposer"]) // 3,
        max(map(len, PROMPTS["coder"].values())) // 3 + settings.code_tokens,
        len(PROMPTS["solver"]) // 3 + picture + settings.answer_tokens,
    )
    tokens = max(settings.token_budget, length)  # one reply above the budget is a pass by itself
    seen = tokens * picture / (picture + 128)  # each picture with a short question and reply
    lora, recompute = settings.lora, settings.checkpointing
    needed = memory(network, gpus, lora, tokens, seen, length, recompute)
    needed["least"] = max(needed["held"] + needed["slot"], needed["training"]) + RESERVE

    # The host's memory: three roles in float32, and a state (weights, moments) while it is saved.
    # At the start, a policy of every rank. Checkpoints are float32; of LoRA, adapters alone.
    total, role = network.num_parameters(), learnt(network, lora)
    host = 2 * total * gpus + 24 * role if lora else max(24, 4 * gpus) * total
    if pinned and gpus == 1 and not lora:
        host += 3 * rounding(network)
    pictures = settings.coder_proposals + settings.solver_proposals + settings.probe
    disk = settings.iterations * (12 * role + PICTURE * pictures) + 24 * role
    return needed | {"slots": settings.slots or 512, "tokens": tokens, "host": host, "disk": disk}


def fitting(needed: dict, card: float) -> int:
    """Slots for which generate.py will find room on a card of so many bytes; 0: it cannot train."""
    if needed["least"] > card:
        return 0
    room = 0.9 * (card - needed["held"] - RESERVE)
    return max(1, min(needed["slots"], int(room / needed["slot"])))


def remark(slots: int) -> str:
    """On few slots: a step reads all weights, for however few replies.

    >>> remark(16), remark(4)[:37]
    ('', '; that few sample about 4 times as sl')
    """
    if slots >= FEWEST:
        return ""
    advice = "shorter replies, --lora 32 or a larger card help"
    return f"; that few sample about {FEWEST / slots:.0f} times as slowly as {FEWEST}: {advice}"


def cards_here() -> list[int]:
    """The memory of each GPU in bytes. ValueError: one of them has no bfloat16, or PyTorch does not
    see the card that is there: the run would begin on the CPU."""
    cards = []
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        if (card.major, card.minor) < (8, 0):
            text = "has no bfloat16, which training needs: take a GPU of 2020 (Ampere) or newer"
            raise ValueError(f"{card.name} {text}, or hide it with CUDA_VISIBLE_DEVICES=''")
        cards.append(card.total_memory)
    if not cards and NVIDIA.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        what, cure = "is built for the CPU alone", "https://pytorch.org/get-started has the other"
        if torch.version.cuda:
            what = f"is built for CUDA {torch.version.cuda}, which this driver is too old for"
            cure = "take a newer driver, or a PyTorch for an older CUDA"
        text = f"an NVIDIA card is here, and PyTorch {torch.__version__} {what}: {cure}"
        raise ValueError(f"{text}; CUDA_VISIBLE_DEVICES='' hides the card")
    return cards


# ---------------------------------------------------------------------------------- does it fit?


def gb(size) -> str:
    return f"{size / 1e9:,.1f}" if size >= 1e9 else f"{size / 1e9:.3f}"


def work(settings: Settings) -> dict[str, list[int]]:
    """Phase -> proposals, codes, answers, updates of one iteration if all is valid and drawn.

    >>> work(Settings())["P"]
    [1440, 5760, 57600, 20]
    """

    def of(role, name):
        return getattr(settings, f"{role}_{name}")

    sampled, updates = {}, {}
    for role in LENGTHS:
        sampled[role] = of(role, "steps") * of(role, "prompts") * of(role, "rollouts")
        updates[role] = of(role, "steps") * math.ceil(of(role, "prompts") / of(role, "update"))
    proposals, coded, N, K = sampled["proposer"], sampled["coder"], settings.codes, settings.answers
    # A role that is never trained has no phase.
    fresh = settings.coder_proposals if settings.coder_steps else 0
    drawn = settings.solver_proposals if settings.solver_steps else 0
    answers = 2 * settings.labels * drawn + sampled["solver"]
    return {
        "P": [proposals, N * proposals, 2 * K * N * proposals, updates["proposer"]],
        "C": [fresh, N * fresh + coded, 2 * K * coded, updates["coder"]],
        "S": [drawn, drawn, answers, updates["solver"]],
    }


def describe(settings: Settings, network, where: str, needed: dict, estimate: dict):
    """Print what a run needs and makes. estimate: of `hours.phases`"""
    trained = f"adapters of rank {settings.lora}" if settings.lora else "all weights"
    millions, training = network.num_parameters() / 1e6, needed["training"] - needed["held"]
    print(f"{settings.model}, {millions:,.1f} M parameters, {trained}, on {where}")
    print(f"GB on each, always     {gb(needed['held'])}")
    print(f"    while sampling     {gb(needed['slot'])} more for each slot, of {needed['slots']}")
    print(f"    while training     {gb(training)} more for {needed['tokens']:,} tokens")
    print(f"GB, memory of the host {gb(needed['host'])}")
    print(f"GB, disk               {gb(needed['disk'])} for {settings.iterations} iterations")
    lengths = [getattr(settings, name) for name in LENGTHS.values()]
    for phase, (*counts, updates) in work(settings).items():
        tokens = sum(count * length for count, length in zip(counts, lengths))
        made = "{:,} proposals, {:,} codes, {:,} answers".format(*counts)
        took = f", {hours.said(estimate[phase])}" if estimate else ""
        total = f"{tokens / 1e6:,.0f} M tokens, {updates} updates{took}"
        print(f"phase {phase}, at most {made}: {total}")
    if estimate:
        ends = [sum(pair[end] for pair in estimate.values()) for end in (0, 1)]
        every = [settings.iterations * end for end in ends]
        print(
            f"an iteration {hours.said(ends)}, all {hours.said(every)}: by arithmetic, not measured"
        )


def plan(settings: Settings, gpus=0) -> dict:
    """Print the plan of a run on so many GPUs (0: those of this machine) -> `hours.phases`.
    ValueError with one line that says why, if it does not fit here."""
    network, cards = measure(read_config(settings.model)), cards_here()
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    out = Path(settings.out or "runs").absolute()
    there = next(folder for folder in (out, *out.parents) if folder.exists())

    # On the CPU, where there is no GPU and all fits into memory. All is float32 there.
    where, needed = "the CPU", needs(settings, network, 1, pinned=False)
    for name in ("held", "slot", "training"):
        needed[name] *= 2
    alone = needed["host"] + needed["slots"] * needed["slot"] + needed["training"]
    needed["host"] = alone
    if gpus or cards or alone > ram:
        gpus = gpus or max(len(cards), 1)
        where = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        needed = needs(settings, network, gpus)
    estimate, slots = {}, fitting(needed, min(cards)) if gpus and cards else 0
    if slots:
        name = torch.cuda.get_device_properties(0).name
        estimate = hours.phases(settings, network, work(settings), slots, name, gpus)
    describe(settings, network, where, needed, estimate)

    least, free = gb(needed["least"]), shutil.disk_usage(there).free
    if len(cards) < gpus:
        reason = f"{where} of {least} GB or more are needed, {len(cards) or 'none'} here"
        if not cards:
            reason += f"; on the CPU it would take {gb(alone)} GB of memory, {gb(ram)} are there"
        raise ValueError(f"does not fit: {reason}")
    if gpus and needed["least"] > min(cards):
        reason = f"{least} GB per GPU are needed, {gb(min(cards))} are there"
        advice = "a --preset, --lora 32, a smaller --token-budget, shorter replies or more GPUs"
        raise ValueError(f"does not fit: {reason}: try {advice}")
    for name, need, have in (("memory", needed["host"], ram), ("disk", needed["disk"], free)):
        if need > have:
            reason = f"{gb(need)} GB of {name} are needed, {gb(have)} are there"
            raise ValueError(f"does not fit: {reason}")
    print("it fits this machine" + (f", with {slots} slots{remark(slots)}" if gpus else ""))
    return estimate


def before_weights(settings: Settings):
    """What --dry-run says, at the start of a real model's run. What speaks against the run is said
    as well, and it begins all the same: the formula may err. -> a line for the end of each phase,
    see `hours.Clock.finish`; None where nothing is known. ValueError: see `cards_here`."""
    if settings.model == "tiny" or parallel.rank():
        return None
    cards_here()
    gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if torch.cuda.is_available() else 0
    try:
        estimate = plan(settings, gpus)
    except ValueError as error:
        print(f"{error}; the run begins all the same", file=sys.stderr)
        return None
    if not settings.explain:
        print("new to this model? First --explain: one small step of each phase, as a page to read")
    return hours.Clock(estimate, settings.iterations).finish if estimate else None


# --------------------------------------------------------------------------------- which preset?


def choose(given: dict, network, gpus: int, card: float) -> tuple[str, Settings]:
    """The largest preset that fits GPUs of so many bytes, with passes as long as memory allows; ""
    and the smallest if none does. given: the settings that were."""

    room = 0.9 * card  # a margin for what the formula does not see

    def takes(settings):
        return needs(settings, network, gpus)["least"]

    for name in LARGEST_FIRST:
        settings = replace(PRESETS[name][0], **given)
        if int(name[0]) <= gpus and takes(settings) <= room:
            break
    else:
        return "", settings
    while "token_budget" not in given:
        longer = replace(settings, token_budget=2 * settings.token_budget)
        if longer.token_budget > LONGEST_PASS or takes(longer) > room:
            break
        settings = longer
    return name, settings


def auto(given: dict, gpus=None) -> Settings:
    """--preset auto: what `choose` finds for the GPUs of this machine. gpus: of a dry run, 0 for
    those of this machine; None: as many as this run has. ValueError: none fits."""
    cards = cards_here()
    if not cards:
        print("--preset auto: no GPU here, so it is --preset paper")
        return replace(PAPER, **given)
    if gpus is None:
        gpus = int(os.environ.get("WORLD_SIZE", 1))
    gpus, card = gpus or len(cards), min(cards)
    network = measure(read_config(given["model"]))
    name, settings = choose(given, network, gpus, card)
    least = gb(needs(settings, network, gpus)["least"])
    if not name:
        what = f"{given['model']} fits no preset on {gpus} of these GPUs, which have {gb(card)} GB"
        least += ", and a tenth is to stay free"
        advice = (
            f"A smaller model, a larger card, more of them; --preset {LARGEST_FIRST[-1]} tries it"
        )
        raise ValueError(f"{what}: {LARGEST_FIRST[-1]} takes {least}. {advice} all the same")
    if os.environ.get("RANK", "0") == "0":
        budget = "" if "token_budget" in given else f" --token-budget {settings.token_budget}"
        by_hand = f"by hand: --preset {name}{budget}"
        print(f"--preset auto: {least} of {gb(card)} GB on {gpus} GPU; {by_hand}")
    return settings


def main():
    about = (
        "The tables of docs/memory.md: what --preset auto takes on which card, and what that needs"
    )
    argparse.ArgumentParser(description=about).parse_args()
    presets, others = [], []
    for model in SHAPES:
        network = measure(read_config(model))
        taken, takes = [model], [model]
        for gpus, size, card in CARDS.values():
            name, settings = choose({"model": model}, network, gpus, size)
            needed = needs(settings, network, gpus)
            slots = fitting(needed, size)
            if not name:
                taken.append("no")
                takes.append("–")
                continue
            estimate = hours.phases(settings, network, work(settings), slots, card, gpus)
            low, high = (sum(pair[end] for pair in estimate.values()) / 3600 for end in (0, 1))
            host, disk = needed["host"] / 1e9, needed["disk"] / 1e9
            taken.append(f"{name}, {needed['least'] / 1e9:.0f}, {slots}")
            takes.append(f"{host:.0f}, {disk:.0f}, {low:.1f}–{high:.1f}")
        presets.append(taken)
        others.append(takes)
    print(markdown(["preset, GB, slots", *CARDS], presets))
    cards = [f"{size}: {card}" for size, (*_, card) in CARDS.items()]
    print("\n" + markdown(["host GB, disk GB, hours", *cards], others))


if __name__ == "__main__":
    main()
