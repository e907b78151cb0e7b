//! Text scenarios through the whole line to golden NDJSON: no root, no kernel, no clock.
//!
//! `scenarios/NAME.toml` says what the kernel and the half report, `scenarios/NAME.ndjson` what comes
//! out. `UPDATE_EXPECT=1` rewrites the latter.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use agent_ebpf::{
    Closed, Data, Direction, Freed, Gap, Head, Name, Opened, Place, REJOINED, Shape, Socket, Touch,
    Transfer, Unseen, cause, cookie, kind,
};
use clap::ValueEnum as _;
use serde::Deserialize;
use vortex_agent::{
    coverage::User,
    half::{Facts, Pending},
    locate::{Found, Instruction, Point},
    pipeline::{Pipeline, Wanted},
    protocol::exchange::Bounds,
    record::Kind,
    redact::{Key, Policy},
    sink::{Format, Origin, Sink, Target},
};
use zerocopy::IntoBytes as _;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    exes: Vec<String>,
    /// Uses of sockets are told.
    #[serde(default)]
    sockets: bool,
    /// Nobody chose kinds: `data` only of what nothing decodes.
    #[serde(default)]
    decoded: bool,
    /// How much of bodies is kept.
    #[serde(default)]
    body_limit: Option<usize>,
    event: Vec<Step>,
}

/// One thing that happens. Times are milliseconds since boot; a step without one follows at once.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Step {
    Process {
        pid: u32,
        comm: Option<String>,
        executable: Option<String>,
        parent: Option<u32>,
        #[serde(default)]
        arguments: Vec<String>,
    },
    Found {
        file: u64,
        path: String,
    },
    Refused {
        file: u64,
        path: String,
        why: String,
    },
    /// There is nothing to probe in it.
    Nothing {
        file: u64,
    },
    Mapped {
        file: u64,
        pid: u32,
        at: Option<u64>,
        #[serde(default)]
        held: bool,
    },
    Attached {
        file: u64,
        at: u64,
    },
    Data {
        pid: u32,
        handle: u64,
        direction: String,
        offset: u64,
        text: Option<String>,
        hex: Option<String>,
        #[serde(default)]
        socket: u64,
        /// 1: the read function of the file found first, 2: its write function.
        #[serde(default)]
        point: u64,
        #[serde(default)]
        born: u64,
        /// Its process was away before.
        #[serde(default)]
        rejoined: bool,
        /// The thread's count; without a socket it goes up by one each time.
        #[serde(default)]
        sequence: u32,
    },
    Opened {
        pid: u32,
        handle: u64,
        born: u64,
        /// By `SSL_clear`.
        #[serde(default)]
        again: bool,
    },
    Freed {
        pid: u32,
        handle: u64,
        born: u64,
        /// Its program closed it.
        #[serde(default)]
        left: bool,
    },
    Touch {
        pid: u32,
        handle: u64,
        #[serde(default)]
        born: u64,
        sequence: u32,
    },
    Transfer {
        pid: u32,
        socket: u64,
        direction: String,
        length: u32,
        sequence: u32,
    },
    Closed {
        socket: u64,
    },
    Name {
        pid: u32,
        handle: u64,
        #[serde(default)]
        born: u64,
        name: String,
    },
    Gap {
        pid: u32,
        handle: u64,
        direction: String,
        offset: Option<u64>,
        length: u64,
        cause: String,
    },
    Pending {
        pid: u32,
        handle: u64,
        direction: String,
        offset: u64,
        length: u64,
        #[serde(default)]
        born: u64,
        /// The handle meant another connection before it could be told.
        #[serde(default)]
        is_over: bool,
    },
    /// A call that passed by; handle 0: one that makes a handle.
    Unseen {
        pid: u32,
        handle: u64,
        point: u64,
    },
    Socket {
        cookie: u64,
        local: [u8; 4],
        local_port: u16,
        peer: [u8; 4],
        peer_port: u16,
        /// 1: the process connected it, 2: accepted.
        #[serde(default)]
        side: u64,
    },
    Clock {
        at: u64,
    },
    /// Somebody sets the wall clock: seconds since 1970 at boot.
    Wall {
        boot: u64,
    },
    Renamed {
        pid: u32,
        comm: String,
    },
    Missed {
        pid: u32,
        path: String,
    },
    Ended {
        pid: u32,
    },
    Finish {},
}

