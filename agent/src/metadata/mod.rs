//! What a container is called, and the pod that it is in: asked of the runtimes of this machine, over their own
//! sockets.
//!
//! Who may speak to a runtime may start a container that owns the machine. So it is neither the pipeline, which
//! parses what strangers wrote, nor the half, which has capabilities: a process of its own (`process.rs`) holds the
//! connections. It has root's name, for the sockets are root's, and nothing else; what it can be asked is the name of
//! an id.

pub mod body;
pub mod cri;
pub mod docker;
pub mod known;
pub mod process;
pub mod recent;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use crate::{cli, glob::glob, policy::ANNOTATION};

/// Pipeline → process: what is this container?
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    pub id: String,
}

/// Process → pipeline. `None`: no runtime has such a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    pub id: String,
    pub container: Option<Container>,
}

/// A container, as its runtime tells it. Within the bounds below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub name: Option<String>,
    /// As it was asked for: `docker.io/library/nginx:1.27`.
    pub image: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub pod: Option<Pod>,
}

impl Container {
    /// Without what no filter and no policy asks for: that is kept of many.
    pub fn to_be_judged(mut self) -> Container {
        self.image = None;
        if let Some(pod) = &mut self.pod {
            pod.annotations.retain(|key, _| key == ANNOTATION);
        }
        self
    }
}

/// A pod of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// What the pod calls the container.
    pub container: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// Labels and annotations that are kept, and their bytes. One that is longer by itself is left out, not cut: half a
/// secret is no longer known as one. All of a container fits into one message.
const PAIRS_MAX: usize = 64;
const VALUE_MAX: usize = 1024;
const PAIRS_BYTES: usize = 12 << 10;
const NAME_MAX: usize = 512;

/// How many containers are known or asked for at once, here and in the line.
pub const CONTAINERS_MAX: usize = 1024;

/// What of these is kept, in the order of their keys; what our own say comes first, however many there are.
fn kept(pairs: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let mut bytes = 0;
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_unstable_by(|(a, _), (b, _)| (a != ANNOTATION, a).cmp(&(b != ANNOTATION, b)));
    let fits = |(key, value): &(String, String)| {
        if key.len() > NAME_MAX || value.len() > VALUE_MAX {
            return false;
        }
        bytes += key.len() + value.len();
        bytes <= PAIRS_BYTES
    };
    pairs.into_iter().filter(fits).take(PAIRS_MAX).collect()
}

/// A name, unless there is none or it is none.
fn name(text: String) -> Option<String> {
    (1..=NAME_MAX).contains(&text.len()).then_some(text)
}

impl Pod {
    /// Where a runtime knows no pods, kubelet's labels name them.
    fn of_labels(labels: &HashMap<String, String>) -> Option<Pod> {
        let label = |key: &str| name(labels.get(key)?.clone());
        Some(Pod {
            namespace: label("io.kubernetes.pod.namespace")?,
            name: label("io.kubernetes.pod.name")?,
            uid: label("io.kubernetes.pod.uid").unwrap_or_default(),
            container: label("io.kubernetes.container.name"),
            ..Pod::default()
        })
    }
}

/// Which containers are wanted by what they are called: patterns with `*` and `?`. Of one kind "or", of different
/// kinds "and"; all empty: every process, also one in no container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Of the container; beginnings of ids stand beside them if there are any.
    pub containers: Vec<String>,
    pub ids: Vec<String>,
    pub pods: Vec<String>,
    pub namespaces: Vec<String>,
    /// A label of the container or of its pod.
    pub labels: Vec<(String, String)>,
}

impl Names {
    pub fn is_empty(&self) -> bool {
        *self == Names::default()
    }

