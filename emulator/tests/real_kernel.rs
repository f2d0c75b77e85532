//! A kernel compiled by rustc runs unedited and gives the right sum, under every schedule.

use ptx_emulator::{Arg, Device, LaunchConfig, Module, Options};

const PTX: &str = include_str!("data/rust_sum.ptx");

fn sum(seed: u64, n: u32) -> f32 {
    let module = Module::parse(PTX).unwrap();
    let mut device = Device::new(Options { seed, ..Options::default() });
    let x: Vec<u8> = (0..n).flat_map(|i| (i as f32 * 0.5).to_le_bytes()).collect();
    let x = device.alloc_init(&x, "x").unwrap();
    let o = device.alloc(4, "o").unwrap();
    let config = LaunchConfig { grid: [1, 1, 1], block: [128, 1, 1], shared_bytes: 16 };
    let report = device.launch(&module, "sum", config, &[Arg::Ptr(x), Arg::Ptr(o), Arg::U32(n)]).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.counters.barriers, 4);
    let mut out = [0; 4];
    device.copy_from(o, &mut out).unwrap();
    f32::from_le_bytes(out)
}

#[test]
fn rust_kernel_sums_its_block_under_every_seed() {
    for seed in 0..20 {
        assert_eq!(sum(seed, 128), (127 * 128 / 2) as f32 * 0.5);
        assert_eq!(sum(seed, 100), (99 * 100 / 2) as f32 * 0.5);
    }
}

#[test]
fn rust_kernel_is_described_as_declared() {
    let module = Module::parse(PTX).unwrap();
    let k = module.kernel("sum").unwrap();
    assert_eq!(k.params.iter().map(|p| (p.offset, p.size)).collect::<Vec<_>>(), [(0, 8), (8, 8), (16, 4)]);
    assert_eq!(k.registers, 3 + 29 + 7);
    assert_eq!(module.version(), (7, 8));
    assert_eq!(module.target(), "sm_80");
}
