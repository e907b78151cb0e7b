//! Which file is probed where, and which process is seen through it from when.

use std::collections::{BTreeMap, HashMap, HashSet};

use agent_ebpf::{DETAIL, POINT, Shape, calls, cookie};
use serde::{Deserialize, Serialize};

use crate::{
    half::{FileId, Site},
    locate::{Found, Instruction, Point},
    record::{Clear, Coverage, CoverageStatus, Joined, Probed, Process, WallTime},
    redact::Redactor,
    subject::Subject,
    unclaimed::Library,
};

/// What is known of the files and who maps them.
#[derive(Debug, Default)]
pub struct Table {
    files: BTreeMap<FileId, File>,
    /// Who maps a file that is still being looked at.
    early: HashMap<FileId, Vec<Waiter>>,
    /// By number; the number is part of the attach cookie. 0 stands for "the kernel has no cookies".
    points: HashMap<u64, Placed>,
    /// How many of them share each counter of calls.
    slots: HashMap<usize, u32>,
    /// The number that was given last.
    number: u64,
    /// From when a process is seen through a file, in nanoseconds since boot; `None`: from its start.
    seen: BTreeMap<(u32, FileId), Option<u64>>,
    /// Processes with calls through a file that nobody sees.
    switching: HashSet<(u32, FileId)>,
    /// Processes without the breakpoints of a file, and whether these were placed again.
    silent: HashSet<(u32, FileId, bool)>,
    /// Since when the calls are seen of who was stopped for it: all of them, unless it was stopped too late.
    stopped: HashMap<(u32, FileId), u64>,
}

#[derive(Debug)]
struct File {
    path: Clear,
    library: Option<(&'static str, Option<Clear>)>,
    /// By what its functions were found.
    located: Option<&'static str>,
    functions: Vec<Probed>,
    partly: Option<&'static str>,
    state: State,
    /// Processes that map it and were not told of yet.
    waiting: Vec<Waiter>,
    /// Its probes were out for a while.
    is_back: bool,
    /// Its probes are out, or going.
    is_leaving: bool,
    /// Nothing more comes about it: forgotten with the last process that is seen through it.
    is_let_go: bool,
}

#[derive(Debug)]
enum State {
    /// Points were sent to the half.
    Asked,
    /// All probes in place, nanoseconds since boot.
    Attached(u64),
    Refused(Clear),
}

/// A point that the half was asked to place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placed {
    pub file: FileId,
    pub library: &'static str,
    pub function: &'static str,
    pub trap: Trap,
}

/// What the kernel does at a point, for each call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trap {
    pub is_stepped: bool,
    /// The call's return is probed, too.
    pub has_return: bool,
}

impl Trap {
    fn of(point: &Point) -> Trap {
        let has_return = match point.shape {
            Shape::Returned | Shape::OutFourth | Shape::OutFifth | Shape::Peekable => true,
            Shape::Handshake | Shape::Sendfile | Shape::Created | Shape::Flushed => true,
            Shape::Decrypted => true,
            Shape::Control | Shape::Cleared | Shape::Freed | Shape::Rewired => false,
            Shape::Passed | Shape::Begun | Shape::Encrypted => false,
        };
        Trap {
            is_stepped: point.instruction == Instruction::Stepped,
            has_return,
        }
    }
}

/// A process that maps a file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct User {
    pub pid: u32,
    /// When, in nanoseconds since boot; `None`: before we looked.
    pub mapped_at: Option<u64>,
    /// It waited until the probes were in place.
    pub held: bool,
}

/// A process of which nothing can be said before more is known of the file.
#[derive(Debug)]
struct Waiter {
    user: User,
    /// Who it was, if it ended or became another program meanwhile.
    gone: Option<Box<Gone>>,
}

/// Who a process was that is no more.
#[derive(Clone, Debug, Default)]
pub struct Gone {
    pub facts: Process,
    pub subject: Subject,
}

