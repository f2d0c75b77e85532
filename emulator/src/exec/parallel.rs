//! CTAs over host threads, with the result of the serial schedule.
//!
//! What a CTA does by itself does not depend on others (`schedule.rs`): its warps take turns by a
//! generator of its own. So as long as no word of global memory is written by one CTA and touched by
//! another, running every CTA alone gives the same bytes, the same counters and the same findings as
//! the serial schedule, whatever the number of threads: `claims.rs` watches that at every access. As
//! soon as it does not hold, or a CTA stops the launch (trap, deadlock, step limit, stray access), all
//! writes are undone and the launch is run serially.
//!
//! CTAs that talk by design (global atomics, volatile and ordered accesses), and prints, whose order
//! is that of time, are not tried at all. Of the race checker's memory only words that one CTA has
//! for itself are used here: those that several read and none writes can be part of no finding.

use super::claims::{Claimer, Claims, MOST_CTAS};
use super::findings::Found;
use super::schedule::{Order, Rng};
use super::{Cta, Launch, Machine, Outcome, buffers, cells};
use crate::counters::Counters;
use crate::inst::{Access, Op, Program};
use crate::types::Space;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{Builder, scope};

/// Warp instructions a launch must have to be worth another thread: a few milliseconds of them.
const WORTH: u64 = 20_000;

/// CTAs of this program may reach each other only by plain accesses.
fn may_spread(prog: &Program) -> bool {
    let apart = |m: &Access| matches!(m.space, Space::Shared | Space::Local | Space::Param | Space::Const);
    prog.insts.iter().all(|i| match &i.op {
        Op::Atom { m, .. } => apart(m),
        Op::Ld { m, .. } | Op::St { m, .. } => !m.strong || apart(m),
        Op::Vprintf { .. } => false,
        _ => true,
    })
}

/// What the threads share.
struct Queue<'a> {
    order: Order,
    next: AtomicU64,
    steps: AtomicU64,
    max_steps: u64,
    claims: &'a Claims,
}

/// What a thread has when no CTA is left.
struct Part<'a> {
    found: Found,
    counters: Counters,
    profile: Vec<Counters>,
    buffers: HashMap<u32, buffers::Seen>,
    claimer: Option<Claimer<'a>>,
}

