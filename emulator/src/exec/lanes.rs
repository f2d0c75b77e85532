//! The register file of a warp: 32 lanes side by side, 32 bits a slot.
//!
//! A 64-bit register is two neighbouring slots seen as 32 values of 64 bits (not split halves), so
//! both widths are plain arrays that the compiler vectorises over. This is the only file with
//! pointer casts.

use crate::inst::R;

/// One slot: 32 lanes of 32 bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Slot(pub [u32; 32]);

/// All slots of a warp.
pub(crate) struct Bank {
    slots: Vec<Slot>,
}

impl Bank {
    pub fn new(slots: usize) -> Bank {
        Bank { slots: vec![Slot([0; 32]); slots] }
    }

    /// Zero in every register: what an earlier CTA left is nobody's business.
    pub fn clear(&mut self) {
        self.slots.fill(Slot([0; 32]));
    }

    #[inline(always)]
    pub fn r32(&self, r: R) -> &[u32; 32] {
        &self.slots[r.slot()].0
    }

    #[inline(always)]
    pub fn m32(&mut self, r: R) -> &mut [u32; 32] {
        &mut self.slots[r.slot()].0
    }

    #[inline(always)]
    pub fn r64(&self, r: R) -> &[u64; 32] {
        let pair = &self.slots[r.slot()..r.slot() + 2];
        // SAFETY: two slots are 256 contiguous bytes (repr(C), no padding: size 128, align 64), aligned
        // to 64, and every bit pattern is a valid u64.
        unsafe { &*pair.as_ptr().cast::<[u64; 32]>() }
    }

    #[inline(always)]
    pub fn m64(&mut self, r: R) -> &mut [u64; 32] {
        let pair = &mut self.slots[r.slot()..r.slot() + 2];
        // SAFETY: as in `r64`; the exclusive borrow of both slots is held for the result's life.
        unsafe { &mut *pair.as_mut_ptr().cast::<[u64; 32]>() }
    }

    /// One lane of a register of either width.
    #[inline(always)]
    pub fn get(&self, r: R, lane: usize) -> u64 {
        if r.wide() { self.r64(r)[lane] } else { u64::from(self.r32(r)[lane]) }
    }

    /// Sets one lane of a register of either width.
    #[inline(always)]
    pub fn set(&mut self, r: R, lane: usize, v: u64) {
        if r.wide() {
            self.m64(r)[lane] = v;
        } else {
            self.m32(r)[lane] = v as u32;
        }
    }

    #[inline(always)]
    pub fn put32(&mut self, d: R, mask: u32, v: &[u32; 32]) {
        let dst = self.m32(d);
        if mask == u32::MAX {
            *dst = *v;
        } else {
            for i in 0..32 {
                dst[i] = if mask >> i & 1 != 0 { v[i] } else { dst[i] };
            }
        }
    }

    #[inline(always)]
    pub fn put64(&mut self, d: R, mask: u32, v: &[u64; 32]) {
        let dst = self.m64(d);
        if mask == u32::MAX {
            *dst = *v;
        } else {
            for i in 0..32 {
                dst[i] = if mask >> i & 1 != 0 { v[i] } else { dst[i] };
            }
        }
    }

    #[inline(always)]
    pub fn map1(&mut self, d: R, mask: u32, a: R, f: impl Fn(u32) -> u32) {
        let mut out = [0u32; 32];
        let a = self.r32(a);
        for i in 0..32 {
            out[i] = f(a[i]);
        }
        self.put32(d, mask, &out);
    }

    #[inline(always)]
    pub fn map2(&mut self, d: R, mask: u32, a: R, b: R, f: impl Fn(u32, u32) -> u32) {
        let mut out = [0u32; 32];
        let (a, b) = (self.r32(a), self.r32(b));
        for i in 0..32 {
            out[i] = f(a[i], b[i]);
        }
        self.put32(d, mask, &out);
    }

    #[inline(always)]
    pub fn map3(&mut self, d: R, mask: u32, s: [R; 4], f: impl Fn(u32, u32, u32) -> u32) {
        let mut out = [0u32; 32];
        let (a, b, c) = (self.r32(s[0]), self.r32(s[1]), self.r32(s[2]));
        for i in 0..32 {
            out[i] = f(a[i], b[i], c[i]);
        }
        self.put32(d, mask, &out);
    }

    #[inline(always)]
    pub fn wide1(&mut self, d: R, mask: u32, a: R, f: impl Fn(u64) -> u64) {
        let mut out = [0u64; 32];
        let a = self.r64(a);
        for i in 0..32 {
            out[i] = f(a[i]);
        }
        self.put64(d, mask, &out);
    }

    #[inline(always)]
    pub fn wide2(&mut self, d: R, mask: u32, a: R, b: R, f: impl Fn(u64, u64) -> u64) {
        let mut out = [0u64; 32];
        let (a, b) = (self.r64(a), self.r64(b));
        for i in 0..32 {
            out[i] = f(a[i], b[i]);
        }
        self.put64(d, mask, &out);
    }

    /// One operand and a result of either width, as 64 bits.
    #[inline(always)]
    pub fn either1(&mut self, d: R, mask: u32, a: R, f: impl Fn(u64) -> u64) {
        let mut out = [0u64; 32];
        if a.wide() {
            let a = self.r64(a);
            for i in 0..32 {
                out[i] = f(a[i]);
            }
        } else {
            let a = self.r32(a);
            for i in 0..32 {
                out[i] = f(u64::from(a[i]));
            }
        }
        if d.wide() {
            self.put64(d, mask, &out);
        } else {
            let mut low = [0u32; 32];
            for i in 0..32 {
                low[i] = out[i] as u32;
            }
            self.put32(d, mask, &low);
        }
    }

    /// 32-bit operands, 64-bit result.
    #[inline(always)]
    pub fn widen2(&mut self, d: R, mask: u32, a: R, b: R, f: impl Fn(u32, u32) -> u64) {
        let mut out = [0u64; 32];
        let (a, b) = (self.r32(a), self.r32(b));
        for i in 0..32 {
            out[i] = f(a[i], b[i]);
        }
        self.put64(d, mask, &out);
    }

    /// 64-bit value shifted by a 32-bit amount.
    #[inline(always)]
    pub fn shift64(&mut self, d: R, mask: u32, a: R, b: R, f: impl Fn(u64, u32) -> u64) {
        let mut out = [0u64; 32];
        let (a, b) = (self.r64(a), self.r32(b));
        for i in 0..32 {
            out[i] = f(a[i], b[i]);
        }
        self.put64(d, mask, &out);
    }
}

/// Lanes of a mask, lowest first.
#[inline(always)]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut m = mask;
    std::iter::from_fn(move || {
        if m == 0 {
            return None;
        }
        let i = m.trailing_zeros() as usize;
        m &= m - 1;
        Some(i)
    })
}

/// a * b + c per lane with one rounding each.
pub(crate) fn fma_lanes(a: &[f32; 32], b: &[f32; 32], c: &[f32; 32], out: &mut [f32; 32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the features the function is compiled for were found on this machine.
        unsafe { fma_lanes_x86(a, b, c, out) };
        return;
    }
    for i in 0..32 {
        out[i] = a[i].mul_add(b[i], c[i]);
    }
}

/// # Safety
/// The machine must have the `fma` and `avx` extensions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma,avx")]
unsafe fn fma_lanes_x86(a: &[f32; 32], b: &[f32; 32], c: &[f32; 32], out: &mut [f32; 32]) {
    for i in 0..32 {
        out[i] = a[i].mul_add(b[i], c[i]);
    }
}
