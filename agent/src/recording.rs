//! A run as the line was told of it: `run --record` writes it, `replay` plays it.
//!
//! ```text
//! vortex-agent recording, version N: raw plaintext, with every secret
//! length (4 bytes, little-endian), Header
//! length, time, Input
//! length, time, Input …
//! ```
//! In postcard, each with its length in front, so whatever ends early is noticed and what came before is whole. The
//! one who reads it trusts nothing in it: lengths are bounded, and what does not parse to its last byte is the end.

use std::{
    fs::File,
    io::{self, BufReader, ErrorKind, Read},
    path::Path,
    time::Instant,
};

use serde::{Deserialize, Serialize};

use crate::{
    input::Input,
    metadata::Names,
    sink::{Origin, State, Target, Writer},
};

/// Changes with [`Input`], with [`Header`], and with every type inside of them.
const VERSION: u32 = 9;
const TITLE: &str = "vortex-agent recording, version ";
const WARNING: &str = ": raw plaintext, with every secret\n";
/// The first line is no longer than this.
const HEAD_MAX: u64 = 128;
/// A record of the ring or a message of the half, whichever is longer, and room for what is around it.
const FRAME_MAX: usize = 128 << 10;
const LENGTH: usize = size_of::<u32>();

/// What a run is besides what it was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the agent that recorded it.
    pub agent: String,
    pub origin: Origin,
    pub exes: Vec<String>,
    pub uids: Vec<u32>,
    pub comms: Vec<String>,
    pub names: Names,
    /// Makes the ids of connections.
    pub key: u128,
    /// Makes the hashes of secrets. The secrets themselves are in here, too.
    pub secret_key: [u8; 32],
}

/// Writes a recording, never waiting: what a slow disk leaves no room for ends it.
pub struct Recorder {
    writer: Writer,
    is_cut: bool,
}

impl Recorder {
    /// Starts the thread of `target`.
    pub fn start(target: Target, header: &Header) -> io::Result<Recorder> {
        let mut writer = Writer::start(target.without_recovery())?;
        writer.append(|out| {
            out.extend_from_slice(format!("{TITLE}{VERSION}{WARNING}").as_bytes());
            append(out, header);
        });
        Ok(Recorder {
            writer,
            is_cut: false,
        })
    }

    /// One thing that the line is told. After one that is missing the others would mean something else.
    pub fn write(&mut self, input: &Input<'_>, now: u64) {
        if !self.is_cut {
            self.is_cut = !self.writer.append(|out| append(out, &(now, input)));
        }
    }

    /// Is there no room for much more?
    pub fn is_full(&self) -> bool {
        self.writer.state() == State::Full
    }

    /// Hands over what there is, so that little is missing should the agent be killed.
    pub fn flush(&mut self) {
        self.writer.flush();
    }

    /// Waits until all of it is written. False if `deadline` came first.
    pub fn drain(&mut self, deadline: Instant) -> bool {
        self.writer.drain(deadline)
    }

    /// Why it has ended, if it has.
    pub fn ended(&self) -> Option<String> {
        let failure = self.writer.failure();
        let slow = || format!("{} is written too slowly", self.writer.name());
        failure
            .map(|failure| failure.cause())
            .or_else(|| self.is_cut.then(slow))
    }
}

/// Memory does not run out of errors: a vector takes what comes.
fn append(out: &mut Vec<u8>, what: &impl Serialize) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH]);
    let _ = postcard::to_io(what, &mut *out);
    let length = (out.len() - start - LENGTH) as u32;
    out[start..start + LENGTH].copy_from_slice(&length.to_le_bytes());
}

/// A file whose first line says that it is a recording. More of it is not looked at yet.
#[derive(Debug)]
pub struct Opened<R>(BufReader<R>);

/// A recording and what comes next in it.
#[derive(Debug)]
pub struct Recording<R> {
    from: BufReader<R>,
    frame: Vec<u8>,
}

/// Why there is nothing more to be had of a recording.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is no recording; `vortex-agent run --content full --record FILE` makes one")]
    NoRecording,
    #[error(
        "it is a recording of version {0}, and this agent reads version {VERSION}: replay it with the agent that made it"
    )]
    Version(u32),
    #[error("it is damaged from here on")]
    Damaged,
}

