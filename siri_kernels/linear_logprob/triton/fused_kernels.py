"""Hopper: the head's product and the online softmax in one persistent kernel (Gluon).

One program a multiprocessor: a producer warp copies tiles into a ring of shared memory, two
warpgroups own 64 of 128 rows each and share every tile of the weight. While one updates its online
softmax from logits in registers, the other multiplies. Logits leave the chip only where a tile has
an entry of a row that may be saved: those 256 logits go to ``scratch``, and the join
(:mod:`siri_kernels.linear_logprob.triton.fused_join`) takes the entries from there in id order.
Nothing is atomic: runs repeat bit for bit. A row is a token's.

A work item is 128 rows times a split of the vocabulary (``tiles_each`` tiles of ``IDS`` ids). The
state of a row stays in registers over a split. Units of the states are exponents of two after the
temperature; logits in ``scratch`` are raw products.

With CLUSTER 2 a work item has 256 rows, 128 of each of two programs, and one copy brings each tile
of the weight to both of them (multicast): half the reads of the L2 cache.

The ring: step ``turn`` of a program uses slot ``turn % STAGES``. ``full`` of a slot expects one
arrival and the bytes of three copies; ``empty`` one arrival of each warpgroup. A slot is released
when the products that read it are done: in the next step, where one product may be in flight.
In a cluster ``free`` of the first program's slot expects one arrival of each producer, made when
its own slot is empty.
"""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from siri_kernels.linear_logprob.triton.fused_logits import (
    LARGE,
    LEAST,
    at_least,
    capped,
    exp2,
    quarters,
    store_quarters,
    threads,
)

try:
    from triton.experimental.gluon.language.nvidia.hopper import cluster
except ImportError:  # Triton 3.6
    cluster = None

copy_in = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # renamed in 3.9

GROUP = 16  # row blocks that go through the vocabulary together, whose weight tiles stay in the L2
# Measured on an H200: a slot more helps with top entries (14.0 ms for 14.5), not without them (11.5
# for 11.3).
STAGES, STAGES_TOP_ENTRIES = 3, 4
# Registers a thread of the two warpgroups and of the producer: 2 * 240 + 24 fit three of 168.
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 240, 24
# Whether programs can share tiles. Before Triton 3.8 an arrival at another program's barrier goes
# to one's own, and only the first warps meet at a cluster's barrier: they would wait for ever.
CLUSTERS = hasattr(cluster, "barrier")
_meet: Any = getattr(cluster, "barrier", None)
# A row's maximum before its first logit.
LOWEST = gl.constexpr(-1.0e30)
NO_ROW = gl.constexpr(1.0e30)  # the bound of rows that are not there: nothing of them is saved

SIZES = [
    "rows", "vocabulary", "width", "row_blocks", "first_tile", "splits", "tiles_each", "stride",
]  # fmt: skip
POINTERS = ["targets", "floors", "part_max", "part_sum", "part_dev", "part_bits", "target_logit"]
ALIGNED = ["scratch", "bias"]  # at 16 bytes, for wide loads and stores
NUMBERS = ["scale", "masked", "log2_eps", "softcap", "inverse_softcap"]


@gluon.jit
def _item(item, row_blocks, splits, GROUP: gl.constexpr):
    """Row block and split of a work item."""
    per_group = GROUP * splits
    group = item // per_group
    first = group * GROUP
    height = gl.minimum(row_blocks - first, GROUP)
    within = item % per_group
    return first + within % height, within // height


@gluon.constexpr_function
def _logits(IDS, CLUSTER):
    """The layout of a tile of logits, whose rows the programs of a cluster share."""
    shared = {"cga_layout": [[1, 0]]} if CLUSTER > 1 else {}
    return gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, IDS, 16], **shared
    )


@gluon.constexpr_function
def _barriers(CLUSTER, own):
    """The layout of barriers: each program has its own, or all arrive at the first's."""
    return mbarrier.MBarrierLayout([[own]] if CLUSTER > 1 else [])