    pub fn pass(&self, id: &str, container: &Container) -> bool {
        let Names {
            containers,
            ids,
            pods,
            namespaces,
            labels,
        } = self;
        let is_one = |patterns: &[String], name: Option<&str>| {
            let any = |name| patterns.iter().any(|pattern| glob(pattern, name));
            patterns.is_empty() || name.is_some_and(any)
        };
        let pod = container.pod.as_ref();
        let called = [
            container.name.as_deref(),
            pod.and_then(|pod| pod.container.as_deref()),
        ];
        let has_label = |(key, value): &(String, String)| {
            let of_pod = pod.and_then(|pod| pod.labels.get(key));
            [container.labels.get(key), of_pod].contains(&Some(value))
        };
        let is_named = containers.is_empty() && ids.is_empty()
            || ids.iter().any(|start| id.starts_with(start.as_str()))
            || !containers.is_empty() && called.into_iter().any(|name| is_one(containers, name));
        is_named
            && is_one(pods, pod.map(|pod| &*pod.name))
            && is_one(namespaces, pod.map(|pod| &*pod.namespace))
            && (labels.is_empty() || labels.iter().any(has_label))
    }
}

/// The sockets of runtimes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Those that speak the Container Runtime Interface of Kubernetes.
    pub cri: Vec<PathBuf>,
    /// Those that speak Docker's API.
    pub docker: Vec<PathBuf>,
}

