r"""Read replies, pay the three roles, filter what they are trained on (MM-Zero, arXiv 2603.09206).

N codes are asked for each proposal, K Solver answers for each question of a picture. They give
    s  solvability:  share of the K answers to the easy question that equal the Proposer's
    c  consistency:  share of the K answers to the hard question that equal their majority
    d  difficulty:   min(c, 1 - c): 0 if the question is trivial or hopeless, at most 1/2 in between
Nothing here knows a true answer: the majority is the label. What "equal" means, and what becomes of
unread answers, is in support/answers.py; how a reply is read in support/replies.py. The numbers of
the formulas are the paper's, RULES in support/settings.py; a run may do without some of them.

What differs from the authors' released code: the content-type penalty also holds when all
proposals have one type, because it is there for collapse. docs/paper.md lists the rest.

A model wrote the replies: nothing in them is evaluated, and no pattern takes quadratic time.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from prompts import PROMPTS, placeholders
from support.answers import answers_match, extract_answer, in_form, is_placeholder, vote
from support.replies import check_language, extract_code, language_of, tagged_blocks
from support.settings import RULES

CONTENT_TYPES = ("data_chart", "diagram", "geometry", "timeline", "map", "table", "other")

# ------------------------------------------------------------------------------- reading replies


@dataclass(frozen=True)
class Proposal:
    """What the Proposer wrote. content_type is its own wording ("" if left out), see `type_of`."""

    content_type: str
    caption: str
    easy_question: str
    easy_answer: str
    hard_question: str
    hard_answer: str


BLOCKS = tuple(Proposal.__dataclass_fields__)
SHOWN = placeholders(PROMPTS)


def parse_proposal(text, shown=SHOWN):
    """The XML blocks of a Proposer's reply; None if one is missing, empty or the prompt's own text.

    content_type may be left out. shown: the `placeholders` of the prompts that were asked.

    >>> reply = ("<caption>two bars</caption> <easy_question>how many bars?</easy_question> "
    ...          "<easy_answer>2</easy_answer> <hard_question>sum?</hard_question> "
    ...          "<hard_answer>7</hard_answer>")
    >>> parse_proposal(reply).easy_answer
    '2'
    >>> parse_proposal(reply.replace("</caption>", "")) is None
    True
    """
    blocks = tagged_blocks(text, BLOCKS)
    for name in BLOCKS[1:]:
        if not blocks.get(name) or is_placeholder(blocks[name], shown):
            return None
    return Proposal(**{name: blocks.get(name, "") for name in BLOCKS})


# Tried in this order: "heatmap" must meet data_chart before "map" meets map.
TYPE_HINTS = {
    "diagram": "flowchart, flow chart, network diagram, org chart, state diagram, circuit diagram, "
    "block diagram",
    "data_chart": "bar chart, line chart, pie chart, scatter, histogram, area chart, stacked, "
    "heatmap, treemap, radar chart, bubble chart",
    "geometry": "angle, triangle, circle, radius, coordinate, geometry, perpendicular, chord, "
    "polygon, rectangle",
    "timeline": "timeline, schedule, gantt",
    "map": "map, region, geographic, country",
    "table": "table, grid",
}


def type_of(proposal):
    """The content type for the batch statistics: the block's if it is in the list, else a guess.

    >>> type_of(Proposal("Data Chart", "", "", "", "", ""))
    'data_chart'
    """
    # "Data Chart" and "data-chart" are data_chart.
    written = re.sub(r"[\s_-]+", "_", proposal.content_type.strip().lower())
    if written in CONTENT_TYPES and written != "other":
        return written

    caption = proposal.caption.lower()
    for name, hints in TYPE_HINTS.items():
        if any(hint in caption for hint in hints.split(", ")):
            return name
    return "other"


# ----------------------------------------------------------------------- s, c, d and the filters


def checked_share(name, value):
    # nan is refused as well: every comparison with it is false.
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, it should be a number from 0 to 1")
    return float(value)


@dataclass(frozen=True)
class Judged:
    """What the Solver made of one picture: s and c. Lists of these have None for no picture."""

    solvability: float
    consistency: float

    def __post_init__(self):
        checked_share("solvability", self.solvability)
        checked_share("consistency", self.consistency)


def solvability(answers, easy_answer):
    """s: the share of answers to the easy question that match the Proposer's; unread ones do not.

    >>> solvability(["4", "4.0", None, "5"], "4")
    0.5
    """
    return sum(answers_match(answer, easy_answer) for answer in answers) / max(len(answers), 1)


def difficulty(consistency):
    """d = min(c, 1 - c), the Goldilocks term: most where half of the answers agree."""
    c = checked_share("consistency", consistency)
    return min(c, 1 - c)


def within(name, value, bounds):
    least, most = bounds
    return least <= checked_share(name, value) <= most


def keep_for_coder(render_rate, rules=RULES):
    """The Coder learns from proposals it can sometimes draw: render rate from 0.25 to 0.75."""
    return within("render_rate", render_rate, rules.render_rate)


def keep_for_solver(easy_consistency, hard_consistency, rules=RULES):
    """The Solver learns where it can read the picture (easy c) and the question is open (hard)."""
    easy = within("easy_consistency", easy_consistency, rules.easy_consistency)
    hard = within("hard_consistency", hard_consistency, rules.hard_consistency)
    # Where c is 0 nothing was read: there is no label.
    return easy and hard and hard_consistency > 0


# --------------------------------------------------------------------------- variety of a batch


def bleu_matrix(texts):
    """[n, n] sentence BLEU-4 on whitespace tokens: entry (i, j) has hypothesis i and reference j.

    BLEU = min(1, e^(1 - len_j / len_i)) * (p1 p2 p3 p4)^(1/4)
    A count of zero in p becomes 0.1; without a common word BLEU = 0. A text under four words has no
    4-gram: two equal ones stay below 1.
    """
    words = [text.split() for text in texts]
    length = np.array([len(w) for w in words], dtype=float)  # [n]
    log_precision = np.zeros((len(words), len(words)))
    for order in (1, 2, 3, 4):
        # Where each n-gram occurs: [(text, count), ...].
        places = defaultdict(list)
        for i, w in enumerate(words):
            grams = zip(*(w[k:] for k in range(order)))
            for gram, count in Counter(grams).items():
                places[gram].append((i, count))

        # Clipped counts in common. Most n-grams are in one text only: far fewer steps than n^2.
        match = np.zeros_like(log_precision)  # [n, n]
        for place in places.values():
            if len(place) > 1:
                text, count = np.array(place).T
                match[np.ix_(text, text)] += np.minimum.outer(count, count)
        np.fill_diagonal(match, np.maximum(length - order + 1, 0))
        if order == 1:
            common = match > 0

        # p = matches / n-grams of the hypothesis
        total = np.maximum(length - order + 1, 1)[:, None]
        log_precision += np.log(np.where(match > 0, match, 0.1) / total) / 4

    log_brevity = np.minimum(0, 1 - length[None, :] / np.maximum(length, 1)[:, None])
    return np.where(common, np.exp(log_brevity + log_precision), 0.0)


def cluster_shares(texts):
    """The share of each text's cluster: average linkage on distance 1 - BLEU, cut at 0.25.

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
        # The two clusters that are nearest to each other, as long as they are near.
        i, j = divmod(int(distance.argmin()), n)
        if distance[i, j] >= 0.25:
            break

        # The mean distance to a union is the mean of those to its halves, weighted by their sizes.
        union = (size[i] * distance[i] + size[j] * distance[j]) / (size[i] + size[j])

        # i becomes the union, j is gone.
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


