"""Small random checkpoints of the real classes, made on the spot, for the tests of several modules."""

import json
from pathlib import Path

import torch
import transformers
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
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The shape of the hub's: a default system turn, pictures counted, parts told apart by type or by key, films.
REAL_CHAT_TEMPLATE = (
    "{%- set pictures = namespace(number=0) -%}{%- for message in messages -%}"
    "{%- if loop.first and message['role'] != 'system' -%}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{%- endif -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{%- set pictures.number = pictures.number + 1 -%}"
    "{%- if add_vision_id -%}{{ 'Picture ' ~ pictures.number ~ ': ' }}{%- endif -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'video' or 'video' in part -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
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
        extra_special_tokens=SPECIAL[1:2] + SPECIAL[3:],
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
):
    """Write a random checkpoint and return its folder. `std` is large, so that logits differ clearly. real: patches, windows,
    limits of pictures and chat template as in the published checkpoints; else smaller ones."""
    folder, tokenizer = Path(folder), make_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    section = [hidden // 32, hidden // 32 * 2, hidden // 32]  # sums to half of a head
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=inner or 2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=std,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=ids["<|im_end|>"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": section},
    )
    size = (16 if family == "qwen3_vl" else 14) if real else 8
    patch = dict(
        patch_size=size, temporal_patch_size=2, spatial_merge_size=2, initializer_range=std
    )
    if family == "qwen2_vl":
        vision = dict(depth=2, embed_dim=32, num_heads=2, hidden_size=hidden, mlp_ratio=2, **patch)
        config, network = transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration
    elif family == "qwen2_5_vl":
        # Windows of 32 pixels, 2 x 2 tokens: smaller than the test pictures, so that windows matter.
        vision = dict(
            depth=3,
            hidden_size=32,
            num_heads=2,
            out_hidden_size=hidden,
            intermediate_size=64,
            window_size=112 if real else 32,
            fullatt_block_indexes=[1],
            **patch,
        )
        config, network = (
            transformers.Qwen2_5_VLConfig,
            transformers.Qwen2_5_VLForConditionalGeneration,
        )
    else:
        vision = dict(
            depth=3,
            hidden_size=32,
            num_heads=2,
            out_hidden_size=hidden,
            intermediate_size=64,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
            **patch,
        )
        text["head_dim"] = hidden // 4
        config, network = transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration
    config = config(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=tie,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(seed)
    model = network(config)
    for weight in model.parameters():  # biases are 0 and norms 1, which would hide a forgotten one
        if weight.dim() == 1:
            weight.data += 0.1 * torch.randn_like(weight)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"]
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    limits = {14: (3136, 12845056), 16: (65536, 16777216), 8: (256, 16384)}[size]
    colours = (
        ([0.5] * 3, [0.5] * 3)
        if size == 16
        else ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Qwen2VLImageProcessor",
                "patch_size": size,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": colours[0],
                "image_std": colours[1],
                "size": {"shortest_edge": limits[0], "longest_edge": limits[1]},
            }
        )
    )
    if real:  # there, not in the tokenizer
        (folder / "chat_template.jinja").unlink()
        (folder / "chat_template.json").write_text(
            json.dumps({"chat_template": REAL_CHAT_TEMPLATE})
        )
    if prompts:
        (folder / "prompts.json").write_text(
            json.dumps(
                {
                    "proposer": "propose {topic}",
                    "solver": "{question}",
                    "coder": {"svg": "draw {caption}", "python": "plot {caption}"},
                }
            )
        )
    return folder


def for_the_library(batch):
    """The same batch with a picture repeated for every place it stands at, which is how transformers wants it."""
    batch = dict(batch)
    if "pictures" in batch:
        grids, order = batch["image_grid_thw"], batch.pop("pictures").tolist()
        patches = batch["pixel_values"].split(grids.prod(1).tolist())
        batch["pixel_values"], batch["image_grid_thw"] = (
            torch.cat([patches[i] for i in order]),
            grids[order],
        )
    return batch