impl Opened<File> {
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        Opened::new(File::open(path)?)
    }

    pub fn file(&self) -> &File {
        self.0.get_ref()
    }
}

impl<R: Read> Opened<R> {
    pub fn new(from: R) -> Result<Self, ReadError> {
        let mut from = BufReader::with_capacity(FRAME_MAX, from);
        let mut head = Vec::new();
        io::BufRead::read_until(&mut from.by_ref().take(HEAD_MAX), b'\n', &mut head)?;
        let head = str::from_utf8(&head).ok();
        let version = head
            .and_then(|head| head.strip_prefix(TITLE))
            .and_then(|rest| rest.split_once(':'))
            .and_then(|(version, _)| version.parse().ok())
            .ok_or(ReadError::NoRecording)?;
        match version {
            VERSION => Ok(Opened(from)),
            other => Err(ReadError::Version(other)),
        }
    }

    /// Begins to parse it.
    pub fn read(self) -> Result<(Header, Recording<R>), ReadError> {
        let mut recording = Recording {
            from: self.0,
            frame: Vec::new(),
        };
        let header = match recording.frame()? {
            true => parse::<Header>(&recording.frame)?,
            false => return Err(ReadError::Damaged),
        };
        Ok((header, recording))
    }
}

impl<R: Read> Recording<R> {
    /// What the line is told next, and when. `None` behind the last whole one.
    pub fn input(&mut self) -> Result<Option<(u64, Input<'_>)>, ReadError> {
        match self.frame()? {
            true => parse(&self.frame).map(Some),
            false => Ok(None),
        }
    }

