//! Tokens of the data stream (TCG Core 2.01, 3.2.2.3): reading what hosts send, writing what the TPer answers.
//!
//! Hosts may write integers in more bytes than they need; the TPer writes the shortest form.

use std::fmt;

/// A token. Empty atoms (FFh) are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// An unsigned integer.
    Uint(u64),
    /// An unsigned integer of more than 64 bits: valid, but no parameter has such a value.
    Huge,
    /// A signed integer: no parameter of this TPer has that type, so its value is of no interest.
    Signed,
    /// A byte string.
    Bytes(&'a [u8]),
    /// F0h.
    StartList,
    /// F1h.
    EndList,
    /// F2h.
    StartName,
    /// F3h.
    EndName,
    /// F8h.
    Call,
    /// F9h.
    EndOfData,
    /// FAh.
    EndOfSession,
    /// FBh.
    StartTransaction,
    /// FCh.
    EndTransaction,
}

/// The stream holds what is no token: a reserved code, a continued atom, or an atom that ends beyond the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidToken;

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the data stream holds an invalid token")
    }
}

impl std::error::Error for InvalidToken {}

/// Takes tokens off the front of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A reader of `stream`.
    pub fn new(stream: &'a [u8]) -> Self {
        Self(stream)
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next token; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Token<'a>>, InvalidToken> {
        loop {
            let Some((&first, rest)) = self.0.split_first() else { return Ok(None) };
            self.0 = rest;
            return Ok(Some(match first {
                0x00..=0x3F => Token::Uint(u64::from(first)),
                0x40..=0x7F => Token::Signed,
                0x80..=0xBF => self.atom(first & 0x20 != 0, first & 0x10 != 0, usize::from(first & 0x0F))?,
                0xC0..=0xDF => {
                    let low = self.take(1)?[0];
                    let len = usize::from(first & 0x07) << 8 | usize::from(low);
                    self.atom(first & 0x10 != 0, first & 0x08 != 0, len)?
                }
                0xE0..=0xE3 => {
                    let len = self.take(3)?.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
                    self.atom(first & 0x02 != 0, first & 0x01 != 0, len)?
                }
                0xF0 => Token::StartList,
                0xF1 => Token::EndList,
                0xF2 => Token::StartName,
                0xF3 => Token::EndName,
                0xF8 => Token::Call,
                0xF9 => Token::EndOfData,
                0xFA => Token::EndOfSession,
                0xFB => Token::StartTransaction,
                0xFC => Token::EndTransaction,
                0xFF => continue,
                _ => return Err(InvalidToken),
            }));
        }
    }

    /// The next token, left where it is.
    pub fn peek(&self) -> Result<Option<Token<'a>>, InvalidToken> {
        Self(self.0).next()
    }

    /// An atom's value. Of integers `signed` is the sign bit, of byte strings it means that they go on in another atom
    /// (3.2.2.3.1.5), which takes an interface that this TPer does not offer.
    fn atom(&mut self, bytes: bool, signed: bool, len: usize) -> Result<Token<'a>, InvalidToken> {
        let value = self.take(len)?;
        match (bytes, signed) {
            (true, true) => Err(InvalidToken),
            (true, false) => Ok(Token::Bytes(value)),
            (false, true) => Ok(Token::Signed),
            (false, false) if len == 0 => Err(InvalidToken),
            (false, false) => {
                let (high, low) = value.split_at(len.saturating_sub(8));
                if high.iter().any(|byte| *byte != 0) {
                    return Ok(Token::Huge);
                }
                Ok(Token::Uint(low.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))))
            }
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], InvalidToken> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(InvalidToken)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Writes a stream.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// An unsigned integer in the fewest bytes.
    pub fn uint(&mut self, value: u64) -> &mut Self {
        if value < 0x40 {
            self.0.push(value as u8);
        } else {
            let bytes = value.to_be_bytes();
            let used = &bytes[(value.leading_zeros() / 8) as usize..];
            self.0.push(0x80 | used.len() as u8);
            self.0.extend_from_slice(used);
        }
        self
    }

    /// A boolean.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.uint(u64::from(value))
    }

    /// A byte string of fewer than 2^24 bytes.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        let len = value.len();
        match len {
            0..=0x0F => self.0.push(0xA0 | len as u8),
            0x10..=0x7FF => self.0.extend([0xD0 | (len >> 8) as u8, len as u8]),
            _ => self.0.extend([0xE2, (len >> 16) as u8, (len >> 8) as u8, len as u8]),
        }
        self.0.extend_from_slice(value);
        self
    }

    /// A UID.
    pub fn uid(&mut self, uid: u64) -> &mut Self {
        self.bytes(&uid.to_be_bytes())
    }

    /// A list with what `content` writes.
    pub fn list(&mut self, content: impl FnOnce(&mut Self)) -> &mut Self {
        self.0.push(0xF0);
        content(self);
        self.0.push(0xF1);
        self
    }

    /// A named value: its name is a number, or whatever else `content` writes first.
    pub fn named(&mut self, content: impl FnOnce(&mut Self)) -> &mut Self {
        self.0.push(0xF2);
        content(self);
        self.0.push(0xF3);
        self
    }

    /// F8h with invoking object and method.
    pub fn call(&mut self, invoking: u64, method: u64) -> &mut Self {
        self.0.push(0xF8);
        self.uid(invoking).uid(method)
    }

    /// The end of a method call or result: F9h and the status list.
    pub fn status(&mut self, status: u8) -> &mut Self {
        self.0.push(0xF9);
        self.list(|list| {
            list.uint(u64::from(status)).uint(0).uint(0);
        })
    }

    /// A token without a value: FAh, FBh or FCh.
    pub fn control(&mut self, code: u8) -> &mut Self {
        self.0.push(code);
        self
    }

    /// What another writer wrote.
    pub fn append(&mut self, other: &Self) -> &mut Self {
        self.0.extend_from_slice(&other.0);
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(stream: &[u8]) -> Result<Vec<Token<'_>>, InvalidToken> {
        let (mut reader, mut tokens) = (Reader::new(stream), Vec::new());
        while let Some(token) = reader.next()? {
            tokens.push(token);
        }
        Ok(tokens)
    }

    #[test]
    fn reads_what_clients_write() {
        // Integers in one, two, four and eight bytes, also where fewer would do; empty atoms anywhere.
        assert_eq!(all(&[0x3F, 0xFF, 0x81, 0x01]), Ok(vec![Token::Uint(0x3F), Token::Uint(1)]));
        assert_eq!(all(&[0x84, 0, 0, 1, 2]), Ok(vec![Token::Uint(0x102)]));
        assert_eq!(all(&[0x88, 0xFF, 0, 0, 0, 0, 0, 0, 1]), Ok(vec![Token::Uint(0xFF00_0000_0000_0001)]));
        assert_eq!(all(&[0x8A, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]), Ok(vec![Token::Uint(1 << 56 | 1)]));
        assert_eq!(all(&[0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Ok(vec![Token::Huge]));
        assert_eq!(all(&[0x41, 0x91, 5]), Ok(vec![Token::Signed, Token::Signed]));
        assert_eq!(all(&[0xA0, 0xA2, 1, 2]), Ok(vec![Token::Bytes(&[]), Token::Bytes(&[1, 2])]));
        assert_eq!(all(&[0xD0, 2, 1, 2]), Ok(vec![Token::Bytes(&[1, 2])]));
        assert_eq!(all(&[0xE2, 0, 0, 1, 9]), Ok(vec![Token::Bytes(&[9])]));
        assert_eq!(all(&[0xE0, 0, 0, 1, 9]), Ok(vec![Token::Uint(9)]));
        assert_eq!(all(&[0xC0, 1, 9]), Ok(vec![Token::Uint(9)]));
    }

    #[test]
    fn refuses_what_is_no_token() {
        for stream in [
            &[0xF4][..],                  // reserved
            &[0xE4, 0, 0, 0],             // reserved
            &[0xFD],                      // reserved
            &[0x80],                      // an integer without a byte
            &[0x82, 1],                   // ends too early
            &[0xB1, 1],                   // a continued atom
            &[0xE2, 0xFF, 0xFF, 0xFF, 1], // 2^24 - 1 bytes that are not there
            &[0xD7],
            &[0xE2, 0],
        ] {
            assert_eq!(all(stream), Err(InvalidToken), "{stream:02x?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value: u64, len in 0_usize..5000, byte: u8) {
            let bytes = vec![byte; len];
            let mut writer = Writer::default();
            writer.uint(value).bytes(&bytes).list(|list| { list.named(|name| { name.uint(3).bool(true); }); });
            let stream = writer.into_bytes();
            prop_assert_eq!(all(&stream), Ok(vec![
                Token::Uint(value),
                Token::Bytes(&bytes),
                Token::StartList,
                Token::StartName,
                Token::Uint(3),
                Token::Uint(1),
                Token::EndName,
                Token::EndList,
            ]));
        }

        #[test]
        fn any_stream_ends(stream: Vec<u8>) {
            let _ = all(&stream);
        }
    }
}
