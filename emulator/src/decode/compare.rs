//! Decoding of comparisons: setp and set, with the predicate they are combined with.

use super::Decoder;
use super::arith::half_of;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::Ty;

fn comparison(s: &str) -> Option<(Cmp, bool)> {
    // The flag: `lo`, `ls`, `hi`, `hs` compare unsigned.
    Some(match s {
        "eq" => (Cmp::Eq, false),
        "ne" => (Cmp::Ne, false),
        "lt" => (Cmp::Lt, false),
        "le" => (Cmp::Le, false),
        "gt" => (Cmp::Gt, false),
        "ge" => (Cmp::Ge, false),
        "lo" => (Cmp::Lt, true),
        "ls" => (Cmp::Le, true),
        "hi" => (Cmp::Gt, true),
        "hs" => (Cmp::Ge, true),
        "equ" => (Cmp::Equ, false),
        "neu" => (Cmp::Neu, false),
        "ltu" => (Cmp::Ltu, false),
        "leu" => (Cmp::Leu, false),
        "gtu" => (Cmp::Gtu, false),
        "geu" => (Cmp::Geu, false),
        "num" => (Cmp::Num, false),
        "nan" => (Cmp::Nan, false),
        _ => return None,
    })
}

pub(super) fn bool_op(s: &str) -> Option<Bop> {
    Some(match s {
        "and" => Bop::And,
        "or" => Bop::Or,
        "xor" => Bop::Xor,
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    pub(super) fn set(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let Some((cmp, unsigned)) = m.find(comparison) else { return self.unsupported(m.full, "comparison") };
        let bop = m.find(bool_op);
        let ftz = m.take("ftz");
        let dty = if m.name == "set" { Some(self.need_ty(m)?) } else { None };
        let mut ty = self.need_ty(m)?;
        if unsigned {
            ty = match ty.bits() {
                16 => Ty::U16,
                32 => Ty::U32,
                _ => Ty::U64,
            };
        }
        self.want(m, ops, 3 + usize::from(bop.is_some()))?;
        let (c, cneg) = match bop {
            Some(_) => self.pred(&ops[3])?,
            None => (P_TRUE, false),
        };
        let bop = bop.unwrap_or(Bop::And);
        let (a, b) = (self.src(&ops[1], ty)?, self.src(&ops[2], ty)?);
        if let Some(dty) = dty {
            if half_of(ty).is_some_and(|(_, p)| p) {
                return self.unsupported(m.full, "packed set");
            }
            let d = self.dst(&ops[0], dty.bits())?;
            self.emit(Op::Set { cmp, dty, ty, ftz, d, a, b, bop, c, cneg });
            return Ok(true);
        }
        let (p, q) = self.pred_pair(&ops[0])?;
        if ftz && half_of(ty).is_some() {
            return self.unsupported(m.full, "`.ftz` comparison of half precision");
        }
        match half_of(ty) {
            Some((fmt, true)) => {
                self.emit(Op::SetpX2 { cmp, fmt, p, q, a, b, bop, c, cneg });
            }
            _ => {
                self.emit(Op::Setp { cmp, ty, ftz, p, q, a, b, bop, c, cneg });
            }
        }
        Ok(true)
    }
}
