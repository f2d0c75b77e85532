//! What the warps of a block have read, side by side in shared memory, and how parts are combined.
//!
//! A warp's part is its output `[8 heads, D + 4]` and then (m, l) `[8 heads, 2]`, f32, at the start of the warp's
//! own memory, so that storing needs no barrier. Four more words a head spread the accumulators' rows over all
//! banks.
//!
//! Parts are added in a fixed order, relative to the largest maximum: the result does not depend on who
//! finished first.

use cuda_std::ptx::ex2_approx;
use cuda_std::shared::SharedPtr;
use cuda_std::tile::layout;

use crate::numeric::{NOTHING, fma};
use crate::stream::Stream;

/// Query heads of a part: n of `mma.m16n8k16`.
pub const HEADS: usize = 8;

/// Words of a warp's part.
pub const fn part_words(head_dim: usize) -> usize {
    HEADS * (head_dim + 4) + 2 * HEADS
}

/// The parts of a block's warps, `stride` bytes apart.
#[derive(Clone, Copy)]
pub struct WarpParts<const D: usize> {
    first: SharedPtr<f32>,
    stride: u32,
}

impl<const D: usize> WarpParts<D> {
    /// Parts at the start of pieces of `stride` bytes.
    #[inline(always)]
    pub fn new(first: SharedPtr<f32>, stride: usize) -> Self {
        WarpParts { first, stride: stride as u32 }
    }

    #[inline(always)]
    fn o(self, warp: usize, head: usize, channel: usize) -> SharedPtr<f32> {
        self.first.byte_add(warp as u32 * self.stride).add((head * (D + 4) + channel) as u32)
    }

    #[inline(always)]
    fn ml(self, warp: usize, head: usize) -> SharedPtr<f32> {
        self.first.byte_add(warp as u32 * self.stride).add((HEADS * (D + 4) + 2 * head) as u32)
    }

    /// Stores the calling warp's part.
    ///
    /// # Safety
    /// All 32 lanes make this call, `lane` their own, `warp` theirs; `part_words(D)` words of the warp's own.
    #[inline(always)]
    pub unsafe fn store(self, stream: &Stream<D>, warp: usize, lane: u32) {
        // SAFETY: the caller's contract.
        unsafe {
            cuda_std::unroll!(step < D / 16, max 8, {
                cuda_std::unroll!(i < 4, max 4, {
                    let (channel, head) = layout::c_element(lane as usize, i);
                    self.o(warp, head, 16 * step + channel).write(stream.output[step].0[i]);
                });
            });
            let [(m0, l0), (m1, l1)] = stream.softmax.totals();
            // The lanes of row 0 hold two heads each.
            if lane < 4 {
                self.ml(warp, 2 * lane as usize).write_v4([m0, l0, m1, l1]);
            }
        }
    }

    /// Maximum and sum of a warp's part.
    ///
    /// # Safety
    /// Stored, and a barrier since.
    #[inline(always)]
    pub unsafe fn state(self, warp: usize, head: usize) -> [f32; 2] {
        // SAFETY: the caller's contract.
        unsafe { self.ml(warp, head).read_v2() }
    }

    /// Output of a warp's part.
    ///
    /// # Safety
    /// As [`Self::state`].
    #[inline(always)]
    pub unsafe fn output(self, warp: usize, head: usize, channel: usize) -> f32 {
        // SAFETY: the caller's contract.
        unsafe { self.o(warp, head, channel).read() }
    }
}

/// One channel of one head while parts are combined: first the maximum of all of them, then their sums in the
/// order of the calls.
#[derive(Clone, Copy)]
pub struct Column {
    /// Reference, log2.
    pub m: f32,
    /// Sum of weights relative to `m`.
    pub l: f32,
    /// Un-normalised output.
    pub o: f32,
}

impl Column {
    /// Nothing read.
    #[inline(always)]
    pub fn new() -> Self {
        Column { m: NOTHING, l: 0.0, o: 0.0 }
    }

    /// Takes a part's reference into account; all of these come before the first [`Self::add`].
    #[inline(always)]
    pub fn raise(&mut self, m: f32) {
        self.m = if m > self.m { m } else { self.m };
    }

    /// Adds a part.
    #[inline(always)]
    pub fn add(&mut self, m: f32, l: f32, o: f32) {
        let weight = ex2_approx(m - self.m);
        self.l = fma(l, weight, self.l);
        self.o = fma(o, weight, self.o);
    }

    /// Takes all warps' references into account.
    ///
    /// # Safety
    /// As [`WarpParts::state`].
    #[inline(always)]
    pub unsafe fn raise_to<const D: usize, const WARPS: usize>(&mut self, parts: WarpParts<D>, head: usize) {
        cuda_std::unroll!(w < WARPS, max 4, {
            // SAFETY: the caller's contract.
            self.raise(unsafe { parts.state(w, head) }[0]);
        });
    }

    /// Adds all warps' parts.
    ///
    /// # Safety
    /// As [`WarpParts::state`].
    #[inline(always)]
    pub unsafe fn add_all<const D: usize, const WARPS: usize>(
        &mut self,
        parts: WarpParts<D>,
        head: usize,
        channel: usize,
    ) {
        cuda_std::unroll!(w < WARPS, max 4, {
            // SAFETY: the caller's contract.
            unsafe {
                let [m, l] = parts.state(w, head);
                self.add(m, l, parts.output(w, head, channel));
            }
        });
    }
}
