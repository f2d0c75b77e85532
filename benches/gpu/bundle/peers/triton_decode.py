"""Dense decode attention in Triton, split over the keys: what a careful Triton user writes, as a peer.

One program attends the `GROUP` query heads of a KV head to one split of the keys, with an online softmax; a second
kernel combines the splits. q `[batch, kv_heads * GROUP, D]`, k and v `[batch, kv_heads, tokens, D]`, bf16 or f16;
out f32. Rows are padded to 16, the least that a tensor core takes.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def attend_split(q, k, v, partial, partial_ml, tokens, per_split, scale_log2,
                 GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # batch * kv_heads + kv_head
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    heads = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    queries = tl.load(q + (row * GROUP + heads[:, None]) * D + dims[None, :], mask=heads[:, None] < GROUP, other=0.0)
    m = tl.full([ROWS], -1.0e30, tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D], tl.float32)
    first = split * per_split
    last = tl.minimum(first + per_split, tokens)
    for start in range(first, last, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < last
        offsets = (row * tokens + at[:, None]) * D + dims[None, :]
        keys = tl.load(k + offsets, mask=inside[:, None], other=0.0)
        scores = tl.dot(queries, tl.trans(keys)).to(tl.float32) * scale_log2
        scores = tl.where(inside[None, :], scores, -1.0e30)
        top = tl.maximum(m, tl.max(scores, axis=1))
        weights = tl.exp2(scores - top[:, None])
        weights = tl.where(inside[None, :], weights, 0.0)
        shrink = tl.exp2(m - top)
        values = tl.load(v + offsets, mask=inside[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values).to(tl.float32)
        l = l * shrink + tl.sum(weights, axis=1)
        m = top
    place = (row * splits + split) * GROUP + heads
    tl.store(partial + place[:, None] * D + dims[None, :], acc, mask=heads[:, None] < GROUP)
    tl.store(partial_ml + place * 2, m, mask=heads < GROUP)
    tl.store(partial_ml + place * 2 + 1, l, mask=heads < GROUP)


@triton.jit
def combine(partial, partial_ml, out, splits, GROUP: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr):
    row = (tl.program_id(0) // GROUP).to(tl.int64)
    head = tl.program_id(0) % GROUP
    parts = tl.arange(0, SPLITS)
    dims = tl.arange(0, D)
    inside = parts < splits
    place = (row * splits + parts) * GROUP + head
    m = tl.load(partial_ml + place * 2, mask=inside, other=-1.0e30)
    l = tl.load(partial_ml + place * 2 + 1, mask=inside, other=0.0)
    weights = tl.exp2(m - tl.max(m, axis=0))
    total = tl.sum(l * weights, axis=0)
    acc = tl.load(partial + place[:, None] * D + dims[None, :], mask=inside[:, None], other=0.0)
    result = tl.sum(acc * weights[:, None], axis=0) / total
    tl.store(out + (row * GROUP + head) * D + dims, result)


class TritonDecode:
    """Buffers of one shape; `run` queues a step on the current stream."""

    def __init__(self, q, k, v, programs=None):
        batch, heads, self.d = q.shape
        _, self.kv_heads, self.tokens, _ = k.shape
        self.group = heads // self.kv_heads
        self.rows = batch * self.kv_heads
        # About four programs a multiprocessor, splits of at least 256 tokens, at most 128 splits.
        if programs is None:
            programs = 4 * torch.cuda.get_device_properties(q.device).multi_processor_count
        wanted = max(1, min(-(-programs // self.rows), -(-self.tokens // 256), 128))
        self.per_split = -(-self.tokens // wanted // 64) * 64
        self.splits = -(-self.tokens // self.per_split)
        self.q, self.k, self.v = q, k, v
        make = lambda *shape: torch.empty(shape, dtype=torch.float32, device=q.device)
        self.partial = make(self.rows, self.splits, self.group, self.d)
        self.partial_ml = make(self.rows, self.splits, self.group, 2)
        self.out = make(batch, heads, self.d)

    def run(self):
        scale_log2 = self.d**-0.5 * 1.4426950408889634
        attend_split[(self.rows, self.splits)](
            self.q, self.k, self.v, self.partial, self.partial_ml, self.tokens, self.per_split, scale_log2,
            GROUP=self.group, ROWS=max(16, self.group), D=self.d, TILE=64,
        )
        combine[(self.rows * self.group,)](
            self.partial, self.partial_ml, self.out, self.splits,
            GROUP=self.group, D=self.d, SPLITS=max(2, triton.next_power_of_2(self.splits)),
        )
        return self.out
