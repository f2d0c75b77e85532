//! Operands and modifiers: names to slots, immediates to constant slots, suffixes to attributes.

use super::{Decoder, Fix, Sym};
use crate::error::{Error, Result};
use crate::inst::*;
use crate::lexer::{Tok, describe};
use crate::memory::function_address;
use crate::types::{Rnd, Space, Ty};

/// An operand as written.
#[derive(Clone, Debug)]
pub(super) enum Opd<'a> {
    Word(&'a str),
    /// `name+offset`.
    Plus(&'a str, i64),
    /// Integer, already negated where a minus stood.
    Int(u64),
    F32(u32),
    F64(u64),
    Vec(Vec<Opd<'a>>),
    /// `[base+offset]`; no base for an absolute address.
    Mem(Option<&'a str>, i64),
    Pair(&'a str, &'a str),
    Not(&'a str),
}

/// The suffixes of an opcode; each decoder takes those it knows, what is left is refused.
pub(super) struct Mods<'a> {
    pub full: &'a str,
    pub name: &'a str,
    parts: [Option<&'a str>; 16],
}

impl<'a> Mods<'a> {
    pub fn new(full: &'a str) -> Mods<'a> {
        let mut it = full.split('.');
        let name = it.next().unwrap_or("");
        let mut parts = [None; 16];
        for (slot, part) in parts.iter_mut().zip(&mut it) {
            *slot = Some(part);
        }
        // More suffixes than any instruction has: the last slot keeps one that nobody takes.
        if let Some(extra) = it.next() {
            parts[15] = Some(if extra.is_empty() { "." } else { extra });
        }
        Mods { full, name, parts }
    }

    /// Takes a suffix; true when it was there.
    pub fn take(&mut self, what: &str) -> bool {
        for p in self.parts.iter_mut() {
            if *p == Some(what) {
                *p = None;
                return true;
            }
        }
        false
    }

    /// Takes the first suffix the function knows.
    pub fn find<T>(&mut self, f: impl Fn(&'a str) -> Option<T>) -> Option<T> {
        for p in self.parts.iter_mut() {
            if let Some(v) = p.and_then(&f) {
                *p = None;
                return Some(v);
            }
        }
        None
    }

    /// Takes the next type.
    pub fn ty(&mut self) -> Option<Ty> {
        self.find(Ty::parse)
    }

    /// Takes a rounding mode of float arithmetic.
    pub fn rnd(&mut self) -> Option<Rnd> {
        self.find(|s| {
            Some(match s {
                "rn" => Rnd::Rn,
                "rz" => Rnd::Rz,
                "rm" => Rnd::Rm,
                "rp" => Rnd::Rp,
                _ => return None,
            })
        })
    }

    /// The first suffix nobody took.
    pub fn rest(&self) -> Option<&'a str> {
        self.parts.iter().find_map(|p| *p)
    }

    /// A cache hint is among the suffixes.
    pub fn has_hint(&self) -> bool {
        self.parts.iter().flatten().any(|p| p.starts_with("L2::"))
    }

    /// Suffixes present, taken ones excluded.
    pub fn has(&self, what: &str) -> bool {
        self.parts.contains(&Some(what))
    }
}

/// `name` is `stem` with a number below `n`.
fn counted(name: &str, stem: &str, n: u32) -> bool {
    name.strip_prefix(stem).and_then(|d| d.parse::<u32>().ok()).is_some_and(|d| d < n)
}

impl<'a> Decoder<'a> {
    pub(super) fn operand(&mut self) -> Result<Opd<'a>> {
        let line = self.lex.line;
        let start = self.lex.clone();
        Ok(match self.lex.next()? {
            Tok::Word(w) => {
                if self.lex.eat(b'|')? {
                    return Ok(Opd::Pair(w, self.lex.word()?));
                }
                if self.lex.eat(b'+')? {
                    return Ok(Opd::Plus(w, self.lex.constant()? as i64));
                }
                if self.lex.eat(b'-')? {
                    return Ok(Opd::Plus(w, (self.lex.constant()? as i64).wrapping_neg()));
                }
                Opd::Word(w)
            }
            Tok::F32(v) => Opd::F32(v),
            Tok::F64(v) => Opd::F64(v),
            Tok::Punct(b'-') if matches!(self.lex.peek()?, Tok::F32(_) | Tok::F64(_)) => {
                match self.lex.next()? {
                    Tok::F32(v) => Opd::F32(v ^ 0x8000_0000),
                    Tok::F64(v) => Opd::F64(v ^ 1 << 63),
                    other => return Err(Error::parse(line, format!("`-` before {}", describe(other)))),
                }
            }
            Tok::Punct(b'!') if matches!(self.lex.peek()?, Tok::Word(_)) => Opd::Not(self.lex.word()?),
            Tok::Int(_) | Tok::Punct(b'-' | b'!' | b'~' | b'(' | b'+') => {
                self.lex = start;
                Opd::Int(self.lex.constant()?)
            }
            Tok::Punct(b'{') => {
                let mut v = Vec::with_capacity(4);
                loop {
                    let item = self.operand()?;
                    if matches!(item, Opd::Vec(_)) || v.len() >= 32 {
                        return Err(Error::parse(line, "vector operand out of shape"));
                    }
                    v.push(item);
                    if self.lex.eat(b'}')? {
                        break Opd::Vec(v);
                    }
                    self.lex.expect(b',')?;
                }
            }
            Tok::Punct(b'[') => {
                let inside = self.lex.clone();
                let (base, mut offset) = match self.lex.next()? {
                    Tok::Word(w) => (Some(w), 0i64),
                    Tok::Int(_) | Tok::Punct(b'(') => {
                        self.lex = inside;
                        (None, self.lex.constant()? as i64)
                    }
                    other => return Err(Error::parse(line, format!("{} in an address", describe(other)))),
                };
                loop {
                    match self.lex.next()? {
                        Tok::Punct(b']') => break Opd::Mem(base, offset),
                        Tok::Punct(b'+') => offset = offset.wrapping_add(self.lex.factor()? as i64),
                        Tok::Punct(b'-') => offset = offset.wrapping_sub(self.lex.factor()? as i64),
                        other => {
                            return Err(Error::parse(line, format!("{} in an address", describe(other))));
                        }
                    }
                }
            }
            other => {
                return Err(Error::parse(line, format!("{} where an operand should be", describe(other))));
            }
        })
    }

    pub(super) fn lookup(&self, name: &str) -> Option<&Sym> {
        self.scopes.iter().rev().find_map(|s| s.names.get(name))
    }

    pub(super) fn new_reg(&mut self, wide: bool) -> R {
        let slot = self.out.slots;
        self.out.slots += 1 + u32::from(wide);
        R::new(slot, wide)
    }

    pub(super) fn new_pred(&mut self) -> P {
        self.out.preds += 1;
        self.out.preds - 1
    }

    /// Register of that name, if it is one: its type and slot (or predicate index).
    fn register(&mut self, name: &str) -> Option<(Ty, u32)> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (prefix, number) = name.split_at(name.len() - digits);
        for i in (0..self.scopes.len()).rev() {
            if let Some(Sym::Regs { range: false, .. }) = self.scopes[i].names.get(name) {
                return self.slot_of(i, name, 0);
            }
            if digits > 0 && digits < 9 {
                let n: usize = number.parse().ok()?;
                if let Some(Sym::Regs { range: true, slots, .. }) = self.scopes[i].names.get(prefix)
                    && n < slots.len()
                {
                    return self.slot_of(i, prefix, n);
                }
            }
        }
        None
    }

    fn slot_of(&mut self, scope: usize, name: &str, n: usize) -> Option<(Ty, u32)> {
        let Some(Sym::Regs { ty, slots, .. }) = self.scopes[scope].names.get_mut(name) else { return None };
        let (ty, slot) = (*ty, slots[n]);
        if slot != u32::MAX {
            return Some((ty, slot));
        }
        let fresh = if ty == Ty::Pred {
            self.out.preds += 1;
            self.out.preds - 1
        } else {
            let s = self.out.slots;
            self.out.slots += 1 + u32::from(ty.bits() == 64);
            s
        };
        if let Some(Sym::Regs { slots, .. }) = self.scopes[scope].names.get_mut(name) {
            slots[n] = fresh;
        }
        Some((ty, fresh))
    }

    pub(super) fn pred_name(&mut self, name: &str) -> Result<P> {
        match self.register(name) {
            Some((Ty::Pred, p)) => Ok(p),
            Some((ty, _)) => self.bad(format!("`{name}` is a .{} register, not a predicate", ty.name())),
            None => self.bad(format!("no predicate register `{name}`")),
        }
    }

    /// A predicate operand and whether it is negated.
    pub(super) fn pred(&mut self, o: &Opd<'a>) -> Result<(P, bool)> {
        match o {
            Opd::Word(w) => Ok((self.pred_name(w)?, false)),
            Opd::Not(w) => Ok((self.pred_name(w)?, true)),
            Opd::Int(v) => Ok((if *v != 0 { P_TRUE } else { P_FALSE }, false)),
            _ => self.bad("a predicate is expected here"),
        }
    }

    /// A predicate to be written; `_` is a fresh one.
    pub(super) fn pred_dst(&mut self, w: &str) -> Result<P> {
        if w == "_" { Ok(self.new_pred()) } else { self.pred_name(w) }
    }

    /// Two predicates `p|q`, or one.
    pub(super) fn pred_pair(&mut self, o: &Opd<'a>) -> Result<(P, P)> {
        match o {
            Opd::Pair(p, q) => Ok((self.pred_dst(p)?, self.pred_dst(q)?)),
            Opd::Word(w) => Ok((self.pred_dst(w)?, NO_P)),
            _ => self.bad("a predicate is expected here"),
        }
    }

    /// A slot that holds `v` in every lane.
    pub(super) fn constant(&mut self, v: u64, wide: bool) -> R {
        if let Some(&r) = self.consts.get(&(v, wide)) {
            return r;
        }
        let r = self.new_reg(wide);
        self.consts.insert((v, wide), r);
        self.out.consts.push((r, Const::Value(v)));
        r
    }

    fn special(&mut self, name: &str, bits: u32) -> Option<R> {
        let axis = |s: &str| match s {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        let s = match name.strip_prefix('%')?.split_once('.') {
            Some(("tid", a)) => Special::Tid(axis(a)?),
            Some(("ntid", a)) => Special::Ntid(axis(a)?),
            Some(("ctaid", a)) => Special::Ctaid(axis(a)?),
            Some(("nctaid", a)) => Special::Nctaid(axis(a)?),
            Some(_) => return None,
            None => match &name[1..] {
                "laneid" => Special::Laneid,
                "warpid" => Special::Warpid,
                "nwarpid" => Special::Nwarpid,
                "smid" => Special::Smid,
                "nsmid" => Special::Nsmid,
                "gridid" => Special::Gridid,
                "lanemask_eq" => Special::LanemaskEq,
                "lanemask_le" => Special::LanemaskLe,
                "lanemask_lt" => Special::LanemaskLt,
                "lanemask_ge" => Special::LanemaskGe,
                "lanemask_gt" => Special::LanemaskGt,
                "dynamic_smem_size" => Special::DynamicSmemSize,
                "total_smem_size" => Special::TotalSmemSize,
                "WARP_SZ" => return Some(self.constant(32, bits == 64)),
                "clock" | "clock_hi" | "clock64" | "globaltimer" | "globaltimer_lo" | "globaltimer_hi" => {
                    // Read when the instruction is reached: counts instructions of the warp.
                    let r = self.new_reg(bits == 64);
                    self.emit(Op::Clock { d: r, hi: name.ends_with("_hi") });
                    return Some(r);
                }
                "aggr_smem_size" => Special::TotalSmemSize,
                "current_graph_exec" => return Some(self.constant(0, bits == 64)),
                // Registers of the driver and counters of the hardware: there are none.
                n if counted(n, "envreg", 32) || counted(n.trim_end_matches("_64"), "pm", 8) => {
                    return Some(self.constant(0, bits == 64));
                }
                _ => return None,
            },
        };
        let wide = bits == 64;
        if let Some(&r) = self.specials.get(&(s, wide)) {
            return Some(r);
        }
        let r = self.new_reg(wide);
        self.specials.insert((s, wide), r);
        self.out.consts.push((r, Const::Special(s)));
        Some(r)
    }

    /// Address of a variable as a value.
    fn address_of(&mut self, name: &'a str, offset: i64, bits: u32) -> Result<Option<R>> {
        let Some(sym) = self.lookup(name) else {
            let function = self.module.by_name.get(name).filter(|&&i| !self.module.functions[i].entry);
            return Ok(match function {
                Some(&i) if bits == 64 && offset == 0 => Some(self.constant(function_address(i), true)),
                _ => None,
            });
        };
        match *sym {
            Sym::At { offset: at, .. } => {
                Ok(Some(self.constant((i64::from(at) + offset) as u64, bits == 64)))
            }
            Sym::Dynamic => {
                let r = self.new_reg(bits == 64);
                self.dynamic.push((r, offset));
                Ok(Some(r))
            }
            Sym::Module(i) => self.module_address(i, offset, bits).map(Some),
            _ => Ok(None),
        }
    }

    fn module_address(&mut self, i: usize, offset: i64, bits: u32) -> Result<R> {
        let module = self.module;
        let v = &module.vars[i];
        if v.space == Space::Shared {
            let at = match self.shared_at.get(&i) {
                Some(&at) => at,
                None => {
                    let at = self.place_shared(&v.name, v.align, v.size)?;
                    self.shared_at.insert(i, at);
                    at
                }
            };
            return Ok(self.constant((i64::from(at) + offset) as u64, bits == 64));
        }
        if v.external {
            return Err(Error::Unresolved { line: self.place.line, name: v.name.clone() });
        }
        if bits != 64 {
            return self.bad(format!("the address of `{}` needs a 64-bit register", v.name));
        }
        if let Some(&r) = self.symbols.get(&(i, offset, true)) {
            return Ok(r);
        }
        let r = self.new_reg(true);
        self.symbols.insert((i, offset, true), r);
        self.out.consts.push((r, Const::Symbol(i, offset)));
        Ok(r)
    }

    /// A source of `bits` bits; `ty` says how a literal is read.
    pub(super) fn src(&mut self, o: &Opd<'a>, ty: Ty) -> Result<R> {
        self.source(o, ty, false)
    }

    /// A source whose register may be wider than the type (cvt, st).
    pub(super) fn src_wide(&mut self, o: &Opd<'a>, ty: Ty) -> Result<R> {
        self.source(o, ty, true)
    }

    fn source(&mut self, o: &Opd<'a>, ty: Ty, wider: bool) -> Result<R> {
        let bits = ty.bits();
        let mask = crate::num::int::mask(bits as u8);
        let value = match o {
            Opd::Word(w) => {
                if let Some((rty, slot)) = self.register(w) {
                    let rb = rty.bits();
                    if rty == Ty::Pred || (rb != bits && !(wider && rb > bits)) {
                        return self.bad(format!(
                            "`{w}` is a .{} register, the instruction reads .{}",
                            rty.name(),
                            ty.name()
                        ));
                    }
                    return Ok(R::new(slot, rb == 64));
                }
                if let Some(r) = self.special(w, bits) {
                    return Ok(r);
                }
                if ["%cluster", "%ncluster", "%is_explicit_cluster"].iter().any(|c| w.starts_with(c)) {
                    return self.unsupported(w, "clusters");
                }
                if *w == "WARP_SZ" {
                    return Ok(self.constant(32, bits == 64));
                }
                return match self.address_of(w, 0, bits)? {
                    Some(r) => Ok(r),
                    None => {
                        self.bad(format!("`{w}` is no register, variable or special register known here"))
                    }
                };
            }
            Opd::Plus(w, offset) => {
                return match self.address_of(w, *offset, bits)? {
                    Some(r) => Ok(r),
                    None => self.bad(format!("`{w}` is no variable")),
                };
            }
            Opd::Int(v) if ty == Ty::F32 => u64::from((*v as i64 as f32).to_bits()),
            Opd::Int(v) if ty == Ty::F64 => (*v as i64 as f64).to_bits(),
            Opd::Int(v) => *v & mask,
            Opd::F32(v) if bits == 32 => u64::from(*v),
            Opd::F64(v) if bits == 64 => *v,
            Opd::F64(v) if bits == 32 => u64::from((f64::from_bits(*v) as f32).to_bits()),
            Opd::F32(v) if ty == Ty::F64 => f64::from(f32::from_bits(*v)).to_bits(),
            _ => return self.bad(format!("operand does not fit an instruction of type .{}", ty.name())),
        };
        Ok(self.constant(value, bits == 64))
    }

    /// A destination of exactly `bits` bits.
    pub(super) fn dst(&mut self, o: &Opd<'a>, bits: u32) -> Result<R> {
        let (r, rb) = self.dst_any(o, bits)?;
        if rb != bits {
            return self.bad(format!("the destination has {rb} bits, the instruction writes {bits}"));
        }
        Ok(r)
    }

    /// A destination that may be wider than the result; gives its width too.
    pub(super) fn dst_wide(&mut self, o: &Opd<'a>, bits: u32) -> Result<(R, u32)> {
        let (r, rb) = self.dst_any(o, bits)?;
        if rb < bits {
            return self.bad(format!("the destination has {rb} bits, the instruction writes {bits}"));
        }
        Ok((r, rb))
    }

    fn dst_any(&mut self, o: &Opd<'a>, bits: u32) -> Result<(R, u32)> {
        let Opd::Word(w) = o else { return self.bad("the destination must be a register") };
        if *w == "_" {
            return Ok((self.sink(bits == 64), bits));
        }
        match self.register(w) {
            Some((Ty::Pred, _)) => self.bad(format!("`{w}` is a predicate")),
            Some((ty, slot)) => Ok((R::new(slot, ty.bits() == 64), ty.bits())),
            None => self.bad(format!("no register `{w}`")),
        }
    }

    /// Where results go that nobody wants.
    pub(super) fn sink(&mut self, wide: bool) -> R {
        if let Some(r) = self.sinks[usize::from(wide)] {
            return r;
        }
        let r = self.new_reg(wide);
        self.sinks[usize::from(wide)] = Some(r);
        r
    }

    /// Splits an address into its register and offset; direct addresses have no register.
    /// Returns the space the name lies in as well.
    pub(super) fn address(&mut self, o: &Opd<'a>) -> Result<(R, i64, Option<Space>)> {
        let Opd::Mem(base, offset) = o else { return self.bad("an address in [ ] is expected here") };
        let Some(w) = base else { return Ok((R::NONE, *offset, None)) };
        if let Some((ty, slot)) = self.register(w) {
            return match ty.bits() {
                32 | 64 if ty != Ty::Pred => Ok((R::new(slot, ty.bits() == 64), *offset, None)),
                _ => self.bad(format!("`{w}` is a .{} register, no address", ty.name())),
            };
        }
        match self.lookup(w).cloned() {
            Some(Sym::At { space, offset: at }) => Ok((R::NONE, i64::from(at) + offset, Some(space))),
            Some(Sym::Dynamic) => {
                let r = self.new_reg(true);
                self.dynamic.push((r, 0));
                Ok((r, *offset, Some(Space::Shared)))
            }
            Some(Sym::Module(i)) => {
                let space = self.module.vars[i].space;
                Ok((self.module_address(i, 0, 64)?, *offset, Some(space)))
            }
            _ => self.bad(format!("`{w}` is no address")),
        }
    }

    /// Emits a branch to a label, to be resolved at the end.
    pub(super) fn branch(&mut self, label: &str) {
        let at = self.emit(Op::Bra { target: 0 });
        let (scope, line) = (self.scope_id(), self.place.line);
        self.fixes.push((at, Fix::Branch, scope, label.to_string(), line));
    }

    /// Emits an indirect branch over the labels of a `.branchtargets` list.
    pub(super) fn branch_table(&mut self, index: R, list: &str) -> Result<()> {
        let Some(Sym::Targets(labels)) = self.lookup(list).cloned() else {
            return self.bad(format!("no .branchtargets `{list}` before its use"));
        };
        let first = self.out.tables.len() as u32;
        let at = self.emit(Op::Brx { index, first, n: labels.len() as u32 });
        let (scope, line) = (self.scope_id(), self.place.line);
        for l in labels {
            let entry = self.out.tables.len() as u32;
            self.out.tables.push(0);
            self.fixes.push((at, Fix::Table(entry), scope, l, line));
        }
        Ok(())
    }
}
