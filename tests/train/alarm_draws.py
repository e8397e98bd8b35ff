"""Drawn runs of SIRI, healthy or with one fault, to try the alarms on: `draw(seed, fault)`.

A model of curves and not of learning: the responses' lengths are log-normal and follow the cap
late, what is truncated is wrong, questions differ in difficulty, entropy swings with the cap. Sizes
of batches and evaluations, noise, cycles and trends are drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from siri_train.schedule import LengthSchedule
from tests.train.alarm_runs import Run, evaluation

Generator = np.random.Generator
_QUANTILES = (np.arange(48) + 0.5) / 48


class Curves:
    """What a run would show without noise, over its steps.

    Args:
        rng: draws everything.
        shape: of the schedule; None: drawn.
        least: steps of the run, at least.
    """

    def __init__(self, rng: Generator, shape: str | None = None, least: int = 0) -> None:
        self.rng = rng
        self.shape = shape or str(rng.choice(["cosine", "stair-cosine", "asymmetric", "constant"]))
        cycle = int(rng.choice([60, 80, 100, 160]))
        self.cycle = cycle
        self.steps = n = cycle * int(rng.integers(2, 4)) if cycle < 160 else 2 * cycle
        if self.shape == "constant":
            self.steps = n = int(rng.integers(200, 400))
        while n < least:
            self.steps = n = n + cycle
        longest = int(rng.choice([48, 1024, 16384]))
        share = rng.uniform(0.4, 0.6)
        self.schedule = LengthSchedule(self.shape, longest, int(share * longest), cycle)
        self.cap = np.array([self.schedule(t) for t in range(n)], float)
        self.frac = np.arange(n) / (n - 1)
        self.length = self._lengths(rng.uniform(0.45, 0.75), max(3, cycle * rng.uniform(0.1, 0.3)))
        low, high = rng.uniform(0.15, 0.5), rng.uniform(0.6, 0.85)
        middle, rate = rng.uniform(0.3, 0.6), rng.uniform(4, 7)
        rise = 1 / (1 + np.exp(-rate * (self.frac - middle)))
        self.ability = low + (high - low) * rise  # right answers among finished responses
        self.dip = rng.uniform(0, 0.04) * self._compressed()
        self.gap = rng.uniform(0, 0.05)
        swing = 1 + rng.uniform(0, 0.3) * (0.5 - self._compressed())
        self.entropy = rng.uniform(0.1, 0.9) * np.exp(-rng.uniform(-0.3, 0.9) * self.frac) * swing
        self.reward_extra = np.zeros(n)
        self.held_out_extra = np.zeros(n + 1)
        self.truncated_extra = np.zeros(n)
        self.prompts = int(rng.choice([16, 32, 128]))
        self.scatter = rng.uniform(0, 0.02)  # of evaluations, beside their questions
        self.concentration = 2.5  # of the questions' difficulties: 0 is all or nothing

    def _compressed(self) -> np.ndarray:
        """How far the cap is down: 0 to 1."""
        low, high = self.cap.min(), self.cap.max()
        return (high - self.cap) / max(high - low, 1e-9) if high > low else np.zeros(self.steps)

    def _lengths(self, share: float, lag: float) -> np.ndarray:
        """Median lengths that go to a share of the cap, late."""
        length, now = np.empty(self.steps), share * self.cap[0]
        for t in range(self.steps):
            now += (share * self.cap[t] - now) / lag
            length[t] = now
        return length * np.exp(-self.rng.uniform(-0.1, 0.2) * self.frac)

    def run(self) -> Run:
        """The rows of both logs, with noise."""
        rng, n = self.rng, self.steps
        prompts, size = self.prompts, 8
        width = rng.uniform(0.25, 0.45)
        jitter = np.exp(rng.normal(0, 0.3 / np.sqrt(prompts), n))
        spread = np.exp(width * _normal_quantiles())
        drawn = self.length[:, None] * jitter[:, None] * spread[None]
        cut = drawn >= self.cap[:, None]
        drawn = np.minimum(drawn, self.cap[:, None])
        truncated = np.clip(cut.mean(1) + self.truncated_extra, 0, 1)
        right = np.clip(self.ability - self.dip, 0.005, 0.995) * (1 - truncated)
        noise = np.sqrt(0.4 * right * (1 - right) / prompts)
        right = np.clip(right + rng.normal(0, 1, n) * noise, 0.001, 0.999)
        ones, zeros = _alike(right, size, self.concentration)
        entropy = self.entropy * np.exp(rng.normal(0, 0.04, n))
        reward = right + self.reward_extra
        rows = []
        for t in range(n):
            rows.append(
                {
                    "step": t, "cycle": self.schedule.cycle_index(t),
                    "phase": self.schedule.phase(t), "cap": int(self.cap[t]),
                    "reward_mean": float(reward[t]), "accuracy": float(right[t]),
                    "accuracy_finished": float(min(1.0, right[t] / max(1 - truncated[t], 1e-6))),
                    "truncated_frac": float(truncated[t]),
                    "response_len_mean": float(drawn[t].mean()),
                    "response_len_p50": float(np.median(drawn[t])),
                    "groups_all_one": float(ones[t]), "groups_all_zero": float(zeros[t]),
                    "entropy": float(entropy[t]), "grad_norm": 1.0, "skipped_updates": 0,
                }
            )  # fmt: skip
        return rows, self._evaluations()

    def _evaluations(self) -> list[dict]:
        rng, n = self.rng, self.steps
        questions = int(rng.choice([200, 500, 2000]))
        ends = {} if self.shape == "constant" else {
            **dict.fromkeys(self.schedule.compressed_ends(n), "siri-low"),
            **dict.fromkeys(self.schedule.expanded_ends(n), "siri-high"),
        }  # fmt: skip
        every = self.cycle // int(rng.choice([4, 5, 10])) if ends else 20
        found = []
        for t in sorted({*range(0, n + 1, every), *ends, n}):
            at = min(t, n - 1)
            truth = self.ability[at] - self.dip[at] - self.gap + self.held_out_extra[t]
            truth = min(max(truth, 0.01), 0.99)
            error = np.sqrt(truth * (1 - truth) / questions)
            value = np.clip(truth + rng.normal(0, np.hypot(error, self.scatter)), 0, 1)
            name = "start" if t == 0 else ends.get(t)
            found.append(evaluation(t, float(value), 1.96 * float(error), name))
        return found


def _normal_quantiles() -> np.ndarray:
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf(q) for q in _QUANTILES])


def _alike(share: np.ndarray, size: int, concentration: float) -> tuple[np.ndarray, np.ndarray]:
    """Shares of groups all right and all wrong, of questions with beta distributed difficulty."""
    ones, zeros = np.ones_like(share), np.ones_like(share)
    for i in range(size):
        ones *= (share * concentration + i) / (concentration + i)
        zeros *= ((1 - share) * concentration + i) / (concentration + i)
    return ones, zeros


def _ramp(curves: Curves, onset: float, length: float) -> np.ndarray:
    """0 before a share of the run, 1 from ``length`` of the run later on."""
    return np.clip((curves.frac - onset) / max(length, 1e-9), 0, 1)


def _onset(curves: Curves, jump: bool) -> np.ndarray:
    """A fault's growth: all at once, or over a third of the run."""
    begin = curves.rng.uniform(0.4, 0.55)
    return _ramp(curves, begin, 1e-6 if jump else 0.33)


