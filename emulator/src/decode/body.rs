//! Statements of a body: labels, directives, declarations, and the hand-over of instructions.

use super::operands::{Mods, Opd};
use super::{Decoder, Sym};
use crate::error::Result;
use crate::inst::*;
use crate::lexer::{Tok, describe};
use crate::limits::within;
use crate::module::{Var, parse_vars};
use crate::types::{Space, Ty};

impl<'a> Decoder<'a> {
    /// Statements up to the `}` of the body or its end.
    pub(super) fn body(&mut self) -> Result<()> {
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
                    within("nesting", depth, self.module.limits.nesting, || {
                        format!("line {}: braces open at the same time", self.place.line)
                    })?;
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
            if w == ".branchtargets" || w == ".calltargets" {
                self.lex.next()?;
                let mut list = vec![self.lex.word()?.to_string()];
                while self.lex.eat(b',')? {
                    list.push(self.lex.word()?.to_string());
                }
                self.lex.expect(b';')?;
                self.declare(name, Sym::Targets(list));
                return Ok(());
            }
            if w == ".callprototype" {
                self.lex.next()?;
                return self.prototype(name);
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
                // `.loc 1 2 3, function_name label, inlined_at 4 5 6`
                let mut at = n.skip_while(|w| *w != "inlined_at").skip(1).map(|v| v.parse().unwrap_or(0));
                self.place.call = (at.next().unwrap_or(0), at.next().unwrap_or(0));
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
            let Ok(count) = u64::try_from(n) else {
                return self.bad(format!("`{name}<{n}>`: a number of registers cannot be negative"));
            };
            self.declared = self.declared.saturating_add(count);
            within("registers", self.declared, self.module.limits.registers, || {
                format!("line {}: virtual registers of kernel `{}`", self.place.line, self.out.name)
            })?;
            self.declare(name, Sym::Regs { ty, slots: vec![u32::MAX; n as usize], range });
            if !self.lex.eat(b',')? {
                return self.lex.expect(b';');
            }
        }
    }

    pub(super) fn instruction(&mut self, opcode: &'a str) -> Result<()> {
        let mut m = Mods::new(opcode);
        *self.ops.entry(m.name).or_insert(0) += 1;
        // Branch tables and argument lists grow with what is written as instructions do.
        let written = self.out.insts.len().max(self.out.tables.len()).max(self.out.copies.len());
        within("instructions", written as u64, self.module.limits.instructions, || {
            format!("line {}: instructions of kernel `{}`", self.place.line, self.out.name)
        })?;
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
}
