//! Handles that are made, used again, shared and given up; processes that become others. One connection
//! is one id, whatever its handle's address meant before.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use crate::{
    harness::{End, Lab, Run, argv, bare, random, scaled, seconds, skip},
    records::{self, Truth, compare, digest, total},
};

#[track_caller]
fn life(lab: &Lab, arguments: &[&str]) -> Run {
    let mut command = argv![lab.compiled("life")];
    command.extend(arguments.iter().map(Into::into));
    lab.agent()
        .options(argv!["--stats-interval", "100ms"])
        .start(command)
        .finish(seconds(120))
}

/// The truth of both ends, which must agree.
#[track_caller]
fn both_truths(lab: &Lab) -> Vec<Truth> {
    let (mut clients, servers) = (lab.truth("client"), lab.truth("server"));
    let swapped: Vec<_> = servers.iter().cloned().map(Truth::swapped).collect();
    records::same(&clients, &swapped).unwrap();
    clients.extend(servers);
    clients
}

/// Every record of a connection says that it was seen from its start.
#[track_caller]
fn assert_from_start(run: &Run) {
    let records = run.records();
    for data in records.kind("data") {
        assert_eq!(data["connection"]["joined"], "start", "{}", digest(data));
    }
}

/// The addresses that the program's handles had.
fn addresses(output: &str) -> Vec<&str> {
    output
        .lines()
        .filter_map(|line| line.strip_prefix("client "))
        .collect()
}

/// Connections one after the other, `live` of them open at a time: as many ids, nothing mixed, and a memory
/// that does not grow with them.
#[track_caller]
fn many(lab: &Lab, live: u64) {
    let count = scaled("connections", 20_000, 300);
    let run = life(lab, &["many", &count.to_string(), &live.to_string()]);
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
    let records = run.records();
    let connections = records.connections().unwrap();
    assert_eq!(connections.len() as u64, 2 * count);
    assert_from_start(&run);
    // When as many are open, or were closed a moment ago, as ever will be; and at the end.
    let seen =
        |stats: &Value| stats["ledger"]["bytes"]["delivered"].as_u64() > Some(total(&truth) / 2);
    let stats: Vec<_> = records.kind("stats").filter(|stats| seen(stats)).collect();
    let memory = |stats: &Value| stats["agent"]["memory_bytes"].as_u64().unwrap();
    let (early, late) = (memory(stats[0]), memory(stats[stats.len() - 1]));
    println!("{count} connections, {live} open: {early} bytes of memory, then {late}");
    assert!(
        late < early + (4 << 20),
        "the agent grew from {early} to {late} bytes"
    );
}

#[test]
fn twenty_thousand_connections_at_few_addresses() {
    let Some(lab) = Lab::with("twenty_thousand_connections_at_few_addresses", &["cc"]) else {
        return;
    };
    many(&lab, 0);
}

#[test]
fn twenty_thousand_connections_half_of_them_open() {
    let Some(lab) = Lab::with("twenty_thousand_connections_half_of_them_open", &["cc"]) else {
        return;
    };
    many(&lab, scaled("open connections", 2500, 75));
}

/// More handles than the kernel's map has room for, no two at one address: each gives its place up.
#[test]
fn no_address_comes_again() {
    let Some(lab) = Lab::with("no_address_comes_again", &["cc"]) else {
        return;
    };
    life(&lab, &["fresh", "40000"]).assert_exact(&both_truths(&lab));
}

