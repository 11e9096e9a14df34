//! What a new image shall be: the options, checked, and the header that says so.

use goldsmith_block::{Codec, CreateSpec, HostRange, OptionKind, OptionSpec, Options};
use zerocopy::IntoBytes;

use crate::crypt::new_luks;
use crate::error::Qcow2Error;
use crate::features::{extension, name_table};
use crate::geometry::{l1_entries_for, mapped_bits};
use crate::ondisk::{self, RawEncryption, RawHeader};
use crate::refcount::Tail;

/// Widths of a refcount, each twice the one before.
pub(crate) const REFCOUNT_BITS: [&str; 7] = ["1", "2", "4", "8", "16", "32", "64"];

/// The option that names the secret of an encrypted image.
pub(crate) const KEY_SECRET: &str = "encrypt.key-secret";

/// What LUKS encrypts with: cipher, and bits of its key.
const CIPHERS: [&str; 10] = [
    "aes-128",
    "aes-192",
    "aes-256",
    "cast5-128",
    "serpent-128",
    "serpent-192",
    "serpent-256",
    "twofish-128",
    "twofish-192",
    "twofish-256",
];

/// What LUKS hashes with.
const HASHES: [&str; 8] = [
    "md5",
    "sha1",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "ripemd160",
    "sm3",
];

/// What can be chosen about a new image; names and defaults are QEMU's. [qemu]
pub(crate) static OPTIONS: [OptionSpec; 19] = [
    OptionSpec {
        name: "compat",
        kind: OptionKind::Choice(&["0.10", "1.1", "v2", "v3"]),
        default: "1.1",
        help: "version of the format: 0.10 is 2, 1.1 is 3",
    },
    OptionSpec {
        name: "cluster_size",
        kind: OptionKind::Size,
        default: "65536",
        help: "bytes allocated together, a power of two from 512 to 2M",
    },
    OptionSpec {
        name: "compression_type",
        kind: OptionKind::Choice(&["zlib", "zstd"]),
        default: "zlib",
        help: "how compressed clusters are packed; zstd needs compat=1.1",
    },
    OptionSpec {
        name: "refcount_bits",
        kind: OptionKind::Choice(&REFCOUNT_BITS),
        default: "16",
        help: "width of a reference count in bits; all but 16 need compat=1.1",
    },
    OptionSpec {
        name: "extended_l2",
        kind: OptionKind::Flag,
        default: "off",
        help: "allocate 32nds of a cluster; needs compat=1.1 and cluster_size=16k or more",
    },
    OptionSpec {
        name: "lazy_refcounts",
        kind: OptionKind::Flag,
        default: "off",
        help: "let whoever writes to the image update counts late; needs compat=1.1",
    },
    OptionSpec {
        name: "preallocation",
        kind: OptionKind::Choice(&["off", "metadata", "falloc", "full"]),
        default: "off",
        help: "give every cluster a place; falloc and full also take the space",
    },
    OptionSpec {
        name: "backing_file",
        kind: OptionKind::Text,
        default: "",
        help: "image that shows through, by its path from the new image; -b of create and -B of convert do the \
               same",
    },
    OptionSpec {
        name: "backing_fmt",
        kind: OptionKind::Text,
        default: "",
        help: "format of the backing file; -F does the same",
    },
    OptionSpec {
        name: "data_file",
        kind: OptionKind::Text,
        default: "",
        help: "file for the guest's data, by its path from the new image; needs compat=1.1",
    },
    OptionSpec {
        name: "data_file_raw",
        kind: OptionKind::Flag,
        default: "off",
        help: "the data file is the disk, byte for byte",
    },
    OptionSpec {
        name: "encrypt.format",
        kind: OptionKind::Choice(&["none", "luks", "aes"]),
        default: "none",
        help: "encrypt guest data; aes is for old programs and protects badly",
    },
    OptionSpec {
        name: KEY_SECRET,
        kind: OptionKind::Secret,
        default: "",
        help: "the secret (--object) that encrypts",
    },
    OptionSpec {
        name: "encrypt.iter-time",
        kind: OptionKind::Size,
        default: "2000",
        help: "milliseconds that a guess of the luks passphrase takes on this machine",
    },
    OptionSpec {
        name: "encrypt.cipher-alg",
        kind: OptionKind::Choice(&CIPHERS),
        default: "aes-256",
        help: "cipher of luks",
    },
    OptionSpec {
        name: "encrypt.cipher-mode",
        kind: OptionKind::Choice(&["xts", "cbc", "ctr", "ecb"]),
        default: "xts",
        help: "mode of the luks cipher; all but xts protect badly",
    },
    OptionSpec {
        name: "encrypt.ivgen-alg",
        kind: OptionKind::Choice(&["plain64", "plain", "essiv"]),
        default: "plain64",
        help: "how the number of a sector goes into the luks cipher",
    },
    OptionSpec {
        name: "encrypt.ivgen-hash-alg",
        kind: OptionKind::Choice(&HASHES),
        default: "sha256",
        help: "hash of essiv, whose digest must be as long as a key of the cipher",
    },
    OptionSpec {
        name: "encrypt.hash-alg",
        kind: OptionKind::Choice(&HASHES),
        default: "sha256",
        help: "hash of the luks passphrase",
    },
];

