//! What the line keeps over many exchanges and connections: as much at the end as in the middle.
//!
//! `cargo xtask bench decode --memory` has a million exchanges on a hundred thousand connections. Counted is what the
//! allocator has given out, not what the system has: that would hide a small leak.

use std::{
    collections::BTreeSet,
    fs,
    hint::black_box,
    io::Write as _,
    sync::Mutex,
    time::{Duration, Instant},
};

use agent_ebpf::{
    Closed, Data, Direction, Freed, Gap, Head, Opened, Place, Shape, Socket, cause, cookie, kind,
};
use flate2::{Compression, write::GzEncoder};
use vortex_agent::{
    confine::Landlock,
    coverage::User,
    half::{Facts, Features, Files, Link, Sockets},
    input::Input,
    llm::price::Prices,
    locate::{Found, Instruction, Point},
    metadata::Names,
    pipeline::{Pipeline, Wanted},
    protocol::exchange::Bounds,
    record::{Kind, Record},
    redact::{Key, Policy},
};
use zerocopy::IntoBytes as _;

use Direction::{Received, Sent};

/// What a process is in the middle of.
struct Play {
    line: Pipeline,
    now: u64,
    told: u64,
}

const FEATURES: Features = Features {
    link: Link::Session,
    scopes_processes: true,
    sockets: Sockets::Tracepoints,
    roles: true,
    hellos: true,
    files: Files::OfProcesses,
    follows: true,
    comms: true,
};

/// Nanoseconds that a run takes, however many connections it has: what waits for a while is a small part of it.
const DURATION: u64 = 200_000_000_000;
/// Connections of one process.
const CONNECTIONS: u64 = 50;

/// The handle of a connection and how far its streams are.
struct Ends {
    pid: u32,
    handle: u64,
    born: u64,
    socket: u64,
    offsets: [u64; 2],
}

impl Play {
    fn new() -> Play {
        let emit = [
            Kind::Http,
            Kind::Sse,
            Kind::Websocket,
            Kind::Grpc,
            Kind::Gap,
        ];
        let line = Pipeline::new(Wanted {
            emit: BTreeSet::from(emit),
            undecoded: true,
            live: false,
            bounds: Bounds::default(),
            content: Policy::Redacted,
            exes: Vec::new(),
            uids: Vec::new(),
            comms: Vec::new(),
            names: Names::default(),
            policy: None,
            prices: Prices::default(),
            findings: vortex_agent::detect::Settings::default(),
            key: 1,
            secret_key: Key::new([1; 32]),
        });
        let mut play = Play {
            line,
            now: 0,
            told: 0,
        };
        play.tell(Input::Machine {
            landlock: Landlock::Full,
            features: FEATURES,
            limits: Vec::new(),
        });
        play
    }

    fn head(&self, kind: u16, direction: Direction, len: usize) -> Head {
        Head {
            kind,
            direction: direction as u16,
            len: len as u32,
            time: self.now,
        }
    }

    fn tell(&mut self, input: Input<'_>) {
        let Play { line, now, told } = self;
        line.take(input, *now, &mut |record| count(record, told));
    }

    fn record(&mut self, raw: &[u8]) {
        self.tell(Input::Record(raw));
    }

    fn data(&mut self, ends: &mut Ends, direction: Direction, bytes: &[u8]) {
        let offset = &mut ends.offsets[direction as usize];
        let data = Data {
            head: self.head(kind::DATA, direction, bytes.len()),
            pid_tgid: u64::from(ends.pid) << 32 | u64::from(ends.pid),
            born: ends.born,
            handle: ends.handle,
            offset: *offset,
            socket: ends.socket,
            cookie: cookie(0, direction, Shape::OutFourth),
            place: Place {
                sequence: 1,
                skipped: 0,
            },
        };
        *offset += bytes.len() as u64;
        self.record(&[data.as_bytes(), bytes].concat());
    }

    fn gap(&mut self, ends: &mut Ends, direction: Direction, length: u64) {
        let offset = &mut ends.offsets[direction as usize];
        let gap = Gap {
            head: self.head(kind::GAP, direction, 0),
            pid_tgid: u64::from(ends.pid) << 32 | u64::from(ends.pid),
            born: ends.born,
            handle: ends.handle,
            offset: *offset,
            length,
            cause: u64::from(cause::RING_FULL),
        };
        *offset += length;
        self.record(gap.as_bytes());
    }

