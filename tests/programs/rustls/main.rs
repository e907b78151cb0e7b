//! usage: rustls-client requests PORT BYTES      by reqwest, HTTP/1: posts so many and takes them back, thrice,
//!                                               and gets chunks in between
//!        rustls-client frames PORT VERSION      by rustls alone, blocking, on two connections in turn at one
//!                                               address: frames of the test server, up to 16 MiB
//!        rustls-client turns PORT CONNECTIONS TURNS KEYS REST
//!                                               by rustls alone, blocking, on so many connections at once, each with
//!                                               a thread: TURNS small frames, with new keys before each KEYS-th
//!                                               (0: never), and a rest of so many ms after each
//!        rustls-client get CONNECTIONS REQUESTS URL...
//!        rustls-client post CONNECTIONS REQUESTS URL...
//!                                               by reqwest: connection C asks URL[C % URLs] for /nonce-C-R;
//!                                               one after the other, or eight at once with a body

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::{TLS12, TLS13},
};

use requests::noise;

#[path = "../requests.rs"]
mod requests;

#[cfg(feature = "ring")]
use rustls::crypto::ring as provider;

#[cfg(not(feature = "ring"))]
use rustls::crypto::aws_lc_rs as provider;

fn main() {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(60));
        std::process::exit(99);
    });
    provider::default_provider().install_default().unwrap();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["frames", port, version] => frames(port.parse().unwrap(), version),
        ["turns", port, connections, turns, keys, rest] => {
            let [connections, turns, keys, rest] =
                [connections, turns, keys, rest].map(|number| number.parse().unwrap());
            let config = config("1.3");
            let port = port.parse().unwrap();
            std::thread::scope(|threads| {
                for connection in 0..connections {
                    let config = config.clone();
                    let rest = Duration::from_millis(rest as u64);
                    threads.spawn(move || take_turns(config, port, connection, turns, keys, rest));
                }
            });
        }
        _ => requests::run(&words),
    }
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

fn config(version: &str) -> Arc<ClientConfig> {
    let version = match version {
        "1.2" => &TLS12,
        "1.3" => &TLS13,
        _ => panic!("no version {version}"),
    };
    let config = ClientConfig::builder_with_protocol_versions(&[version])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    Arc::new(config)
}

fn connect(config: Arc<ClientConfig>, port: u16) -> Stream {
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(config, name).unwrap();
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    StreamOwned::new(connection, socket)
}

fn frame(stream: &mut Stream, up: &[u8], down: usize) {
    let head = [up.len(), down].map(|size| (size as u64).to_be_bytes()).concat();
    stream.write_all(&head).unwrap();
    stream.write_all(up).unwrap();
    stream.flush().unwrap();
    stream.read_exact(&mut vec![0; down]).unwrap();
}

fn close(mut stream: Stream) {
    stream.conn.send_close_notify();
    stream.flush().unwrap();
}

fn frames(port: u16, version: &str) {
    let config = config(version);
    for (up, down) in [(40_001, 50_003), (16 << 20, 16 << 20)] {
        let mut stream = connect(config.clone(), port);
        for _ in 0..2 {
            frame(&mut stream, &noise(up), down);
        }
        close(stream);
    }
}

fn take_turns(
    config: Arc<ClientConfig>,
    port: u16,
    connection: usize,
    turns: usize,
    keys: usize,
    rest: Duration,
) {
    let mut stream = connect(config, port);
    for turn in 0..turns {
        if keys != 0 && turn % keys == keys - 1 {
            stream.conn.refresh_traffic_keys().unwrap();
        }
        // No two connections say the same.
        let from = connection * 10_007 + turn;
        let size = 1 + from * 7919 % 3000;
        frame(&mut stream, &noise(from + size)[from..], 1 + from * 104_729 % 20_000);
        std::thread::sleep(rest);
    }
    close(stream);
}

/// The server's certificate is its own.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = CryptoProvider::get_default().unwrap();
        provider.signature_verification_algorithms.supported_schemes()
    }
}
