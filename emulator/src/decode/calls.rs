//! Functions: calls, the local areas their arguments travel in, and the refusal of recursion.

use super::operands::Opd;
use super::{Decoder, Fix, FnArea, Sym};
use crate::error::{Error, Result};
use crate::inst::*;
use crate::lexer::{Lexer, Tok};
use crate::module::{Param, parse_params};
use crate::types::{Space, Ty};
use std::collections::HashMap;

impl<'a> Decoder<'a> {
    /// `call{.uni} (ret), name, (args);`
    pub(super) fn call(&mut self, opcode: &'a str) -> Result<()> {
        let mut rets = Vec::new();
        if self.lex.eat(b'(')? {
            rets = self.names_to(b')')?;
            self.lex.expect(b',')?;
        }
        let name = self.lex.word()?;
        let (mut args, mut list) = (Vec::new(), None);
        if self.lex.eat(b',')? {
            if self.lex.eat(b'(')? {
                args = self.names_to(b')')?;
                if self.lex.eat(b',')? {
                    list = Some(self.lex.word()?);
                }
            } else {
                list = Some(self.lex.word()?);
            }
        }
        self.lex.expect(b';')?;
        let locals = |d: &Self, names: &[&'a str]| -> Result<Vec<u32>> {
            names
                .iter()
                .map(|n| match d.lookup(n) {
                    Some(Sym::At { space: Space::Local, offset }) => Ok(*offset),
                    _ => d.unsupported(opcode, format!("`{n}` is no .param variable of this body")),
                })
                .collect()
        };
        let (args, rets) = (locals(self, &args)?, locals(self, &rets)?);
        if let Some(list) = list {
            return self.call_indirect(opcode, name, list, &args, &rets);
        }
        let Some(&index) = self.module.by_name.get(name) else {
            return Err(Error::Unresolved { line: self.place.line, name: name.to_string() });
        };
        let f = &self.module.functions[index];
        if f.body.is_none() {
            return match (name, args.as_slice(), rets.as_slice()) {
                ("vprintf", [fmt, list], _) => {
                    if *list != *fmt + 8 {
                        return self.unsupported(opcode, "vprintf with its two arguments apart");
                    }
                    let ret = rets.first().copied().unwrap_or(u32::MAX);
                    self.emit(Op::Vprintf { args: *fmt, ret });
                    Ok(())
                }
                ("__assertfail", ..) => {
                    self.emit(Op::Trap);
                    Ok(())
                }
                _ => Err(Error::Unresolved { line: self.place.line, name: name.to_string() }),
            };
        }
        if f.params.len() != args.len() || (!rets.is_empty() && rets.len() != f.rets.len()) {
            return self.bad(format!(
                "call of `{name}` with {} arguments and {} results; it has {} and {}",
                args.len(),
                rets.len(),
                f.params.len(),
                f.rets.len()
            ));
        }
        self.call_known(index, &args, &rets)?;
        Ok(())
    }

    /// Copies the arguments, calls function `index`, and copies the results to come back with; returns
    /// where the last of these instructions stands.
    fn call_known(&mut self, index: usize, args: &[u32], rets: &[u32]) -> Result<u32> {
        let area = self.area(index)?;
        let current = self.current;
        if let Some(a) = self.areas.get_mut(&current) {
            a.calls.push(index);
        }
        let first = self.out.copies.len() as u32;
        for (&from, &(to, bytes)) in args.iter().zip(&area.params) {
            self.out.copies.push(ArgCopy { from, to, bytes });
        }
        let ret = area.ret_reg.unwrap_or(R::NONE);
        let at = self.emit(Op::Call { target: 0, ret, first_copy: first, copies: args.len() as u32 });
        let name = self.module.functions[index].name.clone();
        self.fixes.push((at, Fix::Call(index), 0, name, self.place.line));
        if rets.is_empty() {
            return Ok(at);
        }
        let first = self.out.copies.len() as u32;
        for (&to, &(from, bytes)) in rets.iter().zip(&area.rets) {
            self.out.copies.push(ArgCopy { from, to, bytes });
        }
        // The results come back by a call that goes to the next instruction.
        let target = self.out.insts.len() as u32 + 1;
        Ok(self.emit(Op::Call { target, ret: R::NONE, first_copy: first, copies: rets.len() as u32 }))
    }

