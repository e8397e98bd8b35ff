"""Packed attention: every sequence of a row comes out as if it were alone."""

from __future__ import annotations

import inspect
import random
import warnings
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from siri_train.model import attention
from siri_train.model.attention import Layout, packed_forward, prepare
from siri_train.model.flex import packed_flex

CPU, GPU = torch.device("cpu"), torch.device("cuda")
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
    # Capped at 0.5: random models' scores are small, and a cap of 50 would change nothing.
    "gemma2, capped scores, windows 12 and none": Gemma2Config(
        **SIZE, sliding_window=12, attn_logit_softcapping=0.5, query_pre_attn_scalar=1
    ),
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


def naive(
    q: Any, k: Any, v: Any, cu: Any, window: tuple[int, int], scale: float, softcap: float = 0.0
) -> torch.Tensor:
    """flash-attention's varlen contract, one sequence at a time; [T, H, d]."""
    out = []
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        steps = torch.arange(b - a)
        distance = steps[:, None] - steps[None]
        mask = (distance >= 0) & ((distance <= window[0]) | (window[0] < 0))
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * scale
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, v[a:b]))
    return torch.cat(out)


def inputs(total: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(1, 4, total, 8), torch.randn(1, 2, total, 8), torch.randn(1, 2, total, 8)


@pytest.mark.filterwarnings("ignore:flex_attention called")
@pytest.mark.parametrize("backend", ["varlen", "varlen of torch 2.11", "flash", "sdpa", "flex"])
@pytest.mark.parametrize("window", [None, 10])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_every_backend_gives_the_same_by_its_own_contract(
    backend: str, window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two that need a GPU are stood in for by functions with their signatures."""

    def new(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
        scale=None, window_size=(-1, -1), enable_gqa=False,
    ):  # fmt: skip
        assert enable_gqa and window_size[1] == 0 and max_q == max_k == 40
        assert torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q.dtype == torch.int32
        return naive(query, key, value, cu_seq_q, window_size, scale)

    def old(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)
    ):  # fmt: skip
        # torch compares with the tuple (-1, 0) to see that it is causal.
        assert isinstance(window_size, tuple) and window_size[1] == 0
        assert query.shape == key.shape
        return naive(query, key, value, cu_seq_q, window_size, scale)

    def flash(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    ):  # fmt: skip
        assert causal and max_seqlen_q == 40
        return naive(q, k, v, cu_seqlens_q, window_size, softmax_scale, softcap)

    name = backend.split()[0]
    if name == "varlen" and softcap:
        assert attention.attention_backend(GPU, torch.bfloat16, 64, softcap=True) != "varlen"
        return
    monkeypatch.setattr(attention, "attention_backend", lambda *_, **__: name)
    monkeypatch.setattr(attention, "_varlen", lambda: old if "2.11" in backend else new)
    monkeypatch.setattr(attention, "_flash", lambda: flash if name == "flash" else None)
    monkeypatch.setattr(attention, "packed_flex", partial(packed_flex, compiled=False))
    layout = Layout.of([40, 3, 17, 38], CPU)
    q, k, v = inputs(98)
    options: Any = dict(
        scaling=0.9, sliding_window=window, siri_layout=layout, softcap=softcap
    )  # fmt: skip
    got, _ = attention.packed_attention(torch.nn.Identity(), q, k, v, None, **options)
    want = naive(
        *(x[0].transpose(0, 1) for x in (q, k, v)),
        layout.cu_seqlens, (window - 1 if window else -1, 0), 0.9, softcap or 0.0,
    )  # fmt: skip
    assert got.shape == (1, 98, 4, 8)
    torch.testing.assert_close(got[0], want)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen and flex's backward need a GPU")
@pytest.mark.parametrize(
    ("backend", "window", "softcap"),
    [("varlen", None, None), ("varlen", 40, None), ("flex", None, 2.0), ("flex", 40, 2.0)],
)
def test_gpu_backends_and_their_gradients(
    backend: str, window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "attention_backend", lambda *_, **__: backend)
    for lengths in ([200, 37, 1, 300], [90, 412]):  # another row, of another size
        total = sum(lengths)
        given = [torch.randn(1, heads, total, 64) for heads in (4, 2, 2)]
        up = torch.randn(total, 4, 64)
        results = []
        for device, dtype in (("cpu", torch.float64), ("cuda", torch.bfloat16)):
            layout = Layout.of(lengths, torch.device(device))
            leaves = [x.to(device, dtype).requires_grad_() for x in given]
            if device == "cuda":
                out = attention.packed_attention(
                    torch.nn.Identity(), *leaves, None, scaling=0.2, sliding_window=window,
                    softcap=softcap, siri_layout=layout,
                )[0][0]  # fmt: skip
            else:
                rows = [x[0].transpose(0, 1) for x in leaves]
                bounds = (window - 1 if window else -1, 0)
                out = naive(*rows, layout.cu_seqlens, bounds, 0.2, softcap or 0.0)
            (out * up.to(device, dtype)).sum().backward()
            results.append([x.cpu().double() for x in (out.detach(), *(x.grad for x in leaves))])  # type: ignore[union-attr]
        for want, got in zip(*results, strict=True):
            assert (got - want).norm() < 2e-2 * want.norm()


def test_the_installed_varlen_takes_what_it_is_given() -> None:
    function = attention._varlen()
    assert function is not None  # torch >= 2.11 has it
    parameters = inspect.signature(function).parameters
    first = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert list(parameters)[:7] == first and {"scale", "window_size"} <= parameters.keys()
    assert parameters["window_size"].default == (-1, -1)


@pytest.mark.draw(4)
@pytest.mark.parametrize("seed", range(12))
def test_flex_blocks_are_those_that_hold_a_visible_pair(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.choice([1, 2, 50, 127, 128, 129, 300]) for _ in range(rng.randrange(1, 6))]
    total, blocks = sum(lengths), -(-sum(lengths) // 128)
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    distance = torch.arange(total)[:, None] - torch.arange(total)[None]
    for window in (None, 1, 30, 128, 200):
        mask = Layout.of(lengths, CPU).block_mask(window)
        seen = (sequence[:, None] == sequence[None]) & (distance >= 0)
        seen &= distance < (window or total)
        missing = blocks * 128 - total

        def tiles(beyond: bool, seen: Any = seen, missing: int = missing) -> torch.Tensor:
            rows = F.pad(F.pad(seen, (0, missing)), (0, 0, 0, missing), value=beyond)
            return rows.view(blocks, 128, blocks, 128).transpose(1, 2).flatten(2)

        assert torch.equal(mask.to_dense()[0, 0].bool(), tiles(False).any(-1))
        full = torch.zeros(blocks, blocks, dtype=torch.bool)
        for row, count in enumerate(mask.full_kv_num_blocks[0, 0].tolist()):
            full[row, mask.full_kv_indices[0, 0, row, :count]] = True
        # The mask is not asked inside full blocks; below the diagonal all of them are found.
        assert torch.equal(full, tiles(True).all(-1).tril(-1))
        q, k, v = inputs(total)
        want = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(packed_flex(q, k, v, mask, compiled=False), want)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called")
def test_flex_compiles_once_for_rows_of_any_layout() -> None:
    """Only forward and only one size: FlexAttention has no more on a CPU."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    for lengths, window in (([200, 37, 19], None), ([100, 100, 56], None), ([256], 30)):
        layout = Layout.of(lengths, CPU)
        q, k, v = inputs(256)
        got = packed_flex(q, k, v, layout.block_mask(window), softcap=2.0)
        want = packed_flex(q, k, v, layout.block_mask(window), softcap=2.0, compiled=False)
        torch.testing.assert_close(got, want)
    assert counters["stats"]["unique_graphs"] == 2  # one is the plain implementation's
    torch._dynamo.reset()


def test_backend_by_device_dtype_and_what_the_model_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = torch.bfloat16, torch.float32
    choose = attention.attention_backend
    for flash in (None, object()):
        monkeypatch.setattr(attention, "_flash", lambda flash=flash: flash)
        assert choose(CPU, half, 64) == choose(CPU, half, 64, window=True) == "sdpa"
        assert choose(CPU, half, 64, softcap=True) == "sdpa"
        assert choose(GPU, half, 128) == choose(GPU, half, 128, window=True) == "varlen"
        assert choose(GPU, torch.float16, 256) == "varlen"
        assert choose(GPU, half, 128, softcap=True) == ("flash" if flash else "flex")
        assert choose(GPU, half, 128, dropout=True) == ("flash" if flash else "sdpa")
        assert choose(GPU, half, 128, softcap=True, window=True) == ("flash" if flash else "flex")
        for dtype, width in ((single, 64), (half, 512)):  # not for flash kernels
            assert choose(GPU, dtype, width) == "sdpa"
            assert choose(GPU, dtype, width, window=True) == "flex"
    monkeypatch.setattr(attention, "_varlen", lambda: None)
    assert choose(GPU, half, 128) == "flash"
    monkeypatch.setattr(attention, "_flash", lambda: None)
    assert choose(GPU, half, 128) == "sdpa" and choose(GPU, half, 128, window=True) == "flex"


def test_attention_sinks_are_refused() -> None:
    q = torch.randn(1, 2, 4, 8)
    layout = Layout.of([4], CPU)
    with pytest.raises(NotImplementedError, match="sinks"):
        attention.packed_attention(
            torch.nn.Identity(), q, q, q, None, siri_layout=layout, s_aux=q[0, :, 0, 0]
        )
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
