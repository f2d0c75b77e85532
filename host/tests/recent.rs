//! What a device remembers of its last steps, and that remembering costs the step nothing.

mod common;

use std::sync::{Arc, Mutex};

use common::Batch;
use psa::driver::{Driver, DriverError, Emulated, EmulatedOptions};
use psa::telemetry::Telemetry;
use psa::{DecodePlan, Device, Dtype, KvCache, Mirror, Policy, SequenceId, Shape};
use psa_codegen::{DeviceLimits, Launch};

const SHAPE: Shape = Shape { layers: 2, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };

/// The emulator's driver, and what was asked of it.
struct Watched {
    inner: Emulated,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Watched {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

impl Driver for Watched {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        self.note(format!("alloc {what}"));
        self.inner.alloc(bytes, what)
    }
    fn limits(&self) -> DeviceLimits {
        self.inner.limits()
    }
    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.inner.free(address)
    }
    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.note(format!("upload {}", data.len()));
        self.inner.upload(address, data)
    }
    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        self.note(format!("download {}", data.len()));
        self.inner.download(address, data)
    }
    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        self.note("launch".into());
        self.inner.launch(launch)
    }
}

struct Rig {
    batch: Batch,
    cache: KvCache,
    ids: Vec<SequenceId>,
    calls: Arc<Mutex<Vec<String>>>,
}

fn rig() -> Rig {
    let calls = Arc::new(Mutex::new(vec![]));
    let shared = calls.clone();
    let device = Device::with_driver("watched", move || {
        let inner = Emulated::new(EmulatedOptions::default())?;
        Ok(Box::new(Watched { inner, calls: shared.clone() }) as Box<dyn Driver>)
    });
    let batch = Batch::random(SHAPE, &[400, 300], 6);
    let (mut cache, ids) = batch.cache(&device, Mirror::Bits2);
    for (i, &id) in ids.iter().enumerate() {
        cache.append(id, 1, batch.k[i].rows(), batch.v[i].rows()).unwrap();
    }
    Rig { batch, cache, ids, calls }
}

impl Rig {
    /// One step of both layers; the calls of the second layer.
    fn step(&mut self, plan: &mut DecodePlan) -> Vec<String> {
        let q = self.batch.queries(&[0, 1]);
        let mut out = vec![0.0; 2 * SHAPE.query_elements()];
        plan.attend(&mut self.cache, 0, q.rows(), &mut out).unwrap();
        self.calls.lock().unwrap().clear();
        plan.attend(&mut self.cache, 1, q.rows(), &mut out).unwrap();
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn plan(&self, mass: f32) -> DecodePlan {
        DecodePlan::new(&self.cache, &self.ids, Policy::Progressive { mass }).unwrap()
    }
}

#[test]
fn remembering_adds_no_call_to_a_step_and_deferring_takes_two_away() {
    let mut rig = rig();
    let mut plan = rig.plan(0.7);
    rig.step(&mut plan);
    // Descriptions up, four launches, output and lse down: 2 sequences, 4 heads of 64 channels.
    let bare = ["upload 8", "upload 8", "upload 1024", "upload 8"].into_iter().chain(["launch"; 4]);
    let bare: Vec<&str> = bare.chain(["download 2048", "download 32"]).collect();
    let reported = [bare.as_slice(), &["download 32", "download 32"]].concat();
    assert_eq!(rig.step(&mut plan), reported);
    rig.cache.defer_reports(true).unwrap();
    assert_eq!(rig.step(&mut plan), bare, "nothing is allocated, waited for or copied besides");
    assert!(plan.report().heads.is_empty(), "what is not known is not reported");
    rig.cache.defer_reports(false).unwrap();
    assert_eq!(rig.step(&mut plan), reported);
    rig.calls.lock().unwrap().clear();
    assert_eq!(rig.cache.recent_steps().unwrap().len(), 2 * 4, "two layers, four steps");
    assert_eq!(rig.calls.lock().unwrap().len(), 1, "one copy");
}

#[test]
fn deferred_steps_are_counted_as_reported_ones_are() {
    let mut rig = rig();
    let (mut each, mut later) = (Telemetry::new(SHAPE, 100), Telemetry::new(SHAPE, 100));
    let masses = [0.5, 0.9, 0.99];
    for mass in masses {
        let mut plan = rig.plan(mass);
        rig.step(&mut plan);
        (0..2).for_each(|layer| each.observe(0, &plan, layer).unwrap());
    }
    rig.cache.defer_reports(true).unwrap();
    let before = rig.cache.recent_steps().unwrap();
    assert_eq!(later.observe_recent(&rig.plan(0.5), &before).unwrap(), 0);
    assert_eq!(later.total(), each.total(), "the device remembers reported steps too");
    let mut deferred = Telemetry::new(SHAPE, 100);
    assert_eq!(deferred.observe_recent(&rig.plan(0.5), &[]).unwrap(), 0);
    for mass in masses {
        let mut plan = rig.plan(mass);
        rig.step(&mut plan);
    }
    let plan = rig.plan(0.5);
    let steps = rig.cache.recent_steps().unwrap();
    assert_eq!(deferred.observe_recent(&plan, &steps[6..]).unwrap(), 6, "the first six were never seen");
    assert_eq!(deferred.total(), each.total());
    for kv_head in 0..2 {
        assert_eq!(deferred.counters(1, kv_head), each.counters(1, kv_head));
    }
    let read = |telemetry: &Telemetry| -> Vec<(usize, usize, usize, Vec<f32>)> {
        telemetry.records().map(|r| (r.layer, r.blocks_read, r.tokens, r.mass.to_vec())).collect()
    };
    assert_eq!(read(&deferred), read(&each));
    assert_eq!(deferred.observe_recent(&plan, &steps).unwrap(), 0, "no step twice");
    assert_eq!(deferred.total(), each.total());
}

#[test]
fn a_ring_keeps_the_last_sixteen_steps_of_every_layer_and_says_what_it_forgot() {
    let mut rig = rig();
    rig.cache.defer_reports(true).unwrap();
    let mut plan = rig.plan(0.7);
    for _ in 0..20 {
        rig.step(&mut plan);
    }
    let steps = rig.cache.recent_steps().unwrap();
    let numbers: Vec<u64> = steps.iter().map(|step| step.number).collect();
    assert_eq!(numbers, (8..40).collect::<Vec<u64>>());
    // The same step again and again: every place of the ring holds its result.
    assert!(
        steps.iter().all(|step| step.read == steps[step.layer].read && step.mass == steps[step.layer].mass)
    );
    assert!(steps[0].read[0] > 0 && steps[0].mass[0] > 0.5, "{:?}", steps[0]);
    assert_eq!(Telemetry::new(SHAPE, 0).observe_recent(&plan, &steps).unwrap(), 8);
}

#[test]
fn a_device_without_memory_of_its_own_says_so() {
    let batch = Batch::random(SHAPE, &[40], 1);
    let (mut cache, _) = batch.cache(&Device::cpu(), Mirror::Bits2);
    let error = cache.defer_reports(true).unwrap_err().to_string();
    assert!(error.contains("cpu") && error.contains("reports with each step"), "{error}");
    assert!(cache.defer_reports(false).is_ok());
    let error = cache.recent_steps().unwrap_err().to_string();
    assert!(error.contains("cpu") && error.contains("observe the plan"), "{error}");
}
