//! A ring of shared tiles that one warp keeps filled ahead of itself: `cp.async` without barriers of the block.
//!
//! [`Ring::start`] asks for the first `STAGES - 1` tiles; then each [`Ring::wait`] gives the oldest one, ready,
//! and the stage that was read before it, free to be filled. A stage is committed when its [`Free`] goes, copied
//! into or not, so that groups and stages stay in step and the number that may be in flight is a constant.
//!
//! Each warp has its own ring: its lanes only wait for each other (`bar.warp.sync`), never for other warps.
//!
//! What was waited for is borrowed from the ring until the next wait:
//! ```
//! use cuda_std::{half::bf16, pipeline::Ring};
//! unsafe fn turns(ring: &mut Ring<bf16, 16, 64, 2>) {
//!     unsafe {
//!         let (tile, _free) = ring.wait();
//!         let _ = tile.a(0, 0);
//!     }
//! }
//! ```
//!
//! Reading a stage that was not waited for:
//! ```compile_fail,E0599
//! use cuda_std::{half::bf16, pipeline::Ring};
//! unsafe fn turns(ring: &mut Ring<bf16, 16, 64, 2>) {
//!     unsafe {
//!         let (_, mut free) = ring.wait();
//!         let _ = free.tile().a(0, 0);
//!     }
//! }
//! ```
//!
//! Keeping a stage beyond its turn:
//! ```compile_fail,E0499
//! use cuda_std::{half::bf16, pipeline::Ring};
//! unsafe fn turns(ring: &mut Ring<bf16, 16, 64, 2>) {
//!     unsafe {
//!         let (old, _) = ring.wait();
//!         let (_new, _) = ring.wait();
//!         let _ = old.a(0, 0);
//!     }
//! }
//! ```
//!
//! Writing to a stage that is being read:
//! ```compile_fail,E0599
//! use cuda_std::{half::bf16, pipeline::Ring, tile::GlobalTile};
//! unsafe fn turns(ring: &mut Ring<bf16, 16, 64, 2>, from: GlobalTile<bf16, 16, 64>) {
//!     unsafe {
//!         let (mut tile, _) = ring.wait();
//!         tile.copy(from, 16, 0);
//!     }
//! }
//! ```
//!
//! Copying a tile of another shape:
//! ```compile_fail,E0308
//! use cuda_std::{half::bf16, pipeline::Ring, tile::GlobalTile};
//! unsafe fn turns(ring: &mut Ring<bf16, 16, 64, 2>, from: GlobalTile<bf16, 16, 128>) {
//!     unsafe {
//!         let (_, mut free) = ring.wait();
//!         free.tile().copy(from, 16, 0);
//!     }
//! }
//! ```

use core::marker::PhantomData;

use crate::ptx::{cp_async_commit, cp_async_wait};
use crate::shared::SharedPtr;
use crate::tile::{Filling, Ready, SharedTile};
use crate::warp::sync_warp;

/// `STAGES` tiles of `ROWS` x `COLUMNS` elements in one warp's shared memory.
pub struct Ring<T, const ROWS: usize, const COLUMNS: usize, const STAGES: usize> {
    base: SharedPtr<T>,
    /// Byte offsets of the stages to read and to fill next.
    read: u32,
    fill: u32,
}

impl<T, const ROWS: usize, const COLUMNS: usize, const STAGES: usize> Ring<T, ROWS, COLUMNS, STAGES> {
    /// Bytes of shared memory that a warp's ring takes.
    pub const BYTES: usize = STAGES * ROWS * COLUMNS * 2;
    const STAGE: u32 = (ROWS * COLUMNS * 2) as u32;

