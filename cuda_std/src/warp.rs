//! Warp collectives: shuffles, votes, matches, reductions.
//!
//! The `warp_*` functions have rust-cuda's signatures. `shfl_*` and `*_sum`, `*_max` are lean forms for
//! the whole warp without the range predicate. All of them are convergent: the lanes in `mask` must
//! execute the same call together, and a lane outside it must not. They go through LLVM intrinsics,
//! never through asm, so that no pass moves them into a branch.

use psa_codegen_macros::gpu_only;

#[cfg(target_arch = "nvptx64")]
use crate::intrinsics;

/// The mask of all 32 lanes.
pub const FULL_MASK: u32 = u32::MAX;

/// The lane's index in its warp, 0 to 31. PTX `mov.u32 d, %laneid`.
#[gpu_only]
#[inline(always)]
pub fn lane_id() -> u32 {
    intrinsics::laneid()
}

/// The lanes that execute this instruction together right now. PTX `activemask.b32`, ISA 6.2.
///
/// Not the lanes that took a branch: the hardware may have split them. Build masks from conditions.
#[gpu_only]
#[inline(always)]
pub fn activemask() -> u32 {
    intrinsics::activemask()
}

/// Waits for the lanes in `mask`; their writes before are visible to each other after.
/// PTX `bar.warp.sync`, ISA 6.0.
///
/// # Safety
/// `mask` contains the calling lane, and every lane in it makes this call.
#[gpu_only]
#[inline(always)]
pub unsafe fn sync_warp(mask: u32) {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::bar_warp_sync(mask) }
}

mod sealed {
    pub trait Sealed {}
}

/// How a shuffle picks its source lane.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub enum ShuffleMode {
    Up,
    Down,
    Idx,
    Xor,
}

/// One 32-bit shuffle within segments of `width` lanes.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn shuffle_u32(mode: ShuffleMode, mask: u32, value: u32, b: u32, width: u32) -> u32 {
    let segment = (32 - width) << 8;
    // SAFETY: the caller's contract.
    unsafe {
        match mode {
            ShuffleMode::Up => intrinsics::shfl_up(mask, value, b, segment),
            ShuffleMode::Down => intrinsics::shfl_down(mask, value, b, segment | 31),
            ShuffleMode::Idx => intrinsics::shfl_idx(mask, value, b, segment | 31),
            ShuffleMode::Xor => intrinsics::shfl_bfly(mask, value, b, segment | 31),
        }
    }
}

/// Whether the source lane of a shuffle is inside the segment: the instruction's predicate output,
/// computed, because a Rust declaration cannot return an LLVM struct with a one-bit field.
#[cfg_attr(not(any(target_arch = "nvptx64", test)), allow(dead_code))]
fn source_in_range(mode: ShuffleMode, lane: u32, b: u32, width: u32) -> bool {
    let (first, last) = (lane & !(width - 1), lane | (width - 1));
    // The hardware reads the low five bits of `b`.
    let b = b & 31;
    match mode {
        ShuffleMode::Up => lane - first >= b,
        ShuffleMode::Down => lane + b <= last,
        ShuffleMode::Idx => (first | (b & (width - 1))) <= last,
        ShuffleMode::Xor => (lane ^ b) <= last,
    }
}

/// A value that a shuffle can move: integers of 8 to 128 bits, `f32`, `f64`, `f16`, `bf16`.
pub trait WarpShuffleValue: Copy + sealed::Sealed {
    /// The value from the lane that `mode` and `b` name.
    ///
    /// # Safety
    /// As `warp_shuffle_*`.
    #[doc(hidden)]
    unsafe fn shuffle(self, mode: ShuffleMode, mask: u32, b: u32, width: u32) -> Self;
}

macro_rules! shuffle_value {
    ($($ty:ty: |$v:ident, $shfl:ident| $body:expr;)*) => {$(
        impl sealed::Sealed for $ty {}
        impl WarpShuffleValue for $ty {
            #[gpu_only]
            #[inline(always)]
            unsafe fn shuffle(self, mode: ShuffleMode, mask: u32, b: u32, width: u32) -> Self {
                let $v = self;
                // SAFETY: the caller's contract.
                let $shfl = |x: u32| unsafe { shuffle_u32(mode, mask, x, b, width) };
                $body
            }
        }
    )*};
}