/// Clusters up to this many bytes get no feature names, to leave room for a backing file's. [qemu]
const NAMES_OVER: u64 = 4096;

/// What becomes of clusters that nobody writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preallocation {
    /// They get no place.
    Off,
    /// They get a place, which may be a hole of the file.
    Metadata,
    /// Their place takes space.
    Falloc,
    /// Their place is written.
    Full,
}

/// How guest data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// Not at all.
    None,
    /// As in old images.
    Aes,
    /// With the key that a LUKS header keeps.
    Luks {
        /// Where the header stands, as soon as it does.
        header: Option<HostRange>,
    },
}

/// What decides how long the tables of a new image are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) refcount_order: u32,
    pub(crate) extended_l2: bool,
}

impl Shape {
    pub(crate) fn new(options: &Options) -> Result<Self, Qcow2Error> {
        let cluster_size = options.size("cluster_size");
        let cluster_bits = cluster_size.trailing_zeros();
        if !cluster_size.is_power_of_two() || !ondisk::CLUSTER_BITS.contains(&cluster_bits) {
            let found = cluster_size;
            return Err(Qcow2Error::ClusterSizeOption { found });
        }
        let version = match options.choice("compat") {
            "0.10" | "v2" => 2,
            _ => 3,
        };
        let extended_l2 = options.flag("extended_l2");
        let bits = options.choice("refcount_bits");
        if version < 3 {
            let news = [
                (
                    "compression_type",
                    options.choice("compression_type") != "zlib",
                ),
                ("refcount_bits", bits != "16"),
                ("extended_l2", extended_l2),
                ("lazy_refcounts", options.flag("lazy_refcounts")),
                ("data_file", options.text("data_file").is_some()),
            ];
            if let Some((option, _)) = news.into_iter().find(|(_, chosen)| *chosen) {
                return Err(Qcow2Error::NeedsVersion3 { option });
            }
        }
        if extended_l2 && cluster_bits < ondisk::EXTENDED_CLUSTER_BITS {
            return Err(Qcow2Error::Conflict {
                option: "extended_l2=on",
                rule: "it needs cluster_size=16k or more",
            });
        }
        // An option's value is one of its choices.
        let order = REFCOUNT_BITS.iter().position(|choice| *choice == bits);
        Ok(Self {
            version,
            cluster_bits,
            refcount_order: order.unwrap_or_default() as u32,
            extended_l2,
        })
    }

    /// Entries of the L1 table for a disk of `virtual_size` bytes.
    pub(crate) fn l1_entries(&self, virtual_size: u64) -> Result<u64, Qcow2Error> {
        let (cluster_bits, extended_l2) = (self.cluster_bits, self.extended_l2);
        let entries = l1_entries_for(virtual_size, cluster_bits, extended_l2);
        let most = (ondisk::L1_BYTES / 8) << mapped_bits(cluster_bits, extended_l2);
        if virtual_size > most {
            return Err(Qcow2Error::DiskTooLarge {
                size: virtual_size,
                need: u128::from(entries) * 8,
                limit: ondisk::L1_BYTES,
                cluster_size: 1 << cluster_bits,
                most,
            });
        }
        Ok(entries)
    }
}

