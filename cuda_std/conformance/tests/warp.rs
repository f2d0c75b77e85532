//! `cuda_std::warp` on the emulator: what each lane gets, from the ISA's definitions.

mod harness;

use harness::Gpu;
use psa_cuda_std_conformance::warp::{matches, reductions, shuffle_types, shuffles, votes};

/// Source lane of a shuffle in segments of `width` lanes, or none when it is outside the segment.
fn source(mode: usize, lane: i32, b: i32, width: i32) -> Option<i32> {
    let first = lane / width * width;
    let from = match mode {
        0 => lane + b,
        1 => lane - b,
        2 => first + b % width,
        _ => lane ^ b,
    };
    // A butterfly may reach down into an earlier segment, never up into a later one.
    let lowest = if mode == 3 { 0 } else { first };
    (lowest..first + width).contains(&from).then_some(from)
}

#[test]
fn shuffles_move_values_within_their_segment_and_say_when_they_did_not() {
    for width in [1, 2, 4, 8, 16, 32] {
        for b in [0, 1, 2, 3, 7, 8, 16, 31] {
            let mut gpu = Gpu::new();
            let out = gpu.output::<u32>(32 * 8);
            let args = shuffles::Args { b, out };
            gpu.run(&shuffles::launch(width, [1, 1, 1], args).expect("an instance"));
            let out = gpu.read(out, 32 * 8);
            for lane in 0..32 {
                for mode in 0..4 {
                    let from = source(mode, lane, b as i32, width as i32);
                    let expected = [100 + from.unwrap_or(lane) as u32, u32::from(from.is_some())];
                    let at = lane as usize * 8 + mode * 2;
                    assert_eq!(out[at..at + 2], expected, "width {width} b {b} lane {lane} mode {mode}");
                }
            }
        }
    }
}

#[test]
fn every_type_shuffles_all_its_bits() {
    // Signs, patterns that a conversion of floats would change, and different words in each lane.
    let bits: Vec<u32> = (0..128u32).map(|i| i.wrapping_mul(0x9e37_79b9) ^ 0x8000_0080).collect();
    let mut gpu = Gpu::new();
    let args = shuffle_types::Args { bits: gpu.input(&bits), out: gpu.output(32 * 32) };
    gpu.run(&shuffle_types::launch([1, 1, 1], args).expect("an instance"));
    let out = gpu.read(args.out, 32 * 32);
    for lane in 0..32 {
        let other = |from: usize| &bits[from * 4..from * 4 + 4];
        let [a, b, c, d] = *other((lane + 1) % 32) else { unreachable!() };
        let sign = |value: i32| value as u32;
        let mut expected = vec![
            a & 0xff,
            sign(i32::from(a as i8)),
            a & 0xffff,
            sign(i32::from(a as i16)),
            a,
            a,
            a,
            b,
            a,
            b,
            a,
            a,
            b,
            a & 0xffff,
            a & 0xffff,
        ];
        expected.extend([a, b, c, d, a, b, c, d]);
        let group: Vec<usize> = (lane / 8 * 8..lane / 8 * 8 + 8).collect();
        expected.extend([
            a,
            a,
            other(lane ^ 5)[0],
            other(lane ^ 5)[0],
            other(if lane < 3 { lane } else { lane - 3 })[0],
            other(if lane > 28 { lane } else { lane + 3 })[0],
            (group.iter().sum::<usize>() as f32).to_bits(),
            (group[7] as f32).to_bits(),
            u32::MAX,
        ]);
        assert_eq!(out[lane * 32..(lane + 1) * 32], expected, "lane {lane}");
    }
}

#[test]
fn votes_count_the_lanes_of_their_mask() {
    for (yes, mask) in [
        (0u32, u32::MAX),
        (u32::MAX, u32::MAX),
        (0x8000_0001, 0x0000_ffff),
        (0x0000_ffff, 0x0000_ffff),
        (0x5555_5555, 0x5555_0000),
        (0x0f0f_0f0f, 0xf0f0_f0f0),
    ] {
        let predicate: Vec<u32> = (0..32).map(|lane| (yes >> lane & 1) * 6).collect();
        let mut gpu = Gpu::new();
        let args = votes::Args { predicate: gpu.input(&predicate), mask, out: gpu.output(32 * 6) };
        gpu.run(&votes::launch([1, 1, 1], args).expect("an instance"));
        let out = gpu.read(args.out, 32 * 6);
        let of = |mask: u32| [u32::from(yes & mask == mask), u32::from(yes & mask != 0), yes & mask];
        for lane in 0..32 {
            let branch = if mask >> lane & 1 == 1 { of(mask) } else { [7; 3] };
            assert_eq!(
                out[lane * 6..][..6],
                [of(u32::MAX), branch].concat(),
                "lane {lane} yes {yes:x} mask {mask:x}"
            );
        }
    }
}

#[test]
fn matches_compare_bits_and_not_numbers() {
    let float = |x: f32| x.to_bits();
    // 1.2 and 1.5 are equal as integers, 0.0 and -0.0 as floats, a NaN equals nothing as a float.
    let mixed: Vec<u32> =
        (0..32).map(|i| [float(1.2), float(1.5), float(0.0), float(-0.0), float(f32::NAN)][i % 5]).collect();
    for values in [mixed, vec![float(f32::NAN); 32], vec![7; 32]] {
        let mut gpu = Gpu::new();
        let args = matches::Args { bits: gpu.input(&values), out: gpu.output(32 * 8) };
        gpu.run(&matches::launch([1, 1, 1], args).expect("an instance"));
        let out = gpu.read(args.out, 32 * 8);
        for lane in 0..32 {
            let any = (0..32).filter(|&l| values[l] == values[lane]).fold(0u32, |mask, l| mask | 1 << l);
            let all = if any == u32::MAX { any } else { 0 };
            assert_eq!(out[lane * 8..][..8], [any, any, any, any, all, all, all, all], "lane {lane}");
        }
    }
}

#[test]
fn reductions_cover_exactly_the_lanes_of_their_mask() {
    let values: Vec<u32> = (0..32u32).map(|i| (i + 1).wrapping_mul(0x8765_4321)).collect();
    for mask in [u32::MAX, 0x0000_00ff, 0x8000_0001, 0x0001_0000] {
        let mut gpu = Gpu::new();
        let args = reductions::Args { values: gpu.input(&values), mask, out: gpu.output(32 * 12) };
        gpu.run(&reductions::launch([1, 1, 1], args).expect("an instance"));
        let out = gpu.read(args.out, 32 * 12);
        let taken: Vec<u32> = (0..32).filter(|l| mask >> l & 1 == 1).map(|l| values[l]).collect();
        let signed = || taken.iter().map(|&v| v as i32);
        let sum = taken.iter().fold(0u32, |a, &v| a.wrapping_add(v));
        let (and, or, xor) = (
            taken.iter().fold(u32::MAX, |a, v| a & v),
            taken.iter().fold(0, |a, v| a | v),
            taken.iter().fold(0, |a, v| a ^ v),
        );
        let (min, max) = (*taken.iter().min().expect("lanes"), *taken.iter().max().expect("lanes"));
        let (imin, imax) = (signed().min().expect("lanes") as u32, signed().max().expect("lanes") as u32);
        for lane in 0..32 {
            let expected = if mask >> lane & 1 == 1 {
                [sum, min, max, and, or, xor, sum, imin, imax, and, or, xor]
            } else {
                [7; 12]
            };
            assert_eq!(out[lane * 12..][..12], expected, "lane {lane} mask {mask:x}");
        }
    }
}
