//! Which access is ordered behind which.
//!
//! Every warp has a logical time that advances at synchronisations, and knows up to which time it is
//! behind the other warps of its CTA and behind warps of other CTAs: by barriers, and by release and
//! acquire. A fence keeps what the warp knows, the strong writes after it leave that at their address;
//! a strong read finds it there, and the next fence (or CTA barrier) makes it known. `.release` and
//! `.acquire` do both steps at once. Within a CTA any scope will do and shared memory counts as well
//! (`near`), between CTAs it takes gpu scope and global memory (`marks`). Lanes of a warp are ordered
//! by any `.sync` both take part in, or by such a hand-over; for other warps they are one.

use super::lanes::lanes;
use super::mem::Spots;
use super::race::{IN_FLIGHT, Past, SEVERAL};
use super::{Cta, Machine};
use crate::inst::Access;
use crate::memory::SHARED_WINDOW;
use crate::types::Space;
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

/// Times of warps, by warp + 32 * CTA.
pub(super) type Times = Vec<(u32, u32)>;

/// What a warp knows of time.
pub(super) struct Clock {
    pub time: u32,
    /// Time of the last synchronisation of all living lanes.
    full: u32,
    /// Newest time of each warp of the CTA that this one is ordered behind.
    pub seen: [u32; 32],
    /// `pair[b][a]`: newest time of lane a that lane b is ordered behind, beyond `full`.
    pair: Box<[[u32; 32]; 32]>,
    /// What was known at the last fence.
    fenced: Option<Rc<Times>>,
    /// Own time in `fenced`. Strong accesses count as made then: who acquires them knows that time.
    fence_time: u32,
    /// The same within the CTA, by a fence of any scope.
    near_fenced: Option<[u32; 32]>,
    near_time: u32,
    /// Addresses read strongly since the last fence, with their versions.
    found: Vec<u64>,
    /// The same for what the CTA left there.
    near_found: Vec<u64>,
    /// The last address learned from, and its version then.
    learned: (u64, u32),
}

impl Clock {
    pub fn new() -> Clock {
        Clock {
            time: 1,
            full: 0,
            seen: [0; 32],
            pair: Box::new([[0; 32]; 32]),
            fenced: None,
            fence_time: 0,
            near_fenced: None,
            near_time: 0,
            found: Vec::new(),
            near_found: Vec::new(),
            learned: (0, 0),
        }
    }

    pub fn reset(&mut self) {
        self.time = 1;
        self.full = 0;
        self.seen = [0; 32];
        *self.pair = [[0; 32]; 32];
        self.fenced = None;
        self.fence_time = 0;
        self.near_fenced = None;
        self.near_time = 0;
        self.found.clear();
        self.near_found.clear();
        self.learned = (0, 0);
    }

    /// The lanes `mask` met; `live` are all there are.
    pub fn sync(&mut self, mask: u32, live: u32) {
        if mask & live == live {
            self.full = self.time;
        } else {
            let mut newest = [0u32; 32];
            for b in lanes(mask) {
                for a in 0..32 {
                    newest[a] = newest[a].max(self.pair[b][a]);
                }
            }
            for a in lanes(mask) {
                newest[a] = self.time;
            }
            for b in lanes(mask) {
                self.pair[b] = newest;
            }
        }
        self.time += 1;
    }

    /// Times of the warps of the CTA this one is ordered behind, itself (warp `wi`) included.
    fn known_here(&self, wi: usize) -> [u32; 32] {
        let mut times = self.seen;
        times[wi & 31] = self.time;
        times
    }

    /// Takes over what another warp, or another lane of this one, released in the CTA.
    fn join_here(&mut self, wi: usize, times: &[u32; 32]) {
        for (mine, &t) in self.seen.iter_mut().zip(times) {
            *mine = (*mine).max(t);
        }
        self.full = self.full.max(times[wi & 31]);
    }

