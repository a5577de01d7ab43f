use std::os::unix::fs::{PermissionsExt, symlink};

use test_case::test_case;

use super::*;
use crate::failure::FailureKind;
use crate::mount::scratch::{in_private_namespace, mount_fuse, mount_tmpfs};

/// A kubelet directory `real`, configured by the symlink `kubelet`, with one pod.
struct Fixture {
    kubelet: KubeletDir,
    dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Fixture {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().canonicalize().unwrap();
        Self { _temporary: Some(temporary), ..Self::within(&dir) }
    }

    fn within(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("real/pods/uid/volumes")).unwrap();
        symlink("real", dir.join("kubelet")).unwrap();
        let kubelet = KubeletDir::open(&dir.join("kubelet")).unwrap();
        Self { kubelet, dir: dir.to_owned(), _temporary: None }
    }

    /// `below` a path below the pod's directory.
    fn path(&self, below: &str) -> TargetPath {
        let value = self.pod(below);
        TargetPath::parse(value.to_str().unwrap(), &self.kubelet).unwrap()
    }

    fn pod(&self, below: &str) -> PathBuf {
        self.dir.join("real/pods/uid").join(below)
    }
}

#[test_case("DIR/kubelet/pods/a/mount"; "below the directory as configured")]
#[test_case("DIR/real/pods/a/mount"; "below the directory as resolved")]
#[test_case("DIR/real/pods/a/mount/"; "with a trailing slash")]
fn every_spelling_of_a_target_is_one_value(value: &str) {
    let fixture = Fixture::new();
    let value = value.replace("DIR", fixture.dir.to_str().unwrap());
    let path = TargetPath::parse(&value, &fixture.kubelet).unwrap();
    assert_eq!(path.as_path().as_os_str(), fixture.dir.join("real/pods/a/mount").as_os_str());
    assert_eq!(path.below.as_os_str(), "pods/a/mount");
}

#[test_case("", "must be absolute")]
#[test_case("pods/a/mount", "must be absolute")]
#[test_case("DIR/real/pods/../../etc", "segments")]
#[test_case("DIR/real/pods/./a", "segments")]
#[test_case("DIR/real//pods/a", "segments")]
#[test_case("DIR/real/pods/a//", "segments"; "two trailing slashes")]
#[test_case("DIR/real/pods/a\0b", "segments")]
#[test_case("/", "segments")]
#[test_case("DIR/real", "must lie below")]
#[test_case("DIR/kubelet/", "must lie below"; "the directory itself")]
#[test_case("DIR/reality/pods/a", "must lie below"; "a sibling with the same beginning")]
#[test_case("/etc/passwd", "must lie below")]
fn a_path_outside_of_the_rules_is_refused_by_name(value: &str, rule: &str) {
    let fixture = Fixture::new();
    let value = value.replace("DIR", fixture.dir.to_str().unwrap());
    let error = TargetPath::parse(&value, &fixture.kubelet).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Invalid);
    let text = error.to_string();
    assert!(text.starts_with(&format!("target_path {value:?}")) && text.contains(rule), "{text}");
}

#[test]
fn a_target_is_made_where_its_parent_exists() {
    let fixture = Fixture::new();
    let path = fixture.path("volumes/mount");
    for _ in 0..2 {
        fixture.kubelet.create_target(&path).unwrap();
        let mode = fs::metadata(path.as_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o027, 0, "{mode:o} must give nothing to others");
    }
}

#[test]
fn a_target_directly_below_the_kubelet_directory_is_reached() {
    let fixture = Fixture::new();
    let value = fixture.dir.join("real/mount");
    let path = TargetPath::parse(value.to_str().unwrap(), &fixture.kubelet).unwrap();
    fixture.kubelet.create_target(&path).unwrap();
    assert!(value.is_dir());
}

#[test]
fn a_missing_parent_is_named_and_not_made() {
    let fixture = Fixture::new();
    let path = fixture.path("missing/mount");
    let error = fixture.kubelet.create_target(&path).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Precondition);
    let parent = format!("{:?} does not exist", fixture.pod("missing"));
    assert!(error.to_string().contains(&parent), "{error}");
    assert!(fixture.kubelet.existing_target(&path).unwrap().is_none());
}

#[test]
fn a_symlink_on_the_way_is_refused_even_if_it_stays_inside() {
    let fixture = Fixture::new();
    symlink("volumes", fixture.pod("link")).unwrap();
    let path = fixture.path("link/mount");
    for error in [
        fixture.kubelet.create_target(&path).unwrap_err(),
        fixture.kubelet.existing_target(&path).unwrap_err(),
    ] {
        assert_eq!(error.kind(), FailureKind::Invalid);
        assert!(error.to_string().contains("symlink"), "{error}");
    }
    assert!(!fixture.pod("volumes/mount").exists());
}

