//! What the kernels that rank blocks share: masses in fixed point, sums over a CTA, a sort in shared memory.
//!
//! Sums are of integers and keys are all different, so that no result depends on who comes first.
//!
//! Trap: what takes a buffer, and the sort, contain barriers: all threads of the CTA make these calls.

use crate::numeric::fixed_mass;
use cuda_std::shared::SharedPtr;
use cuda_std::thread::{sync_threads, thread_idx_x};
use cuda_std::warp::{lane_id, shfl_up_u32, shfl_xor_u32};

use crate::plan::{THREADS, WARPS};

/// The estimated masses of one KV head.
#[derive(Clone, Copy)]
pub struct Masses {
    /// log2, `[group, max_blocks]`.
    pub log_mass: *const f32,
    /// Width of a row.
    pub max_blocks: usize,
}

impl Masses {
    /// log2 mass of a block for query head `g`.
    ///
    /// # Safety
    /// `g` is below the group, `block` is one of the row's.
    #[inline(always)]
    pub unsafe fn log_mass(self, g: usize, block: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.log_mass.add(g * self.max_blocks + block) }
    }

    /// Its mass in fixed point, relative to the head's peak.
    ///
    /// # Safety
    /// As [`Self::log_mass`].
    #[inline(always)]
    pub unsafe fn fixed(self, g: usize, block: usize, peak: f32) -> u32 {
        // SAFETY: as above.
        fixed_mass(unsafe { self.log_mass(g, block) }, peak)
    }

    /// Largest log2 mass of head `g` among blocks `from .. to`. Every thread gets it.
    ///
    /// # Safety
    /// As [`Self::log_mass`], and [`reduce`].
    #[inline(always)]
    pub unsafe fn peak(self, buffer: SharedPtr<u64>, g: usize, from: usize, to: usize) -> f32 {
        let mut top = f32::NEG_INFINITY;
        let mut i = from + thread_idx_x() as usize;
        while i < to {
            // SAFETY: the caller's promise.
            let x = unsafe { self.log_mass(g, i) };
            top = if x > top { x } else { top };
            i += THREADS;
        }
        // SAFETY: the caller's promise.
        unordered(unsafe { reduce(buffer, ordered(top), |a, b| if a > b { a } else { b }) } as u32)
    }

    /// Mass of head `g` in the blocks `block(from) .. block(to)`. Every thread gets it.
    ///
    /// # Safety
    /// As [`Self::log_mass`], and [`reduce`].
    #[inline(always)]
    pub unsafe fn sum(
        self,
        buffer: SharedPtr<u64>,
        g: usize,
        peak: f32,
        [from, to]: [usize; 2],
        block: impl Fn(usize) -> usize,
    ) -> u64 {
        let mut sum = 0u64;
        let mut i = from + thread_idx_x() as usize;
        while i < to {
            // SAFETY: the caller's promise.
            sum += unsafe { self.fixed(g, block(i), peak) } as u64;
            i += THREADS;
        }
        // SAFETY: the caller's promise.
        unsafe { reduce(buffer, sum, |a, b| a + b) }
    }

    /// The least number of ranks, `from` to `to` at most, with which head `g` has the mass `needed`, `seen` of it
    /// before rank `from`. One thread gets it, the others 0; all get 0 where the mass is not reached here.
    ///
    /// # Safety
    /// As [`Self::log_mass`], and [`sum_before`].
    #[inline(always)]
    pub unsafe fn reached(
        self,
        buffer: SharedPtr<u64>,
        (g, peak): (usize, f32),
        [seen, needed]: [u64; 2],
        [from, to]: [usize; 2],
        block: impl Fn(usize) -> usize,
    ) -> u64 {
        let share = (to - from).div_ceil(THREADS);
        let from = from + thread_idx_x() as usize * share;
        let from = if from < to { from } else { to };
        let to = if from + share < to { from + share } else { to };
        let mut own = 0u64;
        let mut i = from;
        while i < to {
            // SAFETY: the caller's promise.
            own += unsafe { self.fixed(g, block(i), peak) } as u64;
            i += 1;
        }
        // The prefix in which the mass reaches the need ends in one thread's share.
        // SAFETY: the caller's promise.
        let mut seen = seen + unsafe { sum_before(buffer, own) };
        let mut length = 0u64;
        let mut i = from;
        while i < to {
            let before = seen;
            // SAFETY: the caller's promise.
            seen += unsafe { self.fixed(g, block(i), peak) } as u64;
            if before < needed && needed <= seen {
                length = i as u64 + 1;
            }
            i += 1;
        }
        length
    }
}

