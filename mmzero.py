"""MM-Zero: one base vision-language model becomes three roles that teach each other, without data.

    python mmzero.py                                   the embedded tiny base, on a laptop
    python mmzero.py --model Qwen2-VL-2B               a real one, with the settings of the paper
    python mmzero.py --explain                         one step of each phase, as a page to read

The Proposer imagines a picture and asks an easy and a hard question about it (a proposal). The
Coder writes code that draws the picture. The Solver looks at the picture and answers. An iteration
has three phases. In each of them one role is trained with GRPO, and the other two are frozen:

    P   topic -> proposal -> N codes -> pictures -> K + K answers -> reward of the proposal
    C   proposal -> code -> picture -> K + K answers -> reward of the code
        (fresh proposals, of which the Coder can draw some codes and not all)
    S   picture + hard question -> answer -> reward of the answer
        (fresh pictures with an open question; its label is the majority of ten answers)

This file is the loop. rewards.py says what is good, grpo.py how a reward becomes a gradient,
generate.py samples, render.py draws, vlm.py is the network, eval.py and tools/measure.py measure.
Unlike the authors' script, which takes the Coder's weights for it, phase C is judged by Solver i-1.
Letters and words of all files:

    P, G         prompts of a step, replies to each (P, C and S are also the three phases)
    N, K         codes for a proposal, answers to a question
    s, c, d      solvability, consistency, difficulty; E, T, V: what a proposal pays (rewards.py)
    n, L         reply tokens of a micro-batch, all tokens of its packed sequence
    D, V, H, B   hidden size, vocabulary, size of an attention head (lm_head is none), batch
    S, C         slots and columns of the KV cache; a slot has room for one reply
    rollout      a reply (what was sampled after a prompt) with its advantage
    group        a prompt with all its rollouts; bundle: with some of them, in one sequence
    micro-batch  bundles, one packed sequence; mini-batch: whole groups, one update
    chunk        some tokens of the loss: those whose logits are in memory at a time
    terms, share the summands of a reward; a number from 0 to 1
    row, part    a record of a table or file; a piece of a phase's data that is saved by itself
    kept         what has passed a filter
"""

# Before anything imports torch.
from support import machine  # isort: skip

import itertools
import os
import sys
import time
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

import rewards
from generate import generate
from grpo import Rollout, flat, group_advantages, make_optimizer, train_step
from prompts import fill, placeholders, topics_of
from render import Renderer
from support import parallel
from support.choices import chosen
from support.figures import table
from support.flash import release
from support.networks import check_model, load_networks, read_weights
from support.run_folder import ROLES, Phase, Run, mean, subseed
from support.screen import timed
from support.settings import FROZEN, LANGUAGES, LENGTHS, TRAINED, Settings, parse, rules_of
from vlm import VLM

# -------------------------------------------------------------------------------- the three roles


@dataclass(eq=False)
class Draft:
    """One code for one proposal, and what became of it."""

    proposal: rewards.Proposal
    language: str
    reply: str = ""
    tokens: int = 0  # length of the reply
    code: str | None = None
    image: Image.Image | None = None  # if the code drew one
    error: str | None = None  # why it did not
    judgements: list = field(default_factory=list)  # the Solver's replies: to easy, then to hard
    easy_answers: list = field(default_factory=list)  # None where nothing could be read
    hard_answers: list = field(default_factory=list)

    @property
    def judged(self) -> rewards.Judged | None:
        """s and c of the picture; None without one."""
        if self.image is None:
            return None
        s = rewards.solvability(self.easy_answers, self.proposal.easy_answer)
        return rewards.Judged(s, consistency=rewards.vote(self.hard_answers)[1])

    def row(self) -> dict:
        """For a JSONL file."""
        row = vars(self.proposal) | {"content_type": rewards.type_of(self.proposal)}
        for name in ("language", "code", "error", "easy_answers", "hard_answers"):
            row[name] = getattr(self, name)
        row["label"], row["consistency"] = rewards.vote(self.hard_answers)
        row["easy_consistency"] = rewards.vote(self.easy_answers)[1]
        row["solvability"] = self.judged.solvability if self.judged else None
        return row


