//! What plain TCP costs of processes that nobody watches: the programs that see sockets are on each send and receive
//! of the machine, and have to say no at once. With and without the agent in turn, on loopback, both ends in one
//! thread.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Bench;
use super::agent::{Agent, Setup};
use super::load::Load;
use super::report::{Check, Spread};

const BYTES: [u8; 64] = [b'.'; 64];
const PAIRS: u32 = 200_000;
const PAIRS_QUICK: u32 = 50_000;
const CONNECTIONS: u32 = 5_000;
const CONNECTIONS_QUICK: u32 = 1_000;

/// Nanoseconds of CPU time of one kind of work, in one round: bare, and with the agent.
type Round = [f64; 2];

pub(super) fn measure(bench: &Bench) -> Result<Vec<Check>> {
    // Watched in its place: it does nothing.
    let load = Load::memory(&bench.ground, &bench.traced)?;
    let cpu = bench.ground.load_cpu().map(str::parse).transpose()?;
    let (mut pairs, mut connections) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        let bare = work(bench, cpu)?;
        let agent = Agent::watch(
            &bench.ground,
            bench.agent()?,
            &[load.pid()],
            Setup::default(),
        )?;
        let with = work(bench, cpu)?;
        agent.stop()?;
        pairs.push([bare.0, with.0]);
        connections.push([bare.1, with.1]);
    }
    Ok(vec![
        check("a send and a receive of 64 bytes", &pairs)?,
        check(
            "a connection with one of each, from connect to close",
            &connections,
        )?,
    ])
}

fn check(what: &str, rounds: &[Round]) -> Result<Check> {
    let of = |value: fn(&Round) -> f64| Spread::of(rounds.iter().map(value).collect());
    let bare = of(|[bare, _]| *bare).context("no round")?;
    let added = of(|[bare, with]| with - bare).context("no round")?;
    let measured = format!(
        "{:.0} ns bare ({:.0}..{:.0}); the agent adds {:.0} ns ({:.0}..{:.0})",
        bare.median, bare.min, bare.max, added.median, added.min, added.max
    );
    Ok(Check::note(format!("bystander: {what}"), measured))
}

/// Nanoseconds of CPU time of a send and a receive, and of a connection.
fn work(bench: &Bench, cpu: Option<usize>) -> Result<(f64, f64)> {
    let pairs = bench.shorter(PAIRS, PAIRS_QUICK);
    let connections = bench.shorter(CONNECTIONS, CONNECTIONS_QUICK);
    let work = move || -> Result<(f64, f64)> {
        cpu.map_or(Ok(()), stay_on)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut ends = connect(&listener)?;
        let pair = per(pairs, || pass(&mut ends))?;
        let connection = per(connections, || pass(&mut connect(&listener)?))?;
        Ok((pair, connection))
    };
    let worked = std::thread::spawn(work).join();
    worked.map_err(|_| anyhow::anyhow!("the load has panicked"))?
}

fn connect(listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    client.set_nodelay(true)?;
    Ok((client, listener.accept()?.0))
}

fn pass((from, to): &mut (TcpStream, TcpStream)) -> Result<()> {
    from.write_all(&BYTES)?;
    Ok(to.read_exact(&mut [0; BYTES.len()])?)
}

fn per(times: u32, mut act: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = cpu_time()?;
    (0..times).try_for_each(|_| act())?;
    Ok((cpu_time()? - start).as_nanos() as f64 / f64::from(times))
}

/// Of this thread, in which loopback delivers as well: who else wants the CPU is not counted.
fn cpu_time() -> Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes to what it is given, which has its type.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    match result {
        0 => Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32)),
        _ => Err(std::io::Error::last_os_error()).context("the time of a thread"),
    }
}

/// This thread, and no other.
fn stay_on(cpu: usize) -> Result<()> {
    // SAFETY: all zero is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is as large as is said, and the number inside of it or ignored.
    let result = unsafe {
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context("choosing a CPU"),
    }
}
