//! Filters: of two clients in one tree, one is wanted. The other must leave nothing but a count.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    harness::{Lab, PYTHON, argv, bare, skip},
    records::Records,
};

/// curl is asked for, Python talks, too.
fn two_clients(lab: &Lab, port: u16, before_curl: &str) -> String {
    let python = lab.program("http_client.py");
    format!(
        "{PYTHON} {} http.client {port} && {before_curl} curl -sk --http1.1 --data-binary wanted https://127.0.0.1:{port}/echo",
        python.display()
    )
}

/// Only curl's records came, and the others' calls were counted where `filter` says.
fn assert_only_curl(records: &Records) {
    let data: Vec<_> = records.kind("data").collect();
    assert!(!data.is_empty(), "nothing of curl: {}", records.digest());
    for record in data {
        assert_eq!(record["process"]["comm"], "curl", "{record:.300}");
    }
    let first = records
        .kind("data")
        .next()
        .and_then(|data| data["text"].as_str());
    assert!(
        first.is_some_and(|text| text.contains("User-Agent: curl")),
        "{first:?}"
    );
    records.check_ledger().unwrap();
}

fn check(test: &'static str, options: Vec<std::ffi::OsString>, before_curl: &str) {
    let Some(lab) = Lab::with(test, &["curl", "setpriv"]) else {
        return;
    };
    let server = lab.server(&[]);
    let script = two_clients(&lab, server.port, before_curl);
    let run = lab.agent().options(options).run(argv!["sh", "-c", script]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    assert_only_curl(&records);
    let calls = &records.last_stats().unwrap()["ledger"]["calls"];
    assert!(
        calls["filtered"].as_u64() > Some(0),
        "Python's calls were not filtered: {calls}"
    );
}

#[test]
fn comm_is_the_leaders() {
    check("comm_is_the_leaders", argv!["--comm", "curl"], "");
}

#[test]
fn either_comm_is_wanted() {
    check(
        "either_comm_is_wanted",
        argv!["--comm", "nobody", "--comm", "curl"],
        "",
    );
}

#[test]
fn uid_is_the_callers() {
    let nobody = "setpriv --reuid 65534 --clear-groups";
    check("uid_is_the_callers", argv!["--uid", "65534"], nobody);
}

/// Different filters mean "and".
#[test]
fn uid_and_comm_both_count() {
    let Some(lab) = Lab::with("uid_and_comm_both_count", &["curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    let script = two_clients(&lab, server.port, "");
    let options = argv!["--uid", "65534", "--comm", "curl"];
    let run = lab.agent().options(options).run(argv!["sh", "-c", script]);
    run.success();
    if !bare() {
        assert_eq!(
            run.records().kind("data").count(),
            0,
            "root's curl is not wanted"
        );
    }
}

/// After the copy: the bytes are seen, and counted as filtered.
#[test]
fn exe_is_filtered_after_the_copy() {
    let Some(lab) = Lab::with("exe_is_filtered_after_the_copy", &["curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    let script = two_clients(&lab, server.port, "");
    let options = argv!["--exe", "*/curl"];
    let run = lab.agent().options(options).run(argv!["sh", "-c", script]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    assert_only_curl(&records);
    let bytes = &records.last_stats().unwrap()["ledger"]["bytes"];
    assert!(
        bytes["filtered"].as_u64() > Some(0),
        "Python's bytes: {bytes}"
    );
}

/// cgroup v2, also beside v1 on a hybrid host.
#[test]
fn cgroup_is_version_2() {
    const TEST: &str = "cgroup_is_version_2";
    if bare() {
        return;
    }
    let Some(group) = Group::new() else {
        return skip(TEST, "no writable cgroup v2 hierarchy is mounted");
    };
    let enter = format!("echo $$ > {}/cgroup.procs;", group.0.display());
    check(TEST, argv!["--cgroup", group.0.clone()], &enter);
}

/// A cgroup of our own, removed afterwards.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Group> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let root = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| Path::new(path).to_owned())
        })?;
        let group = root.join(format!("vortex-e2e-{}", std::process::id()));
        fs::create_dir(&group).ok()?;
        Some(Group(group))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process may just be ending.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
