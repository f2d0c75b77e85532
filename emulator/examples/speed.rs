//! Lane instructions a second, checks off and on, for loops of different kinds.
//!
//!     cargo run --release -p ptx-emulator --example speed
//!
//! The bar is 150 M/s on one core with checks off and a quarter of that with all of them.

use ptx_emulator::{Arg, Checks, Device, LaunchConfig, Module, Options};

const HEAD: &str = ".version 7.8\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 dyn[];\n\
.visible .entry k(.param .u64 in, .param .u64 out) {\n\
.reg .b64 %rd<8>; .reg .b32 %r<40>; .reg .pred %p<4>;\n\
ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4;\n\
add.u64 %rd4, %rd1, %rd3; add.u64 %rd5, %rd2, %rd3; mov.u32 %r2, dyn; shl.b32 %r3, %r1, 4; add.u32 %r3, %r3, %r2;\n\
mov.b32 %r4, 0; mov.b32 %r10, 0; mov.b32 %r11, 0f3F800000; mov.b32 %r12, 0f3F000000;\n\
mov.b32 %r20, 0; mov.b32 %r21, 0; mov.b32 %r22, 0; mov.b32 %r23, 0;\n\
st.shared.v4.b32 [%r3], {%r20, %r21, %r22, %r23};\nbar.sync 0;\nL:\n";
const TAIL: &str =
    "add.u32 %r4, %r4, 1; setp.lt.u32 %p1, %r4, 20000; @%p1 bra L;\n st.global.u32 [%rd5], %r10; ret; }\n";

fn measure(name: &str, body: &str) {
    let text = format!("{HEAD}{body}{TAIL}");
    let module = match Module::parse(&text) {
        Ok(m) => m,
        Err(e) => {
            eprintln!("{name}: {e}");
            return;
        }
    };
    let mut line = format!("{name:24}");
    for checks in [Checks::none(), Checks::all()] {
        let counters = checks != Checks::none();
        let mut device = Device::new(Options { checks, counters, ..Options::default() });
        let mut run = || -> ptx_emulator::Result<f64> {
            let x = device.alloc_init(&[1; 512], "in")?;
            let o = device.alloc(512, "out")?;
            let config = LaunchConfig { grid: [2, 1, 1], block: [128, 1, 1], shared_bytes: 4096 };
            let r = device.launch(&module, "k", config, &[Arg::Ptr(x), Arg::Ptr(o)])?;
            for f in &r.findings {
                eprintln!("{f}");
            }
            Ok(r.counters.lane_instructions as f64 / r.wall_ns as f64 * 1e3)
        };
        match run() {
            Ok(v) => line += &format!("{v:10.0} M/s"),
            Err(e) => line += &format!(" {e}"),
        }
    }
    println!("{line}");
}

fn main() {
    println!("{:24}{:>14}{:>14}", "lane instructions", "checks off", "all checks");
    measure(
        "integer",
        "add.u32 %r10, %r10, %r4; xor.b32 %r13, %r10, %r4; shl.b32 %r14, %r13, 3; add.u32 %r10, %r14, %r10; mad.lo.u32 %r10, %r13, 5, %r10;\n",
    );
    measure(
        "single precision",
        "fma.rn.f32 %r11, %r11, %r12, %r12; mul.rn.f32 %r13, %r11, %r12; add.rn.f32 %r11, %r13, %r11; max.f32 %r14, %r13, %r11; fma.rn.f32 %r11, %r12, %r14, %r12;\n",
    );
    measure(
        "shared and global",
        "ld.shared.v4.b32 {%r20, %r21, %r22, %r23}, [%r3]; ld.global.nc.b32 %r13, [%rd4]; add.u32 %r10, %r10, %r13; add.u32 %r20, %r20, 1; st.shared.v4.b32 [%r3], {%r20, %r21, %r22, %r23};\n",
    );
    measure(
        "shuffle and exp",
        "shfl.sync.bfly.b32 %r13, %r11, 1, 31, -1; ex2.approx.ftz.f32 %r14, %r13; rcp.approx.ftz.f32 %r15, %r14; cvt.rn.bf16x2.f32 %r16, %r14, %r15; add.rn.f32 %r11, %r12, %r12;\n",
    );
    measure(
        "attention-like",
        "cp.async.cg.shared.global [%r3], [%rd1], 16; cp.async.commit_group; cp.async.wait_group 0; bar.warp.sync -1;\n\
         ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r3];\n\
         mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r24, %r25, %r26, %r27}, {%r20, %r21, %r22, %r23}, {%r20, %r21}, {%r11, %r11, %r11, %r11};\n\
         shfl.sync.bfly.b32 %r13, %r24, 1, 31, -1; max.f32 %r13, %r13, %r24; sub.rn.f32 %r14, %r25, %r13; ex2.approx.ftz.f32 %r14, %r14;\n\
         add.u32 %r30, %r4, %r4; xor.b32 %r31, %r30, %r4; shl.b32 %r32, %r31, 3; and.b32 %r33, %r32, 7; add.u32 %r34, %r33, %r32;\n\
         fma.rn.f32 %r15, %r14, %r12, %r12; mul.rn.f32 %r16, %r15, %r12; cvt.rn.bf16x2.f32 %r17, %r15, %r16; setp.lt.u32 %p2, %r34, 100; selp.b32 %r18, %r17, %r16, %p2;\n",
    );
}
