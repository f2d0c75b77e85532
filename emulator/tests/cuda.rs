//! Kernels that nvcc compiled from CUDA C++ (tests/cuda, each with its PTX), with every checker on
//! under several schedules: all clean, results equal to plain Rust.

mod common;

use common::bench::{Bench, IntoArg, Rng, SEEDS, erf};
use common::halves::{bf16, f16, from_bf16, from_f16};

#[test]
fn sums_by_atomics_and_by_the_last_block_are_clean_and_right() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/reduce.ptx"), seed);
        let x: Vec<f32> = (0..5000).map(|i| (i % 17) as f32 - 4.0).collect();
        let want: f32 = x.iter().sum();
        let (px, out) = (b.input(&x), b.input(&[0f32]));
        b.run("sum_atomic", [6, 1, 1], [128, 1, 1], &[px, out, 5000u32.into_arg()]);
        assert_eq!(b.output::<f32>(out, 1), [want]);
        let (partial, out) = (b.empty(4 * 9), b.empty(4));
        // Twice: the ticket counter wraps to zero by itself.
        for _ in 0..2 {
            b.run("sum_last_block", [9, 1, 1], [128, 1, 1], &[px, partial, out, 5000u32.into_arg()]);
            assert_eq!(b.output::<f32>(out, 1), [want]);
        }
        let best = b.input(&[0u64]);
        b.run("argmax", [40, 1, 1], [128, 1, 1], &[px, best, 5000u32.into_arg()]);
        // Of equal values the highest index wins.
        let at = (0..5000).rev().find(|i| i % 17 == 16).unwrap();
        assert_eq!(b.output::<u64>(best, 1)[0] as u32, at);
    }
}

#[test]
fn scans_that_look_back_at_flags_of_other_blocks_are_clean_and_right() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/scan.ptx"), seed);
        let n = 128 * 20 - 37;
        let x: Vec<i32> = (0..n).map(|i| i * 7 % 23 - 9).collect();
        let (px, y) = (b.input(&x), b.empty(4 * n as u64));
        let (aggregate, prefix) = (b.empty(80), b.empty(80));
        let (flags, ticket) = (b.input(&[0u32; 20]), b.input(&[0u32]));
        b.run(
            "scan_lookback",
            [20, 1, 1],
            [128, 1, 1],
            &[px, y, aggregate, prefix, flags, ticket, (n as u32).into_arg()],
        );
        let mut sum = 0;
        let want: Vec<i32> = x
            .iter()
            .map(|v| {
                sum += v;
                sum
            })
            .collect();
        assert_eq!(b.output::<i32>(y, n as usize), want);

        let (data, flag) = (b.input(&[1i32; 64]), b.input(&[0u32]));
        b.run("chain", [6, 1, 1], [64, 1, 1], &[data, flag, 3u32.into_arg()]);
        let mut v = 1i32;
        for block in 0..6 {
            for _ in 0..3 {
                v = v.wrapping_mul(3).wrapping_add(block);
            }
        }
        assert_eq!(b.output::<i32>(data, 64), [v; 64]);
    }
}

#[test]
fn a_radix_sort_of_eight_passes_sorts() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/radix.ptx"), seed);
        let mut rng = Rng(9);
        let n = 900usize;
        let blocks = n.div_ceil(128);
        let keys: Vec<u32> = (0..n).map(|_| rng.next() as u32).collect();
        let (mut from, mut to) = (b.input(&keys), b.empty(4 * n as u64));
        for pass in 0..8u32 {
            let counts = b.empty(4 * 16 * blocks as u64);
            let (grid, block) = ([blocks as u32, 1, 1], [128, 1, 1]);
            let (shift, len) = ((4 * pass).into_arg(), (n as u32).into_arg());
            b.run("histogram", grid, block, &[from, counts, shift, len]);
            b.run("scan_counts", [1, 1, 1], [32, 1, 1], &[counts, (16 * blocks as u32).into_arg()]);
            b.run("scatter", grid, block, &[from, to, counts, shift, len]);
            std::mem::swap(&mut from, &mut to);
        }
        let mut want = keys;
        want.sort_unstable();
        assert_eq!(b.output::<u32>(from, n), want);
    }
}

