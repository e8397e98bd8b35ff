"""Registries: tables of names that a user's package can add to, and the options of an entry."""

from siri_train.registry.names import NameTaken, Registry, kept_on_error
from siri_train.registry.options import one_of, with_defaults

__all__ = ["NameTaken", "Registry", "kept_on_error", "one_of", "with_defaults"]
