//! The live connections, whose they are, and between which addresses.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher as _},
};

use agent_ebpf::Direction;

use crate::{
    event::{Ends, HandleId},
    half::{Connected, FileId},
    llm::Calls,
    mcp,
    protocol::Protocol,
    record::{Attribution, Clear, Connection, Joined},
    redact::Redactor,
    stream::Stream,
    unclaimed::Greeting,
};

/// A connection and its two streams.
#[derive(Debug)]
pub struct Entry {
    pub facts: Connection,
    pub received: Stream,
    pub sent: Stream,
    socket: u64,
    /// Whose functions carry it, if its first record said so.
    pub file: Option<FileId>,
    /// How long its data waited for a name in vain, in nanoseconds.
    pub waited: u64,
    /// Its program closed it, and may still read what is left.
    pub is_left: bool,
    /// Nothing is told of it, from its first byte to its last: the agent would cost too much.
    pub is_left_out: bool,
    pub protocol: Protocol,
    pub calls: Calls,
    pub mcp: mcp::Calls,
    pub border: Border,
}

/// How far a connection was when the policy became another: what its decoder and its holes hold is of the time before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Border {
    at: u64,
    ends: [u64; 2],
    /// What seems to have begun up to here may have begun before.
    until: u64,
}

impl Border {
    /// These bytes come out. The first ones behind the border may end what began before it.
    pub fn pass(&mut self, direction: Direction, offset: u64, time: u64) {
        if self.at > 0 && offset <= self.ends[direction as usize] {
            self.until = self.until.max(time);
        }
    }

    /// When that may have begun which seems to have at `time`.
    pub fn began(&self, time: u64) -> u64 {
        match time <= self.until {
            true => time.min(self.at),
            false => time,
        }
    }

    /// When bytes at a position came: one behind a hole came before it was its turn.
    pub fn came(&self, direction: Direction, offset: u64, time: u64) -> u64 {
        match offset < self.ends[direction as usize] {
            true => time.min(self.at),
            false => time,
        }
    }
}

impl Entry {
    /// The policy becomes another.
    pub fn bound(&mut self, now: u64) {
        self.border = Border {
            at: now,
            ends: [&self.received, &self.sent].map(|stream| stream.end().unwrap_or(0)),
            until: now,
        };
    }

    /// What came before was turned away: it starts anywhere.
    pub fn joins_anywhere(&mut self) {
        self.received.join();
        self.sent.join();
    }

    /// Something was not seen before its first byte that was.
    pub fn joins_late(&mut self) {
        self.facts.joined = Joined::Middle;
        let is_fed = [&self.received, &self.sent]
            .iter()
            .any(|stream| stream.is_begun());
        if !is_fed {
            self.protocol = Protocol::new(false);
        }
    }

    /// Bytes that are missing of each stream so far, by direction.
    pub fn lost(&self) -> [u64; 2] {
        [self.received.lost(), self.sent.lost()]
    }

    /// The stream of this direction, what is said about it, and what it is decoded by.
    pub fn parts(&mut self, direction: Direction) -> Parts<'_> {
        Parts {
            stream: match direction {
                Direction::Received => &mut self.received,
                Direction::Sent => &mut self.sent,
            },
            connection: &mut self.facts,
            decoder: &mut self.protocol,
            calls: &mut self.calls,
            mcp: &mut self.mcp,
        }
    }
}

/// One stream of a connection, and what it shares with the other.
pub struct Parts<'a> {
    pub stream: &'a mut Stream,
    pub connection: &'a mut Connection,
    pub decoder: &'a mut Protocol,
    pub calls: &'a mut Calls,
    pub mcp: &'a mut mcp::Calls,
}

/// Every connection of every live process.
#[derive(Debug)]
pub struct Connections {
    entries: HashMap<HandleId, Entry>,
    /// The live ones of each process, by handle: an address means one connection at a time.
    current: HashMap<u32, BTreeMap<u64, HandleId>>,
    retired: Retired,
    sockets: Sockets,
    key: u128,
    /// How many there were: a handle alone names several, one after the other.
    opened: u64,
    /// Of so many that begin one is decoded.
    one_in: u64,
    left_out: u64,
}

