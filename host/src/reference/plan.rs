//! plan: the ranking of the blocks and how many to read. Integers where sums are compared, so that it is the
//! same everywhere; defined bit by bit.

use kernels_gpu::layout::{BLOCK, BLOCKS_PER_GROUP, blocks};
use kernels_gpu::numeric::{TARGET_BITS, block_of_key, fixed_mass, fma, needed_mass, rank_key, reciprocal};

/// Which blocks are read whatever their mass, and which only together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of the sequence.
    pub tokens: usize,
    /// Forced blocks at the start.
    pub sink: usize,
    /// Forced blocks at the end.
    pub recent: usize,
    /// Blocks of a quantisation group; those of the open one are forced.
    pub group: usize,
    /// Neighbouring blocks that are selected together.
    pub unit: usize,
    /// Fewest blocks to read.
    pub floor: usize,
}

impl Limits {
    /// Limits of the kernels: groups of 64 tokens, single blocks, no floor.
    pub fn new(tokens: usize, sink: usize, recent: usize) -> Limits {
        Limits { tokens, sink, recent, group: BLOCKS_PER_GROUP, unit: 1, floor: 0 }
    }

    /// True where block `b` is forced.
    pub fn forced(&self, b: usize) -> bool {
        let open = self.tokens / (self.group * BLOCK) * self.group;
        b < self.sink || b + self.recent >= blocks(self.tokens) || b >= open
    }

    /// True where a block of unit `u` is forced.
    pub fn forced_unit(&self, u: usize) -> bool {
        self.blocks_of(u).any(|b| self.forced(b))
    }

    /// Units.
    pub fn units(&self) -> usize {
        blocks(self.tokens).div_ceil(self.unit)
    }

    /// Blocks of unit `u`.
    pub fn blocks_of(&self, u: usize) -> std::ops::Range<usize> {
        u * self.unit..((u + 1) * self.unit).min(blocks(self.tokens))
    }

    /// Number of blocks in forced units.
    pub fn forced_blocks(&self) -> usize {
        (0..self.units()).filter(|&u| self.forced_unit(u)).map(|u| self.blocks_of(u).len()).sum()
    }

    /// `count` ranks, and as many more as end a unit.
    pub fn whole_units(&self, order: &[u32], mut count: usize) -> usize {
        let unit = |rank: usize| order[rank] as usize / self.unit;
        while count > 0 && count < order.len() && unit(count) == unit(count - 1) {
            count += 1;
        }
        count
    }
}

/// How many blocks to plan for.
#[derive(Clone, Copy, Debug)]
pub enum Goal<'a> {
    /// The budget.
    Budget,
    /// The smallest prefix that holds this share (fixed point) of every head's estimated mass.
    Estimated(u32),
    /// The smallest prefix whose estimated mass, `[group][blocks]`, is this share of itself and the bound of the
    /// rest: what the exact mass will most likely prove.
    Certain(u32, &'a [Vec<f32>]),
}

impl Goal<'_> {
    /// [`Goal::Estimated`], or the budget where the target is 0.
    pub fn of_target(target: u32) -> Goal<'static> {
        if target == 0 { Goal::Budget } else { Goal::Estimated(target) }
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

