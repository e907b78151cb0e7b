//! Session links: one program runs at the entry and at the return of a call, and what it returns at the
//! entry decides whether there is a return probe at all (6.13).
//!
//! aya has none, so these are our own `bpf()` calls, with the maps that aya made.

use std::{
    collections::HashSet,
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, RawFd},
};

use anyhow::{Context as _, Result, anyhow};
use aya::{Ebpf, maps::Map};
use aya_obj::{
    Object,
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_info, bpf_prog_type},
};
use rustix::fd::{AsFd as _, OwnedFd};

use super::link::OBJECT;
use crate::half::Site;

/// A loaded program for session links.
pub struct Session(OwnedFd);

/// Does the kernel make such links? It is asked for one on a directory, which it refuses for that reason
/// only if it knows the kind.
pub fn is_supported() -> bool {
    const MOV_R0_0: bpf_insn = instruction(0xb7);
    const EXIT: bpf_insn = instruction(0x95);
    let kind = bpf_attach_type::BPF_TRACE_UPROBE_SESSION as u32;
    load(&[MOV_R0_0, EXIT], c"GPL", c"", kind, &mut []).is_ok_and(|program| {
        let refused = create(&program, c"/", &[0], &[0], 0);
        refused.is_err_and(|error| error.raw_os_error() == Some(libc::EBADF))
    })
}

const fn instruction(code: u8) -> bpf_insn {
    bpf_insn {
        code,
        _bitfield_1: aya_obj::generated::__BindgenBitfieldUnit::new([0]),
        off: 0,
        imm: 0,
    }
}

/// The object once more, bound to the maps that aya made.
pub struct Bound(Object);

impl Bound {
    pub fn to(ebpf: &Ebpf) -> Result<Bound> {
        let mut object = Object::parse(OBJECT)?;
        let maps = std::mem::take(&mut object.maps);
        let functions: HashSet<usize> = object.functions.keys().map(|key| key.0).collect();
        let descriptors: Result<Vec<(&str, RawFd, &aya_obj::Map)>> = maps
            .iter()
            .map(|(name, map)| Ok((name.as_str(), descriptor(ebpf, name)?, map)))
            .collect();
        object.relocate_maps(descriptors?.into_iter(), &functions)?;
        object.relocate_calls(&functions)?;
        Ok(Bound(object))
    }

    /// Loads one of its programs for sessions.
    pub fn load(&self, name: &CStr) -> Result<Session> {
        self.load_for(name, bpf_attach_type::BPF_TRACE_UPROBE_SESSION as u32)
            .map(Session)
    }

    /// Loads one of its programs for links of aya's, `kind` being what they say they are for.
    pub fn load_for(&self, name: &CStr, kind: u32) -> Result<OwnedFd> {
        let Bound(object) = self;
        let program = name.to_str().ok().and_then(|n| object.programs.get(n));
        let program = program.with_context(|| format!("no program {name:?} in the object"))?;
        let code = &object.functions[&program.function_key()].instructions;
        load(code, &program.license, name, kind, &mut []).map_err(|error| {
            // Once more, with the verifier's words.
            let mut log = vec![0; 1 << 20];
            let _ = load(code, &program.license, name, kind, &mut log);
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
            anyhow!("{error}\n{}", log.to_string_lossy().trim_end())
        })
    }
}

impl Session {
    /// Probes all sites of a file, in one process or, with 0, in all.
    pub fn attach(&self, path: &CStr, sites: &[&Site], pid: u32) -> io::Result<OwnedFd> {
        let offsets: Vec<u64> = sites.iter().map(|site| site.offset).collect();
        let cookies: Vec<u64> = sites.iter().map(|site| site.cookie).collect();
        create(&self.0, path, &offsets, &cookies, pid)
    }

    /// Instructions that the verifier walked.
    pub fn verified(&self) -> io::Result<u32> {
        Ok(info(&self.0)?.verified_insns)
    }
}

/// What the kernel says of a program.
pub fn info(program: &OwnedFd) -> io::Result<bpf_prog_info> {
    // SAFETY: a structure of plain integers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = zeroed();
    attributes.info.bpf_fd = program.as_raw_fd() as u32;
    attributes.info.info_len = size_of_val(&info) as u32;
    attributes.info.info = &raw mut info as u64;
    // SAFETY: `info` is as long as it says, and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info)
}

fn descriptor(ebpf: &Ebpf, name: &str) -> Result<RawFd> {
    match ebpf.map(name) {
        Some(
            Map::Array(map)
            | Map::CgroupArray(map)
            | Map::HashMap(map)
            | Map::LruHashMap(map)
            | Map::PerCpuArray(map)
            | Map::RingBuf(map),
        ) => Ok(map.fd().as_fd().as_raw_fd()),
        _ => Err(anyhow!("{name} is a map of an unexpected kind")),
    }
}

fn load(
    code: &[bpf_insn],
    license: &CStr,
    name: &CStr,
    kind: u32,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: a union of plain integers, zeroed.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
    load.expected_attach_type = kind;
    load.insns = code.as_ptr() as u64;
    load.insn_cnt = code.len() as u32;
    load.license = license.as_ptr() as u64;
    for (to, from) in load.prog_name[..15].iter_mut().zip(name.to_bytes()) {
        *to = *from as _;
    }
    if !log.is_empty() {
        load.log_level = 1;
        load.log_size = log.len() as u32;
        load.log_buf = log.as_mut_ptr() as u64;
    }
    // SAFETY: all that is pointed to outlives the call, with the sizes that are given.
    unsafe { descriptor_of(bpf_cmd::BPF_PROG_LOAD, &mut attributes) }
}

fn create(
    program: &OwnedFd,
    path: &CStr,
    offsets: &[u64],
    cookies: &[u64],
    pid: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: unions of plain integers, zeroed.
    unsafe {
        let create = &mut attributes.link_create;
        create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        create.attach_type = bpf_attach_type::BPF_TRACE_UPROBE_SESSION as u32;
        let sites = &mut create.__bindgen_anon_3.uprobe_multi;
        sites.path = path.as_ptr() as u64;
        sites.offsets = offsets.as_ptr() as u64;
        sites.cookies = cookies.as_ptr() as u64;
        sites.cnt = offsets.len() as u32;
        sites.pid = pid;
    }
    // SAFETY: all that is pointed to outlives the call; both arrays have `cnt` elements.
    unsafe { descriptor_of(bpf_cmd::BPF_LINK_CREATE, &mut attributes) }
}

pub(super) fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain integers.
    unsafe { std::mem::zeroed() }
}

/// # Safety
/// `attributes` are those of the command, and all they point to is valid.
pub(super) unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<libc::c_long> {
    let size = size_of_val(attributes);
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// # Safety
/// As [`bpf`], and the command makes a descriptor.
pub(super) unsafe fn descriptor_of(
    command: bpf_cmd,
    attributes: &mut bpf_attr,
) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the descriptor is new, and ours alone.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(command, attributes)? as RawFd)) }
}
