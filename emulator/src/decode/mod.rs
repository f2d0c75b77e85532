//! From the text of a body to instructions with resolved operands.
//!
//! Statements are read and decoded in one pass; branch targets and the places of functions are
//! filled in at the end. Scopes nest, because inline assembly brings its own `{ }` with registers.
//! Functions are decoded behind the kernel that calls them; each has registers and local memory of
//! its own, so recursion is refused.

mod arith;
mod mbarrier;
mod memory;
mod operands;
mod warp;
mod wmma;

use crate::error::{Error, Result};
use crate::inst::*;
use crate::lexer::{Lexer, Tok, describe};
use crate::module::{Function, Inner, Param, Var, parse_vars};
use crate::types::{Space, Ty};
use operands::{Mods, Opd};
use std::collections::HashMap;

/// What a name stands for.
#[derive(Clone, Debug)]
enum Sym {
    /// Registers: type, and slot of each, allocated at first use.
    Regs { ty: Ty, slots: Vec<u32>, range: bool },
    /// A variable at a known offset of shared, local or parameter memory.
    At { space: Space, offset: u32 },
    /// The dynamic part of shared memory.
    Dynamic,
    /// Module variable, by index.
    Module(usize),
    /// `.branchtargets`.
    Targets(Vec<String>),
}

struct Scope<'a> {
    id: u32,
    names: HashMap<&'a str, Sym>,
}

enum Fix {
    Branch,
    Table(u32),
    Call(usize),
}

/// Places of the parameters of a called function in the local area.
#[derive(Clone, Default)]
struct FnArea {
    params: Vec<(u32, u32)>,
    rets: Vec<(u32, u32)>,
    ret_reg: Option<R>,
    start: Option<u32>,
    calls: Vec<usize>,
}

pub(crate) struct Decoder<'a> {
    module: &'a Inner,
    lex: Lexer<'a>,
    scopes: Vec<Scope<'a>>,
    parents: Vec<u32>,
    labels: HashMap<(u32, &'a str), u32>,
    fixes: Vec<(u32, Fix, u32, String, u32)>,
    consts: HashMap<(u64, bool), R>,
    specials: HashMap<(Special, bool), R>,
    symbols: HashMap<(usize, i64, bool), R>,
    dynamic: Vec<(R, i64)>,
    shared_at: HashMap<usize, u32>,
    dynamic_align: u32,
    areas: HashMap<usize, FnArea>,
    queue: Vec<usize>,
    current: usize,
    place: Place,
    guard: P,
    ops: HashMap<&'a str, u32>,
    cc: Option<P>,
    sinks: [Option<R>; 2],
    out: Program,
}

/// Decodes a kernel and what it calls.
pub(crate) fn decode(module: &Inner, f: &Function) -> Result<Program> {
    let Some((from, to, line)) = f.body else {
        return Err(Error::Unresolved { line: f.line, name: f.name.clone() });
    };
    let index = module.by_name.get(&f.name).copied().unwrap_or(0);
    let mut d = Decoder {
        module,
        lex: Lexer::new(&module.text[..to], from, line),
        scopes: Vec::new(),
        parents: Vec::new(),
        labels: HashMap::new(),
        fixes: Vec::new(),
        consts: HashMap::new(),
        specials: HashMap::new(),
        symbols: HashMap::new(),
        dynamic: Vec::new(),
        shared_at: HashMap::new(),
        dynamic_align: 16,
        areas: HashMap::new(),
        queue: Vec::new(),
        current: index,
        place: Place::default(),
        guard: NO_P,
        ops: HashMap::new(),
        cc: None,
        sinks: [None; 2],
        out: Program {
            name: f.name.clone(),
            insts: Vec::new(),
            places: Vec::new(),
            pool: Vec::new(),
            tables: Vec::new(),
            copies: Vec::new(),
            slots: 0,
            preds: 2,
            consts: Vec::new(),
            shared_bytes: 0,
            dynamic_at: 0,
            shared_vars: Vec::new(),
            local_bytes: 0,
            opcodes: Vec::new(),
        },
    };
    d.module_scope();
    d.open_scope();
    for p in &f.params {
        let sym = Sym::At { space: Space::Param, offset: p.offset };
        d.declare_owned(&p.name, sym);
    }
    d.body()?;
    d.emit(Op::Exit);
    d.close_scope();
    while let Some(i) = d.queue.pop() {
        d.function(i)?;
    }
    d.finish()
}

