"""``python -m siri_train.commands.build_demo_start``: make a built-in task's supervised start.

The stages lead from single operations to whole chains without mistakes, then to all ways of writing
a chain. The last teaches wasteful habits with mistakes, which reinforcement learning then removes.
docs/log/method.md has the figures without each stage. It takes about five minutes on one core; the
results are shipped in ``siri_train/model/embedded_start`` and ``embedded_search_start``.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch

from siri_train.commands.sft import learning_rate, supervised_step
from siri_train.config.model import ArchitectureConfig, ModelConfig
from siri_train.config.run import SftConfig
from siri_train.data.demo_task.arithmetic import TaskConfig, make_drill
from siri_train.data.demo_task.questions import TASKS, is_held_out
from siri_train.data.demo_task.search import SearchConfig
from siri_train.data.supervised import SupervisedExample
from siri_train.model import demo_model
from siri_train.model.demo_model import START_FOLDERS
from siri_train.model.policy import Policy, load_policy
from siri_train.monitor.progress import Progress

BATCH = 64
ANSWER_WEIGHT = 4.0  # the graded token is one of thirty; with weight 1 it is learnt last
DIGITS = frozenset(demo_model.WORD_ID[digit] for digit in demo_model.DIGITS)
VERDICTS = frozenset(demo_model.WORD_ID[word] for word in (demo_model.WAIT, demo_model.END_THINK))


@dataclasses.dataclass(frozen=True)
class Stage:
    """One supervised stage.

    Args:
        name: shown while it runs.
        steps: optimiser steps; the learning rate falls on a cosine.
        lr: its peak.
        digit_weight: loss weight of the written results.
        config: of the task's questions and chains.
        verdict_weight: loss weight of the words that go on or end the thinking.
        until: the stage ends early once the mean loss of ten steps is below this.
    """

    name: str
    steps: int
    lr: float
    digit_weight: float
    config: TaskConfig | SearchConfig
    verdict_weight: float = 1.0
    until: float = 0.0


ARITHMETIC = (
    Stage(
        "skills",
        1200,
        3e-3,
        2.0,
        TaskConfig(
            max_operations=8,
            equals_rates=(0.0,),
            merge_rates=(0.0, 0.5),
            triple_rate=0.25,
            slip_rate=0.0,
            single_pass_rate=0.0,
            stop_rate=0.5,
            max_passes=4,
        ),
    ),
    Stage(
        "polish",
        600,
        3e-3,
        2.0,
        TaskConfig(max_operations=10, slip_rate=0.02, single_pass_rate=0.2, stop_rate=0.5),
    ),
    Stage("habits", 250, 1.5e-3, 1.5, TaskConfig(max_operations=10)),
)

_CAREFUL = SearchConfig(slip_rate=0.0, blind_rate=0.0, give_up_rate=0.0, again_rate=0.0)

SEARCH = (
    # Nothing here is drawn but the question, so the loss falls to 0 once the model has found which
    # operation and which candidate come next. It finds it suddenly, after 300 to 600 steps.
    Stage(
        "easy",
        1200,
        4e-3,
        2.0,
        dataclasses.replace(_CAREFUL, merge_rates=(0.0,), max_operations=2),
        verdict_weight=6.0,
        until=0.05,
    ),
    Stage("skills", 450, 3e-3, 2.0, _CAREFUL, verdict_weight=6.0),
    Stage("habits", 160, 2e-3, 2.0, SearchConfig(), verdict_weight=4.0),
)

STARTS = {"arithmetic": ("embedded", ARITHMETIC), "search": ("embedded-search", SEARCH)}
"""For each built-in task the name of its start and its stages after the drill."""


def build(out: Path, seed: int = 0, task: str = "arithmetic") -> Path:
    """Train the start from random weights and write it as a ``from_pretrained`` folder.

    Args:
        out: the folder; replaced if it exists.
        seed: of the weights and the chains. The same seed on the same machine gives the same bytes.
        task: a name in ``STARTS``.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    policy = load_policy(
        ModelConfig(path="scratch", scratch=ArchitectureConfig()), torch.device("cpu")
    )
    _drill(policy, seed)
    for stage in STARTS[task][1]:
        _run_stage(policy, stage, task, seed)
    shutil.rmtree(out, ignore_errors=True)
    policy.save(out)
    return out


