//! The choice of an instance: feasible first, preferred second, checked for the request at hand whatever the hint.

use cuda_std::kernel;
use half::{bf16, f16};
use psa_codegen::{DeviceLimits, Hint, Infeasible, LaunchError, Why};

/// # Safety
/// Never executed here.
#[kernel(
    block = 256,
    dynamic_shared = 8 * N * STAGES,
    max_registers = 64,
    min_sm = 70 + 10 * STAGES,
    instances(T in [bf16, f16], N in [1024, 4096, 8192], STAGES in [1, 2]),
    shape(rows, width),
    feasible(
        rows <= N => "one block holds all rows",
        width % 8 == 0 => "rows are read in 16-byte pieces",
        width.max(1) * rows <= 1 << 20 => "offsets are 20 bits",
    ),
    prefer(least N * (3 - STAGES) => "small first, then deep")
)]
pub unsafe fn sort<T: Copy, const N: usize, const STAGES: usize>(x: *mut T) {}

/// # Safety
/// Never executed here.
#[kernel(block = 32, instances(D in [64, 128]))]
pub unsafe fn plain<const D: usize>(x: *mut f32) {}

fn sm(sm: u32) -> DeviceLimits {
    DeviceLimits::of_sm(sm)
}

fn shape(rows: usize) -> sort::Shape {
    sort::Shape { rows, width: 64 }
}

fn chosen(rows: usize, device: &DeviceLimits) -> &'static str {
    sort::select::<bf16>(shape(rows), device, Hint::None).unwrap().kernel().name
}

#[test]
fn the_preferred_of_the_feasible_is_taken() {
    assert_eq!(chosen(100, &sm(90)), "sort_bf16_n1024_stages2");
    assert_eq!(chosen(1024, &sm(90)), "sort_bf16_n1024_stages2");
    assert_eq!(chosen(1025, &sm(90)), "sort_bf16_n4096_stages2");
    // Two stages need compute capability 9.0.
    assert_eq!(chosen(100, &sm(80)), "sort_bf16_n1024_stages1");
    // 131,072 bytes for two stages of 8,192 fit an H100 and not an RTX 4090.
    assert_eq!(chosen(8192, &sm(90)), "sort_bf16_n8192_stages2");
    assert_eq!(chosen(8192, &DeviceLimits { sm: 90, ..sm(89) }), "sort_bf16_n8192_stages1");
    let choice = sort::select::<f16>(shape(5000), &sm(80), Hint::None).unwrap();
    assert_eq!(choice.kernel().name, "sort_f16_n8192_stages1");
    assert_eq!(
        choice.why().to_string(),
        "preference: least N * (3 - STAGES) of 1 feasible (small first, then deep)"
    );
}

#[test]
fn an_override_is_taken_and_says_so() {
    let hint = Hint::Override("sort_bf16_n8192_stages1");
    let choice = sort::select::<bf16>(shape(100), &sm(80), hint).unwrap();
    assert_eq!((choice.kernel().name, choice.why()), ("sort_bf16_n8192_stages1", &Why::Override));
}

