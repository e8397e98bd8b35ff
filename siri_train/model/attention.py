"""Attention over packed rows: several sequences in one row, each attends to itself only.

Registered in transformers' ``AttentionInterface`` as ``siri_packed``. A forward pass made inside
:func:`packed_forward` attends within each sequence of its row; any other call of the same model
(sampling with a cache, padded evaluation) is transformers' own SDPA.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from siri_kernels import LogprobHead
from siri_train.model.flex import block_mask, packed_flex

NAME = "siri_packed"

# Sequences this alike in length share one SDPA call; the rest of a call is padding.
_ALIKE, _SLACK = 0.75, 16

# True while the body of packed_forward runs. A mask of [T, T] must not be built then, and must be
# in every other call, also in one that merely looks packed.
_inside: ContextVar[bool] = ContextVar("siri_packed", default=False)


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a packed row are; built once a row, used by every layer.

    Args:
        lengths: tokens of each of the B sequences, at least one each; T in all.
        cu_seqlens: [B + 1] int32 on the row's device.
        position_ids: [1, T] int64, counting from 0 in every sequence.
        buckets: sequences of like length together: [b, L] int64 positions in the row, padded at
            the right with each sequence's last token.
        firsts: where the first sequence of each bucket starts, known to the host.
        kept: per bucket, which of its b x L entries are tokens, or None if all are.
        inverse: [T] int64, where each token is among the kept entries of all buckets; None where
            these are in the row's order already.
        masks: FlexAttention's masks by window, each built when it is first needed.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    position_ids: Tensor
    buckets: tuple[Tensor, ...]
    firsts: tuple[int, ...]
    kept: tuple[Tensor | None, ...]
    inverse: Tensor | None
    masks: dict[int | None, BlockMask] = field(default_factory=dict, compare=False, repr=False)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    def block_mask(self, window: int | None) -> BlockMask:
        """FlexAttention's mask for this window, built once a row."""
        if window not in self.masks:
            lengths = torch.tensor(self.lengths, device=self.cu_seqlens.device)
            self.masks[window] = block_mask(lengths, window)
        return self.masks[window]

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> Layout:
        """The layout of sequences of these lengths.

        Args:
            lengths: tokens of each sequence, in the row's order.
            device: where the tensors go.

        Raises:
            ValueError: no sequence, or an empty one.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(f"Layout.of: lengths must be positive, got {list(lengths)}")
        sizes = torch.tensor(list(lengths))
        ends = sizes.cumsum(0)
        starts = ends - sizes
        total = int(ends[-1])
        positions = torch.arange(total) - starts.repeat_interleave(sizes)
        groups: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if groups and lengths[index] >= _ALIKE * lengths[groups[-1][0]] - _SLACK:
                groups[-1].append(index)
            else:
                groups.append([index])
        buckets, kept, order = [], [], []
        for group in groups:
            own = sizes[group]
            steps = torch.arange(int(own.max()))
            bucket = starts[group][:, None] + torch.minimum(steps[None], own[:, None] - 1)
            real = (steps[None] < own[:, None]).flatten()
            buckets.append(bucket)
            kept.append(None if bool(real.all()) else real.nonzero()[:, 0])
            order.append(bucket.flatten()[real])
        inverse = torch.cat(order).argsort()
        in_order = bool((inverse == torch.arange(total)).all())
        return Layout(
            lengths=tuple(lengths),
            cu_seqlens=F.pad(ends, (1, 0)).to(torch.int32).to(device),
            position_ids=positions[None].to(device),
            buckets=tuple(b.to(device) for b in buckets),
            firsts=tuple(int(b[0, 0]) for b in buckets),
            kept=tuple(k if k is None else k.to(device) for k in kept),
            inverse=None if in_order else inverse.to(device),
        )


@contextmanager
def packed_forward(layout: Layout) -> Iterator[dict[str, Any]]:
    """Keyword arguments for the model's forward pass on a row of this layout.

    Args:
        layout: of the row.

    Example::

        with packed_forward(layout) as packed:
            hidden = model.base_model(input_ids=row, **packed).last_hidden_state
    """
    token = _inside.set(True)
    try:
        yield {
            "attention_mask": None,
            "position_ids": layout.position_ids,
            "use_cache": False,
            # By argument, not by context: gradient checkpointing calls layers again in backward.
            "siri_layout": layout,
        }
    finally:
        _inside.reset(token)


def attention_backend(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    *,
    window: bool = False,
    softcap: bool = False,
    dropout: bool = False,
) -> str:
    """The implementation that packed attention uses on a device.

    Args:
        device: where attention runs.
        dtype: of query, key and value.
        head_dim: size of a head.
        window: whether a token sees only a window of the tokens before it.
        softcap: whether scores are soft-capped.
        dropout: whether attention weights are dropped out.

    Returns:
        On a GPU, in 16 bits, with heads up to 256: ``"varlen"`` (``torch.nn.attention.varlen``),
        or, with soft-capped or dropped-out scores, ``"flash"`` (the flash-attn package) if it is
        installed. Otherwise on a GPU, for windows and soft-capped scores: ``"flex"``
        (FlexAttention, compiled). Everywhere else ``"sdpa"``: sequences of similar length share one
        call of ``scaled_dot_product_attention``.
    """
    if device.type != "cuda":
        return "sdpa"
    if dtype in (torch.float16, torch.bfloat16) and head_dim <= 256:
        if not (softcap or dropout) and _varlen() is not None:
            return "varlen"
        if _flash() is not None:
            return "flash"
    return "flex" if (window or softcap) and not dropout else "sdpa"


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    siri_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in every layer.

    Args:
        module: the layer's attention module.
        query: [1, H, T, d].
        key: [1, H_kv, T, d]; H is a multiple of H_kv.
        value: [1, H_kv, T, d].
        attention_mask: transformers' mask; None inside of :func:`packed_forward`.
        scaling: of the scores, 1 / sqrt(d) if None.
        dropout: probability that an attention weight is dropped, in training mode.
        sliding_window: tokens that each token sees, itself included.
        siri_layout: the row's layout; without it the call goes to transformers' SDPA.
        **kwargs: further options of the architecture; ``softcap`` is used.

    Returns:
        [1, T, H, d] and None.

    Raises:
        NotImplementedError: attention sinks.
    """
    if siri_layout is None:
        one_token = query.shape[2] == 1 and query.shape[1] != key.shape[1]
        if one_token and attention_mask is not None and not (dropout and module.training):
            return _decode(query, key, value, attention_mask, scaling), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError(f"{type(module).__name__}: attention sinks in packed rows")
    dropout = dropout if module.training else 0.0
    softcap = kwargs.get("softcap")
    backend = attention_backend(
        query.device, query.dtype, query.shape[-1],
        window=bool(sliding_window), softcap=bool(softcap), dropout=bool(dropout),
    )  # fmt: skip
    if backend == "sdpa":
        out = _sdpa(query, key, value, siri_layout, scaling, dropout, sliding_window, softcap)
        return out, None
    if backend == "flex":
        mask = siri_layout.block_mask(sliding_window)
        out = packed_flex(query, key, value, mask, scale=scaling, softcap=softcap)
        return out.transpose(1, 2), None
    window = (sliding_window - 1, 0) if sliding_window else (-1, 0)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    cu, longest = siri_layout.cu_seqlens, siri_layout.longest
    if backend == "flash":
        out = _flash()(
            q, k, v, cu, cu, longest, longest,
            dropout_p=dropout, softmax_scale=scaling, causal=True,
            window_size=window if sliding_window else (-1, -1), softcap=softcap or 0.0,
        )  # fmt: skip
        return out[None], None
    function, options = _varlen(), {}
    if "enable_gqa" in inspect.signature(function).parameters:
        options["enable_gqa"] = True
    else:  # torch 2.11
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out = function(q, k, v, cu, cu, longest, longest, scale=scaling, window_size=window, **options)
    return out[None], None


