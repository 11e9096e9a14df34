//! What each cloud wants: images made for it break no rule, and each rule is broken by some image.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::collections::BTreeSet;

use goldsmith::{
    CLOUDS, Cloud, Convert, ErrorKind, ImageInfo, Must, Opener, cloud_named, lint, lint_info,
};
use goldsmith_testkit::build::qcow2::Qcow2;
use goldsmith_testkit::build::vhd::{Vhd, footer, header};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use support::Folder;

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

fn convert(folder: &Folder, from: &str, to: &str, cloud: &'static Cloud) -> Vec<String> {
    let convert = Convert::new(folder.path(from), folder.path(to)).source_format("raw");
    convert.cloud(cloud).run().unwrap().warnings
}

#[test]
fn what_is_made_for_a_cloud_breaks_none_of_its_rules() {
    let folder = Folder::new();
    // What begins as a text Glance may take for that of a VMDK.
    for picture in ["1M:b 30M:- 1M:A", "1M:b 512:A", "1000:b 1:A", "24M:- 1:b"] {
        let content = disk(picture);
        folder.write("golden.raw", &content);
        for cloud in CLOUDS {
            let warnings = convert(&folder, "golden.raw", "made", cloud);
            let path = folder.path("made");
            let findings = lint(&Opener::new(), &path, Some(cloud.format), cloud).unwrap();
            assert!(
                findings.is_empty(),
                "{picture} {}: {findings:?}",
                cloud.name
            );
            let mut bytes = support::guest(&path, cloud.format);
            let grew = bytes.len() as u64 > content.len();
            assert_eq!(warnings.len(), usize::from(grew), "{warnings:?}");
            let rest = bytes.split_off(content.len() as usize);
            assert!(bytes == content.bytes() && rest.iter().all(|byte| *byte == 0));
            if grew {
                let text = format!(
                    "grew by {} zero bytes to {}",
                    rest.len(),
                    bytes.len() + rest.len()
                );
                assert!(warnings[0].contains(&text), "{warnings:?}");
            }
        }
    }
}

/// Azure's upload tools want the file to be N MiB and 512 bytes.
#[test]
fn image_for_azure_has_the_length_that_azure_asks_for() {
    let folder = Folder::new();
    for (picture, virtual_size) in [
        ("512:A", 20 * MIB),
        ("20M:A", 20 * MIB),
        ("20M:A 512:b", 21 * MIB),
        ("33M:-", 33 * MIB),
    ] {
        folder.write("golden.raw", &disk(picture));
        convert(
            &folder,
            "golden.raw",
            "azure.vhd",
            cloud_named("azure").unwrap(),
        );
        let bytes = std::fs::read(folder.path("azure.vhd")).unwrap();
        assert_eq!(bytes.len() as u64, virtual_size + 512, "{picture}");
        let footer = &bytes[virtual_size as usize..];
        assert_eq!(footer[..8], *b"conectix");
        assert_eq!(footer[48..56], virtual_size.to_be_bytes());
        assert_eq!(footer[60..64], [0, 0, 0, 2]);
        assert_eq!(qemu::read("vpc", &bytes).len() as u64, virtual_size);
    }
}

/// The size that qemu-img gives a VHD of 10 GiB, which Azure refuses ("must be a multiple of MiB").
#[test]
fn image_of_qemu_is_told_to_be_refused_by_azure_for_its_size() {
    let folder = Folder::new();
    let path = folder.text("10G.vhd");
    qemu::img_ok(&[
        "create",
        "-q",
        "-f",
        "vpc",
        "-o",
        "subformat=fixed",
        &path,
        "10G",
    ]);
    let azure = cloud_named("azure").unwrap();
    let findings = lint(&Opener::new(), &path, Some("vpc"), azure).unwrap();
    let [only] = &findings[..] else {
        panic!("{findings:?}");
    };
    assert_eq!(
        (only.rule.fact, &*only.found),
        ("virtual-size", "10737893376")
    );
    assert_eq!(only.wanted, "a multiple of 1048576");
}