    fn open(&mut self, number: u64, sockets: u64) -> Ends {
        let pid = 1000 + (number / CONNECTIONS) as u32;
        if number.is_multiple_of(CONNECTIONS) {
            self.tell(Input::Ended { pid: pid - 1 });
            self.tell(Input::Process(Facts {
                pid,
                comm: Some("client".into()),
                executable: Some("/usr/bin/client".into()),
                ..Facts::default()
            }));
        }
        let ends = Ends {
            pid,
            // An allocator gives out the same places again.
            handle: 0x1000 + number % 7,
            born: number + 1,
            socket: number % sockets + 1,
            offsets: [0, 0],
        };
        let opened = Opened {
            head: self.head(kind::OPENED, Received, 0),
            pid_tgid: u64::from(pid) << 32 | u64::from(pid),
            born: ends.born,
            handle: ends.handle,
            cookie: cookie(0, Received, Shape::Created),
        };
        self.record(opened.as_bytes());
        let address =
            |last| std::array::from_fn(|at| [127, 0, 0, last].get(at).copied().unwrap_or(0));
        let socket = Socket {
            head: self.head(kind::SOCKET, Received, 0),
            cookie: ends.socket,
            local: address(1),
            peer: address(2),
            local_port: number as u16,
            peer_port: 443,
            family: 2,
            protocol: 6,
            side: 1,
        };
        self.record(socket.as_bytes());
        ends
    }

    fn close(&mut self, ends: &Ends) {
        let freed = Freed {
            head: self.head(kind::FREED, Received, 0),
            pid_tgid: u64::from(ends.pid) << 32 | u64::from(ends.pid),
            born: ends.born,
            handle: ends.handle,
        };
        self.record(freed.as_bytes());
        let closed = Closed {
            head: self.head(kind::CLOSED, Received, 0),
            socket: ends.socket,
        };
        self.record(closed.as_bytes());
        self.tell(Input::Idle);
        let line = &mut self.line;
        // As the agent does after each look at the ring.
        line.attentions().for_each(drop);
        line.forgotten().for_each(drop);
        line.strangers().for_each(drop);
        line.questions().for_each(drop);
        line.withdrawals().for_each(drop);
    }
}

fn count(record: &Record<'_>, told: &mut u64) {
    let kind = black_box(record).body.kind();
    *told += u64::from(matches!(kind, Kind::Http | Kind::Grpc | Kind::Websocket));
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

/// A field that goes into the table.
fn field(name: &str, value: &str) -> Vec<u8> {
    let (name, value) = (name.as_bytes(), value.as_bytes());
    [&[0x40, name.len() as u8], name, &[value.len() as u8], value].concat()
}

fn http1(play: &mut Play, ends: &mut Ends, exchanges: u64, coded: &[u8]) {
    for at in 0..exchanges {
        let asked = format!("POST /{at} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nasked");
        play.data(ends, Sent, asked.as_bytes());
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            coded.len()
        );
        play.data(ends, Received, head.as_bytes());
        let (first, second) = coded.split_at(20);
        play.data(ends, Received, first);
        if at % 7 == 3 {
            play.gap(ends, Received, second.len() as u64);
        } else {
            play.data(ends, Received, second);
        }
    }
}

