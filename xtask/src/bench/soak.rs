//! `cargo xtask bench soak`: months in minutes. A daemon watches one control group, in which processes, containers,
//! libraries and connections come and go; what it keeps must not grow.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::agent::{family, is_running};
use super::ground::{Scratch, compile, linked_libraries};
use super::load::Owned;
use super::maps::{self, Map};
use super::records::Stats;
use super::report::Spread;

/// What has to come and go in ten minutes.
const THINGS: f64 = 100_000.0;
const START_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(60);
/// Between the driver's end and the last look: files are let go 2 s after their last mapping, closed connections
/// are forgotten after 3 s.
const SETTLE: Duration = Duration::from_secs(15);
/// Until so many connections have come what has a fixed number of places still fills: the ends of 28,000 sockets are
/// the most.
const WARM: u64 = 70_000;
/// What may be more in the last quarter than in the second, whichever is larger.
const MEMORY_KIB: f64 = 4096.0;
const MEMORY_SHARE: f64 = 0.1;
const DESCRIPTORS: f64 = 8.0;
const THREADS: f64 = 4.0;
/// What may be left in a map after the load: of those who are in the group still, none.
const ENTRIES: f64 = 16.0;

pub(super) fn main(args: &[&str]) -> Result<()> {
    let mut minutes: f64 = 10.0;
    let mut agent = None;
    for option in args.chunks(2) {
        match option {
            ["--minutes", value] => minutes = value.parse().context("--minutes")?,
            ["--agent", file] => agent = Some(PathBuf::from(file)),
            _ => bail!("not understood: bench soak {}", args.join(" ")),
        }
    }
    ensure!(
        (0.2..=1440.0).contains(&minutes),
        "--minutes from 0.2 to 1440"
    );
    // SAFETY: geteuid takes nothing and can't fail.
    let user = unsafe { libc::geteuid() };
    ensure!(
        user == 0,
        "probes need root: sudo -E cargo xtask bench soak"
    );
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask outside of a workspace")?;
    let program = match agent {
        Some(file) => file,
        None => super::build_agent(workspace)?,
    };
    let ground = Ground::prepare(workspace)?;
    let mut daemon = Daemon::start(&ground, &program)?;
    let mut watch = Watch::begin(&daemon)?;
    let came = drive(&ground, &mut daemon, &mut watch, minutes)?;
    sleep(SETTLE);
    watch.look()?;
    let said = daemon.stop()?;
    let rotated = ground.check_rotated()?;
    conclude(&watch, &came, &said, rotated, minutes)
}

/// Programs, libraries and a control group of this run.
struct Ground {
    scratch: Scratch,
    group: Group,
}

/// A control group that is named as a container's, so that the daemon is told to watch that and what is named alike,
/// and looks at nobody else on the machine.
struct Group {
    directory: PathBuf,
    /// With which the ids of all containers in it begin.
    id: String,
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever is killed takes a moment to be gone.
        for _ in 0..100 {
            if remove(&self.directory) {
                return;
            }
            sleep(Duration::from_millis(20));
        }
    }
}

/// A group and those in it, if nobody is there.
fn remove(group: &Path) -> bool {
    for inner in fs::read_dir(group).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(inner.path());
    }
    fs::remove_dir(group).is_ok()
}

