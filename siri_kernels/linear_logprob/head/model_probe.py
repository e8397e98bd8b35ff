"""The cap and the factor that a transformers model applies to its logits, found by running it.

Nothing of transformers is imported. A hook replaces the output of the head by known logits, and the
output of the model then shows the rule, whatever the precision of its weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

# Names of the cap and the factor in configurations and models; a factor divides in
# some models (Granite) and multiplies in others (Cohere), so both are tried.
CAPS = ("final_logit_softcapping", "logits_soft_cap")
FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


class Rule(NamedTuple):
    """Logits are ``softcap(scale * head(hidden))``."""

    softcap: float | None
    scale: float

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The rule on ``logits`` of any shape."""
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


def base_of(model: Any) -> Any:
    """The model without its head, or ``model`` itself where there is none.

    ``base_model`` first; Llama 4's and Mllama's text models name another module there than they
    have, so their decoder is asked for next, but not where the model takes images that the decoder
    does not see.
    """
    if model.base_model is not model:
        return model.base_model
    decoder = getattr(model, "get_decoder", lambda: None)()
    for module in (decoder, getattr(model, "model", None)):
        if isinstance(module, nn.Module) and module is not model:
            images = "pixel_values" in inspect.signature(type(model).forward).parameters
            if images and "pixel_values" not in inspect.signature(module.forward).parameters:
                continue
            return module
    return model


def settings(model: Any) -> tuple[tuple[str, float | None], ...]:
    """Every cap and factor that the configuration, the model and its base model hold now.

    They are read at each call, so that a change after ``wrap`` is seen. Some models read their
    configuration at each forward (Gemma), others copy it when they are built (Cohere, Falcon-H1).
    """
    config = model.config
    base = base_of(model)
    base = getattr(base, "_fsdp_wrapped_module", base)
    # Modules keep numbers in their __dict__; getattr would ask every submodule. Plain loops, which
    # torch.compile of torch 2.11 can trace.
    places: list[tuple[str, Any]] = [("config", config)]
    text = getattr(config, "text_config", None)
    if text is not None:
        places.append(("config.text_config", text))
    places += [("model", model), ("base_model", base)]
    found: list[tuple[str, float | None]] = []
    for place, holder in places:
        for name in CAPS + FACTORS:
            if name in holder.__dict__:
                value = holder.__dict__[name]
                if value is None or isinstance(value, (int, float)):
                    found.append((f"{place}.{name}", value))
    return tuple(found)


def changed(before: tuple[tuple[str, float | None], ...], model: Any) -> str | None:
    """In words, which of :func:`settings` differ from ``before``; None: none."""
    now = settings(model)
    if now == before:
        return None
    then, latest = dict(before), dict(now)
    return ", ".join(
        f"{name} {then.get(name)} -> {latest.get(name)}"
        for name in {**then, **latest}
        if then.get(name) != latest.get(name)
    )


