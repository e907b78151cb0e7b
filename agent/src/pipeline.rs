//! The line, stage by stage: ring records and the half's reports in, output records out. Pure: no clock,
//! no file, no socket. Time comes with the events, and the same [`Input`] gives the same records: where there are
//! several in one moment, their order is not that of a hash table.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    ops::Range,
    sync::Arc,
};

use agent_ebpf::{Direction, PLAIN};

use crate::{
    attribute::{Attention, Call, Solver, Verdict as Guess},
    backlog::{Backlog, Piece, What},
    confine::Landlock,
    connection::{Connections, Parts},
    container,
    coverage::{Counts, Gone, Placed, Said, Table, User},
    detect::{self, Detector, baseline::Baseline},
    event::{self, Ends, Event, HandleId, StreamId, Used, decode},
    glob::fits_executable,
    half::{Connected, Facts, Features, FileId, Finding, Pending, Silent, Site, Sockets},
    health::Health,
    hello,
    input::{Count, Input, Show},
    ledger::{Tally, ledger},
    llm,
    llm::{dialog::Dialogs, price::Prices},
    locate::Found,
    mcp,
    metadata::{
        Container, Names,
        known::{Judged, Known, Meeting, Wish},
    },
    ours::Ours,
    plaintext::Plaintext,
    policy::{self, Capture, Past, Verdict},
    protocol::{
        self, Limit, Protocol,
        exchange::{Bounds, Keep},
    },
    record::{
        self, Attribution, Body, Cause, Connection, Coverage, Joined, Kind, Process, Record, Role,
        Stats, WallTime,
    },
    redact::{self, Clear, Key, Policy, Redactor, Redactors, Told, View},
    shed::{Account, Level, Rung},
    speaker::{Asked, Speaker, Voice, emit},
    stream::{Output, Stream},
    subject::Subject,
    trial::{Trials, Verdict as Judgement},
    unclaimed::{Greeting, Library, Unclaimed},
};

/// Where records go.
pub type Out<'a> = &'a mut dyn FnMut(&Record<'_>);

/// What is wanted of the line.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub emit: BTreeSet<Kind>,
    /// Bytes that nothing decodes are told as data by themselves ([`View::Undecoded`]), whatever `emit` says of
    /// data.
    pub undecoded: bool,
    /// Somebody reads along: exchanges are told of when they take long, and once more when they are over.
    pub live: bool,
    /// How much of bodies is kept.
    pub bounds: Bounds,
    pub content: Policy,
    /// Patterns of executables; a process passes if one matches. Empty: everybody.
    pub exes: Vec<String>,
    /// What the kernel filters by; here for coverage only.
    pub uids: Vec<u32>,
    pub comms: Vec<String>,
    /// What a process' container must be called to pass.
    pub names: Names,
    /// How much is told of which container, if they differ.
    pub policy: Option<policy::Policy>,
    /// What calls to models cost.
    pub prices: Prices,
    /// What is looked for in what goes out.
    pub findings: detect::Settings,
    /// Makes the ids of connections; random, but the same for a replay.
    pub key: u128,
    /// Makes the hashes of secrets; random.
    pub secret_key: Key,
}

impl Wanted {
    /// Does anybody read along what models say?
    pub fn reads_calls(&self) -> bool {
        self.live && self.emit.contains(&Kind::Llm)
    }
}

/// All state of the line.
pub struct Pipeline {
    wanted: Wanted,
    processes: HashMap<u32, Who>,
    containers: Known,
    /// Policies that are over, and since when: what is parked came under them.
    former: Vec<(u64, Option<policy::Policy>)>,
    coverage: Table,
    covered: Counts,
    connections: Connections,
    /// Anything that decoders say is wanted.
    decodes: bool,
    /// What is kept of bodies.
    keep: Keep,
    /// How much at most, by the agent's own limit.
    room: Option<usize>,
    /// What is kept of calls to models.
    held: llm::Held,
    /// Which of them belong together.
    dialogs: Dialogs,
    /// What waits of calls of MCP.
    waits: mcp::Waiting,
    /// What a person should look at.
    detector: Detector,
    /// How often a bound of a decoder was reached.
    limits: BTreeMap<Limit, u64>,
    /// The requests of the last moment, if somebody reads along.
    asked: VecDeque<Asked>,
    /// What is left out because the agent would cost too much.
    account: Account,
    redactors: Redactors,
    solver: Solver,
    backlog: Backlog,
    trials: Trials,
    /// Where probes are to be placed in the file that was found last.
    sites: Vec<Site>,
    /// Files whose probes are to be taken out, and why.
    withdrawals: Vec<(FileId, &'static str)>,
    /// The kernel side sees which sockets are used, so connections get names.
    sees_sockets: bool,
    /// Streams in which something waits for a hole to be explained.
    waiting: BTreeSet<StreamId>,
    parked: HashMap<u32, Parked>,
    /// Bytes of all that waits there.
    parked_bytes: usize,
    /// What happened until then has been told by the half, in nanoseconds since boot.
    caught_up: u64,
    /// It is to say how far it is: somebody waits who may be told of yet.
    is_half_late: bool,
    /// Sockets that were closed since something has waited: its own may be among them.
    parked_closed: Vec<u64>,
    /// How far the streams of processes are that the filter turned away because nobody had told who they are.
    passed_by: HashMap<StreamId, u64>,
    /// Connections whose handle is gone, and since when.
    freed: VecDeque<(u64, HandleId)>,
    /// The same of those that their programs closed: these may still be read.
    left: VecDeque<(u64, HandleId)>,
    /// Files that nobody maps any more, and since when.
    abandoned: VecDeque<(u64, FileId)>,
    /// Plain connections by their sockets, as the kernel side knows them.
    plains: HashMap<u64, BTreeSet<HandleId>>,
    /// Handles that the kernel side need not remember.
    forgotten: Vec<HandleId>,
    unclaimed: Unclaimed,
    /// Connections about which the half is to be asked.
    questions: Vec<Connected>,
    health: Health,
    /// Processes whose breakpoints the half is to look at.
    suspects: Vec<u32>,
    /// Processes of which nothing is known but that they speak TLS.
    strangers: Vec<u32>,
    /// A file whose probes were out of a process' memory.
    silent: Option<Clear>,
    /// TLS was seen that no library is known of.
    has_unknown: bool,
    tally: Tally,
    /// Bytes lost to a full ring that gaps have told of.
    told_late: u64,
    malformed: u64,
    captured: bool,
    used: bool,
    sequence: u64,
    /// Wall clock minus time since boot, in nanoseconds.
    clock: u64,
    ours: Ours,
    /// What this machine can do, and in words what not: for `stats`.
    features: Vec<(&'static str, &'static str)>,
    lacks: Vec<Clear>,
}

struct Who {
    facts: Process,
    /// By what it is judged.
    subject: Subject,
    /// The user-space filters want it.
    passes: bool,
    /// Of these the one by executables.
    passes_by_exe: bool,
    /// Its container's name is not known yet and may let it pass.
    is_undecided: bool,
    /// Its records wait for that name.
    awaits: bool,
    /// The kernel's filters let its calls pass, by what it was when we heard of it: that can change.
    covered: bool,
    /// It is not in the control groups that are watched.
    is_outside: bool,
    /// What the policy says of it, and what policies before said.
    verdict: Verdict,
    past: Past,
    /// The filters want it, the policy does not.
    is_withheld: bool,
    /// Why, if that was told.
    told: Option<&'static str>,
}

impl Who {
    fn is_covered(&self, wanted: &Wanted) -> bool {
        is_covered(wanted, self.facts.owner_uid, &self.subject, self.is_outside)
    }

    /// Do the user-space filters let it pass? Of who waits they know no more than what it runs.
    fn may_pass(&self) -> bool {
        self.passes || self.awaits && self.passes_by_exe
    }

    /// Do all filters want it? What the policy says of it may be that it is not told of.
    fn is_watched(&self) -> bool {
        self.covered && (self.may_pass() || self.is_withheld)
    }

    fn gone(&self) -> Gone {
        Gone {
            facts: self.facts.clone(),
            subject: self.subject.clone(),
        }
    }

    /// Do these facts say nothing new?
    fn is_the_same(&self, clear: &Process, facts: &Facts) -> bool {
        let Process {
            comm,
            executable,
            arguments,
            ..
        } = &self.facts;
        *comm == clear.comm
            && *executable == clear.executable
            && *arguments == clear.arguments
            && self.subject.container_id == facts.container_id
    }
}

/// What happened to a process that nobody has told us about, or not in which container it is: that is on its way by
/// another channel.
#[derive(Default)]
struct Parked {
    since: u64,
    /// When the half was asked who it is, for it had told of what was before and not of this one: the kernel may have
    /// had no room for its events.
    asked: Option<u64>,
    bytes: usize,
    happened: Vec<Happened>,
}

enum Happened {
    Record(Vec<u8>),
    Said(Said, u64),
    Renamed(String),
    Pending(Pending, u64),
    Ended(u64),
}

/// How long a record waits for the facts about its process, in nanoseconds, or for its container's name; and how many
/// bytes wait: of one, and in all.
const PARKED_TIME: u64 = 250_000_000;
/// The same where the half has not said since that it knows nothing more: on a busy machine it is as late as that.
const BEHIND_TIME: u64 = 5_000_000_000;
/// The same of one whose container's name decides what is told of it at all.
const POLICY_TIME: u64 = 2_000_000_000;
const PARKED_BYTES: usize = 1 << 20;
const PARKED_BYTES_ALL: usize = 16 << 20;
const PARKED_CLOSED: usize = 4096;

impl Happened {
    /// What it keeps, about.
    fn bytes(&self) -> usize {
        size_of::<Happened>()
            + match self {
                Happened::Record(raw) => raw.len(),
                _ => 0,
            }
    }
}

/// How long a connection outlives its handle, in nanoseconds: what tells its name, and what the half says of
/// its end, may come later.
const FREED_TIME: u64 = 1_000_000_000;

/// How long it does that has been closed and may still be read, in nanoseconds: what was decrypted before is read
/// at once, or never.
const LEFT_TIME: u64 = 3_000_000_000;

/// How long a file is known that nobody maps any more, in nanoseconds: its last connections and what waits of them
/// come out before.
const LET_GO_TIME: u64 = 5_000_000_000;

/// How long a request waits for its response before who reads along is told of it, in nanoseconds.
const MOMENT: u64 = 1_000_000_000;

/// How long a connection waits for a name in vain before it waits no more, in nanoseconds.
const WAITED_MAX: u64 = 4_000_000_000;

impl Pipeline {
    pub fn new(wanted: Wanted) -> Pipeline {
        let is_any = |kinds: &[Kind]| kinds.iter().any(|kind| wanted.emit.contains(kind));
        let decodes = wanted.undecoded
            || is_any(&[
                Kind::Http,
                Kind::Sse,
                Kind::Websocket,
                Kind::Grpc,
                Kind::Llm,
                Kind::Mcp,
                Kind::Finding,
            ]);
        let policy = policy(wanted.content, &wanted.emit, decodes);
        let redactors = Redactors::new(policy, wanted.policy.is_some(), wanted.secret_key.clone());
        Pipeline {
            detector: Detector::new(wanted.findings.clone()),
            decodes,
            keep: Keep::new(wanted.bounds),
            room: None,
            held: llm::Held::default(),
            dialogs: Dialogs::new(wanted.secret_key.clone()),
            waits: mcp::Waiting::default(),
            limits: BTreeMap::new(),
            asked: VecDeque::new(),
            account: Account::default(),
            connections: Connections::new(wanted.key),
            redactors,
            solver: Solver::default(),
            backlog: Backlog::default(),
            trials: Trials::default(),
            sites: Vec::new(),
            withdrawals: Vec::new(),
            sees_sockets: false,
            wanted,
            processes: HashMap::new(),
            containers: Known::default(),
            former: Vec::new(),
            coverage: Table::default(),
            covered: Counts::default(),
            waiting: BTreeSet::new(),
            parked: HashMap::new(),
            parked_bytes: 0,
            caught_up: 0,
            is_half_late: false,
            parked_closed: Vec::new(),
            passed_by: HashMap::new(),
            freed: VecDeque::new(),
            left: VecDeque::new(),
            abandoned: VecDeque::new(),
            plains: HashMap::new(),
            forgotten: Vec::new(),
            unclaimed: Unclaimed::default(),
            questions: Vec::new(),
            health: Health::default(),
            suspects: Vec::new(),
            strangers: Vec::new(),
            silent: None,
            has_unknown: false,
            tally: Tally::default(),
            told_late: 0,
            malformed: 0,
            captured: false,
            used: false,
            sequence: 0,
            clock: 0,
            ours: Ours::default(),
            features: Vec::new(),
            lacks: Vec::new(),
        }
    }

