//! Tiles in memory: contiguous in global memory, swizzled in shared memory.
//!
//! A shared tile is [`Filling`] while copies into it may be on their way, and can then only be copied into; it
//! is [`Ready`] once [`crate::pipeline`] has waited for them, and can then only be read.
//!
//! A lane's address is `base + its own offset`, XORed with a constant a step: the offset is the same for all
//! stages of a ring and is computed once.

use core::marker::PhantomData;

use super::layout::{CHUNK, a_row, a_row_transposed, chunk_offset, swizzle, swizzle_mask};
use super::register::FragmentA;
use crate::ptx::{MmaElement, cp_async_16_zfill, ldmatrix_x4, ldmatrix_x4_trans};
use crate::shared::SharedPtr;

/// `ROWS` x `COLUMNS` elements of 16 bits, contiguous and row-major in global memory, 16-byte aligned.
#[derive(Clone, Copy)]
pub struct GlobalTile<T, const ROWS: usize, const COLUMNS: usize>(*const T);

impl<T, const ROWS: usize, const COLUMNS: usize> GlobalTile<T, ROWS, COLUMNS> {
    /// The tile at `first`.
    ///
    /// # Safety
    /// `first` is a global, 16-byte aligned address of `ROWS * COLUMNS` elements.
    #[inline(always)]
    pub const unsafe fn new(first: *const T) -> Self {
        Self(first)
    }

    /// Rows `FIRST .. FIRST + COUNT`.
    #[inline(always)]
    pub const fn rows<const FIRST: usize, const COUNT: usize>(self) -> GlobalTile<T, COUNT, COLUMNS> {
        const { assert!(FIRST + COUNT <= ROWS, "rows outside the tile") };
        // SAFETY: inside the tile.
        GlobalTile(unsafe { self.0.add(FIRST * COLUMNS) })
    }
}

/// What may be done with a shared tile now.
pub trait State: private::Sealed {}

/// Copies may be on their way: write only.
pub struct Filling;

/// All copies have arrived: read only.
pub struct Ready;

impl State for Filling {}
impl State for Ready {}

mod private {
    pub trait Sealed {}
    impl Sealed for super::Filling {}
    impl Sealed for super::Ready {}
}

/// `ROWS` x `COLUMNS` elements of 16 bits in shared memory, chunks swizzled ([`super::layout::swizzle`]), in
/// state `S`. Tiles come from a [`crate::pipeline::Ring`], which knows when they are ready, and live as long as
/// its turn.
pub struct SharedTile<'turn, T, const ROWS: usize, const COLUMNS: usize, S: State> {
    base: SharedPtr<T>,
    state: PhantomData<(S, &'turn ())>,
}

impl<'turn, T, const ROWS: usize, const COLUMNS: usize, S: State> SharedTile<'turn, T, ROWS, COLUMNS, S> {
    /// Bytes of the tile.
    pub const BYTES: usize = ROWS * COLUMNS * 2;

    /// The tile at `base`.
    ///
    /// # Safety
    /// `base` is aligned to 128 bytes, so that the swizzle is an XOR of address bits, and the tile is in state `S` for `'turn`.
    #[inline(always)]
    pub(crate) unsafe fn new(base: SharedPtr<T>) -> Self {
        const {
            assert!(size_of::<T>() == 2, "tiles hold elements of 16 bits");
            assert!(ROWS.is_multiple_of(8), "a tile has a multiple of 8 rows");
        }
        Self { base, state: PhantomData }
    }

    /// Rows `FIRST .. FIRST + COUNT`: a tile of its own, as the swizzle's period is 8 rows.
    #[inline(always)]
    fn piece<const FIRST: usize, const COUNT: usize>(&self) -> SharedTile<'turn, T, COUNT, COLUMNS, S> {
        const {
            assert!(FIRST + COUNT <= ROWS, "rows outside the tile");
            assert!(
                FIRST.is_multiple_of(8) && COUNT.is_multiple_of(8),
                "rows are taken in eights, the swizzle's period"
            );
        }
        SharedTile { base: self.base.byte_add((FIRST * COLUMNS * 2) as u32), state: PhantomData }
    }
}

