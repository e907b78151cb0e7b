//! Calls that pass by unseen in the middle of a connection: what comes after them is told as another
//! connection, joined in its middle. How many bytes are missing nobody knows; that there are some, everybody
//! must.

use std::ffi::OsString;

use crate::{
    containers::Group,
    harness::{Lab, PYTHON, Run, argv, bare, scaled, seconds, skip},
    records::{self, Truth, digest},
};

/// Runs `absent`, of which the filter sees these stretches.
#[track_caller]
fn absent(lab: &Lab, options: Vec<OsString>, arguments: Vec<OsString>) -> Run {
    let mut command = argv![lab.compiled("absent")];
    command.extend(arguments);
    let agent = lab.agent().env("E2E_PAUSE", "3").options(options);
    agent.start(command).finish(seconds(120))
}

/// Each stretch is a connection, and only what began before the first absence was seen from its start.
#[track_caller]
fn assert_stretches(run: &Run, count: u64, is_first_whole: bool) {
    run.success();
    if bare() {
        return;
    }
    let truth: Vec<Truth> = (0..count)
        .flat_map(|number| {
            let client = Truth {
                name: format!("client-{number}"),
                sent: format!("question {number}\n").into(),
                received: format!("answer {number}\n").into(),
            };
            [client.clone(), client.swapped()]
        })
        .collect();
    run.assert_exact(&truth);
    for data in run.records().kind("data") {
        let text = data["text"].as_str().unwrap_or_default();
        let is_whole = is_first_whole && text.ends_with(" 0\n");
        let joined = if is_whole { "start" } else { "middle" };
        assert_eq!(data["connection"]["joined"], joined, "{}", digest(data));
        assert_eq!(data["complete"], is_whole, "{}", digest(data));
    }
}

#[test]
fn absence_by_name() {
    let Some(lab) = Lab::with("absence_by_name", &["cc"]) else {
        return;
    };
    let run = absent(&lab, argv!["--comm", "absent"], argv!["name", "5"]);
    assert_stretches(&run, 5, true);
}

/// It was turned away before anything of it was seen.
#[test]
fn absence_from_the_start() {
    let Some(lab) = Lab::with("absence_from_the_start", &["cc"]) else {
        return;
    };
    let run = absent(&lab, argv!["--comm", "absent"], argv!["late", "3"]);
    assert_stretches(&run, 3, false);
}

#[test]
fn absence_by_user() {
    let Some(lab) = Lab::with("absence_by_user", &["cc"]) else {
        return;
    };
    let run = absent(&lab, argv!["--uid", "0"], argv!["user", "5"]);
    assert_stretches(&run, 5, true);
}

/// In the control group of a hierarchy and out again.
#[track_caller]
fn by_group(test: &'static str, kind: &str) {
    if bare() {
        return;
    }
    let Some(lab) = Lab::with(test, &["cc"]) else {
        return;
    };
    let groups = ["in", "out"].map(|name| Group::new(kind, &format!("{test}-{name}")));
    let [Some(inside), Some(outside)] = groups else {
        return skip(test, "no such hierarchy is mounted that can be written");
    };
    let watched = match kind {
        "cgroup2" => inside.directory().into(),
        _ => OsString::from(format!("/{}", inside.name())),
    };
    let procs = |group: &Group| group.directory().join("cgroup.procs");
    // By a shell that has moved before: the first call is made inside.
    let script = format!(
        "{} exec {} group 3 {} {}",
        inside.enter(),
        lab.compiled("absent").display(),
        procs(&inside).display(),
        procs(&outside).display(),
    );
    let pause = if kind == "cgroup2" { "0" } else { "3" };
    let agent = lab.agent().env("E2E_PAUSE", pause);
    let agent = agent.options(argv!["--cgroup", watched]);
    let run = agent.start(argv!["sh", "-c", script]).finish(seconds(120));
    assert_stretches(&run, 3, true);
}

