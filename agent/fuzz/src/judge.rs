//! Reads what comes out of the line, record by record, and knows what it was told until then: nothing may be said of
//! whom the policy withholds, nothing of content where there is to be none, no secret where secrets are replaced, and
//! nothing of the agent's own connections.

use std::{collections::BTreeSet, net::SocketAddr};

use vortex_agent::{
    escape::is_control,
    input::Input,
    policy::Capture,
    record::{Body, CoverageStatus, Kind, Record},
    redact::Policy,
    sink::{Encoder, Format, Origin},
};

use crate::world::{PASSWORD, World};

/// Is in everything that programs say in confidence; no name, address or word of ours has it.
pub const CONTENT: &str = "quokka";
/// What redaction has to find in that.
pub const SECRETS: [&str; 2] = ["hunter2", "0123456789abcdef"];

pub struct Judge {
    encoder: Encoder,
    world: World,
    /// The same from the next policy on, while the line hears of it.
    next: Option<World>,
    /// What is told of content now.
    content: Policy,
    /// Only what is known is played: no bytes were made up that could be anything.
    pub is_plain: bool,
    /// Processes whose facts were told.
    known: BTreeSet<u32>,
    /// Containers that were.
    named: BTreeSet<String>,
    /// Another policy was followed: what is not told any more leaves no hole that is told.
    pub has_followed: bool,
    /// Both ends of connections of the agent, as the other end has them.
    pub ours: BTreeSet<(SocketAddr, SocketAddr)>,
    pub shown: Vec<u8>,
}

impl Judge {
    pub fn new(format: Format, world: World, content: Policy) -> Judge {
        let origin = Origin {
            run: "run".into(),
            host: "host".into(),
        };
        Judge {
            encoder: Encoder::new(format, &origin),
            world,
            next: None,
            content,
            is_plain: true,
            known: BTreeSet::new(),
            named: BTreeSet::new(),
            has_followed: false,
            ours: BTreeSet::new(),
            shown: Vec::new(),
        }
    }

    /// Before the line hears it.
    pub fn note(&mut self, input: &Input<'_>) {
        match input {
            Input::Process(facts) if facts.executable.is_some() => {
                self.known.insert(facts.pid);
            }
            Input::Container {
                id,
                container: Some(_),
            } => {
                self.named.insert((*id).to_owned());
            }
            Input::Ours { local, peer } => {
                self.ours.insert(canonical(*peer, *local));
            }
            _ => {}
        }
    }

    /// After the line has heard it: what was held back goes out as before.
    pub fn follow(&mut self, content: Policy) {
        self.content = content;
    }

    /// Before the line hears of another policy: who begins to be told of is told of now.
    pub fn hears_policy(&mut self, world: World) {
        self.next = Some(world);
        self.has_followed = true;
    }

    /// After it has.
    pub fn follow_policy(&mut self) {
        self.world = self.next.take().expect("the line heard of a policy");
    }

    pub fn read(&mut self, record: &Record<'_>) {
        let from = self.shown.len();
        self.encoder.encode(record, &mut self.shown);
        if !self.is_plain {
            return;
        }
        let line = String::from_utf8_lossy(&self.shown[from..]);
        let next = self.next.filter(|_| record.body.kind() == Kind::Coverage);
        let captures = [Some(self.world), next].into_iter().flatten();
        let capture = captures.map(|world| self.capture(world, record)).max();
        let capture = capture.unwrap_or(Capture::None);
        // That nothing is told, is: by a policy, not by a filter.
        let is_refusal = match &record.body {
            Body::Stats(_) => true,
            Body::Coverage(coverage) => {
                self.world.has_policy && coverage.status == CoverageStatus::Refused
            }
            _ => false,
        };
        assert!(
            capture > Capture::None || is_refusal,
            "told of whom nothing is to be told: {line}"
        );
        let content = capture.content(self.content);
        assert!(
            content > Policy::None || !line.contains(CONTENT),
            "content where there is to be none: {line}"
        );
        let is_raw = |text| content == Policy::Full && line.contains(text);
        for secret in SECRETS {
            assert!(is_raw(secret) || !line.contains(secret), "{line}");
        }
        let may_name = self.content == Policy::Full && !self.world.has_policy;
        assert!(may_name || !line.contains(PASSWORD), "{line}");
        let ends = record.connection.and_then(|it| it.local.zip(it.peer));
        assert!(
            ends.is_none_or(|(local, peer)| !self.ours.contains(&canonical(local, peer))),
            "of the agent's own connection: {line}"
        );
    }

    /// The most that may be told by a record.
    fn capture(&self, world: World, record: &Record<'_>) -> Capture {
        match record.process {
            Some(process) => {
                let is_known = self.known.contains(&process.pid);
                world.capture(process.pid, is_known, |id| self.named.contains(id))
            }
            None if world.is_selective() => Capture::None,
            None => Capture::Full,
        }
    }

    /// What a terminal or a file gets.
    pub fn text(self) -> String {
        String::from_utf8(self.shown).expect("the output is UTF-8")
    }
}

/// IPv4 in IPv6 is the same address.
fn canonical(local: SocketAddr, peer: SocketAddr) -> (SocketAddr, SocketAddr) {
    let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    (plain(local), plain(peer))
}

/// Nothing that a terminal obeys.
pub fn is_harmless(text: &str) -> bool {
    !text.chars().any(|c| is_control(c) && c != '\n')
}
