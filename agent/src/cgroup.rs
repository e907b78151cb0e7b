//! Control groups: the hierarchies of this machine, and which of their groups a path means.
//!
//! Version 2 is one hierarchy, version 1 one for each set of controllers, and a hybrid machine has both. The
//! kernel programs can ask for a process' group in version 2 only; for the others the members are told
//! to them.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use agent_ebpf::{GROUP_NAME, GROUPS, Group as Noted};
use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};

/// A line of `/proc/PID/cgroup`: `4:memory:/a/b`, or `0::/a/b` of version 2.
pub struct Line<'a> {
    pub number: &'a str,
    pub controllers: &'a str,
    pub path: &'a str,
}

pub fn lines(groups: &str) -> impl Iterator<Item = Line<'_>> {
    groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Line {
            number,
            controllers,
            // The group was removed, the process is a zombie.
            path: path.strip_suffix(" (deleted)").unwrap_or(path),
        })
    })
}

/// What `/proc/PID/cgroup` said of a process, as far as the kernel side has noted it: its group in version 2, and in a
/// hierarchy of version 1.
pub fn noted([version_2, version_1]: [Option<Noted>; 2]) -> String {
    let line = |number, group: Option<Noted>| Some(format!("{number}:{}\n", path_of(&group?)?));
    // Which controller it is does not matter.
    let lines = [line("1:noted", version_1), line("0:", version_2)];
    lines.into_iter().flatten().collect()
}

/// `None`: nothing was noted, or not all of it. Half a path says less than none, for names mean what those above them
/// say.
fn path_of(group: &Noted) -> Option<String> {
    let count = group.levels.checked_sub(1)? as usize;
    let names = group.names.get(..count).filter(|_| group.is_cut == 0)?;
    let mut path = String::new();
    for name in names.iter().rev() {
        let end = name.iter().position(|byte| *byte == 0)?;
        if end == 0 || end == GROUP_NAME - 1 {
            return None;
        }
        path.push('/');
        path.push_str(&String::from_utf8_lossy(&name[..end]));
    }
    if path.is_empty() {
        path.push('/');
    }
    Some(path)
}

/// Is the process with these groups in this one, or in one below it? In any hierarchy: who writes a path
/// as `/proc/PID/cgroup` has it does not say in which.
pub fn is_below(groups: &str, path: &str) -> bool {
    let path = path.trim_end_matches('/');
    lines(groups).any(|line| {
        let below = line.path.strip_prefix(path);
        below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    })
}

/// The hierarchies that are mounted here.
#[derive(Debug, Default)]
pub struct Hierarchies(Vec<Hierarchy>);

#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// The group that is seen there, as `/proc/PID/cgroup` names it.
    root: PathBuf,
    is_version_2: bool,
}

/// Which versions a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Version2,
    Hybrid,
    Version1,
    /// None is mounted.
    Nothing,
}

impl Layout {
    pub const fn name(self) -> &'static str {
        match self {
            Layout::Version2 => "version-2",
            Layout::Hybrid => "hybrid",
            Layout::Version1 => "version-1",
            Layout::Nothing => "none",
        }
    }
}

/// A group that somebody named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// As in `/proc/PID/cgroup`.
    pub path: String,
    /// Where the kernel programs can ask for it themselves.
    pub directory: Option<PathBuf>,
}

/// The groups of a filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// As in `/proc/PID/cgroup`.
    pub paths: Vec<String>,
    /// The kernel programs can ask for all of them themselves.
    pub are_asked_for: bool,
}

impl Groups {
    /// Finds them, and opens what the kernel programs are to ask for.
    pub fn open(named: &[PathBuf]) -> Result<(Groups, Vec<OwnedFd>)> {
        if named.is_empty() {
            return Ok(Default::default());
        }
        let hierarchies = Hierarchies::read().context("read /proc/self/mountinfo")?;
        let find = |path: &PathBuf| {
            hierarchies.find(path, Path::is_dir).with_context(|| {
                format!(
                    "--cgroup {}: no control group has this path; /proc/PID/cgroup shows a process' own",
                    path.display()
                )
            })
        };
        let groups: Vec<Group> = named.iter().map(find).collect::<Result<_>>()?;
        let directories: Option<Vec<_>> = groups.iter().map(|one| one.directory.as_ref()).collect();
        let directories = directories.filter(|some| some.len() <= GROUPS as usize);
        let open = |path: &PathBuf| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            open(path, flags, Mode::empty())
                .with_context(|| format!("open the control group {}", path.display()))
        };
        let are_asked_for = directories.is_some();
        let directories = directories.unwrap_or_default().into_iter().map(open);
        let paths = groups.iter().map(|one| one.path.clone()).collect();
        Ok((
            Groups {
                paths,
                are_asked_for,
            },
            directories.collect::<Result<_>>()?,
        ))
    }
}

