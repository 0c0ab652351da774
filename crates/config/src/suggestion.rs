//! The name that was probably meant by an unknown one.

/// Letters of a common beginning that make two names similar, if they are two thirds of the known
/// one: `caching` means `cache`.
const COMMON_PREFIX_MIN: usize = 3;

/// The known name that was probably meant: a third of its letters may differ, and at least two, or
/// it begins alike.
pub(super) fn closest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    known
        .map(|known| (strsim::osa_distance(&name, &known.to_ascii_lowercase()), known))
        .filter(|(distance, known)| {
            let is_close = *distance <= (known.len() / 3).max(2) && *distance < known.len();
            is_close || begins_alike(&name, &known.to_ascii_lowercase())
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

fn begins_alike(name: &str, known: &str) -> bool {
    let common = name.bytes().zip(known.bytes()).take_while(|(a, b)| a == b).count();
    common >= COMMON_PREFIX_MIN && 3 * common >= 2 * known.len()
}
