"""``siri-train compare`` with named sets: a column each, as the paper's Table 1; nothing pooled."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from siri_train.cli import main
from siri_train.commands.compare import as_json, compare
from siri_train.commands.compare_sets import SetTable, set_table
from siri_train.commands.compare_text import comparison_text, sets_table
from siri_train.config.base import ConfigError
from siri_train.monitor.question_records import FILE, QuestionRecord, fingerprint
from siri_train.statistics.intervals import Interval
from siri_train.statistics.set_means import mean_interval

SIZES = {"aime24": 30, "aime25": 30, "amc": 40, "math500": 500}
# The paper's Table 1, 1.5B: accuracy in per cent / mean tokens on each set, and what it prints.
PAPER = {
    "start": ((28.2, 12333), (21.5, 12264), (61.8, 8449), (82.4, 4745)),
    "siri-low": ((40.4, 7093), (29.6, 6509), (74.6, 4700), (87.7, 2881)),
    "siri-high": ((43.6, 10049), (32.2, 9739), (75.9, 7396), (88.4, 4633)),
}
OTHERS = {
    "deepscaler": ((41.1, 8585), (29.0, 8348), (73.9, 5515), (87.6, 3054)),
    "dapo": ((42.8, 10453), (30.9, 10352), (74.6, 7339), (88.1, 4223)),
}


def exact(
    name: str, step: int | None, accuracy: float, tokens: float, size: int, samples: int = 1000
) -> QuestionRecord:
    """A record whose mean accuracy, in per cent, and mean tokens are as given."""
    middle = round(accuracy * samples / 100)
    off = [
        (-1) ** i * min(middle, samples - middle, 9) * (i < size - size % 2) for i in range(size)
    ]
    return QuestionRecord(
        step, name, (8192, 16384), samples, tuple(f"{name}-{i}" for i in range(size)),
        fingerprint([(f"{name} {i}", str(i)) for i in range(size)]),
        ((0,) * size, tuple(middle + d for d in off)), tuple(float(tokens + 20 * d) for d in off),
    )  # fmt: skip


def write(
    folder: Path,
    plan: Sequence[tuple[int | None, str | None, Sequence[QuestionRecord]]],
    select: str | None = None,
) -> None:
    """A run's folder, or a graded model's, with its evaluations."""
    folder.mkdir(parents=True)
    with (folder / FILE).open("w") as file, (folder / "eval.jsonl").open("w") as evals:
        for step, name, records in plan:
            file.writelines(json.dumps(one.row()) + "\n" for one in records)
            by_set = {
                one.set: {
                    "accuracy": [sum(one.shares(i)) / len(one.ids) for i in (0, 1)],
                    "accuracy_interval": [[0, 1]] * 2, "pass_at_k": [0.0, 0.0], "tokens": 1.0,
                    "backtrack_per_1k": 0.0,
                }
                for one in records
            }  # fmt: skip
            chosen = select if select in by_set else records[0].set
            row = {"step": step, "name": name, "budgets": [8192, 16384], **by_set[chosen]}
            evals.write(json.dumps({**row, "set": chosen, "sets": by_set}) + "\n")


def paper_run(folder: Path, samples: Mapping[str, int] | None = None) -> None:
    """The paper's 1.5B run, with a validation set that selects."""
    plan = []
    for step, (name, cells) in zip((0, 640, 960), PAPER.items(), strict=True):
        records = [
            exact(of, step, *cell, SIZES[of], (samples or {}).get(of, 1000))
            for of, cell in zip(SIZES, cells, strict=True)
        ]
        plan.append((step, name, [*records, exact("validation", step, 50.0, 5000, 512)]))
    write(folder, plan, "validation")


