//! Prints of the device runtime.

use super::lanes::lanes;
use super::mem::{read_le, write_le};
use super::{Cta, Machine};
use crate::memory::LOCAL_WINDOW;

impl Machine<'_> {
    /// A print of the device runtime: `d i u x X o c s f e g p`, with flags,
    /// width, precision and length as in C.
    pub(super) fn vprintf(&mut self, cta: &mut Cta, wi: usize, mask: u32, args: u32, ret: u32) {
        let size = self.l.prog.local_bytes as usize;
        let most = usize::try_from(self.l.options.limits.output_bytes).unwrap_or(usize::MAX);
        for lane in lanes(mask) {
            let w = &mut cta.warps[wi];
            let at = lane * size + args as usize;
            let (format, list) = (read_le(&w.local, at, 8), read_le(&w.local, at + 8, 8));
            if self.output.len() > most {
                self.printed(cta, wi, lane, ret);
                continue;
            }
            let text = self.string(format);
            let local = &cta.warps[wi].local;
            let start = list.wrapping_sub(LOCAL_WINDOW) as usize;
            let values = if start < size { &local[lane * size + start..(lane + 1) * size] } else { &[][..] };
            let line = self.print(&text, values);
            self.output.push_str(&line);
            if self.output.len() > most {
                let end = (0..=most).rev().find(|&i| self.output.is_char_boundary(i)).unwrap_or(0);
                self.output.truncate(end);
                self.output
                    .push_str(&format!("\n[the rest is dropped: `output_bytes` of Limits is {most}]\n"));
            }
            self.printed(cta, wi, lane, ret);
        }
    }

    /// Gives a lane its result.
    fn printed(&self, cta: &mut Cta, wi: usize, lane: usize, ret: u32) {
        if ret != u32::MAX {
            let w = &mut cta.warps[wi];
            let at = lane * self.l.prog.local_bytes as usize + ret as usize;
            write_le(&mut w.local, at, 4, 1);
            w.local_known.set(at, 4);
        }
    }

    /// Zero-terminated bytes in global memory.
    fn string(&self, addr: u64) -> String {
        let Some(i) = self.l.mem.find(addr) else { return String::new() };
        let a = &self.l.mem.allocs[i];
        let from = (addr - a.base) as usize;
        // SAFETY: programs that print run on one thread.
        let bytes = unsafe { a.data.slice(from, a.data.len() - from) };
        // No more than could be printed.
        let most = usize::try_from(self.l.options.limits.output_bytes).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(most.saturating_add(1))];
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    fn print(&self, format: &str, values: &[u8]) -> String {
        let mut out = String::new();
        let mut at = 0usize;
        let mut take = |n: usize| {
            at = at.next_multiple_of(n);
            let v = if at + n <= values.len() { read_le(values, at, n) } else { 0 };
            at += n;
            v
        };
        let mut chars = format.chars().peekable();
        let most = usize::try_from(self.l.options.limits.output_bytes).unwrap_or(usize::MAX);
        while let Some(c) = chars.next() {
            if out.len() > most {
                break;
            }
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut spec = Spec::default();
            let kind = spec.read(&mut chars, &mut || take(4) as u32 as i32);
            let n = if spec.long { 8 } else { 4 };
            let text = match kind {
                Some('d' | 'i') => {
                    let v = if spec.long { take(8) as i64 } else { i64::from(take(4) as u32 as i32) };
                    spec.number(v < 0, v.unsigned_abs().to_string(), "")
                }
                Some('u') => spec.number(false, take(n).to_string(), ""),
                Some('x') => spec.number(false, format!("{:x}", take(n)), "0x"),
                Some('X') => spec.number(false, format!("{:X}", take(n)), "0X"),
                Some('o') => spec.number(false, format!("{:o}", take(n)), "0"),
                Some('p') => spec.pad(format!("{:#x}", take(8)), false),
                Some('c') => spec.pad(char::from(take(4) as u8).to_string(), false),
                Some(k @ ('f' | 'F' | 'e' | 'E' | 'g' | 'G')) => spec.float(f64::from_bits(take(8)), k),
                Some('s') => {
                    let s = self.string(take(8));
                    let n = spec.precision.unwrap_or(usize::MAX);
                    spec.pad(s.chars().take(n).collect(), false)
                }
                Some(other) => other.to_string(),
                None => String::new(),
            };
            out.push_str(&text);
        }
        out
    }
}

/// Flags, width and precision of a conversion.
#[derive(Default)]
struct Spec {
    left: bool,
    zero: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    long: bool,
    width: usize,
    precision: Option<usize>,
}

/// No line of a print is padded beyond this.
const WIDEST: usize = 1024;

