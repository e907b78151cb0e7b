//! Lines for the person at the terminal.

use std::{
    fmt,
    io::{self, Write as _},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::escape;

/// One line on stderr, whatever a stranger's path in it contains. That nobody reads is no error, and a
/// pipe that is full is not waited for: CMD's end and signals would wait with us.
pub fn complain(what: impl fmt::Display) {
    let stderr = rustix::stdio::stderr();
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if !poll(
        &mut [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)],
        Some(&at_once),
    )
    .is_ok_and(|ready| ready > 0)
    {
        return;
    }
    let mut line = Vec::new();
    escape::visible(&format!("vortex-agent: {what:#}"), &mut line);
    line.push(b'\n');
    let _ = io::stderr().write_all(&line);
}

/// The same for a log: what is written at once is a line.
pub struct Line;

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        complain(String::from_utf8_lossy(line).trim_end());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
