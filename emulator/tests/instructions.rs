//! One instruction at a time, with edge values. Expected values are written out or computed here
//! with other means than the emulator's (the ISA manual's definitions, Rust's own arithmetic, the
//! `half` crate).

mod common;
use common::one;
use half::{bf16, f16};

#[track_caller]
fn t(code: &str, inputs: &[u64], want: u64) {
    let got = one(code, inputs);
    assert_eq!(got, want, "{code} of {inputs:x?}: got {got:#x}, want {want:#x}");
}

fn f(x: f32) -> u64 {
    u64::from(x.to_bits())
}

fn d(x: f64) -> u64 {
    x.to_bits()
}

const NAN: u64 = 0x7fff_ffff;
const SUB: u64 = 0x0000_0001; // smallest subnormal single
const M1: u64 = 0xffff_ffff; // -1 as 32 bits

#[test]
fn integer_add_and_sub_wrap_saturate_and_carry() {
    t("add.s32 %r0, %r1, %r2;", &[0x7fff_ffff, 1], 0x8000_0000);
    t("add.u16 %h0, %h1, %h2;", &[0xffff, 2], 1);
    t("add.u64 %rd0, %rd1, %rd2;", &[u64::MAX, 3], 2);
    t("add.sat.s32 %r0, %r1, %r2;", &[0x7fff_ffff, 1], 0x7fff_ffff);
    t("sub.sat.s32 %r0, %r1, %r2;", &[0x8000_0000, 1], 0x8000_0000);
    t("sub.s64 %rd0, %rd1, %rd2;", &[0, 1], u64::MAX);
    t("add.s32 %r0, %r1, -5;", &[3], 0xffff_fffe);
    t("add.cc.u32 %r3, %r1, %r2; addc.u32 %r0, %r4, %r5;", &[M1, 1, 0, 7, 8], 16);
    t("add.cc.u32 %r3, %r1, %r2; addc.u32 %r0, %r4, %r5;", &[1, 1, 0, 7, 8], 15);
    t("sub.cc.u32 %r3, %r1, %r2; subc.u32 %r0, %r4, %r5;", &[0, 1, 0, 7, 2], 4);
    t("add.cc.u32 %r3, %r1, %r2; addc.cc.u32 %r4, %r4, 0; addc.u32 %r0, 0, 0;", &[M1, 1, 0, M1], 1);
    t("mad.lo.cc.u32 %r3, %r1, %r2, %r4; madc.hi.u32 %r0, %r1, %r2, 0;", &[M1, M1, 0, M1], {
        let p = 0xffff_ffffu64 * 0xffff_ffff;
        (p + 0xffff_ffff) >> 32
    });
}

#[test]
fn integer_products_low_high_and_wide() {
    t("mul.lo.s32 %r0, %r1, %r2;", &[0x1_0001, 0x1_0001], 0x2_0001);
    t("mul.hi.u32 %r0, %r1, %r2;", &[M1, M1], 0xffff_fffe);
    t("mul.hi.s32 %r0, %r1, %r2;", &[M1, 5], M1);
    t("mul.hi.u64 %rd0, %rd1, %rd2;", &[u64::MAX, u64::MAX], u64::MAX - 1);
    t("mul.hi.s64 %rd0, %rd1, %rd2;", &[u64::MAX, 2], u64::MAX);
    t("mul.wide.u32 %rd0, %r1, %r2;", &[M1, M1], 0xffff_fffe_0000_0001);
    t("mul.wide.s32 %rd0, %r1, %r2;", &[M1, 3], (-3i64) as u64);
    t("mul.wide.s16 %r0, %h1, %h2;", &[0x8000, 0x8000], 0x4000_0000);
    t("mul.wide.u16 %r0, %h1, %h2;", &[0xffff, 0xffff], 0xfffe_0001);
    t("mad.lo.u32 %r0, %r1, %r2, %r3;", &[M1, 2, 5], 3);
    t("mad.wide.u32 %rd0, %r1, %r2, %rd3;", &[M1, 2, 3], 0x2_0000_0001);
    t("mad.hi.s32 %r0, %r1, %r2, %r3;", &[0x4000_0000, 8, 1], 3);
    t("mul24.lo.u32 %r0, %r1, %r2;", &[0xff00_0003, 5], 15);
    t("mul24.hi.s32 %r0, %r1, %r2;", &[0x00ff_ffff, 0x10000], 0xffff_ffff);
    t("sad.s32 %r0, %r1, %r2, %r3;", &[M1, 4, 10], 15);
    t("sad.u32 %r0, %r1, %r2, %r3;", &[0, M1, 0], M1);
}

#[test]
fn integer_division_truncates_and_survives_the_edges() {
    t("div.s32 %r0, %r1, %r2;", &[(-7i32) as u32 as u64, 2], (-3i32) as u32 as u64);
    t("div.s32 %r0, %r1, %r2;", &[0x8000_0000, M1], 0x8000_0000);
    t("rem.s32 %r0, %r1, %r2;", &[(-7i32) as u32 as u64, 2], M1);
    t("div.u32 %r0, %r1, %r2;", &[7, 0], M1);
    t("rem.u64 %rd0, %rd1, %rd2;", &[u64::MAX, 10], 5);
    t("div.u16 %h0, %h1, %h2;", &[0xffff, 0x10], 0xfff);
}

