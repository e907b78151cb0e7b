use std::{hint::black_box, time::Instant};

use super::{
    exchange::{Bounds, Keep},
    *,
};
use Direction::{Received, Sent};

const BOUNDS: Bounds = Bounds {
    body: 1 << 10,
    total: 4 << 10,
    share: 1 << 20,
    held: 1 << 20,
};

/// A connection that counts its offsets, and what is said of it, in lines.
struct Play {
    protocol: Protocol,
    keep: Keep,
    offsets: [u64; 2],
    said: Vec<String>,
    /// Of the exchanges that were told.
    ids: Vec<u64>,
}

impl Play {
    fn new(from_start: bool) -> Play {
        Play::within(BOUNDS, from_start)
    }

    fn within(bounds: Bounds, from_start: bool) -> Play {
        Play {
            protocol: Protocol::new(from_start),
            keep: Keep::new(bounds),
            offsets: [0, 0],
            said: Vec::new(),
            ids: Vec::new(),
        }
    }

    fn feed(&mut self, direction: Direction, bytes: &[u8]) {
        let offset = &mut self.offsets[direction as usize];
        let piece = Piece {
            direction,
            offset: *offset,
            bytes: Plaintext::new(bytes),
            time: 7,
        };
        *offset += bytes.len() as u64;
        let (said, ids) = (&mut self.said, &mut self.ids);
        self.protocol
            .feed(piece, Some(Sent), &mut self.keep, &mut |what| {
                if let Said::Exchange(exchange) = &what {
                    ids.push(exchange.id);
                }
                note(what, said)
            });
    }

    fn gap(&mut self, direction: Direction, length: u64) {
        self.offsets[direction as usize] += length;
        let said = &mut self.said;
        self.protocol
            .gap(direction, length, 7, &mut self.keep, &mut |what| {
                note(what, said)
            });
    }

    fn close(mut self) -> Vec<String> {
        let said = &mut self.said;
        self.protocol
            .close(7, &mut self.keep, &mut |what| note(what, said));
        let kept = (self.keep.used(), self.keep.held());
        assert_eq!(kept, (0, 0), "something is kept of nobody");
        self.said
    }
}

fn note(what: Said<'_>, said: &mut Vec<String>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    said.push(match what {
        Said::Data {
            direction,
            offset,
            bytes,
            is_stray,
            ..
        } => {
            let stray = if is_stray { " stray" } else { "" };
            format!("{direction:?} {offset} {}{stray}", text(bytes.reveal()))
        }
        Said::Exchange(exchange) => {
            let target = exchange.asked().and_then(|head| head.target.as_ref());
            let status = exchange.answered().and_then(|head| head.status);
            let body = exchange.response().map(|half| text(&half.body.kept));
            format!(
                "{:?} {status:?} {}",
                target.map_or("?".into(), |target| text(target)),
                body.unwrap_or_default()
            )
        }
        Said::Event { event, number, .. } => format!("event {number} {}", text(&event.data)),
        Said::Message { direction, message } => {
            format!("{direction:?} {:?} {}", message.kind, text(&message.bytes))
        }
        Said::Limit(limit) => format!("{limit:?}"),
        Said::Line { line, .. } => {
            let cut = if line.is_cut { " cut" } else { "" };
            format!("line {} {}{cut}", line.number, text(line.bytes))
        }
        // When it is said depends on the calls.
        Said::Asked(_)
        | Said::Open(_)
        | Said::Part { .. }
        | Said::Head { .. }
        | Said::Body { .. }
        | Said::Hole { .. }
        | Said::Closed => return,
    });
}

const ASKED: &[u8] = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
const ANSWERED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const TOLD: &str = "\"/a\" Some(200) ok";

#[test]
fn either_end_may_be_the_client() {
    for (asks, answers) in [(Sent, Received), (Received, Sent)] {
        for cut in 0..ASKED.len() {
            let mut play = Play::new(true);
            play.feed(asks, &ASKED[..cut]);
            play.feed(asks, &ASKED[cut..]);
            play.feed(answers, ANSWERED);
            assert_eq!(play.close(), [TOLD], "{cut}");
        }
    }
}

