//! A read lease on each probed file: whoever wants to write waits until our breakpoints are out.
//!
//! Without it, a file that is written in place gets our breakpoint bytes in the middle of its new
//! instructions, and detaching puts the old bytes there: every process that maps it is broken.
//! `fcntl(2)`, F_SETLEASE; the kernel waits `/proc/sys/fs/lease-break-time` (45 s) for us at most.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

const F_SETSIG: libc::c_int = 10;
const F_SETLEASE: libc::c_int = 1024;
const F_GETLEASE: libc::c_int = 1025;

/// What came of asking for a lease.
#[derive(Debug)]
pub enum Asked {
    Granted,
    /// Somebody has it open for writing: not to be probed now.
    BeingWritten,
    /// This file system or our rights don't allow leases.
    Impossible,
}

/// Takes the lease on `file`. It ends with the descriptor.
pub fn take(file: &OwnedFd) -> Asked {
    let fd = file.as_raw_fd();
    // A lease broken before has reset the signal to SIGIO, which kills.
    // SAFETY: plain numbers.
    let signal = unsafe { libc::fcntl(fd, F_SETSIG, signal()) };
    if signal < 0 {
        return Asked::Impossible;
    }
    // The signal goes to the process: this thread may have ended by then. Set after the lease, which makes
    // this thread the owner.
    // SAFETY: plain numbers.
    let taken = unsafe {
        libc::fcntl(fd, F_SETLEASE, libc::F_RDLCK) == 0
            && libc::fcntl(fd, libc::F_SETOWN, std::process::id()) == 0
    };
    if taken {
        return Asked::Granted;
    }
    match io::Error::last_os_error().kind() {
        io::ErrorKind::WouldBlock => Asked::BeingWritten,
        _ => Asked::Impossible,
    }
}

/// Ours alone: the default action of the usual one, SIGIO, ends the process.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Where the kernel says that somebody wants to write a leased file.
pub struct Breaks(OwnedFd);

impl Breaks {
    /// Blocks the signal for this thread and those it starts later.
    pub fn open() -> io::Result<Breaks> {
        // SAFETY: a set on our stack, made empty first; signalfd returns a new descriptor.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, signal());
            if libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Breaks(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Has somebody asked since the last call? A hint: a full queue drops signals, see [`is_wanted`].
    pub fn have_come(&self) -> bool {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        let mut have_come = false;
        while rustix::io::read(&self.0, &mut info).is_ok_and(|read| read > 0) {
            have_come = true;
        }
        have_come
    }
}

impl AsFd for Breaks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Does somebody wait for the lease on `file`?
pub fn is_wanted(file: impl AsFd) -> bool {
    // SAFETY: plain numbers. A lease that is being broken shows as what it is to become.
    unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_GETLEASE) == libc::F_UNLCK }
}
