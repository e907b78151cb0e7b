use std::{hint::black_box, time::Instant};

use super::{
    exchange::{Bounds, Keep},
    *,
};
use Direction::{Received, Sent};

const BOUNDS: Bounds = Bounds {
    body: 1 << 10,
    total: 4 << 10,
};

/// A connection that counts its offsets, and what is said of it, in lines.
struct Play {
    protocol: Protocol,
    keep: Keep,
    offsets: [u64; 2],
    said: Vec<String>,
}

impl Play {
    fn new(from_start: bool) -> Play {
        Play {
            protocol: Protocol::new(from_start),
            keep: Keep::new(BOUNDS),
            offsets: [0, 0],
            said: Vec::new(),
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
        let said = &mut self.said;
        self.protocol
            .feed(piece, Some(Sent), &mut self.keep, &mut |what| {
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
        assert_eq!(self.keep.used(), 0, "bodies are kept of nobody");
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
            let target = |half: &exchange::Half<head::Request>| {
                text(half.head.as_ref()?.target.as_ref()?).into()
            };
            let status = exchange
                .response
                .as_ref()
                .and_then(|half| half.head.as_ref()?.status);
            let body = exchange.response.as_ref().map(|half| text(&half.body.kept));
            format!(
                "{:?} {status:?} {}",
                exchange
                    .request
                    .as_ref()
                    .and_then(target)
                    .unwrap_or("?".to_owned()),
                body.unwrap_or_default()
            )
        }
        Said::Event { event, number, .. } => format!("event {number} {}", text(&event.data)),
        Said::Message { direction, message } => {
            format!("{direction:?} {:?} {}", message.kind, text(&message.bytes))
        }
        Said::Limit(limit) => format!("{limit:?}"),
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
                kept.push(exchange.response.as_ref().unwrap().body.kept.len());
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
                let body = &exchange.response.as_ref().unwrap().body;
                assert!(body.is_cut);
                kept.push(body.kept.len());
            }
        });
    }
    assert_eq!(kept, [1024, 1024, 1024, 1024, 0, 0]);
    assert_eq!(keep.used(), 0);
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
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
    };
    let learned = |fields: &[(&str, &str)]| -> Vec<u8> {
        let literal = |(name, value): &(&str, &str)| {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            [&[0x40, name.len() as u8], name, &[value.len() as u8], value].concat()
        };
        fields.iter().flat_map(literal).collect()
    };
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
