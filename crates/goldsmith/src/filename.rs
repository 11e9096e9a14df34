//! The names by which people and images mean images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{Error, HostRange, Result, SECTOR, Storage, parse_size};
use goldsmith_storage::Window;
use serde_json::{Map, Value};

use crate::registry;

/// What a name says of an image: the file, the part of it, the format, and options of that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageName {
    /// The file. In an image a relative path counts from that image's directory.
    pub path: PathBuf,
    /// The format that the image is said to have.
    pub format: Option<String>,
    /// The part of the file that is the image, if that is not all of it.
    pub part: Option<Part>,
    /// [Options](goldsmith_block::Format::open_options) with which the format opens it.
    pub options: Vec<(String, String)>,
    /// Whether it is said to be a device (`host_device`), and not just a file.
    pub is_device: bool,
    /// Whether the name was this path and nothing else. In an image QEMU looks for what is spelled `file:`
    /// or `json:` in the directory where it happens to run.
    pub is_bare: bool,
}

/// A part of a file that is an image of its own, as in the options of QEMU's driver `raw`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The first byte of the file that belongs to it.
    pub offset: u64,
    /// How many do; all from there on if nobody says.
    pub len: Option<u64>,
}

/// What QEMU reaches in other ways than through a file.
const ELSEWHERE: [&str; 24] = [
    "nbd",
    "nbd+tcp",
    "nbd+unix",
    "nbds",
    "ssh",
    "http",
    "https",
    "ftp",
    "ftps",
    "iscsi",
    "iser",
    "rbd",
    "nfs",
    "gluster",
    "gluster+tcp",
    "gluster+unix",
    "gluster+rdma",
    "nvme",
    "fat",
    "null-co",
    "null-aio",
    "blkdebug",
    "blkverify",
    "host_cdrom",
];
/// Drivers that are files, byte for byte.
const FILES: [&str; 2] = ["file", DEVICE];
/// The one that takes no regular file.
const DEVICE: &str = "host_device";

impl ImageName {
    /// Reads a plain path, `file:PATH`, `host_device:PATH`, or `json:{...}` with a format over a
    /// part of a file.
    ///
    /// # Errors
    /// `Unsupported` for everything else, by its name.
    pub fn parse(name: &str) -> Result<Self> {
        match protocol(name) {
            None => Ok(Self::plain(name)),
            Some((kind, path)) if FILES.contains(&kind) => Ok(Self {
                is_device: kind == DEVICE,
                is_bare: false,
                ..Self::plain(path)
            }),
            Some(("json", text)) => Self::from_json(text),
            Some((kind, _)) => Err(Error::unsupported(format!(
                "the file '{name}' is no plain path but of the kind '{kind}:'"
            ))),
        }
    }

    /// Reads what somebody typed: as [`parse`](Self::parse), but a colon behind any word that means
    /// nothing to QEMU is part of a path.
    ///
    /// # Errors
    /// `Unsupported` for what is no file; those of [`parse`](Self::parse) for `json:`.
    pub fn typed(name: impl AsRef<Path>) -> Result<Self> {
        let path = name.as_ref();
        match path.to_str().and_then(|name| Some((name, protocol(name)?))) {
            Some((name, (kind, _))) if ELSEWHERE.contains(&kind) => {
                let text = format!(
                    "'{kind}:' is reached by other ways than a file; goldsmith opens files and \
                     block devices. Copy it to one, or attach it as one (qemu-nbd -c), first"
                );
                Err(Error::unsupported(text).in_file(name))
            }
            Some((name, (kind, _))) if kind == "json" || FILES.contains(&kind) => {
                Self::parse(name).map_err(|error| error.in_file(name))
            }
            _ => Ok(Self::plain(path)),
        }
    }

    /// Reads pairs such as `driver` and `qcow2`, `file.filename` and a path; the last value of a key
    /// counts, as in QEMU's `--image-opts`.
    ///
    /// # Errors
    /// `Usage` for a driver that is neither a format here nor a file, for an option of a file, or if
    /// no file is named.
    pub fn from_options(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        Self::from_facts(pairs.into_iter().collect()).map_err(Error::usage)
    }

    /// Fails if a device is meant and what is at `path`, where this name leads, is none. `[qemu]`
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn must_suit(&self, path: &Path) -> Result<()> {
        match self.is_device {
            true => must_be_device(path),
            false => Ok(()),
        }
    }

    /// The path, if the name says nothing else.
    pub(crate) fn into_plain(self) -> Option<PathBuf> {
        let plain = self.format.is_none() && self.part.is_none() && self.options.is_empty();
        plain.then_some(self.path)
    }

