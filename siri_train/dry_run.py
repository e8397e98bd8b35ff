"""``siri-train train --dry-run``: what would run and roughly what memory it takes."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from siri_train.config import RunConfig
from siri_train.model import resolve_model_path
from siri_train.preflight import preflight


def dry_run(config: RunConfig) -> str:
    """The resolved configuration and an estimate of memory, after every check before a run.

    The estimate counts weights, gradients, the two float32 AdamW moments, the hidden states that
    backward keeps (about 16 values per token, layer and hidden unit without checkpointing, 2 with)
    and what eager PyTorch would take for the logits of one micro-batch, which are never stored.

    Raises:
        ConfigError: as :func:`siri_train.preflight.preflight`.
    """
    checked = preflight(config)
    if config.model.scratch is not None:
        from siri_train.data.embedded import scratch_model

        model, _ = scratch_model(config.model.scratch)
        shape = model.config
    else:
        path = str(checked.start or resolve_model_path(config.model))
        shape = AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape)
    parameters = sum(p.numel() for p in model.parameters())
    width = 2 if config.model.dtype == "bfloat16" else 4
    kept = 2 if config.model.gradient_checkpointing else 16
    tokens = config.train.token_budget
    rows = [
        ("weights", parameters * width),
        ("gradients", parameters * width),
        ("AdamW moments", parameters * 2 * width),
        ("activations", tokens * shape.num_hidden_layers * shape.hidden_size * kept * width),
        ("logits (never stored; eager would take)", tokens * shape.vocab_size * 8),
    ]
    lines = [config.to_yaml(), f"# {parameters / 1e6:.2f} M parameters, {tokens} tokens a pass"]
    lines += [f"# {name:<42}{size / 2**30:10.3f} GiB" for name, size in rows]
    responses = config.rollout.prompts * config.rollout.group_size
    lines.append(
        f"# {len(checked.train_questions)} training and {len(checked.eval_questions)} held-out "
        f"questions; {responses} responses a step, at most "
        f"{responses * config.schedule.max_len} tokens"
    )
    return "\n".join(lines)
