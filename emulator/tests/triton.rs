//! Kernels that Triton compiled (tests/triton, each from kernels.py), with every checker on under
//! several schedules: all clean, results within a derived bound of double precision.
//!
//! Triton adds two pointers to scratch memory behind the arguments; none of these kernels uses them.

mod common;

use common::bench::{Rng, SEEDS};
use common::halves::{bf16, f16, from_bf16, from_f16};
use ptx_emulator::{Arg, Device, DevicePtr, LaunchConfig, Module, Options};

/// One kernel on a device of its own.
struct Run {
    module: Module,
    device: Device,
    kernel: &'static str,
    threads: u32,
    shared: u32,
}

impl Run {
    /// Threads and shared bytes are those of the first line, where kernels.py writes what Triton asks for.
    fn new(kernel: &'static str, ptx: &'static str, seed: u64) -> Run {
        let numbers: Vec<u32> = ptx
            .lines()
            .next()
            .unwrap()
            .split(": ")
            .nth(1)
            .unwrap()
            .split(' ')
            .filter_map(|w| w.parse().ok())
            .collect();
        Run {
            module: Module::parse(ptx).unwrap_or_else(|e| panic!("{kernel}: {e}")),
            device: Device::new(Options { seed, ..Options::default() }),
            kernel,
            threads: numbers[0],
            shared: numbers[1],
        }
    }

    fn input<T: Copy, const N: usize>(
        &mut self,
        name: &str,
        data: &[T],
        bytes: fn(T) -> [u8; N],
    ) -> DevicePtr {
        let data: Vec<u8> = data.iter().flat_map(|&v| bytes(v)).collect();
        self.device.alloc_init(&data, name).unwrap()
    }

    fn go(&mut self, grid: [u32; 3], args: &[Arg]) {
        let none = Arg::Ptr(DevicePtr(0));
        let args: Vec<Arg> = args.iter().cloned().chain([none.clone(), none]).collect();
        let config = LaunchConfig { grid, block: [self.threads, 1, 1], shared_bytes: self.shared };
        let r =
            self.device.launch(&self.module, self.kernel, config, &args).unwrap_or_else(|e| panic!("{e}"));
        assert!(r.is_clean(), "{}: {:#?}", self.kernel, r.findings);
    }

