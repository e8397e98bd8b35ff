"""Memory of a run, per rank, before it starts: counted from the shapes, not measured.

Three moments are counted, because each can be the largest: the backward pass of one row, the
optimiser's step, and sampling. Counts follow what autograd keeps for a decoder layer with RMSNorm,
grouped-query attention that keeps no scores (flash) and a gated MLP; other architectures are
estimated as if they were that. ``tests/train/test_memory.py`` holds them against measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from siri_kernels.linear_logprob.portable.forward import tile_shape
from siri_kernels.linear_logprob.top_entries import slots_for
from siri_train.config import engines
from siri_train.config.loss import START
from siri_train.config.run import RunConfig
from siri_train.rollout.kv_cache import PREALLOCATED
from siri_train.trainer.optimizer import PIECE

GB = 10**9

# Bytes of an entry of the lists while linear_logprob's CPU path sorts them: ids and rows in int64,
# four float32 values, and the merged copies of all.
_ENTRY = 80


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory.

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
    def of(config: Any) -> Shape:
        """Of a transformers configuration; parameters are counted on a model without storage."""
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        text = config.get_text_config()
        heads = text.num_attention_heads
        layer = model.base_model.layers[-1]
        return Shape(
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
    """Bytes of one rank at its three peaks, by what they are for.

    Args:
        training: in the backward pass of a full row, from the second row on.
        optimizer: in the optimiser's step.
        rollout: while sampling at the largest cap.
        logits_saved: of ``training``: what the log-prob head keeps a row instead of logits.
        logits_eager: what eager PyTorch would keep for the logits of the same row, more or less.
    """

    training: dict[str, int] = field(default_factory=dict)
    optimizer: dict[str, int] = field(default_factory=dict)
    rollout: dict[str, int] = field(default_factory=dict)
    logits_saved: int = 0
    logits_eager: int = 0

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of each moment."""
        return {
            "training": sum(self.training.values()),
            "optimizer": sum(self.optimizer.values()),
            "rollout": sum(self.rollout.values()),
        }

    @property
    def peak(self) -> int:
        """Bytes of the largest moment."""
        return max(self.totals.values())


