//! A user of this machine, as the system's user database knows him.

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    fs, io, mem,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _, process::parent_id},
    path::PathBuf,
    ptr,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// `None` for a number without an entry.
    pub name: Option<OsString>,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub home: Option<PathBuf>,
}

impl User {
    pub fn named(name: &str) -> io::Result<Option<Self>> {
        let Ok(name) = CString::new(name) else {
            return Ok(None);
        };
        look_up(|entry, buffer, found| {
            // SAFETY: every pointer is valid for the call, `buffer` for its stated length.
            unsafe {
                libc::getpwnam_r(
                    name.as_ptr(),
                    entry,
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    found,
                )
            }
        })
    }

    pub fn with_uid(uid: u32) -> io::Result<Option<Self>> {
        look_up(|entry, buffer, found| {
            // SAFETY: every pointer is valid for the call, `buffer` for its stated length.
            unsafe { libc::getpwuid_r(uid, entry, buffer.as_mut_ptr().cast(), buffer.len(), found) }
        })
    }

    /// Who typed `sudo vortex-agent …`, if that is how we were started.
    ///
    /// SUDO_UID alone proves nothing: it stays in the environment of a root shell for ever, and
    /// anybody can set it. It counts if root runs us and our parent is sudo itself.
    pub fn behind_sudo() -> io::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() || !is_sudo(parent_id()) {
            return Ok(None);
        }
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        let (Some(uid), Some(gid)) = (number("SUDO_UID"), number("SUDO_GID")) else {
            return Ok(None);
        };
        if uid == 0 {
            return Ok(None);
        }
        let unlisted = Self {
            name: None,
            uid,
            gid,
            groups: vec![gid],
            home: None,
        };
        Ok(Some(Self::with_uid(uid)?.unwrap_or(unlisted)))
    }
}

/// A set-uid program of root's that is called sudo or sudo-rs. Only root can make one.
fn is_sudo(pid: u32) -> bool {
    let exe = format!("/proc/{pid}/exe");
    let Ok(path) = fs::read_link(&exe) else {
        return false;
    };
    let named = matches!(
        path.file_name().map(OsStr::as_bytes),
        Some(b"sudo" | b"sudo-rs")
    );
    named
        && fs::metadata(&exe).is_ok_and(|file| file.uid() == 0 && file.mode() & libc::S_ISUID != 0)
}

type Ask<'a> = &'a mut dyn FnMut(*mut libc::passwd, &mut [u8], *mut *mut libc::passwd) -> i32;

fn look_up(
    mut ask: impl FnMut(*mut libc::passwd, &mut [u8], *mut *mut libc::passwd) -> i32,
) -> io::Result<Option<User>> {
    look_up_with(&mut ask)
}

fn look_up_with(ask: Ask<'_>) -> io::Result<Option<User>> {
    let mut buffer = vec![0; 1 << 10];
    loop {
        // SAFETY: a `passwd` is integers and pointers, for all of which zero is a value.
        let mut entry: libc::passwd = unsafe { mem::zeroed() };
        let mut found = ptr::null_mut();
        match ask(&mut entry, &mut buffer, &mut found) {
            0 if found.is_null() => return Ok(None),
            // SAFETY: the call succeeded, so its strings are set; `buffer`, where they are, lives.
            0 => return unsafe { User::from_entry(&entry) }.map(Some),
            libc::ERANGE if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 2, 0),
            // glibc's ways to say that there is no such user.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl User {
    /// # Safety
    /// The entry's `pw_name` and `pw_dir` must be C strings.
    unsafe fn from_entry(entry: &libc::passwd) -> io::Result<Self> {
        // SAFETY: the caller's promise.
        let (name, home) = unsafe { (CStr::from_ptr(entry.pw_name), CStr::from_ptr(entry.pw_dir)) };
        Ok(Self {
            name: Some(OsStr::from_bytes(name.to_bytes()).to_owned()),
            uid: entry.pw_uid,
            gid: entry.pw_gid,
            groups: groups(name, entry.pw_gid)?,
            home: Some(PathBuf::from(OsStr::from_bytes(home.to_bytes()))),
        })
    }
}

fn groups(name: &CStr, gid: u32) -> io::Result<Vec<u32>> {
    const NGROUPS_MAX: usize = 65536;
    let mut list = vec![0; 32];
    loop {
        let mut count = list.len() as i32;
        // SAFETY: `list` has room for `count` entries.
        let fits =
            unsafe { libc::getgrouplist(name.as_ptr(), gid, list.as_mut_ptr(), &mut count) } >= 0;
        if fits {
            list.truncate(count.max(0) as usize);
            return Ok(list);
        }
        if list.len() >= NGROUPS_MAX {
            return Err(io::Error::other("more groups than the kernel allows"));
        }
        list.resize(list.len() * 2, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown() {
        let root = User::named("root").unwrap().expect("root is everywhere");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
        assert_eq!(User::with_uid(0).unwrap(), Some(root));
        assert_eq!(User::named("no-such-user-here").unwrap(), None);
        assert_eq!(User::named("a\0b").unwrap(), None);
    }

    /// The test's parent is no sudo, whatever the environment says.
    #[test]
    fn an_environment_is_no_proof() {
        assert!(!is_sudo(std::process::id()));
        assert!(!is_sudo(1));
        assert!(!is_sudo(0));
    }
}
