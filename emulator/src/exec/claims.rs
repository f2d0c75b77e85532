//! Which CTA may touch which words of global memory, while CTAs run on several threads.
//!
//! Every access claims its four-byte words first. A word may be read by many CTAs or written by one
//! that nobody else reads; anything else is a meeting of CTAs, whose outcome depends on who is first,
//! and the launch is run again by the serial schedule. A claim is never given back during a launch, so
//! at no time does a thread write a word that another one reads or writes: that is what makes the
//! plain accesses behind the claims sound, without an atomic or a lock around them.
//!
//! The state of eight words (a sector) is one atomic: who, which words were read, which written. When
//! CTAs share a sector and one of them writes, its words are told apart in a table (`fine`).

use super::paged::Paged;
use crate::memory::{Alloc, Memory};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Bytes of a page of claims.
const PAGE: usize = 4096;
const SECTOR: usize = 32;
const WORDS: usize = 8;

/// Bits of a sector's state: owner + 1 (32 bits), words read (8), words written (8), told apart.
const OWNER: u64 = 0xffff_ffff;
/// Owner of a sector that several CTAs have read.
const MANY: u64 = OWNER;
const READ: u32 = 32;
const WRITTEN: u32 = 40;
const FINE: u64 = 1 << 63;

/// Most CTAs that are told apart.
pub(super) const MOST_CTAS: u64 = MANY - 1;

/// State of a word that is told apart.
#[derive(Clone, Copy, PartialEq)]
enum Word {
    Read(u64),
    ReadByMany,
    Written(u64),
}

struct Page {
    sectors: [AtomicU64; PAGE / SECTOR],
    fine: Mutex<HashMap<u16, Word>>,
}

impl Page {
    fn new() -> Box<Page> {
        Box::new(Page { sectors: [const { AtomicU64::new(0) }; PAGE / SECTOR], fine: Mutex::default() })
    }
}

/// Claims on all allocations, in pages made at the first touch.
pub(super) struct Claims {
    pages: Paged<Box<Page>, PAGE>,
    lost: AtomicBool,
}

impl Claims {
    pub fn new(mem: &Memory) -> Claims {
        Claims { pages: Paged::new(mem), lost: AtomicBool::new(false) }
    }

    /// The launch must be run again, serially.
    pub fn give_up(&self) {
        self.lost.store(true, Relaxed);
    }

    pub fn lost(&self) -> bool {
        self.lost.load(Relaxed)
    }
}

/// What a word was before the first write to it.
struct Before {
    alloc: u32,
    word: u32,
    bytes: [u8; 4],
    known: u8,
}

/// The claims of one thread, which runs one CTA at a time.
pub(super) struct Claimer<'a> {
    claims: &'a Claims,
    /// The CTA, plus one.
    me: u64,
    before: Vec<Before>,
}

