//! Sizes, modes, durations and refresh intervals as Kubernetes users write them.
//!
//! One grammar each for the configuration file and the volume attributes, exact in both
//! directions: what `Display` prints parses back to the same value. Numbers are computed in
//! integers, because `1.1Gi` through a float is off by a few bytes, and by more as sizes grow.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::failure::FailureKind;

/// Why a text is not a unit's value; each message shows what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnitError {
    /// Not a Kubernetes quantity.
    #[error("{0:?} is not a size; write bytes or a Kubernetes quantity, such as \"64Mi\"")]
    Size(String),
    /// A quantity that 64 bits cannot hold.
    #[error("{0:?} is too large; a size must be below \"16Ei\", such as \"64Mi\"")]
    LargeSize(String),
    /// Not octal, or bits beyond the permissions.
    #[error("{0:?} is not a file mode; write octal from \"0000\" to \"0777\", such as \"0444\"")]
    Mode(String),
    /// Not a duration with units.
    #[error("{0:?} is not a duration; write numbers with h, m, s or ms, such as \"1m30s\"")]
    Duration(String),
    /// A duration that 63 bits of nanoseconds, Go's range, cannot hold.
    #[error("{0:?} is too long; a duration is at most \"2562047h\", write one such as \"1m30s\"")]
    LongDuration(String),
    /// An interval of nothing would refresh without a pause.
    #[error("{0:?} is no interval; write \"never\" or a duration above zero, such as \"60s\"")]
    Refresh(String),
}

impl UnitError {
    /// Always [`FailureKind::Invalid`]: the text will not become right by waiting.
    pub const fn kind(&self) -> FailureKind {
        FailureKind::Invalid
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

/// Suffixes of powers of two, each with its shift, largest first.
const BINARY: [(&str, u32); 6] =
    [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];

/// Suffixes of powers of ten, each with its exponent. `m` is a thousandth, as in Kubernetes.
const DECIMAL: [(&str, i32); 9] = [
    ("E", 18),
    ("P", 15),
    ("T", 12),
    ("G", 9),
    ("M", 6),
    ("k", 3),
    ("m", -3),
    ("u", -6),
    ("n", -9),
];

impl ByteSize {
    /// Exactly `bytes` bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// `count` times 1024 times 1024 bytes; stops at the largest size instead of overflowing.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    /// Parses a Kubernetes quantity. A fraction of a byte counts as a whole one.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        let (number, suffix) = Decimal::split(unsigned);
        let (shift, exponent) =
            quantity_suffix(suffix).ok_or_else(|| UnitError::Size(text.to_owned()))?;
        let number = number.ok_or_else(|| UnitError::Size(text.to_owned()))?;
        number
            .scaled(1 << shift, exponent, Rounding::Up)
            .and_then(|bytes| u64::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| UnitError::LargeSize(text.to_owned()))
    }
}

/// The power of two and the power of ten that a suffix stands for.
fn quantity_suffix(suffix: &str) -> Option<(u32, i32)> {
    if suffix.is_empty() {
        return Some((0, 0));
    }
    if let Some((_, shift)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Some((*shift, 0));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((0, *exponent));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    Some((0, exponent.parse().ok()?))
}

impl fmt::Display for ByteSize {
    /// Prints the largest binary unit that is exact: `64Mi`, `1536Mi`, `1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            BINARY.iter().find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift));
        match exact {
            Some((suffix, shift)) => write!(f, "{}{suffix}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The permission bits of a file or directory: nine of them, no setuid, setgid or sticky bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mode(u16);

impl Mode {
    /// The mode with these bits, if they are permissions only.
    pub const fn from_bits(bits: u16) -> Option<Self> {
        if bits <= 0o777 { Some(Self(bits)) } else { None }
    }

    /// The bits, at most `0o777`.
    pub const fn bits(self) -> u16 {
        self.0
    }
}

impl FromStr for Mode {
    type Err = UnitError;

    /// Parses octal digits, with or without leading zeros.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let bits = u16::from_str_radix(text, 8).ok().filter(|_| digits);
        bits.and_then(Self::from_bits).ok_or_else(|| UnitError::Mode(text.to_owned()))
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// The units of a duration in nanoseconds. Go takes the micro sign and the Greek letter alike.
const TIME: [(&str, u64); 8] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ns", 1),
];

/// The longest duration that Go can hold, so that nobody's tool disagrees about a manifest.
const LONGEST: Duration = Duration::from_nanos(i64::MAX as u64);

/// Parses a duration as Go and Kubernetes write it: `1m30s`, `1.5h`, `500ms`, `0`.
///
/// A fraction of a nanosecond is dropped.
///
/// # Errors
/// [`UnitError::Duration`] for another grammar (a sign included), [`UnitError::LongDuration`] for
/// more than about 292 years.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let malformed = || UnitError::Duration(text.to_owned());
    let too_long = || UnitError::LongDuration(text.to_owned());
    let mut rest = text;
    let mut nanoseconds = 0_u64;
    while !rest.is_empty() || text.is_empty() {
        let (number, after) = Decimal::split(rest);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, length) = TIME.iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
        let part = number.ok_or_else(malformed)?.scaled(u128::from(*length), 0, Rounding::Down);
        let part = part.and_then(|part| u64::try_from(part).ok()).ok_or_else(too_long)?;
        nanoseconds = nanoseconds.checked_add(part).ok_or_else(too_long)?;
        rest = after;
    }
    let duration = Duration::from_nanos(nanoseconds);
    if duration <= LONGEST { Ok(duration) } else { Err(too_long()) }
}

/// Writes a duration so that [`parse_duration`] reads the same one: `1m30s`, `1s500ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    let mut text = String::new();
    for (unit, length) in TIME.iter().filter(|(unit, _)| unit.is_ascii()) {
        let count = rest / u128::from(*length);
        rest %= u128::from(*length);
        if count > 0 {
            text += &count.to_string();
            text += unit;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// How often a volume looks for changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refresh {
    /// The first revision stays for the life of the volume.
    Never,
    /// After each such time; never zero.
    Every(Duration),
}

impl FromStr for Refresh {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "never" {
            return Ok(Self::Never);
        }
        match parse_duration(text) {
            Ok(interval) if !interval.is_zero() => Ok(Self::Every(interval)),
            Err(error @ UnitError::LongDuration(_)) => Err(error),
            _ => Err(UnitError::Refresh(text.to_owned())),
        }
    }
}

impl fmt::Display for Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Every(interval) => f.write_str(&format_duration(*interval)),
        }
    }
}

