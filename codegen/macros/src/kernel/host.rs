//! The host build: a module named after the function, with descriptors and a typed launcher.
//!
//! Nothing here refers to the body. The bounds of the generics are checked for every instance, which
//! also keeps the imports they need in use.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::Type;
use syn::visit::Visit;

use super::family::{Family, Instance, Value};
use super::signature::{Generic, Param, ParamKind, Scalar};

pub fn expand(family: &Family) -> TokenStream {
    let name = family.name();
    let vis = &family.function.vis;
    let kept = family.function.attrs.iter().filter(|a| a.path().is_ident("cfg") || a.path().is_ident("doc"));
    let family_name = name.to_string();
    let count = family.instances.len();
    let descriptors = family.instances.iter().map(|instance| descriptor(family, instance));
    let args = args(family);
    let select = select(family);
    let bounds = bounds(family);
    quote! {
        #[cfg(not(target_arch = "nvptx64"))]
        #(#kept)*
        #[allow(
            dead_code, unused_imports, non_camel_case_types, non_upper_case_globals, unreachable_patterns,
            clippy::unnecessary_cast, clippy::identity_op, clippy::too_many_arguments
        )]
        #vis mod #name {
            use super::*;

            /// The family's name: the name of the kernel function.
            pub const FAMILY: &str = #family_name;

            /// Every compiled instance, in the order of the `instances(..)` lists, the last generic fastest.
            pub static INSTANCES: [::psa_codegen::KernelDescriptor; #count] = [#(#descriptors),*];

            #args
            #select
            #bounds
        }
    }
}

