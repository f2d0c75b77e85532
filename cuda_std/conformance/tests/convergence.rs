//! Collectives stay whole: executed by all lanes, once, whatever branches stand around them.

mod harness;

use half::{bf16, f16};
use harness::Gpu;
use psa_cuda_std_conformance::PTX;
use psa_cuda_std_conformance::convergence::{between_branches, used_by_one_lane};

/// How often an opcode stands in an entry.
fn count(entry: &str, opcode: &str) -> usize {
    let start = PTX.find(&format!(".entry {entry}(")).expect(entry);
    let body = &PTX[start..];
    body[..body.find("\n}").expect("an end")].matches(opcode).count()
}

#[test]
fn no_collective_is_copied_into_branches_and_no_pin_is_left() {
    for (entry, opcode) in [
        ("used_by_one_lane", "shfl.sync"),
        ("used_by_one_lane", "vote.sync.any"),
        ("used_by_one_lane", "vote.sync.ballot"),
        ("used_by_one_lane", "match.any.sync"),
        ("used_by_one_lane", "redux.sync"),
        ("used_by_one_lane", "ldmatrix.sync"),
        ("used_by_one_lane", "movmatrix.sync"),
        ("used_by_one_lane", "f32.f16.f16.f32"),
        ("used_by_one_lane", "f32.bf16.bf16.f32"),
        ("between_branches", "bar.sync"),
        ("between_branches", "ldmatrix.sync"),
        ("between_branches", "movmatrix.sync"),
        ("between_branches", "f32.f16.f16.f32"),
        ("between_branches", "f32.bf16.bf16.f32"),
        ("between_branches", "shfl.sync"),
    ] {
        assert_eq!(count(entry, opcode), 1, "{opcode} in {entry}");
    }
    assert!(!PTX.contains("21, 2581, -1"), "a pin was not removed");
}

/// What the collectives give lane 0 of a warp with these words: shuffle, ldmatrix, movmatrix, mma f16, mma bf16.
fn lane_0(words: &[u32]) -> [u32; 5] {
    let halves = |word: u32| [word as u16, (word >> 16) as u16];
    // Row 0, columns 0 and 1 as they lie; transposed: rows 0 and 1 of column 0, which lanes 0 and 4 hold.
    let moved = (words[0] & 0xffff) | words[4] << 16;
    // Row 0 of A: k = 2t, 2t+1 in lane t and again 8 further; column 0 of B: the same in lane t.
    let product = |value: fn(u16) -> f32| -> u32 {
        let once: f32 = words[..4].iter().flat_map(|&word| halves(word)).map(|h| value(h) * value(h)).sum();
        (2.0 * once).to_bits()
    };
    [
        words[1],
        words[0],
        moved,
        product(|h| f16::from_bits(h).to_f32()),
        product(|h| bf16::from_bits(h).to_f32()),
    ]
}

/// Small integers in both 16-bit formats would differ in bits; these patterns are powers of two in each.
fn words(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 0x3c00_4000 + ((i % 4) << 10) + ((i % 3) << 26)).collect()
}

#[test]
fn results_that_one_lane_uses_are_computed_by_all() {
    let words = words(32);
    let mut gpu = Gpu::new();
    let args = used_by_one_lane::Args { words: gpu.input(&words), out: gpu.output(9) };
    gpu.run(&used_by_one_lane::launch([1, 1, 1], args).expect("an instance"));
    let [shuffled, row, moved, half, brain] = lane_0(&words);
    let same = (0..32).filter(|&l| words[l] / 2 == words[0] / 2).fold(0u32, |mask, l| mask | 1 << l);
    let sum = words.iter().fold(0u32, |a, &w| a.wrapping_add(w));
    assert_eq!(gpu.read(args.out, 9), [shuffled, 0, u32::MAX, same, sum, row, moved, half, brain]);
}

#[test]
fn collectives_between_branches_run_converged() {
    let words = words(64);
    let mut gpu = Gpu::new();
    let args = between_branches::Args { words: gpu.input(&words), out: gpu.output(128) };
    gpu.run(&between_branches::launch([1, 1, 1], args).expect("an instance"));
    for (t, out) in gpu.read(args.out, 128).chunks(2).enumerate() {
        let [shuffled, row, moved, half, brain] = lane_0(&words[t / 32 * 32..]);
        let result = [10, row, moved, half, brain, shuffled].iter().fold(0u32, |a, &v| a.wrapping_add(v));
        assert_eq!(out, if t % 32 == 0 { [1, result] } else { [2, 0] }, "thread {t}");
    }
}
