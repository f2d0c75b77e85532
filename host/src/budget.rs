//! One budget of blocks for many sequences: who gets how many in the next step.
//!
//! A step's report says what each sequence read and how much mass it believes to have missed. Where all of them together
//! stay within the budget, nothing is capped. Where they do not, the budget goes where it takes most of the missed mass
//! away: if missing falls like `1 / blocks`, the sum of what is missed is least at `blocks ~ sqrt(missed * blocks)`, and
//! that is the share each sequence gets of what is left after the floors. A sequence that has reached its mass needs what
//! it read, and no more.
//!
//! The controller sees the step before, not this one: a sequence that turns flat gets its blocks one step late.

use crate::decode::{BlockLimits, Report};

/// Shares a budget among the sequences of a batch.
#[derive(Clone, Debug)]
pub struct SharedBudget {
    blocks: u64,
    floor: u32,
    target: f32,
}

impl SharedBudget {
    /// `blocks`: of all sequences, layers and KV heads of a step together. `floor`: fewest of a (sequence, layer, KV head).
    /// `target`: the mass that each of them is to reach, as in the policy.
    pub fn new(blocks: u64, floor: u32, target: f32) -> SharedBudget {
        SharedBudget { blocks, floor, target }
    }

    /// Caps of the next step for the `batch` sequences of a report, for
    /// [`DecodePlan::set_block_limits`](crate::DecodePlan::set_block_limits). Without a report of every sequence: equal
    /// shares.
    pub fn limits(&self, report: &Report, batch: usize) -> Vec<BlockLimits> {
        if batch == 0 {
            return vec![];
        }
        /// Rows, blocks read, blocks there are, and mass missed, of one sequence.
        #[derive(Clone, Default)]
        struct Use {
            rows: f64,
            read: f64,
            total: f64,
            missed: f64,
            short: bool,
        }
        let mut uses = vec![Use::default(); batch];
        for head in &report.heads {
            let Some(entry) = uses.get_mut(head.entry) else { continue };
            entry.rows += 1.0;
            entry.read += head.blocks_read as f64;
            entry.total += head.blocks_total as f64;
            let least = head.mass.iter().copied().fold(1.0f32, f32::min);
            entry.missed += head.mass.iter().map(|&m| (1.0 - m) as f64).sum::<f64>() / head.mass.len() as f64;
            entry.short |= least < self.target && head.blocks_read < head.blocks_total;
        }
        let rows: f64 = uses.iter().map(|u| u.rows).sum();
        let (floor, most) = (self.floor as f64, self.blocks as f64);
        let even = (most / rows.max(1.0)).floor().max(floor);
        if uses.iter().any(|u| u.rows == 0.0) {
            return vec![BlockLimits { min: 0, max: even as u32 }; batch];
        }
        // By row: what a sequence would take if there were enough, and its claim on what there is.
        let need: Vec<f64> = uses
            .iter()
            .map(|u| if u.short { u.total / u.rows } else { (u.read / u.rows).max(floor) })
            .collect();
        let claim: Vec<f64> =
            uses.iter().map(|u| (u.missed / u.rows * (u.read / u.rows)).sqrt().max(1e-6)).collect();
        let wanted: f64 = need.iter().zip(&uses).map(|(n, u)| n * u.rows).sum();
        if wanted <= most && uses.iter().all(|u| !u.short) {
            return vec![BlockLimits::default(); batch];
        }
        // Water filling: claims share what is left; who needs less than the share gets the need, and the rest is shared
        // again.
        let mut caps = vec![floor; batch];
        let mut open: Vec<usize> = (0..batch).collect();
        let mut left = most - floor * rows;
        while left > 0.0 && !open.is_empty() {
            let claims: f64 = open.iter().map(|&i| claim[i] * uses[i].rows).sum();
            let share = |i: usize| left * claim[i] / claims;
            let (full, rest): (Vec<usize>, Vec<usize>) =
                open.iter().partition(|&&i| need[i] - floor <= share(i));
            if full.is_empty() {
                rest.iter().for_each(|&i| caps[i] = floor + share(i));
                break;
            }
            for &i in &full {
                caps[i] = need[i].max(floor);
                left -= (need[i] - floor).max(0.0) * uses[i].rows;
            }
            open = rest;
        }
        caps.into_iter().map(|cap| BlockLimits { min: 0, max: cap.floor().max(1.0) as u32 }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheConfig, Capacity, DecodePlan, Device, Dtype, KvCache, Policy, Shape};
    use half::f16;

    const SHAPE: Shape = Shape { layers: 1, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
    const MASS: f32 = 0.9;

    /// Four sequences of 1,600 tokens; the queries of the later ones are weaker, so that their attention is flatter.
    fn batch() -> (KvCache, Vec<crate::SequenceId>, Vec<f16>) {
        let mut random = crate::reference::tests::Random(5);
        let config =
            CacheConfig { capacity: Capacity::Tokens(4 * 1600), max_sequences: 4, ..CacheConfig::default() };
        let mut cache = KvCache::new(&Device::cpu(), SHAPE, config).unwrap();
        let mut row = |n: usize, spread: f32| -> Vec<f16> {
            (0..n).map(|_| f16::from_f32(spread * random.normal())).collect()
        };
        let (mut sequences, mut q) = (vec![], vec![]);
        for spread in [6.0, 4.0, 1.0, 0.1] {
            let id = cache.add_sequence().unwrap();
            cache.append(id, 0, &row(1600 * 128, 1.0), &row(1600 * 128, 1.0)).unwrap();
            q.extend(row(128, spread));
            sequences.push(id);
        }
        (cache, sequences, q)
    }

    fn missed(report: &Report) -> f32 {
        report.heads.iter().flat_map(|h| &h.mass).map(|m| 1.0 - m).sum()
    }

    #[test]
    fn a_short_budget_goes_where_mass_is_missed() {
        let (mut cache, sequences, q) = batch();
        let mut out = vec![0.0; 4 * 128];
        let budget = SharedBudget::new(4 * 2 * 40, 5, MASS);
        let mut plan = DecodePlan::new(&cache, &sequences, Policy::Progressive { mass: MASS }).unwrap();
        plan.set_block_limits(&[BlockLimits { min: 0, max: 40 }; 4]).unwrap();
        plan.attend(&mut cache, 0, &q, &mut out).unwrap();
        let even = plan.report();
        for _ in 0..4 {
            let limits = budget.limits(&plan.report(), 4);
            plan.set_block_limits(&limits).unwrap();
            plan.attend(&mut cache, 0, &q, &mut out).unwrap();
            // Forced blocks and whole chunks aside, the budget is kept.
            assert!(plan.report().blocks_read() as u64 <= 4 * 2 * 40 + 4 * 2 * 8, "{limits:?}");
        }
        let shared = plan.report();
        assert!(missed(&shared) < 0.97 * missed(&even), "{} against {}", missed(&shared), missed(&even));
        assert!(shared.heads[6].blocks_read > even.heads[6].blocks_read, "the flat sequence gets more");
    }

    #[test]
    fn a_budget_that_is_enough_caps_nobody() {
        let (mut cache, sequences, q) = batch();
        let mut out = vec![0.0; 4 * 128];
        let mut plan = DecodePlan::new(&cache, &sequences, Policy::Progressive { mass: MASS }).unwrap();
        plan.attend(&mut cache, 0, &q, &mut out).unwrap();
        let budget = SharedBudget::new(4 * 2 * 100, 5, MASS);
        assert_eq!(budget.limits(&plan.report(), 4), [BlockLimits::default(); 4]);
    }

    #[test]
    fn without_a_report_shares_are_equal_and_never_below_the_floor() {
        let nothing = Report { heads: vec![] };
        assert!(SharedBudget::new(100, 5, MASS).limits(&nothing, 0).is_empty());
        assert_eq!(SharedBudget::new(100, 5, MASS).limits(&nothing, 2).len(), 2);
        assert!(SharedBudget::new(0, 7, MASS).limits(&nothing, 3).iter().all(|l| l.max >= 7));
    }
}
