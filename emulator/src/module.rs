//! A PTX module: its kernels, functions and variables.
//!
//! [`Module::parse`] reads everything outside the bodies and finds where each body ends; a body is
//! decoded at its first launch (or by [`Module::check`]) and kept. Cloning a module is cheap.

use crate::decode;
use crate::error::{Error, Result};
use crate::inst::Program;
use crate::lexer::{Lexer, Tok, describe};
use crate::types::{Space, Ty};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// One parameter of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Name in the PTX.
    pub name: String,
    /// Element type.
    pub ty: Ty,
    /// Bytes, arrays and structs as a whole.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
    /// Byte offset in the parameter block.
    pub offset: u32,
    /// Marked `.ptr`.
    pub pointer: bool,
}

/// What a kernel asks for, as declared.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Name of the entry.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// `.reqntid`, missing dimensions as 1.
    pub reqntid: Option<[u32; 3]>,
    /// `.maxntid`, missing dimensions as 1.
    pub maxntid: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub minnctapersm: Option<u32>,
    /// `.maxnreg`.
    pub maxnreg: Option<u32>,
    /// Virtual registers declared, predicates included.
    pub registers: u32,
    /// Line of the entry.
    pub line: u32,
}

/// A variable of the module or of a body.
#[derive(Clone, Debug)]
pub(crate) struct Var {
    pub name: String,
    pub space: Space,
    pub align: u32,
    pub size: u64,
    /// `.extern .shared x[]`: its size comes with the launch.
    pub dynamic: bool,
    pub external: bool,
    pub init: Vec<u8>,
    /// Byte offset in `init`, symbol, addend.
    pub relocs: Vec<(usize, String, i64)>,
    pub line: u32,
}

#[derive(Debug)]
pub(crate) struct Function {
    pub name: String,
    pub entry: bool,
    pub params: Vec<Param>,
    pub rets: Vec<Param>,
    pub reqntid: Option<[u32; 3]>,
    pub maxntid: Option<[u32; 3]>,
    pub minnctapersm: Option<u32>,
    pub maxnreg: Option<u32>,
    /// Byte range of the body without its braces, and the line it begins on.
    pub body: Option<(usize, usize, u32)>,
    pub line: u32,
    pub program: OnceLock<Result<Arc<Program>>>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub id: u64,
    pub text: String,
    pub version: (u32, u32),
    pub target: String,
    pub functions: Vec<Function>,
    pub by_name: HashMap<String, usize>,
    pub vars: Vec<Var>,
    pub files: HashMap<u32, String>,
}

/// A parsed PTX module.
#[derive(Clone, Debug)]
pub struct Module {
    pub(crate) inner: Arc<Inner>,
}

