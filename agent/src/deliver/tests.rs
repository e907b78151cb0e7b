//! Deliver as a process of its own, against receivers that count each record.

use std::{
    collections::HashMap,
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    ops::Range,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::ValueEnum as _;
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::any_value::Value as Any,
    logs::v1::LogRecord,
};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::sync::oneshot;
use tonic::codec::CompressionEncoding;

use super::{
    courier::start_as,
    settings::{Kinds, Otlp, Prometheus, WrittenOtlp},
    *,
};
use crate::{
    record::{Body, Http, Kind, Record, SinkCount},
    redact::Policy,
    sink::{State, sample},
};

/// The other side of the tests below, in a process of its own.
#[test]
#[ignore = "run by the tests beside it"]
fn process() {
    // The lock-in is for a process with one thread, which a fork has.
    // SAFETY: glibc makes its allocator usable in the child; of std's locks, none is taken there that another thread
    // might hold: there is no other test.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    // SAFETY: takes an integer. Whatever happens, it is not for ever.
    unsafe { libc::alarm(600) };
    if pid > 0 {
        let mut status = 0;
        // SAFETY: `status` is valid for writing.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        return assert_eq!(status, 0);
    }
    let code = run().is_err().into();
    // SAFETY: ends the process, without the test harness' own ending.
    unsafe { libc::_exit(code) }
}

fn this(settings: &Settings) -> Result<Starting, StartError> {
    let mut this = Command::new(std::env::current_exe().unwrap());
    this.args(["--ignored", "--exact", "deliver::tests::process"]);
    start_as(this, settings)
}

fn begin(settings: &Settings) -> (Courier, u32) {
    let starting = this(settings).unwrap();
    let pid = starting.pids().next().unwrap();
    (starting.begin(&sample::origin()).unwrap(), pid)
}

fn otlp(port: u16, more: &str) -> Otlp {
    let text = format!("endpoint = \"http://127.0.0.1:{port}\"\nsignals = [\"logs\"]\n{more}");
    named("otlp", &text)
}

/// Of all kinds, as a sink's table makes it.
fn named(name: &str, text: &str) -> Otlp {
    let written: WrittenOtlp = toml::from_str(text).unwrap();
    Otlp {
        name: name.to_owned(),
        kinds: Kinds::of(Kind::value_variants()),
        ..Otlp::try_from(written).unwrap()
    }
}

