"""Checkpoint folders: find one by name, load what is in it, write one.

A checkpoint is what transformers' save_pretrained leaves (config.json, *.safetensors and more), or
adapters in peft's format (adapter_config.json, which names their base, adapter_model.safetensors).
Either may carry `prompts.json`, the prompts of the three roles.
"""

import json
import re
import shutil
from pathlib import Path

import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from support.lora import add_lora

transformers.utils.logging.disable_progress_bar()  # a run loads and saves all the time
# model_type in config.json -> class of transformers
FAMILIES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
SIZES = {"Qwen2-VL": "2B 7B 72B", "Qwen2.5-VL": "3B 7B 32B 72B", "Qwen3-VL": "2B 4B 8B 32B"}
# What may be typed for a hub id.
SHORT_NAMES = {
    f"{series}-{size}": f"Qwen/{series}-{size}-Instruct"
    for series, sizes in SIZES.items()
    for size in sizes.split()
}
SHORT_NAMES["MiMo-VL-7B"] = "XiaomiMiMo/MiMo-VL-7B-SFT-2508"
TINY = Path(__file__).parent.parent / "tiny" / "model"
ADAPTERS = "adapter_config.json"  # a folder that has it holds adapters
# Small files which we read or other programs want: kept as they were found, and saved again.
SIDE_FILES = """preprocessor_config.json processor_config.json video_preprocessor_config.json
chat_template.json""".split()


def read_json(folder, name: str):
    """What a file of the folder holds; None: there is no such file."""
    file = Path(folder) / name
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def find_checkpoint(name: str, weights=True) -> Path:
    """The folder of `tiny`, of a folder's name, or of what the hub (or its cache) has by this name;
    of adapters, the folder of their base.

    weights=False: they are not wanted. FileNotFoundError: there is nothing. ValueError: it is of
    another family; it is refused before its weights are fetched.
    """
    adapters = read_json(name, ADAPTERS)
    if adapters:
        try:
            return find_checkpoint(str(adapters["base_model_name_or_path"]), weights)
        except FileNotFoundError as error:
            reason = f"{name} needs the base that its {ADAPTERS} names, where it may be changed"
            raise FileNotFoundError(f"{reason}: {error}") from error
    if name == "tiny":
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
    config = read_json(folder, "config.json")
    if config is None:
        raise FileNotFoundError(f"{folder} is no checkpoint: it has no config.json")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"{folder} holds a model of type {family!r}; supported are Qwen2-VL, Qwen2.5-VL "
            f"(with MiMo-VL) and Qwen3-VL, of these by name: {', '.join(SHORT_NAMES)}"
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
    template = read_json(folder, "chat_template.json")
    if template:  # the tokenizer's own may be for text only
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


def picture_settings(folder: Path) -> dict:
    """How pictures are cut, whichever file says so; `min_pixels` and `max_pixels` are among it."""
    settings = read_json(folder, "preprocessor_config.json")
    if settings is None:  # where newer versions put it
        settings = (read_json(folder, "processor_config.json") or {}).get("image_processor")
    if settings is None:
        raise FileNotFoundError(f"{folder}: no preprocessor_config.json: how are pictures cut?")
    # Three spellings of the limits of a picture's area.
    size = settings.get("size") or {}
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        settings[name] = settings.get(name) or size.get(edge) or size[name]
    return settings


def load_adapters(vlm, folder):
    """Put a folder's adapters on the network, which is their base, and take on their prompts."""
    config = read_json(folder, ADAPTERS)
    # Others' adapters, scaled in another way. Those on other layers fail in `load_state`.
    if config.get("use_rslora") or config.get("alpha_pattern"):
        raise ValueError(f"{folder}: adapters scaled by anything but alpha / r are not supported")
    if not vlm.lora:
        add_lora(vlm, config["r"], config["lora_alpha"])
    try:
        state = load_file(Path(folder) / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise FileNotFoundError(f"{folder}/adapter_model.safetensors: {error}") from error
    names = (name.removeprefix("base_model.model.").removesuffix(".weight") for name in state)
    vlm.load_state(dict(zip(names, state.values())))
    vlm.base = config["base_model_name_or_path"]
    vlm.prompts = read_json(folder, "prompts.json") or vlm.prompts


def save_adapters(vlm, weights: dict, folder: Path):
    """The two files of peft. All else is in the base's folder."""
    state = {f"base_model.model.{name}.weight": weight for name, weight in weights.items()}
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": vlm.base,
        # The vision tower of Qwen2.5-VL has layers of the same names.
        "target_modules": r".*language_model\.layers\..*_proj",
        "r": vlm.lora["rank"],
        "lora_alpha": vlm.lora["alpha"],
    }
    (folder / ADAPTERS).write_text(json.dumps(config, indent=2) + "\n")


def write_checkpoint(vlm, weights: dict, folder) -> None:
    """Write a plain checkpoint of these weights; of a network with LoRA, its adapters alone.

    The folder, which replaces one that was there, has this name only when it is whole.
    """
    folder = Path(folder).absolute()
    new = folder.with_name(f".{folder.name}.new")
    # Left by a process that was killed while it wrote here.
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)

    if vlm.lora:
        save_adapters(vlm, weights, new)
    else:
        # config.json, generation_config.json, model.safetensors
        vlm.model.save_pretrained(new, state_dict=weights)
        # tokenizer.json, tokenizer_config.json, chat_template.jinja
        vlm.tokenizer.save_pretrained(new)
        for name, text in vlm.side_files.items():
            (new / name).write_text(text)
    (new / "prompts.json").write_text(json.dumps(vlm.prompts, indent=2) + "\n")

    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