#[test]
fn tiled_products_and_transposes_with_ragged_edges_are_right() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/matmul.ptx"), seed);
        let (m, n, k) = (37usize, 21usize, 45usize);
        let mut rng = Rng(4);
        let a: Vec<f32> = (0..m * k).map(|_| rng.unit()).collect();
        let w: Vec<f32> = (0..k * n).map(|_| rng.unit()).collect();
        let (pa, pw, c) = (b.input(&a), b.input(&w), b.empty(4 * (m * n) as u64));
        let dims = [m, n, k].map(|v| (v as u32).into_arg());
        b.run("matmul", [2, 3, 1], [16, 16, 1], &[pa, pw, c, dims[0], dims[1], dims[2]]);
        let mut want = vec![0f32; m * n];
        for i in 0..m {
            for j in 0..n {
                // The last tile goes on with zeros, which change nothing.
                want[i * n + j] = (0..k).fold(0f32, |s, t| a[i * k + t].mul_add(w[t * n + j], s));
            }
        }
        assert_eq!(b.output::<f32>(c, m * n), want);

        let x: Vec<f64> = (0..50 * 70).map(f64::from).collect();
        let (px, y) = (b.input(&x), b.empty(8 * 50 * 70));
        b.run("transpose", [3, 2, 1], [32, 8, 1], &[px, y, 50u32.into_arg(), 70u32.into_arg()]);
        let t: Vec<f64> = (0..50 * 70).map(|i| x[i % 50 * 70 + i / 50]).collect();
        assert_eq!(b.output::<f64>(y, 50 * 70), t);
    }
}

#[test]
fn tensor_core_products_by_inline_assembly_are_exact_on_small_integers() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/mma.ptx"), seed);
        let k = 64usize;
        let a: Vec<f32> = (0..16 * k).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
        let w: Vec<f32> = (0..8 * k).map(|i| (i * 5 % 11) as f32 - 5.0).collect();
        let half = |v: &[f32]| v.iter().map(|&x| f16(x)).collect::<Vec<u16>>();
        let (pa, pw, c) = (b.input(&half(&a)), b.input(&half(&w)), b.empty(4 * 128));
        b.run("mma_f16", [1, 1, 1], [32, 1, 1], &[pa, pw, c, (k as u32).into_arg()]);
        let dot = |i: usize, j: usize| (0..k).map(|t| a[i * k + t] * w[j * k + t]).sum::<f32>();
        let want: Vec<f32> = (0..128).map(|e| dot(e / 8, e % 8)).collect();
        assert_eq!(b.output::<f32>(c, 128), want);

        let a: Vec<i8> = (0..512).map(|i| (i * 37 % 256) as u8 as i8).collect();
        let w: Vec<i8> = (0..256).map(|i| (i * 91 % 256) as u8 as i8).collect();
        let (pa, pw, c) = (b.input(&a), b.input(&w), b.empty(4 * 128));
        b.run("mma_s8", [1, 1, 1], [32, 1, 1], &[pa, pw, c]);
        let dot =
            |i: usize, j: usize| (0..32).map(|t| i32::from(a[i * 32 + t]) * i32::from(w[j * 32 + t])).sum();
        let want: Vec<i32> = (0..128).map(|e| dot(e / 8, e % 8)).collect();
        assert_eq!(b.output::<i32>(c, 128), want);
    }
}

