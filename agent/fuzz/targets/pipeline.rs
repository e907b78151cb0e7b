//! The whole line: ring records and reports of the half in, lines of output out.
//!
//! A small machine makes the records, as the kernel side would: positions count up, records come late, twice or
//! not at all. Each byte that it saw is in one column of the ledger, each stream comes out without a hole that is
//! not told, JSON is JSON, and nothing reaches a terminal that it could obey. Where any bytes are taken for a
//! record, only the last two hold.
//!
//! An input is a byte of settings, and then steps.
#![no_main]

use std::collections::{BTreeSet, HashMap};

use agent_ebpf::{
    Closed, Data, Direction, Freed, Gap, Head, Name, Opened, Place, Shape, Socket, Touch, Transfer,
    cause, cookie, counter, kind,
};
use libfuzzer_sys::fuzz_target;
use play::{Choices, told::BOUNDS};
use vortex_agent::{
    confine::Landlock,
    coverage::User,
    escape::is_control,
    half::{Facts, Features, Files, Link, Pending, Sockets},
    input::Input,
    ledger::ledger,
    locate::{Found, Instruction, Point},
    metadata::Names,
    pipeline::{Pipeline, Wanted},
    record::{Kind, Record},
    redact::{Key, Policy},
    sink::{Encoder, Format, Origin},
};
use zerocopy::IntoBytes as _;

/// What programs say.
const SAYINGS: [&[u8]; 12] = [
    b"GET /a?token=hunter2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 0123456789abcdef\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: \x1b[2J\r\n\r\n",
    b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /c HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
    b"\x81\x85\0\0\0\0hello",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    b"\0\0\x03\x01\x05\0\0\0\x01\x82\x87\x84",
    b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x01\x88",
    b"{\"password\":\"hunter2\",\"n\":\"\xe2\x80\xae\"}\n",
    b"220 ready\r\n\xff\xfe\x00\x9b",
];

const PIDS: u32 = 4;
/// By its executable it is not wanted, if the filter is on.
const OTHER: u32 = 3;

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

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let settings = choices.byte();
    let is_json = settings & 1 == 0;
    let is_known = settings & 0xc0 != 0;
    let shown = run(&mut choices, settings, is_known, is_json);
    match is_json {
        true => check_json(&shown, settings, is_known),
        false => assert!(
            !shown.chars().any(|c| is_control(c) && c != '\n'),
            "{shown:?}"
        ),
    }
});

fn run(choices: &mut Choices<'_>, settings: u8, is_known: bool, is_json: bool) -> String {
    let format = match is_json {
        true => Format::Json,
        false => Format::Text {
            colour: false,
            live: true,
        },
    };
    let origin = Origin {
        run: "run".into(),
        host: "host".into(),
    };
    let (mut encoder, mut shown) = (Encoder::new(format, &origin), Vec::new());
    let mut machine = Machine::new(settings);
    let out = &mut |record: &Record<'_>| encoder.encode(record, &mut shown);
    while !choices.0.is_empty() {
        match is_known {
            true => machine.step(choices, out),
            false => machine.anything(choices, out),
        }
    }
    machine.end(is_known, out);
    String::from_utf8(shown).expect("the output is UTF-8")
}

/// A handle that has been seen since `born`, and where its streams are.
#[derive(Clone, Copy, Default)]
struct Handle {
    born: u64,
    next: [u64; 2],
    /// Lost at the end, and not told yet.
    untold: [u64; 2],
}

struct Machine {
    line: Pipeline,
    now: u64,
    births: u64,
    sequence: u32,
    handles: HashMap<(u32, u64), Handle>,
    gone: BTreeSet<u32>,
    /// Records on the way.
    late: Vec<Vec<u8>>,
    last: Vec<u8>,
    is_filtering: bool,
    /// Processes whose facts were told.
    known: BTreeSet<u32>,
    counters: [u64; counter::ROW],
}

