"""Rollouts with a transformers model in this process: a continuously refilled, cached batch.

Padded ``generate`` decodes every sequence until the longest one of its batch ends. Here the next
waiting response takes the place of one that finishes, in the cache too. Once none waits, finished
sequences leave the batch. A prompt is read once for all of its responses.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from siri_train.rollout.dealing import response_order, to_admit
from siri_train.rollout.engine import (
    CANCELLED,
    Completion,
    EngineError,
    SamplingParams,
    check_prompts,
)
from siri_train.rollout.kv_cache import DecodingBatch, compact, join, new_cache, select, trim

if TYPE_CHECKING:
    from siri_train.config.run import RunConfig
    from siri_train.model.policy import Policy

# Dropping finished sequences copies the cache. It pays for itself below this share of unfinished
# ones.
_COMPACT_BELOW = 0.8


class TransformersEngine:
    """Sample from the trainer's own model, or from a copy of it.

    Args:
        model: a causal language model with a key-value cache.
        pad_token_id: any valid id; padding is masked.
        batch_rows: sequences decoded at a time.
        own_weights: sample from a copy as it was at the last :meth:`sync`, so that the trainer may
            update its weights meanwhile; costs their memory once more.

    Raises:
        ValueError: ``batch_rows`` is below 1.
    """

    def __init__(
        self, model: Any, pad_token_id: int, batch_rows: int = 256, *, own_weights: bool = False
    ) -> None:
        if batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
        self.trainer = model
        # Not frozen: frozen weights take other CPU kernels, whose log-probs differ in the last bit.
        self.model = copy.deepcopy(model) if own_weights else model
        self.pad_token_id = pad_token_id
        self.batch_rows = batch_rows

    @torch.no_grad()
    def sync(self) -> None:
        """Copy the trainer's weights where the engine has its own; otherwise do nothing."""
        if self.model is not self.trainer:
            pairs = zip(self.model.parameters(), self.trainer.parameters(), strict=True)
            for mine, trainers in pairs:
                mine.copy_(trainers)

    def sleep(self) -> None:
        """Do nothing: the model is the trainer's, and the cache is freed after each call."""

    def close(self) -> None:
        """Do nothing: the model is the trainer's."""

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        progress: Callable[[int, int], None] | None = None,
        *,
        on_finish: Callable[[int, Completion], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[list[Completion]]:
        """Sample ``params.n`` responses to every prompt, as :meth:`.Engine.generate`.

        Args:
            prompts: token ids, at least one each.
            params: see :class:`SamplingParams`.
            progress: called with (finished responses, all responses).
            on_finish: called with (index of the prompt, response) as each finishes.
            cancelled: called before each decoding step; true ends the call.

        Raises:
            ValueError: an empty prompt (its index is named).
            EngineError: out of memory; the message says what to lower.
        """
        check_prompts(prompts)
        owners = response_order([len(prompt) for prompt in prompts], params.n)
        run = _Run(self, prompts, owners, params)
        results: list[list[Completion]] = [[] for _ in prompts]
        finished = 0

        def finish(ended: list[int]) -> None:
            nonlocal finished
            for response in ended:
                finished += 1
                if on_finish is not None:
                    on_finish(owners[response], run.completions[response])
                if progress is not None:
                    progress(finished, len(owners))

        try:
            with _evaluating(self.model):
                finish(run.refuse_too_long())
                while run.busy:
                    if cancelled is not None and cancelled():
                        run.abort(CANCELLED)
                        break
                    finish(run.step())
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise EngineError(
                f"the transformers engine ran out of memory: {error}; lower rollout.batch_rows "
                f"({self.batch_rows}) or schedule.max_len"
            ) from error
        for index, completion in zip(owners, run.completions, strict=True):
            results[index].append(completion)
        return results


def build(config: RunConfig, policy: Policy, *, ahead: bool = False) -> TransformersEngine:
    """The engine of a recipe.

    Args:
        config: the recipe.
        policy: whose weights it samples from.
        ahead: sample from a copy of them, which changes at a sync only.
    """
    return TransformersEngine(
        policy.model, policy.pad_token_id, config.rollout.batch_rows, own_weights=ahead
    )


class _Run:
    """One call of ``generate``: responses waiting, being decoded, finished."""

    def __init__(
        self,
        engine: TransformersEngine,
        prompts: Sequence[Sequence[int]],
        owners: list[int],  # the prompt of each response; equal ones stand together
        params: SamplingParams,
    ) -> None:
        self.model, self.pad = engine.model, engine.pad_token_id
        self.batch_size, self.params = engine.batch_rows, params
        self.prompts, self.owners = prompts, owners
        self.device = next(self.model.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(params.seed)
        self.stops = torch.tensor(
            sorted(params.stop_token_ids), dtype=torch.long, device=self.device
        )
        self.completions = [Completion([], [], "length", []) for _ in owners]
        self.waiting = deque(range(len(owners)))
        self.batch: DecodingBatch | None = None
        # A prompt that has been read and whose further responses wait.
        self.read: tuple[DecodingBatch, Tensor] | None = None

    @property
    def busy(self) -> bool:
        """A response waits or is being decoded."""
        return bool(self.waiting) or self.batch is not None

    def step(self) -> list[int]:
        """Decode one token for every unfinished sequence, or the first token of new ones.

        Returns:
            The responses that finished.
        """
        unfinished = 0 if self.batch is None else self.batch.unfinished
        free = to_admit(unfinished, len(self.waiting), self.batch_size)
        if free:
            return self._admit([self.waiting.popleft() for _ in range(free)])
        assert self.batch is not None
        batch = self.batch
        if batch.cache.layers[0].full:  # it is copied now anyway
            trim(batch)
        logits = self._forward(batch.ids, batch.mask, batch.position, batch.cache)
        return self._advance(batch, logits)

    def refuse_too_long(self) -> list[int]:
        """Abort responses that would exceed the model's positions; returns them."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is None:
            return []
        room = positions - self.params.max_tokens
        refused = [i for i in self.waiting if len(self.prompts[self.owners[i]]) > room]
        lost = set(refused)
        self.waiting = deque(index for index in self.waiting if index not in lost)
        for index in refused:
            self.completions[index].finish_reason = "abort"
            self.completions[index].error = (
                f"the prompt has {len(self.prompts[self.owners[index]])} tokens, with max_tokens "
                f"{self.params.max_tokens} more than the model's {positions} positions"
            )
        return refused

    def abort(self, reason: str) -> None:
        """End every response that has not finished, with ``reason`` as its error."""
        unfinished = set(self.waiting)
        if self.batch is not None:
            pairs = zip(self.batch.responses, self.batch.ended, strict=True)
            unfinished |= {response for response, done in pairs if not done}
        for index in unfinished:
            self.completions[index].finish_reason = "abort"
            self.completions[index].error = reason
        self.waiting.clear()
        self.batch = None

    def _forward(self, ids: Tensor, mask: Tensor, position: Tensor, cache: Any) -> Tensor:
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]

    def _admit(self, chosen: list[int]) -> list[int]:
        """Read the prompts of waiting responses, draw their first token, join the batch."""
        owners = [self.owners[index] for index in chosen]
        known = [] if self.read is None else self.read[0].responses
        fresh = [owner for owner in dict.fromkeys(owners) if owner not in known]
        read, logits = self._read(fresh) if fresh else (None, None)
        if self.read is not None:
            held, held_logits = self.read
            read = join(held, read)
            logits = held_logits if logits is None else torch.cat([held_logits, logits])
        assert read is not None and logits is not None
        places = [read.responses.index(owner) for owner in owners]
        admitted = select(read, places, chosen)
        logits, last = logits[places], logits[places[-1:]]
        self.read = None
        if self.waiting and self.owners[self.waiting[0]] == owners[-1]:
            self.read = select(read, places[-1:], [owners[-1]]), last
        others = self.batch
        finished = self._advance(admitted, logits)
        self.batch = join(others, self.batch)
        return finished

    def _read(self, owners: list[int]) -> tuple[DecodingBatch, Tensor]:
        """Prompts as a batch, one sequence each, and the logits of their last tokens [B, V]."""
        prompts = [self.prompts[owner] for owner in owners]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, prompt in enumerate(prompts):
            ids[index, width - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
            mask[index, width - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        cache = new_cache()
        logits = self._forward(ids, mask, position, cache)
        ended = [False] * len(prompts)
        batch = DecodingBatch(cache, mask, position[:, -1:], ids[:, -1:], owners, ended)
        return batch, logits

    def _advance(self, batch: DecodingBatch, logits: Tensor) -> list[int]:
        """Draw a token for each sequence and make ``batch`` ready for the next forward pass."""
        token, logprob, entropy = sample(logits, self.params, self.generator)
        finished = []
        drawn = zip(
            batch.responses,
            token.tolist(),
            logprob.tolist(),
            entropy.tolist(),
            torch.isin(token, self.stops).tolist(),
            strict=True,
        )
        for place, (index, tok, lp, ent, stopped) in enumerate(drawn):
            if batch.ended[place]:
                continue
            completion = self.completions[index]
            completion.token_ids.append(tok)
            completion.logprobs.append(lp)
            assert completion.entropies is not None
            completion.entropies.append(ent)
            if stopped:
                completion.finish_reason = "stop"
            elif len(completion.token_ids) < self.params.max_tokens:
                continue
            batch.ended[place] = True
            finished.append(index)
        batch.mask = torch.cat([batch.mask, torch.ones_like(batch.mask[:, :1])], dim=1)
        # The position of a finished sequence stays: a model has a last learned position.
        ahead = torch.tensor(batch.ended, device=self.device).logical_not()[:, None]
        batch.position, batch.ids = batch.position + ahead, token[:, None]
        self.batch = batch if batch.unfinished else None
        few = 0 < batch.unfinished < _COMPACT_BELOW * len(batch.ended)
        if few and not self.waiting:
            compact(batch)
        return finished


def sample(
    logits: Tensor, params: SamplingParams, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token for each sequence.

    Args:
        logits: [B, V], any float dtype.
        params: temperature, top_p and top_k are used.
        generator: on the device of ``logits``.

    Returns:
        token [B] int64, its log-prob [B] float32 and the entropy [B] float32 of the distribution
        that was sampled from (after temperature and truncation).
    """
    logits = logits.float()
    if params.temperature == 0:
        token = logits.argmax(-1)
        return token, torch.zeros_like(logits[:, 0]), torch.zeros_like(logits[:, 0])
    logits = logits / params.temperature
    if params.top_k and params.top_k < logits.shape[-1]:
        kth = logits.topk(params.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if params.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        # Keep the smallest set that reaches top_p: drop what starts beyond it.
        drop = probs.cumsum(-1) - probs >= params.top_p
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    logprobs = logits.log_softmax(-1)
    probs = logprobs.exp()
    token = draw(probs, generator)
    # -inf, where nothing is drawn from, would make 0 * -inf.
    entropy = -(probs * logprobs.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
    return token[:, 0], logprobs.gather(-1, token)[:, 0], entropy


def draw(probs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token of the vocabulary for each sequence.

    On a CPU it inverts the cumulative sum, with one uniform number for each sequence.
    ``torch.multinomial`` draws a number for every token of the vocabulary, which takes a tenth of a
    decoding step of 135M weights.

    Args:
        probs: [B, V] float32. With NaN any token is drawn: an error would end a GPU's context.
        generator: on the device of ``probs``.

    Returns:
        [B, 1] int64.
    """
    probs = probs.nan_to_num(1.0)
    if probs.device.type != "cpu":
        return torch.multinomial(probs, 1, generator=generator)
    mass = probs.cumsum(-1, dtype=torch.float64)
    uniform = torch.rand(len(probs), 1, generator=generator, dtype=torch.float64)
    # right=True skips tokens of probability 0, whose sum equals their neighbour's. The product may
    # round up to the whole sum; then the last token that adds to it is drawn.
    below = (uniform * mass[:, -1:]).minimum(mass[:, -1:].nextafter(mass.new_zeros(())))
    return torch.searchsorted(mass, below, right=True)


@contextmanager
def _evaluating(model: Any) -> Any:
    """Switch dropout off while sampling, and restore the model's mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
