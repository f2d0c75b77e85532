//! Matrix instructions: fragments, products in every format, moves; against plain products.

mod common;
use common::{kernel, run};
use half::{bf16, f16};

/// A full fragment test of one mma shape: A and B from memory by the layouts of the manual.
fn mma_f32(
    shape: &str,
    ty: &str,
    k: usize,
    a_regs: usize,
    b_regs: usize,
    cast: fn(f32) -> u16,
    value: fn(u16) -> f32,
) {
    let list = |p: &str, n: usize| (0..n).map(|i| format!("%{p}{i}")).collect::<Vec<_>>().join(", ");
    let mut body = String::new();
    for i in 0..a_regs {
        body += &format!(
            "mul.lo.u32 %r30, %t, {a_regs}; add.u32 %r30, %r30, {i}; mul.wide.u32 %rd1, %r30, 4; add.u64 %rd1, %in, %rd1; ld.global.u32 %a{i}, [%rd1];\n"
        );
    }
    for i in 0..b_regs {
        body += &format!(
            "mul.lo.u32 %r30, %t, {b_regs}; add.u32 %r30, %r30, {}; mul.wide.u32 %rd1, %r30, 4; add.u64 %rd1, %in, %rd1; ld.global.u32 %b{i}, [%rd1];\n",
            32 * a_regs + i
        );
    }
    let regs = format!(".reg .b32 %a<4>; .reg .b32 %b<2>; .reg .f32 %c<4>;\n{body}");
    let body = format!(
        "{regs} mov.f32 %c0, 1.0; mov.f32 %c1, 2.0; mov.f32 %c2, 3.0; mov.f32 %c3, 4.0;\n\
         mma.sync.aligned.{shape}.row.col.f32.{ty}.{ty}.f32 {{{}}}, {{{}}}, {{{}}}, {{{}}};\n\
         mul.wide.u32 %rd2, %t, 16; add.u64 %rd2, %out, %rd2; st.global.v4.f32 [%rd2], {{{}}};",
        list("c", 4),
        list("a", a_regs),
        list("b", b_regs),
        list("c", 4),
        list("c", 4),
    );
    let a: Vec<Vec<u16>> =
        (0..16).map(|r| (0..k).map(|c| cast(((r * 7 + c * 3) % 11) as f32 * 0.25 - 1.0)).collect()).collect();
    let b: Vec<Vec<u16>> =
        (0..k).map(|r| (0..8).map(|c| cast(((r * 5 + c) % 9) as f32 * 0.5 - 2.0)).collect()).collect();
    let mut input = vec![0u32; 32 * (a_regs + b_regs)];
    for lane in 0..32 {
        let (group, tid) = (lane / 4, lane % 4);
        for i in 0..2 * a_regs {
            // ISA: row is group for a0,a1,a4,a5 and group + 8 else; columns from 8 on begin with a4.
            let row = if i % 4 < 2 { group } else { group + 8 };
            let col = tid * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
            input[lane * a_regs + i / 2] |= u32::from(a[row][col]) << (16 * (i & 1));
        }
        for i in 0..2 * b_regs {
            let row = tid * 2 + (i & 1) + if i >= 2 { 8 } else { 0 };
            input[32 * a_regs + lane * b_regs + i / 2] |= u32::from(b[row][group]) << (16 * (i & 1));
        }
    }
    let r = run(&kernel("", &body), 32, 0, &input, 128);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    assert_eq!(r.report.counters.mma_operations, 2 * 16 * 8 * k as u64);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, col) = (lane / 4 + if i < 2 { 0 } else { 8 }, (lane % 4) * 2 + (i & 1));
            let want: f32 = (0..k).map(|x| value(a[row][x]) * value(b[x][col])).sum::<f32>() + (i + 1) as f32;
            assert_eq!(f32::from_bits(r.out[lane * 4 + i]), want, "{shape} {ty} row {row} col {col}");
        }
    }
}

#[test]
fn mma_of_half_formats_is_a_matrix_product() {
    let (b, bv) = (|x: f32| bf16::from_f32(x).to_bits(), |x: u16| bf16::from_bits(x).to_f32());
    let (h, hv) = (|x: f32| f16::from_f32(x).to_bits(), |x: u16| f16::from_bits(x).to_f32());
    mma_f32("m16n8k16", "bf16", 16, 4, 2, b, bv);
    mma_f32("m16n8k16", "f16", 16, 4, 2, h, hv);
    mma_f32("m16n8k8", "bf16", 8, 2, 1, b, bv);
    mma_f32("m16n8k8", "f16", 8, 2, 1, h, hv);
}

