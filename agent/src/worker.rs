//! Work that may never come back: a file system that does not answer holds whoever asks it, for good and
//! past SIGKILL. So each question is a thread of its own, with a deadline; the loop that asked goes on.
//!
//! A thread that is held is abandoned, not ended: nothing can. Their number is bounded: work of a group
//! (a device) of which one is held is given up at once, until that one comes back.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    fs::fstatfs,
};

/// Threads in all, and for one group: a dead device must leave room for the others.
const THREADS: usize = 16;
const THREADS_OF_GROUP: usize = 3;
/// Threads that are kept for the next job.
const IDLE: usize = 2;
/// The owner looks at least every second. Who looks this much later was stopped or frozen, and the threads with
/// it: that time counts for no deadline.
const AWAY: Duration = Duration::from_secs(2);

/// Runs jobs, which give `T`; each has a key, by which its owner knows it.
pub struct Workers<K, T> {
    running: Vec<Running<K, T>>,
    /// Threads that have nothing to do: a new one takes as long as a small job.
    idle: Vec<Sender<Task<T>>>,
    waiting: VecDeque<Waiting<K, T>>,
    given_up: Vec<K>,
    looked: Instant,
    next_ticket: u64,
    results: Receiver<(u64, Option<T>)>,
    sender: Sender<(u64, Option<T>)>,
    /// Readable when a result is there.
    bell: Arc<OwnedFd>,
}

type Job<T> = Box<dyn FnOnce() -> T + Send>;
type Task<T> = (u64, Job<T>);

struct Running<K, T> {
    ticket: u64,
    thread: Sender<Task<T>>,
    key: K,
    group: u64,
    until: Instant,
    is_given_up: bool,
}

struct Waiting<K, T> {
    key: K,
    group: u64,
    limit: Duration,
    /// It waits no longer for threads that are all held by other groups.
    until: Instant,
    job: Job<T>,
}

