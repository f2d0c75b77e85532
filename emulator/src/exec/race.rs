//! Conflicting accesses to shared and global memory without an order between them.
//!
//! Every four bytes have a cell with their last two writers and two readers: thread, logical time,
//! bytes, instruction; 11 bytes a byte, in pages made at the first touch for global memory. Who is
//! ordered behind whom is the matter of `order.rs`. Strong accesses (atomics, volatile, relaxed and
//! up) conflict only with weak ones; strong loads are not remembered, so that polling is free. What a
//! cell has no room for is forgotten: the doubt is for the kernel, so every finding names two accesses
//! that really took place without an order.

use super::lanes::lanes;
use super::mem::Spots;
use super::order::Me;
use super::{Cta, Machine};
use crate::inst::Access;
use crate::report::{Class, Place, Side};
use crate::types::Space;

/// Time of a `cp.async` that was not waited for: ordered with nothing.
pub(super) const IN_FLIGHT: u32 = u32::MAX;
/// Lane number that stands for several lanes of a warp.
pub(super) const SEVERAL: u32 = 32;
/// Most CTAs that are told apart.
pub(super) const CTAS: u32 = (1 << 23) - 1;

/// One access; `who` is 0 for nobody, else warp + 32 * CTA + 1.
#[derive(Clone, Copy)]
pub(super) struct Past {
    who: u32,
    time: u32,
    /// Instruction (20 bits), lane (6), CTA scope, strong, bytes (4).
    bits: u32,
}

const STRONG: u32 = 1 << 4;
const NEAR: u32 = 1 << 5;
const BYTES: u32 = 15;

impl Past {
    pub fn warp(self) -> u32 {
        (self.who - 1) & 31
    }
    pub fn cta(self) -> u32 {
        (self.who - 1) >> 5
    }
    pub fn lane(self) -> u32 {
        self.bits >> 6 & 63
    }
    pub fn time(self) -> u32 {
        self.time
    }
    fn pc(self) -> u32 {
        self.bits >> 12
    }
    /// Takes in another access of the same warp at the same time, or says no.
    fn merge(&mut self, o: Past) -> bool {
        if !self.meets(o) {
            return false;
        }
        let lane = if self.lane() == o.lane() { o.lane() } else { SEVERAL };
        let strong = self.bits & o.bits & STRONG | (self.bits | o.bits) & NEAR;
        self.bits = o.pc() << 12 | lane << 6 | strong | (self.bits | o.bits) & BYTES;
        true
    }
    /// Both strong, and in scope of each other.
    fn both_strong(self, o: Past) -> bool {
        self.bits & o.bits & STRONG != 0 && (self.cta() == o.cta() || (self.bits | o.bits) & NEAR == 0)
    }
    /// Of the same warp at the same time.
    fn meets(self, o: Past) -> bool {
        self.who == o.who && self.time == o.time
    }
    /// What is left of it when others take `bytes`.
    fn without(self, bytes: u32) -> Kept {
        let left = Past { bits: self.bits & !bytes, ..self };
        if left.bits & BYTES == 0 { NOBODY } else { left.keep() }
    }
}

/// An access as cells keep it, in 11 bytes: who (28 bits), time (28), strong, near, lane (6); instruction
/// (20), bytes (4). Times that do not fit count as earlier: in doubt ordered.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Kept {
    low: u64,
    high: [u8; 3],
}

const NOBODY: Kept = Kept { low: 0, high: [0; 3] };
const PART: u64 = (1 << 28) - 1;

impl Kept {
    #[inline(always)]
    fn free(self) -> bool {
        self.low & PART == 0
    }

    /// Both weak, of one warp at one time.
    #[inline(always)]
    fn plain_meets(self, o: Kept) -> bool {
        (self.low ^ o.low) << 8 == 0 && (self.low | o.low) >> 56 & 3 == 0
    }

    /// As `Past::merge` of those two, when `o` takes all bytes.
    #[inline(always)]
    fn joined(self, o: Kept) -> Kept {
        let lane = if self.low == o.low { o.low >> 58 } else { u64::from(SEVERAL) };
        Kept { low: o.low << 8 >> 8 | lane << 58, high: o.high }
    }

    /// The same access, by another lane.
    #[inline(always)]
    fn by(self, lane: u32) -> Kept {
        Kept { low: self.low << 6 >> 6 | u64::from(lane) << 58, high: self.high }
    }

