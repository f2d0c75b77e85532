//! `cuda_std::half`, `float` and the arithmetic of `ptx` on the emulator, against the host.
//!
//! Exact operations must give the host's bits. Approximations are compared with f64 within the bound that
//! their documentation gives.

mod harness;

use half::{bf16, f16};
use harness::Gpu;
use psa_codegen::SpecType;
use psa_cuda_std_conformance::arithmetic::{approximations, dots, from_halves, rounding, to_halves};

/// Every power of two, values around ties of both 16-bit formats, denormals, infinities, a NaN; with signs.
fn inputs() -> Vec<f32> {
    let mut out =
        vec![0.0, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 65504.0, 65519.0, 65520.0, 1e-8];
    for exponent in -149..128 {
        let power = 2f32.powi(exponent);
        for step in [0.0, 1.0, 127.0, 128.0, 129.0, 255.0, 256.0, 257.0, 383.0, 384.0, 385.0, 511.0] {
            out.push(power + power * step / 32768.0);
            out.push(power + power * step / 262_144.0);
        }
    }
    out.extend([0.25, 0.5, 0.75, 1.5, 2.5, 3.5, 0.499_999_97, 8_388_607.5, 1.0e10]);
    let negative: Vec<f32> = out.iter().map(|x| -x).collect();
    out.extend(negative);
    out
}

fn blocks(n: usize) -> [u32; 3] {
    [n.div_ceil(128) as u32, 1, 1]
}

/// Equal bits, or both NaN.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn conversion_to_16_bits_rounds_as_the_host_does() {
    let values = inputs();
    let mut gpu = Gpu::new();
    let n = values.len();
    let args = to_halves::Args { values: gpu.input(&values), n: n as u32, out: gpu.output(n * 4) };
    gpu.run(&to_halves::launch(blocks(n), args).expect("an instance"));
    for (x, out) in values.iter().zip(gpu.read(args.out, n * 4).chunks(4)) {
        let nan = x.is_nan();
        let b = |bits: u32, x: f32| {
            if nan {
                bf16::from_bits(bits as u16).is_nan()
            } else {
                bits == u32::from(bf16::from_f32(x).to_bits())
            }
        };
        let h = |bits: u32, x: f32| {
            if nan {
                f16::from_bits(bits as u16).is_nan()
            } else {
                bits == u32::from(f16::from_f32(x).to_bits())
            }
        };
        assert!(b(out[0], *x), "bf16 of {x:e}: {:x}", out[0]);
        assert!(h(out[1], *x), "f16 of {x:e}: {:x}", out[1]);
        assert!(b(out[2] & 0xffff, *x) && b(out[2] >> 16, -x), "bf16x2 of {x:e}: {:x}", out[2]);
        assert!(h(out[3] & 0xffff, *x) && h(out[3] >> 16, -x), "f16x2 of {x:e}: {:x}", out[3]);
    }
}

fn every_pattern<T: SpecType>(from_bits: fn(u16) -> T, to_f32: fn(T) -> f32) {
    let values: Vec<T> = (0..=u16::MAX).map(from_bits).collect();
    let bits: Vec<u16> = (0..=u16::MAX).collect();
    let mut gpu = Gpu::new();
    let args =
        from_halves::Args::<T> { values: gpu.input(&bits).region().input(), out: gpu.output(2 * 65536) };
    gpu.run(&from_halves::launch::<T>([512, 1, 1], args).expect("an instance"));
    for (value, out) in values.into_iter().zip(gpu.read(args.out, 2 * 65536).chunks(2)) {
        let expected = to_f32(value);
        assert!(same(out[0], expected) && same(out[1], expected), "{expected:e}: {out:?}");
    }
}

#[test]
fn every_16_bit_pattern_widens_exactly() {
    every_pattern(bf16::from_bits, bf16::to_f32);
    every_pattern(f16::from_bits, f16::to_f32);
}

