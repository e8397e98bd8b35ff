"""``siri-train tokens``: pooling by phase, what moves with the cap, old runs, errors."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from siri_train.cli import main
from siri_train.commands.tokens import tables
from siri_train.commands.tokens_text import as_json, tokens_text
from siri_train.monitor.token_groups import TokenGroups
from siri_train.report.token_pooling import KEYS, TOKENS, counted, moves, pool
from siri_train.schedule import LengthSchedule
from siri_train.statistics.blocks import draw_blocks
from siri_train.train import train

SCHEDULE = LengthSchedule("cosine", 400, 100, 40)


def row(step: int, rng: random.Random, follows: float = 0.0) -> dict[str, Any]:
    """A record of drawn counts; ``wait`` occurs more under a larger cap where it follows it."""
    cap = SCHEDULE(step)
    right, wrong, neither = (rng.randrange(2000, 9000) for _ in range(3))
    tokens = {"all": right + wrong + neither, "right": right, "wrong": wrong}
    groups = {}
    for name, slope in (("wait", follows), ("so", 0.0)):
        share = (5 + slope * (cap - 250) / 50) / 1000
        of = {key: round(tokens[key] * share * rng.uniform(0.8, 1.2)) for key in ("right", "wrong")}
        of["all"] = sum(of.values()) + rng.randrange(5)
        groups[name] = {key: 1000 * of[key] / tokens[key] for key in KEYS}
    return {
        "step": step, "cycle": SCHEDULE.cycle_index(step), "phase": SCHEDULE.phase(step),
        "cap": cap, "token_groups": groups, **{TOKENS[key]: tokens[key] for key in KEYS},
    }  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def keep(folder: Path, step: int, responses: list[dict[str, Any]]) -> None:
    (folder / "rollouts").mkdir(exist_ok=True)
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in responses]
    (folder / "rollouts" / f"step_{step:06d}.jsonl").write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize("seed", range(5))
def test_pooling_over_steps_is_exact(seed: int) -> None:
    """The counts of the responses of all steps together, and not the mean of the steps."""
    rng = np.random.default_rng(seed)
    groups = TokenGroups(_Words())
    rows = []
    every: dict[str, list[Any]] = {"compression": [], "expansion": []}
    for step in range(30):
        size, phase = int(rng.integers(1, 9)), ("compression", "expansion")[step % 2]
        responses = [rng.integers(0, 3, rng.integers(1, 60)).tolist() for _ in range(size)]
        rights = [(True, False, None)[i] for i in rng.integers(0, 3, size)]
        lengths = [len(ids) for ids in responses]
        rates, _ = groups.rates(groups.counts(responses), lengths, rights)
        tokens = {
            "tokens": sum(lengths),
            "tokens_right": sum(n for n, right in zip(lengths, rights, strict=True) if right),
            "tokens_wrong": sum(
                n for n, right in zip(lengths, rights, strict=True) if right is False
            ),
        }
        written = json.loads(json.dumps({"phase": phase, "token_groups": rates, **tokens}))
        rows.append(written)
        every[phase] += list(zip(responses, rights, strict=True))
    for phase, some in every.items():
        pooled = pool(rows, phase)["wait"]
        for key, wanted in (("all", (True, False, None)), ("right", (True,)), ("wrong", (False,))):
            chosen = [ids for ids, right in some if any(right is one for one in wanted)]
            assert pooled[key].count == sum(ids.count(1) for ids in chosen)
            assert pooled[key].tokens == sum(map(len, chosen))


class _Words:
    """A vocabulary without a table: "wait" is 1."""

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join("wait" if i == 1 else "x" for i in ids)


@pytest.mark.parametrize("seed", range(8))
def test_what_follows_the_cap_is_found_and_the_rest_is_not(seed: int) -> None:
    rng = random.Random(seed)
    found = moves([row(step, rng, follows=1.0) for step in range(120)])
    wait, so = found["wait"], found["so"]
    assert wait.cap.sure and (wait.cap.value or 0) > 0.5
    assert wait.cap.interval is not None and wait.cap.interval[0] < (wait.cap.value or 0)
    assert abs(so.cap.value or 0) < 0.4
    against = moves([row(step, rng, follows=-1.0) for step in range(120)])["wait"]
    assert against.cap.sure and (against.cap.value or 0) < -0.5
    assert (wait.follows, so.follows, against.follows) == (1, 0, -1)


@pytest.mark.parametrize("seed", range(8))
def test_a_trend_over_the_run_does_not_follow_the_cap(seed: int) -> None:
    """A word that training makes rare, mostly in the first compression, or a frequent one."""
    rng = random.Random(seed)
    rows = [row(step, rng) for step in range(120)]
    for one in rows:
        wait = one["token_groups"]["wait"]
        for key in KEYS:
            wait[key] *= 0.02 + 0.98 ** one["step"] if seed % 2 else 1 + one["step"] / 30
    found = moves(rows)["wait"]
    assert found.follows == 0
    falling, rising = found.falling.value or 0, found.rising.value or 0
    assert (falling > 0 > rising) if seed % 2 else (falling < 0 < rising)


def test_intervals_of_unrelated_rates_hold_zero_about_as_often_as_they_say() -> None:
    sure = 0
    for seed in range(60):
        rng = random.Random(100 + seed)
        found = moves([row(step, rng) for step in range(120)], seed)
        sure += sum(getattr(found[name], key).sure for name in found for key in ("cap", "right"))
    assert sure <= 0.15 * 240  # 5 % are expected


def test_too_few_steps_a_constant_cap_and_no_tokens() -> None:
    rng = random.Random(0)
    few = moves([row(step, rng, 1.0) for step in range(39)])["wait"]
    assert few.cap.value is not None and few.cap.interval is None and not few.cap.sure
    constant = [row(step, rng) | {"cap": 100, "phase": "constant"} for step in range(80)]
    moved = moves(constant)["wait"]
    assert moved.cap.value is None and moved.phase.value is None
    assert moved.right.interval is not None
    nothing: dict[str, Any] = {
        "step": 1, "cap": 9, "phase": "compression", "tokens": 0, "tokens_right": 0,
        "tokens_wrong": 0, "token_groups": {"wait": dict.fromkeys(KEYS)},
    }  # fmt: skip
    assert pool([nothing])["wait"]["all"].per_1k is None
    assert moves([nothing])["wait"].right.value is None and moves([]) == {}


def test_records_of_earlier_versions_and_damaged_ones_are_left_out() -> None:
    rng = random.Random(1)
    good = row(0, rng)
    damaged: list[dict[str, Any]] = [
        {"step": 1, "cap": 5, "phase": "compression", "tokens": 10},
        good | {"token_groups": None}, good | {"token_groups": {}}, good | {"tokens": "many"},
        good | {"token_groups": {"wait": 3}}, good | {"token_groups": {"wait": {"all": None}}},
        good | {"tokens": float("nan")},
    ]  # fmt: skip
    assert counted([good, *damaged]) == [good]
    assert pool([good, *damaged])["so"] == pool([good])["so"]
    assert set(moves([good, *damaged])) >= {"wait", "so"}


@pytest.mark.parametrize("seed", range(3))
def test_blocks(seed: int) -> None:
    rng = random.Random(seed)
    steps = rng.randrange(1, 60)
    block = rng.randint(1, steps)
    counts = draw_blocks(steps, block, 400, seed)
    assert set(counts.sum(axis=1)) == {-(-steps // block) * block}
    assert counts.mean() == pytest.approx(counts.sum(axis=1)[0] / steps)
    assert abs(counts.mean(axis=0) / counts.mean() - 1).max() < 0.6  # each as likely
    for wrong in ((0, 1, 1), (3, 4, 1), (3, 0, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="takes at least 1"):
            draw_blocks(*wrong, seed=0)


def test_table_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(4)
    run = write(tmp_path / "run", [row(step, rng, follows=1.0) for step in range(120)])
    assert main(["tokens", str(run)]) == 0
    text = capsys.readouterr().out
    assert "120 of 120 steps" in text
    assert "Falls in compression and returns in expansion: wait." in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80 or len(str(run)) > 80
    pooled = pool([json.loads(line) for line in (run / "metrics.jsonl").open()], "expansion")
    shown = f"{pooled['wait']['right'].per_1k:.3f}"
    assert any("expansion" in line and shown in line for line in text.splitlines())
    assert main(["tokens", str(run), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["source"] == "metrics.jsonl" and found["responses"] is None
    assert found["groups"]["wait"]["phases"]["expansion"]["right"] == {
        "per_1k": pooled["wait"]["right"].per_1k,
        "count": pooled["wait"]["right"].count,
        "tokens": pooled["wait"]["right"].tokens,
    }
    assert set(found["groups"]["wait"]["moves"]) == {"cap", "falling", "rising", "phase", "right"}


def test_lines_fit_with_the_longest_names(tmp_path: Path) -> None:
    rng = random.Random(4)
    rows = [row(step, rng) for step in range(80)]
    for one in rows:
        one["token_groups"]["n" * 64] = {key: 1234.567 for key in KEYS}
    text = tokens_text(tables([write(tmp_path / "r", rows)])[0], 80)
    lines = text.splitlines()[1:]  # the first is the folder
    assert max(map(len, lines)) <= 80, max(lines, key=len)


def old(text: str, reward: float | None, tokens: int) -> dict[str, Any]:
    """A line of ``rollouts`` of an earlier version."""
    return {
        "prompt": "?", "response": text, "reward": reward, "truncated": False, "tokens": tokens,
        "answer": None, "gold": "1",
    }  # fmt: skip


def test_old_run_is_counted_in_its_texts(tmp_path: Path) -> None:
    rows = [{"step": step, "cycle": 1, "phase": "compression", "cap": 50} for step in range(3)]
    run = write(tmp_path / "run", rows)
    keep(run, 0, [old("Wait, wait. 等", 1.0, 10), old("waiting", 0.0, 5), old("hold on", None, 5)])
    keep(run, 2, [old("so. maybe not sure", 0.0, 20)])
    with (run / "rollouts" / "step_000002.jsonl").open("a") as file:
        file.write('{"response": 3}\nnonsense\n[]\n')
    (found,), _ = tables([run])
    assert (found.source, found.responses, len(found.rows)) == ("rollouts", 4, 2)
    assert "4 responses of 2 steps" in tokens_text([found], 80)
    pooled = pool(found.rows, "compression")
    assert pooled["wait"]["all"].per_1k == 1000 * 2 / 40
    assert pooled["wait"]["right"].per_1k == 200.0 and pooled["wait"]["wrong"].per_1k == 0.0
    assert pooled["hold_on"]["all"].count == 1
    assert pooled["hold_on"]["right"].count == pooled["hold_on"]["wrong"].count == 0
    (asked,), _ = tables([run], ["not  sure", "maybe"])
    assert {name: rates["wrong"].count for name, rates in pool(asked.rows).items()} == {
        "not sure": 1,
        "maybe": 1,
    }


def test_words_that_were_counted_come_from_the_metrics(tmp_path: Path) -> None:
    rng = random.Random(2)
    run = write(tmp_path / "run", [row(step, rng) for step in range(4)])
    keep(run, 0, [old("maybe", 1.0, 10) | {"right": False, "cap": 400, "question": "q"}])
    (counts, texts), _ = tables([run], ["Wait", "maybe"])
    assert list(pool(counts.rows)) == ["wait"] and counts.source == "metrics.jsonl"
    assert pool(texts.rows)["maybe"]["wrong"].count == 1  # by ``right``, not by the reward
    (run / "config.yaml").write_text("monitor: {token_groups: {wait: [hmm]}}\n")
    assert [table.source for table in tables([run], ["wait", "hmm"])[0]] == [
        "metrics.jsonl",
        "rollouts",
    ]


def test_errors_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", [{"step": 0, "phase": "compression", "cap": 4}])
    empty = tmp_path / "empty"
    empty.mkdir()
    for given, said in (
        ([str(tmp_path / "none")], "is not a folder"),
        ([str(empty)], "holds no run"),
        ([str(run)], "holds no responses to count them in; set monitor.rollouts_every"),
        ([str(run), "--words", ".."], "'..' is no word"),
    ):
        assert main(["tokens", *given]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and error.startswith("siri-train tokens: ")
    with pytest.raises(SystemExit):
        main(["tokens", str(run), "--words", "a,,b"])


def test_a_run_without_counts_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    names = [f"run{i}" for i in range(rng.randint(2, 5))]
    without = set(rng.sample(names, rng.randint(1, len(names) - 1)))
    for name in names:
        rows = [row(step, rng) for step in range(4)]
        if name in without:
            rows = [{"step": 0, "phase": "compression", "cap": 4}] * rng.randint(0, 2)
        write(tmp_path / "all" / name, rows)
    for given in (["all"], [f"all/{name}" for name in names]):
        status = main(["tokens", *(str(tmp_path / one) for one in given)])
        out, error = capsys.readouterr()
        assert status == 0, (seed, error)
        headed = [line for line in out.splitlines() if line.startswith(str(tmp_path))]
        assert headed == [str(tmp_path / "all" / name) for name in names if name not in without]
        told = error.splitlines()
        assert len(told) == len(without), (seed, told)
        for name, line in zip(sorted(without), told, strict=True):
            assert line.startswith("siri-train tokens: left out: ")
            assert str(tmp_path / "all" / name) in line, seed
    kept = sorted(set(names) - without)[0]
    assert main(["tokens", str(tmp_path / "all" / kept), "--words", "wait,perhaps"]) == 0
    error = capsys.readouterr().err
    assert "no counts of perhaps" in error and "monitor.token_groups" in error
    assert main(["tokens", str(tmp_path / "all" / min(without))]) == 1


def test_a_folder_of_runs_gives_a_table_a_run(tmp_path: Path) -> None:
    rng = random.Random(2)
    for name in ("siri", "constant"):
        write(tmp_path / "demo" / name, [row(step, rng) for step in range(3)])
    other = write(tmp_path / "other", [row(0, rng)])
    names = [Path(table.run).name for table in tables([tmp_path / "demo", other])[0]]
    assert names == ["siri", "constant", "other"]
    assert [one["run"] for one in as_json(tables([other])[0])["runs"]] == [str(other)]


def test_run_of_the_demo_writes_what_the_command_reads(tiny: Any) -> None:
    """Rollouts mark the words where they stand, and the counts are those of the texts."""
    config = tiny(
        "train.steps=2", "monitor.rollouts_every=1", "monitor.rollouts_kept=1000",
        "monitor.token_groups={marks: [think, boxed]}",
    )  # fmt: skip
    folder = train(config)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    (from_metrics,), _ = tables([folder])
    for one in rows:
        path = folder / "rollouts" / f"step_{one['step']:06d}.jsonl"
        kept = [json.loads(line) for line in path.open(encoding="utf-8")]
        assert sum(response["tokens"] for response in kept) == one["tokens"]
        assert sum(one["response_len_hist"]["counts"]) == len(kept)
        for response in kept:
            assert response["cap"] == one["cap"] and response["right"] in (True, False, None)
            assert isinstance(response["question"], str)
            for start, end, group in response["marks"]:
                word = response["response"][start:end].lower()
                assert word in {"wait": ["wait"], "marks": ["think", "boxed"]}[group]
        for name, rates in one["token_groups"].items():
            found = sum(group == name for response in kept for *_, group in response["marks"])
            assert rates["all"] == pytest.approx(1000 * found / one["tokens"])
        assert one["backtrack_per_1k"] == one["token_groups"]["wait"]["all"]
        assert one["ranks"] == 1
    assert len(from_metrics.rows) == 2


@pytest.mark.parametrize("seed", range(3))
def test_an_ablation_gives_a_table_a_seed(seed: int, tmp_path: Path) -> None:
    """Not the mean of an arm's seeds under the name of one: that has no counts."""
    rng = random.Random(seed)
    seeds = [tmp_path / arm / f"seed-{n}" for arm in ("a", "b") for n in range(3)]
    for folder in seeds:
        write(folder, [row(step, rng) for step in range(4)])
    found, _ = tables([tmp_path])
    assert [table.run for table in found] == [str(folder) for folder in seeds]
    for table, folder in zip(found, seeds, strict=True):
        assert table == tables([folder])[0][0]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_are_no_wider_than_the_terminal(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(width)
    rows = [row(step, rng, follows=rng.random()) for step in range(120)]
    for one in rows:
        one["token_groups"]["名前" * 9] = {key: 1000 * rng.random() for key in KEYS}
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["tokens", str(write(tmp_path / "r", rows))]) == 0
    _, *lines = capsys.readouterr().out.splitlines()  # the first is the folder
    assert max(map(cell_len, lines)) <= width