/// HTTP/2, its server's settings first.
#[test]
fn a_server_may_speak_first() {
    let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
    // `:method: GET`, `:scheme: https`, `:path: /`, and `:status: 200`.
    let get = [0, 0, 3, 1, 5, 0, 0, 0, 1, 0x82, 0x87, 0x84];
    let ok = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
    let mut play = Play::new(true);
    play.feed(Received, &settings[..4]);
    play.feed(Received, &settings[4..]);
    play.feed(Sent, http2::PREFACE);
    play.feed(Sent, &[&settings[..], &get].concat());
    play.feed(Received, &ok);
    assert_eq!(play.close(), ["\"/\" Some(200) "]);
}

#[test]
fn what_is_of_no_protocol_is_data() {
    for calls in [
        &[(Received, &b"220 ready\r\n"[..]), (Sent, b"EHLO me\r\n")][..],
        &[(Sent, b"EHLO me\r\n"), (Received, b"250 me\r\n")],
        &[(Sent, b"PRI * HTTP/3"), (Sent, b" and more\r\n")],
        &[(Sent, b"\x16\x03\x01"), (Sent, b"\0")],
        &[(Sent, b"GET"), (Sent, b" / HTTP/1.1 or not\r\n")],
        &[(Sent, b"G"), (Sent, b"o"), (Sent, b"!")],
    ] {
        let mut play = Play::new(true);
        let mut expected = Vec::new();
        for (direction, bytes) in calls {
            let offset = play.offsets[*direction as usize];
            expected.push(format!(
                "{direction:?} {offset} {}",
                String::from_utf8_lossy(bytes)
            ));
            play.feed(*direction, bytes);
        }
        assert!(play.protocol.is_opaque());
        assert_eq!(play.close(), expected);
    }
    // Nothing tells what this would have become.
    let mut play = Play::new(true);
    play.feed(Sent, b"GE");
    assert_eq!(play.said, Vec::<String>::new());
    assert_eq!(play.close(), ["Sent 0 GE"]);
    // Nobody waits for a line's end for ever.
    let mut play = Play::new(true);
    play.feed(Sent, &[b"GET ", &vec![b'x'; UNDECIDED_MAX][..]].concat());
    assert!(play.protocol.is_opaque());
}

#[test]
fn joined_in_the_middle() {
    let mut play = Play::new(false);
    play.feed(Received, b"the end of it");
    play.feed(Sent, ASKED);
    play.feed(Received, ANSWERED);
    assert_eq!(play.close(), ["Received 0 the end of it", TOLD]);

    let mut play = Play::new(true);
    play.gap(Sent, 100);
    play.feed(Received, ANSWERED);
    assert_eq!(play.close(), ["\"?\" Some(200) ok"]);
}

