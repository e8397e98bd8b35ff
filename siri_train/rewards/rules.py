r"""Whether an answer is right, decided by rule as far as rules reach.

``decide`` spells both sides (``spelling``), recognises what kind each is, and compares kinds:

* **Numbers** (``number_forms``) are compared exactly, whatever form they are written in, words
  included. Where the gold is one number, ``0,5`` in the answer is a decimal comma.
* **Units** (``units``): when both sides have one, it must be the same unit; one side alone may have
  it. Words that scale are part of the number, all other words are part of the answer.
* **Named values**: ``x = 5`` is 5; two different names are different answers. ``x=1, y=2`` is the
  pair (1,2) in the order of the names.
* **Lists and sets** (``1, 2``; ``\{1,2\}``; ``1 or 2``; ``1 \pm 2``) have no order, tuples have
  one; intervals have theirs and their brackets, and an inequality in one variable is its interval;
  matrices have their shape. Different kinds are different, but a list without brackets may stand
  for a tuple in the same order. Several answers are never one.
* **Words and choices** (``words``) are compared as words; a choice may carry its text.
* **Number bases, primes, times** (``101_2``, ``f'``, ``3:30``) are compared as written.
* What contains characters that do not show is wrong.

What remains are two expressions of the same kind. Whether they are equal is a question for
math-verify, if ``guard`` lets it pass, and if the gold answer is an integer, only of an answer that
leaves nothing to compute (``40+2`` is not 42).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from siri_train.rewards.amounts import same_amounts
from siri_train.rewards.bases import based
from siri_train.rewards.extract import last_boxed
from siri_train.rewards.guard import OPERATION, question
from siri_train.rewards.names import claims, grouped, in_order, is_either, listed, without_name
from siri_train.rewards.number_forms import (
    LONGEST,
    looks_scientific,
    read_decimal_comma,
    read_number,
)
from siri_train.rewards.rounded import rounded_verdict
from siri_train.rewards.spelling import Malformed, is_visible, spell, without_invisible
from siri_train.rewards.structure import (
    Shape,
    as_interval,
    assignment,
    named_value,
    pieces,
    relation,
    shape,
)
from siri_train.rewards.text_form import clean, normalise, text_key
from siri_train.rewards.units import same_unit, split_unit
from siri_train.rewards.words import choice, is_words, same_words

Questions = list[tuple[str, str]]
"""(answer, gold) pairs that must all be equal; an empty list is right."""

_DEEPEST = 6
_LONGEST_LIST = 64
_APPROXIMATE = re.compile(r"\\approx(?![A-Za-z]) ?")
_POINT = re.compile(r"[A-Z](?:_\{[0-9A-Za-z]+\}|'+)? ?(\(.*\))", re.S)
_GAP = r"(?:\s|\\[ ,;:]|~|\\q?quad(?![A-Za-z]))"
_APART = re.compile(rf"(?<=[0-9])(?:{_GAP}+,{_GAP}*|,{_GAP}+)(?=[0-9])")
_BRACKETS = re.compile(r"[(\[{]")
_UPRIGHT = re.compile(r"[-+]?[0-9.,]+ [A-Za-z]")
_SUM_OF_NAMES = re.compile(r"[A-Za-z](?: ?[+-] ?[A-Za-z])+")


def decide(answer: str, gold: str) -> bool | Questions:
    r"""Whether ``answer`` is right, or the comparisons that decide it.

    Args:
        answer: the content of a box.
        gold: the right answer, bare or inside its own ``\boxed{}``.

    Returns:
        True, False, or the pairs of expressions that must all be equal.
    """
    if len(answer) > LONGEST or len(gold) > LONGEST:
        return answer.strip() == gold.strip() != ""
    boxed = last_boxed(gold)
    gold = gold if boxed is None else boxed
    rounded = rounded_verdict(answer, gold)
    if rounded is not None:
        return rounded
    if answer.strip() == gold.strip():
        return bool(normalise(answer))
    if not is_visible(answer):
        return False
    gold = without_invisible(gold)
    if len(_APART.findall(answer)) == 1 and not _BRACKETS.search(answer):
        answer = _APART.sub(";", answer)  # "0, 5" is a list, "0,5" may be a decimal
    try:
        left, right = clean(spell(answer)), clean(spell(gold))
    except Malformed:
        return normalise(answer) == normalise(gold) != ""
    left, right = _as_equal(left, right)
    if not text_key(left) or not text_key(right):
        return False
    result = _compare(left, right, 0)
    return result if result != [] else True


def _as_equal(answer: str, gold: str) -> tuple[str, str]:
    r"""Both with ``\approx`` taken for equality, where the gold is a decimal.

    About 3.14 is 3.14, which was rounded itself; about 42 is not 42.
    """
    if r"\approx" not in answer + gold:
        return answer, gold
    gold = clean(_APPROXIMATE.sub("=", gold))
    number = read_number(gold.rpartition("=")[2])
    if number is None or number.digits is None or number.value.denominator == 1:
        return answer, gold
    return clean(_APPROXIMATE.sub("=", answer)), gold


def _compare(answer: str, gold: str, depth: int) -> bool | Questions:
    if depth > _DEEPEST or not answer or not gold:
        return False
    answer, gold = grouped(_unwrapped(answer)), grouped(_unwrapped(gold))
    if text_key(answer) == text_key(gold):
        return answer == gold or not _units_differ(answer, gold)
    for rule in (_by_choice, _by_number, _by_name, _by_interval, _by_shape):
        decided = rule(answer, gold, depth)
        if decided is not None:
            return decided
    return _by_expression(answer, gold, depth)


def _units_differ(answer: str, gold: str) -> bool:
    """Whether blanks make two units of one text: 3 ms are not 3 m s."""
    if not (_UPRIGHT.match(answer) and _UPRIGHT.match(gold)):
        return False
    unit, gold_unit = split_unit(answer)[1], split_unit(gold)[1]
    return unit is not None and gold_unit is not None and not same_unit(unit, gold_unit)


def _unwrapped(text: str) -> str:
    found = shape(text)
    return found.parts[0] if found.kind == "single" else text


def _by_choice(answer: str, gold: str, depth: int) -> bool | Questions | None:
    right = choice(gold)
    if right is None:
        return None
    given = choice(answer)
    if given is None:
        return False if right[1] else None
    if right[0] == gold and gold.islower() and not given[1]:
        return None  # a variable, or a choice without its text
    letter = given[0]
    if right[0].isupper() and right[0] in "ABCDE" and letter in "abcde":
        letter = letter.upper()
    if letter != right[0]:
        return False
    if given[1] and right[1]:
        return _compare(clean(given[1]), clean(right[1]), depth + 1)
    return True


def _by_number(answer: str, gold: str, depth: int) -> bool | Questions | None:
    one, two = based(answer), based(gold)
    if one is not None or two is not None:
        return one == two
    amounts = same_amounts(answer, gold)
    if amounts is not None:
        return amounts
    (body, unit), (gold_body, gold_unit) = split_unit(answer), split_unit(gold)
    # Beside "5 meters", the m of "5m" is a unit.
    if unit is None and gold_unit is not None:
        close = split_unit(answer, closed_up=True)
        if close[1] is not None and same_unit(close[1], gold_unit):
            body, unit = close
    elif gold_unit is None and unit is not None:
        close = split_unit(gold, closed_up=True)
        if close[1] is not None and same_unit(close[1], unit):
            gold_body, gold_unit = close
    if unit is not None and gold_unit is not None and not same_unit(unit, gold_unit):
        return False
    left, right = read_number(body), read_number(gold_body)
    if right is not None:
        if left is not None:
            return left.equals(right)
        comma = read_decimal_comma(body)
        if comma is not None and comma.equals(right):
            return True
    if (body, gold_body) != (answer, gold):
        return _compare(body, gold_body, depth + 1)
    if looks_scientific(text_key(answer)) and left is None:
        return False  # an exponent out of bounds
    return None


def _by_name(answer: str, gold: str, depth: int) -> bool | Questions | None:
    parts, gold_parts = listed(answer), listed(gold)
    values, gold_values = assignment(parts), assignment(gold_parts)
    if bool(values and is_either(answer)) != bool(gold_values and is_either(gold)):
        return False  # "x=1 or y=2" is no pair
    if values is not None and gold_values is not None:
        if values.keys() != gold_values.keys():
            return False
        return _all_of([(values[name], gold_values[name]) for name in sorted(values)], depth)
    if values is not None:
        answer = f"({','.join(in_order(values))})"
        return _compare(answer, gold, depth + 1)
    if gold_values is not None:
        gold = f"({','.join(in_order(gold_values))})"
        return _compare(answer, gold, depth + 1)
    if len(parts) > 1 or len(gold_parts) > 1:
        short, gold_short = without_name(parts), without_name(gold_parts)
        if short is None and gold_short is None:
            return None
        if short and gold_short and short[0] != gold_short[0]:
            return False
        answer = answer if short is None else short[1]
        gold = gold if gold_short is None else gold_short[1]
        return _compare(answer, gold, depth + 1)
    named, gold_named = named_value(answer), named_value(gold)
    if named is not None and gold_named is not None:
        if text_key(named[0]) == text_key(gold_named[0]):
            return _compare(named[1], gold_named[1], depth + 1)
        # y=2x and x=y/2 are one equation; f(2)=5 and f(3)=5 are two.
        return None if len(named[0]) == len(gold_named[0]) == 1 else False
    if named is not None and not claims(gold):
        return _compare(named[1], gold, depth + 1)
    if gold_named is not None and not claims(answer):
        return _compare(answer, gold_named[1], depth + 1)
    # "m+n=17" where m+n is asked for; "2x=4" claims something else.
    sides, signs = relation(answer)
    if signs == ["="] and sides[1] and read_number(gold) and _SUM_OF_NAMES.fullmatch(sides[0]):
        return _compare(sides[1], gold, depth + 1)
    return None


def _by_interval(answer: str, gold: str, depth: int) -> bool | Questions | None:
    left, right = _range(answer), _range(gold)
    if left is None and right is None:
        return None
    if left is not None and right is not None:
        return left[0] == right[0] and _compare(left[1], right[1], depth + 1)
    if left is not None and not claims(gold):
        return _compare(left[1], gold, depth + 1)
    if right is not None and not claims(answer):
        return _compare(answer, right[1], depth + 1)
    return None


def _range(text: str) -> tuple[str, str] | None:
    r"""(variable, interval) of an inequality or of ``x \in [1,2]``."""
    named = named_value(text)
    if named is not None and r"\in" in text and relation(text)[1] == [r"\in"]:
        return named
    return as_interval(text)


def _by_shape(answer: str, gold: str, depth: int) -> bool | Questions | None:
    left, right = _expanded(shape(answer)), _expanded(shape(gold))
    if left.kind != right.kind and "tuple" in (left.kind, right.kind):  # the point A(1,2)
        left, right = _without_point(left), _without_point(right)
    if left.kind == right.kind == "list" and _joined_otherwise(answer, gold):
        return False
    kinds = {left.kind, right.kind}
    if kinds == {"single"}:
        return None
    if kinds <= {"set", "list"}:
        return _unordered(left, right, depth)
    if kinds == {"union"}:
        return _unordered(left, right, depth)
    if left.kind == right.kind or kinds == {"tuple", "list"}:
        if left.rows != right.rows or len(left.parts) != len(right.parts):
            return False
        return _all_of(zip(left.parts, right.parts, strict=True), depth)
    if left.kind == "set" and len(left.parts) == 1:
        return _compare(left.parts[0], gold, depth + 1)
    if right.kind == "set" and len(right.parts) == 1:
        return _compare(answer, right.parts[0], depth + 1)
    # Intervals and unions may be sets with a name: a question, not a difference.
    ranges = {"union", "tuple", "[)", "(]", "[]", "set"}
    if kinds <= ranges | {"single"} and ("union" in kinds or r"\mathbb{" in answer + gold):
        pair_asked = question(answer, gold)
        return False if pair_asked is None else [pair_asked]
    return False


def _without_point(found: Shape) -> Shape:
    point = _POINT.fullmatch(found.parts[0]) if found.kind == "single" else None
    inside = found if point is None else shape(point[1])
    return inside if inside.kind == "tuple" else found


def _joined_otherwise(answer: str, gold: str) -> bool:
    """Whether one says "and" and the other "or", between words or inequalities."""
    (parts, one), (_, two) = pieces(answer, "comma"), pieces(gold, "comma")
    if {"and", "or"} != {word for word in {*one} ^ {*two} if word.isalpha()}:
        return False
    return any(is_words(part) or (claims(part) and named_value(part) is None) for part in parts)


def _expanded(found: Shape) -> Shape:
    r"""With ``1 \pm 2`` written as the two values that it stands for."""
    if found.kind not in ("single", "set", "list"):
        return found
    parts: list[str] = []
    for part in found.parts:
        name = named_value(part)
        value = part if name is None else name[1]
        if len(re.findall(r"\\pm(?![A-Za-z])", value)) != 1 or claims(value):
            parts.append(part)
            continue
        for sign, opposite in ("+-", "-+"):
            text = re.sub(r"\\pm(?![A-Za-z]) ?", sign, value)
            text = re.sub(r"\\mp(?![A-Za-z]) ?", opposite, text).strip()
            parts.append(re.sub(r"^\+|(?<=[({\[,])\+", "", text))
    if len(parts) == len(found.parts):
        return found
    return Shape("list" if found.kind == "single" else found.kind, tuple(parts))


def _unordered(left: Shape, right: Shape, depth: int) -> bool | Questions:
    given, wanted = list(left.parts), list(right.parts)
    if "set" in (left.kind, right.kind):
        given, wanted = (
            list({text_key(part): part for part in side}.values()) for side in (given, wanted)
        )
    if not given or not wanted:
        return len(given) == len(wanted)
    if sorted(map(text_key, given)) == sorted(map(text_key, wanted)):
        return True
    if len(given) != len(wanted) or len(given) > _LONGEST_LIST:
        return False
    open_parts: list[tuple[str, list[str]]] = []
    for part in wanted:
        maybe: list[str] = []
        for other in given:
            result = _compare(other, part, depth + 1)
            if result is True or result == []:
                given.remove(other)
                break
            if result:
                maybe.append(other)
        else:
            if not maybe:
                return False
            open_parts.append((part, maybe))
    if not open_parts:
        return True
    if len(open_parts) == 1:
        result = _compare(given[0], open_parts[0][0], depth + 1)
        return result
    pair = question(
        f"\\{{{','.join(given)}\\}}", f"\\{{{','.join(part for part, _ in open_parts)}\\}}"
    )
    return False if pair is None else [pair]


def _all_of(pairs: Iterable[tuple[str, str]], depth: int) -> bool | Questions:
    asked: Questions = []
    for answer, gold in pairs:
        result = _compare(answer, gold, depth + 1)
        if result is False:
            return False
        if isinstance(result, list):
            asked += result
    return asked or True


def _by_expression(answer: str, gold: str, depth: int) -> bool | Questions:
    if is_words(answer) or is_words(gold):
        if is_words(answer) and is_words(gold) and same_words(answer, gold):
            return True
        # "abc" may be a product after all when the other side is one.
        if is_words(answer) and is_words(gold) or not (_is_product(answer) and _is_product(gold)):
            return False
    number = read_number(gold)
    if number is not None and number.value.denominator == 1 and OPERATION.search(answer):
        return False
    if number is not None and claims(answer):
        return False
    pair = question(answer, gold)
    return False if pair is None else [pair]


def _is_product(text: str) -> bool:
    return re.search(r"[A-Za-z]{5}|[A-Z][A-Za-z]| ", re.sub(r"\\[A-Za-z]+ ?", "", text)) is None
