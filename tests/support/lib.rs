//! What the integration tests, the demo and the benches share.

#![allow(dead_code, reason = "every includer uses another part")]
#![allow(clippy::panic, clippy::print_stderr, reason = "for tests, the demo and benches alone")]

pub(crate) mod address;
pub(crate) mod apiserver;
pub(crate) mod go;
pub(crate) mod issuer;
pub(crate) mod kubelet;
pub(crate) mod minio;
pub(crate) mod namespace;
pub(crate) mod plugin;
pub(crate) mod provisioner;
pub(crate) mod radosgw;
pub(crate) mod s3;
pub(crate) mod secrecy;
pub(crate) mod server;
pub(crate) mod surroundings;
pub(crate) mod tls;
