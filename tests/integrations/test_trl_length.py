"""The moving cap where a rollout serves several steps of TRL, or several rollouts one step."""

from __future__ import annotations

import pytest
import torch

from siri_train.schedule import LengthSchedule

trl = pytest.importorskip("trl", reason="TRL 1.16 is not installed (make test-peers)")
pytest.importorskip("datasets", reason="TRL's GRPOTrainer needs datasets")

from siri_train.integrations.trl import SiriGRPOTrainer, SiriLengthCallback  # noqa: E402

from .test_trl import trainer_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Unfeasible length")  # is what a cap is here
TOP = 12
# num_iterations, steps_per_generation, gradient_accumulation_steps
STRIDES = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (1, 2, 1), (2, 2, 2), (3, 1, 2), (1, 1, 2), (1, 6, 4)]


def run(base, folder, schedule, stride, steps, resume=None, **options):
    """Lengths of the rollouts, the caps logged at each step and the length each step learnt from.

    Every completion is as long as the cap allows.
    """
    iterations, generation, accumulation = stride
    rollouts, learnt = [], []

    def reward(completion_ids, **_):
        rollouts.append(max(len(ids) for ids in completion_ids))
        return [float(sum(ids) % 5) for ids in completion_ids]

    class Watching(base):
        def _compute_loss(self, model, inputs):
            learnt.append((self.state.global_step, inputs["completion_ids"].shape[1]))
            return super()._compute_loss(model, inputs)

    settings = {
        "max_steps": steps, "num_iterations": iterations, "steps_per_generation": generation,
        "gradient_accumulation_steps": accumulation, "max_completion_length": TOP,
        "generation_kwargs": {"min_new_tokens": TOP}, **options,
    }  # fmt: skip
    torch.manual_seed(0)
    if base is SiriGRPOTrainer:
        trainer = trainer_of(Watching, folder, reward, schedule, **settings)
        callback = trainer.length_callback
    else:
        trainer = trainer_of(Watching, folder, reward, **settings)
        callback = SiriLengthCallback(schedule).bind(trainer)
    trainer.train(resume_from_checkpoint=resume)
    logged = [row["siri/cap"] for row in trainer.state.log_history if "siri/cap" in row]
    return rollouts, logged, learnt, callback


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("base", [trl.GRPOTrainer, SiriGRPOTrainer])
def test_each_rollout_has_the_next_cap_and_each_step_logs_its_rollouts(tmp_path, base, stride):
    schedule = LengthSchedule("cosine", TOP, 4, 4)  # 12, 8, 4, 8, ...
    iterations, generation, accumulation = stride
    steps = max(4, 5 * iterations * generation // accumulation)
    rollouts, logged, learnt, callback = run(base, tmp_path, schedule, stride, steps)
    micro = steps * accumulation
    wanted = [schedule(i) for i in range(-(-micro // (iterations * generation)))]
    assert rollouts == wanted == callback.caps and len(set(rollouts)) == 3
    assert len(learnt) == micro and len(logged) == steps
    for step, cap in enumerate(logged):
        seen = [length for at, length in learnt if at == step]
        assert min(seen) <= cap <= max(seen)
        if len(set(seen)) == 1:
            assert cap == seen[0]


def test_a_cycle_of_as_many_steps_as_a_rollout_serves_moves_all_the_same(tmp_path):
    """At the steps where rollouts begin this schedule, read by steps, has one value."""
    for stride in (2, 4, 8):
        schedule = LengthSchedule("stair", TOP, 4, stride)
        rollouts, _, _, _ = run(trl.GRPOTrainer, tmp_path, schedule, (stride, 1, 1), 2 * stride + 1)
        assert {schedule(step) for step in range(0, 40, stride)} == {4}
        assert rollouts == [schedule(i) for i in range(3)]


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 1), (1, 1, 2)])
def test_a_resumed_run_goes_on_with_its_rollout(tmp_path, stride):
    schedule = LengthSchedule("cosine", TOP, 4, 8)
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole, caps, _, _ = run(SiriGRPOTrainer, tmp_path, schedule, stride, 6, **saving)
    path = str(tmp_path / "checkpoint-3")
    rest, again, _, _ = run(SiriGRPOTrainer, tmp_path, schedule, stride, 6, path)
    # A rollout in use when the run was saved is generated again, under its own cap.
    first = 3 * stride[2] // (stride[0] * stride[1])
    assert rest[0] == schedule(first) == whole[first]
    assert again[:3] == caps[:3]  # of the log that the checkpoint carries
    assert rest == [schedule(first + i) for i in range(len(rest))]