impl Ground {
    fn prepare(workspace: &Path) -> Result<Ground> {
        let scratch = Scratch::new(&std::env::temp_dir())?;
        let programs = workspace.join("tests/programs");
        compile(&programs.join("soak.c"), &scratch.path().join("soak"), &[])?;
        let talk = scratch.path().join("talk.so");
        let shared = ["-shared", "-fPIC", "-pthread"];
        compile(&programs.join("soak_talk.c"), &talk, &shared)?;
        let libraries = scratch.path().join("shared");
        fs::create_dir(&libraries)?;
        for library in linked_libraries(&talk, None)? {
            let name = library.file_name().context("a library without a name")?;
            fs::copy(&library, libraries.join(name))?;
        }
        let group = Group::new()?;
        Ok(Ground { scratch, group })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// So far: the first of the driver's counts, once it has begun.
    fn connections(&self) -> u64 {
        let counts = fs::read(self.path("counts")).unwrap_or_default();
        counts
            .first_chunk()
            .map_or(0, |first| u64::from_ne_bytes(*first))
    }

    /// Old and new files of the output that rotates: so many lines, each of them a record.
    fn check_rotated(&self) -> Result<usize> {
        let mut lines = 0;
        for entry in fs::read_dir(self.path("rotated"))? {
            let path = entry?.path();
            for line in BufReader::new(File::open(&path)?).lines() {
                serde_json::from_str::<Value>(&line?)
                    .with_context(|| format!("a line of {} isn't a record", path.display()))?;
                lines += 1;
            }
        }
        Ok(lines)
    }
}

impl Group {
    /// In version 2 if it is mounted.
    fn new() -> Result<Group> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let of_kind = |kind: &str| {
            mounts.lines().find_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (path, this) = (fields.next()?, fields.next()?);
                // A group of `cpuset` takes nobody before it has processors.
                (this == kind && !path.ends_with("cpuset")).then(|| PathBuf::from(path))
            })
        };
        let mount = of_kind("cgroup2").or_else(|| of_kind("cgroup"));
        let mount = mount.context("no hierarchy of control groups is mounted")?;
        let id = format!("50a450a4{:08x}", std::process::id());
        let directory = mount.join(format!("docker-{id}{:048}.scope", 0));
        fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
        Ok(Group { directory, id })
    }
}

/// The agent as a service, with everything that a service has: files that rotate, and a page of metrics.
struct Daemon {
    child: Owned,
    program: PathBuf,
    records: JoinHandle<Result<Said>>,
}

/// What it wrote.
#[derive(Default)]
struct Said {
    kinds: BTreeMap<String, u64>,
    stats: Option<Value>,
}

impl Daemon {
    fn start(ground: &Ground, program: &Path) -> Result<Daemon> {
        let rotated = ground.path("rotated");
        fs::create_dir(&rotated)?;
        let config = ground.path("config.toml");
        let socket = ground.path("run/agent.sock");
        // A port that was free a moment ago.
        let page = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let text = format!(
            "container = [{:?}]\nstats-interval = \"1s\"\n\
             [[sink]]\nname = \"lines\"\ntype = \"stdout\"\noutput = \"json\"\n\
             [[sink]]\nname = \"rotated\"\ntype = \"file\"\npath = {:?}\n\
             rotate = {{ size = \"4MiB\", keep = 3 }}\n\
             [[sink]]\nname = \"page\"\ntype = \"prometheus\"\nlisten = \"{page}\"\n\
             [daemon]\nsocket = {socket:?}\n",
            ground.group.id,
            rotated.join("records.ndjson"),
        );
        fs::write(&config, text)?;
        let child = Command::new(program)
            .args(["daemon", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut child = Owned(child);
        let stdout = child.0.stdout.take().context("stdout of the daemon")?;
        let mut daemon = Daemon {
            child,
            program: fs::canonicalize(program)?,
            records: thread::spawn(move || read(stdout)),
        };
        daemon.wait_until_ready(&socket)?;
        Ok(daemon)
    }

    fn wait_until_ready(&mut self, socket: &Path) -> Result<()> {
        let start = Instant::now();
        loop {
            let health = Command::new(&self.program)
                .args(["health", "--socket"])
                .arg(socket)
                .output()?;
            if health.status.success() {
                return Ok(());
            }
            if let Some(status) = self.child.0.try_wait()? {
                bail!("the daemon ended with {status} before it was ready");
            }
            ensure!(
                start.elapsed() < START_LIMIT,
                "the daemon isn't ready within {START_LIMIT:?}"
            );
            sleep(Duration::from_millis(100));
        }
    }

    fn family(&self) -> Result<Vec<u32>> {
        family(self.child.0.id(), &self.program)
    }

    /// Its last words.
    fn stop(mut self) -> Result<Said> {
        let family = self.family()?;
        // SAFETY: kill takes two integers. The pid is ours: the child isn't reaped before.
        let result = unsafe { libc::kill(self.child.0.id() as libc::pid_t, libc::SIGTERM) };
        ensure!(result == 0, "stopping the daemon failed");
        let start = Instant::now();
        let status = wait(&mut self.child.0, END_LIMIT).context("the daemon")?;
        ensure!(status.success(), "the daemon ended with {status}");
        while family.iter().any(|&pid| is_running(pid)) {
            ensure!(
                start.elapsed() < END_LIMIT,
                "a process of the daemon lives {END_LIMIT:?} after its end"
            );
            sleep(Duration::from_millis(10));
        }
        let Ok(said) = self.records.join() else {
            bail!("reading the records panicked");
        };
        said
    }
}

fn wait(child: &mut Child, limit: Duration) -> Result<std::process::ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(start.elapsed() < limit, "hasn't ended within {limit:?}");
        sleep(Duration::from_millis(10));
    }
}

