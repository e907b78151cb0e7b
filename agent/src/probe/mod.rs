//! The privileged half: loads the programs, opens what processes map, attaches, reads /proc. It parses
//! nothing that a process wrote, and it is the only place that knows aya.
//!
//! It takes orders from the pipeline, which parses hostile bytes, and so trusts it as little as it can:
//! it attaches only to files that it sent or was sent, inside the file, where the bytes are those that
//! the pipeline saw. What it sends with `-- CMD` is what the tree maps.

mod check;
pub mod danger;
pub mod facts;
mod file;
mod gauge;
mod groups;
mod hold;
mod home;
mod identity;
mod ids;
mod kernel;
mod layer;
mod lease;
mod link;
#[cfg(feature = "kernel-log")]
mod log;
mod mapping;
mod place;
mod raw;
pub mod rights;
mod session;
pub mod socket;
mod watch;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use agent_ebpf::{
    Absence, Direction, MEMBER, MOVED, OURS, POINT, Process, SHELVED, Stream, StreamKey, Thread,
    WANTED, counter,
};
use anyhow::{Context as _, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Resource, Rlimit, getrlimit, setpriority_process, setrlimit},
    time::ClockId,
};

pub use self::{
    check::{Loaded, Walked, check_all},
    link::OBJECT,
};
use self::{
    file::Version,
    groups::Groups,
    hold::Holds,
    home::Homes,
    identity::Inode,
    lease::Breaks,
    link::Kernel,
    mapping::{Happening, Mapping, SideBand},
    place::{Moved, Opened, Probes, REPLACED, open, place, place_again},
    watch::{Watch, Watches},
};
use crate::{
    cgroup,
    clock::{nanoseconds, since_boot as now},
    confine,
    half::{
        self, Attached, Choice, Connected, Costs, Facts, FileId, Filter, Finding, Handle, Hello,
        Link, Mapped, OWN_FILE, Order, Pending, Received, Report, Silent, Site, Survey,
    },
    obstacle,
    worker::Workers,
};

/// What `vortex-agent attach` was told.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    pub ring_bytes: u32,
    /// Use one link per file where the kernel can. Off only for tests of the other way.
    pub allow_multi: bool,
    /// Measure what a probe costs.
    pub gauge: bool,
    /// Ports whose connections are plaintext.
    pub plain: &'a [u16],
}

/// Serves one pipeline until it orders `Stop` or is gone, then returns: the caller exits, and the kernel
/// undoes every link.
pub fn serve(socket: BorrowedFd<'_>, options: Options<'_>) -> Result<()> {
    raise_descriptor_limit();
    raise_memory_limit();
    // Before there are threads: CMD and processes that are held wait for us.
    let _ = setpriority_process(None, READER_NICE);
    rights::check()?;
    let dangers = danger::known();
    danger::check(&dangers)?;
    rights::keep_needed().context("give up what root may do beyond that")?;
    // After the last fork, and before a byte of anybody's is read.
    confine::lock_in_half()?;
    let mut kernel = Kernel::load(options.ring_bytes, options.allow_multi, options.plain)
        .map_err(obstacle::refused)?;
    kernel
        .limits
        .extend(dangers.iter().map(|danger| danger.what.to_owned()));
    let costs = options.gauge.then(|| gauge(&mut kernel)).flatten();
    let band = SideBand::open()
        .context("watch for executable mappings by perf_event_open")
        .map_err(obstacle::refused)?;
    let mut half = Half::new(kernel, band, socket)?;
    half.tells_all = !options.plain.is_empty();
    half.greet(costs)?;
    let served = half.run();
    // Nobody waits for the links, which take up to seconds to close.
    drop(std::mem::take(&mut half.holds));
    // The stop flag first: the pipeline may have died without setting it. The links end with us.
    half.kernel.stop()?;
    served
}

/// What a probe costs here; what is wrong with that is among the kernel's limits.
fn gauge(kernel: &mut Kernel) -> Option<Costs> {
    if kernel.features.link == Link::Perf {
        let why = "no cookies of probes (Linux 5.15): nobody knows what the probes of which file cost, and \
                   `[limits] traced-cpu` is not kept";
        kernel.limits.push(why.to_owned());
        return None;
    }
    Some(gauge::measure(kernel).unwrap_or_else(|error| {
        kernel.limits.push(format!(
            "what a probe costs could not be measured ({error:#}): it is taken for 2 µs a call, and 10 µs where \
             an instruction is single-stepped"
        ));
        Costs {
            entry: 1_000,
            step: 8_000,
            exit: 1_000,
        }
    }))
}

struct Half<'a> {
    socket: BorrowedFd<'a>,
    kernel: Kernel,
    band: SideBand,
    /// The agent's own processes are never looked at.
    own: HashSet<u32>,
    /// Of these whose children are the agent's, too.
    helpers: HashSet<u32>,
    filter: Filter,
    /// Before the filter is known nobody is looked at.
    is_filter_set: bool,
    files: HashMap<FileId, File>,
    /// By what `stat` shows of it: several may be one file.
    held: HashMap<Version, FileId>,
    /// By what the kernel knows, as far as it says so.
    inodes: HashMap<Inode, FileId>,
    breaks: Breaks,
    watches: Watches,
    /// The device of `/`, which nobody unmounts.
    root: Option<u64>,
    /// What waits for file systems.
    workers: Workers<FileId, Done>,
    /// Files without anything to probe, as they were shown and as the kernel knows them.
    nothing: HashSet<(Version, Option<Inode>)>,
    next_file: FileId,
    holds: Holds,
    /// Processes whose facts were sent and still hold.
    told: HashSet<u32>,
    /// Since when processes run what they run, in nanoseconds since boot: those that called exec since we look.
    begun: HashMap<u32, u64>,
    /// Leaders that ended, by both of their ids, and when: their entries in the kernel's maps are removed a
    /// little later.
    ended: VecDeque<(Instant, u32, u32)>,
    outbox: VecDeque<(Report, Option<Arc<OwnedFd>>)>,
    groups: Groups,
    /// Whom we watched before a change that is under way.
    leaving: Option<Choice>,
    /// Some may be watched no more since we looked who uses what.
    has_changed: bool,
    /// CMD's process group.
    group: u32,
    /// Processes whose mappings are still to be looked at.
    to_scan: VecDeque<u32>,
    /// Those who joined the watched control groups: what they map already is looked at soon. Not at once:
    /// most are in exec, and the kernel reports what that maps.
    joined: Vec<u32>,
    /// Who maps files of devices that did not answer, and which: looked at again when those do.
    unanswered: HashSet<(u32, u64)>,
    /// Processes that may have moved between control groups.
    to_check: VecDeque<u32>,
    /// What processes map that are in the middle of exec, and since when.
    in_exec: VecDeque<(Instant, Mapping)>,
    /// Who was told of which file.
    mapped: HashSet<(u32, FileId)>,
    homes: Homes,
    /// Happenings were lost, and that was said.
    has_lost: bool,
    /// Streams shelved when we looked last.
    shelved: u64,
    /// The points of files whose probes are being taken out.
    interrupted: HashMap<FileId, HashSet<u64>>,
    /// Also who maps no TLS library may say something, and it is told who that is before it has ended.
    tells_all: bool,
    /// The pipeline waits for who somebody is, and is to be told when nothing more comes.
    is_catching_up: bool,
}

struct File {
    /// Names the file, no more.
    fd: Arc<OwnedFd>,
    version: Version,
    inode: Option<Inode>,
    /// How it was shown first: by the mapping's name, and by the kernel if that was asked about the mapping.
    looks: (Version, Option<Inode>),
    /// Who maps it, where its numbers don't say that it is the right file: the breakpoints are looked for there.
    witness: Option<Mapping>,
    path: String,
    since: Instant,
    state: State,
    /// Nobody mapped it when we looked last.
    is_left: bool,
    /// The mount that the probes keep, if others may lead to the file as well.
    mount: Option<u64>,
    sites: Vec<Site>,
    is_moving: bool,
    /// It is not to be probed after all.
    is_withdrawn: bool,
    /// Its breakpoints were found missing in the memory of a process.
    was_silent: bool,
    /// Who that is, until they are placed again.
    silent_in: Option<u32>,
    /// What was placed through another mount. Each call that it saw alone still needs it for its return.
    old: Option<Old>,
}

