"""Several processes, started by torchrun. Without torchrun there is one, and every function here does the obvious thing.

    torchrun --nproc-per-node 8 mmzero.py --model Qwen2-VL-7B
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 mmzero.py ...   # on each machine

All ranks run the same Python on the same data: no leader, no queue, and every batch-wide figure (clusters, token counts)
is right by itself. Three things are shared out and gathered again: what is sampled and what is rendered (roles.py), and the
micro-batches of an update (grpo.py). Rank 0 alone prints and writes. The policy's weights, gradients and optimiser state are
cut over the ranks (FSDP2); the actor is whole on each. What ranks send each other as objects is pickled: they trust each other.
"""

import copyreg
import io
import itertools
import os
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
from PIL import Image
from torch.distributed.tensor import DTensor, distribute_tensor


def start():
    """Join the other processes, if torchrun started this one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # A rank may wait long for one that still draws. If one dies, torchrun ends the others: no time limit is needed for that.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(hours=6))
    if rank():
        sys.stdout = open(os.devnull, "w")
    sys.excepthook = lambda kind, error, trace: fail(
        "".join(traceback.format_exception(kind, error, trace))
    )


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


def fail(message):
    """Show why this rank ends, and end at once: tidying up would wait for the other ranks, which torchrun then ends."""
    if not dist.is_initialized():
        sys.exit(message)
    print(f"rank {rank()}: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def shows_progress() -> bool:
    """One rank does, and only to somebody who looks."""
    return rank() == 0 and sys.stderr.isatty()


def rank_slice(items):
    """This rank's part of a list: a block, because neighbours are often alike (two questions about one picture)."""
    return items[len(items) * rank() // world() : len(items) * (rank() + 1) // world()]


def gather(own) -> list:
    """The shares of all ranks, in order: gather(share(items)) == items."""
    parts = [list(own)]
    if world() > 1:
        parts *= world()
        dist.all_gather_object(parts, list(own))
    return list(itertools.chain(*parts))


def as_png(image: Image.Image):
    """Pictures travel between ranks as PNG: as pixels they would be a hundred times as large."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return from_png, (file.getvalue(),)


def from_png(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).copy()


copyreg.pickle(Image.Image, as_png)


def deal(batches) -> list:
    """This rank's micro-batches, each with a weight: (batch, 1.0), or (batch, 0.0) for what only fills up: sharded layers
    are gathered by all ranks together, so all must make as many passes. Neighbours in the list are alike in length."""
    filled = [(batch, 1.0) for batch in batches] + [(batches[-1], 0.0)] * (-len(batches) % world())
    return filled[rank() :: world()]


def shard(model):
    """Cut the weights of a network of transformers over the ranks, in place (FSDP2). Each layer is gathered when it is
    used, and dropped again; embedding, head (often one matrix) and the rest are gathered while `within` runs."""
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    compute = torch.bfloat16 if torch.cuda.is_available() else None
    for module in (*model.model.language_model.layers, *model.model.visual.blocks, model):
        fully_shard(
            module,
            mp_policy=MixedPrecisionPolicy(compute, reduce_dtype=torch.float32),
            reshard_after_forward=True,
        )
        module.set_gradient_divide_factor(
            1.0
        )  # gradients are summed: the loss has its denominator already
        module.set_force_sum_reduction_for_comms(True)
    model.do = lambda work: work()
    register_fsdp_forward_method(model, "do")  # FSDP's hooks around it, as around forward


def within(model, work):
    """work(), which uses parts of `model` other than its forward."""
    return model.do(work) if hasattr(model, "do") else work()


def whole(tensor):
    """A plain tensor of a sharded one. All ranks must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor):
    """This rank's shard, as a plain tensor; of what is not sharded, the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign(weight, new):
    """weight[:] = new, where either may be sharded: shard to shard, shards to a whole, or a whole to its shard."""
    if isinstance(weight, DTensor) and not isinstance(new, DTensor):
        new = distribute_tensor(
            new.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
        )
    new = local(new) if isinstance(weight, DTensor) else whole(new.to(weight.device))
    local(weight).copy_(new)


@torch.no_grad()
def sum_gradients(parameters):
    """Add up over the ranks the gradients of weights that are not sharded (FSDP has done so for the others)."""
    for p in parameters:
        if world() > 1 and p.grad is not None and not isinstance(p.grad, DTensor):
            dist.all_reduce(p.grad)


share = rank_slice