/// A non-negative decimal number, kept as its digits until the unit is known.
#[derive(Clone, Copy)]
struct Decimal<'a> {
    whole: &'a str,
    fraction: &'a str,
}

#[derive(Clone, Copy)]
enum Rounding {
    Up,
    Down,
}

impl<'a> Decimal<'a> {
    /// Splits off the number that `text` begins with: `1`, `1.5`, `.5` or `1.`; `None` if there is
    /// none.
    fn split(text: &'a str) -> (Option<Self>, &'a str) {
        let (whole, rest) = split_digits(text);
        let (fraction, rest) = match rest.strip_prefix('.') {
            Some(rest) => split_digits(rest),
            None => ("", rest),
        };
        let number = !(whole.is_empty() && fraction.is_empty());
        (number.then_some(Self { whole, fraction: fraction.trim_end_matches('0') }), rest)
    }

    /// This number times `factor` times ten to the power of `exponent`; `None` on overflow.
    fn scaled(self, factor: u128, exponent: i32, rounding: Rounding) -> Option<u128> {
        let digits = self.whole.bytes().chain(self.fraction.bytes());
        let digits =
            digits.map(|byte| u128::from(byte - b'0')).try_fold(0_u128, |sum, digit| {
                sum.checked_mul(10).and_then(|sum| sum.checked_add(digit))
            })?;
        if digits == 0 {
            return Some(0);
        }
        let product = digits.checked_mul(factor)?;
        let exponent = exponent.checked_sub(i32::try_from(self.fraction.len()).ok()?)?;
        let power = 10_u128.checked_pow(exponent.unsigned_abs());
        match (exponent >= 0, rounding) {
            (true, _) => product.checked_mul(power?),
            // A power beyond 128 bits is more than any product: what remains is a mere fraction.
            (false, Rounding::Up) => Some(power.map_or(1, |power| product.div_ceil(power))),
            (false, Rounding::Down) => Some(power.map_or(0, |power| product / power)),
        }
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests;
