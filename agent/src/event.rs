//! decode: the bytes of a ring record → [`Event`]. Total: any bytes give an event or an error.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use agent_ebpf::{
    Bound, Carried, Closed, Data, Direction, Freed, Gap, Head, Hello, Name, Opened, PLAIN, POINT,
    REJOINED, SEVERAL_SOCKETS, Socket, Touch, Transfer, Unseen, cause, kind, side,
};
use zerocopy::FromBytes as _;

use crate::{
    attribute::Place,
    plaintext::Plaintext,
    record::{Cause, Role},
};

/// What the kernel side said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The next bytes of a stream.
    Data {
        stream: StreamId,
        offset: u64,
        bytes: Plaintext<'a>,
        socket: Used,
        place: Place,
        point: u64,
        tid: u32,
        time: u64,
    },
    /// Bytes of a stream that will not come. `offset` is `None` where the kernel knows none.
    Gap {
        stream: StreamId,
        offset: Option<u64>,
        length: u64,
        cause: Cause,
        tid: u32,
        time: u64,
    },
    /// The handle is a new connection from here on. `again`: of the same object, with its settings.
    Opened {
        handle: HandleId,
        again: bool,
        point: u64,
        time: u64,
    },
    /// The handle is gone.
    Freed { handle: HandleId, time: u64 },
    /// The handle's program closed it, and may read what is left.
    Left { handle: HandleId, time: u64 },
    /// A call of the handle passed by, and its bytes with it. No handle: a call that makes one.
    Unseen {
        handle: HandleId,
        point: u64,
        time: u64,
    },
    /// A call that carried no plaintext and used no socket.
    Touch {
        handle: HandleId,
        place: Place,
        time: u64,
    },
    /// The handle uses this socket, by its handshake.
    Bound {
        handle: HandleId,
        cookie: u64,
        time: u64,
    },
    /// The handle's connection is to be with a server of this name.
    Name { handle: HandleId, name: &'a [u8] },
    /// The two ends of a socket.
    Socket { cookie: u64, ends: Ends },
    /// A socket sent or received outside every TLS call.
    Transfer {
        pid: u32,
        place: Place,
        cookie: u64,
        generation: u32,
        direction: Direction,
        length: u64,
        time: u64,
    },
    /// A call returned what is no number of bytes.
    Senseless { pid: u32, point: u64, time: u64 },
    /// What a socket moved inside a call.
    Carried {
        pid: u32,
        tid: u32,
        handle: u64,
        point: u64,
        direction: Direction,
        length: u64,
    },
    /// A socket is gone.
    Closed { cookie: u64 },
    /// A connection begins with these bytes, outside of every probed call.
    Hello {
        pid: u32,
        ends: Ends,
        bytes: &'a [u8],
        time: u64,
    },
}

/// Which sockets a TLS call used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    Nothing,
    /// By its cookie.
    One(u64),
    Several,
}

/// The two ends of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// The program's, where the socket tells.
    pub role: Option<Role>,
}

impl Event<'_> {
    /// The process that it is about.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Event::Data { stream, .. } | Event::Gap { stream, .. } => Some(stream.handle.pid),
            Event::Opened { handle, .. }
            | Event::Unseen { handle, .. }
            | Event::Touch { handle, .. }
            | Event::Bound { handle, .. }
            | Event::Freed { handle, .. }
            | Event::Left { handle, .. }
            | Event::Name { handle, .. } => Some(handle.pid),
            Event::Transfer { pid, .. }
            | Event::Senseless { pid, .. }
            | Event::Carried { pid, .. } => Some(*pid),
            // A beginning waits for the facts by itself: who makes no TLS call has none yet.
            Event::Socket { .. } | Event::Closed { .. } | Event::Hello { .. } => None,
        }
    }
}

/// One direction of one TLS object of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    pub handle: HandleId,
    pub direction: Direction,
}

impl StreamId {
    pub fn both(handle: HandleId) -> [StreamId; 2] {
        [Direction::Received, Direction::Sent].map(|direction| StreamId { handle, direction })
    }
}

/// A TLS object of a process that may share its number with a dead one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleId {
    pub pid: u32,
    pub born: u64,
    pub handle: u64,
}

