//! How full BPF maps are: asked of the kernel by their ids, so that no other tool is needed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

const MAP_GET_FD_BY_ID: libc::c_int = 14;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_LOOKUP_BATCH: libc::c_int = 24;

const HASH: u32 = 1;
const LRU_HASH: u32 = 9;

/// `struct bpf_map_info`, as far as it has been since 4.15.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    fd: u32,
    element_flags: u64,
    flags: u64,
}

/// A hash table that a process holds.
pub(super) struct Map {
    fd: OwnedFd,
    pub(super) name: String,
    /// Full is its usual state: it makes room by itself.
    pub(super) makes_room: bool,
    info: Info,
}

/// The hash tables among the maps of these processes.
pub(super) fn hash_tables(pids: &[u32]) -> Result<Vec<Map>> {
    let mut ids = BTreeMap::new();
    for &pid in pids {
        ids.extend(map_ids(pid)?.map(|id| (id, pid)));
    }
    let maps = ids
        .into_keys()
        .map(|id| open(id).with_context(|| format!("opening the BPF map {id}")));
    let maps = maps.collect::<Result<Vec<Map>>>()?;
    let is_table = |map: &Map| [HASH, LRU_HASH].contains(&map.info.kind);
    Ok(maps.into_iter().filter(is_table).collect())
}

/// Without those whose fd is gone meanwhile.
fn map_ids(pid: u32) -> Result<impl Iterator<Item = u32>> {
    let directory = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&directory).with_context(|| format!("reading {directory}"))?;
    Ok(entries.flatten().filter_map(|entry| {
        let text = fs::read_to_string(entry.path()).ok()?;
        let id = text.lines().find_map(|line| line.strip_prefix("map_id:"))?;
        id.trim().parse().ok()
    }))
}

fn open(id: u32) -> Result<Map> {
    let mut wanted = [id, 0, 0];
    // SAFETY: the three words of BPF_MAP_GET_FD_BY_ID.
    let fd = unsafe { bpf(MAP_GET_FD_BY_ID, &mut wanted) }?;
    // SAFETY: a new descriptor that nobody else has.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = Info::default();
    let mut question = GetInfo {
        fd: fd.as_raw_fd() as u32,
        length: size_of::<Info>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: the kernel writes `length` bytes at most, which `info` has.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut question) }?;
    let length = info.name.iter().position(|&b| b == 0).unwrap_or(16);
    Ok(Map {
        fd,
        name: String::from_utf8_lossy(&info.name[..length]).into_owned(),
        makes_room: info.kind == LRU_HASH,
        info,
    })
}

impl Map {
    /// How many entries it has now. One call copies all of them: a walk from key to key begins again when its key
    /// is removed.
    pub(super) fn entries(&self) -> Result<u64> {
        let size = |one: u32| one.next_multiple_of(8) as usize * self.info.max_entries as usize;
        let mut keys = vec![0u8; size(self.info.key_size)];
        let mut values = vec![0u8; size(self.info.value_size)];
        let mut to = 0u32;
        let mut question = Batch {
            from: 0,
            to: &raw mut to as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: self.info.max_entries,
            fd: self.fd.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: `keys` and `values` have room for `count` elements, `to` for a place in a hash table.
        match unsafe { bpf(MAP_LOOKUP_BATCH, &mut question) } {
            Ok(_) => Ok(question.count.into()),
            // It says so at the end, too.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(question.count.into()),
            Err(error) => Err(error).with_context(|| format!("reading the map {}", self.name)),
        }
    }
}

/// # Safety
/// `attributes` are those of `command`, and what they point to is as the kernel expects it.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match result {
        0.. => Ok(result as libc::c_int),
        _ => Err(io::Error::last_os_error()),
    }
}
