//! What the agent leaves out when it would cost more than it may.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{Lab, PYTHON, Running, argv, bare, seconds, wait_for};

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
