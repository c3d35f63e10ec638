//! [`Args`]: the parameters of a method call, one after the other.

use super::status::{Outcome, Status};
use super::token::{Reader, Token};

/// Lists within lists that a parameter may have; deeper ones are no parameter of any method.
const DEEPEST: u32 = 16;

/// What is left of a parameter list. Every mistake is INVALID_PARAMETER.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a>(Reader<'a>);

impl<'a> Args<'a> {
    /// The parameters in `stream`, without the list around them.
    pub fn new(stream: &'a [u8]) -> Self {
        Self(Reader::new(stream))
    }

    fn next(&mut self) -> Outcome<Token<'a>> {
        self.0.next().ok().flatten().ok_or(Status::InvalidParameter)
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.0.peek().ok().flatten()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.peek().is_none()
    }

    /// Nothing may be left.
    pub fn end(self) -> Outcome<()> {
        if self.is_empty() { Ok(()) } else { Err(Status::InvalidParameter) }
    }

    /// An unsigned integer.
    pub fn uint(&mut self) -> Outcome<u64> {
        match self.next()? {
            Token::Uint(value) => Ok(value),
            _ => Err(Status::InvalidParameter),
        }
    }

    /// A boolean: 0 or 1.
    pub fn bool(&mut self) -> Outcome<bool> {
        match self.uint()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Status::InvalidParameter),
        }
    }

    /// A byte string.
    pub fn bytes(&mut self) -> Outcome<&'a [u8]> {
        match self.next()? {
            Token::Bytes(value) => Ok(value),
            _ => Err(Status::InvalidParameter),
        }
    }

    /// A UID: eight bytes.
    pub fn uid(&mut self) -> Outcome<u64> {
        let bytes = self.bytes()?;
        Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| Status::InvalidParameter)?))
    }

    /// Half a UID, the type of a reference: four bytes.
    pub fn half_uid(&mut self) -> Outcome<u64> {
        let bytes = self.bytes()?;
        Ok(u64::from(u32::from_be_bytes(bytes.try_into().map_err(|_| Status::InvalidParameter)?)))
    }

    /// Whether a byte string comes next.
    pub fn has_bytes(&self) -> bool {
        matches!(self.peek(), Some(Token::Bytes(_)))
    }

    /// Whether a list comes next.
    pub fn has_list(&self) -> bool {
        self.peek() == Some(Token::StartList)
    }

    /// A list: what is in it.
    pub fn list(&mut self) -> Outcome<Args<'a>> {
        match self.next()? {
            Token::StartList => self.inside(),
            _ => Err(Status::InvalidParameter),
        }
    }

    /// A named value, if one comes next: name and value.
    pub fn named(&mut self) -> Outcome<Option<Args<'a>>> {
        if self.peek() != Some(Token::StartName) {
            return Ok(None);
        }
        self.next()?;
        self.inside().map(Some)
    }

    /// What stands between a start token that was read, and its end token, which is read too.
    fn inside(&mut self) -> Outcome<Args<'a>> {
        let content = self.0.rest();
        // Which of the two has to end it is settled by who reads what is inside.
        let mut depth = 0;
        loop {
            let before = self.0.rest().len();
            match self.next()? {
                Token::StartList | Token::StartName => {
                    depth += 1;
                    if depth > DEEPEST {
                        return Err(Status::InvalidParameter);
                    }
                }
                Token::EndList | Token::EndName if depth == 0 => {
                    return Ok(Args::new(&content[..content.len() - before]));
                }
                Token::EndList | Token::EndName => depth -= 1,
                _ => {}
            }
        }
    }
}

/// A method call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The object or table that it is invoked on.
    pub invoking: u64,
    /// The method.
    pub method: u64,
    /// Its parameters.
    pub args: Args<'a>,
}

impl<'a> Call<'a> {
    /// Reads a call after its Call token, up to the end of its status list. What is wrong before the parameters is
    /// NOT_AUTHORIZED, as for objects and methods that do not exist.
    pub fn read(reader: &mut Reader<'a>) -> Outcome<Self> {
        let mut args = Args(*reader);
        let mut header = || args.uid().map_err(|_| Status::NotAuthorized);
        let (invoking, method) = (header()?, header()?);
        let parameters = args.list()?;
        if args.next()? != Token::EndOfData {
            return Err(Status::InvalidParameter);
        }
        // Status and two reserved numbers. A host that says anything but success there takes its call back (3.2.4.3).
        let mut status = args.list()?;
        for _ in 0..3 {
            if status.uint()? != 0 {
                return Err(Status::InvalidParameter);
            }
        }
        status.end()?;
        *reader = args.0;
        Ok(Self { invoking, method, args: parameters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_comes_apart() {
        let stream =
            [&[0xA8][..], &[0; 7], &[0xFF, 0xA8], &[0; 6], &[0xFF, 2, 0xF0, 1, 0xF2, 3, 0xF0, 4, 0xF1, 0xF3]]
                .concat();
        let stream = [&stream[..], &[0xF1, 0xF9, 0xF0, 0, 0, 0, 0xF1, 0xFA]].concat();
        let mut reader = Reader::new(&stream);
        let mut call = Call::read(&mut reader).unwrap();
        assert_eq!((call.invoking, call.method), (0xFF, 0xFF02));
        assert_eq!(call.args.uint(), Ok(1));
        let mut named = call.args.named().unwrap().unwrap();
        assert_eq!(named.uint(), Ok(3));
        let mut list = named.list().unwrap();
        assert_eq!((list.uint(), list.end(), named.end()), (Ok(4), Ok(()), Ok(())));
        assert!(call.args.named().unwrap().is_none() && call.args.is_empty());
        assert_eq!(reader.rest(), [0xFA]);
        // Cut off anywhere it is an error, and the header has an error of its own.
        for len in 0..stream.len() - 1 {
            let status = Call::read(&mut Reader::new(&stream[..len])).err();
            let expected = if len < 18 { Status::NotAuthorized } else { Status::InvalidParameter };
            assert_eq!(status, Some(expected), "{len} bytes");
        }
    }

    #[test]
    fn deep_nesting_ends_early() {
        let stream = vec![0xF0; 10_000];
        assert_eq!(Args::new(&stream).list().err(), Some(Status::InvalidParameter));
    }
}
