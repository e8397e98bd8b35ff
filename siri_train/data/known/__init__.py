"""Public sets by name: where they come from, and how their rows become our files."""
