//! `shared_array![T; N]`: a module-level `.shared` declaration and a pointer to it.
//!
//! The declaration must be `global_asm!` in a module of its own: inside an `asm!` every copy that is
//! inlined would be another array, and a `static` with a link section silently becomes global memory.
//! PTX has one name space a module, so the name carries crate, file, line and column; two equal names
//! would be a ptxas error, never a silent alias.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::parse::{Parse, ParseStream};
use syn::{Expr, Token, Type};

struct Input {
    element: Type,
    length: Expr,
}

impl Parse for Input {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let element = input.parse()?;
        input
            .parse::<Token![;]>()
            .map_err(|e| syn::Error::new(e.span(), "expected `shared_array![Type; length]`"))?;
        Ok(Self { element, length: input.parse()? })
    }
}

/// Where the macro is used, as part of a PTX name: the crate, the last two parts of the path, line, column.
pub fn place(file: &str, line: usize, column: usize) -> String {
    let krate = std::env::var("CARGO_CRATE_NAME").unwrap_or_default();
    let file = file.trim_end_matches(".rs").replace('\\', "/");
    let parts: Vec<&str> = file.rsplit('/').take(2).collect();
    let path = parts.into_iter().rev().collect::<Vec<_>>().join("_");
    let clean: String =
        format!("{krate}_{path}").chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("__shared_{clean}_{line}_{column}")
}

pub fn expand(input: TokenStream, name: &str) -> syn::Result<TokenStream> {
    let Input { element, length } = syn::parse2(input)?;
    let module = format_ident!("{name}");
    let declaration = format!(".shared .align {{align}} .b8 {name}[{{bytes}}];");
    let address = format!("mov.u32 {{0}}, {name};");
    Ok(quote! {
        {
            #[cfg(target_arch = "nvptx64")]
            mod #module {
                #[allow(unused_imports)]
                use super::*;
                ::core::arch::global_asm!(
                    #declaration,
                    align = const ::core::mem::align_of::<#element>(),
                    bytes = const ::core::mem::size_of::<#element>() * (#length),
                );
            }
            #[cfg(target_arch = "nvptx64")]
            let address: u32 = {
                let address: u32;
                // SAFETY: reads the address of a variable declared above.
                #[allow(unused_unsafe)]
                unsafe {
                    ::core::arch::asm!(
                        #address,
                        out(reg32) address,
                        options(pure, nomem, nostack, preserves_flags),
                    )
                };
                address
            };
            #[cfg(not(target_arch = "nvptx64"))]
            let address: u32 = ::cuda_std::shared::host_has_no_shared_memory();
            ::cuda_std::shared::SharedPtr::<#element>::from_addr(address)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_ptx_and_differ_by_place() {
        let a = place("kernels-gpu/src/attend/mod.rs", 12, 5);
        assert!(a.starts_with("__shared_") && a.ends_with("_attend_mod_12_5"), "{a}");
        assert!(a.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{a}");
        assert_ne!(a, place("kernels-gpu/src/score/mod.rs", 12, 5));
        assert_ne!(a, place("kernels-gpu/src/attend/mod.rs", 12, 6));
    }

    #[test]
    fn a_missing_length_says_the_form() {
        let error = expand(quote! { f32 }, "x").unwrap_err().to_string();
        assert!(error.contains("shared_array![Type; length]"), "{error}");
    }
}