impl Module {
    /// Reads a module.
    ///
    /// # Errors
    /// [`Error::Parse`] for malformed text, [`Error::Unsupported`] for a target, version or
    /// directive outside the scope. Bodies are read later: see [`Module::check`].
    pub fn parse(text: &str) -> Result<Module> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut p = Parser {
            lex: Lexer::new(text, 0, 1),
            out: Inner {
                id: NEXT.fetch_add(1, Ordering::Relaxed),
                text: String::new(),
                version: (0, 0),
                target: String::new(),
                functions: Vec::new(),
                by_name: HashMap::new(),
                vars: Vec::new(),
                files: HashMap::new(),
            },
        };
        p.module()?;
        let mut inner = p.out;
        if inner.version == (0, 0) {
            return Err(Error::parse(1, "no `.version` directive: this is not a PTX module"));
        }
        inner.text = text.to_string();
        Ok(Module { inner: Arc::new(inner) })
    }

    /// Decodes every kernel now.
    ///
    /// # Errors
    /// The first [`Error::Unsupported`] or [`Error::Parse`] of any body, with its line.
    pub fn check(&self) -> Result<()> {
        for f in self.inner.functions.iter().filter(|f| f.entry) {
            self.program(&f.name)?;
        }
        Ok(())
    }

    /// Decodes one kernel now: what a launch would refuse is refused here.
    ///
    /// # Errors
    /// [`Error::UnknownKernel`], [`Error::Unsupported`], [`Error::Parse`].
    pub fn check_kernel(&self, kernel: &str) -> Result<()> {
        self.program(kernel).map(|_| ())
    }

    /// PTX ISA version, e.g. (7, 8).
    pub fn version(&self) -> (u32, u32) {
        self.inner.version
    }

    /// The `.target`, e.g. `sm_80`.
    pub fn target(&self) -> &str {
        &self.inner.target
    }

    /// The text of a line, counted from 1; empty beyond the end.
    pub fn line(&self, number: u32) -> &str {
        (number as usize).checked_sub(1).and_then(|i| self.inner.text.lines().nth(i)).unwrap_or("")
    }

    /// The kernels in the order of the text.
    pub fn kernels(&self) -> Vec<Kernel> {
        self.inner.functions.iter().filter(|f| f.entry).map(|f| self.describe(f)).collect()
    }

    /// One kernel by its name.
    pub fn kernel(&self, name: &str) -> Option<Kernel> {
        let f = &self.inner.functions[*self.inner.by_name.get(name)?];
        f.entry.then(|| self.describe(f))
    }

    /// Bytes of shared memory the kernel declares itself (without the dynamic part).
    ///
    /// # Errors
    /// As [`Module::check_kernel`].
    pub fn static_shared_bytes(&self, kernel: &str) -> Result<u32> {
        Ok(self.program(kernel)?.shared_bytes)
    }

    /// Opcodes the kernel uses (without types and modifiers), with how often each is written.
    ///
    /// # Errors
    /// As [`Module::check_kernel`].
    pub fn opcodes(&self, kernel: &str) -> Result<Vec<(String, u32)>> {
        Ok(self.program(kernel)?.opcodes.clone())
    }

    fn describe(&self, f: &Function) -> Kernel {
        Kernel {
            name: f.name.clone(),
            params: f.params.clone(),
            reqntid: f.reqntid,
            maxntid: f.maxntid,
            minnctapersm: f.minnctapersm,
            maxnreg: f.maxnreg,
            registers: self.declared_registers(f),
            line: f.line,
        }
    }

    fn declared_registers(&self, f: &Function) -> u32 {
        let Some((from, to, _)) = f.body else { return 0 };
        let text = &self.inner.text[from..to];
        let mut total = 0;
        for decl in text.split(".reg").skip(1) {
            let decl = decl.split(';').next().unwrap_or("");
            for name in decl.split(',') {
                let n =
                    name.split_once('<').and_then(|(_, n)| n.split('>').next()?.trim().parse::<u32>().ok());
                total += n.unwrap_or(1);
            }
        }
        total
    }

    pub(crate) fn program(&self, kernel: &str) -> Result<Arc<Program>> {
        let found = self.inner.by_name.get(kernel).map(|&i| &self.inner.functions[i]).filter(|f| f.entry);
        let Some(f) = found else {
            let names: Vec<String> =
                self.inner.functions.iter().filter(|f| f.entry).map(|f| f.name.clone()).collect();
            return Err(Error::UnknownKernel { name: kernel.to_string(), available: names.join(", ") });
        };
        f.program.get_or_init(|| decode::decode(&self.inner, f).map(Arc::new)).clone()
    }
}

pub(crate) struct Parser<'a> {
    lex: Lexer<'a>,
    out: Inner,
}

impl<'a> Parser<'a> {
    fn module(&mut self) -> Result<()> {
        let (mut external, mut line) = (false, 1);
        loop {
            let tok = self.lex.next()?;
            if !matches!(tok, Tok::Word(".visible" | ".weak" | ".common" | ".extern")) {
                line = self.lex.line;
            }
            match tok {
                Tok::Eof => return Ok(()),
                Tok::Punct(b';') => {}
                Tok::Word(w) => match w {
                    ".version" => self.version()?,
                    ".target" => self.target()?,
                    ".address_size" => {
                        if self.lex.int()? != 64 {
                            return Err(Error::unsupported(line, ".address_size", "only 64-bit addresses"));
                        }
                    }
                    ".visible" | ".weak" | ".common" => {}
                    ".extern" => {
                        external = true;
                        continue;
                    }
                    ".entry" => self.function(true, line)?,
                    ".func" => self.function(false, line)?,
                    ".global" | ".const" | ".shared" => {
                        let space = match w {
                            ".global" => Space::Global,
                            ".const" => Space::Const,
                            _ => Space::Shared,
                        };
                        parse_vars(&mut self.lex, space, external, &mut self.out.vars)?;
                    }
                    ".file" => {
                        let rest = self.lex.rest_of_line();
                        let mut parts = rest.split('"');
                        let n = parts.next().and_then(|n| n.trim().parse().ok());
                        if let (Some(n), Some(name)) = (n, parts.next()) {
                            self.out.files.insert(n, name.to_string());
                        }
                    }
                    ".loc" => {
                        self.lex.rest_of_line();
                    }
                    ".section" => {
                        self.lex.word()?;
                        self.lex.expect(b'{')?;
                        self.lex.skip_braces()?;
                    }
                    ".pragma" | ".alias" => while !matches!(self.lex.next()?, Tok::Punct(b';') | Tok::Eof) {},
                    other => {
                        return Err(Error::parse(
                            line,
                            format!("`{other}` where a module directive should be"),
                        ));
                    }
                },
                other => {
                    return Err(Error::parse(
                        line,
                        format!("{} where a directive should be", describe(other)),
                    ));
                }
            }
            external = false;
        }
    }

