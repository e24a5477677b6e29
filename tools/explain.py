"""One step of each phase in slow motion: explain.html, from a run that is watched.

    python mmzero.py --explain     ->  runs/explain-tiny-svg-seed0/explain.html, in about a minute
    python tools/explain.py        the same; both take the other flags of mmzero.py, too

The run is the usual loop with small numbers (EXPLAIN in support/settings.py). While it goes on,
`watched` stands before some of its functions and keeps what went in and came out, and
explain_page.html shows that. Figures are the run's own. Two things are added: mean and deviation of
a group's rewards, and the parts of a token's loss, for which `policy_loss` is asked once more.
"""

import io
import json
import math
import shutil
import statistics
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

# Run as a program, it finds the modules above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpo
import rewards
from grpo import flat
from support import parallel
from support.answers import tally
from support.run_folder import folder_of
from tools import report

PAGE = Path(__file__).with_name("explain_page.html")
TOKENS = 10  # of a group, in the table of what they push
UNLIKELY = 24  # of a proposal, whose log-probs are shown


@dataclass(eq=False)
class Call:
    name: str
    arguments: tuple
    result: object = None
    inner: list["Call"] = field(default_factory=list)  # the watched calls that were made in it

    def of(self, name: str) -> list["Call"]:
        return [call for call in self.inner if call.name == name]

    def learning(self, role: str) -> "Call | None":
        """The role's GRPO step; None: nothing was left to learn from."""
        return next((call for call in self.of("learn") if call.arguments[1].role == role), None)


@contextmanager
def watched(loop):
    """Keeps the calls of some functions of `loop`, the module mmzero under whatever name it runs:
    yields a Call of which they are the inner ones. Afterwards the functions are as they were."""
    places = {
        loop.Roles: ("draw", "render", "learn", "solver_prompt"),
        loop: ("fresh_data", "coder_data", "solver_data", "group_advantages"),
        rewards: ("proposer_rewards", "cluster_shares"),
        grpo: ("policy_pass", "policy_loss"),
    }
    running = [Call("run", ())]

    def watch(function):
        @wraps(function)
        def kept(*arguments, **more):
            call = Call(function.__name__, arguments)
            running[-1].inner.append(call)
            running.append(call)
            try:
                call.result = function(*arguments, **more)
            finally:
                running.pop()
            return call.result

        return kept

    with ExitStack() as stack:
        for owner, names in places.items():
            for name in names:
                usual = getattr(owner, name)
                stack.enter_context(mock.patch.object(owner, name, watch(usual)))
        yield running[0]


# --------------------------------------------------------------------------- what is shown of it


def most_telling(learn: Call, prefer=lambda i: False) -> int:
    """The group of a step whose rewards differ most, if possible a preferred one. Those of updates
    after the first come first."""
    late = set()
    for one_pass in learn.of("policy_pass"):
        # The log-probs before the step are of what comes after the first update.
        late.update(rollout.group for rollout in one_pass.arguments[3])
    rewards_of = [[one["reward"] for one in group] for group in learn.arguments[4]]
    differ = [max(values) - min(values) for values in rewards_of]
    groups = [i for i in range(len(differ)) if differ[i] > 0] or range(len(differ))
    return max(groups, key=lambda i: (i in late, prefer(i), differ[i]))


def picture_of(image, caption: str):
    file = io.BytesIO()
    image.save(file, "png")
    return report.picture(file, caption)


def pictures_of(drafts: list) -> list[tuple]:
    """Codes with their pictures; None where there is none."""
    return [(one, one.image and picture_of(one.image, one.proposal.caption)) for one in drafts]


def token_table(learn: Call, group: list, decode) -> list[dict]:
    """Some tokens of a group's replies in an update after the first, where the ratio is not 1."""
    own = {id(reply.tokens): number for number, reply in enumerate(group, 1)}
    found = []
    for one_pass in learn.of("policy_pass"):
        (loss,) = one_pass.of("policy_loss")
        columns = [column.detach().cpu() for column in loss.arguments]
        replies = flat(one_pass.arguments[2])
        tokens = [(reply, token) for reply in replies for token in reply.tokens]
        for (reply, token), *numbers in zip(tokens, *(column.tolist() for column in columns)):
            if id(reply.tokens) in own:
                row = {"token": decode([token]), "reply": own[id(reply.tokens)]}
                found.append(row | worked_out(*numbers, learn.arguments[0].settings))
    return most(found, lambda row: abs(row["logp"] - row["old"]), TOKENS)


def worked_out(logp: float, old: float, ref: float, A: float, settings) -> dict:
    """What grpo.py's policy_loss makes of a token: asked again, for one of its parts at a time."""
    shown = {"logp": logp, "old": old, "ref": ref, "advantage": A, "ratio": math.exp(logp - old)}
    numbers = [torch.tensor([x], dtype=torch.float64) for x in (logp, old, ref)]
    A = torch.tensor([A], dtype=torch.float64)
    clips = {name: getattr(settings, name) for name in ("clip_low", "clip_high", "clip_dual")}
    negative, counts = grpo.policy_loss(*numbers, A, **clips, kl_coef=0)
    kl, _ = grpo.policy_loss(*numbers, 0 * A, **clips, kl_coef=1)
    cut = any(counts[name] for name in clips)
    return shown | {"counts": -negative.item(), "kl": kl.item(), "cut": cut}


def most(items: list, key, count: int) -> list:
    """Those in which `key` is largest, in the order in which they came."""
    places = sorted(range(len(items)), key=lambda i: -key(items[i]))
    return [items[i] for i in sorted(places[:count])]


