//! `cuda_std::shared`, `ptr` and the copies of `ptx` on the emulator.

mod harness;

use harness::Gpu;
use psa_cuda_std_conformance::memory::{address_spaces, copies, shared_types};

#[test]
fn every_type_passes_shared_memory_with_all_its_bits() {
    let bits: Vec<u32> = (0..128u32).map(|i| i.wrapping_mul(0x9e37_79b9) ^ 0x8000_8080).collect();
    let mut gpu = Gpu::new();
    let args = shared_types::Args { bits: gpu.input(&bits), out: gpu.output(32 * 24) };
    gpu.run(&shared_types::launch([1, 1, 1], args).expect("an instance"));
    let out = gpu.read(args.out, 32 * 24);
    for lane in 0..32 {
        let [a, b, c, d] = bits[(lane + 1) % 32 * 4..][..4] else { unreachable!() };
        let expected = [
            a & 0xff,
            i32::from(a as i8) as u32,
            a & 0xffff,
            i32::from(a as i16) as u32,
            a & 0xffff,
            a & 0xffff,
            a,
            a,
            a,
            a,
            b,
            a,
            b,
            a,
            b,
            a,
            b,
            a,
            b,
            c,
            d,
            b,
            0,
            0,
        ];
        assert_eq!(out[lane * 24..][..24], expected, "lane {lane}");
    }
}

#[test]
fn copies_arrive_whole_and_fill_what_they_do_not_read_with_zero() {
    let rows: Vec<[u32; 4]> =
        (0..32u32).map(|l| std::array::from_fn(|i| 0x0101_0101 * (l * 4 + i as u32 + 1))).collect();
    let mut gpu = Gpu::new();
    let source = gpu.input(rows.as_flattened());
    let out = gpu.output::<u32>(32 * 12);
    let args = copies::Args { rows: source.region().input(), out: out.region().in_out() };
    gpu.run(&copies::launch([1, 1, 1], args).expect("an instance"));
    let out = gpu.read(out, 32 * 12);
    for lane in 0..32 {
        let other = (lane + 1) % 32;
        let mut bytes: Vec<u8> = rows[other].iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes[other % 17..].fill(0);
        let filled: Vec<u32> =
            bytes.chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(out[lane * 12..][..12], [&rows[other][..], &filled, &rows[lane]].concat(), "lane {lane}");
    }
}

#[test]
fn generic_pointers_know_their_space_and_survive_conversion() {
    let mut gpu = Gpu::new();
    let args = address_spaces::Args { out: gpu.output(12) };
    gpu.run(&address_spaces::launch([1, 1, 1], args).expect("an instance"));
    assert_eq!(gpu.read(args.out, 12), [1, 0, 0, 0, 0, 1, 0, 0, 33, 22, 1, 1]);
}
