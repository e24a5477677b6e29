"""The two networks of a run: one that samples (the actor), one that is trained (the policy)."""

from support import parallel
from support.checkpoint import ADAPTERS, check_family, find_checkpoint, load_adapters, read_json
from support.lora import add_lora, twin


def check_model(settings):
    """Is there such a model, and can this run use it? It is asked before anything is written."""
    config = read_json(settings.model, ADAPTERS)
    if config and (config["r"], config["lora_alpha"]) != (settings.lora, settings.lora_alpha):
        flags = "--lora {r} --lora-alpha {lora_alpha}".format(**config)
        raise ValueError(f"{settings.model} holds adapters, which are trained on with {flags}")
    check_family(find_checkpoint(settings.model))


def load_networks(load, settings):
    """-> actor, policy. `load` is VLM.load.

    The policy holds float32 masters, the actor weights of the compute type. With LoRA both stand on
    the same base; under torchrun the policy is cut over the ranks.
    """
    actor, sharded = load(settings.model), parallel.world() > 1
    if settings.lora:
        if not actor.lora:
            add_lora(actor, settings.lora, settings.lora_alpha)
        policy = twin(actor)
    else:
        # What is to be sharded is loaded into host memory first.
        policy = load(settings.model, dtype="float32", device="cpu" if sharded else "auto")
    if settings.checkpointing:
        policy.model.gradient_checkpointing_enable()
        # It needs training mode. These models have no dropout that this would turn on.
        policy.model.train()
    if sharded and not settings.lora:
        parallel.shard(policy.model)
    for vlm in (actor, policy):
        vlm.min_pixels = settings.min_pixels or vlm.min_pixels
        vlm.max_pixels = settings.max_pixels or vlm.max_pixels
    return actor, policy


def read_weights(load, settings, policy, checkpoints: dict[str, str]) -> dict[str, dict]:
    """The weights of each role, as the policy holds them, from its model name or a folder that this
    run saved. Roles that start from the base share one copy."""
    base = policy.state()
    weights = {role: base for role in checkpoints}
    for role, folder in checkpoints.items():
        if folder != settings.model:
            if settings.lora:
                load_adapters(policy, folder)
            else:
                policy.load_state(load(folder, device="cpu", dtype="float32").state())
            weights[role] = policy.state()
    return weights
