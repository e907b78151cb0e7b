//! Exchanges, events and messages → what records may show of them.
//!
//! Everything goes through the redactor here, field by field: lines of heads by their names, addresses,
//! bodies. With `--content none` there is no body, no line of a head but the few that say what it is, and no other
//! text that an end is free to write.

use crate::{
    llm::price::Prices,
    plaintext::Plaintext,
    protocol::{
        charset,
        exchange::{Body, Exchange, Extent, Half},
        head::{Fields, Request, Response},
        sse, websocket,
    },
    record::{
        Grpc, Header, Http, HttpBody, HttpHalf, Interim, Messages, Sse, Url, WallTime, WebSocket,
    },
    redact::{Clear, Policy, Redactor},
};

/// What is needed besides to say it.
pub struct Teller<'a> {
    pub redactor: &'a Redactor,
    pub policy: Policy,
    /// The server's name or address, where no head has it.
    pub server: Option<&'a str>,
    /// Of an address whose head has none.
    pub scheme: &'static str,
    /// Wall clock minus time since boot, in nanoseconds.
    pub clock: u64,
    pub prices: &'a Prices,
    /// What was told of an exchange while it was open is not told again.
    pub live: bool,
}

/// Lines of heads that say what a body is, and nothing about who sends it or why.
const PLAIN: [&str; 5] = [
    "content-encoding",
    "content-length",
    "content-type",
    "server",
    "transfer-encoding",
];

