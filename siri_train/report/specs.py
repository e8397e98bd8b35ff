"""The charts over the steps that show metrics as they are: their keys and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

NOISE = 1e-6
"""Nats, or distance of a ratio from 1, that float32 cannot tell from nothing."""


@dataclass(frozen=True)
class Spec:
    """One chart over the steps: its metrics (key in metrics.jsonl, label) and what they mean."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    text: str
    unit: str = "number"
    ceiling: float | None = None
    optional: bool = False
    from_floor: bool = True
    noise: float | None = None
    """Values all below it are rounding errors: said in words and not drawn."""
    about: float = 0.0
    """The value from which `noise` is a distance."""


SPECS = (
    Spec(
        "Accuracy in training",
        (("accuracy", "all"), ("accuracy_finished", "finished")),
        "Share of sampled responses that are right. “All” takes every response; a truncated one "
        "seldom holds its answer yet. “Finished” leaves truncated responses out. The gap between "
        "the two curves is what the cap costs.",
        "percent",
        1.0,
        from_floor=False,
    ),
    Spec(
        "Entropy",
        (("entropy", ""),),
        "How undecided the policy is about its next token, in nats. With SIRI it tends to fall "
        "while the cap tightens and to recover as the cap opens. Small is not bad in itself: a "
        "policy that has learned its task is sure of most tokens. The sign of a collapse is an "
        "entropy that leaves its band and keeps falling while the accuracy no longer rises.",
    ),
    Spec(
        "Truncated responses",
        (("truncated_frac", ""),),
        "Share of sampled responses that reached the cap before they ended. What such a response "
        "holds is graded (or pays 0, with reward.truncated=zero), but it rarely holds its final "
        "answer yet. This is the pressure that shortens responses; near 100 % almost no response "
        "earns a reward and little is left to learn from.",
        "percent",
        1.0,
    ),
    Spec(
        "Groups all right or all wrong",
        (("groups_all_zero", "all wrong"), ("groups_all_one", "all right")),
        "A response's advantage compares it with the other responses to its question, its group. "
        "Where all of them are wrong, or all are right, every advantage is 0 and the question "
        "gives no gradient.",
        "share",
    ),
    Spec(
        "Backtracking",
        (("backtrack_per_1k", ""),),
        "How often a response says “wait” or “hold on”, per 1,000 tokens: a sign that it checks "
        "its own reasoning. In the paper these words become rare in compression and return in "
        "expansion.",
    ),
    Spec(
        "Gradient norm",
        (("grad_norm", ""),),
        "Norm of the gradient before clipping. Single spikes are harmless. A steady climb is "
        "usually the first sign that a run will diverge.",
    ),
    Spec(
        "Clipped tokens",
        (("clip_frac_low", "low"), ("clip_frac_high", "high")),
        "Share of tokens whose gradient the clip removes, at the lower and at the upper bound. "
        "High values mean that the policy has moved far from the one that sampled the responses.",
        "percent",
        1.0,
    ),
    Spec(
        "Sampler against trainer",
        (("rollout_kl", ""),),
        "KL divergence between the sampler's probabilities and the trainer's for the same tokens, "
        "in nats per token. It should stay near zero. If it grows, the engine samples from other "
        "weights or computes them differently.",
        optional=True,
        noise=NOISE,
    ),
    Spec(
        "Largest ratios of a token",
        (("rollout_ratio_max", "sampler"), ("ratio_max", "updates")),
        "The largest factor between two probabilities of one response token. “Sampler”: the "
        "trainer's over the sampler's, before any update; 1 if both compute the same. “Updates”: "
        "after the step's updates over before; the clip keeps its weight small, so single large "
        "values are harmless and a steady climb is not.",
        optional=True,
        from_floor=False,
        noise=100 * NOISE,
        about=1.0,
    ),
    Spec(
        "Probe of the weights",
        (("probe_logprob_diff", ""),),
        "After an update a few fresh tokens are sampled and their log-probs compared with the "
        "trainer's: the mean difference, in nats. A jump means that the engine samples from stale "
        "or damaged weights.",
        optional=True,
        noise=NOISE,
    ),
    Spec(
        "Throughput",
        (("rollout_tokens_per_s", "rollout"), ("train_tokens_per_s", "train")),
        "Response tokens per second, when they are sampled (rollout) and when the policy is "
        "updated with them (train). Batches of shorter responses use the hardware less well, so "
        "both curves move with the cap.",
        "tokens",
    ),
)
