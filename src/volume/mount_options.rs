//! Mount options (`mountOptions` of a `PersistentVolume` or StorageClass), which may say only
//! what holds of every volume anyway.
//!
//! Passing over an option would promise something that the mount does not keep. CSI treats options as
//! secrets, because other drivers take passwords there, so no message quotes one: an option is named
//! only if it is one of the words below, and by its number else.

use crate::problems::Problems;

/// What holds of every mount: nothing can be written through it, so access times stay as well.
const TRUE_ANYWAY: [&str; 5] = ["ro", "nosuid", "nodev", "noatime", "nodiratime"];

/// Options that people try, and what to write instead.
const REMEDIES: [(&[&str], &str); 9] = [
    (&["rw"], "leave it out: every volume is read-only"),
    (&["suid", "dev"], "leave it out: every mount is nosuid and nodev"),
    (&["noexec", "exec"], "leave it out; files can be executed if fileMode has an execute bit"),
    (
        &["context", "fscontext", "defcontext", "rootcontext"],
        "set seLinuxMount: false in the CSIDriver: volumes share files, whose label is one",
    ),
    (&["uid", "gid"], "write the volume attribute of that name"),
    (&["umask", "fmask", "dmask"], "write the volume attributes fileMode and dirMode"),
    (&["region", "prefix"], "write the volume attribute of that name"),
    (&["endpoint-url", "endpoint"], "write the volume attribute endpoint"),
    (
        &["allow-other", "allow_other", "allow-root", "read-only", "default_permissions"],
        "leave it out: who may read is said by uid, gid, fileMode and dirMode",
    ),
];

/// Checks the options of a volume, each of which may be several, separated by commas.
///
/// # Errors
/// Every option that does not hold of an s3view volume, without its value.
pub fn check_mount_options(flags: &[String]) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let options = flags.iter().flat_map(|flag| flag.split(',')).map(str::trim);
    for (index, option) in options.enumerate() {
        if option.is_empty() || TRUE_ANYWAY.contains(&option) {
            continue;
        }
        let word = option.split(['=', ' ']).next().unwrap_or_default().trim_start_matches("--");
        let known = REMEDIES.iter().find_map(|(words, remedy)| {
            words.iter().find(|it| it.eq_ignore_ascii_case(word)).map(|word| (*word, *remedy))
        });
        let text = match known {
            Some((word, remedy)) => format!("{word:?} is not offered; {remedy}"),
            None => format!(
                "option {} (not shown) is not offered; only {} are allowed, and hold anyway",
                index + 1,
                TRUE_ANYWAY.join(", ")
            ),
        };
        problems.add("mountOptions", text);
    }
    problems.into_result(())
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn check(flags: &[&str]) -> Result<(), String> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        check_mount_options(&flags).map_err(|problems| problems.to_string())
    }

    #[test_case(&[]; "none")]
    #[test_case(&["ro", "nosuid", "nodev"]; "as every mount is")]
    #[test_case(&["ro,noatime", ""]; "several in one")]
    fn what_holds_anyway_may_be_said(flags: &[&str]) {
        assert_eq!(check(flags), Ok(()));
    }

    #[test_case("rw", "\"rw\"", "read-only"; "writing")]
    #[test_case("uid=185", "\"uid\"", "attribute"; "an attribute")]
    #[test_case("region us-east-1", "\"region\"", "attribute"; "as another driver has it")]
    #[test_case("--allow-other", "\"allow-other\"", "fileMode"; "with dashes")]
    #[test_case("context=\"system_u:object_r:a:s0:c1,c2\"", "\"context\"", "seLinuxMount"; "a label")]
    #[test_case("hunter2", "option 1 (not shown)", "nosuid"; "who knows what")]
    fn what_does_not_hold_is_refused(flag: &str, names: &str, remedy: &str) {
        let text = check(&[flag]).unwrap_err();
        assert!(text.contains(names) && text.contains(remedy), "{text}");
    }

    #[test]
    fn no_value_is_quoted() {
        let text = check(&["ro", "passwd=hunter2", "uid=hunter2", "hunter2"]).unwrap_err();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("option 2 ") && text.contains("option 4 "), "{text}");
    }
}
