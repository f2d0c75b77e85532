//! Kernels launched one by one: `gather`, which no step launches, and every instance of `plan` over rows of
//! made-up masses, where ties, infinities and full rows are more common than in a step.

use kernels_gpu::histogram::{BINS, bin, histogram};
use kernels_gpu::{gather, plan};
use psa::driver::{Driver, DriverError};
use psa::reference::plan::{Goal, Limits, plan as reference_plan};
use psa_codegen::Region;
use psa_tests::Rng;

use super::{Extent, Options, Verdict};
use crate::target::{download, upload};

/// One launch.
pub struct Case {
    /// For people.
    pub name: String,
    what: What,
}

enum What {
    Gather { ctas: u32, slots: usize, slot_bytes: usize },
    Histogram { heads: usize, blocks: usize },
    Plan { capacity: usize, tokens: Vec<usize>, group: usize, target: f32, budget: u32, seed: u64 },
}

/// The cases of an extent.
pub fn all(options: &Options<'_>) -> Vec<Case> {
    let mut cases = Vec::new();
    let ctas: &[u32] = if options.extent == Extent::Smoke { &[2] } else { &[1, 3, 16] };
    for &ctas in ctas {
        for slot_bytes in [4096, 8192, 2560] {
            let what = What::Gather { ctas, slots: 10, slot_bytes };
            cases.push(Case { name: format!("gather of {slot_bytes}-byte slots on {ctas} CTAs"), what });
        }
    }
    for (heads, blocks) in [(1, 1), (3, 33), (32, 2048)] {
        let what = What::Histogram { heads, blocks };
        cases.push(Case { name: format!("histogram of {heads} heads of {blocks} blocks"), what });
    }
    for capacity in [512usize, 2048, 8192] {
        let all = 16 * capacity;
        let runs: &[(usize, f32, u32)] = match options.extent {
            Extent::Smoke => &[(all / 3, 0.9, u32::MAX)],
            Extent::Quick => &[(all, 0.95, u32::MAX), (all - 7, 0.0, 40)],
            Extent::Full => {
                &[(all, 0.95, u32::MAX), (all - 7, 0.0, 40), (all, 1.0, u32::MAX), (all / 2 + 1, 0.5, 20)]
            }
        };
        for (i, &(tokens, target, budget)) in runs.iter().enumerate() {
            let tokens = if options.extent == Extent::Full { vec![tokens, 17, 1] } else { vec![tokens] };
            let seed = options.seed + (capacity + i) as u64;
            let name =
                format!("plan of {tokens:?} tokens, target {target}, capacity {capacity}, seed {seed}");
            let what = What::Plan { capacity, tokens, group: 1 + 2 * i, target, budget, seed };
            cases.push(Case { name, what });
        }
    }
    cases
}

impl Case {
    /// Launches and compares.
    pub fn run(&self, driver: &mut dyn Driver) -> Verdict {
        let mut held = Vec::new();
        let verdict = match &self.what {
            What::Gather { ctas, slots, slot_bytes } => {
                run_gather(driver, &mut held, *ctas, *slots, *slot_bytes)
            }
            What::Histogram { heads, blocks } => run_histogram(driver, &mut held, *heads, *blocks),
            What::Plan { capacity, tokens, group, target, budget, seed } => {
                let masses = Masses { tokens, group: *group, seed: *seed };
                run_plan(driver, &mut held, *capacity, &masses, *target, *budget)
            }
        };
        for region in held {
            driver.free(region.address()).map_err(text)?;
        }
        verdict
    }
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn run_gather(
    driver: &mut dyn Driver,
    held: &mut Vec<Region>,
    ctas: u32,
    slots: usize,
    slot_bytes: usize,
) -> Verdict {
    let source: Vec<u8> = (0..slots * slot_bytes).map(|i| (i * 7 + i / slot_bytes) as u8).collect();
    let pairs: Vec<u32> = (0..slots as u32 - 2).flat_map(|i| [(i * 3 + 1) % slots as u32, i]).collect();
    let mut put = |data: &[u8], what: &str| -> Result<Region, DriverError> {
        let region = upload(driver, data, what)?;
        held.push(region);
        Ok(region)
    };
    let from = put(&source, "source").map_err(text)?;
    let to = put(&vec![0xee; slots * slot_bytes], "target").map_err(text)?;
    let list = put(bytemuck::cast_slice(&pairs), "pairs").map_err(text)?;
    let args = gather::gather::Args {
        source: from.input(),
        target: to.in_out(),
        pairs: list.input(),
        count: (pairs.len() / 2) as u32,
        slot_bytes: slot_bytes as u32,
    };
    let launch = gather::gather::launch([ctas, 1, 1], args).map_err(text)?;
    driver.launch(&launch).map_err(text)?;
    let got: Vec<u8> = download(driver, to, slots * slot_bytes).map_err(text)?;
    let mut want = vec![0xeeu8; slots * slot_bytes];
    for pair in pairs.chunks(2) {
        let (s, t) = (pair[0] as usize * slot_bytes, pair[1] as usize * slot_bytes);
        want[t..t + slot_bytes].copy_from_slice(&source[s..s + slot_bytes]);
    }
    match want.iter().zip(&got).position(|(a, b)| a != b) {
        None => Ok(0.0),
        Some(at) => Err(format!("slot {} differs at byte {}", at / slot_bytes, at % slot_bytes)),
    }
}

fn run_histogram(driver: &mut dyn Driver, held: &mut Vec<Region>, heads: usize, blocks: usize) -> Verdict {
    let mut rng = Rng(blocks as u64);
    let masses: Vec<f32> = (0..heads * blocks).map(|_| -8.0 + 8.0 * rng.normal()).collect();
    let mut put = |data: &[u8], what: &str| -> Result<Region, String> {
        let region = upload(driver, data, what).map_err(text)?;
        held.push(region);
        Ok(region)
    };
    let args = histogram::Args {
        log_mass: put(bytemuck::cast_slice(&masses), "log_mass")?.input(),
        peak: put(bytemuck::cast_slice(&vec![4.0f32; heads]), "peak")?.input(),
        lens: put(bytemuck::bytes_of(&(16 * blocks as u32)), "lens")?.input(),
        counts: put(&vec![0xff; 4 * heads * BINS], "counts")?.output(),
        heads: heads as u32,
        max_blocks: blocks as u32,
    };
    driver.launch(&histogram::launch([heads as u32, 1, 1], args).map_err(text)?).map_err(text)?;
    let got: Vec<u32> = download(driver, args.counts.region(), heads * BINS).map_err(text)?;
    let mut want = vec![0u32; heads * BINS];
    for (i, &mass) in masses.iter().enumerate() {
        want[i / blocks * BINS + bin(4.0, mass) as usize] += 1;
    }
    match want.iter().zip(&got).position(|(a, b)| a != b) {
        None => Ok(0.0),
        Some(at) => Err(format!("head {}, bin {}: {} for {}", at / BINS, at % BINS, got[at], want[at])),
    }
}

/// Rows of estimated masses.
struct Masses<'a> {
    /// Of each batch entry.
    tokens: &'a [usize],
    /// Query heads.
    group: usize,
    seed: u64,
}

