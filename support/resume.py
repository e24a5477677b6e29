"""The state inside a phase, on disk: weights, AdamW's moments, and what the phase has gathered so far.

Nothing else is needed to go on after a kill: everything that is sampled has a seed of its own (mmzero.subseed), so the
place in the phase is the state of every random stream. Each rank writes its own file, with its shards alone.
"""

import os

import torch

from support.parallel import gather, local


def training_state(policy, optimizer) -> dict:
    """Weights and moments by name, plain tensors in host memory; of sharded ones this rank's shards."""
    weights, keep = policy.weights(), lambda tensor: local(tensor.detach()).cpu()
    return {
        "weights": {name: keep(w) for name, w in weights.items()},
        "moments": {
            name: {k: keep(v) for k, v in optimizer.state[w].items()}
            for name, w in weights.items()
            if w in optimizer.state
        },
    }


@torch.no_grad()
def restore(policy, optimizer, state: dict):
    for name, w in policy.weights().items():
        local(w).copy_(state["weights"][name])
        for key, value in (
            state["moments"].get(name, {}).items()
        ):  # the step count is a number, the rest like w
            optimizer.state[w][key] = (
                torch.zeros_like(w) if value.dim() else torch.zeros((), device=w.device)
            )
            local(optimizer.state[w][key]).copy_(value)


def write(path, state: dict):
    """A whole file, on all ranks, or (RuntimeError, one line) none under this name."""
    new = path.with_suffix(".new")
    try:
        torch.save(state, new)
        os.replace(new, path)
    except (OSError, RuntimeError) as error:  # torch's writer has no better class for a full disk
        new.unlink(missing_ok=True)
        raise RuntimeError(
            f"{path} could not be written ({str(error).splitlines()[0]}): make room there, and the same "
            f"command goes on from the state before"
        ) from error
    gather([None])


def read(path) -> dict | None:
    """None, and a line that says why, if one of the ranks cannot read its file."""
    try:
        state, problem = torch.load(path, weights_only=True, map_location="cpu"), None
    except Exception as error:  # a damaged file may raise anything
        state, problem = None, str(error).strip().split("\n")[0] or type(error).__name__
    problems = [found for found in gather([problem]) if found]
    if problems:
        print(f"{path} cannot be used ({problems[0]}): the phase begins again")
    return None if problems else state