impl<'a> Claimer<'a> {
    pub fn new(claims: &'a Claims) -> Claimer<'a> {
        Claimer { claims, me: 1, before: Vec::new() }
    }

    /// From now on claims are those of this CTA.
    pub fn begin(&mut self, cta: u64) {
        self.me = cta + 1;
    }

    pub fn give_up(&self) {
        self.claims.give_up();
    }

    /// Claims bytes of allocation `i`; false when another CTA is in the way.
    #[inline]
    pub fn claim(&mut self, a: &Alloc, i: usize, at: usize, n: usize, write: bool) -> bool {
        let (mut word, end) = (at / 4, (at + n).div_ceil(4));
        while word < end {
            let sector = word / WORDS;
            let last = end.min((sector + 1) * WORDS);
            let mask = (0xffu64 >> (WORDS - (last - word))) << (word % WORDS);
            let page = self.claims.pages.get(i, a.size, sector * SECTOR, Page::new);
            let index = sector % (PAGE / SECTOR);
            let new = if write { self.write(page, index, mask) } else { self.read(page, index, mask) };
            match new {
                None => {
                    self.give_up();
                    return false;
                }
                Some(0) => {}
                Some(new) => self.keep(a, i, sector * WORDS, new),
            }
            word = last;
        }
        true
    }

    /// `Some` when the words may be read.
    #[inline]
    fn read(&self, page: &Page, index: usize, mask: u64) -> Option<u64> {
        let state = &page.sectors[index];
        let mut s = state.load(Relaxed);
        loop {
            let owner = s & OWNER;
            let new = if s & FINE != 0 {
                return self.fine(page, index, mask, false);
            } else if owner == self.me || owner == MANY {
                if (s >> READ | s >> WRITTEN) & mask == mask {
                    return Some(0);
                }
                s | mask << READ
            } else if owner == 0 {
                self.me | mask << READ
            } else if s >> WRITTEN & 0xff == 0 {
                s | MANY | mask << READ
            } else {
                return self.fine(page, index, mask, false);
            };
            match state.compare_exchange_weak(s, new, Relaxed, Relaxed) {
                Ok(_) => return Some(0),
                Err(now) => s = now,
            }
        }
    }

    /// The words that are written for the first time, when they may be written.
    #[inline]
    fn write(&self, page: &Page, index: usize, mask: u64) -> Option<u64> {
        let state = &page.sectors[index];
        let mut s = state.load(Relaxed);
        loop {
            let owner = s & OWNER;
            if s & FINE != 0 || (owner != 0 && owner != self.me) {
                return self.fine(page, index, mask, true);
            }
            let first = mask & !(s >> WRITTEN);
            if first == 0 {
                return Some(0);
            }
            match state.compare_exchange_weak(s, s | self.me | mask << WRITTEN, Relaxed, Relaxed) {
                Ok(_) => return Some(first),
                Err(now) => s = now,
            }
        }
    }

    /// Claims words of a sector that CTAs share. The result is as in `write`.
    #[cold]
    fn fine(&self, page: &Page, index: usize, mask: u64, write: bool) -> Option<u64> {
        let mut words = page.fine.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |k: usize| (index * WORDS + k) as u16;
        // All that was claimed by the state is in the table before anybody sees the bit: who finds it
        // waits for the lock.
        let was = page.sectors[index].fetch_or(FINE, Relaxed);
        if was & FINE == 0 {
            for k in 0..WORDS {
                let owner = was & OWNER;
                if was >> WRITTEN >> k & 1 != 0 {
                    words.insert(key(k), Word::Written(owner));
                } else if was >> READ >> k & 1 != 0 {
                    words.insert(key(k), if owner == MANY { Word::ReadByMany } else { Word::Read(owner) });
                }
            }
        }
        let mut first = 0;
        for k in (0..WORDS).filter(|k| mask >> k & 1 != 0) {
            let now = words.get(&key(k)).copied();
            let next = match (now, write) {
                (None, false) => Word::Read(self.me),
                (Some(Word::Read(o)), false) if o != self.me => Word::ReadByMany,
                (Some(Word::Written(o)), _) if o != self.me => return None,
                (Some(w @ (Word::Written(_) | Word::ReadByMany | Word::Read(_))), false) => w,
                (Some(w @ Word::Written(_)), true) => w,
                (None, true) => Word::Written(self.me),
                (Some(Word::Read(o)), true) if o == self.me => Word::Written(self.me),
                (Some(Word::Read(_) | Word::ReadByMany), true) => return None,
            };
            if write && now != Some(next) {
                first |= 1 << k;
            }
            words.insert(key(k), next);
        }
        Some(first)
    }

    /// Keeps what the words `new` of a sector are, before their first write.
    fn keep(&mut self, a: &Alloc, i: usize, first: usize, new: u64) {
        for word in (0..WORDS).filter(|k| new >> k & 1 != 0).map(|k| first + k) {
            let n = (a.data.len() - 4 * word).min(4);
            let mut bytes = [0; 4];
            // SAFETY: this thread has just claimed the word for its CTA alone.
            bytes[..n].copy_from_slice(unsafe { a.data.slice(4 * word, n) });
            let known = a.init.as_ref().map_or(0, |b| b.few(4 * word, n));
            self.before.push(Before { alloc: i as u32, word: word as u32, bytes, known });
        }
    }

    /// No CTA but this one has touched the word (which it has claimed).
    pub fn alone(&self, size: u64, i: usize, at: usize) -> bool {
        let page = self.claims.pages.get(i, size, at, Page::new);
        let index = at / SECTOR % (PAGE / SECTOR);
        let s = page.sectors[index].load(Relaxed);
        if s & FINE == 0 {
            return s & OWNER == self.me;
        }
        let words = page.fine.lock().unwrap_or_else(PoisonError::into_inner);
        let word = words.get(&((index * WORDS + at / 4 % WORDS) as u16));
        matches!(word, Some(Word::Read(o) | Word::Written(o)) if *o == self.me)
    }

    /// Undoes all writes of this thread. To be called when no thread runs any more.
    pub fn undo(&mut self, mem: &Memory) {
        for b in self.before.drain(..) {
            let a = &mem.allocs[b.alloc as usize];
            let at = 4 * b.word as usize;
            let n = (a.data.len() - at).min(4);
            // SAFETY: the other threads have ended.
            unsafe { a.data.put(at, &b.bytes[..n]) };
            if let Some(bits) = &a.init {
                bits.restore(at, n, b.known);
            }
        }
    }
}
