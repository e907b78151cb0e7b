//! The built agent against real programs on loopback. Each byte it shows is compared with what the
//! programs really sent.
//!
//! # Layout
//! - `harness`: directories, processes, the agent, the waits.
//! - `proc`: what `/proc` says about a process.
//! - `records`: the agent's records put back together and judged.
//! - The tests by theme. `../kernels.txt` says which of them run in virtual machines with other kernels, too;
//!   `strangers` runs nowhere else.
//! - `../programs`: the clients and servers, part of this binary.
#![allow(missing_docs)]

mod absence;
mod addresses;
mod apps;
mod attribution;
mod capabilities;
mod cli;
mod collectors;
mod containers;
mod daemon;
mod daemonset;
mod doctor;
mod features;
mod files;
mod filters;
mod go;
mod golden;
mod halves;
mod harness;
mod hostile;
mod identity;
mod kernel;
mod libraries;
mod life;
mod lifecycle;
mod limits;
mod loss;
mod models;
mod namespaces;
mod outputs;
mod peers;
mod plain;
mod preemption;
mod proc;
mod protocols;
mod recordings;
mod records;
mod runtimes;
mod secrets;
mod strangers;
mod tools;
mod unclaimed;
mod vendored;

use harness::{Lab, PYTHON, argv, random};

/// A request body and an answer of 300 kB, binary.
#[test]
fn curl_both_directions() {
    let Some(lab) = Lab::with("curl_both_directions", &["curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    let body = lab.file("body", random(300_145, 1));
    let data = format!("@{}", body.display());
    let echo = lab.path("echo");
    let run = lab.agent().run(argv![
        "curl",
        "-sk",
        "--http1.1",
        "-o",
        &echo,
        "--data-binary",
        data,
        server.url("/echo")
    ]);
    run.assert_exact(&server.client_truth());
    assert!(
        lab.read("echo") == lab.read("body"),
        "the echo is not what was sent"
    );
}

/// `http.client` on Python's `ssl`: the library comes late, by `dlopen`.
#[test]
fn python_http_client() {
    let Some(lab) = Lab::new("python_http_client") else {
        return;
    };
    let server = lab.server(&[]);
    let client = lab.program("http_client.py");
    let run = lab.agent().run(argv![
        PYTHON,
        client,
        "http.client",
        server.port.to_string()
    ]);
    run.assert_exact(&server.client_truth());
}

/// 100 kB each way through `openssl s_client`; the server closes.
#[test]
fn openssl_s_client() {
    let Some(lab) = Lab::new("openssl_s_client") else {
        return;
    };
    let server = lab.server(&["--mode", "frames", "--frames", "1"]);
    let mut frame = [101_667_u64, 99_991].map(u64::to_be_bytes).concat();
    frame.extend(random(101_667, 2));
    let address = format!("127.0.0.1:{}", server.port);
    let stdin = lab.file("stdin", frame);
    let run = lab
        .agent()
        .stdin(&stdin)
        .run(argv!["openssl", "s_client", "-quiet", "-connect", address]);
    run.assert_exact(&server.client_truth());
}
