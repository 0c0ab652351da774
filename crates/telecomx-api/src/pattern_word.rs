//! One word of a path pattern.

/// Whether a segment of a path matches a word of a pattern: a name, `name.*` or `*`.
pub(super) fn word_is(word: &str, segment: &str, same: fn(&str, &str) -> bool) -> bool {
    match word.strip_suffix(".*") {
        _ if word == "*" => true,
        None => same(word, segment),
        Some(stem) => {
            let (start, rest) = segment.split_at_checked(stem.len()).unwrap_or_default();
            rest.starts_with('.') && same(stem, start)
        }
    }
}
