//! `vortex-agent run`: the unprivileged half. Starts the other one and CMD, locks itself in, and then
//! moves what comes through the line until it ends. The only file that waits.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_ebpf::{calls, cause, control, counter, filter, socket};
use anyhow::{Context as _, Error, Result, anyhow, bail};
use rustix::{
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
        timerfd_create, timerfd_settime,
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{Signal as Signals, SignalKind, signal},
};

use crate::{
    ahead::{Ahead, ahead},
    attribute::Attention,
    cache::{Cache, Opened},
    cgroup::Groups,
    cli::{Attach, Run},
    clock::{nanoseconds, since_boot as now, to_wall},
    command::{AGENT_FAILED, Child, Program, leave_keyboard_to_cmd},
    complain::complain,
    config::Config,
    confine::{Identity, Landlock, Mode as SeccompMode, harden, lock_in},
    coverage::User as Mapper,
    daemon::{Service, mention_another},
    governor::{Governor, Pause},
    half::{
        self, Choice, Connected, FileId, Filter, Finding, Hello, OWN_FILE, Order, Pending,
        Received, Report, Silent, Sockets,
    },
    input::{Count, Input},
    launch::{self, Half},
    learned::{self, Keeper},
    ledger::ledger,
    locate::{Found as Library, Pread, Refusal, Signature, is_named_like_one},
    map::Chart,
    metadata::{self, Answer, Asked, Question, Sockets as Runtimes},
    namespace,
    obstacle::Obstacle,
    pipeline::{Pipeline, Wanted},
    protocol::exchange::Bounds,
    reader::Meant,
    recording::{Header, Recorder},
    redact::{Key, Policy},
    ring::{Control, Counters, Next, Ring},
    shed::Shed,
    sink::{End as OutputsEnd, Origin, Ready, Sinks, Target},
    user::User,
    worker::Workers,
};

/// Exit statuses without CMD.
pub const FAILED: u8 = 1;
pub const MISUSE: u8 = 2;

/// The whole command; returns the exit status.
pub fn run(arguments: &Run) -> ExitCode {
    let config = match arguments.config() {
        Ok(config) => config,
        Err(error) => {
            complain(&error);
            return MISUSE.into();
        }
    };
    told(watch(&config, &arguments.command, None))
}

/// The whole machine, for a daemon.
pub fn serve(config: &Config, service: Service) -> ExitCode {
    told(watch(config, &[], Some(service)))
}

fn told(ended: Result<u8, Failed>) -> ExitCode {
    match ended {
        Ok(code) => code.into(),
        Err(Failed { code, error }) => {
            complain(&error);
            code.into()
        }
    }
}

struct Failed {
    code: u8,
    error: anyhow::Error,
}

/// Everything up to the lock-in, in the order that `ARCHITECTURE.md` explains.
fn watch(config: &Config, words: &[OsString], service: Option<Service>) -> Result<u8, Failed> {
    let is_service = service.is_some();
    let agent_failed = |error: anyhow::Error| {
        let code = match Obstacle::of(&error) {
            Some(obstacle) if is_service => obstacle.status(),
            _ if words.is_empty() => FAILED,
            _ => AGENT_FAILED,
        };
        Failed { code, error }
    };

    if !namespace::is_initial() {
        let is_named = !words.is_empty() || !config.filter.pids.is_empty();
        let why = match namespace::has_own_proc() {
            _ if !is_named => Some(namespace::NOT_INITIAL),
            false => Some(namespace::FOREIGN_PROC),
            true => None,
        };
        if let Some(why) = why {
            return Err(agent_failed(Obstacle::Configuration.mark(anyhow!(why))));
        }
    }
    let core = harden()
        .context("make the process undumpable")
        .map_err(agent_failed)?;
    let is_machine_wide = words.is_empty() && config.filter.pids.is_empty();
    if is_machine_wide && service.is_none() {
        mention_another(config);
    }
    let outputs = Outputs::open(config, !words.is_empty()).map_err(agent_failed)?;
    let program = match words {
        [] => None,
        words => Some(program(words).map_err(|(code, error)| Failed { code, error })?),
    };
    let watched = open_watched(config).map_err(agent_failed)?;
    let cache = config.cache_directory.as_deref();
    let cache = cache.map(Opened::open).transpose().map_err(agent_failed)?;
    let learned = config.baseline.as_deref();
    let learned = learned
        .map(learned::Opened::open)
        .transpose()
        .map_err(agent_failed)?;
    let asked = ask_runtimes(config, words).map_err(agent_failed)?;
    let options = Attach {
        ring_size: config.ring_size,
        gauge: config.traced_cpu.is_some(),
        plain: config.plain.clone(),
        ..Attach::default()
    };
    let starting = launch::start(&options).map_err(|error| agent_failed(error.into()))?;
    let command = match &program {
        None => None,
        Some(program) => Some(Command {
            child: program
                .hold(core)
                .map_err(|error| agent_failed(error.into()))?,
            uid: program
                .user()
                .map_or_else(|| rustix::process::getuid().as_raw(), |user| user.uid),
            ahead: ahead(program),
        }),
    };
    ignore_file_limit();
    let half = starting
        .meet()
        .map_err(|error| agent_failed(error.into()))?;
    if command.is_some() {
        leave_keyboard_to_cmd();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("start the event loop")
        .map_err(agent_failed)?;
    runtime
        .block_on(async {
            let beside = Beside {
                asked,
                service,
                learned,
            };
            Session::start(config, outputs, half, command, watched, cache, beside)?
                .run()
                .await
        })
        .map_err(agent_failed)
}

/// An output file that reaches RLIMIT_FSIZE is an error of the output, not our end. CMD exists already and
/// keeps the default.
pub fn ignore_file_limit() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Tells the line what other runs have learned. Who writes what this one does.
fn remember(opened: learned::Opened, pipeline: &mut Pipeline) -> Result<Keeper> {
    let (learned, file) = opened.parse();
    if learned.is_damaged {
        complain("baseline: nothing in it can be read, so what is usual is learned anew");
    }
    let keeper =
        Keeper::start(file, &learned).context("start the thread that keeps the baseline")?;
    if let Some(baseline) = learned.baseline {
        pipeline.remember(baseline);
    }
    Ok(keeper)
}

/// Starts the process that asks container runtimes, if there are any to be asked: on behalf of root, whose sockets
/// they are.
fn ask_runtimes(config: &Config, words: &[OsString]) -> Result<Option<Asked>> {
    let is_root = rustix::process::geteuid().is_root();
    let runtimes = match &config.runtimes {
        Some(named) => named.clone(),
        None if is_root && words.is_empty() => Runtimes::found(),
        None => Runtimes::default(),
    };
    let is_needed = !config.filter.names.is_empty();
    if !is_root && (is_needed || !runtimes.is_empty()) {
        return Err(Obstacle::Rights.mark(anyhow!(
            "names of containers are asked of their runtimes, whose sockets are root's: run as root"
        )));
    }
    if runtimes.is_empty() {
        if is_needed {
            bail!(
                "--container, --pod, --namespace and --label ask a container runtime, and no socket of one was \
                 found: name it below [metadata] in a file for --config"
            );
        }
        return Ok(None);
    }
    metadata::start(&runtimes)
        .context("start the process that asks container runtimes")
        .map(Some)
}

/// CMD, with the errors that have an exit status of their own.
fn program(words: &[OsString]) -> Result<Program, (u8, anyhow::Error)> {
    let user = User::behind_sudo().map_err(|error| (AGENT_FAILED, error.into()))?;
    let program = Program::new(words, user).map_err(|error| (error.code(), error.into()))?;
    // Asked early: a typing error should not cost a password.
    program
        .executable()
        .map_err(|error| (error.code(), error.into()))?;
    Ok(program)
}

/// What is written.
struct Outputs {
    origin: Origin,
    records: Ready,
    recording: Option<Target>,
}

impl Outputs {
    fn open(config: &Config, with_command: bool) -> Result<Outputs> {
        let origin = Origin::new().context("make an id for this run")?;
        let records = Ready::open(&config.sinks, with_command, &origin)?;
        let recording = config.record.as_deref().map(Target::file).transpose();
        let recording = recording.context("--record")?;
        if let Some(recording) = &recording
            && records.writes_to(recording)?
        {
            return Err(Obstacle::Configuration.mark(anyhow!(
                "--record: records go to the same file; name another one"
            )));
        }
        Ok(Outputs {
            origin,
            records,
            recording,
        })
    }
}

/// What a run of the whole machine may have besides.
struct Beside {
    /// Who asks container runtimes.
    asked: Option<Asked>,
    service: Option<Service>,
    /// What findings have learned before.
    learned: Option<learned::Opened>,
}

/// What the filter names and can be opened only now.
struct Watched {
    /// By pid, so that we know when the last of them is gone.
    processes: Vec<(u32, OwnedFd)>,
    groups: Groups,
    /// What the half was not told of yet.
    directories: Vec<OwnedFd>,
}

fn open_watched(config: &Config) -> Result<Watched> {
    let processes = config
        .filter
        .pids
        .iter()
        .map(|pid| {
            if *pid == std::process::id() {
                bail!("watch process {pid}: that is this agent, which never records itself");
            }
            let raw = Pid::from_raw(*pid as i32).context("a process id is above 0")?;
            let fd = pidfd_open(raw, PidfdFlags::empty())
                .with_context(|| format!("watch process {pid}: is it running, and a process?"))?;
            Ok((*pid, fd))
        })
        .collect::<Result<_>>()?;
    let (groups, directories) = Groups::open(&config.filter.cgroups)?;
    Ok(Watched {
        processes,
        groups,
        directories,
    })
}

/// CMD behind its barrier, and the files to probe before it runs.
struct Command {
    child: Child,
    /// Whom it runs as.
    uid: u32,
    ahead: Vec<Ahead>,
}

/// A process that the half has stopped.
struct Held {
    /// Its id in our pid namespace.
    here: u32,
    until: Instant,
}

impl Held {
    fn go_on(self) {
        // 0 and below are not processes but groups of them.
        let pid = i32::try_from(self.here).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::CONT);
        }
    }
}

