//! What the agent leaves out when it would cost more than it may.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use crate::harness::{End, Lab, PYTHON, Run, Running, argv, bare, seconds, wait_for};
use crate::proc::{breakpoints, wait_for_running};

/// Much less than a flood costs, and more than an idle agent does.
const CPUS: &str = "0.05";

/// The level that `stats` said last.
fn level(running: &Running) -> Option<u64> {
    let text = running.records();
    let stats = text.kind("stats").last()?;
    stats["shedding"]["level"].as_u64()
}

#[track_caller]
fn wait_for_level(running: &Running, what: &str, is_right: impl Fn(u64) -> bool) {
    wait_for(what, seconds(60), || {
        if let Some(end) = running.process.ended() {
            panic!("the agent ended: {end:?}\n{}", running.process.err());
        }
        level(running).filter(|level| is_right(*level)).map(|_| ())
    });
}

/// Up in a flood, down behind it, and each connection is told of whole or not at all.
#[test]
fn a_flood_is_shed_and_counted() {
    let Some(lab) = Lab::new("a_flood_is_shed_and_counted") else {
        return;
    };
    if bare() {
        return;
    }
    let (cert, key) = lab.certificate();
    let directory = lab.path("");
    let config = lab.file("limits.toml", format!("[limits]\ncpu = {CPUS}\n"));
    let options = argv!["--config", config, "--stats-interval", "500ms"];
    let agent = lab.agent().emit("http,gap,stats").options(options);
    let running = agent.start(argv![PYTHON, lab.program("flood.py"), directory, cert, key]);
    wait_for_level(&running, "connections left out", |level| level == 3);
    lab.file("calm", "");
    wait_for_level(&running, "more room after the flood", |level| level < 3);
    lab.file("end", "");
    let run = running.finish(seconds(60));
    run.success();

    let truth = String::from_utf8(lab.read("count")).unwrap();
    let numbers: Vec<u64> = truth
        .split_whitespace()
        .map(|it| it.parse().unwrap())
        .collect();
    let [connections, size] = numbers[..] else {
        panic!("{truth}")
    };
    // One at each end.
    let handles = 2 * connections;
    let records = run.records();
    let stats = records.last_stats().unwrap();
    let (bytes, shedding) = (&stats["ledger"]["bytes"], &stats["shedding"]);
    let left_out = shedding["connections"].as_u64().unwrap();
    assert!(left_out > 0, "{shedding}");
    assert_eq!(bytes["seen"], handles * size);
    assert_eq!(bytes["over_limit"], left_out * size, "{bytes}");
    assert_eq!(bytes["delivered"], (handles - left_out) * size, "{bytes}");
    assert_eq!(bytes["in_flight"], 0);

    let mut told: BTreeMap<&str, u64> = BTreeMap::new();
    let mut cut = 0;
    let body = |record: &Value, half: &str| record["http"][half]["body"].clone();
    for record in records.kind("http") {
        assert_eq!(record["complete"], true, "{record}");
        *told
            .entry(record["connection"]["id"].as_str().unwrap())
            .or_default() += 1;
        for (half, size) in [("request", 1000), ("response", 4000)] {
            let body = body(record, half);
            assert_eq!(body["size"], size, "{record}");
            cut += u64::from(body["cut"] == true);
        }
    }
    assert_eq!(told.len() as u64, handles - left_out);
    assert!(told.values().all(|count| *count == 1));
    assert_eq!(shedding["bodies"], cut, "{shedding}");
    assert!(cut > 0);
    assert_eq!(records.kind("gap").count(), 0);
    let said = run.process.err();
    assert!(
        said.contains("limits: ") && said.contains("left out"),
        "{said}"
    );
}

/// What `coverage` says last of the private library: its status, and why.
fn covered(running: &Running) -> Option<(String, String)> {
    let text = running.records();
    let of_it = |record: &&Value| {
        let path = record["library"]["path"].as_str();
        path.is_some_and(|path| path.ends_with("/private/libssl.so.3"))
    };
    let record = text.kind("coverage").filter(of_it).last()?;
    let said = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    Some((said("status"), said("reason")))
}

/// Waits until its status is that one. Why it is.
#[track_caller]
fn wait_for_covered(running: &Running, what: &str, status: &str) -> String {
    wait_for(what, seconds(60), || {
        if let Some(end) = running.process.ended() {
            panic!("the agent ended: {end:?}\n{}", running.process.err());
        }
        let (said, reason) = covered(running)?;
        (said == status).then_some(reason)
    })
}

/// How often the agent said that it pauses the private library. It places probes ahead in the machine's own libraries,
/// too, which other tests may call so often that those are paused as well.
fn pauses_said(run: &Run) -> usize {
    let said = run.process.err();
    let of_it = |line: &&str| line.contains("paused by the governor") && line.contains("/private/");
    said.lines().filter(of_it).count()
}

