//! What arithmetic says of the kernels on GPUs that nobody has run them on: bytes over bandwidth, and how evenly
//! the split schedule loads the SMs. Models, not measurements.
//!
//! * **Roofline**: the bytes that a kernel of a decode step must move (each once), over the data sheet's bandwidth.
//!   `attend` does at most 2 G multiplications a byte of bf16, two orders of magnitude below what tensor cores need to
//!   be the limit, so bytes are the only roof here.
//! * **Schedule**: CTAs of `attend` in grid order, each to the slot that is free first; a CTA takes as long as it has
//!   blocks. Makespan over ideal is the last slot's end over an even share for all slots.
//!
//! Trap: a split without blocks costs nothing here and a launch of an empty CTA there; start-up, tails of the memory
//! system and L2 are not in the model.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kernels_gpu::attend;
use kernels_gpu::layout::{BLOCK, MAX_SPLITS, MirrorKind, QUANT_GROUP};

/// A GPU by its data sheet.
#[derive(Clone, Copy, Debug)]
pub struct Gpu {
    /// Name.
    pub name: &'static str,
    /// Streaming multiprocessors.
    pub sms: usize,
    /// DRAM bandwidth, 10^9 bytes a second.
    pub gb_per_s: f64,
    /// Shared memory of an SM, KiB (CUDA programming guide, by compute capability).
    pub shared_kib: usize,
}

/// The GPUs of the tables.
pub const GPUS: [Gpu; 6] = [
    Gpu { name: "A100 80 GB SXM", sms: 108, gb_per_s: 2039.0, shared_kib: 164 },
    Gpu { name: "L40S", sms: 142, gb_per_s: 864.0, shared_kib: 100 },
    Gpu { name: "H100 SXM", sms: 132, gb_per_s: 3350.0, shared_kib: 228 },
    Gpu { name: "H200", sms: 132, gb_per_s: 4800.0, shared_kib: 228 },
    Gpu { name: "B200", sms: 148, gb_per_s: 8000.0, shared_kib: 228 },
    Gpu { name: "RTX 5090", sms: 170, gb_per_s: 1792.0, shared_kib: 100 },
];

impl Gpu {
    /// CTAs of `attend` that an SM holds at once; each takes a KiB more than it asks for.
    pub const fn occupancy(&self, head_dim: usize) -> usize {
        self.shared_kib * 1024 / (attend::shared_bytes(head_dim) + 1024)
    }

    /// Microseconds that `bytes` take.
    pub fn microseconds(&self, bytes: f64) -> f64 {
        bytes / self.gb_per_s / 1e3
    }
}

/// A decode step of one layer.
#[derive(Clone, Copy, Debug)]
pub struct StepShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of each.
    pub group: usize,
    /// Elements of a head, 2 bytes each.
    pub head_dim: usize,
    /// Share of the blocks that are read.
    pub read: f64,
    /// Mirror.
    pub mirror: MirrorKind,
}

