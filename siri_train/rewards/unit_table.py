"""Tables for ``units``: the units that are known, and the words that are no counted things."""

from __future__ import annotations

from siri_train.rewards.number_words import PARTS, PLURALS

_PREFIXES = {
    "": "",
    "kilo": "k",
    "centi": "c",
    "milli": "m",
    "micro": "μ",
    "nano": "n",
    "mega": "M",
    "giga": "G",
    "deci": "d",
    "tera": "T",
    "pico": "p",
    "hecto": "h",
}

# Name -> (symbol, prefixes that are used with it).
_PREFIXED = {
    "meter": ("m", "kilo centi milli micro nano deci"),
    "gram": ("g", "kilo milli micro centi"),
    "liter": ("L", "milli centi deci micro kilo"),
    "second": ("s", "milli micro nano pico"),
    "newton": ("N", "kilo mega milli"),
    "joule": ("J", "kilo mega milli giga"),
    "watt": ("W", "kilo mega milli giga micro"),
    "watthour": ("Wh", "kilo mega giga"),
    "pascal": ("Pa", "kilo mega giga hecto"),
    "volt": ("V", "kilo milli micro mega"),
    "ampere": ("A", "milli micro nano kilo"),
    "coulomb": ("C", "milli micro nano pico"),
    "hertz": ("Hz", "kilo mega giga tera"),
    "mole": ("mol", "milli micro kilo nano"),
    "calorie": ("cal", "kilo"),
    "byte": ("B", "kilo mega giga tera"),
    "ohm": ("Ω", "kilo mega milli"),
    "electronvolt": ("eV", "kilo mega giga"),
    "tesla": ("T", "milli"),
    "farad": ("F", "milli micro nano pico"),
    "weber": ("Wb", "milli"),
    "becquerel": ("Bq", "kilo mega"),
    "gray": ("Gy", "milli"),
    "sievert": ("Sv", "milli micro"),
    "candela": ("cd", ""),
    "lumen": ("lm", ""),
    "lux": ("lx", ""),
}

# Base name -> its other spellings. Plurals are made from the words of three letters and more.
_OTHERS = {
    "kelvin": "K °K",
    "minute": "min mins",
    "hour": "h hr hrs",
    "second": "sec secs",
    "day": "",
    "week": "wk wks",
    "month": "mo",
    "year": "yr yrs",
    "decade": "",
    "century": "",
    "fortnight": "",
    "inch": "in inches ins",
    "foot": "ft feet",
    "yard": "yd yds",
    "mile": "mi",
    "furlong": "",
    "acre": "",
    "hectare": "ha",
    "pound": "",
    "lb": "lbs",
    "ounce": "oz",
    "ton": "",
    "tonne": "",
    "stone": "",
    "gallon": "gal gals",
    "quart": "qt qts",
    "pint": "pt pts",
    "cup": "",
    "teaspoon": "tsp",
    "tablespoon": "tbsp",
    "fluidounce": "floz",
    "nauticalmile": "nmi",
    "lightyear": "ly lightyr",
    "knot": "",
    "dollar": "USD usd $ US$ buck",
    "euro": "EUR eur €",
    "sterling": "GBP gbp £ quid",
    "yen": "JPY jpy ¥",
    "yuan": "CNY RMB rmb",
    "rupee": "INR Rs rs ₹",
    "peso": "",
    "franc": "CHF",
    "ruble": "rouble",
    "cent": "¢",
    "penny": "pence pennies",
    "degree": "° deg degs",
    "celsius": "°C",
    "fahrenheit": "°F",
    "radian": "rad rads",
    "gradian": "",
    "revolution": "rev revs",
    "unit": "",
    "amp": "",
    "horsepower": "hp",
    "bit": "",
    "pixel": "px",
    "decibel": "dB db",
    "atmosphere": "atm",
    "bar": "",
    "mmHg": "mmhg",
    "person": "people persons",
    "child": "children",
    "man": "men",
    "woman": "women",
}

SINGLE_LETTERS = frozenset("m g L l s N J W V A C F K h T B".split()) | {"Ω"}
"""Units of one letter: known only when upright or set apart (``5 m``, ``5\\text{m}``, ``m/s``)."""

MONEY = {"$": "dollar", "€": "euro", "£": "sterling", "¥": "yen", "₹": "rupee"}
"""Signs that stand in front of an amount."""


def _plural(name: str) -> str:
    return name[:-1] + "ies" if name.endswith("ury") else name + "s"


def _table() -> dict[str, str]:
    table: dict[str, str] = {}

    def add(base: str, *spellings: str) -> None:
        for spelling in spellings:
            table.setdefault(spelling, base)

    for name, (symbol, prefixes) in _PREFIXED.items():
        for prefix in ["", *prefixes.split()]:
            base = prefix + name
            short = _PREFIXES[prefix] + symbol
            words = [base, _plural(base)]
            if name in ("meter", "liter"):  # the British spelling
                words += [base[:-2] + "re", base[:-2] + "res"]
            add(base, *words, short)
            if short.startswith("μ"):
                add(base, "u" + short[1:])
            if name == "liter":
                add(base, short[:-1] + "l")
            if len(short) == 2 and name == "gram":
                add(base, short + "s")
    for base, others in _OTHERS.items():
        add(base, base, _plural(base), *others.split())
        for other in others.split():
            if len(other) > 3 and not other.endswith("s"):
                add(base, _plural(other))
    add("kilometer", "kms")
    add("centimeter", "cms")
    add("watthour", "Wh")
    add("kilowatthour", "kwh", "KWh")
    add("gram", "gm", "gms")
    add("second", "sec.")
    add("ampere", "amp", "amps")
    add("kilobyte", "KB")
    add("cubiccentimeter", "cc")
    return table


