"""A recipe in verl's keys. What verl cannot do is refused with the name of the recipe's key."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from siri_kernels.integrations import verl as kernels
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.integrations.verl.checkpoints import check_save_freq
from siri_train.integrations.verl.held_out import samples_notes, validation_samples
from siri_train.integrations.verl.settings import REWARD_MANAGER
from siri_train.rewards import require_single

# A ratio is at most exp(20) = 4.9e8, so this dual clip never acts; verl has no switch for it.
NO_DUAL_CLIP = 1e9

# Keys of siri-train alone: they change how its engine and loop work, not what is learnt.
LEFT_OUT = {
    "threads": "verl's workers set their own",
    "sft": "run `siri-train sft` first; its checkpoint is used where it is there",
    "rollout.engine": "verl's own, by --engine",
    "rollout.batch_rows": "verl's engine schedules itself",
    "rollout.vllm.cache_gib": "verl plans by gpu_memory_utilization",
    "rollout.vllm.sleep_level": "verl decides",
    "rollout.probe": "verl has none",
    "rollout.server": "verl starts servers of its own",
    "rollout.deal": "verl deals responses to its workers itself",
    "rollout.shards": "verl draws other samples than siri-train",
    "loss.skip_zero_advantage": "it saves time here and changes no result",
    "train.rehearse": "verl has none",
    "checkpoint.best": "verl keeps no best checkpoint",
    "checkpoint.lag_window": "verl's lengths are not looked at; checkpoint.lag is known there",
    "eval.select": "verl keeps no best checkpoint",
    "monitor.token_groups": "verl counts no words",
    "monitor.alarms": "the alarms are part of siri-train's loop",
    "monitor.rollouts_every": "verl dumps all rollouts or none: trainer.rollout_data_dir",
    "monitor.rollouts_kept": "verl dumps all rollouts or none: trainer.rollout_data_dir",
    "monitor.price_per_gpu_hour": "the page of siri-train alone shows what a run cost",
}


# The values of a key that verl can do, and why it takes no other.
ACCEPTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "device": (("auto", "cuda"), "verl trains on GPUs"),
    "model.scratch": ((None,), "verl loads a model; run `siri-train sft` first"),
    "advantage.baseline": (("mean",), "siri_grpo is GRPO; verl gives estimators no options"),
    "advantage.scale": (("group_std", "none"), "verl has norm_adv_by_std_in_grpo alone"),
    "advantage.eps": ((1e-6,), "verl does not give it to estimators"),
    "rollout.vllm.tensor_parallel_size": ((1,), "set it by --set"),
    "loss.overlong_filter": ((False,), "verl has no filter of truncated responses"),
    "monitor.halt_on_alarm": ((False,), "the alarms are part of siri-train's loop"),
    "monitor.halt_on": (([],), "the alarms are part of siri-train's loop"),
    "model.lora.dropout": ((None, 0.0), "verl's LoRA on FSDP has none"),
    "train.screen": ((None, "auto"), "verl trains on GPUs, which have no other screen so far"),
    "train.logprob_tol": ((1e-4,), "the head in verl has the default"),
}

# siri-train reads these itself: for the data rows, the model folder and RunConfig's properties.
ELSEWHERE = ("output", "data.train", "data.eval", "data.system", "data.instruction", "eval.budgets",
             "eval.samples", "model.path", "model.convert_from")  # fmt: skip


@dataclass(frozen=True)
class Machines:
    """GPUs and engine, which a recipe does not name."""

    gpus: int = 8
    """Per node."""
    nodes: int = 1
    engine: str = "vllm"
    """verl's rollout engine: vllm, sglang or trtllm."""


