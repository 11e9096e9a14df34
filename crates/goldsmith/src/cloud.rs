//! What each cloud wants of an image: one table, and nothing else knows a cloud by name.
//!
//! A rule is about a fact of the image, by the fact's name. It binds images that have the fact: a
//! block size, say, is no matter in a fixed VHD. [`lint`](crate::lint) tells the rules that an
//! image breaks, and [`Convert::cloud`](crate::Convert::cloud) makes images that break none, or fails.

use std::path::Path;

use goldsmith_block::{Error, Result, did_you_mean};

use crate::ovf;

/// A place where images run, and what it wants of them.
#[derive(Debug)]
#[non_exhaustive]
pub struct Cloud {
    /// What it is called on the command line.
    pub name: &'static str,
    /// One line of what `convert` makes for it.
    pub summary: &'static str,
    /// The format of images that are made for it.
    pub format: &'static str,
    /// The creation options of images that are made for it.
    pub options: &'static [(&'static str, &'static str)],
    /// What it refuses, in the order to tell it.
    pub rules: &'static [&'static [Rule]],
}

/// One thing that a cloud refuses.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rule {
    /// The fact that it is about.
    pub fact: &'static str,
    /// What the fact must be.
    pub must: Must,
    /// Why: a whole sentence without its stop.
    pub reason: &'static str,
    /// What to do about it, where converting the image anew does not help.
    pub mend: Option<&'static str>,
}

