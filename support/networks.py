"""The two networks of a run: one that samples (the actor), one that is trained (the policy)."""

from support import parallel
from support.checkpoint import check_family, find_checkpoint, load_adapters, read_adapters
from support.lora import add_lora, twin
from support.settings import starts


def check_model(settings):
    """Are there such models, and can this run use them? It is asked before anything is written."""
    base = find_checkpoint(settings.model)
    family = check_family(base)
    for name in dict.fromkeys([settings.model, *starts(settings).values()]):
        config, folder = read_adapters(name), find_checkpoint(name)
        if config and (config["r"], config["lora_alpha"]) != (settings.lora, settings.lora_alpha):
            flags = "--lora {r} --lora-alpha {lora_alpha}".format(**config)
            raise ValueError(f"{name} holds adapters, which are trained on with {flags}")
        if check_family(folder) != family or (config and folder != base):
            raise ValueError(f"{name} is of another family or base than --model {settings.model}")
        if settings.lora and not config and name != settings.model:
            what = f"with --lora a role starts from adapters on {settings.model}"
            raise ValueError(f"{name} holds all weights: {what}")


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
        # transformers renames it.
        usual = policy.model.gradient_checkpointing_enable
        getattr(policy.model, "activation_checkpointing_enable", usual)()
        # It needs training mode. These models have no dropout that this would turn on.
        policy.model.train()
    if sharded and not settings.lora:
        parallel.shard(policy.model)
    for vlm in (actor, policy):
        vlm.min_pixels = settings.min_pixels or vlm.min_pixels
        vlm.max_pixels = settings.max_pixels or vlm.max_pixels
    return actor, policy


def read_weights(load, settings, policy, newest: dict) -> dict[str, dict]:
    """The weights of each role, as the policy holds them: from its newest folder in this run, else
    from where it starts. Roles that start from the base share one copy."""
    base = policy.state()
    weights = dict.fromkeys(newest, base)
    for role, start in starts(settings).items():
        folder = newest[role] or start
        if folder != settings.model:
            if settings.lora:
                load_adapters(policy, folder)
            else:
                try:
                    policy.load_state(load(folder, device="cpu", dtype="float32").state())
                except ValueError as error:
                    raise ValueError(f"{folder}: {error}") from error
            weights[role] = policy.state()
    return weights