/// A coverage record and whom it is about.
#[derive(Debug)]
pub struct Said {
    pub pid: u32,
    /// Who it was, if it is no more.
    pub gone: Option<Box<Gone>>,
    pub coverage: Coverage,
}

/// How many coverage records there were, by their status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub probed: u64,
    pub partly: u64,
    pub refused: u64,
    pub unknown: u64,
}

impl Counts {
    pub fn add(&mut self, status: CoverageStatus) {
        *match status {
            CoverageStatus::Probed => &mut self.probed,
            CoverageStatus::Partly => &mut self.partly,
            CoverageStatus::Refused => &mut self.refused,
            CoverageStatus::Unknown => &mut self.unknown,
        } += 1;
    }
}

/// What holds for every process that ran before its probes were in place.
pub const LATE: &str = "its calls before `seen_from` were not seen";

/// The same where the probes were out in between.
const BACK: &str =
    "its probes were out for a while: of its calls before `seen_from` not all were seen";

/// Why nothing can be shown of who is no more.
const LEFT: &str = "the process ended, or became another program, before the probes were in place";

impl Said {
    /// Of a process that lives, as far as we know.
    pub fn of(pid: u32, coverage: Coverage) -> Said {
        let gone = None;
        Said {
            pid,
            gone,
            coverage,
        }
    }

    /// Less may be told than when it was to be said.
    pub fn redact(&mut self, redactor: &Redactor) {
        self.coverage.redact(redactor);
        if let Some(gone) = &mut self.gone {
            gone.facts.redact(redactor);
        }
    }
}

impl Coverage {
    /// Is anything of the process seen? Else there is no time from which it is.
    pub fn is_seen(&self) -> bool {
        matches!(self.status, CoverageStatus::Probed | CoverageStatus::Partly)
    }

    /// The file was gone with its process before it could be looked at.
    pub fn missed(path: Clear) -> Coverage {
        let why = "the process and the file were gone before they could be looked at";
        Coverage {
            status: CoverageStatus::Unknown,
            reason: Some(Clear::ours(why)),
            library_path: Some(path),
            library_name: None,
            library_version: None,
            library_located: None,
            functions: Vec::new(),
            seen_from: None,
        }
    }
}

impl Coverage {
    /// TLS that no probe saw, and why.
    pub fn unseen(why: &'static str) -> Coverage {
        Coverage::nothing_of(CoverageStatus::Unknown, why)
    }

    /// The policy wants nothing to be told of the process.
    pub fn withheld(why: &'static str) -> Coverage {
        Coverage::nothing_of(CoverageStatus::Refused, why)
    }

    fn nothing_of(status: CoverageStatus, why: &'static str) -> Coverage {
        Coverage {
            status,
            reason: Some(Clear::ours(why)),
            library_path: None,
            library_name: None,
            library_version: None,
            library_located: None,
            functions: Vec::new(),
            seen_from: None,
        }
    }
}

impl Table {
    /// What is known of the TLS libraries of a process.
    pub fn library_of(&self, pid: u32) -> Library {
        let is_here = |waiter: &Waiter| waiter.gone.is_none() && waiter.user.pid == pid;
        let is_waiting = |waiters: &Vec<Waiter>| waiters.iter().any(is_here);
        let mut waiting = self.files.values().map(|file| &file.waiting);
        let mut files = self.seen.keys().filter(|(known, _)| *known == pid);
        let is_probed = |(_, id): &(u32, FileId)| {
            let file = self.files.get(id);
            file.is_some_and(|file| matches!(file.state, State::Attached(_)))
        };
        if self.early.values().any(is_waiting) || waiting.any(is_waiting) {
            Library::Pending
        } else if files.clone().any(is_probed) {
            Library::Probed
        } else if files.next().is_some() {
            Library::Refused
        } else {
            Library::Nothing
        }
    }

