//! Filters: of two clients in one tree, one is wanted. The other must leave nothing but a count.

use crate::{
    containers::Group,
    harness::{End, Lab, PYTHON, argv, bare, skip},
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
    let Some(group) = Group::new("cgroup2", TEST) else {
        return skip(TEST, "no writable cgroup v2 hierarchy is mounted");
    };
    check(TEST, argv!["--cgroup", group.directory()], &group.enter());
}

/// Told to the kernel side by the shell's fork, which comes after it has moved.
#[test]
fn cgroup_of_version_1() {
    const TEST: &str = "cgroup_of_version_1";
    if bare() {
        return;
    }
    let Some(group) = Group::new("cgroup", TEST) else {
        return skip(TEST, "no writable cgroup v1 hierarchy is mounted");
    };
    let path = format!("/{}", group.name());
    check(TEST, argv!["--cgroup", path], &group.enter());
}

/// A typing error must not look like silence.
#[test]
fn a_cgroup_that_is_not_there() {
    let Some(lab) = Lab::new("a_cgroup_that_is_not_there") else {
        return;
    };
    if bare() {
        return;
    }
    let options = argv!["--cgroup", "/no/such/group"];
    let run = lab.quiet_agent().options(options).run(argv!["true"]);
    assert_eq!(run.end, End::Code(125));
    let said = run.process.err();
    assert!(
        said.contains("--cgroup /no/such/group") && said.contains("/proc/PID/cgroup"),
        "{said}"
    );
}
