//! attribute: which socket carries a connection whose library never touches one.
//!
//! A program that gives its TLS library memory instead of a socket (asyncio, Node) moves the encrypted
//! bytes itself: `recv`, then a TLS read; a TLS write, then `send`. Who follows whom on one thread is
//! evidence, and so are the sizes: encryption adds a known number of bytes to each record. Each piece of
//! evidence is a vote for a handle and a socket:
//!
//! - *alone*: neighbours on their thread, nobody else comes into question, and the sizes agree;
//! - *order*: neighbours only, as in a handshake;
//! - *size*: the sizes agree and nothing else says so. Proves nothing, ever.
//!
//! A pair is named when its votes are enough and no rival's come near; what contradicts it takes its votes
//! away. A wrong name is worse than none: whoever does its sockets on one thread and its TLS on another, or
//! sends for several connections in a row, stays without.
//!
//! Pure: events in the order of the kernel's ring in, names out, the same for the same events. Everything that is kept
//! has a bound.

mod history;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use agent_ebpf::Direction;

use self::history::{History, fits_receives, fits_sends};
use crate::event::HandleId;

/// What carries the encrypted bytes of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Carrier {
    /// By the kernel's cookie.
    Socket(u64),
    /// Another TLS connection, whose plaintext they are: TLS in TLS.
    Tunnel(HandleId),
}

/// Where and when on a thread something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub tid: u32,
    /// The thread's own count of what is told; a jump means that something was lost.
    pub sequence: u32,
    /// The thread did something since its last record that was not worth one.
    pub skipped: bool,
}

/// A TLS call that returned and used no socket.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    Data {
        direction: Direction,
        /// How many bytes, and those that begin it.
        length: u64,
        head: &'a [u8],
    },
    /// It carried no plaintext: a handshake, nothing to read.
    Touch,
}

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This socket carries the handle's connection.
    Named { handle: HandleId, cookie: u64 },
    /// What was said of it holds no longer.
    Unnamed { handle: HandleId },
}

/// What the kernel side may spare us from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// The socket has its handle.
    Named { cookie: u64 },
    /// Nothing fits it; until the process has new handles, `generation` counts them.
    Ignored { cookie: u64, generation: u32 },
    /// It has lost its handle.
    Open { cookie: u64 },
}

/// What is kept of one process, at most. A process above it loses its oldest first.
const HANDLES_MAX: usize = 1024;
const SOCKETS_MAX: usize = 1024;
const THREADS_MAX: usize = 1024;
const PROCESSES_MAX: usize = 1024;
/// Handles that a socket has votes with, and the other way round, at most.
const VOTES_MAX: usize = 32;
/// Uses of a socket without a vote before it is ignored; fewer while no handle lacks a name.
const PATIENCE: u32 = 64;
const PATIENCE_IDLE: u32 = 8;
/// How long an ignored socket stays so while a handle without a name is in use, and how long after its
/// last call a handle counts as in use. In nanoseconds.
const IGNORED_FOR: u64 = 1_000_000_000;
const IN_USE_FOR: u64 = 1_000_000_000;

/// All evidence there is.
#[derive(Debug, Default)]
pub struct Solver {
    processes: HashMap<u32, Process>,
    /// Number of the event.
    now: u64,
    verdicts: Vec<Verdict>,
    attentions: Vec<Attention>,
}

