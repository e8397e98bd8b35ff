"""The supervised stage's examples, checked before weights are loaded, as batches by step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig, SftConfig
from siri_train.data.demo_task import questions as embedded
from siri_train.data.gate import check_data
from siri_train.data.questions import Question
from siri_train.data.rows import DataError
from siri_train.data.sources import read_sources
from siri_train.data.supervised import SupervisedExample, supervised_examples
from siri_train.model import demo_model
from siri_train.model.folder import check_model
from siri_train.model.ids import require_chat
from siri_train.model.lora import check_lora
from siri_train.model.policy import max_positions, resolve_model_path
from siri_train.trainer.preflight import scratch_tokenizer

# So many batches are sorted by length together, then split and shuffled: similar lengths a batch.
_POOL = 8


def prepare_batches(config: RunConfig, sft: SftConfig) -> tuple[SupervisedBatches, Any]:
    """Every check of data and tokenizer that needs no weights, then the batches.

    Returns:
        The batches, and the tokenizer they are encoded with.

    Raises:
        ConfigError: no solutions, a solution that is not the question's, too few examples within
            ``sft.max_len``, or examples over the model's positions or ``train.token_budget``.
    """
    questions = [q for q in read_sources(config.data.train, "train", "data.train") if q.solution]
    if not questions:
        raise ConfigError(
            "data.train: no source has solutions; set solution_field for the sft stage"
        )
    check_data(questions, [], config.reward)
    tokenizer = _tokenizer(config)
    examples = _examples(config, sft, questions, tokenizer)
    fitting = [e for e in examples if _length(e) <= sft.max_len]
    longer = len(examples) - len(fitting)
    if len(fitting) < sft.batch_size:
        shortest = min(_length(e) for e in examples)
        if longer:
            raise ConfigError(
                f"sft.max_len: {sft.max_len}, but only {len(fitting)} of {len(examples)} examples "
                f"fit and a batch (sft.batch_size) takes {sft.batch_size}; the shortest has "
                f"{shortest} tokens, the longest {max(_length(e) for e in examples)}"
            )
        raise ConfigError(
            f"sft.batch_size: {sft.batch_size}, but data.train has only {len(examples)} examples; "
            "lower it, or add questions"
        )
    longest = max(_length(e) for e in fitting)
    positions = max_positions(config.model)
    if positions is not None and longest > positions:
        raise ConfigError(
            f"sft.max_len: {sft.max_len} lets in an example of {longest} tokens, but the model has "
            f"{positions} positions; takes at most {positions}"
        )
    if longest > config.train.token_budget:
        raise ConfigError(
            f"train.token_budget: {config.train.token_budget} must hold one example of the sft "
            f"stage, the longest has {longest} tokens; raise it or lower sft.max_len"
        )
    print(f"{config.name} sft: {len(fitting)} examples, {longer} longer ones left out", flush=True)
    return SupervisedBatches(fitting, sft.batch_size, config.seed), tokenizer


def _length(example: SupervisedExample) -> int:
    return len(example.prompt_ids) + len(example.response_ids)


def _tokenizer(config: RunConfig) -> Any:
    if config.model.scratch is not None:
        return scratch_tokenizer(config.model)
    checked = check_model(resolve_model_path(config.model), "model.path")
    if config.model.lora is not None:
        check_lora(checked.skeleton, config.model.lora)
    return checked.tokenizer


def _examples(
    config: RunConfig, sft: SftConfig, questions: Sequence[Question], tokenizer: Any
) -> list[SupervisedExample]:
    kinds = {source.kind == "embedded" for source in config.data.train}
    if kinds == {True}:
        if tokenizer.get_vocab() != demo_model.tokenizer().get_vocab():
            raise ConfigError(
                "data.train: the embedded task is learnt with its own words, which the tokenizer "
                f"of {config.model.path!r} does not have; give model.path=embedded or other data"
            )
        return embedded.supervised_examples(questions, tokenizer)
    if True in kinds:
        raise ConfigError(
            "data.train: the sft stage takes sources of kind embedded or others, not both at once"
        )
    if config.data.template == "chat":
        require_chat(tokenizer, config.data.system, config.data.instruction)
    try:
        return supervised_examples(
            questions,
            tokenizer,
            template=config.data.template,
            system=config.data.system,
            instruction=config.data.instruction,
            think=config.reward.think == "required",
        ).examples
    except DataError as error:
        raise ConfigError(f"data.train: {error}") from error


class SupervisedBatches:
    """Batches of like length, every epoch in another order: a pure function of the step.

    Args:
        examples: at least ``batch_size``.
        batch_size: examples a batch.
        seed: of the orders.
    """

    def __init__(self, examples: Sequence[SupervisedExample], batch_size: int, seed: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self._restart()

    def __call__(self, step: int) -> list[SupervisedExample]:
        """The examples of 0-based ``step``."""
        epoch, index = divmod(step, len(self._batches))  # every epoch has as many
        if epoch < self._epoch:
            self._restart()
        while self._epoch < epoch:
            self._next_epoch()
        return self._batches[index]

    def _restart(self) -> None:
        self._rng, self._epoch = random.Random(self.seed), -1
        self._next_epoch()

    def _next_epoch(self) -> None:
        """One generator draws the orders of all epochs, one after the other."""
        size, self._batches = self.batch_size, []
        order = list(self.examples)
        self._rng.shuffle(order)
        for start in range(0, len(order) - size + 1, size * _POOL):
            pool = sorted(order[start : start + size * _POOL], key=lambda e: len(e.response_ids))
            batches = [pool[i : i + size] for i in range(0, len(pool) - size + 1, size)]
            self._rng.shuffle(batches)
            self._batches += batches
        self._epoch += 1
