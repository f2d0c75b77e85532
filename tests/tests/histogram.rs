//! `histogram` counts what the same rule counts on the host, for every length and for values that are no numbers.

use kernels_gpu::histogram::{BINS, bin, histogram};
use psa::driver::{Driver, Emulated, EmulatedOptions};
use psa_codegen::Region;

#[test]
fn a_bin_is_a_whole_octave_below_the_peak() {
    let bins = [0.5, 0.49, -0.5, -30.49, -30.5, f32::NEG_INFINITY, f32::NAN, 2.0].map(|mass| bin(0.5, mass));
    assert_eq!(bins, [0, 0, 1, 30, 31, 31, 31, 0]);
}

#[test]
fn blocks_are_counted_by_octaves_below_the_peak() {
    const HEADS: usize = 3;
    const NB: usize = 80;
    let lens = [1u32, 16 * 33, 16 * 79 + 3];
    let special = [f32::NEG_INFINITY, f32::NAN, 0.0, -31.0, -30.999];
    let log_mass: Vec<f32> = (0..lens.len() * HEADS * NB)
        .map(|i| special.get(i % 17).copied().unwrap_or(-((i * 7919 % 640) as f32) / 16.0))
        .collect();
    let peak = [0.5f32; 9];
    let mut driver = Emulated::new(EmulatedOptions::default()).unwrap();
    let mut put = |bytes: &[u8], what: &str| -> Region {
        let region = driver.region(bytes.len(), what).unwrap();
        driver.upload(region.address(), bytes).unwrap();
        region
    };
    let args = histogram::Args {
        log_mass: put(bytemuck::cast_slice(&log_mass), "log_mass").input(),
        peak: put(bytemuck::cast_slice(&peak), "peak").input(),
        lens: put(bytemuck::cast_slice(&lens), "lens").with_largest(16 * 79 + 3).input(),
        counts: put(&[0xff; 4 * 9 * BINS], "counts").output(),
        heads: HEADS as u32,
        max_blocks: NB as u32,
    };
    driver.launch(&histogram::launch([HEADS as u32, lens.len() as u32, 1], args).unwrap()).unwrap();
    let mut counts = [[0u32; BINS]; 9];
    driver
        .download(args.counts.region().address(), bytemuck::cast_slice_mut(counts.as_flattened_mut()))
        .unwrap();
    for (head, counts) in counts.iter().enumerate() {
        let blocks = lens[head / HEADS].div_ceil(16) as usize;
        let mut want = [0u32; BINS];
        for &mass in &log_mass[head * NB..][..blocks] {
            want[bin(peak[head], mass) as usize] += 1;
        }
        assert_eq!(*counts, want, "head {head}");
        assert_eq!(counts.iter().sum::<u32>() as usize, blocks);
    }
    // A grid of too few heads would leave some uncounted: it is no launch.
    assert!(histogram::launch([2, 3, 1], args).unwrap_err().to_string().contains("heads = 3"));
}
