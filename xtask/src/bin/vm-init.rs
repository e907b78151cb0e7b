//! The first process of a test VM: mounts, runs the plan, gives the verdict twice (as a line and as
//! QEMU's exit code), ends the machine.
//!
//! `/vm/plan` has lines of tab-separated words: `env KEY=VALUE`, or `run LABEL SECONDS PROGRAM ARG…`.
//!
//! Where systemd is the first process, `vm-init end` is what its last service does: the verdict, and the machine's end.

use std::{
    ffi::CString,
    fs, io,
    os::{fd::AsRawFd as _, unix::fs::symlink},
    process::Command,
    ptr, thread,
    time::{Duration, Instant},
};

/// Type, place and options of each mount.
const MOUNTS: &[(&str, &str, &str)] = &[
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/run", "mode=755"),
    ("tmpfs", "/vm/tmp", "mode=1777"),
    ("tracefs", "/sys/kernel/tracing", ""),
    ("bpf", "/sys/fs/bpf", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("securityfs", "/sys/kernel/security", ""),
];

/// Modules, and in the file `order` their names, each behind what it needs.
const MODULES: &str = "/vm/modules";

/// The port of QEMU's debug device.
const EXIT_PORT: u16 = 0xf4;

fn main() {
    let command = std::env::args().nth(1);
    // SAFETY: getpid has no preconditions.
    if unsafe { libc::getpid() } != 1 {
        if command.as_deref() == Some("end") && is_guest_of_systemd() {
            end_for_systemd();
        }
        eprintln!("vm-init is the first process of a test VM, started by `cargo xtask vm`");
        std::process::exit(2);
    }
    // Now: a kernel that a test has locked down gives none away.
    let has_port = open_port();
    let failed = match prepare().and_then(|()| fs::read_to_string("/vm/plan")) {
        Ok(plan) => carry_out(&plan),
        Err(error) => {
            println!("VM-INIT failed: {error}");
            1
        }
    };
    give_verdict(failed, has_port)
}

fn open_port() -> bool {
    // SAFETY: the port belongs to the debug device of the VM that this process runs in, as `main` has made sure.
    unsafe { libc::ioperm(EXIT_PORT.into(), 4, 1) == 0 }
}

fn give_verdict(failed: u32, has_port: bool) -> ! {
    println!("VM-VERDICT {failed}");
    end(has_port.then_some(if failed == 0 { 0x10 } else { 0x11 }))
}

/// The word that `cargo xtask vm --systemd` puts onto the kernel's command line: nobody's own machine is ended.
fn is_guest_of_systemd() -> bool {
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    words
        .split_whitespace()
        .any(|word| word == "vortex.init=systemd")
}

/// systemd tells the last command of a service how the one before it ended.
fn end_for_systemd() -> ! {
    let is_well = |name, expected| std::env::var(name).is_ok_and(|value| value == expected);
    let passed = is_well("SERVICE_RESULT", "success") && is_well("EXIT_STATUS", "0");
    give_verdict(u32::from(!passed), open_port())
}

fn prepare() -> io::Result<()> {
    for (kind, place, options) in MOUNTS {
        fs::create_dir_all(place)?;
        mount(kind, place, options)
            .map_err(|error| io::Error::other(format!("mount {place}: {error}")))?;
    }
    for (to, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("fd/0", "/dev/stdin"),
        ("fd/1", "/dev/stdout"),
        ("fd/2", "/dev/stderr"),
    ] {
        if fs::symlink_metadata(link).is_err() {
            symlink(to, link)?;
        }
    }
    load_modules();
    let (status, _) = run(
        Command::new("/usr/bin/busybox").args(["ip", "link", "set", "lo", "up"]),
        10,
    )?;
    if status != 0 {
        return Err(io::Error::other(
            "the loopback interface could not be set up",
        ));
    }
    let uptime = fs::read_to_string("/proc/uptime")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!(
        "VM-INIT kernel {} after {} s",
        release.trim(),
        uptime.split(' ').next().unwrap_or("?")
    );
    Ok(())
}

/// What this kernel refuses is said, and missed by the tests that need it.
fn load_modules() {
    let order = fs::read_to_string(format!("{MODULES}/order")).unwrap_or_default();
    for name in order.lines() {
        if let Err(error) = load_module(&format!("{MODULES}/{name}.ko")) {
            println!("VM-INIT module {name}: {error}");
        }
    }
}

fn load_module(path: &str) -> io::Result<()> {
    let file = fs::File::open(path)?;
    // SAFETY: the descriptor and the empty string, which are the arguments, live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn mount(kind: &str, place: &str, options: &str) -> io::Result<()> {
    let [kind, place, options] =
        [kind, place, options].map(|text| CString::new(text).expect("no NUL"));
    // SAFETY: the three strings live until the call returns.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            place.as_ptr(),
            kind.as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Runs each step of the plan; returns how many failed.
fn carry_out(plan: &str) -> u32 {
    let mut env = Vec::new();
    let mut failed = 0;
    let mut steps = 0;
    for line in plan.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match *words {
            ["env", variable] => env.extend(variable.split_once('=')),
            ["run", label, seconds, program, ref args @ ..] => {
                steps += 1;
                println!("VM-STEP {label} start");
                let mut command = Command::new(program);
                command
                    .args(args)
                    .env_clear()
                    .envs(env.iter().copied())
                    .current_dir("/vm/tmp");
                let exit = match run(&mut command, seconds.parse().unwrap_or(60)) {
                    Ok((status, took)) => {
                        format!("exit={status} after {:.1} s", took.as_secs_f32())
                    }
                    Err(error) => format!("exit=none: {error}"),
                };
                println!("VM-STEP {label} {exit}");
                failed += u32::from(!exit.starts_with("exit=0 "));
            }
            _ => {
                println!("VM-INIT not understood: {line}");
                failed += 1;
            }
        }
    }
    if steps == 0 { failed + 1 } else { failed }
}

/// Runs a program with a time limit, reaps everything, and leaves nothing of it behind. The status
/// is that of a shell: 128 + N for signal N.
fn run(command: &mut Command, seconds: u64) -> io::Result<(i32, Duration)> {
    let start = Instant::now();
    let child = command.spawn()?.id().cast_signed();
    let mut result = None;
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            pid if pid == child => {
                result = Some(if libc::WIFEXITED(status) {
                    libc::WEXITSTATUS(status)
                } else {
                    128 + libc::WTERMSIG(status)
                });
                kill_all();
            }
            0 if start.elapsed() > Duration::from_secs(seconds) => {
                println!("VM-INIT {seconds} s are over: ending what runs");
                kill_all();
                thread::sleep(Duration::from_millis(100));
            }
            0 => thread::sleep(Duration::from_millis(10)),
            -1 => break,
            _ => {}
        }
    }
    Ok((
        result.ok_or_else(|| io::Error::other("its end was not seen"))?,
        start.elapsed(),
    ))
}

/// Ends every process but this one. This machine is ours alone.
fn kill_all() {
    // SAFETY: as process 1 (checked in `main`) of a VM, -1 means all that was started here.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Ends the machine: QEMU's `isa-debug-exit` device makes `code << 1 | 1` its own exit code.
fn end(code: Option<u8>) -> ! {
    // SAFETY: tcdrain only waits: the console is slow, and what it has not yet sent ends with us. There is a
    // code only where the port is ours. Nothing is lost by a reboot, all is in memory.
    unsafe {
        libc::tcdrain(1);
        if let Some(code) = code {
            std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") code);
        }
        libc::syscall(
            libc::SYS_reboot,
            0xfee1_dead_u32,
            0x2812_1969,
            libc::RB_POWER_OFF,
            ptr::null::<u8>(),
        );
    }
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}