    #[inline(always)]
    fn in_flight(self) -> bool {
        self.low >> 28 & PART == PART && !self.free()
    }

    #[inline(always)]
    fn get(self) -> Past {
        let low = self.low;
        let [a, b, c] = self.high;
        let high = u32::from_le_bytes([a, b, c, 0]);
        let time = low >> 28 & PART;
        let time = if time == PART { IN_FLIGHT } else { time as u32 };
        let flags = (low >> 56) as u32;
        Past { who: (low & PART) as u32, time, bits: (high >> 4) << 12 | flags << 4 & 0xff0 | high & BYTES }
    }
}

impl Past {
    #[inline(always)]
    fn keep(self) -> Kept {
        let time = if self.time == IN_FLIGHT { PART } else { u64::from(self.time).min(PART - 1) };
        let low = u64::from(self.who) | time << 28 | u64::from(self.bits >> 4 & 0xff) << 56;
        let [a, b, c, _] = (self.bits >> 12 << 4 | self.bits & BYTES).to_le_bytes();
        Kept { low, high: [a, b, c] }
    }
}

/// The copy of lane `lane` issued by instruction `pc`.
pub(super) fn copy_of(cta: u32, warp: u32, lane: u32, pc: u32) -> Past {
    Past { who: (cta << 5 | warp) + 1, time: IN_FLIGHT, bits: pc << 12 | lane << 6 | BYTES }
}

/// Last accesses to four bytes.
#[derive(Clone, Copy)]
pub(super) struct Cell {
    writers: [Kept; 2],
    readers: [Kept; 2],
}

pub(super) const FRESH: Cell = Cell { writers: [NOBODY; 2], readers: [NOBODY; 2] };

/// The part of an access in each of its words: bytes of the access, offset of the first.
fn words(offset: usize, total: usize) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> {
    (offset / 4..(offset + total).div_ceil(4)).map(move |w| {
        let (from, to) = ((4 * w).max(offset), (4 * w + 4).min(offset + total));
        (from - offset..to - offset, from)
    })
}

/// How an access is made.
#[derive(Clone, Copy, Default)]
pub(super) struct How {
    pub strong: bool,
    pub near: bool,
}

impl How {
    pub fn of(m: &Access) -> How {
        How { strong: m.strong, near: m.near }
    }
}

/// What a write brings.
pub(super) enum Bring<'a> {
    /// These bytes instead of those.
    Bytes(&'a [u8], &'a [u8]),
    /// An atomic.
    Atomic,
    /// A copy that lands later.
    Later,
}

