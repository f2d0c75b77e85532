//! Decoding of cvt.

use super::Decoder;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::{Rnd, Ty};

impl<'a> Decoder<'a> {
    pub(super) fn cvt(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
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