impl Machine {
    fn new(settings: u8) -> Machine {
        let all = [
            Kind::Http,
            Kind::Sse,
            Kind::Websocket,
            Kind::Grpc,
            Kind::Coverage,
            Kind::Gap,
        ];
        let tells_data = settings & 2 == 0;
        let is_filtering = settings >> 4 & 1 != 0;
        let line = Pipeline::new(Wanted {
            emit: all
                .into_iter()
                .chain(tells_data.then_some(Kind::Data))
                .collect(),
            undecoded: !tells_data,
            live: settings & 1 != 0,
            bounds: BOUNDS,
            content: [
                Policy::Redacted,
                Policy::Full,
                Policy::None,
                Policy::Redacted,
            ][usize::from(settings >> 2 & 3)],
            exes: is_filtering
                .then(|| "/bin/*".to_owned())
                .into_iter()
                .collect(),
            uids: Vec::new(),
            comms: Vec::new(),
            names: Names::default(),
            policy: None,
            key: 1,
            secret_key: Key::new([1; 32]),
        });
        let mut machine = Machine {
            line,
            now: 1,
            births: 0,
            sequence: 0,
            handles: HashMap::new(),
            gone: BTreeSet::new(),
            late: Vec::new(),
            last: Vec::new(),
            is_filtering,
            known: BTreeSet::new(),
            counters: [0; counter::ROW],
        };
        let out = &mut |_: &Record<'_>| {};
        machine.tell(Input::Clock(1_767_225_600_000_000_000), out);
        if settings >> 5 & 1 != 0 {
            let sees_sockets = Input::Machine {
                landlock: Landlock::Full,
                features: FEATURES,
                limits: Vec::new(),
            };
            machine.tell(sees_sockets, out);
        }
        let found = Input::Found {
            file: 1,
            path: "/lib/libssl.so",
            found: found(),
        };
        machine.tell(found, out);
        machine
    }

