//! Device memory: allocations with red zones at addresses that are never used twice.
//!
//! Every allocation has an address range of its own and a gap before the next, so an address says
//! which allocation it belonged to even after `free`. One bit a byte remembers whether it was ever
//! written; an allocation that is written as a whole drops its bits. A launch writes through a shared
//! reference, from several threads when its CTAs are spread: the bytes are raw, the bits atomic.

use crate::error::{Error, Result};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where generic addresses of the other spaces begin. Each window is 1 TiB.
pub(crate) const SHARED_WINDOW: u64 = 0x0100_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x0200_0000_0000;
pub(crate) const PARAM_WINDOW: u64 = 0x0300_0000_0000;
pub(crate) const WINDOW_END: u64 = 0x0400_0000_0000;
/// Addresses of functions: nothing else lies there.
const FUNCTIONS: u64 = 0x0500_0000_0000;
const FIRST: u64 = 0x7f00_0000_0000;
const ALIGN: u64 = 512;
const RED_ZONE: u64 = 4096;

/// The address of a module's function, by its index.
pub(crate) fn function_address(index: usize) -> u64 {
    FUNCTIONS + 64 * index as u64
}

/// One bit a byte.
#[derive(Debug, Default)]
pub(crate) struct Bits {
    words: Vec<AtomicU64>,
}

impl Clone for Bits {
    fn clone(&self) -> Bits {
        Bits { words: self.words.iter().map(|w| AtomicU64::new(w.load(Relaxed))).collect() }
    }
}

/// The bits of `n` (at most 64) bytes from bit `b` on: of the first word, and of the one behind.
#[inline(always)]
fn halves(b: usize, n: usize) -> (u64, u64) {
    let mask = if n >= 64 { u64::MAX } else { (1u64 << n) - 1 };
    (mask << b, if b + n > 64 { mask >> (64 - b) } else { 0 })
}

impl Bits {
    pub fn new(bytes: usize) -> Bits {
        Bits { words: (0..bytes.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    pub fn clear(&mut self) {
        self.words.iter_mut().for_each(|w| *w.get_mut() = 0);
    }

    /// Sets those that `other` (of the same length) has.
    pub fn union(&mut self, other: &Bits) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine.get_mut() |= theirs.load(Relaxed);
        }
    }

    /// How many are set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.load(Relaxed).count_ones())).sum()
    }

    /// True when all of `n` (at most 64) bytes from `at` are set.
    #[inline]
    pub fn all(&self, at: usize, n: usize) -> bool {
        let (lo, hi) = halves(at % 64, n);
        self.words[at / 64].load(Relaxed) & lo == lo
            && (hi == 0 || self.words[at / 64 + 1].load(Relaxed) & hi == hi)
    }

    #[inline]
    pub fn set(&mut self, at: usize, n: usize) {
        let (lo, hi) = halves(at % 64, n);
        *self.words[at / 64].get_mut() |= lo;
        if hi != 0 {
            *self.words[at / 64 + 1].get_mut() |= hi;
        }
    }

    /// As `set`, beside threads that set others.
    #[inline]
    pub fn set_shared(&self, at: usize, n: usize) {
        let (lo, hi) = halves(at % 64, n);
        for (w, m) in [(at / 64, lo), (at / 64 + 1, hi)] {
            if m != 0 && self.words[w].load(Relaxed) & m != m {
                self.words[w].fetch_or(m, Relaxed);
            }
        }
    }

    /// The bits of `n` (at most 8) bytes that lie in one word.
    pub fn few(&self, at: usize, n: usize) -> u8 {
        (self.words[at / 64].load(Relaxed) >> (at % 64)) as u8 & (halves(0, n).0 as u8)
    }

    /// Sets them back to what `few` gave.
    pub fn restore(&self, at: usize, n: usize, bits: u8) {
        self.words[at / 64].fetch_and(!(halves(at % 64, n).0) | u64::from(bits) << (at % 64), Relaxed);
    }

    pub fn set_range(&mut self, mut at: usize, n: usize) {
        let end = at + n;
        while at < end {
            if at.is_multiple_of(64) && end - at >= 64 {
                *self.words[at / 64].get_mut() = u64::MAX;
                at += 64;
            } else {
                let step = (64 - at % 64).min(end - at);
                self.set(at, step);
                at += step;
            }
        }
    }

    fn copy_from(&mut self, at: usize, from: Option<&Bits>, from_at: usize, n: usize) {
        for i in 0..n {
            let known = from.is_none_or(|b| b.all(from_at + i, 1));
            let (w, b) = (self.words[(at + i) / 64].get_mut(), (at + i) % 64);
            *w = *w & !(1 << b) | (u64::from(known) << b);
        }
    }
}

/// The bytes of an allocation.
pub(crate) struct Bytes(Box<[UnsafeCell<u8>]>);

