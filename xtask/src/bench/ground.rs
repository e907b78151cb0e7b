//! What every measurement stands on: private copies of the libraries, the load generator, the CPUs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const PREFIX: &str = "vortex-bench-";

pub(super) struct Ground {
    /// Programs and libraries.
    scratch: Scratch,
    /// The agent's output: on tmpfs, so the disk is not what we measure.
    memory: Scratch,
    pub(super) program: PathBuf,
    cpus: Option<Cpus>,
    /// `libssl.so.3` and what it needs, as the system or the caller has it.
    libraries: Vec<PathBuf>,
}

/// In the syntax of `taskset`. One each, so that only the probes are between the load and its times.
#[derive(Clone)]
pub(super) struct Cpus {
    server: String,
    load: String,
    agent: String,
}

impl Ground {
    /// `libraries`: a directory with another libssl and libcrypto than the system's.
    pub(super) fn prepare(
        workspace: &Path,
        libraries: Option<&Path>,
        agent_cpus: &str,
    ) -> Result<Ground> {
        let scratch = Scratch::new(&std::env::temp_dir())?;
        let memory = Scratch::new(Path::new("/dev/shm"))?;
        let program = scratch.path().join("load");
        compile(&workspace.join("tests/programs/load.c"), &program, &[])?;
        let libraries = linked_libraries(&program, libraries)?;
        Ok(Ground {
            scratch,
            memory,
            program,
            cpus: choose_cpus(agent_cpus),
            libraries,
        })
    }

    /// A directory with its own copies: a uprobe is on an inode, and these inodes belong to nobody else.
    pub(super) fn copy_libraries(&self, name: &str) -> Result<PathBuf> {
        let directory = self.scratch.path().join(name);
        fs::create_dir_all(&directory)?;
        for library in &self.libraries {
            fs::copy(
                library,
                directory.join(library.file_name().unwrap_or_default()),
            )
            .with_context(|| format!("copying {}", library.display()))?;
        }
        Ok(directory)
    }

    pub(super) fn libssl(&self, directory: &Path) -> Result<PathBuf> {
        self.libraries
            .iter()
            .filter_map(|l| l.file_name())
            .find(|name| name.to_string_lossy().starts_with("libssl"))
            .map(|name| directory.join(name))
            .context("the load generator isn't linked to libssl")
    }

    /// For files of this run.
    pub(super) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The agent's output; each agent starts it anew.
    pub(super) fn records(&self) -> PathBuf {
        self.memory.path().join("records.ndjson")
    }

    pub(super) fn pinning(&self) -> String {
        match &self.cpus {
            Some(Cpus { load, agent, .. }) => format!("load on CPU {load}, agent on {agent}"),
            None => "not pinned: fewer than 4 CPUs, or no taskset".to_owned(),
        }
    }

    pub(super) fn load_cpu(&self) -> Option<&str> {
        self.cpus.as_ref().map(|c| c.load.as_str())
    }

    pub(super) fn agent_cpu(&self) -> Option<&str> {
        self.cpus.as_ref().map(|c| c.agent.as_str())
    }

    pub(super) fn server_cpu(&self) -> Option<&str> {
        self.cpus.as_ref().map(|c| c.server.as_str())
    }
}

/// `program`, on a CPU of its own if there are enough of them. `taskset` becomes the program: the pid is the program's.
pub(super) fn command(program: impl AsRef<OsStr>, cpu: Option<&str>) -> Command {
    let Some(cpu) = cpu else {
        return Command::new(program);
    };
    let mut command = Command::new("taskset");
    command.arg("-c").arg(cpu).arg(program);
    command
}

fn choose_cpus(agent: &str) -> Option<Cpus> {
    let enough = std::thread::available_parallelism().is_ok_and(|n| n.get() >= 4);
    let taskset = Command::new("taskset")
        .arg("-V")
        .output()
        .is_ok_and(|o| o.status.success());
    let cpus = Cpus {
        server: "1".to_owned(),
        load: "2".to_owned(),
        agent: agent.to_owned(),
    };
    (enough && taskset).then_some(cpus)
}

pub(super) fn compile(source: &Path, program: &Path, options: &[&str]) -> Result<()> {
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra"])
        .args(options)
        .arg("-o")
        .args([program, source])
        .args(["-Wl,--as-needed", "-lssl", "-lcrypto"])
        .status()
        .context("running cc")?;
    ensure!(
        status.success(),
        "cc failed: the load generator needs OpenSSL 3 and its headers (Debian: libssl-dev)"
    );
    Ok(())
}

pub(super) fn linked_libraries(program: &Path, instead: Option<&Path>) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("running ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let linked: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split_once(" => ")?.1.split(' ').next())
        .map(PathBuf::from)
        .filter(|p| {
            ["libssl", "libcrypto"].iter().any(|n| {
                p.file_name()
                    .is_some_and(|f| f.to_string_lossy().starts_with(n))
            })
        })
        .map(|p| instead.map_or(p.clone(), |d| d.join(p.file_name().unwrap_or_default())))
        .collect();
    ensure!(
        linked.len() == 2,
        "expected libssl and libcrypto among the load generator's libraries: {linked:?}"
    );
    Ok(linked)
}

/// A directory of this run. The next run removes what a killed one left.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(parent: &Path) -> Result<Scratch> {
        sweep(parent);
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Scratch(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sweep(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|n| n.strip_prefix(PREFIX))
            .and_then(|p| p.parse::<u32>().ok());
        if pid.is_some_and(|p| !Path::new(&format!("/proc/{p}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
