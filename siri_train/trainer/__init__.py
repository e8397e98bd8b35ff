"""Parts of the training loop: a run, its state and update, evaluation, checks before it."""
