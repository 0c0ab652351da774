//! A thread that reloads files after they changed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Interval of the checks. Files are read once they were equal twice, since two files, such as a
/// certificate and its key, are not written at once.
const CHECK_INTERVAL: Duration = Duration::from_millis(400);

/// The properties that change when a file is written or replaced. `ctime` also changes if the file
/// is written in place with the same size and modification time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    status_changed: (i64, i64),
    length: u64,
    inode: u64,
}

impl Stamp {
    fn read(file: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(file).ok()?;
        Some(Stamp {
            modified: metadata.modified().ok()?,
            status_changed: (metadata.ctime(), metadata.ctime_nsec()),
            length: metadata.len(),
            inode: metadata.ino(),
        })
    }
}

/// Calls `reload` after a change of one of the files, and again at each interval until it returns
/// `true`: the cause of a failure may end without another change.
#[expect(clippy::disallowed_methods, reason = "a thread that serves no request")]
pub fn spawn(
    name: &str,
    files: impl Fn() -> Vec<PathBuf> + Send + 'static,
    mut reload: impl FnMut() -> bool + Send + 'static,
) {
    let stamps = move || -> Vec<(PathBuf, Option<Stamp>)> {
        let stamp = |file: PathBuf| {
            let stamp = Stamp::read(&file);
            (file, stamp)
        };
        files().into_iter().map(stamp).collect()
    };
    let work = move || {
        let mut loaded = stamps();
        let mut last = loaded.clone();
        // The files may have changed since they were loaded.
        let mut is_loaded = false;
        loop {
            std::thread::sleep(CHECK_INTERVAL);
            let now = stamps();
            let is_settled = now == last;
            last = now;
            if is_settled && (last != loaded || !is_loaded) {
                is_loaded = reload();
                loaded.clone_from(&last);
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::error!(%error, watched = name, "failed to watch files; reload after each change");
    }
}
