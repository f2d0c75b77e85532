//! `cuda_std::warp`: one warp a launch, lane `l` writes row `l`.

use cuda_std::prelude::*;
use cuda_std::warp::WarpReductionOp;

/// The four shuffles of the value `100 + lane`, in segments of `W` lanes.
#[kernel(block = 32, instances(W in [1, 2, 4, 8, 16, 32]))]
pub unsafe fn shuffles<const W: u32>(
    /// The shuffles' operand.
    b: u32,
    /// [32, 8]: value and whether in range, for down, up, idx, xor.
    out: *mut u32,
) {
    unsafe {
        let lane = warp::lane_id();
        let value = 100 + lane;
        let out = out.add(lane as usize * 8);
        macro_rules! put {
            ($($index:literal $shuffle:ident,)*) => {$(
                let (moved, inside) = warp::$shuffle(u32::MAX, value, b, W);
                *out.add(2 * $index) = moved;
                *out.add(2 * $index + 1) = inside as u32;
            )*};
        }
        put! { 0 warp_shuffle_down, 1 warp_shuffle_up, 2 warp_shuffle_idx, 3 warp_shuffle_xor, }
    }
}

/// One shuffle (from the lane to the right, around) of every type, and the lean forms.
#[kernel(block = 32)]
pub unsafe fn shuffle_types(
    /// [32, 4]: the bits to shuffle; narrower types take the low ones.
    bits: *const u32,
    /// [32, 32]: 8, 8, 16, 16, 32, 32, 64, 64 bits of integers (unsigned, then signed), f32, f64, f16, bf16, u128, i128;
    /// then the lean forms.
    out: *mut u32,
) {
    unsafe {
        let lane = warp::lane_id();
        let from = (lane + 1) % 32;
        let row = bits.add(lane as usize * 4);
        let (a, b, c, d) = (*row, *row.add(1), *row.add(2), *row.add(3));
        let low = a as u64 | (b as u64) << 32;
        let wide = low as u128 | (c as u128) << 64 | (d as u128) << 96;
        let mut out = out.add(lane as usize * 32);
        let mut put = |word: u32| {
            *out = word;
            out = out.add(1);
        };
        macro_rules! idx {
            ($value:expr) => {
                warp::warp_shuffle_idx(u32::MAX, $value, from, 32).0
            };
        }
        put(idx!(a as u8) as u32);
        put(idx!(a as i8) as u32);
        put(idx!(a as u16) as u32);
        put(idx!(a as i16) as u32);
        put(idx!(a));
        put(idx!(a as i32) as u32);
        let v = idx!(low);
        put(v as u32);
        put((v >> 32) as u32);
        let v = idx!(low as i64);
        put(v as u32);
        put((v >> 32) as u32);
        put(idx!(f32::from_bits(a)).to_bits());
        let v = idx!(f64::from_bits(low)).to_bits();
        put(v as u32);
        put((v >> 32) as u32);
        put(idx!(f16::from_bits(a as u16)).to_bits() as u32);
        put(idx!(bf16::from_bits(a as u16)).to_bits() as u32);
        let v = idx!(wide);
        unroll!(i < 4, max 4, { put((v >> (32 * i)) as u32) });
        let v = idx!(wide as i128);
        unroll!(i < 4, max 4, { put((v >> (32 * i)) as u32) });
        // From here the lean forms: words 23 to 30.
        put(warp::shfl_idx_u32(a, from));
        put(warp::shfl_idx_f32(f32::from_bits(a), from).to_bits());
        put(warp::shfl_xor_u32(a, 5));
        put(warp::shfl_xor_f32(f32::from_bits(a), 5).to_bits());
        put(warp::shfl_up_u32(a, 3));
        put(warp::shfl_down_u32(a, 3));
        put(warp::group_sum_f32::<8>(lane as f32).to_bits());
        put(warp::group_max_f32::<8>(lane as f32).to_bits());
        put(warp::activemask());
    }
}

/// The three votes, over the whole warp and, in a branch, over the lanes of `mask`.
#[kernel(block = 32)]
pub unsafe fn votes(
    /// [32]: not 0 for a lane that votes yes.
    predicate: *const u32,
    /// The lanes that enter the branch.
    mask: u32,
    /// [32, 6]: all, any, ballot of the warp; then of the branch, 7s outside it.
    out: *mut u32,
) {
    unsafe {
        let lane = warp::lane_id();
        let yes = *predicate.add(lane as usize) != 0;
        let out = out.add(lane as usize * 6);
        *out = warp::warp_vote_all(u32::MAX, yes) as u32;
        *out.add(1) = warp::warp_vote_any(u32::MAX, yes) as u32;
        *out.add(2) = warp::warp_vote_ballot(u32::MAX, yes);
        let mut branch = [7; 3];
        if mask >> lane & 1 == 1 {
            branch = [
                warp::warp_vote_all(mask, yes) as u32,
                warp::warp_vote_any(mask, yes) as u32,
                warp::warp_vote_ballot(mask, yes),
            ];
        }
        warp::sync_warp(u32::MAX);
        *out.add(3) = branch[0];
        *out.add(4) = branch[1];
        *out.add(5) = branch[2];
    }
}

/// The matches of 32- and 64-bit values.
#[kernel(block = 32)]
pub unsafe fn matches(
    /// [32]: the values; 64-bit ones carry the word in the upper half.
    bits: *const u32,
    /// [32, 8]: any u32, any f32, any u64, any f64; all u32, f32, u64, f64 (0 for `None`).
    out: *mut u32,
) {
    unsafe {
        let lane = warp::lane_id();
        let word = *bits.add(lane as usize);
        let wide = (word as u64) << 32;
        let out = out.add(lane as usize * 8);
        *out = warp::warp_match_any(u32::MAX, word);
        *out.add(1) = warp::warp_match_any(u32::MAX, f32::from_bits(word));
        *out.add(2) = warp::warp_match_any(u32::MAX, wide);
        *out.add(3) = warp::warp_match_any(u32::MAX, f64::from_bits(wide));
        *out.add(4) = warp::warp_match_all(u32::MAX, word).unwrap_or(0);
        *out.add(5) = warp::warp_match_all(u32::MAX, f32::from_bits(word)).unwrap_or(0);
        *out.add(6) = warp::warp_match_all(u32::MAX, wide as i64).unwrap_or(0);
        *out.add(7) = warp::warp_match_all(u32::MAX, f64::from_bits(wide)).unwrap_or(0);
    }
}

/// Every reduction of u32 and i32, over the lanes of `mask`.
#[kernel(block = 32)]
pub unsafe fn reductions(
    /// [32]: the values.
    values: *const u32,
    /// The lanes that take part.
    mask: u32,
    /// [32, 12]: add, min, max, and, or, xor of u32, then of i32; 7s outside the mask.
    out: *mut u32,
) {
    unsafe {
        let lane = warp::lane_id();
        let value = *values.add(lane as usize);
        let mut results = [7u32; 12];
        if mask >> lane & 1 == 1 {
            macro_rules! all {
                ($($index:literal $op:ident,)*) => {$(
                    results[$index] = warp::warp_reduce(mask, value, WarpReductionOp::$op);
                    results[$index + 6] = warp::warp_reduce(mask, value as i32, WarpReductionOp::$op) as u32;
                )*};
            }
            all! { 0 Add, 1 Min, 2 Max, 3 And, 4 Or, 5 Xor, }
        }
        unroll!(i < 12, max 12, { *out.add(lane as usize * 12 + i) = results[i] });
    }
}
