"""Rollouts with a transformers model in this process: a continuously refilled, cached batch.

Naive padded ``generate`` decodes every row until the longest one of its batch ends. Here a row
leaves the batch and the cache when it finishes, columns that were padding for it go with it, and
waiting prompts take its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from siri_train.rollout.engine import Completion, EngineError, SamplingParams, check_prompts

# Shrinking or growing the cache copies it; it pays for itself below this share of live rows.
_COMPACT_BELOW = 0.8


@dataclass
class _Batch:
    """The rows being decoded.

    Args:
        cache: keys and values of every row, padded at the left, [B, heads, L, head size] a layer.
        mask: [B, L + 1] int64, 1 at real tokens; the last column is the token about to be read.
        position: [B, 1] int64, position of that token.
        ids: [B, 1] int64, that token.
        live: the index of the response each row belongs to.
        ended: [B] bool, rows that have finished and wait for the next compaction.
    """

    cache: Any
    mask: Tensor
    position: Tensor
    ids: Tensor
    live: list[int]
    ended: Tensor


class TransformersEngine:
    """Sample from the trainer's own model; weights are shared, so there is nothing to sync.

    Args:
        model: a causal language model with a key-value cache.
        pad_token_id: any valid id; padding is masked.
        batch_rows: sequences decoded at a time.
    """

    def __init__(self, model: Any, pad_token_id: int, batch_rows: int = 256) -> None:
        if batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
        self.model = model
        self.pad_token_id = pad_token_id
        self.batch_rows = batch_rows

    def sync(self) -> None:
        """Nothing to do: the engine samples from the trainer's own weights."""

    def sleep(self) -> None:
        """Nothing to give: the model is the trainer's, the cache lives as long as a call."""

    def close(self) -> None:
        """Nothing to free: the model is the trainer's."""

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
        """Sample ``params.n`` responses to every prompt; see :class:`Engine` for the arguments.

        Raises:
            ValueError: an empty prompt (its index is named).
            EngineError: out of memory; the message says what to lower.
        """
        check_prompts(prompts)
        rows = [index for index in range(len(prompts)) for _ in range(params.n)]
        # Prompts of like length together: less left padding. Ties keep the order of the questions.
        rows.sort(key=lambda index: len(prompts[index]))
        run = _Run(self, [list(prompts[index]) for index in rows], params)
        results: list[list[Completion]] = [[] for _ in prompts]
        finished = 0
        try:
            with _evaluating(self.model):
                while run.busy:
                    if cancelled is not None and cancelled():
                        run.abort("cancelled")
                        break
                    for row in run.step():
                        finished += 1
                        if on_finish is not None:
                            on_finish(rows[row], run.completions[row])
                        if progress is not None:
                            progress(finished, len(rows))
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise EngineError(
                f"the transformers engine ran out of memory: {error}; lower rollout.batch_rows "
                f"({self.batch_rows}) or schedule.max_len"
            ) from error
        for index, completion in zip(rows, run.completions, strict=True):
            results[index].append(completion)
        return results