impl HandleId {
    /// It may have been in use before: its process was away, or it had another transport.
    pub fn is_rejoined(&self) -> bool {
        self.born & REJOINED != 0
    }

    /// It is a socket that says what it says in plaintext, and no object of a TLS library.
    pub fn is_plain(&self) -> bool {
        self.handle & PLAIN != 0
    }

    /// In nanoseconds since boot.
    pub fn since(&self) -> u64 {
        self.born & !REJOINED
    }
}

/// A record that the kernel side of this version never writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed ring record")]
pub struct Malformed;

/// What the kernel side wrote of a ring record, without the old content of the ring behind it. Nothing, if it makes no
/// sense.
pub fn written(record: &[u8]) -> &[u8] {
    let Ok((head, _)) = Head::read_from_prefix(record) else {
        return &[];
    };
    let payload = head.len as usize;
    let length = match head.kind {
        kind::DATA => size_of::<Data>() + payload,
        kind::NAME => size_of::<Name>() + payload,
        kind::HELLO => size_of::<Hello>() + payload,
        kind::GAP => size_of::<Gap>(),
        kind::OPENED | kind::CLEARED => size_of::<Opened>(),
        kind::FREED | kind::LEFT => size_of::<Freed>(),
        kind::UNSEEN | kind::SENSELESS => size_of::<Unseen>(),
        kind::CARRIED => size_of::<Carried>(),
        kind::SOCKET => size_of::<Socket>(),
        kind::TOUCH => size_of::<Touch>(),
        kind::BOUND => size_of::<Bound>(),
        kind::TRANSFER => size_of::<Transfer>(),
        kind::CLOSED => size_of::<Closed>(),
        _ => return &[],
    };
    record.get(..length).unwrap_or_default()
}

