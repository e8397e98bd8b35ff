"""Response lengths: a recorded small run rescaled, and a lognormal fitted to published means.

Every model has a marginal distribution for each point of the cycle and the structure of groups. The
normal score of a response is ``sqrt(within) * question + sqrt(1 - within) * noise``: ``within`` is
the correlation of two responses to one question. The question's own score goes from epoch to epoch
with the correlation ``epochs``. A score becomes a length through the marginal's quantiles.
"""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from bench.results_io import ROOT

RECORDED = ROOT / "docs/demo-run.tar.xz"
NORMAL = NormalDist()
# The points of a cycle that are simulated: (name, share of the cycle, cap in tokens).
POINTS = (
    ("start", 0.0, 16384),
    ("compression, half-way", 0.25, 12288),
    ("compressed end", 0.5, 8192),
    ("expansion, half-way", 0.75, 12288),
    ("expanded end", 1.0, 16384),
)


def censored_mean(median: float, sigma: float, cap: float) -> float:
    """The mean of ``min(X, cap)`` where X is lognormal.

    Args:
        median: of X.
        sigma: standard deviation of log X.
        cap: where X is cut.
    """
    z = (math.log(cap) - math.log(median)) / sigma
    below = median * math.exp(sigma**2 / 2) * NORMAL.cdf(z - sigma)
    return below + cap * (1 - NORMAL.cdf(z))


def median_for(mean: float, sigma: float, cap: float) -> float:
    """The median whose censored mean at ``cap`` is ``mean``, by bisection.

    Args:
        mean: in tokens.
        sigma: standard deviation of the log.
        cap: where lengths are truncated.

    Raises:
        ValueError: no median gives it.
    """
    if not 1 < mean < cap:
        raise ValueError(f"a mean of lengths below {cap} is between 1 and {cap}, got {mean}")
    low, high = 1.0, 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if censored_mean(middle, sigma, cap) < mean else (low, middle)
    return math.sqrt(low * high)


