"""The folder of a run: what is written there, and how far an earlier start of the same command came.

    config.json                       the settings           iterK/{proposer,coder,solver}/   checkpoints
    metrics.jsonl                     every figure           iterK/NAME.jsonl, pictures/      what the roles made
    resume/progress.json              the last finished phase

`report.py` draws `report.html` from it. The whole folder can be copied anywhere.
"""

import dataclasses
import json
import os
from pathlib import Path

import torch

from roles import ROLES, Draft


class Run:
    """One run folder. ValueError: it cannot be written, or holds a run of another configuration.

    `resume/progress.json` names the last phase that is complete. What a broken-off phase left behind it is dropped
    when the run goes on: that phase is done again, from the same seeds.
    """
    STAGES = (*ROLES, "eval")

    def __init__(self, settings):
        self.folder = Path(settings.out)
        config = dataclasses.asdict(settings)
        try:
            (self.folder / "resume").mkdir(parents=True, exist_ok=True)
            if (self.folder / "config.json").exists():
                self._same(json.loads((self.folder / "config.json").read_text())["settings"], config)
            self.write("config.json", json.dumps({"model": settings.model, "settings": config, "torch": torch.__version__}, indent=2))
        except OSError as error:
            raise ValueError(f"--out {self.folder} cannot be written ({error.strerror}): give a folder of yours") from error
        self.done = (0, "")                                     # nothing yet; (0, "eval") once the base is measured
        if (self.folder / "resume/progress.json").exists():
            self.done = tuple(json.loads((self.folder / "resume/progress.json").read_text()))
        kept = [line for line in self._lines() if self.is_done(line["iteration"], line.get("phase", "eval"))]
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def _same(self, old: dict, new: dict):
        changed = [name for name in new if name not in ("out", "iterations", "workers", "slots") and old.get(name) != new[name]]
        if changed:
            what = ", ".join(f"{n} {old.get(n)!r} there, {new[n]!r} now" for n in changed[:4])
            raise ValueError(f"{self.folder} holds a run of another configuration ({what}): "
                             f"give the same flags to go on with it, or another --out")

    def _lines(self):
        path = self.folder / "metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                yield json.loads(line)
            except ValueError:                                  # the last line of a run that was killed while it wrote
                return

    def is_done(self, iteration: int, stage: str) -> bool:
        key = lambda i, s: (i, -1 if not s else self.STAGES.index(s))
        return key(iteration, stage) <= key(*self.done)

    def finish(self, iteration: int, stage: str):
        self.done = (iteration, stage)
        self.write("resume/progress.json", json.dumps(self.done))

    def write(self, name: str, text: str):
        """To a temporary name first: whoever reads sees the old file or the new one, never half of one."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".new").write_text(text, encoding="utf-8")
        os.replace(path.with_name(path.name + ".new"), path)

    def log(self, **record):
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def evaluations(self) -> list[dict]:
        return [line for line in self._lines() if line["kind"] == "eval"]

    def save_data(self, iteration: int, name: str, rows: list[tuple[dict, Draft | None]]):
        """iterK/NAME.jsonl, and the pictures of its rows."""
        folder, lines = f"iter{iteration}/pictures", []
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for number, (row, draft) in enumerate(rows, 1):
            row = row | (draft.record() if draft else {})
            if draft and draft.image:
                row["picture"] = f"{folder}/{name}_{number:04}.png"
                draft.image.save(self.folder / row["picture"])
            lines.append(json.dumps(row) + "\n")
        self.write(f"iter{iteration}/{name}.jsonl", "".join(lines))