/// A file that is searched for points.
struct Locating {
    path: String,
    /// It is to be sent with them.
    own: Option<Arc<OwnedFd>>,
}

/// Waits until the records before it are out of the ring.
enum Late {
    Pending(Vec<Pending>),
    Ended(u32),
    LetGo(FileId),
    Placed { pid: u32, is_outside: bool },
}

/// Shared memory with the kernel side.
struct Shared {
    ring: Ring,
    counters: Counters,
    control: Control,
    /// How often each point was met, by its slot.
    calls: Counters,
}

/// The state of one run after the lock-in.
struct Session {
    config: Config,
    half: Option<Half>,
    shared: Option<Shared>,
    command: Option<Command>,
    watched: Watched,
    line: Line,
    /// Who asks container runtimes, until it ends.
    asked: Option<Asked>,
    /// Ids of containers that are to be asked for, and were not sent yet.
    nameless: VecDeque<String>,
    /// Not sent yet, with their descriptors.
    orders: VecDeque<(Order, Option<Arc<OwnedFd>>)>,
    /// What is searched for points: hostile or huge, so not by the thread that reads the ring.
    locating: HashMap<FileId, Locating>,
    workers: Workers<FileId, Result<Library, Refusal>>,
    cache: Arc<Cache>,
    /// Keeps what findings have learned.
    keeper: Option<Keeper>,
    next_keep: Instant,
    signatures: Arc<[Signature]>,
    /// Files that CMD needs and the half has not answered yet: it waits for them.
    unanswered: HashSet<FileId>,
    filter_set: bool,
    /// Processes that the half has stopped.
    held: HashMap<u32, Held>,
    landlock: Landlock,
    /// CPU time and memory of the half, as it said last.
    half_usage: (u64, u64),
    /// Our processes that the half does not know by itself.
    own: Vec<u32>,
    surveyed: bool,
    /// Since when the half has been asked to catch up, in nanoseconds since boot, and has not answered.
    catching_up: Option<u64>,
    /// What the half said of the end of streams and processes, and where the ring's producer was then: the half
    /// is a channel of its own, and may be ahead of their last records.
    late: VecDeque<(u64, Late)>,
    command_ran: bool,
    /// There is no later: what the sink has no room for is dropped.
    ending: bool,
    statm: fs::File,
    shed: Shed,
    governor: Governor,
    next_stats: Instant,
    next_clock: Instant,
    signals: Caught,
    pace: AsyncFd<OwnedFd>,
    /// What a daemon has besides.
    service: Option<Service>,
    start: Start,
    is_reader_gone: bool,
    changing: Option<Change>,
    /// What is to follow when it has.
    next: Option<Meant>,
}

/// How far the half is with another filter.
enum Change {
    /// Who is wanted no more leaves.
    Leaving,
    /// Who is wanted from now on comes in.
    Joining,
}

/// What a daemon waits for before it is ready: that the half has looked at what is mapped already, and that each file
/// which it found there is answered.
#[derive(Default)]
struct Start {
    /// Surveys that were ordered, and those that were answered: the half answers when it has done what came before.
    ordered: u64,
    answered: u64,
    /// The one that was ordered when the filter was in force.
    scanned: Option<u64>,
    mapped: HashSet<FileId>,
    /// Probed, or never to be.
    settled: HashSet<FileId>,
}

impl Start {
    fn is_over(&self) -> bool {
        self.scanned.is_some_and(|number| self.answered >= number)
            && self.mapped.is_subset(&self.settled)
    }
}

/// The line between its ends. What it is told is recorded before it is told.
struct Line {
    pipeline: Pipeline,
    recorder: Option<Recorder>,
    sinks: Sinks,
    /// For those who ask a daemon.
    chart: Option<Chart>,
}

impl Line {
    fn tell(&mut self, input: Input<'_>, now: u64) {
        if let Some(recorder) = &mut self.recorder {
            recorder.write(&input, now);
        }
        let Line {
            pipeline,
            sinks,
            chart,
            ..
        } = self;
        pipeline.take(input, now, &mut |record| {
            sinks.write(record);
            if let Some(chart) = chart {
                chart.hear(record);
            }
        });
    }

    /// Could what comes next find no room?
    fn is_full(&self) -> bool {
        let is_recorder_full = self.recorder.as_ref().is_some_and(Recorder::is_full);
        is_recorder_full || self.sinks.is_full()
    }
}

struct Caught {
    interrupt: Option<Signals>,
    terminate: Signals,
    hangup: Signals,
    /// SIGTERM or SIGHUP came before.
    asked: bool,
}

/// What wakes the loop, each where there is such a thing.
struct Wakers {
    half: Option<AsyncFd<OwnedFd>>,
    ring: Option<AsyncFd<OwnedFd>>,
    command: Option<AsyncFd<OwnedFd>>,
    /// Who asks container runtimes has an answer.
    asked: Option<AsyncFd<OwnedFd>>,
    /// A file was searched.
    located: Option<AsyncFd<OwnedFd>>,
    /// Somebody asks a daemon how it is.
    door: Option<AsyncFd<OwnedFd>>,
    /// Somebody asks a daemon for its map.
    map_door: Option<AsyncFd<OwnedFd>>,
    /// Its settings were read again.
    reader: Option<AsyncFd<OwnedFd>>,
}

/// What ends a run.
enum End {
    CommandDone,
    /// Exit status without CMD.
    Asked(u8),
}

/// While data flows the ring is looked at by the clock and nobody has to wake us: this often, and more
/// often while each look finds much.
const LOOK: Duration = Duration::from_millis(1);
const LOOK_BUSY: Duration = Duration::from_micros(200);
const BUSY_BYTES: usize = 512 << 10;
/// Looks that find nothing before we sleep. A call that must wake us costs its program 10 µs.
const EMPTY_LOOKS: u32 = 20;
/// Net below the wake-up: arm64's relaxed atomics are no barrier.
const SLEEP: Duration = Duration::from_millis(500);
/// While the redactor holds text back that may be shown soon.
const NAP: Duration = Duration::from_millis(20);
/// Records between two looks at everything else.
const BATCH: usize = 1024;
/// The longest search of one file; 300 MB take a second.
const LOCATING: Duration = Duration::from_secs(10);
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// So much later than the half should have, we let a process go: the net below it.
const HELD_NET: Duration = Duration::from_secs(1);
/// From the end of CMD: until the ring is drained, until the half has answered, until the output is
/// written. Together below half a second.
const DRAIN: Duration = Duration::from_millis(100);
const LAST_SURVEY: Duration = Duration::from_millis(100);
/// How often what findings have learned is written.
const KEEP_INTERVAL: Duration = Duration::from_secs(300);
const LAST_WRITE: Duration = Duration::from_millis(200);
/// Instead of each of these without CMD: nobody waits for us.
const ALONE: Duration = Duration::from_secs(5);

