//! A program that is linked against the shim starts with every kind of driver library, and explains itself.

mod fake;

use std::path::Path;
use std::process::Command;

use cust::CudaFlags;
use cust::device::Device;
use fake::Fake;

/// Calls of cust and cust_raw, and how they end. The other tests start this one with libraries of theirs; by
/// itself it shows that nothing breaks with what this machine has.
#[test]
fn probe() {
    println!("status: {}", psa_cuda_shim::status());
    println!("init: {}", outcome(cust::init(CudaFlags::empty())));
    println!("count: {}", outcome(Device::num_devices()));
    let mut pool = std::ptr::null_mut();
    // SAFETY: `pool` is writable.
    let code = unsafe { cust::sys::cuDeviceGetDefaultMemPool(&mut pool, 0) };
    println!("pool: {}", code as u32);
    println!("failure: {:?}", psa_cuda_shim::last_failure());
}

fn outcome<T: std::fmt::Debug>(result: Result<T, cust::error::CudaError>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => {
            let own = psa_cuda_shim::last_failure().map_or(0, |failure| failure.code);
            format!(
                "{error:?}: {error}; {} {:?}",
                psa_cuda_shim::error_name(own),
                psa_cuda_shim::error_text(own)
            )
        }
    }
}

/// This program, which will run `probe` alone.
fn program() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "probe", "--nocapture"]);
    command
}

fn run(library: &Path, settings: &str) -> String {
    let output = program().env("PSA_LIBCUDA", library).env("FAKE_CUDA", settings).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn assert_has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}

#[test]
fn without_a_library_every_call_says_that_there_is_no_device() {
    let text = run(&Fake::empty("none").library(), "");
    assert_has(
        &text,
        &[
            "status: there is no CUDA driver library ",
            "init: NoDevice: \"CUDA_ERROR_NO_DEVICE\"; CUDA_ERROR_NO_DEVICE None",
            "pool: 100",
            "function: \"cuDeviceGetDefaultMemPool\", code: 100, lacking: false",
        ],
    );
}

#[test]
fn a_file_that_is_no_library_is_named_with_the_loaders_reason() {
    let text = run(&Fake::wrong("text", &b"this is no library, whatever its name\n".repeat(4)).library(), "");
    assert_has(
        &text,
        &["libcuda.so.1 is not a usable CUDA driver: ", "invalid ELF header", "init: NoDevice"],
    );
    let text = run(&Fake::wrong("short", b"").library(), "");
    assert_has(&text, &["libcuda.so.1 is not a usable CUDA driver: ", "file too short"]);
}

#[test]
fn a_library_of_another_word_size_is_named_with_the_loaders_reason() {
    // The header of a 32-bit library for x86; the loader looks no further.
    let mut header = vec![0; 4096];
    header[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    header[16..24].copy_from_slice(&[3, 0, 3, 0, 1, 0, 0, 0]);
    let text = run(&Fake::wrong("elf32", &header).library(), "");
    assert_has(&text, &["libcuda.so.1 is not a usable CUDA driver: ", "ELFCLASS32", "init: NoDevice"]);
}

#[test]
fn a_library_that_is_no_driver_is_refused_with_what_it_lacks() {
    let text = run(&Fake::build("other", &["-DWITHOUT_DRIVER"]).library(), "");
    assert_has(&text, &["is not a usable CUDA driver: it has no function cuInit", "init: NoDevice"]);
}

#[test]
fn calls_reach_the_library_and_its_codes_come_back() {
    let fake = Fake::build("works", &[]);
    let text = run(&fake.library(), "devices=2");
    assert_has(&text, &["libcuda.so.1, CUDA 12.4\n", "init: ()", "count: 2", "pool: 0", "failure: None"]);
    let text = run(&fake.library(), "fail=cuDeviceGetCount:2");
    assert_has(
        &text,
        &["count: OutOfMemory: \"out of memory\"; CUDA_ERROR_OUT_OF_MEMORY Some(\"out of memory\")"],
    );
}

#[test]
fn a_code_that_the_bindings_do_not_know_becomes_999_and_the_drivers_own_is_remembered() {
    let fake = Fake::build("unknown", &[]);
    let text = run(&fake.library(), "fail=cuDeviceGetCount:4242 fail=cuDeviceGetDefaultMemPool:4243");
    assert_has(
        &text,
        &[
            "count: UnknownError: ",
            "CUDA_ERROR_OF_TOMORROW Some(\"something that this binary has never heard of\")",
            "pool: 999",
            "code: 4243, lacking: false",
        ],
    );
}

#[test]
fn a_function_that_the_library_lacks_is_an_error_of_that_call_alone() {
    let text = run(&Fake::build("lacks", &["-DWITHOUT_POOLS"]).library(), "");
    assert_has(
        &text,
        &[
            "init: ()",
            "count: 1",
            "pool: 302",
            "function: \"cuDeviceGetDefaultMemPool\", code: 302, lacking: true",
        ],
    );
}

#[test]
fn the_program_does_not_need_libcuda_to_start() {
    let output = Command::new("readelf")
        .arg("-d")
        .arg(std::env::current_exe().unwrap())
        .output()
        .expect("readelf comes with the linker");
    let needed = String::from_utf8(output.stdout).unwrap();
    assert!(needed.contains("Shared library: [libc.so.6]"), "{needed}");
    assert!(!needed.contains("libcuda"), "{needed}");
    let output = program().env_remove("PSA_LIBCUDA").output().unwrap();
    assert!(output.status.success());
}
