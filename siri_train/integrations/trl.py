"""SIRI on TRL (1.16): its trainer with our advantages and loss, the moving cap, the reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from siri_kernels import group_advantages
from siri_kernels.integrations._grpo import GrpoOptions, grpo_loss
from siri_train.data.think_marks import decode_responses
from siri_train.rewards import Response, Verifier, length_capping_reward
from siri_train.rewards.extract import ThinkMode
from siri_train.rewards.length_cap import TruncatedMode
from siri_train.schedule import LengthSchedule

_SCALES = {"group": "group_std", "batch": "batch_std", "none": "none"}


class SiriLengthCallback(TrainerCallback):
    """Sets the cap of the coming step wherever TRL 1.16 reads it, before it generates.

    TRL fires ``on_step_begin`` before the step's rollouts. Bound to a trainer, any
    ``GRPOTrainer``, by :meth:`bind`; ``SiriGRPOTrainer(length_schedule=...)`` does that itself.
    With ``steps_per_generation`` or ``num_iterations`` larger than a step, rollouts have the cap of
    the step that generated them. Evaluation runs under the cap of the step just done.

    Args:
        schedule: the cap at each 0-based step; a resumed run continues it.
    """

    def __init__(self, schedule: LengthSchedule) -> None:
        self.schedule = schedule
        self.trainer: Any = None
        self.caps: list[int] = []
        """The caps that were set, one a step."""

    def bind(self, trainer: Any) -> SiriLengthCallback:
        """Ties the callback to ``trainer`` and adds it there; returns itself.

        Raises:
            ValueError: ``loss_type="dr_grpo"`` with a cap that moves (TRL divides by it);
                ``max_completion_length`` below the schedule's largest cap; truncated completions
                masked out, whose reward, nearly always 0, is what shortens answers.
        """
        top, args = self.schedule.max_len, trainer.args
        moves = self.schedule.shape != "constant" and self.schedule.min_len != top
        if trainer.loss_type == "dr_grpo" and moves:
            raise ValueError(
                "loss_type: got 'dr_grpo' with a cap that moves: it divides by "
                "max_completion_length, so that the size of the update would swing with the cap; "
                "takes 'dapo', or any other loss_type, or shape='constant'"
            )
        if args.max_completion_length < top:
            raise ValueError(
                f"max_completion_length: got {args.max_completion_length}; takes at least the "
                f"schedule's max_len, {top}"
            )
        if trainer.mask_truncated_completions:
            raise ValueError(
                "mask_truncated_completions: got True; takes False: SIRI compresses through "
                "truncated completions, nearly all of which have reward 0"
            )
        self.trainer = trainer
        trainer.add_callback(self)
        self._set(self.schedule(trainer.state.global_step))
        return self

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer is None:
            raise RuntimeError("SiriLengthCallback: call bind(trainer) before training")
        cap = self.schedule(state.global_step)
        self._set(cap)
        self.caps.append(cap)
        self.trainer._metrics["train"]["siri/cap"].append(float(cap))

    def _set(self, cap: int) -> None:
        trainer = self.trainer
        trainer.max_completion_length = cap
        if trainer.use_vllm:
            trainer.vllm_generation.max_completion_length = cap
        else:
            trainer.generation_config.max_new_tokens = cap
            trainer.generation_kwargs["max_new_tokens"] = cap


def length_capped_reward(
    end_token_ids: int | Sequence[int],
    *,
    verifier: Verifier,
    answer_column: str = "answer",
    think: ThinkMode = "required",
    truncated: TruncatedMode = "grade",
    tokenizer: Any = None,
) -> Callable[..., list[float | None]]:
    """SIRI's reward (arXiv 2509.25176, section 3.1) as a reward function of TRL.

    1 if the answer in the completion is right, else 0, None if it could not be scored (TRL then
    leaves it out). A completion has finished if it ends with an end token, whatever its length.

    Args:
        end_token_ids: every id that ends a completion (``tokenizer.eos_token_id``, and those of the
            model's generation config).
        verifier: grades answers, see ``siri_train.rewards.make_verifier``.
        answer_column: the dataset's column of gold answers.
        think: where the answer may stand, see ``siri_train.rewards.final_answer``.
        truncated: what one that has not finished earns, see
            ``siri_train.rewards.length_capping_reward``.
        tokenizer: decodes the completions anew. Needed where ``</think>`` is a special token of it:
            TRL's own texts lack those.

    Raises:
        ValueError: no end token; when called, a dataset without that column.
    """
    ends = {end_token_ids} if isinstance(end_token_ids, int) else set(end_token_ids)
    if not ends:
        raise ValueError("end_token_ids: got none; takes at least one id")

    def siri(
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if answer_column not in columns:
            known = sorted(k for k, v in columns.items() if isinstance(v, list))
            raise ValueError(f"answer_column: got {answer_column!r}; the dataset has {known}")
        if tokenizer is not None:
            completions = decode_responses(tokenizer, completion_ids)
        responses = [
            Response(
                text if isinstance(text, str) else text[-1]["content"],
                "stop" if len(ids) and int(ids[-1]) in ends else "length",
            )
            for text, ids in zip(completions, completion_ids, strict=True)
        ]
        golds = [str(gold) for gold in columns[answer_column]]
        grades = length_capping_reward(
            responses, golds, verifier=verifier, think=think, truncated=truncated
        )
        if log_metric is not None:
            cut = [g for g in grades if g.truncated]
            log_metric("siri/truncated", len(cut) / len(grades))
            if cut:
                log_metric("siri/truncated_correct", sum(g.correct for g in cut) / len(cut))
            log_metric("siri/correct", sum(g.correct for g in grades) / len(grades))
        return [None if g.reward != g.reward else g.reward for g in grades]

    return siri


class SiriGRPOTrainer(GRPOTrainer):
    """TRL's ``GRPOTrainer`` with :func:`group_advantages` and :func:`policy_loss` inside.

    Rollouts, rewards, logging, checkpoints and options stay TRL's; the loss runs over packed
    tokens. Advantages are TRL's but for a constant group, where they are exactly 0. Its LM head
    runs on ``linear_logprob`` within ``siri_kernels.integrations.trl.fused_lm_head()``.

    Args:
        *args, **kwargs: of ``GRPOTrainer``.
        length_schedule: the moving cap; None: ``max_completion_length`` throughout.

    Raises:
        ValueError: an option whose loss would be another one than TRL's, naming it and why.
    """

    def __init__(
        self, *args: Any, length_schedule: LengthSchedule | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        a = self.args
        self._options = GrpoOptions(
            self.loss_type,
            self.epsilon_low,
            self.epsilon_high,
            self.importance_sampling_level,
            a.delta,
            self.beta,
            a.use_bias_correction_kl,
            (a.sapo_temperature_pos, a.sapo_temperature_neg),
            (a.vespo_k_pos, a.vespo_lambda_pos),
            (a.vespo_k_neg, a.vespo_lambda_neg),
        )
        self._refuse()
        self._all_rewards: torch.Tensor | None = None
        self.length_callback: SiriLengthCallback | None = None
        if length_schedule is not None:
            self.length_callback = SiriLengthCallback(length_schedule).bind(self)

    def _refuse(self) -> None:
        self._options.check("SiriGRPOTrainer")
        refused = {
            "top_entropy_quantile": (self.top_entropy_quantile < 1, "it masks the objective alone"),
            "use_adaptive_entropy": (
                self.use_adaptive_entropy,
                "its controller lies in TRL's loss",
            ),
            "output_router_logits": (
                self.aux_loss_enabled,
                "the auxiliary loss lies in TRL's loss",
            ),
            "multi_objective_aggregation": (
                self.multi_objective_aggregation != "sum_then_normalize",
                "advantages are those of the weighted sum of rewards",
            ),
        }
        for name, (bad, why) in refused.items():
            if bad:
                raise ValueError(f"{name}: this setting is not taken by SiriGRPOTrainer: {why}")

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._all_rewards = super()._calculate_rewards(*args, **kwargs)  # [all rows, functions]
        return self._all_rewards

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        out = super()._generate_and_score_completions(inputs)
        each = self._all_rewards
        assert each is not None
        rewards = (each * self.reward_weights.to(each.device)).nansum(1)
        rewards = rewards.masked_fill(each.isnan().all(1), torch.nan)
        size = self.num_generations if self.model.training else self.num_generations_eval
        scale = _SCALES[self.scale_rewards]
        advantages = group_advantages(rewards, size, scale=scale, eps=1e-4).advantages
        rows = len(out["advantages"])
        first = self.accelerator.process_index * rows
        out["advantages"] = advantages[first : first + rows].to(out["advantages"].dtype)
        return out

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        completion_mask = inputs["completion_mask"]
        mask = completion_mask * inputs.get("tool_mask", 1)
        logprobs, entropy, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], completion_mask], dim=1),
            completion_mask.size(1),
            compute_entropy=True,
            **{key: inputs[key] for key in _MODEL_INPUTS if inputs.get(key) is not None},
        )
        mask = mask.bool()
        old = inputs.get("old_per_token_logps")
        train = self.model.training
        accumulated = self.current_gradient_accumulation_steps if train else 1
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        advantages = self._on_policy(inputs, logprobs.detach(), old, mask)
        out = grpo_loss(
            self._options,
            logprobs,
            mask,
            advantages,
            old=old,
            ref=inputs.get("ref_per_token_logps"),
            weights=inputs["importance_sampling_ratio"] if corrected else None,
            denominator=self._denominator(inputs, len(mask), accumulated),
        )
        loss = out.loss / accumulated if self.loss_type == "bnpo" else out.loss
        if self._entropy_bonus_enabled:
            mean = (entropy * mask).sum() / mask.sum().clamp(min=1) / accumulated
            loss = loss - self.entropy_coef * mean
        self._record("train" if train else "eval", out.metrics, entropy.detach(), mask)
        return loss

    def _denominator(self, inputs: Any, rows: int, accumulated: int) -> float | torch.Tensor | None:
        if self.loss_type == "bnpo":
            return None
        if self.loss_type in ("dapo", "cispo", "vespo"):
            tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
            share = accumulated / self.args.steps_per_generation if self.model.training else 1.0
            return tokens * share
        lengths = self.max_completion_length if self.loss_type == "dr_grpo" else 1
        return float(rows * accumulated * lengths)

    def _on_policy(
        self, inputs: Any, logprobs: torch.Tensor, old: torch.Tensor | None, mask: torch.Tensor
    ) -> torch.Tensor:
        """The advantages, 0 for sequences that ``off_policy_mask_threshold`` silences."""
        advantages = inputs["advantages"]
        if advantages.dim() != 1:
            raise ValueError(
                f"advantages: got shape {list(advantages.shape)}; takes [B], one a completion"
            )
        if self.off_policy_mask_threshold is None:
            return advantages
        sampled = inputs.get("sampling_per_token_logps", logprobs if old is None else old)
        keep = self.get_off_policy_mask(
            advantages=advantages[:, None],
            per_token_logps=logprobs,
            sampling_per_token_logps=sampled,
            mask=mask,
            off_policy_threshold=self.off_policy_mask_threshold,
        )
        return advantages * keep[:, 0]

    def _record(
        self, mode: str, metrics: dict[str, torch.Tensor], entropy: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """TRL's names where it has them, means over all processes' tokens; ours under siri/."""
        tokens = metrics["tokens"].float()
        values = {
            "entropy": (entropy * mask).sum() / tokens.clamp(min=1),
            "siri/ratio_mean": metrics["ratio_mean"],
            "siri/approx_kl": metrics["approx_kl"],
        }
        if self._options.beta:
            values["kl"] = metrics["ref_kl"]
        low, high = metrics["clip_frac_low"], metrics["clip_frac_high"]
        if self.loss_type == "cispo":
            values["siri/clip_high"] = high  # of any advantage
            if "cispo_clip_ratio" in metrics:
                values["cispo_clip_ratio"] = metrics["cispo_clip_ratio"]  # of A > 0, as TRL's
        elif self.loss_type not in ("sapo", "vespo"):
            values["clip_ratio/low_mean"], values["clip_ratio/high_mean"] = low, high
            values["clip_ratio/region_mean"] = low + high
        sums = torch.stack([tokens, *(v.float() * tokens for v in values.values())])
        count, *totals = self.accelerator.reduce(sums, reduction="sum").tolist()
        for name, total in zip(values, totals, strict=True):
            self._metrics[mode][name].append(total / max(count, 1.0))
        largest = self.accelerator.gather(metrics["ratio_max"]).max().item()
        self._metrics[mode]["siri/ratio_max"].append(largest)


_MODEL_INPUTS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes",
    "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip
