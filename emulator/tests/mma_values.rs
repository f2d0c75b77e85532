//! Matrix products of doubles, of bytes of floating point and of quarter-warp halves, in every shape.
//!
//! Elements go to lanes by the tables of the manual, written out here a second time; the expected values
//! are sums of products of small whole numbers, which every format here holds exactly.

mod common;
use common::{Ran, kernel, run};
use half::f16;

/// Whole numbers from -3 to 3 without a pattern in rows or columns.
fn whole(seed: usize, r: usize, c: usize) -> i32 {
    ((seed + r * 37 + c * 91 + r * c) as u32).wrapping_mul(2654435761).wrapping_shr(11) as i32 % 7 - 3
}

fn registers(prefix: &str, n: usize) -> String {
    (0..n).map(|i| format!("%{prefix}{i}")).collect::<Vec<_>>().join(", ")
}

/// Lane by lane: `words` words of input into `%a`, `%b` and `%c` of the given numbers and width, then the
/// instruction, then `%d` to the output.
fn product(instruction: &str, types: [&str; 4], n: [usize; 4], words: &[Vec<u32>]) -> Ran {
    let bytes = |ty: &str| if ty == "f64" { 8 } else { 4 };
    let lane_bytes: usize = (0..3).map(|i| n[i] * bytes(types[i])).sum();
    let mut body = String::new();
    for (i, name) in ["a", "b", "c", "d"].iter().enumerate() {
        body += &format!(".reg .{} %{name}<{}>;\n", types[i], n[i]);
    }
    body += &format!("mul.wide.u32 %rd1, %t, {lane_bytes}; add.u64 %rd1, %in, %rd1;\n");
    let mut at = 0;
    for (i, name) in ["a", "b", "c"].iter().enumerate() {
        for j in 0..n[i] {
            body += &format!("ld.global.{} %{name}{j}, [%rd1+{at}];\n", types[i]);
            at += bytes(types[i]);
        }
    }
    let list = |i: usize| format!("{{{}}}", registers(["a", "b", "c", "d"][i], n[i]));
    body += &format!("{instruction} {}, {}, {}, {};\n", list(3), list(0), list(1), list(2));
    let out_bytes = n[3] * bytes(types[3]);
    body += &format!("mul.wide.u32 %rd2, %t, {out_bytes}; add.u64 %rd2, %out, %rd2;\n");
    for j in 0..n[3] {
        body += &format!("st.global.{} [%rd2+{}], %d{j};\n", types[3], j * bytes(types[3]));
    }
    let input: Vec<u32> = words.iter().flatten().copied().collect();
    assert_eq!(input.len() * 4, 32 * lane_bytes);
    let r = run(&kernel("", &body), 32, 0, &input, 32 * n[3] * bytes(types[3]) / 4);
    assert!(r.report.is_clean(), "{instruction}: {:#?}", r.report.findings);
    r
}

/// The row by column sum that an element must be, plus what was there.
fn want(row: usize, col: usize, k: usize) -> i32 {
    whole(5, row, col) + (0..k).map(|x| whole(1, row, x) * whole(2, x, col)).sum::<i32>()
}

fn double(v: i32) -> [u32; 2] {
    let bits = f64::from(v).to_bits();
    [bits as u32, (bits >> 32) as u32]
}

#[test]
fn mma_of_doubles_is_a_matrix_product_in_every_shape() {
    for (m, k) in [(8, 4), (16, 4), (16, 8), (16, 16)] {
        let tall = m / 8;
        let lanes: Vec<Vec<u32>> = (0..32)
            .map(|lane| {
                let (g, t) = (lane / 4, lane % 4);
                // A: rows g and g + 8 alternate, four columns further after both.
                let a = (0..m * k / 32).map(|i| whole(1, g + 8 * (i % tall), t + 4 * (i / tall)));
                let b = (0..k * 8 / 32).map(|i| whole(2, t + 4 * i, g));
                let c = (0..m / 4).map(|i| whole(5, g + 8 * (i / 2), 2 * t + i % 2));
                a.chain(b).chain(c).flat_map(double).collect()
            })
            .collect();
        let n = [m * k / 32, k * 8 / 32, m / 4, m / 4];
        let name = format!("mma.sync.aligned.m{m}n8k{k}.row.col.f64.f64.f64.f64");
        let r = product(&name, ["f64"; 4], n, &lanes);
        for lane in 0..32 {
            for i in 0..m / 4 {
                let (row, col) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                let at = 2 * (lane * m / 4 + i);
                let got = f64::from_bits(u64::from(r.out[at]) | u64::from(r.out[at + 1]) << 32);
                assert_eq!(got, f64::from(want(row, col, k)), "{name} row {row} column {col}");
            }
        }
    }
}

/// A whole number from -3 to 3 in a format of `mantissa` bits with exponent bias `bias`.
fn tiny(v: i32, mantissa: u32, bias: u32) -> u8 {
    let sign = if v < 0 { 0x80 } else { 0 };
    let (exponent, rest) = match v.unsigned_abs() {
        0 => return 0,
        1 => (bias, 0),
        2 => (bias + 1, 0),
        _ => (bias + 1, 1 << (mantissa - 1)),
    };
    sign | (exponent << mantissa | rest) as u8
}

