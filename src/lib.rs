//! s3view: S3 prefixes as read-only volumes in Kubernetes pods.
//!
//! The layers, from the edge inward; an import goes down only (`tests/layering.rs` holds it so):
//!
//! ```text
//! bin, app      parse, compose, run, shut down
//! csi           the gRPC edge
//! node, controller
//!               the volumes of this node: publish, unpublish, restart; what a claim becomes
//! view, fetch   how a listing is shown; from sources to blobs
//! store, mount, source::s3, keeper, cluster
//!               the cache, the kernel, the network, what outlives the plugin, Kubernetes
//! source, telemetry, task, socket
//!               who asks; what operators see; who owns a task; who may connect
//! volume, config, listing, relpath, glob, object, certificate, units, problems, failure, packed
//!               plain data and pure decisions
//! allocator     the program's memory
//! ```
//!
//! The words: a *source* is a bucket and prefix at an *endpoint*; it resolves to a *listing* of
//! entries, each a path and an *object version*; a listing made visible in a volume is a
//! *revision*; content is kept as *blobs* in a *store* and handed out to a *principal* whom S3 let
//! read it; a *view* is what the pod sees.

#[expect(unsafe_code, reason = "an allocator is nothing else")]
pub mod allocator;
pub mod app;
pub mod certificate;
pub mod cluster;
pub mod config;
pub mod controller;
pub mod csi;
pub mod failure;
pub mod fetch;
pub mod glob;
pub mod keeper;
pub mod listing;
pub mod mount;
pub mod node;
pub mod object;
pub mod packed;
pub mod problems;
pub mod relpath;
pub mod socket;
pub mod source;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod units;
pub mod view;
pub mod volume;
