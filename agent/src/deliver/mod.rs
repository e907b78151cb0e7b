//! `vortex-agent deliver`: the process that has a network, and nothing else. Started by the pipeline, of no use by
//! itself.
//!
//! The pipeline reads what strangers wrote and can't make a connection; here connections are made, and strangers are
//! the collectors and who reads the page. What comes in are records behind redaction, as lines of JSON; what goes back
//! is how many of them became what.
//!
//! ```text
//! courier ─► socket ─┬─► lane (bounded) ─► log or span ─► OTLP ─► client ─► collector
//! (pipeline)         └─► meter ─┬─► metric ─► OTLP ─► client ─► collector
//!                               └─► page ◄─ Prometheus
//! ```
//! It ends when its socket does. Should it die, its parent starts another: the pipeline can't start a process any
//! more, so that one is left behind for it before the lock-in. It holds all that was opened, forks whoever delivers,
//! and gives the pipeline a new socket; it reads nothing. What the dead one did not report as sent is counted as
//! dropped.

mod courier;
mod lane;
mod line;
mod meter;
pub mod settings;
mod wire;

#[cfg(feature = "otlp")]
mod client;
#[cfg(feature = "otlp")]
mod log;
#[cfg(feature = "otlp")]
mod metric;
#[cfg(feature = "otlp")]
mod otlp;
#[cfg(feature = "otlp")]
mod queue;
#[cfg(feature = "otlp")]
mod resource;
#[cfg(feature = "otlp")]
mod retry;
#[cfg(feature = "otlp")]
mod span;

#[cfg(feature = "prometheus")]
mod prometheus;

#[cfg(all(test, feature = "otlp", feature = "prometheus"))]
mod tests;

use std::{
    fs::File,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, open},
    io::{fcntl_dupfd_cloexec, retry_on_intr},
    net::{SocketType, sockopt::socket_type},
    process::{Pid, WaitOptions, waitpid},
    stdio::{dup2_stdin, stdin},
    time::ClockId,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::Notify,
    time::{Instant, sleep, timeout},
};

pub use courier::{Courier, Gone, StartError, Starting, start};
pub use settings::Settings;

use self::{
    lane::Lane,
    line::Line,
    meter::{Family, Meter},
    settings::Kinds,
    wire::Report,
};
use crate::{
    clock::nanoseconds,
    complain::complain,
    confine::{Identity, Mode as SeccompMode, Network, harden, lock_in_with_network, resign},
    helper::call_ourselves,
    launch::ignore_signals,
    run::own_memory,
};

/// Between two reports: short enough for who waits for one, long enough to cost nothing.
const REPORT_PAUSE: Duration = Duration::from_millis(10);
/// And when nothing happened.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The whole process.
pub fn deliver() -> ExitCode {
    call_ourselves(c"vortex-starter");
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    harden().context("make the process undumpable")?;
    ignore_signals();
    let mut socket = inherit()?;
    let (letter, settings) = wire::read(&mut socket).context("read the settings")?;
    if letter != wire::SETTINGS {
        bail!("`deliver` is started by `vortex-agent run`: stdin is no socket of an agent");
    }
    let settings: Settings = serde_json::from_slice(&settings).context("read the settings")?;
    let ports = settings.otlp.iter().map(|otlp| otlp.endpoint.port);
    let network = Network {
        ports: ports.collect(),
    };
    let ready = prepare(&settings).and_then(|work| {
        resign(Identity::default(), SeccompMode::Enforce)?;
        Ok(work)
    });
    let (work, why) = match ready {
        Ok(work) => (Some(work), String::new()),
        // The pipeline says it, in one line, with its exit status.
        Err(error) => (None, format!("{error:#}")),
    };
    socket.write_all(&wire::head(wire::READY, why.len()))?;
    socket.write_all(why.as_bytes())?;
    let Some(work) = work else {
        return Ok(());
    };
    start_again(socket, work, &network)
}

