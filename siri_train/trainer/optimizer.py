"""AdamW with float32 master weights, its learning rate; a bad gradient changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.adamw import adamw

if TYPE_CHECKING:  # the bench runs this optimiser on machines without pydantic
    from siri_train.config.run import TrainConfig

PIECE = 2**26
"""Parameters whose gradients :class:`MasterAdamW` upcasts to float32 at a time."""


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters, weight decay on matrices only.

    Parameters below float32 get :class:`MasterAdamW`, unless ``train.master_weights`` is off.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    low = any(p.dtype != torch.float32 for p in trainable)
    kind = MasterAdamW if low and config.master_weights else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of ``step``, from 0: constant after a linear warm-up of ``lr_warmup_steps``."""
    return config.lr * min(1.0, (step + 1) / max(1, config.lr_warmup_steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> None:
    """Set the learning rate of a step.

    Args:
        optimizer: all of its groups get the same.
        step: from 0.
        config: the recipe's section.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)


def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> float:
    """Scale all gradients, of all ranks, to a global norm of at most ``max_norm``.

    Returns:
        The norm before. It is infinite or NaN if any gradient is; the caller must not step then.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(with_gradient, max_norm)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def step_if_finite(optimizer: torch.optim.Optimizer, max_norm: float) -> float | None:
    """Clip the gradient and update, unless any rank's gradient is infinite or NaN.

    Returns:
        The gradient's norm before clipping; None if the update was skipped.
    """
    norm = clip_gradients(
        (p for group in optimizer.param_groups for p in group["params"]), max_norm
    )
    if not math.isfinite(norm):
        return None
    optimizer.step()
    return norm


def all_finite(parameters: Iterable[torch.Tensor]) -> bool:
    """Whether no element of any tensor is infinite or NaN; one value is read from the device."""
    largest = [p.detach().abs().amax().float() for p in parameters if p.numel()]
    # NaN passes through a maximum. Tensors on several devices are compared on the first's.
    return not largest or bool(
        torch.stack([m.to(largest[0].device) for m in largest]).isfinite().all()
    )


class MasterAdamW(torch.optim.AdamW):
    """AdamW whose weights and moments are float32 while the model's are bfloat16 or float16.

    A step of 1e-6 on a weight of 0.02 is an 80th of bfloat16's spacing there: without the float32
    copy (``state[p]["master"]``, 4 more bytes a parameter) it would be rounded away every time.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the float32 weights from the model's gradients, then round them to the model's.

        Raises:
            ValueError: a closure is given.
        """
        if closure is not None:
            raise ValueError("MasterAdamW.step takes no closure")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                    state["master"] = p.detach().to(torch.float32, copy=True)
                    state["exp_avg"] = torch.zeros_like(state["master"])
                    state["exp_avg_sq"] = torch.zeros_like(state["master"])
            for piece in _pieces(parameters):
                states = [self.state[p] for p in piece]
                adamw(
                    [s["master"] for s in states],
                    [p.grad.float() for p in piece],  # type: ignore[union-attr]
                    [s["exp_avg"] for s in states],
                    [s["exp_avg_sq"] for s in states],
                    [],
                    [s["step"] for s in states],
                    fused=group["fused"],
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
                for p, state in zip(piece, states, strict=True):
                    p.copy_(state["master"])

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state and keep it float32: PyTorch alone would cast it to the weights' dtype."""
        super().load_state_dict(state_dict)
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if key in ("master", "exp_avg", "exp_avg_sq"):
                    self.state[p][key] = value.to(p.device, torch.float32, copy=True)


def _pieces(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """The parameters in order, in pieces of about :data:`PIECE` elements."""
    piece: list[torch.nn.Parameter] = []
    for p in parameters:
        if piece and sum(q.numel() for q in piece) + p.numel() > PIECE:
            yield piece
            piece = []
        piece.append(p)
    if piece:
        yield piece