#[test]
fn integer_min_max_abs_neg() {
    t("min.s32 %r0, %r1, %r2;", &[M1, 1], M1);
    t("min.u32 %r0, %r1, %r2;", &[M1, 1], 1);
    t("max.s64 %rd0, %rd1, %rd2;", &[u64::MAX, 1], 1);
    t("max.u16 %h0, %h1, %h2;", &[0xffff, 1], 0xffff);
    t("max.s16 %h0, %h1, %h2;", &[0xffff, 1], 1);
    t("abs.s32 %r0, %r1;", &[0x8000_0000], 0x8000_0000);
    t("abs.s16 %h0, %h1;", &[0xfffe], 2);
    t("neg.s64 %rd0, %rd1;", &[1], u64::MAX);
}

#[test]
fn bit_operations_follow_their_definitions() {
    t("popc.b32 %r0, %r1;", &[0xf0f0_0001], 9);
    t("popc.b64 %r0, %rd1;", &[u64::MAX], 64);
    t("clz.b32 %r0, %r1;", &[1], 31);
    t("clz.b32 %r0, %r1;", &[0], 32);
    t("clz.b64 %r0, %rd1;", &[1], 63);
    t("bfind.u32 %r0, %r1;", &[0x0001_0000], 16);
    t("bfind.u32 %r0, %r1;", &[0], M1);
    t("bfind.s32 %r0, %r1;", &[0xffff_fff0], 3);
    t("bfind.shiftamt.u32 %r0, %r1;", &[1], 31);
    t("bfind.s64 %r0, %rd1;", &[u64::MAX], M1);
    t("brev.b32 %r0, %r1;", &[1], 0x8000_0000);
    t("brev.b64 %rd0, %rd1;", &[2], 0x4000_0000_0000_0000);
    t("bfe.u32 %r0, %r1, 4, 8;", &[0xabcd_ef12], 0xf1);
    t("bfe.s32 %r0, %r1, 4, 8;", &[0xabcd_ef12], 0xffff_fff1);
    t("bfe.s32 %r0, %r1, 28, 8;", &[0x8000_0000], 0xffff_fff8);
    t("bfe.u32 %r0, %r1, 0, 0;", &[M1], 0);
    t("bfe.u32 %r0, %r1, 32, 4;", &[M1], 0);
    t("bfe.s32 %r0, %r1, 40, 4;", &[0x8000_0000], M1);
    t("bfe.u64 %rd0, %rd1, 60, 16;", &[u64::MAX], 0xf);
    t("bfi.b32 %r0, %r1, %r2, 8, 4;", &[0xa, M1], 0xffff_faff);
    t("bfi.b32 %r0, %r1, %r2, 30, 8;", &[0xff, 0], 0xc000_0000);
    t("bfi.b32 %r0, %r1, %r2, 32, 8;", &[0xff, 5], 5);
    t("bfi.b64 %rd0, %rd1, %rd2, 32, 32;", &[0x1234, 9], 0x1234_0000_0009);
    t("fns.b32 %r0, %r1, 2, 2;", &[0b10_1101], 3);
    t("fns.b32 %r0, %r1, 4, -1;", &[0b10_1101], 3);
    t("fns.b32 %r0, %r1, 0, 5;", &[0b1], M1);
    t("not.b32 %r0, %r1;", &[0], M1);
    t("cnot.b32 %r0, %r1;", &[0], 1);
    t("cnot.b32 %r0, %r1;", &[8], 0);
    t("lop3.b32 %r0, %r1, %r2, %r3, 0x96;", &[0xf0, 0xcc, 0xaa], 0xf0 ^ 0xcc ^ 0xaa);
    t("lop3.b32 %r0, %r1, %r2, %r3, 0xe8;", &[0xf0, 0xcc, 0xaa], 0xe8);
    t("lop3.b32 %r0, %r1, %r2, %r3, 0x1a;", &[0xf0, 0xcc, 0xaa], 0x1a);
    t("prmt.b32 %r0, %r1, %r2, 0x3456;", &[0x3322_1100, 0x7766_5544], 0x3344_5566);
    t("prmt.b32 %r0, %r1, %r2, 0x0b8f;", &[0x83_22_91_00, 0xf7_66_55_44], 0x00_ff_00_ff);
    t("prmt.b32.f4e %r0, %r1, %r2, 1;", &[0x3322_1100, 0x7766_5544], 0x4433_2211);
    t("prmt.b32.b4e %r0, %r1, %r2, 1;", &[0x3322_1100, 0x7766_5544], 0x6677_0011);
    t("prmt.b32.rc8 %r0, %r1, %r2, 2;", &[0x3322_1100, 0], 0x2222_2222);
    t("prmt.b32.ecl %r0, %r1, %r2, 2;", &[0x3322_1100, 0], 0x3322_2222);
    t("prmt.b32.ecr %r0, %r1, %r2, 1;", &[0x3322_1100, 0], 0x1111_1100);
    t("prmt.b32.rc16 %r0, %r1, %r2, 1;", &[0x3322_1100, 0], 0x3322_3322);
    t("bmsk.clamp.b32 %r0, 4, 8;", &[], 0xff0);
    t("szext.clamp.s32 %r0, %r1, 4;", &[0x8], 0xffff_fff8);
    t("dp4a.s32.s32 %r0, %r1, %r2, %r3;", &[0x01ff_0203, 0x0102_0304, 10], 10 + 1 - 2 + 6 + 12);
    t("dp4a.u32.s32 %r0, %r1, %r2, 0;", &[0xff, 0xff], (-255i32) as u32 as u64);
    t("dp2a.lo.s32.s32 %r0, %r1, %r2, 0;", &[0x0003_fffe, 0x0000_0405], 12 - 10);
    t("dp2a.hi.u32.u32 %r0, %r1, %r2, 0;", &[0x0003_0002, 0x0405_0000], 12 + 10);
}