/// Closing it asks the file system.
struct Old {
    _fd: Arc<OwnedFd>,
    probes: Probes,
}

enum State {
    /// It is being opened.
    Opening,
    /// The pipeline was asked.
    Asked,
    /// Its probes are being placed.
    Placing,
    Attached(Probes),
    /// Its probes cost too much, and are out until then.
    Paused(Instant),
    /// Looked at, and not to be probed: kept, so that each process is told.
    Refused(String),
}

/// What a worker did.
enum Done {
    Opened(io::Result<Opened>),
    Placed(Result<Probes, String>),
    /// The same file through another mount.
    Moved(io::Result<Moved>),
    Detached,
}

/// A pipeline that does not read (Ctrl-Z) must not make us grow: above this nothing new is looked at. The
/// kernel's rings overflow then, and /proc is scanned later.
const OUTBOX_LIMIT: usize = 4096;
/// How long the entries of a process that ended stay in the kernel's maps.
const LINGER: Duration = Duration::from_secs(1);
/// Above this one link for everybody is cheaper.
const LINKS_PER_PROCESS: usize = 8;
const READER_NICE: i32 = -10;
const TICK: Duration = Duration::from_secs(1);
const NOTHING_LIMIT: usize = 65536;
/// How many processes are asked for their control groups each second, should they have moved without a
/// fork and without an exec: 20 µs each.
const CHECKS: usize = 256;
/// How long a file system may take to open a file, and how long all may take to place its probes: more
/// than a loaded machine does.
const OPENING: Duration = Duration::from_secs(2);
const PLACING: Duration = Duration::from_secs(10);
/// Orders between two looks at everything else: a flood of them must not keep anybody stopped.
const ORDERS: usize = 64;
/// How long an exec may take from its first mapping to its command line, how many may be under way, and
/// how often we look whether they are through.
const EXEC_TIME: Duration = Duration::from_secs(1);
const EXECS_MAX: usize = 1024;
const EXEC_STEP: Duration = Duration::from_millis(1);

/// As the kernel has the name of a leader: 15 bytes at most, and zeros.
fn comm_key(comm: &str) -> [u8; 16] {
    let mut name = [0; 16];
    let len = comm.len().min(15);
    name[..len].copy_from_slice(&comm.as_bytes()[..len]);
    name
}

/// A set that the kernel's programs ask.
type Set<'a, K> = aya::maps::HashMap<&'a mut aya::maps::MapData, K, u8>;

fn fill<K: aya::Pod>(set: &mut Set<'_, K>, keys: impl IntoIterator<Item = K>) -> Result<()> {
    for key in keys {
        set.insert(&key, &1, 0)?;
    }
    Ok(())
}

/// Leaves in it who is wanted.
fn narrow<K: aya::Pod>(set: &mut Set<'_, K>, is_wanted: impl Fn(&K) -> bool) -> Result<()> {
    let keys: Vec<K> = set.keys().collect::<Result<_, _>>()?;
    for key in keys.iter().filter(|key| !is_wanted(key)) {
        set.remove(key)?;
    }
    Ok(())
}