    /// The time a strong access, or another one, is made at.
    pub fn stamp(&self, strong: bool) -> u32 {
        match (strong, self.fence_time, self.near_time) {
            (true, 0, 1..) => self.near_time,
            (true, 1.., _) => self.fence_time,
            _ => self.time,
        }
    }

    /// Lane `lane` is ordered behind lane `other` of the same warp at `time`.
    fn lanes_ordered(&self, lane: u32, other: u32, time: u32) -> bool {
        if self.full >= time {
            return true;
        }
        let after = |b: usize, a: usize| b == a || self.pair[b][a] >= time;
        match (other, lane) {
            (SEVERAL, SEVERAL) => true,
            (SEVERAL, b) => (0..32).any(|a| a != b as usize && after(b as usize, a)),
            (a, SEVERAL) => (0..32).all(|b| after(b, a as usize)),
            (a, b) => after(b as usize, a as usize),
        }
    }
}

/// A time of another CTA's warp, who learned it here, and when.
#[derive(Clone, Copy)]
struct Learned {
    time: u32,
    by: u32,
    at: u32,
}

/// What the warps of a CTA know of those of other CTAs.
#[derive(Default)]
pub(super) struct Far(HashMap<u32, Vec<Learned>>);

impl Far {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Newest time of `who` that warp `warp` is ordered behind.
    fn known(&self, who: u32, warp: u32, clock: &Clock) -> u32 {
        let Some(list) = self.0.get(&who) else { return 0 };
        let mine = |l: &&Learned| l.by == warp || clock.seen[(l.by & 31) as usize] >= l.at;
        list.iter().filter(mine).map(|l| l.time).max().unwrap_or(0)
    }
}

/// The thread that makes an access.
pub(super) struct Me<'a> {
    pub clock: &'a Clock,
    far: &'a Far,
    pub cta: u32,
    pub warp: u32,
    pub lane: u32,
    /// A warp and time, as cells keep them, that every lane was found to be behind.
    pub known: Cell<u64>,
}

impl<'a> Me<'a> {
    pub fn new(clock: &'a Clock, far: &'a Far, cta: u32, warp: u32) -> Me<'a> {
        Me { clock, far, cta, warp, lane: 0, known: Cell::new(0) }
    }

    /// Every lane of the warp is ordered behind `who` (warp + 32 * CTA) at `time`.
    #[inline]
    pub fn warp_behind(&self, who: u32, time: u32) -> bool {
        if who >> 5 != self.cta {
            return self.far.known(who, self.warp, self.clock) >= time;
        }
        if who & 31 != self.warp {
            return self.clock.seen[(who & 31) as usize] >= time;
        }
        self.clock.full >= time
    }

    /// This access is ordered behind that one.
    #[inline]
    pub fn behind(&self, a: Past) -> bool {
        let time = a.time();
        if time == IN_FLIGHT {
            return false;
        }
        if a.cta() != self.cta {
            return self.far.known(a.cta() << 5 | a.warp(), self.warp, self.clock) >= time;
        }
        if a.warp() != self.warp {
            return self.clock.seen[a.warp() as usize] >= time;
        }
        self.clock.lanes_ordered(self.lane, a.lane(), time)
    }
}

/// What release left at an address.
#[derive(Default)]
pub(super) struct Mark {
    times: HashMap<u32, u32>,
    version: u32,
    /// Warp that wrote last.
    owner: u32,
    last: Option<Rc<Times>>,
}

/// What release left at an address for the same CTA.
pub(super) struct Near {
    times: [u32; 32],
    owner: u32,
}

