"""A head sharded by vocabulary over two processes gives what the whole head gives in one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from siri_kernels import linear_logprob, take_backward_stats
from siri_kernels.linear_logprob import api

from .helpers import gradients, leave_process_group, leaves, two_processes
from .interpreter import INTERPRETED
from .test_linear_logprob_sparse import relative, zipf_head

RANKS = 2


def outcome(inputs, targets, up, options, group=None):
    there = leaves(*inputs)
    extra = {"bias": there[2]} if len(there) > 2 else {}
    out = linear_logprob(*there[:2], targets, process_group=group, **extra, **options)
    take_backward_stats()
    grads = gradients(out, there, up)
    return [*(x.detach() for x in out), *grads], float(take_backward_stats().dense_row_frac)


def worker(rank, folder, cases):
    # Top entries in vocabularies that the interpreter can afford, for the portable backend too.
    api.entries_to_save = lambda v, tail, needed: 32 if tail and needed else 0
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    try:
        for case in range(cases):
            (hidden, *parts), targets, up, options = torch.load(f"{folder}/{case}.pt")
            mine = [x.chunk(RANKS)[rank] for x in parts]
            result = outcome([hidden, *mine], targets, up, options, dist.group.WORLD)
            torch.save(result, f"{folder}/{case}.{rank}.pt")
    finally:
        leave_process_group()


def problem(backend, dtype, tail, whole_options):
    vocabulary, tokens = (100, 14) if backend == "triton" else (3000, 40)
    hidden, weight, targets = zipf_head(tokens, vocabulary, 0.5, dtype)
    inputs, options = [hidden, weight], {"tail": tail, "backend": backend}
    if whole_options:
        bias = torch.randn(vocabulary)
        bias[-5:] = -torch.inf  # as a vocabulary that was filled up has it
        inputs.append(bias.to(dtype))
        targets %= vocabulary - 5
        options["temperature"] = torch.rand(tokens) + 0.5
    targets[1], targets[2], targets[3] = 0, vocabulary // 2, -100
    up = torch.randn(tokens), 0.1 * torch.randn(tokens)
    up[0][5], up[1][5] = 0, 0
    return inputs, targets, up, options


def check(folder, backend, cases):
    """Each case: dtype, tail, and whether there are bias and temperatures."""
    problems = [problem(backend, *case) for case in cases]
    for number, case in enumerate(problems):
        torch.save(case, folder / f"{number}.pt")
    two_processes(worker, folder, len(cases))
    for number, (inputs, targets, up, options) in enumerate(problems):
        results = [torch.load(folder / f"{number}.{rank}.pt") for rank in range(RANKS)]
        first, second = (result[0] for result in results)
        for a, b in zip(first[:3], second[:3], strict=True):  # values, gradient of hidden
            assert torch.equal(a, b), "every rank has the same bits"
        parts = zip(first[3:], second[3:], strict=True)
        got = [*first[:3], *(torch.cat(part) for part in parts)]
        options, tail = {**options, "backend": "reference"}, options["tail"]
        exact_up = [u.double() for u in up]
        there = leaves(*(x.double() for x in inputs))
        extra = {"bias": there[2]} if len(there) > 2 else {}
        out = linear_logprob(*there[:2], targets, **extra, **options)
        want = [*out, *gradients(out, there, exact_up)]
        for mine, true in zip(got[:2], want[:2], strict=True):
            torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5)
        dtype = inputs[0].dtype
        rounding = 1e-5 if dtype == torch.float32 else 4e-3
        for mine, true in zip(got[2:], want[2:], strict=True):
            assert mine.dtype == dtype and relative(mine, true) <= tail + rounding
        assert (got[2][3] == 0).all() and (got[2][5] == 0).all()
        dense = [result[1] for result in results]
        assert dense[0] == dense[1] and (dense[0] == 1 if tail == 0 else dense[0] < 1)


@pytest.mark.skipif(INTERPRETED, reason="runs without the interpreter")
def test_portable(tmp_path):
    single, half = torch.float32, torch.bfloat16
    cases = [(single, 1e-2, False), (single, 1e-2, True), (half, 1e-2, True), (single, 0.0, True)]
    check(tmp_path, "portable", cases)
