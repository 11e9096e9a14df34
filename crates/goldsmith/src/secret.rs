//! Passphrases, by the names that options have for them.

use std::fmt;

use goldsmith_block::{Error, OptionKind, OptionSpec, Options, Result};

/// Secrets by their ids; never shown.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Vec<(String, String)>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(id, _)| id))
            .finish()
    }
}

impl Secrets {
    pub(crate) fn insert(&mut self, id: String, text: String) {
        self.0.push((id, text));
    }

    /// As [`Options::parse`], with secrets in the place of their ids.
    pub(crate) fn parse<'a>(
        &'a self,
        specs: &'static [OptionSpec],
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Options> {
        let secret = |key: &str| {
            let spec = specs.iter().find(|spec| spec.name == key);
            spec.is_some_and(|spec| spec.kind == OptionKind::Secret)
        };
        let mut known = Vec::new();
        for (key, value) in pairs {
            let value = match secret(key) {
                true => self.find(value)?,
                false => value,
            };
            known.push((key, value));
        }
        Options::parse(specs, known)
    }

    fn find(&self, id: &str) -> Result<&str> {
        let found = self.0.iter().rev().find(|(known, _)| known == id);
        let found = found.map(|(_, text)| &**text);
        found.ok_or_else(|| {
            let text =
                format!("there is no secret with the id '{id}' (--object secret,id={id},...)");
            Error::usage(text)
        })
    }
}
