"""Methods that ``siri-train ablate`` knows by name: what each changes in a recipe.

Reading this module is quick: the shell completes from :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from siri_train.registry import Registry

if TYPE_CHECKING:
    from siri_train.config.run import RunConfig


@dataclass(frozen=True)
class Method:
    """One method: an entry of :data:`METHODS`.

    Args:
        overrides: from the recipe (with ``--vary`` applied) to the ``KEY=VALUE`` that make it the
            method. What they do not name stays as the recipe has it.
        text: the method in one sentence.
        source: where it is from.
        sweeps: it is trained at several constant caps, of which the best on the validation
            questions counts; ``overrides`` then gives what they share.
    """

    overrides: Callable[[RunConfig], list[str]]
    text: str
    source: str
    sweeps: bool = False


def constant(config: RunConfig, cap: int) -> list[str]:
    """The overrides of a constant cap, in tokens."""
    return [*_shape("constant")(config), f"schedule.max_len={cap}", f"schedule.min_len={cap}"]


def mean_cap(config: RunConfig) -> int:
    """The recipe's cap in the mean over the steps of its run, in whole tokens."""
    return int(config.schedule.build().mean(config.train.steps) + 0.5)


def _at_longest(config: RunConfig) -> list[str]:
    return constant(config, config.schedule.max_len)


def _at_shortest(config: RunConfig) -> list[str]:
    return constant(config, config.schedule.min_len)


def _shape(name: str) -> Callable[[RunConfig], list[str]]:
    def overrides(config: RunConfig) -> list[str]:
        from siri_train.rewards import REWARDS  # slow to import

        found = [f"schedule.shape={name}", "schedule.options={}"]
        # A reward that acts in the phases of another shape has nothing to act in.
        if REWARDS[config.reward.function].shape not in (None, name):
            found += _reward("length-cap")
        return found

    return overrides


def _reward(name: str, **options: object) -> list[str]:
    given = ", ".join(f"{key}: {value}" for key, value in options.items())
    return [f"reward.function={name}", f"reward.options={{{given}}}"]


def _clip_higher() -> list[str]:
    return ["loss.objective=clip", "loss.ratio=token", "loss.clip_low=0.2", "loss.clip_high=0.28"]


def _dynamic_sampling() -> list[str]:
    # verl's script samples 1536 questions at a time for 512 groups, and at most 10 times.
    return ["rollout.oversample=3.0", "rollout.max_rounds=10"]


def _truncation(config: RunConfig) -> list[str]:
    return [*_at_longest(config), *_reward("truncation", limit=config.schedule.min_len)]


def _dler(config: RunConfig) -> list[str]:
    return [
        *_at_shortest(config),
        *_reward("truncation", limit=config.schedule.min_len),
        "advantage.baseline=mean",
        "advantage.scale=batch_std",
        *_clip_higher(),
        *_dynamic_sampling(),
    ]


