//! Writes log lines to standard error. Threads that log put lines into a queue of bounded size; a
//! separate thread writes them. So no request waits for the reader of the log. A line that does not
//! fit into the queue is dropped and counted. Audit lines have a reserve, so that a full queue
//! drops none of them.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::{memchr, memrchr};
use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

/// Target of lines about actions of operators and changes of the service.
pub const AUDIT_TARGET: &str = "audit";

/// How long the writer waits for more lines after the first one: waking the thread for each line
/// costs more than the line.
const BATCH_DELAY: Duration = Duration::from_millis(1);

/// Bytes that a pipe accepts in one piece (`PIPE_BUF` on Linux). During an upgrade two processes
/// write to the same pipe, and their lines must not mix.
const ATOMIC_WRITE_MAX: usize = 4096;

/// Bytes that audit lines may use beyond the capacity: some thousands of lines.
const AUDIT_RESERVE: u64 = 1024 * 1024;

/// Capacity that the buffer keeps after a burst.
const IDLE_CAPACITY: usize = 64 * 1024;

/// Pause before the next attempt at a non-blocking output that is full.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// A bounded queue of lines and the thread that writes them.
pub struct LogWriter {
    queue: Mutex<Queue>,
    /// Signals new lines to the writing thread.
    queued: Condvar,
    /// Signals progress to [`LogWriter::flush`].
    written: Condvar,
    /// Maximum of queued bytes, those that are being written included.
    capacity: u64,
    dropped: IntCounter,
}

#[derive(Default)]
struct Queue {
    lines: Vec<u8>,
    /// Bytes that were ever queued.
    queued: u64,
    /// Bytes of these that are written, or dropped because writing failed.
    done: u64,
}

impl LogWriter {
    pub fn new(capacity: u64, dropped: IntCounter) -> Self {
        let (queued, written) = (Condvar::new(), Condvar::new());
        LogWriter { queue: Mutex::default(), queued, written, capacity, dropped }
    }

    /// Starts the thread that writes queued lines to `output` until the process ends.
    ///
    /// # Errors
    ///
    /// The thread could not be started.
    pub fn spawn(self: &Arc<Self>, output: impl Write + Send + 'static) -> io::Result<()> {
        let writer = self.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || writer.run(output)).map(drop)
    }

    fn push(&self, line: &[u8], priority: Priority) {
        let capacity = match priority {
            Priority::Normal => self.capacity,
            Priority::Audit => self.capacity + AUDIT_RESERVE,
        };
        let mut queue = self.queue.lock();
        let pending = queue.queued - queue.done;
        if pending + line.len() as u64 > capacity {
            drop(queue);
            self.dropped.inc();
            return;
        }
        queue.queued += line.len() as u64;
        queue.lines.extend_from_slice(line);
        drop(queue);
        self.queued.notify_one();
    }

    /// Waits until every line queued so far is written. Gives up after `stall_max` without
    /// progress, and after `timeout` in total.
    pub fn flush(&self, stall_max: Duration, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut queue = self.queue.lock();
        let target = queue.queued;
        while queue.done < target {
            let until = deadline.min(Instant::now() + stall_max);
            if self.written.wait_until(&mut queue, until).timed_out() {
                return;
            }
        }
    }

    fn run(&self, mut output: impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut queue = self.queue.lock();
            while queue.lines.is_empty() {
                self.queued.wait(&mut queue);
            }
            drop(queue);
            pause(BATCH_DELAY);
            mem::swap(&mut self.queue.lock().lines, &mut batch);
            let mut rest = batch.as_slice();
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(chunk_length(rest));
                if write_all(&mut output, chunk).is_err() {
                    self.dropped.inc_by(memchr::memchr_iter(b'\n', chunk).count() as u64);
                }
                self.queue.lock().done += chunk.len() as u64;
                self.written.notify_all();
                rest = after;
            }
            batch.clear();
            batch.shrink_to(IDLE_CAPACITY);
        }
    }
}

/// Which part of the queue a line may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Priority {
    Normal,
    Audit,
}

/// The output of the formatter.
pub struct LogOutput(pub Arc<LogWriter>);

impl<'a> MakeWriter<'a> for LogOutput {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { writer: &self.0, priority: Priority::Normal }
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> LineWriter<'a> {
        let priority =
            if line.target() == AUDIT_TARGET { Priority::Audit } else { Priority::Normal };
        LineWriter { writer: &self.0, priority }
    }
}

/// Receives one line.
pub struct LineWriter<'a> {
    writer: &'a LogWriter,
    priority: Priority,
}

/// The formatter writes a whole line at once.
impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.writer.push(line, self.priority);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Length of the next write: as many whole lines as a pipe accepts in one piece, at least one line.
fn chunk_length(lines: &[u8]) -> usize {
    let Some(first) = lines.get(..ATOMIC_WRITE_MAX) else { return lines.len() };
    let end = memrchr(b'\n', first).or_else(|| memchr(b'\n', lines));
    end.map_or(lines.len(), |end| end + 1)
}

