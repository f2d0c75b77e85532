//! What the kernels move: every byte once, in full sectors, without bank conflicts; and where not, how far off.
//!
//! Pinned are ratios of a launch to the ideal, at two lengths, from the emulator's counters of every buffer. What
//! gets worse fails; what gets better is printed, and the pin should follow. Exact counts of every instance are the
//! business of `cargo xtask ratchet`.
//!
//! Trap: a sector counts once in each warp instruction. Two loads of the halves of a sector are two sectors here,
//! and two requests on a GPU, where the second may hit L1.

use psa::{Budget, Dtype, Mirror, Policy, Shape};
use psa_tests::scenes::{Scene, Step, record_gather};
use ptx_emulator::Module;

const LENGTHS: [usize; 2] = [512, 2048];

/// Ratios, 1.0 each where nothing is wasted, at each of [`LENGTHS`].
struct Pin {
    /// Beginning of the kernel's name.
    kernel: &'static str,
    buffer: &'static str,
    /// Stores, not loads.
    store: bool,
    /// Bytes asked for, to distinct bytes.
    repeated: [f64; 2],
    /// Bytes of the sectors of all accesses, to distinct bytes.
    sectors: [f64; 2],
}

const fn load(kernel: &'static str, buffer: &'static str, repeated: [f64; 2], sectors: [f64; 2]) -> Pin {
    Pin { kernel, buffer, store: false, repeated, sectors }
}

const fn store(kernel: &'static str, buffer: &'static str, repeated: [f64; 2], sectors: [f64; 2]) -> Pin {
    Pin { kernel, buffer, store: true, repeated, sectors }
}

const ONCE: [f64; 2] = [1.0, 1.0];
/// The largest odd sum that an unaligned or partial sector adds to a stream.
const SLACK: f64 = 0.005;

/// What is not ideal has its reason behind it.
const PINS: &[Pin] = &[
    load("append_bf16", "k", ONCE, [2.0, 2.0]), // 16 bytes a lane as two accesses of 8: half sectors
    load("append_bf16", "v", ONCE, [2.0, 2.0]), // as k
    store("append_bf16", "arena", ONCE, [2.0, 2.0]), // as k
    load("append_bf16", "arena", [2.0, 2.0], [3.0, 3.0]), // once for the range, once for the codes
    store("append_bf16", "mirror", ONCE, ONCE),
    load("append_box", "arena", ONCE, ONCE),
    store("append_box", "mirror", ONCE, ONCE),
    load("score_bf16", "mirror", ONCE, [1.8, 1.8]), // the planes: 16 bytes a lane as two accesses of 8
    store("score_bf16", "log_mass", ONCE, [4.0, 4.0]), // 2 of the 8 blocks of a sector an access
    load("score_bf16", "q", [8.0, 32.0], [8.0, 32.0]), // once a group of 64 tokens
    load("score_box", "mirror", [4.0, 4.0], [2.0, 2.0]), // once a query head
    store("score_box", "log_mass", ONCE, [2.0, 2.0]), // 4 of the 8 blocks of a sector an access
    load("score_box", "q", [32.0, 128.0], [128.0, 512.0]), // once a block, every lane for itself
    load("plan_n512", "log_mass", [5.41, 5.3], [6.19, 10.72]), // peak, sum, keys, and twice by rank: scattered
    store("plan_n512", "order", ONCE, ONCE),
    store("plan_identity", "order", ONCE, ONCE),
    load("attend_bf16", "arena", ONCE, ONCE),
    load("attend_bf16", "q", [2.0, 8.0], [2.0, 8.0]), // once a split
    store("attend_bf16", "partial", ONCE, [1.05, 1.05]),
    load("merge_bf16", "partial", ONCE, [1.05, 1.05]),
    store("merge_bf16", "out", ONCE, [1.05, 1.05]),
];

