//! What a kernel's author and a launch's author are told when they are wrong: each file of `compile_fail`
//! must not compile, and the text beside it is what the compiler says.
//!
//! The texts are those of rustc 1.95, the oldest that builds the workspace; other versions word what is not ours
//! differently, so with those nothing is compared, and the test says so. `TRYBUILD=overwrite cargo test -p psa-codegen
//! --test compile_fail` writes the texts anew: review the difference.

#[test]
fn mistakes_do_not_compile_and_the_error_says_what_to_do() {
    let version = std::process::Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .arg("--version")
        .output()
        .expect("the compiler that built this test");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if !version.starts_with("rustc 1.95.") {
        println!("the texts are those of rustc 1.95, not compared with {version}");
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
