//! Creation options: the `k=v` pairs of `-o`, declared by each format and checked in one place. What
//! refuses one begins with the words that scripts know. [qemu]

use crate::{Error, Result, did_you_mean};

/// One creation option of a format.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// The key.
    pub name: &'static str,
    /// What values it takes.
    pub kind: OptionKind,
    /// The value that holds if none is given, spelled as a user would.
    pub default: &'static str,
    /// One line for `-o help`.
    pub help: &'static str,
}

/// What values an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// `on` or `off`.
    Flag,
    /// Bytes, with an optional suffix (see [`parse_size`]).
    Size,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text; the empty one is none.
    Text,
    /// A text that is never shown; the empty one is none. Users give the id of a secret, formats get
    /// the secret.
    Secret,
}

/// Values for all options of one format, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    values: Vec<(&'static str, Value)>,
    /// The names of those that somebody gave a value.
    given: Vec<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Flag(bool),
    Size(u64),
    Choice(&'static str),
    Text(String),
    Secret(Secret),
}

#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Options {
    /// Every option of `specs` at its default.
    pub fn defaults(specs: &'static [OptionSpec]) -> Self {
        let value = |spec: &OptionSpec| {
            // A default is part of the program; the tests of each format run this for all of them.
            spec.parse(spec.default)
                .expect("the default of an option is one of its values")
        };
        Self {
            values: specs.iter().map(|spec| (spec.name, value(spec))).collect(),
            given: Vec::new(),
        }
    }

    /// The defaults of `specs`, with `pairs` laid over them; the last one of a key wins.
    ///
    /// # Errors
    /// `Usage` if a key is unknown or a value is none that its option takes.
    pub fn parse<'a>(
        specs: &'static [OptionSpec],
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self> {
        let mut options = Self::defaults(specs);
        for (key, value) in pairs {
            let Some(at) = specs.iter().position(|spec| spec.name == key) else {
                let known: Vec<_> = specs.iter().map(|spec| spec.name).collect();
                let known = if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                };
                let hint = did_you_mean(key, specs.iter().map(|spec| spec.name));
                return Err(Error::usage(format!(
                    "Invalid parameter '{key}'; this format has: {known}{hint}"
                )));
            };
            if let (OptionKind::Text, "") = (specs[at].kind, value) {
                let text = format!("Parameter '{key}' expects a name, and has none");
                return Err(Error::usage(text));
            }
            options.values[at].1 = specs[at].parse(value)?;
            if !options.given.contains(&specs[at].name) {
                options.given.push(specs[at].name);
            }
        }
        Ok(options)
    }

    /// Whether somebody gave `name` a value, be it the default.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains(&name)
    }

    /// The names of the options that somebody gave a value, each once.
    pub fn given(&self) -> &[&'static str] {
        &self.given
    }

    /// The value of the flag `name`.
    ///
    /// # Panics
    /// If the format declares no such flag: a bug of the format, not of an image or a user.
    pub fn flag(&self, name: &str) -> bool {
        match self.value(name) {
            Value::Flag(on) => *on,
            other => panic!("option {name} is no flag but {other:?}"),
        }
    }

    /// The value of the size `name`, in bytes.
    ///
    /// # Panics
    /// If the format declares no such size: a bug of the format, not of an image or a user.
    pub fn size(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Size(bytes) => *bytes,
            other => panic!("option {name} is no size but {other:?}"),
        }
    }

    /// The word chosen for `name`, spelled as it was declared.
    ///
    /// # Panics
    /// If the format declares no such choice: a bug of the format, not of an image or a user.
    pub fn choice(&self, name: &str) -> &'static str {
        match self.value(name) {
            Value::Choice(word) => word,
            other => panic!("option {name} is no choice but {other:?}"),
        }
    }

    /// The text given for `name`; `None` if none was given, or if the format declares no such text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.find(name)? {
            Value::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// The secret given for `name`; `None` if none was given.
    pub fn secret(&self, name: &str) -> Option<&str> {
        match self.find(name)? {
            Value::Secret(Secret(text)) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    fn value(&self, name: &str) -> &Value {
        match self.find(name) {
            Some(value) => value,
            None => panic!("option {name} is not declared"),
        }
    }

    fn find(&self, name: &str) -> Option<&Value> {
        let found = self.values.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value)
    }
}

impl OptionSpec {
    fn parse(&self, text: &str) -> Result<Value> {
        let name = self.name;
        match self.kind {
            OptionKind::Flag => match text {
                "on" | "yes" | "true" => Ok(Value::Flag(true)),
                "off" | "no" | "false" => Ok(Value::Flag(false)),
                _ => Err(Error::usage(format!(
                    "Parameter '{name}' expects 'on' or 'off', not '{text}'"
                ))),
            },
            OptionKind::Size => parse_size(text).map(Value::Size).ok_or_else(|| {
                Error::usage(format!(
                    "Parameter '{name}' expects a size such as 65536 or 64k, which '{text}' is not"
                ))
            }),
            OptionKind::Text => Ok(Value::Text(text.to_owned())),
            OptionKind::Secret => Ok(Value::Secret(Secret(text.to_owned()))),
            OptionKind::Choice(words) => match words.iter().find(|word| **word == text) {
                Some(word) => Ok(Value::Choice(word)),
                None => Err(Error::usage(format!(
                    "Parameter '{name}' does not accept value '{text}', only {}{}",
                    words.join(", "),
                    did_you_mean(text, words.iter().copied())
                ))),
            },
        }
    }
}

