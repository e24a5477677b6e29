"""Several processes, started by torchrun, and how a step's rollouts are cut and dealt out to them.

    torchrun --nproc-per-node 8 mmzero.py --model Qwen2-VL-7B
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
        mmzero.py ...                                                       # on each machine

Without torchrun there is one process, and every function here does the obvious thing.

All ranks run the same Python on the same data: there is no leader and no queue, and every figure of
a batch (clusters, token counts) is right by itself. Three things are shared out and gathered again:
what is sampled, what is rendered, and the micro-batches of an update. Rank 0 alone prints and
writes. The policy's weights, gradients and optimiser state are cut over the ranks (FSDP2); the
actor is whole on each. What ranks send each other as objects is pickled: they trust each other.
"""

import copyreg
import io
import itertools
import math
import os
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
from PIL import Image
from torch.distributed.tensor import DTensor, distribute_tensor

from support.machine import cores

if "OMP_NUM_THREADS" not in os.environ:
    # Torch counts cores, not the share of them that a cgroup gives.
    torch.set_num_threads(min(torch.get_num_threads(), cores()))

# ---- processes -----------------------------------------------------------------------------------

# Where whoever starts several processes says how many they are.
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
SIZES += ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")


def start():
    """Join the other processes, if torchrun started this one. Those that something else started
    know nothing of each other: each ends in one line."""
    if dist.is_initialized():
        return
    if not {"TORCHELASTIC_RUN_ID", "MASTER_ADDR"} <= os.environ.keys():
        for name in SIZES:
            if os.environ.get(name, "1") not in ("", "0", "1"):
                advice = f"start it with torchrun --nproc-per-node N {sys.argv[0]} ..."
                sys.exit(f"{name} is {os.environ[name]}, and torchrun did not set it: {advice}")
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    # A rank may wait long for one that still draws. If one dies, torchrun ends the others: no
    # shorter limit is needed for that.
    dist.init_process_group(backend, timeout=timedelta(hours=6))
    if rank():
        sys.stdout = open(os.devnull, "w")
    sys.excepthook = lambda *error: fail("".join(traceback.format_exception(*error)))


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


