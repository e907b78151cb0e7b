//! Lines for the person at the terminal.

use std::{
    any::Any,
    env, fmt,
    io::{self, Write as _},
    panic::PanicHookInfo,
    sync::OnceLock,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::{escape, redact};

/// One line on stderr, whatever a stranger's path in it contains, without secrets. That nobody reads is no error, and a
/// pipe that is full is not waited for: CMD's end and signals would wait with us.
pub fn complain(what: impl fmt::Display) {
    say(Priority::Error, what);
}

/// How much a line matters, as syslog counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

fn say(priority: Priority, what: impl fmt::Display) {
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
    if goes_to_journal() {
        line.extend_from_slice(format!("<{}>", priority as u8).as_bytes());
    }
    let what = redact::line(&format!("{what:#}"));
    escape::visible(&format!("vortex-agent: {what}"), &mut line);
    line.push(b'\n');
    let _ = io::stderr().write_all(&line);
}

/// Does systemd's journal read stderr? It says which device and inode it gave us: what was started by us may have
/// another stderr and the same variable.
fn goes_to_journal() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let named = env::var("JOURNAL_STREAM").ok();
        let stat = rustix::fs::fstat(rustix::stdio::stderr());
        named.is_some_and(|named| {
            stat.is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
        })
    })
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
pub struct Line(Priority);

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        say(self.0, String::from_utf8_lossy(line).trim_end());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes them.
pub struct Lines;

impl MakeWriter<'_> for Lines {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(Priority::Info)
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> Line {
        Line(match *meta.level() {
            Level::ERROR => Priority::Error,
            Level::WARN => Priority::Warning,
            Level::INFO => Priority::Info,
            Level::DEBUG | Level::TRACE => Priority::Debug,
        })
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
