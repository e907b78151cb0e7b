//! What a map takes of a record: of one in the line, and of one that was written as JSON. Both say the same.

use std::net::SocketAddr;

use serde_json::Value;

use super::graph::Peer;
use crate::record::{
    Body, Connection, Http, HttpHalf, Llm, LlmPart, Process, Record, Url, View, WallTime, authority,
};

/// Of one record.
pub struct Seen<'a> {
    pub host: &'a str,
    pub time: WallTime,
    pub process: Option<Named<'a>>,
    pub peer: Option<Peer>,
    pub what: What<'a>,
}

/// Of a process.
pub struct Named<'a> {
    pub name: &'a str,
    pub executable: Option<&'a str>,
    pub container: Option<&'a str>,
    pub pod: Option<&'a str>,
}

pub enum What<'a> {
    /// Its status.
    Coverage(&'a str),
    /// Bytes of both bodies.
    Exchange {
        asked: u64,
        answered: u64,
    },
    Data(u64),
    Message,
    /// Of a server of tools.
    Tool(&'a str),
    Call(Call<'a>),
    /// What says no more than that it was.
    Other,
}

/// A call to a model.
#[derive(Default)]
pub struct Call<'a> {
    pub model: Option<&'a str>,
    pub provider: Option<&'a str>,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cost: Option<(f64, &'a str)>,
    /// What the model asked for.
    pub tools: Vec<&'a str>,
}

impl<'a> Seen<'a> {
    /// Of one in the line, on `host`.
    pub fn told(record: &'a Record<'a>, host: &'a str) -> Seen<'a> {
        let named = |process: &'a Process| {
            let told = process.container.as_deref();
            let name = told.and_then(|told| told.name.as_deref());
            let pod = told.and_then(|told| told.pod.as_ref());
            Some(Named {
                name: process.comm.as_deref()?,
                executable: process.executable.as_deref(),
                container: name.or(process.container_id.as_deref()),
                pod: pod.map(|pod| &*pod.name),
            })
        };
        let url = match &record.body {
            Body::Http(http) => Some(&http.url),
            Body::Grpc(grpc) => Some(&grpc.http.url),
            Body::Llm(llm) => Some(&llm.url),
            Body::Mcp(mcp) => Some(&mcp.url),
            Body::Sse(sse) => Some(&sse.url),
            _ => None,
        };
        let what = match &record.body {
            Body::Coverage(coverage) => What::Coverage(coverage.status.name()),
            Body::Http(http) => exchange(http),
            Body::Grpc(grpc) => exchange(&grpc.http),
            Body::WebSocket(_) | Body::Message(_) => What::Message,
            // Told of once more as part of all of them.
            Body::Data {
                view: View::All, ..
            } => What::Other,
            Body::Data { length, .. } => What::Data(*length),
            Body::Mcp(mcp) => mcp.tool.as_deref().map_or(What::Other, What::Tool),
            Body::Llm(llm) => What::Call(Call::told(llm)),
            _ => What::Other,
        };
        Seen {
            host,
            time: record.time,
            process: record.process.and_then(named),
            peer: record
                .connection
                .and_then(|connection| Peer::told(connection, url)),
            what,
        }
    }

    /// Of one that was written. `None`: it is no record.
    pub fn read(record: &'a Value) -> Option<Seen<'a>> {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let number = |pointer: &str| record.pointer(pointer).and_then(Value::as_u64);
        let named = |name| Named {
            name,
            executable: text("/process/executable/path"),
            container: text("/container/name").or_else(|| text("/container/id")),
            pod: text("/k8s/pod/name"),
        };
        let what = match text("/kind")? {
            "coverage" => What::Coverage(text("/status").unwrap_or_default()),
            // A call of gRPC is told of once, and its messages besides.
            "grpc" if record.pointer("/rpc").is_none() => What::Message,
            "http" | "grpc" => What::Exchange {
                asked: number("/http/request/body/size").unwrap_or(0),
                answered: number("/http/response/body/size").unwrap_or(0),
            },
            "data" => What::Data(number("/length").unwrap_or(0)),
            "websocket" => What::Message,
            "mcp" => text("/gen_ai/tool/name").map_or(What::Other, What::Tool),
            "llm" => What::Call(Call::read(record)),
            _ => What::Other,
        };
        Some(Seen {
            host: text("/host/name").unwrap_or_default(),
            time: WallTime::read(text("/time")?)?,
            process: text("/process/comm").map(named),
            peer: Peer::read(record),
            what,
        })
    }
}

fn exchange(http: &Http) -> What<'_> {
    let size = |half: &Option<HttpHalf>| half.as_ref().map_or(0, |it| it.body.size);
    What::Exchange {
        asked: size(&http.request),
        answered: size(&http.response),
    }
}