    fn version(&mut self) -> Result<()> {
        let line = self.lex.line;
        let text = self.lex.rest_of_line();
        let text = text.split("//").next().unwrap_or("").trim();
        let bad = || Error::parse(line, format!("`{text}` is not a PTX version"));
        let (a, b) = text.split_once('.').ok_or_else(bad)?;
        let v: (u32, u32) = (a.trim().parse().map_err(|_| bad())?, b.trim().parse().map_err(|_| bad())?);
        if !(6..=9).contains(&v.0) {
            return Err(Error::unsupported(
                line,
                ".version",
                format!("{}.{} (6.0 to 9.x are read)", v.0, v.1),
            ));
        }
        self.out.version = v;
        Ok(())
    }

    fn target(&mut self) -> Result<()> {
        let line = self.lex.line;
        let name = self.lex.word()?;
        while self.lex.eat(b',')? {
            self.lex.word()?;
        }
        let number: Option<u32> =
            name.strip_prefix("sm_").and_then(|n| n.trim_end_matches(['a', 'f']).parse().ok());
        match number {
            Some(n) if n >= 50 => self.out.target = name.to_string(),
            _ => {
                return Err(Error::unsupported(
                    line,
                    ".target",
                    format!("`{name}`; sm_50 and later are read"),
                ));
            }
        }
        Ok(())
    }

    fn function(&mut self, entry: bool, line: u32) -> Result<()> {
        let mut rets = Vec::new();
        if !entry && self.lex.peek()? == Tok::Punct(b'(') {
            rets = parse_params(&mut self.lex)?;
        }
        let name = self.lex.word()?.to_string();
        let params =
            if self.lex.peek()? == Tok::Punct(b'(') { parse_params(&mut self.lex)? } else { Vec::new() };
        let mut f = Function {
            name,
            entry,
            params,
            rets,
            reqntid: None,
            maxntid: None,
            minnctapersm: None,
            maxnreg: None,
            body: None,
            line,
            program: OnceLock::new(),
        };
        loop {
            let line = self.lex.line;
            match self.lex.next()? {
                Tok::Punct(b';') => break,
                Tok::Punct(b'{') => {
                    let (from, at) = (self.lex.pos, self.lex.line);
                    let to = self.lex.skip_braces()?;
                    f.body = Some((from, to, at));
                    break;
                }
                Tok::Word(".reqntid") => f.reqntid = Some(self.dims()?),
                Tok::Word(".maxntid") => f.maxntid = Some(self.dims()?),
                Tok::Word(".minnctapersm") => f.minnctapersm = Some(self.dims()?[0]),
                Tok::Word(".maxnctapersm") => {
                    self.dims()?;
                }
                Tok::Word(".maxnreg") => f.maxnreg = Some(self.dims()?[0]),
                Tok::Word(".noreturn") => {}
                Tok::Word(".pragma") => while !matches!(self.lex.next()?, Tok::Punct(b';') | Tok::Eof) {},
                Tok::Word(w @ (".explicitcluster" | ".reqnctapercluster" | ".maxclusterrank")) => {
                    return Err(Error::unsupported(line, w, "clusters"));
                }
                other => {
                    return Err(Error::parse(
                        line,
                        format!("{} after the parameters of `{}`", describe(other), f.name),
                    ));
                }
            }
        }
        if f.reqntid.is_some() && f.maxntid.is_some() {
            return Err(Error::parse(line, format!("`{}` has both .reqntid and .maxntid", f.name)));
        }
        // A definition replaces an earlier declaration of the same name.
        match self.out.by_name.get(&f.name) {
            Some(&i) if self.out.functions[i].body.is_none() => self.out.functions[i] = f,
            Some(_) if f.body.is_some() => {
                return Err(Error::parse(line, format!("`{}` is defined twice", f.name)));
            }
            Some(_) => {}
            None => {
                self.out.by_name.insert(f.name.clone(), self.out.functions.len());
                self.out.functions.push(f);
            }
        }
        Ok(())
    }

