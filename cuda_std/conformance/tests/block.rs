//! `cuda_std::thread`, `mem` and `misc` on the emulator.

mod harness;

use harness::Gpu;
use psa_cuda_std_conformance::block::{barriers, clocks, positions};

#[test]
fn every_thread_knows_its_place() {
    let (grid, block) = ([3u32, 2, 2], [4u32, 3, 2]);
    let threads = (grid.iter().product::<u32>() * block.iter().product::<u32>()) as usize;
    let mut gpu = Gpu::new();
    let args = positions::Args { out: gpu.output(threads * 20) };
    gpu.run(&positions::launch(grid, args).expect("an instance"));
    let out = gpu.read(args.out, threads * 20);
    let mut index = 0;
    for_each(grid, |b| {
        for_each(block, |t| {
            let p: Vec<u32> = (0..3).map(|d| b[d] * block[d] + t[d]).collect();
            let first = u32::from(index == 0);
            let expected: Vec<u32> =
                [&t[..], &b, &block, &grid, &[index], &p, &[p[0], p[1], first, p[0]]].concat();
            assert_eq!(out[index as usize * 20..][..20], expected, "block {b:?} thread {t:?}");
            index += 1;
        });
    });
}

/// x fastest, z slowest.
fn for_each(size: [u32; 3], mut f: impl FnMut([u32; 3])) {
    for z in 0..size[2] {
        for y in 0..size[1] {
            for x in 0..size[0] {
                f([x, y, z]);
            }
        }
    }
}

#[test]
fn barriers_reduce_over_the_whole_block_and_order_memory() {
    for predicate in [vec![0u32; 128], vec![5; 128], (0..128).map(|t| u32::from(t % 3 == 0) << 7).collect()] {
        let mut gpu = Gpu::new();
        let args = barriers::Args { predicate: gpu.input(&predicate), out: gpu.output(128 * 4) };
        gpu.run(&barriers::launch([1, 1, 1], args).expect("an instance"));
        let out = gpu.read(args.out, 128 * 4);
        let count = predicate.iter().filter(|&&p| p != 0).count() as u32;
        for t in 0..128u32 {
            let seen = if t < 64 { 0 } else { 1000 + t - 64 };
            let expected = [count, u32::from(count == 128), u32::from(count > 0), seen];
            assert_eq!(out[t as usize * 4..][..4], expected, "thread {t}");
        }
    }
}

#[test]
fn sizes_are_the_launch_s_and_clocks_go_forward() {
    let mut gpu = Gpu::new();
    let args = clocks::Args { out: gpu.output(4) };
    gpu.run(&clocks::launch([1, 1, 1], args).expect("an instance"));
    let out = gpu.read(args.out, 4);
    assert_eq!(out[0], 512);
    // Static: 16 words of 8 bytes; a device may add reserved bytes and alignment.
    assert!(out[1] >= 512 + 128, "{}", out[1]);
    assert_eq!(out[2..], [1, 1]);
}