#[test]
fn wmma_in_every_shape_layout_and_type_is_exact_on_small_integers() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/wmma.ptx"), seed);
        let k = 48usize;
        let a: Vec<f32> = (0..16 * k).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
        let w: Vec<f32> = (0..16 * k).map(|i| (i * 5 % 11) as f32 - 5.0).collect();
        let half = |v: &[f32]| v.iter().map(|&x| f16(x)).collect::<Vec<u16>>();
        let brain = |v: &[f32]| v.iter().map(|&x| bf16(x)).collect::<Vec<u16>>();
        let (pa, pw) = (b.input(&half(&a)), b.input(&half(&w)));
        let (c, ch) = (b.empty(4 * 256), b.empty(2 * 256));
        b.run("wmma_f16", [1, 1, 1], [32, 1, 1], &[pa, pw, c, ch, (k as u32).into_arg()]);
        let dot = |i: usize, j: usize| (0..k).map(|t| a[i * k + t] * w[j * k + t]).sum::<f32>();
        let want: Vec<f32> = (0..256).map(|e| 2.0 * dot(e / 16, e % 16)).collect();
        assert_eq!(b.output::<f32>(c, 256), want);
        // Stored by columns.
        let want: Vec<u16> = (0..256).map(|e| f16(dot(e % 16, e / 16))).collect();
        assert_eq!(b.output::<u16>(ch, 256), want);

        let ldb = 24usize;
        let w: Vec<f32> = (0..k * ldb).map(|i| (i * 3 % 7) as f32 - 3.0).collect();
        let c0: Vec<f32> = (0..256).map(|i| i as f32).collect();
        let (pa, pw, c) = (b.input(&brain(&a)), b.input(&brain(&w)), b.input(&c0));
        let sizes = [(k as u32).into_arg(), (ldb as u32).into_arg()];
        b.run("wmma_bf16", [1, 1, 1], [32, 1, 1], &[pa, pw, c, sizes[0], sizes[1]]);
        let dot = |i: usize, j: usize| (0..k).map(|t| a[i * k + t] * w[t * ldb + j]).sum::<f32>();
        let want: Vec<f32> = (0..256).map(|e| c0[e] + dot(e / 16, e % 16)).collect();
        assert_eq!(b.output::<f32>(c, 256), want);

        let a: Vec<f32> = (0..512).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
        let w: Vec<f32> = (0..128).map(|i| (i * 5 % 11) as f32 - 5.0).collect();
        let (pa, pw) = (b.input(&half(&a)), b.input(&half(&w)));
        let (c, d) = (b.empty(1024), b.empty(1024));
        b.run("wmma_shapes", [1, 1, 1], [32, 1, 1], &[pa, pw, c, d]);
        // a: 32 x 16 by columns, w: 16 x 8 by columns.
        let first = |i: usize, j: usize| (0..16).map(|t| a[t * 32 + i] * w[j * 16 + t]).sum::<f32>();
        let want: Vec<f32> = (0..256).map(|e| 1.0 + first(e / 8, e % 8)).collect();
        assert_eq!(b.output::<f32>(c, 256), want);
        // w: 8 x 16 by rows, a: 16 x 32 by rows; the result by columns.
        let second = |i: usize, j: usize| (0..16).map(|t| w[i * 16 + t] * a[t * 32 + j]).sum::<f32>();
        let want: Vec<f32> = (0..256).map(|e| second(e % 8, e / 8)).collect();
        assert_eq!(b.output::<f32>(d, 256), want);
    }
}

#[test]
fn a_pipeline_of_asynchronous_copies_with_a_ragged_end_is_clean_and_right() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/pipeline.ptx"), seed);
        for n in [1usize, 255, 256, 1000, 1537] {
            let x: Vec<f32> = (0..n).map(|i| (i * 13 % 31) as f32).collect();
            let (px, y) = (b.input(&x), b.empty(4 * n as u64));
            b.run("smooth", [1, 1, 1], [64, 1, 1], &[px, y, (n as u32).into_arg()]);
            let at = |i: usize, inside: bool| if inside && i < n { x[i] } else { 0.0 };
            let want: Vec<f32> = (0..n)
                .map(|i| at(i.wrapping_sub(1), i % 256 > 0) + 2.0 * x[i] + at(i + 1, i % 256 < 255))
                .collect();
            assert_eq!(b.output::<f32>(y, n), want);
        }
    }
}