impl Connections {
    /// Ids are keyed by `key`: if it is random, they tell nothing of the addresses that they are made of.
    pub fn new(key: u128) -> Connections {
        Connections {
            entries: HashMap::new(),
            current: HashMap::new(),
            retired: Retired::default(),
            sockets: Sockets::default(),
            key,
            opened: 0,
            one_in: 1,
            left_out: 0,
        }
    }

    /// Of so many that begin from here on one is decoded.
    pub fn decode_one_in(&mut self, many: u64) {
        self.one_in = many;
    }

    /// How many were left out.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// By what a connection is and not when it is asked: one that is told of once more gets the same answer.
    fn is_left_out(&self, id: HandleId) -> bool {
        let mut hasher = DefaultHasher::new();
        (self.key, id).hash(&mut hasher);
        !hasher.finish().is_multiple_of(self.one_in)
    }

    /// An id for the next one, made of what tells it from others.
    fn name(&mut self, what: impl Hash) -> String {
        self.opened += 1;
        let mut hasher = DefaultHasher::new();
        (self.key, what, self.opened).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Less may be told of what they are called.
    pub fn redact(&mut self, redactor: &Redactor) {
        let entries = self.entries.values_mut();
        for Entry { facts, .. } in entries.chain(self.retired.entries.values_mut()) {
            let named = [&mut facts.server_name, &mut facts.library_version];
            redactor.again(named.into_iter().flatten());
        }
    }

    pub fn contains(&self, id: &HandleId) -> bool {
        self.entries.contains_key(id)
    }

    /// The live connection with this handle, whenever it began.
    pub fn at(&self, pid: u32, handle: u64) -> Option<HandleId> {
        self.current.get(&pid)?.get(&handle).copied()
    }

    /// All connections, in order.
    pub fn all(&self) -> Vec<HandleId> {
        let mut all: Vec<HandleId> = self.entries.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// All live connections of a process, in order.
    pub fn of(&self, pid: u32) -> Vec<HandleId> {
        self.current
            .get(&pid)
            .into_iter()
            .flat_map(BTreeMap::values)
            .copied()
            .collect()
    }

    pub fn open(
        &mut self,
        id: HandleId,
        joined: Joined,
        library: Option<(&'static str, Option<&Clear>)>,
    ) {
        let mut facts = Connection {
            id: self.name(id),
            number: self.opened,
            attribution: Attribution::None,
            joined,
            has_unseen: false,
            local: None,
            peer: None,
            role: None,
            server_name: None,
            library_name: None,
            library_version: None,
            http_version: None,
            is_plain: id.is_plain(),
        };
        facts.set_library(library);
        let is_left_out = self.is_left_out(id);
        self.left_out += u64::from(is_left_out);
        let entry = Entry {
            facts,
            received: Stream::default(),
            sent: Stream::default(),
            socket: 0,
            file: None,
            waited: 0,
            is_left: false,
            is_left_out,
            protocol: Protocol::new(joined == Joined::Start),
            calls: Calls::default(),
            mcp: mcp::Calls::default(),
            border: Border::default(),
        };
        self.entries.insert(id, entry);
        self.current
            .entry(id.pid)
            .or_default()
            .insert(id.handle, id);
    }

    /// What is known of a connection of which nothing but its beginning is seen.
    pub fn unseen(&mut self, connected: &Connected, greeting: Greeting) -> Connection {
        Connection {
            id: self.name(connected),
            number: self.opened,
            attribution: Attribution::Exact,
            joined: Joined::Start,
            has_unseen: true,
            local: Some(connected.local),
            peer: Some(connected.peer),
            role: Some(greeting.role),
            server_name: greeting.server_name,
            library_name: None,
            library_version: None,
            http_version: None,
            is_plain: false,
        }
    }

    /// Takes out a connection: its process is gone, or its handle means another one now. What may still be
    /// told of it is a hole at its end.
    pub fn close(&mut self, id: &HandleId) {
        if let Some(entry) = self.entries.remove(id) {
            self.retired.insert(*id, entry);
        }
        if let Some(handles) = self.current.get_mut(&id.pid) {
            if handles.get(&id.handle) == Some(id) {
                handles.remove(&id.handle);
            }
            if handles.is_empty() {
                self.current.remove(&id.pid);
            }
        }
    }

    /// Nothing is told of a process any more, nor brought back of its connections.
    pub fn turn_away(&mut self, pid: u32) {
        for id in self.current.remove(&pid).unwrap_or_default().values() {
            self.entries.remove(id);
        }
        self.retired.entries.retain(|id, _| id.pid != pid);
    }

    /// The name of its server, whoever has the handle next.
    pub fn server_name(&self, id: &HandleId) -> Option<&Clear> {
        self.entries.get(id)?.facts.server_name.as_ref()
    }

    /// Brings back a connection that is over, or one of which nothing came through at all, beside the one that
    /// its handle means now; until it is closed again.
    pub fn recall(&mut self, id: HandleId) {
        if let Some(entry) = self.retired.remove(&id) {
            self.entries.insert(id, entry);
            return;
        }
        let current = self.at(id.pid, id.handle);
        self.open(id, Joined::Middle, None);
        if let Some(current) = current {
            let handles = self.current.entry(id.pid).or_default();
            handles.insert(id.handle, current);
        }
    }

    /// Brings back a connection that its program had left, if it is remembered.
    pub fn resume(&mut self, id: HandleId) -> bool {
        let known = self.retired.entries.get(&id);
        let is_left = known.is_some_and(|entry| entry.is_left);
        if is_left {
            self.recall(id);
        }
        is_left
    }

    pub fn get(&mut self, id: &HandleId) -> Option<&mut Entry> {
        self.entries.get_mut(id)
    }

    pub fn announce(&mut self, cookie: u64, ends: Ends) {
        self.sockets.insert(cookie, ends);
    }

    /// Whose connection this socket carries, and how that is known. False if it was known before.
    pub fn attribute(&mut self, id: &HandleId, cookie: u64, how: Attribution) -> bool {
        let Some(entry) = self.entries.get_mut(id) else {
            return false;
        };
        let facts = &mut entry.facts;
        if cookie == entry.socket && facts.attribution == how {
            return false;
        }
        entry.socket = cookie;
        // Another socket whose ends nobody told us: what we knew is wrong now.
        let ends = self.sockets.get(cookie);
        facts.attribution = ends.map_or(Attribution::None, |_| how);
        facts.local = ends.map(|ends| ends.local);
        facts.peer = ends.map(|ends| ends.peer);
        facts.role = ends.and_then(|ends| ends.role);
        true
    }

    /// What was inferred holds no longer.
    pub fn doubt(&mut self, id: &HandleId) {
        if let Some(entry) = self.entries.get_mut(id) {
            let facts = &mut entry.facts;
            entry.socket = 0;
            facts.attribution = Attribution::None;
            (facts.local, facts.peer, facts.role) = (None, None, None);
        }
    }
}

/// The last ones that were closed.
#[derive(Debug, Default)]
struct Retired {
    entries: HashMap<HandleId, Entry>,
    /// In the order they were closed; may name some that were taken out since.
    order: VecDeque<HandleId>,
}

/// The privileged half looks for holes each second. Above this many connections a second the hole is told
/// of a connection of its own.
const RETIRED_LIMIT: usize = 1024;

impl Retired {
    fn insert(&mut self, id: HandleId, entry: Entry) {
        if self.order.len() >= RETIRED_LIMIT
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
        self.order.push_back(id);
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: &HandleId) -> Option<Entry> {
        self.entries.remove(id)
    }
}

/// The two ends of each socket that was told of. The kernel says them once.
#[derive(Debug, Default)]
struct Sockets {
    ends: HashMap<u64, Ends>,
    /// In the order they came.
    order: VecDeque<u64>,
}

/// More than the kernel's own memory of sockets: it says an evicted one again, we forget later. And less than half of
/// what the table of that size holds: where old ones go as new ones come, one that is fuller doubles some day.
const SOCKETS_LIMIT: usize = 28_000;

impl Sockets {
    fn insert(&mut self, cookie: u64, ends: Ends) {
        if self.ends.insert(cookie, ends).is_some() {
            return;
        }
        self.order.push_back(cookie);
        if self.order.len() > SOCKETS_LIMIT
            && let Some(oldest) = self.order.pop_front()
        {
            self.ends.remove(&oldest);
        }
    }

    fn get(&self, cookie: u64) -> Option<Ends> {
        self.ends.get(&cookie).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

    use super::*;
    use crate::record::Role;

    /// A table of 65,536 places is seven eighths full at most.
    #[test]
    fn sockets_that_come_and_go_take_no_more_room() {
        let mut sockets = Sockets::default();
        for cookie in 0..1_000_000 {
            sockets.insert(cookie, ENDS);
            assert!(sockets.ends.capacity() <= 57_344, "at {cookie}");
        }
        assert_eq!(sockets.ends.len(), SOCKETS_LIMIT);
        let oldest = 1_000_000 - SOCKETS_LIMIT as u64;
        assert!(sockets.get(oldest).is_some() && sockets.get(oldest - 1).is_none());
    }

    const ENDS: Ends = Ends {
        local: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)),
        peer: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2)),
        role: Some(Role::Client),
    };

