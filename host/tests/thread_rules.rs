//! Who may be where: the cache moves between threads, plans and reports are read by many. What must not compile is in the
//! crate's documentation.
//!
//! Nothing here is shared and changed at the same time: a cache has no lock and no atomic, so there is no interleaving for
//! a model checker such as loom to explore. The number that tells caches apart is one
//! atomic counter; `driver::Faults` is three numbers behind a mutex.

mod common;

use psa::{DecodePlan, Device, Dtype, KvCache, Policy, Report, SequenceId, Shape};

const fn is_send<T: Send>() {}
const fn is_sync<T: Sync>() {}

const _: () = {
    is_send::<KvCache>();
    is_send::<DecodePlan>();
    is_sync::<DecodePlan>();
    is_send::<Report>();
    is_sync::<Report>();
    is_send::<Device>();
    is_sync::<Device>();
    is_send::<SequenceId>();
    is_sync::<SequenceId>();
    is_send::<psa::Error>();
    is_sync::<psa::Error>();
    is_send::<psa::driver::Faults>();
    is_sync::<psa::driver::Faults>();
};

const SHAPE: Shape = Shape { layers: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };

#[test]
fn a_cache_goes_on_in_another_thread_and_its_plan_is_read_by_many() {
    let batch = common::Batch::random(SHAPE, &[200, 90], 3);
    for device in [Device::cpu(), Device::emulator()] {
        let (mut cache, ids) = batch.cache(&device, psa::Mirror::Bits2);
        let here = common::step(&batch, &mut cache, &ids, &[0, 1], Policy::Progressive { mass: 0.9 });
        let (there, plan) = std::thread::scope(|scope| {
            let (batch, ids) = (&batch, &ids);
            let policy = Policy::Progressive { mass: 0.9 };
            scope
                .spawn(move || {
                    let step = common::step(batch, &mut cache, ids, &[0, 1], policy);
                    (step.bits(), step.plan)
                })
                .join()
                .unwrap()
        });
        assert_eq!(there, here.bits());
        let reports: Vec<Report> = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4).map(|_| scope.spawn(|| plan.report())).collect();
            readers.into_iter().map(|reader| reader.join().unwrap()).collect()
        });
        assert!(reports.iter().all(|report| report == &here.report));
    }
}
