//! Tensor cores: `ldmatrix`, `movmatrix` and `mma.m16n8k16`.
//!
//! Fragments of m16n8k16, lane `l`, `g = l / 4`, `t = l % 4`, two 16-bit values a word, the lower column (or k) low:
//!
//! | operand | words | element |
//! |---|---|---|
//! | A, 16 x 16 | 4 | word `i`: row `g + 8 (i & 1)`, columns `2t + 8 (i >> 1)` and the next |
//! | B, 16 x 8 | 2 | word `i`: rows (k) `2t + 8 i` and the next, column `g` |
//! | C, D, 16 x 8 | 4 f32 | value `i`: row `g + 8 (i >> 1)`, column `2t + (i & 1)` |

use psa_codegen_macros::gpu_only;

use crate::half::{Element, bf16, f16};
use crate::shared::SharedPtr;

macro_rules! ldmatrix {
    ($($name:ident, $count:tt, $which:literal, $text:literal, [$($r:ident),*], $address:literal;)*) => {$(
        #[doc = concat!("Loads ", $count, $which)]
        ///
        /// Lane `8 i + r` gives the address of row `r` of matrix `i` (16 bytes, 16-byte aligned); lanes beyond
        /// give any valid address. Lane `l` gets of each matrix the columns `2 (l % 4)` and the next of row `l / 4`
        /// (transposed: with rows and columns exchanged).
        #[doc = concat!("PTX `", $text, "`, sm_75.")]
        ///
        /// # Safety
        /// All 32 lanes make this call, with addresses of 16 bytes of shared memory.
        #[gpu_only]
        #[inline(always)]
        pub unsafe fn $name<T>(row: SharedPtr<T>) -> [u32; $count] {
            ldmatrix!(@declare $($r)*);
            // SAFETY: the caller's contract. Convergent, hence not `pure`, and pinned.
            unsafe {
                crate::intrinsics::pin(row.addr());
                core::arch::asm!(
                    concat!($text, " {{", ldmatrix!(@outs $count), "}}, [", $address, "];"),
                    $(out(reg32) $r,)*
                    in(reg32) row.addr(),
                    options(readonly, nostack, preserves_flags)
                );
            }
            [$($r),*]
        }
    )*};
    (@declare $($r:ident)*) => { $(let $r: u32;)* };
    (@outs 1) => { "{0}" };
    (@outs 2) => { "{0}, {1}" };
    (@outs 4) => { "{0}, {1}, {2}, {3}" };
}

ldmatrix! {
    ldmatrix_x1, 1, " 8 x 8 matrix of 16-bit elements.",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16", [a], "{1}";
    ldmatrix_x1_trans, 1, " 8 x 8 matrix of 16-bit elements, transposed.",
        "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16", [a], "{1}";
    ldmatrix_x2, 2, " 8 x 8 matrices of 16-bit elements.",
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16", [a, b], "{2}";
    ldmatrix_x2_trans, 2, " 8 x 8 matrices of 16-bit elements, each transposed.",
        "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", [a, b], "{2}";
    ldmatrix_x4, 4, " 8 x 8 matrices of 16-bit elements.",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16", [a, b, c, d], "{4}";
    ldmatrix_x4_trans, 4, " 8 x 8 matrices of 16-bit elements, each transposed.",
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", [a, b, c, d], "{4}";
}

/// Transposes an 8 x 8 matrix of 16-bit elements that the warp holds, one word a lane (row `l / 4`, columns
/// `2 (l % 4)` and the next). PTX `movmatrix.sync.aligned.m8n8.trans.b16`, sm_75, ISA 7.8.
///
/// # Safety
/// All 32 lanes make this call.
#[gpu_only]
#[inline(always)]
pub unsafe fn movmatrix_trans(word: u32) -> u32 {
    let d: u32;
    // SAFETY: the caller's contract. Convergent, hence not `pure`, and pinned.
    unsafe {
        crate::intrinsics::pin(word);
        core::arch::asm!(
            "movmatrix.sync.aligned.m8n8.trans.b16 {0}, {1};",
            out(reg32) d,
            in(reg32) word,
            options(nomem, nostack, preserves_flags)
        );
    }
    d
}

/// `A B + C` with A 16 x 16, B 16 x 8 of bf16 and C 16 x 8 of f32.
/// PTX `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`, sm_80, ISA 7.0.
///
/// # Safety
/// All 32 lanes make this call.
#[gpu_only]
#[inline(always)]
pub unsafe fn mma_m16n8k16_bf16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    // SAFETY: the caller's contract. LLVM does not declare this intrinsic convergent, hence pinned.
    let d = unsafe {
        crate::intrinsics::pin(a[0]);
        crate::intrinsics::mma_m16n8k16_bf16(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3])
    };
    [d.0, d.1, d.2, d.3]
}

/// `A B + C` with A 16 x 16, B 16 x 8 of f16 and C 16 x 8 of f32.
/// PTX `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32`, sm_80, ISA 7.0.
///
/// # Safety
/// All 32 lanes make this call.
#[gpu_only]
#[inline(always)]
pub unsafe fn mma_m16n8k16_f16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    let (d0, d1, d2, d3): (f32, f32, f32, f32);
    // SAFETY: the caller's contract. Convergent, hence not `pure`, and pinned; LLVM's intrinsic wants vectors of its half
    // type, which Rust cannot name here.
    unsafe {
        crate::intrinsics::pin(a[0]);
        core::arch::asm!(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{0}, {1}, {2}, {3}}}, {{{4}, {5}, {6}, {7}}}, {{{8}, {9}}}, {{{10}, {11}, {12}, {13}}};",
            out(reg32) d0, out(reg32) d1, out(reg32) d2, out(reg32) d3,
            in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3],
            in(reg32) b[0], in(reg32) b[1],
            in(reg32) c[0], in(reg32) c[1], in(reg32) c[2], in(reg32) c[3],
            options(nomem, nostack, preserves_flags)
        );
    }
    [d0, d1, d2, d3]
}

/// An element type that tensor cores multiply, with its packed forms.
pub trait MmaElement: Element {
    /// `lo` and `hi` rounded to the type in one word, `lo` in the lower half.
    fn pack2(lo: f32, hi: f32) -> u32;

    /// The two values of a word, the lower half first.
    fn unpack2(word: u32) -> (f32, f32);

    /// `A B + C`; see [`mma_m16n8k16_bf16`].
    ///
    /// # Safety
    /// All 32 lanes make this call.
    unsafe fn mma_m16n8k16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4];
}

macro_rules! mma_element {
    ($ty:ident, $pack:ident, $unpack:ident, $mma:ident) => {
        impl MmaElement for $ty {
            #[inline(always)]
            fn pack2(lo: f32, hi: f32) -> u32 {
                super::pack::$pack(lo, hi)
            }

            #[inline(always)]
            fn unpack2(word: u32) -> (f32, f32) {
                super::pack::$unpack(word)
            }

            #[inline(always)]
            unsafe fn mma_m16n8k16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
                // SAFETY: the caller's contract.
                unsafe { $mma(a, b, c) }
            }
        }
    };
}

mma_element!(bf16, pack_bf16x2, unpack_bf16x2, mma_m16n8k16_bf16);
mma_element!(f16, pack_f16x2, unpack_f16x2, mma_m16n8k16_f16);