impl Teller<'_> {
    pub fn http(&self, exchange: &Exchange, is_open: bool) -> Http {
        let asked = exchange.asked();
        let half = |half: &Half| self.half(half, exchange, is_open);
        Http {
            exchange: exchange.id,
            is_open,
            is_continued: self.live && exchange.is_told,
            is_call: false,
            method: asked
                .and_then(|head| head.method.as_deref())
                .map(|method| self.text(method)),
            url: asked.map(|head| self.url(head)).unwrap_or_default(),
            status: exchange.answered().and_then(|head| head.status),
            request: exchange.request().map(half),
            response: exchange.response().map(half),
            events: exchange.events,
            interim: exchange
                .interim
                .iter()
                .map(|head| self.interim(head))
                .collect(),
        }
    }

    /// A call of gRPC, if the exchange is one.
    pub fn grpc(&self, exchange: &Exchange, is_open: bool) -> Option<Grpc> {
        let of = |half: Option<&Half>| {
            let messages = half?.body.messages.as_ref()?;
            Some(Messages {
                count: messages.count,
                sizes: messages.sizes.clone(),
            })
        };
        let (sent, received) = (of(exchange.request()), of(exchange.response()));
        if sent.is_none() && received.is_none() {
            return None;
        }
        let path = exchange.asked().and_then(|head| head.target.as_deref());
        let mut names = path.unwrap_or_default().split(|byte| *byte == b'/').skip(1);
        let (service, method) = (names.next(), names.next());
        let trailer = |name| {
            let half = exchange.response()?;
            // A call that fails at once has only one head, and its trailers are in there.
            let in_head = || half.head.as_ref()?.fields().get(name);
            let in_body = || half.body.messages.as_ref()?.trailer(name);
            half.trailers.get(name).or_else(in_head).or_else(in_body)
        };
        Some(Grpc {
            http: self.http(exchange, is_open),
            service: service.map(|name| self.text(name)),
            method: method.map(|name| self.text(name)),
            status: trailer("grpc-status")
                .and_then(|status| str::from_utf8(status).ok()?.trim().parse().ok()),
            message: trailer("grpc-message").and_then(|message| self.free(&unescaped(message))),
            sent: sent.unwrap_or_default(),
            received: received.unwrap_or_default(),
        })
    }

    /// `is_shed`: without its data.
    pub fn event(
        &self,
        exchange: &Exchange,
        event: &sse::Event,
        number: u64,
        is_shed: bool,
    ) -> Sse {
        let is_cut = event.is_cut || is_shed;
        let data = if is_shed { &[][..] } else { &event.data };
        let named = |text: &[u8]| self.free(text).filter(|_| !text.is_empty());
        Sse {
            exchange: exchange.id,
            url: exchange
                .asked()
                .map(|head| self.url(head))
                .unwrap_or_default(),
            number,
            name: named(&event.name),
            id: named(&event.id),
            size: event.data.len() as u64,
            data: self.redactor.whole(Plaintext::new(data), &[], is_cut),
            is_cut,
            is_call: false,
        }
    }

    /// `is_shed`: without its content.
    pub fn message(
        &self,
        direction: agent_ebpf::Direction,
        message: &websocket::Message,
        is_shed: bool,
    ) -> WebSocket {
        let is_cut = message.is_cut || is_shed;
        let content = if is_shed { &[][..] } else { &message.bytes };
        let bytes = match message.is_unreadable {
            true => self.redactor.unreadable(),
            false => self.redactor.whole(Plaintext::new(content), &[], is_cut),
        };
        WebSocket {
            direction,
            kind: match message.kind {
                websocket::Kind::Text => "text",
                websocket::Kind::Binary => "binary",
                websocket::Kind::Ping => "ping",
                websocket::Kind::Pong => "pong",
                websocket::Kind::Close(_) => "close",
            },
            close_code: match message.kind {
                websocket::Kind::Close(code) => code,
                _ => None,
            },
            size: message.length,
            content: bytes,
            is_cut,
            is_call: false,
        }
    }

    pub fn wall(&self, time: u64) -> WallTime {
        WallTime(time.wrapping_add(self.clock))
    }

    fn half(&self, half: &Half, exchange: &Exchange, is_open: bool) -> HttpHalf {
        let head = half.head.as_ref();
        let told = match self.live {
            true => half.told,
            false => Extent::Nothing,
        };
        // Events and lines always, and messages once it was told that the exchange is open.
        let is_told_in_pieces =
            self.live && half.comes_in_pieces() && (exchange.is_told || half.is_stream());
        let is_ready = !is_open || half.extent() == Extent::All;
        HttpHalf {
            has_head: told == Extent::Nothing,
            has_body: told < Extent::All && is_ready && !is_told_in_pieces,
            headers: head
                .map(|head| self.headers(head.fields()))
                .unwrap_or_default(),
            trailers: self.headers(&half.trailers),
            body: self.body(
                &half.body,
                head.and_then(|head| head.fields().get("content-type")),
            ),
            began: self.wall(half.began),
            ended: self.wall(half.ended),
            is_whole: half.is_whole,
        }
    }

    fn interim(&self, head: &Response) -> Interim {
        Interim {
            status: head.status,
            headers: self.headers(&head.fields),
        }
    }

    fn body(&self, body: &Body, media: Option<&[u8]>) -> HttpBody {
        let is_cut = body.is_cut || body.unreadable().is_some();
        let whole = |bytes, holes: &[_]| self.redactor.whole(Plaintext::new(bytes), holes, is_cut);
        let text = media.and_then(|media| text_of(media, body, is_cut));
        let (content, charset) = match text {
            Some(text) => (whole(text.read.as_bytes(), &text.holes), Some(text.charset)),
            None => (whole(&body.kept, &body.holes), None),
        };
        HttpBody {
            size: body.length,
            decoded_size: body.decoded,
            content,
            charset,
            is_cut,
            unreadable: body.unreadable().map(|why| why.name()),
        }
    }

    fn headers(&self, fields: &Fields) -> Vec<Header> {
        let mut headers = Vec::with_capacity(fields.len());
        for field in fields.iter() {
            let name = field
                .name
                .map(|name| String::from_utf8_lossy(name).to_ascii_lowercase());
            let is_plain = name.as_deref().is_some_and(|name| PLAIN.contains(&name));
            if self.policy == Policy::None && !is_plain {
                continue;
            }
            let value = field.value.map(String::from_utf8_lossy);
            headers.push(Header {
                value: value.map(|value| match &name {
                    Some(name) => self.redactor.header(name, &value),
                    // Whatever it is called, it could be a secret.
                    None => self.redactor.hidden(&value),
                }),
                name: name.map(|name| self.redactor.string(&name)),
            });
        }
        headers
    }

    /// With `--content none` without what is behind the question mark.
    pub fn url(&self, head: &Request) -> Url {
        let Some(target) = head.target.as_deref() else {
            return Url::default();
        };
        let target = String::from_utf8_lossy(target);
        let full = if target.starts_with('/') || target == "*" {
            let authority = head
                .authority
                .as_deref()
                .or_else(|| head.fields.get("host"));
            let authority = authority.map(String::from_utf8_lossy);
            let authority = authority.as_deref().or(self.server).unwrap_or_default();
            let scheme = head.scheme.as_deref().map(String::from_utf8_lossy);
            let scheme = scheme.as_deref().unwrap_or(self.scheme);
            let path = if target == "*" { "" } else { &target };
            format!("{scheme}://{authority}{path}")
        } else {
            target.into_owned()
        };
        let shown = match self.policy {
            Policy::None => full.split(['?', '#']).next().unwrap_or_default(),
            Policy::Redacted | Policy::Full => &full,
        };
        let full = self.redactor.string(shown);
        let behind = full.find("://").map_or(0, |at| at + 3);
        let path = full[behind..].find('/').map(|at| full.part(behind + at..));
        let (path, query) = match path {
            Some(path) => match path.find('?') {
                Some(at) => (Some(path.part(..at)), Some(path.part(at + 1..))),
                None => (Some(path), None),
            },
            None => (None, None),
        };
        Url {
            // Without anybody to ask it is no address.
            full: Some(full).filter(|full| !full.contains(":///")),
            path,
            query,
        }
    }

    /// What an end may write as it likes is content, wherever it stands.
    fn free(&self, bytes: &[u8]) -> Option<Clear> {
        (self.policy != Policy::None).then(|| self.text(bytes))
    }

    fn text(&self, bytes: &[u8]) -> Clear {
        self.redactor.string(&String::from_utf8_lossy(bytes))
    }
}

/// A body that is text in another encoding than UTF-8.
struct Text {
    read: String,
    /// Where something is missing in `read`, and how much.
    holes: Vec<(usize, u64)>,
    charset: &'static str,
}

fn text_of(media: &[u8], body: &Body, is_cut: bool) -> Option<Text> {
    // A hole may end in the middle of a character.
    if !body.holes.is_empty() && !charset::is_single_byte(media) {
        return None;
    }
    let (read, charset) = charset::text_of(media, &body.kept, is_cut)?;
    let before = |at: usize| read.chars().take(at).map(char::len_utf8).sum();
    let holes = body.holes.iter();
    let holes = holes.map(|(at, length)| (before(*at), *length)).collect();
    Some(Text {
        read,
        holes,
        charset,
    })
}

/// Without its percent-encoding (RFC 3986, section 2.1): a part of a path, or `grpc-message`.
pub fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind
            .get(..2)
            .and_then(|digits| str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) if first == b'%' => {
                out.push(byte);
                rest = &behind[2..];
            }
            _ => {
                out.push(first);
                rest = behind;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::unescaped;

    #[test]
    fn messages_of_grpc_are_read() {
        assert_eq!(unescaped(b"a%20b%C3%A9%"), "a b\u{e9}%".as_bytes());
        assert_eq!(unescaped(b"%zz%4"), b"%zz%4");
    }
}
