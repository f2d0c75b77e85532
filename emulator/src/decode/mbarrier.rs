//! Decoding of mbarrier objects in shared memory and of the copies that arrive at them.

use super::Decoder;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::{Space, Ty};

impl<'a> Decoder<'a> {
    /// Takes the space of an mbarrier; true for a generic address.
    fn mbarrier_space(&mut self, m: &mut Mods<'a>) -> Result<bool> {
        match self.space(m)? {
            Space::Shared => Ok(false),
            Space::Generic => Ok(true),
            _ => self.unsupported(m.full, "state space"),
        }
    }

    fn optional(&mut self, o: Option<&Opd<'a>>, ty: Ty) -> Result<R> {
        o.map_or(Ok(R::NONE), |o| self.src(o, ty))
    }

    /// Decodes `m`, an mbarrier instruction.
    pub(super) fn mbarrier(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        if m.has("cluster") || m.has("shared::cluster") {
            return self.unsupported(m.full, "clusters");
        }
        if m.has("expect_tx") || m.has("complete_tx") {
            return self.unsupported(m.full, "transactions");
        }
        let verbs = ["init", "inval", "arrive", "arrive_drop", "test_wait", "try_wait", "pending_count"];
        let Some(verb) = m.find(|s| verbs.contains(&s).then_some(s)) else {
            return self.unsupported(m.full, "this instruction");
        };
        let parity = m.take("parity");
        let no_complete = m.take("noComplete");
        let waits = matches!(verb, "test_wait" | "try_wait");
        let arrives = matches!(verb, "arrive" | "arrive_drop");
        let order = m.find(|s| match s {
            "acquire" => Some(waits),
            "release" => Some(arrives),
            "relaxed" => Some(waits || arrives),
            _ => None,
        });
        let scope = self.scope(m);
        if order == Some(false)
            || order.is_some() != scope.is_some()
            || (parity && !waits)
            || (no_complete && !arrives)
        {
            return self.unsupported(m.full, "order, scope or form");
        }
        if verb == "pending_count" {
            m.take("b64");
            let [d, state] = ops else { return self.bad("mbarrier.pending_count takes 2 operands") };
            let (d, a) = (self.dst(d, 32)?, self.src(state, Ty::B64)?);
            self.emit(Op::Mbar {
                what: Mbar::Pending,
                base: R::NONE,
                offset: 0,
                generic: false,
                d,
                p: NO_P,
                a,
            });
            return Ok(true);
        }
        let generic = self.mbarrier_space(m)?;
        m.take("b64");
        let (mut d, mut p) = (R::NONE, NO_P);
        let (what, place, a) = match (verb, ops) {
            ("init", [place, count]) => (Mbar::Init, place, self.src(count, Ty::U32)?),
            ("inval", [place]) => (Mbar::Inval, place, R::NONE),
            ("arrive" | "arrive_drop", [state, place] | [state, place, _]) => {
                d = self.dst(state, 64)?;
                let what = Mbar::Arrive { drop: verb == "arrive_drop", no_complete };
                (what, place, self.optional(ops.get(2), Ty::U32)?)
            }
            ("arrive" | "arrive_drop", [_]) => {
                return self.unsupported(m.full, "arrival without a state, which belongs to clusters");
            }
            ("test_wait" | "try_wait", [done, place, phase, rest @ ..])
                if rest.len() <= usize::from(verb == "try_wait") =>
            {
                p = self.pred_pair(done)?.0;
                let ty = if parity { Ty::U32 } else { Ty::B64 };
                // The fourth operand is a hint how long to wait.
                (Mbar::Wait { parity }, place, self.src(phase, ty)?)
            }
            _ => return self.bad(format!("`{}` with {} operands", m.full, ops.len())),
        };
        let (base, offset, _) = self.address(place)?;
        self.emit(Op::Mbar { what, base, offset, generic, d, p, a });
        Ok(true)
    }

    /// `cp.async.mbarrier.arrive{.noinc}{.shared}.b64 [addr]`.
    pub(super) fn copy_arrive(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let arrive = m.take("mbarrier") & m.take("arrive");
        let what = Mbar::CopyArrive { counted: m.take("noinc") };
        let generic = self.mbarrier_space(m)?;
        m.take("b64");
        let ([place], true) = (ops, arrive) else {
            return self.bad("cp.async.mbarrier.arrive takes an address");
        };
        let (base, offset, _) = self.address(place)?;
        self.emit(Op::Mbar { what, base, offset, generic, d: R::NONE, p: NO_P, a: R::NONE });
        Ok(true)
    }
}
