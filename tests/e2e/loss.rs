//! What can't be copied is a gap: its length, its cause, its place.

use crate::harness::{Agent, End, Lab, Run, argv, bare, libssl, scaled, skip};
use crate::records::{self, Records, Truth, compare, total};

const MIB: u64 = 1 << 20;

/// One SSL_write of this many bytes.
#[track_caller]
fn single_write(lab: &Lab, agent: Agent<'_>, bytes: u64) -> (Run, Vec<Truth>) {
    let server = lab.server(&["--mode", "frames"]);
    let run = agent.run(argv![
        lab.compiled("mix"),
        server.port.to_string(),
        format!("single={bytes}")
    ]);
    run.success();
    let truth = lab.truth("mix");
    records::same(&truth, &server.client_truth()).unwrap();
    assert_eq!(total(&truth), 16 + bytes + 1);
    (run, truth)
}

#[test]
fn four_mib_in_one_write() {
    let Some(lab) = Lab::with("four_mib_in_one_write", &["cc"]) else {
        return;
    };
    let (run, truth) = single_write(&lab, lab.agent(), 4 * MIB);
    run.assert_exact(&truth);
}

/// 16 MiB of one call are copied, and the rest is one gap of 4 MiB. The ring has 8 MiB only: where
/// the reader is not fast enough it runs full first, and that is the cause then.
#[test]
fn twenty_mib_in_one_write() {
    let Some(lab) = Lab::with("twenty_mib_in_one_write", &["cc"]) else {
        return;
    };
    let (run, truth) = single_write(&lab, lab.agent(), 20 * MIB);
    run.assert_accounted(&truth, &["call_too_long", "ring_full"]);
    if bare() {
        return;
    }
    let records = run.records();
    let connections = records.connections().unwrap();
    let gaps: Vec<_> = connections
        .iter()
        .flat_map(|connection| connection.sent.gaps())
        .collect();
    let of = |wanted: &str| -> u64 {
        gaps.iter()
            .filter(|gap| gap.1 == wanted)
            .map(|gap| gap.2)
            .sum()
    };
    let bytes = &records.last_stats().unwrap()["ledger"]["bytes"];
    assert_eq!(bytes["over_limit"], of("call_too_long"));
    assert_eq!(bytes["lost"]["ring_full"], of("ring_full"));
    assert_eq!(
        bytes["delivered"],
        total(&truth) - of("call_too_long") - of("ring_full")
    );
    println!("gaps: {gaps:?}");
    if of("ring_full") == 0 {
        assert_eq!(gaps, [(16 + 16 * MIB, "call_too_long", 4 * MIB)]);
    } else {
        // What the ring holds at least came through, and nothing above the bound did.
        assert!(of("ring_full") <= 20 * MIB - 7 * MIB, "gaps: {gaps:?}");
        assert!(
            gaps.iter()
                .any(|&(offset, _, length)| offset + length == 16 + 20 * MIB),
            "gaps: {gaps:?}"
        );
    }
}

/// A burst from 16 threads, several rings large: whatever doesn't fit is a gap.
#[test]
fn sixteen_threads_at_full_speed() {
    let Some(lab) = Lab::with("sixteen_threads_at_full_speed", &["cc"]) else {
        return;
    };
    let server = lab.server(&["--mode", "frames"]);
    let run = lab.agent().run(argv![
        lab.compiled("mix"),
        server.port.to_string(),
        "threads=16"
    ]);
    run.success();
    let truth = lab.truth("mix");
    records::same(&truth, &server.client_truth()).unwrap();
    run.assert_accounted(&truth, &["ring_full"]);
}

/// Only what is asked for is written, and the ledger doesn't change with it.
#[test]
fn content_none_has_lengths_only() {
    let Some(lab) = Lab::with("content_none_has_lengths_only", &["cc"]) else {
        return;
    };
    let (run, truth) = single_write(&lab, lab.agent().content("none"), MIB);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    for data in records.kind("data") {
        assert!(
            data["text"].is_null() && data["base64"].is_null(),
            "content: {data:.200}"
        );
    }
    assert_eq!(records.check_ledger().unwrap(), total(&truth));
}

