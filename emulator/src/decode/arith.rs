//! Decoding of arithmetic, logic, comparison, conversion and moves.

use super::Decoder;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::{Rnd, Ty};

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

fn bool_op(s: &str) -> Option<Bop> {
    Some(match s {
        "and" => Bop::And,
        "or" => Bop::Or,
        "xor" => Bop::Xor,
        _ => return None,
    })
}

fn half_of(ty: Ty) -> Option<(Hf, bool)> {
    Some(match ty {
        Ty::F16 => (Hf::F16, false),
        Ty::F16x2 => (Hf::F16, true),
        Ty::BF16 => (Hf::BF16, false),
        Ty::BF16x2 => (Hf::BF16, true),
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    fn want(&self, m: &Mods<'a>, ops: &[Opd<'a>], n: usize) -> Result<()> {
        if ops.len() == n {
            Ok(())
        } else {
            self.bad(format!("`{}` takes {n} operands, not {}", m.full, ops.len()))
        }
    }

    fn need_ty(&self, m: &mut Mods<'a>) -> Result<Ty> {
        match m.ty() {
            Some(t) => Ok(t),
            None => self.bad(format!("`{}` has no type", m.full)),
        }
    }

    fn alu(&mut self, alu: Alu, d: R, s: &[R]) {
        let mut src = [R::NONE; 4];
        src[..s.len()].copy_from_slice(s);
        self.emit(Op::Alu { alu, d, s: src });
    }

    /// `n` sources of type `ty` after the destination, all of the same width.
    fn same(&mut self, m: &Mods<'a>, ops: &[Opd<'a>], ty: Ty, n: usize, alu: Alu) -> Result<bool> {
        self.want(m, ops, n + 1)?;
        let d = self.dst(&ops[0], ty.bits())?;
        let mut s = [R::NONE; 4];
        for i in 0..n {
            s[i] = self.src(&ops[i + 1], ty)?;
        }
        self.emit(Op::Alu { alu, d, s });
        Ok(true)
    }

    fn int_ty(&self, m: &mut Mods<'a>) -> Result<(Ty, u8, bool)> {
        let ty = self.need_ty(m)?;
        if ty.is_float() || ty == Ty::Pred {
            return self.unsupported(m.full, format!("type .{}", ty.name()));
        }
        Ok((ty, ty.bits() as u8, ty.is_signed()))
    }

    fn fm(&self, m: &mut Mods<'a>) -> Fm {
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

    fn functions(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
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

    fn abs_neg(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
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

    fn min_max(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
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

    fn set(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
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

    fn cvt(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let int_rnd = m.find(|s| {
            Some(match s {
                "rni" => Rnd::Rn,
                "rzi" => Rnd::Rz,
                "rmi" => Rnd::Rm,
                "rpi" => Rnd::Rp,
                _ => return None,
            })
        });
        let rnd = m.rnd();
        let finite = m.take("satfinite");
        let fm =
            Fm { rnd: rnd.unwrap_or(Rnd::Rn), ftz: m.take("ftz"), sat: m.take("sat"), relu: m.take("relu") };
        let (to, from) = (self.need_ty(m)?, self.need_ty(m)?);
        let packed = matches!(to, Ty::F16x2 | Ty::BF16x2 | Ty::E4M3x2 | Ty::E5M2x2) && from == Ty::F32;
        if packed {
            self.want(m, ops, 3)?;
            let d = self.dst(&ops[0], to.bits())?;
            let s = [self.src(&ops[1], from)?, self.src(&ops[2], from)?];
            let alu = match to {
                Ty::F16x2 => Alu::CvtPack(Hf::F16, fm),
                Ty::BF16x2 => Alu::CvtPack(Hf::BF16, fm),
                _ if !finite => return self.unsupported(m.full, "fp8 without .satfinite"),
                _ => Alu::CvtPackFp8(to == Ty::E4M3x2, fm.relu),
            };
            if finite && to.bits() == 32 {
                return self.unsupported(m.full, "modifier `.satfinite`");
            }
            self.alu(alu, d, &s);
            return Ok(true);
        }
        let pair = |t: Ty| matches!(t, Ty::F16x2 | Ty::BF16x2 | Ty::E4M3x2 | Ty::E5M2x2);
        let unpack = matches!(from, Ty::E4M3x2 | Ty::E5M2x2) && to == Ty::F16x2;
        if (pair(to) || pair(from)) && !unpack
            || to == Ty::Pred
            || from == Ty::Pred
            || from == Ty::Tf32
            || finite
        {
            return self.unsupported(m.full, "conversion");
        }
        self.want(m, ops, 2)?;
        let integral = int_rnd.is_some() && to.is_float() && from.is_float();
        let (d, dbits) = self.dst_wide(&ops[0], to.bits())?;
        let a = self.src_wide(&ops[1], from)?;
        // Float to a wider float needs no mode; to an integer the default is towards zero.
        let default = if to.is_float() { Rnd::Rn } else { Rnd::Rz };
        let rnd = int_rnd.or(rnd).unwrap_or(default);
        self.alu(
            Alu::Cvt(Cvt {
                to,
                from,
                rnd,
                integral,
                ftz: fm.ftz,
                sat: fm.sat,
                relu: fm.relu,
                dbits: dbits as u8,
            }),
            d,
            &[a],
        );
        Ok(true)
    }
}