/// How long nobody delivers after one has died, at first and at most: twice as long each time.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Forks who delivers, and another one whenever it has died, until the pipeline has gone. `control` is how the pipeline
/// gets the socket of each.
fn start_again(control: UnixStream, work: Work, network: &Network) -> Result<()> {
    let mut pause = PAUSE_FIRST;
    loop {
        let began = std::time::Instant::now();
        let (socket, theirs) = UnixStream::pair().context("make a socket")?;
        // SAFETY: this process has one thread, so the child may do anything.
        let pid = match unsafe { libc::fork() } {
            0 => {
                drop((control, theirs));
                call_ourselves(c"vortex-deliver");
                let ended = serve(socket, work, network);
                if let Err(error) = &ended {
                    complain(format_args!("{error:#}"));
                }
                // SAFETY: ends this process, and runs nothing of its parent's.
                unsafe { libc::_exit(ended.is_err().into()) }
            }
            pid => Pid::from_raw(pid),
        };
        drop(socket);
        let Some(pid) = pid else {
            bail!("fork: {}", io::Error::last_os_error());
        };
        let number = pid.as_raw_pid().unsigned_abs();
        wire::send_socket(&control, &theirs, number).context("tell the pipeline")?;
        drop(theirs);
        let ended = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))?;
        // The pipeline has closed its end.
        if ended.is_some_and(|(_, status)| status.exit_status() == Some(0)) {
            return Ok(());
        }
        if began.elapsed() > PAUSE_MAX {
            pause = PAUSE_FIRST;
        }
        let time = Timespec::try_from(pause).expect("a minute at most");
        let mut gone = [PollFd::new(&control, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut gone, Some(&time)))? > 0 {
            return Ok(());
        }
        pause = PAUSE_MAX.min(pause * 2);
    }
}

/// The process that delivers.
fn serve(socket: UnixStream, work: Work, network: &Network) -> Result<()> {
    let statm = File::open("/proc/self/statm").context("open /proc/self/statm")?;
    lock_in_with_network(SeccompMode::Enforce, network)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    socket.set_nonblocking(true)?;
    let ended = runtime.block_on(work.serve(socket, statm));
    // Who still waits for a name server is not waited for.
    runtime.shutdown_background();
    ended
}

/// The socket, which is stdin, kept from whoever else may read that.
fn inherit() -> Result<UnixStream> {
    if socket_type(stdin()) != Ok(SocketType::STREAM) {
        bail!("`deliver` is started by `vortex-agent run`: stdin is no socket of an agent");
    }
    let socket = fcntl_dupfd_cloexec(stdin(), 3).context("keep the socket")?;
    let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    dup2_stdin(null).context("replace stdin")?;
    Ok(OwnedFd::into(socket))
}

/// Everything that needs a file or a right, before any of it begins.
struct Work {
    lanes: Lanes,
    #[cfg(feature = "otlp")]
    senders: Vec<(Arc<queue::Queued>, otlp::Exporter, Duration)>,
    #[cfg(feature = "otlp")]
    metrics: Vec<metric::Export>,
    #[cfg(feature = "prometheus")]
    pages: Vec<std::net::TcpListener>,
    /// Who makes connections says so here.
    #[cfg(feature = "otlp")]
    making: client::Made,
    #[cfg(feature = "otlp")]
    made: tokio::sync::mpsc::Receiver<client::Told>,
    settled: Arc<Notify>,
}

/// Where records go.
#[derive(Clone)]
struct Lanes {
    lanes: Vec<Arc<dyn Lane>>,
    meter: Arc<Mutex<Meter>>,
    metered: Kinds,
}

fn prepare(settings: &Settings) -> Result<Work> {
    if settings.lanes().len() > wire::MASK * 8 {
        bail!(
            "OTLP and Prometheus: there are more than {} sinks",
            wire::MASK * 8
        );
    }
    #[cfg(feature = "otlp")]
    let (making, made) = tokio::sync::mpsc::channel(1);
    let mut work = Work {
        lanes: Lanes {
            lanes: Vec::new(),
            meter: Arc::default(),
            metered: settings.metered(),
        },
        #[cfg(feature = "otlp")]
        senders: Vec::new(),
        #[cfg(feature = "otlp")]
        metrics: Vec::new(),
        #[cfg(feature = "prometheus")]
        pages: Vec::new(),
        #[cfg(feature = "otlp")]
        making,
        #[cfg(feature = "otlp")]
        made,
        settled: Arc::new(Notify::new()),
    };
    let mut lanes = settings.lanes().into_iter();
    for otlp in &settings.otlp {
        let collector = work.collector(settings, otlp, &mut lanes);
        collector.with_context(|| format!("sink {}", otlp.name))?;
    }
    for page in &settings.prometheus {
        let listening = work.page(page, &mut lanes);
        listening.with_context(|| format!("sink {}: listen on {}", page.name, page.listen))?;
    }
    Ok(work)
}

