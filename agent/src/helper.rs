//! A process beside the pipeline, for what the pipeline may not do once it is locked in. Forked before that, it hears and
//! says messages on one socket, and ends with the pipeline, by the end of that.

use std::{ffi::CStr, io, os::fd::OwnedFd};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    thread::set_name,
};

/// The pipeline's end.
#[derive(Debug)]
pub struct Helper {
    pub pid: u32,
    pub socket: OwnedFd,
}

impl Helper {
    /// Forks it; it runs `serve` with its end of the socket, and nothing else. While this process has one thread. Never
    /// waited for: it ends after us.
    pub fn start(name: &CStr, serve: impl FnOnce(OwnedFd)) -> io::Result<Helper> {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                call_ourselves(name);
                serve(theirs);
                // SAFETY: ends this process, and runs nothing of the parent's.
                unsafe { libc::_exit(0) }
            }
            pid => Ok(Helper {
                pid: pid.unsigned_abs(),
                socket,
            }),
        }
    }
}

/// What `ps`, `top` and the kernel's log call this process, in 15 bytes at most. Otherwise one that is forked has its
/// parent's name, and one that is started as `/proc/self/exe` is called `exe`.
pub fn call_ourselves(name: &CStr) {
    // Only people read it.
    let _ = set_name(name);
}
