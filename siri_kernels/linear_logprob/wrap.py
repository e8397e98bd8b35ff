"""``LogprobHead.wrap``: a transformers causal LM that gives log-probs of targets, not logits.

Nothing of transformers is imported. What a model must be is tested on the model itself: one forward
pass of four tokens, in which the head answers with logits of our own, shows what reaches the head
and what becomes of the logits behind it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from siri_kernels.linear_logprob.head import LogprobHead

_OP = "LogprobHead.wrap"
_OPTIONS = ("temperature", "tail", "ignore_index", "backend")
_OF_LOGITS = (
    "labels",
    "shift_labels",
    "logits_to_keep",
    "num_items_in_batch",
    "num_logits_to_keep",
)
# What configurations call the cap and the factor of their logits; a factor divides in some models
# (Granite) and multiplies in others (Cohere), so both are tried.
_CAPS = ("final_logit_softcapping", "logits_soft_cap")
_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


class ModelLogprobs(NamedTuple):
    """What a wrapped model returns for ``targets``.

    Attributes:
        logprobs: [B, L] of the targets, see :class:`LogprobOutput`; 0 where they are ignored.
        entropy: [B, L] of the distributions, in nats.
        base: the output of the model without its head: ``last_hidden_state`` [B, L, D], and what
            else was asked for (``router_logits``, ``hidden_states``, ...).
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor
    base: Any


class _Rule(NamedTuple):
    """Logits are ``softcap(scale * head(hidden))``."""

    softcap: float | None
    scale: float

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


def wrap(model: Any) -> Any:
    """See :meth:`LogprobHead.wrap`."""
    kind: Any = type(model)
    if not issubclass(kind, nn.Module) or not hasattr(kind, "get_output_embeddings"):
        raise TypeError(
            f"{_OP}: model must be a causal LM of transformers; got {kind.__name__}. Wrap "
            "the model itself, before get_peft_model, DistributedDataParallel or torch.compile"
        )
    name, head, base = kind.__name__, model.get_output_embeddings(), model.base_model
    if hasattr(kind, "_siri_base") and isinstance(head, LogprobHead):
        return model
    problem = _problem(model, head, base)
    if problem:
        raise ValueError(f"{_OP}: {name} cannot be wrapped: {problem}")
    rule = _probe(model, head, base)
    model.set_output_embeddings(LogprobHead(head))
    if not isinstance(model.get_output_embeddings(), LogprobHead):
        raise ValueError(f"{_OP}: {name} cannot be wrapped: set_output_embeddings has no effect")
    model._siri_rule = rule
    model.__class__ = _subclass(getattr(kind, "_siri_base", kind))
    return model