impl<'a> Decoder<'a> {
    fn unsupported<T>(&self, opcode: &str, why: impl Into<String>) -> Result<T> {
        Err(Error::unsupported(self.place.line, opcode, why))
    }

    fn bad<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::parse(self.place.line, message))
    }

    fn module_scope(&mut self) {
        self.open_scope();
        let module = self.module;
        for (i, v) in module.vars.iter().enumerate() {
            let sym = match (v.space, v.dynamic) {
                (Space::Shared, true) => {
                    self.dynamic_align = self.dynamic_align.max(v.align);
                    Sym::Dynamic
                }
                _ => Sym::Module(i),
            };
            self.declare(&v.name, sym);
        }
    }

    fn open_scope(&mut self) {
        let id = self.parents.len() as u32;
        self.parents.push(self.scopes.last().map_or(u32::MAX, |s| s.id));
        self.scopes.push(Scope { id, names: HashMap::new() });
    }

    fn close_scope(&mut self) {
        self.scopes.pop();
    }

    fn scope_id(&self) -> u32 {
        self.scopes.last().map_or(0, |s| s.id)
    }

    fn declare(&mut self, name: &'a str, sym: Sym) {
        if let Some(s) = self.scopes.last_mut() {
            s.names.insert(name, sym);
        }
    }

    fn declare_owned(&mut self, name: &'a str, sym: Sym) {
        self.declare(name, sym);
    }

    /// Where a module's shared variable lies; placed at its first use by this kernel.
    fn place_shared(&mut self, name: &str, align: u32, size: u64) -> Result<u32> {
        let at = self.out.shared_bytes.next_multiple_of(align.max(1));
        let end = u64::from(at) + size;
        if end > 1 << 24 {
            return self.bad(format!("`{name}`: {size} bytes of shared memory"));
        }
        self.out.shared_bytes = end as u32;
        self.out.shared_vars.push((name.to_string(), at, size as u32));
        Ok(at)
    }

    fn place_local(&mut self, align: u32, size: u64) -> Result<u32> {
        let at = self.out.local_bytes.next_multiple_of(align.max(1));
        let end = u64::from(at) + size;
        if end > 1 << 19 {
            return self.bad(format!("{end} bytes of local memory a thread; the limit is 512 KiB"));
        }
        self.out.local_bytes = end as u32;
        Ok(at)
    }

    pub(crate) fn emit(&mut self, op: Op) -> u32 {
        let at = self.out.insts.len() as u32;
        self.out.insts.push(Inst { op, guard: self.guard });
        self.out.places.push(self.place);
        at
    }

    /// Statements up to the `}` of the body or its end.
    fn body(&mut self) -> Result<()> {
        let mut depth = 0u32;
        loop {
            let tok = self.lex.next()?;
            self.place.line = self.lex.line;
            self.guard = NO_P;
            match tok {
                Tok::Eof if depth == 0 => return Ok(()),
                Tok::Eof => return self.bad("`{` without its `}`"),
                Tok::Punct(b';') => {}
                Tok::Punct(b'{') => {
                    depth += 1;
                    self.open_scope();
                }
                Tok::Punct(b'}') if depth > 0 => {
                    depth -= 1;
                    self.close_scope();
                }
                Tok::Punct(b'@') => {
                    let neg = self.lex.eat(b'!')?;
                    let name = self.lex.word()?;
                    let p = self.pred_name(name)?;
                    self.guard = p | if neg { GUARD_NEG } else { 0 };
                    let w = self.lex.word()?;
                    self.instruction(w)?;
                }
                Tok::Word(w) if w.starts_with('.') => self.directive(w)?,
                Tok::Word(w) => {
                    if self.lex.peek()? == Tok::Punct(b':') {
                        self.lex.next()?;
                        self.label(w)?;
                    } else {
                        self.instruction(w)?;
                    }
                }
                other => return self.bad(format!("{} where a statement should be", describe(other))),
            }
        }
    }

    fn label(&mut self, name: &'a str) -> Result<()> {
        if let Tok::Word(w) = self.lex.peek()? {
            if w == ".branchtargets" {
                self.lex.next()?;
                let mut list = vec![self.lex.word()?.to_string()];
                while self.lex.eat(b',')? {
                    list.push(self.lex.word()?.to_string());
                }
                self.lex.expect(b';')?;
                self.declare(name, Sym::Targets(list));
                return Ok(());
            }
            if w == ".callprototype" || w == ".calltargets" {
                while !matches!(self.lex.next()?, Tok::Punct(b';') | Tok::Eof) {}
                return Ok(());
            }
        }
        let at = self.out.insts.len() as u32;
        if self.labels.insert((self.scope_id(), name), at).is_some() {
            return self.bad(format!("label `{name}` twice"));
        }
        Ok(())
    }

    fn directive(&mut self, w: &'a str) -> Result<()> {
        match w {
            ".reg" => self.registers(),
            ".loc" => {
                let rest = self.lex.rest_of_line();
                let mut n = rest.split([' ', '\t', ',']).filter(|s| !s.is_empty());
                self.place.file = n.next().and_then(|v| v.parse().ok()).unwrap_or(0);
                self.place.source = n.next().and_then(|v| v.parse().ok()).unwrap_or(0);
                Ok(())
            }
            ".file" => {
                self.lex.rest_of_line();
                Ok(())
            }
            ".pragma" => {
                while !matches!(self.lex.next()?, Tok::Punct(b';') | Tok::Eof) {}
                Ok(())
            }
            ".local" | ".shared" | ".param" | ".global" | ".const" => {
                let space = match w {
                    ".shared" => Space::Shared,
                    ".local" | ".param" => Space::Local,
                    _ => return self.unsupported(w, "variables of that space inside a body"),
                };
                let text_at = self.lex.pos;
                let mut vars: Vec<Var> = Vec::new();
                parse_vars(&mut self.lex, space, false, &mut vars)?;
                for v in vars {
                    let name = self.slice_of(text_at, &v.name);
                    if !v.init.is_empty() {
                        return self.unsupported(w, "an initialiser inside a body");
                    }
                    let offset = match space {
                        Space::Shared => self.place_shared(&v.name, v.align, v.size)?,
                        _ => self.place_local(v.align, v.size)?,
                    };
                    self.declare(name, Sym::At { space, offset });
                }
                Ok(())
            }
            ".extern" => {
                let word = self.lex.word()?;
                if word != ".shared" {
                    return self.unsupported(word, "external declarations inside a body");
                }
                let text_at = self.lex.pos;
                let mut vars: Vec<Var> = Vec::new();
                parse_vars(&mut self.lex, Space::Shared, true, &mut vars)?;
                for v in vars {
                    self.dynamic_align = self.dynamic_align.max(v.align);
                    let name = self.slice_of(text_at, &v.name);
                    self.declare(name, Sym::Dynamic);
                }
                Ok(())
            }
            ".section" => self.unsupported(w, "sections inside a body"),
            other => self.unsupported(other, "directive"),
        }
    }

    /// The text of a name read at or after `from`, with the life of the module.
    fn slice_of(&self, from: usize, name: &str) -> &'a str {
        let text: &'a str = &self.module.text[from..self.lex.pos];
        text.find(name).map_or("", |i| &text[i..i + name.len()])
    }

    fn registers(&mut self) -> Result<()> {
        let mut w = self.lex.word()?;
        if matches!(w, ".v2" | ".v4") {
            return self.unsupported(w, "vector registers");
        }
        if w == ".align" {
            self.lex.int()?;
            w = self.lex.word()?;
        }
        let Some(ty) = w.strip_prefix('.').and_then(Ty::parse) else {
            return self.unsupported(w, "register type");
        };
        loop {
            let name = self.lex.word()?;
            let (mut n, mut range) = (1, false);
            if self.lex.eat(b'<')? {
                n = self.lex.int()?;
                self.lex.expect(b'>')?;
                range = true;
            }
            if !(0..=1 << 20).contains(&n) {
                return self.bad(format!("`{name}<{n}>`: too many registers"));
            }
            self.declare(name, Sym::Regs { ty, slots: vec![u32::MAX; n as usize], range });
            if !self.lex.eat(b',')? {
                return self.lex.expect(b';');
            }
        }
    }

    fn instruction(&mut self, opcode: &'a str) -> Result<()> {
        let mut m = Mods::new(opcode);
        *self.ops.entry(m.name).or_insert(0) += 1;
        if m.name == "call" {
            return self.call(opcode);
        }
        let mut ops: Vec<Opd<'a>> = Vec::with_capacity(5);
        if !self.lex.eat(b';')? {
            loop {
                ops.push(self.operand()?);
                if self.lex.eat(b';')? {
                    break;
                }
                // A shuffle names its predicate after `|`, read in `operand`.
                self.lex.expect(b',')?;
            }
        }
        let known = self.arith(&mut m, &ops)? || self.memory(&mut m, &ops)? || self.warp(&mut m, &ops)?;
        if !known {
            return self.unsupported(opcode, "this instruction");
        }
        if let Some(rest) = m.rest() {
            return self.unsupported(opcode, format!("modifier `.{rest}`"));
        }
        Ok(())
    }

    /// `call{.uni} (ret), name, (args);`
    fn call(&mut self, opcode: &'a str) -> Result<()> {
        let mut rets = Vec::new();
        if self.lex.eat(b'(')? {
            rets = self.names_to(b')')?;
            self.lex.expect(b',')?;
        }
        let name = self.lex.word()?;
        let mut args = Vec::new();
        if self.lex.eat(b',')? {
            if self.lex.eat(b'(')? {
                args = self.names_to(b')')?;
            }
            if self.lex.eat(b',')? {
                return self.unsupported(opcode, "indirect calls");
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
        self.fixes.push((at, Fix::Call(index), 0, name.to_string(), self.place.line));
        let first = self.out.copies.len() as u32;
        for (&to, &(from, bytes)) in rets.iter().zip(&area.rets) {
            self.out.copies.push(ArgCopy { from, to, bytes });
        }
        if !rets.is_empty() {
            // The results come back by a call that goes to the next instruction.
            let target = self.out.insts.len() as u32 + 1;
            self.emit(Op::Call { target, ret: R::NONE, first_copy: first, copies: rets.len() as u32 });
        }
        Ok(())
    }

    fn names_to(&mut self, end: u8) -> Result<Vec<&'a str>> {
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
    fn area(&mut self, index: usize) -> Result<FnArea> {
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

    fn function(&mut self, index: usize) -> Result<()> {
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
    fn ret(&mut self) {
        match self.areas.get(&self.current).and_then(|a| a.ret_reg) {
            Some(ret) => self.emit(Op::RetFn { ret }),
            None => self.emit(Op::Exit),
        };
    }

    fn finish(mut self) -> Result<Program> {
        self.no_recursion()?;
        for (at, fix, scope, name, line) in std::mem::take(&mut self.fixes) {
            let target = match fix {
                Fix::Call(index) => self.areas.get(&index).and_then(|a| a.start).unwrap_or(0),
                _ => {
                    let mut s = scope;
                    loop {
                        if let Some(&t) = self.labels.get(&(s, name.as_str())) {
                            break t;
                        }
                        match self.parents.get(s as usize) {
                            Some(&p) if p != u32::MAX => s = p,
                            _ => return Err(Error::parse(line, format!("no label `{name}`"))),
                        }
                    }
                }
            };
            match fix {
                Fix::Table(entry) => self.out.tables[entry as usize] = target,
                _ => match &mut self.out.insts[at as usize].op {
                    Op::Bra { target: t } | Op::Call { target: t, .. } => *t = target,
                    _ => {}
                },
            }
        }
        self.out.dynamic_at = self.out.shared_bytes.next_multiple_of(self.dynamic_align);
        for (r, offset) in std::mem::take(&mut self.dynamic) {
            let v = i64::from(self.out.dynamic_at) + offset;
            self.out.consts.push((r, Const::Value(v as u64)));
        }
        // A wide read of the last slot must stay inside the file.
        self.out.slots += 2;
        let mut ops: Vec<(String, u32)> = self.ops.iter().map(|(k, v)| (k.to_string(), *v)).collect();
        ops.sort();
        self.out.opcodes = ops;
        Ok(self.out)
    }

    fn no_recursion(&self) -> Result<()> {
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
