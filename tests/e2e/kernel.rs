//! Kernels that give less than others: each byte is there all the same, and what is missing is said.

use std::fs;

use crate::{
    harness::{Agent, Lab, argv, bare, random},
    records::Records,
};

const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// 100 kB each way through curl, exactly.
#[track_caller]
fn captured(lab: &Lab, agent: Agent<'_>, seed: u64) -> Records {
    let server = lab.server_named(
        ["server", "second", "third"][seed as usize],
        std::process::Command::new(crate::harness::PYTHON),
        &[],
    );
    let body = lab.file("body", random(100_003, seed));
    let data = format!("@{}", body.display());
    let url = server.url("/echo");
    let run = agent.run(argv![
        "curl",
        "-sk",
        "--http1.1",
        "-o",
        lab.path("echo"),
        "--data-binary",
        data,
        url
    ]);
    run.assert_exact(&server.client_truth());
    if bare() {
        return Records::default();
    }
    run.records()
}

/// What the agent says that it can't do here.
fn limits(records: &Records) -> String {
    records.last_stats().unwrap()["limits"].to_string()
}

#[track_caller]
fn assert_attribution(records: &Records, expected: &str) {
    for record in records.kind("data") {
        assert_eq!(
            record["connection"]["attribution"], expected,
            "{record:.400}"
        );
        let has_peer = record["network"]["peer"]["port"].is_u64();
        assert_eq!(has_peer, expected == "exact", "{record:.400}");
    }
}

/// A kernel that does not say how its structures look: no addresses, but every byte.
#[test]
fn without_its_types() {
    let Some(lab) = Lab::with("without_its_types", &["curl", "unshare"]) else {
        return;
    };
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let hidden = argv!["unshare", "-m", "sh", "-c", script, "sh"];
    let records = captured(&lab, lab.agent().before(hidden), 0);
    if bare() {
        return;
    }
    let limits = limits(&records);
    assert!(limits.contains("no kernel type information"), "{limits}");
    assert_attribution(&records, "none");
}

/// A processor that comes while the agent runs: what processes do on it is seen.
#[test]
#[ignore = "takes a processor away from everybody: in a virtual machine only, by `cargo xtask vm`"]
fn a_processor_that_comes() {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";
    let lab = Lab::alone("a_processor_that_comes");
    let server = lab.server_named(
        "server",
        std::process::Command::new(crate::harness::PYTHON),
        &[],
    );
    fs::write(ONLINE, "0").unwrap();
    // A second is the time in which the agent notices.
    let script = format!(
        "echo 1 > {ONLINE}; sleep 3; taskset -c 1 curl -sk -o {} --data-binary of-the-second {}",
        lab.path("echo").display(),
        server.url("/echo")
    );
    let run = lab.agent().run(argv!["sh", "-c", script]);
    run.assert_exact(&server.client_truth());
}

/// `integrity` takes nothing from the agent. `confidentiality` forbids to read the kernel's memory: no
/// addresses, but every byte. Nobody gets out of either again, so this is the last of all tests.
#[test]
#[ignore = "locks the kernel down for good: in a virtual machine only, by `cargo xtask vm`"]
fn locked_down() {
    let lab = Lab::alone("locked_down");
    let before = captured(&lab, lab.agent(), 0);
    assert_attribution(&before, "exact");

    fs::write(LOCKDOWN, "integrity").unwrap();
    let with_integrity = captured(&lab, lab.agent(), 1);
    assert_attribution(&with_integrity, "exact");
    assert_eq!(limits(&with_integrity), limits(&before));

    // With this only the kernel's lock asks for CAP_SYS_ADMIN, which the half gives up where nothing does.
    fs::write("/proc/sys/kernel/perf_event_paranoid", "2").unwrap();
    fs::write(LOCKDOWN, "confidentiality").unwrap();
    let level = fs::read_to_string(LOCKDOWN).unwrap();
    assert!(level.contains("[confidentiality]"), "{level}");
    let records = captured(&lab, lab.agent(), 2);
    let limits = limits(&records);
    assert!(limits.contains("lockdown"), "{limits}");
    assert_attribution(&records, "none");
}
