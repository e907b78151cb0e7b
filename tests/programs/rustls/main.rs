//! usage: rustls-client requests PORT BYTES      by reqwest, HTTP/1: posts so many and takes them back, thrice,
//!                                               and gets chunks in between
//!        rustls-client frames PORT VERSION      by rustls alone, blocking, on two connections in turn at one
//!                                               address: frames of the test server, up to 16 MiB
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
        _ => requests::run(&words),
    }
}

fn frames(port: u16, version: &str) {
    let version = match version {
        "1.2" => &TLS12,
        "1.3" => &TLS13,
        _ => panic!("no version {version}"),
    };
    let config = ClientConfig::builder_with_protocol_versions(&[version])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let config = Arc::new(config);
    for (up, down) in [(40_001, 50_003), (16 << 20, 16 << 20)] {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(config.clone(), name).unwrap();
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        let mut back = vec![0; down];
        for _ in 0..2 {
            let head = [up, down].map(|size| (size as u64).to_be_bytes()).concat();
            stream.write_all(&head).unwrap();
            stream.write_all(&noise(up)).unwrap();
            stream.flush().unwrap();
            stream.read_exact(&mut back).unwrap();
        }
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    }
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
