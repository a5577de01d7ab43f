//! From CSI messages to the node's requests. CSI types do not leave this module's parent.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Status, metadata::MetadataMap};

use super::{capability, proto::NodePublishVolumeRequest};
use crate::node::{PublishRequest, VolumeSecretsInput};

/// How long a call may take if its caller does not say: what the kubelet allows.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(2);

/// What a longer time-out is cut to, so that adding it to a clock cannot overflow.
const LONGEST_TIMEOUT: Duration = Duration::from_hours(24);

/// How long before the caller's deadline a call answers by itself, so that the answer (how far it
/// has come) reaches the user instead of a bare time-out.
const HEADROOM: Duration = Duration::from_secs(2);

/// Checks a publish in the order that the spec gives, and takes it apart.
///
/// `readonly`, the access mode and the staging path are accepted as they come; see [`capability`].
pub(super) fn publish(
    request: NodePublishVolumeRequest,
    deadline: Instant,
) -> Result<PublishRequest, Status> {
    // First of all: whatever is refused below, the secrets are zeroised.
    let secrets = VolumeSecretsInput::new(request.secrets);
    let volume_id = required("volume_id", request.volume_id)?;
    let target = required("target_path", request.target_path)?;
    let capability = request.volume_capability.ok_or_else(|| missing("volume_capability"))?;
    let mount = capability::mount(capability)?;
    let mount_group = Some(mount.volume_mount_group).filter(|group| !group.is_empty());
    Ok(PublishRequest {
        volume_id,
        target,
        attributes: request.volume_context.into_iter().collect(),
        mount_group,
        mount_options: mount.mount_flags,
        secrets,
        deadline,
    })
}

/// A field that must not be empty.
pub(super) fn required(field: &'static str, value: String) -> Result<String, Status> {
    if value.is_empty() { Err(missing(field)) } else { Ok(value) }
}

pub(super) fn missing(field: &'static str) -> Status {
    Status::invalid_argument(format!("{field}: is required"))
}

/// The answer of a call that this plugin does not have.
pub(super) fn not_offered(method: &str) -> Status {
    Status::unimplemented(format!("{method} is not offered by this driver"))
}

/// When a call with these headers should have been answered.
pub(super) fn deadline(metadata: &MetadataMap) -> Instant {
    let header = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let timeout = header.and_then(parse_timeout).unwrap_or(DEFAULT_TIMEOUT);
    let timeout = timeout.min(LONGEST_TIMEOUT);
    Instant::now() + timeout.saturating_sub(HEADROOM.min(timeout / 2))
}

/// Reads a `grpc-timeout` header: up to eight digits and a unit.
///
/// Source: gRPC over HTTP/2, "Timeout".
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_hours(value)),
        "M" => Some(Duration::from_mins(value)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("120S", Some(Duration::from_mins(2)))]
    #[test_case("119999m", Some(Duration::from_millis(119_999)))]
    #[test_case("2M", Some(Duration::from_mins(2)); "minutes")]
    #[test_case("18446744073709551615S", None; "too many digits")]
    #[test_case("99999999H", Some(Duration::from_hours(99_999_999)); "the longest")]
    #[test_case("", None; "empty")]
    #[test_case("5", None; "no unit")]
    #[test_case("xS", None; "no number")]
    fn timeouts_are_read(text: &str, timeout: Option<Duration>) {
        assert_eq!(parse_timeout(text), timeout);
    }

    #[test]
    fn fields_are_checked_in_the_order_of_the_spec() {
        let check = |request| publish(request, Instant::now()).unwrap_err().message().to_owned();
        let mut request = NodePublishVolumeRequest::default();
        assert_eq!(check(request.clone()), "volume_id: is required");
        request.volume_id = "v".into();
        assert_eq!(check(request.clone()), "target_path: is required");
        request.target_path = "/t".into();
        assert_eq!(check(request.clone()), "volume_capability: is required");
    }
}