impl<K: Copy, T: Send + 'static> Workers<K, T> {
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (sender, results) = channel();
        Ok(Self {
            running: Vec::new(),
            idle: Vec::new(),
            waiting: VecDeque::new(),
            given_up: Vec::new(),
            looked: Instant::now(),
            next_ticket: 0,
            results,
            sender,
            bell: Arc::new(bell),
        })
    }

    /// Starts the job, or notes it until there is room. The limit counts from its own start: a group whose jobs
    /// come back, slowly on a busy machine, is not silent to those behind them.
    pub fn start(
        &mut self,
        key: K,
        group: u64,
        limit: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) {
        let now = Instant::now();
        if self.deadline().is_none() {
            self.looked = now;
        }
        self.waiting.push_back(Waiting {
            key,
            group,
            limit,
            until: now + limit,
            job: Box::new(job),
        });
        self.start_waiting();
    }

    /// What came of the jobs since the last call. `None`: given up, by a deadline or a panic; after a
    /// deadline the result may come all the same, later.
    pub fn finished(&mut self) -> Vec<(K, Option<T>)> {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        let mut finished = Vec::new();
        while let Ok((ticket, result)) = self.results.try_recv() {
            let at = self.running.iter().position(|job| job.ticket == ticket);
            if let Some(at) = at {
                let job = self.running.swap_remove(at);
                finished.push((job.key, result));
                if self.idle.len() < IDLE {
                    self.idle.push(job.thread);
                }
            }
        }
        let now = Instant::now();
        self.look(now);
        for job in &mut self.running {
            if now >= job.until && !job.is_given_up {
                job.is_given_up = true;
                self.given_up.push(job.key);
            }
        }
        self.start_waiting();
        finished.extend(self.given_up.drain(..).map(|key| (key, None)));
        finished
    }

    /// Does a thread of the group not come back?
    pub fn is_silent(&self, group: u64) -> bool {
        let mut running = self.running.iter();
        running.any(|job| job.group == group && job.is_given_up)
    }

    /// Readable when there is something to take.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// When to look although nothing is there.
    pub fn deadline(&self) -> Option<Instant> {
        let running = self.running.iter().filter(|job| !job.is_given_up);
        let waiting = self.waiting.iter().map(|job| job.until);
        running.map(|job| job.until).chain(waiting).min()
    }

    fn look(&mut self, now: Instant) {
        let away = now - std::mem::replace(&mut self.looked, now);
        if away < AWAY {
            return;
        }
        let running = self.running.iter_mut().map(|job| &mut job.until);
        let waiting = self.waiting.iter_mut().map(|job| &mut job.until);
        running.chain(waiting).for_each(|until| *until += away);
    }

    fn start_waiting(&mut self) {
        let now = Instant::now();
        for mut job in std::mem::take(&mut self.waiting) {
            let of_group = self.running.iter().filter(|other| other.group == job.group);
            let of_group = of_group.count();
            if self.is_silent(job.group) {
                self.given_up.push(job.key);
            } else if self.running.len() < THREADS && of_group < THREADS_OF_GROUP {
                self.run(job, now);
            } else if of_group == 0 && now >= job.until {
                self.given_up.push(job.key);
            } else {
                if of_group > 0 {
                    job.until = now + job.limit;
                }
                self.waiting.push_back(job);
            }
        }
        if !self.given_up.is_empty() {
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    fn run(&mut self, job: Waiting<K, T>, now: Instant) {
        let Waiting {
            key,
            group,
            limit,
            job,
            ..
        } = job;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let thread = self.idle.pop().map_or_else(|| self.spawn(), Ok);
        match thread {
            Ok(thread) => {
                // It waits for nothing else, and ends only when we drop this.
                let _ = thread.send((ticket, job));
                self.running.push(Running {
                    ticket,
                    thread,
                    key,
                    group,
                    until: now + limit,
                    is_given_up: false,
                });
            }
            Err(_) => self.given_up.push(key),
        }
    }

    fn spawn(&self) -> io::Result<Sender<Task<T>>> {
        let (results, bell) = (self.sender.clone(), self.bell.clone());
        let (thread, tasks) = channel::<Task<T>>();
        let work = move || {
            for (ticket, job) in tasks {
                let result = catch_unwind(AssertUnwindSafe(job)).ok();
                // Refused when nobody takes it: the end has come.
                let _ = results.send((ticket, result));
                let _ = rustix::io::write(&bell, &1_u64.to_ne_bytes());
            }
        };
        thread::Builder::new().name("file".to_owned()).spawn(work)?;
        Ok(thread)
    }
}

/// File systems that end in a disk or in memory, by `linux/magic.h` and their own headers: ext, xfs, btrfs,
/// bcachefs, f2fs, zfs, tmpfs, ramfs, overlay, squashfs, erofs, iso9660, vfat, exfat.
const LOCAL: [i64; 14] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xca45_1a4e,
    0xf2f5_2010,
    0x2fc1_2fc1,
    0x0102_1994,
    0x8584_58f6,
    0x794c_7630,
    0x7371_7368,
    0xe0f5_e1e2,
    0x9660,
    0x4d44,
    0x2011_bab0,
];