    /// One thing that happens; `now` is nanoseconds since boot.
    pub fn take(&mut self, input: Input<'_>, now: u64, out: Out<'_>) {
        let mut ours = std::mem::take(&mut self.ours);
        if let Input::Ours { local, peer } = input {
            ours.made(local, peer);
        }
        let is_ours = |record: &Record<'_>| record.connection.is_some_and(|one| ours.hold(one));
        self.told(input, now, &mut |record| {
            if !is_ours(record) {
                out(record);
            }
        });
        self.ours = ours;
    }

    fn told(&mut self, input: Input<'_>, now: u64, out: Out<'_>) {
        match input {
            // Before anything else was.
            Input::Ours { .. } => {}
            Input::Clock(offset) => self.clock = offset,
            Input::Machine {
                landlock,
                features,
                limits,
            } => self.machine(landlock, features, &limits),
            Input::Record(raw) => self.record(event::written(raw), now, out),
            Input::Idle => self.expire(now, out),
            Input::NoNames => self.wait_for_no_names(out),
            Input::CaughtUp { until } => self.caught_up = self.caught_up.max(until),
            Input::Process(facts) => self.process(facts, now, out),
            Input::Runtimes { are_asked } => self.containers.is_asked(are_asked),
            Input::Container { id, container } => self.container(id, container, now, out),
            Input::Renamed { pid, comm } => self.renamed(pid, comm, now, out),
            Input::Continued { pid } => self.coverage.continued(pid),
            Input::Ended { pid } => self.ended(pid, now, out),
            Input::Watch {
                exes,
                uids,
                comms,
                names,
            } => {
                let wanted = Wanted {
                    exes,
                    uids,
                    comms,
                    names,
                    ..self.wanted.clone()
                };
                self.watch(wanted, now, out);
            }
            Input::Placed { pid, is_outside } => self.placed(pid, is_outside, now, out),
            Input::Show(show) => self.follow(show, now, out),
            Input::Found { file, path, found } => self.found(file, path, &found),
            Input::Refused { file, path, why } => self.refused(file, path, why, now, out),
            Input::Nothing { file } => self.coverage.nothing(file),
            Input::Mapped { file, user } => self.mapped(file, user, now, out),
            Input::Attached { file, at } => self.attached(file, at, now, out),
            Input::Failed { file, why } => self.failed(file, why, now, out),
            Input::Same { file, known } => self.same(file, known, now, out),
            Input::LetGo { file } => {
                self.coverage.leaves(file);
                self.abandoned.push_back((now, file));
            }
            Input::Missed { pid, path } => self.missed(pid, path, now, out),
            Input::Runtime { pid, runtime } => self.unclaimed.is_runtime(pid, runtime),
            Input::Inspected { connected, finding } => {
                self.silent = self.inspected(&connected, finding, now, out);
            }
            Input::Silent { pid, silent } => {
                self.silent = self.lost_breakpoints(pid, silent, now, out);
            }
            Input::Pending(pending) => self.pending(&pending, now, out),
            Input::Count(count) => self.stats(count, now, out),
            Input::Shed(rung) => self.shed(rung, now),
            Input::Room(room) => {
                self.room = room.map(|room| usize::try_from(room).unwrap_or(usize::MAX));
                self.bound();
            }
            Input::Policy(policy) => self.follow_policy(policy, now, out),
            Input::Findings(settings) => self.detector.follow(settings),
            Input::Finish => self.finish(now, out),
        }
    }

    /// What another run has learned of what is usual here.
    pub fn remember(&mut self, baseline: Baseline) {
        self.detector.remember(baseline);
    }

    /// What is usual here, if more of that is known than when this was asked last.
    pub fn learned(&mut self) -> Option<&Baseline> {
        self.detector.learned()
    }

    fn machine(&mut self, landlock: Landlock, features: Features, limits: &[String]) {
        // What has no name yet may wait for one.
        self.sees_sockets = features.sockets != Sockets::Unseen;
        self.features = vec![("landlock", landlock.name())];
        self.features.extend(features.words());
        let strings = self.redactors.strings();
        self.lacks = limits.iter().map(|limit| strings.string(limit)).collect();
    }

    /// Of who is watched from here on is told from here on, and of who is not no more.
    fn watch(&mut self, wanted: Wanted, now: u64, out: Out<'_>) {
        self.wanted = wanted;
        let Pipeline {
            containers, wanted, ..
        } = self;
        containers.judge_again(|id, container| wish(wanted, id, container));
        for pid in self.pids() {
            self.watch_again(pid, now, out);
        }
    }

    /// The process is in the control groups that are watched, or no longer.
    fn placed(&mut self, pid: u32, is_outside: bool, now: u64, out: Out<'_>) {
        if let Some(who) = self.processes.get_mut(&pid) {
            who.is_outside = is_outside;
            self.watch_again(pid, now, out);
        }
    }

    fn watch_again(&mut self, pid: u32, now: u64, out: Out<'_>) {
        let Some(who) = self.processes.get_mut(&pid) else {
            return;
        };
        let (passed, was_watched) = (who.may_pass(), who.is_watched());
        who.passes_by_exe = passes(&self.wanted, &who.subject);
        who.covered = who.is_covered(&self.wanted);
        self.call(pid);
        let Some(who) = self.processes.get_mut(&pid) else {
            return;
        };
        let is_watched = who.is_watched();
        match (passed, who.may_pass()) {
            // Of who waits nothing was told so far.
            (true, false) if !who.awaits => self.turn_away(pid, now, out),
            (false, true) => {
                who.past.was(Capture::None, now);
                // That it was not seen says nothing: it was not looked at.
                self.unclaimed.forget(pid);
                self.health.forget(pid);
            }
            _ => {}
        }
        if !self.may_pass(pid) {
            self.passed_by.retain(|stream, _| stream.handle.pid != pid);
        }
        if is_watched && !was_watched {
            let said = self.coverage.begins(pid, now);
            self.say(said, now, out);
        }
    }

    /// All processes, not in the order of a hash table.
    fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.processes.keys().copied().collect();
        pids.sort_unstable();
        pids
    }

    /// What is held back goes out under the old policy. It may be half a secret: what is doubtful is one.
    fn follow(&mut self, show: Show, now: u64, out: Out<'_>) {
        self.decodes |= show.decodes();
        let policy = policy(show.content, &show.emit, self.decodes);
        if policy != self.redactors.most() {
            for id in self.redactors.holding().all_holding() {
                self.show_held(id, now, out, |redactor, out| redactor.gap(id, 0, out));
            }
            let were_whole = self.redactors.are_strings_whole();
            self.redactors.follow(policy);
            self.redact_names(were_whole);
        }
        let Show {
            emit,
            undecoded,
            live,
            body_limit,
            content,
        } = show;
        let bounds = Bounds::of(usize::try_from(body_limit).unwrap_or(usize::MAX));
        self.wanted = Wanted {
            emit,
            undecoded,
            live,
            bounds,
            content,
            ..self.wanted.clone()
        };
        self.bound();
    }

    /// What is called something was kept as it was, secrets and all, and may not be told so any more.
    fn redact_names(&mut self, were_whole: bool) {
        if !were_whole || self.redactors.are_strings_whole() {
            return;
        }
        let redactor = self.redactors.strings();
        for who in self.processes.values_mut() {
            who.facts.redact(redactor);
        }
        for happened in self.parked.values_mut().flat_map(|it| &mut it.happened) {
            if let Happened::Said(said, _) = happened {
                said.redact(redactor);
            }
        }
        self.containers.redact(redactor);
        self.connections.redact(redactor);
        self.coverage.redact(redactor);
        self.unclaimed.redact(redactor);
        redactor.again(&mut self.lacks);
    }

    /// Who is to be told less of is told less of at once, also of what was seen before. Who is to be told more of is
    /// told more of what begins from here on: what has begun stays as it was.
    fn follow_policy(&mut self, policy: Option<policy::Policy>, now: u64, out: Out<'_>) {
        if policy == self.wanted.policy {
            return;
        }
        // Who is gone is not judged again.
        let departed = self.coverage.departed();
        self.say(departed, now, out);
        let were_whole = self.redactors.are_strings_whole();
        self.redactors.are_many(policy.is_some());
        self.redact_names(were_whole);
        let former = std::mem::replace(&mut self.wanted.policy, policy);
        let Pipeline {
            containers, wanted, ..
        } = self;
        containers.judge_again(|id, container| wish(wanted, id, container));
        if !self.parked.is_empty() {
            self.former.push((now, former));
        }
        for pid in self.pids() {
            self.judge_again(pid, now, out);
        }
    }

    fn judge_again(&mut self, pid: u32, now: u64, out: Out<'_>) {
        let told = |who: &Who| (who.verdict.capture, who.is_withheld);
        let Some((before, was_withheld)) = self.processes.get(&pid).map(told) else {
            return;
        };
        self.call(pid);
        let Some(who) = self.processes.get_mut(&pid) else {
            return;
        };
        let capture = who.verdict.capture;
        // Of who waits nothing was told so far: it is judged when it goes on.
        if who.awaits || capture == before {
            return;
        }
        who.past.was(before, now);
        if capture == Capture::None {
            return self.turn_away(pid, now, out);
        }
        for id in self.connections.of(pid) {
            for told in StreamId::both(id).into_iter().flat_map(Told::of) {
                self.show_held(told, now, out, |redactor, out| redactor.leave(told, out));
            }
            if let Some(entry) = self.connections.get(&id) {
                entry.bound(now);
            }
        }
        if was_withheld {
            // That it was not seen says nothing: it was not looked at.
            self.unclaimed.forget(pid);
            self.health.forget(pid);
        }
        self.no_longer_withheld(was_withheld, pid, now, out);
    }

