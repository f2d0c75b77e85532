//! Collectives between and inside branches: what a compiler must neither move nor duplicate.
//!
//! A shuffle whose result is used by one lane must still be executed by all; a barrier between two branches on
//! the same condition must not be copied into both. Each kernel has exactly one of each instruction, and the
//! emulator's convergence checks see them executed together.

use cuda_std::prelude::*;
use cuda_std::warp::WarpReductionOp;

/// Results that only lane 0 uses.
#[kernel(block = 32, dynamic_shared = 8 * 16)]
pub unsafe fn used_by_one_lane(
    /// [32]: the words that take part.
    words: *const u32,
    /// [9]: what lane 0 got: shuffle, vote, ballot, match, reduction, ldmatrix, movmatrix, mma f16, mma bf16.
    out: *mut u32,
) {
    unsafe {
        let lane = warp::lane_id();
        let word = *words.add(lane as usize);
        let room = shared::dynamic_shared::<u32>();
        room.add(lane).write(word);
        warp::sync_warp(u32::MAX);
        let shuffled = warp::shfl_xor_u32(word, 1);
        let any = warp::warp_vote_any(u32::MAX, word == 7);
        let ballot = warp::warp_vote_ballot(u32::MAX, word > 7);
        let same = warp::warp_match_any(u32::MAX, word / 2);
        let sum = warp::warp_reduce(u32::MAX, word, WarpReductionOp::Add);
        let [row] = ptx::ldmatrix_x1(room.byte_add(lane % 8 * 16));
        let moved = ptx::movmatrix_trans(word);
        let half = ptx::mma_m16n8k16_f16([word; 4], [word; 2], [0.0; 4]);
        let brain = ptx::mma_m16n8k16_bf16([word; 4], [word; 2], [0.0; 4]);
        if lane == 0 {
            *out = shuffled;
            *out.add(1) = any as u32;
            *out.add(2) = ballot;
            *out.add(3) = same;
            *out.add(4) = sum;
            *out.add(5) = row;
            *out.add(6) = moved;
            *out.add(7) = half[0].to_bits();
            *out.add(8) = brain[0].to_bits();
        }
    }
}

/// Each collective between two branches on the same condition.
#[kernel(block = 64, dynamic_shared = 2 * 8 * 16)]
pub unsafe fn between_branches(
    /// [64]: the words that take part.
    words: *const u32,
    /// [64, 2]: before the collectives; after them.
    out: *mut u32,
) {
    unsafe {
        let t = thread::thread_idx_x();
        let lane = t % 32;
        let word = *words.add(t as usize);
        let room = shared::dynamic_shared::<u32>().add(t / 32 * 32);
        room.add(lane).write(word);
        let out = out.add(t as usize * 2);
        if lane == 0 {
            *out = 1;
        }
        thread::sync_threads();
        let mut result = 0;
        if lane == 0 {
            result = 10;
        }
        let [row] = ptx::ldmatrix_x1(room.byte_add(lane % 8 * 16));
        if lane == 0 {
            result += row;
        }
        let moved = ptx::movmatrix_trans(word);
        if lane == 0 {
            result += moved;
        }
        let half = ptx::mma_m16n8k16_f16([word; 4], [word; 2], [0.0; 4]);
        if lane == 0 {
            result += half[0].to_bits();
        } else {
            *out = 2;
        }
        let brain = ptx::mma_m16n8k16_bf16([word; 4], [word; 2], [0.0; 4]);
        if lane == 0 {
            result += brain[0].to_bits();
        }
        let shuffled = warp::shfl_xor_u32(word, 1);
        if lane == 0 {
            result += shuffled;
        }
        *out.add(1) = result;
    }
}
