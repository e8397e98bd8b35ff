"""Worked solutions of sums, and generated sets that share no item."""

from __future__ import annotations

import random
import re
import time

import pytest

from siri_train.config.data import SourceConfig
from siri_train.data.questions import reasoning_gym_questions
from siri_train.data.sources import read_sources
from siri_train.data.supervised import supervised_text
from siri_train.data.worked_sums import CHECKED, MISTAKEN, worked_sum

LINE = re.compile(
    r"(-?\d+) ([+-]) (\d+) = (-?\d+)\."
    r"(?: Wait, check: (-?\d+) ([+-]) (\d+) = (-?\d+), (right|not (-?\d+))\.)?"
)


def drawn(rng: random.Random) -> tuple[str, int]:
    terms = [rng.randint(0, 99) for _ in range(rng.randint(2, 6))]
    signs = [rng.choice("+-") for _ in terms[1:]]
    text = str(terms[0]) + "".join(f" {s} {t}" for s, t in zip(signs, terms[1:], strict=True))
    pairs = zip(signs, terms[1:], strict=True)
    return text, terms[0] + sum(t if s == "+" else -t for s, t in pairs)


def test_every_check_is_true_and_every_mistake_is_mended() -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    checked = mistaken = steps = 0
    for _ in range(500):
        expression, right = drawn(rng)
        before = int(expression.split()[0])
        for line in worked_sum(expression).splitlines():
            found = LINE.fullmatch(line)
            assert found, (seed, expression, line)
            a, sign, b, c = int(found[1]), found[2], int(found[3]), int(found[4])
            true = a + b if sign == "+" else a - b
            assert a == before, (seed, expression, line)
            if found[5] is None:
                assert c == true, (seed, expression, line)
            else:
                back = int(found[5]) + (int(found[7]) if found[6] == "+" else -int(found[7]))
                assert int(found[5]) == c and found[6] != sign and int(found[7]) == b
                assert int(found[8]) == back
                assert (found[9] == "right") == (c == true) == (back == a)
            if c == true:
                before, steps = c, steps + 1
                checked += found[5] is not None
            else:
                assert int(found[10]) == a
                mistaken += 1
        assert before == right, (seed, expression)
    assert abs(checked / steps - CHECKED) < 0.1, seed
    assert abs(mistaken / checked - MISTAKEN) < 0.1, seed


def test_the_same_sum_has_the_same_solution() -> None:
    assert worked_sum("12 + 30 - 5") == worked_sum("12 + 30 - 5")
    assert worked_sum("7") == "It is 7."


@pytest.mark.parametrize("text", ["", "1 * 2", "a + b", "1 +", "--1", "1 + 2 = 3"])
def test_what_is_no_sum_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expression: got .*takes whole numbers"):
        worked_sum(text)


def test_sums_of_reasoning_gym_can_be_learnt() -> None:
    pytest.importorskip("reasoning_gym")
    for question in reasoning_gym_questions("chain_sum", 20, 3, min_terms=3, max_terms=4):
        assert question.solution is not None
        assert supervised_text(question).endswith(f"\\boxed{{{question.answer}}}")


def test_seeds_share_no_question() -> None:
    pytest.importorskip("reasoning_gym")
    sources = [
        SourceConfig(
            kind="reasoning_gym",
            task="chain_sum",
            size=size,
            seed=seed,
            params={"min_terms": 4, "max_terms": 5, "min_digits": 2, "max_digits": 2},
        )
        for size, seed in ((2000, 0), (200, 1), (200, 2))
    ]
    sets = [{q.prompt for q in read_sources([one], "train", "data.train")} for one in sources]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