impl<T, const ROWS: usize, const COLUMNS: usize> SharedTile<'_, T, ROWS, COLUMNS, Filling> {
    /// Rows `FIRST .. FIRST + COUNT`, to copy into.
    #[inline(always)]
    pub fn rows_mut<const FIRST: usize, const COUNT: usize>(
        &mut self,
    ) -> SharedTile<'_, T, COUNT, COLUMNS, Filling> {
        self.piece::<FIRST, COUNT>()
    }

    /// Starts copying the first `rows` rows of `source` with the whole warp; zeros go into the others, which are
    /// not read. `cp.async`, 16 bytes a lane and step.
    ///
    /// # Safety
    /// All 32 lanes make this call, `lane` their own, `rows` the same; `source` holds `rows` rows.
    #[inline(always)]
    pub unsafe fn copy(&mut self, source: GlobalTile<T, ROWS, COLUMNS>, rows: u32, lane: u32) {
        let (chunks, lane) = (COLUMNS / CHUNK, lane as usize);
        if 32 % chunks == 0 {
            // A step covers whole rows; the swizzle is linear, so that the steps differ by constants.
            let step_rows = 32 / chunks;
            let (row, chunk) = (lane / chunks, lane % chunks);
            let target = self.base.byte_add(chunk_offset(COLUMNS, row, chunk) as u32);
            let left = rows as i32 - row as i32;
            crate::unroll!(i < ROWS * (COLUMNS / CHUNK) / 32, max 16, {
                let first = i * step_rows;
                let to = target
                    .byte_xor((swizzle(COLUMNS, first) * 16) as u32)
                    .byte_add((first * COLUMNS * 2) as u32);
                let bytes = if first as i32 >= left { 0 } else { 16 };
                // SAFETY: inside both tiles; lanes write different chunks.
                unsafe { cp_async_16_zfill(to, source.0.add(first * COLUMNS + lane * CHUNK), bytes) };
            });
        } else {
            crate::unroll!(i < ROWS * (COLUMNS / CHUNK) / 32, max 16, {
                let (row, chunk) = ((32 * i + lane) / chunks, (32 * i + lane) % chunks);
                let to = self.base.byte_add(chunk_offset(COLUMNS, row, chunk) as u32);
                let bytes = if row as u32 >= rows { 0 } else { 16 };
                // SAFETY: as above.
                unsafe { cp_async_16_zfill(to, source.0.add((32 * i + lane) * CHUNK), bytes) };
            });
        }
    }
}

impl<T: MmaElement, const ROWS: usize, const COLUMNS: usize> SharedTile<'_, T, ROWS, COLUMNS, Ready> {
    /// Rows `FIRST .. FIRST + COUNT`.
    #[inline(always)]
    pub fn rows<const FIRST: usize, const COUNT: usize>(&self) -> SharedTile<'_, T, COUNT, COLUMNS, Ready> {
        self.piece::<FIRST, COUNT>()
    }

    /// The address of a lane's chunk, `step` pieces of 16 columns to the right.
    #[inline(always)]
    fn stepped(&self, (row, chunk): (usize, usize), step: usize) -> SharedPtr<T> {
        // `chunk` is 0 or 1, so the step does not touch its bit; what is beyond the swizzle is added.
        let mask = swizzle_mask(COLUMNS);
        self.base
            .byte_add(chunk_offset(COLUMNS, row, chunk) as u32)
            .byte_xor((((2 * step) & mask) * 16) as u32)
            .byte_add((((2 * step) & !mask) * 16) as u32)
    }

    /// Columns `16 step .. 16 step + 16` of a tile of 16 rows as A.
    ///
    /// # Safety
    /// All 32 lanes make this call, `lane` their own; `16 * step < COLUMNS`.
    #[inline(always)]
    pub unsafe fn a(&self, step: usize, lane: u32) -> FragmentA<T> {
        const { assert!(ROWS == 16, "A has 16 rows") };
        // SAFETY: the caller's contract.
        FragmentA::from_words(unsafe { ldmatrix_x4(self.stepped(a_row(lane as usize), step)) })
    }

    /// The transpose of columns `16 step .. 16 step + 16` of a tile of 16 rows as A: its 16 columns as rows.
    ///
    /// # Safety
    /// As [`Self::a`].
    #[inline(always)]
    pub unsafe fn a_transposed(&self, step: usize, lane: u32) -> FragmentA<T> {
        const { assert!(ROWS == 16, "the transposed A has 16 rows here") };
        // SAFETY: the caller's contract.
        FragmentA::from_words(unsafe {
            ldmatrix_x4_trans(self.stepped(a_row_transposed(lane as usize), step))
        })
    }
}
