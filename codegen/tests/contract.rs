//! A launch that breaks its kernel's contract is refused with the relation and the values, before anything runs:
//! by the typed launcher, and by the check that every driver makes.

use cuda_std::kernel;
use half::{bf16, f16};
use psa_codegen::{
    ArgValue, ContractError, DeviceLimits, Extent, In, InOut, Launch, LaunchError, Out, RawLaunch, Region,
};

const PAIR: usize = 2;

/// One row a block: `out[r] = x[table[r]]`, with a running state.
///
/// # Safety
/// Never executed here.
#[kernel(
    block = (32, 4, 1),
    dynamic_shared = 4 * D,
    instances(T in [bf16, f16], D in [64, 128]),
    grid = (rows.div_ceil(PAIR), let batch, 1),
    out(out),
    align(x = 16),
    may_overlap(x, state),
    requires(
        rows > 0,
        table.len() >= rows,
        x.len() >= (table.max() + 1) * batch * D,
        out.len() >= batch * rows * D,
        stride - D < 1024,
    )
)]
pub unsafe fn rows<T: Copy, const D: usize>(
    x: *const T,
    table: *const u32,
    out: *mut f32,
    state: *mut u32,
    rows: u32,
    stride: u64,
    scale: f32,
) {
}

fn region(address: u64, bytes: u64) -> Region {
    // SAFETY: nothing executes the launches of this file.
    unsafe { Region::new(address, bytes) }
}

/// Five rows of 64, batch 3: all that is needed and not an element more.
fn args() -> rows::Args<bf16> {
    rows::Args {
        x: region(0x1_0000, 2 * 8 * 3 * 64).input(),
        table: region(0x2_0000, 4 * 5).with_largest(7).input(),
        out: region(0x3_0000, 4 * 3 * 5 * 64).output(),
        state: region(0x4_0000, 4).in_out(),
        rows: 5,
        stride: 64,
        scale: 1.0,
    }
}

const GRID: [u32; 3] = [3, 3, 1];