// SAFETY: shared references reach the bytes only through the unsafe methods, whose callers see to it
// that no thread writes a byte that another one reads or writes.
unsafe impl Sync for Bytes {}

impl Clone for Bytes {
    fn clone(&self) -> Bytes {
        let mut copy = Bytes::zeroed(self.len());
        // SAFETY: memory is copied when no launch runs, which would hold its device exclusively.
        copy.exclusive().copy_from_slice(unsafe { self.slice(0, self.len()) });
        copy
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Bytes {
    fn zeroed(n: usize) -> Bytes {
        let raw = Box::into_raw(vec![0u8; n].into_boxed_slice());
        // SAFETY: the box just given up, as cells of the same layout (`UnsafeCell<u8>` is transparent).
        Bytes(unsafe { Box::from_raw(raw as *mut [UnsafeCell<u8>]) })
    }

    fn exclusive(&mut self) -> &mut [u8] {
        let n = self.0.len();
        // SAFETY: `n` initialised bytes, borrowed exclusively for the life of the result.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<u8>(), n) }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// `n` bytes from `at`; panics when there are fewer.
    ///
    /// # Safety
    /// No thread may write any of them while the result lives.
    #[inline(always)]
    pub unsafe fn slice(&self, at: usize, n: usize) -> &[u8] {
        let cells = &self.0[at..at + n];
        // SAFETY: the bytes are initialised, and the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<u8>(), n) }
    }

    /// `N` bytes from `at`; panics when there are fewer.
    ///
    /// # Safety
    /// No other thread may write any of them at this time.
    #[inline(always)]
    pub unsafe fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let cells = &self.0[at..at + N];
        // SAFETY: `N` initialised bytes; the caller keeps writers away. An array of bytes has no alignment.
        unsafe { cells.as_ptr().cast::<[u8; N]>().read() }
    }

    /// Writes bytes from `at` on; panics when there is no room.
    ///
    /// # Safety
    /// No other thread may read or write any of them at this time, and no result of `slice` be alive.
    #[inline(always)]
    pub unsafe fn put(&self, at: usize, data: &[u8]) {
        let cells = &self.0[at..at + data.len()];
        // SAFETY: inside the cells, which may be written through a shared reference; the caller keeps
        // others away.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), UnsafeCell::raw_get(cells.as_ptr()), data.len())
        };
    }
}

/// One allocation, alive or freed.
#[derive(Clone, Debug)]
pub(crate) struct Alloc {
    pub base: u64,
    pub size: u64,
    pub name: String,
    pub data: Bytes,
    /// Which bytes were written; `None` when all were.
    pub init: Option<Bits>,
    pub live: bool,
    pub readonly: bool,
}

/// All global memory of a device.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub allocs: Vec<Alloc>,
    next: u64,
    used: u64,
    limit: u64,
}

impl Memory {
    pub fn new(limit: u64) -> Memory {
        Memory { allocs: Vec::new(), next: FIRST, used: 0, limit }
    }

    pub fn alloc(&mut self, bytes: u64, name: &str) -> Result<u64> {
        if bytes > self.limit - self.used {
            return Err(Error::OutOfMemory { bytes, limit: self.limit });
        }
        let size = usize::try_from(bytes).map_err(|_| Error::OutOfMemory { bytes, limit: self.limit })?;
        let base = self.next;
        self.next = (base + bytes + RED_ZONE).next_multiple_of(ALIGN);
        self.used += bytes;
        self.allocs.push(Alloc {
            base,
            size: bytes,
            name: name.to_string(),
            data: Bytes::zeroed(size),
            init: (size > 0).then(|| Bits::new(size)),
            live: true,
            readonly: false,
        });
        Ok(base)
    }

    /// The allocation, alive or not, whose range holds `addr`.
    #[inline]
    pub fn find(&self, addr: u64) -> Option<usize> {
        let i = self.allocs.partition_point(|a| a.base <= addr).checked_sub(1)?;
        let a = &self.allocs[i];
        (addr - a.base < a.size).then_some(i)
    }

    /// The allocation nearest to an address outside all of them.
    pub fn nearest(&self, addr: u64) -> Option<usize> {
        let after = self.allocs.partition_point(|a| a.base <= addr);
        let distance = |i: usize| {
            let a = &self.allocs[i];
            if addr < a.base { a.base - addr } else { addr - (a.base + a.size) }
        };
        let candidates = [after.checked_sub(1), (after < self.allocs.len()).then_some(after)];
        candidates.into_iter().flatten().min_by_key(|&i| distance(i)).filter(|&i| distance(i) <= 1 << 20)
    }

