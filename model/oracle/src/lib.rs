//! Nothing but tests: SmolLM2-135M-Instruct as this project decodes it, against candle's own quantised Llama.
//!
//! A crate of its own, because candle-transformers is large and the model a download of 93 MB: no default member;
//! `cargo xtask test` fetches the model and runs it.
