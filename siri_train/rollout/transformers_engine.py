"""Rollouts with a transformers model in this process: a cached batch loop that drops finished rows.

Naive padded ``generate`` keeps decoding every row until the longest one ends. Here rows leave the
batch and the cache as they finish, which is most of the speed on ragged lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from siri_train.rollout.engine import Completion, SamplingParams

# Shrinking the cache copies it; below this share of live rows the copy pays for itself.
_COMPACT_BELOW = 0.8


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

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """Sample ``params.n`` responses to every prompt.

        Args:
            prompts: token ids, at least one each.
            params: see :class:`SamplingParams`.
            progress: called with (finished responses, all responses) after every batch.

        Returns:
            For each prompt its ``n`` completions.

        Raises:
            ValueError: an empty prompt (its index is named).
        """
        for index, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise ValueError(f"prompts[{index}] is empty: at least one token is needed")
        rows = [index for index in range(len(prompts)) for _ in range(params.n)]
        # Prompts of like length together: less left padding. Ties keep the order of the questions.
        rows.sort(key=lambda index: len(prompts[index]))
        device = next(self.model.parameters()).device
        generator = torch.Generator(device).manual_seed(params.seed)
        results: list[list[Completion]] = [[] for _ in prompts]
        with _evaluating(self.model):
            for start in range(0, len(rows), self.batch_rows):
                batch = rows[start : start + self.batch_rows]
                done = self._decode([prompts[index] for index in batch], params, generator, device)
                for index, completion in zip(batch, done, strict=True):
                    results[index].append(completion)
                if progress is not None:
                    progress(min(start + self.batch_rows, len(rows)), len(rows))
        return results

    def _decode(
        self,
        prompts: list[Sequence[int]],
        params: SamplingParams,
        generator: torch.Generator,
        device: torch.device,
    ) -> list[Completion]:
        width = max(len(p) for p in prompts)
        ids = torch.full((len(prompts), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        stops = torch.tensor(sorted(params.stop_token_ids), dtype=torch.long, device=device)

        completions = [Completion([], [], "length", []) for _ in prompts]
        live = list(range(len(prompts)))  # the completion each row of the batch belongs to
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        cache = DynamicCache()
        for step in range(params.max_tokens):
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            token, logprob, entropy = sample(out.logits[:, -1], params, generator)
            was_ended, ended = ended, ended | torch.isin(token, stops)
            rows = zip(
                live,
                token.tolist(),
                logprob.tolist(),
                entropy.tolist(),
                was_ended.tolist(),
                ended.tolist(),
                strict=True,
            )
            for index, tok, lp, ent, before, now in rows:
                if before:
                    continue
                completion = completions[index]
                completion.token_ids.append(tok)
                completion.logprobs.append(lp)
                assert completion.entropies is not None
                completion.entropies.append(ent)
                if now:
                    completion.finish_reason = "stop"
            keep = (~ended).nonzero()[:, 0]
            if len(keep) == 0 or step == params.max_tokens - 1:
                break
            position = position[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            ids = token[:, None]
            if len(keep) < _COMPACT_BELOW * len(live):
                cache.batch_select_indices(keep)
                ids, mask, position, ended = ids[keep], mask[keep], position[keep], ended[keep]
                live = [live[row] for row in keep.tolist()]
        return completions


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
    token = torch.multinomial(probs, 1, generator=generator)
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