    /// Probes of the file were out of the memory of a process. Said once.
    pub fn silent(&mut self, pid: u32, id: FileId, is_placed_again: bool) -> Option<Coverage> {
        let from = *self.seen.get(&(pid, id))?;
        if !self.silent.insert((pid, id, is_placed_again)) {
            return None;
        }
        let why = match is_placed_again {
            true => {
                "breakpoints were gone from this process' memory, calls passed by: they are placed again"
            }
            false => "breakpoints are gone from this process' memory: calls pass by",
        };
        Some(Coverage {
            status: CoverageStatus::Partly,
            reason: Some(Clear::ours(why)),
            ..self.coverage(pid, id, from)
        })
    }

    /// Points were found; returns what the half is asked to place.
    pub fn found(
        &mut self,
        id: FileId,
        path: Clear,
        version: Option<Clear>,
        found: &Found,
    ) -> Vec<Site> {
        let sites = found
            .points
            .iter()
            .chain(&found.others)
            .map(|point| self.site(id, point))
            .collect();
        let functions = found.points.iter().map(|point| Probed {
            function: point.function,
            instruction: point.instruction,
        });
        // One that has several points is one function.
        let mut functions: Vec<_> = functions.collect();
        functions.dedup();
        let library = Some((found.library, version));
        let state = State::Asked;
        let partly = found.partly;
        let file = File {
            path,
            library,
            located: Some(found.located),
            functions,
            partly,
            state,
            waiting: self.early.remove(&id).unwrap_or_default(),
            is_back: false,
            is_leaving: false,
            is_let_go: false,
        };
        self.files.insert(id, file);
        sites
    }

    fn site(&mut self, id: FileId, point: &Point) -> Site {
        let number = self.next_number();
        let placed = Placed {
            file: id,
            library: point.library,
            function: point.function,
            trap: Trap::of(point),
        };
        self.points.insert(number, placed);
        Site {
            offset: point.offset,
            cookie: cookie(number, point.direction, point.shape)
                | u64::from(point.detail) << DETAIL,
            bytes: point.bytes,
        }
    }

    /// One that no point has: what is left of a forgotten one in the ring must not be taken for another's. So they
    /// come again as late as the cookie's bits allow. And one whose calls are counted for it alone, if there is one.
    fn next_number(&mut self) -> u64 {
        const NUMBERS: u64 = 1 << (DETAIL - POINT);
        let is_full = self.slots.len() >= calls::SLOTS;
        loop {
            self.number = (self.number + 1) % NUMBERS;
            let is_alone = is_full || !self.slots.contains_key(&calls::slot(self.number));
            if self.number != 0 && is_alone && !self.points.contains_key(&self.number) {
                *self.slots.entry(calls::slot(self.number)).or_default() += 1;
                return self.number;
            }
        }
    }

    /// All points that the half was asked to place, by number.
    pub fn points(&self) -> impl Iterator<Item = (u64, Placed)> {
        self.points
            .iter()
            .map(|(number, placed)| (*number, *placed))
    }

    pub fn path(&self, id: FileId) -> Option<&Clear> {
        self.files.get(&id).map(|file| &file.path)
    }

    /// A TLS library without a safe place for a probe, or one that can't be read.
    pub fn refused(&mut self, id: FileId, path: Clear, why: Clear) -> Vec<Said> {
        let state = State::Refused(why);
        let (functions, waiting) = (Vec::new(), Vec::new());
        self.files.insert(
            id,
            File {
                path,
                library: None,
                located: None,
                functions,
                partly: None,
                state,
                waiting,
                is_back: false,
                is_leaving: false,
                is_let_go: false,
            },
        );
        let early = self.early.remove(&id).unwrap_or_default();
        early
            .into_iter()
            .map(|waiter| self.say(id, waiter))
            .collect()
    }

    /// The file turned out to be one that is known.
    pub fn same(&mut self, id: FileId, known: FileId) -> Vec<Said> {
        let early = self.early.remove(&id).unwrap_or_default();
        early
            .into_iter()
            .filter_map(|waiter| self.map(known, waiter))
            .collect()
    }

    /// There is nothing to probe in the file.
    pub fn nothing(&mut self, id: FileId) {
        self.early.remove(&id);
    }

