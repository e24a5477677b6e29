"""Checkpoint folders: find one by name, load what is in it, write one.

A checkpoint is what transformers' save_pretrained leaves (config.json, *.safetensors and more),
and it may carry `prompts.json`, the prompts of the three roles.
"""

import json
import os
import re
import shutil
from pathlib import Path

import transformers
from safetensors import SafetensorError

from support.lora import save_adapters

transformers.utils.logging.disable_progress_bar()  # a run loads and saves all the time
# model_type in config.json -> class of transformers
FAMILIES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
# What may be typed for a hub id.
SHORT_NAMES = {
    "Qwen2-VL-2B": "Qwen/Qwen2-VL-2B-Instruct",
    "Qwen2-VL-7B": "Qwen/Qwen2-VL-7B-Instruct",
    "Qwen2-VL-72B": "Qwen/Qwen2-VL-72B-Instruct",
    "Qwen2.5-VL-3B": "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen2.5-VL-7B": "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen2.5-VL-32B": "Qwen/Qwen2.5-VL-32B-Instruct",
    "Qwen2.5-VL-72B": "Qwen/Qwen2.5-VL-72B-Instruct",
    "Qwen3-VL-2B": "Qwen/Qwen3-VL-2B-Instruct",
    "Qwen3-VL-4B": "Qwen/Qwen3-VL-4B-Instruct",
    "Qwen3-VL-8B": "Qwen/Qwen3-VL-8B-Instruct",
    "Qwen3-VL-32B": "Qwen/Qwen3-VL-32B-Instruct",
    "MiMo-VL-7B": "XiaomiMiMo/MiMo-VL-7B-SFT-2508",
}
TINY = Path(__file__).parent.parent / "tiny" / "model"
# Small files which we read or other programs want: kept as they were found, and saved again.
SIDE_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)


def find_checkpoint(name: str, weights=True) -> Path:
    """The folder of `tiny`, of a folder's name, or of what the hub (or its cache) has by this name.

    weights=False: they are not wanted. FileNotFoundError: there is nothing. ValueError: it is of
    another family; it is refused before its weights are fetched.
    """
    if name == "tiny":
        if not (TINY / "config.json").exists():
            raise FileNotFoundError(
                f"the tiny base is not in {TINY}; make it with: python tiny/build.py"
            )
        return TINY
    if Path(name).is_dir():
        return Path(name)
    hub_id = SHORT_NAMES.get(name, name)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", hub_id):
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a known model; known: tiny, "
            f"{', '.join(SHORT_NAMES)}, or a hub id such as Qwen/Qwen2-VL-2B-Instruct"
        )
    small = ["*.json", "*.jinja", "*.txt"]
    folder = fetch(name, hub_id, small)
    check_family(folder)
    return fetch(name, hub_id, [*small, "*.safetensors"]) if weights else folder


def fetch(name: str, hub_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    # No network, no such repository, a gated one: many classes of error, one way out.
    except Exception as error:
        folder = Path(name).name
        raise FileNotFoundError(
            f"{name!r} is no folder here and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}); where there is a network: hf download {hub_id} "
            f"--local-dir {folder}, then here: --model {folder}"
        ) from error


def check_family(folder: Path) -> str:
    """The family of the checkpoint in this folder, or an error that says what would be right."""
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} is no checkpoint: it has no config.json")
    try:
        family = json.loads((folder / "config.json").read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder}/config.json is no JSON object: {error}") from error
    if family not in FAMILIES:
        raise ValueError(
            f"{folder} holds a model of type {family!r}; supported are Qwen2-VL, Qwen2.5-VL "
            f"(with MiMo-VL) and Qwen3-VL (types {', '.join(FAMILIES)}), of these by name: "
            f"{', '.join(SHORT_NAMES)}"
        )
    return family


def load_network(folder: Path, dtype, attention: str):
    """-> (transformers' network, in host memory; its tokenizer)"""
    network = getattr(transformers, FAMILIES[check_family(folder)])
    try:
        model, report = network.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # Weights or tokenizer are missing, or cut off.
    except (OSError, SafetensorError) as error:
        raise FileNotFoundError(f"{folder}: {str(error).splitlines()[0]}") from error
    # The library would make up missing weights at random.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{folder}: {len(missing)} weights are missing, for example {missing[0]}")
    if (folder / "chat_template.json").exists():  # the tokenizer's own may be for text only
        template = json.loads((folder / "chat_template.json").read_text())
        tokenizer.chat_template = template["chat_template"]
    return model, tokenizer


def end_tokens(model, tokenizer) -> tuple[int, ...]:
    """Qwen's generation config names <|im_end|> and <|endoftext|>. Replies end with either."""
    named = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if not ends:
        raise ValueError("neither generation_config.json nor the tokenizer names an end token")
    return tuple(sorted(ends))


def read_side_files(folder: Path) -> dict[str, str]:
    """name -> text of those of SIDE_FILES that are there"""
    files = [folder / name for name in SIDE_FILES]
    return {file.name: file.read_text() for file in files if file.exists()}


def picture_settings(folder: Path, side_files: dict[str, str]) -> dict:
    """How pictures are cut, whichever file says so; `min_pixels` and `max_pixels` are among it."""
    if "preprocessor_config.json" in side_files:
        settings = json.loads(side_files["preprocessor_config.json"])
    elif "processor_config.json" in side_files:  # where newer versions put it
        settings = json.loads(side_files["processor_config.json"])["image_processor"]
    else:
        raise FileNotFoundError(
            f"{folder}: no preprocessor_config.json, which says how pictures are cut"
        )
    # Three spellings of the limits of a picture's area.
    size = settings.get("size") or {}
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        settings[name] = settings.get(name) or size.get(edge) or size[name]
    return settings


def write_checkpoint(vlm, weights: dict, folder) -> None:
    """Write a plain checkpoint of these weights; of a network with LoRA, its adapters beside them.

    All is written under a temporary name first: the folder appears when it is whole, and replaces
    one that was there.
    """
    folder = Path(folder).absolute()
    # Left by a process that was killed while it wrote here.
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    new = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    new.mkdir(parents=True)

    # config.json, generation_config.json, model.safetensors
    vlm.model.save_pretrained(new, state_dict=weights)
    if vlm.lora:
        save_adapters(vlm, new)
    # tokenizer.json, tokenizer_config.json, chat_template.jinja
    vlm.tokenizer.save_pretrained(new)
    for name, text in vlm.side_files.items():
        (new / name).write_text(text)
    (new / "prompts.json").write_text(json.dumps(vlm.prompts, indent=2) + "\n")

    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