shuffle_value! {
    u8: |v, shfl| shfl(v as u32) as u8;
    i8: |v, shfl| shfl(v as u32) as i8;
    u16: |v, shfl| shfl(v as u32) as u16;
    i16: |v, shfl| shfl(v as u32) as i16;
    u32: |v, shfl| shfl(v);
    i32: |v, shfl| shfl(v as u32) as i32;
    u64: |v, shfl| shfl(v as u32) as u64 | (shfl((v >> 32) as u32) as u64) << 32;
    i64: |v, shfl| (shfl(v as u32) as u64 | (shfl((v as u64 >> 32) as u32) as u64) << 32) as i64;
    u128: |v, shfl| shfl(v as u32) as u128
        | (shfl((v >> 32) as u32) as u128) << 32
        | (shfl((v >> 64) as u32) as u128) << 64
        | (shfl((v >> 96) as u32) as u128) << 96;
    i128: |v, shfl| (shfl(v as u32) as u128
        | (shfl((v >> 32) as u32) as u128) << 32
        | (shfl((v >> 64) as u32) as u128) << 64
        | (shfl((v >> 96) as u32) as u128) << 96) as i128;
    f32: |v, shfl| f32::from_bits(shfl(v.to_bits()));
    f64: |v, shfl| {
        let bits = v.to_bits();
        f64::from_bits(shfl(bits as u32) as u64 | (shfl((bits >> 32) as u32) as u64) << 32)
    };
    crate::half::f16: |v, shfl| crate::half::f16::from_bits(shfl(v.to_bits() as u32) as u16);
    crate::half::bf16: |v, shfl| crate::half::bf16::from_bits(shfl(v.to_bits() as u32) as u16);
}

macro_rules! shuffle {
    ($($(#[$doc:meta])* $name:ident, $mode:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// `width` (1, 2, 4, 8, 16 or 32, otherwise the launch traps) cuts the warp into segments that do
        /// not see each other. Returns the value, and whether the source lane was inside the segment; if
        /// it was not, the value is the lane's own.
        ///
        /// # Safety
        /// Every lane in `mask` makes this call, the caller among them; the source lane is in `mask`.
        #[gpu_only]
        #[inline(always)]
        pub unsafe fn $name<T: WarpShuffleValue>(mask: u32, value: T, b: u32, width: u32) -> (T, bool) {
            if !width.is_power_of_two() || width > 32 {
                crate::misc::trap();
            }
            // SAFETY: the caller's contract.
            let value = unsafe { value.shuffle(ShuffleMode::$mode, mask, b, width) };
            (value, source_in_range(ShuffleMode::$mode, lane_id(), b, width))
        }
    )*};
}

shuffle! {
    /// The value of lane `lane + b`. PTX `shfl.sync.down.b32`.
    warp_shuffle_down, Down;
    /// The value of lane `lane - b`. PTX `shfl.sync.up.b32`.
    warp_shuffle_up, Up;
    /// The value of lane `b` of the segment. PTX `shfl.sync.idx.b32`.
    warp_shuffle_idx, Idx;
    /// The value of lane `lane ^ b`. PTX `shfl.sync.bfly.b32`.
    warp_shuffle_xor, Xor;
}

/// The value of lane `lane ^ lane_mask`, whole warp. PTX `shfl.sync.bfly.b32`.
///
/// # Safety
/// All 32 lanes make this call.
#[gpu_only]
#[inline(always)]
pub unsafe fn shfl_xor_f32(value: f32, lane_mask: u32) -> f32 {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::shfl_bfly_f32(FULL_MASK, value, lane_mask, 31) }
}

/// The value of lane `lane ^ lane_mask`, whole warp. PTX `shfl.sync.bfly.b32`.
///
/// # Safety
/// All 32 lanes make this call.
#[gpu_only]
#[inline(always)]
pub unsafe fn shfl_xor_u32(value: u32, lane_mask: u32) -> u32 {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::shfl_bfly(FULL_MASK, value, lane_mask, 31) }
}

/// The value of lane `lane`, whole warp. PTX `shfl.sync.idx.b32`.
///
/// # Safety
/// All 32 lanes make this call.
#[gpu_only]
#[inline(always)]
pub unsafe fn shfl_idx_f32(value: f32, lane: u32) -> f32 {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::shfl_idx_f32(FULL_MASK, value, lane, 31) }
}

/// The value of lane `lane`, whole warp. PTX `shfl.sync.idx.b32`.
///
/// # Safety
/// All 32 lanes make this call.
#[gpu_only]
#[inline(always)]
pub unsafe fn shfl_idx_u32(value: u32, lane: u32) -> u32 {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::shfl_idx(FULL_MASK, value, lane, 31) }
}

