//! `vortex-agent doctor`: what works on this machine, what does not, and what to do about it.

mod process;
mod sandbox;

use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    iter,
    os::fd::AsFd as _,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, geteuid, kill_process},
    thread::no_new_privs,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    ahead::installed,
    cgroup::{Hierarchies, Layout},
    cli::Doctor,
    complain::complain,
    confine, escape,
    half::NO_PLAIN,
    locate::{Instruction, Point, Pread, Refusal, locate},
    namespace,
    probe::{danger, rights},
    redact,
    self_test::MARKER,
};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Works, with less.
    Limited,
    Failed,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    way_out: Option<String>,
}

fn ok(name: &'static str, detail: impl Into<String>) -> Check {
    Check {
        name,
        status: Status::Ok,
        detail: detail.into(),
        way_out: None,
    }
}

fn limited(name: &'static str, detail: impl Into<String>, way_out: impl Into<String>) -> Check {
    let way_out = Some(way_out.into());
    Check {
        name,
        status: Status::Limited,
        detail: detail.into(),
        way_out,
    }
}

fn failed(name: &'static str, detail: impl Into<String>, way_out: impl Into<String>) -> Check {
    Check {
        status: Status::Failed,
        ..limited(name, detail, way_out)
    }
}

pub fn doctor(arguments: &Doctor) -> ExitCode {
    let mut checks = vec![
        kernel(),
        uprobes(),
        types(),
        lockdown(),
        privileges(),
        perf(),
        namespace(),
        cgroups(),
    ];
    checks.extend(sandbox::checks());
    checks.extend(dangers());
    checks.extend(libraries());
    let (tested, features) = self_test();
    checks.extend(tested);
    checks.extend(kernel_features(&features));
    let mut about = Value::Null;
    if let Some(pid) = arguments.pid {
        let process::Findings {
            checks: found,
            facts,
        } = process::examine(pid);
        checks.extend(found);
        about = facts;
    }
    for check in &mut checks {
        check.detail = redact::line(&check.detail);
    }
    let is_healthy = checks.iter().all(|check| check.status != Status::Failed);
    let written = if arguments.json {
        json(&checks, &features, about, is_healthy)
    } else {
        text(&checks)
    };
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        complain(format!("write the report: {error}"));
        return ExitCode::FAILURE;
    }
    if is_healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn json(checks: &[Check], features: &Features, process: Value, is_healthy: bool) -> io::Result<()> {
    let mut report = serde_json::json!({
        "v": 1, "ok": is_healthy, "checks": checks, "features": features
    });
    if !process.is_null() {
        report["process"] = process;
    }
    let report = report.to_string();
    // serde_json leaves DEL, C1 and format controls as they are; details hold strangers' paths.
    let mut line = String::with_capacity(report.len() + 1);
    for c in report.chars() {
        if escape::is_control(c) {
            c.encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| line.push_str(&format!("\\u{unit:04x}")));
        } else {
            line.push(c);
        }
    }
    writeln!(io::stdout(), "{line}")
}

fn text(checks: &[Check]) -> io::Result<()> {
    let mut out = Vec::new();
    for check in checks {
        let mark = match check.status {
            Status::Ok => "ok",
            Status::Limited => "limited",
            Status::Failed => "FAILED",
        };
        escape::visible(
            &format!("{mark:8} {:11} {}", check.name, check.detail),
            &mut out,
        );
        out.push(b'\n');
        if let Some(way_out) = &check.way_out {
            escape::visible(&format!("{:20} → {way_out}", ""), &mut out);
            out.push(b'\n');
        }
    }
    io::stdout().write_all(&out)
}

fn kernel() -> Check {
    let uname = rustix::system::uname();
    let (release, machine) = (
        uname.release().to_string_lossy(),
        uname.machine().to_string_lossy(),
    );
    let detail = format!("Linux {release} on {machine}");
    if machine != "x86_64" {
        return failed(
            "kernel",
            detail,
            "Vortex knows the probe points of x86-64 only",
        );
    }
    ok("kernel", detail)
}

fn uprobes() -> Check {
    match fs::read_to_string("/sys/bus/event_source/devices/uprobe/type") {
        Ok(_) => ok("uprobes", "the kernel has them"),
        Err(error) => failed(
            "uprobes",
            format!("/sys/bus/event_source/devices/uprobe: {error}"),
            "a kernel with CONFIG_UPROBES (5.10 or later) and /sys mounted is needed",
        ),
    }
}