#[test]
fn mma_of_bytes_is_a_matrix_product_with_either_sign() {
    for (k, a_regs, b_regs) in [(16usize, 2usize, 1usize), (32, 4, 2)] {
        for (ta, tb) in [("s8", "s8"), ("u8", "s8"), ("s8", "u8"), ("u8", "u8")] {
            let n = a_regs + b_regs;
            let mut body = ".reg .b32 %a<4>; .reg .b32 %b<2>;\n".to_string();
            for i in 0..n {
                let reg = if i < a_regs { format!("%a{i}") } else { format!("%b{}", i - a_regs) };
                body += &format!(
                    "mul.lo.u32 %r30, %t, {n}; add.u32 %r30, %r30, {i}; mul.wide.u32 %rd1, %r30, 4; add.u64 %rd1, %in, %rd1; ld.global.u32 {reg}, [%rd1];\n"
                );
            }
            let (al, bl) =
                if k == 16 { ("{%a0, %a1}", "{%b0}") } else { ("{%a0, %a1, %a2, %a3}", "{%b0, %b1}") };
            body += &format!(
                "mov.u32 %r0, 100; mma.sync.aligned.m16n8k{k}.row.col.s32.{ta}.{tb}.s32 {{%r1, %r2, %r3, %r4}}, {al}, {bl}, {{%r0, %r0, %r0, %r0}};\n\
                 mul.wide.u32 %rd2, %t, 16; add.u64 %rd2, %out, %rd2; st.global.v4.b32 [%rd2], {{%r1, %r2, %r3, %r4}};"
            );
            let a = |r: usize, c: usize| ((r * 37 + c * 91) % 256) as u8;
            let b = |r: usize, c: usize| ((r * 53 + c * 17 + 128) % 256) as u8;
            let mut input = vec![0u32; 32 * n];
            for lane in 0..32 {
                let (group, tid) = (lane / 4, lane % 4);
                for i in 0..4 * a_regs {
                    let low_row = if k == 16 { i < 4 } else { i < 4 || (8..12).contains(&i) };
                    let row = if low_row { group } else { group + 8 };
                    let col = tid * 4 + (i & 3) + if i >= 8 { 16 } else { 0 };
                    input[lane * n + i / 4] |= u32::from(a(row, col)) << (8 * (i & 3));
                }
                for i in 0..4 * b_regs {
                    let row = tid * 4 + (i & 3) + if i >= 4 { 16 } else { 0 };
                    input[lane * n + a_regs + i / 4] |= u32::from(b(row, group)) << (8 * (i & 3));
                }
            }
            let r = run(&kernel("", &body), 32, 0, &input, 128);
            let v = |x: u8, t: &str| if t == "s8" { i32::from(x as i8) } else { i32::from(x) };
            for lane in 0..32 {
                for i in 0..4 {
                    let (row, col) = (lane / 4 + if i < 2 { 0 } else { 8 }, (lane % 4) * 2 + (i & 1));
                    let want: i32 = (0..k).map(|x| v(a(row, x), ta) * v(b(x, col), tb)).sum::<i32>() + 100;
                    assert_eq!(r.out[lane * 4 + i] as i32, want, "k{k} {ta} {tb} row {row} col {col}");
                }
            }
        }
    }
}

