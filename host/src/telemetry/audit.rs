//! The truth for a sample: dense attention recomputed in f64 from the K and V that the cache holds.
//!
//! Which (step, layer, batch entry, KV head) are sampled depends on the seed and on these numbers alone, so a run can be
//! repeated. An audit copies the head's K and V to the host and takes time by the length; heads that are not sampled
//! cost nothing.
//!
//! Where the plan keeps a record ([`DecodePlan::with_record`]), the missed mass is the sum over the blocks that were not
//! read, exact to f64's rounding. Without one it is `1 - exp(lse - lse_dense)`, which is as good as the lse: about 1e-6.

use crate::{DecodePlan, Error, HeadRead, KvCache, Path, Rows, SequenceId, Shape, widen};
use kernels_gpu::layout::BLOCK;

/// What a certified bound may be below the truth as f64 arithmetic finds it: a sum of up to 2^21 masses in f64 is off by less
/// than 2^21 * 2^-53 = 2.4e-10 of itself.
const F64_ROUNDING: f64 = 2.5e-10;

/// What any other belief may be below the truth before it counts as too low: it comes from f32 attention, whose masses are
/// off by about 1e-6, and ten times that is still nothing to anybody.
const F32_ROUNDING: f64 = 1e-5;

/// Which heads are audited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Audit {
    rate: f64,
    seed: u64,
}

/// What was believed and what is true, for one (step, layer, sequence, KV head).
#[derive(Clone, Debug, PartialEq)]
pub struct AuditRecord {
    /// Step, as the caller counts them.
    pub step: u64,
    /// The sequence.
    pub sequence: SequenceId,
    /// Its place in the batch.
    pub entry: usize,
    /// Layer.
    pub layer: usize,
    /// KV head.
    pub kv_head: usize,
    /// Blocks read.
    pub blocks_read: usize,
    /// Blocks there were.
    pub blocks_total: usize,
    /// What became of the plan.
    pub path: Path,
    /// True where what is believed is a bound.
    pub certified: bool,
    /// Share of the softmax mass believed missed, by query head of the group.
    pub believed_missed: Vec<f64>,
    /// Share truly missed.
    pub true_missed: Vec<f64>,
    /// ||o - o_dense|| / ||o_dense||.
    pub output_error: Vec<f64>,
    /// |lse - lse_dense|.
    pub lse_error: Vec<f64>,
}

impl AuditRecord {
    /// Query heads that missed more than was believed, by more than rounding explains.
    pub fn underestimated(&self) -> usize {
        let pairs = self.true_missed.iter().zip(&self.believed_missed);
        let rounding = if self.certified { F64_ROUNDING } else { F32_ROUNDING };
        let held = pairs.filter(|(truth, believed)| **truth <= **believed + rounding).count();
        // So that NaN counts.
        self.true_missed.len() - held
    }
}

impl Audit {
    /// Audits a share `rate` of all heads, chosen by `seed`: 0 none, 1 all.
    ///
    /// # Errors
    /// [`Error::Config`] where the rate is not a share.
    pub fn new(rate: f64, seed: u64) -> Result<Audit, Error> {
        if !(0.0..=1.0).contains(&rate) {
            return Err(Error::Config {
                what: format!("audit rate {rate}"),
                remedy: "use a share of the heads from 0 to 1".into(),
            });
        }
        Ok(Audit { rate, seed })
    }

    /// The same rate with another sample, by a name: so that runs side by side are not all sampled in the same steps.
    pub fn named(self, name: &str) -> Audit {
        Audit { seed: name.bytes().fold(self.seed, |seed, byte| mix(seed ^ u64::from(byte))), ..self }
    }

    /// Whether this one is in the sample.
    pub fn samples(&self, step: u64, layer: usize, entry: usize, kv_head: usize) -> bool {
        let numbers = [step, layer as u64, entry as u64, kv_head as u64];
        let hash = numbers.into_iter().fold(mix(self.seed), |hash, number| mix(hash ^ number));
        // The upper 53 bits as a number in [0, 1): a rate of 1 takes all, 0 none.
        ((hash >> 11) as f64 * (-53f64).exp2()) < self.rate
    }

