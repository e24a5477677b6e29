"""The units of answers: 12 km/h, 12 kph and 12 kilometres per hour are the same, 12 km is not."""

import re
from collections import Counter

from support.writing import rewrite

# A unit and its other names, plurals aside. Upper and lower case tell only mW from MW and the like.
# The first ones are used with prefixes as well: km, kilometer.
PREFIXED = """m meter metre | g gram gramme gm | l L liter litre ltr | s sec second | A amp ampere |
V volt | W watt | J joule | N newton | Pa pascal | Hz hertz | Ω ω ohm | cal calorie | eV |
mol mole"""
TABLE = """in inch | ft foot feet | yd yard | mi mile | ha hectare | gal gallon | qt quart |
oz ounce | kg kilo | t tonne | lb pound | min minute | h hr hour | day | wk week | mo mth month |
yr year | am | pm | psi ψ | bar | atm | rpm | bpm | dB decibel | px pixel | K kelvin | bit | byte |
kb KB kilobyte | MB megabyte | GB gigabyte | TB terabyte | % percent pct | ° deg degree | MW | ton |
rad radian | °C C celsius centigrade | °F F fahrenheit | $ dollar usd us$ | € euro eur | £ gbp |
¥ yen jpy | yuan cny rmb | ₹ rupee inr rs | ₩ won krw | ¢ cent | hp horsepower | kn knot | acre |
tbsp tablespoon | tsp teaspoon | μm micron | pt point | person people | child children | man men |
woman women | pc piece | bus buses | leaf leaves | shelf shelves | knife knives"""
PREFIXES = dict(m="milli", k="kilo", c="centi", M="mega", G="giga", μ="micro", n="nano", h="hecto")
# Several units written as one word, and Chinese ones.
WORDS = """kph=km/h kmh=km/h kmph=km/h mph=mi/h mps=m/s sqft=ft^2 sqm=m^2 sqkm=km^2 cc=cm^3 wh=W*h
kwh=kW*h mwh=MW*h gwh=GW*h Nm=N*m 米=m 公里=km 千米=km 厘米=cm 毫米=mm 度=° 克=g 公斤=kg 千克=kg
吨=t 升=L 毫升=mL 秒=s 分钟=min 小时=h 天=day 元=yuan"""
COMPOUNDS = dict(pair.split("=") for pair in WORDS.split())
PHRASES = [
    (r"(?<=[a-z])-(?=[a-z])", " "),
    (r"(?:°|\bdeg(?:ree)?s?) ?(c|f)(?:elsius|ahrenheit)?\b", r"°\1"),
    (r"\bper cent\b", "%"),
    (r"(?:\b(?:square|sq\.?) |平方)([^\W\d_]+)|([a-z]) squared\b", r"\1\2^2"),
    (r"(?:\b(?:cubic|cu\.?) |立方)([^\W\d_]+)|([a-z]) cubed\b", r"\1\2^3"),
    (r" ?\bper ", "/"),
    (r"[^\W\d_]+", lambda word: COMPOUNDS.get(word[0]) or COMPOUNDS.get(word[0].lower(), word[0])),
]
# Right behind its number, a single letter is a unit if it is one of these: 5m, 12V, but not 3C.
GLUED = set("m s g h l L V W N J".split())
# They only describe a number: 5 units are 5, 5 m wide are 5 m.
SILENT = set("unit total long wide tall high deep old".split())
# What a number counts may be any word, but these change the number.
NOT_UNITS = """and or of to by sin cos tan log exp sqrt half halve third quarter dozen
less fewer below minus plus than""".split()


def singular(word):
    """One form for singular and plural; it need not be a word: boxes -> box, movies -> movy."""
    word = re.sub(r"(?<=[a-z]{2})ies?$", "y", word)
    word = re.sub(r"(ss|x|ch|sh|o)es?$", r"\1", word)
    return re.sub(r"(?<=[a-z])(?<![sui])s$", "", word)


# Each name of a unit, also with a prefix, in lower case and in the singular: its symbol.
SYMBOLS = {name: entry.split()[0] for entry in TABLE.split("|") for name in entry.split()}
for entry in PREFIXED.split("|"):
    symbol, *names = entry.split()
    for letter, prefix in {"": "", **PREFIXES}.items():
        forms = [letter + symbol, *(prefix + name for name in names)]
        SYMBOLS |= dict.fromkeys(forms, letter + symbol)
for name, symbol in [*SYMBOLS.items()]:
    for form in (singular(name.lower()), name.lower()):
        if len(form) > 1:
            SYMBOLS.setdefault(form, symbol)


def symbol_of(word, glued):
    """The symbol of a unit, the singular of another word that can be counted, or None."""
    if glued and re.fullmatch("[a-zA-Z]", word) and word not in GLUED:
        return None
    one = singular(word.lower())
    for form in (word, word.lower(), one):
        if form in SYMBOLS:
            return SYMBOLS[form]
    # 6个 counts something, whatever it is.
    counted = re.fullmatch(r"[^\W\d_]{3,}|[\u4e00-\u9fff]+", one)
    return one if counted and one not in NOT_UNITS and not glued else None


def unit_of(text, currency=""):
    """One spelling for what stands behind a number ("" for nothing), or None if it is no unit.

    currency: what stands before the number, as in $5 per kg.

    >>> unit_of(" km per hour"), unit_of("kph"), unit_of(" square metres"), unit_of("x")
    ('h^-1 km', 'h^-1 km', 'm^2', None)
    """
    if len(text) > 60:
        return None
    glued = text[:1] != " " and text[:1].isascii()
    text = rewrite(text.strip(" ."), PHRASES, re.IGNORECASE)
    powers, others = Counter(), []
    for place, side in enumerate(text.split("/")):
        for factor in re.findall(r"[^ ·*×()]+", side):
            parts = re.fullmatch(r"([^\d^]+)(?:\^?([+-]?\d))?", factor)
            word = parts and symbol_of(parts[1].rstrip("."), glued)
            if word is None:
                return None
            glued = False
            if word not in SYMBOLS:
                others.append(parts[1])
            if word not in SILENT:
                powers[word] += int(parts[2] or 1) * (-1 if place else 1)

    # "12 small red circles" counts circles, "2 Main Street" is an address.
    if len(others) > 3 or (len(others) > 1 and not "".join(others).islower()):
        return None
    currency = SYMBOLS.get(currency.strip(" .").lower(), currency.strip())
    if currency:
        powers[currency] = 1
    names = [f"{name}^{power}" if power != 1 else name for name, power in sorted(powers.items())]
    return " ".join(names)
