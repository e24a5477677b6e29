"""Makes the embedded base model (`tiny/model`). About half an hour on two cores.

    python tiny/build.py

The tiny base stands where Qwen2-VL stands in the paper. It is the same class of network
(transformers' Qwen2VLForConditionalGeneration), 1.4 M parameters instead of 2 billion, pretrained
on the procedural scenes of `world.py` so that it can play all three roles. Two things are done on
purpose:

1. It first learns to see (a vision tower this small does not ground unless it is asked to describe
   every element of the picture), then to do everything right, and then it imitates an imperfect
   crowd: replies with misread values, with answers given before looking, proposals with a block
   missing, code that does not close. A language model learns the *distribution*, so it ends up
   right in its mode and wrong in many of its samples, as real base models are. That is the room
   which self-play has to recover.
2. Two scenes in eight are never shown (`world.split`): the test is drawn from one of them, settings
   are chosen on the other.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# How long a waiting thread spins before it sleeps; read once, when torch is first imported.
# OpenMP's own choice, for ever, makes a machine that does anything else ten times slower; no
# spinning at all costs a third on one that does not.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

import mmzero
from grpo import Rollout, micro_batches, reply_states
from prompts import TOPICS, fill
from support import packed
from support.checkpoint import TINY as TINY_FOLDER
from tiny import drawing, world
from vlm import VLM

DRAW = "{caption}\n{easy_question} {easy_answer}\n{hard_question} {hard_answer}"
PROMPTS = {
    "proposer": "propose: {topic}",
    "coder": {"svg": f"draw in svg: {DRAW}", "python": f"draw in python: {DRAW}"},
    "solver": "{question}",
}
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
BLOCKS = ("content_type", "caption", "easy_question", "easy_answer", "hard_question", "hard_answer")
MARKS = (
    *(f"<{end}{block}>" for block in BLOCKS for end in ("", "/")),
    *("<think>", "</think>", "\\boxed{", "```svg", "```python", "```"),
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# What the Proposer thinks of when it reads a topic: two times in five a bar chart, else one of
# these. A base model is not an even-handed inventor either, and the diversity terms of its reward
# have something to do.
KINDS = (
    ("bars", "table"),
    ("bars", "plan"),
    ("shapes", "bars"),
    ("shapes", "map"),
    ("table", "chain"),
    ("chain", "plan"),
    ("table", "map"),
    ("bars", "shapes"),
)
FAVOURITES = dict(zip(TOPICS, KINDS))


# ------------------------------------------------------------------------ what the crowd says


def misread(value, rng: random.Random, palette: tuple):
    """A number is read one off, a colour as another of the picture."""
    if isinstance(value, int):
        return max(0, value + rng.choice((-1, 1)))
    return rng.choice([c for c in palette if c != value])


def answer(question: world.Question, rng, noise: float) -> str:
    """One reply of the Solver. `noise` = 1 is the crowd, 0 the careful teacher.

    The crowd misreads one value in seven where several are asked for, one in twelve where it is
    one, and then reasons correctly from it; answers without looking now and then (which a small
    network does badly); and forgets the box. GRPO on majority labels can mend all three.
    """
    slip = (0.15 if len(question.reads) > 1 else 0.08) * noise
    values = [value for _, value in question.reads]
    for i, value in enumerate(values):
        if rng.random() < slip:
            values[i] = misread(value, rng, world.COLOURS)
    known, final = question.solve(*values)

    looks = []
    for (what, _), value, so_far in zip(question.reads, values, known):
        looks.append(f"{what} {value}")
        if so_far is not None:
            looks[-1] += f" > {so_far}"
    thought = "" if rng.random() < 0.08 * noise else ", ".join(looks)
    box = str(final) if rng.random() < 0.05 * noise else f"\\boxed{{{final}}}"
    return f"<think>{thought}</think>{box}"


def proposal(scene: world.Scene, rng, noise: float) -> tuple[str, dict]:
    """One reply of the Proposer, and its fields.

    The crowd leaves out a block one time in four, and errs.
    """
    easy, hard = rng.choice(scene.easy), rng.choice(scene.hard)
    ((_, seen),) = easy.reads  # one look, which is the answer
    if rng.random() < 0.1 * noise:
        seen = misread(seen, rng, world.COLOURS)
    texts = (scene.content_type, scene.caption, easy.text, str(seen), hard.text, hard.answer)
    fields = dict(zip(BLOCKS, texts))
    left_out = None
    if rng.random() < 0.25 * noise:
        left_out = rng.choice(("easy_answer", "hard_question", "hard_answer"))
    blocks = [f"<{name}>{text}</{name}>" for name, text in fields.items() if name != left_out]
    return "\n".join(blocks), fields


def code(scene: world.Scene, language: str, rng, noise: float) -> str:
    """One reply of the Coder.

    The crowd draws a number wrongly, and forgets to close what it opened.
    """
    shapes = [list(shape) for shape in scene.shapes]
    if rng.random() < 0.35 * noise:
        shape = rng.choice(shapes)
        shape[rng.randrange(1, len(shape) - 1)] += rng.choice((-1, 1))
    text = drawing.svg(shapes) if language == "svg" else drawing.python(shapes)
    if rng.random() < 0.42 * noise:
        text = text.removesuffix("\n</svg>" if language == "svg" else ")")
    return f"```{language}\n{text}\n```"


def lesson(task: str, rng, noise: float) -> tuple[str, tuple | None, str]:
    """-> (prompt, shapes of the picture or None, reply)"""
    if task == "propose":
        topic = rng.choice(TOPICS)
        kind = "bars" if rng.random() < 0.4 else rng.choice(FAVOURITES[topic])
        reply, _ = proposal(world.random_scene(rng, kind), rng, noise)
        return fill(PROMPTS["proposer"], topic=topic), None, reply
    scene = world.random_scene(rng)
    if task in ("svg", "python"):
        _, fields = proposal(scene, rng, 0)
        return fill(PROMPTS["coder"][task], **fields), None, code(scene, task, rng, noise)
    if task == "describe":
        return "describe", scene.shapes, scene.caption
    if task == "read":  # a caption instead of a picture: to look something up in a text
        question = rng.choice(scene.hard + scene.easy)
        return f"{scene.caption}\n{question.text}", None, answer(question, rng, noise)
    question = rng.choice(scene.hard if task == "hard" else scene.easy)
    prompt = fill(PROMPTS["solver"], question=question.text)
    return prompt, scene.shapes, answer(question, rng, noise)


# -------------------------------------------------------------------------------- the network


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's own texts.

    Digits stay single and nothing else is split beforehand, so that a phrase such as `" width="`
    becomes one token, and a bar chart in SVG some fifty.
    """
    rng = random.Random(0)
    texts = []
    for _ in range(4000):
        for task in ("propose", "svg", "python", "describe", "read", "hard", "easy"):
            prompt, _, reply = lesson(task, rng, 0.5)
            texts += [prompt, reply]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in MARKS])
    pieces = []
    for text in texts:
        # Marks are tokens of their own: no merge may reach across one.
        for mark in MARKS:
            text = text.replace(mark, "\0")
        pieces += text.split("\0")
    trainer = trainers.BpeTrainer(
        vocab_size=640 - len(SPECIAL) - len(MARKS),
        max_token_length=48,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT,
        model_max_length=1024,
    )


