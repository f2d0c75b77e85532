//! Contract and feasibility of a family: the attribute's lines checked against the signature.

use proc_macro2::Span;
use quote::format_ident;
use syn::{Expr, Ident};

use super::attribute::{Attribute, GridAxis, ReasonedExpr};
use super::relation::{Comparison, Operations, Scope};
use super::signature::{Errors, Generic, Param, ParamKind, Signature};

/// What a launch must keep.
pub struct Contract {
    pub grid: [GridRule; 3],
    pub requires: Vec<Comparison>,
    /// Pairs of parameters, by index.
    pub may_overlap: Vec<(usize, usize)>,
}

pub enum GridRule {
    Any(Option<Ident>),
    Exactly(Operations),
}

/// What a request must keep, and what is preferred.
pub struct Feasibility {
    pub sizes: Vec<Ident>,
    pub lines: Vec<(Comparison, String)>,
    pub prefer: Option<Preference>,
}

pub struct Preference {
    pub most: bool,
    pub cost: Operations,
    pub reason: String,
}

impl Contract {
    /// Also settles the access and alignment of the parameters.
    pub fn new(attribute: &mut Attribute, signature: &mut Signature) -> syn::Result<Self> {
        let mut errors = Errors::default();
        access(attribute, &mut signature.params, &mut errors);
        let params = &signature.params;
        let any = || GridAxis::Any(None);
        let axes = attribute.grid.take().unwrap_or_else(|| [any(), any(), any()]);
        for axis in &axes {
            if let GridAxis::Any(Some(name)) = axis {
                let taken = params.iter().any(|param| param.name == *name)
                    || signature.generics.iter().any(|generic| generic.name() == name);
                if taken {
                    errors.push(
                        name.span(),
                        &format!(
                            "`{name}` is a name of the kernel already: without `let` the axis must equal it"
                        ),
                    );
                }
            }
        }
        let scope = Scope::Launch { params, grid: &axes };
        let mut requires = Vec::new();
        for expr in &attribute.requires {
            match scope.comparison(expr) {
                Ok(comparison) => requires.push(comparison),
                Err(e) => errors.add(e),
            }
        }
        let mut rules = Vec::new();
        for axis in &axes {
            match axis {
                GridAxis::Any(name) => rules.push(GridRule::Any(name.clone())),
                GridAxis::Exactly(expr) => match scope.operations(expr) {
                    Ok(operations) => rules.push(GridRule::Exactly(operations)),
                    Err(e) => errors.add(e),
                },
            }
        }
        let mut may_overlap = Vec::new();
        for names in &attribute.may_overlap {
            let indices: Vec<usize> =
                names.iter().filter_map(|name| buffer(params, name, &mut errors)).collect();
            if let [only] = names.as_slice() {
                errors.push(only.span(), "`may_overlap` names two buffers or more");
            }
            for (at, &a) in indices.iter().enumerate() {
                may_overlap.extend(indices[at + 1..].iter().map(|&b| (a, b)));
            }
        }
        errors.finish()?;
        let mut rules = rules.into_iter();
        let mut rule = || rules.next().unwrap_or(GridRule::Any(None));
        Ok(Self { grid: [rule(), rule(), rule()], requires, may_overlap })
    }

    pub fn constants(&self) -> impl Iterator<Item = &Expr> {
        let grid = self.grid.iter().filter_map(|rule| match rule {
            GridRule::Exactly(operations) => Some(operations),
            GridRule::Any(_) => None,
        });
        let relations = self.requires.iter().flat_map(|relation| [&relation.left, &relation.right]);
        grid.chain(relations).flat_map(|operations| &operations.constants)
    }
}

fn buffer(params: &[Param], name: &Ident, errors: &mut Errors) -> Option<usize> {
    let found = params.iter().position(|param| param.name == *name);
    match found {
        Some(index) if !matches!(params[index].kind, ParamKind::Scalar(_)) => found,
        Some(_) => {
            errors.push(
                name.span(),
                &format!("`{name}` is a scalar; only buffers (`*const T`, `*mut T`) stand here"),
            );
            None
        }
        None => {
            errors.push(name.span(), &format!("the kernel has no parameter `{name}`"));
            None
        }
    }
}

fn access(attribute: &Attribute, params: &mut [Param], errors: &mut Errors) {
    for name in &attribute.out {
        if let Some(index) = buffer(params, name, errors) {
            match &params[index].kind {
                ParamKind::Mut(_) => params[index].is_out = true,
                _ => errors.push(
                    name.span(),
                    &format!("`{name}` is `*const`, so the kernel does not write it; make it `*mut` or take it off out(..)"),
                ),
            }
        }
    }
    for (name, bytes) in &attribute.align {
        if let Some(index) = buffer(params, name, errors) {
            params[index].align = Some(bytes.clone());
        }
    }
}

impl Feasibility {
    pub fn new(attribute: &mut Attribute, signature: &Signature) -> syn::Result<Self> {
        let mut errors = Errors::default();
        let given = attribute.shape.is_some();
        let (sizes, lines) = match (attribute.shape.take(), attribute.feasible.take()) {
            (None, None) => own_sizes(signature),
            (Some(sizes), lines) => (sizes, lines.unwrap_or_default()),
            (None, Some(lines)) => {
                let (sizes, mut own) = own_sizes(signature);
                own.extend(lines);
                (sizes, own)
            }
        };
        for size in sizes.iter().filter(|_| given) {
            if signature.generics.iter().any(|generic| generic.name() == size) {
                errors.push(
                    size.span(),
                    &format!(
                        "`{size}` is a generic; a size of a request has a name of its own, in lower case"
                    ),
                );
            }
        }
        let scope = Scope::Request { sizes: &sizes };
        let mut translated = Vec::new();
        for line in lines {
            match scope.comparison(&line.expr) {
                Ok(comparison) => translated.push((comparison, line.reason)),
                Err(e) => errors.add(e),
            }
        }
        let prefer = attribute.prefer.take().and_then(|prefer| match scope.operations(&prefer.cost.expr) {
            Ok(cost) => Some(Preference { most: prefer.most, cost, reason: prefer.cost.reason }),
            Err(e) => {
                errors.add(e);
                None
            }
        });
        errors.finish()?;
        Ok(Self { sizes, lines: translated, prefer })
    }

    pub fn constants(&self) -> impl Iterator<Item = &Expr> {
        let lines = self.lines.iter().flat_map(|(relation, _)| [&relation.left, &relation.right]);
        lines
            .chain(self.prefer.iter().map(|prefer| &prefer.cost))
            .flat_map(|operations| &operations.constants)
    }
}

/// Without `shape(..)`: one size for each const generic, which must equal it.
fn own_sizes(signature: &Signature) -> (Vec<Ident>, Vec<ReasonedExpr>) {
    let consts = signature.generics.iter().filter_map(|generic| match generic {
        Generic::Const { name, .. } => Some(name),
        Generic::Type { .. } => None,
    });
    consts
        .map(|name| {
            let size = size_name(name);
            let expr = syn::parse_quote!(#size == #name);
            (size, ReasonedExpr { expr, reason: "compiled for the listed values alone".to_owned() })
        })
        .unzip()
}

/// The lower-case name of a const generic.
pub fn size_name(name: &Ident) -> Ident {
    let lower = name.to_string().to_lowercase();
    match syn::parse_str::<Ident>(&lower) {
        Ok(_) if *name != lower => Ident::new(&lower, Span::call_site()),
        _ => format_ident!("{lower}_"),
    }
}
