//! A file that cannot be used is refused with the reason; none makes the loader panic.

mod common;

use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use common::{Folder, Variant};
use psa_model::{Gguf, Llama, ModelError, Tokens};

fn load(path: &Path) -> Result<(), ModelError> {
    let mut gguf = Gguf::open(path)?;
    Llama::read(&mut gguf)?;
    Tokens::read(&gguf).map(|_| ())
}

fn with(key: &'static str, value: Value) -> Variant {
    Variant { header: vec![(key, value)], ..Variant::default() }
}

#[test]
fn unsupported_files_are_refused_with_the_reason() {
    let text = |text: &str| Value::String(text.into());
    for (variant, expected) in [
        (with("general.architecture", text("gemma")), "\"gemma\""),
        (with("llama.expert_count", Value::U32(8)), "8 experts"),
        (with("llama.attention.sliding_window", Value::U32(4096)), "4096 tokens"),
        (with("llama.attention.value_length", Value::U32(32)), "values of 32"),
        (with("llama.rope.scaling.type", text("yarn")), "\"yarn\""),
        (with("llama.rope.dimension_count", Value::U32(65)), "65"),
        (with("tokenizer.ggml.model", text("llama")), "\"llama\""),
        (with("tokenizer.ggml.pre", text("tekken")), "\"tekken\""),
    ] {
        let folder = Folder::new("unsupported");
        let error = load(&folder.model(&variant)).unwrap_err();
        assert!(matches!(error, ModelError::Unsupported { .. }), "{error}");
        let error = error.to_string();
        assert!(
            error.contains(expected) && error.contains("supported: ") && error.contains("model.gguf"),
            "{error}"
        );
    }
}

#[test]
fn shapes_that_the_kernels_do_not_know_are_refused() {
    let folder = Folder::new("shape");
    let error =
        load(&folder.model(&with("llama.attention.key_length", Value::U32(96)))).unwrap_err().to_string();
    assert!(error.contains("head_dim = 96"), "{error}");
}

#[test]
fn damaged_files_are_refused_with_the_reason() {
    for (variant, expected) in [
        (Variant { without: Some("blk.1.ffn_up.weight"), ..Variant::default() }, "blk.1.ffn_up.weight"),
        (Variant { without: Some("token_embd.weight"), ..Variant::default() }, "token_embd.weight"),
        (with("llama.embedding_length", Value::U32(160)), "[101, 160]"),
        (with("llama.block_count", Value::U32(0)), "llama.block_count"),
        (with("llama.context_length", Value::String("long".into())), "llama.context_length"),
    ] {
        let folder = Folder::new("damaged");
        let error = load(&folder.model(&variant)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let folder = Folder::new("cut");
    let path = folder.model(&Variant::default());
    let whole = std::fs::read(&path).unwrap();
    let short = folder.0.join("short.gguf");
    let cuts = (0..200).chain((200..whole.len()).step_by(1 + whole.len() / 60)).chain([whole.len() - 64]);
    for cut in cuts {
        std::fs::write(&short, &whole[..cut]).unwrap();
        let error = load(&short).unwrap_err();
        assert!(matches!(error, ModelError::Damaged { .. }), "{cut}: {error}");
        assert!(error.to_string().contains("short.gguf"), "{error}");
    }
}

#[test]
fn flipped_bytes_of_the_header_never_panic() {
    let folder = Folder::new("flip");
    let path = folder.model(&Variant::default());
    let whole = std::fs::read(&path).unwrap();
    let flipped = folder.0.join("flipped.gguf");
    for at in (0..1400.min(whole.len())).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&flipped, bytes).unwrap();
        // Some flips change only a name or a number: that may load.
        let _ = load(&flipped);
    }
}

#[test]
fn other_files_and_no_files_are_refused() {
    let folder = Folder::new("other");
    let text = folder.0.join("text.gguf");
    std::fs::write(&text, "not a model").unwrap();
    assert!(matches!(load(&text), Err(ModelError::Damaged { .. })));
    assert!(matches!(load(&folder.0), Err(ModelError::Read { .. })));
    let error = load(&folder.0.join("missing.gguf")).unwrap_err().to_string();
    assert!(error.contains("missing.gguf") && error.contains("setup --for model"), "{error}");
}

#[test]
fn texts_come_back_as_they_went_in() {
    let folder = Folder::new("tokens");
    let tokens = Tokens::read(&Gguf::open(&folder.model(&Variant::default())).unwrap()).unwrap();
    for text in ["the thing", " the  end\nthe", "12345 and x+y", ""] {
        assert_eq!(tokens.decode(&tokens.encode(text).unwrap()).unwrap(), text);
    }
    // "the" is one token, a digit always one of its own.
    assert_eq!(tokens.encode("the").unwrap().len(), 1);
    assert_eq!(tokens.encode("123").unwrap().len(), 3);
    assert_eq!(tokens.encode("<|im_end|>").unwrap(), [1]);
    assert!(tokens.ends(1) && !tokens.ends(5));
}
