//! A file that somebody maps: opened once, told apart from others, checked before and after a probe is
//! placed.
//!
//! Its file system may not answer, for good. What waits for it is marked so, and runs in a
//! [`crate::worker`]; the loop holds a descriptor that only names the file (`O_PATH`), which neither
//! opening nor closing asks anybody about.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    ptr,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, MemfdFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, fstatfs,
        memfd_create, open, openat2, statx,
    },
    io::Errno,
};

use super::mapping::Mapping;
use crate::{half::Site, worker::is_local};

/// What tells files apart as long as one is held open: an inode number is not used again before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    device: (u32, u32),
    inode: u64,
}

impl Identity {
    /// On file systems without a block device of their own the same numbers may mean different files:
    /// overlayfs and btrfs. Also on tmpfs and others, where they mean one.
    pub fn is_doubtful(&self) -> bool {
        self.device.0 == 0
    }

    /// One number for all files that stand or fall together.
    pub fn device(&self) -> u64 {
        u64::from(self.device.0) << 32 | u64::from(self.device.1)
    }
}

/// The same for files that are not held: a new content or a reused inode number is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    pub identity: Identity,
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// Names exactly the file that is mapped, whatever its path leads to now.
///
/// # Errors
/// `NotFound`: the process or the mapping is gone. `InvalidData`: not the mapped file.
pub fn mapped(mapping: &Mapping) -> io::Result<(OwnedFd, Version)> {
    let file = open(
        map_files(mapping),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let version = regular(&file)?;
    // On overlayfs the mapping shows the layer's number or the overlay's, depending on the kernel.
    if version.identity.inode != mapping.inode && fstatfs(&file)?.f_type != OVERLAYFS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the mapping was replaced",
        ));
    }
    Ok((file, version))
}

/// The kernel's own link to what is mapped there.
pub fn map_files(mapping: &Mapping) -> String {
    // The names there have no leading zeros.
    let end = mapping.address + mapping.length;
    format!(
        "/proc/{}/map_files/{:x}-{end:x}",
        mapping.pid, mapping.address
    )
}

/// The regular file that a path leads to now. Waits for its file system.
pub fn at_path(path: &Path) -> io::Result<(OwnedFd, Version)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty())?;
    let version = regular(&file)?;
    Ok((file, version))
}

/// The number of the mount that a descriptor came through (5.8).
pub fn mount(file: &OwnedFd) -> Option<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(file, "", flags, StatxFlags::MNT_ID).ok()?;
    let is_said = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    is_said.then_some(stat.stx_mnt_id)
}

/// The same file by its name, when its process is gone or has something else mapped there now.
///
/// Only out of the kernel's cache, which is where a file is that was mapped just now: a file system that
/// does not answer must not hold us. Before 5.12 there is no such promise.
///
/// # Errors
/// Nothing has that name, or something else.
pub fn by_name(mapping: &Mapping) -> io::Result<(OwnedFd, Version)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let cached = |resolve| openat2(CWD, &mapping.path, flags, Mode::empty(), resolve);
    let file = match cached(ResolveFlags::CACHED) {
        Err(Errno::INVAL) => cached(ResolveFlags::empty())?,
        other => other?,
    };
    let version = regular(&file)?;
    let mapped = Identity {
        device: (mapping.major, mapping.minor),
        inode: mapping.inode,
    };
    if version.identity != mapped {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "another file has the name",
        ));
    }
    Ok((file, version))
}

/// The same for a file that somebody sent.
pub fn named(file: &OwnedFd) -> io::Result<(OwnedFd, Version)> {
    let version = regular(file)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok((file, version))
}

/// By what the kernel knows, without asking the file system.
fn regular(file: &OwnedFd) -> io::Result<Version> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat: Statx = statx(file, "", flags, StatxFlags::BASIC_STATS)?;
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a regular file",
        ));
    }
    Ok(Version {
        identity: Identity {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
        },
        size: stat.stx_size,
        modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
    })
}

/// The file system that is there as long as we are.
pub fn device_of_root() -> Option<u64> {
    let root = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(root, "", flags, StatxFlags::BASIC_STATS).ok()?;
    let device = (stat.stx_dev_major, stat.stx_dev_minor);
    Some(Identity { device, inode: 0 }.device())
}