impl Solver {
    /// What was found out since the last time.
    pub fn verdicts(&mut self) -> std::vec::Drain<'_, Verdict> {
        self.verdicts.drain(..)
    }

    /// What the kernel side should know since the last time. Lost, it only costs records.
    pub fn attentions(&mut self) -> std::vec::Drain<'_, Attention> {
        self.attentions.drain(..)
    }

    /// The handle is new: whatever its address meant is over.
    pub fn opened(&mut self, id: HandleId) {
        self.step(id.pid, |process, verdicts| process.opened(id, verdicts));
    }

    /// The handle is gone.
    pub fn closed(&mut self, id: HandleId) {
        if self.processes.contains_key(&id.pid) {
            self.step(id.pid, |process, verdicts| process.remove(id, verdicts));
        }
    }

    pub fn ended(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    /// The call of this handle used this socket and no other: that is exact.
    pub fn exact(&mut self, id: HandleId, cookie: u64) {
        self.step(id.pid, |process, said| {
            process.handle(id, said);
            process.bind(id, Carrier::Socket(cookie), true, said);
        });
    }

    /// A TLS call without a socket.
    pub fn call(&mut self, id: HandleId, place: Place, time: u64, call: Call<'_>) {
        self.step(id.pid, |process, said| {
            process.time = time;
            let is_same = process.arrive(place);
            process.handle(id, said);
            if !(is_same && process.wrote_more(id, place.tid, call)) {
                process.tls(id, place.tid, call, said);
            }
        });
    }

    /// Plaintext of a handle whose calls use a socket: only a tunnel's matters.
    pub fn carried(&mut self, id: HandleId, tid: u32, direction: Direction, bytes: &[u8]) {
        let known = self.processes.get(&id.pid);
        let is_tunnel = known.and_then(|process| process.handles.get(&id.handle));
        if !is_tunnel.is_some_and(|handle| handle.id == id && handle.is_tunnel) && !is_tls(bytes) {
            return;
        }
        let length = bytes.len() as u64;
        self.step(id.pid, |process, said| {
            process.handle(id, said).is_tunnel = true;
            process.transfer(tid, Carrier::Tunnel(id), direction, length, 0, said);
        });
    }

    /// A socket sent or received outside any TLS call.
    pub fn transfer(
        &mut self,
        pid: u32,
        place: Place,
        time: u64,
        (cookie, generation): (u64, u32),
        direction: Direction,
        length: u64,
    ) {
        self.step(pid, |process, said| {
            process.time = time;
            process.arrive(place);
            let carrier = Carrier::Socket(cookie);
            process.transfer(place.tid, carrier, direction, length, generation, said);
        });
    }

    /// The socket is closed.
    pub fn socket_ended(&mut self, cookie: u64) {
        for process in self.processes.values_mut() {
            process.end_socket(Carrier::Socket(cookie));
        }
    }

    /// Something of this process was lost: what was seen before it proves nothing about what comes.
    pub fn lost(&mut self, pid: u32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.forget_evidence();
        }
    }

    /// Does something speak for a name of this handle, and not enough yet? Sizes do: where connections in step hide
    /// who follows whom, they are what is seen before anything that proves.
    pub fn is_contested(&self, id: HandleId) -> bool {
        let process = self.processes.get(&id.pid);
        let handle = process.and_then(|process| process.handles.get(&id.handle));
        handle.is_some_and(|handle| {
            handle.id == id && handle.name.is_none() && !handle.votes.is_empty()
        })
    }

    /// Looks again at what was ignored for a while, if there is still somebody without a name.
    pub fn expire(&mut self, time: u64) {
        for process in self.processes.values_mut() {
            process.reopen(time, &mut self.attentions);
        }
    }

    fn step(&mut self, pid: u32, act: impl FnOnce(&mut Process, &mut Said<'_>)) {
        self.now += 1;
        if self.processes.len() >= PROCESSES_MAX && !self.processes.contains_key(&pid) {
            let oldest = self.processes.iter().min_by_key(|(_, p)| p.now);
            if let Some(oldest) = oldest.map(|(pid, _)| *pid) {
                self.processes.remove(&oldest);
            }
        }
        let process = self.processes.entry(pid).or_default();
        process.now = self.now;
        act(
            process,
            &mut Said {
                verdicts: &mut self.verdicts,
                attentions: &mut self.attentions,
            },
        );
    }
}

/// Where a process puts what it finds out.
struct Said<'a> {
    verdicts: &'a mut Vec<Verdict>,
    attentions: &'a mut Vec<Attention>,
}