#[test]
fn shifts_clamp_their_amount() {
    t("shl.b32 %r0, %r1, %r2;", &[1, 31], 0x8000_0000);
    t("shl.b32 %r0, %r1, %r2;", &[1, 32], 0);
    t("shr.u32 %r0, %r1, %r2;", &[M1, 33], 0);
    t("shr.s32 %r0, %r1, %r2;", &[0x8000_0000, 99], M1);
    t("shr.s64 %rd0, %rd1, %r2;", &[1 << 63, 64], u64::MAX);
    t("shl.b64 %rd0, %rd1, %r2;", &[1, 40], 1 << 40);
    t("shr.s16 %h0, %h1, %r2;", &[0x8000, 4], 0xf800);
    t("shl.b16 %h0, %h1, %r2;", &[0xffff, 8], 0xff00);
    t("shf.l.wrap.b32 %r0, %r1, %r2, %r3;", &[0x1234_5678, 0x9abc_def0, 36], 0xabcd_ef01);
    t("shf.l.clamp.b32 %r0, %r1, %r2, %r3;", &[0x1234_5678, 0x9abc_def0, 36], 0x1234_5678);
    t("shf.r.wrap.b32 %r0, %r1, %r2, %r3;", &[0x1234_5678, 0x9abc_def0, 4], 0x0123_4567);
    t("shf.r.clamp.b32 %r0, %r1, %r2, %r3;", &[0x1234_5678, 0x9abc_def0, 99], 0x9abc_def0);
}

#[test]
fn comparisons_and_selections() {
    t("setp.lt.s32 %p0, %r1, %r2;", &[M1, 0], 1);
    t("setp.lt.u32 %p0, %r1, %r2;", &[M1, 0], 0);
    t("setp.hi.u32 %p0, %r1, %r2;", &[M1, 0], 1);
    t("setp.ge.s64 %p0, %rd1, %rd2;", &[u64::MAX, 0], 0);
    t("setp.lt.s16 %p0, %h1, %h2;", &[0x8000, 1], 1);
    t("setp.eq.f32 %p0, %r1, %r2;", &[NAN, NAN], 0);
    t("setp.ne.f32 %p0, %r1, %r2;", &[NAN, f(1.0)], 0);
    t("setp.neu.f32 %p0, %r1, %r2;", &[NAN, f(1.0)], 1);
    t("setp.equ.f32 %p0, %r1, %r2;", &[NAN, f(1.0)], 1);
    t("setp.num.f32 %p0, %r1, %r2;", &[f(2.0), f(1.0)], 1);
    t("setp.nan.f64 %p0, %rd1, %rd2;", &[d(f64::NAN), d(1.0)], 1);
    t("setp.eq.f32 %p0, %r1, %r2;", &[f(0.0), f(-0.0)], 1);
    t("setp.gt.f32 %p0, %r1, %r2;", &[SUB, 0], 1);
    t("setp.gt.ftz.f32 %p0, %r1, %r2;", &[SUB, 0], 0);
    t("setp.lt.f16 %p0, %h1, %h2;", &[0x3c00, 0x4000], 1);
    t("setp.lt.bf16 %p0, %h1, %h2;", &[0x3f80, 0xbf80], 0);
    t("setp.lt.and.s32 %p0, %r1, %r2, !%p3;", &[1, 2, 1], 0);
    t("setp.lt.or.s32 %p0, %r1, %r2, %p3;", &[3, 2, 1], 1);
    t("setp.lt.xor.s32 %p0, %r1, %r2, %p3;", &[1, 2, 1], 0);
    t("setp.lt.and.s32 %p3|%p0, %r1, %r2, %p4;", &[3, 2, 0, 1], 1);
    t("set.lt.u32.s32 %r0, %r1, %r2;", &[1, 2], M1);
    t("set.lt.f32.s32 %r0, %r1, %r2;", &[1, 2], f(1.0));
    t("set.gt.and.u32.f32 %r0, %r1, %r2, %p3;", &[f(2.0), f(1.0), 0], 0);
    t("selp.b32 %r0, %r1, %r2, %p3;", &[5, 6, 0], 6);
    t("selp.b64 %rd0, %rd1, %rd2, !%p3;", &[5, 6, 0], 5);
    t("slct.s32.s32 %r0, %r1, %r2, %r3;", &[5, 6, M1], 6);
    t("slct.b32.f32 %r0, %r1, %r2, %r3;", &[5, 6, f(-0.0)], 5);
    t("slct.b32.f32 %r0, %r1, %r2, %r3;", &[5, 6, NAN], 6);
    t("and.pred %p0, %p1, !%p2;", &[1, 0], 1);
    t("xor.pred %p0, %p1, %p2;", &[1, 1], 0);
    t("not.pred %p0, %p1;", &[0], 1);
    t("mov.pred %p0, %p1;", &[1], 1);
    for (what, yes) in [
        ("finite", [1u64, 1, 1, 0, 0]),
        ("infinite", [0, 0, 0, 1, 0]),
        ("number", [1, 1, 1, 1, 0]),
        ("notanumber", [0, 0, 0, 0, 1]),
        ("normal", [1, 0, 1, 0, 0]),
        ("subnormal", [0, 1, 0, 0, 0]),
    ] {
        for (x, want) in [f(1.0), SUB, f(-0.0), f(f32::NEG_INFINITY), NAN].into_iter().zip(yes) {
            t(&format!("testp.{what}.f32 %p0, %r1;"), &[x], want);
        }
    }
}

