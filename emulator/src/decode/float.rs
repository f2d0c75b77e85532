//! Decoding of float functions: division, roots, approximations, absolute values, minima.

use super::Decoder;
use super::arith::half_of;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::{Rnd, Ty};

impl<'a> Decoder<'a> {
    pub(super) fn functions(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let ty = self.need_ty(m)?;
        if m.name == "div" && !ty.is_float() {
            if !matches!(ty.bits(), 16 | 32 | 64) || matches!(ty, Ty::B16 | Ty::B32 | Ty::B64) {
                return self.unsupported(m.full, format!("type .{}", ty.name()));
            }
            return self.same(m, ops, ty, 2, Alu::Div(ty.bits() as u8, ty.is_signed()));
        }
        let approx = m.take("approx");
        if let Some((f, p)) = half_of(ty) {
            let op = match m.name {
                "ex2" if approx => HOp::Ex2,
                "tanh" if approx => HOp::Tanh,
                _ => return self.unsupported(m.full, "type, or no .approx"),
            };
            // ex2 of bf16 always flushes and says so.
            let bf16 = f == Hf::BF16 && op == HOp::Ex2;
            if bf16 && !m.take("ftz") {
                return self.unsupported(m.full, "ex2 of bf16 without .ftz");
            }
            let fm = Fm { rnd: Rnd::Rn, ftz: bf16, sat: false, relu: false };
            return self.same(m, ops, ty, 1, Alu::H(op, f, p, fm));
        }
        if ty == Ty::F64 {
            return self.doubles(m, ops, approx);
        }
        if ty != Ty::F32 {
            return self.unsupported(m.full, format!("type .{}", ty.name()));
        }
        let ftz = m.name != "tanh" && m.take("ftz");
        let full = m.name == "div" && m.take("full");
        if approx || full {
            let what = match m.name {
                "div" if full => Approx::DivFull,
                "div" => Approx::Div,
                "rcp" => Approx::Rcp,
                "sqrt" => Approx::Sqrt,
                "rsqrt" => Approx::Rsqrt,
                "ex2" => Approx::Ex2,
                "lg2" => Approx::Lg2,
                "sin" => Approx::Sin,
                "cos" => Approx::Cos,
                _ => Approx::Tanh,
            };
            let n = if m.name == "div" { 2 } else { 1 };
            return self.same(m, ops, ty, n, Alu::FApprox(what, ftz));
        }
        let Some(rnd) = m.rnd() else {
            return self.unsupported(m.full, "neither .approx nor a rounding mode");
        };
        let fm = Fm { rnd, ftz, sat: false, relu: false };
        match m.name {
            "div" => self.same(m, ops, ty, 2, Alu::FDiv(fm)),
            "rcp" => self.same(m, ops, ty, 1, Alu::FRcp(fm)),
            "sqrt" => self.same(m, ops, ty, 1, Alu::FSqrt(fm)),
            _ => self.unsupported(m.full, "rounding mode"),
        }
    }

    fn doubles(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>], approx: bool) -> Result<bool> {
        let ftz = approx && m.take("ftz");
        let rnd = if approx { None } else { m.rnd() };
        let (n, alu) = match (m.name, rnd) {
            ("rcp", None) if ftz => (1, Alu::DRcpApprox),
            ("rsqrt", None) if approx => (1, Alu::DRsqrtApprox(ftz)),
            ("div", Some(rnd)) => (2, Alu::DDiv(rnd)),
            ("rcp", Some(rnd)) => (1, Alu::DRcp(rnd)),
            ("sqrt", Some(rnd)) => (1, Alu::DSqrt(rnd)),
            _ => return self.unsupported(m.full, "type or rounding"),
        };
        self.same(m, ops, Ty::F64, n, alu)
    }

    pub(super) fn abs_neg(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let ty = self.need_ty(m)?;
        let abs = m.name == "abs";
        let ftz = matches!(ty, Ty::F32 | Ty::F16 | Ty::F16x2) && m.take("ftz");
        let fm = Fm { rnd: Rnd::Rn, ftz, sat: false, relu: false };
        let alu = match (ty, half_of(ty), abs) {
            (Ty::F32, _, true) => Alu::FAbs(ftz),
            (Ty::F32, _, false) => Alu::FNeg(ftz),
            (Ty::F64, _, true) => Alu::DAbs,
            (Ty::F64, _, false) => Alu::DNeg,
            (_, Some((f, p)), true) => Alu::H(HOp::Abs, f, p, fm),
            (_, Some((f, p)), false) => Alu::H(HOp::Neg, f, p, fm),
            (Ty::S16 | Ty::S32 | Ty::S64, _, true) => Alu::Abs(ty.bits() as u8),
            (Ty::S16 | Ty::S32 | Ty::S64, _, false) => Alu::Neg(ty.bits() as u8),
            _ => return self.unsupported(m.full, format!("type .{}", ty.name())),
        };
        self.same(m, ops, ty, 1, alu)
    }

    pub(super) fn min_max(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let max = m.name == "max";
        if m.take("s16x2") {
            let relu = m.take("relu");
            return self.same(m, ops, Ty::B32, 2, Alu::MinMax16x2(max, true, relu));
        }
        if m.take("u16x2") {
            return self.same(m, ops, Ty::B32, 2, Alu::MinMax16x2(max, false, false));
        }
        let ty = self.need_ty(m)?;
        let half = half_of(ty);
        let (mut nan, mut xorsign, mut ftz) = (false, false, false);
        if ty == Ty::F32 || half.is_some() {
            nan = m.take("NaN");
            xorsign = m.has("xorsign") && m.take("abs") && m.take("xorsign");
            ftz = !matches!(ty, Ty::BF16 | Ty::BF16x2) && m.take("ftz");
        }
        let alu = match (ty, half) {
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
                let fm = Fm { rnd: Rnd::Rn, ftz, sat: false, relu: false };
                Alu::H(HOp::MinMax { max, nan, xorsign }, f, p, fm)
            }
            (Ty::S32, _) if m.take("relu") => Alu::MinMaxRelu(max),
            (Ty::U16 | Ty::S16 | Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64, _) => {
                let (w, s) = (ty.bits() as u8, ty.is_signed());
                if max { Alu::Max(w, s) } else { Alu::Min(w, s) }
            }
            _ => return self.unsupported(m.full, format!("type .{}", ty.name())),
        };
        self.same(m, ops, ty, 2, alu)
    }
}