class _Run:
    """One call of ``generate``: responses waiting, being decoded, finished."""

    def __init__(
        self, engine: TransformersEngine, prompts: list[list[int]], params: SamplingParams
    ) -> None:
        self.model, self.pad = engine.model, engine.pad_token_id
        self.rows, self.params, self.prompts = engine.batch_rows, params, prompts
        self.device = next(self.model.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(params.seed)
        self.stops = torch.tensor(
            sorted(params.stop_token_ids), dtype=torch.long, device=self.device
        )
        self.completions = [Completion([], [], "length", []) for _ in prompts]
        self.waiting = deque(range(len(prompts)))
        self.batch: _Batch | None = None

    @property
    def busy(self) -> bool:
        """Something waits or is being decoded."""
        return bool(self.waiting) or self.batch is not None

    def step(self) -> list[int]:
        """One token for every live row, or the first token of admitted ones.

        Returns:
            The responses that finished.
        """
        live = 0 if self.batch is None else len(self.batch.live)
        if self.waiting and live <= _COMPACT_BELOW * self.rows:
            return self._admit([self.waiting.popleft() for _ in range(self._room(live))])
        assert self.batch is not None
        batch = self.batch
        logits = self._forward(batch.ids, batch.mask, batch.position, batch.cache)
        return self._advance(batch, logits)

    def _room(self, live: int) -> int:
        return min(self.rows - live, len(self.waiting))

    def abort(self, reason: str) -> None:
        """Mark what has not finished."""
        unfinished = set(self.waiting)
        if self.batch is not None:
            ended = self.batch.ended.tolist()
            unfinished |= {i for i, done in zip(self.batch.live, ended, strict=True) if not done}
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
        prompts = [self.prompts[index] for index in chosen]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache()
        logits = self._forward(ids, mask, position, cache)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        others, fresh = self.batch, _Batch(cache, mask, position, ids, chosen, ended)
        finished = self._advance(fresh, logits)
        self.batch = _joined(others, self.batch)
        return finished

    def _advance(self, batch: _Batch, logits: Tensor) -> list[int]:
        """Draw a token a row, note it, and make ``batch`` ready for the next forward pass."""
        token, logprob, entropy = sample(logits, self.params, self.generator)
        was_ended = batch.ended
        batch.ended = was_ended | torch.isin(token, self.stops)
        finished = []
        full = []
        rows = zip(
            batch.live,
            token.tolist(),
            logprob.tolist(),
            entropy.tolist(),
            was_ended.tolist(),
            batch.ended.tolist(),
            strict=True,
        )
        for row, (index, tok, lp, ent, before, now) in enumerate(rows):
            if before:
                continue
            completion = self.completions[index]
            completion.token_ids.append(tok)
            completion.logprobs.append(lp)
            assert completion.entropies is not None
            completion.entropies.append(ent)
            if now:
                completion.finish_reason = "stop"
            elif len(completion.token_ids) == self.params.max_tokens:
                full.append(row)
            else:
                continue
            finished.append(index)
        batch.ended[full] = True
        batch.mask = torch.cat([batch.mask, torch.ones_like(batch.mask[:, :1])], dim=1)
        batch.position, batch.ids = batch.position[:, -1:] + 1, token[:, None]
        keep = (~batch.ended).nonzero()[:, 0]
        if len(keep) == 0:
            self.batch = None
            return finished
        if len(keep) < _COMPACT_BELOW * len(batch.live):
            _compact(batch, keep)
        self.batch = batch
        return finished


def _compact(batch: _Batch, keep: Tensor) -> None:
    """Leave only the rows ``keep``, and drop the columns that are padding in all of them."""
    batch.cache.batch_select_indices(keep)
    batch.ids, batch.mask = batch.ids[keep], batch.mask[keep]
    batch.position, batch.ended = batch.position[keep], batch.ended[keep]
    batch.live = [batch.live[row] for row in keep.tolist()]
    first = int(batch.mask.any(0).int().argmax())
    if first:
        batch.mask = batch.mask[:, first:]
        for layer in batch.cache.layers:
            layer.keys = layer.keys[:, :, first:].contiguous()
            layer.values = layer.values[:, :, first:].contiguous()


def _joined(old: _Batch | None, new: _Batch | None) -> _Batch | None:
    """Two batches as one, the narrower cache padded at the left."""
    if old is None or new is None:
        return new or old
    if bool(old.ended.any()):
        _compact(old, (~old.ended).nonzero()[:, 0])
    width = max(old.mask.shape[1], new.mask.shape[1])

    def widen(x: Tensor, have: int, dim: int) -> Tensor:
        shape = list(x.shape)
        shape[dim] = width - have
        return torch.cat([x.new_zeros(shape), x], dim=dim) if width > have else x

    for a, b in zip(old.cache.layers, new.cache.layers, strict=True):
        a.keys, a.values = (
            torch.cat(
                [widen(x, old.mask.shape[1], 2), widen(y, new.mask.shape[1], 2)],
            )
            for x, y in ((a.keys, b.keys), (a.values, b.values))
        )
    return _Batch(
        old.cache,
        torch.cat([widen(old.mask, old.mask.shape[1], 1), widen(new.mask, new.mask.shape[1], 1)]),
        torch.cat([old.position, new.position]),
        torch.cat([old.ids, new.ids]),
        old.live + new.live,
        torch.cat([old.ended, new.ended]),
    )


def sample(
    logits: Tensor, params: SamplingParams, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token a row.

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
    # NaN draws anything, with NaN as its log-prob: an error here would end a GPU's context.
    token = torch.multinomial(probs.nan_to_num(1.0), 1, generator=generator)
    entropy = -(probs * logprobs.masked_fill(probs == 0, 0.0)).sum(-1)
    return token[:, 0], logprobs.gather(-1, token)[:, 0], entropy


@contextmanager
def _evaluating(model: Any) -> Any:
    """Dropout off while sampling, and the model's mode put back whatever happens."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