KNOWN = _table()
"""Spelling -> base name. Spellings of at most two letters are case-sensitive."""

GLUED = {
    prefix + symbol
    for name, (symbol, prefixes) in _PREFIXED.items()
    if name not in ("byte", "watthour", "candela", "lumen", "lux")
    for prefix in ("", *(_PREFIXES[prefix] for prefix in prefixes.split()))
} | {"K", "h"}
GLUED -= {"ms"}
"""Symbols that are written one behind the other: ``kgm^{-3}`` is kg m^-3. In front of an exponent
``ms`` is m s, as in ``ms^{-1}``."""

COMPOUND = {
    "mph": (("mile", 1), ("hour", -1)),
    "kph": (("kilometer", 1), ("hour", -1)),
    "kmph": (("kilometer", 1), ("hour", -1)),
    "kmh": (("kilometer", 1), ("hour", -1)),
    "mps": (("meter", 1), ("second", -1)),
    "rpm": (("revolution", 1), ("minute", -1)),
    "cc": (("centimeter", 3),),
    "sqft": (("foot", 2),),
    "Nm": (("newton", 1), ("meter", 1)),
    "psi": (("pound", 1), ("inch", -2)),
    "mpg": (("mile", 1), ("gallon", -1)),
}
"""Abbreviations of several units."""

CAPITALS = frozenset("CM KM KG ML MM LB LBS OZ FT HR HRS YD CC KWH".split())
"""Abbreviations that are also written in capitals."""

AMBIGUOUS = (
    frozenset(["pound", "lb"]),
    frozenset(["pound", "sterling"]),
    frozenset(["coulomb", "celsius"]),
    frozenset(["farad", "fahrenheit"]),
)
"""Pairs of which one spelling may mean the other: pounds, C, F."""

MEASURED = frozenset("long wide tall high deep thick old away apart each total altogether".split())
"""Words behind a unit that do not change it."""

TWO_WORDS = {
    ("light", "year"): "lightyear",
    ("fluid", "ounce"): "fluidounce",
    ("fl", "ounce"): "fluidounce",
    ("nautical", "mile"): "nauticalmile",
    ("watt", "hour"): "watthour",
    ("kilowatt", "hour"): "kilowatthour",
    ("degree", "celsius"): "celsius",
    ("degree", "fahrenheit"): "fahrenheit",
    ("degree", "coulomb"): "celsius",  # the letter C
    ("degree", "kelvin"): "kelvin",
    ("us", "dollar"): "dollar",
    ("electron", "volt"): "electronvolt",
}

# Words that scale, negate, order, compare, direct, connect or judge: with one of them behind it a
# number says something else. Closed classes of English (articles, pronouns, prepositions,
# conjunctions, auxiliaries) are listed whole.
NOT_COUNTED = frozenset(
    """
    lakh crore grand mil kilo mega giga milli micro doubled tripled quadrupled halved increased
    decreased raised eleventh elevenths myriad myriads googol mio bn mn zillion nope nah untrue
    rejected excluded omitted removed disproved refuted conjugate exponent complement negation
    hundred thousand million billion trillion quadrillion hundreds thousands millions billions
    trillions dozen dozens gross score percent percentage pct couple half halves third thirds
    quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths
    ninth ninths tenth tenths twelfth hundredth hundredths thousandth thousandths millionth
    millionths first double triple quadruple twice thrice once time times fold tens ones zero one
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety squared
    cubed square cubic factorial choose mod modulo modulus remainder root roots power powers base
    log reciprocal inverse multiple multiples multiplied divided plus minus negative positive add
    added subtract subtracted less more fewer least most greater smaller larger bigger lower
    higher longer shorter older younger approximately about around roughly nearly almost exactly
    only maybe perhaps possibly probably unknown guess wrong incorrect correct right left invalid
    undefined impossible infinite infinity never not none nothing neither nor true false yes maybe
    imaginary complex radical decimal binary octal hexadecimal hex pi below above under over up
    down forward backward north south east west northeast northwest southeast southwest northern
    southern eastern western clockwise counterclockwise anticlockwise inward outward upward
    downward upwards downwards loss debt owed deficit short late early behind ahead noon midnight
    morning afternoon evening night ago later before after past until since today tomorrow
    yesterday january february march april may june july august september october november
    december jan feb mar apr jun jul aug sep sept oct nov dec monday tuesday wednesday thursday
    friday saturday sunday the a an this that these those each every all any some many much few
    several both either another other i you he she it we they me him her us them my your his its
    our their who whom whose which what when where why how there here then thus hence so therefore
    because since although though unless while whereas whether if else otherwise and or but yet
    xor of in on at by for from to into onto with without within between among through during per
    as than like near off out against toward towards upon via except excluding including is are
    was were be been being am has have had do does did will would shall should can could may might
    must wait actually however instead also too very just even odd still again already sure answer
    mean median mode average
    """.split()
) - {"square", "cubic"} | {*PARTS, *PLURALS}
"""Lower-case words that are never a counted thing."""
