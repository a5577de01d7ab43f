//! A clock that jumps: volumes stay and go on following S3, others are published, without a restart.
//!
//! The plugin's clock, and nobody else's, is moved by libfaketime, which answers `clock_gettime(2)` in
//! its place. MinIO's clock stays, and it refuses requests that are more than a quarter of an hour off.

use std::path::{Path, PathBuf};

use crate::{
    fixture::{Fixture, tree},
    refresh::eventually,
};

/// Where Debian has it, for each architecture.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// The difference between the plugin's clock and the machine's.
struct Clock(PathBuf);

impl Clock {
    fn jump(&self, by: &str) {
        // Replaced as a whole: it is read at every look at the clock.
        let anew = self.0.with_extension("new");
        std::fs::write(&anew, by).unwrap();
        std::fs::rename(anew, &self.0).unwrap();
    }
}

impl Fixture {
    /// Starts the plugin anew, with a clock that can jump; none where that cannot be had.
    async fn clock(&mut self) -> Option<Clock> {
        let library = LIBRARIES.iter().find(|path| Path::new(path).exists())?;
        let file = self.home.path().join("clock");
        let clock = Clock(file.clone());
        clock.jump("+0");
        self.home.set_env(&[
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ]);
        self.reconfigure("limits: { minRefresh: 50ms }\n").await;
        Some(clock)
    }
}

pub(crate) async fn a_clock_that_jumps_hurts_nothing(mut fixture: Fixture) {
    let Some(clock) = fixture.clock().await else {
        return eprintln!("SKIPPED: libfaketime is not here (apt-get install faketime)");
    };
    fixture.put_certificates().await;
    let pod = fixture.following("certs", "100ms");
    let target = fixture.publish(&pod).await;
    // The last two are within what S3 takes for the same time; then the clock is set right.
    for jump in ["+2h", "-2h", "-400d", "+4000d", "+10m", "-10m", "+0"] {
        clock.jump(jump);
        fixture.put("certs/keystore.jks", jump).await;
        // A request or two may be refused: by the answer the SDK learns by how much the clock is wrong.
        let is_shown = || (tree(&target)["keystore.jks"] == jump).then_some(());
        eventually("what was written while the clock was wrong", is_shown).await;
        fixture.publish(&pod).await;
        let other = fixture.pod("certs");
        assert_eq!(tree(&fixture.publish(&other).await), tree(&target), "{jump}");
        fixture.unpublish(&other).await;
    }
    assert!(fixture.home.log().contains("RequestTimeTooSkewed"), "the clock never jumped");
    let (told, abnormal) = fixture.condition(&pod).await;
    assert!(!abnormal, "{told}");
    fixture.unpublish(&pod).await;
    fixture.assert_nothing_left();
}
