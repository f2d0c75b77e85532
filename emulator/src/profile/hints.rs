//! What to look at first: lines whose passes could be fewer, by how many.

use super::{Line, LineProfile, Profile};
use serde::Serialize;
use std::collections::BTreeMap;

/// One thing to improve, of one source line (or of one PTX line without `.loc`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hint {
    /// `uncoalesced`, `bank conflict`, `atomic contention`, `local memory` or `idle lanes`.
    pub kind: &'static str,
    /// File and line by `.loc`.
    pub source: Option<(String, u32)>,
    /// Where that line was inlined, if it was.
    pub inlined_at: Option<(String, u32)>,
    /// PTX lines concerned.
    pub ptx_lines: Vec<u32>,
    /// Passes that would be saved at best, of those of the launch; only their order means something.
    pub cost: u64,
    /// What is the case, and what helps.
    pub message: String,
}

type Judge = fn(&Line) -> Option<(u64, String)>;

/// A kind, its cost and its sentence; `None` where it does not apply.
const KINDS: [(&str, Judge); 5] = [
    ("uncoalesced", |l| {
        let c = &l.counters;
        let (sectors, ideal) = c.sectors_per_request()?;
        l.scattered().then(|| {
            let used = 100.0 * ideal / sectors;
            let message = format!(
                "{sectors:.1} sectors a request where {ideal:.1} would hold the bytes ({used:.0}% used): let \
                 neighbouring lanes use neighbouring addresses, or go through shared memory"
            );
            ((c.global_sectors().saturating_sub(c.global_sectors_ideal)).div_ceil(4), message)
        })
    }),
    ("bank conflict", |l| {
        let c = &l.counters;
        let degree = c.conflict_degree().filter(|_| c.bank_conflicts > 0)?;
        let message = format!(
            "{degree:.1} passes over the banks for each one needed: pad the rows by one access, or swizzle the \
             column by the row"
        );
        Some((c.bank_conflicts, message))
    }),
    ("atomic contention", |l| {
        let c = &l.counters;
        (c.atomic_conflicts > 0).then(|| {
            let share = 100.0 * c.atomic_conflicts as f64 / c.atomics.max(1) as f64;
            let message = format!(
                "{share:.0}% of the lanes wait for another lane at the same address: combine within the warp \
                 first (redux, shfl, match), then one lane updates memory"
            );
            (c.atomic_conflicts, message)
        })
    }),
    ("local memory", |l| {
        let c = &l.counters;
        (c.local_bytes > 0).then(|| {
            let message = format!(
                "{} through local memory: an array indexed by a variable, or an address that escapes; unroll, \
                 or keep it in registers or shared memory",
                super::bytes(c.local_bytes)
            );
            (c.local_bytes.div_ceil(128), message)
        })
    }),
    ("idle lanes", |l| {
        let idle = l.idle_fraction();
        (idle > 0.25).then(|| {
            let message = format!(
                "{:.0}% of the lanes idle: let the lanes of a warp take the same branch, or give the idle ones \
                 a part of the work",
                100.0 * idle
            );
            (l.idle_lanes / 32, message)
        })
    }),
];

impl Profile<'_> {
    /// What could be saved, most first; what is below half a percent of the launch is left out.
    pub fn hints(&self) -> Vec<Hint> {
        // Without `.loc` each PTX line is its own; an unrolled loop is one source line.
        let mut places: BTreeMap<_, Vec<&LineProfile>> = BTreeMap::new();
        for l in self.lines {
            let line = if l.source.is_some() { 0 } else { l.line };
            places.entry((l.source.as_ref(), l.inlined_at.as_ref(), line)).or_default().push(l);
        }
        let worth = super::passes(&self.total.counters) / 200;
        let mut hints = Vec::new();
        for ((source, inlined_at, _), lines) in places {
            for (kind, judge) in KINDS {
                // Only the lines concerned: a good load of the same source line does not hide a bad one.
                let concerned: Vec<_> = lines.iter().filter(|&&l| judge(&l.into()).is_some()).collect();
                let mut sum = Line::default();
                concerned.iter().for_each(|&&l| sum.add(&l.into()));
                let Some((cost, message)) = judge(&sum) else { continue };
                if cost > worth {
                    hints.push(Hint {
                        kind,
                        source: source.cloned(),
                        inlined_at: inlined_at.cloned(),
                        ptx_lines: concerned.iter().map(|l| l.line).collect(),
                        cost,
                        message,
                    });
                }
            }
        }
        hints.sort_by_key(|h| std::cmp::Reverse(h.cost));
        hints
    }

    /// Where a hint points, for people.
    pub(super) fn place(&self, h: &Hint) -> String {
        let lines: Vec<String> = h.ptx_lines.iter().take(4).map(u32::to_string).collect();
        let more = if h.ptx_lines.len() > 4 { ", ..." } else { "" };
        let plural = if h.ptx_lines.len() > 1 { "s" } else { "" };
        let ptx = format!("PTX line{plural} {}{more}", lines.join(", "));
        match &h.source {
            Some((file, line)) => format!("{} ({ptx})", Self::short(file, *line, h.inlined_at.as_ref())),
            None => ptx,
        }
    }

    /// The code a hint points at: the source line where it is known, else the first PTX line.
    pub(super) fn code(&self, h: &Hint) -> &str {
        let source =
            h.source.as_ref().and_then(|(file, line)| self.code_of((file, *line), h.inlined_at.as_ref()));
        source.unwrap_or_else(|| h.ptx_lines.first().map_or("", |&l| self.ptx_line(l)))
    }
}
