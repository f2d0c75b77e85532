//! Online softmax of a warp over pages of 16 tokens for 8 query heads, on the accumulator of S^T = K Q^T.
//!
//! The accumulator's rows are tokens, its columns heads; each lane holds four tokens' worth of two heads
//! (`cuda_std::tile::layout::c_element`). Everything is in the log2 domain.
//!
//! **Lazy rescale.** Weights are `2^(t - m)` for a reference `m` that need not be the maximum, only near it: it
//! is set 2^6 below the largest score, and moved when some score exceeds it by more than 2^14. Weights then stay
//! below 2^14 (f16 ends at 65504) and their sum above 2^6, so that f16's subnormals (below 2^-14) are 2^-20 of
//! it. Without the move a page needs no maximum across lanes and no rescaling at all: one vote.
//!
//! Trap: `m` starts finite, so that no difference is NaN; masked scores are -inf, so their weight is exactly 0.

use cuda_std::ptx::{ex2_approx, max, min};
use cuda_std::tile::{Accumulator, layout};
use cuda_std::warp::{shfl_xor_f32, warp_vote_any};

use crate::layout::BLOCK;
use crate::numeric::NOTHING;

/// The reference lies this far below the largest score when it is set, log2.
pub const HEADROOM: f32 = 6.0;
/// A score this far above the reference moves it, log2.
pub const SLACK: f32 = 14.0;

/// Reference and sum of a lane's two heads.
pub struct OnlineSoftmax {
    m: [f32; 2],
    /// Sum over the lane's own tokens.
    l: [f32; 2],
}

impl OnlineSoftmax {
    /// Nothing read yet.
    #[inline(always)]
    pub fn new() -> Self {
        OnlineSoftmax { m: [NOTHING; 2], l: [0.0; 2] }
    }

    /// The weights of a page. scores: K Q^T `[16 tokens, 8 heads]`; `scale` takes them into the log2 domain;
    /// tokens from `tokens` on get no weight. `rescale` is called with a factor for each of the lane's heads
    /// when what was summed so far has to be scaled.
    ///
    /// # Safety
    /// All 32 lanes make this call, `lane` their own.
    #[inline(always)]
    pub unsafe fn weights(
        &mut self,
        scores: Accumulator,
        scale: f32,
        tokens: u32,
        lane: u32,
        rescale: impl FnOnce([f32; 2]),
    ) -> Accumulator {
        let mut t = scores.0;
        cuda_std::unroll!(i < 4, max 4, {
            // As `numeric::finite_score`, in two instructions: NaN becomes -1e30.
            t[i] = min(max(t[i] * scale, -1e30), 1e30);
        });
        if tokens < BLOCK as u32 {
            cuda_std::unroll!(i < 4, max 4, {
                let (token, _) = layout::c_element(lane as usize, i);
                t[i] = if (token as u32) < tokens { t[i] } else { f32::NEG_INFINITY };
            });
        }
        let top = [max(t[0], t[2]), max(t[1], t[3])];
        // SAFETY: the caller's contract.
        unsafe {
            let above = top[0] > self.m[0] + SLACK || top[1] > self.m[1] + SLACK;
            if warp_vote_any(u32::MAX, above) {
                rescale(self.raise(top));
            }
        }
        cuda_std::unroll!(i < 4, max 4, {
            t[i] = ex2_approx(t[i] - self.m[i % 2]);
        });
        self.l[0] += t[0] + t[2];
        self.l[1] += t[1] + t[3];
        Accumulator(t)
    }

    /// Moves the references to the largest scores seen; returns the factors for what was summed.
    #[inline(always)]
    unsafe fn raise(&mut self, mut top: [f32; 2]) -> [f32; 2] {
        let mut factor = [0.0; 2];
        cuda_std::unroll!(h < 2, max 2, {
            // The lanes of a head are 4 apart.
            cuda_std::unroll!(s < 3, max 3, {
                // SAFETY: the caller's contract.
                top[h] = max(top[h], unsafe { shfl_xor_f32(top[h], 4 << s) });
            });
            let m = max(self.m[h], top[h] - HEADROOM);
            factor[h] = ex2_approx(self.m[h] - m);
            self.m[h] = m;
            self.l[h] *= factor[h];
        });
        factor
    }

    /// Reference and sum over all the warp's tokens, of the lane's two heads.
    ///
    /// # Safety
    /// All 32 lanes make this call.
    #[inline(always)]
    pub unsafe fn totals(&self) -> [(f32, f32); 2] {
        let mut l = self.l;
        cuda_std::unroll!(h < 2, max 2, {
            cuda_std::unroll!(s < 3, max 3, {
                // SAFETY: the caller's contract.
                l[h] += unsafe { shfl_xor_f32(l[h], 4 << s) };
            });
        });
        [(self.m[0], l[0]), (self.m[1], l[1])]
    }
}
