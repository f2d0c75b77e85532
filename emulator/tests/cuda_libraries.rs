//! Kernels over CUDA's own libraries (CUB, cooperative groups, libcu++), compiled by nvcc: clean under
//! several schedules, and right. What such libraries do with lanes, fences and barriers is subtler than
//! what people write by hand.

mod common;

use common::bench::{Bench, IntoArg, Rng, SEEDS};

#[test]
fn a_radix_sort_of_pairs_is_stable() {
    let mut rng = Rng(5);
    let keys: Vec<u32> = (0..1024).map(|_| (rng.next() % 200) as u32 * 0x0101_0101).collect();
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/cub.ptx"), seed);
        let (k, v) = (b.input(&keys), b.empty(4096));
        b.run("sort_pairs", [2, 1, 1], [128, 1, 1], &[k, v]);
        let (k, v) = (b.output::<u32>(k, 1024), b.output::<i32>(v, 1024));
        for block in 0..2 {
            let mut want: Vec<(u32, i32)> = (0..512).map(|i| (keys[block * 512 + i as usize], i)).collect();
            want.sort();
            let got: Vec<_> = (0..512).map(|i| (k[block * 512 + i], v[block * 512 + i])).collect();
            assert_eq!(got, want);
        }
    }
}

#[test]
fn block_scans_reductions_and_exchanges_of_cub_are_right() {
    let x: Vec<i32> = (0..512).map(|i| i * 37 % 101 - 50).collect();
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/cub.ptx"), seed);
        let (px, sums, most) = (b.input(&x), b.empty(2048), b.empty(8));
        b.run("scan_and_max", [2, 1, 1], [256, 1, 1], &[px, sums, most]);
        let sums = b.output::<i32>(sums, 512);
        for (block, part) in x.chunks(256).enumerate() {
            assert_eq!(b.output::<i32>(most, 2)[block], *part.iter().max().unwrap());
            for i in 0..256 {
                assert_eq!(sums[block * 256 + i], part[..i].iter().sum::<i32>());
            }
        }

        let doubles: Vec<f64> = (0..320).map(f64::from).collect();
        let (px, y) = (b.input(&doubles), b.empty(8 * 320));
        b.run("exchange", [1, 1, 1], [64, 1, 1], &[px, y]);
        let y = b.output::<f64>(y, 320);
        assert!((0..320).all(|i| y[i] == (i % 5 * 64 + i / 5) as f64), "thread t holds t, t + 64, ...");

        let heads: Vec<i32> = (0..64).map(|i| i32::from([0, 3, 4, 17, 40, 63].contains(&i))).collect();
        let (px, ph, sums) = (b.input(&x[..64]), b.input(&heads), b.empty(256));
        b.run("segments", [1, 1, 1], [64, 1, 1], &[px, ph, sums]);
        let begins = |i: usize| heads[i] == 1 || i == 0 || i == 32;
        let want: Vec<i32> = (0..64)
            .map(|i| {
                let end = (i + 1..64).find(|&j| begins(j)).unwrap_or(64);
                if begins(i) { x[i..end].iter().sum() } else { 0 }
            })
            .collect();
        assert_eq!(b.output::<i32>(sums, 64), want);
    }
}

#[test]
fn tiles_and_coalesced_groups_are_right() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/cooperative.ptx"), seed);
        let x: Vec<i32> = (0..256).map(|i| i * i % 31 - 9).collect();
        let (px, total, running) = (b.input(&x), b.empty(128), b.empty(1024));
        b.run("tiles", [2, 1, 1], [128, 1, 1], &[px, total, running]);
        let (total, running) = (b.output::<i32>(total, 32), b.output::<i32>(running, 256));
        for i in 0..256 {
            assert_eq!(running[i], x[i / 8 * 8..=i].iter().sum::<i32>());
            assert_eq!(total[i / 8], x[i / 8 * 8..][..8].iter().sum::<i32>());
        }

        let (px, out, count) = (b.input(&x), b.empty(1024), b.input(&[0i32]));
        b.run("compact", [3, 1, 1], [64, 1, 1], &[px, out, count, 250u32.into_arg()]);
        let mut want: Vec<i32> = x[..250].iter().copied().filter(|v| v & 1 != 0).collect();
        let n = b.output::<i32>(count, 1)[0] as usize;
        let mut got = b.output::<i32>(out, n);
        // Who comes first is the schedule's.
        want.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, want);

        let x: Vec<i32> = (0..300).map(|i| i * 7 % 11).collect();
        let (px, bins) = (b.input(&x), b.input(&[0i32; 11]));
        b.run("labels", [3, 1, 1], [128, 1, 1], &[px, bins, 300u32.into_arg()]);
        let want: Vec<i32> = (0..11).map(|v| x.iter().filter(|&&u| u == v).count() as i32).collect();
        assert_eq!(b.output::<i32>(bins, 11), want);
    }
}

#[test]
fn barriers_of_libcu_with_asynchronous_copies_and_messages_between_blocks_are_clean() {
    for seed in SEEDS {
        let mut b = Bench::new(include_str!("cuda/cooperative.ptx"), seed);
        let x: Vec<i32> = (0..64 * 7).collect();
        let (px, y) = (b.input(&x), b.empty(4 * 64 * 7));
        b.run("reverse", [1, 1, 1], [64, 1, 1], &[px, y, 7u32.into_arg()]);
        let y = b.output::<i32>(y, 64 * 7);
        assert!((0..64 * 7).all(|i| y[i] == (i / 64 * 64 + 63 - i % 64) as i32));

        let (data, flag, out) = (b.empty(4), b.input(&[0i32]), b.empty(4));
        b.run("message", [2, 1, 1], [32, 1, 1], &[data, flag, out]);
        assert_eq!(b.output::<i32>(out, 1), [42]);
    }
}
