//! Doubly linked lists of blocks in two arrays: every operation is O(1), and nothing is allocated after
//! construction. Node `i < blocks` is a block; node `blocks + l` is the sentinel of list `l`, so that a list is
//! a ring and a block leaves its list without knowing which one it is.
//!
//! Trap: a block is in at most one list. Pushing one that is in a list corrupts both; `in_list` asks.

const OUT: u32 = u32::MAX;

#[derive(Clone, Debug)]
pub(super) struct Lists {
    blocks: u32,
    next: Vec<u32>,
    prev: Vec<u32>,
}

impl Lists {
    /// `lists` empty lists over blocks `0..blocks`.
    pub fn new(blocks: usize, lists: usize) -> Lists {
        let mut links = vec![OUT; blocks];
        links.extend(blocks as u32..(blocks + lists) as u32);
        Lists { blocks: blocks as u32, next: links.clone(), prev: links }
    }

    pub fn in_list(&self, block: u32) -> bool {
        self.next[block as usize] != OUT
    }

    pub fn front(&self, list: usize) -> Option<u32> {
        let first = self.next[self.blocks as usize + list];
        (first < self.blocks).then_some(first)
    }

    pub fn push_front(&mut self, list: usize, block: u32) {
        let sentinel = self.blocks + list as u32;
        let next = self.next[sentinel as usize];
        self.link(sentinel, block);
        self.link(block, next);
    }

    pub fn push_back(&mut self, list: usize, block: u32) {
        let sentinel = self.blocks + list as u32;
        let prev = self.prev[sentinel as usize];
        self.link(prev, block);
        self.link(block, sentinel);
    }

    /// Takes a block out of its list; returns that list if it is empty now.
    pub fn remove(&mut self, block: u32) -> Option<usize> {
        let (prev, next) = (self.prev[block as usize], self.next[block as usize]);
        self.link(prev, next);
        self.next[block as usize] = OUT;
        (prev == next && prev >= self.blocks).then(|| (prev - self.blocks) as usize)
    }

    /// Moves all of list `from` to the front of list `to`, in order.
    pub fn splice_front(&mut self, from: usize, to: usize) {
        let (from, to) = (self.blocks + from as u32, self.blocks + to as u32);
        let (first, last) = (self.next[from as usize], self.prev[from as usize]);
        if first == from {
            return;
        }
        let next = self.next[to as usize];
        self.link(to, first);
        self.link(last, next);
        self.link(from, from);
    }

    fn link(&mut self, a: u32, b: u32) {
        self.next[a as usize] = b;
        self.prev[b as usize] = a;
    }
}
