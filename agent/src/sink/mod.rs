//! Where records go: any number of outputs, each of them a format, a target, and a thread that does the waiting.
//!
//! ```text
//! pipeline ─┬ select ── encode ─► batch ── hand over ─► queue (bounded) ── writer thread ─► target
//!           └ select …
//! ```
//! The pipeline never waits: what a slow target leaves no room for is dropped and counted. It never
//! fails either: an error ends the writing, for good or until a file can be written again, and whatever follows is
//! dropped and counted. Every record ends as sent or as dropped.

mod file;
mod json;
mod keeper;
mod page;
mod rotation;
mod settings;
mod sinks;
mod stdout;
mod target;
mod text;
mod writer;

use std::io;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use file::File;
#[cfg(any(feature = "otlp", feature = "prometheus"))]
pub(crate) use settings::Share;
pub use settings::{Selection, Settings, Type};
pub use sinks::{End, Ready, Sinks};
pub use stdout::Stdout;
pub use target::{OpenError, Target};
pub use writer::{Failure, State, Writer};

use crate::locate::Instruction;
use crate::record::{Record, SinkCount};

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Text {
        colour: bool,
        /// What goes on is told in pieces.
        live: bool,
    },
}

/// Who writes: part of every JSON record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Unique to this run; a record's id is this and its sequence number.
    pub run: String,
    /// `host.name`
    pub host: String,
}

impl Origin {
    /// This host, and a new random run.
    pub fn new() -> io::Result<Self> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        Ok(Origin {
            run: format!("{:016x}", u64::from_ne_bytes(random)),
            host: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
        })
    }
}

/// One output.
pub struct Sink {
    encoder: Encoder,
    writer: Writer,
}

/// Turns records into what is written of them.
pub struct Encoder(Form);

enum Form {
    Json(json::Encoder),
    Text(text::Encoder),
}

impl Encoder {
    pub fn new(format: Format, origin: &Origin) -> Self {
        Encoder(match format {
            Format::Json => Form::Json(json::Encoder::new(origin)),
            Format::Text { colour, live } => Form::Text(text::Encoder::new(colour, live)),
        })
    }

    /// Appends one record.
    pub fn encode(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        match &mut self.0 {
            Form::Json(encoder) => encoder.encode(record, out),
            Form::Text(encoder) => encoder.encode(record, out),
        }
    }
}

impl Sink {
    /// Starts the thread of `target`.
    pub fn start(target: Target, format: Format, origin: &Origin) -> io::Result<Self> {
        Ok(Sink {
            encoder: Encoder::new(format, origin),
            writer: Writer::start(target)?,
        })
    }

    /// Takes one record, or drops and counts it.
    pub fn write(&mut self, record: &Record<'_>) {
        self.writer.append(|out| self.encoder.encode(record, out));
    }

    /// Is there no room for much more? Then what is written now may be dropped.
    pub fn is_full(&self) -> bool {
        self.state() == State::Full
    }

    pub fn state(&self) -> State {
        self.writer.state()
    }

    /// Hands over what there is, so that it is seen now. For when the pipeline goes idle; costs next
    /// to nothing when there is nothing.
    pub fn flush(&mut self) {
        self.writer.flush();
    }

    /// Waits until every record so far has become sent or dropped, for an exact [`Sink::count`].
    /// False if `deadline` came first.
    pub fn drain(&mut self, deadline: Instant) -> bool {
        self.writer.drain(deadline)
    }

    /// Records so far. Neither sent nor dropped: those still on their way.
    pub fn count(&self) -> SinkCount {
        self.writer.count()
    }

    /// The error that ended the writing.
    pub fn failure(&self) -> Option<Failure> {
        self.writer.failure()
    }

    /// What went wrong besides since the last question: it is written on.
    pub fn troubles(&self) -> Vec<String> {
        self.writer.troubles()
    }

