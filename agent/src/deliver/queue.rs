//! One signal of one collector: a bounded queue of lines, and who sends them. Each line ends as sent or as dropped.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{
    lane::Lane,
    otlp::{Answer, Exporter},
    retry::Retry,
    settings::{Batch, Queue as Limits},
    wire::Count,
};
use crate::complain::complain;

/// What a failing collector is told about again, at the soonest.
const SILENCE: Duration = Duration::from_secs(60);

pub struct Queued {
    name: String,
    batch: Batch,
    limits: Limits,
    queue: Mutex<Queue>,
    /// A line came, or somebody waits.
    work: Notify,
    /// Lines were settled.
    settled: Arc<Notify>,
}

/// Why lines were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Dropped {
    /// There were too many: these were the oldest.
    queue_full: u64,
    /// The collector did not want them.
    rejected: u64,
    /// It did not answer for too long.
    expired: u64,
}

impl Dropped {
    const fn sum(&self) -> u64 {
        self.queue_full + self.rejected + self.expired
    }
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<(Bytes, Instant)>,
    bytes: usize,
    /// The number of the first line of the batch under way.
    under_way: Option<u64>,
    /// Lines that came, ever.
    taken: u64,
    /// Until these are settled no batch waits to get full.
    hurry_to: u64,
    sent: u64,
    dropped: Dropped,
}

impl Queue {
    /// The number of the first line that waits, counted from 0.
    fn first_waiting(&self) -> u64 {
        self.taken - self.lines.len() as u64
    }

    /// All lines before this one are settled.
    fn first_open(&self) -> u64 {
        self.under_way.unwrap_or_else(|| self.first_waiting())
    }
}

impl Queued {
    pub fn new(name: String, batch: Batch, limits: Limits, settled: Arc<Notify>) -> Self {
        Queued {
            name,
            batch,
            limits,
            queue: Mutex::default(),
            work: Notify::new(),
            settled,
        }
    }

    /// Sends for ever.
    pub async fn run(self: Arc<Self>, mut exporter: Exporter, retry_for: Duration) {
        let mut health = Health::default();
        loop {
            let lines = self.next().await;
            let request = exporter.encode(&lines);
            let mut retry = Retry::new(retry_for);
            let first = Instant::now();
            let answer = loop {
                let (why, asked) = match exporter.send(&request).await {
                    Answer::Later { why, after } => (why, after),
                    answer => break answer,
                };
                health.failed(&self.name, &why);
                let waited = retry.failed(first.elapsed(), asked, random());
                let Some(wait) = waited else {
                    break Answer::Later { why, after: None };
                };
                sleep(wait).await;
            };
            self.settle(lines.len() as u64, &answer);
            match answer {
                Answer::Taken { rejected: 0, .. } => health.is_well(&self.name),
                Answer::Taken { rejected, why } => {
                    health.rejected(&self.name, rejected, &why);
                }
                Answer::Refused { why } | Answer::Later { why, .. } => {
                    health.rejected(&self.name, lines.len() as u64, &why);
                }
            }
        }
    }

    fn settle(&self, lines: u64, answer: &Answer) {
        let mut queue = self.lock();
        queue.under_way = None;
        match answer {
            Answer::Taken { rejected, .. } => {
                // A collector that refuses more than it got is not believed.
                let rejected = (*rejected).min(lines);
                queue.sent += lines - rejected;
                queue.dropped.rejected += rejected;
            }
            Answer::Refused { .. } => queue.dropped.rejected += lines,
            Answer::Later { .. } => queue.dropped.expired += lines,
        }
        drop(queue);
        self.settled.notify_one();
    }

    /// The next batch, once it is full, old enough, or waited for.
    async fn next(&self) -> Vec<Bytes> {
        loop {
            let work = self.work.notified();
            let until = {
                let mut queue = self.lock();
                match queue.lines.front() {
                    None => None,
                    Some((_, since)) => {
                        let until = *since + self.batch.age;
                        let is_awaited = queue.first_open() < queue.hurry_to;
                        if is_awaited || self.is_full(&queue) || Instant::now() >= until {
                            return self.take(&mut queue);
                        }
                        Some(until)
                    }
                }
            };
            match until {
                None => work.await,
                Some(until) => tokio::select! {
                    () = work => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    fn take(&self, queue: &mut Queue) -> Vec<Bytes> {
        queue.under_way = Some(queue.first_waiting());
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while let Some((line, _)) = queue.lines.front()
            && lines.len() < self.batch.records
            && (lines.is_empty() || bytes + line.len() <= self.batch.bytes)
        {
            bytes += line.len();
            lines.extend(queue.lines.pop_front().map(|(line, _)| line));
        }
        queue.bytes -= bytes;
        lines
    }

    fn is_full(&self, queue: &Queue) -> bool {
        queue.lines.len() >= self.batch.records || queue.bytes >= self.batch.bytes
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane for Queued {
    fn name(&self) -> &str {
        &self.name
    }

    /// Takes a line; the oldest make room for it.
    fn push(&self, line: Bytes, now: Instant) {
        let mut queue = self.lock();
        queue.taken += 1;
        queue.bytes += line.len();
        queue.lines.push_back((line, now));
        let before = queue.dropped.queue_full;
        while queue.lines.len() > self.limits.records || queue.bytes > self.limits.bytes {
            let Some((line, _)) = queue.lines.pop_front() else {
                break;
            };
            queue.bytes -= line.len();
            queue.dropped.queue_full += 1;
        }
        let is_dropping = queue.dropped.queue_full != before;
        let is_news = self.is_full(&queue) || queue.lines.len() == 1;
        drop(queue);
        if is_dropping {
            self.settled.notify_one();
        }
        if is_news {
            self.work.notify_one();
        }
    }

    fn hurry(&self) -> u64 {
        let mut queue = self.lock();
        queue.hurry_to = queue.taken;
        let to = queue.hurry_to;
        drop(queue);
        self.work.notify_one();
        to
    }

    fn is_settled(&self, to: u64) -> bool {
        let queue = self.lock();
        queue.first_open() >= to
    }

    fn count(&self) -> Count {
        let queue = self.lock();
        Count {
            sent: queue.sent,
            dropped: queue.dropped.sum(),
        }
    }

    fn causes(&self) -> Vec<(&'static str, u64)> {
        let Dropped {
            queue_full,
            rejected,
            expired,
        } = self.lock().dropped;
        vec![
            ("queue_full", queue_full),
            ("rejected", rejected),
            ("expired", expired),
        ]
    }
}

/// What is said of a collector: when it begins to fail, now and then, and when it is back.
#[derive(Default)]
pub struct Health {
    told: Option<Instant>,
    is_failing: bool,
}

impl Health {
    pub fn failed(&mut self, name: &str, why: &str) {
        self.is_failing = true;
        self.tell(format_args!("{name}: {why}; it is tried again"));
    }

    pub fn rejected(&mut self, name: &str, records: u64, why: &str) {
        self.tell(format_args!("{name}: {records} records are dropped: {why}"));
    }

    pub fn is_well(&mut self, name: &str) {
        if std::mem::take(&mut self.is_failing) {
            complain(format_args!("{name}: it is well again"));
            self.told = None;
        }
    }

    fn tell(&mut self, what: std::fmt::Arguments<'_>) {
        let is_silent = |told: Instant| told.elapsed() < SILENCE;
        if !self.told.is_some_and(is_silent) {
            self.told = Some(Instant::now());
            complain(what);
        }
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u32::from_ne_bytes(bytes)
}
