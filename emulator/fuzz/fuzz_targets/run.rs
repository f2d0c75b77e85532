//! Loader and machine: see `run` in src/lib.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = ptx_emulator_fuzz::run(data);
});