def test_the_rows_of_the_papers_table(tmp_path: Path) -> None:
    paper_run(tmp_path / "siri")
    models = []
    for name, cells in OTHERS.items():
        records = [exact(of, None, *cell, SIZES[of]) for of, cell in zip(SIZES, cells, strict=True)]
        write(tmp_path / name, [(None, None, records)])
        models.append(tmp_path / name)
    found = compare([tmp_path / "siri"])
    assert sets_table(set_table(found.runs, found.starts)) == GOLDEN
    text = comparison_text(found)
    assert text.startswith("Accuracy in per cent / mean tokens on each set, within 16,384 tokens")
    for said in (
        "Questions: aime24 30, aime25 30, amc 40, math500 500.",
        "Mean of sets: over aime24, aime25, amc, math500, each counting once",
        "Left out: validation, by which eval.select chooses.",
        "What follows is of the set aime24 alone; --set NAME shows another: aime25, amc, math500, "
        "validation.",
        "30 questions of the set aime24, 1,000 samples each, within 16,384 tokens",
    ):
        assert said in text, text
    # The two others began from the same model, which has to be named.
    alone = as_json(compare(models))["table"]["rows"]
    assert [row["gain_per_length"] for row in alone] == [None, None]
    found = compare([tmp_path / "siri", *models], start=tmp_path / "siri")
    ratios = [row.gain_per_length for row in set_table(found.runs, found.starts).rows]
    assert ratios == pytest.approx([0, 0.476, 0.389, 0.398, 0.357], abs=5e-4)


GOLDEN = """\
| run  | checkpoint | step | samples |                   aime24 |                   aime25 |   \
                  amc |                 math500 |            mean of sets | dAcc/CR |
| ---- | ---------- | ---: | ------: | -----------------------: | -----------------------: | --\
--------------------: | ----------------------: | ----------------------: | ------: |
| siri | start      |    0 |    1000 | 28.2 ± 0.3 / 12,333 ± 60 | 21.5 ± 0.3 / 12,264 ± 60 | 61\
.8 ± 0.3 / 8,449 ± 54 | 82.4 ± 0.1 / 4,745 ± 15 | 48.5 ± 0.1 / 9,448 ± 25 |   0.000 |
| siri | siri-low   |  640 |    1000 |  40.4 ± 0.3 / 7,093 ± 60 |  29.6 ± 0.3 / 6,509 ± 60 | 74\
.6 ± 0.3 / 4,700 ± 54 | 87.7 ± 0.1 / 2,881 ± 15 | 58.1 ± 0.1 / 5,296 ± 25 |   0.476 |
| siri | siri-high  |  960 |    1000 | 43.6 ± 0.3 / 10,049 ± 60 |  32.2 ± 0.3 / 9,739 ± 60 | 75\
.9 ± 0.3 / 7,396 ± 54 | 88.4 ± 0.1 / 4,633 ± 15 | 60.0 ± 0.1 / 7,954 ± 25 |   0.389 |"""