impl Peer {
    fn told(connection: &Connection, url: Option<&Url>) -> Option<Peer> {
        let ip = |end: SocketAddr| end.ip().to_canonical().to_string();
        let role = connection.role.map(|role| role.name());
        let server = connection.server();
        let address = connection.server_name.as_deref().map(str::to_owned);
        let server = (
            address.or_else(|| server.map(ip)),
            server.map(|end| u64::from(end.port())),
        );
        let other = connection.peer.map(|end| (ip(end), u64::from(end.port())));
        let url = url.and_then(|url| url.full.as_deref());
        Peer::new(role, server, other, url)
    }

    fn read(record: &Value) -> Option<Peer> {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let number = |pointer: &str| record.pointer(pointer).and_then(Value::as_u64);
        let owned = |pointer: &str| text(pointer).map(str::to_owned);
        let server = (owned("/server/address"), number("/server/port"));
        let other = owned("/network/peer/address").zip(number("/network/peer/port"));
        Peer::new(text("/connection/role"), server, other, text("/url/full"))
    }

    fn new(
        role: Option<&str>,
        (server, port): (Option<String>, Option<u64>),
        other: Option<(String, u64)>,
        url: Option<&str>,
    ) -> Option<Peer> {
        let (address, port) = match (server, url) {
            // Whoever asks has another port each time.
            _ if role == Some("server") => (other?.0, None),
            (Some(address), _) => (address, port),
            (None, Some(url)) => {
                let (host, port) = authority(url)?;
                (host.to_owned(), port)
            }
            (None, None) => {
                let (address, port) = other?;
                (address, Some(port))
            }
        };
        Some(Peer {
            address,
            port,
            role: role.map(str::to_owned),
        })
    }
}

impl<'a> Call<'a> {
    fn told(llm: &'a Llm) -> Call<'a> {
        let parts = llm.output.iter().flat_map(|message| &message.parts);
        let tool = |part: &'a LlmPart| match part {
            LlmPart::Call { name, .. } => name.as_deref(),
            _ => None,
        };
        let model = llm.response_model.as_deref().or(llm.model.as_deref());
        Call {
            model,
            provider: Some(llm.provider),
            input_tokens: llm.usage.input.unwrap_or(0),
            output_tokens: llm.usage.output.unwrap_or(0),
            cost: llm.cost.as_ref().map(|cost| (cost.amount, cost.currency)),
            tools: parts.filter_map(tool).collect(),
        }
    }

    fn read(record: &'a Value) -> Call<'a> {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let number = |pointer: &str| record.pointer(pointer).and_then(Value::as_u64);
        let list = |value: &'a Value, key: &str| value.get(key).and_then(Value::as_array);
        let messages = record.pointer("/gen_ai/output");
        let messages = messages.and_then(|output| list(output, "messages"));
        let parts = messages
            .into_iter()
            .flatten()
            .filter_map(|message| list(message, "parts"))
            .flatten()
            .filter(|part| part.get("type").and_then(Value::as_str) == Some("tool_call"));
        let amount = record.pointer("/cost/amount").and_then(Value::as_f64);
        Call {
            model: text("/gen_ai/response/model").or_else(|| text("/gen_ai/request/model")),
            provider: text("/gen_ai/provider/name"),
            input_tokens: number("/gen_ai/usage/input_tokens").unwrap_or(0),
            output_tokens: number("/gen_ai/usage/output_tokens").unwrap_or(0),
            cost: amount.zip(text("/cost/currency")),
            tools: parts
                .filter_map(|part| part.get("name").and_then(Value::as_str))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_is_asked_by_hosts() {
        let record = json!({"kind": "http", "time": "2026-01-01T00:00:00.000000000Z",
            "process": {"comm": "nginx"}, "connection": {"role": "server"},
            "server": {"address": "me", "port": 443},
            "network": {"peer": {"address": "192.0.2.1", "port": 50_000}}});
        let peer = Peer::read(&record).unwrap();
        assert_eq!((&*peer.address, peer.port), ("192.0.2.1", None));
    }
}
