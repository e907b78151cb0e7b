//! How much of a container is told: what the configuration says of it, and what its pod asks for. And how much of a
//! process, whatever it is in: the least that one of both allows.
//!
//! A container that is not known yet may be any of them, so nothing is told of it that one of the rules forbids. Nor of
//! a process of which it is not known what it runs.

use std::cmp::min;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    glob::{fits_executable, glob},
    metadata::{Container, Names},
    redact,
    subject::Subject,
};

/// How much is told, from little to much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
pub enum Capture {
    /// That it is not told of, and nothing else.
    None,
    /// Records without content, as with `--content none`.
    Metadata,
    Redacted,
    Full,
}

impl Capture {
    /// What of content is told, at most `most`.
    pub fn content(self, most: redact::Policy) -> redact::Policy {
        let content = match self {
            Capture::None | Capture::Metadata => redact::Policy::None,
            Capture::Redacted => redact::Policy::Redacted,
            Capture::Full => redact::Policy::Full,
        };
        min(content, most)
    }
}

/// The table `[policy]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The first that fits decides.
    pub rules: Vec<Rule>,
    /// The first that fits decides as well, wherever the process is: it takes away, and adds nothing.
    pub programs: Vec<Program>,
    /// Of containers that no rule fits.
    pub default: Capture,
    /// Of processes in no container.
    pub host: Capture,
    /// What a pod asks for is done, also if it is more.
    pub trusts_annotation: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Not empty.
    pub names: Names,
    pub capture: Capture,
}

/// Who runs one of these, and is called one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Paths of executables, with `*` and `?`. Empty: any. One of both lists is not.
    pub exes: Vec<String>,
    /// What it calls itself.
    pub comms: Vec<String>,
    pub capture: Capture,
}

impl Program {
    /// `None`: that depends on what is not known.
    fn fits(&self, subject: &Subject) -> Option<bool> {
        let Subject {
            executable, comm, ..
        } = subject;
        type Fit = fn(&str, &str) -> bool;
        let fits = |patterns: &[String], text: Option<&str>, fit: Fit| match text {
            _ if patterns.is_empty() => Some(true),
            Some(text) => Some(patterns.iter().any(|pattern| fit(pattern, text))),
            None => None,
        };
        let exe = fits(&self.exes, executable.as_deref(), fits_executable);
        match (exe, fits(&self.comms, comm.as_deref(), glob)) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        }
    }
}

/// What is told of a container, and who wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub capture: Capture,
    pub by: By,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Configuration,
    /// Its pod's annotation, which made it less.
    Pod,
    /// Its pod's annotation is no word that we know. Who wrote it wanted less, as a rule.
    Misspelt,
    /// It may be any container.
    Unknown,
    /// It is in no container.
    Host,
    /// What it runs, or may run.
    Program,
}

/// How little was told of a process under policies before, and until when: what began then stays as it was. In
/// nanoseconds since boot, by what is less than all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past([Option<u64>; Capture::Full as usize]);

impl Past {
    /// No more than this was told until now.
    pub fn was(&mut self, capture: Capture, now: u64) {
        if let Some(until) = self.0.get_mut(capture as usize) {
            *until = (*until).max(Some(now));
        }
    }

    /// The least that was told at any time since then, and now.
    pub fn least(&self, since: u64, now: Capture) -> Capture {
        let past = Capture::value_variants().iter().zip(self.0);
        let mut past = past.filter(|(_, until)| until.is_some_and(|until| since <= until));
        past.next().map_or(now, |(least, _)| min(*least, now))
    }
}

/// What a pod asks for: `none`, `metadata`, `redacted` or `full`.
pub const ANNOTATION: &str = "vortex.dev/capture";

impl Verdict {
    /// Where there is no policy.
    pub const ALL: Verdict = Verdict {
        capture: Capture::Full,
        by: By::Configuration,
    };

    /// Why nothing is told, if nothing is.
    pub fn refusal(self) -> Option<&'static str> {
        (self.capture == Capture::None).then_some(match self.by {
            By::Configuration => "the policy excludes its container",
            By::Pod => "its pod opted out: its annotation vortex.dev/capture is none",
            By::Misspelt => {
                "its pod's annotation vortex.dev/capture is none of none, metadata, redacted and full, \
                 and counts as none"
            }
            By::Unknown => "its container is not known, and the policy excludes some",
            By::Host => "the policy excludes processes that are in no container",
            By::Program => "the policy excludes the program that it runs",
        })
    }
}