fn types() -> Check {
    match fs::File::open("/sys/kernel/btf/vmlinux") {
        Ok(_) => ok("types", "/sys/kernel/btf/vmlinux is there"),
        Err(error) => limited(
            "types",
            format!("/sys/kernel/btf/vmlinux: {error}"),
            "capture works; no addresses of connections, no --comm filter. A kernel with \
             CONFIG_DEBUG_INFO_BTF has them",
        ),
    }
}

fn lockdown() -> Check {
    let Ok(text) = fs::read_to_string("/sys/kernel/security/lockdown") else {
        return ok("lockdown", "off");
    };
    if text.contains("[confidentiality]") {
        return limited(
            "lockdown",
            "confidentiality",
            "programs that read kernel memory are refused: no addresses of connections, no --comm \
             filter. Boot with lockdown=integrity for all of it",
        );
    }
    ok("lockdown", text.trim().to_owned())
}

/// What this kernel is known to do wrong.
fn dangers() -> Vec<Check> {
    const NAME: &str = "dangers";
    let known = danger::known();
    if known.is_empty() {
        return vec![ok(NAME, "none are known of this kernel")];
    }
    let told = known.into_iter().map(|danger| match danger.is_deadly {
        true => failed(NAME, danger.what, danger.way_out),
        false => limited(NAME, danger.what, danger.way_out),
    });
    told.collect()
}

/// The rights of the half, by how it would be started.
fn privileges() -> Check {
    if !geteuid().is_root() {
        return match (no_new_privs(), on_path("sudo")) {
            (Ok(true), _) => failed(
                "privileges",
                "not root, and no_new_privs is set: sudo can't work here",
                "run vortex-agent as root, outside of this sandbox or container",
            ),
            (_, false) => failed(
                "privileges",
                "not root, and there is no sudo",
                "install sudo, or run vortex-agent as root",
            ),
            _ => ok(
                "privileges",
                "not root: the privileged half is started by sudo",
            ),
        };
    }
    let missing = rights::missing();
    let purposes = missing.iter().map(|right| (right.name, right.purpose));
    let own = confine::missing();
    let own = own
        .iter()
        .map(|name| (*name, "stop being root, in the half without privileges"));
    let missing: Vec<_> = purposes.chain(own).collect();
    if missing.is_empty() {
        return ok("privileges", "root, with what is needed");
    }
    let list = |one: fn(&(&str, &str)) -> String| missing.iter().map(one).collect::<Vec<_>>();
    let purposes = list(|(name, purpose)| format!("{name} (to {purpose})")).join(", no ");
    let names = list(|(name, _)| (*name).to_owned());
    let short = list(|(name, _)| name.trim_start_matches("CAP_").to_owned());
    failed(
        "privileges",
        format!("root, but no {purposes}{}", filtered()),
        format!(
            "docker and podman: {}; Kubernetes: securityContext.capabilities.add: [{}], and runAsUser: 0; \
             systemd: add {} to CapabilityBoundingSet=",
            short
                .iter()
                .map(|name| format!("--cap-add={name}"))
                .collect::<Vec<_>>()
                .join(" "),
            short.join(", "),
            names.join(" "),
        ),
    )
}

/// A seccomp filter looks the same as a missing right.
fn filtered() -> &'static str {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if status.lines().any(|line| line == "Seccomp:\t2") {
        return "; a seccomp filter is in force as well, which may refuse bpf() and perf_event_open()";
    }
    ""
}