/// A new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) refcount_order: u32,
    pub(crate) codec: Codec,
    pub(crate) virtual_size: u64,
    pub(crate) l1_entries: u64,
    pub(crate) extended_l2: bool,
    lazy_refcounts: bool,
    pub(crate) preallocation: Preallocation,
    /// Name and format.
    pub(crate) backing: Option<(String, String)>,
    /// Name, and whether the file is the disk.
    pub(crate) data_file: Option<(String, bool)>,
    pub(crate) protection: Protection,
}

impl Plan {
    pub(crate) fn new(spec: &CreateSpec) -> Result<Self, Qcow2Error> {
        let options = &spec.options;
        let shape = Shape::new(options)?;
        let Shape {
            version,
            cluster_bits,
            refcount_order,
            extended_l2,
        } = shape;
        let data_file_raw = options.flag("data_file_raw");
        let text = |name| options.text(name).map(str::to_owned);
        let data_file = text("data_file").map(|name| (name, data_file_raw));
        let conflict = |option, rule| Err(Qcow2Error::Conflict { option, rule });
        let backing = match (text("backing_file"), text("backing_fmt")) {
            (Some(name), Some(format)) => Some((name, format)),
            (None, None) => None,
            (Some(_), None) => return conflict("backing_file", "it needs backing_fmt"),
            (None, Some(_)) => return conflict("backing_fmt", "it needs backing_file"),
        };
        if data_file_raw && data_file.is_none() {
            return conflict("data_file_raw=on", "it needs data_file");
        }
        if data_file_raw && backing.is_some() {
            // The disk would not be what the data file holds. [qemu]
            return conflict(
                "data_file_raw=on",
                "an image with a backing file cannot have it",
            );
        }
        let preallocation = match options.choice("preallocation") {
            "metadata" => Preallocation::Metadata,
            "falloc" => Preallocation::Falloc,
            "full" => Preallocation::Full,
            // Who reads the metadata must find all that is in the data file. [qemu]
            _ if data_file_raw => Preallocation::Metadata,
            _ => Preallocation::Off,
        };
        let preallocated = preallocation != Preallocation::Off;
        if preallocated && backing.is_some() && !extended_l2 {
            // A place without data of its own is what subclusters are for. [qemu]
            return conflict(
                "preallocation",
                "over a backing file it needs extended_l2=on",
            );
        }
        if spec.compress && data_file.is_some() {
            return conflict("data_file", "a compressed image cannot have it");
        }
        if spec.compress && preallocated {
            return conflict("preallocation", "a compressed image cannot have it");
        }

        let protection = match options.choice("encrypt.format") {
            "luks" => {
                new_luks(spec)?;
                Protection::Luks { header: None }
            }
            "aes" => Protection::Aes,
            _ => Protection::None,
        };
        let encrypted = protection != Protection::None;
        let of_both = ["encrypt.format", KEY_SECRET];
        let of_luks = options
            .given()
            .iter()
            .find(|name| name.starts_with("encrypt.") && !of_both.contains(name));
        if let (Some(option), Protection::None | Protection::Aes) = (of_luks, &protection) {
            return conflict(option, "it goes with encrypt.format=luks");
        }
        if encrypted != options.secret(KEY_SECRET).is_some() {
            return conflict(KEY_SECRET, "it goes with encrypt.format, and that with it");
        }
        if encrypted && spec.compress {
            return conflict("encrypt.format", "a compressed image cannot have it");
        }
        if encrypted && preallocated {
            // What nobody writes would not be zeros, but zeros decrypted.
            return conflict("encrypt.format", "a preallocated image cannot have it");
        }
        if encrypted && version < 3 && backing.is_some() {
            return conflict("encrypt.format", "over a backing file it needs compat=1.1");
        }

        let virtual_size = spec.virtual_size;
        let l1_entries = shape.l1_entries(virtual_size)?;
        let plan = Self {
            version,
            cluster_bits,
            refcount_order,
            codec: match options.choice("compression_type") {
                "zstd" => Codec::Zstd,
                _ => Codec::Deflate,
            },
            virtual_size,
            l1_entries,
            extended_l2,
            lazy_refcounts: options.flag("lazy_refcounts"),
            preallocation,
            backing,
            data_file,
            protection,
        };
        plan.check_names()?;
        Ok(plan)
    }