/// Every line has to be a record.
fn read(stdout: impl Read) -> Result<Said> {
    let mut said = Said::default();
    for line in BufReader::with_capacity(1 << 20, stdout).lines() {
        let line = line?;
        let record: Value = serde_json::from_str(&line)
            .with_context(|| format!("a line of the output isn't a record: {line:.200}"))?;
        let kind = record["kind"].as_str().context("a record without a kind")?;
        *said.kinds.entry(kind.to_owned()).or_default() += 1;
        if kind == "stats" {
            said.stats = Some(record);
        }
    }
    Ok(said)
}

/// What has come and gone, as the driver says.
#[derive(Deserialize, Debug)]
struct Came {
    connections: u64,
    processes: u64,
    execs: u64,
    killed: u64,
    threads: u64,
    libraries: u64,
    groups: u64,
}

fn drive(ground: &Ground, daemon: &mut Daemon, watch: &mut Watch, minutes: f64) -> Result<Came> {
    let seconds = (minutes * 60.0).round().max(1.0);
    // Behind the agent in the queue for the processors: what it can't keep up with is lost, which is another bench.
    let script = "echo 0 > \"$1/cgroup.procs\"; exec nice -n 5 \"$2/soak\" drive \"$3\" \"$2\" \"$1\" \"$4\"";
    let mut child = Command::new("sh")
        .args(["-c", script, "sh"])
        .args([ground.group.directory.as_path(), ground.scratch.path()])
        .args([&format!("{seconds}"), &ground.group.id])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the driver")?;
    let mut stdout = child.stdout.take().context("stdout of the driver")?;
    let mut child = Owned(child);
    let limit = Duration::from_secs_f64(seconds + 60.0);
    let start = Instant::now();
    let status = loop {
        sleep(Duration::from_secs(1));
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        ensure!(start.elapsed() < limit, "the driver doesn't end");
        if let Some(status) = daemon.child.0.try_wait()? {
            bail!("the daemon ended with {status} under load");
        }
        watch.look()?;
        if watch.warm.is_none() && ground.connections() >= WARM {
            watch.warm = Some(watch.looks);
        }
    };
    ensure!(status.success(), "the driver ended with {status}");
    let mut text = String::new();
    stdout.read_to_string(&mut text)?;
    serde_json::from_str(&text).with_context(|| format!("the driver said {text:?}"))
}

/// What is measured of it, and when it is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Kib,
    Descriptors,
    Threads,
    Entries,
    /// Of a map that makes room by itself.
    EntriesAtMost,
}

#[derive(Default)]
struct Series {
    unit: Option<Unit>,
    values: Vec<f64>,
}

