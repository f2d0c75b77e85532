//! Rows of made-up masses, and a plan of them on any device held against the reference.

use kernels_gpu::layout::blocks;
use kernels_gpu::numeric::fixed_target;
use psa::device::launches::BatchAddresses;
use psa::device::plans::{PlanAddresses, PlanGoal, PlanScratch, PlanShape};
use psa::driver::{Driver, DriverError};
use psa::reference::plan::{Goal, Limits, plan};
use psa_codegen::Region;

use crate::Rng;

/// Forced blocks at the start and at the end.
pub const FORCED: [usize; 2] = [1, 2];

/// A batch of rows of one KV head, and what is asked for.
#[derive(Clone, Debug)]
pub struct MadeUpPlan {
    /// Tokens of each row.
    pub tokens: Vec<usize>,
    /// Query heads.
    pub group: usize,
    /// Share of the mass that is predicted; 0: the budget alone.
    pub target: f32,
    /// Blocks of each row.
    pub budget: u32,
    /// Of the masses.
    pub seed: u64,
}

/// A plan's memory on a device.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// Rows.
    pub shape: PlanShape,
    /// Their lengths.
    pub batch: BatchAddresses,
    /// Buffers.
    pub addresses: PlanAddresses,
    /// What is asked for.
    pub goal: PlanGoal,
}

impl Placed {
    /// All memory that it holds.
    pub fn regions(&self) -> [Region; 10] {
        let a = &self.addresses;
        let PlanScratch { keys, run_peak, run_mass } = a.scratch;
        let lens = self.batch.lens;
        [a.log_mass, a.budget, a.order, a.count, a.peak, a.rest, lens, keys, run_peak, run_mass]
    }
}

impl MadeUpPlan {
    fn max_blocks(&self) -> usize {
        blocks(self.tokens.iter().copied().max().unwrap_or(0)).next_multiple_of(4).max(4)
    }

    /// log2 masses of one row, `[group][max_blocks]`: clustered, with exact ties, some beyond any difference that
    /// f32 can tell.
    fn row(&self, entry: usize) -> Vec<Vec<f32>> {
        let mut rng = Rng(self.seed.wrapping_mul(77) + entry as u64);
        let mut mass = || match rng.below(16) {
            0 => -3.5,
            1 => -1e30,
            2 => 6.0 + rng.normal(),
            _ => -4.0 + 3.0 * rng.normal(),
        };
        (0..self.group).map(|_| (0..self.max_blocks()).map(|_| mass()).collect()).collect()
    }

    /// The plan's inputs, and room for what all ways of planning write, filled with ones.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn place(&self, driver: &mut dyn Driver) -> Result<Placed, DriverError> {
        let (n, group, max_blocks) = (self.tokens.len(), self.group, self.max_blocks());
        let mut put = |data: &[u8], what: &str| -> Result<Region, DriverError> {
            let region = driver.region(data.len(), what)?;
            driver.upload(region.address(), data)?;
            Ok(region)
        };
        let masses: Vec<f32> = (0..n).flat_map(|b| self.row(b)).flatten().collect();
        let lens: Vec<u32> = self.tokens.iter().map(|&t| t as u32).collect();
        let lens_at = put(bytemuck::cast_slice(&lens), "lens")?;
        let [keys, run_peak, run_mass] = PlanScratch::bytes(n, group, max_blocks, usize::MAX);
        let addresses = PlanAddresses {
            log_mass: put(bytemuck::cast_slice(&masses), "log_mass")?,
            budget: put(bytemuck::cast_slice(&vec![self.budget; n]), "budget")?,
            order: put(&vec![0xff; 4 * n * max_blocks], "order")?,
            count: put(&vec![0xff; 4 * n], "count")?,
            peak: put(&vec![0xff; 4 * n * group], "peak")?,
            rest: put(&vec![0xff; 8 * n * group], "rest")?,
            scratch: PlanScratch {
                keys: put(&vec![0xff; keys], "keys")?,
                run_peak: put(&vec![0xff; run_peak], "run_peak")?,
                run_mass: put(&vec![0xff; run_mass], "run_mass")?,
            },
        };
        let max_tokens = self.tokens.iter().copied().max().unwrap_or(0);
        let batch = BatchAddresses { batch: n, max_tokens, seqs: Region::EMPTY, lens: lens_at };
        let [sink, recent] = FORCED;
        let goal = PlanGoal { target: fixed_target(self.target), sink, recent };
        Ok(Placed { shape: PlanShape { kv_heads: 1, group, max_blocks }, batch, addresses, goal })
    }

    /// The first difference between what a device wrote and the reference's plan.
    ///
    /// # Errors
    /// The difference, or the driver's error.
    pub fn check(&self, driver: &mut dyn Driver, placed: &Placed) -> Result<(), String> {
        let (n, group, max_blocks) = (self.tokens.len(), self.group, self.max_blocks());
        let a = &placed.addresses;
        let (mut order, mut count) = (vec![0u32; n * max_blocks], vec![0u32; n]);
        let (mut peak, mut rest) = (vec![0f32; n * group], vec![0u64; n * group]);
        let mut get = |region: Region, data: &mut [u8]| {
            driver.download(region.address(), data).map_err(|e| e.to_string())
        };
        get(a.order, bytemuck::cast_slice_mut(&mut order))?;
        get(a.count, bytemuck::cast_slice_mut(&mut count))?;
        get(a.peak, bytemuck::cast_slice_mut(&mut peak))?;
        get(a.rest, bytemuck::cast_slice_mut(&mut rest))?;
        for (b, &tokens) in self.tokens.iter().enumerate() {
            let blocks = blocks(tokens);
            let rows: Vec<Vec<f32>> = self.row(b).iter().map(|row| row[..blocks].to_vec()).collect();
            let limits = Limits::new(tokens, FORCED[0], FORCED[1]);
            let want = plan(&rows, limits, Goal::of_target(placed.goal.target), self.budget);
            let head = b * group..(b + 1) * group;
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let order = &order[b * max_blocks..][..blocks];
            if want.count as u32 != count[b] {
                return Err(format!("entry {b}: count {} for {}", count[b], want.count));
            }
            if let Some(rank) = want.order.iter().zip(order).position(|(a, b)| a != b) {
                return Err(format!(
                    "entry {b}, rank {rank}: block {} for {}",
                    order[rank], want.order[rank]
                ));
            }
            if bits(&want.peak) != bits(&peak[head.clone()]) || want.rest != rest[head] {
                return Err(format!("entry {b}: peak or rest differ"));
            }
        }
        Ok(())
    }
}
