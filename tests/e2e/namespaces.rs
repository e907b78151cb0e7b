//! Who it was and when, where ids and clocks are others: namespaces of the client and of the agent.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    harness::{End, Lab, PYTHON, argv, bare, seconds, wait_for},
    records::Records,
};

/// The process whose command line has this word, by its id here, and its ids from here inwards.
fn find(word: &str) -> Option<(u32, Vec<u32>)> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
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
    })
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
    let script = format!(
        "sh -c 'while [ ! -e \"$1\" ]; do sleep 0.01; done; exec curl -sk --http1.1 {}' word {}; true",
        server.url("/text/5"),
        go.display()
    );
    let command = argv!["unshare", "-pf", "--mount-proc", "sh", "-c", script];
    let running = lab.agent().start(command);
    let go = go.to_str().unwrap();
    let (pid, ids) = wait_for("the client", seconds(20), || find(go));
    fs::write(go, "").unwrap();
    let run = running.finish(seconds(30));
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    let mut data = records.kind("data").peekable();
    assert!(data.peek().is_some(), "{}", records.digest());
    for record in data {
        let process = &record["process"];
        assert_eq!(process["comm"], "curl", "{record:.300}");
        assert_eq!(process["pid"], pid, "{record:.300}");
        assert_eq!(process["vpid"], *ids.last().unwrap(), "{record:.300}");
    }
}

/// From inside nothing could be told apart: said in one line, with the way out.
#[test]
fn agent_in_a_pid_namespace() {
    let Some(lab) = Lab::with("agent_in_a_pid_namespace", &["unshare"]) else {
        return;
    };
    if bare() {
        return;
    }
    let inside = argv!["unshare", "-pf", "--mount-proc"];
    let ran = lab.path("ran");
    let run = lab
        .quiet_agent()
        .before(inside.clone())
        .run(argv!["touch", &ran]);
    assert_eq!(run.end, End::Code(125));
    assert!(!ran.exists(), "CMD was started");
    let alone = lab
        .quiet_agent()
        .before(inside)
        .watch_without_coverage(1)
        .finish(seconds(20));
    assert_eq!(alone.end, End::Code(1));
    for run in [run, alone] {
        let said = run.process.err();
        assert_eq!(said.lines().count(), 1, "{said}");
        for part in ["hostPID: true", "--pid=host"] {
            assert!(said.contains(part), "{said}");
        }
    }
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
fn unix_nanoseconds(time: &str) -> u128 {
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
