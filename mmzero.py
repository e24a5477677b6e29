"""MM-Zero: one base vision-language model becomes three roles that teach each other, with no data from outside.

    python mmzero.py                             the embedded tiny base, on a laptop
    python mmzero.py --model Qwen2-VL-2B         a real one (settings of the paper; --preset for smaller machines)
    python mmzero.py --model Qwen2-VL-2B --dry-run                 what that needs, and whether it fits here

One iteration is three phases (the paper's method section); in each, one role is trained with GRPO and the other two are
frozen:

    P   topic ──Proposer──> proposal ──Coder──> 4 codes ──render──> pictures ──Solver──> 5 + 5 answers ──> reward of P
    C   fresh proposals, those the Coder draws 1 to 3 times of 4 ──Coder──> code ──render──> picture ──Solver──> reward of C
    S   fresh proposals ──Coder──> pictures ──Solver──> 10 + 10 answers; the open questions are kept, the majority answer
        is their label ──Solver──> reward of S

Where the ideas are: rewards.py (what is good), grpo.py (how a reward becomes a gradient), generate.py (sampling),
render.py (code to picture), vlm.py (the network), eval.py and report.py (did it work). This file is the loop.

Deviations from the authors' released code, on purpose: phase C is judged by Solver i-1 (their script hands it the Coder's
weights); one program instead of services; the optimiser starts fresh in every phase, as theirs does.
"""

import ctypes
import hashlib
import itertools
import json
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

# How long a waiting thread spins before it sleeps; read once, when torch is first imported. OpenMP's own choice, for ever,
# makes a machine that does anything else ten times slower; no spinning at all costs a quarter or more on one that does not.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# glibc hands freed memory back to the kernel, and a training step on a CPU faults it in again for every activation: a fifth of
# its time. Blocks below 16 MB are kept instead: all that the embedded base needs, little of what a larger network does.
if hasattr(libc := ctypes.CDLL(None), "mallopt"):
    libc.mallopt(-3, 2**24)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never

from tqdm import tqdm

import rewards
from eval import charts, evaluate
from grpo import Rollout, group_advantages, make_optimizer, train_step
from prompts import TOPICS
from roles import ROLES, Draft, Roles
from support import parallel, resume
from support.run_folder import Run
from support.settings import PAPER, TINY, Settings, check, parse  # noqa: F401
from tools.audit import audit, blind_answers
from tools.plan import plan
from tools.report import report, table
from vlm import check_family, find_checkpoint


