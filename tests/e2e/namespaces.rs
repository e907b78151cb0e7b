//! Who it was and when, where ids and clocks are others: namespaces of the client and of the agent.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    harness::{Agent, End, Lab, PYTHON, argv, bare, seconds, wait_for},
    records::Records,
};

/// The processes whose command lines have this word, by their ids here, and their ids from here inwards.
fn find_all(word: &str) -> Vec<(u32, Vec<u32>)> {
    let find = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        line.split(|byte| *byte == 0)
            .any(|argument| argument == word.as_bytes())
            .then_some(())?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let ids = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        let ids: Vec<u32> = ids.split_whitespace().flat_map(str::parse).collect();
        (ids.len() > 1).then_some((pid, ids))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(find).collect()
}

/// The first of them.
fn find(word: &str) -> Option<(u32, Vec<u32>)> {
    find_all(word).into_iter().next()
}

/// In a shell: another one with this word that becomes curl when the file is there.
fn curl_at_a_go(url: &str, go: &Path) -> String {
    format!(
        "sh -c 'while [ ! -e \"$1\" ]; do sleep 0.01; done; exec curl -sk --http1.1 {url}' word {}; true",
        go.display()
    )
}

/// Each record of a stream has these two ids.
#[track_caller]
fn assert_ids(records: &Records, (pid, ids): &(u32, Vec<u32>)) {
    let mut data = records.kind("data").peekable();
    assert!(data.peek().is_some(), "{}", records.digest());
    for record in data {
        let process = &record["process"];
        assert_eq!(process["pid"], *pid, "{record:.300}");
        assert_eq!(process["vpid"], *ids.last().unwrap(), "{record:.300}");
    }
}

/// The records have the id that the host knows, and the one inside beside it.
#[test]
fn pid_and_vpid() {
    let Some(lab) = Lab::with("pid_and_vpid", &["curl", "unshare"]) else {
        return;
    };
    let server = lab.server(&[]);
    let go = lab.path("go");
    // The shell is 1, and its first child must not end before we have seen it.
    let script = curl_at_a_go(&server.url("/text/5"), &go);
    let command = argv!["unshare", "-pf", "--mount-proc", "sh", "-c", script];
    let running = lab.agent().start(command);
    let word = go.to_str().unwrap();
    let client = wait_for("the client", seconds(20), || find(word));
    fs::write(&go, "").unwrap();
    let run = running.finish(seconds(30));
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    assert_ids(&records, &client);
    for record in records.kind("data") {
        assert_eq!(record["process"]["comm"], "curl", "{record:.300}");
    }
}

/// A namespace of its own with a /proc, or several, one inside the other.
fn inside(depth: usize) -> Vec<OsString> {
    let one = argv!["unshare", "-pf", "--mount-proc"];
    std::iter::repeat_n(one, depth).flatten().collect()
}

