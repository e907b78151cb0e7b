//! The pipeline's end of deliver: takes records as a sink does, and knows of each what became of it.
//!
//! ```text
//! pipeline ── encode ─► batch ── hand over ─► queue (bounded) ── thread ─► socket ─► deliver
//!        counts ◄── thread ◄── reports ◄──────────────────────────────── socket ◄────┘
//! ```
//! The pipeline never waits. Of each lane, every record is sent, dropped or on its way; if deliver is gone, whatever
//! it did not say was sent is dropped, and so is what comes until another one is there. So `sent` is never too high, and
//! sent and dropped together are all that was taken, also when deliver was killed.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Write as _},
    mem,
    net::Shutdown,
    os::unix::{net::UnixStream, process::CommandExt as _},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use super::{
    Settings,
    settings::{Kinds, Lane},
    wire::{self, Count, Ends, Report},
};
use crate::{
    record::{Kind, Record, SinkCount},
    sink::{Encoder, Format, Origin, Share, State},
};

/// Bytes after which a batch is handed over.
const BATCH: usize = 64 << 10;
/// Most bytes handed over and not written yet: what comes in while deliver waits for its turn. Its own queues are for
/// collectors that are away.
const QUEUE: usize = 8 << 20;
/// When less than this is free, who can wait should.
const ROOM: usize = 4 << 20;

/// Deliver exists and holds its files and sockets; nothing is sent yet.
#[derive(Debug)]
pub struct Starting {
    lanes: Vec<Lane>,
    metered: Kinds,
    child: Child,
    socket: UnixStream,
    /// Of the first one that delivers, and its number.
    first: Option<(UnixStream, u32)>,
}

/// Starts the process. Before the lock-in, which takes away the right to.
pub fn start(settings: &Settings) -> Result<Starting, StartError> {
    // Not by path: an upgrade may have replaced the file.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vortex-agent").arg("deliver");
    start_as(command, settings)
}

/// Takes the `Command` by value: it holds the other end of the socket, and while it lives the end of deliver's is
/// never seen.
pub(super) fn start_as(mut command: Command, settings: &Settings) -> Result<Starting, StartError> {
    let (socket, theirs) = UnixStream::pair().map_err(StartError::Start)?;
    // The terminal's Ctrl-C is not for it.
    command.process_group(0);
    command
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(Stdio::null());
    let child = command.spawn().map_err(StartError::Start)?;
    drop(command);
    let mut starting = Starting {
        lanes: settings.lanes(),
        metered: settings.metered(),
        child,
        socket,
        first: None,
    };
    starting.tell(settings).map_err(StartError::Start)?;
    match wire::read(&mut starting.socket) {
        Ok((wire::READY, why)) if why.is_empty() => {
            starting.first = wire::receive_socket(&starting.socket).map_err(StartError::Start)?;
            Ok(starting)
        }
        Ok((_, why)) => Err(StartError::Refused(
            String::from_utf8_lossy(&why).into_owned(),
        )),
        Err(error) => Err(StartError::Start(error)),
    }
}

impl Starting {
    fn tell(&mut self, settings: &Settings) -> io::Result<()> {
        let settings = serde_json::to_vec(settings)?;
        self.socket
            .write_all(&wire::head(wire::SETTINGS, settings.len()))?;
        self.socket.write_all(&settings)
    }

    /// The one that starts, and the first that delivers. Nothing of them and of their children is ever captured.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        let first = self.first.as_ref().map(|(_, pid)| *pid);
        [self.child.id()].into_iter().chain(first)
    }

    /// Starts the two threads. After the lock-in, which is for one.
    pub fn begin(self, origin: &Origin) -> io::Result<Courier> {
        let Starting {
            lanes,
            metered,
            child,
            socket,
            first,
        } = self;
        let shared = Arc::new(Shared::default());
        let (writing, reading) = (Arc::clone(&shared), Arc::clone(&shared));
        let (first, _) = first.ok_or(io::ErrorKind::UnexpectedEof)?;
        shared.lock().to = Some(first.try_clone()?);
        thread::Builder::new()
            .name("courier".to_owned())
            .spawn(move || writing.write())?;
        thread::Builder::new()
            .name("reports".to_owned())
            .spawn(move || reading.read(first, &socket))?;
        Ok(Courier {
            kept: vec![Kept::default(); lanes.len()],
            base: vec![Count::default(); lanes.len()],
            base_cpu: 0,
            batch: Vec::new(),
            lanes,
            metered,
            encoder: Encoder::new(Format::Json, origin),
            shared,
            barrier: 0,
            child,
        })
    }
}

