//! A bounded queue of rendered records, and the thread that writes them.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Write as _};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::Target;
use crate::record::SinkCount;

/// Bytes after which a batch is handed over. One `write` moves it, and it stays in the L2 cache.
const BATCH: usize = 256 << 10;
/// Most bytes handed over and not written yet: 50 ms of the fastest program. Only a target that is slower
/// than that fills it; it is given back when the target has caught up.
const QUEUE: usize = 64 << 20;
/// When less than this is free, who can wait should: between two questions come 32 records of 64 KiB, each byte
/// of which can become six.
const ROOM: usize = 16 << 20;
/// Empty batches kept for use again. A burst may have needed more, which are given back.
const SPARE: usize = 16;

/// What ended the writing to a target.
#[derive(Clone, Debug)]
pub struct Failure {
    target: String,
    error: Arc<io::Error>,
}

impl Failure {
    #[cfg(any(feature = "otlp", feature = "prometheus"))]
    pub(super) fn of(target: &str, error: io::Error) -> Failure {
        Failure {
            target: target.to_owned(),
            error: Arc::new(error),
        }
    }

    /// What went wrong, without what follows from it.
    pub fn cause(&self) -> String {
        let Failure { target, error } = self;
        format!("write to {target}: {error}")
    }

    /// The reader has gone (`| head`): an end, not an error.
    pub fn is_broken_pipe(&self) -> bool {
        self.error.kind() == ErrorKind::BrokenPipe
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { error, .. } = self;
        let cause = self.cause();
        write!(f, "{cause}; the records from here on are dropped")?;
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                f.write_str(", make room or name another file with -o")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Open,
    /// What comes until the next question could be dropped.
    Full,
    /// What comes is dropped.
    Failed,
}

/// The pipeline's end. Every record taken is sent, dropped or waiting.
pub struct Writer {
    name: String,
    shared: Arc<Shared>,
    batch: Batch,
    taken: u64,
    /// Of these, dropped before they were handed over.
    dropped: u64,
    /// The thread has failed; learnt when a batch is handed over.
    failed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Batches came, or the end did.
    work: Condvar,
    /// Bytes went, or the thread did.
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    /// Of `batches` and of the one being written.
    bytes: usize,
    spare: Vec<Batch>,
    sent: u64,
    dropped: u64,
    failure: Option<Failure>,
    trouble: Option<String>,
    /// No batches will come.
    closed: bool,
    /// The thread has ended.
    finished: bool,
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where each record ends.
    ends: Vec<usize>,
}

impl Writer {
    pub fn start(target: Target) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            name: target.name.clone(),
            shared: Arc::clone(&shared),
            batch: Batch::with_room(),
            taken: 0,
            dropped: 0,
            failed: false,
        };
        thread::Builder::new()
            .name("sink".into())
            .spawn(move || shared.run(target))?;
        Ok(writer)
    }

    /// The target's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the record that `encode` appends. False: it was dropped, unencoded.
    pub fn append(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.taken += 1;
        if self.failed || self.batch.bytes.len() >= BATCH && !self.hand_over(QUEUE) {
            self.dropped += 1;
            return false;
        }
        encode(&mut self.batch.bytes);
        self.batch.ends.push(self.batch.bytes.len());
        if self.batch.bytes.len() >= BATCH {
            self.hand_over(QUEUE);
        }
        true
    }

    pub fn state(&self) -> State {
        let queue = self.shared.lock();
        match queue.failure {
            Some(_) => State::Failed,
            None if queue.bytes + ROOM > QUEUE => State::Full,
            None => State::Open,
        }
    }

    pub fn flush(&mut self) {
        self.hand_over(QUEUE);
    }

    pub fn drain(&mut self, deadline: Instant) -> bool {
        self.hand_over(usize::MAX);
        let queue = self.shared.wait(deadline, |queue| queue.bytes > 0);
        queue.bytes == 0
    }

    pub fn count(&self) -> SinkCount {
        let queue = self.shared.lock();
        SinkCount {
            name: self.name.clone(),
            sent: queue.sent,
            dropped: self.dropped + queue.dropped,
        }
    }

    pub fn failure(&self) -> Option<Failure> {
        self.shared.lock().failure.clone()
    }

    pub fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.take()
    }

    pub fn close(mut self, deadline: Instant) -> (SinkCount, Option<Failure>) {
        self.hand_over(usize::MAX);
        self.shared.close();
        let mut queue = self.shared.wait(deadline, |queue| !queue.finished);
        // Late or not: what the thread hasn't begun, it won't.
        queue.batches.clear();
        let count = SinkCount {
            name: self.name.clone(),
            sent: queue.sent,
            dropped: self.taken - queue.sent,
        };
        (count, queue.failure.clone())
    }

    /// Gives the batch to the thread unless there would be more than `limit` bytes with it. True if
    /// the batch is empty now.
    fn hand_over(&mut self, limit: usize) -> bool {
        if self.batch.bytes.is_empty() {
            return true;
        }
        let mut queue = self.shared.lock();
        if queue.failure.is_some() {
            self.failed = true;
            self.dropped += self.batch.ends.len() as u64;
            self.batch.clear();
            return true;
        }
        if queue.bytes + self.batch.bytes.len() > limit {
            return false;
        }
        queue.bytes += self.batch.bytes.len();
        match queue.batches.back_mut() {
            // A flush for each record must not make a batch of each.
            Some(last) if last.bytes.len() + self.batch.bytes.len() <= BATCH => {
                last.append(&mut self.batch);
            }
            _ => {
                let empty = queue.spare.pop().unwrap_or_else(Batch::with_room);
                queue
                    .batches
                    .push_back(mem::replace(&mut self.batch, empty));
            }
        }
        self.shared.work.notify_one();
        true
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Batch {
    /// Room for the record that goes over the edge, in most cases.
    fn with_room() -> Self {
        Batch {
            bytes: Vec::with_capacity(BATCH + (128 << 10)),
            ends: Vec::new(),
        }
    }

    fn append(&mut self, other: &mut Batch) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        self.ends.extend(other.ends.iter().map(|end| start + end));
        other.clear();
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Records that are whole within the first `written` bytes.
    fn whole(&self, written: usize) -> u64 {
        self.ends.partition_point(|end| *end <= written) as u64
    }
}

impl Shared {
    /// The thread.
    fn run(&self, mut target: Target) {
        while let Some(batch) = self.next() {
            let result = self.write(&mut target, &batch);
            let mut queue = self.lock();
            match result {
                Ok(()) => queue.recycle(batch),
                Err((written, error)) => {
                    queue.fail(
                        &batch,
                        written,
                        Failure {
                            target: target.name,
                            error: Arc::new(error),
                        },
                    );
                    break;
                }
            }
            drop(queue);
            self.done.notify_all();
        }
        self.lock().finished = true;
        self.done.notify_all();
    }

    /// Blocks until there is a batch; `None` when there will be no more.
    fn next(&self) -> Option<Batch> {
        let idle = |queue: &mut Queue| queue.batches.is_empty() && !queue.closed;
        self.work
            .wait_while(self.lock(), idle)
            .unwrap_or_else(PoisonError::into_inner)
            .batches
            .pop_front()
    }

    /// Writes all of `batch` and counts as it goes; or how much was written, and the error.
    fn write(&self, target: &mut Target, batch: &Batch) -> Result<(), (usize, io::Error)> {
        let before = self.lock().sent;
        let mut written = 0;
        let mut part = 0;
        while written < batch.bytes.len() {
            if written == part {
                part = self.part(target, batch, written);
            }
            match (&target.file).write(&batch.bytes[written..part]) {
                Ok(0) => return Err((written, ErrorKind::WriteZero.into())),
                Ok(more) => {
                    written += more;
                    self.lock().sent = before + batch.whole(written);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A terminal or a pipe is shared, and somebody made it non-blocking: node does.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _ =
                        rustix::event::poll(&mut [PollFd::new(&target.file, PollFlags::OUT)], None);
                }
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }

    /// Up to where `batch` belongs into the file, which may be another one from here on.
    fn part(&self, target: &mut Target, batch: &Batch, from: usize) -> usize {
        let Some(rotation) = &mut target.rotation else {
            return batch.bytes.len();
        };
        let (part, trouble) = rotation.part(&mut target.file, &batch.ends, from);
        if let Some(trouble) = trouble {
            self.lock().trouble = Some(format!("rotate {}: {trouble}", target.name));
        }
        part
    }

    /// Waits while `condition` holds, until `deadline`.
    fn wait(
        &self,
        deadline: Instant,
        condition: impl FnMut(&mut Queue) -> bool,
    ) -> MutexGuard<'_, Queue> {
        let time = deadline.saturating_duration_since(Instant::now());
        self.done
            .wait_timeout_while(self.lock(), time, condition)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn close(&self) {
        self.lock().closed = true;
        self.work.notify_one();
    }

    /// Nothing panics under the lock, and counts stay right if something does.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn recycle(&mut self, mut batch: Batch) {
        self.bytes -= batch.bytes.len();
        if self.spare.len() < SPARE {
            batch.clear();
            self.spare.push(batch);
        }
    }

    /// The rest of `batch`, of which `written` bytes went out, and all that waits is dropped.
    fn fail(&mut self, batch: &Batch, written: usize, failure: Failure) {
        self.dropped += batch.ends.len() as u64 - batch.whole(written);
        self.dropped += self
            .batches
            .iter()
            .map(|batch| batch.ends.len() as u64)
            .sum::<u64>();
        self.batches.clear();
        self.bytes = 0;
        self.failure = Some(failure);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{PipeReader, Read as _, pipe};
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use super::*;

    fn start(file: File) -> Writer {
        Writer::start(Target {
            name: "test".into(),
            file,
            rotation: None,
        })
        .unwrap()
    }

    fn piped() -> (Writer, PipeReader) {
        let (reader, writer) = pipe().unwrap();
        (start(OwnedFd::from(writer).into()), reader)
    }

    fn full_disk() -> Writer {
        start(File::options().write(true).open("/dev/full").unwrap())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// A numbered line of 1,024 bytes.
    fn append(writer: &mut Writer, number: u64) {
        writer.append(|out| {
            let line = format!("{number:0>1023}\n");
            out.extend_from_slice(line.as_bytes());
        });
    }

    fn numbers(lines: &str) -> Vec<u64> {
        lines.lines().map(|line| line.parse().unwrap()).collect()
    }

    #[test]
    fn everything_arrives_in_order() {
        let (mut writer, mut reader) = piped();
        let reading = thread::spawn(move || {
            let mut lines = String::new();
            reader.read_to_string(&mut lines).unwrap();
            lines
        });
        for number in 0..5000 {
            append(&mut writer, number);
            // Flushes of all kinds: each record, some, none.
            if number < 1000 || number % 7 == 0 {
                writer.flush();
            }
        }
        assert!(writer.drain(soon()));
        assert_eq!((writer.count().sent, writer.count().dropped), (5000, 0));
        append(&mut writer, 5000);
        let (count, failure) = writer.close(soon());
        assert_eq!((count.sent, count.dropped), (5001, 0));
        assert!(failure.is_none());
        assert_eq!(
            numbers(&reading.join().unwrap()),
            (0..5001).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_flush_is_seen_at_once() {
        let (mut writer, mut reader) = piped();
        append(&mut writer, 1);
        writer.flush();
        let mut line = [0; 1024];
        reader.read_exact(&mut line).unwrap();
        assert_eq!(numbers(str::from_utf8(&line).unwrap()), [1]);
    }

    /// A reader that stands still: nothing blocks, memory is bounded, and every record is counted.
    #[test]
    fn a_full_queue_drops_and_counts() {
        let (mut writer, mut reader) = piped();
        let total = 3 * QUEUE as u64 / 1024;
        for number in 0..total {
            append(&mut writer, number);
            assert!(writer.shared.lock().bytes <= QUEUE);
        }
        let dropped = writer.count().dropped;
        let kept = total - dropped;
        // The queue, a batch before it, what the pipe holds behind it.
        assert!(
            (QUEUE as u64 / 1024..(QUEUE + 3 * BATCH) as u64 / 1024).contains(&kept),
            "{kept}"
        );

        let reading = thread::spawn(move || {
            let mut lines = String::new();
            reader.read_to_string(&mut lines).unwrap();
            lines
        });
        assert!(writer.drain(soon()));
        // There is room again.
        append(&mut writer, total);
        let (count, failure) = writer.close(soon());
        assert!(failure.is_none());
        assert_eq!((count.sent, count.dropped), (kept + 1, dropped));
        let arrived = numbers(&reading.join().unwrap());
        let expected: Vec<u64> = (0..kept).chain([total]).collect();
        assert_eq!(arrived, expected);
    }

    #[test]
    fn a_flush_for_each_record_fills_batches() {
        let (mut writer, _reader) = piped();
        for number in 0..4096 {
            append(&mut writer, number);
            writer.flush();
        }
        let batches = writer.shared.lock().batches.len();
        assert!(batches <= 4096 * 1024 / (BATCH / 2), "{batches}");
        assert_eq!(writer.count().dropped, 0);
    }

    #[test]
    fn the_deadline_of_close_holds() {
        let (mut writer, mut reader) = piped();
        for number in 0..1000 {
            append(&mut writer, number);
        }
        let start = Instant::now();
        let (count, failure) = writer.close(start + Duration::from_millis(50));
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(failure.is_none());
        assert_eq!(count.sent + count.dropped, 1000);
        assert!(count.dropped > 0);
        // What the pipe took before is what was counted.
        let mut held = vec![0; count.sent as usize * 1024];
        reader.read_exact(&mut held).unwrap();
        assert_eq!(
            numbers(str::from_utf8(&held).unwrap()),
            (0..count.sent).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_reader_that_went_is_told_apart() {
        let (mut writer, mut reader) = piped();
        append(&mut writer, 0);
        writer.flush();
        reader.read_exact(&mut [0; 1024]).unwrap();
        drop(reader);
        for number in 1..2000 {
            append(&mut writer, number);
        }
        assert!(writer.drain(soon()));
        assert!(writer.failure().unwrap().is_broken_pipe());
        assert_eq!((writer.count().sent, writer.count().dropped), (1, 1999));
        append(&mut writer, 2000);
        assert!(writer.drain(soon()));
        assert_eq!((writer.count().sent, writer.count().dropped), (1, 2000));
        let (count, failure) = writer.close(soon());
        assert_eq!((count.sent, count.dropped), (1, 2000));
        assert!(failure.unwrap().is_broken_pipe());
    }

    #[test]
    fn a_full_disk_is_remembered_and_the_rest_is_counted() {
        let mut writer = full_disk();
        for number in 0..2000 {
            append(&mut writer, number);
        }
        assert!(writer.drain(soon()));
        let failure = writer.failure().unwrap();
        assert!(!failure.is_broken_pipe());
        let message = failure.to_string();
        assert!(
            message.starts_with("write to test: No space left on device"),
            "{message}"
        );
        assert!(message.ends_with("name another file with -o"), "{message}");
        // From here on nothing is even encoded.
        writer.append(|_| unreachable!());
        let (count, _) = writer.close(soon());
        assert_eq!((count.sent, count.dropped), (0, 2001));
    }

    #[test]
    fn a_torn_record_counts_as_dropped() {
        let (mut writer, mut reader) = piped();
        // More than a pipe holds (64 KiB), so that the end comes inside.
        writer.append(|out| out.extend_from_slice(&[b'a'; 1000]));
        writer.append(|out| out.extend_from_slice(&[b'b'; 200_000]));
        writer.append(|out| out.extend_from_slice(&[b'c'; 1000]));
        writer.flush();
        reader.read_exact(&mut [0; 2000]).unwrap();
        drop(reader);
        assert!(writer.drain(soon()));
        assert_eq!((writer.count().sent, writer.count().dropped), (1, 2));
        assert!(writer.close(soon()).1.unwrap().is_broken_pipe());
    }

    #[test]
    fn records_are_told_apart_in_a_batch_of_several_flushes() {
        let (mut writer, mut reader) = piped();
        for (letter, length) in [(b'a', 200_000), (b'b', 100_000), (b'c', 100_000)] {
            writer.append(|out| out.resize(out.len() + length, letter));
            writer.flush();
            // The first is in the thread's hands, so that the others meet in the queue.
            while writer
                .shared
                .lock()
                .batches
                .iter()
                .any(|batch| batch.bytes[0] == b'a')
            {
                thread::yield_now();
            }
        }
        assert_eq!(writer.shared.lock().batches.len(), 1);
        // And the pipe's 64 KiB end inside the last one.
        reader.read_exact(&mut [0; 310_000]).unwrap();
        drop(reader);
        let (count, _) = writer.close(soon());
        assert_eq!((count.sent, count.dropped), (2, 1));
    }

    #[test]
    fn a_nonblocking_pipe_is_waited_for() {
        let (reader, writer) = pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut reader = reader;
        let mut writer = start(OwnedFd::from(writer).into());
        for number in 0..300 {
            append(&mut writer, number);
        }
        writer.flush();
        thread::sleep(Duration::from_millis(50));
        assert!(writer.failure().is_none());
        let mut lines = vec![0; 300 * 1024];
        reader.read_exact(&mut lines).unwrap();
        assert_eq!(
            numbers(str::from_utf8(&lines).unwrap()),
            (0..300).collect::<Vec<_>>()
        );
        let (count, _) = writer.close(soon());
        assert_eq!((count.sent, count.dropped), (300, 0));
    }
}
