//! With the capabilities that are needed on this kernel everything works; without any one of them the agent
//! says which, and how to give it.

use std::fs;
use std::process::Stdio;

use rustix::thread::CapabilitySet;

use crate::golden::{self, Column};
use crate::harness::{
    Agent, End, Lab, PYTHON, Run, argv, bare, is_alone, limit, seconds, wait_for,
};
use crate::proc::{half_of, status};

/// What the agent may need somewhere.
const KNOWN: [(&str, CapabilitySet); 10] = [
    ("CAP_BPF", CapabilitySet::BPF),
    ("CAP_PERFMON", CapabilitySet::PERFMON),
    ("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE),
    ("CAP_DAC_READ_SEARCH", CapabilitySet::DAC_READ_SEARCH),
    ("CAP_CHECKPOINT_RESTORE", CapabilitySet::CHECKPOINT_RESTORE),
    ("CAP_SETUID", CapabilitySet::SETUID),
    ("CAP_SETGID", CapabilitySet::SETGID),
    ("CAP_SETPCAP", CapabilitySet::SETPCAP),
    ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
    ("CAP_SYS_RESOURCE", CapabilitySet::SYS_RESOURCE),
];

const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";

/// What `CAP_SYS_ADMIN` includes: where it is needed, these are not.
const INCLUDED: [&str; 3] = ["CAP_BPF", "CAP_PERFMON", "CAP_CHECKPOINT_RESTORE"];

fn sets(names: &[&str]) -> CapabilitySet {
    let known = KNOWN.iter().filter(|(name, _)| names.contains(name));
    known.map(|(_, one)| *one).collect()
}

/// The names that the doctor's line about privileges holds, and whether the line is a failure.
fn missing(lab: &Lab, held: CapabilitySet) -> Vec<&'static str> {
    let mut command = lab.command(argv![Agent::path(), "doctor"]);
    limit(&mut command, held);
    let doctor = lab.spawn(command, "doctor");
    doctor.wait(seconds(30));
    let said = doctor.out();
    let mut lines = said
        .lines()
        .skip_while(|line| !line.contains(" privileges "));
    let line = lines.next().unwrap_or_else(|| panic!("{said}"));
    // Not in what they are for.
    let names = KNOWN.iter().map(|(name, _)| *name);
    let missing: Vec<_> = names
        .filter(|name| line.contains(&format!("no {name} ")))
        .collect();
    assert_eq!(line.starts_with("FAILED"), !missing.is_empty(), "{said}");
    let way_out = lines.next().unwrap_or_default();
    for name in &missing {
        let short = name.trim_start_matches("CAP_");
        assert!(way_out.contains(&format!("--cap-add={short}")), "{said}");
    }
    missing
}

/// Watches a process of another user, which makes requests all the time. Natively it has a libssl of its own.
struct Stranger<'a> {
    lab: &'a Lab,
    pid: u32,
    _process: crate::harness::Proc,
}

impl<'a> Stranger<'a> {
    fn start(lab: &'a Lab, port: u16) -> Self {
        let script = "
import socket, ssl, sys, time
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
end = time.time() + float(sys.argv[2])
while time.time() < end:
    with socket.create_connection(('127.0.0.1', int(sys.argv[1]))) as plain, context.wrap_socket(plain) as tls:
        tls.write(b'GET /bytes/10 HTTP/1.1\\r\\n\\r\\n')
        tls.read(100)
    time.sleep(0.2)
";
        let time = seconds(60).as_secs().to_string();
        let mut command = lab.command(argv![PYTHON, "-c", script, port.to_string(), time]);
        command
            .env("LD_LIBRARY_PATH", lab.private_libssl("private"))
            .stdin(Stdio::null());
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
        let process = lab.spawn(command, "stranger");
        Self {
            lab,
            pid: process.pid(),
            _process: process,
        }
    }

    /// Watched with these capabilities, until it was seen or the agent has ended.
    fn watch(&self, held: CapabilitySet) -> Run {
        let agent = self.lab.quiet_agent().capabilities(held);
        let running = agent.watch_without_coverage(self.pid);
        wait_for("data, or the agent's end", seconds(20), || {
            let is_seen = running.records().kind("data").next().is_some();
            (is_seen || running.process.ended().is_some()).then_some(())
        });
        if running.process.ended().is_none() {
            running.process.signal(libc::SIGTERM);
        }
        let run = running.finish(seconds(20));
        fs::remove_file(self.lab.path("records.ndjson")).ok();
        run
    }
}