#[test]
fn matrix_loads_distribute_rows_and_transpose() {
    for (trans, x) in [("", "x4"), (".trans", "x4"), ("", "x2"), (".trans", "x1")] {
        let n: usize = x[1..].parse().unwrap();
        let regs = (0..n).map(|i| format!("%r{}", 10 + i)).collect::<Vec<_>>().join(", ");
        let mut body = format!(
            "mov.u32 %r1, buf; shl.b32 %r2, %t, 4; add.u32 %r2, %r1, %r2; mul.wide.u32 %rd1, %t, 16; add.u64 %rd1, %in, %rd1;\n\
             ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%rd1]; st.shared.v4.b32 [%r2], {{%r3, %r4, %r5, %r6}}; bar.warp.sync -1;\n\
             ldmatrix.sync.aligned.m8n8.{x}{trans}.shared.b16 {{{regs}}}, [%r2];\n mul.wide.u32 %rd2, %t, 16; add.u64 %rd2, %out, %rd2;\n"
        );
        for i in 0..4 {
            let reg = if i < n { format!("%r{}", 10 + i) } else { "%t".to_string() };
            body += &format!("st.global.b32 [%rd2+{}], {reg};\n", 4 * i);
        }
        // Element e of the buffer of 16-bit values is e; matrix m has rows of 8 elements from 64 m on.
        let input: Vec<u32> = (0..128).map(|i| (2 * i) | (2 * i + 1) << 16).collect();
        let r = run(&kernel(".shared .align 16 .b8 buf[512];", &body), 32, 0, &input, 128);
        assert!(r.report.is_clean(), "{:?}", r.report.findings);
        for lane in 0..32u32 {
            for m in 0..n as u32 {
                let (row, col) = (lane / 4, 2 * (lane % 4));
                let at = |r: u32, c: u32| 64 * m + 8 * r + c;
                let want = if trans.is_empty() {
                    at(row, col) | at(row, col + 1) << 16
                } else {
                    at(col, row) | at(col + 1, row) << 16
                };
                assert_eq!(r.out[(4 * lane + m) as usize], want, "{x}{trans} lane {lane} matrix {m}");
            }
        }
    }
}

#[test]
fn movmatrix_transposes_a_fragment() {
    let body = "shl.b32 %r1, %t, 1; add.u32 %r2, %r1, 1; shl.b32 %r2, %r2, 16; or.b32 %r1, %r1, %r2;\n\
        movmatrix.sync.aligned.m8n8.trans.b16 %r3, %r1; st.global.u32 [%my], %r3;";
    let r = run(&kernel("", body), 32, 0, &[0], 32);
    for lane in 0..32u32 {
        let (row, col) = (lane / 4, 2 * (lane % 4));
        assert_eq!(r.out[lane as usize], (8 * col + row) | (8 * (col + 1) + row) << 16);
    }
}

/// Loads `n` words a lane into %a0.., runs `op`, stores %d0..%d{m}.
fn fragments(op: &str, n: usize, m: usize, input: &[u32]) -> Vec<u32> {
    let mut body = ".reg .b32 %a<16>; .reg .b32 %d<4>;\n".to_string();
    for i in 0..n {
        body += &format!(
            "mad.lo.u32 %r1, %t, {n}, {i}; mul.wide.u32 %rd1, %r1, 4; add.u64 %rd1, %in, %rd1; ld.global.u32 %a{i}, [%rd1];\n"
        );
    }
    body += op;
    for i in 0..m {
        body += &format!(
            "mad.lo.u32 %r1, %t, {m}, {i}; mul.wide.u32 %rd1, %r1, 4; add.u64 %rd1, %out, %rd1; st.global.u32 [%rd1], %d{i};\n"
        );
    }
    let r = run(&kernel(".shared .align 16 .b8 tile[512];", &body), 32, 0, input, 32 * m);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    r.out
}

#[test]
fn mma_of_tf32_uses_its_own_fragments() {
    for k in [4usize, 8] {
        let (na, nb) = (k / 2, k / 4);
        let n = na + nb;
        let a = |r: usize, c: usize| ((r * 3 + c * 5) % 7) as f32 - 2.5;
        let b = |r: usize, c: usize| ((r * 2 + c) % 5) as f32 * 0.5 - 1.0;
        let mut input = vec![0u32; 32 * n];
        for lane in 0..32 {
            let (group, tid) = (lane / 4, lane % 4);
            for i in 0..na {
                input[lane * n + i] = a(group + 8 * (i & 1), tid + if i >= 2 { 4 } else { 0 }).to_bits();
            }
            for i in 0..nb {
                // Bits below tf32's ten are ignored.
                input[lane * n + na + i] = b(tid + 4 * i, group).to_bits() | 0x1f;
            }
        }
        let (al, bl) = if k == 4 { ("{%a0, %a1}", "{%a2}") } else { ("{%a0, %a1, %a2, %a3}", "{%a4, %a5}") };
        let op = format!(
            "mov.b32 %r2, 0f3F800000; mma.sync.aligned.m16n8k{k}.row.col.f32.tf32.tf32.f32 {{%d0, %d1, %d2, %d3}}, {al}, {bl}, {{%r2, %r2, %r2, %r2}};\n"
        );
        let out = fragments(&op, n, 4, &input);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, col) = (lane / 4 + 8 * (i / 2), (lane % 4) * 2 + (i & 1));
                let want = 1.0 + (0..k).map(|x| a(row, x) * b(x, col)).sum::<f32>();
                assert_eq!(f32::from_bits(out[lane * 4 + i]), want, "k{k} row {row} col {col}");
            }
        }
    }
}