pub fn decode(record: &[u8]) -> Result<Event<'_>, Malformed> {
    let (head, _) = Head::read_from_prefix(record).map_err(|_| Malformed)?;
    match head.kind {
        kind::DATA => {
            let (data, rest) = Data::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, tid) = ids(data.pid_tgid);
            let handle = HandleId {
                pid,
                born: data.born,
                handle: data.handle,
            };
            Ok(Event::Data {
                stream: StreamId {
                    handle,
                    direction: direction(head.direction)?,
                },
                offset: data.offset,
                // What follows is old ring content of other processes: never looked at.
                bytes: Plaintext::new(rest.get(..head.len as usize).ok_or(Malformed)?),
                socket: match data.socket {
                    0 => Used::Nothing,
                    SEVERAL_SOCKETS => Used::Several,
                    cookie => Used::One(cookie),
                },
                place: place(tid, data.place),
                point: data.cookie >> POINT,
                tid,
                time: head.time,
            })
        }
        kind::GAP => {
            let (gap, _) = Gap::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, tid) = ids(gap.pid_tgid);
            let handle = HandleId {
                pid,
                born: gap.born,
                handle: gap.handle,
            };
            Ok(Event::Gap {
                stream: StreamId {
                    handle,
                    direction: direction(head.direction)?,
                },
                offset: (gap.offset != u64::MAX).then_some(gap.offset),
                length: gap.length,
                cause: cause(gap.cause)?,
                tid,
                time: head.time,
            })
        }
        kind::OPENED | kind::CLEARED => {
            let (opened, _) = Opened::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, _) = ids(opened.pid_tgid);
            Ok(Event::Opened {
                handle: HandleId {
                    pid,
                    born: opened.born,
                    handle: opened.handle,
                },
                again: head.kind == kind::CLEARED,
                point: opened.cookie >> POINT,
                time: head.time,
            })
        }
        kind::FREED | kind::LEFT => {
            let (freed, _) = Freed::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, _) = ids(freed.pid_tgid);
            let (born, handle, time) = (freed.born, freed.handle, head.time);
            let handle = HandleId { pid, born, handle };
            Ok(match head.kind {
                kind::LEFT => Event::Left { handle, time },
                _ => Event::Freed { handle, time },
            })
        }
        kind::UNSEEN => {
            let (unseen, _) = Unseen::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, _) = ids(unseen.pid_tgid);
            Ok(Event::Unseen {
                handle: HandleId {
                    pid,
                    born: unseen.born,
                    handle: unseen.handle,
                },
                point: unseen.cookie >> POINT,
                time: head.time,
            })
        }
        kind::SENSELESS => {
            let (call, _) = Unseen::read_from_prefix(record).map_err(|_| Malformed)?;
            Ok(Event::Senseless {
                pid: ids(call.pid_tgid).0,
                point: call.cookie >> POINT,
                time: head.time,
            })
        }
        kind::CARRIED => {
            let (carried, _) = Carried::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, tid) = ids(carried.pid_tgid);
            Ok(Event::Carried {
                pid,
                tid,
                handle: carried.handle,
                point: carried.cookie >> POINT,
                direction: direction(head.direction)?,
                length: carried.length,
            })
        }
        kind::SOCKET => {
            let (socket, _) = Socket::read_from_prefix(record).map_err(|_| Malformed)?;
            Ok(Event::Socket {
                cookie: socket.cookie,
                ends: ends(&socket)?,
            })
        }
        kind::HELLO => {
            let (hello, rest) = Hello::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, _) = ids(hello.pid_tgid);
            Ok(Event::Hello {
                pid,
                ends: ends(&hello.socket)?,
                // Behind it is old content of the ring, as in data.
                bytes: rest.get(..head.len as usize).ok_or(Malformed)?,
                time: head.time,
            })
        }
        kind::TOUCH => {
            let (touch, _) = Touch::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, tid) = ids(touch.pid_tgid);
            Ok(Event::Touch {
                handle: HandleId {
                    pid,
                    born: touch.born,
                    handle: touch.handle,
                },
                place: place(tid, touch.place),
                time: head.time,
            })
        }
        kind::BOUND => {
            let (bound, _) = Bound::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, _) = ids(bound.pid_tgid);
            Ok(Event::Bound {
                handle: HandleId {
                    pid,
                    born: bound.born,
                    handle: bound.handle,
                },
                cookie: bound.socket,
                time: head.time,
            })
        }
        kind::NAME => {
            let (name, rest) = Name::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, _) = ids(name.pid_tgid);
            Ok(Event::Name {
                handle: HandleId {
                    pid,
                    born: name.born,
                    handle: name.handle,
                },
                name: rest.get(..head.len as usize).ok_or(Malformed)?,
            })
        }
        kind::TRANSFER => {
            let (transfer, _) = Transfer::read_from_prefix(record).map_err(|_| Malformed)?;
            let (pid, tid) = ids(transfer.pid_tgid);
            Ok(Event::Transfer {
                pid,
                place: place(tid, transfer.place),
                cookie: transfer.socket,
                generation: transfer.generation,
                direction: direction(head.direction)?,
                length: transfer.length.into(),
                time: head.time,
            })
        }
        kind::CLOSED => {
            let (closed, _) = Closed::read_from_prefix(record).map_err(|_| Malformed)?;
            Ok(Event::Closed {
                cookie: closed.socket,
            })
        }
        _ => Err(Malformed),
    }
}

fn ends(socket: &Socket) -> Result<Ends, Malformed> {
    let local = SocketAddr::new(address(socket.family, socket.local)?, socket.local_port);
    let peer = SocketAddr::new(address(socket.family, socket.peer)?, socket.peer_port);
    // Who connects is the TLS client, but for FTP and the like, where a server calls back.
    let role = match socket.side {
        side::UNKNOWN => None,
        side::CONNECTED => Some(Role::Client),
        side::ACCEPTED => Some(Role::Server),
        _ => return Err(Malformed),
    };
    Ok(Ends { local, peer, role })
}

fn ids(pid_tgid: u64) -> (u32, u32) {
    ((pid_tgid >> 32) as u32, pid_tgid as u32)
}

/// [`agent_ebpf::cause`] as the records say it.
pub fn cause(number: u64) -> Result<Cause, Malformed> {
    Ok(match u16::try_from(number).map_err(|_| Malformed)? {
        cause::RING_FULL => Cause::RingFull,
        cause::COPY_FAULT => Cause::CopyFault,
        cause::MAP_FULL => Cause::MapFull,
        cause::CALL_TOO_LONG => Cause::CallTooLong,
        cause::OVER_BUDGET => Cause::OverBudget,
        cause::SENDFILE => Cause::Sendfile,
        cause::NO_BUFFER => Cause::NoBuffer,
        _ => return Err(Malformed),
    })
}