class Roles:
    """One network that samples (`actor`), one that is trained (`policy`), three sets of weights.

    A role is a set of weights in host memory, which the actor takes on when the role speaks. The
    policy holds float32 masters, the actor weights of the compute type (bf16 on a GPU). With LoRA
    the two share one base, and a role is its adapters. Under torchrun each rank has an actor.
    """

    def __init__(self, settings: Settings, newest: dict):
        """newest: of each role, the folder to go on from; None where it is still untrained."""
        self.settings = settings
        self.actor, self.policy = load_networks(VLM.load, settings)
        self.prompts, self.topics = self.actor.prompts, topics_of(self.actor.prompts)
        self.shown = placeholders(self.prompts)
        self.rules = rules_of(settings)
        self.weights = read_weights(VLM.load, settings, self.policy, newest)
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = settings.workers or max(machine.cores() // ranks_here, 1)
        self.renderer = Renderer(workers, settings.render_seconds, settings.unsafe_python)
        if settings.language != "svg" and self.renderer.refusal:
            raise RuntimeError(self.renderer.refusal)

    def proposer_prompt(self, topic: str):
        return self.actor.encode(self.prompts["proposer"].replace("{topic}", topic))

    def coder_prompt(self, proposal: rewards.Proposal, language: str):
        template = self.prompts["coder"][language]
        return self.actor.encode(fill(template, **vars(proposal)))

    def solver_prompt(self, image, question: str):
        return self.actor.encode(self.prompts["solver"].replace("{question}", question), [image])

    @timed("sampling")
    def speak(self, role: str, prompts: list, n: int, seed: int, trained=False, **more) -> list:
        """n completions of each prompt, [prompts][n]: by the frozen role, or by the one in training
        as the policy has it now. Each rank samples its slice of the prompts, all get all."""
        self.actor.load_state(self.policy.weights() if trained else self.weights[role])
        sampling = (TRAINED if trained else FROZEN)[role] | more
        sampling |= {"max_new_tokens": getattr(self.settings, LENGTHS[role]), "seed": seed}
        sampling |= {"slots": self.settings.slots or None, "progress": True}
        own, numbers = map(parallel.rank_slice, (prompts, range(len(prompts))))
        return parallel.gather(generate(self.actor, own, n, numbers=numbers, **sampling))

    def imagine(self, places: range, codes: int, answers: int, seed: int) -> list[tuple]:
        """Fresh data from the frozen roles, for these places of a list of topics that take turns.
        -> (topic, reply, drafts) each: no drafts without a valid proposal. answers 0: no judge."""
        topics = [self.topics[place % len(self.topics)] for place in places]
        prompts = {topic: self.proposer_prompt(topic) for topic in self.topics}
        replies = flat(self.speak("proposer", [prompts[topic] for topic in topics], 1, seed))
        proposals = [rewards.parse_proposal(reply.text, self.shown) for reply in replies]
        drafts = self.draw(proposals, codes, subseed(seed, "codes"))
        if answers:
            self.judge(flat(drafts), answers, subseed(seed, "answers"))
        return list(zip(topics, [reply.text for reply in replies], drafts))

    def draw(self, proposals: list, n: int, seed: int, **sampling) -> list[list[Draft]]:
        """The frozen Coder's n codes for each proposal, rendered. None is drawn for None."""
        valid = [proposal for proposal in proposals if proposal is not None]
        asked = list(zip(valid, itertools.cycle(LANGUAGES[self.settings.language])))
        prompts = [self.coder_prompt(proposal, language) for proposal, language in asked]
        drawn = iter(self.render(asked, self.speak("coder", prompts, n, seed, **sampling)))
        return [[] if proposal is None else next(drawn) for proposal in proposals]

    @timed("drawing")
    def render(self, asked: list, replies: list) -> list[list[Draft]]:
        """A Coder's replies to (proposal, language) each -> drafts, some with a picture."""
        drafts = []
        for (proposal, language), group in zip(asked, replies):
            drafts.append([Draft(proposal, language, r.text, len(r.tokens)) for r in group])
        for draft in flat(drafts):
            draft.code = rewards.extract_code(draft.reply, draft.language)
        mine = [(draft.code, draft.language) for draft in parallel.rank_slice(flat(drafts))]
        renderings = self.renderer.render(mine, progress=True)
        for draft, rendering in zip(flat(drafts), parallel.gather(renderings)):
            draft.image, draft.error = rendering.image, rendering.error
        return drafts

    def judge(self, drafts: list[Draft], n: int, seed: int):
        """The frozen Solver answers both questions about each picture n times."""
        drawn = [draft for draft in drafts if draft.image is not None]
        asked = []
        for draft in drawn:
            asked += [(draft, draft.proposal.easy_question), (draft, draft.proposal.hard_question)]
        # A rank cuts its own slice's pictures. Two questions share one, and its vision tower.
        own = dict.fromkeys(draft for draft, _ in parallel.rank_slice(asked))
        cut = {draft: self.actor.cut(draft.image) for draft in own}
        prompts = [self.solver_prompt(cut[d], q) if d in cut else None for d, q in asked]
        replies = self.speak("solver", prompts, n, seed)
        for draft, easy, hard in zip(drawn, replies[0::2], replies[1::2]):
            draft.judgements = [reply.text for reply in easy + hard]
            answers = [rewards.extract_answer(text, self.shown) for text in draft.judgements]
            draft.easy_answers = chosen(answers[:n], draft.proposal.easy_question)
            draft.hard_answers = chosen(answers[n:], draft.proposal.hard_question)

    def adopt(self, role: str):
        """The role is what the policy has learnt. Its old weights' memory is used again, if own."""
        old, others = self.weights[role], [self.weights[other] for other in ROLES if other != role]
        self.weights[role] = self.policy.state(None if any(own is old for own in others) else old)

    @timed("training")
    def learn(self, phase: Phase, prompts: list, replies: list, terms: list) -> dict:
        """One GRPO step on replies and the terms of their rewards, both [P][G]. -> statistics"""
        settings, role, rollouts = self.settings, phase.role, []
        advantages = group_advantages([[one["reward"] for one in group] for group in terms])
        for i, (prompt, group) in enumerate(zip(prompts, replies)):
            for reply, a in zip(group, advantages[i].tolist()):
                logps, finished = reply.full_logps, reply.finished
                rollouts.append(Rollout(prompt, reply.tokens, logps, a, finished, group=i))
        # The actor has just sampled as the policy. Now it plays the reference: the role as the
        # phase found it.
        self.actor.load_state(self.weights[role])
        release()
        return train_step(
            self.policy,
            self.actor,
            rollouts,
            phase.optimizer,
            groups_per_update=getattr(settings, f"{role}_update"),
            temperature=TRAINED[role]["temperature"],
            token_budget=settings.token_budget,
            max_grad_norm=settings.grad_norm,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            clip_dual=settings.clip_dual,
            kl_coef=settings.kl,
        )


# --------------------------------------------------------------------- phase P: train the Proposer


def train_proposer(roles: Roles, phase: Phase):
    """Proposals are good if the frozen Coder can draw them, and if the frozen Solver can read the
    easy answer and is of two minds about the hard one."""
    settings = roles.settings
    count, size = settings.proposer_prompts, settings.proposer_rollouts
    for step in phase.steps(settings.proposer_steps):
        # Sample: G proposals of the policy on each of some topics, which take turns.
        places = range((step - 1) * count, step * count)
        topics = [roles.topics[place % len(roles.topics)] for place in places]
        prompts = [roles.proposer_prompt(topic) for topic in topics]
        replies = roles.speak("proposer", prompts, size, phase.seed(step), trained=True)
        proposals = [rewards.parse_proposal(reply.text, roles.shown) for reply in flat(replies)]

        # Reward: N codes for each valid proposal, K answers to each question about each picture.
        drafts = roles.draw(proposals, settings.codes, phase.seed(step, "codes"), top_k=40)
        roles.judge(flat(drafts), settings.answers, phase.seed(step, "answers"))
        judged = [[draft.judged for draft in own] for own in drafts]
        terms = rewards.proposer_rewards(proposals, judged, roles.rules)

        # Learn.
        groups = [terms[i : i + size] for i in range(0, len(terms), size)]
        statistics = roles.learn(phase, prompts, replies, groups)
        types = [one["content_type"] for one in terms if one["valid"]]
        phase.add_rows(step, topics, replies, groups)
        unread, entropy = [p is None for p in proposals], rewards.type_entropy(types)
        phase.end_step(step, flat(replies), unread, terms, statistics, type_entropy=entropy)
    phase.save_data([(row, None) for row in phase.rows])


def fresh_data(roles: Roles, phase: Phase, count: int, codes: int, answers: int) -> list[tuple]:
    """What the frozen roles imagine. Of each valid one of `count` fresh proposals: a row about its
    first code, and the picture. Made in parts, each of which is saved once it is whole."""
    rows = []
    for places, part in phase.parts(count):
        if part is None:
            part, seed = [], phase.seed("data", places.start)
            for *_, drafts in roles.imagine(places, codes, answers, seed):
                if drafts:
                    rate = mean(draft.image is not None for draft in drafts)
                    part.append(({"render_rate": rate} | drafts[0].row(), drafts[0].image))
            phase.save_part(places, part)
        rows += part
    return rows


# ------------------------------------------------------------------------ phase C: train the Coder


def train_coder(roles: Roles, phase: Phase):
    """Codes are good if they draw what the frozen Solver can read the easy answer off, and is of
    two minds about the hard one."""
    settings, data = roles.settings, coder_data(roles, phase)
    for step, batch in phase.batches(data, settings.coder_prompts, settings.coder_steps):
        # Sample: G codes of the policy for each proposal.
        prompts = [roles.coder_prompt(proposal, language) for proposal, language in batch]
        count = settings.coder_rollouts
        replies = roles.speak("coder", prompts, count, phase.seed(step), trained=True)

        # Reward: is there a picture, and what does the frozen Solver make of it?
        drafts = roles.render(batch, replies)
        roles.judge(flat(drafts), settings.answers, phase.seed(step, "answers"))
        pay = partial(rewards.coder_reward, rules=roles.rules)
        terms = [[pay(d.code, d.judged, d.language) for d in group] for group in drafts]

        # Learn.
        statistics = roles.learn(phase, prompts, replies, terms)
        unread = [draft.code is None for draft in flat(drafts)]
        phase.end_step(step, flat(replies), unread, flat(terms), statistics)


def coder_data(roles: Roles, phase: Phase) -> list[tuple[rewards.Proposal, str]]:
    """Fresh proposals that the frozen Coder can draw sometimes, and the language for each."""
    rows, asked = phase.load_data(), roles.settings.coder_proposals
    if rows is None:
        rows = fresh_data(roles, phase, asked, roles.settings.codes, answers=0)
        for row, _ in rows:
            row["kept"] = rewards.keep_for_coder(row["render_rate"], roles.rules)
        phase.log_data(rows, asked, kept=sum(row["kept"] for row, _ in rows))
        phase.save_data(rows)
    kept = [row for row, _ in rows if row["kept"]]
    proposals = [rewards.Proposal(*(row[name] for name in rewards.BLOCKS)) for row in kept]
    return [(proposal, row["language"]) for proposal, row in zip(proposals, kept)]


# ----------------------------------------------------------------------- phase S: train the Solver


def train_solver(roles: Roles, phase: Phase):
    """Answers are good if they equal the label and come in the form that was asked for."""
    settings, data = roles.settings, solver_data(roles, phase)
    for step, batch in phase.batches(data, settings.solver_prompts, settings.solver_steps):
        # Sample: G answers of the policy to each hard question.
        prompts = [roles.solver_prompt(image, row["hard_question"]) for row, image in batch]
        count = settings.solver_rollouts
        replies = roles.speak("solver", prompts, count, phase.seed(step), trained=True)

        # Reward: compare with the label.
        pay = partial(rewards.solver_reward, shown=roles.shown)
        terms = []
        for (row, _), group in zip(batch, replies):
            terms.append([pay(reply.text, row["label"]) for reply in group])

        # Learn.
        statistics = roles.learn(phase, prompts, replies, terms)
        unread = [rewards.extract_answer(r.text, roles.shown) is None for r in flat(replies)]
        phase.end_step(step, flat(replies), unread, flat(terms), statistics)


def solver_data(roles: Roles, phase: Phase) -> list[tuple[dict, Image.Image]]:
    """Pictures with an open hard question, and its label: the majority of the frozen Solver's
    answers. Labels are fixed before training starts (test-time RL)."""
    rows, asked = phase.load_data(), roles.settings.solver_proposals
    if rows is None:
        fresh, rows = fresh_data(roles, phase, asked, 1, roles.settings.labels), []
        for row, image in fresh:
            easy, hard = row["easy_consistency"], row["consistency"]
            if rewards.keep_for_solver(easy, hard, roles.rules):
                rows.append((row, image))
        phase.log_data(fresh, asked, kept=len(rows))
        phase.save_data(rows)
    return rows


# ---------------------------------------------------------------------------------------- the loop


def prepare(run: Run) -> Roles:
    """The roles as far as the run has come, and as many threads as suit them."""
    roles = Roles(run.settings, {role: run.newest(role) for role in ROLES})
    millions = sum(p.numel() for p in roles.policy.model.parameters()) / 1e6
    where = f"{roles.actor.device}; {run.folder}"
    print(f"{run.settings.model}: {millions:.1f} M parameters on {where}")
    if roles.actor.device.type == "cpu":
        # As many replies at once as a run has, unless the network is a large one.
        prompt, count = roles.proposer_prompt(roles.topics[0]), 256 if millions < 100 else 8
        machine.set_threads(run, partial(generate, roles.actor, [prompt], count, max_new_tokens=8))
    return roles


def self_evolve(run: Run, roles: Roles):
    """The whole of MM-Zero: iterations of P, C and S. Goes on where an earlier call stopped.
    Yields 0 after the base, and then each iteration that is over: there one may measure."""
    settings = run.settings
    training = {"proposer": train_proposer, "coder": train_coder, "solver": train_solver}
    with roles.renderer:
        for iteration in range(settings.iterations + 1):
            for role in ROLES:
                # Iteration 0 is the base: it is measured, not trained.
                trained = iteration > 0 and getattr(settings, f"{role}_steps") > 0
                if trained and not run.is_done(iteration, role):
                    roles.policy.load_state(roles.weights[role])
                    optimizer = make_optimizer(roles.policy, settings.lr, settings.weight_decay)
                    training[role](roles, Phase(run, iteration, role, roles.policy, optimizer))
                    roles.adopt(role)
                    roles.policy.save(run.folder / f"iter{iteration}" / role)
                    run.finish(iteration, role)
            if not run.is_done(iteration, "eval"):
                yield iteration
                run.finish(iteration, "eval")


def main(arguments=None) -> Run | None:
    from tools import audit, explain, measure, plan, report

    begun = time.perf_counter()
    machine.keep_freed_memory()
    try:
        settings, gpus = parse(arguments, plan.auto)
        parallel.start()
        if gpus is not None:  # --dry-run
            plan.plan(settings, gpus)
            return None
        check_model(settings)
        hours_left = plan.before_weights(settings)
        if settings.explain:
            print(f"\n{explain.explain(sys.modules[__name__], settings)}")
            return None
        run = Run(settings, hours_left)
        questions, roles = measure.held_out(settings), prepare(run)
        for iteration in self_evolve(run, roles):
            measure.measure(roles, run, iteration, questions)
            audit.audit_labels(roles, run, iteration)
            if parallel.rank() == 0:
                print(table(run.evaluations()[-1:]))
                report.report(run.folder)
        if parallel.rank() == 0:
            minutes = (time.perf_counter() - begun) / 60
            print(f"\n{table(run.evaluations())}\n")
            print(f"report: {report.report(run.folder)}   ({minutes:.1f} minutes)")
        parallel.stop()
        return run
    except (ValueError, OSError, RuntimeError) as error:
        parallel.fail(f"mmzero.py: {error}")
    except KeyboardInterrupt:
        sys.exit("mmzero.py: stopped; the same command goes on from the last state that was saved")


if __name__ == "__main__":
    main()