#[test]
fn mma_with_a_half_accumulator_packs_its_result() {
    let h = |x: f32| u32::from(f16::from_f32(x).to_bits());
    let a = |r: usize, c: usize| ((r + 2 * c) % 5) as f32 - 2.0;
    let b = |r: usize, c: usize| ((3 * r + c) % 4) as f32 - 1.5;
    let mut input = vec![0u32; 32 * 6];
    for lane in 0..32 {
        let (group, tid) = (lane / 4, lane % 4);
        for i in 0..8 {
            let (row, col) =
                (group + if i % 4 < 2 { 0 } else { 8 }, tid * 2 + (i & 1) + if i >= 4 { 8 } else { 0 });
            input[lane * 6 + i / 2] |= h(a(row, col)) << (16 * (i & 1));
        }
        for i in 0..4 {
            input[lane * 6 + 4 + i / 2] |=
                h(b(tid * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group)) << (16 * (i & 1));
        }
    }
    let op = "mov.b32 %r2, 0x3c00bc00; mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%d0, %d1}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {%r2, %r2};\n";
    let out = fragments(op, 6, 2, &input);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, col) = (lane / 4 + 8 * (i / 2), (lane % 4) * 2 + (i & 1));
            let c = if i & 1 == 0 { -1.0 } else { 1.0 };
            let want = c + (0..16).map(|x| a(row, x) * b(x, col)).sum::<f32>();
            let got = f16::from_bits((out[lane * 2 + i / 2] >> (16 * (i & 1))) as u16).to_f32();
            assert_eq!(got, want, "row {row} col {col}");
        }
    }
}

#[test]
fn mma_of_doubles_and_a_matrix_store() {
    let a = |r: usize, c: usize| (r * 4 + c) as f64 + 0.125;
    let b = |r: usize, c: usize| (r as f64) - (c as f64) * 0.5;
    let mut input = vec![0u32; 32 * 4];
    for lane in 0..32 {
        for (i, v) in [a(lane / 4, lane % 4), b(lane % 4, lane / 4)].into_iter().enumerate() {
            input[lane * 4 + 2 * i] = v.to_bits() as u32;
            input[lane * 4 + 2 * i + 1] = (v.to_bits() >> 32) as u32;
        }
    }
    let op = "mov.b64 %rd2, {%a0, %a1}; mov.b64 %rd3, {%a2, %a3}; mov.b64 %rd4, 0d3FF0000000000000;\n\
        mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd5, %rd6}, {%rd2}, {%rd3}, {%rd4, %rd4}; mov.b64 {%d0, %d1}, %rd5; mov.b64 {%d2, %d3}, %rd6;\n";
    let out = fragments(op, 4, 4, &input);
    for lane in 0..32 {
        for i in 0..2 {
            let (row, col) = (lane / 4, (lane % 4) * 2 + i);
            let want = 1.0 + (0..4).map(|x| a(row, x) * b(x, col)).sum::<f64>();
            let got = u64::from(out[lane * 4 + 2 * i]) | u64::from(out[lane * 4 + 2 * i + 1]) << 32;
            assert_eq!(f64::from_bits(got), want, "row {row} col {col}");
        }
    }
    // A transposing store and a transposing load cancel; one of them transposes.
    let frag: Vec<u32> = (0..64).map(|i| i * 0x0003_0001 + 0x0001_0000).collect();
    let go = |store: &str, load: &str| {
        let op = format!(
            "mov.u32 %r3, tile; and.b32 %r4, %t, 15; shl.b32 %r4, %r4, 4; add.u32 %r3, %r3, %r4;\n\
             stmatrix.sync.aligned.m8n8.x2{store}.shared.b16 [%r3], {{%a0, %a1}}; bar.warp.sync -1;\n\
             ldmatrix.sync.aligned.m8n8.x2{load}.shared.b16 {{%d0, %d1}}, [%r3];\n"
        );
        fragments(&op, 2, 2, &frag)
    };
    assert_eq!(go("", ""), frag);
    assert_eq!(go(".trans", ".trans"), frag);
    assert_eq!(go(".trans", ""), go("", ".trans"));
    assert_ne!(go(".trans", ""), frag);
}