    /// A ring at `base`, with its first `STAGES - 1` stages given to `fill` in turn.
    ///
    /// # Safety
    /// `base` is aligned to 128 bytes and has [`Self::BYTES`] bytes that only this warp touches until
    /// [`Self::finish`]; all 32 lanes make this call.
    #[inline(always)]
    pub unsafe fn start(base: SharedPtr<T>, mut fill: impl FnMut(Free<'_, T, ROWS, COLUMNS>)) -> Self {
        const {
            assert!(STAGES >= 2 && STAGES <= 8, "a ring has 2 to 8 stages");
            assert!(
                (ROWS * COLUMNS * 2).is_multiple_of(128),
                "stages keep the tiles' alignment of 128 bytes"
            );
        }
        let mut ring = Ring { base, read: 0, fill: 0 };
        crate::unroll!(i < STAGES - 1, max 8, { fill(ring.next_free()) });
        ring
    }

    /// Waits for the oldest stage. Also gives the stage that was read in the turn before (in the first turn, the
    /// one that [`Self::start`] left): fill it before computing, so that the copy runs meanwhile.
    ///
    /// # Safety
    /// All 32 lanes make this call; what is read of the tile was copied into it.
    #[inline(always)]
    pub unsafe fn wait<'turn>(
        &'turn mut self,
    ) -> (SharedTile<'turn, T, ROWS, COLUMNS, Ready>, Free<'turn, T, ROWS, COLUMNS>) {
        match STAGES {
            2 => cp_async_wait::<0>(),
            3 => cp_async_wait::<1>(),
            4 => cp_async_wait::<2>(),
            5 => cp_async_wait::<3>(),
            6 => cp_async_wait::<4>(),
            7 => cp_async_wait::<5>(),
            _ => cp_async_wait::<6>(),
        }
        // SAFETY: the caller's contract. The other lanes' copies have arrived too, and all lanes are done with
        // the stage read before.
        unsafe { sync_warp(u32::MAX) };
        // SAFETY: inside the ring, whose alignment its stages keep; waited for.
        let tile = unsafe { SharedTile::new(self.base.byte_add(self.read)) };
        self.read = Self::after(self.read);
        (tile, self.next_free())
    }

    /// Gives the ring's memory back, when the warp is done with it.
    ///
    /// # Safety
    /// All 32 lanes make this call; every stage that was copied into has been waited for.
    #[inline(always)]
    pub unsafe fn finish(self) -> SharedPtr<T> {
        // SAFETY: the caller's contract.
        unsafe { sync_warp(u32::MAX) };
        self.base
    }

    #[inline(always)]
    fn next_free<'turn>(&mut self) -> Free<'turn, T, ROWS, COLUMNS> {
        // SAFETY: inside the ring; its last reader is behind the wait before this.
        let tile = unsafe { SharedTile::new(self.base.byte_add(self.fill)) };
        self.fill = Self::after(self.fill);
        Free { tile, turn: PhantomData }
    }

    #[inline(always)]
    fn after(offset: u32) -> u32 {
        if offset == (STAGES as u32 - 1) * Self::STAGE { 0 } else { offset + Self::STAGE }
    }
}

/// A stage that nobody reads. Its copies are committed as one group when it is dropped.
#[must_use = "a free stage is there to be filled"]
pub struct Free<'turn, T, const ROWS: usize, const COLUMNS: usize> {
    tile: SharedTile<'turn, T, ROWS, COLUMNS, Filling>,
    turn: PhantomData<&'turn mut ()>,
}

impl<'turn, T, const ROWS: usize, const COLUMNS: usize> Free<'turn, T, ROWS, COLUMNS> {
    /// The stage's tile, to copy into.
    #[inline(always)]
    pub fn tile(&mut self) -> &mut SharedTile<'turn, T, ROWS, COLUMNS, Filling> {
        &mut self.tile
    }

    /// Nothing more will be copied into it.
    #[inline(always)]
    pub fn commit(self) {}
}

impl<T, const ROWS: usize, const COLUMNS: usize> Drop for Free<'_, T, ROWS, COLUMNS> {
    #[inline(always)]
    fn drop(&mut self) {
        cp_async_commit();
    }
}
