"""verl (0.9.1): ``linear_logprob`` under verl's fused LM head, by importing this module.

    actor_rollout_ref.model.use_fused_kernels=True
    actor_rollout_ref.model.fused_kernel_options.impl_backend=triton        # or torch
    actor_rollout_ref.model.external_lib=siri_kernels.integrations.verl_head

verl imports ``external_lib`` wherever it reads a model's configuration, before it builds the model;
an exception here stops the run. ``SIRI_KERNELS_VERL_TAIL`` sets ``tail`` (default 0.01; 0: exact),
``SIRI_KERNELS_VERL_SCREEN`` sets ``screen`` (int8, fp8 or auto; default, or empty: none).
"""

from __future__ import annotations

import inspect
import logging
import os
from dataclasses import dataclass, field
from typing import Any

import torch

from siri_kernels.linear_logprob import linear_logprob
from siri_kernels.linear_logprob.screen.options import KINDS, asked_for

TAIL = "SIRI_KERNELS_VERL_TAIL"
SCREEN = "SIRI_KERNELS_VERL_SCREEN"

_log = logging.getLogger(__name__)
_log.setLevel(logging.INFO)  # verl's root logger is at WARNING

_TRITON = ("hidden", "weight", "labels", "temperature", "reduction", "dist_process_group")
_TORCH = ("self", "hidden_states", "vocab_weights", "input_ids", "temperature")


