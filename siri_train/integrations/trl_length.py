"""``SiriLengthCallback``: SIRI's moving cap on TRL's ``GRPOTrainer`` (1.16), a cap a rollout."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from siri_train.schedule import LengthSchedule


class SiriLengthCallback(TrainerCallback):
    """Sets the cap of the coming rollout wherever TRL 1.16 reads it, before TRL generates.

    A step of the schedule is a *rollout*, as a step of the paper and of verl is: the first rollout
    has ``schedule(0)``, the next ``schedule(1)``, however many optimiser steps one serves
    (``steps_per_generation``, ``num_iterations``) or several share (``gradient_accumulation_steps``
    larger than ``steps_per_generation``). So ``cycle`` counts rollouts, and no number of steps a
    rollout can make the cap stand still. With TRL's defaults, a rollout a step, both are the same.

    Bound to a trainer, any ``GRPOTrainer``, by :meth:`bind`;
    ``SiriGRPOTrainer(length_schedule=...)`` does that itself. Evaluation runs under the cap of the
    rollout before it. A resumed run continues with the rollout that its step belongs to; TRL does
    not keep that rollout and generates it again. ``siri/cap`` is logged at each step: the cap of
    the rollout it learns from.

    Args:
        schedule: the cap of each 0-based rollout.

    Attributes:
        caps: the caps of the rollouts generated so far in this process, one a rollout.
    """

    def __init__(self, schedule: LengthSchedule) -> None:
        self.schedule = schedule
        self.trainer: Any = None
        self.caps: list[int] = []
        self._first: int | None = None

    def bind(self, trainer: Any) -> SiriLengthCallback:
        """Bind the callback to ``trainer`` and add it there; returns itself.

        Raises:
            ValueError: ``loss_type="dr_grpo"`` with a cap that moves (TRL divides by it);
                ``max_completion_length`` below the schedule's largest cap; truncated completions
                masked out, whose reward, nearly always 0, shortens answers.
        """
        previous, self.trainer = self.trainer, trainer
        try:
            self.check()
            top, args = self.schedule.max_len, trainer.args
            if args.max_completion_length < top:
                raise ValueError(
                    f"max_completion_length: got {args.max_completion_length}; takes at least the "
                    f"schedule's max_len, {top}"
                )
        except ValueError:
            self.trainer = previous
            raise
        trainer.add_callback(self)
        self._set(self.schedule(self._rollout_of(trainer.state.global_step)))
        return self

    def check(self) -> None:
        """Refuse options of the trainer under which the cap would have another effect.

        Raises:
            ValueError: see :meth:`bind`; they may change during a run.
        """
        self.schedule.require_stateless("TRL")
        trainer = self.trainer
        if trainer.loss_type == "dr_grpo" and self._moves():
            raise ValueError(
                "loss_type: got 'dr_grpo' with a cap that moves: it divides by "
                "max_completion_length, so that the size of the update would swing with the cap; "
                "takes 'dapo', or any other loss_type, or shape='constant'"
            )
        if trainer.mask_truncated_completions:
            raise ValueError(
                "mask_truncated_completions: got True; takes False: SIRI compresses through "
                "truncated completions, nearly all of which have reward 0"
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the rollout to continue with; a resumed run continues with that of its step.

        Args:
            args: TRL's, not used.
            state: TRL's, not used.
            control: TRL's, not used.
            **kwargs: TRL's, not used.
        """
        if self.trainer is not None:
            self._first = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the cap of the rollout that this step begins with or continues, and log it.

        Args:
            args: TRL's, not used.
            state: TRL's, not used.
            control: TRL's, not used.
            **kwargs: TRL's, not used.

        Raises:
            RuntimeError: the callback has no trainer yet.
        """
        if self.trainer is None:
            raise RuntimeError("SiriLengthCallback: call bind(trainer) before training")
        self._prepare()
        self.trainer._metrics["train"]["siri/cap"].append(float(self.caps[-1]))

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the cap of a rollout that begins between two micro-batches of a step, and log it.

        Args:
            args: TRL's, not used.
            state: TRL's, not used.
            control: TRL's, not used.
            **kwargs: TRL's, not used.
        """
        before = len(self.caps)
        self._prepare()
        if len(self.caps) > before:
            self.trainer._metrics["train"]["siri/cap"].append(float(self.caps[-1]))

    def _prepare(self) -> None:
        """Set the next rollout's cap, if TRL generates before the coming micro-batch."""
        trainer = self.trainer
        if self._first is None:
            self._first = self._rollout_of(trainer.state.global_step) - len(self.caps)
        every = trainer.args.steps_per_generation * trainer.num_iterations
        # TRL's own condition, in _prepare_inputs.
        if trainer._step % every == 0 or trainer._buffered_inputs is None:
            cap = self.schedule(self._first + len(self.caps))
            self._set(cap)
            self.caps.append(cap)

    def _rollout_of(self, step: int) -> int:
        """The 0-based rollout from which the micro-batch that begins ``step`` learns."""
        args = self.trainer.args
        every = args.steps_per_generation * self.trainer.num_iterations
        return int(step * args.gradient_accumulation_steps // every)

    def _moves(self) -> bool:
        return self.schedule.lowest != self.schedule.max_len

    def _set(self, cap: int) -> None:
        trainer = self.trainer
        trainer.max_completion_length = cap
        if trainer.use_vllm:
            trainer.vllm_generation.max_completion_length = cap
        else:
            trainer.generation_config.max_new_tokens = cap
            trainer.generation_kwargs["max_new_tokens"] = cap
