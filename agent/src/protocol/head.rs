//! Heads of requests and responses, the same for every version of HTTP (RFC 9110).
//!
//! In HTTP/2 a part of a head may be unknown: a reference into a table whose entries were sent before
//! anybody looked. Then it is `None`, never a guess.

use std::fmt;

/// `HTTP/1.1` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
    Http2,
}

impl Version {
    /// As OpenTelemetry has it in `network.protocol.version`.
    pub const fn name(self) -> &'static str {
        match self {
            Version::Http10 => "1.0",
            Version::Http11 => "1.1",
            Version::Http2 => "2",
        }
    }
}

/// What a message begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    Request(Request),
    Response(Response),
}

impl Head {
    pub fn version(&self) -> Version {
        match self {
            Head::Request(head) => head.version,
            Head::Response(head) => head.version,
        }
    }

    pub fn fields(&self) -> &Fields {
        match self {
            Head::Request(head) => &head.fields,
            Head::Response(head) => &head.fields,
        }
    }

    /// Bytes of memory, but for a few.
    pub fn weight(&self) -> usize {
        let target = match self {
            Head::Request(head) => head.target.as_ref().map_or(0, Vec::len),
            Head::Response(_) => 0,
        };
        target + self.fields().weight()
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    pub version: Version,
    pub method: Option<Vec<u8>>,
    /// As it was sent: a path in most cases.
    pub target: Option<Vec<u8>>,
    /// HTTP/2 alone sends them: `:scheme` and `:authority`.
    pub scheme: Option<Vec<u8>>,
    pub authority: Option<Vec<u8>>,
    /// What CONNECT asks for instead of a tunnel (RFC 8441, section 4).
    pub protocol: Option<Vec<u8>>,
    pub fields: Fields,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    pub version: Version,
    pub status: Option<u16>,
    pub fields: Fields,
}

impl Response {
    /// One that comes before the real one (RFC 9110, section 15.2).
    pub fn is_interim(&self) -> bool {
        self.status
            .is_some_and(|status| (100..200).contains(&status) && status != 101)
    }
}

/// The name of a media type, without its parameters.
pub fn media_name(media: &[u8]) -> Vec<u8> {
    let name = media.split(|byte| *byte == b';').next().unwrap_or_default();
    name.trim_ascii().to_ascii_lowercase()
}

/// A parameter of a media type, without its quotes (RFC 9110, section 5.6.6).
pub fn parameter<'a>(media: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let parameters = media.split(|byte| *byte == b';').skip(1);
    parameters
        .filter_map(|parameter| {
            let equals = memchr::memchr(b'=', parameter)?;
            Some((
                parameter[..equals].trim_ascii(),
                parameter[equals + 1..].trim_ascii(),
            ))
        })
        .find(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))
        .map(|(_, value)| {
            let quoted = value
                .strip_prefix(b"\"")
                .and_then(|value| value.strip_suffix(b"\""));
            quoted.unwrap_or(value)
        })
}

/// Their numbers alone: `{:?}` ends up in panics and logs, plaintext must not.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Request({:?}, {} fields)",
            self.version,
            self.fields.len()
        )
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Response({:?}, {:?}, {} fields)",
            self.version,
            self.status,
            self.fields.len()
        )
    }
}

/// One line of a head.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    pub name: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// The fields of a head in the order they came. One buffer holds them all: heads are many and small.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Fields {
    bytes: Vec<u8>,
    ends: Vec<Ends>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Ends {
    name: u32,
    value: u32,
    has_name: bool,
    has_value: bool,
}

impl Fields {
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_field(Field {
            name: Some(name),
            value: Some(value),
        });
    }

    pub fn push_field(&mut self, field: Field<'_>) {
        self.bytes.extend_from_slice(field.name.unwrap_or_default());
        let name = self.bytes.len() as u32;
        self.bytes
            .extend_from_slice(field.value.unwrap_or_default());
        self.ends.push(Ends {
            name,
            value: self.bytes.len() as u32,
            has_name: field.name.is_some(),
            has_value: field.value.is_some(),
        });
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of memory.
    pub fn weight(&self) -> usize {
        self.bytes.len() + self.ends.len() * size_of::<Ends>()
    }

    /// Bytes of all names and values.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        let mut start = 0;
        self.ends.iter().map(move |ends| {
            let (name, value) = (ends.name as usize, ends.value as usize);
            let field = Field {
                name: ends.has_name.then(|| &self.bytes[start..name]),
                value: ends.has_value.then(|| &self.bytes[name..value]),
            };
            start = value;
            field
        })
    }

    /// Values of this name, in lower case here, that are known.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(move |field| {
                field
                    .name
                    .is_some_and(|known| known.eq_ignore_ascii_case(name.as_bytes()))
            })
            .filter_map(|field| field.value)
    }

    /// The first value of this name.
    pub fn get<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// The members of a list, which may be in several lines (RFC 9110, section 5.6.1).
    pub fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|member| !member.is_empty())
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fields({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order() {
        let mut fields = Fields::default();
        fields.push(b"Accept", b"a, b");
        fields.push(b"X-Empty", b"");
        fields.push_field(Field {
            name: Some(b"cookie"),
            value: None,
        });
        fields.push_field(Field {
            name: None,
            value: Some(b"lost"),
        });
        fields.push(b"accept", b" ,c ");
        assert_eq!(fields.len(), 5);
        let names: Vec<_> = fields.iter().map(|field| field.name).collect();
        assert_eq!(
            names,
            [
                Some(&b"Accept"[..]),
                Some(b"X-Empty"),
                Some(b"cookie"),
                None,
                Some(b"accept")
            ]
        );
        assert_eq!(fields.get("accept"), Some(&b"a, b"[..]));
        assert_eq!(fields.get("x-empty"), Some(&b""[..]));
        assert_eq!(fields.get("cookie"), None);
        let list: Vec<_> = fields.list("accept").collect();
        assert_eq!(list, [&b"a"[..], b"b", b"c"]);
        assert_eq!(format!("{fields:?}"), "Fields(5)");
    }
}
