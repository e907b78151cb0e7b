//! The line, stage by stage: ring records and the half's reports in, output records out. Pure: no clock,
//! no file, no socket. Time comes with the events.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use agent_ebpf::Direction;

use crate::{
    attribute::{Attention, Call, Solver, Verdict},
    backlog::{Backlog, Piece, What},
    connection::Connections,
    coverage::{Placed, Said, Table, User},
    event::{self, Ends, Event, HandleId, StreamId, Used, decode},
    glob::glob,
    half::{Connected, Facts, FileId, Finding, Pending, Runtime, Silent, Site},
    hello,
    ledger::Tally,
    locate::Found,
    plaintext::Plaintext,
    protocol::{
        self, Limit,
        exchange::{Bounds, Keep},
    },
    record::{
        Attribution, Body, Cause, Connection, Content, Coverage, Joined, Kind, Process, Record,
        Role, Stats, WallTime,
    },
    redact::{self, Clear, Key, Policy, Redactor},
    speaker::{Speaker, Voice, emit},
    stream::{Output, Stream},
    trial::{Trials, Verdict as Judgement},
    unclaimed::{Greeting, Library, Unclaimed},
};

/// Where records go.
pub type Out<'a> = &'a mut dyn FnMut(&Record<'_>);

/// What is wanted of the line.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub emit: BTreeSet<Kind>,
    /// Bytes that nothing decodes are told as data, also where `emit` has no data.
    pub undecoded: bool,
    /// How much of bodies is kept.
    pub bounds: Bounds,
    pub content: Policy,
    /// Patterns of executables; a process passes if one matches. Empty: everybody.
    pub exes: Vec<String>,
    /// What the kernel filters by; here for coverage only.
    pub uids: Vec<u32>,
    pub comms: Vec<String>,
    /// Makes the ids of connections; random, but the same for a replay.
    pub key: u128,
    /// Makes the hashes of secrets; random.
    pub secret_key: Key,
}

/// All state of the line.
pub struct Pipeline {
    wanted: Wanted,
    processes: HashMap<u32, Who>,
    coverage: Table,
    connections: Connections,
    /// Anything that decoders say is wanted.
    decodes: bool,
    /// What is kept of bodies.
    keep: Keep,
    /// How often a bound of a decoder was reached.
    limits: BTreeMap<Limit, u64>,
    redactor: Redactor,
    solver: Solver,
    backlog: Backlog,
    trials: Trials,
    /// Files whose probes are to be taken out, and why.
    withdrawals: Vec<(FileId, &'static str)>,
    /// The kernel side sees which sockets are used, so connections get names.
    sees_sockets: bool,
    /// Streams in which something waits for a hole to be explained.
    waiting: HashSet<StreamId>,
    parked: HashMap<u32, Parked>,
    /// Connections whose handle is gone, and since when.
    freed: VecDeque<(u64, HandleId)>,
    /// The same of those that their programs closed: these may still be read.
    left: VecDeque<(u64, HandleId)>,
    /// Handles that the kernel side need not remember.
    forgotten: Vec<HandleId>,
    unclaimed: Unclaimed,
    /// Processes of which nothing is known but that they speak TLS.
    strangers: Vec<u32>,
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
}

struct Who {
    facts: Process,
    /// The user-space filters want it.
    passes: bool,
    /// The kernel's filters let its calls pass, by what it was when we heard of it: that can change.
    covered: bool,
    /// It is not in the control groups that are watched.
    is_outside: bool,
}

/// Records of a process that nobody has told us about: its facts are on their way by the other channel.
#[derive(Default)]
struct Parked {
    since: u64,
    bytes: usize,
    records: Vec<Vec<u8>>,
}

/// How long a record waits for the facts about its process, in nanoseconds, and how many bytes wait.
const PARKED_TIME: u64 = 250_000_000;
const PARKED_BYTES: usize = 1 << 20;

/// How long a connection outlives its handle, in nanoseconds: what tells its name, and what the half says of
/// its end, may come later.
const FREED_TIME: u64 = 1_000_000_000;

/// How long it does that has been closed and may still be read, in nanoseconds: what was decrypted before is read
/// at once, or never.
const LEFT_TIME: u64 = 3_000_000_000;

/// How often a connection waits for a name in vain before it waits no more.
const WAITS_MAX: u32 = 16;

impl Pipeline {
    pub fn new(wanted: Wanted) -> Pipeline {
        let is_any = |kinds: &[Kind]| kinds.iter().any(|kind| wanted.emit.contains(kind));
        let decodes =
            wanted.undecoded || is_any(&[Kind::Http, Kind::Sse, Kind::Websocket, Kind::Grpc]);
        // No payload is shown: none needs to be looked at.
        let policy = match wanted.content {
            Policy::Redacted if !decodes && !is_any(&[Kind::Data]) => Policy::None,
            policy => policy,
        };
        Pipeline {
            decodes,
            keep: Keep::new(wanted.bounds),
            limits: BTreeMap::new(),
            connections: Connections::new(wanted.key),
            redactor: Redactor::new(policy, wanted.secret_key.clone()),
            solver: Solver::default(),
            backlog: Backlog::default(),
            trials: Trials::default(),
            withdrawals: Vec::new(),
            sees_sockets: false,
            wanted,
            processes: HashMap::new(),
            coverage: Table::default(),
            waiting: HashSet::new(),
            parked: HashMap::new(),
            freed: VecDeque::new(),
            left: VecDeque::new(),
            forgotten: Vec::new(),
            unclaimed: Unclaimed::default(),
            strangers: Vec::new(),
            has_unknown: false,
            tally: Tally::default(),
            told_late: 0,
            malformed: 0,
            captured: false,
            used: false,
            sequence: 0,
            clock: 0,
        }
    }

