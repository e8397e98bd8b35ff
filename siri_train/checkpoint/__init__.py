"""Checkpoints: writing them whole, finding and reading them, what is kept, how a run goes on."""
