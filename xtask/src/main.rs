//! Project tasks: `cargo xtask setup | doctor | build-ptx | ratchet | inspect | mutate | seeds | dist | generate |
//! gpu-bundle | bench | demo | test`.
//!
//! Progress goes to stderr, answers to stdout. Exit code 0: success; 1: done, and the answer is bad;
//! 2: bad input or a missing part.

mod bench;
mod demo;
mod device;
mod device_crates;
mod dist;
mod doctor;
mod error;
mod generate;
mod gpu_bundle;
mod inspect;
mod kernels;
mod pipeline;
mod process;
mod ptx;
mod ptxas;
mod ratchet;
mod rust_cuda;
mod sass;
mod setup;
mod suite;
mod summary;
mod version;
mod wheels;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Error;
use crate::setup::Purpose;
use crate::workspace::Workspace;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Project tasks",
    version,
    after_help = "Examples:\n  cargo xtask demo                  the main job on this machine, no GPU needed\n  \
                  cargo xtask test                  everything, with what it needs set up first\n  \
                  cargo xtask doctor                what is here, what is missing, how to get it\n\n\
                  Exit codes: 0 success; 1 done, and the answer is bad; 2 bad input or a missing part."
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, pinned; a second run does nothing
    #[command(
        after_help = "Examples:\n  cargo xtask setup                       all that `cargo xtask test` uses\n  \
                            cargo xtask setup --for build-ptx       the device compiler and ptxas only\n\n\
                            Files from PyPI are pinned by sha256 and lie in target/psa-tools; the device compiler comes from apt\n\
                            (or is a rustup nightly where there is no apt). The crates themselves need none of this."
    )]
    Setup {
        /// What to prepare for
        #[arg(long = "for", value_name = "PURPOSE", value_enum, default_value = "test")]
        purpose: Purpose,
    },
    /// Show what is here, what is missing, what for, and how to get it
    #[command(
        after_help = "Examples:\n  cargo xtask doctor\n  cargo xtask doctor --json | jq -r 'select(.ok | not) | .part + \": \" + .remedy'\n\n\
                            Exits with 1 only if something is missing that building or `cargo xtask demo` needs."
    )]
    Doctor {
        /// One JSON object a part, one a line
        #[arg(long)]
        json: bool,
    },
    /// Compile kernels-gpu to PTX, finish it, lint it, write PTX and manifest
    #[command(
        after_help = "Examples:\n  cargo xtask build-ptx                     write kernels-gpu/ptx\n  \
                            cargo xtask build-ptx --check             fail if the committed files are not what the sources give\n  \
                            cargo xtask build-ptx --check --verify    also assemble for every GPU generation; fail on a spill\n  \
                            cargo xtask build-ptx --backend rust-cuda  through rust-cuda's cuda_builder; says what it needs"
    )]
    BuildPtx {
        /// Compare with the committed files instead of writing them
        #[arg(long)]
        check: bool,
        /// Assemble with ptxas for sm_80, 86, 89, 90, 100 and 120, show registers and spills
        #[arg(long)]
        verify: bool,
        /// Who compiles: stock rustc, or rust-cuda's back end where there is one (docs/rust-cuda.md)
        #[arg(long, value_enum, default_value = "stock", conflicts_with_all = ["check", "verify"])]
        backend: Backend,
    },
    /// Compare every kernel's cost with the pinned table: it may only improve
    #[command(
        after_help = "Examples:\n  cargo xtask ratchet                        fails if a number got worse\n  \
                            cargo xtask ratchet --bless                pin what got better, new kernels, new tools\n  \
                            cargo xtask ratchet --bless --allow-worse \"a third stage: 12 registers, 9 % less time\"\n\n\
                            Registers, spills, stack, shared memory and machine instructions of the committed PTX on every target,\n\
                            and what the emulator counts in a small launch of each entry. Needs ptxas: `cargo xtask setup --for build-ptx`."
    )]
    Ratchet {
        /// Pin the numbers of now; refuses if any got worse
        #[arg(long)]
        bless: bool,
        /// With --bless: pin numbers that got worse too, for this reason, which stays in the file
        #[arg(long, value_name = "REASON", requires = "bless")]
        allow_worse: Option<String>,
    },
    /// Show one kernel's code under its Rust lines, its resources and instruction mix
    #[command(
        after_help = "Examples:\n  cargo xtask inspect attend_bf16_d128                 machine code, sm_90; `>` marks the main loop\n  \
                            cargo xtask inspect attend_bf16_d128 --src --sm 120  Rust lines, how many instructions each became\n  \
                            cargo xtask inspect score_f16_d64_p1 --ptx              PTX\n\n\
                            Needs ptxas and nvdisasm, and the device compiler for the lines: `cargo xtask setup --for build-ptx`.\n\
                            An instruction of core or of a macro counts for the line of this workspace before it."
    )]
    Inspect {
        /// The entry, as attend_bf16_d128; a wrong name lists the near ones
        kernel: String,
        /// Compute capability: 80, 86, 89, 90, 100 or 120
        #[arg(long, value_name = "SM", default_value_t = 90)]
        sm: u32,
        /// List machine code (the default)
        #[arg(long)]
        sass: bool,
        /// List PTX
        #[arg(long, conflicts_with = "sass")]
        ptx: bool,
        /// List Rust lines with their counts of instructions
        #[arg(long, conflicts_with_all = ["sass", "ptx"])]
        src: bool,
    },
    /// Make the folder that other projects load the kernels from: PTX, cubins, manifest, C header, docs
    #[command(
        after_help = "Examples:\n  cargo xtask dist                    target/dist/psa-kernels-VERSION\n  \
                            cargo xtask dist --out /tmp/kernels\n\n\
                            The same commit and ptxas give the same bytes. Without ptxas the cubins are left out, and the README says so.\n\
                            docs/reuse.md: how to use it from C, Rust and Python."
    )]
    Dist {
        /// The folder that the versioned folder goes into [default: dist in the target folder]
        #[arg(long, value_name = "DIR")]
        out: Option<std::path::PathBuf>,
        /// Leave the cubins out (10 MB)
        #[arg(long)]
        without_cubins: bool,
    },
    /// Write the forwarding functions of cuda-shim from cust_raw's bindings
    #[command(
        after_help = "Examples:\n  cargo xtask generate            after another version of cust_raw\n  \
                            cargo xtask generate --check    fail if the committed file is not what the bindings give"
    )]
    Generate {
        /// Compare with the committed file instead of writing it
        #[arg(long)]
        check: bool,
    },
    /// Pack one archive that tests and times the kernels on a machine with a GPU and without Rust
    #[command(
        after_help = "Examples:\n  cargo xtask gpu-bundle\n  cargo xtask gpu-bundle --out /tmp/bundle.tar.gz --selftest\n\n\
                            On the machine with the GPU: tar xzf psa-gpu-bundle.tar.gz && psa-gpu-bundle/run.sh (docs/gpu.md)."
    )]
    GpuBundle {
        /// Where the archive goes [default: psa-gpu-bundle.tar.gz in the target folder]
        #[arg(long, value_name = "FILE")]
        out: Option<std::path::PathBuf>,
        /// Unpack it and run what can be run without a GPU
        #[arg(long)]
        selftest: bool,
    },
    /// Change the shipped PTX in one place at a time: do the emulator's checkers report it?
    #[command(disable_help_flag = true)]
    Mutate {
        /// Passed on; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<String>,
    },
    /// Run the shipped kernels under many schedules: same bits, no finding
    #[command(disable_help_flag = true)]
    Seeds {
        /// Passed on; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<String>,
    },
    /// Time the CPU backend: the Criterion benches, then paired runs beside a plain read; records, one a line
    #[command(
        after_help = "Examples:\n  cargo xtask bench --json > cpu.jsonl && cargo run --release -p psa -- bench-report cpu.jsonl\n  \
                            cargo xtask bench --torch --json    beside torch's scaled_dot_product_attention (540 MB download)\n  \
                            cargo xtask bench --quick           everything once: does it run?\n\n\
                            Ratios are medians over rounds in which all take turns: compare within one run, not between runs."
    )]
    Bench {
        /// Everything once, no timing worth the name
        #[arg(long)]
        quick: bool,
        /// Beside torch's CPU attention
        #[arg(long)]
        torch: bool,
        /// The paired runs only, and nothing but their records on stdout
        #[arg(long)]
        json: bool,
    },
    /// Run the main job on bundled data: builds psa and runs `psa demo`
    #[command(
        after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo -- --help      what `psa demo` accepts"
    )]
    Demo {
        /// Passed to `psa demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<String>,
    },
    /// Set up what is needed, then run all tests of all crates and check the PTX
    #[command(
        after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --quick        a few minutes, installs nothing\n\n\
                            The last line of stdout is `N passed, N failed`."
    )]
    Test {
        /// Leave out PyTorch and long property tests, and the PTX check where its tools are missing
        #[arg(long)]
        quick: bool,
    },
}

