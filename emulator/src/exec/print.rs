//! Prints of the device runtime.

use super::lanes::lanes;
use super::mem::{read_le, write_le};
use super::{Cta, Machine};
use crate::memory::LOCAL_WINDOW;

impl Machine<'_> {
    /// A print of the device runtime: `%d %i %u %x %X %o %c %s %f %e %g %p %ld %lu %lld %llu %lx`.
    pub(super) fn vprintf(&mut self, cta: &mut Cta, wi: usize, mask: u32, args: u32, ret: u32) {
        let size = self.l.prog.local_bytes as usize;
        for lane in lanes(mask) {
            let w = &mut cta.warps[wi];
            let at = lane * size + args as usize;
            let (format, list) = (read_le(&w.local, at, 8), read_le(&w.local, at + 8, 8));
            let text = self.string(format);
            let local = &cta.warps[wi].local;
            let start = list.wrapping_sub(LOCAL_WINDOW) as usize;
            let values = if start < size { &local[lane * size + start..(lane + 1) * size] } else { &[][..] };
            let line = self.print(&text, values);
            self.output.push_str(&line);
            if ret != u32::MAX {
                let w = &mut cta.warps[wi];
                let at = lane * size + ret as usize;
                write_le(&mut w.local, at, 4, 1);
                w.local_known.set(at, 4);
            }
        }
    }

    /// Zero-terminated bytes in global memory.
    fn string(&self, addr: u64) -> String {
        let Some(i) = self.l.mem.find(addr) else { return String::new() };
        let a = &self.l.mem.allocs[i];
        let from = (addr - a.base) as usize;
        let bytes = a.data.get(from..).unwrap_or(&[]);
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
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut long = false;
            while let Some(&c) = chars.peek() {
                match c {
                    'l' | 'z' => long = true,
                    '0'..='9' | '.' | '-' | '+' | ' ' | '#' | 'h' => {}
                    _ => break,
                }
                chars.next();
            }
            let n = if long { 8 } else { 4 };
            match chars.next() {
                Some('d' | 'i') if long => out.push_str(&(take(8) as i64).to_string()),
                Some('d' | 'i') => out.push_str(&(take(4) as u32 as i32).to_string()),
                Some('u') => out.push_str(&take(n).to_string()),
                Some('x') => out.push_str(&format!("{:x}", take(n))),
                Some('X') => out.push_str(&format!("{:X}", take(n))),
                Some('o') => out.push_str(&format!("{:o}", take(n))),
                Some('p') => out.push_str(&format!("{:#x}", take(8))),
                Some('c') => out.push(char::from(take(4) as u8)),
                Some('f') => out.push_str(&format!("{:.6}", f64::from_bits(take(8)))),
                Some('e' | 'g') => out.push_str(&format!("{:e}", f64::from_bits(take(8)))),
                Some('s') => {
                    let s = self.string(take(8));
                    out.push_str(&s);
                }
                Some(other) => out.push(other),
                None => {}
            }
        }
        out
    }
}
