//! Decoding of integer arithmetic, logic and moves; the first stop of every lane-wise instruction.

use super::Decoder;
use super::compare::bool_op;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::{Rnd, Ty};

pub(super) fn half_of(ty: Ty) -> Option<(Hf, bool)> {
    Some(match ty {
        Ty::F16 => (Hf::F16, false),
        Ty::F16x2 => (Hf::F16, true),
        Ty::BF16 => (Hf::BF16, false),
        Ty::BF16x2 => (Hf::BF16, true),
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    pub(super) fn want(&self, m: &Mods<'a>, ops: &[Opd<'a>], n: usize) -> Result<()> {
        if ops.len() == n {
            Ok(())
        } else {
            self.bad(format!("`{}` takes {n} operands, not {}", m.full, ops.len()))
        }
    }

    pub(super) fn need_ty(&self, m: &mut Mods<'a>) -> Result<Ty> {
        match m.ty() {
            Some(t) => Ok(t),
            None => self.bad(format!("`{}` has no type", m.full)),
        }
    }

    pub(super) fn alu(&mut self, alu: Alu, d: R, s: &[R]) {
        let mut src = [R::NONE; 4];
        src[..s.len()].copy_from_slice(s);
        self.emit(Op::Alu { alu, d, s: src });
    }

    /// `n` sources of type `ty` after the destination, all of the same width.
    pub(super) fn same(&mut self, m: &Mods<'a>, ops: &[Opd<'a>], ty: Ty, n: usize, alu: Alu) -> Result<bool> {
        self.want(m, ops, n + 1)?;
        let d = self.dst(&ops[0], ty.bits())?;
        let mut s = [R::NONE; 4];
        for i in 0..n {
            s[i] = self.src(&ops[i + 1], ty)?;
        }
        self.emit(Op::Alu { alu, d, s });
        Ok(true)
    }

    pub(super) fn int_ty(&self, m: &mut Mods<'a>) -> Result<(Ty, u8, bool)> {
        let ty = self.need_ty(m)?;
        if ty.is_float() || ty == Ty::Pred {
            return self.unsupported(m.full, format!("type .{}", ty.name()));
        }
        Ok((ty, ty.bits() as u8, ty.is_signed()))
    }

    pub(super) fn fm(&self, m: &mut Mods<'a>) -> Fm {
        Fm { rnd: m.rnd().unwrap_or(Rnd::Rn), ftz: m.take("ftz"), sat: m.take("sat"), relu: m.take("relu") }
    }

    /// Decodes `m` if it is one of the instructions of this file.
    pub(super) fn arith(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        match m.name {
            "mov" => self.mov(m, ops),
            "add" | "sub" => self.add_sub(m, ops),
            "addc" | "subc" => {
                let out = m.take("cc");
                let (ty, w, _) = self.int_ty(m)?;
                self.carry(m, ops, ty, w, true, out)
            }
            "mul" | "mad" | "madc" | "mul24" | "mad24" => self.mul_mad(m, ops),
            "fma" => {
                let fm = self.fm(m);
                let ty = self.need_ty(m)?;
                match (ty, half_of(ty)) {
                    (Ty::F32, _) => self.same(m, ops, ty, 3, Alu::FFma(fm)),
                    (Ty::F64, _) => self.same(m, ops, ty, 3, Alu::DFma(fm.rnd)),
                    (_, Some((f, p))) => self.same(m, ops, ty, 3, Alu::H(HOp::Fma, f, p, fm)),
                    _ => self.unsupported(m.full, "type"),
                }
            }
            "div" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
                self.functions(m, ops)
            }
            "rem" => {
                let (ty, w, s) = self.int_ty(m)?;
                self.same(m, ops, ty, 2, Alu::Rem(w, s))
            }
            "sad" => {
                let (ty, w, s) = self.int_ty(m)?;
                self.same(m, ops, ty, 3, Alu::Sad(w, s))
            }
            "abs" | "neg" => self.abs_neg(m, ops),
            "min" | "max" => self.min_max(m, ops),
            "copysign" => match self.need_ty(m)? {
                Ty::F32 => self.same(m, ops, Ty::F32, 2, Alu::FCopysign),
                Ty::F64 => self.same(m, ops, Ty::F64, 2, Alu::DCopysign),
                _ => self.unsupported(m.full, "type"),
            },
            "testp" => {
                let what = m.find(|s| {
                    ["finite", "infinite", "number", "notanumber", "normal", "subnormal"]
                        .iter()
                        .position(|x| *x == s)
                });
                let ty = self.need_ty(m)?;
                let Some(what) = what else { return self.unsupported(m.full, "property") };
                self.want(m, ops, 2)?;
                let (p, _) = self.pred_pair(&ops[0])?;
                let a = self.src(&ops[1], ty)?;
                self.emit(Op::Testp { what: what as u8, ty, p, a });
                Ok(true)
            }
            "popc" | "clz" | "bfind" | "brev" | "cnot" | "not" => self.bits_unary(m, ops),
            "bfe" => {
                let (ty, w, s) = self.int_ty(m)?;
                self.want(m, ops, 4)?;
                let d = self.dst(&ops[0], ty.bits())?;
                let s3 = [self.src(&ops[1], ty)?, self.src(&ops[2], Ty::U32)?, self.src(&ops[3], Ty::U32)?];
                self.alu(Alu::Bfe(w, s), d, &s3);
                Ok(true)
            }
            "bfi" => {
                let (ty, w, _) = self.int_ty(m)?;
                self.want(m, ops, 5)?;
                let d = self.dst(&ops[0], ty.bits())?;
                let s = [
                    self.src(&ops[1], ty)?,
                    self.src(&ops[2], ty)?,
                    self.src(&ops[3], Ty::U32)?,
                    self.src(&ops[4], Ty::U32)?,
                ];
                self.alu(Alu::Bfi(w), d, &s);
                Ok(true)
            }
            "fns" => {
                self.int_ty(m)?;
                self.same(m, ops, Ty::B32, 3, Alu::Fns)
            }
            "dp4a" | "dp2a" => {
                let hi = m.take("hi");
                m.take("lo");
                let (_, _, sa) = self.int_ty(m)?;
                let (_, _, sb) = self.int_ty(m)?;
                let alu = if m.name == "dp4a" { Alu::Dp4a(sa, sb) } else { Alu::Dp2a(sa, sb, hi) };
                self.same(m, ops, Ty::B32, 3, alu)
            }
            "and" | "or" | "xor" => self.logic(m, ops),
            "shl" | "shr" => {
                let (ty, w, s) = self.int_ty(m)?;
                self.want(m, ops, 3)?;
                let d = self.dst(&ops[0], ty.bits())?;
                let s2 = [self.src(&ops[1], ty)?, self.src(&ops[2], Ty::U32)?];
                self.alu(if m.name == "shl" { Alu::Shl(w) } else { Alu::Shr(w, s) }, d, &s2);
                Ok(true)
            }
            "shf" => {
                let right = m.take("r");
                if !right {
                    m.take("l");
                }
                let wrap = m.take("wrap");
                m.take("clamp");
                self.int_ty(m)?;
                self.same(m, ops, Ty::B32, 3, if right { Alu::ShfR(wrap) } else { Alu::ShfL(wrap) })
            }
            "lop3" => {
                self.int_ty(m)?;
                self.want(m, ops, 5)?;
                let Opd::Int(lut) = ops[4] else { return self.bad("lop3 needs an immediate table") };
                self.same(m, &ops[..4], Ty::B32, 3, Alu::Lop3(lut as u8))
            }
            "prmt" => {
                self.int_ty(m)?;
                let mode =
                    m.find(|s| ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"].iter().position(|x| *x == s));
                self.same(m, ops, Ty::B32, 3, Alu::Prmt(mode.map_or(0, |i| i as u8 + 1)))
            }
            "szext" | "bmsk" => {
                let wrap = m.take("wrap");
                m.take("clamp");
                let (_, _, s) = self.int_ty(m)?;
                let alu = if m.name == "szext" { Alu::Szext(wrap, s) } else { Alu::Bmsk(wrap) };
                self.same(m, ops, Ty::B32, 2, alu)
            }
            "setp" | "set" => self.set(m, ops),
            "selp" => {
                let ty = self.need_ty(m)?;
                self.want(m, ops, 4)?;
                let d = self.dst(&ops[0], ty.bits())?;
                let (a, b) = (self.src(&ops[1], ty)?, self.src(&ops[2], ty)?);
                let (p, pneg) = self.pred(&ops[3])?;
                self.emit(Op::Selp { bits: ty.bits() as u8, d, a, b, p, pneg });
                Ok(true)
            }
            "slct" => {
                let ftz = m.take("ftz");
                let (ty, cty) = (self.need_ty(m)?, self.need_ty(m)?);
                self.want(m, ops, 4)?;
                let w = ty.bits() as u8;
                let d = self.dst(&ops[0], ty.bits())?;
                let s = [self.src(&ops[1], ty)?, self.src(&ops[2], ty)?, self.src(&ops[3], cty)?];
                self.alu(if cty == Ty::F32 { Alu::SlctF32(w, ftz) } else { Alu::SlctS32(w) }, d, &s);
                Ok(true)
            }
            "cvt" => self.cvt(m, ops),
            _ => Ok(false),
        }
    }

    fn mov(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let ty = self.need_ty(m)?;
        self.want(m, ops, 2)?;
        if ty == Ty::Pred {
            let (d, _) = self.pred_pair(&ops[0])?;
            let (a, aneg) = self.pred(&ops[1])?;
            self.emit(Op::PLogic { bop: Bop::Or, d, a, aneg, b: P_FALSE, bneg: false });
            return Ok(true);
        }
        let bits = ty.bits();
        let part = |n: usize| match bits / n as u32 {
            8 => Some(Ty::B8),
            16 => Some(Ty::B16),
            32 => Some(Ty::B32),
            _ => None,
        };
        match (&ops[0], &ops[1]) {
            (Opd::Vec(list), s) => {
                let Some(pty) = part(list.len()).filter(|_| matches!(list.len(), 2 | 4)) else {
                    return self.bad("vector of a shape mov does not take");
                };
                let s = self.src(s, ty)?;
                let mut d = [R::NONE; 4];
                for (slot, o) in d.iter_mut().zip(list) {
                    *slot = self.dst(o, pty.bits())?;
                }
                self.emit(Op::Unpack { bits: pty.bits() as u8, n: list.len() as u8, d, s });
            }
            (d, Opd::Vec(list)) => {
                let Some(pty) = part(list.len()).filter(|_| matches!(list.len(), 2 | 4)) else {
                    return self.bad("vector of a shape mov does not take");
                };
                let d = self.dst(d, bits)?;
                let mut s = [R::NONE; 4];
                for (slot, o) in s.iter_mut().zip(list) {
                    *slot = self.src(o, pty)?;
                }
                self.emit(Op::Pack { bits: pty.bits() as u8, n: list.len() as u8, d, s });
            }
            (d, s) => {
                let d = self.dst(d, bits)?;
                let s = self.src(s, ty)?;
                self.alu(Alu::Mov(bits as u8), d, &[s]);
            }
        }
        Ok(true)
    }

    fn cc_pred(&mut self) -> P {
        match self.cc {
            Some(p) => p,
            None => {
                let p = self.new_pred();
                self.cc = Some(p);
                p
            }
        }
    }

    fn carry(&mut self, m: &Mods<'a>, ops: &[Opd<'a>], ty: Ty, w: u8, inn: bool, out: bool) -> Result<bool> {
        self.want(m, ops, 3)?;
        let d = self.dst(&ops[0], ty.bits())?;
        let (a, b) = (self.src(&ops[1], ty)?, self.src(&ops[2], ty)?);
        let cc = self.cc_pred();
        self.emit(Op::Carry { sub: m.name.starts_with("sub"), inn, out, bits: w, d, a, b, cc });
        Ok(true)
    }

    fn add_sub(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let cc = m.take("cc");
        let fm = self.fm(m);
        let ty = self.need_ty(m)?;
        let add = m.name == "add";
        let w = ty.bits() as u8;
        if cc {
            return self.carry(m, ops, ty, w, false, true);
        }
        let alu = match (ty, half_of(ty)) {
            (Ty::F32, _) => {
                if add {
                    Alu::FAdd(fm)
                } else {
                    Alu::FSub(fm)
                }
            }
            (Ty::F64, _) => {
                if add {
                    Alu::DAdd(fm.rnd)
                } else {
                    Alu::DSub(fm.rnd)
                }
            }
            (_, Some((f, p))) => Alu::H(if add { HOp::Add } else { HOp::Sub }, f, p, fm),
            _ if fm.sat && ty == Ty::S32 => {
                if add {
                    Alu::AddSat
                } else {
                    Alu::SubSat
                }
            }
            _ if fm.sat || fm.ftz || ty.is_float() || ty == Ty::Pred => {
                return self.unsupported(m.full, "type");
            }
            _ => {
                if add {
                    Alu::Add(w)
                } else {
                    Alu::Sub(w)
                }
            }
        };
        if (m.has("s16x2") || m.has("u16x2")) && add {
            return self.unsupported(m.full, "type");
        }
        self.same(m, ops, ty, 2, alu)
    }

    fn mul_mad(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let mad = m.name.starts_with("mad");
        let (lo, hi, wide) = (m.take("lo"), m.take("hi"), m.take("wide"));
        let cc = m.take("cc");
        let fm = self.fm(m);
        let ty = self.need_ty(m)?;
        let n = if mad { 3 } else { 2 };
        if m.name.ends_with("24") {
            let s = ty.is_signed();
            if fm.sat {
                return self.unsupported(m.full, "saturation");
            }
            return self.same(m, ops, ty, n, if mad { Alu::Mad24(hi, s) } else { Alu::Mul24(hi, s) });
        }
        if ty.is_float() {
            let alu = match (ty, half_of(ty), mad) {
                (Ty::F32, _, true) => Alu::FFma(fm),
                (Ty::F32, _, false) => Alu::FMul(fm),
                (Ty::F64, _, true) => Alu::DFma(fm.rnd),
                (Ty::F64, _, false) => Alu::DMul(fm.rnd),
                (_, Some((f, p)), false) => Alu::H(HOp::Mul, f, p, fm),
                _ => return self.unsupported(m.full, "type"),
            };
            return self.same(m, ops, ty, n, alu);
        }
        let (w, s) = (ty.bits() as u8, ty.is_signed());
        if cc || m.name == "madc" {
            self.want(m, ops, 4)?;
            let d = self.dst(&ops[0], ty.bits())?;
            let (a, b, c) = (self.src(&ops[1], ty)?, self.src(&ops[2], ty)?, self.src(&ops[3], ty)?);
            let inn = m.name == "madc";
            let pred = self.cc_pred();
            self.emit(Op::MadCarry { hi, signed: s, inn, out: cc, bits: w, d, a, b, c, cc: pred });
            return Ok(true);
        }
        if wide {
            let wty = match w {
                16 => Ty::B32,
                32 => Ty::B64,
                _ => return self.unsupported(m.full, "type"),
            };
            self.want(m, ops, n + 1)?;
            let d = self.dst(&ops[0], wty.bits())?;
            let (a, b) = (self.src(&ops[1], ty)?, self.src(&ops[2], ty)?);
            if mad {
                let c = self.src(&ops[3], wty)?;
                self.alu(Alu::MadWide(w, s), d, &[a, b, c]);
            } else {
                self.alu(Alu::MulWide(w, s), d, &[a, b]);
            }
            return Ok(true);
        }
        let alu = match (hi, lo, mad) {
            (true, _, true) if fm.sat => Alu::MadHiSat,
            (true, _, true) => Alu::MadHi(w, s),
            (true, _, false) => Alu::MulHi(w, s),
            (_, true, true) => Alu::MadLo(w),
            (_, true, false) => Alu::MulLo(w),
            _ => return self.bad(format!("`{}` needs .lo, .hi or .wide", m.full)),
        };
        self.same(m, ops, ty, n, alu)
    }

    fn bits_unary(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let shiftamt = m.name == "bfind" && m.take("shiftamt");
        let ty = self.need_ty(m)?;
        let narrow = matches!(m.name, "not" | "cnot") && ty.bits() == 16;
        if !(matches!(ty.bits(), 32 | 64) || narrow || ty == Ty::Pred && m.name == "not") {
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

    fn logic(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
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
        let alu = match m.name {
            "and" => Alu::And(w),
            "or" => Alu::Or(w),
            _ => Alu::Xor(w),
        };
        self.same(m, ops, ty, 2, alu)
    }
}
