//! Lines of the log on their way to standard error: whoever logs puts them into a queue of bounded size, and a thread of its
//! own writes them. So nobody waits for whoever reads the log; a line for which there is no room is dropped and counted.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::{memchr, memrchr};
use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;

/// How long the first line of many waits for the others: a thread that is woken for each line costs more than the line.
const GATHER: Duration = Duration::from_millis(1);

/// As much as one write may hold for a pipe to take it as a whole (`PIPE_BUF` of Linux): while one process takes over from
/// another, both write to the same.
const AT_ONCE: usize = 4096;

/// Memory that is kept for the next lines once those of a burst are written.
const KEPT: usize = 64 * 1024;

/// Pause before another try at an output that was made non-blocking and is full.
const AGAIN: Duration = Duration::from_millis(10);

/// The queue, and what became of what went through it.
pub struct Lines {
    queue: Mutex<Queue>,
    more: Condvar,
    done: Condvar,
    /// Bytes that may be under way, those that are being written included.
    room: u64,
    dropped: IntCounter,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<u8>,
    /// Bytes that were ever taken, and of these the ones that are written or given up.
    taken: u64,
    done: u64,
}

impl Lines {
    pub fn new(room: u64, dropped: IntCounter) -> Self {
        Lines { queue: Mutex::default(), more: Condvar::new(), done: Condvar::new(), room, dropped }
    }

    /// Writes what comes, for as long as the process lives.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn write_to(self: &Arc<Self>, to: impl Write + Send + 'static) -> io::Result<()> {
        let lines = self.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || lines.write_forever(to)).map(drop)
    }

    fn put(&self, line: &[u8]) {
        let mut queue = self.queue.lock();
        let under_way = queue.taken - queue.done;
        if under_way + line.len() as u64 > self.room {
            drop(queue);
            self.dropped.inc();
            return;
        }
        queue.taken += line.len() as u64;
        queue.waiting.extend_from_slice(line);
        drop(queue);
        self.more.notify_one();
    }

    /// Waits until all that was put before is written: as long as something of it is at least every `quiet`, and `longest` at most.
    pub fn flush(&self, quiet: Duration, longest: Duration) {
        let end = Instant::now() + longest;
        let mut queue = self.queue.lock();
        let all = queue.taken;
        while queue.done < all {
            let until = end.min(Instant::now() + quiet);
            if self.done.wait_until(&mut queue, until).timed_out() {
                return;
            }
        }
    }

    fn write_forever(&self, mut to: impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut queue = self.queue.lock();
            while queue.waiting.is_empty() {
                self.more.wait(&mut queue);
            }
            drop(queue);
            pause(GATHER);
            mem::swap(&mut self.queue.lock().waiting, &mut batch);
            let mut rest = batch.as_slice();
            while !rest.is_empty() {
                let (portion, after) = rest.split_at(portion(rest));
                if write(&mut to, portion).is_err() {
                    self.dropped.inc_by(memchr::memchr_iter(b'\n', portion).count() as u64);
                }
                self.queue.lock().done += portion.len() as u64;
                self.done.notify_all();
                rest = after;
            }
            batch.clear();
            batch.shrink_to(KEPT);
        }
    }
}

/// What the formatter writes to; it writes a line at a time.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Length of the lines at the beginning that are written at once: whole ones, and at least one.
fn portion(lines: &[u8]) -> usize {
    let Some(first) = lines.get(..AT_ONCE) else { return lines.len() };
    let end = memrchr(b'\n', first).or_else(|| memchr(b'\n', lines));
    end.map_or(lines.len(), |end| end + 1)
}

