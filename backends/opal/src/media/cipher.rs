//! AES-256-XTS over memory of this program.

use block::{Error, ErrorKind};

use crate::crypto::xts::XtsCipher;

fn units(unit: usize, data: &[u8]) -> Result<usize, Error> {
    if unit < 16 || !data.len().is_multiple_of(unit) {
        return Err(Error::new(ErrorKind::Internal, "not whole data units"));
    }
    Ok(data.len() / unit)
}

/// Encrypts the data units of `unit` bytes that make up `data`; the first one has the number `first`.
pub fn encrypt(cipher: &XtsCipher, first: u64, unit: usize, data: &mut [u8]) -> Result<(), Error> {
    let units = units(unit, data)?;
    let at = data.as_mut_ptr();
    // SAFETY: `units * unit` bytes, exclusively borrowed, that nothing but this call uses meanwhile; in place.
    unsafe { cipher.encrypt(first, at, at, unit, units) }
}

/// Decrypts what [`encrypt`] has encrypted.
pub fn decrypt(cipher: &XtsCipher, first: u64, unit: usize, data: &mut [u8]) -> Result<(), Error> {
    let units = units(unit, data)?;
    let at = data.as_mut_ptr();
    // SAFETY: as above.
    unsafe { cipher.decrypt(first, at, at, unit, units) }
}