fn descriptor(family: &Family, instance: &Instance) -> TokenStream {
    let bindings = family.bindings(instance);
    let (entry, name) = (&instance.entry, family.name().to_string());
    let specialisation = family.signature.generics.iter().zip(&instance.values).map(|(generic, value)| {
        let (generic, value) = (generic.name().to_string(), value.text());
        quote! { (#generic, #value) }
    });
    let params = family.signature.params.iter().map(|param| {
        let name = param.name.to_string();
        let ty = param_type(family, instance, param);
        quote! { ::psa_codegen::Param { name: #name, ty: #ty } }
    });
    let [x, y, z] = &family.block;
    let optional = |e: &Option<syn::Expr>| match e {
        Some(e) => quote! { ::core::option::Option::Some((#e) as u32) },
        None => quote! { ::core::option::Option::None },
    };
    let min_blocks = optional(&family.min_blocks_per_sm);
    let max_registers = optional(&family.max_registers);
    let shared = family.dynamic_shared.as_ref().map_or(quote! { 0u64 }, |e| quote! { (#e) as u64 });
    let min_sm = family.min_sm.as_ref().map_or(quote! { 80 }, |e| quote! { (#e) as u32 });
    quote! {
        {
            #bindings
            ::psa_codegen::KernelDescriptor {
                name: #entry,
                family: #name,
                specialisation: &[#(#specialisation),*],
                params: &[#(#params),*],
                block: ::psa_codegen::descriptor::checked_block([(#x) as u32, (#y) as u32, (#z) as u32]),
                min_blocks_per_sm: #min_blocks,
                max_registers: #max_registers,
                shared_bytes: ::psa_codegen::descriptor::checked_shared_bytes(#shared),
                min_sm: #min_sm,
            }
        }
    }
}

fn param_type(family: &Family, instance: &Instance, param: &Param) -> TokenStream {
    match &param.kind {
        ParamKind::Scalar(scalar) => {
            let variant = match scalar {
                Scalar::U32 => "U32",
                Scalar::I32 => "I32",
                Scalar::U64 => "U64",
                Scalar::I64 => "I64",
                Scalar::F32 => "F32",
                Scalar::F64 => "F64",
            };
            let variant = Ident::new(variant, Span::call_site());
            quote! { ::psa_codegen::ParamType::#variant }
        }
        ParamKind::Const(elem) => {
            let elem = element_name(family, instance, elem);
            quote! { ::psa_codegen::ParamType::ConstPtr(#elem) }
        }
        ParamKind::Mut(elem) => {
            let elem = element_name(family, instance, elem);
            quote! { ::psa_codegen::ParamType::MutPtr(#elem) }
        }
    }
}

/// The element's name in descriptors: a generic is replaced by its value, a path by its last part.
fn element_name(family: &Family, instance: &Instance, elem: &Type) -> String {
    let Type::Path(path) = elem else { return elem.to_token_stream().to_string() };
    for (generic, value) in family.signature.generics.iter().zip(&instance.values) {
        if let (true, Value::Type(_, text)) = (path.path.is_ident(generic.name()), value) {
            return text.clone();
        }
    }
    let last = &path.path.segments[path.path.segments.len() - 1];
    last.ident.to_string().to_lowercase()
}

/// Generics of `Args`: those type generics that a parameter mentions.
fn mentioned(family: &Family) -> Vec<&Ident> {
    struct Finder<'a> {
        name: &'a Ident,
        found: bool,
    }
    impl<'ast> Visit<'ast> for Finder<'_> {
        fn visit_ident(&mut self, ident: &'ast Ident) {
            self.found |= ident == self.name;
        }
    }
    let mentions = |name: &Ident| {
        family.signature.params.iter().any(|param| {
            let mut finder = Finder { name, found: false };
            finder.visit_type(&param.ty);
            finder.found
        })
    };
    type_generics(family).filter(|name| mentions(name)).collect()
}

fn type_generics(family: &Family) -> impl Iterator<Item = &Ident> {
    family.signature.generics.iter().filter_map(|g| match g {
        Generic::Type { name } => Some(name),
        Generic::Const { .. } => None,
    })
}

fn field_type(param: &Param) -> TokenStream {
    match &param.kind {
        ParamKind::Scalar(_) => param.ty.to_token_stream(),
        ParamKind::Const(elem) => quote! { ::psa_codegen::DevicePtr<#elem> },
        ParamKind::Mut(elem) => quote! { ::psa_codegen::DevicePtrMut<#elem> },
    }
}

fn args(family: &Family) -> TokenStream {
    let generics = mentioned(family);
    let names: Vec<_> = family.signature.params.iter().map(|p| &p.name).collect();
    let types: Vec<_> = family.signature.params.iter().map(field_type).collect();
    let docs = family.signature.params.iter().map(|p| {
        let given = p.docs.iter().filter(|a| a.path().is_ident("doc"));
        let fallback = p
            .docs
            .is_empty()
            .then(|| {
                format!(
                    "Parameter `{}: {}` of the kernel.",
                    p.name,
                    p.ty.to_token_stream().to_string().replace("* ", "*")
                )
            })
            .map(|text| quote! { #[doc = #text] });
        quote! { #(#given)* #fallback }
    });
    let title = format!("The arguments of a launch of `{}`, one field per parameter.", family.name());
    // Shapes, as `[batch]`, look like links to rustdoc.
    quote! {
        #[doc = #title]
        #[allow(rustdoc::broken_intra_doc_links)]
        #[derive(Clone, Copy, Debug)]
        pub struct Args<#(#generics),*> {
            #(#docs pub #names: #types,)*
        }

        impl<#(#generics),*> Args<#(#generics),*> {
            /// The values in the order of the kernel's parameters.
            pub fn values(self) -> ::std::vec::Vec<::psa_codegen::ArgValue> {
                ::std::vec![#(::psa_codegen::KernelArg::value(self.#names)),*]
            }
        }
    }
}

fn select(family: &Family) -> TokenStream {
    let type_names: Vec<_> = type_generics(family).collect();
    let args_generics = mentioned(family);
    let mut const_names = Vec::new();
    let mut const_types = Vec::new();
    let mut scrutinee = Vec::new();
    let mut asked = Vec::new();
    for generic in &family.signature.generics {
        let label = generic.name().to_string();
        match generic {
            Generic::Type { name } => {
                scrutinee.push(quote! { <#name as ::psa_codegen::SpecType>::NAME });
                asked.push(quote! { (#label, <#name as ::psa_codegen::SpecType>::NAME.to_owned()) });
            }
            Generic::Const { name, ty } => {
                let argument = argument_name(name);
                scrutinee.push(quote! { #argument });
                asked.push(quote! { (#label, #argument.to_string()) });
                const_names.push(argument);
                const_types.push(ty);
            }
        }
    }
    let arms = family.instances.iter().enumerate().map(|(index, instance)| {
        let patterns = instance.values.iter().map(|value| match value {
            Value::Type(_, text) => quote! { #text },
            Value::Const(expr, _) => quote! { #expr },
        });
        quote! { (#(#patterns,)*) => ::core::result::Result::Ok(&INSTANCES[#index]), }
    });
    let fallback = (!family.signature.generics.is_empty()).then(|| {
        quote! {
            _ => ::core::result::Result::Err(::psa_codegen::NoSuchInstance {
                family: FAMILY,
                asked: ::std::vec![#(#asked),*],
                available: &INSTANCES,
            }),
        }
    });
    quote! {
        /// The instance for these generics.
        ///
        /// # Errors
        /// `NoSuchInstance` when it was not compiled; the error lists those that were.
        pub fn instance<#(#type_names: ::psa_codegen::SpecType),*>(
            #(#const_names: #const_types),*
        ) -> ::core::result::Result<&'static ::psa_codegen::KernelDescriptor, ::psa_codegen::NoSuchInstance> {
            match (#(#scrutinee,)*) {
                #(#arms)*
                #fallback
            }
        }

        /// The launch of the instance for these generics over `grid` blocks, for a device to execute.
        /// Block size and dynamic shared memory are the instance's.
        ///
        /// # Errors
        /// `NoSuchInstance` when it was not compiled; the error lists those that were.
        pub fn launch<#(#type_names: ::psa_codegen::SpecType),*>(
            #(#const_names: #const_types,)*
            grid: [u32; 3],
            args: Args<#(#args_generics),*>,
        ) -> ::core::result::Result<::psa_codegen::Launch, ::psa_codegen::NoSuchInstance> {
            let kernel = instance::<#(#type_names),*>(#(#const_names),*)?;
            ::core::result::Result::Ok(::psa_codegen::Launch::new(kernel, grid, args.values()))
        }
    }
}

/// The lower-case name of a const generic as an argument of `instance` and `launch`.
fn argument_name(name: &Ident) -> Ident {
    let lower = name.to_string().to_lowercase();
    match lower.as_str() {
        "grid" | "args" | "kernel" => format_ident!("{lower}_"),
        _ => syn::parse_str(&lower).unwrap_or_else(|_| format_ident!("{lower}_")),
    }
}

/// Checks that every instance satisfies the bounds which the device build will rely on.
fn bounds(family: &Family) -> TokenStream {
    if family.signature.generics.is_empty() {
        return TokenStream::new();
    }
    let generics = &family.function.sig.generics;
    let (parameters, where_clause) = (&generics.params, &generics.where_clause);
    let checks = family.instances.iter().map(|instance| {
        let values = instance.values.iter().map(|value| match value {
            Value::Type(ty, _) => ty.to_token_stream(),
            Value::Const(expr, _) => expr.to_token_stream(),
        });
        quote! { satisfied::<#(#values),*>(); }
    });
    quote! {
        const _: fn() = || {
            fn satisfied<#parameters>() #where_clause {}
            #(#checks)*
        };
    }
}
