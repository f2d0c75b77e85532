//! Parser and decoder: see `parse` in src/lib.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ptx_emulator_fuzz::parse(data);
});
