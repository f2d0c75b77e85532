//! CLOCK, as second chance in a queue: the hand is the front of the queue. A read sets the block's mark; a marked
//! block at the front loses the mark and goes to the back, an unmarked one is the victim.
//!
//! O(1) amortised: the hand passes a block only after a read marked it, and that read pays for the pass.

use super::lists::Lists;
use super::{Entry, Residency};

/// CLOCK over the whole pool.
pub struct Clock {
    queue: Lists,
    marked: Vec<bool>,
    capacity: usize,
    len: usize,
}

impl Clock {
    /// A pool of `capacity` for blocks `0..blocks`.
    pub fn new(blocks: usize, capacity: usize) -> Clock {
        Clock { queue: Lists::new(blocks, 1), marked: vec![false; blocks], capacity, len: 0 }
    }

    fn victim(&mut self) -> Option<u32> {
        while let Some(block) = self.queue.front(0) {
            self.queue.remove(block);
            if !std::mem::take(&mut self.marked[block as usize]) {
                return Some(block);
            }
            self.queue.push_back(0, block);
        }
        None
    }
}

impl Residency for Clock {
    fn capacity(&self) -> usize {
        self.capacity
    }

    fn len(&self) -> usize {
        self.len
    }

    fn contains(&self, block: u32) -> bool {
        self.queue.in_list(block)
    }

    fn read(&mut self, block: u32, _weight: f32) -> Entry {
        if self.queue.in_list(block) {
            self.marked[block as usize] = true;
            return Entry::Hit;
        }
        self.bring(block)
    }

    fn bring(&mut self, block: u32) -> Entry {
        if self.queue.in_list(block) {
            return Entry::Hit;
        }
        if self.capacity == 0 {
            return Entry::Miss { evicted: None };
        }
        let evicted = if self.len == self.capacity { self.victim() } else { None };
        self.len += usize::from(evicted.is_none());
        self.queue.push_back(0, block);
        Entry::Miss { evicted }
    }

    fn evict(&mut self) -> Option<u32> {
        let victim = self.victim()?;
        self.len -= 1;
        Some(victim)
    }

    fn hold(&mut self, block: u32) {
        self.remove(block);
    }

    fn remove(&mut self, block: u32) {
        if self.queue.in_list(block) {
            self.queue.remove(block);
            self.marked[block as usize] = false;
            self.len -= 1;
        }
    }
}
