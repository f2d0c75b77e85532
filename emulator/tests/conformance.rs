//! Edge values of instructions against definitions written here: tables over all inputs where there
//! are few, the manual's formulas where there are many.

mod common;
use common::{kernel, one, run};

#[track_caller]
fn t(code: &str, inputs: &[u64], want: u64) {
    let got = one(code, inputs);
    assert_eq!(got, want, "{code} of {inputs:x?}: got {got:#x}, want {want:#x}");
}

fn f(x: f32) -> u64 {
    u64::from(x.to_bits())
}

#[test]
fn lop3_is_its_table_for_all_256_of_them() {
    // The three inputs together have every combination of bits.
    for lut in 0..256u64 {
        t(
            &format!("lop3.b32 %r0, %r1, %r2, %r3, {lut};"),
            &[0xf0, 0xcc, 0xaa],
            lut | if lut & 1 != 0 { 0xffff_ff00 } else { 0 },
        );
    }
    t("lop3.or.b32 %r3|%p0, %r1, %r2, 0, 0xc0, %p4;", &[0xf0, 0x0f, 0, 0], 0);
    t("lop3.or.b32 %r3|%p0, %r1, %r2, 0, 0xc0, !%p4;", &[0xf0, 0x0f, 0, 0], 1);
    t("lop3.and.b32 _|%p0, %r1, %r2, 0, 0xc0, %p4;", &[0xf0, 0x1f, 0, 1], 1);
}

#[test]
fn fns_walks_the_mask_as_the_manual_says() {
    for mask in [0u32, 1, 0x8000_0000, 0xaaaa_aaaa, 0xffff_ffff, 0x0010_0400] {
        for base in [0u32, 1, 5, 10, 20, 31] {
            for offset in [-33i32, -3, -1, 0, 1, 2, 5, 32] {
                let mut want = u32::MAX;
                if offset == 0 {
                    if mask >> base & 1 == 1 {
                        want = base;
                    }
                } else {
                    let (mut at, mut count) = (base as i32, offset.abs() - 1);
                    while (0..32).contains(&at) {
                        if mask >> at & 1 == 1 {
                            if count == 0 {
                                want = at as u32;
                                break;
                            }
                            count -= 1;
                        }
                        at += offset.signum();
                    }
                }
                let got =
                    one("fns.b32 %r0, %r1, %r2, %r3;", &[mask.into(), base.into(), offset as u32 as u64]);
                assert_eq!(got, u64::from(want), "{mask:#x} {base} {offset}");
            }
        }
    }
}

#[test]
fn bit_fields_are_taken_and_put_bit_by_bit() {
    for pos in [0u64, 1, 7, 24, 31, 32, 63, 255, 256 + 3] {
        for len in [0u64, 1, 8, 31, 32, 64, 255] {
            let (a, b) = (0x9234_5678_u64, 0x0fed_cba9u64);
            let (p, l) = ((pos & 0xff) as i64, (len & 0xff) as i64);
            let bit = |v: u64, i: i64| v >> i & 1;
            let sign = if l == 0 { 0 } else { bit(a, (p + l - 1).min(31)) };
            let take = |fill: u64| {
                (0..32).fold(0, |d, i| d | (if i < l && p + i <= 31 { bit(a, p + i) } else { fill }) << i)
            };
            t("bfe.u32 %r0, %r1, %r2, %r3;", &[a, pos, len], take(0));
            t("bfe.s32 %r0, %r1, %r2, %r3;", &[a, pos, len], take(sign));
            let put =
                (0..32).fold(
                    b,
                    |d, i: i64| if i >= p && i - p < l { d & !(1 << i) | bit(a, i - p) << i } else { d },
                );
            t("bfi.b32 %r0, %r1, %r2, %r3, %r4;", &[a, b, pos, len], put);
        }
    }
}

#[test]
fn packed_integers_add_compare_and_saturate_by_halves() {
    t("add.u16x2 %r0, %r1, %r2;", &[0xffff_0001, 0x0001_ffff], 0);
    t("min.s16x2 %r0, %r1, %r2;", &[0x8000_0001, 0x0001_ffff], 0x8000_ffff);
    t("max.relu.s16x2 %r0, %r1, %r2;", &[0x8000_0001, 0xffff_fffe], 0x0000_0001);
    t("min.relu.s32 %r0, %r1, %r2;", &[0xffff_fffe, 5], 0);
    t("mad24.hi.sat.s32 %r0, %r1, %r2, %r3;", &[0x7f_ffff, 0x7f_ffff, 0x7fff_ffff], 0x7fff_ffff);
    t("cvt.pack.sat.s16.s32 %r0, %r1, %r2;", &[0x7fff_ffff, 0xffff_0000], 0x7fff_8000);
    t("cvt.pack.sat.u16.s32 %r0, %r1, %r2;", &[0xffff_ffff, 70_000], 0x0000_ffff);
    t("cvt.pack.sat.u8.s32.b32 %r0, %r1, %r2, %r3;", &[300, 0xffff_ffff, 0xabcd_1234], 0x1234_ff00);
    t("cvt.pack.sat.s4.s32.b32 %r0, %r1, %r2, %r3;", &[100, (-100i32) as u32 as u64, 0x12], 0x1278);
}

