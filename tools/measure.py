"""This iteration's line in the table of a run: held-out accuracy, and the three roles together.

mmzero.py calls it between iterations. Nothing that is trained depends on it: a run without it
(`--questions 0 --probe 0`) learns the same. Every figure: docs/metrics.md.
"""

import time

import rewards
from eval import charts, evaluate
from support.run_folder import ROLES, mean, subseed


def held_out(settings) -> dict[str, tuple]:
    """What a run is measured on: "hard" and "easy" questions, each with their content types; {}
    where none are asked."""
    if not settings.questions:
        return {}
    kinds = ("hard", "easy")
    return {kind: charts(settings.questions, kind=kind, of=settings.split) for kind in kinds}


def measure(roles, run, iteration: int, questions: dict):
    """The Solver on held-out questions, and the probe: a line of metrics.jsonl.

    roles: `mmzero.Roles`, as they are after this iteration. questions: from `held_out`.
    """
    settings, begun, figures = roles.settings, time.perf_counter(), {}
    what = f"{2 * settings.questions} questions and {settings.probe} proposals"
    print(f"it {iteration}: measuring on {what}")
    if questions:
        roles.actor.load_state(roles.weights["solver"])
        limits = {"seed": settings.seed, "max_new_tokens": settings.answer_tokens}
        limits["progress"] = True
        (hard, types), (easy, _) = questions["hard"], questions["easy"]
        figures = evaluate(roles.actor, hard, n=8, **limits)
        figures["easy"] = evaluate(roles.actor, easy, n=2, **limits)["sampled"]
        figures["types_sampled"] = by_type(types, figures["per_question"]["sampled"])
    if settings.probe:
        figures |= probe(roles, run, iteration)
    figures["seconds"] = time.perf_counter() - begun
    print(f"it {iteration}: measured in {figures['seconds']:.0f} s")
    run.log(kind="eval", iteration=iteration, **figures)


def by_type(types: list[str], values) -> dict[str, float]:
    """Content type -> mean of its values.

    >>> by_type(["map", "table", "map"], [1, 0, 0])
    {'map': 0.5, 'table': 0.0}
    """
    found = {name: [] for name in sorted(set(types))}
    for name, value in zip(types, values):
        found[name].append(value)
    return {name: mean(own) for name, own in found.items()}


def probe(roles, run, iteration: int) -> dict:
    """The three roles make and answer some proposals together. -> figures"""
    settings, rows, drafts = roles.settings, [], []
    seed = subseed(settings.seed, iteration, "probe")
    imagined = roles.imagine(range(settings.probe), 1, settings.answers, seed)
    for topic, reply, own in imagined:
        row = {"topic": topic, "reply": reply}
        rows.append((row | own[0].row(), own[0].image) if own else (row, None))
        drafts += own
    run.save_rows(iteration, "probe", rows)
    texts = [text for draft in drafts for text in draft.judgements]
    answers = [one for draft in drafts for one in draft.easy_answers + draft.hard_answers]
    replied = {
        "proposer": ([row["reply"] for row, _ in rows], [not own for *_, own in imagined]),
        "coder": ([draft.reply for draft in drafts], [draft.code is None for draft in drafts]),
        "solver": (texts, [answer is None for answer in answers]),
    }
    drawn = [row for row, image in rows if image is not None]
    types = [rewards.type_of(draft.proposal) for draft in drafts]
    return {
        "valid": len(drafts) / len(rows),
        "render": len(drawn) / max(len(drafts), 1),
        "solvability": mean(row["solvability"] for row in drawn),
        "difficulty": mean(rewards.difficulty(row["consistency"]) for row in drawn),
        "easy_hard_gap": mean(row["easy_consistency"] - row["consistency"] for row in drawn),
        "hard_consistency": [row["consistency"] for row in drawn],
        "code_tokens": mean(draft.tokens for draft in drafts),
        "type_entropy": rewards.type_entropy(types),
        "types_proposed": {
            name: mean(one == name for one in types) for name in rewards.CONTENT_TYPES
        },
        "types_drawn": by_type(types, [draft.image is not None for draft in drafts]),
        "unread_by_role": {role: run.unread(iteration, role, *replied[role]) for role in ROLES},
    }
