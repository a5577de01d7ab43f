//! A pod that reads its keystore all the time, as a JVM does that watches it.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow, bail};

use crate::{KEYSTORE, ROTATED};

/// The reader; it reads until it is told to end.
pub(crate) struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Reader {
    /// Starts to read the keystore at a target path.
    pub(crate) fn start(target: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (target.join("keystore.jks"), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut reads = 0;
            while !stopped.load(Ordering::Relaxed) {
                let content = std::fs::read(&path)?;
                if content != KEYSTORE && content != ROTATED {
                    bail!("expected the old keystore or the new one, read {} bytes", content.len());
                }
                reads += 1;
            }
            Ok(reads)
        });
        Self { stop, thread }
    }

    /// Ends it; how often it has read.
    ///
    /// # Errors
    /// A read that failed, or that gave anything but one of the two files.
    pub(crate) fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the reader panicked"))?
    }
}