fn place(tid: u32, place: agent_ebpf::Place) -> Place {
    Place {
        tid,
        sequence: place.sequence,
        skipped: place.skipped != 0,
    }
}

pub fn direction(value: u16) -> Result<Direction, Malformed> {
    match value {
        0 => Ok(Direction::Received),
        1 => Ok(Direction::Sent),
        _ => Err(Malformed),
    }
}

fn address(family: u16, bytes: [u8; 16]) -> Result<IpAddr, Malformed> {
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    match family {
        AF_INET => {
            let [a, b, c, d, ..] = bytes;
            Ok(Ipv4Addr::new(a, b, c, d).into())
        }
        // An IPv4 peer of a dual-stack socket is an IPv4 peer.
        AF_INET6 => Ok(Ipv6Addr::from(bytes).to_canonical()),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes as _;

    fn data(len: u32, payload: &[u8]) -> Vec<u8> {
        let head = Head {
            kind: kind::DATA,
            direction: 1,
            len,
            time: 5,
        };
        let data = Data {
            head,
            pid_tgid: 7 << 32 | 8,
            born: 3,
            handle: 0x1000,
            offset: 64,
            socket: 9,
            cookie: agent_ebpf::cookie(2, Direction::Sent, agent_ebpf::Shape::OutFifth),
            place: agent_ebpf::Place::default(),
        };
        [data.as_bytes(), payload].concat()
    }

    #[test]
    fn data_is_cut_at_its_length_not_at_the_records() {
        let record = data(3, b"abcSECRET OF ANOTHER PROCESS");
        let Ok(Event::Data {
            stream,
            bytes,
            offset,
            point,
            tid,
            ..
        }) = decode(&record)
        else {
            panic!("{:?}", decode(&record))
        };
        assert_eq!(
            (bytes, offset, point, tid),
            (Plaintext::new(b"abc"), 64, 2, 8)
        );
        assert_eq!(
            stream.handle,
            HandleId {
                pid: 7,
                born: 3,
                handle: 0x1000
            }
        );
        assert_eq!(stream.direction, Direction::Sent);
    }

    #[test]
    fn what_is_behind_a_record_is_not_kept_and_not_missed() {
        const OLD: [u8; 64] = [0xff; 64];
        let mut known = 0;
        for kind in 0..=u16::MAX {
            let mut record = [0; 512];
            let head = Head {
                kind,
                direction: 1,
                len: 5,
                time: 6,
            };
            record[..size_of::<Head>()].copy_from_slice(head.as_bytes());
            if matches!(kind, kind::SOCKET | kind::HELLO) {
                record[core::mem::offset_of!(Socket, family)] = 2;
            }
            let written = written(&record);
            if decode(&record).is_err() {
                assert!(written.is_empty(), "kind {kind}");
                continue;
            }
            known += 1;
            let end = written.len();
            let with_old = [written, &OLD].concat();
            assert_eq!(super::written(&with_old), written, "kind {kind}");
            assert_eq!(decode(&with_old), decode(written), "kind {kind}");
            let cut = decode(&record[..end - 1]);
            assert_eq!(cut, Err(Malformed), "kind {kind}");
            assert!(super::written(&record[..end - 1]).is_empty());
        }
        assert_eq!(known, 16);
        assert_eq!(written(&data(3, b"abcOLD")), data(3, b"abc"));
    }

    #[test]
    fn every_cut_record_is_malformed() {
        let record = data(3, b"abc");
        for len in 0..record.len() {
            assert_eq!(decode(&record[..len]), Err(Malformed), "{len}");
        }
        assert!(decode(&record).is_ok());
        assert_eq!(decode(&data(4, b"abc")), Err(Malformed));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mut bytes = [0; 16];
        bytes[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
        assert_eq!(address(10, bytes), Ok(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(address(1, bytes), Err(Malformed));
    }
}