# ----------------------------------------------------------------------------- the three rewards

FIELD_WEIGHTS = {"caption": 0.45, "easy_question": 0.20, "hard_question": 0.35}  # w_k
# Of a proposal that cannot be read.
INVALID = {"reward": -1.0, "content_type": None, "valid": 0.0, "rendered": 0.0}
INVALID |= {"solvability": 0.0, "difficulty": 0.0, "easy_hard": 0.0, "type": 0.0, "diversity": 0.0}


def penalties(proposals, rules=RULES):
    """What a batch of n valid proposals pays for sameness -> (types, T, V), each a list of n.

    T = 0.15 * max(0, f - 0.5) / 0.5                             f = share of its content type
    V = clip(w * n * sum_k w_k * (share_k - 1/n), -w, w)         share_k of its cluster, field k
    """
    # T: how crowded its content type is.
    n = len(proposals)
    types = [type_of(proposal) for proposal in proposals]
    crowded = [rules.T * max(0.0, types.count(name) / n - 0.5) / 0.5 for name in types]

    # V: by how much its texts exceed a share of 1/n in their clusters.
    excess = [0.0] * n
    for field, weight in FIELD_WEIGHTS.items():
        shares = cluster_shares([getattr(proposal, field) for proposal in proposals])
        excess = [e + weight * (share - 1 / n) for e, share in zip(excess, shares)]
    w = rules.V
    return types, crowded, [min(max(w * (n * e), -w), w) for e in excess]