    /// Reads the next frame. False if the file ends before it does.
    fn frame(&mut self) -> Result<bool, ReadError> {
        let mut length = [0; LENGTH];
        if !fill(&mut self.from, &mut length)? {
            return Ok(false);
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > FRAME_MAX {
            return Err(ReadError::Damaged);
        }
        self.frame.resize(length, 0);
        Ok(fill(&mut self.from, &mut self.frame)?)
    }
}

fn fill(from: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(bytes) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

fn parse<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Result<T, ReadError> {
    match postcard::take_from_bytes(frame) {
        Ok((what, [])) => Ok(what),
        _ => Err(ReadError::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        io::pipe,
        net::SocketAddr,
        os::fd::OwnedFd,
        time::{Duration, Instant},
    };

    use agent_ebpf::{Data, Direction, Head, Shape, cookie, kind};
    use clap::ValueEnum as _;
    use zerocopy::IntoBytes as _;

    use super::*;
    use crate::{
        confine::Landlock,
        coverage::User,
        detect,
        half::{
            Connected, Facts, Features, Files, Finding, Link, Pending, Runtime, Silent, Sockets,
        },
        input::{Count, Show},
        llm::price::Prices,
        locate::{Found, Instruction, Point},
        metadata::{Container, Pod},
        pipeline::{Pipeline, Wanted},
        policy::{self, Capture},
        protocol::exchange::Bounds,
        record::{Governing, Kind, SinkCount},
        redact::{Key, Policy},
        shed::Rung,
    };

    fn header() -> Header {
        Header {
            agent: "0.1.0".into(),
            origin: Origin {
                run: "7c1f".into(),
                host: "box".into(),
            },
            exes: vec!["/usr/*".into()],
            uids: vec![0],
            comms: vec!["curl".into()],
            names: Names {
                labels: vec![("app".into(), "web".into())],
                ..Names::default()
            },
            key: u128::MAX - 1,
            secret_key: [7; 32],
        }
    }

    fn data(direction: Direction, offset: u64, bytes: &[u8]) -> Vec<u8> {
        let data = Data {
            head: Head {
                kind: kind::DATA,
                direction: direction as u16,
                len: bytes.len() as u32,
                time: 1_000,
            },
            pid_tgid: 7 << 32 | 7,
            born: 0,
            handle: 0x1000,
            offset,
            socket: 0,
            cookie: cookie(1, direction, Shape::OutFourth),
            place: agent_ebpf::Place::default(),
        };
        [data.as_bytes(), bytes].concat()
    }

    fn point() -> Point {
        Point {
            offset: 16,
            function_offset: 12,
            library: "OpenSSL",
            function: "ssl_write_internal",
            direction: Direction::Sent,
            shape: Shape::OutFourth,
            instruction: Instruction::Stepped,
            detail: 9,
            bytes: [0x90; 16],
        }
    }

    fn container() -> Container {
        let pairs = |key: &str, value: &str| BTreeMap::from([(key.into(), value.into())]);
        Container {
            name: Some("web".into()),
            image: Some("nginx:1".into()),
            labels: pairs("tier", "front"),
            pod: Some(Pod {
                namespace: "shop".into(),
                name: "web-0".into(),
                uid: "1f".into(),
                container: Some("web".into()),
                labels: pairs("app", "web"),
                annotations: pairs("note", "x"),
            }),
        }
    }

    const REQUEST: &[u8] = b"GET /?token=planted HTTP/1.1\r\nhost: a\r\n\r\n";
    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

    /// One of each, in an order that makes sense.
    fn inputs<'a>(request: &'a [u8], response: &'a [u8]) -> Vec<Input<'a>> {
        let connected = Connected {
            pid: 7,
            local: "127.0.0.1:1".parse().unwrap(),
            peer: "[::1]:443".parse().unwrap(),
        };
        vec![
            Input::Clock(1 << 60),
            Input::Machine {
                landlock: Landlock::Partial,
                features: Features {
                    link: Link::Multi,
                    scopes_processes: true,
                    sockets: Sockets::Fexit,
                    roles: false,
                    hellos: true,
                    files: Files::Own,
                    follows: true,
                    comms: false,
                },
                limits: vec!["no BTF".into()],
            },
            Input::Found {
                file: 1,
                path: "/lib/libssl.so",
                found: Found {
                    library: "OpenSSL",
                    version: Some("3.0".into()),
                    points: vec![point()],
                    others: vec![Point {
                        shape: Shape::Rewired,
                        ..point()
                    }],
                    partly: Some("not all"),
                    located: "symbols",
                    on_trial: false,
                },
            },
            Input::Attached { file: 1, at: 1 },
            Input::Runtimes { are_asked: true },
            Input::Process(Facts {
                pid: 7,
                vpid: Some(1),
                comm: Some("curl".into()),
                executable: Some("/usr/bin/curl".into()),
                arguments: vec!["curl".into(), "https://a/?token=planted".into()],
                owner_uid: Some(0),
                parent_pid: Some(1),
                container_id: Some("c0ffee".into()),
                is_outside: false,
                since: Some(1),
            }),
            Input::Container {
                id: "c0ffee",
                container: Some(container()),
            },
            Input::Mapped {
                file: 1,
                user: User {
                    pid: 7,
                    mapped_at: Some(2),
                    held: false,
                },
            },
            Input::Continued { pid: 7 },
            Input::Record(request),
            Input::Record(response),
            Input::Idle,
            Input::Refused {
                file: 2,
                path: "/lib/b",
                why: "unsafe",
            },
            Input::Nothing { file: 3 },
            Input::Same { file: 4, known: 1 },
            Input::LetGo { file: 2 },
            Input::Missed {
                pid: 8,
                path: "/gone",
            },
            Input::Runtime {
                pid: 8,
                runtime: Some(Runtime::Jvm),
            },
            Input::Inspected {
                connected,
                finding: Finding {
                    is_kernels: true,
                    transferred: 5,
                    silent: Some(Silent {
                        file: 1,
                        is_placed_again: true,
                    }),
                },
            },
            Input::Silent {
                pid: 8,
                silent: Silent {
                    file: 1,
                    is_placed_again: false,
                },
            },
            Input::Pending(vec![Pending {
                handle: 0x1000,
                born: 0,
                tgid: 7,
                direction: 1,
                is_over: false,
                offset: REQUEST.len() as u64,
                length: 10,
                cause: 0,
            }]),
            Input::Renamed {
                pid: 7,
                comm: "wget",
            },
            Input::Failed {
                file: 1,
                why: "withdrawn",
            },
            Input::Watch {
                exes: vec!["/opt/*".into()],
                uids: vec![0],
                comms: vec!["wget".into()],
                names: Names {
                    pods: vec!["web-*".into()],
                    ..Names::default()
                },
            },
            Input::Placed {
                pid: 7,
                is_outside: true,
            },
            Input::Show(Show {
                emit: BTreeSet::from([Kind::Http]),
                undecoded: true,
                live: false,
                body_limit: 5,
                content: Policy::None,
            }),
            Input::NoNames,
            Input::CaughtUp { until: 9 },
            Input::Ours {
                local: SocketAddr::from(([127, 0, 0, 1], 40_000)),
                peer: SocketAddr::from(([127, 0, 0, 1], 4317)),
            },
            Input::Shed(Rung(3)),
            Input::Room(Some(1 << 20)),
            Input::Policy(Some(policy::Policy {
                rules: vec![policy::Rule {
                    names: Names {
                        namespaces: vec!["shop".into()],
                        ..Names::default()
                    },
                    capture: Capture::Redacted,
                }],
                programs: vec![policy::Program {
                    exes: vec!["/opt/*".into()],
                    comms: vec!["db".into()],
                    capture: policy::Capture::None,
                }],
                default: Capture::Metadata,
                host: Capture::Full,
                trusts_annotation: true,
            })),
            Input::Findings(detect::Settings {
                trusted: vec!["a".into()],
                ..detect::Settings::default()
            }),
            Input::Ended { pid: 7 },
            Input::Finish,
            Input::Count(Count {
                last: true,
                kernel: vec![1, 2, 3],
                sinks: vec![SinkCount {
                    name: "f".into(),
                    sent: 4,
                    dropped: 5,
                }],
                cpu_seconds: 0.5,
                memory_bytes: 6,
                governing: Some(Governing {
                    limit: Some(0.25),
                    cost: 7.5,
                    paused: 8,
                    pauses: 9,
                    paused_seconds: 10.5,
                }),
            }),
        ]
    }

    /// A recording of each input, one after the other; and what was written of each.
    fn sample() -> (Vec<u8>, Vec<String>) {
        let (request, response) = (
            data(Direction::Sent, 0, REQUEST),
            data(Direction::Received, 0, RESPONSE),
        );
        let mut bytes = format!("{TITLE}{VERSION}{WARNING}").into_bytes();
        append(&mut bytes, &header());
        let inputs = inputs(&request, &response);
        for (now, input) in (1_u64..).zip(&inputs) {
            append(&mut bytes, &(now * 1_000, input));
        }
        let said = (1_u64..).zip(&inputs);
        let said = said.map(|(now, input)| format!("{} {input:?}", now * 1_000));
        (bytes, said.collect())
    }

    fn all(bytes: &[u8]) -> Result<Vec<String>, ReadError> {
        let (_, mut recording) = Opened::new(bytes)?.read()?;
        let mut said = Vec::new();
        while let Some((now, input)) = recording.input()? {
            said.push(format!("{now} {input:?}"));
        }
        Ok(said)
    }

    /// The line is told all that can be read.
    fn play(bytes: &[u8], content: Policy) {
        let Ok((header, mut recording)) = Opened::new(bytes).and_then(Opened::read) else {
            return;
        };
        let mut line = Pipeline::new(Wanted {
            emit: Kind::value_variants()
                .iter()
                .copied()
                .collect::<BTreeSet<_>>(),
            undecoded: true,
            live: true,
            bounds: Bounds::default(),
            content,
            exes: header.exes,
            uids: header.uids,
            comms: header.comms,
            names: header.names,
            policy: None,
            prices: Prices::default(),
            findings: detect::Settings::default(),
            key: header.key,
            secret_key: Key::new(header.secret_key),
        });
        while let Ok(Some((now, input))) = recording.input() {
            line.take(input, now, &mut |_| {});
            line.ask_nobody();
        }
    }

    #[test]
    fn every_input_comes_back() {
        let (bytes, said) = sample();
        let (read, _) = Opened::new(&*bytes).unwrap().read().unwrap();
        assert_eq!(read, header());
        assert_eq!(all(&bytes).unwrap(), said);
        let kinds: BTreeSet<_> = said
            .iter()
            .map(|said| {
                let name = said.split(' ').nth(1).unwrap();
                name.split('(').next().unwrap().to_owned()
            })
            .collect();
        assert_eq!(kinds.len(), 35, "a new one belongs here, too: {kinds:?}");
    }

    /// Whoever changes what is written gives it another version, or older recordings are misread.
    #[test]
    fn what_is_written_is_what_the_version_says() {
        let (bytes, _) = sample();
        let hash = blake3::hash(&bytes).to_hex();
        assert_eq!((VERSION, &hash[..16]), (9, "17f3119e4085274c"));
    }

    #[test]
    fn what_was_cut_is_whole_up_to_there() {
        let (bytes, said) = sample();
        let mut longest = 0;
        for end in 0..bytes.len() {
            match all(&bytes[..end]) {
                Ok(read) => {
                    assert_eq!(read, said[..read.len()], "cut at {end}");
                    assert!((longest..=longest + 1).contains(&read.len()));
                    longest = read.len();
                }
                Err(ReadError::NoRecording | ReadError::Damaged) => assert_eq!(longest, 0),
                Err(error) => panic!("cut at {end}: {error}"),
            }
        }
        assert_eq!(longest, said.len() - 1);
    }

    #[test]
    fn damage_is_the_end_and_no_panic() {
        let (bytes, said) = sample();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1] {
                let mut spoiled = bytes.clone();
                spoiled[at] = value;
                play(&spoiled, Policy::Redacted);
            }
        }
        // A length that nothing has.
        let mut spoiled = bytes.clone();
        let end = spoiled.len();
        spoiled.extend(u32::MAX.to_le_bytes());
        assert!(matches!(all(&spoiled), Err(ReadError::Damaged)));
        // More in a frame than is parsed.
        spoiled.truncate(end);
        append(&mut spoiled, &(1_u64, &Input::Idle));
        assert_eq!(all(&spoiled).unwrap().len(), said.len() + 1);
        spoiled[end] += 1;
        spoiled.push(0);
        assert!(matches!(all(&spoiled), Err(ReadError::Damaged)));
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |bytes: &[u8]| Opened::new(bytes).unwrap_err().to_string();
        let (bytes, _) = sample();
        let text = String::from_utf8_lossy(&bytes[..60]);
        let next = VERSION + 1;
        let newer = text.replacen(&format!("version {VERSION}"), &format!("version {next}"), 1);
        let expected = format!("version {next}, and this agent reads version {VERSION}");
        assert!(refused(newer.as_bytes()).contains(&expected));
        for other in [
            "",
            "\n",
            "{\"v\":1}\n",
            "vortex-agent recording, version",
            "vortex-agent recording, version x: raw\n",
            "vortex-agent recording, version 99999999999: raw\n",
        ] {
            assert!(
                refused(other.as_bytes()).contains("no recording"),
                "{other}"
            );
        }
        let endless = vec![b'v'; 1 << 20];
        assert!(refused(&endless).contains("no recording"));
    }

    fn target(file: impl Into<File>) -> Target {
        Target {
            name: "test".into(),
            file: file.into(),
            rotation: None,
            recovers: false,
            looked: None,
        }
    }

    #[test]
    fn a_full_disk_ends_it() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut recorder = Recorder::start(target(full), &header()).unwrap();
        assert_eq!(recorder.ended(), None);
        recorder.write(&Input::Idle, 1);
        assert!(recorder.drain(Instant::now() + Duration::from_secs(20)));
        let why = recorder.ended().unwrap();
        assert!(why.starts_with("write to test: No space left"), "{why}");
    }

    #[test]
    fn a_slow_disk_ends_it_and_nobody_waits() {
        let (_reader, writer) = pipe().unwrap();
        let mut recorder = Recorder::start(target(OwnedFd::from(writer)), &header()).unwrap();
        let record = data(Direction::Sent, 0, &[0; 60_000]);
        let mut was_full = false;
        for now in 0..2_000 {
            recorder.write(&Input::Record(&record), now);
            was_full |= recorder.is_full() && recorder.ended().is_none();
        }
        assert!(was_full, "who can wait is told in time");
        let why = recorder.ended().unwrap();
        assert_eq!(why, "test is written too slowly");
    }
}