#[test]
fn calls_with_structs_pointers_and_divergence_are_right() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/calls.ptx"), seed);
        let out = b.empty(4 * 60 * 20);
        b.run("mandelbrot", [2, 20, 1], [32, 1, 1], &[out, 60u32.into_arg(), 20u32.into_arg()]);
        let got = b.output::<i32>(out, 1200);
        for (i, &v) in got.iter().enumerate() {
            let c = (-2.0 + 3.0 * (i % 60) as f64 / 60.0, -1.0 + 2.0 * (i / 60) as f64 / 20.0);
            let (mut z, mut n) = ((0f64, 0f64), 50);
            for k in 0..50 {
                // nvcc contracts: a*b - c*d becomes fma(a, b, -(c*d)).
                let im = z.0 * z.1;
                z = (z.0.mul_add(z.0, -(z.1 * z.1)) + c.0, z.0.mul_add(z.1, im) + c.1);
                if z.0.mul_add(z.0, z.1 * z.1) > 4.0 {
                    n = k;
                    break;
                }
            }
            assert_eq!(v, n, "{i}");
        }

        let mut rng = Rng(3);
        let x: Vec<i32> = (0..100).map(|_| rng.next() as i32 % 100_000).collect();
        let y: Vec<i32> = (0..100).map(|_| rng.next() as i32 % 5000).collect();
        let (px, py, out) = (b.input(&x), b.input(&y), b.empty(400));
        b.run("gcds", [4, 1, 1], [32, 1, 1], &[px, py, out, 100u32.into_arg()]);
        let gcd = |mut a: i32, mut b: i32| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let want: Vec<i32> =
            x.iter().zip(&y).map(|(&a, &b)| if a % 3 == 0 { gcd(a, b) } else { -gcd(b, a) }).collect();
        assert_eq!(b.output::<i32>(out, 100), want);

        let x: Vec<f32> = (0..64).map(|i| i as f32 * 0.1 - 3.0).collect();
        let (px, out) = (b.input(&x), b.empty(256));
        b.run("polynomials", [2, 1, 1], [32, 1, 1], &[px, out, 64u32.into_arg()]);
        let horner = |c: &[f32], x: f32| c.iter().fold(0f32, |y, &k| y.mul_add(x, k));
        let want: Vec<f32> =
            x.iter()
                .enumerate()
                .map(|(i, &v)| {
                    if i % 2 == 1 {
                        horner(&[0.5, -1.25, 3.0, 0.0, 2.0], v)
                    } else {
                        horner(&[v, 1.0, -v], v)
                    }
                })
                .collect();
        assert_eq!(b.output::<f32>(out, 64), want);
    }
}

#[test]
fn an_interpreter_with_a_jump_table_and_a_local_stack_is_right() {
    let text = include_str!("cuda/switches.ptx");
    assert!(text.contains("brx.idx") && text.contains(".local"));
    let code: Vec<u8> =
        vec![0, 1, 9, 4, 2, 7, 8, 0, 6, 12, 10, 1, 5, 13, 14, 0, 9, 3 + 16, 11, 0, 15, 9, 1, 15, 12, 13];
    let fallback = [0u8, 9, 9, 2, 9, 4, 9, 15];
    for seed in SEEDS {
        let mut b = Bench::new(text, seed);
        let mut rng = Rng(5);
        let x: Vec<i32> = (0..80).map(|_| rng.next() as i32).collect();
        let (pc, px, out) = (b.input(&code), b.input(&x), b.empty(320));
        let args = [pc, px, out, (code.len() as u32).into_arg(), 80u32.into_arg()];
        b.run("interpret", [3, 1, 1], [32, 1, 1], &args);
        for (i, &got) in b.output::<i32>(out, 80).iter().enumerate() {
            let p: &[u8] = if i % 5 == 4 { &fallback } else { &code };
            let (mut s, mut pc) = (Vec::<i32>::new(), 0);
            while pc < p.len() {
                let a = s.last().copied().unwrap_or(0);
                let b = if s.len() > 1 { s[s.len() - 2] } else { 0 };
                let two = |s: &mut Vec<i32>, v: i32| {
                    s.pop();
                    *s.last_mut().unwrap() = v;
                };
                match p[pc] % 16 {
                    0 => s.push(x[i]),
                    1 => s.push(i as i32),
                    2 => two(&mut s, a.wrapping_add(b)),
                    3 => two(&mut s, b.wrapping_sub(a)),
                    4 => two(&mut s, a.wrapping_mul(b)),
                    5 => two(&mut s, a & b),
                    6 => two(&mut s, a ^ b),
                    9 => s.push(a),
                    15 if a >= 0 => pc += 1,
                    op => {
                        *s.last_mut().unwrap() = match op {
                            7 => !a,
                            8 => a >> 3,
                            10 => a.count_ones() as i32,
                            11 => a.leading_zeros() as i32 ^ i as i32,
                            12 => a.wrapping_mul(7).wrapping_add(3),
                            13 => a.reverse_bits(),
                            14 => x[(a & 7) as usize],
                            _ => a.wrapping_neg(),
                        }
                    }
                }
                pc += 1;
            }
            assert_eq!(got, s.iter().fold(0i32, |h, &v| h.wrapping_mul(31).wrapping_add(v)), "{i}");
        }
    }
}

