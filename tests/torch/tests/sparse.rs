//! What a sparse step gives is torch's attention over exactly the blocks that the plan says it read.
//!
//! The plan's selection becomes a mask; torch knows nothing else of it. So these tests see a block that is
//! read but not reported, reported but not read, or read twice.

mod common;

use common::{
    LENGTHS, device_bound, difference, mask, reference_bound, shapes, shares, torch, torch_f32_bound,
};
use psa::{Budget, Device, Dtype, Mirror, Policy, Shape};
use psa_tests::{Outcome, Workload, run};
use psa_torch_oracle::Kind;

const POLICIES: [(Mirror, Policy); 5] = [
    (Mirror::Bits2, Policy::Progressive { mass: 0.95 }),
    (Mirror::Bits4, Policy::Progressive { mass: 0.9 }),
    (Mirror::Bits2, Policy::TopK(Budget::Fraction(0.2))),
    (Mirror::Box, Policy::Quest(Budget::Fraction(0.3))),
    (Mirror::Bits4, Policy::TopP { mass: 0.8 }),
];

fn workloads() -> impl Iterator<Item = Workload> {
    // Types alternate over the shapes; dense.rs has all combinations.
    let all = shapes(Dtype::F16).zip(shapes(Dtype::Bf16)).enumerate();
    all.map(|(i, (a, b))| Workload::random(if i % 2 == 0 { a } else { b }, &LENGTHS, 200 + i as u64))
}

/// Compares sequence `i` of a step with torch under `mask`.
fn compare(
    device: &Device,
    workload: &Workload,
    outcome: &Outcome,
    i: usize,
    mask: &[bool],
    kind: Kind,
) -> Option<String> {
    let (shape, s) = (workload.shape, &workload.sequences[i]);
    let want = torch(&shape, s, Some(mask), kind);
    difference(&shape, &want, outcome, i, |h| {
        if device.name() == "reference" {
            return reference_bound(&shape, &want, h);
        }
        let (mut out, mut lse) = device_bound(device, &shape, s, outcome, i, h);
        if kind == Kind::Float {
            let (torch_out, torch_lse) = torch_f32_bound(&shape, s, h);
            out.iter_mut().for_each(|x| *x += torch_out);
            lse = lse.map(|x| x + torch_lse);
        }
        (out, lse)
    })
}

#[test]
fn every_policy_attends_to_what_it_says_it_read() {
    let mut partly = 0;
    for workload in workloads() {
        for (mirror, policy) in POLICIES {
            for device in [Device::reference(), Device::cpu(), Device::emulator()] {
                let outcome = run(&device, &workload, mirror, policy).unwrap();
                for (i, s) in workload.sequences.iter().enumerate() {
                    let mask = mask(&workload.shape, s, &outcome, i);
                    partly += usize::from(mask.contains(&false));
                    let what =
                        format!("{} {policy} {:?}, {} tokens", device.name(), workload.shape, s.tokens);
                    let found = compare(&device, &workload, &outcome, i, &mask, Kind::Double);
                    assert_eq!(found, None, "{what}, f64");
                    if device.name() != "reference" {
                        let found = compare(&device, &workload, &outcome, i, &mask, Kind::Float);
                        assert_eq!(found, None, "{what}, f32");
                    }
                }
            }
        }
    }
    // The 1,000 tokens of every workload, policy and device.
    assert!(partly >= 6 * POLICIES.len() * 3, "only {partly} steps left something out");
}

#[test]
fn a_topped_up_step_attends_to_the_top_up_as_well() {
    // Large scores: the prediction falls short.
    let shape = Shape { layers: 1, q_heads: 8, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
    let workload = Workload::random(shape, &[700, 1000], 30).sharpened(2.5);
    for device in [Device::reference(), Device::cpu(), Device::emulator()] {
        let mut topups = 0;
        for mass in [0.9, 0.97, 0.995] {
            let outcome = run(&device, &workload, Mirror::Bits2, Policy::Progressive { mass }).unwrap();
            topups += outcome.heads.iter().flatten().map(|h| h.topups).sum::<usize>();
            for (i, s) in workload.sequences.iter().enumerate() {
                let mask = mask(&shape, s, &outcome, i);
                let found = compare(&device, &workload, &outcome, i, &mask, Kind::Double);
                assert_eq!(found, None, "{} progressive:{mass}, {} tokens", device.name(), s.tokens);
            }
        }
        assert!(topups > 0, "{}: nothing was topped up, this tests nothing", device.name());
    }
}

#[test]
fn one_block_too_few_or_too_many_in_the_mask_is_noticed() {
    let shape = Shape { layers: 1, q_heads: 6, kv_heads: 2, head_dim: 64, dtype: Dtype::Bf16 };
    let workload = Workload::random(shape, &[1000], 9);
    let s = &workload.sequences[0];
    for device in [Device::reference(), Device::cpu(), Device::emulator()] {
        let policy = Policy::Progressive { mass: 0.9 };
        let outcome = run(&device, &workload, Mirror::Bits2, policy).unwrap();
        let good = mask(&shape, s, &outcome, 0);
        let passes = |mask: &[bool]| compare(&device, &workload, &outcome, 0, mask, Kind::Double).is_none();
        assert!(passes(&good));

        for head in 0..shape.q_heads {
            let shares = shares(&shape, s, &outcome, 0, head);
            let set = |block: u32, value: bool| {
                let mut mask = good.clone();
                let first = head * s.tokens + 16 * block as usize;
                mask[first..(first + 16).min((head + 1) * s.tokens)].fill(value);
                mask
            };
            // A share moves the lse by as much: far more than the bound down to 1e-3 in f32 and 1e-6 in f64.
            let seen = if device.name() == "reference" { 1e-6 } else { 1e-3 };
            let mut tried = 0;
            for &(block, _) in shares.iter().filter(|(_, share)| *share > seen) {
                assert!(!passes(&set(block, false)), "{}, head {head}: block {block} missing", device.name());
                tried += 1;
            }
            assert!(tried >= 3, "only {tried} blocks of head {head} carry any mass");

            let read = &outcome.selection[0][head / shape.group()];
            let unread = (0..s.tokens.div_ceil(16) as u32).find(|b| !read.contains(b)).unwrap();
            if device.name() == "reference" {
                assert!(!passes(&set(unread, true)), "head {head}: block {unread} too many");
            }
        }
    }
}
