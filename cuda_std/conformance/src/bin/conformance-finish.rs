//! Finishes and lints the device build of this crate: raw PTX on standard input, the PTX to commit on standard
//! output, findings on standard error with exit status 1. `build.sh` calls it.

#[cfg(not(target_arch = "nvptx64"))]
fn main() -> std::process::ExitCode {
    match finish() {
        Ok(ptx) => {
            print!("{ptx}");
            std::process::ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "nvptx64"))]
fn finish() -> Result<String, String> {
    use psa_cuda_std_conformance::{kernels, lint_options};
    let raw =
        std::io::read_to_string(std::io::stdin()).map_err(|e| format!("cannot read standard input: {e}"))?;
    let ptx = psa_codegen::finish(&raw).map_err(|e| e.to_string())?;
    let findings = psa_codegen::lint(&ptx, &kernels(), &lint_options());
    if findings.is_empty() {
        return Ok(ptx);
    }
    Err(findings.iter().map(|finding| format!("{finding}\n")).collect())
}