/// So many handles are alive that the kernel's map is full: what cannot be placed is a gap, nothing is mixed,
/// and who was there before goes on.
#[test]
fn more_handles_than_places() {
    let Some(lab) = Lab::with("more_handles_than_places", &["cc"]) else {
        return;
    };
    let run = life(&lab, &["hoard", "33000"]);
    run.success();
    let truth = both_truths(&lab);
    if bare() {
        return;
    }
    let records = run.records();
    assert_eq!(records.check_ledger().unwrap(), total(&truth));
    let (lost, placed): (Vec<_>, Vec<_>) = records
        .0
        .iter()
        .cloned()
        .partition(|record| record["cause"] == "map_full");
    let lengths: Vec<_> = lost
        .iter()
        .map(|gap| gap["length"].as_u64().unwrap())
        .collect();
    assert_eq!(lengths, [1000; 4]);
    assert!(lost.iter().all(|gap| gap["offset"].is_null()), "{lost:?}");
    let truth: Vec<_> = truth
        .into_iter()
        .filter(|truth| !truth.name.ends_with("-1"))
        .collect();
    compare(
        &records::Records(placed).connections().unwrap(),
        &truth,
        &[],
    )
    .unwrap();
}

/// One object for four connections, one after the other: by `SSL_clear` or by another socket alone.
#[test]
fn four_connections_of_one_handle() {
    let Some(lab) = Lab::new("four_connections_of_one_handle") else {
        return;
    };
    let server = lab.server(&["--mode", "frames"]);
    let run = life(&lab, &["clear", &server.port.to_string()]);
    let truth = lab.truth("client");
    assert_eq!(truth.len(), 4);
    records::same(&truth, &server.client_truth()).unwrap();
    run.assert_exact(&truth);
    if bare() {
        return;
    }
    assert_from_start(&run);
    let records = run.records();
    let of = |path: &str| -> BTreeSet<String> {
        let data = records.kind("data").map(|data| {
            data.pointer(path)
                .unwrap_or_else(|| panic!("{}", digest(data)))
        });
        data.map(ToString::to_string).collect()
    };
    assert_eq!(of("/connection/id").len(), 4);
    assert_eq!(
        of("/connection/attribution"),
        BTreeSet::from(["\"exact\"".to_owned()])
    );
    // The object keeps the name of its server.
    assert_eq!(
        of("/server/address"),
        BTreeSet::from(["\"once.example\"".to_owned()])
    );
}

/// Of two owners one gives the handle up: it is the same connection.
#[test]
fn a_handle_has_two_owners() {
    let Some(lab) = Lab::new("a_handle_has_two_owners") else {
        return;
    };
    let run = life(&lab, &["owners"]);
    run.assert_exact(&both_truths(&lab));
}

/// A process that becomes another program, which has TLS, too.
#[test]
fn exec_between_connections() {
    let Some(lab) = Lab::with("exec_between_connections", &["cc", "setarch"]) else {
        return;
    };
    let life = lab.compiled("life");
    let run = lab.agent().run(argv!["setarch", "-R", life, "exec"]);
    let truth = both_truths(&lab);
    assert_eq!(truth.len(), 4);
    run.assert_exact(&truth);
    let out = run.process.out();
    let addresses = addresses(&out);
    assert!(
        addresses.len() == 2 && addresses[0] == addresses[1],
        "no address came again: {out}"
    );
}

/// A process is killed, and the next one has its handles at the same addresses.
#[test]
fn killed_and_started_again() {
    let Some(lab) = Lab::with("killed_and_started_again", &["cc", "setarch"]) else {
        return;
    };
    let life = lab.compiled("life");
    let script = format!(
        "{0} pair 0 kill; {0} pair 1 kill; {0} pair 2",
        life.display()
    );
    let run = lab.agent().run(argv!["setarch", "-R", "sh", "-c", script]);
    let truth = both_truths(&lab);
    assert_eq!(truth.len(), 6);
    run.assert_exact(&truth);
    let out = run.process.out();
    assert_eq!(
        addresses(&out).iter().collect::<BTreeSet<_>>().len(),
        1,
        "no address came again: {out}"
    );
}

/// A process ends, and its id and the addresses of its handles are another one's at once.
#[test]
fn an_id_comes_again() {
    let Some(lab) = Lab::with("an_id_comes_again", &["cc"]) else {
        return;
    };
    let run = life(&lab, &["pids"]);
    if run.end == End::Code(77) {
        return skip(
            "an_id_comes_again",
            "no id can be chosen for a process here",
        );
    }
    let truth = both_truths(&lab);
    assert_eq!(truth.len(), 4);
    run.assert_exact(&truth);
    let out = run.process.out();
    let addresses = addresses(&out);
    assert!(
        addresses.len() == 2 && addresses[0] == addresses[1],
        "no address came again: {out}"
    );
}