fn check(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let text = fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap();
    let scenario: Scenario =
        toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let actual = run(name, &scenario);
    let golden = folder.join(format!("{name}.ndjson"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&golden, &actual).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap_or_default();
    for (at, (actual, expected)) in actual.lines().zip(expected.lines()).enumerate() {
        assert_eq!(actual, expected, "{name}: line {}", at + 1);
    }
    assert_eq!(
        actual.lines().count(),
        expected.lines().count(),
        "{name}: number of lines:\n{actual}"
    );
}

fn run(name: &str, scenario: &Scenario) -> String {
    let output = std::env::temp_dir().join(format!("vortex-{name}-{}", std::process::id()));
    let target = Target::file(&output).unwrap();
    let origin = Origin {
        run: "run".into(),
        host: "host".into(),
    };
    let mut sink = Sink::start(target, Format::Json, &origin).unwrap();
    let mut line = Pipeline::new(Wanted {
        emit: Kind::value_variants()
            .iter()
            .copied()
            .filter(|kind| !scenario.decoded || *kind != Kind::Data)
            .collect::<BTreeSet<_>>(),
        undecoded: scenario.decoded,
        bounds: Bounds {
            body: scenario.body_limit.unwrap_or(1 << 20),
            ..Bounds::default()
        },
        content: match scenario.content.as_deref() {
            Some("full") => Policy::Full,
            Some("none") => Policy::None,
            _ => Policy::Redacted,
        },
        exes: scenario.exes.clone(),
        uids: Vec::new(),
        comms: Vec::new(),
        key: 1,
        secret_key: Key::new([1; 32]),
    });
    // Boot was at 2026-01-01T00:00:00Z.
    line.set_clock(1_767_225_600_000_000_000);
    if scenario.sockets {
        line.expect_sockets();
    }
    let mut now = 0;
    for step in &scenario.event {
        line_step(&mut line, step, &mut now, &mut sink);
    }
    let (count, failure) = sink.close(Instant::now() + Duration::from_secs(10));
    assert!(
        failure.is_none() && count.dropped == 0,
        "{failure:?} {count:?}"
    );
    let text = fs::read_to_string(&output).unwrap();
    fs::remove_file(&output).unwrap();
    text
}

fn line_step(line: &mut Pipeline, step: &Step, now: &mut u64, sink: &mut Sink) {
    let time = *now;
    let out = &mut |record: &vortex_agent::record::Record<'_>| sink.write(record);
    let ms = |at: u64| at * 1_000_000;
    match step {
        Step::Process {
            pid,
            comm,
            executable,
            parent,
            arguments,
        } => {
            let facts = Facts {
                pid: *pid,
                comm: comm.clone(),
                executable: executable.clone(),
                parent_pid: *parent,
                arguments: arguments.clone(),
                ..Facts::default()
            };
            line.process(facts, out);
        }
        Step::Found { file, path } => {
            let point = |function, direction, offset| Point {
                offset,
                function_offset: offset,
                library: "OpenSSL",
                function,
                direction,
                shape: Shape::OutFourth,
                instruction: Instruction::Emulated,
                detail: 0,
                bytes: [0; 16],
            };
            let points = vec![
                point("ssl_read_internal", Direction::Received, 16),
                point("ssl_write_internal", Direction::Sent, 32),
            ];
            let found = Found {
                library: "OpenSSL",
                version: Some("3.0.0".into()),
                points,
                others: Vec::new(),
                partly: None,
                on_trial: false,
            };
            line.found(*file, path, &found);
        }
        Step::Refused { file, path, why } => line.refused(*file, path, why, time, out),
        Step::Nothing { file } => line.nothing(*file),
        Step::Mapped {
            file,
            pid,
            at,
            held,
        } => {
            let user = User {
                pid: *pid,
                mapped_at: at.map(ms),
                held: *held,
            };
            line.mapped(*file, user, time, out);
        }
        Step::Attached { file, at } => line.attached(*file, ms(*at), time, out),
        Step::Data {
            pid,
            handle,
            direction,
            offset,
            text,
            hex,
            socket,
            point,
            born,
            rejoined,
            sequence,
        } => {
            let bytes = match (text, hex) {
                (Some(text), _) => text.clone().into_bytes(),
                (None, hex) => unhex(hex.as_deref().unwrap_or_default()),
            };
            let direction = towards(direction);
            let data = Data {
                head: head(kind::DATA, direction, bytes.len(), time),
                pid_tgid: both(*pid),
                born: if *rejoined { born | REJOINED } else { *born },
                handle: *handle,
                offset: *offset,
                socket: *socket,
                cookie: cookie(*point, direction, Shape::OutFourth),
                place: place(*sequence),
            };
            line.record(
                &[data.as_bytes(), &bytes, b"another process"].concat(),
                time,
                out,
            );
        }
        Step::Opened {
            pid,
            handle,
            born,
            again,
        } => {
            let kind = if *again { kind::CLEARED } else { kind::OPENED };
            let opened = Opened {
                head: head(kind, Direction::Received, 0, time),
                pid_tgid: both(*pid),
                born: *born,
                handle: *handle,
                cookie: cookie(1, Direction::Received, Shape::Created),
            };
            line.record(opened.as_bytes(), time, out);
        }
        Step::Freed {
            pid,
            handle,
            born,
            left,
        } => {
            let kind = if *left { kind::LEFT } else { kind::FREED };
            let freed = Freed {
                head: head(kind, Direction::Received, 0, time),
                pid_tgid: both(*pid),
                born: *born,
                handle: *handle,
            };
            line.record(freed.as_bytes(), time, out);
        }
        Step::Touch {
            pid,
            handle,
            born,
            sequence,
        } => {
            let touch = Touch {
                head: head(kind::TOUCH, Direction::Received, 0, time),
                pid_tgid: both(*pid),
                born: *born,
                handle: *handle,
                place: place(*sequence),
            };
            line.record(touch.as_bytes(), time, out);
        }
        Step::Transfer {
            pid,
            socket,
            direction,
            length,
            sequence,
        } => {
            let transfer = Transfer {
                head: head(kind::TRANSFER, towards(direction), 0, time),
                pid_tgid: both(*pid),
                socket: *socket,
                length: *length,
                generation: 1,
                place: place(*sequence),
            };
            line.record(transfer.as_bytes(), time, out);
        }
        Step::Closed { socket } => {
            let closed = Closed {
                head: head(kind::CLOSED, Direction::Received, 0, time),
                socket: *socket,
            };
            line.record(closed.as_bytes(), time, out);
        }
        Step::Name {
            pid,
            handle,
            born,
            name: text,
        } => {
            let name = Name {
                head: head(kind::NAME, Direction::Sent, text.len(), time),
                pid_tgid: both(*pid),
                born: *born,
                handle: *handle,
            };
            let old = b"old ring content";
            line.record(&[name.as_bytes(), text.as_bytes(), old].concat(), time, out);
        }
        Step::Gap {
            pid,
            handle,
            direction,
            offset,
            length,
            cause,
        } => {
            let gap = Gap {
                head: head(kind::GAP, towards(direction), 0, time),
                pid_tgid: both(*pid),
                born: 0,
                handle: *handle,
                offset: offset.unwrap_or(u64::MAX),
                length: *length,
                cause: u64::from(match cause.as_str() {
                    "ring_full" => cause::RING_FULL,
                    "copy_fault" => cause::COPY_FAULT,
                    "map_full" => cause::MAP_FULL,
                    "call_too_long" => cause::CALL_TOO_LONG,
                    "over_budget" => cause::OVER_BUDGET,
                    "sendfile" => cause::SENDFILE,
                    other => panic!("{other}"),
                }),
            };
            line.record(gap.as_bytes(), time, out);
        }
        Step::Pending {
            pid,
            handle,
            direction,
            offset,
            length,
            born,
            is_over,
        } => {
            let pending = Pending {
                handle: *handle,
                born: *born,
                is_over: *is_over,
                tgid: *pid,
                direction: towards(direction) as u32,
                offset: *offset,
                length: *length,
                cause: cause::RING_FULL,
            };
            line.pending(&[pending], time, out);
        }
        Step::Unseen { pid, handle, point } => {
            let unseen = Unseen {
                head: head(kind::UNSEEN, Direction::Received, 0, time),
                pid_tgid: u64::from(*pid) << 32 | u64::from(*pid),
                born: 0,
                handle: *handle,
                cookie: cookie(*point, Direction::Received, Shape::OutFourth),
            };
            line.record(unseen.as_bytes(), time, out);
        }
        Step::Socket {
            cookie,
            local,
            local_port,
            peer,
            peer_port,
            side,
        } => {
            let address =
                |bytes: &[u8; 4]| std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0));
            let socket = Socket {
                head: head(kind::SOCKET, Direction::Received, 0, time),
                cookie: *cookie,
                local: address(local),
                peer: address(peer),
                local_port: *local_port,
                peer_port: *peer_port,
                family: 2,
                protocol: 6,
                side: *side,
            };
            line.record(socket.as_bytes(), time, out);
        }
        Step::Clock { at } => {
            *now = ms(*at);
            line.expire(*now, out);
        }
        Step::Wall { boot } => line.set_clock(boot * 1_000_000_000),
        Step::Renamed { pid, comm } => line.renamed(*pid, comm),
        Step::Missed { pid, path } => line.missed(*pid, path, time, out),
        Step::Ended { pid } => line.ended(*pid, time, out),
        Step::Finish {} => line.finish(time, out),
    }
}

