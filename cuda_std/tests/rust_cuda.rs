//! Our `cuda_std` against rust-cuda's, by the list in rust-cuda-api.txt: every line that is not absent compiles
//! here as the signature it claims, and what is called absent is.
//!
//! Trap: the list and the table below are two texts. They are compared, so that neither can be changed alone.

// One import a name; kinds that have no value to look at are checked by resolving.
#![allow(unused_imports)]

use std::collections::BTreeSet;

use cuda_std::atomic::{
    AtomicF32, AtomicF64, BlockAtomicF32, BlockAtomicF64, Ordering, SystemAtomicF32, SystemAtomicF64,
};
use cuda_std::half::{bf16, f16};
use cuda_std::ptr::AddressSpace;
use cuda_std::shared::SharedPtr;
use cuda_std::warp::WarpReductionOp;
use cuda_std::{atomic, float, mem, misc, ptr, ptx, shared, thread, warp};

const LIST: &str = include_str!("../rust-cuda-api.txt");

/// A line of the list.
struct Line {
    path: String,
    types: String,
    there: String,
    here: String,
    why: String,
}

fn lines() -> Vec<Line> {
    LIST.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let parts: Vec<&str> = line.split('|').map(str::trim).collect();
            let [path, types, there, here, why] = parts[..] else { panic!("not five columns: {line}") };
            let own = str::to_owned;
            Line { path: own(path), types: own(types), there: own(there), here: own(here), why: own(why) }
        })
        .collect()
}

/// Path, types and signature in one form, without white space.
fn key(path: &str, types: &str, signature: &str) -> String {
    let text = format!("{path}|{types}|{signature}");
    text.chars().filter(|c| !c.is_whitespace() && *c != ',').collect()
}

/// Compiles `PATH` as a value of type `SIGNATURE`, once for each `T`, and returns the keys of the rows.
macro_rules! items {
    ($([$($t:ty),*] $path:expr => $signature:ty;)*) => {{
        let mut seen = BTreeSet::new();
        $(
            items!(@one [$($t),*] $path => $signature);
            seen.insert(key(stringify!($path), stringify!($($t)*), stringify!($signature)));
        )*
        seen
    }};
    (@one [] $path:expr => $signature:ty) => {
        let _: $signature = $path;
    };
    (@one [$($t:ty),+] $path:expr => $signature:ty) => {$({
        type T = $t;
        let _: $signature = $path;
    })+};
}

/// Resolves each name, whatever it is, and returns them.
macro_rules! names {
    ($($first:ident $(:: $next:ident)*),* $(,)?) => {{
        $( { use cuda_std::$first$(::$next)* as _; } )*
        BTreeSet::from([$(concat!(stringify!($first) $(, "::", stringify!($next))*)),*])
    }};
}

const KINDS: [&str; 4] = ["type", "attribute", "re-export", "macro"];