impl Work {
    /// The lanes of a collector, in the order of [`Settings::lanes`].
    #[cfg(feature = "otlp")]
    fn collector(
        &mut self,
        settings: &Settings,
        otlp: &settings::Otlp,
        lanes: &mut impl Iterator<Item = settings::Lane>,
    ) -> Result<()> {
        let origin = settings.origin.as_ref().context("no origin was told")?;
        let resource = resource::Resource::new(origin);
        for signal in &otlp.signals {
            let exporter = otlp::Exporter::new(otlp, *signal, &resource, &self.making)?;
            if *signal == settings::Signal::Metrics {
                self.metrics
                    .push(metric::Export::new(otlp, exporter, &resource));
                continue;
            }
            let lane = lanes.next().context("no lane for a signal")?;
            let settled = Arc::clone(&self.settled);
            let lane = Arc::new(queue::Queued::new(
                lane.name, otlp.batch, otlp.queue, settled,
            ));
            self.lanes.lanes.push(lane.clone());
            self.senders.push((lane, exporter, otlp.retry_for));
        }
        Ok(())
    }

    #[cfg(not(feature = "otlp"))]
    fn collector(
        &mut self,
        _: &Settings,
        _: &settings::Otlp,
        _: &mut impl Iterator<Item = settings::Lane>,
    ) -> Result<()> {
        bail!("this agent was built without the feature `otlp`")
    }

    #[cfg(feature = "prometheus")]
    fn page(
        &mut self,
        page: &settings::Prometheus,
        lanes: &mut impl Iterator<Item = settings::Lane>,
    ) -> Result<()> {
        let listener = std::net::TcpListener::bind(page.listen)?;
        listener.set_nonblocking(true)?;
        self.pages.push(listener);
        let lane = lanes.next().context("no lane for a page")?;
        self.lanes
            .lanes
            .push(Arc::new(prometheus::Counted::new(lane.name)));
        Ok(())
    }

    #[cfg(not(feature = "prometheus"))]
    fn page(
        &mut self,
        _: &settings::Prometheus,
        _: &mut impl Iterator<Item = settings::Lane>,
    ) -> Result<()> {
        bail!("this agent was built without the feature `prometheus`")
    }

    /// Until the pipeline closes its end.
    async fn serve(self, socket: UnixStream, statm: File) -> Result<()> {
        let socket = tokio::net::UnixStream::from_std(socket).context("watch the socket")?;
        let (from, to) = socket.into_split();
        let to = Arc::new(tokio::sync::Mutex::new(to));
        #[cfg(feature = "otlp")]
        tokio::spawn(announce(self.made, Arc::clone(&to)));
        #[cfg(feature = "otlp")]
        for (lane, exporter, retry_for) in self.senders {
            tokio::spawn(lane.run(exporter, retry_for));
        }
        #[cfg(feature = "otlp")]
        for export in self.metrics {
            let lanes = self.lanes.clone();
            tokio::spawn(export.run(move || lanes.families()));
        }
        #[cfg(feature = "prometheus")]
        for listener in self.pages {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let lanes = self.lanes.clone();
            tokio::spawn(prometheus::serve(listener, move || lanes.families()));
        }
        let barriers = Arc::new(Barriers::default());
        let reporter = Reporter {
            lanes: self.lanes.lanes.clone(),
            barriers: Arc::clone(&barriers),
            settled: Arc::clone(&self.settled),
            statm,
        };
        tokio::spawn(reporter.run(to));
        self.lanes.take(from, &barriers, &self.settled).await;
        Ok(())
    }
}

/// Barriers that are not reached yet, and up to which line each lane must be settled for them.
type Barriers = Mutex<Vec<(u64, Vec<u64>)>>;

