"""The three roles: one network, three sets of weights, and what each is asked.

    Proposer   topic                        -> proposal (rewards.Proposal)
    Coder      proposal                     -> code -> picture (Draft.image)
    Solver     picture + question           -> answers (Draft.easy_answers, Draft.hard_answers)

Whoever is in training is handled by mmzero.py; here is what the frozen ones do, with the sampling settings that the
paper's implementation details give for them.
"""

import dataclasses
import io
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

import rewards
from generate import generate
from prompts import TOPICS, fill
from render import Renderer
from support import parallel
from support.lora import add_lora, twin
from support.parallel import gather, world
from support.parallel import rank_slice as share
from vlm import VLM

ROLES = ("proposer", "coder", "solver")  # in the order in which an iteration trains them
LANGUAGES = {"svg": ("svg",), "python": ("python",), "mixed": ("svg", "python")}


def to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@dataclass(eq=False)
class Draft:
    """One code for one proposal, and what became of it."""

    proposal: rewards.Proposal
    language: str
    reply: str = ""
    code: str | None = None
    tokens: int = 0  # length of the reply
    image: object = None  # PIL.Image, if the code rendered
    error: str | None = None  # why it did not
    easy_answers: list = field(
        default_factory=list
    )  # of the Solver; None where nothing could be read
    hard_answers: list = field(default_factory=list)

    @property
    def judged(self) -> rewards.Judged | None:
        if self.image is None:
            return None
        return rewards.Judged(
            rewards.solvability(self.easy_answers, self.proposal.easy_answer),
            rewards.vote(self.hard_answers)[1],
        )

    @classmethod
    def of(cls, record: dict, image) -> "Draft":
        """What `record` wrote, read again (the reply aside)."""
        own = {
            name: record[name]
            for name in ("language", "code", "error", "easy_answers", "hard_answers")
        }
        return cls(
            rewards.Proposal(*(record[f.name] for f in dataclasses.fields(rewards.Proposal))),
            image=image,
            **own,
        )

    def record(self) -> dict:
        judged = self.judged
        return {
            **dataclasses.asdict(self.proposal),
            "content_type": rewards.type_of(self.proposal),
            "code": self.code,
            "language": self.language,
            "error": self.error,
            "picture": None,
            "easy_answers": self.easy_answers,
            "hard_answers": self.hard_answers,
            "solvability": judged and judged.solvability,
            "consistency": judged and judged.consistency,
        }


