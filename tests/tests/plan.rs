//! `plan` alone, over masses given directly: one CTA a row, and the passes of long rows, against the reference.

use kernels_gpu::layout::{BLOCK, MAX_BLOCKS};
use kernels_gpu::plan::RUN;
use psa::device::plans::{in_one, in_passes, ranked};
use psa::driver::{Driver, Emulated, EmulatedOptions};
use psa_tests::plans::MadeUpPlan;

fn emulated() -> Emulated {
    Emulated::new(EmulatedOptions::default()).unwrap()
}

/// Plans as a step would; says how many launches that took.
fn check(plan: &MadeUpPlan) -> usize {
    let mut driver = emulated();
    let p = plan.place(&mut driver).unwrap();
    let launches = ranked(&driver.limits(), p.shape, &p.batch, &p.addresses, p.goal).unwrap();
    launches.iter().for_each(|launch| driver.launch(launch).unwrap());
    plan.check(&mut driver, &p).unwrap_or_else(|e| panic!("{plan:?}: {e}"));
    launches.len()
}

fn plan(tokens: &[usize], target: f32, budget: u32) -> MadeUpPlan {
    MadeUpPlan { tokens: tokens.to_vec(), group: 2, target, budget, seed: tokens[0] as u64 }
}

#[test]
fn a_million_tokens_are_planned_as_the_reference_does() {
    assert_eq!(MAX_BLOCKS * BLOCK, 1 << 20);
    assert_eq!(check(&plan(&[MAX_BLOCKS * BLOCK], 0.95, u32::MAX)), 6);
}

#[test]
fn every_number_of_runs_agrees_alone_and_beside_short_rows() {
    // One block more than a CTA sorts; runs that end anywhere, exactly, and in a block of one token.
    for (tokens, target, budget) in [
        (vec![BLOCK * (RUN + 1), 17, 0, 1, BLOCK * RUN], 0.9, u32::MAX),
        (vec![BLOCK * 2 * RUN], 0.99, u32::MAX),
        (vec![BLOCK * (2 * RUN + 77) + 1, BLOCK * (RUN - 1)], 0.5, u32::MAX),
    ] {
        assert_eq!(check(&plan(&tokens, target, budget)), 6);
    }
}

#[test]
fn budgets_end_in_every_run_and_everything_is_the_identity() {
    let row = [BLOCK * (2 * RUN + 100)];
    for (target, budget) in [
        (0.0, 0),
        (0.0, RUN as u32),
        (0.0, RUN as u32 + 1),
        (0.0, 2 * RUN as u32 + 99),
        (0.0, u32::MAX),
        (0.999, 300),
        // Blocks too small for fixed point have no mass, so this is not everything.
        (1.0, u32::MAX),
    ] {
        check(&plan(&row, target, budget));
    }
}

#[test]
fn passes_and_one_launch_plan_a_short_row_alike() {
    for tokens in [vec![0], vec![1, 5000], vec![BLOCK * 2049 - 3]] {
        for (target, budget) in [(0.9, u32::MAX), (0.0, 40), (1.0, u32::MAX)] {
            let plan = MadeUpPlan { group: 8, ..plan(&tokens, target, budget) };
            let mut driver = emulated();
            let p = plan.place(&mut driver).unwrap();
            let one = in_one(&driver.limits(), p.shape, &p.batch, &p.addresses, p.goal).unwrap();
            driver.launch(&one).unwrap();
            plan.check(&mut driver, &p).unwrap_or_else(|e| panic!("one launch, {plan:?}: {e}"));
            let p = plan.place(&mut driver).unwrap();
            for launch in in_passes(p.shape, &p.batch, &p.addresses, p.goal).unwrap() {
                driver.launch(&launch).unwrap();
            }
            plan.check(&mut driver, &p).unwrap_or_else(|e| panic!("passes, {plan:?}: {e}"));
        }
    }
}

#[test]
fn equal_masses_go_by_index_across_runs() {
    // The forced blocks, then all others as they come: every comparison between runs is a tie of masses.
    let mut driver = emulated();
    let plan = plan(&[BLOCK * (2 * RUN + 3)], 0.75, u32::MAX);
    let p = plan.place(&mut driver).unwrap();
    let blocks = 2 * RUN + 3;
    let masses = vec![-2.0f32; p.addresses.log_mass.bytes() as usize / 4];
    driver.upload(p.addresses.log_mass.address(), bytemuck::cast_slice(&masses)).unwrap();
    for launch in in_passes(p.shape, &p.batch, &p.addresses, p.goal).unwrap() {
        driver.launch(&launch).unwrap();
    }
    let mut order = vec![0u32; blocks];
    driver.download(p.addresses.order.address(), bytemuck::cast_slice_mut(&mut order)).unwrap();
    let forced: Vec<u32> = std::iter::once(0).chain(2 * RUN as u32..blocks as u32).collect();
    let want: Vec<u32> = forced.into_iter().chain(1..2 * RUN as u32).collect();
    assert!(order == want, "order starts {:?}, not {:?}", &order[..8], &want[..8]);
    let mut count = [0u32];
    driver.download(p.addresses.count.address(), bytemuck::cast_slice_mut(&mut count)).unwrap();
    assert_eq!(count[0] as usize, (blocks * 3).div_ceil(4));
}

#[test]
fn a_row_beyond_the_limit_is_refused_with_the_limit() {
    let mut driver = emulated();
    let plan = plan(&[BLOCK * (MAX_BLOCKS + 1)], 0.9, u32::MAX);
    let p = plan.place(&mut driver).unwrap();
    let e = in_passes(p.shape, &p.batch, &p.addresses, p.goal).unwrap_err().to_string();
    assert!(e.contains("1048592") && e.contains("MAX_BLOCKS"), "{e}");
}