#[test]
fn single_precision_is_exact_in_every_mode() {
    t("add.f32 %r0, %r1, %r2;", &[f(1.5), f(2.25)], f(3.75));
    t("add.rn.f32 %r0, %r1, %r2;", &[f(f32::INFINITY), f(f32::NEG_INFINITY)], NAN);
    t("sub.f32 %r0, %r1, %r2;", &[f(1.0), f(1.0)], 0);
    t("sub.rm.f32 %r0, %r1, %r2;", &[f(1.0), f(1.0)], f(-0.0));
    // 1 + 2^-60: only directed modes see the small term.
    let tiny = f(2f32.powi(-60));
    t("add.rn.f32 %r0, %r1, %r2;", &[f(1.0), tiny], f(1.0));
    t("add.rp.f32 %r0, %r1, %r2;", &[f(1.0), tiny], f(1.0f32.next_up()));
    t("add.rm.f32 %r0, %r1, %r2;", &[f(1.0), tiny], f(1.0));
    t("sub.rz.f32 %r0, %r1, %r2;", &[f(1.0), tiny], f(1.0f32.next_down()));
    t("mul.rp.f32 %r0, %r1, %r2;", &[f(f32::MAX), f(2.0)], f(f32::INFINITY));
    t("mul.rz.f32 %r0, %r1, %r2;", &[f(f32::MAX), f(2.0)], f(f32::MAX));
    t("mul.rm.f32 %r0, %r1, %r2;", &[f(f32::MAX), f(-2.0)], f(f32::NEG_INFINITY));
    // Subnormals stay unless .ftz is written.
    t("mul.f32 %r0, %r1, %r2;", &[f(2f32.powi(-100)), f(2f32.powi(-40))], f(2f32.powi(-140)));
    t("mul.ftz.f32 %r0, %r1, %r2;", &[f(2f32.powi(-100)), f(-(2f32.powi(-40)))], f(-0.0));
    t("add.ftz.f32 %r0, %r1, %r2;", &[SUB, SUB], 0);
    t("add.f32 %r0, %r1, %r2;", &[SUB, SUB], 2);
    t("mul.rp.f32 %r0, %r1, %r2;", &[SUB, SUB], 1);
    t("add.sat.f32 %r0, %r1, %r2;", &[f(0.75), f(0.75)], f(1.0));
    t("add.sat.f32 %r0, %r1, %r2;", &[f(-0.75), f(-0.75)], 0);
    t("add.sat.f32 %r0, %r1, %r2;", &[NAN, f(1.0)], 0);
    // One rounding: 2^-24 is lost in a * b + c unless the product is exact.
    let a = 1.0 + 2f32.powi(-12);
    t("fma.rn.f32 %r0, %r1, %r2, %r3;", &[f(a), f(a), f(-1.0 - 2f32.powi(-11))], f(2f32.powi(-24)));
    t("fma.rp.f32 %r0, %r1, %r2, %r3;", &[f(a), f(a), 0], f((a * a).next_up()));
    t("fma.rz.f32 %r0, %r1, %r2, %r3;", &[f(f32::MAX), f(2.0), f(-f32::MAX)], f(f32::MAX));
    t("fma.rn.f32 %r0, %r1, %r2, %r3;", &[0, f(f32::INFINITY), f(1.0)], NAN);
    t("mad.rn.f32 %r0, %r1, %r2, %r3;", &[f(3.0), f(4.0), f(5.0)], f(17.0));
    t("div.rn.f32 %r0, %r1, %r2;", &[f(1.0), f(3.0)], f(1.0 / 3.0));
    t("div.rp.f32 %r0, %r1, %r2;", &[f(1.0), f(3.0)], f(1.0 / 3.0));
    t("div.rz.f32 %r0, %r1, %r2;", &[f(1.0), f(3.0)], f((1.0f32 / 3.0).next_down()));
    t("div.rn.f32 %r0, %r1, %r2;", &[f(1.0), f(-0.0)], f(f32::NEG_INFINITY));
    t("rcp.rn.f32 %r0, %r1;", &[f(3.0)], f(1.0 / 3.0));
    t("sqrt.rn.f32 %r0, %r1;", &[f(2.0)], f(2f32.sqrt()));
    // The nearest single lies below the root of 2.
    t("sqrt.rm.f32 %r0, %r1;", &[f(2.0)], f(2f32.sqrt()));
    t("sqrt.rp.f32 %r0, %r1;", &[f(2.0)], f(2f32.sqrt().next_up()));
    t("sqrt.rn.f32 %r0, %r1;", &[f(-1.0)], NAN);
    t("sqrt.rn.f32 %r0, %r1;", &[f(-0.0)], f(-0.0));
}