/// What was taken of one lane, and what was dropped before the deliver that is there now had it.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    taken: u64,
    dropped: u64,
}

/// Deliver at work.
pub struct Courier {
    lanes: Vec<Lane>,
    kept: Vec<Kept>,
    /// What became of records while others delivered that are gone, and the CPU time of these.
    base: Vec<Count>,
    base_cpu: u64,
    /// Wanted although no lane takes them.
    metered: Kinds,
    encoder: Encoder,
    /// Records as [`wire::RECORDS`] has them.
    batch: Vec<u8>,
    shared: Arc<Shared>,
    barrier: u64,
    child: Child,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Frames came, or the end did.
    work: Condvar,
    /// A report came, or deliver went.
    news: Condvar,
    /// Another deliver is there.
    is_offered: AtomicBool,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<(u8, Vec<u8>)>,
    /// Of `frames` and of the one being written.
    bytes: usize,
    report: Report,
    made: Vec<Ends>,
    is_closed: bool,
    is_gone: bool,
    /// And there will be no other.
    is_over: bool,
    /// Of another one that is there.
    offered: Option<UnixStream>,
    /// Where frames go from here on, until the thread has it.
    to: Option<UnixStream>,
    /// How many there were before it.
    number: u64,
    troubles: Vec<String>,
}

impl Queue {
    /// False: nothing that deliver says.
    fn heard(&mut self, letter: u8, bytes: &[u8]) -> bool {
        match letter {
            wire::REPORT => match serde_json::from_slice(bytes) {
                // What is said after the end changes no count.
                Ok(_) if self.is_gone => true,
                Ok(report) => {
                    self.report = report;
                    true
                }
                Err(_) => false,
            },
            wire::MADE => match serde_json::from_slice(bytes) {
                Ok(ends) => {
                    self.made.push(ends);
                    true
                }
                Err(_) => false,
            },
            _ => false,
        }
    }
}

impl Courier {
    /// Takes one record, or drops and counts it.
    pub fn write(&mut self, record: &Record<'_>) {
        let (kind, lanes) = match Share::of(record) {
            Share::Part(_) => return,
            Share::Undecoded => (Kind::Data, self.lanes_that(|lane| lane.undecoded)),
            Share::Whole(kind) => (kind, self.lanes_that(|lane| lane.kinds.holds(kind))),
        };
        if lanes == 0 && !self.metered.holds(kind) {
            return;
        }
        self.take_offer();
        let has_room = self.batch.len() < BATCH || self.hand_over(QUEUE);
        for (at, kept) in self.kept.iter_mut().enumerate() {
            let one = u64::from(lanes >> at & 1);
            kept.taken += one;
            kept.dropped += if has_room { 0 } else { one };
        }
        if !has_room {
            return;
        }
        self.batch.extend_from_slice(&lanes.to_le_bytes());
        self.encoder.encode(record, &mut self.batch);
        if self.batch.len() >= BATCH {
            self.hand_over(QUEUE);
        }
    }

    /// A bit for each.
    fn lanes_that(&self, want: impl Fn(&Lane) -> bool) -> u32 {
        let wanting = self.lanes.iter().enumerate().filter(|(_, lane)| want(lane));
        wanting.map(|(at, _)| 1 << at).sum()
    }

    pub fn state(&self) -> State {
        let queue = self.shared.lock();
        match queue.bytes {
            _ if queue.is_gone => State::Failed,
            bytes if bytes + ROOM > QUEUE => State::Full,
            _ => State::Open,
        }
    }

    /// Hands over what there is. For when the pipeline goes idle.
    pub fn flush(&mut self) {
        self.take_offer();
        self.hand_over(QUEUE);
    }

