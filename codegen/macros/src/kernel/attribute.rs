//! The keys of `#[kernel(...)]`, read without knowledge of the function.

use proc_macro2::Span;
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{Expr, Ident, Token, bracketed, parenthesized};

const KEYS: &str =
    "the keys are block, dynamic_shared, min_blocks_per_sm, max_registers, min_sm and instances(..)";

/// `T in [bf16, f16]`. Values stay expressions: whether they are types or constants is known only
/// once the function's generics are.
pub struct Axis {
    pub name: Ident,
    pub values: Vec<Expr>,
}

/// One `instances(..)` list.
pub struct Product {
    pub span: Span,
    pub axes: Vec<Axis>,
}

#[derive(Default)]
pub struct Attribute {
    pub block: Option<Expr>,
    pub dynamic_shared: Option<Expr>,
    pub min_blocks_per_sm: Option<Expr>,
    pub max_registers: Option<Expr>,
    pub min_sm: Option<Expr>,
    pub products: Vec<Product>,
}

impl Parse for Attribute {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let mut out = Self::default();
        while !input.is_empty() {
            let key: Ident = input
                .parse()
                .map_err(|e| syn::Error::new(e.span(), format!("expected a key of #[kernel(..)]; {KEYS}")))?;
            if key == "instances" {
                out.products.push(product(&key, input)?);
            } else {
                let slot = match key.to_string().as_str() {
                    "block" => &mut out.block,
                    "dynamic_shared" => &mut out.dynamic_shared,
                    "min_blocks_per_sm" => &mut out.min_blocks_per_sm,
                    "max_registers" => &mut out.max_registers,
                    "min_sm" => &mut out.min_sm,
                    other => {
                        let hint = match other {
                            "threads" | "block_dim" | "block_size" => "; did you mean `block`?",
                            "shared" | "shared_bytes" | "smem" => "; did you mean `dynamic_shared`?",
                            "instance" => "; did you mean `instances(..)`?",
                            _ => "",
                        };
                        return Err(syn::Error::new(
                            key.span(),
                            format!("unknown key `{other}`{hint}; {KEYS}"),
                        ));
                    }
                };
                if slot.is_some() {
                    return Err(syn::Error::new(key.span(), format!("`{key}` is given twice; keep one")));
                }
                input.parse::<Token![=]>()?;
                *slot = Some(input.parse()?);
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(out)
    }
}

fn product(key: &Ident, input: ParseStream) -> syn::Result<Product> {
    let list;
    parenthesized!(list in input);
    let mut axes: Vec<Axis> = Vec::new();
    while !list.is_empty() {
        let name: Ident = list.parse()?;
        if axes.iter().any(|axis| axis.name == name) {
            return Err(syn::Error::new(
                name.span(),
                format!("generic `{name}` is listed twice in one instances(..)"),
            ));
        }
        list.parse::<Token![in]>()
            .map_err(|e| syn::Error::new(e.span(), format!("expected `{name} in [value, ..]`")))?;
        let values;
        bracketed!(values in list);
        let values: Vec<Expr> = values.parse_terminated(Expr::parse, Token![,])?.into_iter().collect();
        if values.is_empty() {
            return Err(syn::Error::new(
                name.span(),
                format!("`{name} in []` gives no instance; list a value"),
            ));
        }
        axes.push(Axis { name, values });
        if !list.is_empty() {
            list.parse::<Token![,]>()?;
        }
    }
    Ok(Product { span: key.span(), axes })
}

/// `block` as three expressions: `128` is `(128, 1, 1)`.
pub fn block_axes(block: &Expr) -> syn::Result<[Expr; 3]> {
    let one = || -> Expr { syn::parse_quote!(1) };
    match block {
        Expr::Tuple(tuple) if tuple.elems.len() == 3 => {
            Ok([tuple.elems[0].clone(), tuple.elems[1].clone(), tuple.elems[2].clone()])
        }
        Expr::Tuple(tuple) => Err(syn::Error::new(
            tuple.span(),
            format!("`block` has {} dimensions; write an integer or `(x, y, z)`", tuple.elems.len()),
        )),
        Expr::Array(array) => {
            Err(syn::Error::new(array.span(), "write `block` as an integer or `(x, y, z)`"))
        }
        other => Ok([other.clone(), one(), one()]),
    }
}