@dataclass(frozen=True)
class Options:
    """The result of :func:`verl_options`.

    Attributes:
        values: verl's keys, ``+`` before those that verl's own configuration lacks.
        notes: keys of the recipe that are left out, a line each.
    """

    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def verl_options(
    config: RunConfig, machines: Machines, *, model: str, train_file: str, eval_file: str
) -> Options:
    """Every key of a recipe as verl's, or an error that names it.

    Args:
        config: the recipe.
        machines: GPUs and rollout engine.
        model: what ``from_pretrained`` loads.
        train_file: Parquet with verl's columns.
        eval_file: the same.

    Raises:
        ConfigError: a key whose value verl cannot do, and why.
    """
    read: Any = _Reads(config)
    _refuse(config, machines)
    values = {
        **_algorithm(read),
        **_data(read, train_file, eval_file),
        **_model(read, model),
        **_actor(read),
        **_rollout(read, machines),
        **_siri(read),
        **_trainer(read, machines),
    }
    defaults = RunConfig()
    for key, value in _leaves(config):
        if value != _get(defaults, key) and not read.covers(key):
            raise ConfigError(f"{key}: got {value!r}; `siri-train verl` has nothing for it in verl")
    notes = [
        f"{key} = {_get(config, key)!r} is left out: {why}"
        for key, why in LEFT_OUT.items()
        if _get(config, key) != _get(defaults, key)
    ]
    notes += samples_notes(config)
    if config.train.lr_warmup_steps:
        notes.append("train.lr_warmup_steps: verl's first step has a learning rate of 0")
    return Options(values, notes)


class _Reads:
    """A section that records which of its keys were read: a key that was not read is refused."""

    def __init__(self, section: BaseModel, prefix: str = "", seen: set[str] | None = None) -> None:
        self._section, self._prefix = section, prefix
        self._seen: set[str] = {*ELSEWHERE, *LEFT_OUT, *ACCEPTED} if seen is None else seen

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._section, name)
        if name not in type(self._section).model_fields:
            # A method or property reads the whole section; of the run, see ELSEWHERE.
            self._seen |= {self._prefix.rstrip(".")}
            return value
        if isinstance(value, BaseModel):
            return _Reads(value, f"{self._prefix}{name}.", self._seen)
        self._seen.add(f"{self._prefix}{name}")
        return value

    def covers(self, key: str) -> bool:
        parts = key.split(".")
        return any(".".join(parts[: n + 1]) in self._seen for n in range(len(parts)))


def _leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _refuse(config: RunConfig, machines: Machines) -> None:
    for key, (values, why) in ACCEPTED.items():
        got = _get(config, key)
        if got not in values:
            takes = " or ".join(map(repr, values))
            raise ConfigError(f"{key}: got {got!r}; verl takes {takes}: {why}")
    _refuse_sizes(config, machines)


