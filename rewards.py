r"""Read replies, pay the three roles, filter what they are trained on (MM-Zero, arXiv 2603.09206).

Symbols, as in the paper:
    N codes are asked for each proposal, K Solver answers for each question of a picture.
    s  solvability:  share of the K answers to the easy question that equal the Proposer's own easy answer.
    c  consistency:  share of the K answers to the hard question that equal their majority.
    d  difficulty:   min(c, 1 - c): 0 for a question that is trivial or hopeless, at most 1/2 in between.
Nothing here knows a true answer: the majority is the label. What "equal" means is decided in answers.py.

What differs from the authors' released code, and why (for unread answers see answers.py):
    - the content-type penalty also holds when every proposal has one type: the collapse it is there for.
    - N is the number of codes asked for: a reply without code is a failed picture, not a smaller N.

A model wrote the replies: nothing in them is evaluated, and no pattern takes quadratic time on a long text.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from support.answers import answers_match, extract_answer, last_box, vote  # noqa: F401

CONTENT_TYPES = ("data_chart", "diagram", "geometry", "timeline", "map", "table", "other")
FENCE_TAGS = {
    "svg": ("svg", "xml", "html"),
    "python": ("python", "py", "python3"),
}  # how models label code

# -------------------------------------------------------------------------------------------- reading replies


@dataclass(frozen=True)
class Proposal:
    """What the Proposer wrote. content_type is its own wording ("" if left out); `type_of` normalises it."""

    content_type: str
    caption: str
    easy_question: str
    easy_answer: str
    hard_question: str
    hard_answer: str


BLOCKS = tuple(Proposal.__dataclass_fields__)
TAG = re.compile(rf"<(/?)({'|'.join(BLOCKS)})>", re.IGNORECASE | re.ASCII)


def parse_proposal(text):
    """The XML blocks of a Proposer reply, or None if one of them (content_type aside) is missing or empty.

    A block is an opening tag whose *next* tag closes it: one cut short never swallows the block after it.
    Reasoning up to the last </think> is skipped; of a block given twice the first counts.

    >>> reply = ("<caption>two bars</caption> <easy_question>how many bars?</easy_question> <easy_answer>2"
    ...          "</easy_answer> <hard_question>sum?</hard_question> <hard_answer>7</hard_answer>")
    >>> parse_proposal(reply).easy_answer
    '2'
    >>> parse_proposal(reply.replace("</caption>", "")) is None
    True
    """
    text = text.rpartition("</think>")[2]
    tags = list(TAG.finditer(text))
    blocks = {}
    for start, end in zip(tags, tags[1:]):
        name = start[2].lower()
        if not start[1] and end[1] and end[2].lower() == name:
            blocks.setdefault(name, text[start.end() : end.start()].strip())
    if not all(blocks.get(name) for name in BLOCKS[1:]):
        return None
    return Proposal(**{name: blocks.get(name, "") for name in BLOCKS})


TYPE_HINTS = dict(  # tried in this order: "heatmap" must meet data_chart before "map" meets map
    diagram="flowchart, flow chart, network diagram, org chart, state diagram, circuit diagram, "
    "block diagram",
    data_chart="bar chart, line chart, pie chart, scatter, histogram, area chart, stacked, heatmap, treemap, "
    "radar chart, bubble chart",
    geometry="angle, triangle, circle, radius, coordinate, geometry, perpendicular, chord, polygon, "
    "rectangle",
    timeline="timeline, schedule, gantt",
    map="map, region, geographic, country",
    table="table, grid",
)


def type_of(proposal):
    """The content type for the batch statistics: the block's own if it is in the list, else by the caption.

    >>> type_of(Proposal("Data Chart", "", "", "", "", "")), type_of(Proposal("", "A Map", "", "", "", ""))
    ('data_chart', 'map')
    """
    written = re.sub(r"[\s_-]+", "_", proposal.content_type.strip().lower())
    if written in CONTENT_TYPES and written != "other":
        return written
    caption = proposal.caption.lower()
    for name, hints in TYPE_HINTS.items():
        if any(hint in caption for hint in hints.split(", ")):
            return name
    return "other"


def language_of(code):
    """ "svg" or "python"; None for markup without an <svg> in it."""
    if not code.lstrip().startswith("<"):
        return "python"
    return "svg" if "<svg" in code else None


def fenced_blocks(text):
    """(label, code) of every fenced block that was closed. Splitting takes linear time, whatever the text."""
    pieces = text.split("```")[
        1:-1:2
    ]  # the last piece is outside any block, or in one never closed
    blocks = [re.match(r"([^\s<]*)(.*)", piece, re.DOTALL).groups() for piece in pieces]
    return [(label.lower(), code.strip()) for label, code in blocks if code.strip()]


def extract_code(text, language="svg"):
    r"""The code in a Coder reply, or None: the last closed fenced block labelled with the asked language
    (models correct themselves), else the last unlabelled one in it, else the last of any kind (it will not
    render, and the reward sees what was written instead). Without a closed block: a bare <svg>...</svg>.

    >>> extract_code("First\n```svg\n<svg>1</svg>\n```\nbetter:\n```svg\n<svg>2</svg>\n```")
    '<svg>2</svg>'
    >>> extract_code("cut short: ```python\nprint(1", "python") is None
    True
    """
    if language not in FENCE_TAGS:
        raise ValueError(f"language is {language!r}, it should be one of {', '.join(FENCE_TAGS)}")
    blocks = fenced_blocks(text)
    if blocks:
        labelled = [code for label, code in blocks if label in FENCE_TAGS[language]]
        plain = [code for label, code in blocks if not label and language_of(code) == language]
        return (labelled or plain or [code for _, code in blocks])[-1]
    start, end = text.find("<svg"), text.rfind("</svg>")
    return text[start : end + len("</svg>")] if 0 <= start < end else None


# ------------------------------------------------------------------------------------ s, c, d and the filters


def _share(name, value):
    if not 0 <= value <= 1:  # also refuses nan, for which every comparison is false
        raise ValueError(f"{name} is {value}, it should be a number from 0 to 1")
    return float(value)


@dataclass(frozen=True)
class Judged:
    """What the Solver made of one picture: s and c. A code without a picture is None in a list of these."""

    solvability: float
    consistency: float

    def __post_init__(self):
        _share("solvability", self.solvability)
        _share("consistency", self.consistency)


def solvability(answers, easy_answer):
    """s: the share of the answers to the easy question that match the Proposer's; an unread one is a miss.

    >>> solvability(["4", "4.0", None, "5"], "4")
    0.5
    """
    return sum(answers_match(answer, easy_answer) for answer in answers) / max(len(answers), 1)


def difficulty(consistency):
    """d = min(c, 1 - c), the Goldilocks term: most for questions on which half the answers agree."""
    c = _share("consistency", consistency)
    return min(c, 1 - c)


def keep_for_coder(render_rate):
    """The Coder learns from proposals it can sometimes draw: render rate in [0.25, 0.75], ends included."""
    return 0.25 <= _share("render_rate", render_rate) <= 0.75


def keep_for_solver(easy_consistency, hard_consistency):
    """The Solver learns from pictures it can read (easy c >= 0.5) and open questions (hard 0.25 to 0.75)."""
    easy, hard = (
        _share("easy_consistency", easy_consistency),
        _share("hard_consistency", hard_consistency),
    )
    return easy >= 0.5 and 0.25 <= hard <= 0.75


# ---------------------------------------------------------------------------------------- variety of a batch


def bleu_matrix(texts):
    """[n, n] sentence BLEU-4 on whitespace tokens: entry (i, j) has hypothesis i and reference j.

    BLEU = min(1, e^(1 - len_j / len_i)) * (p1 p2 p3 p4)^(1/4); a count of zero in p is replaced by 0.1;
    without any common word BLEU = 0. Texts under four words have no 4-gram: even equal ones stay below 1.
    """
    words = [text.split() for text in texts]
    length = np.array([len(w) for w in words], dtype=float)  # [n]
    log_precision = np.zeros((len(words), len(words)))
    for order in (1, 2, 3, 4):
        places = defaultdict(list)  # n-gram -> [(text, count), ...]
        for i, w in enumerate(words):
            for gram, count in Counter(zip(*(w[k:] for k in range(order)))).items():
                places[gram].append((i, count))
        match = np.zeros_like(log_precision)  # clipped counts in common
        for place in places.values():
            if len(place) > 1:  # most n-grams are in one text only: far fewer steps than n^2
                text, count = np.array(place).T
                match[np.ix_(text, text)] += np.minimum.outer(count, count)
        np.fill_diagonal(match, np.maximum(length - order + 1, 0))  # all of a text is in itself
        if order == 1:
            common = match > 0
        total = np.maximum(length - order + 1, 1)[:, None]  # n-grams of the hypothesis
        log_precision += np.log(np.where(match > 0, match, 0.1) / total) / 4
    log_brevity = np.minimum(0, 1 - length[None, :] / np.maximum(length, 1)[:, None])
    return np.where(common, np.exp(log_brevity + log_precision), 0.0)


def cluster_shares(texts):
    """share_k of every text: size of its cluster / n. Average-linkage clusters of 1 - BLEU, cut at 0.25.

    BLEU is not symmetric: the value with the earlier text as hypothesis serves for both directions.

    >>> cluster_shares(["a red bar chart", "a red bar chart", "two circles", "one long line"])
    [0.5, 0.5, 0.25, 0.25]
    """
    n = len(texts)
    bleu = np.triu(bleu_matrix(texts), 1)
    distance = 1 - (bleu + bleu.T)  # [n, n]
    np.fill_diagonal(distance, np.inf)
    size, cluster = np.ones(n), np.arange(n)
    for _ in range(n - 1):
        i, j = divmod(int(distance.argmin()), n)
        if distance[i, j] >= 0.25:
            break
        # Mean distance to a union = size-weighted mean of those to its parts. i becomes the union, j is gone.
        union = (size[i] * distance[i] + size[j] * distance[j]) / (size[i] + size[j])
        distance[i], distance[:, i] = union, union
        distance[j], distance[:, j], distance[i, i] = np.inf, np.inf, np.inf
        size[i] += size[j]
        cluster[cluster == j] = i
    return (size[cluster] / max(n, 1)).tolist()


def type_entropy(types):
    """Entropy of a batch's content types, 1 if all seven are equally frequent: -sum p ln p / ln 7.

    >>> type_entropy(["map", "map"]), round(type_entropy(CONTENT_TYPES), 12)
    (0.0, 1.0)
    """
    shares = [count / len(types) for count in Counter(types).values()]
    return sum(p * math.log(1 / p) for p in shares) / math.log(len(CONTENT_TYPES))


# ------------------------------------------------------------------------------------------ the three rewards

DIVERSITY_WEIGHT = 0.5  # w
FIELD_WEIGHTS = {"caption": 0.45, "easy_question": 0.20, "hard_question": 0.35}  # w_k


def proposer_rewards(proposals, judged, memory=(), memory_weight=0.0):
    """One dict per proposal. Give the whole batch at once: the terms T and V compare its proposals.

        R = 1/N sum_j 1[j rendered] (min(s_j, 0.5) + d_j) - E - T - V           (-1 if the proposal is None)

    judged[i]: N entries, one per code asked for, None where no picture came out. memory: captions of the last
    steps, for the optional term - memory_weight * (highest BLEU to one of them).
    Keys: reward, valid, rendered (share of N), solvability and difficulty (means over the rendered, else 0),
    content_type (normalised; None if invalid); what was taken off: easy_hard E, type T, diversity V, memory.
    """
    if len(proposals) != len(judged):
        raise ValueError(
            f"{len(proposals)} proposals, {len(judged)} lists of pictures: not one each"
        )
    if not math.isfinite(memory_weight):
        raise ValueError(f"memory_weight is {memory_weight}, it should be a finite number")
    valid = [
        proposal for proposal in proposals if proposal is not None
    ]  # n: only these are compared
    n = len(valid)
    types = [type_of(proposal) for proposal in valid]
    shares = {field: cluster_shares([getattr(p, field) for p in valid]) for field in FIELD_WEIGHTS}
    seen = [0.0] * n
    if memory_weight and memory and n:
        seen = bleu_matrix([p.caption for p in valid] + list(memory))[:n, n:].max(axis=1).tolist()
    rows, k = [], 0  # k: place among the valid ones
    for proposal, pictures in zip(proposals, judged):
        row = dict(
            reward=-1.0,
            valid=0.0,
            rendered=0.0,
            solvability=0.0,
            difficulty=0.0,
            easy_hard=0.0,
            type=0.0,
            diversity=0.0,
            memory=0.0,
            content_type=None,
        )
        rows.append(row)
        if proposal is None:
            continue
        if not pictures:
            raise ValueError(
                "a valid proposal came with an empty list, it should have one entry per code"
            )
        drawn = [picture for picture in pictures if picture is not None]
        gain = sum(min(p.solvability, 0.5) + difficulty(p.consistency) for p in drawn) / len(
            pictures
        )
        if drawn:
            row["solvability"] = sum(p.solvability for p in drawn) / len(drawn)
            row["difficulty"] = sum(difficulty(p.consistency) for p in drawn) / len(drawn)
            # 1e-9: 1 - 0.8 is a hair below 0.2 in floating point; a mean of just 0.15 must not count as below
            row["easy_hard"] = 0.3 if row["difficulty"] < 0.15 - 1e-9 else 0.0
        f = types.count(types[k]) / n
        crowding = n * sum(
            weight * (shares[field][k] - 1 / n) for field, weight in FIELD_WEIGHTS.items()
        )
        row.update(
            valid=1.0,
            rendered=len(drawn) / len(pictures),
            content_type=types[k],
            type=0.15 * max(0.0, f - 0.5) / 0.5,
            diversity=min(max(DIVERSITY_WEIGHT * crowding, -DIVERSITY_WEIGHT), DIVERSITY_WEIGHT),
            memory=memory_weight * seen[k],
        )
        row["reward"] = gain - row["easy_hard"] - row["type"] - row["diversity"] - row["memory"]
        k += 1
    return rows


def coder_reward(code, judged, language="svg", reply=""):
    """1 + s + d if the code rendered (s without cap), else -0.1; in both cases less
        0.05  if no fenced code was found: no code at all, or a bare <svg>, which may render all the same;
        0.5   if the code is not in the asked language.
    Without a picture -0.5 is the floor. code is extract_code(reply, language); `reply` may be left out.

    >>> coder_reward("<svg/>", Judged(0.75, 0.5))
    {'reward': 2.25, 'rendered': 1.0, 'solvability': 0.75, 'difficulty': 0.5}
    """
    if language not in FENCE_TAGS:
        raise ValueError(f"language is {language!r}, it should be one of {', '.join(FENCE_TAGS)}")
    if code is None and judged is not None:
        raise ValueError(
            "a picture was judged although there is no code, it should be None as well"
        )
    penalty = 0.05 if code is None or (reply and not fenced_blocks(reply)) else 0.0
    penalty += 0.5 if code is not None and language_of(code) != language else 0.0
    if judged is None:
        return dict(reward=max(-0.1 - penalty, -0.5), rendered=0.0, solvability=0.0, difficulty=0.0)
    s, d = judged.solvability, difficulty(judged.consistency)
    return dict(reward=1 + s + d - penalty, rendered=1.0, solvability=s, difficulty=d)


def solver_reward(reply, label):
    r"""0.9 * [boxed answer equals the label] + 0.1 * [the reply is <think>..</think> \boxed{..}, no more].

    >>> solver_reward(r"<think>3 + 4</think> \boxed{7}", "7")
    {'reward': 1.0, 'accuracy': 1.0, 'format': 1.0}
    """
    thought, _, rest = reply.strip().partition("</think>")
    rest = rest.lstrip()
    box = last_box(rest)
    alone = (
        box and box[0] and rest.rfind(r"\boxed{") == 0 and box[1] == len(rest)
    )  # rest is one box
    form = float(bool(alone) and thought.startswith("<think>"))
    accuracy = float(answers_match(extract_answer(reply), label))
    return dict(reward=0.9 * accuracy + 0.1 * form, accuracy=accuracy, format=form)