    /// `.callprototype (results) _ (parameters);`
    pub(super) fn prototype(&mut self, name: &'a str) -> Result<()> {
        let list = |lex: &mut Lexer<'a>| -> Result<Vec<u32>> {
            match lex.peek()? {
                Tok::Punct(b'(') => Ok(parse_params(lex)?.iter().map(|p| p.size).collect()),
                _ => Ok(Vec::new()),
            }
        };
        let rets = list(&mut self.lex)?;
        self.lex.word()?;
        let params = list(&mut self.lex)?;
        while !matches!(self.lex.next()?, Tok::Punct(b';') | Tok::Eof) {}
        self.declare(name, Sym::Prototype(params, rets));
        Ok(())
    }

    /// A call through a register: the address decides among the functions of a list, or among those of
    /// the prototype whose address is taken somewhere; each has a piece of code that copies for it.
    fn call_indirect(
        &mut self,
        opcode: &'a str,
        name: &'a str,
        list: &str,
        args: &[u32],
        rets: &[u32],
    ) -> Result<()> {
        let module = self.module;
        let sizes = |list: &[Param]| list.iter().map(|p| p.size).collect::<Vec<u32>>();
        let candidates: Vec<usize> = match self.lookup(list) {
            Some(Sym::Targets(names)) => names
                .iter()
                .map(|n| match module.by_name.get(n) {
                    Some(&i) if module.functions[i].body.is_some() => Ok(i),
                    _ => Err(Error::Unresolved { line: self.place.line, name: n.clone() }),
                })
                .collect::<Result<_>>()?,
            Some(Sym::Prototype(p, r)) => module
                .taken()
                .iter()
                .copied()
                .filter(|&i| {
                    let f = &module.functions[i];
                    f.body.is_some() && sizes(&f.params) == *p && sizes(&f.rets) == *r
                })
                .collect(),
            _ => return self.bad(format!("no .calltargets or .callprototype `{list}` before its use")),
        };
        if candidates.iter().any(|&i| module.functions[i].params.len() != args.len()) {
            return self.unsupported(opcode, "a list of functions with other parameters than the call");
        }
        let target = self.src(&Opd::Word(name), Ty::B64)?;
        let first = self.out.tables.len() as u32;
        self.emit(Op::CallIndirect { target, first, n: candidates.len() as u32 });
        for &i in &candidates {
            self.out.tables.extend([i as u32, 0]);
        }
        // Lanes that do not call go past all of it, and so does who comes back.
        self.guard = NO_P;
        let mut ends = vec![self.emit(Op::Bra { target: 0 })];
        for (k, &i) in candidates.iter().enumerate() {
            self.out.tables[first as usize + 2 * k + 1] = self.out.insts.len() as u32;
            self.call_known(i, args, rets)?;
            ends.push(self.emit(Op::Bra { target: 0 }));
        }
        let end = self.out.insts.len() as u32;
        for at in ends {
            self.out.insts[at as usize].op = Op::Bra { target: end };
        }
        Ok(())
    }

    pub(super) fn names_to(&mut self, end: u8) -> Result<Vec<&'a str>> {
        let mut v = Vec::new();
        while !self.lex.eat(end)? {
            v.push(self.lex.word()?);
            if !self.lex.eat(b',')? {
                self.lex.expect(end)?;
                break;
            }
        }
        Ok(v)
    }

    /// The local area of a function; queues it for decoding when seen for the first time.
    pub(super) fn area(&mut self, index: usize) -> Result<FnArea> {
        if let Some(a) = self.areas.get(&index) {
            return Ok(a.clone());
        }
        let module = self.module;
        let f = &module.functions[index];
        let mut a = FnArea { ret_reg: Some(self.new_reg(false)), ..FnArea::default() };
        let place = |d: &mut Self, list: &[Param]| -> Result<Vec<(u32, u32)>> {
            list.iter().map(|p| Ok((d.place_local(p.align.max(8), u64::from(p.size))?, p.size))).collect()
        };
        a.params = place(self, &f.params)?;
        a.rets = place(self, &f.rets)?;
        self.areas.insert(index, a.clone());
        self.queue.push(index);
        Ok(a)
    }

    pub(super) fn function(&mut self, index: usize) -> Result<()> {
        let module = self.module;
        let f = &module.functions[index];
        let Some((from, to, line)) = f.body else { return Ok(()) };
        self.lex = Lexer::new(&module.text[..to], from, line);
        self.current = index;
        self.cc = None;
        self.open_scope();
        let start = self.out.insts.len() as u32;
        if let Some(a) = self.areas.get_mut(&index) {
            a.start = Some(start);
            let a = a.clone();
            for (p, &(offset, _)) in f.params.iter().chain(&f.rets).zip(a.params.iter().chain(&a.rets)) {
                self.declare(&p.name, Sym::At { space: Space::Local, offset });
            }
        }
        self.body()?;
        self.guard = NO_P;
        self.ret();
        self.close_scope();
        Ok(())
    }

    /// `ret` of whatever is being decoded.
    pub(super) fn ret(&mut self) {
        match self.areas.get(&self.current).and_then(|a| a.ret_reg) {
            Some(ret) => self.emit(Op::RetFn { ret }),
            None => self.emit(Op::Exit),
        };
    }

    pub(super) fn no_recursion(&self) -> Result<()> {
        // Depth-first over the call graph; three states a function.
        let mut state: HashMap<usize, u8> = HashMap::new();
        for &start in self.areas.keys() {
            let mut stack = vec![(start, 0usize)];
            if state.get(&start) == Some(&2) {
                continue;
            }
            state.insert(start, 1);
            while let Some((f, next)) = stack.pop() {
                match self.areas.get(&f).and_then(|a| a.calls.get(next)) {
                    Some(&callee) => {
                        stack.push((f, next + 1));
                        match state.get(&callee) {
                            Some(1) => {
                                let f = &self.module.functions[callee];
                                return Err(Error::unsupported(f.line, &f.name, "recursive functions"));
                            }
                            Some(_) => {}
                            None => {
                                state.insert(callee, 1);
                                stack.push((callee, 0));
                            }
                        }
                    }
                    None => {
                        state.insert(f, 2);
                    }
                }
            }
        }
        Ok(())
    }
}
