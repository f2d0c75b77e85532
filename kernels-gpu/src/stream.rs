//! One warp attends to a stream of pages for up to 8 query heads of a KV head, on tensor cores.
//!
//! Operands exchanged: S^T = K Q^T and O^T = V^T P^T, so that heads lie on n = 8 of `mma.m16n8k16` and a group of
//! 8 needs no padding; the 16 tokens of a page are m in the first product and k in the second. K and V^T are
//! A fragments straight from the page in shared memory, Q^T stays in registers, P^T becomes a B fragment by two
//! `movmatrix`. The accumulators are O^T: 16 channels x 8 heads each.
//!
//! Pages come through the warp's own ring, `STAGES - 1` ahead; warps never wait for each other here.
//! More heads are more B fragments against the same A: 16 would be two accumulators a step.
//!
//! Trap: values of tokens beyond the length must be zeros in shared memory: their weight is zero, but 0 * NaN
//! is not. The copy fills them.

use crate::attend::query_stride;
use crate::element::KvElement;
use crate::layout::MAX_GROUP;
use crate::numeric::LOG2_E;
use crate::pages::{PAGE_ROWS, Pages};
use crate::softmax::OnlineSoftmax;
use cuda_std::pipeline::{Free, Ring};
use cuda_std::ptx::ld_nc_v4;
use cuda_std::shared::SharedPtr;
use cuda_std::tile::layout::CHUNK;
use cuda_std::tile::{Accumulator, FragmentB, layout};

/// Most steps of 16 channels.
const STEPS: usize = 8;

/// The scaled queries of a group as B fragments: Q^T `[D, 8 heads]`; heads beyond the group are zero.
pub struct Queries<T, const D: usize> {
    fragments: [FragmentB<T>; STEPS],
    /// Takes a product into the log2 domain.
    scale: f32,
    lane: u32,
}

impl<T: KvElement, const D: usize> Queries<T, D> {
    /// Copies the queries of a group to shared memory: read once by a CTA, in whole sectors, for all its warps.
    ///
    /// # Safety
    /// q: `[group, D]`, 16-byte aligned; `to` has [`crate::attend::query_bytes`]; the `THREADS` threads of the CTA, numbered by
    /// `thread`, make this call, and [`Self::load`] behind a barrier.
    #[inline(always)]
    pub unsafe fn share<const THREADS: usize>(q: *const T, group: u32, to: SharedPtr<T>, thread: usize) {
        const { assert!(MAX_GROUP * (D / CHUNK) <= THREADS, "a thread copies one chunk at most") };
        if thread < group as usize * (D / CHUNK) {
            let (head, chunk) = (thread / (D / CHUNK), thread % (D / CHUNK));
            let at = to.byte_add((head * query_stride(D) + 16 * chunk) as u32).cast::<u32>();
            // SAFETY: a chunk of a query of the group, and its place.
            unsafe { at.write_v4(ld_nc_v4(q.add(head * D + CHUNK * chunk))) };
        }
    }

    /// Loads the queries of a group from where [`Self::share`] left them.
    ///
    /// # Safety
    /// Shared, and a barrier since; `lane` is the calling lane.
    #[inline(always)]
    pub unsafe fn load(shared: SharedPtr<T>, group: u32, scale: f32, lane: u32) -> Self {
        const { assert!(D % 16 == 0 && D / 16 <= STEPS, "head_dim is a multiple of 16 up to 128") };
        let mut fragments = [FragmentB::ZERO; STEPS];
        let (_, head) = layout::b_element(lane as usize, 0, 0);
        if (head as u32) < group {
            cuda_std::unroll!(step < D / 16, max 8, {
                let mut words = [0; 2];
                cuda_std::unroll!(w < 2, max 2, {
                    let (channel, _) = layout::b_element(lane as usize, w, 0);
                    let at = shared.byte_add((head * query_stride(D) + 2 * (16 * step + channel)) as u32);
                    // SAFETY: inside the query of a head of the group.
                    words[w] = unsafe { at.cast::<u32>().read() };
                });
                fragments[step] = FragmentB::from_words(words);
            });
        }
        Queries { fragments, scale: scale * LOG2_E, lane }
    }
}

/// What a warp has read: softmax state and un-normalised output.
pub struct Stream<const D: usize> {
    /// Reference and sum.
    pub softmax: OnlineSoftmax,
    /// O^T: `output[i]` holds channels `16 i .. 16 i + 16` of 8 heads.
    pub output: [Accumulator; STEPS],
}

impl<const D: usize> Stream<D> {
    /// Nothing read yet.
    #[inline(always)]
    pub fn new() -> Self {
        Stream { softmax: OnlineSoftmax::new(), output: [Accumulator::ZERO; STEPS] }
    }

    /// Attends to the pages, in order, through a ring at `memory`.
    ///
    /// # Safety
    /// The pages are of a cache with head_dim `D`; `memory` is 128-byte aligned and has
    /// `Ring::<T, PAGE_ROWS, D, STAGES>::BYTES` bytes of this warp's own; all 32 lanes make this call.
    #[inline(always)]
    pub unsafe fn read<T: KvElement, const STAGES: usize>(
        &mut self,
        queries: &Queries<T, D>,
        mut pages: Pages<'_, T>,
        memory: SharedPtr<T>,
    ) {
        let lane = queries.lane;
        // SAFETY: the caller's contract.
        unsafe {
            let mut ring = Ring::<T, PAGE_ROWS, D, STAGES>::start(memory, |free| ask(&mut pages, free, lane));
            let mut page = 0;
            while page < pages.total() {
                let (tile, free) = ring.wait();
                ask(&mut pages, free, lane);

                // Two chains of products, as each waits for the one before it in its chain.
                let keys = tile.rows::<0, 16>();
                let mut scores = [Accumulator::ZERO; 2];
                cuda_std::unroll!(step < D / 16, max 8, {
                    scores[step % 2] = scores[step % 2].mma(keys.a(step, lane), queries.fragments[step]);
                });
                let scores = scores[0].plus(scores[1]);

                let output = &mut self.output;
                let weights =
                    self.softmax.weights(scores, queries.scale, pages.tokens(page), lane, |factor| {
                        cuda_std::unroll!(step < D / 16, max 8, { output[step].scale_columns(factor) });
                    });
                let weights = weights.to_b::<T>();

                let values = tile.rows::<16, 16>();
                cuda_std::unroll!(step < D / 16, max 8, {
                    output[step] = output[step].mma(values.a_transposed(step, lane), weights);
                });
                page += 1;
            }
            ring.finish();
        }
    }
}

/// Starts the copy of the next page, if there is one.
#[inline(always)]
unsafe fn ask<T: KvElement, const D: usize>(
    pages: &mut Pages<'_, T>,
    mut free: Free<'_, T, PAGE_ROWS, D>,
    lane: u32,
) {
    // SAFETY: the caller's contract, that of `Stream::read`.
    unsafe {
        if let Some(page) = pages.take::<D>() {
            let stage = free.tile();
            stage.rows_mut::<0, 16>().copy(page.tile.rows::<0, 16>(), page.tokens, lane);
            stage.rows_mut::<16, 16>().copy(page.tile.rows::<16, 16>(), page.tokens, lane);
        }
        free.commit();
    }
}