class Roles:
    """The three roles: one `actor` that samples and scores, one `policy` that is trained, three sets of weights.

    A role is a set of weights in host memory, which the actor takes on when the role is to speak; no more than two
    networks are ever on the device. The policy holds float32 masters, the actor the compute type (bf16 on a GPU). With LoRA
    the two share one base, and a role is its adapters. Of several ranks each has an actor, and its share of the policy.
    """

    def __init__(self, settings, weights_of: dict[str, str]):
        """weights_of: role -> model name or folder to start from."""
        self.s = settings
        self.actor = VLM.load(settings.model)
        if settings.lora:
            self.policy = twin(self.actor)
            for vlm in (self.actor, self.policy):
                add_lora(vlm, settings.lora, settings.lora_alpha)
        else:  # to be sharded, it is loaded into host memory
            self.policy = VLM.load(
                settings.model, dtype="float32", device="cpu" if world() > 1 else "auto"
            )
        if settings.checkpointing:
            self.policy.model.gradient_checkpointing_enable()
            self.policy.model.train()  # without this it does nothing; these models have no dropout
        if world() > 1 and not settings.lora:
            parallel.shard(self.policy.model)
        for vlm in (self.actor, self.policy):
            vlm.min_pixels, vlm.max_pixels = (
                settings.min_pixels or vlm.min_pixels,
                settings.max_pixels or vlm.max_pixels,
            )
        base = self.policy.state()
        self.weights = {
            role: base if name == settings.model else self._read(name)
            for role, name in weights_of.items()
        }
        self.prompts = self.actor.prompts
        workers = settings.workers or max(
            os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1
        )
        self.renderer = Renderer(workers, settings.render_seconds, settings.unsafe_python)
        if settings.language != "svg" and self.renderer.refusal:
            raise RuntimeError(self.renderer.refusal)

    def _read(self, folder: str) -> dict:
        """The weights of a role that this run saved, as the policy holds them."""
        adapter = Path(folder) / "adapter.safetensors"
        self.policy.load_state(
            load_file(adapter)
            if self.s.lora
            else VLM.load(folder, device="cpu", dtype="float32").state()
        )
        return self.policy.state()

    def speak(self, weights: dict, prompts: list, n: int, progress=False, **sampling):
        """Sample n replies to each prompt with these weights, each rank its share. -> list per prompt of Completion"""
        self.actor.load_state(weights, share=True)
        return gather(
            generate(
                self.actor,
                share(prompts),
                n=n,
                slots=self.s.slots or None,
                progress=progress and not parallel.rank(),
                numbers=share(range(len(prompts))),
                **sampling,
            )
        )

    # ---------------------------------------------------------------- what each role is asked
    def proposer_prompt(self, topic: str):
        return self.actor.encode(fill(self.prompts["proposer"], topic=topic))

    def coder_prompt(self, proposal: rewards.Proposal, language: str):
        return self.actor.encode(
            fill(self.prompts["coder"][language], **dataclasses.asdict(proposal))
        )

    def solver_prompt(self, image, question: str):
        return self.actor.encode(fill(self.prompts["solver"], question=question), [image])

    # ---------------------------------------------------------------- what the frozen roles do
    def propose(
        self, weights, places: range, seed: int, progress=False
    ) -> list[tuple[str, str, rewards.Proposal | None]]:
        """Fresh proposals for these places of a list, topics in turn -> (topic, reply, proposal or None)"""
        topics = [TOPICS[i % len(TOPICS)] for i in places]
        prompts = {topic: self.proposer_prompt(topic) for topic in TOPICS}
        replies = self.speak(
            weights,
            [prompts[topic] for topic in topics],
            1,
            progress,
            seed=seed,
            temperature=1.0,
            top_p=0.95,
            max_new_tokens=self.s.proposal_tokens,
        )
        return [
            (topic, reply.text, rewards.parse_proposal(reply.text))
            for topic, (reply,) in zip(topics, replies)
        ]

    def languages(self, count: int) -> list[str]:
        return [
            LANGUAGES[self.s.language][i % len(LANGUAGES[self.s.language])] for i in range(count)
        ]

    def draw(
        self, weights, proposals: list[rewards.Proposal], n: int, seed: int, top_k=0, progress=False
    ) -> list[list[Draft]]:
        """n codes for each proposal, rendered. -> list per proposal of Draft"""
        languages = self.languages(len(proposals))
        prompts = [self.coder_prompt(p, language) for p, language in zip(proposals, languages)]
        replies = self.speak(
            weights,
            prompts,
            n,
            progress,
            seed=seed,
            temperature=0.7,
            top_p=0.95,
            top_k=top_k,
            max_new_tokens=self.s.code_tokens,
        )
        drafts = [
            [Draft(p, language, reply.text, tokens=len(reply.tokens)) for reply in group]
            for p, language, group in zip(proposals, languages, replies)
        ]
        self.render(list(itertools.chain(*drafts)), progress)
        return drafts

    def render(self, drafts: list[Draft], progress=False):
        for draft in drafts:
            draft.code = rewards.extract_code(draft.reply, draft.language)
        results = self.renderer.render(
            [(d.code, d.language) for d in share(drafts)], progress and not parallel.rank()
        )
        # Pictures travel between ranks as PNG: nothing is lost, and as pixels they would be a hundred times as large.
        for draft, (png, error) in zip(
            drafts, gather([(r.image and to_png(r.image), r.error) for r in results])
        ):
            draft.image, draft.error = png and Image.open(io.BytesIO(png)).copy(), error

    def judge(self, weights, drafts: list[Draft], n: int, seed: int, top_k=40, progress=False):
        """The Solver answers both questions about every picture n times; drafts without a picture are left alone."""
        drawn = [d for d in drafts if d.image is not None]
        asked = [
            (d, q) for d in drawn for q in (d.proposal.easy_question, d.proposal.hard_question)
        ]
        # A rank cuts what is in its own share. The two questions share one object, and its vision tower.
        pictures = {d: self.actor.cut(d.image) for d in dict.fromkeys(d for d, _ in share(asked))}
        prompts = [self.solver_prompt(pictures[d], q) if d in pictures else None for d, q in asked]
        replies = self.speak(
            weights,
            prompts,
            n,
            progress,
            seed=seed,
            temperature=1.0,
            top_k=top_k,
            max_new_tokens=self.s.answer_tokens,
        )
        for i, draft in enumerate(drawn):
            draft.easy_answers, draft.hard_answers = (
                [rewards.extract_answer(r.text) for r in replies[2 * i + k]] for k in (0, 1)
            )
