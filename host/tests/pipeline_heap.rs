//! A resident step allocates no host memory either: a counting allocator, and a driver that does nothing, so that what is
//! counted is the pipeline's own. (The CUDA driver keeps copies of the last launches for the text of errors.)

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;
use psa::driver::{Driver, DriverError, EventId, GraphId, StreamCounters, StreamId, Streams};
use psa::pipeline::{DecodePipeline, PipelineConfig};
use psa::timeline::Timeline;
use psa::{Dtype, Policy, Shape};
use psa_codegen::{DeviceLimits, Launch, Region};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system's; only a number is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A device that takes everything and does nothing.
struct Nothing {
    next: u64,
    launches: u64,
}

type Done = Result<(), DriverError>;

impl Driver for Nothing {
    fn name(&self) -> String {
        "nothing".into()
    }
    fn alloc(&mut self, bytes: usize, _: &str) -> Result<u64, DriverError> {
        self.next = (self.next + bytes as u64).next_multiple_of(256);
        Ok(self.next - (bytes as u64).next_multiple_of(256))
    }
    fn limits(&self) -> DeviceLimits {
        DeviceLimits::of_sm(90)
    }
    fn free(&mut self, _: u64) -> Done {
        Ok(())
    }
    fn upload(&mut self, _: u64, _: &[u8]) -> Done {
        Ok(())
    }
    fn download(&mut self, _: u64, _: &mut [u8]) -> Done {
        Ok(())
    }
    fn launch(&mut self, _: &Launch) -> Done {
        Ok(())
    }
    fn streams(&mut self) -> Option<&mut dyn Streams> {
        Some(self)
    }
}

impl Streams for Nothing {
    fn stream(&mut self, _: &'static str) -> Result<StreamId, DriverError> {
        Ok(StreamId(1))
    }
    fn event(&mut self) -> Result<EventId, DriverError> {
        Ok(EventId(0))
    }
    fn pinned(&mut self, bytes: usize, what: &str) -> Result<Region, DriverError> {
        self.region(bytes, what)
    }
    fn write_pinned(&mut self, _: u64, _: &[u8]) -> Done {
        Ok(())
    }
    fn read_pinned(&mut self, _: u64, _: &mut [u8]) -> Done {
        Ok(())
    }
    fn launch_on(&mut self, _: StreamId, _: &Launch) -> Done {
        self.launches += 1;
        Ok(())
    }
    fn copy_on(&mut self, _: StreamId, _: u64, _: u64, _: usize) -> Done {
        Ok(())
    }
    fn signal(&mut self, _: StreamId, _: u64, _: u32) -> Done {
        Ok(())
    }
    fn peek(&mut self, _: u64) -> Result<u32, DriverError> {
        Ok(u32::MAX)
    }
    fn record(&mut self, _: EventId, _: StreamId) -> Done {
        Ok(())
    }
    fn wait_event(&mut self, _: StreamId, _: EventId, _: &'static str) -> Done {
        Ok(())
    }
    fn synchronize(&mut self, _: StreamId) -> Done {
        Ok(())
    }
    fn capture(&mut self, _: &[Launch]) -> Result<GraphId, DriverError> {
        Ok(GraphId(0))
    }
    fn replay(&mut self, _: GraphId, _: StreamId) -> Done {
        Ok(())
    }
    fn stream_counters(&self) -> StreamCounters {
        StreamCounters { launches: self.launches, ..StreamCounters::default() }
    }
    fn trace(&mut self, _: bool) -> Done {
        Ok(())
    }
    fn timeline(&mut self) -> Result<Timeline, DriverError> {
        Ok(Timeline { device: "nothing".into(), modelled: true, streams: vec![], spans: vec![] })
    }
}

#[test]
fn a_resident_step_over_all_layers_allocates_nothing_on_the_heap() {
    let shape = Shape { layers: 8, q_heads: 8, kv_heads: 2, head_dim: 128, dtype: Dtype::F16 };
    let config = PipelineConfig { sequences: 3, max_tokens: 400, ..PipelineConfig::default() };
    let policy = Policy::Progressive { mass: 0.95 };
    let driver = Box::new(Nothing { next: 4096, launches: 0 });
    let mut pipeline = DecodePipeline::new(driver, shape, policy, config).unwrap();
    let prompt = vec![f16::ZERO; 8 * 100 * 2 * 128];
    for sequence in 0..3 {
        pipeline.prefill(sequence, (&prompt).into(), (&prompt).into()).unwrap();
    }
    let (q, kv) = (vec![f16::ZERO; 8 * 3 * 8 * 128], vec![f16::ZERO; 8 * 3 * 2 * 128]);
    // The first step makes the launches.
    pipeline.step((&q).into(), (&kv).into(), (&kv).into()).unwrap();
    let launches = pipeline.counters().launches;
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..20 {
        pipeline.step((&q).into(), (&kv).into(), (&kv).into()).unwrap();
    }
    let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(allocated, 0, "in 20 steps");
    assert_eq!(pipeline.counters().launches - launches, 20 * 8 * 5);
    // The counter counts.
    std::hint::black_box(vec![1u8; 100]);
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > before);
}