/// f32 bits as an integer that is ordered like the number.
#[inline(always)]
fn ordered(x: f32) -> u64 {
    let bits = x.to_bits();
    (bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 }) as u64
}

/// The number behind [`ordered`].
#[inline(always)]
fn unordered(bits: u32) -> f32 {
    f32::from_bits(bits ^ if bits >> 31 == 1 { 1 << 31 } else { u32::MAX })
}

/// The value of another lane, as two shuffles.
#[inline(always)]
unsafe fn shuffled(value: u64, shuffle: impl Fn(u32) -> u32) -> u64 {
    (shuffle((value >> 32) as u32) as u64) << 32 | shuffle(value as u32) as u64
}

/// Combines one value a thread, in any order; every thread gets the result. Contains a barrier, and ends with
/// the buffer free.
///
/// # Safety
/// All [`THREADS`] threads of the CTA make this call; `buffer` has [`WARPS`] words that nobody else uses.
#[inline(always)]
pub unsafe fn reduce(buffer: SharedPtr<u64>, value: u64, combine: impl Fn(u64, u64) -> u64) -> u64 {
    unsafe {
        let mut value = value;
        cuda_std::unroll!(s < 5, max 6, {
            value = combine(value, shuffled(value, |x| shfl_xor_u32(x, 16 >> s)));
        });
        if lane_id() == 0 {
            buffer.add(thread_idx_x() / 32).write(value);
        }
        sync_threads();
        let mut result = buffer.read();
        cuda_std::unroll!(w < WARPS - 1, max 8, {
            result = combine(result, buffer.add(w as u32 + 1).read());
        });
        sync_threads();
        result
    }
}

/// Sum of the values of all threads before the calling one. Contains a barrier, and ends with the buffer free.
///
/// # Safety
/// As [`reduce`].
#[inline(always)]
pub unsafe fn sum_before(buffer: SharedPtr<u64>, value: u64) -> u64 {
    unsafe {
        let (lane, warp) = (lane_id(), thread_idx_x() / 32);
        let mut sum = value;
        cuda_std::unroll!(s < 5, max 6, {
            let below = shuffled(sum, |x| shfl_up_u32(x, 1 << s));
            sum += if lane >= 1 << s { below } else { 0 };
        });
        if lane == 31 {
            buffer.add(warp).write(sum);
        }
        sync_threads();
        sum -= value;
        cuda_std::unroll!(w < WARPS - 1, max 8, {
            sum += if (w as u32) < warp { buffer.add(w as u32).read() } else { 0 };
        });
        sync_threads();
        sum
    }
}

/// Bitonic sort of `n` keys (a power of two), largest first. Where there is anything to sort, it ends with a barrier.
///
/// # Safety
/// All `THREADS` threads of the CTA make this call; a barrier lies between the writing of the keys and the call.
#[inline(always)]
pub unsafe fn sort_descending<const THREADS: usize>(keys: SharedPtr<u64>, n: usize) {
    unsafe {
        let mut run = 2;
        while run <= n {
            let mut distance = run / 2;
            while distance > 0 {
                let mut pair = thread_idx_x() as usize;
                while pair < n / 2 {
                    let low = 2 * pair - pair % distance;
                    let (a, b) = (keys.add(low as u32), keys.add((low + distance) as u32));
                    let (x, y) = (a.read(), b.read());
                    let descending = low & run == 0;
                    if (x < y) == descending {
                        a.write(y);
                        b.write(x);
                    }
                    pair += THREADS;
                }
                sync_threads();
                distance /= 2;
            }
            run *= 2;
        }
    }
}
