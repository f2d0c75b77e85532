//! From the text of a body to instructions with resolved operands.
//!
//! Statements are read and decoded in one pass; branch targets and the places of functions are
//! filled in at the end. Scopes nest, because inline assembly brings its own `{ }` with registers.
//! Functions are decoded behind the kernel that calls them; each has registers and local memory of
//! its own, so recursion is refused.

mod arith;
mod body;
mod calls;
mod compare;
mod convert;
mod float;
mod logic;
mod mbarrier;
mod memory;
mod mma;
mod operands;
mod warp;
mod wmma;

use crate::error::{Error, Result};
use crate::inst::*;
use crate::lexer::Lexer;
use crate::limits::within;
use crate::module::{Function, Inner};
use crate::types::{Space, Ty};
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
    /// `.branchtargets` or `.calltargets`.
    Targets(Vec<String>),
    /// `.callprototype`: bytes of the parameters and of the results.
    Prototype(Vec<u32>, Vec<u32>),
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
    /// Registers declared so far.
    declared: u64,
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
        declared: 0,
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
        within("shared_bytes", end, self.module.limits.shared_bytes, || {
            format!("line {}: bytes of shared memory with `{name}`", self.place.line)
        })?;
        self.out.shared_bytes = end as u32;
        self.out.shared_vars.push((name.to_string(), at, size as u32));
        Ok(at)
    }

    fn place_local(&mut self, align: u32, size: u64) -> Result<u32> {
        let at = self.out.local_bytes.next_multiple_of(align.max(1));
        let end = u64::from(at) + size;
        within("local_bytes", end, self.module.limits.local_bytes, || {
            format!("line {}: bytes of local memory a thread", self.place.line)
        })?;
        self.out.local_bytes = end as u32;
        Ok(at)
    }

    pub(crate) fn emit(&mut self, op: Op) -> u32 {
        let at = self.out.insts.len() as u32;
        self.out.insts.push(Inst { op, guard: self.guard });
        self.out.places.push(self.place);
        at
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
}
