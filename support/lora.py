"""LoRA (arXiv 2106.09685): a frozen linear layer W, and beside it a trained product of two thin
matrices.

    y = x W^T + alpha / r * (x A^T) B^T        x [..., in], W [out, in], A [r, in], B [out, r]

B begins at 0, so the network begins as its base. Policy and actor share the tensors of the base. A
role is its adapters alone, some MB, and the reference is the adapters that the phase began with.

Adapters are never merged into weights that are saved: in bf16 these would lose most of what a few
steps have learnt. support/checkpoint.py saves adapters as peft does.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn


class LoRALinear(nn.Linear):
    """Takes the place of a linear layer, whose weight and bias keep their names."""

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
        own = F.linear(low, self.lora_B.to(x.dtype))
        return torch.add(super().forward(x), own, alpha=self.scale)


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
    """Another network on the very same base, with adapters of its own."""
    other = copy.copy(vlm)
    base = {id(p): p for name, p in vlm.model.named_parameters() if ".lora_" not in name}
    other.model = copy.deepcopy(vlm.model, base)
    return other
