//! LAUNCH.json: see `launch` in src/lib.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = ptx_emulator_fuzz::launch(data);
});
