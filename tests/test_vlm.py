"""What goes into the network, compared with the library's own making of it; weights in and out."""

import itertools
import json
import tempfile

import pytest
import torch
import transformers
from helpers_models import for_the_library, make_checkpoint, padded, picture
from oracle import token_logps
from PIL import Image

from generate import generate
from grpo import Rollout
from support import packed
from support.checkpoint import FAMILIES
from vlm import VLM


def load(folder, **options):
    return VLM.load(folder, device="cpu", **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: make_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(folders):
    return {family: load(folder) for family, folder in folders.items()}


SIZES = [
    (64, 64),
    (50, 70),
    (33, 200),
    (7, 9),
    (300, 211),
    (16, 16),
    (129, 31),
    (1, 1),
    (1, 190),
    (560, 3),
    (901, 1203),
]


# ---------------------------------------------------------------------------------------- pictures

QWEN2_VL = {
    "patch_size": 8,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 256, "longest_edge": 16384},
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
OLDER_SPELLING = {
    "patch_size": 14,
    "temporal_patch_size": 1,
    "merge_size": 2,
    "min_pixels": 3136,
    "max_pixels": 50176,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
# Its checkpoints name the same image processor.
QWEN3_VL = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@pytest.mark.parametrize("settings", [QWEN2_VL, OLDER_SPELLING, QWEN3_VL])
def test_patches_equal_the_library(tmp_path, settings):
    model = load(make_checkpoint(tmp_path / "model", picture=settings))
    theirs = transformers.Qwen2VLImageProcessorPil(**settings)
    for (width, height), mode in itertools.product(SIZES, ["RGB", "L", "P"]):
        image = picture(width, height, mode)
        ours, expected = model.cut(image), theirs(image, return_tensors="pt")
        assert list(ours.grid) == expected["image_grid_thw"][0].tolist()
        assert ours.pixels.dtype == torch.uint8 and ours.pixels.is_contiguous()
        assert torch.equal(model.normalise(ours.pixels), expected["pixel_values"])


def test_transparent_pictures_lie_on_white(models):
    model = models["qwen2_vl"]
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))  # black ink, none of it visible
    white = Image.new("RGB", (32, 32), "white")
    assert torch.equal(model.cut(clear).pixels, model.cut(white).pixels)
    half, grey = picture(48, 32, "RGBA"), picture(48, 32, "RGB")
    half.putalpha(255)
    assert torch.equal(model.cut(half).pixels, model.cut(grey).pixels)
    indexed = Image.new("P", (32, 32))
    indexed.info["transparency"] = 0
    assert torch.equal(model.cut(indexed).pixels, model.cut(white).pixels)


def test_a_line_is_no_picture(models):
    with pytest.raises(ValueError, match="too narrow"):
        models["qwen2_vl"].encode("what is this?", [picture(603, 3)])


# ------------------------------------------------------------------------- equal to the library
# What is compared with transformers, on checkpoints with the published shape rules, at toy width.
# Each check returns the largest difference as a fraction of the largest value; 1.0 for things that
# should be the very same and are not.


def conversations():
    a, b, c = picture(50, 70), picture(64, 64), picture(90, 33)
    yield ["how many bars are red?"]
    yield [a, "how many bars?"]
    yield ["\n\nbefore ", a, "  after\n"]
    yield [a, b, "which is larger?", c]
    yield ["left: ", b, " right: ", c, "\n"]
    yield ["<think> and \\boxed{7} ü 漢 \ue0001\ue001", a]
    yield [a]


def larger_conversations():
    yield from conversations()
    yield ["which?", picture(190, 150)]  # 7 x 5 tokens: more than a window of Qwen2.5-VL (4 x 4)


def all_conversations():
    yield from larger_conversations()
    for size in SIZES:
        yield [picture(*size), "how many?"]


