"""The weight's 8-bit copy: what it holds, and that it is never an old one."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn

from siri_kernels import linear_logprob, release_screens
from siri_kernels.linear_logprob.screen import compiled, kept, quantise
from siri_kernels.linear_logprob.screen.rotation import rotated, rotated_width

from .helpers import cpu_mesh
from .screen_inputs import language_head, screen_all


@pytest.fixture(autouse=True)
def nothing_kept():
    release_screens()
    yield
    release_screens()
    compiled.library.cache_clear()


@pytest.fixture(params=[True, False], ids=["loops in C", "PyTorch's operations"])
def loops(request, monkeypatch):
    if not request.param:
        monkeypatch.setenv(compiled.VARIABLE, "0")
    compiled.library.cache_clear()
    if request.param and compiled.library() is None:
        pytest.skip("no C compiler")


@pytest.mark.parametrize("width", [1, 2, 3, 16, 48, 97, 576, 896, 1021, 1536])
def test_rotations_keep_products_and_spread_outliers(width):
    a, b = torch.randn(20, width), torch.randn(30, width)
    left, right = rotated(a), rotated(b)
    assert left.shape == (20, rotated_width(width)) and rotated_width(width) <= width + 63
    torch.testing.assert_close(left @ right.t(), a @ b.t(), rtol=1e-4, atol=1e-4)
    if width >= 48:
        one = torch.eye(width)[:5]
        assert rotated(one).abs().max() <= 2.5 / math.sqrt(width)


def test_rows_are_rounded_to_half_a_step():
    x = torch.randn(50, 40) * torch.rand(50, 1) * 10
    x[3], x[4, 7] = 0, math.nan
    rows = quantise.quantised(x.clone())
    back = rows.scale[:, None] * rows.codes
    known = torch.ones(50, dtype=torch.bool)
    known[4] = False
    assert ((back - x).abs() <= rows.scale[:, None] * 0.5001)[known].all()
    assert rows.codes[known].abs().amax(1).eq(127).sum() == 48
    torch.testing.assert_close(rows.error[known], (back - x).norm(dim=1)[known])
    assert rows.error[4].isnan() and not rows.codes[3].any()


def test_odd_rows_are_left_to_the_exact_product():
    weight = torch.randn(3000, 64)
    weight[[5, 1700]] *= 1000
    weight[9, 3], weight[10, 4] = math.inf, math.nan
    before = weight.clone()
    copy = quantise.screened_weight(weight, torch.float32)
    assert copy.outliers.tolist() == [5, 9, 10, 1700] and copy.suited
    assert not copy.scale[copy.outliers].any() and copy.mean.isfinite().all()
    assert torch.equal(weight.nan_to_num(), before.nan_to_num())
    assert not quantise.screened_weight(weight * math.nan, torch.float32).suited
    uneven = torch.randn(6000, 64)
    uneven[::3] *= 1000  # more rows than the exact product takes
    assert not quantise.screened_weight(uneven, torch.float32).suited
    zero = quantise.screened_weight(torch.zeros(300, 64), torch.float32)
    assert zero.suited and zero.error == 0


def test_a_fingerprint_changes_with_any_bit(loops):
    weight = torch.randn(700, 33)
    seen = {kept.fingerprint(weight)}
    assert kept.fingerprint(weight.clone()) in seen
    bits = weight.view(torch.int32)
    for _ in range(60):
        row, column = int(torch.randint(700, (1,))), int(torch.randint(33, (1,)))
        bits[row, column] ^= 1 << int(torch.randint(31, (1,)))
        assert kept.fingerprint(weight) not in seen
        seen.add(kept.fingerprint(weight))
    for swapped in (weight.roll(1, 0), weight.roll(1, 1), weight.flip(0), weight.neg()):
        assert kept.fingerprint(swapped) not in seen
    two = weight.clone()
    two[[0, 1]] = two[[1, 0]]
    assert kept.fingerprint(two) not in seen
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert kept.fingerprint(weight.to(dtype)) == kept.fingerprint(weight.to(dtype).clone())


def test_two_changes_do_not_cancel(loops):
    """Pairs that a hash with too few steps would take for nothing."""
    weight = torch.randn(64, 32)
    seen = kept.fingerprint(weight)
    flat = weight.view(torch.int32).view(-1)
    for number in range(0, 512, 2):
        for mask in (0x01400000, 0x80, 1 << 30):
            flat[number + 1] ^= -(2**31)
            flat[number + 64] ^= mask
            assert kept.fingerprint(weight) != seen
            flat[number + 1] ^= -(2**31)
            flat[number + 64] ^= mask
    assert kept.fingerprint(weight) == seen


def changes():
    """Every way to change a parameter, by name."""

    def by_optimiser(head):
        head.weight.grad = torch.randn_like(head.weight)
        torch.optim.SGD(head.parameters(), lr=0.05).step()

    def by_foreach_adam(head):
        head.weight.grad = torch.randn_like(head.weight)
        torch.optim.Adam(head.parameters(), lr=0.05, foreach=True).step()

    def by_copy(head):
        with torch.no_grad():
            head.weight.copy_(torch.randn_like(head.weight))

    def by_data(head):
        head.weight.data.mul_(torch.rand(len(head.weight), 1) + 0.5)

    def by_new_data(head):
        head.weight.data = torch.randn_like(head.weight)

    def by_new_parameter(head):
        head.weight = nn.Parameter(torch.randn_like(head.weight))

    def by_loading(head):
        head.load_state_dict({"weight": torch.randn_like(head.weight)})

    def by_loading_with_assign(head):
        state = {"weight": nn.Parameter(torch.randn_like(head.weight))}
        head.load_state_dict(state, assign=True)

    def by_a_view(head):
        head.weight.detach()[100:9000].normal_()

    def by_numpy(head):
        head.weight.detach().numpy()[17] *= 3

    def by_one_number(head):
        head.weight.data.view(-1)[head.weight.numel() // 2] = 30.0

    def by_set(head):
        with torch.no_grad():
            head.weight.set_(torch.randn_like(head.weight))

    def by_storage(head):
        head.weight.untyped_storage().copy_(torch.randn_like(head.weight).untyped_storage())

    def by_memory_used_again(head):
        shape = head.weight.shape
        head.weight = None
        gc.collect()
        head.weight = nn.Parameter(torch.randn(shape))

    return {name: change for name, change in locals().items() if callable(change)}


@pytest.mark.parametrize("how", sorted(changes()))
def test_no_change_of_the_weight_goes_unseen(how, monkeypatch):
    screen_all(monkeypatch)
    made = []
    genuine = kept.screened_weight

    def counted(*given):
        made.append(given)
        return genuine(*given)

    monkeypatch.setattr(kept, "screened_weight", counted)
    generator = torch.Generator().manual_seed(1)
    hidden, weight, targets, _ = language_head(130, 32, 9000, 14.0, generator)
    head = nn.Linear(32, 9000, bias=False)
    head.weight = nn.Parameter(weight.clone())

    def used():
        linear_logprob(hidden, head.weight, targets, screen="int8", screen_check=False)
        (copy,) = [k.copy for k in kept._kept if k.place[0] == storage(head.weight)]
        fresh = genuine(head.weight.detach(), torch.float32)
        assert torch.equal(copy.codes, fresh.codes) and torch.equal(copy.scale, fresh.scale)

    used()
    used()
    assert len(made) == 1
    changes()[how](head)
    used()
    used()
    assert len(made) == 2


def storage(weight):
    return weight.untyped_storage()._cdata


def test_copies_are_shared_by_tied_weights_and_freed(monkeypatch):
    screen_all(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    hidden, weight, targets, _ = language_head(130, 32, 9000, 14.0, generator)

    def score(w):
        linear_logprob(hidden, w, targets, screen="int8", screen_check=False)

    tied = nn.Parameter(weight)
    score(weight)
    score(tied)
    score(tied.detach())
    assert len(kept._kept) == 1
    score(weight * 2)  # its memory is free at once: the next call drops the copy
    score(weight)
    assert len(kept._kept) == 1
    others = [weight * 1.5, weight * 2, weight * 3]
    for other in others:
        score(other)
    assert len(kept._kept) == kept.MOST_KEPT
    assert release_screens() >= kept.MOST_KEPT * 9000 * 32
    assert not kept._kept and release_screens() == 0


def test_no_more_copies_are_alive_than_are_kept(monkeypatch):
    screen_all(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    hidden, weight, targets, _ = language_head(130, 32, 9000, 14.0, generator)
    alive = weakref.WeakSet()
    most = 0
    genuine = kept.screened_weight

    def counted(*given):
        nonlocal most
        copy = genuine(*given)
        alive.add(copy.codes)
        most = max(most, len(alive))
        return copy

    monkeypatch.setattr(kept, "screened_weight", counted)
    weights = [weight * scale for scale in (1.0, 1.5, 2.0)]
    for one in (*weights, *weights):
        linear_logprob(hidden, one, targets, screen="int8", screen_check=False)
        one.mul_(1.01)
        linear_logprob(hidden, one, targets, screen="int8", screen_check=False)
    assert most == kept.MOST_KEPT


@pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed")
def test_weights_that_fsdp_gathers_anew(tmp_path, monkeypatch):
    from torch.distributed.fsdp import fully_shard

    from siri_kernels import LogprobHead

    screen_all(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    hidden, weight, targets, _ = language_head(130, 32, 9000, 14.0, generator)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        head = LogprobHead(nn.Parameter(weight.clone()))
        fully_shard(head, mesh=cpu_mesh(), reshard_after_forward=True)
        optimiser = torch.optim.SGD(head.parameters(), lr=0.3)
        for _ in range(3):
            out = head(hidden, targets, screen="int8")
            full = head.weight.full_tensor().detach()
            want = linear_logprob(hidden, full, targets)
            torch.testing.assert_close(out.logprobs, want.logprobs, rtol=0, atol=1e-4)
            out.logprobs.sum().backward()
            optimiser.step()
            optimiser.zero_grad()
    finally:
        dist.destroy_process_group()
