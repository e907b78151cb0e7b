//! Where a daemon is asked for its map. A socket of its own beside the one that says how it is: there, too, a
//! connection is the question.
//!
//! A map does not fit into a socket's buffer, so it goes as fast as it is read, between one look at the ring and the
//! next. Nobody waits for who reads it.

use std::{
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{SendFlags, send},
};

use crate::alive::{self, AskError, DoorError};

/// So many are told at once; the others wait.
const TOLD_MAX: usize = 4;
/// As long as one may take to read it.
const TOLD_TIME: Duration = Duration::from_secs(20);
/// Of a daemon whose map is full, and much more.
const ANSWER_MAX: usize = 256 << 20;

/// Beside where the daemon says how it is.
pub fn beside(socket: &Path) -> PathBuf {
    socket.with_extension("map")
}

#[derive(Debug)]
pub struct Door {
    socket: OwnedFd,
    /// Its owner may ask, as root may.
    uid: u32,
    told: Vec<Told>,
}

/// Who is being told.
#[derive(Debug)]
struct Told {
    socket: OwnedFd,
    answer: Vec<u8>,
    /// Of which this is gone.
    at: usize,
    until: Instant,
}

impl Door {
    /// `socket`: where the daemon says how it is. It holds that one already, and so is the only one.
    pub fn open(socket: &Path, uid: u32) -> Result<Door, DoorError> {
        let path = beside(socket);
        let socket = alive::listen_at(&path).map_err(|errno| DoorError::Make {
            path,
            error: errno.into(),
        })?;
        Ok(Door {
            socket,
            uid,
            told: Vec::new(),
        })
    }

    /// Takes those who ask, as many as there is room for.
    pub fn take(&mut self, now: Instant, map: impl Fn() -> Vec<u8>) {
        while self.told.len() < TOLD_MAX
            && let Some(socket) = alive::accept_one(&self.socket, self.uid)
        {
            self.told.push(Told {
                socket,
                answer: map(),
                at: 0,
                until: now + TOLD_TIME,
            });
        }
        self.tell(now);
    }

    /// As much as they read. It ends for who has it all, has gone, or takes too long.
    pub fn tell(&mut self, now: Instant) {
        self.told.retain_mut(|told| told.goes_on(now));
    }

    pub fn is_telling(&self) -> bool {
        !self.told.is_empty()
    }
}

impl Told {
    fn goes_on(&mut self, now: Instant) -> bool {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        while self.at < self.answer.len() {
            match send(&self.socket, &self.answer[self.at..], flags) {
                Ok(sent) => self.at += sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return now < self.until,
                Err(_) => return false,
            }
        }
        false
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The map of the daemon that says at `socket` how it is: JSON.
pub fn ask(socket: &Path, patience: Duration) -> Result<Vec<u8>, AskError> {
    let mut stream = alive::connect(&beside(socket), Instant::now() + patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut answer = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) if answer.is_empty() => return Err(AskError::Refused),
            Ok(0) => return Ok(answer),
            Ok(read) => answer.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(AskError::Silent(patience));
            }
            Err(error) => return Err(error.into()),
        }
        if answer.len() > ANSWER_MAX {
            return Err(AskError::Nonsense);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn scratch(name: &str) -> PathBuf {
        let id = std::process::id();
        let path = std::env::temp_dir().join(format!("vortex-map-door-{id}-{name}"));
        fs::create_dir(&path).unwrap();
        path
    }

    /// More than a socket's buffer, to more at once than there is room for.
    #[test]
    fn each_has_all_of_it() {
        let directory = scratch("all");
        let socket = directory.join("agent.sock");
        let uid = rustix::process::geteuid().as_raw();
        let mut door = Door::open(&socket, uid).unwrap();
        let map: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let asked: Vec<_> = (0..TOLD_MAX + 2)
            .map(|_| {
                let socket = socket.clone();
                thread::spawn(move || ask(&socket, PATIENCE))
            })
            .collect();
        while asked.iter().any(|one| !one.is_finished()) {
            door.take(Instant::now(), || map.clone());
            assert!(door.told.len() <= TOLD_MAX);
            thread::sleep(Duration::from_millis(1));
        }
        for one in asked {
            assert!(one.join().unwrap().unwrap() == map);
        }
        assert!(!door.is_telling());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn who_does_not_read_is_left() {
        let directory = scratch("slow");
        let socket = directory.join("agent.sock");
        let uid = rustix::process::geteuid().as_raw();
        let mut door = Door::open(&socket, uid).unwrap();
        let asking = alive::connect(&beside(&socket), Instant::now() + PATIENCE).unwrap();
        let now = Instant::now();
        door.take(now, || vec![b'x'; 8 << 20]);
        assert!(door.is_telling());
        door.tell(now + TOLD_TIME);
        assert!(!door.is_telling());
        drop(asking);
        // Nor is anybody told who has gone.
        let asking = alive::connect(&beside(&socket), Instant::now() + PATIENCE).unwrap();
        drop(asking);
        door.take(now, || vec![b'x'; 8 << 20]);
        assert!(!door.is_telling());
        assert!(matches!(
            ask(&directory.join("other.sock"), PATIENCE),
            Err(AskError::Nobody)
        ));
        fs::remove_dir_all(directory).unwrap();
    }
}
