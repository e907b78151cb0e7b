//! The kernel side and the half, as the line hears them: a small machine makes their records and reports. Positions
//! count up, records come late, twice or not at all, and each byte that it saw is in one column of the ledger.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use agent_ebpf::{
    Bound, Carried, Closed, Data, Direction, Freed, Gap, Head, Hello, Name, Opened, Place,
    REJOINED, Shape, Socket, Touch, Transfer, Unseen, cause, counter, kind,
};
use vortex_agent::{
    confine::Landlock,
    coverage::User,
    half::{Facts, Features, FileId, Files, Finding, Link, Pending, Runtime, Silent, Sockets},
    input::{Count, Input, Show},
    ledger::ledger,
    llm::price::Prices,
    locate::{Found, Instruction, Point},
    pipeline::{Pipeline, Wanted},
    record::Kind,
    redact::{Key, Policy},
};
use zerocopy::IntoBytes as _;

use crate::{
    Choices,
    judge::Judge,
    told::BOUNDS,
    world::{PIDS, World},
};

/// What programs say.
const SAYINGS: [&[u8]; 20] = [
    b"GET /a?token=hunter2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 0123456789abcdef\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-A: quokka\r\n\r\nquokka",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: \x1b[2J\r\n\r\n",
    b"POST /b?quokka HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nquokka\r\n0\r\n\r\n",
    b"GET /c HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n\x81\x06quokka",
    b"\x81\x86\0\0\0\0quokka",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    b"\0\0\x03\x01\x05\0\0\0\x01\x82\x87\x84",
    b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x01\x88",
    b"{\"password\":\"hunter2\",\"n\":\"\xe2\x80\xae quokka\"}\n",
    b"220 ready\r\n\xff\xfe\x00\x9b",
    b"event: quokka\r\nid: quokka\r\ndata: quokka\r\n\r\n",
    // TLS in what a function carries: a record with 5 bytes.
    b"\x17\x03\x03\0\x05aaaaa",
    // A call of gRPC and its answer, each in one piece.
    b"\0\0\x22\x01\x04\0\0\0\x03\x83\x87\x04\x04/s/m\x0f\x10\x10application/grpc\0\x02te\x02no\
      \0\0\x0b\0\x01\0\0\0\x03\0\0\0\0\x06quokka",
    b"\0\0\x14\x01\x04\0\0\0\x03\x88\x0f\x10\x10application/grpc\
      \0\0\x24\x01\x05\0\0\0\x03\0\x0bgrpc-status\x012\0\x0cgrpc-message\x06quokka",
    b"HTTP/1.1 103 Early Hints\r\nLink: quokka\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/jsonl\r\nContent-Length: 33\r\n\r\n\
      {\"password\":\"hunter2\"}\n\"quokka\"\n{",
    // A call of a model and its answer.
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 165\r\n\r\n\
      {\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"quokka, password=0123456789abcdef\"}],\
      \"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":\"quokka\"}}]}",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 311\r\n\r\n\
      {\"object\":\"chat.completion\",\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\
      \"finish_reason\":\"tool_calls\",\"message\":{\"role\":\"assistant\",\"content\":\"quokka\",\
      \"tool_calls\":[{\"id\":\"t\",\"type\":\"function\",\
      \"function\":{\"name\":\"f\",\"arguments\":\"{\\\"password\\\":\\\"hunter2\\\"}\"}}]}}],\
      \"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5}}",
];
const TLS_RECORD: usize = 13;

/// When the machine begins. Handles are born before it is over: their births count from 1.
const START: u64 = 1_000_000;

/// Steps that are reports about a process.
const OF_THE_HALF: [u8; 4] = [1, 25, 26, 27];

/// Steps that are calls of a probed function.
const OF_CALLS: std::ops::RangeInclusive<u8> = 3..=12;
const OF_CALLS_TOO: std::ops::RangeInclusive<u8> = 16..=21;

/// A client's greeting, cut behind its random bytes.
const GREETING: [u8; 12] = [22, 3, 1, 0, 50, 1, 0, 0, 46, 3, 3, 7];

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

/// A handle that has been seen since `born`, and where its streams are.
#[derive(Clone, Copy, Default)]
struct Handle {
    born: u64,
    next: [u64; 2],
    /// Lost at the end, and not told yet.
    untold: [u64; 2],
}

/// A file of a library, and the cookies of its two points.
#[derive(Clone, Copy, Default)]
struct Library {
    file: FileId,
    cookies: [u64; 2],
    /// Its probes are out for a while.
    is_paused: bool,
}

/// What is asked of a run, by its first bytes.
#[derive(Clone, Copy)]
pub struct Setting {
    pub is_json: bool,
    /// Data is told of all, else only of what nothing decodes.
    pub tells_data: bool,
    pub content: Policy,
    pub sees_sockets: bool,
    pub are_asked: bool,
    /// The second file was found by guesses.
    pub on_trial: bool,
    pub world: World,
}

impl Setting {
    pub fn of(choices: &mut Choices<'_>) -> (Setting, bool) {
        let (first, scene) = (choices.byte(), choices.byte());
        let content = [
            Policy::Redacted,
            Policy::Full,
            Policy::None,
            Policy::Redacted,
        ];
        let setting = Setting {
            is_json: first & 1 == 0,
            tells_data: first & 2 == 0,
            content: content[usize::from(first >> 2 & 3)],
            sees_sockets: first >> 5 & 1 != 0,
            are_asked: scene >> 5 & 1 != 0,
            on_trial: scene >> 6 & 1 != 0,
            world: World::of(scene, first >> 4 & 1 != 0, choices),
        };
        (setting, first & 0xc0 != 0)
    }
}

pub struct Machine {
    line: Pipeline,
    setting: Setting,
    show: Show,
    now: u64,
    births: u64,
    sequence: u32,
    handles: HashMap<(u32, u64), Handle>,
    gone: BTreeSet<u32>,
    /// Records on the way.
    late: Vec<Vec<u8>>,
    last: Vec<u8>,
    /// Processes whose facts were told.
    known: BTreeSet<u32>,
    /// Containers that were asked about and not told of.
    asked: Vec<String>,
    libraries: [Library; 2],
    files: FileId,
    counters: [u64; counter::ROW],
    /// There are processes that are turned away, or were.
    is_selective: bool,
    /// Bytes that came a second time.
    twice: u64,
}

impl Machine {
    pub fn new(setting: Setting, judge: &mut Judge) -> Machine {
        let mut emit = BTreeSet::from([
            Kind::Http,
            Kind::Sse,
            Kind::Websocket,
            Kind::Grpc,
            Kind::Llm,
            Kind::Coverage,
            Kind::Gap,
            Kind::Stats,
        ]);
        emit.extend(setting.tells_data.then_some(Kind::Data));
        let show = Show {
            emit,
            undecoded: !setting.tells_data,
            live: !setting.is_json,
            body_limit: BOUNDS.body as u64,
            content: setting.content,
        };
        let world = setting.world;
        let line = Pipeline::new(Wanted {
            emit: show.emit.clone(),
            undecoded: show.undecoded,
            live: show.live,
            bounds: BOUNDS,
            content: setting.content,
            exes: world.exes(),
            uids: Vec::new(),
            comms: Vec::new(),
            names: world.names(),
            policy: world.policy(),
            prices: Prices::default(),
            findings: vortex_agent::detect::Settings::default(),
            key: 1,
            secret_key: Key::new([1; 32]),
        });
        let mut machine = Machine {
            line,
            setting,
            show,
            now: START,
            births: 0,
            sequence: 0,
            handles: HashMap::new(),
            gone: BTreeSet::new(),
            late: Vec::new(),
            last: Vec::new(),
            known: BTreeSet::new(),
            asked: Vec::new(),
            libraries: [Library::default(); 2],
            files: 0,
            counters: [0; counter::ROW],
            is_selective: world.is_selective(),
            twice: 0,
        };
        machine.tell(Input::Clock(1_767_225_600_000_000_000), judge);
        if setting.sees_sockets {
            let sees_sockets = Input::Machine {
                landlock: Landlock::Full,
                features: FEATURES,
                limits: vec!["no \x1b[31m".to_owned()],
            };
            machine.tell(sees_sockets, judge);
        }
        if setting.are_asked {
            machine.tell(Input::Runtimes { are_asked: true }, judge);
        }
        machine.find(0, judge);
        machine.find(1, judge);
        machine
    }

    fn tell(&mut self, input: Input<'_>, judge: &mut Judge) {
        judge.note(&input);
        self.line
            .take(input, self.now, &mut |record| judge.read(record));
    }

    /// A file of its own for a library, with points.
    fn find(&mut self, library: usize, judge: &mut Judge) {
        self.files += 1;
        let file = self.files;
        let found = Input::Found {
            file,
            path: "/lib/libssl.so",
            found: found(self.setting.on_trial && library == 1),
        };
        self.tell(found, judge);
        let sites = self.line.sites();
        let cookies = [sites[0].cookie, sites[1].cookie];
        self.libraries[library] = Library {
            file,
            cookies,
            is_paused: false,
        };
    }

    fn library(&self, handle: u64) -> Library {
        self.libraries[usize::from(handle == 2)]
    }

    pub fn step(&mut self, choices: &mut Choices<'_>, judge: &mut Judge) {
        let what = choices.byte();
        let pid = 1 + u32::from(choices.byte()) % PIDS;
        if self.gone.contains(&pid) {
            return;
        }
        let key = (pid, u64::from(1 + choices.byte() % 2));
        let direction = choices.of(&[Direction::Received, Direction::Sent]);
        let time = self.now;
        let what = what % 28;
        let is_call = OF_CALLS.contains(&what) || OF_CALLS_TOO.contains(&what);
        if is_call && self.library(key.1).is_paused {
            // Nobody sees it, or counts it.
            return;
        }
        if OF_THE_HALF.contains(&what) {
            self.meet(pid, judge);
        }
        match what {
            0 => self.introduce(pid, judge),
            1 => {
                let user = User {
                    pid,
                    mapped_at: choices.chance().then_some(time),
                    held: choices.chance(),
                };
                let file = self.library(key.1).file;
                self.tell(Input::Mapped { file, user }, judge);
            }
            2 => self.attach(usize::from(key.1 == 2), judge),
            3..=8 => self.speak(key, direction, choices, judge),
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
                self.give(&gap, judge);
            }
            // Lost, and told at the end only, if nothing comes behind it.
            10 => {
                self.tell_late(judge);
                let length = 1 + u64::from(choices.byte());
                let handle = self.handle(key);
                handle.next[direction as usize] += length;
                handle.untold[direction as usize] += length;
                self.counters[counter::SEEN] += length;
                self.counters[counter::LOST + usize::from(cause::RING_FULL)] += length;
            }
            11 => self.begin(key, direction, choices, judge),
            12 => {
                self.tell_late(judge);
                let born = self.handle(key).born;
                let kind = choices.of(&[kind::FREED, kind::LEFT]);
                let freed = Freed {
                    head: head(kind, direction, 0, time),
                    pid_tgid: both(pid),
                    born,
                    handle: key.1,
                };
                self.give(freed.as_bytes(), judge);
                if kind == kind::FREED {
                    self.handles.remove(&key);
                }
            }
            13 | 14 => self.wait(choices, judge),
            15 => {
                let socket = socket(kind::SOCKET, direction, 0, time, choices);
                self.give(socket.as_bytes(), judge);
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
                self.give(transfer.as_bytes(), judge);
            }
            17 => {
                let touch = Touch {
                    head: head(kind::TOUCH, direction, 0, time),
                    pid_tgid: both(pid),
                    born: self.handle(key).born,
                    handle: key.1,
                    place: self.place(),
                };
                self.give(touch.as_bytes(), judge);
            }
            18 => {
                let name = choices.of(&[&b"x.test"[..], b"\x1b]0;\x07", b"\xff\x9b"]);
                let record = Name {
                    head: head(kind::NAME, direction, name.len(), time),
                    pid_tgid: both(pid),
                    born: self.handle(key).born,
                    handle: key.1,
                };
                self.give(&[record.as_bytes(), name].concat(), judge);
                let closed = Closed {
                    head: head(kind::CLOSED, direction, 0, time),
                    socket: u64::from(choices.byte() % 4),
                };
                self.give(closed.as_bytes(), judge);
            }
            19 => self.pass_by(key, direction, choices, judge),
            20 => {
                let record = Bound {
                    head: head(kind::BOUND, direction, 0, time),
                    pid_tgid: both(pid),
                    born: self.handle(key).born,
                    handle: key.1,
                    socket: 1 + u64::from(choices.byte() % 3),
                };
                self.give(record.as_bytes(), judge);
            }
            // No room in the map of streams, so nobody knows where.
            21 => {
                let length = 1 + u64::from(choices.byte());
                self.counters[counter::SEEN] += length;
                self.counters[counter::LOST + usize::from(cause::MAP_FULL)] += length;
                let born = self.handle(key).born;
                let cause = cause::MAP_FULL;
                let gap = gap(key, born, direction, u64::MAX, length, cause, time);
                self.give(&gap, judge);
            }
            22 => self.greet(pid, direction, choices, judge),
            23 => self.name(choices, judge),
            24 => self.change(choices, judge),
            25 => self.look(pid, key, choices, judge),
            26 => match choices.below(3) {
                0 => self.tell(
                    Input::Renamed {
                        pid,
                        comm: "\x1b]0;me\x07",
                    },
                    judge,
                ),
                1 => self.tell(
                    Input::Missed {
                        pid,
                        path: "/lib/lib\u{202e}ssl.so",
                    },
                    judge,
                ),
                _ => self.tell(Input::Continued { pid }, judge),
            },
            _ => {
                self.tell_late(judge);
                self.handles.retain(|(of, _), _| *of != pid);
                self.tell(Input::Ended { pid }, judge);
                self.gone.insert(pid);
            }
        }
    }

    /// The half says who a process is before it says anything else of it.
    fn meet(&mut self, pid: u32, judge: &mut Judge) {
        if !self.known.contains(&pid) {
            self.introduce(pid, judge);
        }
    }

    fn introduce(&mut self, pid: u32, judge: &mut Judge) {
        self.known.insert(pid);
        self.tell(Input::Process(self.setting.world.facts(pid)), judge);
    }

    /// A call with plaintext.
    fn speak(
        &mut self,
        key: (u32, u64),
        direction: Direction,
        choices: &mut Choices<'_>,
        judge: &mut Judge,
    ) {
        let said = usize::from(choices.byte());
        let bytes = match said {
            0 => {
                judge.is_plain = false;
                choices.bytes(64)
            }
            _ => SAYINGS[said % SAYINGS.len()].to_vec(),
        };
        let flags = choices.byte();
        if said % SAYINGS.len() == TLS_RECORD {
            let carried = Carried {
                head: head(kind::CARRIED, direction, 0, self.now),
                pid_tgid: both(key.0),
                handle: key.1,
                cookie: self.library(key.1).cookies[direction as usize],
                length: bytes.len() as u64,
            };
            self.give(carried.as_bytes(), judge);
        }
        let record = self.data(key, direction, &bytes, flags);
        match choices.below(4) {
            1 => self.late.push(record),
            // Of a second link. The filter counts what comes.
            2 if !self.is_selective => {
                self.twice += bytes.len() as u64;
                self.give(&record, judge);
                self.give(&record, judge);
            }
            _ => self.give(&record, judge),
        }
    }

    /// The handle means another connection from here on.
    fn begin(
        &mut self,
        key: (u32, u64),
        direction: Direction,
        choices: &mut Choices<'_>,
        judge: &mut Judge,
    ) {
        let kind = choices.of(&[kind::OPENED, kind::CLEARED]);
        self.births += 1;
        let opened = Opened {
            head: head(kind, direction, 0, self.now),
            pid_tgid: both(key.0),
            born: self.births,
            handle: key.1,
            cookie: self.library(key.1).cookies[0],
        };
        let handle = Handle {
            born: self.births,
            ..Handle::default()
        };
        // The holes of the one before are found when the streams are gone, or before.
        let is_over = choices.chance();
        if !is_over {
            self.tell_late(judge);
        }
        self.flush(judge);
        let before = self.handles.insert(key, handle);
        self.give(opened.as_bytes(), judge);
        if let Some(before) = before.filter(|_| is_over) {
            let holes = holes(key, &before, true).collect();
            self.tell_holes(holes, judge);
        }
    }

    fn wait(&mut self, choices: &mut Choices<'_>, judge: &mut Judge) {
        self.flush(judge);
        self.now += [1_000_000, 100_000_000, 1_100_000_000, 4_000_000_000][choices.below(4)];
        self.tell(Input::Idle, judge);
        // The half may have been behind, and says so when it is not any more, or never.
        if self.line.is_half_late() && choices.chance() {
            let until = self.now;
            self.tell(Input::CaughtUp { until }, judge);
        }
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
        self.line.attentions();
        for (file, why) in self.line.withdrawals().collect::<Vec<_>>() {
            self.tell(Input::Failed { file, why }, judge);
        }
        for pid in self.line.strangers().collect::<Vec<_>>() {
            self.meet(pid, judge);
            let runtimes = [None, Some(Runtime::Jvm), Some(Runtime::Erlang)];
            let runtime = choices.of(&runtimes);
            self.tell(Input::Runtime { pid, runtime }, judge);
        }
        for connected in self.line.questions().collect::<Vec<_>>() {
            let finding = Finding {
                is_kernels: choices.chance(),
                transferred: u64::from(choices.byte()) << 10,
                silent: self.silent(choices),
            };
            self.tell(Input::Inspected { connected, finding }, judge);
        }
        for pid in self.line.suspects().collect::<Vec<_>>() {
            if let Some(silent) = self.silent(choices) {
                self.tell(Input::Silent { pid, silent }, judge);
            }
        }
        self.line.silent();
    }

    fn silent(&self, choices: &mut Choices<'_>) -> Option<Silent> {
        let library = self.libraries[choices.below(2)];
        choices.chance().then(|| Silent {
            file: library.file,
            is_placed_again: choices.chance(),
        })
    }

    /// A call that nobody sees, or one whose result makes no sense.
    fn pass_by(
        &mut self,
        key: (u32, u64),
        direction: Direction,
        choices: &mut Choices<'_>,
        judge: &mut Judge,
    ) {
        let kind = choices.of(&[kind::UNSEEN, kind::SENSELESS]);
        let handle = choices.of(&[key.1, 0]);
        let record = Unseen {
            head: head(kind, direction, 0, self.now),
            pid_tgid: both(key.0),
            born: self.handle(key).born,
            handle,
            cookie: self.library(key.1).cookies[direction as usize],
        };
        self.give(record.as_bytes(), judge);
    }

    /// TLS begins outside every probed call.
    fn greet(
        &mut self,
        pid: u32,
        direction: Direction,
        choices: &mut Choices<'_>,
        judge: &mut Judge,
    ) {
        let mut greeting = GREETING;
        // Of a client or a server, or none at all.
        greeting[5] = 1 + choices.byte() % 3;
        let record = Hello {
            socket: socket(kind::HELLO, direction, greeting.len(), self.now, choices),
            pid_tgid: both(pid),
        };
        self.give(&[record.as_bytes(), &greeting].concat(), judge);
    }

    /// A runtime answers, or somebody stops asking.
    fn name(&mut self, choices: &mut Choices<'_>, judge: &mut Judge) {
        self.asked.extend(self.line.nameless());
        match choices.below(8) {
            0 => {
                let are_asked = choices.chance();
                self.tell(Input::Runtimes { are_asked }, judge);
            }
            what if !self.asked.is_empty() => {
                let id = self.asked.remove(choices.below(self.asked.len()));
                let container = self.setting.world.container(&id);
                let container = container.filter(|_| what > 1);
                self.tell(Input::Container { id: &id, container }, judge);
            }
            _ => {}
        }
    }

    /// Somebody changes the settings, as far as a run takes that.
    fn change(&mut self, choices: &mut Choices<'_>, judge: &mut Judge) {
        match choices.below(6) {
            0 => {
                let uids = choices.of(&[&[][..], &[1], &[2, 3]]).to_vec();
                let comms = choices.of(&[&[][..], &["me"]]);
                let comms = comms.iter().map(|comm| (*comm).to_owned()).collect();
                let watch = Input::Watch {
                    exes: self.setting.world.exes(),
                    uids,
                    comms,
                    names: self.setting.world.names(),
                };
                self.tell(watch, judge);
            }
            1 => {
                self.show.content = match self.show.content {
                    Policy::Full => Policy::Redacted,
                    Policy::Redacted | Policy::None => Policy::None,
                }
            }
            2 => self.show.body_limit = choices.byte().into(),
            4 | 5 => {
                let world = &mut self.setting.world;
                world.follow(choices.byte());
                let world = *world;
                self.is_selective |= world.is_selective();
                judge.hears_policy(world);
                self.tell(Input::Policy(world.policy()), judge);
                judge.follow_policy();
            }
            _ => {
                let kind = choices.of(&[Kind::Http, Kind::Sse, Kind::Coverage]);
                if !self.show.emit.remove(&kind) {
                    self.show.emit.insert(kind);
                }
            }
        }
        self.tell(Input::Show(self.show.clone()), judge);
        judge.follow(self.show.content);
    }

    /// What else the half says, of files most of all.
    fn look(&mut self, pid: u32, key: (u32, u64), choices: &mut Choices<'_>, judge: &mut Judge) {
        let library = usize::from(key.1 == 2);
        let file = self.libraries[library].file;
        match choices.below(10) {
            0 => {
                let (path, why) = ("/lib/x\x1b.so", "no symbols");
                self.files += 1;
                let file = self.files;
                self.tell(Input::Refused { file, path, why }, judge);
                let user = User {
                    pid,
                    mapped_at: None,
                    held: false,
                };
                self.tell(Input::Mapped { file, user }, judge);
            }
            1 => {
                self.files += 1;
                let file = self.files;
                let user = User {
                    pid,
                    mapped_at: Some(self.now),
                    held: false,
                };
                self.tell(Input::Mapped { file, user }, judge);
                let ends = match choices.chance() {
                    true => Input::Nothing { file },
                    false => Input::Same {
                        file,
                        known: self.libraries[library].file,
                    },
                };
                self.tell(ends, judge);
            }
            2 => self.tell(
                Input::Failed {
                    file,
                    why: "no \x1b",
                },
                judge,
            ),
            // If it is mapped again, it is another one.
            3 => {
                self.tell(Input::LetGo { file }, judge);
                self.find(library, judge);
            }
            4 => self.tell(Input::NoNames, judge),
            5 => {
                let count = Count {
                    last: false,
                    kernel: self.counters.to_vec(),
                    ..Count::default()
                };
                self.tell(Input::Count(count), judge);
            }
            6 => {
                let end = ends(choices.byte(), choices.byte());
                self.tell(
                    Input::Ours {
                        local: end.1,
                        peer: end.0,
                    },
                    judge,
                );
            }
            7 => {
                if let Some(silent) = self.silent(choices) {
                    self.tell(Input::Silent { pid, silent }, judge);
                }
            }
            9 => self.pause(library, judge),
            // It was asked about when it had ended.
            _ => {
                let bare = Facts {
                    pid,
                    ..Facts::default()
                };
                self.tell(Input::Process(bare), judge);
            }
        }
    }

    /// The governor takes the probes of a file out: what is on the way comes, and then nothing.
    fn pause(&mut self, library: usize, judge: &mut Judge) {
        self.tell_late(judge);
        self.libraries[library].is_paused = true;
        let (file, why) = (self.libraries[library].file, "paused by the governor: \x1b");
        self.tell(Input::Failed { file, why }, judge);
    }

    /// The probes are in place. After a pause nobody knows what was said in it: handles mean connections that are
    /// joined in their middle.
    fn attach(&mut self, library: usize, judge: &mut Judge) {
        let (file, at) = (self.libraries[library].file, self.now);
        self.tell(Input::Attached { file, at }, judge);
        if !std::mem::take(&mut self.libraries[library].is_paused) {
            return;
        }
        let births = &mut self.births;
        let mut handles: Vec<_> = self.handles.iter_mut().collect();
        handles.sort_by_key(|((pid, handle), _)| (*pid, *handle));
        for ((_, handle), known) in handles {
            if usize::from(*handle == 2) == library {
                *births += 1;
                *known = Handle {
                    born: *births | REJOINED,
                    ..Handle::default()
                };
            }
        }
    }

    /// Any bytes as a record of any kind, or the last one with one byte changed.
    pub fn anything(&mut self, choices: &mut Choices<'_>, judge: &mut Judge) {
        judge.is_plain = false;
        let mut record = match choices.byte() {
            0 => self.last.clone(),
            1 => {
                let facts = self.setting.world.facts(choices.byte().into());
                return self.tell(Input::Process(facts), judge);
            }
            2 => {
                self.now += u64::from(choices.byte()) << 24;
                return self.tell(Input::Idle, judge);
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
            self.give(&record, judge);
        }
    }

    /// The end, as the half tells it: of each stream what is lost behind its last byte.
    pub fn end(&mut self, is_known: bool, judge: &mut Judge) {
        self.flush(judge);
        self.tell_late(judge);
        self.tell(Input::Finish, judge);
        let count = Count {
            last: true,
            kernel: self.counters.to_vec(),
            ..Count::default()
        };
        self.tell(Input::Count(count), judge);
        if !is_known {
            return;
        }
        let bytes = ledger(|index| self.counters[index], self.line.tally()).bytes;
        let placed = bytes.over_limit + bytes.filtered + bytes.delivered + bytes.lost.sum();
        // The filter counts what comes, and a policy may turn away who waits with such bytes.
        let twice = if judge.has_followed { self.twice } else { 0 };
        assert!(
            (bytes.seen..=bytes.seen + twice).contains(&placed),
            "{bytes:?}, {twice} twice"
        );
        assert_eq!(self.line.malformed(), 0);
    }

    /// Records that were on the way come.
    fn flush(&mut self, judge: &mut Judge) {
        for record in std::mem::take(&mut self.late) {
            self.tell(Input::Record(&record), judge);
        }
    }

    fn tell_late(&mut self, judge: &mut Judge) {
        self.flush(judge);
        let mut all = Vec::new();
        for (key, handle) in &mut self.handles {
            all.extend(holes(*key, handle, false));
            handle.untold = [0; 2];
        }
        all.sort_by_key(|hole| (hole.tgid, hole.handle, hole.direction));
        self.tell_holes(all, judge);
    }

    fn tell_holes(&mut self, holes: Vec<Pending>, judge: &mut Judge) {
        for hole in &holes {
            self.meet(hole.tgid, judge);
        }
        self.tell(Input::Pending(holes), judge);
    }

    fn give(&mut self, record: &[u8], judge: &mut Judge) {
        self.last = record.to_vec();
        self.tell(Input::Record(record), judge);
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
            cookie: self.library(key.1).cookies[direction as usize],
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

/// What is lost at the end of the streams of a handle.
fn holes(
    (pid, address): (u32, u64),
    handle: &Handle,
    is_over: bool,
) -> impl Iterator<Item = Pending> {
    let handle = *handle;
    [Direction::Received, Direction::Sent]
        .into_iter()
        .map(move |direction| Pending {
            handle: address,
            born: handle.born,
            tgid: pid,
            direction: direction as u32,
            is_over,
            offset: handle.next[direction as usize] - handle.untold[direction as usize],
            length: handle.untold[direction as usize],
            cause: cause::RING_FULL,
        })
        .filter(|hole| hole.length > 0)
}

/// One of a few peers: by IPv4, by IPv6, and by IPv4 in IPv6.
fn ends(which: u8, peer: u8) -> (SocketAddr, SocketAddr) {
    let end = |byte: u8, port| {
        let four = Ipv4Addr::from([byte; 4]);
        let address: IpAddr = match which % 3 {
            0 => four.into(),
            1 => Ipv6Addr::from([byte; 16]).into(),
            _ => four.to_ipv6_mapped().into(),
        };
        SocketAddr::new(address, port)
    };
    (end(127, 443), end(peer % 4, 1024))
}

fn socket(
    kind: u16,
    direction: Direction,
    len: usize,
    time: u64,
    choices: &mut Choices<'_>,
) -> Socket {
    let cookie = u64::from(choices.byte() % 4);
    let (local, peer) = ends(choices.byte(), choices.byte());
    let bytes = |end: SocketAddr| match end.ip() {
        IpAddr::V4(four) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&four.octets());
            bytes
        }
        IpAddr::V6(six) => six.octets(),
    };
    Socket {
        head: head(kind, direction, len, time),
        cookie,
        local: bytes(local),
        peer: bytes(peer),
        local_port: local.port(),
        peer_port: peer.port(),
        family: if local.is_ipv4() { 2 } else { 10 },
        protocol: 6,
        side: u64::from(choices.byte() % 3),
    }
}

fn found(on_trial: bool) -> Found {
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
        on_trial,
    }
}
