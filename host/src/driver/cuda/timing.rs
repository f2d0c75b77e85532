//! Times on the device's own clock: an event before and after each round, all queued at once, so that the host
//! is in no round's way; then one wait.
//!
//! The L2 cache is emptied by writing zeros to a buffer of twice its size before each round. Trap: those lines are
//! dirty, and a round that reads little also pays for writing some of them back.

use psa_codegen::Launch;

use super::Cuda;
use crate::driver::{Driver, DriverError, Timing};

/// Buffer to empty the L2 cache with where the driver does not tell its size; of no GPU today is it larger.
const FLUSH: usize = 256 << 20;

/// What is timed.
enum Work<'a> {
    Launches(&'a [Launch]),
    Graph(super::Graph),
    Copy { to: u64, from: u64, bytes: usize },
}

impl Cuda {
    pub(super) fn time_launches(
        &mut self,
        launches: &[Launch],
        how: Timing,
    ) -> Result<Vec<f32>, DriverError> {
        let work = match how.graph {
            true => Work::Graph(self.capture(launches)?),
            false => Work::Launches(launches),
        };
        self.with_flush(how, &work)
    }

    pub(super) fn time_copies(&mut self, bytes: usize, how: Timing) -> Result<Vec<f32>, DriverError> {
        let from = self.alloc(bytes, "the source of a timed copy")?;
        let to = match self.alloc(bytes, "the target of a timed copy") {
            Ok(to) => to,
            Err(error) => {
                self.free(from)?;
                return Err(error);
            }
        };
        // Memory that was never written may not be there yet.
        let written = self.stream.clear(from, bytes).map_err(|f| self.memory_error(f, "clear", from, bytes));
        let times = written.and_then(|()| self.with_flush(how, &Work::Copy { to, from, bytes }));
        self.free(to)?;
        self.free(from)?;
        times
    }

    fn with_flush(&mut self, how: Timing, work: &Work<'_>) -> Result<Vec<f32>, DriverError> {
        if !how.flush_l2 {
            return self.rounds(how, work, None);
        }
        let bytes = match self.opened.l2_bytes {
            0 => FLUSH,
            l2 => (2 * l2).next_multiple_of(4),
        };
        let address = self.alloc(bytes, "a buffer to empty the L2 cache with")?;
        let times = self.rounds(how, work, Some((address, bytes)));
        self.free(address)?;
        times
    }

    fn rounds(
        &mut self,
        how: Timing,
        work: &Work<'_>,
        flush: Option<(u64, usize)>,
    ) -> Result<Vec<f32>, DriverError> {
        let mut marks = Vec::with_capacity(how.rounds as usize);
        for round in 0..how.warm_up + how.rounds {
            if let Some((address, bytes)) = flush {
                self.stream
                    .clear(address, bytes)
                    .map_err(|failure| self.memory_error(failure, "empty the L2 cache", address, bytes))?;
            }
            let start = self.record()?;
            match work {
                Work::Launches(launches) => launches.iter().try_for_each(|launch| self.launch(launch))?,
                Work::Graph(graph) => self.replay(graph)?,
                Work::Copy { to, from, bytes } => self
                    .stream
                    .copy(*to, *from, *bytes)
                    .map_err(|failure| self.memory_error(failure, "copy on the device", *to, *bytes))?,
            }
            let end = self.record()?;
            if round >= how.warm_up {
                marks.push((start, end));
            }
        }
        self.wait()?;
        marks.iter().map(|(start, end)| Ok((self.elapsed(start, end)?.as_secs_f64() * 1e6) as f32)).collect()
    }
}
