//! What `#[kernel]` gives the host: descriptors, typed arguments, launches, and errors that help.

use half::{bf16, f16};
use psa_codegen::{Access, ArgValue, In, InOut, ParamType};
use psa_cuda_std_conformance::{arithmetic, block, kernels, memory, warp};

#[test]
fn a_launch_carries_the_instance_s_contract_and_the_arguments_in_order() {
    // SAFETY: nothing executes the launch.
    let (values, out) = unsafe { (In::from_raw(0x100, 32), InOut::from_raw(0x200, 384)) };
    let args = warp::reductions::Args { values, mask: 7, out };
    let launch = warp::reductions::launch([3, 2, 1], args).expect("an instance");
    assert_eq!(launch.kernel.name, "reductions");
    assert_eq!((launch.grid, launch.block, launch.shared_bytes), ([3, 2, 1], [32, 1, 1], 0));
    assert_eq!(launch.args, [ArgValue::Ptr(0x100), ArgValue::U32(7), ArgValue::Ptr(0x200)]);
    let params: Vec<_> = launch.kernel.params.iter().map(|p| (p.name, p.ty, p.access)).collect();
    let expected = [
        ("values", ParamType::ConstPtr("u32"), Access::In),
        ("mask", ParamType::U32, Access::Value),
        ("out", ParamType::MutPtr("u32"), Access::InOut),
    ];
    assert_eq!(params, expected);
}

#[test]
fn types_and_consts_select_their_instance() {
    let instance = arithmetic::from_halves::instance::<f16>().expect("compiled");
    assert_eq!((instance.name, instance.params[0].ty), ("from_halves_f16", ParamType::ConstPtr("f16")));
    let instance = arithmetic::from_halves::instance::<bf16>().expect("compiled");
    assert_eq!((instance.name, instance.value_of("T")), ("from_halves_bf16", Some("bf16")));
    assert_eq!(warp::shuffles::instance(16).expect("compiled").name, "shuffles_w16");
}

#[test]
fn an_instance_that_was_not_compiled_is_an_error_that_names_those_that_were() {
    let error = warp::shuffles::instance(5).expect_err("no width 5").to_string();
    for part in ["`shuffles`", "W = 5", "shuffles_w1, shuffles_w2", "instances(..)"] {
        assert!(error.contains(part), "{part} missing in: {error}");
    }
    let error = arithmetic::from_halves::instance::<f32>().expect_err("no f32").to_string();
    assert!(error.contains("T = f32") && error.contains("from_halves_bf16, from_halves_f16"), "{error}");
}

#[test]
fn block_and_shared_memory_are_what_the_attribute_says() {
    assert_eq!(block::positions::INSTANCES[0].block, [4, 3, 2]);
    assert_eq!(memory::copies::INSTANCES[0].shared_bytes, 1024);
    assert_eq!(memory::copies::INSTANCES[0].params[1].ty, ParamType::MutPtr("v4"));
}

#[test]
fn entry_names_are_unique() {
    let mut names: Vec<_> = kernels().iter().map(|kernel| kernel.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), kernels().len());
}