    /// A process maps a file. Said once a process and file.
    pub fn mapped(&mut self, id: FileId, user: User) -> Option<Said> {
        self.map(id, Waiter { user, gone: None })
    }

    fn map(&mut self, id: FileId, waiter: Waiter) -> Option<Said> {
        let Some(file) = self.files.get_mut(&id) else {
            self.early.entry(id).or_default().push(waiter);
            return None;
        };
        if waiter.gone.is_none() && self.seen.contains_key(&(waiter.user.pid, id)) {
            return None;
        }
        if let State::Asked = file.state {
            file.waiting.push(waiter);
            return None;
        }
        Some(self.say(id, waiter))
    }

    /// The probes are in place.
    pub fn attached(&mut self, id: FileId, at: u64) -> Vec<Said> {
        self.settle(id, State::Attached(at))
    }

    /// The half lets go of the file: if it is mapped again it is another one.
    pub fn leaves(&mut self, id: FileId) {
        if let Some(file) = self.files.get_mut(&id) {
            file.is_leaving = true;
        }
    }

    /// The process is watched from now on: its calls so far were not seen, or were not told of.
    pub fn begins(&mut self, pid: u32, now: u64) -> Vec<Said> {
        let known = self.seen.range_mut((pid, FileId::MIN)..=(pid, FileId::MAX));
        let files: Vec<FileId> = known
            .filter(|((_, file), _)| !self.files[file].is_leaving)
            .map(|((_, file), from)| {
                let is_attached = matches!(self.files[file].state, State::Attached(_));
                *from = is_attached.then_some(now);
                *file
            })
            .collect();
        let files = files.into_iter();
        files
            .map(|file| {
                let from = self.seen[&(pid, file)];
                Said::of(pid, self.coverage(pid, file, from))
            })
            .collect()
    }

    /// Less may be told of what files are called.
    pub fn redact(&mut self, redactor: &Redactor) {
        for file in self.files.values_mut() {
            redactor.again([&mut file.path]);
            if let Some((_, version)) = &mut file.library {
                redactor.again(version);
            }
            if let State::Refused(why) = &mut file.state {
                redactor.again([why]);
            }
            for gone in file.waiting.iter_mut().filter_map(|it| it.gone.as_mut()) {
                gone.facts.redact(redactor);
            }
        }
    }

    /// A process waits no longer: what is attached now came too late for it.
    pub fn continued(&mut self, pid: u32) {
        for waiter in self.waiting(pid) {
            waiter.user.held = false;
        }
    }

    /// The half could not or would not place them.
    pub fn failed(&mut self, id: FileId, why: Clear) -> Vec<Said> {
        self.settle(id, State::Refused(why))
    }

    fn settle(&mut self, id: FileId, state: State) -> Vec<Said> {
        let Some(file) = self.files.get_mut(&id) else {
            return Vec::new();
        };
        let was_probed = matches!(file.state, State::Attached(_));
        let again = match (&file.state, &state) {
            (State::Refused(_), State::Attached(at)) => Some(*at),
            _ => None,
        };
        file.state = state;
        file.is_back |= again.is_some();
        let waiting = std::mem::take(&mut file.waiting);
        let mut said: Vec<Said> = waiting
            .into_iter()
            .map(|waiter| self.say(id, waiter))
            .collect();
        if was_probed || again.is_some() {
            // Its probes are gone, and who was told that it is seen is told that it is not. Or the other way round.
            let users = self.seen.iter_mut().filter(|((_, file), _)| *file == id);
            let users = users.map(|((pid, _), from)| {
                *from = again.or(*from);
                (*pid, *from)
            });
            let users = users.collect::<Vec<_>>().into_iter();
            said.extend(users.map(|(pid, from)| Said::of(pid, self.coverage(pid, id, from))));
        }
        said
    }