fn refused(grid: [u32; 3], args: rows::Args<bf16>) -> (ContractError, String) {
    match rows::launch::<bf16>(64, grid, args) {
        Err(LaunchError::Contract(error)) => (error.clone(), error.to_string()),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` missing in: {text}");
    }
}

#[test]
fn what_just_fits_is_launched_with_the_block_and_shared_memory_of_the_instance() {
    let launch = rows::launch::<bf16>(64, GRID, args()).unwrap();
    assert_eq!((launch.grid, launch.block, launch.shared_bytes), (GRID, [32, 4, 1], 256));
    assert_eq!(launch.kernel.name, "rows_bf16_d64");
    launch.check(&DeviceLimits::of_sm(80)).unwrap();
    assert_eq!(launch, rows::Instance::<bf16, 64>::launch(GRID, args()).unwrap());
}

#[test]
fn a_buffer_one_element_short_is_named_with_what_it_needs() {
    let short = |what: &str, args: rows::Args<bf16>, needed: &str| {
        let (error, text) = refused(GRID, args);
        assert!(matches!(error, ContractError::Relation { short: Some(name), .. } if name == what), "{text}");
        says(&text, &["`rows_bf16_d64`", &format!("pass `{what}` with at least {needed} elements")]);
        text
    };
    let text = short("out", rows::Args { out: region(0x3_0000, 4 * 959).output(), ..args() }, "960");
    says(&text, &["out.len() >= batch * rows * D", "959 >= 960", "batch = 3, rows = 5, D = 64"]);
    short("table", rows::Args { table: region(0x2_0000, 19).with_largest(7).input(), ..args() }, "5");
    // A larger entry in the table needs a longer x.
    let table = region(0x2_0000, 20).with_largest(8).input();
    let text = short("x", rows::Args { table, ..args() }, "1728");
    says(&text, &["table.max() = 8"]);
}

#[test]
fn what_the_host_does_not_know_is_not_checked_and_listed() {
    let table = region(0x2_0000, 20).input();
    let launch =
        rows::launch::<bf16>(64, GRID, rows::Args { table, x: region(0x1_0000, 2).input(), ..args() });
    assert_eq!(launch.unwrap().unchecked(), ["x.len() >= (table.max() + 1) * batch * D"]);
    assert!(rows::launch::<bf16>(64, GRID, args()).unwrap().unchecked().is_empty());
}

#[test]
fn products_beyond_64_bits_are_refused_not_wrapped() {
    // 2^32 - 1 rows in 2^31 - 1 pairs of ... : the needed length exceeds any buffer.
    let table = region(0x2_0000, 4 * u64::from(u32::MAX)).with_largest(u64::MAX).input();
    let (error, text) = refused([1 << 31, 3, 1], rows::Args { rows: u32::MAX, table, ..args() });
    assert!(matches!(error, ContractError::GridRange { axis: 'x', limit: 0x7fff_ffff, .. }), "{text}");
    let (_, text) =
        refused(GRID, rows::Args { table: region(0x2_0000, 20).with_largest(u64::MAX).input(), ..args() });
    // (2^64 - 1 + 1) * 192 is compared in 128 bits and shown as the largest number there is.
    says(&text, &["x.len()", "1536 >= 18446744073709551615"]);
}

#[test]
fn a_side_without_a_value_is_a_violation() {
    let (error, text) = refused(GRID, rows::Args { stride: 63, ..args() });
    assert!(matches!(error, ContractError::Arithmetic { .. }), "{text}");
    says(&text, &["stride - D < 1024", "63 - 64 is negative", "stride = 63, D = 64"]);
}

#[test]
fn a_grid_follows_the_rule() {
    let (error, text) = refused([4, 3, 1], args());
    assert_eq!(
        error,
        ContractError::Grid {
            kernel: "rows_bf16_d64",
            axis: 'x',
            rule: "rows.div_ceil(PAIR)",
            expected: 3,
            found: 4
        }
    );
    says(&text, &["4 blocks along x", "rows.div_ceil(PAIR) = 3"]);
    assert!(matches!(refused([3, 3, 2], args()).0, ContractError::Grid { axis: 'z', expected: 1, .. }));
    assert!(matches!(refused([3, 0, 1], args()).0, ContractError::GridRange { axis: 'y', .. }));
    assert!(matches!(
        refused([3, 65536, 1], args()).0,
        ContractError::GridRange { axis: 'y', limit: 65535, .. }
    ));
}

#[test]
fn addresses_are_aligned_as_the_attribute_or_the_element_says() {
    let (error, _) = refused(GRID, rows::Args { x: region(0x1_0008, 1 << 14).input(), ..args() });
    assert!(matches!(error, ContractError::Alignment { param: "x", align: 16, .. }));
    let (error, text) = refused(GRID, rows::Args { state: region(0x4_0002, 4).in_out(), ..args() });
    assert!(matches!(error, ContractError::Alignment { param: "state", align: 4, .. }));
    says(&text, &["0x40002", "4 bytes"]);
    let (error, _) = refused(GRID, rows::Args { out: region(0, 4096).output(), ..args() });
    assert!(matches!(error, ContractError::Null { param: "out", len: 1024, .. }));
    let (error, _) = refused(GRID, rows::Args { out: region(u64::MAX - 3, 4096).output(), ..args() });
    assert!(matches!(error, ContractError::Range { param: "out", .. }));
}

#[test]
fn what_is_written_shares_memory_only_where_the_kernel_allows_it() {
    let (error, text) = refused(GRID, rows::Args { out: region(0x1_0bfc, 4096).output(), ..args() });
    assert!(matches!(error, ContractError::Overlap { written: "out", other: "x", .. }), "{text}");
    says(&text, &["0x10bfc", "0x10000", "3072 bytes"]);
    // Neighbours do not overlap; x and state may; two inputs may.
    let neighbour = rows::Args { out: region(0x1_0c00, 4096).output(), ..args() };
    rows::launch::<bf16>(64, GRID, neighbour).unwrap();
    rows::launch::<bf16>(64, GRID, rows::Args { state: region(0x1_0000, 4).in_out(), ..args() }).unwrap();
    let table = region(0x1_0000, 20).with_largest(7).input();
    rows::launch::<bf16>(64, GRID, rows::Args { table, ..args() }).unwrap();
}

fn raw(change: impl FnOnce(&mut RawLaunch)) -> Result<(), ContractError> {
    let mut raw = rows::launch::<bf16>(64, GRID, args()).unwrap().into_raw();
    change(&mut raw);
    // SAFETY: nothing executes it.
    unsafe { Launch::from_raw(raw) }.check(&DeviceLimits::of_sm(80))
}

#[test]
fn a_launch_made_of_parts_meets_the_same_check() {
    raw(|_| {}).unwrap();
    let error = |change: fn(&mut RawLaunch)| raw(change).unwrap_err();
    assert!(matches!(error(|raw| raw.block = [128, 1, 1]), ContractError::Block { found: [128, 1, 1], .. }));
    assert!(matches!(
        error(|raw| raw.shared_bytes = 0),
        ContractError::Shared { expected: 256, found: 0, .. }
    ));
    assert!(matches!(error(|raw| raw.grid[0] = 2), ContractError::Grid { .. }));
    assert!(matches!(error(|raw| raw.args.truncate(6)), ContractError::Arity { expected: 7, found: 6, .. }));
    assert!(matches!(
        error(|raw| raw.args[4] = ArgValue::U64(5)),
        ContractError::Type { param: "rows", found: "u64", .. }
    ));
    assert!(matches!(
        error(|raw| raw.extents[2] = Some(Extent { len: 1, bytes: 4, largest: None })),
        ContractError::Relation { short: Some("out"), .. }
    ));
    // Of unknown length: aligned is all that can be said.
    raw(|raw| raw.extents[2] = None).unwrap();
}

#[test]
fn a_device_that_is_too_small_refuses() {
    let launch = rows::launch::<bf16>(64, GRID, args()).unwrap();
    let limits = DeviceLimits { sm: 75, ..DeviceLimits::of_sm(80) };
    assert!(matches!(launch.check(&limits), Err(ContractError::Device { needed: 80, found: 75, .. })));
    let limits = DeviceLimits { shared_per_block: 255, ..DeviceLimits::of_sm(80) };
    assert!(matches!(launch.check(&limits), Err(ContractError::Device { needed: 256, found: 255, .. })));
}

#[test]
fn lengths_of_raw_parts_count_as_those_of_regions() {
    // SAFETY: nothing executes the launch.
    let (x, out, state) = unsafe {
        (In::from_raw(0x1_0000, 8 * 3 * 64), Out::from_raw(0x3_0000, 959), InOut::from_raw(0x4_0000, 1))
    };
    let (error, _) = refused(GRID, rows::Args { x, out, state, ..args() });
    assert!(matches!(error, ContractError::Relation { short: Some("out"), .. }));
}