/// Does the file end in this machine? Waits for its file system.
pub fn is_local(file: impl AsFd) -> io::Result<bool> {
    Ok(LOCAL.contains(&fstatfs(file)?.f_type))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Waits for the bell as a loop does.
    fn next<T: Send + 'static>(workers: &mut Workers<u32, T>) -> Vec<(u32, Option<T>)> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let start = Instant::now();
        loop {
            let finished = workers.finished();
            if !finished.is_empty() {
                return finished;
            }
            assert!(start.elapsed() < LONG, "nothing came");
            let now = Instant::now();
            let wait = workers.deadline().map_or(LONG, |at| at - now.min(at));
            let wait = Timespec::try_from(wait).unwrap();
            let mut fds = [PollFd::from_borrowed_fd(
                workers.bell.as_fd(),
                PollFlags::IN,
            )];
            let _ = poll(&mut fds, Some(&wait));
        }
    }

    #[test]
    fn results_come_with_their_keys() {
        let mut workers = Workers::new().unwrap();
        for key in 0..100 {
            workers.start(key, u64::from(key % 7), LONG, move || key * 2);
        }
        let mut all = Vec::new();
        while all.len() < 100 {
            all.extend(next(&mut workers));
        }
        all.sort_unstable();
        let expected: Vec<_> = (0..100).map(|key| (key, Some(key * 2))).collect();
        assert_eq!(all, expected);
        assert_eq!(workers.deadline(), None);
    }

    #[test]
    fn a_held_thread_costs_its_group_only() {
        const HELD: u64 = 1;
        let mut workers = Workers::new().unwrap();
        let gate = Arc::new(Barrier::new(THREADS_OF_GROUP + 1));
        let short = Duration::from_millis(30);
        for key in 0..10 {
            let gate = gate.clone();
            workers.start(key, HELD, short, move || {
                gate.wait();
                key
            });
        }
        assert_eq!(workers.running.len(), THREADS_OF_GROUP, "bounded");
        workers.start(100, 2, LONG, || 100);
        assert_eq!(next(&mut workers), [(100, Some(100))], "others go on");
        let mut given_up = Vec::new();
        while given_up.len() < 10 {
            given_up.extend(next(&mut workers));
        }
        assert!(given_up.iter().all(|(_, result)| result.is_none()));
        workers.start(11, HELD, LONG, || 11);
        assert_eq!(next(&mut workers), [(11, None)], "given up at once");
        assert_eq!(workers.running.len(), THREADS_OF_GROUP, "not even tried");
        // It answers after all.
        gate.wait();
        let mut late = Vec::new();
        while late.len() < THREADS_OF_GROUP {
            late.extend(next(&mut workers));
        }
        assert!(late.iter().all(|(_, result)| result.is_some()));
        workers.start(12, HELD, LONG, || 12);
        assert_eq!(next(&mut workers), [(12, Some(12))], "and is asked again");
    }

    #[test]
    fn who_waits_for_a_slow_group_is_not_given_up() {
        const SLOW: u64 = 1;
        let mut workers = Workers::new().unwrap();
        let limit = Duration::from_millis(500);
        // Twelve rounds of 100 ms.
        for key in 0..36 {
            workers.start(key, SLOW, limit, move || {
                thread::sleep(Duration::from_millis(100));
                key
            });
        }
        let mut all = Vec::new();
        while all.len() < 36 {
            all.extend(next(&mut workers));
        }
        assert!(all.iter().all(|(_, result)| result.is_some()), "{all:?}");
    }

    #[test]
    fn who_waits_for_threads_that_others_hold_is_given_up() {
        let mut workers = Workers::new().unwrap();
        let gate = Arc::new(Barrier::new(THREADS + 1));
        for key in 0..THREADS as u32 {
            let gate = gate.clone();
            let group = u64::from(key) / THREADS_OF_GROUP as u64;
            workers.start(key, group, LONG, move || {
                gate.wait();
                key
            });
        }
        workers.start(100, 100, Duration::from_millis(30), || 100);
        assert_eq!(next(&mut workers), [(100, None)]);
        gate.wait();
    }

    #[test]
    fn time_away_counts_for_nobody() {
        let mut workers = Workers::new().unwrap();
        let gate = Arc::new(Barrier::new(2));
        let held = gate.clone();
        let limit = Duration::from_secs(5);
        workers.start(1, 1, limit, move || {
            held.wait();
            1
        });
        let past = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
        // Stopped for ten seconds, right after the start.
        let away = past(10).unwrap();
        workers.looked = away;
        workers.running[0].until = away + limit;
        assert_eq!(workers.finished(), []);
        assert!(!workers.is_silent(1));
        // Looked all the time.
        workers.running[0].until = past(0).unwrap();
        assert_eq!(workers.finished(), [(1, None)]);
        assert!(workers.is_silent(1));
        gate.wait();
        assert_eq!(next(&mut workers), [(1, Some(1))]);
        assert!(!workers.is_silent(1));
    }

    #[test]
    fn a_job_that_panics_is_given_up() {
        let mut workers: Workers<u32, u32> = Workers::new().unwrap();
        workers.start(1, 1, LONG, || std::panic::resume_unwind(Box::new(())));
        assert_eq!(next(&mut workers), [(1, None)]);
        workers.start(2, 1, LONG, || 2);
        assert_eq!(next(&mut workers), [(2, Some(2))]);
    }
}