    fn say(&mut self, id: FileId, Waiter { user, gone }: Waiter) -> Said {
        let seen_from = match (&self.files[&id].state, user.mapped_at) {
            (State::Attached(_), _) if user.held => None,
            (State::Attached(at), Some(mapped)) if *at <= mapped => None,
            (State::Attached(at), _) => Some(*at),
            (State::Asked | State::Refused(_), _) => None,
        };
        let pid = user.pid;
        if gone.is_none() {
            self.seen.insert((pid, id), seen_from);
            if let (State::Attached(at), true) = (&self.files[&id].state, user.held) {
                self.stopped.insert((pid, id), *at);
            }
        }
        let mut coverage = self.coverage(pid, id, seen_from);
        if gone.is_some() && seen_from.is_some() {
            coverage.status = CoverageStatus::Unknown;
            coverage.reason = Some(Clear::ours(LEFT));
        }
        Said {
            pid,
            gone,
            coverage,
        }
    }

    fn coverage(&self, pid: u32, id: FileId, seen_from: Option<u64>) -> Coverage {
        let file = &self.files[&id];
        let switching = self.switching.contains(&(pid, id)).then_some(
            "it makes TLS calls while one is open on another stack, as coroutines do: those are not seen",
        );
        let late = seen_from.map(|_| if file.is_back { BACK } else { LATE });
        let (status, reason) = match (&file.state, switching.or(file.partly).or(late)) {
            (State::Attached(_), None) => (CoverageStatus::Probed, None),
            (State::Attached(_), Some(why)) => (CoverageStatus::Partly, Some(Clear::ours(why))),
            (State::Refused(why), _) => (CoverageStatus::Refused, Some(why.clone())),
            (State::Asked, _) => (CoverageStatus::Unknown, Some(Clear::ours("not probed yet"))),
        };
        Coverage {
            status,
            reason,
            library_path: Some(file.path.clone()),
            library_name: file.library.as_ref().map(|(name, _)| Clear::ours(name)),
            library_version: file
                .library
                .as_ref()
                .and_then(|(_, version)| version.clone()),
            library_located: file.located,
            functions: file.functions.clone(),
            // In nanoseconds since boot until the pipeline turns it into wall clock.
            seen_from: seen_from.map(WallTime),
        }
    }

    /// A point, by the number in its cookie.
    pub fn point(&self, number: u64) -> Option<Placed> {
        self.points.get(&number).copied()
    }

    /// Library name and version of a point.
    pub fn library(&self, placed: Placed) -> Option<(&'static str, Option<&Clear>)> {
        let (_, version) = self.files.get(&placed.file)?.library.as_ref()?;
        Some((placed.library, version.as_ref()))
    }

    /// Was every call of this process through this file seen? `None`: nothing is known of it, as of a
    /// forked child.
    pub fn joined(&self, pid: u32, id: FileId) -> Option<Joined> {
        let seen_from = self.seen.get(&(pid, id))?;
        Some(if seen_from.is_none() {
            Joined::Start
        } else {
            Joined::Middle
        })
    }

    /// A process has the file from its parent: no mapping was reported.
    pub fn inherited(&mut self, pid: u32, id: FileId, joined: Joined) -> Option<Coverage> {
        let State::Attached(at) = self.files.get(&id)?.state else {
            return None;
        };
        let seen_from = (joined == Joined::Middle).then_some(at);
        self.seen.insert((pid, id), seen_from);
        Some(self.coverage(pid, id, seen_from))
    }

    /// One of its connections began TLS at `time`. Said if that was before the probes of a process that was stopped
    /// for them: too late, then.
    pub fn began(&mut self, pid: u32, id: FileId, time: u64) -> Option<Coverage> {
        let at = self.stopped.get(&(pid, id)).copied()?;
        if time >= at {
            return None;
        }
        self.stopped.remove(&(pid, id));
        self.seen.insert((pid, id), Some(at));
        Some(self.coverage(pid, id, Some(at)))
    }