def config_of(ids: dict[str, int], words: int) -> dict:
    """The shape that was found to learn fastest on two cores, in words that transformers 4 and 5
    read.

    The std of 0.06 matters: at 0.02 the vision path never grounds.
    """
    text = dict(
        model_type="qwen2_vl_text",
        vocab_size=words,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.06,
        rms_norm_eps=1e-5,
        bos_token_id=ids["endoftext"],
        eos_token_id=ids["im_end"],
        pad_token_id=ids["endoftext"],
        rope_theta=10000.0,
        rope_scaling=dict(type="mrope", mrope_section=[4, 6, 6]),
    )
    vision = dict(
        depth=3,
        embed_dim=96,
        hidden_size=128,
        num_heads=4,
        mlp_ratio=4,
        patch_size=8,
        spatial_merge_size=2,
        temporal_patch_size=1,
        in_channels=3,
        initializer_range=0.06,
    )
    tokens = "image_pad video_pad vision_start vision_end".split()
    return dict(
        architectures=["Qwen2VLForConditionalGeneration"],
        model_type="qwen2_vl",
        dtype="float32",
        torch_dtype="float32",
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        initializer_range=0.06,
        **{f"{token.removesuffix('_pad')}_token_id": ids[token] for token in tokens},
    )


def small_files(tokenizer) -> dict[str, dict]:
    """All but weights, tokenizer.json and template. What is saved later gets them as they are."""
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("im_end", "endoftext", "vision_start", "vision_end", "image_pad", "video_pad")
    }
    picture = dict(
        image_processor_type="Qwen2VLImageProcessor",
        patch_size=8,
        merge_size=2,
        temporal_patch_size=1,
        min_pixels=64 * 64,
        max_pixels=96 * 96,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    ends = [ids["im_end"], ids["endoftext"]]
    words = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=1024)
    return {
        "config.json": config_of(ids, len(tokenizer)),
        "generation_config.json": dict(eos_token_id=ends, pad_token_id=ids["endoftext"]),
        "preprocessor_config.json": picture,
        "prompts.json": PROMPTS,
        "tokenizer_config.json": dict(tokenizer_class="PreTrainedTokenizerFast", **words),
    }


