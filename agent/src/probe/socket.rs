//! What a connection of another process says of itself: whether its TLS is the kernel's, and how much it carried.
//! Asked of the socket itself, in whatever network namespace it is: a copy of its descriptor, for as long as two
//! questions take.

use std::{
    fs, mem,
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
    let process = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let process = pidfd_open(process, PidfdFlags::empty()).ok()?;
    let is_socket = |entry: &fs::DirEntry| {
        let target = fs::read_link(entry.path());
        target.is_ok_and(|target| {
            target
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(b"socket:")
        })
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let sockets = entries.filter(is_socket).take(SOCKETS_MAX);
    let mut copies = sockets.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()
    });
    copies.find(|socket| {
        let local = getsockname(socket).ok().and_then(canonical);
        let peer = getpeername(socket).ok().flatten().and_then(canonical);
        local == Some(connected.local) && peer == Some(connected.peer)
    })
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
}