/// The value of lane `lane - delta`, whole warp; the lane's own value where there is none.
/// PTX `shfl.sync.up.b32`.
///
/// # Safety
/// All 32 lanes make this call.
#[gpu_only]
#[inline(always)]
pub unsafe fn shfl_up_u32(value: u32, delta: u32) -> u32 {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::shfl_up(FULL_MASK, value, delta, 0) }
}

/// The value of lane `lane + delta`, whole warp; the lane's own value where there is none.
/// PTX `shfl.sync.down.b32`.
///
/// # Safety
/// All 32 lanes make this call.
#[gpu_only]
#[inline(always)]
pub unsafe fn shfl_down_u32(value: u32, delta: u32) -> u32 {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::shfl_down(FULL_MASK, value, delta, 31) }
}

/// The sum over groups of `LANES` neighbouring lanes (a power of two), in every lane, by butterflies:
/// the order of additions is fixed, so the result has the same bits in each lane and run.
///
/// # Safety
/// All 32 lanes make this call.
#[inline(always)]
pub unsafe fn group_sum_f32<const LANES: u32>(value: f32) -> f32 {
    const { assert!(LANES.is_power_of_two() && LANES <= 32, "LANES is a power of two up to 32") };
    let mut value = value;
    let mut step = LANES / 2;
    while step > 0 {
        // SAFETY: the caller's contract.
        value += unsafe { shfl_xor_f32(value, step) };
        step /= 2;
    }
    value
}

/// The maximum over groups of `LANES` neighbouring lanes (a power of two), in every lane. NaN is ignored
/// unless all are NaN.
///
/// # Safety
/// All 32 lanes make this call.
#[inline(always)]
pub unsafe fn group_max_f32<const LANES: u32>(value: f32) -> f32 {
    const { assert!(LANES.is_power_of_two() && LANES <= 32, "LANES is a power of two up to 32") };
    let mut value = value;
    let mut step = LANES / 2;
    while step > 0 {
        // SAFETY: the caller's contract.
        value = value.max(unsafe { shfl_xor_f32(value, step) });
        step /= 2;
    }
    value
}

/// Whether `predicate` holds in all lanes of `mask`. PTX `vote.sync.all.pred`.
///
/// # Safety
/// Every lane in `mask` makes this call, the caller among them.
#[gpu_only]
#[inline(always)]
pub unsafe fn warp_vote_all(mask: u32, predicate: bool) -> bool {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::vote_all(mask, predicate) }
}

/// Whether `predicate` holds in any lane of `mask`. PTX `vote.sync.any.pred`.
///
/// # Safety
/// Every lane in `mask` makes this call, the caller among them.
#[gpu_only]
#[inline(always)]
pub unsafe fn warp_vote_any(mask: u32, predicate: bool) -> bool {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::vote_any(mask, predicate) }
}

/// The lanes of `mask` in which `predicate` holds. PTX `vote.sync.ballot.b32`.
///
/// # Safety
/// Every lane in `mask` makes this call, the caller among them.
#[gpu_only]
#[inline(always)]
pub unsafe fn warp_vote_ballot(mask: u32, predicate: bool) -> u32 {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::vote_ballot(mask, predicate) }
}

/// A value that lanes can compare: 32- and 64-bit integers and floats, the latter by their bits.
pub trait WarpMatchValue: Copy + sealed::Sealed {
    /// The lanes of `mask` with the same bits.
    ///
    /// # Safety
    /// As [`warp_match_any`].
    #[doc(hidden)]
    unsafe fn match_any(self, mask: u32) -> u32;
}

macro_rules! match_value {
    ($($ty:ty, $intrinsic:ident, |$v:ident| $bits:expr;)*) => {$(
        impl WarpMatchValue for $ty {
            #[gpu_only]
            #[inline(always)]
            unsafe fn match_any(self, mask: u32) -> u32 {
                let $v = self;
                // SAFETY: the caller's contract.
                unsafe { intrinsics::$intrinsic(mask, $bits) }
            }
        }
    )*};
}

match_value! {
    u32, match_any_32, |v| v;
    i32, match_any_32, |v| v as u32;
    f32, match_any_32, |v| v.to_bits();
    u64, match_any_64, |v| v;
    i64, match_any_64, |v| v as u64;
    f64, match_any_64, |v| v.to_bits();
}

