//! The pages of a plan as one warp meets them: ranks `first`, `first + stride`, .. below an end.
//!
//! A page costs two dependent loads (the plan names a block, the table its slot), so a warp makes them for 32
//! pages at once, lane i for page i, and one batch ahead; a page then costs one shuffle. Only a sequence's last
//! block can be incomplete: one ballot a batch says which page that is.
//!
//! Attention-specific, hence here and not in `cuda_std`: it knows plans, block tables and lengths.

use crate::layout::BLOCK;
use crate::row::Row;
use cuda_std::tile::GlobalTile;
use cuda_std::warp::{shfl_idx_u32, warp_vote_ballot};

/// Rows of a page: the keys of a block, then its values.
pub const PAGE_ROWS: usize = 2 * BLOCK;

/// A page to read.
#[derive(Clone, Copy)]
pub struct Page<T, const D: usize> {
    /// Keys `[16, D]`, then values `[16, D]`.
    pub tile: GlobalTile<T, PAGE_ROWS, D>,
    /// Tokens in it, 1 to 16.
    pub tokens: u32,
}

/// The pages of a warp.
pub struct Pages<'row, T> {
    row: &'row Row<T>,
    order: *const u32,
    /// Rank of this lane's page in the batch to be loaded next.
    rank: u32,
    stride: u32,
    end: u32,
    /// Slot of this lane's page, in this batch and in the next.
    slot: u32,
    next_slot: u32,
    next_incomplete: bool,
    /// Lanes whose page of this batch is incomplete.
    incomplete: u32,
    /// Index of the incomplete page, if it was taken.
    incomplete_page: u32,
    taken: u32,
    total: u32,
}

impl<'row, T> Pages<'row, T> {
    /// The pages of ranks `first`, `first + stride`, .. below `end` of a plan.
    ///
    /// # Safety
    /// `order` names blocks of the row at all ranks below `end`; all 32 lanes make this call, `lane` their own.
    #[inline(always)]
    pub unsafe fn new(
        row: &'row Row<T>,
        order: *const u32,
        first: u32,
        stride: u32,
        end: u32,
        lane: u32,
    ) -> Self {
        let mut pages = Pages {
            row,
            order,
            rank: first + lane * stride,
            stride,
            end,
            slot: 0,
            next_slot: 0,
            next_incomplete: false,
            incomplete: 0,
            incomplete_page: u32::MAX,
            taken: 0,
            total: if first < end { (end - first).div_ceil(stride) } else { 0 },
        };
        // SAFETY: the caller's contract.
        unsafe {
            pages.load_next();
            pages.turn_batch();
        }
        pages
    }

    /// Pages in all.
    #[inline(always)]
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Tokens of page `i`, one of those taken.
    #[inline(always)]
    pub fn tokens(&self, i: u32) -> u32 {
        if i == self.incomplete_page { self.row.tokens % BLOCK as u32 } else { BLOCK as u32 }
    }

    /// Takes the next page, if there is one.
    ///
    /// # Safety
    /// All 32 lanes make this call.
    #[inline(always)]
    pub unsafe fn take<const D: usize>(&mut self) -> Option<Page<T, D>> {
        if self.taken == self.total {
            return None;
        }
        let lane = self.taken % 32;
        // SAFETY: the caller's contract.
        unsafe {
            if lane == 0 && self.taken > 0 {
                self.turn_batch();
            }
            if self.incomplete >> lane & 1 == 1 {
                self.incomplete_page = self.taken;
            }
            let tokens = self.tokens(self.taken);
            self.taken += 1;
            let slot = shfl_idx_u32(self.slot, lane);
            // The table names slots of the arena.
            Some(Page { tile: GlobalTile::new(self.row.slot_at::<D>(slot)), tokens })
        }
    }

    /// The loaded batch becomes the current one; the loads of the one after it start.
    #[inline(always)]
    unsafe fn turn_batch(&mut self) {
        self.slot = self.next_slot;
        // SAFETY: the caller's contract: all lanes are here.
        unsafe {
            self.incomplete = warp_vote_ballot(u32::MAX, self.next_incomplete);
            self.load_next();
        }
    }

    #[inline(always)]
    unsafe fn load_next(&mut self) {
        self.next_incomplete = false;
        if self.rank < self.end {
            // SAFETY: below the end.
            unsafe {
                let block = *self.order.add(self.rank as usize);
                self.next_slot = self.row.slot_id(block);
                self.next_incomplete = (block + 1) * BLOCK as u32 > self.row.tokens;
            }
        }
        self.rank += 32 * self.stride;
    }
}
