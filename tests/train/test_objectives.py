"""Every loss that ``policy_loss`` offers, trained for five steps by its keys in a recipe.

The first update of each run is compared with ``policy_loss``'s float64 reference on log-probs from
plain logits, and no two of the runs may end with the same weights.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from siri_kernels import policy_loss
from siri_kernels.policy_loss import validate
from siri_train import train as loop
from siri_train.config.recipe import parse_config
from siri_train.model.demo_model import START_FOLDER
from siri_train.model.packing import Sample
from siri_train.rollout.transformers_engine import TransformersEngine
from siri_train.train import train
from tests.train.conftest import TINY

LEVELS = [
    (mode, *bounds)
    for mode in ("truncate", "mask", "reject")
    for bounds in (("token", 0.8, 1.2), ("sequence", 0.5, 3), ("geometric", 0.9, 1.1))
]
KL = ("loss.kl_coef=0.3", "loss.reference={reference}")
# What the sampler says of a token is off by some tenths of a nat, so every bound below is crossed.
CASES: dict[str, Sequence[str]] = {
    "SIRI": (),
    "dual clip": ("loss.dual_clip=1.1",),
    "delta": ("loss.clip_high=0.1", "loss.delta=1.15"),
    "off-policy threshold": ("loss.off_policy_threshold=0",),
    "entropy": ("loss.entropy_coef=0.05",),
    "cispo": ("loss.objective=cispo",),
    "cispo, bounds of TRL": (
        "loss.objective=cispo", "loss.cispo_bounds=trl", "loss.clip_high=1.1"
    ),
    "sapo": ("loss.objective=sapo",),
    "sapo, other gates": ("loss.objective=sapo", "loss.sapo_tau=[2, 3]"),
    "gmpo": ("loss.objective=gmpo", "loss.clip_low=0.1", "loss.clip_high=0.1"),
    "reinforce": ("loss.objective=reinforce",),
    "sequence ratio": ("loss.ratio=sequence", "loss.clip_low=0.01", "loss.clip_high=0.01"),
    "cispo, sequence ratio": ("loss.objective=cispo", "loss.ratio=sequence"),
    "sapo, sequence ratio": ("loss.objective=sapo", "loss.ratio=sequence"),
    "seq-mean-token-mean": ("loss.aggregation=seq-mean-token-mean",),
    "seq-mean-token-sum": ("loss.aggregation=seq-mean-token-sum",),
    "token-sum-norm": ("loss.aggregation=token-sum-norm",),
    "KL, k1": (*KL, "loss.kl_estimator=k1"),
    "KL, k2": (*KL, "loss.kl_estimator=k2"),
    "KL, k3": KL,
    "KL, k1, unbiased": (*KL, "loss.kl_estimator=k1", "loss.kl_unbiased=true"),
    "KL, k2, unbiased": (*KL, "loss.kl_estimator=k2", "loss.kl_unbiased=true"),
    "KL, k3, unbiased": (*KL, "loss.kl_unbiased=true"),
    "KL, limited": (*KL, "loss.kl_limit=0.005"),
    "recomputed": ("loss.old_logprobs=recompute",),
    **{
        f"{mode} by {level}": (
            "loss.old_logprobs=recompute",
            f"loss.rollout_correction={{mode: {mode}, level: {level}, low: {low}, high: {high}}}",
        )
        for mode, level, low, high in LEVELS
    },
}  # fmt: skip
SHORT = (
    "train.steps=5", "train.tail=0", "train.lr=3e-4", "data.eval.0.size=1",
    "schedule={max_len: 40, min_len: 24, cycle: 1000}", "eval.at_start=false",
    "checkpoint.every=0", "monitor.rollouts_every=0", "train.token_budget=200",
    "rollout.probe.every=0",  # which would see that the sampler is wrong
)  # fmt: skip


def test_no_name_that_policy_loss_accepts_is_left_out() -> None:
    chosen = [parse_config({}, [o.replace("{reference}", "x") for o in c]) for c in CASES.values()]
    for key in validate.CHOICES:
        assert {getattr(config.loss, key) for config in chosen} == set(validate.CHOICES[key])
    corrections = [c.loss.rollout_correction for c in chosen if c.loss.rollout_correction]
    assert {c.mode for c in corrections} == set(validate.CORRECTION_MODES)
    assert {c.level for c in corrections} == set(validate.CORRECTION_LEVELS)


@dataclass
class Seen:
    """The first update of a run, as it happened."""

    samples: list[Sample] = field(default_factory=list)
    loss: float = 0.0
    norms: list[float | None] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Records the next run; its sampler reports log-probs that are off, the same in each run."""
    found = Seen()
    generate = TransformersEngine.generate
    compute, step, update = loop.policy_loss, loop.step_if_finite, loop.update

    def mistaken(self: Any, *args: Any, **options: Any) -> Any:
        groups = generate(self, *args, **options)
        rng = random.Random(5)
        for completion in (c for group in groups for c in group):
            shift = rng.gauss(0, 0.1)
            completion.logprobs[:] = [p + shift + rng.gauss(0, 0.25) for p in completion.logprobs]
        return groups

    def losses(*args: Any, **options: Any) -> Any:
        result = compute(*args, **options)
        if not found.norms:
            found.loss += float(result.loss.detach())
        return result

    def stepped(*args: Any) -> float | None:
        found.norms.append(step(*args))
        return found.norms[-1]

    def updated(policy: Any, optimizer: Any, samples: Any, *args: Any, **options: Any) -> Any:
        found.samples = found.samples or copy.deepcopy(samples)
        return update(policy, optimizer, samples, *args, **options)

    monkeypatch.setattr(TransformersEngine, "generate", mistaken)
    monkeypatch.setattr(loop, "policy_loss", losses)
    monkeypatch.setattr(loop, "step_if_finite", stepped)
    monkeypatch.setattr(loop, "update", updated)
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the demo's vocabulary."""
    folder = tmp_path_factory.mktemp("reference")
    model: Any = AutoModelForCausalLM.from_pretrained(START_FOLDER, dtype=torch.float32)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * p.std() * torch.randn(p.shape, generator=draw)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(START_FOLDER).save_pretrained(folder)
    return folder


