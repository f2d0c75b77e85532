//! What the checkers keep of memory stays within 12 bytes a byte.

use ptx_emulator::{Arg, Checks, Device, LaunchConfig, Module, Options};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator, counting.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on as it came; the counters do not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promises, handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises, handed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Each thread reads 16 bytes and writes them elsewhere: 8 MiB in all.
const PTX: &str = "
.version 7.8
.target sm_80
.address_size 64
.visible .entry copy(.param .u64 x, .param .u64 y) {
    .reg .b64 %rd<6>; .reg .b32 %r<8>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mad.lo.u32 %r3, %r2, 1024, %r1;
    mul.wide.u32 %rd3, %r3, 16;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd4];
    st.global.v4.u32 [%rd5], {%r4, %r5, %r6, %r7};
    ret;
}";

#[test]
fn checkers_keep_at_most_twelve_bytes_a_byte() {
    const HALF: usize = 4 << 20;
    let module = Module::parse(PTX).unwrap();
    let peak = |checks: Checks, threads: usize| {
        let mut device = Device::new(Options { checks, threads, ..Options::default() });
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let y = device.alloc(HALF as u64, "y").unwrap();
        let x = device.alloc(HALF as u64, "x").unwrap();
        device.memset(x, 1, HALF as u64).unwrap();
        let config =
            LaunchConfig { grid: [HALF as u32 / 16 / 1024, 1, 1], block: [1024, 1, 1], shared_bytes: 0 };
        let report = device.launch(&module, "copy", config, &[Arg::Ptr(x), Arg::Ptr(y)]).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
        (PEAK.load(Relaxed) - before - 2 * HALF) as f64 / (2 * HALF) as f64
    };
    // Everything but the bytes themselves is counted: marks of written bytes, cells of the race checker, and
    // the registers of the CTAs under way, which is why there is something without checkers too.
    let (off, on) = (peak(Checks::none(), 1), peak(Checks::all(), 1));
    assert!(off < 1.0, "{off} bytes a byte without checkers");
    assert!(on > 11.0 && on - off <= 12.0 - 0.125, "{on} bytes a byte, {off} without checkers");
}