    fn floats(&self, from: DevicePtr, n: usize) -> Vec<f32> {
        let mut out = vec![0; 4 * n];
        self.device.copy_from(from, &mut out).unwrap();
        out.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    fn ints(&self, from: DevicePtr, n: usize) -> Vec<i32> {
        self.floats(from, n).iter().map(|v| v.to_bits() as i32).collect()
    }
}

fn randoms(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng(seed);
    (0..n).map(|_| rng.unit() * 2.0 - 1.0).collect()
}

/// Largest distance.
fn off(got: &[f32], want: impl Fn(usize) -> f64) -> f64 {
    got.iter().enumerate().map(|(i, &g)| (f64::from(g) - want(i)).abs()).fold(0.0, f64::max)
}

#[test]
fn a_vector_addition_is_exact() {
    for seed in SEEDS {
        let mut r = Run::new("vector_add", include_str!("triton/vector_add.ptx"), seed);
        // Not a multiple of the block: the last CTA is masked.
        let n = 1000;
        let (x, y) = (randoms(n, 1), randoms(n, 2));
        let (px, py) = (r.input("x", &x, f32::to_le_bytes), r.input("y", &y, f32::to_le_bytes));
        let out = r.device.alloc(4 * n as u64, "out").unwrap();
        r.go([4, 1, 1], &[Arg::Ptr(px), Arg::Ptr(py), Arg::Ptr(out), Arg::I32(n as i32)]);
        assert_eq!(r.floats(out, n), x.iter().zip(&y).map(|(a, b)| a + b).collect::<Vec<_>>());
    }
}

#[test]
fn a_softmax_over_ragged_rows_is_right() {
    for seed in SEEDS {
        let mut r = Run::new("softmax", include_str!("triton/softmax.ptx"), seed);
        let (rows, cols) = (3, 401);
        let x: Vec<f32> = randoms(rows * cols, 3).iter().map(|v| v * 8.0).collect();
        let px = r.input("x", &x, f32::to_le_bytes);
        let out = r.device.alloc(4 * x.len() as u64, "out").unwrap();
        r.go([rows as u32, 1, 1], &[Arg::Ptr(px), Arg::Ptr(out), Arg::I32(cols as i32)]);
        let got = r.floats(out, x.len());
        let sums: Vec<f64> =
            x.chunks(cols).map(|row| row.iter().map(|&v| f64::from(v).exp()).sum()).collect();
        // Arguments of exp up to 16 have an absolute error of 16 * 2^-24 each for the difference and the
        // product with log2 e, so the relative error of a weight is below 2^-19; weights are below 1.
        let worst = off(&got, |i| f64::from(x[i]).exp() / sums[i / cols]);
        assert!(worst < 2f64.powi(-19), "{worst:e}");
    }
}

#[test]
fn a_layer_norm_in_half_precision_is_right() {
    for seed in SEEDS {
        let mut r = Run::new("layer_norm", include_str!("triton/layer_norm.ptx"), seed);
        let (rows, cols) = (2, 200);
        let x: Vec<u16> = randoms(rows * cols, 4).iter().map(|&v| f16(v)).collect();
        let (w, b) = (randoms(cols, 5), randoms(cols, 6));
        let px = r.input("x", &x, u16::to_le_bytes);
        let (pw, pb) = (r.input("weight", &w, f32::to_le_bytes), r.input("bias", &b, f32::to_le_bytes));
        let out = r.device.alloc(2 * x.len() as u64, "out").unwrap();
        let args =
            [Arg::Ptr(px), Arg::Ptr(pw), Arg::Ptr(pb), Arg::Ptr(out), Arg::I32(cols as i32), Arg::F32(1e-5)];
        r.go([rows as u32, 1, 1], &args);
        let mut bytes = vec![0; 2 * x.len()];
        r.device.copy_from(out, &mut bytes).unwrap();
        let got: Vec<f32> =
            bytes.chunks_exact(2).map(|c| from_f16(u16::from_le_bytes([c[0], c[1]]))).collect();
        let xs: Vec<f64> = x.iter().map(|&v| f64::from(from_f16(v))).collect();
        let want = |i: usize| {
            let row = &xs[i / cols * cols..][..cols];
            let mean = row.iter().sum::<f64>() / cols as f64;
            let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64;
            (xs[i] - mean) / (var + 1e-5).sqrt() * f64::from(w[i % cols]) + f64::from(b[i % cols])
        };
        // |y| < 4: half an ulp of f16 there is 2^-10; what single precision adds is far below.
        let worst = off(&got, want);
        assert!(worst < 1.01 * 2f64.powi(-10), "{worst:e}");
    }
}

#[test]
fn a_pipelined_product_by_tensor_cores_with_ragged_edges_is_exact_on_small_integers() {
    for seed in SEEDS {
        let mut r = Run::new("matmul", include_str!("triton/matmul.ptx"), seed);
        // n and k are multiples of 16, as the kernel was told; m is not of anything.
        let (m, n, k) = (70usize, 48usize, 80usize);
        let mut rng = Rng(9);
        let mut ints = |n: usize| (0..n).map(|_| (rng.next() % 17) as f32 - 8.0).collect::<Vec<f32>>();
        let (a, b) = (ints(m * k), ints(k * n));
        let halves = |v: &[f32]| v.iter().map(|&x| f16(x)).collect::<Vec<u16>>();
        let (pa, pb) =
            (r.input("a", &halves(&a), u16::to_le_bytes), r.input("b", &halves(&b), u16::to_le_bytes));
        let c = r.device.alloc(4 * (m * n) as u64, "c").unwrap();
        let sizes = [m, n, k].map(|v| Arg::I32(v as i32));
        let mut args = vec![Arg::Ptr(pa), Arg::Ptr(pb), Arg::Ptr(c)];
        args.extend(sizes);
        r.go([m.div_ceil(64) as u32, n.div_ceil(32) as u32, 1], &args);
        let got = r.floats(c, m * n);
        let want = |i: usize| (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[j * n + i % n])).sum();
        assert_eq!(off(&got, want), 0.0);
    }
}

#[test]
fn an_attention_kernel_with_online_softmax_is_right() {
    for seed in SEEDS {
        let mut r = Run::new("attention", include_str!("triton/attention.ptx"), seed);
        let (heads, queries, keys, d) = (2usize, 32usize, 75usize, 64usize);
        let halves = |n: usize, s: u64| randoms(n, s).iter().map(|&v| bf16(v)).collect::<Vec<u16>>();
        let (q, k, v) =
            (halves(heads * queries * d, 7), halves(heads * keys * d, 8), halves(heads * keys * d, 9));
        let [pq, pk, pv] = [("q", &q), ("k", &k), ("v", &v)].map(|(n, x)| r.input(n, x, u16::to_le_bytes));
        let out = r.device.alloc(4 * q.len() as u64, "out").unwrap();
        let args = [pq, pk, pv, out].map(Arg::Ptr).into_iter();
        let args: Vec<Arg> = args.chain([Arg::I32(keys as i32), Arg::F32(0.125)]).collect();
        r.go([heads as u32, 1, 1], &args);
        let got = r.floats(out, q.len());
        let wide = |x: &[u16]| x.iter().map(|&h| f64::from(from_bf16(h))).collect::<Vec<f64>>();
        let (q, k, v) = (wide(&q), wide(&k), wide(&v));
        let want: Vec<f64> = (0..heads * queries)
            .flat_map(|row| {
                let head = row / queries;
                let p: Vec<f64> = (0..keys)
                    .map(|j| {
                        let s: f64 = (0..d).map(|c| q[row * d + c] * k[(head * keys + j) * d + c]).sum();
                        (0.125 * s).exp()
                    })
                    .collect();
                let total: f64 = p.iter().sum();
                let (v, p) = (&v, p);
                (0..d)
                    .map(move |c| (0..keys).map(|j| p[j] * v[(head * keys + j) * d + c]).sum::<f64>() / total)
                    .collect::<Vec<_>>()
            })
            .collect();
        // Weights are rounded to bf16, 2^-9 relative, and |v| < 1: the error is a mean of such.
        let worst = off(&got, |i| want[i]);
        assert!(worst < 2f64.powi(-9), "{worst:e}");
    }
}