    fn dims(&mut self) -> Result<[u32; 3]> {
        let mut d = [1u32; 3];
        for slot in d.iter_mut() {
            let line = self.lex.line;
            *slot =
                u32::try_from(self.lex.int()?).map_err(|_| Error::parse(line, "dimension out of range"))?;
            if !self.lex.eat(b',')? {
                break;
            }
        }
        Ok(d)
    }
}

fn parse_params(lex: &mut Lexer<'_>) -> Result<Vec<Param>> {
    lex.expect(b'(')?;
    let mut out: Vec<Param> = Vec::new();
    let mut offset = 0u32;
    while !lex.eat(b')')? {
        let line = lex.line;
        match lex.word()? {
            ".param" => {}
            w => return Err(Error::unsupported(line, w, "parameters must be in .param space")),
        }
        let (mut align, mut ty, mut pointer) = (0u32, None, false);
        let name = loop {
            match lex.word()? {
                ".align" => {
                    let a = lex.int()?;
                    // After `.ptr` the alignment is that of what is pointed at.
                    if !pointer {
                        align = power_of_two(a, line)?;
                    }
                }
                ".ptr" => pointer = true,
                ".global" | ".shared" | ".const" | ".local" => {}
                w if w.starts_with('.') => {
                    ty = Some(
                        Ty::parse(&w[1..]).ok_or_else(|| Error::unsupported(line, w, "parameter type"))?,
                    );
                }
                w => break w.to_string(),
            }
        };
        let Some(ty) = ty else { return Err(Error::parse(line, format!("parameter `{name}` has no type"))) };
        let mut size = ty.bytes();
        if lex.eat(b'[')? {
            let n = if lex.peek()? == Tok::Punct(b']') { 0 } else { lex.int()? };
            lex.expect(b']')?;
            size = u32::try_from(n * i128::from(ty.bytes()))
                .ok()
                .filter(|&s| s <= 1 << 20)
                .ok_or_else(|| Error::parse(line, format!("parameter `{name}`: size out of range")))?;
        }
        let align = if align == 0 { ty.bytes() } else { align };
        offset = offset.next_multiple_of(align);
        out.push(Param { name, ty, size, align, offset, pointer });
        offset += size;
        if offset > 1 << 22 {
            return Err(Error::parse(line, "parameters beyond 4 MiB"));
        }
        if !lex.eat(b',')? {
            lex.expect(b')')?;
            break;
        }
    }
    Ok(out)
}

fn power_of_two(v: i128, line: u32) -> Result<u32> {
    u32::try_from(v)
        .ok()
        .filter(|a| a.is_power_of_two() && *a <= 1 << 16)
        .ok_or_else(|| Error::parse(line, format!("{v} is not an alignment")))
}

