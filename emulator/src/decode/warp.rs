//! Decoding of control flow, barriers, warp-wide operations and matrix moves.

use super::Decoder;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::Ty;

impl<'a> Decoder<'a> {
    fn count(&self, m: &Mods<'a>, ops: &[Opd<'a>], n: std::ops::RangeInclusive<usize>) -> Result<()> {
        if n.contains(&ops.len()) {
            return Ok(());
        }
        self.bad(format!("`{}` with {} operands", m.full, ops.len()))
    }

    /// Decodes `m` if it is one of the instructions of this file.
    pub(super) fn warp(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        match m.name {
            "bra" => {
                m.take("uni");
                let [Opd::Word(label)] = ops else { return self.bad("bra takes a label") };
                self.branch(label);
            }
            "brx" => {
                m.take("idx");
                m.take("uni");
                let [index, Opd::Word(list)] = ops else {
                    return self.bad("brx.idx takes an index and a list");
                };
                let index = self.src(index, Ty::U32)?;
                self.branch_table(index, list)?;
            }
            "ret" => {
                m.take("uni");
                self.ret();
            }
            "exit" => {
                self.emit(Op::Exit);
            }
            "trap" => {
                self.emit(Op::Trap);
            }
            "brkpt" => {
                self.emit(Op::Nop);
            }
            "pmevent" => {
                m.take("mask");
                self.emit(Op::Nop);
            }
            "griddepcontrol" => {
                // Every kernel runs alone here: nothing to wait for, nobody to launch.
                if !(m.take("wait") || m.take("launch_dependents")) {
                    return self.unsupported(m.full, "this instruction");
                }
                self.emit(Op::Nop);
            }
            "nanosleep" => {
                m.take("u32");
                self.emit(Op::Nanosleep);
            }
            "bar" | "barrier" => return self.barrier(m, ops),
            "shfl" => {
                if !m.take("sync") {
                    return self.unsupported(m.full, "shfl without .sync");
                }
                let mode = m.find(|s| {
                    Some(match s {
                        "up" => ShflMode::Up,
                        "down" => ShflMode::Down,
                        "bfly" => ShflMode::Bfly,
                        "idx" => ShflMode::Idx,
                        _ => return None,
                    })
                });
                m.take("b32");
                self.count(m, ops, 5..=5)?;
                let Some(mode) = mode else { return self.unsupported(m.full, "mode") };
                let (d, p) = self.reg_pred(&ops[0])?;
                let a = self.src(&ops[1], Ty::B32)?;
                let (b, c) = (self.src(&ops[2], Ty::B32)?, self.src(&ops[3], Ty::B32)?);
                let mask = self.src(&ops[4], Ty::B32)?;
                self.emit(Op::Shfl { mode, d, p, a, b, c, mask });
            }
            "vote" => {
                if !m.take("sync") {
                    return self.unsupported(m.full, "vote without .sync");
                }
                let mode = m.find(|s| {
                    Some(match s {
                        "all" => VoteMode::All,
                        "any" => VoteMode::Any,
                        "uni" => VoteMode::Uni,
                        "ballot" => VoteMode::Ballot,
                        _ => return None,
                    })
                });
                m.take("pred");
                m.take("b32");
                self.count(m, ops, 3..=3)?;
                let Some(mode) = mode else { return self.unsupported(m.full, "mode") };
                let (d, p) = match mode {
                    VoteMode::Ballot => (self.dst(&ops[0], 32)?, NO_P),
                    _ => (R::NONE, self.pred_pair(&ops[0])?.0),
                };
                let (a, aneg) = self.pred(&ops[1])?;
                let mask = self.src(&ops[2], Ty::B32)?;
                self.emit(Op::Vote { mode, d, p, a, aneg, mask });
            }
            "match" => {
                let all = m.take("all");
                m.take("any");
                m.take("sync");
                let Some(ty) = m.ty() else { return self.bad("match without a type") };
                self.count(m, ops, 3..=3)?;
                let (d, p) = self.reg_pred(&ops[0])?;
                let a = self.src(&ops[1], ty)?;
                let mask = self.src(&ops[2], Ty::B32)?;
                self.emit(Op::Match { all, d, p, a, mask });
            }
            "redux" => {
                m.take("sync");
                let op = m.find(|s| {
                    Some(match s {
                        "add" => Red::Add,
                        "min" => Red::Min,
                        "max" => Red::Max,
                        "and" => Red::And,
                        "or" => Red::Or,
                        "xor" => Red::Xor,
                        _ => return None,
                    })
                });
                let (Some(op), Some(ty)) = (op, m.ty()) else { return self.unsupported(m.full, "operation") };
                let bits = matches!(op, Red::And | Red::Or | Red::Xor);
                if !matches!((bits, ty), (true, Ty::B32) | (false, Ty::U32 | Ty::S32)) {
                    return self.unsupported(m.full, format!("type .{}", ty.name()));
                }
                self.count(m, ops, 3..=3)?;
                let d = self.dst(&ops[0], 32)?;
                let (a, mask) = (self.src(&ops[1], ty)?, self.src(&ops[2], Ty::B32)?);
                self.emit(Op::Redux { op, signed: ty.is_signed(), d, a, mask });
            }
            "elect" => {
                m.take("sync");
                self.count(m, ops, 2..=2)?;
                let (d, p) = self.reg_pred(&ops[0])?;
                let mask = self.src(&ops[1], Ty::B32)?;
                self.emit(Op::Elect { d, p, mask });
            }
            "activemask" => {
                m.take("b32");
                self.count(m, ops, 1..=1)?;
                let d = self.dst(&ops[0], 32)?;
                self.emit(Op::Activemask { d });
            }
            "ldmatrix" | "stmatrix" => return self.ldmatrix(m, ops),
            "movmatrix" => {
                let ok =
                    m.take("sync") & m.take("aligned") & m.take("m8n8") & m.take("trans") & m.take("b16");
                self.count(m, ops, 2..=2)?;
                if !ok {
                    return self.unsupported(m.full, "shape");
                }
                let d = self.dst(&ops[0], 32)?;
                let a = self.src(&ops[1], Ty::B32)?;
                self.emit(Op::Movmatrix { d, a });
            }
            "mma" => return self.mma(m, ops),
            "mbarrier" => return self.mbarrier(m, ops),
            "wmma" => return self.wmma(m, ops),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `r|p` or `r` with a 32-bit register; `_` goes nowhere.
    fn reg_pred(&mut self, o: &Opd<'a>) -> Result<(R, P)> {
        match o {
            Opd::Pair(r, p) => Ok((self.dst(&Opd::Word(r), 32)?, self.pred_dst(p)?)),
            _ => Ok((self.dst(o, 32)?, NO_P)),
        }
    }

    fn barrier(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        if m.name == "bar" && m.take("warp") {
            m.take("sync");
            self.count(m, ops, 1..=1)?;
            let mask = self.src(&ops[0], Ty::B32)?;
            self.emit(Op::WarpSync { mask });
            return Ok(true);
        }
        if m.has("cluster") {
            return self.unsupported(m.full, "clusters");
        }
        m.take("cta");
        let aligned = m.name == "bar" || m.take("aligned");
        let arrive = m.take("arrive");
        let red = m.take("red");
        let sync = m.take("sync");
        if !(arrive || red || sync) {
            return self.unsupported(m.full, "this kind of barrier");
        }
        let (mut d, mut dp, mut p, mut pneg) = (R::NONE, NO_P, P_FALSE, false);
        let mut rest = ops;
        let mut kind = None;
        if red {
            kind = m.find(|s| {
                Some(match s {
                    "popc" => Red::Popc,
                    "and" => Red::And,
                    "or" => Red::Or,
                    _ => return None,
                })
            });
            m.take("u32");
            m.take("pred");
            self.count(m, ops, 3..=4)?;
            match kind {
                Some(Red::Popc) => d = self.dst(&ops[0], 32)?,
                Some(_) => dp = self.pred_pair(&ops[0])?.0,
                None => return self.unsupported(m.full, "reduction"),
            }
            (p, pneg) = self.pred(&ops[ops.len() - 1])?;
            rest = &ops[1..ops.len() - 1];
        }
        self.count(m, rest, if arrive { 2..=2 } else { 1..=2 })?;
        if let Opd::Int(id @ 16..) = rest[0] {
            return self.bad(format!("barrier {id}: there are 16, from 0 to 15"));
        }
        let id = self.src(&rest[0], Ty::U32)?;
        let count = match rest.get(1) {
            Some(o) => self.src(o, Ty::U32)?,
            None => R::NONE,
        };
        self.emit(Op::Bar { aligned, arrive, id, count, red: kind, p, pneg, d, dp });
        Ok(true)
    }

    /// A list of registers of `ty`, appended to the pool.
    pub(super) fn pool(&mut self, o: &Opd<'a>, n: usize, ty: Ty, write: bool) -> Result<u32> {
        let one = [o.clone()];
        let items: &[Opd<'a>] = match o {
            Opd::Vec(v) => v,
            _ => &one,
        };
        if items.len() != n {
            return self.bad(format!("{} registers where the instruction has {n}", items.len()));
        }
        let regs = items
            .iter()
            .map(|i| if write { self.dst(i, ty.bits()) } else { self.src(i, ty) })
            .collect::<Result<Vec<R>>>()?;
        let at = self.out.pool.len() as u32;
        self.out.pool.extend(regs);
        Ok(at)
    }

    fn ldmatrix(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let ok = m.take("sync") & m.take("aligned") & m.take("m8n8") & m.take("b16");
        let n = m.find(|s| match s {
            "x1" => Some(1),
            "x2" => Some(2),
            "x4" => Some(4),
            _ => None,
        });
        let (Some(n), true) = (n, ok) else { return self.unsupported(m.full, "shape or type") };
        let trans = m.take("trans");
        let generic = !(m.take("shared") || m.take("shared::cta"));
        self.count(m, ops, 2..=2)?;
        let load = m.name == "ldmatrix";
        let (list, addr) = if load { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
        let regs = self.pool(list, n, Ty::B32, load)?;
        let (base, offset, _) = self.address(addr)?;
        let n = n as u8;
        self.emit(if load {
            Op::Ldmatrix { n, trans, regs, base, offset, generic }
        } else {
            Op::Stmatrix { n, trans, regs, base, offset, generic }
        });
        Ok(true)
    }
}
