"""``LogprobHead``: :func:`linear_logprob` as a module that takes the place of an LM head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from siri_kernels.linear_logprob.head.scoring import ScoringHead
from siri_kernels.linear_logprob.head.wrap import wrap


class LogprobHead(ScoringHead):
    """An LM head that can give log-probs and entropy of targets without storing logits.

    Takes the place of a model's ``lm_head`` (``model.lm_head = LogprobHead(model.lm_head)``;
    :meth:`wrap` does so and gives the model's forward ``targets``). It holds the very parameters of
    the head it is made of, under the same names, so that tied weights stay tied, optimisers keep
    their parameters and checkpoints load as before. It is an ``nn.Linear``: called with hidden
    states alone it returns logits as that did.

    Called as a module (not through its ``weight``), so that hooks that gather a sharded weight
    (FSDP2) cover it, and so that their mixed precision leaves a tensor of temperatures as it is.

    Attributes:
        cast_hidden: whether hidden states of another dtype than the weight's are cast to it when
            targets are scored outside autocast, as models do whose last norm computes in float32.
            False; :meth:`wrap` sets it.

    Args:
        head: the ``nn.Linear`` [V, D] to take over (its bias too), an ``nn.Embedding`` [V, D] to
            tie to, or the ``nn.Parameter`` [V, D] itself.

    Raises:
        TypeError: ``head`` is none of these, its forward does more than ``nn.Linear``'s (adapters,
            quantisation), or its weight is not dense and floating point.
        ValueError: a parameter that is not a matrix, is empty, or is not known yet.
    """

    def __init__(self, head: nn.Linear | nn.Embedding | nn.Parameter) -> None:
        weight: torch.Tensor
        bias: nn.Parameter | None = None
        if isinstance(head, nn.Linear):
            # Not where only hooks or the instance's own forward wrap it.
            if type(head).forward not in (nn.Linear.forward, ScoringHead.forward):
                if not isinstance(head, nn.LazyLinear):  # is refused below, by its weight
                    raise TypeError(
                        f"LogprobHead: head must compute what nn.Linear does; got "
                        f"{type(head).__name__} with a forward of its own. Merge or remove the "
                        "adapter or quantisation, or give its weight as an nn.Parameter"
                    )
            weight, bias = head.weight, head.bias
        elif isinstance(head, nn.Embedding):
            weight = head.weight
        elif isinstance(head, nn.Parameter):
            weight = head
        else:
            raise TypeError(
                "LogprobHead: head must be an nn.Linear, nn.Embedding or nn.Parameter; got "
                f"{type(head).__name__}"
            )
        _check_weight(head, weight)
        # On the meta device: nn.Linear's own parameters are never allocated nor initialised.
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.weight = weight
        self.bias = bias  # type: ignore[assignment]
        if isinstance(head, nn.Module):
            self.train(head.training)

    @staticmethod
    def wrap(model: Any, screen: str | None = None, logprob_tol: float = 1e-4) -> Any:
        """Makes a causal LM of transformers return log-probs of targets instead of logits.

        ``model(input_ids, attention_mask, targets=targets, temperature=0.9)`` then returns
        :class:`~siri_kernels.linear_logprob.head.wrap.ModelLogprobs`. ``targets`` [B, L] int64 are
        aligned with the hidden states: ``targets[:, t]`` is what position ``t`` predicts, -100
        where nothing counts. Options are ``temperature``, ``tail``, ``ignore_index``, ``backend``,
        ``screen`` and ``logprob_tol`` of :func:`siri_kernels.linear_logprob`; softcaps and factors
        of the model's logits are its own, as its configuration has them at each call. Without
        ``targets`` nothing changes: logits, labels, ``generate``.

        The same object is returned, its head a ``LogprobHead`` of the same parameters, its class a
        subclass of the same name, so that tied weights, parameter names, state dicts,
        ``save_pretrained``, copies and pickles stay as they are. The model runs four tokens, on
        which it is seen that log-probs from hidden states are those of its logits. Wrap it before
        ``fully_shard``, FSDP, DDP, PEFT, accelerate and ``torch.compile``. The head may be an FSDP
        unit of its own, or get PEFT's LoRA, ``modules_to_save`` or ``trainable_token_indices``
        afterwards. The auxiliary loss of a mixture of experts is not added; its ``router_logits``
        are in ``base`` when asked for.

        A ``temperature`` may be a float32 or float64 tensor, one or [B, L], also under the mixed
        precision of ``fully_shard``. A wrapper outside the model that casts arguments (FSDP1,
        ``fully_shard`` of a PEFT model) rounds it first: that is refused, with what to set.

        Wrapped again, a wrapped model is the same; its rule is looked at anew, and ``screen`` and
        ``logprob_tol`` are those of the last time.

        Args:
            model: a ``PreTrainedModel`` with a language-model head, weights loaded.
            screen: of :func:`siri_kernels.linear_logprob`, for calls that do not name one
                (``model(..., screen=None)`` is exact). Where a weight is made anew in every call
                (LoRA or ``trainable_token_indices`` on the head itself) a screen saves no time:
                "auto" takes none there, and one that is asked for by name is refused.
            logprob_tol: the same, for ``logprob_tol``.

        Raises:
            TypeError: it is not one, or is inside something else (DDP, PEFT, ...); or
                ``logprob_tol`` is not a number.
            ValueError: an unknown ``screen``, ``logprob_tol`` <= 0, or a model that cannot be
                wrapped, and why: encoder-decoder, a head that is not an ``nn.Linear``, something
                between base model and head, logits changed in an unknown way, sharded or unloaded
                weights, a forward or a head that carries hooks already.
        """
        return wrap(model, LogprobHead, screen, logprob_tol)


def _check_weight(head: object, weight: torch.Tensor) -> None:
    """Checks that ``linear_logprob`` takes the weight of a head, on any device."""
    kind = type(head).__name__
    if isinstance(weight, nn.UninitializedParameter):
        raise ValueError(
            f"LogprobHead: head must have a weight of shape [V, D]; got {kind} whose shape is not "
            "known yet: run it once before"
        )
    if not isinstance(weight, nn.Parameter):
        raise TypeError(
            f"LogprobHead: the weight of head must be an nn.Parameter; got {kind} whose weight is "
            "computed (torch.nn.utils.parametrizations, FSDP1): remove the parametrization "
            "(torch.nn.utils.parametrize.remove_parametrizations), or do this before it"
        )
    if weight.layout != torch.strided or weight.is_nested or not weight.is_floating_point():
        raise TypeError(
            f"LogprobHead: head must have a dense floating-point weight; got {kind} of "
            f"{str(weight.dtype).removeprefix('torch.')}, {weight.layout}"
        )
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(
            f"LogprobHead: head must have a weight of shape [V, D] with V, D >= 1; got "
            f"{list(weight.shape)}"
        )