/// While a program calls as often as it can nothing of it is probed; then it is seen again, and everybody is told.
#[test]
fn probes_that_cost_too_much_are_paused() {
    let Some(lab) = Lab::with("probes_that_cost_too_much_are_paused", &["cc"]) else {
        return;
    };
    if bare() {
        return;
    }
    let private = lab.private_libssl("private");
    let library = private.join("libssl.so.3");
    let spin = lab.compiled("spin");
    let config = lab.file("limits.toml", "[limits]\ntraced-cpu = 0.05\n");
    let options = argv!["--config", config, "--stats-interval", "500ms"];
    let agent = lab.agent().emit("data,coverage,gap,stats").options(options);
    let agent = agent.env("LD_LIBRARY_PATH", private);
    let running = agent.start(argv![&spin]);
    let client = wait_for_running(&spin);
    let reason = wait_for_covered(&running, "a pause", "refused");
    assert!(
        reason.starts_with("paused by the governor: its probes cost"),
        "{reason}"
    );
    wait_for("the probes to go", seconds(5), || {
        breakpoints(client, &library).is_empty().then_some(())
    });
    lab.file("stop", "");
    let reason = wait_for_covered(&running, "the end of the pause", "partly");
    assert_ne!(breakpoints(client, &library), []);
    assert!(
        reason.starts_with("its probes were out for a while"),
        "{reason}"
    );
    lab.file("again.go", "");
    let run = running.finish(seconds(60));
    run.success();

    let records = run.records();
    records.check_ledger().unwrap();
    let stats = records.last_stats().unwrap();
    let (calls, governor) = (&stats["ledger"]["calls"], &stats["governor"]);
    assert_eq!(calls["in_flight"], 0, "{calls}");
    // A CPU makes at most so many in a second or two, and none later.
    let entries = calls["entries"].as_u64().unwrap();
    assert!((10_000..10_000_000).contains(&entries), "{calls}");
    assert_eq!(governor["limit"], 0.05, "{governor}");
    assert!(governor["pauses"].as_u64().unwrap() >= 1, "{governor}");
    let paused = governor["paused_seconds"].as_f64().unwrap();
    assert!(paused >= 10.0, "{governor}");
    let mut shown: Vec<_> = records
        .kind("data")
        .map(|data| {
            let text = data["text"].as_str().unwrap();
            let joined = data["connection"]["joined"].as_str().unwrap();
            (text, joined, data["complete"].as_bool().unwrap())
        })
        .collect();
    shown.sort_unstable();
    let each = [
        ("after\n", "middle", false),
        ("answer after\n", "middle", false),
        ("answer before\n", "start", true),
        ("before\n", "start", true),
    ];
    // At each end.
    assert_eq!(shown, each.map(|one| [one; 2]).as_flattened());
    assert_eq!(records.kind("gap").count(), 0);
    assert_eq!(pauses_said(&run), 1, "{}", run.process.err());
}

/// Whom nobody watches pays for the probes of a file that he shares, and is spared as well.
#[test]
fn probes_cost_bystanders_no_more() {
    let Some(lab) = Lab::with("probes_cost_bystanders_no_more", &["cc"]) else {
        return;
    };
    if bare() {
        return;
    }
    let private = lab.private_libssl("private");
    let library = private.join("libssl.so.3");
    let spin = lab.compiled("spin");
    let config = lab.file("limits.toml", "[limits]\ntraced-cpu = 0.05\n");
    let options = argv!["--config", config, "--stats-interval", "500ms"];
    let agent = lab.agent().emit("data,coverage,gap,stats").options(options);
    // This one does not spin.
    lab.file("stop", "");
    let agent = agent.env("LD_LIBRARY_PATH", &private);
    let running = agent.start(argv![&spin]);
    wait_for("the watched program", seconds(20), || {
        lab.path("again.here").exists().then_some(())
    });
    assert_eq!(covered(&running).unwrap().0, "probed");

    let other = lab.path("other");
    fs::create_dir(&other).unwrap();
    let mut bystander = lab.command(argv![&spin]);
    bystander
        .env("E2E_DIR", &other)
        .env("LD_LIBRARY_PATH", &private);
    let bystander = lab.spawn(bystander, "bystander");
    wait_for_covered(&running, "a pause", "refused");
    wait_for("the probes to go", seconds(5), || {
        breakpoints(bystander.pid(), &library)
            .is_empty()
            .then_some(())
    });
    for file in ["other/stop", "other/again.go", "again.go"] {
        lab.file(file, "");
    }
    assert_eq!(bystander.wait(seconds(20)), End::Code(0));
    let run = running.finish(seconds(60));
    run.success();

    let records = run.records();
    records.check_ledger().unwrap();
    let stats = records.last_stats().unwrap();
    let calls = &stats["ledger"]["calls"];
    assert!(calls["filtered"].as_u64().unwrap() > 10_000, "{calls}");
    assert_eq!(pauses_said(&run), 1, "{}", run.process.err());
    let texts = records.kind("data").map(|data| data["text"].as_str());
    let mut texts: Vec<_> = texts.map(Option::unwrap).collect();
    texts.sort_unstable();
    let before = ["answer before\n", "before\n", "unseen\n", "unseen too\n"];
    assert_eq!(texts, before.map(|one| [one; 2]).as_flattened());
}
