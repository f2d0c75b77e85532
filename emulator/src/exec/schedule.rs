//! The schedule: which CTA runs when, and which of its warps.
//!
//! Up to `resident_ctas` CTAs are under way. By seed 0 they take turns, and within a CTA every warp
//! runs a quantum of its turn. Other seeds shuffle their order, and choose the CTA by one generator
//! and its warp and quantum by a generator of the CTA's own: what a CTA does by itself depends on no
//! other CTA, which is what lets `parallel.rs` run it alone.

use super::{Cta, Launch, Machine, State};

/// xorshift, enough for schedules.
pub(super) struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) % n.max(1) as u64) as usize
    }
}

/// The CTAs of a grid in the order in which they start.
pub(super) struct Order {
    grid: [u64; 3],
    /// Numbers of the CTAs, when they are not in order.
    shuffled: Option<Vec<u32>>,
}

impl Order {
    pub fn new(l: &Launch<'_>, rng: &mut Rng) -> Order {
        let grid = l.grid.map(u64::from);
        let total = grid[0] * grid[1] * grid[2];
        let shuffled = (l.options.seed != 0 && total <= 1 << 22).then(|| {
            let mut v: Vec<u32> = (0..total as u32).collect();
            for i in (1..v.len()).rev() {
                v.swap(i, rng.below(i + 1));
            }
            v
        });
        Order { grid, shuffled }
    }

    pub fn total(&self) -> u64 {
        self.grid[0] * self.grid[1] * self.grid[2]
    }

    /// Index and number in the grid of the CTA that starts as number `order`.
    pub fn cta(&self, order: u64) -> ([u32; 3], u64) {
        let linear = self.shuffled.as_ref().map_or(order, |s| u64::from(s[order as usize]));
        let [gx, gy, _] = self.grid;
        ([(linear % gx) as u32, (linear / gx % gy) as u32, (linear / (gx * gy)) as u32], linear)
    }
}

impl Machine<'_> {
    pub(super) fn run(&mut self) {
        let seed = self.l.options.seed;
        let mut rng = Rng::new(seed);
        let order = Order::new(&self.l, &mut rng);
        let total = order.total();
        let resident = self.l.resident;
        let mut ctas: Vec<Cta> = Vec::new();
        let mut spare: Vec<Cta> = Vec::new();
        let mut started = 0u64;
        let mut turn = 0usize;
        while !self.stop {
            while ctas.len() < resident && started < total {
                let mut cta = spare.pop().unwrap_or_else(|| self.new_cta());
                self.start_cta(&mut cta, &order, started);
                ctas.push(cta);
                started += 1;
            }
            if ctas.is_empty() {
                break;
            }
            let i = if seed == 0 {
                turn = if turn + 1 < ctas.len() { turn + 1 } else { 0 };
                turn
            } else {
                rng.below(ctas.len())
            };
            if !self.slice(&mut ctas[i]) {
                spare.push(ctas.swap_remove(i));
            }
            if self.steps > self.l.options.max_steps && !self.stop {
                self.step_limit(&ctas);
            }
        }
        ctas.into_iter().chain(spare).for_each(|c| self.l.spare.give_shared(c.records));
    }

    /// Runs warps of a CTA; false when it has ended. By seed 0 every warp once, by others one warp
    /// for one quantum.
    pub(super) fn slice(&mut self, cta: &mut Cta) -> bool {
        (self.cta_id, self.cta_order) = (cta.id, cta.order);
        let n = cta.warps.len();
        let mut ran = false;
        if self.l.options.seed == 0 {
            for w in 0..n {
                ran |= self.run_warp(cta, w, 2048);
                if self.stop {
                    return false;
                }
                if cta.bar_event {
                    self.settle(cta);
                }
            }
        } else {
            let (start, quantum) = (cta.rng.below(n), 1 + cta.rng.below(96) as u32);
            for k in 0..n {
                if self.run_warp(cta, (start + k) % n, quantum) {
                    ran = true;
                    break;
                }
            }
        }
        if self.stop {
            return false;
        }
        if cta.bar_event {
            self.settle(cta);
        }
        if !ran {
            if cta.warps.iter().all(|w| w.groups.is_empty()) {
                return false;
            }
            let runnable = cta.warps.iter().any(|w| w.groups.iter().any(|g| g.state == State::Ready));
            if !runnable {
                self.unblock(cta);
            }
        }
        true
    }
}