    /// Waits until every record so far is sent or dropped. False if `deadline` came first, as it does where a
    /// collector is away.
    pub fn drain(&mut self, deadline: Instant) -> bool {
        self.take_offer();
        self.hand_over(usize::MAX);
        self.barrier += 1;
        let barrier = self.barrier;
        let mut queue = self.shared.lock();
        let number = barrier.to_le_bytes().to_vec();
        queue.frames.push_back((wire::BARRIER, number));
        drop(queue);
        self.shared.work.notify_one();
        let waits = |queue: &mut Queue| queue.report.reached < barrier && !queue.is_gone;
        let time = deadline.saturating_duration_since(Instant::now());
        let queue = self
            .shared
            .news
            .wait_timeout_while(self.shared.lock(), time, waits);
        let (queue, _) = queue.unwrap_or_else(PoisonError::into_inner);
        queue.report.reached >= barrier || queue.is_gone
    }

    /// Records so far, by lane. Neither sent nor dropped: those still on their way.
    pub fn counts(&self) -> Vec<SinkCount> {
        let queue = self.shared.lock();
        let lanes = self.lanes.iter().zip(&self.kept).enumerate();
        let count = |(at, (lane, kept)): (usize, (&Lane, &Kept))| {
            let told = queue.report.lanes.get(at).copied().unwrap_or_default();
            let sent = self.base[at].sent + told.sent;
            SinkCount {
                name: lane.name.clone(),
                sent,
                dropped: match queue.is_gone {
                    true => kept.taken - sent,
                    false => self.base[at].dropped + kept.dropped + told.dropped,
                },
            }
        };
        lanes.map(count).collect()
    }

    /// CPU time in microseconds and memory in bytes, as deliver said last.
    pub fn usage(&self) -> (u64, u64) {
        let queue = self.shared.lock();
        let cpu = self.base_cpu + queue.report.cpu_micros;
        (cpu, queue.report.memory_bytes)
    }

    /// Both ends of each connection that was made since the last time: nothing of the other end is to be told.
    pub fn made(&self) -> Vec<Ends> {
        mem::take(&mut self.shared.lock().made)
    }

    /// Deliver went, and nobody starts another: nothing more is sent.
    pub fn failure(&self) -> Option<Gone> {
        self.shared.lock().is_over.then_some(Gone)
    }

    /// What went wrong, and right again, since the last question.
    pub fn troubles(&self) -> Vec<String> {
        mem::take(&mut self.shared.lock().troubles)
    }

    /// Another deliver gets what comes from here on, if there is one. All that came before and was not said to be sent
    /// is dropped.
    fn take_offer(&mut self) {
        if !self.shared.is_offered.load(Ordering::Relaxed) {
            return;
        }
        let before = self.counts();
        let mut queue = self.shared.lock();
        let Some(to) = queue.offered.take() else {
            return;
        };
        self.shared.is_offered.store(false, Ordering::Relaxed);
        let report = mem::take(&mut queue.report);
        self.base_cpu += report.cpu_micros;
        for (at, count) in before.into_iter().enumerate() {
            let SinkCount {
                name,
                sent,
                dropped,
            } = count;
            queue.troubles.push(format!(
                "{name} is delivered to again; {dropped} of its records were dropped so far"
            ));
            self.base[at] = Count { sent, dropped };
            self.kept[at].dropped = 0;
        }
        self.batch.clear();
        queue.to = Some(to);
        queue.number += 1;
        queue.is_gone = false;
        drop(queue);
        self.shared.news.notify_all();
        self.shared.work.notify_one();
    }

    /// Sends what there is and ends the process. What isn't sent by `deadline` is dropped.
    pub fn close(mut self, deadline: Instant) -> Vec<SinkCount> {
        self.drain(deadline);
        self.shared.close();
        let time = deadline.saturating_duration_since(Instant::now());
        let lives = |queue: &mut Queue| !queue.is_gone;
        let queue = self
            .shared
            .news
            .wait_timeout_while(self.shared.lock(), time, lives);
        // Late or not: nobody hears what it says from here on.
        let (mut queue, _) = queue.unwrap_or_else(PoisonError::into_inner);
        let is_gone = mem::replace(&mut queue.is_gone, true);
        drop(queue);
        if is_gone {
            let _ = self.child.wait();
        }
        self.counts()
    }