impl Hierarchies {
    pub fn read() -> io::Result<Hierarchies> {
        let mounts = fs::read("/proc/self/mountinfo")?;
        Ok(Hierarchies::parse(&String::from_utf8_lossy(&mounts)))
    }

    /// `31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw`, see proc(5).
    fn parse(mounts: &str) -> Hierarchies {
        let hierarchy = |line: &str| {
            let (place, kind) = line.split_once(" - ")?;
            let is_version_2 = match kind.split(' ').next()? {
                "cgroup2" => true,
                "cgroup" => false,
                _ => return None,
            };
            let mut fields = place.split(' ').skip(3);
            Some(Hierarchy {
                root: unescaped(fields.next()?).into(),
                mount: unescaped(fields.next()?).into(),
                is_version_2,
            })
        };
        Hierarchies(mounts.lines().filter_map(hierarchy).collect())
    }

    pub fn layout(&self) -> Layout {
        let has = |version_2| self.0.iter().any(|one| one.is_version_2 == version_2);
        match (has(true), has(false)) {
            (true, false) => Layout::Version2,
            (true, true) => Layout::Hybrid,
            (false, true) => Layout::Version1,
            (false, false) => Layout::Nothing,
        }
    }

    /// The group that `path` means: a directory below a mount, or a path as `/proc/PID/cgroup` has it.
    /// `exists` says whether something is a directory.
    pub fn find(&self, path: &Path, exists: impl Fn(&Path) -> bool) -> Option<Group> {
        let below_mount = |one: &&Hierarchy| path.starts_with(&one.mount);
        let length = |one: &&Hierarchy| one.mount.components().count();
        if let Some(one) = self.0.iter().filter(below_mount).max_by_key(length) {
            let below = path.strip_prefix(&one.mount).ok()?;
            return exists(path).then(|| Group {
                path: text(&one.root.join(below)),
                directory: one.is_version_2.then(|| path.to_owned()),
            });
        }
        let directories: Vec<(PathBuf, bool)> = self
            .0
            .iter()
            .filter_map(|one| {
                let below = path.strip_prefix(&one.root).ok()?;
                Some((one.mount.join(below), one.is_version_2))
            })
            .filter(|(directory, _)| exists(directory))
            .collect();
        let (first, _) = directories.first()?;
        // On a hybrid machine a group of this name may hold others in each hierarchy.
        let is_version_2 = directories.iter().all(|(_, is_version_2)| *is_version_2);
        Some(Group {
            path: text(path),
            directory: is_version_2.then(|| first.clone()),
        })
    }
}

