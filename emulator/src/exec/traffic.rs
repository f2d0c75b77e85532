//! Counters of memory traffic: sectors of global memory, passes over the banks of shared memory.

use super::lanes::lanes;
use super::mem::Spots;
use super::{Cta, Machine};
use crate::memory::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::types::Space;

impl Machine<'_> {
    /// Counts sectors or bank conflicts of an access.
    pub(super) fn count_access(&mut self, cta: &Cta, wi: usize, s: &Spots, total: usize, write: bool) {
        self.note_buffers(cta, wi, s, total, write);
        if self.hooks.is_some() {
            self.watch_memory(cta, wi, s.space, s.ok, total, write);
        }
        if !self.count || s.ok == 0 {
            return;
        }
        let addr = &cta.warps[wi].addr;
        let bytes = u64::from(s.ok.count_ones()) * total as u64;
        match s.space {
            Space::Global => {
                self.n.global_requests += 1;
                if self.profiling {
                    self.n.global_sectors_ideal += ideal_sectors(addr, s.ok, total);
                }
                let sectors = sectors(addr, s.ok, total);
                if write {
                    self.n.global_bytes_written += bytes;
                    self.n.global_sectors_written += sectors;
                } else {
                    self.n.global_bytes_read += bytes;
                    self.n.global_sectors_read += sectors;
                }
            }
            Space::Shared => {
                self.n.shared_accesses += 1;
                self.n.shared_bytes += bytes;
                self.n.shared_passes_ideal += passes(s.ok, total);
                self.n.bank_conflicts += conflicts(addr, s.ok, total);
            }
            Space::Local => self.n.local_bytes += bytes,
            _ => {}
        }
    }

    /// Counts a matrix moved as a whole.
    pub(super) fn count_matrix(&mut self, space: Space, base: u64, bytes: u64, sectors: u64, write: bool) {
        let shared = space == Space::Shared
            || space == Space::Generic && (SHARED_WINDOW..LOCAL_WINDOW).contains(&base);
        // A matrix is counted as moved without conflicts, 128 bytes a pass.
        if shared {
            self.n.shared_accesses += 1;
            self.n.shared_bytes += bytes;
            self.n.shared_passes_ideal += bytes.div_ceil(128);
            return;
        }
        self.n.global_requests += 1;
        if self.profiling {
            self.n.global_sectors_ideal += bytes.div_ceil(32);
        }
        if write {
            self.n.global_bytes_written += bytes;
            self.n.global_sectors_written += sectors;
        } else {
            self.n.global_bytes_read += bytes;
            self.n.global_sectors_read += sectors;
        }
    }
}

/// Distinct 32-byte sectors.
pub(super) fn sectors(addr: &[u64; 32], mask: u32, total: usize) -> u64 {
    let t = total as u64;
    if mask == u32::MAX && (1..32).all(|i| addr[i] == addr[i - 1].wrapping_add(t)) {
        return (addr[31] + t - 1) / 32 - addr[0] / 32 + 1;
    }
    // At most 33 sectors a lane would need more than 1 KiB an access: two is the most here.
    let mut list = [0u64; 64];
    let mut n = 0;
    for i in lanes(mask) {
        let (a, b) = (addr[i] / 32, (addr[i] + t - 1) / 32);
        for s in [a, b] {
            // Neighbouring lanes mostly share it.
            if n < 64 && !list[..n].iter().rev().any(|l| *l == s) {
                list[n] = s;
                n += 1;
            }
        }
    }
    n as u64
}

/// Sectors the distinct bytes would fill side by side.
fn ideal_sectors(addr: &[u64; 32], mask: u32, total: usize) -> u64 {
    let mut from: Vec<u64> = lanes(mask).map(|i| addr[i]).collect();
    from.sort_unstable();
    let (mut bytes, mut end) = (0u64, 0u64);
    for a in from {
        let to = a.saturating_add(total as u64);
        bytes += to - a.max(end).min(to);
        end = end.max(to);
    }
    bytes.div_ceil(32)
}

/// Lanes behind another one at the same address.
pub(super) fn repeated(addr: &[u64; 32], mask: u32) -> u64 {
    let mut all: Vec<u64> = lanes(mask).map(|i| addr[i]).collect();
    let n = all.len();
    all.sort_unstable();
    all.dedup();
    (n - all.len()) as u64
}

/// Passes needed without a conflict: groups of lanes, as many as share a pass, with one that is active.
fn passes(mask: u32, total: usize) -> u64 {
    match total {
        16.. => [0xff, 0xff00, 0xff_0000, 0xff00_0000].iter().filter(|&&m| mask & m != 0).count() as u64,
        8.. => u64::from(mask & 0xffff != 0) + u64::from(mask >> 16 != 0),
        _ => u64::from(mask != 0),
    }
}

/// Passes over the 32 banks beyond those needed: 4-byte accesses take one pass, 8-byte ones two of
/// half a warp, 16-byte ones four of a quarter.
fn conflicts(addr: &[u64; 32], mask: u32, total: usize) -> u64 {
    let t = total as u64;
    if (1..32).all(|i| addr[i] == addr[i - 1].wrapping_add(t)) || (1..32).all(|i| addr[i] == addr[0]) {
        return 0;
    }
    let phases = (total / 4).clamp(1, 4);
    let per = 32 / phases;
    let mut extra = 0;
    let mut words = [0u64; 32 * 4];
    for p in 0..phases {
        let mut n = 0;
        let mut banks = [0u8; 32];
        // The first word of each bank: without a conflict there is no other.
        let mut firsts = [0u64; 32];
        for i in p * per..(p + 1) * per {
            if mask >> i & 1 == 0 {
                continue;
            }
            for k in 0..total.div_ceil(4).min(4) {
                let w = addr[i] / 4 + k as u64;
                let bank = (w % 32) as usize;
                if banks[bank] == 0 {
                    firsts[bank] = w;
                } else if firsts[bank] == w || words[..n].contains(&w) {
                    continue;
                }
                words[n] = w;
                n += 1;
                banks[bank] += 1;
            }
        }
        extra += u64::from(banks.iter().max().copied().unwrap_or(0).saturating_sub(1));
    }
    extra
}
