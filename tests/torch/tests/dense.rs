//! Dense attention of every device is torch's, in f64, f32, and in the 16-bit type itself.

mod common;

use common::{
    LENGTHS, device_bound, difference, reference_bound, shapes, shares, torch, torch_16_bit_bound,
    torch_f32_bound,
};
use psa::{Device, Dtype, Mirror, Policy};
use psa_tests::{Workload, run};
use psa_torch_oracle::Kind;

fn workloads() -> impl Iterator<Item = Workload> {
    let all = [Dtype::F16, Dtype::Bf16].into_iter().flat_map(shapes);
    all.enumerate().map(|(seed, shape)| Workload::random(shape, &LENGTHS, 100 + seed as u64))
}

#[test]
fn the_reference_is_torch_in_f64() {
    for workload in workloads() {
        let shape = workload.shape;
        let outcome = run(&Device::reference(), &workload, Mirror::Bits2, Policy::Dense).unwrap();
        for (i, s) in workload.sequences.iter().enumerate() {
            let want = torch(&shape, s, None, Kind::Double);
            let found = difference(&shape, &want, &outcome, i, |h| reference_bound(&shape, &want, h));
            assert_eq!(found, None, "{shape:?}, {} tokens", s.tokens);
        }
    }
}

#[test]
fn cpu_and_kernels_are_torch_in_f64_and_in_f32() {
    for workload in workloads() {
        let shape = workload.shape;
        for device in [Device::cpu(), Device::emulator()] {
            let outcome = run(&device, &workload, Mirror::Bits2, Policy::Dense).unwrap();
            for (i, s) in workload.sequences.iter().enumerate() {
                let what = format!("{}, {shape:?}, {} tokens", device.name(), s.tokens);
                let ours = |h| device_bound(&device, &shape, s, &outcome, i, h);
                let exact = torch(&shape, s, None, Kind::Double);
                assert_eq!(difference(&shape, &exact, &outcome, i, ours), None, "{what}, f64");

                let both = |h| {
                    let ((out, lse), (torch_out, torch_lse)) = (ours(h), torch_f32_bound(&shape, s, h));
                    (out.iter().map(|x| x + torch_out).collect(), lse.map(|x| x + torch_lse))
                };
                let float = torch(&shape, s, None, Kind::Float);
                assert_eq!(difference(&shape, &float, &outcome, i, both), None, "{what}, f32");
            }
        }
    }
}

#[test]
fn cpu_and_kernels_are_torch_in_sixteen_bits() {
    for workload in workloads() {
        let shape = workload.shape;
        let kind = if shape.dtype == Dtype::Bf16 { Kind::BFloat16 } else { Kind::Half };
        for device in [Device::cpu(), Device::emulator()] {
            let outcome = run(&device, &workload, Mirror::Bits2, Policy::Dense).unwrap();
            for (i, s) in workload.sequences.iter().enumerate() {
                let want = torch(&shape, s, None, kind);
                // Our own error comes on top. Torch's lse in 16 bits is too coarse to say anything.
                let bound = |h| {
                    let ours = device_bound(&device, &shape, s, &outcome, i, h).0;
                    let torch = torch_16_bit_bound(&shape, s, None, h);
                    (ours.iter().zip(torch).map(|(a, b)| a + b).collect(), None)
                };
                let found = difference(&shape, &want, &outcome, i, bound);
                assert_eq!(found, None, "{}, {shape:?}, {} tokens", device.name(), s.tokens);
            }
        }
    }
}

#[test]
fn sixteen_bits_are_enough_to_see_a_missing_block() {
    for dtype in [Dtype::Bf16, Dtype::F16] {
        for shape in shapes(dtype) {
            let workload = Workload::random(shape, &[1000], 11);
            let s = &workload.sequences[0];
            let kind = if dtype == Dtype::Bf16 { Kind::BFloat16 } else { Kind::Half };
            let outcome = run(&Device::cpu(), &workload, Mirror::Bits2, Policy::Dense).unwrap();
            let (block, _) = shares(&shape, s, &outcome, 0, 0)[0];
            let mut mask = vec![true; shape.q_heads * s.tokens];
            mask[16 * block as usize..][..16].fill(false);
            let want = torch(&shape, s, Some(&mask), kind);
            let bound = |h| (torch_16_bit_bound(&shape, s, Some(&mask), h), None);
            let found = difference(&shape, &want, &outcome, 0, bound);
            assert!(found.is_some_and(|d| d.starts_with("head 0")), "{shape:?}: block {block}");
        }
    }
}

#[test]
fn a_nan_and_swapped_heads_are_told_apart_from_torch() {
    let workload = Workload::random(shapes(Dtype::F16).nth(1).unwrap(), &[64], 7);
    let (shape, s) = (workload.shape, &workload.sequences[0]);
    let good = run(&Device::reference(), &workload, Mirror::Bits2, Policy::Dense).unwrap();
    let want = torch(&shape, s, None, Kind::Double);
    let found = |outcome| difference(&shape, &want, outcome, 0, |h| reference_bound(&shape, &want, h));
    assert_eq!(found(&good), None);

    let mut bad = good.clone();
    bad.out[0][3] = f32::NAN;
    assert!(found(&bad).is_some_and(|d| d.contains("channel 3")));
    let mut bad = good.clone();
    bad.lse[0][1] = f32::NAN;
    assert!(found(&bad).is_some_and(|d| d.contains("lse")));
    let mut bad = good.clone();
    bad.out[0].rotate_left(shape.head_dim);
    assert!(found(&bad).is_some());
}
