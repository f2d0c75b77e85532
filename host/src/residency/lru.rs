//! Least recently used, over the whole pool or over fixed shares of it.
//!
//! A share has a quota and a list, oldest first; the victim comes from the share of the block that enters. One
//! share is unified LRU; one a layer, equal or by demand, is the comparison: what engines with a cache per layer do.

use super::lists::Lists;
use super::{Entry, Residency};

/// LRU within shares.
pub struct Lru {
    lists: Lists,
    share_of: Vec<u16>,
    quotas: Vec<usize>,
    lens: Vec<usize>,
}

impl Lru {
    /// One pool of `capacity` for blocks `0..blocks`.
    pub fn unified(blocks: usize, capacity: usize) -> Lru {
        Lru::with_shares(vec![0; blocks], vec![capacity])
    }

    /// Block `b` belongs to share `share_of[b]`, which holds `quotas[share_of[b]]` blocks.
    pub fn with_shares(share_of: Vec<u16>, quotas: Vec<usize>) -> Lru {
        let lists = Lists::new(share_of.len(), quotas.len());
        Lru { lists, share_of, lens: vec![0; quotas.len()], quotas }
    }
}

impl Residency for Lru {
    fn capacity(&self) -> usize {
        self.quotas.iter().sum()
    }

    fn len(&self) -> usize {
        self.lens.iter().sum()
    }

    fn contains(&self, block: u32) -> bool {
        self.lists.in_list(block)
    }

    fn read(&mut self, block: u32, _weight: f32) -> Entry {
        let share = self.share_of[block as usize] as usize;
        if self.lists.in_list(block) {
            self.lists.remove(block);
            self.lists.push_back(share, block);
            return Entry::Hit;
        }
        if self.quotas[share] == 0 {
            return Entry::Miss { evicted: None };
        }
        let evicted = if self.lens[share] == self.quotas[share] { self.lists.front(share) } else { None };
        match evicted {
            Some(victim) => drop(self.lists.remove(victim)),
            None => self.lens[share] += 1,
        }
        self.lists.push_back(share, block);
        Entry::Miss { evicted }
    }

    fn bring(&mut self, block: u32) -> Entry {
        self.read(block, 0.0)
    }

    /// From the fullest share, for its quota.
    fn evict(&mut self) -> Option<u32> {
        let by_use = |&a: &usize, &b: &usize| {
            let fullness = |share: usize, other: usize| self.lens[share] as u128 * self.quotas[other] as u128;
            fullness(a, b).cmp(&fullness(b, a))
        };
        let share = (0..self.lens.len()).filter(|&share| self.lens[share] > 0).max_by(by_use)?;
        let victim = self.lists.front(share)?;
        self.remove(victim);
        Some(victim)
    }

    fn hold(&mut self, block: u32) {
        self.remove(block);
    }

    fn remove(&mut self, block: u32) {
        if self.lists.in_list(block) {
            self.lists.remove(block);
            self.lens[self.share_of[block as usize] as usize] -= 1;
        }
    }
}

/// `capacity` in `shares` equal parts; the first ones get the remainder.
pub fn equal_shares(capacity: usize, shares: usize) -> Vec<usize> {
    (0..shares).map(|i| capacity / shares + usize::from(i < capacity % shares)).collect()
}

/// `capacity` in parts proportional to `demand`, but no part above its `limit`: what one cannot use goes to the
/// others, again by demand.
pub fn demand_shares(capacity: usize, demand: &[f64], limit: &[usize]) -> Vec<usize> {
    let mut quotas = vec![0; demand.len()];
    let mut open: Vec<usize> = (0..demand.len()).collect();
    let mut left = capacity;
    // Each round closes a share or is the last.
    loop {
        let total: f64 = open.iter().map(|&i| demand[i]).sum();
        let part = |i: usize| if total > 0.0 { left as f64 * demand[i] / total } else { 0.0 };
        let (full, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|&&i| part(i) >= limit[i] as f64);
        if full.is_empty() {
            for &i in &rest {
                quotas[i] = part(i) as usize;
            }
            // The remainders of rounding, one block each.
            let mut over = left - rest.iter().map(|&i| quotas[i]).sum::<usize>();
            for &i in &rest {
                let more = usize::from(over > 0 && quotas[i] < limit[i]);
                quotas[i] += more;
                over -= more;
            }
            return quotas;
        }
        for &i in &full {
            quotas[i] = limit[i];
            left -= limit[i];
        }
        open = rest;
    }
}