fn only(otlp: Otlp) -> Settings {
    Settings {
        origin: Some(sample::origin()),
        otlp: vec![otlp],
        prometheus: Vec::new(),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Writes records with these numbers, as fast as there is room.
fn write(courier: &mut Courier, numbers: Range<u64>) {
    pour(courier, numbers, |courier| {
        let until = soon();
        while courier.state() == State::Full && courier.failure().is_none() {
            assert!(Instant::now() < until, "there is no room: nobody reads");
            thread::sleep(Duration::from_micros(200));
        }
    });
    courier.flush();
}

/// Writes records with these numbers, each after `wait`, and leaves those in the batch that do not fill it.
fn pour(courier: &mut Courier, numbers: Range<u64>, wait: impl Fn(&Courier)) {
    let (process, connection) = (sample::process(), sample::connection());
    let http = exchange();
    for sequence in numbers {
        wait(courier);
        courier.write(&Record {
            sequence,
            body: Body::Http(&http),
            ..sample::data(&process, &connection, b"", Policy::Full)
        });
    }
}

/// About 1 KiB of JSON, together with who and where.
fn exchange() -> Http {
    let header = sample::header;
    sample::http(
        sample::half(
            vec![header("host", "example.org"), header("accept", "*/*")],
            b"",
        ),
        sample::half(
            vec![
                header("content-type", "text/plain"),
                header("server", "test"),
            ],
            &[b'x'; 64],
        ),
    )
}

/// What a receiver got.
#[derive(Default)]
struct Seen {
    /// How often each record came, by its number.
    records: Mutex<HashMap<u64, u32>>,
    requests: AtomicU64,
    /// Every so many records of a batch one is refused.
    refuses: AtomicU64,
}

impl Seen {
    fn take(&self, request: ExportLogsServiceRequest) -> ExportLogsServiceResponse {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut records = self.records.lock().unwrap();
        let (mut refused, mut number) = (0, 0);
        for resource in request.resource_logs {
            for record in resource
                .scope_logs
                .into_iter()
                .flat_map(|scope| scope.log_records)
            {
                number += 1;
                let every = self.refuses.load(Ordering::Relaxed);
                if every > 0 && number % every == 0 {
                    refused += 1;
                    continue;
                }
                *records.entry(sequence(&record)).or_default() += 1;
            }
        }
        ExportLogsServiceResponse {
            partial_success: (refused > 0).then(|| ExportLogsPartialSuccess {
                rejected_log_records: refused,
                error_message: "not these".to_owned(),
            }),
        }
    }

    fn numbers(&self) -> Vec<u64> {
        let records = self.records.lock().unwrap();
        let mut numbers: Vec<u64> = records.keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    fn is_each_once(&self) -> bool {
        self.records
            .lock()
            .unwrap()
            .values()
            .all(|count| *count == 1)
    }
}

/// The number in a record's id.
fn sequence(record: &LogRecord) -> u64 {
    let id = record
        .attributes
        .iter()
        .find(|pair| pair.key == "id")
        .unwrap();
    match id.value.as_ref().unwrap().value.as_ref().unwrap() {
        Any::StringValue(id) => id.strip_prefix("7c1f-").unwrap().parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// gRPC, by the library that most receivers are made of.
struct Grpc {
    seen: Arc<Seen>,
    port: u16,
    stop: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

struct Logs(Arc<Seen>);

#[tonic::async_trait]
impl LogsService for Logs {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
        let answer = self.0.take(request.into_inner());
        Ok(tonic::Response::new(answer))
    }
}

impl Grpc {
    fn start(seen: &Arc<Seen>) -> Grpc {
        Grpc::start_at(0, seen)
    }

    fn start_at(port: u16, seen: &Arc<Seen>) -> Grpc {
        let service = LogsServiceServer::new(Logs(Arc::clone(seen)))
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(16 << 20);
        let (told, port_of) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let serve = async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket
                .bind(SocketAddr::from(([127, 0, 0, 1], port)))
                .unwrap();
            let listener = socket.listen(16).unwrap();
            told.send(listener.local_addr().unwrap().port()).unwrap();
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::select! {
                served = server.serve_with_incoming(incoming) => served.unwrap(),
                _ = stopped => {}
            }
        };
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            // Dropped with every connection that it has.
            runtime.unwrap().block_on(serve);
        });
        Grpc {
            seen: Arc::clone(seen),
            port: port_of.recv().unwrap(),
            stop: Some((stop, thread)),
        }
    }

    /// At once, in the middle of whatever is said.
    fn stop(&mut self) {
        if let Some((stop, thread)) = self.stop.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.stop();
    }
}

/// HTTP, with what is to be answered to each request in turn; then 200.
struct Plain {
    seen: Arc<Seen>,
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
    heads: Arc<Mutex<Vec<String>>>,
    port: u16,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Plain {
    fn start(answers: &'static [&'static str]) -> Plain {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut plain = Plain {
            seen: Arc::default(),
            traces: Arc::default(),
            metrics: Arc::default(),
            heads: Arc::default(),
            port: listener.local_addr().unwrap().port(),
            is_over: Arc::default(),
            thread: None,
        };
        let (seen, heads, is_over) = (
            plain.seen.clone(),
            plain.heads.clone(),
            plain.is_over.clone(),
        );
        let (traces, metrics) = (plain.traces.clone(), plain.metrics.clone());
        let answers = Arc::new(Mutex::new(answers.iter()));
        let serve = move || {
            for stream in listener.incoming() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let (seen, heads, answers) = (seen.clone(), heads.clone(), answers.clone());
                let (traces, metrics) = (traces.clone(), metrics.clone());
                let take = move |stream: TcpStream| -> io::Result<()> {
                    let mut stream = BufReader::new(stream);
                    while let Some((head, body)) = request(&mut stream)? {
                        let next = answers.lock().unwrap().next();
                        let answer = match next {
                            Some(status) => {
                                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into()
                            }
                            None if head.starts_with("POST /in/v1/traces ") => {
                                let request = ExportTraceServiceRequest::decode(&*body).unwrap();
                                traces.lock().unwrap().push(request);
                                ok(&[])
                            }
                            None if head.starts_with("POST /in/v1/metrics ") => {
                                let request = ExportMetricsServiceRequest::decode(&*body).unwrap();
                                metrics.lock().unwrap().push(request);
                                ok(&[])
                            }
                            None => {
                                let request = ExportLogsServiceRequest::decode(&*body).unwrap();
                                ok(&seen.take(request).encode_to_vec())
                            }
                        };
                        heads.lock().unwrap().push(head);
                        stream.get_mut().write_all(&answer)?;
                    }
                    Ok(())
                };
                let stream = stream.unwrap();
                thread::spawn(move || {
                    let _ = take(stream);
                });
            }
        };
        plain.thread = Some(thread::spawn(serve));
        plain
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().unwrap().join();
    }
}

fn ok(body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
    answer.extend_from_slice(body);
    answer
}

/// Head in lower case but for its first line, and body without its coding.
fn request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut head = String::new();
    if stream.read_line(&mut head)? == 0 {
        return Ok(None);
    }
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        head.push_str(&line.to_ascii_lowercase());
        line.clear();
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body)?;
    if head.contains("content-encoding: gzip") {
        let packed = std::mem::take(&mut body);
        flate2::read::GzDecoder::new(&*packed).read_to_end(&mut body)?;
    }
    Ok(Some((head, body)))
}