/// The processes of the daemon and its maps, looked at once a second.
struct Watch {
    processes: Vec<(String, u32)>,
    maps: Vec<Map>,
    series: BTreeMap<String, Series>,
    looks: usize,
    /// How many looks there were when everything that has a bound was full.
    warm: Option<usize>,
}

impl Watch {
    /// The first look is before the load.
    fn begin(daemon: &Daemon) -> Result<Watch> {
        let family = daemon.family()?;
        let maps = maps::hash_tables(&family)?;
        ensure!(!maps.is_empty(), "the daemon holds no BPF map");
        let mut watch = Watch {
            processes: family.iter().map(|&pid| (role(pid), pid)).collect(),
            maps,
            series: BTreeMap::new(),
            looks: 0,
            warm: None,
        };
        watch.look()?;
        Ok(watch)
    }

    fn look(&mut self) -> Result<()> {
        self.looks += 1;
        let mut add = |name: String, unit: Unit, value: u64| {
            let series = self.series.entry(name).or_default();
            series.unit = Some(unit);
            series.values.push(value as f64);
        };
        for (role, pid) in &self.processes {
            let gone = || format!("looking at {role}, process {pid}");
            let rollup =
                fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(gone)?;
            let kib = |field: &str| -> u64 {
                let mut lines = rollup.lines();
                let value = lines.find_map(|line| line.strip_prefix(field));
                let kib = value.and_then(|value| value.trim().strip_suffix(" kB"));
                kib.and_then(|kib| kib.parse().ok()).unwrap_or(0)
            };
            let count = |what: &str| -> Result<u64> {
                let directory = format!("/proc/{pid}/{what}");
                Ok(fs::read_dir(directory).with_context(gone)?.count() as u64)
            };
            let private = kib("Private_Clean:") + kib("Private_Dirty:");
            add(format!("{role}: resident"), Unit::Kib, kib("Rss:"));
            add(format!("{role}: private"), Unit::Kib, private);
            add(format!("{role}: fds"), Unit::Descriptors, count("fd")?);
            add(format!("{role}: threads"), Unit::Threads, count("task")?);
        }
        for map in &self.maps {
            let unit = match map.makes_room {
                true => Unit::EntriesAtMost,
                false => Unit::Entries,
            };
            add(format!("map {}", map.name), unit, map.entries()?);
        }
        Ok(())
    }
}

/// What the process was started as; those that it forks keep that name.
fn role(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let word = line.split(|&b| b == 0).nth(1).unwrap_or_default();
    format!("{} {pid}", String::from_utf8_lossy(word))
}

/// A row of the table.
struct Row {
    first: f64,
    /// Medians of the second and of the last quarter of the load; of the first and the last third of what is left of
    /// it, if getting warm took longer than the first quarter.
    second: f64,
    fourth: f64,
    last: f64,
}

impl Series {
    /// The first look was before the load, the last one after it.
    fn row(&self, warm: usize) -> Result<Row> {
        let [first, load @ .., last] = self.values.as_slice() else {
            bail!("it was looked at too seldom");
        };
        let warm = warm.max(load.len() / 4);
        let load = load.get(warm..).unwrap_or_default();
        let third = load.len() / 3;
        let median = |values: &[f64]| Some(Spread::of(values.to_vec())?.median);
        let medians = median(&load[..third]).zip(median(&load[load.len() - third..]));
        let (second, fourth) = medians.context("the load was too short")?;
        Ok(Row {
            first: *first,
            second,
            fourth,
            last: *last,
        })
    }
}

impl Row {
    fn is_flat(&self, unit: Unit) -> bool {
        let more = self.fourth - self.second;
        let left = self.last - self.first;
        match unit {
            Unit::Kib => more <= MEMORY_KIB.max(self.second * MEMORY_SHARE),
            Unit::Descriptors => more <= DESCRIPTORS && left <= DESCRIPTORS,
            Unit::Threads => more <= THREADS && left <= THREADS,
            Unit::Entries => left <= ENTRIES,
            Unit::EntriesAtMost => true,
        }
    }
}

