//! The names by which images mean other files.

use goldsmith_block::{Error, Result};
use serde_json::{Map, Value};

/// A file that an image names, however it spells the name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileName {
    /// The path; a relative one counts from the image's directory. [ours] QEMU looks for what is
    /// spelled `file:` or `json:` in the directory where it happens to run.
    pub(crate) path: String,
    /// The format that the name says the file has.
    pub(crate) format: Option<String>,
}

/// The formats that a `json:` name may state.
const DRIVERS: [&str; 3] = ["qcow2", "raw", "vpc"];

impl FileName {
    /// Reads a plain path, `file:PATH`, or `json:{...}` with a format over a file.
    ///
    /// # Errors
    /// `Unsupported` for everything else, by its name.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        let plain = |path: &str| Self {
            path: path.to_owned(),
            format: None,
        };
        match protocol(name) {
            None => Ok(plain(name)),
            Some(("file", path)) => Ok(plain(path)),
            Some(("json", text)) => Self::from_json(text),
            Some((protocol, _)) => Err(Error::unsupported(format!(
                "the file '{name}' is no plain path but of the kind '{protocol}:'"
            ))),
        }
    }

    fn from_json(text: &str) -> Result<Self> {
        let refuse =
            |why: String| Err(Error::unsupported(format!("the file 'json:{text}': {why}")));
        let object: Map<String, Value> = match serde_json::from_str(text) {
            Ok(object) => object,
            Err(error) => return refuse(format!("it is no JSON object: {error}")),
        };
        let mut facts = Vec::new();
        flatten("", &object, &mut facts);
        let (mut format, mut path) = (None, None);
        for (key, value) in facts {
            let Value::String(value) = value else {
                return refuse(format!("'{key}' is no text"));
            };
            let place = match (&*key, &**value) {
                ("driver", driver) if DRIVERS.contains(&driver) => &mut format,
                ("file.driver", "file") => continue,
                ("driver" | "file.driver", driver) => {
                    return refuse(format!(
                        "the driver '{driver}' is not supported for '{key}'"
                    ));
                }
                ("file.filename", name) if protocol(name).is_some() => {
                    return refuse(format!("'{name}' is no plain path"));
                }
                ("file.filename", _) => &mut path,
                _ => return refuse(format!("the key '{key}' is not supported")),
            };
            if place.replace(value.clone()).is_some() {
                return refuse(format!("'{key}' is there twice"));
            }
        }
        match path {
            Some(path) => Ok(Self { path, format }),
            None => refuse("it names no file ('file.filename')".into()),
        }
    }
}

/// What stands before the first colon of `name` and behind it: the kind of what it names, unless it
/// is part of a path, as in QEMU.
pub fn protocol(name: &str) -> Option<(&str, &str)> {
    let (protocol, rest) = name.split_once(':')?;
    (!protocol.contains('/')).then_some((protocol, rest))
}

/// The values of `object` and of the objects in it, with keys joined by dots. The depth is bounded:
/// the parser stops at 128.
fn flatten<'a>(prefix: &str, object: &'a Map<String, Value>, facts: &mut Vec<(String, &'a Value)>) {
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        match value {
            Value::Object(object) => flatten(&format!("{key}."), object, facts),
            value => facts.push((key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> (String, Option<String>) {
        let FileName { path, format } = FileName::parse(name).unwrap();
        (path, format)
    }

    fn refused(name: &str) -> String {
        let error = FileName::parse(name).unwrap_err();
        assert_eq!(error.kind(), goldsmith_block::ErrorKind::Unsupported);
        error.report()
    }

    #[test]
    fn every_spelling_of_a_file_is_its_path() {
        let raw = Some("raw".to_owned());
        for (name, path, format) in [
            ("base.raw", "base.raw", None),
            ("./a:b", "./a:b", None),
            ("/x/a:b", "/x/a:b", None),
            ("file:base.raw", "base.raw", None),
            ("file:/x/base.raw", "/x/base.raw", None),
            (
                r#"json:{"driver":"raw","file":{"driver":"file","filename":"b"}}"#,
                "b",
                raw.clone(),
            ),
            (
                r#"json:{"driver":"raw","file.filename":"b"}"#,
                "b",
                raw.clone(),
            ),
            (
                r#"json: {"file.driver":"file", "file.filename": "b"} "#,
                "b",
                None,
            ),
        ] {
            assert_eq!(parsed(name), (path.to_owned(), format), "{name}");
        }
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
            (
                r#"json:{"driver":"nbd","file.filename":"x"}"#,
                "the driver 'nbd' is not supported for 'driver'",
            ),
            (
                r#"json:{"driver":"file","filename":"x"}"#,
                "the driver 'file' is not supported for 'driver'",
            ),
            (
                r#"json:{"file":{"driver":"host_device","filename":"x"}}"#,
                "the driver 'host_device' is not supported for 'file.driver'",
            ),
            (
                r#"json:{"driver":"raw","offset":512,"file.filename":"x"}"#,
                "'offset' is no text",
            ),
            (
                r#"json:{"driver":"raw","file":"node"}"#,
                "the key 'file' is not supported",
            ),
            (
                r#"json:{"file.filename":"nbd:x"}"#,
                "'nbd:x' is no plain path",
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
}
