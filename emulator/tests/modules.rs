//! What stands around the instructions: calls of all kinds, variables with initialisers, constant
//! expressions, jump tables, and names that mean something else.

mod common;
use common::bench::{Bench, IntoArg, SEEDS};
use common::{HEADER, kernel, run};
use ptx_emulator::{Class, Error, Module};

fn out(extra: &str, body: &str, words: usize) -> Vec<u32> {
    let r = run(&kernel(extra, body), 1, 0, &[0; 8], words);
    assert!(r.report.is_clean(), "{:#?}", r.report.findings);
    r.out
}

#[test]
fn calls_through_tables_of_functions_and_virtual_functions_are_clean_and_right() {
    let text = include_str!("cuda/pointers.ptx");
    for seed in SEEDS {
        let mut b = Bench::new(text, seed);
        let x: Vec<f32> = (0..200).map(|i| i as f32 * 0.5 - 7.0).collect();
        let (px, y) = (b.input(&x), b.empty(800));
        b.run("apply", [4, 1, 1], [64, 1, 1], &[px, y, 200u32.into_arg()]);
        let want: Vec<f32> = x.iter().enumerate().map(|(i, v)| [v + 2.0, v * 2.0, v - 2.0][i % 3]).collect();
        assert_eq!(b.output::<f32>(y, 200), want);
        b.run("shapes", [1, 1, 1], [96, 1, 1], &[px, y]);
        let want: Vec<f32> =
            (0..96).map(|i| if i % 3 != 0 { x[i] * x[i] + 4.0 } else { 3.0 * x[i] * x[i] }).collect();
        assert_eq!(b.output::<f32>(y, 96), want);
    }
}

const PAIR: &str = ".func (.param .u32 r) double(.param .u32 x) { .reg .u32 %a; ld.param.u32 %a, [x]; shl.b32 %a, %a, 1; st.param.u32 [r], %a; ret; }\n\
    .func (.param .u32 r) square(.param .u32 x) { .reg .u32 %a; ld.param.u32 %a, [x]; mul.lo.u32 %a, %a, %a; st.param.u32 [r], %a; ret; }\n";

/// Lane t calls by the address `choose` leaves in `%rd5`.
fn by_pointer(choose: &str, decides: &str) -> String {
    kernel(
        PAIR,
        &format!(
            "setp.lt.u32 %p1, %t, 7; {choose}\n\
             {{ .param .u32 arg; .param .u32 res; {decides} add.u32 %r1, %t, 3; st.param.u32 [arg], %r1;\n\
             call (res), %rd5, (arg), list; //!\n ld.param.u32 %r2, [res]; }} st.global.u32 [%my], %r2;"
        ),
    )
}

#[test]
fn calls_by_a_list_of_targets_diverge_and_join_again() {
    let choose = "mov.u64 %rd3, double; mov.u64 %rd4, square; selp.b64 %rd5, %rd3, %rd4, %p1;";
    for decides in
        ["list: .calltargets square, double;", "list: .callprototype (.param .u32 _) _ (.param .u32 _);"]
    {
        let r = run(&by_pointer(choose, decides), 32, 0, &[0], 32);
        assert!(r.report.is_clean(), "{:#?}", r.report.findings);
        let want: Vec<u32> = (0..32).map(|t| if t < 7 { 2 * (t + 3) } else { (t + 3) * (t + 3) }).collect();
        assert_eq!(r.out, want);
    }
}

#[test]
fn a_call_to_what_is_no_function_is_a_finding() {
    let text = by_pointer("mov.u64 %rd5, 64;", "list: .calltargets square, double;");
    let line = text.lines().position(|l| l.contains("//!")).unwrap() as u32 + 1;
    let r = run(&text, 32, 0, &[0], 32).report;
    let f = r.of(Class::Mem).next().unwrap();
    assert_eq!((f.kind.as_str(), f.line, f.address), ("call target", line, Some(64)));
}