fn count(counts: &[SinkCount]) -> (u64, u64) {
    assert_eq!(counts.len(), 1);
    (counts[0].sent, counts[0].dropped)
}

#[test]
fn each_record_arrives_once_by_grpc() {
    for compression in ["none", "gzip"] {
        let seen = Arc::default();
        let receiver = Grpc::start(&seen);
        let more = format!("compression = \"{compression}\"\nbatch-records = 100");
        let (mut courier, _) = begin(&only(otlp(receiver.port, &more)));
        write(&mut courier, 0..1234);
        assert!(courier.drain(soon()));
        assert_eq!(count(&courier.counts()), (1234, 0));
        assert_eq!(seen.numbers(), (0..1234).collect::<Vec<_>>());
        assert!(receiver.seen.is_each_once());
        let [(local, peer)] = courier.made()[..] else {
            panic!("not one connection")
        };
        assert!(local.port() != 0 && peer.port() == receiver.port);
        assert!(courier.failure().is_none());
        assert_eq!(count(&courier.close(soon())), (1234, 0));
    }
}

#[test]
fn each_record_arrives_once_by_http_whatever_was_answered_before() {
    let receiver = Plain::start(&[
        "503 Service Unavailable\r\nretry-after: 1",
        "429 Too Many Requests",
    ]);
    let more = "protocol = \"http\"\ncompression = \"gzip\"\nheaders = { X-Key = \"hunter2\" }";
    let (mut courier, _) = begin(&only(otlp(receiver.port, more)));
    let start = Instant::now();
    write(&mut courier, 0..100);
    assert!(courier.drain(soon()));
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "it was told to stay away"
    );
    assert_eq!(count(&courier.close(soon())), (100, 0));
    assert_eq!(receiver.seen.numbers(), (0..100).collect::<Vec<_>>());
    assert!(receiver.seen.is_each_once());
    let heads = receiver.heads.lock().unwrap();
    assert_eq!(heads.len(), 3);
    assert!(
        heads[2].starts_with("POST /v1/logs HTTP/1.1"),
        "{}",
        heads[2]
    );
    assert!(heads[2].contains("x-key: hunter2"));
}

#[test]
fn what_is_refused_is_counted_and_never_tried_again() {
    let receiver = Plain::start(&["400 Bad Request"]);
    let more = "protocol = \"http\"\nbatch-records = 10";
    let (mut courier, _) = begin(&only(otlp(receiver.port, more)));
    write(&mut courier, 0..10);
    assert!(courier.drain(soon()));
    assert_eq!(count(&courier.counts()), (0, 10));
    // Of each batch the third, the sixth and the ninth.
    receiver.seen.refuses.store(3, Ordering::Relaxed);
    write(&mut courier, 10..50);
    assert!(courier.drain(soon()));
    assert_eq!(count(&courier.close(soon())), (28, 22));
    assert_eq!(receiver.seen.numbers().len(), 28);
    assert!(receiver.seen.is_each_once());
}