def group_of(learn: Call, number: int) -> SimpleNamespace:
    """A group of a step: its prompt's replies, the terms of their rewards, and its advantages."""
    roles, _, _, replies, terms = learn.arguments
    (advantages,) = learn.of("group_advantages")
    paid = [one["reward"] for one in terms[number]]
    return SimpleNamespace(
        number=number + 1,
        groups=len(replies),
        mean=statistics.mean(paid),
        std=statistics.stdev(paid),
        texts=[reply.text for reply in replies[number]],
        terms=terms[number],
        advantages=advantages.result[number].tolist(),
        tokens=token_table(learn, replies[number], roles.actor.tokenizer.decode),
        statistics=learn.result,
    )


def phase_p(run: Call) -> SimpleNamespace:
    learn = run.learning("proposer")
    (paid,) = run.of("proposer_rewards")
    (draw,) = run.of("draw")
    roles, phase, _, replies, terms = learn.arguments
    proposals, size = paid.arguments[0], len(replies[0])

    # A proposal of which some codes draw and some do not, in a group of unequal rewards.
    telling = [0 < one["rendered"] < 1 for one in paid.result]
    groups = [telling[i : i + size] for i in range(0, len(telling), size)]
    number = most_telling(learn, lambda i: any(groups[i]))
    own = range(number * size, (number + 1) * size)
    taken = [sum(one[name] for name in ("easy_hard", "type", "diversity")) for one in paid.result]
    place = max(own, key=lambda i: (telling[i], taken[i] > 0, paid.result[i]["reward"]))

    valid = [i for i, proposal in enumerate(proposals) if proposal is not None]
    shares = [call.result for call in paid.of("cluster_shares")]
    batch = []
    for rank, i in enumerate(valid):
        clusters = [round(share[rank] * len(valid)) for share in shares]
        row = dict(proposal=proposals[i], terms=paid.result[i], clusters=clusters, own=i == place)
        batch.append(row)
    reply, decode = flat(replies)[place], roles.actor.tokenizer.decode
    tokens = [(decode([token]), logp) for token, logp in zip(reply.tokens, reply.full_logps)]
    unlikely = most(tokens, lambda token: -token[1], UNLIKELY)
    return SimpleNamespace(
        topic=phase.rows[place]["topic"],
        tokens=tokens,
        unlikely=[token for token in unlikely if token[1] < -0.005],  # else it is 0.00
        proposal=proposals[place],
        drafts=pictures_of(draw.result[place]),
        terms=paid.result[place],
        batch=batch,
        asked=len(proposals),
        types=tally([row["terms"]["content_type"] for row in batch]),
        weights=rewards.FIELD_WEIGHTS,
        group=group_of(learn, number),
        place=place % size + 1,
    )


def phase_c(run: Call) -> SimpleNamespace:
    (data,), learn = run.of("coder_data"), run.learning("coder")
    (fresh,) = data.of("fresh_data")
    rows = [row for row, _ in fresh.result]
    shown = SimpleNamespace(rows=rows, kept=len(data.result), group=None)
    if learn:
        # What is drawn outside of `draw` are the policy's own codes.
        (render,) = run.of("render")
        failed = [any(draft.image is None for draft in group) for group in render.result]
        number = most_telling(learn, lambda i: failed[i])
        shown.drafts = pictures_of(render.result[number])
        shown.group = group_of(learn, number)
    return shown


def phase_s(run: Call) -> SimpleNamespace:
    (data,), learn = run.of("solver_data"), run.learning("solver")
    (fresh,) = data.of("fresh_data")
    kept = {id(row) for row, _ in data.result}
    drawn = [row for row, image in fresh.result if image is not None]
    shown = SimpleNamespace(valid=len(fresh.result), drawn=len(drawn), kept=len(kept), group=None)
    shown.dropped = [row for row in drawn if id(row) not in kept]
    if learn:
        number = most_telling(learn)
        prompt = learn.arguments[2][number]
        (asked,) = (call for call in run.of("solver_prompt") if call.result is prompt)
        image = asked.arguments[1]
        shown.row = next(row for row, own in data.result if own is image)
        shown.picture = picture_of(image, shown.row["caption"])
        shown.group = group_of(learn, number)
    return shown


# -------------------------------------------------------------------------------------- the page


def write(run: Call, folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    page = report.JINJA.from_string(PAGE.read_text(encoding="utf-8")).render(
        p=phase_p(run),
        c=phase_c(run),
        s=phase_s(run),
        settings=config["settings"],
        model=config["model"],
    )
    return report.write(folder / "explain.html", page)


def explain(loop, settings) -> Path:
    """Run the loop of module `loop` (mmzero.py, under whatever name) once, watched -> the page.

    ValueError: there is a page already, or another run; or it is not one step in one process.
    """
    steps = [getattr(settings, f"{role}_steps") for role in report.ROLES]
    if [settings.iterations, *steps] != [1, 1, 1, 1] or parallel.world() > 1:
        what = "--explain shows one iteration of one step for each role, in one process"
        raise ValueError(f"{what}: leave --iterations, --steps and torchrun out")
    folder = folder_of(settings)
    page, config = folder / "explain.html", folder / "config.json"
    if page.exists():
        raise ValueError(f"{page} is there already: look at it, or give another --out")
    if config.exists():
        if not json.loads(config.read_text(encoding="utf-8"))["settings"].get("explain"):
            raise ValueError(f"{folder} holds a usual run: give another --out")
        # It was stopped, and what was seen of it is lost.
        shutil.rmtree(folder)
    with watched(loop) as run:
        started = loop.Run(settings)
        for _ in loop.self_evolve(started, loop.prepare(started)):
            pass
    return write(run, folder)


if __name__ == "__main__":
    import mmzero

    mmzero.main(["--explain", *sys.argv[1:]])
