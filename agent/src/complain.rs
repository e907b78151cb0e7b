//! Lines for the person at the terminal.

use std::{
    any::Any,
    fmt,
    io::{self, Write as _},
    panic::PanicHookInfo,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{escape, redact};

/// One line on stderr, whatever a stranger's path in it contains, without secrets. That nobody reads is no error, and a
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
    let what = redact::line(&format!("{what:#}"));
    escape::visible(&format!("vortex-agent: {what}"), &mut line);
    line.push(b'\n');
    let _ = io::stderr().write_all(&line);
}

/// The panic hook. A message that was put together may hold a piece of the text that was at hand, as those of
/// `unwrap` do: only our own words are shown, and where.
pub fn panicked(info: &PanicHookInfo<'_>) {
    let what = own_words(info.payload());
    match info.location() {
        Some(place) => complain(format_args!("a bug, at {place}: {what}")),
        None => complain(format_args!("a bug: {what}")),
    }
}

fn own_words(payload: &dyn Any) -> &'static str {
    let words = payload.downcast_ref::<&'static str>();
    words.unwrap_or(&"its message may hold what was captured, and is not shown")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_shows_no_message_that_was_put_together() {
        let number = "secret"
            .parse::<u8>()
            .map_err(|error| format!("secret: {error}"));
        let panic = std::panic::catch_unwind(|| number.unwrap()).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("secret"));
        assert!(!own_words(&*panic).contains("secret"));
        let ours: Box<dyn Any> = Box::new("our own words");
        assert_eq!(own_words(&*ours), "our own words");
    }
}
