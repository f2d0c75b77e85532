//! Loads, stores and asynchronous copies, with their checks and counters.
//!
//! An access first becomes 32 addresses, then places: which allocation (or the CTA's shared memory,
//! or the lane's local memory) and the offset in it. Lanes whose place is wrong are reported and
//! drop out; a load gives them zero. Beside other threads the bytes of global memory are claimed
//! with their places, so nothing is read or written that another thread may touch.

use super::lanes::{Bank, lanes};
use super::order::Me;
use super::race::{self, Bring, How};
use super::{Cta, Machine, Warp};
use crate::error::Error;
use crate::inst::*;
use crate::memory::{Bits, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_END};
use crate::report::{Class, Place};
use crate::types::Space;

/// Where the lanes of an access go.
#[derive(Clone, Copy)]
pub(super) struct Spots {
    pub space: Space,
    /// Lanes whose place is good.
    pub ok: u32,
    /// Allocation per lane, for global memory.
    pub alloc: [u32; 32],
    /// All lanes in one allocation.
    pub uniform: bool,
    pub offset: [usize; 32],
}

#[inline(always)]
pub(super) fn read_le(data: &[u8], at: usize, n: usize) -> u64 {
    match n {
        4 => u64::from(u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])),
        8 => {
            let mut b = [0; 8];
            b.copy_from_slice(&data[at..at + 8]);
            u64::from_le_bytes(b)
        }
        2 => u64::from(u16::from_le_bytes([data[at], data[at + 1]])),
        _ => u64::from(data[at]),
    }
}

#[inline(always)]
pub(super) fn write_le(data: &mut [u8], at: usize, n: usize, v: u64) {
    match n {
        4 => data[at..at + 4].copy_from_slice(&(v as u32).to_le_bytes()),
        8 => data[at..at + 8].copy_from_slice(&v.to_le_bytes()),
        2 => data[at..at + 2].copy_from_slice(&(v as u16).to_le_bytes()),
        _ => data[at] = v as u8,
    }
}

fn window_of(addr: u64) -> (Space, u64) {
    match addr {
        SHARED_WINDOW..LOCAL_WINDOW => (Space::Shared, SHARED_WINDOW),
        LOCAL_WINDOW..PARAM_WINDOW => (Space::Local, LOCAL_WINDOW),
        PARAM_WINDOW..WINDOW_END => (Space::Param, PARAM_WINDOW),
        _ => (Space::Global, 0),
    }
}

