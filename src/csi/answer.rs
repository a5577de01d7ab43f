//! What every call has in common: it is counted, timed, and logged once.

use std::{future::Future, sync::Arc};

use tokio::time::Instant;
use tonic::{Code, Response, Status};

use crate::telemetry::metrics::Metrics;

/// What a call is about, for its log line: a volume, and a place if it has one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) volume: &'a str,
    pub(super) target: &'a str,
}

/// Answers calls.
#[derive(Debug, Clone)]
pub(super) struct Answers(Arc<Metrics>);

impl Answers {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self(metrics)
    }

    /// Runs a call, counts it, and logs a failure once, with its whole chain.
    pub(super) async fn answer<T>(
        &self,
        method: &'static str,
        subject: Subject<'_>,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let began = Instant::now();
        let outcome = call.await;
        let code = outcome.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let elapsed = began.elapsed();
        self.0.rpc_seconds.with_label_values(&[method]).observe(elapsed.as_secs_f64());
        self.0.rpcs.with_label_values(&[method, &format!("{code:?}")]).inc();
        let Subject { volume, target } = subject;
        match &outcome {
            Ok(_) => tracing::debug!(
                rpc.method = method,
                volume.id = volume,
                volume.target_path = target,
                ?elapsed,
                "answered"
            ),
            Err(status) => tracing::warn!(
                rpc.method = method,
                grpc.code = ?status.code(),
                volume.id = volume,
                volume.target_path = target,
                ?elapsed,
                error = status.message(),
                "call failed"
            ),
        }
        outcome.map(Response::new)
    }
}