def _decode(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """Attention of one new token in each sequence, over a cache of L tokens.

    Query heads that share a key head become rows of one product. So keys and values, which are the
    whole cache, are not repeated.

    Args:
        query: [B, H, 1, d].
        key: [B, H_kv, L, d].
        value: [B, H_kv, L, d].
        mask: [B, 1, 1, L].
        scaling: of the scores, 1 / sqrt(d) if None.

    Returns:
        [B, 1, H, d].
    """
    batch, heads, _, size = query.shape
    rows = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, 1, heads, size)


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal SDPA, one bucket of sequences at a time.

    Padding stands behind each sequence, where causal attention does not look; the results at padded
    places are dropped. SDPA cannot soft-cap scores: :func:`_capped` does, and stores all of them.
    """
    pieces = []
    for bucket, first, kept in zip(layout.buckets, layout.firsts, layout.kept, strict=True):
        rows, width = bucket.shape
        if rows == 1:  # one sequence: a view, nothing is copied
            q, k, v = (x.narrow(2, first, width) for x in (query, key, value))
        else:
            q, k, v = (x[0][:, bucket].transpose(0, 1) for x in (query, key, value))
        mask = None
        if softcap or (window is not None and window < width):
            steps = torch.arange(width, device=query.device)
            distance = steps[:, None] - steps[None]
            mask = (distance >= 0) & (distance < (window or width))
        if softcap and mask is not None:
            out = _capped(q, k, v, mask, scale=scaling, dropout=dropout, softcap=softcap)
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling,
                dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1],
            )  # fmt: skip
        flat = out.transpose(1, 2).flatten(0, 1)  # [rows x width, H, d]
        pieces.append(flat if kept is None else flat[kept])
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return (joined if layout.inverse is None else joined[layout.inverse])[None]


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    scale: Any,
    dropout: float,
    softcap: Any,
) -> Tensor:
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return F.dropout(weights, dropout) @ value


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _inside.get() else sdpa_mask(*args, **kwargs)


def _varlen() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _flash() -> Any:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)


def prepare(model: Any) -> None:
    """Put packed attention and a ``LogprobHead`` into a causal language model, in place.

    The head holds the same parameters under the same names, so checkpoints and tied weights stay
    as they are; ``model(...)`` gives logits as before.
    """
    model.set_attn_implementation(NAME)
    head = model.get_output_embeddings()
    if not isinstance(head, LogprobHead):
        model.set_output_embeddings(LogprobHead(head))
