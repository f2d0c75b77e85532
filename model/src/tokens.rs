//! Byte-pair encoding from the vocabulary in a GGUF file.
//!
//! The file names its pre-tokeniser; only those whose rules are known are used, as a wrong split gives other
//! tokens without an error. Special tokens in a text are taken as such.

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use crate::error::ModelError;
use crate::gguf::Gguf;

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Texts to tokens and back.
pub struct Tokens {
    tokenizer: Tokenizer,
    /// Put before every text, where the file asks for it.
    begin: Option<u32>,
    end: Vec<u32>,
    chat_ml: bool,
}

impl Tokens {
    /// The tokenizer of a file.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for other kinds, [`ModelError::Tokenizer`] for a broken one.
    pub fn read(gguf: &Gguf) -> Result<Tokens, ModelError> {
        let kind = gguf.text("tokenizer.ggml.model").unwrap_or("none");
        if kind != "gpt2" {
            return Err(gguf.unsupported(format!("tokenizer {kind:?}"), "gpt2 (byte-level BPE)"));
        }
        let bytes = ByteLevel::new(false, true, true);
        let split = |pattern: &str| -> Result<PreTokenizerWrapper, ModelError> {
            let split =
                Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false);
            let split = split.map_err(|e| ModelError::Tokenizer(e.to_string()))?;
            Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
        };
        let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("default");
        let pre: PreTokenizerWrapper = match pre {
            "gpt-2" | "gpt2" => bytes.into(),
            "smollm" => Sequence::new(vec![Digits::new(true).into(), bytes.into()]).into(),
            "qwen2" => split(QWEN2)?,
            "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" => split(LLAMA3)?,
            other => {
                let what = format!("pre-tokeniser {other:?}");
                return Err(gguf.unsupported(what, "gpt-2, smollm, qwen2 and llama-bpe"));
            }
        };
        let broken = |what: &str| ModelError::Tokenizer(format!("{}: no usable {what}", gguf.name()));
        let tokens = gguf.texts("tokenizer.ggml.tokens").ok_or_else(|| broken("tokenizer.ggml.tokens"))?;
        let merges = gguf.texts("tokenizer.ggml.merges").ok_or_else(|| broken("tokenizer.ggml.merges"))?;
        let merges: Option<Vec<(String, String)>> = merges
            .iter()
            .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())))
            .collect();
        let merges = merges.ok_or_else(|| broken("tokenizer.ggml.merges"))?;
        let vocabulary = tokens.iter().zip(0u32..).map(|(token, id)| ((*token).to_owned(), id)).collect();
        let bpe =
            BPE::builder().vocab_and_merges::<tokenizers::models::bpe::Vocab>(vocabulary, merges).build();
        let mut tokenizer = Tokenizer::new(bpe.map_err(|e| ModelError::Tokenizer(e.to_string()))?);
        tokenizer.with_pre_tokenizer(Some(pre));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        // 3: control, 4: user defined.
        let types = gguf.value("tokenizer.ggml.token_type").and_then(|value| value.to_vec().ok());
        let special = types.into_iter().flatten().zip(&tokens).filter_map(|(kind, token)| {
            let kind = kind.to_i32().ok().or_else(|| kind.to_u32().ok().map(|x| x as i32))?;
            (kind == 3 || kind == 4).then(|| AddedToken::from((*token).to_owned(), kind == 3))
        });
        let special: Vec<AddedToken> = special.collect();
        tokenizer.add_special_tokens(special).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let id = |key: &str| gguf.whole(key).and_then(|id| u32::try_from(id).ok());
        let begin = gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or(false);
        let end = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let mut end: Vec<u32> = end.into_iter().filter_map(id).collect();
        end.extend(tokenizer.token_to_id("<|endoftext|>"));
        let chat_ml = gguf.text("tokenizer.chat_template").is_some_and(|text| text.contains("<|im_start|>"));
        Ok(Tokens {
            begin: id("tokenizer.ggml.bos_token_id").filter(|_| begin),
            end,
            chat_ml: chat_ml && tokenizer.token_to_id("<|im_start|>").is_some(),
            tokenizer,
        })
    }

    /// Tokens of a text.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding =
            self.tokenizer.encode_fast(text, false).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(self.begin.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// Text of tokens, special ones left out.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ModelError> {
        self.tokenizer.decode(tokens, true).map_err(|e| ModelError::Tokenizer(e.to_string()))
    }

    /// A user's message as the model was trained to see it; none where the file's template is not ChatML.
    pub fn chat(&self, message: &str) -> Option<String> {
        let system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
        self.chat_ml.then(|| {
            format!(
                "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"
            )
        })
    }

    /// True for tokens that end a text.
    pub fn ends(&self, token: u32) -> bool {
        self.end.contains(&token)
    }
}

/// Text that comes in pieces: characters whose bytes are spread over tokens appear when they are whole.
pub struct Stream<'t> {
    tokens: &'t Tokens,
    pending: Vec<u32>,
}

impl<'t> Stream<'t> {
    /// Nothing yet.
    pub fn new(tokens: &'t Tokens) -> Stream<'t> {
        Stream { tokens, pending: vec![] }
    }

    /// The text that `token` completes.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`].
    pub fn push(&mut self, token: u32) -> Result<String, ModelError> {
        self.pending.push(token);
        let text = self.tokens.decode(&self.pending)?;
        // Byte-level tokens are independent but for bytes of one character.
        if text.ends_with('\u{fffd}') && self.pending.len() < 4 {
            return Ok(String::new());
        }
        self.pending.clear();
        Ok(text)
    }
}
