"""One step of each phase in slow motion: explain.html, from a run that is watched.

    python mmzero.py --explain     ->  runs/explain-tiny-svg-seed0/explain.html, in about a minute

The run is the usual loop with small numbers (EXPLAIN in support/settings.py). While it goes on,
`Recorder` stands before some of its functions and keeps what went in and came out, and
explain_page.html shows that. Figures are the run's own. Two things are added: mean and deviation of
a group's rewards, and the parts of a token's loss, for which `policy_loss` is asked once more.
"""

import io
import json
import shutil
import statistics
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jinja2
import torch
from markupsafe import Markup

import grpo
import rewards
from grpo import flat
from support import parallel
from support.answers import tally
from support.run_folder import folder_of
from tools import report

PAGE = Path(__file__).with_name("explain_page.html")
FEW, TOKENS, LONGEST = 12, 10, 600  # rows, tokens and letters that are shown of longer ones
STYLE = report.TEXT.split("<style>")[1].split("</style>")[0]


@dataclass(eq=False)
class Call:
    name: str
    arguments: tuple
    parent: "Call | None"  # the watched call that it was made in
    result: object = None


class Recorder:
    """Keeps the calls of some functions of the loop, in order. `with` puts the functions back."""

    def __init__(self, loop):
        """loop: the module mmzero, under whatever name it runs."""
        self.calls, self.running, self.stack = [], [], ExitStack()
        self.places = {
            loop.Roles: "draw render learn solver_prompt",
            loop: "fresh_data coder_data solver_data group_advantages",
            rewards: "proposer_rewards cluster_shares",
            grpo: "policy_pass policy_loss",
        }

    def __enter__(self):
        for owner, names in self.places.items():
            for name in names.split():
                function = self.watch(getattr(owner, name))
                self.stack.enter_context(mock.patch.object(owner, name, function))
        return self

    def __exit__(self, *error):
        self.stack.close()

    def watch(self, function):
        @wraps(function)
        def watched(*arguments, **more):
            parent = self.running[-1] if self.running else None
            call = Call(function.__name__, arguments, parent)
            self.calls.append(call)
            self.running.append(call)
            try:
                call.result = function(*arguments, **more)
            finally:
                self.running.pop()
            return call.result

        return watched

    def of(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def inside(self, parent: Call | None, name: str) -> list[Call]:
        """Those that were made in another, or (None) in none that is watched."""
        return [call for call in self.of(name) if call.parent is parent]

    def learning(self, role: str) -> Call | None:
        """The role's GRPO step; None: nothing was left to learn from."""
        found = [call for call in self.of("learn") if call.arguments[1].role == role]
        return found[0] if found else None


# --------------------------------------------------------------------------- what is shown of it


def most_telling(recorder: Recorder, learn: Call, prefer=lambda i: False) -> int:
    """The group of a step whose rewards differ most, if possible a preferred one. Those of updates
    after the first come first."""
    late = set()
    for one_pass in recorder.inside(learn, "policy_pass"):
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
    shown = []
    for draft in drafts:
        picture = draft.image and picture_of(draft.image, draft.proposal.caption)
        shown.append((draft, picture))
    return shown


def token_table(recorder: Recorder, learn: Call, group: list, decode) -> list[dict]:
    """Some tokens of a group's replies in an update after the first, where the ratio is not 1."""
    own = {id(reply.tokens): number for number, reply in enumerate(group)}
    found = []
    for one_pass in recorder.inside(learn, "policy_pass"):
        inside = recorder.inside(one_pass, "policy_loss")
        columns = [torch.cat([c.arguments[i].detach().cpu() for c in inside]) for i in range(4)]
        replies = flat(one_pass.arguments[2])
        tokens = [(reply, token) for reply in replies for token in reply.tokens]
        for (reply, token), *numbers in zip(tokens, *(column.tolist() for column in columns)):
            if id(reply.tokens) in own:
                found.append(dict(zip(("logp", "old", "ref", "advantage"), numbers)))
                found[-1] |= {"token": decode(token), "reply": own[id(reply.tokens)] + 1}
    # Those that moved most, in the order of the text.
    moved = sorted(range(len(found)), key=lambda i: -abs(found[i]["logp"] - found[i]["old"]))
    return [found[i] for i in sorted(moved[:TOKENS])]


def group_of(recorder: Recorder, learn: Call, number: int) -> SimpleNamespace:
    """A group of a step: its prompt's replies, the terms of their rewards, and its advantages."""
    roles, _, _, replies, terms = learn.arguments
    (advantages,) = recorder.inside(learn, "group_advantages")

    def decode(token):
        return roles.actor.tokenizer.decode([token])

    paid = [one["reward"] for one in terms[number]]
    return SimpleNamespace(
        number=number + 1,
        groups=len(replies),
        mean=statistics.mean(paid),
        std=statistics.stdev(paid),
        texts=[reply.text for reply in replies[number]],
        terms=terms[number],
        advantages=advantages.result[number].tolist(),
        tokens=token_table(recorder, learn, replies[number], decode),
        statistics=learn.result,
    )


def phase_p(recorder: Recorder) -> SimpleNamespace:
    learn = recorder.learning("proposer")
    (paid,) = recorder.of("proposer_rewards")
    (draw,) = recorder.inside(None, "draw")
    roles, phase, _, replies, terms = learn.arguments
    proposals, size = paid.arguments[0], len(replies[0])

    # A proposal of which some codes draw and some do not, in a group of unequal rewards.
    telling = [0 < one["rendered"] < 1 for one in paid.result]
    groups = [telling[i : i + size] for i in range(0, len(telling), size)]
    number = most_telling(recorder, learn, lambda i: any(groups[i]))
    own = range(number * size, (number + 1) * size)
    taken = [sum(one[name] for name in ("easy_hard", "type", "diversity")) for one in paid.result]
    place = max(own, key=lambda i: (telling[i], taken[i] > 0, paid.result[i]["reward"]))

    valid = [i for i, proposal in enumerate(proposals) if proposal is not None]
    shares = [call.result for call in recorder.inside(paid, "cluster_shares")]
    batch = []
    for rank, i in enumerate(valid):
        clusters = [round(share[rank] * len(valid)) for share in shares]
        row = dict(proposal=proposals[i], terms=paid.result[i], clusters=clusters, own=i == place)
        batch.append(row)
    tokenizer, reply = roles.actor.tokenizer, flat(replies)[place]
    return SimpleNamespace(
        topic=phase.rows[place]["topic"],
        tokens=[(tokenizer.decode([t]), logp) for t, logp in zip(reply.tokens, reply.full_logps)],
        proposal=proposals[place],
        drafts=pictures_of(draw.result[place]),
        terms=paid.result[place],
        batch=batch,
        asked=len(proposals),
        types=tally([row["terms"]["content_type"] for row in batch]),
        weights=rewards.FIELD_WEIGHTS,
        group=group_of(recorder, learn, number),
        place=place % size + 1,
    )


def phase_c(recorder: Recorder) -> SimpleNamespace:
    (data,), learn = recorder.of("coder_data"), recorder.learning("coder")
    (fresh,) = recorder.inside(data, "fresh_data")
    rows = [row for row, _ in fresh.result]
    rates = sorted(Counter(row["render_rate"] for row in rows).items())
    shown = SimpleNamespace(rows=rows, rates=rates, kept=len(data.result), group=None)
    if learn:
        # What is drawn outside of `draw` are the policy's own codes.
        (render,) = recorder.inside(None, "render")
        failed = [any(draft.image is None for draft in group) for group in render.result]
        number = most_telling(recorder, learn, lambda i: failed[i])
        shown.drafts = pictures_of(render.result[number])
        shown.group = group_of(recorder, learn, number)
    return shown


def phase_s(recorder: Recorder) -> SimpleNamespace:
    (data,), learn = recorder.of("solver_data"), recorder.learning("solver")
    (fresh,) = recorder.inside(data, "fresh_data")
    kept = {id(row) for row, _ in data.result}
    drawn = [row for row, image in fresh.result if image is not None]
    dropped = [row for row in drawn if id(row) not in kept]
    shown = SimpleNamespace(valid=len(fresh.result), drawn=len(drawn), kept=len(kept), group=None)
    shown.dropped = dropped
    if learn:
        number = most_telling(recorder, learn)
        prompt = learn.arguments[2][number]
        (asked,) = (call for call in recorder.of("solver_prompt") if call.result is prompt)
        image = asked.arguments[1]
        shown.row = next(row for row, own in data.result if own is image)
        shown.picture = picture_of(image, shown.row["caption"])
        shown.group = group_of(recorder, learn, number)
    return shown


# -------------------------------------------------------------------------------------- the page


def number(x: float, digits=4) -> str:
    return f"{x:.{digits}f}".replace("-", "−")


def worked_out(token: dict, loss: grpo.LossSettings) -> dict:
    """What grpo.py's policy_loss makes of a token: asked again, for one of its parts at a time."""
    names = ("logp", "old", "ref", "advantage")
    logp, old, ref, A = (torch.tensor([token[n]], dtype=torch.float64) for n in names)
    negative, counts = grpo.policy_loss(logp, old, ref, A, replace(loss, kl=0))
    kl, _ = grpo.policy_loss(logp, old, ref, 0 * A, replace(loss, kl=1))
    cut = any(counts[name] for name in ("clip_high", "clip_low", "clip_dual"))
    ratio = (logp - old).exp().item()
    return token | {"ratio": ratio, "counts": -negative.item(), "kl": kl.item(), "cut": cut}


def write(recorder: Recorder, folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = config["settings"]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["n"] = number
    environment.globals.update(answers_match=rewards.answers_match, tally=tally)
    loss = grpo.LossSettings(**{f.name: settings[f.name] for f in fields(grpo.LossSettings)})
    environment.globals.update(worked_out=partial(worked_out, loss=loss))
    environment.globals.update(style=Markup(STYLE), few=FEW, longest=LONGEST)
    phases = dict(p=phase_p(recorder), c=phase_c(recorder), s=phase_s(recorder))
    template = environment.from_string(PAGE.read_text(encoding="utf-8"))
    page = template.render(**phases, settings=settings, model=config["model"])
    # Models write half surrogate pairs, which UTF-8 cannot.
    (folder / "explain.html").write_bytes(page.encode("utf-8", "replace"))
    return folder / "explain.html"


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
    with Recorder(loop) as recorder:
        run = loop.Run(settings)
        for _ in loop.self_evolve(run, loop.prepare(run)):
            pass
    return write(recorder, folder)
