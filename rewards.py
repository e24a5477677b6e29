r"""Read replies, compare answers, vote, pay the three roles, filter (MM-Zero, arXiv 2603.09206).

Symbols, as in the paper:
    N codes are asked for each proposal, K Solver answers for each question of a picture.
    s  solvability:  share of the K answers to the easy question that equal the Proposer's own easy answer.
    c  consistency:  share of the K answers to the hard question that equal their majority.
    d  difficulty:   min(c, 1 - c): 0 for a question that is trivial or hopeless, at most 1/2 in between.
Nothing in this file knows a true answer: the majority is the label.

What differs from the authors' released code, and why:
    - an answer that cannot be read counts as disagreement. Left out of the denominator, one readable answer
      of five gives c = 1, and questions that break the Solver look agreed upon.
    - none, n/a, unknown and the like are never answers: five of them would agree perfectly.
    - the content-type penalty also holds when every proposal has one type: the collapse it is there for.
    - N is the number of codes asked for: a reply without code is a failed picture, not a smaller N.

Everything read here was written by a model, so: no eval, no computer algebra, a cap on the length of an
answer, and no regular expression that takes quadratic time on a long text.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

CONTENT_TYPES = ("data_chart", "diagram", "geometry", "timeline", "map", "table", "other")
FENCE_TAGS = {"svg": ("svg", "xml", "html"), "python": ("python", "py", "python3")}    # how models label code
MAX_ANSWER = 500                                # characters; anything longer is prose, not an answer

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
            blocks.setdefault(name, text[start.end():end.start()].strip())
    if not all(blocks.get(name) for name in BLOCKS[1:]):
        return None
    return Proposal(**{name: blocks.get(name, "") for name in BLOCKS})


TYPE_HINTS = {              # tried in this order: "heatmap" must meet data_chart before "map" meets map
    "diagram": "flowchart, flow chart, network diagram, org chart, state diagram, circuit diagram, "
               "block diagram",
    "data_chart": "bar chart, line chart, pie chart, scatter, histogram, area chart, stacked, heatmap, "
                  "treemap, radar chart, bubble chart",
    "geometry": "angle, triangle, circle, radius, coordinate, geometry, perpendicular, chord, polygon, "
                "rectangle",
    "timeline": "timeline, schedule, gantt",
    "map": "map, region, geographic, country",
    "table": "table, grid",
}


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
    blocks = []
    for block in text.split("```")[1:-1:2]:     # the last piece is outside any block, or in one never closed
        label = re.match(r"[^\s<]*", block)[0]
        blocks.append((label.lower(), block[len(label):].strip()))
    return [(label, code) for label, code in blocks if code]


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
    return text[start:end + len("</svg>")] if 0 <= start < end else None


def last_box(text):
    r"""(content, position after it) of the last \boxed{...}, or None if there is none or it never closes."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start, depth = start + len(r"\boxed{"), 1
    for brace in re.finditer(r"\\.|[{}]", text[start:start + MAX_ANSWER + 1], re.DOTALL):    # \{ \} are text
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start:start + brace.start()].strip(), start + brace.end()
    return None


def extract_answer(text):
    r"""The content of the last \boxed{...}. If that one never closes the reply was cut: earlier are drafts.

    >>> extract_answer(r"I try \boxed{3}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract_answer(r"I try \boxed{3}, no: \boxed{\frac{1}") is None
    True
    """
    box = last_box(text)
    return box[0] or None if box else None


# ------------------------------------------------------------------------------------------ comparing answers

NOT_ANSWERS = {"", "none", "n/a", "unknown", "null", "nan"}
CHARACTERS = str.maketrans(dict(zip("−–—‐‑＋％⁄·⋅º“”‘’", "-----+%/××°\"\"''"))
                           | {"²": "^2", "³": "^3", "½": " 1/2", "¼": " 1/4", "¾": " 3/4"})
WRAPPERS = r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|textrm|operatorname|mbox|boxed) ?\{([^{}]*)\}"


def _fraction(match):
    parts = (match[1] or match[2]).strip(), (match[3] or match[4]).strip()
    top, bottom = (part if re.fullmatch(r"[+-]?[\w.]+", part) else f"({part})" for part in parts)
    return f" {top}/{bottom}"                   # the space keeps 1\frac{1}{2} a mixed number, 1 1/2


