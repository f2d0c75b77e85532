//! The kernel function: its generics and its flat parameters.
//!
//! Only raw pointers and scalars may cross a launch: a slice is one 16-byte parameter on this back end
//! and two on others, and a struct by value hides its pointers from address-space inference.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::{Attribute, FnArg, GenericParam, Ident, ItemFn, LitInt, Pat, ReturnType, Type};

/// A generic of the function, in declaration order.
pub enum Generic {
    Type { name: Ident },
    Const { name: Ident, ty: Box<Type> },
}

impl Generic {
    pub fn name(&self) -> &Ident {
        match self {
            Self::Type { name } | Self::Const { name, .. } => name,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scalar {
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

pub enum ParamKind {
    Scalar(Scalar),
    Const(Type),
    Mut(Type),
}

pub struct Param {
    pub name: Ident,
    pub docs: Vec<Attribute>,
    pub ty: Type,
    pub kind: ParamKind,
    /// Written and not read, by the attribute's `out(..)`.
    pub is_out: bool,
    /// Bytes, by the attribute's `align(..)`.
    pub align: Option<LitInt>,
}

pub struct Signature {
    pub generics: Vec<Generic>,
    pub params: Vec<Param>,
}

impl Signature {
    /// Reads `function`, and strips the attributes of its parameters (documentation there belongs to
    /// the launcher's fields and is not allowed on a Rust parameter).
    pub fn new(function: &mut ItemFn) -> syn::Result<Self> {
        let mut errors = Errors::default();
        let sig = &mut function.sig;
        if sig.unsafety.is_none() {
            errors.push(sig.fn_token.span, "a kernel must be `unsafe fn`: it reads and writes through raw pointers that only the launch can vouch for");
        }
        for (present, what) in [
            (sig.constness.map(|t| t.span), "const"),
            (sig.asyncness.map(|t| t.span), "async"),
            (sig.abi.as_ref().map(|t| t.span()), "extern"),
        ] {
            if let Some(span) = present {
                errors.push(
                    span,
                    &format!("a kernel cannot be `{what}`; #[kernel] gives the entries their ABI"),
                );
            }
        }
        if let ReturnType::Type(_, ty) = &sig.output {
            errors.push(ty.span(), "a kernel returns nothing; write results through a `*mut` parameter");
        }
        if let Some(variadic) = &sig.variadic {
            errors.push(variadic.span(), "a kernel cannot be variadic");
        }

        let mut generics = Vec::new();
        for generic in &sig.generics.params {
            match generic {
                GenericParam::Type(t) => generics.push(Generic::Type { name: t.ident.clone() }),
                GenericParam::Const(c) => {
                    generics.push(Generic::Const { name: c.ident.clone(), ty: Box::new(c.ty.clone()) });
                }
                GenericParam::Lifetime(l) => errors.push(
                    l.span(),
                    "a kernel has no lifetimes: it takes raw pointers, whose lifetime the launch keeps",
                ),
            }
        }

        let mut params = Vec::new();
        for input in &mut sig.inputs {
            match input {
                FnArg::Receiver(receiver) => errors.push(
                    receiver.span(),
                    "a kernel is a free function without `self`; pass the fields as parameters",
                ),
                FnArg::Typed(arg) => {
                    let docs = std::mem::take(&mut arg.attrs);
                    let name = match &*arg.pat {
                        Pat::Ident(p) if p.by_ref.is_none() && p.subpat.is_none() => p.ident.clone(),
                        other => {
                            errors.push(
                                other.span(),
                                "a kernel parameter is a plain name (it becomes a field of `Args`); destructure in the body",
                            );
                            continue;
                        }
                    };
                    match classify(&arg.ty, &generics) {
                        Ok(kind) => {
                            let ty = (*arg.ty).clone();
                            params.push(Param { name, docs, ty, kind, is_out: false, align: None });
                        }
                        Err(e) => errors.add(e),
                    }
                }
            }
        }
        errors.finish()?;
        Ok(Self { generics, params })
    }
}

fn classify(ty: &Type, generics: &[Generic]) -> syn::Result<ParamKind> {
    let fail = |advice: &str| Err(syn::Error::new(ty.span(), advice.to_owned()));
    match ty {
        Type::Ptr(ptr) => match &*ptr.elem {
            Type::Path(path) if path.qself.is_none() => Ok(if ptr.mutability.is_some() {
                ParamKind::Mut((*ptr.elem).clone())
            } else {
                ParamKind::Const((*ptr.elem).clone())
            }),
            Type::Ptr(_) => {
                fail("a pointer to pointers: pass `*const u64` and convert each address in the body")
            }
            Type::Slice(_) => fail("a slice pointer is two words: pass `*const T` and a `u32` length"),
            _ => fail("a kernel pointer points to a named type, as `*const f32` or `*mut T`"),
        },
        Type::Reference(reference) => match &*reference.elem {
            Type::Slice(_) => fail(
                "a slice is not a kernel parameter (its layout differs between back ends): pass `*const T` or `*mut T` and a `u32` length",
            ),
            _ => fail("a reference is not a kernel parameter: pass `*const T` or `*mut T`"),
        },
        Type::Path(path) if path.qself.is_none() => {
            let last = &path.path.segments[path.path.segments.len() - 1].ident;
            if generics.iter().any(|g| g.name() == last) && path.path.segments.len() == 1 {
                return fail(&format!(
                    "`{last}` by value is not a kernel parameter: pass a scalar (u32, i32, u64, i64, f32, f64) or `*const {last}`"
                ));
            }
            Ok(ParamKind::Scalar(match last.to_string().as_str() {
                "u32" => Scalar::U32,
                "i32" => Scalar::I32,
                "u64" => Scalar::U64,
                "i64" => Scalar::I64,
                "f32" => Scalar::F32,
                "f64" => Scalar::F64,
                "usize" | "isize" => {
                    return fail(
                        "`usize` is not a kernel parameter (its size is the host's): pass `u32` or `u64`",
                    );
                }
                "bool" | "u8" | "i8" | "u16" | "i16" => {
                    return fail(&format!("`{last}` is not a kernel parameter: pass it as `u32`"));
                }
                "Vec" | "Box" | "String" | "Rc" | "Arc" | "CString" => {
                    return fail(&format!(
                        "`{last}` is not Copy and owns host memory, which a device cannot reach: upload its elements and pass `*const T` and a `u32` length"
                    ));
                }
                "bf16" | "f16" => {
                    return fail(&format!("`{last}` by value is not a kernel parameter: pass it as `f32`"));
                }
                other => {
                    return fail(&format!(
                        "`{other}` by value is not a kernel parameter (a struct hides its pointers from the compiler): pass its fields as scalars and pointers, and build the struct in the body"
                    ));
                }
            }))
        }
        Type::ImplTrait(_) => {
            fail("`impl Trait` is not a kernel parameter: name a generic and list its instances")
        }
        Type::Tuple(_) | Type::Array(_) => fail(
            "a tuple or array by value is not a kernel parameter: pass its parts as scalars, or a pointer",
        ),
        _ => fail("a kernel parameter is a raw pointer or one of u32, i32, u64, i64, f32, f64"),
    }
}

/// Collects every error of a function, so that the user sees all of them at once.
#[derive(Default)]
pub struct Errors(Option<syn::Error>);

impl Errors {
    pub fn push(&mut self, span: Span, message: &str) {
        self.add(syn::Error::new(span, message));
    }

    pub fn add(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(first) => first.combine(error),
            None => self.0 = Some(error),
        }
    }

    pub fn finish(self) -> syn::Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}
