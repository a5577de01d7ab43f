//! s3view: S3 prefixes as read-only volumes in Kubernetes pods.

pub mod failure;
pub mod problems;
