//! Server-sent events: any body, and events that are known.
//!
//! An input is four bytes that say how the body is cut, one that says what the rest is, and that: a body, or
//! choices that make one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use play::{Choices, is_long, memory, talk::pieces};
use vortex_agent::protocol::sse::{Event, Events, Found};

/// A name, an id, and data with its line, each as long as it may be and doubled as vectors are.
const KEPT_MAX: usize = 8 << 20;
const LONG: usize = 3 << 19;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let cuts = choices.array();
    match choices.byte() {
        0 | 1 if is_long(input) => long(choices.0),
        0 | 1 => assert_eq!(play(&[choices.0]), play_cut(choices.0, cuts)),
        _ => known(&mut choices, cuts),
    }
});

/// The same again and again: what is kept has a bound.
fn long(body: &[u8]) {
    let mut events = Events::default();
    let rounds = LONG / body.len().max(64);
    memory::assert_kept(0..rounds, KEPT_MAX, |_| events.feed(body, &mut |_| {}));
}

fn play_cut(body: &[u8], cuts: [u8; 4]) -> Vec<Event> {
    play(&pieces(body, cuts).collect::<Vec<_>>())
}

fn play(pieces: &[&[u8]]) -> Vec<Event> {
    let (mut events, mut found) = (Events::default(), Vec::new());
    for piece in pieces {
        events.feed(piece, &mut |what| hear(what, &mut found));
    }
    events.close(&mut |what| hear(what, &mut found));
    found
}

fn hear(what: Found, found: &mut Vec<Event>) {
    if let Found::Event(event) = what {
        found.push(event);
    }
}

fn known(choices: &mut Choices<'_>, cuts: [u8; 4]) {
    let ahead = choices.ahead();
    let mut body = Vec::new();
    if choices.chance() {
        body.extend(b"\xef\xbb\xbf");
    }
    // Where each event ends in the body.
    let (mut truth, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..1 + choices.below(5) {
        let event = event(choices, &mut body);
        ends.push(body.len());
        truth.push(event);
    }
    assert_eq!(play(&[&body]), truth);
    assert_eq!(play_cut(&body, cuts), truth, "cut");

    let hole = Choices(&ahead).range(body.len());
    let (mut events, mut found) = (Events::default(), Vec::new());
    events.feed(&body[..hole.start], &mut |what| hear(what, &mut found));
    events.hole();
    events.feed(&body[hole.end..], &mut |what| hear(what, &mut found));
    events.close(&mut |what| hear(what, &mut found));
    let before = ends.iter().filter(|end| **end <= hole.start).count();
    assert_eq!(found.get(..before), Some(&truth[..before]));
    // An empty line right behind the hole ends an event, or a line whose beginning is missing: so the one that
    // follows may be part of the torn one.
    let behind = ends.iter().filter(|end| **end >= hole.end).count();
    let safe = behind.saturating_sub(2);
    assert!(
        found.ends_with(&truth[truth.len() - safe..]),
        "{found:?} {truth:?}"
    );
    for event in &found[before..found.len() - safe] {
        assert!(
            event.is_cut || truth.contains(event),
            "{event:?} was never sent"
        );
    }
}

fn event(choices: &mut Choices<'_>, body: &mut Vec<u8>) -> Event {
    let mut event = Event::default();
    let end = choices.of(&["\n", "\r\n", "\r"]);
    let mut line = |text: &str| body.extend([text, end].concat().bytes());
    let mut has_data = false;
    for _ in 0..choices.below(6) {
        let value = choices.letters(40);
        match choices.below(6) {
            0 => line(&format!(": {value}")),
            1 => {
                line(&format!("event: {value}"));
                event.name = value.into_bytes();
            }
            2 => {
                line(&format!("id:{value}"));
                event.id = value.into_bytes();
            }
            3 => line(&format!("retry: {value}")),
            _ => {
                line(&format!("data:{value}"));
                if has_data {
                    event.data.push(b'\n');
                }
                has_data = true;
                event.data.extend(value.bytes());
            }
        }
    }
    if !has_data {
        line("data");
    }
    line("");
    event
}
