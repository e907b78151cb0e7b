//! Requests that wait for their answers, which may come on another connection of the same process.

use std::collections::{HashMap, VecDeque};

use super::{
    call::{Call, Session},
    message::Outcome,
};
use crate::{
    event::HandleId,
    planted::Mistake,
    protocol::{Side, json::Value},
};

/// Most requests of a process that wait.
const WAITING_MAX: usize = 256;

/// Bytes of all that wait, and of all messages that are not whole.
const TOTAL: usize = 64 << 20;

/// A request, and where it stood.
#[derive(Debug)]
pub struct Asked {
    pub handle: HandleId,
    pub exchange: u64,
    /// What an answer elsewhere says to be of.
    pub session: Option<Session>,
    pub call: Call,
}

impl Asked {
    fn is_in(&self, handle: HandleId, exchange: u64) -> bool {
        (self.handle, self.exchange) == (handle, exchange)
    }
}

/// An answer, and where it stands.
pub struct Answer<'a> {
    pub handle: HandleId,
    pub exchange: u64,
    pub session: Option<&'a Session>,
    pub side: Side,
    pub id: Option<&'a Value>,
    pub outcome: &'a Outcome,
}

/// Of all processes.
#[derive(Debug, Default)]
pub struct Waiting {
    processes: HashMap<u32, VecDeque<Asked>>,
    held: usize,
}

impl Waiting {
    /// Bytes that calls hold, whether or not they wait.
    pub fn bytes(&self) -> usize {
        self.held
    }

    /// Some of a connection grew or shrank.
    pub fn weigh(&mut self, before: usize, after: usize) {
        self.held = self.held - before + after;
    }

    pub fn is_full(&self) -> bool {
        self.held > TOTAL
    }

    /// A request waits from here on. What there is no room for comes back: it, or an older one of its connection.
    pub fn ask(&mut self, asked: Asked) -> Option<Call> {
        let weight = asked.call.weight();
        if self.held + weight > TOTAL {
            return Some(asked.call);
        }
        let queue = self.processes.entry(asked.handle.pid).or_default();
        let mut left = None;
        if queue.len() >= WAITING_MAX {
            let Some(at) = queue.iter().position(|old| old.handle == asked.handle) else {
                return Some(asked.call);
            };
            left = queue.remove(at).map(|old| old.call);
        }
        queue.push_back(asked);
        self.held += weight;
        self.held -= left.as_ref().map_or(0, Call::weight);
        left
    }

    /// The request that this answers.
    pub fn answer(&mut self, answer: &Answer<'_>) -> Option<Call> {
        let pid = answer.handle.pid;
        let queue = self.processes.get(&pid)?;
        let asks = |asked: &Asked| asked.call.from != answer.side;
        let has_id = |asked: &Asked| {
            let is_its = asked.call.id.as_ref() == answer.id || Mistake::Mcp.is_planted();
            answer.id.is_some() && is_its
        };
        let is_here = |asked: &Asked| asks(asked) && asked.is_in(answer.handle, answer.exchange);
        let is_there = |asked: &Asked| {
            asks(asked)
                && has_id(asked)
                && answer.session.is_some()
                && asked.session.as_ref().map(|session| &session.key)
                    == answer.session.map(|session| &session.key)
        };
        let at = queue
            .iter()
            .position(|asked| is_here(asked) && has_id(asked))
            .or_else(|| {
                // What is refused before it is read is answered under no id, or under one that is made up; and that
                // of one that is cut may be in its rest.
                let is_error = matches!(answer.outcome, Outcome::Error { .. });
                let is_loose =
                    |asked: &Asked| is_error || answer.id.is_none() || asked.call.id.is_none();
                let mut here = queue.iter().enumerate().filter(|(_, asked)| is_here(asked));
                let only = here.next().filter(|_| here.next().is_none());
                only.filter(|(_, asked)| is_loose(asked)).map(|(at, _)| at)
            })
            .or_else(|| queue.iter().position(is_there))?;
        self.remove(pid, at).map(|asked| asked.call)
    }

    /// The requests of an exchange that is over, but for those that may be answered elsewhere.
    pub fn end(
        &mut self,
        handle: HandleId,
        exchange: u64,
        may_wait: impl Fn(&Asked) -> bool,
    ) -> Vec<Call> {
        let over = self.take(handle.pid, |asked| {
            asked.is_in(handle, exchange) && !may_wait(asked)
        });
        over.into_iter().map(|asked| asked.call).collect()
    }

    /// The requests of a connection that is over.
    pub fn close(&mut self, handle: HandleId) -> Vec<(u64, Call)> {
        let over = self.take(handle.pid, |asked| asked.handle == handle);
        over.into_iter()
            .map(|asked| (asked.exchange, asked.call))
            .collect()
    }

    /// Nothing is told of a process any more.
    pub fn forget(&mut self, pid: u32) {
        self.take(pid, |_| true);
    }

    fn take(&mut self, pid: u32, is_over: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        let mut over = Vec::new();
        let mut from = 0;
        while let Some(queue) = self.processes.get(&pid)
            && let Some(at) = queue.iter().skip(from).position(&is_over)
        {
            from += at;
            over.extend(self.remove(pid, from));
        }
        over
    }

    fn remove(&mut self, pid: u32, at: usize) -> Option<Asked> {
        let queue = self.processes.get_mut(&pid)?;
        let asked = queue.remove(at)?;
        if queue.is_empty() {
            self.processes.remove(&pid);
        }
        self.held -= asked.call.weight();
        Some(asked)
    }
}
