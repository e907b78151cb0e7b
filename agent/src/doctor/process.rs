//! One process: what it is, what would be seen of it, and which connections it has already. What TLS it makes on
//! those nobody can tell: it began before.

use std::{io, time::Duration};

use rustix::process::geteuid;
use serde_json::{Value, json};

use super::{Check, Output, failed, limited, ok, watch};
use crate::{
    coverage,
    half::Runtime,
    probe::{
        facts::{self, Condition},
        socket::{self, Connection},
    },
};

const NAME: &str = "process";

/// For people, and the same for programs.
pub(super) struct Findings {
    pub(super) checks: Vec<Check>,
    pub(super) facts: Value,
}

pub(super) fn examine(pid: u32) -> Findings {
    let Some(condition) = facts::condition(pid) else {
        let way_out =
            "`pgrep -a NAME` finds ids; in a container a process has another id than outside";
        return Findings {
            checks: vec![failed(
                NAME,
                format!("process {pid}: there is no such process"),
                way_out,
            )],
            facts: json!({"pid": pid, "state": null}),
        };
    };
    let mut facts = json!({
        "pid": pid, "state": condition.state.name(), "owner_uid": condition.uid,
    });
    if let Some(why) = nothing_to_watch(pid, &condition) {
        return Findings {
            checks: vec![why],
            facts,
        };
    }
    let mut checks = hindrances(pid, &condition);
    let runtime = facts::runtime(pid);
    checks.extend(runtime.map(|runtime| foreign(pid, runtime)));
    facts["runtime"] = json!(runtime.map(name_of));
    let is_32_bit = facts::is_32_bit(pid);
    facts["bits"] = json!(is_32_bit.map(|is| if is { 32 } else { 64 }));
    let mut is_seen = false;
    if is_32_bit == Some(true) {
        let way_out =
            "x86-64 programs only: watch the other end of its connections, or a 64-bit build";
        checks.push(failed(
            NAME,
            format!("process {pid} is a 32-bit program"),
            way_out,
        ));
    } else {
        let (found, records) = libraries(pid, &condition);
        checks.extend(found);
        is_seen = records.iter().any(is_probed);
        facts["coverage"] = json!(records);
    }
    let connections = socket::connections(pid);
    checks.push(connected(pid, &connections, is_seen));
    facts["connections"] = connections.map_or(Value::Null, |all| all.iter().map(shown).collect());
    Findings { checks, facts }
}

/// Why there is no program in it that could make a TLS call.
fn nothing_to_watch(pid: u32, condition: &Condition) -> Option<Check> {
    let &Condition {
        leader,
        parent,
        state,
        is_kernels,
        ..
    } = condition;
    if is_kernels {
        return Some(failed(
            NAME,
            format!("process {pid} is a thread of the kernel: it runs no program"),
            "`ss -tnp` shows which process has which connection",
        ));
    }
    if leader != pid {
        return Some(failed(
            NAME,
            format!("{pid} is a thread of process {leader}"),
            format!("vortex-agent doctor --pid {leader}"),
        ));
    }
    state.is_dead().then(|| {
        failed(
            NAME,
            format!(
                "process {pid} has ended; its parent, {parent}, has not asked for its status yet"
            ),
            "`vortex-agent run -- CMD` sees a command from its start",
        )
    })
}

/// What keeps it from making calls now, and what may take probes away.
fn hindrances(pid: u32, condition: &Condition) -> Vec<Check> {
    let mut found = Vec::new();
    if condition.state.is_stopped() {
        let way_out = match condition.tracer {
            Some(tracer) => format!("process {tracer} traces it, and can let it go on"),
            None => format!("kill -CONT {pid}"),
        };
        let detail = format!("process {pid} is stopped: it makes no call");
        found.push(limited(NAME, detail, way_out));
    } else if let Some(tracer) = condition.tracer {
        found.push(limited(
            NAME,
            format!("process {pid} is traced by process {tracer}"),
            "a debugger that writes into its code may take probes away: they are placed again once",
        ));
    }
    found
}

fn name_of(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Jvm => "jvm",
        Runtime::Erlang => "erlang",
    }
}

fn foreign(pid: u32, runtime: Runtime) -> Check {
    let (what, way_out) = match runtime {
        Runtime::Jvm => (
            "runs on a JVM: TLS of its own (JSSE) is not seen, for Java code has no place for a probe",
            "the other end of its connections can be watched, and what it does by OpenSSL (netty-tcnative)",
        ),
        Runtime::Erlang => (
            "runs on Erlang's machine: TLS of its own is not seen, for it is no native library",
            "the other end of its connections can be watched",
        ),
    };
    limited(NAME, format!("process {pid} {what}"), way_out)
}

