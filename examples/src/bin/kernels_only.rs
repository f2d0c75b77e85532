//! The kernels in another project: the shipped PTX and its typed launchers, without the host crate.
//!
//! Appends 64 tokens of one head to a cache of this program's own making and reads the low-bit mirror of
//! the keys that the kernel wrote. Here the PTX runs on the emulator; with a GPU, hand `launch.kernel.name`,
//! `launch.grid`, `launch.block`, `launch.shared_bytes` and `launch.args` to cuLaunchKernel instead.
//!
//!     cargo run --release -p psa-examples --bin kernels_only

use half::f16;
use kernels_gpu::append::append;
use kernels_gpu::layout::{MirrorKind, code_shift, plane_offset, slot_elements, step_offset};
use psa_codegen::{DeviceLimits, Region};
use ptx_emulator::{Arg, Device, DevicePtr, LaunchConfig, Module, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const D: usize = 64;
    const TOKENS: usize = 64;
    /// The channel to look at.
    const CHANNEL: usize = 40;
    let module = Module::parse(kernels_gpu::PTX)?;
    let mut device = Device::new(Options::default());

    // Keys of a known form: channel c rises from -c to c over the 64 tokens.
    let key = |t: usize, c: usize| c as f32 * (t as f32 / 31.5 - 1.0);
    let k: Vec<f16> = (0..TOKENS * D).map(|i| f16::from_f32(key(i / D, i % D))).collect();
    let page_bytes = MirrorKind::Planes(1).page_bytes(D);

    // SAFETY: all of it is memory of this device, of this length, and lives as long as the device.
    let region = |pointer: DevicePtr, bytes: usize| unsafe { Region::new(pointer.0, bytes as u64) };
    let mut upload = |bytes: &[u8], name: &str| -> Result<Region, ptx_emulator::Error> {
        let pointer = device.alloc(bytes.len() as u64, name)?;
        device.copy_to(pointer, bytes)?;
        Ok(region(pointer, bytes.len()))
    };
    let keys = upload(bytemuck::cast_slice(&k), "k")?;
    let offsets = upload(bytemuck::cast_slice(&[0u32, TOKENS as u32]), "offsets")?;
    let block_table = upload(bytemuck::cast_slice(&[3u32, 1, 0, 2]), "block_table")?;
    let zero = upload(bytemuck::cast_slice(&[0u32]), "zero")?;
    let lens = upload(bytemuck::cast_slice(&[TOKENS as u32]), "lens")?;
    let arena_bytes = 4 * slot_elements(D) * 2;
    let arena = device.alloc(arena_bytes as u64, "arena")?;
    let mirror = device.alloc(page_bytes as u64, "mirror")?;

    let launch = append::launch::<f16>(
        D,
        1,
        [1, 1, 1],
        append::Args {
            k: keys.input(),
            v: keys.input(),
            offsets: offsets.input(),
            arena: region(arena, arena_bytes).in_out(),
            mirror: region(mirror, page_bytes).in_out(),
            block_table: block_table.input(),
            mirror_table: zero.input(),
            seqs: zero.input(),
            lens: lens.input(),
            layer: 0,
            layers: 1,
            kv_heads: 1,
            max_blocks: 4,
        },
    )?;
    // The launcher checked lengths and alignment; this checks what the device allows.
    launch.check(&DeviceLimits::of_sm(80))?;
    let args: Vec<Arg> = launch.args.iter().map(|arg| Arg::Bytes(arg.bytes())).collect();
    let config = LaunchConfig { grid: launch.grid, block: launch.block, shared_bytes: launch.shared_bytes };
    let report = device.launch(&module, launch.kernel.name, config, &args)?;
    println!(
        "{} ran on the emulator: {} finding(s) of its checkers",
        launch.kernel.name,
        report.findings.len()
    );
    for finding in &report.findings {
        println!("  {finding}");
    }

    let mut page = vec![0u8; page_bytes];
    device.copy_from(mirror, &mut page)?;
    let half = |at: usize| f16::from_le_bytes([page[at], page[at + 1]]).to_f32();
    let (zero, step) = (half(2 * CHANNEL), half(step_offset(D) + 2 * CHANNEL));
    println!(
        "{TOKENS} keys of {D} f16 ({} bytes) became a 2-bit mirror page of {page_bytes} bytes.",
        2 * TOKENS * D
    );
    println!("Channel {CHANNEL}, mirrored as zero + code * step = {zero} + code * {step}:");
    for t in [0, 16, 40, 63] {
        let word = plane_offset(D, 0) + t * D / 4 + 4 * (CHANNEL / 16);
        let word = u32::from_le_bytes([page[word], page[word + 1], page[word + 2], page[word + 3]]);
        let code = (word >> code_shift(CHANNEL)) & 3;
        let mirrored = zero + code as f32 * step;
        println!("  token {t:2}: key {:+7.2}, code {code}, mirrored {mirrored:+7.2}", key(t, CHANNEL));
    }
    Ok(())
}