/// The lanes of `mask` whose `value` has the same bits as this lane's (so 0.0 and -0.0 differ, and a
/// NaN matches itself). PTX `match.any.sync.b32` or `.b64`, sm_70.
///
/// # Safety
/// Every lane in `mask` makes this call, the caller among them.
#[inline(always)]
pub unsafe fn warp_match_any<T: WarpMatchValue>(mask: u32, value: T) -> u32 {
    // SAFETY: the caller's contract.
    unsafe { value.match_any(mask) }
}

/// `Some(mask)` if all lanes of `mask` have the same bits, else `None`. PTX `match.any.sync`, sm_70.
///
/// # Safety
/// Every lane in `mask` makes this call, the caller among them.
#[inline(always)]
pub unsafe fn warp_match_all<T: WarpMatchValue>(mask: u32, value: T) -> Option<u32> {
    // SAFETY: the caller's contract.
    let same = unsafe { value.match_any(mask) };
    (same == mask).then_some(mask)
}

/// The operation of [`warp_reduce`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarpReductionOp {
    /// Wrapping sum.
    Add,
    /// Minimum.
    Min,
    /// Maximum.
    Max,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
}

/// A value that `redux.sync` reduces: `u32`, `i32`.
pub trait WarpReduceValue: Copy + sealed::Sealed {
    /// The reduction over the lanes of `mask`.
    ///
    /// # Safety
    /// As [`warp_reduce`].
    #[doc(hidden)]
    unsafe fn reduce(self, mask: u32, op: WarpReductionOp) -> Self;
}

impl WarpReduceValue for u32 {
    #[gpu_only]
    #[inline(always)]
    unsafe fn reduce(self, mask: u32, op: WarpReductionOp) -> Self {
        // SAFETY: the caller's contract.
        unsafe {
            match op {
                WarpReductionOp::Add => intrinsics::redux_add(self, mask),
                WarpReductionOp::Min => intrinsics::redux_umin(self, mask),
                WarpReductionOp::Max => intrinsics::redux_umax(self, mask),
                WarpReductionOp::And => intrinsics::redux_and(self, mask),
                WarpReductionOp::Or => intrinsics::redux_or(self, mask),
                WarpReductionOp::Xor => intrinsics::redux_xor(self, mask),
            }
        }
    }
}

impl WarpReduceValue for i32 {
    #[gpu_only]
    #[inline(always)]
    unsafe fn reduce(self, mask: u32, op: WarpReductionOp) -> Self {
        // SAFETY: the caller's contract.
        unsafe {
            match op {
                WarpReductionOp::Min => intrinsics::redux_min(self, mask),
                WarpReductionOp::Max => intrinsics::redux_max(self, mask),
                other => (self as u32).reduce(mask, other) as i32,
            }
        }
    }
}

/// The reduction of `value` over the lanes of `mask`, in each of them. PTX `redux.sync`, sm_80, ISA 7.0.
///
/// # Safety
/// Every lane in `mask` makes this call, the caller among them.
#[inline(always)]
pub unsafe fn warp_reduce<T: WarpReduceValue>(mask: u32, value: T, op: WarpReductionOp) -> T {
    // SAFETY: the caller's contract.
    unsafe { value.reduce(mask, op) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ISA's pseudo code of `shfl`, section 9.7.9.6, as written there.
    fn isa_predicate(mode: ShuffleMode, lane: u32, b: u32, width: u32) -> bool {
        let c = (32 - width) << 8 | if matches!(mode, ShuffleMode::Up) { 0 } else { 31 };
        let (bval, cval, segmask) = (b & 0x1f, c & 0x1f, (c >> 8) & 0x1f);
        let max_lane = (lane & segmask) | (cval & !segmask & 0x1f);
        let min_lane = lane & segmask;
        match mode {
            ShuffleMode::Up => lane as i32 - bval as i32 >= max_lane as i32,
            ShuffleMode::Down => lane + bval <= max_lane,
            ShuffleMode::Xor => lane ^ bval <= max_lane,
            ShuffleMode::Idx => min_lane | (bval & !segmask & 0x1f) <= max_lane,
        }
    }

    #[test]
    fn the_range_predicate_is_the_isa_s() {
        for mode in [ShuffleMode::Up, ShuffleMode::Down, ShuffleMode::Idx, ShuffleMode::Xor] {
            for width in [1, 2, 4, 8, 16, 32] {
                for lane in 0..32 {
                    for b in 0..40 {
                        assert_eq!(
                            source_in_range(mode, lane, b, width),
                            isa_predicate(mode, lane, b, width),
                            "lane {lane} b {b} width {width}"
                        );
                    }
                }
            }
        }
    }
}