impl<'a> Half<'a> {
    fn new(kernel: Kernel, band: SideBand, socket: BorrowedFd<'a>) -> Result<Half<'a>> {
        let peer = rustix::net::sockopt::socket_peercred(socket)?;
        // Who reads the ring. At full speed the ring holds 3 ms of one program's traffic: a reader that waits
        // for its turn behind others loses what comes meanwhile. It needs 0.05 s of CPU for a GiB, so nobody
        // waits for it. And who looks for points, while CMD waits. Refused without CAP_SYS_NICE: then as the
        // others.
        for thread in facts::threads(peer.pid.as_raw_pid() as u32) {
            let _ = setpriority_process(Pid::from_raw(thread as i32), READER_NICE);
        }
        let own = [
            std::process::id(),
            std::os::unix::process::parent_id(),
            peer.pid.as_raw_pid() as u32,
        ];
        Ok(Half {
            socket,
            kernel,
            band,
            own: own.into(),
            helpers: HashSet::new(),
            filter: Filter::default(),
            is_filter_set: false,
            files: HashMap::new(),
            held: HashMap::new(),
            inodes: HashMap::new(),
            breaks: Breaks::open().context("make a signalfd")?,
            watches: Watches::open().context("make an inotify instance")?,
            root: file::device_of_root(),
            workers: Workers::new().context("make an eventfd")?,
            nothing: HashSet::new(),
            next_file: 1,
            holds: Holds::default(),
            told: HashSet::new(),
            begun: HashMap::new(),
            ended: VecDeque::new(),
            outbox: VecDeque::new(),
            groups: Groups::default(),
            leaving: None,
            has_changed: false,
            group: 0,
            to_scan: VecDeque::new(),
            joined: Vec::new(),
            unanswered: HashSet::new(),
            to_check: VecDeque::new(),
            in_exec: VecDeque::new(),
            mapped: HashSet::new(),
            homes: Homes::default(),
            has_lost: false,
            shelved: 0,
            interrupted: HashMap::new(),
            tells_all: false,
            is_catching_up: false,
        })
    }

    fn greet(&mut self, costs: Option<Costs>) -> Result<()> {
        let hello = Report::Hello(Hello {
            ring_bytes: u64::from(self.kernel.ring_bytes),
            cpus: self.kernel.cpus,
            features: self.kernel.features,
            limits: self.kernel.limits.clone(),
            costs,
        });
        half::send(self.socket, &hello, &self.kernel.shared())
            .context("greet the unprivileged half")
    }

    fn run(&mut self) -> Result<()> {
        let mut tick = Instant::now() + TICK;
        loop {
            let now = Instant::now();
            let deadlines = [self.holds.next(), self.workers.deadline()];
            let mut wake = deadlines.into_iter().flatten().fold(tick, Instant::min);
            let has_more = !self.to_scan.is_empty() || self.band.has_more() || self.is_catching_up;
            if has_more && !self.is_behind() {
                wake = now;
            }
            if !self.in_exec.is_empty() {
                wake = wake.min(now + EXEC_STEP);
            }
            self.wait(wake.saturating_duration_since(now))?;
            self.kernel.flush_log();
            if !self.is_behind() {
                for happening in self.band.drain() {
                    if self.is_filter_set {
                        self.happened(happening)?;
                    }
                }
                self.after_exec()?;
                self.say_caught_up();
            }
            if !self.take_orders()? {
                return Ok(());
            }
            self.take_work();
            // Behind the answers: on a busy machine they may be as late as this is.
            let continued = self.holds.expire(Instant::now());
            self.say_continued(continued);
            let written = self.watches.written();
            if self.breaks.have_come() || !written.is_empty() {
                self.give_way(&written);
            }
            self.scan()?;
            if Instant::now() >= tick {
                tick = Instant::now() + TICK;
                self.let_go_of_left();
                self.let_go_of_unwanted();
                self.give_way(&[]);
                self.move_home();
                self.close_old();
                self.end_pauses();
                self.check_some_members()?;
                self.ask_again();
                self.band.refresh()?;
                self.take_shelved()?;
                self.forget_ended()?;
            }
            if !self.flush()? {
                return Ok(());
            }
        }
    }

    fn is_behind(&self) -> bool {
        self.outbox.len() >= OUTBOX_LIMIT
    }

    fn wait(&self, at_most: Duration) -> Result<()> {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, !self.is_behind());
        interest.set(PollFlags::OUT, !self.outbox.is_empty());
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.socket, interest),
            PollFd::from_borrowed_fd(self.workers.fd(), PollFlags::IN),
            PollFd::new(&self.breaks, PollFlags::IN),
            PollFd::new(&self.watches, PollFlags::IN),
        ];
        if !self.is_behind() {
            fds.extend(self.band.fds().map(|fd| PollFd::new(fd, PollFlags::IN)));
        }
        let timeout = Timespec::try_from(at_most).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("wait for orders and mappings"),
        }
    }

    fn happened(&mut self, happening: Happening) -> Result<()> {
        match happening {
            Happening::Mapped(mapping) => self.mapped(&mapping, Instant::now())?,
            Happening::Exec { pid, at } => {
                self.forget(pid);
                self.begun.insert(pid, at);
                self.check_member(pid)?;
            }
            // Who delivers may have died, and has a successor.
            Happening::Fork { pid, parent } if self.helpers.contains(&parent) => {
                self.own.insert(pid);
                self.helpers.insert(pid);
                self.mark(pid, OURS)?;
            }
            Happening::Fork { pid, parent } => {
                // A child can be born into another group (CLONE_INTO_CGROUP).
                self.check_member(pid)?;
                // It has its parent's mappings, and no event says so.
                if self.told.contains(&parent) && self.is_wanted(parent) {
                    self.tell(pid);
                    self.homes.fork(parent, pid);
                }
                if !self.kernel.features.follows && self.filter.follow && self.has(parent, WANTED) {
                    self.mark(pid, WANTED)?;
                }
            }
            Happening::Exit { pid } => {
                if self.helpers.remove(&pid) {
                    self.own.remove(&pid);
                }
                self.ended(pid);
            }
            Happening::Renamed { pid, comm } => {
                if self.told.contains(&pid)
                    && let Some(pid) = self.kernel.id(pid)
                {
                    self.report(Report::Renamed { pid, comm }, None);
                }
            }
            Happening::Lost => {
                if !std::mem::replace(&mut self.has_lost, true) {
                    let warning = "the kernel could not tell of all mappings: processes that came and \
                                   went meanwhile may be missing from coverage";
                    self.report(Report::Warning(warning.to_owned()), None);
                }
                self.catch_up()?;
            }
        }
        Ok(())
    }

    /// False when the pipeline is done.
    fn take_orders(&mut self) -> Result<bool> {
        for _ in 0..ORDERS {
            // Each has an answer: who does not take them gives no more orders.
            if self.is_behind() {
                break;
            }
            let (order, mut fds) = match half::receive(self.socket)? {
                Received::Nothing => return Ok(true),
                Received::End => return Ok(false),
                Received::Message(order, fds) => (order, fds),
            };
            match (order, fds.len()) {
                (Order::Stop, 0) => return Ok(false),
                // Once, and before anything else: who is watched is no later decision, but for a daemon's.
                (Order::Filter(filter), 0) if !self.is_filter_set => self.set_filter(filter)?,
                (Order::Change(choice), 0) if self.filter.may_change && self.leaving.is_none() => {
                    self.change_filter(choice)?;
                }
                (Order::Changed, 0) if self.leaving.is_some() => self.end_change()?,
                (Order::Cgroup, 1) if !self.is_filter_set || self.filter.may_change => {
                    self.groups.expect(fds.remove(0))?;
                }
                (Order::Attach { file, points }, 0) if file & OWN_FILE == 0 => {
                    self.answer(file, points, None)?;
                }
                (Order::Attach { file, points }, 1)
                    if file & OWN_FILE != 0 && !self.files.contains_key(&file) =>
                {
                    let fd = fds.remove(0);
                    if self.adopt(file, &fd)? {
                        self.answer(file, points, Some(fd))?;
                    }
                }
                (Order::Refuse { file, why }, 0) => self.refuse(file, why)?,
                (Order::Pause { file, seconds }, 0) => self.pause(file, seconds)?,
                (Order::Sockets(sockets), 0) => self.settle_sockets(&sockets),
                (Order::Forget(handles), 0) => self.forget_handles(&handles),
                (Order::Introduce { pid }, 0) => self.introduce(pid),
                (Order::Inspect(connected), 0) => self.inspect(connected),
                (Order::Examine { pid }, 0) => self.examine(pid),
                (Order::CatchUp, 0) => self.is_catching_up = true,
                (Order::Survey { pending }, 0) => self.survey(pending)?,
                (order, count) => bail!("unexpected order with {count} descriptors: {order:?}"),
            }
        }
        Ok(true)
    }

    /// What the workers did, and what they did not do in time.
    fn take_work(&mut self) {
        for (id, done) in self.workers.finished() {
            if let Some(Done::Detached) = done
                && let Some(points) = self.interrupted.remove(&id)
            {
                self.interrupt(&points);
                continue;
            }
            let Some(file) = self.files.get_mut(&id) else {
                // Let go meanwhile.
                if let Some(done @ (Done::Placed(_) | Done::Moved(_))) = done {
                    undo(&mut self.workers, id, done);
                }
                continue;
            };
            match (done, &file.state) {
                (Some(Done::Opened(Ok(Opened { fd, inode, instead }))), State::Opening) => {
                    if let Some((named, version)) = instead {
                        (file.fd, file.version) = (Arc::new(named), version);
                        file.mount = None;
                        self.held.retain(|_, known| *known != id);
                        self.held.insert(version, id);
                    }
                    let known = inode.and_then(|inode| self.inodes.get(&inode).copied());
                    if let Some(known) = known.filter(|known| *known != id) {
                        self.same(id, known);
                        continue;
                    }
                    file.state = State::Asked;
                    file.inode = inode;
                    self.inodes.extend(inode.map(|inode| (inode, id)));
                    let path = file.path.clone();
                    self.holds.locating(id);
                    self.report(Report::Opened { file: id, path }, Some(fd.into()));
                }
                (Some(Done::Opened(Err(error))), State::Opening) => {
                    self.unread(id, format!("open it: {error}"));
                }
                (None, State::Opening) => {
                    let device = file.version.identity.device();
                    let users = self.mapped.iter().filter(|(_, file)| *file == id);
                    self.unanswered.extend(users.map(|(pid, _)| (*pid, device)));
                    self.unread(id, "its file system does not answer".to_owned());
                }
                (Some(done @ Done::Placed(_)), _) if file.is_withdrawn => {
                    undo(&mut self.workers, id, done)
                }
                // Also when it was given up before.
                (Some(Done::Placed(placed)), _) => self.placed(id, placed),
                (None, State::Placing) => {
                    self.placed(id, Err("the kernel places no probe in it".to_owned()));
                }
                (Some(Done::Moved(moved)), State::Attached(_)) => self.moved(id, moved),
                (Some(done @ Done::Moved(_)), _) => undo(&mut self.workers, id, done),
                (Some(Done::Opened(_) | Done::Detached) | None, _) => {}
            }
        }
    }

    fn set_filter(&mut self, filter: Filter) -> Result<()> {
        self.own.extend(&filter.own);
        self.helpers.extend(&filter.own);
        for pid in self.own.clone() {
            self.mark(pid, OURS)?;
        }
        for pid in &filter.pids {
            self.mark(*pid, WANTED)?;
        }
        let Choice { uids, comms, .. } = &filter.choice;
        fill(&mut self.kernel.map("UIDS"), uids.iter().copied())?;
        let keys = comms.iter().map(|comm| comm_key(comm));
        fill(&mut self.kernel.map("COMMS"), keys)?;
        self.groups.fill(&mut self.kernel)?;
        self.groups.settled();
        if filter.scan {
            self.to_scan = facts::all_pids().into();
        }
        if filter.hold {
            // Refused: then with the nice value from above.
            let _ = hold::hurry();
        }
        if let [pid] = filter.pids[..] {
            self.group = facts::group(pid).unwrap_or_default();
        }
        self.filter = filter;
        self.check_members()?;
        if self.filter.choice.members && self.filter.scan && self.joined.is_empty() {
            let warning =
                "no process is in the control groups that are to be watched: waiting for one";
            self.report(Report::Warning(warning.to_owned()), None);
        }
        self.joined.clear();
        self.is_filter_set = true;
        self.report(Report::FilterSet, None);
        Ok(())
    }

    /// Makes the kernel's sets those of the new filter, but for who must not be let in yet: a kind that is active
    /// before and after has what is in both.
    fn change_filter(&mut self, choice: Choice) -> Result<()> {
        let old = std::mem::replace(&mut self.filter.choice, choice);
        let Choice { uids, comms, .. } = &self.filter.choice;
        let mut map = self.kernel.map::<u32, u8>("UIDS");
        if old.uids.is_empty() || uids.is_empty() {
            fill(&mut map, uids.iter().copied())?;
        } else {
            narrow(&mut map, |uid| uids.contains(uid))?;
        }
        let keys: Vec<[u8; 16]> = comms.iter().map(|comm| comm_key(comm)).collect();
        let mut map = self.kernel.map::<[u8; 16], u8>("COMMS");
        if old.comms.is_empty() || comms.is_empty() {
            fill(&mut map, keys)?;
        } else {
            narrow(&mut map, |comm| keys.contains(comm))?;
        }
        let is_new = !self.watches_the_same(&old);
        match self.groups.stay_active() {
            true => self.groups.narrow(&mut self.kernel)?,
            false => self.fill_groups(),
        }
        self.leaving = Some(old);
        if is_new {
            self.check_members()?;
        }
        self.report(Report::FilterSet, None);
        Ok(())
    }

    /// The control word says which kinds are active now.
    fn end_change(&mut self) -> Result<()> {
        let Some(old) = self.leaving.take() else {
            return Ok(());
        };
        let Choice { uids, comms, .. } = &self.filter.choice;
        let keys: Vec<[u8; 16]> = comms.iter().map(|comm| comm_key(comm)).collect();
        let mut map = self.kernel.map::<u32, u8>("UIDS");
        narrow(&mut map, |uid| uids.contains(uid))?;
        fill(&mut map, uids.iter().copied())?;
        let mut map = self.kernel.map::<[u8; 16], u8>("COMMS");
        narrow(&mut map, |comm| keys.contains(comm))?;
        fill(&mut map, keys.iter().copied())?;
        self.groups.narrow(&mut self.kernel)?;
        self.fill_groups();
        self.groups.settled();
        if !self.watches_the_same(&old) {
            self.check_members()?;
            self.say_who_is_outside();
            // Also those who were looked at before: what they have mapped while they were not watched was not told of.
            self.joined.clear();
            self.to_scan = facts::all_pids().into();
            self.has_changed = true;
        }
        self.report(Report::FilterSet, None);
        Ok(())
    }

    /// Are its control groups those that are watched now?
    fn watches_the_same(&self, old: &Choice) -> bool {
        let Choice {
            groups,
            containers,
            members,
            ..
        } = &self.filter.choice;
        (&old.groups, &old.containers, &old.members) == (groups, containers, members)
    }

    /// While the half runs one of these may be gone between the look for it and this.
    fn fill_groups(&mut self) {
        if let Err(error) = self.groups.fill(&mut self.kernel) {
            let warning = half::clip(&format!("a control group is not watched: {error:#}"));
            self.report(Report::Warning(warning), None);
        }
    }

    fn say_who_is_outside(&mut self) {
        for pid in self.told.clone() {
            let is_outside = !self.filter.choice.holds(&facts::groups(pid));
            if let Some(pid) = self.kernel.id(pid) {
                self.report(Report::Placed { pid, is_outside }, None);
            }
        }
    }

    /// What the kernel side knows of a process.
    fn known(&mut self, pid: u32) -> Option<Process> {
        let id = self.kernel.id(pid)?;
        let processes = self.kernel.map::<u32, Process>("PROCESSES");
        processes.get(&id, 0).ok()
    }

    fn has(&mut self, pid: u32, flags: u64) -> bool {
        flags == 0
            || self
                .known(pid)
                .is_some_and(|one| one.flags & flags == flags)
    }

    /// Tells the kernel side what a process is, beside what it is already.
    fn mark(&mut self, pid: u32, flags: u64) -> Result<()> {
        if self.kernel.learn_id(pid).is_none() {
            return Ok(());
        }
        let mut process = self.known(pid).unwrap_or(Process {
            born: now(),
            flags: 0,
        });
        process.flags |= flags;
        self.set(pid, process)
    }

    fn set(&mut self, pid: u32, process: Process) -> Result<()> {
        let Some(id) = self.kernel.id(pid) else {
            return Ok(());
        };
        let mut processes = self.kernel.map::<u32, Process>("PROCESSES");
        Ok(processes.insert(&id, &process, 0)?)
    }

    /// Puts a process into the set of the watched control groups, or takes it out.
    fn check_member(&mut self, pid: u32) -> Result<()> {
        let choice = &self.filter.choice;
        if !choice.members || self.own.contains(&pid) {
            return Ok(());
        }
        let groups = facts::groups(pid);
        let before = self.leaving.as_ref().filter(|old| old.members);
        let is_member = choice.holds(&groups) && before.is_none_or(|old| old.holds(&groups));
        let known = self.known(pid);
        if is_member == known.is_some_and(|process| process.flags & MEMBER != 0) {
            return Ok(());
        }
        if is_member {
            self.joined.push(pid);
            return self.mark(pid, MEMBER);
        }
        match known {
            Some(process) => {
                let flags = process.flags & !MEMBER;
                self.set(pid, Process { flags, ..process })
            }
            None => Ok(()),
        }
    }

    fn check_members(&mut self) -> Result<()> {
        if !self.filter.choice.members {
            return Ok(());
        }
        for pid in facts::all_pids() {
            self.check_member(pid)?;
        }
        Ok(())
    }

    /// Each second: looks at what the new members map, and asks some processes again where they are.
    fn check_some_members(&mut self) -> Result<()> {
        if !self.filter.choice.members {
            return Ok(());
        }
        if self.to_check.is_empty() {
            self.to_check = facts::all_pids().into();
        }
        let count = self.to_check.len().min(CHECKS);
        for pid in self.to_check.drain(..count).collect::<Vec<_>>() {
            self.check_member(pid)?;
        }
        self.to_scan.extend(std::mem::take(&mut self.joined));
        Ok(())
    }

    /// What was not looked at is, where it can be by now.
    fn ask_again(&mut self) {
        let workers = &self.workers;
        let back = |(_, device): &(u32, u64)| !workers.is_silent(*device);
        let back: HashSet<u32> = self
            .unanswered
            .extract_if(back)
            .map(|(pid, _)| pid)
            .collect();
        self.to_scan.extend(back);
    }

    /// Whether uses of these sockets are told. Of those that are still open.
    fn settle_sockets(&mut self, sockets: &[(u64, u64)]) {
        const BPF_EXIST: u64 = 2;
        let mut map = self.kernel.map::<u64, u64>("SOCKETS");
        for (cookie, state) in sockets {
            // It may be closed by now.
            let _ = map.insert(cookie, state, BPF_EXIST);
        }
    }

    fn is_wanted(&mut self, pid: u32) -> bool {
        let by_pid = if self.filter.pids.is_empty() {
            0
        } else {
            WANTED
        };
        let by_group = if self.filter.choice.members {
            MEMBER
        } else {
            0
        };
        !self.own.contains(&pid) && self.has(pid, by_pid | by_group)
    }

    /// Looks at what processes map already, as long as the pipeline keeps up.
    fn scan(&mut self) -> Result<()> {
        while !self.is_behind()
            && let Some(pid) = self.to_scan.pop_front()
        {
            if !self.is_wanted(pid) {
                continue;
            }
            for mapping in facts::mappings(pid) {
                self.mapped(&mapping, Instant::now())?;
            }
            if !self.flush()? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Happenings were lost: who maps what, and who is gone, is asked again.
    fn catch_up(&mut self) -> Result<()> {
        self.check_members()?;
        let pids = facts::all_pids();
        let gone: Vec<u32> = self
            .told
            .iter()
            .copied()
            .filter(|pid| !pids.contains(pid))
            .collect();
        for pid in gone {
            self.ended(pid);
        }
        self.to_scan = pids.into();
        Ok(())
    }

    fn ended(&mut self, pid: u32) {
        self.forget(pid);
        self.begun.remove(&pid);
        if let Some(id) = self.kernel.id(pid) {
            self.ended.push_back((Instant::now(), pid, id));
        }
    }

    /// The process is another program now, or gone.
    fn forget(&mut self, pid: u32) {
        self.told.remove(&pid);
        self.mapped.retain(|(known, _)| *known != pid);
        self.unanswered.retain(|(known, _)| *known != pid);
        self.homes.forget(pid);
    }

    /// Everything is read that happened before the order came: it was not there yet when the events were read the time
    /// before.
    fn say_caught_up(&mut self) {
        if self.is_catching_up && self.to_scan.is_empty() {
            self.is_catching_up = false;
            self.report(Report::CaughtUp, None);
        }
    }

    /// Looks again at who was in the middle of exec.
    fn after_exec(&mut self) -> Result<()> {
        for (since, mapping) in std::mem::take(&mut self.in_exec) {
            self.mapped(&mapping, since)?;
        }
        Ok(())
    }

    /// A process maps a file, as we have known since then.
    fn mapped(&mut self, mapping: &Mapping, since: Instant) -> Result<()> {
        if mapping.inode == 0 || !self.is_wanted(mapping.pid) {
            return Ok(());
        }
        let Some(process) = self.kernel.id(mapping.pid) else {
            return Ok(());
        };
        let (fd, version) = match file::mapped(mapping) {
            Ok(mapped) => mapped,
            // The process went on, or was shorter than our way here. What it maps now is reported by
            // itself; what it used meanwhile may have been a TLS library.
            Err(error) if is_gone(&error) => match file::by_name(mapping) {
                Ok(named) => named,
                Err(_) => {
                    self.missed(mapping, process);
                    return Ok(());
                }
            },
            Err(error) => {
                let warning = half::clip(&format!(
                    "open {} of process {}: {error}",
                    mapping.path, mapping.pid
                ));
                self.report(Report::Warning(warning), None);
                return Ok(());
            }
        };
        // What the name leads to may be another file than the one that is mapped.
        let asked = match version.identity.is_doubtful() {
            true => self.kernel.programs.inode_mapped(mapping),
            false => None,
        };
        let is_nothing = self.nothing.contains(&(version, asked));
        if is_nothing && !self.tells_all {
            return Ok(());
        }
        if since.elapsed() < EXEC_TIME
            && self.in_exec.len() < EXECS_MAX
            && !self.told.contains(&mapping.pid)
            && facts::is_in_exec(mapping.pid)
        {
            self.in_exec.push_back((since, mapping.clone()));
            return Ok(());
        }
        if is_nothing {
            self.tell(mapping.pid);
            return Ok(());
        }
        let known = self.known_file(&version, asked);
        let id = known.unwrap_or(self.next_file);
        if !self.mapped.insert((mapping.pid, id)) {
            return Ok(());
        }
        let mount = file::mount(&fd);
        if let Some(mount) = mount {
            self.homes.add(id, mount, mapping);
        }
        let is_open = known.is_none_or(|id| self.files[&id].is_open());
        let held = is_open
            && self.filter.hold
            && mapping.at.is_some()
            && self.holds.plan(mapping.pid, id, self.group);
        self.tell(mapping.pid);
        self.report(
            Report::Mapped(Mapped {
                file: id,
                pid: process,
                at: mapping.at,
                held: held.then_some(mapping.pid),
            }),
            None,
        );
        match known.map(|id| &self.files[&id].state) {
            Some(State::Asked) => self.holds.locating(id),
            Some(State::Placing) => self.holds.placing(id),
            _ => {}
        }
        if held {
            // Said before it is done: should we die now, the pipeline continues it.
            self.flush()?;
            if self.outbox.is_empty() {
                self.holds.stop(mapping.pid);
            } else if self.holds.spare(mapping.pid) {
                self.say_continued(vec![mapping.pid]);
            }
        }
        if known.is_none() {
            self.next_file += 1;
            let fd = self.hold_file(id, fd, version, &mapping.path, State::Opening);
            if let Some(file) = self.files.get_mut(&id) {
                (file.inode, file.looks) = (asked, (version, asked));
                file.mount = mount;
                let is_doubtful = version.identity.is_doubtful();
                file.witness = is_doubtful.then(|| mapping.clone());
                self.inodes.extend(asked.map(|inode| (inode, id)));
            }
            let programs = self.kernel.programs.clone();
            let mapping = mapping.clone();
            let is_doubtful = version.identity.is_doubtful();
            let open = move || Done::Opened(open(&programs, &fd, &mapping, is_doubtful, asked));
            let device = version.identity.device();
            self.workers.start(id, device, OPENING, open);
        }
        self.say_refused(id);
        Ok(())
    }

    /// The number of a file, if it has one.
    fn known_file(&self, version: &Version, asked: Option<Inode>) -> Option<FileId> {
        let Some(inode) = asked else {
            return self.held.get(version).copied();
        };
        // One of the same looks is the same unless the kernel says otherwise.
        let is_same = |id: &&FileId| self.files[*id].inode.is_none_or(|known| known == inode);
        let by_looks = || self.held.get(version).filter(is_same);
        self.inodes.get(&inode).or_else(by_looks).copied()
    }

    /// Nobody can say any more what the file was: the pipeline judges by its name.
    fn missed(&mut self, mapping: &Mapping, process: u32) {
        self.tell(mapping.pid);
        self.report(
            Report::Missed {
                pid: process,
                path: half::clip(&mapping.path),
            },
            None,
        );
    }

    fn hold_file(
        &mut self,
        id: FileId,
        fd: OwnedFd,
        version: Version,
        path: &str,
        state: State,
    ) -> Arc<OwnedFd> {
        let fd = Arc::new(fd);
        let file = File {
            fd: fd.clone(),
            version,
            inode: None,
            looks: (version, None),
            witness: None,
            path: path.to_owned(),
            since: Instant::now(),
            state,
            is_left: false,
            mount: None,
            sites: Vec::new(),
            is_moving: false,
            is_withdrawn: false,
            was_silent: false,
            silent_in: None,
            old: None,
        };
        self.held.insert(version, id);
        self.files.insert(id, file);
        fd
    }

    /// Forgets a file: if it is mapped again it is a new one.
    fn drop_file(&mut self, id: FileId) -> Option<File> {
        let file = self.files.remove(&id)?;
        self.held.retain(|_, known| *known != id);
        self.inodes.retain(|_, known| *known != id);
        self.homes.drop_file(id);
        Some(file)
    }

    /// A file that was opened is one that is known: through another overlay mount, by another name.
    fn same(&mut self, id: FileId, known: FileId) {
        self.homes.same(id, known);
        let Some(file) = self.drop_file(id) else {
            return;
        };
        self.held.insert(file.version, known);
        let users = self.mapped.extract_if(|(_, file)| *file == id);
        let users: Vec<u32> = users.map(|(pid, _)| pid).collect();
        self.mapped
            .extend(users.into_iter().map(|pid| (pid, known)));
        self.report(Report::Same { file: id, known }, None);
        if self.files[&known].is_open() {
            self.holds.same(id, known);
            return;
        }
        self.say_refused(known);
        self.let_go(id);
    }

    /// Refused once: the same for a process that comes later.
    fn say_refused(&mut self, file: FileId) {
        if let Some(File {
            state: State::Refused(why),
            ..
        }) = self.files.get(&file)
        {
            let why = why.clone();
            self.report(Report::Refused { file, why }, None);
        }
    }

    /// Files that nobody maps any more are let go: they keep a mount, or a deleted file's blocks. Not those
    /// of the root nor those probed ahead, which harm nobody and serve the next process from its first byte.
    fn let_go_of_left(&mut self) {
        let mut left = Vec::new();
        for (id, file) in &mut self.files {
            let (State::Attached(_) | State::Paused(_) | State::Refused(_), Some(inode)) =
                (&file.state, file.inode)
            else {
                continue;
            };
            let is_on_root = Some(file.version.identity.device()) == self.root;
            let is_ahead = *id & OWN_FILE != 0;
            let is_kept = (is_on_root || is_ahead) && !file::is_deleted(&file.fd);
            let was_left = file.is_left;
            file.is_left = !is_kept && self.kernel.programs.is_left(inode);
            if was_left && file.is_left {
                left.push(*id);
            }
        }
        for id in left {
            self.detach(id);
        }
    }

    /// After a change, when all that is watched now was looked at: files that only others map, who met their probes for
    /// nothing.
    fn let_go_of_unwanted(&mut self) {
        if !self.has_changed || !self.to_scan.is_empty() || !self.in_exec.is_empty() {
            return;
        }
        self.has_changed = false;
        let mut watched: HashSet<u32> = self.mapped.iter().map(|(pid, _)| *pid).collect();
        watched.retain(|pid| self.is_wanted(*pid));
        let files = |is_watched| {
            let mapped = self.mapped.iter();
            let of = mapped.filter(|(pid, _)| watched.contains(pid) == is_watched);
            of.map(|(_, file)| *file).collect::<HashSet<FileId>>()
        };
        let left = &files(false) - &files(true);
        for id in left {
            if self.files.get(&id).is_some_and(|file| !file.is_open()) {
                self.detach(id);
            }
        }
    }

    /// Somebody wants to write a probed file: it waits until our breakpoints are out. Or has done so, where
    /// there is a watch only.
    fn give_way(&mut self, written: &[i32]) {
        let wanted = |file: &File| {
            let new = match &file.state {
                State::Attached(probes) => Some(probes),
                _ => None,
            };
            let old = file.old.as_ref().map(|old| &old.probes);
            let mut probes = new.into_iter().chain(old);
            probes.any(|probes| {
                let is_written = |watch: &Watch| watch.is_one_of(written);
                probes.leased.as_ref().is_some_and(lease::is_wanted)
                    || probes.watch.as_ref().is_some_and(is_written)
            })
        };
        let ids: Vec<FileId> = self
            .files
            .iter()
            .filter(|(_, file)| wanted(file))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let why =
                "somebody writes into it: calls through it are not seen until it is mapped again";
            self.report(
                Report::Refused {
                    file: id,
                    why: why.to_owned(),
                },
                None,
            );
            self.detach(id);
        }
    }

    /// A mount whose last user is gone is let go as well, while others use the file through theirs: the
    /// probes are placed once more through one of those.
    fn move_home(&mut self) {
        let mut moves = Vec::new();
        for (id, file) in &mut self.files {
            let is_on_root = Some(file.version.identity.device()) == self.root;
            let (State::Attached(_), Some(inode), Some(mount)) =
                (&file.state, file.inode, file.mount)
            else {
                continue;
            };
            if is_on_root || file.is_moving || file.old.is_some() {
                continue;
            }
            if let Some(mapping) = self.homes.next(*id, mount) {
                moves.push((*id, inode, mapping.clone()));
            }
        }
        for (id, inode, mapping) in moves {
            self.place_again(id, inode, mapping);
        }
    }

    /// Places the probes of a file once more, the way to which is this mapping. What was placed before is closed
    /// when these are in.
    fn place_again(&mut self, id: FileId, inode: Inode, mapping: Mapping) {
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        file.is_moving = true;
        let sites = file.sites.iter().map(|site| Site {
            cookie: site.cookie ^ MOVED,
            ..*site
        });
        let sites = sites.collect();
        let device = file.version.identity.device();
        let programs = self.kernel.programs.clone();
        let only = self.only();
        let watches = self.watches.clone();
        let place = move || {
            Done::Moved(place_again(
                &programs, &watches, &mapping, inode, sites, &only,
            ))
        };
        self.workers.start(id, device, PLACING, place);
    }

    fn moved(&mut self, id: FileId, moved: io::Result<Moved>) {
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        file.is_moving = false;
        let silent_in = file.silent_in.take();
        // Else at the next tick, if there still is a reason.
        if let Ok(moved) = moved {
            let state = State::Attached(moved.probes);
            if let State::Attached(probes) = std::mem::replace(&mut file.state, state) {
                let _fd = std::mem::replace(&mut file.fd, Arc::new(moved.fd));
                file.old = Some(Old { _fd, probes });
            }
            (file.mount, file.sites) = (moved.mount, moved.sites);
            self.begin_again(silent_in);
        }
    }

    /// Ends what was moved. A session link alone brings back the calls that it alone saw begin: it stays
    /// until they have returned.
    fn close_old(&mut self) {
        if self.files.values().all(|file| file.old.is_none()) {
            return;
        }
        let open = match self.kernel.features.link {
            Link::Session => self.open_calls(),
            Link::Multi | Link::PerfCookie | Link::Perf => HashSet::new(),
        };
        for (id, file) in &mut self.files {
            let is_used = |site: &Site| open.contains(&(site.cookie ^ MOVED));
            if file.sites.iter().any(is_used) {
                continue;
            }
            if let Some(old) = file.old.take() {
                self.workers.start(*id, *id, PLACING, move || {
                    drop(old);
                    Done::Detached
                });
            }
        }
    }

    /// The cookies of all calls that are open now.
    fn open_calls(&mut self) -> HashSet<u64> {
        let threads = self.kernel.map::<u64, Thread>("THREADS");
        let threads = threads.iter().flatten();
        let frames = threads.flat_map(|(_, thread)| {
            let open = thread.frames.into_iter().take(thread.depth as usize);
            open.map(|frame| frame.cookie)
        });
        frames.collect()
    }

    fn detach(&mut self, id: FileId) {
        self.mapped.retain(|(_, file)| *file != id);
        let Some(file) = self.drop_file(id) else {
            return;
        };
        self.report(Report::LetGo { file: id }, None);
        if let State::Attached(_) = file.state {
            self.break_off(id, &file.sites);
        }
        let device = file.version.identity.device();
        let detach = move || {
            drop(file);
            Done::Detached
        };
        self.workers.start(id, device, PLACING, detach);
    }

    /// Takes the probes of a file out for a while. It stays known: who maps it meanwhile needs no new look at it.
    fn pause(&mut self, id: FileId, seconds: u32) -> Result<()> {
        let Some(file) = self.files.get_mut(&id) else {
            // Let go meanwhile, if there ever was one.
            return self.check_was_known(id);
        };
        let State::Attached(_) = file.state else {
            return Ok(());
        };
        let seconds = seconds.clamp(*half::PAUSE.start(), *half::PAUSE.end());
        let until = Instant::now() + Duration::from_secs(seconds.into());
        let probes = std::mem::replace(&mut file.state, State::Paused(until));
        let old = file.old.take();
        // What is placed just now goes as well.
        file.is_moving = false;
        let device = file.version.identity.device();
        let sites = file.sites.clone();
        self.break_off(id, &sites);
        self.report(Report::Paused { file: id }, None);
        self.workers.start(id, device, PLACING, move || {
            drop((probes, old));
            Done::Detached
        });
        Ok(())
    }

    /// An order about a file that is not known any more, and was.
    fn check_was_known(&self, id: FileId) -> Result<()> {
        match id & OWN_FILE != 0 || id < self.next_file {
            true => Ok(()),
            false => bail!("an order about file {id:x}, which was not asked for"),
        }
    }

    fn end_pauses(&mut self) {
        let now = Instant::now();
        let is_over = |file: &File| matches!(file.state, State::Paused(until) if now >= until);
        let over = self.files.iter_mut().filter(|(_, file)| is_over(file));
        let over = over.map(|(id, file)| {
            file.since = now;
            *id
        });
        for id in over.collect::<Vec<_>>() {
            self.start_placing(id, None);
        }
    }

    /// The probes with these sites are about to go, while processes use them.
    fn break_off(&mut self, id: FileId, sites: &[Site]) {
        let points = sites.iter().map(|site| site.cookie >> POINT).collect();
        self.interrupt(&points);
        self.interrupted.insert(id, points);
    }

    /// Calls of who has streams through these points pass by, until the file is mapped again. Said twice, before
    /// the probes are out and after, and whenever new ones are placed: who came back in between went again.
    fn interrupt(&mut self, points: &HashSet<u64>) {
        let streams = self.kernel.map::<StreamKey, Stream>("STREAMS");
        let of_points = |stream: &Stream| {
            // 0: this kernel has no cookies.
            let point = stream.cookie >> POINT;
            point == 0 || points.contains(&point)
        };
        let streams = streams.iter().flatten();
        let users: HashSet<u32> = streams
            .filter(|(_, stream)| of_points(stream))
            .map(|(key, _)| key.tgid)
            .collect();
        self.begin_again(users);
    }

    /// Calls of these passed by: what they have open ends here, and goes on as what was joined in its middle.
    fn begin_again(&mut self, users: impl IntoIterator<Item = u32>) {
        let mut users = users.into_iter().peekable();
        if users.peek().is_none() {
            return;
        }
        let mut absences = self.kernel.map::<u32, Absence>("ABSENCES");
        for user in users {
            let back = absences.get(&user, 0).map_or(0, |known| known.back);
            // No room, or gone meanwhile.
            let _ = absences.insert(&user, &Absence { is_away: 1, back }, 0);
        }
        self.report(Report::Interrupted, None);
    }

    /// A file that can't be opened, or not now.
    fn unread(&mut self, id: FileId, why: String) {
        if let Some(File { path, .. }) = self.drop_file(id) {
            let file = id;
            self.report(Report::Unread { file, path, why }, None);
            self.report(Report::LetGo { file }, None);
            self.let_go(id);
        }
    }

    /// A file that the pipeline opened itself, as the user. False: it is known by another number.
    fn adopt(&mut self, id: FileId, fd: &OwnedFd) -> Result<bool> {
        let (fd, version) = file::named(fd)?;
        // CMD was sooner: it maps the file, and waits for what was found in it.
        if let Some(known) = self.held.get(&version).copied() {
            self.report(Report::Same { file: id, known }, None);
            return Ok(false);
        }
        self.hold_file(id, fd, version, "", State::Asked);
        Ok(true)
    }

    /// The pipeline looked at a file, by `own` if it was its own.
    fn answer(&mut self, id: FileId, mut sites: Vec<Site>, own: Option<OwnedFd>) -> Result<()> {
        let file = self.asked(id)?;
        if sites.is_empty() {
            let looks = file.looks;
            self.drop_file(id);
            if self.nothing.len() >= NOTHING_LIMIT {
                self.nothing.clear();
            }
            self.nothing.insert(looks);
            self.let_go(id);
            return Ok(());
        }
        sites.retain(|site| self.kernel.programs.takes(site));
        self.asked(id)?.sites = sites;
        self.start_placing(id, own);
        Ok(())
    }

    /// Places the probes of a file at its sites, where the bytes are still those that the pipeline saw.
    fn start_placing(&mut self, id: FileId, own: Option<OwnedFd>) {
        for points in self.interrupted.values().cloned().collect::<Vec<_>>() {
            self.interrupt(&points);
        }
        let only = self.only();
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        self.holds.placing(id);
        file.state = State::Placing;
        let programs = self.kernel.programs.clone();
        let sites = file.sites.clone();
        let device = file.version.identity.device();
        let fd = file.fd.clone();
        let witness = file.witness.take();
        let watches = self.watches.clone();
        let place = move || {
            let placed = place(&programs, &watches, &fd, own, &sites, &only);
            let misses = |mapping| file::check_placed_in(mapping, &sites) == Some(false);
            Done::Placed(match witness.as_ref().is_some_and(misses) {
                true => placed.and(Err(REPLACED.to_owned())),
                false => placed,
            })
        };
        self.workers.start(id, device, PLACING, place);
    }

    /// A small fixed set of processes: nobody else meets a breakpoint.
    fn only(&self) -> Vec<u32> {
        match &self.filter {
            Filter {
                follow: false,
                pids,
                ..
            } if pids.len() <= LINKS_PER_PROCESS => pids.clone(),
            _ => Vec::new(),
        }
    }

    /// The file, which the pipeline was asked about.
    fn asked(&mut self, id: FileId) -> Result<&mut File> {
        match self.files.get_mut(&id) {
            Some(file) if matches!(file.state, State::Asked) => Ok(file),
            _ => bail!("an order about file {id:x}, which was not asked for"),
        }
    }

    fn placed(&mut self, id: FileId, placed: Result<Probes, String>) {
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        let (state, report) = match placed {
            Ok(probes) => {
                file.inode = probes.inode;
                self.inodes.extend(probes.inode.map(|inode| (inode, id)));
                let micros = file.since.elapsed().as_micros() as u64;
                let attached = Attached {
                    file: id,
                    at: now(),
                    micros,
                };
                (State::Attached(probes), Report::Attached(attached))
            }
            Err(why) => (
                State::Refused(why.clone()),
                Report::Refused { file: id, why },
            ),
        };
        file.state = state;
        self.report(report, None);
        self.let_go(id);
    }

    /// Those who waited for this file go on, after what was said about it.
    fn let_go(&mut self, file: FileId) {
        let continued = self.holds.answered(file);
        self.say_continued(continued);
    }

    fn say_continued(&mut self, pids: Vec<u32>) {
        for pid in pids {
            if let Some(pid) = self.kernel.id(pid) {
                self.report(Report::Continued { pid }, None);
            }
        }
    }

    /// The pipeline found a library that it won't probe, or no longer. It has told those who map it; later ones
    /// are told by us.
    fn refuse(&mut self, id: FileId, why: String) -> Result<()> {
        let Some(file) = self.files.get_mut(&id) else {
            // Let go meanwhile, if there ever was one.
            return self.check_was_known(id);
        };
        match file.state {
            State::Asked | State::Paused(_) => file.state = State::Refused(why),
            State::Placing | State::Attached(_) => {
                let probes = std::mem::replace(&mut file.state, State::Refused(why));
                let old = file.old.take();
                file.is_withdrawn = true;
                let device = file.version.identity.device();
                self.workers.start(id, device, PLACING, move || {
                    drop((probes, old));
                    Done::Detached
                });
            }
            State::Refused(_) => {}
            State::Opening => bail!("an order about file {id:x}, which was not asked for"),
        }
        self.let_go(id);
        Ok(())
    }

    fn tell(&mut self, pid: u32) {
        // A child may be told of before the kernel side has noted its id.
        let Some(id) = self.kernel.learn_id(pid) else {
            return;
        };
        if self.told.insert(pid) {
            let noted = || cgroup::noted(self.kernel.noted_groups(id));
            let mut facts: Facts = facts::of(pid, id, &self.filter.choice, noted);
            facts.since = self.begun.get(&pid).copied();
            let parent = facts.parent_pid;
            facts.parent_pid = parent.and_then(|parent| self.kernel.ask_id(parent));
            self.report(Report::Process(facts), None);
        }
    }

    /// The id here of a process that the kernel side knows by this one.
    fn pid_here(&self, id: u32) -> Option<u32> {
        let mut pids = self.told.iter().copied();
        pids.find(|pid| self.kernel.id(*pid) == Some(id))
    }

    /// Says who a process is that speaks TLS, though nothing it maps was worth a word.
    fn introduce(&mut self, id: u32) {
        let pid = self.pid_here(id).unwrap_or(id);
        // The pipeline is told of nobody else.
        if self.kernel.learn_id(pid) != Some(id) || !self.is_wanted(pid) {
            return;
        }
        // Of one that is gone there are its control groups still. Who was told of before is who it was.
        self.tell(pid);
        if facts::condition(pid).is_none_or(|condition| condition.state.is_dead()) {
            return;
        }
        let runtime = facts::runtime(pid);
        self.report(Report::Runtime { pid: id, runtime }, None);
    }

    /// Looks at a connection that began with TLS which no probe saw: at its socket, and whether the probes are
    /// where its process maps them.
    fn inspect(&mut self, connected: Connected) {
        let mut finding = Finding::default();
        if let Some(pid) = self.pid_here(connected.pid) {
            let said = socket::ask(pid, &connected);
            finding = Finding {
                is_kernels: said.is_kernels,
                transferred: said.transferred,
                silent: self.silent(pid, connected.pid),
            };
        }
        self.report(Report::Inspected { connected, finding }, None);
    }

    /// Looks at a process of which one way only is seen.
    fn examine(&mut self, id: u32) {
        if let Some(pid) = self.pid_here(id)
            && let Some(silent) = self.silent(pid, id)
        {
            self.report(Report::Silent { pid: id, silent }, None);
        }
    }

    /// A file whose breakpoints are not where this process maps it, not all of them. They are placed once more:
    /// that puts them back where they are missing. `id` is what others call the process.
    fn silent(&mut self, pid: u32, id: u32) -> Option<Silent> {
        let (file_id, mapping) = facts::mappings(pid).into_iter().find_map(|mapping| {
            let (_, version) = file::mapped(&mapping).ok()?;
            let asked = match version.identity.is_doubtful() {
                true => self.kernel.programs.inode_mapped(&mapping),
                false => None,
            };
            let id = self.known_file(&version, asked)?;
            let file = &self.files[&id];
            let is_probed = matches!(file.state, State::Attached(_)) && !file.is_moving;
            let is_missing =
                is_probed && file::check_placed_in(&mapping, &file.sites) == Some(false);
            is_missing.then_some((id, mapping))
        })?;
        let file = self.files.get_mut(&file_id)?;
        let inode = file
            .inode
            .filter(|_| !file.was_silent && file.old.is_none());
        file.was_silent = true;
        if let Some(inode) = inode {
            file.silent_in = Some(id);
            self.place_again(file_id, inode, mapping);
        }
        Some(Silent {
            file: file_id,
            is_placed_again: inode.is_some(),
        })
    }

    /// Answers with what no later call can announce, and with our own usage.
    fn survey(&mut self, wanted: bool) -> Result<()> {
        if wanted {
            self.report_pending(|_, _| true, false)?;
        }
        let survey = Survey {
            cpu_micros: own_cpu_micros(),
            memory_bytes: facts::own_memory(),
        };
        self.report(Report::Survey(survey), None);
        Ok(())
    }

    /// Reports the holes at the end of streams; with `remove` takes the streams out of the kernel's map.
    fn report_pending(
        &mut self,
        of: impl Fn(&StreamKey, &HashMap<u32, u64>) -> bool,
        remove: bool,
    ) -> Result<()> {
        const PER_MESSAGE: usize = 512;
        // Streams before processes: the process of a stream that is seen here is older than it. The other
        // way round a new process would look like one that is gone, and its streams would begin again.
        let streams = self.kernel.map::<StreamKey, Stream>("STREAMS");
        let keys: Vec<StreamKey> = streams.keys().flatten().collect();
        let processes = self.kernel.map::<u32, Process>("PROCESSES");
        let born: HashMap<u32, u64> = processes
            .iter()
            .flatten()
            .map(|(pid, process)| (pid, process.born))
            .collect();
        let mut streams = self.kernel.map::<StreamKey, Stream>("STREAMS");
        let mut pending = Vec::new();
        for key in keys.into_iter().filter(|key| of(key, &born)) {
            let Ok(stream) = streams.get(&key, 0) else {
                continue;
            };
            let is_over = key.direction & SHELVED != 0;
            pending.extend(hole(&key, &stream).map(|hole| Pending { is_over, ..hole }));
            // A live stream is only looked at: the kernel changes it at any time. If it announces the
            // same hole later, the pipeline knows those bytes.
            if remove || is_over {
                let _ = streams.remove(&key);
            }
        }
        for some in pending.chunks(PER_MESSAGE) {
            self.report(Report::Pending(some.to_vec()), None);
        }
        Ok(())
    }

    /// Takes the streams of handles out of the kernel's map, unless they mean something else by now: their holes
    /// are told first. A handle that is used again in the instant between is joined in its middle.
    fn forget_handles(&mut self, handles: &[Handle]) {
        let mut pending = Vec::new();
        for Handle { tgid, handle, born } in handles.iter().copied() {
            let processes = self.kernel.map::<u32, Process>("PROCESSES");
            let Ok(process) = processes.get(&tgid, 0) else {
                continue;
            };
            let mut streams = self.kernel.map::<StreamKey, Stream>("STREAMS");
            for direction in [Direction::Received, Direction::Sent] {
                let key = StreamKey {
                    handle,
                    born: process.born,
                    tgid,
                    direction: direction as u32,
                };
                let Ok(stream) = streams.get(&key, 0) else {
                    continue;
                };
                if stream.opened == born {
                    pending.extend(hole(&key, &stream));
                    let _ = streams.remove(&key);
                }
            }
        }
        if !pending.is_empty() {
            self.report(Report::Pending(pending), None);
        }
    }

    /// Reports the holes of streams that ended while the ring was full.
    fn take_shelved(&mut self) -> Result<()> {
        let shelved = self.kernel.sum(counter::SHELVED)?;
        if shelved == std::mem::replace(&mut self.shelved, shelved) {
            return Ok(());
        }
        self.report_pending(|key, _| key.direction & SHELVED != 0, true)
    }

    /// Removes what the kernel's maps hold of processes that ended a while ago.
    fn forget_ended(&mut self) -> Result<()> {
        let mut gone = Vec::new();
        let mut lingering = Vec::new();
        while let Some((since, pid, id)) = self.ended.front().copied() {
            if since.elapsed() < LINGER {
                break;
            }
            self.ended.pop_front();
            // Not waited for yet, or its leader ended and other threads live on.
            if fs::exists(format!("/proc/{pid}")).unwrap_or(true) {
                lingering.push((Instant::now(), pid, id));
                continue;
            }
            let _ = self.kernel.map::<u32, Process>("PROCESSES").remove(&id);
            let _ = self.kernel.map::<u32, Absence>("ABSENCES").remove(&id);
            self.kernel.forget_id(pid);
            gone.push(id);
        }
        self.ended.extend(lingering);
        if gone.is_empty() {
            return Ok(());
        }
        // Also the streams of those whose id belongs to somebody new: by their birth.
        self.report_pending(|key, born| born.get(&key.tgid) != Some(&key.born), true)?;
        for pid in gone {
            self.report(Report::Ended { pid }, None);
        }
        Ok(())
    }

    fn report(&mut self, report: Report, fd: Option<Arc<OwnedFd>>) {
        self.outbox.push_back((report, fd));
    }

    /// False when the pipeline is gone.
    fn flush(&mut self) -> Result<bool> {
        while let Some((report, fd)) = self.outbox.front() {
            let fds: Vec<BorrowedFd<'_>> = fd.iter().map(|fd| fd.as_fd()).collect();
            match half::send(self.socket, report, &fds) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => return Ok(false),
                Err(error) => return Err(error).context("report to the unprivileged half"),
            }
        }
        Ok(true)
    }
}

