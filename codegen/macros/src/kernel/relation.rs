//! The expressions of `requires(..)`, `grid`, `feasible(..)` and `prefer(..)`: Rust in, postfix data out.
//!
//! They are integer arithmetic over what a launch (or a request) has; whatever mentions none of that is a
//! constant, which rustc evaluates for each instance, so it may be any const expression. The rest is limited
//! to what `psa_codegen::expression` computes, so that other languages can read it from the manifest.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{BinOp, Expr, ExprPath, Ident};

use super::attribute::GridAxis;
use super::signature::{Param, ParamKind, Scalar};

/// What the names in an expression may be.
pub enum Scope<'a> {
    /// A launch: its parameters, and the named axes of its grid.
    Launch { params: &'a [Param], grid: &'a [GridAxis; 3] },
    /// A request: its sizes.
    Request { sizes: &'a [Ident] },
}

/// An expression, translated.
pub struct Operations {
    /// As the source has it, in one line.
    pub text: String,
    /// `Op`s, comma-separated.
    pub ops: TokenStream,
    /// The constants in it, which the device build looks at too (so that imports are used in both).
    pub constants: Vec<Expr>,
}

/// A comparison, translated.
pub struct Comparison {
    pub left: Operations,
    /// A variant of `Compare`.
    pub compare: Ident,
    pub right: Operations,
    pub text: String,
}

const ALLOWED: &str =
    "use + - * / %, min, max and div_ceil of launch values; everything else must be a constant";

enum Name {
    Scalar(usize, Scalar),
    Buffer(usize),
    Grid(usize),
    Size(usize),
}

