//! What processes do, as the kernel's perf side-band tells it: executable mappings, exec, fork, exit.
//! One software event and one ring per CPU; no BPF, no kprobe, on every kernel we support.
//!
//! Record formats: `include/uapi/linux/perf_event.h`, `enum perf_event_type`.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::clock::since_boot;

/// Something a process did. Times are nanoseconds since boot.
#[derive(Debug, PartialEq, Eq)]
pub enum Happening {
    Mapped(Mapping),
    Exec {
        pid: u32,
        at: u64,
    },
    /// Its leader calls itself something else.
    Renamed {
        pid: u32,
        comm: String,
    },
    Fork {
        pid: u32,
        parent: u32,
    },
    /// The leader of this process ended.
    Exit {
        pid: u32,
    },
    /// The ring was full, or is younger than its CPU: look at /proc again.
    Lost,
}

/// One executable mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub pid: u32,
    pub address: u64,
    pub length: u64,
    /// In the file.
    pub offset: u64,
    /// Identity as the kernel shows it. On overlayfs and btrfs not the file's (pitfall K2).
    pub major: u32,
    pub minor: u32,
    pub inode: u64,
    /// `None`: found by a scan, mapped at some earlier time.
    pub at: Option<u64>,
    pub path: String,
}

/// The rings of all CPUs that are online.
pub struct SideBand {
    online: String,
    rings: Vec<(u32, Ring)>,
    told: Told,
}

/// What was read and not yet handed on, with its times.
#[derive(Default)]
struct Told(Vec<(u64, Happening)>);

impl Told {
    fn last(&self) -> Option<u64> {
        self.0.iter().map(|(time, _)| *time).max()
    }

    /// What happened up to then, in the order of time.
    fn up_to(&mut self, last: u64) -> Vec<Happening> {
        self.0.sort_by_key(|(time, _)| *time);
        let count = self.0.partition_point(|(time, _)| *time <= last);
        let ready = self.0.drain(..count);
        ready.map(|(_, happening)| happening).collect()
    }
}

impl SideBand {
    /// Are we not allowed to be told?
    pub fn is_refused() -> bool {
        let first = Ring::open(0);
        first.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    pub fn open() -> io::Result<Self> {
        let mut band = SideBand {
            online: String::new(),
            rings: Vec::new(),
            told: Told::default(),
        };
        band.refresh()?;
        Ok(band)
    }

    /// Follows CPUs that come and go. What happens on one that we are not told of counts as lost: it is no reason to
    /// see nothing any more, and the next time it is tried again.
    pub fn refresh(&mut self) -> io::Result<()> {
        let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
        if online == self.online {
            return Ok(());
        }
        let cpus = cpu_list(&online);
        // The last words of CPUs that went.
        self.read();
        self.rings.retain(|(cpu, _)| cpus.contains(cpu));
        let known: Vec<u32> = self.rings.iter().map(|(cpu, _)| *cpu).collect();
        let new: Vec<u32> = cpus
            .into_iter()
            .filter(|cpu| !known.contains(cpu))
            .collect();
        if new.is_empty() {
            self.online = online;
            return Ok(());
        }
        let mut refused = None;
        for cpu in new {
            match Ring::open(cpu) {
                Ok(ring) => self.rings.push((cpu, ring)),
                Err(error) => refused = Some(error),
            }
        }
        let is_complete = refused.is_none();
        if let Some(error) = refused.filter(|_| known.is_empty()) {
            return Err(error);
        }
        if is_complete {
            self.online = online;
        }
        if !known.is_empty() {
            self.told.0.push((since_boot(), Happening::Lost));
        }
        Ok(())
    }

    pub fn fds(&self) -> impl Iterator<Item = &OwnedFd> {
        self.rings.iter().map(|(_, ring)| &ring.fd)
    }

    /// What happened on all CPUs, in the order of time: a fork on one CPU comes before the child's exit on
    /// another.
    pub fn drain(&mut self) -> Vec<Happening> {
        self.read();
        let Some(last) = self.told.last() else {
            return Vec::new();
        };
        // A process that exec'd on a CPU whose ring was read already may have moved to one whose ring was not,
        // and mapped its libraries there: what came before anything that was read is in the rings by now.
        self.read();
        self.told.up_to(last)
    }

    /// Something was read that comes with the next [`SideBand::drain`].
    pub fn has_more(&self) -> bool {
        !self.told.0.is_empty()
    }

    fn read(&mut self) {
        for (_, ring) in &mut self.rings {
            ring.drain(&mut |time, happening| self.told.0.push((time, happening)));
        }
    }
}

/// `0-3,5` as the kernel writes it.
fn cpu_list(text: &str) -> Vec<u32> {
    let mut cpus = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse()) {
            cpus.extend::<std::ops::RangeInclusive<u32>>(first..=last);
        }
    }
    cpus
}

