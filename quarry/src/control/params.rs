//! [`Params`]: typed access to the parameters of a request. As with a section of the configuration, what was asked for is
//! known, and the rest is a mistake.

use serde_json::{Map, Value};

use super::rpc::Failure;
use crate::config::reader::expected;

/// The parameters of a request, being read.
pub(super) struct Params {
    given: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Params {
    pub(super) fn new(given: Map<String, Value>) -> Self {
        Self { given, known: Vec::new() }
    }

    /// A parameter that may be missing.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.given.remove(key)
    }

    fn needed(&mut self, key: &'static str, example: &str) -> Result<Value, Failure> {
        let missing = || {
            Failure::params(format!("the parameter `{key}` is missing; add for example \"{key}\": {example}"))
        };
        self.take(key).ok_or_else(missing)
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str, example: &str) -> Result<String, Failure> {
        match self.needed(key, example)? {
            Value::String(text) => Ok(text),
            _ => Err(Failure::params(format!("`{key}` must be a string, for example {example}"))),
        }
    }

    /// A whole number.
    pub(super) fn number<T: TryFrom<u64>>(&mut self, key: &'static str, example: &str) -> Result<T, Failure> {
        let number = self.needed(key, example)?.as_u64().and_then(|number| T::try_from(number).ok());
        number
            .ok_or_else(|| Failure::params(format!("`{key}` must be a whole number, for example {example}")))
    }

    /// A text, or a number written as one.
    pub(super) fn name(&mut self, key: &'static str, example: &str) -> Result<String, Failure> {
        match self.needed(key, example)? {
            Value::String(text) => Ok(text),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(Failure::params(format!("`{key}` must be a name or a number, for example {example}"))),
        }
    }

    /// Whether there is such a parameter.
    pub(super) fn has(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// Complains of what nobody asked for.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.given.keys().next() {
            None => Ok(()),
            Some(key) => {
                let help = expected(key, self.known.iter().copied());
                Err(Failure::params(format!("there is no parameter `{key}`: {help}")))
            }
        }
    }
}
