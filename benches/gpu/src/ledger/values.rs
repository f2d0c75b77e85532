//! What the instructions are tried on: edge values, every exponent, dense sweeps, random bits. Appended as words, so that
//! NaN payloads and subnormals stay as they are.

use half::f16;
use psa_tests::Rng;

use super::module::MMA_LANE_WORDS;

/// Edge values of f32.
fn edges() -> Vec<f32> {
    let mut list = vec![0.0, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 1e-45, 1.17e-38, 0.5, 1.0];
    list.extend([1.5, 2.0, 3.0, 1.0 + f32::EPSILON, 1.0 - f32::EPSILON / 2.0, 16_777_216.0, 4_294_967_040.0]);
    list.extend([
        4_294_967_296.0,
        65_504.0,
        65_519.996,
        65_520.0,
        6e-8,
        126.0,
        127.0,
        128.0,
        127.999_99,
        149.0,
    ]);
    list.extend([125.999_99, 126.000_01, 1e30, 1e-30, std::f32::consts::LN_2, std::f32::consts::SQRT_2]);
    let negative: Vec<f32> = list.iter().map(|x| -x).collect();
    list.extend(negative);
    list
}

/// Edge values, every exponent, a dense sweep of `low .. high`, random bits.
pub fn unary(out: &mut Vec<u32>, low: f32, high: f32) {
    const SWEEP: u32 = 60_000;
    let mut rng = Rng(1);
    out.extend(edges().iter().map(|x| x.to_bits()));
    for exponent in 0..=255u32 {
        for mantissa in [0, 1, 0x2a_aaaa, 0x3f_ffff, 0x40_0000, 0x40_0001, 0x7f_fffe, 0x7f_ffff] {
            out.extend([exponent << 23 | mantissa, 1 << 31 | exponent << 23 | mantissa]);
        }
    }
    out.extend((0..SWEEP).map(|i| (low + (high - low) * (i as f32 / SWEEP as f32)).to_bits()));
    out.extend((0..20_000).map(|_| rng.next_u64() as u32));
}

/// `n` values at a time: pairs of edge values, then random ones of like and of unlike size.
pub fn tuples(out: &mut Vec<u32>, n: usize) {
    let edges = edges();
    let mut rng = Rng(n as u64);
    for &a in &edges {
        for &b in &edges {
            out.extend([a.to_bits(), b.to_bits()]);
            // The third value is another one each time.
            let at = out.len() / n;
            out.extend((2..n).map(|i| edges[(at + i) % edges.len()].to_bits()));
        }
    }
    for i in 0..40_000 {
        for _ in 0..n {
            let word = rng.next_u64() as u32;
            // Every other tuple has exponents near 127: sums cancel, products stay in range.
            out.push(if i % 2 == 0 { word } else { word & 0x80ff_ffff | 0x3f00_0000 });
        }
    }
}

/// u32 of every size, and ties of 24 bits.
pub fn integers(out: &mut Vec<u32>) {
    let mut rng = Rng(3);
    for shift in 0..32 {
        let power = 1u32 << shift;
        out.extend([power, power.wrapping_sub(1), power | 1, power.wrapping_neg(), !power]);
    }
    // Ties of 24 bits.
    out.extend((0..256).map(|i| 0x0100_0000 + i));
    out.extend((0..30_000).map(|i| (rng.next_u64() as u32) >> (i % 32)));
}

/// u64 of every size, and ties of 24 bits.
pub fn long_integers(out: &mut Vec<u32>) {
    let mut rng = Rng(4);
    let mut push = |x: u64| out.extend([x as u32, (x >> 32) as u32]);
    for shift in 0..64 {
        let power = 1u64 << shift;
        [power, power.wrapping_sub(1), power | 1, power.wrapping_neg(), !power]
            .into_iter()
            .for_each(&mut push);
        // A tie, and just off it, below the 24 bits of a number of this size.
        if shift >= 25 {
            let half = 1u64 << (shift - 24);
            [power + half, power + half + 1, power + half - 1, power + 3 * half]
                .into_iter()
                .for_each(&mut push);
        }
    }
    (0..30_000).for_each(|i| push(rng.next_u64() >> (i % 64)));
}

