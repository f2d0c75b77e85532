//! Wide accesses to global memory.

use psa_codegen_macros::gpu_only;

/// Four words that one access moves: read and write it through `*const V4`, `*mut V4`
/// (`ld.global.v4.b32`, `st.global.v4.b32`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct V4(pub [u32; 4]);

/// Two words that one access moves (`ld.global.v2.b32`, `st.global.v2.b32`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct V2(pub [u32; 2]);

impl V4 {
    /// The words as f32 bit patterns.
    #[inline(always)]
    pub fn from_f32(values: [f32; 4]) -> Self {
        Self(values.map(f32::to_bits))
    }

    /// The words as f32.
    #[inline(always)]
    pub fn to_f32(self) -> [f32; 4] {
        self.0.map(f32::from_bits)
    }
}

impl V2 {
    /// The words as f32 bit patterns.
    #[inline(always)]
    pub fn from_f32(values: [f32; 2]) -> Self {
        Self(values.map(f32::to_bits))
    }

    /// The words as f32.
    #[inline(always)]
    pub fn to_f32(self) -> [f32; 2] {
        self.0.map(f32::from_bits)
    }
}

/// Reads 16 bytes that are read once: past L1, L2 fetches 256 bytes.
/// PTX `ld.global.nc.L1::no_allocate.L2::256B.v4.b32`, sm_80, ISA 7.4.
///
/// # Safety
/// `source` is a global, 16-byte aligned address with 16 readable bytes that nothing writes while the
/// kernel runs (the load goes through the read-only path).
#[gpu_only]
#[inline(always)]
pub unsafe fn ld_nc_v4<T>(source: *const T) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's contract.
    unsafe {
        core::arch::asm!(
            "ld.global.nc.L1::no_allocate.L2::256B.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d,
            in(reg64) source,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// Writes 16 bytes in one access, where the compiler would rather make two of 8. PTX `st.global.v4.b32`.
///
/// # Safety
/// `target` is a global, 16-byte aligned address with 16 bytes that no other thread reads or writes meanwhile.
#[gpu_only]
#[inline(always)]
pub unsafe fn st_v4<T>(target: *mut T, [a, b, c, d]: [u32; 4]) {
    // SAFETY: the caller's contract.
    unsafe {
        core::arch::asm!(
            "st.global.v4.b32 [{0}], {{{1}, {2}, {3}, {4}}};",
            in(reg64) target,
            in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
            options(nostack, preserves_flags)
        );
    }
}

/// Asks for the line of `address` in L2. PTX `prefetch.global.L2`.
///
/// # Safety
/// `address` is a global address.
#[gpu_only]
#[inline(always)]
pub unsafe fn prefetch_l2<T>(address: *const T) {
    // SAFETY: the caller's contract.
    unsafe {
        core::arch::asm!("prefetch.global.L2 [{0}];", in(reg64) address, options(nostack, preserves_flags))
    }
}
