//! The processes that a run of the line is about, what contains them, and how much of each may be told: written
//! down here once more, by hand, so that the policy has somebody to be held against.

use std::collections::BTreeMap;

use vortex_agent::{
    half::Facts,
    metadata::{Container, Names, Pod},
    policy::{ANNOTATION, Capture, Policy, Rule},
};

use crate::Choices;

pub const PIDS: u32 = 4;
/// By its executable it is not wanted, if the filter is on.
pub const OTHER: u32 = 3;
/// What no command line may show.
pub const PASSWORD: &str = "swordfish";

struct Place {
    id: &'static str,
    namespace: &'static str,
    /// What its pod asks for.
    asked: Option<&'static str>,
    /// What is told of it, and where pods are trusted.
    capture: Capture,
    trusted: Capture,
}

const PLACES: [Place; 8] = {
    use Capture::{Full, Metadata, None as Nothing, Redacted};
    [
        place("s0", "shop", None, Redacted, Redacted),
        place("k0", "kube-system", None, Nothing, Nothing),
        place("o0", "other", None, Metadata, Metadata),
        place("s1", "shop", Some("none"), Nothing, Nothing),
        place("s2", "shop", Some("Metadata "), Metadata, Metadata),
        place("s3", "shop", Some("full"), Redacted, Full),
        place("s4", "shop", Some("of"), Nothing, Nothing),
        place("k1", "kube-system", Some("redacted"), Nothing, Redacted),
    ]
};

const fn place(
    id: &'static str,
    namespace: &'static str,
    asked: Option<&'static str>,
    capture: Capture,
    trusted: Capture,
) -> Place {
    Place {
        id,
        namespace,
        asked,
        capture,
        trusted,
    }
}

/// Who is where, and who is wanted.
#[derive(Clone, Copy)]
pub struct World {
    pub has_policy: bool,
    pub trusts: bool,
    /// Only processes in pods of the shop are wanted.
    pub of_shop: bool,
    /// Only processes of some executables are.
    pub of_exe: bool,
    /// The policy excludes nobody that is not known.
    pub is_mild: bool,
    pub host: Capture,
    rotation: u8,
}

impl World {
    pub fn of(scene: u8, of_exe: bool, choices: &mut Choices<'_>) -> World {
        let bit = |at: u8| scene >> at & 1 != 0;
        World {
            has_policy: bit(0),
            trusts: bit(1),
            of_shop: bit(2),
            of_exe,
            is_mild: bit(3),
            host: match bit(4) {
                true => Capture::None,
                false => Capture::Full,
            },
            rotation: choices.byte(),
        }
    }

    /// Another policy, or none any more. Who is where, and who is wanted, stays.
    pub fn follow(&mut self, scene: u8) {
        let after = World::of(scene, self.of_exe, &mut Choices(&[]));
        *self = World {
            of_shop: self.of_shop,
            rotation: self.rotation,
            ..after
        };
    }

    /// Are there processes that are turned away?
    pub fn is_selective(&self) -> bool {
        self.has_policy || self.of_shop || self.of_exe
    }

    pub fn exes(&self) -> Vec<String> {
        let exe = self.of_exe.then(|| "/bin/*".to_owned());
        exe.into_iter().collect()
    }

    pub fn names(&self) -> Names {
        match self.of_shop {
            true => of("shop"),
            false => Names::default(),
        }
    }

    pub fn policy(&self) -> Option<Policy> {
        let rule = |namespace, capture| Rule {
            names: of(namespace),
            capture,
        };
        self.has_policy.then(|| Policy {
            rules: vec![
                rule("kube-*", self.excluded()),
                rule("shop", Capture::Redacted),
            ],
            programs: Vec::new(),
            default: Capture::Metadata,
            host: self.host,
            trusts_annotation: self.trusts,
        })
    }

    pub fn facts(&self, pid: u32) -> Facts {
        Facts {
            pid,
            comm: Some("me\x1b[31m".to_owned()),
            executable: Some(if pid == OTHER { "/opt/x" } else { "/bin/me" }.to_owned()),
            arguments: vec![format!("--password={PASSWORD}"), "\u{9b}".to_owned()],
            parent_pid: Some(1),
            owner_uid: Some(pid),
            container_id: self.place(pid).map(|place| place.id.to_owned()),
            ..Facts::default()
        }
    }

    pub fn container(&self, id: &str) -> Option<Container> {
        let place = PLACES.iter().find(|place| place.id == id)?;
        let asked = place
            .asked
            .map(|asked| (ANNOTATION.to_owned(), asked.to_owned()));
        Some(Container {
            name: Some("web\x1b[1m".to_owned()),
            image: Some("localhost:5000/web:1".to_owned()),
            labels: BTreeMap::from([("api_key".to_owned(), PASSWORD.to_owned())]),
            pod: Some(Pod {
                namespace: place.namespace.to_owned(),
                name: "web-0".to_owned(),
                annotations: asked.into_iter().collect(),
                ..Pod::default()
            }),
        })
    }

    /// The most that may be told of a process. `is_known`: who it is was told; `named`: what its container is.
    pub fn capture(&self, pid: u32, is_known: bool, named: impl Fn(&str) -> bool) -> Capture {
        let is_awaited = |place: &Place| self.of_shop && !named(place.id);
        if !self.is_wanted(pid) || self.place(pid).is_some_and(is_awaited) {
            return Capture::None;
        }
        if !self.has_policy {
            return Capture::Full;
        }
        // As little as of any.
        let unknown = self.excluded();
        let Some(place) = self.place(pid).filter(|_| is_known) else {
            return match is_known {
                true => self.host,
                false => unknown.min(self.host),
            };
        };
        match place.namespace {
            _ if !named(place.id) => unknown,
            _ if self.trusts && place.asked.is_some() => place.trusted,
            "kube-system" => self.excluded(),
            _ => place.capture,
        }
    }

    fn is_wanted(&self, pid: u32) -> bool {
        let place = self.place(pid);
        let is_of_shop = place.is_some_and(|place| place.namespace == "shop");
        (!self.of_exe || pid != OTHER) && (!self.of_shop || is_of_shop)
    }

    /// Of what the rules exclude.
    fn excluded(&self) -> Capture {
        match self.is_mild {
            true => Capture::Metadata,
            false => Capture::None,
        }
    }

    /// One of these, or none.
    fn place(&self, pid: u32) -> Option<&'static Place> {
        let at = usize::from(self.rotation) + 2 * pid as usize;
        PLACES.get(at % (PLACES.len() + 1))
    }
}

fn of(namespace: &str) -> Names {
    Names {
        namespaces: vec![namespace.to_owned()],
        ..Names::default()
    }
}