#[test]
fn narrow_floats_saturate_to_their_largest_value_on_request() {
    t("cvt.rn.satfinite.f16.f32 %h0, %r1;", &[f(1e9)], 0x7bff);
    t("cvt.rn.satfinite.f16.f32 %h0, %r1;", &[f(f32::NEG_INFINITY)], 0xfbff);
    t("cvt.rz.satfinite.bf16.f32 %h0, %r1;", &[f(f32::INFINITY)], 0x7f7f);
    t("cvt.rn.relu.satfinite.f16x2.f32 %r0, %r1, %r2;", &[f(-5.0), f(1e9)], 0x0000_7bff);
    t("cvt.rn.satfinite.f16.f32 %h0, %r1;", &[0x7fc0_0000], 0x7fff);
    t("cvt.rna.satfinite.tf32.f32 %r0, %r1;", &[f(f32::MAX)], 0x7f7f_e000);
    t("cvt.rn.satfinite.e4m3x2.f16x2 %h0, %r1;", &[0x7bff_3c00], 0x7e38);
    t("cvt.rn.satfinite.relu.e5m2x2.f16x2 %h0, %r1;", &[0xbc00_7c00], 0x007b);
    t("cvt.rn.relu.f16x2.e4m3x2 %r0, %h1;", &[0xb838], 0x0000_3c00);
}

#[test]
fn comparisons_of_packed_halves_give_ones_or_masks() {
    // 1 < 2 in the upper half; NaN in the lower one.
    let (a, b) = (0x3c00_7e00, 0x4000_3c00);
    t("set.lt.f16x2.f16x2 %r0, %r1, %r2;", &[a, b], 0x3c00_0000);
    t("set.ltu.u32.f16x2 %r0, %r1, %r2;", &[a, b], 0xffff_ffff);
    t("set.lt.xor.u32.f16x2 %r0, %r1, %r2, %p3;", &[a, b, 1], 0x0000_ffff);
    t("set.gt.bf16x2.bf16x2 %r0, %r1, %r2;", &[0x4000_3f80, 0x3f80_4000], 0x3f80_0000);
    // The smallest subnormal is above zero, unless flushed.
    t("set.gt.u32.f16x2 %r0, %r1, %r2;", &[0x0001_0001, 0], 0xffff_ffff);
    t("set.gt.ftz.u32.f16x2 %r0, %r1, %r2;", &[0x0001_0001, 0], 0);
    t("min.xorsign.abs.f16 %h0, %h1, %h2;", &[0xc000, 0x3c00], 0xbc00);
    t("max.NaN.xorsign.abs.bf16 %h0, %h1, %h2;", &[0x7fc0, 0x3f80], 0x7fff);
}

#[test]
fn approximate_division_gives_up_beyond_two_to_the_126() {
    t("div.approx.f32 %r0, %r1, %r2;", &[f(1.0), f(2f32.powi(127))], 0);
    t("div.approx.f32 %r0, %r1, %r2;", &[f(f32::INFINITY), f(2f32.powi(127))], 0x7fff_ffff);
    t("div.full.f32 %r0, %r1, %r2;", &[f(2f32.powi(100)), f(2f32.powi(127))], f(2f32.powi(-27)));
    t("div.approx.f32 %r0, %r1, %r2;", &[f(6.0), f(-2.0)], f(-3.0));
}

#[test]
fn atomic_sums_of_singles_flush_in_global_memory_only() {
    let body = |space: &str, at: &str| {
        format!(
            "mov.u32 %r1, dyn; mov.u32 %r2, 1; mov.u32 %r3, 2; st{space}.u32 [{at}], %r2; mov.b32 %f1, %r3; atom{space}.add.f32 %f2, [{at}], %f1; ld{space}.u32 %r4, [{at}]; st.global.u32 [%out+4], %r4;"
        )
    };
    let shared = run(&kernel(".extern .shared .b32 dyn[];", &body(".shared", "%r1")), 1, 16, &[0], 2).out[1];
    let global = run(&kernel(".extern .shared .b32 dyn[];", &body(".global", "%out")), 1, 16, &[0], 2).out[1];
    assert_eq!((shared, global), (3, 0));
    let vector = "mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f40000000; st.global.v2.f32 [%out], {%f1, %f2}; atom.global.add.v2.f32 {%f1, %f2}, [%out], {%f2, %f1}; st.global.v2.f32 [%out+8], {%f1, %f2};";
    let r = run(&kernel("", vector), 1, 0, &[0], 4);
    assert_eq!(r.out, [3f32, 3.0, 1.0, 2.0].map(f32::to_bits));
}

