"""``LogprobHead.wrap``: a transformers causal LM that gives log-probs of targets, not logits.

Nothing of transformers is imported. The rule of its logits is found by running the model
(:mod:`siri_kernels.linear_logprob.head.model_probe`). The wrappers and adapters that may be put
around its head afterwards are in :mod:`siri_kernels.linear_logprob.head.forms`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from siri_kernels import _checks as check
from siri_kernels.linear_logprob.head.forms import (
    HeadError,
    forget_adapter_names,
    innermost,
    is_wrapped,
    score,
)
from siri_kernels.linear_logprob.head.model_probe import (
    base_of,
    changed,
    probe,
    probe_again,
    settings,
)
from siri_kernels.linear_logprob.head.scoring import ScoringHead
from siri_kernels.linear_logprob.head.uncast import pack, unpack
from siri_kernels.linear_logprob.screen.options import asked_for

_OP = "LogprobHead.wrap"
_OPTIONS = ("temperature", "tail", "ignore_index", "backend", "screen", "logprob_tol")
_OF_LOGITS = (
    "labels",
    "shift_labels",
    "logits_to_keep",
    "num_items_in_batch",
    "num_logits_to_keep",
)
_SIXTEEN_BITS = (torch.bfloat16, torch.float16)


class ModelLogprobs(NamedTuple):
    """The output of a wrapped model for ``targets``.

    Attributes:
        logprobs: [B, L] of the targets; 0 where they are masked.
        entropy: [B, L] of the distributions, in nats.
        base: the output of the model without its head: ``last_hidden_state`` [B, L, D], and what
            else was asked for (``router_logits``, ``hidden_states``, ...).
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor
    base: Any


def wrap(
    model: Any,
    head_class: Callable[[Any], ScoringHead],
    screen: str | None = None,
    logprob_tol: float = 1e-4,
) -> Any:
    """See ``LogprobHead.wrap``.

    Args:
        model: a causal LM of transformers.
        head_class: makes the new head of the model's.
        screen: of calls that do not name one.
        logprob_tol: the same.

    Raises:
        TypeError: not a causal LM of transformers, or a tolerance that is no number.
        ValueError: a model that cannot be wrapped, or an unknown screen.
    """
    tolerance = check.number(_OP, "logprob_tol", logprob_tol, above=0)
    asked_for(_OP, screen, tolerance, True)
    kind: Any = type(model)
    if not issubclass(kind, nn.Module) or not hasattr(kind, "get_output_embeddings"):
        raise TypeError(
            f"{_OP}: model must be a causal LM of transformers; got {kind.__name__}. Wrap "
            "the model itself, before get_peft_model, DistributedDataParallel or torch.compile"
        )
    name, head, base = kind.__name__, model.get_output_embeddings(), base_of(model)
    if hasattr(kind, "_siri_base") and is_wrapped(head):
        _follow_settings(model)
        model._siri_screen = (screen, tolerance)
        return model
    problem = _problem(model, head, base)
    if problem:
        raise ValueError(f"{_OP}: {name} cannot be wrapped: {problem}")
    known = settings(model)
    try:
        rule = probe(model, head, base)
    except ValueError as error:
        raise _cannot(model, error) from error
    ours = head_class(head)
    ours.cast_hidden = True
    model.set_output_embeddings(ours)
    if not isinstance(model.get_output_embeddings(), ScoringHead):
        raise ValueError(f"{_OP}: {name} cannot be wrapped: set_output_embeddings has no effect")
    model._siri_rule, model._siri_settings = rule, known
    model._siri_screen = (screen, tolerance)
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
    sharded = "its weights are sharded already; wrap it before fully_shard, FSDP or DeepSpeed"
    if "_fsdp_wrapped_module" in getattr(head, "_modules", {}):
        return sharded
    if not isinstance(head, nn.Linear) or type(head).forward not in (
        nn.Linear.forward,
        ScoringHead.forward,
    ):
        return (
            f"its head is {type(head).__name__}, not an nn.Linear; wrap the model before an "
            "adapter is put on its head, or merge that first; quantisation goes on other layers"
        )
    # FSDP2's DTensor, FSDP1's views or marked parameters, ZeRO-3's empty ones.
    weight = head.weight
    if hasattr(weight, "full_tensor") or hasattr(weight, "_fsdp_flattened") or not weight.numel():
        return sharded
    if not isinstance(weight, nn.Parameter):
        return sharded
    if head.weight.is_meta:
        return "its weights are on the meta device; load them first, it is run on four tokens"
    if not head.weight.is_floating_point():
        return f"the weight of its head is {head.weight.dtype}; quantised heads are not taken"
    if head._forward_hooks or head._forward_pre_hooks or hasattr(head, "_hf_hook"):
        return (
            "its head has hooks (device_map, profilers), which would be lost; add them afterwards"
        )
    return None