/// What no later call of an ended stream can announce.
fn hole(key: &StreamKey, stream: &Stream) -> Option<Pending> {
    (stream.pending != 0).then(|| Pending {
        handle: key.handle,
        born: match stream.opened {
            0 => key.born,
            opened => opened,
        },
        tgid: key.tgid,
        direction: key.direction & !SHELVED,
        is_over: true,
        offset: stream.position - stream.pending,
        length: stream.pending,
        cause: stream.cause as u16,
    })
}

/// Takes out what was placed for nobody: that takes its time.
fn undo(workers: &mut Workers<FileId, Done>, id: FileId, done: Done) {
    workers.start(id, id, PLACING, move || {
        drop(done);
        Done::Detached
    });
}

/// The process or its mapping is not there any more.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

impl File {
    /// May it still turn out to be one that is probed?
    fn is_open(&self) -> bool {
        matches!(self.state, State::Opening | State::Asked | State::Placing)
    }
}

/// One descriptor a file that is looked at, several for a probed one. The table of them is made as large as
/// most will need while there is one thread: with more the kernel waits for all CPUs when the table grows, 15 to
/// 20 ms, and the process that maps a new file meanwhile is not held in time.
fn raise_descriptor_limit() {
    const MOST: i32 = 4096;
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
    // Refused where the limit is lower.
    let _ = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), MOST - 1);
}

/// While we still may: below 5.11 maps count against this limit, and on any kernel the rings of perf, with those that
/// other agents of this user have. Where it is refused, what needs it says so.
fn raise_memory_limit() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let _ = setrlimit(Resource::Memlock, unlimited);
}

fn own_cpu_micros() -> u64 {
    nanoseconds(ClockId::ProcessCPUTime) / 1000
}