#[derive(Debug, Default)]
struct Process {
    now: u64,
    /// Of the event, in nanoseconds since boot.
    time: u64,
    /// By address: it means one handle at a time.
    handles: HashMap<u64, Handle>,
    sockets: HashMap<Carrier, Socket>,
    threads: HashMap<u32, Thread>,
    /// Number of the last event that was bytes received.
    received_at: u64,
    /// Sockets that are ignored, and since when.
    ignored: HashMap<u64, u64>,
}

#[derive(Debug)]
struct Handle {
    id: HandleId,
    last_use: u64,
    last_time: u64,
    name: Option<Name>,
    votes: Vec<(Carrier, Votes)>,
    /// Writes that no send agreed with yet, and who made the last one.
    writes: History,
    writer: u32,
    /// A send was of just the size of these writes: they are in nobody's way.
    is_settled: bool,
    reads: History,
    /// What encryption adds to each record, once a neighbour agreed.
    overhead: Option<u64>,
    /// Its plaintext is TLS.
    is_tunnel: bool,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    carrier: Carrier,
    is_exact: bool,
    /// The socket is closed: the name holds for what the library has still in its buffers.
    is_over: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Votes {
    alone: u32,
    order: u32,
}

impl Votes {
    fn points(self) -> u32 {
        2 * self.alone + self.order
    }
}

#[derive(Debug, Default)]
struct Socket {
    last_use: u64,
    /// It has its handle and is out of the game.
    is_named: bool,
    sent: History,
    received: History,
    /// Received bytes, and no TLS call took them yet: on this thread.
    unread: Option<u32>,
    /// Uses since its last vote.
    idle: u32,
}

#[derive(Debug, Default)]
struct Thread {
    last_use: u64,
    sequence: u32,
    last: Last,
    /// The first two handles without a name that were called since it sent something.
    callers: Vec<HandleId>,
}

/// What a thread did last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Last {
    /// Nothing that says anything.
    #[default]
    Other,
    Sent,
    Received(Carrier),
    /// TLS calls of one handle, and which socket had received just before the first of them.
    Called(HandleId, Option<Carrier>),
}

impl Last {
    fn handle(self) -> Option<HandleId> {
        match self {
            Last::Called(handle, _) => Some(handle),
            _ => None,
        }
    }
}

enum Vote {
    Alone(u64),
    Order,
    Size,
}

impl Process {
    fn handle(&mut self, id: HandleId, said: &mut Said<'_>) -> &mut Handle {
        let known = self.handles.get(&id.handle);
        if known.is_none_or(|handle| handle.id != id) {
            self.opened(id, said);
        }
        self.handles.get_mut(&id.handle).expect("made above")
    }

    fn opened(&mut self, id: HandleId, said: &mut Said<'_>) {
        if let Some(before) = self.handles.get(&id.handle) {
            self.remove(before.id, said);
        } else if self.handles.len() >= HANDLES_MAX {
            let oldest = self.handles.values().min_by_key(|handle| handle.last_use);
            if let Some(oldest) = oldest.map(|handle| handle.id) {
                self.remove(oldest, said);
            }
        }
        let handle = Handle {
            id,
            last_use: self.now,
            last_time: self.time,
            name: None,
            votes: Vec::new(),
            writes: History::default(),
            writer: 0,
            is_settled: true,
            reads: History::default(),
            overhead: None,
            is_tunnel: false,
        };
        self.handles.insert(id.handle, handle);
    }

    fn remove(&mut self, id: HandleId, said: &mut Said<'_>) {
        if self
            .handles
            .get(&id.handle)
            .is_none_or(|handle| handle.id != id)
        {
            return;
        }
        let handle = self.handles.remove(&id.handle).expect("looked at above");
        self.end_socket(Carrier::Tunnel(id));
        for thread in self.threads.values_mut() {
            thread.callers.retain(|caller| *caller != id);
            if thread.last.handle() == Some(id) {
                thread.last = Last::Other;
            }
        }
        if let Some(Name { carrier, .. }) = handle.name {
            self.release(carrier, said);
        }
    }

