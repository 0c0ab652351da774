//! Components of path patterns.

/// Whether a path segment matches a pattern component: a name, `name.*` or `*`.
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