impl Policy {
    pub fn of(&self, id: &str, container: &Container) -> Verdict {
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.names.pass(id, container));
        let configured = rule.map_or(self.default, |rule| rule.capture);
        let pod = container.pod.as_ref();
        let Some(asked) = pod.and_then(|pod| pod.annotations.get(ANNOTATION)) else {
            return Verdict {
                capture: configured,
                by: By::Configuration,
            };
        };
        let Ok(asked) = Capture::from_str(asked.trim(), true) else {
            return Verdict {
                capture: Capture::None,
                by: By::Misspelt,
            };
        };
        let capture = match self.trusts_annotation {
            true => asked,
            false => min(asked, configured),
        };
        let by = match capture < configured {
            true => By::Pod,
            false => By::Configuration,
        };
        Verdict { capture, by }
    }

    /// Of a container of which nobody has told yet, or nobody can: content never.
    pub fn unknown(&self) -> Verdict {
        let rules = self.rules.iter().map(|rule| rule.capture);
        Verdict {
            capture: rules.fold(min(self.default, Capture::Metadata), min),
            by: By::Unknown,
        }
    }

    /// Of a process in no container.
    pub fn host(&self) -> Verdict {
        Verdict {
            capture: self.host,
            by: By::Host,
        }
    }

    /// The same of a process that runs this and is called so, wherever it is.
    pub fn of_program(&self, verdict: Verdict, subject: &Subject) -> Verdict {
        let mut least = verdict;
        for program in &self.programs {
            let fits = program.fits(subject);
            let capture = match fits {
                Some(false) => continue,
                Some(true) => program.capture,
                // It may be this one.
                None => min(program.capture, Capture::Metadata),
            };
            if capture < least.capture {
                let by = By::Program;
                least = Verdict { capture, by };
            }
            if fits == Some(true) {
                break;
            }
        }
        least
    }

    /// Of a process of which nobody has told where it is.
    pub fn nowhere(&self) -> Verdict {
        let Verdict { capture, by } = self.unknown();
        Verdict {
            capture: min(capture, self.host),
            by,
        }
    }

    /// Of a process of which nothing is known at all.
    pub fn nobody(&self) -> Verdict {
        self.of_program(self.nowhere(), &Subject::default())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::metadata::Pod;

    fn rule(namespace: &str, capture: Capture) -> Rule {
        let names = Names {
            namespaces: vec![namespace.to_owned()],
            ..Names::default()
        };
        Rule { names, capture }
    }

    fn policy(trusts_annotation: bool) -> Policy {
        Policy {
            rules: vec![
                rule("kube-*", Capture::None),
                rule("shop", Capture::Redacted),
                rule("*", Capture::Metadata),
            ],
            programs: Vec::new(),
            default: Capture::Metadata,
            host: Capture::Full,
            trusts_annotation,
        }
    }

    fn container(namespace: &str, asked: Option<&str>) -> Container {
        let asked = asked.map(|asked| (ANNOTATION.to_owned(), asked.to_owned()));
        let pod = Pod {
            namespace: namespace.to_owned(),
            annotations: asked.into_iter().collect(),
            ..Pod::default()
        };
        Container {
            pod: Some(pod),
            ..Container::default()
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let policy = policy(false);
        for (namespace, capture) in [
            ("kube-system", Capture::None),
            ("shop", Capture::Redacted),
            ("shop2", Capture::Metadata),
        ] {
            let verdict = policy.of("c0ffee", &container(namespace, None));
            let by = By::Configuration;
            assert_eq!(verdict, Verdict { capture, by }, "{namespace}");
        }
        let alone = policy.of("c0ffee", &Container::default());
        assert_eq!(alone.capture, Capture::Metadata, "in no pod");
    }

    #[test]
    fn a_program_is_told_of_as_little_as_its_rule_and_its_container_allow() {
        let program = |exe: &str, comm: &str, capture| Program {
            exes: Some(exe.to_owned())
                .filter(|exe| !exe.is_empty())
                .into_iter()
                .collect(),
            comms: Some(comm.to_owned())
                .filter(|comm| !comm.is_empty())
                .into_iter()
                .collect(),
            capture,
        };
        let policy = Policy {
            programs: vec![
                program("/opt/*", "agent", Capture::Full),
                program("/opt/*", "", Capture::Redacted),
                program("", "bank*", Capture::None),
            ],
            ..policy(false)
        };
        use Capture::{Full, Metadata, None as Nothing, Redacted};
        let (all, least) = (policy.host(), policy.unknown());
        for (verdict, exe, comm, capture) in [
            (all, Some("/opt/x"), Some("agent"), Full),
            (all, Some("/opt/x"), Some("bank1"), Redacted),
            (all, Some("/bin/x"), Some("bank1"), Nothing),
            (all, Some("/bin/x"), Some("agent"), Full),
            (all, Some("/opt/x (deleted)"), Some("bank1"), Redacted),
            // It takes away only.
            (least, Some("/opt/x"), Some("agent"), Nothing),
            // What may be, counts as if it were.
            (all, None, Some("agent"), Metadata),
            (all, Some("/bin/x"), None, Nothing),
            (all, Some("/opt/x"), None, Metadata),
        ] {
            let subject = Subject {
                executable: exe.map(str::to_owned),
                comm: comm.map(str::to_owned),
                container_id: None,
            };
            let told = policy.of_program(verdict, &subject);
            assert_eq!(told.capture, capture, "{exe:?} {comm:?}");
        }
        assert_eq!(policy.nobody().capture, Nothing);
    }

    #[test]
    fn labels_and_names_of_containers_decide_as_well() {
        let names = Names {
            labels: vec![("app".into(), "web".into())],
            containers: vec!["ng*".into()],
            ..Names::default()
        };
        let capture = Capture::Full;
        let policy = Policy {
            rules: vec![Rule { names, capture }],
            ..policy(false)
        };
        let of = |name: &str, app: &str| {
            let container = Container {
                name: Some(name.into()),
                labels: BTreeMap::from([("app".into(), app.into())]),
                ..Container::default()
            };
            policy.of("c0ffee", &container).capture
        };
        assert_eq!(of("nginx", "web"), Capture::Full);
        assert_eq!(of("nginx", "db"), Capture::Metadata);
        assert_eq!(of("db", "web"), Capture::Metadata);
    }

    #[test]
    fn a_pod_asks_for_less_and_for_more_if_it_is_trusted() {
        let of = |trusts, namespace, asked| {
            let Verdict { capture, by } =
                policy(trusts).of("c", &container(namespace, Some(asked)));
            (capture, by)
        };
        use Capture::{Full, Metadata, None, Redacted};
        assert_eq!(of(false, "shop", "none"), (None, By::Pod));
        assert_eq!(of(false, "shop", " None "), (None, By::Pod));
        assert_eq!(of(false, "shop", "metadata"), (Metadata, By::Pod));
        assert_eq!(of(false, "shop", "full"), (Redacted, By::Configuration));
        assert_eq!(of(false, "kube-system", "full"), (None, By::Configuration));
        assert_eq!(of(true, "shop", "full"), (Full, By::Configuration));
        assert_eq!(
            of(true, "kube-system", "metadata"),
            (Metadata, By::Configuration)
        );
        for trusts in [false, true] {
            assert_eq!(of(trusts, "shop", "off"), (None, By::Misspelt));
        }
    }

    #[test]
    fn who_is_not_known_is_told_of_as_little_as_anybody_and_without_content() {
        let mut policy = policy(false);
        assert_eq!(policy.unknown().capture, Capture::None);
        policy.rules.remove(0);
        assert_eq!(policy.unknown().capture, Capture::Metadata);
        policy.default = Capture::Full;
        policy.rules = vec![rule("shop", Capture::Redacted)];
        assert_eq!(policy.unknown().capture, Capture::Metadata);
        assert_eq!(policy.host().capture, Capture::Full);
        assert_eq!(policy.nowhere().capture, Capture::Metadata);
        policy.host = Capture::None;
        assert_eq!(policy.nowhere().capture, Capture::None);
    }

    #[test]
    fn what_began_under_another_policy_is_told_of_as_little_as_ever_since() {
        use Capture::{Full, Metadata, None, Redacted};
        let mut past = Past::default();
        assert_eq!(past.least(0, Full), Full);
        past.was(Full, 5);
        assert_eq!(past.least(0, Full), Full);
        past.was(None, 10);
        past.was(Redacted, 20);
        for (since, least) in [
            (0, None),
            (10, None),
            (11, Redacted),
            (20, Redacted),
            (21, Full),
        ] {
            assert_eq!(past.least(since, Full), least, "{since}");
            assert_eq!(past.least(since, Metadata), min(least, Metadata), "{since}");
        }
        past.was(Metadata, 30);
        past.was(Metadata, 25);
        assert_eq!(past.least(20, Full), Metadata);
        assert_eq!(
            (past.least(30, Full), past.least(31, Full)),
            (Metadata, Full)
        );
    }

    #[test]
    fn nothing_more_than_content_allows() {
        use redact::Policy as Content;
        assert_eq!(Capture::Full.content(Content::Redacted), Content::Redacted);
        assert_eq!(Capture::Full.content(Content::Full), Content::Full);
        assert_eq!(Capture::Redacted.content(Content::None), Content::None);
        assert_eq!(Capture::Redacted.content(Content::Full), Content::Redacted);
        assert_eq!(Capture::Metadata.content(Content::Full), Content::None);
    }
}