def fit_two_caps(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Median and sigma of a lognormal from its censored means at two caps.

    Args:
        first: (cap, mean) with the smaller cap.
        second: (cap, mean).
    """
    low, high = 0.05, 4.0
    for _ in range(80):
        sigma = (low + high) / 2
        median = median_for(first[1], sigma, first[0])
        low, high = (
            (sigma, high) if censored_mean(median, sigma, second[0]) < second[1] else (low, sigma)
        )
    return median_for(first[1], (low + high) / 2, first[0]), (low + high) / 2


@dataclass(frozen=True)
class Lengths:
    """A model of lengths.

    Attributes:
        name: for the page.
        quantiles: for each of `POINTS`: normal scores -> tokens, not yet truncated.
        within: correlation of the scores of two responses to one question.
        epochs: correlation of a question's score in two epochs.
    """

    name: str
    quantiles: tuple[Callable[[np.ndarray], np.ndarray], ...]
    within: float
    epochs: float

    def draw(
        self, point: int, questions: int, group: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lengths of a step's responses, and those of an earlier epoch.

        Args:
            point: of the cycle, an index into `POINTS`.
            questions: how many.
            group: responses to each.
            rng: of the draw.

        Returns:
            (lengths [questions, group], lengths of the same questions half a cycle before, score of
            each question). Lengths are cut at the caps of their points.
        """
        score = rng.standard_normal(questions)
        before = self.epochs * score + math.sqrt(1 - self.epochs**2) * rng.standard_normal(
            questions
        )
        # About an epoch is half a cycle. Before the start there was nothing: the start again.
        earlier = max(0, point - 2)
        return (
            self._lengths(point, score, group, rng),
            self._lengths(earlier, before, group, rng),
            score,
        )

    def _lengths(
        self, point: int, score: np.ndarray, group: int, rng: np.random.Generator
    ) -> np.ndarray:
        noise = rng.standard_normal((len(score), group))
        own = math.sqrt(self.within) * score[:, None] + math.sqrt(1 - self.within) * noise
        tokens = np.rint(self.quantiles[point](own)).astype(np.int64)
        return np.clip(tokens, 1, POINTS[point][2])


def published(within: float = 0.5, epochs: float = 0.9) -> tuple[Lengths, dict[str, Any]]:
    """The lognormal model of DeepSeek-R1-Distill-Qwen-1.5B under SIRI, and what it was fitted to.

    Sigma comes from AIME24's means at two caps. The median on the training questions comes from
    DeepScaleR's mean at 8K before its training. The shift over a cycle is that of AIME24's mean
    (SIRI, Table 1 and section 5.2): 12333 tokens at the start, 8065 at the first compressed end,
    10049 at an expanded end, geometric means half-way.

    Args:
        within: see `Lengths`; not published.
        epochs: see `Lengths`; not published.
    """
    aime = (12333.0, math.sqrt(12333 * 8065), 8065.0, math.sqrt(8065 * 10049), 10049.0)
    median, sigma = fit_two_caps((16384, aime[0]), (32768, 16000))
    base = median_for(5500, sigma, 8192)
    shifts = [median_for(mean, sigma, 16384) / median for mean in aime]
    medians = [base * shift for shift in shifts]

    def quantile(middle: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda z: np.minimum(middle * np.exp(sigma * z), 1e9)

    facts = {
        "sigma": sigma,
        "medians": medians,
        "within": within,
        "epochs": epochs,
        "aime24_means_at_16384": aime,
        "aime24_mean_at_32768": 16000,
        "training_mean_at_8192": 5500,
    }
    return Lengths("published", tuple(map(quantile, medians)), within, epochs), facts


def recorded(path: Path = RECORDED) -> tuple[Lengths, dict[str, Any]]:
    """Lengths of the recorded demo run, rescaled: each step's cap becomes that of its point.

    The marginals are the histograms of ``metrics.jsonl`` within five steps of each point of the
    first cycle, with the step's own share of truncated responses at the cap. ``within`` is the mean
    rank correlation of a question's lengths in neighbouring evaluations of the first cycle, and
    ``epochs`` the mean correlation half a cycle apart over that of neighbours, over the whole run.

    Args:
        path: the archive.
    """
    rows, evals = _records(path)
    # The cap is smallest around the middle of the cycle, on several steps.
    lowest = min(row["cap"] for row in rows)
    first = next(i for i, row in enumerate(rows) if row["cap"] == lowest)
    after = next(i for i in range(first, len(rows)) if rows[i]["cap"] > lowest)
    cycle = first + after - 1
    quantiles, truncated = [], []
    for _, share, cap in POINTS:
        near = [r for r in rows if abs(r["step"] - share * cycle) <= 5]
        lengths = np.sort(np.concatenate([_lengths_of(r) * (cap / r["cap"]) for r in near]))
        quantiles.append(_empirical(lengths))
        truncated.append(float(np.mean([r["truncated_frac"] for r in near])))
    tests = [e for e in evals if e["set"] == evals[0]["set"]]
    ranks = [_ranks(np.array(e["tokens"])) for e in tests]
    half = round(cycle / 2 / (tests[1]["step"] - tests[0]["step"]))
    within = _mean_correlation(ranks[: 2 * half + 1], 1)
    epochs = min(1.0, _mean_correlation(ranks, half) / _mean_correlation(ranks, 1))
    facts = {
        "cycle": cycle,
        "caps": sorted({row["cap"] for row in rows}),
        "within": within,
        "within_at_the_start": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
        "epochs": epochs,
        "truncated": truncated,
    }
    return Lengths("recorded", tuple(quantiles), within, epochs), facts


def _records(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ``metrics.jsonl`` and of ``eval_questions.jsonl`` of the recorded run."""
    found = []
    with tarfile.open(path) as archive:
        for name in ("metrics", "eval_questions"):
            file = archive.extractfile(f"runs/demo/siri/{name}.jsonl")
            assert file is not None
            found.append([json.loads(line) for line in file.read().decode().splitlines()])
    return found[0], found[1]


def _lengths_of(row: dict[str, Any]) -> np.ndarray:
    """A length for each response of a step: the middle of its bin; truncated ones have the cap."""
    histogram = row["response_len_hist"]
    middles = (np.arange(len(histogram["counts"])) + 0.5) * histogram["width"]
    lengths = np.repeat(np.minimum(middles, row["cap"] - 1), histogram["counts"])
    truncated = round(row["truncated_frac"] * len(lengths))
    if truncated:
        lengths[-truncated:] = row["cap"]
    return lengths


def _empirical(ordered: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    places = (np.arange(len(ordered)) + 0.5) / len(ordered)

    def quantile(z: np.ndarray) -> np.ndarray:
        share = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        return np.interp(share, places, ordered)

    return quantile


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _mean_correlation(ranks: list[np.ndarray], lag: int) -> float:
    pairs = zip(ranks, ranks[lag:], strict=False)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))