    /// The carrier may get another handle: a second TLS connection over one socket.
    fn release(&mut self, carrier: Carrier, said: &mut Said<'_>) {
        if self
            .handles
            .values()
            .any(|h| h.name.is_some_and(|name| name.carrier == carrier))
        {
            return;
        }
        let Some(socket) = self.sockets.get_mut(&carrier) else {
            return;
        };
        socket.is_named = false;
        if let Carrier::Socket(cookie) = carrier {
            said.attentions.push(Attention::Open { cookie });
        }
    }

    fn end_socket(&mut self, carrier: Carrier) {
        if let Carrier::Socket(cookie) = carrier {
            self.ignored.remove(&cookie);
        }
        if self.sockets.remove(&carrier).is_none() {
            return;
        }
        for handle in self.handles.values_mut() {
            handle.votes.retain(|(of, _)| *of != carrier);
            if let Some(name) = &mut handle.name
                && name.carrier == carrier
            {
                name.is_over = true;
            }
        }
        for thread in self.threads.values_mut() {
            if let Last::Received(of) | Last::Called(_, Some(of)) = thread.last
                && of == carrier
            {
                thread.last = Last::Other;
            }
        }
    }

    /// True if the last record of this thread has the same number: a long call is told in several.
    fn arrive(&mut self, place: Place) -> bool {
        let thread = self.thread(place.tid);
        if place.skipped {
            thread.last = Last::Other;
        }
        let sequence = place.sequence;
        let before = std::mem::replace(&mut thread.sequence, sequence);
        let is_same = sequence == before;
        if !is_same && sequence != before.wrapping_add(1) {
            self.forget_evidence();
        }
        is_same
    }

    /// More of the write that this handle began last: one call's bytes are encrypted together, wherever its buffers
    /// end (rustls gathers a record from several). False if it did not begin one.
    fn wrote_more(&mut self, id: HandleId, tid: u32, call: Call<'_>) -> bool {
        let Call::Data {
            direction: Direction::Sent,
            length,
            ..
        } = call
        else {
            return false;
        };
        if self.thread(tid).last.handle() != Some(id) {
            return false;
        }
        let handle = self.handles.get_mut(&id.handle).expect("the caller's");
        let is_pending = handle.writer == tid && !handle.writes.is_empty() && !handle.is_tunnel;
        if is_pending {
            handle.writes.extend(length);
        }
        is_pending
    }

    fn thread(&mut self, tid: u32) -> &mut Thread {
        if self.threads.len() >= THREADS_MAX && !self.threads.contains_key(&tid) {
            let oldest = self
                .threads
                .iter()
                .min_by_key(|(_, thread)| thread.last_use);
            if let Some(oldest) = oldest.map(|(tid, _)| *tid) {
                self.threads.remove(&oldest);
            }
        }
        let thread = self.threads.entry(tid).or_default();
        thread.last_use = self.now;
        thread
    }

    fn forget_evidence(&mut self) {
        for handle in self.handles.values_mut() {
            handle.votes.clear();
            handle.writes.clear();
            handle.reads.clear();
        }
        for socket in self.sockets.values_mut() {
            socket.sent.clear();
            socket.received.clear();
            socket.unread = None;
        }
        for thread in self.threads.values_mut() {
            thread.last = Last::Other;
        }
    }