/// The outcome of a launch that could be spread; `None` leaves memory as it was.
pub(super) fn run(l: &Launch<'_>) -> Option<Outcome> {
    let threads = l.options.threads;
    let order = Order::new(l, &mut Rng::new(l.options.seed));
    let small = l.mem.allocs.iter().all(|a| a.size >> 34 == 0);
    if threads < 2 || !(2..MOST_CTAS).contains(&order.total()) || !small || !may_spread(l.prog) {
        return None;
    }
    let (claims, pages) = (Claims::new(l.mem), cells::Pages::new(l.mem, l.spare));
    let most = threads.min(l.resident).min(order.total().min(1024) as usize);
    let max_steps = l.options.max_steps;
    let queue =
        Queue { order, next: AtomicU64::new(0), steps: AtomicU64::new(0), max_steps, claims: &claims };
    let work = |grow: &mut dyn FnMut(u64)| {
        let mut m = Machine::new(*l, &pages, Some(Claimer::new(&claims)));
        m.work(&queue, grow);
        Part { found: m.found, counters: m.n, profile: m.profile, buffers: m.buffers, claimer: m.claimer }
    };
    let mut parts = scope(|s| {
        let mut others = Vec::new();
        let mine = work(&mut |steps| {
            // The first slice says how long a CTA is at least.
            if others.is_empty() && steps.saturating_mul(queue.order.total()) >= WORTH {
                // A thread that cannot be had is done without.
                others.extend(
                    (1..most).filter_map(|_| Builder::new().spawn_scoped(s, || work(&mut |_| ())).ok()),
                );
            }
        });
        let mut parts = vec![mine];
        for o in others {
            match o.join() {
                Ok(part) => parts.push(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        parts
    });
    let mut out = Outcome {
        findings: Vec::new(),
        counters: Counters::default(),
        completed: true,
        output: String::new(),
        profile: vec![Counters::default(); parts[0].profile.len()],
        buffers: Vec::new(),
    };
    let mut found = Found::default();
    let mut whole = queue.steps.load(Relaxed) <= max_steps;
    for part in &mut parts {
        whole &= found.merge(std::mem::take(&mut part.found));
        out.counters.add(&part.counters);
        for (sum, c) in out.profile.iter_mut().zip(&part.profile) {
            sum.add(c);
        }
    }
    if claims.lost() || !whole {
        for claimer in parts.iter_mut().filter_map(|p| p.claimer.as_mut()) {
            claimer.undo(l.mem);
        }
        return None;
    }
    let mut seen = HashMap::new();
    parts.into_iter().for_each(|p| buffers::merge(&mut seen, p.buffers));
    out.buffers = buffers::traffic(seen, l.mem);
    out.findings = found.list();
    Some(out)
}

impl Machine<'_> {
    /// Runs CTAs, one after the other, until none is left or the launch must be run serially. `grow`
    /// hears after every slice how many instructions were executed here.
    fn work(&mut self, queue: &Queue<'_>, grow: &mut dyn FnMut(u64)) {
        let mut room: Option<Cta> = None;
        loop {
            let number = queue.next.fetch_add(1, Relaxed);
            if number >= queue.order.total() || queue.claims.lost() {
                room.into_iter().for_each(|c| self.l.spare.give_shared(c.records));
                return;
            }
            let mut cta = room.take().unwrap_or_else(|| self.new_cta());
            self.start_cta(&mut cta, &queue.order, number);
            if let Some(c) = &mut self.claimer {
                c.begin(number);
            }
            loop {
                let before = self.steps;
                let live = self.slice(&mut cta);
                let spent = self.steps - before;
                if self.stop || queue.steps.fetch_add(spent, Relaxed) + spent > queue.max_steps {
                    queue.claims.give_up();
                }
                if queue.claims.lost() {
                    return;
                }
                grow(self.steps);
                if !live {
                    break;
                }
            }
            room = Some(cta);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::exec::SPREAD;
    use crate::{Arg, Device, LaunchConfig, Module, Options};

    /// Whether a launch of 8 CTAs of 64 threads is spread, and the words of `out` after it; `%at` is
    /// the thread's own word, `%c` the CTA.
    fn spread(body: &str) -> (bool, Vec<u32>) {
        let text = format!(
            ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out) {{\n\
             .reg .b64 %rd<9>; .reg .b32 %r<9>; .reg .pred %p<3>; .reg .b64 %out; .reg .b64 %at; .reg .b32 %c;\n\
             ld.param.u64 %out, [out]; mov.u32 %c, %ctaid.x; mov.u32 %r1, %tid.x; mad.lo.u32 %r2, %c, 64, %r1;\n\
             mul.wide.u32 %rd1, %r2, 4; add.u64 %at, %out, %rd1;\n{body}\nret; }}"
        );
        let module = Module::parse(&text).unwrap();
        let mut device = Device::new(Options { threads: 3, ..Options::default() });
        let out = device.alloc_init(&[1; 4 * 512], "out").unwrap();
        let config = LaunchConfig { grid: [8, 1, 1], block: [64, 1, 1], shared_bytes: 0 };
        let _ = device.launch(&module, "k", config, &[Arg::Ptr(out)]);
        let mut bytes = [0; 4 * 512];
        device.copy_from(out, &mut bytes).unwrap();
        let words = bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        (SPREAD.get(), words)
    }

    #[test]
    fn ctas_that_do_not_meet_are_spread() {
        let (yes, out) = spread("st.global.u32 [%at], %r2;");
        assert!(yes);
        assert!((0..512).all(|i| out[i] == i as u32));
        // One word a CTA, of one sector, read and written; the rest is read by all.
        let (yes, out) = spread(
            "ld.global.u32 %r4, [%out+512]; setp.ne.u32 %p1, %r1, 0; @%p1 ret; mul.wide.u32 %rd2, %c, 4; add.u64 %rd2, %out, %rd2;\n\
             ld.global.u32 %r3, [%rd2]; add.u32 %r3, %r3, %r4; st.global.u32 [%rd2], %r3; st.global.u32 [%rd2], %c;",
        );
        assert!(yes);
        assert!((0..8).all(|i| out[i] == i as u32) && out[8] == 0x0101_0101);
    }

    #[test]
    fn ctas_that_meet_are_not_and_what_was_tried_is_undone() {
        // Each adds to what it finds: a write that stayed would be counted twice.
        let add = "ld.global.u32 %r3, [%at]; add.u32 %r3, %r3, 1; st.global.u32 [%at], %r3;";
        for meet in [
            "st.global.u32 [%out+1024], %c;",
            "setp.eq.u32 %p1, %c, 7; @%p1 ld.global.u32 %r3, [%out];",
            "setp.eq.u32 %p1, %c, 7; @%p1 st.global.u8 [%out+3], %c;",
        ] {
            let (yes, out) = spread(&format!("{add}\n{meet}"));
            assert!(!yes, "{meet}");
            assert!((1..512).filter(|&i| i != 256).all(|i| out[i] == 0x0101_0102), "{meet}");
        }
        for stop in ["trap;", "setp.eq.u32 %p1, %c, 7; @%p1 bar.sync 1, 96;"] {
            assert!(!spread(&format!("{add}\n{stop}")).0, "{stop}");
        }
    }

    #[test]
    fn atomics_and_ordered_accesses_are_not_tried() {
        for talk in [
            "atom.global.add.u32 %r3, [%at], 1;",
            "red.global.add.u32 [%at], 1;",
            "ld.volatile.global.u32 %r3, [%at];",
            "st.release.gpu.global.u32 [%at], 1;",
        ] {
            assert!(!spread(talk).0, "{talk}");
        }
    }
}