def fail(message):
    """Show why this rank ends, and end at once: tidying up would wait for the other ranks, which
    torchrun then ends."""
    if not dist.is_initialized():
        sys.exit(message)
    print(f"rank {rank()}: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


# ---- lists, cut and put together -----------------------------------------------------------------


def rank_slice(items):
    """What falls to this rank. A block, because neighbours are often alike: two questions about one
    picture, say."""
    return items[len(items) * rank() // world() : len(items) * (rank() + 1) // world()]


def gather(own) -> list:
    """What all ranks have, in their order: gather(rank_slice(items)) == items."""
    lists = [list(own)]
    if world() > 1:
        lists *= world()
        dist.all_gather_object(lists, list(own))
    return list(itertools.chain(*lists))


def from_png(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).copy()


def as_png(image: Image.Image):
    """How pictures travel between ranks: as pixels they would be a hundred times as large."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return from_png, (file.getvalue(),)


copyreg.pickle(Image.Image, as_png)


def mini_batches(rollouts, groups_per_update) -> list:
    """Whole groups, in order, spread evenly over the fewest updates: 100 at 64 each are 50 and 50,
    not 64 and 36. AdamW gives the update of a small leftover the same size as any other.

    ValueError: rollouts that make no step.

    >>> from types import SimpleNamespace
    >>> each = dict(prompt=None, tokens=[2], sampler_logps=[0.0])
    >>> pairs = [SimpleNamespace(**each, group=g) for g in range(5) for _ in range(2)]
    >>> [[r.group for r in mini] for mini in mini_batches(pairs, 4)]
    [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4]]
    """
    if not rollouts:
        raise ValueError("no rollouts to train on")
    if any(len(r.tokens) != len(r.sampler_logps) or not r.tokens for r in rollouts):
        raise ValueError("a rollout has no tokens, or not one sampler log-prob per token")
    if world() > 1 and len({bool(r.prompt.pictures) for r in rollouts}) > 1:
        # The ranks gather the weights of the vision tower together.
        raise ValueError("on several ranks all prompts of a step have pictures, or none has")

    groups = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group, []).append(rollout)
    groups = list(groups.values())
    updates = math.ceil(len(groups) / groups_per_update)
    parts = torch.arange(len(groups)).tensor_split(updates)
    return [[rollout for i in numbers for rollout in groups[i]] for numbers in parts]


def bundle_length(bundle) -> int:
    return len(bundle[0].prompt.tokens) + sum(len(rollout.tokens) for rollout in bundle)


def micro_batches(rollouts, token_budget) -> list:
    """Lists of bundles, short ones first, of at most `token_budget` tokens: a prompt counts once
    for its bundle. A group that does not fit goes on, prompt and all, in the next list. A rollout
    longer than the budget stands alone."""
    groups = {}
    for rollout in rollouts:
        groups.setdefault(id(rollout.prompt), []).append(rollout)

    batches, used = [], math.inf
    for group in sorted(groups.values(), key=bundle_length):
        bundle = []
        for rollout in group:
            used += len(rollout.tokens) if bundle else bundle_length([rollout])
            if used > token_budget:
                batches.append([])
                bundle, used = [], bundle_length([rollout])
            if not bundle:
                batches[-1].append(bundle)
            bundle.append(rollout)
    return batches


def deal(batches) -> list:
    """This rank's micro-batches as (batch, weight). The weight is 1.0, or 0.0 for one that only
    fills up: sharded layers are gathered by all ranks together, so that all must make as many
    passes. Neighbours in the list are alike in length."""
    filled = [(batch, 1.0) for batch in batches]
    filled += [(batches[-1], 0.0)] * (-len(batches) % world())
    return filled[rank() :: world()]


def within_memory(work, policy, token_budget, rollouts):
    """work(token_budget), once more with half the tokens a pass whenever a GPU's memory has run out
    in it, and with no more from then on. The error goes on where each rollout has a pass by itself.

    All ranks decide together. Where weights are sharded the others then wait within a pass of their
    own: only an end helps, and another --token-budget.
    """
    sharded = any(isinstance(weight, DTensor) for weight in policy.weights().values())
    shortest = min(bundle_length([rollout]) for rollout in rollouts)
    while True:
        lost, budget = None, min(token_budget, policy.token_limit)
        try:
            result = work(budget)
        except torch.cuda.OutOfMemoryError as error:
            lost = error
        if lost and sharded:
            text = f"the same command goes on with --token-budget {budget // 2}"
            raise RuntimeError(f"out of GPU memory in a pass of {budget} tokens: {text}") from lost
        if sharded or not any(gather([lost is not None])):
            return result
        if budget <= shortest:
            raise lost or torch.cuda.OutOfMemoryError("another rank is out of GPU memory")
        policy.token_limit = budget // 2
        if rank() == 0:
            text = f"from now on {policy.token_limit} tokens a pass"
            print(f"grpo: out of GPU memory; {text}", file=sys.stderr)


# ---- weights and gradients -----------------------------------------------------------------------


def shard(model):
    """Cut the weights of a network of transformers over the ranks, in place (FSDP2). Each layer is
    gathered when it is used, and dropped again; embedding, lm_head (often one matrix) and the rest
    are gathered while `within` runs."""
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    compute = torch.bfloat16 if torch.cuda.is_available() else None
    precision = MixedPrecisionPolicy(compute, reduce_dtype=torch.float32)
    for module in (*model.model.language_model.layers, *model.model.visual.blocks, model):
        fully_shard(module, mp_policy=precision, reshard_after_forward=True)
        # Gradients are summed: the loss has its denominator already.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    # FSDP's hooks run around `do` as they do around forward.
    model.do = lambda work: work()
    register_fsdp_forward_method(model, "do")


def within(model, work):
    """work() as if it were the forward pass of `model`: weights are gathered, and on a GPU products
    run in bf16. It has no arguments, because FSDP would round them."""
    kind = next(model.parameters()).device.type
    # No cache: it would hold a bf16 copy of every weight until the end of the pass, and none is
    # used twice.
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False):
        return model.do(work) if hasattr(model, "do") else work()


def send(tensor, device):
    """To the device. A GPU fetches it from pinned memory by itself, and nobody waits."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def working_dtype(tensor):
    """What products with this tensor are made in: bf16 under autocast, else its own."""
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return tensor.dtype


def whole(tensor):
    """A plain tensor of a sharded one. All ranks must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor):
    """This rank's shard, as a plain tensor; of what is not sharded, the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign(weight, new):
    """weight[:] = new, where either may be sharded: shard to shard, shards to a whole, or a whole
    to its shard."""
    if isinstance(new, DTensor) and not isinstance(weight, DTensor):
        # Gathered on the device, in the type it will have: gloo would do it in host memory.
        new = whole(new.to(weight.device, weight.dtype))
    elif isinstance(weight, DTensor) and not isinstance(new, DTensor):
        new = new.to(weight.device)
        new = distribute_tensor(new, weight.device_mesh, weight.placements, src_data_rank=None)
    local(weight).copy_(local(new), non_blocking=True)


@torch.no_grad()
def sum_gradients(parameters):
    """Add up over the ranks the gradients of weights that are not sharded. FSDP has done so for the
    others."""
    for weight in parameters:
        if world() > 1 and weight.grad is not None and not isinstance(weight.grad, DTensor):
            dist.all_reduce(weight.grad)


def clip_gradients(parameters, max_norm) -> float:
    """Add up the gradients of all ranks and scale them to a norm of at most `max_norm`. -> the norm
    they had"""
    parameters = list(parameters)
    sum_gradients(parameters)
    return whole(torch.nn.utils.clip_grad_norm_(parameters, max_norm)).item()


# ---- the state of a training ---------------------------------------------------------------------


def training_state(policy, optimizer) -> dict:
    """Weights and moments by name, as plain tensors in host memory; of sharded ones the shards."""

    def keep(tensor):
        return local(tensor.detach()).cpu()

    weights, moments = policy.weights(), {}
    for name, weight in weights.items():
        # Nothing for a weight that has never had a gradient.
        own = optimizer.state.get(weight, {})
        moments[name] = {key: keep(value) for key, value in own.items()}
    return {"weights": {name: keep(w) for name, w in weights.items()}, "moments": moments}


@torch.no_grad()
def restore(policy, optimizer, state: dict):
    """What `training_state` gave goes back to its place."""
    for name, weight in policy.weights().items():
        local(weight).copy_(state["weights"][name])
        for key, value in state["moments"][name].items():
            # The moments have the weight's shape, the step count is a number.
            moment = torch.zeros_like(weight if value.dim() else value.to(weight.device))
            local(moment).copy_(value)
            optimizer.state[weight][key] = moment