def _drill(policy: Policy, seed: int, most: int = 600) -> None:
    """Train single operations, with loss on the results alone, until nearly all are right.

    Without this stage the whole chains stay on a plateau for hundreds of steps.
    """
    rng = random.Random(f"drill/{seed}")
    config = SftConfig(steps=most, lr=4e-3, lr_warmup_steps=50, min_lr_ratio=1.0)
    optimizer = _optimizer(policy, config)
    progress = Progress("drill", most)
    for step in range(most):
        batch = []
        for _ in range(BATCH):
            words = [demo_model.WORD_ID[word] for word in make_drill(rng)]
            weights = [float(word in DIGITS) for word in words[2:]]
            batch.append(SupervisedExample(words[:2], words[2:], weights))
        _set_rate(optimizer, learning_rate(step, config))
        loss = supervised_step(policy, optimizer, batch, 1 << 20, config).loss
        progress.update(step + 1, f"loss {loss:.3f}")
        if loss < 0.02:
            progress.update(most, f"loss {loss:.3f} after {step + 1} steps")
            return


def _run_stage(policy: Policy, stage: Stage, task: str, seed: int) -> None:
    """Train on the chains of one stage."""
    config = SftConfig(steps=stage.steps, lr=stage.lr, lr_warmup_steps=50)
    optimizer = _optimizer(policy, config)
    batches = _batches(stage, task, random.Random(f"{stage.name}/{seed}"))
    progress = Progress(stage.name, stage.steps)
    last: deque[float] = deque(maxlen=10)
    for step in range(stage.steps):
        _set_rate(optimizer, learning_rate(step, config))
        loss = supervised_step(policy, optimizer, next(batches), 1 << 20, config).loss
        progress.update(step + 1, f"loss {loss:.3f}")
        last.append(loss)
        if len(last) == 10 and sum(last) / 10 < stage.until:
            progress.update(stage.steps, f"loss {loss:.3f} after {step + 1} steps")
            return


def _batches(stage: Stage, task: str, rng: random.Random) -> Iterator[list[SupervisedExample]]:
    while True:
        pool = [_example(stage, task, rng) for _ in range(16 * BATCH)]
        pool.sort(key=lambda example: len(example.prompt_ids) + len(example.response_ids))
        batches = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        rng.shuffle(batches)
        yield from batches


def _example(stage: Stage, task: str, rng: random.Random) -> SupervisedExample:
    while True:
        question = TASKS[task].make_question(rng, stage.config)
        if not is_held_out(" ".join(question.prompt_words)):
            break
    words = TASKS[task].make_chain(rng, question, stage.config)
    chain = [demo_model.WORD_ID[word] for word in words]
    weights = [1.0] * len(chain)
    for position, token in enumerate(chain):
        if token in DIGITS:
            weights[position] = stage.digit_weight
        elif token in VERDICTS:
            weights[position] = stage.verdict_weight
    weights[-3] *= ANSWER_WEIGHT  # ... \boxed{ 7 } <eos>
    return SupervisedExample(
        [demo_model.WORD_ID[word] for word in question.prompt_words], chain, weights
    )


def _optimizer(policy: Policy, config: SftConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        policy.model.parameters(),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=list(STARTS), default="arithmetic")
    parser.add_argument("--out", type=Path, help="default: the folder that is shipped")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.out or START_FOLDERS[STARTS[arguments.task][0]]
    print(build(out, arguments.seed, arguments.task))


if __name__ == "__main__":
    main()
