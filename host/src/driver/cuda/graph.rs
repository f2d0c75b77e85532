//! A decode step as a CUDA graph: launches captured once, queued again with one call.
//!
//! Parameters are those of the capture. [`Cuda::update`] takes over new ones; where only they changed, the
//! graph is updated in place, otherwise it is built anew.

use psa_codegen::Launch;

use super::open::Owned;
use super::{Cuda, raw};
use crate::driver::DriverError;

/// Launches that run in order with one call.
pub struct Graph {
    executable: Owned<raw::Executable>,
    launches: Vec<Launch>,
}

impl Graph {
    /// What it runs.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }
}

/// How a graph took new launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updated {
    /// The same kernels with other parameters, grids or shared memory.
    InPlace,
    /// Other kernels: the graph was built anew.
    Rebuilt,
}

impl Cuda {
    /// Makes a graph of `launches`. Nothing runs.
    ///
    /// # Errors
    /// [`DriverError::Launch`] for a launch that cannot be, [`DriverError::Lost`].
    pub fn capture(&mut self, launches: &[Launch]) -> Result<Graph, DriverError> {
        let captured = self.captured(launches)?;
        let executable = captured.instantiate().map_err(|f| self.graph_error(f, launches))?;
        Ok(Graph { executable: Owned::new(&self.opened, executable), launches: launches.to_vec() })
    }

    /// Queues the graph behind everything launched so far.
    ///
    /// # Errors
    /// [`DriverError::Launch`], [`DriverError::Lost`].
    pub fn replay(&mut self, graph: &Graph) -> Result<(), DriverError> {
        self.opened.enter()?;
        if !std::sync::Arc::ptr_eq(&graph.executable.opened, &self.opened) {
            let detail =
                format!("the graph was captured on another opening of a GPU than {}", self.opened.short);
            return Err(DriverError::Launch { launch: name(&graph.launches), detail });
        }
        self.queued.extend(&graph.launches);
        self.stream.replay(&graph.executable).map_err(|f| self.graph_error(f, &graph.launches))
    }

    /// Gives the graph other launches.
    ///
    /// # Errors
    /// As [`Cuda::capture`]; the graph then is as before.
    pub fn update(&mut self, graph: &mut Graph, launches: &[Launch]) -> Result<Updated, DriverError> {
        let captured = self.captured(launches)?;
        let in_place = graph.executable.update(&captured).map_err(|f| self.graph_error(f, launches))?;
        if !in_place {
            let executable = captured.instantiate().map_err(|f| self.graph_error(f, launches))?;
            graph.executable = Owned::new(&self.opened, executable);
        }
        graph.launches = launches.to_vec();
        Ok(if in_place { Updated::InPlace } else { Updated::Rebuilt })
    }

    fn captured(&mut self, launches: &[Launch]) -> Result<raw::Captured, DriverError> {
        self.opened.enter()?;
        // Loading a kernel or setting its attributes is not allowed within a capture.
        let functions = launches.iter().map(|launch| self.function(launch)).collect::<Result<Vec<_>, _>>()?;
        self.stream.begin_capture().map_err(|f| self.graph_error(f, launches))?;
        let mut outcome = Ok(());
        for (function, launch) in functions.into_iter().zip(launches) {
            outcome = self.queue(function, launch);
            if outcome.is_err() {
                break;
            }
        }
        // After an error too: the stream would stay in its capture.
        let captured = self.stream.end_capture().map_err(|f| self.graph_error(f, launches));
        outcome.and(captured)
    }

    fn graph_error(&self, failure: psa_cuda_shim::Failure, launches: &[Launch]) -> DriverError {
        self.error(failure, |detail| DriverError::Launch { launch: name(launches), detail })
    }
}

fn name(launches: &[Launch]) -> String {
    let kernels: Vec<_> = launches.iter().map(|launch| launch.kernel.name).collect();
    format!("graph of {} launches ({})", launches.len(), kernels.join(", "))
}
