//! Kernels launched one by one: `gather`, which no step launches, and every instance of `plan` over rows of
//! made-up masses, where ties, infinities and full rows are more common than in a step.

use kernels_gpu::gather;
use kernels_gpu::histogram::{BINS, bin, histogram};
use kernels_gpu::layout::MAX_BLOCKS;
use psa::device::plans::ranked;
use psa::driver::{Driver, DriverError};
use psa_codegen::Region;
use psa_tests::Rng;
use psa_tests::plans::MadeUpPlan;

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
    Plan(MadeUpPlan),
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
    // The instances, and two rows that are planned in passes.
    for capacity in [512usize, 2048, 8192, 20_000, MAX_BLOCKS] {
        if options.extent == Extent::Smoke && capacity == MAX_BLOCKS {
            continue;
        }
        let all = 16 * capacity;
        let runs: &[(usize, f32, u32)] = match options.extent {
            // More than one CTA sorts, where that is what the case is for.
            Extent::Smoke => &[(if capacity > 8192 { all / 2 } else { all / 3 }, 0.9, u32::MAX)],
            Extent::Quick => &[(all, 0.95, u32::MAX), (all - 7, 0.0, 40)],
            Extent::Full => {
                &[(all, 0.95, u32::MAX), (all - 7, 0.0, 40), (all, 1.0, u32::MAX), (all / 2 + 1, 0.5, 20)]
            }
        };
        for (i, &(tokens, target, budget)) in runs.iter().enumerate() {
            let tokens = if options.extent == Extent::Full { vec![tokens, 17, 1] } else { vec![tokens] };
            let seed = options.seed + (capacity + i) as u64;
            let name = format!("plan of {tokens:?} tokens, target {target}, seed {seed}");
            let what = What::Plan(MadeUpPlan { tokens, group: 1 + 2 * i, target, budget, seed });
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
            What::Plan(plan) => run_plan(driver, &mut held, plan),
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

fn run_plan(driver: &mut dyn Driver, held: &mut Vec<Region>, plan: &MadeUpPlan) -> Verdict {
    let placed = plan.place(driver).map_err(text)?;
    held.extend(placed.regions());
    let launches = ranked(&driver.limits(), placed.shape, &placed.batch, &placed.addresses, placed.goal);
    for launch in launches.map_err(text)? {
        driver.launch(&launch).map_err(text)?;
    }
    plan.check(driver, &placed).map(|()| 0.0)
}
