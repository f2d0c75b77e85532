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

    /// Takes a word of `words`.
    fn one_of(&self, m: &mut Mods<'a>, words: &[&str]) -> Option<&'a str> {
        m.find(|s| words.contains(&s).then_some(s))
    }

    /// Takes a scope; true when it is the CTA's. A cluster is one CTA here.
    pub(super) fn scope(&self, m: &mut Mods<'a>) -> Option<bool> {
        m.find(|s| match s {
            "cta" | "cluster" => Some(true),
            "gpu" | "sys" => Some(false),
            _ => None,
        })
    }

    /// Takes eviction priorities, prefetch sizes and `L2::cache_hint`, none of which changes a result
    /// here; true when a cache policy stands behind the operands.
    pub(super) fn hints(&self, m: &mut Mods<'a>) -> bool {
        let mut policy = false;
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
                self.one_of(m, if m.name == "discard" { &["L2"] } else { &["L1", "L2"] });
                let sized = matches!(m.name, "discard" | "applypriority");
                if sized && !matches!(ops, [_, Opd::Int(128)]) {
                    return self.bad(format!("`{}` takes an address and the size 128", m.full));
                }
                match ops.first() {
                    Some(o) if ops.len() == 1 + usize::from(sized) => self.address(o)?,
                    _ => return self.bad(format!("`{}` with {} operands", m.full, ops.len())),
                };
                self.emit(Op::Nop);
                Ok(true)
            }
            "createpolicy" => {
                let kind = self.one_of(m, &["fractional", "range", "cvt"]);
                m.take("b64");
                m.take("global");
                let given = if kind == Some("cvt") { m.take("L2") } else { m.has_hint() };
                self.hints(m);
                if kind.is_none() || !given {
                    return self.unsupported(m.full, "kind of policy");
                }
                let Some(o) = ops.first() else { return self.bad("createpolicy without a destination") };
                // The policy is an opaque value that only hints read.
                let d = self.dst(o, 64)?;
                let zero = self.constant(0, true);
                self.emit(Op::Alu { alu: Alu::Mov(64), d, s: [zero, R::NONE, R::NONE, R::NONE] });
                Ok(true)
            }
            "fence" | "membar" => {
                if m.take("proxy") {
                    // Aliased addresses do not exist here; the other proxies belong to bulk copies.
                    if !m.take("alias") {
                        return self.unsupported(m.full, "proxy fences");
                    }
                    self.emit(Op::Fence { near: false });
                    return Ok(true);
                }
                let near = match m.name {
                    "membar" => m.find(|s| match s {
                        "cta" => Some(true),
                        "gl" | "sys" => Some(false),
                        _ => None,
                    }),
                    _ => {
                        self.one_of(m, &["sc", "acq_rel", "acquire", "release"]);
                        self.scope(m)
                    }
                };
                let Some(near) = near else { return self.unsupported(m.full, "scope") };
                self.emit(Op::Fence { near });
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn ld_st(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        let load = m.name != "st";
        let space = self.space(m)?;
        let (mut strong, mut acquire, mut release, mut near) = (false, false, false, false);
        if m.name != "ldu" {
            let weak = m.take("weak");
            let mmio = m.take("mmio");
            let order: &[&str] = match (weak, load) {
                (true, _) => &[],
                (_, true) => &["volatile", "relaxed", "acquire"],
                (_, false) => &["volatile", "relaxed", "release"],
            };
            let order = self.one_of(m, order);
            strong = order.is_some();
            (acquire, release) = (order == Some("acquire"), order == Some("release"));
            if strong && order != Some("volatile") {
                match self.scope(m) {
                    Some(n) => near = n,
                    None => return self.unsupported(m.full, "this order without a scope"),
                }
            }
            if mmio && (!strong || near) {
                return self.unsupported(m.full, ".mmio without .relaxed.sys");
            }
        }
        if !strong {
            self.one_of(m, if load { &["ca", "cg", "cs", "lu", "cv"] } else { &["wb", "cg", "cs", "wt"] });
            if load && matches!(space, Space::Global | Space::Generic) {
                m.take("nc");
            }
        }
        let policy = self.hints(m);
        let n = self.vector(m);
        let Some(ty) = m.ty() else { return self.bad(format!("`{}` has no type", m.full)) };
        if matches!(ty, Ty::Pred) || ty.is_float() && !matches!(ty, Ty::F32 | Ty::F64) {
            return self.unsupported(m.full, format!("type .{}", ty.name()));
        }
        // 32 bytes a lane came with sm_100.
        if n as u32 * ty.bytes() > if m.name == "ldu" { 16 } else { 32 } {
            return self.unsupported(m.full, "vectors of that size");
        }
        if ops.len() != 2 + usize::from(policy) {
            return self.bad(format!(
                "`{}` takes {} operands, not {}",
                m.full,
                2 + usize::from(policy),
                ops.len()
            ));
        }
        let (reg, addr) = if load { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
        let access = self.access(m, addr, space, ty, n)?;
        let nowhere = strong && !matches!(access.space, Space::Global | Space::Shared | Space::Generic);
        if nowhere || !load && access.space == Space::Const {
            return self.unsupported(m.full, format!("state space .{}", access.space.name()));
        }
        let access = Access { strong, acquire, release, near, ..access };
        let (r, more) = self.list(m, reg, n, ty, load)?;
        self.emit(if load { Op::Ld { m: access, d: r, more } } else { Op::St { m: access, s: r, more } });
        Ok(true)
    }

    fn atomic(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        if m.has("async") {
            return self.unsupported(m.full, "asynchronous reductions");
        }
        let atom = m.name == "atom";
        let space = self.space(m)?;
        let order: &[&str] =
            if atom { &["relaxed", "acquire", "release", "acq_rel"] } else { &["relaxed", "release"] };
        let order = self.one_of(m, order);
        let both = order == Some("acq_rel");
        let (acquire, release) = (both || order == Some("acquire"), both || order == Some("release"));
        let near = self.scope(m).unwrap_or(false);
        let policy = self.hints(m);
        let n = self.vector(m);
        let noftz = m.take("noftz");
        let op = m.find(|s| {
            Some(match s {
                "add" => AtomOp::Add,
                "min" => AtomOp::Min,
                "max" => AtomOp::Max,
                "and" => AtomOp::And,
                "or" => AtomOp::Or,
                "xor" => AtomOp::Xor,
                "exch" if atom => AtomOp::Exch,
                "cas" if atom => AtomOp::Cas,
                "inc" => AtomOp::Inc,
                "dec" => AtomOp::Dec,
                _ => return None,
            })
        });
        let Some(op) = op else { return self.unsupported(m.full, "operation") };
        let Some(ty) = m.ty() else { return self.bad(format!("`{}` has no type", m.full)) };
        let half = matches!(ty, Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2);
        let whole = matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64);
        let fits = match op {
            _ if n > 1 => {
                let bytes = n as u32 * ty.bytes();
                let min_max = half && matches!(op, AtomOp::Min | AtomOp::Max);
                (min_max || op == AtomOp::Add && (half || ty == Ty::F32))
                    && bytes <= 16
                    && matches!(space, Space::Global | Space::Generic)
            }
            AtomOp::Add => whole || half || matches!(ty, Ty::F32 | Ty::F64),
            AtomOp::Min | AtomOp::Max => whole,
            AtomOp::And | AtomOp::Or | AtomOp::Xor | AtomOp::Exch => matches!(ty, Ty::B32 | Ty::B64),
            AtomOp::Cas => matches!(ty, Ty::B16 | Ty::B32 | Ty::B64),
            AtomOp::Inc | AtomOp::Dec => ty == Ty::U32,
        };
        if !fits || noftz != half {
            let what = if fits { ", .noftz" } else { "" };
            return self.unsupported(m.full, format!("type .{}{what}", ty.name()));
        }
        let count = usize::from(atom) + 2 + usize::from(op == AtomOp::Cas) + usize::from(policy);
        if ops.len() != count {
            return self.bad(format!("`{}` takes {count} operands, not {}", m.full, ops.len()));
        }
        let ops = &ops[..count - usize::from(policy)];
        let (to, rest) = if atom { (Some(&ops[0]), &ops[1..]) } else { (None, ops) };
        let access = self.access(m, &rest[0], space, ty, n)?;
        if matches!(access.space, Space::Const | Space::Param | Space::Local) {
            return self.unsupported(m.full, "state space");
        }
        let access = Access { strong: true, acquire, release, near, ..access };
        if n > 1 {
            return self.atomic_vector(m, access, op, ty, n, to, &rest[1]);
        }
        let d = to.map_or(Ok(R::NONE), |o| self.dst(o, ty.bits()))?;
        let a = self.src(&rest[1], ty)?;
        let b = match rest.get(2) {
            Some(o) => self.src(o, ty)?,
            None => R::NONE,
        };
        self.emit(Op::Atom { m: access, op, ty, d, a, b });
        Ok(true)
    }

    /// Atomic are only the elements of a vector: one atomic each, the first checks the place of all.
    #[allow(clippy::too_many_arguments)]
    fn atomic_vector(
        &mut self,
        m: &Mods<'a>,
        access: Access,
        op: AtomOp,
        ty: Ty,
        n: usize,
        to: Option<&Opd<'a>>,
        from: &Opd<'a>,
    ) -> Result<bool> {
        let (d, more) = match to {
            Some(o) => self.list(m, o, n, ty, true)?,
            None => ([R::NONE; 4], 0),
        };
        let (s, s_more) = self.list(m, from, n, ty, false)?;
        let pick = |pool: &[R], r: [R; 4], more: u32, i: usize| match r.get(i) {
            Some(&r) => r,
            None => pool[more as usize + i - 4],
        };
        let mut got = Vec::new();
        for i in 0..n {
            // Results wait in registers of their own: the sources may be the destinations.
            let d = if to.is_some() { self.new_reg(false) } else { R::NONE };
            got.push(d);
            let a = pick(&self.out.pool, s, s_more, i);
            let offset = access.offset + (i as u32 * ty.bytes()) as i64;
            let m = Access { offset, n: if i == 0 { n as u8 } else { 1 }, ..access };
            self.emit(Op::Atom { m, op, ty, d, a, b: R::NONE });
        }
        for (i, &from) in got.iter().enumerate().filter(|_| to.is_some()) {
            let d = pick(&self.out.pool, d, more, i);
            self.emit(Op::Alu { alu: Alu::Mov(ty.bits() as u8), d, s: [from, R::NONE, R::NONE, R::NONE] });
        }
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
        let cache = self.one_of(m, &["ca", "cg"]);
        let cg = cache == Some("cg");
        let policy = self.hints(m);
        if cache.is_none() {
            return self.unsupported(m.full, "neither .ca nor .cg");
        }
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
