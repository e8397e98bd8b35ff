"""A log-prob head that stays sharded by vocabulary: ranks exchange hidden states, not weights.

Every rank computes its share of the vocabulary for the tokens of all ranks, so the head's weight is
never gathered and its gradient is never reduced. This pays while the response tokens of all ranks'
micro-batches are fewer than the vocabulary. With long rows on many ranks the hidden states are
larger than the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from siri_kernels import LogprobHead, LogprobOutput, linear_logprob
from siri_train import distributed

_IGNORED = -100


class VocabularyParallelHead(LogprobHead):
    """Takes the place of a ``LogprobHead`` in a model whose other weights FSDP2 shards.

    Its weight is a DTensor [V, D]; rank r holds the vocabulary entries from ``r * V / ranks`` on.
    A call with targets is collective: every rank calls it with its own tokens, of any number.

    Args:
        head: the whole head, the same on every rank, without a bias.
        mesh: of one dimension over all ranks.
        device: where this rank computes.

    Raises:
        ValueError: a bias, or a vocabulary that the number of ranks does not divide.
    """

    def __init__(self, head: LogprobHead, mesh: Any, device: torch.device) -> None:
        from torch.distributed.tensor import DTensor, Shard

        ranks, whole = mesh.size(), head.weight
        if head.bias is not None or len(whole) % ranks:
            given = "a head with a bias" if head.bias is not None else f"{len(whole)} tokens"
            raise ValueError(
                f"distributed.vocabulary_parallel_head: needs a head without a bias and a "
                f"vocabulary that the {ranks} ranks divide, got {given}; set it to false"
            )
        mine = whole.detach().chunk(ranks)[mesh.get_local_rank()].to(device, copy=True)
        placed = DTensor.from_local(mine, mesh, [Shard(0)], run_check=False)
        super().__init__(nn.Parameter(placed, requires_grad=whole.requires_grad))
        self.group: Any = mesh.get_group()
        self.ranks: int = ranks
        self.whole: Tensor | None = None

    def forward(  # type: ignore[override]
        self, hidden: Tensor, targets: Tensor | None = None, **options: Any
    ) -> Any:
        """Log-prob and entropy of the targets; logits without targets, inside :meth:`gathered`.

        Args:
            hidden: [T, D] of this rank's tokens.
            targets: [T] int64, or None.
            **options: of ``siri_kernels.linear_logprob``.

        Returns:
            ``LogprobOutput`` of [T], or logits [T, V].

        Raises:
            RuntimeError: no targets, outside of :meth:`gathered`.
        """
        if targets is None:
            if self.whole is None:
                raise RuntimeError("VocabularyParallelHead: logits need fsdp.gathered()")
            return F.linear(hidden, self.whole.to(hidden.dtype))
        sizes = distributed.gather(len(targets))  # host numbers: nothing waits for the GPU
        rank, most = distributed.rank(), max(sizes)
        everyone = _Gather.apply(hidden, most, sizes[rank], rank, self.group)
        padded = F.pad(targets, (0, most - len(targets)), value=_IGNORED)
        wanted = _all(padded, self.group)
        weight = self.placed.to_local().to(hidden.dtype)
        if weight.requires_grad:
            # Complete on this rank, while the loss is scaled for FSDP's mean over the ranks.
            weight.register_hook(lambda gradient: gradient / self.ranks)
        out = linear_logprob(
            everyone, weight, wanted, ignore_index=_IGNORED, process_group=self.group, **options
        )
        mine = (most, sizes[rank], rank, self.group)
        return LogprobOutput(*(_Own.apply(x, *mine) for x in (out.logprobs, out.entropy)))

    @property
    def placed(self) -> Any:
        """``weight``, a DTensor."""
        return self.weight

    @contextmanager
    def gathered(self, dtype: torch.dtype | None) -> Iterator[None]:
        """The whole weight on every rank inside the body; collective at its beginning.

        Args:
            dtype: of the copy; None: as the weight.
        """
        local = self.placed.detach().to_local()
        self.whole = _all(local if dtype is None else local.to(dtype), self.group)
        try:
            yield
        finally:
            self.whole = None


def shard_head(model: Any, mesh: Any, device: torch.device) -> nn.Parameter:
    """Put a :class:`VocabularyParallelHead` in the place of a model's head.

    Args:
        model: a transformers model, changed in place.
        mesh: of one dimension over all ranks.
        device: where this rank computes.

    Returns:
        The sharded weight, a DTensor [V, D].

    Raises:
        ValueError: the head is tied to the embedding, or cannot be sharded.
    """
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        raise ValueError(
            "distributed.vocabulary_parallel_head: this model's head is tied to its embedding, "
            "which every rank gathers anyway; set it to false"
        )
    sharded = VocabularyParallelHead(head, mesh, device)
    model.set_output_embeddings(sharded)
    return sharded.placed


def _all(x: Tensor, group: Any) -> Tensor:
    """The same-sized ``x`` of every rank, one behind the other."""
    everyone = x.new_empty(dist.get_world_size(group) * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(everyone, x.contiguous(), group=group)
    return everyone


def _padded(x: Tensor, most: int) -> Tensor:
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, most - len(x)))


class _Gather(torch.autograd.Function):
    """Gather the tokens of all ranks, padded to ``most`` on each.

    Backward keeps this rank's part; ``linear_logprob`` has summed its gradient over the ranks.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, most: int, count: int, rank: int, group: Any) -> Tensor:
        ctx.own = slice(rank * most, rank * most + count)
        return _all(_padded(x, most), group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0][ctx.own], None, None, None, None


class _Own(torch.autograd.Function):
    """This rank's part of a gathered tensor; backward gathers the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, most: int, count: int, rank: int, group: Any) -> Tensor:
        ctx.most, ctx.group = most, group
        return x[rank * most : rank * most + count].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _all(_padded(gradients[0], ctx.most), ctx.group), None, None, None, None
