//! Decoding of loads, stores, atomics, asynchronous copies, address conversion and hints.

use super::Decoder;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::{Space, Ty};

impl<'a> Decoder<'a> {
    /// Takes the state space of an opcode.
    pub(super) fn space(&self, m: &mut Mods<'a>) -> Result<Space> {
        if m.has("shared::cluster") {
            return self.unsupported(m.full, "clusters");
        }
        Ok(m.find(|s| {
            Some(match s {
                "global" => Space::Global,
                "shared" | "shared::cta" => Space::Shared,
                "local" => Space::Local,
                "const" => Space::Const,
                "param" | "param::entry" | "param::func" => Space::Param,
                _ => return None,
            })
        })
        .unwrap_or(Space::Generic))
    }

    /// Takes ordering, scope and cache words, none of which changes a result here.
    pub(super) fn hints(&self, m: &mut Mods<'a>) -> bool {
        let mut policy = false;
        for w in [
            "weak", "relaxed", "acquire", "release", "acq_rel", "sc", "volatile", "mmio", "cta", "gpu",
            "sys", "cluster", "nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt",
        ] {
            m.take(w);
        }
        while m
            .find(|s| (s.starts_with("L1::") || s.starts_with("L2::")).then(|| s == "L2::cache_hint"))
            .inspect(|p| policy |= p)
            .is_some()
        {}
        policy
    }

    pub(super) fn access(
        &mut self,
        m: &Mods<'a>,
        o: &Opd<'a>,
        space: Space,
        ty: Ty,
        n: usize,
    ) -> Result<Access> {
        let (base, offset, home) = self.address(o)?;
        // Arguments of calls live in the local area; module constants may be read as generic.
        let space = match (space, home) {
            (Space::Param, Some(Space::Local)) => Space::Local,
            (s, Some(h)) if s == h => s,
            (Space::Generic, Some(Space::Global | Space::Const)) => Space::Global,
            (s, Some(h)) => {
                return self.bad(format!(
                    "`{}` reads .{} but the variable is .{}",
                    m.full,
                    s.name(),
                    h.name()
                ));
            }
            (s, None) => s,
        };
        Ok(Access {
            space,
            bytes: ty.bytes() as u8,
            n: n as u8,
            signed: ty.is_signed(),
            strong: false,
            acquire: false,
            release: false,
            near: false,
            base,
            offset,
        })
    }

