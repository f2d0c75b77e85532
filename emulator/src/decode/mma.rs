//! Decoding of mma.sync: which shapes go with which types.

use super::Decoder;
use super::operands::{Mods, Opd};
use crate::error::Result;
use crate::inst::*;
use crate::types::Ty;

/// A type word of mma; those of less than a byte and single fp8 elements are no types elsewhere.
#[derive(Clone, Copy, PartialEq)]
enum Word {
    Plain(Ty),
    /// s4 is signed.
    Nibble(bool),
    Bit,
    E4m3,
    E5m2,
}

fn word(s: &str) -> Option<Word> {
    Some(match s {
        "s4" => Word::Nibble(true),
        "u4" => Word::Nibble(false),
        "b1" => Word::Bit,
        "e4m3" => Word::E4m3,
        "e5m2" => Word::E5m2,
        _ => Word::Plain(Ty::parse(s)?),
    })
}

impl<'a> Decoder<'a> {
    pub(super) fn mma(&mut self, m: &mut Mods<'a>, ops: &[Opd<'a>]) -> Result<bool> {
        if m.has("sp") || m.has("sp::ordered_metadata") {
            return self.unsupported(m.full, "sparse matrices");
        }
        let fixed = m.take("sync") & m.take("aligned");
        let row = |s: &str| matches!(s, "row" | "col").then_some(s == "row");
        let (a_row, b_row) = (m.find(row), m.find(row));
        let shape = m.find(|s| {
            let (rows, rest) = s.strip_prefix('m')?.split_once("n8k")?;
            Some((rows.parse::<u32>().ok()?, rest.parse::<u32>().ok()?))
        });
        let words = [m.find(word), m.find(word), m.find(word), m.find(word)];
        let (Some((rows, k)), [Some(d), Some(a), Some(b), Some(c)], true, Some(a_row), Some(b_row)) =
            (shape, words, fixed, a_row, b_row)
        else {
            return self.unsupported(m.full, "layout, shape or types");
        };
        let Some(kind) = self.mma_kind(m, (rows, k), [d, a, b, c], (a_row, b_row)) else {
            return self.unsupported(m.full, "shape or types");
        };
        if !matches!(kind, MmaKind::Quad { .. }) && (!a_row || b_row) {
            return self.unsupported(m.full, "layout; a goes by rows and b by columns");
        }
        if ops.len() != 4 {
            return self.bad(format!("`{}` with {} operands", m.full, ops.len()));
        }
        let n = kind.registers();
        let reg = |w: Word| match w {
            Word::Plain(t @ (Ty::F32 | Ty::F64)) => t,
            _ => Ty::B32,
        };
        let regs = self.pool(&ops[0], n[0], reg(d), true)?;
        self.pool(&ops[1], n[1], reg(a), false)?;
        self.pool(&ops[2], n[2], reg(b), false)?;
        self.pool(&ops[3], n[3], reg(c), false)?;
        self.emit(Op::Mma { kind, regs });
        Ok(true)
    }

    fn mma_kind(
        &self,
        m: &mut Mods<'a>,
        (rows, k): (u32, u32),
        [d, a, b, c]: [Word; 4],
        (a_row, b_row): (bool, bool),
    ) -> Option<MmaKind> {
        use Word::{Bit, E4m3, E5m2, Nibble, Plain};
        let tall = rows == 16;
        if !tall && rows != 8 {
            return None;
        }
        let sums = |w: Word| match w {
            Plain(Ty::F32) => Some(true),
            Plain(Ty::F16) => Some(false),
            _ => None,
        };
        let whole = d == Plain(Ty::S32) && c == d;
        Some(match (a, b) {
            (Plain(Ty::F16), Plain(Ty::F16)) if rows == 8 && k == 4 => {
                MmaKind::Quad { a_row, b_row, d_f32: sums(d)?, c_f32: sums(c)? }
            }
            (Plain(Ty::F16 | Ty::BF16), _) if a == b && tall && matches!(k, 8 | 16) && d == c => {
                let fmt = if a == Plain(Ty::F16) { Hf::F16 } else { Hf::BF16 };
                let acc_f32 = sums(d)?;
                if fmt == Hf::BF16 && !acc_f32 {
                    return None;
                }
                MmaKind::Half { fmt, k: k as u8, acc_f32 }
            }
            (Plain(Ty::Tf32), Plain(Ty::Tf32)) if tall && matches!(k, 4 | 8) && d == c && sums(d)? => {
                MmaKind::Single { a: Elem::Tf32, b: Elem::Tf32, k: k as u8, acc_f32: true }
            }
            (E4m3 | E5m2, E4m3 | E5m2) if tall && matches!(k, 16 | 32) && d == c => {
                let fp8 = |w| if w == E4m3 { Elem::E4m3 } else { Elem::E5m2 };
                MmaKind::Single { a: fp8(a), b: fp8(b), k: k as u8, acc_f32: sums(d)? }
            }
            (Plain(Ty::F64), Plain(Ty::F64)) if d == a && c == a => {
                m.take("rn");
                let fits = if tall { matches!(k, 4 | 8 | 16) } else { k == 4 };
                if !fits {
                    return None;
                }
                MmaKind::Double { k: k as u8, tall }
            }
            (Plain(Ty::S8 | Ty::U8), Plain(Ty::S8 | Ty::U8)) if whole && (k == 16 || tall && k == 32) => {
                let signed = |w| w == Plain(Ty::S8);
                let sat = m.take("satfinite");
                MmaKind::Int { k: k as u8, bits: 8, tall, a_signed: signed(a), b_signed: signed(b), sat }
            }
            (Nibble(a_signed), Nibble(b_signed)) if whole && (k == 32 || tall && k == 64) => {
                let sat = m.take("satfinite");
                MmaKind::Int { k: k as u8, bits: 4, tall, a_signed, b_signed, sat }
            }
            (Bit, Bit) if whole && (k == 128 || tall && k == 256) => {
                let xor = m.find(|s| matches!(s, "and" | "xor").then_some(s == "xor"))?;
                if !m.take("popc") {
                    return None;
                }
                MmaKind::Bit { k: k as u16, tall, xor }
            }
            _ => return None,
        })
    }
}