#[test]
fn a_guarded_call_leaves_the_other_lanes_alone() {
    let body = "mov.u32 %r2, 99; setp.gt.u32 %p1, %t, 3; mov.u64 %rd5, double;\n\
        { .param .u32 arg; .param .u32 res; list: .calltargets double; st.param.u32 [arg], %t; st.param.u32 [res], %r2;\n\
        @%p1 call (res), %rd5, (arg), list; @!%p1 call (res), square, (arg); ld.param.u32 %r2, [res]; } st.global.u32 [%my], %r2;";
    let r = run(&kernel(PAIR, body), 8, 0, &[0], 8);
    assert!(r.report.is_clean(), "{:#?}", r.report.findings);
    assert_eq!(r.out, [0, 1, 4, 9, 8, 10, 12, 14]);
}

#[test]
fn an_alias_is_its_function_and_a_declaration_may_come_first() {
    let extra = format!(
        ".visible .func (.param .u32 r) twice(.param .u32 x);\n.weak .func (.param .u32 r) double(.param .u32 x);\n{PAIR}.alias twice, double;\n"
    );
    let body = "{ .param .u32 a; .param .u32 b; st.param.u32 [a], 21; call (b), twice, (a); ld.param.u32 %r1, [b]; } st.global.u32 [%out], %r1;";
    assert_eq!(out(&extra, body, 1), [42]);
}

#[test]
fn structures_travel_by_value_and_keep_their_bytes() {
    let extra = ".func (.param .align 8 .b8 r[16]) swap(.param .align 8 .b8 x[16]) { .reg .b64 %a<3>;\n\
        ld.param.v2.b64 {%a0, %a1}, [x]; st.param.b64 [r], %a1; st.param.b64 [r+8], %a0; ret; }";
    let body = "{ .param .align 8 .b8 a[16]; .param .align 8 .b8 b[16]; mov.u64 %rd1, 1; mov.u64 %rd2, 2; st.param.b64 [a+0], %rd1; st.param.b64 [a+8], %rd2;\n\
        call.uni (b), swap, (a); ld.param.u32 %r1, [b+0]; ld.param.u32 %r2, [b+8]; } st.global.v2.u32 [%out], {%r1, %r2};";
    assert_eq!(out(extra, body, 2), [2, 1]);
}

#[test]
fn initialisers_hold_numbers_addresses_and_bytes_of_addresses() {
    let extra = ".global .align 4 .u32 table[2][3] = {{1, 2, 3}, {4, 5}};\n\
        .const .align 8 .u64 places[3] = {table, generic(table)+4, table+8};\n\
        .global .align 8 .b8 packed[12] = {7, 0, 0, 0, 0xff(table), 0xff00(generic(table)), 0xff0000(table), 0xff000000(table), 0xff00000000(table), 0xff0000000000(table), 0xff000000000000(table), 0xff00000000000000(table)};\n\
        .const[3] .align 4 .f32 banked[2] = {1, -0f40000000};\n\
        .global .align 2 .b8 text[] = {104, 105, 0};\n\
        .visible .global .align 8 .f64 wide = -1.5;\n\
        .weak .const .align 4 .s16 small[4] = {-1, 0x7fff, (1 << 4) | 3, -(2 * 3)};";
    // The address in `packed` is not aligned: two words make it.
    let body = "ld.const.u64 %rd1, [places+8]; ld.u32 %r1, [%rd1]; st.global.u32 [%out], %r1;\n\
        mov.u64 %rd2, packed; ld.global.u32 %r2, [%rd2+4]; ld.global.u32 %r3, [%rd2+8]; mov.b64 %rd3, {%r2, %r3}; ld.global.u32 %r4, [%rd3+12]; st.global.u32 [%out+4], %r4;\n\
        ld.const.u32 %r5, [banked+4]; st.global.u32 [%out+8], %r5; ld.global.u8 %r6, [text+1]; st.global.u32 [%out+12], %r6;\n\
        ld.global.u32 %r7, [wide+4]; st.global.u32 [%out+16], %r7; ld.const.s16 %r8, [small+6]; st.global.u32 [%out+20], %r8;\n\
        ld.const.u16 %r9, [small+4]; st.global.u32 [%out+24], %r9; ld.global.u32 %r10, [table+20]; st.global.u32 [%out+28], %r10;";
    assert_eq!(out(extra, body, 8), [2, 4, 0xc000_0000, 105, 0xbff8_0000, 0xffff_fffa, 19, 0]);
}