impl Scope<'_> {
    fn find(&self, ident: &Ident) -> Option<Name> {
        match self {
            Self::Launch { params, grid } => {
                let param = params.iter().position(|param| param.name == *ident);
                let axis = || {
                    grid.iter().position(|axis| matches!(axis, GridAxis::Any(Some(name)) if name == ident))
                };
                match param {
                    Some(index) => Some(match params[index].kind {
                        ParamKind::Scalar(scalar) => Name::Scalar(index, scalar),
                        ParamKind::Const(_) | ParamKind::Mut(_) => Name::Buffer(index),
                    }),
                    None => axis().map(Name::Grid),
                }
            }
            Self::Request { sizes } => sizes.iter().position(|size| size == ident).map(Name::Size),
        }
    }

    fn is_constant(&self, expr: &Expr) -> bool {
        struct Finder<'a, 'b> {
            scope: &'a Scope<'b>,
            found: bool,
        }
        impl<'ast> Visit<'ast> for Finder<'_, '_> {
            fn visit_expr_path(&mut self, path: &'ast ExprPath) {
                self.found |= path.path.get_ident().is_some_and(|ident| self.scope.find(ident).is_some());
            }
        }
        let mut finder = Finder { scope: self, found: false };
        finder.visit_expr(expr);
        !finder.found
    }

    /// Translates a comparison.
    pub fn comparison(&self, expr: &Expr) -> syn::Result<Comparison> {
        let Expr::Binary(binary) = expr else {
            let text =
                "expected a comparison, as `out.len() >= batch * heads`; write several with commas between";
            return Err(syn::Error::new(expr.span(), text));
        };
        let compare = match binary.op {
            BinOp::Eq(_) => "Eq",
            BinOp::Ne(_) => "Ne",
            BinOp::Lt(_) => "Lt",
            BinOp::Le(_) => "Le",
            BinOp::Gt(_) => "Gt",
            BinOp::Ge(_) => "Ge",
            BinOp::And(_) => {
                return Err(syn::Error::new(
                    binary.op.span(),
                    "write `a, b` instead of `a && b`: each has its own error",
                ));
            }
            _ => return Err(syn::Error::new(binary.op.span(), "expected a comparison: == != < <= > >=")),
        };
        Ok(Comparison {
            left: self.operations(&binary.left)?,
            compare: Ident::new(compare, binary.op.span()),
            right: self.operations(&binary.right)?,
            text: text(expr),
        })
    }

    /// Translates an expression.
    pub fn operations(&self, expr: &Expr) -> syn::Result<Operations> {
        let mut ops = Vec::new();
        let mut constants = Vec::new();
        self.translate(expr, &mut ops, &mut constants)?;
        Ok(Operations { text: text(expr), ops: quote! { #(#ops),* }, constants })
    }

    fn translate(
        &self,
        expr: &Expr,
        ops: &mut Vec<TokenStream>,
        constants: &mut Vec<Expr>,
    ) -> syn::Result<()> {
        if self.is_constant(expr) {
            let named = if matches!(expr, Expr::Lit(_)) { String::new() } else { text(expr) };
            ops.push(quote! { ::psa_codegen::Op::Const((#expr) as u128, #named) });
            constants.push(expr.clone());
            return Ok(());
        }
        let fail = |message: String| Err(syn::Error::new(expr.span(), message));
        match expr {
            Expr::Paren(inner) => self.translate(&inner.expr, ops, constants),
            Expr::Group(inner) => self.translate(&inner.expr, ops, constants),
            Expr::Path(path) => {
                match path.path.get_ident().and_then(|ident| Some((ident, self.find(ident)?))) {
                    Some((_, Name::Scalar(index, Scalar::U32 | Scalar::U64))) => {
                        ops.push(leaf("Arg", index));
                        Ok(())
                    }
                    Some((ident, Name::Scalar(..))) => fail(format!(
                        "`{ident}` is no unsigned integer: a relation is about u32, u64 and lengths"
                    )),
                    Some((ident, Name::Buffer(_))) => fail(format!(
                        "`{ident}` is a buffer: write `{ident}.len()`, or `{ident}.max()` for its largest value"
                    )),
                    Some((_, Name::Grid(axis))) => {
                        ops.push(leaf("Grid", axis));
                        Ok(())
                    }
                    Some((_, Name::Size(index))) => {
                        ops.push(leaf("Size", index));
                        Ok(())
                    }
                    None => fail(ALLOWED.to_owned()),
                }
            }
            Expr::Binary(binary) => {
                let op = match binary.op {
                    BinOp::Add(_) => "Add",
                    BinOp::Sub(_) => "Sub",
                    BinOp::Mul(_) => "Mul",
                    BinOp::Div(_) => "Div",
                    BinOp::Rem(_) => "Rem",
                    _ => return Err(syn::Error::new(binary.op.span(), ALLOWED)),
                };
                self.translate(&binary.left, ops, constants)?;
                self.translate(&binary.right, ops, constants)?;
                ops.push(operation(op));
                Ok(())
            }
            Expr::MethodCall(call) => {
                let method = call.method.to_string();
                let arguments: Vec<&Expr> = call.args.iter().collect();
                match (method.as_str(), arguments.as_slice()) {
                    ("len" | "max", []) => match &*call.receiver {
                        Expr::Path(path) => match path.path.get_ident().and_then(|ident| self.find(ident)) {
                            Some(Name::Buffer(index)) => {
                                ops.push(leaf(if method == "len" { "Len" } else { "Largest" }, index));
                                Ok(())
                            }
                            _ => fail(format!(
                                "`{}` is no buffer, so it has no `{method}()`",
                                text(&call.receiver)
                            )),
                        },
                        _ => fail(format!("`{method}()` is of a buffer parameter")),
                    },
                    ("min" | "max" | "div_ceil", [argument]) => {
                        self.translate(&call.receiver, ops, constants)?;
                        self.translate(argument, ops, constants)?;
                        ops.push(operation(match method.as_str() {
                            "min" => "Min",
                            "max" => "Max",
                            _ => "DivCeil",
                        }));
                        Ok(())
                    }
                    _ => fail(format!("`{method}` is not computed for a launch: {ALLOWED}")),
                }
            }
            Expr::Cast(_) => fail("no `as` is needed: relations are computed in 128 bits".to_owned()),
            _ => fail(ALLOWED.to_owned()),
        }
    }
}

fn leaf(kind: &str, index: usize) -> TokenStream {
    let kind = Ident::new(kind, proc_macro2::Span::call_site());
    quote! { ::psa_codegen::Op::Leaf(::psa_codegen::Leaf::#kind(#index)) }
}

fn operation(name: &str) -> TokenStream {
    let name = Ident::new(name, proc_macro2::Span::call_site());
    quote! { ::psa_codegen::Op::Binary(::psa_codegen::Binary::#name) }
}

/// An expression as a person writes it: tokens joined with blanks around operators alone.
pub fn text(expr: &Expr) -> String {
    let list = |exprs: &mut dyn Iterator<Item = &Expr>| exprs.map(text).collect::<Vec<_>>().join(", ");
    match expr {
        Expr::Binary(binary) => {
            format!("{} {} {}", text(&binary.left), binary.op.to_token_stream(), text(&binary.right))
        }
        Expr::Paren(inner) => format!("({})", text(&inner.expr)),
        Expr::Group(inner) => text(&inner.expr),
        Expr::MethodCall(call) if call.turbofish.is_none() => {
            format!("{}.{}({})", text(&call.receiver), call.method, list(&mut call.args.iter()))
        }
        Expr::Call(call) => format!("{}({})", text(&call.func), list(&mut call.args.iter())),
        other => other
            .to_token_stream()
            .to_string()
            .replace(" :: ", "::")
            .replace(":: ", "::")
            .replace(" <", "<")
            .replace("< ", "<")
            .replace(" >", ">"),
    }
}
