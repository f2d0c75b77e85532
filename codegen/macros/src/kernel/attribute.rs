//! The keys of `#[kernel(...)]`, read without knowledge of the function.

use proc_macro2::Span;
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{Expr, Ident, LitInt, LitStr, Token, bracketed, parenthesized};

const KEYS: &str = "the keys are block, dynamic_shared, min_blocks_per_sm, max_registers, min_sm, instances(..), \
                    grid, out(..), align(..), may_overlap(..), requires(..), shape(..), feasible(..) and prefer(..)";

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

/// One axis of `grid = (kv_heads, let batch, _)`.
pub enum GridAxis {
    /// `let name` or `_`: any number, under a name that relations may use.
    Any(Option<Ident>),
    /// An expression: exactly that many.
    Exactly(Expr),
}

/// `head_dim == D => "why"`.
pub struct ReasonedExpr {
    pub expr: Expr,
    pub reason: String,
}

/// `prefer(least G => "why")`.
pub struct Preference {
    pub most: bool,
    pub cost: ReasonedExpr,
}

#[derive(Default)]
pub struct Attribute {
    pub block: Option<Expr>,
    pub dynamic_shared: Option<Expr>,
    pub min_blocks_per_sm: Option<Expr>,
    pub max_registers: Option<Expr>,
    pub min_sm: Option<Expr>,
    pub products: Vec<Product>,
    pub grid: Option<[GridAxis; 3]>,
    pub out: Vec<Ident>,
    pub align: Vec<(Ident, LitInt)>,
    pub may_overlap: Vec<Vec<Ident>>,
    pub requires: Vec<Expr>,
    pub shape: Option<Vec<Ident>>,
    pub feasible: Option<Vec<ReasonedExpr>>,
    pub prefer: Option<Preference>,
}

impl Parse for Attribute {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let mut out = Self::default();
        while !input.is_empty() {
            let key: Ident = input
                .parse()
                .map_err(|e| syn::Error::new(e.span(), format!("expected a key of #[kernel(..)]; {KEYS}")))?;
            out.key(&key, input)?;
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(out)
    }
}

impl Attribute {
    fn key(&mut self, key: &Ident, input: ParseStream) -> syn::Result<()> {
        let twice = |given: bool| match given {
            true => Err(syn::Error::new(key.span(), format!("`{key}` is given twice; keep one"))),
            false => Ok(()),
        };
        match key.to_string().as_str() {
            "instances" => self.products.push(product(key, input)?),
            "grid" => {
                twice(self.grid.is_some())?;
                input.parse::<Token![=]>()?;
                self.grid = Some(grid(key, input)?);
            }
            "out" => self.out.extend(list(input, Ident::parse)?),
            "align" => self.align.extend(list(input, |item| {
                let name: Ident = item.parse()?;
                item.parse::<Token![=]>()
                    .map_err(|e| syn::Error::new(e.span(), format!("expected `{name} = 16`, bytes")))?;
                Ok((name, item.parse()?))
            })?),
            "may_overlap" => self.may_overlap.push(list(input, Ident::parse)?),
            "requires" => self.requires.extend(list(input, Expr::parse)?),
            "shape" => {
                twice(self.shape.is_some())?;
                self.shape = Some(list(input, Ident::parse)?);
            }
            "feasible" => self.feasible.get_or_insert_default().extend(list(input, ReasonedExpr::parse)?),
            "prefer" => {
                twice(self.prefer.is_some())?;
                let inner;
                parenthesized!(inner in input);
                let order: Ident = inner.parse()?;
                let most = match order.to_string().as_str() {
                    "least" => false,
                    "most" => true,
                    _ => {
                        let text = "write `prefer(least EXPRESSION => \"why\")`, or `most`";
                        return Err(syn::Error::new(order.span(), text));
                    }
                };
                self.prefer = Some(Preference { most, cost: inner.parse()? });
            }
            other => {
                let slot = match other {
                    "block" => &mut self.block,
                    "dynamic_shared" => &mut self.dynamic_shared,
                    "min_blocks_per_sm" => &mut self.min_blocks_per_sm,
                    "max_registers" => &mut self.max_registers,
                    "min_sm" => &mut self.min_sm,
                    _ => return Err(unknown(key)),
                };
                twice(slot.is_some())?;
                input.parse::<Token![=]>()?;
                *slot = Some(input.parse()?);
            }
        }
        Ok(())
    }
}

fn unknown(key: &Ident) -> syn::Error {
    let hint = match key.to_string().as_str() {
        "threads" | "block_dim" | "block_size" => "; did you mean `block`?",
        "shared" | "shared_bytes" | "smem" => "; did you mean `dynamic_shared`?",
        "instance" => "; did you mean `instances(..)`?",
        "require" | "where" | "assert" => "; did you mean `requires(..)`?",
        "grid_dim" | "blocks" => "; did you mean `grid`?",
        "alias" | "noalias" | "overlap" => {
            "; a buffer that is written overlaps no other unless `may_overlap(a, b)` allows it"
        }
        _ => "",
    };
    syn::Error::new(key.span(), format!("unknown key `{key}`{hint}; {KEYS}"))
}

fn list<T>(input: ParseStream, item: fn(ParseStream) -> syn::Result<T>) -> syn::Result<Vec<T>> {
    let inner;
    parenthesized!(inner in input);
    Ok(inner.parse_terminated(item, Token![,])?.into_iter().collect())
}

impl Parse for ReasonedExpr {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let expr: Expr = input.parse()?;
        let reason = input.parse::<Token![=>]>().and_then(|_| input.parse::<LitStr>());
        match reason {
            Ok(reason) => Ok(Self { expr, reason: reason.value() }),
            Err(e) => Err(syn::Error::new(e.span(), "every line has its reason: `EXPRESSION => \"why\"`")),
        }
    }
}

fn grid(key: &Ident, input: ParseStream) -> syn::Result<[GridAxis; 3]> {
    let inner;
    parenthesized!(inner in input);
    let axes = inner.parse_terminated(
        |axis| {
            if axis.peek(Token![let]) {
                axis.parse::<Token![let]>()?;
                Ok(GridAxis::Any(Some(axis.parse()?)))
            } else if axis.peek(Token![_]) {
                axis.parse::<Token![_]>()?;
                Ok(GridAxis::Any(None))
            } else {
                Ok(GridAxis::Exactly(axis.parse()?))
            }
        },
        Token![,],
    )?;
    let one = || GridAxis::Exactly(syn::parse_quote!(1));
    let mut axes = axes.into_iter();
    match (axes.next(), axes.next(), axes.next(), axes.next()) {
        (Some(x), y, z, None) => Ok([x, y.unwrap_or_else(one), z.unwrap_or_else(one)]),
        _ => Err(syn::Error::new(
            key.span(),
            "`grid` has one to three axes, each an expression, `let NAME` or `_`; axes left out are 1",
        )),
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