#[test]
fn directed_single_results_bracket_the_exact_one() {
    // Exact values in f64 (sums of singles of like size and products are exact there).
    let xs = [1.1f32, -0.3, 3.7e10, 7.7e-9, -123.456, 1e-38, 9.99e37];
    for a in xs {
        for b in xs {
            let exact = f64::from(a) * f64::from(b);
            let lo = f32::from_bits(one("mul.rm.f32 %r0, %r1, %r2;", &[f(a), f(b)]) as u32);
            let hi = f32::from_bits(one("mul.rp.f32 %r0, %r1, %r2;", &[f(a), f(b)]) as u32);
            assert!(f64::from(lo) <= exact && exact <= f64::from(hi), "{a} * {b}");
            assert!(lo == hi || lo.next_up() == hi, "{a} * {b}: {lo:e} {hi:e}");
            // Quotient: lo * b and hi * b bracket a, exactly in f64.
            let lo = f32::from_bits(one("div.rm.f32 %r0, %r1, %r2;", &[f(a), f(b)]) as u32);
            let hi = f32::from_bits(one("div.rp.f32 %r0, %r1, %r2;", &[f(a), f(b)]) as u32);
            let (p, q) = (f64::from(lo) * f64::from(b), f64::from(hi) * f64::from(b));
            assert!(p.min(q) <= f64::from(a) && f64::from(a) <= p.max(q), "{a} / {b}");
        }
    }
}

#[test]
fn single_min_max_sign_operations() {
    t("min.f32 %r0, %r1, %r2;", &[f(0.0), f(-0.0)], f(-0.0));
    t("max.f32 %r0, %r1, %r2;", &[f(-0.0), f(0.0)], 0);
    t("min.f32 %r0, %r1, %r2;", &[NAN, f(5.0)], f(5.0));
    t("max.f32 %r0, %r1, %r2;", &[f(5.0), 0xffc0_0001], f(5.0));
    t("max.f32 %r0, %r1, %r2;", &[0xffc0_0001, 0xffc0_0001], NAN);
    t("max.NaN.f32 %r0, %r1, %r2;", &[f(5.0), 0xffc0_0001], NAN);
    t("max.ftz.f32 %r0, %r1, %r2;", &[SUB, f(-1.0)], 0);
    t("min.xorsign.abs.f32 %r0, %r1, %r2;", &[f(-3.0), f(2.0)], f(-2.0));
    t("abs.f32 %r0, %r1;", &[f(-2.0)], f(2.0));
    t("abs.ftz.f32 %r0, %r1;", &[0x8000_0001], 0);
    t("neg.f32 %r0, %r1;", &[0], f(-0.0));
    t("neg.ftz.f32 %r0, %r1;", &[SUB], f(-0.0));
    t("copysign.f32 %r0, %r1, %r2;", &[f(-1.0), f(3.0)], f(-3.0));
}

#[test]
fn approximate_functions_are_the_rounded_double() {
    t("ex2.approx.f32 %r0, %r1;", &[f(0.3)], f(2f64.powf(f64::from(0.3f32)) as f32));
    t("ex2.approx.ftz.f32 %r0, %r1;", &[f(-130.0)], 0);
    t("ex2.approx.f32 %r0, %r1;", &[f(-130.0)], f(2f32.powi(-130)));
    t("ex2.approx.ftz.f32 %r0, %r1;", &[f(f32::NEG_INFINITY)], 0);
    t("lg2.approx.f32 %r0, %r1;", &[f(8.0)], f(3.0));
    t("lg2.approx.ftz.f32 %r0, %r1;", &[SUB], f(f32::NEG_INFINITY));
    t("lg2.approx.f32 %r0, %r1;", &[f(-1.0)], NAN);
    t("rcp.approx.ftz.f32 %r0, %r1;", &[f(4.0)], f(0.25));
    t("rcp.approx.ftz.f32 %r0, %r1;", &[SUB], f(f32::INFINITY));
    t("rsqrt.approx.f32 %r0, %r1;", &[f(16.0)], f(0.25));
    let d = |v: f64| v.to_bits();
    t("rsqrt.approx.f64 %rd0, %rd1;", &[d(3.0)], d(1.0 / 3f64.sqrt()));
    t("rsqrt.approx.ftz.f64 %rd0, %rd1;", &[d(3.0)], d(1.0 / 3f64.sqrt()) & !0xffff_ffff);
    t("sqrt.approx.f32 %r0, %r1;", &[f(2.0)], f(2f32.sqrt()));
    t("div.approx.f32 %r0, %r1, %r2;", &[f(1.0), f(4.0)], f(0.25));
    t("div.full.ftz.f32 %r0, %r1, %r2;", &[f(3.0), f(2.0)], f(1.5));
    t("sin.approx.f32 %r0, %r1;", &[f(1.0)], f((1f64).sin() as f32));
    t("cos.approx.f32 %r0, %r1;", &[f(0.0)], f(1.0));
    t("tanh.approx.f32 %r0, %r1;", &[f(f32::INFINITY)], f(1.0));
}

