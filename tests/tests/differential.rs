//! Three executions agree: reference (f64 where bits are free), CPU, and the shipped PTX on the
//! emulator with its checkers on. Estimates and plans are equal bit for bit, the blocks read are the
//! same set, outputs are within the bound of each one's arithmetic.

use psa::{
    Budget, CacheConfig, Capacity, DecodePlan, Device, Dtype, Forced, KvCache, Mirror, MirrorFormat, Policy,
    Shape,
};
use psa_tests::{Arithmetic, Outcome, Tensor, Workload, run, run_forced, step_bounds};

fn shape(kv_heads: usize, group: usize, head_dim: usize, dtype: Dtype) -> Shape {
    Shape { layers: 1, q_heads: kv_heads * group, kv_heads, head_dim, dtype }
}

/// Compares a step on a device with the reference.
fn check(what: &str, workload: &Workload, reference: &Outcome, got: &Outcome) {
    let scale = 1.0 / (workload.shape.head_dim as f64).sqrt();
    for (i, s) in workload.sequences.iter().enumerate() {
        for (h, (want, have)) in reference.log_mass[i].iter().zip(&got.log_mass[i]).enumerate() {
            let bits =
                |x: &Option<Vec<f32>>| x.as_ref().map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            assert_eq!(bits(want), bits(have), "{what}, sequence {i}: estimates of query head {h}");
        }
        assert_eq!(reference.selection[i], got.selection[i], "{what}, sequence {i}: blocks by rank");
        for (want, have) in reference.heads[i].iter().zip(&got.heads[i]) {
            assert_eq!(want.metadata_bytes, have.metadata_bytes, "{what}, sequence {i}: mirror bytes read");
        }
        for h in 0..workload.shape.q_heads {
            let head = &got.heads[i][h / workload.shape.group()];
            let arithmetic = if what.starts_with("emulator") {
                Arithmetic::Kernels { topups: head.topups }
            } else {
                Arithmetic::F32
            };
            let (bound, lse_bound) = step_bounds(&workload.shape, s, h, scale, arithmetic);
            let d = workload.shape.head_dim;
            for c in 0..d {
                let (want, have) = (reference.out[i][h * d + c], got.out[i][h * d + c]);
                let error = (want as f64 - have as f64).abs();
                // Written so that NaN fails.
                assert!(
                    error <= bound,
                    "{what}, sequence {i}, head {h}, channel {c}: {have} for {want}, bound {bound:e}"
                );
            }
            let (want, have) = (reference.lse[i][h], got.lse[i][h]);
            assert!(
                want == have || (want as f64 - have as f64).abs() <= lse_bound,
                "{what}, sequence {i}, head {h}: lse {have} for {want}, bound {lse_bound:e}"
            );
        }
    }
}

fn compare(workload: &Workload, mirror: Mirror, policy: Policy) {
    let reference = run(&Device::reference(), workload, mirror, policy).unwrap();
    for device in [Device::cpu(), Device::emulator()] {
        let got = run(&device, workload, mirror, policy).unwrap();
        let lengths: Vec<usize> = workload.sequences.iter().map(|s| s.tokens).collect();
        let what = format!("{} {:?} {mirror} {policy} {lengths:?}", device.name(), workload.shape);
        check(&what, workload, &reference, &got);
    }
}

const LENGTHS: [usize; 14] = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000];

#[test]
fn every_length_agrees_alone() {
    for (i, n) in LENGTHS.into_iter().enumerate() {
        let workload = Workload::random(shape(1, 3, 64, Dtype::F16), &[n], 10 + i as u64);
        for policy in [Policy::Dense, Policy::Progressive { mass: 0.95 }, Policy::TopK(Budget::Fraction(0.3))]
        {
            compare(&workload, Mirror::Nested, policy);
        }
    }
}

#[test]
fn a_long_context_agrees() {
    let workload = Workload::random(shape(1, 4, 64, Dtype::Bf16), &[4096], 20);
    compare(&workload, Mirror::Nested, Policy::Progressive { mass: 0.95 });
    compare(&workload, Mirror::Bits4, Policy::Progressive { mass: 0.9 });
    compare(&workload, Mirror::Box, Policy::Quest(Budget::Fraction(0.2)));
    compare(&workload, Mirror::Nested, Policy::Dense);
}

#[test]
fn a_context_longer_than_one_cta_sorts_agrees() {
    // 8,200 blocks, the last of three tokens; beside it a short one, planned by the same launches.
    let workload = Workload::random(shape(1, 1, 64, Dtype::Bf16), &[16 * 8199 + 3, 200], 21);
    compare(&workload, Mirror::Bits2, Policy::Progressive { mass: 0.9 });
}

#[test]
fn every_specialisation_agrees_on_a_batch_of_unequal_lengths() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for head_dim in [64, 128] {
            for group in 1..=8 {
                let workload =
                    Workload::random(shape(2, group, head_dim, dtype), &[200, 1, 65, 391], group as u64);
                compare(&workload, Mirror::Nested, Policy::Progressive { mass: 0.9 });
                compare(&workload, Mirror::Bits2, Policy::TopK(Budget::Fraction(0.5)));
                compare(&workload, Mirror::Bits4, Policy::TopP { mass: 0.9 });
                compare(&workload, Mirror::Box, Policy::Quest(Budget::Blocks(9)));
            }
        }
    }
}

