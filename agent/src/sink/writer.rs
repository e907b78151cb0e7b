//! A bounded queue of rendered records, and the thread that writes them.
//!
//! A file that fails may work again later: a disk has room, a server answers. Until then its records are dropped and
//! counted, and from time to time the next ones are tried. A line that was written in part is finished first.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Write as _};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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

/// How long a file that failed is left alone, at first and at most: twice as long each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often it is asked whether the file still has its name.
const LOOK: Duration = Duration::from_secs(1);

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
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Batches came, or the end did.
    work: Condvar,
    /// Bytes went, or the thread did.
    done: Condvar,
    /// What comes is dropped: the target has failed, for good or not.
    is_down: AtomicBool,
    /// Records that were dropped before they were handed over.
    unencoded: AtomicU64,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    /// Of `batches` and of the one being written.
    bytes: usize,
    spare: Vec<Batch>,
    sent: u64,
    dropped: u64,
    /// A record of which a part was written is neither so far.
    is_torn: bool,
    failure: Option<Failure>,
    outage: Option<Outage>,
    troubles: Vec<String>,
    /// No batches will come.
    closed: bool,
    /// The thread has ended.
    finished: bool,
}

/// The file has failed and is tried again.
struct Outage {
    failure: Failure,
    /// Records that were dropped before.
    dropped: u64,
}

