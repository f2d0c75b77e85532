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

/// The comparisons a type has.
fn has(ty: Ty, cmp: Cmp, unsigned: bool) -> bool {
    use Cmp::*;
    match ty {
        Ty::B16 | Ty::B32 | Ty::B64 => matches!(cmp, Eq | Ne),
        Ty::S16 | Ty::S32 | Ty::S64 => matches!(cmp, Eq | Ne | Lt | Le | Gt | Ge) && !unsigned,
        Ty::U16 | Ty::U32 | Ty::U64 => matches!(cmp, Eq | Ne | Lt | Le | Gt | Ge),
        Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2 | Ty::F32 | Ty::F64 => !unsigned,
        _ => false,
    }
}

impl<'a> Decoder<'a> {
    pub(super) fn set(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let Some((cmp, unsigned)) = m.find(comparison) else { return self.unsupported(m.full, "comparison") };
        let bop = m.find(bool_op);
        let dty = if m.name == "set" { Some(self.need_ty(m)?) } else { None };
        let ty = self.need_ty(m)?;
        if !has(ty, cmp, unsigned) {
            return self.unsupported(m.full, format!("this comparison of .{}", ty.name()));
        }
        let ftz = matches!(ty, Ty::F32 | Ty::F16 | Ty::F16x2) && m.take("ftz");
        self.want(m, ops, 3 + usize::from(bop.is_some()))?;
        let (c, cneg) = match bop {
            Some(_) => self.pred(&ops[3])?,
            None => (P_TRUE, false),
        };
        let bop = bop.unwrap_or(Bop::And);
        let (a, b) = (self.src(&ops[1], ty)?, self.src(&ops[2], ty)?);
        let half = half_of(ty);
        if let Some(dty) = dty {
            let fits = match dty {
                Ty::U32 | Ty::S32 => true,
                Ty::U16 | Ty::S16 => matches!(half, Some((_, false))),
                Ty::F16 => !matches!(ty, Ty::F16x2 | Ty::BF16 | Ty::BF16x2),
                Ty::BF16 => !matches!(ty, Ty::F16x2 | Ty::BF16x2),
                Ty::F16x2 | Ty::BF16x2 => dty == ty,
                Ty::F32 => half.is_none(),
                _ => false,
            };
            if !fits {
                return self.unsupported(m.full, format!("a result of type .{}", dty.name()));
            }
            let d = self.dst(&ops[0], dty.bits())?;
            self.emit(match half {
                Some((fmt, true)) => {
                    Op::SetX2 { cmp, fmt, float: dty.is_float(), ftz, d, a, b, bop, c, cneg }
                }
                _ => Op::Set { cmp, dty, ty, ftz, d, a, b, bop, c, cneg },
            });
            return Ok(true);
        }
        let (p, q) = self.pred_pair(&ops[0])?;
        match half {
            Some((fmt, true)) => self.emit(Op::SetpX2 { cmp, fmt, ftz, p, q, a, b, bop, c, cneg }),
            _ => self.emit(Op::Setp { cmp, ty, ftz, p, q, a, b, bop, c, cneg }),
        };
        Ok(true)
    }
}
