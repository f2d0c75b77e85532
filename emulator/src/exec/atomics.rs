//! atom and red: lanes take their turns in lane order.

use super::lanes::lanes;
use super::mem::{read_le, write_le};
use super::order::Me;
use super::race::{self, Bring, How};
use super::{Cta, Machine};
use crate::inst::*;
use crate::memory::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::num::{eval, float};
use crate::types::{Rnd, Space, Ty};

/// The new value; `None` leaves memory as it is.
fn apply(op: AtomOp, ty: Ty, ftz: bool, old: u64, a: u64, b: u64) -> Option<u64> {
    let w = ty.bits() as u8;
    let s = ty.is_signed();
    let fm = Fm { rnd: Rnd::Rn, ftz, sat: false, relu: false };
    let alu = match (op, ty) {
        (AtomOp::Add, Ty::F32) => Alu::FAdd(fm),
        (AtomOp::Add, Ty::F64) => Alu::DAdd(Rnd::Rn),
        (AtomOp::Add, Ty::F16 | Ty::F16x2) => Alu::H(HOp::Add, Hf::F16, ty == Ty::F16x2, fm),
        (AtomOp::Add, Ty::BF16 | Ty::BF16x2) => Alu::H(HOp::Add, Hf::BF16, ty == Ty::BF16x2, fm),
        (AtomOp::Add, _) => Alu::Add(w),
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
    if let (Alu::FAdd(m), AtomOp::Add) = (alu, op) {
        let v = float::add32(f32::from_bits(old as u32), f32::from_bits(a as u32), Rnd::Rn);
        return Some(float::out32(v, m));
    }
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
        ftz: bool,
        d: R,
        a: R,
        b: R,
    ) {
        self.check_regs(&mut cta.warps[wi], pc, mask, &[m.base, a, b]);
        self.addresses(cta, wi, m.base, m.offset);
        self.strong_order(cta, wi);
        let bytes = usize::from(m.bytes);
        // A generic address into the shared window is a shared atomic; one warp, one space.
        let mut space = m.space;
        if space == Space::Generic {
            let first = cta.warps[wi].addr[mask.trailing_zeros() as usize];
            space = Space::Global;
            if (SHARED_WINDOW..LOCAL_WINDOW).contains(&first) {
                space = Space::Shared;
                for x in cta.warps[wi].addr.iter_mut() {
                    *x = x.wrapping_sub(SHARED_WINDOW);
                }
            }
        }
        let s = self.spots(cta, wi, pc, mask, space, bytes, true);
        if self.check_init {
            self.check_written(cta, wi, pc, &s, bytes);
        }
        self.count_access(cta, wi, &s, bytes, true);
        self.n.atomics += u64::from(s.ok.count_ones());
        if self.check_race {
            self.strong_global(cta, wi, &s, &m, true, true);
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
                    _ => self.race_write(&me, &s, bytes, pc, how, None, lane),
                };
                if let (Some(hit), None) = (hit, conflict) {
                    conflict = Some((lane as u32, hit));
                }
            }
            self.race_found(cta, wi, pc, &s, conflict);
        }
        let Cta { shared, shared_known, warps, .. } = cta;
        let w = &mut warps[wi];
        for lane in lanes(s.ok) {
            let at = s.offset[lane];
            let operand = w.bank.get(a, lane);
            let swap = if b.some() { w.bank.get(b, lane) } else { 0 };
            let new = |old: u64| apply(op, ty, ftz, old, operand, swap);
            let old = if s.space == Space::Shared {
                shared_known.set(at, bytes);
                let old = read_le(shared, at, bytes);
                if let Some(v) = new(old) {
                    write_le(shared, at, bytes, v);
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
        }
    }
}
