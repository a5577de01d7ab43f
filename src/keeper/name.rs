//! The name of an entry: the volume's key.

use std::{fmt, str::FromStr};

use thiserror::Error;

use crate::failure::FailureKind;

/// The key of a volume: 32 hexadecimal digits in lower case. Ordered as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName([u8; Self::LENGTH]);

/// The text is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the name of an entry must be 32 hexadecimal digits in lower case")]
pub struct EntryNameError;

impl EntryNameError {
    /// Always [`FailureKind::Invalid`].
    pub const fn kind(&self) -> FailureKind {
        FailureKind::Invalid
    }
}

impl EntryName {
    /// How many bytes a name has.
    pub const LENGTH: usize = 32;

    /// The digits as ASCII.
    pub const fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl TryFrom<&[u8]> for EntryName {
    type Error = EntryNameError;

    fn try_from(bytes: &[u8]) -> Result<Self, EntryNameError> {
        let digits = <[u8; Self::LENGTH]>::try_from(bytes).map_err(|_| EntryNameError)?;
        let is_good = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        is_good.then_some(Self(digits)).ok_or(EntryNameError)
    }
}

impl FromStr for EntryName {
    type Err = EntryNameError;

    fn from_str(text: &str) -> Result<Self, EntryNameError> {
        Self::try_from(text.as_bytes())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|digit| fmt::Write::write_char(f, char::from(*digit)))
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test]
    fn a_name_is_32_digits() {
        let text = "0123456789abcdef0123456789abcdef";
        assert_eq!(text.parse::<EntryName>().unwrap().to_string(), text);
    }

    #[test_case(""; "empty")]
    #[test_case("0123456789abcdef0123456789abcde"; "short")]
    #[test_case("0123456789abcdef0123456789abcdef0"; "long")]
    #[test_case("0123456789ABCDEF0123456789abcdef"; "upper case")]
    #[test_case("../../../../../../../../../../../"; "a path")]
    fn anything_else_is_none(text: &str) {
        assert_eq!(text.parse::<EntryName>(), Err(EntryNameError));
    }
}
