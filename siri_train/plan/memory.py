"""Memory of a run on each rank, computed before it starts from the sizes of the model.

Three phases are computed, because each can need the most: the backward pass of one micro-batch, the
optimiser's step, and sampling. The numbers follow what autograd keeps for a decoder layer with
RMSNorm, grouped-query flash attention (no scores are kept) and a gated MLP. Other architectures are
treated like that one. ``tests/train/test_memory.py`` compares with measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from siri_kernels.linear_logprob.portable.forward import block_sizes, tile_shape
from siri_kernels.linear_logprob.screen.options import LEAST_VOCABULARY
from siri_kernels.linear_logprob.screen.rotation import rotated_width
from siri_kernels.linear_logprob.top_entries import entries_to_save
from siri_train.config import engines
from siri_train.config.loss import START
from siri_train.config.run import RunConfig
from siri_train.rollout.kv_cache import PREALLOCATED
from siri_train.trainer.optimizer import PIECE

GB = 10**9

# Bytes of a top entry while linear_logprob's CPU path sorts them: token and vocabulary indices in
# int64, four float32 values, and the merged copies of all.
_ENTRY = 80


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that decide its memory.

    Args:
        parameters: of the whole model.
        layer: parameters of one decoder layer.
        linears: the layers of a decoder layer that LoRA can adapt: name, inputs, outputs.
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary: sizes.
        tied: embedding and head are one matrix.
    """

    parameters: int
    layer: int
    linears: tuple[tuple[str, int, int], ...]
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @staticmethod
    def of(config: Any) -> Sizes:
        """The sizes of a transformers configuration, from a model on the meta device."""
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        text = config.get_text_config()
        heads = text.num_attention_heads
        layer = model.base_model.layers[-1]
        return Sizes(
            parameters=sum(p.numel() for p in model.parameters()),
            layer=sum(p.numel() for p in layer.parameters()),
            linears=tuple(
                (name.rpartition(".")[2], module.in_features, module.out_features)
                for name, module in layer.named_modules()
                if isinstance(module, torch.nn.Linear)
            ),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
            tied=bool(config.tie_word_embeddings),
        )

    def trained(self, config: RunConfig) -> int:
        """Parameters with gradients: all, or those of the adapters."""
        lora = config.model.lora
        if lora is None:
            return self.parameters
        wanted = None if lora.targets == "all-linear" else lora.targets
        sizes = (i + o for name, i, o in self.linears if wanted is None or name in wanted)
        return self.layers * lora.rank * sum(sizes)

    @property
    def root(self) -> int:
        """Parameters outside of the layers: embedding, last norm, head."""
        return self.parameters - self.layers * self.layer


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peaks of its three phases, by what they are for.

    Args:
        training: in the backward pass of a full micro-batch, from the second one on.
        optimizer: in the optimiser's step.
        rollout: while sampling at the largest cap.
        logits_saved: part of ``training``: what the log-prob head keeps instead of logits.
        logits_eager: about what eager PyTorch would keep for the logits of the same micro-batch.
    """

    training: dict[str, int] = field(default_factory=dict)
    optimizer: dict[str, int] = field(default_factory=dict)
    rollout: dict[str, int] = field(default_factory=dict)
    logits_saved: int = 0
    logits_eager: int = 0

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of each phase."""
        return {
            "training": sum(self.training.values()),
            "optimizer": sum(self.optimizer.values()),
            "rollout": sum(self.rollout.values()),
        }

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return max(self.totals.values())


