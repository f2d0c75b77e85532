//! What steps read, added up: in all, by layer and KV head, by step.

use psa::{DecodePlan, Path, Shape};

/// Counts of one or many steps.
#[derive(Clone, Debug)]
pub struct Reading {
    shape: Shape,
    /// Blocks read and blocks there were, `[layers, kv_heads]`.
    by_head: Vec<(u64, u64)>,
    /// Share of the blocks read in each step.
    by_step: Vec<f64>,
    metadata_bytes: u64,
    kv_bytes: u64,
    rows: u64,
    topped_up: u64,
    /// Mass believed read: sum and count of `1 - mass`, and its largest.
    believed: (f64, u64),
    believed_max: f64,
}

impl Reading {
    /// Nothing yet.
    pub fn new(shape: Shape) -> Reading {
        Reading {
            shape,
            by_head: vec![(0, 0); shape.layers * shape.kv_heads],
            by_step: vec![],
            metadata_bytes: 0,
            kv_bytes: 0,
            rows: 0,
            topped_up: 0,
            believed: (0.0, 0),
            believed_max: 0.0,
        }
    }

    /// Adds the plan's last step, of the batch entries that `counts`.
    pub fn add(&mut self, plan: &DecodePlan, counts: impl Fn(usize) -> bool) {
        let (mut read, mut total) = (0, 0);
        let token_bytes = 2 * self.shape.head_dim * psa::Dtype::BYTES;
        for layer in 0..self.shape.layers {
            for head in plan.heads(layer).filter(|head| counts(head.entry)) {
                let at = &mut self.by_head[layer * self.shape.kv_heads + head.kv_head];
                at.0 += head.blocks_read as u64;
                at.1 += head.blocks_total as u64;
                read += head.blocks_read;
                total += head.blocks_total;
                self.metadata_bytes += head.metadata_bytes as u64;
                self.kv_bytes += (head.tokens * token_bytes) as u64;
                self.rows += 1;
                self.topped_up += u64::from(matches!(head.path, Path::ToppedUp | Path::Everything));
                // Policies that rank without masses (budgets) believe nothing, and dense misses nothing.
                if head.path != Path::Dense {
                    for &mass in head.mass {
                        let missed = 1.0 - mass as f64;
                        self.believed = (self.believed.0 + missed, self.believed.1 + 1);
                        self.believed_max = self.believed_max.max(missed);
                    }
                }
            }
        }
        if total > 0 {
            self.by_step.push(read as f64 / total as f64);
        }
    }

    /// Share of the blocks of K and V read.
    pub fn kv_fraction(&self) -> f64 {
        let (read, total) = self.by_head.iter().fold((0, 0), |(r, t), (read, total)| (r + read, t + total));
        ratio(read as f64, total as f64)
    }

    /// Bytes of metadata read for each byte of K and V there was.
    pub fn metadata_fraction(&self) -> f64 {
        ratio(self.metadata_bytes as f64, self.kv_bytes as f64)
    }

    /// Bytes of K, V and metadata read by a step, on average.
    pub fn bytes_per_step(&self) -> f64 {
        let kv = self.kv_bytes as f64 * self.kv_fraction();
        ratio(kv + self.metadata_bytes as f64, self.by_step.len() as f64)
    }

    /// Share of (step, layer, KV head) whose plan had to be topped up.
    pub fn topup_fraction(&self) -> f64 {
        ratio(self.topped_up as f64, self.rows as f64)
    }

    /// Missed mass as the policy believes: mean and largest over steps, layers and query heads.
    pub fn believed_missed(&self) -> (f64, f64) {
        (ratio(self.believed.0, self.believed.1 as f64), self.believed_max)
    }

    /// Share of the blocks read, `[layers, kv_heads]`.
    pub fn by_head(&self) -> Vec<f64> {
        self.by_head.iter().map(|&(read, total)| ratio(read as f64, total as f64)).collect()
    }

    /// Share of the blocks read in each step.
    pub fn by_step(&self) -> &[f64] {
        &self.by_step
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}
