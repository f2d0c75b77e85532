//! `psa-gpu time`: a plain copy first, then the stages and whole steps beside it, dense and sparse.
//!
//! Arms alternate: every repetition runs each arm for a few rounds, so that clocks and temperature drift for
//! all alike. Times are the device's own (events), the L2 cache is emptied before each round, planning is part
//! of a step. Where a sparse arm did not read less than everything, its name would be a lie, and the run fails.
//!
//! Bytes are those that the algorithm has to move ([`rig::Reads`]); how often a kernel moves them is its own
//! affair. The copy's bytes count read and write.

pub mod inputs;
pub mod rig;

use std::time::{Duration, Instant};

use psa::driver::{Driver, DriverError, Timing};

use crate::Error;
use crate::record::{Record, TimeRecord, table};
use inputs::Template;
use rig::{Arm, Rig, Setting};

/// What is timed.
pub struct Options {
    /// Fewer shapes and rounds.
    pub quick: bool,
    /// No new shape is begun after this long.
    pub budget: Duration,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// All timings, and what was left out.
    pub records: Vec<Record>,
    /// False where the device does not time.
    pub timed: bool,
    /// Sparse arms that read everything.
    pub not_sparse: Vec<String>,
}

/// Rounds of an arm in a row, and how often its turn comes.
#[derive(Clone, Copy)]
struct Effort {
    rounds: u32,
    turns: usize,
}

const FULL: Effort = Effort { rounds: 5, turns: 10 };
const QUICK: Effort = Effort { rounds: 4, turns: 5 };

/// Settings in the order of their importance: what comes late is what a budget cuts off.
pub fn settings(quick: bool) -> Vec<Setting> {
    let k = 1024;
    let mut list = vec![
        (1, 32 * k, 4),
        (16, 16 * k, 4),
        (16, 64 * k, 4),
        (1, 4 * k, 4),
        (16, 32 * k, 4),
        (64, 16 * k, 4),
        (1, 128 * k, 4),
    ];
    if !quick {
        for group in [4, 8] {
            for batch in [1, 16, 64] {
                for tokens in [4 * k, 8 * k, 16 * k, 32 * k, 64 * k, 128 * k] {
                    if !list.contains(&(batch, tokens, group)) {
                        list.push((batch, tokens, group));
                    }
                }
            }
        }
    }
    list.into_iter().map(|(batch, tokens, group)| Setting { batch, tokens, group }).collect()
}

/// Times everything. `progress` is told about each setting.
///
/// # Errors
/// Errors of the device other than a lack of memory, which leaves the setting out.
pub fn run(
    driver: &mut dyn Driver,
    template: &Template,
    settings: &[Setting],
    options: &Options,
    progress: &dyn Fn(&str),
) -> Result<Outcome, Error> {
    let begun = Instant::now();
    let effort = if options.quick { QUICK } else { FULL };
    let mut outcome = Outcome::default();
    progress("copy");
    let Some(copy) = copy(driver, effort)? else { return Ok(outcome) };
    outcome.timed = true;
    let copy_gb_s = copy.gb_s;
    outcome.records.push(Record::Time(copy));
    progress("launch overhead");
    outcome.records.extend(overhead(driver, template, effort)?);
    for setting in settings {
        if begun.elapsed() > options.budget {
            outcome.records.push(Record::Left {
                name: setting.to_string(),
                reason: format!("no time left of {} s", options.budget.as_secs()),
            });
            continue;
        }
        progress(&setting.to_string());
        let done = Rig::new(driver, *setting, template).and_then(|mut rig| {
            let done = one_setting(driver, &mut rig, copy_gb_s, effort, &mut outcome);
            rig.release(driver)?;
            done
        });
        match done {
            Ok(()) => {}
            Err(Error::Driver(e @ DriverError::OutOfMemory { .. })) => outcome
                .records
                .push(Record::Left { name: setting.to_string(), reason: format!("no memory: {e}") }),
            Err(e) => return Err(e),
        }
    }
    Ok(outcome)
}

