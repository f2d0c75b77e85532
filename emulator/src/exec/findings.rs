//! What is reported, and the marks on registers that were written.
//!
//! Findings of one class, kind and place (for races: pair of places) are one, counted. The CTA that
//! starts first gives the details, and the list goes by CTAs in that order and then by time: so it
//! does not matter which CTA ran ahead, nor on which thread.

use super::{Cta, Machine, State, Warp};
use crate::inst::*;
use crate::report::{Class, Finding, Place as Where, Side};
use std::collections::HashMap;

/// Distinct findings reported.
const MOST_REPORTED: usize = 200;
/// Distinct findings kept until the end of the launch.
const MOST_KEPT: usize = 4096;

type Key = (Class, &'static str, u32, u32);

/// A finding, with what puts it in order.
struct Entry {
    cta_order: u64,
    /// Time among the findings of its CTA.
    tick: u64,
    finding: Finding,
}

/// The findings of a launch.
#[derive(Default)]
pub(super) struct Found {
    entries: HashMap<Key, Entry>,
    tick: u64,
    /// Some were dropped.
    full: bool,
}

impl Found {
    /// Takes in those of another thread; false when there are too many to keep all.
    pub fn merge(&mut self, other: Found) -> bool {
        for (key, mut e) in other.entries {
            match self.entries.get_mut(&key) {
                None => {
                    self.entries.insert(key, e);
                }
                Some(mine) => {
                    let count = mine.finding.count + e.finding.count;
                    if e.cta_order < mine.cta_order {
                        std::mem::swap(mine, &mut e);
                    }
                    mine.finding.count = count;
                }
            }
        }
        self.full |= other.full;
        !self.full && self.entries.len() <= MOST_KEPT
    }

    /// In the order of the report.
    pub fn list(self) -> Vec<Finding> {
        let mut all: Vec<Entry> = self.entries.into_values().collect();
        all.sort_by_key(|e| (e.cta_order, e.tick));
        all.truncate(MOST_REPORTED);
        all.into_iter().map(|e| e.finding).collect()
    }
}

impl Machine<'_> {
    pub(super) fn find(
        &mut self,
        class: Class,
        kind: &'static str,
        warp: u32,
        pc: u32,
        lanes: u32,
        at: Option<(u64, Option<Where>)>,
        message: impl FnOnce() -> String,
    ) {
        self.find_pair(class, kind, warp, pc, lanes, at, None, message);
    }

    /// As `find`, with the other access: its instruction and what is said of it.
    #[cold]
    pub(super) fn find_pair(
        &mut self,
        class: Class,
        kind: &'static str,
        warp: u32,
        pc: u32,
        lanes: u32,
        at: Option<(u64, Option<Where>)>,
        other: Option<(u32, Side)>,
        message: impl FnOnce() -> String,
    ) {
        let key = (class, kind, pc, other.as_ref().map_or(0, |o| o.0));
        let mut count = 1;
        if let Some(e) = self.found.entries.get_mut(&key) {
            e.finding.count += 1;
            if e.cta_order <= self.cta_order {
                return;
            }
            count = e.finding.count;
        } else if self.found.entries.len() >= if self.l.options.stop_at_finding { 1 } else { MOST_KEPT } {
            self.found.full = true;
            return;
        }
        self.stop |= self.l.options.stop_at_finding;
        let (line, source) = self.source(pc);
        let (address, allocation) = match at {
            Some((a, p)) => (Some(a), p),
            None => (None, None),
        };
        let finding = Finding {
            class,
            kind: kind.to_string(),
            message: message(),
            kernel: self.l.prog.name.clone(),
            line,
            source,
            cta: self.cta_id,
            warp,
            lanes,
            address,
            allocation,
            count,
            other: other.map(|o| o.1),
        };
        self.found.tick += 1;
        let entry = Entry { cta_order: self.cta_order, tick: self.found.tick, finding };
        self.found.entries.insert(key, entry);
    }

    /// PTX line, and file and line by `.loc`.
    pub(super) fn source(&self, pc: u32) -> (u32, Option<(String, u32)>) {
        let place = self.l.prog.places.get(pc as usize).copied().unwrap_or_default();
        let file = if place.file == 0 { None } else { self.l.files.get(&place.file) };
        (place.line, file.map(|f| (f.clone(), place.source)))
    }

    pub(super) fn uninit_reg(&mut self, w: &Warp, pc: u32, lanes: u32) {
        self.find(Class::Init, "register", w.index, pc, lanes, None, || {
            "reads a register that was never written".to_string()
        });
    }

    /// Reports sources that were never written in some active lane.
    #[inline(always)]
    pub(super) fn check_regs(&mut self, w: &mut Warp, pc: u32, mask: u32, regs: &[R]) {
        if !self.check_init {
            return;
        }
        for &r in regs {
            if r.some() && w.known[r.slot()] & mask != mask {
                let lanes = mask & !w.known[r.slot()];
                self.uninit_reg(w, pc, lanes);
                // Once is enough for this value.
                w.known[r.slot()] |= mask;
            }
        }
    }

    pub(super) fn check_pred(&mut self, w: &mut Warp, pc: u32, mask: u32, p: P) {
        if self.check_init && p != NO_P && w.pknown[p as usize] & mask != mask {
            let lanes = mask & !w.pknown[p as usize];
            self.uninit_reg(w, pc, lanes);
            w.pknown[p as usize] |= mask;
        }
    }

    #[inline(always)]
    pub(super) fn wrote(&self, w: &mut Warp, mask: u32, r: R) {
        if self.check_init {
            w.known[r.slot()] |= mask;
        }
    }

    #[inline(always)]
    pub(super) fn set_pred(&self, w: &mut Warp, mask: u32, p: P, v: u32) {
        if p == NO_P {
            return;
        }
        let old = &mut w.preds[p as usize];
        *old = (*old & !mask) | (v & mask);
        if self.check_init {
            w.pknown[p as usize] |= mask;
        }
    }

    pub(super) fn step_limit(&mut self, ctas: &[Cta]) {
        self.stop = true;
        let mut places = String::new();
        let mut first = (0, 0, 0);
        let mut n = 0;
        for c in ctas {
            for w in &c.warps {
                for g in &w.groups {
                    if n == 0 {
                        (self.cta_id, self.cta_order) = (c.id, c.order);
                        first = (w.index, g.pc, g.mask);
                    }
                    n += 1;
                    if n <= 16 {
                        let [x, y, z] = c.id;
                        let line = self.line(g.pc);
                        let what = match g.state {
                            State::Ready => "runs",
                            State::Sync(_) => "waits for lanes",
                            State::Bar(_) => "waits at a barrier",
                        };
                        places.push_str(&format!(
                            "\n  CTA ({x},{y},{z}) warp {} lanes {:#010x}: {what} at PTX line {line}, {} instructions",
                            w.index, g.mask, w.executed
                        ));
                    }
                }
            }
        }
        if n > 16 {
            places.push_str(&format!("\n  and {} more", n - 16));
        }
        let limit = self.l.options.max_steps;
        let (warp, pc, lanes) = first;
        if self.l.options.checks.steps {
            self.find(Class::Steps, "step limit", warp, pc, lanes, None, || {
                format!("still running after {limit} warp instructions; where everyone is:{places}\n ")
            });
        }
    }

    pub(super) fn line(&self, pc: u32) -> u32 {
        self.l.prog.places.get(pc as usize).map_or(0, |p| p.line)
    }
}
