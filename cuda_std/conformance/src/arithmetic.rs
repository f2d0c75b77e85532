//! `cuda_std::half`, `float` and the arithmetic of `ptx`: one thread an input.

use cuda_std::prelude::*;

/// f32 to 16 bits, alone and packed.
#[kernel(block = 128)]
pub unsafe fn to_halves(
    /// [n]: the inputs.
    values: *const f32,
    /// Inputs.
    n: u32,
    /// [n, 4]: bf16, f16, and packed with the negated input in the upper half, bf16x2, f16x2.
    out: *mut u32,
) {
    unsafe {
        let i = thread::index_1d();
        if i < n {
            let x = *values.add(i as usize);
            let out = out.add(i as usize * 4);
            *out = bf16::from_f32(x).to_bits() as u32;
            *out.add(1) = f16::from_f32(x).to_bits() as u32;
            *out.add(2) = ptx::pack_bf16x2(x, -x);
            *out.add(3) = <f16 as ptx::MmaElement>::pack2(x, -x);
        }
    }
}

/// 16 bits to f32, alone and from the upper half of a word, for every bit pattern.
#[kernel(block = 128, instances(T in [bf16, f16]))]
pub unsafe fn from_halves<T: ptx::MmaElement>(
    /// [65536]: every bit pattern.
    values: *const T,
    /// [65536, 2]: the value; the value again, unpacked from the upper half.
    out: *mut f32,
) {
    unsafe {
        let i = thread::index_1d();
        let out = out.add(i as usize * 2);
        *out = (*values.add(i as usize)).to_f32();
        *out.add(1) = T::unpack2(i << 16).1;
    }
}

/// The exact methods of `GpuFloat`, f32 and f64.
#[kernel(block = 128)]
pub unsafe fn rounding(
    /// [n]: the inputs.
    values: *const f32,
    /// Inputs.
    n: u32,
    /// [n, 13]: floor, ceil, round, round_ties_even, trunc, fract, abs, copysign(-1), mul_add(3, 0.1), sqrt(abs), recip, max(0.5),
    /// min(0.5).
    single: *mut f32,
    /// [n, 13]: the same in f64.
    double: *mut f64,
) {
    unsafe {
        let i = thread::index_1d();
        if i < n {
            let x = *values.add(i as usize);
            all(x, 3.0, 0.1, 0.5, -1.0, single.add(i as usize * 13));
            all(x as f64, 3.0, 0.1, 0.5, -1.0, double.add(i as usize * 13));
        }
    }
}

#[inline(always)]
unsafe fn all<F: GpuFloat>(x: F, three: F, tenth: F, half: F, minus: F, out: *mut F) {
    let values = [
        x.floor(),
        x.ceil(),
        x.round(),
        x.round_ties_even(),
        x.trunc(),
        x.fract(),
        x.abs(),
        x.copysign(minus),
        x.mul_add(three, tenth),
        x.abs().sqrt(),
        x.recip(),
        x.max(half),
        x.min(half),
    ];
    // SAFETY: `out` has 13 elements.
    unroll!(i < 13, max 16, { unsafe { *out.add(i) = values[i] } });
}

/// The approximations.
#[kernel(block = 128)]
pub unsafe fn approximations(
    /// [n]: the inputs.
    values: *const f32,
    /// Inputs.
    n: u32,
    /// [n, 11]: exp2, exp, log2(abs), ln(abs), ex2_approx, lg2_approx(abs), rcp_approx, rsqrt_approx(abs), fma(3, 0.1), max(0.5), min(0.5).
    out: *mut f32,
) {
    unsafe {
        let i = thread::index_1d();
        if i < n {
            let x = *values.add(i as usize);
            let a = x.abs();
            let results = [
                x.exp2(),
                x.exp(),
                a.log2(),
                a.ln(),
                ptx::ex2_approx(x),
                ptx::lg2_approx(a),
                ptx::rcp_approx(x),
                ptx::rsqrt_approx(a),
                ptx::fma(x, 3.0, 0.1),
                ptx::max(x, 0.5),
                ptx::min(x, 0.5),
            ];
            unroll!(k < 11, max 12, { *out.add(i as usize * 11 + k) = results[k] });
        }
    }
}

/// Integer dot products and byte permutation.
#[kernel(block = 128)]
pub unsafe fn dots(
    /// [n, 3]: the operands.
    operands: *const u32,
    /// Rows of operands.
    n: u32,
    /// [n, 8]: dp2a lo and hi s32 u32, lo and hi u32 u32, dp4a s32 s32, s32 u32, u32 u32, prmt.
    out: *mut u32,
) {
    unsafe {
        let i = thread::index_1d();
        if i < n {
            let row = operands.add(i as usize * 3);
            let (a, b, c) = (*row, *row.add(1), *row.add(2));
            let out = out.add(i as usize * 8);
            *out = ptx::dp2a_lo_s32_u32(a, b, c as i32) as u32;
            *out.add(1) = ptx::dp2a_hi_s32_u32(a, b, c as i32) as u32;
            *out.add(2) = ptx::dp2a_lo_u32_u32(a, b, c);
            *out.add(3) = ptx::dp2a_hi_u32_u32(a, b, c);
            *out.add(4) = ptx::dp4a_s32_s32(a, b, c as i32) as u32;
            *out.add(5) = ptx::dp4a_s32_u32(a, b, c as i32) as u32;
            *out.add(6) = ptx::dp4a_u32_u32(a, b, c);
            *out.add(7) = ptx::prmt(a, b, c);
        }
    }
}