def _dapo(config: RunConfig) -> list[str]:
    # The paper's ramp: the last 4096 of 20480 tokens.
    buffer = max(1, config.schedule.max_len // 5)
    return [
        *_at_longest(config),
        *_reward("overlong", buffer=buffer, penalty=1.0, wrong=-1.0),
        "advantage.baseline=mean",
        "advantage.scale=group_std",
        *_clip_higher(),
        "loss.aggregation=token-mean",
        *_dynamic_sampling(),
    ]


def _l1(name: str) -> Callable[[RunConfig], list[str]]:
    def overrides(config: RunConfig) -> list[str]:
        # L1 trains with at most 4096 tokens. Over fewer, its price of a token would not be felt.
        weight = max(3e-4, 3e-4 * 4096 / config.schedule.max_len)
        target = config.schedule.min_len
        return [*_at_longest(config), *_reward(name, target=target, weight=round(weight, 6))]

    return overrides


def _priced(name: str) -> Callable[[RunConfig], list[str]]:
    return lambda config: [*_at_longest(config), *_reward(name)]


def _laser(config: RunConfig) -> list[str]:
    return [*_at_longest(config), *_reward("laser", target=config.schedule.min_len)]


def _toggle(config: RunConfig) -> list[str]:
    return [*_shape("toggle")(config), *_reward("toggle")]


METHODS: Registry[Method] = Registry("method")
"""Every method by name. A plug-in adds one as it adds a reward."""
METHODS["siri"] = Method(
    _shape("cosine"),
    "the cap follows a cosine from max_len to min_len and back",
    "SIRI (arXiv 2509.25176), section 4.3",
)
METHODS["stair"] = Method(
    _shape("stair"), "the cap is min_len, then max_len, half a cycle each", "SIRI, section 4.3"
)
METHODS["asymmetric"] = Method(
    _shape("asymmetric"),
    "a smooth compression, a step up, a long plateau at max_len",
    "SIRI's two findings together, its section 5.3",
)
METHODS["step-up"] = Method(
    _shape("step-up"), "the cap is min_len first, then max_len: one step up", "SIRI, section 5.1"
)
METHODS["step-down"] = Method(
    _shape("step-down"), "the cap is max_len first, then min_len: one step down", "SIRI, section 5"
)
METHODS["constant-max"] = Method(
    _at_longest, "the cap is max_len always", "the usual control of a schedule"
)
METHODS["constant-mean"] = Method(
    lambda config: constant(config, mean_cap(config)),
    "the cap is always what the recipe's schedule has in the mean",
    "a control with the same caps in the mean",
)
METHODS["constant-min"] = Method(
    _at_shortest, "the cap is min_len always", "SIRI, section 5.3: compression alone"
)
METHODS["constant-best"] = Method(
    lambda config: [],
    "the constant cap that is best on the validation questions",
    "the strongest control: a cap that was looked for",
    sweeps=True,
)
METHODS["truncation"] = Method(
    _truncation,
    "responses up to max_len, and reward 0 for those of more than min_len tokens",
    "T_8192 in LASER (arXiv 2505.15612); L_R and L_T of arXiv 2602.20945",
)
METHODS["dler"] = Method(
    _dler,
    "the cap is min_len; batch normalisation, clip-higher, dynamic sampling",
    "DLER (arXiv 2510.15110)",
)
METHODS["toggle"] = Method(
    _toggle,
    "every other phase a budget counts, for questions that the group mostly gets right",
    "Toggle in Kimi K2.5 (arXiv 2602.02276)",
)
METHODS["l1-exact"] = Method(
    _l1("l1-exact"),
    "a price for each token of distance to min_len",
    "L1-Exact (arXiv 2503.04697), one target for all questions, not named in the prompt",
)
METHODS["l1-max"] = Method(
    _l1("l1-max"),
    "a right answer earns more the shorter it is, a half at min_len tokens",
    "L1-Max (arXiv 2503.04697), one target for all questions, not named in the prompt",
)
METHODS["length-penalty"] = Method(
    _priced("length-penalty"),
    "a right answer earns half less at max_len, in proportion to its length",
    "the linear penalty that SIRI rejects, section 4.2",
)
METHODS["laser"] = Method(
    _laser,
    "a bonus for right answers within min_len tokens; wrong ones cost",
    "LASER (arXiv 2505.15612)",
)
METHODS["kimi"] = Method(
    _priced("kimi"),
    "right answers earn by their length beside the shortest and the longest of the group",
    "Kimi k1.5 (arXiv 2501.12599), section 2.3.3",
)
METHODS["arora"] = Method(
    _priced("arora"),
    "right answers earn by their length beside the mean of the group's right ones",
    "arXiv 2502.04463, TLMRE in tables",
)
METHODS["gr3"] = Method(
    _priced("gr3"),
    "the reward is divided by a term of the length beside the group's mean",
    "GR3 (arXiv 2603.10535)",
)
METHODS["dapo"] = Method(
    _dapo,
    "the cap is max_len; overlong shaping, clip-higher, dynamic sampling, token-level loss",
    "DAPO (arXiv 2503.14476)",
)