#[test]
fn mma_of_fp8_is_a_matrix_product_in_every_pair_of_formats() {
    assert_eq!([tiny(1, 3, 7), tiny(-3, 3, 7), tiny(1, 2, 15), tiny(-3, 2, 15)], [0x38, 0xc4, 0x3c, 0xc2]);
    let code = |ty: &str, v: i32| if ty == "e4m3" { tiny(v, 3, 7) } else { tiny(v, 2, 15) };
    for (ta, tb) in [("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3"), ("e5m2", "e5m2")] {
        let lanes: Vec<Vec<u32>> = (0..32)
            .map(|lane| {
                let (g, t) = (lane / 4, lane % 4);
                let pack = |f: &dyn Fn(usize) -> u8| u32::from_le_bytes([f(0), f(1), f(2), f(3)]);
                let a = (0..4).map(|reg| {
                    let (row, col) = (g + 8 * (reg % 2), 4 * t + 16 * (reg / 2));
                    pack(&|i| code(ta, whole(1, row, col + i)))
                });
                let b = (0..2).map(|reg| pack(&|i| code(tb, whole(2, 4 * t + 16 * reg + i, g))));
                let c = (0..4).map(|i| (whole(5, g + 8 * (i / 2), 2 * t + i % 2) as f32).to_bits());
                a.chain(b).chain(c).collect()
            })
            .collect();
        let name = format!("mma.sync.aligned.m16n8k32.row.col.f32.{ta}.{tb}.f32");
        let r = product(&name, ["b32", "b32", "f32", "f32"], [4, 2, 4, 4], &lanes);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, col) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                let got = f32::from_bits(r.out[lane * 4 + i]);
                assert_eq!(got, want(row, col, 32) as f32, "{name} row {row} column {col}");
            }
        }
    }
}

/// m8n8k4 of halves is four products, each by eight lanes: 4q to 4q + 3 and those 16 further on.
#[test]
fn mma_of_halves_by_quarters_of_a_warp_is_four_products_in_every_layout() {
    let h = |v: i32| u32::from(f16::from_f32(v as f32).to_bits());
    let seed = |quad: usize| 100 * quad;
    for (la, lb) in [("row", "col"), ("row", "row"), ("col", "col"), ("col", "row")] {
        for cd in ["f32", "f16"] {
            // Row and column of element i of the accumulator in a lane, from the manual.
            let place = |lane: usize, i: usize| {
                let low = 4 * usize::from(lane >= 16);
                if cd == "f16" {
                    (lane % 4 + low, i)
                } else {
                    ((lane & 1) + (i & 2) + low, (i & 4) + (lane & 2) + (i & 1))
                }
            };
            let lanes: Vec<Vec<u32>> = (0..32)
                .map(|lane| {
                    let (s, low) = (seed(lane / 4 % 4), 4 * usize::from(lane >= 16));
                    // A by rows: the lane's row; by columns: column lane % 4, four rows.
                    let a = |i: usize| match la {
                        "row" => whole(s + 1, lane % 4 + low, i),
                        _ => whole(s + 1, i + low, lane % 4),
                    };
                    let b = |i: usize| match lb {
                        "col" => whole(s + 2, i, lane % 4 + low),
                        _ => whole(s + 2, lane % 4, i + low),
                    };
                    let c = |i: usize| {
                        let (row, col) = place(lane, i);
                        whole(s + 5, row, col)
                    };
                    let mut words: Vec<u32> = Vec::new();
                    words.extend((0..2).map(|j| h(a(2 * j)) | h(a(2 * j + 1)) << 16));
                    words.extend((0..2).map(|j| h(b(2 * j)) | h(b(2 * j + 1)) << 16));
                    match cd {
                        "f32" => words.extend((0..8).map(|i| (c(i) as f32).to_bits())),
                        _ => words.extend((0..4).map(|j| h(c(2 * j)) | h(c(2 * j + 1)) << 16)),
                    }
                    words
                })
                .collect();
            let (ty, n) = if cd == "f32" { ("f32", 8) } else { ("b32", 4) };
            let name = format!("mma.sync.aligned.m8n8k4.{la}.{lb}.{cd}.f16.f16.{cd}");
            let r = product(&name, ["b32", "b32", ty, ty], [2, 2, n, n], &lanes);
            for lane in 0..32 {
                for i in 0..8 {
                    let got = if cd == "f32" {
                        f32::from_bits(r.out[8 * lane + i])
                    } else {
                        f16::from_bits((r.out[4 * lane + i / 2] >> (16 * (i & 1))) as u16).to_f32()
                    };
                    let (s, (row, col)) = (seed(lane / 4 % 4), place(lane, i));
                    let sum: i32 = (0..4).map(|x| whole(s + 1, row, x) * whole(s + 2, x, col)).sum();
                    let want = (whole(s + 5, row, col) + sum) as f32;
                    assert_eq!(got, want, "{name} lane {lane} row {row} column {col}");
                }
            }
        }
    }
}
