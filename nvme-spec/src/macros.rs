//! `open_enum!`: a named set of values that keeps every other value representable.

/// Defines a transparent newtype over an unsigned integer with named constants, `from_bits`, `into_bits`, `name`
/// and a `Debug` that prints the name, or the raw value when the specification gives it none.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        pub struct $name:ident($repr:ty) {
            $($(#[$vmeta:meta])* $variant:ident = $value:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone,
            Copy,
            Default,
            PartialEq,
            Eq,
            PartialOrd,
            Ord,
            Hash,
            ::zerocopy::FromBytes,
            ::zerocopy::IntoBytes,
            ::zerocopy::Immutable,
            ::zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            $($(#[$vmeta])* pub const $variant: Self = Self($value);)*

            /// Every value that has a name here, in the order of the specification.
            pub const NAMED: &'static [Self] = &[$(Self::$variant),*];

            /// The value as it stands on the wire.
            #[inline]
            pub const fn into_bits(self) -> $repr {
                self.0
            }

            /// Any wire value, known or not.
            #[inline]
            pub const fn from_bits(bits: $repr) -> Self {
                Self(bits)
            }

            /// The constant's name, if the value has one here.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($variant)),)*
                    _ => None,
                }
            }
        }

        impl ::core::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }
    };
}

/// Asserts at compile time that each wire type has the size the specification gives it, in bytes.
macro_rules! assert_size {
    ($($ty:ty => $size:expr),* $(,)?) => {
        $(const _: () = assert!(::core::mem::size_of::<$ty>() == $size);)*
    };
}
