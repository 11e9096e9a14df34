//! Every file in `testdata/` is what its manifest says, and does what it says.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::collections::BTreeSet;

use goldsmith::format_named;
use goldsmith_block::Match;
use goldsmith_testkit::hostile::{Outcome, probe, survives};
use goldsmith_testkit::testdata::{Entry, Expect, folder, manifest, sha256};
use goldsmith_testkit::{fuzz, qemu};

#[test]
fn valid_files_read_as_the_disk_they_hold() {
    for (entry, size, digest, qemu_agrees) in valid() {
        let path = &entry.path;
        let format = format_named(&entry.format).unwrap();
        let bytes = entry.read();
        assert_ne!(probe(format, &bytes), Match::No, "{path}");
        let content = match survives(format, bytes.clone()) {
            Outcome::Content {
                virtual_size,
                bytes: Some(content),
            } => {
                assert_eq!(virtual_size, size, "{path}");
                content
            }
            outcome => panic!("{path}: {outcome:?}"),
        };
        assert_eq!(sha256(&content), digest, "{path}");
        let qemu = qemu::read(&entry.format, &bytes);
        assert_eq!(qemu == content, qemu_agrees, "{path}: what QEMU reads");
    }
}

#[test]
fn probe_tells_each_valid_file_from_the_other_formats() {
    for (entry, ..) in valid() {
        let bytes = entry.read();
        for format in goldsmith::FORMATS {
            let found = probe(*format, &bytes);
            let own = format.name() == entry.format;
            assert!(
                own || found < Match::Marked,
                "{} as {}",
                entry.path,
                format.name()
            );
        }
    }
}

#[test]
fn bad_files_are_refused_for_the_right_reason() {
    for entry in manifest() {
        let Expect::Bad { error } = &entry.expect else {
            continue;
        };
        let format = format_named(&entry.format).unwrap();
        match survives(format, entry.read()) {
            Outcome::Refused(found) => {
                assert_eq!(
                    format!("{:?}", found.kind()),
                    *error,
                    "{}: {found:?}",
                    entry.path
                );
                assert!(found.report().len() > 20, "{}: {found:?}", entry.path);
            }
            Outcome::Content { .. } => panic!("{} is read, though {}", entry.path, entry.because),
        }
    }
}

#[test]
fn old_findings_get_an_answer() {
    for entry in manifest() {
        if matches!(entry.expect, Expect::Regression) {
            let format = format_named(&entry.format).unwrap();
            let bytes = entry.read();
            fuzz::open_read(format, &bytes);
            survives(format, bytes);
        }
    }
}

#[test]
fn manifest_lists_every_file_once() {
    let mut listed = BTreeSet::new();
    for entry in manifest() {
        assert!(
            !entry.made_by.is_empty() && !entry.because.is_empty(),
            "{}",
            entry.path
        );
        assert!(
            listed.insert(entry.path.clone()),
            "{} is listed twice",
            entry.path
        );
    }
    for group in ["valid", "bad", "regression"] {
        let Ok(files) = folder().join(group).read_dir() else {
            continue;
        };
        for file in files {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(
                listed.contains(&format!("{group}/{name}")),
                "{group}/{name} is not listed"
            );
        }
    }
}

fn valid() -> impl Iterator<Item = (Entry, u64, String, bool)> {
    manifest()
        .into_iter()
        .filter_map(|entry| match entry.expect.clone() {
            Expect::Valid {
                virtual_size,
                content_sha256,
                qemu_agrees,
            } => Some((entry, virtual_size, content_sha256, qemu_agrees)),
            _ => None,
        })
}