#[test]
fn emit_chooses_the_kinds() {
    let Some(lab) = Lab::with("emit_chooses_the_kinds", &["cc"]) else {
        return;
    };
    let (run, truth) = single_write(&lab, lab.agent().emit("stats"), MIB);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    assert_eq!(records.kind("stats").count(), records.0.len());
    let seen = &records.last_stats().unwrap()["ledger"]["bytes"]["seen"];
    assert_eq!(*seen, total(&truth));
}

/// A page that belongs to a userfaultfd nobody serves: waiting for it would stop everything.
#[test]
fn userfaultfd_victim() {
    let Some(lab) = Lab::with("userfaultfd_victim", &["cc"]) else {
        return;
    };
    victim(&lab, "uffd", 1, 0, 6000);
}

#[test]
fn paged_out_victim() {
    let Some(lab) = Lab::with("paged_out_victim", &["cc"]) else {
        return;
    };
    victim(&lab, "pageout", 5, 0, 6000);
}

/// Of a call of several records the one that the page is in, and none of the others.
#[test]
fn large_victim() {
    let Some(lab) = Lab::with("large_victim", &["cc"]) else {
        return;
    };
    victim(&lab, "large", 1, 64 << 10, 64 << 10);
}

/// `count` calls lose `length` bytes, which begin `at` bytes behind their start.
#[track_caller]
fn victim(lab: &Lab, kind: &'static str, count: usize, at: u64, length: u64) {
    let run = lab.agent().run(argv![lab.compiled("victim"), kind]);
    if run.end == End::Code(77) {
        return skip(kind, "the kernel does not take the pages away");
    }
    let (mut truth, servers) = (lab.truth("client"), lab.truth("server"));
    let swapped: Vec<_> = servers.iter().cloned().map(Truth::swapped).collect();
    records::same(&truth, &swapped).unwrap();
    truth.extend(servers);
    run.assert_accounted(&truth, &["copy_fault"]);
    if bare() {
        return;
    }
    // The lost calls and no other.
    let records = run.records();
    let connections = records.connections().unwrap();
    let gaps: Vec<_> = connections
        .iter()
        .flat_map(|connection| connection.gaps())
        .collect();
    // Turns 5, 15, … have written 6000 bytes each and every earlier victim 6000 more.
    let expected: Vec<_> = (0..count as u64)
        .map(|n| ((6 + 10 * n + n) * 6000 + at, "copy_fault", length))
        .collect();
    assert_eq!(gaps, expected);
    assert_eq!(
        records.last_stats().unwrap()["ledger"]["bytes"]["lost"]["copy_fault"],
        length * count as u64
    );
}

/// The pipeline stopped for a while: the ring runs full, and what didn't fit is announced.
#[test]
fn ring_full_is_accounted() {
    let Some(lab) = Lab::with("ring_full_is_accounted", &["cc"]) else {
        return;
    };
    let server = lab.server(&["--mode", "frames"]);
    let late = format!("late={}", lab.path("late").display());
    let mix = lab.compiled("mix");
    // 30 rounds of 1.5 MB each way: several rings full. Where counts are scaled, two rounds and a smaller ring.
    const ROUNDS: u64 = 15;
    let rounds = scaled("rounds", ROUNDS, 1);
    let options = match rounds {
        ROUNDS => argv![],
        _ => argv!["--ring-size", "1MiB"],
    };
    let running = lab.agent().options(options).start(argv![
        &mix,
        server.port.to_string(),
        format!("rounds={rounds}"),
        "threads=2",
        late
    ]);
    if bare() {
        return;
    }
    let client = crate::proc::wait_for_running(&mix);
    running.process.signal(libc::SIGSTOP);
    let deadline = crate::harness::seconds(30);
    crate::harness::wait_for("the client's rounds", deadline, || {
        lab.path("late.here").exists().then_some(())
    });
    assert_ne!(
        crate::proc::state(client),
        Some('T'),
        "the client must not stop with the agent"
    );
    running.process.signal(libc::SIGCONT);
    lab.file("late.go", "");
    let run = running.finish(crate::harness::seconds(60));
    run.success();
    let (before, after) = (lab.truth("mix"), lab.truth("late"));
    let truth: Vec<_> = before
        .into_iter()
        .zip(after)
        .map(|(one, two)| Truth {
            name: one.name,
            sent: [one.sent, two.sent].concat(),
            received: [one.received, two.received].concat(),
        })
        .collect();
    records::same(&truth, &server.client_truth()).unwrap();
    let records: Records = run.records();
    compare(&records.connections().unwrap(), &truth, &["ring_full"])
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(records.check_ledger().unwrap(), total(&truth));
    let lost = records.last_stats().unwrap()["ledger"]["bytes"]["lost"]["ring_full"]
        .as_u64()
        .unwrap();
    assert!(
        lost > 0,
        "the ring never was full, so this test says nothing"
    );
    assert!(lost < total(&truth), "nothing came through");
}

