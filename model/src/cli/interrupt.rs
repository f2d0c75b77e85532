//! Ctrl-C: the first asks the running command to end at its next step, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use super::CliError;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C from now on.
pub fn catch() -> Result<(), CliError> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\ninterrupted: ending after this step; again to end at once");
    })?;
    Ok(())
}

/// Whether the command should end.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
