//! Constant expressions: whole numbers with C's operators and precedence, in 64 bits.
//!
//! A literal is signed unless it ends in `U` or needs all 64 bits; an operation with an unsigned side
//! is unsigned (ISA, "Constant Expressions"). Division by zero is an error, shifts take six bits.

use crate::error::{Error, Result};
use crate::lexer::{Lexer, Tok, describe};

/// Nesting of parentheses and unary operators; nobody writes more.
const DEPTH: u32 = 64;

#[derive(Clone, Copy)]
struct Value {
    bits: u64,
    signed: bool,
}

impl Value {
    fn signed(v: i64) -> Value {
        Value { bits: v as u64, signed: true }
    }
}

/// Binary operators by their text, longest first, with their precedence.
const BINARY: [(&str, u8); 18] = [
    ("<<", 8),
    (">>", 8),
    ("<=", 7),
    (">=", 7),
    ("==", 6),
    ("!=", 6),
    ("&&", 2),
    ("||", 1),
    ("*", 10),
    ("/", 10),
    ("%", 10),
    ("+", 9),
    ("-", 9),
    ("<", 7),
    (">", 7),
    ("&", 5),
    ("^", 4),
    ("|", 3),
];
/// Above addition: what an address takes after its `+` or `-`.
const FACTOR: u8 = 10;

fn apply(op: &str, a: Value, b: Value) -> Option<Value> {
    let signed = a.signed && b.signed;
    let (x, y, sx, sy) = (a.bits, b.bits, a.bits as i64, b.bits as i64);
    let truth = |t: bool| Some(Value::signed(i64::from(t)));
    let bits = match op {
        "*" => x.wrapping_mul(y),
        "/" if y == 0 => return None,
        "%" if y == 0 => return None,
        "/" if signed => sx.wrapping_div(sy) as u64,
        "%" if signed => sx.wrapping_rem(sy) as u64,
        "/" => x / y,
        "%" => x % y,
        "+" => x.wrapping_add(y),
        "-" => x.wrapping_sub(y),
        // The left side alone decides on the sign of a shift.
        "<<" => return Some(Value { bits: x << (y & 63), ..a }),
        ">>" if a.signed => return Some(Value::signed(sx >> (y & 63))),
        ">>" => return Some(Value { bits: x >> (y & 63), ..a }),
        "&" => x & y,
        "^" => x ^ y,
        "|" => x | y,
        "<" => return truth(if signed { sx < sy } else { x < y }),
        "<=" => return truth(if signed { sx <= sy } else { x <= y }),
        ">" => return truth(if signed { sx > sy } else { x > y }),
        ">=" => return truth(if signed { sx >= sy } else { x >= y }),
        "==" => return truth(x == y),
        "!=" => return truth(x != y),
        "&&" => return truth(x != 0 && y != 0),
        _ => return truth(x != 0 || y != 0),
    };
    Some(Value { bits, signed })
}

impl Lexer<'_> {
    /// A constant expression, as its 64 bits.
    pub fn constant(&mut self) -> Result<u64> {
        Ok(self.choice(0)?.bits)
    }

    /// Products and what binds tighter.
    pub fn factor(&mut self) -> Result<u64> {
        Ok(self.binary(FACTOR, 0)?.bits)
    }

    fn choice(&mut self, depth: u32) -> Result<Value> {
        let v = self.binary(0, depth)?;
        if !self.eat(b'?')? {
            return Ok(v);
        }
        let yes = self.choice(depth + 1)?;
        self.expect(b':')?;
        let no = self.choice(depth + 1)?;
        Ok(if v.bits != 0 { yes } else { no })
    }

    fn binary(&mut self, least: u8, depth: u32) -> Result<Value> {
        let mut a = self.unary(depth)?;
        while let Some((op, level)) = self.operator()?.filter(|o| o.1 >= least.max(1)) {
            self.pos += op.len();
            let b = self.binary(level + 1, depth + 1)?;
            a = apply(op, a, b).ok_or_else(|| Error::parse(self.line, "division by zero in a constant"))?;
        }
        Ok(a)
    }

    fn operator(&mut self) -> Result<Option<(&'static str, u8)>> {
        let rest = self.rest()?;
        Ok(BINARY.iter().find(|(op, _)| rest.starts_with(op)).copied())
    }

    fn unary(&mut self, depth: u32) -> Result<Value> {
        if depth > DEPTH {
            return Err(Error::parse(self.line, "a constant expression nested too deep"));
        }
        Ok(match self.next()? {
            Tok::Int(v) => Value { bits: v, signed: v <= i64::MAX as u64 && !self.unsigned },
            Tok::Punct(b'-') => {
                let v = self.unary(depth + 1)?;
                Value { bits: v.bits.wrapping_neg(), ..v }
            }
            Tok::Punct(b'+') => self.unary(depth + 1)?,
            Tok::Punct(b'~') => {
                let v = self.unary(depth + 1)?;
                Value { bits: !v.bits, ..v }
            }
            Tok::Punct(b'!') => Value::signed(i64::from(self.unary(depth + 1)?.bits == 0)),
            Tok::Punct(b'(') => {
                // A cast, or a group.
                if let Tok::Word(w @ (".s64" | ".u64")) = self.peek()? {
                    self.next()?;
                    self.expect(b')')?;
                    let v = self.unary(depth + 1)?;
                    return Ok(Value { signed: w == ".s64", ..v });
                }
                let v = self.choice(depth + 1)?;
                self.expect(b')')?;
                v
            }
            Tok::Word("WARP_SZ") => Value::signed(32),
            other => {
                return Err(Error::parse(self.line, format!("expected a number, found {}", describe(other))));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_follow_c() {
        for (text, want) in [
            ("1+2*3", 7),
            ("(1 + 2) * 3", 9),
            ("1<<4|3", 19),
            ("7 / 2 - 9 % 4", 2),
            ("-7 / 2", -3i64 as u64),
            ("0xffffffffffffffff / 2", i64::MAX as u64),
            ("-1 >> 1", u64::MAX),
            ("(.u64)-1 >> 1", i64::MAX as u64),
            ("-1 < 0 ? 10 : 20", 10),
            ("-1 < 0U ? 10 : 20", 20),
            ("!5 + ~0", u64::MAX),
            ("3 == 3 && 2 != 2 || 1", 1),
            ("1 ^ 3 & 2", 3),
            ("5 - 3 - 1", 1),
        ] {
            assert_eq!(Lexer::new(text, 0, 1).constant(), Ok(want), "{text}");
        }
        for text in ["1/0", "5 % (2-2)", "(1", "1 +", &"-".repeat(100), &"(".repeat(5000)] {
            assert!(Lexer::new(text, 0, 1).constant().is_err(), "{text:.20}");
        }
    }
}
