//! attribute: the live connections, whose they are, and between which addresses.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
};

use agent_ebpf::Direction;

use crate::{
    event::HandleId,
    record::{Attribution, Connection, Joined},
    stream::Stream,
};

/// A connection and its two streams.
#[derive(Debug)]
pub struct Entry {
    pub facts: Connection,
    pub received: Stream,
    pub sent: Stream,
    socket: u64,
}

impl Entry {
    /// The stream of this direction, and what is said about it.
    pub fn stream(&mut self, direction: Direction) -> (&mut Stream, &Connection) {
        match direction {
            Direction::Received => (&mut self.received, &self.facts),
            Direction::Sent => (&mut self.sent, &self.facts),
        }
    }
}

/// Every connection of every live process.
#[derive(Debug)]
pub struct Connections {
    entries: HashMap<HandleId, Entry>,
    sockets: Sockets,
    key: u128,
    /// How many there were: a handle alone names several, one after the other.
    opened: u64,
}

impl Connections {
    /// Ids are keyed by `key`: if it is random, they tell nothing of the addresses that they are made of.
    pub fn new(key: u128) -> Connections {
        Connections {
            entries: HashMap::new(),
            sockets: Sockets::default(),
            key,
            opened: 0,
        }
    }

    fn name(&self, id: &HandleId) -> String {
        let mut hasher = DefaultHasher::new();
        (self.key, id, self.opened).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    pub fn contains(&self, id: &HandleId) -> bool {
        self.entries.contains_key(id)
    }

    /// Did any life of this process use this handle?
    pub fn knows(&self, pid: u32, handle: u64) -> bool {
        self.entries
            .keys()
            .any(|id| id.pid == pid && id.handle == handle)
    }

    pub fn open(&mut self, id: HandleId, joined: Joined, library: Option<(&str, Option<&str>)>) {
        self.opened += 1;
        let facts = Connection {
            id: self.name(&id),
            attribution: Attribution::None,
            joined,
            local: None,
            peer: None,
            library_name: library.map(|(name, _)| name.to_owned()),
            library_version: library.and_then(|(_, version)| version).map(str::to_owned),
        };
        let entry = Entry {
            facts,
            received: Stream::default(),
            sent: Stream::default(),
            socket: 0,
        };
        self.entries.insert(id, entry);
    }

    /// Takes out one connection: its handle means another one now.
    pub fn remove(&mut self, id: &HandleId) -> Option<Entry> {
        self.entries.remove(id)
    }

    pub fn get(&mut self, id: &HandleId) -> Option<&mut Entry> {
        self.entries.get_mut(id)
    }

    pub fn announce(&mut self, cookie: u64, local: SocketAddr, peer: SocketAddr) {
        self.sockets.insert(cookie, local, peer);
    }

    /// The call used this socket and no other.
    pub fn used(&mut self, id: &HandleId, cookie: u64) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if cookie == 0 || cookie == entry.socket {
            return;
        }
        if let Some((local, peer)) = self.sockets.get(cookie) {
            entry.socket = cookie;
            entry.facts.attribution = Attribution::Exact;
            entry.facts.local = Some(local);
            entry.facts.peer = Some(peer);
        }
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&HandleId, &mut Entry)> {
        self.entries.iter_mut()
    }

    /// Takes out the connections of a process that ended.
    pub fn close(&mut self, pid: u32) -> Vec<(HandleId, Entry)> {
        self.entries.extract_if(|id, _| id.pid == pid).collect()
    }
}

/// The two ends of each socket that a TLS call used. The kernel says them once.
#[derive(Debug, Default)]
struct Sockets {
    ends: HashMap<u64, (SocketAddr, SocketAddr)>,
    /// In the order they came.
    order: VecDeque<u64>,
}

/// More than the kernel's own memory of sockets: it says an evicted one again, we forget later.
const SOCKETS_LIMIT: usize = 32768;

impl Sockets {
    fn insert(&mut self, cookie: u64, local: SocketAddr, peer: SocketAddr) {
        if self.ends.insert(cookie, (local, peer)).is_some() {
            return;
        }
        self.order.push_back(cookie);
        if self.order.len() > SOCKETS_LIMIT
            && let Some(oldest) = self.order.pop_front()
        {
            self.ends.remove(&oldest);
        }
    }

    fn get(&self, cookie: u64) -> Option<(SocketAddr, SocketAddr)> {
        self.ends.get(&cookie).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: HandleId = HandleId {
        pid: 1,
        born: 2,
        handle: 3,
    };

    #[test]
    fn the_socket_of_a_call_names_the_connection() {
        let (local, peer) = ("127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap());
        let mut connections = Connections::new(0);
        connections.open(ID, Joined::Start, Some(("OpenSSL", None)));
        connections.announce(7, local, peer);
        connections.used(&ID, 0);
        connections.used(&ID, 8);
        assert_eq!(
            connections.get(&ID).unwrap().facts.attribution,
            Attribution::None
        );
        connections.used(&ID, 7);
        let facts = &connections.get(&ID).unwrap().facts;
        assert_eq!(
            (facts.attribution, facts.peer),
            (Attribution::Exact, Some(peer))
        );
    }

    #[test]
    fn an_id_is_stable_and_another_for_each_life_of_a_process() {
        let mut connections = Connections::new(0);
        let again = HandleId { born: 9, ..ID };
        connections.open(ID, Joined::Start, None);
        connections.open(again, Joined::Start, None);
        let [a, b] = [ID, again].map(|id| connections.get(&id).unwrap().facts.id.clone());
        assert_ne!(a, b);
        assert_eq!(connections.close(1).len(), 2);
        assert!(!connections.contains(&ID));
    }

    #[test]
    fn sockets_are_bounded() {
        let mut sockets = Sockets::default();
        let address = "127.0.0.1:1".parse().unwrap();
        for cookie in 0..SOCKETS_LIMIT as u64 + 10 {
            sockets.insert(cookie, address, address);
        }
        assert_eq!(
            (sockets.ends.len(), sockets.order.len()),
            (SOCKETS_LIMIT, SOCKETS_LIMIT)
        );
        assert!(sockets.get(9).is_none() && sockets.get(10).is_some());
    }
}
