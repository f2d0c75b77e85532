//! A PTX module: its kernels, functions and variables.
//!
//! [`Module::parse`] reads everything outside the bodies and finds where each body ends; a body is
//! decoded at its first launch (or by [`Module::check`]) and kept. Cloning a module is cheap.

mod parse;
mod vars;

pub(crate) use vars::{parse_params, parse_vars};

use crate::decode;
use crate::error::{Error, Result};
use crate::inst::Program;
use crate::lexer::{Lexer, Tok};
use crate::limits::{Limits, within};
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
    pub relocs: Vec<Reloc>,
    pub line: u32,
}

/// An address in an initialiser.
#[derive(Clone, Debug)]
pub(crate) struct Reloc {
    /// Byte offset in the variable.
    pub at: usize,
    pub symbol: String,
    pub addend: i64,
    /// All 8 bytes, or the one that a mask picks out.
    pub byte: Option<u32>,
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
    /// Functions whose address is taken, once somebody asks.
    pub taken: OnceLock<Vec<usize>>,
    pub id: u64,
    pub text: String,
    pub version: (u32, u32),
    pub target: String,
    pub functions: Vec<Function>,
    pub by_name: HashMap<String, usize>,
    pub vars: Vec<Var>,
    pub files: HashMap<u32, String>,
    pub limits: Limits,
}

impl Inner {
    /// Functions whose address is in a variable or moved to a register.
    pub fn taken(&self) -> &[usize] {
        self.taken.get_or_init(|| {
            let mut found: Vec<usize> = Vec::new();
            let mut add = |name: &str| {
                if let Some(&i) = self.by_name.get(name)
                    && !self.functions[i].entry
                {
                    found.push(i);
                }
            };
            self.vars.iter().flat_map(|v| &v.relocs).for_each(|r| add(&r.symbol));
            for (from, to, line) in self.functions.iter().filter_map(|f| f.body) {
                let mut lex = Lexer::new(&self.text[..to], from, line);
                // Bodies that cannot be read are reported when they are decoded.
                while let Ok(tok) = lex.next() {
                    match tok {
                        Tok::Eof => break,
                        Tok::Word("mov.u64" | "mov.b64" | "mov.s64") => {
                            if lex.word().is_ok()
                                && lex.expect(b',').is_ok()
                                && let Ok(Tok::Word(name)) = lex.peek()
                            {
                                add(name);
                            }
                        }
                        _ => {}
                    }
                }
            }
            found.sort_unstable();
            found.dedup();
            found
        })
    }
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
        Module::parse_with(text, &Limits::default())
    }

    /// As [`Module::parse`], with limits of the text and of what it asks for.
    ///
    /// # Errors
    /// As [`Module::parse`], and [`Error::Limit`]; limits of bodies are errors of their decoding.
    pub fn parse_with(text: &str, limits: &Limits) -> Result<Module> {
        within("source_bytes", text.len() as u64, limits.source_bytes, || "bytes of PTX".to_string())?;
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut p = parse::Parser {
            lex: Lexer::new(text, 0, 1),
            out: Inner {
                id: NEXT.fetch_add(1, Ordering::Relaxed),
                text: String::new(),
                version: (0, 0),
                target: String::new(),
                taken: OnceLock::new(),
                functions: Vec::new(),
                by_name: HashMap::new(),
                vars: Vec::new(),
                files: HashMap::new(),
                limits: limits.clone(),
            },
            summed: (0, 0),
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
        let mut total = 0u32;
        for decl in text.split(".reg").skip(1) {
            let decl = decl.split(';').next().unwrap_or("");
            for name in decl.split(',') {
                let n =
                    name.split_once('<').and_then(|(_, n)| n.split('>').next()?.trim().parse::<u32>().ok());
                total = total.saturating_add(n.unwrap_or(1));
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
