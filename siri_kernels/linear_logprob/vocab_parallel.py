"""A head whose vocabulary is sharded over the ranks of a process group.

Each rank holds as many ids of ``weight``, rank r those from ``r * V_local`` on. Hidden states,
targets and incoming gradients are the same on every rank. Forward gathers five numbers a token and
rank, and before that one more where top entries are saved. Backward gathers four of them, and sums
the gradient of ``hidden``. All is added up in the order of the ranks, so that every rank has the
same bits and finds the same tokens within the error bound.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from siri_kernels import _checks as check
from siri_kernels.linear_logprob.online_softmax import LOG_ZERO, SoftmaxState


class Shard(NamedTuple):
    """This rank's place in the group.

    Attributes:
        group: the ``torch.distributed.ProcessGroup``.
        rank: this process's in it.
        size: number of ranks.
    """

    group: Any
    rank: int
    size: int

    @staticmethod
    def of(op: str, group: object) -> Shard:
        """This rank's place in ``group``.

        Raises:
            TypeError: not a process group that this process belongs to; names ``op``.
        """
        if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(
                f"{op}: process_group must be None or a torch.distributed.ProcessGroup that this "
                f"process belongs to; got {check.shown(group)}"
            )
        return Shard(group, dist.get_rank(group), dist.get_world_size(group))

    def local(self, targets: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """``targets`` relative to this rank's first id; those of other ranks are out of range."""
        return targets - self.rank * vocabulary

    def gathered(self, x: torch.Tensor) -> list[torch.Tensor]:
        """``x`` of every rank, in their order."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return parts

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of ``x`` over the ranks, added up in their order."""
        first, *others = self.gathered(x)
        for part in others:
            first += part
        return first

    def merged(
        self,
        state: SoftmaxState,
        is_local: torch.Tensor,
        temperature: float | torch.Tensor = 1.0,
    ) -> SoftmaxState:
        """The state of the softmax over all ranks' ids.

        Args:
            state: over this rank's.
            is_local: [T] bool, tokens whose target is one of this rank's ids.
            temperature: by which the logits of ``state`` have still to be divided.
        """
        target = torch.where(is_local, state.target_logit, 0)
        rows = torch.stack([target, *state[1:], is_local.to(target.dtype)])
        parts = [p.unbind() for p in self.gathered(rows)]
        # One rank has the target (none: it is out of range, and impossible).
        target = torch.stack([p[0] for p in parts]).sum(0)
        found = torch.stack([p[4] for p in parts]).sum(0)
        target = torch.where(found > 0, target, float("-inf"))
        top = torch.stack([p[1] for p in parts]).amax(0)
        shift = top.clamp(min=torch.finfo(top.dtype).min)
        total, dev = torch.zeros_like(top), torch.zeros_like(top)
        for _, part_top, part_total, part_dev, _ in parts:
            step = ((part_top - shift) / temperature).clamp(min=LOG_ZERO)
            scale = step.exp()
            total += part_total * scale
            dev += (part_dev + step * part_total) * scale
        return SoftmaxState(target, top, total, dev)


def is_local(targets: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """[T] bool: targets in 0..vocabulary-1, relative to this rank's first id."""
    return (targets >= 0) & (targets < vocabulary)