#[test]
fn integer_arithmetic_of_every_width_is_what_rust_says() {
    let mut rng = Rng(1);
    let edges = [1i64, -1, 2, 3, 10, -7, i64::MAX, i64::MIN + 1, 1 << 32, -(1 << 33), 0x1234_5678_9abc];
    let mut a: Vec<i64> = edges.to_vec();
    let mut c: Vec<i64> = edges.iter().rev().copied().collect();
    for i in 0..53 {
        a.push((rng.next() as i64) >> (i % 60));
        c.push(((rng.next() as i64) >> ((i * 7) % 60)) | 1);
    }
    let n = a.len();
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/integers.ptx"), seed);
        let (pa, pc, out) = (b.input(&a), b.input(&c), b.empty(8 * 12 * n as u64));
        b.run("wide", [2, 1, 1], [32, 1, 1], &[pa, pc, out, (n as u32).into_arg()]);
        let got = b.output::<i64>(out, 12 * n);
        for i in 0..n {
            let (x, y) = (a[i], c[i]);
            let (ux, uy) = (x as u64, y as u64);
            let s = (y & 63) as u32;
            let want = [
                x.wrapping_div(y),
                x.wrapping_rem(y),
                (ux / uy) as i64,
                (ux % uy) as i64,
                ((i128::from(x) * i128::from(y)) >> 64) as i64,
                ((u128::from(ux) * u128::from(uy)) >> 64) as i64,
                i64::from(x.leading_zeros() * 64 + x.count_ones()),
                ux.reverse_bits() as i64,
                if x == 0 { 0 } else { i64::from(x.trailing_zeros()) + 1 },
                x >> s,
                ux.rotate_left(s) as i64,
                (x as f64) as i64 ^ ((uy >> 1) as f32) as u64 as i64,
            ];
            // The double of a value near 2^63 does not fit back: both saturate, as Rust does.
            assert_eq!(got[12 * i..12 * i + 12], want, "{x} {y}");
        }

        let (a, c): (Vec<i32>, Vec<i32>) =
            (a.iter().map(|&v| v as i32 | 1).collect(), c.iter().map(|&v| v as i32 | 2).collect());
        let (pa, pc, out) = (b.input(&a), b.input(&c), b.empty(4 * 13 * n as u64));
        b.run("narrow", [2, 1, 1], [32, 1, 1], &[pa, pc, out, (n as u32).into_arg()]);
        let got = b.output::<i32>(out, 13 * n);
        for i in 0..n {
            let (x, y) = (a[i], c[i]);
            let (ux, uy) = (x as u32, y as u32);
            let permute = |sel: u32| {
                let all = u64::from(uy) << 32 | u64::from(ux);
                (0..4).fold(0u32, |r, k| r | ((all >> (8 * (sel >> (4 * k) & 7))) as u32 & 0xff) << (8 * k))
                    as i32
            };
            let dp4a = (0..4).fold(x, |s, k| {
                s.wrapping_add(i32::from((ux >> (8 * k)) as i8) * i32::from((uy >> (8 * k)) as i8))
            });
            let avg = |round: i64| ((i64::from(x) + i64::from(y) + round) >> 1) as i32;
            let want = [
                x.wrapping_div(y),
                x.wrapping_rem(y),
                (ux / uy) as i32,
                ((ux % 10) as i32).wrapping_add((x / 7).wrapping_mul(3)),
                ((i64::from(x) * i64::from(y)) >> 32) as i32,
                ((u64::from(uy) << 32 | u64::from(ux)) << (uy & 31) >> 32) as i32,
                permute(0x3715),
                dp4a,
                i32::from(x as i8) / i32::from(y as i8 | 1) + i32::from(x as i16) % i32::from(y as i16 | 1),
                i32::from(x.wrapping_mul(y) as u16) + i32::from(x.wrapping_sub(y) as u8),
                (x.abs_diff(y).wrapping_add(5)).wrapping_add(ux.abs_diff(uy).wrapping_add(7)) as i32,
                x.min(y) ^ ux.max(uy) as i32,
                x.wrapping_abs().wrapping_add(avg(0)).wrapping_add(avg(1)),
            ];
            assert_eq!(got[13 * i..13 * i + 13], want, "{x} {y}");
        }
    }
}

