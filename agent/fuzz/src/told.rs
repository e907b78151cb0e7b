//! What exchanges tell, as values that can be compared.

use vortex_agent::protocol::{
    Limit, Message, Side,
    content::Unreadable,
    exchange::{Bounds, Exchange, Exchanges, Half, Keep, Told as Says},
    head::{Fields, Head},
};

pub const BOUNDS: Bounds = Bounds {
    body: 4 << 10,
    total: 16 << 10,
    share: 256 << 10,
    held: 512 << 10,
};

pub type Lines = Vec<(String, String)>;

/// One side of an exchange. Its first line is `GET /path` or `200`; what is unknown is a question mark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub line: String,
    pub fields: Lines,
    pub body: Vec<u8>,
    pub length: u64,
    pub trailers: Lines,
    pub lost: u64,
    pub is_whole: bool,
    pub is_cut: bool,
    pub unreadable: Option<Unreadable>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub request: Option<Part>,
    pub response: Option<Part>,
    pub interim: usize,
}

impl Told {
    pub fn of(exchange: &Exchange) -> Told {
        let part = |half: &Half| part(half, half.head.as_ref());
        Told {
            request: exchange.request().map(part),
            response: exchange.response().map(part),
            interim: exchange.interim.len(),
        }
    }

    pub fn part(&mut self, side: Side) -> Option<&mut Part> {
        match side {
            Side::Request => self.request.as_mut(),
            Side::Response => self.response.as_mut(),
        }
    }
}

fn part(half: &Half, head: Option<&Head>) -> Part {
    let known = |bytes: &Option<Vec<u8>>| text(bytes.as_deref());
    let line = match head {
        Some(Head::Request(head)) => format!("{} {}", known(&head.method), known(&head.target)),
        Some(Head::Response(head)) => format!("{}", head.status.unwrap_or_default()),
        None => "?".to_owned(),
    };
    Part {
        line,
        fields: head.map(|head| lines(head.fields())).unwrap_or_default(),
        body: half.body.kept.clone(),
        length: half.body.length,
        trailers: lines(&half.trailers),
        lost: half.lost,
        is_whole: half.is_whole,
        is_cut: half.body.is_cut,
        unreadable: half.body.unreadable(),
    }
}

pub fn lines(fields: &Fields) -> Lines {
    let line =
        |field: vortex_agent::protocol::head::Field<'_>| (text(field.name), text(field.value));
    fields.iter().map(line).collect()
}

pub fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or("?".to_owned(), |bytes| bytes.escape_ascii().to_string())
}

/// Listens to a decoder.
#[derive(Debug)]
pub struct Ear {
    exchanges: Exchanges,
    keep: Keep,
    pub told: Vec<Told>,
    pub limits: Vec<Limit>,
    /// Bytes belonged to no message.
    pub is_astray: bool,
}

impl Default for Ear {
    fn default() -> Ear {
        Ear {
            exchanges: Exchanges::default(),
            keep: Keep::new(BOUNDS),
            told: Vec::new(),
            limits: Vec::new(),
            is_astray: false,
        }
    }
}

impl Ear {
    pub fn note(&mut self, message: Message<'_>) {
        self.is_astray |= matches!(message, Message::Undecoded { .. });
        self.tell(|exchanges, keep, out| exchanges.note(message, 7, keep, out));
        assert!(self.keep.used() <= BOUNDS.total);
    }

    pub fn close(&mut self) {
        self.tell(|exchanges, keep, out| exchanges.close(keep, out));
        assert_eq!(self.keep.used(), 0, "bodies are kept of nobody");
    }

    fn tell(&mut self, step: impl FnOnce(&mut Exchanges, &mut Keep, &mut dyn FnMut(Says<'_>))) {
        let Ear {
            exchanges,
            keep,
            told,
            limits,
            ..
        } = self;
        step(exchanges, keep, &mut |says| match says {
            Says::Exchange(exchange) => told.push(Told::of(exchange)),
            Says::Limit(limit) => limits.push(limit),
            _ => {}
        });
    }
}
