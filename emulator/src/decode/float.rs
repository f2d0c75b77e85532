//! Decoding of float functions: division, roots, approximations, absolute values, minima.

use super::Decoder;
use super::arith::half_of;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::{Rnd, Ty};

impl<'a> Decoder<'a> {
    pub(super) fn functions(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let approx = m.take("approx") | m.take("full");
        let rnd = m.rnd();
        let ftz = m.take("ftz");
        let ty = self.need_ty(m)?;
        let fm = Fm { rnd: rnd.unwrap_or(Rnd::Rn), ftz, sat: false, relu: false };
        let n = if m.name == "div" { 2 } else { 1 };
        if m.name == "div" && !ty.is_float() {
            return self.same(m, ops, ty, 2, Alu::Div(ty.bits() as u8, ty.is_signed()));
        }
        if let Some((f, p)) = half_of(ty) {
            let op = match m.name {
                "ex2" => HOp::Ex2,
                "tanh" => HOp::Tanh,
                _ => return self.unsupported(m.full, "type"),
            };
            return self.same(m, ops, ty, 1, Alu::H(op, f, p, fm));
        }
        let a = |x| Alu::FApprox(x, ftz);
        let alu = match (m.name, ty, approx) {
            ("div", Ty::F32, true) => a(Approx::Div),
            ("div", Ty::F32, false) => Alu::FDiv(fm),
            ("div", Ty::F64, _) => Alu::DDiv(fm.rnd),
            ("rcp", Ty::F32, true) => a(Approx::Rcp),
            ("rcp", Ty::F32, false) => Alu::FRcp(fm),
            ("rcp", Ty::F64, true) => Alu::DRcpApprox,
            ("rcp", Ty::F64, false) => Alu::DRcp(fm.rnd),
            ("sqrt", Ty::F32, true) => a(Approx::Sqrt),
            ("sqrt", Ty::F32, false) => Alu::FSqrt(fm),
            ("sqrt", Ty::F64, _) => Alu::DSqrt(fm.rnd),
            ("rsqrt", Ty::F32, _) => a(Approx::Rsqrt),
            ("rsqrt", Ty::F64, _) => Alu::DRsqrtApprox(fm.ftz),
            ("ex2", Ty::F32, _) => a(Approx::Ex2),
            ("lg2", Ty::F32, _) => a(Approx::Lg2),
            ("sin", Ty::F32, _) => a(Approx::Sin),
            ("cos", Ty::F32, _) => a(Approx::Cos),
            ("tanh", Ty::F32, _) => a(Approx::Tanh),
            _ => return self.unsupported(m.full, "type"),
        };
        self.same(m, ops, ty, n, alu)
    }

    pub(super) fn abs_neg(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let fm = self.fm(m);
        let ty = self.need_ty(m)?;
        let abs = m.name == "abs";
        let alu = match (ty, half_of(ty), abs) {
            (Ty::F32, _, true) => Alu::FAbs(fm.ftz),
            (Ty::F32, _, false) => Alu::FNeg(fm.ftz),
            (Ty::F64, _, true) => Alu::DAbs,
            (Ty::F64, _, false) => Alu::DNeg,
            (_, Some((f, p)), true) => Alu::H(HOp::Abs, f, p, fm),
            (_, Some((f, p)), false) => Alu::H(HOp::Neg, f, p, fm),
            (_, _, true) => Alu::Abs(ty.bits() as u8),
            (_, _, false) => Alu::Neg(ty.bits() as u8),
        };
        self.same(m, ops, ty, 1, alu)
    }

    pub(super) fn min_max(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let max = m.name == "max";
        let nan = m.take("NaN");
        let xorsign = m.take("xorsign");
        if xorsign {
            m.take("abs");
        }
        let ftz = m.take("ftz");
        if m.take("s16x2") {
            return self.same(m, ops, Ty::B32, 2, Alu::MinMax16x2(max, true));
        }
        if m.take("u16x2") {
            return self.same(m, ops, Ty::B32, 2, Alu::MinMax16x2(max, false));
        }
        let ty = self.need_ty(m)?;
        let alu = match (ty, half_of(ty)) {
            (Ty::F32, _) if max => Alu::FMax { nan, ftz, xorsign },
            (Ty::F32, _) => Alu::FMin { nan, ftz, xorsign },
            (Ty::F64, _) => {
                if max {
                    Alu::DMax
                } else {
                    Alu::DMin
                }
            }
            (_, Some((f, p))) => {
                if xorsign {
                    return self.unsupported(m.full, "xorsign on half precision");
                }
                let op = match (max, nan) {
                    (false, false) => HOp::Min,
                    (true, false) => HOp::Max,
                    (false, true) => HOp::MinNan,
                    (true, true) => HOp::MaxNan,
                };
                Alu::H(op, f, p, Fm { rnd: Rnd::Rn, ftz, sat: false, relu: false })
            }
            _ if max => Alu::Max(ty.bits() as u8, ty.is_signed()),
            _ => Alu::Min(ty.bits() as u8, ty.is_signed()),
        };
        self.same(m, ops, ty, 2, alu)
    }
}