#[test]
fn halves_and_bfloats_round_once() {
    let mut rng = Rng(8);
    let x: Vec<f32> = (0..64).map(|i| (rng.unit() - 0.5) * 2f32.powi(i % 12 - 4)).collect();
    let y: Vec<f32> = (0..64).map(|i| (rng.unit() - 0.5) * 2f32.powi(i % 7 - 2)).collect();
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/halves.ptx"), seed);
        let bits = |v: &[f32]| v.iter().map(|&x| f16(x)).collect::<Vec<u16>>();
        let (px, py, out) = (b.input(&bits(&x)), b.input(&bits(&y)), b.empty(2 * 8 * 64));
        b.run("halves", [2, 1, 1], [32, 1, 1], &[px, py, out, 64u32.into_arg()]);
        let got = b.output::<u16>(out, 512);
        for i in 0..64 {
            let (u, v) = (from_f16(f16(x[i])), from_f16(f16(y[i])));
            let fma =
                |a: f32, b: f32, c: f32| common::halves::f16_of(f64::from(a) * f64::from(b) + f64::from(c));
            let want = [
                f16(u + v),
                f16(u * v),
                fma(u, v, u),
                f16(u.max(v)),
                fma(u, v, -u),
                fma(v, v, -v),
                if u < v { f16(u * 3.0) } else { f16(v.floor()) },
                f16((v - u).clamp(0.0, 1.0)),
            ];
            for (k, &w) in want.iter().enumerate() {
                let g = got[8 * i + k];
                assert!(g == w || (g | w) == 0x8000, "{i} {k}: {g:#x} {w:#x}, {u} {v}");
            }
        }
        let bits = |v: &[f32]| v.iter().map(|&x| bf16(x)).collect::<Vec<u16>>();
        let (px, py, out) = (b.input(&bits(&x)), b.input(&bits(&y)), b.empty(2 * 6 * 64));
        b.run("brains", [2, 1, 1], [32, 1, 1], &[px, py, out, 64u32.into_arg()]);
        let got = b.output::<u16>(out, 384);
        for i in 0..64 {
            let (u, v) = (from_bf16(bf16(x[i])), from_bf16(bf16(y[i])));
            let want = [
                bf16(u + v),
                bf16(u * v),
                common::halves::bf16_of(f64::from(u) * f64::from(v) + f64::from(u)),
                bf16(u.min(v)),
                bf16(u * 1.7),
                bf16(v + 0.3),
            ];
            for (k, &w) in want.iter().enumerate() {
                let g = got[6 * i + k];
                assert!(g == w || (g | w) == 0x8000, "{i} {k}: {g:#x} {w:#x}, {u} {v}");
            }
        }
        let x: Vec<f32> =
            vec![0.0, 1.0, -1.0, 1.0625, 1.1875, 448.0, 500.0, -1e9, 0.001953125, 0.0009, 17.0, 3.3];
        let (px, e, back) = (b.input(&x), b.empty(12), b.empty(48));
        b.run("bytes", [1, 1, 1], [32, 1, 1], &[px, e, back, 12u32.into_arg()]);
        let want = [0.0, 1.0, -1.0, 1.0, 1.25, 448.0, 448.0, -448.0, 0.001953125, 0.0, 16.0, 3.25];
        assert_eq!(b.output::<f32>(back, 12), want);
    }
}

