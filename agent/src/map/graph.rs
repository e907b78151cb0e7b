//! Programs and whom they talk to.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::record::{WallTime, authority};

/// Most programs, and most peers, models or tools of one.
const MAX: usize = 10_000;

#[derive(Debug, Serialize)]
pub struct Graph {
    /// Of the form of its JSON.
    v: u32,
    #[serde(serialize_with = "listed")]
    pub programs: BTreeMap<Program, Talk>,
    /// Records that had no room.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

/// All processes of one name and file, in one container.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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

#[derive(Debug, Default, Serialize)]
pub struct Talk {
    #[serde(flatten)]
    pub times: Times,
    #[serde(serialize_with = "listed")]
    pub peers: BTreeMap<Peer, Traffic>,
    /// What of its TLS is not seen, by `coverage`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unseen: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Peer {
    /// Of the server, by name if there is one; of who asks it, where the program is the server.
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u64>,
    /// The program's: `client` or `server`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct Traffic {
    #[serde(flatten)]
    pub times: Times,
    /// Requests with their responses.
    pub exchanges: u64,
    /// Bytes of their bodies.
    pub asked: u64,
    pub answered: u64,
    /// Bytes that were told as data, decoded or not.
    #[serde(skip_serializing_if = "is_zero")]
    pub data: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub messages: u64,
    #[serde(serialize_with = "listed", skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<Model, Calls>,
    /// Of servers of tools.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, u64>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Model {
    pub model: String,
    pub provider: String,
}

#[derive(Debug, Default, Serialize)]
pub struct Calls {
    #[serde(flatten)]
    pub times: Times,
    pub calls: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// By currency.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cost: BTreeMap<String, f64>,
    /// What the model called.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, u64>,
}

/// As records have them.
#[derive(Debug, Default, Serialize)]
pub struct Times {
    pub first: String,
    pub last: String,
}

impl Default for Graph {
    fn default() -> Graph {
        Graph {
            v: 1,
            programs: BTreeMap::new(),
            left_out: 0,
        }
    }
}

impl Times {
    fn add(&mut self, time: &str) {
        if self.first.is_empty() || *time < *self.first {
            time.clone_into(&mut self.first);
        }
        if *time > *self.last {
            time.clone_into(&mut self.last);
        }
    }
}

impl Graph {
    /// A record not older than `since`, in nanoseconds since 1970. False: it is none.
    pub fn add(&mut self, record: &Value, since: u64) -> bool {
        let text = |pointer: &str| record.pointer(pointer)?.as_str();
        let (Some(kind), Some(time)) = (text("/kind"), text("/time")) else {
            return false;
        };
        let Some(at) = WallTime::read(time) else {
            return false;
        };
        let Some(name) = text("/process/comm").filter(|_| at.0 >= since) else {
            return true;
        };
        let owned = |pointer: &str| text(pointer).map(str::to_owned);
        let program = Program {
            host: owned("/host/name").unwrap_or_default(),
            name: name.to_owned(),
            executable: owned("/process/executable/path"),
            container: owned("/container/name").or_else(|| owned("/container/id")),
            pod: owned("/k8s/pod/name"),
        };
        let Some(talk) = room(&mut self.programs, program) else {
            self.left_out += 1;
            return true;
        };
        talk.times.add(time);
        if kind == "coverage" {
            let status = text("/status").unwrap_or_default();
            if !matches!(status, "probed" | "ended") {
                *talk.unseen.entry(status.to_owned()).or_default() += 1;
            }
            return true;
        }
        let Some(peer) = Peer::of(record) else {
            return true;
        };
        match room(&mut talk.peers, peer) {
            Some(traffic) => traffic.add(kind, time, record, &mut self.left_out),
            None => self.left_out += 1,
        }
        true
    }
}

impl Peer {
    fn of(record: &Value) -> Option<Peer> {
        let text = |pointer: &str| record.pointer(pointer)?.as_str();
        let number = |pointer: &str| record.pointer(pointer)?.as_u64();
        let role = text("/connection/role").map(str::to_owned);
        let is_server = role.as_deref() == Some("server");
        let who_asks = || text("/network/peer/address");
        let (address, port) = match (text("/server/address"), text("/url/full")) {
            // Whoever asks has another port each time.
            _ if is_server => (who_asks()?, None),
            (Some(address), _) => (address, number("/server/port")),
            (None, Some(url)) => authority(url)?,
            (None, None) => (who_asks()?, number("/network/peer/port")),
        };
        Some(Peer {
            address: address.to_owned(),
            port,
            role,
        })
    }
}

impl Traffic {
    fn add(&mut self, kind: &str, time: &str, record: &Value, left_out: &mut u64) {
        let number = |pointer: &str| record.pointer(pointer).and_then(Value::as_u64);
        self.times.add(time);
        match kind {
            // A call of gRPC is told of once, and its messages besides.
            "grpc" if record.pointer("/rpc").is_none() => self.messages += 1,
            "http" | "grpc" => {
                self.exchanges += 1;
                self.asked += number("/http/request/body/size").unwrap_or(0);
                self.answered += number("/http/response/body/size").unwrap_or(0);
            }
            "data" => self.data += number("/size").unwrap_or(0),
            "websocket" => self.messages += 1,
            "mcp" => {
                if let Some(tool) = record.pointer("/gen_ai/tool/name").and_then(Value::as_str) {
                    count(&mut self.tools, tool, left_out);
                }
            }
            "llm" => self.call(time, record, left_out),
            _ => {}
        }
    }