    /// A call of this process through this file was not seen. Said once.
    pub fn switches(&mut self, pid: u32, id: FileId) -> Option<Coverage> {
        let seen_from = *self.seen.get(&(pid, id))?;
        let is_new = self.switching.insert((pid, id));
        is_new.then(|| self.coverage(pid, id, seen_from))
    }

    /// The process is gone, or became another program. Where nothing could be said of it yet it will be
    /// said of who it was; of `None` nobody wants to hear.
    pub fn left(&mut self, pid: u32, who: Option<Gone>) {
        let known = self.seen.range((pid, FileId::MIN)..=(pid, FileId::MAX));
        let known: Vec<FileId> = known.map(|((_, file), _)| *file).collect();
        for file in known {
            self.seen.remove(&(pid, file));
            self.forget(file);
        }
        self.switching.retain(|(known, _)| *known != pid);
        self.stopped.retain(|(known, _), _| *known != pid);
        self.silent.retain(|(known, ..)| *known != pid);
        let Some(who) = who else {
            let files = self.files.values_mut().map(|file| &mut file.waiting);
            for waiting in files.chain(self.early.values_mut()) {
                waiting.retain(|waiter| waiter.gone.is_some() || waiter.user.pid != pid);
            }
            return;
        };
        for waiter in self.waiting(pid) {
            waiter.gone = Some(Box::new(who.clone()));
        }
    }

    /// Nothing more comes about the file.
    pub fn let_go(&mut self, id: FileId) {
        self.early.remove(&id);
        if let Some(file) = self.files.get_mut(&id) {
            file.is_let_go = true;
            self.forget(id);
        }
    }

    /// Forgets a file that was let go, unless somebody is seen through it still.
    fn forget(&mut self, id: FileId) {
        if !self.files.get(&id).is_some_and(|file| file.is_let_go)
            || self.seen.keys().any(|(_, file)| *file == id)
        {
            return;
        }
        self.files.remove(&id);
        for (number, _) in self.points.extract_if(|_, placed| placed.file == id) {
            let slot = self.slots.entry(calls::slot(number)).or_default();
            *slot -= 1;
            if *slot == 0 {
                self.slots.remove(&calls::slot(number));
            }
        }
    }

    /// What can't be waited for: files whose probes are not in place at the end.
    pub fn unsettled(&mut self) -> Vec<Said> {
        let asked = self
            .files
            .iter_mut()
            .map(|(id, file)| (*id, std::mem::take(&mut file.waiting)));
        let mut asked: Vec<(FileId, Vec<Waiter>)> = asked.collect();
        asked.sort_unstable_by_key(|(id, _)| *id);
        let said = asked
            .into_iter()
            .flat_map(|(id, waiting)| waiting.into_iter().map(move |waiter| (id, waiter)));
        said.map(|(id, waiter)| self.say(id, waiter)).collect()
    }

    /// Where processes that are gone wait to be told of: now, or never.
    pub fn departed(&mut self) -> Vec<Said> {
        let is_gone = |waiter: &mut Waiter| waiter.gone.is_some();
        // Nothing is known of these files yet, so nothing can be told.
        for waiting in self.early.values_mut() {
            waiting.retain(|waiter| waiter.gone.is_none());
        }
        let mut gone: Vec<(FileId, Waiter)> = Vec::new();
        for (id, file) in &mut self.files {
            gone.extend(
                file.waiting
                    .extract_if(.., is_gone)
                    .map(|waiter| (*id, waiter)),
            );
        }
        gone.sort_by_key(|(id, _)| *id);
        gone.into_iter()
            .map(|(id, waiter)| self.say(id, waiter))
            .collect()
    }

    /// Where a process that lives waits to be told of.
    fn waiting(&mut self, pid: u32) -> impl Iterator<Item = &mut Waiter> {
        let waiting = self.files.values_mut().flat_map(|file| &mut file.waiting);
        let early = self.early.values_mut().flatten();
        waiting
            .chain(early)
            .filter(move |waiter| waiter.gone.is_none() && waiter.user.pid == pid)
    }
}

#[cfg(test)]
mod tests {
    use agent_ebpf::{Direction, Shape};