    /// A TLS call that used no socket.
    fn tls(&mut self, id: HandleId, tid: u32, call: Call<'_>, said: &mut Said<'_>) {
        let (now, time) = (self.now, self.time);
        let handle = self.handle(id, said);
        handle.last_use = now;
        handle.last_time = time;
        if let Call::Data { head, .. } = call {
            handle.is_tunnel |= is_tls(head);
        }
        let is_tunnel = handle.is_tunnel;
        let took_over = matches!(
            call,
            Call::Touch
                | Call::Data {
                    direction: Direction::Sent,
                    ..
                }
        );
        if took_over && handle.name.is_some_and(|name| name.is_over) {
            // Nothing leaves by a closed socket: the handle means something else now.
            handle.name = None;
            handle.overhead = None;
            said.verdicts.push(Verdict::Unnamed { handle: id });
        }
        let Call::Data {
            direction, length, ..
        } = call
        else {
            self.called(id, tid, None, said);
            return;
        };
        if !is_tunnel {
            self.called(id, tid, Some((direction, length)), said);
            return;
        }
        // For the connection inside it this call is a socket's, and no neighbour by itself.
        let last = self.thread(tid).last;
        if self.handles[&id.handle].name.is_none() {
            self.called(id, tid, Some((direction, length)), said);
        }
        let thread = self.thread(tid);
        thread.last = last;
        thread.callers.retain(|caller| *caller != id);
        self.transfer(tid, Carrier::Tunnel(id), direction, length, 0, said);
    }

    /// What a TLS call says about the connection that it belongs to.
    fn called(
        &mut self,
        id: HandleId,
        tid: u32,
        data: Option<(Direction, u64)>,
        said: &mut Said<'_>,
    ) {
        let last = self.thread(tid).last;
        let unread: Vec<Carrier> = self.unread_on(tid);
        if self.handles[&id.handle].name.is_none() {
            let mut agreed = false;
            match data {
                Some((Direction::Sent, length)) => {
                    let now = self.now;
                    let handle = self.handle(id, said);
                    handle.writes.push(now, length);
                    handle.writer = tid;
                    handle.is_settled = false;
                }
                Some((Direction::Received, length)) => {
                    agreed = self.read(id, length, last, &unread, said);
                }
                None => {}
            }
            if let Last::Received(carrier) = last
                && !agreed
                && unread == [carrier]
                && self.handles[&id.handle].name.is_none()
            {
                self.vote(id, carrier, Vote::Order, said);
            }
        }
        if let Last::Received(carrier) = last
            && self.unread_on(tid).len() <= 1
            && let Some(socket) = self.sockets.get_mut(&carrier)
        {
            socket.unread = None;
        }
        let is_named = self.handles[&id.handle].name.is_some();
        let thread = self.thread(tid);
        if !is_named && thread.callers.len() < 2 && !thread.callers.contains(&id) {
            thread.callers.push(id);
        }
        thread.last = match last {
            Last::Received(carrier) => Last::Called(id, Some(carrier)),
            Last::Called(before, after) if before == id => Last::Called(id, after),
            _ => Last::Called(id, None),
        };
    }

    /// Bytes that a handle read: who received them? True if anybody comes into question.
    fn read(
        &mut self,
        id: HandleId,
        length: u64,
        last: Last,
        unread: &[Carrier],
        said: &mut Said<'_>,
    ) -> bool {
        let now = self.now;
        let sockets = &self.sockets;
        let handle = self.handles.get_mut(&id.handle).expect("the caller's");
        handle.reads.push_since(self.received_at, now, length);
        // It read what this socket did not receive.
        handle.votes.retain(|(carrier, votes)| {
            votes.alone == 0 || sockets.get(carrier).is_none_or(|s| !s.received.is_empty())
        });
        let fits: Vec<(Carrier, u64)> = sockets
            .iter()
            .filter(|(carrier, socket)| !socket.is_named && **carrier != Carrier::Tunnel(id))
            .filter_map(|(carrier, socket)| {
                let overhead = fits_receives(&handle.reads, &socket.received, handle.overhead)?;
                Some((*carrier, overhead))
            })
            .collect();
        let [(carrier, overhead)] = fits[..] else {
            return !fits.is_empty();
        };
        let is_neighbour =
            last == Last::Received(carrier) || last == Last::Called(id, Some(carrier));
        if is_neighbour && (unread.is_empty() || unread == [carrier]) {
            self.vote(id, carrier, Vote::Alone(overhead), said);
            if let Some(socket) = self.sockets.get_mut(&carrier) {
                socket.received.clear();
            }
            if let Some(handle) = self.handles.get_mut(&id.handle) {
                handle.reads.clear();
            }
        } else {
            self.vote(id, carrier, Vote::Size, said);
            // Taken, by whomever: it is in nobody's way.
            if let Some(socket) = self.sockets.get_mut(&carrier) {
                socket.unread = None;
            }
        }
        true
    }