    /// Audits the sampled heads of a layer's last step.
    ///
    /// q, out, lse: what went into [`DecodePlan::attend_with_lse`] and came out of it. The cache may have grown since;
    /// the sequences must still be there.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Dtype`], [`Error::UnknownSequence`], [`Error::UnknownLayer`], the device's.
    #[allow(clippy::too_many_arguments)] // What a step is and what came of it.
    pub fn check<'a>(
        &self,
        step: u64,
        plan: &DecodePlan,
        cache: &mut KvCache,
        layer: usize,
        q: impl Into<Rows<'a>>,
        out: &[f32],
        lse: &[f32],
    ) -> Result<Vec<AuditRecord>, Error> {
        let q = q.into();
        let Shape { q_heads, head_dim, dtype, .. } = plan.shape();
        let batch = plan.sequences().len();
        let layout = || format!("[batch = {batch}, q_heads = {q_heads}, head_dim = {head_dim}]");
        q.check("q", dtype, batch * q_heads * head_dim, layout, false)?;
        for (tensor, expected, got) in
            [("out", batch * q_heads * head_dim, out.len()), ("lse", batch * q_heads, lse.len())]
        {
            if got != expected {
                return Err(Error::Length { tensor, expected, got, layout: layout() });
            }
        }
        let sampled = plan.heads(layer).filter(|head| self.samples(step, layer, head.entry, head.kv_head));
        sampled.map(|head| audit(step, plan, cache, head, q, out, lse)).collect()
    }
}

fn audit(
    step: u64,
    plan: &DecodePlan,
    cache: &mut KvCache,
    head: HeadRead<'_>,
    q: Rows<'_>,
    out: &[f32],
    lse: &[f32],
) -> Result<AuditRecord, Error> {
    let Shape { q_heads, head_dim: d, dtype, .. } = plan.shape();
    let HeadRead { sequence, entry, layer, kv_head, .. } = head;
    let (k, v) = cache.keys_and_values(sequence, layer, kv_head, head.tokens)?;
    let exact = |bits: &[u16]| bits.iter().map(|&x| widen(dtype, x) as f64).collect::<Vec<f64>>();
    let (k, v) = (exact(&k), exact(&v));
    let group = head.mass.len();
    let selection = plan.selection(layer, entry, kv_head);
    let mut record = AuditRecord {
        step,
        sequence,
        entry,
        layer,
        kv_head,
        blocks_read: head.blocks_read,
        blocks_total: head.blocks_total,
        path: head.path,
        certified: head.certified,
        believed_missed: (0..group).map(|g| head.missed(g) as f64).collect(),
        true_missed: Vec::with_capacity(group),
        output_error: Vec::with_capacity(group),
        lse_error: Vec::with_capacity(group),
    };
    for g in 0..group {
        let row = entry * q_heads + kv_head * group + g;
        let dense = Dense::of(&exact(&q.bits()[row * d..][..d]), &k, &v, plan.scale() as f64);
        let lse = lse[row] as f64;
        record.true_missed.push(match (selection, dense.masses.is_empty()) {
            (_, true) => 0.0,
            (Some(read), false) => dense.unread(read),
            (None, false) => (1.0 - (lse - dense.lse).exp()).max(0.0),
        });
        record.output_error.push(relative_error(&out[row * d..][..d], &dense.out));
        // Both are -inf where there is no token.
        record.lse_error.push(if lse == dense.lse { 0.0 } else { (lse - dense.lse).abs() });
    }
    Ok(record)
}

/// Dense attention of one query head.
struct Dense {
    /// Share of the softmax mass of every block.
    masses: Vec<f64>,
    out: Vec<f64>,
    lse: f64,
}