/// Extra passes over the banks, an access to shared memory.
const CONFLICTS: &[(&str, [f64; 2])] = &[
    ("append_bf16", [2.96, 2.96]), // zero and step of 16 neighbouring channels a lane: four lanes a bank
    ("append_box", [0.0, 0.0]),
    ("score_bf16", [0.0, 0.0]),
    ("score_box", [0.0, 0.0]),
    ("plan_n512", [0.05, 0.24]), // pairs of the bitonic sort less than 16 keys apart
    ("plan_identity", [0.0, 0.0]),
    ("attend_bf16", [0.0, 0.0]),
    ("merge_bf16", [0.0, 0.0]), // this step tops nothing up
];

fn scenes(tokens: usize) -> Vec<Scene> {
    let shape = Shape { layers: 2, q_heads: 4, kv_heads: 1, head_dim: 128, dtype: Dtype::Bf16 };
    let module = Module::parse(kernels_gpu::PTX).unwrap();
    let mut all = Vec::new();
    for (mirror, policy) in [
        (Mirror::Bits2, Policy::Progressive { mass: 0.9 }),
        (Mirror::Bits2, Policy::Dense),
        (Mirror::Box, Policy::Quest(Budget::Fraction(0.3))),
    ] {
        let step = Step { shape, lengths: vec![tokens], mirror, policy, sharpness: 1.0, only: &[] };
        all.extend(step.record(&module).unwrap());
    }
    all
}

/// The first launch of a kernel: of the appends, the prefill.
fn first<'a>(scenes: &'a [Scene], kernel: &str) -> &'a Scene {
    scenes.iter().find(|s| s.kernel().starts_with(kernel)).unwrap_or_else(|| panic!("no launch of {kernel}"))
}

/// A measured ratio against its pin.
fn judge(worse: &mut Vec<String>, what: String, have: f64, pin: f64) {
    if have.is_nan() || have > pin + SLACK {
        worse.push(format!("{what}: {have:.2}, pinned {pin:.2}"));
    } else if have < pin - 0.01 {
        println!("better: {what}: {have:.2}, pinned {pin:.2}; tighten the pin");
    }
}