#[test]
fn a_prediction_that_falls_short_is_topped_up_alike() {
    // Where scores are large, the estimate of the best blocks is far off, and so is the prediction.
    let workload = Workload::random(shape(2, 4, 64, Dtype::F16), &[700, 1200, 2000], 30).sharpened(2.5);
    let mut chunks = 0;
    for mass in [0.8, 0.9, 0.97, 0.995] {
        let policy = Policy::Progressive { mass };
        compare(&workload, Mirror::Nested, policy);
        let got = run(&Device::emulator(), &workload, Mirror::Nested, policy).unwrap();
        chunks += got.heads.iter().flatten().map(|h| h.topups).sum::<usize>();
    }
    assert!(chunks > 0, "no step of this test was topped up: it tests nothing");
}

/// Keys of one KV head, 64 dims, changed by `change(token, channel, key)`.
fn with_keys(
    lengths: &[usize],
    seed: u64,
    dtype: Dtype,
    change: impl Fn(usize, usize, f32) -> f32,
) -> Workload {
    let mut workload = Workload::random(shape(1, 5, 64, dtype), lengths, seed);
    for s in &mut workload.sequences {
        let keys = s.k.to_f64();
        let keys: Vec<f32> =
            keys.iter().enumerate().map(|(i, &k)| change(i / 64, i % 64, k as f32)).collect();
        s.k = Tensor::new(dtype, &keys);
    }
    workload
}

/// Estimates, order and bytes of a step, with the checkers on; the outputs are not compared.
fn estimates_agree(what: &str, workload: &Workload, policy: Policy) {
    let reference = run(&Device::reference(), workload, Mirror::Nested, policy).unwrap();
    for device in [Device::cpu(), Device::emulator()] {
        let got = run(&device, workload, Mirror::Nested, policy).unwrap();
        let what = format!("{} {what}", device.name());
        let bits = |outcome: &Outcome| -> Vec<u32> {
            outcome.log_mass.iter().flatten().flatten().flatten().map(|x| x.to_bits()).collect()
        };
        assert_eq!(bits(&reference), bits(&got), "{what}: estimates");
        assert_eq!(reference.selection, got.selection, "{what}: blocks by rank");
        for (want, have) in reference.heads.iter().flatten().zip(got.heads.iter().flatten()) {
            assert_eq!(want.metadata_bytes, have.metadata_bytes, "{what}: mirror bytes read");
        }
    }
}

#[test]
fn odd_keys_are_looked_at_twice_alike() {
    let lengths = [320, 190, 64];
    let policy = Policy::TopP { mass: 0.9 };
    for dtype in [Dtype::F16, Dtype::Bf16] {
        // f16 reaches 65,504; of bf16 the mirror's zero and step saturate there.
        let large = if dtype == Dtype::F16 { 6e4 } else { 3e38 };
        let huge =
            |t: usize, c: usize, k: f32| if t == 77 { large * (1.0 - 2.0 * (c % 2) as f32) } else { k };
        estimates_agree("one huge key", &with_keys(&lengths, 64, dtype, huge), policy);
        let tiny = if dtype == Dtype::F16 { 6e-8 } else { 1e-39 };
        estimates_agree("subnormal keys", &with_keys(&lengths, 65, dtype, |_, _, k| k * tiny), policy);
        estimates_agree("keys of zero", &with_keys(&lengths, 66, dtype, |_, _, _| 0.0), policy);
        let needle = |t: usize, _: usize, k: f32| if t == 100 { 8.0 * k } else { 0.01 * k };
        estimates_agree("a needle", &with_keys(&lengths, 67, dtype, needle), policy);
        estimates_agree(
            "one channel",
            &with_keys(&lengths, 68, dtype, |_, c, k| if c == 5 { k } else { 1.0 }),
            policy,
        );
    }
}

#[test]
fn a_second_look_is_taken_at_some_blocks_and_not_at_all() {
    // Otherwise the tests of this file would compare one look only.
    let workload = Workload::random(shape(2, 2, 64, Dtype::Bf16), &[1024, 300], 69);
    let got = run(&Device::emulator(), &workload, Mirror::Nested, Policy::Progressive { mass: 0.9 }).unwrap();
    for (s, heads) in workload.sequences.iter().zip(&got.heads) {
        let format = MirrorFormat::new(Mirror::Nested, 64).unwrap();
        let pages = s.tokens / 64;
        for head in heads {
            let first = pages * format.first_bytes(64);
            assert!(head.metadata_bytes > first && head.metadata_bytes < pages * format.page_bytes(64));
            assert_eq!((head.metadata_bytes - first) % format.fine_bytes(64), 0);
        }
    }
}