    const ID: HandleId = HandleId {
        pid: 1,
        born: 2,
        handle: 3,
    };

    #[test]
    fn the_socket_of_a_call_names_the_connection() {
        let mut connections = Connections::new(0);
        connections.open(ID, Joined::Start, Some(("OpenSSL", None)));
        connections.announce(7, ENDS);
        let state = |connections: &mut Connections| {
            let facts = &connections.get(&ID).unwrap().facts;
            (facts.attribution, facts.peer, facts.role)
        };
        assert!(connections.attribute(&ID, 8, Attribution::Exact));
        assert_eq!(state(&mut connections), (Attribution::None, None, None));
        assert!(connections.attribute(&ID, 7, Attribution::Inferred));
        let (peer, role) = (Some(ENDS.peer), ENDS.role);
        assert_eq!(state(&mut connections), (Attribution::Inferred, peer, role));
        assert!(connections.attribute(&ID, 7, Attribution::Exact));
        assert!(!connections.attribute(&ID, 7, Attribution::Exact));
        assert_eq!(state(&mut connections), (Attribution::Exact, peer, role));
        connections.doubt(&ID);
        assert_eq!(state(&mut connections), (Attribution::None, None, None));
    }

    #[test]
    fn an_id_is_stable_and_another_for_each_life_of_a_process() {
        let mut connections = Connections::new(0);
        let again = HandleId { born: 9, ..ID };
        connections.open(ID, Joined::Start, None);
        connections.open(again, Joined::Start, None);
        let [a, b] = [ID, again].map(|id| connections.get(&id).unwrap().facts.id.clone());
        assert_ne!(a, b);
        assert_eq!(connections.at(1, 3), Some(again));
        connections.close(&again);
        assert!(connections.of(1).is_empty() && !connections.contains(&again));
    }

    /// What is said of all of them at the end must not depend on where a hash puts them.
    #[test]
    fn all_come_in_order() {
        let mut connections = Connections::new(0);
        let id = |pid, handle| HandleId { pid, handle, ..ID };
        // 37 is coprime to 100: each number once.
        let scrambled = (0..100).map(|i| i * 37 % 100);
        for handle in scrambled {
            connections.open(id(2, handle), Joined::Start, None);
            connections.open(id(1, handle), Joined::Start, None);
        }
        let of = |pid| (0..100).map(move |handle| id(pid, handle));
        assert_eq!(connections.all(), of(1).chain(of(2)).collect::<Vec<_>>());
        assert_eq!(connections.of(2), of(2).collect::<Vec<_>>());
    }

    #[test]
    fn sockets_are_bounded() {
        let mut sockets = Sockets::default();
        for cookie in 0..SOCKETS_LIMIT as u64 + 10 {
            sockets.insert(cookie, ENDS);
        }
        assert_eq!(
            (sockets.ends.len(), sockets.order.len()),
            (SOCKETS_LIMIT, SOCKETS_LIMIT)
        );
        assert!(sockets.get(9).is_none() && sockets.get(10).is_some());
    }
}
