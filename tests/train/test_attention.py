"""Packed attention: every sequence of a row comes out as if it were alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from siri_train import attention
from siri_train.attention import Layout, packed_forward
from siri_train.model import prepare

CPU = torch.device("cpu")
SIZE: dict[str, Any] = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
)  # fmt: skip
CONFIGS = {
    "qwen2": Qwen2Config(**SIZE),
    "qwen2, one head each": Qwen2Config(**(SIZE | {"num_key_value_heads": 4})),
    "qwen3": Qwen3Config(**SIZE),
    "llama": LlamaConfig(**SIZE),
    "mistral, window 24": MistralConfig(**SIZE, sliding_window=24),
    "gemma3, windows 12 and none": Gemma3TextConfig(
        **SIZE, sliding_window=12, layer_types=["sliding_attention", "full_attention"]
    ),
}


def make(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_one_by_one(name: str, checkpointing: bool) -> None:
    model = make(name)
    lengths = [1, 5, 33, 80, 78, 170, 7, 1]
    random.Random(1).shuffle(lengths)
    sequences = [torch.randint(0, 97, (n,)) for n in lengths]
    up = torch.randn(sum(lengths), 97)
    alone = torch.cat([model(input_ids=s[None]).logits[0] for s in sequences])
    (alone * up).sum().backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    prepare(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    with packed_forward(Layout.of(lengths, CPU)) as packed:
        logits = model(input_ids=torch.cat(sequences)[None], **packed).logits[0]
    (logits * up).sum().backward()  # outside: checkpointing calls the layers again here
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=2e-5)
    for parameter, value in model.named_parameters():
        torch.testing.assert_close(
            value.grad, want[parameter], rtol=1e-3, atol=1e-5 * float(want[parameter].norm() + 1)
        )


def test_outside_packed_forward_the_model_is_as_before() -> None:
    model, reference = make("qwen2").eval(), make("qwen2").eval()
    prepare(model)
    ids, mask = torch.randint(0, 97, (3, 20)), torch.ones(3, 20, dtype=torch.long)
    mask[0, :7] = mask[2, :1] = 0
    kwargs = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(
        model.generate(input_ids=ids, attention_mask=mask, **kwargs),
        reference.generate(input_ids=ids, attention_mask=mask, **kwargs),
    )
    # Positions that only look packed still get a mask.
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None]
    torch.testing.assert_close(
        model(input_ids=ids[:1], position_ids=positions).logits,
        reference(input_ids=ids[:1], position_ids=positions).logits,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("seed", range(20))
def test_layout_points_at_every_token_once(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.choice([1, 2, 3, 20, 21, 100, 300]) for _ in range(rng.randrange(1, 30))]
    layout = Layout.of(lengths, CPU)
    assert layout.longest == max(lengths)
    assert layout.position_ids.tolist()[0] == [i for n in lengths for i in range(n)]
    flat = torch.cat(
        [
            b.flatten() if k is None else b.flatten()[k]
            for b, k in zip(layout.buckets, layout.kept, strict=True)
        ]
    )
    restored = flat if layout.inverse is None else flat[layout.inverse]
    assert restored.tolist() == list(range(sum(lengths)))
    padded = sum(b.numel() for b in layout.buckets)
    assert padded <= sum(lengths) / 0.75 + 16 / 0.75 * len(lengths)
    with pytest.raises(ValueError, match="positive"):
        Layout.of([3, 0], CPU)


def naive(q: Any, k: Any, v: Any, cu: Any, window: tuple[int, int], scale: float) -> torch.Tensor:
    """flash-attention's varlen contract, one sequence at a time; [T, H, d]."""
    out = []
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        steps = torch.arange(b - a)
        distance = steps[:, None] - steps[None]
        mask = (distance >= 0) & ((distance <= window[0]) | (window[0] < 0))
        out.append(
            F.scaled_dot_product_attention(
                *(x[a:b].transpose(0, 1) for x in (q, k, v)), attn_mask=mask, scale=scale
            ).transpose(0, 1)
        )
    return torch.cat(out)


