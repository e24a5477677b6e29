"""What CUDA needs to sample fast: memory that is planned and kept, and captured steps."""

import importlib
import os
import sys
import weakref
from dataclasses import dataclass

import torch
import transformers

# The most slots that are of use; the fewest, and the columns, that a captured step is made for.
MOST, FEWEST, WIDTHS = 512, 16, 256
# Bytes a word while a token is drawn: logits, probabilities, sums; on CUDA what a sort takes, too:
# keys and places of 8 bytes, both twice, and the pairs of them.
DRAW = {"cpu": 24, "cuda": 48}
# Of a network the room that it sampled in last, for as long as it lives.
KEPT = weakref.WeakKeyDictionary()


def flash_attn_works() -> bool:
    """Is the package installed, and was it built for this PyTorch? Else it is done without."""
    if not transformers.utils.is_flash_attn_2_available():
        return False
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        print(f"flash-attn does not load ({reason}): torch's own attention it is", file=sys.stderr)
        return False
    return True


def free_bytes(device) -> int:
    """What a cache may take: of a GPU what is free or unused by torch; of a computer half."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def slots_that_fit(vlm, wanted: int | None, longest: int) -> int:
    """`wanted`, or as many slots of `longest` tokens as nine tenths of the free memory hold.

    By default 512 on CUDA. On a CPU, where only a small network gains by more slots, as many as
    256 MB hold, but 16 to 512. ValueError if not even one fits: better before an hour of sampling.
    """
    text = vlm.config.get_text_config()
    width = vlm.model.model.language_model.layers[0].self_attn.k_proj.weight.shape[0]
    cache = 2 * text.num_hidden_layers * width * longest * vlm.dtype.itemsize
    each = cache + DRAW[vlm.device.type] * text.vocab_size
    free = free_bytes(vlm.device) * 9 // 10
    if each > free:
        raise ValueError(
            f"a reply of up to {longest} tokens, prompt included, needs {each / 1e9:.1f} GB of "
            f"cache, and {free / 1e9:.1f} GB are free: shorten max_new_tokens or the prompt, or "
            "make the pictures smaller"
        )
    if wanted is None:
        wanted = MOST if vlm.device.type == "cuda" else max(16, min(MOST, 2**28 // each))
    return max(1, min(wanted, free // each))


@dataclass
class Room:
    """For an engine: slots, and columns of each. On CUDA it is kept, and the engine in it."""

    slots: int
    columns: int
    asked: int  # slots, of which memory may hold fewer
    reads: list  # by graphs: end tokens, and where the weights lie
    engine: object = None


def room_for(vlm, wanted: int | None, replies: int, longest: int) -> Room:
    """For `replies` replies of `longest` tokens with their prompts. On CUDA the last room, engine
    and all, if it is enough and its network is what it was."""
    asked, on_cuda = min(wanted or MOST, replies), vlm.device.type == "cuda"
    reads = [*vlm.eos_ids, *(weight.data_ptr() for weight in vlm.model.parameters())]
    last = KEPT.get(vlm)
    if last is not None:
        enough = last.columns >= longest and last.asked >= asked
        if enough and last.reads == reads:
            return last
        asked, longest = max(asked, last.asked), max(longest, last.columns)
        # Whoever still holds the room does not hold its memory.
        last.engine = None
    release()
    if on_cuda:
        wanted, longest = asked, -(-longest // WIDTHS) * WIDTHS
    slots = min(slots_that_fit(vlm, wanted, longest), asked, vlm.slot_limit)
    room = Room(slots, longest, asked, reads)
    if on_cuda:
        KEPT[vlm] = room
    return room


def halve(vlm, room: Room):
    """Called where memory has run out in this room: half its slots from now on, if it has two."""
    if room.slots == 1:
        raise
    room.engine, vlm.slot_limit = None, room.slots // 2
    release()
    text = f"from now on {vlm.slot_limit} replies at a time"
    print(f"generate: out of GPU memory; {text}", file=sys.stderr)


def release():
    """Give back the memory that sampling keeps: whoever trains or loads a network needs it."""
    KEPT.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class CapturedSteps:
    """A step of the decoder as a CUDA graph: captured once for each of a few shapes, then replayed.

    step(m, width) takes slots 0 .. m-1, which attend to `width` columns. Nothing in it may wait for
    the device, and all that it reads and writes must stay in its place in memory.
    """

    def __init__(self, slots: int, columns: int):
        self.slots, self.columns = slots, columns
        self.graphs, self.pool = {}, torch.cuda.graph_pool_handle()

    def __call__(self, step, settings, m: int, width: int):
        """A step of at least this shape: a power of two, whole blocks, so that few graphs serve."""
        slots = max(FEWEST, 1 << (m - 1).bit_length())
        shape = min(slots, self.slots), min(-(-width // WIDTHS) * WIDTHS, self.columns)
        if (shape, settings) in self.graphs:
            return self.graphs[shape, settings].replay()
        # A step like any other: what CUDA does only once (handles, workspaces) is then done.
        step(*shape)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            step(*shape)  # recorded, not run
        self.graphs[shape, settings] = graph
