//! More busy threads than processors: what one of them writes must never show up as another's.
//!
//! A kernel with full preemption takes the processor away in the middle of a program of ours. Most
//! machines' kernels do not, so the virtual machines of `cargo xtask vm` are what this is for.

use std::thread;

use crate::harness::{Lab, argv, bare, scaled, seconds, wait_for};
use crate::records::{Truth, total};

#[test]
fn writers_are_not_mixed() {
    let Some(lab) = Lab::new("writers_are_not_mixed") else {
        return;
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = (3 * processors).min(12);
    let rounds = scaled("rounds of each thread", 16, 8);
    let end = lab.path("end");
    let options = argv!["--stats-interval", "1s"];
    let running = lab.agent().options(options).start(argv![
        lab.compiled("letters"),
        threads.to_string(),
        rounds.to_string(),
        &end
    ]);
    let written = rounds as usize * ((1 << 20) + (1 << 10));
    let truth: Vec<_> = (b'A'..)
        .take(threads)
        .map(|letter| Truth {
            name: format!("thread {}", char::from(letter)),
            sent: vec![letter; written],
            received: Vec::new(),
        })
        .collect();
    // An emulated machine can't write all of it down in the half second that the agent takes to end.
    wait_for("the last byte", seconds(60), || {
        if bare() {
            return Some(());
        }
        let ledger = running.last_ledger()?;
        let bytes = &ledger["bytes"];
        (bytes["seen"] == total(&truth) && bytes["in_flight"] == 0).then_some(())
    });
    lab.file("end.go", "");
    let run = running.finish(seconds(20));
    run.assert_accounted(&truth, &["ring_full"]);
    if bare() {
        return;
    }
    let records = run.records();
    let lost = &records.last_stats().unwrap()["ledger"]["bytes"]["lost"]["ring_full"];
    println!(
        "{threads} threads on {processors} processors wrote {written} bytes each; lost {lost}"
    );
}