const SINK: usize = 1;
const RECENT: usize = 2;

impl Masses<'_> {
    /// Log2 masses of one batch entry, `[group][max_blocks]`: clustered, with exact ties, some beyond any
    /// difference that f32 can tell.
    fn rows(&self, entry: usize, max_blocks: usize) -> Vec<Vec<f32>> {
        let mut rng = Rng(self.seed.wrapping_mul(77) + entry as u64);
        (0..self.group)
            .map(|_| {
                (0..max_blocks)
                    .map(|_| match rng.below(16) {
                        0 => -3.5,
                        1 => -1e30,
                        2 => 6.0 + rng.normal(),
                        _ => -4.0 + 3.0 * rng.normal(),
                    })
                    .collect()
            })
            .collect()
    }
}

fn run_plan(
    driver: &mut dyn Driver,
    held: &mut Vec<Region>,
    capacity: usize,
    masses: &Masses<'_>,
    target: f32,
    budget: u32,
) -> Verdict {
    let (batch, group, max_blocks) = (masses.tokens.len(), masses.group, capacity);
    let rows: Vec<Vec<Vec<f32>>> = (0..batch).map(|b| masses.rows(b, max_blocks)).collect();
    let flat: Vec<f32> = rows.iter().flatten().flatten().copied().collect();
    let lens: Vec<u32> = masses.tokens.iter().map(|&n| n as u32).collect();
    let target = kernels_gpu::numeric::fixed_target(target);
    let mut put = |data: &[u8], what: &str| -> Result<Region, String> {
        let region = upload(driver, data, what).map_err(text)?;
        held.push(region);
        Ok(region)
    };
    let log_mass = put(bytemuck::cast_slice(&flat), "log_mass")?;
    let lens_at = put(bytemuck::cast_slice(&lens), "lens")?;
    let budgets = put(bytemuck::cast_slice(&vec![budget; batch]), "budget")?;
    let order = put(&vec![0xff; 4 * batch * max_blocks], "order")?;
    let count = put(&vec![0xff; 4 * batch], "count")?;
    let peak = put(&vec![0xff; 4 * batch * group], "peak")?;
    let rest = put(&vec![0xff; 8 * batch * group], "rest")?;
    let args = plan::plan::Args {
        log_mass: log_mass.input(),
        lens: lens_at.input(),
        budget: budgets.input(),
        order: order.output(),
        count: count.output(),
        peak: peak.output(),
        rest: rest.output(),
        target,
        sink: SINK as u32,
        recent: RECENT as u32,
        kv_heads: 1,
        group: group as u32,
        max_blocks: max_blocks as u32,
    };
    let launch = plan::plan::launch(capacity, [1, batch as u32, 1], args).map_err(text)?;
    driver.launch(&launch).map_err(text)?;
    let order: Vec<u32> = download(driver, order, batch * max_blocks).map_err(text)?;
    let count: Vec<u32> = download(driver, count, batch).map_err(text)?;
    let peak: Vec<f32> = download(driver, peak, batch * group).map_err(text)?;
    let rest: Vec<u64> = download(driver, rest, batch * group).map_err(text)?;
    for (b, &tokens) in masses.tokens.iter().enumerate() {
        let blocks = kernels_gpu::layout::blocks(tokens);
        let heads: Vec<Vec<f32>> = rows[b].iter().map(|row| row[..blocks].to_vec()).collect();
        let limits = Limits::new(tokens, SINK, RECENT);
        let want = reference_plan(&heads, limits, Goal::of_target(target), budget);
        let head = b * group..(b + 1) * group;
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let order = &order[b * max_blocks..][..blocks];
        if let Some(rank) = want.order.iter().zip(order).position(|(a, b)| a != b) {
            return Err(format!("entry {b}, rank {rank}: block {} for {}", order[rank], want.order[rank]));
        }
        if want.count as u32 != count[b] {
            return Err(format!("entry {b}: count {} for {}", count[b], want.count));
        }
        if bits(&want.peak) != bits(&peak[head.clone()]) || want.rest != rest[head] {
            return Err(format!("entry {b}: peak or rest differ"));
        }
    }
    Ok(0.0)
}
