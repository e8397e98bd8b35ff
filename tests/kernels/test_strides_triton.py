"""Triton: strides of any tensor argument change no result and no gradient."""

from __future__ import annotations

import pytest

from .interpreter import direct
from .strides import cases, check, label

pytestmark = direct


@pytest.mark.draw(10)
@pytest.mark.parametrize("case", cases(small=True), ids=label)
def test_strides_change_nothing(case):
    check(case, "triton")


# Each takes the interpreter a program for every row of a tile and every token id.
@pytest.mark.slow
@pytest.mark.parametrize("case", cases(small=False), ids=label)
def test_strides_change_nothing_with_lists(case):
    check(case, "triton")
