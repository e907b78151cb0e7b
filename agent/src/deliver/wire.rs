//! What the pipeline and deliver say to each other: frames on a stream socket, each a letter, a length and so many
//! bytes. Records go as the lines that a JSON output has; what is said rarely is JSON itself.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    net::SocketAddr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The pipeline: [`super::Settings`], before all others.
pub const SETTINGS: u8 = b's';
/// The pipeline: records, each a number whose bits are the lanes that it is for, and its line.
pub const RECORDS: u8 = b'r';
/// The pipeline: a number, which comes back in a [`Report`] when what is before it is settled. Until then no batch
/// waits to get full.
pub const BARRIER: u8 = b'b';
/// Deliver: nothing, or why it can't.
pub const READY: u8 = b'y';
/// Deliver: a [`Report`].
pub const REPORT: u8 = b'p';
/// Deliver: [`Ends`] of a connection that it made, and over which nothing has gone yet.
pub const MADE: u8 = b'm';

/// Its own, and the other one.
pub type Ends = (SocketAddr, SocketAddr);

const HEAD: usize = 5;
/// The longest frame is a batch whose last record is one of the largest.
const LENGTH_MAX: usize = 256 << 20;

/// What became of the records of one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub sent: u64,
    pub dropped: u64,
}

/// Deliver about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The last barrier before which all is settled.
    pub reached: u64,
    /// As [`super::Settings::lanes`] has them.
    pub lanes: Vec<Count>,
    pub cpu_micros: u64,
    pub memory_bytes: u64,
}

/// Of the number before a line.
pub const MASK: usize = 4;

/// What goes before a frame's bytes.
pub fn head(letter: u8, length: usize) -> [u8; HEAD] {
    let mut head = [letter; HEAD];
    // A longer one is refused by who reads it, whatever its length says.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    head[1..].copy_from_slice(&length.to_le_bytes());
    head
}

fn parse(head: [u8; HEAD]) -> io::Result<(u8, usize)> {
    let [letter, length @ ..] = head;
    let length = u32::from_le_bytes(length) as usize;
    if length > LENGTH_MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok((letter, length))
}

/// Deliver, over the socket that it was started with: the one of a process that delivers from here on, and its number.
pub fn send_socket(over: &UnixStream, socket: &UnixStream, pid: u32) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [socket.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::NOSIGNAL;
    let pid = pid.to_le_bytes();
    sendmsg(over, &[IoSlice::new(&pid)], &mut ancillary, flags)?;
    Ok(())
}

/// The pipeline: waits for that. `None`: there will be none any more.
pub fn receive_socket(over: &UnixStream) -> io::Result<Option<(UnixStream, u32)>> {
    let mut pid = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut pid)];
    rustix::io::retry_on_intr(|| {
        recvmsg(over, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let sockets = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let socket = sockets.last();
    Ok(socket.map(|socket: OwnedFd| (socket.into(), u32::from_le_bytes(pid))))
}

/// The next frame, waited for by a thread.
pub fn read(from: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; HEAD];
    from.read_exact(&mut head)?;
    let (letter, length) = parse(head)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok((letter, bytes))
}

/// The same for a task.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; HEAD];
    from.read_exact(&mut head).await?;
    let (letter, length) = parse(head)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok((letter, bytes))
}