@torch.no_grad()
def probe(model: Any, head: nn.Linear, base: nn.Module) -> Rule:
    """Runs four tokens: the head must get the base model's output, its logits follow a rule.

    Args:
        model: a causal LM of transformers.
        head: its output embeddings.
        base: the model without its head.

    Raises:
        ValueError: they do not, or the model cannot be run so. The text has no subject.
    """
    seen: dict[str, Any] = {}

    def after_base(module: nn.Module, args: Any, output: Any) -> None:
        seen["hidden"] = getattr(output, "last_hidden_state", None)

    def after_head(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen["input"] = args[0]
        seen["logits"] = _spread(output.shape, output.device, output.dtype)
        return seen["logits"].clone()

    hooks = (base.register_forward_hook(after_base), head.register_forward_hook(after_head))
    inputs = _tokens(head.out_features, head.weight.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        logits = model(**inputs, use_cache=False, return_dict=True).logits
        if "hidden" not in seen:  # OPT calls what is inside its base model
            base(**inputs, use_cache=False, return_dict=True)
    except Exception as error:
        raise ValueError(f"a forward pass of four tokens fails: {error!r}") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    hidden, given = seen.get("hidden"), seen.get("input")
    if hidden is None or given is None:
        raise ValueError("its head is not called, or its base model has no last_hidden_state")
    if not bool(hidden.isfinite().all()):
        raise ValueError(
            f"hidden states of four tokens are not finite in {hidden.dtype}; check its weights, or "
            "load it in a wider dtype (bfloat16, float32)"
        )
    hidden = hidden.to(given.dtype)
    if given.shape != hidden.shape or not torch.allclose(given, hidden, rtol=1e-3):
        raise ValueError("its head gets something else than its base model's last_hidden_state")
    return _fit(model, seen["logits"], logits)


@torch.compiler.disable
@torch.no_grad()
def probe_again(model: Any, head: Any, base: Any, linear: nn.Linear) -> Rule:
    """The rule after a change of :func:`settings`, without running the base model or the head.

    Both are stubs for one call of the model's own forward, so that it works inside a forward
    pass, sharded (FSDP) or with adapters.

    Args:
        model: a wrapped model.
        head: its output embeddings.
        base: its base model.
        linear: the layer within ``head``, whose widths, dtype and device are read.

    Raises:
        ValueError: as :func:`probe`.
    """
    weight = linear.weight
    spread = _spread((1, 4, linear.out_features), weight.device, weight.dtype)
    hidden = torch.zeros(1, 4, linear.in_features, device=weight.device, dtype=weight.dtype)
    stubs = ((base, _Output(hidden)), (head, spread))
    kept = [vars(module).get("forward") for module, _ in stubs]
    try:
        for module, answer in stubs:
            module.forward = lambda *args, _answer=answer, **kwargs: (
                _answer.clone() if isinstance(_answer, torch.Tensor) else _answer
            )
        inputs = _tokens(linear.out_features, weight.device)
        logits = model._siri_base.forward(model, **inputs, use_cache=False, return_dict=True).logits
    except Exception as error:
        raise ValueError(f"what its forward does behind its head fails: {error!r}") from error
    finally:
        for (module, _), forward in zip(stubs, kept, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward
    return _fit(model, spread, logits)


def _fit(model: Any, given: torch.Tensor, got: torch.Tensor) -> Rule:
    """The rule that makes ``got`` [1, 4, V] of ``given``: of the candidates the nearest."""
    if got.shape == given.shape:
        # A model that rounds its logits to 16 bits behind the head rounds at each of three steps.
        # There 1.001 cannot be told from 1, and need not: its own logits do not either.
        eps = torch.finfo(got.dtype).eps
        tolerance = 16 * eps if got.dtype in (torch.float32, torch.float64) else 4 * eps
        exact, want = given.double(), got.double()

        def distance(rule: Rule) -> float:
            return float(((rule(exact) - want) / want.abs().clamp(min=1e-30)).abs().max())

        best = min(_candidates(model), key=distance)
        if distance(best) <= tolerance:
            return best
    raise ValueError(
        "it changes its logits behind the head otherwise than by a factor and a softcap, which its "
        f"configuration would give as one of {FACTORS + CAPS}"
    )


def _candidates(model: Any) -> Iterator[Rule]:
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = [(name.rsplit(".", 1)[1], value) for name, value in settings(model)]
    found += [(name, getattr(text, name, None)) for name in CAPS + FACTORS]
    caps: list[float | None] = [None]
    factors = [1.0]
    for name, value in found:
        if isinstance(value, int | float) and value > 0:
            if name in CAPS:
                caps.append(float(value))
            else:
                factors += [float(value), 1 / float(value)]
    return (Rule(cap, factor) for cap in dict.fromkeys(caps) for factor in dict.fromkeys(factors))


def _spread(shape: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Logits of both signs, 0.01 to 10000 in size: small ones show a factor, large ones a cap.

    In float32 also for a head of 16 bits, whose rounding would hide a factor of 1.01 and a cap far
    above the logits: what follows the head is elementwise and takes them.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    count = shape[-1]
    size = torch.logspace(-2, 4, count, dtype=dtype, device=device)
    sign = 1.0 - 2.0 * (torch.arange(count, dtype=dtype, device=device) % 2)
    return (size * sign).to(dtype).expand(shape).contiguous()


def _tokens(vocabulary: int, device: torch.device) -> dict[str, torch.Tensor]:
    """One row of four different tokens, none of which is likely to pad."""
    ids = torch.arange(4, dtype=torch.int64, device=device)[None] + min(10, vocabulary // 2)
    return {"input_ids": ids % vocabulary, "attention_mask": torch.ones_like(ids)}


class _Output:
    """A base model's output: hidden states, and None for everything else it may be asked for."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def __getitem__(self, key: Any) -> Any:
        return (self.last_hidden_state,)[key] if isinstance(key, int) and key < 1 else ()