/// Without a slash at the end.
fn text(path: &Path) -> String {
    let path: PathBuf = path.components().collect();
    path.to_string_lossy().into_owned()
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => {
                text.push(char::from(code));
                text.push_str(&part[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use agent_ebpf::GROUPS_DEEP;

    use super::*;

    /// As the kernel side writes it, the innermost name first.
    fn named(names: &[&str]) -> Noted {
        let mut group = Noted {
            levels: names.len() as u32 + 1,
            is_cut: 0,
            names: [[0; GROUP_NAME]; GROUPS_DEEP],
        };
        for (to, name) in group.names.iter_mut().zip(names) {
            to[..name.len()].copy_from_slice(name.as_bytes());
        }
        group
    }

    #[test]
    fn what_the_kernel_side_has_noted() {
        let web = || named(&["docker-c0ffee.scope", "system.slice"]);
        let all = noted([Some(web()), Some(named(&[]))]);
        assert_eq!(all, "1:noted:/\n0::/system.slice/docker-c0ffee.scope\n");
        assert_eq!(noted([None, Some(named(&["a"]))]), "1:noted:/a\n");
        assert_eq!(noted([None, None]), "");
        // Being written; deeper than is noted; more than there is room for; a name that is cut; one that is none.
        let mut unusual = [web(), web(), web(), web(), web()];
        unusual[0].levels = 0;
        unusual[1].is_cut = 1;
        unusual[2].levels = GROUPS_DEEP as u32 + 2;
        unusual[3].names[1][..GROUP_NAME - 1].fill(b'x');
        unusual[4].names[0] = [0; GROUP_NAME];
        for (number, one) in unusual.into_iter().enumerate() {
            assert_eq!(noted([Some(one), None]), "", "{number}");
        }
        let deep = named(&["8", "7", "6", "5", "4", "3", "2", "1"]);
        assert_eq!(noted([Some(deep), None]), "0::/1/2/3/4/5/6/7/8\n");
    }

    /// Debian 12 under systemd.
    const VERSION_2: &str = "\
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
31 23 0:27 / /sys/fs/bpf rw - bpf bpf rw,mode=700
";
    /// Ubuntu 20.04; a hypervisor's minimal init.
    const HYBRID: &str = "\
32 23 0:27 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
33 32 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
34 32 0:29 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
38 32 0:33 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
";
    /// In a container of Docker on a v1 host: one sees only one's own group.
    const INSIDE: &str = "\
700 699 0:29 /docker/c0ffee /sys/fs/cgroup/systemd ro master:11 - cgroup cgroup rw,name=systemd
701 699 0:33 /docker/c0ffee /sys/fs/cgroup/memory ro master:15 - cgroup cgroup rw,memory
";

    #[track_caller]
    fn find(mounts: &str, path: &str, directories: &[&str]) -> Option<Group> {
        let exists = |path: &Path| directories.iter().any(|known| path == Path::new(known));
        Hierarchies::parse(mounts).find(Path::new(path), exists)
    }

    fn group(path: &str, directory: Option<&str>) -> Option<Group> {
        Some(Group {
            path: path.to_owned(),
            directory: directory.map(PathBuf::from),
        })
    }

    #[test]
    fn layouts() {
        for (mounts, layout) in [
            (VERSION_2, Layout::Version2),
            (HYBRID, Layout::Hybrid),
            (INSIDE, Layout::Version1),
            ("", Layout::Nothing),
            ("nonsense\n- cgroup2\n", Layout::Nothing),
        ] {
            assert_eq!(Hierarchies::parse(mounts).layout(), layout, "{mounts}");
        }
    }

    #[test]
    fn both_spellings_mean_one_group() {
        let directory = "/sys/fs/cgroup/app.slice";
        let expected = group("/app.slice", Some(directory));
        for path in ["/app.slice", "/app.slice/", directory] {
            assert_eq!(find(VERSION_2, path, &[directory]), expected, "{path}");
        }
        assert_eq!(find(VERSION_2, "/other.slice", &[directory]), None);
        assert_eq!(find(VERSION_2, "/sys/fs/cgroup/x", &[directory]), None);
        let root = find(VERSION_2, "/sys/fs/cgroup", &["/sys/fs/cgroup"]);
        assert_eq!(root, group("/", Some("/sys/fs/cgroup")));
    }

    #[test]
    fn on_a_hybrid_machine_the_directory_says_which() {
        let (two, one) = ("/sys/fs/cgroup/unified/a", "/sys/fs/cgroup/systemd/a");
        let both = [two, one];
        assert_eq!(find(HYBRID, two, &both), group("/a", Some(two)));
        assert_eq!(find(HYBRID, one, &both), group("/a", None));
        // Its members may differ.
        assert_eq!(find(HYBRID, "/a", &both), group("/a", None));
        assert_eq!(find(HYBRID, "/a", &[one]), group("/a", None));
        assert_eq!(find(HYBRID, "/a", &[two]), group("/a", Some(two)));
        assert_eq!(find(HYBRID, "/a", &[]), None);
    }

    #[test]
    fn a_mount_of_a_part() {
        let directory = "/sys/fs/cgroup/memory/job";
        let expected = group("/docker/c0ffee/job", None);
        assert_eq!(find(INSIDE, directory, &[directory]), expected);
        assert_eq!(find(INSIDE, "/docker/c0ffee/job", &[directory]), expected);
        assert_eq!(find(INSIDE, "/job", &[directory]), None);
    }

    #[test]
    fn blanks_in_mounts() {
        let mounts = "1 2 0:3 /a\\040b /mnt/c\\134d rw - cgroup2 none rw\n";
        let parsed = Hierarchies::parse(mounts);
        assert_eq!(parsed.0[0].root, Path::new("/a b"));
        assert_eq!(parsed.0[0].mount, Path::new("/mnt/c\\d"));
        assert_eq!(unescaped("a\\9é\\"), "a\\9é\\");
    }

    #[test]
    fn below_a_group() {
        let groups = "4:memory:/jobs/7\n1:name=systemd:/\n0::/app.slice/web.service\n";
        for path in [
            "/jobs",
            "/jobs/",
            "/jobs/7",
            "/app.slice",
            "/app.slice/web.service",
            "/",
            "",
        ] {
            assert!(is_below(groups, path), "{path}");
        }
        for path in [
            "/job",
            "/jobs/8",
            "/jobs/7/1",
            "/web.service",
            "/app.slice/web",
        ] {
            assert!(!is_below(groups, path), "{path}");
        }
    }

    #[test]
    fn the_groups_of_this_process() {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        assert!(lines(&own).all(|line| line.path.starts_with('/')), "{own}");
        assert_eq!(lines(&own).count(), own.lines().count());
        assert!(Hierarchies::read().is_ok());
    }
}