#[test]
fn constant_expressions_stand_where_numbers_do() {
    let extra = ".global .align 4 .u32 v[4*2];";
    let body = "mov.u32 %r1, (1<<4)|3; st.global.u32 [%out+2*2], %r1; mov.u32 %r2, ~5 & 0xff; st.global.u32 [%out+(1+1)*4], %r2;\n\
        add.s32 %r3, %r1, -7/2; st.global.u32 [%out], %r3; mov.u64 %rd1, v+4*3; mov.u32 %r4, 17; st.global.u32 [%rd1-4], %r4; ld.global.u32 %r5, [v+8]; st.global.u32 [%out+12], %r5;";
    assert_eq!(out(extra, body, 4), [16, 19, 0xfa, 17]);
}

#[test]
fn jump_tables_go_where_they_say_and_stop_at_a_bad_index() {
    let body = |bias: u32| {
        format!(
            "ts: .branchtargets A, B, C, A; add.u32 %r1, %t, {bias};\nbrx.idx %r1, ts; //!\nA: mov.u32 %r2, 10; bra.uni J; B: mov.u32 %r2, 20; bra J; C: mov.u32 %r2, 30; J: st.global.u32 [%my], %r2;"
        )
    };
    let r = run(&kernel("", &body(0)), 4, 0, &[0], 4);
    assert!(r.report.is_clean());
    assert_eq!(r.out, [10, 20, 30, 10]);
    let r = run(&kernel("", &body(1)), 4, 0, &[0], 4).report;
    assert_eq!((r.findings[0].kind.as_str(), r.findings[0].lanes), ("branch index", 8));
}

#[test]
fn special_registers_have_their_values() {
    let words = [
        ("mov.u32 %r1, %ntid.x;", 32),
        ("mov.u32 %r1, %nctaid.y;", 1),
        ("mov.u32 %r1, %nwarpid;", 1),
        ("mov.u32 %r1, %lanemask_lt;", 0b111),
        ("mov.u32 %r1, %lanemask_ge;", !0b111),
        ("mov.u32 %r1, WARP_SZ;", 32),
        ("mov.u32 %r1, %dynamic_smem_size;", 48),
        ("mov.u32 %r1, %clock_hi;", 0),
        ("mov.u32 %r1, %globaltimer_hi;", 0),
        ("mov.u32 %r1, %envreg3;", 0),
        (
            "mov.u64 %rd1, %clock64; mov.u64 %rd2, %clock64; sub.u64 %rd1, %rd2, %rd1; cvt.u32.u64 %r1, %rd1; min.u32 %r1, %r1, 1;",
            1,
        ),
    ];
    for (code, want) in words {
        let r = run(&kernel("", &format!("{code} st.global.u32 [%my], %r1;")), 32, 48, &[0], 32);
        assert_eq!(r.out[3], want, "{code}");
    }
}

#[test]
fn what_cannot_be_linked_or_called_is_refused_by_name() {
    for (extra, code, word) in [
        (".extern .func gone(.param .u32 x);", "{ .param .u32 a; call gone, (a); }", "gone"),
        (".extern .global .u32 far;", "ld.global.u32 %r1, [far];", "far"),
        (PAIR, "{ .param .u32 a; call (a), double; }", "double"),
        (PAIR, "call %rd1, nolist;", "nolist"),
        (".global .u64 p = nothing;", "ret;", "nothing"),
        (
            ".func f(.param .u32 x) { .param .u32 a; call f, (a); ret; }",
            "{ .param .u32 a; call f, (a); }",
            "recursive",
        ),
    ] {
        let text = kernel(extra, code);
        let r = Module::parse(&text).and_then(|m| {
            m.check()?;
            let mut d = ptx_emulator::Device::new(ptx_emulator::Options::default());
            let p = d.alloc(8, "a")?;
            let config = ptx_emulator::LaunchConfig { grid: [1; 3], block: [1; 3], shared_bytes: 0 };
            d.launch(&m, "k", config, &[ptx_emulator::Arg::Ptr(p), ptx_emulator::Arg::Ptr(p)])
        });
        let e = r.unwrap_err();
        assert!(
            matches!(e, Error::Parse { .. } | Error::Unsupported { .. } | Error::Unresolved { .. }),
            "{e}"
        );
        assert!(e.to_string().contains(word), "{e}");
    }
    let e = Module::parse(&format!("{HEADER}.global .texref t;")).unwrap_err().to_string();
    assert!(e.contains("texref") && e.contains("line 4"), "{e}");
}
