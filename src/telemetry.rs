//! What operators see: logs and metrics. Names are `s3view_*` and field names are dotted.

pub mod http;
pub mod log;
pub mod metrics;
