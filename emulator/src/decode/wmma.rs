//! Decoding of wmma.load, wmma.store and wmma.mma: f16, bf16, tf32, f64 and bytes.

use super::Decoder;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::Ty;

/// Rows, columns, depth.
type Shape = (u8, u8, u8);

impl<'a> Decoder<'a> {
    fn wmma_shape(&self, m: &mut Mods<'a>) -> Result<Shape> {
        let shape = m.find(|s| match s {
            "m16n16k16" => Some((16, 16, 16)),
            "m32n8k16" => Some((32, 8, 16)),
            "m8n32k16" => Some((8, 32, 16)),
            "m16n16k8" => Some((16, 16, 8)),
            "m8n8k4" => Some((8, 8, 4)),
            _ => None,
        });
        match shape {
            Some(s) => Ok(s),
            None => self.unsupported(m.full, "shape"),
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
    fn fragment(&self, m: &Mods<'a>, part: Part, ty: Ty, (mm, nn, k): Shape) -> Result<(usize, Ty)> {
        let lines = usize::from(if part == Part::A { mm } else { nn });
        Ok(match (part, ty, k) {
            (Part::A | Part::B, Ty::F16, 16) => (8, Ty::B32),
            (Part::A | Part::B, Ty::BF16, 16) => (lines / 4, Ty::B32),
            (Part::A | Part::B, Ty::S8 | Ty::U8, 16) => (lines / 8, Ty::B32),
            (Part::A | Part::B, Ty::Tf32, 8) => (4, Ty::B32),
            (Part::A | Part::B, Ty::F64, 4) => (1, Ty::F64),
            (Part::Acc, Ty::F16, 16) => (4, Ty::B32),
            (Part::Acc, Ty::F32, 8 | 16) => (8, Ty::F32),
            (Part::Acc, Ty::S32, 16) => (8, Ty::B32),
            (Part::Acc, Ty::F64, 4) => (2, Ty::F64),
            _ => return self.unsupported(m.full, format!("type .{} of this shape", ty.name())),
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
            "a" if load => Some(Part::A),
            "b" if load => Some(Part::B),
            "c" if load => Some(Part::Acc),
            "d" if !load => Some(Part::Acc),
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
        // Elements go bit by bit, whatever they mean.
        let plain = match ty.bytes() {
            1 => Ty::B8,
            2 => Ty::B16,
            4 => Ty::B32,
            _ => Ty::B64,
        };
        let access = self.access(m, place, space, plain, 1)?;
        let stride = match ops.get(2) {
            Some(o) => self.src(o, Ty::U32)?,
            None => R::NONE,
        };
        let (rows, cols) = match part {
            Part::A => (shape.0, shape.2),
            Part::B => (shape.2, shape.1),
            Part::Acc => (shape.0, shape.1),
        };
        let frag = Frag { part, rows, cols, row, n: n as u8, bytes: ty.bytes() as u8 };
        let (address, value) = (self.new_reg(true), self.new_reg(false));
        self.emit(Op::WmmaMove { load, m: access, frag, stride, regs, address, value });
        Ok(true)
    }

    fn wmma_mma(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let (a_row, b_row) = (self.layout(m)?, self.layout(m)?);
        let shape = self.wmma_shape(m)?;
        let float = |t: Ty| matches!(t, Ty::F16 | Ty::F32);
        let (d_ty, ab, c_ty) = match (m.ty(), m.ty(), m.ty(), m.ty()) {
            (Some(d), Some(c), None, _) if float(d) && float(c) => (d, Ty::F16, c),
            (Some(Ty::F32), Some(t @ (Ty::BF16 | Ty::Tf32)), Some(u), Some(Ty::F32)) if t == u => {
                (Ty::F32, t, Ty::F32)
            }
            (Some(Ty::S32), Some(t @ (Ty::S8 | Ty::U8)), Some(u), Some(Ty::S32)) if t == u => {
                (Ty::S32, t, Ty::S32)
            }
            (Some(Ty::F64), Some(Ty::F64), Some(Ty::F64), Some(Ty::F64)) => {
                m.take("rn");
                (Ty::F64, Ty::F64, Ty::F64)
            }
            _ => return self.unsupported(m.full, "types"),
        };
        let elem = match ab {
            Ty::F16 => Elem::F16,
            Ty::BF16 => Elem::BF16,
            Ty::Tf32 => Elem::Tf32,
            Ty::F64 => Elem::F64,
            Ty::S8 => Elem::S8,
            _ => Elem::U8,
        };
        let sat = matches!(ab, Ty::S8 | Ty::U8) && m.take("satfinite");
        if ops.len() != 4 {
            return self.bad(format!("`{}` with {} operands", m.full, ops.len()));
        }
        let ((na, ta), (nb, tb)) =
            (self.fragment(m, Part::A, ab, shape)?, self.fragment(m, Part::B, ab, shape)?);
        let ((nd, td), (nc, tc)) =
            (self.fragment(m, Part::Acc, d_ty, shape)?, self.fragment(m, Part::Acc, c_ty, shape)?);
        let regs = self.pool(&ops[0], nd, td, true)?;
        self.pool(&ops[1], na, ta, false)?;
        self.pool(&ops[2], nb, tb, false)?;
        self.pool(&ops[3], nc, tc, false)?;
        let n = [nd as u8, na as u8, nb as u8, nc as u8];
        self.emit(Op::WmmaMma { product: Product { elem, shape, a_row, b_row, sat }, n, regs });
        Ok(true)
    }
}