@pytest.mark.parametrize("backend", ["varlen", "varlen of torch 2.11", "flash"])
@pytest.mark.parametrize("window", [None, 10])
def test_gpu_kernels_are_called_by_their_contract(
    backend: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
        scale=None, window_size=(-1, -1), enable_gqa=False,
    ):  # fmt: skip
        assert enable_gqa and window_size[1] == 0 and max_q == max_k == 40
        assert torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q.dtype == torch.int32
        return naive(query, key, value, cu_seq_q, window_size, scale)

    def old(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, *, scale=None
    ):  # fmt: skip
        assert is_causal and query.shape == key.shape
        return naive(query, key, value, cu_seq_q, (-1, 0), scale)

    def flash(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    ):  # fmt: skip
        assert causal and softcap == 0 and max_seqlen_q == 40
        return naive(q, k, v, cu_seqlens_q, window_size, softmax_scale)

    name = backend.split()[0]
    monkeypatch.setattr(attention, "attention_backend", lambda *_: name)
    monkeypatch.setattr(attention, "_varlen", lambda: old if "2.11" in backend else new)
    monkeypatch.setattr(attention, "_flash", lambda: flash if name == "flash" else None)
    layout = Layout.of([40, 3, 17], CPU)
    q, k, v = torch.randn(1, 4, 60, 8), torch.randn(1, 2, 60, 8), torch.randn(1, 2, 60, 8)
    options: Any = dict(scaling=0.3, sliding_window=window, siri_layout=layout)
    module = torch.nn.Identity()
    if "2.11" in backend and window:
        with pytest.raises(NotImplementedError, match="sliding windows"):
            attention.packed_attention(module, q, k, v, None, **options)
        return
    got, _ = attention.packed_attention(module, q, k, v, None, **options)
    monkeypatch.setattr(attention, "attention_backend", lambda *_: "sdpa")
    want, _ = attention.packed_attention(module, q, k, v, None, **options)
    assert got.shape == want.shape == (1, 60, 4, 8)
    torch.testing.assert_close(got, want)


def test_attention_that_would_be_wrong_is_refused() -> None:
    q = torch.randn(1, 2, 4, 8)
    layout = Layout.of([4], CPU)
    module = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match="soft-capped"):
        attention.packed_attention(module, q, q, q, None, siri_layout=layout, softcap=30.0)
    with pytest.raises(NotImplementedError, match="sinks"):
        attention.packed_attention(module, q, q, q, None, siri_layout=layout, s_aux=q[0, :, 0, 0])
    assert attention.attention_backend(CPU, torch.bfloat16, 64) == "sdpa"


@pytest.mark.parametrize(
    "name", ["qwen2", "qwen2, one head each", "mistral, window 24", "gemma3, windows 12 and none"]
)
def test_one_new_token_with_a_cache_equals_transformers_own(name: str) -> None:
    """Query heads share a key head's rows; sequences of different lengths, padded at the left."""
    model = make(name).eval()
    ids, mask = torch.randint(0, 97, (3, 40)), torch.ones(3, 40, dtype=torch.long)
    mask[0, :25], mask[1, :7] = 0, 0
    new = torch.randint(0, 97, (3, 1))
    longer = torch.cat([mask, torch.ones_like(new)], 1)
    position = (mask.cumsum(1) - 1).clamp(min=0)

    @torch.no_grad()
    def last_logits() -> torch.Tensor:
        cache = DynamicCache()
        model(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache)
        return model(
            input_ids=new, attention_mask=longer, position_ids=position[:, -1:] + 1,
            past_key_values=cache,
        ).logits[:, -1]  # fmt: skip

    want = last_logits()
    prepare(model)
    torch.testing.assert_close(last_logits(), want, atol=1e-5, rtol=1e-5)