    /// Why nothing is written now, if it is tried again.
    pub fn outage(&self) -> Option<Failure> {
        self.writer.outage()
    }

    /// Writes what there is and ends the thread. What isn't written by `deadline` counts as dropped.
    pub fn close(self, deadline: Instant) -> (SinkCount, Option<Failure>) {
        self.writer.close(deadline)
    }
}

fn instruction_name(instruction: Instruction) -> &'static str {
    match instruction {
        Instruction::Emulated => "emulated",
        Instruction::Stepped => "stepped",
    }
}

/// Records for tests.
#[cfg(test)]
pub(crate) mod sample {
    use agent_ebpf::Direction;

    use super::Origin;
    use crate::locate::Instruction;
    use crate::record::{
        Attribution, Body, Connection, Content, Coverage, CoverageStatus, Header, Http, HttpBody,
        HttpHalf, Joined, Probed, Process, Record, Role, Url, View, WallTime,
    };
    use crate::redact::{Policy, Shown};

    pub(crate) fn origin() -> Origin {
        Origin {
            run: "7c1f".into(),
            host: "box".into(),
        }
    }

    pub(crate) fn process() -> Process {
        Process {
            pid: 4242,
            vpid: Some(7),
            comm: Some("curl".into()),
            executable: Some("/usr/bin/curl".into()),
            arguments: vec!["curl".into(), "-s".into()],
            owner_uid: Some(1000),
            parent_pid: Some(1),
            container_id: Some("c0ffee".into()),
            container: None,
        }
    }

    pub(crate) fn connection() -> Connection {
        Connection {
            id: "4242-1a2b-1".into(),
            number: 3,
            attribution: Attribution::Exact,
            joined: Joined::Start,
            has_unseen: false,
            local: Some("[::ffff:127.0.0.1]:50000".parse().unwrap()),
            peer: Some("[::1]:443".parse().unwrap()),
            role: Some(Role::Client),
            server_name: Some("example.org".into()),
            library_name: Some("OpenSSL".into()),
            library_version: Some("3.0.22".into()),
            http_version: None,
            is_plain: false,
        }
    }

    /// 2026-11-21T01:20:29.000000042Z
    pub(crate) const TIME: WallTime = WallTime(1_795_224_029_000_000_042);