#[test]
fn double_precision_is_exact() {
    t("add.f64 %rd0, %rd1, %rd2;", &[d(0.1), d(0.2)], d(0.1 + 0.2));
    t("add.rp.f64 %rd0, %rd1, %rd2;", &[d(1.0), d(1e-300)], d(1.0f64.next_up()));
    t("sub.rz.f64 %rd0, %rd1, %rd2;", &[d(1.0), d(1e-300)], d(1.0f64.next_down()));
    t("mul.rm.f64 %rd0, %rd1, %rd2;", &[d(f64::MAX), d(2.0)], d(f64::MAX));
    t("fma.rn.f64 %rd0, %rd1, %rd2, %rd3;", &[d(0.1), d(10.0), d(-1.0)], d(0.1f64.mul_add(10.0, -1.0)));
    t("div.rn.f64 %rd0, %rd1, %rd2;", &[d(1.0), d(3.0)], d(1.0 / 3.0));
    t("sqrt.rn.f64 %rd0, %rd1;", &[d(2.0)], d(2f64.sqrt()));
    t("rcp.rn.f64 %rd0, %rd1;", &[d(3.0)], d(1.0 / 3.0));
    t("min.f64 %rd0, %rd1, %rd2;", &[d(f64::NAN), d(1.0)], d(1.0));
    t("max.f64 %rd0, %rd1, %rd2;", &[d(-0.0), d(0.0)], d(0.0));
    t("neg.f64 %rd0, %rd1;", &[d(1.0)], d(-1.0));
    t("abs.f64 %rd0, %rd1;", &[d(-1.0)], d(1.0));
    t("copysign.f64 %rd0, %rd1, %rd2;", &[d(-1.0), d(3.0)], d(-3.0));
}

fn x2(hi: u16, lo: u16) -> u64 {
    u64::from(hi) << 16 | u64::from(lo)
}

#[test]
fn half_precision_rounds_once() {
    let h = |x: f32| u64::from(f16::from_f32(x).to_bits());
    let b = |x: f32| u64::from(bf16::from_f32(x).to_bits());
    t("add.f16 %h0, %h1, %h2;", &[h(1.0), h(2.0)], h(3.0));
    t("add.f16 %h0, %h1, %h2;", &[h(65504.0), h(65504.0)], 0x7c00);
    t("sub.f16 %h0, %h1, %h2;", &[0x7c00, 0x7c00], 0x7fff);
    t("mul.f16 %h0, %h1, %h2;", &[1, h(0.5)], 0);
    t("mul.ftz.f16 %h0, %h1, %h2;", &[0x0200, h(1.0)], 0);
    t("mul.f16 %h0, %h1, %h2;", &[0x0200, h(1.0)], 0x0200);
    // 1.0009765625^2 - 1 - 2^-9 = 2^-20, lost if the product were rounded first.
    t("fma.rn.f16 %h0, %h1, %h2, %h3;", &[0x3c01, 0x3c01, h(-(1.0 + 2f32.powi(-9)))], h(2f32.powi(-20)));
    // A sum halfway between two bf16 values, moved off the tie by a far smaller product.
    t(
        "fma.rn.bf16 %h0, %h1, %h2, %h3;",
        &[b(1.0 + 2f32.powi(-7)), b(2f32.powi(-8)), b(1.0)],
        b(1.0 + 2f32.powi(-7)),
    );
    t("fma.rn.bf16 %h0, %h1, %h2, %h3;", &[b(2f32.powi(-8)), b(1.0), b(1.0)], b(1.0));
    t(
        "fma.rn.bf16x2 %r0, %r1, %r2, %r3;",
        &[x2(0x3f80, 0x4000), x2(0x4000, 0x4040), x2(0x3f80, 0xbf80)],
        x2(b(3.0) as u16, b(5.0) as u16),
    );
    t("add.f16x2 %r0, %r1, %r2;", &[x2(0x3c00, 0x4000), x2(0x3c00, 0xc000)], x2(0x4000, 0));
    t("max.NaN.f16x2 %r0, %r1, %r2;", &[x2(0x7e00, 0x3c00), x2(0x3c00, 0x4000)], x2(0x7fff, 0x4000));
    t("min.bf16 %h0, %h1, %h2;", &[0x7fc0, b(2.0)], b(2.0));
    t("min.f16 %h0, %h1, %h2;", &[0x8000, 0], 0x8000);
    t("neg.bf16x2 %r0, %r1;", &[x2(0x3f80, 0xbf80)], x2(0xbf80, 0x3f80));
    t("abs.f16x2 %r0, %r1;", &[x2(0xbc00, 0x3c00)], x2(0x3c00, 0x3c00));
    t("add.sat.f16 %h0, %h1, %h2;", &[h(1.0), h(2.0)], h(1.0));
    t("fma.rn.relu.f16 %h0, %h1, %h2, %h3;", &[h(1.0), h(-2.0), h(0.5)], 0);
    t("ex2.approx.f16 %h0, %h1;", &[h(3.0)], h(8.0));
    t("tanh.approx.bf16 %h0, %h1;", &[b(0.5)], b(0.5f32.tanh()));
}