/// Bytes that each kernel of the step must move, each byte once; the mirror page of `append` as every 64th step
/// writes it.
pub fn compulsory_bytes(s: &StepShape) -> [(&'static str, f64); 5] {
    let (rows, d, g) = ((s.batch * s.kv_heads) as f64, s.head_dim as f64, s.group as f64);
    let blocks = s.tokens.div_ceil(BLOCK) as f64;
    let page = s.mirror.page_bytes(s.head_dim) as f64;
    let pages = (s.tokens / QUANT_GROUP) as f64;
    let splits = kernels_gpu::layout::splits(s.tokens.div_ceil(BLOCK)) as f64;
    let masses = 4.0 * g * blocks;
    let queries = 2.0 * g * d;
    // f32 output, reference and sum of every split.
    let partials = splits * g * (d + 2.0) * 4.0;
    let token = 2.0 * 2.0 * d;
    let keys_of_a_group = 2.0 * d * QUANT_GROUP as f64;
    let of_a_row = [
        ("append", 2.0 * token + (keys_of_a_group + page) / QUANT_GROUP as f64),
        ("score", pages * (page + 4.0) + queries + masses),
        ("plan", masses + 4.0 * blocks),
        ("attend", s.read * blocks * (BLOCK as f64 * token + 8.0) + queries + partials),
        ("merge", partials + g * (d + 1.0) * 4.0),
    ];
    of_a_row.map(|(kernel, bytes)| (kernel, rows * bytes))
}

/// Blocks of split `split` of `splits` in a plan of `count`: ranks `split`, `split + splits`, ..
pub const fn blocks_of_split(count: usize, splits: usize, split: usize) -> usize {
    if split < count { (count - split).div_ceil(splits) } else { 0 }
}

/// Splits of a row, as `layout::splits` but with another number of blocks that a split should find.
pub const fn splits(blocks: usize, blocks_per_split: usize) -> usize {
    let wanted = blocks.div_ceil(blocks_per_split);
    if wanted == 0 {
        1
    } else if wanted > MAX_SPLITS {
        MAX_SPLITS
    } else {
        wanted
    }
}

/// End of the last of `costs`, given in order to whichever of `slots` is free first.
pub fn makespan(costs: impl IntoIterator<Item = usize>, slots: usize) -> usize {
    let mut free: BinaryHeap<Reverse<usize>> = (0..slots.max(1)).map(|_| Reverse(0)).collect();
    let mut end = 0;
    for cost in costs {
        let Reverse(start) = free.pop().unwrap_or(Reverse(0));
        end = end.max(start + cost);
        free.push(Reverse(start + cost));
    }
    end
}

/// A row of a batch: blocks of its sequence, blocks that its plan reads.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Blocks in the sequence.
    pub blocks: usize,
    /// Blocks to read.
    pub count: usize,
}

/// Makespan over ideal of `attend` over the rows, in grid order. `(makespan, ideal)` in blocks.
pub fn schedule(rows: &[Budget], blocks_per_split: usize, slots: usize) -> (usize, f64) {
    let costs = rows.iter().flat_map(|row| {
        let n = splits(row.blocks, blocks_per_split);
        (0..n).map(move |split| blocks_of_split(row.count, n, split))
    });
    let total: usize = rows.iter().map(|row| row.count).sum();
    (makespan(costs, slots), total as f64 / slots as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_share_a_plan_and_are_the_kernels() {
        for count in [0, 1, 5, 64, 511] {
            let shares: Vec<usize> = (0..7).map(|s| blocks_of_split(count, 7, s)).collect();
            assert_eq!(shares.iter().sum::<usize>(), count);
            assert!(shares[0] - shares[6] <= 1, "{shares:?}");
        }
        for blocks in 0..3000 {
            let there = kernels_gpu::layout::splits(blocks);
            assert_eq!(splits(blocks, kernels_gpu::layout::BLOCKS_PER_SPLIT), there);
        }
    }

    #[test]
    fn a_makespan_is_what_a_hand_would_draw() {
        assert_eq!(makespan([3, 3, 3, 3], 4), 3);
        assert_eq!(makespan([1, 1, 1, 4], 2), 5);
        assert_eq!(makespan([4, 1, 1, 1], 2), 4);
        assert_eq!(makespan([], 5), 0);
        // Two rows of 64 blocks in 4 splits on 4 slots: even. On 5 slots, one is left over.
        let rows = [Budget { blocks: 64, count: 64 }; 2];
        assert_eq!(schedule(&rows, 16, 4), (32, 32.0));
        assert_eq!(schedule(&rows, 16, 5), (32, 25.6));
    }

    #[test]
    fn bytes_of_a_step_add_up() {
        let mirror = MirrorKind::Planes(1);
        let s = StepShape { batch: 2, tokens: 4096, kv_heads: 8, group: 4, head_dim: 128, read: 1.0, mirror };
        let bytes = compulsory_bytes(&s);
        // 4,096 keys and values of 128 bf16 in 8 heads of 2 sequences are 32 MiB.
        assert!(bytes[3].1 > 33_554_432.0 && bytes[3].1 < 1.05 * 33_554_432.0, "{bytes:?}");
        assert!((bytes[1].1 / (33_554_432.0 * 0.078_125) - 1.0).abs() < 0.05, "{bytes:?}");
        assert_eq!(GPUS.map(|gpu| gpu.occupancy(128)), [2, 1, 3, 3, 3, 1]);
    }
}
