//! Declarations of parameters and variables, with their initialisers.

use super::{Param, Reloc, Var};
use crate::error::{Error, Result};
use crate::lexer::{Lexer, Tok, describe};
use crate::types::{Space, Ty};

pub(crate) fn parse_params(lex: &mut Lexer<'_>) -> Result<Vec<Param>> {
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
            let n = if lex.peek()? == Tok::Punct(b']') { 0 } else { i128::from(lex.constant()?) };
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
    if space == Space::Const && lex.eat(b'[')? {
        // A bank, as old text has it: there is one here.
        lex.int()?;
        lex.expect(b']')?;
    }
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
            let n = i128::from(lex.constant()?);
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
        match lex.peek()? {
            Tok::Punct(b'{') => {
                lex.next()?;
                depth += 1;
                continue;
            }
            Tok::Punct(b'}') => {
                lex.next()?;
            }
            _ => {
                item(lex, ty, var, line)?;
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

fn item(lex: &mut Lexer<'_>, ty: Ty, var: &mut Var, line: u32) -> Result<()> {
    let n = ty.bytes() as usize;
    let start = lex.clone();
    let mut neg = false;
    let mut tok = lex.next()?;
    if tok == Tok::Punct(b'-') && matches!(lex.peek()?, Tok::F32(_) | Tok::F64(_)) {
        neg = true;
        tok = lex.next()?;
    }
    let bits: u64 = match tok {
        Tok::F32(b) => u64::from(b),
        Tok::F64(b) if ty == Ty::F32 => u64::from((f64::from_bits(b) as f32).to_bits()),
        Tok::F64(b) => b,
        Tok::Int(mask) if lex.peek()? == Tok::Punct(b'(') => {
            // 0xff00(name): that byte of the address, one byte wide.
            let byte = (0..8).find(|i| mask == 0xff << (8 * i));
            lex.expect(b'(')?;
            let name = lex.word()?;
            let (symbol, addend) = symbol(lex, name)?;
            lex.expect(b')')?;
            if byte.is_none() || n != 1 {
                return Err(Error::unsupported(line, name, "a mask that picks no byte, or not for a byte"));
            }
            var.relocs.push(Reloc { at: var.init.len(), symbol, addend, byte });
            0
        }
        Tok::Word(name) => {
            let (symbol, addend) = symbol(lex, name)?;
            if n != 8 {
                return Err(Error::unsupported(
                    line,
                    name,
                    "an address in a variable that is not 64 bits wide",
                ));
            }
            var.relocs.push(Reloc { at: var.init.len(), symbol, addend, byte: None });
            0
        }
        Tok::Int(_) | Tok::Punct(b'-' | b'+' | b'~' | b'!' | b'(') => {
            *lex = start;
            let v = lex.constant()?;
            match ty {
                Ty::F32 => u64::from((v as i64 as f32).to_bits()),
                Ty::F64 => (v as i64 as f64).to_bits(),
                _ => v,
            }
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

/// `name` or `generic(name)`, with what is added to it.
fn symbol(lex: &mut Lexer<'_>, name: &str) -> Result<(String, i64)> {
    let mut symbol = name.to_string();
    if name == "generic" {
        lex.expect(b'(')?;
        symbol = lex.word()?.to_string();
        lex.expect(b')')?;
    }
    let addend = match lex.peek()? {
        Tok::Punct(b'+' | b'-') => {
            let minus = lex.next()? == Tok::Punct(b'-');
            let v = lex.constant()? as i64;
            if minus { v.wrapping_neg() } else { v }
        }
        _ => 0,
    };
    Ok((symbol, addend))
}