    fn plain(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            is_bare: true,
            ..Self::default()
        }
    }

    fn from_json(text: &str) -> Result<Self> {
        let refuse = |why: &str| Error::unsupported(format!("the file 'json:{text}': {why}"));
        let object: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| refuse(&format!("it is no JSON object: {error}")))?;
        let mut facts = BTreeMap::new();
        flatten("", &object, &mut facts).map_err(|why| refuse(&why))?;
        Self::from_facts(facts).map_err(|why| refuse(&why))
    }

    /// Walks from the format down to the file.
    fn from_facts(mut facts: BTreeMap<String, String>) -> Result<Self, String> {
        let mut name = Self::default();
        let mut level = String::new();
        loop {
            let key = |word: &str| format!("{level}{word}");
            let below = key("file.");
            let driver = facts.remove(&key("driver"));
            let is_file = match &driver {
                Some(driver) => FILES.contains(&&**driver),
                None => !level.is_empty(),
            };
            if is_file {
                name.is_device = driver.as_deref() == Some(DEVICE);
                let key = key("filename");
                let path = facts.remove(&key);
                let path = path.ok_or_else(|| format!("it names no file ('{key}')"))?;
                // [qemu bdrv_find_protocol] Of a name that is stated as a file's, a colon is a part.
                name.path = match protocol(&path) {
                    Some(_) => Path::new(".").join(path),
                    None => path.into(),
                };
                break;
            }
            if let Some(driver) = driver.as_deref() {
                let key = key("driver");
                let refused = format!("the driver '{driver}' is not supported for '{key}'");
                if level.is_empty() {
                    registry::format_named(driver)
                        .map_err(|error| format!("{refused}: {}", error.report()))?;
                } else if driver != "raw" {
                    // Only bytes can be cut out of what stands below.
                    return Err(refused);
                }
            }
            if !facts.keys().any(|key| key.starts_with(&below)) {
                return Err(format!("it names no file ('{below}filename')"));
            }
            if driver.as_deref() == Some("raw") {
                let part = Part::remove_from(&mut facts, &level)?;
                name.part = Part::inside(name.part, part)?;
            }
            if level.is_empty() {
                name.format = driver;
            }
            level = below;
        }
        if level.is_empty() {
            // A file is what its bytes are.
            name.format = Some("raw".into());
        }
        for (key, value) in facts {
            if level.is_empty() || key.starts_with("file.") || key == "file" {
                return Err(format!("the key '{key}' is not supported"));
            }
            if let Some(option) = of_backing(&key)
                && !registry::has_open_option(option)
            {
                return Err(format!(
                    "the key '{key}' is not supported: what stands behind an image is what that names"
                ));
            }
            name.options.push((key, value));
        }
        Ok(name)
    }
}

impl Part {
    /// The part that the facts at `level` mean, which are taken out of `facts`.
    fn remove_from(
        facts: &mut BTreeMap<String, String>,
        level: &str,
    ) -> Result<Option<Self>, String> {
        let mut number = |word: &str| {
            let key = format!("{level}{word}");
            let Some(text) = facts.remove(&key) else {
                return Ok(None);
            };
            match parse_size(&text) {
                None => Err(format!("'{key}' is no size: '{text}'")),
                size => Ok(size),
            }
        };
        let (offset, len) = (number("offset")?, number("size")?);
        // [qemu] That of an offset may be anything.
        if let Some(len) = len.filter(|len| !len.is_multiple_of(SECTOR)) {
            return Err(format!(
                "Specified size is not multiple of {SECTOR} ('{level}size' is {len})"
            ));
        }
        let some = offset.is_some() || len.is_some();
        Ok(some.then(|| Self {
            offset: offset.unwrap_or_default(),
            len,
        }))
    }

    /// `part` of what `outer` is a part of.
    fn inside(part: Option<Self>, outer: Option<Self>) -> Result<Option<Self>, String> {
        let (Some(part), Some(outer)) = (part, outer) else {
            return Ok(part.or(outer));
        };
        let rest = match outer.len {
            Some(len) => Some(len.checked_sub(part.offset).ok_or_else(too_far)?),
            None => None,
        };
        if let (Some(len), Some(rest)) = (part.len, rest)
            && len > rest
        {
            return Err(too_far());
        }
        let offset = outer.offset.checked_add(part.offset).ok_or_else(too_far)?;
        Ok(Some(Self {
            offset,
            len: part.len.or(rest),
        }))
    }

