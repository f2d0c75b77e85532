//! Three executions agree: reference (f64 where bits are free), CPU, and the shipped PTX on the
//! emulator with its checkers on. Estimates and plans are equal bit for bit, the blocks read are the
//! same set, outputs are within the bound of each one's arithmetic.

use psa::{Budget, Device, Dtype, Forced, Mirror, Policy, Shape};
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

const LENGTHS: [usize; 8] = [1, 15, 16, 17, 63, 64, 65, 1000];

#[test]
fn every_length_agrees_alone() {
    for (i, n) in LENGTHS.into_iter().enumerate() {
        let workload = Workload::random(shape(1, 3, 64, Dtype::F16), &[n], 10 + i as u64);
        for policy in [Policy::Dense, Policy::Progressive { mass: 0.95 }, Policy::TopK(Budget::Fraction(0.3))]
        {
            compare(&workload, Mirror::Bits2, policy);
        }
    }
}

#[test]
fn a_long_context_agrees() {
    let workload = Workload::random(shape(1, 4, 64, Dtype::Bf16), &[4096], 20);
    compare(&workload, Mirror::Bits2, Policy::Progressive { mass: 0.95 });
    compare(&workload, Mirror::Bits4, Policy::Progressive { mass: 0.9 });
    compare(&workload, Mirror::Box, Policy::Quest(Budget::Fraction(0.2)));
    compare(&workload, Mirror::Bits2, Policy::Dense);
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
                compare(&workload, Mirror::Bits2, Policy::Progressive { mass: 0.9 });
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
        compare(&workload, Mirror::Bits2, policy);
        let got = run(&Device::emulator(), &workload, Mirror::Bits2, policy).unwrap();
        chunks += got.heads.iter().flatten().map(|h| h.topups).sum::<usize>();
    }
    assert!(chunks > 0, "no step of this test was topped up: it tests nothing");
}

#[test]
fn no_forced_blocks_at_all_agree() {
    let workload = Workload::random(shape(1, 2, 64, Dtype::F16), &[128, 640], 40);
    let forced = Forced { sink: 0, recent: 0 };
    for policy in [Policy::TopK(Budget::Blocks(1)), Policy::Progressive { mass: 0.5 }] {
        let reference = run_forced(&Device::reference(), &workload, Mirror::Bits2, policy, forced).unwrap();
        let got = run_forced(&Device::emulator(), &workload, Mirror::Bits2, policy, forced).unwrap();
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
            let got = run(&device, &workload, Mirror::Bits2, policy).unwrap();
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
    compare(&workload, Mirror::Bits2, Policy::TopK(Budget::Blocks(10)));
    let got = run(&Device::emulator(), &workload, Mirror::Bits2, Policy::TopK(Budget::Blocks(10))).unwrap();
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
            for mirror in [Mirror::Bits2, Mirror::Bits4] {
                compare(&workload, mirror, Policy::Progressive { mass: k as f32 / 32.0 });
            }
        }
    }
}

fn repeat_first<T: Copy>(rows: &mut [T]) {
    let first = rows[..64].to_vec();
    rows.chunks_mut(64).for_each(|row| row.copy_from_slice(&first));
}