#[test]
fn a_histogram_a_running_sum_and_a_sort_are_exact() {
    for seed in SEEDS {
        let mut rng = Rng(11);
        let x: Vec<i32> = (0..1300).map(|_| (rng.next() % 32) as i32).collect();
        let mut r = Run::new("histogram", include_str!("triton/histogram.ptx"), seed);
        let px = r.input("x", &x, i32::to_le_bytes);
        let bins = r.input("bins", &[0; 32], i32::to_le_bytes);
        r.go([3, 1, 1], &[Arg::Ptr(px), Arg::Ptr(bins), Arg::I32(1300)]);
        let count = |b| x.iter().filter(|&&v| v == b).count() as i32;
        assert_eq!(r.ints(bins, 32), (0..32).map(count).collect::<Vec<_>>());

        let mut r = Run::new("cumulative", include_str!("triton/cumulative.ptx"), seed);
        let (px, out) = (r.input("x", &x, i32::to_le_bytes), r.device.alloc(4 * 1300, "out").unwrap());
        r.go([10, 1, 1], &[Arg::Ptr(px), Arg::Ptr(out), Arg::I32(130)]);
        let mut want = x.clone();
        for row in want.chunks_mut(130) {
            for i in 1..row.len() {
                row[i] += row[i - 1];
            }
        }
        assert_eq!(r.ints(out, 1300), want);

        let mut r = Run::new("sort", include_str!("triton/sort.ptx"), seed);
        let x: Vec<i32> = (0..512).map(|_| rng.next() as i32).collect();
        let (px, out) = (r.input("x", &x, i32::to_le_bytes), r.device.alloc(4 * 512, "out").unwrap());
        r.go([2, 1, 1], &[Arg::Ptr(px), Arg::Ptr(out)]);
        let mut want = x.clone();
        want.chunks_mut(256).for_each(<[i32]>::sort);
        assert_eq!(r.ints(out, 512), want);
    }
}

#[test]
fn eight_bit_floats_widen_exactly_and_eight_bit_integers_multiply_exactly() {
    for seed in SEEDS {
        let mut r = Run::new("widen", include_str!("triton/widen.ptx"), seed);
        let x: Vec<u8> = (0..=255).collect();
        let (px, out) = (r.input("x", &x, u8::to_le_bytes), r.device.alloc(512, "out").unwrap());
        r.go([1, 1, 1], &[Arg::Ptr(px), Arg::Ptr(out)]);
        let mut bytes = [0; 512];
        r.device.copy_from(out, &mut bytes).unwrap();
        // e5m2 is the upper byte of f16.
        assert!(bytes.chunks_exact(2).zip(&x).all(|(h, &v)| h == [0, v]), "{bytes:?}");

        let mut r = Run::new("dot_int8", include_str!("triton/dot_int8.ptx"), seed);
        let (m, n, k) = (32, 32, 64);
        let mut rng = Rng(12);
        let mut ints = |n: usize| (0..n).map(|_| rng.next() as i8).collect::<Vec<i8>>();
        let (a, b) = (ints(m * k), ints(k * n));
        let (pa, pb) = (r.input("a", &a, i8::to_le_bytes), r.input("b", &b, i8::to_le_bytes));
        let c = r.device.alloc(4 * (m * n) as u64, "c").unwrap();
        r.go([1, 1, 1], &[Arg::Ptr(pa), Arg::Ptr(pb), Arg::Ptr(c)]);
        let want = |i: usize| (0..k).map(|j| i32::from(a[i / n * k + j]) * i32::from(b[j * n + i % n])).sum();
        assert_eq!(r.ints(c, m * n), (0..m * n).map(want).collect::<Vec<i32>>());
    }
}
