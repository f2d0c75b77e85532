//! A kernel family: the function, its launch contract and its instances, checked against each other.

use std::collections::HashSet;

use proc_macro2::TokenStream;
use quote::quote;
use syn::spanned::Spanned;
use syn::{Expr, Ident, ItemFn, Lit, Type};

use super::attribute::{Attribute, Product, block_axes};
use super::contract::{Contract, Feasibility};
use super::signature::{Errors, Generic, Signature};

/// What a generic is in one instance.
#[derive(Clone)]
pub enum Value {
    /// The type, and its name in entries and specialisations.
    Type(Type, String),
    /// The literal, and its value as text.
    Const(Expr, String),
}

impl Value {
    pub fn text(&self) -> &str {
        match self {
            Self::Type(_, text) | Self::Const(_, text) => text,
        }
    }
}

/// One entry: its PTX name and a value per generic, in declaration order.
pub struct Instance {
    pub entry: String,
    pub values: Vec<Value>,
}

pub struct Family {
    pub function: ItemFn,
    pub signature: Signature,
    pub instances: Vec<Instance>,
    pub block: [Expr; 3],
    pub dynamic_shared: Option<Expr>,
    pub min_blocks_per_sm: Option<Expr>,
    pub max_registers: Option<Expr>,
    pub min_sm: Option<Expr>,
    pub contract: Contract,
    pub feasibility: Feasibility,
}

impl Family {
    pub fn new(attribute: TokenStream, item: TokenStream) -> syn::Result<Self> {
        let attribute_span = attribute.span();
        let mut attribute: Attribute = syn::parse2(attribute)?;
        let mut function: ItemFn = syn::parse2(item)?;
        let mut signature = Signature::new(&mut function)?;
        let Some(block) = &attribute.block else {
            let span = if attribute_span.source_text().is_some() {
                attribute_span
            } else {
                function.sig.ident.span()
            };
            return Err(syn::Error::new(
                span,
                "missing `block`: a kernel is compiled for one block size; write #[kernel(block = 128)]",
            ));
        };
        let block = block_axes(block)?;
        let instances = instances(&function.sig.ident, &signature.generics, &attribute.products)?;
        let contract = Contract::new(&mut attribute, &mut signature)?;
        let feasibility = Feasibility::new(&mut attribute, &signature)?;
        Ok(Self {
            function,
            signature,
            instances,
            block,
            dynamic_shared: attribute.dynamic_shared,
            min_blocks_per_sm: attribute.min_blocks_per_sm,
            max_registers: attribute.max_registers,
            min_sm: attribute.min_sm,
            contract,
            feasibility,
        })
    }

    pub fn name(&self) -> &Ident {
        &self.function.sig.ident
    }

    /// `type T = bf16; const D: usize = 64;`: the scope in which the attribute's expressions and the
    /// parameter types of an instance are evaluated.
    pub fn bindings(&self, instance: &Instance) -> TokenStream {
        let items = self.signature.generics.iter().zip(&instance.values).map(|(generic, value)| {
            match (generic, value) {
                (Generic::Const { name, ty }, Value::Const(expr, _)) => quote! { const #name: #ty = #expr; },
                (_, Value::Type(ty, _)) => {
                    let name = generic.name();
                    quote! { type #name = #ty; }
                }
                // `value` pairs kinds; this arm cannot be built.
                (Generic::Type { .. }, Value::Const(..)) => TokenStream::new(),
            }
        });
        quote! { #(#items)* }
    }
}

fn instances(name: &Ident, generics: &[Generic], products: &[Product]) -> syn::Result<Vec<Instance>> {
    if generics.is_empty() {
        if let Some(product) = products.first() {
            let message = format!("`{name}` has no generics, so it has one instance; remove instances(..)");
            return Err(syn::Error::new(product.span, message));
        }
        return Ok(vec![Instance { entry: name.to_string(), values: Vec::new() }]);
    }
    if products.is_empty() {
        let list: Vec<String> = generics.iter().map(|g| format!("{} in [..]", g.name())).collect();
        let message = format!("`{name}` is generic: list what to compile, as instances({})", list.join(", "));
        return Err(syn::Error::new(name.span(), message));
    }
    let mut errors = Errors::default();
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for product in products {
        for axis in &product.axes {
            if !generics.iter().any(|g| *g.name() == axis.name) {
                let known: Vec<String> = generics.iter().map(|g| format!("`{}`", g.name())).collect();
                let message = format!("`{name}` has no generic `{}`; it has {}", axis.name, known.join(", "));
                errors.push(axis.name.span(), &message);
            }
        }
        let mut rows: Vec<Vec<Value>> = vec![Vec::new()];
        for generic in generics {
            let Some(axis) = product.axes.iter().find(|axis| axis.name == *generic.name()) else {
                let message =
                    format!("instances(..) says nothing of generic `{0}`; add `{0} in [..]`", generic.name());
                errors.push(product.span, &message);
                continue;
            };
            let mut values = Vec::new();
            for expr in &axis.values {
                match value(generic, expr) {
                    Ok(v) => values.push(v),
                    Err(e) => errors.add(e),
                }
            }
            rows = rows
                .iter()
                .flat_map(|row| values.iter().map(move |v| row.iter().cloned().chain([v.clone()]).collect()))
                .collect();
        }
        for values in rows {
            let entry = entry_name(name, generics, &values);
            if seen.insert(entry.clone()) {
                out.push(Instance { entry, values });
            }
        }
    }
    errors.finish()?;
    Ok(out)
}

fn value(generic: &Generic, expr: &Expr) -> syn::Result<Value> {
    match (generic, expr) {
        (Generic::Type { .. }, Expr::Path(path)) if path.qself.is_none() => {
            let last = &path.path.segments[path.path.segments.len() - 1];
            if !last.arguments.is_none() {
                return Err(syn::Error::new(
                    expr.span(),
                    "a type in instances(..) is a plain name; give a generic type an alias",
                ));
            }
            let path = &path.path;
            Ok(Value::Type(syn::parse_quote!(#path), last.ident.to_string().to_lowercase()))
        }
        (Generic::Type { name }, other) => Err(syn::Error::new(
            other.span(),
            format!("`{name}` is a type: list type names, as `{name} in [bf16, f16]`"),
        )),
        (Generic::Const { .. }, Expr::Lit(lit)) => match &lit.lit {
            Lit::Int(int) => Ok(Value::Const(expr.clone(), int.base10_digits().to_owned())),
            Lit::Bool(b) => Ok(Value::Const(expr.clone(), b.value.to_string())),
            other => Err(syn::Error::new(other.span(), "a const in instances(..) is an integer or a bool")),
        },
        (Generic::Const { name, .. }, other) => Err(syn::Error::new(
            other.span(),
            format!(
                "`{name}` is a const whose value is part of the entry's name: list literals, as `{name} in [64, 128]`"
            ),
        )),
    }
}

fn entry_name(name: &Ident, generics: &[Generic], values: &[Value]) -> String {
    let mut entry = name.to_string();
    for (generic, value) in generics.iter().zip(values) {
        entry.push('_');
        if let Generic::Const { name, .. } = generic {
            entry.push_str(&name.to_string().to_lowercase());
        }
        entry.push_str(value.text());
    }
    entry
}