    use super::*;
    use crate::locate::Instruction;

    fn found() -> Found {
        let point = Point {
            offset: 16,
            function_offset: 12,
            library: "OpenSSL",
            function: "ssl_write_internal",
            direction: Direction::Sent,
            shape: Shape::OutFourth,
            instruction: Instruction::Emulated,
            detail: 0,
            bytes: [0x90; 16],
        };
        Found {
            library: "OpenSSL",
            version: None,
            points: vec![point.clone()],
            others: vec![point],
            partly: None,
            located: "symbols",
            on_trial: false,
        }
    }

    fn user(pid: u32) -> User {
        User {
            pid,
            mapped_at: None,
            held: false,
        }
    }

    fn number(site: &Site) -> u64 {
        site.cookie >> POINT & 0xff_ffff
    }

    /// Probed, and mapped by this process; the numbers of its points.
    fn probe(table: &mut Table, id: FileId, pid: u32) -> Vec<u64> {
        assert!(table.mapped(id, user(pid)).is_none());
        let sites = table.found(id, Clear::ours("/lib/libssl.so"), None, &found());
        assert_eq!(table.attached(id, 1).len(), 1);
        sites.iter().map(number).collect()
    }

    #[test]
    fn files_that_come_and_go_leave_nothing() {
        let mut table = Table::default();
        let kept = probe(&mut table, 1, 1);
        for id in 2..1000 {
            probe(&mut table, id, 2);
            table.mapped(id + 1000, user(2));
            let why = Clear::ours("no");
            table.refused(id + 1000, Clear::ours("/lib/b"), why);
            table.left(2, None);
            table.let_go(id);
            table.let_go(id + 1000);
            table.mapped(id + 2000, user(2));
            table.let_go(id + 2000);
        }
        assert_eq!((table.files.len(), table.points.len()), (1, kept.len()));
        assert!(table.early.is_empty());
        assert!(kept.iter().all(|number| table.point(*number).is_some()));
    }

    /// Somebody writes into a file that is mapped still.
    #[test]
    fn a_file_is_known_as_long_as_somebody_is_seen_through_it() {
        let mut table = Table::default();
        let numbers = probe(&mut table, 1, 7);
        table.mapped(1, user(8));
        table.let_go(1);
        table.left(7, None);
        assert!(table.point(numbers[0]).is_some());
        assert_eq!(table.begins(8, 5).len(), 1);
        table.left(8, None);
        assert!(table.point(numbers[0]).is_none());
        assert!(table.files.is_empty());
    }

    #[test]
    fn points_share_a_counter_only_if_there_is_no_other() {
        const SLOTS: u64 = calls::SLOTS as u64;
        let mut table = Table::default();
        assert_eq!(probe(&mut table, 1, 1), [1, 2]);
        table.number = SLOTS - 1;
        assert_eq!(probe(&mut table, 2, 2), [SLOTS, SLOTS + 3]);
        table.left(1, None);
        table.let_go(1);
        table.number = 2 * SLOTS;
        assert_eq!(probe(&mut table, 3, 2), [2 * SLOTS + 1, 2 * SLOTS + 2]);
        // Each file has two.
        for id in 4..=SLOTS {
            probe(&mut table, id, 2);
        }
        assert_eq!(table.slots.len(), calls::SLOTS);
        assert_eq!(table.slots.values().sum::<u32>(), 2 * SLOTS as u32 - 2);
        table.left(2, None);
        (2..=SLOTS).for_each(|id| table.let_go(id));
        assert!(table.slots.is_empty());
    }

    #[test]
    fn numbers_come_again_late_and_are_not_given_twice() {
        let mut table = Table::default();
        let first = probe(&mut table, 1, 1);
        assert_eq!(first, [1, 2]);
        assert!(table.point(0).is_none(), "kernels without cookies say 0");
        table.number = (1 << 24) - 2;
        assert_eq!(probe(&mut table, 2, 1), [(1 << 24) - 1, 3]);
    }
}