/// Who turns the kernels into PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    /// rustc's own NVPTX back end.
    Stock,
    /// rust-cuda's rustc_codegen_nvvm, through its cuda_builder.
    RustCuda,
}

fn main() -> ExitCode {
    let workspace = Workspace::locate();
    let outcome = match Cli::parse().task {
        Task::Setup { purpose } => setup::setup(&workspace, purpose),
        Task::Doctor { json } => doctor::doctor(&workspace, json),
        Task::BuildPtx { backend: Backend::RustCuda, .. } => rust_cuda::build(&workspace),
        Task::BuildPtx { check, verify, backend: Backend::Stock } => {
            ptx::build_ptx(&workspace, ptx::Options { check, verify })
        }
        Task::Ratchet { bless, allow_worse } => {
            ratchet::ratchet(&workspace, &ratchet::Options { bless, allow_worse })
        }
        Task::Inspect { kernel, sm, sass: _, ptx, src } => {
            let view = match (ptx, src) {
                (true, _) => inspect::View::Ptx,
                (_, true) => inspect::View::Source,
                _ => inspect::View::Sass,
            };
            inspect::inspect(&workspace, &kernel, sm, view)
        }
        Task::Dist { out, without_cubins } => dist::dist(&workspace, &dist::Options { out, without_cubins }),
        Task::Generate { check } => generate::generate(&workspace, check),
        Task::GpuBundle { out, selftest } => {
            gpu_bundle::gpu_bundle(&workspace, &gpu_bundle::Options { out, selftest })
        }
        Task::Mutate { arguments } => kernels::run(&workspace, "psa-mutate", &arguments),
        Task::Seeds { arguments } => kernels::run(&workspace, "psa-seeds", &arguments),
        Task::Bench { quick, torch, json } => bench::bench(&workspace, bench::Options { quick, torch, json }),
        Task::Demo { arguments } => demo::demo(&workspace, &arguments),
        Task::Test { quick } => suite::test(&workspace, quick),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What has said all itself: failed tests end with their summary line.
            if !matches!(error, Error::TestsFailed { .. } | Error::Answered { .. }) {
                eprintln!("error: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