def _problem(model: Any, head: Any, base: Any) -> str | None:
    """Why ``model`` cannot be wrapped, as far as that shows without running it."""
    if getattr(model.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if base is model:
        return "it has no base model, base_model is the model itself"
    if "forward" in vars(model):
        return (
            "its forward was replaced on the instance (by TRL, accelerate, Liger, ...); wrap it "
            "before that"
        )
    if not isinstance(head, nn.Linear) or type(head).forward not in (
        nn.Linear.forward,
        LogprobHead.forward,
    ):
        return (
            f"its head is {type(head).__name__}, not an nn.Linear; an adapter or quantisation goes "
            "on other layers, or is merged first"
        )
    if hasattr(head.weight, "full_tensor"):
        return "its weights are sharded already; wrap it before fully_shard"
    if head.weight.is_meta:
        return "its weights are on the meta device; load them first, it is run on four tokens"
    if not head.weight.is_floating_point():
        return f"the weight of its head is {head.weight.dtype}; quantised heads are not taken"
    if head._forward_hooks or head._forward_pre_hooks or hasattr(head, "_hf_hook"):
        return (
            "its head has hooks (device_map, profilers), which would be lost; add them afterwards"
        )
    return None


@torch.no_grad()
def _probe(model: Any, head: nn.Linear, base: nn.Module) -> _Rule:
    """Runs four tokens: the head must get the base model's output, its logits follow a rule.

    Raises:
        ValueError: they do not, or the model cannot be run so.
    """
    seen: dict[str, Any] = {}
    device = head.weight.device

    def after_base(module: nn.Module, args: Any, output: Any) -> None:
        seen["hidden"] = getattr(output, "last_hidden_state", None)

    def after_head(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        # Far from 0, where a cap bends and no rounding hides a factor.
        seen["input"] = args[0]
        spread = torch.linspace(
            -60, 60, output.shape[-1], dtype=torch.float32, device=output.device
        )
        seen["logits"] = spread.to(output.dtype).expand_as(output).contiguous()
        return seen["logits"].clone()

    hooks = (base.register_forward_hook(after_base), head.register_forward_hook(after_head))
    # One row of four different tokens, none of which is likely to pad.
    ids = torch.arange(4, dtype=torch.int64, device=device)[None] + min(10, head.out_features // 2)
    inputs = {"input_ids": ids % head.out_features, "attention_mask": torch.ones_like(ids)}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        logits = model(**inputs, use_cache=False, return_dict=True).logits
        if "hidden" not in seen:  # OPT calls what is inside its base model
            base(**inputs, use_cache=False, return_dict=True)
    except Exception as error:
        raise _cannot(model, f"a forward pass of four tokens fails: {error!r}") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    hidden, given = seen.get("hidden"), seen.get("input")
    if hidden is None or given is None:
        raise _cannot(model, "its head is not called, or its base model has no last_hidden_state")
    hidden = hidden.to(given.dtype)
    if given.shape != hidden.shape or not torch.allclose(given, hidden, rtol=1e-3):
        raise _cannot(model, "its head gets something else than its base model's last_hidden_state")
    want = logits.float()
    if want.shape == seen["logits"].shape:
        tolerance = 16 * torch.finfo(seen["logits"].dtype).eps
        for rule in _candidates(model.config):
            if torch.allclose(rule(seen["logits"].float()), want, rtol=tolerance, atol=tolerance):
                return rule
    raise _cannot(
        model,
        "it changes its logits behind the head otherwise than by a factor and a softcap, which its "
        f"configuration would give as one of {_FACTORS + _CAPS}",
    )


def _candidates(config: Any) -> Iterator[_Rule]:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    caps: list[float | None] = [None]
    caps += [float(cap) for name in _CAPS if (cap := getattr(text, name, None))]
    factors = [1.0]
    for name in _FACTORS:
        value = getattr(text, name, None)
        if value is not None and value > 0:
            factors += [float(value), 1 / float(value)]
    return (_Rule(cap, factor) for cap in caps for factor in factors)


def _cannot(model: Any, why: str) -> ValueError:
    return ValueError(f"{_OP}: {type(model).__name__} cannot be wrapped: {why}")


def _logprobs(
    model: Any, inputs: dict[str, Any], targets: torch.Tensor, options: dict[str, Any]
) -> ModelLogprobs:
    name = type(model).__name__
    for key in [k for k in inputs if k not in model._siri_parameters]:
        if difflib.get_close_matches(key, ("targets", "softcap", *_OPTIONS), 1, 0.8):
            raise TypeError(f"{name}: {key!r} is not an option; takes {_OPTIONS}")
    for key in _OF_LOGITS:
        value = inputs.pop(key, None)
        if value is not None and not (isinstance(value, int) and value == 0):
            raise TypeError(f"{name}: {key} is not taken together with targets")
    head = model.get_output_embeddings()
    if not isinstance(head, LogprobHead):
        raise RuntimeError(
            f"{name}: its head is {type(head).__name__} now (resized, or given an adapter?); "
            "wrap it again"
        )
    inputs.setdefault("use_cache", False)
    base = model.base_model(**{**inputs, "return_dict": True})
    hidden, rule = base.last_hidden_state, model._siri_rule
    if not torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(head.weight.dtype)
    temperature = options.pop("temperature", 1.0)
    cap = None if rule.softcap is None else rule.softcap / rule.scale
    out = head(hidden, targets, softcap=cap, temperature=temperature / rule.scale, **options)
    return ModelLogprobs(out.logprobs, out.entropy, base)


@functools.cache
def _subclass(base: type) -> type:
    """``base`` whose forward takes ``targets``; name and module stay, which checkpoints record."""
    own: Any = base.forward  # type: ignore[attr-defined]
    signature = inspect.signature(own)
    names = [p.name for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD][1:]

    @functools.wraps(own)
    def forward(
        self: Any, *args: Any, targets: torch.Tensor | None = None, **inputs: Any
    ) -> ModelLogprobs | Any:
        options = {key: inputs.pop(key) for key in _OPTIONS if key in inputs}
        if targets is not None:
            named = dict(zip(names, args, strict=False))
            return _logprobs(self, {**named, **inputs}, targets, options)
        if options:
            raise TypeError(
                f"{type(self).__name__}: targets are missing; without them no options are taken, "
                f"got {sorted(options)}"
            )
        return own(self, *args, **inputs)

    # Trainers read from the signature which columns of a dataset a model takes.
    extra = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None)
        for key in ("targets", *_OPTIONS)
    ]
    kept = list(signature.parameters.values())
    at = len(kept) - (bool(kept) and kept[-1].kind is inspect.Parameter.VAR_KEYWORD)
    forward.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*kept[:at], *extra, *kept[at:]]
    )

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _empty, (base,), self.__dict__

    return type(
        base.__name__,
        (base,),
        {
            "forward": forward,
            "__reduce_ex__": reduce,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "_siri_base": base,
            "_siri_parameters": frozenset(names),
        },
    )


def _empty(base: type) -> Any:
    """For copies and pickles: an instance without its state."""
    cls: Any = _subclass(base)
    return cls.__new__(cls)
