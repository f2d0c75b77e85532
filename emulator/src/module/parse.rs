//! The directives of a module: version, target, functions with their launch bounds, variables.

use super::vars::{parse_params, parse_vars};
use super::{Function, Inner};
use crate::error::{Error, Result};
use crate::lexer::{Lexer, Tok, describe};
use crate::limits::within;
use crate::types::Space;
use std::sync::OnceLock;

pub(crate) struct Parser<'a> {
    pub lex: Lexer<'a>,
    pub out: Inner,
    /// Variables looked at, and their bytes.
    pub summed: (usize, u64),
}

impl<'a> Parser<'a> {
    pub fn module(&mut self) -> Result<()> {
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
                        self.variables_fit(line)?;
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
                    ".pragma" => while !matches!(self.lex.next()?, Tok::Punct(b';') | Tok::Eof) {},
                    ".alias" => {
                        let alias = self.lex.word()?.to_string();
                        self.lex.expect(b',')?;
                        let name = self.lex.word()?;
                        self.lex.expect(b';')?;
                        let Some(&i) = self.out.by_name.get(name) else {
                            return Err(Error::Unresolved { line, name: name.to_string() });
                        };
                        self.out.by_name.insert(alias, i);
                    }
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

    /// Adds the variables since the last call.
    fn variables_fit(&mut self, line: u32) -> Result<()> {
        let own = |v: &&super::Var| v.space != Space::Shared && !v.external;
        let new: u64 = self.out.vars[self.summed.0..].iter().filter(own).map(|v| v.size).sum();
        self.summed = (self.out.vars.len(), self.summed.1.saturating_add(new));
        within("variable_bytes", self.summed.1, self.out.limits.variable_bytes, || {
            format!("line {line}: bytes of .global and .const variables")
        })
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