#[test]
fn an_infeasible_override_names_the_line_its_reason_and_the_values() {
    let error = |request, device: &DeviceLimits, id| match sort::select::<bf16>(
        request,
        device,
        Hint::Override(id),
    ) {
        Err(error) => error.to_string(),
        Ok(choice) => panic!("{choice:?}"),
    };
    let text = error(shape(2000), &sm(80), "sort_bf16_n1024_stages1");
    for part in [
        "`sort_bf16_n1024_stages1`",
        "rows <= N does not hold (rows = 2000, N = 1024)",
        "one block holds all rows",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = error(sort::Shape { rows: 8, width: 60 }, &sm(80), "sort_bf16_n1024_stages1");
    assert!(text.contains("width % 8 == 0 does not hold (width = 60)") && text.contains("16-byte"), "{text}");
    let text = error(shape(8), &sm(80), "sort_bf16_n1024_stages2");
    assert!(text.contains("90 <= device.sm does not hold (device.sm = 80)"), "{text}");
    let text = error(shape(8), &DeviceLimits { sm: 90, ..sm(89) }, "sort_bf16_n8192_stages2");
    assert!(
        text.contains("131072 <= device.shared_per_block does not hold (device.shared_per_block = 101376)"),
        "{text}"
    );
    let small = DeviceLimits { registers_per_block: 16383, ..sm(80) };
    let text = error(shape(8), &small, "sort_bf16_n1024_stages1");
    assert!(text.contains("64 * 256 <= device.registers_per_block does not hold"), "{text}");
    let text = error(shape(8), &sm(80), "sort_f16_n1024_stages1");
    assert!(text.contains("T == f16 does not hold (T = bf16)"), "{text}");
    let text = error(shape(8), &sm(80), "sort_bf16_n99");
    assert!(
        text.contains("no instance `sort_bf16_n99`") && text.contains("sort_bf16_n1024_stages1"),
        "{text}"
    );
}

#[test]
fn a_tuned_instance_is_taken_only_where_it_fits_this_request() {
    let select =
        |rows| sort::select::<bf16>(shape(rows), &sm(80), Hint::Tuned("sort_bf16_n4096_stages1")).unwrap();
    assert_eq!((select(100).kernel().name, select(100).why()), ("sort_bf16_n4096_stages1", &Why::Tuned));
    // The same cached identifier for a longer row: left aside, and named.
    let choice = select(5000);
    assert_eq!(choice.kernel().name, "sort_bf16_n8192_stages1");
    let why = choice.why().to_string();
    assert!(
        why.contains("tuned `sort_bf16_n4096_stages1` left aside: rows <= N does not hold (rows = 5000"),
        "{why}"
    );
    let choice = sort::select::<bf16>(shape(8), &sm(80), Hint::Tuned("gone")).unwrap();
    assert!(choice.why().to_string().contains("tuned `gone` left aside: there is no such instance"));
}

#[test]
fn where_nothing_fits_every_line_is_named_once() {
    let error = sort::select::<bf16>(shape(9000), &sm(80), Hint::None).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Infeasible::Nothing { .. }));
    for part in
        ["`sort`", "(T = bf16, rows = 9000, width = 64) on sm_80", "rows = 9000, N = 8192", "T == f16"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(text.matches("rows <= N").count(), 1, "{text}");
    let error = sort::select::<f32>(shape(1), &sm(80), Hint::None).unwrap_err().to_string();
    assert!(error.contains("T = f32"), "{error}");
    let error =
        sort::select::<bf16>(sort::Shape { rows: usize::MAX, width: usize::MAX }, &sm(90), Hint::None);
    assert!(error.is_err(), "a request beyond all numbers is no overflow");
}

#[test]
fn without_a_shape_the_sizes_are_the_const_generics() {
    let choice = plain::select(plain::Shape { d: 128 }, &sm(80), Hint::None).unwrap();
    assert_eq!(
        (choice.kernel().name, choice.why().to_string().as_str()),
        ("plain_d128", "preference: first of 1 feasible")
    );
    let text = plain::select(plain::Shape { d: 96 }, &sm(80), Hint::None).unwrap_err().to_string();
    assert!(text.contains("d == D does not hold (d = 96, D = 128)") && text.contains("1 more"), "{text}");
    let error =
        plain::launch(96, [1, 1, 1], plain::Args { x: psa_codegen::Region::EMPTY.in_out() }).unwrap_err();
    assert!(matches!(error, LaunchError::NoSuchInstance(_)), "{error}");
}

#[test]
fn the_lines_of_an_instance_can_be_read() {
    let lines: Vec<_> =
        sort::FAMILY.lines(&sort::INSTANCES[0]).into_iter().map(|line| line.expression).collect();
    assert_eq!(
        lines,
        [
            "T == \"bf16\"",
            "rows <= 1024",
            "width % 8 == 0",
            "max(width, 1) * rows <= 1048576",
            "80 <= device.sm",
            "256 <= device.threads_per_block",
            "8192 <= device.shared_per_block",
            "64 * 256 <= device.registers_per_block",
        ]
    );
}