fn conclude(watch: &Watch, came: &Came, said: &Said, rotated: usize, minutes: f64) -> Result<()> {
    let Came {
        connections,
        processes,
        execs,
        killed,
        threads,
        libraries,
        groups,
    } = came;
    println!(
        "{connections} connections, {processes} processes ({execs} execs, {killed} killed), {threads} threads, \
         {libraries} libraries, {groups} control groups"
    );
    println!(
        "records: {:?}, {rotated} lines in rotated files",
        said.kinds
    );
    println!(
        "\n{:<28} {:>9} {:>11} {:>11} {:>9}",
        "", "before", "2nd quarter", "4th quarter", "after"
    );
    let mut wrong = Vec::new();
    let warm = watch.warm.with_context(|| {
        format!("{connections} connections are too few to judge: {WARM} fill what has a bound")
    })?;
    for (name, series) in &watch.series {
        let row = series.row(warm)?;
        let unit = series.unit.context("a measure without a unit")?;
        let Row {
            first,
            second,
            fourth,
            last,
        } = row;
        let kib = if unit == Unit::Kib { " KiB" } else { "" };
        let verdict = match (row.is_flat(unit), unit) {
            (_, Unit::EntriesAtMost) => "makes room by itself",
            (true, _) => "flat",
            (false, _) => "GROWS",
        };
        println!(
            "{:<28} {first:>9} {second:>11} {fourth:>11} {last:>9}  {verdict}",
            format!("{name}{kib}")
        );
        if !row.is_flat(unit) {
            wrong.push(format!("{name} grows"));
        }
    }
    let stats = said.stats.as_ref().context("the agent wrote no stats")?;
    println!("\nledger: {}", stats["ledger"]);
    println!("sinks: {}", stats["sinks"]);
    if let Err(error) = Stats::deserialize(stats)?.ledger.balance() {
        wrong.push(format!("{error:#}"));
    }
    let things = connections + processes + libraries + groups;
    let wanted = (THINGS * minutes / 10.0).round();
    if (things as f64) < wanted {
        wrong.push(format!("{things} things came and went instead of {wanted}"));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    println!("\nPASS: {things} things came and went, nothing grew");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(second: f64, fourth: f64, last: f64) -> Row {
        Row {
            first: 10.0,
            second,
            fourth,
            last,
        }
    }

    #[test]
    fn what_grows_is_not_flat() {
        assert!(row(100.0, 4000.0, 4000.0).is_flat(Unit::Kib));
        assert!(!row(100.0, 5000.0, 5000.0).is_flat(Unit::Kib));
        assert!(row(100_000.0, 109_000.0, 0.0).is_flat(Unit::Kib));
        assert!(!row(100_000.0, 111_000.0, 0.0).is_flat(Unit::Kib));
        assert!(row(50.0, 58.0, 18.0).is_flat(Unit::Descriptors));
        assert!(!row(50.0, 59.0, 18.0).is_flat(Unit::Descriptors));
        assert!(!row(50.0, 50.0, 19.0).is_flat(Unit::Descriptors));
        assert!(row(5000.0, 9000.0, 26.0).is_flat(Unit::Entries));
        assert!(!row(50.0, 50.0, 27.0).is_flat(Unit::Entries));
    }

    #[test]
    fn quarters_are_of_the_load_alone() {
        let mut values = vec![1.0];
        for quarter in [7.0, 2.0, 9.0, 4.0] {
            values.extend([quarter; 5]);
        }
        values.push(3.0);
        let series = Series { unit: None, values };
        let all = |warm| {
            let row = series.row(warm).unwrap();
            [row.first, row.second, row.fourth, row.last]
        };
        assert_eq!(all(1), [1.0, 2.0, 4.0, 3.0]);
        assert_eq!(all(11), [1.0, 9.0, 4.0, 3.0]);
        assert!(series.row(20).is_err(), "nothing is left");
    }
}
