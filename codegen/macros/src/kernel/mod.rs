//! `#[kernel]`: parse the attribute, check it against the function, emit both builds.
//!
//! `attribute` reads the keys, `signature` reads the function and classifies its parameters, `family`
//! multiplies the instances out and names them, `contract` and `relation` read what launches and requests must
//! keep; `device` and `host` print what the two builds get. All advice to the user is in what reads, so that
//! both builds reject the same code.

mod attribute;
mod contract;
mod device;
mod family;
mod host;
mod relation;
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
