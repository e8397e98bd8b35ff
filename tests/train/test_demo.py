"""The embedded task: questions, start, and what the demo promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import siri_train.commands.demo as command
from siri_train.ablate.plan import Asked, build_plan
from siri_train.ablate.presets import METHODS
from siri_train.cli import main
from siri_train.commands.demo import caps, demo, demo_config
from siri_train.commands.demo_result import Control, entries
from siri_train.config.base import ConfigError
from siri_train.data.demo_task import questions as embedded
from siri_train.model import demo_model
from siri_train.monitor.question_records import QuestionRecord
from siri_train.rewards import Response, grade_responses, make_verifier


def test_held_out_questions_are_never_trained_on() -> None:
    train = {q.prompt for q in embedded.questions(2000, seed=0)}
    held_out = {q.prompt for q in embedded.questions(500, seed=1, held_out=True)}
    assert len(train) == 2000 and len(held_out) == 500
    assert not train & held_out


def test_questions_repeat_by_seed_and_their_answers_are_right() -> None:
    questions = embedded.questions(200, seed=5)
    assert questions == embedded.questions(200, seed=5)
    assert questions != embedded.questions(200, seed=6)
    for question in questions:
        words = question.prompt.split()
        value = int(words[1])
        for operation in words[2:-2]:
            operand = int(operation[1:])
            value = {"+": value + operand, "-": value - operand, "*": value * operand}[operation[0]]
            value %= 10
        assert question.answer == str(value)


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(ConfigError, match="sizes"):
        embedded.questions(4, sizes=3)
    with pytest.raises(ConfigError, match="size: the embedded task has"):
        embedded.questions(400, min_operations=1, max_operations=1)


def test_tokenizer_is_one_token_a_word_and_survives_saving(tmp_path: Path) -> None:
    tokenizer = demo_model.tokenizer()
    demo_model.scratch_model(demo_architecture())[0].save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for question in embedded.questions(50):
        ids = [demo_model.WORD_ID[word] for word in question.prompt.split()]
        assert tokenizer.encode(question.prompt) == ids == loaded.encode(question.prompt)
    for example in embedded.supervised_examples(embedded.questions(50), tokenizer):
        text = loaded.decode(example.response_ids, skip_special_tokens=True)
        assert text == tokenizer.decode(example.response_ids, skip_special_tokens=True)
        assert text.split() == [demo_model.WORDS[i] for i in example.response_ids[:-1]]


def test_the_reward_reads_the_tasks_own_chains() -> None:
    questions = embedded.questions(300)
    tokenizer = demo_model.tokenizer()
    examples = embedded.supervised_examples(questions, tokenizer)
    texts = [tokenizer.decode(e.response_ids, skip_special_tokens=True) for e in examples]
    grades = grade_responses(
        [Response(text, "stop") for text in texts],
        [q.answer for q in questions],
        verifier=make_verifier("exact"),
    )
    share = sum(g.reward for g in grades) / len(grades)
    assert 0.3 < share < 0.95  # the chains slip, on purpose
    for grade, example in zip(grades, examples, strict=True):
        assert grade.answer is not None
        assert grade.answer.strip() == demo_model.WORDS[example.response_ids[-3]]


def demo_architecture():  # type: ignore[no-untyped-def]
    from siri_train.config.model import ArchitectureConfig

    return ArchitectureConfig()


def test_the_shipped_start_is_small_and_loads() -> None:
    sizes = [path.stat().st_size for path in demo_model.START_FOLDER.iterdir()]
    assert sum(sizes) < 500_000
    model = AutoModelForCausalLM.from_pretrained(demo_model.START_FOLDER)
    assert model.config.model_type == "qwen2"
    assert 50_000 < sum(p.numel() for p in model.parameters()) < 200_000
    assert demo_model.start_parameters() == sum(
        p.numel() for name, p in model.named_parameters() if name != "lm_head.weight"
    )
    assert len(AutoTokenizer.from_pretrained(demo_model.START_FOLDER)) == len(demo_model.WORDS)


def test_controls_are_the_longest_the_mean_and_the_shortest_cap_and_two_between() -> None:
    config = demo_config(Path("siri"), 3)
    assert caps(config) == [52, 36, 28, 24, 20]
    assert config.seed == 3 and config.eval.select == "validation"
    tested = embedded.questions(512, seed=1, held_out=True)
    chosen = embedded.questions(256, seed=2, held_out=True)
    assert not {q.prompt for q in tested} & {q.prompt for q in chosen}


def test_the_best_control_is_chosen_on_the_other_questions(tmp_path: Path) -> None:
    """Right at every budget counts, and the test questions have no say."""
    found = []
    for cap, chosen, tested in ((52, [1, 3], [4, 4]), (28, [3, 3], [0, 1]), (20, [2, 2], [3, 3])):
        run = tmp_path / f"constant-{cap}"
        run.mkdir()
        sets = {"test": tested, "validation": chosen}
        records = [
            QuestionRecord(
                step, named, (8, 16), 1, tuple("abcd"), "f",
                tuple(tuple([1] * n + [0] * (4 - n)) for n in counts), (5.0,) * 4,
            )
            for step in (0, 6) for named, counts in sets.items()
        ]  # fmt: skip
        lines = [json.dumps(record.row()) + "\n" for record in records]
        (run / "eval_questions.jsonl").write_text("".join(lines))
        entry = {"name": "constant-cap", "step": 6, "path": "checkpoints/step_000006"}
        (run / "summary.json").write_text(json.dumps([entry]))
        found.append(Control(cap, run))
    siri = tmp_path / "siri"
    siri.mkdir()
    names = ("start", "siri-low", "siri-low-measured", "siri-high", "siri-high-measured")
    own = [{"name": n, "step": k, "path": f"checkpoints/{k}"} for k, n in enumerate(names)]
    (siri / "summary.json").write_text(json.dumps([{**own[0], "path": "embedded"}, *own[1:]]))
    summary = {entry["name"]: entry for entry in entries(tmp_path, siri, found, "validation")}
    assert list(summary) == [
        "start", "constant-cap", "constant-28", "constant-20", "siri-low", "siri-low-scheduled",
        "siri-high",
    ]  # fmt: skip
    assert [name for name, one in summary.items() if one.get("best_constant")] == ["constant-28"]
    assert summary["siri-low"]["step"] == 2 and summary["siri-low-scheduled"]["step"] == 1
    assert summary["siri-high"]["path"] == "siri/checkpoints/4"
    assert summary["start"]["path"] == "embedded"


def test_full_runs_every_method_with_five_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Asked] = []
    monkeypatch.setattr(command, "ablate", lambda one, jobs: asked.append(one) or 0)
    assert main(["demo", "--full", "--seed", "3", "--out", str(tmp_path / "demo")]) == 0
    plan = build_plan(asked[0])
    assert plan.out == tmp_path / "demo" / "full" and plan.seeds == [3, 4, 5, 6, 7]
    assert {arm.method for arm in plan.arms} == set(METHODS)
    assert plan.arms[0].name == "constant-max"  # what the others are compared with
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_gets_shorter_and_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Margins well inside what bench/results/cpu/demo.json reports, so that a seed cannot fail."""
    summary = {entry["name"]: entry for entry in demo(tmp_path / "demo")}
    assert list(summary) == [
        "start", "constant-cap", "constant-36", "constant-28", "constant-24", "constant-20",
        "siri-low", "siri-low-scheduled", "siri-high",
    ]  # fmt: skip
    start, low, high = summary["start"], summary["siri-low"], summary["siri-high"]
    assert low["tokens"] < 0.65 * start["tokens"]
    assert low["accuracy"] > 1.2 * start["accuracy"]
    assert high["accuracy"] > 1.3 * start["accuracy"]
    assert high["tokens"] < start["tokens"]
    assert 180 <= low["step"] <= 220 and summary["siri-low-scheduled"]["step"] == 180
    out = capsys.readouterr().out
    assert "The task:" in out and "siri-high" in out and "report.html" in out
    assert "siri-low against the longest cap (52): " in out and "240/240" not in out
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "siri-low" in page and "constant" in page and "The task:" in page
    assert "Accuracy at every budget" in page
    for entry in summary.values():
        run = tmp_path / "demo" / entry["run"]
        rows = (run / "metrics.jsonl").read_text().splitlines()
        assert len(rows) == demo_config(tmp_path, 0).train.steps
        assert json.loads(rows[0])["step"] == 0
        if entry["name"] != "start":
            AutoModelForCausalLM.from_pretrained(tmp_path / "demo" / entry["path"])
            assert entry["trained_tokens"] > 100_000 and entry["train_seconds"] > 0

    again = demo(tmp_path / "demo")  # reuses everything
    assert again == list(summary.values())
    with pytest.raises(ConfigError, match="seed was 0, is now 1"):
        demo(tmp_path / "demo", seed=1)
