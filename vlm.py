"""A vision-language model: load it, turn text and pictures into its inputs, save it.

transformers gives the network and its weights, nothing else. What goes into the network is made
here: tokens, patches of pictures, M-RoPE positions. The tests compare each with the library's own.

Shapes: B sequences, L tokens of the longest one, D hidden size, V vocabulary.
    input_ids, attention_mask [B, L]      position_ids [3, B, L]: time, height, width
    pixel_values [patches, channels * temporal_patch * patch * patch]
    image_grid_thw [pictures, 3]: time, height, width in patches
"""

import hashlib
import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prompts import PROMPTS
from support import checkpoint, flash, packed, parallel
from support.chat import Chat

# Large products run in bf16 anyway. Left in float32 are the rotary angles, and TF32 with its
# 11 bits would round positions beyond 2,048.
torch.set_float32_matmul_precision("highest")


@dataclass(frozen=True)
class Picture:
    """A picture cut into patches. Made by `VLM.cut`."""

    pixels: Tensor = field(compare=False)  # [patches, channels * patch * patch] uint8
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
        """Where the reply begins, on all three axes. After a picture: less than len(tokens)."""
        return int(self.positions.max()) + 1


def smart_resize(height, width, factor, min_pixels, max_pixels) -> tuple[int, int]:
    """Height and width as multiples of `factor`, area within limits, aspect ratio nearly kept.

    >>> smart_resize(100, 150, factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
    (112, 140)
    >>> smart_resize(10, 30, factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)  # grows
    (56, 112)
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"{width} x {height} pixels are too narrow: 200 to 1 is the limit")
    rows = round(height / factor) * factor
    columns = round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def mrope_positions(tokens: list[int], image_token: int, grids, merge: int) -> Tensor:
    """[3, L] positions (time, height, width). `grids`: (t, h, w) of each picture, in patches.

    Text counts on along the three axes at once. A picture that begins at position p puts its token
    (t, i, j), which is merge * merge patches, at (p + t, p + i, p + j). The text behind it goes on
    at p + max(rows, columns): past the picture's longer side, not past the number of its tokens.

    >>> mrope_positions([5, 9, 9, 9, 9, 9, 9, 6], 9, grids=[(1, 4, 6)], merge=2).tolist()
    [[0, 1, 1, 1, 1, 1, 1, 4], [0, 1, 1, 1, 2, 2, 2, 4], [0, 1, 2, 3, 1, 2, 3, 4]]
    """
    spans, start, grids = [], 0, iter(grids)
    # A run of image tokens is one picture: other tokens stand between two of them.
    for is_picture, run in itertools.groupby(tokens, key=lambda token: token == image_token):
        if is_picture:
            time, rows, columns = next(grids)
            axes = [torch.arange(size) for size in (time, rows // merge, columns // merge)]
            places = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # [3, time, rows, columns]
            spans.append(places.reshape(3, -1) + start)
            start += max(rows, columns) // merge
        else:
            length = len(list(run))
            spans.append((torch.arange(length) + start).expand(3, -1))
            start += length
    return torch.cat(spans, dim=1)


class VLM:
    """A network with its tokenizer, picture settings and role prompts.

    model       transformers' ...ForConditionalGeneration       family      its model_type
    prompts     the role prompts (see prompts.py)               eos_ids     all that end a reply
    min_pixels, max_pixels   limits of a picture's area: they trade detail against image tokens
    """

    @classmethod
    def load(cls, name_or_path, device="auto", dtype="auto", attention="auto") -> "VLM":
        """`tiny`, a short name such as `Qwen2-VL-2B`, a folder (also of adapters), or a hub id.

        "auto": CUDA where there is one; bfloat16 on CUDA, else float32; flash_attention_2 on CUDA
        where that package is installed, else PyTorch's own ("sdpa"). FileNotFoundError: the name
        leads nowhere. ValueError: its family is not supported.
        """
        name = str(name_or_path)
        folder = checkpoint.find_checkpoint(name)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_cuda = torch.device(device).type == "cuda"
        if dtype == "auto":
            dtype = "bfloat16" if on_cuda else "float32"
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        if attention == "auto":
            half = dtype in (torch.bfloat16, torch.float16)  # flash-attn knows no float32
            installed = on_cuda and half and flash.flash_attn_works()
            attention = "flash_attention_2" if installed else "sdpa"
        model, tokenizer = checkpoint.load_network(folder, dtype, attention)
        vlm = cls(model.to(device).eval(), tokenizer, folder)
        if folder != Path(name):  # `tiny`, or a hub id: it holds on any machine
            vlm.base = checkpoint.SHORT_NAMES.get(name, name)
        if checkpoint.read_json(name, checkpoint.ADAPTERS):
            checkpoint.load_adapters(vlm, name)
        return vlm

    def __init__(self, model, tokenizer, folder: Path):
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.family = model.config.model_type
        visual = model.model.visual
        visual.patch_embed = packed.LinearPatches(visual.patch_embed.proj)
        self.lora = None  # rank and alpha, once there are adapters: see support/lora.py
        # Tokens of a training pass, replies at a time: fewer once memory has run out.
        self.token_limit = self.slot_limit = math.inf
        self.base = str(folder.absolute())  # the name that adapters give of their base
        self.prompts = checkpoint.read_json(folder, "prompts.json") or PROMPTS
        self.chat = Chat(tokenizer)
        self.eos_ids = checkpoint.end_tokens(model, self.chat)
        self.pad_id = 0  # any token would do: it is masked
        self.side_files = checkpoint.side_files(folder)
        settings = checkpoint.picture_settings(folder, model.config.vision_config)
        self.min_pixels, self.max_pixels = settings["min_pixels"], settings["max_pixels"]
        self.patch, self.merge = settings["patch_size"], settings["merge_size"]
        self.temporal_patch = settings["temporal_patch_size"]
        self.mean = torch.tensor(settings["image_mean"]).view(3, 1, 1)
        self.std = torch.tensor(settings["image_std"]).view(3, 1, 1)
        self.encode("?", 2 * [Image.new("RGB", (1, 1))])  # refuses a template without pictures

    @property
    def lm_head(self) -> Tensor:
        """[V, D]: logits = hidden @ lm_head.T. Where the two are tied, the embedding matrix."""
        return self.model.lm_head.weight

    @property
    def device(self) -> torch.device:
        return self.lm_head.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.dtype

    # ------------------------------------------------------------ text and pictures -> Prompt
    def encode(self, text, images=(), system="") -> Prompt:
        """One user turn in the checkpoint's own chat format, up to where the assistant begins.

        `encode(question, [a, b])` puts pictures first; `encode(["left:", a, "right:", b])` keeps an
        order. A picture is a PIL image, or what `cut` made of one. `system` comes before it all.
        Nothing in a text is ever read as a special token (support/chat.py).
        """
        parts = [*images, text] if isinstance(text, str) else [*images, *text]
        parts = [part if isinstance(part, str | Picture) else self.cut(part) for part in parts]
        pictures = [part for part in parts if isinstance(part, Picture)]
        image_token = self.config.image_token_id
        once = self.chat.tokens(parts, system)
        if once.count(image_token) != len(pictures):
            raise ValueError(f"{self.base}: template does not give each picture its image token")
        # The template has a picture's image token once. It stands for all of its merged patches.
        sizes = iter([len(picture.pixels) // self.merge**2 for picture in pictures])
        tokens = []
        for token in once:
            tokens += [token] * (next(sizes) if token == image_token else 1)
        grids = [picture.grid for picture in pictures]
        positions = mrope_positions(tokens, image_token, grids, self.merge)
        return Prompt(tokens, positions, tuple(pictures))

    def cut(self, picture: Image.Image) -> Picture:
        """Resize to a multiple of the patch size within the area limits, cut into patches."""
        p, m = self.patch, self.merge
        if picture.has_transparency_data:  # it lies on white paper
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
        limits = self.min_pixels, self.max_pixels
        height, width = smart_resize(picture.height, picture.width, p * m, *limits)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        digest = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        # Patches are listed block by block: the m * m that become one token lie side by side.
        rows, columns = height // p, width // p
        pixels = np.asarray(picture).reshape(rows // m, m, p, columns // m, m, p, 3)
        pixels = pixels.transpose(0, 3, 1, 4, 6, 2, 5)  # [rows/m, columns/m, m, m, channel, p, p]
        pixels = torch.from_numpy(pixels.reshape(rows * columns, -1))
        return Picture(pixels, (1, rows, columns), digest)

    # ------------------------------------------------------------ Prompts -> hidden states
    def normalise(self, pixels: Tensor) -> Tensor:
        """Patches uint8 -> [patches, channels * temporal_patch * patch * patch] float32. A still
        picture is a film of equal frames: as many as a temporal patch takes."""
        mean, std = self.send(self.mean), self.send(self.std)
        pixels = pixels.view(len(pixels), 3, 1, -1).float()
        pixels.div_(255).sub_(mean).div_(std)
        return pixels.expand(-1, -1, self.temporal_patch, -1).flatten(1)

    def picture_inputs(self, prompts) -> dict[str, Tensor]:
        """pixel_values and image_grid_thw of the prompts' pictures; {} where there are none. Those
        that several share are in them once, and "pictures" says which stands at each place."""
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        if not pictures:
            return {}
        distinct = list(dict.fromkeys(pictures))
        pixels = self.send(torch.cat([picture.pixels for picture in distinct]))
        # Sizes stay on the host, where they are needed: to ask a GPU for them is to wait for it.
        grids = torch.tensor([picture.grid for picture in distinct])
        inputs = {"pixel_values": self.normalise(pixels), "image_grid_thw": grids}
        if len(distinct) < len(pictures):
            number = {picture: i for i, picture in enumerate(distinct)}
            inputs["pictures"] = torch.tensor([number[picture] for picture in pictures])
        return inputs

    def send(self, tensor: Tensor) -> Tensor:
        """To the device, without waiting for it."""
        return parallel.send(tensor, self.device)

    def collate(self, prompts) -> dict[str, Tensor]:
        """Prompts as one batch, padded on the right with mask 0 and position 0, on the device."""
        ids = [torch.tensor(prompt.tokens) for prompt in prompts]
        positions = [prompt.positions.T for prompt in prompts]
        batch = {
            "input_ids": pad_sequence(ids, True, self.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True),
            "position_ids": pad_sequence(positions, True).permute(2, 0, 1),  # [3, B, L]
        }
        return {k: self.send(tensor) for k, tensor in batch.items()} | self.picture_inputs(prompts)

    def hidden(self, batch, past=None) -> Tensor:
        """[B, L, D] hidden states after the final norm. `past`: a cache of transformers to fill.

        It is transformers' forward, written out. The vision tower runs once for each distinct
        picture. Positions come with the batch; the library may derive them from an older call."""
        ids, network = batch["input_ids"], self.model.model
        x = network.get_input_embeddings()(ids)  # [B, L, D]
        deepstack = {}
        if "pixel_values" in batch:
            places = ids == self.config.image_token_id  # [B, L]
            seen, *levels = self.see(batch)
            x = x.masked_scatter(places[..., None], seen.to(x.dtype))
            if levels:
                deepstack = {"visual_pos_masks": places, "deepstack_visual_embeds": levels}
        return network.language_model(
            inputs_embeds=x,
            attention_mask=batch.get("attention_mask"),
            position_ids=batch["position_ids"],
            past_key_values=past,
            use_cache=past is not None,
            **deepstack,
            **batch.get("attention", {}),
        ).last_hidden_state

    def see(self, batch) -> list[Tensor]:
        """Features of every image token, [image tokens, D]. Of Qwen3-VL also those that enter the
        first layers directly ("deepstack"), one tensor for each."""
        visual, grids = self.model.model.visual, batch["image_grid_thw"]
        pixels = batch["pixel_values"].to(visual.dtype)
        layout = packed.lay_out_pictures(visual, grids, pixels)
        output = visual(pixels, grid_thw=self.send(grids), **layout)
        features = [output.pooler_output]
        if self.family == "qwen3_vl":
            features += output.deepstack_features
        if "pictures" in batch:  # of distinct pictures -> of every place where one stands
            sizes = (grids.prod(dim=1) // self.merge**2).tolist()
            order = batch["pictures"].tolist()
            pieces = [feature.split(sizes) for feature in features]
            features = [torch.cat([piece[i] for i in order]) for piece in pieces]
        return features

    # ------------------------------------------------------------ weights in and out
    def weights(self) -> dict[str, Tensor]:
        """What makes a role: all weights, or with LoRA the adapters. Tied ones appear once."""
        return {name: w for name, w in self.model.named_parameters() if w.requires_grad}

    def state(self, into=None) -> dict[str, Tensor]:
        """A copy of `weights` in host memory; of sharded weights, this rank's shards. into: an
        older state, whose memory is used again: on a GPU it is pinned, and that takes long."""
        if self.device.type == "cpu" or parallel.world() > 1:
            return {name: w.detach().to("cpu", copy=True) for name, w in self.weights().items()}
        into = into or {}
        for name, weight in self.weights().items():
            if name not in into:
                into[name] = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=True)
            into[name].copy_(weight.detach(), non_blocking=True)
        torch.cuda.synchronize()
        return into

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy weights into the network, in place: an optimiser that holds them stays valid."""
        weights = self.weights()
        ours, theirs = ({(n, w.shape) for n, w in one.items()} for one in (weights, state))
        if ours != theirs:
            name, _ = min(ours ^ theirs)
            raise ValueError(f"the weights of another model: {name} is not in both, of one shape")
        for name, weight in weights.items():
            parallel.assign(weight, state[name])

    def save(self, folder) -> None:
        """Write a plain checkpoint, which transformers' from_pretrained loads with nothing of ours;
        with LoRA, adapters that peft loads on the base.

        Weights keep their dtype. What was there is replaced. All ranks call it, rank 0 writes."""
        weights = {}
        for name, weight in self.weights().items():
            whole = parallel.whole(weight.detach())  # all ranks together
            if parallel.rank() == 0:
                weights[name] = whole.to("cpu", copy=True)  # a part of a tensor becomes one
        if parallel.rank() == 0:
            checkpoint.write_checkpoint(self, weights, folder)
