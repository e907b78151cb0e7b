//! The Model Context Protocol: any connections of a process, any messages, and conversations that are known.
//!
//! Calls never panic, hold what they are bound to at most and nothing when the connections are over, and are told the
//! same however the bytes were cut. Each answer is told with its own request, on whatever connection it comes; where a
//! part is missing, it is said that something is. Without content nothing is told that was said.
//!
//! An input is four bytes that say how it is cut, one that says what the rest is, and that: one connection (see
//! [`steps`]); heads, and four bodies with NULs between them, of two connections; or choices that make a conversation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use play::{
    Choices, is_long, memory,
    talk::{self, Step, over_and_over, steps, with_hole},
    told::BOUNDS,
};
use vortex_agent::{
    event::HandleId,
    http::Teller,
    llm::price::Prices,
    mcp::{Calls, Ear, Waiting, call::Call},
    protocol::{Protocol, Said, Side, exchange::Keep},
    record::Mcp,
    redact::{Clear, Key, OwnedContent, Policy, Redactor, Shown},
};

/// What all that waits may hold, and decoders besides.
const KEPT_MAX: usize = 24 << 20;
const LONG: usize = 1 << 20;

const TARGETS: [&str; 3] = [
    "/mcp",
    "/messages/?session_id=s",
    "https://h.example/mcp?sessionId=s",
];
const MEDIA: [&str; 3] = ["application/json", "text/event-stream", "text/plain"];
const STATUS: [&str; 3] = ["200 OK", "202 Accepted", "404 Not Found"];
const OWN: &str = "mcp-session-id: s\r\nmcp-protocol-version: 2025-11-25\r\n";

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let cuts = choices.array();
    match choices.byte() {
        0 if is_long(input) => long(&steps(choices.0)),
        0 => connections(&alone(steps(choices.0)), cuts),
        1 => bodies(&mut choices, cuts),
        _ => known(&mut choices, cuts),
    }
});

/// What happens on which connection.
type Talk = Vec<(usize, Step)>;

fn alone(steps: Vec<Step>) -> Talk {
    steps.into_iter().map(|step| (0, step)).collect()
}

/// The same bytes in other calls.
fn cut(talk: &Talk, cuts: [u8; 4]) -> Talk {
    let pieces = |(number, step): &(usize, Step)| {
        let number = *number;
        let steps = talk::cut(std::slice::from_ref(step), cuts);
        steps.into_iter().map(move |step| (number, step))
    };
    talk.iter().flat_map(pieces).collect()
}

/// The same connection goes on and on: what is kept has a bound.
fn long(steps: &[Step]) {
    let mut lab = Lab::new();
    memory::assert_kept(over_and_over(steps, LONG), KEPT_MAX, |step| {
        lab.step(0, step, &mut |_| {});
    });
}

fn connections(talk: &Talk, cuts: [u8; 4]) {
    let (whole, is_sure) = play(talk);
    let has_gap = talk.iter().any(|(_, step)| matches!(step, Step::Gap(..)));
    if has_gap || !is_sure {
        return;
    }
    let (cut, is_sure) = play(&cut(talk, cuts));
    // How far something is told that ends in a mistake, be it nothing at all, is for its cuts to say.
    let is_whole = |calls: &[Mcp]| calls.iter().all(|call| call.missing.is_empty());
    if is_sure && is_whole(&whole) && is_whole(&cut) {
        assert_eq!(whole, cut);
    }
}

fn bodies(choices: &mut Choices<'_>, cuts: [u8; 4]) {
    let mut heads = || {
        let own = if choices.chance() { OWN } else { "" };
        let asked = format!("POST {} HTTP/1.1\r\n{own}", choices.of(&TARGETS));
        let answered = format!(
            "HTTP/1.1 {}\r\n{own}content-type: {}\r\n",
            choices.of(&STATUS),
            choices.of(&MEDIA)
        );
        [(Side::Request, asked), (Side::Response, answered)]
    };
    let heads = [heads(), heads()].into_iter().enumerate();
    let heads = heads.flat_map(|(number, both)| both.map(|(side, head)| (number, side, head)));
    let mut bodies = choices.0.splitn(4, |byte| *byte == 0);
    let talk = heads.map(|(number, side, head)| {
        let body = bodies.next().unwrap_or_default();
        (number, Step::Bytes(side, with_body(&head, body)))
    });
    connections(&talk.collect(), cuts);
}

