//! The floor: a pair of probes whose program returns 0. Nothing that hooks entry and return can be cheaper.
//!
//! Raw `bpf(2)` on purpose: the yardstick shares no code with the thing it measures.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::points::Point;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
pub(super) const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;
/// `_IO('$', 0)`, `_IOW('$', 8, u32)`.
const PERF_EVENT_IOC_ENABLE: libc::Ioctl = 0x2400;
const PERF_EVENT_IOC_SET_BPF: libc::Ioctl = 0x4004_2408;
const PERF_ATTR_SIZE_VER1: u32 = 72;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// `r0 = 0; exit`
const RETURN_ZERO: [u64; 2] = [0xb7, 0x95];

#[derive(Clone, Copy)]
pub(super) enum Moment {
    Entry,
    Return,
}

/// The probes stand as long as this lives.
pub(super) struct EmptyPairs {
    _descriptors: Vec<OwnedFd>,
}

impl EmptyPairs {
    pub(super) fn attach(file: &Path, offsets: &[u64]) -> Result<EmptyPairs> {
        EmptyPairs::place(file, offsets, offsets)
    }

    /// Returns only where the agent has them.
    pub(super) fn attach_some(file: &Path, points: &[Point]) -> Result<EmptyPairs> {
        let entries: Vec<u64> = points.iter().map(|point| point.offset).collect();
        let pairs = points.iter().filter(|point| point.has_return());
        let returns: Vec<u64> = pairs.map(|point| point.offset).collect();
        EmptyPairs::place(file, &entries, &returns)
    }

    fn place(file: &Path, entries: &[u64], returns: &[u64]) -> Result<EmptyPairs> {
        let descriptors = attach_multi(file, entries, returns)
            .or_else(|_| attach_each(file, entries, returns))
            .with_context(|| {
                format!(
                    "placing empty probes in {} at {entries:#x?}",
                    file.display()
                )
            })?;
        Ok(EmptyPairs {
            _descriptors: descriptors,
        })
    }
}

/// One link for all entries and one for all returns; Linux 6.6.
fn attach_multi(file: &Path, entries: &[u64], returns: &[u64]) -> Result<Vec<OwnedFd>> {
    let program = load_program(&RETURN_ZERO, BPF_TRACE_UPROBE_MULTI)?;
    let mut descriptors = vec![link(&program, file, entries, Moment::Entry)?];
    if !returns.is_empty() {
        descriptors.push(link(&program, file, returns, Moment::Return)?);
    }
    descriptors.push(program);
    Ok(descriptors)
}

/// One perf event per probe: every kernel.
fn attach_each(file: &Path, entries: &[u64], returns: &[u64]) -> Result<Vec<OwnedFd>> {
    let program = load_program(&RETURN_ZERO, 0)?;
    let mut descriptors = Vec::new();
    for (offsets, moment) in [(entries, Moment::Entry), (returns, Moment::Return)] {
        for &offset in offsets {
            descriptors.push(perf_event(&program, file, offset, moment)?);
        }
    }
    descriptors.push(program);
    Ok(descriptors)
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

pub(super) fn load_program(code: &[u64], expected_attach_type: u32) -> Result<OwnedFd> {
    let request = ProgLoad {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: code.len() as u32,
        insns: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type,
        ..ProgLoad::default()
    };
    // SAFETY: the licence is a static, `code` outlives the call, and the other pointers are null.
    unsafe { bpf(BPF_PROG_LOAD, &request) }.context("loading a program")
}

#[repr(C)]
struct LinkUprobeMulti {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    padding: u32,
}

pub(super) fn link(
    program: &OwnedFd,
    file: &Path,
    offsets: &[u64],
    moment: Moment,
) -> Result<OwnedFd> {
    let path = CString::new(file.as_os_str().as_bytes())?;
    let request = LinkUprobeMulti {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: BPF_TRACE_UPROBE_MULTI,
        flags: 0,
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        ref_ctr_offsets: 0,
        cookies: 0,
        count: offsets.len() as u32,
        multi_flags: match moment {
            Moment::Entry => 0,
            Moment::Return => BPF_F_UPROBE_MULTI_RETURN,
        },
        pid: 0,
        padding: 0,
    };
    // SAFETY: `path` is a C string and `offsets` has `count` elements; both outlive the call.
    unsafe { bpf(BPF_LINK_CREATE, &request) }.context("linking to uprobe_multi")
}

/// # Safety
/// `T` is a prefix of `union bpf_attr` for this command without padding, and its pointers are valid during the call.
pub(super) unsafe fn bpf<T>(command: libc::c_int, request: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes from `request`; the rest is the caller's promise.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, request, size_of::<T>()) };
    owned(fd)
}

#[repr(C)]
#[derive(Default)]
struct PerfAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    /// The path of the file.
    config1: u64,
    /// The offset in it.
    config2: u64,
}

fn perf_event(program: &OwnedFd, file: &Path, offset: u64, moment: Moment) -> Result<OwnedFd> {
    let path = CString::new(file.as_os_str().as_bytes())?;
    let attr = PerfAttr {
        kind: perf_uprobe_type()?,
        size: PERF_ATTR_SIZE_VER1,
        config: match moment {
            Moment::Entry => 0,
            Moment::Return => 1 << perf_return_bit()?,
        },
        config1: path.as_ptr() as u64,
        config2: offset,
        ..PerfAttr::default()
    };
    debug_assert_eq!(size_of_val(&attr), PERF_ATTR_SIZE_VER1 as usize);
    let (every_process, cpu, group) = (-1, 0, -1);
    // SAFETY: `attr` says its own size, and `path` outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &attr,
            every_process,
            cpu,
            group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let event = owned(fd).context("opening a uprobe event")?;
    for (request, argument) in [
        (PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()),
        (PERF_EVENT_IOC_ENABLE, 0),
    ] {
        // SAFETY: both requests take an integer.
        if unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error()).context("connecting the program to its event");
        }
    }
    Ok(event)
}

fn perf_uprobe_type() -> Result<u32> {
    let text = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
    Ok(text.trim().parse()?)
}

fn perf_return_bit() -> Result<u32> {
    let text = fs::read_to_string("/sys/bus/event_source/devices/uprobe/format/retprobe")?;
    let Some(bit) = text.trim().strip_prefix("config:") else {
        bail!("unknown uprobe format {text:?}")
    };
    Ok(bit.parse()?)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