fn on_path(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

fn perf() -> Check {
    match fs::read_to_string("/proc/sys/kernel/perf_event_paranoid") {
        Ok(level) => ok(
            "perf",
            format!("kernel.perf_event_paranoid is {}", level.trim()),
        ),
        Err(error) => failed(
            "perf",
            format!("/proc/sys/kernel/perf_event_paranoid: {error}"),
            "a kernel with CONFIG_PERF_EVENTS and /proc mounted is needed",
        ),
    }
}

fn namespace() -> Check {
    const NAME: &str = "namespace";
    if namespace::is_initial() {
        return ok(NAME, "the initial pid namespace");
    }
    if !namespace::has_own_proc() {
        return failed(NAME, namespace::FOREIGN_PROC, "mount -t proc proc /proc");
    }
    let way_out = "for the machine run vortex-agent on the host, or with `hostPID: true` (Kubernetes) or \
                   `--pid=host` (docker, podman)";
    limited(
        NAME,
        "a pid namespace of its own: commands and --pid only",
        way_out,
    )
}

/// Where `--cgroup` acts, and whether containers can be told from each other.
fn cgroups() -> Check {
    const NAME: &str = "cgroups";
    let hierarchies = match Hierarchies::read() {
        Ok(hierarchies) => hierarchies,
        Err(error) => {
            let way_out = "mount /proc";
            return limited(NAME, format!("/proc/self/mountinfo: {error}"), way_out);
        }
    };
    let by_members = "processes are noticed when they start, call exec, or within seconds";
    match hierarchies.layout() {
        Layout::Version2 => ok(
            NAME,
            "version 2: --cgroup filters in the kernel, from the first byte",
        ),
        Layout::Hybrid => ok(
            NAME,
            format!(
                "version 2 and version 1: --cgroup filters in the kernel for groups of version 2; in \
                 others {by_members}"
            ),
        ),
        Layout::Version1 => ok(NAME, format!("version 1: with --cgroup, {by_members}")),
        Layout::Nothing => limited(
            NAME,
            "no hierarchy is mounted",
            "--cgroup finds no group, --container works; mount /sys/fs/cgroup into this container",
        ),
    }
}

/// The TLS libraries that the loader knows: where they would be probed.
fn libraries() -> Vec<Check> {
    const NAME: &str = "library";
    let found: Vec<Check> = installed()
        .into_iter()
        .filter_map(|path| {
            let file = fs::File::open(&path).ok()?;
            let path = path.display();
            Some(match locate(&Pread(file.as_fd())) {
                Ok(found) => {
                    let points: Vec<String> = found.points.iter().map(point).collect();
                    ok(
                        NAME,
                        format!("{path}: {}: {}", found.library, points.join(", ")),
                    )
                }
                Err(Refusal::NoLibrary) => return None,
                Err(why) => {
                    let way_out = "programs that use it are listed as refused in coverage";
                    limited(NAME, format!("{path}: {why}"), way_out)
                }
            })
        })
        .collect();
    if found.is_empty() {
        let way_out = "programs with a library of their own are seen all the same";
        return vec![limited(
            NAME,
            "no TLS library among the system's libraries",
            way_out,
        )];
    }
    found
}

fn point(point: &Point) -> String {
    let instruction = match point.instruction {
        Instruction::Emulated => "emulated",
        Instruction::Stepped => "stepped",
    };
    format!("{} ({instruction})", point.function)
}

/// What the kernel can do for us, as it was tried in the self-test; empty where that failed.
type Features = Map<String, Value>;

fn kernel_features(features: &Features) -> Option<Check> {
    let how = |(what, how): (&String, &Value)| format!("{what} {}", how.as_str().unwrap_or("?"));
    let all: Vec<String> = features.iter().map(how).collect();
    (!all.is_empty()).then(|| ok("features", all.join(", ")))
}

/// One TLS call of our own, watched as anybody's would be: probes, ring, ledger and output.
fn self_test() -> (Vec<Check>, Features) {
    let mut features = Features::new();
    let mut plain = None;
    let check = watch_ourselves("self-test", &mut features, &mut plain);
    if let Ok(hierarchies) = Hierarchies::read() {
        let layout = hierarchies.layout().name();
        features.insert("cgroups".to_owned(), layout.into());
    }
    (iter::once(check).chain(plain).collect(), features)
}

/// Whether connections without TLS can be shown, and by what they are seen.
fn plain_connections(stats: &Value) -> Check {
    const NAME: &str = "plain";
    let limits = stats["limits"].as_array().into_iter().flatten();
    let mut limits = limits.filter_map(Value::as_str);
    match limits.find(|limit| limit.starts_with(NO_PLAIN)) {
        Some(why) => limited(
            NAME,
            why.to_owned(),
            "--plain does nothing here; all else works",
        ),
        None => {
            let how = stats["agent"]["features"]["sockets"].as_str();
            let how = how.unwrap_or("tracepoints");
            ok(NAME, format!("--plain works here, by {how}"))
        }
    }
}

fn watch_ourselves(
    name: &'static str,
    features: &mut Features,
    plain: &mut Option<Check>,
) -> Check {
    let started = Instant::now();
    // Nobody talks at that port: it is there to be looked for.
    let command = [
        "--plain=1",
        "--content=full",
        "--",
        "/proc/self/exe",
        "tls-self-test",
    ];
    let output = match watch(&command, Duration::from_secs(20), None) {
        Ok(output) => output,
        Err(error) => return failed(name, error.to_string(), "see the line above"),
    };
    let took = started.elapsed().as_millis();
    let seen = |direction: &str| {
        output.of("data").any(|record| {
            record["direction"] == direction && record["text"].as_str() == Some(MARKER)
        })
    };
    let Some(stats) = output.of("stats").last() else {
        let why = "run `vortex-agent doctor` as root, or see the reason";
        return failed(name, output.complaint(), why);
    };
    *plain = Some(plain_connections(stats));
    if let Some(why) = output
        .lines
        .iter()
        .find(|line| line.contains("no libssl on this machine"))
    {
        return limited(name, why.clone(), "install libssl3 to have it tested");
    }
    if !seen("sent") || !seen("received") {
        return failed(
            name,
            format!("a TLS call was made and not seen: {}", output.complaint()),
            "please report this, with `vortex-agent run -v -- curl https://…`",
        );
    }
    if let Some(Value::Object(found)) = stats["agent"].get("features") {
        features.extend(found.clone());
    }
    let instruction = output
        .of("coverage")
        .find_map(|record| record["instruction"].as_str().map(str::to_owned))
        .unwrap_or_default();
    let links = features.get("links").and_then(Value::as_str);
    let links = links.unwrap_or_default();
    let bytes = &stats["ledger"]["bytes"];
    let detail = format!(
        "a TLS call of our own was seen in {took} ms: {} bytes sent and received, {} lost; the probed \
         instructions are {instruction}, the links {links}",
        bytes["seen"],
        bytes["lost"]
            .as_object()
            .map_or(0, |lost| lost.values().filter_map(Value::as_u64).sum())
    );
    if instruction == "stepped" {
        return limited(
            name,
            detail,
            "each call costs about 10 µs more than with an emulated instruction: this build of the \
             library has none at its entry",
        );
    }
    if links != "session" {
        return limited(
            name,
            detail,
            "a program that switches stacks inside a TLS call can be killed (README): Linux 6.13 has \
             session links, by which it lives",
        );
    }
    ok(name, detail)
}

/// What a run of the agent said.
struct Output {
    records: Vec<Value>,
    /// Lines that are no records.
    lines: Vec<String>,
}

impl Output {
    fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.records
            .iter()
            .filter(move |record| record["kind"] == kind)
    }

    /// The agent's own words, without their prefix.
    fn complaint(&self) -> String {
        let line = self
            .lines
            .iter()
            .rev()
            .find_map(|line| line.strip_prefix("vortex-agent: "));
        line.unwrap_or("the agent said nothing").to_owned()
    }
}

/// Runs the agent itself with JSON on its stderr or stdout; ends it after `enough`, or kills it after
/// `limit`.
fn watch(arguments: &[&str], limit: Duration, enough: Option<Duration>) -> io::Result<Output> {
    // Not `/proc/self/exe`: sudo resolves it to itself.
    let mut command = Command::new(env::current_exe()?);
    command.args(["run", "--output", "json"]).args(arguments);
    let (reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn()?;
    // It holds the pipe's other end.
    drop(command);
    let pid = Pid::from_child(&child);
    let (sender, ended) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        let asked = enough.is_some_and(|enough| ended.recv_timeout(enough).is_err());
        if asked {
            let _ = kill_process(pid, Signal::TERM);
        }
        if ended.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    let mut text = String::new();
    let read = (&reader).take(1 << 20).read_to_string(&mut text);
    // Still our child: its pid is nobody else's before this.
    drop(sender);
    let _ = guard.join();
    child.wait()?;
    read?;
    let (mut records, mut lines) = (Vec::new(), Vec::new());
    for line in text.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(record) => records.push(record),
            Err(_) => lines.push(line.to_owned()),
        }
    }
    Ok(Output { records, lines })
}