    pub(crate) fn data<'a>(
        process: &'a Process,
        connection: &'a Connection,
        payload: &'a [u8],
        policy: Policy,
    ) -> Record<'a> {
        let length = payload.len() as u64;
        shown(process, connection, length, policy.apply(payload))
    }

    pub(crate) fn shown<'a>(
        process: &'a Process,
        connection: &'a Connection,
        length: u64,
        content: Content<'a>,
    ) -> Record<'a> {
        Record {
            sequence: 42,
            time: TIME,
            process: Some(process),
            tid: Some(4243),
            connection: Some(connection),
            function: Some("ssl_write_internal"),
            complete: true,
            lost_bytes: 0,
            body: Body::Data {
                direction: Direction::Sent,
                offset: 5,
                length,
                content,
                view: View::All,
            },
        }
    }

    pub(crate) fn alone<'a>(process: Option<&'a Process>, body: Body<'a>) -> Record<'a> {
        Record {
            sequence: 1,
            time: TIME,
            process,
            tid: None,
            connection: None,
            function: None,
            complete: false,
            lost_bytes: 0,
            body,
        }
    }

    pub(crate) fn header(name: &str, value: &str) -> Header {
        Header {
            name: Some(name.into()),
            value: Some(value.into()),
        }
    }

    pub(crate) fn half(headers: Vec<Header>, body: &[u8]) -> HttpHalf {
        HttpHalf {
            headers,
            trailers: Vec::new(),
            body: HttpBody {
                size: body.len() as u64,
                decoded_size: body.len() as u64,
                content: Shown::Raw(body).into(),
                is_cut: false,
                unreadable: None,
                charset: None,
            },
            began: TIME,
            ended: TIME,
            is_whole: true,
            has_head: true,
            has_body: true,
        }
    }

    pub(crate) fn http(request: HttpHalf, response: HttpHalf) -> Http {
        Http {
            exchange: 1,
            is_open: false,
            is_continued: false,
            is_call: false,
            method: Some("GET".into()),
            url: Url {
                full: Some("https://example.org/".into()),
                ..Url::default()
            },
            status: Some(200),
            request: Some(request),
            response: Some(response),
            interim: Vec::new(),
            events: 0,
        }
    }

    pub(crate) fn coverage() -> Coverage {
        let probed = |function, instruction| Probed {
            function,
            instruction,
        };
        Coverage {
            status: CoverageStatus::Probed,
            reason: None,
            library_path: Some("/usr/lib/libssl.so.3".into()),
            library_name: Some("OpenSSL".into()),
            library_version: Some("3.0.22".into()),
            library_located: Some("symbols"),
            functions: vec![
                probed("ssl_read_internal", Instruction::Emulated),
                probed("ssl_write_internal", Instruction::Emulated),
            ],
            seen_from: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::hint::black_box;
    use std::io::{Read as _, pipe};
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use super::*;
    use crate::redact::Policy;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn each_format_reaches_its_target() {
        let (process, connection) = (sample::process(), sample::connection());
        let record = sample::data(&process, &connection, b"GET /", Policy::Full);
        for (format, start) in [
            (
                Format::Json,
                "{\"v\":1,\"kind\":\"data\",\"id\":\"7c1f-42\"",
            ),
            (
                Format::Text {
                    colour: false,
                    live: true,
                },
                "01:20:29.000000 #3 curl[4242]",
            ),
            (
                Format::Text {
                    colour: true,
                    live: true,
                },
                "\x1b[2m01:20:29.000000\x1b[0m",
            ),
        ] {
            let (mut reader, writer) = pipe().unwrap();
            let target = Target {
                name: "pipe".into(),
                file: OwnedFd::from(writer).into(),
                rotation: None,
                recovers: false,
                looked: None,
            };
            let mut sink = Sink::start(target, format, &sample::origin()).unwrap();
            sink.write(&record);
            sink.flush();
            assert!(sink.drain(soon()));
            let expected = SinkCount {
                name: "pipe".into(),
                sent: 1,
                dropped: 0,
            };
            assert_eq!(sink.count(), expected);
            assert!(sink.failure().is_none());
            assert_eq!(sink.close(soon()).0, expected);
            let mut output = String::new();
            reader.read_to_string(&mut output).unwrap();
            assert!(output.starts_with(start), "{output}");
            assert!(output.ends_with('\n'));
        }
    }

    #[test]
    fn every_run_has_its_own_id() {
        let (one, other) = (Origin::new().unwrap(), Origin::new().unwrap());
        assert_ne!(one.run, other.run);
        assert_eq!(one.host, other.host);
    }

    /// `cargo test --release -- --ignored --nocapture speed`
    #[test]
    #[ignore = "a measurement"]
    fn speed_through_the_thread() {
        let (process, connection) = (sample::process(), sample::connection());
        let payload: Vec<u8> = (0..16_384u32).map(|i| ((i * i) >> 3) as u8).collect();
        let record = sample::data(&process, &connection, &payload, Policy::Full);
        let target = Target {
            name: "null".into(),
            file: File::options().write(true).open("/dev/null").unwrap(),
            rotation: None,
            recovers: false,
            looked: None,
        };
        let mut sink = Sink::start(target, Format::Json, &sample::origin()).unwrap();
        let start = Instant::now();
        for _ in 0..1 << 17 {
            sink.write(black_box(&record));
        }
        let (count, _) = sink.close(soon());
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "2 GiB in records of 16 KiB: {:.2} GiB/s, {count:?}",
            2.0 / seconds
        );
    }
}
