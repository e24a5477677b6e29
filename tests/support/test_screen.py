"""What a run says on the terminal (support/screen.py); tests/test_mmzero.py has a run's lines."""

import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from support import screen
from support.run_folder import Phase
from support.screen import FIGURES, step_line


@pytest.mark.parametrize("seconds", [2.5, 99.9, 1234.5])
@pytest.mark.parametrize("role", FIGURES)
@pytest.mark.parametrize("end", [{"updates": 4}, {"updates": 0}, {"updates": 0, "skipped": 4}])
def test_the_line_of_a_step_fits_100_columns(role, seconds, end):
    names = FIGURES[role].replace("|", " ").split()
    record = dict.fromkeys(names, 0.5) | {"unread": 1.0, "truncated": 0.99, "kl": 0.1234}
    record |= {"reward": -0.99, "tokens_per_second": 12345.6, "seconds": seconds}
    record |= {"sampling_seconds": 0.5 * seconds, "drawing_seconds": 0.1 * seconds}
    line = step_line(f"it 10 {role} 20/20", record | end | {"training_seconds": 0.4 * seconds})
    assert len(line) <= 100 and line.endswith("s 50+10+40 12.3k/s")
    assert ("kl=" in line) == (end["updates"] > 0)


def test_the_time_of_a_step_by_what_it_is_spent_on():
    replies = [[SimpleNamespace(tokens=[1] * 30), SimpleNamespace(tokens=[1] * 20)]]

    @screen.timed("sampling")
    def speak():
        time.sleep(0.05)
        return replies

    @screen.timed("training")
    def learn(x, *, y):
        return x + y

    screen.SPENT.clear()
    assert speak() is replies and learn(1, y=2) == 3
    found = screen.spent()
    assert found["sampling_seconds"] >= 0.05 > found["training_seconds"] >= 0
    assert found["tokens_per_second"] == 50 / found["sampling_seconds"]
    screen.SPENT.clear()
    assert set(screen.spent().values()) == {0}


def test_without_a_terminal_a_bar_is_a_line_now_and_then(monkeypatch):
    file, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", file)
    bar = screen.bar(total=1000, unit=" replies")
    bar._time = lambda: now[0]
    bar.start_t = bar.last_print_t = 0.0
    for second in range(200):
        now[0] = float(second)
        bar.update(2)
    bar.close()
    lines = file.getvalue().splitlines()
    assert 2 <= len(lines) <= 4 and "\r" not in file.getvalue()
    assert all("replies" in line and len(line) <= 100 for line in lines)


def test_a_reply_of_the_first_step_and_a_cold_start_are_shown_once():
    said, files = [], {}
    run = SimpleNamespace(write=files.__setitem__, folder=Path("runs/x"))
    bar = SimpleNamespace(write=said.append)
    facts = dict(run=run, bar=bar, iteration=1, role="coder", title="it 1 coder")
    phase = SimpleNamespace(**facts, durations=[], was_cold=False, said_cold=False)
    few, enough = {"rendered": 0.2, "zero_variance": 0.1}, {"rendered": 0.25, "zero_variance": 0.5}
    for number, record in enumerate((few, enough, few, few, enough, few, few)):
        phase.durations.append(1.0)  # as `look_at_the_clock` does
        Phase.show(phase, f"reply {number}", record)
        if number == 2:
            assert said == ["    | reply 0"] and files == {"iter1/sample-coder.txt": "reply 0"}
    # In the second of two steps in a row, and never again.
    assert said[1:] == [
        "it 1 coder learns little: 20% of the codes draw a picture, for two steps. A reply is in",
        "runs/x/iter1/sample-coder.txt. What may help: a larger base, longer replies, "
        "--language python, or a prompts.json of your own",
    ]
    assert files == {"iter1/sample-coder.txt": "reply 3"}
    assert screen.cold({"zero_variance": 0.6}) == "in 60% of the groups all rewards are equal"