#[test]
fn half_sums_agree_with_the_half_crate_over_many_values() {
    let mut x = 12345u64;
    for _ in 0..300 {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (a, b) = ((x >> 20) as u16, (x >> 40) as u16);
        let (p, q) = (f16::from_bits(a), f16::from_bits(b));
        let want = f16::from_f64(p.to_f64() + q.to_f64());
        let got = one("add.f16 %h0, %h1, %h2;", &[a.into(), b.into()]) as u16;
        assert!(if want.is_nan() { got == 0x7fff } else { got == want.to_bits() }, "{p} + {q}");
        let (p, q) = (bf16::from_bits(a), bf16::from_bits(b));
        let want = bf16::from_f64(p.to_f64() * q.to_f64());
        let got = one("mul.bf16 %h0, %h1, %h2;", &[a.into(), b.into()]) as u16;
        assert!(if want.is_nan() { got == 0x7fff } else { got == want.to_bits() }, "{p} * {q}");
    }
}

#[test]
fn conversions_between_integers() {
    t("cvt.s32.s8 %r0, %r1;", &[0x1ff], M1);
    t("cvt.u32.u8 %r0, %r1;", &[0x1ff], 0xff);
    t("cvt.s64.s32 %rd0, %r1;", &[M1], u64::MAX);
    t("cvt.u64.u32 %rd0, %r1;", &[M1], M1);
    t("cvt.u16.u32 %h0, %r1;", &[0x12345], 0x2345);
    t("cvt.s8.s32 %r0, %r1;", &[0x80], 0xffff_ff80);
    t("cvt.sat.s8.s32 %r0, %r1;", &[1000], 127);
    t("cvt.sat.u8.s32 %r0, %r1;", &[M1], 0);
    t("cvt.sat.u32.s64 %r0, %rd1;", &[1 << 40], M1);
    t("cvt.sat.s32.u32 %r0, %r1;", &[M1], 0x7fff_ffff);
}

#[test]
fn conversions_from_float_to_integer_round_and_clamp() {
    t("cvt.rzi.s32.f32 %r0, %r1;", &[f(-1.9)], M1);
    t("cvt.rni.s32.f32 %r0, %r1;", &[f(2.5)], 2);
    t("cvt.rni.s32.f32 %r0, %r1;", &[f(3.5)], 4);
    t("cvt.rmi.s32.f32 %r0, %r1;", &[f(-1.1)], 0xffff_fffe);
    t("cvt.rpi.u32.f32 %r0, %r1;", &[f(1.1)], 2);
    t("cvt.rzi.u32.f32 %r0, %r1;", &[f(-5.0)], 0);
    t("cvt.rzi.u32.f32 %r0, %r1;", &[f(1e20)], M1);
    t("cvt.rzi.s32.f32 %r0, %r1;", &[f(1e20)], 0x7fff_ffff);
    t("cvt.rzi.s32.f32 %r0, %r1;", &[NAN], 0);
    t("cvt.rzi.s64.f32 %rd0, %r1;", &[NAN], 1 << 63);
    t("cvt.rzi.s32.f64 %r0, %rd1;", &[d(f64::NAN)], 0x8000_0000);
    t("cvt.rzi.u8.f32 %r0, %r1;", &[f(300.0)], 255);
    t("cvt.rzi.s16.f32 %h0, %r1;", &[f(-40000.0)], 0x8000);
    t("cvt.rzi.s64.f64 %rd0, %rd1;", &[d(-1e30)], 1 << 63);
    t("cvt.rzi.u64.f64 %rd0, %rd1;", &[d(1e19)], 10_000_000_000_000_000_000);
    t("cvt.rni.s32.f16 %r0, %h1;", &[u64::from(f16::from_f32(-7.5).to_bits())], (-8i32) as u32 as u64);
}

#[test]
fn conversions_from_integer_to_float_round_once() {
    t("cvt.rn.f32.s32 %r0, %r1;", &[M1], f(-1.0));
    t("cvt.rn.f32.u32 %r0, %r1;", &[0xffff_ff7f], f(0xffff_ff7fu32 as f32));
    t("cvt.rz.f32.u32 %r0, %r1;", &[M1], f(4294967040.0));
    t("cvt.rp.f32.u32 %r0, %r1;", &[0x0100_0001], f(16777218.0));
    // 2^60 + 2^36 + 1: halfway in single but for the last bit.
    let v = (1u64 << 60) + (1 << 36) + 1;
    t("cvt.rn.f32.u64 %r0, %rd1;", &[v], f(v as f32));
    t("cvt.rn.f64.u64 %rd0, %rd1;", &[u64::MAX], d(u64::MAX as f64));
    t("cvt.rz.f64.u64 %rd0, %rd1;", &[u64::MAX], d((u64::MAX as f64).next_down()));
    t("cvt.rn.f64.s64 %rd0, %rd1;", &[1 << 63], d(i64::MIN as f64));
    t("cvt.rn.f16.s32 %h0, %r1;", &[70000], 0x7c00);
    t("cvt.rn.f16.u16 %h0, %h1;", &[2049], u64::from(f16::from_f32(2048.0).to_bits()));
    t("cvt.rn.bf16.u32 %h0, %r1;", &[257], u64::from(bf16::from_f32(256.0).to_bits()));
}

