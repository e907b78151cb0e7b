//! The first bytes of a TLS connection: which end sent them, and which server a client asks for.
//!
//! RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3. The bytes are anybody's, and cut anywhere.

use crate::record::Role;

/// What a process sent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    pub role: Role,
    /// As far as it is among the bytes that are there.
    pub server_name: Option<&'a str>,
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const NAME_MAX: usize = 253;

/// `None`: no TLS, or cut before it says so.
pub fn parse(bytes: &[u8]) -> Option<Hello<'_>> {
    let mut rest = Rest(bytes);
    let [kind, major, minor] = rest.array()?;
    if (kind, major) != (HANDSHAKE, 3) || minor > 4 {
        return None;
    }
    rest.array::<2>()?;
    let [message] = rest.array()?;
    let role = match message {
        CLIENT_HELLO => Role::Client,
        SERVER_HELLO => Role::Server,
        _ => return None,
    };
    let server_name = match role {
        Role::Client => server_name(rest),
        Role::Server => None,
    };
    Some(Hello { role, server_name })
}

/// The name in a client's greeting, from the length of the message on.
fn server_name(mut rest: Rest<'_>) -> Option<&str> {
    // Length, version, random.
    rest.take(3 + 2 + 32)?;
    let session = rest.byte()?;
    rest.take(session.into())?;
    let suites = rest.number()?;
    rest.take(suites.into())?;
    let compressions = rest.byte()?;
    rest.take(compressions.into())?;
    // Their length: they are read as far as they are there.
    rest.number()?;
    loop {
        let (kind, length) = (rest.number()?, rest.number()?);
        let body = rest.take(length.into())?;
        if kind == SERVER_NAME {
            return host_name(Rest(body));
        }
    }
}

/// The only kind of name that there is.
fn host_name(mut list: Rest<'_>) -> Option<&str> {
    list.number()?;
    if list.byte()? != HOST_NAME {
        return None;
    }
    let length = list.number()?.into();
    let name = list.take(length)?;
    let is_fit = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let is_name = (1..=NAME_MAX).contains(&length) && name.iter().all(is_fit);
    std::str::from_utf8(name).ok().filter(|_| is_name)
}

/// What was not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's greeting with these extensions.
    fn client(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([2, 0xaa, 0xbb, 0, 4, 0x13, 1, 0x13, 2, 1, 0]);
        let mut all = Vec::new();
        for (kind, content) in extensions {
            all.extend(kind.to_be_bytes());
            all.extend((content.len() as u16).to_be_bytes());
            all.extend(*content);
        }
        body.extend((all.len() as u16).to_be_bytes());
        body.extend(all);
        let mut bytes = vec![22, 3, 1];
        bytes.extend((body.len() as u16 + 4).to_be_bytes());
        bytes.extend([1, 0]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn named(name: &[u8]) -> Vec<u8> {
        let length = name.len() as u16;
        let mut list = (length + 3).to_be_bytes().to_vec();
        list.push(0);
        list.extend(length.to_be_bytes());
        list.extend(name);
        list
    }

    #[test]
    fn a_client_asks_for_its_server_at_every_cut() {
        let list = named(b"api.example.com");
        let bytes = client(&[(43, &[2, 3, 4]), (0, &list), (51, &[0; 40])]);
        let end = bytes.len() - 44;
        for cut in 0..=bytes.len() {
            let hello = parse(&bytes[..cut]);
            let role = hello.map(|hello| hello.role);
            assert_eq!(role, (cut >= 6).then_some(Role::Client), "{cut}");
            let name = hello.and_then(|hello| hello.server_name);
            assert_eq!(name, (cut >= end).then_some("api.example.com"), "{cut}");
        }
    }

    #[test]
    fn a_server_and_what_is_neither() {
        let server = [22, 3, 3, 0, 80, 2];
        let role = parse(&server).map(|hello| hello.role);
        assert_eq!(role, Some(Role::Server));
        // Application data, an alert, SSL 2, DTLS, a certificate first, HTTP.
        for other in [
            &[23, 3, 3, 0, 80, 1][..],
            &[21, 3, 3, 0, 2, 2],
            &[0x80, 46, 1, 3, 1, 0],
            &[22, 0xfe, 0xfd, 0, 80, 1],
            &[22, 3, 9, 0, 80, 1],
            &[22, 3, 3, 0, 80, 11],
            b"GET / HTTP/1.1",
        ] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_name_that_is_none() {
        for name in [&b""[..], b"a b", b"\x1b[2J", &[b'a'; 254]] {
            let bytes = client(&[(0, &named(name))]);
            assert_eq!(parse(&bytes).unwrap().server_name, None, "{name:?}");
        }
        assert_eq!(parse(&client(&[])).unwrap().server_name, None);
        let other = client(&[(0, &[0, 4, 1, 0, 1, b'x'])]);
        assert_eq!(parse(&other).unwrap().server_name, None, "another kind");
    }

    /// Each byte changed to each value: an answer, and no panic.
    #[test]
    fn no_bytes_do_harm() {
        let bytes = client(&[(43, &[2, 3, 4]), (0, &named(b"example.com"))]);
        for at in 0..bytes.len() {
            for value in 0..=u8::MAX {
                let mut changed = bytes.clone();
                changed[at] = value;
                parse(&changed);
            }
        }
    }
}