/// What the kernel sends from a file is a gap of that length, and what follows has its right place. The
/// kernel is played: few machines have kTLS.
#[test]
fn sent_from_a_file() {
    let Some(lab) = Lab::new("sent_from_a_file") else {
        return;
    };
    // The second one is negative as a 32-bit number.
    for (directory, bytes) in [("some", 100_000), ("much", 3 << 30)] {
        fs::create_dir(lab.path(directory)).unwrap();
        let words = argv![lab.compiled("life"), "sendfile", bytes.to_string()];
        let agent = lab.agent().env("E2E_DIR", lab.path(directory));
        let run = agent.run(words);
        run.success();
        if bare() {
            continue;
        }
        let records = run.records();
        let seen = 4 * 2000 + bytes + 7;
        assert_eq!(records.check_ledger().unwrap(), seen);
        let ledger = &records.last_stats().unwrap()["ledger"]["bytes"];
        assert_eq!(ledger["lost"]["sendfile"], bytes + 7);
        assert_eq!(ledger["delivered"], 8000);
        let mut gaps: Vec<_> = records
            .kind("gap")
            .map(|gap| {
                (
                    &gap["cause"],
                    &gap["direction"],
                    number(gap, "offset"),
                    number(gap, "length"),
                )
            })
            .collect();
        let (cause, direction) = (&Value::from("sendfile"), &Value::from("sent"));
        gaps.sort_by_key(|gap| gap.2);
        assert_eq!(
            gaps,
            [
                (cause, direction, 1000, bytes),
                (cause, direction, 1000 + bytes, 7)
            ]
        );
        let behind = records
            .kind("data")
            .filter(|data| number(data, "offset") == 1000 + bytes + 7);
        let truth = fs::read(lab.path(directory).join("client-0.sent")).unwrap();
        let shown: Vec<_> = behind.map(|data| records::content(data).unwrap()).collect();
        assert_eq!(shown, [&truth[1000..]]);
    }
}

/// The same where the kernel really does the TLS: what the other end got is what the program says it sent.
#[test]
#[ignore = "needs kTLS, a kernel module: in a virtual machine only, by `cargo xtask vm`"]
fn sent_from_a_file_by_the_kernel() {
    let lab = Lab::alone("sent_from_a_file_by_the_kernel");
    let file = lab.file("file", random(300_001, 5));
    let run = life(&lab, &["ktls", file.to_str().unwrap()]);
    run.success();
    let mut truth = both_truths(&lab);
    assert_eq!(truth[0].sent.len(), 5 + 300_001 + 5);
    // The server's end is whole.
    run.assert_accounted(&truth, &["sendfile"]);
    let records = run.records();
    let sent = truth.swap_remove(0).sent;
    let connections = records.connections().unwrap();
    let gaps: Vec<_> = connections
        .iter()
        .flat_map(|connection| connection.gaps())
        .collect();
    let missing: u64 = gaps.iter().map(|gap| gap.2).sum();
    assert_eq!((missing, gaps[0].0), (300_001, 5), "{gaps:?}");
    assert_eq!(
        records.last_stats().unwrap()["ledger"]["bytes"]["lost"]["sendfile"],
        300_001
    );
    let tail = records
        .kind("data")
        .filter(|data| number(data, "offset") == 300_006);
    let tail: Vec<_> = tail
        .filter(|data| data["direction"] == "sent")
        .map(|data| records::content(data).unwrap())
        .collect();
    assert_eq!(tail, [&sent[300_006..]]);
    println!("{} gaps of sendfile", gaps.len());
}

fn number(record: &Value, field: &str) -> u64 {
    record[field]
        .as_u64()
        .unwrap_or_else(|| panic!("{field}: {}", digest(record)))
}