    /// Fails if a storage of `held` bytes has no such part.
    fn must_fit(self, held: u64) -> Result<()> {
        let Self { offset, len } = self;
        if offset > held {
            return Err(Error::usage(format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({held})"
            )));
        }
        match len {
            Some(len) if len > held - offset => Err(Error::usage(format!(
                "The sum of offset ({offset}) and size ({len}) has to be smaller or equal to the \
                 actual size of the containing file ({held})"
            ))),
            _ => Ok(()),
        }
    }

    /// This part of `storage`.
    ///
    /// # Errors
    /// `Usage` if it has no such part.
    pub(crate) fn of<S: Storage + ?Sized>(self, storage: Arc<S>) -> Result<Window<S>> {
        let fits = self.must_fit(storage.len());
        fits.map_err(|error| error.in_file(storage.name()))?;
        match self.len {
            Some(len) => Window::new(storage, HostRange::new(self.offset, len)),
            None => Window::from_offset(storage, self.offset),
        }
    }
}

/// Fails if a file is at `path` that is no device. What is not there is told by whoever opens it.
pub(crate) fn must_be_device(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => Err(Error::unsupported(format!(
            "'{DEVICE}' driver requires '{}' to be either a character or block device",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn too_far() -> String {
    "a part ('offset', 'size') does not lie inside the one that it is a part of".into()
}

/// What `key` is to one of the images behind the topmost one, if it is meant for one of those.
fn of_backing(key: &str) -> Option<&str> {
    let option = key.trim_start_matches("backing.");
    (option != key || key == "backing").then_some(option)
}

/// What stands before the first colon of `name` and behind it: the kind of what it names, unless it
/// is part of a path, as in QEMU.
pub fn protocol(name: &str) -> Option<(&str, &str)> {
    let (protocol, rest) = name.split_once(':')?;
    (!protocol.contains('/')).then_some((protocol, rest))
}

/// The values of `object` and of the objects in it, with keys joined by dots. The depth is bounded:
/// the parser stops at 128.
fn flatten(
    prefix: &str,
    object: &Map<String, Value>,
    facts: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        let text = match value {
            Value::Object(object) => {
                flatten(&format!("{key}."), object, facts)?;
                continue;
            }
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(true) => "on".into(),
            Value::Bool(false) => "off".into(),
            Value::Null | Value::Array(_) => return Err(format!("'{key}' is no text")),
        };
        if facts.insert(key.clone(), text).is_some() {
            return Err(format!("'{key}' is there twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str) -> String {
        let error = ImageName::parse(name).unwrap_err();
        assert_eq!(error.kind(), goldsmith_block::ErrorKind::Unsupported);
        error.report()
    }

    #[test]
    fn every_spelling_of_a_file_is_its_path() {
        let raw = Some("raw");
        for (name, path, format) in [
            ("base.raw", "base.raw", None),
            ("./a:b", "./a:b", None),
            ("/x/a:b", "/x/a:b", None),
            ("file:base.raw", "base.raw", None),
            ("file:/x/base.raw", "/x/base.raw", None),
            ("file:///x/base.raw", "///x/base.raw", None),
            ("host_device:/dev/sdb", "/dev/sdb", None),
            (
                r#"json:{"driver":"raw","file":{"driver":"file","filename":"b"}}"#,
                "b",
                raw,
            ),
            (r#"json:{"driver":"raw","file.filename":"b"}"#, "b", raw),
            (r#"json:{"driver":"file","filename":"b"}"#, "b", raw),
            (
                r#"json:{"file":{"driver":"host_device","filename":"/dev/sdb"}}"#,
                "/dev/sdb",
                None,
            ),
            (
                r#"json: {"file.driver":"file", "file.filename": "b"} "#,
                "b",
                None,
            ),
        ] {
            let parsed = ImageName::parse(name).unwrap();
            let expected = ImageName {
                path: path.into(),
                format: format.map(str::to_owned),
                is_device: name.contains("host_device"),
                is_bare: !name.contains("file:")
                    && !name.contains("host_device")
                    && !name.contains("json"),
                ..ImageName::default()
            };
            assert_eq!(parsed, expected, "{name}");
        }
    }

    #[test]
    fn parts_of_parts_are_parts_of_the_file() {
        let part = |offset, len| Some(Part { offset, len });
        let file = r#""file":{"driver":"file","filename":"x"}"#;
        for (name, expected) in [
            (
                format!(r#"json:{{"driver":"raw","offset":512,"size":"1k",{file}}}"#),
                part(512, Some(1024)),
            ),
            (
                format!(r#"json:{{"driver":"raw","size":1024,{file}}}"#),
                part(0, Some(1024)),
            ),
            (
                format!(r#"json:{{"driver":"qcow2","file":{{"driver":"raw","offset":3,{file}}}}}"#),
                part(3, None),
            ),
            (
                format!(
                    r#"json:{{"driver":"raw","offset":10,"file":{{"driver":"raw","offset":100,
                       "size":512,{file}}}}}"#
                ),
                part(110, Some(502)),
            ),
        ] {
            let parsed = ImageName::parse(&name).unwrap();
            assert_eq!(parsed.part, expected, "{name}");
            assert_eq!(parsed.path, Path::new("x"));
        }
        let outer = part(100, Some(50));
        assert!(Part::inside(part(51, None), outer).is_err());
        assert!(Part::inside(part(50, Some(1)), outer).is_err());
        assert!(Part::inside(part(u64::MAX, None), part(1, None)).is_err());
        for (part, fits) in [
            (part(0, None), true),
            (part(100, None), true),
            (part(99, Some(1)), true),
            (part(101, None), false),
            (part(99, Some(2)), false),
            (part(1, Some(u64::MAX)), false),
        ] {
            assert_eq!(part.unwrap().must_fit(100).is_ok(), fits, "{part:?}");
        }
    }

    #[test]
    fn options_of_the_format_are_kept_and_the_last_value_counts() {
        let pairs = [
            ("driver", "raw"),
            ("driver", "vpc"),
            ("force_size_calc", "chs"),
            ("file.driver", "file"),
            ("file.filename", "a,b"),
            ("backing.encrypt.key-secret", "s"),
        ];
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let name = ImageName::from_options(pairs.clone()).unwrap();
        assert_eq!(name.format.as_deref(), Some("vpc"));
        let [_, _, force, .., backing] = pairs;
        assert_eq!(name.options, [backing, force]);
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (name, why) in [
            ("nbd://localhost/x", "of the kind 'nbd:'"),
            ("http://localhost/x", "of the kind 'http:'"),
            ("fat:/etc", "of the kind 'fat:'"),
            (":x", "of the kind ':'"),
            ("json:", "no JSON object"),
            ("json:[]", "no JSON object"),
            ("json:{}", "names no file"),
            (r#"json:{"driver":"raw"}"#, "names no file"),
            (r#"json:{"driver":"file"}"#, "names no file ('filename')"),
            (r#"json:{"filename":"x"}"#, "names no file"),
            (
                r#"json:{"driver":"nbd","file.filename":"x"}"#,
                "the driver 'nbd' is not supported for 'driver'",
            ),
            (
                r#"json:{"file":{"driver":"nbd","filename":"x"}}"#,
                "the driver 'nbd' is not supported for 'file.driver'",
            ),
            (
                r#"json:{"driver":"raw","file":{"driver":"qcow2","file.filename":"x"}}"#,
                "the driver 'qcow2' is not supported for 'file.driver'",
            ),
            (
                r#"json:{"driver":"raw","offset":-1,"file.filename":"x"}"#,
                "'offset' is no size: '-1'",
            ),
            (
                r#"json:{"driver":"raw","offset":[1],"file.filename":"x"}"#,
                "'offset' is no text",
            ),
            (
                r#"json:{"driver":"raw","size":1000,"file.filename":"x"}"#,
                "Specified size is not multiple of 512 ('size' is 1000)",
            ),
            (
                r#"json:{"driver":"qcow2","file":{"driver":"raw","size":1,"file.filename":"x"}}"#,
                "Specified size is not multiple of 512 ('file.size' is 1)",
            ),
            (r#"json:{"driver":"raw","file":"node"}"#, "names no file"),
            (
                r#"json:{"file.filename":"x","file.locking":"off"}"#,
                "the key 'file.locking' is not supported",
            ),
            (
                r#"json:{"driver":"file","filename":"x","aio":"native"}"#,
                "the key 'aio' is not supported",
            ),
            (
                r#"json:{"file.filename":"x","file":{"filename":"y"}}"#,
                "'file.filename' is there twice",
            ),
        ] {
            assert!(refused(name).contains(why), "{}", refused(name));
        }
        let deep = "{\"a\":".repeat(100_000);
        refused(&format!("json:{deep}"));
    }

    #[test]
    fn what_is_typed_may_have_a_colon_but_is_always_a_file() {
        let path = |name: &str| ImageName::typed(name).unwrap().path;
        assert_eq!(path("disk:1.raw"), Path::new("disk:1.raw"));
        assert_eq!(path("./nbd:x"), Path::new("./nbd:x"));
        assert_eq!(path("file:nbd:x"), Path::new("nbd:x"));
        for name in ["nbd://localhost/x", "ssh://host/x", "https://host/x"] {
            let error = ImageName::typed(name).unwrap_err();
            assert!(error.report().contains("by other ways than a file"));
            assert_eq!(error.path(), Some(name));
        }
    }
}
