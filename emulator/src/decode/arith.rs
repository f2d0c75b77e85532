//! Decoding of integer arithmetic, logic and moves; the first stop of every lane-wise instruction.

use super::Decoder;
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
        if ty.is_float() || ty == Ty::Pred || ty.bits() == 8 {
            return self.unsupported(m.full, format!("type .{}", ty.name()));
        }
        Ok((ty, ty.bits() as u8, ty.is_signed()))
    }

    /// Takes the float attributes an instruction of type `ty` has; `fma` adds `.relu` for halves.
    pub(super) fn fm(&self, m: &mut Mods<'a>, ty: Ty, fma: bool) -> Fm {
        let (f16, bf16) = (matches!(ty, Ty::F16 | Ty::F16x2), matches!(ty, Ty::BF16 | Ty::BF16x2));
        let rnd = if matches!(ty, Ty::F32 | Ty::F64) || bf16 && fma { m.rnd() } else { None };
        if f16 || bf16 {
            m.take("rn");
        }
        let sat = ty == Ty::F32 || f16 || ty == Ty::S32;
        let relu = fma && (f16 || bf16) && m.take("relu");
        Fm {
            rnd: rnd.unwrap_or(Rnd::Rn),
            ftz: (ty == Ty::F32 || f16) && m.take("ftz"),
            sat: sat && !relu && m.take("sat"),
            relu,
        }
    }

    /// Decodes `m` if it is one of the instructions of this file.
    pub(super) fn arith(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        match m.name {
            "mov" => self.mov(m, ops),
            "add" | "sub" => self.add_sub(m, ops),
            "addc" | "subc" => {
                let out = m.take("cc");
                let (ty, w, _) = self.int_ty(m)?;
                self.wide_enough(m, ty)?;
                self.carry(m, ops, ty, w, true, out)
            }
            "mul" | "mad" | "madc" | "mul24" | "mad24" => self.mul_mad(m, ops),
            "fma" => {
                let ty = self.need_ty(m)?;
                let fm = self.fm(m, ty, true);
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
                let (Some(what), Ty::F32 | Ty::F64) = (what, ty) else {
                    return self.unsupported(m.full, "property or type");
                };
                self.want(m, ops, 2)?;
                let (p, _) = self.pred_pair(&ops[0])?;
                let a = self.src(&ops[1], ty)?;
                self.emit(Op::Testp { what: what as u8, ty, p, a });
                Ok(true)
            }
            "popc" | "clz" | "bfind" | "brev" | "cnot" | "not" => self.bits_unary(m, ops),
            "bfe" => {
                let (ty, w, s) = self.int_ty(m)?;
                self.wide_enough(m, ty)?;
                self.want(m, ops, 4)?;
                let d = self.dst(&ops[0], ty.bits())?;
                let s3 = [self.src(&ops[1], ty)?, self.src(&ops[2], Ty::U32)?, self.src(&ops[3], Ty::U32)?];
                self.alu(Alu::Bfe(w, s), d, &s3);
                Ok(true)
            }
            "bfi" => {
                let (ty, w, _) = self.int_ty(m)?;
                if !matches!(ty, Ty::B32 | Ty::B64) {
                    return self.unsupported(m.full, format!("type .{}", ty.name()));
                }
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
                let bits = matches!(ty, Ty::B16 | Ty::B32 | Ty::B64);
                if m.name == "shl" && !bits {
                    return self.unsupported(m.full, format!("type .{}", ty.name()));
                }
                self.want(m, ops, 3)?;
                let d = self.dst(&ops[0], ty.bits())?;
                let s2 = [self.src(&ops[1], ty)?, self.src(&ops[2], Ty::U32)?];
                self.alu(if m.name == "shl" { Alu::Shl(w) } else { Alu::Shr(w, s) }, d, &s2);
                Ok(true)
            }
            "shf" => {
                let right = m.take("r");
                let way = right || m.take("l");
                let wrap = m.take("wrap");
                let mode = wrap || m.take("clamp");
                if !(way && mode && m.take("b32")) {
                    return self.unsupported(m.full, "direction, mode or type");
                }
                self.same(m, ops, Ty::B32, 3, if right { Alu::ShfR(wrap) } else { Alu::ShfL(wrap) })
            }
            "lop3" => self.lop3(m, ops),
            "prmt" => {
                if !m.take("b32") {
                    return self.unsupported(m.full, "type");
                }
                let mode =
                    m.find(|s| ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"].iter().position(|x| *x == s));
                self.same(m, ops, Ty::B32, 3, Alu::Prmt(mode.map_or(0, |i| i as u8 + 1)))
            }
            "szext" | "bmsk" => {
                let wrap = m.take("wrap");
                m.take("clamp");
                let (ty, _, s) = self.int_ty(m)?;
                if ty.bits() != 32 || (ty == Ty::B32) != (m.name == "bmsk") {
                    return self.unsupported(m.full, format!("type .{}", ty.name()));
                }
                let alu = if m.name == "szext" { Alu::Szext(wrap, s) } else { Alu::Bmsk(wrap) };
                self.same(m, ops, Ty::B32, 2, alu)
            }
            "setp" | "set" => self.set(m, ops),
            "selp" => {
                let ty = self.plain_ty(m)?;
                self.want(m, ops, 4)?;
                let d = self.dst(&ops[0], ty.bits())?;
                let (a, b) = (self.src(&ops[1], ty)?, self.src(&ops[2], ty)?);
                let (p, pneg) = self.pred(&ops[3])?;
                self.emit(Op::Selp { bits: ty.bits() as u8, d, a, b, p, pneg });
                Ok(true)
            }
            "slct" => {
                let (ty, cty) = (self.plain_ty(m)?, self.need_ty(m)?);
                let ftz = cty == Ty::F32 && m.take("ftz");
                if !matches!(cty, Ty::F32 | Ty::S32) {
                    return self.unsupported(m.full, format!("type .{}", cty.name()));
                }
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

    /// The types of mov, selp and slct: 16 to 64 bits, no halves.
    fn plain_ty(&self, m: &mut Mods<'a>) -> Result<Ty> {
        let ty = self.need_ty(m)?;
        match ty {
            Ty::F32 | Ty::F64 => Ok(ty),
            _ if !ty.is_float() && ty.bits() >= 16 => Ok(ty),
            _ => self.unsupported(m.full, format!("type .{}", ty.name())),
        }
    }

    fn mov(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let ty = if m.take("pred") { Ty::Pred } else { self.plain_ty(m)? };
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
        if m.name == "add" && (m.take("u16x2") || m.take("s16x2")) {
            return self.same(m, ops, Ty::B32, 2, Alu::Add16x2);
        }
        let ty = self.need_ty(m)?;
        let fm = self.fm(m, ty, false);
        let add = m.name == "add";
        let w = ty.bits() as u8;
        if cc {
            self.wide_enough(m, ty)?;
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
        self.same(m, ops, ty, 2, alu)
    }

    fn mul_mad(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let mad = m.name.starts_with("mad");
        let ty = self.need_ty(m)?;
        let n = if mad { 3 } else { 2 };
        if ty.is_float() {
            let fm = self.fm(m, ty, false);
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
        let (lo, hi) = (m.take("lo"), m.take("hi"));
        let (w, s) = (ty.bits() as u8, ty.is_signed());
        if m.name.ends_with("24") {
            if w != 32 {
                return self.unsupported(m.full, format!("type .{}", ty.name()));
            }
            let alu = match (mad, hi) {
                (true, true) if s && m.take("sat") => Alu::Mad24HiSat,
                (true, _) => Alu::Mad24(hi, s),
                (false, _) => Alu::Mul24(hi, s),
            };
            return self.same(m, ops, ty, n, alu);
        }
        let wide = m.take("wide");
        let cc = mad && m.take("cc");
        if cc || m.name == "madc" {
            self.want(m, ops, 4)?;
            self.wide_enough(m, ty)?;
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
            (true, _, true) if ty == Ty::S32 && m.take("sat") => Alu::MadHiSat,
            (true, _, true) => Alu::MadHi(w, s),
            (true, _, false) => Alu::MulHi(w, s),
            (_, true, true) => Alu::MadLo(w),
            (_, true, false) => Alu::MulLo(w),
            _ => return self.bad(format!("`{}` needs .lo, .hi or .wide", m.full)),
        };
        self.same(m, ops, ty, n, alu)
    }
}