    fn host(&self, call: &'static str, addr: u64, bytes: u64) -> Result<(usize, usize)> {
        let bad = |problem: String| Error::HostAccess { call, address: addr, bytes, problem };
        // An empty range may sit at the end, or in an allocation without bytes.
        let found = self.find(addr).or_else(|| {
            let i = self.allocs.partition_point(|a| a.base <= addr).checked_sub(1)?;
            (bytes == 0 && addr == self.allocs[i].base + self.allocs[i].size).then_some(i)
        });
        let Some(i) = found else { return Err(bad("no allocation there".to_string())) };
        let a = &self.allocs[i];
        if !a.live {
            return Err(bad(format!("`{}` was freed", a.name)));
        }
        let offset = addr - a.base;
        if bytes > a.size - offset {
            return Err(bad(format!("`{}` has {} bytes from there on", a.name, a.size - offset)));
        }
        Ok((i, offset as usize))
    }

    pub fn write(&mut self, addr: u64, data: &[u8]) -> Result<()> {
        let (i, at) = self.host("copy_to", addr, data.len() as u64)?;
        let a = &mut self.allocs[i];
        a.data.exclusive()[at..at + data.len()].copy_from_slice(data);
        a.mark(at, data.len());
        Ok(())
    }

    pub fn fill(&mut self, addr: u64, value: u8, bytes: u64) -> Result<()> {
        let (i, at) = self.host("memset", addr, bytes)?;
        let a = &mut self.allocs[i];
        a.data.exclusive()[at..at + bytes as usize].fill(value);
        a.mark(at, bytes as usize);
        Ok(())
    }

    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<()> {
        let (i, at) = self.host("copy_from", addr, out.len() as u64)?;
        // SAFETY: bytes are written by the methods here, which hold the memory exclusively, and by
        // launches, which hold the device exclusively while they last.
        out.copy_from_slice(unsafe { self.allocs[i].data.slice(at, out.len()) });
        Ok(())
    }

    pub fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<()> {
        let (i, at) = self.host("copy_device (source)", from, bytes)?;
        let (j, to_at) = self.host("copy_device (destination)", to, bytes)?;
        let n = bytes as usize;
        let data = self.allocs[i].data.exclusive()[at..at + n].to_vec();
        let known = self.allocs[i].init.clone();
        let a = &mut self.allocs[j];
        a.data.exclusive()[to_at..to_at + n].copy_from_slice(&data);
        match (&known, &mut a.init) {
            (None, _) => a.mark(to_at, n),
            (Some(_), Some(bits)) => bits.copy_from(to_at, known.as_ref(), at, n),
            (Some(_), None) => {
                let mut bits = Bits::new(a.data.len());
                bits.set_range(0, a.data.len());
                bits.copy_from(to_at, known.as_ref(), at, n);
                a.init = Some(bits);
            }
        }
        Ok(())
    }

    pub fn free(&mut self, addr: u64) -> Result<()> {
        let (i, at) = self.host("free", addr, 0)?;
        let a = &mut self.allocs[i];
        if at != 0 {
            let problem = format!("not the beginning of `{}`", a.name);
            return Err(Error::HostAccess { call: "free", address: addr, bytes: 0, problem });
        }
        a.live = false;
        a.data = Bytes::zeroed(0);
        a.init = None;
        self.used -= a.size;
        Ok(())
    }
}

impl Alloc {
    /// Marks bytes as written.
    #[inline]
    pub fn mark(&mut self, at: usize, n: usize) {
        if n as u64 == self.size {
            self.init = None;
        } else if let Some(bits) = &mut self.init {
            bits.set_range(at, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_remember_exactly_the_bytes_written() {
        let mut b = Bits::new(300);
        b.set_range(60, 140);
        for i in 0..300 {
            assert_eq!(b.all(i, 1), (60..200).contains(&i), "{i}");
        }
        assert!(b.all(60, 16) && b.all(184, 16) && !b.all(185, 16) && !b.all(59, 8));
    }

    #[test]
    fn an_address_is_never_given_twice_and_the_nearest_allocation_is_found() {
        let mut m = Memory::new(1 << 20);
        let a = m.alloc(100, "a").unwrap();
        let b = m.alloc(8, "b").unwrap();
        assert!(b >= a + 100 + RED_ZONE);
        assert_eq!(m.find(a + 99), Some(0));
        assert_eq!(m.find(a + 100), None);
        assert_eq!(m.nearest(a + 101), Some(0));
        m.free(a).unwrap();
        assert!(m.alloc(100, "c").unwrap() > b);
        assert!(matches!(m.free(a), Err(Error::HostAccess { .. })));
        assert!(matches!(m.alloc(1 << 21, "d"), Err(Error::OutOfMemory { .. })));
    }

    #[test]
    fn device_copies_carry_which_bytes_were_written() {
        let mut m = Memory::new(1 << 20);
        let (a, b) = (m.alloc(8, "a").unwrap(), m.alloc(8, "b").unwrap());
        m.write(a, &[1, 2]).unwrap();
        m.write(b, &[9; 8]).unwrap();
        m.copy(b + 4, a, 4).unwrap();
        let bits = m.allocs[1].init.as_ref().unwrap();
        assert!(bits.all(0, 6) && !bits.all(6, 1) && !bits.all(7, 1));
    }
}