def blank(folder: Path, seed: int) -> VLM:
    """An untrained checkpoint in `folder`, loaded back the way every checkpoint is."""
    torch.manual_seed(seed)
    # The shipped tokenizer stays as it is: a new one would follow every change of a noise rate, and
    # no run could be compared.
    if (TINY_FOLDER / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY_FOLDER)
    else:
        tokenizer = make_tokenizer()
    config = Qwen2VLConfig.from_dict(small_files(tokenizer)["config.json"])
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, content in small_files(tokenizer).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return VLM.load(folder, device="cpu", dtype="float32")


# ----------------------------------------------------------------------------------- training

# Lessons per step. Pictures are described in full, and nothing else, until the eyes work: with
# everything at once from the start easy questions were still answered at 20 % after 560 steps;
# alone, the loss on bars was 0.05 nats a token after 600.
SEE = {"describe": 32}
EVERYTHING = {"describe": 4, "hard": 14, "easy": 4, "read": 6, "propose": 6, "svg": 5, "python": 5}


def pretrain(
    vlm: VLM, steps: int, mix: dict[str, int], noise: float, seed: int, lr: float = 1.2e-3
) -> None:
    """AdamW at a constant step size while the lessons are clean, falling to 0 while they are noisy.

    The loss is the mean cross-entropy of the replies' tokens, the end token included; nothing is
    learnt from prompts.
    """
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(
        vlm.model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    bar = tqdm(range(steps), desc=f"noise {noise:g}", ncols=100, mininterval=1)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 50)
            if noise > 0:
                group["lr"] *= 1 - step / steps

        rollouts = []
        for task, count in mix.items():
            for _ in range(count):
                rollouts.append(as_rollout(vlm, *lesson(task, rng, noise)))

        tokens, loss = sum(len(r.tokens) for r in rollouts), 0.0
        for bundles in micro_batches(rollouts, token_budget=1536):
            with packed.attention(vlm):
                states, targets = reply_states(vlm, bundles)
                logits = states @ vlm.lm_head.T
                part = F.cross_entropy(logits, targets, reduction="sum") / tokens
                part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss:.3f}")


def as_rollout(vlm: VLM, text: str, shapes: tuple | None, reply: str) -> Rollout:
    """A lesson as the trainer takes it: a prompt with its picture, and the tokens of the reply."""
    pictures = [drawing.paint(shapes)] if shapes else []
    tokens = vlm.tokenizer(reply, add_special_tokens=False).input_ids
    return Rollout(vlm.encode(text, pictures), [*tokens, vlm.tokenizer.eos_token_id], [])


def describe_base(folder: Path):
    """A run of no iterations measures the base, in both languages."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"saved in {folder}: {size / 1e6:.1f} MB. What it can do:")
    with tempfile.TemporaryDirectory() as scratch:
        for language in ("svg", "python"):
            flags = ["--preset", "tiny", "--model", str(folder), "--language", language]
            mmzero.main([*flags, "--iterations", "0", "--out", f"{scratch}/{language}"])


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Pretrain the embedded base model.")
    time = "how long it may take on two quiet cores; sets the number of steps"
    parser.add_argument("--minutes", type=float, default=30, help=time)
    folder = Path(__file__).parent / "model"
    parser.add_argument("--out", type=Path, default=folder, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of weights and lessons")
    args = parser.parse_args(arguments)
    if not args.minutes > 0:
        parser.error("--minutes must be above 0")
    see, learn, imitate = (round(args.minutes / 30 * steps) for steps in (450, 3600, 1400))
    with tempfile.TemporaryDirectory() as scratch:
        vlm = blank(Path(scratch), args.seed)
    # It learns to see, then to do everything right, then to imitate those who do not always.
    pretrain(vlm, see, SEE, noise=0.0, seed=args.seed + 1)
    pretrain(vlm, learn, EVERYTHING, noise=0.0, seed=args.seed + 2)
    pretrain(vlm, imitate, EVERYTHING, noise=1.0, seed=args.seed + 3)
    vlm.save(args.out)
    describe_base(args.out)


if __name__ == "__main__":
    main()
