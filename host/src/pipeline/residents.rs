//! Which blocks have a slot on the device, and who has to leave: CLOCK with small counters (a read raises a block's, the
//! hand lowers it and evicts at zero), which is frequency with decay in O(1).
//!
//! A block is a number: (layer, row, block). A slot is not given away while it is *stamped* (the plan of the layer at hand
//! reads it) or held: by the open group, which only the device has, or by a fetch ahead that no kernel has waited for.
//! What the fetch stream writes next comes behind that fetch, so a demand may take its slot; a kernel may not.

/// No slot.
pub(super) const NONE: u32 = u32::MAX;
/// Highest counter: turns of the hand that an often read block survives.
const MOST: u8 = 7;

/// Who keeps a slot's block on the device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Hold {
    Nobody,
    /// A fetch ahead that is under way.
    Ahead,
    /// The open group.
    Open,
}

#[derive(Clone, Copy)]
struct Slot {
    block: u32,
    count: u8,
    hold: Hold,
    stamp: u64,
}

/// Slots and their blocks.
pub(super) struct Residents {
    /// Slot of each block.
    of_block: Vec<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    hand: usize,
    stamp: u64,
}

impl Residents {
    pub(super) fn new(blocks: usize, slots: usize) -> Residents {
        Residents {
            of_block: vec![NONE; blocks],
            slots: vec![Slot { block: NONE, count: 0, hold: Hold::Nobody, stamp: 0 }; slots],
            free: (0..slots as u32).rev().collect(),
            hand: 0,
            stamp: 0,
        }
    }

    /// Slot of a block, if it is on the device.
    pub(super) fn slot(&self, block: usize) -> Option<u32> {
        Some(self.of_block[block]).filter(|&slot| slot != NONE)
    }

    /// From here on, what was stamped before may leave.
    pub(super) fn begin_layer(&mut self) {
        self.stamp += 1;
    }

    /// The layer at hand reads the block. True where it is on the device.
    pub(super) fn read(&mut self, block: usize) -> bool {
        let Some(slot) = self.slot(block) else {
            return false;
        };
        let stamp = self.stamp;
        let slot = &mut self.slots[slot as usize];
        slot.count = (slot.count + 2).min(MOST);
        slot.stamp = stamp;
        true
    }

    pub(super) fn hold(&mut self, block: usize, hold: Hold) {
        if let Some(slot) = self.slot(block) {
            self.slots[slot as usize].hold = hold;
        }
    }

    /// A slot for a block that has none, of one held by no more than `most`; none where there is no such.
    pub(super) fn take(&mut self, block: usize, hold: Hold, most: Hold) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => self.evict(most)?,
        };
        self.slots[slot as usize] = Slot { block: block as u32, count: 1, hold, stamp: self.stamp };
        self.of_block[block] = slot;
        Some(slot)
    }

    /// A slot for a guess: a free one, or one near the hand whose counter is at zero. It costs nobody a turn, so guesses
    /// cannot wear out what is read.
    pub(super) fn take_for_guess(&mut self, block: usize) -> Option<u32> {
        /// Slots that are looked at.
        const NEAR: usize = 64;
        let idle = |slot: &Slot| slot.count == 0 && slot.hold == Hold::Nobody && slot.stamp != self.stamp;
        let near = (self.hand..self.slots.len()).chain(0..self.hand).take(NEAR);
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let index = near.into_iter().find(|&index| idle(&self.slots[index]))?;
                self.of_block[self.slots[index].block as usize] = NONE;
                index as u32
            }
        };
        self.slots[slot as usize] = Slot { block: block as u32, count: 0, hold: Hold::Ahead, stamp: 0 };
        self.of_block[block] = slot;
        Some(slot)
    }

    fn evict(&mut self, most: Hold) -> Option<u32> {
        // Every counter reaches zero within MOST turns.
        for _ in 0..self.slots.len() * (MOST as usize + 1) {
            let index = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[index];
            if slot.hold > most || slot.stamp == self.stamp {
                continue;
            }
            if slot.count > 0 {
                slot.count -= 1;
                continue;
            }
            self.of_block[slot.block as usize] = NONE;
            return Some(index as u32);
        }
        None
    }

    /// Takes a block off the device.
    pub(super) fn drop_block(&mut self, block: usize) {
        if let Some(slot) = self.slot(block) {
            self.of_block[block] = NONE;
            self.free.push(slot);
        }
    }

    /// Slots that could be given away now.
    pub(super) fn available(&self, most: Hold) -> usize {
        let may = |slot: &&Slot| slot.hold <= most && slot.stamp != self.stamp;
        self.free.len() + self.slots.iter().filter(|s| s.block != NONE).filter(may).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(residents: &mut Residents, block: usize) -> Option<u32> {
        residents.take(block, Hold::Nobody, Hold::Nobody)
    }

    #[test]
    fn what_is_held_or_read_by_the_layer_at_hand_stays() {
        let mut residents = Residents::new(10, 3);
        for block in 0..3 {
            take(&mut residents, block).unwrap();
        }
        residents.begin_layer();
        residents.hold(0, Hold::Open);
        assert!(residents.read(1));
        // 2 is the only one that may leave, then nothing may.
        assert_eq!(residents.available(Hold::Ahead), 1);
        assert_eq!(take(&mut residents, 5), Some(2));
        assert_eq!((residents.slot(2), residents.slot(5)), (None, Some(2)));
        assert_eq!(take(&mut residents, 6), None);
        residents.begin_layer();
        residents.hold(1, Hold::Ahead);
        residents.hold(5, Hold::Ahead);
        assert_eq!(take(&mut residents, 6), None, "guesses under way stay");
        assert!(residents.take(6, Hold::Nobody, Hold::Ahead).is_some(), "but for a demand");
        assert!(residents.slot(0).is_some(), "and the open one stays in any case");
    }

    #[test]
    fn a_guess_evicts_only_what_nobody_has_read_lately() {
        let mut residents = Residents::new(10, 2);
        take(&mut residents, 0).unwrap();
        take(&mut residents, 1).unwrap();
        residents.begin_layer();
        // Both have their first turn still.
        assert_eq!(residents.take_for_guess(5), None);
        assert!(take(&mut residents, 2).is_some(), "a demand takes the turns, and one");
        residents.begin_layer();
        let guess = residents.take_for_guess(5);
        assert!(guess.is_some() && residents.slot(5) == guess);
        assert_eq!(take(&mut residents, 6), Some(1 - guess.unwrap()), "a guess under way stays");
    }

    #[test]
    fn a_block_read_often_outlives_one_read_once() {
        let mut residents = Residents::new(100, 4);
        residents.begin_layer();
        for block in 0..4 {
            take(&mut residents, block).unwrap();
        }
        (0..3).for_each(|_| assert!(residents.read(0)));
        for block in 4..12 {
            residents.begin_layer();
            take(&mut residents, block).unwrap();
        }
        assert!(residents.slot(0).is_some());
        assert!((1..4).all(|block| residents.slot(block).is_none()));
    }
}
