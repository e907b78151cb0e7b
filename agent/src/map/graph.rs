//! Programs and whom they talk to.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::seen::{Call, Named, Seen, What};
use crate::record::WallTime;

/// Longest name, in bytes: what is longer is cut.
const NAME_MAX: usize = 512;

#[derive(Debug, Serialize, Deserialize)]
pub struct Graph {
    /// Of the form of its JSON.
    v: u32,
    #[serde(serialize_with = "listed", deserialize_with = "unlisted")]
    pub programs: BTreeMap<Program, Talk>,
    /// Records that had no room.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// Peers that were heard of longest ago, and made room for others.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub forgotten: u64,
    /// Programs, peers, models and tools there is room for.
    #[serde(skip)]
    room: usize,
}

/// All processes of one name and file, in one container.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Program {
    pub host: String,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Talk {
    #[serde(flatten)]
    pub times: Times,
    #[serde(serialize_with = "listed", deserialize_with = "unlisted")]
    pub peers: BTreeMap<Peer, Traffic>,
    /// What of its TLS is not seen, by `coverage`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unseen: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// Of the server, by name if there is one; of who asks it, where the program is the server.
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u64>,
    /// The program's: `client` or `server`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    #[serde(flatten)]
    pub times: Times,
    /// Requests with their responses.
    pub exchanges: u64,
    /// Bytes of their bodies.
    pub asked: u64,
    pub answered: u64,
    /// Bytes that were told as data, decoded or not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub data: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub messages: u64,
    #[serde(
        default,
        serialize_with = "listed",
        deserialize_with = "unlisted",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub models: BTreeMap<Model, Calls>,
    /// Of servers of tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, u64>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Model {
    pub model: String,
    pub provider: String,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    #[serde(flatten)]
    pub times: Times,
    pub calls: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// By currency.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cost: BTreeMap<String, f64>,
    /// What the model called.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, u64>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    #[serde(serialize_with = "written", deserialize_with = "read")]
    pub first: WallTime,
    #[serde(serialize_with = "written", deserialize_with = "read")]
    pub last: WallTime,
}

impl Times {
    fn add(&mut self, time: WallTime) {
        if self.last == WallTime::default() || time < self.first {
            self.first = time;
        }
        self.last = self.last.max(time);
    }
}

impl Graph {
    /// With room for so many programs, peers, models and tools together.
    pub fn new(room: usize) -> Graph {
        Graph {
            v: 1,
            programs: BTreeMap::new(),
            left_out: 0,
            forgotten: 0,
            room,
        }
    }

    /// What has no room is counted.
    pub fn add(&mut self, seen: Seen<'_>) {
        let Some(named) = &seen.process else {
            return;
        };
        let program = Program::new(seen.host, named);
        let has_room = self.put(program, seen);
        self.left_out += u64::from(!has_room);
    }

    /// Room for what comes, made by forgetting whom nobody has heard of for longest.
    pub fn make_room(&mut self) {
        if self.room > 0 {
            return;
        }
        let mut last: Vec<WallTime> = Vec::new();
        for talk in self.programs.values() {
            last.extend(talk.peers.values().map(|traffic| traffic.times.last));
            last.extend(talk.peers.is_empty().then_some(talk.times.last));
        }
        last.sort_unstable();
        if let Some(oldest) = last.get(last.len() / 4) {
            self.forget_until(*oldest);
        }
    }

    /// Whom nobody has heard of since.
    pub fn leave_out_before(&mut self, since: WallTime) {
        if let Some(until) = since.0.checked_sub(1) {
            self.forget_until(WallTime(until));
        }
        self.forgotten = 0;
    }

    fn forget_until(&mut self, until: WallTime) {
        let (mut gone, mut room) = (0, 0);
        self.programs.retain(|_, talk| {
            talk.peers.retain(|_, traffic| {
                let stays = traffic.times.last > until;
                gone += u64::from(!stays);
                room += if stays { 0 } else { traffic.size() };
                stays
            });
            let stays = talk.times.last > until || !talk.peers.is_empty();
            room += usize::from(!stays);
            stays
        });
        self.forgotten += gone;
        self.room += room;
    }

    /// False: there is no room for some of it.
    fn put(&mut self, program: Program, seen: Seen<'_>) -> bool {
        let room = &mut self.room;
        let Some(talk) = entry(&mut self.programs, program, room) else {
            return false;
        };
        talk.times.add(seen.time);
        if let What::Coverage(status) = seen.what {
            if status != "probed" {
                *talk.unseen.entry(short(status)).or_default() += 1;
            }
            return true;
        }
        let Some(peer) = seen.peer else {
            return true;
        };
        match entry(&mut talk.peers, peer.short(), room) {
            Some(traffic) => traffic.add(seen.time, &seen.what, room),
            None => false,
        }
    }
}

impl Program {
    fn new(host: &str, named: &Named<'_>) -> Program {
        Program {
            host: short(host),
            name: short(named.name),
            executable: named.executable.map(short),
            container: named.container.map(short),
            pod: named.pod.map(short),
        }
    }
}

impl Peer {
    fn short(self) -> Peer {
        Peer {
            address: short(&self.address),
            ..self
        }
    }
}

impl Traffic {
    /// Entries that it takes, its own included.
    fn size(&self) -> usize {
        let models = self.models.values().map(|calls| 1 + calls.tools.len());
        1 + self.tools.len() + models.sum::<usize>()
    }

    fn add(&mut self, time: WallTime, what: &What<'_>, room: &mut usize) -> bool {
        self.times.add(time);
        match what {
            What::Message => self.messages += 1,
            What::Exchange { asked, answered } => {
                self.exchanges += 1;
                self.asked += asked;
                self.answered += answered;
            }
            What::Data(length) => self.data += length,
            What::Tool(name) => return count(&mut self.tools, name, room),
            What::Call(call) => return self.call(time, call, room),
            What::Coverage(_) | What::Other => {}
        }
        true
    }

