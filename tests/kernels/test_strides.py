"""Portable: strides of any tensor argument change no result and no gradient."""

from __future__ import annotations

import pytest

from .strides import cases, check, label


@pytest.mark.parametrize("case", cases(small=True), ids=label)
def test_strides_change_nothing(case):
    check(case, "portable")


@pytest.mark.parametrize("case", cases(small=False), ids=label)
def test_strides_change_nothing_with_lists(case):
    check(case, "portable")
