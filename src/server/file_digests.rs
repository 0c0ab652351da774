//! Digests of files that are read at the start only, so that a reload notices changed contents.

use std::path::Path;

use crate::config::Config;

/// The digests of files by the key that names them; `None` for a file that cannot be read.
pub struct FileDigests(Vec<(&'static str, Option<blake3::Hash>)>);

impl FileDigests {
    /// Reads the files that only the start applies. All other files are read again: by a reload,
    /// when they change, or before each use.
    pub fn of_start_files(config: &Config) -> Self {
        let cluster = config.cluster.as_ref();
        let files = [
            ("cluster.key_file", cluster.map(|cluster| cluster.key_file.as_path())),
            ("cluster.ca_file", cluster.and_then(|cluster| cluster.ca_file.as_deref())),
        ];
        let named = files.into_iter().filter_map(|(key, file)| Some((key, digest(file?))));
        FileDigests(named.collect())
    }

    /// The keys whose files have other contents now.
    pub fn changed_since(&self, before: &FileDigests) -> Vec<&'static str> {
        let find = |key| before.0.iter().find(|(other, _)| *other == key).map(|(_, digest)| digest);
        let is_changed = |(key, digest): &&(&'static str, Option<blake3::Hash>)| {
            find(*key).is_some_and(|before| before != digest)
        };
        self.0.iter().filter(is_changed).map(|(key, _)| *key).collect()
    }
}

fn digest(file: &Path) -> Option<blake3::Hash> {
    std::fs::read(file).ok().map(|bytes| blake3::hash(&bytes))
}