type Hit = Option<(Past, &'static str)>;
/// A lane and what it met.
type Found = Option<(u32, (Past, &'static str))>;

impl Me<'_> {
    fn past(&self, pc: u32, how: How, time: u32) -> Past {
        let strong = (u32::from(how.strong) * STRONG) | (u32::from(how.near) * NEAR);
        Past { who: (self.cta << 5 | self.warp) + 1, time, bits: pc << 12 | self.lane << 6 | strong }
    }

    /// A weak access by lane 0 to all bytes of a cell.
    fn whole(&self, pc: u32) -> Kept {
        let who = (self.cta << 5 | self.warp) + 1;
        Past { who, time: self.clock.stamp(false), bits: pc << 12 | BYTES }.keep()
    }

    /// Every lane of the warp is ordered behind it, if it is anybody.
    #[inline(always)]
    fn all_behind(&self, k: Kept) -> bool {
        let low = k.low;
        // Neighbouring cells mostly hold the same warp at the same time.
        if low & PART == 0 || low << 8 == self.known.get() {
            return true;
        }
        let (who, time) = ((low & PART) as u32 - 1, low >> 28 & PART);
        if time == PART || !self.warp_behind(who, time as u32) {
            return false;
        }
        self.known.set(low << 8);
        true
    }

    /// A weak read of all bytes of a cell, where no lane can be in conflict; false when it is not that
    /// simple, and nothing is done.
    #[inline(always)]
    fn read_whole(&self, cell: &mut Cell, whole: Kept) -> bool {
        let Cell { writers, readers: [first, second] } = cell;
        if !self.all_behind(writers[0]) || !self.all_behind(writers[1]) {
            return false;
        }
        if first.plain_meets(whole) {
            *first = first.joined(whole);
        } else if self.all_behind(*first) {
            *first = whole;
        } else if (first.low ^ whole.low) & PART == 0 || (second.low ^ whole.low) << 8 == 0 {
            // Of this warp: the order of its lanes matters, or there is more to join.
            if !second.plain_meets(whole) || (first.low ^ whole.low) & PART == 0 {
                return false;
            }
            *second = second.joined(whole);
        } else {
            *second = whole;
        }
        true
    }

    /// A write of all bytes of a cell that every lane of the warp is ordered behind.
    #[inline(always)]
    fn write_whole(&self, cell: &mut Cell, whole: Kept) -> bool {
        let Cell { writers: [a, b], readers: [c, d] } = *cell;
        let simple = self.all_behind(a) && self.all_behind(b) && self.all_behind(c) && self.all_behind(d);
        if simple {
            *cell = Cell { writers: [whole, NOBODY], readers: [NOBODY; 2] };
        }
        simple
    }

    /// A weak read of whole cells by the lanes `same`, or (`warp`) by the warp together.
    #[inline(always)]
    fn read_run(&mut self, cells: &mut [Cell], same: u32, warp: bool, pc: u32, whole: Kept) -> Found {
        let lane = same.trailing_zeros();
        let whole = whole.by(if warp || same != 1 << lane { SEVERAL } else { lane });
        let mut conflict = None;
        for cell in cells {
            if self.read_whole(cell, whole) {
                continue;
            }
            for lane in lanes(same) {
                self.lane = if warp { SEVERAL } else { lane as u32 };
                let hit = self.read(std::slice::from_mut(cell), 0, 4, pc, How::default());
                conflict = conflict.or(hit.map(|hit| (lane as u32, hit)));
            }
        }
        conflict
    }

    /// A read of `total` bytes, the first at `skip` of the first cell.
    #[inline]
    pub(super) fn read(&self, cells: &mut [Cell], skip: usize, total: usize, pc: u32, how: How) -> Hit {
        let mut bad = None;
        let new = self.past(pc, how, self.clock.stamp(how.strong));
        let whole = Past { bits: new.bits | BYTES, ..new }.keep();
        for (i, cell) in cells.iter_mut().enumerate() {
            let bytes = bytes_of(i, skip, total);
            // Mostly a warp reads all of what it or nobody has read since the last barrier.
            if bytes == BYTES && !how.strong && self.read_whole(cell, whole) {
                continue;
            }
            let [first, second] = &mut cell.readers;
            for w in cell.writers.into_iter().filter(|w| !w.free()).map(Kept::get) {
                if w.bits & bytes != 0 && !w.both_strong(new) && !self.behind(w) {
                    let flying = w.time == IN_FLIGHT;
                    bad = Some((w, if flying { "reads copy in flight" } else { "read after write" }));
                }
            }
            // Polling is free: a strong read is checked, not remembered.
            if how.strong {
                continue;
            }
            let new = Past { bits: new.bits | bytes, ..new };
            let mut old = first.get();
            if first.free() || (old.bits & BYTES & !bytes == 0 && !old.meets(new) && self.behind(old)) {
                *first = new.keep();
            } else if old.merge(new) {
                *first = old.keep();
            } else {
                let mut old = second.get();
                *second = if !second.free() && old.merge(new) { old.keep() } else { new.keep() };
            }
        }
        bad
    }

    /// A write. Writing what is there already conflicts with nothing but a copy in flight.
    pub(super) fn write(
        &self,
        cells: &mut [Cell],
        skip: usize,
        total: usize,
        pc: u32,
        how: How,
        bring: Bring<'_>,
    ) -> Hit {
        let mut bad = None;
        let later = matches!(bring, Bring::Later);
        let new = self.past(pc, how, if later { IN_FLIGHT } else { self.clock.stamp(how.strong) });
        let whole = Past { bits: new.bits | BYTES, ..new }.keep();
        for (i, cell) in cells.iter_mut().enumerate() {
            let bytes = bytes_of(i, skip, total);
            if bytes == BYTES && self.write_whole(cell, whole) {
                continue;
            }
            let same = match bring {
                Bring::Bytes(old, new) => {
                    let at = (4 * i).saturating_sub(skip)..(4 * i + 4 - skip).min(total);
                    old[at.clone()] == new[at]
                }
                _ => false,
            };
            for w in cell.writers.into_iter().filter(|w| !w.free()).map(Kept::get) {
                if w.bits & bytes == 0 || w.both_strong(new) {
                    continue;
                }
                let flying = w.time == IN_FLIGHT;
                let mine = w.who == new.who && w.lane() == self.lane;
                if (flying || !same) && !self.behind(w) && !(mine && (later || !flying)) {
                    bad = Some((w, if flying { "overwrites copy in flight" } else { "write after write" }));
                }
            }
            for r in cell.readers.into_iter().filter(|r| !r.free()).map(Kept::get) {
                if r.bits & bytes != 0 && !same && !r.both_strong(new) && !self.behind(r) {
                    bad = Some((r, "write after read"));
                }
            }
            for kept in cell.readers.iter_mut().filter(|r| !r.free()) {
                *kept = kept.get().without(bytes);
            }
            for kept in cell.writers.iter_mut().filter(|w| !w.free()) {
                let old = kept.get();
                // An atomic beside atomics of others does not make those forgotten.
                if !old.both_strong(new) || self.behind(old) {
                    *kept = old.without(bytes);
                }
            }
            let new = Past { bits: new.bits | bytes, ..new };
            let [first, second] = &mut cell.writers;
            let mut old = first.get();
            if first.free() {
                *first = new.keep();
            } else if old.merge(new) {
                *first = old.keep();
            } else {
                let mut old = second.get();
                *second = if !second.free() && old.merge(new) { old.keep() } else { new.keep() };
            }
        }
        bad
    }
}

/// The bytes of cell `i` that an access touches.
#[inline(always)]
fn bytes_of(i: usize, skip: usize, total: usize) -> u32 {
    let from = if i == 0 { skip } else { 0 };
    let to = (skip + total - 4 * i).min(4);
    BYTES >> (4 - to) & BYTES << from
}

/// The cells of shared memory that an access touches.
pub(super) fn within(offset: usize, total: usize) -> std::ops::Range<usize> {
    offset / 4..(offset + total).div_ceil(4)
}

/// A copy has landed: from now on it is a write of its lane.
pub(super) fn landed(cells: &mut [Cell], time: u32) {
    let time = u64::from(time).min(PART - 1);
    for w in cells.iter_mut().flat_map(|c| &mut c.writers).filter(|w| w.in_flight()) {
        w.low = w.low & !(PART << 28) | time << 28;
    }
}

impl Machine<'_> {
    /// Checks a read; `warp`: the lanes read together.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn race_read(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        s: &Spots,
        total: usize,
        how: How,
        warp: bool,
    ) {
        let mut conflict = None;
        let Cta { warps, records, far, linear, .. } = cta;
        let mut me = Me::new(&warps[wi].clock, far, *linear, wi as u32);
        let whole = me.whole(pc);
        let words_only = total.is_multiple_of(4) && lanes(s.ok).all(|l| s.offset[l].is_multiple_of(4));
        let simple = words_only && !how.strong && (s.uniform || s.space == Space::Shared);
        // The halves of a warp often read the same.
        let halves = simple && s.ok == u32::MAX && s.offset[..16] == s.offset[16..];
        let mut left = if halves { 0xffff } else { s.ok };
        while left != 0 {
            // Neighbours that read the same are checked as one.
            let lane = left.trailing_zeros() as usize;
            let (mut same, offset) = (1u32 << lane, s.offset[lane]);
            let mut next = lane + 1;
            while simple && next < 32 && left >> next & 1 != 0 && s.offset[next] == offset {
                same |= 1 << next;
                next += 1;
            }
            left &= !same;
            if halves {
                same |= same << 16;
            }
            let mut read = |cells: &mut [Cell], at: usize, n: usize| {
                let hit = if simple {
                    me.read_run(cells, same, warp, pc, whole)
                } else {
                    me.lane = if warp { SEVERAL } else { lane as u32 };
                    me.read(cells, at % 4, n, pc, how).map(|hit| (lane as u32, hit))
                };
                conflict = conflict.or(hit);
            };
            match s.space {
                Space::Shared => read(&mut records[within(offset, total)], offset, total),
                Space::Global => {
                    let i = s.alloc[lane] as usize;
                    let a = &self.l.mem.allocs[i];
                    if a.readonly {
                        continue;
                    }
                    match &self.claimer {
                        // SAFETY: one thread, and no other reference.
                        None => read(unsafe { self.pages.cells(i, a.size, offset, total) }, offset, total),
                        Some(c) => {
                            for (part, at) in words(offset, total).filter(|w| c.alone(a.size, i, w.1)) {
                                // SAFETY: the CTA is alone at this word, and no other reference here.
                                let cells = unsafe { self.pages.cells(i, a.size, at, part.len()) };
                                read(cells, at, part.len());
                            }
                        }
                    }
                }
                _ => return,
            }
        }
        self.race_found(cta, wi, pc, s, conflict);
    }

    /// Checks a write to global memory by one lane.
    #[inline]
    pub(super) fn race_write(
        &mut self,
        me: &Me<'_>,
        s: &Spots,
        total: usize,
        pc: u32,
        how: How,
        new: Option<&[u8]>,
        lane: usize,
    ) -> Hit {
        let (i, offset) = (s.alloc[lane] as usize, s.offset[lane]);
        let a = &self.l.mem.allocs[i];
        // SAFETY: a thread beside others has claimed the bytes for writing, and nothing writes them
        // while they are compared.
        let old = unsafe { a.data.slice(offset, total) };
        // SAFETY: one thread, or words claimed for writing; and no other reference.
        let cells = unsafe { self.pages.cells(i, a.size, offset, total) };
        let bring = match new {
            Some(new) => Bring::Bytes(old, new),
            None => Bring::Atomic,
        };
        me.write(cells, offset % 4, total, pc, how, bring)
    }

    /// Reports what an access met, if anything.
    pub(super) fn race_found(&mut self, cta: &Cta, wi: usize, pc: u32, s: &Spots, conflict: Found) {
        let Some((lane, (other, kind))) = conflict else { return };
        let lane = lane as usize;
        let a = cta.warps[wi].addr[lane];
        let place = match s.space {
            Space::Shared => {
                Place { name: ".shared".to_string(), size: u64::from(self.l.shared), offset: a as i64 }
            }
            _ => {
                let al = &self.l.mem.allocs[s.alloc[lane] as usize];
                Place { name: al.name.clone(), size: al.size, offset: s.offset[lane] as i64 }
            }
        };
        let (line, source) = self.source(other.pc());
        let [gx, gy, _] = self.l.grid;
        let c = other.cta();
        let lanes = if other.lane() == SEVERAL { u32::MAX } else { 1 << other.lane() };
        let side = Side { line, source, cta: [c % gx, c / gx % gy, c / gx / gy], warp: other.warp(), lanes };
        let at = Some((a, Some(place)));
        self.find_pair(
            Class::Race,
            kind,
            wi as u32,
            pc,
            1 << lane,
            at,
            Some((other.pc(), side.clone())),
            || format!("{kind}: nothing orders this access behind the one of {side}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_take_eleven_bytes_a_byte_and_keep_every_field() {
        assert_eq!(size_of::<Cell>(), 4 * 11);
        for who in [1, 32 * CTAS] {
            for time in [0, 77, (1 << 28) - 2, IN_FLIGHT] {
                for bits in [BYTES, u32::MAX, 0xfffff << 12 | 1, STRONG | 2, NEAR | 32 << 6 | 4] {
                    let past = Past { who, time, bits }.keep().get();
                    assert_eq!((past.who, past.time, past.bits), (who, time, bits));
                }
            }
        }
        // The short way joins as the long one does.
        for lanes in [(3, 3), (3, 4), (SEVERAL, 4), (4, SEVERAL)] {
            let mut a = Past { who: 9, time: 7, bits: 5 << 12 | lanes.0 << 6 | 3 };
            let b = Past { who: 9, time: 7, bits: 6 << 12 | lanes.1 << 6 | BYTES };
            assert!(a.keep().plain_meets(b.keep()));
            let joined = a.keep().joined(b.keep()).get();
            assert!(a.merge(b));
            assert_eq!((joined.who, joined.time, joined.bits), (a.who, a.time, a.bits));
            assert!(!a.keep().plain_meets(Past { time: 8, ..b }.keep()));
            assert!(!a.keep().plain_meets(Past { bits: b.bits | STRONG, ..b }.keep()));
        }
        // Beyond: earlier, never in flight.
        assert_eq!(Past { who: 1, time: 1 << 30, bits: 1 }.keep().get().time, (1 << 28) - 2);
    }
}
