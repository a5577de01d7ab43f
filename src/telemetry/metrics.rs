//! Every metric of the node plugin, in one table. `docs/METRICS.md` is its public form.

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// The node plugin's metrics; one value per process, shared by reference.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests sent to S3, by operation.
    pub s3_requests: IntCounterVec,
    /// Requests that failed, by operation and failure kind.
    pub s3_errors: IntCounterVec,
    /// Requests made again after a failure that may pass.
    pub s3_retries: IntCounter,
    /// Bytes of object content received.
    pub s3_received_bytes: IntCounter,
    /// Bytes held by a store medium, reservations included.
    pub store_bytes: IntGaugeVec,
    /// The configured size of a store medium.
    pub store_capacity_bytes: IntGaugeVec,
    /// Blobs in a store medium.
    pub store_blobs: IntGaugeVec,
    /// Lookups of blobs, by medium and outcome (`hit`, `miss`).
    pub store_lookups: IntCounterVec,
    /// Blobs evicted from a store medium.
    pub store_evictions: IntCounterVec,
    /// Published volumes, by view.
    pub volumes: IntGaugeVec,
    /// Published volumes whose last refresh failed, by view.
    pub stale_volumes: IntGaugeVec,
    /// Refreshes of volumes, by outcome.
    pub refreshes: IntCounterVec,
    /// Reads of `fuse` views that failed, by failure kind.
    pub fuse_read_failures: IntCounterVec,
    /// Keys that could not become paths, in all published volumes.
    pub skipped_keys: IntCounter,
    /// Changes of the configuration file, by outcome (`applied`, `refused`).
    pub config_reloads: IntCounterVec,
    /// Whether the configuration file says what is not in force, by reason (`refused`, `restart`).
    pub config_stale: IntGaugeVec,
    /// RPCs answered, by method and gRPC code.
    pub rpcs: IntCounterVec,
    /// Time to answer RPCs, by method.
    pub rpc_seconds: HistogramVec,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Makes all metrics, registered with a registry of their own.
    ///
    /// # Panics
    /// If two metrics of the table have one name.
    #[expect(clippy::too_many_lines, reason = "a table")]
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            register(&registry, IntCounter::new(name, help).expect("the name is valid"))
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels);
            register(&registry, metric.expect("the name is valid"))
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels);
            register(&registry, metric.expect("the name is valid"))
        };
        let seconds = |name: &str, help: &str, labels: &[&str]| {
            let buckets = vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 120.0];
            let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels);
            register(&registry, metric.expect("the name is valid"))
        };
        Self {
            s3_requests: counters(
                "s3view_s3_requests_total",
                "Requests sent to S3, by operation.",
                &["operation"],
            ),
            s3_errors: counters(
                "s3view_s3_errors_total",
                "Requests to S3 that failed, by operation and failure kind.",
                &["operation", "kind"],
            ),
            s3_retries: counter(
                "s3view_s3_retries_total",
                "Requests to S3 made again after a failure that may pass.",
            ),
            s3_received_bytes: counter(
                "s3view_s3_received_bytes_total",
                "Bytes of object content received from S3.",
            ),
            store_bytes: gauges(
                "s3view_store_bytes",
                "Bytes held or reserved in a store medium.",
                &["medium"],
            ),
            store_capacity_bytes: gauges(
                "s3view_store_capacity_bytes",
                "Configured size of a store medium in bytes.",
                &["medium"],
            ),
            store_blobs: gauges("s3view_store_blobs", "Blobs in a store medium.", &["medium"]),
            store_lookups: counters(
                "s3view_store_lookups_total",
                "Lookups of blobs in a store medium, by outcome: hit or miss.",
                &["medium", "outcome"],
            ),
            store_evictions: counters(
                "s3view_store_evictions_total",
                "Blobs evicted from a store medium.",
                &["medium"],
            ),
            volumes: gauges("s3view_volumes", "Published volumes, by view.", &["view"]),
            stale_volumes: gauges(
                "s3view_stale_volumes",
                "Published volumes whose last refresh failed, by view.",
                &["view"],
            ),
            refreshes: counters(
                "s3view_refreshes_total",
                "Refreshes of volumes, by outcome: changed, unchanged or failed.",
                &["outcome"],
            ),
            skipped_keys: counter(
                "s3view_skipped_keys_total",
                "Keys that could not become paths, counted once for each revision.",
            ),
            fuse_read_failures: counters(
                "s3view_fuse_read_failures_total",
                "Reads of fuse views that failed, by failure kind.",
                &["kind"],
            ),
            config_reloads: counters(
                "s3view_config_reloads_total",
                "Changes of the configuration file, by outcome: applied or refused.",
                &["outcome"],
            ),
            config_stale: gauges(
                "s3view_config_stale",
                "1 while the configuration file says what is not in force, by reason.",
                &["reason"],
            ),
            rpcs: counters(
                "s3view_rpcs_total",
                "CSI calls answered, by method and gRPC code.",
                &["method", "code"],
            ),
            rpc_seconds: seconds(
                "s3view_rpc_seconds",
                "Seconds until a CSI call was answered, by method.",
                &["method"],
            ),
            registry,
        }
    }

    /// The Prometheus text format (version 0.0.4).
    ///
    /// # Panics
    /// Never: writing to memory does not fail.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory does not fail");
        text
    }
}

fn register<M: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: M) -> M {
    registry.register(Box::new(metric.clone())).expect("each metric is registered once");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document's table has a row for each metric, with its type and help text.
    #[test]
    fn the_document_lists_every_metric() {
        let document = include_str!("../../docs/METRICS.md");
        let metrics = Metrics::new();
        metrics.s3_requests.with_label_values(&["GetObject"]).inc();
        metrics.s3_errors.with_label_values(&["GetObject", "stale"]).inc();
        for gauge in [&metrics.store_bytes, &metrics.store_capacity_bytes, &metrics.store_blobs] {
            gauge.with_label_values(&["memory"]).set(1);
        }
        metrics.store_lookups.with_label_values(&["memory", "hit"]).inc();
        metrics.store_evictions.with_label_values(&["memory"]).inc();
        metrics.volumes.with_label_values(&["tmpfs"]).set(1);
        metrics.stale_volumes.with_label_values(&["tmpfs"]).set(1);
        metrics.refreshes.with_label_values(&["changed"]).inc();
        metrics.fuse_read_failures.with_label_values(&["unavailable"]).inc();
        metrics.config_reloads.with_label_values(&["applied"]).inc();
        metrics.config_stale.with_label_values(&["refused"]).set(1);
        metrics.rpcs.with_label_values(&["Probe", "Ok"]).inc();
        metrics.rpc_seconds.with_label_values(&["Probe"]).observe(0.1);
        let families = metrics.registry.gather();
        assert_eq!(families.len(), 18);
        for family in families {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let row = format!("| `{}` | {kind} | {} |", family.name(), family.help());
            assert!(document.contains(&row), "docs/METRICS.md lacks the row {row}");
        }
    }
}
