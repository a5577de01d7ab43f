//! What no process can go on with, and what is left then.

use std::fs::{self, File};

use super::{
    eventually,
    server::{Opens, Server},
    whole, with_server, world,
};
use crate::{failure::FailureKind, view::fuse::handover::Handover};

/// Lets a process try with a changed file of the ledger, and puts the right one back.
fn refused(server: &mut Server, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let path = server.ledger().join(name);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    change(&mut bad);
    fs::write(&path, &bad).unwrap();
    let answer = server.try_resume();
    assert_eq!(fs::read(&path).unwrap(), bad, "a refused {name} stays as it is");
    fs::write(&path, &good).unwrap();
    answer
}

fn kind(answer: &str) -> &str {
    let mut words = answer.split(' ');
    assert_eq!(words.next(), Some("failed"), "{answer}");
    words.next().unwrap()
}

#[test]
fn what_is_damaged_or_unknown_changes_nothing_and_the_right_one_is_gone_on_with() {
    with_server(Opens::Passthrough, |mut server| {
        let files = ["whole/1", "dir/changed"].map(|path| File::open(server.at(path)).unwrap());
        assert_eq!(server.ask("show 1"), "ok");
        server.kill();
        let corrupt = FailureKind::Corrupt.as_str();
        for name in ["table", "opens"] {
            let flipped = |at: usize| move |bytes: &mut Vec<u8>| bytes[at] ^= 1;
            let newer = |bytes: &mut Vec<u8>| bytes[4] += 1;
            assert_eq!(kind(&refused(&mut server, name, newer)), "incompatible");
            for at in [0, 5, 40, 90] {
                assert_eq!(kind(&refused(&mut server, name, flipped(at))), corrupt, "{name} {at}");
            }
            assert_eq!(kind(&refused(&mut server, name, Vec::clear)), corrupt);
        }
        let shorter = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1);
        assert_eq!(kind(&refused(&mut server, "table", shorter)), corrupt);
        server.resume();
        for (file, (path, version)) in files.iter().zip([("whole/1", 0), ("dir/changed", 0)]) {
            assert!(whole(file) == world::file(path, version), "{path}");
            assert!(fs::read(server.at("whole/1")).unwrap() == world::file("whole/1", 0));
        }
        drop(files);
        eventually("all is closed", || server.ask("handles") == "0");
        server.close();
    });
}

#[test]
fn a_mount_that_does_not_fit_is_refused() {
    with_server(Opens::Cached, |mut server| {
        server.kill();
        let given = server.handover.clone();
        let mut handover = Handover::read(&hex::decode(&given).unwrap()).unwrap();
        handover.mount ^= 1;
        server.handover = hex::encode(handover.bytes());
        assert_eq!(kind(&server.try_resume()), FailureKind::Corrupt.as_str());
        server.handover = given;
        server.resume();
        server.close();
    });
}

#[test]
fn a_mount_that_is_gone_is_told_as_such() {
    with_server(Opens::Cached, |mut server| {
        server.kill();
        server.unmount();
        assert_eq!(kind(&server.try_resume()), FailureKind::NotFound.as_str());
    });
}
