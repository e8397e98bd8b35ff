"""The sync probe: do the engine's log-probs belong to the weights that the trainer has?

After a sync the engine samples a few short responses, and the trainer scores their tokens again.
Both are the same distribution, so the log-probs agree up to the rounding of their dtypes. An engine
that missed an update, or a part of one, goes on sampling without an error; the probe finds it.

A colocated vLLM starts with random weights, so the first probe already sees every weight that a
sync does not reach. A sync that fails later shows as soon as the weights have moved by more than
the threshold; until then it does less harm than the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from siri_train import distributed
from siri_train.config import engines
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.model.packing import Sample
from siri_train.model.policy import Policy
from siri_train.rollout.engine import Completion, Engine, EngineError, SamplingParams
from siri_train.trainer.memory_check import out_of_memory_named
from siri_train.trainer.update import score

THRESHOLDS = {"float32": 1e-3, "bfloat16": 0.2}
"""Default of ``rollout.probe.threshold`` where the coarser side computes in this dtype, in nats.
A clean run measures 1e-7 and 0.03 to 0.05 (docs/rollouts.md)."""

# Another temperature explains the difference where it leaves less than this share of it.
_EXPLAINED = 0.5


class SyncError(EngineError):
    """The engine's log-probs are not those of the trainer's weights."""


class SyncProbe:
    """Compare sampler and trainer on fresh tokens; see the module.

    Args:
        engine: the run's.
        policy: the trainer's.
        config: the recipe; ``rollout.probe`` is the probe's own part.
        prompts: token ids; the probe takes some, evenly spread.

    Raises:
        ConfigError: there is no prompt.
    """

    def __init__(
        self, engine: Engine, policy: Policy, config: RunConfig, prompts: Sequence[Sequence[int]]
    ) -> None:
        if not prompts:
            raise ConfigError("rollout.probe: needs at least one prompt")
        self.engine, self.policy, self.config = engine, policy, config
        self.probe, self.temperature = config.rollout.probe, config.rollout.temperature
        self.tokens = min(self.probe.tokens, config.schedule.max_len)
        trainer = config.distributed.compute_dtype or config.model.dtype
        own_weights = engines.engine_of(config).own_weights
        copies = own_weights or config.rollout.asynchronous
        sampler = config.sampler_dtype if own_weights else trainer
        self.dtypes = {"trainer": trainer, "sampler": sampler}
        self.threshold = self.probe.threshold or max(THRESHOLDS[d] for d in self.dtypes.values())
        # Where the engine samples from the trainer's own weights, one comparison is enough.
        self.every = self.probe.every if self.probe.every is not None else int(copies)
        self.first_only = self.probe.every is None and not copies
        self.syncs = 0
        # Each rank's engine must get its part of the questions.
        count = self.probe.responses * distributed.world_size()
        self.prompts = [prompts[i * len(prompts) // count] for i in range(count)]

    def after_sync(self, seed: int) -> float | None:
        """Compare, unless the recipe skips this sync. Every rank must call it.

        Args:
            seed: of the sampler.

        Returns:
            The mean |difference| of a log-prob in nats; None where this sync is skipped.

        Raises:
            SyncError: it is above the threshold, or not a number.
        """
        number, self.syncs = self.syncs, self.syncs + 1
        due = number == 0 if self.first_only else self.every and number % self.every == 0
        return self.look(seed) if due else None

    def look(self, seed: int) -> float:
        """Compare now, as :meth:`after_sync` does.

        Raises:
            SyncError: see :meth:`after_sync`.
        """
        params = SamplingParams(
            max_tokens=self.tokens,
            temperature=self.temperature,  # top_p and top_k would renormalise the sampler's side
            stop_token_ids=self.policy.eos_ids,
            seed=seed,
        )
        groups = self.engine.generate(self.prompts, params)
        pairs = [(p, c) for p, group in zip(self.prompts, groups, strict=True) for c in group]
        scored = [(p, c) for p, c in pairs if c.token_ids and c.finish_reason != "abort"]
        if not scored:
            raise SyncError(f"sync probe: the engine gave no response: {pairs[0][1].error}")
        differences = self._differences(scored, self.temperature)
        mean = sum(differences) / len(differences)
        # A temperature near 1 that is applied twice hides below bfloat16's noise, but it fits.
        mistake = self._wrong_temperature(scored, mean) if mean > self.threshold / 10 else None
        if mistake or not mean <= self.threshold:  # NaN is above
            raise SyncError(self._message(differences, mean, mistake))
        return mean

    def _differences(
        self, scored: Sequence[tuple[Sequence[int], Completion]], temperature: float
    ) -> list[float]:
        samples = [Sample(prompt, c.token_ids) for prompt, c in scored]
        with out_of_memory_named(self.config, self.policy.device, "the sync probe"):
            score(self.policy, samples, self.config.train.token_budget, temperature)
        return [
            abs(mine - its)
            for sample, (_, c) in zip(samples, scored, strict=True)
            for mine, its in zip(sample.old_logprobs, c.logprobs, strict=True)
        ]

    def _message(self, differences: Sequence[float], mean: float, mistake: str | None) -> str:
        causes = [
            "weights that the last sync did not reach, a tied lm_head above all",
            "weights that slept, or were half written, while the engine sampled",
            f"the temperature ({self.temperature:g}) applied twice or not at all",
            f"the dtype (trainer {self.dtypes['trainer']}, sampler {self.dtypes['sampler']}; "
            "rollout.vllm.dtype)",
        ]
        if not math.isfinite(mean):
            causes.insert(0, "NaN in the weights or in the engine's arithmetic")
        return (
            f"sync probe: the sampler's log-probs of {len(differences)} fresh tokens are "
            f"{mean:.3g} nats from the trainer's on average, the largest {max(differences):.3g}; "
            f"allowed is {self.threshold:g} (rollout.probe.threshold). "
            + (f"{mistake}. " if mistake else f"Likely causes: {'; '.join(causes)}. ")
            + "Nothing has been sampled with these weights for training, and the newest checkpoint "
            "is good"
        )

    def _wrong_temperature(
        self, scored: Sequence[tuple[Sequence[int], Completion]], mean: float
    ) -> str | None:
        """A temperature at which both sides agree much better, and so the mistake."""
        own = self.temperature
        for other, mistake in (
            (own**2, "the sampler applies the temperature twice"),
            (1.0, "the sampler's log-probs are those before the temperature"),
            (math.sqrt(own), "the trainer applies the temperature twice"),
        ):
            if other == own:
                continue
            differences = self._differences(scored, other)
            left = sum(differences) / len(differences)
            if left < _EXPLAINED * mean:
                return (
                    f"At a temperature of {other:g} it is {left:.2g}: {mistake} ({own:g} is "
                    "rollout.temperature)"
                )
        return None