/// What a fact must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Must {
    /// One of these words.
    Be(&'static [&'static str]),
    /// One of these numbers.
    Count(&'static [u64]),
    /// A multiple of this number.
    MultipleOf(u64),
    /// This number or more.
    AtLeast(u64),
    /// This number or less.
    AtMost(u64),
    /// The same number as another fact.
    Equal(&'static str),
    /// True or false.
    Hold(bool),
    /// A moment that has come, give or take half an hour between clocks.
    HaveCome,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// The clouds there are.
pub static CLOUDS: &[Cloud] = &[
    Cloud {
        name: "azure",
        summary: "a fixed VHD of whole MiB",
        format: "vpc",
        options: &[("subformat", "fixed")],
        rules: &[
            &[
                must_be(
                    "format",
                    &["vpc"],
                    "Azure takes VHD alone, neither VHDX nor any other",
                ),
                must_be("subformat", &["fixed"], "Azure takes fixed VHDs alone"),
                rule(
                    "virtual-size",
                    Must::MultipleOf(MIB),
                    "Azure refuses disks that are no whole number of MiB",
                ),
                rule(
                    "virtual-size",
                    Must::AtLeast(20 * MIB),
                    "Azure's smallest upload is a disk of 20 MiB",
                ),
                too_large(32 * TIB, "Azure's largest upload is a disk of 32 TiB"),
                rule(
                    "bytes-behind-disk",
                    Must::Count(&[512]),
                    "Azure wants the footer of 512 bytes directly behind the disk, and page blobs \
                     of whole sectors",
                ),
            ],
            VHD,
            STANDALONE,
        ],
    },
    Cloud {
        name: "xenserver",
        summary: "a dynamic VHD of 2 MiB blocks with a batmap",
        format: "vpc",
        options: &[
            ("subformat", "dynamic"),
            ("block_size", "2M"),
            ("batmap", "on"),
        ],
        rules: &[
            &[
                must_be(
                    "format",
                    &["vpc"],
                    "XenServer's storage repositories keep VHDs",
                ),
                must_be(
                    "subformat",
                    &["dynamic"],
                    "XenServer imports dynamic VHDs, whose blocks it chains",
                ),
            ],
            XENSERVER,
            VHD,
            VHD_IDENTITY,
            STANDALONE,
        ],
    },
    Cloud {
        name: "xenserver-ovf",
        summary: "that VHD in a gzip'ed tar, as Glance stores it (container_format ovf)",
        format: ovf::NAME,
        options: &[("block_size", "2M"), ("batmap", "on")],
        rules: &[
            &[
                must_be(
                    "format",
                    &[ovf::NAME],
                    "XenServer's plugins for OpenStack unpack a gzip'ed tar of 0.vhd, 1.vhd and so \
                     on, whatever Glance calls it",
                ),
                must_be(
                    "subformat",
                    &["dynamic", "differencing"],
                    "XenServer imports dynamic VHDs, whose blocks it chains",
                ),
            ],
            XENSERVER,
            VHD,
            VHD_IDENTITY,
            STANDALONE,
        ],
    },
    Cloud {
        name: "hyperv",
        summary: "a dynamic VHD for a machine of generation 1",
        format: "vpc",
        options: &[("subformat", "dynamic"), ("block_size", "2M")],
        rules: &[
            &[
                must_be(
                    "format",
                    &["vpc"],
                    "Hyper-V runs VHD, and VHDX, which is not made here",
                ),
                rule(
                    "block-size",
                    Must::Count(&[512 << 10, 2 * MIB]),
                    "Hyper-V makes and takes blocks of 512 KiB and of 2 MiB",
                ),
                rule(
                    "virtual-size",
                    Must::AtLeast(3 * MIB),
                    "Hyper-V's smallest VHD is 3 MiB",
                ),
                too_large(2040 * GIB, "a VHD of Hyper-V ends at 2040 GiB"),
            ],
            VHD,
            VHD_IDENTITY,
            SECTORS,
            STANDALONE,
        ],
    },
    Cloud {
        name: "kvm",
        summary: "a qcow2 image",
        format: "qcow2",
        options: &[("compat", "1.1")],
        rules: &[
            &[must_be(
                "format",
                &["qcow2", "raw"],
                "KVM's machines run from qcow2 and RAW; other formats are for converting",
            )],
            SECTORS,
            STANDALONE,
        ],
    },
    Cloud {
        name: "openstack-raw",
        summary: "a RAW disk",
        format: "raw",
        options: &[],
        rules: &[
            &[
                must_be(
                    "format",
                    &["raw"],
                    "an image of disk_format raw is a RAW disk",
                ),
                Rule {
                    mend: Some(
                        "find out whose idea that was; if the image inside is the disk that is wanted, \
                         convert that one, stating its format (-f)",
                    ),
                    ..must_be(
                        "looks-like",
                        &["raw"],
                        "Glance and Nova refuse a RAW disk that looks like an image of another format",
                    )
                },
                must_be(
                    "partition-table",
                    &["none", "sound"],
                    "Glance and Nova refuse a disk with a partition table that is not as they know them",
                ),
            ],
            SECTORS,
        ],
    },
];

/// For VHDs that XenServer runs.
const XENSERVER: &[Rule] = &[
    rule(
        "block-size",
        Must::Count(&[2 * MIB]),
        "XenServer's tools count every VHD in blocks of 2 MiB",
    ),
    rule(
        "virtual-size",
        Must::MultipleOf(2 * MIB),
        "XenServer's tools count whole blocks of 2 MiB, so a rest would be cut off",
    ),
    too_large(2040 * GIB, "a dynamic VHD ends at 2040 GiB"),
    rule(
        "geometry-too-large",
        Must::Hold(false),
        "vhd-util check refuses a geometry larger than the specification gives for \
         the size (\"geometry too large\")",
    ),
    rule(
        "reserved-features",
        Must::Hold(false),
        "vhd-util check refuses feature bits that the specification does not know, \
         and wants the reserved one set",
    ),
    rule(
        "reserved-bytes",
        Must::Hold(false),
        "vhd-util check refuses a footer whose reserved bytes are not zero",
    ),
    rule(
        "newer-version",
        Must::Hold(false),
        "vhd-util check refuses a footer of a version above 1.0 (\"invalid file format version\")",
    ),
    rule(
        "newer-tapdisk",
        Must::Hold(false),
        "vhd-util check refuses creators tap of a version above 1.3 (\"unsupported tap \
         creator version\")",
    ),
    rule(
        "header-newer-version",
        Must::Hold(false),
        "vhd-util check refuses a dynamic header of a version above 1.0 (\"invalid header \
         version\")",
    ),
    rule(
        "header-data-offset",
        Must::Hold(false),
        "vhd-util check wants the data offset of the dynamic header to be all ones",
    ),
    rule(
        "header-reserved-bytes",
        Must::Hold(false),
        "vhd-util check refuses a dynamic header whose reserved bytes are not zero",
    ),
    rule(
        "leftover-parent",
        Must::Hold(false),
        "vhd-util check refuses a dynamic image that says anything of a parent",
    ),
    rule(
        "timestamp",
        Must::HaveCome,
        "vhd-util check refuses images from the future (\"creation time in future\")",
    ),
    rule(
        "hidden",
        Must::Hold(false),
        "XenServer shows no hidden image: others depend on it, or it is to be deleted",
    ),
];

/// For every cloud that takes VHDs.
const VHD: &[Rule] = &[
    rule(
        "virtual-size",
        Must::Equal("current-size"),
        "the creator of the image counts by its geometry and this cloud by current_size, so its \
         guests would see another size",
    ),
    rule(
        "poisoned",
        Must::Hold(false),
        "XenServer's tools were changing the image and did not finish",
    ),
    Rule {
        mend: Some("resume the machine and shut it down, then export the image again"),
        ..rule(
            "saved-state",
            Must::Hold(false),
            "a machine is suspended on the image, and its memory is not part of it",
        )
    },
];

/// For those that know VHDs by their UUID.
const VHD_IDENTITY: &[Rule] = &[rule(
    "null-uuid",
    Must::Hold(false),
    "VHDs are known by their UUID, and that of this one is null",
)];

/// For those whose machines count in sectors.
const SECTORS: &[Rule] = &[rule(
    "virtual-size",
    Must::MultipleOf(512),
    "guests count in sectors of 512 bytes, so a rest would be lost",
)];

/// For images that travel alone.
const STANDALONE: &[Rule] = &[
    rule(
        "backing",
        Must::Hold(false),
        "the image is worth nothing without the one behind it",
    ),
    rule(
        "data-file",
        Must::Hold(false),
        "the image keeps its data in another file",
    ),
    rule(
        "damage",
        Must::Count(&[0]),
        "the image is damaged; goldsmith info says how",
    ),
];

const fn rule(fact: &'static str, must: Must, reason: &'static str) -> Rule {
    Rule {
        fact,
        must,
        reason,
        mend: None,
    }
}

const fn must_be(fact: &'static str, words: &'static [&'static str], reason: &'static str) -> Rule {
    rule(fact, Must::Be(words), reason)
}

const fn too_large(bytes: u64, reason: &'static str) -> Rule {
    Rule {
        mend: Some("shrink the file system, its partition and the disk, or spread it over several"),
        ..rule("virtual-size", Must::AtMost(bytes), reason)
    }
}

/// The cloud called `name`.
///
/// # Errors
/// `Usage` if there is none.
pub fn cloud_named(name: &str) -> Result<&'static Cloud> {
    CLOUDS
        .iter()
        .find(|cloud| cloud.name == name)
        .ok_or_else(|| {
            let known: Vec<_> = CLOUDS.iter().map(|cloud| cloud.name).collect();
            Error::usage(format!(
                "unknown cloud '{name}'; there are: {}{}",
                known.join(", "),
                did_you_mean(name, known.iter().copied())
            ))
        })
}

impl Rule {
    /// What to do about an image that breaks it; a command is one that a shell understands.
    pub fn mend_for(&self, cloud: &Cloud, image: &Path) -> String {
        match self.mend {
            Some(mend) => mend.into(),
            None => {
                let image = image.to_string_lossy();
                let image = match image.strip_prefix('-') {
                    Some(_) => format!("./{image}").into(),
                    None => image,
                };
                // No path has the byte that cannot be quoted.
                let image = shlex::try_quote(&image).unwrap_or_else(|_| image.clone());
                format!("goldsmith convert --for {} {image} NEW", cloud.name)
            }
        }
    }
}

impl Cloud {
    /// Its rules, one by one.
    pub fn rules(&self) -> impl Iterator<Item = &'static Rule> {
        self.rules.iter().copied().flatten()
    }

    /// The size of the smallest disk that it takes and that holds `size` bytes, in bytes.
    ///
    /// # Errors
    /// `Usage` if it takes none as large.
    pub fn disk_size(&self, size: u64) -> Result<u64> {
        let rules = || self.rules().filter(|rule| rule.fact == "virtual-size");
        let mut wanted = size;
        for rule in rules() {
            if let Must::AtLeast(least) = rule.must {
                wanted = wanted.max(least);
            }
        }
        for rule in rules() {
            if let Must::MultipleOf(unit) = rule.must {
                wanted = wanted.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
            }
        }
        for rule in rules() {
            if let Must::AtMost(most) = rule.must
                && wanted > most
            {
                return Err(Error::usage(format!(
                    "the disk has {size} bytes, and {} takes at most {most}: {}",
                    self.name, rule.reason
                )));
            }
        }
        Ok(wanted)
    }
}