fn with_body(head: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{head}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Connections of one process.
struct Lab {
    lines: [Line; 2],
    waiting: Waiting,
    /// No bytes belonged to no message, and no bound was reached.
    is_sure: bool,
}

struct Line {
    protocol: Protocol,
    keep: Keep,
    calls: Calls,
}

impl Lab {
    fn new() -> Lab {
        let line = || Line {
            protocol: Protocol::new(true),
            keep: Keep::new(BOUNDS),
            calls: Calls::default(),
        };
        Lab {
            lines: [line(), line()],
            waiting: Waiting::default(),
            is_sure: true,
        }
    }

    fn step(&mut self, number: usize, step: &Step, tell: &mut dyn FnMut(Call)) {
        self.with(number, tell, |protocol, keep, hear| {
            step.play(0, protocol, keep, hear);
        });
    }

    fn close(&mut self, tell: &mut dyn FnMut(Call)) {
        for number in 0..self.lines.len() {
            self.with(number, tell, |protocol, keep, hear| {
                protocol.close(7, keep, hear);
            });
        }
        assert_eq!(self.waiting.bytes(), 0, "nothing is open");
    }

    fn with(
        &mut self,
        number: usize,
        tell: &mut dyn FnMut(Call),
        act: impl FnOnce(&mut Protocol, &mut Keep, &mut dyn FnMut(Said<'_>)),
    ) {
        let Lab {
            lines,
            waiting,
            is_sure,
        } = self;
        let Line {
            protocol,
            keep,
            calls,
        } = &mut lines[number];
        let (mut is_full, mut is_astray) = (false, false);
        let mut out = |_| is_full = true;
        let ear = &mut Ear {
            handle: HandleId {
                pid: 7,
                born: 0,
                handle: number as u64,
            },
            time: 7,
            waiting,
            out: &mut out,
        };
        act(protocol, keep, &mut |said| match said {
            Said::Head { exchange, side } => calls.head(exchange, side),
            Said::Body {
                exchange,
                side,
                bytes,
            } => calls.body(exchange, side, bytes, ear),
            Said::Hole { exchange, side } => calls.hole(exchange, side, ear),
            Said::Event {
                exchange, event, ..
            } => calls
                .event(exchange, event, ear)
                .into_iter()
                .for_each(&mut *tell),
            Said::Exchange(exchange) => {
                calls.end(exchange, ear).into_iter().for_each(&mut *tell);
            }
            Said::Closed => {
                let left = calls.close(ear).into_iter();
                left.for_each(|(_, call)| tell(call));
            }
            Said::Data { is_stray, .. } => is_astray |= is_stray,
            _ => {}
        });
        *is_sure &= !is_full && !is_astray;
    }
}

/// All that is told, and whether it must be the same of other calls with the same bytes.
fn play(talk: &Talk) -> (Vec<Mcp>, bool) {
    let [full, none] = [Policy::Full, Policy::None]
        .map(|policy| (policy, Redactor::new(policy, Key::new([1; 32]))));
    let prices = Prices::default();
    let teller = |(policy, redactor)| Teller {
        redactor,
        policy,
        server: None,
        scheme: "https",
        clock: 0,
        prices: &prices,
        live: false,
    };
    let (full, none) = (teller((full.0, &full.1)), teller((none.0, &none.1)));
    let mut told = Vec::new();
    let mut tell = |call: Call| {
        let Mcp {
            arguments,
            params,
            result,
            message,
            data,
            traceparent,
            ..
        } = none.mcp(&call, 1);
        let contents = [arguments, params, result, message, data];
        assert!(contents.iter().all(Option::is_none) && traceparent.is_none());
        told.push(full.mcp(&call, 1));
    };
    let mut lab = Lab::new();
    for (number, step) in talk {
        lab.step(*number, step, &mut tell);
    }
    lab.close(&mut tell);
    (told, lab.is_sure)
}

/// What is to be known of a call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    initiator: &'static str,
    id: Option<String>,
    method: Option<String>,
    /// Its parameters, or the arguments of a tool.
    said: Option<String>,
    /// A result, or the words of an error.
    answered: Option<String>,
}

impl Known {
    fn of(mcp: &Mcp) -> Known {
        let word = |word: &Option<Clear>| word.as_deref().map(str::to_owned);
        Known {
            initiator: mcp.initiator,
            id: word(&mcp.id),
            method: word(&mcp.method),
            said: text(mcp.arguments.as_ref().or(mcp.params.as_ref())),
            answered: text(mcp.result.as_ref().or(mcp.message.as_ref())),
        }
    }
}

fn text(content: Option<&OwnedContent>) -> Option<String> {
    match content?.content().shown() {
        Shown::Raw(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => panic!("all of it is told"),
    }
}

/// A request, as it is written, and its answer.
struct Message {
    asks: String,
    answers: String,
    known: Known,
}

/// `number`: its id, as a number or as text.
fn message(choices: &mut Choices<'_>, number: usize) -> Message {
    let id = match choices.chance() {
        true => number.to_string(),
        false => format!("\"{number}\""),
    };
    let word = choices.letters(30);
    let (method, said, params) = match choices.below(3) {
        0 => {
            let arguments = format!(r#"{{"a":"{word}"}}"#);
            let params = format!(r#"{{"name":"f","arguments":{arguments}}}"#);
            ("tools/call", arguments, params)
        }
        1 => {
            let params = format!(r#"{{"name":"{word}"}}"#);
            ("prompts/get", params.clone(), params)
        }
        _ => {
            let params = format!(r#"{{"uri":"file:///{word}"}}"#);
            ("resources/read", params.clone(), params)
        }
    };
    let word = choices.letters(30);
    let (answered, outcome) = match choices.chance() {
        true => {
            let result = format!(r#"{{"b":"{word}"}}"#);
            let outcome = format!(r#""result":{result}"#);
            (result, outcome)
        }
        false => {
            let outcome = format!(r#""error":{{"code":-3,"message":"{word}"}}"#);
            (word, outcome)
        }
    };
    Message {
        asks: format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#),
        answers: format!(r#"{{"jsonrpc":"2.0","id":{id},{outcome}}}"#),
        known: Known {
            initiator: "client",
            id: Some(number.to_string()),
            method: Some(method.to_owned()),
            said: Some(said),
            answered: Some(answered),
        },
    }
}

/// How answers come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As the body of a response.
    Body,
    /// As events of one.
    Events,
    /// As events of another one, on another connection.
    Elsewhere,
}

fn known(choices: &mut Choices<'_>, cuts: [u8; 4]) {
    let ahead = choices.ahead();
    let way = choices.of(&[Way::Body, Way::Events, Way::Elsewhere]);
    let count = 1 + choices.below(4);
    let mut messages: Vec<Message> = (0..count).map(|number| message(choices, number)).collect();
    let asks: Vec<&str> = messages.iter().map(|message| &*message.asks).collect();
    let asks = match count {
        1 => asks[0].to_owned(),
        _ => format!("[{}]", asks.join(",")),
    };
    let mut expected: Vec<Known> = messages
        .iter()
        .map(|message| message.known.clone())
        .collect();
    if choices.chance() {
        messages.reverse();
    }
    let answers: Vec<&str> = messages.iter().map(|message| &*message.answers).collect();
    let event = |message: &str| format!("event: message\ndata: {message}\n\n");
    let mut body = match way {
        Way::Body if count == 1 => answers[0].to_owned(),
        Way::Body => format!("[{}]", answers.join(", ")),
        Way::Events | Way::Elsewhere => answers.into_iter().map(event).collect(),
    };

    let post = |body: &str| {
        let head = format!("POST /mcp HTTP/1.1\r\n{OWN}content-type: application/json\r\n");
        Step::Bytes(Side::Request, with_body(&head, body.as_bytes()))
    };
    let accepted = Step::Bytes(Side::Response, with_body("HTTP/1.1 202 Accepted\r\n", b""));
    let answer = |media: &str| format!("HTTP/1.1 200 OK\r\ncontent-type: {media}\r\n");
    let stream = answer("text/event-stream") + "\r\n";
    let mut talk = match way {
        Way::Body => {
            let head = answer("application/json");
            let head = format!("{head}content-length: {}\r\n\r\n", body.len());
            vec![
                (0, post(&asks)),
                (0, Step::Bytes(Side::Response, head.into_bytes())),
            ]
        }
        Way::Events => vec![
            (0, post(&asks)),
            (0, Step::Bytes(Side::Response, stream.into_bytes())),
        ],
        Way::Elsewhere => {
            let get = format!("GET /mcp HTTP/1.1\r\n{OWN}\r\n");
            vec![
                (0, Step::Bytes(Side::Request, get.into_bytes())),
                (0, Step::Bytes(Side::Response, stream.into_bytes())),
                (1, post(&asks)),
                (1, accepted.clone()),
            ]
        }
    };
    // The server asks back, and is answered in a request.
    if way != Way::Body && choices.chance() {
        let word = choices.letters(30);
        let params = format!(r#"{{"message":"{word}"}}"#);
        let notice = event(&format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{params}}}"#
        ));
        let asks = event(&format!(
            r#"{{"jsonrpc":"2.0","id":"back","method":"elicitation/create","params":{params}}}"#
        ));
        talk.push((
            0,
            Step::Bytes(Side::Response, (notice + &asks).into_bytes()),
        ));
        talk.push((1, post(r#"{"jsonrpc":"2.0","id":"back","result":{"c":1}}"#)));
        talk.push((1, accepted));
        let said = |id: Option<&str>, method: &str, answered: Option<&str>| Known {
            initiator: "server",
            id: id.map(str::to_owned),
            method: Some(method.to_owned()),
            said: Some(params.clone()),
            answered: answered.map(str::to_owned),
        };
        expected.push(said(None, "notifications/message", None));
        expected.push(said(Some("back"), "elicitation/create", Some(r#"{"c":1}"#)));
        // What nobody answers any more.
        body += ": the end\n\n";
    }
    let at = talk.len();
    talk.push((0, Step::Bytes(Side::Response, body.clone().into_bytes())));

    expected.sort();
    for talk in [talk.clone(), cut(&talk, cuts)] {
        let (calls, is_sure) = play(&talk);
        assert!(is_sure);
        for call in &calls {
            assert!(call.missing.is_empty(), "{:?} of {call:?}", call.missing);
        }
        let mut told: Vec<Known> = calls.iter().map(Known::of).collect();
        told.sort();
        assert_eq!(told, expected);
    }

    // A hole in the answers: each request is told once, with its own answer or with none.
    let hole = Choices(&ahead).range(body.len());
    let (_, step) = talk.remove(at);
    let torn = with_hole(&[step], 0, hole);
    talk.extend(alone(torn));
    let (calls, _) = play(&talk);
    let of_clients = |call: &&Mcp| call.initiator == "client" && call.method.is_some();
    assert_eq!(calls.iter().filter(of_clients).count(), count);
    for call in &calls {
        let told = Known::of(call);
        let lacks = |what: &str| call.missing.contains(&what);
        if told.method.is_none() {
            assert!(lacks("request"), "{told:?}");
            continue;
        }
        let meant = expected
            .iter()
            .find(|known| (&known.id, &known.method) == (&told.id, &told.method));
        let meant = meant.expect("somebody asked that");
        assert_eq!(told.said, meant.said);
        assert!(lacks("response") || told.answered == meant.answered);
    }
}