/// And what it makes with `force_size`, which vhd-util check refuses: "geometry too large".
#[test]
fn image_of_qemu_with_force_size_is_told_to_be_refused_by_xenserver_for_its_geometry() {
    let folder = Folder::new();
    let path = folder.text("1G.vhd");
    qemu::img_ok(&[
        "create",
        "-q",
        "-f",
        "vpc",
        "-o",
        "force_size=on",
        &path,
        "1G",
    ]);
    let xenserver = cloud_named("xenserver").unwrap();
    let findings = lint(&Opener::new(), &path, Some("vpc"), xenserver).unwrap();
    let facts: Vec<_> = findings.iter().map(|finding| finding.rule.fact).collect();
    assert_eq!(facts, ["geometry-too-large"]);
}

/// An image that breaks rules, and which: the facts in the order of the table.
type Case = (
    &'static str,
    &'static str,
    Vec<u8>,
    fn(&mut ImageInfo),
    &'static [&'static str],
);

fn cases() -> Vec<Case> {
    const NOTHING: fn(&mut ImageInfo) = |_| ();
    let blank = |mib: u64| disk(&format!("{mib}M:-"));
    let fixed = |mib| Vhd::fixed(blank(mib).bytes());
    let dynamic = |mib| Vhd::dynamic(blank(mib).bytes(), 2 << 20);
    let now = [0x33; 4];
    let vhd = |image: Vhd| image.bytes();
    vec![
        ("azure", "vpc", vhd(fixed(20)), NOTHING, &[]),
        (
            "azure",
            "raw",
            disk("20M:A").bytes().to_vec(),
            NOTHING,
            &["format"],
        ),
        ("azure", "vpc", vhd(dynamic(20)), NOTHING, &["subformat"]),
        (
            "azure",
            "vpc",
            Vhd::fixed(disk("20M:- 512:A").bytes()).bytes(),
            NOTHING,
            &["virtual-size"],
        ),
        ("azure", "vpc", vhd(fixed(19)), NOTHING, &["virtual-size"]),
        (
            "azure",
            "vpc",
            vhd(fixed(20)),
            |info| info.layer.virtual_size = 33 * TIB,
            &["virtual-size", "virtual-size"],
        ),
        (
            "azure",
            "vpc",
            vhd(fixed(20).footer_len(511)),
            NOTHING,
            &["bytes-behind-disk"],
        ),
        (
            "azure",
            "vpc",
            vhd(fixed(21).footer(footer::CURRENT_SIZE, &(20 * MIB).to_be_bytes())),
            NOTHING,
            &["bytes-behind-disk"],
        ),
        // 20 MiB by the geometry of Virtual PC, and 21 MiB.
        (
            "azure",
            "vpc",
            vhd(fixed(21)
                .footer(footer::CREATOR, b"vpc ")
                .footer(footer::CHS, &[0, 64, 10, 64])),
            NOTHING,
            &["bytes-behind-disk", "virtual-size"],
        ),
        (
            "azure",
            "vpc",
            vhd(fixed(20).footer(0, b"v_poison")),
            NOTHING,
            &["poisoned", "damage"],
        ),
        (
            "azure",
            "vpc",
            vhd(fixed(20).footer(footer::SAVED_STATE, &[1])),
            NOTHING,
            &["saved-state"],
        ),
        (
            "azure",
            "vpc",
            vhd(dynamic(20).child_of([1; 16], 0, "base.vhd", &[])),
            NOTHING,
            &["subformat", "backing"],
        ),
        ("xenserver", "vpc", vhd(dynamic(20)), NOTHING, &[]),
        (
            "xenserver",
            "qcow2",
            Qcow2::holding(3, 16, blank(20).bytes()).bytes(),
            NOTHING,
            &["format"],
        ),
        ("xenserver", "vpc", vhd(fixed(20)), NOTHING, &["subformat"]),
        (
            "xenserver",
            "vpc",
            Vhd::dynamic(blank(20).bytes(), 512 << 10).bytes(),
            NOTHING,
            &["block-size"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(21)),
            NOTHING,
            &["virtual-size"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20)),
            |info| info.layer.virtual_size = 3 * TIB,
            &["virtual-size", "virtual-size"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).footer(footer::CHS, &[0xff, 0xff, 16, 255])),
            NOTHING,
            &["geometry-too-large"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).footer(footer::FEATURES, &[0, 0, 0, 0])),
            NOTHING,
            &["reserved-features"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).footer(footer::FEATURES, &[0, 0, 0, 6])),
            NOTHING,
            &["reserved-features"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).footer(511, &[1])),
            NOTHING,
            &["reserved-bytes"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20)
                .footer(footer::CREATOR, b"tap ")
                .footer(footer::CREATOR_VERSION, &[0, 1, 0, 4])),
            NOTHING,
            &["newer-tapdisk"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).footer(footer::VERSION, &[0, 1, 0, 1])),
            NOTHING,
            &["newer-version"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).header(header::VERSION, &[0, 1, 0, 1])),
            NOTHING,
            &["header-newer-version"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).header(8, &[0; 8])),
            NOTHING,
            &["header-data-offset"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).header(60, &[1])),
            NOTHING,
            &["header-reserved-bytes"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).header(1023, &[1])),
            NOTHING,
            &["header-reserved-bytes"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).header(header::PARENT_UUID, &[1])),
            NOTHING,
            &["leftover-parent"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).header(header::PARENT_TIMESTAMP, &[1])),
            NOTHING,
            &["leftover-parent"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).header(header::PARENT_NAME, &[0, b'p'])),
            NOTHING,
            &["leftover-parent"],
        ),
        // 2027.
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).footer(24, &now)),
            NOTHING,
            &["timestamp"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).footer(85, &[1])),
            NOTHING,
            &["hidden"],
        ),
        (
            "xenserver",
            "vpc",
            // 20 MiB by a geometry of one cylinder.
            vhd(dynamic(22)
                .footer(footer::CREATOR, b"vpc ")
                .footer(footer::CHS, &[0, 64, 10, 64])),
            NOTHING,
            &["virtual-size"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).footer(0, b"v_poison")),
            NOTHING,
            &["poisoned", "damage"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).footer(footer::SAVED_STATE, &[1])),
            NOTHING,
            &["saved-state"],
        ),
        (
            "xenserver",
            "vpc",
            vhd(dynamic(20).footer(footer::UUID, &[0; 16])),
            NOTHING,
            &["null-uuid"],
        ),
        (
            "xenserver-ovf",
            "vpc",
            vhd(dynamic(20)),
            NOTHING,
            &["format"],
        ),
        (
            "xenserver-ovf",
            "vpc",
            vhd(fixed(20)),
            NOTHING,
            &["format", "subformat"],
        ),
        ("hyperv", "vpc", vhd(dynamic(20)), NOTHING, &[]),
        ("hyperv", "vpc", vhd(fixed(20)), NOTHING, &[]),
        (
            "hyperv",
            "raw",
            disk("20M:A").bytes().to_vec(),
            NOTHING,
            &["format"],
        ),
        (
            "hyperv",
            "vpc",
            Vhd::dynamic(blank(20).bytes(), 1 << 20).bytes(),
            NOTHING,
            &["block-size"],
        ),
        ("hyperv", "vpc", vhd(dynamic(2)), NOTHING, &["virtual-size"]),
        (
            "hyperv",
            "vpc",
            vhd(fixed(20)),
            |info| info.layer.virtual_size = 3 * TIB,
            &["virtual-size", "virtual-size"],
        ),
        (
            "hyperv",
            "vpc",
            Vhd::fixed(disk("4M:A 1:b").bytes()).bytes(),
            NOTHING,
            &["virtual-size"],
        ),
        (
            "kvm",
            "qcow2",
            Qcow2::holding(3, 16, blank(20).bytes()).bytes(),
            NOTHING,
            &[],
        ),
        ("kvm", "raw", blank(20).bytes().to_vec(), NOTHING, &[]),
        ("kvm", "vpc", vhd(dynamic(20)), NOTHING, &["format"]),
        (
            "kvm",
            "raw",
            disk("1000:A 1:b").bytes().to_vec(),
            NOTHING,
            &["virtual-size"],
        ),
        (
            "kvm",
            "qcow2",
            Qcow2::holding(3, 16, blank(20).bytes()).bytes(),
            |info| info.layer.data_file = Some("elsewhere".into()),
            &["data-file"],
        ),
        (
            "kvm",
            "raw",
            blank(20).bytes().to_vec(),
            |info| info.layer.warnings.push("something is wrong".into()),
            &["damage"],
        ),
        (
            "openstack-raw",
            "raw",
            blank(20).bytes().to_vec(),
            NOTHING,
            &[],
        ),
        ("openstack-raw", "vpc", vhd(fixed(20)), NOTHING, &["format"]),
        (
            "openstack-raw",
            "raw",
            vhd(dynamic(20)),
            NOTHING,
            &["looks-like"],
        ),
        (
            "openstack-raw",
            "raw",
            b"KDMV".repeat(128),
            NOTHING,
            &["looks-like"],
        ),
        (
            "openstack-raw",
            "raw",
            [&[0; 32_769][..], b"NSR02", &[0; 506]].concat(),
            NOTHING,
            &["looks-like"],
        ),
        (
            "openstack-raw",
            "raw",
            [&[0; 510][..], b"\x55\xaa"].concat(),
            NOTHING,
            &["partition-table"],
        ),
        (
            "openstack-raw",
            "raw",
            vec![1; 513],
            NOTHING,
            &["virtual-size"],
        ),
    ]
}

