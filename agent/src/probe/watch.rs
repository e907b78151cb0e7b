//! Who wrote into a probed file that gives no lease: not all file systems do, nor for all owners. It comes
//! after the write, so a process that maps the file in between may run code that our breakpoint damaged;
//! the next one does not.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// All watched files.
#[derive(Clone)]
pub struct Watches(Arc<Shared>);

struct Shared {
    fd: OwnedFd,
    /// The kernel has one watch an inode, however often it is asked for: how many of ours need it.
    users: Mutex<HashMap<i32, u32>>,
}

/// A watched file. Dropping it ends the watch.
pub struct Watch {
    number: i32,
    of: Watches,
}

impl Watches {
    pub fn open() -> io::Result<Watches> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let users = Mutex::default();
        Ok(Watches(Arc::new(Shared { fd, users })))
    }

    /// Watches an open file; `None` if the kernel won't (`fs.inotify.max_user_watches`).
    pub fn add(&self, file: &OwnedFd) -> Option<Watch> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut users = self.0.users.lock().unwrap_or_else(PoisonError::into_inner);
        let number = inotify::add_watch(&self.0.fd, path, WatchFlags::MODIFY).ok()?;
        *users.entry(number).or_default() += 1;
        let of = self.clone();
        Some(Watch { number, of })
    }

    /// The numbers of the watches whose files were written since the last call.
    pub fn written(&self) -> Vec<i32> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.0.fd, &mut buffer);
        let mut written = Vec::new();
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                let users = self.0.users.lock().unwrap_or_else(PoisonError::into_inner);
                written.extend(users.keys());
            }
            written.push(event.wd());
        }
        written
    }
}

impl AsFd for Watches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Watch {
    pub fn is_one_of(&self, written: &[i32]) -> bool {
        written.contains(&self.number)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let shared = &self.of.0;
        let mut users = shared.users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(self.number).or_insert(1);
        *count -= 1;
        if *count == 0 {
            users.remove(&self.number);
            // Ended by itself if the file system is gone.
            let _ = inotify::remove_watch(&shared.fd, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use super::*;

    #[test]
    fn a_write_is_told_while_somebody_watches() {
        let watches = Watches::open().unwrap();
        let path = std::env::temp_dir().join(format!("vortex-watch-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        let opened = OwnedFd::from(File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        let one = watches.add(&opened).unwrap();
        let two = watches.add(&opened).unwrap();
        assert!(watches.written().is_empty());
        drop(one);
        file.write_all(b"x").unwrap();
        assert!(two.is_one_of(&watches.written()));
        drop(two);
        let _ = watches.written();
        file.write_all(b"x").unwrap();
        assert!(watches.written().is_empty());
    }
}
