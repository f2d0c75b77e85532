//! Determinism and batch invariance: a sequence gives the same bits alone, in any batch, in any order,
//! under any schedule.

use psa::driver::EmulatedOptions;
use psa::{Budget, Device, Dtype, Mirror, Policy, Shape};
use psa_tests::{Workload, run};

const SHAPE: Shape = Shape { layers: 1, q_heads: 6, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };

fn policies() -> [Policy; 3] {
    [Policy::Dense, Policy::Progressive { mass: 0.95 }, Policy::TopK(Budget::Fraction(0.25))]
}

#[test]
fn batch_and_order_leave_the_bits_unchanged() {
    let workload = Workload::random(SHAPE, &[900, 64, 1, 333, 1300], 7);
    for device in [Device::cpu(), Device::reference(), Device::emulator()] {
        for policy in policies() {
            let together = run(&device, &workload, Mirror::Nested, policy).unwrap();
            let permuted = [3, 0, 4, 2, 1];
            let other = run(&device, &workload.pick(&permuted), Mirror::Nested, policy).unwrap();
            for (place, &i) in permuted.iter().enumerate() {
                assert_eq!(together.bits(i), other.bits(place), "{} {policy}: sequence {i}", device.name());
                assert_eq!(together.selection[i], other.selection[place]);
                let alone = run(&device, &workload.pick(&[i]), Mirror::Nested, policy).unwrap();
                assert_eq!(together.bits(i), alone.bits(0), "{} {policy}: sequence {i} alone", device.name());
                assert_eq!(together.selection[i], alone.selection[0]);
            }
        }
    }
}

#[test]
fn the_schedule_leaves_the_bits_unchanged() {
    let workload = Workload::random(SHAPE, &[500, 130], 8);
    let seeds = if std::env::var_os("PSA_QUICK").is_some() { 1..4 } else { 1..25 };
    let run_with = |seed| {
        let device = Device::emulator_with(EmulatedOptions { seed, ..EmulatedOptions::default() });
        let got = run(&device, &workload, Mirror::Nested, Policy::Progressive { mass: 0.97 }).unwrap();
        (got.bits(0), got.bits(1), got.selection)
    };
    let first = run_with(0);
    for seed in seeds {
        assert_eq!(first, run_with(seed), "seed {seed}");
    }
}