    /// Sockets without a name that received on this thread what no TLS call took yet.
    fn unread_on(&self, tid: u32) -> Vec<Carrier> {
        self.sockets
            .iter()
            .filter(|(_, socket)| !socket.is_named && socket.unread == Some(tid))
            .map(|(carrier, _)| *carrier)
            .collect()
    }

    /// A socket, or a connection that carries another, sent or received.
    fn transfer(
        &mut self,
        tid: u32,
        carrier: Carrier,
        direction: Direction,
        length: u64,
        generation: u32,
        said: &mut Said<'_>,
    ) {
        let now = self.now;
        let last = self.thread(tid).last;
        let socket = self.socket(carrier);
        socket.last_use = now;
        if socket.is_named {
            socket.idle += 1;
            if let Carrier::Socket(cookie) = carrier
                && socket.idle.is_multiple_of(PATIENCE)
            {
                // Said before, and lost.
                said.attentions.push(Attention::Named { cookie });
            }
            self.thread(tid).last = Last::Other;
            return;
        }
        socket.idle += 1;
        match direction {
            Direction::Sent => {
                socket.sent.push(now, length);
                self.sent(tid, carrier, last, said);
                let thread = self.thread(tid);
                thread.callers.clear();
                thread.last = Last::Sent;
            }
            Direction::Received => {
                socket.received.push(now, length);
                socket.unread = Some(tid);
                self.received_at = now;
                self.thread(tid).last = Last::Received(carrier);
            }
        }
        self.ignore(carrier, generation, said);
    }

    fn socket(&mut self, carrier: Carrier) -> &mut Socket {
        if self.sockets.len() >= SOCKETS_MAX && !self.sockets.contains_key(&carrier) {
            let oldest = self
                .sockets
                .iter()
                .min_by_key(|(carrier, socket)| (socket.last_use, **carrier));
            if let Some(oldest) = oldest.map(|(carrier, _)| *carrier) {
                self.sockets.remove(&oldest);
                for handle in self.handles.values_mut() {
                    handle.votes.retain(|(of, _)| *of != oldest);
                }
            }
        }
        self.sockets.entry(carrier).or_default()
    }

