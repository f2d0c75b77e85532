//! The host build: a module named after the function, with descriptors and a typed launcher.
//!
//! Nothing here refers to the body. The bounds of the generics are checked for every instance, which
//! also keeps the imports they need in use.

use std::collections::HashSet;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::Type;
use syn::spanned::Spanned;
use syn::visit::Visit;

use super::contract::{GridRule, size_name};
use super::family::{Family, Instance, Value};
use super::relation::{Comparison, Operations};
use super::signature::{Generic, Param, ParamKind, Scalar};

pub fn expand(family: &Family) -> TokenStream {
    let name = family.name();
    let vis = &family.function.vis;
    let kept = family.function.attrs.iter().filter(|a| a.path().is_ident("cfg") || a.path().is_ident("doc"));
    let count = family.instances.len();
    let descriptors = family.instances.iter().map(|instance| descriptor(family, instance));
    let args = args(family);
    let typed = typed(family);
    let select = select(family);
    let fixed = fixed(family);
    let bounds = bounds(family);
    let declared = declared(family);
    quote! {
        #[cfg(not(target_arch = "nvptx64"))]
        #(#kept)*
        #[allow(
            dead_code, unused_imports, non_camel_case_types, non_upper_case_globals, unreachable_patterns,
            clippy::unnecessary_cast, clippy::identity_op, clippy::too_many_arguments
        )]
        #vis mod #name {
            use super::*;

            /// Every compiled instance, in the order of the `instances(..)` lists, the last generic fastest.
            pub static INSTANCES: [::psa_codegen::KernelDescriptor; #count] = [#(#descriptors),*];

            #declared
            #args
            #typed
            #select
            #fixed
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
        let (elem, access) = match &param.kind {
            ParamKind::Scalar(_) => return quote! { ::psa_codegen::Param::scalar(#name, #ty) },
            ParamKind::Const(elem) => (elem, quote! { In }),
            ParamKind::Mut(elem) if param.is_out => (elem, quote! { Out }),
            ParamKind::Mut(elem) => (elem, quote! { InOut }),
        };
        let align = match &param.align {
            Some(bytes) => quote! { #bytes as u64 },
            None => quote! { ::core::mem::align_of::<#elem>() as u64 },
        };
        quote! {
            ::psa_codegen::Param {
                name: #name,
                ty: #ty,
                access: ::psa_codegen::Access::#access,
                align: ::psa_codegen::descriptor::checked_align(#align, ::core::mem::align_of::<#elem>()),
                element_bytes: ::core::mem::size_of::<#elem>() as u32,
            }
        }
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
    let contract = contract(family);
    let feasible = family.feasibility.lines.iter().map(|(comparison, reason)| {
        let relation = relation(comparison);
        quote! { ::psa_codegen::Line { relation: #relation, reason: #reason } }
    });
    let cost = family.feasibility.prefer.as_ref().map(|prefer| &prefer.cost.ops);
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
                contract: #contract,
                feasible: &[#(#feasible),*],
                cost: &[#cost],
            }
        }
    }
}

fn relation(comparison: &Comparison) -> TokenStream {
    let Comparison {
        left: Operations { ops: left, .. },
        compare,
        right: Operations { ops: right, .. },
        text,
    } = comparison;
    quote! {
        ::psa_codegen::Relation {
            text: #text,
            left: &[#left],
            compare: ::psa_codegen::Compare::#compare,
            right: &[#right],
        }
    }
}

fn contract(family: &Family) -> TokenStream {
    let grid = family.contract.grid.iter().map(|rule| match rule {
        GridRule::Any(None) => quote! { ::psa_codegen::GridRule::Any(::core::option::Option::None) },
        GridRule::Any(Some(name)) => {
            let name = name.to_string();
            quote! { ::psa_codegen::GridRule::Any(::core::option::Option::Some(#name)) }
        }
        GridRule::Exactly(Operations { text, ops, .. }) => {
            quote! { ::psa_codegen::GridRule::Exactly { text: #text, ops: &[#ops] } }
        }
    });
    let requires = family.contract.requires.iter().map(relation);
    let pairs = family.contract.may_overlap.iter().map(|(a, b)| quote! { (#a, #b) });
    quote! {
        ::psa_codegen::Contract {
            grid: [#(#grid),*],
            requires: &[#(#requires),*],
            may_overlap: &[#(#pairs),*],
        }
    }
}

/// The family as data.
fn declared(family: &Family) -> TokenStream {
    let name = family.name().to_string();
    let types = type_generics(family).map(ToString::to_string);
    let sizes = family.feasibility.sizes.iter().map(ToString::to_string);
    let prefer = match &family.feasibility.prefer {
        None => quote! { ::core::option::Option::None },
        Some(prefer) => {
            let (most, text, reason) = (prefer.most, &prefer.cost.text, &prefer.reason);
            quote! {
                ::core::option::Option::Some(
                    ::psa_codegen::Prefer { most: #most, text: #text, reason: #reason }
                )
            }
        }
    };
    quote! {
        /// The family: its instances, and which of them serves what.
        pub static FAMILY: ::psa_codegen::Family = ::psa_codegen::Family {
            name: #name,
            instances: &INSTANCES,
            types: &[#(#types),*],
            sizes: &[#(#sizes),*],
            prefer: #prefer,
        };
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
        ParamKind::Const(elem) => quote! { ::psa_codegen::In<#elem> },
        ParamKind::Mut(elem) if param.is_out => quote! { ::psa_codegen::Out<#elem> },
        ParamKind::Mut(elem) => quote! { ::psa_codegen::InOut<#elem> },
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
    let count = names.len();
    // Shapes, as `[batch]`, look like links to rustdoc.
    quote! {
        #[doc = #title]
        #[allow(rustdoc::broken_intra_doc_links)]
        #[derive(Clone, Copy, Debug)]
        pub struct Args<#(#generics),*> {
            #(#docs pub #names: #types,)*
        }

        impl<#(#generics),*> ::psa_codegen::KernelArgs for Args<#(#generics),*> {
            fn arguments(self) -> ::psa_codegen::Arguments {
                ::psa_codegen::Arguments::with_capacity(#count) #(.with(self.#names))*
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
                family: FAMILY.name,
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

        /// The launch of the instance for exactly these generics over `grid` blocks, for a device to execute.
        /// Block size and dynamic shared memory are the instance's.
        ///
        /// # Errors
        /// `LaunchError::NoSuchInstance` when it was not compiled, `LaunchError::Contract` when the grid or the
        /// arguments break the kernel's contract.
        pub fn launch<#(#type_names: ::psa_codegen::SpecType),*>(
            #(#const_names: #const_types,)*
            grid: [u32; 3],
            args: Args<#(#args_generics),*>,
        ) -> ::core::result::Result<::psa_codegen::Launch, ::psa_codegen::LaunchError> {
            let kernel = instance::<#(#type_names),*>(#(#const_names),*)?;
            let arguments = ::psa_codegen::KernelArgs::arguments(args);
            ::core::result::Result::Ok(::psa_codegen::Launch::new(kernel, grid, arguments)?)
        }
    }
}

/// The lower-case name of a const generic as an argument of `instance` and `launch`.
fn argument_name(name: &Ident) -> Ident {
    let lower = name.to_string().to_lowercase();
    match lower.as_str() {
        "grid" | "args" | "kernel" => format_ident!("{lower}_"),
        _ => size_name(name),
    }
}

/// The kernel as a type, the request as a struct, and the choice between instances.
fn typed(family: &Family) -> TokenStream {
    let types: Vec<_> = type_generics(family).collect();
    let args_generics = mentioned(family);
    let sizes = &family.feasibility.sizes;
    let shape = (!sizes.is_empty()).then(|| {
        let docs = sizes.iter().map(|size| {
            let lines = family.feasibility.lines.iter().filter(|(line, _)| {
                line.text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| *size == word)
            });
            let texts: Vec<_> = lines.map(|(line, reason)| format!("`{}`: {reason}.", line.text)).collect();
            match texts.is_empty() {
                true => "Free.".to_owned(),
                false => texts.join(" "),
            }
        });
        quote! {
            /// What a launch is wanted for; each field with the feasibility lines that it must meet.
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            #[allow(rustdoc::broken_intra_doc_links)]
            pub struct Shape {
                #(#[doc = #docs] pub #sizes: usize,)*
            }
        }
    });
    let shape_argument = shape.is_some().then(|| quote! { shape: Shape, });
    let kernel_title =
        format!("The kernel `{}` as a type, which its choices and arguments carry.", family.name());
    quote! {
        #[doc = #kernel_title]
        #[derive(Debug)]
        pub struct Kernel<#(#types),*>(::core::marker::PhantomData<fn() -> (#(#types,)*)>);

        impl<#(#types),*> ::psa_codegen::Kernel for Kernel<#(#types),*> {
            type Args = Args<#(#args_generics),*>;
            const FAMILY: &'static ::psa_codegen::Family = &FAMILY;
        }

        #shape

        /// The instance that serves a request on a device, and why this one. Checked for this very request, whatever
        /// the hint says.
        ///
        /// # Errors
        /// `Infeasible`, with the line that does not hold and the values in it.
        pub fn select<#(#types: ::psa_codegen::SpecType),*>(
            #shape_argument
            device: &::psa_codegen::DeviceLimits,
            hint: ::psa_codegen::Hint<'_>,
        ) -> ::core::result::Result<::psa_codegen::Choice<Kernel<#(#types),*>>, ::psa_codegen::Infeasible> {
            let request = ::psa_codegen::Request {
                types: &[#(<#types as ::psa_codegen::SpecType>::NAME),*],
                sizes: &[#(shape.#sizes as u64),*],
            };
            ::psa_codegen::Choice::select(request, device, hint)
        }
    }
}

/// `Instance::<bf16, 64>`: an instance by its generics, a compile error where there is none.
fn fixed(family: &Family) -> TokenStream {
    if family.signature.generics.is_empty() {
        return TokenStream::new();
    }
    let types: Vec<_> = type_generics(family).collect();
    let args_generics = mentioned(family);
    let parameters: Vec<_> = family
        .signature
        .generics
        .iter()
        .map(|generic| match generic {
            Generic::Type { name } => quote! { #name },
            Generic::Const { name, ty } => quote! { const #name: #ty },
        })
        .collect();
    let names: Vec<_> = family.signature.generics.iter().map(Generic::name).collect();
    let impls = family.instances.iter().enumerate().map(|(index, instance)| {
        let values = instance.values.iter().map(|value| match value {
            Value::Type(ty, _) => ty.to_token_stream(),
            Value::Const(expr, _) => quote! { { #expr } },
        });
        quote! {
            impl Compiled for Instance<#(#values),*> {
                const KERNEL: &'static ::psa_codegen::KernelDescriptor = &INSTANCES[#index];
            }
        }
    });
    let message = format!("kernel `{}` was not compiled as `{{Self}}`", family.name());
    let entries: Vec<_> = family.instances.iter().map(|instance| instance.entry.as_str()).collect();
    let compiled = format!("compiled are {}", entries.join(", "));
    quote! {
        /// An instance by its generics, for launches whose instance is known when they are compiled. One that was not compiled
        /// is a compile error.
        #[derive(Debug)]
        pub struct Instance<#(#parameters),*>(::core::marker::PhantomData<fn() -> (#(#types,)*)>);

        /// An [`Instance`] that is in the PTX.
        #[diagnostic::on_unimplemented(
            message = #message,
            label = "no such instance",
            note = #compiled,
            note = "use one of them, or add the values to the instances(..) of its #[kernel] and rebuild the PTX"
        )]
        pub trait Compiled {
            /// Its descriptor.
            const KERNEL: &'static ::psa_codegen::KernelDescriptor;
        }

        #(#impls)*

        impl<#(#parameters),*> Instance<#(#names),*> {
            /// The launch over `grid` blocks, for a device to execute.
            ///
            /// # Errors
            /// `ContractError` when the grid or the arguments break the kernel's contract.
            pub fn launch(
                grid: [u32; 3],
                args: Args<#(#args_generics),*>,
            ) -> ::core::result::Result<::psa_codegen::Launch, ::psa_codegen::ContractError>
            where
                Self: Compiled,
            {
                let arguments = ::psa_codegen::KernelArgs::arguments(args);
                ::psa_codegen::Launch::new(<Self as Compiled>::KERNEL, grid, arguments)
            }
        }
    }
}

/// Checks that every instance satisfies the bounds which the device build will rely on, and that buffers hold
/// what a device can handle.
fn bounds(family: &Family) -> TokenStream {
    let generics = &family.function.sig.generics;
    let (parameters, where_clause) = (&generics.params, &generics.where_clause);
    let checks = family.instances.iter().map(|instance| {
        let values = instance.values.iter().map(|value| match value {
            Value::Type(ty, _) => ty.to_token_stream(),
            Value::Const(expr, _) => quote! { { #expr } },
        });
        quote! { satisfied::<#(#values),*>(); }
    });
    // Generic elements are checked as types of instances, named ones here, once.
    let elements = family.signature.params.iter().filter_map(|param| match &param.kind {
        ParamKind::Const(elem) | ParamKind::Mut(elem) => {
            let generic = type_generics(family).any(|name| *name == elem.to_token_stream().to_string());
            (!generic).then_some(elem)
        }
        ParamKind::Scalar(_) => None,
    });
    let elements = elements.map(|elem| quote_spanned! { elem.span() => element::<#elem>(); });
    let mut seen = HashSet::new();
    let types =
        family.instances.iter().flat_map(|instance| &instance.values).filter_map(|value| match value {
            Value::Type(ty, text) => {
                seen.insert(text).then(|| quote_spanned! { ty.span() => instance::<#ty>(); })
            }
            Value::Const(..) => None,
        });
    let types: Vec<_> = types.collect();
    quote! {
        const _: fn() = || {
            fn satisfied<#parameters>() #where_clause {}
            fn element<E: ::psa_codegen::BufferElement>() {}
            fn instance<E: ::psa_codegen::SpecType>() {}
            #(#checks)*
            #(#elements)*
            #(#types)*
        };
    }
}