#[test]
fn every_byte_is_moved_as_often_as_pinned() {
    let mut worse = Vec::new();
    for (i, tokens) in LENGTHS.into_iter().enumerate() {
        let scenes = scenes(tokens);
        for pin in PINS {
            let scene = first(&scenes, pin.kernel);
            let what = format!(
                "{} {} {} at {tokens} tokens",
                scene.kernel(),
                if pin.store { "writes" } else { "reads" },
                pin.buffer
            );
            let found = scene.report.buffers.iter().find(|b| b.name == pin.buffer);
            let b = found.unwrap_or_else(|| panic!("{what}: it does not touch it"));
            let (bytes, distinct, sectors) = if pin.store {
                (b.bytes_written, b.distinct_written, b.sectors_written)
            } else {
                (b.bytes_read, b.distinct_read, b.sectors_read)
            };
            assert!(distinct > 0, "{what}: no byte");
            let ratio = |n: u64| n as f64 / distinct as f64;
            judge(&mut worse, format!("{what}: bytes asked for"), ratio(bytes), pin.repeated[i]);
            judge(&mut worse, format!("{what}: bytes of sectors"), ratio(32 * sectors), pin.sectors[i]);
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
}

#[test]
fn shared_memory_conflicts_as_often_as_pinned() {
    let mut worse = Vec::new();
    for (i, tokens) in LENGTHS.into_iter().enumerate() {
        let scenes = scenes(tokens);
        for (kernel, pins) in CONFLICTS {
            let c = &first(&scenes, kernel).report.counters;
            let ratio = c.bank_conflicts as f64 / c.shared_accesses.max(1) as f64;
            judge(&mut worse, format!("{kernel} at {tokens} tokens: conflicts an access"), ratio, pins[i]);
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
}

#[test]
fn dense_attention_reads_every_byte_of_k_and_v_once_and_nothing_else_of_the_arena() {
    for tokens in LENGTHS {
        let scenes = scenes(tokens);
        let dense = scenes.iter().skip_while(|s| s.kernel() != "plan_identity");
        let attend = dense.clone().find(|s| s.kernel().starts_with("attend_")).unwrap();
        let arena = attend.report.buffers.iter().find(|b| b.name == "arena").unwrap();
        let bytes = (tokens * 2 * 128 * 2) as u64;
        assert_eq!((arena.bytes_read, arena.distinct_read), (bytes, bytes));
        let merge = dense.clone().find(|s| s.kernel().starts_with("merge_")).unwrap();
        assert!(merge.report.buffers.iter().all(|b| b.name != "arena"));
    }
}

/// Bytes of all sectors that a launch moves, over the distinct bytes that it reads and writes.
fn waste(scene: &Scene) -> f64 {
    let buffers = &scene.report.buffers;
    let moved: u64 = buffers.iter().map(|b| 32 * (b.sectors_read + b.sectors_written)).sum();
    let distinct: u64 = buffers.iter().map(|b| b.distinct_read + b.distinct_written).sum();
    moved as f64 / distinct as f64
}

#[test]
fn attend_moves_five_per_cent_more_than_it_must_at_most_from_4k_to_16k_tokens() {
    let module = Module::parse(kernels_gpu::PTX).unwrap();
    // All group sizes that fill a tile or do not: a head's queries are read once by each CTA.
    for (tokens, group, policy) in [
        (4096, 8, Policy::Dense),
        (4096, 4, Policy::Progressive { mass: 0.95 }),
        (16_384, 1, Policy::Progressive { mass: 0.9 }),
        (16_384, 8, Policy::Dense),
    ] {
        let shape = Shape { layers: 1, q_heads: group, kv_heads: 1, head_dim: 128, dtype: Dtype::Bf16 };
        let only = ["attend_"].as_slice();
        let step = Step { shape, lengths: vec![tokens], mirror: Mirror::Bits2, policy, sharpness: 2.0, only };
        for scene in step.record(&module).unwrap() {
            let what = format!("{} of {tokens} tokens, group {group}, {policy}", scene.kernel());
            let read = scene.report.buffers.iter().find(|b| b.name == "arena").unwrap();
            println!("{what}: {:.3}, {} blocks", waste(&scene), read.distinct_read / 8192);
            assert!(waste(&scene) <= 1.05, "{what}: {}", waste(&scene));
            assert_eq!(scene.report.counters.bank_conflicts, 0, "{what}");
            for name in ["arena", "order", "block_table"] {
                let b = scene.report.buffers.iter().find(|b| b.name == name).unwrap();
                assert_eq!(b.bytes_read, b.distinct_read, "{what}: {name} is read again");
            }
        }
    }
}

#[test]
fn score_reads_every_mirror_page_once_and_no_key() {
    for tokens in LENGTHS {
        let scenes = scenes(tokens);
        let score = first(&scenes, "score_bf16");
        let mirror = score.report.buffers.iter().find(|b| b.name == "mirror").unwrap();
        let page = kernels_gpu::layout::MirrorKind::Planes(1).page_bytes(128);
        let bytes = (tokens / 64 * page) as u64;
        assert_eq!((mirror.bytes_read, mirror.distinct_read), (bytes, bytes));
        assert!(score.report.buffers.iter().all(|b| b.name != "arena"));
    }
}

#[test]
fn gather_moves_every_slot_once() {
    let module = Module::parse(kernels_gpu::PTX).unwrap();
    for scene in record_gather(&module).unwrap() {
        let of = |name: &str| scene.report.buffers.iter().find(|b| b.name == name).unwrap();
        let (source, target) = (of("source"), of("target"));
        assert_eq!((source.bytes_read, source.distinct_read), (3 * 5120, 3 * 5120));
        assert_eq!((target.bytes_written, target.distinct_written), (3 * 5120, 3 * 5120));
        let sectors = 3 * 5120 / 32;
        assert_eq!((source.sectors_read, target.sectors_written), (sectors, sectors), "half sectors");
    }
}
