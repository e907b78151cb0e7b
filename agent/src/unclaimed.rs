//! Connections that began with TLS outside every probed call, until somebody's plaintext claims them. Who is
//! left speaks TLS by something that nobody sees: another library, a runtime of its own, or the TLS of others.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use crate::{
    half::{Connected, Finding, Runtime},
    record::{Clear, Role},
    redact::Redactor,
};

/// A beginning that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub role: Role,
    pub server_name: Option<Clear>,
    /// Nanoseconds since boot.
    pub time: u64,
}

/// All of which nobody knows whose they are.
#[derive(Debug, Default)]
pub struct Unclaimed {
    open: HashMap<Connected, Waiting>,
    /// As which ends a process has spoken.
    roles: HashMap<u32, Roles>,
    /// What processes are, as far as it was asked.
    runtimes: HashMap<u32, Option<Runtime>>,
    /// Said once a process.
    said: HashSet<(u32, &'static str)>,
}

#[derive(Debug)]
struct Waiting {
    greeting: Greeting,
    was_asked: bool,
}

#[derive(Debug, Default)]
struct Roles {
    client: bool,
    server: bool,
}

/// What is known of a process that made a connection which nobody claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Files of it are still being looked at.
    Pending,
    /// It maps a library that is probed.
    Probed,
    /// It maps one that is not, which is said already.
    Refused,
    Nothing,
}

/// How long plaintext may take to claim a connection, and an answer to come for one of a process that is still
/// being looked at, in nanoseconds.
const MOMENT: u64 = 1_000_000_000;
const PATIENCE: u64 = 10_000_000_000;
/// Above this nothing new is noticed.
const OPEN_MAX: usize = 4096;
/// Questions at a time: each costs the half milliseconds at most.
const QUESTIONS: usize = 16;
/// Sent and received, above which it was no handshake alone.
const MORE_THAN_HANDSHAKE: u64 = 64 << 10;

impl Unclaimed {
    /// Less may be told of the servers that were wanted.
    pub fn redact(&mut self, redactor: &Redactor) {
        let greetings = self.open.values_mut().map(|waiting| &mut waiting.greeting);
        redactor.again(greetings.filter_map(|greeting| greeting.server_name.as_mut()));
    }

    /// A process greets. True if it is to be asked what it is: it may be another program than the last time.
    pub fn greeted(&mut self, connected: Connected, greeting: Greeting) -> bool {
        if self.open.len() >= OPEN_MAX {
            return false;
        }
        let pid = connected.pid;
        let roles = self.roles.entry(pid).or_default();
        match greeting.role {
            Role::Client => roles.client = true,
            Role::Server => roles.server = true,
        }
        let is_asked = self.open.keys().any(|known| known.pid == pid);
        let waiting = Waiting {
            greeting,
            was_asked: false,
        };
        self.open.insert(connected, waiting);
        self.runtimes.entry(pid).or_default();
        !is_asked
    }

    /// Plaintext came of the connection between these. When it greeted, unless that was asked before.
    pub fn claimed(&mut self, pid: u32, local: SocketAddr, peer: SocketAddr) -> Option<u64> {
        let waiting = self.open.remove(&Connected { pid, local, peer })?;
        Some(waiting.greeting.time)
    }

    pub fn is_any_open(&self) -> bool {
        !self.open.is_empty()
    }

    pub fn is_runtime(&mut self, pid: u32, runtime: Option<Runtime>) {
        if let Some(known) = self.runtimes.get_mut(&pid) {
            *known = runtime;
        }
    }

    /// Connections about which the half is to be asked, a few at a time.
    pub fn questions(&mut self, now: u64, library: impl Fn(u32) -> Library) -> Vec<Connected> {
        let mut due = Vec::new();
        let mut refused = Vec::new();
        for (connected, waiting) in &mut self.open {
            let age = now.saturating_sub(waiting.greeting.time);
            if waiting.was_asked || age < MOMENT {
                continue;
            }
            match library(connected.pid) {
                Library::Pending if age < PATIENCE => {}
                Library::Refused => refused.push(*connected),
                _ if due.len() == QUESTIONS => {}
                _ => {
                    waiting.was_asked = true;
                    due.push(*connected);
                }
            }
        }
        for connected in refused {
            self.open.remove(&connected);
        }
        due
    }

    /// The half has looked: the connection is judged, unless it was claimed meanwhile.
    pub fn answered(
        &mut self,
        connected: &Connected,
        finding: Finding,
        library: Library,
    ) -> Option<(Greeting, &'static str)> {
        let greeting = self.open.remove(connected)?.greeting;
        let reason = self.reason(connected.pid, finding, library)?;
        let is_new = self.said.insert((connected.pid, reason));
        is_new.then_some((greeting, reason))
    }

    /// Connections of a process, or of all: nobody can be asked any more.
    pub fn of(&self, pid: Option<u32>) -> Vec<Connected> {
        let all = self.open.keys();
        let of = |connected: &&Connected| pid.is_none_or(|pid| pid == connected.pid);
        let mut all: Vec<Connected> = all.filter(of).copied().collect();
        all.sort_unstable();
        all
    }