impl Session {
    /// Locks the process in; from here on strangers' bytes may come.
    fn start(
        config: &Config,
        outputs: Outputs,
        half: Half,
        command: Option<Command>,
        watched: Watched,
        cache: Option<Opened>,
        Beside {
            asked,
            service,
            learned,
        }: Beside,
    ) -> Result<Session> {
        let mut key = [0; 16];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())?;
        let mut secret_key = [0; 32];
        rustix::rand::getrandom(&mut secret_key, rustix::rand::GetRandomFlags::empty())?;
        let statm = fs::File::open("/proc/self/statm").context("open /proc/self/statm")?;
        let signals = Caught {
            interrupt: command
                .is_none()
                .then(|| signal(SignalKind::interrupt()))
                .transpose()?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            asked: false,
        };
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let pace = readable(timerfd_create(TimerfdClockId::Monotonic, flags)?.as_fd())?;
        let owner = command.as_ref().map_or(0, |command| command.uid);
        let identity = service.as_ref().map_or(
            Identity {
                signals_as: owner,
                ..Identity::default()
            },
            |service| service.identity,
        );
        let clock = to_wall();
        let confinement = lock_in(identity, SeccompMode::Enforce)?;
        let Outputs {
            origin,
            records,
            recording,
        } = outputs;
        let mut own = records.helpers();
        own.extend(asked.as_ref().map(Asked::pid));
        own.extend(service.as_ref().map(|service| service.reader.pid()));
        if config.content == Policy::Full {
            complain("--content full: plaintext is written as it was sent, secrets included");
        }
        if let Some(recording) = &recording {
            complain(format!(
                "--record {}: everything that is copied is kept there as it was sent",
                recording.name()
            ));
        }
        let header = Header {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            origin,
            exes: config.filter.exes.clone(),
            uids: config.filter.uids.clone(),
            comms: config.filter.comms.clone(),
            names: config.filter.names.clone(),
            key: u128::from_ne_bytes(key),
            secret_key,
        };
        let mut pipeline = Pipeline::new(Wanted {
            emit: config.emit(),
            undecoded: config.is_undecoded_told(),
            live: config.is_live(),
            bounds: Bounds::of(config.body_limit),
            content: config.content,
            exes: header.exes.clone(),
            uids: header.uids.clone(),
            comms: header.comms.clone(),
            names: header.names.clone(),
            policy: config.policy.clone(),
            prices: config.prices.clone(),
            findings: config.findings.clone(),
            key: header.key,
            secret_key: Key::new(secret_key),
        });
        let keeper = learned
            .map(|opened| remember(opened, &mut pipeline))
            .transpose()?;
        let sinks = Sinks::start(records, &header.origin);
        let recorder = recording.map(|target| Recorder::start(target, &header));
        let mut line = Line {
            pipeline,
            recorder: recorder.transpose().context("start the recording")?,
            sinks: sinks.context("start the threads of the outputs")?,
            chart: service.as_ref().map(|_| Chart::new(&header.origin.host)),
        };
        line.tell(Input::Clock(clock), now());
        // So that they are in a recording.
        line.tell(Input::Findings(config.findings.clone()), now());
        if let Some(room) = config.limits.room() {
            line.tell(Input::Room(Some(room)), now());
        }
        if asked.is_some() {
            line.tell(Input::Runtimes { are_asked: true }, now());
        }
        let now = Instant::now();
        Ok(Session {
            config: config.clone(),
            half: Some(half),
            shared: None,
            watched,
            line,
            asked,
            nameless: VecDeque::new(),
            orders: VecDeque::new(),
            locating: HashMap::new(),
            workers: Workers::new().context("make an eventfd")?,
            // Parsed behind the lock-in.
            cache: Arc::new(cache.map(Opened::parse).unwrap_or_default()),
            keeper,
            next_keep: now + KEEP_INTERVAL,
            signatures: config.signatures.clone().into(),
            unanswered: HashSet::new(),
            filter_set: false,
            held: HashMap::new(),
            landlock: confinement.landlock,
            half_usage: (0, 0),
            own,
            surveyed: false,
            catching_up: None,
            late: VecDeque::new(),
            command_ran: command.is_some(),
            ending: false,
            command,
            statm,
            shed: Shed::new(config.limits),
            governor: Governor::new(config.traced_cpu),
            next_stats: now + config.stats_interval,
            next_clock: now,
            signals,
            pace,
            service,
            start: Start::default(),
            is_reader_gone: false,
            changing: None,
            next: None,
        })
    }

    async fn run(mut self) -> Result<u8> {
        let end = match self.serve().await {
            Err(error)
                if self
                    .command
                    .as_ref()
                    .is_some_and(|command| !command.child.is_held()) =>
            {
                complain(format!(
                    "{error:#}: nothing more is captured, the command goes on"
                ));
                self.half = None;
                self.continue_held();
                // Waited for below.
                End::CommandDone
            }
            end => end?,
        };
        if let Some(service) = &mut self.service {
            service.stopping();
        }
        // A plain store stops every program at once; the half detaches later, alone.
        if let Some(shared) = &self.shared {
            shared.control.set(control::STOP, 1);
        }
        self.continue_held();
        let code = match (end, self.command.take()) {
            (End::CommandDone, Some(command)) => {
                let ended = command.child.wait().context("wait for the command")?;
                if let Some(error) = ended.error() {
                    complain(&error);
                }
                ended.code()
            }
            (End::Asked(code), _) => code,
            (End::CommandDone, None) => unreachable!("there was no command"),
        };
        self.drain();
        self.settle().await;
        self.line.tell(Input::Finish, now());
        self.keep_last();
        let until = Instant::now() + self.patience(LAST_WRITE);
        self.line.sinks.drain(until);
        self.stats(true);
        self.warn_of_oddities();
        let until = Instant::now() + LAST_WRITE;
        for name in self.line.sinks.drain(until) {
            complain(format!(
                "{name} took its last records too slowly: its end is missing"
            ));
        }
        self.line.sinks.troubles().for_each(complain);
        let failures = self.line.sinks.failures();
        let failures: Vec<_> = failures
            .iter()
            .filter(|failure| !failure.is_broken_pipe())
            .collect();
        let is_missing = !failures.is_empty() || self.line.sinks.outages().next().is_some();
        self.end_recording(until);
        if let Some(half) = &self.half {
            let _ = half::send(&half.socket, &Order::Stop, &[]);
        }
        failures.into_iter().for_each(complain);
        if !self.line.pipeline.has_captured() {
            self.say_why_nothing();
        }
        match code {
            0 if is_missing && !self.command_ran => Ok(FAILED),
            code => Ok(code),
        }
    }

    /// Until CMD or the watched processes end, or somebody asks us to.
    async fn serve(&mut self) -> Result<End> {
        let fd = |fd: Option<BorrowedFd<'_>>| fd.map(readable).transpose();
        let service = self.service.as_ref();
        let command = self.command.as_ref();
        let mut wakers = Wakers {
            half: fd(self.half.as_ref().map(|half| half.socket.as_fd()))?,
            ring: None,
            command: fd(command.map(|command| command.child.pidfd()))?,
            asked: fd(self.asked.as_ref().map(|asked| asked.socket.as_fd()))?,
            located: fd(Some(self.workers.fd()))?,
            door: fd(service.map(|service| service.door.as_fd()))?,
            map_door: fd(service.map(|service| service.map_door.as_fd()))?,
            reader: fd(service.map(|service| service.reader.as_fd()))?,
        };
        self.locate_ahead()?;
        let mut empty_looks = 0;
        loop {
            self.take_reports()?;
            self.take_answers();
            self.take_located()?;
            self.send_orders()?;
            // Before what is read over them.
            self.settle_ours();
            let found = self.look();
            self.settle_sockets()?;
            self.settle_trials()?;
            self.forget_left()?;
            self.ask()?;
            self.ask_for_names();
            if let Some(end) = self.is_over() {
                return Ok(end);
            }
            self.watch_recording();
            self.by_the_clock();
            if self.is_telling() {
                self.tell_map();
            }
            if wakers.ring.is_none()
                && let Some(shared) = &self.shared
            {
                wakers.ring = Some(readable(shared.ring.fd())?);
            }
            empty_looks = if found.bytes > 0 { 0 } else { empty_looks + 1 };
            let is_asleep = empty_looks > EMPTY_LOOKS
                && self.orders.is_empty()
                && !self.line.pipeline.is_waiting();
            let sleep = if self.line.pipeline.is_holding() {
                NAP
            } else {
                SLEEP
            };
            let pause = match found {
                Found { more: true, .. } => Duration::from_nanos(1),
                Found {
                    bytes: BUSY_BYTES..,
                    ..
                } => LOOK_BUSY,
                _ if is_asleep => sleep,
                _ => LOOK,
            };
            if !found.more {
                self.line.sinks.flush();
            }
            if is_asleep && !self.fall_asleep() {
                continue;
            }
            self.pace(pause)?;
            let woke = self.wait(&wakers).await?;
            self.set_awake(true);
            match woke {
                Woke::ToLook => {}
                Woke::ToAnswer => self.answer(),
                Woke::ToTell => self.tell_map(),
                Woke::ToFollow => self.take_settings()?,
                Woke::CommandDone => return Ok(End::CommandDone),
                Woke::Asked(signal) => {
                    if let Some(end) = self.asked(signal)? {
                        return Ok(end);
                    }
                }
            }
        }
    }

    /// Says that we sleep, and looks once more: a record that came before the word was visible woke
    /// nobody. False: there is one.
    fn fall_asleep(&self) -> bool {
        let Some(shared) = &self.shared else {
            return true;
        };
        self.set_awake(false);
        if !shared.ring.has_more() {
            return true;
        }
        self.set_awake(true);
        false
    }

    fn set_awake(&self, awake: bool) {
        if let Some(shared) = &self.shared {
            shared.control.set(control::AWAKE, u64::from(awake));
        }
    }

    /// The longest pause before the next look, to the microsecond: tokio's own timer knows
    /// milliseconds.
    fn pace(&self, pause: Duration) -> Result<()> {
        let now = Instant::now();
        let pause = pause
            .min(self.next_stats.saturating_duration_since(now))
            .min(self.next_clock.saturating_duration_since(now))
            .min(self.next_keep.saturating_duration_since(now))
            .min(self.until_sign(now))
            .min(self.until_told())
            .max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec::try_from(pause).context("a pause of the reader")?,
        };
        timerfd_settime(self.pace.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Until the service manager is to be told that we live.
    fn until_sign(&self, now: Instant) -> Duration {
        let next = self
            .service
            .as_ref()
            .and_then(|service| service.notifier.next());
        next.map_or(Duration::MAX, |next| next.saturating_duration_since(now))
    }

    /// Until more is told to who asks for the map, and may have read what there was.
    fn until_told(&self) -> Duration {
        match self.is_telling() {
            true => LOOK,
            false => Duration::MAX,
        }
    }

    /// Is somebody in the middle of reading the map?
    fn is_telling(&self) -> bool {
        let service = self.service.as_ref();
        service.is_some_and(|service| service.map_door.is_telling())
    }

    async fn wait(&mut self, wakers: &Wakers) -> Result<Woke> {
        let Wakers {
            half,
            ring,
            command,
            asked,
            located,
            door,
            map_door,
            reader,
        } = wakers;
        let reader = reader.as_ref().filter(|_| !self.is_reader_gone);
        let half = half.as_ref().filter(|_| self.half.is_some());
        let asked = asked.as_ref().filter(|_| self.asked.is_some());
        let Caught {
            interrupt,
            terminate,
            hangup,
            ..
        } = &mut self.signals;
        let interrupted = async {
            match interrupt {
                Some(interrupt) => interrupt.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = ready(command.as_ref()) => ready.map(|()| Woke::CommandDone),
            _ = interrupted => Ok(Woke::Asked(Signal::INT)),
            _ = terminate.recv() => Ok(Woke::Asked(Signal::TERM)),
            _ = hangup.recv() => Ok(Woke::Asked(Signal::HUP)),
            ready = ready(half) => ready.map(|()| Woke::ToLook),
            ready = ready(ring.as_ref()) => ready.map(|()| Woke::ToLook),
            ready = ready(asked) => ready.map(|()| Woke::ToLook),
            ready = ready(located.as_ref()) => ready.map(|()| Woke::ToLook),
            ready = ready(door.as_ref()) => ready.map(|()| Woke::ToAnswer),
            ready = ready(map_door.as_ref()) => ready.map(|()| Woke::ToTell),
            ready = ready(reader) => ready.map(|()| Woke::ToFollow),
            guard = self.pace.readable() => {
                guard?.clear_ready();
                Ok(Woke::ToLook)
            }
        }
    }

    /// A signal that asks us to end. With CMD the first one is for CMD. A daemon's SIGHUP asks for its configuration to
    /// be read again.
    fn asked(&mut self, signal: Signal) -> Result<Option<End>> {
        if let (Some(service), Signal::HUP) = (&self.service, signal) {
            service.reload();
            return Ok(None);
        }
        let Some(command) = &self.command else {
            return Ok(Some(End::Asked(0)));
        };
        if std::mem::replace(&mut self.signals.asked, true) {
            return Ok(Some(End::Asked(128 + signal.as_raw() as u8)));
        }
        if let Err(error) = command.child.signal(signal) {
            complain(format!(
                "pass signal {} on to the command: {error}",
                signal.as_raw()
            ));
        }
        Ok(None)
    }

    fn is_over(&mut self) -> Option<End> {
        if !self.watched.processes.is_empty() {
            self.watched
                .processes
                .retain(|(_, pidfd)| !has_ended(pidfd.as_fd()));
            if self.watched.processes.is_empty() {
                return Some(End::Asked(0));
            }
        }
        let failures = self.line.sinks.failures();
        if self.command.is_some() {
            // CMD goes on; its records are counted as dropped.
            for failure in &failures {
                complain(format!("{failure}; the command goes on"));
            }
            return None;
        }
        for failure in failures.iter().filter(|failure| !failure.is_broken_pipe()) {
            complain(failure);
        }
        self.line.sinks.end().map(|end| match end {
            OutputsEnd::Unread => End::Asked(0),
            OutputsEnd::Failed => End::Asked(FAILED),
        })
    }

    /// A recording that ended before the run: said once. The run goes on.
    fn watch_recording(&mut self) {
        let ended = self.line.recorder.as_ref().and_then(Recorder::ended);
        if let Some(why) = ended {
            complain(format!(
                "{why}; the recording ends here, the run goes on without it"
            ));
            self.line.recorder = None;
        }
    }

    fn end_recording(&mut self, until: Instant) {
        let recorder = self.line.recorder.as_mut();
        let is_written = recorder.is_none_or(|recorder| recorder.drain(until));
        self.watch_recording();
        if !is_written && self.line.recorder.is_some() {
            complain("the recording was written too slowly: its end is missing");
        }
    }

    /// Takes what is in the ring, up to a batch.
    fn look(&mut self) -> Found {
        let mut found = Found {
            bytes: 0,
            more: false,
        };
        let Some(Shared { ring, .. }) = &mut self.shared else {
            return found;
        };
        let line = &mut self.line;
        let now = now();
        for number in 0..BATCH {
            // A slow target: the ring waits, and when it is full the kernel decides who loses, and says
            // where. Dropped here, it would be just anybody's. Not at the very end, when there is no later.
            if number % 32 == 0 && !self.ending && line.is_full() {
                found.bytes = found.bytes.max(BUSY_BYTES);
                return found;
            }
            let next = ring.next(&mut |raw| {
                found.bytes += raw.len();
                line.tell(Input::Record(raw), now);
            });
            match next {
                Next::Record => {}
                // Busy: a call is just being copied. `poll` would return at once, the clock waits.
                Next::Empty | Next::Busy => {
                    line.tell(Input::Idle, now);
                    if self.ending {
                        line.tell(Input::NoNames, now);
                    }
                    self.take_late(now);
                    return found;
                }
            }
        }
        found.more = true;
        self.take_late(now);
        found
    }

    fn say_later(&mut self, late: Late) {
        let produced = self.shared.as_ref().map_or(0, |it| it.ring.produced());
        self.late.push_back((produced, late));
    }

    /// What was said of streams and processes whose last records have come.
    fn take_late(&mut self, now: u64) {
        let consumed = self.shared.as_ref().map_or(0, |it| it.ring.consumed());
        while let Some((_, late)) = self
            .late
            .pop_front_if(|(produced, _)| *produced <= consumed || self.ending)
        {
            let input = match late {
                Late::Pending(pending) => Input::Pending(pending),
                Late::Placed { pid, is_outside } => Input::Placed { pid, is_outside },
                Late::Ended(pid) => Input::Ended { pid },
                Late::LetGo(file) => Input::LetGo { file },
            };
            self.line.tell(input, now);
        }
    }

    /// Everything that the half has said.
    fn take_reports(&mut self) -> Result<()> {
        while let Some(half) = &self.half {
            match half::receive(&half.socket) {
                Ok(Received::Nothing) => return Ok(()),
                Ok(Received::Message(report, fds)) => self.report(report, fds)?,
                Ok(Received::End) => self.half_is_gone(None)?,
                Err(error) => self.half_is_gone(Some(error.into()))?,
            }
        }
        Ok(())
    }

    /// What the half has stopped and won't continue.
    fn continue_held(&mut self) {
        self.held.drain().for_each(|(_, held)| held.go_on());
    }

    /// Nobody waits for longer, whatever became of the half. Its end alone would not tell: killed, it is seen to have
    /// ended when the last of its links is detached, and each takes the kernel 0.1 s and more.
    fn continue_overdue(&mut self, at: Instant) {
        let overdue = self.held.extract_if(|_, held| at >= held.until);
        for (pid, held) in overdue {
            held.go_on();
            self.line.tell(Input::Continued { pid }, now());
        }
    }

    /// Without it nothing more is captured. A CMD that waits is not run unobserved, one that runs goes on.
    fn half_is_gone(&mut self, why: Option<Error>) -> Result<()> {
        let status = self.half.take().and_then(|mut half| half.status());
        self.continue_held();
        // Nobody waits for what it would have told.
        self.line.tell(Input::CaughtUp { until: u64::MAX }, now());
        let why = match (why, status) {
            (Some(why), _) => why,
            (None, Some(status)) => anyhow!("the privileged half ended with {status}"),
            (None, None) => anyhow!("the privileged half ended"),
        };
        if self
            .command
            .as_ref()
            .is_none_or(|command| command.child.is_held())
        {
            return Err(why);
        }
        complain(format!(
            "{why:#}: nothing more is captured, the command goes on"
        ));
        Ok(())
    }

    fn report(&mut self, report: Report, mut fds: Vec<OwnedFd>) -> Result<()> {
        let now = now();
        match (report, fds.len()) {
            (Report::Hello(hello), 4) => self.greeted(hello, fds)?,
            (Report::Failed { why, obstacle }, 0) => {
                let why = anyhow!(why);
                self.half_is_gone(Some(match obstacle {
                    Some(obstacle) => obstacle.mark(why),
                    None => why,
                }))?;
            }
            (Report::FilterSet, 0) if self.changing.is_some() => self.changed()?,
            (Report::FilterSet, 0) => {
                self.filter_set = true;
                if let Some(shared) = &self.shared {
                    // Not before: until now the kernel side did not know who is ours.
                    shared.control.set(control::PLAIN, 1);
                }
                if self.is_starting() {
                    self.survey(false)?;
                    self.start.scanned = Some(self.start.ordered);
                }
                if let Some(next) = self.next.take() {
                    self.follow(next)?;
                }
            }
            (Report::Process(facts), 0) => self.line.tell(Input::Process(facts), now),
            (Report::Mapped(mapped), 0) => self.mapped(mapped, now),
            (Report::Opened { file, path }, 1) => {
                let fd = Arc::new(fds.remove(0));
                self.locate(file, Locating { path, own: None }, fd);
            }
            (Report::Unread { file, path, why }, 0) => self.unread(file, &path, &why),
            (Report::Attached(attached), 0) => {
                tracing::debug!(
                    file = attached.file,
                    micros = attached.micros,
                    "probes in place"
                );
                self.answered(attached.file);
                let (file, at) = (attached.file, attached.at);
                self.governor.settled(file, now);
                self.line.tell(Input::Attached { file, at }, now);
            }
            (Report::Same { file, known }, 0) => {
                self.answered(file);
                self.line.tell(Input::Same { file, known }, now);
            }
            (Report::Refused { file, why }, 0) => {
                self.answered(file);
                self.governor.settled(file, now);
                self.line.tell(Input::Failed { file, why: &why }, now);
            }
            (Report::Paused { file }, 0) => {
                let why = self.governor.paused(file, now);
                self.line.tell(Input::Failed { file, why: &why }, now);
            }
            (Report::Interrupted, 0) => {
                if let Some(shared) = &self.shared {
                    let bits = shared.control.get(control::FILTER) | filter::INTERRUPTED;
                    shared.control.set(control::FILTER, bits);
                }
            }
            (Report::Pending(pending), 0) => self.say_later(Late::Pending(pending)),
            (Report::Survey(survey), 0) => {
                self.half_usage = (survey.cpu_micros, survey.memory_bytes);
                self.surveyed = true;
                self.start.answered += 1;
            }
            (Report::Continued { pid }, 0) => {
                self.held.remove(&pid);
                self.line.tell(Input::Continued { pid }, now);
            }
            (Report::Renamed { pid, comm }, 0) => {
                self.line.tell(Input::Renamed { pid, comm: &comm }, now);
            }
            (Report::Placed { pid, is_outside }, 0) => {
                self.say_later(Late::Placed { pid, is_outside });
            }
            (Report::Ended { pid }, 0) => self.say_later(Late::Ended(pid)),
            (Report::LetGo { file }, 0) => {
                self.governor.settled(file, now);
                self.say_later(Late::LetGo(file));
            }
            (Report::Missed { pid, path }, 0) => {
                if is_named_like_one(path.as_bytes()) {
                    self.line.tell(Input::Missed { pid, path: &path }, now);
                }
            }
            (Report::Runtime { pid, runtime }, 0) => {
                self.line.tell(Input::Runtime { pid, runtime }, now);
            }
            (Report::Inspected { connected, finding }, 0) => {
                self.inspected(connected, finding, now);
            }
            (Report::Silent { pid, silent }, 0) => self.silent(pid, silent, now),
            (Report::CaughtUp, 0) => {
                if let Some(until) = self.catching_up.take() {
                    self.line.tell(Input::CaughtUp { until }, now);
                }
            }
            (Report::Warning(text), 0) => complain(&text),
            // Not which one: it may hold what others wrote.
            (_, fds) => bail!("unexpected report with {fds} descriptors"),
        }
        self.release();
        self.watch_start();
        Ok(())
    }

    /// CMD runs once the filter is set and its own files are answered.
    fn release(&mut self) {
        if let Some(command) = &mut self.command
            && self.filter_set
            && self.unanswered.is_empty()
        {
            command.child.release();
        }
    }

    fn answered(&mut self, file: FileId) {
        self.unanswered.remove(&file);
        if self.is_starting() {
            self.start.settled.insert(file);
        }
    }

    fn is_starting(&self) -> bool {
        let service = self.service.as_ref();
        service.is_some_and(|service| !service.is_ready())
    }

    /// The kernel side is loaded: maps what is shared, says what is wanted, sends the ahead list.
    fn greeted(&mut self, hello: Hello, fds: Vec<OwnedFd>) -> Result<()> {
        let [ring, counters, control, calls] = <[OwnedFd; 4]>::try_from(fds)
            .map_err(|_| anyhow::anyhow!("a greeting without its descriptors"))?;
        let shared = Shared {
            ring: Ring::map(ring, hello.ring_bytes).context("map the ring")?,
            counters: Counters::map(&counters, hello.cpus, counter::ROW)
                .context("map the counters")?,
            control: Control::map(&control).context("map the control words")?,
            calls: Counters::map(&calls, hello.cpus, calls::SLOTS)
                .context("map the counters of calls")?,
        };
        self.governor.gauge(hello.costs);
        if let Some(costs) = hello.costs {
            tracing::info!(?costs, "what a probe costs, in nanoseconds");
        }
        for limit in &hello.limits {
            tracing::warn!("{limit}");
        }
        let Hello {
            features, limits, ..
        } = hello;
        let landlock = self.landlock;
        let machine = Input::Machine {
            landlock,
            features,
            limits,
        };
        self.line.tell(machine, now());
        let wanted = self.filter();
        let bits = self.filter_bits();
        shared.control.set(control::AWAKE, 1);
        if features.sockets != Sockets::Unseen {
            shared.control.set(control::SOCKETS, 1);
        }
        shared.control.set(control::FILTER, bits);
        if features.hellos {
            shared.control.set(control::HELLOS, 1);
        }
        self.shared = Some(shared);
        self.order_directories()?;
        self.order(Order::Filter(wanted), None)
    }

    fn order_directories(&mut self) -> Result<()> {
        for directory in std::mem::take(&mut self.watched.directories) {
            self.order(Order::Cgroup, Some(directory.into()))?;
        }
        Ok(())
    }

    fn filter(&self) -> Filter {
        let of = &self.config.filter;
        let command = self
            .command
            .as_ref()
            .map(|command| command.child.pid.as_raw_pid() as u32);
        Filter {
            pids: command.map_or_else(|| of.pids.clone(), |pid| vec![pid]),
            follow: command.is_some(),
            choice: self.choice(),
            may_change: self.service.is_some(),
            scan: command.is_none(),
            hold: command.is_some() && self.config.hold,
            own: self.own.clone(),
        }
    }

    fn choice(&self) -> Choice {
        let of = &self.config.filter;
        let Groups {
            paths,
            are_asked_for,
        } = &self.watched.groups;
        Choice {
            uids: of.uids.clone(),
            comms: of.comms.clone(),
            groups: paths.clone(),
            containers: of.containers.clone(),
            members: !of.containers.is_empty() || !paths.is_empty() && !are_asked_for,
        }
    }

    fn filter_bits(&self) -> u64 {
        let wanted = self.filter();
        let choice = &wanted.choice;
        let bits = [
            (!wanted.pids.is_empty(), filter::PROCESS),
            (wanted.follow, filter::FOLLOW),
            (choice.members, filter::MEMBER),
            (!choice.uids.is_empty(), filter::UID),
            (!choice.comms.is_empty(), filter::COMM),
            (self.watched.groups.are_asked_for, filter::CGROUP),
        ];
        let active = bits.into_iter().filter(|(is_active, _)| *is_active);
        active.map(|(_, bit)| bit).sum()
    }

    /// Located now and not when they were opened: what others wrote is parsed after the lock-in only. And not
    /// later: the half is still loading its programs.
    fn locate_ahead(&mut self) -> Result<()> {
        let Some(command) = &mut self.command else {
            return Ok(());
        };
        let mut inodes = HashSet::new();
        for (number, ahead) in (1..).zip(std::mem::take(&mut command.ahead)) {
            let Ahead {
                path,
                is_needed,
                file,
            } = ahead;
            let stat = rustix::fs::fstat(&file)?;
            if !inodes.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            let id = OWN_FILE | number;
            if is_needed {
                self.unanswered.insert(id);
            }
            let file = Arc::new(file);
            let locating = Locating {
                path,
                own: Some(file.clone()),
            };
            self.locate(id, locating, file);
        }
        Ok(())
    }

    fn mapped(&mut self, mapped: half::Mapped, now: u64) {
        let half::Mapped {
            file,
            pid,
            at,
            held,
        } = mapped;
        if let Some(here) = held {
            let until = Instant::now() + half::HELD_LONGEST + HELD_NET;
            self.held.entry(pid).or_insert(Held { here, until });
        }
        if self.is_starting() {
            self.start.mapped.insert(file);
        }
        let user = Mapper {
            pid,
            mapped_at: at,
            held: held.is_some(),
        };
        self.line.tell(Input::Mapped { file, user }, now);
    }

    fn locate(&mut self, id: FileId, locating: Locating, fd: Arc<OwnedFd>) {
        let path = locating.path.clone();
        let (cache, signatures) = (self.cache.clone(), self.signatures.clone());
        self.locating.insert(id, locating);
        // Each file for itself: none of them is where it could keep another waiting.
        self.workers.start(id, id, LOCATING, move || {
            cache.locate(&Pread(fd.as_fd()), &path, &signatures)
        });
    }

    /// Orders what was found, once the half knows who is watched.
    fn take_located(&mut self) -> Result<()> {
        if self.shared.is_none() {
            return Ok(());
        }
        for (file, located) in self.workers.finished() {
            let Some(Locating { path, own }) = self.locating.remove(&file) else {
                continue;
            };
            let refused = match located {
                Some(Ok(found)) => {
                    let path = &path;
                    self.line.tell(Input::Found { file, path, found }, now());
                    let points = self.line.pipeline.sites();
                    // Before the first call can be seen.
                    self.settle_trials()?;
                    self.order(Order::Attach { file, points }, own)?;
                    continue;
                }
                Some(Err(why)) => is_worth_a_word(why, &path).then(|| why.to_string()),
                None => is_named_like_one(path.as_bytes())
                    .then(|| "searching it takes too long".to_owned()),
            };
            let order = match refused {
                Some(why) => {
                    self.refused(file, &path, &why);
                    Order::Refuse { file, why }
                }
                None => {
                    self.line.tell(Input::Nothing { file }, now());
                    let points = Vec::new();
                    Order::Attach { file, points }
                }
            };
            // The half has not heard of our own files yet.
            if own.is_none() {
                self.order(order, None)?;
            }
            self.answered(file);
        }
        self.release();
        self.watch_start();
        Ok(())
    }

    /// A file that the half could not open.
    fn unread(&mut self, file: FileId, path: &str, why: &str) {
        self.answered(file);
        if is_named_like_one(path.as_bytes()) {
            self.refused(file, path, why);
        } else {
            tracing::warn!("{path} is not looked at: {why}");
            self.line.tell(Input::Nothing { file }, now());
        }
    }

    fn refused(&mut self, file: FileId, path: &str, why: &str) {
        self.line.tell(Input::Refused { file, path, why }, now());
    }

    /// Connections that the process which delivers has made are not to be told of.
    fn settle_ours(&mut self) {
        for (local, peer) in self.line.sinks.made() {
            self.line.tell(Input::Ours { local, peer }, now());
        }
    }

    /// Tells the kernel side which sockets nobody asks about any more.
    fn settle_sockets(&mut self) -> Result<()> {
        const PER_MESSAGE: usize = 1024;
        let states: Vec<(u64, u64)> = self
            .line
            .pipeline
            .attentions()
            .map(|attention| match attention {
                Attention::Open { cookie } => (cookie, socket::OPEN),
                Attention::Named { cookie } => (cookie, socket::NAMED),
                Attention::Ignored { cookie, generation } => (
                    cookie,
                    socket::IGNORED | u64::from(generation) << socket::GENERATION,
                ),
            })
            .collect();
        for some in states.chunks(PER_MESSAGE) {
            self.order(Order::Sockets(some.to_vec()), None)?;
        }
        Ok(())
    }

    /// Handles that their programs closed give their places up.
    fn forget_left(&mut self) -> Result<()> {
        const PER_MESSAGE: usize = 256;
        let forgotten = self.line.pipeline.forgotten();
        let handles: Vec<_> = forgotten
            .map(|id| half::Handle {
                tgid: id.pid,
                handle: id.handle,
                born: id.born,
            })
            .collect();
        for some in handles.chunks(PER_MESSAGE) {
            self.order(Order::Forget(some.to_vec()), None)?;
        }
        Ok(())
    }

    /// Files whose first calls showed that they are none of TLS, and whether there are more to be judged.
    fn settle_trials(&mut self) -> Result<()> {
        let withdrawals: Vec<_> = self.line.pipeline.withdrawals().collect();
        for (file, why) in withdrawals {
            let why = why.to_owned();
            self.order(Order::Refuse { file, why }, None)?;
        }
        if let Some(shared) = &self.shared {
            let is_on_trial = self.line.pipeline.is_any_on_trial();
            shared.control.set(control::TRIAL, u64::from(is_on_trial));
        }
        Ok(())
    }

    /// Asks the half what nobody else can find out.
    fn ask(&mut self) -> Result<()> {
        let strangers = self.line.pipeline.strangers();
        let mut orders: Vec<Order> = strangers.map(|pid| Order::Introduce { pid }).collect();
        orders.extend(self.line.pipeline.questions().map(Order::Inspect));
        let suspects = self.line.pipeline.suspects();
        orders.extend(suspects.map(|pid| Order::Examine { pid }));
        if self.line.pipeline.is_half_late() && self.catching_up.is_none() {
            self.catching_up = Some(now());
            orders.push(Order::CatchUp);
        }
        orders
            .into_iter()
            .try_for_each(|order| self.order(order, None))
    }

    /// Asks what containers are called. Whoever does not read is asked later.
    fn ask_for_names(&mut self) {
        self.nameless.extend(self.line.pipeline.nameless());
        let Some(asked) = &self.asked else {
            return self.nameless.clear();
        };
        while let Some(id) = self.nameless.pop_front() {
            let question = Question { id };
            if half::send(&asked.socket, &question, &[]).is_err() {
                // Its end is noticed at the next read.
                return self.nameless.push_front(question.id);
            }
        }
    }

    fn take_answers(&mut self) {
        while let Some(asked) = &self.asked {
            match half::receive(&asked.socket) {
                Ok(Received::Nothing) => return,
                Ok(Received::Message(Answer { id, container }, _)) => {
                    let id = &id;
                    self.line.tell(Input::Container { id, container }, now());
                }
                Ok(Received::End) | Err(_) => {
                    complain(
                        "nobody asks container runtimes any more: names are missing from now on",
                    );
                    self.asked = None;
                    self.line.tell(Input::Runtimes { are_asked: false }, now());
                }
            }
        }
    }

    fn inspected(&mut self, connected: Connected, finding: Finding, now: u64) {
        self.line.tell(Input::Inspected { connected, finding }, now);
        if let (Some(path), Some(silent)) = (self.line.pipeline.silent(), finding.silent) {
            complain_of(silent, connected.pid, &path);
        }
    }

    fn silent(&mut self, pid: u32, silent: Silent, now: u64) {
        self.line.tell(Input::Silent { pid, silent }, now);
        if let Some(path) = self.line.pipeline.silent() {
            complain_of(silent, pid, &path);
        }
    }

    /// Sent at once, or when the half has read what is before it.
    fn order(&mut self, order: Order, fd: Option<Arc<OwnedFd>>) -> Result<()> {
        self.orders.push_back((order, fd));
        self.send_orders()
    }

    fn send_orders(&mut self) -> Result<()> {
        let Some(half) = &self.half else {
            self.orders.clear();
            return Ok(());
        };
        while let Some((order, fd)) = self.orders.front() {
            let fds: Vec<BorrowedFd<'_>> = fd.iter().map(|fd| fd.as_fd()).collect();
            match half::send(&half.socket, order, &fds) {
                Ok(()) => drop(self.orders.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Its end is noticed at the next read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => return Ok(()),
                Err(error) => return Err(error).context("give an order to the privileged half"),
            }
        }
        Ok(())
    }

    /// Those who ask a daemon how it is.
    fn answer(&self) {
        let Some(service) = &self.service else {
            return;
        };
        let kernel = |index| match &self.shared {
            Some(shared) => shared.counters.get(index),
            None => 0,
        };
        let ledger = ledger(kernel, self.line.pipeline.tally());
        service.answer(self.line.pipeline.covered(), &ledger);
    }

    /// Those who ask a daemon for its map.
    fn tell_map(&mut self) {
        if let (Some(service), Some(chart)) = (&mut self.service, &self.line.chart) {
            service.map_door.take(Instant::now(), || chart.json());
        }
    }

    /// Says once that the daemon is ready.
    fn watch_start(&mut self) {
        let Some(service) = &mut self.service else {
            return;
        };
        if !service.is_ready() && self.start.is_over() {
            service.ready("watching");
            self.start = Start::default();
        }
    }

    /// Everything that the reader of the configuration has said.
    fn take_settings(&mut self) -> Result<()> {
        while let Some(service) = &self.service {
            match service.reader.said() {
                Ok(Received::Nothing) => break,
                Ok(Received::Message(said, fds)) => match said.meant(&service.path, fds) {
                    Ok(meant) => {
                        service.notifier.reloading();
                        self.follow(meant)?;
                    }
                    Err(why) => {
                        complain(format!("{why}; nothing of it is taken"));
                        service.again_ready();
                    }
                },
                Ok(Received::End) | Err(_) => {
                    self.is_reader_gone = true;
                    complain("nobody reads the settings again: a restart of the daemon does");
                    service.again_ready();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Other settings from here on. One change at a time: the last one counts.
    fn follow(&mut self, meant: Meant) -> Result<()> {
        if self.changing.is_some() || !self.filter_set {
            self.next = Some(meant);
            return Ok(());
        }
        let Meant {
            config,
            groups,
            directories,
        } = meant;
        let (config, kept) = self.config.change(config, self.asked.is_some());
        if !kept.is_empty() {
            complain(format!(
                "reload: {} stay as they were, which a restart changes; the rest is taken",
                kept.join(", ")
            ));
        }
        let before = self.choice();
        let old = std::mem::replace(&mut self.config, config);
        self.line.sinks.select(&self.config.sinks);
        if old.show() != self.config.show() {
            self.line.tell(Input::Show(self.config.show()), now());
        }
        if old.findings != self.config.findings {
            self.line
                .tell(Input::Findings(self.config.findings.clone()), now());
        }
        if old.policy != self.config.policy {
            self.line
                .tell(Input::Policy(self.config.policy.clone()), now());
        }
        self.signatures = self.config.signatures.clone().into();
        if old.limits.room() != self.config.limits.room() {
            let room = self.config.limits.room();
            self.line.tell(Input::Room(room), now());
        }
        self.shed.limit(self.config.limits);
        self.governor.limit(self.config.traced_cpu);
        if old.stats_interval != self.config.stats_interval {
            self.next_stats = Instant::now() + self.config.stats_interval;
        }
        (self.watched.groups, self.watched.directories) = (groups, directories);
        let choice = self.choice();
        // A group that was made again has the old path.
        if choice == before && self.watched.directories.is_empty() {
            if old.filter != self.config.filter {
                self.watch_others();
            }
            return self.followed();
        }
        self.changing = Some(Change::Leaving);
        self.order_directories()?;
        self.order(Order::Change(choice), None)
    }

    /// From here on others are told of.
    fn watch_others(&mut self) {
        let of = &self.config.filter;
        let watch = Input::Watch {
            exes: of.exes.clone(),
            uids: of.uids.clone(),
            comms: of.comms.clone(),
            names: of.names.clone(),
        };
        self.line.tell(watch, now());
    }

    /// Who is wanted no more is out: the kinds of filters change in one store, and then the others come in. Or they
    /// have.
    fn changed(&mut self) -> Result<()> {
        if let Some(Change::Joining) = self.changing {
            self.changing = None;
            return self.followed();
        }
        self.changing = Some(Change::Joining);
        if let Some(shared) = &self.shared {
            // Some were turned away and are not, by whatever filter.
            let bits = self.filter_bits() | filter::INTERRUPTED;
            shared.control.set(control::FILTER, bits);
        }
        self.watch_others();
        self.order(Order::Changed, None)
    }

    fn followed(&mut self) -> Result<()> {
        if let Some(service) = &self.service {
            service.again_ready();
        }
        match self.next.take() {
            Some(next) => self.follow(next),
            None => Ok(()),
        }
    }

    fn survey(&mut self, pending: bool) -> Result<()> {
        self.start.ordered += 1;
        self.order(Order::Survey { pending }, None)
    }

    fn by_the_clock(&mut self) {
        let at = Instant::now();
        if let Some(service) = &mut self.service {
            service.notifier.alive(at);
        }
        self.continue_overdue(at);
        if at >= self.next_clock {
            self.next_clock = at + CLOCK_INTERVAL;
            self.line.tell(Input::Clock(to_wall()), now());
            self.watch_limits();
            self.govern();
            self.line.sinks.troubles().for_each(complain);
            if let Some(recorder) = &mut self.line.recorder {
                recorder.flush();
            }
        }
        if at >= self.next_keep {
            self.next_keep = at + KEEP_INTERVAL;
            self.keep();
        }
        if at >= self.next_stats {
            self.next_stats = at + self.config.stats_interval;
            let pending = self.has_untold_loss();
            let _ = self.survey(pending);
            self.stats(false);
        }
    }

    /// Leaves more or less out, by what this process has used since the last time.
    fn watch_limits(&mut self) {
        let (now, cpu) = (now(), nanoseconds(ClockId::ProcessCPUTime));
        let rung = self.shed.measured(now, cpu, own_memory(&self.statm));
        if let Some(rung) = rung {
            self.line.tell(Input::Shed(rung), now);
        }
        if let Some((level, used)) = self.shed.news(now) {
            complain(format!(
                "limits: {} ({:.2} CPUs and {} MiB are used)",
                level.words(),
                used.cpu.as_secs_f64(),
                used.memory >> 20
            ));
        }
    }

    /// Takes the probes out that cost their callers most, if all cost more than they may.
    fn govern(&mut self) {
        let Some(shared) = &self.shared else {
            return;
        };
        let points = self.line.pipeline.points();
        let calls = points.map(|(number, placed)| {
            let calls = shared.calls.get(calls::slot(number));
            (placed.file, placed.trap, calls)
        });
        for Pause { file, seconds, why } in self.governor.counted(now(), calls) {
            if let Some(path) = self.line.pipeline.path(file) {
                complain(format!("limits: {}: {why}", &**path));
            }
            // The half may be gone: then there are no probes either.
            let _ = self.order(Order::Pause { file, seconds }, None);
        }
    }

    /// Bytes were lost that no gap has told of: they are at the end of their streams.
    fn has_untold_loss(&self) -> bool {
        let Some(shared) = &self.shared else {
            return false;
        };
        let lost = |cause| shared.counters.get(counter::LOST + usize::from(cause));
        lost(cause::RING_FULL) + lost(cause::OVER_BUDGET) != self.line.pipeline.told_late()
    }

    /// Writes what findings have learned since the last time, if anything.
    fn keep(&mut self) {
        let (Some(keeper), Some(learned)) = (&mut self.keeper, self.line.pipeline.learned()) else {
            return;
        };
        if let Err(error) = keeper.keep(learned) {
            complain(format!(
                "baseline: {error}: what is learned from here on is not kept"
            ));
            self.keeper = None;
        }
    }

    fn keep_last(&mut self) {
        let Some(keeper) = self.keeper.take() else {
            return;
        };
        if let Err(error) = keeper.end(self.line.pipeline.learned(), LAST_WRITE) {
            complain(format!(
                "baseline: {error}: what was learned last is not kept"
            ));
        }
    }

    fn stats(&mut self, last: bool) {
        let Some(shared) = &self.shared else {
            return;
        };
        let (half_micros, half_memory) = self.half_usage;
        let (deliver_micros, deliver_memory) = self.line.sinks.usage();
        let count = Count {
            last,
            kernel: shared.counters.all(),
            sinks: self.line.sinks.counts(),
            cpu_seconds: nanoseconds(ClockId::ProcessCPUTime) as f64 / 1e9
                + (half_micros + deliver_micros) as f64 / 1e6,
            memory_bytes: own_memory(&self.statm) + half_memory + deliver_memory,
            governing: self.governor.told(now()),
        };
        self.line.tell(Input::Count(count), now());
    }

    /// How long the end may wait for something.
    fn patience(&self, with_command: Duration) -> Duration {
        if self.command_ran {
            with_command
        } else {
            ALONE
        }
    }

    /// The programs have stopped: what they began comes out.
    fn drain(&mut self) {
        let until = Instant::now() + self.patience(DRAIN);
        while Instant::now() < until {
            if self.look().more {
                continue;
            }
            let Some(shared) = &self.shared else {
                break;
            };
            let tally = self.line.pipeline.tally();
            let ledger = ledger(|index| shared.counters.get(index), tally);
            if !shared.ring.has_more() && ledger.bytes.in_flight == 0 {
                break;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        self.ending = true;
        while self.look().more {}
    }

    /// The half's last word: its usage, and holes at the end of streams.
    async fn settle(&mut self) {
        self.surveyed = false;
        let pending = self.has_untold_loss();
        if self.survey(pending).is_err() {
            return;
        }
        let until = Instant::now() + self.patience(LAST_SURVEY);
        while !(self.surveyed && !self.line.pipeline.is_anybody_parked())
            && self.half.is_some()
            && Instant::now() < until
        {
            if self.take_reports().is_err() {
                return;
            }
            self.ask_for_names();
            self.take_answers();
            std::thread::sleep(Duration::from_micros(200));
        }
        if pending && !self.surveyed {
            complain(
                "the privileged half did not say in time what is missing at the ends of streams",
            );
        }
        self.look();
    }

    /// What should be 0 and has no place in the ledger.
    fn warn_of_oddities(&self) {
        let Some(Shared { counters, .. }) = &self.shared else {
            return;
        };
        for (count, what) in [
            (
                self.line.pipeline.malformed(),
                "malformed records in the ring",
            ),
            (
                counters.get(counter::DUPLICATE),
                "calls that two links reported",
            ),
            (
                counters.get(counter::UNREADABLE),
                "calls whose byte count made no sense",
            ),
        ] {
            if count != 0 {
                tracing::warn!("{count} {what}");
            }
        }
    }

    fn say_why_nothing(&self) {
        let about = match (&self.config.filter.pids[..], self.command_ran) {
            (_, true) => "the command and its children",
            ([], false) => return,
            (_, false) => "the watched processes",
        };
        let why = if self.half.is_none() {
            "the privileged half ended before".to_owned()
        } else if self.line.pipeline.has_unknown() {
            format!("{about} spoke TLS by means that are not known; `coverage` says with whom")
        } else if self.line.pipeline.is_any_used() {
            format!("{about} mapped a TLS library, it was probed, and no TLS call was made")
        } else {
            format!(
                "{about} mapped no TLS library that we know. If the work is done elsewhere (docker, \
                 tmux, systemd-run), watch that: `vortex-agent run --pid N`, or the whole machine with \
                 `vortex-agent run`"
            )
        };
        complain(format!("nothing was captured: {why}"));
    }
}

fn complain_of(silent: Silent, pid: u32, path: &str) {
    let what = match silent.is_placed_again {
        true => "they are placed again",
        false => "calls pass by",
    };
    complain(format!(
        "breakpoints in {path} were gone from the memory of process {pid}: {what}"
    ));
}

/// What a look at the ring found.
#[derive(Clone, Copy)]
struct Found {
    bytes: usize,
    more: bool,
}

enum Woke {
    ToLook,
    /// Somebody asks a daemon how it is.
    ToAnswer,
    /// And for its map.
    ToTell,
    /// The settings were read again.
    ToFollow,
    CommandDone,
    Asked(Signal),
}

/// Is it a TLS library that we can't probe, as far as one can tell?
fn is_worth_a_word(why: Refusal, path: &str) -> bool {
    match why {
        Refusal::NoLibrary | Refusal::NotElf => false,
        Refusal::Unsafe(_) | Refusal::Signature(..) => true,
        _ => is_named_like_one(path.as_bytes()),
    }
}

/// Its own copy: the original may be closed first.
fn readable(fd: BorrowedFd<'_>) -> Result<AsyncFd<OwnedFd>> {
    let fd = fd.try_clone_to_owned().context("copy a descriptor")?;
    // SAFETY: the event loop owns the descriptor and closes it after it has forgotten it.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    fd.context("watch a descriptor")
}

async fn ready(fd: Option<&AsyncFd<OwnedFd>>) -> Result<()> {
    match fd {
        Some(fd) => fd.readable().await?.clear_ready(),
        None => std::future::pending().await,
    }
    Ok(())
}

fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
}

/// Resident memory in bytes; the file was opened before the lock-in.
pub fn own_memory(statm: &fs::File) -> u64 {
    let mut text = [0; 128];
    let read = statm.read_at(&mut text, 0).unwrap_or(0);
    let resident = std::str::from_utf8(&text[..read])
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    resident.unwrap_or(0) * rustix::param::page_size() as u64
}