fn write(to: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => pause(AGAIN),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the log has a thread of its own")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// More than any test should need.
    const PATIENCE: Duration = Duration::from_secs(50);

    /// Gives each write to the test, and waits for its word on it.
    struct Watched(SyncSender<Vec<u8>>, Receiver<io::Result<usize>>);

    impl Write for Watched {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let gone = |_| io::Error::other("the test is over");
            self.0.send(bytes.to_vec()).map_err(|_| io::Error::other("the test is over"))?;
            self.1.recv().map_err(gone)?
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn set_up(room: u64) -> (Arc<Lines>, Receiver<Vec<u8>>, SyncSender<io::Result<usize>>) {
        let lines = Arc::new(Lines::new(room, IntCounter::new("dropped", "dropped").unwrap()));
        let ((written, writes), (word, words)) = (sync_channel(0), sync_channel(0));
        lines.write_to(Watched(written, words)).unwrap();
        (lines, writes, word)
    }

    fn lines_of(bytes: &[u8]) -> usize {
        memchr::memchr_iter(b'\n', bytes).count()
    }

    #[test]
    fn what_has_no_room_is_dropped_and_counted_and_nobody_waits() {
        let line = [&[b'x'; 99][..], b"\n"].concat();
        let (lines, writes, word) = set_up(1000);
        lines.put(&line);
        // From here on the writer waits for the test; that line counts as long as it is not written.
        let first = writes.recv().unwrap();
        for _ in 0..20 {
            lines.put(&line);
        }
        assert_eq!((lines_of(&first), lines.dropped.get()), (1, 11));
        word.send(Ok(first.len())).unwrap();
        let second = writes.recv().unwrap();
        assert_eq!((lines_of(&second), second.len()), (9, 900));
        word.send(Ok(second.len())).unwrap();
        lines.flush(PATIENCE, PATIENCE);
        lines.put(&line);
        assert_eq!((writes.recv().unwrap(), lines.dropped.get()), (line, 11), "there is room again");
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_what_is_written_in_part_is_written_on() {
        let (lines, writes, word) = set_up(1000);
        lines.put(b"one\n");
        let mut taken = writes.recv().unwrap();
        lines.put(b"two\nthree\n");
        word.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        assert_eq!((taken, writes.recv().unwrap()), (b"one\n".to_vec(), b"two\nthree\n".to_vec()));
        assert_eq!(lines.dropped.get(), 1);
        word.send(Ok(4)).unwrap();
        taken = writes.recv().unwrap();
        word.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        assert_eq!((taken, writes.recv().unwrap()), (b"three\n".to_vec(), b"three\n".to_vec()));
        word.send(Ok(6)).unwrap();
        lines.flush(PATIENCE, PATIENCE);
        assert_eq!(lines.dropped.get(), 1);
    }

    #[test]
    fn a_flush_waits_as_long_as_something_is_written_and_no_longer() {
        let (lines, writes, word) = set_up(100_000);
        let line = [&[b'x'; AT_ONCE - 1][..], b"\n"].concat();
        for _ in 0..4 {
            lines.put(&line);
        }
        // Nothing is written: it gives up.
        let first = writes.recv().unwrap();
        lines.flush(Duration::from_millis(1), PATIENCE);
        assert_eq!(lines.queue.lock().done, 0);
        let flushed = std::thread::spawn({
            let lines = lines.clone();
            move || lines.flush(PATIENCE, PATIENCE)
        });
        word.send(Ok(first.len())).unwrap();
        for left in (0..3).rev() {
            let written = writes.recv().unwrap();
            assert!(!flushed.is_finished(), "{left} more are to be written");
            word.send(Ok(written.len())).unwrap();
        }
        flushed.join().unwrap();
        assert_eq!(lines.queue.lock().done, 4 * AT_ONCE as u64);
    }

    #[test]
    fn whole_lines_are_written_at_once_and_as_many_as_a_pipe_takes_whole() {
        assert_eq!(portion(b"one\ntwo\n"), 8);
        let line = [&[b'x'; 999][..], b"\n"].concat();
        assert_eq!(portion(&line.repeat(3)), 3000);
        assert_eq!(portion(&line.repeat(9)), 4000);
        let long = [&[b'x'; 2 * AT_ONCE][..], b"\n"].concat();
        assert_eq!(portion(&long.repeat(2)), long.len());
        assert_eq!(portion(&[line.clone(), long].concat()), line.len());
        assert_eq!(portion(&[b'x'; 2 * AT_ONCE]), 2 * AT_ONCE);
    }
}
