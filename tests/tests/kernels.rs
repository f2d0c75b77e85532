//! Kernels launched one by one, as another project would: what the whole step never asks of them.

use half::f16;
use kernels_gpu::{attend, gather, merge};
use psa::driver::{Driver, DriverError, Emulated, EmulatedOptions};
use psa_codegen::{ContractError, Launch, Region};

/// A device and what it takes to move slices there and back.
struct Memory(Emulated);

impl Memory {
    fn new() -> Memory {
        Memory(Emulated::new(EmulatedOptions::default()).unwrap())
    }

    fn upload<T: bytemuck::Pod>(&mut self, data: &[T], what: &str) -> Region {
        let region = self.0.region(size_of_val(data), what).unwrap();
        self.0.upload(region.address(), bytemuck::cast_slice(data)).unwrap();
        region
    }

    fn download<T: bytemuck::Pod>(&mut self, region: Region, count: usize) -> Vec<T> {
        let mut data = vec![T::zeroed(); count];
        self.0.download(region.address(), bytemuck::cast_slice_mut(&mut data)).unwrap();
        data
    }
}

#[test]
fn gather_copies_whole_slots_in_any_order() {
    let mut m = Memory::new();
    let slot = 1024usize;
    let source: Vec<u8> = (0..10 * slot).map(|i| (i * 7 + i / slot) as u8).collect();
    let pairs: Vec<u32> = vec![9, 0, 0, 5, 4, 1, 4, 2];
    for ctas in [1, 3, 16] {
        let from = m.upload(&source, "source");
        let to = m.upload(&vec![0xeeu8; 6 * slot], "target");
        let list = m.upload(&pairs, "pairs");
        let args = gather::gather::Args {
            source: from.input(),
            target: to.in_out(),
            pairs: list.input(),
            count: 4,
            slot_bytes: slot as u32,
        };
        m.0.launch(&gather::gather::launch([ctas, 1, 1], args).unwrap()).unwrap();
        let got: Vec<u8> = m.download(to, 6 * slot);
        for pair in pairs.chunks(2) {
            let (s, t) = (pair[0] as usize, pair[1] as usize);
            assert_eq!(got[t * slot..][..slot], source[s * slot..][..slot], "{pair:?} on {ctas} CTAs");
        }
        assert!(got[3 * slot..5 * slot].iter().all(|&b| b == 0xee), "slots not named stay");
    }
}

/// One row of one block, an empty plan.
fn empty_plan(m: &mut Memory) -> (Vec<Launch>, [Region; 3]) {
    const D: usize = 64;
    let q = m.upload(&[f16::ONE; D], "q");
    let arena = m.upload(&[f16::ONE; 2 * 16 * D], "arena");
    let zero = m.upload(&[0u32], "zero");
    let table = m.upload(&[0u32; 4], "block_table");
    let lens = m.upload(&[16u32], "lens");
    let order = m.upload(&[0u32; 4], "order");
    let (peak, rest) = (m.upload(&[0.0f32], "peak"), m.upload(&[0u64], "rest"));
    let log_mass = m.upload(&[0.0f32; 4], "log_mass");
    let partial = m.0.region(4 * D, "partial").unwrap();
    let partial_ml = m.0.region(8, "partial_ml").unwrap();
    let results =
        [m.upload(&[f32::NAN; D], "out"), m.upload(&[f32::NAN], "lse"), m.upload(&[u32::MAX; 2], "read")];
    let mass_read = m.upload(&[f32::NAN], "mass");
    let attend = attend::attend::launch::<f16>(
        D,
        [1, 1, 1],
        attend::attend::Args {
            q: q.input(),
            arena: arena.input(),
            block_table: table.input(),
            seqs: zero.input(),
            lens: lens.input(),
            order: order.input(),
            count: zero.input(),
            partial: partial.output(),
            partial_ml: partial_ml.output(),
            scale: 0.125,
            layer: 0,
            layers: 1,
            kv_heads: 1,
            group: 1,
            max_blocks: 4,
            max_splits: 1,
        },
    );
    let merge = merge::merge::launch::<f16>(
        D,
        [1, 1, 1],
        merge::merge::Args {
            q: q.input(),
            arena: arena.input(),
            block_table: table.input(),
            seqs: zero.input(),
            lens: lens.input(),
            log_mass: log_mass.input(),
            order: order.input(),
            count: zero.input(),
            budget: zero.input(),
            peak: peak.input(),
            rest: rest.input(),
            partial: partial.input(),
            partial_ml: partial_ml.input(),
            out: results[0].output(),
            lse: results[1].output(),
            read: results[2].output(),
            mass_read: mass_read.output(),
            scale: 0.125,
            mass: 0.0,
            layer: 0,
            layers: 1,
            kv_heads: 1,
            group: 1,
            max_blocks: 4,
            max_splits: 1,
        },
    );
    (vec![attend.unwrap(), merge.unwrap()], results)
}

#[test]
fn an_empty_plan_gives_zeros_and_minus_infinity() {
    let mut m = Memory::new();
    let (launches, [out, lse, read]) = empty_plan(&mut m);
    for launch in &launches {
        m.0.launch(launch).unwrap();
    }
    assert_eq!(m.download::<f32>(out, 64), [0.0; 64]);
    assert_eq!(m.download::<f32>(lse, 1), [f32::NEG_INFINITY]);
    assert_eq!(m.download::<u32>(read, 2), [0, 0]);
}

/// A launch with its parts changed by somebody who knows better.
fn changed(launch: &Launch, change: impl FnOnce(&mut psa_codegen::RawLaunch)) -> Launch {
    let mut raw = launch.clone().into_raw();
    change(&mut raw);
    // SAFETY: the emulator checks every access.
    unsafe { Launch::from_raw(raw) }
}

#[test]
fn a_launch_with_the_wrong_block_is_refused_with_both() {
    let mut m = Memory::new();
    let (launches, _) = empty_plan(&mut m);
    let wrong = changed(&launches[0], |raw| raw.block = [64, 1, 1]);
    let error = m.0.launch(&wrong).unwrap_err();
    assert!(matches!(error, DriverError::Contract(ContractError::Block { .. })), "{error:?}");
    for part in ["attend_f16_d64`", "[64, 1, 1]", "[128, 1, 1]"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[test]
fn a_buffer_too_small_is_refused_and_one_of_unknown_length_is_not_overrun() {
    let mut m = Memory::new();
    let (launches, _) = empty_plan(&mut m);
    m.0.launch(&launches[0]).unwrap();
    let small = m.0.region(4 * 63, "short_out").unwrap();
    let out = launches[1].kernel.params.iter().position(|p| p.name == "out").unwrap();
    let short = changed(&launches[1], |raw| {
        raw.args[out] = psa_codegen::ArgValue::Ptr(small.address());
        raw.extents[out] = Some(psa_codegen::Extent { len: 63, bytes: 4 * 63, largest: None });
    });
    let error = m.0.launch(&short).unwrap_err();
    assert!(matches!(error, DriverError::Contract(ContractError::Relation { .. })), "{error:?}");
    assert!(error.to_string().contains("pass `out` with at least 64 elements"), "{error}");
    // Without its length the contract cannot say; the emulator's checkers can.
    let unknown = changed(&short, |raw| raw.extents[out] = None);
    let error = m.0.launch(&unknown).unwrap_err();
    assert!(matches!(error, DriverError::Check { .. }), "{error}");
    assert!(error.to_string().contains("short_out"), "{error}");
}
