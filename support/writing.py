r"""One way of writing for what models write in many: LaTeX, Unicode, words, signs with spaces.

Every pattern takes linear time, whatever the text, and groups are opened at most six deep.
"""

import re
import unicodedata
from html.entities import html5

INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\u202a\u202c\ufeff"
CHARACTERS = str.maketrans(
    "−–—‐‑―⁻⋅∙•º˚“”„«»‘’`´。、÷∶", '-------···°°"""""\'\'\'\'.,/:', INVISIBLE
)
GREEK = {name[:-1]: char for name, char in html5.items() if "α" <= char <= "ω"}
# LaTeX commands that HTML knows under another name, or not at all.
COMMAND_SYMBOLS = """cdot=· div=/ neq=≠ infty=∞ to=→ triangle=△ circ=° degree=° textdegree=°
pounds=£ celsius=°C ldots=... dots=... left= right= displaystyle= textstyle= bf= it= rm="""
SYMBOLS = dict(pair.split("=") for pair in COMMAND_SYMBOLS.split())


def command(match):
    r"""The character for a LaTeX command: \le, \pi, \varphi. Other commands stay as they are."""
    name = match[1].removeprefix("var")
    return SYMBOLS[name] if name in SYMBOLS else html5.get(f"{name};", match[0])


def bracketed(text, simple):
    return text if re.fullmatch(simple, text) else f"({text})"


def fraction(match):
    r"""\frac{a}{b} as a/b. The space keeps 1\frac{1}{2} a mixed number, 1 1/2."""
    # A space before a factor means nothing: 3 π, 3 x.
    factor = r"(?<=[\dα-ω]) (?=[√α-ω]|[^\W\d](?![^\W\d]))"
    top, bottom = (re.sub(factor, "", part.strip()) for part in match.groups() if part)
    top = bracketed(top, r"[+-]?[\w.√]+")
    bottom = bracketed(bottom, r"[\d.]+|√?\d+|√?[^\W\d]")
    return f" {top}/{bottom}"


def root(match):
    r"""\sqrt{13}, \sqrt13, sqrt(13) and √(13) as √13; \sqrt[3]{13} as √[3]13."""
    degree = f"[{match[1]}]" if match[1] else ""
    inside = next(group for group in match.groups()[1:] if group is not None)
    return f"√{degree}" + bracketed(inside.strip(), r"[\d.]+|[^\W\d]")


def rewrite(text, rules, flags=0):
    """Replace what the patterns match, one rule (pattern, replacement) after the other."""
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text, flags=flags)
    return text


WRAPPER = r"\\(?:(?:text|math|bold|under)(?!color)[a-z]*|operatorname|[mhf]?box(?:ed)?|bm|emph)"
ROOT = r"(?:\\sqrt|√|(?<![a-zA-Z\\])sqrt) ?(?:\[(\d)\])? ?"