#[test]
#[rustfmt::skip]
fn every_item_of_the_list_compiles_here_as_it_says() {
    let compiled = items! {
        [] thread::thread_idx_x => fn() -> u32;
        [] thread::thread_idx_y => fn() -> u32;
        [] thread::thread_idx_z => fn() -> u32;
        [] thread::block_idx_x => fn() -> u32;
        [] thread::block_idx_y => fn() -> u32;
        [] thread::block_idx_z => fn() -> u32;
        [] thread::block_dim_x => fn() -> u32;
        [] thread::block_dim_y => fn() -> u32;
        [] thread::block_dim_z => fn() -> u32;
        [] thread::grid_dim_x => fn() -> u32;
        [] thread::grid_dim_y => fn() -> u32;
        [] thread::grid_dim_z => fn() -> u32;
        [] thread::thread_idx => fn() -> [u32; 3];
        [] thread::block_idx => fn() -> [u32; 3];
        [] thread::block_dim => fn() -> [u32; 3];
        [] thread::grid_dim => fn() -> [u32; 3];
        [] thread::index => fn() -> u32;
        [] thread::index_1d => fn() -> u32;
        [] thread::index_2d => fn() -> [u32; 2];
        [] thread::index_3d => fn() -> [u32; 3];
        [] thread::first => fn() -> bool;
        [] thread::warp_size => fn() -> u32;
        [] thread::sync_threads => fn();
        [] thread::sync_threads_count => fn(u32) -> u32;
        [] thread::sync_threads_and => fn(u32) -> u32;
        [] thread::sync_threads_or => fn(u32) -> u32;
        [] thread::grid_fence => fn();
        [] thread::device_fence => fn();
        [] thread::system_fence => fn();
        [] thread::nanosleep => fn(u32);
        [] warp::lane_id => fn() -> u32;
        [] warp::activemask => fn() -> u32;
        [] warp::sync_warp => unsafe fn(u32);
        [i8, u8, i16, u16, i32, u32, i64, u64, i128, u128, f32, f64, bf16, f16] warp::warp_shuffle_down => unsafe fn(u32, T, u32, u32) -> (T, bool);
        [i8, u8, i16, u16, i32, u32, i64, u64, i128, u128, f32, f64, bf16, f16] warp::warp_shuffle_up => unsafe fn(u32, T, u32, u32) -> (T, bool);
        [i8, u8, i16, u16, i32, u32, i64, u64, i128, u128, f32, f64, bf16, f16] warp::warp_shuffle_idx => unsafe fn(u32, T, u32, u32) -> (T, bool);
        [i8, u8, i16, u16, i32, u32, i64, u64, i128, u128, f32, f64, bf16, f16] warp::warp_shuffle_xor => unsafe fn(u32, T, u32, u32) -> (T, bool);
        [] warp::warp_vote_all => unsafe fn(u32, bool) -> bool;
        [] warp::warp_vote_any => unsafe fn(u32, bool) -> bool;
        [] warp::warp_vote_ballot => unsafe fn(u32, bool) -> u32;
        [i32, u32, i64, u64, f32, f64] warp::warp_match_any => unsafe fn(u32, T) -> u32;
        [i32, u32, i64, u64, f32, f64] warp::warp_match_all => unsafe fn(u32, T) -> Option<u32>;
        [i32, u32] warp::warp_reduce => unsafe fn(u32, T, WarpReductionOp) -> T;
        [] warp::WarpReductionOp::Add => WarpReductionOp;
        [] warp::WarpReductionOp::Min => WarpReductionOp;
        [] warp::WarpReductionOp::Max => WarpReductionOp;
        [] warp::WarpReductionOp::And => WarpReductionOp;
        [] warp::WarpReductionOp::Or => WarpReductionOp;
        [] warp::WarpReductionOp::Xor => WarpReductionOp;
        [u8, f32] shared::dynamic_shared_mem => fn() -> *mut T;
        [] mem::dynamic_smem_size => fn() -> u32;
        [] mem::total_smem_size => fn() -> u32;
        [] ptr::AddressSpace::Global => AddressSpace;
        [] ptr::AddressSpace::Shared => AddressSpace;
        [] ptr::AddressSpace::Constant => AddressSpace;
        [] ptr::AddressSpace::Local => AddressSpace;
        [u8, f32] ptr::is_in_address_space => unsafe fn(*const T, AddressSpace) -> bool;
        [u8, f32] ptr::convert_generic_to_specific_address_space => unsafe fn(*const T, AddressSpace) -> *const T;
        [u8, f32] ptr::convert_specific_address_space_to_generic => unsafe fn(*const T, AddressSpace) -> *const T;
        [] misc::breakpoint => fn();
        [] misc::clock => fn() -> u64;
        [] misc::profiler_counter::<0> => fn();
        [] atomic::AtomicF32::new => fn(f32) -> AtomicF32;
        [] atomic::AtomicF32::into_inner => fn(AtomicF32) -> f32;
        [] atomic::AtomicF32::fetch_add => fn(&AtomicF32, f32, Ordering) -> f32;
        [] atomic::AtomicF32::fetch_sub => fn(&AtomicF32, f32, Ordering) -> f32;
        [] atomic::AtomicF32::fetch_and => fn(&AtomicF32, f32, Ordering) -> f32;
        [] atomic::AtomicF32::fetch_or => fn(&AtomicF32, f32, Ordering) -> f32;
        [] atomic::AtomicF32::fetch_xor => fn(&AtomicF32, f32, Ordering) -> f32;
        [] atomic::AtomicF32::load => fn(&AtomicF32, Ordering) -> f32;
        [] atomic::AtomicF32::store => fn(&AtomicF32, f32, Ordering);
        [] atomic::AtomicF64::new => fn(f64) -> AtomicF64;
        [] atomic::AtomicF64::into_inner => fn(AtomicF64) -> f64;
        [] atomic::AtomicF64::fetch_add => fn(&AtomicF64, f64, Ordering) -> f64;
        [] atomic::AtomicF64::fetch_sub => fn(&AtomicF64, f64, Ordering) -> f64;
        [] atomic::AtomicF64::fetch_and => fn(&AtomicF64, f64, Ordering) -> f64;
        [] atomic::AtomicF64::fetch_or => fn(&AtomicF64, f64, Ordering) -> f64;
        [] atomic::AtomicF64::fetch_xor => fn(&AtomicF64, f64, Ordering) -> f64;
        [] atomic::AtomicF64::load => fn(&AtomicF64, Ordering) -> f64;
        [] atomic::AtomicF64::store => fn(&AtomicF64, f64, Ordering);
        [] atomic::BlockAtomicF32::new => fn(f32) -> BlockAtomicF32;
        [] atomic::BlockAtomicF32::into_inner => fn(BlockAtomicF32) -> f32;
        [] atomic::BlockAtomicF32::fetch_add => unsafe fn(&BlockAtomicF32, f32, Ordering) -> f32;
        [] atomic::BlockAtomicF32::fetch_sub => unsafe fn(&BlockAtomicF32, f32, Ordering) -> f32;
        [] atomic::BlockAtomicF32::fetch_and => unsafe fn(&BlockAtomicF32, f32, Ordering) -> f32;
        [] atomic::BlockAtomicF32::fetch_or => unsafe fn(&BlockAtomicF32, f32, Ordering) -> f32;
        [] atomic::BlockAtomicF32::fetch_xor => unsafe fn(&BlockAtomicF32, f32, Ordering) -> f32;
        [] atomic::BlockAtomicF32::load => unsafe fn(&BlockAtomicF32, Ordering) -> f32;
        [] atomic::BlockAtomicF32::store => unsafe fn(&BlockAtomicF32, f32, Ordering);
        [] atomic::BlockAtomicF64::new => fn(f64) -> BlockAtomicF64;
        [] atomic::BlockAtomicF64::into_inner => fn(BlockAtomicF64) -> f64;
        [] atomic::BlockAtomicF64::fetch_add => unsafe fn(&BlockAtomicF64, f64, Ordering) -> f64;
        [] atomic::BlockAtomicF64::fetch_sub => unsafe fn(&BlockAtomicF64, f64, Ordering) -> f64;
        [] atomic::BlockAtomicF64::fetch_and => unsafe fn(&BlockAtomicF64, f64, Ordering) -> f64;
        [] atomic::BlockAtomicF64::fetch_or => unsafe fn(&BlockAtomicF64, f64, Ordering) -> f64;
        [] atomic::BlockAtomicF64::fetch_xor => unsafe fn(&BlockAtomicF64, f64, Ordering) -> f64;
        [] atomic::BlockAtomicF64::load => unsafe fn(&BlockAtomicF64, Ordering) -> f64;
        [] atomic::BlockAtomicF64::store => unsafe fn(&BlockAtomicF64, f64, Ordering);
        [] atomic::SystemAtomicF32::new => fn(f32) -> SystemAtomicF32;
        [] atomic::SystemAtomicF32::into_inner => fn(SystemAtomicF32) -> f32;
        [] atomic::SystemAtomicF32::fetch_add => fn(&SystemAtomicF32, f32, Ordering) -> f32;
        [] atomic::SystemAtomicF32::fetch_sub => fn(&SystemAtomicF32, f32, Ordering) -> f32;
        [] atomic::SystemAtomicF32::fetch_and => fn(&SystemAtomicF32, f32, Ordering) -> f32;
        [] atomic::SystemAtomicF32::fetch_or => fn(&SystemAtomicF32, f32, Ordering) -> f32;
        [] atomic::SystemAtomicF32::fetch_xor => fn(&SystemAtomicF32, f32, Ordering) -> f32;
        [] atomic::SystemAtomicF32::load => fn(&SystemAtomicF32, Ordering) -> f32;
        [] atomic::SystemAtomicF32::store => fn(&SystemAtomicF32, f32, Ordering);
        [] atomic::SystemAtomicF64::new => fn(f64) -> SystemAtomicF64;
        [] atomic::SystemAtomicF64::into_inner => fn(SystemAtomicF64) -> f64;
        [] atomic::SystemAtomicF64::fetch_add => fn(&SystemAtomicF64, f64, Ordering) -> f64;
        [] atomic::SystemAtomicF64::fetch_sub => fn(&SystemAtomicF64, f64, Ordering) -> f64;
        [] atomic::SystemAtomicF64::fetch_and => fn(&SystemAtomicF64, f64, Ordering) -> f64;
        [] atomic::SystemAtomicF64::fetch_or => fn(&SystemAtomicF64, f64, Ordering) -> f64;
        [] atomic::SystemAtomicF64::fetch_xor => fn(&SystemAtomicF64, f64, Ordering) -> f64;
        [] atomic::SystemAtomicF64::load => fn(&SystemAtomicF64, Ordering) -> f64;
        [] atomic::SystemAtomicF64::store => fn(&SystemAtomicF64, f64, Ordering);
        [f32, f64] float::GpuFloat::floor => fn(T) -> T;
        [f32, f64] float::GpuFloat::ceil => fn(T) -> T;
        [f32, f64] float::GpuFloat::round => fn(T) -> T;
        [f32, f64] float::GpuFloat::trunc => fn(T) -> T;
        [f32, f64] float::GpuFloat::fract => fn(T) -> T;
        [f32, f64] float::GpuFloat::abs => fn(T) -> T;
        [f32, f64] float::GpuFloat::sqrt => fn(T) -> T;
        [f32, f64] float::GpuFloat::copysign => fn(T, T) -> T;
        [f32, f64] float::GpuFloat::mul_add => fn(T, T, T) -> T;
        [f32] float::GpuFloatExp::exp => fn(T) -> T;
        [f32] float::GpuFloatExp::exp2 => fn(T) -> T;
        [f32] float::GpuFloatExp::ln => fn(T) -> T;
        [f32] float::GpuFloatExp::log2 => fn(T) -> T;
        [u32] ptx::cp_async_16 => unsafe fn(SharedPtr<T>, *const T);
        [] ptx::cp_async_commit => fn();
        [] ptx::cp_async_wait::<1> => fn();
        [] ptx::cp_async_wait_all => fn();
    };
    let resolved = names!(gpu_only, half::bf16, half::f16, kernel, prelude::f16, prelude::kernel, prelude::thread, shared::shared_array);
    let (mut listed, mut named) = (BTreeSet::new(), BTreeSet::new());
    for line in lines().iter().filter(|line| line.here != "absent") {
        let (path, signature) = match line.here.as_str() {
            "same" => (line.path.as_str(), line.there.as_str()),
            other => other.split_once(": ").unwrap_or_else(|| panic!("{}: neither `same`, `absent` nor `PATH: SIGNATURE`", line.path)),
        };
        match KINDS.iter().any(|kind| signature.split([' ', ':']).next() == Some(kind)) {
            true => { named.insert(path.to_owned()); }
            false => { listed.insert(key(path, &line.types, signature)); }
        }
    }
    assert_eq!(listed, compiled, "the list and the table of this test");
    assert_eq!(named, resolved.into_iter().map(str::to_owned).collect(), "names without a value");
}

#[test]
fn every_difference_has_its_reason() {
    for line in lines() {
        assert!(line.here == "same" || line.why.len() > 4, "{}: {} without a reason", line.path, line.here);
    }
}

#[test]
fn nothing_is_listed_twice() {
    let mut seen = BTreeSet::new();
    for line in lines() {
        assert!(seen.insert(line.path.clone()), "{} is listed twice", line.path);
    }
    assert!(seen.len() > 200, "{} items: rust-cuda has more", seen.len());
}

/// A function that was added later is not left standing as absent.
#[test]
fn what_is_called_absent_is_not_defined_here() {
    let source = |module: &str| {
        let path = format!("{}/src/{module}.rs", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap_or_default()
    };
    for line in lines().iter().filter(|line| line.here == "absent") {
        let module = line.path.split("::").next().unwrap_or_default().to_owned();
        let name = line.path.rsplit("::").next().unwrap_or_default();
        let text = source(&module);
        for definition in [format!("fn {name}("), format!("fn {name}<")] {
            assert!(!text.contains(&definition), "{} is defined in {module}.rs: list it", line.path);
        }
    }
}