/// One mma of whole numbers, elements by the manual's tables: rows and columns of element `i`.
fn mma_ints(shape: &str, types: &str, (m, k, bits): (usize, usize, usize), post: &str) {
    let (na, nb, nc) = (m * k * bits / 1024, 8 * k * bits / 1024, m / 4);
    let e = 32 / bits;
    let list =
        |from: usize, n: usize| (from..from + n).map(|i| format!("%r{i}")).collect::<Vec<_>>().join(", ");
    let mut body = String::new();
    for i in 0..na + nb {
        body += &format!(
            "mad.lo.u32 %r0, %t, {}, {i}; mul.wide.u32 %rd1, %r0, 4; add.u64 %rd1, %in, %rd1; ld.global.u32 %r{}, [%rd1];\n",
            na + nb,
            i + 1
        );
    }
    body += &format!(
        "mov.u32 %r30, 7; mma.sync.aligned.{shape}.row.col.{types}{post} {{{}}}, {{{}}}, {{{}}}, {{{}}}; mul.wide.u32 %rd2, %t, {}; add.u64 %rd2, %out, %rd2;\n",
        list(20, nc),
        list(1, na),
        list(1 + na, nb),
        vec!["%r30"; nc].join(", "),
        4 * nc
    );
    for i in 0..nc {
        body += &format!("st.global.u32 [%rd2+{}], %r{};\n", 4 * i, 20 + i);
    }
    let mask = if bits == 32 { u32::MAX } else { (1u32 << bits) - 1 };
    let a = |r: usize, c: usize| ((r * 37 + c * 91 + c / 3) as u32).wrapping_mul(2654435761) >> 7 & mask;
    let b = |r: usize, c: usize| ((r * 53 + c * 17 + r / 5) as u32).wrapping_mul(2246822519) >> 9 & mask;
    let mut input = vec![0u32; 32 * (na + nb)];
    for lane in 0..32 {
        let (g, tid) = (lane / 4, lane % 4);
        for i in 0..na * e {
            // Registers alternate between the upper and the lower eight rows, then go on in k.
            let reg = i / e;
            let row = if m == 16 && reg % 2 == 1 { g + 8 } else { g };
            let block = if m == 16 { reg / 2 } else { reg };
            input[lane * (na + nb) + reg] |= a(row, tid * e + i % e + block * 4 * e) << (bits * (i % e));
        }
        for i in 0..nb * e {
            input[lane * (na + nb) + na + i / e] |= b(tid * e + i % e + i / e * 4 * e, g) << (bits * (i % e));
        }
    }
    let r = run(&kernel("", &body), 32, 0, &input, 32 * nc);
    assert!(r.report.is_clean(), "{shape}: {:#?}", r.report.findings);
    let signed: Vec<bool> = types.split('.').map(|t| t.starts_with('s')).collect();
    let value =
        |x: u32, s: bool| if s && x >> (bits - 1) & 1 == 1 { x as i64 - (1 << bits) } else { i64::from(x) };
    for lane in 0..32 {
        for i in 0..nc {
            let (row, col) = (lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2);
            let want: i64 = 7
                + (0..k)
                    .map(|x| match post {
                        ".xor.popc" => i64::from(a(row, x) ^ b(x, col)),
                        ".and.popc" => i64::from(a(row, x) & b(x, col)),
                        _ => value(a(row, x), signed[1]) * value(b(x, col), signed[2]),
                    })
                    .sum::<i64>();
            assert_eq!(r.out[lane * nc + i] as i32 as i64, want, "{shape} {types} row {row} column {col}");
        }
    }
}

#[test]
fn mma_of_whole_numbers_and_bits_is_a_matrix_product_in_every_shape() {
    for types in ["s32.s8.s8.s32", "s32.u8.s8.s32", "s32.s8.u8.s32", "s32.u8.u8.s32"] {
        for (shape, m, k) in [("m8n8k16", 8, 16), ("m16n8k16", 16, 16), ("m16n8k32", 16, 32)] {
            mma_ints(shape, types, (m, k, 8), "");
        }
    }
    for types in ["s32.s4.s4.s32", "s32.u4.s4.s32"] {
        for (shape, m, k) in [("m8n8k32", 8, 32), ("m16n8k32", 16, 32), ("m16n8k64", 16, 64)] {
            mma_ints(shape, types, (m, k, 4), "");
        }
    }
    for post in [".xor.popc", ".and.popc"] {
        for (shape, m, k) in [("m8n8k128", 8, 128), ("m16n8k128", 16, 128), ("m16n8k256", 16, 256)] {
            mma_ints(shape, "s32.b1.b1.s32", (m, k, 1), post);
        }
    }
}

