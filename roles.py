"""The three roles: one network, three sets of weights, and what each is asked.

    Proposer   topic                        -> proposal (rewards.Proposal)
    Coder      proposal                     -> code -> picture (Draft.image)
    Solver     picture + question           -> answers (Draft.easy_answers, Draft.hard_answers)

Whoever is in training is handled by mmzero.py; here is what the frozen ones do, with the sampling settings that the
paper's implementation details give for them.
"""

import dataclasses
import itertools
from dataclasses import dataclass, field

import rewards
from generate import generate
from prompts import TOPICS, fill
from render import Renderer
from vlm import VLM

ROLES = ("proposer", "coder", "solver")             # in the order in which an iteration trains them
LANGUAGES = {"svg": ("svg",), "python": ("python",), "mixed": ("svg", "python")}


@dataclass(eq=False)
class Draft:
    """One code for one proposal, and what became of it."""
    proposal: rewards.Proposal
    language: str
    reply: str = ""
    code: str | None = None
    tokens: int = 0                                             # length of the reply
    image: object = None                                        # PIL.Image, if the code rendered
    error: str | None = None                                    # why it did not
    easy_answers: list = field(default_factory=list)            # of the Solver; None where nothing could be read
    hard_answers: list = field(default_factory=list)

    @property
    def judged(self) -> rewards.Judged | None:
        if self.image is None:
            return None
        return rewards.Judged(rewards.solvability(self.easy_answers, self.proposal.easy_answer), rewards.vote(self.hard_answers)[1])

    def record(self) -> dict:
        judged = self.judged
        return {**dataclasses.asdict(self.proposal), "content_type": rewards.type_of(self.proposal), "code": self.code,
                "language": self.language, "error": self.error, "picture": None, "easy_answers": self.easy_answers,
                "hard_answers": self.hard_answers, "solvability": judged and judged.solvability,
                "consistency": judged and judged.consistency}


class Roles:
    """The three roles: one `actor` that samples and scores, one `policy` that is trained, three sets of weights.

    A role is a set of weights in host memory, copied into the actor when the role is to speak; no more than two
    networks are ever on the device. The policy holds float32 masters, the actor the compute type (bf16 on a GPU).
    """

    def __init__(self, settings, weights_of: dict[str, str]):
        """weights_of: role -> model name or folder to start from."""
        self.s = settings
        self.actor = VLM.load(settings.model)
        self.policy = VLM.load(settings.model, dtype="float32")
        if settings.checkpointing:
            self.policy.model.gradient_checkpointing_enable()
            self.policy.model.train()                           # without this it does nothing; these models have no dropout
        for vlm in (self.actor, self.policy):
            vlm.min_pixels, vlm.max_pixels = settings.min_pixels or vlm.min_pixels, settings.max_pixels or vlm.max_pixels
        base = self.policy.state()
        self.weights = {role: base if name == settings.model else VLM.load(name, device="cpu", dtype="float32").state()
                        for role, name in weights_of.items()}
        self.prompts = self.actor.prompts
        self.renderer = Renderer(workers=settings.workers or None, timeout=settings.render_seconds)

    def speak(self, weights: dict, prompts: list, n: int, progress=False, **sampling):
        """Sample n replies to each prompt with these weights. -> list per prompt of Completion"""
        self.actor.load_state(weights)
        return generate(self.actor, prompts, n=n, slots=self.s.slots or None, progress=progress, **sampling)

    # ---------------------------------------------------------------- what each role is asked
    def proposer_prompt(self, topic: str):
        return self.actor.encode(fill(self.prompts["proposer"], topic=topic))

    def coder_prompt(self, proposal: rewards.Proposal, language: str):
        return self.actor.encode(fill(self.prompts["coder"][language], **dataclasses.asdict(proposal)))

    def solver_prompt(self, image, question: str):
        return self.actor.encode(fill(self.prompts["solver"], question=question), [image])

    # ---------------------------------------------------------------- what the frozen roles do
    def propose(self, weights, count: int, seed: int, progress=False) -> list[tuple[str, str, rewards.Proposal | None]]:
        """`count` fresh proposals, topics in turn -> (topic, reply, proposal or None)"""
        topics = [TOPICS[i % len(TOPICS)] for i in range(count)]
        prompts = {topic: self.proposer_prompt(topic) for topic in TOPICS}
        replies = self.speak(weights, [prompts[topic] for topic in topics], 1, progress, seed=seed, temperature=1.0, top_p=0.95,
                             max_new_tokens=self.s.proposal_tokens)
        return [(topic, reply.text, rewards.parse_proposal(reply.text)) for topic, (reply,) in zip(topics, replies)]

    def languages(self, count: int) -> list[str]:
        return [LANGUAGES[self.s.language][i % len(LANGUAGES[self.s.language])] for i in range(count)]

    def draw(self, weights, proposals: list[rewards.Proposal], n: int, seed: int, top_k=0, progress=False) -> list[list[Draft]]:
        """n codes for each proposal, rendered. -> list per proposal of Draft"""
        languages = self.languages(len(proposals))
        prompts = [self.coder_prompt(p, language) for p, language in zip(proposals, languages)]
        replies = self.speak(weights, prompts, n, progress, seed=seed, temperature=0.7, top_p=0.95, top_k=top_k,
                             max_new_tokens=self.s.code_tokens)
        drafts = [[Draft(p, language, reply.text, tokens=len(reply.tokens)) for reply in group]
                  for p, language, group in zip(proposals, languages, replies)]
        self.render(list(itertools.chain(*drafts)), progress)
        return drafts

    def render(self, drafts: list[Draft], progress=False):
        for draft in drafts:
            draft.code = rewards.extract_code(draft.reply, draft.language)
        for draft, result in zip(drafts, self.renderer.render([(d.code, d.language) for d in drafts], progress)):
            draft.image, draft.error = result.image, result.error

    def judge(self, weights, drafts: list[Draft], n: int, seed: int, top_k=40, progress=False):
        """The Solver answers both questions about every picture n times; drafts without a picture are left alone."""
        drawn = [d for d in drafts if d.image is not None]
        prompts = [self.solver_prompt(d.image, q) for d in drawn for q in (d.proposal.easy_question, d.proposal.hard_question)]
        replies = self.speak(weights, prompts, n, progress, seed=seed, temperature=1.0, top_k=top_k,
                             max_new_tokens=self.s.answer_tokens)
        for i, draft in enumerate(drawn):
            draft.easy_answers, draft.hard_answers = ([rewards.extract_answer(r.text) for r in replies[2 * i + k]] for k in (0, 1))