impl Dense {
    fn of(q: &[f64], k: &[f64], v: &[f64], scale: f64) -> Dense {
        let d = q.len();
        let scores: Vec<f64> =
            k.chunks_exact(d).map(|k| scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
        let mut masses: Vec<f64> = weights.chunks(BLOCK).map(|block| block.iter().sum()).collect();
        let total: f64 = masses.iter().sum();
        masses.iter_mut().for_each(|mass| *mass /= total);
        let mut out = vec![0.0; d];
        for (weight, v) in weights.iter().zip(v.chunks_exact(d)) {
            out.iter_mut().zip(v).for_each(|(out, v)| *out += weight / total * v);
        }
        Dense { masses, out, lse: top + total.ln() }
    }

    /// Share of the mass outside the blocks `read`.
    fn unread(&self, read: &[u32]) -> f64 {
        let mut unread = vec![true; self.masses.len()];
        for &block in read {
            if let Some(unread) = unread.get_mut(block as usize) {
                *unread = false;
            }
        }
        // What was not read is summed, not what was: small misses stay exact, and dense is exactly 0.
        self.masses.iter().zip(unread).filter(|(_, unread)| *unread).fold(0.0, |sum, (mass, _)| sum + mass)
    }
}

/// ||a - b|| / ||b||; the norm of the difference itself where b is zero.
fn relative_error(a: &[f32], b: &[f64]) -> f64 {
    let difference = a.iter().zip(b).map(|(a, b)| (*a as f64 - b).powi(2)).sum::<f64>().sqrt();
    let size = b.iter().map(|b| b * b).sum::<f64>().sqrt();
    if size > 0.0 { difference / size } else { difference }
}

/// splitmix64's finaliser: every bit of the number moves every bit of the result.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_as_large_as_asked_for_and_the_seed_decides_which() {
        let sample = |rate: f64, seed: u64| -> Vec<bool> {
            let audit = Audit::new(rate, seed).unwrap();
            (0..20_000u64)
                .map(|i| audit.samples(i / 100, (i / 10 % 10) as usize, 0, (i % 10) as usize))
                .collect()
        };
        let count = |sample: &[bool]| sample.iter().filter(|x| **x).count();
        assert_eq!((count(&sample(0.0, 7)), count(&sample(1.0, 7))), (0, 20_000));
        // Binomial with a deviation of sqrt(20,000 * .05 * .95) = 31: six of them.
        assert!(count(&sample(0.05, 7)).abs_diff(1000) < 6 * 31, "{}", count(&sample(0.05, 7)));
        assert_eq!(sample(0.05, 7), sample(0.05, 7));
        assert_ne!(sample(0.05, 7), sample(0.05, 8));
        let [a, b] = ["case0", "case1"].map(|name| Audit::new(0.5, 7).unwrap().named(name));
        let steps = |audit: Audit| (0..64).map(move |step| audit.samples(step, 0, 0, 0));
        assert!(!steps(a).eq(steps(b)), "cases are sampled in steps of their own");
        for rate in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let error = Audit::new(rate, 0).unwrap_err().to_string();
            assert!(error.contains(&rate.to_string()) && error.contains("0 to 1"), "{error}");
        }
    }

    #[test]
    fn who_missed_more_than_believed_is_counted_and_rounding_is_not() {
        let shape = Shape { layers: 1, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: crate::Dtype::F16 };
        let mut cache = KvCache::new(&crate::Device::cpu(), shape, crate::CacheConfig::default()).unwrap();
        let sequence = cache.add_sequence().unwrap();
        let count = |certified: bool, believed: &[f64], truth: &[f64]| {
            let record = AuditRecord {
                step: 0,
                sequence,
                entry: 0,
                layer: 0,
                kv_head: 0,
                blocks_read: 1,
                blocks_total: 2,
                path: Path::Planned,
                certified,
                believed_missed: believed.to_vec(),
                true_missed: truth.to_vec(),
                output_error: vec![],
                lse_error: vec![],
            };
            record.underestimated()
        };
        // Above by much, above by f32's rounding, below, and no number at all.
        let (believed, truth) = ([0.05, 0.05, 0.05, 0.05], [0.06, 0.05 + 5e-6, 0.04, f64::NAN]);
        assert_eq!(count(false, &believed, &truth), 2);
        assert_eq!(count(true, &believed, &truth), 3, "a bound is above the truth to f64's rounding");
        assert_eq!(count(true, &[0.05], &[0.05 + 1e-10]), 0);
    }
}