def _collapse(c: Curves, jump: bool) -> None:
    c.ability[:] = np.minimum(c.ability, c.ability[int(0.4 * c.steps)])
    c.entropy *= np.exp(-c.rng.uniform(4.0, 5.5) * _onset(c, jump))


def _blowup(c: Curves, jump: bool) -> None:
    c.entropy *= np.exp(c.rng.uniform(2.2, 3.0) * _onset(c, jump))


def _band(c: Curves, jump: bool) -> None:
    c.entropy[:] = c.entropy[0]
    c.entropy *= np.exp(c.rng.uniform(0.85, 1.0) * _ramp(c, 0.6, 1e-6 if jump else 0.25))
    c.ability[:] = c.ability[0]


def _fall(c: Curves, jump: bool) -> None:
    size = c.rng.uniform(0.2, 0.3)
    c.ability[:] = c.rng.uniform(0.5, 0.7)
    c.held_out_extra[1:] -= size * _onset(c, jump)
    c.ability -= size * _onset(c, jump)


def _hack(c: Curves, jump: bool) -> None:
    c.ability[:] = c.rng.uniform(0.5, 0.7)
    c.held_out_extra[1:] -= c.rng.uniform(0.3, 0.4) * _onset(c, jump)
    c.reward_extra += 0.5 * _onset(c, jump)


def _unrecovered(c: Curves, jump: bool) -> None:
    first = c.schedule.compressed_ends(c.steps)[0]
    c.ability[:] = c.rng.uniform(0.5, 0.8)
    c.dip[:] = 0
    at = np.arange(c.steps + 1)
    c.held_out_extra -= c.rng.uniform(0.2, 0.3) * np.clip(at / first, 0, 1)


def _decay(c: Curves, jump: bool) -> None:
    c.ability[:] = c.rng.uniform(0.4, 0.8)
    c.ability *= 1 - c.rng.uniform(0.4, 0.6) * _onset(c, jump)


def _plateau(c: Curves, jump: bool) -> None:
    c.ability[:], c.prompts = c.ability[0] + 0.2, 128
    c.length[:] = np.minimum(c.length, 0.3 * c.cap)


def _truncate(c: Curves, jump: bool) -> None:
    c.truncated_extra += _onset(c, jump) * (0.97 - 0.0)


def _outgrow(c: Curves, jump: bool) -> None:
    c.truncated_extra += 0.5 * _onset(c, jump)


def _pin(c: Curves, jump: bool) -> None:
    c.length[:] = np.maximum(c.length, 1.15 * c.cap * (_onset(c, jump) > 0))


def _deaf(c: Curves, jump: bool) -> None:
    # A broad distribution of lengths that never moves: its tail is truncated under a short cap.
    c.length[:] = 0.85 * c.cap.min() * np.exp(c.rng.normal(0, 0.05, c.steps))


