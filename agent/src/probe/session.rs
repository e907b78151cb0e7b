//! Session links: one program runs at the entry and at the return of a call, and what it returns at the
//! entry decides whether there is a return probe at all (6.13). aya has none.

use std::{ffi::CStr, io, os::fd::AsRawFd as _};

use anyhow::Result;
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_insn};
use rustix::fd::OwnedFd;

use super::raw::{self, Bound, Kind, Words, descriptor_of, zeroed};
use crate::half::Site;

/// A loaded program for session links.
pub struct Session(OwnedFd);

/// Does the kernel make such links? It is asked for one on a directory, which it refuses for that reason
/// only if it knows the kind.
pub fn is_supported() -> bool {
    const MOV_R0_0: bpf_insn = instruction(0xb7);
    const EXIT: bpf_insn = instruction(0x95);
    let code = [MOV_R0_0, EXIT];
    let program = raw::load(&code, c"GPL", "", Kind::SESSION, None, &mut [], Words::All);
    program.is_ok_and(|program| {
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

impl Session {
    pub fn load(object: &Bound, name: &str) -> Result<Session> {
        object.load(name, Kind::SESSION).map(Session)
    }

    /// Probes all sites of a file, in one process or, with 0, in all.
    pub fn attach(&self, path: &CStr, sites: &[&Site], pid: u32) -> io::Result<OwnedFd> {
        let offsets: Vec<u64> = sites.iter().map(|site| site.offset).collect();
        let cookies: Vec<u64> = sites.iter().map(|site| site.cookie).collect();
        create(&self.0, path, &offsets, &cookies, pid)
    }
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
