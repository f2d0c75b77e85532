//! The program `psa`: see [`cli`].

mod cli;
mod demo;

fn main() -> std::process::ExitCode {
    cli::main()
}