#[test]
fn steps_in_a_row_agree() {
    // The kernels count their CTAs in memory that one step leaves to the next; groups fill on the way, and the batch
    // changes.
    let shape = shape(2, 3, 64, Dtype::Bf16);
    let workload = Workload::random(shape, &[322, 133], 71);
    let row = shape.token_elements();
    let steps = |device: &Device| {
        let config = CacheConfig { capacity: Capacity::Tokens(1024), ..CacheConfig::default() };
        let mut cache = KvCache::new(device, shape, config).unwrap();
        let ids: Vec<_> = workload.sequences.iter().map(|_| cache.add_sequence().unwrap()).collect();
        let mut seen = Vec::new();
        for step in 0..4 {
            for (s, &id) in workload.sequences.iter().zip(&ids) {
                let now = s.tokens - 3 + step;
                let before = if step == 0 { 0 } else { now - 1 };
                let (from, to) = (before * row, now * row);
                cache.append(id, 0, s.k.rows(from, to), s.v.rows(from, to)).unwrap();
            }
            for batch in [vec![0], vec![0, 1]] {
                let of: Vec<_> = batch.iter().map(|&i| ids[i]).collect();
                let q = psa_tests::stack(shape.dtype, batch.iter().map(|&i| &workload.sequences[i].q));
                let mut out = vec![0.0; batch.len() * shape.query_elements()];
                let mut plan =
                    DecodePlan::new(&cache, &of, Policy::Progressive { mass: 0.9 }).unwrap().with_record();
                plan.attend(&mut cache, 0, q.all(), &mut out).unwrap();
                let report = plan.report();
                for (b, h) in (0..batch.len()).flat_map(|b| (0..shape.kv_heads).map(move |h| (b, h))) {
                    let metadata = report.heads[b * shape.kv_heads + h].metadata_bytes;
                    seen.push((plan.selection(0, b, h).unwrap().to_vec(), metadata));
                }
            }
        }
        seen
    };
    let want = steps(&Device::reference());
    assert_eq!(want, steps(&Device::cpu()));
    assert_eq!(want, steps(&Device::emulator()));
}

#[test]
fn no_forced_blocks_at_all_agree() {
    let workload = Workload::random(shape(1, 2, 64, Dtype::F16), &[128, 640], 40);
    let forced = Forced { sink: 0, recent: 0 };
    for policy in [Policy::TopK(Budget::Blocks(1)), Policy::Progressive { mass: 0.5 }] {
        let reference = run_forced(&Device::reference(), &workload, Mirror::Nested, policy, forced).unwrap();
        let got = run_forced(&Device::emulator(), &workload, Mirror::Nested, policy, forced).unwrap();
        check("emulator", &workload, &reference, &got);
        if policy == Policy::TopK(Budget::Blocks(1)) {
            assert!(got.selection.iter().flatten().all(|s| s.len() == 1));
        }
    }
}

#[test]
fn a_sequence_without_tokens_gets_zeros_everywhere() {
    let workload = Workload::random(shape(2, 2, 64, Dtype::Bf16), &[0, 33], 50);
    for device in [Device::reference(), Device::cpu(), Device::emulator()] {
        for policy in [Policy::Dense, Policy::Progressive { mass: 0.95 }] {
            let got = run(&device, &workload, Mirror::Nested, policy).unwrap();
            assert!(got.out[0].iter().all(|&x| x == 0.0), "{}", device.name());
            assert!(got.lse[0].iter().all(|&x| x == f32::NEG_INFINITY), "{}", device.name());
            assert!(got.out[1].iter().any(|&x| x != 0.0));
        }
    }
}

#[test]
fn equal_keys_tie_alike() {
    // Every key the same: all masses are equal, so the order is by index alone.
    let mut workload = Workload::random(shape(1, 2, 64, Dtype::F16), &[512], 60);
    let s = &mut workload.sequences[0];
    if let Tensor::F16(k) = &mut s.k {
        repeat_first(k);
    }
    compare(&workload, Mirror::Nested, Policy::TopK(Budget::Blocks(10)));
    let got = run(&Device::emulator(), &workload, Mirror::Nested, Policy::TopK(Budget::Blocks(10))).unwrap();
    assert_eq!(got.selection[0][0], [0, 30, 31, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn exact_ties_with_the_target_are_decided_alike() {
    // Every key the same: n of 32 blocks hold n / 32 of the mass, so a target of k / 32 is met exactly, and what
    // decides is each device's rounding. 4 bits predict k blocks themselves.
    for (seed, dtype) in [(61, Dtype::F16), (62, Dtype::Bf16), (63, Dtype::F16)] {
        let mut workload = Workload::random(shape(1, 3, 64, dtype), &[512], seed);
        let s = &mut workload.sequences[0];
        match &mut s.k {
            Tensor::F16(k) => repeat_first(k),
            Tensor::Bf16(k) => repeat_first(k),
        }
        for k in [8, 12, 16, 20, 24, 28] {
            for mirror in [Mirror::Nested, Mirror::Bits2, Mirror::Bits4] {
                compare(&workload, mirror, Policy::Progressive { mass: k as f32 / 32.0 });
            }
        }
    }
}

fn repeat_first<T: Copy>(rows: &mut [T]) {
    let first = rows[..64].to_vec();
    rows.chunks_mut(64).for_each(|row| row.copy_from_slice(&first));
}
