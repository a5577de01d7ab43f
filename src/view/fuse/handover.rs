//! What goes with the descriptor from process to process.
//!
//! ```text
//! "s3vh" 1   version
//! 8 bytes    the mount, as its ledger names it
//! varints    connection, protocol (2), offered, granted, read-ahead, passthrough,
//!            1 if requests in flight are in the ledger, 1 if the kernel opens files by itself
//! 8 bytes    digest of all of the above
//! ```

use std::io;

use sha2::{Digest, Sha256};

use super::{
    ResumeError,
    session::{InFlight, Negotiated},
};
use crate::{
    mount::FuseConnection,
    packed::{invalid, put, take},
};

const MAGIC: &[u8] = b"s3vh";
const VERSION: u8 = 1;
const CHECK: usize = 8;

/// What another process must know before it reads the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handover {
    /// The mount that descriptor and ledger belong to.
    pub(super) mount: u64,
    pub(super) connection: FuseConnection,
    pub(super) negotiated: Negotiated,
}

impl Handover {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        out.extend(self.mount.to_le_bytes());
        let Negotiated { protocol, offered, granted, max_readahead, .. } = self.negotiated;
        let Negotiated { passthrough, in_flight, opens_itself, .. } = self.negotiated;
        let connection = self.connection.number();
        let (major, minor) = protocol;
        let numbers = [
            connection.into(),
            major.into(),
            minor.into(),
            offered,
            granted,
            max_readahead.into(),
            passthrough.into(),
            (in_flight == InFlight::Replay).into(),
            opens_itself.into(),
        ];
        for number in numbers {
            put(&mut out, number).expect("a vector takes everything");
        }
        let check = Sha256::digest(&out);
        out.extend(&check[..CHECK]);
        out
    }

    /// # Errors
    /// [`ResumeError::Unknown`], [`ResumeError::Damaged`].
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ResumeError> {
        const WHAT: &str = "the state of a FUSE mount";
        let damaged = || ResumeError::Damaged { what: WHAT };
        match bytes.strip_prefix(MAGIC).ok_or_else(damaged)?.first() {
            Some(&VERSION) => {}
            Some(_) => return Err(ResumeError::Unknown { what: WHAT }),
            None => return Err(damaged()),
        }
        let (content, check) = bytes.split_last_chunk::<CHECK>().ok_or_else(damaged)?;
        if Sha256::digest(content)[..CHECK] != check[..] {
            return Err(damaged());
        }
        let content = content.get(MAGIC.len() + 1..).ok_or_else(damaged)?;
        Self::parse(content).map_err(|_| damaged())
    }

    fn parse(mut input: &[u8]) -> io::Result<Self> {
        let (mount, rest) = input.split_first_chunk().ok_or_else(|| invalid("no mount"))?;
        input = rest;
        let mut word = || take(&mut input);
        let small = |number| u32::try_from(number).map_err(|_| invalid("a number of 32 bits"));
        let connection = FuseConnection::from_number(small(word()?)?);
        let protocol = (small(word()?)?, small(word()?)?);
        let (offered, granted) = (word()?, word()?);
        let (max_readahead, passthrough) = (small(word()?)?, word()? != 0);
        let in_flight = match word()? {
            0 => InFlight::Resend,
            1 => InFlight::Replay,
            _ => return Err(invalid("no way to know what was not answered")),
        };
        let opens_itself = word()? != 0;
        let negotiated = Negotiated {
            protocol,
            offered,
            granted,
            max_readahead,
            passthrough,
            in_flight,
            opens_itself,
        };
        Ok(Self { mount: u64::from_le_bytes(*mount), connection, negotiated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handover() -> Handover {
        let negotiated = Negotiated {
            protocol: (7, 45),
            offered: u64::MAX,
            granted: 1 << 37,
            max_readahead: 131_072,
            passthrough: true,
            in_flight: InFlight::Replay,
            opens_itself: true,
        };
        Handover { mount: 0xfeed, connection: FuseConnection::from_number(77), negotiated }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        assert_eq!(Handover::read(&handover().bytes()).unwrap(), handover());
    }

    #[test]
    fn damage_is_refused_whatever_it_is() {
        let good = handover().bytes();
        for length in 0..good.len() {
            let error = Handover::read(&good[..length]).unwrap_err();
            assert!(matches!(error, ResumeError::Damaged { .. }), "{error}");
        }
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            Handover::read(&bytes).unwrap_err();
        }
        let mut newer = good;
        newer[4] = 2;
        let error = Handover::read(&newer).unwrap_err();
        assert!(matches!(error, ResumeError::Unknown { .. }), "{error}");
    }
}
