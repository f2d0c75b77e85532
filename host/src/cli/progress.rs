//! Lines on stderr that say how far a long command is.

use std::io::IsTerminal;
use std::time::Instant;

/// Prints progress where somebody looks: on a terminal, or on request.
pub struct Progress {
    shown: bool,
    start: Instant,
}

impl Progress {
    /// On stderr, if that is a terminal or `wanted`.
    pub fn new(wanted: bool) -> Progress {
        Progress { shown: wanted || std::io::stderr().is_terminal(), start: Instant::now() }
    }

    /// One line, with the time since the start.
    pub fn say(&self, text: &str) {
        if self.shown {
            eprintln!("[{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
        }
    }
}