/// Pairs of f64: edge values with each other, random bits, and sizes at which sums cancel.
pub fn double_pairs(out: &mut Vec<u32>) {
    let mut rng = Rng(8);
    let mut edges: Vec<f64> = edges().into_iter().map(f64::from).collect();
    edges.extend([f64::MAX, f64::MIN_POSITIVE, 5e-324, 1.0 + f64::EPSILON, 2f64.powi(53), -1e300, 1e-300]);
    for &a in &edges {
        for &b in &edges {
            [a, b].iter().for_each(|x| push_double(out, x.to_bits()));
        }
    }
    for i in 0..40_000 {
        for _ in 0..2 {
            let bits = rng.next_u64();
            push_double(
                out,
                if i % 2 == 0 { bits } else { bits & 0x803f_ffff_ffff_ffff | 0x3fc0_0000_0000_0000 },
            );
        }
    }
}

/// f64 at f32, halfway between two of them, and just off either.
pub fn doubles_beside_floats(out: &mut Vec<u32>) {
    let mut floats = Vec::new();
    unary(&mut floats, -2.0, 2.0);
    let mut rng = Rng(9);
    for bits in floats {
        let float = f64::from(f32::from_bits(bits)).to_bits();
        // A f32 has 29 bits less; below 2^-126 more than that, which random low bits try.
        let low = rng.next_u64() & 0x1fff_ffff;
        for step in [0, 1 << 28, (1 << 28) + 1, (1 << 28) - 1, low] {
            push_double(out, float.wrapping_add(step));
        }
    }
}

fn push_double(out: &mut Vec<u32>, bits: u64) {
    out.extend([bits as u32, (bits >> 32) as u32]);
}

/// f32 around the halves: every f16 and bf16, ties and their neighbours, subnormals, overflow.
pub fn halves(out: &mut Vec<u32>) {
    let mut rng = Rng(5);
    out.extend(edges().iter().map(|x| x.to_bits()));
    for i in 0..4096u32 {
        let half = f16::from_bits((i * 16 + i % 16) as u16).to_f32().to_bits();
        out.extend([half, half.wrapping_add(0x1000), half.wrapping_add(0x0fff), half.wrapping_add(0x1001)]);
        let bhalf = i << 20 | (i % 16) << 16;
        out.extend([bhalf, bhalf | 0x8000, bhalf | 0x7fff, bhalf | 0x8001]);
    }
    out.extend((0..20_000).map(|_| (rng.next_u64() as u32) & 0x8fff_ffff | 0x3000_0000));
    out.extend((0..20_000).map(|_| rng.next_u64() as u32));
}

/// [`halves`], each beside another one.
pub fn half_pairs(out: &mut Vec<u32>) {
    halves(out);
    // Each value beside another one.
    let rotated: Vec<u32> = out.iter().skip(7).chain(out.iter().take(7)).copied().collect();
    *out = out.iter().zip(rotated).flat_map(|(&a, b)| [a, b]).collect();
}

/// Edge words and random ones, three at a time.
pub fn words3(out: &mut Vec<u32>) {
    let mut rng = Rng(6);
    let edges = [0, 1, 0x7fff_7fff, 0x8000_8000, 0xffff_ffff, 0x8000_7fff, 0x00ff_00ff];
    for a in edges {
        for b in edges {
            for c in edges {
                out.extend([a, b, c]);
            }
        }
    }
    out.extend((0..90_000).map(|_| rng.next_u64() as u32));
}

/// 64 warps of fragments: like sizes, sizes far apart, and large ones beside a small c.
pub fn mma_inputs(out: &mut Vec<u32>, round: fn(f32) -> u16) {
    let mut rng = Rng(7);
    for warp in 0..64 {
        for _ in 0..32 {
            for _ in 0..6 {
                let mut element = || {
                    let size = match warp % 3 {
                        0 => 1.0,
                        1 => 2f32.powi(rng.below(16) as i32 - 8),
                        _ => 1000.0,
                    };
                    u32::from(round(rng.normal() * size))
                };
                out.push(element() | element() << 16);
            }
            out.extend((0..MMA_LANE_WORDS - 6).map(|_| (rng.normal() * 3.0).to_bits()));
        }
    }
}
