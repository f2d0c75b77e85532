//! What `#[kernel]` accepts, what it prints, and what it says to those it rejects.

use proc_macro2::TokenStream;
use quote::quote;

use super::expand;

fn printed(attribute: TokenStream, item: TokenStream) -> String {
    expand(attribute, item).expect("a valid kernel").to_string().replace(' ', "")
}

/// Every message of a rejected kernel.
fn messages(attribute: TokenStream, item: TokenStream) -> Vec<String> {
    expand(attribute, item).expect_err("must be rejected").into_iter().map(|e| e.to_string()).collect()
}

/// Checks that one kernel is rejected with one message, which says all of `parts`.
#[track_caller]
fn rejects(attribute: TokenStream, item: TokenStream, parts: &[&str]) {
    let all = messages(attribute, item);
    assert_eq!(all.len(), 1, "{all:?}");
    for part in parts {
        assert!(all[0].contains(part), "`{part}` missing in: {}", all[0]);
    }
}

/// A kernel with one parameter of this type.
fn with_param(param: TokenStream) -> TokenStream {
    quote! { pub unsafe fn k<T: Element>(#param) {} }
}

fn generic() -> TokenStream {
    quote! { block = 128, instances(T in [bf16]) }
}

#[test]
fn entries_are_named_in_declaration_order_and_multiplied_last_generic_fastest() {
    let text = printed(
        quote! { block = 128, instances(D in [64, 128], T in [half::bf16, f16]) },
        quote! { pub unsafe fn attend<T: Element, const D: usize>(q: *const T) {} },
    );
    let names: Vec<_> = text
        .match_indices("extern\"ptx-kernel\"fn")
        .map(|(at, key)| {
            let rest = &text[at + key.len()..];
            &rest[..rest.find('(').expect("a parameter list")]
        })
        .collect();
    assert_eq!(names, ["attend_bf16_d64", "attend_bf16_d128", "attend_f16_d64", "attend_f16_d128"]);
    let host: Vec<_> = text
        .match_indices("name:\"attend_")
        .map(|(at, _)| text[at + 6..].split('"').next().expect("a name"))
        .collect();
    assert_eq!(host, names);
    assert!(text.contains("INSTANCES:[::psa_codegen::KernelDescriptor;4usize]"), "{text}");
}

#[test]
fn several_instance_lists_are_a_union_without_doubles() {
    let text = printed(
        quote! { block = 128, instances(T in [bf16], G in [1, 2]), instances(T in [bf16, f16], G in [2]) },
        quote! { pub unsafe fn k<T: Element, const G: usize>(q: *const T) {} },
    );
    let names: Vec<_> = ["k_bf16_g1", "k_bf16_g2", "k_f16_g2"]
        .into_iter()
        .filter(|name| text.matches(&format!("name:\"{name}\"")).count() == 1)
        .collect();
    assert_eq!(names.len(), 3, "{text}");
    assert!(text.contains("KernelDescriptor;3usize]"), "{text}");
}

#[test]
fn a_kernel_without_generics_is_one_entry_of_its_name() {
    let text =
        printed(quote! { block = (32, 4, 1) }, quote! { pub unsafe fn fill(out: *mut f32, n: u32) {} });
    assert!(text.contains("extern\"ptx-kernel\"fnfill(out:*mutf32,n:u32)"), "{text}");
    assert!(
        text.contains("launch_bounds::<{(32)asu32},{(4)asu32},{(1)asu32},{(0)asu32},{(0)asu32},>"),
        "{text}"
    );
    assert!(text.contains("pubfninstance<>()->"), "{text}");
}

#[test]
fn a_bool_const_is_written_as_its_value() {
    let text = printed(
        quote! { block = 128, instances(CAUSAL in [false, true]) },
        quote! { unsafe fn k<const CAUSAL: bool>(q: *const f32) {} },
    );
    assert!(text.contains("\"k_causalfalse\"") && text.contains("\"k_causaltrue\""), "{text}");
    assert!(text.contains("(true,)=>"), "{text}");
}

#[test]
fn parameters_become_documented_fields_and_types() {
    let text = printed(
        generic(),
        quote! { pub unsafe fn k<T: Element>(/** [n] */ x: *const T, out: *mut u64, mut n: i32, s: f64) {} },
    );
    for part in [
        "pubstructArgs<T>{",
        "pubx:::psa_codegen::In<T>",
        "pubout:::psa_codegen::InOut<u64>",
        "pubn:i32",
        "pubs:f64",
        "ParamType::ConstPtr(\"bf16\")",
        "ParamType::MutPtr(\"u64\")",
        "Param::scalar(\"n\",::psa_codegen::ParamType::I32)",
        "ParamType::F64",
        "[n]",
    ] {
        assert!(text.contains(part), "`{part}` missing in: {text}");
    }
    // Documentation on a parameter would not compile on a function.
    assert!(text.contains("fnk<T:Element>(x:*constT,out:*mutu64,mutn:i32,s:f64)"), "{text}");
}

#[test]
fn type_generics_that_no_parameter_mentions_are_not_generics_of_args() {
    let text = printed(
        quote! { block = 128, instances(A in [f32], T in [bf16]) },
        quote! { pub unsafe fn k<A: Accumulator, T: Element>(x: *const T) {} },
    );
    assert!(text.contains("pubstructArgs<T>{"), "{text}");
    assert!(text.contains("pubfninstance<A:::psa_codegen::SpecType,T:::psa_codegen::SpecType>()"), "{text}");
    assert!(text.contains("args:Args<T>"), "{text}");
}

#[test]
fn the_body_is_compiled_on_the_device_only() {
    let text = printed(generic(), quote! { pub unsafe fn k<T: Element>(x: *const T) { device_code() } });
    assert_eq!(text.matches("device_code").count(), 1);
    let before = &text[..text.find("device_code").expect("there")];
    assert!(before.contains("#[cfg(target_arch=\"nvptx64\")]") && !before.contains("#[cfg(not("), "{text}");
}

#[test]
fn launch_contract_expressions_are_evaluated_per_instance() {
    let text = printed(
        quote! { block = 2 * D, min_blocks_per_sm = 512 / D, max_registers = 96, min_sm = 90,
        dynamic_shared = bytes::<T>(D), instances(T in [bf16], D in [64]) },
        quote! { pub unsafe fn k<T: Element, const D: usize>(x: *const T) {} },
    );
    for part in [
        "typeT=bf16;constD:usize=64;",
        "min_blocks_per_sm:::core::option::Option::Some((512/D)asu32)",
        "max_registers:::core::option::Option::Some((96)asu32)",
        "checked_shared_bytes((bytes::<T>(D))asu64)",
        "min_sm:(90)asu32",
        "checked_block([(2*D)asu32,(1)asu32,(1)asu32])",
    ] {
        assert!(text.contains(part), "`{part}` missing in: {text}");
    }
}

#[test]
fn parameters_that_do_not_cross_a_launch_are_rejected_with_the_way_out() {
    for (param, parts) in [
        (quote! { x: &[T] }, &["slice", "`*const T`", "`u32` length"][..]),
        (quote! { x: &mut f32 }, &["reference", "`*mut T`"]),
        (quote! { x: Shape }, &["`Shape` by value", "fields"]),
        (quote! { x: T }, &["`T` by value", "`*const T`"]),
        (quote! { x: usize }, &["`usize`", "u64"]),
        (quote! { x: bool }, &["`bool`", "u32"]),
        (quote! { x: *const [T] }, &["slice pointer", "length"]),
        (quote! { x: *const *const T }, &["pointer to pointers", "`*const u64`"]),
        (quote! { x: (u32, u32) }, &["tuple or array"]),
        (quote! { x: [u32; 2] }, &["tuple or array"]),
        (quote! { x: impl Element }, &["`impl Trait`", "generic"]),
        (quote! { (a, b): *const T }, &["plain name", "destructure in the body"]),
        (quote! { _: *const T }, &["plain name"]),
        (quote! { &self }, &["without `self`"]),
    ] {
        rejects(generic(), with_param(param), parts);
    }
}

#[test]
fn functions_that_are_no_kernels_are_rejected_with_the_way_out() {
    let block = || quote! { block = 128 };
    rejects(block(), quote! { pub fn k(x: *const f32) {} }, &["must be `unsafe fn`"]);
    rejects(block(), quote! { pub unsafe fn k(x: *const f32) -> u32 { 0 } }, &["returns nothing", "`*mut`"]);
    rejects(block(), quote! { pub unsafe extern "C" fn k(x: *const f32) {} }, &["cannot be `extern`"]);
    rejects(block(), quote! { pub async unsafe fn k(x: *const f32) {} }, &["cannot be `async`"]);
    rejects(block(), quote! { pub const unsafe fn k(x: *const f32) {} }, &["cannot be `const`"]);
    rejects(block(), quote! { pub unsafe fn k<'a>(x: *const f32) {} }, &["no lifetimes"]);
}

#[test]
fn all_mistakes_of_a_function_are_shown_at_once() {
    let all = messages(quote! { block = 128 }, quote! { fn k(x: &[f32], n: usize) -> u32 { 0 } });
    assert_eq!(all.len(), 4, "{all:?}");
}

#[test]
fn keys_are_checked() {
    let item = || quote! { pub unsafe fn k(x: *const f32) {} };
    rejects(quote! {}, item(), &["missing `block`", "#[kernel(block = 128)]"]);
    rejects(quote! { dynamic_shared = 4 }, item(), &["missing `block`"]);
    rejects(quote! { block = 128, smem = 4 }, item(), &["unknown key `smem`", "`dynamic_shared`", "min_sm"]);
    rejects(quote! { threads = 128 }, item(), &["unknown key `threads`", "did you mean `block`?"]);
    rejects(quote! { block = 128, block = 64 }, item(), &["`block` is given twice"]);
    rejects(quote! { block = (8, 8) }, item(), &["2 dimensions", "(x, y, z)"]);
    rejects(quote! { block = [8, 8, 1] }, item(), &["(x, y, z)"]);
    rejects(quote! { 128 }, item(), &["expected a key", "block"]);
}

#[test]
fn instance_lists_are_checked_against_the_generics() {
    let item = || quote! { pub unsafe fn k<T: Element, const D: usize>(x: *const T) {} };
    let with = |instances: TokenStream| quote! { block = 128, #instances };
    rejects(with(quote! {}), item(), &["`k` is generic", "instances(T in [..], D in [..])"]);
    rejects(with(quote! { instances(T in [bf16]) }), item(), &["says nothing of generic `D`"]);
    rejects(
        with(quote! { instances(T in [bf16], D in [64], G in [1]) }),
        item(),
        &["no generic `G`", "`T`, `D`"],
    );
    rejects(with(quote! { instances(T in [64], D in [64]) }), item(), &["`T` is a type"]);
    rejects(with(quote! { instances(T in [bf16], D in [WIDE]) }), item(), &["`D` is a const", "literals"]);
    rejects(with(quote! { instances(T in [bf16], D in ["64"]) }), item(), &["integer or a bool"]);
    rejects(with(quote! { instances(T in [Vec::<u8>], D in [64]) }), item(), &["plain name", "alias"]);
    rejects(with(quote! { instances(T in [bf16], D in []) }), item(), &["`D in []` gives no instance"]);
    rejects(with(quote! { instances(T in [bf16], T in [f16], D in [64]) }), item(), &["listed twice"]);
    rejects(with(quote! { instances(T = bf16, D in [64]) }), item(), &["expected `T in [value, ..]`"]);
    rejects(
        quote! { block = 128, instances(T in [bf16]) },
        quote! { pub unsafe fn k(x: *const f32) {} },
        &["no generics", "remove instances(..)"],
    );
}

#[test]
fn const_arguments_of_the_launcher_do_not_clash_with_its_own_names() {
    let text = printed(
        quote! { block = 128, instances(GRID in [1], TYPE in [2]) },
        quote! { pub unsafe fn k<const GRID: u32, const TYPE: u32>(x: *const f32) {} },
    );
    assert!(text.contains("pubfnlaunch<>(grid_:u32,type_:u32,grid:[u32;3]"), "{text}");
}