/// The agent and its command in a pid namespace that deep: all bytes, and the ids of outside.
fn watch_a_command(test: &'static str, depth: usize) {
    let Some(lab) = Lab::with(test, &["curl", "unshare"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let go = lab.path("go");
    let script = curl_at_a_go(&server.url("/text/5"), &go);
    let agent = lab.agent().before(inside(depth));
    let running = agent.start(argv!["sh", "-c", script]);
    let word = go.to_str().unwrap();
    let client = wait_for("the client", seconds(20), || find(word));
    assert_eq!(client.1.len(), depth + 1, "{client:?}");
    fs::write(&go, "").unwrap();
    let run = running.finish(seconds(30));
    run.assert_exact(&server.client_truth());
    let records = run.records();
    assert_ids(&records, &client);
    for record in records.kind("data").chain(records.kind("coverage")) {
        let process = &record["process"];
        assert_eq!(process["comm"], "curl", "{record:.300}");
        assert_eq!(
            process["executable"]["path"], "/usr/bin/curl",
            "{record:.300}"
        );
        // Stopped while its library was probed: by its id in here.
        assert_ne!(record["complete"], false, "{record:.300}");
    }
}

#[test]
fn a_command_in_our_pid_namespace() {
    watch_a_command("a_command_in_our_pid_namespace", 1);
}

#[test]
fn a_command_two_pid_namespaces_deep() {
    watch_a_command("a_command_two_pid_namespaces_deep", 2);
}

/// The command goes one deeper: `vpid` is the id in there.
#[test]
fn a_command_below_our_pid_namespace() {
    let Some(lab) = Lab::with("a_command_below_our_pid_namespace", &["curl", "unshare"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let go = lab.path("go");
    let mut command = inside(1);
    command.extend(argv!["sh", "-c", curl_at_a_go(&server.url("/text/5"), &go)]);
    let running = lab.agent().before(inside(1)).start(command);
    let word = go.to_str().unwrap();
    let client = wait_for("the client", seconds(20), || find(word));
    assert_eq!(client.1.len(), 3, "{client:?}");
    fs::write(&go, "").unwrap();
    let run = running.finish(seconds(30));
    run.assert_exact(&server.client_truth());
    assert_ids(&run.records(), &client);
}

/// Python: the program that is named last does its work when the file before it is there, and not before
/// libssl is mapped.
const AT_A_GO: &str = "import os, runpy, ssl, sys, time\n\
                       go, program = sys.argv[3:]\n\
                       while not os.path.exists(go): time.sleep(0.01)\n\
                       del sys.argv[3:]\n\
                       runpy.run_path(program, run_name='__main__')";
/// A child does the rest.
const FORK: &str = "import os, ssl, sys\n\
                    child = os.fork()\n\
                    if child: sys.exit(os.waitpid(child, 0)[1])\n";

/// A child that never calls exec: nothing but its fork tells of it.
#[test]
fn a_fork_in_our_pid_namespace() {
    let Some(lab) = Lab::with("a_fork_in_our_pid_namespace", &["unshare"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let go = lab.path("go");
    let program = lab.program("http_client.py");
    let port = server.port.to_string();
    let script = format!("{FORK}{AT_A_GO}");
    let command = argv![PYTHON, "-c", script, "http.client", port, &go, program];
    let running = lab.agent().before(inside(1)).start(command);
    let word = go.to_str().unwrap();
    let mut both = wait_for("parent and child", seconds(20), || {
        let mut both = find_all(word);
        // The agent has the word as well.
        both.retain(|(pid, _)| comm(*pid) == "python3");
        (both.len() == 2).then_some(both)
    });
    both.sort_by_key(|(_, ids)| ids.last().copied());
    let [parent, child] = <[_; 2]>::try_from(both).unwrap();
    fs::write(&go, "").unwrap();
    let run = running.finish(seconds(30));
    run.assert_exact(&server.client_truth());
    let records = run.records();
    assert_ids(&records, &child);
    for record in records.kind("data") {
        let process = &record["process"];
        assert_eq!(process["comm"], "python3", "{record:.300}");
        assert_eq!(process["parent_pid"], parent.0, "{record:.300}");
    }
}

fn comm(pid: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end().to_owned()
}

/// `--pid` is the id in the agent's namespace; the same number means somebody else outside.
#[test]
fn a_pid_of_our_pid_namespace() {
    let Some(lab) = Lab::with("a_pid_of_our_pid_namespace", &["unshare"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let go = lab.path("go");
    let words: Vec<_> = argv![
        PYTHON,
        "-c",
        AT_A_GO,
        "http.client",
        server.port.to_string(),
        &go,
        lab.program("http_client.py")
    ];
    // The shell is 1, its child 2.
    let count = words.len();
    let client = (1..=count).map(|number| format!("\"${{{number}}}\" "));
    let client: String = client.collect();
    let script = format!("{client} & shift {count}; exec \"$@\"");
    let mut before = inside(1);
    before.extend(argv!["sh", "-c", script, "sh"]);
    before.extend(words);
    let running = lab.agent().before(before).watch_without_coverage(2);
    let word = go.to_str().unwrap();
    let client = wait_for("the client", seconds(20), || {
        let mut all = find_all(word).into_iter();
        all.find(|(pid, ids)| comm(*pid) == "python3" && ids.last() == Some(&2))
    });
    running.wait_for_coverage(client.0);
    fs::write(&go, "").unwrap();
    // It ends with the last of them.
    let run = running.finish(seconds(30));
    run.assert_exact(&server.client_truth());
    assert_ids(&run.records(), &client);
}

/// The machine can't be watched from inside: said in one line, with the way out.
#[test]
fn the_machine_from_a_pid_namespace() {
    let Some(lab) = Lab::with("the_machine_from_a_pid_namespace", &["unshare"]) else {
        return;
    };
    if bare() {
        return;
    }
    let refused = |agent: Agent<'_>| {
        let run = agent.before(inside(1)).unfiltered().finish(seconds(20));
        assert_eq!(run.end, End::Code(1));
        let said = run.process.err();
        assert_eq!(said.lines().count(), 1, "{said}");
        for part in ["hostPID: true", "--pid=host"] {
            assert!(said.contains(part), "{said}");
        }
    };
    refused(lab.quiet_agent());
    refused(lab.quiet_agent().options(argv!["--uid", "65534"]));
}

/// A /proc of outside has other ids than perf events and signals: nothing is run.
#[test]
fn a_proc_of_another_pid_namespace() {
    let Some(lab) = Lab::with("a_proc_of_another_pid_namespace", &["unshare"]) else {
        return;
    };
    if bare() {
        return;
    }
    let ran = lab.path("ran");
    let agent = lab.quiet_agent().before(argv!["unshare", "-pf"]);
    let run = agent.run(argv!["touch", &ran]);
    assert_eq!(run.end, End::Code(125));
    assert!(!ran.exists(), "CMD was started");
    let said = run.process.err();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("--mount-proc"), "{said}");
}

/// Each record's time is that of the wall clock here.
#[track_caller]
fn assert_now(records: &Records, since: SystemTime) {
    let nanoseconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let [from, to] = [
        since - Duration::from_secs(1),
        SystemTime::now() + Duration::from_secs(1),
    ]
    .map(nanoseconds);
    let times: Vec<String> = ["data", "coverage", "stats"]
        .iter()
        .flat_map(|kind| records.kind(kind))
        .map(|record| record["time"].as_str().unwrap().to_owned())
        .collect();
    assert!(times.len() > 2, "{}", records.digest());
    for time in times {
        let at = unix_nanoseconds(&time);
        assert!(
            (from..to).contains(&at),
            "{time} is {at}, not in {from}..{to}"
        );
    }
}

/// `2026-11-21T02:47:57.076484278Z`
pub(crate) fn unix_nanoseconds(time: &str) -> u128 {
    let number = |range: std::ops::Range<usize>| time[range].parse::<i64>().unwrap();
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    // Days since 1970-01-01 in the Gregorian calendar, counted from March.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    let seconds = ((days * 24 + number(11..13)) * 60 + number(14..16)) * 60 + number(17..19);
    let fraction = time[20..].trim_end_matches('Z').parse::<u128>().unwrap();
    assert_eq!(time.len(), "2026-11-21T02:47:57.076484278Z".len());
    u128::try_from(seconds).unwrap() * 1_000_000_000 + fraction
}

/// `outside` starts the agent, `inside` the client; one of them in a time namespace.
fn check_times(test: &'static str, is_outside: bool) {
    let Some(lab) = Lab::with(test, &["curl", "unshare"]) else {
        return;
    };
    if !fs::exists("/proc/self/timens_offsets").unwrap_or(false) {
        return crate::harness::skip(test, "this kernel has no time namespaces");
    }
    let server = lab.server(&[]);
    let shifted = argv![
        "unshare",
        "-fT",
        "--boottime",
        "100000",
        "--monotonic",
        "5000"
    ];
    let mut command = argv!["curl", "-sk", "--http1.1", server.url("/text/5")];
    let mut agent = lab.agent();
    if is_outside {
        agent = agent.before(shifted);
    } else {
        command.splice(0..0, shifted);
    }
    let since = SystemTime::now();
    let run = agent.run(command);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    assert_now(&records, since);
    for record in records.kind("data") {
        assert_eq!(record["connection"]["joined"], "start", "{record:.300}");
    }
}

#[test]
fn client_in_a_time_namespace() {
    check_times("client_in_a_time_namespace", false);
}

#[test]
fn agent_in_a_time_namespace() {
    check_times("agent_in_a_time_namespace", true);
}

/// A thread's name is not its process', a leader's new name is.
#[test]
fn comm_follows_the_leader() {
    let Some(lab) = Lab::new("comm_follows_the_leader") else {
        return;
    };
    let server = lab.server(&[]);
    let port = server.port.to_string();
    let run = lab
        .agent()
        .run(argv![PYTHON, lab.program("names.py"), port]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    let comm_of = |text: &str| {
        let mut data = records.kind("data").filter(|record| {
            record["direction"] == "sent"
                && record["text"]
                    .as_str()
                    .is_some_and(|sent| sent.contains(text))
        });
        let record = data
            .next()
            .unwrap_or_else(|| panic!("{}", records.digest()));
        record["process"]["comm"].as_str().unwrap().to_owned()
    };
    assert_eq!(comm_of("by-a-thread"), "python3");
    assert_eq!(comm_of("by-the-leader"), "e2e-leader");
}

/// The filter asks for the name at each call.
#[test]
fn comm_filters_by_the_leader() {
    let Some(lab) = Lab::new("comm_filters_by_the_leader") else {
        return;
    };
    let server = lab.server(&[]);
    let port = server.port.to_string();
    let options = argv!["--comm", "e2e-thread", "--comm", "e2e-leader"];
    let run = lab
        .agent()
        .options(options)
        .run(argv![PYTHON, lab.program("names.py"), port]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    let texts: Vec<&str> = records
        .kind("data")
        .filter_map(|record| record["text"].as_str())
        .collect();
    let has = |text: &str| texts.iter().any(|sent| sent.contains(text));
    assert!(has("by-the-leader") && !has("by-a-thread"), "{texts:?}");
}
