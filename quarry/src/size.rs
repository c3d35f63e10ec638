//! Sizes as operators write them: `10G`, `512`, `1.5T`; binary multiples.
//!
//! Leaves out units of other kinds (rates, times) and decimal multiples: a disk of `1G` has 2^30 bytes here as it
//! has with `truncate`, `qemu-img` and `fallocate`.

use std::fmt;

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// The largest size that a file or a namespace can have: 2^63 - 1 bytes, where file offsets end.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with an optional suffix.
    #[error("`{0}` is not a size; write a number and K, M, G, T or P (binary), for example `10G`")]
    Malformed(String),
    /// Beyond [`MAX_SIZE`].
    #[error("`{0}` is too large; the largest size is 8192P less one byte")]
    TooLarge(String),
    /// `1.3K` is no whole number of bytes.
    #[error("`{0}` is not a whole number of bytes")]
    Fraction(String),
}

/// Parses `text`: digits, a fraction if it comes out even, a suffix K, M, G, T or P in either case, and for those
/// who are used to it `iB` or `B` after it.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed(text.to_owned());
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(end);
    let shift = shift_of(suffix.trim_start()).ok_or_else(malformed)?;

    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.replace('_', "");
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 18 {
        return Err(malformed());
    }
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed());
    }
    let too_large = || SizeError::TooLarge(text.to_owned());
    // Every digit was checked, so parsing fails only by overflow.
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let mut bytes = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        let scale = 10u128.pow(fraction.len() as u32);
        let part = fraction.parse::<u128>().map_err(|_| malformed())? << shift;
        if part % scale != 0 {
            return Err(SizeError::Fraction(text.to_owned()));
        }
        bytes = bytes.checked_add(part / scale).ok_or_else(too_large)?;
    }
    u64::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_SIZE).ok_or_else(too_large)
}

fn shift_of(suffix: &str) -> Option<u32> {
    let mut chars = suffix.chars();
    let Some(first) = chars.next() else { return Some(0) };
    let rest = chars.as_str();
    if first.eq_ignore_ascii_case(&'b') && rest.is_empty() {
        return Some(0);
    }
    let (_, shift) = UNITS.iter().find(|(unit, _)| unit.eq_ignore_ascii_case(&first))?;
    matches!(rest, "" | "B" | "b" | "iB" | "ib").then_some(*shift)
}

/// A size for people: the largest unit that divides it, or bytes. [`parse`] reads it back unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS.iter().rev() {
            if self.0 != 0 && self.0.trailing_zeros() >= *shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_operators_write() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("1K", 1024),
            ("4k", 4096),
            ("64M", 64 << 20),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10 GB", 10 << 30),
            ("1.5T", 3 << 39),
            ("0.5K", 512),
            ("1_000", 1000),
            ("7P", 7 << 50),
            ("9B", 9),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "G", "10X", "-1", "1e3", "10GG", "1.", ".5", "1.2.3K", "ten", "10 G B", "_", "1._5K"]
        {
            assert!(matches!(parse(text), Err(SizeError::Malformed(_))), "{text}: {:?}", parse(text));
        }
        for text in ["8192P", "9999999999P", "99999999999999999999999999999999999999999"] {
            assert!(matches!(parse(text), Err(SizeError::TooLarge(_))), "{text}");
        }
        assert!(matches!(parse("1.3K"), Err(SizeError::Fraction(_))));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(bytes in 0..=MAX_SIZE) {
            prop_assert_eq!(parse(&Size(bytes).to_string()), Ok(bytes));
        }

        #[test]
        fn round_sizes_are_short(number in 1..1024u64, unit in 0usize..5) {
            let bytes = number << UNITS[unit].1;
            prop_assert!(Size(bytes).to_string().len() <= 5);
            prop_assert_eq!(parse(&Size(bytes).to_string()), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
