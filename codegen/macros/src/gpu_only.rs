//! `#[gpu_only]`: the function on the device, a panicking twin of the same signature on the host.
//!
//! Works on free functions and on methods. The twin keeps documentation and attributes, so that the
//! host build's rustdoc and an editor see the device API.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ItemFn;

pub fn expand(item: TokenStream) -> syn::Result<TokenStream> {
    let ItemFn { attrs, vis, sig, block } = syn::parse2(item)?;
    if let Some(constness) = &sig.constness {
        return Err(syn::Error::new(constness.span, "a device-only function cannot be `const`"));
    }
    let message = format!(
        "`{}` runs on the device only; the host can compile calls to it but not make them (run the \
         kernel on a GPU or on the emulator)",
        sig.ident
    );
    Ok(quote! {
        #[cfg(target_arch = "nvptx64")]
        #(#attrs)*
        #vis #sig #block

        #[cfg(not(target_arch = "nvptx64"))]
        #(#attrs)*
        #[allow(unused_variables, clippy::needless_pass_by_value, clippy::too_many_arguments)]
        #vis #sig {
            ::core::panic!(#message)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_twin_keeps_the_signature_and_drops_the_body() {
        let out = expand(quote! { /** d */ pub unsafe fn f<T: Copy>(x: T) -> T { device_code(x) } })
            .unwrap()
            .to_string();
        assert_eq!(out.matches("pub unsafe fn f < T : Copy > (x : T) -> T").count(), 2, "{out}");
        assert_eq!(out.matches("device_code").count(), 1, "{out}");
        assert_eq!(out.matches("/** d */").count() + out.matches("doc").count(), 2, "{out}");
    }

    #[test]
    fn const_fn_is_rejected() {
        assert!(expand(quote! { const fn f() {} }).unwrap_err().to_string().contains("const"));
    }
}
