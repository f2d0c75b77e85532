//! The instructions: how each is written, what it is tried on, what is right, and how far off it may be.
//!
//! Units: *ulp* is a unit of the last place of the exact result; *bits* is the distance in representable numbers
//! from the one right result, of which IEEE 754 and integers allow none; *2^-22* is what the PTX ISA gives for
//! lg2, absolute in (0.5, 2) and relative elsewhere; *2^-23 of the terms* is relative to the sum of the
//! magnitudes that an mma adds. Where the ISA counts from the correctly rounded result, half an ulp is added.

use half::{bf16, f16};

use super::module::MMA_LANE_WORDS;
use super::values::{
    double_pairs, doubles_beside_floats, half_pairs, halves, integers, long_integers, mma_inputs, tuples,
    unary, words3,
};

/// How the kernel of an entry works.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// A thread an input; PTX that takes %r10 .. to %r20 ..
    Elementwise(&'static str),
    /// A warp an input; the element type.
    Mma(&'static str),
}

/// How two outputs compare: floats are the same where both are NaN, whatever its payload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Output {
    /// Bits.
    Integer,
    /// A word each.
    F32,
    /// Two words each, the lower one first.
    F64,
}

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// With its modifiers.
    pub opcode: &'static str,
    /// Its kernel.
    pub shape: Shape,
    /// 32-bit words of an input.
    pub words_in: usize,
    /// 32-bit words of an output.
    pub words_out: usize,
    /// What the output words are.
    pub output: Output,
    /// What errors count.
    pub unit: &'static str,
    /// Largest error that its definition allows.
    pub allowed: f64,
    /// Error of an output; `None` where it is nonsense: NaN for a number, the wrong infinity.
    pub error: Judge,
    make: Make,
}

/// Error of an output, given the input.
type Judge = fn(&[u32], &[u32]) -> Option<f64>;
/// Appends all inputs.
type Make = fn(&mut Vec<u32>);

impl Entry {
    /// The entry's kernel in the module.
    pub fn kernel(&self) -> String {
        let clean = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        format!("ledger_{}", self.opcode.chars().map(clean).collect::<String>())
    }

    /// All inputs, `words_in` words each.
    pub fn inputs(&self) -> Vec<u32> {
        let mut inputs = Vec::new();
        (self.make)(&mut inputs);
        inputs
    }
}

/// PTX of an operation on two f64.
macro_rules! binary_f64 {
    ($opcode:literal) => {
        concat!(
            "\tmov.b64 %rd5, {%r10, %r11};\n\tmov.b64 %rd6, {%r12, %r13};\n\t",
            $opcode,
            " %rd7, %rd5, %rd6;\n\tmov.b64 {%r20, %r21}, %rd7;\n"
        )
    };
}