/// Plans from the log2 masses `[group][blocks]` that rank: at most `budget` blocks, but the forced ones, the floor
/// and whole units whatever it is.
pub fn plan(log_mass: &[Vec<f32>], limits: Limits, goal: Goal<'_>, budget: u32) -> Plan {
    let blocks = blocks(limits.tokens);
    let peak: Vec<f32> = log_mass
        .iter()
        .map(|row| row.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m }))
        .collect();
    let mass = |g: usize, b: usize| fixed_mass(log_mass[g][b], peak[g]);
    let heads = 0..log_mass.len();
    let total: Vec<u64> = heads.clone().map(|g| (0..blocks).map(|b| mass(g, b) as u64).sum()).collect();
    let inverse: Vec<f32> = total.iter().map(|&u| reciprocal(u as f32)).collect();

    let mut keys: Vec<u64> = (0..limits.units())
        .map(|u| {
            let mass = |g: usize| limits.blocks_of(u).map(|b| mass(g, b) as u64).sum::<u64>();
            let rank = heads.clone().fold(0.0, |r, g| fma(mass(g) as f32, inverse[g], r));
            rank_key(limits.forced_unit(u), rank, u as u32)
        })
        .collect();
    keys.sort_unstable_by(|a, b| b.cmp(a));
    let mut order: Vec<u32> = keys
        .into_iter()
        .flat_map(|key| limits.blocks_of(block_of_key(key) as usize))
        .map(|b| b as u32)
        .collect();

    let budget = budget as usize;
    let prefix = |g: usize| match goal {
        Goal::Budget => budget,
        Goal::Estimated(target) => {
            let needed = needed_mass(total[g], target);
            let mut sum = 0u64;
            let reached = order.iter().position(|&b| {
                sum += mass(g, b as usize) as u64;
                sum >= needed
            });
            reached.map_or(blocks, |i| i + 1)
        }
        Goal::Certain(target, estimate) => {
            let (mut sum, mut rest) = (0u64, total[g]);
            let reached = order.iter().position(|&b| {
                sum += fixed_mass(estimate[g][b as usize], peak[g]) as u64;
                rest -= mass(g, b as usize) as u64;
                sum * ((1 << TARGET_BITS) - target) as u64 >= rest * target as u64
            });
            reached.map_or(blocks, |i| i + 1)
        }
    };
    let wanted = heads.clone().map(prefix).max().unwrap_or(0).min(budget);
    let count = wanted.max(limits.floor).max(limits.forced_blocks()).min(blocks);
    let count = limits.whole_units(&order, count);
    let rest = heads.map(|g| order[count..].iter().map(|&b| mass(g, b as usize) as u64).sum()).collect();
    if count == blocks {
        order = (0..blocks as u32).collect();
    }
    Plan { order, count, peak, rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { tokens: 640, sink: 1, recent: 2, group: 4, unit: 1, floor: 0 };

    /// 40 blocks; block b has mass 2^-b in head 0 and the reverse in head 1.
    fn log_mass() -> Vec<Vec<f32>> {
        vec![(0..40).map(|b| -b as f32).collect(), (0..40).map(|b| b as f32 - 39.0).collect()]
    }

    #[test]
    fn forced_blocks_come_first_then_the_heads_take_turns() {
        let p = plan(&log_mass(), LIMITS, Goal::Budget, 8);
        assert_eq!(p.count, 8);
        assert_eq!(p.order[..8], [0, 38, 39, 1, 2, 37, 3, 36]);
        assert_eq!(p.peak, [0.0, 0.0]);
    }

    #[test]
    fn budgets_are_at_least_the_forced_blocks_and_at_most_all() {
        assert_eq!(plan(&log_mass(), LIMITS, Goal::Budget, 1).count, 3);
        let all = plan(&log_mass(), LIMITS, Goal::Budget, 1000);
        assert_eq!(all, Plan { peak: vec![0.0; 2], ..Plan::identity(40, 2) });
    }

    #[test]
    fn the_prefix_is_the_smallest_that_holds_the_target_for_every_head() {
        let target = kernels_gpu::numeric::fixed_target(0.97);
        let p = plan(&log_mass(), LIMITS, Goal::Estimated(target), u32::MAX);
        let mass = |g: usize, n: usize| -> u64 {
            p.order[..n].iter().map(|&b| fixed_mass(log_mass()[g][b as usize], 0.0) as u64).sum()
        };
        for g in 0..2 {
            let needed = needed_mass(mass(g, 40), target);
            assert!(mass(g, p.count) >= needed);
            assert_eq!(p.rest[g], mass(g, 40) - mass(g, p.count));
        }
        assert!((0..2).any(|g| mass(g, p.count - 1) < needed_mass(mass(g, 40), target)));
        assert_eq!(plan(&log_mass(), LIMITS, Goal::Estimated(target), 4).count, 4, "the budget limits it");
    }

    #[test]
    fn ties_go_to_the_lower_block() {
        let p = plan(&[vec![1.0; 40]], LIMITS, Goal::Budget, 6);
        assert_eq!(p.order[..6], [0, 38, 39, 1, 2, 3]);
    }

    #[test]
    fn units_are_read_whole_and_ranked_by_what_they_hold_together() {
        // 38 blocks in units of 4: the last unit has 2. Block 20 alone is the heaviest, but the unit of
        // blocks 8 to 11 holds more.
        let mut row = vec![0.0; 38];
        row[20] = 3.0;
        row[8..12].fill(1.5);
        let limits = Limits { tokens: 38 * 16, sink: 1, recent: 1, unit: 4, ..LIMITS };
        let p = plan(&[row], limits, Goal::Budget, 7);
        assert_eq!(p.order[..10], [0, 1, 2, 3, 36, 37, 8, 9, 10, 11]);
        assert_eq!(p.count, 10, "the budget is rounded up to a unit");
        let mut all: Vec<u32> = p.order.clone();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..38));
    }

    #[test]
    fn the_floor_is_read_whatever_the_goal_says() {
        let target = kernels_gpu::numeric::fixed_target(0.5);
        let limits = Limits { floor: 17, ..LIMITS };
        assert!(plan(&log_mass(), LIMITS, Goal::Estimated(target), u32::MAX).count < 17);
        assert_eq!(plan(&log_mass(), limits, Goal::Estimated(target), u32::MAX).count, 17);
        assert_eq!(plan(&log_mass(), Limits { floor: 999, ..LIMITS }, Goal::Budget, 4).count, 40);
    }

    #[test]
    fn a_certain_plan_weighs_estimates_against_the_bound_of_the_rest() {
        let estimate = log_mass();
        let bound: Vec<Vec<f32>> = estimate.iter().map(|row| row.iter().map(|x| x + 3.0).collect()).collect();
        let target = kernels_gpu::numeric::fixed_target(0.9);
        let p = plan(&bound, LIMITS, Goal::Certain(target, &estimate), u32::MAX);
        let holds = |n: usize| {
            (0..2).all(|g| {
                let sum = |rows: &[Vec<f32>], blocks: &[u32]| {
                    blocks.iter().map(|&b| rows[g][b as usize].exp2() as f64).sum::<f64>()
                };
                let read = sum(&estimate, &p.order[..n]);
                read >= 0.9 * (read + sum(&bound, &p.order[n..]))
            })
        };
        assert!(holds(p.count) && !holds(p.count - 1), "{}", p.count);
        let loose = plan(&estimate, LIMITS, Goal::Estimated(target), u32::MAX);
        assert!(p.count > loose.count);
    }

    #[test]
    fn an_empty_sequence_has_an_empty_plan() {
        let p = plan(&[vec![]], Limits { tokens: 0, ..LIMITS }, Goal::Estimated(62000), u32::MAX);
        assert_eq!((p.count, p.order.len(), p.rest), (0, 0, vec![0]));
    }
}