/// `struct perf_event_attr`, PERF_ATTR_SIZE_VER6; older kernels accept it because its tail is zero.
#[repr(C)]
#[derive(Clone, Default)]
struct Attributes {
    kind: u32,
    /// Said by who opens it.
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_watermark: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
    aux_sample_size: u32,
    reserved3: u32,
}

/// The tracepoint with this id.
pub fn open_tracepoint(id: u64) -> io::Result<OwnedFd> {
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    let attributes = Attributes {
        kind: PERF_TYPE_TRACEPOINT,
        config: id,
        ..Attributes::default()
    };
    open_event(&attributes, 0)
}

/// An event of all processes on this CPU.
fn open_event(attributes: &Attributes, cpu: u32) -> io::Result<OwnedFd> {
    const PERF_FLAG_FD_CLOEXEC: u64 = 8;
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        ..attributes.clone()
    };
    // SAFETY: `attributes` has the size it states; the other arguments are plain numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            -1,
            cpu,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pages of data per CPU: fits the default `perf_event_mlock_kb` of 516 KiB without CAP_IPC_LOCK.
const PAGES: usize = 16;

struct Ring {
    fd: OwnedFd,
    base: *mut u8,
    page: usize,
}

impl Ring {
    fn open(cpu: u32) -> io::Result<Ring> {
        const PERF_TYPE_SOFTWARE: u32 = 1;
        const PERF_COUNT_SW_DUMMY: u64 = 9;
        const PERF_SAMPLE_TIME: u64 = 1 << 2;
        let bits = [
            8,  // mmap: executable mappings
            9,  // comm
            13, // task: fork and exit
            14, // watermark
            18, // sample_id_all: each record ends with its time
            23, // mmap2: with the file's identity
            24, // comm_exec
            25, // use_clockid
        ];
        let attributes = Attributes {
            kind: PERF_TYPE_SOFTWARE,
            config: PERF_COUNT_SW_DUMMY,
            sample_type: PERF_SAMPLE_TIME,
            flags: bits.iter().map(|bit| 1 << bit).sum(),
            // In bytes. `wakeup_events` never wakes for these records.
            wakeup_watermark: 1,
            clockid: libc::CLOCK_BOOTTIME,
            ..Attributes::default()
        };
        let fd = open_event(&attributes, cpu)?;
        let page = rustix::param::page_size();
        // SAFETY: a new mapping of the event's own ring: one page of control and PAGES of data.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                (1 + PAGES) * page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Ring {
            fd,
            base: base.cast(),
            page,
        })
    }

    fn drain(&mut self, each: &mut impl FnMut(u64, Happening)) {
        // `struct perf_event_mmap_page`: data_head and data_tail.
        // SAFETY: inside the mapped control page, aligned to eight.
        let (head, tail) = unsafe {
            (
                &*self.base.add(1024).cast::<AtomicU64>(),
                &*self.base.add(1032).cast::<AtomicU64>(),
            )
        };
        let end = head.load(Ordering::Acquire);
        let mut at = tail.load(Ordering::Relaxed);
        let mut record = Vec::new();
        while at < end {
            let size = u64::from(u16::from_le_bytes([self.byte(at + 6), self.byte(at + 7)]));
            if size < 8 || size > end - at {
                break;
            }
            // Copied, because it may wrap.
            record.clear();
            record.extend((0..size).map(|i| self.byte(at + i)));
            at += size;
            tail.store(at, Ordering::Release);
            if let Some(happening) = parse(&record) {
                each(time(&record), happening);
            }
        }
        tail.store(end, Ordering::Release);
    }

    fn byte(&self, at: u64) -> u8 {
        let index = at as usize & (PAGES * self.page - 1);
        // SAFETY: inside the data pages; the kernel wrote it before it moved data_head.
        unsafe { self.base.add(self.page + index).read_volatile() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`; nothing points into it any more.
        unsafe { libc::munmap(self.base.cast(), (1 + PAGES) * self.page) };
    }
}

/// `sample_id_all`: each record ends with its time, the last field of our sample type.
fn time(record: &[u8]) -> u64 {
    record
        .last_chunk()
        .map_or(0, |time| u64::from_le_bytes(*time))
}

/// One record; `None` for what nobody here wants.
fn parse(record: &[u8]) -> Option<Happening> {
    const MISC_COMM_EXEC: u16 = 1 << 13;
    const LOST: u32 = 2;
    const COMM: u32 = 3;
    const EXIT: u32 = 4;
    const FORK: u32 = 7;
    const MMAP2: u32 = 10;
    let u32_at = |at: usize| Some(u32::from_le_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(record.get(at..at + 8)?.try_into().ok()?));
    let misc = u16::from_le_bytes(record.get(4..6)?.try_into().ok()?);
    match u32_at(0)? {
        LOST => Some(Happening::Lost),
        COMM if misc & MISC_COMM_EXEC != 0 => Some(Happening::Exec {
            pid: u32_at(8)?,
            at: time(record),
        }),
        // pid, tid, name: another thread's name is not its process'.
        COMM if u32_at(8)? == u32_at(12)? => {
            let name = record.get(16..record.len().checked_sub(8)?)?;
            let name = name.split(|byte| *byte == 0).next()?;
            Some(Happening::Renamed {
                pid: u32_at(8)?,
                comm: String::from_utf8_lossy(name).into_owned(),
            })
        }
        // pid, ppid, tid, ptid: a thread has its process' pid and another tid.
        FORK if u32_at(8)? == u32_at(16)? => Some(Happening::Fork {
            pid: u32_at(8)?,
            parent: u32_at(12)?,
        }),
        EXIT if u32_at(8)? == u32_at(16)? => Some(Happening::Exit { pid: u32_at(8)? }),
        MMAP2 => {
            let name = record.get(72..record.len().checked_sub(8)?)?;
            let name = name.split(|byte| *byte == 0).next()?;
            Some(Happening::Mapped(Mapping {
                pid: u32_at(8)?,
                address: u64_at(16)?,
                length: u64_at(24)?,
                offset: u64_at(32)?,
                major: u32_at(40)?,
                minor: u32_at(44)?,
                inode: u64_at(48)?,
                at: Some(time(record)),
                path: String::from_utf8_lossy(name).into_owned(),
            }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_as_the_kernel_writes_them() {
        assert_eq!(cpu_list("0\n"), [0]);
        assert_eq!(cpu_list("0-3,5\n"), [0, 1, 2, 3, 5]);
        assert!(cpu_list("").is_empty());
    }

    /// A COMM record of this process and thread, with its time.
    fn comm(misc: u16, pid: u32, tid: u32) -> Vec<u8> {
        let mut record = 3u32.to_le_bytes().to_vec();
        record.extend(misc.to_le_bytes());
        record.extend(40u16.to_le_bytes());
        record.extend([pid, tid].map(u32::to_le_bytes).concat());
        record.extend(b"worker\xff\0\0\0\0\0\0\0\0\0");
        record.extend(7u64.to_le_bytes());
        record
    }

    #[test]
    fn names_are_the_leaders() {
        let renamed = Happening::Renamed {
            pid: 8,
            comm: "worker\u{fffd}".to_owned(),
        };
        assert_eq!(parse(&comm(0, 8, 8)), Some(renamed));
        assert_eq!(parse(&comm(0, 8, 9)), None);
        assert_eq!(
            parse(&comm(1 << 13, 8, 8)),
            Some(Happening::Exec { pid: 8, at: 7 })
        );
        let whole = comm(0, 8, 8);
        for len in 0..whole.len() {
            parse(&whole[..len]);
        }
    }

    #[test]
    fn what_moved_to_another_cpu_comes_in_order() {
        let exit = |pid| Happening::Exit { pid };
        let mut told = Told(vec![(5, exit(5)), (3, exit(3))]);
        let last = told.last().unwrap();
        // By the second look at the rings.
        told.0.extend([(6, exit(6)), (4, exit(4)), (5, exit(50))]);
        assert_eq!(told.up_to(last), [3, 4, 5, 50].map(exit));
        assert_eq!(told.last(), Some(6));
        assert_eq!(told.up_to(6), [exit(6)]);
        assert_eq!(told.last(), None);
    }

    #[test]
    fn a_cut_record_is_nothing() {
        let mut record = vec![10, 0, 0, 0, 0, 0, 0, 0];
        record.extend([7; 100]);
        for len in 0..80 {
            assert_eq!(parse(&record[..len.min(record.len())]), None, "{len}");
        }
        assert!(matches!(parse(&record), Some(Happening::Mapped(_))));
    }
}