/// Connections at one address, one after the other, while the ring is full: each has the holes that are its
/// own, also those at its end, which nobody could be told of when it ended.
#[test]
fn ring_full_when_handles_end() {
    let Some(lab) = Lab::with("ring_full_when_handles_end", &["cc"]) else {
        return;
    };
    let letters = lab.compiled("letters");
    let (end, rounds) = (lab.path("end"), 16);
    let script = format!(
        "touch begin.here; while [ ! -e begin.go ]; do sleep 0.01; done; exec {} 60 {rounds} {} in-turn",
        letters.display(),
        end.display(),
    );
    let preload = format!("LD_PRELOAD={}", libssl().display());
    let running = lab
        .agent()
        .options(argv!["--ring-size", "262144"])
        .directory(&lab.dir)
        // With the library from its start, so that it is probed when the agent stands still.
        .start(argv!["env", preload, "sh", "-c", script]);
    if bare() {
        return;
    }
    crate::harness::wait_for("CMD", crate::harness::seconds(30), || {
        let is_probed = running.records().kind("coverage").next().is_some();
        (is_probed && lab.path("begin.here").exists()).then_some(())
    });
    running.process.signal(libc::SIGSTOP);
    lab.file("begin.go", "");
    crate::harness::wait_for("the last letter", crate::harness::seconds(30), || {
        lab.path("end.here").exists().then_some(())
    });
    // The privileged half looks each second: it tells of the holes before the ring was read.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    running.process.signal(libc::SIGCONT);
    lab.file("end.go", "");
    let run = running.finish(crate::harness::seconds(60));
    let truth: Vec<_> = (b'A'..)
        .take(60)
        .map(|letter| Truth {
            name: format!("letter {}", char::from(letter)),
            sent: vec![letter; rounds << 10],
            received: Vec::new(),
        })
        .collect();
    run.assert_accounted(&truth, &["ring_full"]);
    let records = run.records();
    let lost = &records.last_stats().unwrap()["ledger"]["bytes"]["lost"]["ring_full"];
    assert!(lost.as_u64() > Some(0), "the ring never was full: {lost}");
}

/// Two programs flood the ring, from memory to memory (one can't on every machine), while another makes 100
/// requests: those are whole, and what is missing of the flood is accounted for.
#[test]
fn a_flood_starves_nobody() {
    let Some(lab) = Lab::with("a_flood_starves_nobody", &["cc", "curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    let script = format!(
        "for flood in 1 2; do {{ echo run size=16384 ms=1500; sleep 1.5; }} | {} memory & done; \
         sleep 0.5; curl -sk -o {}/body-#1 '{}'; result=$?; wait; exit $result",
        lab.compiled("load").display(),
        lab.path(".").display(),
        server.url("/bytes/[1000-1099]"),
    );
    let run = lab.agent().run(argv!["sh", "-c", script]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    let of_curl = |kind| {
        let is_curl = |record: &&serde_json::Value| record["process"]["comm"] == "curl";
        records.kind(kind).filter(is_curl)
    };
    let gaps: Vec<_> = of_curl("gap").collect();
    assert!(gaps.is_empty(), "the requests have holes: {gaps:?}");
    let shown: u64 = of_curl("data")
        .filter_map(|data| data["length"].as_u64())
        .sum();
    assert_eq!(shown, total(&server.client_truth()));
    records.check_ledger().unwrap();
    let lost = &records.last_stats().unwrap()["ledger"]["bytes"]["lost"];
    assert!(
        lost["over_budget"].as_u64() > Some(0),
        "the flood never filled the ring: {lost}"
    );
}