    /// Registers of a scalar or vector operand; the fifth and later go to the pool.
    fn list(&mut self, m: &Mods<'a>, o: &Opd<'a>, n: usize, ty: Ty, load: bool) -> Result<([R; 4], u32)> {
        let one = [o.clone()];
        let items: &[Opd<'a>] = match o {
            Opd::Vec(v) => v,
            _ => &one,
        };
        if items.len() != n {
            return self.bad(format!("`{}` with {} registers instead of {n}", m.full, items.len()));
        }
        let mut r = [R::NONE; 4];
        let mut more = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let reg = if load { self.dst_wide(item, ty.bits())?.0 } else { self.src_wide(item, ty)? };
            match r.get_mut(i) {
                Some(slot) => *slot = reg,
                None => more.push(reg),
            }
        }
        let at = self.out.pool.len() as u32;
        self.out.pool.extend(more);
        Ok((r, at))
    }

    fn vector(&self, m: &mut Mods<'a>) -> usize {
        m.find(|s| match s {
            "v2" => Some(2),
            "v4" => Some(4),
            "v8" => Some(8),
            _ => None,
        })
        .unwrap_or(1)
    }

    /// Decodes `m` if it is one of the instructions of this file.
    pub(super) fn memory(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        match m.name {
            "ld" | "ldu" | "st" => self.ld_st(m, ops),
            "atom" | "red" => self.atomic(m, ops),
            "cp" => self.cp_async(m, ops),
            "cvta" => {
                let to_space = m.take("to");
                let space = self.space(m)?;
                let ty = match m.ty() {
                    Some(t) => t,
                    None => return self.bad("cvta without a type"),
                };
                if ops.len() != 2 {
                    return self.bad("cvta takes 2 operands");
                }
                let d = self.dst(&ops[0], ty.bits())?;
                let a = self.src(&ops[1], ty)?;
                self.emit(Op::Cvta { to_space, space, bits: ty.bits() as u8, d, a });
                Ok(true)
            }
            "isspacep" => {
                let space = self.space(m)?;
                if ops.len() != 2 {
                    return self.bad("isspacep takes 2 operands");
                }
                let (p, _) = self.pred_pair(&ops[0])?;
                let a = self.src(&ops[1], Ty::B64)?;
                self.emit(Op::Isspacep { space, p, a });
                Ok(true)
            }
            "prefetch" | "prefetchu" | "discard" | "applypriority" => {
                self.space(m)?;
                self.hints(m);
                for w in ["L1", "L2", "evict_last", "evict_normal", "tensormap"] {
                    m.take(w);
                }
                self.emit(Op::Nop);
                Ok(true)
            }
            "createpolicy" => {
                for w in ["fractional", "range", "b64", "global"] {
                    m.take(w);
                }
                self.hints(m);
                if let Some(o) = ops.first() {
                    // The policy is an opaque value that only hints read.
                    let d = self.dst(o, 64)?;
                    let zero = self.constant(0, true);
                    self.emit(Op::Alu { alu: Alu::Mov(64), d, s: [zero, R::NONE, R::NONE, R::NONE] });
                }
                Ok(true)
            }
            "fence" | "membar" => {
                let near = m.has("cta");
                self.hints(m);
                m.take("gl");
                if m.has("proxy") {
                    return self.unsupported(m.full, "proxy fences");
                }
                self.emit(Op::Fence { near });
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn ld_st(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let space = self.space(m)?;
        let strong = ["volatile", "relaxed", "acquire", "release", "mmio"].iter().any(|w| m.has(w));
        let (acquire, release, near) = (m.has("acquire"), m.has("release"), m.has("cta"));
        let policy = self.hints(m);
        let n = self.vector(m);
        let Some(ty) = m.ty() else { return self.bad(format!("`{}` has no type", m.full)) };
        if matches!(ty, Ty::Pred | Ty::Tf32 | Ty::E4M3x2 | Ty::E5M2x2) {
            return self.unsupported(m.full, format!("type .{}", ty.name()));
        }
        if ops.len() != 2 + usize::from(policy) {
            return self.bad(format!(
                "`{}` takes {} operands, not {}",
                m.full,
                2 + usize::from(policy),
                ops.len()
            ));
        }
        let load = m.name != "st";
        let (reg, addr) = if load { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
        let access = Access { strong, acquire, release, near, ..self.access(m, addr, space, ty, n)? };
        let (r, more) = self.list(m, reg, n, ty, load)?;
        self.emit(if load { Op::Ld { m: access, d: r, more } } else { Op::St { m: access, s: r, more } });
        Ok(true)
    }

    fn atomic(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        if m.has("async") {
            return self.unsupported(m.full, "asynchronous reductions");
        }
        let space = self.space(m)?;
        let both = m.has("acq_rel");
        let (acquire, release, near) = (both || m.has("acquire"), both || m.has("release"), m.has("cta"));
        let policy = self.hints(m);
        let noftz = m.take("noftz");
        let ftz = m.take("ftz") && !noftz;
        let op = m.find(|s| {
            Some(match s {
                "add" => AtomOp::Add,
                "min" => AtomOp::Min,
                "max" => AtomOp::Max,
                "and" => AtomOp::And,
                "or" => AtomOp::Or,
                "xor" => AtomOp::Xor,
                "exch" => AtomOp::Exch,
                "cas" => AtomOp::Cas,
                "inc" => AtomOp::Inc,
                "dec" => AtomOp::Dec,
                _ => return None,
            })
        });
        let Some(op) = op else { return self.unsupported(m.full, "operation") };
        let Some(ty) = m.ty() else { return self.bad(format!("`{}` has no type", m.full)) };
        if matches!(ty.bits(), 1 | 8) || (ty.is_float() && op != AtomOp::Add && op != AtomOp::Exch) {
            return self.unsupported(m.full, format!("type .{}", ty.name()));
        }
        let atom = m.name == "atom";
        let n = usize::from(atom) + 2 + usize::from(op == AtomOp::Cas) + usize::from(policy);
        if ops.len() != n {
            return self.bad(format!("`{}` takes {n} operands, not {}", m.full, ops.len()));
        }
        let ops = &ops[..n - usize::from(policy)];
        let (d, rest) = if atom { (self.dst(&ops[0], ty.bits())?, &ops[1..]) } else { (R::NONE, ops) };
        let access = self.access(m, &rest[0], space, ty, 1)?;
        let access = Access { strong: true, acquire, release, near, ..access };
        if matches!(access.space, Space::Const | Space::Param | Space::Local) {
            return self.unsupported(m.full, "state space");
        }
        let a = self.src(&rest[1], ty)?;
        let b = match rest.get(2) {
            Some(o) => self.src(o, ty)?,
            None => R::NONE,
        };
        self.emit(Op::Atom { m: access, op, ty, ftz, d, a, b });
        Ok(true)
    }

    fn cp_async(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        if !m.take("async") {
            return self.unsupported(m.full, "this instruction");
        }
        if m.has("bulk") {
            return self.unsupported(m.full, "bulk copies");
        }
        if m.has("mbarrier") {
            return self.copy_arrive(m, ops);
        }
        if m.take("commit_group") {
            self.emit(Op::CpCommit);
            return Ok(true);
        }
        if m.take("wait_all") {
            self.emit(Op::CpWait { pending: u32::MAX });
            return Ok(true);
        }
        if m.take("wait_group") {
            let Some(Opd::Int(n)) = ops.first() else {
                return self.bad("cp.async.wait_group needs a number");
            };
            self.emit(Op::CpWait { pending: (*n).min(1 << 20) as u32 });
            return Ok(true);
        }
        let cg = m.has("cg");
        let policy = self.hints(m);
        if !(m.take("shared") || m.take("shared::cta")) || !m.take("global") {
            return self.unsupported(m.full, "state spaces");
        }
        let ops = &ops[..ops.len() - usize::from(policy).min(ops.len())];
        let (3 | 4, Some(Opd::Int(bytes))) = (ops.len(), ops.get(2)) else {
            return self.bad("cp.async takes [dst], [src], size and at most one more operand");
        };
        if !matches!(bytes, 4 | 8 | 16) || (cg && *bytes != 16) {
            return self.bad(format!("cp.async of {bytes} bytes"));
        }
        let (dst, doff, _) = self.address(&ops[0])?;
        let (src, soff, _) = self.address(&ops[1])?;
        let (mut src_bytes, mut ignore) = (R::NONE, (NO_P, false));
        match ops.get(3) {
            Some(o @ Opd::Not(_)) => ignore = self.pred(o)?,
            Some(o @ Opd::Word(w)) if self.pred_name(w).is_ok() => ignore = self.pred(o)?,
            Some(o) => src_bytes = self.src(o, Ty::U32)?,
            None => {}
        }
        self.emit(Op::CpAsync { dst, doff, src, soff, bytes: *bytes as u8, src_bytes, ignore });
        Ok(true)
    }
}
