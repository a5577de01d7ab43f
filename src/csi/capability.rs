//! Volume capabilities: what can be had of a volume that is a read-only directory of files.
//!
//! Every access mode can: a volume is read by any number of pods on any number of nodes, and nobody
//! writes to it, whatever the mode says. Orchestrators send writer modes for ordinary read-only use
//! (inline volumes always, claims with the mode that people know), so they are accepted and nothing
//! becomes writable by them.

use tonic::Status;

use super::{
    proto::{
        VolumeCapability,
        volume_capability::{AccessType, MountVolume, access_mode::Mode},
    },
    request::missing,
};
use crate::volume::check_mount_options;

/// Takes a capability apart, if it is for a directory of files. Its mount options are not looked at.
///
/// # Errors
/// `INVALID_ARGUMENT`: raw block access.
pub(super) fn mount(capability: VolumeCapability) -> Result<MountVolume, Status> {
    match capability.access_type {
        None => Err(missing("volume_capability.access_type")),
        Some(AccessType::Block(_)) => Err(Status::invalid_argument(
            "volume_capability: block access is not offered; use volumeMode: Filesystem",
        )),
        Some(AccessType::Mount(mount)) => Ok(mount),
    }
}

/// Whether a volume with this capability can be had.
///
/// # Errors
/// As [`mount`]; a mode that is missing or not known; a mount option that does not hold. No option is
/// quoted.
pub(super) fn offered(capability: VolumeCapability) -> Result<(), Status> {
    let mode = capability.access_mode.map_or(0, |access| access.mode);
    match Mode::try_from(mode) {
        Ok(Mode::Unknown) => return Err(missing("volume_capability.access_mode")),
        Ok(_) => {}
        Err(_) => {
            let text = format!("volume_capability.access_mode: {mode} is not known");
            return Err(Status::invalid_argument(text));
        }
    }
    let checked = check_mount_options(&mount(capability)?.mount_flags);
    checked.map_err(|problems| Status::invalid_argument(problems.to_string()))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::csi::proto::volume_capability::{AccessMode, BlockVolume};

    fn capability(mode: i32, access: Option<AccessType>) -> VolumeCapability {
        VolumeCapability { access_mode: Some(AccessMode { mode }), access_type: access }
    }

    fn flags(flags: &[&str]) -> AccessType {
        let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        AccessType::Mount(MountVolume { mount_flags, ..MountVolume::default() })
    }

    #[test]
    fn every_access_mode_can_be_had() {
        for mode in 1..=7 {
            offered(capability(mode, Some(flags(&["ro"])))).unwrap();
        }
    }

    #[test_case(0, Some(flags(&[])), "access_mode: is required"; "no mode")]
    #[test_case(99, Some(flags(&[])), "99 is not known"; "an unknown mode")]
    #[test_case(1, None, "access_type: is required"; "no access type")]
    #[test_case(1, Some(AccessType::Block(BlockVolume {})), "volumeMode"; "block")]
    #[test_case(1, Some(flags(&["rw"])), "mountOptions: \"rw\""; "a mount option")]
    fn others_are_refused(mode: i32, access: Option<AccessType>, expected: &str) {
        let status = offered(capability(mode, access)).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains(expected), "{status:?}");
    }
}
