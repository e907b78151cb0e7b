//! What the agent finds out about a kernel: its programs, its features, and that they are what it says.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::golden::{self, Column};
use crate::harness::{Agent, Lab, argv, bare, seconds, wait_for};
use crate::proc::{breakpoints, half_of, has_mapped, links_of};

/// A run of one of the agent's other commands, as root.
fn agent(arguments: &[&str]) -> Output {
    let output = Command::new(Agent::path()).args(arguments).output();
    output.unwrap()
}

/// Every program loads, is one that is known, and costs the verifier what it did before: instructions
/// within a tenth, the stack to the byte.
#[test]
fn golden_verifier() {
    if bare() || Lab::new("golden_verifier").is_none() {
        return;
    }
    let output = agent(&["load-check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    let measured: Column = said.lines().filter_map(program).collect();
    assert!(!measured.is_empty(), "{said}");
    if let Some(expected) = golden::expected("verifier", &measured) {
        let differences = golden::differences(&expected, &measured, is_close);
        assert!(
            differences.is_empty(),
            "{differences}cargo xtask bless renews the table"
        );
    }
}

/// `NAME: ok, 1234 instructions, 40 bytes of stack` as name and `1234/40`.
fn program(line: &str) -> Option<(String, String)> {
    let (name, numbers) = line.split_once(": ok, ")?;
    let (instructions, rest) = numbers.split_once(" instructions, ")?;
    let stack = rest.strip_suffix(" bytes of stack")?;
    Some((name.to_owned(), format!("{instructions}/{stack}")))
}

fn is_close(expected: &str, measured: &str) -> bool {
    let numbers = |cell: &str| -> Option<(u64, u64)> {
        let (instructions, stack) = cell.split_once('/')?;
        Some((instructions.parse().ok()?, stack.parse().ok()?))
    };
    let (Some(expected), Some(measured)) = (numbers(expected), numbers(measured)) else {
        return false;
    };
    expected.0.abs_diff(measured.0) * 10 <= expected.0 && expected.1 == measured.1
}

#[test]
fn a_tenth_is_close() {
    for (measured, close) in [("1000/40", true), ("1100/40", true), ("900/40", true)]
        .into_iter()
        .chain([
            ("1101/40", false),
            ("899/40", false),
            ("1000/41", false),
            ("-", false),
        ])
    {
        assert_eq!(is_close("1000/40", measured), close, "{measured}");
    }
}

/// What `doctor` says, by feature.
fn features() -> Column {
    let output = agent(&["doctor", "--json"]);
    let said = String::from_utf8(output.stdout).unwrap();
    let report: Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    words(&report["features"])
}

fn words(features: &Value) -> Column {
    let features = features.as_object().into_iter().flatten();
    let word = |(what, how): (&String, &Value)| (what.clone(), how.as_str().unwrap().to_owned());
    features.map(word).collect()
}

#[test]
fn golden_features() {
    if bare() || Lab::new("golden_features").is_none() {
        return;
    }
    let measured = features();
    assert!(
        measured.contains_key("links"),
        "the self-test failed: {measured:?}"
    );
    if let Some(expected) = golden::expected("features", &measured) {
        let differences = golden::differences(&expected, &measured, |_, _| false);
        assert!(
            differences.is_empty(),
            "{differences}cargo xtask bless renews the table"
        );
    }
}

/// Each word of `doctor` is true of a run: what the half holds, what records say.
#[test]
fn features_are_real() {
    let Some(lab) = Lab::with("features_are_real", &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let said = features();
    let is = |what: &str, how: &str| said[what] == how;
    let server = lab.server(&[]);
    let [done, go] = ["done", "go"].map(|name| lab.path(name));
    // A child of CMD speaks, through a file that nobody else uses.
    let script = "curl -sk --http1.1 -o /dev/null \"$1\"; : > \"$2\"; n=0
                  while [ ! -e \"$3\" ] && [ $n -lt 1000 ]; do sleep 0.02; n=$((n + 1)); done";
    let url = server.url("/bytes/1000");
    let running = lab
        .agent()
        .env("LD_LIBRARY_PATH", lab.private_libssl("private"))
        .start(argv!["sh", "-c", script, "sh", url, &done, &go]);
    wait_for("CMD", seconds(20), || done.exists().then_some(()));
    let held = links_of(half_of(running.process.pid()).expect("it runs"));
    fs::write(&go, "").unwrap();
    let run = running.finish(seconds(20));
    run.assert_exact(&server.client_truth());

    let count = |kind: &str| held.iter().filter(|one| *one == kind).count();
    // Of each file calls, events and, where the library makes its objects, creators; without sessions a call has
    // two. The machine's own libraries are probed ahead: OpenSSL and wolfSSL have creators, GnuTLS, NSS and Mbed TLS
    // don't.
    let of_a_file = match said["links"].as_str() {
        "session" => Some((3, 2)),
        "multi" => Some((4, 3)),
        _ => None,
    };
    let files = (1..=3).flat_map(|with| (0..=3).map(move |without| (with, without)));
    let multi: Vec<usize> = match of_a_file {
        Some((with, without)) => files.map(|(a, b)| a * with + b * without).collect(),
        None => vec![0],
    };
    assert!(multi.contains(&count("uprobe_multi")), "{held:?}");
    let has_perf = is("links", "perf") && is("cookies", "yes");
    assert_eq!(count("perf") > 0, has_perf, "{held:?}");
    // Five follow processes, two of them for their control groups. Two see sockets used, one sees them end, which is a tracepoint in any case; one sees
    // how connections begin.
    let hellos = usize::from(is("hellos", "yes"));
    let (tracepoints, tracing) = match said["sockets"].as_str() {
        "tracepoints" => (8 + hellos, 0),
        "fexit" => (6, 2 + hellos),
        _ => (3, 0),
    };
    let sees_sockets = tracepoints > 3;
    assert_eq!(count("raw_tracepoint"), tracepoints, "{held:?}");
    assert_eq!(count("tracing"), tracing, "{held:?}");

    let records = run.records();
    let told = words(&records.last_stats().unwrap()["agent"]["features"]);
    let mut own = said.clone();
    own.remove("cgroups");
    assert_eq!(told, own, "of the run, and of doctor");
    for record in records.kind("data") {
        let connection = &record["connection"];
        assert_eq!(
            connection["attribution"] == "exact",
            sees_sockets,
            "{connection}"
        );
        assert_eq!(
            connection["role"] == "client",
            is("roles", "yes"),
            "{connection}"
        );
    }
}

/// With `--pid` others that map the file meet a breakpoint only where a link is for everybody.
#[test]
fn links_of_one_process_are_real() {
    let Some(lab) = Lab::new("links_of_one_process_are_real") else {
        return;
    };
    if bare() {
        return;
    }
    let private = lab.private_libssl("private");
    let (cert, key) = lab.certificate();
    let [watched, other] = ["watched", "other"].map(|name| {
        let argv = argv![
            "openssl", "s_server", "-quiet", "-accept", "0", "-cert", &cert, "-key", &key
        ];
        let mut command = lab.command(argv);
        command
            .env("LD_LIBRARY_PATH", &private)
            .stdin(Stdio::piped());
        lab.spawn(command, name)
    });
    let library = private.join("libssl.so.3");
    for process in [&watched, &other] {
        let is_there = || has_mapped(process.pid(), &library).then_some(());
        wait_for("a process with the library", seconds(10), is_there);
    }
    let running = lab.agent().watch(watched.pid());
    let features = &features()["process_links"];
    assert!(!breakpoints(watched.pid(), &library).is_empty());
    let is_spared = breakpoints(other.pid(), &library).is_empty();
    assert_eq!(is_spared, features == "yes");
    running.process.signal(libc::SIGTERM);
    running.finish(seconds(20)).success();
}
