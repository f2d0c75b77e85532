//! `#[kernel]`: parse the attribute, check it against the function, emit both builds.
//!
//! `attribute` reads the keys, `signature` reads the function and classifies its parameters, `family`
//! multiplies the instances out and names them; `device` and `host` print what the two builds get. All
//! advice to the user is in the first three, so that both builds reject the same code.

mod attribute;
mod device;
mod family;
mod host;
mod signature;
#[cfg(test)]
mod tests;

use proc_macro2::TokenStream;
use quote::quote;

use family::Family;

pub fn expand(attribute: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    let family = Family::new(attribute, item)?;
    let device = device::expand(&family);
    let host = host::expand(&family);
    Ok(quote! { #device #host })
}