def _cannot(model: Any, why: object) -> ValueError:
    return ValueError(f"{_OP}: {type(model).__name__} cannot be wrapped: {why}")


def _follow_settings(model: Any) -> None:
    """Finds the rule of the logits again if a cap or factor was changed since.

    Raises:
        ValueError: no rule describes the model any more; the message names the change.
    """
    what = changed(model._siri_settings, model)
    if what is None:
        return
    head = model.get_output_embeddings()
    linear: Any = innermost(head)
    try:
        model._siri_rule = probe_again(model, head, base_of(model), linear)
    except ValueError as error:
        raise _cannot(model, f"after the change of {what}, {error}") from error
    model._siri_settings = settings(model)


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
    if not is_wrapped(head):
        raise RuntimeError(
            f"{name}: its head is {type(head).__name__} now (resized?); wrap it again: "
            "LogprobHead.wrap(model), the model itself where PEFT or FSDP is around it"
        )
    _follow_settings(model)
    inputs.setdefault("use_cache", False)
    base = base_of(model)(**{**inputs, "return_dict": True})
    hidden, rule = base.last_hidden_state, model._siri_rule
    _check_length(name, hidden, targets, inputs)
    temperature = _temperature(name, options.pop("temperature", 1.0), hidden.device)
    cap = None if rule.softcap is None else rule.softcap / rule.scale
    screen, tolerance = model._siri_screen
    options = {"screen": screen, "logprob_tol": tolerance, **options, "softcap": cap}
    # As an Uncast: wrappers around the head (FSDP1) cast tensors before LogprobHead sees them.
    options["temperature"] = pack(temperature / rule.scale)
    try:
        out = score(head, hidden, targets, options)
    except HeadError as error:
        forget_adapter_names(model)
        raise HeadError(f"{name}: {error}") from None
    return ModelLogprobs(out.logprobs, out.entropy, base)


def _temperature(name: str, given: Any, device: torch.device) -> Any:
    """The number or tensor, checked not to be one that mixed precision has rounded."""
    given = unpack(given, device)
    if not isinstance(given, torch.Tensor):
        compiling = torch.compiler.is_compiling()  # where a number may be a symbol
        return given if compiling else check.number(name, "temperature", given, above=0)
    if given.dtype in _SIXTEEN_BITS:
        raise TypeError(
            f"{name}: temperature must be a number or a float32 or float64 tensor; got "
            f"{given.dtype}, in which 0.6 is 0.6016. If the mixed precision of a wrapper around "
            "the model cast it, pass a number, or set cast_forward_inputs=False there (FSDP1: "
            "cast_root_forward_inputs=False)"
        )
    return given


def _check_length(
    name: str, hidden: torch.Tensor, targets: torch.Tensor, inputs: dict[str, Any]
) -> None:
    """Targets of the tokens alone do not fit hidden states that begin with virtual ones."""
    if inputs.get("input_ids") is not None or targets.dim() != 2:
        return
    more = hidden.shape[1] - targets.shape[1]
    if more > 0 and len(hidden) == len(targets):
        raise ValueError(
            f"{name}: targets must have shape {list(hidden.shape[:2])}, one for each position; got "
            f"{list(targets.shape)}. If virtual tokens of prompt tuning stand first: targets = "
            f"torch.nn.functional.pad(targets, ({more}, 0), value=-100), and a temperature of each "
            f"token with value=1.0; results then begin at [:, {more}:]"
        )


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

    def call(self: Any, *args: Any, **inputs: Any) -> Any:
        # Before hooks: those of FSDP2 cast floating-point tensors to 16 bits.
        if "temperature" in inputs:
            inputs["temperature"] = pack(inputs["temperature"])
        return base.__call__(self, *args, **inputs)

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _empty, (base,), self.__dict__

    return type(
        base.__name__,
        (base,),
        {
            "forward": forward,
            "__call__": call,
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