def subseed(*parts) -> int:
    """A seed of its own for everything that is sampled, so that a resumed run draws what the first one would have.

    >>> subseed(0, 1, "solver", 3) == subseed(0, 1, "solver", 3) != subseed(0, 1, "solver", 4)
    True
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


# ------------------------------------------------------------------------------------------- the three phases


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


class Phase:
    """One role in training, the other two frozen. `roles.weights[role]` is the reference, and changes at the end."""

    def __init__(self, roles: Roles, run: Run, iteration: int, role: str, steps: int):
        self.roles, self.run, self.s, self.iteration, self.role, self.steps = (
            roles,
            run,
            roles.s,
            iteration,
            role,
            steps,
        )
        self.reference = roles.weights[role]
        roles.policy.load_state(self.reference)
        self.optimizer = make_optimizer(
            roles.policy, lr=self.s.lr, weight_decay=self.s.weight_decay
        )
        self.title = f"it {iteration} {role}"
        self.begun, self.data = (
            0,
            [],
        )  # steps made by an earlier start; rows for iterK/proposer.jsonl
        if run.place and run.place[:2] == (iteration, role):
            self.begun, self.data = run.place[2], json.loads(run.state["data"])
            resume.restore(roles.policy, self.optimizer, run.state)
            run.state = {}  # large, and used

    def seed(self, *parts) -> int:
        return subseed(self.s.seed, self.iteration, self.role, *parts)

    def sample(
        self, prompts, n: int, step: int, temperature: float, top_p: float, max_new_tokens: int
    ):
        """Rollouts of the policy as it is now."""
        return self.roles.speak(
            self.roles.policy.weights(),
            prompts,
            n,
            seed=self.seed(step, "rollouts"),
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
        )

    def learn(
        self,
        prompts,
        replies,
        scores: list[list[float]],
        groups_per_update: int,
        temperature: float,
    ) -> dict:
        """Rewards [P, G] -> advantages -> optimiser updates. -> statistics"""
        advantages = group_advantages(scores)
        rollouts = [
            Rollout(
                prompt,
                reply.tokens,
                reply.full_logps,
                float(advantages[i, j]),
                reply.finished,
                group=i,
            )
            for i, (prompt, group) in enumerate(zip(prompts, replies))
            for j, reply in enumerate(group)
        ]
        self.roles.actor.load_state(self.reference, share=True)  # the actor now plays the reference
        return train_step(
            self.roles.policy,
            self.roles.actor,
            rollouts,
            self.optimizer,
            groups_per_update=groups_per_update,
            temperature=temperature,
            token_budget=self.s.token_budget,
            max_grad_norm=self.s.grad_norm,
            loss_settings=self.s,
        )

    def train(self, one_step):
        """Call `one_step(step) -> (reward parts, statistics)` for every step; a line on the terminal and on disk each."""
        bar = tqdm(
            range(self.begun + 1, self.steps + 1),
            desc=self.title,
            ncols=100,
            leave=False,
            disable=parallel.rank() > 0,
        )
        for step in bar:
            begun = time.perf_counter()
            parts, statistics = one_step(step)
            record = (
                parts
                | {k: v if v == v else None for k, v in statistics.items()}
                | {"seconds": time.perf_counter() - begun}
            )
            self.run.log(
                kind="step", iteration=self.iteration, phase=self.role, step=step, **record
            )
            bar.write(step_line(f"{self.title} {step}/{self.steps}", record))
            if step % self.s.save_steps == 0:
                self.run.save_state(
                    self.iteration,
                    self.role,
                    step,
                    resume.training_state(self.roles.policy, self.optimizer)
                    | {"data": json.dumps(self.data)},
                )
        self.roles.weights[self.role] = self.roles.policy.state()

    def make_data(self, count: int, make) -> list[tuple[dict, Draft]]:
        """What `make(places, seed)` makes of `count` fresh proposals, part by part -> (row, draft) of each, as for Run.save_data

        It may take hours. Each part is in the run folder once it is whole, and a run that was killed goes on with the first that
        is not. Borders and seeds depend on nothing but the part: it comes out the same, whichever start makes it.
        """
        made, size = [], self.s.part_proposals
        for first in tqdm(
            range(0, count, size),
            desc=f"{self.title} data",
            ncols=100,
            unit=" parts",
            leave=False,
            disable=parallel.rank() > 0,
        ):
            name = f"{self.role}.part{first}"
            if (rows := self.run.load_data(self.iteration, name)) is None:
                rows = make(
                    range(first, min(first + size, count)), lambda *what: self.seed(*what) + first
                )
                self.run.save_data(self.iteration, name, rows)
            made += rows
        return made

    def report_data(self, counts: dict, drafts: list[Draft], begun: float):
        """What became of the fresh proposals, on the terminal and on disk."""
        drawn = [d for d in drafts if d.easy_answers]
        self.run.log(
            kind="data",
            iteration=self.iteration,
            phase=self.role,
            seconds=time.perf_counter() - begun,
            **counts,
            hard_consistency=[rewards.vote(d.hard_answers)[1] for d in drawn],
            easy_consistency=[rewards.vote(d.easy_answers)[1] for d in drawn],
            agreement_with_easy_answer=mean(d.judged.solvability for d in drawn),
        )
        print(
            f"{self.title} data".ljust(20)
            + " > ".join(f"{number} {name}" for name, number in counts.items())
        )
        if not counts["kept"]:
            print(
                f"{self.title}: nothing passed the filter, so there is nothing to train on; the {self.role} stays as it is"
            )

    def batches(self, items: list, size: int):
        """Batches of `size` (or all there are) for the steps to come, going through the items in a new order each time."""
        rng, queue = random.Random(self.seed("order")), []
        for step in range(self.steps):
            batch = []
            while len(batch) < min(size, len(items)):
                queue = queue or rng.sample(items, len(items))
                batch.append(queue.pop())
            if step >= self.begun:
                yield batch


def step_line(title: str, r: dict) -> str:
    """The figures of one step that one wants to see at once, in 100 columns; all of them are in metrics.jsonl.

    >>> print(step_line("it 1 solver 3/20", dict(reward=0.5, accuracy=0.45, grad_norm=1.2, kl=0.01, seconds=2.5, updates=1)))
    it 1 solver 3/20    reward  0.50  accuracy 0.45  kl 0.010  norm 1.20  2.5 s
    """
    shown = (
        ("valid", "valid"),
        ("render", "rendered"),
        ("s", "solvability"),
        ("d", "difficulty"),
        ("accuracy", "accuracy"),
        ("format", "format"),
    )
    parts = [f"{name} {r[key]:.2f}" for name, key in shown if key in r]
    if r["updates"]:
        parts += [f"kl {r['kl']:.3f}", f"norm {r['grad_norm']:.2f}"]
    else:
        parts += [
            "no update: "
            + ("gradient not finite" if r.get("skipped") else "every group's rewards are equal")
        ]
    return (
        f"{title:<18}  reward {r['reward']:5.2f}  " + "  ".join(parts) + f"  {r['seconds']:.1f} s"
    )


def train_proposer(roles: Roles, run: Run, iteration: int):
    """Phase P: proposals are good if the frozen Coder can draw them and the frozen Solver finds them neither easy nor hopeless."""
    s = roles.s
    phase = Phase(roles, run, iteration, "proposer", s.proposer_steps)
    topics = itertools.islice(itertools.cycle(TOPICS), phase.begun * s.proposer_prompts, None)

    def one_step(step):
        asked = [next(topics) for _ in range(s.proposer_prompts)]
        prompts = [roles.proposer_prompt(topic) for topic in asked]
        replies = phase.sample(prompts, s.proposer_rollouts, step, 1.0, 0.99, s.proposal_tokens)
        proposals = [rewards.parse_proposal(reply.text) for group in replies for reply in group]
        valid = [p for p in proposals if p is not None]
        drafts = roles.draw(
            roles.weights["coder"], valid, s.codes, phase.seed(step, "codes"), top_k=40
        )
        roles.judge(
            roles.weights["solver"],
            list(itertools.chain(*drafts)),
            s.answers,
            phase.seed(step, "answers"),
        )
        ready = iter(drafts)
        judged = [[] if p is None else [d.judged for d in next(ready)] for p in proposals]
        rows = rewards.proposer_rewards(proposals, judged)
        scores = [
            [row["reward"] for row in rows[i : i + s.proposer_rollouts]]
            for i in range(0, len(rows), s.proposer_rollouts)
        ]
        statistics = phase.learn(prompts, replies, scores, s.proposer_update, temperature=1.0)
        flat = [(topic, reply.text) for topic, group in zip(asked, replies) for reply in group]
        phase.data += [
            ({"step": step, "topic": topic, "reply": text} | row, None)
            for (topic, text), row in zip(flat, rows)
        ]
        good = [row for row in rows if row["valid"]]
        parts = {"reward": mean(r["reward"] for r in rows), "valid": mean(r["valid"] for r in rows)}
        parts |= {
            k: mean(r[k] for r in good)
            for k in ("rendered", "solvability", "difficulty", "easy_hard", "type", "diversity")
        }
        return parts | {
            "type_entropy": rewards.type_entropy([r["content_type"] for r in good])
        }, statistics

    phase.train(one_step)
    run.save_data(iteration, "proposer", phase.data)


def train_coder(roles: Roles, run: Run, iteration: int):
    """Phase C: codes are good if they draw what the Solver can read. Only proposals it sometimes fails at are kept."""
    s, begun = roles.s, time.perf_counter()
    phase = Phase(roles, run, iteration, "coder", s.coder_steps)
    if (made := run.load_data(iteration, "coder")) is None:

        def make(places, seed):
            fresh = roles.propose(
                roles.weights["proposer"], places, seed("proposals"), progress=True
            )
            valid = [p for _, _, p in fresh if p is not None]
            drafts = roles.draw(
                roles.weights["coder"], valid, s.codes, seed("codes"), progress=True
            )
            rates = [mean(d.image is not None for d in group) for group in drafts]
            return [
                ({"render_rate": rate, "kept": rewards.keep_for_coder(rate)}, group[0])
                for group, rate in zip(drafts, rates)
            ]

        made = phase.make_data(s.coder_proposals, make)
        phase.report_data(
            {
                "asked": s.coder_proposals,
                "valid": len(made),
                "rendered": sum(row["render_rate"] > 0 for row, _ in made),
                "kept": sum(row["kept"] for row, _ in made),
            },
            [],
            begun,
        )
        run.save_data(iteration, "coder", made)
    kept = [(d.proposal, d.language) for row, d in made if row["kept"]]
    if not kept:
        return
    batches = phase.batches(kept, s.coder_prompts)

    def one_step(step):
        batch = next(batches)
        prompts = [roles.coder_prompt(proposal, language) for proposal, language in batch]
        replies = phase.sample(prompts, s.coder_rollouts, step, 0.7, 0.95, s.code_tokens)
        drafts = [
            [Draft(p, language, reply.text) for reply in group]
            for (p, language), group in zip(batch, replies)
        ]
        flat = list(itertools.chain(*drafts))
        roles.render(flat)
        roles.judge(roles.weights["solver"], flat, s.answers, phase.seed(step, "answers"))
        rows = [
            [rewards.coder_reward(d.code, d.judged, d.language, d.reply) for d in group]
            for group in drafts
        ]
        statistics = phase.learn(
            prompts,
            replies,
            [[r["reward"] for r in group] for group in rows],
            s.coder_update,
            temperature=0.7,
        )
        rows = list(itertools.chain(*rows))
        drawn = [r for r in rows if r["rendered"]]
        return {
            "reward": mean(r["reward"] for r in rows),
            "rendered": mean(r["rendered"] for r in rows),
            "solvability": mean(r["solvability"] for r in drawn),
            "difficulty": mean(r["difficulty"] for r in drawn),
        }, statistics

    phase.train(one_step)


def train_solver(roles: Roles, run: Run, iteration: int):
    """Phase S: test-time RL. The majority of ten answers is the label of an open question; fixed before training starts."""
    s, begun = roles.s, time.perf_counter()
    phase = Phase(roles, run, iteration, "solver", s.solver_steps)
    if (made := run.load_data(iteration, "solver")) is None:

        def make(places, seed):
            fresh = roles.propose(
                roles.weights["proposer"], places, seed("proposals"), progress=True
            )
            valid = [p for _, _, p in fresh if p is not None]
            drafts = [
                group[0]
                for group in roles.draw(
                    roles.weights["coder"], valid, 1, seed("codes"), progress=True
                )
            ]
            roles.judge(roles.weights["solver"], drafts, s.labels, seed("labels"), progress=True)
            open_ = [
                d
                for d in drafts
                if rewards.keep_for_solver(
                    rewards.vote(d.easy_answers)[1], rewards.vote(d.hard_answers)[1]
                )
            ]
            roles.actor.load_state(
                roles.weights["solver"], share=True
            )  # how good are their labels? Also asked without the pictures
            blind = blind_answers(
                roles.actor,
                [d.record() for d in open_],
                seed=seed("blind"),
                max_new_tokens=s.answer_tokens,
            )
            blind = dict(zip(open_, blind))
            return [({"kept": d in blind, "blind": blind.get(d)}, d) for d in drafts]

        every = phase.make_data(s.solver_proposals, make)
        made = [
            ({"label": rewards.vote(d.hard_answers)[0], "blind": row["blind"]}, d)
            for row, d in every
            if row["kept"]
        ]
        drawn = [d for _, d in every if d.image is not None]
        phase.report_data(
            dict(
                asked=s.solver_proposals,
                valid=len(every),
                rendered=len(drawn),
                evaluated=len(drawn),
                kept=len(made),
            ),
            drawn,
            begun,
        )
        if made:
            run.log(
                kind="audit",
                iteration=iteration,
                phase="solver",
                **audit([row | d.record() for row, d in made], [row["blind"] for row, _ in made]),
            )
        run.save_data(iteration, "solver", made)
    kept = [(d, row["label"]) for row, d in made]
    if not kept:
        return
    batches = phase.batches(kept, s.solver_prompts)

    def one_step(step):
        batch = next(batches)
        prompts = [roles.solver_prompt(d.image, d.proposal.hard_question) for d, _ in batch]
        replies = phase.sample(prompts, s.solver_rollouts, step, 1.0, 0.99, s.answer_tokens)
        rows = [
            [rewards.solver_reward(reply.text, label) for reply in group]
            for (_, label), group in zip(batch, replies)
        ]
        statistics = phase.learn(
            prompts,
            replies,
            [[r["reward"] for r in group] for group in rows],
            s.solver_update,
            temperature=1.0,
        )
        rows = list(itertools.chain(*rows))
        return {k: mean(r[k] for r in rows) for k in ("reward", "accuracy", "format")}, statistics

    phase.train(one_step)


# ------------------------------------------------------------------------------------------------ measuring


def measure(roles: Roles, run: Run, iteration: int, test: dict):
    """The row of this iteration in the table: the Solver on held-out questions, and a probe of the three roles together."""
    s, begun = roles.s, time.perf_counter()
    roles.actor.load_state(roles.weights["solver"], share=True)
    record = {}
    if test:
        record = evaluate(
            roles.actor,
            test["hard"],
            n=8,
            seed=s.seed,
            max_new_tokens=s.answer_tokens,
            progress=not parallel.rank(),
        )
        record |= {
            "easy": evaluate(
                roles.actor, test["easy"], n=2, seed=s.seed, max_new_tokens=s.answer_tokens
            )["sampled"]
        }
        del record["per_question"]
    if s.probe:
        fresh = roles.propose(
            roles.weights["proposer"],
            range(s.probe),
            subseed(s.seed, iteration, "probe", "proposals"),
        )
        valid = [p for _, _, p in fresh if p is not None]
        drafts = [
            g[0]
            for g in roles.draw(
                roles.weights["coder"], valid, 1, subseed(s.seed, iteration, "probe", "codes")
            )
        ]
        roles.judge(
            roles.weights["solver"],
            drafts,
            s.answers,
            subseed(s.seed, iteration, "probe", "answers"),
        )
        ready = iter(drafts)
        run.save_data(
            iteration,
            "probe",
            [
                ({"topic": topic, "reply": reply}, next(ready) if p else None)
                for topic, reply, p in fresh
            ],
        )
        types = [rewards.type_of(p) for p in valid]
        drawn = [d for d in drafts if d.image is not None]
        record |= {
            "valid": len(valid) / len(fresh),
            "render": len(drawn) / max(len(valid), 1),
            "solvability": mean(d.judged.solvability for d in drawn),
            "difficulty": mean(rewards.difficulty(d.judged.consistency) for d in drawn),
            "type_entropy": rewards.type_entropy(types),
            "types": {t: types.count(t) for t in sorted(set(types))},
            "code_tokens": mean(d.tokens for d in drafts),
            "hard_consistency": [d.judged.consistency for d in drawn],
            "easy_hard_gap": mean(
                rewards.vote(d.easy_answers)[1] - rewards.vote(d.hard_answers)[1] for d in drawn
            ),
        }
    run.log(kind="eval", iteration=iteration, **record | {"seconds": time.perf_counter() - begun})


# ------------------------------------------------------------------------------------------------- the loop


def self_evolve(settings: Settings) -> Run:
    """The whole of MM-Zero: K iterations of P, C, S. Continues where an earlier call with the same settings stopped."""
    check(settings)
    if not settings.out:
        settings = replace(
            settings,
            out=f"runs/{Path(settings.model).name}-{settings.language}-seed{settings.seed}",
        )
    begun, where = time.perf_counter(), {}  # where: role -> its newest checkpoint
    check_family(find_checkpoint(settings.model))  # before anything is written
    run = Run(settings)
    for role in ROLES:
        trained = [i for i in range(1, settings.iterations + 1) if run.is_done(i, role)]
        where[role] = str(run.folder / f"iter{trained[-1]}" / role) if trained else settings.model
    if run.done != (0, ""):
        print(
            f"going on with {run.folder}, after iteration {run.done[0]}, {run.done[1]}"
            + f", step {run.place}" * bool(run.place)
        )
    roles = Roles(settings, where)
    print(
        f"{settings.model}: {sum(p.numel() for p in roles.policy.model.parameters()) / 1e6:.1f} M parameters on "
        f"{roles.actor.device}, language {settings.language}; run folder {run.folder}"
    )
    phases = dict(zip(ROLES, (train_proposer, train_coder, train_solver)))
    with roles.renderer:
        test = (
            {
                kind: charts(settings.questions, kind=kind, of=settings.split)[0]
                for kind in ("hard", "easy")
            }
            if settings.questions
            else {}
        )
        for iteration in range(
            settings.iterations + 1
        ):  # iteration 0 is the base: measured, not trained
            for role in ROLES if iteration else ():
                if run.is_done(iteration, role):
                    continue
                phases[role](roles, run, iteration)
                roles.policy.load_state(roles.weights[role])
                roles.policy.save(run.folder / f"iter{iteration}" / role)
                run.finish(iteration, role)
            if not run.is_done(iteration, "eval"):
                measure(roles, run, iteration, test)
                run.finish(iteration, "eval")
                if not parallel.rank():
                    print(table(run.evaluations()[-1:]))
                    report(run.folder)
    if not parallel.rank():
        print(
            f"\n{table(run.evaluations())}\n\nreport: {report(run.folder)}   ({(time.perf_counter() - begun) / 60:.1f} minutes)"
        )
    return run


def main(arguments=None):
    settings, gpus = parse(arguments)
    parallel.start()
    try:
        if gpus is not None:  # --dry-run
            sys.exit((reason := plan(settings, gpus)) and f"mmzero.py: {reason}")
        self_evolve(settings)
        parallel.stop()
    except (ValueError, OSError, RuntimeError) as error:
        parallel.fail(f"mmzero.py: {error}")
    except KeyboardInterrupt:
        sys.exit("mmzero.py: stopped; the same command goes on from the last state that was saved")


if __name__ == "__main__":
    main()
