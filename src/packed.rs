//! Numbers and text in few bytes, written and read as a stream.
//!
//! A number is a varint: seven bits in each byte, the lowest first, and the eighth says that more
//! follow. Text is its length and its bytes. What cannot have been written here is `InvalidData`, an
//! early end is `UnexpectedEof`. Nothing is allocated on the word of a length alone.

use std::io::{self, Error, ErrorKind, Read, Write};

/// Writes a number.
///
/// # Errors
/// What the writer answers.
pub fn put(out: &mut impl Write, mut value: u64) -> io::Result<()> {
    let mut bytes = [0; 10];
    let mut length = 0;
    loop {
        let more = value >= 0x80;
        bytes[length] = (value & 0x7f) as u8 | if more { 0x80 } else { 0 };
        length += 1;
        value >>= 7;
        if !more {
            return out.write_all(&bytes[..length]);
        }
    }
}

/// Writes a number that may be negative; small amounts in either direction are short.
///
/// # Errors
/// What the writer answers.
pub fn put_signed(out: &mut impl Write, value: i64) -> io::Result<()> {
    put(out, ((value << 1) ^ (value >> 63)).cast_unsigned())
}

/// Writes bytes after their count.
///
/// # Errors
/// What the writer answers.
pub fn put_bytes(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    put(out, bytes.len() as u64)?;
    out.write_all(bytes)
}

/// Reads a number.
///
/// # Errors
/// `InvalidData` for a number of more than 64 bits; what the reader answers.
pub fn take(input: &mut impl Read) -> io::Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            return Ok(value);
        }
    }
    Err(invalid("a number of more than 64 bits"))
}

/// Reads a number that may be negative.
///
/// # Errors
/// As [`take`].
pub fn take_signed(input: &mut impl Read) -> io::Result<i64> {
    let value = take(input)?;
    Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
}

/// Reads bytes, at most `most`.
///
/// # Errors
/// `InvalidData` if there are more; as [`take`].
pub fn take_bytes(input: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let length = take(input)?;
    if length > most as u64 {
        return Err(invalid("longer than it can be"));
    }
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Reads text of at most `most` bytes.
///
/// # Errors
/// `InvalidData` for what is no text; as [`take_bytes`].
pub fn take_text(input: &mut impl Read, most: usize) -> io::Result<String> {
    String::from_utf8(take_bytes(input, most)?).map_err(|_| invalid("no text"))
}

/// What cannot have been written.
pub fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(number: u64, signed: i64, bytes: Vec<u8>, text: String) {
            let mut out = Vec::new();
            put(&mut out, number).unwrap();
            put_signed(&mut out, signed).unwrap();
            put_bytes(&mut out, &bytes).unwrap();
            put_bytes(&mut out, text.as_bytes()).unwrap();
            let mut input = &out[..];
            prop_assert_eq!(take(&mut input).unwrap(), number);
            prop_assert_eq!(take_signed(&mut input).unwrap(), signed);
            prop_assert_eq!(take_bytes(&mut input, bytes.len()).unwrap(), bytes);
            prop_assert_eq!(take_text(&mut input, text.len()).unwrap(), text);
            prop_assert!(input.is_empty());
        }
    }

    #[test]
    fn what_was_never_written_is_refused() {
        assert_eq!(take(&mut &[0xff; 11][..]).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(take(&mut &[0x80][..]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let kind = |bytes: &[u8], most| take_text(&mut &*bytes, most).unwrap_err().kind();
        assert_eq!(kind(b"\x03abc", 2), ErrorKind::InvalidData);
        assert_eq!(kind(b"\x03ab", 9), ErrorKind::UnexpectedEof);
        assert_eq!(kind(b"\x01\xff", 9), ErrorKind::InvalidData);
    }
}