/// Variables after the word of their space, up to the `;`.
pub(crate) fn parse_vars(
    lex: &mut Lexer<'_>,
    space: Space,
    external: bool,
    out: &mut Vec<Var>,
) -> Result<()> {
    let line = lex.line;
    let (mut align, mut ty, mut vector) = (0u32, None, 1u32);
    let mut first = None;
    while first.is_none() {
        match lex.word()? {
            ".align" => align = power_of_two(lex.int()?, line)?,
            ".v2" => vector = 2,
            ".v4" => vector = 4,
            w @ (".texref" | ".samplerref" | ".surfref") => {
                return Err(Error::unsupported(line, w, "textures and surfaces"));
            }
            ".attribute" => {
                lex.expect(b'(')?;
                while !matches!(lex.next()?, Tok::Punct(b')') | Tok::Eof) {}
            }
            w if w.starts_with('.') => {
                ty = Some(Ty::parse(&w[1..]).ok_or_else(|| Error::unsupported(line, w, "variable type"))?);
            }
            w => first = Some(w.to_string()),
        }
    }
    let Some(ty) = ty else { return Err(Error::parse(line, "variable without a type")) };
    let mut name = first.unwrap_or_default();
    loop {
        let mut count: i128 = i128::from(vector);
        let mut dynamic = false;
        let mut unsized_array = false;
        while lex.eat(b'[')? {
            if lex.eat(b']')? {
                if external || space == Space::Shared {
                    dynamic = true;
                } else {
                    unsized_array = true;
                }
                continue;
            }
            let n = lex.int()?;
            lex.expect(b']')?;
            count = count
                .checked_mul(n)
                .filter(|c| (0..=1 << 40).contains(c))
                .ok_or_else(|| Error::parse(line, format!("`{name}`: size out of range")))?;
            // `.extern .shared x[0]` is how some front ends write the dynamic part.
            dynamic |= n == 0 && space == Space::Shared && external;
        }
        let mut var = Var {
            name,
            space,
            align: if align == 0 { ty.bytes() * vector } else { align },
            size: (count as u64) * u64::from(ty.bytes()),
            dynamic,
            external,
            init: Vec::new(),
            relocs: Vec::new(),
            line,
        };
        if var.size > 1 << 32 {
            return Err(Error::parse(line, format!("`{}`: {} bytes are too many", var.name, var.size)));
        }
        if lex.eat(b'=')? {
            initialiser(lex, ty, &mut var)?;
            if unsized_array {
                var.size = var.init.len() as u64;
            } else if var.init.len() as u64 > var.size {
                return Err(Error::parse(
                    line,
                    format!("`{}`: initialiser longer than the variable", var.name),
                ));
            }
        }
        if dynamic {
            var.size = 0;
        }
        out.push(var);
        if lex.eat(b',')? {
            name = lex.word()?.to_string();
            continue;
        }
        return lex.expect(b';');
    }
}

fn initialiser(lex: &mut Lexer<'_>, ty: Ty, var: &mut Var) -> Result<()> {
    let mut depth = 0;
    loop {
        let line = lex.line;
        match lex.next()? {
            Tok::Punct(b'{') => {
                depth += 1;
                continue;
            }
            Tok::Punct(b'}') => {}
            tok => {
                item(lex, tok, ty, var, line)?;
                if depth == 0 {
                    return Ok(());
                }
                if lex.eat(b',')? {
                    continue;
                }
                lex.expect(b'}')?;
            }
        }
        // One closing brace has been read.
        loop {
            depth -= 1;
            if depth <= 0 {
                return Ok(());
            }
            if lex.eat(b',')? {
                break;
            }
            lex.expect(b'}')?;
        }
    }
}

fn item(lex: &mut Lexer<'_>, tok: Tok<'_>, ty: Ty, var: &mut Var, line: u32) -> Result<()> {
    let n = ty.bytes() as usize;
    let mut neg = false;
    let mut tok = tok;
    if tok == Tok::Punct(b'-') {
        neg = true;
        tok = lex.next()?;
    }
    let bits: u64 = match tok {
        Tok::Int(v) if ty == Ty::F32 => u64::from((v as f32).to_bits()),
        Tok::Int(v) if ty == Ty::F64 => (v as f64).to_bits(),
        Tok::Int(v) => {
            let v = if neg { v.wrapping_neg() } else { v };
            neg = false;
            v
        }
        Tok::F32(b) => u64::from(b),
        Tok::F64(b) if ty == Ty::F32 => u64::from((f64::from_bits(b) as f32).to_bits()),
        Tok::F64(b) => b,
        Tok::Word(mut sym) => {
            let wrapped = sym == "generic";
            if wrapped {
                lex.expect(b'(')?;
                sym = lex.word()?;
                lex.expect(b')')?;
            }
            let addend = if lex.eat(b'+')? { lex.int()? } else { 0 };
            if n != 8 {
                return Err(Error::unsupported(
                    line,
                    sym,
                    "an address in a variable that is not 64 bits wide",
                ));
            }
            var.relocs.push((var.init.len(), sym.to_string(), addend as i64));
            0
        }
        other => return Err(Error::parse(line, format!("{} in an initialiser", describe(other)))),
    };
    let bits = match (neg, ty) {
        (true, Ty::F32) => bits ^ 0x8000_0000,
        (true, Ty::F64) => bits ^ (1 << 63),
        _ => bits,
    };
    var.init.extend_from_slice(&bits.to_le_bytes()[..n]);
    Ok(())
}
