//! The frames: bytes to types and back, at the edge and nowhere else.
//!
//! A frame is a byte that says what it is, and fields in a fixed order: integers little-endian,
//! names as 32 digits, text and lists to the end of the frame. There is one way to write a frame;
//! every other sequence of bytes is malformed.

use thiserror::Error;

use super::{EntryName, MAX_FRAME};

/// What a greeting begins with: whoever connects by mistake finds out.
const MAGIC: &[u8; 8] = b"s3vkeep\n";

/// How many names one page holds.
pub(super) const PAGE: usize = 256;

/// The longest text of a refusal, in bytes.
const MAX_TEXT: usize = 1024;

/// A range of protocol versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    oldest: u16,
    newest: u16,
}

impl Versions {
    /// From `oldest` to `newest`.
    ///
    /// # Panics
    /// If `newest` is less than `oldest`.
    pub const fn new(oldest: u16, newest: u16) -> Self {
        assert!(oldest <= newest, "a range is not empty");
        Self { oldest, newest }
    }

    /// The newest version in both ranges.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.oldest == self.newest {
            return write!(f, "version {}", self.newest);
        }
        write!(f, "versions {} to {}", self.oldest, self.newest)
    }
}

/// Why the keeper refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another plugin is connected.
    Busy,
    /// The peer is another user.
    Denied,
    /// There is no version that both speak.
    Version,
    /// The frame cannot be read, or is out of place. The connection ends.
    Malformed,
    /// There is no entry of that name.
    Unknown,
    /// There is no room for another entry.
    Full,
    /// The descriptor that came as a state is none.
    State,
    /// A reason that this build does not know.
    Other(u8),
}

impl Refusal {
    const KNOWN: [Self; 7] = [
        Self::Busy,
        Self::Denied,
        Self::Version,
        Self::Malformed,
        Self::Unknown,
        Self::Full,
        Self::State,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::Busy => 1,
            Self::Denied => 2,
            Self::Version => 3,
            Self::Malformed => 4,
            Self::Unknown => 5,
            Self::Full => 6,
            Self::State => 7,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        let known = Self::KNOWN.into_iter().find(|refusal| refusal.code() == code);
        known.unwrap_or(Self::Other(code))
    }
}

/// What the plugin sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Hello(Versions),
    Put(EntryName),
    Update(EntryName),
    List(Option<EntryName>),
    Take(EntryName),
    Release(EntryName),
}

/// What the keeper sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Greeting(Versions),
    Welcome {
        version: u16,
        /// In milliseconds.
        hold_for: u64,
    },
    Done,
    /// At most [`PAGE`] names in order, each with the size of its state; whether there are more.
    Page(Vec<(EntryName, u64)>, bool),
    Entry(EntryName),
    Failed(Refusal, String),
}

/// The bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the frame cannot be read: {0}")]
pub struct Malformed(pub(super) &'static str);

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, name) = match self {
            Self::Hello(versions) => return versions_frame(1, *versions),
            Self::Put(name) => (2, Some(name)),
            Self::Update(name) => (3, Some(name)),
            Self::List(after) => (4, after.as_ref()),
            Self::Take(name) => (5, Some(name)),
            Self::Release(name) => (6, Some(name)),
        };
        let mut bytes = vec![kind];
        bytes.extend(name.map_or(&[][..], |name| name.as_bytes()));
        bytes
    }

    /// # Errors
    /// The bytes are no request.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let request = match fields.byte()? {
            1 => Self::Hello(fields.versions()?),
            2 => Self::Put(fields.name()?),
            3 => Self::Update(fields.name()?),
            4 if fields.0.is_empty() => Self::List(None),
            4 => Self::List(Some(fields.name()?)),
            5 => Self::Take(fields.name()?),
            6 => Self::Release(fields.name()?),
            _ => return Err(Malformed("no such request")),
        };
        fields.end()?;
        Ok(request)
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Greeting(versions) => return versions_frame(128, *versions),
            Self::Failed(refusal, text) => {
                bytes.extend([129, refusal.code()]);
                bytes.extend(&text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)]);
            }
            Self::Welcome { version, hold_for } => {
                bytes.push(130);
                bytes.extend(version.to_le_bytes());
                bytes.extend(hold_for.to_le_bytes());
            }
            Self::Done => bytes.push(131),
            Self::Page(entries, more) => {
                bytes.extend([132, u8::from(*more)]);
                for (name, size) in entries {
                    bytes.extend(name.as_bytes());
                    bytes.extend(size.to_le_bytes());
                }
            }
            Self::Entry(name) => {
                bytes.push(133);
                bytes.extend(name.as_bytes());
            }
        }
        debug_assert!(bytes.len() <= MAX_FRAME, "a page is small enough");
        bytes
    }

    /// # Errors
    /// The bytes are no reply.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let reply = match fields.byte()? {
            128 => Self::Greeting(fields.versions()?),
            129 => Self::Failed(Refusal::from_code(fields.byte()?), fields.text()?),
            130 => Self::Welcome {
                version: u16::from_le_bytes(*fields.array()?),
                hold_for: u64::from_le_bytes(*fields.array()?),
            },
            131 => Self::Done,
            132 => {
                let more = fields.flag()?;
                Self::Page(fields.page()?, more)
            }
            133 => Self::Entry(fields.name()?),
            _ => return Err(Malformed("no such reply")),
        };
        fields.end()?;
        Ok(reply)
    }
}

fn versions_frame(kind: u8, versions: Versions) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(MAGIC);
    bytes.extend(versions.oldest.to_le_bytes());
    bytes.extend(versions.newest.to_le_bytes());
    bytes
}

/// What is left of a frame.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Malformed> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Malformed("it is too short"))?;
        self.0 = rest;
        Ok(field)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let [byte] = *self.array()?;
        Ok(byte)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a flag must be 0 or 1")),
        }
    }

    fn name(&mut self) -> Result<EntryName, Malformed> {
        let digits: &[u8; EntryName::LENGTH] = self.array()?;
        EntryName::try_from(&digits[..]).map_err(|_| Malformed("a name must be 32 digits"))
    }

    fn versions(&mut self) -> Result<Versions, Malformed> {
        if self.array()? != MAGIC {
            return Err(Malformed("the peer is not of s3view"));
        }
        let oldest = u16::from_le_bytes(*self.array()?);
        let newest = u16::from_le_bytes(*self.array()?);
        if oldest > newest {
            return Err(Malformed("a range of versions must not be empty"));
        }
        Ok(Versions { oldest, newest })
    }

    fn page(&mut self) -> Result<Vec<(EntryName, u64)>, Malformed> {
        let mut entries = Vec::new();
        while !self.0.is_empty() {
            if entries.len() == PAGE {
                return Err(Malformed("a page holds too many names"));
            }
            entries.push((self.name()?, u64::from_le_bytes(*self.array()?)));
        }
        Ok(entries)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let text = std::mem::take(&mut self.0);
        if text.len() > MAX_TEXT {
            return Err(Malformed("a text is too long"));
        }
        let text = std::str::from_utf8(text).map_err(|_| Malformed("a text must be UTF-8"))?;
        Ok(text.to_owned())
    }

    fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("it is too long")) }
    }
}

#[cfg(test)]
mod tests;
