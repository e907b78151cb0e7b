//! The whole line: ring records and reports of the half in, lines of output out.
//!
//! A small machine makes the records, as the kernel side would. Each byte that it saw is in one column of the ledger,
//! each stream comes out without a hole that is not told, JSON is JSON, nothing reaches a terminal that it could obey,
//! and nobody is told more than may be ([`Judge`]). Where any bytes are taken for a record, only that what comes out
//! is JSON, and harmless, holds.
//!
//! An input is three bytes of settings, and then steps.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use play::{
    Choices,
    judge::{Judge, is_harmless},
    machine::{Machine, Setting},
};
use vortex_agent::sink::Format;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let (setting, is_known) = Setting::of(&mut choices);
    let format = match setting.is_json {
        true => Format::Json,
        false => Format::Text {
            colour: false,
            live: true,
        },
    };
    let mut judge = Judge::new(format, setting.world, setting.content);
    let mut machine = Machine::new(setting, &mut judge);
    while !choices.0.is_empty() {
        match is_known {
            true => machine.step(&mut choices, &mut judge),
            false => machine.anything(&mut choices, &mut judge),
        }
    }
    machine.end(is_known, &mut judge);
    // What is said of our own connections is left out, and where they got their names in between, so is a part. So is what another policy withholds.
    let is_even = is_known && setting.tells_data && judge.ours.is_empty() && !judge.has_followed;
    let shown = judge.text();
    match setting.is_json {
        true => check_json(&shown, setting.world.is_selective(), is_even),
        false => assert!(is_harmless(&shown), "{shown:?}"),
    }
});

/// Each line is an object with an id of its own; if `is_even`, bytes and gaps of each stream follow each other.
fn check_json(shown: &str, is_selective: bool, is_even: bool) {
    let mut ends: HashMap<String, u64> = HashMap::new();
    let mut next = 0;
    for line in shown.lines() {
        let record: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        assert!(is_harmless(line), "{line}");
        let id = record["id"].as_str().and_then(|id| id.strip_prefix("run-"));
        let number: u64 = id.and_then(|id| id.parse().ok()).expect("an id");
        assert!(number >= next, "{line}: an id that was there before");
        next = number + 1;
        let kind = record["kind"].as_str().expect("each record has a kind");
        let (Some(offset), Some(length)) = (record["offset"].as_u64(), record["length"].as_u64())
        else {
            continue;
        };
        // Without all data, bytes of no message overtake what redaction holds back of earlier ones.
        if !matches!(kind, "data" | "gap") || !is_even {
            continue;
        }
        let stream = format!("{} {}", record["connection"]["id"], record["direction"]);
        // What came before it was known who it is was turned away.
        let first = if is_selective { offset } else { 0 };
        let end = ends.entry(stream).or_insert(first);
        assert_eq!(
            *end, offset,
            "{line}: a hole that is not told, or bytes that are told twice"
        );
        *end = offset + length;
    }
}