/// wmma from and to memory, in every pair of layouts: `bytes` of an element of a and b, and of c.
fn wmma(shape: &str, (m, n, k): (usize, usize, usize), ab: &str, c: &str, regs: [usize; 3], suffix: &str) {
    let width = |t: &str| t.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().unwrap() / 8;
    let (eb, cb) = (if ab == "tf32" { 4 } else { width(ab) }, width(c));
    let put = |v: i64, t: &str, to: &mut Vec<u8>| match t {
        "tf32" | "f32" => to.extend((v as f32).to_le_bytes()),
        "f64" => to.extend((v as f64).to_le_bytes()),
        "s8" | "u8" => to.push(v as u8),
        _ => to.extend((v as i32).to_le_bytes()),
    };
    for a_row in [true, false] {
        for b_row in [true, false] {
            let name = |row: bool| if row { "row" } else { "col" };
            let reg = |t: &str, x: &str| if t == "f64" { format!("%rd{x}") } else { format!("%r{x}") };
            let list = |t: &str, from: usize, n: usize| {
                (from..from + n).map(|i| reg(t, &i.to_string())).collect::<Vec<_>>().join(", ")
            };
            let (la, lb, lc) = (list(ab, 4, regs[0]), list(ab, 12, regs[1]), list(c, 20, regs[2]));
            let (at_b, at_c) = (m * k * eb, m * k * eb + k * n * eb);
            let body = format!(
                "add.u64 %rd1, %in, {at_b}; add.u64 %rd2, %in, {at_c};\n\
                 wmma.load.a.sync.aligned.{}.{shape}.global.{ab} {{{la}}}, [%in], {};\n wmma.load.b.sync.aligned.{}.{shape}.global.{ab} {{{lb}}}, [%rd1], {};\n\
                 wmma.load.c.sync.aligned.row.{shape}.global.{c} {{{lc}}}, [%rd2], {n};\n\
                 wmma.mma.sync.aligned.{}.{}.{shape}.{c}.{ab}.{ab}.{c}{suffix} {{{lc}}}, {{{la}}}, {{{lb}}}, {{{lc}}};\n\
                 wmma.store.d.sync.aligned.row.{shape}.global.{c} [%out], {{{lc}}}, {n};",
                name(a_row),
                if a_row { k } else { m },
                name(b_row),
                if b_row { n } else { k },
                name(a_row),
                name(b_row)
            );
            let small = |v: usize| (v % 11) as i64 - if ab == "u8" { 0 } else { 5 };
            let (a, b) =
                (|r: usize, x: usize| small(r * 3 + x * 7), |x: usize, j: usize| small(x * 5 + j * 2 + 1));
            let mut bytes = Vec::new();
            for i in 0..m * k {
                let (r, x) = if a_row { (i / k, i % k) } else { (i % m, i / m) };
                put(a(r, x), ab, &mut bytes);
            }
            for i in 0..k * n {
                let (x, j) = if b_row { (i / n, i % n) } else { (i % k, i / k) };
                put(b(x, j), ab, &mut bytes);
            }
            (0..m * n).for_each(|i| put(i as i64, c, &mut bytes));
            let input: Vec<u32> =
                bytes.chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
            let r = run(&kernel("", &body), 32, 0, &input, m * n * cb / 4);
            assert!(r.report.is_clean(), "{shape} {ab}: {:#?}", r.report.findings);
            let mut want = Vec::new();
            for i in 0..m * n {
                let sum: i64 = (0..k).map(|x| a(i / n, x) * b(x, i % n)).sum();
                put(i as i64 + sum, c, &mut want);
            }
            let got: Vec<u8> = r.out.iter().flat_map(|w| w.to_le_bytes()).collect();
            assert_eq!(got, want, "{shape} {ab} {} {}", name(a_row), name(b_row));
        }
    }
}

#[test]
fn wmma_of_bytes_tf32_and_doubles_is_a_matrix_product_in_every_layout() {
    for t in ["s8", "u8"] {
        wmma("m16n16k16", (16, 16, 16), t, "s32", [2, 2, 8], "");
        wmma("m32n8k16", (32, 8, 16), t, "s32", [4, 1, 8], ".satfinite");
        wmma("m8n32k16", (8, 32, 16), t, "s32", [1, 4, 8], "");
    }
    wmma("m16n16k8", (16, 16, 8), "tf32", "f32", [4, 4, 8], "");
    wmma("m8n8k4", (8, 8, 4), "f64", "f64", [1, 1, 2], "");
}
