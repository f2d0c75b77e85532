//! mma of half bytes, against a plain product.

mod common;
use common::{kernel, run};

#[test]
fn mma_of_half_bytes_is_a_matrix_product_with_either_sign() {
    for (k, a_regs, b_regs) in [(32usize, 2usize, 1usize), (64, 4, 2)] {
        for (ta, tb) in [("s4", "s4"), ("u4", "s4"), ("s4", "u4"), ("u4", "u4")] {
            let n = a_regs + b_regs;
            let mut body = ".reg .b32 %a<4>; .reg .b32 %b<2>;\n".to_string();
            for i in 0..n {
                let reg = if i < a_regs { format!("%a{i}") } else { format!("%b{}", i - a_regs) };
                body += &format!(
                    "mul.lo.u32 %r30, %t, {n}; add.u32 %r30, %r30, {i}; mul.wide.u32 %rd1, %r30, 4; add.u64 %rd1, %in, %rd1; ld.global.u32 {reg}, [%rd1];\n"
                );
            }
            let (al, bl) =
                if k == 32 { ("{%a0, %a1}", "{%b0}") } else { ("{%a0, %a1, %a2, %a3}", "{%b0, %b1}") };
            body += &format!(
                "mov.u32 %r0, 100; mma.sync.aligned.m16n8k{k}.row.col.satfinite.s32.{ta}.{tb}.s32 {{%r1, %r2, %r3, %r4}}, {al}, {bl}, {{%r0, %r0, %r0, %r0}};\n\
                 mul.wide.u32 %rd2, %t, 16; add.u64 %rd2, %out, %rd2; st.global.v4.b32 [%rd2], {{%r1, %r2, %r3, %r4}};"
            );
            let a = |r: usize, c: usize| ((r * 37 + c * 91 + c / 3) % 16) as u32;
            let b = |r: usize, c: usize| ((r * 53 + c * 17 + r / 5) % 16) as u32;
            let mut input = vec![0u32; 32 * n];
            // Element i of a lane, by the tables of the manual.
            for lane in 0..32 {
                let (group, tid) = (lane / 4, lane % 4);
                for i in 0..8 * a_regs {
                    let row = if i < 8 || (16..24).contains(&i) { group } else { group + 8 };
                    let col = tid * 8 + (i & 7) + if i < 16 { 0 } else { 32 };
                    input[lane * n + i / 8] |= a(row, col) << (4 * (i & 7));
                }
                for i in 0..8 * b_regs {
                    let row = tid * 8 + (i & 7) + if i < 8 { 0 } else { 32 };
                    input[lane * n + a_regs + i / 8] |= b(row, group) << (4 * (i & 7));
                }
            }
            let r = run(&kernel("", &body), 32, 0, &input, 128);
            assert!(r.report.is_clean());
            let v = |x: u32, t: &str| if t == "s4" && x > 7 { x as i32 - 16 } else { x as i32 };
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
