//! Decoding of cvt: which modifiers a pair of types has, packed forms, fp8, and cvt.pack.

use super::Decoder;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::{Rnd, Ty};

fn packed(t: Ty) -> bool {
    matches!(t, Ty::F16x2 | Ty::BF16x2 | Ty::E4M3x2 | Ty::E5M2x2)
}

impl<'a> Decoder<'a> {
    pub(super) fn cvt(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        if m.take("pack") {
            return self.cvt_pack(m, ops);
        }
        let (to, from) = (self.need_ty(m)?, self.need_ty(m)?);
        if packed(to) || packed(from) {
            return self.cvt_pairs(m, ops, to, from);
        }
        let odd = |t: Ty| matches!(t, Ty::Pred | Ty::B8 | Ty::B16 | Ty::B32 | Ty::B64);
        if odd(to) || odd(from) || from == Ty::Tf32 || to == Ty::Tf32 && from != Ty::F32 {
            return self.unsupported(m.full, "conversion");
        }
        let tf32 = to == Ty::Tf32;
        let mut c = Cvt {
            to,
            from,
            // To an integer the default is towards zero; to a wider float nothing is rounded.
            rnd: if to.is_float() { Rnd::Rn } else { Rnd::Rz },
            integral: false,
            ftz: (to == Ty::F32 || from == Ty::F32) && !tf32 && m.take("ftz"),
            sat: false,
            relu: false,
            finite: false,
            dbits: 0,
        };
        if from.is_float() && (!to.is_float() || to == from) {
            let mode = m.find(|s| {
                Some(match s {
                    "rni" => Rnd::Rn,
                    "rzi" => Rnd::Rz,
                    "rmi" => Rnd::Rm,
                    "rpi" => Rnd::Rp,
                    _ => return None,
                })
            });
            c.integral = to.is_float() && mode.is_some();
            c.rnd = mode.unwrap_or(c.rnd);
        } else if to.is_float() {
            let rna = tf32 && m.take("rna");
            let mode = if rna { Some(Rnd::Rna) } else { m.rnd() };
            let inexact = !from.is_float() || to.bits() < from.bits() || tf32;
            if inexact && mode.is_none() {
                return self.unsupported(m.full, "conversion without a rounding mode");
            }
            c.rnd = mode.unwrap_or(c.rnd);
            let narrow = from == Ty::F32 && matches!(to, Ty::F16 | Ty::BF16 | Ty::Tf32);
            if narrow && matches!(c.rnd, Rnd::Rn | Rnd::Rz | Rnd::Rna) {
                c.relu = !rna && m.take("relu");
                c.finite = m.take("satfinite");
            } else if tf32 {
                return self.unsupported(m.full, "rounding mode");
            }
        }
        let bf16 = to == Ty::BF16 || from == Ty::BF16;
        c.sat = !(bf16 || tf32 || c.relu || c.finite) && m.take("sat");
        self.want(m, ops, 2)?;
        let (d, dbits) = self.dst_wide(&ops[0], to.bits())?;
        c.dbits = dbits as u8;
        let a = self.src_wide(&ops[1], from)?;
        self.alu(Alu::Cvt(c), d, &[a]);
        Ok(true)
    }

    /// Two singles to a pair, and pairs to and from fp8.
    fn cvt_pairs(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>], to: Ty, from: Ty) -> Result<bool> {
        let halves = matches!(to, Ty::F16x2 | Ty::BF16x2);
        let rnd = match m.rnd() {
            Some(Rnd::Rn) => Rnd::Rn,
            Some(Rnd::Rz) if halves && from == Ty::F32 => Rnd::Rz,
            _ => return self.unsupported(m.full, "rounding mode"),
        };
        let relu = m.take("relu");
        match (to, from) {
            (Ty::F16x2 | Ty::BF16x2, Ty::F32) => {
                let finite = m.take("satfinite");
                self.want(m, ops, 3)?;
                let d = self.dst(&ops[0], 32)?;
                let s = [self.src(&ops[1], from)?, self.src(&ops[2], from)?];
                let format = if to == Ty::F16x2 { Hf::F16 } else { Hf::BF16 };
                let fm = Fm { rnd, ftz: false, sat: false, relu };
                self.alu(Alu::CvtPack(format, fm, finite), d, &s);
            }
            (Ty::E4M3x2 | Ty::E5M2x2, Ty::F32 | Ty::F16x2) => {
                if !m.take("satfinite") {
                    return self.unsupported(m.full, "fp8 without .satfinite");
                }
                let e4m3 = to == Ty::E4M3x2;
                self.want(m, ops, if from == Ty::F32 { 3 } else { 2 })?;
                let d = self.dst(&ops[0], 16)?;
                let a = self.src(&ops[1], from)?;
                if from == Ty::F32 {
                    let b = self.src(&ops[2], from)?;
                    self.alu(Alu::CvtPackFp8(e4m3, relu), d, &[a, b]);
                } else {
                    self.alu(Alu::CvtHalvesFp8(e4m3, relu), d, &[a]);
                }
            }
            (Ty::F16x2, Ty::E4M3x2 | Ty::E5M2x2) => {
                self.want(m, ops, 2)?;
                let d = self.dst(&ops[0], 32)?;
                let a = self.src(&ops[1], from)?;
                let (integral, ftz, sat, finite) = (false, false, false, false);
                self.alu(
                    Alu::Cvt(Cvt { to, from, rnd, integral, ftz, sat, relu, finite, dbits: 32 }),
                    d,
                    &[a],
                );
            }
            _ => return self.unsupported(m.full, "conversion"),
        }
        Ok(true)
    }

    /// `cvt.pack.sat.u16|s16.s32 d, a, b` and `cvt.pack.sat.u8|s8|u4|s4|u2|s2.s32.b32 d, a, b, c`.
    fn cvt_pack(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let to = m.find(|s| {
            let signed = s.starts_with('s');
            match s.strip_prefix(['s', 'u'])? {
                "2" => Some((2, signed)),
                "4" => Some((4, signed)),
                "8" => Some((8, signed)),
                "16" => Some((16, signed)),
                _ => None,
            }
        });
        let (Some((bits, signed)), true) = (to, m.take("sat") & m.take("s32")) else {
            return self.unsupported(m.full, "types, or no .sat");
        };
        let above = bits < 16;
        if above && !m.take("b32") {
            return self.unsupported(m.full, "types");
        }
        self.want(m, ops, if above { 4 } else { 3 })?;
        let d = self.dst(&ops[0], 32)?;
        let mut s = vec![self.src(&ops[1], Ty::S32)?, self.src(&ops[2], Ty::S32)?];
        if above {
            s.push(self.src(&ops[3], Ty::B32)?);
        }
        self.alu(Alu::CvtPackInt(bits, signed), d, &s);
        Ok(true)
    }
}