def picture_terms(pictures, rules=RULES):
    """What the pictures of one proposal earn. pictures: N Judged, None for a code that failed.

    gain = 1/N sum_j 1[j rendered] (min(s_j, 0.5) + d_j)
    E = 0.3 if something rendered and the mean of d_j over it is below 0.15
    """
    drawn = [picture for picture in pictures if picture is not None]
    s = [picture.solvability for picture in drawn]
    d = [difficulty(picture.consistency) for picture in drawn]
    gains = [min(s_j, rules.cap) + rules.d * d_j for s_j, d_j in zip(s, d)]
    mean_d = sum(d) / max(len(d), 1)
    # In floating point 1 - 0.8 is below 0.2: a mean of just 0.15 must not count as less.
    no_use = drawn and mean_d < 0.15 - 1e-9
    return {
        "gain": sum(gains) / len(pictures),
        "rendered": len(drawn) / len(pictures),
        "solvability": sum(s) / max(len(s), 1),
        "difficulty": mean_d,
        "easy_hard": rules.E if no_use else 0.0,
    }


def proposer_rewards(proposals, judged, rules=RULES):
    """One dict per proposal. Give the whole batch at once: T and V compare its proposals.

        R = gain - E - T - V           (-1 if the proposal is None; it counts in no statistic)

    judged[i]: N entries, one per code asked for, None where no picture came out.
    Keys: reward, valid, rendered (share of N), solvability and difficulty (means over the rendered,
    else 0), content_type (None if invalid); what was taken off: easy_hard E, type T, diversity V.
    """
    if len(proposals) != len(judged):
        raise ValueError(f"{len(proposals)} proposals, {len(judged)} lists of judged: not one each")
    compared = iter(zip(*penalties([p for p in proposals if p is not None], rules)))

    rewards = []
    for proposal, pictures in zip(proposals, judged):
        if proposal is None:
            rewards.append(dict(INVALID))
            continue
        if not pictures:
            raise ValueError("a valid proposal came without its pictures: one entry per code")
        content_type, T, V = next(compared)
        terms = picture_terms(pictures, rules)
        reward = terms.pop("gain") - terms["easy_hard"] - T - V
        terms |= {"content_type": content_type, "type": T, "diversity": V}
        rewards.append({"reward": reward, "valid": 1.0} | terms)
    return rewards


def coder_reward(code, judged, language="svg", reply="", rules=RULES):
    """What one code earns (s without cap): 1 + s + d - wrong, or max(-(0.1 + none + wrong), -0.5).

        wrong = 0.5   if there is no code in the asked language: where no code was found, either
        none = 0.05   if no code was found
    code is extract_code(reply, language); how the reply wraps it is neither paid nor punished.

    >>> coder_reward("<svg/>", Judged(0.75, 0.5))
    {'reward': 2.25, 'rendered': 1.0, 'solvability': 0.75, 'difficulty': 0.5}
    >>> coder_reward(None, None)["reward"]
    -0.5
    """
    check_language(language)
    if code is None and judged is not None:
        raise ValueError("a picture was judged although there is no code, it should be None too")

    none = 0.05 if code is None else 0.0
    wrong = 0.5 if code is None or language_of(code) != language else 0.0
    if judged is None:
        reward = max(-(0.1 + none + wrong), -0.5)
        return {"reward": reward, "rendered": 0.0, "solvability": 0.0, "difficulty": 0.0}
    s, d = judged.solvability, difficulty(judged.consistency)
    reward = 1 + s + rules.d * d - wrong
    return {"reward": reward, "rendered": 1.0, "solvability": s, "difficulty": d}


def solver_reward(reply, label, shown=frozenset()):
    r"""0.9 * [box equals the label] + 0.1 * [the reply is <think>..</think> \boxed{..}, no more].

    shown: the `placeholders` of a Solver's prompt that is not ours.

    >>> solver_reward(r"<think>3 + 4</think> \boxed{7}", "7")
    {'reward': 1.0, 'accuracy': 1.0, 'format': 1.0}
    """
    accuracy = float(answers_match(extract_answer(reply, shown), label))
    form = float(in_form(reply, shown))
    return {"reward": 0.9 * accuracy + 0.1 * form, "accuracy": accuracy, "format": form}
