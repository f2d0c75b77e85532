//! Decoding of logic and counting of bits: and, or, xor, not, popc and their kin, lop3.

use super::Decoder;
use super::compare::bool_op;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::Ty;

impl<'a> Decoder<'a> {
    pub(super) fn bits_unary(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let shiftamt = m.name == "bfind" && m.take("shiftamt");
        let ty = self.need_ty(m)?;
        let plain = matches!(ty, Ty::B32 | Ty::B64);
        let fits = match m.name {
            "not" => plain || matches!(ty, Ty::B16 | Ty::Pred),
            "cnot" => plain || ty == Ty::B16,
            "bfind" => matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64),
            _ => plain,
        };
        if !fits {
            return self.unsupported(m.full, format!("type .{}", ty.name()));
        }
        self.want(m, ops, 2)?;
        if ty == Ty::Pred {
            let (d, _) = self.pred_pair(&ops[0])?;
            let (a, aneg) = self.pred(&ops[1])?;
            self.emit(Op::PLogic { bop: Bop::Or, d, a, aneg: !aneg, b: P_FALSE, bneg: false });
            return Ok(true);
        }
        let (w, s) = (ty.bits() as u8, ty.is_signed());
        let (alu, dbits) = match m.name {
            "popc" => (Alu::Popc(w), 32),
            "clz" => (Alu::Clz(w), 32),
            "bfind" => (Alu::Bfind(w, s, shiftamt), 32),
            "brev" => (Alu::Brev(w), ty.bits()),
            "cnot" => (Alu::Cnot(w), ty.bits()),
            _ => (Alu::Not(w), ty.bits()),
        };
        let d = self.dst(&ops[0], dbits)?;
        let a = self.src(&ops[1], ty)?;
        self.alu(alu, d, &[a]);
        Ok(true)
    }

    /// Carries exist for 32 and 64 bits.
    pub(super) fn wide_enough(&self, m: &Mods<'a>, ty: Ty) -> Result<()> {
        match ty {
            Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64 => Ok(()),
            _ => self.unsupported(m.full, format!("type .{}", ty.name())),
        }
    }

    /// `lop3.b32 d, a, b, c, table` and `lop3.and|or.b32 d|p, a, b, c, table, q`.
    pub(super) fn lop3(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let bop = m.find(|s| bool_op(s).filter(|b| *b != Bop::Xor));
        if !m.take("b32") {
            return self.unsupported(m.full, "type");
        }
        self.want(m, ops, if bop.is_some() { 6 } else { 5 })?;
        let lut = match ops[4] {
            Opd::Int(lut) if lut < 256 => lut as u8,
            _ => return self.bad("lop3 needs an immediate table of 8 bits"),
        };
        let Some(bop) = bop else { return self.same(m, &ops[..4], Ty::B32, 3, Alu::Lop3(lut)) };
        let Opd::Pair(d, p) = &ops[0] else { return self.bad("`d|p` is expected here") };
        let (d, p) = (self.dst(&Opd::Word(d), 32)?, self.pred_dst(p)?);
        let s =
            [self.src(&ops[1], Ty::B32)?, self.src(&ops[2], Ty::B32)?, self.src(&ops[3], Ty::B32)?, R::NONE];
        let (q, qneg) = self.pred(&ops[5])?;
        self.emit(Op::Alu { alu: Alu::Lop3(lut), d, s });
        // The predicate is about what has just been written.
        let zero = self.constant(0, false);
        self.emit(Op::Setp {
            cmp: Cmp::Ne,
            ty: Ty::B32,
            ftz: false,
            p,
            q: NO_P,
            a: d,
            b: zero,
            bop,
            c: q,
            cneg: qneg,
        });
        Ok(true)
    }

    pub(super) fn logic(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let ty = self.need_ty(m)?;
        self.want(m, ops, 3)?;
        let w = ty.bits() as u8;
        if ty == Ty::Pred {
            let (d, _) = self.pred_pair(&ops[0])?;
            let ((a, aneg), (b, bneg)) = (self.pred(&ops[1])?, self.pred(&ops[2])?);
            let bop = bool_op(m.name).unwrap_or(Bop::And);
            self.emit(Op::PLogic { bop, d, a, aneg, b, bneg });
            return Ok(true);
        }
        if !matches!(ty, Ty::B16 | Ty::B32 | Ty::B64) {
            return self.unsupported(m.full, format!("type .{}", ty.name()));
        }
        let alu = match m.name {
            "and" => Alu::And(w),
            "or" => Alu::Or(w),
            _ => Alu::Xor(w),
        };
        self.same(m, ops, ty, 2, alu)
    }
}
