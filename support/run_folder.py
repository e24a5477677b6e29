"""The folder of a run: what is written there, and how a run that was stopped goes on.

    config.json                the settings          iterK/{proposer,coder,solver}/  checkpoints
    metrics.jsonl              every figure          iterK/NAME.jsonl, pictures/     what roles made
    report.html                drawn from them       resume/                         see below

`resume/progress.json` says what counts: the last stage that is done, and the newest state inside
the next one. It is written after what it names, so a process may be killed at any moment. What came
later is made again, from the same seeds. Nothing else is needed, because everything that is sampled
has a seed of its own (`subseed`): the place in a phase is the state of every random stream.

    resume/I-ROLE-STEP.RofW.pt     weights and AdamW's moments, of rank R of W its shards alone
    iterK/ROLE.partN.jsonl         a whole part of the data that the phase is making, from place N
                                   on; gone when all of it is there

The folder can be copied anywhere. Under torchrun all ranks read it, and rank 0 writes.
"""

import dataclasses
import fcntl
import hashlib
import json
import random
import statistics
import time
from pathlib import Path

import torch
from PIL import Image

from support import parallel, screen
from support.machine import reason, replacing
from support.settings import unusual

ROLES = ("proposer", "coder", "solver")  # in the order in which an iteration trains them

# Share of replies from which on it is worth a warning that nothing could be read in them.
MANY_UNREAD = 0.3

# A run may go on with other values of these.
FREE = ("out", "iterations", "threads", "workers", "slots", "save_steps", "token_budget")

SLOW = 3  # times the usual duration of a step: then it is worth a line
NO_FORM = """no reply of the Solver has the form that its prompt asks for, <think>..</think> and
then one box: an instruct model without think tags? Format stays 0, its answers are paid"""


