//! Tail compensation: the definition on every device, the sums behind it, and what is refused.

mod common;

use common::{Batch, Tensor};
use psa::driver::EmulatedOptions;
use psa::{Budget, DecodePlan, Device, Dtype, Error, KvCache, Mirror, Policy, SequenceId, Shape};

const SHAPE: Shape = Shape { layers: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
const GROUP: usize = 2;
const D: usize = 64;
const POLICY: Policy = Policy::Progressive { mass: 0.8 };

/// What a plan gives for the sequences' queries: out, lse, mass by query head, metadata bytes.
struct Given {
    out: Vec<f32>,
    lse: Vec<f32>,
    mass: Vec<f32>,
    metadata: usize,
}

fn attend(cache: &mut KvCache, ids: &[SequenceId], q: &Tensor, policy: Policy, weight: f32) -> Given {
    let mut plan = DecodePlan::new(cache, ids, policy).unwrap().with_tail(weight).unwrap();
    let (mut out, mut lse) = (vec![0.0; ids.len() * 4 * D], vec![0.0; ids.len() * 4]);
    plan.attend_with_lse(cache, 0, q.rows(), &mut out, &mut lse).unwrap();
    let report = plan.report();
    let mass = report.heads.iter().flat_map(|head| head.mass.clone()).collect();
    Given { out, lse, mass, metadata: report.metadata_bytes() }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Mean of V over the first `tokens` tokens of a KV head of entry b.
fn mean(batch: &Batch, b: usize, kv_head: usize, tokens: usize) -> Vec<f64> {
    let mut sum = vec![0.0; D];
    for t in 0..tokens {
        let row = &batch.v[b].rows().bits()[(t * 2 + kv_head) * D..][..D];
        sum.iter_mut().zip(row).for_each(|(sum, &v)| *sum += psa::widen(Dtype::F16, v) as f64);
    }
    sum.iter().map(|sum| sum / tokens as f64).collect()
}

fn devices() -> Vec<Device> {
    vec![Device::cpu(), Device::reference(), Device::emulator_with(EmulatedOptions::default())]
}

#[test]
fn the_rest_counts_at_the_mean_of_the_full_groups_on_every_device() {
    // 5 and 4 full groups, an open one, and a context that is read whole.
    let lengths = [330, 256 + 7, 40];
    let batch = Batch::random(SHAPE, &lengths, 1);
    let q = batch.queries(&[0, 1, 2]);
    for device in devices() {
        for policy in [POLICY, Policy::TopK(Budget::Fraction(0.3)), Policy::TopP { mass: 0.8 }] {
            let (mut cache, ids) = batch.cache(&device, Mirror::Nested);
            let plain = attend(&mut cache, &ids, &q, policy, 0.0);
            let tail = attend(&mut cache, &ids, &q, policy, 0.5);
            assert_eq!(
                (bits(&plain.lse), bits(&plain.mass)),
                (bits(&tail.lse), bits(&tail.mass)),
                "{policy}"
            );
            let mut compensated = 0;
            for (b, &length) in lengths.iter().enumerate() {
                for head in 0..4 {
                    let (at, m) = (b * 4 + head, plain.mass[b * 4 + head] as f64);
                    let (before, after) = (&plain.out[at * D..][..D], &tail.out[at * D..][..D]);
                    if m == 1.0 {
                        assert_eq!(bits(before), bits(after), "{} {policy} {b} {head}", device.name());
                        continue;
                    }
                    compensated += 1;
                    let mean = mean(&batch, b, head / GROUP, length / 64 * 64);
                    for ((before, after), mean) in before.iter().zip(after).zip(mean) {
                        let rest = 0.5 * (1.0 - m);
                        let expected = (m * *before as f64 + rest * mean) / (m + rest);
                        // Both are the same formula in f64, rounded to f32 once; sums of V may associate differently.
                        let bound = 1e-6 * (expected.abs() + before.abs() as f64);
                        assert!((*after as f64 - expected).abs() <= bound, "{after} against {expected}");
                    }
                }
            }
            assert!(compensated >= 4, "{policy}: {compensated}");
            // f32 of each channel, of the two KV heads of each long sequence that left something.
            let more = tail.metadata - plain.metadata;
            assert!(more > 0 && more <= 4 * 4 * D && more.is_multiple_of(4 * D), "{more}");
        }
    }
}

#[test]
fn it_brings_the_output_nearer_to_dense_where_values_have_a_mean() {
    // V around 2 in every channel: what is left out shows at once. Keys nearly flat: much is left.
    let mut batch = Batch::random(SHAPE, &[512], 2);
    let n = 512 * SHAPE.token_elements();
    let (noise, keys) = (Tensor::random(Dtype::F16, n, 0.3, 3), Tensor::random(Dtype::F16, n, 0.2, 4));
    let raised = noise.rows().bits().iter().map(|&x| 2.0 + psa::widen(Dtype::F16, x)).collect::<Vec<_>>();
    // Tokens alternate between values near 2 and near -2 by block: an even mean, so reading some is a biased sample.
    let raised =
        raised.iter().enumerate().map(|(i, v)| if (i / (16 * 2 * D)).is_multiple_of(4) { -*v } else { *v });
    batch.v = vec![Tensor::new(Dtype::F16, raised)];
    batch.k = vec![keys];
    let (mut cache, ids) = batch.cache(&Device::cpu(), Mirror::Nested);
    let q = batch.queries(&[0]);
    let dense = attend(&mut cache, &ids, &q, Policy::Dense, 0.0);
    let error = |given: &Given| -> f64 {
        given.out.iter().zip(&dense.out).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>().sqrt()
    };
    let policy = Policy::Progressive { mass: 0.5 };
    let errors: Vec<f64> =
        [0.0, 0.5, 1.0].iter().map(|&weight| error(&attend(&mut cache, &ids, &q, policy, weight))).collect();
    assert!(errors[1] < 0.9 * errors[0] && errors[2] < errors[1], "{errors:?}");
}

#[test]
fn sums_follow_truncation_forks_and_removal() {
    let (a, b) = (Batch::random(SHAPE, &[400], 5), Batch::random(SHAPE, &[400], 6));
    let q = a.queries(&[0]);
    let token = SHAPE.token_elements();
    let fresh = |cut: usize| {
        let mut config = a.config(Mirror::Nested);
        config.max_sequences = 4;
        let mut cache = KvCache::new(&Device::cpu(), SHAPE, config).unwrap();
        let id = cache.add_sequence().unwrap();
        cache.append(id, 0, a.k[0].part(0, cut * token), a.v[0].part(0, cut * token)).unwrap();
        let rest = (cut * token, 400 * token);
        cache.append(id, 0, b.k[0].part(rest.0, rest.1), b.v[0].part(rest.0, rest.1)).unwrap();
        attend(&mut cache, &[id], &q, POLICY, 0.5).out
    };
    let mut config = a.config(Mirror::Nested);
    config.capacity = psa::Capacity::Tokens(4 * 448);
    config.max_sequences = 2;
    let mut cache = KvCache::new(&Device::cpu(), SHAPE, config).unwrap();
    let id = cache.add_sequence().unwrap();
    cache.append(id, 0, a.k[0].rows(), a.v[0].rows()).unwrap();
    attend(&mut cache, &[id], &q, POLICY, 0.5);
    for cut in [330, 130] {
        // A fork has the tokens of its source, and goes its own way.
        let fork = cache.fork_at(id, cut).unwrap();
        let rest = (cut * token, 400 * token);
        cache.append(fork, 0, b.k[0].part(rest.0, rest.1), b.v[0].part(rest.0, rest.1)).unwrap();
        assert_eq!(bits(&attend(&mut cache, &[fork], &q, POLICY, 0.5).out), bits(&fresh(cut)), "fork {cut}");
        cache.remove_sequence(fork).unwrap();
        // Cut, and grown again to the same length with other tokens.
        cache.truncate(id, cut).unwrap();
        cache.append(id, 0, b.k[0].part(rest.0, rest.1), b.v[0].part(rest.0, rest.1)).unwrap();
        assert_eq!(bits(&attend(&mut cache, &[id], &q, POLICY, 0.5).out), bits(&fresh(cut)), "cut {cut}");
        cache.truncate(id, 0).unwrap();
        cache.append(id, 0, a.k[0].rows(), a.v[0].rows()).unwrap();
        attend(&mut cache, &[id], &q, POLICY, 0.5);
    }
}

#[test]
fn what_has_no_estimate_of_the_rest_is_refused() {
    let batch = Batch::random(SHAPE, &[200], 7);
    let (mut cache, ids) = batch.cache(&Device::cpu(), Mirror::Nested);
    let with = |policy, weight| DecodePlan::new(&cache, &ids, policy).unwrap().with_tail(weight);
    for policy in [Policy::Dense, Policy::Certified { missed: 0.05 }, Policy::Oracle { mass: 0.9 }] {
        let error = with(policy, 0.5).unwrap_err();
        assert!(
            matches!(error, Error::Policy { .. }) && error.to_string().contains("progressive"),
            "{error}"
        );
        with(policy, 0.0).unwrap();
    }
    for weight in [-0.1, 1.5, f32::NAN, f32::INFINITY] {
        let error = with(POLICY, weight).unwrap_err().to_string();
        assert!(error.contains(&format!("{weight}")) && error.contains("0 to 1"), "{error}");
    }
    // Reports that stay on the device leave the masses there.
    let (mut emulated, its_ids) = batch.cache(&Device::emulator(), Mirror::Nested);
    emulated.defer_reports(true).unwrap();
    let mut plan = DecodePlan::new(&emulated, &its_ids, POLICY).unwrap().with_tail(0.5).unwrap();
    let error = plan.attend(&mut emulated, 0, batch.q[0].rows(), &mut [0.0; 4 * D]).unwrap_err();
    assert!(error.to_string().contains("defer_reports(false)"), "{error}");
    attend(&mut cache, &ids, &batch.q[0], POLICY, 0.0);
}
