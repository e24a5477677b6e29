"""A vision-language model: load it, turn text and pictures into its inputs, save it.

transformers gives the network and its weights, nothing else. What goes into the network is made here: chat text, image tokens,
the patches of a picture, M-RoPE positions. So torchvision is not needed, and every number that enters the network can be
followed on this page. The tests compare each with the library's own.

Families: Qwen2-VL, Qwen2.5-VL (MiMo-VL is one of these) and Qwen3-VL.

Shapes: B sequences, L tokens of the longest one, D hidden size, V vocabulary.
    input_ids, attention_mask [B, L]      position_ids [3, B, L]: time, height, width
    pixel_values [patches, channels * temporal_patch * patch * patch]
    image_grid_thw [pictures, 3]: time, height, width in patches
"""

import contextlib
import copy
import hashlib
import itertools
import json
import math
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from prompts import PROMPTS
from support import parallel
from support.lora import merged_state, save_adapters

transformers.utils.logging.disable_progress_bar()  # a run loads and saves all the time
# No TF32: large products run in bf16 anyway; left in float32 are the rotary angles, whose positions TF32 (11 bits) rounds beyond 2,048.
torch.set_float32_matmul_precision("highest")

FAMILIES = {  # model_type in config.json -> class of transformers
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
SHORT_NAMES = {
    **{f"Qwen2-VL-{size}": f"Qwen/Qwen2-VL-{size}-Instruct" for size in ("2B", "7B", "72B")},
    **{
        f"Qwen2.5-VL-{size}": f"Qwen/Qwen2.5-VL-{size}-Instruct"
        for size in ("3B", "7B", "32B", "72B")
    },
    **{f"Qwen3-VL-{size}": f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B")},
    "MiMo-VL-7B": "XiaomiMiMo/MiMo-VL-7B-SFT",
}
TINY = Path(__file__).parent / "tiny" / "model"
# Small files of a checkpoint which we read or other programs want: kept as they were found, and saved again.
SIDE_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)


@dataclass(frozen=True)
class Picture:
    """A picture cut into patches. Made by `VLM.cut`. Prompts about equal pictures share one pass of the vision tower."""

    pixels: Tensor = field(
        compare=False
    )  # [patches, channels * patch * patch] uint8: thousands wait in host memory; see `VLM.normalise`
    grid: tuple[int, int, int]  # (1, rows, columns) in patches
    digest: bytes  # of the resized picture: equal ones are found without comparing patches


@dataclass(frozen=True, eq=False)
class Prompt:
    """One user turn, ready for the assistant's reply. Made by `VLM.encode`."""

    tokens: list[int]  # chat-formatted ids, one image token per merged patch
    positions: Tensor  # [3, L] int64
    pictures: tuple[Picture, ...] = ()

    @property
    def next_position(self) -> int:
        """Where the reply begins, on all three axes at once. After a picture: less than the number of tokens."""
        return int(self.positions.max()) + 1


# ------------------------------------------------------------------------------------ pictures and positions


def smart_resize(height, width, factor, min_pixels, max_pixels) -> tuple[int, int]:
    """Height and width to resize to: multiples of `factor`, area within the limits, aspect ratio nearly kept.

    >>> smart_resize(100, 150, factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
    (112, 140)
    >>> smart_resize(10, 30, factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)      # too small: grows
    (56, 112)
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"a picture of {width} x {height} pixels is too narrow: 200 to 1 is the limit"
        )
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (
            math.ceil(height * grow / factor) * factor,
            math.ceil(width * grow / factor) * factor,
        )
    return rows, columns


def mrope_positions(tokens: list[int], image_token: int, grids, merge: int) -> Tensor:
    """[3, L] positions (time, height, width) of a prompt. `grids`: (t, h, w) of each picture, in patches.

    Text counts on along the three axes at once. A picture that begins at position p puts its merged patch (t, i, j) at
    (p + t, p + i, p + j), and the text behind it goes on at p + max(rows, columns): past its longer side, not its number of patches.

    >>> mrope_positions([5, 9, 9, 9, 9, 9, 9, 6], image_token=9, grids=[(1, 4, 6)], merge=2).tolist()
    [[0, 1, 1, 1, 1, 1, 1, 4], [0, 1, 1, 1, 2, 2, 2, 4], [0, 1, 2, 3, 1, 2, 3, 4]]
    """
    spans, start, grids = [], 0, iter(grids)
    # A run of image tokens is one picture: <|vision_end|><|vision_start|> stands between two of them.
    for is_picture, run in itertools.groupby(tokens, key=lambda token: token == image_token):
        if is_picture:
            time, rows, columns = next(grids)
            axes = torch.arange(time), torch.arange(rows // merge), torch.arange(columns // merge)
            spans.append(torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, -1) + start)
            start += max(rows, columns) // merge
        else:
            length = len(list(run))
            spans.append((torch.arange(length) + start).expand(3, -1))
            start += length
    return torch.cat(spans, dim=1)


def next_position(prompt: Prompt) -> int:
    """Where the reply begins, on all three axes at once. After a picture: less than the number of tokens."""
    return int(prompt.positions.max()) + 1


# ------------------------------------------------------------------------------------ the model


class VLM:
    """A network with its tokenizer, picture settings and role prompts.

    model       transformers' ...ForConditionalGeneration       family      one of FAMILIES
    prompts     the role prompts (see prompts.py)               eos_ids     every token that ends a reply
    min_pixels, max_pixels   limits of a picture's area: set them to trade detail against image tokens
    """

    # -------------------------------------------------------------------- loading
    @classmethod
    def load(cls, name_or_path, device="auto", dtype="auto", attention="auto") -> "VLM":
        """`tiny`, a short name such as `Qwen2-VL-2B`, a folder, or a hub id.

        "auto": device is CUDA where there is one; dtype bfloat16 on CUDA, float32 on CPU; attention flash_attention_2 on CUDA where that
        package is installed, else PyTorch's own ("sdpa"). FileNotFoundError: a name that leads nowhere. ValueError: no such family.
        """
        folder = find_checkpoint(str(name_or_path))
        family = check_family(folder)
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        if dtype == "auto":
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        elif isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        if attention == "auto":
            half = dtype in (torch.bfloat16, torch.float16)  # flash-attn knows no float32
            flash = (
                device.type == "cuda" and half and transformers.utils.is_flash_attn_2_available()
            )
            attention = "flash_attention_2" if flash else "sdpa"
        try:
            network = getattr(transformers, FAMILIES[family])
            model, report = network.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        except (OSError, SafetensorError) as error:  # weights or tokenizer missing, or cut off
            raise FileNotFoundError(f"{name_or_path}: {str(error).splitlines()[0]}") from error
        if missing := sorted(report["missing_keys"]):  # the library would make these up at random
            raise ValueError(
                f"{name_or_path}: {len(missing)} weights are missing, for example {missing[0]}"
            )
        return cls(model.to(device).eval(), tokenizer, folder)

    def __init__(self, model, tokenizer, folder: Path):
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.family, self.lora = model.config.model_type, None  # see lora.py
        files = [folder / name for name in SIDE_FILES if (folder / name).exists()]
        self.side_files = {file.name: file.read_text() for file in files}
        self.prompts = (
            json.loads((folder / "prompts.json").read_text())
            if (folder / "prompts.json").exists()
            else PROMPTS
        )
        # Qwen's generation config names <|im_end|> and <|endoftext|>, and replies end with either.
        eos = model.generation_config.eos_token_id
        eos = {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id} - {None}
        if not eos:
            raise ValueError(
                f"{folder}: neither generation_config.json nor the tokenizer names an end token"
            )
        self.eos_ids = tuple(sorted(eos))
        self.pad_id = self.eos_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._read_picture_settings(folder)
        self._prepare_chat(folder)

    def _read_picture_settings(self, folder):
        if "preprocessor_config.json" in self.side_files:
            settings = json.loads(self.side_files["preprocessor_config.json"])
        elif "processor_config.json" in self.side_files:  # where newer versions put it
            settings = json.loads(self.side_files["processor_config.json"])["image_processor"]
        else:
            raise FileNotFoundError(
                f"{folder}: no preprocessor_config.json, which says how pictures are cut"
            )
        # Two spellings: min_pixels / max_pixels, and size: {shortest_edge, longest_edge}. Both mean areas.
        size = settings.get("size") or {}
        self.min_pixels = (
            settings.get("min_pixels") or size.get("shortest_edge") or size["min_pixels"]
        )
        self.max_pixels = (
            settings.get("max_pixels") or size.get("longest_edge") or size["max_pixels"]
        )
        self.patch, self.merge = settings["patch_size"], settings["merge_size"]
        self.temporal_patch = settings["temporal_patch_size"]
        self.mean, self.std = (
            torch.tensor(settings[name]).view(3, 1, 1) for name in ("image_mean", "image_std")
        )

    def _prepare_chat(self, folder):
        # Some hub checkpoints give the tokenizer a template for text only and the real one to the processor.
        if "chat_template.json" in self.side_files:
            self.tokenizer.chat_template = json.loads(self.side_files["chat_template.json"])[
                "chat_template"
            ]
        if not self.tokenizer.chat_template:
            raise ValueError(f"{folder}: the tokenizer has no chat template (chat_template.jinja)")
        self._templates = {}  # order of the parts -> rendered template
        special = [
            token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special
        ]
        special.sort(key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, special)) + ")")
        # The same tokenizer, except that it sees no special token (though other added tokens) in a text.
        self._plain = copy.deepcopy(self.tokenizer.backend_tokenizer)
        self._plain.encode_special_tokens = True

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.dtype

    # -------------------------------------------------------------------- text and pictures -> Prompt
    def encode(self, text, images=()) -> Prompt:
        """One user turn in the checkpoint's own chat format, up to where the assistant begins to write.

        `encode(question, [a, b])` puts pictures first; `encode(["left:", a, "right:", b])` keeps an order. A picture is a PIL image, or
        what `cut` made of one (which saves cutting it again for another question). Nothing in a text is ever read as a special token:
        what one role wrote is quoted in another's prompt, and a proposal that says <|im_end|> must not be able to end that turn.
        """
        parts = [*images, text] if isinstance(text, str) else [*images, *text]
        texts = [part for part in parts if isinstance(part, str)]
        pictures = [
            part if isinstance(part, Picture) else self.cut(part)
            for part in parts
            if not isinstance(part, str)
        ]
        image_token = self.config.image_token_id
        merged = iter([len(picture.pixels) // self.merge**2 for picture in pictures])
        tokens = []
        for piece in self._template(tuple(isinstance(part, str) for part in parts)):
            if isinstance(piece, int):  # a special token of the template
                tokens += [piece] * (next(merged) if piece == image_token else 1)
            else:  # ordinary text, with the user's filled in
                tokens += self._plain.encode(fill_slots(piece, texts), add_special_tokens=False).ids
        grids = [picture.grid for picture in pictures]
        return Prompt(
            tokens, mrope_positions(tokens, image_token, grids, self.merge), tuple(pictures)
        )

    def _template(self, is_text: tuple[bool, ...]) -> list:
        """The rendered chat template for texts and pictures in this order: special ids, strings between them.

        A slot stands for each text: special tokens are found before anything a user wrote is in the string. The strings are tokenized
        with the text in place: merges across the seam ("user\\n" and a text that begins with a new line) come out as in training.
        """
        if is_text not in self._templates:
            number = itertools.count()
            content = [
                {"type": "text", "text": slot(next(number))} if text else {"type": "image"}
                for text in is_text
            ]
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            pieces = [piece for piece in self._special.split(rendered) if piece]
            ids = self.tokenizer.convert_tokens_to_ids
            pieces = [ids(piece) if self._special.fullmatch(piece) else piece for piece in pieces]
            if pieces.count(self.config.image_token_id) != is_text.count(False):
                raise ValueError(
                    "the checkpoint's chat template does not give each picture its image token"
                )
            self._templates[is_text] = pieces
        return self._templates[is_text]

    def cut(self, picture: Image.Image) -> Picture:
        """Resize to a multiple of the patch size within the area limits, cut into patches."""
        p, m = self.patch, self.merge
        if picture.has_transparency_data:  # it lies on white paper
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
        height, width = smart_resize(
            picture.height, picture.width, p * m, self.min_pixels, self.max_pixels
        )
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        digest = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        rows, columns = height // p, width // p
        # Patches are listed block by block: the m * m of them which become one token lie side by side.
        pixels = np.asarray(picture).reshape(rows // m, m, p, columns // m, m, p, 3)
        pixels = pixels.transpose(
            0, 3, 1, 4, 6, 2, 5
        )  # [rows / m, columns / m, m, m, channel, p, p]
        return Picture(
            torch.from_numpy(pixels.reshape(rows * columns, -1)), (1, rows, columns), digest
        )

    def normalise(self, pixels: Tensor) -> Tensor:
        """Patches of pictures, uint8 -> what the network is given: [patches, channels * temporal_patch * patch * patch] float32.

        A still picture is a film of equal frames: as many as one temporal patch takes. All this makes it eight times as large.
        """
        pixels = (
            pixels.view(len(pixels), 3, 1, -1)
            .float()
            .div_(255)
            .sub_(self.mean.to(pixels.device))
            .div_(self.std.to(pixels.device))
        )
        return pixels.expand(-1, -1, self.temporal_patch, -1).flatten(1)

    # -------------------------------------------------------------------- Prompts -> a batch -> hidden states
    def collate(self, prompts, replies=None, side="left") -> dict:
        """[prompt + reply] padded to one batch on the model's device, named as in transformers' forward.

        `replies`: lists of tokens, whose positions go on behind the prompt's highest one. `side`: where the
        padding goes; it has mask 0 and position 0. A picture that several prompts share is in pixel_values
        once; "pictures" then says which of them stands at each place, in reading order.
        """
        replies = replies or [[]] * len(prompts)
        lengths = [
            len(prompt.tokens) + len(reply) for prompt, reply in zip(prompts, replies, strict=True)
        ]
        size = (len(prompts), max(lengths))
        ids, mask = torch.full(size, self.pad_id), torch.zeros(size, dtype=torch.long)
        positions = torch.zeros(3, *size, dtype=torch.long)
        for row, (prompt, reply, length) in enumerate(zip(prompts, replies, lengths)):
            start = size[1] - length if side == "left" else 0
            middle, end = start + len(prompt.tokens), start + length
            ids[row, start:end] = torch.tensor([*prompt.tokens, *reply])
            mask[row, start:end] = 1
            positions[:, row, start:middle] = prompt.positions
            positions[:, row, middle:end] = next_position(prompt) + torch.arange(len(reply))
        batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return batch | self.picture_inputs(prompts)

    def picture_inputs(self, prompts) -> dict:
        """pixel_values, image_grid_thw, and pictures where one of them stands at several places."""
        batch = {}
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        distinct = list(dict.fromkeys(pictures))
        if pictures:
            batch["pixel_values"] = self.normalise(
                torch.cat([picture.pixels for picture in distinct]).to(self.device)
            )
            batch["image_grid_thw"] = torch.tensor([picture.grid for picture in distinct])
        if len(distinct) < len(pictures):
            number = {picture: i for i, picture in enumerate(distinct)}
            batch["pictures"] = torch.tensor([number[picture] for picture in pictures])
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    @contextlib.contextmanager
    def attention(self, kind):
        """The language model's attention is `kind` inside, afterwards what it was before, whatever happens."""
        config = self.model.model.language_model.config
        before = config._attn_implementation
        config._attn_implementation = kind
        try:
            yield
        finally:
            config._attn_implementation = before

    def hidden(self, batch, past=None) -> Tensor:
        """[B, L, D] hidden states after the final norm. `past`: a cache of transformers to fill.

        Written out from transformers' forward for two reasons: the vision tower runs once per distinct picture,
        and positions come with the batch, always (left to itself the library derives them from an offset which
        it remembers on the module from the call before).
        """
        network, ids, deepstack = self.model.model, batch["input_ids"], {}
        x = network.get_input_embeddings()(ids)  # [B, L, D]
        if "pixel_values" in batch:
            grids = batch["image_grid_thw"]
            seen = network.visual(batch["pixel_values"].to(network.visual.dtype), grid_thw=grids)
            sizes = (grids.prod(1) // self.merge**2).tolist()

            def spread(features):  # of distinct pictures -> of every image token
                if "pictures" not in batch:
                    return features
                each = features.split(sizes)
                return torch.cat([each[i] for i in batch["pictures"].tolist()])

            places = ids == self.config.image_token_id
            x = x.masked_scatter(places[..., None], spread(seen.pooler_output).to(x.dtype))
            if self.family == "qwen3_vl":  # features that enter the first layers directly
                deepstack = {
                    "visual_pos_masks": places,
                    "deepstack_visual_embeds": [spread(level) for level in seen.deepstack_features],
                }
        return network.language_model(
            inputs_embeds=x,
            attention_mask=batch.get("attention_mask"),
            position_ids=batch["position_ids"],
            past_key_values=past,
            use_cache=past is not None,
            **deepstack,
            **batch.get("attention", {}),
        ).last_hidden_state

    @property
    def head(self) -> Tensor:
        """[V, D]: logits = hidden @ head.T. The very embedding matrix where the checkpoint ties the two."""
        return self.model.lm_head.weight

    @property
    def lm_head(self) -> Tensor:
        return self.head

    # -------------------------------------------------------------------- weights in and out
    def weights(self) -> dict[str, Tensor]:
        """What makes a role: all weights, or the adapters alone with LoRA. Tied weights appear once."""
        return {
            name: weight for name, weight in self.model.named_parameters() if weight.requires_grad
        }

    def state(self) -> dict[str, Tensor]:
        """A copy of `weights` in host memory (pinned: a role comes back at the speed of the bus); of sharded ones, this rank's shards."""
        pin = self.device.type == "cuda" and parallel.world() == 1
        copies = (
            (name, weight.detach().to("cpu", copy=True)) for name, weight in self.weights().items()
        )
        return {name: copy.pin_memory() if pin else copy for name, copy in copies}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], share=False) -> None:
        """Copy weights into the network, in place: what points at them (an optimiser, say) stays valid.

        share: one process on a CPU does not copy; the network then lives on the tensors of `state` themselves, and follows them. For one
        that is never trained, and never loaded otherwise: a copy would go into the tensors it lived on before.
        """
        weights = self.weights()
        if differing := weights.keys() ^ state.keys():
            raise ValueError(
                f"these are the weights of another model: {sorted(differing)[0]} is not in both"
            )
        for name, weight in weights.items():
            if share and self.device.type == "cpu" and parallel.world() == 1:
                weight.data = state[name].data.to(weight.dtype)
            else:
                parallel.assign(weight, state[name])

    def save(self, folder) -> None:
        """Write a plain checkpoint, which transformers' from_pretrained loads with nothing of ours.

        Weights keep the dtype they are held in. All is written under a temporary name first, so the folder appears only when it is whole;
        one that was there is replaced. With LoRA: the merged weights, and the adapters beside them. All ranks call it, rank 0 writes.
        """
        if self.lora:
            weights = merged_state(self.model)
        else:  # all ranks make each weight whole together, but only the one that writes keeps it
            whole = (
                (name, parallel.whole(w.detach())) for name, w in self.model.named_parameters()
            )
            weights = {name: w.cpu() for name, w in whole if not parallel.rank()}
        if parallel.rank():
            return
        folder = Path(folder).absolute()
        new, old = (
            folder.with_name(f".{folder.name}.{word}-{os.getpid()}") for word in ("new", "old")
        )
        for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed here
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir(parents=True)
        # config.json, generation_config.json, model.safetensors
        self.model.save_pretrained(new, state_dict=weights)
        if self.lora:
            save_adapters(self, new)
        self.tokenizer.save_pretrained(new)  # tokenizer.json and _config.json, chat_template.jinja
        for name, text in self.side_files.items():
            (new / name).write_text(text)
        (new / "prompts.json").write_text(json.dumps(self.prompts, indent=2) + "\n")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