def as_the_library_does(model, parts, reply=()) -> dict:
    """Their way: render all at once, cut the pictures, repeat image tokens as the grids say. No
    positions: the model finds them."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in parts
    ]
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = {}
    pictures = [part for part in parts if not isinstance(part, str)]
    if pictures:
        settings = json.loads(model.side_files["preprocessor_config.json"])
        cutter = transformers.Qwen2VLImageProcessorPil(**settings)
        inputs = dict(cutter(pictures, return_tensors="pt"))
        for rows, columns in inputs["image_grid_thw"][:, 1:].tolist():
            text = text.replace("<|image_pad|>", "<|kept|>" * (rows * columns // 4), 1)
    ids = model.tokenizer(text.replace("<|kept|>", "<|image_pad|>"), return_tensors="pt").input_ids
    ids = torch.cat([ids, torch.tensor([list(reply)], dtype=torch.long)], 1)
    kinds = (ids == model.config.image_token_id).int()
    return inputs | {"input_ids": ids, "mm_token_type_ids": kinds}


def apart(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def inputs(model):
    found = [0.0]
    for parts in all_conversations():
        prompt, theirs = model.encode(parts), as_the_library_does(model, parts)
        grids = theirs["image_grid_thw"].tolist() if prompt.pictures else []
        same_tokens = prompt.tokens == theirs["input_ids"][0].tolist()
        same_grids = [list(p.grid) for p in prompt.pictures] == grids
        found.append(float(not (same_tokens and same_grids)))
        if grids:
            found.append(apart(model.collate([prompt])["pixel_values"], theirs["pixel_values"]))
    return max(found)


def positions(model):
    for parts in all_conversations():
        prompt, theirs = model.encode(parts), as_the_library_does(model, parts)
        found, delta = model.model.model.get_rope_index(
            theirs["input_ids"],
            mm_token_type_ids=theirs["mm_token_type_ids"],
            image_grid_thw=theirs.get("image_grid_thw"),
        )
        if not torch.equal(prompt.positions, found[:, 0]):
            return 1.0
        if prompt.next_position != len(prompt.tokens) + delta.item():
            return 1.0
    return 0.0


@torch.no_grad()
def forward(model):
    found = []
    for parts in larger_conversations():
        ours = model.hidden(model.collate([model.encode(parts)])) @ model.lm_head.T
        found.append(apart(ours, model.model(**as_the_library_does(model, parts)).logits))
    return max(found)


def greedy(model):
    never = [model.config.image_token_id, model.config.video_token_id]
    for parts in larger_conversations():
        theirs = as_the_library_does(model, parts)
        tokens = model.model.generate(
            **theirs, do_sample=False, max_new_tokens=24, suppress_tokens=never
        )
        expected = tokens[0, theirs["input_ids"].shape[1] :].tolist()
        replies = generate(model, [model.encode(parts)], max_new_tokens=24, temperature=0)
        if replies[0][0].tokens != expected:
            return 1.0
    return 0.0


def gradient(model):
    """Of a training step: our packed log-probs against autograd through their forward, one reply at
    a time. The loss of a first update: -A pi / pi_old per token."""
    network, bundles = model.model, []
    for group, parts in enumerate(larger_conversations()):
        prompt, bundle = model.encode(parts), []
        for k, advantage in enumerate((1.5, -0.5)):
            reply = [60 + group, 70 + k, 80, model.eos_ids[0]][k:]
            bundle.append(Rollout(prompt, reply, [0.0] * len(reply), advantage, group=group))
        bundles.append(bundle)
    rollouts = [rollout for bundle in bundles for rollout in bundle]
    count = sum(len(r.tokens) for r in rollouts)

    reference = 0.0
    for bundle, parts in zip(bundles, larger_conversations()):
        for r in bundle:
            logits = network(**as_the_library_does(model, parts, r.tokens)).logits
            logits = logits[0, -len(r.tokens) - 1 : -1]
            logp = logits.log_softmax(-1).gather(1, torch.tensor(r.tokens)[:, None])
            reference = reference - r.advantage * (logp - logp.detach()).exp().sum() / count
    advantages = torch.tensor([r.advantage for r in rollouts for _ in r.tokens])
    _, _, loss = token_logps(model, bundles, 1.0, -advantages / count)

    def flat_gradient(loss):
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        return torch.cat([g.flatten() for g in gradients])

    return apart(flat_gradient(loss), flat_gradient(reference))


@torch.no_grad()
def save_and_load(model):
    parts = [picture(50, 70), "how many?"]
    ours = model.hidden(model.collate([model.encode(parts)])) @ model.lm_head.T
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        alone = transformers.AutoModelForImageTextToText.from_pretrained(f"{folder}/model")
        return apart(alone(**as_the_library_does(model, parts)).logits, ours)


NAMES = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL and MiMo-VL", "qwen3_vl": "Qwen3-VL"}
TOLERANCE = {
    inputs: 1e-5,
    positions: 0,
    forward: 1e-5,
    greedy: 0,
    gradient: 1e-5,
    save_and_load: 1e-5,
}


@pytest.fixture(scope="module")
def real_ones(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    return {
        family: load(make_checkpoint(root / family, family, std=0.15, real=True))
        for family in FAMILIES
    }


@pytest.mark.parametrize("what", TOLERANCE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", FAMILIES, ids=NAMES.get)
def test_equal_to_the_library(real_ones, family, what):
    found = what(real_ones[family])
    # pytest -s shows the table
    print(f"| {NAMES[family]} | {what.__name__} | {found:.1e} | {TOLERANCE[what]:.0e} |")
    assert found <= TOLERANCE[what]


# ----------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_batched_equals_one_by_one(models, family, side):
    model = models[family]
    prompts = [model.encode(parts) for parts in conversations()]
    replies = [list(range(40, 40 + length)) for length in (3, 0, 7, 1, 5, 2, 4)]
    with torch.no_grad():
        batch = padded(model, prompts, replies, side=side)
        together = model.hidden(batch)
        for i, (prompt, reply) in enumerate(zip(prompts, replies)):
            alone = model.hidden(padded(model, [prompt], [reply]))[0]
            mask = batch["attention_mask"][i].bool()
            assert mask.sum() == len(prompt.tokens) + len(reply)
            assert mask[-1 if side == "left" else 0]
            torch.testing.assert_close(together[i][mask], alone, rtol=2e-3, atol=2e-3)
            assert batch["input_ids"][i][mask].tolist() == prompt.tokens + reply


def test_prompts_are_padded_on_the_right(models):
    model = models["qwen2_vl"]
    prompts = [model.encode(parts) for parts in conversations()]
    ours, slow = model.collate(prompts), padded(model, prompts, side="right")
    assert ours.keys() == slow.keys() and "pictures" in ours
    for name, tensor in slow.items():
        assert torch.equal(ours[name], tensor), name


def test_without_pictures_there_are_no_picture_inputs(models):
    model = models["qwen2_vl"]
    assert model.picture_inputs([model.encode("how many?"), model.encode("why?")]) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_picture_is_seen_once(models, family):
    """Three prompts on two pictures: the values of separate copies, from fewer patches."""
    model, images = models[family], [picture(50, 70), picture(90, 60)]
    a, b = map(model.cut, images)
    questions = ["what?", "and that?", "why?"]
    cut, uncut = [[a], [b], [b, a]], [images[:1], images[1:], images[::-1]]
    shared = model.collate([model.encode(text, seen) for text, seen in zip(questions, cut)])
    again = model.collate([model.encode(text, seen) for text, seen in zip(questions, uncut)])
    assert shared["pictures"].tolist() == again["pictures"].tolist() == [0, 1, 1, 0]
    patches = len(a.pixels), len(b.pixels)
    assert len(shared["pixel_values"]) == len(again["pixel_values"]) == sum(patches)
    with torch.no_grad():
        theirs = model.model.model(**for_the_library(shared)).last_hidden_state
        real = shared["attention_mask"].bool()
        torch.testing.assert_close(model.hidden(shared)[real], theirs[real], rtol=1e-4, atol=1e-5)


def test_reply_positions(models):
    model = models["qwen2_vl"]
    prompt = model.encode("what?", [picture(64, 64)])
    found = padded(model, [prompt], [[50, 51, 52]])["position_ids"][:, 0]
    start = prompt.next_position
    assert start < len(prompt.tokens)  # a picture takes fewer positions
    assert found[:, -3:].tolist() == [[start, start + 1, start + 2]] * 3
    assert torch.equal(found[:, :-3], prompt.positions)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_switched_for_a_while_only(folders, family):
    model = load(folders[family])
    batch = padded(model, [model.encode(parts) for parts in conversations()])
    config = model.model.model.language_model.config
    asked = []

    def spy(module, *args, **options):
        asked.append(module.layer_idx)
        return transformers.integrations.sdpa_attention.sdpa_attention_forward(
            module, *args, **options
        )

    transformers.AttentionInterface.register("spy", spy)
    with torch.no_grad():
        before = model.hidden(batch)
        assert asked == [] and config._attn_implementation == "sdpa"
        with packed.attention(model, "spy"):
            model.hidden(batch)
            assert asked == [0, 1]  # the layers of the language model, and no other
            with packed.attention(model, "eager"):
                assert config._attn_implementation == "eager"
            assert config._attn_implementation == "spy"
        assert torch.equal(model.hidden(batch), before) and asked == [0, 1]
    with pytest.raises(ZeroDivisionError), packed.attention(model, "spy"):
        raise ZeroDivisionError
    assert config._attn_implementation == "sdpa"


# ------------------------------------------------------------------------------ weights in and out


def test_state_goes_out_and_in(folders):
    one, two = load(folders["qwen2_vl"]), load(folders["qwen2_vl"])
    before, address = one.state(), one.lm_head.data_ptr()
    with torch.no_grad():
        for weight in two.model.parameters():
            weight += 1
    one.load_state(two.state())
    # `before` was a copy, then.
    assert all(torch.equal(one.state()[name], weight + 1) for name, weight in before.items())
    assert one.lm_head.data_ptr() == address
    with pytest.raises(ValueError, match="another model"):
        one.load_state({"a": torch.zeros(1)})

    # Weights are copied in: the network does not follow those of another, and leaves them alone.
    actor = load(folders["qwen2_vl"])
    for network in (one, two):
        actor.load_state(network.weights())
        for name, weight in network.weights().items():
            assert torch.equal(actor.weights()[name], weight)
            assert actor.weights()[name].data_ptr() != weight.data_ptr()
    with torch.no_grad():
        next(iter(actor.weights().values())).add_(1)
    assert all(torch.equal(one.state()[name], two.state()[name]) for name in before)
    assert all(torch.equal(one.state()[name], weight + 1) for name, weight in before.items())
    half = load(folders["qwen2_vl"], dtype="bfloat16")
    half.load_state(one.weights())
    assert half.dtype == torch.bfloat16 and torch.equal(half.lm_head, one.lm_head.bfloat16())


def test_float32_products_are_exact():
    """Positions go through a float32 product (rotary angles), and TF32 keeps 11 bits."""
    assert torch.get_float32_matmul_precision() == "highest"