    fn call(&mut self, time: &str, record: &Value, left_out: &mut u64) {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let number = |pointer: &str| record.pointer(pointer).and_then(Value::as_u64);
        let model = text("/gen_ai/response/model").or_else(|| text("/gen_ai/request/model"));
        let model = Model {
            model: model.unwrap_or("?").to_owned(),
            provider: text("/gen_ai/provider/name").unwrap_or("?").to_owned(),
        };
        let Some(calls) = room(&mut self.models, model) else {
            *left_out += 1;
            return;
        };
        calls.times.add(time);
        calls.calls += 1;
        calls.input_tokens += number("/gen_ai/usage/input_tokens").unwrap_or(0);
        calls.output_tokens += number("/gen_ai/usage/output_tokens").unwrap_or(0);
        let amount = record.pointer("/cost/amount").and_then(Value::as_f64);
        if let (Some(amount), Some(currency)) = (amount, text("/cost/currency")) {
            *calls.cost.entry(currency.to_owned()).or_default() += amount;
        }
        let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned();
        let turns = list(record.pointer("/gen_ai/output/messages")).unwrap_or_default();
        for part in turns
            .iter()
            .filter_map(|turn| list(turn.get("parts")))
            .flatten()
        {
            if part.get("type").and_then(Value::as_str) == Some("tool_call")
                && let Some(name) = part.get("name").and_then(Value::as_str)
            {
                count(&mut calls.tools, name, left_out);
            }
        }
    }
}

/// The entry, if there is one or room for one.
fn room<K: Ord, V: Default>(map: &mut BTreeMap<K, V>, key: K) -> Option<&mut V> {
    if map.len() >= MAX && !map.contains_key(&key) {
        return None;
    }
    Some(map.entry(key).or_default())
}

fn count(map: &mut BTreeMap<String, u64>, name: &str, left_out: &mut u64) {
    match room(map, name.to_owned()) {
        Some(times) => *times += 1,
        None => *left_out += 1,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_strangers_are_bounded() {
        let mut graph = Graph::default();
        for number in 0..MAX + 5 {
            let record = serde_json::json!({"kind": "http", "time": "2026-01-01T00:00:00.000000000Z",
                "process": {"comm": "a"}, "server": {"address": format!("{number}")}});
            assert!(graph.add(&record, 0));
        }
        assert_eq!(graph.left_out, 5);
        let talk = graph.programs.values().next().unwrap();
        assert_eq!(talk.peers.len(), MAX);
    }

    #[test]
    fn a_server_is_asked_by_hosts() {
        let record = serde_json::json!({"kind": "http", "time": "2026-01-01T00:00:00.000000000Z",
            "process": {"comm": "nginx"}, "connection": {"role": "server"},
            "server": {"address": "me", "port": 443},
            "network": {"peer": {"address": "192.0.2.1", "port": 50_000}}});
        let peer = Peer::of(&record).unwrap();
        assert_eq!((&*peer.address, peer.port), ("192.0.2.1", None));
    }
}