impl Machine<'_> {
    /// Computes the addresses of an access into the warp's scratch array.
    #[inline]
    pub(super) fn addresses(&mut self, cta: &mut Cta, wi: usize, base: R, offset: i64) {
        let w = &mut cta.warps[wi];
        if !base.some() {
            w.addr = [offset as u64; 32];
        } else if base.wide() {
            let b = w.bank.r64(base);
            for i in 0..32 {
                w.addr[i] = b[i].wrapping_add(offset as u64);
            }
        } else {
            let b = w.bank.r32(base);
            for i in 0..32 {
                w.addr[i] = u64::from(b[i].wrapping_add(offset as u32));
            }
        }
    }

    /// Splits lanes of a generic access by the window of their addresses; calls `f` per space.
    pub(super) fn by_space(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        mask: u32,
        space: Space,
        mut f: impl FnMut(&mut Self, &mut Cta, Space, u32),
    ) {
        if space != Space::Generic {
            f(self, cta, space, mask);
            return;
        }
        let mut left = mask;
        while left != 0 {
            let (space, window) = window_of(cta.warps[wi].addr[left.trailing_zeros() as usize]);
            let mut same = 0;
            for i in lanes(left) {
                let a = &mut cta.warps[wi].addr[i];
                if window_of(*a).0 == space {
                    same |= 1 << i;
                }
            }
            for i in lanes(same) {
                cta.warps[wi].addr[i] -= window;
            }
            f(self, cta, space, same);
            left &= !same;
        }
    }

    /// Finds the places of `total` bytes a lane.
    pub(super) fn spots(
        &mut self,
        cta: &Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        space: Space,
        total: usize,
        write: bool,
    ) -> Spots {
        let addr = &cta.warps[wi].addr;
        let mut s = Spots { space, ok: 0, alloc: [0; 32], uniform: true, offset: [0; 32] };
        let misaligned = |a: u64| a & (total as u64 - 1) != 0;
        match space {
            Space::Global | Space::Const | Space::Generic => {
                s.space = Space::Global;
                let first = addr[mask.trailing_zeros() as usize];
                if let Some(i) = self.l.mem.find(first) {
                    let a = &self.l.mem.allocs[i];
                    if a.live && !(write && a.readonly) && a.size >= total as u64 {
                        let last = a.size - total as u64;
                        let mut ok = true;
                        for lane in 0..32 {
                            let off = addr[lane].wrapping_sub(a.base);
                            let active = mask >> lane & 1 != 0;
                            ok &= !active | ((off <= last) & !misaligned(addr[lane]));
                            s.offset[lane] = off as usize;
                        }
                        if ok {
                            s.ok = mask;
                            s.alloc = [i as u32; 32];
                            if self.claimer.is_some() {
                                self.claim(&mut s, total, write);
                            }
                            return s;
                        }
                    }
                }
                s.uniform = false;
                self.slow_spots(cta, wi, pc, mask, total, write, &mut s);
                if self.claimer.is_some() {
                    self.claim(&mut s, total, write);
                }
            }
            _ => {
                let limit = match space {
                    Space::Shared => self.l.shared as u64,
                    Space::Local => u64::from(self.l.prog.local_bytes),
                    _ => self.l.params.len() as u64,
                };
                if space != Space::Local && total as u64 <= limit && !(write && space == Space::Param) {
                    let last = limit - total as u64;
                    let mut ok = true;
                    for lane in 0..32 {
                        let a = addr[lane];
                        ok &= (mask >> lane & 1 == 0) | ((a <= last) & !misaligned(a));
                        s.offset[lane] = a as usize;
                    }
                    if ok {
                        s.ok = mask;
                        return s;
                    }
                }
                let (mut outside, mut crooked) = (0u32, 0u32);
                let stride = if space == Space::Local { self.l.prog.local_bytes as usize } else { 0 };
                for lane in lanes(mask) {
                    let a = addr[lane];
                    if a > limit || total as u64 > limit - a {
                        outside |= 1 << lane;
                    } else if misaligned(a) {
                        crooked |= 1 << lane;
                    }
                    s.offset[lane] = (a as usize).wrapping_add(lane * stride);
                }
                s.ok = mask & !outside & !crooked;
                let readonly = write && space == Space::Param;
                if outside | crooked != 0 || readonly {
                    self.bad_small(cta, wi, pc, mask, space, limit, total, write, outside, crooked);
                    if readonly {
                        s.ok = 0;
                    } else if !self.check_mem {
                        s.ok |= crooked;
                    }
                }
            }
        }
        s
    }

    /// Beside other threads: claims the bytes of an access to global memory. Where another CTA is in
    /// the way no lane goes on, and the launch will be run again.
    pub(super) fn claim(&mut self, s: &mut Spots, total: usize, write: bool) {
        let Some(claimer) = &mut self.claimer else { return };
        let allocs = &self.l.mem.allocs;
        let mut good = true;
        // Lanes often follow each other: their bytes are claimed as one.
        let (mut alloc, mut from, mut to) = (0, 0, 0);
        for lane in lanes(s.ok) {
            let (i, at) = (s.alloc[lane] as usize, s.offset[lane]);
            if i == alloc && at == to {
                to = at + total;
            } else if i != alloc || at < from || at + total > to {
                good = good && (from == to || claimer.claim(&allocs[alloc], alloc, from, to - from, write));
                (alloc, from, to) = (i, at, at + total);
            }
        }
        good = good && (from == to || claimer.claim(&allocs[alloc], alloc, from, to - from, write));
        if !good {
            s.ok = 0;
            self.stop = true;
        }
    }

    #[allow(clippy::too_many_arguments)]
    #[cold]
    fn bad_small(
        &mut self,
        cta: &Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        space: Space,
        limit: u64,
        total: usize,
        write: bool,
        outside: u32,
        crooked: u32,
    ) {
        let addr = &cta.warps[wi].addr;
        let verb = if write { "store" } else { "load" };
        let name = space.name();
        if !self.check_mem {
            if outside != 0 {
                self.illegal(pc, addr[outside.trailing_zeros() as usize]);
            }
            return;
        }
        let place =
            |a: u64| Some((a, Some(Place { name: format!(".{name}"), size: limit, offset: a as i64 })));
        if outside != 0 {
            let a = addr[outside.trailing_zeros() as usize];
            let of = if space == Space::Shared { " of the CTA" } else { "" };
            self.find(Class::Mem, "out of bounds", wi as u32, pc, outside, place(a), || {
                format!("{verb} of {total} bytes at {a:#x}, beyond the {limit} bytes of {name} memory{of}")
            });
        }
        if crooked != 0 {
            let a = addr[crooked.trailing_zeros() as usize];
            self.find(Class::Mem, "misaligned", wi as u32, pc, crooked, place(a), || {
                format!("{verb} of {total} bytes at {name} address {a:#x}, which is no multiple of {total}")
            });
        }
        if write && space == Space::Param {
            self.find(Class::Mem, "read-only", wi as u32, pc, mask, None, || {
                "store to a parameter of the kernel".to_string()
            });
        }
    }

    /// Lane by lane, with the reasons.
    #[allow(clippy::too_many_arguments)]
    #[cold]
    fn slow_spots(
        &mut self,
        cta: &Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        total: usize,
        write: bool,
        s: &mut Spots,
    ) {
        const KINDS: [&str; 5] = ["null", "out of bounds", "use after free", "misaligned", "read-only"];
        let addr = cta.warps[wi].addr;
        let mut bad = [0u32; 5];
        for lane in lanes(mask) {
            let a = addr[lane];
            let kind = match self.l.mem.find(a) {
                None if a < 4096 => Some(0),
                None => Some(1),
                Some(i) => {
                    let al = &self.l.mem.allocs[i];
                    s.alloc[lane] = i as u32;
                    s.offset[lane] = (a - al.base) as usize;
                    if !al.live {
                        Some(2)
                    } else if a - al.base + total as u64 > al.size {
                        Some(1)
                    } else if write && al.readonly {
                        Some(4)
                    } else if a & (total as u64 - 1) != 0 && self.check_mem {
                        Some(3)
                    } else {
                        None
                    }
                }
            };
            match kind {
                None => s.ok |= 1 << lane,
                Some(k) => bad[k] |= 1 << lane,
            }
        }
        for (k, &m) in bad.iter().enumerate() {
            if m == 0 {
                continue;
            }
            let a = addr[m.trailing_zeros() as usize];
            if !self.check_mem {
                self.illegal(pc, a);
                return;
            }
            let near = self.l.mem.find(a).or_else(|| self.l.mem.nearest(a)).map(|i| {
                let al = &self.l.mem.allocs[i];
                Place { name: al.name.clone(), size: al.size, offset: a.wrapping_sub(al.base) as i64 }
            });
            let verb = if write { "store" } else { "load" };
            let what = match k {
                0 => "at the null page",
                1 => "outside every allocation",
                2 => "in freed memory",
                3 => "at an address that is no multiple of its size",
                _ => "to read-only memory",
            };
            self.find(Class::Mem, KINDS[k], wi as u32, pc, m, Some((a, near)), || {
                format!("{}: {verb} of {total} bytes {what}", KINDS[k])
            });
        }
    }

    fn illegal(&mut self, pc: u32, address: u64) {
        if self.fatal.is_none() {
            self.fatal = Some(Error::IllegalAddress {
                kernel: self.l.prog.name.clone(),
                line: self.line(pc),
                address,
            });
        }
        self.stop = true;
    }

    /// Lanes that read bytes never written.
    pub(super) fn unwritten(&self, cta: &Cta, wi: usize, s: &Spots, total: usize) -> u32 {
        if !self.check_init {
            return 0;
        }
        let mut bad = 0u32;
        match s.space {
            Space::Shared | Space::Local => {
                let bits: &Bits =
                    if s.space == Space::Shared { &cta.shared_known } else { &cta.warps[wi].local_known };
                for lane in lanes(s.ok) {
                    if !bits.all(s.offset[lane], total) {
                        bad |= 1 << lane;
                    }
                }
            }
            Space::Global => {
                if s.uniform {
                    let Some(i) = lanes(s.ok).next() else { return 0 };
                    let Some(bits) = &self.l.mem.allocs[s.alloc[i] as usize].init else { return 0 };
                    for lane in lanes(s.ok) {
                        if !bits.all(s.offset[lane], total) {
                            bad |= 1 << lane;
                        }
                    }
                } else {
                    for lane in lanes(s.ok) {
                        let a = &self.l.mem.allocs[s.alloc[lane] as usize];
                        if a.init.as_ref().is_some_and(|b| !b.all(s.offset[lane], total)) {
                            bad |= 1 << lane;
                        }
                    }
                }
            }
            _ => {}
        }
        bad
    }

    /// Reports bytes that were never written.
    pub(super) fn check_written(&mut self, cta: &Cta, wi: usize, pc: u32, s: &Spots, total: usize) {
        let bad = self.unwritten(cta, wi, s, total);
        if bad == 0 {
            return;
        }
        let lane = bad.trailing_zeros() as usize;
        let a = cta.warps[wi].addr[lane];
        let place = if s.space == Space::Global {
            let al = &self.l.mem.allocs[s.alloc[lane] as usize];
            Place { name: al.name.clone(), size: al.size, offset: s.offset[lane] as i64 }
        } else {
            let size = if s.space == Space::Shared { self.l.shared } else { self.l.prog.local_bytes };
            Place { name: format!(".{}", s.space.name()), size: u64::from(size), offset: a as i64 }
        };
        let kind = match s.space {
            Space::Shared => "shared memory",
            Space::Local => "local memory",
            _ => "global memory",
        };
        self.find(Class::Init, kind, wi as u32, pc, bad, Some((a, Some(place))), || {
            format!("reads {kind} that was never written")
        });
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn load(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        m: Access,
        d: [R; 4],
        more: u32,
    ) {
        self.check_regs(&mut cta.warps[wi], pc, mask, &[m.base]);
        self.addresses(cta, wi, m.base, m.offset);
        let (n, bytes) = (usize::from(m.n), usize::from(m.bytes));
        let total = n * bytes;
        self.by_space(cta, wi, mask, m.space, |this, cta, space, mask| {
            let s = this.spots(cta, wi, pc, mask, space, total, false);
            if this.check_race {
                this.strong(cta, wi, &s, &m, true, false);
                this.race_read(cta, wi, pc, &s, total, How::of(&m), false);
            }
            this.count_access(cta, wi, &s, total, false);
            if this.check_init {
                this.check_written(cta, wi, pc, &s, total);
            }
            let prog = this.l.prog;
            let reg = |j: usize| if j < 4 { d[j] } else { prog.pool[more as usize + j - 4] };
            let Cta { shared, warps, .. } = cta;
            let Warp { bank, local, known, .. } = &mut warps[wi];
            // What the lane with this place reads of register `j`.
            macro_rules! each {
                ($n:literal) => {
                    for j in 0..n {
                        let at = |lane: usize| s.offset[lane] + j * $n;
                        let (reg, signed) = (reg(j), m.signed);
                        match s.space {
                            Space::Global if s.uniform => {
                                let data = &this.l.mem.allocs[s.alloc[0] as usize].data;
                                // SAFETY: one thread, or bytes claimed for reading.
                                load_lanes::<$n>(bank, reg, s.ok, signed, |l| unsafe { data.get(at(l)) });
                            }
                            Space::Global => {
                                let data = |lane: usize| &this.l.mem.allocs[s.alloc[lane] as usize].data;
                                // SAFETY: as above.
                                load_lanes::<$n>(bank, reg, s.ok, signed, |l| unsafe { data(l).get(at(l)) });
                            }
                            Space::Shared => {
                                load_lanes::<$n>(bank, reg, s.ok, signed, |l| part(shared, at(l)));
                            }
                            Space::Local => load_lanes::<$n>(bank, reg, s.ok, signed, |l| part(local, at(l))),
                            _ => load_lanes::<$n>(bank, reg, s.ok, signed, |l| part(this.l.params, at(l))),
                        }
                    }
                };
            }
            match bytes {
                1 => each!(1),
                2 => each!(2),
                4 => each!(4),
                _ => each!(8),
            }
            for j in 0..n {
                for lane in lanes(mask & !s.ok) {
                    bank.set(reg(j), lane, 0);
                }
                if this.check_init {
                    known[reg(j).slot()] |= mask;
                }
            }
        });
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn store(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        m: Access,
        src: [R; 4],
        more: u32,
    ) {
        let (n, bytes) = (usize::from(m.n), usize::from(m.bytes));
        let total = n * bytes;
        if self.check_init {
            self.check_regs(&mut cta.warps[wi], pc, mask, &[m.base]);
            self.check_regs(&mut cta.warps[wi], pc, mask, &src[..n.min(4)]);
        }
        self.addresses(cta, wi, m.base, m.offset);
        self.by_space(cta, wi, mask, m.space, |this, cta, space, mask| {
            let s = this.spots(cta, wi, pc, mask, space, total, true);
            this.count_access(cta, wi, &s, total, true);
            let races = this.check_race && matches!(s.space, Space::Global | Space::Shared);
            if races {
                this.strong(cta, wi, &s, &m, false, true);
            }
            let prog = this.l.prog;
            let reg = |j: usize| if j < 4 { src[j] } else { prog.pool[more as usize + j - 4] };
            let mut conflict = None;
            let Cta { shared, shared_known, warps, records, far, linear, .. } = &mut *cta;
            let Warp { bank, clock, local, local_known, .. } = &mut warps[wi];
            let allocs = &this.l.mem.allocs;
            if races {
                // Lane by lane: a lane may write what the one before it has written.
                let mut me = Me::new(clock, far, *linear, wi as u32);
                let how = How::of(&m);
                let mut new = [0u8; 64];
                for lane in lanes(s.ok) {
                    for j in 0..n {
                        write_le(&mut new, j * bytes, bytes, bank.get(reg(j), lane));
                    }
                    let (at, new) = (s.offset[lane], &new[..total]);
                    me.lane = lane as u32;
                    let hit = if s.space == Space::Shared {
                        let bring = Bring::Bytes(&shared[at..at + total], new);
                        let cells = &mut records[race::within(at, total)];
                        let hit = me.write(cells, at % 4, total, pc, how, bring);
                        shared[at..at + total].copy_from_slice(new);
                        hit
                    } else {
                        let hit = this.race_write(&me, &s, total, pc, how, Some(new), lane);
                        // SAFETY: one thread, or bytes claimed for writing.
                        unsafe { allocs[s.alloc[lane] as usize].data.put(at, new) };
                        hit
                    };
                    if let (Some(hit), None) = (hit, conflict) {
                        conflict = Some((lane as u32, hit));
                    }
                }
            } else {
                macro_rules! each {
                    ($n:literal) => {
                        for j in 0..n {
                            let at = |lane: usize| s.offset[lane] + j * $n;
                            let reg = reg(j);
                            match s.space {
                                Space::Global => store_lanes::<$n>(bank, reg, s.ok, |l, v| {
                                    // SAFETY: one thread, or bytes claimed for writing.
                                    unsafe { allocs[s.alloc[l] as usize].data.put(at(l), &v) };
                                }),
                                Space::Shared => {
                                    store_lanes::<$n>(bank, reg, s.ok, |l, v| {
                                        shared[at(l)..at(l) + $n].copy_from_slice(&v);
                                    });
                                }
                                Space::Local => {
                                    store_lanes::<$n>(bank, reg, s.ok, |l, v| {
                                        local[at(l)..at(l) + $n].copy_from_slice(&v);
                                    });
                                }
                                _ => {}
                            }
                        }
                    };
                }
                match bytes {
                    1 => each!(1),
                    2 => each!(2),
                    4 => each!(4),
                    _ => each!(8),
                }
            }
            match s.space {
                Space::Global => {
                    for lane in lanes(s.ok) {
                        if let Some(bits) = &allocs[s.alloc[lane] as usize].init {
                            bits.set_shared(s.offset[lane], total);
                        }
                    }
                }
                Space::Shared if this.check_init => {
                    lanes(s.ok).for_each(|lane| shared_known.set(s.offset[lane], total));
                }
                Space::Local => lanes(s.ok).for_each(|lane| local_known.set(s.offset[lane], total)),
                _ => {}
            }
            if races && conflict.is_none() && s.space == Space::Global {
                conflict = Self::source_in_flight(cta, wi, &s, total)
                    .map(|(lane, copy)| (lane, (copy, "overwrites source in flight")));
            }
            this.race_found(cta, wi, pc, &s, conflict);
        });
    }
}

/// `N` bytes of memory that belongs to one thread.
#[inline(always)]
fn part<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    let mut b = [0; N];
    b.copy_from_slice(&data[at..at + N]);
    b
}

