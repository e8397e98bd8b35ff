"""The rollout engines: what each of them can do, and which functions check and build it.

This table is the only place that knows an engine by its name. Every other module asks it what the
recipe's engine can do. Functions are named by text, so reading a recipe imports no engine.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EngineSpec:
    """The capabilities of a rollout engine.

    Functions are given as ``"package.module:function"`` and imported when they are called.

    Args:
        build: ``(config, policy, *, ahead) -> Engine``. ``ahead`` is true where the next batch is
            sampled while the policy is updated.
        check: ``(config, model_config, device, *, take_server) -> None``. Raises ConfigError where
            the engine cannot run here. None: it runs everywhere.
        diagnose: ``() -> str``, the engine's line in ``siri-train doctor``: whether it works here,
            and why not. None: it works everywhere.
        in_process: it samples in the trainer's process, on the trainer's device.
        own_weights: it has a copy of the weights that ``sync`` replaces. Otherwise it samples from
            the trainer's own parameters.
        sleeps: it gives its memory back while the trainer works. On a GPU only.
        samples_during_update: it can sample while the policy is updated
            (``rollout.asynchronous``).
        needs: a package that the trainer does not install, or None.
        section: its section of ``rollout`` with ``gpu_memory_utilization``, ``cache_gib`` and
            ``sleep_level``, from which its memory is estimated. None: it has none.
        memory_key: the recipe key that lowers its memory on the trainer's device, or None.
    """

    build: str
    check: str | None = None
    diagnose: str | None = None
    in_process: bool = True
    own_weights: bool = True
    sleeps: bool = False
    samples_during_update: bool = False
    needs: str | None = None
    section: str | None = None
    memory_key: str | None = None


ENGINES: dict[str, EngineSpec] = {
    "transformers": EngineSpec(
        build="siri_train.rollout.transformers_engine:build",
        own_weights=False,
        samples_during_update=True,  # from a copy of the weights that it makes for that
        memory_key="rollout.batch_rows",
    ),
    "vllm": EngineSpec(
        build="siri_train.rollout.vllm.colocated:build",
        check="siri_train.rollout.vllm.colocated:check",
        diagnose="siri_train.rollout.vllm.colocated:diagnose",
        sleeps=True,
        needs="vllm",
        section="vllm",
        memory_key="rollout.vllm.gpu_memory_utilization",
    ),
    "vllm-server": EngineSpec(
        build="siri_train.rollout.vllm.connect:build_server_engine",
        check="siri_train.rollout.vllm.connect:check_server",
        in_process=False,
        samples_during_update=True,
        needs="vllm",
    ),
}
"""Every engine that ``rollout.engine`` takes. :func:`register` adds one."""

DEFAULT = "transformers"
"""The engine of a recipe that names none. It needs nothing that the trainer does not install."""


def register(name: str, spec: EngineSpec) -> None:
    """Add an engine.

    Args:
        name: what ``rollout.engine`` calls it.
        spec: what it can do, and who builds it.

    Raises:
        ValueError: there is an engine of that name, or a function is not ``module:function``.
    """
    if name in ENGINES:
        raise ValueError(f"rollout.engine: there is an engine {name!r} already; take another name")
    for field in ("build", "check", "diagnose"):
        text = getattr(spec, field)
        if text is not None and ":" not in text:
            raise ValueError(
                f"rollout.engine: {field} of {name!r} is {text!r}; takes package.module:function"
            )
    ENGINES[name] = spec


def names() -> tuple[str, ...]:
    """The names that ``rollout.engine`` takes."""
    return tuple(ENGINES)


def engine_of(config: Any) -> EngineSpec:
    """The engine of a recipe (a ``RunConfig``)."""
    return ENGINES[config.rollout.engine]


def function(text: str) -> Callable[..., Any]:
    """The function that ``"package.module:function"`` names."""
    return pkgutil.resolve_name(text)


def able(capability: str) -> str:
    """The names of the engines that have a capability, as ``"a, b or c"``.

    Args:
        capability: a field of :class:`EngineSpec` that is true or false.
    """
    *first, last = [name for name, spec in ENGINES.items() if getattr(spec, capability)]
    return f"{', '.join(first)} or {last}" if first else last