fn one_setting(
    driver: &mut dyn Driver,
    rig: &mut Rig,
    copy_gb_s: f64,
    effort: Effort,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    // What is timed must be there: run every arm once, and look at what it read.
    let mut steps = Vec::new();
    for arm in Arm::ALL {
        let launches = rig.step(arm)?;
        for launch in &launches {
            driver.launch(launch)?;
        }
        let reads = rig.reads(driver, arm)?;
        if arm != Arm::Dense && reads.blocks_read >= reads.blocks_total {
            outcome.not_sparse.push(format!("{} at {}", arm.name(), rig.setting));
        }
        steps.push((arm, launches, reads));
    }
    let base = |arm: Arm, what: &str, mode: &str| TimeRecord {
        device: driver_name(rig),
        by: "psa".into(),
        what: what.into(),
        policy: arm.name().into(),
        batch: rig.setting.batch,
        tokens: rig.setting.tokens,
        kv_heads: rig::KV_HEADS,
        group: rig.setting.group,
        head_dim: rig::HEAD_DIM,
        dtype: "bf16".into(),
        mode: mode.into(),
        l2_cold: true,
        ..TimeRecord::default()
    };
    let mut rounds: Vec<Vec<f32>> = vec![Vec::new(); steps.len()];
    let how = Timing { warm_up: 1, rounds: effort.rounds, flush_l2: true, graph: true };
    for _ in 0..effort.turns {
        for ((_, launches, _), rounds) in steps.iter().zip(&mut rounds) {
            rounds.extend(driver.time(launches, how)?.unwrap_or_default());
        }
    }
    for ((arm, _, reads), rounds) in steps.iter().zip(&rounds) {
        let mut record = base(*arm, "step", "graph");
        record.bytes = reads.step_bytes();
        (record.blocks_read, record.blocks_total) = (reads.blocks_read, reads.blocks_total);
        outcome.records.push(Record::Time(record.with_rounds(rounds, copy_gb_s)));
    }
    // Stages: of dense only attend and merge say something new. Every stage leaves its inputs as they are.
    let how = Timing { graph: false, ..how };
    for (arm, launches, reads) in &steps {
        for launch in launches {
            driver.launch(launch)?;
        }
        let mut rounds: Vec<Vec<f32>> = vec![Vec::new(); launches.len()];
        for _ in 0..effort.turns {
            for (launch, rounds) in launches.iter().zip(&mut rounds) {
                rounds.extend(driver.time(std::slice::from_ref(launch), how)?.unwrap_or_default());
            }
        }
        for (launch, rounds) in launches.iter().zip(&rounds) {
            let stage = launch.kernel.family;
            let ranks = ["score_nested", "refine", "plan"].contains(&stage);
            if stage == "plan_identity" || (*arm == Arm::TopK && ranks) {
                continue;
            }
            let mut record = base(*arm, stage, "stream");
            record.bytes = reads.stage_bytes(stage);
            (record.blocks_read, record.blocks_total) = (reads.blocks_planned, reads.blocks_total);
            outcome.records.push(Record::Time(record.with_rounds(rounds, copy_gb_s)));
        }
    }
    Ok(())
}

fn driver_name(rig: &Rig) -> String {
    rig.device.clone()
}

/// The copy that everything is compared with: 1 GiB, or what fits.
fn copy(driver: &mut dyn Driver, effort: Effort) -> Result<Option<TimeRecord>, Error> {
    let how = Timing { warm_up: 2, rounds: effort.rounds, flush_l2: false, graph: false };
    let mut bytes = 1usize << 30;
    let mut all = Vec::new();
    while all.len() < effort.turns * effort.rounds as usize {
        match driver.time_copy(bytes, how) {
            Ok(None) => return Ok(None),
            Ok(Some(rounds)) => {
                all.extend(rounds);
                if effort.rounds == 0 {
                    break;
                }
            }
            Err(DriverError::OutOfMemory { .. }) if bytes > 1 << 24 => {
                bytes /= 2;
                all.clear();
            }
            Err(e) => return Err(e.into()),
        }
    }
    let record = TimeRecord {
        device: driver.name(),
        by: "psa".into(),
        what: "copy".into(),
        mode: "stream".into(),
        bytes: 2 * bytes as u64,
        ..TimeRecord::default()
    };
    Ok(Some(record.with_rounds(&all, 0.0)))
}

/// A launch's own cost: the difference between 33 launches of a kernel that does next to nothing and one, by 32.
fn overhead(driver: &mut dyn Driver, template: &Template, effort: Effort) -> Result<Vec<Record>, Error> {
    let mut rig = Rig::new(driver, Setting { batch: 1, tokens: 64, group: 4 }, template)?;
    let launch = rig.step(Arm::Dense)?.swap_remove(0);
    let many = vec![launch.clone(); 33];
    let mut records = Vec::new();
    for (mode, graph) in [("stream", false), ("graph", true)] {
        let how = Timing { warm_up: 2, rounds: effort.rounds, flush_l2: false, graph };
        let mut each = Vec::new();
        for _ in 0..effort.turns {
            let one = driver.time(std::slice::from_ref(&launch), how)?.unwrap_or_default();
            let all = driver.time(&many, how)?.unwrap_or_default();
            each.extend(one.iter().zip(&all).map(|(one, all)| (all - one) / 32.0));
        }
        let record = TimeRecord {
            device: rig.device.clone(),
            by: "psa".into(),
            what: "launch".into(),
            mode: mode.into(),
            ..TimeRecord::default()
        };
        records.push(Record::Time(record.with_rounds(&each, 0.0)));
    }
    rig.release(driver)?;
    Ok(records)
}

/// The timings as a table.
pub fn text(records: &[Record]) -> String {
    let mut rows = Vec::new();
    let mut left = String::new();
    for record in records {
        match record {
            Record::Time(t) => rows.push(vec![
                format!("{} {} {}", t.by, t.what, t.policy).trim_end().to_owned(),
                t.batch.to_string(),
                t.tokens.to_string(),
                t.group.to_string(),
                t.mode.clone(),
                format!("{:.1}", t.median_us),
                format!("{:.1}-{:.1}", t.p10_us, t.p90_us),
                format!("{:.0}", t.gb_s),
                if t.copy_share > 0.0 { format!("{:.1}", 100.0 * t.copy_share) } else { String::new() },
                if t.blocks_total > 0 {
                    format!("{:.1}", 100.0 * t.blocks_read as f64 / t.blocks_total as f64)
                } else {
                    String::new()
                },
            ]),
            Record::Left { name, reason } => left.push_str(&format!("not timed: {name}: {reason}\n")),
            _ => {}
        }
    }
    let head =
        ["what", "batch", "tokens", "group", "mode", "median us", "p10-p90", "GB/s", "% of copy", "% read"];
    table(&head, &rows) + &left
}