def subseed(*words) -> int:
    """A seed of its own for everything that is sampled: a resumed run draws what the first one had.

    >>> subseed(0, 1, "solver", 3) == subseed(0, 1, "solver", 3) != subseed(0, 1, "solver", 4)
    True
    """
    digest = hashlib.blake2b(repr(words).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def mean(values) -> float:
    """0 for none.

    >>> mean([1, 2]), mean([])
    (1.5, 0.0)
    """
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def read_jsonl(path: Path) -> list:
    """Lines of JSON. A last line without its newline is still being written: it is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        raise ValueError(f"{path} has a line that is not JSON") from None


# ------------------------------------------------------------------------------------- the folder

HELD = {}  # folder -> the file whose lock this process has


def hold(folder: Path):
    """Until this process and the other ranks end, no other may write into the folder. ValueError:
    one does. The lock is the kernel's: a kill leaves none behind, and NFS hands it on."""
    problem, folder = None, folder.resolve()
    if parallel.rank() == 0 and folder not in HELD:
        folder.mkdir(parents=True, exist_ok=True)
        HELD[folder] = open(folder / ".lock", "a", encoding="utf-8")
        try:
            fcntl.flock(HELD[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            del HELD[folder]
            problem = f"another process writes into {folder}: wait for it, or give another --out"
        except OSError as error:
            print(f"{folder} cannot be locked ({error.strerror}): see to it that nobody shares it")
    if problem := parallel.gather([problem])[0]:
        raise ValueError(problem)


def folder_of(settings) -> Path:
    name = "-no-".join([settings.language, *settings.without])
    name = f"{Path(settings.model).name}-{name}-seed{settings.seed}"
    return Path(settings.out or f"runs/{'explain-' if settings.explain else ''}{name}")


class Run:
    """One run folder. ValueError: it cannot be written, or holds a run of another configuration."""

    def __init__(self, settings, hours_left=None):
        """hours_left(iteration, stage): a line about the rest of the run, once a phase is over."""
        self.settings, self.hours_left = settings, hours_left
        if unusual(settings):
            print(unusual(settings))
        self.folder = folder_of(settings)
        config = dataclasses.asdict(settings) | {"out": str(self.folder)}
        config["without"] = list(settings.without)  # as JSON gives it back
        # What config.json holds. threads: those that the run began with.
        self.facts = {"model": settings.model, "settings": config, "threads": None}
        try:
            hold(self.folder)
            (self.folder / "resume").mkdir(parents=True, exist_ok=True)
            if (self.folder / "config.json").exists():
                old = json.loads((self.folder / "config.json").read_text())
                self._refuse_another(old["settings"], config)
                self.facts["threads"] = old.get("threads")
            self.note(torch=torch.__version__)
        except OSError as error:
            what = f"--out {self.folder} cannot be written ({error.strerror or reason(error)})"
            raise ValueError(f"{what}: give a folder of yours") from error

        self.warned = False  # that something else uses the cores
        # (iteration, stage) that is done: (0, "") nothing yet, (0, "eval") the base is measured.
        self.done = (0, "")
        # (iteration, role, step) of the state inside the next stage, and the state.
        self.place, self.state = None, None
        file = self.folder / "resume/progress.json"
        if file.exists():
            progress = json.loads(file.read_text())
            self.done = tuple(progress["done"])
            if progress["place"]:
                self.state = read_state(self._state_file(*progress["place"]))
            if self.state:
                self.place = tuple(progress["place"])
            print(f"going on with {self.folder}, after {self.done}, {self.place or ''}")
        self.write_rows("metrics.jsonl", filter(self._counts, self.metrics()))
        # All have read how far the run is, before one goes on.
        parallel.gather([None])

    def note(self, **facts):
        """Facts about the run, for config.json."""
        self.facts |= facts
        self.write("config.json", json.dumps(self.facts, indent=2))

    def _refuse_another(self, old: dict, new: dict):
        changed = [name for name in new if name not in FREE and old.get(name) != new[name]]
        if changed:
            what = ", ".join(f"{n} {old.get(n)!r} there, {new[n]!r} now" for n in changed[:4])
            what = f"{self.folder} holds a run of another configuration ({what})"
            raise ValueError(f"{what}: give its flags, or another --out")

    def is_done(self, iteration: int, stage: str) -> bool:
        order = ("", *ROLES, "eval")
        done, stage_done = self.done
        return (iteration, order.index(stage)) <= (done, order.index(stage_done))

    def finish(self, iteration: int, stage: str, place=None):
        """This stage is done, and the next one up to `place`, if there is a state of it."""
        self.done = iteration, stage
        self.write("resume/progress.json", json.dumps({"done": self.done, "place": place}))
        # Of several ranks none deletes a state before the new one counts.
        parallel.gather([None])
        for old in (self.folder / "resume").glob(f"*.{parallel.rank()}of*"):
            if not place or old != self._state_file(*place):
                old.unlink()
        line = self.hours_left(iteration, stage) if self.hours_left and not place else ""
        if line:
            print(line)
        if parallel.rank() == 0:
            # Wherever one gets here, the phase has all of its data.
            for part in self.folder.glob("iter*/**/*.part*"):
                part.unlink()

    def newest(self, role: str) -> str | None:
        """The folder of the role's newest checkpoint; None: it has not been trained (yet)."""
        for iteration in range(self.done[0], 0, -1):
            folder = self.folder / f"iter{iteration}" / role
            if self.is_done(iteration, role) and folder.exists():
                return str(folder)
        return None

    def _state_file(self, iteration, role, step) -> Path:
        ranks = f"{parallel.rank()}of{parallel.world()}"
        return self.folder / f"resume/{iteration}-{role}-{step}.{ranks}.pt"

    def save_state(self, iteration: int, role: str, step: int, state: dict):
        """A whole file, on all ranks, or (OSError, one line) none under this name."""
        with replacing(self._state_file(iteration, role, step)) as new:
            torch.save(state, new)
        # Only now, when all ranks have theirs, it counts.
        parallel.gather([None])
        self.finish(*self.done, (iteration, role, step))

    # ---- replies that cannot be read

    def unread(self, iteration: int, role: str, texts: list[str], flags: list[bool]) -> float:
        """The share of replies in which nothing could be read, as the flags say. Of too many a
        warning is given, once for each role, and an example is kept."""
        share = mean(flags)
        if share > MANY_UNREAD and not any(self.folder.glob(f"iter*/unread-{role}.txt")):
            name = f"iter{iteration}/unread-{role}.txt"
            self.write(name, texts[flags.index(True)])
            unread = f"{share:.0%} of the {role}'s replies cannot be read: phase S will starve"
            print(f"{unread}. One of them:\n{self.folder / name}")
        return share

    def write(self, name: str, text: str):
        """The whole file, by rank 0."""
        if parallel.rank() == 0:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                new.write_text(text, encoding="utf-8")

    def write_rows(self, name: str, rows):
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def metrics(self) -> list[dict]:
        return read_jsonl(self.folder / "metrics.jsonl")

    def log(self, **record):
        if parallel.rank() == 0:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _counts(self, line: dict) -> bool:
        """Is this line of metrics.jsonl about what is done? Else it will be written again."""
        iteration, stage = line["iteration"], line.get("phase", "eval")
        if line["kind"] == "data":
            return (self.folder / f"iter{iteration}/{stage}.jsonl").exists()
        if line["kind"] == "step" and self.place and self.place[:2] == (iteration, stage):
            return line["step"] <= self.place[2]
        return self.is_done(iteration, "eval" if line["kind"] == "audit" else stage)

    def evaluations(self) -> list[dict]:
        return [line for line in self.metrics() if line["kind"] == "eval"]

    def save_rows(self, iteration: int, name: str, rows: list[tuple[dict, Image.Image | None]]):
        """iterK/NAME.jsonl, and the pictures of its rows."""
        if parallel.rank() == 0:
            (self.folder / f"iter{iteration}/pictures").mkdir(parents=True, exist_ok=True)
            lines = []
            for number, (row, image) in enumerate(rows, 1):
                file = None
                if image is not None:
                    file = f"iter{iteration}/pictures/{name}_{number:04}.png"
                    image.save(self.folder / file)
                lines.append(row | {"picture": file})
            self.write_rows(f"iter{iteration}/{name}.jsonl", lines)

    def load_rows(self, iteration: int, name: str) -> list[tuple[dict, Image.Image | None]] | None:
        """What save_rows wrote, if an earlier start came so far: all ranks have it, or none."""
        path = self.folder / f"iter{iteration}/{name}.jsonl"
        if not all(parallel.gather([path.exists()])):
            return None
        rows = []
        for row in read_jsonl(path):
            file = row.pop("picture")
            rows.append((row, Image.open(self.folder / file).copy() if file else None))
        return rows


# -------------------------------------------------------------------------------------- a phase


class Phase:
    """One role's training in one iteration: its optimiser, its seeds, its files, its lines."""

    def __init__(self, run: Run, iteration: int, role: str, policy, optimizer):
        self.run, self.iteration, self.role = run, iteration, role
        self.policy, self.optimizer = policy, optimizer
        self.title = f"it {iteration} {role}"
        self.started = time.perf_counter()
        # Steps that an earlier start made, and rows that are saved when the phase is over.
        self.steps_made, self.rows = 0, []
        self.durations = []  # of the steps, in seconds
        # Did the last step teach next to nothing, and has it been said?
        self.was_cold, self.said_cold = False, False
        if run.place and run.place[:2] == (iteration, role):
            self.steps_made, self.rows = run.place[2], json.loads(run.state["rows"])
            parallel.restore(policy, optimizer, run.state)
            run.state = None  # large, and used

    def seed(self, *words) -> int:
        return subseed(self.run.settings.seed, self.iteration, self.role, *words)

    def log(self, kind: str, **record):
        self.run.log(kind=kind, iteration=self.iteration, phase=self.role, **record)

    def parts(self, count: int):
        """Places 0 .. count-1 in parts: (places, rows that an earlier start saved, or None) each.

        Borders depend on nothing but the settings: a part comes out the same whoever makes it.
        """
        size = self.run.settings.part_proposals
        for first in screen.bar(range(0, count, size), f"{self.title} data", " parts"):
            places = range(first, min(first + size, count))
            yield places, self.run.load_rows(self.iteration, f"{self.role}.part{first}")

    def save_part(self, places: range, rows):
        self.run.save_rows(self.iteration, f"{self.role}.part{places.start}", rows)

    def load_data(self):
        return self.run.load_rows(self.iteration, self.role)

    def save_data(self, rows):
        self.run.save_rows(self.iteration, self.role, rows)

    def log_data(self, rows, asked: int, kept: int):
        """What became of the fresh proposals: a line on the terminal, and one on disk."""
        judged = [row for row, _ in rows if row["hard_answers"]]
        rendered = sum(row["render_rate"] > 0 for row, _ in rows)
        funnel = {"asked": asked, "valid": len(rows), "rendered": rendered}
        if self.role == "solver":
            funnel["evaluated"] = len(judged)
        funnel["kept"] = kept
        of_judged = {
            "hard_consistency": [row["consistency"] for row in judged],
            "easy_consistency": [row["easy_consistency"] for row in judged],
            "agreement_with_easy_answer": mean(row["solvability"] for row in judged),
        }
        self.log("data", seconds=time.perf_counter() - self.started, **funnel, **of_judged)
        counts = " > ".join(f"{number} {name}" for name, number in funnel.items())
        print(f"{self.title} data".ljust(20) + counts)
        if not kept:
            print(f"{self.title}: nothing passed the filter; the {self.role} stays as it is")

    def steps(self, count: int):
        """Numbers of the steps that are still to be made; 1 is the first."""
        self.bar = screen.bar(range(self.steps_made + 1, count + 1), self.title, " steps")
        for step in self.bar:
            self.started = time.perf_counter()
            screen.SPENT.clear()
            yield step

    def batches(self, items: list, size: int, steps: int):
        """(step, batch of `size` items, or of all there are), going through the items again and
        again, each time in a new order. Without items there is no step."""
        if not items:
            return
        rng, batches, waiting = random.Random(self.seed("order")), [], []
        size = min(size, len(items))
        for _ in range(steps):
            while len(waiting) < size:
                waiting += reversed(rng.sample(items, len(items)))
            batches.append(waiting[:size])
            del waiting[:size]
        for step in self.steps(steps):
            yield step, batches[step - 1]

    def add_rows(self, step: int, topics, replies, terms):
        """Rows about the replies [P][G] of a step, for the file that save_data writes."""
        for topic, group, group_terms in zip(topics, replies, terms):
            for reply, one in zip(group, group_terms):
                self.rows.append({"step": step, "topic": topic, "reply": reply.text} | one)

    def end_step(self, step: int, replies, unread, terms: list[dict], figures: dict, **more):
        """A line on the terminal and on disk; and the state, every --save-steps steps.

        unread: could nothing be read in this reply? terms: of the reward of each reply.
        figures: what train_step returned.
        """
        of_all, condition, of_some = (
            names.split() for names in screen.FIGURES[self.role].split("|")
        )
        some = [one for one in terms if one[condition[0]]]
        record = {name: mean(one[name] for one in terms) for name in of_all}
        record |= {name: mean(one[name] for one in some) for name in of_some}
        # nan is no JSON.
        finite = {name: None if value != value else value for name, value in figures.items()}
        record["unread"] = self.run.unread(
            self.iteration, self.role, [reply.text for reply in replies], unread
        )
        if self.role == "solver" and self.steps_made == 0 and step == 1 and not record["format"]:
            print(NO_FORM)
        record |= more | finite | screen.spent() | {"seconds": time.perf_counter() - self.started}
        self.look_at_the_clock(record["seconds"])
        self.log("step", step=step, **record)
        title = f"{self.title} {step}/{self.bar.iterable.stop - 1}"
        self.bar.write(screen.step_line(title, record))
        self.show(replies[0].text, record)
        if step % self.run.settings.save_steps == 0:
            state = parallel.training_state(self.policy, self.optimizer)
            state["rows"] = json.dumps(self.rows)
            self.run.save_state(self.iteration, self.role, step, state)

    def show(self, reply: str, record: dict):
        """A reply of the phase's first step; and, once, that two steps in a row taught little."""
        first, why = len(self.durations) == 1, screen.cold(record)
        cold = bool(why) and self.was_cold and not self.said_cold
        self.was_cold, self.said_cold = bool(why), self.said_cold or cold
        name = f"iter{self.iteration}/sample-{self.role}.txt"
        if first or cold:
            self.run.write(name, reply)
        if first:
            self.bar.write(screen.sample(reply))
        if cold:
            self.bar.write(f"{self.title} learns little: {why}, for two steps. A reply is in")
            self.bar.write(f"{self.run.folder / name}. What may help: {screen.WARMER}")

    def look_at_the_clock(self, seconds: float):
        """Once in a run: a step has taken more than three times the median of the phase's steps."""
        slow = self.durations and seconds > SLOW * statistics.median(self.durations)
        if slow and not self.run.warned:
            text = f"a step took {seconds:.0f} s, {SLOW} times as long as those before it"
            self.bar.write(f"{text}. Are the cores used by others? Then go on with --threads 1")
            self.run.warned = True
        self.durations.append(seconds)


def read_state(path: Path) -> dict | None:
    """None, and a line that says why, if one of the ranks cannot read its file."""
    state, problem = None, None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        # A damaged file may raise anything.
        problem = reason(error)
    problems = [found for found in parallel.gather([problem]) if found]
    if problems:
        print(f"{path} cannot be used ({problems[0]}): the phase begins again")
        return None
    return state
