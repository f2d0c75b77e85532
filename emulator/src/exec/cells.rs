//! Where the race checker keeps its cells: pages of global memory, made at the first touch.
//!
//! A device keeps the cells of a launch for the next one (`Spare`), as memory that is new to the process
//! costs a page fault every 4 KiB: for short launches as much as all checks together.

use super::paged::Paged;
use super::race::{Cell, FRESH};
use crate::memory::Memory;
use std::cell::UnsafeCell;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Cells of a page of global memory.
const PAGE: usize = 1024;

/// A page of cells; see `Pages`.
struct Page(Box<[UnsafeCell<Cell>]>);

// SAFETY: a cell is reached only by the thread that has its word for itself (`Pages::cells`).
unsafe impl Sync for Page {}

/// Cells of global memory: by allocation, then by page, made at the first touch.
pub(super) struct Pages<'a> {
    pages: Paged<Page, { 4 * PAGE }>,
    spare: &'a Spare,
}

impl<'a> Pages<'a> {
    pub fn new(mem: &Memory, spare: &'a Spare) -> Pages<'a> {
        Pages { pages: Paged::new(mem), spare }
    }

    /// The cells of `total` bytes at `offset` of allocation `i`, which lie in one page as all aligned
    /// accesses do.
    ///
    /// # Safety
    /// Between threads, the caller must have the words for itself; and it must drop the result before
    /// it asks again.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn cells(&self, i: usize, size: u64, offset: usize, total: usize) -> &mut [Cell] {
        let (cells, at) = (self.pages.get(i, size, offset, || self.spare.page()), offset / 4 % PAGE);
        let end = (at + (offset % 4 + total).div_ceil(4)).min(PAGE);
        let cells = &cells.0[at..end];
        // SAFETY: in bounds and initialised; nobody else has a reference to any of them, says the caller.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }
}

impl Drop for Pages<'_> {
    fn drop(&mut self) {
        lock(&self.spare.pages).extend(self.pages.take());
    }
}

/// Cells that no launch uses: at most as many as one launch had.
#[derive(Default)]
pub(crate) struct Spare {
    pages: Mutex<Vec<Page>>,
    shared: Mutex<Vec<Vec<Cell>>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spare {
    fn page(&self) -> Page {
        let Some(mut page) = lock(&self.pages).pop() else {
            return Page((0..PAGE).map(|_| UnsafeCell::new(FRESH)).collect());
        };
        page.0.iter_mut().for_each(|c| *c.get_mut() = FRESH);
        page
    }

    /// Room for `n` cells of shared memory, with whatever is in them.
    pub(super) fn take_shared(&self, n: usize) -> Vec<Cell> {
        let mut cells = lock(&self.shared).pop().unwrap_or_default();
        cells.resize(n, FRESH);
        cells
    }

    /// Gives it back.
    pub(super) fn give_shared(&self, cells: Vec<Cell>) {
        if cells.capacity() > 0 {
            lock(&self.shared).push(cells);
        }
    }
}

// A copy of a device has none of its own yet.
impl Clone for Spare {
    fn clone(&self) -> Spare {
        Spare::default()
    }
}

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pages", lock(&self.pages).len())
    }
}
