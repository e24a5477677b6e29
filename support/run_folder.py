"""The folder of a run: what is written there, and how far an earlier start of the same command came.

    config.json                       the settings           iterK/{proposer,coder,solver}/   checkpoints
    metrics.jsonl                     every figure           iterK/NAME.jsonl, pictures/      what the roles made
    resume/progress.json              the last finished phase, and the newest state (resume.py) inside the next one
    iterK/NAME.partN.jsonl            a whole part of the data that phase NAME is making, proposals N and on; gone when all is there

`report.py` draws `report.html` from it. The whole folder can be copied anywhere.
"""

import dataclasses
import json
import os
from pathlib import Path

import torch
from PIL import Image

from roles import ROLES, Draft
from support import parallel, resume


class Run:
    """One run folder. ValueError: it cannot be written, or holds a run of another configuration.

    `resume/progress.json` says what counts. It is written after what it names, so a process may be killed at any moment;
    what came later is made again, from the same seeds."""

    def __init__(self, settings):
        self.folder = Path(settings.out)
        config = dataclasses.asdict(settings)
        try:
            (self.folder / "resume").mkdir(parents=True, exist_ok=True)
            if (self.folder / "config.json").exists():
                self._same(
                    json.loads((self.folder / "config.json").read_text())["settings"], config
                )
            self.write(
                "config.json",
                json.dumps(
                    {"model": settings.model, "settings": config, "torch": torch.__version__},
                    indent=2,
                ),
            )
        except OSError as error:
            raise ValueError(
                f"--out {self.folder} cannot be written ({error.strerror}): give a folder of yours"
            ) from error
        self.done = (0, "")  # nothing yet; (0, "eval") once the base is measured
        self.place, self.state = (
            None,
            {},
        )  # (iteration, role, step) of the state inside the next phase
        if (file := self.folder / "resume/progress.json").exists():
            progress = json.loads(file.read_text())
            self.done = tuple(progress["done"])
            if progress["place"] and (state := resume.read(self._state_file(*progress["place"]))):
                self.place, self.state = tuple(progress["place"]), state
        kept = [line for line in self._lines() if self._counts(line)]
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        parallel.gather([None])  # all have read how far the run is, before one goes on

    def _same(self, old: dict, new: dict):
        changed = [
            name
            for name in new
            if name not in ("out", "iterations", "workers", "slots", "save_steps")
            and old.get(name) != new[name]
        ]
        if changed:
            what = ", ".join(f"{n} {old.get(n)!r} there, {new[n]!r} now" for n in changed[:4])
            raise ValueError(
                f"{self.folder} holds a run of another configuration ({what}): give its flags, or another --out"
            )

    def _lines(self):
        path = self.folder / "metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                yield json.loads(line)
            except ValueError:  # the last line of a run that was killed while it wrote
                return

    def is_done(self, iteration: int, stage: str) -> bool:
        order = ("", *ROLES, "eval")
        return (iteration, order.index(stage)) <= (self.done[0], order.index(self.done[1]))

    def _counts(self, line: dict) -> bool:
        """Is this line of metrics.jsonl about what is done, or will it be written again?"""
        iteration, phase = line["iteration"], line.get("phase", "eval")
        if line["kind"] in ("data", "audit"):
            return (self.folder / f"iter{iteration}/{phase}.jsonl").exists()
        if line["kind"] == "step" and self.place and self.place[:2] == (iteration, phase):
            return line["step"] <= self.place[2]
        return self.is_done(iteration, phase)

    def _state_file(self, iteration, role, step):
        return (
            self.folder
            / f"resume/{iteration}-{role}-{step}.{parallel.rank()}of{parallel.world()}.pt"
        )

    def save_state(self, iteration: int, role: str, step: int, state: dict):
        resume.write(self._state_file(iteration, role, step), state)
        self.finish(*self.done, (iteration, role, step))  # only now it counts

    def finish(self, iteration: int, stage: str, place=None):
        """This stage is done, and the next one up to `place` if there is a state."""
        self.done = iteration, stage
        self.write("resume/progress.json", json.dumps({"done": self.done, "place": place}))
        parallel.gather([None])  # on several ranks: no state goes before the new one counts
        for old in (self.folder / "resume").glob(f"*.{parallel.rank()}of*"):
            if not place or old != self._state_file(*place):
                old.unlink()
        for part in self.folder.glob("iter*/**/*.part*") if not parallel.rank() else ():
            part.unlink()  # wherever one gets here, the phase has all of its data

    def write(self, name: str, text: str):
        """To a temporary name first: whoever reads sees the old file or the new one, never half of one. Rank 0 writes."""
        if parallel.rank():
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".new").write_text(text, encoding="utf-8")
        os.replace(path.with_name(path.name + ".new"), path)

    def log(self, **record):
        if not parallel.rank():
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def evaluations(self) -> list[dict]:
        return [line for line in self._lines() if line["kind"] == "eval"]

    def save_data(self, iteration: int, name: str, rows: list[tuple[dict, Draft | None]]):
        """iterK/NAME.jsonl, and the pictures of its rows."""
        if parallel.rank():
            return
        folder, lines = f"iter{iteration}/pictures", []
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for number, (row, draft) in enumerate(rows, 1):
            row = row | (draft.record() if draft else {})
            if draft and draft.image:
                row["picture"] = f"{folder}/{name}_{number:04}.png"
                draft.image.save(self.folder / row["picture"])
            lines.append(json.dumps(row) + "\n")
        self.write(f"iter{iteration}/{name}.jsonl", "".join(lines))

    def load_data(self, iteration: int, name: str) -> list[tuple[dict, Draft]] | None:
        """What save_data wrote, if an earlier start of the command came so far: all ranks have it, or none."""
        path = self.folder / f"iter{iteration}/{name}.jsonl"
        if not all(parallel.gather([path.exists()])):
            return None
        return [
            (row, Draft.of(row, row["picture"] and Image.open(self.folder / row["picture"]).copy()))
            for row in map(json.loads, path.read_text().splitlines())
        ]
