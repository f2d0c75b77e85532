//! `cuda_std::atomic` on the emulator: operations, and counting without loss.

mod harness;

use harness::Gpu;
use psa_cuda_std_conformance::atomics::{counters, floats, shared_atomics};

#[test]
fn counters_lose_nothing_and_operations_return_the_value_before() {
    let (f, d) = (1.5f32.to_bits(), 2.5f64.to_bits());
    let words = [1, 2, 3, (-7i32) as u32, 5, (-9i32) as u32, 0x1234, 0x1234, 0x1234, 9, 10, 0, 12, 13, f, 15];
    let wides = [u64::MAX - 1, 3, 5, 0x1_0000_1234, 0x1234, 0x1234, 6, 7, d, 9];
    let mut gpu = Gpu::new();
    let args = counters::Args {
        counts: gpu.input_mut(&[0u32; 5 * 15]),
        words: gpu.input_mut(&words),
        wides: gpu.input_mut(&wides),
        before: gpu.output::<u32>(36),
    };
    gpu.run(&counters::launch([5, 1, 1], args).expect("an instance"));
    for (index, count) in gpu.read(args.counts, 5 * 15).iter().enumerate() {
        let expected = match (index % 3, index / 15) {
            (0, _) => 64,
            (_, 0) => 5 * 64,
            _ => 0,
        };
        assert_eq!(*count, expected, "counter {index}");
    }
    let before = gpu.read(args.before, 36);
    assert_eq!(before[..16], words);
    let wide_before: Vec<u64> =
        before[16..].chunks(2).map(|w| u64::from(w[0]) | u64::from(w[1]) << 32).collect();
    assert_eq!(wide_before, wides);
    assert_eq!(
        gpu.read(args.words, 16),
        [
            6,
            (-3i32) as u32,
            3,
            (-7i32) as u32,
            u32::MAX - 1,
            5,
            0x1200,
            0xff34,
            0xed34,
            77,
            0,
            10,
            99,
            13,
            2.0f32.to_bits(),
            16,
        ]
    );
    assert_eq!(
        gpu.read(args.wides, 10),
        [3, 3, u64::MAX - 1, 0x1200, 0xff34, 0xed34, 77, 99, 3.0f64.to_bits(), 10]
    );
}

#[test]
fn atomic_floats_add_in_their_scope_and_change_bits() {
    let mut gpu = Gpu::new();
    let args = floats::Args {
        singles: gpu.input_mut(&[0.0f32; 3]),
        double: gpu.input_mut(&[0.0f64]),
        cells: gpu.input_mut(&[-1.5f32, 1.5, -1.5, 1.5]),
        before: gpu.output(4),
    };
    // One block: the sum of block scope is then exact too.
    gpu.run(&floats::launch([1, 1, 1], args).expect("an instance"));
    assert_eq!(gpu.read(args.singles, 3), [64.0; 3]);
    assert_eq!(gpu.read(args.double, 1), [64.0]);
    assert_eq!(gpu.read(args.cells, 4), [1.5, -1.5, 1.5, 3.0]);
    assert_eq!(gpu.read(args.before, 4), [-1.5, 1.5, -1.5, 1.5]);
}

#[test]
fn shared_atomics_lose_nothing_under_contention() {
    let mut gpu = Gpu::new();
    let args = shared_atomics::Args { out: gpu.output(11) };
    // One block: two would write the same `out`, which is a race.
    gpu.run(&shared_atomics::launch([1, 1, 1], args).expect("an instance"));
    let sum = 63 * 64 / 2;
    let expected = [
        sum,
        10,
        63,
        0xffff_ff00,
        0xff,
        (0..64).fold(0, |a, t| a ^ t),
        sum + 1000,
        (-(sum as i32)) as u32,
        (-63i32) as u32,
        5,
        (sum as f32).to_bits(),
    ];
    assert_eq!(gpu.read(args.out, 11), expected);
}
