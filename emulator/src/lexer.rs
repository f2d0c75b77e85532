//! Splits PTX text into words, numbers and punctuation, without copying.
//!
//! An opcode with its modifiers is one word (`ld.global.nc.L2::128B.v4.b32`), so are `%tid.x` and
//! directives (`.reg`). Debug directives that end at the end of the line (`.loc`, `.file`) are read
//! with [`Lexer::rest_of_line`].

use crate::error::{Error, Result};

/// One token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tok<'a> {
    /// Identifier, register, directive or opcode.
    Word(&'a str),
    /// Integer literal.
    Int(u64),
    /// `0f` literal, as bits.
    F32(u32),
    /// `0d` literal or a decimal one, as bits.
    F64(u64),
    /// Quoted string without its quotes.
    Str(&'a str),
    /// Any other character.
    Punct(u8),
    /// End of the text.
    Eof,
}

/// Reads tokens from `text`; `pos` is a byte offset, `line` counts from the line given at the start.
#[derive(Clone)]
pub struct Lexer<'a> {
    text: &'a str,
    /// Byte offset of the next unread character.
    pub pos: usize,
    /// Line of `pos`.
    pub line: u32,
    /// The last integer literal ended in `U`.
    pub unsigned: bool,
}

fn starts_word(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

impl<'a> Lexer<'a> {
    /// A lexer over `text` from byte `pos`, which is on line `line`.
    pub fn new(text: &'a str, pos: usize, line: u32) -> Lexer<'a> {
        Lexer { text, pos, line, unsigned: false }
    }

    fn byte(&self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    /// Skips blanks and comments.
    fn skip(&mut self) -> Result<()> {
        let b = self.text.as_bytes();
        loop {
            match self.byte(self.pos) {
                b'\n' => {
                    self.line += 1;
                    self.pos += 1;
                }
                b' ' | b'\t' | b'\r' => self.pos += 1,
                b'/' if self.byte(self.pos + 1) == b'/' => {
                    while self.pos < b.len() && b[self.pos] != b'\n' {
                        self.pos += 1;
                    }
                }
                b'/' if self.byte(self.pos + 1) == b'*' => {
                    let start = self.line;
                    self.pos += 2;
                    while !(self.byte(self.pos) == b'*' && self.byte(self.pos + 1) == b'/') {
                        if self.pos >= b.len() {
                            return Err(Error::parse(start, "comment without an end"));
                        }
                        if b[self.pos] == b'\n' {
                            self.line += 1;
                        }
                        self.pos += 1;
                    }
                    self.pos += 2;
                }
                _ => return Ok(()),
            }
        }
    }

    /// The next token without reading it.
    pub fn peek(&self) -> Result<Tok<'a>> {
        self.clone().next()
    }

    /// The next token.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Tok<'a>> {
        self.skip()?;
        let b = self.text.as_bytes();
        if self.pos >= b.len() {
            return Ok(Tok::Eof);
        }
        let start = self.pos;
        let c = b[start];
        if starts_word(c) {
            self.pos += 1;
            loop {
                let c = self.byte(self.pos);
                if c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.') {
                    self.pos += 1;
                } else if c == b':' && self.byte(self.pos + 1) == b':' {
                    self.pos += 2;
                } else {
                    break;
                }
            }
            return Ok(Tok::Word(&self.text[start..self.pos]));
        }
        if c.is_ascii_digit() {
            return self.number();
        }
        if c == b'"' {
            self.pos += 1;
            while self.pos < b.len() && b[self.pos] != b'"' {
                if b[self.pos] == b'\n' {
                    return Err(Error::parse(self.line, "string without an end"));
                }
                self.pos += 1;
            }
            if self.pos >= b.len() {
                return Err(Error::parse(self.line, "string without an end"));
            }
            self.pos += 1;
            return Ok(Tok::Str(&self.text[start + 1..self.pos - 1]));
        }
        if c >= 0x80 {
            return Err(Error::parse(self.line, "a character outside ASCII"));
        }
        self.pos += 1;
        Ok(Tok::Punct(c))
    }

    fn number(&mut self) -> Result<Tok<'a>> {
        let b = self.text.as_bytes();
        let start = self.pos;
        let line = self.line;
        let bad = |t: &str| Error::parse(line, format!("`{t}` is not a number"));
        let take = |lex: &mut Self, ok: fn(u8) -> bool| {
            let from = lex.pos;
            while lex.pos < b.len() && ok(b[lex.pos]) {
                lex.pos += 1;
            }
            from
        };
        let second = self.byte(start + 1);
        if b[start] == b'0' && matches!(second, b'f' | b'F' | b'd' | b'D' | b'x' | b'X') {
            self.pos += 2;
            let from = take(self, |c| c.is_ascii_hexdigit());
            let digits = &self.text[from..self.pos];
            if matches!(second, b'x' | b'X') {
                let v = u64::from_str_radix(digits, 16).map_err(|_| bad(&self.text[start..self.pos]))?;
                self.suffix();
                return Ok(Tok::Int(v));
            }
            let single = matches!(second, b'f' | b'F');
            if digits.len() != if single { 8 } else { 16 } {
                return Err(bad(&self.text[start..self.pos]));
            }
            let v = u64::from_str_radix(digits, 16).map_err(|_| bad(digits))?;
            return Ok(if single { Tok::F32(v as u32) } else { Tok::F64(v) });
        }
        if b[start] == b'0' && matches!(second, b'b' | b'B') {
            self.pos += 2;
            let from = take(self, |c| matches!(c, b'0' | b'1'));
            let v = u64::from_str_radix(&self.text[from..self.pos], 2)
                .map_err(|_| bad(&self.text[start..self.pos]))?;
            self.suffix();
            return Ok(Tok::Int(v));
        }
        take(self, |c| c.is_ascii_digit());
        let fraction = self.byte(self.pos) == b'.' && self.byte(self.pos + 1).is_ascii_digit();
        let exponent = matches!(self.byte(self.pos), b'e' | b'E');
        if fraction || exponent {
            if fraction {
                self.pos += 1;
                take(self, |c| c.is_ascii_digit());
            }
            if matches!(self.byte(self.pos), b'e' | b'E') {
                self.pos += 1;
                if matches!(self.byte(self.pos), b'+' | b'-') {
                    self.pos += 1;
                }
                take(self, |c| c.is_ascii_digit());
            }
            let t = &self.text[start..self.pos];
            let v: f64 = t.parse().map_err(|_| bad(t))?;
            return Ok(Tok::F64(v.to_bits()));
        }
        let t = &self.text[start..self.pos];
        let octal = t.len() > 1 && t.starts_with('0');
        let v = if octal {
            u64::from_str_radix(&t[1..], 8).map_err(|_| bad(t))?
        } else {
            t.parse().map_err(|_| bad(t))?
        };
        self.suffix();
        Ok(Tok::Int(v))
    }

    fn suffix(&mut self) {
        self.unsigned = self.byte(self.pos) == b'U';
        self.pos += usize::from(self.unsigned);
    }

    /// What follows, blanks and comments skipped.
    pub fn rest(&mut self) -> Result<&'a str> {
        self.skip()?;
        Ok(self.text.get(self.pos..).unwrap_or(""))
    }

    /// Reads `c` or fails, naming what stands there.
    pub fn expect(&mut self, c: u8) -> Result<()> {
        let line = self.line;
        match self.next()? {
            Tok::Punct(p) if p == c => Ok(()),
            other => Err(Error::parse(line, format!("expected `{}`, found {}", c as char, describe(other)))),
        }
    }

    /// Reads `c` if it is next.
    pub fn eat(&mut self, c: u8) -> Result<bool> {
        if self.peek()? == Tok::Punct(c) {
            self.next()?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads a word or fails.
    pub fn word(&mut self) -> Result<&'a str> {
        match self.next()? {
            Tok::Word(w) => Ok(w),
            other => Err(Error::parse(self.line, format!("expected a name, found {}", describe(other)))),
        }
    }

    /// Reads an integer, possibly negative.
    pub fn int(&mut self) -> Result<i128> {
        let neg = self.eat(b'-')?;
        match self.next()? {
            Tok::Int(v) => Ok(if neg { -(v as i128) } else { v as i128 }),
            other => Err(Error::parse(self.line, format!("expected an integer, found {}", describe(other)))),
        }
    }

    /// The text up to the end of the line, which is skipped.
    pub fn rest_of_line(&mut self) -> &'a str {
        let b = self.text.as_bytes();
        let start = self.pos;
        while self.pos < b.len() && b[self.pos] != b'\n' {
            self.pos += 1;
        }
        &self.text[start..self.pos]
    }

    /// Skips to the `}` that closes a `{` already read; returns its byte offset.
    pub fn skip_braces(&mut self) -> Result<usize> {
        let open = self.line;
        let b = self.text.as_bytes();
        let mut depth = 1;
        loop {
            self.skip()?;
            match self.byte(self.pos) {
                b'{' => depth += 1,
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        self.pos += 1;
                        return Ok(self.pos - 1);
                    }
                }
                b'"' => {
                    self.next()?;
                    continue;
                }
                _ if self.pos >= b.len() => return Err(Error::parse(open, "`{` without its `}`")),
                _ => {}
            }
            self.pos += 1;
        }
    }
}

/// A token as named in messages.
pub fn describe(t: Tok<'_>) -> String {
    // A word may be as long as the file.
    let short = |s: &str| match s.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &s[..end]),
        None => s.to_string(),
    };
    match t {
        Tok::Word(w) => format!("`{}`", short(w)),
        Tok::Int(v) => format!("`{v}`"),
        Tok::F32(v) => format!("`0f{v:08X}`"),
        Tok::F64(v) => format!("`0d{v:016X}`"),
        Tok::Str(s) => format!("\"{}\"", short(s)),
        Tok::Punct(c) => format!("`{}`", c as char),
        Tok::Eof => "the end of the file".to_string(),
    }
}