#[test]
fn the_oldest_make_room_while_nobody_answers() {
    // Nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let more = "batch-records = 10\nqueue-records = 100";
    let (mut courier, _) = begin(&only(otlp(port, more)));
    write(&mut courier, 0..10);
    assert!(!courier.drain(Instant::now() + Duration::from_millis(300)));
    write(&mut courier, 10..1010);
    assert!(!courier.drain(Instant::now() + Duration::from_millis(300)));
    assert_eq!(count(&courier.counts()), (0, 900));
    let seen = Arc::default();
    let _receiver = Grpc::start_at(port, &seen);
    assert!(courier.drain(soon()));
    assert_eq!(count(&courier.close(soon())), (110, 900));
    // Those that were under way, and the latest.
    assert_eq!(seen.numbers(), (0..10).chain(910..1010).collect::<Vec<_>>());
}

#[test]
fn what_is_tried_for_too_long_is_dropped() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (mut courier, _) = begin(&only(otlp(port, "retry-for = \"300ms\"")));
    write(&mut courier, 0..10);
    assert!(courier.drain(soon()));
    assert_eq!(count(&courier.close(soon())), (0, 10));
}

#[test]
fn what_a_killed_process_did_not_report_is_dropped() {
    let seen = Arc::default();
    let receiver = Grpc::start(&seen);
    let (mut courier, pid) = begin(&only(otlp(receiver.port, "batch-records = 50")));
    write(&mut courier, 0..1000);
    assert!(courier.drain(soon()));
    write(&mut courier, 1000..3000);
    // The test that runs it, and itself.
    kill_process_group(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    write(&mut courier, 3000..5000);
    assert!(courier.drain(soon()));
    let until = soon();
    while courier.failure().is_none() {
        assert!(
            Instant::now() < until,
            "nobody is left to start another one"
        );
        thread::sleep(Duration::from_millis(1));
    }
    let (sent, dropped) = count(&courier.counts());
    assert!(sent >= 1000, "{sent}");
    assert_eq!(sent + dropped, 5000);
    assert!(
        seen.numbers().len() as u64 >= sent,
        "none is told as sent that did not arrive"
    );
    write(&mut courier, 5000..5010);
    assert_eq!(count(&courier.close(soon())), (sent, dropped + 10));
}

/// It dies in the middle, three times, and its parent starts another: what is said to be sent has arrived, and nothing
/// is counted twice or not at all.
#[test]
fn another_takes_the_place_of_a_killed_one() {
    let seen = Arc::default();
    let receiver = Grpc::start(&seen);
    let starting = this(&only(otlp(receiver.port, "batch-records = 50"))).unwrap();
    let parent = starting.pids().next().unwrap();
    let mut pid = starting.pids().last().unwrap();
    assert_ne!(pid, parent);
    let mut courier = starting.begin(&sample::origin()).unwrap();
    let mut next = 0;
    let mut take = |courier: &mut Courier, count| {
        write(courier, next..next + count);
        next += count;
        next
    };
    take(&mut courier, 1000);
    assert!(courier.drain(soon()));
    assert_eq!(count(&courier.counts()), (1000, 0));
    for round in 1..=3 {
        take(&mut courier, 2000);
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        let mut wait = |what: &str, holds: &dyn Fn(&Courier) -> bool| {
            let until = soon();
            while !holds(&courier) {
                assert!(Instant::now() < until, "{what}");
                take(&mut courier, 1);
                courier.flush();
                thread::sleep(Duration::from_millis(1));
            }
        };
        wait("it is noticed", &|courier| courier.state() == State::Failed);
        wait("another", &|courier| courier.state() != State::Failed);
        let began = take(&mut courier, 500) - 500;
        assert!(courier.drain(soon()));
        let taken = take(&mut courier, 0);
        let (sent, dropped) = count(&courier.counts());
        assert_eq!(sent + dropped, taken, "round {round}");
        assert!(courier.failure().is_none());
        let arrived = seen.numbers();
        assert!(arrived.len() as u64 >= sent, "{} of {sent}", arrived.len());
        assert!((began..taken).all(|number| arrived.contains(&number)));
        let troubles = courier.troubles();
        assert_eq!(troubles.len(), 2, "{troubles:?}");
        let again = format!("{dropped} of its records were dropped");
        assert!(troubles[1].contains(&again), "{troubles:?}, {again}");
        pid = child_of(pid, parent);
    }
    let (sent, dropped) = count(&courier.counts());
    assert_eq!(count(&courier.close(soon())), (sent, dropped));
}

/// Killed while records are everywhere on their way: in a batch, before the socket, in it, and in the queue for a
/// collector that is away. Of each sink, every one of them is sent or dropped.
#[test]
fn what_is_on_its_way_to_a_killed_one_is_dropped() {
    const POURED: u64 = 40_000;
    let seen = Arc::default();
    let receiver = Grpc::start(&seen);
    let free = || {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    };
    let away = format!("endpoint = \"http://{}\"\nsignals = [\"logs\"]", free());
    let settings = Settings {
        otlp: vec![
            otlp(receiver.port, "batch-records = 50"),
            named("away", &away),
        ],
        prometheus: vec![Prometheus {
            name: "page".to_owned(),
            listen: free(),
        }],
        origin: Some(sample::origin()),
    };
    let starting = this(&settings).unwrap();
    let parent = starting.pids().next().unwrap();
    let mut pid = starting.pids().last().unwrap();
    let mut courier = starting.begin(&sample::origin()).unwrap();
    let counts = |courier: &Courier| -> [(u64, u64); 3] {
        let counts = courier.counts().into_iter();
        let counts: Vec<_> = counts.map(|one| (one.sent, one.dropped)).collect();
        counts.try_into().unwrap()
    };
    let wait = |courier: &Courier, what: &str, holds: &dyn Fn(&Courier) -> bool| {
        let until = soon();
        while !holds(courier) {
            assert!(Instant::now() < until, "{what}: {:?}", counts(courier));
            thread::sleep(Duration::from_millis(1));
        }
    };
    let (mut taken, mut sent) = (0, 0);
    for round in 1..=2 {
        write(&mut courier, taken..taken + 1000);
        (taken, sent) = (taken + 1000, sent + 1000);
        wait(&courier, "the first thousand", &|courier| {
            let [here, _, page] = counts(courier);
            (here.0, page.0) == (sent, sent)
        });
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::STOP).unwrap();
        pour(&mut courier, taken..taken + POURED, |_| ());
        taken += POURED;
        assert_eq!(courier.state(), State::Full, "nobody reads");
        for (sent, dropped) in counts(&courier) {
            assert!(sent + dropped < taken, "nothing is on its way");
            assert!(sent + dropped > 1000, "nothing had no room");
        }
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        wait(&courier, "it is noticed", &|courier| {
            courier.state() == State::Failed
        });
        let [here, away, page] = counts(&courier);
        for (sent, dropped) in [here, away, page] {
            assert_eq!(sent + dropped, taken, "round {round}");
        }
        let sent_by_each = [here.0, away.0, page.0];
        assert_eq!(sent_by_each, [sent, 0, sent], "round {round}");
        assert_eq!(seen.numbers().len() as u64, sent);
        let until = soon();
        // The last of these is for the other one, and what was in the batch before is not.
        while courier.state() == State::Failed {
            assert!(Instant::now() < until, "another");
            thread::sleep(Duration::from_millis(10));
            pour(&mut courier, taken..taken + 1, |_| ());
            taken += 1;
        }
        sent += 1;
        pid = child_of(pid, parent);
    }
    // Who waited for the collector that is away is gone, and what comes from here on is not.
    write(&mut courier, taken..taken + 10);
    (taken, sent) = (taken + 10, sent + 10);
    let counts = courier.close(Instant::now() + Duration::from_secs(2));
    let ends = counts.iter().map(|one| (one.sent, one.sent + one.dropped));
    assert_eq!(
        Vec::from_iter(ends),
        [(sent, taken), (0, taken), (sent, taken)]
    );
    assert_eq!(seen.numbers().len() as u64, sent);
    assert!(seen.is_each_once());
}

