//! Blocks, slots and pages: who is free, how often each is held, and where its bytes are.
//!
//! A **block** is the K and V of 16 tokens of one (layer, KV head). Its number is also its place in the host tier
//! where there is one, so that a block always has a place to go. A **slot** is a place in the device's arena; a block
//! has one or none. Without a host tier there are as many blocks as slots, and each held block has a slot.
//!
//! All lists are stacks: allocation and release are O(1), and any free slot fits any block.
//!
//! Trap: only a block with a valid copy in the host tier ([`State::Saved`]) is a candidate for eviction, and only
//! while nobody holds it for the step at hand.

use crate::residency::Residency;
use std::fmt;

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// Where the valid bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// On the device only: it may still be written.
    Open,
    /// On the device only, complete, and waiting to be saved.
    Queued,
    /// In the host tier, and on the device while it has a slot.
    Saved,
}

/// What is known of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Rows that hold it.
    pub refs: u32,
    /// Its place on the device, or [`NONE`].
    pub slot: u32,
    /// Entry in the tables of the sequences that hold it, the same in each.
    pub place: u32,
    /// A sequence that holds it, or held it once.
    pub owner: u32,
    /// Tokens that are in it.
    pub fill: u8,
    pub state: State,
    /// The step at hand needs it on the device.
    pub in_use: bool,
}

const FREE: Block =
    Block { refs: 0, slot: NONE, place: 0, owner: 0, fill: 0, state: State::Open, in_use: false };

/// All blocks, slots and pages of a pool.
pub(super) struct Blocks {
    pub block: Vec<Block>,
    pub free: Vec<u32>,
    pub free_slots: Vec<u32>,
    pub page_refs: Vec<u32>,
    pub free_pages: Vec<u32>,
    /// Blocks that more than one row holds.
    pub shared: usize,
    /// Chooses victims among the candidates; none without a host tier.
    pub residency: Option<Box<dyn Residency>>,
    /// In use by the step at hand: no victims until it is over.
    pub held: Vec<u32>,
    /// How many of them the residency policy still lists. They stay there, as most are not in the way of a victim and
    /// moving them out and back would cost more than the reads.
    listed: usize,
    /// Those that it does not list, and is to list again.
    aside: Vec<u32>,
    /// Complete and to be saved; entries whose state has changed since are stale.
    pub queue: Vec<u32>,
}

impl Blocks {
    pub fn new(blocks: usize, slots: usize, pages: usize, residency: Option<Box<dyn Residency>>) -> Blocks {
        Blocks {
            block: vec![FREE; blocks],
            // Popped from the end: the lowest first.
            free: (0..blocks as u32).rev().collect(),
            free_slots: (0..slots as u32).rev().collect(),
            page_refs: vec![0; pages],
            free_pages: (0..pages as u32).rev().collect(),
            shared: 0,
            residency,
            held: vec![],
            listed: 0,
            aside: vec![],
            queue: vec![],
        }
    }

    /// Blocks that could leave the device now.
    pub fn candidates(&self) -> usize {
        self.residency.as_ref().map_or(0, |r| r.len() - self.listed)
    }

    /// Takes a free block and gives it `slot`. The caller has checked that there is one.
    pub fn take(&mut self, slot: u32, place: u32, owner: u32) -> u32 {
        let id = self.free.pop().unwrap_or(NONE);
        self.block[id as usize] = Block { refs: 1, slot, place, owner, ..FREE };
        id
    }

    /// One more row holds the block.
    pub fn share(&mut self, id: u32) {
        let block = &mut self.block[id as usize];
        block.refs += 1;
        self.shared += usize::from(block.refs == 2);
    }

    /// One row fewer holds the block; it is free with the last.
    pub fn release(&mut self, id: u32) {
        let block = &mut self.block[id as usize];
        block.refs -= 1;
        match block.refs {
            0 => {
                if block.slot != NONE {
                    self.free_slots.push(block.slot);
                }
                self.unlist(id);
                self.block[id as usize] = FREE;
                if let Some(residency) = &mut self.residency {
                    residency.remove(id);
                }
                self.free.push(id);
            }
            1 => self.shared -= 1,
            _ => {}
        }
    }

    /// A page for a group that is full. The caller's slots guarantee that there is one.
    pub fn take_page(&mut self) -> u32 {
        let page = self.free_pages.pop().unwrap_or(NONE);
        self.page_refs[page as usize] = 1;
        page
    }

    pub fn release_page(&mut self, page: u32) {
        let refs = &mut self.page_refs[page as usize];
        *refs -= 1;
        if *refs == 0 {
            self.free_pages.push(page);
        }
    }

    /// The block is about to be written: what the host tier holds of it will not be all of it. True where that was so.
    pub fn open(&mut self, id: u32) -> bool {
        let state = std::mem::replace(&mut self.block[id as usize].state, State::Open);
        self.unlist(id);
        state == State::Saved
    }

    /// The block will not be written again: it is to be saved.
    pub fn enqueue(&mut self, id: u32) {
        let block = &mut self.block[id as usize];
        if block.state == State::Open {
            block.state = State::Queued;
            self.queue.push(id);
        }
    }

    /// The block's bytes have reached the host tier.
    pub fn saved(&mut self, id: u32) {
        self.block[id as usize].state = State::Saved;
        self.candidate(id);
    }

    /// Keeps the block on the device until [`Blocks::release_held`].
    pub fn hold(&mut self, id: u32) {
        let Some(residency) = &self.residency else { return };
        if std::mem::replace(&mut self.block[id as usize].in_use, true) {
            return;
        }
        self.held.push(id);
        if residency.contains(id) {
            self.listed += 1;
        } else {
            self.aside.push(id);
        }
    }

    /// A block that may leave, taken out of the candidates.
    pub fn evict(&mut self) -> Option<u32> {
        loop {
            let victim = self.residency.as_mut()?.evict()?;
            if !self.block[victim as usize].in_use {
                return Some(victim);
            }
            self.listed -= 1;
            self.aside.push(victim);
        }
    }

    /// The step is over: what was held may be evicted again.
    pub fn release_held(&mut self) {
        let (held, aside) = (std::mem::take(&mut self.held), std::mem::take(&mut self.aside));
        for &id in &held {
            self.block[id as usize].in_use = false;
        }
        self.listed = 0;
        for &id in &aside {
            self.candidate(id);
        }
        // Their memory serves the next step.
        (self.held, self.aside) = (held, aside);
        self.held.clear();
        self.aside.clear();
    }

    /// The block is no candidate any more; its past stays known.
    pub fn unlist(&mut self, id: u32) {
        if let Some(residency) = &mut self.residency
            && residency.contains(id)
        {
            residency.hold(id);
            self.listed -= usize::from(self.block[id as usize].in_use);
        }
    }

    fn candidate(&mut self, id: u32) {
        let Block { refs, slot, state, in_use, .. } = self.block[id as usize];
        let Some(residency) = &mut self.residency else { return };
        if in_use {
            self.aside.push(id);
        } else if refs > 0 && slot != NONE && state == State::Saved {
            residency.bring(id);
        }
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocks")
            .field("blocks", &self.block.len())
            .field("free", &self.free.len())
            .field("free_slots", &self.free_slots.len())
            .field("free_pages", &self.free_pages.len())
            .field("shared", &self.shared)
            .field("candidates", &self.candidates())
            .finish_non_exhaustive()
    }
}
