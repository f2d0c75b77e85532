//! The events an embedding program sees are those the counters count, in the same order every time.

mod common;
use common::kernel;
use ptx_emulator::{
    AccessKind, Arg, Counters, Device, Hooks, InstructionEvent, LaunchConfig, MemoryEvent, Module, Options,
    Report, Space,
};

#[derive(Default, PartialEq, Debug)]
struct Tally {
    counted: Counters,
    /// Line, CTA, warp, first address of each access.
    accesses: Vec<(u32, [u32; 3], u32, u64)>,
    kinds: Vec<(AccessKind, Space, u32)>,
    last: u32,
}

impl Hooks for Tally {
    fn instruction(&mut self, e: &InstructionEvent<'_>) {
        self.counted.warp_instructions += 1;
        self.counted.lane_instructions += u64::from(e.lanes.count_ones());
        self.last = e.line;
    }

    fn memory(&mut self, e: &MemoryEvent<'_>) {
        assert_eq!(e.line, self.last, "an access belongs to the instruction told of before");
        let bytes = u64::from(e.lanes.count_ones() * e.bytes);
        self.counted.global_requests += u64::from(e.space == Space::Global);
        match (e.space, e.kind) {
            (Space::Global, AccessKind::Read) => {
                self.counted.global_bytes_read += bytes;
                self.counted.global_sectors_read += e.units(32).len() as u64;
            }
            (Space::Global, _) => {
                self.counted.global_bytes_written += bytes;
                self.counted.global_sectors_written += e.units(32).len() as u64;
            }
            (Space::Shared, _) => {
                self.counted.shared_accesses += 1;
                self.counted.shared_bytes += bytes;
            }
            _ => {}
        }
        if e.kind == AccessKind::Atomic {
            self.counted.atomics += u64::from(e.lanes.count_ones());
        }
        self.kinds.push((e.kind, e.space, e.bytes));
        self.accesses.push((e.line, e.cta, e.warp, e.lanes().next().unwrap().1));
    }
}

/// Every kind of access, with divergence, a generic store and a false guard.
const BODY: &str = "mov.u32 %r1, dyn; mul.lo.u32 %r2, %t, 16; add.u32 %r3, %r1, %r2; and.b32 %r4, %t, 7;\n\
    mul.wide.u32 %rd1, %r4, 16; add.u64 %rd1, %in, %rd1;\n\
    cp.async.cg.shared.global [%r3], [%rd1], 16;\n\
    cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;\n\
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r3];\n\
    ld.shared.v2.b32 {%r14, %r15}, [%r3]; bar.sync 0;\n\
    setp.lt.u32 %p1, %t, 5;\n\
    @%p1 st.global.u32 [%my], %r14;\n\
    setp.gt.u32 %p2, %t, 99;\n\
    @%p2 st.global.u32 [%my], %r14;\n\
    cvta.to.global.u64 %rd2, %out;\n\
    @!%p1 st.u32 [%my], %r15;\n\
    red.global.add.u32 [%out+1024], 1;\n\
    atom.shared.add.u32 %r16, [%r1], 1;";

fn go(hooks: Option<&mut Tally>, seed: u64) -> Report {
    let text = kernel(".extern .shared .align 16 .b8 dyn[];", BODY);
    let module = Module::parse(&text).unwrap();
    let mut device = Device::new(Options { seed, ..Options::default() });
    let (a, b) = (device.alloc_init(&[3; 128], "in").unwrap(), device.alloc_init(&[0; 1028], "out").unwrap());
    let config = LaunchConfig { grid: [1, 1, 1], block: [64, 1, 1], shared_bytes: 1024 };
    let args = [Arg::Ptr(a), Arg::Ptr(b)];
    match hooks {
        Some(h) => device.launch_with(&module, "k", config, &args, h),
        None => device.launch(&module, "k", config, &args),
    }
    .unwrap()
}

#[test]
fn events_add_up_to_the_counters() {
    for seed in [0, 5] {
        let mut t = Tally::default();
        let report = go(Some(&mut t), seed);
        assert!(report.is_clean(), "{:?}", report.findings);
        let c = report.counters;
        let want =
            Counters { bank_conflicts: 0, shared_passes_ideal: 0, barriers: 0, mma_operations: 0, ..c };
        assert_eq!(t.counted, want);
        assert!(t.kinds.contains(&(AccessKind::Read, Space::Shared, 16)), "ldmatrix is a read of rows");
        assert!(t.kinds.contains(&(AccessKind::Write, Space::Shared, 16)), "cp.async writes its destination");
        assert!(t.kinds.contains(&(AccessKind::Atomic, Space::Global, 4)));
        assert!(t.kinds.contains(&(AccessKind::Read, Space::Param, 8)));
    }
}

#[test]
fn hooks_change_nothing_and_see_the_same_order_every_time() {
    let (mut a, mut b) = (Tally::default(), Tally::default());
    let (with, again, without) = (go(Some(&mut a), 9), go(Some(&mut b), 9), go(None, 9));
    assert_eq!(a, b);
    assert_eq!((&with.findings, with.counters), (&without.findings, without.counters));
    assert_eq!(with.counters, again.counters);
    let mut other = Tally::default();
    go(Some(&mut other), 10);
    assert_ne!(a.accesses, other.accesses, "the order is that of the schedule");
}

#[test]
fn a_faulty_access_is_a_finding_and_no_event() {
    struct No;
    impl Hooks for No {
        fn memory(&mut self, e: &MemoryEvent<'_>) {
            assert_ne!(e.kind, AccessKind::Write, "the store is out of bounds in every lane");
        }
    }
    let text = kernel("", "st.global.u32 [%out+4096], %t;");
    let module = Module::parse(&text).unwrap();
    let mut device = Device::new(Options::default());
    let x = device.alloc(4, "x").unwrap();
    let config = LaunchConfig { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 };
    let r = device.launch_with(&module, "k", config, &[Arg::Ptr(x), Arg::Ptr(x)], &mut No).unwrap();
    assert_eq!(r.findings.len(), 1);
}