/// Of root's rights the privileged half keeps those that the doctor asks for, and the three that are of use.
#[test]
fn half_keeps_what_it_needs() {
    let Some(lab) = Lab::new("half_keeps_what_it_needs") else {
        return;
    };
    if bare() {
        return;
    }
    let mut needed = missing(&lab, CapabilitySet::empty());
    needed.extend(missing(&lab, sets(&needed)));
    let pipelines = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETPCAP;
    let of_use = CapabilitySet::SYS_NICE | CapabilitySet::LEASE | CapabilitySet::KILL;
    // Before 5.11, and needed no more once the limit is raised.
    let used_up = CapabilitySet::SYS_RESOURCE;
    let expected = (sets(&needed) - pipelines - used_up) | of_use;

    let client = lab.spawn(lab.command(argv!["sleep", "60"]), "sleep");
    let run = lab.quiet_agent().watch_without_coverage(client.pid());
    let half = wait_for("the half", seconds(10), || half_of(run.process.pid()));
    // It gives up what it may have last: before that it tries what it can do with less.
    for field in ["CapPrm", "CapEff"] {
        let held = wait_for("fewer rights", seconds(10), || {
            let held = u64::from_str_radix(&status(half, field)?, 16).ok()?;
            let held = CapabilitySet::from_bits_retain(held);
            (!held.contains(CapabilitySet::SETUID)).then_some(held)
        });
        assert_eq!(held, expected, "{field}");
    }
    run.process.signal(libc::SIGTERM);
    run.finish(seconds(20)).success();
    client.signal(libc::SIGKILL);
}

#[test]
fn golden_capabilities() {
    let Some(lab) = Lab::new("golden_capabilities") else {
        return;
    };
    if bare() {
        return;
    }
    // A kernel of Debian asks for CAP_SYS_ADMIN above 2, which is its default: the doctor says so. What is
    // measured is the kernel's own need.
    if is_alone() {
        let lowered = fs::write(PARANOID, "2");
        lowered.unwrap();
    }
    // Found out in two steps: what the doctor misses of nothing, which can't try what the kernel asks
    // beyond that; and what it misses then.
    let mut needed = missing(&lab, CapabilitySet::empty());
    needed.extend(missing(&lab, sets(&needed)));
    if needed.contains(&"CAP_SYS_ADMIN") {
        needed.retain(|name| !INCLUDED.contains(name));
    }
    let needs_admin = needed.contains(&"CAP_SYS_ADMIN");
    let word = |name: &&str| (name.to_string(), "needed".to_owned());
    let measured: Column = needed.iter().map(word).collect();
    if let Some(expected) = golden::expected("capabilities", &measured) {
        let differences = golden::differences(&expected, &measured, |_, _| false);
        assert!(
            differences.is_empty(),
            "{differences}cargo xtask bless renews the table"
        );
    }

    let server = lab.server(&[]);
    let stranger = Stranger::start(&lab, server.port);
    let all = sets(&needed);
    assert_eq!(missing(&lab, all), [] as [&str; 0]);
    let run = stranger.watch(all);
    assert_eq!(run.end, End::Code(0), "{}", run.process.err());
    // What the kernel can't do is said with all capabilities, too.
    let said = run.process.err();
    let is_limit = |line: &str| line.starts_with("vortex-agent:  WARN ");
    assert!(said.lines().all(is_limit), "{said}");
    run.records().check_ledger().unwrap();
    for name in needed {
        // It is what these leave open that is asked for.
        let instead = if name == "CAP_SYS_ADMIN" {
            sets(&INCLUDED)
        } else {
            CapabilitySet::empty()
        };
        let rest = (all | instead) - sets(&[name]);
        let said = missing(&lab, rest);
        assert!(
            said.contains(&name),
            "without {name} the doctor misses {said:?}"
        );
        let run = stranger.watch(rest);
        let said = run.process.err();
        assert_eq!(run.end, End::Code(1), "without {name}: {said}");
        assert_eq!(said.lines().count(), 1, "without {name}: {said}");
        assert!(said.contains(name), "without {name}: {said}");
    }
    // All kernels of the virtual machines are Debian's.
    if is_alone() {
        fs::write(PARANOID, "3").unwrap();
        assert_eq!(
            missing(&lab, all),
            if needs_admin {
                vec![]
            } else {
                vec!["CAP_SYS_ADMIN"]
            }
        );
        if !needs_admin {
            let run = stranger.watch(all);
            let said = run.process.err();
            assert_eq!(run.end, End::Code(1), "{said}");
            assert!(
                said.contains("CAP_SYS_ADMIN") && said.contains("perf_event_paranoid"),
                "{said}"
            );
        }
    }
}