# ------------------------------------------------------------------------------------ small helpers


def slot(index: int) -> str:
    """Stands for a text in a rendered template. No template has these characters: they are private."""
    return f"\ue000{index}\ue001"


def fill_slots(piece: str, texts: list[str]) -> str:
    """Put the texts into their slots. One pass: a slot written inside a text stays what it is.

    >>> fill_slots("see " + slot(0) + "; " + slot(1), ["a " + slot(1), "b"]) == "see a " + slot(1) + "; b"
    True
    """
    return re.sub("\ue000(\\d+)\ue001", lambda match: texts[int(match[1])], piece)


def find_checkpoint(name: str, weights=True) -> Path:
    """The folder of `tiny`, of a folder's name, or of what the hub (or its cache) has under this name.

    A model outside the families is refused before its weights are fetched. weights=False: they are not wanted at all.
    """
    if name == "tiny" and not (TINY / "config.json").exists():
        raise FileNotFoundError(
            f"the tiny base is not in {TINY}; make it with: python tiny/build.py"
        )
    if name == "tiny" or Path(name).is_dir():
        return TINY if name == "tiny" else Path(name)
    hub_id = SHORT_NAMES.get(name, name)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", hub_id):
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a known model; known: tiny, "
            f"{', '.join(SHORT_NAMES)}, or a hub id such as Qwen/Qwen2-VL-2B-Instruct"
        )
    from huggingface_hub import snapshot_download

    def fetch(*more):
        try:
            return Path(
                snapshot_download(hub_id, allow_patterns=["*.json", "*.jinja", "*.txt", *more])
            )
        except (
            Exception
        ) as error:  # no network, no such repository, a gated one: many classes, one way out
            raise FileNotFoundError(
                f"{name!r} is no folder here and could not be fetched from the Hugging Face hub ({type(error).__name__}); where there is a "
                f"network: hf download {hub_id} --local-dir {Path(name).name}, then here: --model {Path(name).name}"
            ) from error

    check_family(folder := fetch())
    return fetch("*.safetensors") if weights else folder


def check_family(folder: Path) -> str:
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} is no checkpoint: it has no config.json")
    try:
        family = json.loads((folder / "config.json").read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder}/config.json is no JSON object: {error}") from error
    if family not in FAMILIES:
        raise ValueError(
            f"{folder} holds a model of type {family!r}; supported are Qwen2-VL, Qwen2.5-VL (with MiMo-VL) and "
            f"Qwen3-VL (types {', '.join(FAMILIES)}), of these by name: {', '.join(SHORT_NAMES)}"
        )
    return family