def estimate(
    config: RunConfig,
    sizes: Sizes,
    *,
    ranks: int = 1,
    gpu: bool = True,
    memory_gb: float | None = None,
    reference: Sizes | None = None,
) -> Memory:
    """Memory of one rank of ``config``.

    Args:
        config: the recipe.
        sizes: of its model.
        ranks: processes that share the model (FSDP2); 1: the whole model on one device.
        gpu: on a GPU (Liger's layers, the optimiser's temporaries) or on a CPU.
        memory_gb: of the GPU, in 10**9 bytes, of which a colocated vLLM takes its share; None: not
            known, and vLLM needs its weights and its cache.
        reference: sizes of the model of ``loss.reference``, where the loss has a KL term; None: the
            same as ``sizes``.
    """
    stored = torch.finfo(getattr(torch, config.model.dtype)).bits // 8
    sharded = ranks > 1
    mixed = sharded and config.distributed.compute_dtype is not None
    computed = 2 if mixed else stored
    tokens = config.train.token_budget
    trained = sizes.trained(config)
    # With offload the shards live in the CPU's memory.
    here = 0.0 if sharded and gpu and config.distributed.offload else 1.0 / ranks
    masters = stored < 4 and config.train.master_weights
    weights = {"weights": int(sizes.parameters * stored * here)}
    if _reference_is_a_copy(config):
        kept_model = (reference or sizes).parameters
        weights["reference model"] = int(kept_model * stored * here)
    if _screens(config, sizes, gpu):
        heads = 2 if "reference model" in weights else 1
        screened = sizes.vocabulary * rotated_width(sizes.hidden)
        weights["8-bit copies of the head"] = heads * screened
    gradients = {"gradients": int(trained * stored * here)}
    moments = {
        "AdamW moments": int(2 * trained * (4 if masters else stored) * here),
        "float32 master weights": int(4 * trained * here) if masters else 0,
    }

    fused = gpu and config.model.liger != "off"
    kept = _layer_saves(sizes, computed, fused) * tokens
    split_head = sharded and config.distributed.vocabulary_parallel_head
    # A head that is sharded by vocabulary has its share of the ids and the tokens of all ranks.
    share = replace(sizes, vocabulary=sizes.vocabulary // ranks) if split_head else sizes
    head_tokens = tokens * (ranks if split_head else 1)
    head = _head_saves(share, config, computed, head_tokens)
    head_weight = 0 if config.model.lora else sizes.vocabulary * sizes.hidden * computed
    # Backward needs most in the head, where it starts, or in the last layer, after the head.
    if config.model.gradient_checkpointing:
        inputs, again = sizes.layers * sizes.hidden * computed * tokens, kept
    else:
        inputs, again = sizes.layers * kept, 0
    in_head = {
        "activations for backward": inputs + _norm_saves(sizes, computed, fused) * tokens,
        "log-prob head, saved": head,
        "gradients on their way": _head_transients(
            share, config, computed, gpu, head_tokens, split_head
        ),
    }
    in_layer = {
        "activations for backward": inputs,
        "one layer's, computed again": again,
        "gradients on their way": _layer_transients(sizes, computed) * tokens,
    }
    stages = [in_head, in_layer]
    # With accumulation in place the gradient of the head exists already. A tied embedding adds
    # another one; both are kept to the end. With FSDP each is kept whole until it is reduced.
    waiting = {"gradient of the tied head" if sizes.tied else "gradient of the head": head_weight}
    if sharded:
        layer = 0 if config.model.lora else sizes.layer
        never = sizes.vocabulary * sizes.hidden if split_head else 0
        whole = _gathered(config, sizes, computed) - never * computed
        root = sizes.root - never
        in_head |= {"gathered weights": max(whole, (root + sizes.layer) * computed)}
        in_layer |= {"gathered weights": max(whole, (root + 2 * sizes.layer) * computed)}
        if split_head:
            waiting = {"gradient of the head": head_weight // ranks}
            head_weight = 0
        # The gradient of this layer in the compute dtype, that of the layer above in float32.
        in_layer |= {"gradients being reduced": layer * (computed + 4), **waiting}
        if sizes.tied:
            in_head |= waiting
        root = 0 if config.model.lora else root
        copied = root * computed + 4 * root
        reduced = head_weight + 4 * root + root * (4 + (stored if stored < 4 else 0)) // ranks
        stages.append({"gradients being reduced": max(copied, reduced)})
    elif sizes.tied:
        in_head |= waiting
        in_layer |= waiting
    largest = max(stages, key=lambda parts: sum(parts.values()))
    training = {**weights, **gradients, **moments, **largest}
    # AdamW is fused; with master weights a few gradients at a time are upcast.
    piece = min(4 * trained, max(4 * sizes.vocabulary * sizes.hidden, 4 * PIECE))
    upcast = {"gradients in float32": int(piece * here) if masters else 0}
    optimizer = {**weights, **gradients, **moments, **upcast}
    sampler = _sampling(config, sizes, computed, sharded, memory_gb if gpu else None)
    rollout = {**weights, **moments, **sampler}
    awake = sampler if _stays_awake(config, gpu) else {}
    return Memory(
        training={**training, **awake},
        optimizer={**optimizer, **awake},
        rollout=rollout,
        logits_saved=head,
        logits_eager=8 * sizes.vocabulary * tokens,
    )


def _reference_is_a_copy(config: RunConfig) -> bool:
    """Whether the KL term needs a second model: adapters can be switched off instead."""
    loss = config.loss
    return loss.kl_coef != 0 and (config.model.lora is None or loss.reference != START)


def _norm_saves(sizes: Sizes, width: int, fused: bool) -> int:
    """Bytes a token that an RMSNorm keeps for backward, its output included.

    Transformers' own computes in float32: from 16-bit inputs it keeps a float32 copy, the
    normalised values and the output. Liger's keeps input and output.
    """
    if fused:
        return 2 * width * sizes.hidden
    return (3 * width if width == 4 else 4 + 2 * width) * sizes.hidden


def _layer_saves(sizes: Sizes, width: int, fused: bool) -> int:
    """Bytes a token that autograd keeps of one decoder layer.

    Two norms; queries, keys and values after the rotation, attention's output and the log-sum-exp
    of each head; of the MLP gate, up, their product, and the activated gate unless Liger computes
    it again.
    """
    attention = (2 * sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim * width + 4 * sizes.heads
    mlp = (3 if fused else 4) * sizes.intermediate * width
    return 2 * _norm_saves(sizes, width, fused) + attention + mlp


def _layer_transients(sizes: Sizes, width: int) -> int:
    """Bytes a token of the gradients that exist at once in the middle of an MLP's backward."""
    return (2 * sizes.intermediate + 2 * sizes.hidden) * width


def _head_saves(sizes: Sizes, config: RunConfig, width: int, tokens: int) -> int:
    """Bytes that the log-prob head keeps for backward.

    These are hidden states, statistics and the top entries of each token's softmax
    (``siri_kernels.linear_logprob``).
    """
    entries = entries_to_save(sizes.vocabulary, config.train.tail, True)
    return (sizes.hidden * width + 8 * entries + 6 * 8) * tokens


def _head_transients(
    sizes: Sizes, config: RunConfig, width: int, gpu: bool, tokens: int, shared: bool
) -> int:
    """Bytes at the peak of the head's backward.

    These are the gradient of the weight, that of the hidden states in float32 and in their own
    dtype, and two tiles of logits. On a CPU the sorted top entries are added, as if a quarter of
    their slots were filled: a trained model fills that many at most, and a token that has more
    entries than slots uses none. A head that is ``shared`` by ranks also gathers sums and
    gradients of the others: whole tiles, one more of them, and whole slots are as much.
    """
    most, ids = tile_shape(sizes.vocabulary, torch.device("cuda" if gpu else "cpu"))
    rows = most if shared else max(block_sizes(min(tokens, most), most, pad=not gpu), default=0)
    frozen = sizes.tied or config.model.lora is not None
    weight = 0 if frozen else sizes.vocabulary * sizes.hidden * width
    hidden = sizes.hidden * (4 + width) * tokens
    # On a CPU, in float32: a block of hidden states and a tile of the weight, as the products take
    # them or return their gradients; for a 16-bit model also the sums of that tile's gradient.
    scratch = 0 if gpu else 4 * sizes.hidden * (rows + ids * (1 if width == 4 else 2))
    entries = 0 if gpu else entries_to_save(sizes.vocabulary, config.train.tail, True)
    top_entries = _ENTRY * (entries if shared else entries // 4) * tokens
    return weight + hidden + scratch + (3 if shared else 2) * 4 * rows * ids + top_entries


def _gathered(config: RunConfig, sizes: Sizes, width: int) -> int:
    """All weights, where layers stay gathered after their forward pass."""
    return 0 if config.distributed.reshard_after_forward else sizes.parameters * width


def _screens(config: RunConfig, sizes: Sizes, gpu: bool) -> bool:
    """Whether the head has a screen: "auto" is none on a GPU so far."""
    asked = config.train.screen in (("int8", "fp8") if gpu else ("int8", "fp8", "auto"))
    return asked and sizes.vocabulary >= LEAST_VOCABULARY


def _stays_awake(config: RunConfig, gpu: bool) -> bool:
    """Whether the engine keeps its memory while the trainer works."""
    spec = engines.engine_of(config)
    if not (spec.in_process and spec.own_weights):
        return False
    level = 1 if spec.section is None else getattr(config.rollout, spec.section).sleep_level
    return not (spec.sleeps and gpu and level > 0)


def _sampling(
    config: RunConfig, sizes: Sizes, width: int, sharded: bool, memory_gb: float | None
) -> dict[str, int]:
    """Bytes that sampling takes on the trainer's device.

    An engine with a section of its own, as vLLM: the share of the GPU that it is given. Another
    one in this process: whole weights, a cache of the longest sequences, logits. One elsewhere:
    nothing.
    """
    spec = engines.engine_of(config)
    if not spec.in_process:
        return {}
    if spec.section is not None:
        own = getattr(config.rollout, spec.section)
        if memory_gb is not None and own.cache_gib is None:
            return {"vLLM's share": int(own.gpu_memory_utilization * memory_gb * GB)}
        stored = torch.finfo(getattr(torch, config.sampler_dtype)).bits // 8
        return {
            "vLLM's weights": sizes.parameters * stored,
            "vLLM's cache": int((own.cache_gib or 1.0) * 2**30),
        }
    copies = spec.own_weights or config.rollout.asynchronous
    rows = config.rollout.batch_rows
    length = config.data.max_prompt_len + config.schedule.max_len
    cache = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * width
    return {
        "gathered weights": sizes.parameters * width if sharded else 0,
        "the sampler's weights": sizes.parameters * width if copies else 0,
        # A layer's cache grows by being copied: one of them is there twice.
        "KV cache": rows * (length + PREALLOCATED) * cache * (sizes.layers + 1) // sizes.layers,
        "logits of a token": rows * sizes.vocabulary * 3 * 4,
    }
