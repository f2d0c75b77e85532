//! Timing on a GPU, against the fake libcuda: what is queued around a round, and what is not timed. The fake's
//! clock advances by 0.5 ms a launch and 0.25 ms a kernel of a replayed graph; nothing here is a measurement.

#![cfg(target_os = "linux")]

#[path = "../../cuda-shim/tests/fake/mod.rs"]
mod fake;

use fake::{Controls, Fake};
use psa::driver::cuda::{CubinCache, CudaDevice};
use psa::driver::{Driver, DriverError, Timing};
use psa_codegen::Launch;

const HOW: Timing = Timing { warm_up: 1, rounds: 3, flush_l2: false, graph: false };

/// One fake for the process; the tests are one test, as they share it.
fn controls() -> Controls {
    let fake = Fake::build("timing", &[]);
    psa_cuda_shim::use_library(fake.library()).unwrap();
    let controls = fake.controls();
    assert!(matches!(psa_cuda_shim::status(), psa_cuda_shim::Status::Loaded { .. }));
    controls
}

fn launch(driver: &mut dyn Driver) -> Launch {
    let memory = driver.region(4096, "all").unwrap();
    let part = |index: u64| memory.part(256 * index, 256).unwrap();
    kernels_gpu::plan::plan_identity::launch(
        [1, 1, 1],
        kernels_gpu::plan::plan_identity::Args {
            lens: part(0).input(),
            order: part(1).output(),
            count: part(2).output(),
            peak: part(3).output(),
            rest: part(4).output(),
            kv_heads: 1,
            group: 1,
            max_blocks: 4,
        },
    )
    .unwrap()
}

#[test]
fn rounds_are_between_events_and_the_flush_is_not() {
    let controls = controls();
    controls.configure("");
    let device = CudaDevice::open(0, &CubinCache::Off).unwrap();
    let mut driver = device.driver().unwrap();
    let launch = launch(&mut driver);
    let two = [launch.clone(), launch];

    // A stream: warm-up runs and is not reported.
    let live = controls.live();
    assert_eq!(driver.time(&two, HOW).unwrap().unwrap(), [1000.0; 3]);
    assert_eq!(controls.calls("launch").len(), 8);
    assert_eq!(controls.calls("cuMemsetD32Async").len(), 0);
    assert_eq!(controls.live(), live, "events are destroyed");

    // A graph, with the cache emptied before each round: memset, event, replay, event.
    controls.configure("");
    let how = Timing { flush_l2: true, graph: true, ..HOW };
    assert_eq!(driver.time(&two, how).unwrap().unwrap(), [500.0; 3]);
    let order: Vec<String> = controls
        .log()
        .iter()
        .filter_map(|line| line.split(' ').next())
        .filter(|call| ["cuMemsetD32Async", "cuEventRecord", "cuGraphLaunch"].contains(call))
        .map(str::to_owned)
        .collect();
    assert_eq!(order.len(), 16);
    for round in order.chunks(4) {
        assert_eq!(round, ["cuMemsetD32Async", "cuEventRecord", "cuGraphLaunch", "cuEventRecord"]);
    }
    assert_eq!(controls.live(), live, "buffer, graph and events are given back");

    // A copy; and too large a copy is no memory, with nothing kept.
    controls.configure("");
    assert_eq!(driver.time_copy(1 << 16, HOW).unwrap().unwrap().len(), 3);
    assert_eq!(controls.calls("cuMemcpyDtoDAsync_v2").len(), 4);
    controls.configure("memory=100000000");
    let error = driver.time_copy(80_000_000, HOW).unwrap_err();
    assert!(matches!(error, DriverError::OutOfMemory { bytes: 80_000_000, .. }), "{error}");
    assert_eq!(controls.live(), live);
}
