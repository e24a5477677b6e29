"""Checkpoint folders: find one by name, check and load what is in it, write one.

A checkpoint is what transformers' save_pretrained leaves (config.json, *.safetensors and more), or
adapters in peft's format (adapter_config.json, which names their base, adapter_model.safetensors).
Either may carry `prompts.json`, the prompts of the three roles.
"""

import json
import re
from pathlib import Path

import transformers
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import revert_weight_conversion

from support.lora import add_lora
from support.machine import reason, replacing

transformers.utils.logging.disable_progress_bar()  # a run loads and saves all the time
transformers.utils.logging.set_verbosity_error()  # what it would warn of, `load_network` refuses
# model_type in config.json -> class of transformers
FAMILIES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
QWEN = """Qwen2-VL-2B Qwen2-VL-7B Qwen2-VL-72B Qwen2.5-VL-3B Qwen2.5-VL-7B Qwen2.5-VL-32B
    Qwen2.5-VL-72B Qwen3-VL-2B Qwen3-VL-4B Qwen3-VL-8B Qwen3-VL-32B""".split()
# What may be typed for a hub id.
SHORT_NAMES = {name: f"Qwen/{name}-Instruct" for name in QWEN}
SHORT_NAMES["MiMo-VL-7B"] = "XiaomiMiMo/MiMo-VL-7B-SFT-2508"
TINY = Path(__file__).parent.parent / "tiny" / "model"
ADAPTERS = "adapter_config.json"  # a folder that has it holds adapters
SMALL = ("*.json", "*.jinja", "*.txt")  # all but weights
QUANTISED = ("quantization_config", "quantization", "compression_config")  # in config.json
WHOLE = {"F64", "F32", "F16", "BF16", "I64", "BOOL"}  # types of weights that are not quantised
# What adapters of another kind have: more than A, B, alpha / r on each layer.
OTHERS = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "modules_to_save")


def read_json(folder, name: str) -> dict | None:
    """The object in a file of the folder; None: there is no such file."""
    file = Path(folder) / name
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} should hold an object in braces, not a {type(found).__name__}")
    return found


def read_adapters(folder) -> dict | None:
    """What adapter_config.json says; None: the folder holds none. ValueError: of another kind."""
    config = read_json(folder, ADAPTERS)
    if config is None:
        return None
    base, rank, alpha = map(config.get, ("base_model_name_or_path", "r", "lora_alpha"))
    numbers = isinstance(rank, int) and isinstance(alpha, int | float) and rank > 0 < alpha
    plain = config.get("peft_type") == "LORA" and not any(map(config.get, OTHERS))
    if not isinstance(base, str) or not numbers or not plain:
        wanted = "base_model_name_or_path, r, lora_alpha (scaled by alpha / r), peft_type LORA"
        raise ValueError(f"{folder}/{ADAPTERS} should have {wanted}, and no {', '.join(OTHERS)}")
    return config


def find_checkpoint(name: str, weights=True) -> Path:
    """The folder of `tiny`, of a folder's name, or of what the hub (or its cache) has by this name;
    of adapters, the folder of their base.

    weights=False: they are not wanted. FileNotFoundError: there is nothing. ValueError: it is of
    another family; it is refused before its weights are fetched.
    """
    adapters = read_adapters(name)
    if adapters:
        base = adapters["base_model_name_or_path"]
        if read_json(base, ADAPTERS):
            raise ValueError(f"{name}/{ADAPTERS} names {base} as base, which holds adapters itself")
        try:
            return find_checkpoint(base, weights)
        except FileNotFoundError as error:
            what = f"{name} needs the base that its {ADAPTERS} names, where it may be changed"
            raise FileNotFoundError(f"{what}: {error}") from error
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
    folder = fetch(name, hub_id, SMALL)
    check_family(folder)
    return fetch(name, hub_id, [*SMALL, "*.safetensors"]) if weights else folder


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
    """The family of the checkpoint in this folder, or an error that says what would be right. Of
    files of weights that are there already, headers alone are read."""
    config = read_json(folder, "config.json")
    if config is None:
        raise FileNotFoundError(f"{folder} is no checkpoint: it has no config.json")
    family = config.get("model_type")
    if str(family) not in FAMILIES:
        raise ValueError(
            f"{folder} holds a model of type {family!r}; supported are Qwen2-VL, Qwen2.5-VL "
            f"(with MiMo-VL) and Qwen3-VL, of these by name: {', '.join(SHORT_NAMES)}"
        )
    quantised = [f"config.json has a {key}" for key in QUANTISED if config.get(key)]
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as weights:
                types = {weights.get_slice(name).get_dtype() for name in weights.keys()}
        except (OSError, SafetensorError) as error:
            raise FileNotFoundError(f"{file} is cut off or damaged: {reason(error)}") from error
        quantised += [f"{file.name} has weights of type {kind}" for kind in types - WHOLE]
    if quantised:
        advice = "quantised weights cannot be trained: give those in bf16 or float32"
        raise ValueError(f"{folder}: {quantised[0]}; {advice}")
    try:
        getattr(transformers, FAMILIES[family]).config_class.from_pretrained(folder)
    except Exception as error:  # a value of a wrong type may break it anywhere
        raise ValueError(f"{folder}/config.json cannot be used: {reason(error)}") from error
    return family