/// A line that was written in part.
struct Torn {
    rest: Vec<u8>,
    /// Of the file behind that part: somebody who makes room may empty it.
    size: u64,
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
        let is_down = self.shared.is_down.load(Ordering::Relaxed);
        if is_down || self.batch.bytes.len() >= BATCH && !self.hand_over(QUEUE) {
            self.shared.unencoded.fetch_add(1, Ordering::Relaxed);
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
            // Nobody waits for it.
            None if queue.outage.is_some() => State::Failed,
            None if queue.bytes + ROOM > QUEUE => State::Full,
            None => State::Open,
        }
    }

    pub fn flush(&mut self) {
        self.hand_over(QUEUE);
    }

    pub fn drain(&mut self, deadline: Instant) -> bool {
        self.hand_over(usize::MAX);
        let mut queue = self.shared.wait(deadline, |queue| queue.bytes > 0);
        // Nobody waits for a disk. Its line is finished all the same.
        queue.dropped += u64::from(mem::take(&mut queue.is_torn));
        queue.bytes == 0
    }

    pub fn count(&self) -> SinkCount {
        let queue = self.shared.lock();
        SinkCount {
            name: self.name.clone(),
            sent: queue.sent,
            dropped: self.shared.dropped(&queue),
        }
    }

    pub fn failure(&self) -> Option<Failure> {
        self.shared.lock().failure.clone()
    }

    pub fn troubles(&self) -> Vec<String> {
        mem::take(&mut self.shared.lock().troubles)
    }

    /// Why nothing is written now, if it is tried again.
    pub fn outage(&self) -> Option<Failure> {
        let queue = self.shared.lock();
        queue.outage.as_ref().map(|outage| outage.failure.clone())
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
        if self.shared.is_down.load(Ordering::Relaxed) {
            queue.dropped += self.batch.ends.len() as u64;
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

    /// The rest of the record in the middle of which so many bytes end.
    fn torn(&self, written: usize) -> Option<&[u8]> {
        let whole = self.whole(written) as usize;
        let begin = whole.checked_sub(1).map_or(0, |last| self.ends[last]);
        let end = *self.ends.get(whole)?;
        (begin < written).then(|| &self.bytes[written..end])
    }

    /// Records that are whole within the first `written` bytes.
    fn whole(&self, written: usize) -> u64 {
        self.ends.partition_point(|end| *end <= written) as u64
    }
}

impl Shared {
    /// The thread.
    fn run(&self, mut target: Target) {
        let mut torn = None;
        let mut pause = RETRY_FIRST;
        while let Some(batch) = self.next() {
            let result = match self.mend(&mut target, &mut torn) {
                Ok(()) => self.write(&mut target, &batch),
                Err(error) => Err((0, error)),
            };
            let mut queue = self.lock();
            let Err((written, error)) = result else {
                queue.recycle(batch);
                self.works_again(&mut queue);
                pause = RETRY_FIRST;
                drop(queue);
                self.done.notify_all();
                continue;
            };
            let is_final = !target.recovers || error.kind() == ErrorKind::BrokenPipe;
            let failure = Failure {
                target: target.name.clone(),
                error: Arc::new(error),
            };
            self.is_down.store(true, Ordering::Relaxed);
            if is_final {
                queue.drop_all(&batch, written);
                queue.failure = Some(failure);
                break;
            }
            self.suspend(&mut queue, failure);
            queue.drop_all(&batch, written);
            if let Some(rest) = batch.torn(written) {
                queue.dropped -= 1;
                queue.is_torn = true;
                let size = target.size().unwrap_or_default();
                let rest = rest.to_vec();
                torn = Some(Torn { rest, size });
            }
            drop(queue);
            self.done.notify_all();
            self.pause(pause);
            pause = RETRY_MAX.min(pause * 2);
            self.is_down.store(false, Ordering::Relaxed);
        }
        let _ = self.mend(&mut target, &mut torn);
        self.lock().finished = true;
        self.done.notify_all();
    }

    /// Said once, and once more when it is over.
    fn suspend(&self, queue: &mut Queue, failure: Failure) {
        if queue.outage.is_some() {
            return;
        }
        let cause = failure.cause();
        let dropped = self.dropped(queue);
        queue.outage = Some(Outage { failure, dropped });
        queue.troubles.push(format!(
            "{cause}; its records are dropped and counted until it can be written again"
        ));
    }

    fn works_again(&self, queue: &mut Queue) {
        if let Some(Outage { failure, dropped }) = queue.outage.take() {
            let dropped = self.dropped(queue) - dropped;
            let target = failure.target;
            queue.troubles.push(format!(
                "{target} is written again; {dropped} records were dropped meanwhile"
            ));
        }
    }

    /// Lets time go by, unless there will be no more records.
    fn pause(&self, time: Duration) {
        let is_open = |queue: &mut Queue| !queue.closed;
        drop(
            self.work
                .wait_timeout_while(self.lock(), time, is_open)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Writes the rest of a line that was written in part. Where somebody has emptied the file meanwhile, or it is
    /// another one, nothing of the line is left to go on with: it is dropped.
    fn mend(&self, target: &mut Target, torn: &mut Option<Torn>) -> io::Result<()> {
        let is_another = self.look(target)?;
        let Some(line) = torn else {
            return Ok(());
        };
        if is_another || target.size()? != line.size {
            let mut queue = self.lock();
            queue.dropped += u64::from(mem::take(&mut queue.is_torn));
            *torn = None;
            return Ok(());
        }
        while !line.rest.is_empty() {
            match (&target.file).write(&line.rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    line.rest.drain(..written);
                    line.size += written as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut queue = self.lock();
        queue.sent += u64::from(mem::take(&mut queue.is_torn));
        *torn = None;
        Ok(())
    }

    /// What is written to a file without a name nobody will ever read. True if it is another file now.
    fn look(&self, target: &mut Target) -> io::Result<bool> {
        if !target.recovers || target.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return Ok(false);
        }
        if target.has_name()? {
            target.looked = Some(Instant::now());
            return Ok(false);
        }
        let removed = || io::Error::new(ErrorKind::NotFound, "the file was removed");
        let rotation = target.rotation.as_mut().ok_or_else(removed)?;
        if !rotation.replace(&mut target.file) {
            return Err(removed());
        }
        let name = &target.name;
        let trouble = format!("{name} was removed: the records go on in a new one");
        self.lock().troubles.push(trouble);
        Ok(true)
    }

    fn dropped(&self, queue: &Queue) -> u64 {
        queue.dropped + self.unencoded.load(Ordering::Relaxed)
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
            let trouble = format!("rotate {}: {trouble}", target.name);
            self.lock().troubles.push(trouble);
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
    fn drop_all(&mut self, batch: &Batch, written: usize) {
        self.dropped += batch.ends.len() as u64 - batch.whole(written);
        self.dropped += self
            .batches
            .iter()
            .map(|batch| batch.ends.len() as u64)
            .sum::<u64>();
        self.batches.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::ffi::{CStr, CString};
    use std::fs::{self, File};
    use std::io::{PipeReader, Read as _, pipe};
    use std::os::fd::OwnedFd;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::Path;
    use std::ptr;

    use super::*;

    fn start(file: File) -> Writer {
        Writer::start(Target {
            name: "test".into(),
            file,
            rotation: None,
            recovers: false,
            looked: None,
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

    /// A file system with room for 64 KiB that this thread alone sees, gone with it.
    fn on_a_small_disk(test: impl FnOnce(&Path) + Send + 'static) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: only root mounts a file system");
            return;
        }
        let name = format!(
            "vortex-disk-{}-{:?}",
            std::process::id(),
            thread::current().id()
        );
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        let inside = path.clone();
        let tested = thread::spawn(move || {
            let place = CString::new(inside.as_os_str().as_bytes()).unwrap();
            let mount = |place: &CStr, kind: &CStr, flags, data: *const libc::c_char| {
                // SAFETY: strings end with a zero, and the kernel keeps none of them.
                let done = unsafe {
                    libc::mount(
                        c"none".as_ptr(),
                        place.as_ptr(),
                        kind.as_ptr(),
                        flags,
                        data.cast(),
                    )
                };
                assert_eq!(done, 0, "{}", io::Error::last_os_error());
            };
            // SAFETY: takes an integer. Of this thread nothing but its mounts and its directory become its own.
            let done = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
            mount(c"/", c"none", libc::MS_PRIVATE | libc::MS_REC, ptr::null());
            mount(&place, c"tmpfs", 0, c"size=64k".as_ptr());
            test(&inside);
        });
        let result = tested.join();
        fs::remove_dir(&path).unwrap();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
        let until = soon();
        while !holds() {
            assert!(Instant::now() < until, "{what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Appends until it is written again; the number of the next line.
    fn until_it_works(writer: &mut Writer, mut next: u64) -> u64 {
        wait_until("it is written again", || {
            append(writer, next);
            next += 1;
            writer.flush();
            writer.drain(soon());
            writer.outage().is_none()
        });
        next
    }

    /// Delivered and dropped are all that there was, and the file has nothing but whole lines, in order.
    fn assert_whole(writer: Writer, file: &Path, total: u64) -> SinkCount {
        let (count, failure) = writer.close(soon());
        assert!(failure.is_none(), "{failure:?}");
        assert_eq!(count.sent + count.dropped, total);
        let lines = fs::read_to_string(file).unwrap();
        assert!(lines.lines().all(|line| line.len() == 1023) && lines.ends_with('\n'));
        let numbers = numbers(&lines);
        assert!(numbers.is_sorted_by(|one, other| one < other));
        assert!(numbers.len() as u64 <= count.sent, "{count:?}");
        assert_eq!(numbers.last(), Some(&(total - 1)));
        count
    }

    #[test]
    fn a_full_disk_is_written_again_when_it_has_room() {
        on_a_small_disk(|disk| {
            let (file, filler) = (disk.join("records"), disk.join("filler"));
            fs::write(&filler, vec![0; 30_000]).unwrap();
            let mut writer = Writer::start(Target::file(&file).unwrap()).unwrap();
            // An odd line, so that the disk is full in the middle of another one.
            writer.append(|out| out.extend_from_slice(&[b'\n'; 1]));
            for number in 1..100 {
                append(&mut writer, number);
            }
            assert!(writer.drain(soon()));
            assert_eq!(writer.state(), State::Failed, "nobody waits for it");
            let length = fs::metadata(&file).unwrap().len();
            assert!(length > 1024 && length % 1024 != 1, "a torn line: {length}");
            let [trouble] = &writer.troubles()[..] else {
                panic!("said once");
            };
            assert!(trouble.contains("No space left on device"), "{trouble}");
            // While it is down nothing is even encoded, and nothing is said again.
            writer.append(|_| unreachable!());
            thread::sleep(RETRY_FIRST + Duration::from_millis(300));
            append(&mut writer, 101);
            writer.flush();
            wait_until("another try", || {
                writer.shared.is_down.load(Ordering::Relaxed)
            });
            assert!(writer.troubles().is_empty() && writer.failure().is_none());
            fs::remove_file(&filler).unwrap();
            let next = until_it_works(&mut writer, 102);
            let dropped = writer.count().dropped;
            let expected = format!("{} is written again; {dropped} records", file.display());
            let troubles = writer.troubles();
            assert!(
                troubles.len() == 1 && troubles[0].starts_with(&expected),
                "{troubles:?}"
            );
            // The empty line in front is ours.
            let (count, failure) = writer.close(soon());
            assert!(failure.is_none());
            assert_eq!(count.sent + count.dropped, next);
            let text = fs::read_to_string(&file).unwrap();
            let lines = text.strip_prefix('\n').unwrap();
            assert!(
                lines.lines().all(|line| line.len() == 1023),
                "the torn line was finished"
            );
            // Somebody asked for a count meanwhile: then the torn line counts as dropped.
            assert_eq!(numbers(lines).len() as u64, count.sent);
            assert!(numbers(lines).is_sorted_by(|one, other| one < other));
        });
    }

    #[test]
    fn who_empties_a_full_file_finds_whole_lines_in_it() {
        on_a_small_disk(|disk| {
            let (file, filler) = (disk.join("records"), disk.join("filler"));
            fs::write(&filler, vec![0; 30_000]).unwrap();
            let mut writer = Writer::start(Target::file(&file).unwrap()).unwrap();
            for number in 0..100 {
                append(&mut writer, number);
            }
            // In the middle of a line.
            writer.append(|out| out.extend_from_slice(&[b'1'; 100]));
            assert!(writer.drain(soon()));
            File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_len(0)
                .unwrap();
            let next = until_it_works(&mut writer, 101);
            assert_whole(writer, &file, next);
        });
    }

    #[test]
    fn what_is_written_to_a_removed_file_is_dropped() {
        let file = env::temp_dir().join(format!("vortex-removed-{}", std::process::id()));
        let mut writer = Writer::start(Target::file(&file).unwrap()).unwrap();
        append(&mut writer, 0);
        assert!(writer.drain(soon()));
        fs::remove_file(&file).unwrap();
        let mut taken = 1;
        wait_until("it is noticed", || {
            append(&mut writer, taken);
            taken += 1;
            writer.drain(soon());
            writer.outage().is_some()
        });
        let troubles = writer.troubles();
        assert!(troubles[0].contains("the file was removed"), "{troubles:?}");
        let (count, _) = writer.close(soon());
        assert_eq!(count.sent + count.dropped, taken);
        assert!(count.dropped > 0);
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
