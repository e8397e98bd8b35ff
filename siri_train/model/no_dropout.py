"""Puts a model into the mode in which updates compute the same log-probs as the sampler."""

from __future__ import annotations

from typing import Any


def set_rl_mode(model: Any) -> None:
    """Evaluation mode everywhere: no dropout, no layer drop, no router noise, whatever the config.

    A sampler has none of them, so with them the ratio of new to old probabilities is not 1 before
    the first update (16 has been seen), and clipping throws away what is right. TRL and verl leave
    them out too. Gradients flow as in training mode.

    transformers checkpoints activations in training mode only. So modules that do are put back
    into it, with their own drop probabilities at 0; their submodules stay in evaluation mode. The
    model's configuration is not touched: the supervised stage and checkpoints keep it.

    Args:
        model: a transformers model, changed in place; ``model.train()`` undoes the mode.
    """
    model.eval()
    for module in model.modules():
        if not getattr(module, "gradient_checkpointing", False):
            continue
        module.training = True
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
