//! [`Section`]: typed access to a table of a parsed file. Every key that is asked for is known; what was not asked
//! for by the end is a mistake. So the code that reads a table is its schema, and there is no second one.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{At, Sink, Spot};
use crate::{size, suggest};

/// A table being read.
pub struct Section<'a> {
    table: &'a DeTable<'a>,
    spot: Spot,
    sink: &'a Sink,
    known: RefCell<Vec<&'static str>>,
}

/// A value of a file.
pub type Value<'a> = &'a Spanned<DeValue<'a>>;

impl<'a> Section<'a> {
    /// Reads `table`, which is at `spot`.
    pub fn new(table: &'a DeTable<'a>, spot: Spot, sink: &'a Sink) -> Self {
        Self { table, spot, sink, known: RefCell::default() }
    }

    /// Where the table is.
    pub fn spot(&self) -> &Spot {
        &self.spot
    }

    /// Where mistakes go.
    pub fn sink(&self) -> &'a Sink {
        self.sink
    }

    /// The value of `key` and its place.
    pub fn get(&self, key: &'static str) -> Option<(Value<'a>, Spot)> {
        self.known.borrow_mut().push(key);
        let value = self.table.get(key)?;
        Some((value, self.child(key, value.span())))
    }

    fn child(&self, key: &str, span: Range<usize>) -> Spot {
        let quoted = if key.is_empty() || key.contains(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
        {
            Cow::Owned(format!("\"{key}\""))
        } else {
            Cow::Borrowed(key)
        };
        let key = if self.spot.key.is_empty() {
            quoted.into_owned()
        } else {
            format!("{}.{quoted}", self.spot.key)
        };
        Spot { key, span: Some(span) }
    }

    /// A text.
    pub fn string(&self, key: &'static str, example: &str) -> Option<At<String>> {
        let (value, spot) = self.get(key)?;
        match value.get_ref().as_str() {
            Some(text) => Some(At::new(text.to_owned(), spot)),
            None => self.wrong_type(value, &spot, "a string", key, example),
        }
    }

    /// `true` or `false`; false if missing.
    pub fn flag(&self, key: &'static str) -> bool {
        let Some((value, spot)) = self.get(key) else { return false };
        value
            .get_ref()
            .as_bool()
            .or_else(|| self.wrong_type(value, &spot, "true or false", key, "true"))
            .unwrap_or(false)
    }

    /// An integer from `range`.
    pub fn integer(&self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<At<u64>> {
        let (value, spot) = self.get(key)?;
        let number = self.number(value, &spot, key, range)?;
        Some(At::new(number, spot))
    }

    fn number(
        &self,
        value: Value<'_>,
        spot: &Spot,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let (low, high) = (*range.start(), *range.end());
        let bounds =
            if high == u64::MAX { format!("{low} or more") } else { format!("from {low} to {high}") };
        let Some(integer) = value.get_ref().as_integer() else {
            return self.wrong_type(value, spot, &format!("a whole number, {bounds}"), key, &low.to_string());
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        if let Some(number) = number.filter(|number| range.contains(number)) {
            return Some(number);
        }
        self.sink.error(
            spot,
            format!("{integer} is out of range"),
            format!("write a whole number, {bounds}"),
        );
        None
    }

    /// A size: a number of bytes, or a text with a suffix.
    pub fn size(&self, key: &'static str) -> Option<At<u64>> {
        let (value, spot) = self.get(key)?;
        let example = "\"10G\"";
        let parsed = match value.get_ref() {
            DeValue::String(text) => size::parse(text),
            DeValue::Integer(integer) => match u64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(bytes) if bytes <= size::MAX_SIZE => Ok(bytes),
                Ok(_) => Err(size::SizeError::TooLarge(integer.to_string())),
                Err(_) => Err(size::SizeError::Malformed(integer.to_string())),
            },
            _ => return self.wrong_type(value, &spot, "a size", key, example),
        };
        match parsed {
            Ok(bytes) => Some(At::new(bytes, spot)),
            Err(error) => {
                self.sink.error(&spot, error.to_string(), format!("for example: {key} = {example}"));
                None
            }
        }
    }

    /// One of several words.
    pub fn choice<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<At<T>> {
        let (value, spot) = self.get(key)?;
        let chosen = self.word(value, &spot, key, words)?;
        Some(At::new(chosen, spot))
    }

    /// Several of several words.
    pub fn choices<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Vec<T> {
        self.items(key, &format!("[\"{}\"]", words[0].0))
            .into_iter()
            .filter_map(|(value, spot)| self.word(value, &spot, key, words))
            .collect()
    }

    fn word<T: Copy>(&self, value: Value<'_>, spot: &Spot, key: &str, words: &[(&str, T)]) -> Option<T> {
        let Some(text) = value.get_ref().as_str() else {
            return self.wrong_type(value, spot, "a string", key, &format!("\"{}\"", words[0].0));
        };
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let help = expected(text, words.iter().map(|(word, _)| *word));
            self.sink.error(spot, format!("`{text}` is not known here"), help);
        }
        found
    }

    /// The elements of an array, each with its place.
    pub fn items(&self, key: &'static str, example: &str) -> Vec<(Value<'a>, Spot)> {
        let Some((value, spot)) = self.get(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            let _: Option<()> = self.wrong_type(value, &spot, "an array", key, example);
            return Vec::new();
        };
        array
            .iter()
            .enumerate()
            .map(|(index, item)| {
                (item, Spot { key: format!("{}[{index}]", spot.key), span: Some(item.span()) })
            })
            .collect()
    }

    /// An array of integers from `range`.
    pub fn integers(&self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Vec<At<u64>> {
        self.items(key, "[0, 1]")
            .into_iter()
            .filter_map(|(value, spot)| {
                self.number(value, &spot, key, range.clone()).map(|number| At::new(number, spot))
            })
            .collect()
    }

    /// An array of tables.
    pub fn sections(&self, key: &'static str, example: &str) -> Vec<Section<'a>> {
        let example = format!("[{example}]");
        let items = self.items(key, &example);
        items.into_iter().filter_map(|(value, spot)| self.nested(value, spot, key, &example)).collect()
    }

    /// A table.
    pub fn section(&self, key: &'static str, example: &str) -> Option<Section<'a>> {
        let (value, spot) = self.get(key)?;
        self.nested(value, spot, key, example)
    }

    /// A table whose keys are names that the operator chose: each with the table it holds, in the file's order.
    pub fn named_sections(&self, key: &'static str, example: &str) -> Vec<(String, Section<'a>)> {
        let Some(outer) = self.section(key, example) else { return Vec::new() };
        let mut all = Vec::new();
        for (name, value) in outer.table {
            let spot = outer.child(name.get_ref(), name.span());
            if name.get_ref().is_empty() {
                self.sink.error(&spot, "an empty name", "give it a name of letters, digits, `-` and `_`");
            } else if let Some(section) = outer.nested(value, spot, name.get_ref(), example) {
                all.push((name.get_ref().to_string(), section));
            }
        }
        all.sort_by_key(|(_, section)| section.spot.span.as_ref().map(|span| span.start));
        all
    }

    /// Everything in a table whose keys are somebody else's to define, in the file's order.
    pub fn entries(&self) -> Vec<(String, Value<'a>, Spot)> {
        let entry = |(name, value): (&'a Spanned<Cow<'a, str>>, Value<'a>)| {
            (name.get_ref().to_string(), value, self.child(name.get_ref(), value.span()))
        };
        let mut all: Vec<_> = self.table.iter().map(entry).collect();
        all.sort_by_key(|(_, _, spot)| spot.span.as_ref().map(|span| span.start));
        all
    }

    fn nested(&self, value: Value<'a>, spot: Spot, key: &str, example: &str) -> Option<Section<'a>> {
        match value.get_ref().as_table() {
            Some(table) => Some(Section::new(table, spot, self.sink)),
            None => self.wrong_type(value, &spot, "a table", key, example),
        }
    }

    /// Complains that `key` is missing.
    pub fn missing<T>(&self, key: &str, example: &str) -> Option<T> {
        self.sink.error(&self.spot, format!("the key `{key}` is missing"), format!("add: {key} = {example}"));
        None
    }

    fn wrong_type<T>(
        &self,
        value: Value<'_>,
        spot: &Spot,
        wanted: &str,
        key: &str,
        example: &str,
    ) -> Option<T> {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.sink.error(
            spot,
            format!("expected {wanted}, found {found}"),
            format!("for example: {key} = {example}"),
        );
        None
    }

    /// Complains of every key that nobody asked for.
    pub fn finish(self) {
        let known = self.known.borrow();
        for (key, _) in self.table {
            if !known.contains(&key.get_ref().as_ref()) {
                let spot = self.child(key.get_ref(), key.span());
                let help = expected(key.get_ref(), known.iter().copied());
                self.sink.error(&spot, format!("unknown key `{}`", key.get_ref()), help);
            }
        }
    }
}

/// The remedy for a word that is none of `known`.
pub fn expected<'k>(word: &str, known: impl Iterator<Item = &'k str> + Clone) -> String {
    match suggest::nearest(word, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let mut all: Vec<String> = known.map(|word| format!("`{word}`")).collect();
            all.dedup();
            match all.len() {
                0 => "remove it".to_owned(),
                1 => format!("write {}", all[0]),
                _ => format!("use one of {}", all.join(", ")),
            }
        }
    }
}