    /// Bytes that a carrier sent: who wrote them?
    fn sent(&mut self, tid: u32, carrier: Carrier, last: Last, said: &mut Said<'_>) {
        let unnamed = |handle: &&mut Handle| handle.name.is_none();
        for handle in self.handles.values_mut().filter(unnamed) {
            // It sent what this handle did not write.
            if handle.writes.is_empty() && last.handle() != Some(handle.id) {
                handle
                    .votes
                    .retain(|(of, votes)| *of != carrier || votes.alone == 0);
            }
        }
        let socket = &self.sockets[&carrier];
        let pending: Vec<&Handle> = self
            .handles
            .values()
            .filter(|handle| handle.name.is_none() && !handle.writes.is_empty())
            .filter(|handle| carrier != Carrier::Tunnel(handle.id))
            .collect();
        let fits: Vec<(HandleId, u64)> = pending
            .iter()
            .filter_map(|handle| {
                let overhead = fits_sends(&handle.writes, &socket.sent, handle.overhead)?;
                Some((handle.id, overhead))
            })
            .collect();
        if let [(id, overhead)] = fits[..] {
            let handle = &self.handles[&id.handle];
            let is_only_socket = self.sockets.iter().all(|(other, socket)| {
                *other == carrier
                    || socket.is_named
                    || *other == Carrier::Tunnel(id)
                    || fits_sends(&handle.writes, &socket.sent, handle.overhead).is_none()
            });
            if !is_only_socket {
                return;
            }
            let in_the_way = pending
                .iter()
                .any(|handle| handle.id != id && handle.writer == tid && !handle.is_settled);
            if !in_the_way && last.handle() == Some(id) {
                self.vote(id, carrier, Vote::Alone(overhead), said);
                if let Some(handle) = self.handles.get_mut(&id.handle) {
                    handle.writes.clear();
                }
            } else {
                self.vote(id, carrier, Vote::Size, said);
            }
            if let Some(handle) = self.handles.get_mut(&id.handle) {
                handle.is_settled = true;
            }
            return;
        }
        // A handshake's bytes: nobody wrote them. Of several handshakes at once, anybody's.
        if let Some(id) = last.handle()
            && self.threads[&tid].callers == [id]
            && fits.is_empty()
            && pending.is_empty()
            && carrier != Carrier::Tunnel(id)
            && self
                .handles
                .get(&id.handle)
                .is_some_and(|h| h.id == id && h.name.is_none())
        {
            self.vote(id, carrier, Vote::Order, said);
        }
    }

    fn vote(&mut self, id: HandleId, carrier: Carrier, vote: Vote, said: &mut Said<'_>) {
        if let Some(socket) = self.sockets.get_mut(&carrier) {
            socket.idle = 0;
        }
        let handle = self.handles.get_mut(&id.handle).expect("the caller's");
        let votes = match handle.votes.iter().position(|(of, _)| *of == carrier) {
            Some(at) => &mut handle.votes[at].1,
            None if handle.votes.len() >= VOTES_MAX => return,
            None => {
                handle.votes.push((carrier, Votes::default()));
                &mut handle.votes.last_mut().expect("just pushed").1
            }
        };
        match vote {
            Vote::Alone(overhead) => {
                votes.alone += 1;
                handle.overhead = Some(overhead);
            }
            Vote::Order => votes.order += 1,
            // Not even of the overhead: a wrong one would fit nothing ever after.
            Vote::Size => {}
        }
        let votes = *votes_of(&handle.votes, carrier);
        let rival = self.rival(id, carrier);
        let uncontested = votes.alone >= 1 && votes.order >= 2 || votes.alone >= 2;
        if uncontested && rival == 0 || votes.alone >= 2 && votes.points() >= 6 + 4 * rival {
            self.bind(id, carrier, false, said);
        }
    }

    /// The most that speaks for this handle and another carrier, or this carrier and another handle.
    fn rival(&self, id: HandleId, carrier: Carrier) -> u32 {
        let is_free = |of: &Carrier| self.sockets.get(of).is_some_and(|socket| !socket.is_named);
        let of_handle = self.handles[&id.handle]
            .votes
            .iter()
            .filter(|(of, _)| *of != carrier && is_free(of))
            .map(|(_, votes)| votes.points());
        let of_carrier = self
            .handles
            .values()
            .filter(|handle| handle.id != id && handle.name.is_none())
            .flat_map(|handle| &handle.votes)
            .filter(|(of, _)| *of == carrier)
            .map(|(_, votes)| votes.points());
        of_handle.chain(of_carrier).max().unwrap_or(0)
    }

