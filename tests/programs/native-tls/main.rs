//! usage: native-tls-client requests PORT BYTES     by reqwest, HTTP/1: posts so many and takes them back, thrice,
//!                                                  and gets chunks in between
//!        native-tls-client frames PORT VERSION     blocking, on two connections in turn: frames of the test
//!                                                  server, up to 16 MiB
//!        native-tls-client get CONNECTIONS REQUESTS URL...
//!        native-tls-client post CONNECTIONS REQUESTS URL...
//!                                                  by reqwest: connection C asks URL[C % URLs] for /nonce-C-R;
//!                                                  one after the other, or eight at once with a body

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use native_tls::{Protocol, TlsConnector};
use requests::noise;

#[path = "../requests.rs"]
mod requests;

fn main() {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(60));
        std::process::exit(99);
    });
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["frames", port, version] => frames(port.parse().unwrap(), version),
        _ => requests::run(&words),
    }
}

fn frames(port: u16, version: &str) {
    let version = match version {
        "1.2" => Protocol::Tlsv12,
        "1.3" => Protocol::Tlsv13,
        _ => panic!("no version {version}"),
    };
    let connector = TlsConnector::builder()
        .danger_accept_invalid_certs(true)
        .min_protocol_version(Some(version))
        .max_protocol_version(Some(version))
        .build()
        .unwrap();
    for (up, down) in [(40_001, 50_003), (16 << 20, 16 << 20)] {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut stream = connector.connect("localhost", socket).unwrap();
        let mut back = vec![0; down];
        for _ in 0..2 {
            let head = [up, down].map(|size| (size as u64).to_be_bytes()).concat();
            stream.write_all(&head).unwrap();
            stream.write_all(&noise(up)).unwrap();
            stream.flush().unwrap();
            stream.read_exact(&mut back).unwrap();
        }
        stream.shutdown().unwrap();
    }
}