    fn call(&mut self, time: WallTime, call: &Call<'_>, room: &mut usize) -> bool {
        let model = Model {
            model: short(call.model.unwrap_or("?")),
            provider: short(call.provider.unwrap_or("?")),
        };
        let Some(calls) = entry(&mut self.models, model, room) else {
            return false;
        };
        calls.times.add(time);
        calls.calls += 1;
        calls.input_tokens += call.input_tokens;
        calls.output_tokens += call.output_tokens;
        if let Some((amount, currency)) = call.cost {
            *calls.cost.entry(short(currency)).or_default() += amount;
        }
        let tools = call.tools.iter();
        let without = tools.filter(|name| !count(&mut calls.tools, name, room));
        without.count() == 0
    }
}

/// The entry, if there is one or room for one.
fn entry<'a, K: Ord, V: Default>(
    map: &'a mut BTreeMap<K, V>,
    key: K,
    room: &mut usize,
) -> Option<&'a mut V> {
    if !map.contains_key(&key) {
        *room = room.checked_sub(1)?;
    }
    Some(map.entry(key).or_default())
}

fn count(map: &mut BTreeMap<String, u64>, name: &str, room: &mut usize) -> bool {
    let times = entry(map, short(name), room);
    times.map(|times| *times += 1).is_some()
}

fn short(name: &str) -> String {
    name[..name.floor_char_boundary(NAME_MAX)].to_owned()
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A list of what a key and its value say together.
fn listed<K: Serialize, V: Serialize, S: serde::Serializer>(
    map: &BTreeMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Both<'a, K, V> {
        #[serde(flatten)]
        key: &'a K,
        #[serde(flatten)]
        value: &'a V,
    }
    serializer.collect_seq(map.iter().map(|(key, value)| Both { key, value }))
}

fn unlisted<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    K: Ord + Deserialize<'de>,
    V: Deserialize<'de>,
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    struct Both<K, V> {
        #[serde(flatten)]
        key: K,
        #[serde(flatten)]
        value: V,
    }
    let list = Vec::<Both<K, V>>::deserialize(deserializer)?;
    Ok(list.into_iter().map(|it| (it.key, it.value)).collect())
}

/// As records have times.
fn written<S: Serializer>(time: &WallTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.written())
}

fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WallTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    WallTime::read(&text).ok_or_else(|| D::Error::custom("a time that is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, at: u64) -> Seen<'static> {
        Seen {
            host: "h",
            time: WallTime(at),
            process: Some(Named {
                name: "a",
                executable: None,
                container: None,
                pod: None,
            }),
            peer: Some(Peer {
                address: peer.to_owned(),
                port: None,
                role: None,
            }),
            what: What::Exchange {
                asked: 1,
                answered: 2,
            },
        }
    }

    fn peers(graph: &Graph) -> Vec<&str> {
        let talk = graph.programs.values().flat_map(|talk| &talk.peers);
        talk.map(|(peer, _)| &*peer.address).collect()
    }

    #[test]
    fn names_of_strangers_are_bounded() {
        let mut graph = Graph::new(3);
        for (at, peer) in ["a", "b", "c", "b"].iter().enumerate() {
            graph.add(seen(peer, at as u64));
        }
        assert_eq!((graph.left_out, &*peers(&graph)), (1, &["a", "b"][..]));
        graph.add(seen(&"x".repeat(1000), 9));
        assert_eq!(graph.left_out, 2);
        graph.room = 1;
        graph.add(seen(&"ü".repeat(1000), 9));
        assert_eq!(peers(&graph)[2].len(), NAME_MAX);
    }

    #[test]
    fn the_longest_unheard_make_room() {
        let mut graph = Graph::new(9);
        for number in 0..8 {
            graph.make_room();
            graph.add(seen(&number.to_string(), number));
        }
        assert_eq!((graph.room, graph.forgotten), (0, 0));
        // Of whom was heard again.
        graph.add(seen("0", 20));
        graph.make_room();
        graph.add(seen("8", 21));
        assert_eq!(peers(&graph), ["0", "4", "5", "6", "7", "8"]);
        assert_eq!((graph.forgotten, graph.left_out, graph.room), (3, 0, 2));
        // All at the same time.
        let mut graph = Graph::new(3);
        for peer in ["a", "b", "c"] {
            graph.make_room();
            graph.add(seen(peer, 7));
        }
        assert_eq!((peers(&graph), graph.left_out), (vec!["c"], 0));
    }

    #[test]
    fn what_a_daemon_tells_is_understood() {
        let mut graph = Graph::new(100);
        for (at, peer) in ["a", "b"].iter().enumerate() {
            graph.add(seen(peer, 1_000_000_000 * (at as u64 + 1)));
        }
        let call = Call {
            model: Some("m"),
            input_tokens: u64::MAX,
            cost: Some((0.25, "USD")),
            tools: vec!["t"],
            ..Call::default()
        };
        for what in [What::Call(call), What::Tool("t"), What::Message] {
            graph.add(Seen {
                what,
                ..seen("b", 3_000_000_000)
            });
        }
        graph.add(Seen {
            what: What::Coverage("refused"),
            ..seen("b", 0)
        });
        let told = serde_json::to_vec(&graph).unwrap();
        let mut again: Graph = serde_json::from_slice(&told).unwrap();
        assert_eq!(again.programs, graph.programs);
        again.leave_out_before(WallTime(1_000_000_001));
        assert_eq!((peers(&again), again.forgotten), (vec!["b"], 0));
        again.leave_out_before(WallTime(3_000_000_001));
        assert!(again.programs.is_empty());
    }
}