def load_network(folder: Path, dtype, attention: str):
    """-> (transformers' network, in host memory; its tokenizer)

    FileNotFoundError: a file is missing or damaged. ValueError: one does not go with the others.
    """
    network = getattr(transformers, FAMILIES[check_family(folder)])
    if not any((folder / name).exists() for name in ("tokenizer.json", "merges.txt")):
        # The library would make up an empty one.
        raise FileNotFoundError(f"{folder} has no tokenizer: no tokenizer.json, no merges.txt")
    options = dict(output_loading_info=True, ignore_mismatched_sizes=True)
    options |= dict(dtype=dtype, attn_implementation=attention)
    try:
        model, report = network.from_pretrained(folder, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Each file that is damaged or missing raises an error of its own class in there.
    except Exception as error:
        raise FileNotFoundError(f"{folder} cannot be loaded: {reason(error)}") from error

    rows, others = model.get_input_embeddings().num_embeddings, report["unexpected_keys"]
    # Of any word but padding, for what pads here is masked, whatever it is.
    word = max(n for word, n in tokenizer.get_vocab().items() if word != tokenizer.pad_token)
    if word >= rows:
        raise ValueError(f"{folder}: the tokenizer has a token {word}, the embedding {rows} rows")

    def finite(weight):
        return all(end.isfinite() for end in weight.aminmax())

    for what, names in (
        # The library would make them up at random.
        (f"are missing (but there are {len(others)} of other names)", report["missing_keys"]),
        ("have another shape than by config.json", [key for key, *_ in report["mismatched_keys"]]),
        # A head of another kind may be left out, a layer not.
        ("have no place", [name for name in others if re.search(r"\.(layers|blocks)\.\d", name)]),
        ("are no finite numbers", [n for n, w in model.named_parameters() if not finite(w)]),
    ):
        if names:
            raise ValueError(f"{folder}: {len(names)} weights {what}, for example {min(names)}")
    template = read_json(folder, "chat_template.json")
    # The tokenizer's own may be for text only. A .jinja file is newer than this one.
    if template and not (folder / "chat_template.jinja").exists():
        tokenizer.chat_template = template.get("chat_template")
    return model, tokenizer


def end_tokens(model, chat) -> tuple[int, ...]:
    """All that end a reply: what the template writes behind a turn, and what the tokenizer and
    generation_config.json name, which may be <|endoftext|> alone."""
    named = model.generation_config.eos_token_id
    ends = [chat.turn_end(), chat.tokenizer.eos_token_id]
    ends += named if isinstance(named, list) else [named]
    if not any(isinstance(end, int) for end in ends):
        raise ValueError("neither template, tokenizer nor generation_config.json has an end token")
    return tuple(sorted({end for end in ends if isinstance(end, int)}))


def side_files(folder: Path) -> dict[str, bytes]:
    """name -> content of all small files but the prompts, which a role has of its own."""
    files = {file for pattern in SMALL for file in folder.glob(pattern) if file.is_file()}
    files -= {folder / "prompts.json", *folder.glob("*.index.json")}
    return {file.name: file.read_bytes() for file in sorted(files)}


def picture_settings(folder: Path, vision) -> dict:
    """How pictures are cut, whichever file says so; `min_pixels` and `max_pixels` are among it.
    vision: the config of the network's vision tower, which knows its patches."""
    settings = read_json(folder, "preprocessor_config.json")
    if settings is None:  # where newer versions put it
        settings = (read_json(folder, "processor_config.json") or {}).get("image_processor")
    if not isinstance(settings, dict):
        raise FileNotFoundError(f"{folder}: no preprocessor_config.json: how are pictures cut?")
    known = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
    settings = known | {"temporal_patch_size": vision.temporal_patch_size} | settings
    # Three spellings of the limits of a picture's area.
    size = settings.get("size")
    size = size if isinstance(size, dict) else {}
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        settings[name] = settings.get(name) or size.get(edge) or size.get(name)
    for name in ("min_pixels", "max_pixels", "image_mean", "image_std"):
        value, what = settings.get(name), "a whole number"
        right = isinstance(value, int)
        if name.startswith("image"):
            right, what = isinstance(value, list) and len(value) == 3, "three numbers"
        if not right:
            raise ValueError(f"{folder}: {name} of the preprocessor is {value!r}, not {what}")
    return settings


def load_adapters(vlm, folder):
    """Put a folder's adapters on the network, which is their base, and take on their prompts."""
    config = read_adapters(folder)
    if not vlm.lora:
        add_lora(vlm, config["r"], config["lora_alpha"])
    file = Path(folder) / "adapter_model.safetensors"
    try:
        state = load_file(file)
        names = (name.removeprefix("base_model.model.").removesuffix(".weight") for name in state)
        vlm.load_state(dict(zip(names, state.values())))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{file}: {reason(error)}") from error
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


def save_whole(vlm, weights: dict, folder: Path):
    """Weights under the names of the hub; all else is the base's own files, byte for byte: whatever
    loads the base, another version of transformers or a server, loads this."""
    weights = revert_weight_conversion(vlm.model, weights)
    save_torch_state_dict(weights, folder, max_shard_size="50GB")
    for name, content in vlm.side_files.items():
        (folder / name).write_bytes(content)
    config = json.loads(vlm.side_files["config.json"])
    for part in (config, config.get("text_config", {})):
        if "lm_head.weight" in weights and part.get("tie_word_embeddings"):
            # The base's file had a head of its own all the same. Others would drop it.
            part["tie_word_embeddings"] = False
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_checkpoint(vlm, weights: dict, folder) -> None:
    """Write a plain checkpoint of these weights; of a network with LoRA, its adapters alone.

    The folder, which replaces one that was there, has this name only when it is whole.
    """
    with replacing(Path(folder).absolute()) as new:
        new.mkdir(parents=True)
        if vlm.lora:
            save_adapters(vlm, weights, new)
        else:
            save_whole(vlm, weights, new)
        (new / "prompts.json").write_text(json.dumps(vlm.prompts, indent=2) + "\n")