def estimate(
    config: RunConfig,
    shape: Shape,
    *,
    ranks: int = 1,
    gpu: bool = True,
    memory_gb: float | None = None,
    reference: Shape | None = None,
) -> Memory:
    """Memory of one rank of ``config``.

    Args:
        config: the recipe.
        shape: its model's.
        ranks: processes that share the model (FSDP2); 1: the whole model on one device.
        gpu: on a GPU (Liger's layers, the optimiser's temporaries) or on a CPU.
        memory_gb: of the GPU, in 10**9 bytes, of which a colocated vLLM takes its share; None: not
            known, and vLLM counts with its weights and its cache alone.
        reference: of the model of ``loss.reference``, where the loss has a KL term; None: as
            ``shape``.
    """
    stored = torch.finfo(getattr(torch, config.model.dtype)).bits // 8
    sharded = ranks > 1
    mixed = sharded and config.distributed.compute_dtype is not None
    computed = 2 if mixed else stored
    tokens = config.train.token_budget
    trained = shape.trained(config)
    # With offload the shards live in the CPU's memory.
    here = 0.0 if sharded and gpu and config.distributed.offload else 1.0 / ranks
    masters = stored < 4 and config.train.master_weights
    weights = {"weights": int(shape.parameters * stored * here)}
    if _reference_is_a_copy(config):
        kept_model = (reference or shape).parameters
        weights["reference model"] = int(kept_model * stored * here)
    gradients = {"gradients": int(trained * stored * here)}
    moments = {
        "AdamW moments": int(2 * trained * (4 if masters else stored) * here),
        "float32 master weights": int(4 * trained * here) if masters else 0,
    }

    fused = gpu and config.model.liger != "off"
    kept = layer_saves(shape, computed, fused) * tokens
    cut = sharded and config.distributed.vocabulary_parallel_head
    # A head cut by vocabulary has its share of the ids and the rows of all ranks.
    share = replace(shape, vocabulary=shape.vocabulary // ranks) if cut else shape
    rows = tokens * (ranks if cut else 1)
    head = head_saves(share, config, computed, rows)
    head_weight = 0 if config.model.lora else shape.vocabulary * shape.hidden * computed
    # Backward is largest at its start, in the head, or in the last layer, when the head's is gone.
    if config.model.gradient_checkpointing:
        inputs, again = shape.layers * shape.hidden * computed * tokens, kept
    else:
        inputs, again = shape.layers * kept, 0
    in_head = {
        "activations for backward": inputs + norm_saves(shape, computed, fused) * tokens,
        "log-prob head, saved": head,
        "gradients on their way": head_transients(share, config, computed, gpu, rows),
    }
    in_layer = {
        "activations for backward": inputs,
        "one layer's, computed again": again,
        "gradients on their way": layer_transients(shape, computed) * tokens,
    }
    stages = [in_head, in_layer]
    # Where gradients are accumulated in place the head's is there already; its tied embedding's is
    # another, and both wait for the end. Of shards each waits whole, until it is reduced.
    waiting = {"gradient of the tied head" if shape.tied else "gradient of the head": head_weight}
    if sharded:
        layer = 0 if config.model.lora else shape.layer
        never = shape.vocabulary * shape.hidden if cut else 0
        whole = _gathered(config, shape, computed) - never * computed
        root = shape.root - never
        in_head |= {"gathered weights": max(whole, (root + shape.layer) * computed)}
        in_layer |= {"gathered weights": max(whole, (root + 2 * shape.layer) * computed)}
        if cut:
            waiting = {"gradient of the head": head_weight // ranks}
            head_weight = 0
        # This layer's gradient in the computation's dtype, the one above's in float32.
        in_layer |= {"gradients being reduced": layer * (computed + 4), **waiting}
        if shape.tied:
            in_head |= waiting
        root = 0 if config.model.lora else root
        copied = root * computed + 4 * root
        reduced = head_weight + 4 * root + root * (4 + (stored if stored < 4 else 0)) // ranks
        stages.append({"gradients being reduced": max(copied, reduced)})
    elif shape.tied:
        in_head |= waiting
        in_layer |= waiting
    largest = max(stages, key=lambda parts: sum(parts.values()))
    training = {**weights, **gradients, **moments, **largest}
    # AdamW is fused; in front of masters a few gradients at a time are widened.
    piece = min(4 * trained, max(4 * shape.vocabulary * shape.hidden, 4 * PIECE))
    widened = {"gradients in float32": int(piece * here) if masters else 0}
    optimizer = {**weights, **gradients, **moments, **widened}
    sampler = _sampling(config, shape, computed, sharded, memory_gb if gpu else None)
    rollout = {**weights, **moments, **sampler}
    awake = sampler if _stays_awake(config, gpu) else {}
    return Memory(
        training={**training, **awake},
        optimizer={**optimizer, **awake},
        rollout=rollout,
        logits_saved=head,
        logits_eager=8 * shape.vocabulary * tokens,
    )


def _reference_is_a_copy(config: RunConfig) -> bool:
    """Whether the KL term needs a second model: adapters can be switched off instead."""
    loss = config.loss
    return loss.kl_coef != 0 and (config.model.lora is None or loss.reference != START)


def norm_saves(shape: Shape, width: int, fused: bool) -> int:
    """Bytes a token that an RMSNorm keeps for backward, its output included.

    Transformers' own computes in float32: from 16-bit inputs it keeps a float32 copy, the
    normalised values and the output. Liger's keeps input and output.
    """
    if fused:
        return 2 * width * shape.hidden
    return (3 * width if width == 4 else 4 + 2 * width) * shape.hidden


def layer_saves(shape: Shape, width: int, fused: bool) -> int:
    """Bytes a token that autograd keeps of one decoder layer.

    Two norms; queries, keys and values after the rotation, attention's output and the log-sum-exp
    of each head; of the MLP gate, up, their product, and the activated gate unless Liger computes
    it again.
    """
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim * width + 4 * shape.heads
    mlp = (3 if fused else 4) * shape.intermediate * width
    return 2 * norm_saves(shape, width, fused) + attention + mlp


def layer_transients(shape: Shape, width: int) -> int:
    """Bytes a token of gradients alive at once in a layer's backward: the MLP's, at its middle."""
    return (2 * shape.intermediate + 2 * shape.hidden) * width


def head_saves(shape: Shape, config: RunConfig, width: int, tokens: int) -> int:
    """Bytes that the log-prob head keeps of its rows: hidden states, statistics and, for backward,
    the list of each token's largest logits (``siri_kernels.linear_logprob``)."""
    slots = slots_for(shape.vocabulary, config.train.tail, True)
    return (shape.hidden * width + 8 * slots + 6 * 8) * tokens


def head_transients(shape: Shape, config: RunConfig, width: int, gpu: bool, tokens: int) -> int:
    """Bytes at the peak of the head's backward: its weight's gradient, the hidden states' in
    float32 and in their own dtype, two tiles of logits; on a CPU also the lists' entries, sorted
    (all slots filled: a trained model fills few)."""
    rows, ids = tile_shape(shape.vocabulary, torch.device("cuda" if gpu else "cpu"))
    frozen = shape.tied or config.model.lora is not None
    weight = 0 if frozen else shape.vocabulary * shape.hidden * width
    hidden = shape.hidden * (4 + width) * tokens
    # On a CPU gradients of a tile of the weight and of the hidden states are added up in float32,
    # and both tiles widened to it.
    scratch = 0 if gpu else 4 * shape.hidden * (rows + ids) * (1 if width == 4 else 2)
    entries = 0 if gpu else slots_for(shape.vocabulary, config.train.tail, True)
    lists = _ENTRY * entries * tokens
    return weight + hidden + scratch + 2 * 4 * rows * ids + lists


def _gathered(config: RunConfig, shape: Shape, width: int) -> int:
    """All weights, where layers stay gathered after their forward pass."""
    return 0 if config.distributed.reshard_after_forward else shape.parameters * width


def _stays_awake(config: RunConfig, gpu: bool) -> bool:
    """Whether the engine keeps its memory while the trainer works."""
    spec = engines.engine_of(config)
    if not (spec.in_process and spec.own_weights):
        return False
    level = 1 if spec.section is None else getattr(config.rollout, spec.section).sleep_level
    return not (spec.sleeps and gpu and level > 0)


def _sampling(
    config: RunConfig, shape: Shape, width: int, sharded: bool, memory_gb: float | None
) -> dict[str, int]:
    """What sampling takes on the trainer's device.

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
            "vLLM's weights": shape.parameters * stored,
            "vLLM's cache": int((own.cache_gib or 1.0) * 2**30),
        }
    copies = spec.own_weights or config.rollout.asynchronous
    rows = config.rollout.batch_rows
    length = config.data.max_prompt_len + config.schedule.max_len
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * width
    return {
        "gathered weights": shape.parameters * width if sharded else 0,
        "the sampler's weights": shape.parameters * width if copies else 0,
        # A layer's cache grows by being copied: one of them is there twice.
        "KV cache": rows * (length + PREALLOCATED) * cache * (shape.layers + 1) // shape.layers,
        "logits of a token": rows * shape.vocabulary * 3 * 4,
    }