    fn bind(&mut self, id: HandleId, carrier: Carrier, is_exact: bool, said: &mut Said<'_>) {
        let now = self.now;
        let socket = self.socket(carrier);
        socket.last_use = now;
        if socket.is_named && !is_exact {
            return;
        }
        socket.is_named = true;
        socket.idle = 0;
        socket.unread = None;
        let handle = self.handles.get_mut(&id.handle).expect("the caller's");
        let name = Name {
            carrier,
            is_exact,
            is_over: false,
        };
        let before = handle.name.replace(name);
        if is_exact {
            // Whoever was inferred to have this socket has it no longer, or never had.
            for other in self.handles.values_mut().filter(|other| other.id != id) {
                if other
                    .name
                    .is_some_and(|name| name.carrier == carrier && !name.is_exact)
                {
                    other.name = None;
                    said.verdicts.push(Verdict::Unnamed { handle: other.id });
                }
            }
        }
        let handle = self.handles.get_mut(&id.handle).expect("the caller's");
        handle.votes.clear();
        handle.writes.clear();
        handle.reads.clear();
        if let Some(before) = before
            && before.carrier != carrier
        {
            self.release(before.carrier, said);
        }
        if let Carrier::Socket(cookie) = carrier {
            said.attentions.push(Attention::Named { cookie });
        }
        self.say(id, said, 0);
    }

    /// Says the handle's name, and with it that of each connection inside it.
    fn say(&self, id: HandleId, said: &mut Said<'_>, depth: usize) {
        const NESTED_MAX: usize = 4;
        let Some(handle) = self.handles.get(&id.handle) else {
            return;
        };
        let Some(cookie) = self.cookie(handle, 0) else {
            return;
        };
        // The kernel said the exact ones.
        if !handle.name.is_some_and(|name| name.is_exact) {
            said.verdicts.push(Verdict::Named { handle: id, cookie });
        }
        if depth == NESTED_MAX || !handle.is_tunnel {
            return;
        }
        let mut inner: Vec<HandleId> = self
            .handles
            .values()
            .filter(|inner| {
                inner
                    .name
                    .is_some_and(|name| name.carrier == Carrier::Tunnel(id))
            })
            .map(|inner| inner.id)
            .collect();
        inner.sort_unstable();
        for inner in inner {
            self.say(inner, said, depth + 1);
        }
    }

    fn cookie(&self, handle: &Handle, depth: usize) -> Option<u64> {
        match handle.name?.carrier {
            Carrier::Socket(cookie) => Some(cookie),
            Carrier::Tunnel(outer) if depth < 4 => {
                self.cookie(self.handles.get(&outer.handle)?, depth + 1)
            }
            Carrier::Tunnel(_) => None,
        }
    }

    /// A socket that nothing fits costs its program a record each time it is used.
    fn ignore(&mut self, carrier: Carrier, generation: u32, said: &mut Said<'_>) {
        let Carrier::Socket(cookie) = carrier else {
            return;
        };
        let socket = &self.sockets[&carrier];
        if socket.is_named || socket.idle < PATIENCE_IDLE {
            return;
        }
        if socket.idle < PATIENCE && self.lacks_names(self.time) {
            return;
        }
        self.sockets.remove(&carrier);
        for handle in self.handles.values_mut() {
            handle.votes.retain(|(of, _)| *of != carrier);
        }
        if self.ignored.len() < SOCKETS_MAX {
            self.ignored.insert(cookie, self.time);
        }
        said.attentions
            .push(Attention::Ignored { cookie, generation });
    }

    /// Is a handle without a name in use?
    fn lacks_names(&self, time: u64) -> bool {
        self.handles.values().any(|handle| {
            handle.name.is_none() && time.saturating_sub(handle.last_time) < IN_USE_FOR
        })
    }

    fn reopen(&mut self, time: u64, attentions: &mut Vec<Attention>) {
        if self.ignored.is_empty() || !self.lacks_names(time) {
            return;
        }
        let due = |since: &u64| time.saturating_sub(*since) >= IGNORED_FOR;
        for (cookie, _) in self.ignored.extract_if(|_, since| due(since)) {
            attentions.push(Attention::Open { cookie });
        }
    }
}

fn votes_of(votes: &[(Carrier, Votes)], carrier: Carrier) -> &Votes {
    let found = votes.iter().find(|(of, _)| *of == carrier);
    &found.expect("it has just got one").1
}

/// A handshake record of TLS, as plaintext of another connection.
fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16, 3, 0..=4, _, _, ..])
}