/// All of them.
pub fn all() -> Vec<Entry> {
    let elementwise = |opcode, code, words_in, error, make| Entry {
        opcode,
        shape: Shape::Elementwise(code),
        words_in,
        words_out: 1,
        output: Output::F32,
        unit: "bits",
        allowed: 0.0,
        error,
        make,
    };
    let approximate = |entry: Entry, unit, allowed| Entry { unit, allowed, ..entry };
    let integer = |entry: Entry| Entry { output: Output::Integer, ..entry };
    let double = |entry: Entry| Entry { words_out: 2, output: Output::F64, ..entry };
    vec![
        // ISA: 2 ulp from the correctly rounded result, full range.
        approximate(
            elementwise(
                "ex2.approx.ftz.f32",
                "\tex2.approx.ftz.f32 %r20, %r10;\n",
                1,
                |i, o| ulp(flushed(i[0]).exp2(), f(o[0])),
                |v| unary(v, -150.0, 130.0),
            ),
            "ulp",
            2.5,
        ),
        approximate(
            elementwise("lg2.approx.ftz.f32", "\tlg2.approx.ftz.f32 %r20, %r10;\n", 1, lg2_error, |v| {
                unary(v, 0.0, 4.0);
            }),
            "2^-22",
            1.0,
        ),
        // ISA: 1 ulp, full range.
        approximate(
            elementwise(
                "rcp.approx.ftz.f32",
                "\trcp.approx.ftz.f32 %r20, %r10;\n",
                1,
                |i, o| ulp(1.0 / flushed(i[0]), f(o[0])),
                |v| unary(v, 1.0, 4.0),
            ),
            "ulp",
            1.5,
        ),
        elementwise(
            "div.rn.f32",
            "\tdiv.rn.f32 %r20, %r10, %r11;\n",
            2,
            |i, o| bits(f(i[0]) / f(i[1]), o[0]),
            |v| tuples(v, 2),
        ),
        elementwise(
            "add.rn.f32",
            "\tadd.rn.f32 %r20, %r10, %r11;\n",
            2,
            |i, o| bits(f(i[0]) + f(i[1]), o[0]),
            |v| tuples(v, 2),
        ),
        elementwise(
            "sub.rn.f32",
            "\tsub.rn.f32 %r20, %r10, %r11;\n",
            2,
            |i, o| bits(f(i[0]) - f(i[1]), o[0]),
            |v| tuples(v, 2),
        ),
        elementwise(
            "mul.rn.f32",
            "\tmul.rn.f32 %r20, %r10, %r11;\n",
            2,
            |i, o| bits(f(i[0]) * f(i[1]), o[0]),
            |v| tuples(v, 2),
        ),
        elementwise(
            "fma.rn.f32",
            "\tfma.rn.f32 %r20, %r10, %r11, %r12;\n",
            3,
            |i, o| bits(f(i[0]).mul_add(f(i[1]), f(i[2])), o[0]),
            |v| tuples(v, 3),
        ),
        elementwise(
            "cvt.rn.f32.u32",
            "\tcvt.rn.f32.u32 %r20, %r10;\n",
            1,
            |i, o| bits(i[0] as f32, o[0]),
            integers,
        ),
        elementwise(
            "cvt.rn.f32.s32",
            "\tcvt.rn.f32.s32 %r20, %r10;\n",
            1,
            |i, o| bits(i[0] as i32 as f32, o[0]),
            integers,
        ),
        elementwise(
            "cvt.rn.f32.u64",
            "\tmov.b64 %rd5, {%r10, %r11};\n\tcvt.rn.f32.u64 %r20, %rd5;\n",
            2,
            |i, o| bits((u64::from(i[1]) << 32 | u64::from(i[0])) as f32, o[0]),
            long_integers,
        ),
        // Rounded towards zero, clamped; NaN gives 0: what `as` does.
        integer(elementwise(
            "cvt.rzi.u32.f32",
            "\tcvt.rzi.u32.f32 %r20, %r10;\n",
            1,
            |i, o| Some((f64::from(f(i[0]) as u32) - f64::from(o[0])).abs()),
            |v| unary(v, -2.0, 70_000.0),
        )),
        elementwise(
            "cvt.f32.f16",
            "\tcvt.u16.u32 %h1, %r10;\n\tcvt.f32.f16 %r20, %h1;\n",
            1,
            |i, o| bits(f16::from_bits(i[0] as u16).to_f32(), o[0]),
            |v| v.extend(0..=0xffff),
        ),
        integer(elementwise(
            "cvt.rn.f16.f32",
            "\tcvt.rn.f16.f32 %h1, %r10;\n\tcvt.u32.u16 %r20, %h1;\n",
            1,
            |i, o| half_bits(f16::from_f32(f(i[0])), o[0] as u16),
            halves,
        )),
        integer(elementwise(
            "cvt.rn.bf16.f32",
            "\tcvt.rn.bf16.f32 %h1, %r10;\n\tcvt.u32.u16 %r20, %h1;\n",
            1,
            |i, o| bhalf_bits(bf16::from_f32(f(i[0])), o[0] as u16),
            halves,
        )),
        // The first operand is the upper half.
        integer(elementwise(
            "cvt.rn.f16x2.f32",
            "\tcvt.rn.f16x2.f32 %r20, %r10, %r11;\n",
            2,
            |i, o| {
                let high = half_bits(f16::from_f32(f(i[0])), (o[0] >> 16) as u16)?;
                Some(high.max(half_bits(f16::from_f32(f(i[1])), o[0] as u16)?))
            },
            half_pairs,
        )),
        integer(elementwise(
            "cvt.rn.bf16x2.f32",
            "\tcvt.rn.bf16x2.f32 %r20, %r10, %r11;\n",
            2,
            |i, o| {
                let high = bhalf_bits(bf16::from_f32(f(i[0])), (o[0] >> 16) as u16)?;
                Some(high.max(bhalf_bits(bf16::from_f32(f(i[1])), o[0] as u16)?))
            },
            half_pairs,
        )),
        // What the stop rule adds and compares in f64.
        double(elementwise(
            "cvt.f64.f32",
            "\tcvt.f64.f32 %rd5, %r10;\n\tmov.b64 {%r20, %r21}, %rd5;\n",
            1,
            |i, o| long_bits(f64::from(f(i[0])), o),
            |v| unary(v, -2.0, 2.0),
        )),
        elementwise(
            "cvt.rn.f32.f64",
            "\tmov.b64 %rd5, {%r10, %r11};\n\tcvt.rn.f32.f64 %r20, %rd5;\n",
            2,
            |i, o| bits(d(i) as f32, o[0]),
            doubles_beside_floats,
        ),
        double(elementwise(
            "add.rn.f64",
            binary_f64!("add.rn.f64"),
            4,
            |i, o| long_bits(d(i) + d(&i[2..]), o),
            double_pairs,
        )),
        double(elementwise(
            "sub.rn.f64",
            binary_f64!("sub.rn.f64"),
            4,
            |i, o| long_bits(d(i) - d(&i[2..]), o),
            double_pairs,
        )),
        double(elementwise(
            "mul.rn.f64",
            binary_f64!("mul.rn.f64"),
            4,
            |i, o| long_bits(d(i) * d(&i[2..]), o),
            double_pairs,
        )),
        // Rounded towards zero, clamped. NaN gives 2^63 where the result has 64 bits, says the ISA, unlike `as`.
        integer(Entry {
            words_out: 2,
            ..elementwise(
                "cvt.rzi.u64.f32",
                "\tcvt.rzi.u64.f32 %rd5, %r10;\n\tmov.b64 {%r20, %r21}, %rd5;\n",
                1,
                |i, o| {
                    let x = f(i[0]);
                    let want = if x.is_nan() { 1 << 63 } else { x as u64 };
                    Some(want.abs_diff(u64::from(o[1]) << 32 | u64::from(o[0])) as f64)
                },
                |v| unary(v, -2.0, 1e19),
            )
        }),
        integer(elementwise(
            "dp2a.lo.s32.u32",
            "\tdp2a.lo.s32.u32 %r20, %r10, %r11, %r12;\n",
            3,
            |i, o| Some(dp2a(i, 0, o[0])),
            words3,
        )),
        integer(elementwise(
            "dp2a.hi.s32.u32",
            "\tdp2a.hi.s32.u32 %r20, %r10, %r11, %r12;\n",
            3,
            |i, o| Some(dp2a(i, 2, o[0])),
            words3,
        )),
        matrix("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "bf16"),
        matrix("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "f16"),
    ]
}

/// The ISA says no more than that products and sums have at least single precision. Sixteen additions that each
/// lose up to an ulp of the magnitudes, and the last rounding.
fn matrix(opcode: &'static str, ty: &'static str) -> Entry {
    let (error, make): (Judge, Make) = if ty == "bf16" {
        (
            |i, o| mma_error(i, o, |x| bf16::from_bits(x).to_f64()),
            |v| mma_inputs(v, |x| bf16::from_f32(x).to_bits()),
        )
    } else {
        (
            |i, o| mma_error(i, o, |x| f16::from_bits(x).to_f64()),
            |v| mma_inputs(v, |x| f16::from_f32(x).to_bits()),
        )
    };
    Entry {
        opcode,
        shape: Shape::Mma(ty),
        words_in: 32 * MMA_LANE_WORDS,
        words_out: 32 * 4,
        output: Output::F32,
        unit: "2^-23 of the terms",
        allowed: 17.0,
        error,
        make,
    }
}

fn f(word: u32) -> f32 {
    f32::from_bits(word)
}

/// The f64 of two words.
fn d(words: &[u32]) -> f64 {
    f64::from_bits(u64::from(words[1]) << 32 | u64::from(words[0]))
}

/// The input as `.ftz` sees it.
fn flushed(word: u32) -> f64 {
    let x = f(word);
    if x.is_subnormal() { 0f64.copysign(f64::from(x)) } else { f64::from(x) }
}

/// Units of the last place between an exact result and a flushed f32 one.
fn ulp(exact: f64, got: f32) -> Option<f64> {
    const LEAST: f64 = 1.175_494_350_822_287_5e-38;
    if exact.is_nan() || got.is_nan() {
        return (exact.is_nan() && got.is_nan()).then_some(0.0);
    }
    // Results at the edge of the subnormal range are zero, and may be just above.
    if got == 0.0 && exact.abs() < LEAST * (1.0 + 1e-6) {
        return Some(0.0);
    }
    let overflow = 2f64.powi(128);
    if got.is_infinite() {
        let beyond = exact.abs() >= overflow * (1.0 - 2f64.powi(-23));
        return (beyond && exact.is_sign_positive() == got.is_sign_positive()).then_some(0.0);
    }
    if exact.is_infinite() {
        return None;
    }
    let exponent = exact.abs().max(LEAST).min(overflow / 2.0).log2().floor();
    Some((f64::from(got) - exact).abs() / (exponent - 23.0).exp2())
}

/// Representable numbers between two f32; any NaN is like any other, zeros are told apart by their sign.
fn bits(want: f32, got: u32) -> Option<f64> {
    let have = f(got);
    if want.is_nan() || have.is_nan() {
        return (want.is_nan() && have.is_nan()).then_some(0.0);
    }
    let place = |x: f32| {
        let magnitude = i64::from(x.to_bits() & 0x7fff_ffff);
        if x.is_sign_negative() { -1 - magnitude } else { magnitude }
    };
    Some((place(want) - place(have)).unsigned_abs() as f64)
}

/// As [`bits`], of f64.
fn long_bits(want: f64, got: &[u32]) -> Option<f64> {
    let have = d(got);
    if want.is_nan() || have.is_nan() {
        return (want.is_nan() && have.is_nan()).then_some(0.0);
    }
    let place = |x: f64| {
        let magnitude = (x.to_bits() & (u64::MAX >> 1)) as i64;
        if x.is_sign_negative() { -1 - magnitude } else { magnitude }
    };
    Some(place(want).abs_diff(place(have)) as f64)
}

fn half_bits(want: f16, got: u16) -> Option<f64> {
    bits(want.to_f32(), f16::from_bits(got).to_f32().to_bits()).map(|d| if d == 0.0 { 0.0 } else { 1.0 })
}

fn bhalf_bits(want: bf16, got: u16) -> Option<f64> {
    bits(want.to_f32(), bf16::from_bits(got).to_f32().to_bits()).map(|d| if d == 0.0 { 0.0 } else { 1.0 })
}

fn lg2_error(input: &[u32], output: &[u32]) -> Option<f64> {
    let (x, got) = (flushed(input[0]), f(output[0]));
    let exact = if x == 0.0 { f64::NEG_INFINITY } else { x.log2() };
    if !exact.is_finite() {
        let same = (exact.is_nan() && got.is_nan()) || exact == f64::from(got);
        return same.then_some(0.0);
    }
    if !got.is_finite() {
        return None;
    }
    let size = if x > 0.5 && x < 2.0 { 1.0 } else { exact.abs() };
    Some((f64::from(got) - exact).abs() / (size * 2f64.powi(-22)))
}

fn dp2a(input: &[u32], first_byte: usize, got: u32) -> f64 {
    let halves = [input[0] as i16, (input[0] >> 16) as i16];
    let bytes = input[1].to_le_bytes();
    let want = (0..2).fold(input[2] as i32, |sum, i| {
        sum.wrapping_add(i32::from(halves[i]).wrapping_mul(i32::from(bytes[first_byte + i])))
    });
    (f64::from(want) - f64::from(got as i32)).abs()
}

/// The largest error of a warp's product. Lane l holds rows g = l / 4 and g + 8, columns from 2 (l % 4).
fn mma_error(input: &[u32], output: &[u32], value: fn(u16) -> f64) -> Option<f64> {
    let lane = |l: usize| &input[l * MMA_LANE_WORDS..][..MMA_LANE_WORDS];
    let pair = |word: u32| [value(word as u16), value((word >> 16) as u16)];
    let (mut a, mut b) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
    for l in 0..32 {
        let (g, t, words) = (l / 4, 2 * (l % 4), lane(l));
        for (register, (row, column)) in [(0, 0), (8, 0), (0, 8), (8, 8)].into_iter().enumerate() {
            let [x, y] = pair(words[register]);
            (a[g + row][t + column], a[g + row][t + column + 1]) = (x, y);
        }
        for (register, row) in [0, 8].into_iter().enumerate() {
            let [x, y] = pair(words[4 + register]);
            (b[t + row][g], b[t + row + 1][g]) = (x, y);
        }
    }
    let mut worst = 0.0f64;
    for l in 0..32 {
        let (g, t, words) = (l / 4, 2 * (l % 4), lane(l));
        for register in 0..4 {
            let (row, column) = (g + 8 * (register / 2), t + register % 2);
            let c = f64::from(f(words[6 + register]));
            let (mut exact, mut size) = (c, c.abs());
            for k in 0..16 {
                let term = a[row][k] * b[k][column];
                exact += term;
                size += term.abs();
            }
            let got = f64::from(f(output[4 * l + register]));
            let error = (got - exact).abs() / (size * 2f64.powi(-23));
            if error.is_nan() {
                return None;
            }
            worst = worst.max(error);
        }
    }
    Some(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ulp_is_a_unit_of_the_last_place_and_edges_are_edges() {
        assert_eq!(ulp(1.0, 1.0 + f32::EPSILON), Some(1.0));
        assert_eq!(ulp(1.0 + 2f64.powi(-24), 1.0), Some(0.5));
        assert_eq!(ulp(1e-40, 0.0), Some(0.0));
        assert_eq!(ulp(f64::INFINITY, f32::INFINITY), Some(0.0));
        assert_eq!(ulp(f64::INFINITY, f32::MAX), None);
        assert_eq!(ulp(f64::NEG_INFINITY, f32::INFINITY), None);
        assert_eq!(ulp(1.0, f32::NAN), None);
        assert_eq!(ulp(1.0, f32::INFINITY), None);
        assert!(ulp(1.0, 0.0).unwrap() > 1e6);
    }

    #[test]
    fn bits_count_representable_numbers() {
        assert_eq!(bits(1.0, 1.0f32.to_bits() + 3), Some(3.0));
        assert_eq!(bits(0.0, (-0.0f32).to_bits()), Some(1.0));
        assert_eq!(bits(f32::NAN, 0x7fff_ffff), Some(0.0));
        assert_eq!(bits(f32::NAN, 0), None);
    }

    #[test]
    fn inputs_come_in_whole_tuples_and_kernels_have_names_of_their_own() {
        let entries = all();
        let names: std::collections::BTreeSet<_> = entries.iter().map(Entry::kernel).collect();
        assert_eq!(names.len(), entries.len());
        for entry in entries {
            let inputs = entry.inputs();
            assert!(!inputs.is_empty() && inputs.len() % entry.words_in == 0, "{}", entry.opcode);
        }
    }
}