impl Sockets {
    /// Where runtimes have theirs, as far as there are any on this machine.
    pub fn found() -> Sockets {
        let there = |paths: &[&str]| {
            let mut there: Vec<PathBuf> = Vec::new();
            // `/var/run` is `/run` almost everywhere.
            for path in paths
                .iter()
                .filter_map(|path| Path::new(path).canonicalize().ok())
            {
                if !there.contains(&path) {
                    there.push(path);
                }
            }
            there
        };
        Sockets {
            cri: there(&[
                "/run/containerd/containerd.sock",
                "/run/k3s/containerd/containerd.sock",
                "/run/crio/crio.sock",
                "/var/run/crio/crio.sock",
                "/run/cri-dockerd.sock",
            ]),
            docker: there(&[
                "/run/docker.sock",
                "/var/run/docker.sock",
                "/run/podman/podman.sock",
            ]),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.cri.is_empty() && self.docker.is_empty()
    }
}

/// The process, seen from the pipeline.
#[derive(Debug)]
pub struct Asked {
    pub socket: OwnedFd,
    child: Child,
}

impl Asked {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// Starts it. Before the lock-in.
pub fn start(sockets: &Sockets) -> io::Result<Asked> {
    let flags = SocketFlags::CLOEXEC;
    let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let options = cli::Metadata {
        cri: sockets.cri.clone(),
        docker: sockets.docker.clone(),
    };
    // Not by path: an upgrade may have replaced the file.
    let child = Command::new("/proc/self/exe")
        .arg0("vortex-agent")
        .args(options.to_args())
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        // The terminal's Ctrl-C is not for it: it ends with its socket.
        .process_group(0)
        .spawn()?;
    Ok(Asked { socket, child })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    fn web() -> Container {
        Container {
            name: Some("web".into()),
            image: Some("nginx:1".into()),
            labels: pairs(&[("tier", "front")]),
            pod: Some(Pod {
                namespace: "shop".into(),
                name: "web-7d4b9".into(),
                uid: "u".into(),
                container: Some("nginx".into()),
                labels: pairs(&[("app", "web")]),
                annotations: BTreeMap::new(),
            }),
        }
    }

    /// Nobody's opt-out is lost among others' annotations.
    #[test]
    fn what_a_pod_asks_for_is_kept_whatever_else_it_has() {
        let many = (0..2 * PAIRS_MAX).map(|number| (format!("a/{number}"), String::new()));
        let large = (0..20).map(|number| (format!("b/{number}"), "x".repeat(VALUE_MAX)));
        for others in [many.collect::<Vec<_>>(), large.collect()] {
            let asked = (ANNOTATION.to_owned(), "none".to_owned());
            let kept = kept(others.into_iter().chain([asked]));
            assert_eq!(kept.get(ANNOTATION).map(String::as_str), Some("none"));
        }
    }

    #[test]
    fn names_of_one_kind_mean_or_and_of_different_kinds_and() {
        let list = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        let label = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        let names = Names::default();
        let check = |names: Names, expected: bool| {
            assert_eq!(names.pass("c0ffee", &web()), expected, "{names:?}");
        };
        check(names.clone(), true);
        for (containers, expected) in [
            (&["web"][..], true),
            (&["nginx"], true),
            (&["ng*"], true),
            (&["other", "web"], true),
            (&["we"], false),
        ] {
            let containers = list(containers);
            check(
                Names {
                    containers,
                    ..names.clone()
                },
                expected,
            );
        }
        check(
            Names {
                ids: list(&["c0ff"]),
                ..names.clone()
            },
            true,
        );
        check(
            Names {
                ids: list(&["c0fe"]),
                ..names.clone()
            },
            false,
        );
        let either = Names {
            ids: list(&["c0fe"]),
            containers: list(&["web"]),
            ..names.clone()
        };
        check(either, true);
        let other = Names {
            ids: list(&["c0fe"]),
            containers: list(&["db"]),
            ..names.clone()
        };
        check(other, false);
        check(
            Names {
                pods: list(&["web-*"]),
                ..names.clone()
            },
            true,
        );
        check(
            Names {
                namespaces: list(&["shop"]),
                ..names.clone()
            },
            true,
        );
        check(
            Names {
                labels: label("tier", "front"),
                ..names.clone()
            },
            true,
        );
        check(
            Names {
                labels: label("app", "web"),
                ..names.clone()
            },
            true,
        );
        check(
            Names {
                labels: label("app", "we"),
                ..names.clone()
            },
            false,
        );
        let both = Names {
            pods: list(&["web-*"]),
            namespaces: list(&["shop"]),
            ..names.clone()
        };
        check(both, true);
        let one = Names {
            pods: list(&["web-*"]),
            namespaces: list(&["x"]),
            ..names.clone()
        };
        check(one, false);
        // In no pod.
        let bare = Container { pod: None, ..web() };
        assert!(
            !Names {
                pods: list(&["*"]),
                ..names
            }
            .pass("c0ffee", &bare)
        );
    }

    #[test]
    fn what_is_too_much_is_left_out() {
        let long = "x".repeat(VALUE_MAX + 1);
        let some = kept([("b".into(), long), ("a".into(), "1".into())]);
        assert_eq!(some, pairs(&[("a", "1")]));
        let many = kept((0..1000).map(|n| (format!("{n:04}"), "v".repeat(500))));
        let bytes: usize = many
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        assert!(
            bytes <= PAIRS_BYTES && many.len() == PAIRS_BYTES / 504,
            "{}",
            many.len()
        );
        assert_eq!(
            kept((0..1000).map(|n| (n.to_string(), String::new()))).len(),
            PAIRS_MAX
        );
        // The largest of all fits into a message between processes.
        let largest = || kept((0..64).map(|n| (format!("{n:04}"), "v".repeat(180))));
        let text = || Some("n".repeat(NAME_MAX));
        let container = Container {
            name: text(),
            image: text(),
            labels: largest(),
            pod: Some(Pod {
                namespace: "n".repeat(NAME_MAX),
                name: "n".repeat(NAME_MAX),
                uid: "n".repeat(NAME_MAX),
                container: text(),
                labels: largest(),
                annotations: largest(),
            }),
        };
        assert!(postcard::to_stdvec(&container).unwrap().len() < 60 << 10);
    }

    #[test]
    fn kubelets_labels_name_a_pod() {
        let labels = [
            ("io.kubernetes.pod.namespace", "shop"),
            ("io.kubernetes.pod.name", "web-0"),
            ("io.kubernetes.pod.uid", "1f"),
            ("io.kubernetes.container.name", "nginx"),
        ];
        let mut labels: HashMap<String, String> = labels
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        let pod = Pod::of_labels(&labels).unwrap();
        assert_eq!(
            (&*pod.namespace, &*pod.name, &*pod.uid),
            ("shop", "web-0", "1f")
        );
        assert_eq!(pod.container.as_deref(), Some("nginx"));
        labels.remove("io.kubernetes.pod.namespace");
        assert_eq!(Pod::of_labels(&labels), None);
    }
}