/// Every other connection is left in the middle of an answer.
fn http2(play: &mut Play, ends: &mut Ends, exchanges: u64, media: &str, body: &[u8]) {
    play.data(ends, Sent, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    for at in 0..exchanges {
        let stream = 2 * at as u32 + 1;
        let path = format!("/path-of-{at}-in-{}", ends.socket);
        let asked = [
            &[0x83, 0x87][..],
            &field(":path", &path),
            &field("content-type", media),
        ];
        let asked = [
            frame(1, 4, stream, &asked.concat()),
            frame(0, 1, stream, body),
        ];
        play.data(ends, Sent, &asked.concat());
        let head = [
            &[0x88][..],
            &field("content-type", media),
            &field("x-id", &path),
        ]
        .concat();
        let is_over = at + 1 < exchanges || ends.socket.is_multiple_of(2);
        let body = frame(0, u8::from(is_over), stream, body);
        play.data(ends, Received, &[frame(1, 4, stream, &head), body].concat());
    }
}

fn websocket(play: &mut Play, ends: &mut Ends, exchanges: u64) {
    play.data(ends, Sent, b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n");
    let accepted = b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    play.data(ends, Received, accepted);
    for _ in 1..exchanges {
        play.data(
            ends,
            Received,
            &[0xc1, 0x07, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
        );
    }
    play.data(ends, Sent, b"\x81\x85\0\0\0\0cut");
}

/// What is measured is the whole process'.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes that the allocator has given out and not got back.
fn live() -> usize {
    // SAFETY: it takes nothing and only reads the allocator's own sums.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

fn resident() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Live bytes at these parts of the way, in percent, and how many exchanges were told. Behind `sockets` connections
/// come the same sockets again.
fn heap(connections: u64, exchanges: u64, sockets: u64, looks: &[u64]) -> (Vec<usize>, u64) {
    let mut coder = GzEncoder::new(Vec::new(), Compression::default());
    coder
        .write_all(&b"some text of a body, ".repeat(50))
        .unwrap();
    let coded = coder.finish().unwrap();
    let mut play = Play::new();
    let mut heaps = Vec::new();
    for number in 0..connections {
        play.now = DURATION / connections * number;
        let mut ends = play.open(number, sockets);
        match number % 5 {
            0 | 1 => http1(&mut play, &mut ends, exchanges, &coded),
            2 => http2(&mut play, &mut ends, exchanges, "text/plain", b"a body"),
            3 => http2(
                &mut play,
                &mut ends,
                exchanges,
                "application/grpc",
                b"\0\0\0\0\x01x",
            ),
            _ => websocket(&mut play, &mut ends, exchanges),
        }
        // Of some the end is never heard.
        if number % 11 != 5 {
            play.close(&ends);
        }
        if looks.contains(&((number + 1) * 100 / connections))
            && (number + 1) * 100 % connections == 0
        {
            heaps.push(live());
        }
    }
    (heaps, play.told)
}

/// The same over fewer of them. The ends of sockets are left out: their table is full only in the long run.
#[test]
fn what_is_kept_is_bounded() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    // Behind 10,000 connections all that has a fixed number of entries is full.
    let (heaps, told) = heap(24_000, 2, 1000, &[50, 100]);
    assert!(told >= 48_000 - 10, "{told}");
    let grown = heaps[1].saturating_sub(heaps[0]);
    assert!(grown < 64 << 10, "{heaps:?}");
}

/// Each container that starts may bring libraries of its own.
#[test]
fn libraries_come_and_go() {
    const FILES: u64 = 4000;
    let _alone = ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let point = |direction| Point {
        offset: 16,
        function_offset: 12,
        library: "OpenSSL",
        function: "ssl_write_internal",
        direction,
        shape: Shape::OutFourth,
        instruction: Instruction::Emulated,
        detail: 0,
        bytes: [0x90; 16],
    };
    let mut play = Play::new();
    let mut heaps = Vec::new();
    for file in 1..=FILES {
        play.now += Duration::from_millis(500).as_nanos() as u64;
        let pid = 1000 + file as u32;
        play.tell(Input::Process(Facts {
            pid,
            executable: Some("/usr/bin/client".into()),
            ..Facts::default()
        }));
        let user = User {
            pid,
            mapped_at: Some(play.now),
            held: false,
        };
        play.tell(Input::Mapped { file, user });
        if file % 3 == 0 {
            play.tell(Input::Refused {
                file,
                path: "/run/container/libssl.so",
                why: "gone",
            });
        } else {
            play.tell(Input::Found {
                file,
                path: "/run/container/libssl.so",
                found: Found {
                    library: "OpenSSL",
                    version: Some(format!("3.0.{file}")),
                    points: vec![point(Received), point(Sent)],
                    others: Vec::new(),
                    partly: None,
                    located: "symbols",
                    // Nobody calls it, so its trial has no end.
                    on_trial: file % 3 == 1,
                },
            });
            let at = play.now;
            play.tell(Input::Attached { file, at });
        }
        play.tell(Input::Ended { pid });
        play.tell(Input::LetGo { file });
        play.tell(Input::Idle);
        if file == FILES / 2 || file == FILES {
            heaps.push(live());
        }
    }
    let grown = heaps[1].saturating_sub(heaps[0]);
    assert!(grown < 16 << 10, "{heaps:?}");
}

#[test]
#[ignore = "a measurement"]
fn a_million_exchanges() {
    let start = Instant::now();
    let (heaps, told) = heap(100_000, 10, u64::MAX, &[1, 10, 50, 100]);
    let mb = |bytes: usize| bytes as f64 / 1e6;
    for (part, heap) in [1, 10, 50, 100].into_iter().zip(&heaps) {
        println!("after {part:3} %: {:.2} MB live", mb(*heap));
    }
    println!(
        "{told} exchanges and messages told in {:.1} s, {:.1} MB resident",
        start.elapsed().as_secs_f64(),
        mb(resident())
    );
    // Of all that is bounded by a number the ends of sockets are the most, and full after a third.
    assert!(heaps[3] <= heaps[2] + heaps[2] / 100, "it grows: {heaps:?}");
}