REWRITES = [(re.compile(pattern, re.ASCII), replacement) for pattern, replacement in (
    (r"(?<!\\)\$((?:[^$\\]|\\.)*+)\$", r"\1"),  # $...$ is math, a single $ is money
    (r"\\[()\[\],!;:]|\\(?:left|right|displaystyle)(?![a-z])", ""),
    (r"\\ |~|\\quad(?![a-z])", " "),
    (r"\{,\}", ","),
    (WRAPPERS, r"\1"), (WRAPPERS, r"\1"),       # twice: \text{\textbf{A}}
    (r"\^ ?\{? ?\\circ ?\}?|\\degree(?![a-z])", "°"),
    (r"\\[dtc]?frac ?(?:\{([^{}]+)\}|(\d)) ?(?:\{([^{}]+)\}|(\d))", _fraction),
    (r"\\([%$#&_])", r"\1"),
    (r"\\(?:times|cdot)(?![a-z])", "×"),
    (r"\\pi(?![a-z])", "π"),
    (r"([\^_])\{([+-]?\w+)\}", r"\1\2"),
    (r"\b(?:square|sq\.?) ([a-z]+)", r"\1^2"), (r"\bcubic ([a-z]+)", r"\1^3"),
    (r" ?([=+\-*/×^:<>()\[\]{}]) ?", r"\1"),
    (r"^([+-]?)10\^", r"\g<1>1×10^"),
)]

# Possessive quantifiers (*+, ++) give back no digit once read, so a kilobyte of digits costs one pass.
DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})++|\d++)(?:\.\d*+)?+|\.\d++)"
SCALES = {"hundred": 2, "thousand": 3, "k": 3, "million": 6, "billion": 9, "trillion": 12}
NUMBER = re.compile(rf"""
    (?:(?P<name>[a-z]\w{{0,9}}=))?  (?P<sign>[+-]?)  (?P<money>[$€£¥]?)
    (?P<top>{DIGITS})  (?: /(?P<bottom>[1-9]\d*+) | [ ](?P<mixed>\d++/[1-9]\d*+) )?
    (?: (?:[×x*]10\^|e)(?P<exponent>[+-]?\d{{1,3}}) )?  (?: [ ]?(?P<scale>{'|'.join(SCALES)})(?![a-z]) )?
    (?P<gap>[ ]?)  (?P<unit>[$€£¥] | [a-z°%]++(?:\^?\d)?(?:/[a-z]++(?:\^?\d)?)? )?""", re.ASCII | re.VERBOSE)

# One spelling per unit. After a space any word of three letters or more is a unit too ("7 apples"), but
# shorter ones only if listed: 3x, 2ab and 5th are not a number with its unit.
UNITS = {"", *"$ € £ ¥ % m s g h l v w j mm cm km mg kg ml kw mw hz kb mb gb in ft oz min ms am pm".split()}
UNIT_NAMES = dict(pair.split("=") for pair in """percent=% degree=° deg=° dollar=$ usd=$ euro=€ hour=h hr=h
    minute=min second=s sec=s meter=m metre=m centimeter=cm centimetre=cm kilometer=km kilogram=kg""".split())
NOT_UNITS = set("and sin cos tan log exp sqrt half halve third quarter dozen".split())


def _unit(word, gap):
    """One spelling of a unit ("" for no word), or None if the word is not a unit."""
    stem, power = re.fullmatch(r"([a-z°%$€£¥]*)(.*)", word).groups()
    stem = stem[:-1] if len(stem) > 3 and stem.endswith("s") else stem
    any_word = gap and len(stem) > 2 and stem not in NOT_UNITS
    if stem in UNITS or stem in UNIT_NAMES or "°" in stem or any_word:
        return UNIT_NAMES.get(stem, stem) + power.replace("^", "")
    return None