/// The process that a forked one of `parent` has now, after `before`: a zombie is none.
fn child_of(before: u32, parent: u32) -> u32 {
    let status = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = status(pid)?;
        let mut rest = stat.rsplit(") ").next()?.split(' ');
        (rest.next()? != "Z").then_some(())?;
        rest.next()?.parse().ok()
    };
    let is_below = |pid: u32| {
        let mut above = parent_of(pid);
        while let Some(pid) = above.filter(|pid| *pid > 1 && *pid != parent) {
            above = parent_of(pid);
        }
        above == Some(parent)
    };
    let pids = std::fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let below: Vec<u32> = pids.filter(|pid| is_below(*pid)).collect();
    let is_leaf = |pid: &&u32| below.iter().all(|one| parent_of(*one) != Some(**pid));
    let leaf = below.iter().find(is_leaf).copied().unwrap();
    assert_ne!(leaf, before);
    leaf
}

#[test]
fn it_ends_with_the_pipeline() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (mut courier, pid) = begin(&only(otlp(port, "")));
    write(&mut courier, 0..10);
    let statm = std::fs::File::open(format!("/proc/{pid}/statm")).unwrap();
    let counts = courier.close(Instant::now() + Duration::from_secs(2));
    assert_eq!(count(&counts), (0, 10));
    let until = soon();
    // A zombie has no memory.
    while own_memory(&statm) > 0 {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn spans_and_metrics_arrive_beside_logs() {
    let receiver = Plain::start(&[]);
    let text = format!(
        "endpoint = \"http://localhost:{}/in\"\nprotocol = \"http\"\nmetrics-interval = \"200ms\"",
        receiver.port
    );
    let (mut courier, _) = begin(&only(named("east", &text)));
    write(&mut courier, 0..10);
    assert!(courier.drain(soon()));
    let until = soon();
    while receiver.metrics.lock().unwrap().len() < 2 {
        assert!(Instant::now() < until, "no metrics");
        thread::sleep(Duration::from_millis(20));
    }
    let counts = courier.close(soon());
    let told: Vec<_> = counts
        .iter()
        .map(|one| (&*one.name, one.sent, one.dropped))
        .collect();
    assert_eq!(told, [("east.logs", 10, 0), ("east.traces", 10, 0)]);
    let traces = receiver.traces.lock().unwrap();
    let spans = traces
        .iter()
        .flat_map(|one| &one.resource_spans[0].scope_spans[0].spans);
    assert_eq!(spans.count(), 10);
    let metrics = receiver.metrics.lock().unwrap();
    let last = &metrics.last().unwrap().resource_metrics[0].scope_metrics[0].metrics;
    let names: Vec<_> = last.iter().map(|one| &*one.name).collect();
    assert!(names.contains(&"http.client.request.duration"), "{names:?}");
    assert!(names.contains(&"vortex.sink.sent"), "{names:?}");
}

#[test]
fn the_page_can_be_read_and_nothing_else() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let page = Prometheus {
        name: "prometheus".to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], port)),
    };
    let settings = Settings {
        origin: Some(sample::origin()),
        otlp: Vec::new(),
        prometheus: vec![page],
    };
    let (mut courier, _) = begin(&settings);
    write(&mut courier, 0..10);
    assert!(courier.drain(soon()));
    assert_eq!(count(&courier.counts()), (10, 0));
    let ask = |question: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(question.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let page = ask("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(
        page.contains("http_client_request_duration_seconds_count"),
        "{page}"
    );
    assert!(
        page.contains("vortex_sink_sent_total{sink=\"prometheus\"} 10\n"),
        "{page}"
    );
    assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    // Who says nothing is sent away, and keeps nobody waiting for long.
    let silent: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    assert!(ask("GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
    drop(silent);
    // A second agent.
    let refused = this(&settings).unwrap_err().to_string();
    assert!(
        refused.contains("sink prometheus: listen on 127.0.0.1:"),
        "{refused}"
    );
    courier.close(soon());
}

#[test]
fn a_certificate_that_nobody_signed_is_refused_before_the_start() {
    let otlp = Otlp {
        ca_file: Some("/dev/null".into()),
        endpoint: settings::Endpoint {
            has_tls: true,
            host: "localhost".to_owned(),
            port: 1,
            path: String::new(),
        },
        ..otlp(1, "")
    };
    let error = this(&only(otlp)).unwrap_err().to_string();
    assert!(error.contains("/dev/null"), "{error}");
}

/// `VORTEX_RECORDS` records while the receiver is stopped and started three times: each arrives or is counted.
#[test]
fn stopped_and_started_three_times() {
    let asked = std::env::var("VORTEX_RECORDS").ok();
    let records: u64 = asked.map_or(20_000, |records| records.parse().unwrap());
    let seen: Arc<Seen> = Arc::default();
    let mut receiver = Grpc::start(&seen);
    let port = receiver.port;
    let queue = records / 20;
    let more = format!("batch-records = 512\nqueue-records = {queue}");
    let (mut courier, _) = begin(&only(otlp(port, &more)));
    let start = Instant::now();
    for quarter in 0..4 {
        let (mut from, to) = (quarter * records / 4, (quarter + 1) * records / 4);
        if quarter > 0 {
            // In the middle of a batch, and for more than there is room for.
            write(&mut courier, from..from + 100);
            receiver.stop();
            write(&mut courier, from + 100..from + 2 * queue);
            from += 2 * queue;
            assert!(!courier.drain(Instant::now() + Duration::from_millis(300)));
            receiver = Grpc::start_at(port, &seen);
        }
        // No faster than they are taken: what is dropped was dropped while nobody was there.
        while from < to {
            let some = (to - from).min(queue / 2);
            assert!(courier.drain(soon()));
            write(&mut courier, from..from + some);
            from += some;
        }
    }
    assert!(courier.drain(soon()));
    let time = start.elapsed();
    let (sent, dropped) = count(&courier.close(soon()));
    let arrived = seen.numbers().len() as u64;
    eprintln!(
        "{records} records in {time:?}: {sent} sent, {dropped} dropped, {arrived} arrived in {} requests",
        seen.requests.load(Ordering::Relaxed)
    );
    assert_eq!(sent + dropped, records);
    assert_eq!(arrived, sent);
    assert!(dropped > 0, "the queue was never full");
}

/// A collector and a checker that others wrote: `VORTEX_ROTEL` and `VORTEX_PROMTOOL` say where they are.
#[test]
#[ignore = "needs rotel and promtool"]
fn others_read_what_is_sent() {
    let free = || {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    };
    let (grpc, http, page) = (free(), free(), free());
    let rotel = std::env::var_os("VORTEX_ROTEL").expect("VORTEX_ROTEL");
    let mut log = std::env::temp_dir();
    log.push(format!("vortex-rotel-{}", std::process::id()));
    let out = std::fs::File::create(&log).unwrap();
    let mut rotel = Command::new(rotel)
        .arg("start")
        .args([
            "--otlp-grpc-endpoint",
            &grpc.to_string(),
            "--otlp-http-endpoint",
            &http.to_string(),
        ])
        .args([
            "--exporter",
            "blackhole",
            "--debug-log-verbosity",
            "detailed",
        ])
        .args([
            "--debug-log",
            "logs",
            "--debug-log",
            "traces",
            "--debug-log",
            "metrics",
        ])
        .stdin(std::process::Stdio::null())
        .stderr(out.try_clone().unwrap())
        .stdout(out)
        .spawn()
        .unwrap();
    let of = |name: &str, at: SocketAddr| {
        let text = format!(
            "protocol = \"{name}\"\nendpoint = \"http://{at}\"\ncompression = \"gzip\"\n\
             metrics-interval = \"500ms\""
        );
        named(name, &text)
    };
    let settings = Settings {
        origin: Some(sample::origin()),
        otlp: vec![of("grpc", grpc), of("http", http)],
        prometheus: vec![Prometheus {
            name: "prometheus".to_owned(),
            listen: page,
        }],
    };
    let (mut courier, _) = begin(&settings);
    write(&mut courier, 0..50);
    let is_drained = courier.drain(soon());
    let text = read_page(page);
    thread::sleep(Duration::from_secs(2));
    let counts = courier.close(soon());
    let _ = rotel.kill();
    let _ = rotel.wait();
    let said = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    assert!(is_drained, "{counts:?}");
    assert!(
        counts.iter().all(|one| (one.sent, one.dropped) == (50, 0)),
        "{counts:?}"
    );
    for number in 0..50 {
        // As a log record and as a span, by both protocols.
        let found = said.matches(&format!("7c1f-{number})")).count();
        assert!(found >= 4, "{number}: {found}");
    }
    assert!(said.contains("http.client.request.duration"));
    let promtool = std::env::var_os("VORTEX_PROMTOOL").expect("VORTEX_PROMTOOL");
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let checked = check.wait_with_output().unwrap();
    let complaints = [checked.stdout, checked.stderr].concat();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&complaints)
    );
    assert!(
        complaints.is_empty(),
        "{}",
        String::from_utf8_lossy(&complaints)
    );
}