impl Spec {
    /// Reads up to the letter of the conversion; `star` takes an argument.
    fn read(
        &mut self,
        chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
        star: &mut impl FnMut() -> i32,
    ) -> Option<char> {
        loop {
            match chars.next()? {
                '-' => self.left = true,
                '0' => self.zero = true,
                '+' => self.plus = true,
                ' ' => self.space = true,
                '#' => self.alternate = true,
                '*' => {
                    let v = star();
                    self.left |= v < 0;
                    self.width = (v.unsigned_abs() as usize).min(WIDEST);
                }
                '.' => {
                    let mut n = 0;
                    if chars.peek() == Some(&'*') {
                        chars.next();
                        n = star().max(0) as usize;
                    }
                    while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
                        n = (n * 10 + d as usize).min(WIDEST);
                        chars.next();
                    }
                    self.precision = Some(n.min(WIDEST));
                }
                c @ '1'..='9' => {
                    self.width = c as usize - '0' as usize;
                    while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
                        self.width = (self.width * 10 + d as usize).min(WIDEST);
                        chars.next();
                    }
                }
                'l' | 'z' | 'j' | 't' => self.long = true,
                'h' => {}
                c => return Some(c),
            }
        }
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    /// Pads to the width; zeros go behind the sign.
    fn pad(&self, text: String, zeros: bool) -> String {
        let fill = self.width.saturating_sub(text.chars().count());
        if self.left {
            return text + &" ".repeat(fill);
        }
        if zeros && self.zero {
            let head = text.len() - text.trim_start_matches(['-', '+', ' ']).len();
            return format!("{}{}{}", &text[..head], "0".repeat(fill), &text[head..]);
        }
        " ".repeat(fill) + &text
    }

    fn number(&self, negative: bool, digits: String, prefix: &str) -> String {
        let fill = self.precision.unwrap_or(1).saturating_sub(digits.len());
        let prefix = if self.alternate && digits != "0" { prefix } else { "" };
        let text = format!("{}{prefix}{}{digits}", self.sign(negative), "0".repeat(fill));
        self.pad(text, self.precision.is_none())
    }

    fn float(&self, v: f64, kind: char) -> String {
        let (p, a) = (self.precision.unwrap_or(6), v.abs());
        let body = match kind.to_ascii_lowercase() {
            _ if a.is_nan() => "nan".to_string(),
            _ if a.is_infinite() => "inf".to_string(),
            'f' => format!("{a:.p$}"),
            'e' => exponential(a, p),
            _ => {
                // As C does: the exponent after rounding decides, zeros at the end go.
                let p = p.max(1);
                let e = exponential(a, p - 1);
                let x: i32 = e.rsplit('e').next().and_then(|x| x.parse().ok()).unwrap_or(0);
                let trim = |s: &str| match (s.contains('.') && !self.alternate, s) {
                    (true, s) => s.trim_end_matches('0').trim_end_matches('.').to_string(),
                    (false, s) => s.to_string(),
                };
                if x < -4 || x >= p as i32 {
                    let (m, x) = e.split_once('e').unwrap_or((&e, "+00"));
                    format!("{}e{x}", trim(m))
                } else {
                    trim(&format!("{a:.*}", (p as i32 - 1 - x).max(0) as usize))
                }
            }
        };
        let body = if kind.is_ascii_uppercase() { body.to_uppercase() } else { body };
        self.pad(format!("{}{body}", self.sign(v.is_sign_negative() && !v.is_nan())), v.is_finite())
    }
}

/// `d.ddde+xx`.
fn exponential(a: f64, p: usize) -> String {
    let text = format!("{a:.p$e}");
    let (m, x) = text.split_once('e').unwrap_or((&text, "0"));
    let x: i32 = x.parse().unwrap_or(0);
    format!("{m}e{}{:02}", if x < 0 { '-' } else { '+' }, x.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(spec: &str, v: f64) -> String {
        let mut s = Spec::default();
        let kind = s.read(&mut spec.chars().peekable(), &mut || 0).unwrap();
        s.float(v, kind)
    }

    #[test]
    fn floats_look_as_c_prints_them() {
        for (spec, v, want) in [
            ("g", 0.0001, "0.0001"),
            ("g", 0.00001, "1e-05"),
            ("g", 100000.0, "100000"),
            ("g", 1e6, "1e+06"),
            ("g", 999999.5, "1e+06"),
            (".3g", 3.24159, "3.24"),
            ("#g", 1.0, "1.00000"),
            ("8.2f", -3.24159, "   -3.24"),
            ("08.2f", -3.24159, "-0003.24"),
            ("+e", 12345.678, "+1.234568e+04"),
            ("E", 1e-300, "1.000000E-300"),
            ("-8.1f", 2.0, "2.0     "),
            ("06f", f64::INFINITY, "   inf"),
        ] {
            assert_eq!(float(spec, v), want, "%{spec} of {v}");
        }
    }
}
