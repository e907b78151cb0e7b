//! A file that somebody maps: opened once, told apart from others, checked before and after a probe is
//! placed.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    ptr,
};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, fstatfs};

use super::mapping::Mapping;
use crate::half::Site;

/// What tells files apart as long as one is held open: an inode number is not used again before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    inode: u64,
}

/// The same for files that are not held: a new content or a reused inode number is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    identity: Identity,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

pub fn identity(stat: &Stat) -> Identity {
    Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
    }
}

pub fn version(stat: &Stat) -> Version {
    Version {
        identity: identity(stat),
        size: stat.st_size,
        modified: (stat.st_mtime, stat.st_mtime_nsec),
        changed: (stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Opens exactly the file that is mapped, whatever its path leads to now. Never waits on a FIFO, never
/// takes a terminal.
///
/// # Errors
/// `NotFound`: the process or the mapping is gone. `InvalidData`: not the mapped file.
pub fn open_mapped(mapping: &Mapping) -> io::Result<(OwnedFd, Stat)> {
    // The names there have no leading zeros.
    let end = mapping.address + mapping.length;
    let path = format!(
        "/proc/{}/map_files/{:x}-{end:x}",
        mapping.pid, mapping.address
    );
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = regular(&file)?;
    // On overlayfs the mapping shows the layer's number or the overlay's, depending on the kernel.
    const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;
    if stat.st_ino != mapping.inode && fstatfs(&file)?.f_type != OVERLAYFS_SUPER_MAGIC {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the mapping was replaced",
        ));
    }
    Ok((file, stat))
}

/// The same file by its name, when its process is gone or has something else mapped there now.
///
/// Only looked at, not opened, until it is known to be that file: the name may lead to a device or to a
/// FIFO by now, or always did, in a root of the process' own.
///
/// # Errors
/// Nothing has that name, or something else.
pub fn open_named(mapping: &Mapping) -> io::Result<(OwnedFd, Stat)> {
    let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::open(&mapping.path, place, Mode::empty())?;
    let stat = regular(&place)?;
    let device = rustix::fs::makedev(mapping.major, mapping.minor);
    if (stat.st_dev, stat.st_ino) != (device, mapping.inode) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "another file has the name",
        ));
    }
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    Ok((file, stat))
}

pub fn regular(file: &OwnedFd) -> io::Result<Stat> {
    let stat = fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a regular file",
        ));
    }
    Ok(stat)
}

/// The most points of one file; more is a broken or hostile pipeline.
const MAX_SITES: usize = 64;

/// Is each site inside the file, and are its bytes still those that the pipeline saw?
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

/// Did the kernel really put its breakpoints into this file? Some instructions are accepted and never
/// fire, some file systems map another inode. Asked through a mapping of our own, as any process has it.
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
                libc::MAP_PRIVATE,
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
        const INT3: u8 = 0xcc;
        if read? != 1 || byte[0] != INT3 {
            return Ok(false);
        }
    }
    Ok(true)
}
