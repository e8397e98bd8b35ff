"""The two functions that read a recipe, under the name by which scripts import them."""

from siri_train.config.recipe import load_config, parse_config

__all__ = ["load_config", "parse_config"]