def _explode(c: Curves, jump: bool) -> None:
    c.length[:] = np.minimum(c.length, 0.2 * c.cap)
    c.length *= np.exp(c.rng.uniform(0.8, 1.0) * _onset(c, jump))
    c.ability[:] = c.rng.uniform(0.4, 0.7)


def _shrink(c: Curves, jump: bool) -> None:
    c.length *= np.exp(-c.rng.uniform(0.7, 1.2) * _onset(c, jump))
    c.ability[:] = c.rng.uniform(0.5, 0.7)
    c.ability *= 1 - c.rng.uniform(0.4, 0.6) * _onset(c, jump)


def _too_hard(c: Curves, jump: bool) -> None:
    c.ability[:] = c.ability * (1 - _onset(c, jump)) + 0.02 * _onset(c, jump)


def _saturated(c: Curves, jump: bool) -> None:
    c.concentration = 0.2
    c.ability[:] = c.rng.uniform(0.4, 0.6)


CYCLIC = ("cosine", "stair-cosine", "asymmetric")
FAULTS: dict[str, tuple[str, Callable[[Curves, bool], None], tuple[str, ...]]] = {
    "entropy collapse": ("entropy-collapse", _collapse, ()),
    "entropy blow-up": ("entropy-blowup", _blowup, ()),
    "entropy out of band": ("entropy-out-of-band", _band, ()),
    "held-out decay": ("accuracy-decay", _fall, ()),
    "not recovered": ("accuracy-not-recovered", _unrecovered, CYCLIC),
    "reward hacking": ("reward-hacking", _hack, ()),
    "reward decay": ("reward-decay", _decay, ()),
    "plateau": ("reward-plateau", _plateau, ()),
    "truncated": ("mostly-truncated", _truncate, ()),
    "outgrows the cap": ("truncation-rising", _outgrow, ()),
    "pinned": ("pinned-at-cap", _pin, ()),
    "deaf to the cap": ("length-not-tracking", _deaf, CYCLIC),
    "explosion": ("length-explosion", _explode, ()),
    "shorter and worse": ("length-hacking", _shrink, ()),
    "too hard": ("groups-without-signal", _too_hard, ()),
    "all or nothing": ("groups-without-signal", _saturated, ()),
}
"""A fault: the alarm it must raise, what it does to the curves, its shapes (none: any)."""


def draw(seed: int, fault: str | None = None, jump: bool | None = None) -> Run:
    """A run of drawn size and noise.

    Args:
        seed: draws everything.
        fault: of `FAULTS`; None: healthy.
        jump: whether the fault comes at once; None: drawn.
    """
    rng = np.random.default_rng([seed, 0 if fault is None else 1 + list(FAULTS).index(fault)])
    shapes = FAULTS[fault][2] if fault else ()
    curves = Curves(
        rng, str(rng.choice(shapes)) if shapes else None, 360 if fault == "plateau" else 0
    )
    if fault:
        FAULTS[fault][1](curves, bool(rng.random() < 0.5) if jump is None else jump)
    return curves.run()


def draw_learned(seed: int, scatter: float) -> Run:
    """A run that has learned its task: nothing rises any more, and that is fine.

    Args:
        seed: draws everything.
        scatter: of evaluations, beside their questions.
    """
    curves = Curves(np.random.default_rng([seed, 99]))
    rng = curves.rng
    curves.ability[:], curves.gap = rng.uniform(0.97, 0.995), rng.uniform(-0.01, 0.005)
    curves.length[:] = np.minimum(curves.length, 0.8 * curves.cap.min())
    curves.scatter = scatter
    return curves.run()


def draw_steady(seed: int, scatter: float) -> Run:
    """A run whose held-out accuracy neither rises nor falls, while it gets shorter.

    Args:
        seed: draws everything.
        scatter: of evaluations, beside their questions.
    """
    curves = Curves(np.random.default_rng([seed, 98]))
    rng = curves.rng
    curves.ability[:], curves.gap = rng.uniform(0.3, 0.9), 0.0
    curves.scatter = scatter
    return curves.run()


def draw_swinging(seed: int) -> Run:
    """A healthy run whose entropy swings by a factor of 3 to 5 with the cap, as the demo's does.

    Args:
        seed: draws everything; every other run learns its task.
    """
    rng = np.random.default_rng([seed, 97])
    curves = Curves(rng, str(rng.choice(CYCLIC)))
    low, late = rng.uniform(3.0, 5.0), max(1, int(curves.cycle * rng.uniform(0.05, 0.2)))
    down = np.concatenate([np.zeros(late), curves._compressed()[:-late]])
    curves.entropy[:] = rng.uniform(0.1, 0.9) * np.exp(-rng.uniform(0.3, 1.5) * curves.frac)
    curves.entropy *= low**-down
    if seed % 2:
        curves.ability[:], curves.gap = rng.uniform(0.95, 0.99), 0.0
        curves.length[:] = np.minimum(curves.length, 0.8 * curves.cap.min())
    return curves.run()
