//! The device build: the function, and one `ptx-kernel` entry per instance.
//!
//! Each entry sits in a module of its own, in which the generics are bound to the instance's values:
//! so a parameter type or a contract expression is written once, as the user wrote it.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};

use super::family::{Family, Instance};

pub fn expand(family: &Family) -> TokenStream {
    let name = family.name();
    let attrs = &family.function.attrs;
    let cfgs = attrs.iter().filter(|a| a.path().is_ident("cfg"));
    let (vis, sig, body) = (&family.function.vis, &family.function.sig, &family.function.block);
    let module = format_ident!("__kernel_{name}");
    let entries = family.instances.iter().map(|instance| entry(family, instance));
    quote! {
        #[cfg(target_arch = "nvptx64")]
        #(#attrs)*
        #[inline(always)]
        #[allow(clippy::too_many_arguments)]
        #vis #sig #body

        #[cfg(target_arch = "nvptx64")]
        #(#cfgs)*
        #[doc(hidden)]
        #[allow(
            missing_docs, dead_code, unused_imports, non_camel_case_types, non_upper_case_globals,
            clippy::missing_safety_doc, clippy::too_many_arguments, clippy::unnecessary_cast,
            clippy::undocumented_unsafe_blocks, clippy::identity_op
        )]
        mod #module {
            #(#entries)*
        }
    }
}

fn entry(family: &Family, instance: &Instance) -> TokenStream {
    let name = family.name();
    let entry = format_ident!("{}", instance.entry);
    let bindings = family.bindings(instance);
    let generics = family.signature.generics.iter().map(|g| g.name());
    let names: Vec<_> = family.signature.params.iter().map(|p| &p.name).collect();
    let types = family.signature.params.iter().map(|p| &p.ty);
    let [x, y, z] = &family.block;
    let none = quote! { 0 };
    let min_blocks = family.min_blocks_per_sm.as_ref().map_or(none.clone(), |e| quote! { #e });
    let max_registers = family.max_registers.as_ref().map_or(none, |e| quote! { #e });
    let dynamic_shared = family.dynamic_shared.as_ref().map(|e| quote! { const _: u64 = (#e) as u64; });
    // Evaluated here too, so that what they import is used in both builds.
    let constants = family.contract.constants().chain(family.feasibility.constants());
    quote! {
        mod #entry {
            use super::super::*;
            #bindings
            #dynamic_shared
            #(const _: u128 = (#constants) as u128;)*
            #[unsafe(no_mangle)]
            pub unsafe extern "ptx-kernel" fn #entry(#(#names: #types),*) {
                ::cuda_std::launch_bounds::<
                    { (#x) as u32 }, { (#y) as u32 }, { (#z) as u32 },
                    { (#min_blocks) as u32 }, { (#max_registers) as u32 },
                >();
                unsafe { super::super::#name::<#(#generics),*>(#(#names),*) }
            }
        }
    }
}