impl Lanes {
    /// Passes on what comes.
    async fn take(&self, mut from: OwnedReadHalf, barriers: &Barriers, settled: &Notify) {
        while let Ok((letter, bytes)) = wire::receive(&mut from).await {
            match letter {
                wire::RECORDS => self.records(bytes.into()),
                wire::BARRIER => {
                    let number = bytes.try_into().map_or(0, u64::from_le_bytes);
                    let to = self.lanes.iter().map(|lane| lane.hurry()).collect();
                    let mut barriers = barriers.lock().unwrap_or_else(PoisonError::into_inner);
                    barriers.push((number, to));
                    settled.notify_one();
                }
                _ => return,
            }
        }
    }

    fn records(&self, frame: Bytes) {
        let now = Instant::now();
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = frame;
        while let Some((mask, _)) = rest.split_first_chunk::<{ wire::MASK }>() {
            let mask = u32::from_le_bytes(*mask);
            // The last one ends with the frame.
            let length = memchr::memchr(b'\n', &rest[wire::MASK..]);
            let end = length.map_or(rest.len(), |length| wire::MASK + length + 1);
            let line = rest.split_to(end).split_off(wire::MASK);
            if line::kind(&line).is_some_and(|kind| self.metered.holds(kind))
                && let Some(line) = Line::read(&line)
            {
                meter.take(line);
            }
            let lanes = self.lanes.iter().enumerate();
            for (_, lane) in lanes.filter(|(at, _)| mask >> at & 1 == 1) {
                lane.push(line.clone(), now);
            }
        }
    }

    /// What the meter has, and what became of records here.
    fn families(&self) -> Vec<Family> {
        let meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let mut families = meter.families();
        drop(meter);
        let sink = |lane: &Arc<dyn Lane>| meter::Sink {
            name: lane.name().to_owned(),
            sent: lane.count().sent,
            dropped: lane.causes(),
        };
        let sinks: Vec<_> = self.lanes.iter().map(sink).collect();
        families.extend(meter::of_sinks(&sinks));
        families
    }
}

/// The way back, a frame at a time.
type Writing = Arc<tokio::sync::Mutex<OwnedWriteHalf>>;

/// Tells the pipeline what became of its records.
struct Reporter {
    lanes: Vec<Arc<dyn Lane>>,
    barriers: Arc<Barriers>,
    settled: Arc<Notify>,
    statm: File,
}

impl Reporter {
    async fn run(self, to: Writing) {
        let mut reached = 0;
        loop {
            let _ = timeout(REPORT_INTERVAL, self.settled.notified()).await;
            reached = self.reached(reached);
            let report = Report {
                reached,
                lanes: self.lanes.iter().map(|lane| lane.count()).collect(),
                cpu_micros: nanoseconds(ClockId::ProcessCPUTime) / 1000,
                memory_bytes: own_memory(&self.statm),
            };
            // Who reads no more has closed the other end, too.
            if send(&to, wire::REPORT, &report).await.is_err() {
                return;
            }
            sleep(REPORT_PAUSE).await;
        }
    }

    /// Before the counts are taken: they hold at least what was settled then.
    fn reached(&self, before: u64) -> u64 {
        let is_settled = |to: &[u64]| {
            let mut lanes = self.lanes.iter().zip(to);
            lanes.all(|(lane, to)| lane.is_settled(*to))
        };
        let mut barriers = self.barriers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reached = before;
        barriers.retain(|(number, to)| {
            let is_reached = is_settled(to);
            if is_reached {
                reached = reached.max(*number);
            }
            !is_reached
        });
        reached
    }
}

/// Tells of each connection, and then lets it be used.
#[cfg(feature = "otlp")]
async fn announce(mut made: tokio::sync::mpsc::Receiver<client::Told>, to: Writing) {
    while let Some((ends, told)) = made.recv().await {
        if send(&to, wire::MADE, &ends).await.is_err() {
            return;
        }
        // Who gave up has no use for it.
        let _ = told.send(());
    }
}

async fn send(to: &Writing, letter: u8, what: &impl serde::Serialize) -> io::Result<()> {
    let what = serde_json::to_vec(what)?;
    let mut to = to.lock().await;
    to.write_all(&wire::head(letter, what.len())).await?;
    to.write_all(&what).await
}
