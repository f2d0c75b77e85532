//! Identity: reading everything, by whatever policy, gives the bits of dense attention.

use psa::{Budget, Device, Dtype, Mirror, Policy, Shape};
use psa_tests::{Workload, run};

fn bits(device: &Device, workload: &Workload, policy: Policy) -> Vec<Vec<u32>> {
    let got = run(device, workload, Mirror::Bits2, policy).unwrap();
    (0..workload.sequences.len()).map(|i| got.bits(i)).collect()
}

#[test]
fn dense_equals_the_identity_plan_bitwise() {
    for (head_dim, dtype) in [(64, Dtype::F16), (128, Dtype::Bf16)] {
        let shape = Shape { layers: 1, q_heads: 6, kv_heads: 2, head_dim, dtype };
        let workload = Workload::random(shape, &[1, 100, 128, 777], 1);
        for device in [Device::reference(), Device::cpu(), Device::emulator()] {
            let dense = bits(&device, &workload, Policy::Dense);
            for policy in [
                Policy::Progressive { mass: 1.0 },
                Policy::TopK(Budget::Fraction(1.0)),
                Policy::TopK(Budget::Blocks(1_000_000)),
                Policy::TopP { mass: 1.0 },
            ] {
                assert_eq!(dense, bits(&device, &workload, policy), "{} {policy}", device.name());
            }
        }
    }
}

#[test]
fn short_contexts_are_read_whole_and_bitwise_dense() {
    // Fewer than two mirror pages: psa::short. Nothing is scored.
    let shape = Shape { layers: 1, q_heads: 4, kv_heads: 1, head_dim: 64, dtype: Dtype::Bf16 };
    let workload = Workload::random(shape, &[5, 16, 48, 63, 127], 2);
    for device in [Device::reference(), Device::cpu(), Device::emulator()] {
        let dense = bits(&device, &workload, Policy::Dense);
        assert_eq!(dense, bits(&device, &workload, Policy::Progressive { mass: 0.5 }), "{}", device.name());
    }
}

#[test]
fn a_sparse_step_differs_from_dense() {
    // The twin of the tests above: the comparison can fail.
    let shape = Shape { layers: 1, q_heads: 4, kv_heads: 1, head_dim: 64, dtype: Dtype::Bf16 };
    let workload = Workload::random(shape, &[777], 3);
    for device in [Device::reference(), Device::cpu(), Device::emulator()] {
        let dense = bits(&device, &workload, Policy::Dense);
        assert_ne!(dense, bits(&device, &workload, Policy::Progressive { mass: 0.7 }), "{}", device.name());
    }
}
