//! What a service says to its manager: systemd's `sd_notify` protocol, datagrams of `KEY=value` lines to the socket
//! that `NOTIFY_SOCKET` names. Without the variable nothing is said.
//!
//! Connected before the lock-in, behind which nothing can be: then a datagram is one `send`, which never waits.
//! Nobody but the task that owns the line says `WATCHDOG=1`: no timer or thread goes on saying it should that hang.

use std::{
    env,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    time::{Duration, Instant},
};

use rustix::{
    io,
    net::{
        AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send,
        socket_with,
    },
    time::{ClockId, clock_gettime},
};

/// The way to who manages us, if anybody does.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<OwnedFd>,
    watchdog: Option<Watchdog>,
}

/// Who does not hear from us for `interval` twice restarts us.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    next: Instant,
}

impl Notifier {
    /// # Errors
    /// A manager waits for us at an address that can't be reached: it would end us.
    pub fn connect() -> io::Result<Notifier> {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else {
            return Ok(Notifier::default());
        };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            path => SocketAddrUnix::new(path)?,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        connect(&socket, &address)?;
        let variable = |name| env::var(name).ok();
        let interval = watchdog(
            variable("WATCHDOG_USEC").as_deref(),
            variable("WATCHDOG_PID").as_deref(),
            std::process::id(),
        );
        Ok(Notifier {
            socket: Some(socket),
            watchdog: interval.map(|interval| Watchdog {
                interval,
                next: Instant::now(),
            }),
        })
    }

    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}"));
    }

    pub fn status(&self, status: &str) {
        self.say(&format!("STATUS={status}"));
    }

    /// `ready` is said at its end. The time is for managers that take `Type=notify-reload`.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000;
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// A sign of life, when it is time for one.
    pub fn alive(&mut self, now: Instant) {
        let Some(watchdog) = self.watchdog.as_mut().filter(|dog| now >= dog.next) else {
            return;
        };
        watchdog.next = now + watchdog.interval;
        self.say("WATCHDOG=1");
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.watchdog.as_ref().map(|watchdog| watchdog.next)
    }

    /// A manager that does not listen is no reason to end, and one that is slow is not waited for.
    fn say(&self, what: &str) {
        if let Some(socket) = &self.socket {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let _ = send(socket, what.as_bytes(), flags);
        }
    }
}

/// Half of what the manager waits, if it is us that it watches.
fn watchdog(micros: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let micros: u64 = micros?.parse().ok().filter(|micros| *micros > 0)?;
    Some(Duration::from_micros(micros / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_ours_or_nobodys() {
        let second = Some(Duration::from_millis(500));
        assert_eq!(watchdog(Some("1000000"), None, 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("7"), 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("8"), 7), None);
        assert_eq!(watchdog(Some("1000000"), Some("x"), 7), None);
        for micros in [None, Some("0"), Some("x")] {
            assert_eq!(watchdog(micros, None, 7), None);
        }
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        let mut nobody = Notifier::default();
        nobody.ready("");
        nobody.alive(Instant::now());
        assert_eq!(nobody.next(), None);
    }
}