    /// Gives the batch to the thread unless there would be more than `limit` bytes with it. True if the batch is empty
    /// now.
    fn hand_over(&mut self, limit: usize) -> bool {
        if self.batch.is_empty() {
            return true;
        }
        let mut queue = self.shared.lock();
        if !queue.is_gone && queue.bytes + self.batch.len() > limit {
            return false;
        }
        let batch = mem::take(&mut self.batch);
        // Of who is gone, nothing is counted but what it said.
        if !queue.is_gone {
            queue.bytes += batch.len();
            queue.frames.push_back((wire::RECORDS, batch));
            self.shared.work.notify_one();
        }
        true
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    /// The thread that writes, to one deliver after the other.
    fn write(&self) {
        let mut to = None;
        while let Some((number, letter, bytes)) = self.next(&mut to) {
            let head = wire::head(letter, bytes.len());
            let written = to.as_ref().map(|mut to: &UnixStream| {
                to.write_all(&head)?;
                to.write_all(&bytes)
            });
            // That deliver went, who reads notices.
            if !matches!(written, Some(Ok(()))) {
                to = None;
            }
            let mut queue = self.lock();
            if letter == wire::RECORDS && queue.number == number && !queue.is_gone {
                queue.bytes -= bytes.len();
            }
        }
        if let Some(to) = to {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    /// The next frame, and how many delivers there were before the one that it is for: `to` is its socket.
    fn next(&self, to: &mut Option<UnixStream>) -> Option<(u64, u8, Vec<u8>)> {
        let is_idle = |queue: &mut Queue| queue.frames.is_empty() && !queue.is_closed;
        let queue = self.work.wait_while(self.lock(), is_idle);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = queue.to.take() {
            *to = Some(next);
        }
        let (letter, bytes) = queue.frames.pop_front()?;
        Some((queue.number, letter, bytes))
    }

    /// The thread that reads, of one deliver after the other.
    fn read(&self, first: UnixStream, control: &UnixStream) {
        let mut from = first;
        loop {
            while let Ok((letter, bytes)) = wire::read(&mut from) {
                if !self.lock().heard(letter, &bytes) {
                    break;
                }
                self.news.notify_all();
            }
            // One that says nonsense is told to end.
            let _ = from.shutdown(Shutdown::Both);
            self.is_gone();
            match wire::receive_socket(control) {
                Ok(Some((next, _))) if self.offer(&next) => from = next,
                _ => break,
            }
        }
        self.lock().is_over = true;
        self.news.notify_all();
    }

    fn is_gone(&self) {
        let mut queue = self.lock();
        queue.is_gone = true;
        queue.frames.clear();
        queue.bytes = 0;
        queue.troubles.push(
            "the process that delivers ended: what it did not report as sent is dropped, and what comes until another \
             one is there"
                .to_owned(),
        );
        drop(queue);
        self.news.notify_all();
    }

    /// Waits until the pipeline takes it, which is between two records. False: it never will.
    fn offer(&self, socket: &UnixStream) -> bool {
        let Ok(to) = socket.try_clone() else {
            return false;
        };
        let mut queue = self.lock();
        queue.offered = Some(to);
        self.is_offered.store(true, Ordering::Relaxed);
        let waits = |queue: &mut Queue| queue.offered.is_some() && !queue.is_closed;
        let queue = self.news.wait_while(queue, waits);
        let queue = queue.unwrap_or_else(PoisonError::into_inner);
        queue.offered.is_none()
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.work.notify_one();
        self.news.notify_all();
    }

    /// Nothing panics under the lock, and counts stay right if something does.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The process that delivers is no more.
#[derive(Clone, Copy, Debug)]
pub struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the process that delivers ended: OTLP and Prometheus get nothing from here on, and their records are \
             dropped; start the agent again",
        )
    }
}

impl std::error::Error for Gone {}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("start the process that delivers: {0}")]
    Start(io::Error),
    #[error("{0}")]
    Refused(String),
}