impl Machine<'_> {
    /// All that warp `wi` is ordered behind, itself included.
    fn knowledge(&self, cta: &Cta, wi: usize) -> Rc<Times> {
        let c = &cta.warps[wi].clock;
        let mut all = Times::new();
        for (w, &t) in c.seen.iter().enumerate() {
            let t = if w == wi { c.time } else { t };
            if t > 0 {
                all.push((cta.linear << 5 | w as u32, t));
            }
        }
        for &who in cta.far.0.keys() {
            let t = cta.far.known(who, wi as u32, c);
            if t > 0 {
                all.push((who, t));
            }
        }
        Rc::new(all)
    }

    /// Makes what was released at `address` known to warp `wi`.
    fn learn(&mut self, cta: &mut Cta, wi: usize, address: u64) {
        let Some(mark) = self.marks.get(&address) else { return };
        let Cta { warps, far, linear, .. } = cta;
        if warps[wi].clock.learned == (address, mark.version) {
            return;
        }
        warps[wi].clock.learned = (address, mark.version);
        let at = warps[wi].clock.time;
        for (&who, &time) in &mark.times {
            if who >> 5 == *linear {
                let s = &mut warps[wi].clock.seen[(who & 31) as usize];
                *s = (*s).max(time);
                continue;
            }
            if far.known(who, wi as u32, &warps[wi].clock) >= time {
                continue;
            }
            let list = far.0.entry(who).or_default();
            list.push(Learned { time, by: wi as u32, at });
            if list.len() > 8 {
                // What everybody knows is superseded by the newest that everybody knows.
                let common = |l: &Learned| {
                    warps.iter().all(|w| {
                        w.groups.is_empty() || w.index == l.by || w.clock.seen[(l.by & 31) as usize] >= l.at
                    })
                };
                let newest = list.iter().filter(|l| common(l)).map(|l| l.time).max().unwrap_or(0);
                list.retain(|l| l.time >= newest || !common(l));
            }
        }
        warps[wi].clock.time += 1;
    }

    /// A fence; `near` is of CTA scope.
    pub(super) fn fence(&mut self, cta: &mut Cta, wi: usize, near: bool) {
        if !self.check_race {
            return;
        }
        self.acquire_found(cta, wi);
        let all = (!near).then(|| self.knowledge(cta, wi));
        let c = &mut cta.warps[wi].clock;
        c.near_fenced = Some(c.known_here(wi));
        c.near_time = c.time;
        if let Some(all) = all {
            (c.fenced, c.fence_time) = (Some(all), c.time);
        }
        c.time += 1;
    }

    /// A warp comes to barrier `id`: its fence serves all who meet there.
    pub(super) fn fence_comes(&mut self, cta: &mut Cta, wi: usize, id: usize) {
        if let Some(f) = &cta.warps[wi].clock.fenced
            && !cta.bar_fences[id].iter().any(|o| Rc::ptr_eq(o, f))
        {
            cta.bar_fences[id].push(f.clone());
        }
    }

    /// Barrier `id` opens for the warps `who`.
    pub(super) fn fence_goes(&mut self, cta: &mut Cta, who: &[usize], id: usize) {
        let fences = std::mem::take(&mut cta.bar_fences[id]);
        let Some(first) = fences.first() else { return };
        let mut all = first.clone();
        if fences.len() > 1 {
            let mut times: HashMap<u32, u32> = HashMap::new();
            for &(w, t) in fences.iter().flat_map(|f| f.iter()) {
                let known = times.entry(w).or_insert(0);
                *known = (*known).max(t);
            }
            let mut list: Times = times.into_iter().collect();
            list.sort_unstable();
            all = Rc::new(list);
        }
        for &wi in who {
            let me = cta.linear << 5 | wi as u32;
            let c = &mut cta.warps[wi].clock;
            match all.iter().find(|e| e.0 == me) {
                Some(&(_, t)) => (c.fenced, c.fence_time) = (Some(all.clone()), t),
                None => {
                    let own = [(me, c.time)];
                    (c.fenced, c.fence_time) =
                        (Some(Rc::new(all.iter().chain(&own).copied().collect())), c.time);
                    c.time += 1;
                }
            }
        }
    }

    /// Completes strong reads, at a fence or a barrier.
    pub(super) fn acquire_found(&mut self, cta: &mut Cta, wi: usize) {
        let mut found = std::mem::take(&mut cta.warps[wi].clock.found);
        for &address in &found {
            self.learn(cta, wi, address);
        }
        found.clear();
        let Cta { near, warps, .. } = cta;
        let clock = &mut warps[wi].clock;
        clock.found = found;
        let mut found = std::mem::take(&mut clock.near_found);
        for address in &found {
            if let Some(mark) = near.get(address) {
                clock.join_here(wi, &mark.times);
            }
        }
        found.clear();
        clock.near_found = found;
    }

    /// A strong access passes knowledge on: `read` and `write` as it does.
    pub(super) fn strong(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        s: &Spots,
        m: &Access,
        read: bool,
        write: bool,
    ) {
        if !self.check_race || !m.strong || !matches!(s.space, Space::Global | Space::Shared) {
            return;
        }
        let far = !m.near && s.space == Space::Global;
        if read {
            self.strong_read(cta, wi, s, m, far);
        }
        if !write {
            return;
        }
        // A release serves this write alone, other than a fence.
        let all = match (far, m.release) {
            (true, true) => Some(self.knowledge(cta, wi)),
            (true, false) => cta.warps[wi].clock.fenced.clone(),
            _ => None,
        };
        let c = &mut cta.warps[wi].clock;
        let here = if m.release { Some(c.known_here(wi)) } else { c.near_fenced };
        if m.release {
            c.near_time = c.time;
            c.fence_time = if far { c.time } else { c.fence_time };
            c.time += 1;
        }
        for lane in lanes(s.ok) {
            let address = self.address_of(s, lane);
            // A store takes the place of what others left, an atomic carries it on.
            if !read && cta.near.get(&address).is_some_and(|n| n.owner != wi as u32) {
                cta.near.remove(&address);
            }
            let Some(here) = &here else { continue };
            let mark = cta.near.entry(address).or_insert(Near { times: [0; 32], owner: 0 });
            mark.owner = wi as u32;
            for (t, &new) in mark.times.iter_mut().zip(here) {
                *t = (*t).max(new);
            }
        }
        if far {
            self.strong_far(cta.linear << 5 | wi as u32, s, read, all);
        }
    }

    /// The words an access goes to, told apart by their addresses.
    fn address_of(&self, s: &Spots, lane: usize) -> u64 {
        let base = match s.space {
            Space::Shared => SHARED_WINDOW,
            _ => self.l.mem.allocs[s.alloc[lane] as usize].base,
        };
        (base + s.offset[lane] as u64) & !3
    }

    fn strong_read(&mut self, cta: &mut Cta, wi: usize, s: &Spots, m: &Access, far: bool) {
        let far = far && !self.marks.is_empty();
        if cta.near.is_empty() && !far {
            return;
        }
        for lane in lanes(s.ok) {
            let address = self.address_of(s, lane);
            if let Some(mark) = cta.near.get(&address) {
                let clock = &mut cta.warps[wi].clock;
                if m.acquire {
                    clock.join_here(wi, &mark.times);
                } else if !clock.near_found.contains(&address) {
                    clock.near_found.push(address);
                }
            }
            if far && self.marks.contains_key(&address) {
                if m.acquire {
                    self.learn(cta, wi, address);
                } else if !cta.warps[wi].clock.found.contains(&address) {
                    cta.warps[wi].clock.found.push(address);
                }
            }
        }
    }

    /// Leaves `times` at the addresses for other CTAs.
    fn strong_far(&mut self, me: u32, s: &Spots, read: bool, times: Option<Rc<Times>>) {
        for lane in lanes(s.ok) {
            let address = self.address_of(s, lane);
            if !read
                && let Some(mark) = self.marks.get_mut(&address)
                && mark.owner != me
            {
                mark.times.clear();
                mark.last = None;
                mark.version += 1;
            }
            let Some(times) = &times else { continue };
            let mark = self.marks.entry(address).or_default();
            mark.owner = me;
            if mark.last.as_ref().is_some_and(|l| Rc::ptr_eq(l, times)) {
                continue;
            }
            for &(who, t) in times.iter() {
                let known = mark.times.entry(who).or_insert(0);
                *known = (*known).max(t);
            }
            mark.version += 1;
            mark.last = Some(times.clone());
        }
    }
}
