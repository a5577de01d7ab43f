//! `/metrics` and `/healthz`, where the configuration gives an address.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;

/// Says whether the process is healthy; asked at each `/healthz`.
pub type Health = Arc<dyn Fn() -> bool + Send + Sync>;

/// Binds the address, so that a taken one is an error at start.
///
/// # Errors
/// What the system answers.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers until `stop` is cancelled.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    health: Health,
    stop: CancellationToken,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "metrics are served");
    let text = move || async move {
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
    };
    let healthz = move || async move {
        if health() {
            (StatusCode::OK, "ok\n").into_response()
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
        }
    };
    let router = Router::new().route("/metrics", get(text)).route("/healthz", get(healthz));
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}