# LaTeX without braces, once.
COMMANDS = [
    # $...$ is math, a single $ is money.
    (r"(?<!\\)\$((?:[^$\\]|\\.)*+)\$", r"\1"),
    (r"(?<=\d)\\[,;:](?=\d)|\\[()\[\]{}!]", ""),
    (r"\\[ ,;:\\]|~|\\q?quad(?![a-z])", " "),
    (r"(?<!\w)(?:\*\*|__)|(?:\*\*|__)(?!\w)|`|</?(?:b|i|em|strong|answer)>", ""),
    (r"\{,\}", ","),
    (r"\\(?:text)?color ?\{[^{}]*\}", ""),
    (r"\^ ?\{? ?(?:\\circ(?![a-z])|°) ?\}?", "°"),
    (r"\\([a-zA-Z]+) ?", command),
    (r"\\([%$#&_])", r"\1"),
]
# Groups, from the innermost braces outwards.
GROUPS = [
    (WRAPPER + r" ?\{([^{}]*)\}", r"\1"),
    (ROOT + r"(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[^\W\d_]))", root),
    (r"\\[dtc]?frac ?(?:\{([^{}]+)\}|(\w)) ?(?:\{([^{}]+)\}|(\w))", fraction),
    (r"(\^|_) ?\{([^{}]*)\}", lambda power: power[1] + bracketed(power[2].strip(), r"[+-]?\w+")),
]
SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NAMES = {**GREEK, "infinity": "∞", **{word: str(number) for number, word in enumerate(SMALL)}}
for number in range(20, 100):
    ten, one = TENS[number // 10 - 2], SMALL[number % 10]
    NAMES[f"{ten}-{one}" if number % 10 else ten] = str(number)
WORD = r"(?<![a-z\\])(?:(?:{})[- ](?:{})\b|[a-z]++)".format("|".join(TENS), "|".join(SMALL[1:10]))
PARTS = "half third fourth fifth sixth seventh eighth ninth tenth".split()


def part_of_one(match):
    """Half, a third, two thirds; one and a half keeps its whole number in front."""
    whole, count, name = match.groups()
    if not count and name.lower() != "half":
        return match[0]  # "third" alone is a place
    count = count if (count or "").isdigit() else "1"
    return f"{whole or ''} {count}/{PARTS.index(name.lower()) + 2}"


# "It rose, so the answer is (B)", but not "it is not (B)".
SENTENCE = r"^(?![^(\[]*(?:\bnot\b|n't))[^(\[]*\b(?:is|be|pick|choose):? "
SENTENCE += r"(?=[(\[]?[A-J](?:[)\]]|\.?$))"
# The correct answer is, option: before anything, option before a letter.
LEAD = r"(?:(?:the|my|final|correct|right|best) )*(?:answer|option|choice|letter)s?"
LEAD += r"(?:[:=]| (?:is|are)[: ]| (?=[(\[]?[A-J]\b))+"
# Words and signs, in lower case or not.
WORDS = [
    (r"^((?-i:[A-J])) - (?=.*[^\W\d]{2}|\d)", r"\1: "),
    (WORD, lambda word: NAMES.get(word[0].lower().replace(" ", "-"), word[0])),
    (r"^(?:(\d+) and )?(?:(\d+|an?)[ -])?({})s?$".format("|".join(PARTS)), part_of_one),
    (r"^(?:minus|negative) (?=[\d.$])", "-"),
    (r"\b(?:the )?square root of ", "√"),
    (r"_(\d)", r"\1"),
    (r"(?<=\d) ?[x×*·] ?(?=\d)", "×"),
    (r" (?=[=+\-*/×·^:<>)≤≥≠≈→±])|(?<=[=+\-*/×·^:<>(≤≥≠≈→±]) ", ""),
    # 2 (x + 1) is 2(x+1), but words stand apart.
    (r"(?<![^\W\d]{2}) (?=\()|(?<=\)) (?![^\W\d]{2})", ""),
    # (17/6)cm has brackets that mean nothing, and so has [(2,3)].
    (r"^([+-]?)\(([\d./]+)\)(?= ?[^\W\d]|[°%√])", r"\1\2"),
    (r"^[(\[](\([^()]*\))[)\]]$", r"\1"),
    (r"(?<=[\dα-ω)])(?:[·*×](?=[^\W\d]|√|\()| (?=[√α-ω]))", ""),
    (r"->|[<>]=", lambda sign: {"->": "→", "<=": "≤", ">=": "≥"}[sign[0]]),
    (r"(?<=\d)\^(st|nd|rd|th)\b", r"\1"),
    (r"(?<=\d) ?([ap])\.?m\b\.?", r" \1m"),
    (r"(?<=\d)[ -]to[ -](?=\d)", ":"),
    (r"^([+-]?)10\^", r"\g<1>1×10^"),
    (r"(?<![\w/.-])(\d{4})[-/.]0?(\d{1,2})[-/.]0?(\d{1,2})(?![\w/-])", r"\1-\2-\3"),
    (r"(?<![\w:.])0(?=\d:\d\d)|:00(?= [ap]m\b)", ""),
    (SENTENCE, ""),
    (rf"^(?:(?:so|thus|therefore),? )?(?:{LEAD})+(?=.)", ""),
    (r" (?:is|are) (?:the )?(?:correct|right|best)(?: (?:answer|option|choice)s?)?\.?$", ""),
    (r"^(?:approximately |about |≈|约)(?=\d)", ""),
]


def plain(answer, longest=500):
    r"""The answer in one way of writing: no LaTeX, no rare characters, no spaces around signs.

    Characters may stand for several: what becomes longer than `longest` is no answer, but "".

    >>> plain(r"$\frac{\sqrt{3}}{2}\,\text{cm}$"), plain("Twenty-one × 10³"), plain("2 pi")
    ('√3/2 cm', '21×10^3', '2π')
    """
    text = re.sub("([⁰¹²³⁴-⁹⁺⁻]+)", r"^\1", answer)
    text = re.sub("([¼-¾⅐-⅞])", r" \1", text)
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text)
    text = unicodedata.normalize("NFKC", text.translate(CHARACTERS)).replace("⁄", "/")
    text = text.replace("∛", "√[3]")
    text = " ".join(text.split())
    if len(text) > longest:
        return ""
    text = rewrite(text, COMMANDS)
    for _ in range(6):
        text = rewrite(text, GROUPS)
    text = " ".join(re.sub("[{}]", "", text).split())
    return rewrite(text, WORDS, re.IGNORECASE).strip()