    /// Nothing is told of a process from here on, nor of what it is in the middle of.
    fn turn_away(&mut self, pid: u32, now: u64, out: Out<'_>) {
        for id in self.connections.of(pid) {
            let mut pieces = self.backlog.take(&id);
            pieces.extend(self.trials.take(id));
            // A second link tells the same once more.
            let mut met = HashSet::new();
            for piece in pieces {
                self.pass_by(piece.stream, piece.end());
                match piece.content {
                    What::Bytes(bytes) => {
                        let length = bytes.plaintext().len() as u64;
                        let is_new = met.insert((piece.stream, piece.offset, length));
                        if is_new && let Some(entry) = self.connections.get(&id) {
                            let stream = entry.parts(piece.stream.direction).stream;
                            self.tally.filtered += stream.untold(piece.offset, length);
                        }
                    }
                    What::Gap(length, cause) => self.told_late += late(cause, length),
                }
            }
            if let Some(entry) = self.connections.get(&id) {
                entry.calls.leave(&mut self.held);
                entry.mcp.leave(&mut self.waits);
            }
            let streams = StreamId::both(id);
            for stream in streams {
                if let Some(entry) = self.connections.get(&id) {
                    let parts = entry.parts(stream.direction);
                    let end = parts.stream.end();
                    let (bytes, gaps) = parts.stream.turn_away();
                    if let Some(end) = end {
                        self.pass_by(stream, end);
                    }
                    self.tally.filtered += bytes;
                    let gaps = gaps.into_iter();
                    self.told_late += gaps.map(|(length, cause)| late(cause, length)).sum::<u64>();
                }
                self.waiting.remove(&stream);
            }
            // Nobody hears it, but what is kept of bodies has room again.
            self.decoded(id, now, out);
            for told in streams.into_iter().flat_map(Told::of) {
                self.show_held(told, now, out, |redactor, out| redactor.close(told, out));
            }
            self.solver.closed(id);
        }
        self.connections.turn_away(pid);
        self.waits.forget(pid);
    }

    /// How much is kept of bodies from here on: as is wanted, within the agent's own limit.
    fn bound(&mut self) {
        let bounds = self.wanted.bounds;
        let bounds = self.room.map_or(bounds, |room| bounds.within(room));
        self.keep.bound(bounds);
    }

    /// More or less is left out from here on. What decoders keep stays until they have told it.
    fn shed(&mut self, rung: Rung, now: u64) {
        self.account.turn(rung, now);
        self.keep.shed(rung.level() >= Level::Bodies);
        self.connections.decode_one_in(rung.one_in());
    }