#[test]
fn exact_methods_give_the_host_s_bits() {
    let values = inputs();
    let n = values.len();
    let mut gpu = Gpu::new();
    let args = rounding::Args {
        values: gpu.input(&values),
        n: n as u32,
        single: gpu.output(n * 13),
        double: gpu.output(n * 13),
    };
    gpu.run(&rounding::launch(blocks(n), args).expect("an instance"));
    let (single, double) = (gpu.read(args.single, n * 13), gpu.read(args.double, n * 13));
    macro_rules! expected {
        ($x:expr) => {{
            let x = $x;
            [
                x.floor(),
                x.ceil(),
                x.round(),
                x.round_ties_even(),
                x.trunc(),
                x.fract(),
                x.abs(),
                x.copysign(-1.0),
                x.mul_add(3.0, 0.1),
                x.abs().sqrt(),
                x.recip(),
                x.max(0.5),
                x.min(0.5),
            ]
        }};
    }
    for (i, x) in values.iter().enumerate() {
        for (k, (found, expected)) in single[i * 13..].iter().zip(expected!(*x)).enumerate() {
            assert!(same(*found, expected), "{x:e}, method {k}: {found:e}, host {expected:e}");
        }
        for (k, (found, expected)) in double[i * 13..].iter().zip(expected!(f64::from(*x))).enumerate() {
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{x:e} as f64, method {k}: {found:e}, host {expected:e}");
        }
    }
}

#[test]
fn approximations_stay_within_their_documented_error() {
    let values: Vec<f32> =
        (-4000..4000).map(|i| i as f32 / 37.0).chain([1.0, 2.0, 0.5, 1e30, 1e-30]).collect();
    let n = values.len();
    let mut gpu = Gpu::new();
    let args = approximations::Args { values: gpu.input(&values), n: n as u32, out: gpu.output(n * 11) };
    gpu.run(&approximations::launch(blocks(n), args).expect("an instance"));
    let out = gpu.read(args.out, n * 11);
    for (i, &x) in values.iter().enumerate() {
        let (out, wide) = (&out[i * 11..][..11], f64::from(x));
        let magnitude = wide.abs();
        // Values and bounds where the result is a normal f32; a subnormal or infinite one has no relative error.
        let normal = |v: f64| v.abs() > f64::from(f32::MIN_POSITIVE) && v.abs() < f64::from(f32::MAX);
        let close = |k: usize, expected: f64, relative: f64, absolute: f64| {
            if normal(expected) || expected == 0.0 {
                let error = (f64::from(out[k]) - expected).abs();
                assert!(
                    error <= relative * expected.abs() + absolute,
                    "{x:e}, result {k}: {:e}, expected {expected:e}, error {error:e}",
                    out[k]
                );
            }
        };
        let bits = |b: i32| 2f64.powi(b);
        close(0, wide.exp2(), bits(-22), 0.0);
        close(1, wide.exp(), bits(-21), 0.0);
        close(4, wide.exp2(), bits(-22), 0.0);
        // Logarithms: absolute around 1, relative elsewhere; the product with ln 2 rounds once more.
        let near_one = (0.5..=2.0).contains(&magnitude);
        let (relative, absolute) = if near_one { (0.0, bits(-22)) } else { (bits(-22), 0.0) };
        if x != 0.0 {
            close(2, magnitude.log2(), relative, absolute);
            close(3, magnitude.ln(), relative + bits(-23), absolute);
            close(5, magnitude.log2(), relative, absolute);
            close(6, wide.recip(), bits(-23), 0.0);
            close(7, magnitude.sqrt().recip(), 2f64.powf(-22.4), 0.0);
        }
        assert_eq!(out[8].to_bits(), x.mul_add(3.0, 0.1).to_bits(), "{x:e}");
        assert_eq!((out[9], out[10]), (x.max(0.5), x.min(0.5)), "{x:e}");
    }
}

#[test]
fn dot_products_and_permutation_agree_with_the_host_s() {
    let operands: Vec<u32> =
        (0..3 * 512u32).map(|i| i.wrapping_mul(0x9e37_79b9).rotate_left(i % 32)).collect();
    let mut gpu = Gpu::new();
    let args = dots::Args { operands: gpu.input(&operands), n: 512, out: gpu.output(512 * 8) };
    gpu.run(&dots::launch(blocks(512), args).expect("an instance"));
    use cuda_std::ptx::*;
    for (row, out) in operands.chunks(3).zip(gpu.read(args.out, 512 * 8).chunks(8)) {
        let (a, b, c) = (row[0], row[1], row[2]);
        let expected = [
            dp2a_lo_s32_u32(a, b, c as i32) as u32,
            dp2a_hi_s32_u32(a, b, c as i32) as u32,
            dp2a_lo_u32_u32(a, b, c),
            dp2a_hi_u32_u32(a, b, c),
            dp4a_s32_s32(a, b, c as i32) as u32,
            dp4a_s32_u32(a, b, c as i32) as u32,
            dp4a_u32_u32(a, b, c),
            prmt(a, b, c),
        ];
        assert_eq!(out, expected, "{a:x} {b:x} {c:x}");
    }
}