fn head(kind: u16, direction: Direction, len: usize, time: u64) -> Head {
    Head {
        kind,
        direction: direction as u16,
        len: len as u32,
        time,
    }
}

fn place(sequence: u32) -> Place {
    Place {
        sequence,
        skipped: 0,
    }
}

/// Process and thread of one number.
fn both(pid: u32) -> u64 {
    u64::from(pid) << 32 | u64::from(pid)
}

fn towards(direction: &str) -> Direction {
    match direction {
        "sent" => Direction::Sent,
        "received" => Direction::Received,
        other => panic!("{other}"),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    text.split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

/// Each scenario by its name, so that a failure names it.
macro_rules! scenarios {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        #[test]
        fn every_scenario_is_run() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
            let mut files: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .filter_map(|entry| {
                    let name = entry.unwrap().file_name().into_string().unwrap();
                    name.strip_suffix(".toml").map(str::to_owned)
                })
                .collect();
            files.sort();
            assert_eq!(files, [$(stringify!($name)),*]);
        }
    };
}

scenarios! {
    content_none
    forked_child
    gone_before_a_look
    gone_before_the_probes
    handle_again
    http1
    http2
    inferred_socket
    late_facts
    left_handle
    loss
    lost_evidence
    no_name
    one_request
    other_stack
    redacted
    rejoined
    reused_handle
    set_clock
    shelved_hole
    sse
    undecoded
    websocket
    wrong_order
}
