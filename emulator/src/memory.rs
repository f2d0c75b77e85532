//! Device memory: allocations with red zones at addresses that are never used twice.
//!
//! Every allocation has an address range of its own and a gap before the next, so an address says
//! which allocation it belonged to even after `free`. One bit a byte remembers whether it was ever
//! written; an allocation that is written as a whole drops its bits.

use crate::error::{Error, Result};

/// Where generic addresses of the other spaces begin. Each window is 1 TiB.
pub(crate) const SHARED_WINDOW: u64 = 0x0100_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x0200_0000_0000;
pub(crate) const PARAM_WINDOW: u64 = 0x0300_0000_0000;
pub(crate) const WINDOW_END: u64 = 0x0400_0000_0000;
const FIRST: u64 = 0x7f00_0000_0000;
const ALIGN: u64 = 512;
const RED_ZONE: u64 = 4096;

/// One bit a byte.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    pub fn new(bytes: usize) -> Bits {
        Bits { words: vec![0; bytes.div_ceil(64)] }
    }

    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// How many are set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// True when all of `n` (at most 64) bytes from `at` are set.
    #[inline]
    pub fn all(&self, at: usize, n: usize) -> bool {
        let (w, b) = (at / 64, at % 64);
        let mask = if n >= 64 { u64::MAX } else { (1u64 << n) - 1 };
        let lo = mask << b;
        if self.words[w] & lo != lo {
            return false;
        }
        if b + n > 64 {
            let hi = mask >> (64 - b);
            return self.words[w + 1] & hi == hi;
        }
        true
    }

    #[inline]
    pub fn set(&mut self, at: usize, n: usize) {
        let (w, b) = (at / 64, at % 64);
        let mask = if n >= 64 { u64::MAX } else { (1u64 << n) - 1 };
        self.words[w] |= mask << b;
        if b + n > 64 {
            self.words[w + 1] |= mask >> (64 - b);
        }
    }

    pub fn set_range(&mut self, mut at: usize, n: usize) {
        let end = at + n;
        while at < end {
            if at.is_multiple_of(64) && end - at >= 64 {
                self.words[at / 64] = u64::MAX;
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
            let (w, b) = ((at + i) / 64, (at + i) % 64);
            self.words[w] = self.words[w] & !(1 << b) | (u64::from(known) << b);
        }
    }
}

/// One allocation, alive or freed.
#[derive(Clone, Debug)]
pub(crate) struct Alloc {
    pub base: u64,
    pub size: u64,
    pub name: String,
    pub data: Vec<u8>,
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
            data: vec![0; size],
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
        a.data[at..at + data.len()].copy_from_slice(data);
        a.mark(at, data.len());
        Ok(())
    }

    pub fn fill(&mut self, addr: u64, value: u8, bytes: u64) -> Result<()> {
        let (i, at) = self.host("memset", addr, bytes)?;
        let a = &mut self.allocs[i];
        a.data[at..at + bytes as usize].fill(value);
        a.mark(at, bytes as usize);
        Ok(())
    }

    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<()> {
        let (i, at) = self.host("copy_from", addr, out.len() as u64)?;
        out.copy_from_slice(&self.allocs[i].data[at..at + out.len()]);
        Ok(())
    }

    pub fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<()> {
        let (i, at) = self.host("copy_device (source)", from, bytes)?;
        let (j, to_at) = self.host("copy_device (destination)", to, bytes)?;
        let n = bytes as usize;
        let data = self.allocs[i].data[at..at + n].to_vec();
        let known = self.allocs[i].init.clone();
        let a = &mut self.allocs[j];
        a.data[to_at..to_at + n].copy_from_slice(&data);
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
        a.data = Vec::new();
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
