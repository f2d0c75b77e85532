//! The small launches whose counters `cargo xtask ratchet` pins.

use std::process::Command;

fn count() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kernel-counters")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_entry_is_launched_and_counts_the_same_every_time() {
    let first = count();
    assert_eq!(first, count());
    let counters: serde_json::Value = serde_json::from_str(&first).unwrap();
    let counters = counters.as_object().unwrap();
    let mut names: Vec<&str> = kernels_gpu::kernels().iter().map(|kernel| kernel.name).collect();
    names.sort_unstable();
    assert_eq!(counters.keys().map(String::as_str).collect::<Vec<_>>(), names);
    for (name, counted) in counters {
        // A launch that left at once would pin nothing.
        assert!(counted["global_bytes_written"].as_u64().unwrap() > 0, "{name}: {counted}");
    }
}
