//! Decoding of wmma.load, wmma.store and wmma.mma for f16 and bf16.

use super::Decoder;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::Ty;

impl<'a> Decoder<'a> {
    /// Shape of the product: rows, columns, depth.
    fn wmma_shape(&self, m: &mut Mods<'a>) -> Result<(u8, u8)> {
        let shape = m.find(|s| match s {
            "m16n16k16" => Some((16, 16)),
            "m32n8k16" => Some((32, 8)),
            "m8n32k16" => Some((8, 32)),
            _ => None,
        });
        match shape {
            Some(s) => Ok(s),
            None => self.unsupported(m.full, "shape (m16n16k16, m32n8k16 and m8n32k16 are in it)"),
        }
    }

    /// Takes the next `row` or `col`; true is row.
    fn layout(&self, m: &mut Mods<'a>) -> Result<bool> {
        match m.find(|s| matches!(s, "row" | "col").then_some(s == "row")) {
            Some(row) => Ok(row),
            None => self.bad(format!("`{}` names no layout", m.full)),
        }
    }

    /// Registers a lane has of a fragment, and how they are declared.
    fn fragment(&self, m: &Mods<'a>, part: Part, ty: Ty, (mm, nn): (u8, u8)) -> Result<(usize, Ty)> {
        Ok(match (part, ty) {
            (Part::A | Part::B, Ty::F16) => (8, Ty::B32),
            (Part::A, Ty::BF16) => (usize::from(mm) / 4, Ty::B32),
            (Part::B, Ty::BF16) => (usize::from(nn) / 4, Ty::B32),
            (Part::Acc, Ty::F16) => (4, Ty::B32),
            (Part::Acc, Ty::F32) => (8, Ty::F32),
            _ => return self.unsupported(m.full, format!("type .{}", ty.name())),
        })
    }

    /// Decodes `m`, a wmma instruction.
    pub(super) fn wmma(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let what = m.find(|s| matches!(s, "load" | "store" | "mma").then_some(s));
        let fixed = m.take("sync") & m.take("aligned");
        let (Some(what), true) = (what, fixed) else { return self.unsupported(m.full, "this instruction") };
        if what == "mma" {
            return self.wmma_mma(m, ops);
        }
        let load = what == "load";
        let part = m.find(|s| match s {
            "a" => Some(Part::A),
            "b" => Some(Part::B),
            "c" | "d" => Some(Part::Acc),
            _ => None,
        });
        let Some(part) = part else { return self.unsupported(m.full, "matrix") };
        let row = self.layout(m)?;
        let shape = self.wmma_shape(m)?;
        let space = self.space(m)?;
        let Some(ty) = m.ty() else { return self.bad(format!("`{}` has no type", m.full)) };
        let (n, reg_ty) = self.fragment(m, part, ty, shape)?;
        if !(2..=3).contains(&ops.len()) {
            return self.bad(format!("`{}` with {} operands", m.full, ops.len()));
        }
        let (list, place) = if load { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
        let regs = self.pool(list, n, reg_ty, load)?;
        let access = self.access(m, place, space, ty, 1)?;
        let stride = match ops.get(2) {
            Some(o) => self.src(o, Ty::U32)?,
            None => R::NONE,
        };
        let (rows, cols) = match part {
            Part::A => (shape.0, 16),
            Part::B => (16, shape.1),
            Part::Acc => shape,
        };
        let frag = Frag { part, rows, cols, row, n: n as u8, bytes: ty.bytes() as u8 };
        let (address, value) = (self.new_reg(true), self.new_reg(false));
        self.emit(Op::WmmaMove { load, m: access, frag, stride, regs, address, value });
        Ok(true)
    }

    fn wmma_mma(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let (a_row, b_row) = (self.layout(m)?, self.layout(m)?);
        let shape = self.wmma_shape(m)?;
        if m.has("satfinite") {
            return self.unsupported(m.full, "modifier `.satfinite`");
        }
        let (d_ty, fmt, c_ty) = match (m.ty(), m.ty(), m.ty(), m.ty()) {
            (Some(d), Some(c), None, _) => (d, Hf::F16, c),
            (Some(d), Some(Ty::BF16), Some(Ty::BF16), Some(c)) => (d, Hf::BF16, c),
            (Some(d), Some(Ty::F16), Some(Ty::F16), Some(c)) => (d, Hf::F16, c),
            _ => return self.unsupported(m.full, "types (f16 and bf16 are in it)"),
        };
        if ops.len() != 4 {
            return self.bad(format!("`{}` with {} operands", m.full, ops.len()));
        }
        let ab = if fmt == Hf::F16 { Ty::F16 } else { Ty::BF16 };
        let ((na, ta), (nb, tb)) =
            (self.fragment(m, Part::A, ab, shape)?, self.fragment(m, Part::B, ab, shape)?);
        let ((nd, td), (nc, tc)) =
            (self.fragment(m, Part::Acc, d_ty, shape)?, self.fragment(m, Part::Acc, c_ty, shape)?);
        let regs = self.pool(&ops[0], nd, td, true)?;
        self.pool(&ops[1], na, ta, false)?;
        self.pool(&ops[2], nb, tb, false)?;
        self.pool(&ops[3], nc, tc, false)?;
        let n = [nd as u8, na as u8, nb as u8, nc as u8];
        self.emit(Op::WmmaMma { fmt, shape, a_row, b_row, n, regs });
        Ok(true)
    }
}