    /// Wall clock minus time since boot, in nanoseconds; changes when somebody sets the clock.
    pub fn set_clock(&mut self, offset: u64) {
        self.clock = offset;
    }

    /// Uses of sockets will be told: what has no name yet may wait for one.
    pub fn expect_sockets(&mut self) {
        self.sees_sockets = true;
    }

    /// What the kernel side should know of sockets since the last time.
    pub fn attentions(&mut self) -> std::vec::Drain<'_, Attention> {
        self.solver.attentions()
    }

    /// Must the kernel side tell what sockets move inside calls?
    pub fn is_any_on_trial(&self) -> bool {
        self.trials.is_any_open()
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

    /// Nothing more will come that could name anybody.
    pub fn wait_for_no_names(&mut self, out: Out<'_>) {
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
    pub fn bounds(&self) -> Vec<(&'static str, u64)> {
        let count = |limit| self.limits.get(&limit).copied().unwrap_or_default();
        Limit::ALL
            .map(|limit| (limit.name(), count(limit)))
            .to_vec()
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
    pub fn questions(&mut self, now: u64) -> Vec<Connected> {
        let Pipeline {
            unclaimed,
            coverage,
            processes,
            ..
        } = self;
        unclaimed.questions(now, |pid| library_of(coverage, processes, pid))
    }

    /// One ring record. `now` is nanoseconds since boot.
    pub fn record(&mut self, raw: &[u8], now: u64, out: Out<'_>) {
        let Ok(event) = decode(raw) else {
            self.malformed += 1;
            return;
        };
        if let Some(pid) = event.pid()
            && self.must_wait(pid, raw, now, out)
        {
            return;
        }
        self.event(event, out);
    }

    fn must_wait(&mut self, pid: u32, raw: &[u8], now: u64, out: Out<'_>) -> bool {
        if self.processes.contains_key(&pid) {
            return false;
        }
        let parked = self.parked.entry(pid).or_insert_with(|| Parked {
            since: now,
            ..Parked::default()
        });
        parked.bytes += raw.len();
        parked.records.push(raw.to_vec());
        if parked.bytes > PARKED_BYTES {
            self.wait_no_longer(pid, out);
        }
        true
    }

    /// Nothing but its id is known of this process, and its records wait no longer for more.
    fn wait_no_longer(&mut self, pid: u32, out: Out<'_>) {
        let facts = Facts {
            pid,
            ..Facts::default()
        };
        self.process(facts, out);
    }

    /// Lets records go that waited long enough, and gives up on holes.
    pub fn expire(&mut self, now: u64, out: Out<'_>) {
        for pid in self.parked_since(now.saturating_sub(PARKED_TIME)) {
            self.wait_no_longer(pid, out);
        }
        let is_contested = |id: &HandleId| self.solver.is_contested(*id);
        for id in self.backlog.overdue(now, is_contested) {
            if let Some(entry) = self.connections.get(&id) {
                entry.waits += 1;
            }
            self.let_go(id, out);
        }
        self.solver.expire(now);
        while let Some(&(since, id)) = self.freed.front()
            && now.saturating_sub(since) > FREED_TIME
        {
            self.freed.pop_front();
            if self.connections.contains(&id) {
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
        self.give_up(|stream| stream.is_overdue(now), now, out);
        for id in self.redactor.due(now) {
            self.show_held(id, now, out, |redactor, out| redactor.flush(id, now, out));
        }
    }

    /// Processes whose records wait since before `limit`, in the order of these.
    fn parked_since(&self, limit: u64) -> Vec<u32> {
        let parked = self.parked.iter();
        let mut parked: Vec<(u64, u32)> = parked
            .map(|(pid, parked)| (parked.since, *pid))
            .filter(|(since, _)| *since < limit)
            .collect();
        parked.sort_unstable();
        parked.into_iter().map(|(_, pid)| pid).collect()
    }

    /// The end of the input: whatever waits comes out.
    pub fn finish(&mut self, now: u64, out: Out<'_>) {
        for pid in self.parked_since(u64::MAX) {
            self.wait_no_longer(pid, out);
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
        for id in self.redactor.all_holding() {
            self.show_held(id, now, out, |redactor, out| redactor.close(id, out));
        }
    }

    /// Must [`Pipeline::expire`] be called soon, though nothing comes?
    pub fn is_holding(&self) -> bool {
        self.redactor.is_holding()
    }

    fn give_up(&mut self, is_due: impl Fn(&Stream) -> bool, now: u64, out: Out<'_>) {
        let mut due: Vec<StreamId> = self.waiting.iter().copied().collect();
        due.retain(|id| {
            let entry = self.connections.get(&id.handle);
            entry.is_some_and(|entry| is_due(entry.stream(id.direction).0))
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
                    entry.facts.server_name =
                        Some(self.redactor.string(&String::from_utf8_lossy(name)));
                }
            }
            Event::Touch {
                handle,
                place,
                time,
            } => {
                if !self.is_filtered(handle.pid) {
                    self.solver.call(handle, place, time, Call::Touch);
                    self.judge(out);
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
                if !self.is_filtered(pid) {
                    let socket = (cookie, generation);
                    self.solver
                        .transfer(pid, place, time, socket, direction, length);
                    self.judge(out);
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
                if !self.is_filtered(handle.pid) {
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
                if self.is_filtered(stream.handle.pid) {
                    self.tally.filtered += bytes.len() as u64;
                    return;
                }
                self.open(stream.handle, point, time, out);
                let (handle, direction) = (stream.handle, stream.direction);
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
                    Used::One(cookie) => {
                        if self
                            .connections
                            .attribute(&handle, cookie, Attribution::Exact)
                        {
                            self.claim(&handle);
                            self.solver.exact(handle, cookie);
                            self.let_go(handle, out);
                        }
                        self.solver.carried(handle, tid, direction, bytes.reveal());
                    }
                    Used::Several => {}
                }
                self.judge(out);
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
                if self.is_filtered(stream.handle.pid) {
                    self.told_late += if matches!(cause, Cause::RingFull | Cause::OverBudget) {
                        length
                    } else {
                        0
                    };
                    return;
                }
                self.open(stream.handle, 0, time, out);
                if cause != Cause::Sendfile {
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
    fn judge(&mut self, out: Out<'_>) {
        let mut named = Vec::new();
        for verdict in self.solver.verdicts() {
            match verdict {
                Verdict::Named { handle, cookie } => {
                    self.connections
                        .attribute(&handle, cookie, Attribution::Inferred);
                    named.push(handle);
                }
                Verdict::Unnamed { handle } => self.connections.doubt(&handle),
            }
        }
        for handle in named {
            self.claim(&handle);
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
        let server_name = hello.server_name.map(|name| self.redactor.string(name));
        let greeting = Greeting {
            role: hello.role,
            server_name,
            time,
        };
        if self.unclaimed.greeted(connected, greeting) {
            self.strangers.push(pid);
        }
    }

    /// Plaintext of this connection came, and its socket is known.
    fn claim(&mut self, id: &HandleId) {
        if let Some(entry) = self.connections.get(id)
            && let (Some(local), Some(peer)) = (entry.facts.local, entry.facts.peer)
        {
            self.unclaimed.claimed(id.pid, local, peer);
        }
    }

    /// What runs the code of a process.
    pub fn runtime(&mut self, pid: u32, runtime: Option<Runtime>) {
        self.unclaimed.is_runtime(pid, runtime);
    }

    /// What the half found out about a connection that nobody has claimed. The path of a file whose probes were
    /// out of the process' memory.
    pub fn inspected(
        &mut self,
        connected: &Connected,
        finding: Finding,
        now: u64,
        out: Out<'_>,
    ) -> Option<Clear> {
        let pid = connected.pid;
        if let Some(Silent {
            file,
            is_placed_again,
        }) = finding.silent
        {
            self.unclaimed.claimed(pid, connected.local, connected.peer);
            let mut coverage = self.coverage.silent(pid, file, is_placed_again)?;
            // Nobody knows since when.
            coverage.seen_from = Some(WallTime(now));
            let path = coverage.library_path.clone();
            self.say(vec![Said::of(pid, coverage)], now, out);
            return path;
        }
        let library = library_of(&self.coverage, &self.processes, pid);
        if let Some((greeting, why)) = self.unclaimed.answered(connected, finding, library) {
            self.say_unseen(connected, greeting, why, now, out);
        }
        None
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
        if !self.processes.contains_key(&pid) {
            self.wait_no_longer(pid, out);
        }
        if self.is_filtered(pid) || !self.is_covered(pid) {
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
                entry.facts.attribution == Attribution::None && entry.waits < WAITS_MAX
            })
    }

    fn wait_for_name(&mut self, piece: Piece, out: Out<'_>) {
        let id = piece.stream.handle;
        if !self.backlog.push(piece) {
            // A flood: waiting costs more than the name is worth.
            if let Some(entry) = self.connections.get(&id) {
                entry.waits = WAITS_MAX;
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

    /// Holes at the end of streams that the half found in the kernel's map.
    pub fn pending(&mut self, pending: &[Pending], now: u64, out: Out<'_>) {
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
            if self.is_filtered(hole.tgid) {
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
            self.connections.recall(id);
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
            }
            return;
        }
        if self.connections.resume(id) {
            // Closed, and read all the same.
            self.left.push_back((time, id));
            return;
        }
        let joined = placed.map_or(Joined::Middle, |placed| {
            self.joined(id, placed.file, time, out)
        });
        if id.is_rejoined() {
            // Who used which socket meanwhile was not seen either.
            self.solver.lost(id.pid);
        }
        self.begin(id, joined, placed, time, out);
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
    }

    fn close(&mut self, id: HandleId, now: u64, out: Out<'_>) {
        self.let_go(id, out);
        for piece in self.trials.take(id) {
            self.withhold(piece, out);
        }
        self.solver.closed(id);
        let streams = [Direction::Received, Direction::Sent].map(|direction| StreamId {
            handle: id,
            direction,
        });
        for stream in streams {
            self.feed(stream, 0, 0, now, out, |stream, out| stream.give_up(out));
        }
        // What it could not tell yet is data, which the redactor may hold back.
        self.decoded(id, now, out);
        for stream in streams {
            self.show_held(stream, now, out, |redactor, out| {
                redactor.close(stream, out);
            });
        }
        self.connections.close(&id);
    }

    /// Says what the decoder of a connection is still in the middle of.
    fn decoded(&mut self, id: HandleId, now: u64, out: Out<'_>) {
        let Pipeline {
            wanted,
            processes,
            connections,
            redactor,
            keep,
            limits,
            sequence,
            clock,
            ..
        } = self;
        let Some(entry) = connections.get(&id) else {
            return;
        };
        let (_, connection, decoder) = entry.parts(Direction::Sent);
        let mut speaker = Speaker {
            voice: Voice {
                wanted,
                process: processes.get(&id.pid).map(|who| &who.facts),
                tid: None,
                function: None,
                complete: true,
                lost: 0,
                connection,
                time: now,
                clock: *clock,
                sequence,
                out,
            },
            redactor,
            limits,
            handle: id,
        };
        decoder.close(now, keep, &mut |said| speaker.heard(said));
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
            redactor,
            waiting,
            tally,
            told_late,
            decodes,
            keep,
            limits,
            sequence,
            clock,
            ..
        } = self;
        let Some(entry) = connections.get(&id.handle) else {
            return;
        };
        let (stream, connection, decoder) = entry.parts(id.direction);
        let process = processes.get(&id.handle.pid).map(|who| &who.facts);
        let function = coverage.point(point).map(|placed| placed.function);
        let client = connection.role.map(|role| match role {
            Role::Client => Direction::Sent,
            Role::Server => Direction::Received,
        });
        step(stream, &mut |stream, output| {
            let mut speaker = Speaker {
                voice: Voice {
                    wanted,
                    process,
                    tid: (tid != 0).then_some(tid),
                    function,
                    complete: is_complete(connection, stream),
                    lost: stream.lost(),
                    connection,
                    time,
                    clock: *clock,
                    sequence,
                    out: &mut *out,
                },
                redactor,
                limits,
                handle: id.handle,
            };
            match output {
                Output::Bytes { offset, bytes } => {
                    tally.delivered += bytes.len() as u64;
                    if wanted.emit.contains(&Kind::Data) {
                        speaker.bytes(id.direction, offset, bytes, time);
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
                    match cause {
                        Cause::RingFull | Cause::OverBudget => *told_late += length,
                        Cause::Unknown => tally.unknown += length,
                        Cause::Withdrawn => tally.withdrawn += length,
                        Cause::CopyFault
                        | Cause::MapFull
                        | Cause::CallTooLong
                        | Cause::Sendfile => {}
                    }
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
    }

    /// A call that passed by. The one that makes a handle could have named any of them: the kernel goes on
    /// with its streams.
    fn unseen(&mut self, id: HandleId, point: u64, time: u64, out: Out<'_>) {
        if self.is_filtered(id.pid) {
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
        id: StreamId,
        time: u64,
        out: Out<'_>,
        act: impl FnOnce(&mut Redactor, redact::Out<'_>),
    ) {
        let Pipeline {
            wanted,
            processes,
            connections,
            redactor,
            sequence,
            clock,
            ..
        } = self;
        let Some(entry) = connections.get(&id.handle) else {
            return;
        };
        let (stream, connection) = entry.stream(id.direction);
        let mut say = |body: Body<'_>| {
            let record = &mut Record {
                sequence: 0,
                time: WallTime(time.wrapping_add(*clock)),
                process: processes.get(&id.handle.pid).map(|who| &who.facts),
                tid: None,
                connection: Some(connection),
                function: None,
                complete: is_complete(connection, stream),
                lost_bytes: stream.lost(),
                body,
            };
            emit(wanted, sequence, out, record);
        };
        act(redactor, &mut data(id.direction, &mut say));
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
        emit(
            wanted,
            sequence,
            out,
            &mut Record {
                sequence: 0,
                time: WallTime(time.wrapping_add(*clock)),
                process: processes.get(&id.handle.pid).map(|who| &who.facts),
                tid: Some(tid),
                connection: connections.get(&id.handle).map(|entry| &entry.facts),
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

    /// Who a process is, or has become by exec.
    pub fn process(&mut self, facts: Facts, out: Out<'_>) {
        let pid = facts.pid;
        // Of one that was bare the facts are only late.
        if let Some(who) = self.processes.get(&pid)
            && !who.facts.is_bare()
        {
            self.leave(pid);
            self.unclaimed.became_another(pid);
        }
        let who = Who {
            passes: passes(&self.wanted, &facts),
            covered: is_covered(&self.wanted, &facts),
            is_outside: facts.is_outside,
            facts: self.clear(&facts),
        };
        self.processes.insert(pid, who);
        for raw in self.parked.remove(&pid).unwrap_or_default().records {
            if let Ok(event) = decode(&raw) {
                self.event(event, out);
            }
        }
    }

    /// The process' leader calls itself something else, from the next record on.
    pub fn renamed(&mut self, pid: u32, comm: &str) {
        let clear = self.redactor.string(comm);
        let Some(who) = self.processes.get_mut(&pid) else {
            return;
        };
        who.facts.comm = Some(clear);
        let facts = Facts {
            owner_uid: who.facts.owner_uid,
            comm: Some(comm.to_owned()),
            is_outside: who.is_outside,
            ..Facts::default()
        };
        who.covered = is_covered(&self.wanted, &facts);
    }

    /// The process is gone, and so are its connections.
    pub fn ended(&mut self, pid: u32, now: u64, out: Out<'_>) {
        if self.parked.contains_key(&pid) {
            self.wait_no_longer(pid, out);
        }
        for id in self.connections.of(pid) {
            self.close(id, now, out);
        }
        self.judge_unclaimed(Some(pid), now, out);
        self.unclaimed.forget(pid);
        self.solver.ended(pid);
        self.leave(pid);
        self.processes.remove(&pid);
    }

    /// A process ends, or becomes another program.
    fn leave(&mut self, pid: u32) {
        let is_wanted = !self.is_filtered(pid) && self.is_covered(pid);
        let bare = Process {
            pid,
            ..Process::default()
        };
        let who = self.processes.get(&pid).map_or(&bare, |who| &who.facts);
        self.coverage.left(pid, is_wanted.then_some(who));
    }

    /// Points were found in a file; what the half is asked to place.
    pub fn found(&mut self, file: FileId, path: &str, found: &Found) -> Vec<Site> {
        let path = self.redactor.string(path);
        let version = found.version.as_deref();
        let version = version.map(|version| self.redactor.string(version));
        if found.on_trial {
            self.trials.open(file);
        }
        self.coverage.found(file, path, version, found)
    }

    /// A TLS library that can't be probed.
    pub fn refused(&mut self, file: FileId, path: &str, why: &str, now: u64, out: Out<'_>) {
        let (path, why) = (self.redactor.string(path), self.redactor.string(why));
        let said = self.coverage.refused(file, path, why);
        self.say(said, now, out);
    }

    /// There is nothing to probe in the file.
    pub fn nothing(&mut self, file: FileId) {
        self.coverage.nothing(file);
    }

    pub fn mapped(&mut self, file: FileId, user: User, now: u64, out: Out<'_>) {
        let said = self.coverage.mapped(file, user);
        self.say(said.into_iter().collect(), now, out);
    }

    pub fn attached(&mut self, file: FileId, at: u64, now: u64, out: Out<'_>) {
        // Its first calls may have come before this.
        if self.trials.is_condemned(file) {
            return;
        }
        let said = self.coverage.attached(file, at);
        self.say(said, now, out);
    }

    /// A process that was held goes on, whether the probes are in place or not.
    pub fn continued(&mut self, pid: u32) {
        self.coverage.continued(pid);
    }

    pub fn failed(&mut self, file: FileId, why: &str, now: u64, out: Out<'_>) {
        let why = self.redactor.string(why);
        let said = self.coverage.failed(file, why);
        self.say(said, now, out);
    }

    pub fn same(&mut self, file: FileId, known: FileId, now: u64, out: Out<'_>) {
        let said = self.coverage.same(file, known);
        self.say(said, now, out);
    }

    /// A process used what may be a TLS library, and nobody could look at either.
    pub fn missed(&mut self, pid: u32, path: &str, now: u64, out: Out<'_>) {
        let path = self.redactor.string(path);
        self.say(vec![Said::of(pid, Coverage::missed(path))], now, out);
    }

    fn say(&mut self, said: Vec<Said>, now: u64, out: Out<'_>) {
        for Said {
            pid,
            gone,
            mut coverage,
        } in said
        {
            self.used |= !coverage.functions.is_empty();
            if gone.is_none() && (self.is_filtered(pid) || !self.is_covered(pid)) {
                continue;
            }
            let clock = self.clock;
            coverage.seen_from = coverage
                .seen_from
                .map(|at| WallTime(at.0.wrapping_add(clock)));
            self.emit_coverage(pid, gone.as_deref(), coverage, None, now, out);
        }
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
        let clear = |text: &Option<String>| text.as_ref().map(|text| self.redactor.string(text));
        Process {
            pid: facts.pid,
            vpid: facts.vpid,
            comm: clear(&facts.comm),
            executable: clear(&facts.executable),
            arguments: self.redactor.arguments(&facts.arguments),
            owner_uid: facts.owner_uid,
            parent_pid: facts.parent_pid,
            container_id: clear(&facts.container_id),
        }
    }

    /// A line that others wrote, for a record.
    pub fn string(&self, text: &str) -> Clear {
        self.redactor.string(text)
    }

    pub fn stats(&mut self, stats: Stats, now: u64, out: Out<'_>) {
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
                body: Body::Stats(stats),
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

/// Makes bodies of what the redactor lets out.
fn data(direction: Direction, say: &mut impl FnMut(Body<'_>)) -> impl FnMut(u64, u64, Content<'_>) {
    move |offset, length, content| {
        say(Body::Data {
            direction,
            offset,
            length,
            content,
        });
    }
}

fn passes(wanted: &Wanted, facts: &Facts) -> bool {
    let exe = || facts.executable.as_deref().unwrap_or_default();
    wanted.exes.is_empty() || wanted.exes.iter().any(|pattern| glob(pattern, exe()))
}

/// Would the kernel's filters let its calls pass?
fn is_covered(wanted: &Wanted, facts: &Facts) -> bool {
    let Wanted { uids, comms, .. } = wanted;
    let has_uid = facts
        .owner_uid
        .is_none_or(|uid| uids.is_empty() || uids.contains(&uid));
    let has_comm = facts
        .comm
        .as_ref()
        .is_none_or(|comm| comms.is_empty() || comms.contains(comm));
    has_uid && has_comm && !facts.is_outside
}

/// Was every byte of the connection seen so far?
fn is_complete(connection: &Connection, stream: &Stream) -> bool {
    connection.joined == Joined::Start && !connection.has_unseen && stream.lost() == 0
}
