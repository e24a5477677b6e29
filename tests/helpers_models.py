"""Small random checkpoints of the real classes, made on the spot, and what goes into them."""

import json
from pathlib import Path

import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
ADDED = ["<think>", "</think>", "\\boxed{", "<caption>", "</caption>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The shape of the hub's: a default system turn, pictures counted, content told apart by type or by
# key, films.
REAL_CHAT_TEMPLATE = (
    "{%- set pictures = namespace(number=0) -%}{%- for message in messages -%}"
    "{%- if loop.first and message['role'] != 'system' -%}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{%- endif -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{%- set pictures.number = pictures.number + 1 -%}"
    "{%- if add_vision_id -%}{{ 'Picture ' ~ pictures.number ~ ': ' }}{%- endif -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'video' or 'video' in part -%}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def make_tokenizer(vocabulary=300):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [
        "user\n",
        "assistant\n",
        "system\nYou help.",
        "how many bars are red? ",
        "the largest value is 7\n\n",
        "draw a circle",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(ADDED),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:2] + SPECIAL[3:],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_checkpoint(
    folder,
    family="qwen2_vl",
    seed=0,
    std=0.3,
    hidden=32,
    layers=2,
    tie=True,
    prompts=True,
    inner=0,
    real=False,
    picture=None,
):
    """Write a random checkpoint, return its folder. `std` is large, so that logits differ clearly.

    real: patches, windows, limits of pictures and chat template as in the published checkpoints;
    else smaller ones. picture: the content of preprocessor_config.json.
    """
    folder, tokenizer = Path(folder), make_tokenizer()
    end, text_end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    patch = 8
    if real:
        patch = 16 if family == "qwen3_vl" else 14
    text = text_config(family, len(tokenizer), hidden, layers, inner or 2 * hidden, std, end)
    text["tie_word_embeddings"] = tie  # transformers 4 looks here
    picture = picture or picture_settings(patch)
    vision = vision_config(family, hidden, picture, 112 if real else 32, std)
    # transformers 4 can do all of this as well: see test_other_versions.py.
    config = transformers.AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=tie,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    for weight in model.parameters():  # biases are 0 and norms 1, which would hide a forgotten one
        if weight.dim() == 1:
            weight.data += 0.1 * torch.randn_like(weight)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=[end, text_end], pad_token_id=text_end
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write(folder / "preprocessor_config.json", picture)
    if real:  # there, not in the tokenizer
        (folder / "chat_template.jinja").unlink()
        write(folder / "chat_template.json", {"chat_template": REAL_CHAT_TEMPLATE})
    if prompts:
        coder = {"svg": "draw {caption}", "python": "plot {caption}"}
        ours = {"proposer": "propose {topic}", "solver": "{question}", "coder": coder}
        write(folder / "prompts.json", ours)
    return folder


def text_config(family, words, hidden, layers, inner, std, end):
    section = [hidden // 32, hidden // 32 * 2, hidden // 32]  # sums to half of a head
    config = dict(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=std,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=end,
        rope_theta=1e4,
        rope_scaling={"rope_type": "default", "mrope_section": section},
    )
    if family == "qwen3_vl":
        config["head_dim"] = hidden // 4
    return config


def vision_config(family, hidden, picture, window, std):
    config = dict(
        num_heads=2,
        patch_size=picture["patch_size"],
        temporal_patch_size=picture["temporal_patch_size"],
        spatial_merge_size=picture["merge_size"],
        initializer_range=std,
    )
    if family == "qwen2_vl":
        return config | dict(depth=2, embed_dim=32, hidden_size=hidden, mlp_ratio=2)
    config |= dict(depth=3, hidden_size=32, out_hidden_size=hidden, intermediate_size=64)
    if family == "qwen2_5_vl":
        # Windows of 32 pixels, 2 x 2 tokens, are smaller than the test pictures, so they matter.
        return config | dict(window_size=window, fullatt_block_indexes=[1])
    return config | dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])


def picture_settings(patch):
    shortest, longest = {14: (3136, 12845056), 16: (65536, 16777216), 8: (256, 16384)}[patch]
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    if patch == 16:
        mean, std = [0.5] * 3, [0.5] * 3
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": mean,
        "image_std": std,
        "size": {"shortest_edge": shortest, "longest_edge": longest},
    }


def write(file, value):
    file.write_text(json.dumps(value))


def picture(width, height, mode="RGB"):
    """Noise in colour, the same each time: resizing a flat picture would prove nothing."""
    torch.manual_seed(width * 1000 + height)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).convert(mode)


def padded(vlm, prompts, replies=None, side="left"):
    """[prompt + reply] as one batch, padded on either side; what generate and grpo do without.

    replies: of each prompt a list of tokens, whose positions go on behind the prompt's highest one.
    Padding has mask 0 and position 0.
    """
    replies = replies or [[] for _ in prompts]
    lengths = [len(prompt.tokens) + len(reply) for prompt, reply in zip(prompts, replies)]
    size = len(prompts), max(lengths)
    ids, mask = torch.full(size, vlm.pad_id), torch.zeros(size, dtype=torch.long)
    positions = torch.zeros(3, *size, dtype=torch.long)
    for i, (prompt, reply, length) in enumerate(zip(prompts, replies, lengths, strict=True)):
        start = size[1] - length if side == "left" else 0
        middle, end = start + len(prompt.tokens), start + length
        ids[i, start:end] = torch.tensor([*prompt.tokens, *reply])
        mask[i, start:end] = 1
        positions[:, i, start:middle] = prompt.positions
        positions[:, i, middle:end] = prompt.next_position + torch.arange(len(reply))
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    batch = {name: tensor.to(vlm.device) for name, tensor in batch.items()}
    return batch | vlm.picture_inputs(prompts)


def for_the_library(batch):
    """The same batch as transformers wants it: a picture repeated for every place it stands at."""
    batch = dict(batch)
    if "pictures" in batch:
        grids, order = batch["image_grid_thw"], batch.pop("pictures").tolist()
        patches = batch["pixel_values"].split(grids.prod(1).tolist())
        batch["pixel_values"] = torch.cat([patches[i] for i in order])
        batch["image_grid_thw"] = grids[order]
    return batch
