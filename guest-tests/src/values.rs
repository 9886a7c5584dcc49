//! The scalar values of a manifest: sizes, addresses, page sizes, rights, exception names.

use std::fmt;
use std::str::FromStr;

use memory_model::PageSize;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use crate::manifest::{Holds, MAX_PAGES};

/// A number of bytes: an integer, or a string with a suffix (`"64K"`, `"16M"`, `"1G"`, `"0x1000"`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bytes(pub u64);

/// An address: an integer, or the name of an ELF symbol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// A plain address.
    Address(u64),
    /// The value of a symbol of the guest's ELF file.
    Symbol(String),
}

/// What an access may do, or a mapping allows: any of `r`, `w`, `x`; empty for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rights {
    /// Data reads.
    pub read: bool,
    /// Data writes.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

impl Rights {
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true, execute: true };

    /// Whether nothing at all is allowed.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |on, letter| if on { letter } else { '-' };
        write!(f, "{}{}{}", letter(self.read, 'r'), letter(self.write, 'w'), letter(self.execute, 'x'))
    }
}

impl FromStr for Rights {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut rights = Self::default();
        for letter in text.chars() {
            let right = match letter {
                'r' => &mut rights.read,
                'w' => &mut rights.write,
                'x' => &mut rights.execute,
                other => return Err(format!("`{other}` is no right: use letters of rwx")),
            };
            *right = true;
        }
        Ok(rights)
    }
}

/// The 4 KiB, 2 MiB or 1 GiB of a guest's page tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page(pub PageSize);

impl FromStr for Page {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = PageSize::ALL.into_iter().find(|size| size.to_string() == text);
        known.map(Self).ok_or_else(|| format!("`{text}` is no page size: use 4K, 2M or 1G"))
    }
}

/// An exception vector, by its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Vector(pub u8);

/// The exceptions a guest can have a handler for (SDM vol. 3A, table 6-1).
const VECTORS: &[(&str, u8)] = &[
    ("divide_error", 0),
    ("breakpoint", 3),
    ("invalid_opcode", 6),
    ("double_fault", 8),
    ("segment_not_present", 11),
    ("stack_fault", 12),
    ("general_protection", 13),
    ("page_fault", 14),
];

impl FromStr for Vector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = VECTORS.iter().find(|(name, _)| *name == text);
        known.map(|&(_, vector)| Self(vector)).ok_or_else(|| {
            let names: Vec<_> = VECTORS.iter().map(|(name, _)| *name).collect();
            format!("`{text}` is no exception: use one of {}", names.join(", "))
        })
    }
}

/// Numbers: a list of them, or a string with a range (`"0-15"`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Numbers(pub(crate) Vec<u64>);

impl FromStr for Numbers {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let ends = text.split_once('-').and_then(|(first, last)| first.parse().ok().zip(last.parse().ok()));
        let range = ends.map(|(first, last): (u64, u64)| first..=last);
        match range.filter(|range| !range.is_empty() && range.end() - range.start() < MAX_PAGES) {
            Some(range) => Ok(Self(range.collect())),
            None => Err(format!("`{text}` is no range of at most {MAX_PAGES} numbers")),
        }
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListOrRange;
        impl<'de> Visitor<'de> for ListOrRange {
            type Value = Numbers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of numbers, or a range as a string")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Numbers, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Numbers, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                }
                Ok(Numbers(numbers))
            }
        }
        deserializer.deserialize_any(ListOrRange)
    }
}

impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no size: use a number, or one with K, M or G");
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K') => (&text[..text.len() - 1], 10),
            Some(b'M') => (&text[..text.len() - 1], 20),
            Some(b'G') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let number = match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        number.ok().and_then(|number| number.checked_mul(1 << shift)).map(Self).ok_or_else(bad)
    }
}

impl FromStr for Location {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("0x") {
            Some(hex) => match u64::from_str_radix(hex, 16) {
                Ok(address) => Ok(Self::Address(address)),
                Err(_) => Err(format!("`{text}` is no address")),
            },
            None => Ok(Self::Symbol(text.to_owned())),
        }
    }
}

impl From<u64> for Bytes {
    fn from(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl From<u64> for Location {
    fn from(address: u64) -> Self {
        Self::Address(address)
    }
}

/// Reads a `T` from a string.
struct FromText<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for FromText<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// Reads a `T` from an integer that is not negative, or from a string.
struct FromNumberOrText<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String> + From<u64>> Visitor<'_> for FromNumberOrText<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a string")
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        Ok(number.into())
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number).map(T::from).map_err(|_| E::custom(format!("{number} is negative")))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

macro_rules! deserialize_by {
    ($($name:ident: $call:ident, $visitor:ident;)*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.$call($visitor(std::marker::PhantomData))
            }
        }
    )*};
}

deserialize_by! {
    Bytes: deserialize_any, FromNumberOrText;
    Holds: deserialize_any, FromNumberOrText;
    Location: deserialize_any, FromNumberOrText;
    Rights: deserialize_str, FromText;
    Page: deserialize_str, FromText;
    Vector: deserialize_str, FromText;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_and_do_not_overflow() {
        let read = |text: &str| text.parse::<Bytes>().map(|bytes| bytes.0).ok();
        assert_eq!(read("64K"), Some(0x1_0000));
        assert_eq!(read("0x2000"), Some(0x2000));
        assert_eq!(read("16G"), Some(16 << 30));
        for bad in ["", "K", "-1", "1T", "99999999999999G", "0x", "1.5M"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_range_of_numbers() {
        let read = |text: &str| text.parse::<Numbers>().map(|numbers| numbers.0);
        assert_eq!(read("3-5"), Ok(vec![3, 4, 5]));
        for bad in ["5-3", "5", "-5", "0-18446744073709551615"] {
            assert!(read(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn rights_pages_and_exceptions_by_name() {
        assert_eq!("rw".parse::<Rights>().unwrap().to_string(), "rw-");
        assert!("".parse::<Rights>().unwrap().is_empty());
        assert!("rq".parse::<Rights>().is_err());
        assert_eq!("2M".parse::<Page>(), Ok(Page(PageSize::Size2M)));
        assert_eq!("page_fault".parse::<Vector>(), Ok(Vector(14)));
        assert!("pagefault".parse::<Vector>().unwrap_err().contains("page_fault"));
    }
}
