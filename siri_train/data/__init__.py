"""Questions in: where they come from, how they are put to the model, what it learns from first."""