def test_it_fits_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    paper_run(tmp_path / "siri", {"math500": 4, "amc": 8})
    assert main(["compare", str(tmp_path / "siri")]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for name in SIZES:
        assert f" {name} " in text
    assert "1000, 1000, 8, 4" in text and "The numbers of samples differ." in " ".join(text.split())


def drawn(rng: random.Random, step: int | None, name: str, size: int) -> QuestionRecord:
    """A set whose accuracy and length are its own: pooling over questions would show."""
    samples = rng.choice([1, 2, 4, 32])
    chance = random.Random(name).random()
    right = [sum(rng.random() < chance for _ in range(samples)) for _ in range(size)]
    return QuestionRecord(
        step, name, (8, 64), samples, tuple(map(str, range(size))),
        fingerprint([(name, str(size))]),
        ((0,) * size, tuple(right)), tuple(64 * chance * rng.random() + 1 for _ in range(size)),
    )  # fmt: skip


def test_drawn_sets_are_never_pooled(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    for case in range(12):
        names = [f"set{i}-{rng.random():.3f}" for i in range(rng.randrange(1, 6))]
        sizes = {name: rng.choice([1, 2, 7, 60, 300]) for name in names}
        late = rng.randrange(1, len(names) + 1)  # the others are added after the start
        plan = []
        for step, name in ((0, "start"), (4, "siri-low"), (8, "siri-high"), (9, None)):
            there = names[:late] if step == 0 else names
            plan.append((step, name, [drawn(rng, step, of, sizes[of]) for of in there]))
        select = rng.choice([None, *names])
        write(tmp_path / str(case), plan, select)
        reported = [name for name in names if name != select or name == names[0]]
        found = compare([tmp_path / str(case)])
        table = set_table(found.runs, found.starts)
        assert list(table.names) == reported, (seed, case)
        common = [name for name in reported if name in names[:late]]
        assert list(table.common) == common, (seed, case)
        for row, (_, _, records) in zip(table.rows, plan, strict=True):
            by = {one.set: one for one in records}
            for name, cell in row.cells.items():
                shares = [c / by[name].samples for c in by[name].right[1]]
                assert cell.accuracy.value == pytest.approx(sum(shares) / sizes[name]), seed
                assert row.samples(name) == by[name].samples
            means = [row.cells[name].accuracy.value for name in common]
            assert row.mean is not None
            assert row.mean.accuracy.value == pytest.approx(sum(means) / len(means)), seed
            low, high = row.mean.accuracy.bounds
            assert low <= row.mean.accuracy.value <= high
        values = as_json(found)
        if len(reported) > 1:
            assert [one["questions"] for one in values["sets"].values()] == [
                sizes[name] for name in reported
            ], seed
            for name, one in values["sets"].items():
                alone = as_json(compare([tmp_path / str(case)], name))
                assert {**one, "set": name} == alone, (seed, case, name)
        assert "pass_curve" in values["runs"][0]["checkpoints"][0]


def test_sets_with_other_questions_and_names_that_came_late(tmp_path: Path) -> None:
    one, two, math = (exact("aime24", step, 30 + step, 900, 30) for step in (0, 1, 2))
    other = exact("math500", 1, 80, 400, 50)
    whole = exact("math500", 0, 80, 400, 51)
    write(tmp_path / "run", [(0, "start", [one, whole]), (1, "siri-low", [two, other])])
    table = table_of(tmp_path / "run")
    assert (table.names, table.other_questions) == (("aime24",), ("math500",))
    # Sets got names after the start: the unnamed evaluation is no row of a named set.
    unnamed = QuestionRecord(**{**vars(one), "set": None})
    write(tmp_path / "late", [(0, "start", [unnamed]), (2, "siri-low", [math])])
    found = compare([tmp_path / "late"])
    assert [point.step for point in found.points] == [2] and found.record.set == "aime24"
    # Without names there is no table of sets, as before.
    write(tmp_path / "old", [(0, "start", [unnamed])])
    assert table_of(tmp_path / "old").names == ()
    assert "table" not in as_json(compare([tmp_path / "old"]))


def table_of(folder: Path) -> SetTable:
    found = compare([folder])
    return set_table(found.runs, found.starts)


def test_graded_checkpoints_find_the_start_of_their_run(tmp_path: Path) -> None:
    """``siri-train eval CHECKPOINT eval.samples=64`` beside a run that sampled 1000."""
    paper_run(tmp_path / "siri")
    folder = tmp_path / "siri" / "checkpoints" / "step_000640"
    cells = dict(zip(SIZES, PAPER["siri-low"], strict=True))
    records = [exact(of, 640, *cell, SIZES[of], 200) for of, cell in cells.items()]
    write(folder, [(None, None, records)])
    for folders in ([folder], [tmp_path / "siri", folder]):
        found = compare(folders)
        row = set_table(found.runs, found.starts).rows[-1]
        assert (row.point.run, row.point.name) == ("siri/step_000640", "siri-low")
        assert {row.samples(name) for name in SIZES} == {200}
        assert row.gain_per_length == pytest.approx(0.476, abs=2e-3)
        assert "The numbers of samples differ." in comparison_text(found)
    alone = compare([folder])
    assert [(t.first.run, t.second.name) for t in alone.tests] == [("siri/step_000640", "start")]
    with pytest.raises(ConfigError, match="--start .*nowhere holds no evaluation question by"):
        compare([folder], start=tmp_path / "nowhere")


def test_the_interval_of_a_mean_of_sets() -> None:
    """Against draws: independent figures whose errors are normal."""
    rng = random.Random(seed := random.SystemRandom().randrange(2**32))
    for _ in range(20):
        sigma = [rng.uniform(0.01, 0.2) for _ in range(rng.randrange(1, 6))]
        values = [rng.random() for _ in sigma]
        bounds = [Interval(v - 1.96 * s, v + 1.96 * s) for v, s in zip(values, sigma, strict=True)]
        low, high = mean_interval(values, bounds)
        half = 1.96 * sum(s * s for s in sigma) ** 0.5 / len(sigma)
        assert (high - low) / 2 == pytest.approx(half), seed
        assert (high + low) / 2 == pytest.approx(sum(values) / len(values)), seed
    with pytest.raises(ValueError, match="got 0 values and 0 intervals"):
        mean_interval([], [])
