//! A graph for people, for programs, and for `dot`.

use std::{collections::BTreeMap, io::Write as _};

use super::graph::{Graph, Peer, Program, Talk, Traffic};
use crate::{
    amount::{plural, size},
    escape,
    record::WallTime,
};

pub fn json(graph: &Graph) -> Vec<u8> {
    let mut out = serde_json::to_vec(graph).expect("names and numbers");
    out.push(b'\n');
    out
}

pub fn text(graph: &Graph) -> Vec<u8> {
    let mut out = Vec::new();
    for (program, talk) in &graph.programs {
        let name = visible(&title(program));
        let file = program.executable.as_ref();
        let file = file.map_or(String::new(), |path| format!(" ({})", visible(path)));
        let (first, last) = (second(talk.times.first), second(talk.times.last));
        // Writing to memory can't fail, here and below.
        let _ = writeln!(out, "{name}{file}, {first} to {last}");
        for (status, count) in &talk.unseen {
            let times = plural(*count, "time");
            let _ = writeln!(out, "  TLS that is not seen: {}, {times}", visible(status));
        }
        for (peer, traffic) in &talk.peers {
            let _ = writeln!(
                out,
                "  {} {}: {}",
                arrow(peer),
                place(peer),
                amounts(traffic)
            );
            for (model, calls) in &traffic.models {
                let mut line = format!(
                    "{} ({}): {}",
                    visible(&model.model),
                    visible(&model.provider),
                    plural(calls.calls, "call")
                );
                if calls.input_tokens > 0 || calls.output_tokens > 0 {
                    line += &format!(", {} → {} tokens", calls.input_tokens, calls.output_tokens);
                }
                for (currency, amount) in &calls.cost {
                    line += &format!(", {amount:.6} {}", visible(currency));
                }
                let _ = writeln!(out, "      {line}");
                tools(&calls.tools, "        ", &mut out);
            }
            tools(&traffic.tools, "      ", &mut out);
        }
    }
    if graph.left_out > 0 {
        let _ = writeln!(out, "{} had no room", plural(graph.left_out, "record"));
    }
    if graph.forgotten > 0 {
        let peers = plural(graph.forgotten, "peer");
        let _ = writeln!(
            out,
            "{peers} made room for others, the longest unheard of first"
        );
    }
    out
}

/// Below the model that called them, or beside it, if a server of tools was asked.
fn tools(tools: &BTreeMap<String, u64>, margin: &str, out: &mut Vec<u8>) {
    for (tool, count) in tools {
        let tool = visible(tool);
        let _ = writeln!(out, "{margin}{tool}: {}", plural(*count, "time"));
    }
}

/// A program, a peer and a model are nodes; lines say how often.
pub fn dot(graph: &Graph) -> Vec<u8> {
    let mut out = Vec::new();
    let _ = writeln!(out, "digraph vortex {{\n  rankdir=LR;");
    for (number, (program, talk)) in graph.programs.iter().enumerate() {
        let _ = writeln!(
            out,
            "  p{number} [shape=box,label={}];",
            quoted(&title(program))
        );
        nodes(number, talk, &mut out);
    }
    let _ = writeln!(out, "}}");
    out
}

fn nodes(number: usize, talk: &Talk, out: &mut Vec<u8>) {
    for (at, (peer, traffic)) in talk.peers.iter().enumerate() {
        let _ = writeln!(out, "  p{number}a{at} [label={}];", quoted(&place(peer)));
        let is_server = peer.role.as_deref() == Some("server");
        let (from, to) = match is_server {
            true => (format!("p{number}a{at}"), format!("p{number}")),
            false => (format!("p{number}"), format!("p{number}a{at}")),
        };
        let _ = writeln!(
            out,
            "  {from} -> {to} [label={}];",
            quoted(&amounts(traffic))
        );
        for (model_at, (model, calls)) in traffic.models.iter().enumerate() {
            let (model, calls) = (quoted(&model.model), quoted(&plural(calls.calls, "call")));
            let node = format!("p{number}a{at}m{model_at}");
            let _ = writeln!(out, "  {node} [shape=oval,label={model}];");
            let _ = writeln!(out, "  p{number}a{at} -> {node} [label={calls}];");
        }
    }
}

fn title(program: &Program) -> String {
    let container = program.pod.as_ref().or(program.container.as_ref());
    let container = container.map_or(String::new(), |name| format!(" in {name}"));
    format!("{}{container} on {}", program.name, program.host)
}

/// Which way it asks.
fn arrow(peer: &Peer) -> &'static str {
    match peer.role.as_deref() {
        Some("client") => "→",
        Some("server") => "←",
        _ => "↔",
    }
}

fn place(peer: &Peer) -> String {
    let address = visible(&peer.address);
    match peer.port {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address,
    }
}

fn amounts(traffic: &Traffic) -> String {
    let mut words = Vec::new();
    if traffic.exchanges > 0 {
        words.push(plural(traffic.exchanges, "exchange"));
        words.push(format!("{} asked", size(traffic.asked)));
        words.push(format!("{} answered", size(traffic.answered)));
    }
    if traffic.messages > 0 {
        words.push(plural(traffic.messages, "message"));
    }
    if traffic.data > 0 {
        words.push(format!("{} of data", size(traffic.data)));
    }
    if words.is_empty() {
        words.push("no exchange is told of".to_owned());
    }
    words.join(", ")
}

/// `2026-01-01 00:00:00`.
fn second(time: WallTime) -> String {
    time.written()[..19].replace('T', " ")
}

fn visible(text: &str) -> String {
    let mut out = Vec::new();
    escape::visible(text, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// As `dot` wants it: only quotes and what escapes them are special.
fn quoted(text: &str) -> String {
    let text = visible(text).replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}
