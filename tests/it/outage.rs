//! Pods that start from what was read before, while S3 does not answer.

use nix::mount::{MntFlags, umount2};
use tonic::Code;

use crate::{
    fixture::{Fixture, tree},
    refresh::eventually,
    support::s3::{Action, Fault, FaultId},
};

pub(crate) async fn what_was_read_before_starts_a_pod(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "limits: { minRefresh: 50ms }\n");
    fixture.home.configure(&config.replace("retries: 3", "retries: 1"));
    fixture.restart().await;
    fixture.put_certificates().await;
    for (view, restart) in [("tmpfs", false), ("tmpfs", true), ("disk", true)] {
        let cached = || {
            let pod = fixture.following("certs", "300ms").with("view", view);
            pod.with("whenUnavailable", "cached")
        };
        fixture.put("certs/keystore.jks", "keystore").await;
        let first = cached();
        let expected = tree(&fixture.publish(&first).await);
        fixture.unpublish(&first).await;
        let down: FaultId = fixture.embedded().faults().add(Fault::new(Action::INTERNAL_ERROR));
        let (pod, other) = (cached(), cached());
        if restart {
            fixture.restart().await;
        }
        let target = fixture.publish(&pod).await;
        assert_eq!(tree(&target), expected, "{view}");
        let (message, _) = fixture.condition(&pod).await;
        assert!(message.contains("the last success was"), "{message}");
        // Who was not allowed before gets nothing, and neither does who does not ask for it.
        let stranger = other
            .clone()
            .with_secrets(&[("accesskey", "minio"), ("secretkey", "not-that-of-minio")]);
        let status = fixture.refused(&stranger, Code::Unavailable).await;
        assert!(status.message().contains("nothing that this credential"), "{status:?}");
        let plain = fixture.following("certs", "300ms").with("view", view);
        fixture.refused(&plain, Code::Unavailable).await;
        // What S3 refuses is no outage.
        fixture.embedded().faults().remove(down);
        let denied = fixture.embedded().faults().add(Fault::new(Action::ACCESS_DENIED));
        fixture.refused(&other, Code::PermissionDenied).await;
        fixture.embedded().faults().remove(denied);
        fixture.put("certs/keystore.jks", "healed").await;
        eventually("the present content", || {
            (tree(&target)["keystore.jks"] == "healed").then_some(())
        })
        .await;
        fixture.says_no_more(&pod, "failed").await;
        fixture.unpublish(&pod).await;
        fixture.assert_nothing_left();
    }
}

pub(crate) async fn what_was_read_before_survives_a_reboot_on_disk(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "").replace("retries: 3", "retries: 1");
    fixture.home.configure(&config);
    fixture.restart().await;
    fixture.put_certificates().await;
    let pod = fixture.pod("certs").with("view", "disk").with("whenUnavailable", "cached");
    let target = fixture.publish(&pod).await;
    let expected = tree(&target);
    if let Some(plugin) = fixture.plugin.take() {
        plugin.kill();
    }
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    umount2(&fixture.home.state_dir().join("memory"), MntFlags::MNT_DETACH).unwrap();
    fixture.embedded().set_down(true);
    fixture.restart().await;
    fixture.assert_nothing_left();
    assert_eq!(tree(&fixture.publish(&pod).await), expected);
    // A blob that rotted is not shown: S3 would have to be asked.
    fixture.unpublish(&pod).await;
    if let Some(plugin) = fixture.plugin.take() {
        plugin.kill();
    }
    let blobs = std::fs::read_dir(fixture.home.path().join("disk/v1/blobs")).unwrap();
    for blob in blobs {
        let path = blob.unwrap().path();
        let rotten = vec![b'x'; usize::try_from(path.metadata().unwrap().len()).unwrap()];
        let fresh = path.with_extension("fresh");
        std::fs::write(&fresh, rotten).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
    }
    fixture.restart().await;
    let status = fixture.refused(&pod, Code::Unavailable).await;
    assert!(status.message().contains("is not here"), "{status:?}");
}
