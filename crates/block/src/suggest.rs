//! A hint for whoever mistyped a word.

/// Which of the `known` words `word` may have been meant for, to stand behind what refuses it:
/// `; did you mean 'qcow2'?`, or nothing.
///
/// Meant are words that are a slip or two away, by their length, and those that go on where it ends.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let slips = (word.len() / 4).max(1);
    // In shorter ones there is nothing to recognise.
    let known = known.into_iter().filter(|_| word.len() >= 3);
    let meant = known.filter_map(|it| {
        let distance = strsim::osa_distance(word, it);
        (distance <= slips || it.starts_with(word)).then_some((distance, it))
    });
    let meant = meant.min_by_key(|(distance, _)| *distance);
    meant.map_or(String::new(), |(_, it)| format!("; did you mean '{it}'?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slip_is_told_from_another_word() {
        let known = ["raw", "qcow2", "vpc", "cluster_size", "compat"];
        for (word, meant) in [
            ("qcow", Some("qcow2")),
            ("qcow3", Some("qcow2")),
            ("rwa", Some("raw")),
            ("clustersize", Some("cluster_size")),
            ("clutser-size", Some("cluster_size")),
            ("cluster", Some("cluster_size")),
            ("Compat", Some("compat")),
            ("vmfs", None),
            ("vdi", None),
            ("c", None),
            ("ra", None),
            ("", None),
        ] {
            let hint = meant.map_or(String::new(), |it| format!("; did you mean '{it}'?"));
            assert_eq!(did_you_mean(word, known), hint, "{word}");
        }
    }
}
