//! atom and red: lanes take their turns in lane order.

use super::lanes::lanes;
use super::mem::{read_le, write_le};
use super::order::Me;
use super::race::{self, Bring, How};
use super::traffic::repeated;
use super::{Cta, Machine};
use crate::inst::*;
use crate::num::eval;
use crate::types::{Rnd, Space, Ty};

/// The new value; `None` leaves memory as it is.
fn apply(op: AtomOp, ty: Ty, ftz: bool, old: u64, a: u64, b: u64) -> Option<u64> {
    let w = ty.bits() as u8;
    let s = ty.is_signed();
    let fm = Fm { rnd: Rnd::Rn, ftz, sat: false, relu: false };
    let half = match ty {
        Ty::F16 | Ty::F16x2 => Some((Hf::F16, ty == Ty::F16x2)),
        Ty::BF16 | Ty::BF16x2 => Some((Hf::BF16, ty == Ty::BF16x2)),
        _ => None,
    };
    let alu = match (op, half) {
        (AtomOp::Add, Some((f, packed))) => Alu::H(HOp::Add, f, packed, fm),
        (AtomOp::Min | AtomOp::Max, Some((f, packed))) => {
            Alu::H(HOp::MinMax { max: op == AtomOp::Max, nan: false, xorsign: false }, f, packed, fm)
        }
        (AtomOp::Add, None) => match ty {
            Ty::F32 => Alu::FAdd(fm),
            Ty::F64 => Alu::DAdd(Rnd::Rn),
            _ => Alu::Add(w),
        },
        (AtomOp::Min, _) => Alu::Min(w, s),
        (AtomOp::Max, _) => Alu::Max(w, s),
        (AtomOp::And, _) => Alu::And(w),
        (AtomOp::Or, _) => Alu::Or(w),
        (AtomOp::Xor, _) => Alu::Xor(w),
        (AtomOp::Exch, _) => return Some(a),
        (AtomOp::Cas, _) => return (old == a).then_some(b),
        (AtomOp::Inc, _) => return Some(if old >= a { 0 } else { old + 1 }),
        (AtomOp::Dec, _) => return Some(if old == 0 || old > a { a } else { old - 1 }),
    };
    Some(eval(alu, [old, a, 0, 0]))
}

impl Machine<'_> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn atomic(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        m: Access,
        op: AtomOp,
        ty: Ty,
        d: R,
        a: R,
        b: R,
    ) {
        self.check_regs(&mut cta.warps[wi], pc, mask, &[m.base, a, b]);
        self.addresses(cta, wi, m.base, m.offset);
        self.by_space(cta, wi, mask, m.space, |this, cta, space, mask| {
            this.atomic_in(cta, wi, pc, mask, m, space, op, ty, d, (a, b));
        });
    }

    /// The lanes `mask`, whose addresses lie in one space.
    #[allow(clippy::too_many_arguments)]
    fn atomic_in(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        m: Access,
        space: Space,
        op: AtomOp,
        ty: Ty,
        d: R,
        (a, b): (R, R),
    ) {
        let bytes = usize::from(m.bytes);
        let s = self.spots(cta, wi, pc, mask, space, bytes * usize::from(m.n), true);
        // What exch finds may never be used: only its value is unknown then.
        let fresh = if op == AtomOp::Exch { self.unwritten(cta, wi, &s, bytes) } else { 0 };
        if self.check_init && op != AtomOp::Exch {
            self.check_written(cta, wi, pc, &s, bytes);
        }
        self.count_access(cta, wi, &s, bytes, true);
        self.n.atomics += u64::from(s.ok.count_ones());
        if self.profiling {
            self.n.atomic_conflicts += repeated(&cta.warps[wi].addr, s.ok);
        }
        if self.check_race {
            self.strong(cta, wi, &s, &m, true, true);
            let how = How::of(&m);
            let mut conflict = None;
            let Cta { warps, far, linear, records, .. } = &mut *cta;
            let mut me = Me::new(&warps[wi].clock, far, *linear, wi as u32);
            for lane in lanes(s.ok) {
                me.lane = lane as u32;
                let at = s.offset[lane];
                let hit = match s.space {
                    Space::Shared => {
                        let cells = &mut records[race::within(at, bytes)];
                        me.write(cells, at % 4, bytes, pc, how, Bring::Atomic)
                    }
                    Space::Global => self.race_write(&me, &s, bytes, pc, how, None, lane),
                    _ => None,
                };
                if let (Some(hit), None) = (hit, conflict) {
                    conflict = Some((lane as u32, hit));
                }
            }
            self.race_found(cta, wi, pc, &s, conflict);
        }
        // The ISA's note: in global memory, and only there, sums of singles flush subnormals.
        let ftz = ty == Ty::F32 && s.space == Space::Global;
        let Cta { shared, shared_known, warps, .. } = cta;
        let w = &mut warps[wi];
        for lane in lanes(s.ok) {
            let at = s.offset[lane];
            let operand = w.bank.get(a, lane);
            let swap = if b.some() { w.bank.get(b, lane) } else { 0 };
            let new = |old: u64| apply(op, ty, ftz, old, operand, swap);
            let own: Option<&mut [u8]> = match s.space {
                Space::Shared => {
                    shared_known.set(at, bytes);
                    Some(shared)
                }
                Space::Local => {
                    w.local_known.set(at, bytes);
                    Some(&mut w.local)
                }
                _ => None,
            };
            let old = if let Some(data) = own {
                let old = read_le(data, at, bytes);
                if let Some(v) = new(old) {
                    write_le(data, at, bytes, v);
                }
                old
            } else {
                let al = &self.l.mem.allocs[s.alloc[lane] as usize];
                if let Some(bits) = &al.init {
                    bits.set_shared(at, bytes);
                }
                // SAFETY: one thread, or bytes claimed for writing; the slice ends with the read.
                let old = read_le(unsafe { al.data.slice(at, bytes) }, 0, bytes);
                if let Some(v) = new(old) {
                    // SAFETY: as above.
                    unsafe { al.data.put(at, &v.to_le_bytes()[..bytes]) };
                }
                old
            };
            if d.some() {
                w.bank.set(d, lane, old);
            }
        }
        if d.some() {
            for lane in lanes(mask & !s.ok) {
                w.bank.set(d, lane, 0);
            }
            self.wrote(w, mask, d);
            if fresh != 0 {
                w.known[d.slot()] &= !fresh;
            }
        }
    }
}
