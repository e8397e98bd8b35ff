"""SIRI on TRL (1.16): its trainer with our advantages and loss, the moving cap, the reward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import is_peft_model  # type: ignore[import-untyped]
from trl import GRPOTrainer

from siri_kernels import group_advantages
from siri_kernels.integrations._grpo import GrpoOptions, grpo_loss
from siri_train.integrations.trl_length import SiriLengthCallback
from siri_train.integrations.trl_metrics import TrlMetrics
from siri_train.model.think_marks import decode_responses
from siri_train.rewards import (
    Response,
    Verifier,
    grade_responses,
    require_no_cap,
    require_single,
    reward_options,
)
from siri_train.rewards.extract import ThinkMode
from siri_train.rewards.functions import DEFAULT
from siri_train.rewards.grading import TruncatedMode
from siri_train.schedule import LengthSchedule

__all__ = ["SiriGRPOTrainer", "SiriLengthCallback", "length_capped_reward"]

# Options that TRL copies from its arguments into attributes when it is built.
_COPIED = {
    "beta": "beta",
    "epsilon": "epsilon_low",
    "epsilon_high": "epsilon_high",
    "loss_type": "loss_type",
    "importance_sampling_level": "importance_sampling_level",
    "entropy_coef": "entropy_coef",
    "scale_rewards": "scale_rewards",
    "off_policy_mask_threshold": "off_policy_mask_threshold",
    "mask_truncated_completions": "mask_truncated_completions",
    "top_entropy_quantile": "top_entropy_quantile",
    "use_adaptive_entropy": "use_adaptive_entropy",
    "multi_objective_aggregation": "multi_objective_aggregation",
}
# Options that are built into TRL's sampler, head, reference or batches: a later change would reach
# only some of them, or none.
_BUILT_IN = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"),
    *("num_generations", "num_iterations", "steps_per_generation", "reward_weights"),
    *("max_completion_length", "cast_lm_head_to_fp32", "use_vllm"),
)
_LENGTHS = ("max_completion_length", "generation_kwargs")
_SCALES = {"group": "group_std", "batch": "batch_std", "none": "none"}


def length_capped_reward(
    end_token_ids: int | Sequence[int],
    *,
    verifier: Verifier,
    answer_column: str = "answer",
    think: ThinkMode = "required",
    truncated: TruncatedMode = "grade",
    tokenizer: Any = None,
    function: str = DEFAULT,
    options: Mapping[str, Any] | None = None,
    group_size: int = 1,
    length: SiriLengthCallback | None = None,
) -> Callable[..., list[float | None]]:
    """SIRI's reward (arXiv 2509.25176, section 3.1) as a reward function of TRL.

    1 if the answer in the completion is right, else 0 (or what ``function`` gives), None if it
    could not be scored (TRL then leaves it out). A completion has finished if it ends with an end
    token, whatever its length.

    Args:
        end_token_ids: every id that ends a completion (``tokenizer.eos_token_id``, and those of the
            model's generation config).
        verifier: grades answers, see ``siri_train.rewards.make_verifier``.
        answer_column: the dataset's column of gold answers.
        think: where the answer may stand, see ``siri_train.rewards.final_answer``.
        truncated: what one that has not finished earns, see
            ``siri_train.rewards.grade_responses``.
        tokenizer: decodes the completions anew. Needed where ``</think>`` is a special token of it:
            TRL's own texts lack those.
        function: the reward function, a name in ``siri_train.rewards.REWARDS``.
        options: of that function, by name.
        group_size: ``num_generations``, for functions that compare the responses of a group; a
            process must then hold whole groups.
        length: the run's cap, for functions that read it.

    Raises:
        ValueError: no end token; an unknown function or option; a function that compares responses
            with a group size of 1, or reads the cap without ``length``; when called, a dataset
            without that column.
    """
    settings = reward_options(function, options or {})
    if length is None:
        require_no_cap(function, settings, "length")
    if group_size == 1:
        require_single(function)
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
                tokens=len(ids),
            )
            for text, ids in zip(completions, completion_ids, strict=True)
        ]
        golds = [str(gold) for gold in columns[answer_column]]
        grades = grade_responses(
            responses,
            golds,
            verifier=verifier,
            think=think,
            truncated=truncated,
            function=function,
            options=options,
            group_size=group_size,
            questions=list(map(str, columns["prompts"])) if "prompts" in columns else None,
            cap=length.caps[-1] if length is not None and length.caps else None,
            step=getattr(columns.get("trainer_state"), "global_step", None),
        )
        if log_metric is not None:
            stopped = [g for g in grades if g.truncated]  # by the cap
            log_metric("siri/truncated", len(stopped) / len(grades))
            if stopped:
                right = sum(g.correct for g in stopped)
                log_metric("siri/truncated_correct", right / len(stopped))
            log_metric("siri/correct", sum(g.correct for g in grades) / len(grades))
        return [None if g.reward != g.reward else g.reward for g in grades]

    return siri


class SiriGRPOTrainer(GRPOTrainer):
    """TRL's ``GRPOTrainer`` with :func:`group_advantages` and :func:`policy_loss`.

    Rollouts, rewards, logging, checkpoints and options stay TRL's; the loss runs over packed
    tokens. Advantages are TRL's but for a constant group, where they are exactly 0. Its LM head
    runs on ``linear_logprob`` within ``siri_kernels.integrations.trl.fused_lm_head()``.

    Options are read at each step where TRL reads them, so that a callback may anneal them:
    ``trainer.beta``, ``trainer.epsilon_low``, ``trainer.loss_type``, ``trainer.args.delta``. A
    change of the arguments that TRL has copied (``args.beta``, ``args.epsilon``, ...), which TRL
    itself ignores, is carried over to the trainer. What TRL has built into its sampler and its head
    (``temperature``, ``top_p``, ``num_iterations``, ...) cannot change during a run: refused.

    Args:
        args: of ``GRPOTrainer``.
        kwargs: of ``GRPOTrainer``.
        length_schedule: the moving cap; None: ``max_completion_length`` throughout.

    Raises:
        ValueError: an option whose loss would be another one than TRL's, naming it and why; also
            in the middle of a run, before the step that would use it.
    """

    def __init__(
        self, *args: Any, length_schedule: LengthSchedule | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._seen_args = {name: getattr(self.args, name) for name in _COPIED}
        self._built_in = self._settings_built_in()
        self._options()
        self._refuse()
        self._all_rewards: torch.Tensor | None = None
        self.length_callback: SiriLengthCallback | None = None
        if length_schedule is not None:
            self.length_callback = SiriLengthCallback(length_schedule).bind(self)

    def _options(self) -> GrpoOptions:
        """Checked options as they are now."""
        a = self.args
        options = GrpoOptions(
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
        options.check("SiriGRPOTrainer")
        return options

    def _refuse(self) -> None:
        a = self.args
        refused = {
            "top_entropy_quantile": (
                self.top_entropy_quantile < 1,
                self.top_entropy_quantile,
                "it masks the objective alone; set top_entropy_quantile=1.0",
            ),
            "use_adaptive_entropy": (
                self.use_adaptive_entropy,
                True,
                "its controller lies in TRL's loss; set use_adaptive_entropy=False and a fixed "
                "entropy_coef",
            ),
            "multi_objective_aggregation": (
                self.multi_objective_aggregation != "sum_then_normalize",
                self.multi_objective_aggregation,
                "advantages are those of the weighted sum of rewards; set "
                "multi_objective_aggregation='sum_then_normalize'",
            ),
        }
        for name, (bad, got, why) in refused.items():
            if bad:
                raise ValueError(
                    f"{name}: got {got!r}; this setting is not taken by SiriGRPOTrainer: {why}"
                )
        if self.beta and self.ref_model is None and not is_peft_model(self.model):
            raise ValueError(
                f"beta: got {self.beta}, raised from 0 during the run: TRL builds the reference "
                "model only when beta is above 0 at the start; start with a small beta, such as "
                f"GRPOConfig(beta=1e-6), and keep it above 0 (it was {a.beta} in the arguments)"
            )
        callback = getattr(self, "length_callback", None)
        if callback is not None:
            callback.check()

    def _settings_built_in(self) -> dict[str, Any]:
        """Values of :data:`_BUILT_IN`, copied: a dict may be changed in place."""
        found = {f"args.{name}": getattr(self.args, name, None) for name in _BUILT_IN}
        found["trainer.temperature"] = self.temperature
        found["trainer.num_iterations"] = self.num_iterations
        return copy.deepcopy(found)

    def _refuse_late_changes(self) -> None:
        now = self._settings_built_in()
        for name, was in self._built_in.items():
            if now[name] != was:
                short = name.partition(".")[2]
                moving = "; a cap that moves is length_schedule's" if short in _LENGTHS else ""
                raise ValueError(
                    f"{short}: got {now[name]!r} ({name}) during the run, it was {was!r} when the "
                    "trainer was built, and TRL goes on with that or follows in part; build "
                    f"another trainer with {short}={now[name]!r}{moving}"
                )

    def _follow_arguments(self) -> None:
        """Carries changed arguments over to the attributes that TRL made of them."""
        for name, attribute in _COPIED.items():
            value = getattr(self.args, name)
            if value != self._seen_args[name]:
                self._seen_args[name] = value
                setattr(self, attribute, value)
                if self.args.epsilon_high is None and name in ("epsilon", "epsilon_high"):
                    self.epsilon_high = self.args.epsilon

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        self._refuse_late_changes()
        self._follow_arguments()
        self._options()
        self._refuse()
        return super()._prepare_inputs(generation_batch)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._all_rewards = super()._calculate_rewards(
            *args, **kwargs
        )  # [all completions, functions]
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
        here = len(out["advantages"])
        first = self.accelerator.process_index * here
        out["advantages"] = advantages[first : first + here].to(out["advantages"].dtype)
        return out

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        options = self._options()
        completion_mask = inputs["completion_mask"]
        mask = completion_mask * inputs.get("tool_mask", 1)
        logprobs, entropy, router_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], completion_mask], dim=1),
            completion_mask.size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{key: inputs[key] for key in _MODEL_INPUTS if inputs.get(key) is not None},
        )
        mask = mask.bool()
        old, ref = inputs.get("old_per_token_logps"), inputs.get("ref_per_token_logps")
        if options.beta and ref is None:
            raise ValueError(
                f"beta: got {options.beta}, but the rollout in use was made with beta=0 and has no "
                "reference log-probs; change beta from or to 0 only where a rollout begins"
            )
        train = self.model.training
        accumulated = self.current_gradient_accumulation_steps if train else 1
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        weights = inputs["importance_sampling_ratio"] if corrected else None
        advantages = self._on_policy(inputs, logprobs.detach(), old, mask)
        out = grpo_loss(
            options,
            logprobs,
            mask,
            advantages,
            old=old,
            ref=ref,
            weights=weights,
            denominator=self._denominator(inputs, len(mask), accumulated),
        )
        loss = out.loss / accumulated if self.loss_type == "bnpo" else out.loss
        metrics = TrlMetrics(self, "train" if train else "eval")
        metrics.tokens(options, out.metrics, entropy.detach(), mask)
        metrics.clipped(options, logprobs.detach(), old, inputs["advantages"], mask, weights)
        if self._entropy_bonus_enabled or self.entropy_coef:
            # As TRL's, the loss before the bonus, of this micro-batch alone.
            whole = self.loss_type in ("dapo", "cispo", "vespo", "bnpo")
            metrics.entropy_bonus(out.loss if whole else out.loss * accumulated)
            mean = (entropy * mask).sum() / mask.sum().clamp(min=1) / accumulated
            loss = loss - self.entropy_coef * mean
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * router_loss / accumulated
            metrics.router(router_loss)
        return loss

    def _denominator(
        self, inputs: Any, sequences: int, accumulated: int
    ) -> float | torch.Tensor | None:
        if self.loss_type == "bnpo":
            return None
        if self.loss_type in ("dapo", "cispo", "vespo"):
            tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
            share = accumulated / self.args.steps_per_generation if self.model.training else 1.0
            return tokens * share
        lengths = self.max_completion_length if self.loss_type == "dr_grpo" else 1
        return float(sequences * accumulated * lengths)

    def _on_policy(
        self, inputs: Any, logprobs: torch.Tensor, old: torch.Tensor | None, mask: torch.Tensor
    ) -> torch.Tensor:
        """The advantages, 0 for sequences that ``off_policy_mask_threshold`` masks."""
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


_MODEL_INPUTS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes",
    "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip
