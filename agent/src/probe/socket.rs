//! What a connection of another process says of itself: whether its TLS is the kernel's, and how much it carried.
//! Asked of the socket itself, in whatever network namespace it is: a copy of its descriptor, for as long as two
//! questions take.

use std::{
    fs, io, mem,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use rustix::{
    net::{getpeername, getsockname},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::half::Connected;

/// What its socket says; all is missing of one that is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub is_kernels: bool,
    /// Bytes, both ways.
    pub transferred: u64,
}

/// Sockets of one process that are looked at.
const SOCKETS_MAX: usize = 1024;

/// Looks among the descriptors of `pid`, which is the process' id here.
pub fn ask(pid: u32, connected: &Connected) -> Said {
    find(pid, connected).map_or_else(Said::default, |socket| Said {
        is_kernels: has_kernel_tls(&socket),
        transferred: transferred(&socket),
    })
}

fn find(pid: u32, connected: &Connected) -> Option<OwnedFd> {
    let mut sockets = sockets(pid).ok()?.flatten();
    sockets.find(|socket| ends(socket) == Some((connected.local, connected.peer)))
}

/// A TCP connection that is open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub state: &'static str,
    pub is_kernels: bool,
}

/// All that `pid` has, as far as there is a bound.
///
/// # Errors
/// They are not ours to look at.
pub fn connections(pid: u32) -> io::Result<Vec<Connection>> {
    let mut found = Vec::new();
    for socket in sockets(pid)? {
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // Closed meanwhile.
            Err(_) => continue,
        };
        let (Some((local, peer)), Some(state)) = (ends(&socket), state(&socket)) else {
            continue;
        };
        found.push(Connection {
            local,
            peer,
            state,
            is_kernels: has_kernel_tls(&socket),
        });
    }
    // One may have several descriptors.
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Copies of the sockets among the descriptors of `pid`.
fn sockets(pid: u32) -> io::Result<impl Iterator<Item = io::Result<OwnedFd>>> {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = process.ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let is_socket = |entry: &fs::DirEntry| {
        let target = fs::read_link(entry.path());
        target.is_ok_and(|target| {
            target
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(b"socket:")
        })
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let sockets = entries.filter(is_socket).take(SOCKETS_MAX);
    Ok(sockets.filter_map(move |entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let copy = pidfd_getfd(&process, number, PidfdGetfdFlags::empty());
        Some(copy.map_err(io::Error::from))
    }))
}

/// Of a connected one.
fn ends(socket: &OwnedFd) -> Option<(SocketAddr, SocketAddr)> {
    let local = getsockname(socket).ok().and_then(canonical)?;
    let peer = getpeername(socket).ok().flatten().and_then(canonical)?;
    Some((local, peer))
}

/// `tcpi_state`, by its name in `ss`; of TCP only.
fn state(socket: &OwnedFd) -> Option<&'static str> {
    let mut info = [0u8; 8];
    option(socket, libc::TCP_INFO, &mut info)?;
    // include/net/tcp_states.h, from 1 on.
    const STATES: [&str; 11] = [
        "established",
        "syn-sent",
        "syn-recv",
        "fin-wait-1",
        "fin-wait-2",
        "time-wait",
        "close",
        "close-wait",
        "last-ack",
        "listening",
        "closing",
    ];
    STATES.get(usize::from(info[0]).checked_sub(1)?).copied()
}

/// As the pipeline has addresses: an IPv4 peer of a dual-stack socket is an IPv4 peer.
fn canonical(address: rustix::net::SocketAddrAny) -> Option<SocketAddr> {
    let address = SocketAddr::try_from(address).ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

fn has_kernel_tls(socket: &OwnedFd) -> bool {
    let mut name = [0u8; 16];
    let length = option(socket, libc::TCP_ULP, &mut name);
    length.is_some_and(|length| name[..length].starts_with(b"tls"))
}

fn transferred(socket: &OwnedFd) -> u64 {
    // `tcpi_bytes_acked` and `tcpi_bytes_received` of `struct tcp_info` (linux/tcp.h), since 4.1.
    const ACKNOWLEDGED: usize = 120;
    const RECEIVED: usize = 128;
    let mut info = [0u64; 32];
    let length = option(socket, libc::TCP_INFO, &mut info).unwrap_or(0);
    if length < RECEIVED + size_of::<u64>() {
        return 0;
    }
    info[ACKNOWLEDGED / 8].saturating_add(info[RECEIVED / 8])
}

/// The bytes of it that the kernel filled.
fn option<T: Copy>(socket: &OwnedFd, name: i32, value: &mut [T]) -> Option<usize> {
    let mut length = mem::size_of_val(value) as libc::socklen_t;
    // SAFETY: `value` is as long as `length` says, of plain integers, and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(length as usize)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn a_connection_of_our_own_says_what_it_carried() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(&[1; 1000]).unwrap();
            server.read_exact(&mut [0; 1000]).unwrap();
            server.write_all(&[2; 500]).unwrap();
            client.read_exact(&mut [0; 500]).unwrap();
            let pid = std::process::id();
            let connected = Connected {
                pid,
                local: client.local_addr().unwrap(),
                peer: client.peer_addr().unwrap(),
            };
            let said = ask(pid, &connected);
            assert!(
                !said.is_kernels && (1500..=1502).contains(&said.transferred),
                "{said:?}"
            );
            drop((client, server));
            assert_eq!(ask(pid, &connected), Said::default());
        }
    }

    #[test]
    fn connections_of_our_own_are_listed_once() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let _copy = client.try_clone().unwrap();
            let of = |stream: &TcpStream, state| Connection {
                local: stream.local_addr().unwrap(),
                peer: stream.peer_addr().unwrap(),
                state,
                is_kernels: false,
            };
            let all = || connections(std::process::id()).unwrap();
            // Other tests have theirs.
            let count = |one: &Connection| all().iter().filter(|other| *other == one).count();
            let [one, other] = [&client, &server].map(|stream| of(stream, "established"));
            assert_eq!((count(&one), count(&other)), (1, 1));
            server.shutdown(std::net::Shutdown::Write).unwrap();
            let left = of(&client, "close-wait");
            assert_eq!((count(&one), count(&left)), (0, 1));
        }
    }
}
