//! What a cloud would refuse of an image.

use std::path::Path;

use goldsmith_block::{Ailment, Detail, LayerInfo, Result, Symptom};

use crate::cloud::{Cloud, Must, Rule};
use crate::convert::now;
use crate::{ImageInfo, Opener};

/// A rule that an image breaks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The rule.
    pub rule: &'static Rule,
    /// What the fact is.
    pub found: String,
    /// What it must be, to be read after "it must be".
    pub wanted: String,
    /// Which of the images in a container it is about, if not the topmost or the container itself.
    pub member: Option<String>,
}

/// Seconds by which clocks may differ. [libvhd]
const SLACK: u64 = 1800;

/// What `cloud` would refuse of the image at `path`, without opening anything that it names;
/// `format` as in [`Opener::open`].
///
/// ```
/// use goldsmith::{Create, Opener, cloud_named, lint};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let disk = folder.path().join("disk.vhd");
/// Create::new(&disk).format("vpc").option("subformat", "fixed").size(512).run()?;
/// let findings = lint(&Opener::new(), &disk, Some("vpc"), cloud_named("azure")?)?;
/// let broken: Vec<_> = findings.iter().map(|finding| finding.rule.reason).collect();
/// assert_eq!(
///     broken,
///     [
///         "Azure refuses disks that are no whole number of MiB",
///         "Azure's smallest upload is a disk of 20 MiB"
///     ]
/// );
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`Opener::open_alone`].
pub fn lint(
    opener: &Opener,
    path: impl AsRef<Path>,
    format: Option<&str>,
    cloud: &Cloud,
) -> Result<Vec<Finding>> {
    Ok(lint_info(
        &ImageInfo::read(opener, path, format)?,
        cloud,
        now(),
    ))
}

/// What `cloud` would refuse of the image that `info` is about, in the second `now` after 1970.
pub fn lint_info(info: &ImageInfo, cloud: &Cloud, now: u64) -> Vec<Finding> {
    let looks = Looks {
        file: info.looks_like.as_deref(),
        disk: &info.content_looks_like,
        partition_table: info.partition_table,
    };
    let of_tables = |it: &&Symptom| matches!(it.ailment, Ailment::Corrupt | Ailment::Truncated);
    let told = info.layer.warnings.len() + info.symptoms.iter().filter(of_tables).count();
    lint_layer(&info.layer, &looks, told, cloud, now)
}

/// What an image seems to be to those who only look at its bytes, as in [`ImageInfo`].
pub(crate) struct Looks<'a> {
    pub(crate) file: Option<&'a str>,
    pub(crate) disk: &'a [&'static str],
    pub(crate) partition_table: &'static str,
}

/// The same of an image of which `layer` says what its format says, and of whose damage so much is `told`.
pub(crate) fn lint_layer(
    layer: &LayerInfo,
    looks: &Looks<'_>,
    told: usize,
    cloud: &Cloud,
    now: u64,
) -> Vec<Finding> {
    let facts = facts(layer, looks, told);
    let of_all = |rule| {
        let own = finding(rule, &facts, now);
        let members = members(&facts).filter_map(move |(name, facts)| {
            let member = Some(name.to_owned());
            finding(rule, facts, now).map(|finding| Finding { member, ..finding })
        });
        own.into_iter().chain(members)
    };
    cloud.rules().flat_map(of_all).collect()
}

type Fact = (&'static str, Detail);

/// The images in a container that stand behind the topmost, with their names and facts.
fn members(facts: &[Fact]) -> impl Iterator<Item = (&str, &[Fact])> {
    let lists = facts.iter().filter_map(|(name, fact)| match fact {
        Detail::List(members) if *name == "members-behind" => Some(members),
        _ => None,
    });
    lists.flatten().filter_map(|member| match member {
        Detail::Record(facts) => match &facts[..] {
            [("name", Detail::Text(name)), facts @ ..] => Some((&**name, facts)),
            _ => None,
        },
        _ => None,
    })
}

/// Everything that a rule may be about.
fn facts(layer: &LayerInfo, looks: &Looks<'_>, told: usize) -> Vec<Fact> {
    let mut facts = vec![
        ("format", Detail::Text(layer.format.into())),
        ("virtual-size", Detail::Number(layer.virtual_size)),
        ("backing", Detail::Flag(layer.backing.is_some())),
        ("data-file", Detail::Flag(layer.data_file.is_some())),
        ("damage", Detail::Number(told as u64)),
    ];
    // What an image of another format looks like is its own doing and nobody's in the guest.
    if layer.format == "raw" {
        let looks_like = match (looks.file, looks.disk) {
            (None, [only]) => only,
            (None, _) => "several formats, or one unknown here",
            // Some marks are no reason for anybody here to take a disk for something else.
            (Some("raw"), [other, ..]) => other,
            (Some(name), _) => name,
        };
        facts.push(("looks-like", Detail::Text(looks_like.into())));
    }
    let table = looks.partition_table;
    facts.push(("partition-table", Detail::Text(table.into())));
    facts.extend(layer.facts.iter().cloned());
    facts
}

/// The finding if the fact of `rule` is among `facts` and not as it must be.
fn finding(rule: &'static Rule, facts: &[Fact], now: u64) -> Option<Finding> {
    let fact = |name| {
        facts
            .iter()
            .find(|(fact, _)| *fact == name)
            .map(|(_, detail)| detail)
    };
    let found = fact(rule.fact)?;
    let (holds, wanted) = match (rule.must, found) {
        (Must::Be(words), Detail::Text(word)) => (words.contains(&&**word), words.join(" or ")),
        (Must::Count(numbers), Detail::Number(number)) => {
            let texts: Vec<_> = numbers.iter().map(u64::to_string).collect();
            (numbers.contains(number), texts.join(" or "))
        }
        (Must::MultipleOf(unit), Detail::Number(number)) => {
            (number.is_multiple_of(unit), format!("a multiple of {unit}"))
        }
        (Must::AtLeast(least), Detail::Number(number)) => {
            (*number >= least, format!("at least {least}"))
        }
        (Must::AtMost(most), Detail::Number(number)) => {
            (*number <= most, format!("at most {most}"))
        }
        (Must::Equal(other), Detail::Number(number)) => {
            let Detail::Number(other_number) = fact(other)? else {
                return None;
            };
            (
                number == other_number,
                format!("{other_number}, the {other}"),
            )
        }
        (Must::Hold(value), Detail::Flag(flag)) => (*flag == value, value.to_string()),
        (Must::HaveCome, Detail::Number(seconds)) => (
            *seconds <= now.saturating_add(SLACK),
            format!("{now} or before, seconds since 1970"),
        ),
        // A rule about a fact of another kind is a mistake in the table; the tests break each rule.
        _ => return None,
    };
    let found = match found {
        Detail::Flag(flag) => flag.to_string(),
        Detail::Number(number) => number.to_string(),
        Detail::Text(text) => text.clone(),
        Detail::List(_) | Detail::Record(_) => return None,
    };
    (!holds).then_some(Finding {
        rule,
        found,
        wanted,
        member: None,
    })
}
