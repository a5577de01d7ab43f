//! The figures that s3view promises, each measured against the plain way of doing the same in the
//! same run: `cargo bench`, or `cargo bench -- NAME` for those whose name contains NAME.
//!
//! Everything is real but S3: the released `s3view-node` behind its CSI socket, real mounts, and an
//! S3 server in this process, over HTTP on the loopback interface. Absolute times say more about
//! the machine than about s3view, so every target is a ratio: what is compared takes turns (ours,
//! theirs, ours, theirs), with the same SDK, the same settings and warm connections, and medians
//! count. The server, the bare client and the plugin share the machine's cores.
//!
//! State and disk views are below `TMPDIR`. On ext4, files are made slowly for some minutes after
//! many were removed (new inodes avoid recently freed ones), so a second run soon after a first one
//! sees worse figures. Within a run, removing is left to the end of each figure.
//!
//! A missed target is reported, not failed: a busy machine is no defect. Errors are.

#[path = "../../tests/support/lib.rs"]
mod support;

mod aws;
mod bare;
mod fio;
mod fuse;
mod herd;
mod large;
mod measure;
mod memory;
mod node;
mod peers;
mod publish;
mod refresh;
mod report;
mod small;
mod tools;

use std::process::ExitCode;

use futures::future::BoxFuture;
use s3view::task::spawn_owned;

use self::support::namespace;

type Figure = (&'static str, fn() -> BoxFuture<'static, ()>);

const FIGURES: [Figure; 15] = [
    ("publish", || Box::pin(publish::run())),
    ("refresh", || Box::pin(refresh::run())),
    ("herd", || Box::pin(herd::run())),
    ("aws", || Box::pin(aws::run())),
    ("memory", || Box::pin(memory::run())),
    ("small", || Box::pin(small::run())),
    ("large", || Box::pin(large::run())),
    ("fuse-warm", || Box::pin(fuse::warm::run())),
    ("fuse-cold", || Box::pin(fuse::cold::run())),
    ("fuse-first", || Box::pin(fuse::first::run())),
    ("fuse-tree", || Box::pin(fuse::tree::run())),
    ("fuse-small", || Box::pin(fuse::small::run())),
    ("fuse-million", || Box::pin(fuse::million::run())),
    ("fuse-restart", || Box::pin(fuse::restart::run())),
    ("fuse-peers", || Box::pin(peers::table::run())),
];

fn main() -> ExitCode {
    if let Err(code) = namespace::enter() {
        return code;
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let filter = filter.unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("threads can be started");
    report::begin();
    for (name, run) in FIGURES {
        if name.contains(&filter) {
            // In a task: a future that block_on polls itself pays a thread switch for every event.
            runtime.block_on(async { spawn_owned(run()).await }).expect("no figure panics");
        }
    }
    ExitCode::SUCCESS
}
