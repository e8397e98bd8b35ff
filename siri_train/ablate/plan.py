"""The plan of an ablation: its arms and runs, all checked before the first one starts."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siri_train.ablate import grid
from siri_train.ablate.presets import METHODS, constant
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config
from siri_train.config.run import RunConfig
from siri_train.registry import one_of

_OWN = {
    "seed": "--seeds gives the seeds",
    "output": "--out gives the folder",
    "name": "each run has a name of its own",
}
_STARTS = ("schedule.max_len", "schedule.min_len")
"""Methods set their caps from these, so their varied values do not count over the method's."""
_SAME = ("data.eval", "eval.budgets", "eval.select")
_CAPS = 5
_MOST_STEPS = 1_000_000  # of train.steps


@dataclass
class Run:
    """One training run, which several arms may share.

    Attributes:
        folder: of the run, as ``output`` takes it.
        label: the arm and the seed, for messages.
        seed: its seed.
        config: as it is trained; without the budget of tokens while that is not known.
        waits: the budget of tokens is not known before the reference arm's run has ended.
    """

    folder: Path
    label: str
    seed: int
    config: RunConfig
    waits: bool = False

    def limit(self, tokens: int) -> None:
        """Let the run end when it has sampled ``tokens``, with as many steps as that may take."""
        responses = self.config.rollout.prompts * self.config.rollout.group_size
        # A response has a token at least.
        steps = max(self.config.train.steps, -(-tokens // responses))
        train = self.config.train.model_copy(
            update={"max_tokens": tokens, "steps": min(steps, _MOST_STEPS)}
        )
        self.config = self.config.model_copy(update={"train": train})
        self.waits = False


@dataclass
class Member:
    """The runs of one configuration: an arm, or one cap of an arm that sweeps."""

    name: str
    overrides: list[str]
    cap: int | None = None
    runs: dict[int, Run] = field(default_factory=dict)


@dataclass
class Arm:
    """One line of the comparison: a method with some values of the grid, over all seeds."""

    name: str
    method: str | None
    varied: list[str]
    members: list[Member]
    same_as: str | None = None

    @property
    def sweeps(self) -> bool:
        """Whether the best of its members counts."""
        return self.method is not None and METHODS[self.method].sweeps


@dataclass
class Plan:
    """All arms of an ablation.

    Attributes:
        recipe: as it was given, with ``overrides`` for all arms.
        out: the folder.
        match: ``steps`` or ``tokens``.
        tokens: the budget of every run; None: that of the first arm's run with the same seed.
        arms: in the order given; the first is the reference.
        runs: every run once, in the order in which they start.
    """

    recipe: str
    overrides: list[str]
    out: Path
    seeds: list[int]
    match: str
    tokens: int | None
    arms: list[Arm]
    runs: list[Run]

    def reference_run(self, seed: int) -> Run:
        """The run of the first arm that gives the others their budget of tokens."""
        return self.arms[0].members[0].runs[seed]


@dataclass(frozen=True)
class Asked:
    """The command line, as arguments; see ``siri-train ablate --help``."""

    recipe: str
    out: Path
    overrides: Sequence[str] = ()
    vary: Sequence[str] = ()
    methods: Sequence[str] = ()
    seeds: str = "1"
    match: str = "steps"
    tokens: int | None = None
    caps: Sequence[int] = ()


def build_plan(asked: Asked) -> Plan:
    """Make every arm's configuration.

    Raises:
        ConfigError: an argument that cannot be, or arms that cannot run: all of them, by name.
    """
    base = load_config(asked.recipe, asked.overrides)
    seeds = grid.read_seeds(asked.seeds, base.seed)
    _check(asked)
    arms = _arms(asked, base)
    shared = _supervised_start(base) + _budgets(asked, base, arms)
    runs = _runs(asked, arms, seeds, shared)
    _same_evaluation(runs)
    plan = Plan(
        asked.recipe, list(asked.overrides), asked.out, seeds, asked.match, asked.tokens, arms, runs
    )
    if asked.match == "tokens":
        _limit(plan)
    return plan


def settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide a run's numbers: its configuration without its name and folder."""
    return {k: v for k, v in config.model_dump(mode="json").items() if k not in ("name", "output")}


def _check(asked: Asked) -> None:
    for name in asked.methods:
        if name not in METHODS:
            raise ConfigError(f"--method: got {name!r}; {one_of(METHODS, name)}")
    if len(set(asked.methods)) < len(asked.methods):
        raise ConfigError(f"--method: got {','.join(asked.methods)}; takes each name once")
    for key, _ in grid.read_vary(asked.vary):
        if key in _OWN:
            raise ConfigError(f"--vary {key}: {_OWN[key]}")
    for override in asked.overrides:
        key = override.partition("=")[0].strip()
        if key in ("output", "name"):
            raise ConfigError(f"{key}: {_OWN[key]}")
    if asked.tokens is not None and asked.match != "tokens":
        raise ConfigError("--tokens: is the budget of --match tokens, which is not given")
    sweeping = any(METHODS[name].sweeps for name in asked.methods)
    if asked.caps and not sweeping:
        raise ConfigError("--caps: are those of --method constant-best, which is not given")
    if asked.match == "tokens" and asked.tokens is None and asked.methods[:1]:
        if METHODS[asked.methods[0]].sweeps:
            raise ConfigError(
                f"--match tokens: the first arm gives the budget, and {asked.methods[0]} has "
                "several runs; put another method first, or give --tokens"
            )


def _arms(asked: Asked, base: RunConfig) -> list[Arm]:
    """Every arm with the overrides of its members, without runs."""
    vary = grid.read_vary(asked.vary)
    short = {key: _short_key(key, [k for k, _ in vary]) for key, _ in vary}
    arms: list[Arm] = []
    wrong = []
    for method in asked.methods or (None,):
        for cell in grid.cells(vary):
            words = [method] if method else []
            words += [f"{short[key]}={value}" for key, value in cell]
            name = _folder_name("+".join(words) or "recipe", {arm.name for arm in arms})
            varied = [f"{key}={value}" for key, value in cell]
            try:
                arms.append(Arm(name, method, varied, _members(asked, base, method, varied)))
            except ConfigError as error:
                wrong.append(f"{name}: {error}")
    _refuse(wrong, len(wrong) + len(arms))
    return arms


def _members(asked: Asked, base: RunConfig, method: str | None, varied: list[str]) -> list[Member]:
    if method is None:
        return [Member("", varied)]
    try:
        start = load_config(asked.recipe, [*asked.overrides, *varied])
    except ConfigError:  # values that only fit the method, as options of its reward
        caps_only = [one for one in varied if one.partition("=")[0] in _STARTS]
        start = load_config(asked.recipe, [*asked.overrides, *caps_only]) if caps_only else base
    # What is varied counts over the method's own.
    over = [one for one in varied if one.partition("=")[0] not in _STARTS]
    made = [*varied, *METHODS[method].overrides(start), *over]
    if not METHODS[method].sweeps:
        return [Member("", made)]
    low, high = start.schedule.min_len, start.schedule.max_len
    for cap in asked.caps:
        if not low <= cap <= high:
            raise ConfigError(f"--caps: got {cap}; takes numbers from {low} to {high} (the caps)")
    even = {round(low + (high - low) * i / (_CAPS - 1)) for i in range(_CAPS)}
    caps = sorted(set(asked.caps) or even)
    return [Member(f"cap={cap}", [*made, *constant(start, cap)], cap) for cap in caps]


def require_start(plan: Plan) -> None:
    """Refuse a recipe whose supervised stage has not been trained.

    Raises:
        ConfigError: all arms would start from the base model.
    """
    for run in plan.runs:
        if run.config.sft is not None and run.config.model.path != "embedded":
            raise ConfigError(
                f"{plan.recipe} has a supervised stage (sft), which has not been trained: run "
                f"`siri-train sft {plan.recipe}` first, from whose result all arms then start, or "
                "give sft=null to start from model.path"
            )


def _supervised_start(base: RunConfig) -> list[str]:
    """The overrides that let every arm start from the recipe's own supervised stage."""
    start = base.run_dir / "sft"  # where the stage writes it
    if base.sft is None or not (start / "config.json").is_file():
        return []
    return [f"model.path={start}", "sft=null"]


def _budgets(asked: Asked, base: RunConfig, arms: Sequence[Arm]) -> list[str]:
    """The override that lets every arm be evaluated at the same budgets of tokens."""
    if base.eval.budgets:
        return []
    found = set(base.budgets)
    for arm in arms:
        with suppress(ConfigError):  # values that only fit the method; _runs says what is wrong
            found |= set(load_config(asked.recipe, [*asked.overrides, *arm.varied]).budgets)
    return [f"eval.budgets={sorted(found)}"]


def _runs(
    asked: Asked, arms: Sequence[Arm], seeds: Sequence[int], shared: Sequence[str]
) -> list[Run]:
    """The runs of all members, each configuration once, those of a seed together."""
    found: dict[str, Run] = {}
    wrong: dict[str, None] = {}
    for seed in seeds:
        for arm, member in _every(arms):
            folder = asked.out / arm.name / member.name / f"seed-{seed}"
            own = [f"seed={seed}", f"output={folder}", f"name={arm.name}.seed-{seed}"]
            try:
                config = load_config(
                    asked.recipe, [*asked.overrides, *shared, *member.overrides, *own]
                )
            except ConfigError as error:
                wrong[f"{_label(arm, member)}: {error}"] = None
                continue
            key = json.dumps(settings(config), sort_keys=True)
            run = Run(folder, f"{_label(arm, member)} seed {seed}", seed, config)
            member.runs[seed] = found.setdefault(key, run)
    _refuse(list(wrong), len(list(_every(arms))))
    for place, arm in enumerate(arms):
        runs = [member.runs for member in arm.members]
        same = [other for other in arms[:place] if [m.runs for m in other.members] == runs]
        arm.same_as = same[0].name if same else None
    return list(found.values())


def _same_evaluation(runs: Sequence[Run]) -> None:
    """Refuse arms whose answers could not be compared."""
    first = runs[0].config
    for run in runs:
        own = run.config
        values = zip(
            _SAME,
            (own.data.eval, own.budgets, own.eval.select),
            (first.data.eval, first.budgets, first.eval.select),
            strict=True,
        )
        for key, value, wanted in values:
            if value != wanted:
                raise ConfigError(
                    f"--vary: {key} of {run.label} is not that of {runs[0].label}; all arms are "
                    f"compared on the same questions within the same tokens: give {key} once, "
                    "as an override for all arms"
                )


def _limit(plan: Plan) -> None:
    for run in plan.runs:
        if run.config.train.max_tokens is not None:
            raise ConfigError(
                f"train.max_tokens: got {run.config.train.max_tokens} ({run.label}) beside "
                "--match tokens, which sets it; give the budget as --tokens"
            )
    if plan.tokens is not None:
        for run in plan.runs:
            run.limit(plan.tokens)
        return
    references = [plan.reference_run(seed) for seed in plan.seeds]
    for run in plan.runs:
        run.waits = all(run is not one for one in references)
    plan.runs.sort(key=lambda run: run.waits)  # the others need their tokens


def _every(arms: Sequence[Arm]) -> list[tuple[Arm, Member]]:
    return [(arm, member) for arm in arms for member in arm.members]


def _label(arm: Arm, member: Member) -> str:
    return f"{arm.name} {member.name}".strip()


def _refuse(wrong: Sequence[str], of: int) -> None:
    if wrong:
        raise ConfigError(f"{len(wrong)} of {of} arms cannot run: " + " | ".join(wrong))


def _short_key(key: str, keys: Sequence[str]) -> str:
    """The end of a key that no other key has."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if not any(other != key and f".{other}".endswith(f".{end}") for other in keys):
            return end
    return key


def _folder_name(text: str, taken: set[str]) -> str:
    """A name for an arm and its folder, as near to ``text`` as folders and tables allow."""
    name = re.sub(r"[^A-Za-z0-9._=+,-]+", "_", text).strip("_.")
    name = re.sub(r"_*=_*", "=", name) or "arm"
    mark = f"-{zlib.crc32(text.encode()):08x}"
    if len(name) > 80:
        name = name[:70] + mark
    return name if name not in taken else name + mark
