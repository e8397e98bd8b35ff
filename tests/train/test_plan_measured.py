"""The time model beside measured runs; docs/plan.md says the same ratios."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from siri_train.config.recipe import load_config
from siri_train.plan.families import known_config
from siri_train.plan.memory import Sizes, estimate
from tests.train.published_runs import MEASURED

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MEASURED)
def test_the_page_has_the_ratio_of_predicted_to_measured(name: str) -> None:
    measured, predicted, fitted = MEASURED[name]
    ratio = predicted() / measured
    row = re.search(rf"^\| {re.escape(name)} \|.*\| (fitted|held out) \|$", PAGE, re.MULTILINE)
    assert row is not None, f"docs/plan.md has no row {name!r}"
    cells = [cell.strip() for cell in row[0].split("|")]
    assert cells[-2] == ("fitted" if fitted else "held out")
    assert float(cells[-3]) == pytest.approx(ratio, abs=0.006), cells
    # The errors that the page names.
    assert ratio == pytest.approx(1, abs=0.05 if fitted else 0.27)


@pytest.mark.parametrize(("context", "liger", "gib"), [
    (8192, True, 24.9), (16384, True, 26.3), (8192, False, 25.3), (16384, False, 27.1),
])  # fmt: skip
def test_memory_is_near_the_peak_of_the_training_step_on_an_h200(
    context: int, liger: bool, gib: float
) -> None:
    config = load_config(
        "siri-1.5b",
        ["schedule.max_len=1024", "schedule.min_len=512", "data.max_prompt_len=64",
         "eval.budgets=[]", f"train.token_budget={context}", "model.dtype=bfloat16",
         f"model.liger={'on' if liger else 'off'}"],
    )  # fmt: skip
    memory = estimate(config, Sizes.of(known_config("Qwen/Qwen2.5-1.5B")), gpu=True)
    peak = max(memory.totals["training"], memory.totals["optimizer"]) / 2**30
    assert peak == pytest.approx(gib, rel=0.15)
