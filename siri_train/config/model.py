"""The configuration of the policy: ``model`` and its subsections."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from siri_train.config.base import Section
from siri_train.config.values import Tokens, UserPath, Word


class ArchitectureConfig(Section):
    """A Qwen2 model built from scratch (used by the embedded task's supervised stage)."""

    hidden_size: int = Field(64, gt=0, le=2**16)
    """Width of the hidden states; an even multiple of ``heads``."""
    intermediate_size: int = Field(128, gt=0, le=2**18)
    """Width of the feed-forward layers."""
    layers: int = Field(3, gt=0, le=1024)
    """Decoder layers."""
    heads: int = Field(4, gt=0, le=1024)
    """Query heads of a layer."""
    kv_heads: int = Field(2, gt=0, le=1024)
    """Key and value heads of a layer; they divide ``heads``."""
    max_position_embeddings: Tokens = 512
    """Longest sequence, in tokens."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ArchitectureConfig:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads ({self.heads}) must divide hidden_size ({self.hidden_size}) and kv_heads "
                f"({self.kv_heads}) must divide heads"
            )
        if self.hidden_size // self.heads % 2:  # rotary positions turn pairs
            raise ValueError(
                f"hidden_size ({self.hidden_size}) / heads ({self.heads}) must be an even number"
            )
        attention = 2 * self.hidden_size**2 * (self.heads + self.kv_heads) // self.heads
        weights = self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)
        if weights > 10**9:
            raise ValueError(
                f"layers ({self.layers}), hidden_size ({self.hidden_size}) and intermediate_size "
                f"({self.intermediate_size}) make {weights} weights; takes at most 10**9"
            )
        return self


class LoraConfig(Section):
    """Train low-rank adapters (peft) instead of all weights; checkpoints hold merged weights."""

    rank: int = Field(32, gt=0, le=2**16)
    """Rank of the adapters."""
    alpha: float = Field(64.0, gt=0, le=1e6)
    """The adapters' product is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """In the supervised stage; RL trains without dropout, as its sampler samples."""
    targets: Literal["all-linear"] | list[Word] = "all-linear"
    """Names of the layers that get adapters, as ``[q_proj, v_proj]``; all-linear: all of the
    transformer, not the head."""


class ModelConfig(Section):
    """The policy."""

    path: UserPath = "embedded"
    """A folder or hub id that ``from_pretrained`` loads; ``embedded``, ``embedded-search``: the
    shipped starts of the embedded tasks arithmetic and search."""
    convert_from: UserPath | None = None
    """``PACKAGE:FILE.gguf`` or a GGUF path, converted into ``path`` once when that is missing."""
    scratch: ArchitectureConfig | None = None
    """Build a model with random weights (embedded task only) instead of loading ``path``."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights; the loss and its statistics are float32 in any case."""
    gradient_checkpointing: bool = False
    """Compute each layer again in backward instead of keeping its activations: less memory,
    slower."""
    liger: Literal["auto", "on", "off"] = "auto"
    """Liger's RMSNorm, SwiGLU and RoPE kernels; auto: on a GPU, where they can be had."""
    lora: LoraConfig | None = None

    @field_validator("path", "convert_from")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("takes a path that is not empty")
        return value