#[test]
fn absence_by_group() {
    by_group("absence_by_group", "cgroup2");
}

/// User space says who is in it, and who no longer.
#[test]
fn absence_by_group_of_version_1() {
    by_group("absence_by_group_of_version_1", "cgroup");
}

/// As many absences as one likes: none leaves anything behind in the kernel's maps.
#[test]
fn absence_a_hundred_thousand_times() {
    let Some(lab) = Lab::with("absence_a_hundred_thousand_times", &["cc"]) else {
        return;
    };
    let count = scaled("absences", 100_000, 300);
    let arguments = argv!["name", count.to_string()];
    let run = absent(&lab, argv!["--comm", "absent"], arguments);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    records.check_ledger().unwrap();
    let connections = records.connections().unwrap();
    let texts = connections.iter().map(|connection| {
        let sides = [&connection.sent, &connection.received].map(|stream| stream.bytes());
        sides.map(|bytes| String::from_utf8(bytes.expect("no gap")).unwrap())
    });
    let sides = (0..count).flat_map(|number| {
        let [question, answer] = ["question", "answer"].map(|word| format!("{word} {number}\n"));
        [[question.clone(), answer.clone()], [answer, question]]
    });
    let (mut texts, mut sides): (Vec<_>, Vec<_>) = (texts.collect(), sides.collect());
    texts.sort();
    sides.sort();
    assert!(
        texts == sides,
        "{} stretches of {}",
        texts.len(),
        sides.len()
    );
    let gaps = records.kind("gap").count();
    assert_eq!(gaps, 0, "no room for so many");
}

/// A thread waits in a read while its process is away: what that read returns belongs to the time before.
#[test]
fn absence_during_a_read() {
    let Some(lab) = Lab::with("absence_during_a_read", &["cc"]) else {
        return;
    };
    let run = absent(&lab, argv!["--comm", "absent"], argv!["reader"]);
    run.success();
    let mut truth = lab.truth("client");
    truth.extend(lab.truth("server"));
    assert_eq!(records::total(&truth), 6);
    run.assert_exact(&truth);
}

/// Somebody writes into the library, so its probes are taken out while it is in use. They are there again when
/// another process maps it.
#[test]
fn absence_of_the_probes() {
    let Some(lab) = Lab::with("absence_of_the_probes", &["cc", "curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    lab.private_libssl("private");
    lab.file(
        "write.py",
        "\
with open('private/libssl.so.3', 'r+b') as file:
    content = file.read()
    file.seek(0)
    file.write(content)
",
    );
    let script = format!(
        "cd {dir}; export LD_LIBRARY_PATH=$PWD/private; {absent} library 1 & client=$!; \
         until [ -e out.here ]; do sleep 0.01; done; {PYTHON} write.py; touch out.go; \
         until [ -e in.here ]; do sleep 0.01; done; curl -sk -o /dev/null {url}; touch in.go; \
         wait $client",
        dir = lab.path(".").display(),
        absent = lab.compiled("absent").display(),
        url = server.url("/bytes/20"),
    );
    let run = lab.agent().run(argv!["sh", "-c", script]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    records.check_ledger().unwrap();
    let mut shown: Vec<_> = records
        .kind("data")
        .filter(|data| data["process"]["comm"] == "absent")
        .map(|data| {
            let said = |path| data.pointer(path).unwrap().to_string();
            let text = data["text"].as_str().unwrap().trim_end().to_owned();
            (text, said("/connection/joined"), said("/complete"))
        })
        .collect();
    shown.sort();
    let twice = |text: &str, joined: &str, complete: &str| {
        let one = (
            text.to_owned(),
            format!("\"{joined}\""),
            complete.to_owned(),
        );
        [one.clone(), one]
    };
    let expected = [
        twice("answer 0", "start", "true"),
        twice("last 0", "middle", "false"),
        twice("question 0", "start", "true"),
    ];
    assert_eq!(shown, expected.as_flattened());
}
