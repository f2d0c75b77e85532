//! The CPU backend against its own dense attention and a plain read, paired: `cpu-paired [TOKENS]... [--batch N]
//! [--rounds N]`. Records as JSON, one a line.

use psa_benches::paired::{Options, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)) {
        Ok(options) => run(&options, |_| vec![]),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
