"""The configuration: sections and their values, recipes in YAML, overrides, messages."""
