"""What the training loop calls: a run, its state and update, evaluation, checks before it."""
