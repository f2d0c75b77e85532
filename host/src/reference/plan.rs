//! plan: the ranking of the blocks and how many to read. Integers where sums are compared, so that it is the
//! same everywhere; defined bit by bit.

use kernels_gpu::layout::{blocks, forced};
use kernels_gpu::numeric::{block_of_key, fixed_mass, fma, needed_mass, rank_key, reciprocal};

/// Which blocks are read whatever their mass.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of the sequence.
    pub tokens: usize,
    /// Forced blocks at the start.
    pub sink: usize,
    /// Forced blocks at the end.
    pub recent: usize,
}

impl Limits {
    /// True where block `b` is forced.
    pub fn forced(&self, b: usize) -> bool {
        forced(b, self.tokens, self.sink, self.recent)
    }

    /// Number of forced blocks.
    pub fn forced_blocks(&self) -> usize {
        (0..blocks(self.tokens)).filter(|&b| self.forced(b)).count()
    }
}

/// The plan of one (sequence, KV head).
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Blocks by rank.
    pub order: Vec<u32>,
    /// How many of them to read.
    pub count: usize,
    /// Largest log2 mass, per query head.
    pub peak: Vec<f32>,
    /// Fixed-point mass that is not planned, per query head.
    pub rest: Vec<u64>,
}

impl Plan {
    /// Everything, in order.
    pub fn identity(blocks: usize, group: usize) -> Plan {
        Plan {
            order: (0..blocks as u32).collect(),
            count: blocks,
            peak: vec![0.0; group],
            rest: vec![0; group],
        }
    }
}

/// Plans from the log2 masses `[group][blocks]`. `target` = 0: read `budget` blocks; otherwise as many as
/// hold the target's share of every head's estimated mass, at most `budget`.
pub fn plan(log_mass: &[Vec<f32>], limits: Limits, target: u32, budget: u32) -> Plan {
    let blocks = blocks(limits.tokens);
    let peak: Vec<f32> = log_mass
        .iter()
        .map(|row| row.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m }))
        .collect();
    let mass = |g: usize, b: usize| fixed_mass(log_mass[g][b], peak[g]);
    let heads = 0..log_mass.len();
    let total: Vec<u64> = heads.clone().map(|g| (0..blocks).map(|b| mass(g, b) as u64).sum()).collect();
    let inverse: Vec<f32> = total.iter().map(|&u| reciprocal(u as f32)).collect();

    let mut keys: Vec<u64> = (0..blocks)
        .map(|b| {
            let rank = heads.clone().fold(0.0, |r, g| fma(mass(g, b) as f32, inverse[g], r));
            rank_key(limits.forced(b), rank, b as u32)
        })
        .collect();
    keys.sort_unstable_by(|a, b| b.cmp(a));
    let mut order: Vec<u32> = keys.into_iter().map(block_of_key).collect();

    let budget = budget as usize;
    let wanted = if target == 0 {
        budget
    } else {
        let prefix = |g: usize| {
            let needed = needed_mass(total[g], target);
            let mut sum = 0u64;
            order
                .iter()
                .position(|&b| {
                    sum += mass(g, b as usize) as u64;
                    sum >= needed
                })
                .map_or(blocks, |i| i + 1)
        };
        heads.clone().map(prefix).max().unwrap_or(0).min(budget)
    };
    let count = wanted.max(limits.forced_blocks()).min(blocks);
    let rest = heads.map(|g| order[count..].iter().map(|&b| mass(g, b as usize) as u64).sum()).collect();
    if count == blocks {
        order = (0..blocks as u32).collect();
    }
    Plan { order, count, peak, rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { tokens: 640, sink: 1, recent: 2 };

    /// 40 blocks; block b has mass 2^-b in head 0 and the reverse in head 1.
    fn log_mass() -> Vec<Vec<f32>> {
        vec![(0..40).map(|b| -b as f32).collect(), (0..40).map(|b| b as f32 - 39.0).collect()]
    }

    #[test]
    fn forced_blocks_come_first_then_the_heads_take_turns() {
        let p = plan(&log_mass(), LIMITS, 0, 8);
        assert_eq!(p.count, 8);
        assert_eq!(p.order[..8], [0, 38, 39, 1, 2, 37, 3, 36]);
        assert_eq!(p.peak, [0.0, 0.0]);
    }

    #[test]
    fn budgets_are_at_least_the_forced_blocks_and_at_most_all() {
        assert_eq!(plan(&log_mass(), LIMITS, 0, 1).count, 3);
        let all = plan(&log_mass(), LIMITS, 0, 1000);
        assert_eq!(all, Plan { peak: vec![0.0; 2], ..Plan::identity(40, 2) });
    }

    #[test]
    fn the_prefix_is_the_smallest_that_holds_the_target_for_every_head() {
        let target = kernels_gpu::numeric::fixed_target(0.97);
        let p = plan(&log_mass(), LIMITS, target, u32::MAX);
        let mass = |g: usize, n: usize| -> u64 {
            p.order[..n].iter().map(|&b| fixed_mass(log_mass()[g][b as usize], 0.0) as u64).sum()
        };
        for g in 0..2 {
            let needed = needed_mass(mass(g, 40), target);
            assert!(mass(g, p.count) >= needed);
            assert_eq!(p.rest[g], mass(g, 40) - mass(g, p.count));
        }
        assert!((0..2).any(|g| mass(g, p.count - 1) < needed_mass(mass(g, 40), target)));
        assert_eq!(plan(&log_mass(), LIMITS, target, 4).count, 4, "the budget limits it");
    }

    #[test]
    fn ties_go_to_the_lower_block() {
        let p = plan(&[vec![1.0; 40]], LIMITS, 0, 6);
        assert_eq!(p.order[..6], [0, 38, 39, 1, 2, 3]);
    }

    #[test]
    fn an_empty_sequence_has_an_empty_plan() {
        let p = plan(&[vec![]], Limits { tokens: 0, sink: 1, recent: 2 }, 62000, u32::MAX);
        assert_eq!((p.count, p.order.len(), p.rest), (0, 0, vec![0]));
    }
}
