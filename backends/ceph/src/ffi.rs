//! The C interfaces of librados and librbd, as far as they are used, loaded when they are first needed: one binary serves
//! machines with Ceph and without.
//!
//! What the functions mean is said in Ceph's `librados.h` and `librbd.h`; both 16.2 and 18.2 have all of them. The libraries
//! are never unloaded: they have threads.

mod rados;
mod rbd;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

pub(crate) use rados::*;
pub(crate) use rbd::*;

/// Why a library cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not installed, or one that it needs is not.
    #[error("{library} cannot be loaded: {reason}")]
    Missing {
        /// The library's file name.
        library: &'static str,
        /// Debian's name of the package that has it.
        package: &'static str,
        /// What the dynamic linker says.
        reason: String,
    },
    /// It is older than Ceph 16.
    #[error("{library} has no {function}: it is older than Ceph 16.2")]
    TooOld {
        /// The library's file name.
        library: &'static str,
        /// The first function that it lacks.
        function: &'static str,
    },
}

impl LoadError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Missing { package, .. } => format!("install it: apt-get install {package}"),
            Self::TooOld { library, .. } => format!("install a {library} of Ceph 16.2 or later"),
        }
    }
}

/// Declares a library's functions and how to find them.
macro_rules! library {
    ($(#[$doc:meta])* $name:ident, $file:literal, $package:literal: $(fn $function:ident($($type:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($($type),*) $(-> $result)?,)*
        }

        impl $name {
            pub(super) fn load() -> Result<Self, crate::ffi::LoadError> {
                let library = crate::ffi::open($file, $package)?;
                Ok(Self {
                    $($function: {
                        let name = concat!(stringify!($function), "\0");
                        // SAFETY: the type is that of the function in Ceph's header.
                        let found = unsafe { library.get::<unsafe extern "C" fn($($type),*) $(-> $result)?>(name.as_bytes()) };
                        *found.map_err(|_| crate::ffi::LoadError::TooOld { library: $file, function: stringify!($function) })?
                    },)*
                })
            }
        }
    };
}
pub(crate) use library;

/// Opens a library for good.
fn open(file: &'static str, package: &'static str) -> Result<&'static libloading::Library, LoadError> {
    // SAFETY: the constructors of Ceph's libraries set up their own statics; they ask nothing of who loads them.
    match unsafe { libloading::Library::new(file) } {
        Ok(library) => Ok(Box::leak(Box::new(library))),
        Err(error) => Err(LoadError::Missing { library: file, package, reason: innermost(&error) }),
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

/// librados.
pub(crate) fn rados() -> Result<&'static Rados, LoadError> {
    static LIBRARY: OnceLock<Result<Rados, LoadError>> = OnceLock::new();
    LIBRARY.get_or_init(Rados::load).as_ref().map_err(Clone::clone)
}

/// librbd.
pub(crate) fn rbd() -> Result<&'static Rbd, LoadError> {
    static LIBRARY: OnceLock<Result<Rbd, LoadError>> = OnceLock::new();
    LIBRARY.get_or_init(Rbd::load).as_ref().map_err(Clone::clone)
}

/// A negated errno, as an error where it is one.
pub(crate) fn check(result: c_int) -> Result<c_int, Errno> {
    if result < 0 { Err(Errno(-result)) } else { Ok(result) }
}

/// An errno that a library returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    /// Ceph's EBLOCKLISTED.
    pub(crate) const BLOCKLISTED: Self = Self(libc::ESHUTDOWN);
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::BLOCKLISTED => f.write_str("this client is blocklisted"),
            Self(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(errno)),
        }
    }
}

/// A text for C. One with a NUL in it is cut there: it names nothing that exists.
pub(crate) fn text(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// Names in a buffer, each ended by a NUL, the last by two.
pub(crate) fn names(buffer: &[u8]) -> Vec<String> {
    let texts = buffer.split(|byte| *byte == 0);
    texts.take_while(|text| !text.is_empty()).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// The text in a buffer up to the first NUL.
pub(crate) fn first_name(buffer: &[u8]) -> String {
    CStr::from_bytes_until_nul(buffer).map_or_else(
        |_| String::from_utf8_lossy(buffer).into_owned(),
        |text| text.to_string_lossy().into_owned(),
    )
}

/// `rados_callback_t` and `rbd_callback_t`.
pub(crate) type Callback = extern "C" fn(completion: *mut c_void, argument: *mut c_void);

/// Buffers of C.
pub(crate) type Text = *const c_char;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_at_an_empty_one() {
        assert_eq!(names(b"a\0bc\0\0junk"), ["a", "bc"]);
        assert!(names(b"\0").is_empty() && names(b"").is_empty());
        assert_eq!(first_name(b"ab\0cd"), "ab");
        assert_eq!(text("a\0b").as_bytes(), b"a");
    }

    #[test]
    fn a_missing_library_names_its_package() {
        let error = open("libnothing.so.9", "libnothing9").unwrap_err();
        assert!(error.to_string().starts_with("libnothing.so.9 cannot be loaded: "), "{error}");
        assert_eq!(error.remedy(), "install it: apt-get install libnothing9");
    }
}