#[test]
fn a_file_or_symlink_at_the_target_is_refused_and_left_alone() {
    let fixture = Fixture::new();
    fs::write(fixture.pod("file"), "content").unwrap();
    symlink("volumes", fixture.pod("link")).unwrap();
    for name in ["file", "link"] {
        let path = fixture.path(name);
        let error = fixture.kubelet.create_target(&path).unwrap_err();
        assert_eq!(error.kind(), FailureKind::Invalid, "{error}");
        let target = fixture.kubelet.existing_target(&path).unwrap().unwrap();
        assert_eq!(target.unmount_all().unwrap(), 0);
        assert_eq!(target.remove().unwrap_err().kind(), FailureKind::Invalid);
        assert!(path.as_path().symlink_metadata().is_ok());
    }
}

#[test]
fn a_directory_that_is_not_empty_is_kept_and_its_content_named() {
    let fixture = Fixture::new();
    let path = fixture.path("volumes/mount");
    let target = fixture.kubelet.create_target(&path).unwrap();
    fs::write(path.as_path().join("keystore"), "content").unwrap();
    let error = target.remove().unwrap_err();
    assert!(error.to_string().contains("holds \"keystore\";"), "{error}");
    fs::remove_file(path.as_path().join("keystore")).unwrap();
    target.remove().unwrap();
    target.remove().unwrap();
    assert!(fixture.kubelet.existing_target(&path).unwrap().is_none());
}

#[test]
fn a_missing_kubelet_directory_is_named() {
    let error = KubeletDir::open(Path::new("/nonexistent/kubelet")).unwrap_err();
    assert_eq!(error.kind(), FailureKind::NotFound);
    assert!(error.to_string().contains("kubelet directory \"/nonexistent/kubelet\""), "{error}");
}

#[test]
fn a_target_is_published_and_unpublished() {
    in_private_namespace(|dir| {
        let fixture = Fixture::within(dir);
        let source = dir.join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "content").unwrap();
        let path = fixture.path("volumes/mount");

        let target = fixture.kubelet.create_target(&path).unwrap();
        assert!(!target.is_mounted().unwrap());
        target.bind_read_only(&source).unwrap();
        assert!(target.is_mounted().unwrap());
        assert_eq!(fs::read_to_string(path.as_path().join("file")).unwrap(), "content");
        assert!(target.remove().unwrap_err().to_string().contains("still mounted"));

        // Another handle, as after a restart: it sees the mount, whose root is not the directory.
        fixture.kubelet.create_target(&path).unwrap();
        let target = fixture.kubelet.existing_target(&path).unwrap().unwrap();
        target.bind_read_only(&source).unwrap();
        assert_eq!(target.unmount_all().unwrap(), 2);
        assert_eq!(target.unmount_all().unwrap(), 0);
        target.remove().unwrap();
        assert!(!path.as_path().exists());
        assert!(source.join("file").exists());
    });
}

#[test_case(false; "hanging")]
#[test_case(true; "dead")]
fn a_target_whose_fuse_server_is_gone_can_be_covered_and_unpublished(dead: bool) {
    in_private_namespace(|dir| {
        let fixture = Fixture::within(dir);
        let path = fixture.path("volumes/mount");
        fixture.kubelet.create_target(&path).unwrap();
        let Some(server) = mount_fuse(path.as_path()) else { return };
        let server = (!dead).then_some(server);

        let target = fixture.kubelet.create_target(&path).unwrap();
        assert!(target.is_mounted().unwrap());
        target.bind_read_only(&fixture.pod("volumes")).unwrap();
        let target = fixture.kubelet.existing_target(&path).unwrap().unwrap();
        assert_eq!(target.unmount_all().unwrap(), 2);
        target.remove().unwrap();
        drop(server);
    });
}

#[test]
fn a_parent_that_is_swapped_for_a_symlink_does_not_divert_the_mount() {
    in_private_namespace(|dir| {
        let fixture = Fixture::within(dir);
        let elsewhere = dir.join("elsewhere/mount");
        fs::create_dir_all(&elsewhere).unwrap();
        let target = fixture.kubelet.create_target(&fixture.path("volumes/mount")).unwrap();
        fs::rename(fixture.pod("volumes"), fixture.pod("moved")).unwrap();
        symlink(dir.join("elsewhere"), fixture.pod("volumes")).unwrap();
        target.bind_read_only(dir).unwrap();
        assert!(!point::is_mount_point(&elsewhere).unwrap());
        assert!(point::is_mount_point(&fixture.pod("moved/mount")).unwrap());
        assert_eq!(target.unmount_all().unwrap(), 1);
    });
}

#[test]
fn mounts_between_the_kubelet_directory_and_the_target_are_crossed() {
    in_private_namespace(|dir| {
        let fixture = Fixture::within(dir);
        mount_tmpfs(&fixture.pod(""));
        fs::create_dir(fixture.pod("volumes")).unwrap();
        fixture.kubelet.create_target(&fixture.path("volumes/mount")).unwrap();
        assert!(fixture.pod("volumes/mount").is_dir());
    });
}
