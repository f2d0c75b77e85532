//! `psa-model`: the commands of `psa` that run a language model. `psa generate ..` starts this program.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