@dataclass
class FusedHead:
    """Replaces verl's two kernels, and counts its calls, which shows that it is in use.

    Attributes:
        tail: largest relative L1 error of the logit gradient, see ``linear_logprob``.
        backend: of ``linear_logprob``.
        calls: forward passes of the head in this process so far, by ``impl_backend``.
        rows: tokens scored in them.
        screen: of ``linear_logprob``.
    """

    tail: float = 1e-2
    backend: str | None = None
    calls: dict[str, int] = field(default_factory=lambda: {"triton": 0, "torch": 0})
    rows: int = 0
    screen: str | None = None

    def __call__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        temperature: float,
        name: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropy [...] in float32.

        Args:
            hidden: [..., D].
            weight: [V, D].
            labels: [...] integers.
            temperature: divides the logits.
            name: the ``impl_backend`` that is replaced.
        """
        if not any(self.calls.values()):
            _log.info("siri_kernels: verl's fused head (impl_backend=%s) is linear_logprob", name)
        self.calls[name] += 1
        self.rows += labels.numel()
        out = linear_logprob(
            hidden,
            weight,
            labels.long().view(hidden.shape[:-1]),
            temperature=temperature,
            tail=self.tail,
            backend=self.backend,
            screen=self.screen,
        )
        return out.logprobs, out.entropy


def install(
    *, tail: float | None = None, backend: str | None = None, screen: str | None = None
) -> FusedHead:
    """Replace verl's ``linear_cross_entropy`` and ``FusedLinearForPPO.forward``.

    verl's model forwards look both up at each call. ``impl_backend=liger`` and a vocabulary sharded
    over tensor-parallel ranks (Megatron) run on verl's own code. Results have verl's shapes:
    "torch" that of the labels; "triton" [N] for packed labels [1, N], else that of the labels. A
    second call changes the settings.

    Args:
        tail: of ``linear_logprob``; None: ``SIRI_KERNELS_VERL_TAIL``, or 0.01.
        backend: of ``linear_logprob``.
        screen: of ``linear_logprob``; None: ``SIRI_KERNELS_VERL_SCREEN``, or none.

    Returns:
        FusedHead: it counts the scored tokens.

    Raises:
        RuntimeError: verl's functions are not those of 0.9.1: their parameters, their values on a
            small problem, or the model forwards that call them.
        ValueError: the environment's ``tail`` is not a number >= 0; an unknown ``screen``, given
            here or by the environment.
    """
    import verl.utils.experimental.torch_functional as torch_seam
    import verl.utils.kernel.linear_cross_entropy as triton_seam

    global _installed
    asked_for("verl_head.install", screen, 1e-4, True)
    head = FusedHead(
        _tail() if tail is None else tail, backend, screen=_screen() if screen is None else screen
    )
    if _installed is not None:
        _installed.tail, _installed.backend = head.tail, head.backend
        _installed.screen = head.screen
        return _installed
    verl_triton = triton_seam.linear_cross_entropy
    verl_forward = torch_seam.FusedLinearForPPO.forward
    _check_contract(triton_seam, torch_seam)

    def linear_cross_entropy(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        temperature: float = 1.0,
        reduction: str = "none",
        dist_process_group: Any = None,
    ) -> Any:
        if dist_process_group is not None or reduction.lower() != "none":
            return verl_triton(hidden, weight, labels, temperature, reduction, dist_process_group)
        out = head(hidden, weight, labels, temperature, "triton")
        # verl's own is flat, [N] also for packed labels [1, N]. Several rows keep their shape:
        # verl's engine reads columns of padded batches, where a flat result would fail.
        return out if len(labels) > 1 and labels.dim() > 1 else tuple(x.reshape(-1) for x in out)

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        vocab_weights: torch.Tensor,
        input_ids: torch.Tensor,
        temperature: float = 1.0,
    ) -> Any:
        if self.impl_backend != "torch":
            return verl_forward(self, hidden_states, vocab_weights, input_ids, temperature)
        return head(hidden_states, vocab_weights, input_ids, temperature, "torch")

    triton_seam.linear_cross_entropy = linear_cross_entropy
    torch_seam.FusedLinearForPPO.forward = forward
    _installed = head
    return head


_installed: FusedHead | None = None


def _tail() -> float:
    text = os.environ.get(TAIL, "0.01")
    try:
        tail = float(text)
    except ValueError:
        tail = -1.0
    if not 0 <= tail < float("inf"):
        raise ValueError(f"{TAIL}: got {text!r}; takes a number >= 0 (0: exact gradients)")
    return tail


def _screen() -> str | None:
    text = os.environ.get(SCREEN, "")
    if text and text not in KINDS:
        raise ValueError(f"{SCREEN}: got {text!r}; takes {', '.join(KINDS)}, or nothing (exact)")
    return text or None


def _check_contract(triton_seam: Any, torch_seam: Any) -> None:
    import verl.models.transformers.dense_common as models

    found = tuple(inspect.signature(triton_seam.LinearCrossEntropy.forward).parameters)
    if found != ("ctx", *_TRITON):
        raise _changed(f"LinearCrossEntropy.forward takes {found}, known is {('ctx', *_TRITON)}")
    found = tuple(inspect.signature(torch_seam.FusedLinearForPPO.forward).parameters)
    if found != _TORCH:
        raise _changed(f"FusedLinearForPPO.forward takes {found}, known is {_TORCH}")
    for name, seam in (("triton", "linear_cross_entropy"), ("torch", "FusedLinearForPPO")):
        forward = getattr(models, f"forward_with_{name}_backend", None)
        code = getattr(forward, "__code__", None)
        # Imported inside the function, so that a replaced attribute is seen at each call.
        if code is None or seam not in code.co_names or "shift_labels" not in code.co_varnames:
            raise _changed(f"dense_common.forward_with_{name}_backend does not look up {seam}")
    _check_values(torch_seam)


@torch.no_grad()
def _check_values(torch_seam: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        for shape in ((1, 5, 8), (11, 8))
    )
    labels = torch.randint(0, 11, (1, 5), generator=generator, dtype=torch.int64, device="cpu")
    theirs = torch_seam.FusedLinearForPPO(impl_backend="torch").forward(hidden, weight, labels, 0.7)
    ours = linear_logprob(hidden, weight, labels, temperature=0.7, tail=0.0)
    for name, got, want in zip(("log_probs", "entropy"), ours, theirs, strict=True):
        if want.shape != got.shape or not torch.allclose(got, want.float(), atol=1e-4):
            raise _changed(f"{name} of a small problem is {want}, ours {got}")


def _changed(what: str) -> RuntimeError:
    import verl

    return RuntimeError(
        f"verl_head: verl {verl.__version__} has another kernel contract than 0.9.1: {what}. "
        "Train without external_lib, or with verl 0.9.1"
    )


install()