#[test]
fn each_rule_is_broken_by_an_image_and_told_of_no_other() {
    // 2026, as these tests have it.
    let today = 1_780_000_000;
    let folder = Folder::new();
    let path = folder.path("image");
    let mut broken = BTreeSet::new();
    for (number, (cloud, format, image, change, facts)) in cases().into_iter().enumerate() {
        std::fs::write(&path, image).unwrap();
        let mut info = ImageInfo::read(&Opener::new(), &path, Some(format)).unwrap();
        change(&mut info);
        let cloud = cloud_named(cloud).unwrap();
        let findings = lint_info(&info, cloud, today);
        let found: Vec<_> = findings.iter().map(|finding| finding.rule.fact).collect();
        // What stands behind the images here says nothing of the copy at their start.
        assert_eq!(
            found, facts,
            "case {number} for {}: {findings:?}",
            cloud.name
        );
        for finding in findings {
            broken.insert(format!("{:p}", finding.rule));
            assert_ne!(finding.found, finding.wanted);
        }
    }
    for cloud in CLOUDS {
        for rule in cloud.rules() {
            let broken = broken.contains(&format!("{rule:p}"));
            assert!(broken, "no image breaks {}'s rule {rule:?}", cloud.name);
        }
    }
}

#[test]
fn disk_that_a_cloud_cannot_hold_is_refused_before_anything_is_written() {
    let folder = Folder::new();
    let file = std::fs::File::create(folder.path("huge.raw")).unwrap();
    file.set_len(3 * TIB).unwrap();
    for name in ["xenserver", "hyperv"] {
        let target = folder.path("made");
        let error = Convert::new(folder.path("huge.raw"), &target)
            .source_format("raw")
            .cloud(cloud_named(name).unwrap())
            .run()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let report = error.report();
        assert!(report.contains("takes at most 2190433320960: "), "{report}");
        assert_eq!(folder.names(), ["huge.raw"]);
    }
    let azure = cloud_named("azure").unwrap();
    assert_eq!(azure.disk_size(3 * TIB + 1).unwrap(), 3 * TIB + MIB);
    assert!(azure.disk_size(32 * TIB + 1).is_err());
    assert!(azure.disk_size(u64::MAX).is_err());
}

#[test]
fn table_is_in_order() {
    assert!(
        cloud_named("mars")
            .unwrap_err()
            .report()
            .contains("there are: azure, xenserver")
    );
    for cloud in CLOUDS {
        assert_eq!(cloud_named(cloud.name).unwrap().name, cloud.name);
        for rule in cloud.rules() {
            assert!(
                !rule.reason.ends_with('.') && rule.reason.len() > 20,
                "{rule:?}"
            );
            if let Must::Be([]) | Must::Count([]) = rule.must {
                panic!("{rule:?} cannot be kept");
            }
        }
    }
}