/// Has it no name any more? By what the kernel knows.
pub fn is_deleted(file: &OwnedFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(file, "", flags, StatxFlags::NLINK).is_ok_and(|stat| stat.stx_nlink == 0)
}

const OVERLAYFS: i64 = 0x794c_7630;

/// The open file for the pipeline, which must never wait for it: what is not surely local is copied, for
/// reading may stop at any byte and closing asks the file system, too. Waits for it.
pub fn for_pipeline(file: OwnedFd) -> io::Result<OwnedFd> {
    if is_local(&file)? {
        return Ok(file);
    }
    const LARGEST: u64 = 512 << 20;
    let copy = fs::File::from(memfd_create("vortex-file", MemfdFlags::CLOEXEC)?);
    let copied = io::copy(
        &mut io::Read::take(fs::File::from(file), LARGEST),
        &mut &copy,
    )?;
    if copied == LARGEST {
        return Err(io::Error::other("too large to be copied from where it is"));
    }
    Ok(copy.into())
}

/// Opens a named file, which is a regular one: no FIFO, no terminal. Waits for its file system.
pub fn readable(file: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(open(path, flags, Mode::empty())?)
}

/// The most points of one file; more is a broken or hostile pipeline.
const MAX_SITES: usize = 64;

/// Is each site inside the file, and are its bytes still those that the pipeline saw? Waits for the file
/// system; afterwards the pages are in memory, where the kernel finds them when it attaches: it waits for
/// them with a lock that every fork needs.
pub fn check_sites(file: &OwnedFd, sites: &[Site]) -> Result<(), String> {
    if sites.is_empty() || sites.len() > MAX_SITES {
        return Err(format!("{} points in one file", sites.len()));
    }
    for site in sites {
        let mut bytes = [0; 16];
        let read = rustix::io::pread(file, &mut bytes, site.offset)
            .map_err(|error| format!("read at {:#x}: {error}", site.offset))?;
        if read != bytes.len() || bytes != site.bytes {
            return Err(format!(
                "the file changed at {:#x} since it was looked at",
                site.offset
            ));
        }
    }
    Ok(())
}

const INT3: u8 = 0xcc;

/// Are the breakpoints where this process maps the file? For kernels that don't say which file that is: after
/// a copy-up the name leads to another one. `None`: it maps something else by now, or is gone.
pub fn check_placed_in(mapping: &Mapping, sites: &[Site]) -> Option<bool> {
    let memory = fs::File::open(format!("/proc/{}/mem", mapping.pid)).ok()?;
    let inside = sites
        .iter()
        .filter_map(|site| site.offset.checked_sub(mapping.offset))
        .filter(|at| *at < mapping.length);
    for at in inside {
        let mut byte = [0];
        rustix::io::pread(&memory, &mut byte, mapping.address + at).ok()?;
        if byte[0] != INT3 {
            return fs::symlink_metadata(map_files(mapping))
                .is_ok()
                .then_some(false);
        }
    }
    Some(true)
}

/// Did the kernel really put its breakpoints into this file? Some instructions are accepted and never
/// fire, some file systems map another inode. Asked through a mapping of our own, as any process has it;
/// populated at once, for a page that is waited for later is waited for with a lock on all our memory.
pub fn check_placed(file: &OwnedFd, sites: &[Site]) -> io::Result<bool> {
    let memory = fs::File::open("/proc/self/mem")?;
    for site in sites {
        let page = rustix::param::page_size() as u64;
        let start = site.offset / page * page;
        // SAFETY: a new private mapping, read through /proc only: a truncated file is EIO, not SIGBUS.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                page as usize,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_POPULATE,
                file.as_raw_fd(),
                start as i64,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut byte = [0];
        let read = rustix::io::pread(&memory, &mut byte, base as u64 + (site.offset - start));
        // SAFETY: the mapping from above; nothing points into it.
        unsafe { libc::munmap(base, page as usize) };
        if read? != 1 || byte[0] != INT3 {
            return Ok(false);
        }
    }
    Ok(true)
}