def canonical(answer):
    r"""The key (value, unit) an answer is compared by, or None for what is never an answer.

    value: an exact Fraction if the whole answer is one number, else its text without case, LaTeX and spacing.
    unit: "" or what stands around the number: a unit, a currency, "%", or the name in "x = 5".
    A percentage is a number with the unit %: 25% goes with 25, not with 0.25 (which may be one as well).
    No algebra and no rounding: 2/4 is 0.5, but 0.33 is not 1/3 (0.33 = 1/3 = 0.333 would make 0.33 = 0.333).

    >>> canonical("1,000"), canonical(r"$\frac{1}{2}$ cm"), canonical(" Q1. "), canonical("n/a")
    ((Fraction(1000, 1), ''), (Fraction(1, 2), 'cm'), ('q1', ''), None)
    """
    if not isinstance(answer, str) or len(answer) > MAX_ANSWER:
        return None
    text = " ".join(answer.translate(CHARACTERS).casefold().split())
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(" .,;:")
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`*":          # "Paris", **Paris**
        text = text[1:-1].strip().rstrip(" .,;:")
    if text in NOT_ANSWERS:
        return None
    number = NUMBER.fullmatch(text)
    unit = _unit(number["unit"] or "", number["gap"]) if number else None
    if unit is not None:
        value = Fraction(number["top"].replace(",", "")) / int(number["bottom"] or 1)
        value += Fraction(number["mixed"] or 0)
        value *= Fraction(10) ** (int(number["exponent"] or 0) + SCALES.get(number["scale"], 0))
        return -value if number["sign"] == "-" else value, unit or number["money"] or number["name"] or ""
    choice = re.fullmatch(r"\(?([a-z])\)?", text, re.ASCII)                     # (B), B) and B. are choice B
    return (choice[1] if choice else re.sub(r" ?, ?", ",", text)), ""


def answers_match(a, b):
    r"""Do two answers say the same? Never raises, always fast. What is never an answer does not match itself.

    A number without a unit matches it with any unit, two different units do not match: see `vote`.

    >>> answers_match("42", "42.0"), answers_match(r"25\%", "25%"), answers_match("5 cm", "5")
    (True, True, True)
    >>> answers_match("10", "1"), answers_match("-7", "7"), answers_match("none", "none")
    (False, False, False)
    """
    a, b = canonical(a), canonical(b)
    return a is not None and b is not None and a[0] == b[0] and (a[1] == b[1] or "" in (a[1], b[1]))


def vote(answers):
    """(majority answer, consistency c = its votes / len(answers)); (None, 0.0) if nothing could be read.

    Answers with equal keys form a camp. "5" matches both "5 cm" and "5 m", which differ, so matching alone
    makes no camps: a bare number joins the unit most often given with that number, and no other.
    Hence c is exactly the share of answers that match the majority answer. Ties go to the camp seen first.

    >>> vote(["7", "5", None, "7.0"])
    ('7', 0.5)
    >>> vote(["5", "5 cm", "5 cm", "5 m"])
    ('5 cm', 0.75)
    >>> vote(["b", "a"]), vote(["unknown", "unknown"])
    (('b', 0.5), (None, 0.0))
    """
    keys = [canonical(answer) for answer in answers]
    counts = Counter(key for key in keys if key)               # a Counter keeps the order of first appearance
    camp = {}
    for value, unit in counts:
        united = [key for key in counts if key[0] == value and key[1]] if not unit else []
        camp[value, unit] = max(united, key=counts.get) if united else (value, unit)    # max: first of equals
    votes = Counter(camp[key] for key in keys if key)
    if not votes:
        return None, 0.0
    winner = max(votes, key=votes.get)
    return answers[keys.index(winner)], votes[winner] / len(answers)


# ------------------------------------------------------------------------------------ s, c, d and the filters


def _share(name, value):
    if not 0 <= value <= 1:                     # also refuses nan, for which every comparison is false
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
    easy, hard = _share("easy_consistency", easy_consistency), _share("hard_consistency", hard_consistency)
    return easy >= 0.5 and 0.25 <= hard <= 0.75


# ---------------------------------------------------------------------------------------- variety of a batch


def bleu_matrix(texts):
    """[n, n] sentence BLEU-4 on whitespace tokens: entry (i, j) has hypothesis i and reference j.

    BLEU = min(1, e^(1 - len_j / len_i)) * (p1 p2 p3 p4)^(1/4); a count of zero in p is replaced by 0.1;
    without any common word BLEU = 0. Texts under four words have no 4-gram: even equal ones stay below 1.
    """
    words = [text.split() for text in texts]
    length = np.array([len(w) for w in words], dtype=float)                     # [n]
    log_precision = np.zeros((len(words), len(words)))
    for order in (1, 2, 3, 4):
        places = defaultdict(list)                                            # n-gram -> [(text, count), ...]
        for i, w in enumerate(words):
            for gram, count in Counter(zip(*(w[k:] for k in range(order)))).items():
                places[gram].append((i, count))
        match = np.zeros_like(log_precision)                                    # clipped counts in common
        for place in places.values():
            if len(place) > 1:                  # most n-grams are in one text only: far fewer steps than n^2
                text, count = np.array(place).T
                match[np.ix_(text, text)] += np.minimum.outer(count, count)
        np.fill_diagonal(match, np.maximum(length - order + 1, 0))              # all of a text is in itself
        if order == 1:
            common = match > 0
        total = np.maximum(length - order + 1, 1)[:, None]                      # n-grams of the hypothesis
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
    distance = 1 - (bleu + bleu.T)                                              # [n, n]
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

DIVERSITY_WEIGHT = 0.5                                                                  # w
FIELD_WEIGHTS = {"caption": 0.45, "easy_question": 0.20, "hard_question": 0.35}         # w_k


def proposer_rewards(proposals, judged, memory=(), memory_weight=0.0):
    """One dict per proposal. Give the whole batch at once: the terms T and V compare its proposals.

        R = 1/N sum_j 1[j rendered] (min(s_j, 0.5) + d_j) - E - T - V           (-1 if the proposal is None)

    judged[i]: N entries, one per code asked for, None where no picture came out. memory: captions of the last
    steps, for the optional term - memory_weight * (highest BLEU to one of them).
    Keys: reward, valid, rendered (share of N), solvability and difficulty (means over the rendered, else 0),
    content_type (normalised; None if invalid); what was taken off: easy_hard E, type T, diversity V, memory.
    """
    if len(proposals) != len(judged):
        raise ValueError(f"{len(proposals)} proposals, {len(judged)} lists of pictures: not one each")
    if not math.isfinite(memory_weight):
        raise ValueError(f"memory_weight is {memory_weight}, it should be a finite number")
    valid = [proposal for proposal in proposals if proposal is not None]        # n: only these are compared
    n = len(valid)
    types = [type_of(proposal) for proposal in valid]
    shares = {field: cluster_shares([getattr(p, field) for p in valid]) for field in FIELD_WEIGHTS}
    seen = [0.0] * n
    if memory_weight and memory and n:
        seen = bleu_matrix([p.caption for p in valid] + list(memory))[:n, n:].max(axis=1).tolist()

    rows, k = [], 0                                                            # k: place among the valid ones
    for proposal, pictures in zip(proposals, judged):
        row = dict(reward=-1.0, valid=0.0, rendered=0.0, solvability=0.0, difficulty=0.0,
                   easy_hard=0.0, type=0.0, diversity=0.0, memory=0.0, content_type=None)
        rows.append(row)
        if proposal is None:
            continue
        if not pictures:
            raise ValueError("a valid proposal came with an empty list, it should have one entry per code")
        drawn = [picture for picture in pictures if picture is not None]
        gain = sum(min(p.solvability, 0.5) + difficulty(p.consistency) for p in drawn) / len(pictures)
        if drawn:
            row["solvability"] = sum(p.solvability for p in drawn) / len(drawn)
            row["difficulty"] = sum(difficulty(p.consistency) for p in drawn) / len(drawn)
            # 1e-9: 1 - 0.8 is a hair below 0.2 in floating point; a mean of just 0.15 must not count as below
            row["easy_hard"] = 0.3 if row["difficulty"] < 0.15 - 1e-9 else 0.0
        f = types.count(types[k]) / n
        crowding = n * sum(weight * (shares[field][k] - 1 / n) for field, weight in FIELD_WEIGHTS.items())
        row.update(valid=1.0, rendered=len(drawn) / len(pictures), content_type=types[k],
                   type=0.15 * max(0.0, f - 0.5) / 0.5,
                   diversity=min(max(DIVERSITY_WEIGHT * crowding, -DIVERSITY_WEIGHT), DIVERSITY_WEIGHT),
                   memory=memory_weight * seen[k])
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
        raise ValueError("a picture was judged although there is no code, it should be None as well")
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
    alone = box and box[0] and rest.rfind(r"\boxed{") == 0 and box[1] == len(rest)     # rest is one box
    form = float(bool(alone) and thought.startswith("<think>"))
    accuracy = float(answers_match(extract_answer(reply), label))
    return dict(reward=0.9 * accuracy + 0.1 * form, accuracy=accuracy, format=form)