/// A reader of GenAI spans that others wrote (`pip install arize-phoenix`): `VORTEX_PHOENIX` says where it is.
#[test]
#[ignore = "needs phoenix"]
fn others_read_calls_to_models() {
    let phoenix = std::env::var_os("VORTEX_PHOENIX").expect("VORTEX_PHOENIX");
    let [port, grpc] = [(); 2].map(|()| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    });
    let mut directory = std::env::temp_dir();
    directory.push(format!("vortex-phoenix-{}", std::process::id()));
    let mut phoenix = Command::new(phoenix)
        .arg("serve")
        .env("PHOENIX_WORKING_DIR", &directory)
        .env("PHOENIX_HOST", "127.0.0.1")
        .env("PHOENIX_PORT", port.to_string())
        .env("PHOENIX_GRPC_PORT", grpc.to_string())
        .env("PHOENIX_TELEMETRY_ENABLED", "false")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200 ").then(|| body.to_owned())
    };
    let wait = |path: &str, is_it: &dyn Fn(&str) -> bool| {
        for _ in 0..600 {
            if let Some(answer) = ask(path).filter(|answer| is_it(answer)) {
                return Some(answer);
            }
            thread::sleep(Duration::from_millis(100));
        }
        None
    };
    let is_ready = wait("/healthz", &|_| true).is_some();
    let lines = include_str!("../../../tests/scenarios/llm.ndjson").lines();
    let lines = lines.filter(|line| line.contains(r#""kind":"llm""#));
    let lines: Vec<_> = lines.map(|line| Bytes::from(line.to_owned())).collect();
    let resource = resource::Resource::new(&sample::origin());
    let request = span::request(&lines, &resource).encode_to_vec();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        request.len()
    );
    stream
        .write_all(&[head.as_bytes(), &request].concat())
        .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let spans = wait("/v1/projects/default/spans?limit=100", &|answer| {
        answer.matches("gen_ai.operation.name").count() >= lines.len()
    });
    let _ = phoenix.kill();
    let _ = phoenix.wait();
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(is_ready, "phoenix did not start");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let spans = spans.expect("no spans");
    println!("{spans}");
    assert!(lines.len() > 1);
    // Its own words for what it understood.
    for words in [
        r#""llm.token_count.prompt":25"#,
        r#""llm.model_name":"claude-sonnet-4-5"#,
        r#""span_kind":"LLM""#,
    ] {
        assert!(spans.contains(words), "{words}");
    }
}

