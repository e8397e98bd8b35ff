"""All families by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.train.bad_inputs import checkpoints, configuration, models, places, rows
from tests.train.bad_inputs.bed import Bad

FAMILIES: dict[str, Callable[[], Iterator[Bad]]] = {
    "values": configuration.values,
    "bounds": configuration.bounds,
    "unknown keys": configuration.unknown_keys,
    "yaml": configuration.recipes,
    "overrides": configuration.overrides,
    "options": configuration.options,
    "terminals": configuration.terminals,
    "supervised": configuration.supervised,
    "places": places.places,
    "sources": places.sources,
    "rows": rows.rows,
    "tokenizers": models.tokenizers,
    "models": models.models,
    "pipes": models.pipes,
    "checkpoints": checkpoints.checkpoints,
}
