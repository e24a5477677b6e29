"""Which of the five exercises of exercises.md are done in this copy of the code?

    python docs/exercises.py          all of them
    python docs/exercises.py 2 4      some
    python docs/exercises.py 5 --folder runs/my-topics

It calls the functions that an exercise changes. A line for each exercise; exit code 0 if all of
those that were asked for are done.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpo
import prompts
import rewards
from rewards import Judged, Proposal
from support.checkpoint import check_family, read_json


def need(condition, reason: str):
    """An exercise is not done if this is false."""
    if not condition:
        raise AssertionError(reason)


def no_cap(folder):
    """Remove the cap"""

    def gain(*pictures):
        return rewards.picture_terms(list(pictures))["gain"]

    need(math.isclose(gain(Judged(0.25, 0.5)), 0.75), "s = 0.25 and d = 0.5 should earn 0.75")
    need(math.isclose(gain(Judged(0.5, 1.0), None), 0.25), "a code that fails still counts in N")
    earned = gain(Judged(1.0, 0.5))
    need(math.isclose(earned, 1.5), f"s = 1 and d = 0.5 earn {earned:g}, without a cap 1.5")


def no_deviation(folder):
    """Break the advantage"""
    found = grpo.group_advantages([[1, 0, 1, 0], [2, 0, 0, 0], [0.9] * 4, [math.nan, 0, 0, 0]])
    right = [[0.5, -0.5, 0.5, -0.5], [1.5, -0.5, -0.5, -0.5], [0] * 4, [0] * 4]
    for group, expected in zip(found.tolist(), right):
        close = all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(group, expected))
        shown = [round(a, 3) for a in group]
        need(close, f"the advantages of a group are {shown}, reward minus mean would be {expected}")


def new_type(folder):
    """A new content type"""
    need("clock" in rewards.CONTENT_TYPES, "CONTENT_TYPES has no clock")
    named = Proposal("Clock", "Two hands.", "", "", "", "")
    need(rewards.type_of(named) == "clock", "a block that says clock is not read as one")
    guessed = Proposal("", "The face of an analogue clock at ten past two.", "", "", "", "")
    need(rewards.type_of(guessed) == "clock", "a caption with a clock is not guessed to be one")
    for caption, name in (("A Gantt chart", "timeline"), ("A map of Peru", "map"), ("?", "other")):
        same = rewards.type_of(Proposal("", caption, "", "", "", "")) == name
        need(same, f"{caption!r} should still be {name}")
    need("clock" in prompts.PROMPTS["proposer"], "the Proposer's prompt does not name it")


def new_reward(folder):
    """A new reward"""
    for length, taken in ((20, 0), (250, 0), (300, 0.05), (450, 0.2), (9000, 0.3)):
        code = "<svg>" + " " * (length - 11) + "</svg>"
        terms = rewards.coder_reward(code, Judged(0.5, 0.5))
        need("length" in terms, "the terms have no key 'length'")
        right = math.isclose(terms["reward"], 2 - taken) and math.isclose(terms["length"], taken)
        need(right, f"{length} characters should cost {taken}: they earn {terms['reward']:g} of 2")
    failed = rewards.coder_reward("<svg>" + " " * 5000, None)
    need(math.isclose(failed["reward"], -0.1), "a code without a picture should earn what it did")


def own_topics(folder):
    """Your own topics"""
    need((folder / "prompts.json").exists(), f"{folder} has no prompts.json")
    topics = prompts.topics_of(read_json(folder, "prompts.json"))
    need(len(set(topics)) >= 3, f"{len(set(topics))} different topics, three or more are asked for")
    need(not set(topics) & set(prompts.TOPICS), "some of the topics are those of prompts.py")
    check_family(folder)


EXERCISES = (no_cap, no_deviation, new_type, new_reward, own_topics)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = range(1, len(EXERCISES) + 1)
    parser.add_argument("numbers", nargs="*", type=int, metavar="1..5", help="[all]")
    parser.add_argument("--folder", type=Path, default=Path("runs/my-topics"), help="of exercise 5")
    args = parser.parse_args()
    if not set(args.numbers) <= set(numbers):
        parser.error(f"there are exercises 1 to {len(EXERCISES)}")
    undone = 0
    for number in args.numbers or numbers:
        exercise = EXERCISES[number - 1]
        try:
            exercise(args.folder)
            print(f"{number} {exercise.__doc__}: done")
        except (AssertionError, KeyError, ValueError, OSError) as problem:
            print(f"{number} {exercise.__doc__}: not yet: {problem}")
            undone += 1
    sys.exit(undone > 0)


if __name__ == "__main__":
    main()