/// Bytes of no message have their place, also those that came in an earlier call.
#[test]
fn stray_bytes_have_their_place() {
    let mut play = Play::new(true);
    play.feed(Sent, ASKED);
    play.feed(Received, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxno");
    play.feed(Received, b" head\r\n\r\n");
    play.feed(Received, b"rest");
    assert_eq!(
        play.close(),
        [
            "\"/a\" Some(200) x",
            "Received 39 no head\r\n\r\n stray",
            "Received 50 rest stray"
        ]
    );
}

#[test]
fn behind_connect_it_begins_again() {
    let mut play = Play::new(true);
    play.feed(Sent, b"CONNECT a:80 HTTP/1.1\r\n\r\n");
    play.feed(Received, b"HTTP/1.1 200 OK\r\n\r\n");
    play.feed(Sent, ASKED);
    play.feed(Received, ANSWERED);
    assert_eq!(play.close(), ["\"a:80\" Some(200) ", TOLD]);
}

/// What was open there is told before, and is not what comes behind.
#[test]
fn behind_an_upgrade_it_begins_again() {
    let mut play = Play::new(true);
    play.feed(Sent, b"POST /up HTTP/1.1\r\nContent-Length: 9\r\n\r\nab");
    play.feed(Received, b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n");
    play.feed(Sent, ASKED);
    play.feed(Received, ANSWERED);
    assert_eq!(play.ids, [0, 1]);
    assert_eq!(play.close(), ["\"/up\" Some(101) ", TOLD]);
}

/// Messages that are cut keep their direction: by a hole, and by the end of the connection.
#[test]
fn cut_messages_keep_their_direction() {
    for ends_by_hole in [true, false] {
        let mut play = Play::new(true);
        play.feed(Sent, b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n");
        play.feed(Received, b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n");
        play.feed(Received, b"\x81\x05He");
        play.feed(Sent, b"\x81\x85\0\0\0\0ab");
        if ends_by_hole {
            play.gap(Received, 100);
            play.gap(Sent, 100);
        }
        let mut said = play.close();
        said.sort();
        assert_eq!(
            said,
            ["\"/\" Some(101) ", "Received Text He", "Sent Text ab"],
            "{ends_by_hole}"
        );
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

/// Fields that go into the table of HTTP/2.
fn learned(fields: &[(&str, &str)]) -> Vec<u8> {
    let literal = |(name, value): &(&str, &str)| {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        [&[0x40, name.len() as u8], name, &[value.len() as u8], value].concat()
    };
    fields.iter().flat_map(literal).collect()
}

/// A server may reset a stream that it has answered before it reads where the request ends, which may be a frame of
/// its own.
#[test]
fn a_stream_that_is_reset_behind_its_last_byte() {
    for (length, is_whole) in [("5", true), ("6", false)] {
        let asked = learned(&[
            (":method", "POST"),
            (":path", "/"),
            ("content-length", length),
        ]);
        let mut protocol = Protocol::new(true);
        let keep = &mut Keep::new(BOUNDS);
        let mut told = Vec::new();
        for (direction, bytes) in [
            (Sent, http2::PREFACE.to_vec()),
            (Sent, frame(1, 4, 1, &asked)),
            (Sent, frame(0, 0, 1, b"asked")),
            (Received, frame(1, 5, 1, &[0x88])),
            (Received, frame(3, 0, 1, &[0; 4])),
            (Sent, frame(0, 1, 1, b"")),
        ] {
            let piece = Piece {
                direction,
                offset: 0,
                bytes: Plaintext::new(&bytes),
                time: 7,
            };
            protocol.feed(piece, Some(Sent), keep, &mut |what| {
                if let Said::Exchange(exchange) = what {
                    told.extend(exchange.halves().map(|half| half.is_whole));
                }
            });
        }
        assert_eq!(told, [is_whole, true], "{length}");
    }
}

/// A stream that is a WebSocket (RFC 8441, section 5.1) beside one that is none.
fn socket_of_http2() -> [(Direction, Vec<u8>); 4] {
    let connect = learned(&[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":path", "/chat"),
        (":authority", "x"),
    ]);
    let get = learned(&[(":method", "GET"), (":scheme", "https"), (":path", "/b")]);
    let accepted = learned(&[
        (":status", "200"),
        ("sec-websocket-extensions", "permessage-deflate"),
    ]);
    let said = [
        frame(0, 0, 1, b"\x81\x85\0\0\0\0as"),
        frame(0, 0, 1, b"ked\x82"),
        frame(0, 1, 1, b"\x81\0\0\0\0!\x88\x82\0\0\0\0\x03\xe8"),
    ];
    // The message of RFC 7692, section 7.2.3.1, by two frames.
    let answered = [
        frame(0, 0, 1, &[0xc1, 0x07, 0xf2, 0x48, 0xcd]),
        frame(1, 4, 3, &learned(&[(":status", "200")])),
        frame(0, 1, 3, b"plain"),
        frame(0, 0, 1, &[0xc9, 0xc9, 0x07, 0x00]),
        frame(0, 1, 1, b""),
    ];
    [
        (
            Sent,
            [
                http2::PREFACE,
                &frame(1, 4, 1, &connect),
                &frame(1, 5, 3, &get),
            ]
            .concat(),
        ),
        (Received, frame(1, 4, 1, &accepted)),
        (Sent, said.concat()),
        (Received, answered.concat()),
    ]
}

#[test]
fn a_stream_may_be_a_websocket() {
    let calls = socket_of_http2();
    for (at, cut) in calls
        .iter()
        .enumerate()
        .flat_map(|(at, (_, bytes))| (0..bytes.len()).map(move |cut| (at, cut)))
    {
        let mut play = Play::new(true);
        for (number, (direction, bytes)) in calls.iter().enumerate() {
            let (first, second) = bytes.split_at(if number == at { cut } else { 0 });
            play.feed(*direction, first);
            play.feed(*direction, second);
        }
        assert_eq!(
            play.close(),
            [
                "Sent Text asked",
                "Sent Binary !",
                "Sent Close(Some(1000)) ",
                "\"/b\" Some(200) plain",
                "Received Text Hello",
                "\"/chat\" Some(200) ",
            ],
            "{at} {cut}"
        );
    }
}

/// A hole in a frame of HTTP/2 is one in a message; one that may hide frames ends all that is told of the socket.
#[test]
fn a_websocket_of_a_stream_has_holes() {
    let [asked, accepted, ..] = socket_of_http2();
    let begin = || {
        let mut play = Play::new(true);
        play.feed(asked.0, &asked.1);
        play.feed(accepted.0, &accepted.1);
        play
    };
    let message = frame(0, 0, 1, b"\x81\x09123456789");
    let mut play = begin();
    play.feed(Received, &message[..13]);
    play.gap(Received, 3);
    play.feed(Received, &message[16..]);
    play.feed(Received, &frame(0, 1, 1, b"\x81\x01x"));
    assert_eq!(
        play.said,
        ["Received Text 126789", "Received Text x"].map(str::to_owned)
    );

    // More is missing than the frame had left, and not more than the message had.
    let mut play = begin();
    play.feed(Received, &frame(0, 0, 1, b"\x81\x6412345")[..13]);
    play.gap(Received, 30);
    play.feed(Received, &frame(0, 0, 1, b"6789 and more"));
    let said = play.close();
    assert_eq!(said[0], "Received Text 12");
    assert_eq!(
        said.iter().filter(|line| line.contains("Text")).count(),
        1,
        "{said:?}"
    );
    assert!(
        said.iter().any(|line| line.contains("6789 and more")),
        "{said:?}"
    );
}

/// A line is told as soon as it is whole, however it was cut, and only as far as the body is kept.
#[test]
fn lines_of_a_response() {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: application/jsonl\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answered = format!("{head}4\r\none\n\r\n6\r\ntwo\nth\r\n3\r\nree\r\n0\r\n\r\n");
    let told = ["line 0 one", "line 1 two", "line 2 three"];
    let over = "\"/a\" Some(200) one\ntwo\nthree";
    for cut in 0..=answered.len() {
        let mut play = Play::new(true);
        play.feed(Sent, ASKED);
        play.feed(Received, &answered.as_bytes()[..cut]);
        let early = play.said.len().min(told.len());
        assert_eq!(play.said[..early], told[..early], "{cut}");
        // Before anything comes behind it.
        assert_eq!(early > 0, cut >= head.len() + "4\r\none\n".len(), "{cut}");
        play.feed(Received, &answered.as_bytes()[cut..]);
        let said = play.close();
        assert_eq!(said[..3], told, "{cut}");
        assert_eq!(said[3..], [over], "{cut}");
    }

    // Its end is not seen.
    let mut play = Play::new(true);
    play.feed(Sent, ASKED);
    play.feed(Received, &answered.as_bytes()[..answered.len() - 13]);
    assert_eq!(
        play.close()[..3],
        ["line 0 one", "line 1 two", "line 2 th cut"]
    );

    // What is not kept is in no line.
    let mut play = Play::new(true);
    play.feed(Sent, ASKED);
    let long = "x".repeat(BOUNDS.body);
    play.feed(
        Received,
        format!("{head}401\r\n1\n{}\r\n", &long[..1023]).as_bytes(),
    );
    play.feed(Received, b"4\r\ny\nz\n\r\n0\r\n\r\n");
    let said = play.close();
    assert_eq!(said[0], "line 0 1");
    assert_eq!(said[1], format!("line 1 {} cut", &long[..1022]));
    assert_eq!(
        said.iter().filter(|said| said.starts_with("line")).count(),
        2
    );
}

/// The same of HTTP/2: the connection ends in the middle of a line.
#[test]
fn lines_of_a_stream() {
    let frame = |kind, flags, payload: &[u8]| {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    };
    let mut play = Play::new(true);
    play.feed(
        Sent,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    );
    play.feed(Sent, &frame(1, 5, &[0x82, 0x87, 0x84]));
    play.feed(Received, b"\0\0\0\x04\0\0\0\0\0");
    // `:status: 200`, `content-type`.
    play.feed(Received, &frame(1, 4, b"\x88\x0f\x10\x11application/jsonl"));
    play.feed(Received, &frame(0, 0, b"{\"n\":1}\n{\"n\""));
    play.feed(Received, &frame(0, 0, b":2}\n{"));
    assert_eq!(play.said, ["line 0 {\"n\":1}", "line 1 {\"n\":2}"]);
    assert_eq!(play.close()[2], "line 2 { cut");
}

/// What goes on is told of once for each part that is known: by its events, its messages, or because it waits.
#[test]
fn what_goes_on_is_told_of() {
    fn live(calls: &[(Direction, &[u8])], shows: bool) -> Vec<String> {
        let mut protocol = Protocol::new(true);
        let keep = &mut Keep::new(BOUNDS);
        let mut told = Vec::new();
        let mut out = |what: Said<'_>| match what {
            Said::Asked(exchange) => told.push(format!("asked {exchange}")),
            Said::Open(exchange) => {
                let extents: Vec<_> = exchange.halves().map(|half| half.told).collect();
                told.push(format!("open {} {extents:?}", exchange.id));
            }
            Said::Part { number, size, .. } => told.push(format!("part {number} {size}")),
            Said::Event { number, .. } => told.push(format!("event {number}")),
            Said::Line { line, .. } => told.push(format!("line {}", line.number)),
            Said::Exchange(exchange) => {
                let extents: Vec<_> = exchange.halves().map(|half| half.told).collect();
                told.push(format!("over {} {extents:?}", exchange.id));
            }
            // For those who read along.
            Said::Head { .. } | Said::Body { .. } | Said::Closed => {}
            _ => panic!("nothing else"),
        };
        let mut offsets = [0, 0];
        for (direction, bytes) in calls {
            let piece = Piece {
                direction: *direction,
                offset: offsets[*direction as usize],
                bytes: Plaintext::new(bytes),
                time: 7,
            };
            offsets[*direction as usize] += bytes.len() as u64;
            protocol.feed(piece, Some(Sent), keep, &mut out);
            if shows {
                protocol.show(0, &mut out);
            }
        }
        protocol.close(7, keep, &mut out);
        told
    }

    // Over at once: nothing in between.
    let plain = [(Sent, ASKED), (Received, ANSWERED)];
    assert_eq!(
        live(&plain, false),
        ["asked 0", "over 0 [Nothing, Nothing]"]
    );
    // It waits, and waits on.
    let (head, body) = ANSWERED.split_at(30);
    let slow = [(Sent, ASKED), (Received, head), (Received, body)];
    assert_eq!(
        live(&slow, true),
        ["asked 0", "open 0 [Nothing]", "over 0 [All, Nothing]"]
    );
    // An upload that waits: its body is told when it is over.
    let (begun, rest) = (b"PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\na", b"b");
    let upload = [(Sent, &begun[..]), (Sent, rest), (Received, ANSWERED)];
    assert_eq!(
        live(&upload, true),
        ["asked 0", "open 0 [Nothing]", "over 0 [Head, Nothing]"]
    );
    // Events, whether or not it waited before.
    let stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\n";
    let events = [(Sent, ASKED), (Received, &stream[..])];
    assert_eq!(
        live(&events, false),
        [
            "asked 0",
            "open 0 [Nothing, Nothing]",
            "event 0",
            "over 0 [All, All]"
        ]
    );
    assert_eq!(
        live(&events, true),
        [
            "asked 0",
            "open 0 [Nothing]",
            "open 0 [All, Nothing]",
            "event 0",
            "over 0 [All, All]"
        ]
    );
    // Lines, of responses only.
    let stream = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n1\n2\n3";
    let lines = [(Sent, ASKED), (Received, &stream[..])];
    assert_eq!(
        live(&lines, false),
        [
            "asked 0",
            "open 0 [Nothing, Nothing]",
            "line 0",
            "line 1",
            "line 2",
            "over 0 [All, All]"
        ]
    );
    let bulk =
        b"PUT / HTTP/1.1\r\nContent-Type: application/x-ndjson\r\nContent-Length: 4\r\n\r\n1\n2\n";
    let bulk = [(Sent, &bulk[..]), (Received, ANSWERED)];
    assert_eq!(live(&bulk, false), ["asked 0", "over 0 [Nothing, Nothing]"]);
    // Messages, from the second on.
    let call =
        b"POST /s/m HTTP/1.1\r\nContent-Type: application/grpc\r\nContent-Length: 19\r\n\r\n";
    let message = b"\0\0\0\0\x01x";
    let calls = [
        (Sent, &call[..]),
        (Sent, message),
        (Sent, message),
        (Sent, b"\0\0\0\0\x02yz"),
        (Received, ANSWERED),
    ];
    assert_eq!(
        live(&calls, false),
        [
            "asked 0",
            "open 0 [Nothing]",
            "part 2 2",
            "over 0 [All, Nothing]"
        ]
    );
}

/// Both bounds: of a body, and of all that are open.
#[test]
fn bodies_have_their_bounds() {
    let long = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n{}",
        "x".repeat(2000)
    );
    let mut keep = Keep::new(BOUNDS);
    let mut connections: Vec<Protocol> = (0..6).map(|_| Protocol::new(true)).collect();
    let mut kept = Vec::new();
    for (number, connection) in connections.iter_mut().enumerate() {
        let mut out = |what: Said<'_>| {
            if let Said::Exchange(exchange) = what {
                kept.push(exchange.response().unwrap().body.kept.len());
            }
        };
        for (direction, bytes) in [(Sent, ASKED), (Received, &long.as_bytes()[..1900])] {
            let piece = Piece {
                direction,
                offset: 0,
                bytes: Plaintext::new(bytes),
                time: 7,
            };
            connection.feed(piece, None, &mut keep, &mut out);
        }
        assert_eq!(keep.used(), BOUNDS.total.min((number + 1) * BOUNDS.body));
    }
    for connection in &mut connections {
        connection.close(7, &mut keep, &mut |what| {
            if let Said::Exchange(exchange) = what {
                let body = &exchange.response().unwrap().body;
                assert!(body.is_cut);
                kept.push(body.kept.len());
            }
        });
    }
    assert_eq!(kept, [1024, 1024, 1024, 1024, 0, 0]);
    assert_eq!(keep.used(), 0);
}

/// A request of HTTP/2 that nothing is waited of, as its stream's number says.
fn get(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    let path = format!("/{stream}");
    let asked = learned(&[(":method", "GET"), (":path", &path)]);
    frame(1, 5, stream, &[asked, learned(fields)].concat())
}

/// Heads of streams that nobody answers: what is too much is not kept, and behind it all is told again.
#[test]
fn heads_have_their_share_of_memory() {
    let bounds = Bounds {
        share: 8 << 10,
        ..BOUNDS
    };
    let mut play = Play::within(bounds, true);
    play.feed(Sent, http2::PREFACE);
    let long = "x".repeat(100);
    let fields: Vec<(&str, &str)> = (0..10).map(|_| ("name", &long[..])).collect();
    for number in 0..100 {
        play.feed(Sent, &get(2 * number + 1, &fields));
        assert!(play.keep.held() <= bounds.share, "{}", play.keep.held());
    }
    let said = std::mem::take(&mut play.said);
    let kept = 8192 / (10 * (104 + 12) + 3);
    assert_eq!(said, vec!["Memory"; 100 - kept]);
    for number in 0..100 {
        play.feed(Received, &frame(3, 0, 2 * number + 1, &[0; 4]));
    }
    let told = std::mem::take(&mut play.said);
    assert_eq!(
        told.iter().filter(|line| line.starts_with("\"?\"")).count(),
        100 - kept
    );
    assert_eq!(told[1], "\"/3\" None ");
    assert_eq!(play.keep.held(), 0);
    play.feed(Sent, &get(201, &fields));
    play.feed(Received, &frame(1, 5, 201, &[0x88]));
    assert_eq!(play.close(), ["\"/201\" Some(200) "]);
}

/// Two bodies are read at once, and the third as soon as one of them is over.
#[test]
fn codings_have_their_share_of_memory() {
    let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut coder, b"plain").unwrap();
    let coded = coder.finish().unwrap();
    let bounds = Bounds {
        held: 100 << 10,
        ..BOUNDS
    };
    let mut play = Play::within(bounds, true);
    play.feed(Sent, http2::PREFACE);
    let begin = |play: &mut Play, stream| {
        play.feed(Sent, &get(stream, &[]));
        let head = [&[0x88][..], &learned(&[("content-encoding", "gzip")])].concat();
        play.feed(Received, &frame(1, 4, stream, &head));
        play.feed(Received, &frame(0, 0, stream, &coded[..7]));
    };
    let end = |play: &mut Play, stream| {
        play.feed(Received, &frame(0, 1, stream, &coded[7..]));
    };
    begin(&mut play, 1);
    begin(&mut play, 3);
    begin(&mut play, 5);
    end(&mut play, 1);
    begin(&mut play, 7);
    for stream in [3, 5, 7] {
        end(&mut play, stream);
    }
    assert_eq!(
        play.close(),
        [
            "Memory",
            "\"/1\" Some(200) plain",
            "\"/3\" Some(200) plain",
            "\"/5\" Some(200) ",
            "\"/7\" Some(200) plain"
        ]
    );
}

/// Events and messages of streams that are not whole, and what of them is told when there is no room for more.
#[test]
fn events_and_messages_have_their_share_of_memory() {
    let bounds = Bounds {
        share: 1 << 10,
        ..BOUNDS
    };
    let mut play = Play::within(bounds, true);
    play.feed(Sent, http2::PREFACE);
    play.feed(Sent, &get(1, &[]));
    let head = [
        &[0x88][..],
        &learned(&[("content-type", "text/event-stream")]),
    ]
    .concat();
    play.feed(Received, &frame(1, 4, 1, &head));
    play.feed(Received, &frame(0, 0, 1, b"data: one\n\ndata: "));
    play.feed(Received, &frame(0, 0, 1, &[b'x'; 2000]));
    play.feed(Received, &frame(0, 1, 1, b"\n\ndata: not told\n\n"));
    let said = std::mem::take(&mut play.said);
    assert_eq!(said[..2], ["event 0 one", "Memory"]);
    assert!(
        said[2].starts_with("\"/1\" Some(200) data: one"),
        "{said:?}"
    );
    assert_eq!((said.len(), play.keep.held()), (3, 0));
    let mut connect = Play::within(bounds, true);
    for (direction, bytes) in &socket_of_http2()[..2] {
        connect.feed(*direction, bytes);
    }
    // Its windows are too large for this bound.
    assert_eq!(connect.said, ["Memory"]);
    connect.feed(Received, &frame(1, 5, 3, &[0x88]));
    assert_eq!(connect.said[1..], ["\"/b\" Some(200) "]);
}

/// What gives up a coding or a table is counted, and what follows is read.
#[test]
fn codings_and_tables_have_their_bounds() {
    let mut play = Play::new(true);
    for coding in ["gzip, gzip, gzip, gzip, gzip", "identity"] {
        play.feed(Sent, ASKED);
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: 2\r\n\r\nok");
        play.feed(Received, head.as_bytes());
    }
    assert_eq!(play.close(), ["Coding", "\"/a\" Some(200) ", TOLD]);

    let mut play = Play::new(true);
    play.feed(Sent, http2::PREFACE);
    // The size becomes 1 MiB.
    let asked = [&[0x3f, 0xe1, 0xff, 0x3f][..], &learned(&[(":path", "/1")])].concat();
    play.feed(Sent, &frame(1, 5, 1, &asked));
    play.feed(Sent, &get(3, &[]));
    play.feed(Received, &frame(1, 5, 1, &[0x88]));
    play.feed(Received, &frame(1, 5, 3, &[0x88]));
    assert_eq!(
        play.close(),
        ["Table", "\"/1\" Some(200) ", "\"/3\" Some(200) "]
    );
}

/// `cargo xtask bench decode`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    fn feed(protocol: &mut Protocol, direction: Direction, bytes: &[u8], keep: &mut Keep) -> u64 {
        let mut count = 0;
        let piece = Piece {
            direction,
            offset: 0,
            bytes: Plaintext::new(bytes),
            time: 7,
        };
        protocol.feed(piece, Some(Sent), keep, &mut |what| {
            count += u64::from(matches!(what, Said::Exchange(_)));
            black_box(&what);
        });
        count
    }
    let keep = &mut Keep::new(Bounds::default());

    // Bodies of 512 KiB, all of which is kept; 16 KiB a call, as TLS carries them.
    let mut protocol = Protocol::new(true);
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 524288\r\n\r\n";
    let block = vec![b'x'; 16 << 10];
    let start = Instant::now();
    let mut count = 0;
    for _ in 0..4096 {
        feed(&mut protocol, Sent, ASKED, keep);
        feed(&mut protocol, Received, head, keep);
        for _ in 0..32 {
            count += feed(&mut protocol, Received, black_box(&block), keep);
        }
    }
    assert_eq!(count, 4096);
    let rate = 4096.0 * 0.524288 / start.elapsed().as_secs_f64();
    println!("speed http1-bodies {rate:.0}");

    // Small exchanges, as an API has them.
    let asked =
        b"POST /v1/things/4711 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: client/1.2\r\n\
        Accept: */*\r\nContent-Type: application/json\r\nAuthorization: Bearer 0123456789abcdef\r\n\
        Content-Length: 16\r\n\r\n{\"name\":\"value\"}";
    let answered = b"HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 18:17:09 GMT\r\nServer: example\r\n\
        Content-Type: application/json\r\nContent-Length: 15\r\nConnection: keep-alive\r\n\r\n{\"done\": true }";
    let mut protocol = Protocol::new(true);
    let start = Instant::now();
    let mut count = 0;
    for _ in 0..1_000_000 {
        feed(&mut protocol, Sent, black_box(asked), keep);
        count += feed(&mut protocol, Received, black_box(answered), keep);
    }
    assert_eq!((count, keep.used()), (1_000_000, 0));
    println!(
        "speed http1-exchanges {:.0}",
        1e6 / start.elapsed().as_secs_f64()
    );

    // The same by HTTP/2: the first fields are learned, then referred to.
    let mut protocol = Protocol::new(true);
    let asked = learned(&[
        (":authority", "api.example.com"),
        (":path", "/v1/things"),
        ("user-agent", "client/1.2"),
        ("authorization", "Bearer 0123456789abcdef"),
    ]);
    let answered = learned(&[
        ("date", "Sat, 21 Nov 2026 18:17:09 GMT"),
        ("server", "example"),
        ("content-type", "application/json"),
    ]);
    let start = Instant::now();
    let mut count = 0;
    feed(&mut protocol, Sent, http2::PREFACE, keep);
    for number in 0..500_000_u32 {
        let stream = 2 * number + 1;
        let (asks, answers) = match number {
            0 => (
                [&[0x83, 0x87][..], &asked].concat(),
                [&[0x88][..], &answered].concat(),
            ),
            _ => (
                vec![0x83, 0x87, 0xc1, 0xc0, 0xbf, 0xbe],
                vec![0x88, 0xc0, 0xbf, 0xbe],
            ),
        };
        let asks = [
            frame(1, 4, stream, &asks),
            frame(0, 1, stream, b"{\"name\":\"value\"}"),
        ]
        .concat();
        let answers = [
            frame(1, 4, stream, &answers),
            frame(0, 1, stream, b"{\"done\": true }"),
        ]
        .concat();
        feed(&mut protocol, Sent, &asks, keep);
        count += feed(&mut protocol, Received, &answers, keep);
    }
    assert_eq!((count, keep.used()), (500_000, 0));
    println!(
        "speed http2-exchanges {:.0}",
        5e5 / start.elapsed().as_secs_f64()
    );
}
