"""The README says what was measured, and its example runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.reports.behind import asked_for
from bench.reports.readme import BLOCK, filled, pages
from bench.reports.tables import Result, seconds

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS = " ".join(README.split())  # wherever its lines break


def test_quoted_tables_are_the_measured_ones() -> None:
    assert len(BLOCK.findall(README)) == 2
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert filled(text) == text, f"{page.name}: run python -m bench readme"


def test_a_block_quotes_the_rows_that_it_names() -> None:
    name = "bench/results/cpu/summary.md"
    head = (ROOT / name).read_text(encoding="utf-8").splitlines()[:2]
    row = "1048576 tokens, equal lengths | eager"
    page = filled(f"a\n<!-- {name} rows: {row} -->\nold\n<!-- end -->\nb\n").splitlines()
    assert page[:4] == ["a", f"<!-- {name} rows: {row} -->", *head]
    assert page[4].startswith(f"| {row} |") and page[5:] == ["<!-- end -->", "b"]
    for wrong in ("1048576 tokens, equal lengths", "no such row"):  # several, none
        with pytest.raises(ValueError, match=wrong):
            filled(f"<!-- {name} rows: {wrong} -->\n<!-- end -->")


def test_a_block_quotes_the_table_that_it_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.reports.readme.ROOT", tmp_path)
    name = "bench/results/cpu/a.md"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(
        "# A\n\n| a   |   b |\n| --- | --: |\n| one |   1 |\n\ntext\n\n| c |\n|---|\n| 2 |\n"
    )
    first = f"<!-- {name} table 1 -->\n| a | b |\n| --- | --: |\n| one | 1 |\n<!-- end -->"
    assert filled(f"<!-- {name} table 1 -->\nold\n<!-- end -->") == first
    assert "\n| 2 |\n" in filled(f"<!-- {name} table 2 -->\n<!-- end -->")
    with pytest.raises(ValueError, match="has 2 tables, not a table 3"):
        filled(f"<!-- {name} table 3 -->\n<!-- end -->")


def test_first_screen_says_what_it_is_what_ran_and_how_to_begin() -> None:
    assert len(README.splitlines()) <= 170
    screen = "\n".join(README.splitlines()[:45])
    order = ("**Status.**", "H200", "pip install", "make demo", "linear_logprob(", "| ours |")
    places = [screen.index(wanted) for wanted in order]
    assert places == sorted(places)
    assert "make test" in screen and "LOG" not in screen


def test_losses_stand_beside_the_wins() -> None:
    """The results name every case in which another is faster, the README their kinds."""
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    for folder in ("cpu", "cpu-2threads", "cpu-mkl"):
        assert f"<!-- bench/results/{folder}/behind.md -->" in results
    measured = kernels("cpu")
    span = asked_for(measured, "ours, tail=0")
    assert span
    least, most = span
    assert f"`tail=0` {least:.2f} to {most:.2f} times" in WORDS
    least, most = uniform(measured)
    assert f"uniform softmaxes {least:.2f} to {most:.2f} times" in WORDS
    least, most = uniform(kernels("cpu-mkl"))
    assert f"uniform softmaxes take {least:.2f} to {most:.2f} times eager's time" in WORDS
    screen = json.loads((ROOT / "bench/results/cpu/screen.json").read_text(encoding="utf-8"))
    rows = {softmax: row["seconds"] for softmax, row in screen["rows"].items()}
    sharp = [rows[s]["ours, screened"] / rows[s]["forward product"] for s in ("0.1", "0.5", "1.0")]
    assert f"takes {min(sharp):.2f} to {max(sharp):.2f} of its one forward product" in WORDS
    for row in rows.values():  # never slower than without by more than 3 %
        assert row["ours, screened"] <= 1.03 * row["ours"]
    (small,) = ratios(kernels("cpu-without-compiler"), "128 tokens")
    assert f"`policy_loss` takes {small:.2f} times as long on 128 tokens" in WORDS


def kernels(folder: str) -> Result:
    """What the bench measured there."""
    path = ROOT / "bench/results" / folder / "kernels.json"
    measured: Result = json.loads(path.read_text(encoding="utf-8"))
    return measured


def ratios(measured: Result, part: str) -> list[float]:
    """Our time over eager's in the rows whose name has this part."""
    clock, found = measured["clock"], []
    for name, row in measured["rows"].items():
        if part in name:
            ours, eager = (seconds(row["contenders"][n], clock) for n in ("ours", "eager"))
            assert ours and eager
            found.append(ours / eager)
    return found


def uniform(measured: Result) -> tuple[float, float]:
    """The least and the largest of them with a uniform softmax."""
    found = ratios(measured, "uniform")
    return min(found), max(found)


def test_the_seven_line_example_runs_and_trains() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 7
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2)
    )  # fmt: skip
    lengths = torch.randint(3, 12, (16,))
    mask = torch.arange(15)[None] < lengths[:, None] + 3
    mask[:, :3] = False  # the prompt
    scope = {
        "model": model,
        "input_ids": torch.randint(0, 97, (16, 15)),
        "response_mask": mask,
        "rewards": torch.randint(0, 2, (16,)).float(),
        "old_logprobs": torch.randn(int(lengths.sum())) - 4,
    }
    scope["rewards"][:2] = torch.tensor([0.0, 1.0])
    exec(code, scope)
    loss, metrics = scope["loss"], scope["metrics"]
    assert isinstance(loss, torch.Tensor) and loss.isfinite()
    assert metrics["tokens"] == lengths.sum()
    assert model.lm_head.weight.grad is not None and model.lm_head.weight.grad.norm() > 0
    assert metrics["clip_frac_high"] >= 0