/// What is on it, without the head.
fn read_page(at: SocketAddr) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// How fast records of 1 KiB get to a receiver.
#[test]
#[ignore = "a measurement, for --release"]
fn rate() {
    for protocol in ["grpc", "http"] {
        for compression in ["none", "gzip"] {
            let more = format!("protocol = \"{protocol}\"\ncompression = \"{compression}\"");
            let seen: Arc<Seen> = Arc::default();
            let (grpc, plain);
            let (port, seen) = if protocol == "grpc" {
                grpc = Grpc::start(&seen);
                (grpc.port, seen)
            } else {
                plain = Plain::start(&[]);
                (plain.port, plain.seen.clone())
            };
            let (mut courier, _) = begin(&only(otlp(port, &more)));
            let records = 200_000;
            let start = Instant::now();
            // No faster than it goes: nothing is to be dropped.
            for from in (0..records).step_by(20_000) {
                write(&mut courier, from..from + 20_000);
                assert!(courier.drain(soon()));
            }
            let time = start.elapsed();
            assert_eq!(count(&courier.counts()), (records, 0));
            assert_eq!(seen.numbers().len() as u64, records);
            let (micros, memory) = courier.usage();
            courier.close(soon());
            println!(
                "{protocol} {compression}: {:.0} records/s, {:.1} µs of CPU each, {} MiB",
                records as f64 / time.as_secs_f64(),
                micros as f64 / records as f64,
                memory >> 20
            );
        }
    }
}