    fn tell(&mut self, input: Input<'_>, out: &mut dyn FnMut(&Record<'_>)) {
        self.line.take(input, self.now, out);
    }

    fn step(&mut self, choices: &mut Choices<'_>, out: &mut dyn FnMut(&Record<'_>)) {
        let what = choices.byte();
        let pid = 1 + u32::from(choices.byte()) % PIDS;
        if self.gone.contains(&pid) {
            return;
        }
        let key = (pid, u64::from(1 + choices.byte() % 2));
        let direction = choices.of(&[Direction::Received, Direction::Sent]);
        let time = self.now;
        match what % 20 {
            0 => {
                self.known.insert(pid);
                self.tell(Input::Process(facts(pid)), out);
            }
            1 => {
                let user = User {
                    pid,
                    mapped_at: choices.chance().then_some(time),
                    held: choices.chance(),
                };
                self.tell(Input::Mapped { file: 1, user }, out);
            }
            2 => self.tell(Input::Attached { file: 1, at: time }, out),
            3..=8 => {
                let bytes = match choices.byte() {
                    0 => choices.bytes(64),
                    saying => SAYINGS[usize::from(saying) % SAYINGS.len()].to_vec(),
                };
                let record = self.data(key, direction, &bytes, choices.byte());
                match choices.below(4) {
                    1 => self.late.push(record),
                    // Of a second link. The filter counts what comes.
                    2 if !self.is_filtering => {
                        self.give(&record, out);
                        self.give(&record, out);
                    }
                    _ => self.give(&record, out),
                }
            }
            9 => {
                let cause = choices.of(&[
                    cause::RING_FULL,
                    cause::COPY_FAULT,
                    cause::CALL_TOO_LONG,
                    cause::OVER_BUDGET,
                    cause::SENDFILE,
                ]);
                let length = 1 + u64::from(choices.byte());
                let gap = self.gap(key, direction, length, cause);
                self.give(&gap, out);
            }
            // Lost, and told at the end only, if nothing comes behind it.
            10 => {
                self.tell_late(out);
                let length = 1 + u64::from(choices.byte());
                self.flush(out);
                let handle = self.handle(key);
                handle.next[direction as usize] += length;
                handle.untold[direction as usize] += length;
                self.counters[counter::SEEN] += length;
                self.counters[counter::LOST + usize::from(cause::RING_FULL)] += length;
            }
            11 => {
                self.tell_late(out);
                self.births += 1;
                let born = self.births;
                self.handles.insert(
                    key,
                    Handle {
                        born,
                        ..Handle::default()
                    },
                );
                let kind = choices.of(&[kind::OPENED, kind::CLEARED]);
                let opened = Opened {
                    head: head(kind, direction, 0, time),
                    pid_tgid: both(pid),
                    born,
                    handle: key.1,
                    cookie: cookie(1, Direction::Received, Shape::Created),
                };
                self.give(opened.as_bytes(), out);
            }
            12 => {
                self.tell_late(out);
                let born = self.handle(key).born;
                let kind = choices.of(&[kind::FREED, kind::LEFT]);
                let freed = Freed {
                    head: head(kind, direction, 0, time),
                    pid_tgid: both(pid),
                    born,
                    handle: key.1,
                };
                self.give(freed.as_bytes(), out);
                if kind == kind::FREED {
                    self.handles.remove(&key);
                }
            }
            13 | 14 => {
                self.flush(out);
                self.now +=
                    [1_000_000, 100_000_000, 1_100_000_000, 4_000_000_000][choices.below(4)];
                self.tell(Input::Idle, out);
                // The kernel side begins anew with these.
                for id in self.line.forgotten() {
                    let key = (id.pid, id.handle);
                    if self
                        .handles
                        .get(&key)
                        .is_some_and(|handle| handle.born == id.born)
                    {
                        self.handles.remove(&key);
                    }
                }
            }
            15 => {
                let socket = Socket {
                    head: head(kind::SOCKET, direction, 0, time),
                    cookie: u64::from(choices.byte() % 4),
                    local: [127; 16],
                    peer: [choices.byte(); 16],
                    local_port: 443,
                    peer_port: 1024,
                    family: choices.of(&[2, 10]),
                    protocol: 6,
                    side: u64::from(choices.byte() % 3),
                };
                self.give(socket.as_bytes(), out);
            }
            16 => {
                let transfer = Transfer {
                    head: head(kind::TRANSFER, direction, 0, time),
                    pid_tgid: both(pid),
                    socket: u64::from(choices.byte() % 4),
                    length: u32::from(choices.byte()),
                    generation: 1,
                    place: self.place(),
                };
                self.give(transfer.as_bytes(), out);
            }
            17 => {
                let touch = Touch {
                    head: head(kind::TOUCH, direction, 0, time),
                    pid_tgid: both(pid),
                    born: self.handle(key).born,
                    handle: key.1,
                    place: self.place(),
                };
                self.give(touch.as_bytes(), out);
            }
            18 => {
                let name = choices.bytes(20);
                let record = Name {
                    head: head(kind::NAME, direction, name.len(), time),
                    pid_tgid: both(pid),
                    born: self.handle(key).born,
                    handle: key.1,
                };
                self.give(&[record.as_bytes(), &name].concat(), out);
                let closed = Closed {
                    head: head(kind::CLOSED, direction, 0, time),
                    socket: u64::from(choices.byte() % 4),
                };
                self.give(closed.as_bytes(), out);
            }
            _ => match choices.below(3) {
                0 => self.tell(
                    Input::Renamed {
                        pid,
                        comm: "\x1b]0;me\x07",
                    },
                    out,
                ),
                1 => self.tell(
                    Input::Missed {
                        pid,
                        path: "/lib/lib\u{202e}ssl.so",
                    },
                    out,
                ),
                _ => {
                    self.flush(out);
                    self.tell_late(out);
                    self.handles.retain(|(of, _), _| *of != pid);
                    self.tell(Input::Ended { pid }, out);
                    self.gone.insert(pid);
                }
            },
        }
    }

    /// Any bytes as a record of any kind, or the last one with one byte changed.
    fn anything(&mut self, choices: &mut Choices<'_>, out: &mut dyn FnMut(&Record<'_>)) {
        let mut record = match choices.byte() {
            0 => self.last.clone(),
            1 => return self.tell(Input::Process(facts(u32::from(choices.byte()))), out),
            2 => {
                self.now += u64::from(choices.byte()) << 24;
                return self.tell(Input::Idle, out);
            }
            number => {
                let length = 16 + choices.below(240);
                let mut record = choices.bytes(length);
                record.resize(length, 0);
                let [low, high] = u16::from(number % 18).to_le_bytes();
                (record[0], record[1], record[3]) = (low, high, 0);
                record[2] &= 1;
                record
            }
        };
        if !record.is_empty() {
            let at = choices.below(record.len());
            record[at] = choices.byte();
            self.give(&record, out);
        }
    }

    /// The end, as the half tells it: of each stream what is lost behind its last byte.
    fn end(&mut self, is_known: bool, out: &mut dyn FnMut(&Record<'_>)) {
        self.flush(out);
        self.tell_late(out);
        self.tell(Input::Finish, out);
        if !is_known {
            return;
        }
        let bytes = ledger(|index| self.counters[index], self.line.tally()).bytes;
        let placed = bytes.over_limit + bytes.filtered + bytes.delivered + bytes.lost.sum();
        assert_eq!(bytes.seen, placed, "{bytes:?}");
        assert_eq!(self.line.malformed(), 0);
    }

    /// Records that were on the way come.
    fn flush(&mut self, out: &mut dyn FnMut(&Record<'_>)) {
        for record in std::mem::take(&mut self.late) {
            self.tell(Input::Record(&record), out);
        }
    }

    fn tell_late(&mut self, out: &mut dyn FnMut(&Record<'_>)) {
        self.flush(out);
        let mut holes = Vec::new();
        for ((pid, address), handle) in &mut self.handles {
            for direction in [Direction::Received, Direction::Sent] {
                let length = std::mem::take(&mut handle.untold[direction as usize]);
                if length > 0 {
                    holes.push(Pending {
                        handle: *address,
                        born: handle.born,
                        tgid: *pid,
                        direction: direction as u32,
                        is_over: false,
                        offset: handle.next[direction as usize] - length,
                        length,
                        cause: cause::RING_FULL,
                    });
                }
            }
        }
        holes.sort_by_key(|hole| (hole.tgid, hole.handle, hole.direction));
        // The half says who a process is before it says anything else of it.
        for hole in &holes {
            if self.known.insert(hole.tgid) {
                self.tell(Input::Process(facts(hole.tgid)), out);
            }
        }
        self.tell(Input::Pending(holes), out);
    }

    fn give(&mut self, record: &[u8], out: &mut dyn FnMut(&Record<'_>)) {
        self.last = record.to_vec();
        self.tell(Input::Record(record), out);
    }

    fn handle(&mut self, key: (u32, u64)) -> &mut Handle {
        let births = &mut self.births;
        self.handles.entry(key).or_insert_with(|| {
            *births += 1;
            Handle {
                born: *births,
                ..Handle::default()
            }
        })
    }

    fn place(&mut self) -> Place {
        self.sequence += 1;
        Place {
            sequence: self.sequence,
            skipped: 0,
        }
    }

    /// The stream goes on by so much: since when its handle means what it means, and where that is. A gap that is due
    /// is told before, as the kernel side does it.
    fn advance(&mut self, key: (u32, u64), direction: Direction, length: u64) -> (u64, u64) {
        self.counters[counter::SEEN] += length;
        let handle = self.handle(key);
        let untold = std::mem::take(&mut handle.untold[direction as usize]);
        let offset = handle.next[direction as usize];
        handle.next[direction as usize] += length;
        let born = handle.born;
        if untold > 0 {
            let cause = cause::RING_FULL;
            let gap = gap(
                key,
                born,
                direction,
                offset - untold,
                untold,
                cause,
                self.now,
            );
            self.late.push(gap);
        }
        (born, offset)
    }

    fn data(&mut self, key: (u32, u64), direction: Direction, bytes: &[u8], socket: u8) -> Vec<u8> {
        let place = self.place();
        let (born, offset) = self.advance(key, direction, bytes.len() as u64);
        let data = Data {
            head: head(kind::DATA, direction, bytes.len(), self.now),
            pid_tgid: both(key.0),
            born,
            handle: key.1,
            offset,
            socket: match socket % 8 {
                at @ 1..4 => at.into(),
                _ => 0,
            },
            cookie: cookie(1 + direction as u64, direction, Shape::OutFourth),
            place,
        };
        [data.as_bytes(), bytes, b"another process"].concat()
    }

    fn gap(&mut self, key: (u32, u64), direction: Direction, length: u64, cause: u16) -> Vec<u8> {
        self.counters[counter::LOST + usize::from(cause)] += length;
        let (born, offset) = self.advance(key, direction, length);
        gap(key, born, direction, offset, length, cause, self.now)
    }
}

fn gap(
    (pid, handle): (u32, u64),
    born: u64,
    direction: Direction,
    offset: u64,
    length: u64,
    cause: u16,
    time: u64,
) -> Vec<u8> {
    let gap = Gap {
        head: head(kind::GAP, direction, 0, time),
        pid_tgid: both(pid),
        born,
        handle,
        offset,
        length,
        cause: cause.into(),
    };
    gap.as_bytes().to_vec()
}

fn head(kind: u16, direction: Direction, len: usize, time: u64) -> Head {
    Head {
        kind,
        direction: direction as u16,
        len: len as u32,
        time,
    }
}

/// Process and thread of one number.
fn both(pid: u32) -> u64 {
    u64::from(pid) << 32 | u64::from(pid)
}

fn facts(pid: u32) -> Facts {
    let is_other = pid == OTHER;
    Facts {
        pid,
        comm: Some("me\x1b[31m".to_owned()),
        executable: Some(if is_other { "/opt/x" } else { "/bin/me" }.to_owned()),
        arguments: vec!["--password=hunter2".to_owned(), "\u{9b}".to_owned()],
        parent_pid: Some(1),
        ..Facts::default()
    }
}

fn found() -> Found {
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
    Found {
        library: "OpenSSL",
        version: Some("3.0.0".into()),
        points: vec![
            point("ssl_read_internal", Direction::Received, 16),
            point("ssl_write_internal", Direction::Sent, 32),
        ],
        others: Vec::new(),
        partly: None,
        located: "symbols",
        on_trial: false,
    }
}

/// Each line is an object with an id of its own, and bytes and gaps of each stream follow each other.
fn check_json(shown: &str, settings: u8, is_known: bool) {
    let tells_data = settings & 2 == 0;
    let is_filtering = settings >> 4 & 1 != 0;
    let mut ends: HashMap<String, u64> = HashMap::new();
    for (number, line) in shown.lines().enumerate() {
        let record: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        assert!(!line.chars().any(is_control), "{line}");
        assert_eq!(record["id"], format!("run-{number}"));
        let kind = record["kind"].as_str().expect("each record has a kind");
        let (Some(offset), Some(length)) = (record["offset"].as_u64(), record["length"].as_u64())
        else {
            continue;
        };
        // Without all data, bytes of no message overtake what redaction holds back of earlier ones.
        if !matches!(kind, "data" | "gap") || !is_known || !tells_data {
            continue;
        }
        let stream = format!("{} {}", record["connection"]["id"], record["direction"]);
        // What came before it was known who it is was turned away.
        let first = if is_filtering { offset } else { 0 };
        let end = ends.entry(stream).or_insert(first);
        assert_eq!(
            *end, offset,
            "{line}: a hole that is not told, or bytes that are told twice"
        );
        *end = offset + length;
    }
}