/// A size as qemu-img takes it: digits, perhaps a fraction, perhaps one of `b k M G T P E` (either
/// case, base 1024), to the nearest byte. `None` if it is none, is a fraction of single bytes or does not fit
/// in 63 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        let all_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bytes = u64::from_str_radix(digits, 16).ok().filter(|_| all_digits);
        return bytes.filter(|bytes| i64::try_from(*bytes).is_ok());
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |s: &str| s.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let number = |digits: &str| match digits {
        "" => Some(0),
        digits => digits.parse::<u64>().ok().map(u128::from),
    };
    // More of them make no byte.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10u128.pow(fraction.len() as u32);
    let (whole, fraction) = (number(whole)?, number(fraction)?);
    if fraction > 0 && shift == 0 {
        return None;
    }
    let unit = 1u128 << shift;
    let bytes = whole * unit + (2 * fraction * unit + scale) / (2 * scale);
    u64::try_from(bytes)
        .ok()
        .filter(|bytes| i64::try_from(*bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    static SPECS: [OptionSpec; 3] = [
        OptionSpec {
            name: "lazy",
            kind: OptionKind::Flag,
            default: "off",
            help: "",
        },
        OptionSpec {
            name: "cluster_size",
            kind: OptionKind::Size,
            default: "64k",
            help: "",
        },
        OptionSpec {
            name: "compat",
            kind: OptionKind::Choice(&["0.10", "1.1"]),
            default: "1.1",
            help: "",
        },
    ];

    #[test]
    fn default_that_somebody_gave_is_told_from_one_that_nobody_did() {
        let options = Options::parse(&SPECS, [("lazy", "off"), ("lazy", "off")]).unwrap();
        assert_eq!(options.given(), ["lazy"]);
        assert!(options.is_given("lazy") && !options.is_given("compat"));
        assert!(Options::defaults(&SPECS).given().is_empty());
    }

    #[test]
    fn text_is_none_until_it_is_given() {
        static TEXT: [OptionSpec; 1] = [OptionSpec {
            name: "backing_file",
            kind: OptionKind::Text,
            default: "",
            help: "",
        }];
        let options = |pairs: &[(&'static str, &'static str)]| {
            Options::parse(&TEXT, pairs.iter().copied()).unwrap()
        };
        assert_eq!(options(&[]).text("backing_file"), None);
        let given = options(&[("backing_file", "a b")]);
        assert_eq!(given.text("backing_file"), Some("a b"));
        assert_eq!(given.text("data_file"), None);
    }

    #[test]
    fn secret_is_not_shown() {
        static SECRET: [OptionSpec; 1] = [OptionSpec {
            name: "key",
            kind: OptionKind::Secret,
            default: "",
            help: "",
        }];
        let options = Options::parse(&SECRET, [("key", "sesame")]).unwrap();
        assert_eq!(options.secret("key"), Some("sesame"));
        assert!(!format!("{options:?}").contains("sesame"));
    }

    #[test]
    fn last_value_of_a_key_wins_over_the_default() {
        let pairs = [
            ("cluster_size", "4k"),
            ("cluster_size", "8K"),
            ("lazy", "on"),
        ];
        let options = Options::parse(&SPECS, pairs).unwrap();
        assert_eq!(options.size("cluster_size"), 8192);
        assert!(options.flag("lazy"));
        assert_eq!(options.choice("compat"), "1.1");
    }

    #[test]
    fn wrong_pairs_are_refused_with_what_would_be_right() {
        let refused = |key, value| Options::parse(&SPECS, [(key, value)]).unwrap_err().report();
        assert_eq!(
            refused("cluster", "4k"),
            "Invalid parameter 'cluster'; this format has: lazy, cluster_size, compat; did you mean \
             'cluster_size'?"
        );
        assert_eq!(
            refused("lazy", "maybe"),
            "Parameter 'lazy' expects 'on' or 'off', not 'maybe'"
        );
        assert_eq!(
            refused("compat", "2"),
            "Parameter 'compat' does not accept value '2', only 0.10, 1.1"
        );
        assert!(refused("cluster_size", "4q").contains("'4q' is not"));
    }

    #[test]
    fn sizes_are_read_as_qemu_img_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("64k", 65536),
            ("1.5G", 3 << 29),
            ("8M", 8 << 20),
            ("7E", 7 << 60),
            ("512b", 512),
            ("0x10", 16),
            ("0XfF", 255),
            ("12.345M", 12_944_671),
            ("0.9999999k", 1024),
            ("0.0001k", 0),
            (".5M", 1 << 19),
            ("1.00000000000000000000001G", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in [
            "", "k", "-1", "1kk", "1.5", "8E", "1e3", ".", ".k", "1.5b", "0x", "0x1k", "0x+1",
            "1 k",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