/// Loads a register of the lanes `ok` with what `get` says, extended as the type is.
#[inline(always)]
fn load_lanes<const N: usize>(bank: &mut Bank, r: R, ok: u32, signed: bool, get: impl Fn(usize) -> [u8; N]) {
    if N == 4 && !r.wide() {
        let d = bank.m32(r);
        if ok == u32::MAX {
            for lane in 0..32 {
                d[lane] = read_le(&get(lane), 0, N) as u32;
            }
        } else {
            lanes(ok).for_each(|lane| d[lane] = read_le(&get(lane), 0, N) as u32);
        }
        return;
    }
    let sign = 64 - 8 * N as u32;
    let fit = if r.wide() { u64::MAX } else { 0xffff_ffff };
    for lane in lanes(ok) {
        let v = read_le(&get(lane), 0, N);
        bank.set(r, lane, if signed { ((v << sign) as i64 >> sign) as u64 & fit } else { v });
    }
}

/// Gives `put` the low `N` bytes of a register of each of the lanes `ok`.
#[inline(always)]
fn store_lanes<const N: usize>(bank: &Bank, r: R, ok: u32, mut put: impl FnMut(usize, [u8; N])) {
    if r.wide() {
        let v = bank.r64(r);
        lanes(ok).for_each(|lane| put(lane, part(&v[lane].to_le_bytes(), 0)));
    } else {
        let v = bank.r32(r);
        lanes(ok).for_each(|lane| put(lane, part(&u64::from(v[lane]).to_le_bytes(), 0)));
    }
}
