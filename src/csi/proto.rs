//! The CSI messages and services, generated from `proto/csi.proto` by `build.rs`.
//!
//! Messages that can carry a secret have no derived `Debug`; `redacted` says how they print.

mod generated {
    // Not allowed: missing_debug_implementations. It tells us of a message with a new secret.
    #![allow(
        missing_docs,
        clippy::allow_attributes_without_reason,
        clippy::clone_on_ref_ptr,
        clippy::pedantic,
        reason = "generated code"
    )]
    tonic::include_proto!("csi.v1");
}
mod redacted;

pub use self::generated::*;