    /// What the kernel side should know of sockets since the last time.
    pub fn attentions(&mut self) -> std::vec::Drain<'_, Attention> {
        self.solver.attentions()
    }

    /// Must the kernel side tell what sockets move inside calls?
    pub fn is_any_on_trial(&self) -> bool {
        self.trials.is_any_open()
    }

    /// Where the half is to place probes in the file that was found last.
    pub fn sites(&mut self) -> Vec<Site> {
        std::mem::take(&mut self.sites)
    }

    /// All points that the half was asked to place, by number.
    pub fn points(&self) -> impl Iterator<Item = (u64, Placed)> {
        self.coverage.points()
    }

    pub fn path(&self, file: FileId) -> Option<&Clear> {
        self.coverage.path(file)
    }

    /// Files whose functions turned out to be others, and why, since the last time.
    pub fn withdrawals(&mut self) -> std::vec::Drain<'_, (FileId, &'static str)> {
        self.withdrawals.drain(..)
    }

    /// Handles whose places the kernel side can give to others, since the last time.
    pub fn forgotten(&mut self) -> std::vec::Drain<'_, HandleId> {
        self.forgotten.drain(..)
    }

    /// Does anything wait for a name?
    pub fn is_waiting(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Does anybody wait for the facts about a process, or for its container's name?
    pub fn is_anybody_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Is the half to say when it has told of what happened until now? Somebody waits for that.
    pub fn is_half_late(&mut self) -> bool {
        std::mem::take(&mut self.is_half_late)
    }

    fn wait_for_no_names(&mut self, out: Out<'_>) {
        for id in self.backlog.all() {
            self.let_go(id, out);
        }
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Bytes so far that gaps have told of, of those causes whose gaps may come late.
    pub fn told_late(&self) -> u64 {
        self.told_late
    }

    /// How often each bound of what decoders keep was reached.
    fn bounds(&self) -> Vec<(&'static str, u64)> {
        let count = |limit| self.limits.get(&limit).copied().unwrap_or_default();
        Limit::ALL
            .map(|limit| (limit.name(), count(limit)))
            .to_vec()
    }

    /// Coverage records so far, whether they were wanted or not.
    pub fn covered(&self) -> Counts {
        self.covered
    }

    /// Did anything come at all?
    pub fn has_captured(&self) -> bool {
        self.captured
    }

    /// Was a probed library mapped by anybody who is watched?
    pub fn is_any_used(&self) -> bool {
        self.used
    }

    /// Did anybody speak TLS by a library that is not known?
    pub fn has_unknown(&self) -> bool {
        self.has_unknown
    }

    /// Processes about which the half is to be asked who they are.
    pub fn strangers(&mut self) -> std::vec::Drain<'_, u32> {
        self.strangers.drain(..)
    }

    /// Connections about which the half is to be asked, because nobody's plaintext has claimed them.
    pub fn questions(&mut self) -> std::vec::Drain<'_, Connected> {
        self.questions.drain(..)
    }

    /// Processes of which one way only is seen: the half is to look at their breakpoints.
    pub fn suspects(&mut self) -> std::vec::Drain<'_, u32> {
        self.suspects.drain(..)
    }

    /// The path of the file whose probes were out of a process' memory, if that is what was told last.
    pub fn silent(&mut self) -> Option<Clear> {
        self.silent.take()
    }

    /// Containers about which their runtimes are to be asked.
    pub fn nameless(&mut self) -> std::vec::Drain<'_, String> {
        self.containers.questions()
    }

    /// Forgets what the kernel side and the half would be asked: in a replay nobody is there.
    pub fn ask_nobody(&mut self) {
        self.nameless();
        self.attentions();
        self.sites.clear();
        self.withdrawals.clear();
        self.forgotten.clear();
        self.questions.clear();
        self.suspects.clear();
        self.strangers.clear();
        self.is_half_late = false;
        self.silent = None;
    }

    fn record(&mut self, raw: &[u8], now: u64, out: Out<'_>) {
        let Ok(event) = decode(raw) else {
            self.malformed += 1;
            return;
        };
        if let Event::Data { stream, .. } | Event::Gap { stream, .. } = event {
            self.met(stream.handle);
        }
        if let Some(pid) = event.pid()
            && self.is_to_park(pid)
        {
            return self.park(pid, Happened::Record(raw.to_vec()), now, out);
        }
        if let Event::Closed { cookie } = event {
            self.end_plain(cookie, now);
        }
        match event {
            Event::Closed { cookie } if !self.parked.is_empty() => {
                self.parked_closed.push(cookie);
                if self.parked_closed.len() > PARKED_CLOSED {
                    self.forget_closed();
                }
            }
            event => self.event(event, out),
        }
    }

    /// Something comes of a handle, whoever it is. What a plain connection says is all that its process may ever do: if
    /// nobody has told who that is, nobody will unless asked.
    fn met(&mut self, handle: HandleId) {
        if !handle.is_plain() {
            return;
        }
        let of_socket = self.plains.entry(handle.handle).or_default();
        if of_socket.insert(handle) && !self.processes.contains_key(&handle.pid) {
            self.strangers.push(handle.pid);
        }
    }

    /// A plain connection is its socket.
    fn name_plain(&mut self, handle: HandleId) {
        if handle.is_plain() {
            let cookie = handle.handle & !PLAIN;
            self.connections
                .attribute(&handle, cookie, Attribution::Exact);
        }
    }

    /// A socket is gone. What its connections lost at their end is still to be told.
    fn end_plain(&mut self, cookie: u64, now: u64) {
        for handle in self.plains.remove(&(cookie | PLAIN)).unwrap_or_default() {
            self.forgotten.push(handle);
            self.freed.push_back((now, handle));
        }
    }

    fn forget_closed(&mut self) {
        for cookie in std::mem::take(&mut self.parked_closed) {
            self.solver.socket_ended(cookie);
        }
    }

    /// Does what happens to it wait until it is known who it is?
    fn is_to_park(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_none_or(|who| who.awaits)
    }

    fn awaits(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_some_and(|who| who.awaits)
    }

    fn park(&mut self, pid: u32, happened: Happened, now: u64, out: Out<'_>) {
        let parked = self.parked.entry(pid).or_insert_with(|| Parked {
            since: now,
            ..Parked::default()
        });
        let bytes = happened.bytes();
        parked.bytes += bytes;
        self.parked_bytes += bytes;
        parked.happened.push(happened);
        if parked.bytes > PARKED_BYTES || self.parked_bytes > PARKED_BYTES_ALL {
            self.wait_no_longer(pid, now, out);
        }
    }

    /// What happened to this process waits no longer: nothing but its id is known of it, or only its container's
    /// name is not.
    fn wait_no_longer(&mut self, pid: u32, now: u64, out: Out<'_>) {
        if self.processes.contains_key(&pid) {
            return self.go_on(pid, now, out);
        }
        let facts = Facts {
            pid,
            ..Facts::default()
        };
        self.process(facts, now, out);
    }

    fn go_on(&mut self, pid: u32, now: u64, out: Out<'_>) {
        if let Some(who) = self.processes.get_mut(&pid) {
            who.awaits = false;
            for (until, policy) in &self.former {
                let id = who.subject.container_id.as_deref();
                let verdict = id.map(|id| {
                    let container = self.containers.container(id)?;
                    Some(policy.as_ref()?.of(id, container))
                });
                let verdict = judged(policy.as_ref(), &who.subject, verdict);
                who.past.was(verdict.capture, *until);
            }
        }
        // It may have been wanted before it waited.
        if self.is_filtered(pid) {
            self.turn_away(pid, now, out);
        }
        let parked = self.parked.remove(&pid).unwrap_or_default();
        self.parked_bytes -= parked.bytes;
        if self.parked.is_empty() {
            self.former.clear();
        }
        let mut happened = parked.happened.into_iter();
        while let Some(next) = happened.next() {
            match next {
                Happened::Record(raw) => {
                    if let Ok(event) = decode(&raw) {
                        self.event(event, out);
                    }
                }
                Happened::Said(said, at) => self.say(vec![said], at, out),
                Happened::Renamed(comm) => self.renamed(pid, &comm, now, out),
                Happened::Pending(hole, at) => self.pending(&[hole], at, out),
                Happened::Ended(at) => {
                    self.ended(pid, at, out);
                    // What follows is of who has its number now.
                    for later in happened.by_ref() {
                        self.park(pid, later, now, out);
                    }
                }
            }
        }
        if self.parked.is_empty() {
            self.forget_closed();
        }
    }

    /// Lets records go that waited long enough, and gives up on holes.
    fn expire(&mut self, now: u64, out: Out<'_>) {
        let Pipeline {
            unclaimed,
            coverage,
            processes,
            ..
        } = self;
        let questions = unclaimed.questions(now, |pid| library_of(coverage, processes, pid));
        self.questions.extend(questions);
        self.suspects.extend(self.health.suspects(now));
        for (since, pid) in self.parked_since(now.saturating_sub(PARKED_TIME)) {
            let waited = now.saturating_sub(since);
            if self.awaits(pid) {
                if self.wanted.policy.is_some() && waited <= POLICY_TIME {
                    continue;
                }
                self.containers.is_late();
            } else if waited <= BEHIND_TIME && !self.is_nobody(pid, since, now) {
                self.is_half_late = true;
                continue;
            }
            self.wait_no_longer(pid, now, out);
        }
        let is_contested = |id: &HandleId| self.solver.is_contested(*id);
        for (since, id) in self.backlog.overdue(now, is_contested) {
            if let Some(entry) = self.connections.get(&id) {
                entry.waited += now.saturating_sub(since);
            }
            self.let_go(id, out);
        }
        self.solver.expire(now);
        while let Some(&(since, id)) = self.freed.front()
            && now.saturating_sub(since) > FREED_TIME
        {
            self.freed.pop_front();
            if self.parked.contains_key(&id.pid) {
                // What it said is still to come: no process is named when a socket is closed, so that did not wait.
                self.freed.push_back((now, id));
            } else if self.connections.contains(&id) {
                self.close(id, now, out);
            }
        }
        while let Some(&(since, id)) = self.left.front()
            && now.saturating_sub(since) > LEFT_TIME
        {
            self.left.pop_front();
            self.forgotten.push(id);
            if let Some(entry) = self.connections.get(&id) {
                entry.is_left = true;
                self.close(id, now, out);
            }
        }
        while let Some(&(since, file)) = self.abandoned.front()
            && now.saturating_sub(since) > LET_GO_TIME
        {
            self.abandoned.pop_front();
            self.coverage.let_go(file);
            for piece in self.trials.forget(file) {
                self.withhold(piece, out);
            }
        }
        self.give_up(|stream| stream.is_overdue(now), now, out);
        while let Some(asked) = self.asked.front().copied()
            && now.saturating_sub(asked.time) > MOMENT
        {
            self.asked.pop_front();
            self.decode(asked.handle, now, out, |decoder, _, out| {
                decoder.show(asked.exchange, out);
            });
        }
        for id in self.redactors.holding().due(now) {
            self.show_held(id, now, out, |redactor, out| redactor.flush(id, now, out));
        }
    }

    /// Can the half say nothing of a process that waits since then? It is asked when it has caught up.
    fn is_nobody(&mut self, pid: u32, since: u64, now: u64) -> bool {
        let Some(parked) = self.parked.get_mut(&pid) else {
            return true;
        };
        if let Some(asked) = parked.asked {
            return asked < self.caught_up;
        }
        if since < self.caught_up {
            parked.asked = Some(now);
            self.strangers.push(pid);
        }
        false
    }

    /// Processes whose records wait since before `limit`, and since when, in the order of that.
    fn parked_since(&self, limit: u64) -> Vec<(u64, u32)> {
        let parked = self.parked.iter();
        let mut parked: Vec<(u64, u32)> = parked
            .map(|(pid, parked)| (parked.since, *pid))
            .filter(|(since, _)| *since < limit)
            .collect();
        parked.sort_unstable();
        parked
    }

    fn finish(&mut self, now: u64, out: Out<'_>) {
        // Behind the end of one there may be another of its number.
        while let Some(&(_, pid)) = self.parked_since(u64::MAX).first() {
            self.wait_no_longer(pid, now, out);
        }
        self.wait_for_no_names(out);
        for piece in self.trials.take_all() {
            self.withhold(piece, out);
        }
        self.judge_unclaimed(None, now, out);
        self.give_up(|_| true, now, out);
        for id in self.connections.all() {
            self.decoded(id, now, out);
        }
        let unsettled = self.coverage.unsettled();
        self.say(unsettled, now, out);
        for id in self.redactors.holding().all_holding() {
            self.show_held(id, now, out, |redactor, out| redactor.close(id, out));
        }
    }

    /// Must [`Input::Idle`] come soon, though nothing else does?
    pub fn is_holding(&self) -> bool {
        self.redactors.holding().is_holding() || self.is_anybody_parked()
    }

    fn give_up(&mut self, is_due: impl Fn(&Stream) -> bool, now: u64, out: Out<'_>) {
        let mut due: Vec<StreamId> = self.waiting.iter().copied().collect();
        due.retain(|id| {
            // What explains the hole may be among what is parked.
            if self.parked.contains_key(&id.handle.pid) {
                return false;
            }
            let entry = self.connections.get(&id.handle);
            entry.is_some_and(|entry| is_due(entry.parts(id.direction).stream))
        });
        for id in due {
            self.feed(id, 0, 0, now, out, |stream, out| stream.give_up(out));
        }
    }

    fn event(&mut self, event: Event<'_>, out: Out<'_>) {
        match event {
            Event::Socket { cookie, ends } => self.connections.announce(cookie, ends),
            Event::Closed { cookie } => self.solver.socket_ended(cookie),
            Event::Carried {
                tid,
                handle,
                point,
                direction,
                length,
                ..
            } => {
                if let Some(Placed { file, .. }) = self.coverage.point(point) {
                    self.trials.carried(file, tid, handle, direction, length);
                }
            }
            Event::Senseless { point, time, .. } => {
                if let Some(Placed { file, .. }) = self.coverage.point(point)
                    && let Some(judgement) = self.trials.senseless(file)
                {
                    self.judged(file, judgement, time, out);
                }
            }
            Event::Hello {
                pid,
                ends,
                bytes,
                time,
            } => self.greeted(pid, ends, bytes, time),
            Event::Name { handle, name } => {
                if let Some(entry) = self.connections.get(&handle) {
                    entry.facts.server_name = Some(
                        self.redactors
                            .strings()
                            .string(&String::from_utf8_lossy(name)),
                    );
                }
            }
            Event::Touch {
                handle,
                place,
                time,
            } => {
                if !self.is_turned_away(handle.pid, time) {
                    self.solver.call(handle, place, time, Call::Touch);
                    self.judge(time, out);
                }
            }
            Event::Bound {
                handle,
                cookie,
                time,
            } => {
                if !self.is_turned_away(handle.pid, time) {
                    self.bind(handle, cookie, out);
                    self.judge(time, out);
                }
            }
            Event::Transfer {
                pid,
                place,
                cookie,
                generation,
                direction,
                length,
                time,
            } => {
                if !self.is_turned_away(pid, time) {
                    let socket = (cookie, generation);
                    self.solver
                        .transfer(pid, place, time, socket, direction, length);
                    self.judge(time, out);
                }
            }
            Event::Freed { handle, time } => self.freed.push_back((time, handle)),
            // Programs close twice, and more.
            Event::Left { handle, time } => {
                if self.left.back().is_none_or(|(_, last)| *last != handle) {
                    self.left.push_back((time, handle));
                }
            }
            Event::Opened {
                handle,
                again,
                point,
                time,
            } => {
                if !self.is_turned_away(handle.pid, time) {
                    let placed = self.coverage.point(point);
                    if let Some(Placed { file, .. }) = placed {
                        // Says how a forked child is seen.
                        self.joined(handle, file, time, out);
                    }
                    // The object that is used again wants the same server.
                    let before = self.connections.at(handle.pid, handle.handle);
                    let name = before.filter(|_| again);
                    let name = name.and_then(|id| self.connections.server_name(&id).cloned());
                    self.begin(handle, Joined::Start, placed, time, out);
                    if let Some(entry) = self.connections.get(&handle) {
                        entry.facts.server_name = name;
                    }
                    self.solver.opened(handle);
                }
            }
            Event::Unseen {
                handle,
                point,
                time,
            } => {
                // What came before it was complete.
                for id in self.connections.of(handle.pid) {
                    self.let_go(id, out);
                }
                self.unseen(handle, point, time, out);
            }
            Event::Data {
                stream,
                offset,
                bytes,
                socket,
                place,
                point,
                tid,
                time,
            } => {
                self.captured = true;
                if self.is_turned_away(stream.handle.pid, time) {
                    self.tally.filtered += bytes.len() as u64;
                    self.pass_by(stream, offset + bytes.len() as u64);
                    self.refuse(stream.handle.pid, time, out);
                    return;
                }
                self.open(stream.handle, point, time, out);
                let (handle, direction) = (stream.handle, stream.direction);
                if let Some(entry) = self.connections.get(&handle) {
                    // It comes after one that was turned away, and stood before that.
                    let stream = entry.parts(direction).stream;
                    self.tally.filtered += stream.unwanted(offset, bytes.len() as u64);
                }
                if !handle.is_plain() {
                    self.health.carried(handle.pid, direction);
                }
                if let Some(Placed { file, .. }) = self.coverage.point(point)
                    && !self.is_believed(file, stream, tid, offset, bytes, time, out)
                {
                    let piece = Piece {
                        stream,
                        offset,
                        content: What::Bytes(bytes.keep()),
                        tid,
                        point,
                        time,
                    };
                    match self.trials.is_condemned(file) {
                        true => self.withhold(piece, out),
                        false => self.trials.hold(file, piece),
                    }
                    return;
                }
                match socket {
                    Used::Nothing => {
                        let length = bytes.len() as u64;
                        let call = Call::Data {
                            direction,
                            length,
                            head: bytes.reveal(),
                        };
                        self.solver.call(handle, place, time, call);
                    }
                    Used::One(_) if handle.is_plain() => self.name_plain(handle),
                    Used::One(cookie) => {
                        self.bind(handle, cookie, out);
                        self.solver.carried(handle, tid, direction, bytes.reveal());
                    }
                    Used::Several => {}
                }
                self.claim(&handle, time, out);
                self.judge(time, out);
                if socket == Used::Nothing && self.may_get_a_name(&handle) {
                    self.wait_for_name(
                        Piece {
                            stream,
                            offset,
                            content: What::Bytes(bytes.keep()),
                            tid,
                            point,
                            time,
                        },
                        out,
                    );
                    return;
                }
                self.let_go(handle, out);
                self.feed(stream, tid, point, time, out, |stream, out| {
                    stream.data(offset, bytes, time, out);
                });
            }
            Event::Gap {
                stream,
                offset,
                length,
                cause,
                tid,
                time,
            } => {
                self.captured = true;
                if self.is_turned_away(stream.handle.pid, time) {
                    self.told_late += late(cause, length);
                    if let Some(offset) = offset {
                        self.pass_by(stream, offset.saturating_add(length));
                    }
                    return;
                }
                self.open(stream.handle, 0, time, out);
                self.name_plain(stream.handle);
                if cause != Cause::Sendfile && !stream.handle.is_plain() {
                    self.solver.lost(stream.handle.pid);
                }
                let Some(offset) = offset else {
                    self.unplaced(stream, tid, length, cause, time, out);
                    return;
                };
                if self.backlog.has(&stream.handle) {
                    self.wait_for_name(
                        Piece {
                            stream,
                            offset,
                            content: What::Gap(length, cause),
                            tid,
                            point: 0,
                            time,
                        },
                        out,
                    );
                    return;
                }
                self.feed(stream, tid, 0, time, out, |stream, out| {
                    stream.gap(offset, length, cause, time, out);
                });
            }
        }
    }

    /// Are these bytes shown, as far as the file's first calls tell?
    #[allow(clippy::too_many_arguments)]
    fn is_believed(
        &mut self,
        file: FileId,
        stream: StreamId,
        tid: u32,
        offset: u64,
        bytes: Plaintext<'_>,
        time: u64,
        out: Out<'_>,
    ) -> bool {
        if self.trials.is_open(file) {
            let bytes = bytes.reveal();
            let judgement = self.trials.data(file, stream, tid, offset, bytes);
            return self.judged(file, judgement, time, out);
        }
        !self.trials.is_condemned(file)
    }

    fn judged(&mut self, file: FileId, judgement: Judgement, time: u64, out: Out<'_>) -> bool {
        match judgement {
            Judgement::Suspicious => false,
            Judgement::Believed(held) => {
                for piece in held {
                    self.show(piece, out);
                }
                true
            }
            Judgement::Condemned(why, held) => {
                for piece in held {
                    self.withhold(piece, out);
                }
                self.withdrawals.push((file, why));
                self.failed(file, why, time, out);
                false
            }
        }
    }

    /// A piece whose functions are no TLS functions, or may be none: a gap is shown instead.
    fn withhold(&mut self, piece: Piece, out: Out<'_>) {
        let What::Bytes(bytes) = &piece.content else {
            return self.show(piece, out);
        };
        let length = bytes.plaintext().len() as u64;
        let content = What::Gap(length, Cause::Withdrawn);
        self.show(Piece { content, ..piece }, out);
    }

    /// Takes over what the solver found out.
    fn judge(&mut self, now: u64, out: Out<'_>) {
        let mut named = Vec::new();
        for verdict in self.solver.verdicts() {
            match verdict {
                Guess::Named { handle, cookie } => {
                    self.connections
                        .attribute(&handle, cookie, Attribution::Inferred);
                    named.push(handle);
                }
                Guess::Unnamed { handle } => self.connections.doubt(&handle),
            }
        }
        for handle in named {
            self.claim(&handle, now, out);
            self.let_go(handle, out);
        }
    }

    /// A connection begins with TLS, by nobody knows what library yet.
    fn greeted(&mut self, pid: u32, ends: Ends, bytes: &[u8], time: u64) {
        let Some(hello) = hello::parse(bytes) else {
            return;
        };
        // Not filtered yet: what is known of the process may be from before its exec.
        let connected = Connected {
            pid,
            local: ends.local,
            peer: ends.peer,
        };
        let server_name = hello
            .server_name
            .map(|name| self.redactors.strings().string(name));
        let greeting = Greeting {
            role: hello.role,
            server_name,
            time,
        };
        if self.unclaimed.greeted(connected, greeting) {
            self.strangers.push(pid);
        }
    }

    /// One socket was used inside a call of the handle.
    fn bind(&mut self, handle: HandleId, cookie: u64, out: Out<'_>) {
        let connections = &mut self.connections;
        if connections.attribute(&handle, cookie, Attribution::Exact) {
            self.solver.exact(handle, cookie);
            self.let_go(handle, out);
        }
    }

    /// Plaintext of this connection came. Its handshake alone says nothing of the calls that carry any.
    fn claim(&mut self, id: &HandleId, now: u64, out: Out<'_>) {
        // As a rule there is none, and each record of plaintext comes here.
        if !self.unclaimed.is_any_open() {
            return;
        }
        let Some(entry) = self.connections.get(id) else {
            return;
        };
        if let (Some(local), Some(peer)) = (entry.facts.local, entry.facts.peer)
            && let Some(began) = self.unclaimed.claimed(id.pid, local, peer)
            && let Some(file) = entry.file
            && let Some(coverage) = self.coverage.began(id.pid, file, began)
        {
            entry.joins_late();
            self.say(vec![Said::of(id.pid, coverage)], now, out);
        }
    }

    /// The path of a file whose probes were out of the process' memory.
    fn inspected(
        &mut self,
        connected: &Connected,
        finding: Finding,
        now: u64,
        out: Out<'_>,
    ) -> Option<Clear> {
        let pid = connected.pid;
        if let Some(silent) = finding.silent {
            self.unclaimed.claimed(pid, connected.local, connected.peer);
            return self.lost_breakpoints(pid, silent, now, out);
        }
        let library = library_of(&self.coverage, &self.processes, pid);
        if let Some((greeting, why)) = self.unclaimed.answered(connected, finding, library) {
            self.say_unseen(connected, greeting, why, now, out);
        }
        None
    }

    /// Probes of a file were out of the memory of a process: its path, unless that was said before.
    fn lost_breakpoints(
        &mut self,
        pid: u32,
        silent: Silent,
        now: u64,
        out: Out<'_>,
    ) -> Option<Clear> {
        let Silent {
            file,
            is_placed_again,
        } = silent;
        for id in self.connections.of(pid) {
            if let Some(entry) = self.connections.get(&id) {
                entry.facts.has_unseen = true;
            }
        }
        let mut coverage = self.coverage.silent(pid, file, is_placed_again)?;
        // Nobody knows since when.
        coverage.seen_from = Some(WallTime(now));
        let path = coverage.library_path.clone();
        self.say(vec![Said::of(pid, coverage)], now, out);
        path
    }

    /// The connections of a process, or of all, that nobody has claimed and nobody can be asked about any more.
    fn judge_unclaimed(&mut self, pid: Option<u32>, now: u64, out: Out<'_>) {
        for connected in self.unclaimed.of(pid) {
            self.inspected(&connected, Finding::default(), now, out);
        }
    }

    fn say_unseen(
        &mut self,
        connected: &Connected,
        greeting: Greeting,
        why: &'static str,
        now: u64,
        out: Out<'_>,
    ) {
        let pid = connected.pid;
        if self.processes.get(&pid).is_none_or(|who| who.awaits) {
            self.wait_no_longer(pid, now, out);
        }
        if self.is_filtered(pid) || !self.is_covered(pid) {
            return self.refuse(pid, now, out);
        }
        // It ended while it was waited for: nobody can say any more that it is wanted.
        if self.is_selective() && !self.processes.contains_key(&pid) {
            return;
        }
        self.has_unknown = true;
        let connection = self.connections.unseen(connected, greeting);
        self.emit_coverage(
            pid,
            None,
            Coverage::unseen(why),
            Some(&connection),
            now,
            out,
        );
    }

    /// Is it worth to wait for the name of this connection?
    fn may_get_a_name(&mut self, id: &HandleId) -> bool {
        let entry = self.connections.get(id);
        self.sees_sockets
            && entry.is_some_and(|entry| {
                entry.facts.attribution == Attribution::None
                    && entry.waited < WAITED_MAX
                    && !entry.is_left_out
            })
    }

    fn wait_for_name(&mut self, piece: Piece, out: Out<'_>) {
        let id = piece.stream.handle;
        if !self.backlog.push(piece) {
            // A flood: waiting costs more than the name is worth.
            if let Some(entry) = self.connections.get(&id) {
                entry.waited = WAITED_MAX;
            }
            self.let_go(id, out);
        }
    }

    /// What waits of this connection goes on, with what is known of it now.
    fn let_go(&mut self, id: HandleId, out: Out<'_>) {
        if self.backlog.is_empty() {
            return;
        }
        for piece in self.backlog.take(&id) {
            self.show(piece, out);
        }
    }

    /// A piece that waited.
    fn show(&mut self, piece: Piece, out: Out<'_>) {
        let Piece {
            stream,
            offset,
            content,
            tid,
            point,
            time,
        } = piece;
        self.feed(stream, tid, point, time, out, |stream, out| match content {
            What::Bytes(bytes) => stream.data(offset, bytes.plaintext(), time, out),
            What::Gap(length, cause) => stream.gap(offset, length, cause, time, out),
        });
    }

    fn pending(&mut self, pending: &[Pending], now: u64, out: Out<'_>) {
        for hole in pending {
            let Ok(direction) = event::direction(hole.direction as u16) else {
                continue;
            };
            let Ok(cause) = event::cause(u64::from(hole.cause)) else {
                continue;
            };
            let handle = HandleId {
                pid: hole.tgid,
                born: hole.born,
                handle: hole.handle,
            };
            let stream = StreamId { handle, direction };
            if self.is_to_park(hole.tgid) {
                self.park(hole.tgid, Happened::Pending(*hole, now), now, out);
                continue;
            }
            if self.is_turned_away(hole.tgid, now) {
                self.pass_by(stream, hole.offset.saturating_add(hole.length));
                continue;
            }
            if hole.is_over {
                self.hole_at_the_end(stream, hole, cause, now, out);
                continue;
            }
            // The kernel has told it since, when the handle became another connection.
            let current = self.connections.at(handle.pid, handle.handle);
            if current.is_some_and(|current| current.since() > handle.since()) {
                continue;
            }
            // Told again when it has grown: the stream knows what it knows.
            self.open(handle, 0, now, out);
            self.let_go(handle, out);
            self.feed(stream, hole.tgid, 0, now, out, |stream, out| {
                stream.gap(hole.offset, hole.length, cause, now, out);
            });
        }
    }

    /// The end of a connection, whose handle may mean another one by now.
    fn hole_at_the_end(
        &mut self,
        stream: StreamId,
        hole: &Pending,
        cause: Cause,
        now: u64,
        out: Out<'_>,
    ) {
        let id = stream.handle;
        let is_known = self.connections.contains(&id);
        if !is_known {
            let passed_by = self.taken_passed_by(id);
            self.connections.recall(id);
            self.start_behind(id, passed_by);
        }
        let was_away = self.is_turned_away(id.pid, id.since());
        if let Some(entry) = self.connections.get(&id).filter(|_| was_away) {
            entry.joins_anywhere();
        }
        self.let_go(id, out);
        self.feed(stream, hole.tgid, 0, now, out, |stream, out| {
            stream.gap(hole.offset, hole.length, cause, now, out);
        });
        if !is_known {
            self.close(id, now, out);
        }
    }

    fn is_filtered(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_some_and(|who| !who.passes)
    }

    /// The same at a time, which may be one of another policy.
    fn is_turned_away(&self, pid: u32, time: u64) -> bool {
        let who = self.processes.get(&pid);
        who.is_some_and(|who| {
            !who.passes || who.past.least(time, who.verdict.capture) == Capture::None
        })
    }

    /// Is anybody turned away, by a filter or by the policy?
    fn is_selective(&self) -> bool {
        let wanted = &self.wanted;
        wanted.policy.is_some()
            || !wanted.names.is_empty()
            || !wanted.exes.is_empty()
            || !wanted.uids.is_empty()
            || !wanted.comms.is_empty()
    }

    /// Would the kernel's filters let its calls pass?
    fn is_covered(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_none_or(|who| who.covered)
    }

    /// The connection of a handle, made at its first event.
    fn open(&mut self, id: HandleId, point: u64, time: u64, out: Out<'_>) {
        let placed = self.coverage.point(point);
        if let Some(entry) = self.connections.get(&id) {
            // The record of its beginning may have come from a perf event, which does not say where.
            if entry.facts.library_name.is_none() {
                let library = placed.and_then(|placed| self.coverage.library(placed));
                entry.facts.set_library(library);
                entry.file = placed.map(|placed| placed.file);
            }
            return;
        }
        if self.connections.resume(id) {
            // Closed, and read all the same.
            self.left.push_back((time, id));
            return;
        }
        let passed_by = self.taken_passed_by(id);
        let joined = match placed {
            Some(placed) if passed_by == [None; 2] => self.joined(id, placed.file, time, out),
            // The socket knows how much it had carried.
            None if id.is_plain() && passed_by == [None; 2] && !id.is_rejoined() => Joined::Start,
            _ => Joined::Middle,
        };
        if id.is_rejoined() && !id.is_plain() {
            // Who used which socket meanwhile was not seen either.
            self.solver.lost(id.pid);
        }
        self.begin(id, joined, placed, time, out);
        let was_away = self.is_turned_away(id.pid, id.since());
        if let Some(entry) = self.connections.get(&id).filter(|_| was_away) {
            entry.joins_anywhere();
        }
        self.start_behind(id, passed_by);
    }

    /// Bytes of a process that is turned away, or a hole in them. One of which nobody has told may turn out to be wanted.
    fn pass_by(&mut self, stream: StreamId, end: u64) {
        // Of who is decided on meanwhile some may still come that counts as before.
        if let Some(known) = self.passed_by.get_mut(&stream) {
            *known = end.max(*known);
            return;
        }
        let who = self.processes.get(&stream.handle.pid);
        if who.is_some_and(|who| who.facts.is_bare() || who.is_undecided) {
            self.passed_by.insert(stream, end);
        }
    }

    /// How far the streams of a connection were when it was turned away, those that were.
    fn taken_passed_by(&mut self, handle: HandleId) -> [Option<(Direction, u64)>; 2] {
        [Direction::Received, Direction::Sent].map(|direction| {
            let position = self.passed_by.remove(&StreamId { handle, direction });
            position.map(|position| (direction, position))
        })
    }

    fn start_behind(&mut self, id: HandleId, passed_by: [Option<(Direction, u64)>; 2]) {
        if let Some(entry) = self.connections.get(&id) {
            for (direction, position) in passed_by.into_iter().flatten() {
                entry.parts(direction).stream.start_at(position);
            }
        }
    }

    /// The handle means this connection from here on, and whatever it meant before is over.
    fn begin(
        &mut self,
        id: HandleId,
        joined: Joined,
        placed: Option<Placed>,
        time: u64,
        out: Out<'_>,
    ) {
        if let Some(before) = self.connections.at(id.pid, id.handle) {
            self.close(before, time, out);
        }
        let library = placed.and_then(|placed| self.coverage.library(placed));
        self.connections.open(id, joined, library);
        if let Some(entry) = self.connections.get(&id) {
            entry.file = placed.map(|placed| placed.file);
        }
    }

    fn close(&mut self, id: HandleId, now: u64, out: Out<'_>) {
        self.let_go(id, out);
        for piece in self.trials.take(id) {
            self.withhold(piece, out);
        }
        self.solver.closed(id);
        let streams = StreamId::both(id);
        for stream in streams {
            self.feed(stream, 0, 0, now, out, |stream, out| stream.give_up(out));
        }
        // What it could not tell yet is data, which the redactor may hold back.
        self.decoded(id, now, out);
        for told in streams.into_iter().flat_map(Told::of) {
            self.show_held(told, now, out, |redactor, out| redactor.close(told, out));
        }
        self.connections.close(&id);
    }

    /// Says what the decoder of a connection is still in the middle of.
    fn decoded(&mut self, id: HandleId, now: u64, out: Out<'_>) {
        self.decode(id, now, out, |decoder, keep, out| {
            decoder.close(now, keep, out)
        });
    }

    /// Asks the decoder of a connection to say something.
    fn decode(
        &mut self,
        id: HandleId,
        now: u64,
        out: Out<'_>,
        ask: impl FnOnce(&mut Protocol, &mut Keep, &mut dyn FnMut(protocol::Said<'_>)),
    ) {
        let Pipeline {
            wanted,
            processes,
            connections,
            redactors,
            keep,
            held,
            dialogs,
            waits,
            detector,
            limits,
            asked,
            account,
            sequence,
            clock,
            ..
        } = self;
        let Some(entry) = connections.get(&id) else {
            return;
        };
        let lost = entry.lost();
        let border = entry.border;
        let Parts {
            connection,
            decoder,
            calls,
            mcp,
            ..
        } = entry.parts(Direction::Sent);
        let who = processes.get(&id.pid);
        let (capture, past) = capture_of(wanted, who);
        let mut speaker = Speaker {
            voice: Voice {
                wanted,
                process: who.map(|who| &who.facts),
                tid: None,
                function: None,
                lost,
                capture,
                past,
                border,
                connection,
                time: now,
                clock: *clock,
                sequence,
                out,
            },
            redactors,
            limits,
            asked,
            account,
            calls,
            held,
            dialogs,
            mcp,
            waits,
            detector,
            handle: id,
        };
        ask(decoder, keep, &mut |said| speaker.heard(said));
    }

    /// Was the connection seen from its first byte? It was, if every call of the process was. A forked
    /// child has its parent's handles: one that the parent used is in its middle.
    fn joined(&mut self, id: HandleId, file: FileId, time: u64, out: Out<'_>) -> Joined {
        let joined = self.joined_by_process(id, file, time, out);
        match id.is_rejoined() {
            true => Joined::Middle,
            false => joined,
        }
    }

    fn joined_by_process(&mut self, id: HandleId, file: FileId, time: u64, out: Out<'_>) -> Joined {
        if let Some(joined) = self.coverage.joined(id.pid, file) {
            return joined;
        }
        let parent = self
            .processes
            .get(&id.pid)
            .and_then(|who| who.facts.parent_pid);
        let of_parent = parent.and_then(|parent| self.coverage.joined(parent, file));
        let of_process = of_parent.unwrap_or(Joined::Middle);
        if let Some(coverage) = self.coverage.inherited(id.pid, file, of_process) {
            self.say(vec![Said::of(id.pid, coverage)], time, out);
        }
        match parent {
            Some(parent) if self.connections.at(parent, id.handle).is_some() => Joined::Middle,
            _ => of_process,
        }
    }

    /// Runs one step of a stream and turns what comes out into records.
    fn feed(
        &mut self,
        id: StreamId,
        tid: u32,
        point: u64,
        time: u64,
        out: Out<'_>,
        step: impl FnOnce(&mut Stream, &mut dyn FnMut(&Stream, Output<'_>)),
    ) {
        let Pipeline {
            wanted,
            processes,
            coverage,
            connections,
            redactors,
            waiting,
            tally,
            told_late,
            decodes,
            keep,
            held,
            dialogs,
            waits,
            detector,
            limits,
            asked,
            account,
            sequence,
            clock,
            ..
        } = self;
        let Some(entry) = connections.get(&id.handle) else {
            return;
        };
        let is_left_out = entry.is_left_out;
        let mut lost = entry.lost();
        let mut border = entry.border;
        let Parts {
            stream,
            connection,
            decoder,
            calls,
            mcp,
        } = entry.parts(id.direction);
        let who = processes.get(&id.handle.pid);
        let process = who.map(|who| &who.facts);
        let (capture, past) = capture_of(wanted, who);
        let function = coverage.point(point).map(|placed| placed.function);
        let client = connection.role.map(|role| match role {
            Role::Client => Direction::Sent,
            Role::Server => Direction::Received,
        });
        step(stream, &mut |stream, output| {
            lost[id.direction as usize] = stream.lost();
            match output {
                Output::Bytes { bytes, .. } if is_left_out => {
                    tally.over_limit += bytes.len() as u64;
                }
                Output::Bytes { bytes, .. } => tally.delivered += bytes.len() as u64,
                Output::Gap { length, cause, .. } => match cause {
                    Cause::RingFull | Cause::OverBudget => *told_late += length,
                    Cause::Unknown => tally.unknown += length,
                    Cause::Withdrawn => tally.withdrawn += length,
                    Cause::CopyFault | Cause::MapFull | Cause::CallTooLong => {}
                    Cause::Sendfile | Cause::NoBuffer => {}
                },
            }
            if let Output::Bytes { offset, .. } = output {
                border.pass(id.direction, offset, time);
            }
            if is_left_out {
                return;
            }
            let mut speaker = Speaker {
                voice: Voice {
                    wanted,
                    process,
                    tid: (tid != 0).then_some(tid),
                    function,
                    lost,
                    capture,
                    past,
                    border,
                    connection,
                    time,
                    clock: *clock,
                    sequence,
                    out: &mut *out,
                },
                redactors,
                limits,
                asked,
                account,
                calls,
                held,
                dialogs,
                mcp,
                waits,
                detector,
                handle: id.handle,
            };
            match output {
                Output::Bytes { offset, bytes } => {
                    if wanted.emit.contains(&Kind::Data) {
                        speaker.bytes(id.direction, View::All, offset, bytes, time);
                    }
                    if *decodes {
                        let piece = protocol::Piece {
                            direction: id.direction,
                            offset,
                            bytes,
                            time,
                        };
                        decoder.feed(piece, client, keep, &mut |said| speaker.heard(said));
                    }
                }
                Output::Gap {
                    offset,
                    length,
                    cause,
                } => {
                    if *decodes {
                        decoder.gap(id.direction, length, time, keep, &mut |said| {
                            speaker.heard(said)
                        });
                    }
                    speaker.gap(id.direction, offset, length, cause);
                }
            }
        });
        if stream.is_waiting() {
            waiting.insert(id);
        } else if !waiting.is_empty() {
            waiting.remove(&id);
        }
        entry.border = border;
    }

    /// A call that passed by. The one that makes a handle could have named any of them: the kernel goes on
    /// with its streams.
    fn unseen(&mut self, id: HandleId, point: u64, time: u64, out: Out<'_>) {
        if self.is_turned_away(id.pid, time) {
            return;
        }
        let file = self.coverage.point(point).map(|placed| placed.file);
        if let Some(file) = file {
            // Says how a forked child is seen.
            self.joined(id, file, time, out);
        }
        let incomplete = if id.handle == 0 {
            self.connections.of(id.pid)
        } else {
            self.open(id, point, time, out);
            vec![id]
        };
        for id in incomplete {
            if let Some(entry) = self.connections.get(&id) {
                entry.facts.has_unseen = true;
            }
        }
        if let Some(file) = file
            && let Some(coverage) = self.coverage.switches(id.pid, file)
        {
            self.say(vec![Said::of(id.pid, coverage)], time, out);
        }
    }

    /// Makes records of what the redactor has held back of a stream.
    fn show_held(
        &mut self,
        Told {
            stream: StreamId { handle, direction },
            view,
        }: Told,
        time: u64,
        out: Out<'_>,
        act: impl FnOnce(&mut Redactor, redact::Out<'_>),
    ) {
        let Pipeline {
            wanted,
            processes,
            connections,
            redactors,
            sequence,
            clock,
            ..
        } = self;
        let Some(entry) = connections.get(&handle) else {
            return;
        };
        let who = processes.get(&handle.pid);
        let (capture, past) = capture_of(wanted, who);
        let mut voice = Voice {
            wanted,
            process: who.map(|who| &who.facts),
            tid: None,
            function: None,
            lost: entry.lost(),
            capture,
            past,
            border: entry.border,
            connection: &mut entry.facts,
            time,
            clock: *clock,
            sequence,
            out,
        };
        act(redactors.holding_mut(), &mut |offset, length, content| {
            voice.data(direction, view, offset, length, content);
        });
    }

    /// Bytes that the kernel could not place in a stream.
    fn unplaced(
        &mut self,
        id: StreamId,
        tid: u32,
        length: u64,
        cause: Cause,
        time: u64,
        out: Out<'_>,
    ) {
        let Pipeline {
            wanted,
            processes,
            connections,
            sequence,
            clock,
            ..
        } = self;
        let entry = connections.get(&id.handle);
        if entry.as_ref().is_some_and(|entry| entry.is_left_out) {
            return;
        }
        emit(
            wanted,
            sequence,
            out,
            &mut Record {
                sequence: 0,
                time: WallTime(time.wrapping_add(*clock)),
                process: processes.get(&id.handle.pid).map(|who| &who.facts),
                tid: Some(tid),
                connection: entry.map(|entry| &entry.facts),
                function: None,
                complete: false,
                lost_bytes: length,
                body: Body::Gap {
                    direction: id.direction,
                    cause,
                    offset: None,
                    length,
                },
            },
        );
    }

    fn process(&mut self, facts: Facts, now: u64, out: Out<'_>) {
        let pid = facts.pid;
        // Who has spoken before goes on, unless less may be told of who it is now.
        let may_wait = self.wanted.policy.is_some()
            || self
                .processes
                .get(&pid)
                .is_none_or(|who| who.awaits || who.facts.is_bare());
        let clear = self.clear(&facts);
        if let Some(who) = self.processes.get(&pid).filter(|who| who.awaits) {
            // Its facts came twice, or it was asked about when it had ended: it waits on.
            if clear.is_bare() || who.is_the_same(&clear, &facts) {
                return;
            }
            // That was of who it was.
            self.go_on(pid, now, out);
        }
        // Of one that was bare the facts are only late.
        if let Some(who) = self.processes.get(&pid)
            && !who.facts.is_bare()
        {
            // It was asked about when it had ended, and is who it was.
            if clear.is_bare() {
                return;
            }
            self.leave(pid);
            self.unclaimed.became_another(pid);
            self.health.forget(pid);
        }
        // Who it was before may have begun what it goes on with, and may have said what is still to come.
        let (before, mut past) = capture_of(&self.wanted, self.processes.get(&pid));
        if let Some(since) = facts.since {
            past.was(before, since);
        }
        let meeting = self.meet(facts.container_id.as_deref());
        let subject = Subject::of(&facts);
        let who = Who {
            passes: false,
            passes_by_exe: passes(&self.wanted, &subject),
            is_undecided: false,
            covered: is_covered(&self.wanted, facts.owner_uid, &subject, facts.is_outside),
            is_outside: facts.is_outside,
            facts: clear,
            subject,
            awaits: meeting == Meeting::Wait && may_wait,
            verdict: Verdict::ALL,
            past,
            is_withheld: false,
            told: None,
        };
        let awaits = who.awaits;
        let before = self.processes.insert(pid, who);
        self.call(pid);
        let was_withheld = before.is_some_and(|who| who.is_withheld);
        if !self.may_pass(pid) {
            self.passed_by.retain(|stream, _| stream.handle.pid != pid);
        }
        match awaits {
            // From now on, also where nothing has happened yet, and however late it is told of.
            true => self.parked.entry(pid).or_default().since = now,
            false => {
                self.no_longer_withheld(was_withheld, pid, now, out);
                self.go_on(pid, now, out);
            }
        }
    }

    /// The policy has turned it away, because less was known of it: it is watched from now on.
    fn no_longer_withheld(&mut self, was_withheld: bool, pid: u32, now: u64, out: Out<'_>) {
        if was_withheld && !self.is_filtered(pid) {
            let said = self.coverage.begins(pid, now);
            self.say(said, now, out);
        }
    }

    /// A process is in this container.
    fn meet(&mut self, id: Option<&str>) -> Meeting {
        let Some(id) = id else {
            return Meeting::GoOn;
        };
        let name = container::name(id).filter(|_| self.containers.get(id).is_none());
        let told = name.map(|name| {
            let name = Some(name.to_owned());
            self.judge_container(
                id,
                Container {
                    name,
                    ..Container::default()
                },
            )
        });
        let Pipeline {
            containers,
            processes,
            ..
        } = self;
        let is_in = |id: &str| {
            let mut ids = processes
                .values()
                .map(|who| who.subject.container_id.as_deref());
            ids.any(|one| one == Some(id))
        };
        match told {
            Some(told) => containers.meet_named(id, is_in, told),
            None => containers.meet(id, is_in),
        }
    }

    /// What is told of a container, and what is wanted of it.
    fn judge_container(&self, id: &str, container: Container) -> Judged {
        Judged {
            shown: Arc::new(self.clear_container(&container)),
            wish: wish(&self.wanted, id, &container),
            container: container.to_be_judged(),
        }
    }

    /// Gives a process what is known of its container.
    fn call(&mut self, pid: u32) {
        let Some(who) = self.processes.get_mut(&pid) else {
            return;
        };
        let id = who.subject.container_id.as_deref();
        let known = id.and_then(|id| self.containers.get(id));
        let filters = !self.wanted.names.is_empty();
        who.facts.container = known.map(|(container, _)| container.clone());
        let passes = who.passes_by_exe && (!filters || known.is_some_and(|(_, wish)| wish.passes));
        let verdict = known.map(|(_, wish)| wish.verdict);
        who.verdict = judged(
            self.wanted.policy.as_ref(),
            &who.subject,
            id.map(|_| verdict),
        );
        let is_told = who.verdict.capture > Capture::None;
        who.passes = passes && is_told;
        who.is_withheld = passes && !is_told;
        // Should it be again, that is told again.
        who.told = who.told.filter(|_| who.is_withheld);
        let may_change = filters || !is_told;
        who.is_undecided = who.passes_by_exe && may_change && id.is_some() && known.is_none();
    }

    /// The same of one that is no more and whom the filters wanted then. Is anything told of it, by what is known now?
    fn call_gone(&self, gone: &mut Gone) -> bool {
        let Gone { facts, subject } = gone;
        let id = subject.container_id.as_deref();
        let known = id.and_then(|id| self.containers.get(id));
        let filters = !self.wanted.names.is_empty();
        let passes = !filters || known.is_some_and(|(_, wish)| wish.passes);
        let verdict = id.map(|_| known.map(|(_, wish)| wish.verdict));
        let verdict = judged(self.wanted.policy.as_ref(), subject, verdict);
        facts.container = known.map(|(container, _)| container.clone());
        passes && verdict.capture > Capture::None
    }

    fn may_pass(&self, pid: u32) -> bool {
        let who = self.processes.get(&pid);
        who.is_some_and(|who| who.passes || who.is_undecided || who.facts.is_bare())
    }

    /// What a container is called: those in it wait no longer.
    fn container(&mut self, id: &str, container: Option<Container>, now: u64, out: Out<'_>) {
        let told = container.map(|container| self.judge_container(id, container));
        self.containers.told(id, told);
        let members = self.processes.iter();
        let mut members: Vec<(u64, u32)> = members
            .filter(|(_, who)| who.subject.container_id.as_deref() == Some(id))
            .map(|(pid, _)| (self.parked.get(pid).map_or(0, |it| it.since), *pid))
            .collect();
        members.sort_unstable();
        for (_, pid) in members {
            let who = self.processes.get(&pid);
            let was_withheld = who.is_some_and(|who| who.is_withheld);
            self.call(pid);
            match self.awaits(pid) {
                true => self.go_on(pid, now, out),
                false => self.no_longer_withheld(was_withheld, pid, now, out),
            }
        }
    }

    fn renamed(&mut self, pid: u32, comm: &str, now: u64, out: Out<'_>) {
        if self.awaits(pid) {
            return self.park(pid, Happened::Renamed(comm.to_owned()), now, out);
        }
        let clear = self.redactors.strings().string(comm);
        let Some(who) = self.processes.get_mut(&pid) else {
            return;
        };
        who.facts.comm = Some(clear);
        who.subject.comm = Some(comm.to_owned());
        who.covered = who.is_covered(&self.wanted);
        if self.wanted.policy.is_some() {
            self.judge_again(pid, now, out);
        }
    }

    fn ended(&mut self, pid: u32, now: u64, out: Out<'_>) {
        if self.awaits(pid) {
            return self.park(pid, Happened::Ended(now), now, out);
        }
        if self.parked.contains_key(&pid) {
            self.wait_no_longer(pid, now, out);
        }
        for id in self.connections.of(pid) {
            self.close(id, now, out);
        }
        self.judge_unclaimed(Some(pid), now, out);
        self.unclaimed.forget(pid);
        self.health.forget(pid);
        self.solver.ended(pid);
        self.plains.retain(|_, handles| {
            handles.retain(|handle| handle.pid != pid);
            !handles.is_empty()
        });
        self.leave(pid);
        self.passed_by.retain(|stream, _| stream.handle.pid != pid);
        self.processes.remove(&pid);
    }

    /// A process ends, or becomes another program.
    fn leave(&mut self, pid: u32) {
        let known = self.processes.get(&pid);
        let may_pass = known.is_none_or(|who| who.passes || who.is_undecided);
        let may_be_wanted = may_pass && self.is_covered(pid);
        let bare = || Gone {
            facts: Process {
                pid,
                ..Process::default()
            },
            subject: Subject::default(),
        };
        let gone = may_be_wanted.then(|| known.map_or_else(bare, Who::gone));
        self.coverage.left(pid, gone);
    }

    fn found(&mut self, file: FileId, path: &str, found: &Found) {
        let path = self.redactors.strings().string(path);
        let version = found.version.as_deref();
        let version = version.map(|version| self.redactors.strings().string(version));
        if found.on_trial {
            self.trials.open(file);
        }
        self.sites = self.coverage.found(file, path, version, found);
    }

    fn refused(&mut self, file: FileId, path: &str, why: &str, now: u64, out: Out<'_>) {
        let (path, why) = (
            self.redactors.strings().string(path),
            self.redactors.strings().string(why),
        );
        let said = self.coverage.refused(file, path, why);
        self.say(said, now, out);
    }

    fn mapped(&mut self, file: FileId, user: User, now: u64, out: Out<'_>) {
        let said = self.coverage.mapped(file, user);
        self.say(said.into_iter().collect(), now, out);
    }

    fn attached(&mut self, file: FileId, at: u64, now: u64, out: Out<'_>) {
        // Its first calls may have come before this.
        if self.trials.is_condemned(file) {
            return;
        }
        let said = self.coverage.attached(file, at);
        self.say(said, now, out);
    }

    fn failed(&mut self, file: FileId, why: &str, now: u64, out: Out<'_>) {
        let why = self.redactors.strings().string(why);
        let said = self.coverage.failed(file, why);
        self.say(said, now, out);
    }

    fn same(&mut self, file: FileId, known: FileId, now: u64, out: Out<'_>) {
        let said = self.coverage.same(file, known);
        self.say(said, now, out);
    }

    fn missed(&mut self, pid: u32, path: &str, now: u64, out: Out<'_>) {
        let path = self.redactors.strings().string(path);
        self.say(vec![Said::of(pid, Coverage::missed(path))], now, out);
    }

    fn say(&mut self, said: Vec<Said>, now: u64, out: Out<'_>) {
        for said in said {
            self.used |= !said.coverage.functions.is_empty();
            if said.gone.is_none() && self.awaits(said.pid) {
                self.park(said.pid, Happened::Said(said, now), now, out);
                continue;
            }
            let Said {
                pid,
                mut gone,
                mut coverage,
            } = said;
            if let Some(gone) = &mut gone {
                if !self.call_gone(gone) {
                    continue;
                }
            } else if self.is_filtered(pid) || !self.is_covered(pid) {
                self.refuse(pid, now, out);
                continue;
            }
            let clock = self.clock;
            coverage.seen_from = coverage
                .seen_from
                .map(|at| WallTime(at.0.wrapping_add(clock)));
            let gone = gone.as_ref().map(|gone| &gone.facts);
            self.emit_coverage(pid, gone, coverage, None, now, out);
        }
    }

    /// Of a process that the policy withholds this is told, once, and without the words that it was started by.
    fn refuse(&mut self, pid: u32, now: u64, out: Out<'_>) {
        let Some(who) = self.processes.get_mut(&pid) else {
            return;
        };
        let why = who
            .verdict
            .refusal()
            .filter(|_| who.is_withheld && who.covered);
        let Some(why) = why.filter(|why| who.told != Some(why)) else {
            return;
        };
        who.told = Some(why);
        let facts = Process {
            arguments: Vec::new(),
            ..who.facts.clone()
        };
        let coverage = Coverage::withheld(why);
        self.emit_coverage(pid, Some(&facts), coverage, None, now, out);
    }

    /// `gone`: who it was, if it is no more.
    fn emit_coverage(
        &mut self,
        pid: u32,
        gone: Option<&Process>,
        coverage: Coverage,
        connection: Option<&Connection>,
        now: u64,
        out: Out<'_>,
    ) {
        self.covered.add(coverage.status);
        let Pipeline {
            wanted,
            processes,
            sequence,
            clock,
            ..
        } = self;
        emit(
            wanted,
            sequence,
            out,
            &mut Record {
                sequence: 0,
                time: WallTime(now.wrapping_add(*clock)),
                process: gone.or_else(|| processes.get(&pid).map(|who| &who.facts)),
                tid: None,
                connection,
                function: None,
                complete: coverage.seen_from.is_none(),
                lost_bytes: 0,
                body: Body::Coverage(coverage),
            },
        );
    }

    /// What may be shown of the facts about a process.
    fn clear(&self, facts: &Facts) -> Process {
        let clear = |text: &Option<String>| {
            text.as_ref()
                .map(|text| self.redactors.strings().string(text))
        };
        Process {
            pid: facts.pid,
            vpid: facts.vpid,
            comm: clear(&facts.comm),
            executable: clear(&facts.executable),
            arguments: self.redactors.strings().arguments(&facts.arguments),
            owner_uid: facts.owner_uid,
            parent_pid: facts.parent_pid,
            container_id: clear(&facts.container_id),
            container: None,
        }
    }

    /// What may be shown of a container.
    fn clear_container(&self, container: &Container) -> record::Container {
        let clear = |text: &str| self.redactors.strings().string(text);
        let optional = |text: &Option<String>| text.as_deref().map(clear);
        let pair = |(key, value): (&String, &String)| {
            let value = self.redactors.strings().labelled(key, value);
            (clear(key), value)
        };
        let image = optional(&container.image);
        let (image, image_tag) = image.as_ref().map_or((None, None), |image| {
            let (name, tag) = image_and_tag(image);
            (Some(image.part(name)), tag.map(|tag| image.part(tag)))
        });
        record::Container {
            name: optional(&container.name),
            image,
            image_tag,
            labels: container.labels.iter().map(pair).collect(),
            pod: container.pod.as_ref().map(|pod| record::Pod {
                namespace: clear(&pod.namespace),
                name: clear(&pod.name),
                uid: clear(&pod.uid),
                container: optional(&pod.container),
                labels: pod.labels.iter().map(pair).collect(),
                annotations: pod.annotations.iter().map(pair).collect(),
            }),
        }
    }

    /// A line that others wrote, as it may be shown.
    pub fn string(&self, text: &str) -> Clear {
        self.redactors.strings().string(text)
    }

    fn stats(&mut self, count: Count, now: u64, out: Out<'_>) {
        let Count {
            last,
            kernel,
            sinks,
            cpu_seconds,
            memory_bytes,
            governing,
        } = count;
        let kernel = |index| kernel.get(index).copied().unwrap_or_default();
        let stats = Stats {
            last,
            ledger: ledger(kernel, self.tally),
            sinks,
            cpu_seconds,
            memory_bytes,
            features: self.features.clone(),
            content: self.wanted.content.name(),
            limits: self.lacks.clone(),
            bounds: self.bounds(),
            containers: self.containers.counts(self.wanted.policy.is_some()),
            shedding: self.account.told(self.connections.left_out(), self.clock),
            governing,
        };
        let time = WallTime(now.wrapping_add(self.clock));
        emit(
            &self.wanted,
            &mut self.sequence,
            out,
            &mut Record {
                sequence: 0,
                time,
                process: None,
                tid: None,
                connection: None,
                function: None,
                complete: true,
                lost_bytes: 0,
                body: Body::Stats(&stats),
            },
        );
    }

    /// Ring records that made no sense. 0, or a bug.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

/// A forked child has its parent's libraries, of which nothing is said before its first call.
fn library_of(coverage: &Table, processes: &HashMap<u32, Who>, pid: u32) -> Library {
    const FORKS: usize = 64;
    let mut next = pid;
    for _ in 0..FORKS {
        match coverage.library_of(next) {
            Library::Nothing => {}
            known => return known,
        }
        let parent = processes.get(&next).and_then(|who| {
            let parent = processes.get(&who.facts.parent_pid?)?;
            // After exec it is another program.
            let is_same = who.facts.executable == parent.facts.executable;
            is_same.then_some(parent.facts.pid)
        });
        match parent {
            Some(parent) => next = parent,
            None => break,
        }
    }
    Library::Nothing
}

/// Where the parts of an image's name are: a registry may have a port, and a digest has a colon, too. Taken of what
/// is clear: a secret is not known by its halves.
fn image_and_tag(image: &str) -> (Range<usize>, Option<Range<usize>>) {
    let named = image.find('@').unwrap_or(image.len());
    match image[..named].rsplit_once(':') {
        Some((name, tag)) if !tag.contains(['/', ']']) && name != "sha256" => {
            (0..name.len(), Some(name.len() + 1..named))
        }
        _ => (0..named, None),
    }
}

/// What is wanted of a container.
fn wish(wanted: &Wanted, id: &str, container: &Container) -> Wish {
    let policy = wanted.policy.as_ref();
    Wish {
        passes: wanted.names.pass(id, container),
        verdict: policy.map_or(Verdict::ALL, |policy| policy.of(id, container)),
    }
}

fn passes(wanted: &Wanted, subject: &Subject) -> bool {
    let exe = || subject.executable.as_deref().unwrap_or_default();
    let mut exes = wanted.exes.iter();
    wanted.exes.is_empty() || exes.any(|pattern| fits_executable(pattern, exe()))
}

/// How much is told of a process, now and before: of none that is known as little as of any.
fn capture_of(wanted: &Wanted, who: Option<&Who>) -> (Capture, Past) {
    let nowhere = || {
        let policy = wanted.policy.as_ref();
        policy.map_or(Verdict::ALL, policy::Policy::nobody)
    };
    match who {
        Some(who) => (who.verdict.capture, who.past),
        None => (nowhere().capture, Past::default()),
    }
}

/// What a policy says of a process. `container`: if it is in one, what it says of that, if it is known.
fn judged(
    policy: Option<&policy::Policy>,
    subject: &Subject,
    container: Option<Option<Verdict>>,
) -> Verdict {
    let Some(policy) = policy else {
        return Verdict::ALL;
    };
    let verdict = match container {
        Some(verdict) => verdict.unwrap_or_else(|| policy.unknown()),
        // It was gone, or is going, when /proc was asked about its control groups.
        None if subject.executable.is_none() => policy.nowhere(),
        None => policy.host(),
    };
    policy.of_program(verdict, subject)
}

/// How much of a gap counts as one that may be told late.
fn late(cause: Cause, length: u64) -> u64 {
    match cause {
        Cause::RingFull | Cause::OverBudget => length,
        _ => 0,
    }
}

/// Would the kernel's filters let the calls of such a process pass?
fn is_covered(wanted: &Wanted, uid: Option<u32>, subject: &Subject, is_outside: bool) -> bool {
    let Wanted { uids, comms, .. } = wanted;
    let comm = subject.comm.as_ref();
    let has_uid = uid.is_none_or(|uid| uids.is_empty() || uids.contains(&uid));
    let has_comm = comm.is_none_or(|comm| comms.is_empty() || comms.contains(comm));
    has_uid && has_comm && !is_outside
}

/// Where no payload is shown, none needs to be looked at.
fn policy(content: Policy, emit: &BTreeSet<Kind>, decodes: bool) -> Policy {
    match content {
        Policy::Redacted if !decodes && !emit.contains(&Kind::Data) => Policy::None,
        policy => policy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images() {
        for (image, name, tag) in [
            ("nginx", "nginx", None),
            (
                "docker.io/library/nginx:1.27",
                "docker.io/library/nginx",
                Some("1.27"),
            ),
            ("localhost:5000/nginx", "localhost:5000/nginx", None),
            ("localhost:5000/nginx:1", "localhost:5000/nginx", Some("1")),
            ("nginx:1@sha256:00ff", "nginx", Some("1")),
            ("nginx@sha256:00ff", "nginx", None),
            ("sha256:00ff", "sha256:00ff", None),
            ("a/[redacted:token:00ff]", "a/[redacted:token:00ff]", None),
            ("", "", None),
        ] {
            let (this, that) = image_and_tag(image);
            assert_eq!((&image[this], that.map(|it| &image[it])), (name, tag));
        }
    }
}
