//! Belady's offline optimum: the victim is the block whose next read is the farthest away. It needs all reads in
//! advance, and no policy that must take in each block it reads can miss less.
//!
//! Layout: the places of each block's reads in one array, by block; a heap of (next read, block), whose stale entries
//! are dropped when they surface. O(log capacity) a read, amortised.

use std::collections::BinaryHeap;

use super::{Entry, Residency};

/// The optimum for a known sequence of reads.
pub struct Belady {
    /// Places of the reads of block `b`: `places[start[b]..start[b + 1]]`, ascending.
    places: Vec<u32>,
    start: Vec<u32>,
    /// First place of each block that has not been read yet.
    cursor: Vec<u32>,
    resident: Vec<bool>,
    heap: BinaryHeap<(u32, u32)>,
    capacity: usize,
    len: usize,
}

impl Belady {
    /// A pool of `capacity` for blocks `0..blocks` whose reads will be exactly `reads`, in this order.
    pub fn new(blocks: usize, capacity: usize, reads: &[u32]) -> Belady {
        let mut start = vec![0u32; blocks + 1];
        for &block in reads {
            start[block as usize + 1] += 1;
        }
        for b in 0..blocks {
            start[b + 1] += start[b];
        }
        let mut fill = start.clone();
        let mut places = vec![0; reads.len()];
        for (place, &block) in reads.iter().enumerate() {
            places[fill[block as usize] as usize] = place as u32;
            fill[block as usize] += 1;
        }
        let cursor = start[..blocks].to_vec();
        Belady {
            places,
            start,
            cursor,
            resident: vec![false; blocks],
            heap: BinaryHeap::new(),
            capacity,
            len: 0,
        }
    }

    /// Place of the next read; after the last one, the end of time.
    fn next(&self, block: u32) -> u32 {
        let cursor = self.cursor[block as usize];
        if cursor < self.start[block as usize + 1] { self.places[cursor as usize] } else { u32::MAX }
    }

    fn victim(&mut self) -> Option<u32> {
        while let Some((next, block)) = self.heap.pop() {
            if self.resident[block as usize] && next == self.next(block) {
                return Some(block);
            }
        }
        None
    }
}

impl Residency for Belady {
    fn capacity(&self) -> usize {
        self.capacity
    }

    fn len(&self) -> usize {
        self.len
    }

    fn contains(&self, block: u32) -> bool {
        self.resident[block as usize]
    }

    fn read(&mut self, block: u32, _weight: f32) -> Entry {
        let b = block as usize;
        self.cursor[b] = (self.cursor[b] + 1).min(self.start[b + 1]);
        if self.resident[b] {
            self.heap.push((self.next(block), block));
            return Entry::Hit;
        }
        self.bring(block)
    }

    fn bring(&mut self, block: u32) -> Entry {
        if self.resident[block as usize] {
            return Entry::Hit;
        }
        if self.capacity == 0 {
            return Entry::Miss { evicted: None };
        }
        let evicted = if self.len == self.capacity { self.victim() } else { None };
        match evicted {
            Some(victim) => self.resident[victim as usize] = false,
            None => self.len += 1,
        }
        self.resident[block as usize] = true;
        self.heap.push((self.next(block), block));
        Entry::Miss { evicted }
    }

    fn evict(&mut self) -> Option<u32> {
        let victim = self.victim()?;
        self.resident[victim as usize] = false;
        self.len -= 1;
        Some(victim)
    }

    fn hold(&mut self, block: u32) {
        self.remove(block);
    }

    fn remove(&mut self, block: u32) {
        if std::mem::take(&mut self.resident[block as usize]) {
            self.len -= 1;
        }
    }
}
