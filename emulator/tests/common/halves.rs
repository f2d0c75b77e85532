//! f16 and bf16 to and from wider floats, by search over all values: slow, and independent.

fn value(bits: u16, exponent: u32, mantissa: u32) -> f64 {
    let (e, m) =
        (i32::from(bits >> mantissa & ((1 << exponent) - 1)), f64::from(bits & ((1 << mantissa) - 1)));
    let bias = (1 << (exponent - 1)) - 1;
    let unit = 2f64.powi(-(mantissa as i32));
    let v = match e {
        0 => m * unit * 2f64.powi(1 - bias),
        _ if e == (1 << exponent) - 1 => {
            if m == 0.0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        _ => (1.0 + m * unit) * 2f64.powi(e - bias),
    };
    if bits >> 15 != 0 { -v } else { v }
}

/// Nearest, ties to even; finite arguments within the range.
fn nearest(v: f64, exponent: u32, mantissa: u32) -> u16 {
    let a = v.abs();
    let most = (((1u32 << exponent) - 1) << mantissa) as u16;
    let (mut lo, mut hi) = (0u16, most);
    while hi - lo > 1 {
        let mid = lo + (hi - lo) / 2;
        if value(mid, exponent, mantissa) <= a { lo = mid } else { hi = mid }
    }
    let (below, above) = (a - value(lo, exponent, mantissa), value(hi, exponent, mantissa) - a);
    let up = above < below || above == below && lo & 1 == 1;
    (if up { hi } else { lo }) | if v.is_sign_negative() { 0x8000 } else { 0 }
}

pub fn f16_of(v: f64) -> u16 {
    nearest(v, 5, 10)
}
pub fn bf16_of(v: f64) -> u16 {
    nearest(v, 8, 7)
}
pub fn f16(v: f32) -> u16 {
    f16_of(f64::from(v))
}
pub fn bf16(v: f32) -> u16 {
    bf16_of(f64::from(v))
}
pub fn from_f16(v: u16) -> f32 {
    value(v, 5, 10) as f32
}
pub fn from_bf16(v: u16) -> f32 {
    value(v, 8, 7) as f32
}
