//! Something about every page of global memory, made when the page is first touched, by any thread.

use crate::memory::Memory;
use std::sync::OnceLock;

type Pages<P> = OnceLock<Box<[OnceLock<P>]>>;

/// By allocation, then by page of `BYTES` bytes.
pub(super) struct Paged<P, const BYTES: usize>(Box<[Pages<P>]>);

impl<P, const BYTES: usize> Paged<P, BYTES> {
    /// Nothing of a memory yet.
    pub fn new(mem: &Memory) -> Self {
        Paged(mem.allocs.iter().map(|_| OnceLock::new()).collect())
    }

    /// Takes all pages out.
    pub fn take(&mut self) -> impl Iterator<Item = P> {
        let made = self.0.iter_mut().filter_map(OnceLock::take);
        made.flat_map(|pages| pages.into_iter().filter_map(OnceLock::into_inner))
    }

    /// The page of byte `at` of allocation `i`, which has `size` bytes.
    #[inline]
    pub fn get(&self, i: usize, size: u64, at: usize, make: impl FnOnce() -> P) -> &P {
        let pages = || (0..(size as usize).div_ceil(BYTES)).map(|_| OnceLock::new()).collect();
        self.0[i].get_or_init(pages)[at / BYTES].get_or_init(make)
    }
}
