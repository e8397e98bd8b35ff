"""TensorBoard, Weights & Biases and Trackio beside ``metrics.jsonl``, each by one key.

The records that the run appends to ``metrics.jsonl`` and ``eval.jsonl`` go to them under
``train/KEY`` and ``eval/KEY``, alarms under ``alarms/NAME``; see ``tracked_values.py``. The JSONL
files stay the record: a tracker that fails is switched off with one line and training goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from siri_train.config.base import ConfigError
from siri_train.config.run import MonitorConfig, RunConfig
from siri_train.monitor.tracked_values import Histogram, Totals, histogram, numbers, of_phase

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
        histogram: takes the step, a name and counts; None: the tracker has no histograms.
        text: takes the step, a title and a text; None: the tracker has no place for text.
    """

    name: str
    log: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]
    histogram: Callable[[int, str, Histogram], None] | None = None
    text: Callable[[int, str, str], None] | None = None


class Named(Protocol):
    """An alarm that stays true."""

    @property
    def name(self) -> str:
        """As ``alarms.jsonl`` has it."""

    @property
    def age(self) -> int:
        """Steps since it was raised."""


class Trackers:
    """All trackers of a recipe, or none.

    Args:
        opened: the trackers.
        totals: what the run took until now; None: it begins.
        known: alarms that it has raised.
    """

    def __init__(
        self,
        opened: Iterable[Tracker],
        totals: Totals | None = None,
        known: Iterable[str] = (),
    ) -> None:
        self.opened = list(opened)
        self.totals = totals or Totals()
        self.known = dict.fromkeys(known, 0.0)

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
        if not opened:
            return cls([])
        price = config.monitor.price_per_gpu_hour
        totals = Totals.of(config.run_dir / "metrics.jsonl", start_step, price)
        return cls(opened, totals, _raised(config.run_dir / "alarms.jsonl"))

    def log(self, group: str, row: Mapping[str, Any], step: int) -> None:
        """Send the numbers of a record, and what the run has taken until then.

        The names are those of :func:`siri_train.monitor.tracked_values.numbers`, and for the token
        groups of a phase those of :func:`siri_train.monitor.tracked_values.of_phase`.

        Args:
            group: ``train`` or ``eval``.
            row: a record of ``metrics.jsonl`` or ``eval.jsonl``.
            step: optimiser steps done.
        """
        if not self.opened:
            return
        totals = self.totals.add(row) if group == "train" else self.totals.values(group)
        phased = of_phase(row) if group == "train" else {}
        values = {**numbers(group, row), **phased, **totals}
        self._each(lambda tracker: tracker.log(step, values))
        lengths = histogram(row)
        if lengths is not None:
            self._histogram(step, f"{group}/response_len_hist", lengths)

    def log_alarms(
        self, rows: Sequence[Mapping[str, Any]], ongoing: Iterable[Named], step: int
    ) -> None:
        """Send the alarms of a step.

        ``alarms/NAME`` is 1 while the alarm is true and 0 before and after, in every step from the
        one that first raised it; ``alarms/NAME/age``, ``alarms/NAME/value`` and the like are the
        numbers of its records. What was raised or cleared goes as text to trackers that have text.

        Args:
            rows: of ``alarms.jsonl``, of this step.
            ongoing: the alarms that are true after it.
            step: optimiser steps done.
        """
        if not self.opened:
            return
        self.known = dict.fromkeys(self.known, 0.0)
        values: dict[str, float] = {}
        for row in rows:
            name, state = str(row.get("alarm")), row.get("state") or "raised"
            self.known[name] = float(state != "cleared")
            values |= numbers(f"alarms/{name}", row)
            if state == "raised":
                self._text(step, f"ALARM {name}", f"{row.get('cause')}; {row.get('action')}")
            elif state == "cleared":
                self._text(step, f"alarm {name} is over", f"after {row.get('age')} steps")
        for one in ongoing:
            self.known[one.name] = 1.0
            values[f"alarms/{one.name}/age"] = float(one.age)
        values |= {f"alarms/{name}": state for name, state in self.known.items()}
        if values:
            self._each(lambda tracker: tracker.log(step, values))

    def close(self) -> None:
        """Write out what is buffered; afterwards nothing is sent."""
        self._each(lambda tracker: tracker.close())
        self.opened = []

    def _histogram(self, step: int, name: str, lengths: Histogram) -> None:
        def send(tracker: Tracker) -> None:
            if tracker.histogram is not None:
                tracker.histogram(step, name, lengths)

        self._each(send)

    def _text(self, step: int, title: str, text: str) -> None:
        def send(tracker: Tracker) -> None:
            if tracker.text is not None:
                tracker.text(step, title, text)

        self._each(send)

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


def _raised(path: Path) -> list[str]:
    """The names of all alarms that a run's log holds."""
    names = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a damaged line has none
                names.append(str(json.loads(line)["alarm"]))
    return names


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

    def lengths(step: int, name: str, found: Histogram) -> None:
        middles = [(a + b) / 2 for a, b in itertools.pairwise(found.edges)]
        pairs = list(zip(middles, found.counts, strict=True))
        writer.add_histogram_raw(
            name,
            min=0.0,
            max=found.edges[-1],
            num=sum(found.counts),
            sum=sum(middle * count for middle, count in pairs),
            sum_squares=sum(middle**2 * count for middle, count in pairs),
            bucket_limits=found.edges[1:],
            bucket_counts=list(found.counts),
            global_step=step,
        )
        writer.flush()

    def text(step: int, title: str, said: str) -> None:
        writer.add_text("alarms", f"**{title}**: {said}", step)

    return Tracker("tensorboard", log, writer.close, lengths, text)


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
    run.define_metric("alarms/*", step_metric="step")

    def lengths(step: int, name: str, found: Histogram) -> None:
        shown = wandb.Histogram(np_histogram=(list(found.counts), found.edges))
        run.log({"step": step, name: shown})

    def text(step: int, title: str, said: str) -> None:
        if title.startswith("ALARM"):  # it is sent to people
            run.alert(title=title, text=f"step {step}: {said}")

    def log(step: int, values: dict[str, float]) -> None:
        run.log({"step": step, **values})

    return Tracker("wandb", log, run.finish, lengths, text)


def _trackio(config: RunConfig, start_step: int) -> Tracker:
    import trackio

    run = trackio.init(
        project=str(config.monitor.trackio),
        name=f"{config.name}-{_identity(config.run_dir)}",
        resume="allow",
        config=config.model_dump(mode="json"),
        embed=False,
    )

    def lengths(step: int, name: str, found: Histogram) -> None:
        shown = trackio.Histogram(np_histogram=(list(found.counts), found.edges))
        run.log({name: shown}, step=step)

    def text(step: int, title: str, said: str) -> None:
        with redirect_stdout(io.StringIO()):  # the run has printed it
            run.alert(title=title, text=said, step=step)

    def log(step: int, values: dict[str, float]) -> None:
        run.log(values, step=step)

    # Versions before 0.30 lack one or the other.
    histograms = lengths if hasattr(trackio, "Histogram") else None
    return Tracker("trackio", log, run.finish, histograms, text if hasattr(run, "alert") else None)


def _identity(folder: Path) -> str:
    """The same for the same folder: a resumed run is found again, another folder's is not."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