fn write_all(output: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => pause(RETRY_DELAY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "on the writer's own thread, which serves no client")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// Longer than any test takes.
    const TEST_TIMEOUT: Duration = Duration::from_secs(50);

    /// An output that passes each write to the test and returns the result that the test sends.
    struct ScriptedOutput {
        writes: SyncSender<Vec<u8>>,
        results: Receiver<io::Result<usize>>,
    }

    impl Write for ScriptedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let ended = || io::Error::other("the test has ended");
            self.writes.send(bytes.to_vec()).map_err(|_| ended())?;
            self.results.recv().map_err(|_| ended())?
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A writer, the writes to its output, and the results of these writes.
    struct Fixture {
        writer: Arc<LogWriter>,
        writes: Receiver<Vec<u8>>,
        results: SyncSender<io::Result<usize>>,
    }

    impl Fixture {
        fn with_capacity(capacity: u64) -> Fixture {
            let dropped = IntCounter::new("dropped", "dropped").unwrap();
            let writer = Arc::new(LogWriter::new(capacity, dropped));
            let (written, writes) = sync_channel(0);
            let (results, scripted) = sync_channel(0);
            writer.spawn(ScriptedOutput { writes: written, results: scripted }).unwrap();
            Fixture { writer, writes, results }
        }
    }

    fn line_count(bytes: &[u8]) -> usize {
        memchr::memchr_iter(b'\n', bytes).count()
    }

    #[test]
    fn full_queue_drops_and_counts_lines_without_blocking() {
        let line = [&[b'x'; 99][..], b"\n"].concat();
        let Fixture { writer, writes, results } = Fixture::with_capacity(1000);
        writer.push(&line, Priority::Normal);
        // The writer now waits for the result; that line occupies the queue until it is written.
        let first = writes.recv().unwrap();
        for _ in 0..20 {
            writer.push(&line, Priority::Normal);
        }
        assert_eq!((line_count(&first), writer.dropped.get()), (1, 11));
        results.send(Ok(first.len())).unwrap();
        let second = writes.recv().unwrap();
        assert_eq!((line_count(&second), second.len()), (9, 900));
        results.send(Ok(second.len())).unwrap();
        writer.flush(TEST_TIMEOUT, TEST_TIMEOUT);
        writer.push(&line, Priority::Normal);
        assert_eq!(
            (writes.recv().unwrap(), writer.dropped.get()),
            (line, 11),
            "the queue has room again"
        );
    }

    #[test]
    fn audit_line_is_written_although_the_queue_is_full() {
        let Fixture { writer, writes, results } = Fixture::with_capacity(10);
        writer.push(b"123456789\n", Priority::Normal);
        let first = writes.recv().unwrap();
        writer.push(b"normal\n", Priority::Normal);
        writer.push(b"audit\n", Priority::Audit);
        assert_eq!(writer.dropped.get(), 1);
        results.send(Ok(first.len())).unwrap();
        assert_eq!(writes.recv().unwrap(), b"audit\n");
        results.send(Ok(6)).unwrap();
        writer.flush(TEST_TIMEOUT, TEST_TIMEOUT);
        let rest = vec![b'x'; AUDIT_RESERVE as usize + 11];
        writer.push(&rest, Priority::Audit);
        assert_eq!(writer.dropped.get(), 2, "the reserve is bounded");
    }

    #[test]
    fn failed_write_is_counted_and_partial_write_is_continued() {
        let Fixture { writer, writes, results } = Fixture::with_capacity(1000);
        writer.push(b"one\n", Priority::Normal);
        let mut written = writes.recv().unwrap();
        writer.push(b"two\nthree\n", Priority::Normal);
        results.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        assert_eq!(
            (written, writes.recv().unwrap()),
            (b"one\n".to_vec(), b"two\nthree\n".to_vec())
        );
        assert_eq!(writer.dropped.get(), 1);
        results.send(Ok(4)).unwrap();
        written = writes.recv().unwrap();
        results.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        assert_eq!((written, writes.recv().unwrap()), (b"three\n".to_vec(), b"three\n".to_vec()));
        results.send(Ok(6)).unwrap();
        writer.flush(TEST_TIMEOUT, TEST_TIMEOUT);
        assert_eq!(writer.dropped.get(), 1);
    }

    #[test]
    fn flush_waits_while_the_output_makes_progress() {
        let Fixture { writer, writes, results } = Fixture::with_capacity(100_000);
        let line = [&[b'x'; ATOMIC_WRITE_MAX - 1][..], b"\n"].concat();
        for _ in 0..4 {
            writer.push(&line, Priority::Normal);
        }
        // Nothing is written, so the flush gives up.
        let first = writes.recv().unwrap();
        writer.flush(Duration::from_millis(1), TEST_TIMEOUT);
        assert_eq!(writer.queue.lock().done, 0);
        let flush = std::thread::spawn({
            let writer = writer.clone();
            move || writer.flush(TEST_TIMEOUT, TEST_TIMEOUT)
        });
        results.send(Ok(first.len())).unwrap();
        for left in (0..3).rev() {
            let written = writes.recv().unwrap();
            assert!(!flush.is_finished(), "{left} more lines are to be written");
            results.send(Ok(written.len())).unwrap();
        }
        flush.join().unwrap();
        assert_eq!(writer.queue.lock().done, 4 * ATOMIC_WRITE_MAX as u64);
    }

    #[test]
    fn chunk_holds_whole_lines_up_to_the_pipe_limit() {
        assert_eq!(chunk_length(b"one\ntwo\n"), 8);
        let line = [&[b'x'; 999][..], b"\n"].concat();
        assert_eq!(chunk_length(&line.repeat(3)), 3000);
        assert_eq!(chunk_length(&line.repeat(9)), 4000);
        let long = [&[b'x'; 2 * ATOMIC_WRITE_MAX][..], b"\n"].concat();
        assert_eq!(chunk_length(&long.repeat(2)), long.len());
        assert_eq!(chunk_length(&[line.clone(), long].concat()), line.len());
        assert_eq!(chunk_length(&[b'x'; 2 * ATOMIC_WRITE_MAX]), 2 * ATOMIC_WRITE_MAX);
    }
}