#[test]
fn conversions_between_floats() {
    t("cvt.f64.f32 %rd0, %r1;", &[SUB], d(f64::from(f32::from_bits(1))));
    t("cvt.ftz.f64.f32 %rd0, %r1;", &[SUB], 0);
    t("cvt.rn.f32.f64 %r0, %rd1;", &[d(1e-320)], 0);
    t("cvt.rp.f32.f64 %r0, %rd1;", &[d(1e-320)], 1);
    t("cvt.rn.ftz.f32.f64 %r0, %rd1;", &[d(1e-40)], 0);
    t("cvt.rn.f16.f32 %h0, %r1;", &[f(1.0009765)], u64::from(f16::from_f32(1.0009765).to_bits()));
    t("cvt.rz.f16.f32 %h0, %r1;", &[f(1e9)], 0x7bff);
    t("cvt.rn.f16.f32 %h0, %r1;", &[f(2f32.powi(-25) * 1.5)], 1);
    t("cvt.f32.f16 %r0, %h1;", &[1], f(2f32.powi(-24)));
    t("cvt.f32.bf16 %r0, %h1;", &[0x3f80], f(1.0));
    t("cvt.rn.bf16.f32 %h0, %r1;", &[0x3f80_8000], 0x3f80);
    t("cvt.rn.bf16.f32 %h0, %r1;", &[0x3f81_8000], 0x3f82);
    t("cvt.rz.bf16.f32 %h0, %r1;", &[0x3f80_ffff], 0x3f80);
    t("cvt.rn.bf16.f32 %h0, %r1;", &[f(f32::MAX)], 0x7f80);
    t("cvt.rn.bf16x2.f32 %r0, %r1, %r2;", &[f(1.0), f(2.0)], 0x3f80_4000);
    t("cvt.rn.f16x2.f32 %r0, %r1, %r2;", &[f(1.0), f(2.0)], 0x3c00_4000);
    t("cvt.rn.relu.bf16x2.f32 %r0, %r1, %r2;", &[f(-1.0), f(2.0)], 0x4000);
    t("cvt.rna.tf32.f32 %r0, %r1;", &[0x3f80_1000], 0x3f80_2000);
    t("cvt.rni.f32.f32 %r0, %r1;", &[f(2.5)], f(2.0));
    t("cvt.rmi.f32.f32 %r0, %r1;", &[f(-0.5)], f(-1.0));
    t("cvt.rpi.f32.f32 %r0, %r1;", &[f(-0.5)], f(-0.0));
    t("cvt.sat.f32.f32 %r0, %r1;", &[f(1.5)], f(1.0));
    t("cvt.rzi.f64.f64 %rd0, %rd1;", &[d(-7.9)], d(-7.0));
    // fp8: 448 is the largest e4m3, 57344 the largest e5m2; the first operand is the high half.
    t("cvt.rn.satfinite.e4m3x2.f32 %h0, %r1, %r2;", &[f(1.0), f(1000.0)], 0x387e);
    t("cvt.rn.satfinite.e5m2x2.f32 %h0, %r1, %r2;", &[f(-1.0), f(1e9)], 0xbc7b);
    t("cvt.rn.f16x2.e4m3x2 %r0, %h1;", &[0x387e], x2(0x3c00, f16::from_f32(448.0).to_bits()));
    t("cvt.rn.f16x2.e5m2x2 %r0, %h1;", &[0xbc7b], x2(0xbc00, f16::from_f32(57344.0).to_bits()));
}

#[test]
fn every_e4m3_value_survives_a_round_trip() {
    for v in 0..=255u64 {
        if v & 0x7f == 0x7f {
            continue;
        }
        let wide = one("cvt.rn.f16x2.e4m3x2 %r0, %h1;", &[v]);
        let x = f16::from_bits(wide as u16).to_f32();
        let back = one("cvt.rn.satfinite.e4m3x2.f32 %h0, %r1, %r2;", &[f(0.0), f(x)]);
        assert_eq!(back, v, "{x}");
    }
}

#[test]
fn moves_pack_and_unpack_low_part_first() {
    t("mov.b64 %rd0, {%r1, %r2};", &[1, 2], 0x2_0000_0001);
    t("mov.b64 {%r3, %r0}, %rd1;", &[0xaaaa_bbbb_cccc_dddd], 0xaaaa_bbbb);
    t("mov.b64 {_, %r0}, %rd1;", &[0xaaaa_bbbb_cccc_dddd], 0xaaaa_bbbb);
    t("mov.b32 %r0, {%h1, %h2};", &[1, 2], 0x2_0001);
    t("mov.b32 {%h0, %h3}, %r1;", &[0xaaaa_bbbb], 0xbbbb);
    t("mov.b64 %rd0, {%h1, %h2, %h3, %h4};", &[1, 2, 3, 4], 0x0004_0003_0002_0001);
    t("mov.f32 %r0, 0f3F800000;", &[], f(1.0));
    t("mov.f32 %r0, 1.5;", &[], f(1.5));
    t("mov.f64 %rd0, 0d3FF0000000000000;", &[], d(1.0));
    t("mov.b32 %r0, -1;", &[], M1);
    t("mov.u32 %r0, 0x1F;", &[], 31);
    t("mov.u32 %r0, WARP_SZ;", &[], 32);
}

#[test]
fn scopes_of_inline_assembly_have_registers_of_their_own() {
    t(
        "mov.b32 %r0, 1; { .reg .b32 %t; .reg .pred p; mov.b32 %t, 5; setp.eq.s32 p, %t, 5; @p add.s32 %r0, %r0, %t; } { .reg .b32 %t; mov.b32 %t, 7; add.s32 %r0, %r0, %t; }",
        &[],
        13,
    );
}