    fn reason(&self, pid: u32, finding: Finding, library: Library) -> Option<&'static str> {
        if finding.is_kernels {
            return Some("the kernel makes the TLS of its sockets (kTLS)");
        }
        match self.runtimes.get(&pid).copied().flatten() {
            Some(Runtime::Jvm) => {
                return Some(
                    "the JVM's own TLS (JSSE): Java code, compiled while it runs, has no place for a probe",
                );
            }
            Some(Runtime::Erlang) => {
                return Some("Erlang's own TLS: its code is no native library");
            }
            None => {}
        }
        match library {
            Library::Refused => None,
            // A handshake alone has no plaintext.
            Library::Probed if finding.transferred < MORE_THAN_HANDSHAKE => None,
            Library::Probed => Some(
                "TLS that no probed function carried: it uses another library as well, or passes on the TLS of \
                 others",
            ),
            Library::Pending | Library::Nothing => match self.roles.get(&pid) {
                Some(Roles {
                    client: true,
                    server: true,
                }) => Some("its TLS library is not known, or it passes on the TLS of others"),
                _ => Some("its TLS library is not known"),
            },
        }
    }

    /// The process is another program by now. What it greeted as that is kept: its facts come after its bytes.
    pub fn became_another(&mut self, pid: u32) {
        self.said.retain(|(known, _)| *known != pid);
    }

    /// The process is gone.
    pub fn forget(&mut self, pid: u32) {
        self.open.retain(|connected, _| connected.pid != pid);
        self.roles.remove(&pid);
        self.runtimes.remove(&pid);
        self.said.retain(|(known, _)| *known != pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn connected(pid: u32, port: u16) -> Connected {
        let [local, peer] = [port, 443].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Connected { pid, local, peer }
    }

    fn greeting(role: Role, time: u64) -> Greeting {
        Greeting {
            role,
            server_name: None,
            time,
        }
    }

    #[test]
    fn who_is_not_claimed_is_asked_about_once_and_said_once() {
        let mut unclaimed = Unclaimed::default();
        assert!(unclaimed.greeted(connected(1, 1), greeting(Role::Client, 0)));
        assert!(!unclaimed.greeted(connected(1, 2), greeting(Role::Client, 0)));
        assert!(!unclaimed.greeted(connected(1, 3), greeting(Role::Client, 0)));
        let [local, peer] = [connected(1, 1).local, connected(1, 1).peer];
        unclaimed.claimed(1, local, peer);
        let nothing = |_| Library::Nothing;
        assert_eq!(unclaimed.questions(SECOND - 1, nothing), []);
        let mut asked = unclaimed.questions(SECOND, nothing);
        asked.sort_unstable();
        assert_eq!(asked, [connected(1, 2), connected(1, 3)]);
        assert_eq!(unclaimed.questions(SECOND, nothing), []);
        let mut answered = |port| {
            let (connected, finding) = (connected(1, port), Finding::default());
            unclaimed.answered(&connected, finding, Library::Nothing)
        };
        assert_eq!(answered(2).unwrap().1, "its TLS library is not known");
        assert_eq!(answered(3), None, "said before");
        assert_eq!(answered(1), None, "claimed");
    }

    #[test]
    fn a_process_that_is_being_looked_at_is_waited_for() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.greeted(connected(1, 1), greeting(Role::Client, 0));
        assert_eq!(unclaimed.questions(9 * SECOND, |_| Library::Pending), []);
        let asked = unclaimed.questions(10 * SECOND, |_| Library::Pending);
        assert_eq!(asked, [connected(1, 1)]);
    }

    #[track_caller]
    fn check(finding: Finding, library: Library, runtime: Option<Runtime>, words: Option<&str>) {
        let mut unclaimed = Unclaimed::default();
        unclaimed.greeted(connected(1, 1), greeting(Role::Client, 0));
        unclaimed.is_runtime(1, runtime);
        let said = unclaimed.answered(&connected(1, 1), finding, library);
        let reason = said.map(|(_, reason)| reason);
        let has = words.is_none_or(|words| reason.is_some_and(|reason| reason.contains(words)));
        assert!(has && reason.is_some() == words.is_some(), "{reason:?}");
    }

    #[test]
    fn reasons() {
        let nothing = Finding::default();
        let much = Finding {
            transferred: MORE_THAN_HANDSHAKE,
            ..nothing
        };
        let kernels = Finding {
            is_kernels: true,
            ..nothing
        };
        check(nothing, Library::Nothing, None, Some("is not known"));
        check(nothing, Library::Nothing, Some(Runtime::Jvm), Some("JSSE"));
        check(nothing, Library::Probed, Some(Runtime::Jvm), Some("JSSE"));
        check(
            nothing,
            Library::Nothing,
            Some(Runtime::Erlang),
            Some("Erlang"),
        );
        check(kernels, Library::Probed, None, Some("kTLS"));
        check(nothing, Library::Probed, None, None);
        check(much, Library::Probed, None, Some("another library"));
        check(much, Library::Refused, None, None);
    }

    #[test]
    fn who_is_both_ends_may_pass_on() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.greeted(connected(1, 1), greeting(Role::Client, 0));
        unclaimed.greeted(connected(1, 2), greeting(Role::Server, 0));
        let finding = Finding::default();
        let said = unclaimed.answered(&connected(1, 1), finding, Library::Nothing);
        assert!(said.unwrap().1.contains("passes on"));
        let said = unclaimed.answered(&connected(1, 2), finding, Library::Nothing);
        assert_eq!(said, None, "the same of the same process");
    }

    #[test]
    fn they_are_bounded_and_forgotten() {
        let mut unclaimed = Unclaimed::default();
        for port in 0..OPEN_MAX as u16 + 10 {
            unclaimed.greeted(connected(1, port), greeting(Role::Client, 0));
        }
        assert_eq!(unclaimed.of(None).len(), OPEN_MAX);
        let asked = unclaimed.questions(SECOND, |_| Library::Nothing);
        assert_eq!(asked.len(), QUESTIONS);
        unclaimed.forget(1);
        assert!(unclaimed.of(None).is_empty() && unclaimed.runtimes.is_empty());
    }
}
