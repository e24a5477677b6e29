"""LoRA (arXiv 2106.09685): a frozen linear layer W, and beside it a trained product of two thin
matrices.

    y = x W^T + alpha / r * (x A^T) B^T        x [..., in], W [out, in], A [r, in], B [out, r]

B begins at 0, so the network begins as its base. Policy and actor share the tensors of the base. A
role is its adapters alone, some MB, and the reference is the adapters that the phase began with.
"""

import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn


class LoRALinear(nn.Linear):
    """Takes the place of a linear layer. Its weight keeps its name, so that a merged state is a
    plain checkpoint's."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator):
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, device="meta")
        self.weight, self.bias, self.scale = linear.weight, linear.bias, alpha / rank
        device = linear.weight.device
        # Adapters are float32, whatever the base is.
        a = torch.empty(rank, linear.in_features).uniform_(-1, 1, generator=generator)
        self.lora_A = nn.Parameter((a / math.sqrt(linear.in_features)).to(device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, x):
        low = F.linear(x, self.lora_A.to(x.dtype))
        return super().forward(x) + F.linear(low, self.lora_B.to(x.dtype)) * self.scale

    def merged(self):
        """W + alpha / r * B A, in W's type."""
        return (self.weight.float() + self.scale * self.lora_B @ self.lora_A).to(self.weight.dtype)


def add_lora(vlm, rank: int, alpha: float):
    """Freeze the network, and put adapters on all linear layers of the language model: not on the
    vision tower, not on lm_head."""
    vlm.model.requires_grad_(False)
    # The same on all ranks, and when a run goes on.
    generator = torch.Generator().manual_seed(0)
    for layer in vlm.model.model.language_model.layers:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, LoRALinear(child, rank, alpha, generator))
    vlm.lora = {"rank": rank, "alpha": alpha}


def twin(vlm):
    """Another network on the very same weights: what is put into one's layers is not in the
    other's."""
    other = copy.copy(vlm)
    other.model = copy.deepcopy(vlm.model, {id(p): p for p in vlm.model.parameters()})
    return other


@torch.no_grad()
def merged_state(model) -> dict:
    """The weights of a plain checkpoint in host memory: adapters are added to what they stand
    beside."""
    state = {name: p.detach().cpu() for name, p in model.named_parameters() if ".lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            state[f"{name}.weight"] = module.merged().cpu()
    return state


def save_adapters(vlm, folder):
    """adapter.safetensors, and its rank and alpha in adapter.json."""
    state = {name: weight.contiguous() for name, weight in vlm.state().items()}
    save_file(state, Path(folder) / "adapter.safetensors")
    (Path(folder) / "adapter.json").write_text(json.dumps(vlm.lora) + "\n")