/// What a run of the agent says of it; and the records.
fn libraries(pid: u32, condition: &Condition) -> (Vec<Check>, Vec<Value>) {
    let pid_text = pid.to_string();
    let arguments = ["--emit", "coverage,stats", "--pid", &pid_text];
    let nothing = |check| (vec![check], Vec::new());
    let is_foreign = !geteuid().is_root() && condition.uid != Some(geteuid().as_raw());
    let as_root = || match is_foreign {
        true => format!("it is another user's: sudo vortex-agent doctor --pid {pid}"),
        false => format!("sudo vortex-agent doctor --pid {pid}"),
    };
    let failed = |why: &str| failed(NAME, format!("process {pid}: {why}"), as_root());
    let limit = Duration::from_secs(30);
    let output = match watch(&arguments, limit, Some(enough(pid))) {
        Ok(output) => output,
        Err(error) => return nothing(failed(&error.to_string())),
    };
    let records: Vec<Value> = output.of("coverage").map(essence).collect();
    if !records.is_empty() {
        let checks = records.iter().map(|record| covered(pid, record));
        return (checks.collect(), records);
    }
    if !has_watched(&output) {
        return nothing(failed(&output.complaint()));
    }
    nothing(limited(
        NAME,
        format!("process {pid} maps no TLS library that is known"),
        format!(
            "it may load one later, leave TLS to another process, or make it by something that is not known: \
             `vortex-agent run --pid {pid}` notices connections that begin with TLS"
        ),
    ))
}

fn has_watched(output: &Output) -> bool {
    output.of("stats").next().is_some()
}

/// How long a run takes to look at all that is mapped: large programs are searched in seconds.
fn enough(pid: u32) -> Duration {
    const START: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(12);
    const BYTES_A_SECOND: f64 = 50e6;
    let mappings = facts::mappings(pid);
    let code: u64 = mappings.iter().map(|mapping| mapping.length).sum();
    (START + Duration::from_secs_f64(code as f64 / BYTES_A_SECOND)).min(LONGEST)
}

/// What a record says that is not about the process.
fn essence(record: &Value) -> Value {
    const FIELDS: [&str; 6] = [
        "status",
        "reason",
        "library",
        "functions",
        "seen_from",
        "network",
    ];
    let fields = FIELDS.iter().filter_map(|name| {
        let value = record.get(name)?;
        Some(((*name).to_owned(), value.clone()))
    });
    Value::Object(fields.collect())
}

fn is_probed(record: &Value) -> bool {
    matches!(record["status"].as_str(), Some("probed" | "partly"))
}

fn covered(pid: u32, record: &Value) -> Check {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let library = &record["library"];
    let reason = text(&record["reason"]);
    if library.is_null() {
        let peer = &record["network"]["peer"];
        let detail = format!(
            "process {pid}: TLS with {} port {}",
            text(&peer["address"]),
            peer["port"]
        );
        return failed(NAME, detail, reason);
    }
    let path = text(&library["path"]);
    let facts = [&library["name"], &library["version"]];
    let facts: Vec<&str> = facts.iter().filter_map(|fact| fact.as_str()).collect();
    let functions: Vec<String> = record["functions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| format!("{} ({})", text(&one["name"]), text(&one["instruction"])))
        .collect();
    if !is_probed(record) {
        return failed(NAME, format!("process {pid}: {path}: not seen"), reason);
    }
    let located = library["located"].as_str().map_or("", by);
    let (facts, functions) = (facts.join(" "), functions.join(", "));
    let detail = format!("process {pid}: {path}: {facts}, found {located}: {functions}");
    match record["reason"].as_str() {
        // Whoever asks about a process that runs asks too late for its past.
        None | Some(coverage::LATE) => ok(NAME, detail),
        Some(_) => limited(NAME, detail, reason),
    }
}

/// As people say it.
fn by(located: &str) -> &str {
    use crate::locate::means;
    match located {
        means::SYMBOLS => "by its symbols",
        means::ERRORS => "by the errors that its functions report",
        means::OPERATIONS => "by its table of operations",
        means::PCLNTAB => "by Go's table of functions",
        means::VTABLES => "by the places of its tables of methods",
        means::SIGNATURE => "by your signature",
        _ => "in several ways",
    }
}

fn connected(pid: u32, connections: &io::Result<Vec<Connection>>, is_seen: bool) -> Check {
    const NAME: &str = "connections";
    const SHOWN: usize = 8;
    let connections = match connections {
        Ok(connections) => connections,
        Err(error) => {
            let detail = format!("process {pid}: they can't be asked for: {error}");
            return limited(
                NAME,
                detail,
                format!("sudo vortex-agent doctor --pid {pid}"),
            );
        }
    };
    let count = connections.len();
    if count == 0 {
        return ok(NAME, format!("process {pid} has no open TCP connection"));
    }
    let first: Vec<String> = connections.iter().take(SHOWN).map(line).collect();
    let more = match count.saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let noun = if count == 1 {
        "connection"
    } else {
        "connections"
    };
    let detail = format!(
        "process {pid} has {count} open TCP {noun}: {}{more}",
        first.join(", ")
    );
    match is_seen {
        true => ok(
            NAME,
            format!("{detail}; what they carried before the agent comes is not seen"),
        ),
        false => limited(
            NAME,
            detail,
            "whether they carry TLS can't be told: it shows in a connection's first bytes, so new ones are \
             noticed, these are not",
        ),
    }
}

fn line(connection: &Connection) -> String {
    let Connection {
        local,
        peer,
        state,
        is_kernels,
    } = connection;
    let kernels = if *is_kernels {
        ", TLS by the kernel"
    } else {
        ""
    };
    format!("{local} with {peer} ({state}{kernels})")
}

fn shown(connection: &Connection) -> Value {
    let end = |end: &std::net::SocketAddr| json!({"address": end.ip(), "port": end.port()});
    json!({
        "local": end(&connection.local),
        "peer": end(&connection.peer),
        "state": connection.state,
        "kernel_tls": connection.is_kernels,
    })
}