def _refuse_sizes(config: RunConfig, machines: Machines) -> None:
    prompts, parts = config.rollout.prompts, config.train.mini_batches
    if prompts % parts:
        raise ConfigError(
            f"train.mini_batches: got {parts}; verl takes a divisor of rollout.prompts = {prompts}"
            ": its mini-batches hold whole groups"
        )
    responses, ranks = prompts // parts * config.rollout.group_size, machines.gpus * machines.nodes
    if responses % ranks:
        raise ConfigError(
            f"rollout.prompts: a mini-batch of {prompts} / {parts} prompts x "
            f"{config.rollout.group_size} = {responses} responses cannot be split over {ranks} GPUs"
        )
    every = config.checkpoint.every or max(1, config.schedule.cycle // 2)
    schedule = config.schedule.build()
    try:
        schedule.require_stateless("verl")
        require_single(config.reward.function, "reward.function", "verl")
    except ValueError as error:
        key = "schedule." if str(error).startswith("shape") else ""
        raise ConfigError(f"{key}{error}") from error
    check_save_freq(every, schedule, config.checkpoint.lag, "checkpoint.every", config.train.steps)


def _algorithm(config: RunConfig) -> dict[str, Any]:
    correction = config.loss.rollout_correction
    return {
        **({} if correction is None else _correction(correction)),
        "algorithm.adv_estimator": kernels.ESTIMATOR,
        "algorithm.norm_adv_by_std_in_grpo": config.advantage.scale == "group_std",
        # The sampler's log-probs as the old ones, or a forward pass more.
        "algorithm.rollout_correction.bypass_mode": config.loss.old_logprobs == "rollout",
    }


def _correction(correction: Any) -> dict[str, Any]:
    """The correction in verl's keys: they truncate from above alone, or mask between two bounds."""
    mode, level, low, high = correction.mode, correction.level, correction.low, correction.high
    key = "algorithm.rollout_correction"
    if mode == "reject" or level == "geometric" or (mode == "truncate" and low > 0):
        raise ConfigError(
            f"loss.rollout_correction: got mode={mode}, level={level}, low={low}; as a weight verl "
            "has mode=truncate with low=0 and mode=mask, each by token or sequence"
        )
    threshold = high if mode == "truncate" else f"{low}_{high}"
    return {f"{key}.rollout_is": level, f"{key}.rollout_is_threshold": threshold}


def _data(config: RunConfig, train_file: str, eval_file: str) -> dict[str, Any]:
    return {
        "data.train_files": train_file,
        "data.val_files": eval_file,
        "data.train_batch_size": config.rollout.prompts,
        "data.max_prompt_length": config.data.max_prompt_len,
        "data.max_response_length": max(config.schedule.max_len, *config.budgets),
        "data.seed": config.seed,
    }


def _model(config: RunConfig, model: str) -> dict[str, Any]:
    key, lora = "actor_rollout_ref.model", config.model.lora
    liger = importlib.util.find_spec("liger_kernel") is not None
    values = {
        f"{key}.path": model,
        f"{key}.enable_gradient_checkpointing": config.model.gradient_checkpointing,
        f"{key}.use_liger": config.model.liger == "on" or (config.model.liger == "auto" and liger),
        f"{key}.use_fused_kernels": True,
        f"{key}.fused_kernel_options.impl_backend": "triton",
        f"{key}.external_lib": "siri_kernels.integrations.verl_head",
        "+ray_kwargs.ray_init.runtime_env.env_vars.SIRI_KERNELS_VERL_TAIL": str(config.train.tail),
    }
    if config.train.screen is not None:
        variables = "+ray_kwargs.ray_init.runtime_env.env_vars"
        values[f"{variables}.SIRI_KERNELS_VERL_SCREEN"] = config.train.screen
    if config.data.template == "plain":
        values[f"{key}.custom_chat_template"] = PLAIN_TEMPLATE
    if lora is not None:
        values |= {
            f"{key}.lora_rank": lora.rank,
            f"{key}.lora_alpha": lora.alpha,
            f"{key}.target_modules": lora.targets,
        }
    return values


PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
"""``data.template: plain`` for verl, which always uses a chat template."""


def _actor(config: RunConfig) -> dict[str, Any]:
    train, loss, key = config.train, config.loss, "actor_rollout_ref.actor"
    aggregation = {"token-sum-norm": "seq-mean-token-sum-norm"}
    fsdp = f"{key}.fsdp_config"
    values = {
        f"{key}.strategy": "fsdp2",
        f"{key}.policy_loss.loss_mode": kernels.LOSS,
        f"{key}.clip_ratio": loss.clip_low,
        f"{key}.clip_ratio_low": loss.clip_low,
        f"{key}.clip_ratio_high": loss.clip_high,
        f"{key}.clip_ratio_c": NO_DUAL_CLIP if loss.dual_clip is None else loss.dual_clip,
        f"{key}.loss_agg_mode": aggregation.get(loss.aggregation, loss.aggregation),
        f"{key}.loss_scale_factor": config.schedule.max_len,  # never a length that moves
        f"{key}.entropy_coeff": loss.entropy_coef,
        f"{key}.use_kl_loss": False,
        f"{key}.ppo_epochs": 1,
        f"{key}.ppo_mini_batch_size": config.rollout.prompts // train.mini_batches,
        f"{key}.use_dynamic_bsz": True,
        f"{key}.ppo_max_token_len_per_gpu": train.token_budget,
        f"{key}.grad_clip": train.grad_clip,
        f"{key}.data_loader_seed": config.seed,
        f"{key}.optim.lr": train.lr,
        f"{key}.optim.lr_warmup_steps": train.lr_warmup_steps,
        f"{key}.optim.lr_scheduler_type": "constant",
        f"{key}.optim.weight_decay": train.weight_decay,
        f"{key}.optim.betas": list(train.betas),
        f"{key}.optim.clip_grad": train.grad_clip,
        f"{key}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        f"{fsdp}.model_dtype": "bf16" if _stored_in_bfloat16(config) else "fp32",
        f"{fsdp}.reshard_after_forward": config.distributed.reshard_after_forward,
        f"{fsdp}.param_offload": config.distributed.offload,
        f"{fsdp}.optimizer_offload": config.distributed.offload,
        f"{fsdp}.seed": config.seed,
    }
    if _computed_in_float32(config):  # verl's default is bfloat16
        precision = ("param_dtype", "reduce_dtype", "buffer_dtype")
        values |= {f"+{fsdp}.mixed_precision.{name}": "fp32" for name in precision}
    return values


def _stored_in_bfloat16(config: RunConfig) -> bool:
    """bfloat16 weights with a float32 master are verl's fp32, computed with in bfloat16."""
    return config.model.dtype == "bfloat16" and not config.train.master_weights


def _computed_in_float32(config: RunConfig) -> bool:
    return config.model.dtype == "float32" and config.distributed.compute_dtype is None


def _rollout(config: RunConfig, machines: Machines) -> dict[str, Any]:
    sample, evaluation, key = config.rollout, config.eval, "actor_rollout_ref.rollout"
    return {
        f"{key}.name": machines.engine,
        f"{key}.n": sample.group_size,
        f"{key}.temperature": sample.temperature,
        f"{key}.top_p": sample.top_p,
        f"{key}.top_k": sample.top_k or -1,
        f"{key}.seed": config.seed,
        f"{key}.dtype": sample.vllm.dtype
        or ("float32" if _computed_in_float32(config) else "bfloat16"),
        f"{key}.gpu_memory_utilization": sample.vllm.gpu_memory_utilization,
        f"{key}.max_num_seqs": sample.vllm.max_num_seqs,
        f"{key}.enforce_eager": sample.vllm.enforce_eager,
        f"{key}.tensor_model_parallel_size": 1,
        f"{key}.max_model_len": config.data.max_prompt_len
        + max(config.schedule.max_len, *config.budgets),
        f"{key}.calculate_log_probs": True,
        f"{key}.val_kwargs.n": validation_samples(config),
        f"{key}.val_kwargs.temperature": evaluation.temperature,
        f"{key}.val_kwargs.top_p": evaluation.top_p,
        f"{key}.val_kwargs.do_sample": evaluation.temperature > 0,
    }


def _siri(config: RunConfig) -> dict[str, Any]:
    section = config.schedule.model_dump()
    options = {"schedule": section.pop("options"), "reward": config.reward.options}
    plugins = config.plugins
    return {
        **({"+siri.plugins": plugins} if plugins else {}),
        **{f"+siri.schedule.{k}": v for k, v in section.items()},
        **{f"+siri.{k}.options": v for k, v in options.items() if v},
        "+siri.reward.function": config.reward.function,
        "+siri.reward.verifier": config.reward.verifier,
        "+siri.reward.think": config.reward.think,
        "+siri.reward.truncated": config.reward.truncated,
        "+siri.reward.timeout": config.reward.timeout,
        "+siri.reward.batch_timeout": config.reward.batch_timeout,
        "+siri.budgets": config.budgets,
        "+siri.lag": config.checkpoint.lag,
        "reward.reward_manager.name": REWARD_MANAGER,
        "reward.num_workers": config.reward.workers,
    }


def _trainer(config: RunConfig, machines: Machines) -> dict[str, Any]:
    monitor = config.monitor
    names = {"wandb": monitor.wandb, "trackio": monitor.trackio}
    projects = {name for name in names.values() if name is not None}
    if len(projects) > 1:
        raise ConfigError(f"monitor.wandb, monitor.trackio: verl has one project; got {names}")
    loggers = ["console", *(["tensorboard"] if monitor.tensorboard else [])]
    loggers += [name for name, project in names.items() if project is not None]
    half = max(1, config.schedule.cycle // 2)  # a constant cap may have an odd cycle
    return {
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": "sync",
        "trainer.device": "cuda",
        "trainer.nnodes": machines.nodes,
        "trainer.n_gpus_per_node": machines.gpus,
        "trainer.project_name": projects.pop() if projects else "siri",
        "trainer.experiment_name": config.name,
        "trainer.logger": loggers,
        "trainer.total_epochs": config.train.steps,  # steps end it: an epoch has at least one
        "trainer.total_training_steps": config.train.steps,
        "trainer.default_local_dir": str((config.run_dir / "checkpoints").resolve()),
        "trainer.checkpoint_callback_class": "siri_train.integrations.verl.SiriCheckpoints",
        "trainer.save_freq": config.checkpoint.every or half,
        "trainer.max_actor_ckpt_to_keep": config.checkpoint.keep_last,
        "trainer.test_freq": config.eval.every or half,
        "trainer.val_before_train": config.eval.at_start,
        "actor_rollout_ref.nccl_timeout": int(60 * config.distributed.timeout_minutes),
    }


def _get(config: Any, key: str) -> Any:
    """The value at a dotted key; None below a section that is not there."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return value