#[test]
fn prints_come_out_as_c_would_print_them() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/print.ptx"), seed);
        let x = b.input(&[5i32, -6, 70000]);
        let out = b.run("hello", [1, 1, 1], [32, 1, 1], &[x, 3u32.into_arg()]).output;
        let want = "0:     5|7     |0000000f|a\n1:    -6|7     |ffffffee|b\n2: 70000|7     |00033450|c\n\
            text 0.667 1.000000e-10 -5000000000 18446744073709551615 100%\n";
        assert_eq!(out, want);
    }
}

#[test]
fn the_math_library_of_cuda_is_within_its_documented_error() {
    let mut x: Vec<f32> =
        vec![1e-3, -0.3, 0.9, 1.0, 2.5, -3.7, 10.0, 50.5, -80.0, 1e5, 3e7, -1e20, 12345.678];
    x.extend((1..40).map(|i| i as f32 * 0.37 - 7.1));
    let n = x.len();
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/math.ptx"), seed);
        let (px, out) = (b.input(&x), b.empty(40 * n as u64));
        b.run("singles", [2, 1, 1], [32, 1, 1], &[px, out, (n as u32).into_arg()]);
        let got = b.output::<f32>(out, 10 * n);
        for i in 0..n {
            let v = f64::from(x[i]);
            let want = [
                v.sin(),
                v.cos(),
                v.exp(),
                v.abs().ln(),
                v.abs().powf(f64::from(1.3f32)),
                v.tanh(),
                erf(v),
                v.abs().sqrt(),
                1.0 / v,
                v.atan2(2.0),
            ];
            // ulp, from the tables of the CUDA programming guide, with one more for approximations.
            let ulps = [3.0, 3.0, 3.0, 2.0, 5.0, 3.0, 3.0, 0.5, 0.5, 4.0];
            for k in 0..10 {
                let (g, w) = (got[10 * i + k], want[k]);
                if w.abs() > f64::from(f32::MAX) {
                    assert!(g.is_infinite(), "{k} of {v}: {g}");
                    continue;
                }
                let scale = (w.abs() as f32).max(f32::MIN_POSITIVE);
                let ulp = f64::from(f32::from_bits(scale.to_bits() + 1) - scale);
                let error = (f64::from(g) - w).abs() / ulp;
                assert!(error <= ulps[k] + 1e-3, "function {k} of {v}: {g}, {w}: {error} ulp");
            }
        }
        let x: Vec<f64> = x.iter().map(|&v| f64::from(v) * 1.000001).collect();
        let (px, out) = (b.input(&x), b.empty(64 * n as u64));
        b.run("doubles", [2, 1, 1], [32, 1, 1], &[px, out, (n as u32).into_arg()]);
        let got = b.output::<f64>(out, 8 * n);
        for i in 0..n {
            let v = x[i];
            let even = v.round_ties_even() + v.floor() * 2.0 + v.trunc() * 4.0;
            let want = [
                v.sin(),
                v.exp(),
                v.abs().ln(),
                1.0 / v,
                v.abs().sqrt(),
                even,
                v % 0.7,
                1.0 / v.abs().sqrt(),
            ];
            let ulps = [2.0, 1.5, 1.5, 0.0, 0.0, 0.0, 0.0, 1.5];
            for k in 0..8 {
                let (g, w) = (got[8 * i + k], want[k]);
                if w.is_infinite() {
                    assert!(g == w, "{k} of {v}: {g}");
                    continue;
                }
                let ulp = f64::from_bits(w.abs().to_bits() + 1) - w.abs();
                assert!((g - w).abs() <= ulps[k] * ulp, "function {k} of {v}: {g}, {w}");
            }
        }
    }
}