class Oracle:
    """Log-probs and entropy of the first mini-batch from the logits of a float64 model."""

    def __init__(self, folder: Path | str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        self.known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, samples: list[Sample]) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of all tokens, in order; each sequence is computed once."""
        parts = [self._of(s) for s in samples]
        return torch.cat([p for p, _ in parts]), torch.cat([h for _, h in parts])

    def _of(self, sample: Sample) -> tuple[Tensor, Tensor]:
        key = (*sample.prompt_ids, *sample.response_ids)
        if key not in self.known:
            logits = self.model(input_ids=torch.tensor([key])).logits[0]
            logps = logits[len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
            taken = logps.gather(1, torch.tensor(list(sample.response_ids))[:, None])[:, 0]
            self.known[key] = taken, -(logps.exp() * logps).sum(-1)
        return self.known[key]


@pytest.fixture(scope="module")
def oracles(reference: Path) -> tuple[Oracle, Oracle]:
    return Oracle(START_FOLDER), Oracle(reference)


def by_reference(
    oracles: tuple[Oracle, Oracle], samples: list[Sample], config: Any
) -> tuple[float, float]:
    """Loss and norm of the gradient of the first mini-batch, in float64."""
    order = list(range(len(samples)))
    random.Random(config.seed * 1_000_003).shuffle(order)
    mini = [samples[i] for i in order[: len(order) // 2]]
    lengths = torch.tensor([0, *(len(s.response_ids) for s in mini)])
    denominators = {
        "token-mean": int(lengths.sum()), "token-sum-norm": len(mini) * config.schedule.max_len,
    }  # fmt: skip
    logprobs, entropy = oracles[0](mini)

    def flat(read: Callable[[Sample], Sequence[float]]) -> Tensor:
        return torch.tensor([v for s in mini for v in read(s)], dtype=torch.float64)

    loss = config.loss
    names = (
        *validate.CHOICES, "clip_low", "clip_high", "dual_clip", "delta", "sapo_tau",
        "off_policy_threshold", "kl_coef", "kl_unbiased", "kl_limit", "entropy_coef",
    )  # fmt: skip
    correction = loss.rollout_correction
    out = policy_loss(
        logprobs,
        flat(lambda s: s.old_logprobs),
        torch.tensor([s.advantage for s in mini], dtype=torch.float64),
        lengths.cumsum(0).to(torch.int32),
        **{name: getattr(loss, name) for name in names},
        denominator=denominators.get(loss.aggregation, len(mini)),
        rollout_logprobs=(
            flat(lambda s: s.rollout_logprobs) if loss.old_logprobs == "recompute" else None
        ),
        rollout_correction=None if correction is None else correction.build(),
        ref_logprobs=oracles[1](mini)[0].detach() if loss.kl_coef else None,
        entropy=entropy,
        backend="reference",
    )
    weights = list(oracles[0].model.parameters())
    gradients = torch.autograd.grad(out.loss, weights, retain_graph=True)
    return float(out.loss.detach()), float(torch.stack([g.norm() for g in gradients]).norm())


ENDS: dict[str, tuple[float, Tensor]] = {}
"""Gradient norm of the first update and last weights of every case that has run."""


@pytest.mark.draw(3)
@pytest.mark.parametrize("case", CASES)
def test_five_steps_whose_first_update_is_the_references(
    case: str, seen: Seen, reference: Path, oracles: tuple[Oracle, Oracle], tmp_path: Path
) -> None:
    keys = [key.replace("{reference}", str(reference)) for key in CASES[case]]
    config = parse_config(copy.deepcopy(TINY), [f"output={tmp_path}", *SHORT, *keys])
    run = train(config)

    loss, norm = by_reference(oracles, seen.samples, config)
    print("NORM", case, norm)
    assert norm > 1e-2
    assert seen.norms[0] == pytest.approx(norm, rel=1e-4)
    assert seen.loss == pytest.approx(loss, rel=1e-4, abs=1e-6)

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and len(seen.norms) > 5 and None not in seen.norms
    with_kl, with_threshold = config.loss.kl_coef > 0, "off-policy" in case
    assert all(("ref_kl" in row) == with_kl for row in rows)
    assert all(("off_policy_frac" in row) == with_threshold for row in rows)
    assert not with_kl or all(row["ref_kl"] != 0 for row in rows)
    assert not with_threshold or 0 < rows[0]["off_policy_frac"] < 1

    last: Any = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step_000005")
    weights = torch.cat([p.detach().flatten() for p in last.parameters()])
    for other, (its_norm, its_weights) in ENDS.items():
        # The first updates of the others may agree: at a ratio of 1 clip has REINFORCE's gradient.
        assert other != "SIRI" or abs(norm - its_norm) > 1e-4 * norm
        assert (weights - its_weights).norm() > 1e-5, f"{case} ends like {other}"
    ENDS[case] = norm, weights
