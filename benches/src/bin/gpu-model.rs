//! Roofline and split schedule by arithmetic, as the tables of docs/performance.md: `gpu-model`. Nothing is measured.

use std::process::ExitCode;

use kernels_gpu::layout::MirrorKind;
use psa::residency::Accesses;
use psa_benches::gpu_model::{Budget, GPUS, StepShape, compulsory_bytes, schedule};

const KV_HEADS: usize = 8;

fn rooflines() {
    for (batch, tokens) in [(1, 32_768), (64, 32_768)] {
        let mirror = MirrorKind::Planes(1);
        let step =
            StepShape { batch, tokens, kv_heads: KV_HEADS, group: 4, head_dim: 128, read: 0.25, mirror };
        println!("\nBatch {batch}, {tokens} tokens: microseconds a layer at full bandwidth\n");
        print!("| kernel | MB |");
        GPUS.iter().for_each(|gpu| print!(" {} |", gpu.name));
        println!("\n|---|---|{}", "---|".repeat(GPUS.len()));
        let dense = compulsory_bytes(&StepShape { read: 1.0, ..step })[3].1;
        let rows = compulsory_bytes(&step).into_iter().chain([("attend, dense", dense)]);
        for (kernel, bytes) in rows {
            print!("| {kernel} | {:.3} |", bytes / 1e6);
            GPUS.iter().for_each(|gpu| print!(" {:.2} |", gpu.microseconds(bytes)));
            println!();
        }
    }
}

/// The rows of a batch: each entry a recorded step, each KV head a recorded (layer, head). Ragged: entries of the
/// whole, half, quarter and eighth length in turn.
fn batch(accesses: &Accesses, first_row: usize, entries: usize, ragged: bool) -> Vec<Budget> {
    let steps = accesses.steps;
    (0..entries)
        .flat_map(|entry| (0..KV_HEADS).map(move |head| (entry, head)))
        .map(|(entry, head)| {
            let (row, step) = (first_row + head, entry * 37 % steps);
            let shift = if ragged { entry % 4 } else { 0 };
            let count = accesses.reads(row, step).len();
            Budget { blocks: accesses.visible(row, step) >> shift, count: count >> shift }
        })
        .collect()
}

fn schedules(accesses: &Accesses) {
    let layers = accesses.rows.len() / KV_HEADS;
    println!(
        "\nMakespan over ideal of attend, 132 SMs: median (largest) of {layers} groups of {KV_HEADS} rows\n"
    );
    println!(
        "| batch | lengths | slots an SM | 4 blocks a split | 8 | 16 (as built) | 32 |\n|---|---|---|---|---|---|---|"
    );
    for (entries, ragged) in
        [(1, false), (2, false), (4, false), (16, false), (16, true), (64, true), (256, false), (256, true)]
    {
        for occupancy in [1, 3] {
            let lengths = if ragged { "1 to 1/8" } else { "equal" };
            print!("| {entries} | {lengths} | {occupancy} |");
            for blocks_per_split in [4, 8, 16, 32] {
                let mut ratios: Vec<f64> = (0..layers)
                    .map(|layer| {
                        let rows = batch(accesses, layer * KV_HEADS, entries, ragged);
                        let (makespan, ideal) = schedule(&rows, blocks_per_split, 132 * occupancy);
                        makespan as f64 / ideal
                    })
                    .collect();
                ratios.sort_by(f64::total_cmp);
                print!(" {:.2} ({:.2}) |", ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
            }
            println!();
        }
    }
}

fn main() -> ExitCode {
    if std::env::args().len() > 1 {
        eprintln!(
            "gpu-model takes no arguments: it prints the roofline and schedule tables of docs/performance.md"
        );
        return ExitCode::from(2);
    }
    rooflines();
    match Accesses::bundled() {
        Ok(accesses) => schedules(&accesses),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
