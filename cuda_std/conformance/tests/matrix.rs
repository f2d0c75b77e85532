//! `ldmatrix`, `movmatrix` and `mma` on the emulator: fragments as documented, products as defined.

mod harness;

use half::{bf16, f16};
use harness::Gpu;
use psa_codegen::SpecType;
use psa_cuda_std_conformance::matrix::{fragments, multiply};

#[test]
fn fragments_hold_the_documented_elements() {
    // Element (matrix m, row r, column c) is its own number.
    let element = |m: usize, r: usize, c: usize| (m * 64 + r * 8 + c) as u32;
    let words: Vec<u32> = (0..128)
        .map(|w| (w / 32, w % 32 / 4, w % 4 * 2))
        .map(|(m, r, c)| element(m, r, c) | element(m, r, c + 1) << 16)
        .collect();
    let mut gpu = Gpu::new();
    let args = fragments::Args { matrices: gpu.input(&words), out: gpu.output(32 * 15) };
    gpu.run(&fragments::launch([1, 1, 1], args).expect("an instance"));
    let out = gpu.read(args.out, 32 * 15);
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4 * 2);
        let plain = |m| element(m, g, t) | element(m, g, t + 1) << 16;
        let transposed = |m| element(m, t, g) | element(m, t + 1, g) << 16;
        let mut expected = Vec::new();
        for count in [1, 2, 4] {
            expected.extend((0..count).map(plain));
            expected.extend((0..count).map(transposed));
        }
        expected.push(transposed(0));
        assert_eq!(out[lane * 15..][..15], expected, "lane {lane}");
    }
}

fn product<T: SpecType>(from_f32: fn(f32) -> T, to_bits: fn(T) -> u16) {
    // Small integers: every product and sum is exact, in any order of accumulation.
    let value = |i: usize, salt: usize| ((i * 7 + salt) % 13) as f32 - 6.0;
    let a: Vec<f32> = (0..256).map(|i| value(i, 1)).collect();
    let b: Vec<f32> = (0..128).map(|i| value(i, 5)).collect();
    let c: Vec<f32> = (0..128).map(|i| value(i, 9) * 100.0).collect();
    let bits = |v: &[f32]| v.iter().map(|&x| to_bits(from_f32(x))).collect::<Vec<u16>>();
    let mut gpu = Gpu::new();
    let args = multiply::Args::<T> {
        a: gpu.input(&bits(&a)).region().input(),
        b: gpu.input(&bits(&b)).region().input(),
        c: gpu.input(&c),
        d: gpu.output(128),
    };
    gpu.run(&multiply::launch::<T>([1, 1, 1], args).expect("an instance"));
    let d = gpu.read(args.d, 128);
    for row in 0..16 {
        for column in 0..8 {
            let dot: f32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
            assert_eq!(d[row * 8 + column], dot + c[row * 8 + column], "{} ({row}, {column})", T::NAME);
        }
    }
}

#[test]
fn products_are_exact_on_integers() {
    product(bf16::from_f32, bf16::to_bits);
    product(f16::from_f32, f16::to_bits);
}
