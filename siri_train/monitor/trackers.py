"""TensorBoard, Weights & Biases and Trackio beside ``metrics.jsonl``, each by one key.

The records that the run appends to ``metrics.jsonl`` and ``eval.jsonl`` go to them under
``train/KEY`` and ``eval/KEY``; a value for each budget becomes ``eval/KEY@BUDGET``. The JSONL
files stay the record: a tracker that fails is switched off with one line and training goes on.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_train.config.base import ConfigError
from siri_train.config.run import MonitorConfig, RunConfig

INSTALL = "pip install 'siri-kernels[loggers]'"
PACKAGES = {
    "tensorboard": "torch.utils.tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
}
"""The key under ``monitor`` and the module it needs."""


@dataclass
class Tracker:
    """One open tracker.

    Args:
        name: its key under ``monitor``.
        log: takes the step and flat numeric values.
        close: writes out what is buffered.
    """

    name: str
    log: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


class Trackers:
    """All trackers of a recipe, or none.

    Args:
        opened: the trackers.
    """

    def __init__(self, opened: Iterable[Tracker]) -> None:
        self.opened = list(opened)

    @classmethod
    def open(cls, config: RunConfig, start_step: int) -> Trackers:
        """Open what ``config.monitor`` names.

        A resumed run continues its own: TensorBoard hides what was written at or past
        ``start_step``; W&B and Trackio find the run again by an id made of the run's folder.

        Args:
            config: the resolved recipe; it is stored with the run where the tracker can.
            start_step: steps already done.

        Raises:
            ConfigError: a tracker that cannot be opened, by its key, with the reason.
        """
        require_packages(config.monitor)
        opened: list[Tracker] = []
        openers = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
        for name, opener in openers.items():
            if not getattr(config.monitor, name):
                continue
            try:
                opened.append(opener(config, start_step))
            except Exception as error:  # each package has errors of its own
                cls(opened).close()
                raise ConfigError(
                    f"monitor.{name}: cannot be opened: {type(error).__name__}: {error}"
                ) from error
        return cls(opened)

    def log(self, group: str, row: Mapping[str, Any], step: int) -> None:
        """Send the numbers of a record; see :func:`numbers`.

        Args:
            group: ``train`` or ``eval``.
            row: a record of ``metrics.jsonl`` or ``eval.jsonl``.
            step: optimiser steps done.
        """
        values = numbers(group, row)
        self._each(lambda tracker: tracker.log(step, values))

    def close(self) -> None:
        """Write out what is buffered; afterwards nothing is sent."""
        self._each(lambda tracker: tracker.close())
        self.opened = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self.opened):
            try:
                call(tracker)
            except Exception as error:  # a lost connection must not cost a training run
                self.opened.remove(tracker)
                print(
                    f"monitor.{tracker.name}: switched off, metrics.jsonl goes on: "
                    f"{type(error).__name__}: {error}",
                    flush=True,
                )


def require_packages(monitor: MonitorConfig) -> None:
    """Check that the packages of the recipe's trackers are installed.

    Raises:
        ConfigError: naming the key and what to install.
    """
    for name, module in PACKAGES.items():
        if getattr(monitor, name):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ConfigError(f"monitor.{name}: {error}; {INSTALL}") from error


def numbers(group: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numeric values of a record under flat names.

    None, text and intervals are left out; a list as long as ``row["budgets"]`` gives one value a
    budget: ``{"accuracy": [0.1, 0.2], "budgets": [8, 16]}`` becomes ``eval/accuracy@8: 0.1, ...``,
    and ``pass_at`` of k samples ``eval/pass_at_2@8``. Figures of named sets are under
    ``eval/NAME/...``.
    """
    flat: dict[str, float] = {}
    budgets = row.get("budgets", ())
    for key, value in row.items():
        if key in ("step", "budgets") or key.endswith("_interval"):
            continue
        if isinstance(value, (int, float)):
            flat[f"{group}/{key}"] = float(value)
        elif isinstance(value, list) and len(value) == len(budgets):
            for budget, item in zip(budgets, value, strict=True):
                if isinstance(item, (int, float)):
                    flat[f"{group}/{key}@{budget}"] = float(item)
        elif key == "pass_at" and isinstance(value, dict):
            by_k = {f"pass_at_{k}": values for k, values in value.items()}
            flat |= numbers(group, {"budgets": budgets, **by_k})
        elif key == "sets" and isinstance(value, dict):
            for name, figures in value.items():
                flat |= numbers(f"{group}/{name}", {"budgets": budgets, **figures})
    return flat


def _tensorboard(config: RunConfig, start_step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    folder = config.run_dir / "tensorboard"
    writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
    if not start_step:
        writer.add_text("config", f"```yaml\n{config.to_yaml()}```")

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker("tensorboard", log, writer.close)


def _wandb(config: RunConfig, start_step: int) -> Tracker:
    import wandb

    # WANDB_MODE=offline, WANDB_ENTITY, ... decide where and whether it is sent.
    run = wandb.init(
        project=config.monitor.wandb,
        name=config.name,
        id=_identity(config.run_dir),
        resume="allow",
        dir=str(config.run_dir),
        config=config.model_dump(mode="json"),
    )
    # W&B's own step only grows, but a resumed run repeats steps: the charts' axis is this one.
    run.define_metric("step")
    run.define_metric("train/*", step_metric="step")
    run.define_metric("eval/*", step_metric="step")
    return Tracker("wandb", lambda step, values: run.log({"step": step, **values}), run.finish)


def _trackio(config: RunConfig, start_step: int) -> Tracker:
    import trackio

    run = trackio.init(
        project=str(config.monitor.trackio),
        name=f"{config.name}-{_identity(config.run_dir)}",
        resume="allow",
        config=config.model_dump(mode="json"),
        embed=False,
    )
    return Tracker("trackio", lambda step, values: run.log(values, step=step), run.finish)


def _identity(folder: Path) -> str:
    """The same for the same folder: a resumed run is found again, another folder's is not."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
