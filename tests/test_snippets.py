"""Every Python block of the README and the documentation runs, in one target or another."""

from __future__ import annotations

import importlib
import inspect
import os
import re

import pytest
import yaml

from siri_kernels.integrations import prime_rl
from siri_kernels.policy_loss.formulas import OBJECTIVES
from siri_train.config import engines
from siri_train.registry import names as registry
from siri_train.schedule import LengthSchedule

from .snippets import ROOT, Snippet, run, snippets

ENVIRONMENT = os.environ.get("SIRI_SNIPPETS", "default")
ALL = snippets()
HERE = [snippet for snippet in ALL if snippet.environment == ENVIRONMENT]


@pytest.mark.parametrize("snippet", HERE, ids=[snippet.where for snippet in HERE])
def test_snippet_runs(snippet, tmp_path):
    tables = [OBJECTIVES, engines.ENGINES, *(table.data for table in registry._ALL)]
    before = [dict(table) for table in tables]
    try:
        run(snippet, tmp_path)
    finally:  # what a block registers must not reach other tests
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)


def test_every_environment_has_a_target_that_runs_its_snippets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    for name in {snippet.environment for snippet in ALL} - {"default"}:
        lines = [line for line in makefile if f"SIRI_SNIPPETS={name} " in line]
        assert lines and all("tests/test_snippets.py" in line for line in lines), (
            f"<!-- snippet: {name} -->: no line of the Makefile sets SIRI_SNIPPETS={name} and runs "
            "tests/test_snippets.py"
        )
    assert HERE, f"SIRI_SNIPPETS={ENVIRONMENT}: no block of the documentation has this mark"
    assert len({snippet.where for snippet in ALL}) == len(ALL) >= 7


def test_a_wrong_snippet_fails_at_its_line(tmp_path):
    with pytest.raises(NameError) as error:
        run(Snippet("docs/drop-in.md:40", "default", "x = 1\nno_such_name\n"), tmp_path)
    assert error.traceback[-1].lineno + 1 == 41


def test_the_plain_loop_of_the_page_scores_what_it_says(tmp_path):
    """The wrapped model's log-probs, against its own logits."""
    (snippet,) = [s for s in ALL if "out.base.last_hidden_state" in s.code]
    scope = run(snippet, tmp_path)
    model, ids, targets = scope["model"], scope["input_ids"], scope["targets"]
    logits = model(ids, attention_mask=scope["attention_mask"]).logits
    logp = (logits / 0.9).log_softmax(-1)
    want = logp.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * (targets != -100)
    assert (want < -0.1).sum() > 20
    assert (scope["out"].logprobs - want).abs().max() < 1e-4


def test_paths_that_trainers_load_exist():
    """In the TOML and shell blocks of the page, which no test can execute."""
    text = (ROOT / "docs" / "drop-in.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:toml|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    paths = set(re.findall(r"siri_(?:kernels|train)(?:\.\w+)+", "".join(blocks)))
    for path in paths:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name)), path
    assert len(paths) >= 4
    (kwargs,) = re.findall(r"^kwargs = {(.*)}$", "".join(blocks), re.MULTILINE)
    options = set(inspect.signature(prime_rl.siri_loss).parameters)
    assert set(re.findall(r"(\w+) = ", kwargs)) <= options - {"inputs"}
    (schedule,) = re.findall(r"siri_schedule: ({.*})", "".join(blocks))
    assert LengthSchedule(**yaml.safe_load(schedule))(320) == 8192
