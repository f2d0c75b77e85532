//! A GGUF file: its metadata with types and reasons, and its tensors.
//!
//! What the header promises is checked against what this crate computes before a tensor is read, so that an
//! unsupported file is refused with the reason instead of giving wrong numbers.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{Content, Value};

use crate::error::ModelError;

/// An open file.
pub struct Gguf {
    name: String,
    file: BufReader<File>,
    content: Content,
}

impl Gguf {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Damaged`].
    pub fn open(path: &Path) -> Result<Gguf, ModelError> {
        let name = path.display().to_string();
        let read = |source| ModelError::Read { file: name.clone(), source };
        let file = File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.is_dir() {
            return Err(read(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
        }
        let mut file = BufReader::new(file);
        let content = Content::read(&mut file).map_err(|e| damaged(&name, &e))?;
        Ok(Gguf { name, file, content })
    }

    /// Path, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn unsupported(&self, what: String, supported: &'static str) -> ModelError {
        ModelError::Unsupported { file: self.name.clone(), what, supported }
    }

    fn missing(&self, key: &str) -> ModelError {
        ModelError::Damaged { file: self.name.clone(), reason: format!("no usable value of {key}") }
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.value(key)?.to_string().ok().map(String::as_str)
    }

    pub(crate) fn whole(&self, key: &str) -> Option<usize> {
        let value = self.value(key)?;
        match value {
            Value::I32(x) => usize::try_from(*x).ok(),
            Value::I64(x) => usize::try_from(*x).ok(),
            _ => value.to_u64().ok().and_then(|x| usize::try_from(x).ok()),
        }
    }

    pub(crate) fn number(&self, key: &str) -> Option<f32> {
        let value = self.value(key)?;
        value.to_f32().ok().or_else(|| value.to_f64().ok().map(|x| x as f32))
    }

    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.value(key)?.to_bool().ok()
    }

    pub(crate) fn texts(&self, key: &str) -> Option<Vec<&str>> {
        let values = self.value(key)?.to_vec().ok()?;
        values.iter().map(|value| value.to_string().ok().map(String::as_str)).collect()
    }

    pub(crate) fn whole_or_missing(&self, key: &str) -> Result<usize, ModelError> {
        self.whole(key).filter(|&n| n > 0).ok_or_else(|| self.missing(key))
    }

    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.content.tensor_infos.contains_key(tensor)
    }

    /// Names of the tensors of one layer, without the layer's prefix.
    pub(crate) fn layer_tensors(&self, layer: usize) -> impl Iterator<Item = &str> {
        let prefix = format!("blk.{layer}.");
        self.content.tensor_infos.keys().filter_map(move |name| name.strip_prefix(prefix.as_str()))
    }

    /// A tensor of the shape that the metadata ask for.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<QTensor, ModelError> {
        let damaged_by = |reason: String| ModelError::Damaged { file: self.name.clone(), reason };
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Err(damaged_by(format!("no tensor {name}")));
        };
        if info.shape.dims() != shape {
            return Err(damaged_by(format!(
                "{name} is {:?}, its metadata ask for {shape:?}",
                info.shape.dims()
            )));
        }
        let device = candle_core::Device::Cpu;
        self.content.tensor(&mut self.file, name, &device).map_err(|e| damaged(&self.name, &e))
    }

    /// A vector, as f32.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(name, &[len])?;
        let values = tensor.dequantize(&candle_core::Device::Cpu).and_then(|t| t.to_vec1::<f32>());
        values.map_err(|e| damaged(&self.name, &e))
    }

    /// A matrix, repacked.
    pub(crate) fn matrix(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<crate::Matrix, ModelError> {
        let tensor = self.tensor(name, &[outputs, inputs])?;
        crate::Matrix::new(&tensor).map_err(|e| damaged(&self.name, &e))
    }
}

/// candle's words, without its backtrace.
fn damaged(name: &str, error: &candle_core::Error) -> ModelError {
    let text = error.to_string();
    ModelError::Damaged { file: name.to_owned(), reason: text.lines().next().unwrap_or_default().to_owned() }
}
