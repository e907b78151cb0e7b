//! The agent under measurement: started, watched from outside, stopped, and its books read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::ground::{Ground, command};
use super::load::Owned;
use super::records::{self, Stats};

const START_LIMIT: Duration = Duration::from_secs(10);
/// The privileged half closes its links after the end, a tenth of a second each: here of up to a hundred files.
const END_LIMIT: Duration = Duration::from_secs(60);

/// How to run it.
#[derive(Clone, Copy, Default)]
pub(super) struct Setup {
    /// Plaintext to the file, instead of the ledger alone.
    pub(super) data: bool,
    /// Instead of the default ring.
    pub(super) ring_mib: Option<u64>,
}

pub(super) struct Agent {
    child: Owned,
    program: PathBuf,
    pub(super) records: PathBuf,
}

impl Agent {
    /// Returns once the library of each of `pids` is probed.
    pub(super) fn watch(
        ground: &Ground,
        program: &Path,
        pids: &[u32],
        setup: Setup,
    ) -> Result<Agent> {
        let filters = pids
            .iter()
            .flat_map(|pid| ["--pid".to_owned(), pid.to_string()]);
        let mut agent = Agent::spawn(ground, program, setup, filters.collect())?;
        let wanted: BTreeSet<u64> = pids.iter().map(|&pid| pid.into()).collect();
        let start = Instant::now();
        while !wanted.is_subset(&records::probed(&agent.records)) {
            ensure!(
                start.elapsed() < START_LIMIT,
                "no coverage record says that {wanted:?} are probed"
            );
            if let Some(status) = agent.child.0.try_wait()? {
                bail!("the agent ended with {status} before it had probed {wanted:?}");
            }
            sleep(Duration::from_millis(5));
        }
        Ok(agent)
    }

    pub(super) fn spawn(
        ground: &Ground,
        program: &Path,
        setup: Setup,
        rest: Vec<String>,
    ) -> Result<Agent> {
        let records = ground.records();
        let _ = fs::remove_file(&records);
        let child = Agent::command(ground, program, setup, &records)
            .args(rest)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Agent {
            child: Owned(child),
            program: fs::canonicalize(program)?,
            records,
        })
    }

    fn command(ground: &Ground, program: &Path, setup: Setup, records: &Path) -> Command {
        let mut command = command(program, ground.agent_cpu());
        command
            .args(["run", "--output", "json", "--stats-interval", "1s", "-o"])
            .arg(records);
        match setup.data {
            true => command.args(["--emit", "coverage,stats,gap,data", "--content", "full"]),
            false => command.args(["--emit", "coverage,stats"]),
        };
        if let Some(mib) = setup.ring_mib {
            command.arg("--ring-size").arg((mib << 20).to_string());
        }
        command
    }

    /// Ends it, waits until its probes are gone, and returns what it says about the run.
    pub(super) fn stop(mut self) -> Result<Stats> {
        let family = self.family()?;
        self.signal(libc::SIGTERM)?;
        self.wait_for_end(&family)?;
        records::last_stats(&self.records)
    }

    /// `family`: from before the end began. The privileged half detaches after the other has gone.
    pub(super) fn wait_for_end(&mut self, family: &[u32]) -> Result<()> {
        let start = Instant::now();
        let status = loop {
            match self.child.0.try_wait()? {
                Some(status) => break status,
                None if start.elapsed() > END_LIMIT => {
                    bail!("the agent hasn't ended within {END_LIMIT:?}")
                }
                None => sleep(Duration::from_millis(2)),
            }
        };
        ensure!(status.success(), "the agent ended with {status}");
        while family.iter().any(|&pid| is_running(pid)) {
            ensure!(
                start.elapsed() < END_LIMIT,
                "the privileged half hasn't detached within {END_LIMIT:?}"
            );
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The reader of the ring sleeps until `resume`; the privileged half doesn't.
    pub(super) fn pause(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    pub(super) fn resume(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    fn signal(&self, signal: libc::c_int) -> Result<()> {
        // SAFETY: kill takes two integers. The pid is ours: the child isn't reaped while `self` lives.
        let result = unsafe { libc::kill(self.child.0.id() as libc::pid_t, signal) };
        if result < 0 {
            return Err(std::io::Error::last_os_error()).context("sending a signal to the agent");
        }
        Ok(())
    }

    pub(super) fn family(&self) -> Result<Vec<u32>> {
        family(self.child.0.id(), &self.program)
    }

    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        // SAFETY: sysconf takes an integer and touches no memory of ours.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        let used: u64 = self.family()?.into_iter().filter_map(cpu_ticks).sum();
        Ok(used as f64 / ticks)
    }

    /// How often a thread of it lost its CPU to another, its own included: where a loss may come from.
    pub(super) fn preemptions(&self) -> Result<u64> {
        Ok(self.family()?.into_iter().map(preemptions).sum())
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        let mut memory = Memory::default();
        let mut maps = BTreeMap::new();
        for pid in self.family()? {
            memory.resident += resident(pid)?;
            memory.processes += 1;
            maps.extend(bpf_maps(pid)?);
        }
        memory.maps = maps.values().sum();
        Ok(memory)
    }
}

/// Those that descend from `root` and run `program`: both halves and their helpers; never none of them, or what is
/// summed over them would look cheap.
pub(super) fn family(root: u32, program: &Path) -> Result<Vec<u32>> {
    let parents = parents();
    let descends = |mut pid: u32| {
        while let Some(&parent) = parents.get(&pid) {
            if pid == root {
                return true;
            }
            pid = parent;
        }
        false
    };
    let family: Vec<u32> = parents
        .keys()
        .copied()
        .filter(|&pid| descends(pid))
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program))
        .collect();
    ensure!(!family.is_empty(), "no process runs {}", program.display());
    Ok(family)
}

/// In bytes. A map that is also mapped is counted once, as a map.
#[derive(Clone, Copy, Default)]
pub(super) struct Memory {
    pub(super) processes: usize,
    pub(super) resident: u64,
    pub(super) maps: u64,
}

/// Fields of /proc/PID/stat behind the name, which may contain anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

pub(super) fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields[0] != "Z" && fields[0] != "X")
}

fn parents() -> BTreeMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?)))
        .collect()
}

fn cpu_ticks(pid: u32) -> Option<u64> {
    let fields = stat(pid)?;
    let [user, system] = [11, 12].map(|i| fields.get(i).and_then(|f| f.parse::<u64>().ok()));
    Some(user? + system?)
}

fn preemptions(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    threads
        .filter_map(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).ok()?;
            let count = status
                .lines()
                .find_map(|l| l.strip_prefix("nonvoluntary_ctxt_switches:"))?;
            count.trim().parse::<u64>().ok()
        })
        .sum()
}

/// Proportional share of everything resident but mapped BPF maps.
fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut sum = 0;
    let mut is_map = false;
    for line in text.lines() {
        if line
            .split_whitespace()
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            is_map = line.contains("bpf-map") || line.contains("bpf_map");
        } else if let Some(kib) = line.strip_prefix("Pss:").filter(|_| !is_map) {
            sum += 1024 * kib.trim().trim_end_matches(" kB").parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Kernel memory of each BPF map that the process holds, by the map's id.
fn bpf_maps(pid: u32) -> Result<BTreeMap<u64, u64>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines()
                .find_map(|l| l.strip_prefix(name))
                .and_then(|v| v.trim().parse().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps)
}