@gluon.jit
def _produce(
    x_desc, w_desc, upper, lower, ids, full, empty, free, rows, vocabulary, width, row_blocks,
    first_tile, splits, tiles_each, HALF: gl.constexpr, IDS: gl.constexpr, STEP: gl.constexpr,
    GROUP: gl.constexpr, STAGES: gl.constexpr, CLUSTER: gl.constexpr,
):  # fmt: skip
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    steps = gl.cdiv(width, STEP)
    turn = 0
    for pair in range(gl.cdiv(row_blocks * splits - program, programs) * tiles_each):
        block, split = _item(program + (pair // tiles_each) * programs, row_blocks, splits, GROUP)
        row = block * 2 * HALF
        tile = first_tile + split * tiles_each + pair % tiles_each
        # No box lies wholly outside: what it brings instead are rows and ids that are masked.
        second = gl.minimum(row + HALF, rows - 1)
        an_id = gl.minimum(tile * IDS, vocabulary - 1)
        for k in range(steps):
            slot = turn % STAGES
            mbarrier.wait(empty.index(slot), ((turn // STAGES) & 1) ^ 1)
            bar = full.index(slot)
            # A copy over an edge fills with zeros and counts as a whole one.
            mbarrier.expect(bar, (2 * HALF // CLUSTER + IDS) * STEP * 2)
            copy_in(x_desc, [row, k * STEP], bar, upper.index(slot))
            copy_in(x_desc, [second, k * STEP], bar, lower.index(slot))
            if CLUSTER == 1:
                copy_in(w_desc, [an_id, k * STEP], bar, ids.index(slot))
            else:
                # Each tells the first that its slot is free. Only the first waits here and copies;
                # what arrives counts at each one's ``full``.
                mbarrier.arrive(free.index(slot), count=1)
                mbarrier.wait(free.index(slot), (turn // STAGES) & 1)
                copy_in(w_desc, [an_id, k * STEP], bar, ids.index(slot), multicast=True)
            turn += 1


@gluon.jit
def _consume(
    x, w, full, empty, targets, floors, part_max, part_sum, part_dev, part_bits, target_logit,
    scratch, bias, rows, vocabulary, width, row_blocks, first_tile, splits, tiles_each, stride,
    scale, masked, log2_eps, softcap, inverse_softcap, WHICH: gl.constexpr, HALF: gl.constexpr,
    IDS: gl.constexpr, STEP: gl.constexpr, GROUP: gl.constexpr, TOP_ENTRIES: gl.constexpr,
    BIAS: gl.constexpr, SOFTCAP: gl.constexpr, PER_ROW: gl.constexpr, STAGES: gl.constexpr,
    CLUSTER: gl.constexpr,
):  # fmt: skip
    LOGITS: gl.constexpr = _logits(IDS, CLUSTER)
    ROWS: gl.constexpr = gl.SliceLayout(1, LOGITS)
    QUARTERS: gl.constexpr = gl.SliceLayout(2, threads(CLUSTER))  # a value a [row, quarter]
    QUARTER_ROWS: gl.constexpr = gl.SliceLayout(1, QUARTERS)  # one a row
    COLUMNS: gl.constexpr = gl.SliceLayout(0, LOGITS)
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    steps = gl.cdiv(width, STEP)
    lane = gl.arange(0, HALF, layout=ROWS)
    column = gl.arange(0, IDS, layout=COLUMNS)
    # With a bias, which may be -inf, or any temperature, maxima are raw logits, exponents are held
    # above LEAST: two instructions a logit more.
    RAW: gl.constexpr = BIAS or PER_ROW
    START: gl.constexpr = -LARGE if RAW else LOWEST
    top_so_far = gl.full([HALF], START, gl.float32, layout=ROWS)
    total = gl.zeros([HALF], gl.float32, layout=ROWS)
    dev = gl.zeros([HALF], gl.float32, layout=ROWS)
    bits = gl.zeros([HALF, 4], gl.int32, layout=QUARTERS)
    turn = 0
    # One loop over items and tiles: with two, addresses are kept over the inner one, which spills.
    for pair in range(gl.cdiv(row_blocks * splits - program, programs) * tiles_each):
        block, split = _item(program + (pair // tiles_each) * programs, row_blocks, splits, GROUP)
        within = pair % tiles_each
        local = (split * tiles_each + within) * IDS
        first = first_tile * IDS + local
        row = block * 2 * HALF + WHICH * HALF + lane
        there = row < rows
        target = gl.load(targets + row, mask=there, other=-1)
        floor = gl.load(floors + row, mask=there, other=NO_ROW)
        by = scale
        if PER_ROW:
            by = gl.load(scale + row, mask=there, other=1.0)
        z = gl.zeros([HALF, IDS], gl.float32, layout=LOGITS)
        for k in range(steps):
            slot = turn % STAGES
            mbarrier.wait(full.index(slot), (turn // STAGES) & 1)
            z = warpgroup_mma(x.index(slot), w.index(slot).permute((1, 0)), z, is_async=True)
            z = warpgroup_mma_wait(1, deps=(z,))
            # The products of the step before are done (an arrive waits for all four warps).
            mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES), count=1, pred=k > 0)
            turn += 1
        z = warpgroup_mma_wait(0, deps=(z,))
        mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES), count=1)
        if BIAS:
            # A tile that begins beyond the vocabulary takes any: its logits are all masked.
            z += gl.load(bias + gl.minimum(first, vocabulary - 1) // IDS * IDS + column)[None, :]
        if SOFTCAP:
            z = capped(z, softcap, inverse_softcap)
        begins = within == 0
        top_so_far = gl.where(begins, START, top_so_far)
        total = gl.where(begins, 0.0, total)
        dev = gl.where(begins, 0.0, dev)
        bits = gl.where(begins, 0, bits)
        at_target = target - first
        inside = (at_target >= 0) & (at_target < IDS)  # never of a row that is not there
        any_inside = inside
        if CLUSTER > 1:
            # A maximum over rows of both programs would make them meet, which they must not do
            # here: each looks at all rows.
            EVERY: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0], [[0]])
            each = block * 2 * HALF + WHICH * HALF + gl.arange(0, HALF, layout=EVERY)
            at_each = gl.load(targets + each, mask=each < rows, other=-1) - first
            any_inside = (at_each >= 0) & (at_each < IDS)
        if gl.max(any_inside.to(gl.int32), 0) > 0:
            mine = column[None, :] == at_target[:, None]
            gl.store(target_logit + row, gl.sum(gl.where(mine, z, 0.0), 1), mask=inside)
            z = gl.where(mine, masked, z)
        if first + IDS > vocabulary:  # the last tile, or one beyond it
            z = gl.where((first + column < vocabulary)[None, :], z, masked)
        if TOP_ENTRIES:
            best = gl.max(quarters(z, HALF, IDS, CLUSTER), 2)
            top = gl.convert_layout(gl.max(best, 1), ROWS)
        else:
            top = gl.max(z, 1)
        if RAW:
            shift = gl.maximum(top_so_far, top)
            step = gl.maximum((top_so_far - shift) * by, LEAST)
            level = shift * by
            if PER_ROW:
                centred = (z - shift[:, None]) * by[:, None]
            else:
                centred = (z - shift[:, None]) * by
            centred = at_least(centred, LEAST)
        else:
            shift = gl.maximum(top_so_far, top * by)
            step = gl.maximum(top_so_far - shift, LEAST)
            level = shift
            centred = z * by - shift[:, None]
        e = exp2(centred)
        fade = gl.exp2(step)
        dev = (dev + step * total) * fade + gl.sum(centred * e, 1)
        total = total * fade + gl.sum(e, 1)
        top_so_far = shift
        if TOP_ENTRIES:
            bound = gl.maximum(floor, level + gl.log2(total)) + log2_eps
            if RAW:
                bound = gl.maximum(bound, -LARGE)  # never -inf, as masked logits are
            bound = gl.convert_layout(bound, QUARTER_ROWS)[:, None]
            # Each thread stores what it holds of a row: 16 bytes at a time, most of which are not
            # stored. Finding entries among registers, whose place must be known when compiled,
            # costs more.
            if PER_ROW:
                matters = best * gl.convert_layout(by, QUARTER_ROWS)[:, None] >= bound
            else:
                matters = best * by >= bound
            place = scratch + row.to(gl.int64) * (stride * IDS) + local
            place = gl.convert_layout(place, QUARTER_ROWS)
            store_quarters(place, quarters(z, HALF, IDS, CLUSTER), matters, IDS, CLUSTER)
            bits = bits | gl.where(matters, 1 << within, 0)
        base = split.to(gl.int64) * rows + row
        ends = there & (within == tiles_each - 1)
        gl.store(part_max + base, top_so_far, mask=ends)
        gl.store(part_sum + base, total, mask=ends)
        gl.store(part_dev + base, dev, mask=ends)
        if TOP_ENTRIES:
            base = gl.convert_layout(base, QUARTER_ROWS)[:, None] * 4
            quarter = gl.arange(0, 4, layout=gl.SliceLayout(0, QUARTERS))[None, :]
            ends = gl.convert_layout(ends, QUARTER_ROWS)[:, None]
            gl.store(part_bits + base + quarter, bits, mask=ends)


@gluon.jit(do_not_specialize=[*SIZES, *NUMBERS], do_not_specialize_on_alignment=POINTERS)
def fused_kernel(
    x_desc, w_desc, targets, floors, part_max, part_sum, part_dev, part_bits, target_logit, scratch,
    bias, rows, vocabulary, width, row_blocks, first_tile, splits, tiles_each, stride, scale,
    masked, log2_eps, softcap, inverse_softcap, HALF: gl.constexpr, IDS: gl.constexpr,
    STEP: gl.constexpr, GROUP: gl.constexpr, TOP_ENTRIES: gl.constexpr, BIAS: gl.constexpr,
    SOFTCAP: gl.constexpr, PER_ROW: gl.constexpr, STAGES: gl.constexpr,
    CLUSTER: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Online softmax of all rows over ``splits`` splits from ``first_tile`` on.

    Args:
        x_desc: descriptor of ``hidden`` [T, D].
        w_desc: descriptor of ``weight`` [V, D].
        targets: [T] int32 ids, or -1 for none (one beyond the vocabulary could lie in the padding
            of the last tile).
        floors: [T] running log-sum-exp with the target's logit, in exponents of two.
        part_max: [splits, T], written: maximum of a split; with BIAS or PER_ROW a raw logit.
        part_sum: [splits, T], written: its sum.
        part_dev: [splits, T], written: its sum for the entropy.
        part_bits: [splits, T, 4] int32, written: bit i for a quarter of tile i of the split that is
            in ``scratch``.
        target_logit: [T], written where the target is seen.
        scratch: [T, stride, 4, IDS / 4] quarters of tiles of raw logits (place ``2 * i + b`` of
            quarter ``q`` is column ``8 * i + 2 * q + b``), written where they matter.
        bias: [tiles * IDS] float32, if BIAS.
        rows: T.
        vocabulary: V.
        width: D.
        row_blocks: blocks of 2 * HALF tokens.
        first_tile: first tile of the part.
        splits: of the part.
        tiles_each: tiles of a split.
        stride: of ``scratch``, in tiles.
        scale: log2(e) / temperature: a number or [T].
        masked: raw logit of a masked product.
        log2_eps: log2 of the least probability that is saved.
        softcap: a number, if SOFTCAP.
        inverse_softcap: 1 / softcap.
        HALF: tokens of a warpgroup, in all programs of a cluster.
        IDS: ids of a tile.
        STEP: columns of a step.
        GROUP: blocks of tokens that share tiles of ``weight`` in the L2.
        TOP_ENTRIES: whether top entries are saved.
        BIAS: whether there is a bias.
        SOFTCAP: whether there is a softcap.
        PER_ROW: whether ``scale`` is [T].
        STAGES: slots of the ring.
        CLUSTER: programs that share each tile of ``weight``: 1, or 2 where CLUSTERS is true.
        CONSUMER_REGISTERS: registers a thread of a warpgroup.
        PRODUCER_REGISTERS: the same of the producer.
    """
    gl.static_assert(STAGES >= 2)  # a slot is released in the step after
    dtype: gl.constexpr = x_desc.dtype
    upper = gl.allocate_shared_memory(dtype, [STAGES, HALF, STEP], x_desc.layout)
    lower = gl.allocate_shared_memory(dtype, [STAGES, HALF, STEP], x_desc.layout)
    ids = gl.allocate_shared_memory(dtype, [STAGES, IDS, STEP], w_desc.layout)
    OWN: gl.constexpr = _barriers(CLUSTER, 1)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, CLUSTER], OWN)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, CLUSTER], OWN)
    free = empty
    if CLUSTER > 1:
        free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], _barriers(CLUSTER, 0))
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
        if CLUSTER > 1:
            mbarrier.init(free.index(i), count=1)  # of each program
    fence_async_shared()  # the barriers, to the copies; all warps meet before they part
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    upper, ids, full, empty, targets, floors, part_max, part_sum, part_dev,
                    part_bits, target_logit, scratch, bias, rows, vocabulary, width, row_blocks,
                    first_tile, splits, tiles_each, stride, scale, masked, log2_eps, softcap,
                    inverse_softcap, 0, HALF, IDS, STEP, GROUP, TOP_ENTRIES, BIAS, SOFTCAP,
                    PER_ROW, STAGES, CLUSTER,
                ),
            ),
            (
                _consume,
                (
                    lower, ids, full, empty, targets, floors, part_max, part_sum, part_dev,
                    part_bits, target_logit, scratch, bias, rows, vocabulary, width, row_blocks,
                    first_tile, splits, tiles_each, stride, scale, masked, log2_eps, softcap,
                    inverse_softcap, 1, HALF, IDS, STEP, GROUP, TOP_ENTRIES, BIAS, SOFTCAP,
                    PER_ROW, STAGES, CLUSTER,
                ),
            ),
            (
                _produce,
                (
                    x_desc, w_desc, upper, lower, ids, full, empty, free, rows, vocabulary, width,
                    row_blocks, first_tile, splits, tiles_each, HALF, IDS, STEP, GROUP, STAGES,
                    CLUSTER,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
    if CLUSTER > 1:
        _meet()  # the first program must stay while its copy into the other is on its way