    /// Whether the names are short enough for readers and the header for its cluster.
    fn check_names(&self) -> Result<(), Qcow2Error> {
        let backing = self.backing.iter();
        let names =
            backing.flat_map(|(name, format)| [("backing_file", name), ("backing_fmt", format)]);
        let data_file = self.data_file.iter().map(|(name, _)| ("data_file", name));
        for (option, name) in names.chain(data_file) {
            if name.len() as u64 > ondisk::NAME_LEN {
                let (len, limit) = (name.len() as u64, ondisk::NAME_LEN);
                return Err(Qcow2Error::NameOption { option, len, limit });
            }
        }
        let (len, cluster_size) = (
            self.header(&Tail::default()).len() as u64,
            self.cluster_size(),
        );
        if len > cluster_size {
            return Err(Qcow2Error::HeaderTooLong { len, cluster_size });
        }
        Ok(())
    }

    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Base-2 logarithm of the guest bytes that share a status: a cluster or a subcluster.
    pub(crate) fn status_bits(&self) -> u32 {
        match self.extended_l2 {
            true => self.cluster_bits - ondisk::SUBCLUSTERS_BITS,
            false => self.cluster_bits,
        }
    }

    /// The header, its extensions and the backing file's name; the rest of the first cluster is
    /// zeros.
    pub(crate) fn header(&self, tail: &Tail) -> Vec<u8> {
        let zstd = self.codec == Codec::Zstd;
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let raw_data = self.data_file.as_ref().is_some_and(|(_, raw)| *raw);
        let incompatible = bit(zstd, ondisk::COMPRESSION_TYPE)
            | bit(self.extended_l2, ondisk::EXTENDED_L2)
            | bit(self.data_file.is_some(), ondisk::EXTERNAL_DATA);
        let mut raw = RawHeader {
            magic: ondisk::MAGIC,
            version: self.version.into(),
            backing_file_offset: 0.into(),
            backing_file_size: 0.into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.virtual_size.into(),
            crypt_method: match self.protection {
                Protection::None => 0,
                Protection::Aes => 1,
                Protection::Luks { .. } => 2,
            }
            .into(),
            // At most the limit of the table, and so are the refcount table's clusters.
            l1_size: (self.l1_entries as u32).into(),
            l1_table_offset: tail.l1_offset.into(),
            refcount_table_offset: tail.refcount_table_offset.into(),
            refcount_table_clusters: (tail.refcount_table_clusters as u32).into(),
            nb_snapshots: 0.into(),
            snapshots_offset: 0.into(),
            incompatible_features: incompatible.into(),
            compatible_features: bit(self.lazy_refcounts, ondisk::LAZY_REFCOUNTS).into(),
            autoclear_features: bit(raw_data, ondisk::RAW_EXTERNAL_DATA).into(),
            refcount_order: self.refcount_order.into(),
            header_length: (size_of::<RawHeader>() as u32).into(),
            compression_type: zstd.into(),
            padding: [0; 7],
        };

        let mut extensions = Vec::new();
        if let Some((_, format)) = &self.backing {
            extensions.extend(extension(
                ondisk::EXTENSION_BACKING_FORMAT,
                format.as_bytes(),
            ));
        }
        if let Some((name, _)) = &self.data_file {
            extensions.extend(extension(ondisk::EXTENSION_DATA_FILE, name.as_bytes()));
        }
        if let Protection::Luks { header } = self.protection {
            // Its length is the same whether or not it is known.
            let header = header.unwrap_or(HostRange::new(0, 0));
            let data = RawEncryption {
                offset: header.offset.into(),
                len: header.len.into(),
            };
            extensions.extend(extension(ondisk::EXTENSION_ENCRYPTION, data.as_bytes()));
        }
        let v3 = self.version == 3;
        if v3 && self.cluster_size() > NAMES_OVER {
            extensions.extend(name_table());
        }
        let header_len = match v3 {
            true => size_of::<RawHeader>(),
            false => ondisk::HEADER_LEN_V2 as usize,
        };
        if let Some((name, _)) = &self.backing {
            extensions.extend(extension(ondisk::EXTENSION_END, &[]));
            let offset = (header_len + extensions.len()) as u64;
            raw.backing_file_offset = offset.into();
            // Names are short.
            raw.backing_file_size = (name.len() as u32).into();
            extensions.extend(name.as_bytes());
        }
        // Without a name, the zeros that follow are the end mark.
        let mut header = raw.as_bytes()[..header_len].to_vec();
        header.extend(extensions);
        header
    }
}
